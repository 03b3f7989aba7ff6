/** Random operands with the places where floating point is hard: limits, halfway cases, cancellation, denormals, NaNs. */
import type { Random } from "../random";

interface Shape {
  /** Bits of fraction and of exponent. */
  readonly fraction: number;
  readonly exponent: number;
}

export const SHAPES: Readonly<Record<16 | 32 | 64, Shape>> = {
  16: { fraction: 10, exponent: 5 },
  32: { fraction: 23, exponent: 8 },
  64: { fraction: 52, exponent: 11 },
};

/** A significand of `bits` bits: random, sparse, dense, near a power of two or with long runs. */
export function significand(random: Random, bits: number): bigint {
  const all = (1n << BigInt(bits)) - 1n;
  switch (random.below(8)) {
    case 0:
      return 0n;
    case 1:
      return all;
    case 2:
      return BigInt(random.below(4));
    case 3:
      return all - BigInt(random.below(4));
    case 4:
      return (1n << BigInt(random.below(bits))) | (random.oneIn(2) ? 1n : 0n);
    case 5: {
      const low = random.below(bits);
      const high = random.between(low, bits - 1);
      return ((1n << BigInt(high)) - (1n << BigInt(low))) & all;
    }
    case 6:
      // Few significant bits, so that results are exact or halfway.
      return ((random.u64() & 0xfffn) << BigInt(Math.max(0, bits - 12))) & all;
    default:
      return random.u64() & all;
  }
}

function exponent(random: Random, bits: number): number {
  const top = (1 << bits) - 1;
  const bias = top >> 1;
  switch (random.below(8)) {
    case 0:
      return random.below(4);
    case 1:
      return top - random.below(4);
    case 2:
    case 3:
      return Math.min(top, Math.max(0, bias + random.between(-3, 3)));
    case 4:
      return Math.min(top, bias + random.between(-70, 70) < 0 ? 0 : bias + random.between(-12, 70));
    case 5:
      return bias >> 1;
    default:
      return random.below(top + 1);
  }
}

/** Bits of a random operand of 16, 32 or 64 bits. */
export function operand(random: Random, format: 16 | 32 | 64): bigint {
  const { fraction, exponent: width } = SHAPES[format];
  const sign = BigInt(random.below(2)) << BigInt(format - 1);
  const biased = Math.min(exponent(random, width), (1 << width) - 1);
  return sign | (BigInt(biased) << BigInt(fraction)) | significand(random, fraction);
}

/** An operand related to another: near it, so that differences cancel and products and quotients come near 1. */
export function relative(random: Random, format: 16 | 32 | 64, other: bigint): bigint {
  const mask = (1n << BigInt(format)) - 1n;
  const { fraction } = SHAPES[format];
  switch (random.below(6)) {
    case 0:
      return (other + BigInt(random.between(-2, 2))) & mask;
    case 1:
      return (other ^ (1n << BigInt(format - 1))) & mask;
    case 2:
      return ((other ^ (1n << BigInt(format - 1))) + BigInt(random.between(-2, 2))) & mask;
    case 3:
      return (other + (BigInt(random.between(-30, 30)) << BigInt(fraction))) & mask;
    default:
      return operand(random, format);
  }
}
