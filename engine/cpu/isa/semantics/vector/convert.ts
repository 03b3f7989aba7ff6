/** Conversions between floating-point formats and integers (SDM 1 5.5.1.6, 5.6.1.6, 14.4 for F16C). */
import { VectorOp } from "../../../float/vector";
import { Off } from "../../../state";
import { Op, Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import { Form } from "../shape";
import type { Vector, VectorBytes } from "../vector-expressions";
import { BY_IMMEDIATE, half, halves, immediateOf, setHalves, sourceIndices, vector } from "./operands";
import { packedChecks, scalarChecks } from "./quick-float";
import { computeSlowly, floatNumber, storeSources } from "./slow-float";

type Bits = 32 | 64;

/** CVTSS2SI, CVTTSD2SI ...: quick where the integer is exact, or inexactness leaves no trace. */
function toInteger(bits: Bits, truncate: boolean): Semantics {
  return vector((c) => {
    const size = c.size(0) as 4 | 8;
    const source = half(c, 1);
    const x = c.letFloat(bits, c.float(bits, source));
    const [cut, near] = bits === 32 ? [Op.F32_TRUNC, Op.F32_NEAREST] : [Op.F64_TRUNC, Op.F64_NEAREST];
    const whole = c.letFloat(bits, c.floatOp(truncate ? cut : near, x));
    const [abs, less, equal] = bits === 32 ? [Op.F32_ABS, Op.F32_LT, Op.F32_EQ] : [Op.F64_ABS, Op.F64_LT, Op.F64_EQ];
    const limit = c.floatConstant(bits, 2 ** (size * 8 - 1));
    const inRange = c.floatToInteger(4, less, c.floatOp(abs, whole), limit);
    const exact = c.floatToInteger(4, equal, whole, x);
    const result = c.mutable(c.truncated(size, bits, whole));
    c.if(c.isZero(c.and(inRange, c.or(exact, c.quickFloat()))), () => {
      storeSources(c, [[source], [source]]);
      const wide = truncate ? VectorOp.CVTT_INT64 : VectorOp.CVT_INT64;
      const narrow = truncate ? VectorOp.CVTT_INT32 : VectorOp.CVT_INT32;
      c.computeFloat(floatNumber(size === 8 ? wide : narrow, bits), 1, 0);
      c.assign(result, c.loadAt(Off.VECTOR_RESULT, size));
    });
    c.write(0, result);
  });
}

/** CVTSI2SS, CVTSI2SD. */
function fromInteger(bits: Bits): Semantics {
  return vector((c) => {
    const [first, second] = sourceIndices(c);
    const source = c.read(second);
    const above = half(c, first);
    const op32 = bits === 32 ? Op.F32_CONVERT_I32_S : Op.F64_CONVERT_I32_S;
    const op64 = bits === 32 ? Op.F32_CONVERT_I64_S : Op.F64_CONVERT_I64_S;
    const value = c.floatOp(source.size === 8 ? op64 : op32, source);
    const result = c.mutableVector(c.withFloat(bits, value, above));
    const precision = bits === 32 ? 24n : 53n;
    if (BigInt(source.size * 8) > precision) {
      const largest = 1n << precision;
      const exact = c.leU(c.add(source, c.constant(source.size, largest)), c.constant(source.size, 2n * largest));
      c.if(c.isZero(c.or(exact, c.quickFloat())), () => {
        const operand = c.lowLane(source);
        const op = source.size === 8 ? VectorOp.CVT_FROM_INT64 : VectorOp.CVT_FROM_INT32;
        const [slow] = computeSlowly(c, op, bits, 1, 0, [[above], [operand]], 1);
        c.assignVector(result, c.merge(bits / 8, slow, above));
      });
    }
    setHalves(c, 0, [result]);
  });
}

/** CVTSS2SD: exact for whatever is neither denormal nor NaN. */
const singleToDouble = vector((c) => {
  const [first, second] = sourceIndices(c);
  const source = half(c, second);
  const above = half(c, first);
  const result = c.mutableVector(c.withFloat(64, c.floatOp(Op.F64_PROMOTE_F32, c.float(32, source)), above));
  const k = scalarChecks(c, 32);
  const bits = c.let(c.lane(4, 0, source));
  c.if(c.isZero(c.or(k.normal(bits), c.or(k.zero(bits), k.infinite(bits)))), () => {
    const [slow] = computeSlowly(c, VectorOp.CVT_FLOAT, 32, 1, 0, [[above], [source]], 1);
    c.assignVector(result, c.merge(8, slow, above));
  });
  setHalves(c, 0, [result]);
});

const doubleToSingle = vector((c) => {
  const [first, second] = sourceIndices(c);
  const source = half(c, second);
  const above = half(c, first);
  const x = c.float(64, source);
  const value = c.letFloat(32, c.floatOp(Op.F32_DEMOTE_F64, x));
  const result = c.mutableVector(c.withFloat(32, value, above));
  const [wide, narrow] = [scalarChecks(c, 64), scalarChecks(c, 32)];
  const bits = c.let(c.lane(8, 0, source));
  const exact = c.floatToInteger(4, Op.F64_EQ, c.floatOp(Op.F64_PROMOTE_F32, value), x);
  const normal = c.and(wide.normal(bits), narrow.normalResult(c.let(c.bitsOf(32, value))));
  const fine = c.or(c.and(normal, c.or(exact, c.quickFloat())), wide.zero(bits));
  c.if(c.isZero(fine), () => {
    const [slow] = computeSlowly(c, VectorOp.CVT_FLOAT, 64, 1, 0, [[above], [source]], 1);
    c.assignVector(result, c.merge(4, slow, above));
  });
  setHalves(c, 0, [result]);
});

/** The lower two doublewords of the half of a source that half `h` of a result twice as wide is made of. */
const narrowPart = (c: Context, source: Vector, h: number): Vector =>
  h === 0 ? source : c.shuffleLanes(8, source, source, [1, 0]);

const resultHalves = (c: Context): number[] => (c.shape.operands[0].size === 32 ? [0, 1] : [0]);

/** CVTDQ2PD: always exact. */
const integersToDoubles = vector((c) => {
  const source = half(c, 1);
  const convert = (h: number): Vector => c.letVector(c.simd(Simd.F64X2_CONVERT_LOW_I32X4_S, narrowPart(c, source, h)));
  setHalves(c, 0, resultHalves(c).map(convert));
});

const singlesToDoubles = vector((c) => {
  const source = half(c, 1);
  const which = resultHalves(c);
  const r = which.map((h) => c.mutableVector(c.simd(Simd.F64X2_PROMOTE_LOW_F32X4, narrowPart(c, source, h))));
  const k = packedChecks(c, 32);
  const plain = c.letVector(which.length === 2 ? source : c.lowHalf(source));
  c.if(c.isZero(k.all(k.or(k.normal(plain), k.or(k.zero(plain), k.infinite(plain))))), () => {
    const slow = computeSlowly(c, VectorOp.CVT_FLOAT, 32, which.length * 2, 0, [[source], [source]], which.length);
    for (const [h, v] of slow.entries()) c.assignVector(r[h], v);
  });
  setHalves(c, 0, r);
});

/** The low 8 bytes of both halves of something, or of its only half with zeros above. */
const joined = (c: Context, parts: readonly Vector[]): Vector =>
  parts.length === 2 ? c.shuffleLanes(8, parts[0], parts[1], [0, 2]) : c.lowHalf(parts[0]);

const doublesToSingles = vector((c) => {
  const source = halves(c, 1);
  const parts = source.map((v) => c.letVector(c.simd(Simd.F32X4_DEMOTE_F64X2_ZERO, v)));
  const r = c.mutableVector(joined(c, parts));
  const [wide, narrow] = [packedChecks(c, 64), packedChecks(c, 32)];
  const operands = wide.all(source.map((v) => wide.or(wide.normal(v), wide.zero(v))).reduce((x, y) => wide.and(x, y)));
  // A zero that comes of a number that is none is not exact; such a result goes the slow way, zeros with it.
  const fine = narrow.normalResult(r);
  const checked = source.length === 2 ? fine : narrow.or(fine, c.laneConstants([0, -1n]));
  c.if(c.isZero(c.and(c.quickFloat(), c.and(operands, narrow.all(checked)))), () => {
    const [slow] = computeSlowly(c, VectorOp.CVT_FLOAT, 64, source.length * 2, 0, [source, source], 1);
    c.assignVector(r, source.length === 2 ? slow : c.lowHalf(slow));
  });
  setHalves(c, 0, [r]);
});

/** CVTDQ2PS. */
const integersToSingles = vector((c) => {
  const source = halves(c, 1);
  const r = source.map((v) => c.mutableVector(c.simd(Simd.F32X4_CONVERT_I32X4_S, v)));
  c.if(c.isZero(c.quickFloat()), () => {
    const lanes = source.length * 4;
    const slow = computeSlowly(c, VectorOp.CVT_FROM_INT32, 32, lanes, 0, [source, source], source.length);
    for (const [h, v] of slow.entries()) c.assignVector(r[h], v);
  });
  setHalves(c, 0, r);
});

/** All magnitudes below 2^31. */
function inIntegerRange(c: Context, bits: Bits, source: readonly Vector[]): Value {
  const [abs, less] = bits === 32 ? [Simd.F32X4_ABS, Simd.F32X4_LT] : [Simd.F64X2_ABS, Simd.F64X2_LT];
  const limit = bits === 32 ? c.everyLane(4, 0x4f000000) : c.everyLane(8, 0x41e0_0000_0000_0000n);
  const masks = source.map((v) => c.simd(less, c.simd(abs, v), limit));
  return packedChecks(c, bits).all(masks.reduce((x, y) => c.simd(Simd.V128_AND, x, y)));
}

/** CVTPS2DQ, CVTTPS2DQ. */
const singlesToIntegers = (truncate: boolean): Semantics =>
  vector((c) => {
    const source = halves(c, 1);
    const whole = (v: Vector): Vector => (truncate ? v : c.simd(Simd.F32X4_NEAREST, v));
    const r = source.map((v) => c.mutableVector(c.simd(Simd.I32X4_TRUNC_SAT_F32X4_S, whole(v))));
    c.if(c.isZero(c.and(c.quickFloat(), inIntegerRange(c, 32, source))), () => {
      const op = truncate ? VectorOp.CVTT_INT32 : VectorOp.CVT_INT32;
      const slow = computeSlowly(c, op, 32, source.length * 4, 0, [source, source], source.length);
      for (const [h, v] of slow.entries()) c.assignVector(r[h], v);
    });
    setHalves(c, 0, r);
  });

/** CVTPD2DQ, CVTTPD2DQ. */
const doublesToIntegers = (truncate: boolean): Semantics =>
  vector((c) => {
    const source = halves(c, 1);
    const whole = (v: Vector): Vector => (truncate ? v : c.simd(Simd.F64X2_NEAREST, v));
    const parts = source.map((v) => c.letVector(c.simd(Simd.I32X4_TRUNC_SAT_F64X2_S_ZERO, whole(v))));
    const r = c.mutableVector(joined(c, parts));
    // Rounding may carry a number just below the limit over it: what is that near goes the slow way by saturating.
    c.if(c.isZero(c.and(c.quickFloat(), nearIntegerRange(c, source))), () => {
      const op = truncate ? VectorOp.CVTT_INT32 : VectorOp.CVT_INT32;
      const [slow] = computeSlowly(c, op, 64, source.length * 2, 0, [source, source], 1);
      c.assignVector(r, source.length === 2 ? slow : c.lowHalf(slow));
    });
    setHalves(c, 0, [r]);
  });

/** All magnitudes of doubles at most 2^31 - 1. */
function nearIntegerRange(c: Context, source: readonly Vector[]): Value {
  const limit = c.everyLane(8, 0x41df_ffff_ffc0_0000n);
  const masks = source.map((v) => c.simd(Simd.F64X2_LE, c.simd(Simd.F64X2_ABS, v), limit));
  return packedChecks(c, 64).all(masks.reduce((x, y) => c.simd(Simd.V128_AND, x, y)));
}

// ---- with MMX registers, and half precision: the slow way only

/** Converts two lanes to or from an MMX register. */
const withMmx = (op: VectorOp, bits: Bits): Semantics =>
  vector(
    (c) => {
      const source = half(c, 1);
      const [slow] = computeSlowly(c, op, bits, 2, 0, [[source], [source]], 1);
      const narrow = c.form(0) === Form.VECTOR && c.shape.operands[0].size === 8;
      setHalves(c, 0, [c.letVector(narrow ? c.merge(8, slow, half(c, 0)) : slow)]);
    },
    { leftToTier0: true },
  );

const fromHalfPrecision = vector(
  (c) => {
    const source = half(c, 1);
    const which = resultHalves(c);
    const slow = computeSlowly(c, VectorOp.CVT_FROM_HALF, 32, which.length * 4, 0, [[source], [source]], which.length);
    setHalves(
      c,
      0,
      slow.map((v) => c.letVector(v)),
    );
  },
  { leftToTier0: true },
);

const toHalfPrecision = vector(
  (c) => {
    const source = halves(c, 1);
    const { form, size } = c.shape.operands[0];
    // The place is checked before MXCSR changes.
    const memory = form === Form.MEMORY ? c.operand(0, "write") : null;
    const [slow] = computeSlowly(c, VectorOp.CVT_HALF, 32, source.length * 4, immediateOf(c), [source, source], 1);
    const result = c.letVector(source.length === 2 ? slow : c.lowHalf(slow));
    if (memory) memory.storeVector(result, size as VectorBytes);
    else setHalves(c, 0, [result]);
  },
  { ...BY_IMMEDIATE, leftToTier0: true },
);

export const vectorConversions: Family = {
  CVTSS2SI: toInteger(32, false),
  CVTTSS2SI: toInteger(32, true),
  CVTSD2SI: toInteger(64, false),
  CVTTSD2SI: toInteger(64, true),
  CVTSI2SS: fromInteger(32),
  CVTSI2SD: fromInteger(64),
  CVTSS2SD: singleToDouble,
  CVTSD2SS: doubleToSingle,
  CVTDQ2PD: integersToDoubles,
  CVTDQ2PS: integersToSingles,
  CVTPS2PD: singlesToDoubles,
  CVTPD2PS: doublesToSingles,
  CVTPS2DQ: singlesToIntegers(false),
  CVTTPS2DQ: singlesToIntegers(true),
  CVTPD2DQ: doublesToIntegers(false),
  CVTTPD2DQ: doublesToIntegers(true),
  CVTPI2PS: withMmx(VectorOp.CVT_FROM_INT32, 32),
  CVTPI2PD: withMmx(VectorOp.CVT_FROM_INT32, 64),
  CVTPS2PI: withMmx(VectorOp.CVT_INT32, 32),
  CVTTPS2PI: withMmx(VectorOp.CVTT_INT32, 32),
  CVTPD2PI: withMmx(VectorOp.CVT_INT32, 64),
  CVTTPD2PI: withMmx(VectorOp.CVTT_INT32, 64),
  VCVTPH2PS: fromHalfPrecision,
  VCVTPS2PH: toHalfPrecision,
};
