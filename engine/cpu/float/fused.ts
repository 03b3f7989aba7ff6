/** Fused multiply-add: a * b + c with one rounding (SDM 1 14.5). NaN operands are the caller's business. */
import { denormals } from "./arithmetic";
import { type Environment, round } from "./environment";
import { invalid } from "./nan";
import { Flag, type Format, Kind, type Num, Rounding, setInfinity, setZero } from "./number";
import { multiply64, product } from "./wide";

/** Two 128-bit magnitudes, most significant word first. */
const big = new Int32Array(4);
const small = new Int32Array(4);

/** Shifts four words right; what falls out leaves a sticky bit in the last place. */
function shiftRightSticky(words: Int32Array, distance: number): void {
  if (distance >= 128) {
    words.fill(0);
    words[3] = 1;
    return;
  }
  let sticky = 0;
  while (distance >= 32) {
    sticky |= words[3];
    words[3] = words[2];
    words[2] = words[1];
    words[1] = words[0];
    words[0] = 0;
    distance -= 32;
  }
  if (distance > 0) {
    const up = 32 - distance;
    sticky |= words[3] << up;
    words[3] = (words[3] >>> distance) | (words[2] << up);
    words[2] = (words[2] >>> distance) | (words[1] << up);
    words[1] = (words[1] >>> distance) | (words[0] << up);
    words[0] >>>= distance;
  }
  if (sticky !== 0) words[3] |= 1;
}

function shiftLeft(words: Int32Array, distance: number): void {
  while (distance >= 32) {
    words[0] = words[1];
    words[1] = words[2];
    words[2] = words[3];
    words[3] = 0;
    distance -= 32;
  }
  if (distance > 0) {
    const down = 32 - distance;
    words[0] = (words[0] << distance) | (words[1] >>> down);
    words[1] = (words[1] << distance) | (words[2] >>> down);
    words[2] = (words[2] << distance) | (words[3] >>> down);
    words[3] <<= distance;
  }
}

/** big + small; returns the carry. */
function addWords(): number {
  let carry = 0;
  for (let i = 3; i >= 0; i--) {
    const sum = (big[i] >>> 0) + (small[i] >>> 0) + carry;
    big[i] = sum;
    carry = sum > 4294967295 ? 1 : 0;
  }
  return carry;
}

/** big - small; returns the borrow. */
function subtractWords(): number {
  let borrow = 0;
  for (let i = 3; i >= 0; i--) {
    const difference = (big[i] >>> 0) - (small[i] >>> 0) - borrow;
    big[i] = difference;
    borrow = difference < 0 ? 1 : 0;
  }
  return borrow;
}

function negateBig(): void {
  let carry = 1;
  for (let i = 3; i >= 0; i--) {
    const sum = (~big[i] >>> 0) + carry;
    big[i] = sum;
    carry = sum > 4294967295 ? 1 : 0;
  }
}

/** Whether a * b is an infinity times zero. */
function invalidProduct(a: Num, b: Num): boolean {
  return (a.kind === Kind.INFINITE && b.kind === Kind.ZERO) || (a.kind === Kind.ZERO && b.kind === Kind.INFINITE);
}

/**
 * a * b + c, the product negated with `negateProduct` 1, c with `negateC` 1, for operands of at most 53 bits.
 */
export function multiplyAdd(
  env: Environment,
  format: Format,
  a: Num,
  b: Num,
  c: Num,
  negateProduct: number,
  negateC: number,
  out: Num,
): void {
  const signP = a.sign ^ b.sign ^ negateProduct;
  const signC = c.sign ^ negateC;
  if (invalidProduct(a, b)) {
    invalid(env, out);
    return;
  }
  const infiniteProduct = a.kind === Kind.INFINITE || b.kind === Kind.INFINITE;
  if (infiniteProduct && c.kind === Kind.INFINITE && signP !== signC) {
    invalid(env, out);
    return;
  }
  denormals(env, a, b);
  if (c.denormal !== 0) env.flags |= Flag.DE;
  if (infiniteProduct || c.kind === Kind.INFINITE) {
    setInfinity(out, infiniteProduct ? signP : signC);
    return;
  }
  if (a.kind === Kind.ZERO || b.kind === Kind.ZERO) {
    if (c.kind !== Kind.ZERO) round(env, format, signC, c.exp, c.hi, c.lo, 0, out);
    else setZero(out, signP === signC ? signC : env.rounding === Rounding.DOWN ? 1 : 0);
    return;
  }
  multiply64(a.hi, a.lo, b.hi, b.lo);
  big[0] = product.w3;
  big[1] = product.w2;
  big[2] = product.w1;
  big[3] = product.w0;
  let exp = a.exp + b.exp + 1;
  if (big[0] >= 0) {
    shiftLeft(big, 1);
    exp--;
  }
  let sign = signP;
  if (c.kind !== Kind.ZERO) {
    small[0] = c.hi;
    small[1] = c.lo;
    small[2] = 0;
    small[3] = 0;
    // With at most 106 bits in the product and 53 in c, only distances beyond the reach of cancellation lose bits.
    if (exp >= c.exp) shiftRightSticky(small, exp - c.exp);
    else {
      shiftRightSticky(big, c.exp - exp);
      exp = c.exp;
    }
    if (signP === signC) {
      if (addWords() !== 0) {
        shiftRightSticky(big, 1);
        big[0] |= 0x8000_0000;
        exp++;
      }
    } else {
      if (subtractWords() !== 0) {
        negateBig();
        sign = signC;
      }
      if ((big[0] | big[1] | big[2] | big[3]) === 0) {
        setZero(out, env.rounding === Rounding.DOWN ? 1 : 0);
        return;
      }
      let shift = 0;
      let i = 0;
      while (big[i] === 0) {
        shift += 32;
        i++;
      }
      shift += Math.clz32(big[i]);
      shiftLeft(big, shift);
      exp -= shift;
    }
  }
  round(env, format, sign, exp, big[0], big[1], big[2] | (big[3] !== 0 ? 1 : 0), out);
}
