/**
 * F2XM1, FYL2X, FYL2XP1, FPATAN, FSIN, FCOS and FPTAN on extended values, correctly rounded but for the reduction of
 * angles, which uses the 66-bit pi of x87 processors (SDM 1 8.3.7, 8.3.8; tables of special values in SDM 2A).
 */
import { denormals } from "./arithmetic";
import { type Environment, round } from "./environment";
import { arctangent, bitLength, cosine, exponentialMinus1, ln2, log2, pi, sine } from "./fixed-point";
import { invalid, isNan, propagate, propagateOne } from "./nan";
import { copy, EXTENDED, Flag, Kind, type Num, SIGN_BIT, setFinite, setInfinity, setZero } from "./number";

/** Bits behind the point of an intermediate result near 1. */
const BITS = 256;
/** Below 2^-100, series end at their first term: what follows is beyond any rounding but the direction. */
const TINY = -100;

const significandOf = (a: Num): bigint => (BigInt(a.hi >>> 0) << 32n) | BigInt(a.lo >>> 0);

/** Rounds magnitude * 2^exp; `exact` tells whether nothing follows behind the bits given. */
function deliver(env: Environment, sign: number, magnitude: bigint, exp: number, exact: boolean, out: Num): void {
  const length = bitLength(magnitude);
  const drop = BigInt(length - 96);
  let bits = drop > 0n ? magnitude >> drop : magnitude << -drop;
  if (!exact || (drop > 0n && bits << drop !== magnitude)) bits |= 1n;
  const hi = Number(BigInt.asIntN(32, bits >> 64n));
  const lo = Number(BigInt.asIntN(32, bits >> 32n));
  const extra = Number(BigInt.asIntN(32, bits));
  round(env, EXTENDED, sign, exp + length - 1, hi, lo, extra, out);
  if (out.kind === Kind.FINITE && out.hi >= 0) env.flags |= Flag.UE;
}

/*
 * Processors report PE, and UE where the result is tiny, with every result that comes from none of the special operands,
 * exact or not; so does this.
 */

/** 2^a - 1 for -1 <= a <= 1; other operands are left as they are, with PE. */
export function exponential(env: Environment, a: Num, out: Num): void {
  if (isNan(a)) {
    propagateOne(env, a, out);
    return;
  }
  if (a.kind === Kind.INFINITE) {
    if (a.sign === 0) setInfinity(out, 0);
    else setFinite(out, 1, 0, SIGN_BIT, 0);
    return;
  }
  if (a.denormal !== 0) env.flags |= Flag.DE;
  if (a.kind === Kind.ZERO) {
    setZero(out, a.sign);
    return;
  }
  const { sign, exp } = a;
  if (exp >= 0) {
    const one = exp === 0 && a.hi === SIGN_BIT && a.lo === 0;
    env.flags |= Flag.PE;
    copy(a, out);
    if (one && sign !== 0) out.exp = -1;
    return;
  }
  if (exp < TINY) {
    deliver(env, sign, significandOf(a) * ln2(BITS), exp - 63 - BITS, false, out);
    return;
  }
  const bits = BITS - exp;
  const t = (significandOf(a) * ln2(bits)) >> BigInt(63 - exp);
  const result = exponentialMinus1(sign === 0 ? t : -t, bits);
  deliver(env, sign, result < 0n ? -result : result, -bits, false, out);
}

/** y times a logarithm: special operands. @returns true when `out` has the result */
function logarithmOfSpecial(env: Environment, y: Num, logSign: number, infinite: boolean, out: Num): boolean {
  // logSign: -1, 0 (the logarithm is zero) or 1.
  if (infinite) {
    if (y.kind === Kind.ZERO) invalid(env, out);
    else setInfinity(out, y.sign ^ (logSign < 0 ? 1 : 0));
    return true;
  }
  if (y.kind === Kind.INFINITE) {
    if (logSign === 0) invalid(env, out);
    else setInfinity(out, y.sign ^ (logSign < 0 ? 1 : 0));
    return true;
  }
  return false;
}

