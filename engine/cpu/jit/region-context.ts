/** The context of code compiled for one particular instruction inside a region: registers are locals. */

import { TLB_BASE, TLB_ENTRIES } from "../../memory/layout";
import { branchTarget } from "../code/record-writer";
import { type Instruction, NO_REG, RIP_BASE } from "../isa/instruction";
import { type AddressSegment, Context, type MemoryAccess, type Reference } from "../isa/semantics/context";
import type { Size, Value } from "../isa/semantics/expressions";
import { Form } from "../isa/semantics/shape";
import type { Vector } from "../isa/semantics/vector-expressions";
import { CpuState, Off, SegPart, type SimdAccess } from "../state";
import { FlagOperation } from "./flag-kind";
import type { RegionFunction } from "./region-function";
import type { RegionInstruction } from "./region-graph";

/** What is known while code is made about the flags in the region's flag locals. */
export interface KnownFlags {
  readonly operation: FlagOperation;
  readonly size: Size;
}

const MASK32 = 0xffff_ffffn;

export class RegionContext extends Context {
  readonly shape;
  readonly iterations = 1;
  private readonly instruction: Instruction;

  constructor(
    private readonly region: RegionFunction,
    private readonly at: RegionInstruction,
    /** Instructions of the block from this one on, itself included. */
    private readonly remaining: number,
  ) {
    super(region.f);
    this.shape = at.shape;
    this.instruction = at.instruction;
  }

  // ---- registers

  private register(index: number): Value {
    const value = this.region.register(index);
    // Without its local: a value must be a copy once it is bound.
    return { size: 8, push: () => this.f.get(value) };
  }

  override gpr(index: number, size: Size, high = false): Value {
    const whole = this.register(index);
    return this.low(high ? this.shrBy(whole, 8) : whole, size);
  }

  override setGpr(index: number, value: Value, high = false): void {
    const whole = this.register(index);
    let next: Value;
    if (value.size >= 4) next = this.zeroExtend(value, 8);
    else {
      const shift = high ? 8 : 0;
      const mask = ((1n << BigInt(value.size * 8)) - 1n) << BigInt(shift);
      const placed = this.shlBy(this.zeroExtend(value, 8), shift);
      next = this.or(this.and(whole, this.constant(8, ~mask)), placed);
    }
    next.push();
    this.f.set(this.region.writtenRegister(index));
  }

  protected override registerOperand(index: number, size: Size): Value {
    const operand = this.instruction.operands[index];
    return this.gpr(operand.reg, size, operand.high);
  }

  protected override setRegisterOperand(index: number, value: Value): void {
    const operand = this.instruction.operands[index];
    this.setGpr(operand.reg, value, operand.high);
  }

  protected override selectorOperand(index: number): Value {
    return this.loadAt(CpuState.segOffset(this.instruction.operands[index].reg) + SegPart.SELECTOR, 2);
  }

  // ---- vector registers

  override xmm(register: number, half: 0 | 1): Vector {
    const local = this.region.vectorRegister(register, half);
    // Without its local: as for general registers.
    return this.vectorValue(() => this.f.get(local));
  }

  override setXmm(register: number, half: 0 | 1, value: Vector): void {
    if (half === 0) this.region.numbersIn.delete(register);
    value.push();
    this.f.set(this.region.writtenVectorRegister(register, half));
  }

  override vectorOperand(index: number, half: 0 | 1): Vector {
    return this.xmm(this.instruction.operands[index].reg, half);
  }

  override setVectorOperand(index: number, half: 0 | 1, value: Vector): void {
    this.setXmm(this.instruction.operands[index].reg, half, value);
  }

  override vsibIndices(): Vector {
    throw new Error(`a region holds ${this.shape.mnemonic}, which changes registers between accesses`);
  }

  override vsibOffset(): Value {
    return this.vsibIndices() as never;
  }

  /** The access word does not change inside a region: one look a block will do. */
  override checkSimd(kind: SimdAccess): void {
    if (this.region.checkedSimd.has(kind)) return;
    this.region.checkedSimd.add(kind);
    this.if(this.loadAt(Off.SIMD_ACCESS + kind, 1), () => this.giveUp());
  }

  override compute(number: number, length: number, immediate: number): Value {
    const parameters = [number, length, immediate].map((n) => this.constant(4, n));
    return this.call(this.region.compute, 4, ...parameters);
  }

  /** What needs care is tier 0's. */
  override computeFloat(): void {
    this.giveUp();
  }

  override quickFloat(): Value {
    return this.region.isQuick ? this.constant(4, 1) : this.variableOf(this.region.quickFloat(), 4);
  }

  /** One look a block will do. */
  override needQuickFloat(): Value {
    if (!this.region.isQuick) {
      this.if(this.isZero(this.quickFloat()), () => this.giveUp());
      this.region.isQuick = true;
    }
    return this.constant(4, 1);
  }

