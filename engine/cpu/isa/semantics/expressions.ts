/**
 * Expressions over integers of 1, 2, 4 and 8 bytes, written so that semantics read like the manual's pseudo-code, and
 * turned into wasm as they are pushed.
 */
import type { FunctionBuilder, Local } from "../../wasm/function";
import { Op, WasmType } from "../../wasm/opcodes";

export type Size = 1 | 2 | 4 | 8;

/**
 * A value of `size` bytes. `push` leaves it on the wasm stack: an i64 for 8 bytes, else an i32 whose bits above the size
 * are zero. Every push computes it again: bind a value that is used twice with `let`.
 */
export interface Value {
  readonly size: Size;
  push(): void;
  /** The local it stands in, if it is one. */
  readonly local?: Local;
  /** Its value where it is known while code is made. */
  readonly constant?: bigint;
}

/** A value in a local of its own. */
export interface Variable extends Value {
  readonly local: Local;
}

const typeOf = (size: Size): WasmType => (size === 8 ? WasmType.I64 : WasmType.I32);

/** Load instruction for an unsigned value. */
const LOAD = { 1: Op.I32_LOAD8_U, 2: Op.I32_LOAD16_U, 4: Op.I32_LOAD, 8: Op.I64_LOAD } as const;
const STORE = { 1: Op.I32_STORE8, 2: Op.I32_STORE16, 4: Op.I32_STORE, 8: Op.I64_STORE } as const;

export class Expressions {
  constructor(readonly f: FunctionBuilder) {}

  protected value(size: Size, push: () => void): Value {
    return { size, push };
  }

  // ---- constants and variables

  constant(size: Size, value: number | bigint): Value {
    const bits = BigInt.asUintN(size * 8, BigInt(value));
    return {
      size,
      constant: bits,
      push: () => {
        if (size === 8) this.f.i64(bits);
        else this.f.i32(Number(BigInt.asIntN(32, bits)));
      },
    };
  }

  /** A local as a value. */
  variableOf(local: Local, size: Size): Variable {
    return { size, local, push: () => this.f.get(local) };
  }

  /** A fresh variable without a value yet. */
  variable(size: Size): Variable {
    return this.variableOf(this.f.temporary(typeOf(size)), size);
  }

  assign(variable: Variable, value: Value): void {
    if (variable.size !== value.size) throw new Error(`semantics: ${value.size} bytes assigned to ${variable.size}`);
    value.push();
    this.f.set(variable.local);
  }

  /** Computes a value now and gives it a name. */
  let(value: Value): Value {
    if (value.local !== undefined || value.constant !== undefined) return value;
    const variable = this.variable(value.size);
    this.assign(variable, value);
    return variable;
  }

  /** A fresh variable that starts as `value`. */
  mutable(value: Value): Variable {
    const variable = this.variable(value.size);
    this.assign(variable, value);
    return variable;
  }

  // ---- arithmetic

  private masked(size: Size): void {
    if (size >= 4) return;
    this.f.i32(size === 1 ? 0xff : 0xffff);
    this.f.op(Op.I32_AND);
  }

  private binary(op32: Op, op64: Op, a: Value, b: Value, overflows: boolean): Value {
    if (a.size !== b.size) throw new Error(`semantics: operands of ${a.size} and ${b.size} bytes`);
    return this.value(a.size, () => {
      a.push();
      b.push();
      this.f.op(a.size === 8 ? op64 : op32);
      if (overflows) this.masked(a.size);
    });
  }

