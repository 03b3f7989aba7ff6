/** Packs, unpacks, shuffles, blends and conversions of width (SDM 1 5.4.2, 5.4.4, 5.5.1.4, 5.6.3, 5.8, 5.10). */
import { Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Size, Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import type { Vector } from "../vector-expressions";
import {
  BY_IMMEDIATE,
  binary,
  combining,
  type Half,
  half,
  halves,
  immediateOf,
  isMmx,
  maskedSources,
  setHalves,
  unary,
  vector,
} from "./operands";

const pack = (op: Simd): Semantics => vector((c) => combining(c, (a, b) => c.simd(op, a, b)));

/** Interleaves lanes of the lower or upper halves of both sources; of MMX registers the halves are four bytes. */
const unpack = (size: Size, upper: boolean): Semantics =>
  vector((c) =>
    binary(c, (a, b) => {
      const all = 16 / size;
      const count = (isMmx(c) ? 8 : 16) / size / 2;
      const first = upper ? count : 0;
      const lanes: number[] = [];
      for (let i = 0; i < count; i++) lanes.push(first + i, all + first + i);
      while (lanes.length < all) lanes.push(0);
      return c.shuffleLanes(size, a, b, lanes);
    }),
  );

/** The two bits of the immediate that choose lane i. */
const pick = (imm: number, i: number): number => (imm >> (2 * i)) & 3;

const four = [0, 1, 2, 3] as const;

const shuffled = (size: Size, lanes: (imm: number) => readonly number[]): Semantics =>
  vector((c) => {
    const chosen = lanes(immediateOf(c));
    unary(c, (a) => c.shuffleLanes(size, a, a, chosen));
  }, BY_IMMEDIATE);

/** PSHUFB: bytes by the low bits of the second source's bytes, 0 where their top bit is set. */
const shuffleBytes = vector((c) =>
  binary(c, (a, b) => {
    const mask = c.everyLane(1, isMmx(c) ? 0x87 : 0x8f);
    return c.simd(Simd.I8X16_SWIZZLE, a, c.simd(Simd.V128_AND, b, mask));
  }),
);

const shuffleTwo = (size: 4 | 8): Semantics =>
  vector((c) => {
    const imm = immediateOf(c);
    binary(c, (a, b, h) => {
      if (size === 4) return c.shuffleLanes(4, a, b, [pick(imm, 0), pick(imm, 1), 4 + pick(imm, 2), 4 + pick(imm, 3)]);
      const bits = imm >> (2 * h);
      return c.shuffleLanes(8, a, b, [bits & 1, 2 + ((bits >> 1) & 1)]);
    });
  }, BY_IMMEDIATE);

/** Lanes of the second source where the immediate has a bit; `shared`: both halves use the same bits. */
const blend = (size: Size, shared = false): Semantics =>
  vector((c) => {
    const imm = immediateOf(c);
    const count = 16 / size;
    binary(c, (a, b, h) => {
      const bits = shared ? imm : imm >> (h * count);
      const lanes = Array.from({ length: count }, (_, i) => (bits & (1 << i) ? count + i : i));
      return c.shuffleLanes(size, a, b, lanes);
    });
  }, BY_IMMEDIATE);

/** Lanes of the second source where the third has the top bit set. */
const blendByMask = (op: Simd, bits: number): Semantics =>
  vector((c) => {
    const [a, b, mask] = maskedSources(c);
    const results = a.map((x, h) => {
      const chosen = c.simd(op, mask[h], c.constant(4, bits - 1));
      return c.letVector(c.simd(Simd.V128_BITSELECT, b[h], x, chosen));
    });
    setHalves(c, 0, results);
  });

/** PMOVSX, PMOVZX: as many steps of doubling as needed, on the part of the source that a half is made of. */
const extend = (steps: readonly Simd[]): Semantics =>
  vector((c) => {
    const [source] = halves(c, 1);
    const count = c.shape.operands[0].size === 32 ? 2 : 1;
    const taken = 16 >> steps.length;
    const results = Array.from({ length: count }, (_, h) => {
      const part =
        h === 0
          ? source
          : c.shuffle(
              source,
              source,
              Array.from({ length: 16 }, (_, i) => (i + h * taken) & 15),
            );
      return c.letVector(steps.reduce((v, op) => c.simd(op, v), part));
    });
    setHalves(c, 0, results);
  });

const bytesSigned = Simd.I16X8_EXTEND_LOW_I8X16_S;
const wordsSigned = Simd.I32X4_EXTEND_LOW_I16X8_S;
const doublesSigned = Simd.I64X2_EXTEND_LOW_I32X4_S;
const bytesUnsigned = Simd.I16X8_EXTEND_LOW_I8X16_U;
const wordsUnsigned = Simd.I32X4_EXTEND_LOW_I16X8_U;
const doublesUnsigned = Simd.I64X2_EXTEND_LOW_I32X4_U;

// ---- AVX and AVX2: across the whole register (SDM 1 14.1, 14.5)

const results = (c: Context): number => (c.shape.operands[0].size === 32 ? 2 : 1);

/** The lowest lane of the source everywhere. */
const broadcast = (size: Size): Semantics =>
  vector((c) => {
    const source = half(c, 1);
    const all = c.letVector(c.splat(c.lane(size, 0, source)));
    setHalves(c, 0, Array(results(c)).fill(all));
  });

const broadcastHalf = vector((c) => {
  const source = half(c, 1);
  setHalves(c, 0, [source, source]);
});

const insertHalf = vector((c) => {
  const source = halves(c, 1);
  const inserted = half(c, 2);
  setHalves(c, 0, immediateOf(c) & 1 ? [source[0], inserted] : [inserted, source[1]]);
}, BY_IMMEDIATE);

const extractHalf = vector((c) => {
  const source = halves(c, 1);
  setHalves(c, 0, [source[immediateOf(c) & 1]]);
}, BY_IMMEDIATE);

/** VPERM2F128, VPERM2I128: each half of the result is one of four halves, or zero. */
const permuteHalves = vector((c) => {
  const imm = immediateOf(c);
  const all = [...halves(c, 1), ...halves(c, 2)];
  const choose = (bits: number): Vector => (bits & 8 ? c.zeroVector() : all[bits & 3]);
  setHalves(c, 0, [choose(imm), choose(imm >> 4)]);
}, BY_IMMEDIATE);

/** VPERMQ, VPERMPD: each quadword is any of the four of the source. */
const permuteQuads = vector((c) => {
  const imm = immediateOf(c);
  const [low, high] = halves(c, 1);
  const pair = (n: number): Vector => c.letVector(c.shuffleLanes(8, low, high, [pick(imm, n), pick(imm, n + 1)]));
  setHalves(c, 0, [pair(0), pair(2)]);
}, BY_IMMEDIATE);

/** Byte numbers inside a lane of `size` bytes, for each byte of the vector. */
const within = (c: Context, size: number): Vector => c.bytes(Array.from({ length: 16 }, (_, i) => i % size));

/** Lane numbers of 4 bytes, in the low `bits` of each doubleword, as numbers of bytes. */
function byteNumbers(c: Context, lanes: Vector, bits: number): Vector {
  const numbers = c.simd(Simd.V128_AND, lanes, c.everyLane(4, (1 << bits) - 1));
  const spread = c.simd(Simd.I32X4_MUL, numbers, c.everyLane(4, 0x04040404));
  return c.letVector(c.simd(Simd.I8X16_ADD, spread, within(c, 4)));
}

/** VPERMD, VPERMPS: each doubleword of the second source chosen by three bits of the first. */
const permuteDoubles = vector((c) => {
  const [chosen, [low, high]] = [halves(c, 1), halves(c, 2)];
  const lookUp = (lanes: Vector): Vector => {
    const numbers = byteNumbers(c, lanes, 3);
    // What lies outside 0 to 15 gives zero.
    const above = c.simd(Simd.I8X16_SUB, numbers, c.everyLane(1, 16));
    return c.letVector(
      c.simd(Simd.V128_OR, c.simd(Simd.I8X16_SWIZZLE, low, numbers), c.simd(Simd.I8X16_SWIZZLE, high, above)),
    );
  };
  setHalves(c, 0, chosen.map(lookUp));
});

const byImmediate = (c: Context): boolean => c.shape.operands[2].form === "i";

/** VPERMILPS: doublewords within each half, by the immediate or by two bits of the second source. */
const permuteSingles = vector((c) => {
  if (byImmediate(c)) {
    const imm = immediateOf(c);
    unary(c, (a) =>
      c.shuffleLanes(
        4,
        a,
        a,
        four.map((i) => pick(imm, i)),
      ),
    );
    return;
  }
  binary(c, (a, b) => c.simd(Simd.I8X16_SWIZZLE, a, byteNumbers(c, b, 2)));
}, BY_IMMEDIATE);

/** VPERMILPD: quadwords within each half, by a bit of the immediate or bit 1 of the second source's quadwords. */
const permutePairs = vector((c) => {
  if (byImmediate(c)) {
    const imm = immediateOf(c);
    unary(c, (a, h: Half) => c.shuffleLanes(8, a, a, [(imm >> (2 * h)) & 1, (imm >> (2 * h + 1)) & 1]));
    return;
  }
  binary(c, (a, b) => {
    const chosen = (lane: number): Value => c.and(c.shrBy(c.lane(8, lane, b), 1), c.constant(8, 1));
    const from = (lane: number): Value => c.select(c.low(chosen(lane), 4), c.lane(8, 1, a), c.lane(8, 0, a));
    return c.withLane(1, from(1), c.splat(from(0)));
  });
}, BY_IMMEDIATE);

export const vectorShuffles: Family = {
  PACKSSWB: pack(Simd.I8X16_NARROW_I16X8_S),
  PACKUSWB: pack(Simd.I8X16_NARROW_I16X8_U),
  PACKSSDW: pack(Simd.I16X8_NARROW_I32X4_S),
  PACKUSDW: pack(Simd.I16X8_NARROW_I32X4_U),
  PUNPCKLBW: unpack(1, false),
  PUNPCKLWD: unpack(2, false),
  PUNPCKLDQ: unpack(4, false),
  PUNPCKLQDQ: unpack(8, false),
  PUNPCKHBW: unpack(1, true),
  PUNPCKHWD: unpack(2, true),
  PUNPCKHDQ: unpack(4, true),
  PUNPCKHQDQ: unpack(8, true),
  UNPCKLPS: unpack(4, false),
  UNPCKLPD: unpack(8, false),
  UNPCKHPS: unpack(4, true),
  UNPCKHPD: unpack(8, true),
  PSHUFD: shuffled(4, (imm) => four.map((i) => pick(imm, i))),
  PSHUFLW: shuffled(2, (imm) => [...four.map((i) => pick(imm, i)), 4, 5, 6, 7]),
  PSHUFHW: shuffled(2, (imm) => [...four, ...four.map((i) => 4 + pick(imm, i))]),
  PSHUFW: shuffled(2, (imm) => [...four.map((i) => pick(imm, i)), 4, 5, 6, 7]),
  PSHUFB: shuffleBytes,
  SHUFPS: shuffleTwo(4),
  SHUFPD: shuffleTwo(8),
  BLENDPS: blend(4),
  BLENDPD: blend(8),
  PBLENDW: blend(2, true),
  VPBLENDD: blend(4),
  PBLENDVB: blendByMask(Simd.I8X16_SHR_S, 8),
  BLENDVPS: blendByMask(Simd.I32X4_SHR_S, 32),
  BLENDVPD: blendByMask(Simd.I64X2_SHR_S, 64),
  PMOVSXBW: extend([bytesSigned]),
  PMOVSXBD: extend([bytesSigned, wordsSigned]),
  PMOVSXBQ: extend([bytesSigned, wordsSigned, doublesSigned]),
  PMOVSXWD: extend([wordsSigned]),
  PMOVSXWQ: extend([wordsSigned, doublesSigned]),
  PMOVSXDQ: extend([doublesSigned]),
  PMOVZXBW: extend([bytesUnsigned]),
  PMOVZXBD: extend([bytesUnsigned, wordsUnsigned]),
  PMOVZXBQ: extend([bytesUnsigned, wordsUnsigned, doublesUnsigned]),
  PMOVZXWD: extend([wordsUnsigned]),
  PMOVZXWQ: extend([wordsUnsigned, doublesUnsigned]),
  PMOVZXDQ: extend([doublesUnsigned]),

  VBROADCASTSS: broadcast(4),
  VBROADCASTSD: broadcast(8),
  VPBROADCASTB: broadcast(1),
  VPBROADCASTW: broadcast(2),
  VPBROADCASTD: broadcast(4),
  VPBROADCASTQ: broadcast(8),
  VBROADCASTF128: broadcastHalf,
  VBROADCASTI128: broadcastHalf,
  VINSERTF128: insertHalf,
  VINSERTI128: insertHalf,
  VEXTRACTF128: extractHalf,
  VEXTRACTI128: extractHalf,
  VPERM2F128: permuteHalves,
  VPERM2I128: permuteHalves,
  VPERMQ: permuteQuads,
  VPERMPD: permuteQuads,
  VPERMD: permuteDoubles,
  VPERMPS: permuteDoubles,
  VPERMILPS: permuteSingles,
  VPERMILPD: permutePairs,
};