  override knowsNumber(index: number, bits: 32 | 64): boolean {
    return this.form(index) === Form.VECTOR && this.region.numbersIn.get(this.instruction.operands[index].reg) === bits;
  }

  override noteNumber(index: number, bits: 32 | 64): void {
    if (this.form(index) === Form.VECTOR) this.region.numbersIn.set(this.instruction.operands[index].reg, bits);
  }

  override copyNumber(to: number, from: number): void {
    if (this.form(to) !== Form.VECTOR || this.form(from) !== Form.VECTOR) return;
    const bits = this.region.numbersIn.get(this.instruction.operands[from].reg);
    if (bits !== undefined) this.noteNumber(to, bits);
  }

  override immediate(size: Size): Value {
    const { immediate, immediateHigh } = this.instruction;
    return this.constant(size, (BigInt(immediateHigh) << 32n) | BigInt(immediate >>> 0));
  }

  override nextRip(): Value {
    return this.constant(8, this.at.rip + BigInt(this.instruction.length));
  }

  // ---- memory

  private displacement(): bigint {
    const i = this.instruction;
    const own = (BigInt(i.displacementHigh) << 32n) | BigInt(i.displacement >>> 0);
    // POP forms its address with the stack pointer already moved (SDM 2B, POP).
    const moved = this.shape.mnemonic === "POP" && i.base === 4 ? BigInt(i.operandSize) : 0n;
    return own + moved;
  }

  override offset(): Value {
    const i = this.instruction;
    if (i.base === RIP_BASE) {
      const address = this.at.rip + BigInt(i.length) + BigInt(i.displacement);
      return this.constant(8, i.addressSize === 8 ? address : address & MASK32);
    }
    const parts: Value[] = [];
    if (i.base !== NO_REG) parts.push(this.register(i.base));
    if (i.index !== NO_REG) parts.push(this.shlBy(this.register(i.index), i.scale));
    const displacement = this.displacement();
    if (displacement !== 0n || parts.length === 0) parts.push(this.constant(8, displacement));
    return this.wrapOffset(parts.reduce((a, b) => this.add(a, b)));
  }

  override wrapOffset(offset: Value): Value {
    return this.instruction.addressSize === 8 ? offset : this.and(offset, this.constant(8, MASK32));
  }

  override linear(segment: AddressSegment, offset: Value): Value {
    const used = segment === "operand" ? this.instruction.segment : segment;
    if (used < 4) return this.let(offset);
    return this.let(this.add(offset, this.loadAt(CpuState.segOffset(used) + SegPart.BASE, 8)));
  }

  override quickHost(): Value {
    return this.constant(4, 0);
  }

  /** An access the TLB does not know is tier 0's: the region is left at this instruction. */
  override reference(linear: Value, bytes: number, access: MemoryAccess): Reference {
    const at = this.let(linear);
    const slot = this.let(this.and(this.shrBy(this.low(at, 4), 7), this.constant(4, (TLB_ENTRIES - 1) << 5)));
    const last = bytes === 1 ? at : this.add(at, this.constant(8, bytes - 1));
    const wanted = this.or(this.and(last, this.constant(8, -4096)), this.variableOf(this.region.tlbContext, 8));
    this.if(this.ne(this.load(slot, TLB_BASE + (access === "read" ? 0 : 8), 8), wanted), () => this.giveUp());
    const host = this.let(this.add(this.low(at, 4), this.load(slot, TLB_BASE + 16, 4)));
    return {
      load: (size, offset = 0) => this.load(host, offset, size),
      store: (value, offset = 0) => this.store(host, offset, value),
      loadVector: (bytes, offset = 0) => this.loadVector(host, offset, bytes),
      storeVector: (vector, bytes, offset = 0) => this.storeVector(host, offset, vector, bytes),
    };
  }

  /** Leaves the region before this instruction, which tier 0 then does. */
  private giveUp(): void {
    this.region.leaveAt(this.at, this.remaining);
  }

  override fault(_vector: number | Value, _error?: number): void {
    this.giveUp();
  }

  override systemCall(): void {
    this.giveUp();
  }

  override again(): void {
    throw new Error(`a region holds ${this.shape.mnemonic}, which does not end in one go`);
  }

  // ---- flags

  private known(operation: FlagOperation, size: Size, a: Value, b: Value, result: Value): void {
    const { flags, f } = this.region;
    const set = (local: typeof flags.a, v: Value): void => {
      this.zeroExtend(v, 8).push();
      f.set(local);
    };
    set(flags.a, a);
    set(flags.b, b);
    set(flags.result, result);
    this.region.known = { operation, size };
  }