  add(a: Value, b: Value): Value {
    return this.binary(Op.I32_ADD, Op.I64_ADD, a, b, true);
  }
  sub(a: Value, b: Value): Value {
    return this.binary(Op.I32_SUB, Op.I64_SUB, a, b, true);
  }
  mul(a: Value, b: Value): Value {
    return this.binary(Op.I32_MUL, Op.I64_MUL, a, b, true);
  }
  and(a: Value, b: Value): Value {
    return this.binary(Op.I32_AND, Op.I64_AND, a, b, false);
  }
  or(a: Value, b: Value): Value {
    return this.binary(Op.I32_OR, Op.I64_OR, a, b, false);
  }
  xor(a: Value, b: Value): Value {
    return this.binary(Op.I32_XOR, Op.I64_XOR, a, b, false);
  }
  not(a: Value): Value {
    return this.xor(a, this.constant(a.size, -1));
  }
  neg(a: Value): Value {
    return this.sub(this.constant(a.size, 0), a);
  }
  /** Unsigned quotient; 4 or 8 bytes; the divisor must not be 0. */
  divU(a: Value, b: Value): Value {
    return this.binary(Op.I32_DIV_U, Op.I64_DIV_U, a, b, false);
  }
  remU(a: Value, b: Value): Value {
    return this.binary(Op.I32_REM_U, Op.I64_REM_U, a, b, false);
  }
  /** Signed quotient; 4 or 8 bytes; neither a zero divisor nor an overflow may happen. */
  divS(a: Value, b: Value): Value {
    return this.binary(Op.I32_DIV_S, Op.I64_DIV_S, a, b, false);
  }

  // ---- shifts; the count has the same size as the value and must be below 32, or 64 for 8 bytes

  shl(a: Value, count: Value): Value {
    return this.binary(Op.I32_SHL, Op.I64_SHL, a, count, true);
  }
  shr(a: Value, count: Value): Value {
    return this.binary(Op.I32_SHR_U, Op.I64_SHR_U, a, count, false);
  }
  /** Arithmetic shift of a value of its size. */
  sar(a: Value, count: Value): Value {
    return this.value(a.size, () => {
      this.pushSigned(a);
      count.push();
      this.f.op(a.size === 8 ? Op.I64_SHR_S : Op.I32_SHR_S);
      this.masked(a.size);
    });
  }
  /** 4 or 8 bytes. */
  rotl(a: Value, count: Value): Value {
    return this.binary(Op.I32_ROTL, Op.I64_ROTL, a, count, false);
  }
  rotr(a: Value, count: Value): Value {
    return this.binary(Op.I32_ROTR, Op.I64_ROTR, a, count, false);
  }
  shlBy(a: Value, count: number): Value {
    return count === 0 ? a : this.shl(a, this.constant(a.size, count));
  }
  shrBy(a: Value, count: number): Value {
    return count === 0 ? a : this.shr(a, this.constant(a.size, count));
  }

  private unary(op32: Op, op64: Op, a: Value): Value {
    return this.value(a.size, () => {
      a.push();
      this.f.op(a.size === 8 ? op64 : op32);
    });
  }
  /** Number of leading zeros in 32 or 64 bits. */
  clz(a: Value): Value {
    return this.unary(Op.I32_CLZ, Op.I64_CLZ, a);
  }
  ctz(a: Value): Value {
    return this.unary(Op.I32_CTZ, Op.I64_CTZ, a);
  }
  popcnt(a: Value): Value {
    return this.unary(Op.I32_POPCNT, Op.I64_POPCNT, a);
  }

  // ---- widths

  /** The low part of `a`. */
  low(a: Value, size: Size): Value {
    if (size > a.size) throw new Error("semantics: low part wider than the value");
    if (size === a.size) return a;
    if (a.constant !== undefined) return this.constant(size, a.constant);
    return this.value(size, () => {
      a.push();
      if (a.size === 8) this.f.op(Op.I32_WRAP_I64);
      this.masked(size);
    });
  }

  zeroExtend(a: Value, size: Size): Value {
    if (size < a.size) throw new Error("semantics: extension to a narrower value");
    if (size === a.size) return a;
    if (a.constant !== undefined) return this.constant(size, a.constant);
    return this.value(size, () => {
      a.push();
      if (size === 8) this.f.op(Op.I64_EXTEND_I32_U);
    });
  }

  signExtend(a: Value, size: Size): Value {
    if (size < a.size) throw new Error("semantics: extension to a narrower value");
    if (size === a.size) return a;
    if (a.constant !== undefined) return this.constant(size, BigInt.asIntN(a.size * 8, a.constant));
    return this.value(size, () => {
      this.pushSigned(a);
      if (size === 8) this.f.op(Op.I64_EXTEND_I32_S);
      else this.masked(size);
    });
  }

