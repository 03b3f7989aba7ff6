/** FSCALE, FXTRACT, FPREM and FPREM1 on extended values (SDM 2A). */
import { denormals } from "./arithmetic";
import { type Environment, round } from "./environment";
import { fromInteger } from "./integers";
import { invalid, isNan, propagate, propagateOne } from "./nan";
import { copy, EXTENDED, Flag, type Format, Kind, type Num, setFinite, setInfinity, setZero } from "./number";
import { below64 } from "./wide";

/** More than any difference of exponents of extended values. */
const FAR = 0x1_0000;

/** a * 2^trunc(b). */
export function scale(env: Environment, format: Format, a: Num, b: Num, out: Num): void {
  if (isNan(a) || isNan(b)) {
    propagate(env, a, b, out);
    return;
  }
  if (b.kind === Kind.INFINITE) {
    if (a.kind === (b.sign === 0 ? Kind.ZERO : Kind.INFINITE)) invalid(env, out);
    else {
      denormals(env, a, b);
      if (b.sign === 0) setInfinity(out, a.sign);
      else setZero(out, a.sign);
    }
    return;
  }
  denormals(env, a, b);
  if (a.kind !== Kind.FINITE) {
    copy(a, out);
    return;
  }
  let shift = 0;
  if (b.kind === Kind.FINITE && b.exp >= 0) {
    const magnitude = b.exp > 15 ? FAR : b.hi >>> (31 - b.exp);
    shift = b.sign === 0 ? magnitude : -magnitude;
  }
  round(env, format, a.sign, a.exp + shift, a.hi, a.lo, 0, out);
}

/** Splits into exponent, as a number, and significand with exponent 0. */
export function extract(env: Environment, a: Num, exponent: Num, significand: Num): void {
  switch (a.kind) {
    case Kind.ZERO:
      env.flags |= Flag.ZE;
      setInfinity(exponent, 1);
      setZero(significand, a.sign);
      break;
    case Kind.INFINITE:
      setInfinity(exponent, 0);
      setInfinity(significand, a.sign);
      break;
    case Kind.FINITE:
      if (a.denormal !== 0) env.flags |= Flag.DE;
      fromInteger(a.exp >> 31, a.exp, exponent);
      setFinite(significand, a.sign, 0, a.hi, a.lo);
      break;
    default:
      propagateOne(env, a, exponent);
      copy(exponent, significand);
  }
}

/** Remainder of the last divideBits. */
const rest = { hi: 0, lo: 0 };

/** Answers of `remainder` that are no quotient. */
export const Remainder = {
  PARTIAL: -1,
  /** The result is a NaN. */
  NONE: -2,
} as const;

/** Divides by repeated subtraction: `steps` + 1 bits of quotient; the low ones are returned, the remainder is in `rest`. */
function divideBits(a: Num, b: Num, steps: number): number {
  let { hi, lo } = a;
  let quotient = 0;
  let carry = false;
  for (let i = steps; ; i--) {
    quotient <<= 1;
    if (carry || !below64(hi, lo, b.hi, b.lo)) {
      quotient |= 1;
      const low = (lo >>> 0) - (b.lo >>> 0);
      hi = (hi - b.hi - (low < 0 ? 1 : 0)) | 0;
      lo = low | 0;
    }
    if (i === 0) break;
    carry = hi < 0;
    hi = (hi << 1) | (lo >>> 31);
    lo <<= 1;
  }
  rest.hi = hi;
  rest.lo = lo;
  return quotient;
}

/**
 * Remainder of a / b, with the quotient truncated, or rounded to nearest even. When the exponents differ by 64 or more the
 * result is a partial remainder.
 * @returns the low bits of the quotient, or a value of Remainder
 */
export function remainder(env: Environment, a: Num, b: Num, nearest: boolean, out: Num): number {
  env.roundedUp = false;
  if (isNan(a) || isNan(b)) {
    propagate(env, a, b, out);
    return Remainder.NONE;
  }
  if (a.kind === Kind.INFINITE || b.kind === Kind.ZERO) {
    invalid(env, out);
    return Remainder.NONE;
  }
  denormals(env, a, b);
  if (a.kind === Kind.ZERO) {
    setZero(out, a.sign);
    return 0;
  }
  const distance = a.exp - b.exp;
  if (b.kind === Kind.INFINITE || distance < -1 || (distance < 0 && !nearest)) {
    round(env, EXTENDED, a.sign, a.exp, a.hi, a.lo, 0, out);
    return 0;
  }
  if (distance >= 64) {
    // Reduces the exponent by 32 to 63, as the manual leaves it open.
    const steps = (distance & 31) | 32;
    divideBits(a, b, steps);
    deliver(env, a.sign, b.exp + distance - steps, out);
    return Remainder.PARTIAL;
  }
  let { sign } = a;
  let quotient = 0;
  if (distance < 0) {
    // a is below b and at least a quarter of it: half as large as its own significand says.
    const twice = below64(b.hi, b.lo, a.hi, a.lo);
    if (!twice) {
      round(env, EXTENDED, a.sign, a.exp, a.hi, a.lo, 0, out);
      return 0;
    }
    // b - a, in halves of b's last place: 2b - a.
    const low = ((b.lo << 1) >>> 0) - (a.lo >>> 0);
    rest.lo = low | 0;
    rest.hi = (((b.hi << 1) | (b.lo >>> 31)) - a.hi - (low < 0 ? 1 : 0)) | 0;
    deliver(env, sign ^ 1, a.exp, out);
    return 1;
  }
  quotient = divideBits(a, b, distance);
  if (nearest) {
    // Twice the remainder against the divisor.
    const { hi, lo } = rest;
    const th = (hi << 1) | (lo >>> 31);
    const tl = lo << 1;
    const equal = hi >= 0 && th === b.hi && tl === b.lo;
    if (hi < 0 || below64(b.hi, b.lo, th, tl) || (equal && quotient & 1)) {
      const low = (b.lo >>> 0) - (lo >>> 0);
      rest.hi = (b.hi - hi - (low < 0 ? 1 : 0)) | 0;
      rest.lo = low | 0;
      sign ^= 1;
      quotient++;
    }
  }
  if ((rest.hi | rest.lo) === 0) setZero(out, a.sign);
  else deliver(env, sign, b.exp, out);
  return quotient & 7;
}

/** The remainder in `rest`, whose bit 63 has the given exponent. */
function deliver(env: Environment, sign: number, exp: number, out: Num): void {
  if ((rest.hi | rest.lo) === 0) {
    setZero(out, sign);
    return;
  }
  setFinite(out, sign, exp, rest.hi, rest.lo);
  round(env, EXTENDED, sign, out.exp, out.hi, out.lo, 0, out);
}