  override setFlags(result: Value, aux: Value): void {
    const a = this.let(aux);
    this.known(FlagOperation.RAW, 8, a, this.constant(8, 0), this.let(result));
  }

  override flagsAdd(a: Value, b: Value, r: Value, withCarry = false): void {
    this.known(withCarry ? FlagOperation.ADC : FlagOperation.ADD, a.size, a, b, r);
  }

  override flagsSub(a: Value, b: Value, r: Value, withBorrow = false): void {
    this.known(withBorrow ? FlagOperation.SBB : FlagOperation.SUB, a.size, a, b, r);
  }

  override flagsLogic(r: Value): void {
    const zero = this.constant(8, 0);
    this.known(FlagOperation.LOGIC, r.size, zero, zero, r);
  }

  /** One of the flag locals, cut to the operation's size. */
  private part(name: "a" | "b" | "result", size: Size): Value {
    return this.low(this.variableOf(this.region.flags[name], 8), size);
  }

  /** What is known of the flags; makes their raw form where nothing is. */
  private resolved(): KnownFlags {
    if (this.region.known === null) this.region.makeRaw();
    return this.region.known as KnownFlags;
  }

  override flagResult(): Value {
    const { size } = this.resolved();
    return this.let(this.copy(this.signExtend(this.part("result", size), 8)));
  }

  override flagAux(): Value {
    const { operation, size } = this.resolved();
    const a = this.part("a", size);
    const b = this.part("b", size);
    const r = this.part("result", size);
    switch (operation) {
      case FlagOperation.RAW:
        return this.let(this.copy(a));
      case FlagOperation.LOGIC:
        return this.constant(8, 0);
      case FlagOperation.ADD:
      case FlagOperation.ADC:
        return this.let(this.carries(this.addCarries(a, b, r)));
      default:
        return this.let(this.carries(this.subBorrows(a, b, r)));
    }
  }

  /** Hides that a value is a local, so that `let` copies it. */
  private copy(v: Value): Value {
    return { size: v.size, push: () => v.push() };
  }

  /** Conditions fused with the comparison before them, where it is known. */
  override condition(code: number): Value {
    const { operation, size } = this.resolved();
    const a = this.part("a", size);
    const b = this.part("b", size);
    const r = this.part("result", size);
    const zero = this.constant(size, 0);
    const negated = (code & 1) !== 0;
    const which = code >> 1;
    if (which === 2 && operation !== FlagOperation.RAW) return negated ? this.ne(r, zero) : this.eq(r, zero);
    if (which === 4 && operation !== FlagOperation.RAW) return negated ? this.geS(r, zero) : this.ltS(r, zero);
    if (operation === FlagOperation.SUB) {
      if (which === 1) return negated ? this.geU(a, b) : this.ltU(a, b);
      if (which === 3) return negated ? this.gtU(a, b) : this.leU(a, b);
      if (which === 6) return negated ? this.geS(a, b) : this.ltS(a, b);
      if (which === 7) return negated ? this.gtS(a, b) : this.leS(a, b);
    }
    if (operation === FlagOperation.LOGIC) {
      if (which === 1 || which === 0) return this.constant(4, negated ? 1 : 0);
      if (which === 3) return negated ? this.ne(r, zero) : this.eq(r, zero);
      if (which === 6) return negated ? this.geS(r, zero) : this.ltS(r, zero);
      if (which === 7) return negated ? this.gtS(r, zero) : this.leS(r, zero);
    }
    if (operation === FlagOperation.ADD && which === 1) return negated ? this.geU(r, a) : this.ltU(r, a);
    return super.condition(code);
  }

  /** Flags that one arm changes are unknown behind; the kind then stands in its local. */
  override if(condition: Value, yes: () => void, no?: () => void): void {
    const { region } = this;
    const before = region.known;
    const arm = (emit: () => void): boolean => {
      region.known = before;
      emit();
      if (region.known === before) return false;
      region.storeKind();
      return true;
    };
    let changed = false;
    region.storeKind();
    super.if(
      condition,
      () => {
        changed = arm(yes) || changed;
      },
      no &&
        (() => {
          changed = arm(no) || changed;
        }),
    );
    region.known = changed ? null : before;
  }

  // ---- control transfer

  override jump(): void {
    this.region.goTo(branchTarget(this.instruction, this.at.rip, true), this.remaining - 1);
    this.ended = true;
  }

  override jumpIf(condition: Value): void {
    condition.push();
    this.f.if();
    this.region.goTo(branchTarget(this.instruction, this.at.rip, true), this.remaining - 1);
    this.f.end();
  }

  override jumpTo(rip: Value): void {
    this.region.goToComputed(rip);
    this.ended = true;
  }

  override divideHigh(high: Value, low: Value, divisor: Value): Value {
    return this.call(this.region.divideHigh, 8, high, low, divisor);
  }
}
