/** Shifts and rotates (SDM 1 5.1.5). Where OF is undefined (counts above 1) it gets what count 1 would give. */
import type { Context } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";

const bitsOf = (size: Size): number => size * 8;

/** The count of operand `index`, masked to 5 bits (6 for 64-bit operands) as the manual has it; of the given size. */
function maskedCount(c: Context, index: number, operandSize: Size, size: Size): Value {
  const count = c.zeroExtend(c.read(index), size);
  return c.let(c.and(count, c.constant(size, operandSize === 8 ? 63 : 31)));
}

/** Runs `update` where the count is not 0: a zero count leaves all flags alone. */
function unlessZero(c: Context, count: Value, update: () => void): void {
  if (c.shape.countNotZero) update();
  else c.if(c.ne(count, c.constant(count.size, 0)), update);
}

/** Operands narrower than 32 bits are worked on in 32: `wide` is that size. */
const wideOf = (size: Size): 4 | 8 => (size === 8 ? 8 : 4);

const bit = (c: Context, v: Value, at: number): Value => c.low(c.and(c.shrBy(v, at), c.constant(v.size, 1)), 4);

function shl(c: Context): void {
  const size = c.size(0);
  const wide = wideOf(size);
  const count = maskedCount(c, 1, size, wide);
  const destination = c.modify(0);
  const a = c.let(c.zeroExtend(destination.value, wide));
  // 8- and 16-bit operands: bit `bits` of the 32-bit result is the last one shifted out.
  const shifted = c.let(c.shl(a, count));
  const r = c.let(c.low(shifted, size));
  destination.write(r);
  unlessZero(c, count, () => {
    const out =
      size < 4
        ? bit(c, shifted, bitsOf(size))
        : c.low(c.and(c.shr(a, c.sub(c.constant(wide, bitsOf(size)), count)), c.constant(wide, 1)), 4);
    const carry = c.let(out);
    c.flagsOf(r, carry, c.xor(carry, c.zeroExtend(c.low(c.signBit(r), 1), 4)));
  });
}

function shr(c: Context): void {
  const size = c.size(0);
  const wide = wideOf(size);
  const count = maskedCount(c, 1, size, wide);
  const destination = c.modify(0);
  const a = c.let(c.zeroExtend(destination.value, wide));
  const r = c.let(c.low(c.shr(a, count), size));
  destination.write(r);
  unlessZero(c, count, () => {
    const carry = c.low(c.and(c.shr(a, c.sub(count, c.constant(wide, 1))), c.constant(wide, 1)), 4);
    c.flagsOf(r, carry, bit(c, a, bitsOf(size) - 1));
  });
}

function sar(c: Context): void {
  const size = c.size(0);
  const wide = wideOf(size);
  const count = maskedCount(c, 1, size, wide);
  const destination = c.modify(0);
  const a = c.let(c.signExtend(destination.value, wide));
  const r = c.let(c.low(c.sar(a, count), size));
  destination.write(r);
  unlessZero(c, count, () => {
    const carry = c.low(c.and(c.sar(a, c.sub(count, c.constant(wide, 1))), c.constant(wide, 1)), 4);
    c.flagsOf(r, carry, c.constant(4, 0));
  });
}

/** Rotates a value of any size left by a count below its width (which may be 0). */
function rotated(c: Context, a: Value, count: Value, left: boolean): Value {
  const size = a.size;
  if (size >= 4) return left ? c.rotl(a, count) : c.rotr(a, count);
  const bits = c.constant(4, bitsOf(size));
  const wide = c.let(c.zeroExtend(a, 4));
  const other = c.sub(bits, count);
  const both = left ? c.or(c.shl(wide, count), c.shr(wide, other)) : c.or(c.shr(wide, count), c.shl(wide, other));
  return c.low(both, size);
}

/** ROL and ROR: CF and OF change unless the masked count is 0; a count that is a multiple of the width still sets them. */
const rotate =
  (left: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const wide = wideOf(size);
    const count = maskedCount(c, 1, size, wide);
    const destination = c.modify(0);
    const turn = size < 4 ? c.let(c.and(count, c.constant(4, bitsOf(size) - 1))) : count;
    const r = c.let(rotated(c, destination.value, turn, left));
    destination.write(r);
    unlessZero(c, count, () => {
      const w = c.zeroExtend(r, wide);
      const top = c.let(bit(c, w, bitsOf(size) - 1));
      const carry = left ? c.let(bit(c, w, 0)) : top;
      const overflow = left ? c.xor(top, carry) : c.xor(top, bit(c, w, bitsOf(size) - 2));
      c.setCarryOverflow(carry, overflow);
    });
  };

/**
 * RCL and RCR: rotates over size + 1 bits. Done as a 64-bit rotation for 8, 16 and 32 bits; 64 bits take CF in between
 * two shifts.
 */
