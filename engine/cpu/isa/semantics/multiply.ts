/** Multiplication and division (SDM 1 5.1.2). SF, ZF and PF, undefined after a multiplication, follow the low half. */
import { Vector } from "../../cpu";
import type { Context } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";

/** Upper 64 bits of the unsigned product of two 64-bit values. */
export function highProduct(c: Context, a: Value, b: Value): Value {
  const low = c.constant(8, 0xffff_ffffn);
  const a0 = c.let(c.and(a, low));
  const a1 = c.let(c.shrBy(a, 32));
  const b0 = c.let(c.and(b, low));
  const b1 = c.let(c.shrBy(b, 32));
  const t = c.let(c.add(c.mul(a1, b0), c.shrBy(c.mul(a0, b0), 32)));
  const u = c.let(c.add(c.mul(a0, b1), c.and(t, low)));
  return c.let(c.add(c.add(c.mul(a1, b1), c.shrBy(t, 32)), c.shrBy(u, 32)));
}

/** Upper 64 bits of the signed product. */
function highProductSigned(c: Context, a: Value, b: Value): Value {
  const sign = (v: Value): Value => c.sar(v, c.constant(8, 63));
  const unsigned = highProduct(c, a, b);
  return c.let(c.sub(c.sub(unsigned, c.and(sign(a), b)), c.and(sign(b), a)));
}

/** rDX:rAX (or AX) = rAX x operand. */
const wideMultiply =
  (signed: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const b = c.read(0);
    const a = c.let(c.gpr(0, size));
    const extend = (v: Value, to: Size): Value => (signed ? c.signExtend(v, to) : c.zeroExtend(v, to));
    let low: Value;
    let high: Value;
    if (size === 8) {
      low = c.let(c.mul(a, b));
      high = signed ? highProductSigned(c, a, b) : highProduct(c, a, b);
    } else {
      const product = c.let(c.mul(extend(a, 8), extend(b, 8)));
      low = c.let(c.low(product, size));
      high = c.let(c.low(c.shrBy(product, size * 8), size));
    }
    if (size === 1) {
      const both = c.or(c.zeroExtend(low, 2), c.shlBy(c.zeroExtend(high, 2), 8));
      c.setGpr(0, c.let(both));
    } else {
      c.setGpr(0, low);
      c.setGpr(2, high);
    }
    const expected = signed ? c.sar(low, c.constant(size, size * 8 - 1)) : c.constant(size, 0);
    const overflow = c.let(c.ne(high, expected));
    c.flagsOf(low, overflow, overflow);
  };

/** Two- and three-operand IMUL: the product is cut to the operand size. */
function multiplyInto(c: Context, a: Value, b: Value): void {
  const size = a.size;
  let r: Value;
  let overflow: Value;
  if (size === 8) {
    r = c.let(c.mul(a, b));
    overflow = c.let(c.ne(highProductSigned(c, a, b), c.sar(r, c.constant(8, 63))));
  } else {
    const product = c.let(c.mul(c.signExtend(a, 8), c.signExtend(b, 8)));
    r = c.let(c.low(product, size));
    overflow = c.let(c.ne(c.signExtend(r, 8), product));
  }
  c.write(0, r);
  c.flagsOf(r, overflow, overflow);
}

function imul(c: Context): void {
  const forms = c.shape.operands.length;
  if (forms === 1) wideMultiply(true)(c);
  else if (forms === 2) {
    const b = c.read(1);
    multiplyInto(c, c.read(0), b);
  } else {
    const a = c.read(1);
    multiplyInto(c, a, c.let(c.immediate(c.size(0))));
  }
}

const divideError = (c: Context, when: Value): void => c.if(when, () => c.fault(Vector.DE));

function finishDivision(c: Context, quotient: Value, remainder: Value): void {
  if (quotient.size === 1) {
    c.setGpr(0, c.let(c.or(c.zeroExtend(quotient, 2), c.shlBy(c.zeroExtend(remainder, 2), 8))));
  } else {
    c.setGpr(0, quotient);
    c.setGpr(2, remainder);
  }
}

