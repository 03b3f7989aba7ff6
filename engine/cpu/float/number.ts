/**
 * Floating-point values taken apart, and the formats they come from (SDM 1 4.2.2, 4.8).
 *
 * One representation serves all formats: a 64-bit significand whose integer bit is bit 63, in two 32-bit halves held as
 * signed integers, and an unbiased exponent. Numbers are caller-owned objects, so that nothing is allocated on the way.
 */

/** What a value is. NaNs and unsupported encodings come last, so that `kind >= QUIET` asks for all of them. */
export const Kind = {
  ZERO: 0,
  FINITE: 1,
  INFINITE: 2,
  QUIET: 3,
  SIGNALLING: 4,
  /** Extended encodings that are no operands: pseudo-NaN, pseudo-infinity, unnormal (SDM 1 8.2.2). */
  UNSUPPORTED: 5,
} as const;
export type Kind = (typeof Kind)[keyof typeof Kind];

/** Exception flags, at their places in MXCSR and the x87 status word (SDM 1 4.9.1). */
export const Flag = { IE: 1, DE: 2, ZE: 4, OE: 8, UE: 16, PE: 32 } as const;
/** Exceptions found before an operation computes anything (SDM 1 4.9.2). */
export const PRE_COMPUTATION = Flag.IE | Flag.DE | Flag.ZE;

/** Rounding control as in MXCSR.RC and FCW.RC (SDM 1 table 4-8). */
export const Rounding = { NEAREST: 0, DOWN: 1, UP: 2, ZERO: 3 } as const;
export type Rounding = (typeof Rounding)[keyof typeof Rounding];

/** What results are rounded to: bits of significand, and exponents of the normal numbers. */
export interface Format {
  readonly precision: number;
  readonly minExponent: number;
  readonly maxExponent: number;
}

export const HALF: Format = { precision: 11, minExponent: -14, maxExponent: 15 };
export const SINGLE: Format = { precision: 24, minExponent: -126, maxExponent: 127 };
export const DOUBLE: Format = { precision: 53, minExponent: -1022, maxExponent: 1023 };
export const EXTENDED: Format = { precision: 64, minExponent: -16382, maxExponent: 16383 };
/** Precision control of the x87 narrows the significand only (SDM 1 8.1.5.2). */
export const EXTENDED_53: Format = { ...EXTENDED, precision: 53 };
export const EXTENDED_24: Format = { ...EXTENDED, precision: 24 };

export const SIGN_BIT = 0x8000_0000 | 0;
/** Bit 62 of the significand: set in quiet NaNs. */
export const QUIET_BIT = 0x4000_0000;

/** A value taken apart. Results that are subnormal have the format's least exponent and bit 63 clear. */
export class Num {
  kind: Kind = Kind.ZERO;
  /** 0 or 1. */
  sign = 0;
  /** Exponent of the integer bit, unbiased. */
  exp = 0;
  /** Significand: bits 63:32 and 31:0, signed. Of NaNs the payload, integer bit set. */
  hi = 0;
  lo = 0;
  /** 1 when the operand was a denormal (or pseudo-denormal): it raises DE. Operands are normalised all the same. */
  denormal = 0;
}

export function copy(from: Num, to: Num): void {
  to.kind = from.kind;
  to.sign = from.sign;
  to.exp = from.exp;
  to.hi = from.hi;
  to.lo = from.lo;
  to.denormal = from.denormal;
}

export function setZero(n: Num, sign: number): void {
  n.kind = Kind.ZERO;
  n.sign = sign;
  n.exp = 0;
  n.hi = 0;
  n.lo = 0;
  n.denormal = 0;
}

export function setInfinity(n: Num, sign: number): void {
  setZero(n, sign);
  n.kind = Kind.INFINITE;
  n.hi = SIGN_BIT;
}

/** The real indefinite: the quiet NaN that masked invalid operations give (SDM 1 4.8.3.7). */
export function setIndefinite(n: Num): void {
  n.kind = Kind.QUIET;
  n.sign = 1;
  n.exp = 0;
  n.hi = SIGN_BIT | QUIET_BIT;
  n.lo = 0;
  n.denormal = 0;
}

/** A finite value other than zero from a significand that need not be normalised. */
export function setFinite(n: Num, sign: number, exp: number, hi: number, lo: number): void {
  n.kind = Kind.FINITE;
  n.sign = sign;
  n.denormal = 0;
  const shift = hi !== 0 ? Math.clz32(hi) : 32 + Math.clz32(lo);
  n.exp = exp - shift;
  if (shift === 0) {
    n.hi = hi;
    n.lo = lo;
  } else if (shift < 32) {
    n.hi = (hi << shift) | (lo >>> (32 - shift));
    n.lo = lo << shift;
  } else {
    n.hi = lo << (shift - 32);
    n.lo = 0;
  }
}

function setNan(n: Num, sign: number, hi: number, lo: number): void {
  n.kind = hi & QUIET_BIT ? Kind.QUIET : Kind.SIGNALLING;
  n.sign = sign;
  n.exp = 0;
  n.hi = hi | SIGN_BIT;
  n.lo = lo;
  n.denormal = 0;
}

function setDenormal(n: Num, sign: number, exp: number, hi: number, lo: number, daz: boolean): void {
  if (daz) setZero(n, sign);
  else {
    setFinite(n, sign, exp, hi, lo);
    n.denormal = 1;
  }
}

