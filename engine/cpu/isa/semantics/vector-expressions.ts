/**
 * Expressions over vectors of 16 bytes and over floating-point numbers on the wasm stack, beside the integers of
 * expressions.ts. Lanes are numbered from the least significant one, as in the manuals.
 */
import type { Local } from "../../wasm/function";
import { Op, Saturating, Simd, WasmType } from "../../wasm/opcodes";
import { Expressions, type Size, type Value } from "./expressions";

/** A vector of 16 bytes. Every push computes it again: bind one that is used twice with `letVector`. */
export interface Vector {
  readonly vector: true;
  push(): void;
  /** The local it stands in, if it is one. */
  readonly local?: Local;
}

/** A floating-point number on the wasm stack. Never a NaN that guest state could see: payloads of wasm are unspecified. */
export interface Float {
  readonly float: true;
  push(): void;
}

/** Instructions by the size of a lane. */
type BySize = Readonly<Record<Size, Simd>>;

const EXTRACT: BySize = {
  1: Simd.I8X16_EXTRACT_LANE_U,
  2: Simd.I16X8_EXTRACT_LANE_U,
  4: Simd.I32X4_EXTRACT_LANE,
  8: Simd.I64X2_EXTRACT_LANE,
};
const REPLACE: BySize = {
  1: Simd.I8X16_REPLACE_LANE,
  2: Simd.I16X8_REPLACE_LANE,
  4: Simd.I32X4_REPLACE_LANE,
  8: Simd.I64X2_REPLACE_LANE,
};
const SPLAT: BySize = { 1: Simd.I8X16_SPLAT, 2: Simd.I16X8_SPLAT, 4: Simd.I32X4_SPLAT, 8: Simd.I64X2_SPLAT };

/** Loads and stores of the low `bytes` of a vector; what a load does not bring is zero. */
export type VectorBytes = 1 | 2 | 4 | 8 | 16;

export class VectorExpressions extends Expressions {
  protected vectorValue(push: () => void): Vector {
    return { vector: true, push };
  }

  vectorVariableOf(local: Local): Vector {
    return { vector: true, local, push: () => this.f.get(local) };
  }

  /** Computes a vector now and gives it a name. */
  letVector(value: Vector): Vector {
    if (value.local !== undefined) return value;
    const local = this.f.temporary(WasmType.V128);
    value.push();
    this.f.set(local);
    return this.vectorVariableOf(local);
  }

  /** A fresh variable that `assignVector` may change. */
  mutableVector(value: Vector): Vector {
    const local = this.f.temporary(WasmType.V128);
    value.push();
    this.f.set(local);
    return this.vectorVariableOf(local);
  }

  assignVector(variable: Vector, value: Vector): void {
    if (!variable.local) throw new Error("semantics: assignment to what is no variable");
    value.push();
    this.f.set(variable.local);
  }

  /** The result of a vector instruction on the operands: vectors, or a shift count of 4 bytes. */
  simd(op: Simd, ...operands: readonly (Vector | Value | Float)[]): Vector {
    return this.vectorValue(() => {
      for (const operand of operands) operand.push();
      this.f.simd(op);
    });
  }

  /** The integer that a vector instruction makes (any_true, bitmask ...); 4 bytes. */
  simdToInteger(op: Simd, ...operands: readonly Vector[]): Value {
    return this.value(4, () => {
      for (const operand of operands) operand.push();
      this.f.simd(op);
    });
  }

  // ---- constants and lanes

  /** Sixteen bytes. */
  bytes(bytes: ArrayLike<number>): Vector {
    return this.vectorValue(() => this.f.simdBytes(Simd.V128_CONST, bytes));
  }

  /** A constant in every lane of `size` bytes. */
  everyLane(size: Size, value: number | bigint): Vector {
    const bits = BigInt.asUintN(size * 8, BigInt(value));
    return this.bytes(Array.from({ length: 16 }, (_, i) => Number((bits >> BigInt((i % size) * 8)) & 0xffn)));
  }

  /** Constant lanes of 16 / `values.length` bytes. */
  laneConstants(values: readonly (number | bigint)[]): Vector {
    const size = 16 / values.length;
    const lanes = values.map((v) => BigInt.asUintN(size * 8, BigInt(v)));
    return this.bytes(
      Array.from({ length: 16 }, (_, i) => Number((lanes[Math.floor(i / size)] >> BigInt((i % size) * 8)) & 0xffn)),
    );
  }

  zeroVector(): Vector {
    return this.bytes(new Uint8Array(16));
  }

  /** Lane `lane` of `size` bytes. */
  lane(size: Size, lane: number, from: Vector): Value {
    return this.value(size, () => {
      from.push();
      this.f.simdLane(EXTRACT[size], lane);
    });
  }

  /** `vector` with one lane replaced. */
  withLane(lane: number, value: Value, vector: Vector): Vector {
    return this.vectorValue(() => {
      vector.push();
      value.push();
      this.f.simdLane(REPLACE[value.size], lane);
    });
  }

  splat(value: Value): Vector {
    return this.vectorValue(() => {
      value.push();
      this.f.simd(SPLAT[value.size]);
    });
  }

  /** A vector with `value` in its lowest lane and zeros above. */
  lowLane(value: Value): Vector {
    return this.withLane(0, value, this.zeroVector());
  }

