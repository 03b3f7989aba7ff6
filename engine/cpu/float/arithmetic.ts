/**
 * Addition, subtraction, multiplication, division and square root, correctly rounded to any format (SDM 1 4.8, 4.9).
 * `out` may be one of the operands.
 */
import { type Environment, round } from "./environment";
import { invalid, isNan, propagate, propagateOne } from "./nan";
import { Flag, type Format, Kind, type Num, Rounding, SIGN_BIT, setInfinity, setZero } from "./number";
import { below, below64, divideStep, division, multiply64, product, shifted, shiftRightSticky } from "./wide";

/** The denormal-operand exception of whichever operand is one. */
export function denormals(env: Environment, a: Num, b: Num): void {
  if ((a.denormal | b.denormal) !== 0) env.flags |= Flag.DE;
}

/** Sign of an exact zero that is the difference of equal magnitudes (SDM 1 4.8.3.1). */
const differenceSign = (env: Environment): number => (env.rounding === Rounding.DOWN ? 1 : 0);

/** a + b, or a - b with `negate` 1. */
export function add(env: Environment, format: Format, a: Num, b: Num, negate: number, out: Num): void {
  env.roundedUp = false;
  if (isNan(a) || isNan(b)) {
    propagate(env, a, b, out);
    return;
  }
  const signB = b.sign ^ negate;
  if (a.kind === Kind.INFINITE || b.kind === Kind.INFINITE) {
    if (a.kind === b.kind && a.sign !== signB) invalid(env, out);
    else {
      denormals(env, a, b);
      setInfinity(out, a.kind === Kind.INFINITE ? a.sign : signB);
    }
    return;
  }
  denormals(env, a, b);
  if (a.kind === Kind.ZERO) {
    if (b.kind === Kind.ZERO) setZero(out, a.sign === signB ? signB : differenceSign(env));
    else round(env, format, signB, b.exp, b.hi, b.lo, 0, out);
    return;
  }
  if (b.kind === Kind.ZERO) {
    round(env, format, a.sign, a.exp, a.hi, a.lo, 0, out);
    return;
  }
  // x gets the operand of the larger magnitude.
  let x = a;
  let y = b;
  let sign = a.sign;
  if (a.exp < b.exp || (a.exp === b.exp && below64(a.hi, a.lo, b.hi, b.lo))) {
    x = b;
    y = a;
    sign = signB;
  }
  shiftRightSticky(y.hi, y.lo, x.exp - y.exp);
  let { hi, lo, extra } = shifted;
  let exp = x.exp;
  if (a.sign === signB) {
    const sumLo = (x.lo + lo) | 0;
    const sum = (x.hi >>> 0) + (hi >>> 0) + (below(sumLo, lo) ? 1 : 0);
    lo = sumLo;
    hi = sum | 0;
    if (sum > 4294967295) {
      extra = (extra >>> 1) | (lo << 31) | (extra & 1);
      lo = (lo >>> 1) | (hi << 31);
      hi = (hi >>> 1) | SIGN_BIT;
      exp++;
    }
  } else {
    const borrow = extra !== 0 ? 1 : 0;
    extra = -extra | 0;
    const low = (x.lo >>> 0) - (lo >>> 0) - borrow;
    hi = (x.hi - hi - (low < 0 ? 1 : 0)) | 0;
    lo = low | 0;
    if ((hi | lo | extra) === 0) {
      setZero(out, differenceSign(env));
      return;
    }
    while (hi === 0) {
      hi = lo;
      lo = extra;
      extra = 0;
      exp -= 32;
    }
    const shift = Math.clz32(hi);
    if (shift > 0) {
      hi = (hi << shift) | (lo >>> (32 - shift));
      lo = (lo << shift) | (extra >>> (32 - shift));
      extra <<= shift;
      exp -= shift;
    }
  }
  round(env, format, sign, exp, hi, lo, extra, out);
}

export function multiply(env: Environment, format: Format, a: Num, b: Num, out: Num): void {
  env.roundedUp = false;
  if (isNan(a) || isNan(b)) {
    propagate(env, a, b, out);
    return;
  }
  const sign = a.sign ^ b.sign;
  if (a.kind === Kind.INFINITE || b.kind === Kind.INFINITE) {
    if (a.kind === Kind.ZERO || b.kind === Kind.ZERO) invalid(env, out);
    else {
      denormals(env, a, b);
      setInfinity(out, sign);
    }
    return;
  }
  denormals(env, a, b);
  if (a.kind === Kind.ZERO || b.kind === Kind.ZERO) {
    setZero(out, sign);
    return;
  }
  let exp = a.exp + b.exp + 1;
  multiply64(a.hi, a.lo, b.hi, b.lo);
  let { w3, w2, w1 } = product;
  const sticky = product.w0 !== 0 ? 1 : 0;
  if (w3 >= 0) {
    w3 = (w3 << 1) | (w2 >>> 31);
    w2 = (w2 << 1) | (w1 >>> 31);
    w1 = (w1 << 1) | (product.w0 >>> 31);
    exp--;
  }
  round(env, format, sign, exp, w3, w2, w1 | sticky, out);
}