/** @param daz denormals are zeros (MXCSR.DAZ, SDM 1 10.2.3.4) */
export function unpack64(n: Num, hi: number, lo: number, daz: boolean): void {
  const sign = hi >>> 31;
  const biased = (hi >>> 20) & 0x7ff;
  const high = ((hi & 0xf_ffff) << 11) | (lo >>> 21);
  const low = lo << 11;
  if (biased === 0) {
    if ((high | low) === 0) setZero(n, sign);
    else setDenormal(n, sign, DOUBLE.minExponent, high, low, daz);
  } else if (biased === 0x7ff) {
    if ((high | low) === 0) setInfinity(n, sign);
    else setNan(n, sign, high, low);
  } else {
    n.kind = Kind.FINITE;
    n.sign = sign;
    n.exp = biased - 1023;
    n.hi = high | SIGN_BIT;
    n.lo = low;
    n.denormal = 0;
  }
}

export function unpack32(n: Num, bits: number, daz: boolean): void {
  const sign = bits >>> 31;
  const biased = (bits >>> 23) & 0xff;
  const high = (bits & 0x7f_ffff) << 8;
  if (biased === 0) {
    if (high === 0) setZero(n, sign);
    else setDenormal(n, sign, SINGLE.minExponent, high, 0, daz);
  } else if (biased === 0xff) {
    if (high === 0) setInfinity(n, sign);
    else setNan(n, sign, high, 0);
  } else {
    n.kind = Kind.FINITE;
    n.sign = sign;
    n.exp = biased - 127;
    n.hi = high | SIGN_BIT;
    n.lo = 0;
    n.denormal = 0;
  }
}

/** Half precision; its denormals are never zeros (SDM 1 14.4.1). */
export function unpack16(n: Num, bits: number): void {
  const sign = (bits >>> 15) & 1;
  const biased = (bits >>> 10) & 0x1f;
  const high = (bits & 0x3ff) << 21;
  if (biased === 0) {
    if (high === 0) setZero(n, sign);
    else setDenormal(n, sign, HALF.minExponent, high, 0, false);
  } else if (biased === 0x1f) {
    if (high === 0) setInfinity(n, sign);
    else setNan(n, sign, high, 0);
  } else {
    n.kind = Kind.FINITE;
    n.sign = sign;
    n.exp = biased - 15;
    n.hi = high | SIGN_BIT;
    n.lo = 0;
    n.denormal = 0;
  }
}

/** @param signExponent bits 79:64 */
export function unpack80(n: Num, signExponent: number, hi: number, lo: number): void {
  const sign = (signExponent >>> 15) & 1;
  const biased = signExponent & 0x7fff;
  if (biased === 0) {
    if ((hi | lo) === 0) setZero(n, sign);
    else setDenormal(n, sign, EXTENDED.minExponent, hi, lo, false);
  } else if (hi >= 0) {
    n.kind = Kind.UNSUPPORTED;
    n.sign = sign;
    n.hi = hi;
    n.lo = lo;
    n.denormal = 0;
  } else if (biased === 0x7fff) {
    if (((hi << 1) | lo) === 0) setInfinity(n, sign);
    else setNan(n, sign, hi, lo);
  } else {
    n.kind = Kind.FINITE;
    n.sign = sign;
    n.exp = biased - 16383;
    n.hi = hi;
    n.lo = lo;
    n.denormal = 0;
  }
}

/** Bits of a rounded value; `words[at]` gets the low half. */
export function pack64(n: Num, words: Int32Array, at: number): void {
  const sign = n.sign << 31;
  switch (n.kind) {
    case Kind.ZERO:
      words[at + 1] = sign;
      words[at] = 0;
      break;
    case Kind.FINITE:
      words[at + 1] = sign | ((n.hi < 0 ? n.exp + 1023 : 0) << 20) | ((n.hi >>> 11) & 0xf_ffff);
      words[at] = (n.hi << 21) | (n.lo >>> 11);
      break;
    case Kind.INFINITE:
      words[at + 1] = sign | 0x7ff0_0000;
      words[at] = 0;
      break;
    default:
      words[at + 1] = sign | 0x7ff0_0000 | ((n.hi >>> 11) & 0xf_ffff);
      words[at] = (n.hi << 21) | (n.lo >>> 11);
  }
}

export function pack32(n: Num): number {
  const sign = n.sign << 31;
  switch (n.kind) {
    case Kind.ZERO:
      return sign;
    case Kind.FINITE:
      return sign | ((n.hi < 0 ? n.exp + 127 : 0) << 23) | ((n.hi >>> 8) & 0x7f_ffff);
    case Kind.INFINITE:
      return sign | 0x7f80_0000;
    default:
      return sign | 0x7f80_0000 | ((n.hi >>> 8) & 0x7f_ffff);
  }
}

export function pack16(n: Num): number {
  const sign = n.sign << 15;
  switch (n.kind) {
    case Kind.ZERO:
      return sign;
    case Kind.FINITE:
      return sign | ((n.hi < 0 ? n.exp + 15 : 0) << 10) | ((n.hi >>> 21) & 0x3ff);
    case Kind.INFINITE:
      return sign | 0x7c00;
    default:
      return sign | 0x7c00 | ((n.hi >>> 21) & 0x3ff);
  }
}

/** Bits 79:64 of a rounded value; bits 63:0 are its `hi` and `lo`. */
export function pack80(n: Num): number {
  const sign = n.sign << 15;
  switch (n.kind) {
    case Kind.ZERO:
      return sign;
    case Kind.FINITE:
      return sign | (n.hi < 0 ? n.exp + 16383 : 0);
    default:
      return sign | 0x7fff;
  }
}
