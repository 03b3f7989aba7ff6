/**
 * When floating-point instructions may use the arithmetic of WebAssembly, which rounds to nearest even and reports nothing.
 * An operation takes the quick way when MXCSR asks for just that, PE is set already so that an inexact result leaves no
 * trace, the operands are normal numbers or zeros, and the result is normal, or a zero that is exact. Everything else is
 * computed slowly (cpu/float).
 */

import { Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Value } from "../expressions";
import type { Vector } from "../vector-expressions";

const FLAGS_BELOW_PE = 0x1f;

/** Bits of MXCSR that matter (SDM 1 10.2.3), and what they must be: all masked, PE set, no DAZ, no FTZ, to nearest. */
export const MXCSR_SETTING = 0xffff & ~FLAGS_BELOW_PE;
export const MXCSR_QUICK = 0x1fa0;

/**
 * Looks at floating-point numbers as bits: T is an integer, or a vector of them. Answers are truth values: 4-byte integers,
 * zero or not, or masks.
 */
export interface Checks<T extends Value | Vector> {
  /** Neither zero, denormal, infinite nor NaN. */
  normal(x: T): T;
  /** The same, and not the least normal binade, where a result may have been tiny before rounding. */
  normalResult(x: T): T;
  zero(x: T): T;
  infinite(x: T): T;
  and(a: T, b: T): T;
  or(a: T, b: T): T;
  /** True in every lane. */
  all(x: T): Value;
}

/** Bit position of the exponent's lowest bit. */
const exponentAt = (bits: 32 | 64): bigint => (bits === 32 ? 23n : 52n);

export function scalarChecks(c: Context, bits: 32 | 64): Checks<Value> {
  const size = bits === 32 ? 4 : 8;
  const step = 1n << (exponentAt(bits) + 1n);
  // Twice the number without its sign, one binade up: exponents of all ones wrap to 0, of zero become 1.
  const moved = (x: Value): Value => c.add(c.shlBy(x, 1), c.constant(size, step));
  const infinity = (1n << BigInt(bits)) - step;
  return {
    normal: (x) => c.geU(moved(x), c.constant(size, 2n * step)),
    normalResult: (x) => c.geU(moved(x), c.constant(size, 3n * step)),
    zero: (x) => c.isZero(c.shlBy(x, 1)),
    infinite: (x) => c.eq(c.shlBy(x, 1), c.constant(size, infinity)),
    and: (a, b) => c.and(a, b),
    or: (a, b) => c.or(a, b),
    all: (x) => x,
  };
}

export function packedChecks(c: Context, bits: 32 | 64): Checks<Vector> {
  const size = bits === 32 ? 4 : 8;
  const [add, greater, equal] =
    bits === 32 ? [Simd.I32X4_ADD, Simd.I32X4_GT_S, Simd.I32X4_EQ] : [Simd.I64X2_ADD, Simd.I64X2_GT_S, Simd.I64X2_EQ];
  const step = 1n << (exponentAt(bits) + 1n);
  const sign = 1n << BigInt(bits - 1);
  const twice = (x: Vector): Vector => c.simd(add, x, x);
  // As for scalars, with the sign bit flipped, because comparisons are signed.
  const above = (x: Vector, binades: bigint): Vector =>
    c.simd(
      greater,
      c.simd(add, twice(x), c.everyLane(size, step - sign)),
      c.everyLane(size, binades * step - sign - 1n),
    );
  const infinity = (1n << BigInt(bits)) - step;
  return {
    normal: (x) => above(x, 2n),
    normalResult: (x) => above(x, 3n),
    zero: (x) => c.simd(equal, twice(x), c.zeroVector()),
    infinite: (x) => c.simd(equal, twice(x), c.everyLane(size, infinity)),
    and: (a, b) => c.simd(Simd.V128_AND, a, b),
    or: (a, b) => c.simd(Simd.V128_OR, a, b),
    all: (x) => c.eq(c.simdToInteger(Simd.I8X16_BITMASK, x), c.constant(4, 0xffff)),
  };
}
