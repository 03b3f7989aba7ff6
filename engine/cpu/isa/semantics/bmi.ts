/**
 * BMI1 and BMI2 (SDM 1, 5.20; SDM 2; APM 3): bit manipulation with three operands. Of the flags that the manuals leave
 * undefined PF follows the result and AF is clear.
 */
import type { Context } from "./context";
import type { Value } from "./expressions";
import { highProduct } from "./multiply";
import { define, type Family } from "./registry";

const NO = (c: Context): Value => c.constant(4, 0);

/** ANDN: the complement of the first source and the second. */
function andn(c: Context): void {
  const b = c.read(2);
  const r = c.let(c.and(c.not(c.read(1)), b));
  c.write(0, r);
  c.flagsLogic(r);
}

/** BLSR, BLSMSK and BLSI work on the lowest set bit; CF says whether the source is zero, of BLSI that it is not. */
const lowestBit =
  (operation: "reset" | "mask" | "isolate") =>
  (c: Context): void => {
    const source = c.read(1);
    const below = c.sub(source, c.constant(source.size, 1));
    let value: Value;
    if (operation === "reset") value = c.and(source, below);
    else if (operation === "mask") value = c.xor(source, below);
    else value = c.and(source, c.neg(source));
    const r = c.let(value);
    c.write(0, r);
    const zero = c.isZero(source);
    c.flagsOf(r, operation === "isolate" ? c.isZero(zero) : zero, NO(c));
  };

/** The low `count` bits; all where `count` (of 4 bytes) reaches the width. */
function lowBits(c: Context, value: Value, count: Value): Value {
  const size = value.size;
  const n = c.let(count);
  const mask = c.sub(c.shl(c.constant(size, 1), c.zeroExtend(n, size)), c.constant(size, 1));
  return c.select(c.geU(n, c.constant(4, size * 8)), value, c.and(value, mask));
}

/** BEXTR: start in bits 7:0 of the control, length in bits 15:8. */
function bextr(c: Context): void {
  const size = c.size(0);
  const source = c.read(1);
  const control = c.let(c.low(c.read(2), 4));
  const start = c.let(c.and(control, c.constant(4, 0xff)));
  const shifted = c.let(
    c.select(c.geU(start, c.constant(4, size * 8)), c.constant(size, 0), c.shr(source, c.zeroExtend(start, size))),
  );
  const r = c.let(lowBits(c, shifted, c.and(c.shrBy(control, 8), c.constant(4, 0xff))));
  c.write(0, r);
  c.flagsLogic(r);
}

/** BZHI: CF says that the index reaches the width. */
function bzhi(c: Context): void {
  const size = c.size(0);
  const source = c.read(1);
  const index = c.let(c.and(c.low(c.read(2), 4), c.constant(4, 0xff)));
  const r = c.let(lowBits(c, source, index));
  c.write(0, r);
  c.flagsOf(r, c.geU(index, c.constant(4, size * 8)), NO(c));
}

/** Exclusive-or of all bits at and below each position. */
function parityPrefix(c: Context, value: Value): Value {
  let all = c.let(value);
  for (let step = 1; step < value.size * 8; step *= 2) all = c.let(c.xor(all, c.shlBy(all, step)));
  return all;
}

/**
 * For each step 1, 2, 4 ... the bits of the mask that PEXT moves right by that much: those below which an odd number of
 * mask bits is clear, counted in units of the step. The mask itself is moved along.
 */
function moves(c: Context, mask: Value): Value[] {
  const found: Value[] = [];
  let m = mask;
  let clear = c.let(c.shlBy(c.not(mask), 1));
  for (let step = 1; step < mask.size * 8; step *= 2) {
    const odd = parityPrefix(c, clear);
    const move = c.let(c.and(odd, m));
    found.push(move);
    m = c.let(c.or(c.xor(m, move), c.shrBy(move, step)));
    clear = c.let(c.and(clear, c.not(odd)));
  }
  return found;
}

/** PEXT gathers the bits that the mask selects. */
function pext(c: Context): void {
  const mask = c.read(2);
  let value = c.let(c.and(c.read(1), mask));
  moves(c, mask).forEach((move, i) => {
    const moved = c.let(c.and(value, move));
    value = c.let(c.or(c.xor(value, moved), c.shrBy(moved, 1 << i)));
  });
  c.write(0, value);
}

/** PDEP scatters low bits to where the mask has ones: PEXT's moves backwards. */
function pdep(c: Context): void {
  const mask = c.read(2);
  let value = c.read(1);
  const back = moves(c, mask);
  for (let i = back.length - 1; i >= 0; i--) {
    const moved = c.and(c.shlBy(value, 1 << i), back[i]);
    value = c.let(c.or(c.and(value, c.not(back[i])), moved));
  }
  c.write(0, c.let(c.and(value, mask)));
}

/** MULX: no flags; the high half goes to the first destination, and stays where both are one register. */
function mulx(c: Context): void {
  const size = c.size(0);
  const b = c.read(2);
  const a = c.let(c.gpr(2, size));
  let low: Value;
  let high: Value;
  if (size === 8) {
    low = c.let(c.mul(a, b));
    high = highProduct(c, a, b);
  } else {
    const product = c.let(c.mul(c.zeroExtend(a, 8), c.zeroExtend(b, 8)));
    low = c.let(c.low(product, 4));
    high = c.let(c.low(c.shrBy(product, 32), 4));
  }
  c.write(1, low);
  c.write(0, high);
}

/** Shifts and rotation without flags; the count is cut to the width. */
const shift =
  (operation: "shl" | "shr" | "sar" | "rotr") =>
  (c: Context): void => {
    const size = c.size(0);
    const source = c.read(1);
    const count = c.let(c.and(c.readAs(2, size), c.constant(size, size * 8 - 1)));
    c.write(0, c.let(c[operation](source, count)));
  };

export const bitManipulation: Family = {
  ANDN: define(andn),
  BLSR: define(lowestBit("reset")),
  BLSMSK: define(lowestBit("mask")),
  BLSI: define(lowestBit("isolate")),
  BEXTR: define(bextr),
  BZHI: define(bzhi),
  PEXT: define(pext),
  PDEP: define(pdep),
  MULX: define(mulx),
  SHLX: define(shift("shl")),
  SHRX: define(shift("shr")),
  SARX: define(shift("sar")),
  RORX: define(shift("rotr")),
};
