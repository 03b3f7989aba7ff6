/** Integer arithmetic, logic and comparison on vectors (SDM 1 5.4.3 to 5.4.6, 5.6.3, 5.8, 5.10). */
import { Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import type { Vector } from "../vector-expressions";
import { binary, combining, halves, unary, vector } from "./operands";

type Binary = (c: Context, a: Vector, b: Vector) => Vector;

/** One instruction of wasm. */
const direct = (op: Simd): Semantics => vector((c) => binary(c, (a, b) => c.simd(op, a, b)));
const composed = (f: Binary): Semantics => vector((c) => binary(c, (a, b) => f(c, a, b)));
const combined = (f: Binary): Semantics => vector((c) => combining(c, (a, b) => f(c, a, b)));
const single = (op: Simd): Semantics => vector((c) => unary(c, (a) => c.simd(op, a)));

/** The upper halves of products of words. */
const multiplyHigh =
  (low: Simd, high: Simd): Binary =>
  (c, a, b) =>
    c.shuffleLanes(2, c.simd(low, a, b), c.simd(high, a, b), [1, 3, 5, 7, 9, 11, 13, 15]);

/** Products of the even doublewords, 8 bytes each. */
const multiplyEven =
  (op: Simd): Binary =>
  (c, a, b) => {
    const even = (v: Vector): Vector => c.shuffleLanes(4, v, v, [0, 2, 0, 2]);
    return c.simd(op, even(a), even(b));
  };

/** PMULHRSW: as wasm's rounding product, but -1 times -1 wraps where that saturates. */
const multiplyRounded: Binary = (c, a, b) => {
  const least = c.everyLane(2, 0x8000);
  const both = c.simd(Simd.V128_AND, c.simd(Simd.I16X8_EQ, a, least), c.simd(Simd.I16X8_EQ, b, least));
  return c.simd(Simd.V128_XOR, c.simd(Simd.I16X8_Q15MULR_SAT_S, a, b), both);
};

/** PMADDUBSW: unsigned bytes of `a` times signed bytes of `b`; sums of neighbours, saturated. */
const multiplyAddBytes: Binary = (c, a, b) => {
  const eight = c.constant(4, 8);
  const even = c.simd(
    Simd.I16X8_MUL,
    c.simd(Simd.V128_AND, a, c.everyLane(2, 0xff)),
    c.simd(Simd.I16X8_SHR_S, c.simd(Simd.I16X8_SHL, b, eight), eight),
  );
  const odd = c.simd(Simd.I16X8_MUL, c.simd(Simd.I16X8_SHR_U, a, eight), c.simd(Simd.I16X8_SHR_S, b, eight));
  return c.simd(Simd.I16X8_ADD_SAT_S, even, odd);
};

/** PSADBW: sums of eight absolute differences. */
const sumOfDifferences: Binary = (c, a, b) => {
  const difference = c.simd(Simd.V128_OR, c.simd(Simd.I8X16_SUB_SAT_U, a, b), c.simd(Simd.I8X16_SUB_SAT_U, b, a));
  const words = c.simd(Simd.I16X8_EXTADD_PAIRWISE_I8X16_U, difference);
  const sums = c.letVector(c.simd(Simd.I32X4_EXTADD_PAIRWISE_I16X8_U, words));
  const upper = c.simd(Simd.I64X2_SHR_U, sums, c.constant(4, 32));
  return c.simd(Simd.I64X2_ADD, c.simd(Simd.V128_AND, sums, c.everyLane(8, 0xffff_ffff)), upper);
};

/** PSIGN: a where b is positive, -a where negative, 0 where b is 0. */
const sign =
  (less: Simd, equal: Simd, subtract: Simd): Binary =>
  (c, a, b) => {
    const negative = c.letVector(c.simd(less, b, c.zeroVector()));
    const signed = c.simd(subtract, c.simd(Simd.V128_XOR, a, negative), negative);
    return c.simd(Simd.V128_ANDNOT, signed, c.simd(equal, b, c.zeroVector()));
  };

/** Horizontal sums and differences: neighbours of `a`, then of `b`. */
const horizontal =
  (op: Simd, size: 2 | 4): Binary =>
  (c, a, b) => {
    const lanes = Array.from({ length: 16 / size }, (_, i) => i * 2);
    const even = c.shuffleLanes(size, a, b, lanes);
    const odd = c.shuffleLanes(
      size,
      a,
      b,
      lanes.map((i) => i + 1),
    );
    return c.simd(op, even, odd);
  };

/** a AND NOT b of wasm has its operands the other way round than PANDN. */
const andNot: Binary = (c, a, b) => c.simd(Simd.V128_ANDNOT, b, a);

/** PTEST, VTESTPS, VTESTPD: ZF = no bit of both operands, CF = no bit of the second alone, among the bits of `mask`. */
const test = (mask: bigint | null) =>
  vector((c) => {
    const [a, b] = [halves(c, 0), halves(c, 1)];
    const bits = (v: Vector): Vector => (mask === null ? v : c.simd(Simd.V128_AND, v, c.everyLane(8, mask)));
    const none = (vectors: readonly Vector[]): Value =>
      c.isZero(vectors.map((v) => c.simdToInteger(Simd.V128_ANY_TRUE, bits(v))).reduce((x, y) => c.or(x, y)));
    const zero = none(a.map((x, h) => c.simd(Simd.V128_AND, x, b[h])));
    const carry = none(a.map((x, h) => c.simd(Simd.V128_ANDNOT, b[h], x)));
    c.setFlagBits(c.let(c.or(c.shlBy(zero, 6), carry)), c.constant(4, 0));
  });

export const vectorIntegers: Family = {
  PADDB: direct(Simd.I8X16_ADD),
  PADDW: direct(Simd.I16X8_ADD),
  PADDD: direct(Simd.I32X4_ADD),
  PADDQ: direct(Simd.I64X2_ADD),
  PADDSB: direct(Simd.I8X16_ADD_SAT_S),
  PADDSW: direct(Simd.I16X8_ADD_SAT_S),
  PADDUSB: direct(Simd.I8X16_ADD_SAT_U),
  PADDUSW: direct(Simd.I16X8_ADD_SAT_U),
  PSUBB: direct(Simd.I8X16_SUB),
  PSUBW: direct(Simd.I16X8_SUB),
  PSUBD: direct(Simd.I32X4_SUB),
  PSUBQ: direct(Simd.I64X2_SUB),
  PSUBSB: direct(Simd.I8X16_SUB_SAT_S),
  PSUBSW: direct(Simd.I16X8_SUB_SAT_S),
  PSUBUSB: direct(Simd.I8X16_SUB_SAT_U),
  PSUBUSW: direct(Simd.I16X8_SUB_SAT_U),
  PMULLW: direct(Simd.I16X8_MUL),
  PMULLD: direct(Simd.I32X4_MUL),
  PMULHW: composed(multiplyHigh(Simd.I32X4_EXTMUL_LOW_I16X8_S, Simd.I32X4_EXTMUL_HIGH_I16X8_S)),
  PMULHUW: composed(multiplyHigh(Simd.I32X4_EXTMUL_LOW_I16X8_U, Simd.I32X4_EXTMUL_HIGH_I16X8_U)),
  PMULHRSW: composed(multiplyRounded),
  PMULUDQ: composed(multiplyEven(Simd.I64X2_EXTMUL_LOW_I32X4_U)),
  PMULDQ: composed(multiplyEven(Simd.I64X2_EXTMUL_LOW_I32X4_S)),
  PMADDWD: direct(Simd.I32X4_DOT_I16X8_S),
  PMADDUBSW: composed(multiplyAddBytes),
  PSADBW: composed(sumOfDifferences),
  PAVGB: direct(Simd.I8X16_AVGR_U),
  PAVGW: direct(Simd.I16X8_AVGR_U),
  PMINUB: direct(Simd.I8X16_MIN_U),
  PMINSB: direct(Simd.I8X16_MIN_S),
  PMINUW: direct(Simd.I16X8_MIN_U),
  PMINSW: direct(Simd.I16X8_MIN_S),
  PMINUD: direct(Simd.I32X4_MIN_U),
  PMINSD: direct(Simd.I32X4_MIN_S),
  PMAXUB: direct(Simd.I8X16_MAX_U),
  PMAXSB: direct(Simd.I8X16_MAX_S),
  PMAXUW: direct(Simd.I16X8_MAX_U),
  PMAXSW: direct(Simd.I16X8_MAX_S),
  PMAXUD: direct(Simd.I32X4_MAX_U),
  PMAXSD: direct(Simd.I32X4_MAX_S),
  PABSB: single(Simd.I8X16_ABS),
  PABSW: single(Simd.I16X8_ABS),
  PABSD: single(Simd.I32X4_ABS),
  PSIGNB: composed(sign(Simd.I8X16_LT_S, Simd.I8X16_EQ, Simd.I8X16_SUB)),
  PSIGNW: composed(sign(Simd.I16X8_LT_S, Simd.I16X8_EQ, Simd.I16X8_SUB)),
  PSIGND: composed(sign(Simd.I32X4_LT_S, Simd.I32X4_EQ, Simd.I32X4_SUB)),
  PHADDW: combined(horizontal(Simd.I16X8_ADD, 2)),
  PHADDD: combined(horizontal(Simd.I32X4_ADD, 4)),
  PHADDSW: combined(horizontal(Simd.I16X8_ADD_SAT_S, 2)),
  PHSUBW: combined(horizontal(Simd.I16X8_SUB, 2)),
  PHSUBD: combined(horizontal(Simd.I32X4_SUB, 4)),
  PHSUBSW: combined(horizontal(Simd.I16X8_SUB_SAT_S, 2)),

  PCMPEQB: direct(Simd.I8X16_EQ),
  PCMPEQW: direct(Simd.I16X8_EQ),
  PCMPEQD: direct(Simd.I32X4_EQ),
  PCMPEQQ: direct(Simd.I64X2_EQ),
  PCMPGTB: direct(Simd.I8X16_GT_S),
  PCMPGTW: direct(Simd.I16X8_GT_S),
  PCMPGTD: direct(Simd.I32X4_GT_S),
  PCMPGTQ: direct(Simd.I64X2_GT_S),

  PAND: direct(Simd.V128_AND),
  POR: direct(Simd.V128_OR),
  PXOR: direct(Simd.V128_XOR),
  PANDN: composed(andNot),
  ANDPS: direct(Simd.V128_AND),
  ANDPD: direct(Simd.V128_AND),
  ORPS: direct(Simd.V128_OR),
  ORPD: direct(Simd.V128_OR),
  XORPS: direct(Simd.V128_XOR),
  XORPD: direct(Simd.V128_XOR),
  ANDNPS: composed(andNot),
  ANDNPD: composed(andNot),

  PTEST: test(null),
  VTESTPS: test(0x8000_0000_8000_0000n),
  VTESTPD: test(0x8000_0000_0000_0000n),
};