/** y * log2(x). */
export function logarithm(env: Environment, x: Num, y: Num, out: Num): void {
  if (isNan(x) || isNan(y)) {
    propagate(env, x, y, out);
    return;
  }
  if (x.kind === Kind.ZERO) {
    if (y.kind === Kind.FINITE) env.flags |= Flag.ZE;
    logarithmOfSpecial(env, y, -1, true, out);
    return;
  }
  if (x.sign !== 0) {
    invalid(env, out);
    return;
  }
  const isOne = x.kind === Kind.FINITE && x.exp === 0 && x.hi === SIGN_BIT && x.lo === 0;
  const logSign = isOne ? 0 : x.kind === Kind.INFINITE || x.exp >= 0 ? 1 : -1;
  if (logarithmOfSpecial(env, y, logSign, x.kind === Kind.INFINITE, out)) {
    if ((env.flags & Flag.IE) === 0) denormals(env, x, y);
    return;
  }
  denormals(env, x, y);
  if (isOne || y.kind === Kind.ZERO) {
    setZero(out, y.sign ^ (logSign < 0 ? 1 : 0));
    return;
  }
  env.flags |= Flag.PE;
  const log = log2(significandOf(x), 63 - x.exp, BITS);
  const exact = x.hi === SIGN_BIT && x.lo === 0;
  const magnitude = significandOf(y) * (log < 0n ? -log : log);
  deliver(env, y.sign ^ (log < 0n ? 1 : 0), magnitude, y.exp - 63 - BITS, exact, out);
}

/** y * log2(x + 1), for x from sqrt(1/2) - 1 to sqrt(2) - 1; x <= -1 is left as it is, with PE. */
export function logarithmPlus1(env: Environment, x: Num, y: Num, out: Num): void {
  if (isNan(x) || isNan(y)) {
    propagate(env, x, y, out);
    return;
  }
  if (x.kind === Kind.INFINITE && x.sign !== 0) {
    invalid(env, out);
    return;
  }
  const logSign = x.kind === Kind.ZERO ? 0 : x.sign === 0 ? 1 : -1;
  if (logarithmOfSpecial(env, y, logSign, x.kind === Kind.INFINITE, out)) {
    if ((env.flags & Flag.IE) === 0) denormals(env, x, y);
    return;
  }
  denormals(env, x, y);
  const sign = x.sign ^ y.sign;
  if (x.kind === Kind.ZERO || y.kind === Kind.ZERO) {
    setZero(out, sign);
    return;
  }
  env.flags |= Flag.PE;
  if (x.sign !== 0 && x.exp >= 0) {
    copy(x, out);
    return;
  }
  const exp = y.exp - 63;
  const product = significandOf(x) * significandOf(y);
  if (x.exp < TINY) {
    deliver(env, sign, (product << BigInt(2 * BITS)) / ln2(BITS), exp + x.exp - 63 - BITS, false, out);
    return;
  }
  // Far above the range the 1 is lost in x.
  const scale = Math.max(63 - x.exp, 0);
  const one = 1n << BigInt(scale);
  const term = significandOf(x) << BigInt(Math.max(x.exp - 63, 0));
  const sum = x.sign === 0 ? one + term : one - term;
  const bits = BITS + Math.max(-x.exp, 0);
  const log = log2(sum, scale, bits);
  const exact = (sum & (sum - 1n)) === 0n;
  deliver(env, sign, significandOf(y) * (log < 0n ? -log : log), exp - bits, exact, out);
}

/** The angle of (x, y): atan(y / x) in the quadrant of both. */
export function angle(env: Environment, y: Num, x: Num, out: Num): void {
  if (isNan(x) || isNan(y)) {
    propagate(env, x, y, out);
    return;
  }
  denormals(env, x, y);
  const { sign } = y;
  const left = x.sign !== 0;
  const far = y.kind === Kind.INFINITE;
  if (far || x.kind === Kind.INFINITE || x.kind === Kind.ZERO || y.kind === Kind.ZERO) {
    // In eighths of a full turn.
    let eighths: number;
    if (far && x.kind === Kind.INFINITE) eighths = left ? 3 : 1;
    else if (far || (x.kind === Kind.ZERO && y.kind !== Kind.ZERO)) eighths = 2;
    else eighths = left ? 4 : 0;
    if (eighths === 0) setZero(out, sign);
    else deliver(env, sign, pi(BITS) * BigInt(eighths), -BITS - 2, false, out);
    return;
  }
  const a = significandOf(y);
  const b = significandOf(x);
  const distance = y.exp - x.exp;
  const steep = distance > 0 || (distance === 0 && a > b);
  const below = steep ? -distance : distance;
  if (below < TINY) {
    if (steep || left) {
      deliver(env, sign, pi(BITS), steep ? -BITS - 1 : -BITS, false, out);
      return;
    }
    // y / x, less a little.
    const quotient = a << BigInt(BITS);
    const exact = quotient % b === 0n;
    deliver(env, sign, quotient / b - (exact ? 1n : 0n), distance - BITS, false, out);
    return;
  }
  const bits = BITS - below;
  // The smaller over the larger: significands, then the difference of exponents.
  const ratio = ((steep ? b : a) << BigInt(bits + below)) / (steep ? a : b);
  let result = arctangent(ratio, bits);
  if (steep) result = left ? (pi(bits) >> 1n) + result : (pi(bits) >> 1n) - result;
  else if (left) result = pi(bits) - result;
  deliver(env, sign, result, -bits, false, out);
}

