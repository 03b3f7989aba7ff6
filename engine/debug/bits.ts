/** Values in words: the set bits of a register or field by its BitField rows. */
import type { BitField } from "../cpu/registers";

/** The value of one field of bits inside `value`. */
export function extract(value: bigint, field: BitField): bigint {
  return (value >> BigInt(field.low)) & ((1n << BigInt(field.width)) - 1n);
}

/** `value` with one field of bits replaced. */
export function insert(value: bigint, field: BitField, bits: bigint): bigint {
  const mask = ((1n << BigInt(field.width)) - 1n) << BigInt(field.low);
  return (value & ~mask) | ((bits << BigInt(field.low)) & mask);
}

/** One field of bits in words: its name for a set flag, `NAME=value` or `NAME=text` for a wider one. */
function describeField(value: bigint, field: BitField): string {
  const bits = extract(value, field);
  const named = field.values?.[Number(bits)];
  if (field.width === 1) return named ? `${field.name}=${named}` : field.name;
  if (named) return `${field.name}=${named}`;
  return `${field.name}=${bits < 10n ? bits : "0x" + bits.toString(16)}`;
}

/**
 * A value in words, high bits first: "PG|WP|PE", "TYPE=hardware exception|VECTOR=0xe". Fields that are zero and have no name
 * for zero are left out, and so are bits no row knows. A word with a VALID bit means nothing without it.
 */
export function describeBits(value: bigint, fields: readonly BitField[]): string {
  const valid = fields.find((field) => field.name === "VALID" && field.width === 1);
  if (valid && extract(value, valid) === 0n) return "not valid";
  return [...fields]
    .sort((a, b) => b.low - a.low)
    .filter((field) => extract(value, field) !== 0n || (field.width > 1 && field.values?.[0] !== undefined))
    .map((field) => describeField(value, field))
    .join("|");
}
