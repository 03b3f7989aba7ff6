/** Floating-point arithmetic and comparison (SDM 1 5.5.1.2, 5.5.1.3, 5.6.1.2, 5.6.1.3, 5.7, 5.10, 14.5.3). */
import { holds, Relation } from "../../../float/compare";
import { VectorOp } from "../../../float/vector";
import { Off } from "../../../state";
import { Op, Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import type { Float, Vector } from "../vector-expressions";
import { BY_IMMEDIATE, half, halves, immediateOf, setHalves, sourceIndices, sources, vector } from "./operands";
import { type Checks, packedChecks, scalarChecks } from "./quick-float";
import { computeSlowly, FlagCompare, floatNumber, storeSources } from "./slow-float";

type Bits = 32 | 64;

/** An operation that wasm has: its opcodes by format, and when a zero result is exact. */
interface Arithmetic {
  readonly op: VectorOp;
  readonly scalar: Readonly<Record<Bits, Op>>;
  readonly packed: Readonly<Record<Bits, Simd>>;
  /** One source only: the second. */
  readonly unary?: boolean;
  /** Whether a zero is the exact result for operands that are normal or zero. */
  exactZero<T extends Value | Vector>(k: Checks<T>, a: T, b: T): T | null;
}

const ADD: Arithmetic = {
  op: VectorOp.ADD,
  scalar: { 32: Op.F32_ADD, 64: Op.F64_ADD },
  packed: { 32: Simd.F32X4_ADD, 64: Simd.F64X2_ADD },
  exactZero: () => null,
};
const SUB: Arithmetic = {
  op: VectorOp.SUB,
  scalar: { 32: Op.F32_SUB, 64: Op.F64_SUB },
  packed: { 32: Simd.F32X4_SUB, 64: Simd.F64X2_SUB },
  exactZero: () => null,
};
const MUL: Arithmetic = {
  op: VectorOp.MUL,
  scalar: { 32: Op.F32_MUL, 64: Op.F64_MUL },
  packed: { 32: Simd.F32X4_MUL, 64: Simd.F64X2_MUL },
  exactZero: (k, a, b) => k.or(k.zero(a), k.zero(b)),
};
const DIV: Arithmetic = {
  op: VectorOp.DIV,
  scalar: { 32: Op.F32_DIV, 64: Op.F64_DIV },
  packed: { 32: Simd.F32X4_DIV, 64: Simd.F64X2_DIV },
  exactZero: (k, a) => k.zero(a),
};
const SQRT: Arithmetic = {
  op: VectorOp.SQRT,
  unary: true,
  scalar: { 32: Op.F32_SQRT, 64: Op.F64_SQRT },
  packed: { 32: Simd.F32X4_SQRT, 64: Simd.F64X2_SQRT },
  exactZero: () => null,
};

/** Lanes of a vector of `count` halves. */
const lanesOf = (bits: Bits, count: number): number => (count * 128) / bits;

/**
 * Operands and result of an operation have nothing that needs care. `quickly` is for the usual case, `fully` for zeros.
 * `known` operands are normal or zero.
 */
function careless<T extends Value | Vector>(
  k: Checks<T>,
  kind: Arithmetic,
  a: T,
  b: T,
  r: T,
  known: readonly [boolean, boolean] = [false, false],
): [quickly: T, fully: T] {
  const operands = [...(kind.unary || known[0] ? [] : [a]), ...(known[1] ? [] : [b])];
  const all = (list: readonly T[]): T => list.reduce((x, y) => k.and(x, y));
  const zero = kind.exactZero(k, a, b);
  const exactZero = zero === null ? k.zero(r) : k.and(k.zero(r), zero);
  return [
    all([k.normalResult(r), ...operands.map((x) => k.normal(x))]),
    all([k.or(k.normalResult(r), exactZero), ...operands.map((x) => k.or(k.normal(x), k.zero(x)))]),
  ];
}

/** Does `otherwise` unless MXCSR and both looks at the operands allow the quick result. */
function unlessQuick(c: Context, quick: Value, quickly: Value, fully: Value, otherwise: () => void): void {
  const and = (look: Value): Value => (quick.constant === 1n ? look : c.and(quick, look));
  c.if(c.isZero(and(quickly)), () => {
    c.if(c.isZero(and(fully)), otherwise);
  });
}

function packedArithmetic(kind: Arithmetic, bits: Bits): Semantics {
  return vector((c) => {
    const [a, b] = kind.unary ? [halves(c, 1), halves(c, 1)] : sources(c);
    const k = packedChecks(c, bits);
    const r = b.map((y, h) =>
      c.mutableVector(kind.unary ? c.simd(kind.packed[bits], y) : c.simd(kind.packed[bits], a[h], y)),
    );
    const looks = r.map((z, h) => careless(k, kind, a[h], b[h], z));
    const every = (i: 0 | 1): Value => k.all(looks.map((look) => look[i]).reduce((x, y) => k.and(x, y)));
    unlessQuick(c, c.needQuickFloat(), every(0), every(1), () => {
      const slow = computeSlowly(c, kind.op, bits, lanesOf(bits, r.length), 0, [a, b], r.length);
      for (const [h, v] of slow.entries()) c.assignVector(r[h], v);
    });
    setHalves(c, 0, r);
  });
}

function scalarArithmetic(kind: Arithmetic, bits: Bits): Semantics {
  return vector((c) => {
    const [first, second] = sourceIndices(c);
    const [a, b] = [half(c, first), half(c, second)];
    const k = scalarChecks(c, bits);
    const x = c.float(bits, a);
    const y = c.float(bits, b);
    const size = bits === 32 ? 4 : 8;
    const value = c.letFloat(bits, kind.unary ? c.floatOp(kind.scalar[bits], y) : c.floatOp(kind.scalar[bits], x, y));
    const result = c.mutableVector(c.withFloat(bits, value, a));
    const known = [c.knowsNumber(first, bits), c.knowsNumber(second, bits)] as const;
    const bitsIn = (v: Vector, plain: boolean): Value => (plain ? c.lane(size, 0, v) : c.let(c.lane(size, 0, v)));
    const [i, j] = [bitsIn(a, known[0] || kind.unary === true), bitsIn(b, known[1])];
    const [quickly, fully] = careless(k, kind, i, j, c.let(c.bitsOf(bits, value)), known);
    unlessQuick(c, c.needQuickFloat(), quickly, fully, () => {
      const [slow] = computeSlowly(c, kind.op, bits, 1, 0, [[a], [b]], 1);
      c.assignVector(result, c.merge(size, slow, a));
    });
    if (!kind.unary) c.noteNumber(first, bits);
    c.noteNumber(second, bits);
    setHalves(c, 0, [result]);
    c.noteNumber(0, bits);
  });
}

/**
 * Neither NaNs nor denormals: then comparisons raise nothing whatever MXCSR says. `quickly` knows normal numbers only,
 * `fully` zeros and infinities too.
 */
function ordered<T extends Value | Vector>(k: Checks<T>, operands: readonly T[]): [quickly: T, fully: T] {
  const all = (f: (x: T) => T): T => operands.map(f).reduce((x, y) => k.and(x, y));
  return [all((x) => k.normal(x)), all((x) => k.or(k.normal(x), k.or(k.zero(x), k.infinite(x))))];
}

/** MIN, MAX, CMP: `quick` makes the result where the operands are ordered. */
function comparing(
  op: VectorOp,
  bits: Bits,
  scalar: boolean,
  quick: (c: Context, a: Vector, b: Vector) => Vector,
  predicate = false,
): Semantics {
  return vector(
    (c) => {
      const [a, b] = sources(c);
      const size = bits === 32 ? 4 : 8;
      const imm = predicate ? predicateOf(c) : 0;
      const r = a.map((x, h) => {
        const v = quick(c, x, b[h]);
        return c.mutableVector(scalar ? c.merge(size, v, x) : v);
      });
      let looks: readonly [Value, Value];
      if (scalar) {
        looks = ordered(scalarChecks(c, bits), [c.let(c.lane(size, 0, a[0])), c.let(c.lane(size, 0, b[0]))]);
      } else {
        const k = packedChecks(c, bits);
        const [quickly, fully] = ordered(k, [...a, ...b]);
        looks = [k.all(quickly), k.all(fully)];
      }
      c.if(c.isZero(looks[0]), () => {
        c.if(c.isZero(looks[1]), () => {
          const lanes = scalar ? 1 : lanesOf(bits, a.length);
          const slow = computeSlowly(c, op, bits, lanes, imm, [a, b], r.length);
          for (const [h, v] of slow.entries()) c.assignVector(r[h], scalar ? c.merge(size, v, a[h]) : v);
        });
      });
      setHalves(c, 0, r);
    },
    predicate ? BY_IMMEDIATE : {},
  );
}

/** Legacy instructions have eight predicates, VEX ones 32 (SDM 2A CMPPD). */
const predicateOf = (c: Context): number => immediateOf(c) & (c.shape.vex ? 31 : 7);

const LESS: Readonly<Record<Bits, Simd>> = { 32: Simd.F32X4_LT, 64: Simd.F64X2_LT };
const LESS_EQUAL: Readonly<Record<Bits, Simd>> = { 32: Simd.F32X4_LE, 64: Simd.F64X2_LE };
const EQUAL: Readonly<Record<Bits, Simd>> = { 32: Simd.F32X4_EQ, 64: Simd.F64X2_EQ };
const NOT_EQUAL: Readonly<Record<Bits, Simd>> = { 32: Simd.F32X4_NE, 64: Simd.F64X2_NE };

/** The mask of a predicate on ordered operands. */
function compareOrdered(c: Context, bits: Bits, a: Vector, b: Vector): Vector {
  const predicate = predicateOf(c);
  const less = holds(predicate, Relation.LESS);
  const equal = holds(predicate, Relation.EQUAL);
  const greater = holds(predicate, Relation.GREATER);
  if (less && greater) return equal ? c.everyLane(8, -1) : c.simd(NOT_EQUAL[bits], a, b);
  if (less) return c.simd((equal ? LESS_EQUAL : LESS)[bits], a, b);
  if (greater) return c.simd((equal ? LESS_EQUAL : LESS)[bits], b, a);
  return equal ? c.simd(EQUAL[bits], a, b) : c.zeroVector();
}

/** The first source where it is less (greater), else the second: wasm's pmin and pmax with the operands exchanged. */
const least = (bits: Bits) => (c: Context, a: Vector, b: Vector) =>
  c.simd(bits === 32 ? Simd.F32X4_PMIN : Simd.F64X2_PMIN, b, a);
const greatest = (bits: Bits) => (c: Context, a: Vector, b: Vector) =>
  c.simd(bits === 32 ? Simd.F32X4_PMAX : Simd.F64X2_PMAX, b, a);

/** UCOMISS and its like: ZF, PF, CF tell the relation; OF, SF, AF are cleared. */
function compareFlags(signalling: boolean, bits: Bits): Semantics {
  return vector((c) => {
    const [a, b] = [half(c, 0), half(c, 1)];
    const size = bits === 32 ? 4 : 8;
    const [x, y]: readonly Float[] = [c.float(bits, a), c.float(bits, b)];
    const compare = (op32: Op, op64: Op): Value => c.floatToInteger(4, bits === 32 ? op32 : op64, x, y);
    const equal = c.shlBy(compare(Op.F32_EQ, Op.F64_EQ), 6);
    const flags = c.mutable(c.or(compare(Op.F32_LT, Op.F64_LT), equal));
    const [quickly, fully] = ordered(scalarChecks(c, bits), [c.let(c.lane(size, 0, a)), c.let(c.lane(size, 0, b))]);
    c.if(c.isZero(quickly), () => {
      c.if(c.isZero(fully), () => {
        storeSources(c, [[a], [b]]);
        c.computeFloat(floatNumber(signalling ? FlagCompare.COMI : FlagCompare.UCOMI, bits), 1, 0);
        c.assign(flags, c.loadAt(Off.VECTOR_FLAGS, 4));
      });
    });
    c.setFlagBits(flags, c.constant(4, 0));
  });
}

/** What only the slow way knows. `single`: of the second source alone. */
function slowPacked(op: VectorOp, bits: Bits, single = false, immediate = false): Semantics {
  return vector(
    (c) => {
      const [a, b] = single ? [halves(c, 1), halves(c, 1)] : sources(c);
      const imm = immediate ? immediateOf(c) : 0;
      const slow = computeSlowly(c, op, bits, lanesOf(bits, b.length), imm, [a, b], b.length);
      setHalves(
        c,
        0,
        slow.map((v) => c.letVector(v)),
      );
    },
    { ...(immediate ? BY_IMMEDIATE : {}), leftToTier0: true },
  );
}

function slowScalar(op: VectorOp, bits: Bits, immediate = false): Semantics {
  return vector(
    (c) => {
      const [a, b] = sources(c);
      const [slow] = computeSlowly(c, op, bits, 1, immediate ? immediateOf(c) : 0, [a, b], 1);
      setHalves(c, 0, [c.letVector(c.merge(bits / 8, slow, a[0]))]);
    },
    { ...(immediate ? BY_IMMEDIATE : {}), leftToTier0: true },
  );
}

/** Which operands are multiplicand, multiplier and addend, by the number in the mnemonic: the order of NaNs' precedence. */
const FUSED_ORDERS = [
  { name: "132", operands: [0, 2, 1] },
  { name: "213", operands: [1, 0, 2] },
  { name: "231", operands: [1, 2, 0] },
] as const;

/** Fused multiplication and addition. */
function fused(op: VectorOp, bits: Bits, order: readonly number[], scalar: boolean): Semantics {
  return vector(
    (c) => {
      const operands = [halves(c, 0), halves(c, 1), halves(c, 2)];
      const count = scalar ? 1 : operands[0].length;
      const inOrder = order.map((n) => operands[n]);
      const slow = computeSlowly(c, op, bits, scalar ? 1 : lanesOf(bits, count), 0, inOrder, count);
      const result = slow.map((v, h) => c.letVector(scalar ? c.merge(bits / 8, v, operands[0][h]) : v));
      setHalves(c, 0, result);
    },
    { leftToTier0: true },
  );
}

const FORMATS = [
  { suffix: "PS", bits: 32, scalar: false },
  { suffix: "PD", bits: 64, scalar: false },
  { suffix: "SS", bits: 32, scalar: true },
  { suffix: "SD", bits: 64, scalar: true },
] as const;

function family(): Family {
  const all: Record<string, Semantics> = {};
  for (const { suffix, bits, scalar } of FORMATS) {
    const arithmetic = scalar ? scalarArithmetic : packedArithmetic;
    all[`ADD${suffix}`] = arithmetic(ADD, bits);
    all[`SUB${suffix}`] = arithmetic(SUB, bits);
    all[`MUL${suffix}`] = arithmetic(MUL, bits);
    all[`DIV${suffix}`] = arithmetic(DIV, bits);
    all[`SQRT${suffix}`] = arithmetic(SQRT, bits);
    all[`MIN${suffix}`] = comparing(VectorOp.MIN, bits, scalar, least(bits));
    all[`MAX${suffix}`] = comparing(VectorOp.MAX, bits, scalar, greatest(bits));
    const compare = (c: Context, a: Vector, b: Vector): Vector => compareOrdered(c, bits, a, b);
    all[`CMP${suffix}`] = comparing(VectorOp.CMP, bits, scalar, compare, true);
    all[`ROUND${suffix}`] = scalar
      ? slowScalar(VectorOp.ROUND, bits, true)
      : slowPacked(VectorOp.ROUND, bits, true, true);
    for (const { name, operands } of FUSED_ORDERS) {
      all[`VFMADD${name}${suffix}`] = fused(VectorOp.FMADD, bits, operands, scalar);
      all[`VFMSUB${name}${suffix}`] = fused(VectorOp.FMSUB, bits, operands, scalar);
      all[`VFNMADD${name}${suffix}`] = fused(VectorOp.FNMADD, bits, operands, scalar);
      all[`VFNMSUB${name}${suffix}`] = fused(VectorOp.FNMSUB, bits, operands, scalar);
      if (scalar) continue;
      all[`VFMADDSUB${name}${suffix}`] = fused(VectorOp.FMADDSUB, bits, operands, false);
      all[`VFMSUBADD${name}${suffix}`] = fused(VectorOp.FMSUBADD, bits, operands, false);
    }
    if (scalar) continue;
    all[`ADDSUB${suffix}`] = slowPacked(VectorOp.ADDSUB, bits);
    all[`HADD${suffix}`] = slowPacked(VectorOp.HADD, bits);
    all[`HSUB${suffix}`] = slowPacked(VectorOp.HSUB, bits);
    all[`DP${suffix}`] = slowPacked(VectorOp.DP, bits, false, true);
  }
  return all;
}

export const vectorFloats: Family = {
  ...family(),
  UCOMISS: compareFlags(false, 32),
  UCOMISD: compareFlags(false, 64),
  COMISS: compareFlags(true, 32),
  COMISD: compareFlags(true, 64),
  RCPPS: slowPacked(VectorOp.RCP, 32, true),
  RCPSS: slowScalar(VectorOp.RCP, 32),
  RSQRTPS: slowPacked(VectorOp.RSQRT, 32, true),
  RSQRTSS: slowScalar(VectorOp.RSQRT, 32),
};
