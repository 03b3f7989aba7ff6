/** Integers: conversion both ways and rounding to an integral value (SDM 1 4.8.4.2, 8.1.5, 11.4; table 4-1). */
import { type Environment, round } from "./environment";
import { isNan, propagateOne } from "./nan";
import { copy, Flag, type Format, Kind, type Num, Rounding, SIGN_BIT, setFinite, setZero } from "./number";
import { shifted, shiftRightSticky } from "./wide";

/** Result of the last toInteger or roundToUnits: two's complement or magnitude, in halves. */
export const integer = { hi: 0, lo: 0 };

/**
 * Magnitude of a number rounded to an integer, in `integer`; PE when that is inexact.
 * @returns false when it needs more than 64 bits
 */
function toMagnitude(env: Environment, a: Num, rounding: Rounding): boolean {
  env.roundedUp = false;
  if (a.kind === Kind.ZERO) {
    integer.hi = integer.lo = 0;
    return true;
  }
  if (a.exp > 63) return false;
  // hi:lo is the integral part, `extra` the fraction with a sticky bit.
  shiftRightSticky(a.hi, a.lo, 63 - a.exp);
  let { hi, lo } = shifted;
  const { extra } = shifted;
  let up = false;
  if (extra !== 0) {
    env.flags |= Flag.PE;
    if (rounding === Rounding.NEAREST) up = extra < 0 && (extra !== SIGN_BIT || (lo & 1) !== 0);
    else up = rounding === (a.sign !== 0 ? Rounding.DOWN : Rounding.UP);
  }
  env.roundedUp = up;
  if (up) {
    lo = (lo + 1) | 0;
    if (lo === 0) {
      hi = (hi + 1) | 0;
      if (hi === 0) return false;
    }
  }
  integer.hi = hi;
  integer.lo = lo;
  return true;
}

/**
 * Converts to a signed integer of 16, 32 or 64 bits in `integer` (sign-extended); IE and the integer indefinite where it
 * does not fit, and for NaNs and infinities.
 */
export function toInteger(env: Environment, a: Num, rounding: Rounding, width: 16 | 32 | 64): void {
  const before = env.flags;
  if (a.kind <= Kind.FINITE && toMagnitude(env, a, rounding)) {
    const { hi, lo } = integer;
    let fits: boolean;
    if (width === 64) fits = hi >= 0 || (a.sign !== 0 && hi === SIGN_BIT && lo === 0);
    else {
      const limit = 2 ** (width - 1);
      fits = hi === 0 && (lo >>> 0 < limit || (a.sign !== 0 && lo >>> 0 === limit));
    }
    if (fits) {
      if (a.sign !== 0) {
        integer.lo = -lo | 0;
        integer.hi = (~hi + (lo === 0 ? 1 : 0)) | 0;
      }
      return;
    }
  }
  env.roundedUp = false;
  env.flags = before | Flag.IE;
  integer.hi = width === 64 ? SIGN_BIT : -1;
  integer.lo = width === 64 ? 0 : width === 32 ? SIGN_BIT : -0x8000;
}

/** Converts a signed integer of 64 bits (sign-extended) exactly. */
export function fromInteger(hi: number, lo: number, out: Num): void {
  if ((hi | lo) === 0) setZero(out, 0);
  else if (hi >= 0) setFinite(out, 0, 63, hi, lo);
  else setFinite(out, 1, 63, (~hi + (lo === 0 ? 1 : 0)) | 0, -lo | 0);
}

/** Converts a signed integer, rounding to the format. */
export function fromIntegerRounded(env: Environment, format: Format, hi: number, lo: number, out: Num): void {
  fromInteger(hi, lo, out);
  if (out.kind === Kind.FINITE) round(env, format, out.sign, out.exp, out.hi, out.lo, 0, out);
}

/** Rounds to an integral value in the same format: FRNDINT, ROUNDPS and their like. DE is the caller's business. */
export function roundToIntegral(env: Environment, a: Num, rounding: Rounding, out: Num): void {
  env.roundedUp = false;
  if (isNan(a)) {
    propagateOne(env, a, out);
    return;
  }
  // From 2^63 on everything is integral.
  if (a.kind !== Kind.FINITE || a.exp >= 63) {
    copy(a, out);
    return;
  }
  const { sign } = a;
  if (!toMagnitude(env, a, rounding)) {
    setFinite(out, sign, 64, SIGN_BIT, 0);
    return;
  }
  if ((integer.hi | integer.lo) === 0) setZero(out, sign);
  else setFinite(out, sign, 63, integer.hi, integer.lo);
}