/** The dividend AX, DX:AX or EDX:EAX in 64 bits. */
function dividend(c: Context, size: Size, signed: boolean): Value {
  if (size === 1) {
    const ax = c.gpr(0, 2);
    return c.let(signed ? c.signExtend(ax, 8) : c.zeroExtend(ax, 8));
  }
  const low = c.zeroExtend(c.gpr(0, size), 8);
  const high = signed ? c.signExtend(c.gpr(2, size), 8) : c.zeroExtend(c.gpr(2, size), 8);
  return c.let(c.or(c.shlBy(high, size * 8), low));
}

function div(c: Context): void {
  const size = c.size(0);
  const divisor = c.read(0);
  divideError(c, c.isZero(divisor));
  if (size < 8) {
    const n = dividend(c, size, false);
    const d = c.let(c.zeroExtend(divisor, 8));
    const q = c.let(c.divU(n, d));
    divideError(c, c.gtU(q, c.constant(8, (1n << BigInt(size * 8)) - 1n)));
    finishDivision(c, c.let(c.low(q, size)), c.let(c.low(c.sub(n, c.mul(q, d)), size)));
    return;
  }
  const low = c.let(c.gpr(0, 8));
  const high = c.let(c.gpr(2, 8));
  divideError(c, c.geU(high, divisor));
  const q = c.variable(8);
  c.if(
    c.isZero(high),
    () => c.assign(q, c.divU(low, divisor)),
    () => c.assign(q, c.divideHigh(high, low, divisor)),
  );
  finishDivision(c, q, c.let(c.sub(low, c.mul(q, divisor))));
}

function idiv(c: Context): void {
  const size = c.size(0);
  const divisor = c.read(0);
  divideError(c, c.isZero(divisor));
  if (size < 8) {
    const n = dividend(c, size, true);
    const d = c.let(c.signExtend(divisor, 8));
    const smallest = c.constant(8, 1n << 63n);
    divideError(c, c.and(c.eq(d, c.constant(8, -1)), c.eq(n, smallest)));
    const q = c.let(c.divS(n, d));
    const cut = c.let(c.low(q, size));
    divideError(c, c.ne(c.signExtend(cut, 8), q));
    finishDivision(c, cut, c.let(c.low(c.sub(n, c.mul(q, d)), size)));
    return;
  }
  // Divide magnitudes, then give the quotient its sign; the remainder has the dividend's.
  const zero = c.constant(8, 0);
  const low = c.let(c.gpr(0, 8));
  const high = c.let(c.gpr(2, 8));
  const negative = c.let(c.isNegative(high));
  const absLow = c.let(c.select(negative, c.neg(low), low));
  const borrow = c.zeroExtend(c.ne(low, zero), 8);
  const absHigh = c.let(c.select(negative, c.sub(c.neg(high), borrow), high));
  const absDivisor = c.let(c.select(c.isNegative(divisor), c.neg(divisor), divisor));
  divideError(c, c.geU(absHigh, absDivisor));
  const magnitude = c.variable(8);
  c.if(
    c.isZero(absHigh),
    () => c.assign(magnitude, c.divU(absLow, absDivisor)),
    () => c.assign(magnitude, c.divideHigh(absHigh, absLow, absDivisor)),
  );
  const minus = c.let(c.xor(negative, c.isNegative(divisor)));
  const largest = c.add(c.constant(8, (1n << 63n) - 1n), c.zeroExtend(minus, 8));
  divideError(c, c.gtU(magnitude, largest));
  const q = c.let(c.select(minus, c.neg(magnitude), magnitude));
  finishDivision(c, q, c.let(c.sub(low, c.mul(q, divisor))));
}

export const multiplication: Family = {
  MUL: define(wideMultiply(false)),
  IMUL: define(imul),
  DIV: define(div),
  IDIV: define(idiv),
};
