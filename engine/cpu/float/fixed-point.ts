/**
 * Elementary functions on fixed-point numbers: bigints that count units of 2^-bits. Errors are a few units, far below what
 * rounding to 64 bits can see; results that are tiny themselves get more bits from the caller.
 */

/** Precision of the constants, bits behind the point. */
const CONSTANT_BITS = 512;

/** Number of bits of a positive number. */
export function bitLength(value: bigint): number {
  const digits = value.toString(16);
  return digits.length * 4 - Math.clz32(Number.parseInt(digits[0], 16)) + 28;
}

const once = (make: () => bigint): (() => bigint) => {
  let value: bigint | undefined;
  return () => {
    value ??= make();
    return value;
  };
};

/** atan(1/n). */
function atanOfReciprocal(n: bigint): bigint {
  let power = (1n << BigInt(CONSTANT_BITS + 16)) / n;
  let sum = 0n;
  for (let k = 1n, sign = 1n; power !== 0n; k += 2n, sign = -sign) {
    sum += (sign * power) / k;
    power /= n * n;
  }
  return sum;
}

const piConstant = once(() => (16n * atanOfReciprocal(5n) - 4n * atanOfReciprocal(239n)) >> 16n);
const ln2Constant = once(() => 2n * atanh((1n << BigInt(CONSTANT_BITS)) / 3n, CONSTANT_BITS));

const scaled = (constant: bigint, bits: number): bigint => constant >> BigInt(CONSTANT_BITS - bits);

/** Pi with at most 512 bits behind the point. */
export const pi = (bits: number): bigint => scaled(piConstant(), bits);
export const ln2 = (bits: number): bigint => scaled(ln2Constant(), bits);

/** atanh(s) for 0 <= s < 1/2 or so. */
function atanh(s: bigint, bits: number): bigint {
  const point = BigInt(bits);
  const square = (s * s) >> point;
  let sum = s;
  let power = s;
  for (let k = 3n; power !== 0n; k += 2n) {
    power = (power * square) >> point;
    sum += power / k;
  }
  return sum;
}

/** e^t - 1 for |t| < 1. */
export function exponentialMinus1(t: bigint, bits: number): bigint {
  const point = BigInt(bits);
  let sum = t;
  let term = t;
  for (let k = 2n; term !== 0n; k++) {
    term = ((term * t) >> point) / k;
    sum += term;
  }
  return sum;
}

/** log2(m / 2^scale) for m > 0; an exact integer when m is a power of two. */
export function log2(m: bigint, scale: number, bits: number): bigint {
  const point = BigInt(bits);
  let exponent = bitLength(m) - 1;
  // The mantissa between sqrt(1/2) and sqrt(2).
  if (m * m > 1n << BigInt(2 * exponent + 1)) exponent++;
  const one = 1n << BigInt(exponent);
  const whole = BigInt(exponent - scale) << point;
  const difference = m - one;
  if (difference === 0n) return whole;
  const s = ((difference < 0n ? -difference : difference) << point) / (m + one);
  const log = ((2n * atanh(s, bits)) << point) / ln2(bits);
  return difference < 0n ? whole - log : whole + log;
}

/** Sine of 0 <= r < 1. */
export function sine(r: bigint, bits: number): bigint {
  return alternating(r, r, 2n, bits);
}

export function cosine(r: bigint, bits: number): bigint {
  return alternating(1n << BigInt(bits), r, 1n, bits);
}

/** first - first r^2 / (k (k+1)) + ..., the series of sine (k = 2) and cosine (k = 1). */
function alternating(first: bigint, r: bigint, start: bigint, bits: number): bigint {
  const point = BigInt(bits);
  const square = (r * r) >> point;
  let term = first;
  let sum = first;
  for (let k = start, negative = true; term !== 0n; k += 2n, negative = !negative) {
    term = ((term * square) >> point) / (k * (k + 1n));
    sum = negative ? sum - term : sum + term;
  }
  return sum;
}

/** atan(z) by its series, for 0 <= z <= 1/8 or so. */
function atanSeries(z: bigint, bits: number): bigint {
  const point = BigInt(bits);
  const square = (z * z) >> point;
  let power = z;
  let sum = z;
  for (let k = 3n, negative = true; power !== 0n; k += 2n, negative = !negative) {
    power = (power * square) >> point;
    sum = negative ? sum - power / k : sum + power / k;
  }
  return sum;
}

/** atan(k / 16) for k = 0 to 16. */
const atanTable: bigint[] = [0n];

function atanOfSixteenths(k: number): bigint {
  while (atanTable.length <= k) {
    const n = BigInt(atanTable.length);
    // atan(n/16) - atan((n-1)/16) = atan(16 / (256 + n (n-1)))
    const step = (16n << BigInt(CONSTANT_BITS)) / (256n + n * (n - 1n));
    atanTable.push(atanTable[atanTable.length - 1] + atanSeries(step, CONSTANT_BITS));
  }
  return atanTable[k];
}

/** atan(t) for 0 <= t <= 1. */
export function arctangent(t: bigint, bits: number): bigint {
  const point = BigInt(bits);
  const sixteenths = (t << 4n) >> point;
  if (sixteenths === 0n) return atanSeries(t, bits);
  // atan(t) - atan(c) = atan((t - c) / (1 + t c))
  const c = (sixteenths << point) >> 4n;
  const z = ((t - c) << point) / ((1n << point) + ((t * c) >> point));
  return scaled(atanOfSixteenths(Number(sixteenths)), bits) + atanSeries(z, bits);
}