const rotateThroughCarry =
  (left: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const destination = c.modify(0);
    const a = destination.value;
    const masked = maskedCount(c, 1, size, 8);
    const bits = bitsOf(size);
    const k = (n: number | bigint): Value => c.constant(8, n);
    const count = size < 4 ? c.let(c.remU(masked, k(bits + 1))) : masked;
    const carryIn = c.let(c.shrBy(c.flagAux(), 63));
    const result = c.variable(8);
    const carryOut = c.variable(8);
    if (size < 8) {
      const all = c.let(c.or(c.zeroExtend(a, 8), c.shlBy(carryIn, bits)));
      const other = c.sub(k(bits + 1), count);
      const turned = left ? c.or(c.shl(all, count), c.shr(all, other)) : c.or(c.shr(all, count), c.shl(all, other));
      const whole = c.let(turned);
      c.assign(result, c.and(whole, k((1n << BigInt(bits)) - 1n)));
      c.assign(carryOut, c.and(c.shrBy(whole, bits), k(1)));
    } else {
      c.if(
        c.isZero(count),
        () => {
          c.assign(result, a);
          c.assign(carryOut, carryIn);
        },
        () => {
          const back = c.let(c.sub(k(64), count));
          // The bits that come round: by 64 - (count - 1) places in the other direction, in two steps so that 64 is possible.
          if (left) {
            const round = c.shr(c.shrBy(a, 1), back);
            c.assign(result, c.or(c.or(c.shl(a, count), c.shl(carryIn, c.sub(count, k(1)))), round));
            c.assign(carryOut, c.and(c.shr(a, back), k(1)));
          } else {
            const round = c.shl(c.shlBy(a, 1), back);
            c.assign(result, c.or(c.or(c.shr(a, count), c.shl(carryIn, back)), round));
            c.assign(carryOut, c.and(c.shr(a, c.sub(count, k(1))), k(1)));
          }
        },
      );
    }
    const r = c.let(c.low(result, size));
    destination.write(r);
    unlessZero(c, masked, () => {
      const carry = c.let(c.low(carryOut, 4));
      const top = bit(c, result, bits - 1);
      const overflow = left ? c.xor(top, carry) : c.xor(top, bit(c, result, bits - 2));
      c.setCarryOverflow(carry, overflow);
    });
  };

/**
 * SHLD and SHRD. For 16-bit operands with counts above 16 the result is undefined (SDM 2B); processors go on shifting in
 * the source's bits again and clear CF, and so does this.
 */
const doubleShift =
  (left: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const bits = bitsOf(size);
    const source = c.read(1);
    const count = maskedCount(c, 2, size, 8);
    const destination = c.modify(0);
    const a = destination.value;
    const k = (n: number): Value => c.constant(8, n);
    const result = c.variable(8);
    const carry = c.variable(8);
    const wide = c.let(c.zeroExtend(a, 8));
    const fill = c.let(c.zeroExtend(source, 8));
    if (size === 8) {
      const back = c.sub(k(64), count);
      const nothing = c.isZero(count);
      const shifted = left ? c.or(c.shl(a, count), c.shr(source, back)) : c.or(c.shr(a, count), c.shl(source, back));
      c.assign(result, c.select(nothing, a, shifted));
      c.assign(carry, c.and(left ? c.shr(a, back) : c.shr(a, c.sub(count, k(1))), k(1)));
    } else if (left) {
      const sequence =
        size === 4 ? c.or(c.shlBy(wide, 32), fill) : c.or(c.or(c.shlBy(wide, 32), c.shlBy(fill, 16)), fill);
      const from = c.let(sequence);
      c.assign(result, c.shrBy(c.shl(from, count), 32));
      c.assign(carry, c.and(c.shr(from, c.sub(k(32 + bits), count)), k(1)));
    } else {
      const sequence =
        size === 4 ? c.or(c.shlBy(fill, 32), wide) : c.or(c.or(c.shlBy(fill, 32), c.shlBy(fill, 16)), wide);
      const from = c.let(sequence);
      c.assign(result, c.shr(from, count));
      c.assign(carry, c.and(c.shr(from, c.sub(count, k(1))), k(1)));
    }
    const r = c.let(c.low(result, size));
    destination.write(r);
    unlessZero(c, count, () => {
      const change = c.xor(c.zeroExtend(a, 8), c.zeroExtend(r, 8));
      const out = size === 2 ? c.select(c.gtU(count, k(16)), c.constant(4, 0), c.low(carry, 4)) : c.low(carry, 4);
      c.flagsOf(r, out, bit(c, c.let(change), bits - 1));
    });
  };

const count = { shiftCount: true };

export const shifts: Family = {
  SHL: define(shl, count),
  SHR: define(shr, count),
  SAR: define(sar, count),
  ROL: define(rotate(true), count),
  ROR: define(rotate(false), count),
  RCL: define(rotateThroughCarry(true), count),
  RCR: define(rotateThroughCarry(false), count),
  SHLD: define(doubleShift(true), count),
  SHRD: define(doubleShift(false), count),
};
