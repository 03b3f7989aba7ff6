/** Numbers and addresses as text, and back. */
import type { AddressSpace } from "../engine/debug/api";
import type { NumberFormat } from "./custom-protocol";

const MASK64 = (1n << 64n) - 1n;

export const hex = (value: bigint): string => (value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`);

/** @param width bits */
export function formatValue(value: bigint, width: number, format: NumberFormat): string {
  const unsigned = value < 0n ? BigInt.asUintN(width, value) : value;
  if (format === "decimal") return value.toString();
  if (format === "binary") return `0b${groups(unsigned.toString(2).padStart(width, "0"), 4)}`;
  return `0x${unsigned.toString(16).padStart(Math.ceil(width / 4), "0")}`;
}

function groups(digits: string, size: number): string {
  return digits.replace(new RegExp(`\\B(?=(?:.{${size}})+$)`, "g"), "_");
}

/** A place in one of the guest's address spaces. */
export interface MemoryReference {
  readonly space: AddressSpace;
  readonly address: bigint;
}

/** As text: linear addresses are plain hexadecimal, as the disassembly view wants them. */
export function printReference({ space, address }: MemoryReference): string {
  return space === "gva" ? hex(address) : `${space}:${hex(address)}`;
}

/** Undefined when `text` is no reference. */
export function parseReference(text: string): MemoryReference | undefined {
  const match = /^\s*(?:(gva|gpa|hpa):\s*)?(0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32})\s*$/.exec(text);
  if (!match) return undefined;
  const address = BigInt(match[2]);
  if (address > MASK64) return undefined;
  return { space: (match[1] ?? "gva") as AddressSpace, address };
}

/** "256M", "1GiB", "0x100000", 1048576 to bytes; undefined when it is none. */
export function parseSize(value: string | number): number | undefined {
  if (typeof value === "number") return value;
  const match = /^([0-9]+)([KMG])?(?:iB|B)?$/.exec(value);
  if (!match) return undefined;
  const unit = { K: 1024, M: 1024 ** 2, G: 1024 ** 3 }[match[2] as "K" | "M" | "G"] ?? 1;
  return Number(match[1]) * unit;
}

export function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** @throws Error when the text is not base64 */
export function fromBase64(text: string): Uint8Array {
  let plain: string;
  try {
    plain = atob(text);
  } catch {
    throw new Error("the data is not base64");
  }
  return Uint8Array.from(plain, (c) => c.charCodeAt(0));
}