  /** Pushes with the sign filling the whole i32 or i64. */
  private pushSigned(a: Value): void {
    a.push();
    if (a.size === 1) this.f.op(Op.I32_EXTEND8_S);
    else if (a.size === 2) this.f.op(Op.I32_EXTEND16_S);
  }

  // ---- comparisons: 4-byte values 0 or 1

  private compare(op32: Op, op64: Op, a: Value, b: Value, signed: boolean): Value {
    if (a.size !== b.size) throw new Error(`semantics: ${a.size} bytes compared with ${b.size}`);
    return this.value(4, () => {
      if (signed) {
        this.pushSigned(a);
        this.pushSigned(b);
      } else {
        a.push();
        b.push();
      }
      this.f.op(a.size === 8 ? op64 : op32);
    });
  }

  eq(a: Value, b: Value): Value {
    return this.compare(Op.I32_EQ, Op.I64_EQ, a, b, false);
  }
  ne(a: Value, b: Value): Value {
    return this.compare(Op.I32_NE, Op.I64_NE, a, b, false);
  }
  ltU(a: Value, b: Value): Value {
    return this.compare(Op.I32_LT_U, Op.I64_LT_U, a, b, false);
  }
  leU(a: Value, b: Value): Value {
    return this.compare(Op.I32_LE_U, Op.I64_LE_U, a, b, false);
  }
  gtU(a: Value, b: Value): Value {
    return this.compare(Op.I32_GT_U, Op.I64_GT_U, a, b, false);
  }
  geU(a: Value, b: Value): Value {
    return this.compare(Op.I32_GE_U, Op.I64_GE_U, a, b, false);
  }
  ltS(a: Value, b: Value): Value {
    return this.compare(Op.I32_LT_S, Op.I64_LT_S, a, b, true);
  }
  leS(a: Value, b: Value): Value {
    return this.compare(Op.I32_LE_S, Op.I64_LE_S, a, b, true);
  }
  gtS(a: Value, b: Value): Value {
    return this.compare(Op.I32_GT_S, Op.I64_GT_S, a, b, true);
  }
  geS(a: Value, b: Value): Value {
    return this.compare(Op.I32_GE_S, Op.I64_GE_S, a, b, true);
  }
  isZero(a: Value): Value {
    return this.value(4, () => {
      a.push();
      this.f.op(a.size === 8 ? Op.I64_EQZ : Op.I32_EQZ);
    });
  }
  isNegative(a: Value): Value {
    return this.ltS(a, this.constant(a.size, 0));
  }
  /** The top bit as 0 or 1, in the value's own size. */
  signBit(a: Value): Value {
    return this.shrBy(a, a.size * 8 - 1);
  }

  select(condition: Value, yes: Value, no: Value): Value {
    if (yes.size !== no.size) throw new Error("semantics: select between different sizes");
    return this.value(yes.size, () => {
      yes.push();
      no.push();
      condition.push();
      this.f.op(Op.SELECT);
    });
  }

  // ---- control flow

  if(condition: Value, yes: () => void, no?: () => void): void {
    condition.push();
    this.f.if();
    yes();
    if (no) {
      this.f.else();
      no();
    }
    this.f.end();
  }

  // ---- memory of the engine (host offsets)

  /** Loads from a constant host offset. */
  loadAt(offset: number, size: Size): Value {
    return this.value(size, () => {
      this.f.i32(0);
      this.f.memory(LOAD[size], offset);
    });
  }
  storeAt(offset: number, value: Value): void {
    this.f.i32(0);
    value.push();
    this.f.memory(STORE[value.size], offset);
  }
  /** Loads from the host offset in `base` (4 bytes) plus `offset`. */
  load(base: Value, offset: number, size: Size): Value {
    return this.value(size, () => {
      base.push();
      this.f.memory(LOAD[size], offset);
    });
  }
  store(base: Value, offset: number, value: Value): void {
    base.push();
    value.push();
    this.f.memory(STORE[value.size], offset);
  }

  /** Calls a function that leaves a value of `size` bytes. */
  call(functionIndex: number, size: Size, ...parameters: Value[]): Value {
    return this.value(size, () => {
      for (const p of parameters) p.push();
      this.f.call(functionIndex);
    });
  }
}