/** Pi as x87 processors have it for the reduction of angles: this many units of 2^-66. */
const PI_66 = 0xc90fdaa22168c234cn;

/** An angle reduced to -pi/4 .. pi/4: its magnitude in units, sign, and the quadrant it was taken from. */
interface Reduced {
  magnitude: bigint;
  /** The unit is 2^unit. */
  unit: number;
  negative: boolean;
  quadrant: number;
}

/** |a| less the nearest multiple of pi/2. */
function reduce(a: Num): Reduced {
  const significand = significandOf(a);
  if (a.exp < -2) return { magnitude: significand, unit: a.exp - 63, negative: false, quadrant: 0 };
  const units = significand << BigInt(a.exp + 4);
  const quadrants = (2n * units + PI_66) / (2n * PI_66);
  const rest = units - quadrants * PI_66;
  return { magnitude: rest < 0n ? -rest : rest, unit: -67, negative: rest < 0n, quadrant: Number(quadrants & 3n) };
}

/** Where the arguments of FSIN and its like end: operands of 2^63 and more are not taken (C2). */
export const outOfRange = (a: Num): boolean => a.kind === Kind.FINITE && a.exp >= 63;

/** Trigonometric functions of one operand; FSINCOS asks for two. */
export const Trigonometric = { SINE: 0, COSINE: 1, TANGENT: 2 } as const;
export type Trigonometric = (typeof Trigonometric)[keyof typeof Trigonometric];

/** Sine, cosine or tangent of a, which is in range. */
export function trigonometric(env: Environment, which: Trigonometric, a: Num, out: Num): void {
  if (isNan(a)) {
    propagateOne(env, a, out);
    return;
  }
  if (a.kind === Kind.INFINITE) {
    invalid(env, out);
    return;
  }
  if (a.denormal !== 0) env.flags |= Flag.DE;
  if (a.kind === Kind.ZERO) {
    if (which === Trigonometric.COSINE) setFinite(out, 0, 0, SIGN_BIT, 0);
    else setZero(out, a.sign);
    return;
  }
  const { magnitude, unit, negative, quadrant } = reduce(a);
  const odd = (quadrant & 1) !== 0;
  const sineNegative = negative !== quadrant > 1;
  const operandSign = a.sign;
  const exponent = bitLength(magnitude) + unit;
  if (exponent < TINY) {
    // Only an operand that was tiny itself: the remainder of the reduction never is.
    if (which === Trigonometric.COSINE) deliver(env, 0, (1n << 128n) - 1n, -128, false, out);
    else {
      const nudge = which === Trigonometric.SINE ? -1n : 1n;
      deliver(env, operandSign, (magnitude << 128n) + nudge, unit - 128, false, out);
    }
    return;
  }
  const bits = BITS - exponent;
  const r = magnitude << BigInt(bits + unit);
  if (which === Trigonometric.TANGENT) {
    const s = sine(r, bits);
    const c = cosine(r, bits);
    const tangent = odd ? (c << BigInt(bits)) / s : (s << BigInt(bits)) / c;
    deliver(env, operandSign ^ (negative !== odd ? 1 : 0), tangent, -bits, false, out);
    return;
  }
  const useCosine = odd !== (which === Trigonometric.COSINE);
  const value = useCosine ? cosine(r, bits) : sine(r, bits);
  let sign: number;
  if (which === Trigonometric.SINE) {
    // sin r, cos r, -sin r, -cos r by quadrant.
    sign = operandSign ^ ((odd ? quadrant > 1 : sineNegative) ? 1 : 0);
  } else {
    // cos r, -sin r, -cos r, sin r.
    const minus = quadrant === 1 || quadrant === 2;
    sign = (odd ? minus !== negative : minus) ? 1 : 0;
  }
  deliver(env, sign, value, -bits, false, out);
}