  /** Bytes by number: 0 to 15 of `a`, 16 to 31 of `b`. */
  shuffle(a: Vector, b: Vector, bytes: readonly number[]): Vector {
    return this.vectorValue(() => {
      a.push();
      b.push();
      this.f.simdBytes(Simd.I8X16_SHUFFLE, bytes);
    });
  }

  /** Lanes of `size` bytes by number: those of `a`, then those of `b`. */
  shuffleLanes(size: Size, a: Vector, b: Vector, lanes: readonly number[]): Vector {
    return this.shuffle(
      a,
      b,
      lanes.flatMap((lane) => Array.from({ length: size }, (_, i) => lane * size + i)),
    );
  }

  /** The low `bytes` of `low`, and the rest of `high`. */
  merge(bytes: number, low: Vector, high: Vector): Vector {
    return this.shuffle(
      low,
      high,
      Array.from({ length: 16 }, (_, i) => (i < bytes ? i : i + 16)),
    );
  }

  /** The low 8 bytes, zeros above. */
  lowHalf(v: Vector): Vector {
    return this.merge(8, v, this.zeroVector());
  }

  // ---- floating point: lanes as numbers

  /** Lane 0 as a number of `bits`. */
  float(bits: 32 | 64, from: Vector): Float {
    return this.floatOf(() => {
      from.push();
      this.f.simdLane(bits === 32 ? Simd.F32X4_EXTRACT_LANE : Simd.F64X2_EXTRACT_LANE, 0);
    });
  }

  floatOf(push: () => void): Float {
    return { float: true, push };
  }

  /** Computes a number now and gives it a name. */
  letFloat(bits: 32 | 64, value: Float): Float {
    const local = this.f.temporary(bits === 32 ? WasmType.F32 : WasmType.F64);
    value.push();
    this.f.set(local);
    return this.floatOf(() => this.f.get(local));
  }

  /** `vector` with lane 0 replaced by a number. */
  withFloat(bits: 32 | 64, value: Float, vector: Vector): Vector {
    return this.vectorValue(() => {
      vector.push();
      value.push();
      this.f.simdLane(bits === 32 ? Simd.F32X4_REPLACE_LANE : Simd.F64X2_REPLACE_LANE, 0);
    });
  }

  /** The bits of a number. */
  bitsOf(bits: 32 | 64, value: Float): Value {
    return this.floatToInteger(
      bits === 32 ? 4 : 8,
      bits === 32 ? Op.I32_REINTERPRET_F32 : Op.I64_REINTERPRET_F64,
      value,
    );
  }

  /** A constant number. */
  floatConstant(bits: 32 | 64, value: number): Float {
    const view = new DataView(new ArrayBuffer(8));
    if (bits === 32) {
      view.setFloat32(0, value, true);
      return this.floatOp(Op.F32_REINTERPRET_I32, this.constant(4, view.getUint32(0, true)));
    }
    view.setFloat64(0, value, true);
    return this.floatOp(Op.F64_REINTERPRET_I64, this.constant(8, view.getBigUint64(0, true)));
  }

  /** A number cut to an integer of `size` bytes; it must be within the integer's range. */
  truncated(size: 4 | 8, bits: 32 | 64, value: Float): Value {
    const op = {
      4: { 32: Saturating.I32_TRUNC_F32_S, 64: Saturating.I32_TRUNC_F64_S },
      8: { 32: Saturating.I64_TRUNC_F32_S, 64: Saturating.I64_TRUNC_F64_S },
    } as const;
    return this.value(size, () => {
      value.push();
      this.f.saturating(op[size][bits]);
    });
  }

  /** The result of a floating-point instruction on numbers. */
  floatOp(op: Op, ...operands: readonly (Float | Value)[]): Float {
    return this.floatOf(() => {
      for (const operand of operands) operand.push();
      this.f.op(op);
    });
  }

  /** A comparison of numbers, or the conversion of one: an integer of `size` bytes. */
  floatToInteger(size: 4 | 8, op: Op, ...operands: readonly Float[]): Value {
    return this.value(size, () => {
      for (const operand of operands) operand.push();
      this.f.op(op);
    });
  }

  // ---- memory of the engine (host offsets)

  loadVectorAt(offset: number, bytes: VectorBytes = 16): Vector {
    return this.loadVector(this.constant(4, 0), offset, bytes);
  }

  storeVectorAt(offset: number, vector: Vector, bytes: VectorBytes = 16): void {
    this.storeVector(this.constant(4, 0), offset, vector, bytes);
  }

  /** Loads `bytes` from the host offset in `base` plus `offset`; zeros above them. */
  loadVector(base: Value, offset: number, bytes: VectorBytes): Vector {
    if (bytes < 4) return this.lowLane(this.load(base, offset, bytes as Size));
    const op = bytes === 16 ? Simd.V128_LOAD : bytes === 8 ? Simd.V128_LOAD64_ZERO : Simd.V128_LOAD32_ZERO;
    return this.vectorValue(() => {
      base.push();
      this.f.simdMemory(op, offset);
    });
  }

  storeVector(base: Value, offset: number, vector: Vector, bytes: VectorBytes): void {
    base.push();
    vector.push();
    if (bytes === 16) this.f.simdMemory(Simd.V128_STORE, offset);
    else this.f.simdMemory(STORE_LANE[bytes], offset, 0);
  }
}

const STORE_LANE = {
  1: Simd.V128_STORE8_LANE,
  2: Simd.V128_STORE16_LANE,
  4: Simd.V128_STORE32_LANE,
  8: Simd.V128_STORE64_LANE,
} as const;