export function divide(env: Environment, format: Format, a: Num, b: Num, out: Num): void {
  env.roundedUp = false;
  if (isNan(a) || isNan(b)) {
    propagate(env, a, b, out);
    return;
  }
  const sign = a.sign ^ b.sign;
  if (a.kind === Kind.INFINITE) {
    if (b.kind === Kind.INFINITE) invalid(env, out);
    else {
      denormals(env, a, b);
      setInfinity(out, sign);
    }
    return;
  }
  if (b.kind === Kind.ZERO) {
    if (a.kind === Kind.ZERO) invalid(env, out);
    else {
      env.flags |= Flag.ZE;
      setInfinity(out, sign);
    }
    return;
  }
  denormals(env, a, b);
  if (a.kind === Kind.ZERO || b.kind === Kind.INFINITE) {
    setZero(out, sign);
    return;
  }
  let exp = a.exp - b.exp;
  let rh = a.hi;
  let rl = a.lo;
  let next = 0;
  if (below64(rh, rl, b.hi, b.lo)) exp--;
  else {
    // Halve the dividend, so that the quotient has 64 bits exactly.
    next = rl << 31;
    rl = (rl >>> 1) | (rh << 31);
    rh >>>= 1;
  }
  const dh = b.hi;
  const dl = b.lo;
  divideStep(rh, rl, next, dh, dl);
  const hi = division.quotient;
  divideStep(division.hi, division.lo, 0, dh, dl);
  const lo = division.quotient;
  const remainder = (division.hi | division.lo) !== 0;
  let extra = 0;
  if (remainder) {
    // The remainder against half the divisor.
    const { hi: h, lo: l } = division;
    const carried = h < 0;
    const th = (h << 1) | (l >>> 31);
    const tl = l << 1;
    if (!carried && th === dh && tl === dl) extra = SIGN_BIT;
    else extra = carried || below64(dh, dl, th, tl) ? SIGN_BIT | 1 : 1;
  }
  round(env, format, sign, exp, hi, lo, extra, out);
}

/** Root of the last `root`, and what is known of the remainder: in `extra`, as `round` takes it. */
const rootResult = { hi: 0, lo: 0, extra: 0 };

/** The largest double below 2^64. */
const LARGEST_ESTIMATE = 2 ** 64 - 2 ** 11;

/** floor(sqrt(nh:nl:nm:0)) of a number with bit 127 or 126 set. */
function root(nh: number, nl: number, nm: number): void {
  // 53 bits of the root, as a 64-bit number.
  let estimate = Math.sqrt((nh >>> 0) * 4294967296 + (nl >>> 0)) * 4294967296;
  if (estimate > LARGEST_ESTIMATE) estimate = LARGEST_ESTIMATE;
  let hi = Math.floor(estimate / 4294967296) | 0;
  let lo = (estimate - (hi >>> 0) * 4294967296) | 0;
  for (;;) {
    // d = n - r * r, signed and small: d3 is its sign.
    multiply64(hi, lo, hi, lo);
    const d0 = -product.w0 | 0;
    const s1 = (nm >>> 0) - (product.w1 >>> 0) - (product.w0 !== 0 ? 1 : 0);
    const s2 = (nl >>> 0) - (product.w2 >>> 0) - (s1 < 0 ? 1 : 0);
    const d3 = (nh - product.w3 - (s2 < 0 ? 1 : 0)) | 0;
    const d1 = s1 | 0;
    const d2 = s2 | 0;
    if (d3 === 0) {
      const twice = hi < 0 ? 1 : 0;
      const tooSmall = d2 !== twice ? d2 > twice || d2 < 0 : below64((hi << 1) | (lo >>> 31), lo << 1, d1, d0);
      if (!tooSmall) {
        rootResult.hi = hi;
        rootResult.lo = lo;
        // Above half a unit when d > r; never exactly half.
        const exact = (d0 | d1 | d2) === 0;
        rootResult.extra = exact ? 0 : d2 !== 0 || below64(hi, lo, d1, d0) ? SIGN_BIT | 1 : 1;
        return;
      }
    }
    const difference = ((d3 * 4294967296 + (d2 >>> 0)) * 4294967296 + (d1 >>> 0)) * 4294967296 + (d0 >>> 0);
    let step = Math.floor(difference / (2 * ((hi >>> 0) * 4294967296 + (lo >>> 0))));
    if (step === 0) step = 1;
    const stepHigh = Math.floor(step / 4294967296);
    const sum = (lo >>> 0) + (step - stepHigh * 4294967296);
    lo = sum | 0;
    hi = (hi + stepHigh + (sum > 4294967295 ? 1 : 0)) | 0;
  }
}

export function squareRoot(env: Environment, format: Format, a: Num, out: Num): void {
  env.roundedUp = false;
  if (isNan(a)) {
    propagateOne(env, a, out);
    return;
  }
  if (a.kind === Kind.ZERO) {
    setZero(out, a.sign);
    return;
  }
  if (a.sign !== 0) {
    invalid(env, out);
    return;
  }
  if (a.kind === Kind.INFINITE) {
    setInfinity(out, 0);
    return;
  }
  if (a.denormal !== 0) env.flags |= Flag.DE;
  // The radicand between 2^126 and 2^128: with an even exponent it is shifted right by one.
  if ((a.exp & 1) === 0) root(a.hi >>> 1, (a.lo >>> 1) | (a.hi << 31), a.lo << 31);
  else root(a.hi, a.lo, 0);
  round(env, format, 0, a.exp >> 1, rootResult.hi, rootResult.lo, rootResult.extra, out);
}
