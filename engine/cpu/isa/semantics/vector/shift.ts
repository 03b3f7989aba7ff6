/** Shifts of vectors (SDM 1 5.4.6, 5.6.3; 14.5 for those with a count for each lane). */
import { Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Size, Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import { Form } from "../shape";
import type { Vector } from "../vector-expressions";
import { BY_IMMEDIATE, binary, half, halves, immediateOf, setHalves, vector } from "./operands";

/** The source of a shift by an immediate: the operand before it. */
const shifted = (c: Context): Vector[] => halves(c, c.shape.operands.length - 2);

/**
 * Shift of lanes of `bits` by an immediate or by the low 8 bytes of the last operand. A count beyond the lane leaves zeros,
 * or the sign where `arithmetic`.
 */
function shift(op: Simd, bits: number, arithmetic: boolean): Semantics {
  return vector((c) => {
    const last = c.shape.operands.length - 1;
    const immediate = c.form(last) === Form.IMMEDIATE;
    const count = immediate ? c.zeroExtend(c.immediate(1), 8) : c.lane(8, 0, half(c, last));
    const bound = c.let(count);
    const within = c.let(c.ltU(bound, c.constant(8, bits)));
    const low = c.low(bound, 4);
    const values = immediate || last === 2 ? halves(c, last - 1) : halves(c, 0);
    const kept = arithmetic ? c.let(c.select(within, low, c.constant(4, bits - 1))) : low;
    const mask = arithmetic ? null : c.letVector(c.splat(c.neg(within)));
    const one = (v: Vector): Vector => {
      const shifted = c.simd(op, v, kept);
      return mask ? c.simd(Simd.V128_AND, shifted, mask) : shifted;
    };
    setHalves(
      c,
      0,
      values.map((v) => c.letVector(one(v))),
    );
  });
}

/** PSLLDQ, PSRLDQ: whole bytes, within each half. */
function shiftBytes(left: boolean): Semantics {
  return vector((c) => {
    const count = Math.min(immediateOf(c), 16);
    const zero = c.zeroVector();
    const bytes = Array.from({ length: 16 }, (_, i) => {
      const from = left ? i - count : i + count;
      return from >= 0 && from < 16 ? from : 16;
    });
    setHalves(
      c,
      0,
      shifted(c).map((v) => c.letVector(c.shuffle(v, zero, bytes))),
    );
  }, BY_IMMEDIATE);
}

/** Shift of every lane by the count in the same lane of the second source. */
function shiftEach(size: Size, f: (c: Context, value: Value, count: Value) => Value): Semantics {
  return vector((c) =>
    binary(c, (a, b) => {
      let result = a;
      for (let lane = 0; lane < 16 / size; lane++) {
        const count = c.let(c.lane(size, lane, b));
        result = c.letVector(c.withLane(lane, f(c, c.lane(size, lane, a), count), result));
      }
      return result;
    }),
  );
}

const logical = (size: Size, left: boolean): Semantics =>
  shiftEach(size, (c, value, count) => {
    const result = left ? c.shl(value, count) : c.shr(value, count);
    return c.select(c.ltU(count, c.constant(size, size * 8)), result, c.constant(size, 0));
  });

const arithmeticEach = shiftEach(4, (c, value, count) =>
  c.sar(value, c.select(c.ltU(count, c.constant(4, 32)), count, c.constant(4, 31))),
);

/** PALIGNR: sixteen bytes from byte `imm` on of the second source with the first above it; MMX likewise with eight. */
function align(c: Context): void {
  const imm = immediateOf(c);
  const bytes = c.shape.operands[0].size === 8 ? 8 : 16;
  binary(c, (a, b) => {
    const zero = c.zeroVector();
    const at = (i: number): number => imm + i;
    if (imm >= bytes) {
      const picked = Array.from({ length: 16 }, (_, i) => (at(i) < 2 * bytes ? at(i) - bytes : 16));
      return c.shuffle(a, zero, picked);
    }
    return c.shuffle(
      b,
      a,
      Array.from({ length: 16 }, (_, i) => (at(i) < bytes ? at(i) : ((at(i) - bytes) % 16) + 16)),
    );
  });
}

export const vectorShifts: Family = {
  PSLLW: shift(Simd.I16X8_SHL, 16, false),
  PSLLD: shift(Simd.I32X4_SHL, 32, false),
  PSLLQ: shift(Simd.I64X2_SHL, 64, false),
  PSRLW: shift(Simd.I16X8_SHR_U, 16, false),
  PSRLD: shift(Simd.I32X4_SHR_U, 32, false),
  PSRLQ: shift(Simd.I64X2_SHR_U, 64, false),
  PSRAW: shift(Simd.I16X8_SHR_S, 16, true),
  PSRAD: shift(Simd.I32X4_SHR_S, 32, true),
  PSLLDQ: shiftBytes(true),
  PSRLDQ: shiftBytes(false),
  VPSLLVD: logical(4, true),
  VPSLLVQ: logical(8, true),
  VPSRLVD: logical(4, false),
  VPSRLVQ: logical(8, false),
  VPSRAVD: arithmeticEach,
  PALIGNR: vector(align, BY_IMMEDIATE),
};
