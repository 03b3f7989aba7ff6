/**
 * The context of code that works from a record: hot handlers inside the interpreter's loop, out-of-line handlers, and the
 * slow-road variants of both.
 */

import { TLB_BASE, TLB_ENTRIES } from "../../memory/layout";
import { vectorOffset } from "../code/record-writer";
import { type AddressSegment, Context, type MemoryAccess, type Reference } from "../isa/semantics/context";
import type { Size, Value } from "../isa/semantics/expressions";
import { Form, type Shape } from "../isa/semantics/shape";
import { MXCSR_QUICK, MXCSR_SETTING } from "../isa/semantics/vector/quick-float";
import type { Vector } from "../isa/semantics/vector-expressions";
import { ExitStatus, Off } from "../state";
import type { FunctionBuilder, Label, Local } from "../wasm/function";
import { AccessBits } from "./abi";
import { RECORD_SIZE, Rec } from "./record";

/** Function indices of the module the code goes into. */
export interface HelperIndices {
  readonly fill: number;
  readonly slowRead: number;
  readonly slowWrite: number;
  readonly slowCheck: number;
  readonly resolve: number;
  readonly offset: number;
  readonly wrapOffset: number;
  readonly segment: number;
  readonly divideHigh: number;
  readonly vector: number;
  readonly float: number;
}

/** Where hot handlers go on, inside the interpreter's loop. */
export interface LoopLabels {
  /** Next round; the record to go on with is in `record`. */
  readonly next: Label;
  /** Looks `target` up in the code TLB. */
  readonly lookup: Label;
  /** An exception or the slow road: STATUS is set; puts RIP at the instruction and takes it back from the budget. */
  readonly abort: Label;
  /** As `abort`, where RIP and BUDGET are in memory already. */
  readonly leave: Label;
  readonly record: Local;
  readonly budget: Local;
  readonly target: Local;
  /** TLB_CONTEXT, kept in a local. */
  readonly context: Local;
  /** Index of the `miss` function. */
  readonly miss: number;
  /** Emits the call of the record's SystemHandler and goes on from there. */
  callSystem(): void;
}

export type Road = "hot" | "cold" | "slow";

/** Most iterations of a REP instruction in one go. */
const MAX_ITERATIONS = 100_000;

const bytesOf = (access: MemoryAccess): number => (access === "read" ? 0 : AccessBits.WRITE);

export class RecordContext extends Context {
  readonly iterations: number;
  private readonly record: Local;

  constructor(
    f: FunctionBuilder,
    readonly shape: Shape,
    private readonly road: Road,
    private readonly helpers: HelperIndices,
    private readonly labels?: LoopLabels,
  ) {
    super(f);
    this.iterations = road === "slow" ? 1 : MAX_ITERATIONS;
    this.record = labels ? labels.record : f.parameters[0];
  }

  private field(offset: number, size: Size): Value {
    return this.load(this.variableOf(this.record, 4), offset, size);
  }

  /** Host offset of the register of an operand. */
  private operandAt(index: number): Value {
    if (index < 2) return this.field(index === 0 ? Rec.OPERAND0 : Rec.OPERAND1, 4);
    return this.zeroExtend(this.field(index === 2 ? Rec.OPERAND2 : Rec.OPERAND3, 2), 4);
  }

  // ---- registers

  override gpr(index: number, size: Size, high = false): Value {
    return this.loadAt(Off.GPR + index * 8 + (high ? 1 : 0), size);
  }

  override setGpr(index: number, value: Value, high = false): void {
    const wide = value.size === 4 ? this.zeroExtend(value, 8) : value;
    this.storeAt(Off.GPR + index * 8 + (high ? 1 : 0), wide);
  }

  protected override registerOperand(index: number, size: Size): Value {
    return this.load(this.operandAt(index), 0, size);
  }

  protected override setRegisterOperand(index: number, value: Value): void {
    const wide = value.size === 4 ? this.zeroExtend(value, 8) : value;
    this.store(this.operandAt(index), 0, wide);
  }

  protected override selectorOperand(index: number): Value {
    return this.load(this.operandAt(index), 0, 2);
  }

  override xmm(register: number, half: 0 | 1): Vector {
    return this.loadVectorAt(vectorOffset(register) + half * 16);
  }

  override setXmm(register: number, half: 0 | 1, value: Vector): void {
    this.storeVectorAt(vectorOffset(register) + half * 16, value);
  }

  override vectorOperand(index: number, half: 0 | 1): Vector {
    return this.loadVector(this.operandAt(index), half * 16, this.form(index) === Form.MMX ? 8 : 16);
  }

  override setVectorOperand(index: number, half: 0 | 1, value: Vector): void {
    const mmx = this.form(index) === Form.MMX;
    this.storeVector(this.operandAt(index), half * 16, value, mmx ? 8 : 16);
    // As an x87 register it is a NaN or infinity then (SDM 1 9.5.1).
    if (mmx) this.store(this.operandAt(index), 8, this.constant(2, 0xffff));
  }

  override vsibIndices(half: 0 | 1): Vector {
    return this.loadVector(this.field(Rec.INDEX, 4), half * 16, 16);
  }

  override vsibOffset(index: Value): Value {
    const base = this.load(this.field(Rec.BASE, 4), 0, 8);
    const scaled = this.shl(index, this.zeroExtend(this.field(Rec.SCALE, 1), 8));
    return this.wrapOffset(this.add(this.add(base, this.field(Rec.DISPLACEMENT, 8)), scaled));
  }

  override compute(number: number, length: number, immediate: number): Value {
    const parameters = [number, length, immediate].map((n) => this.constant(4, n));
    return this.call(this.helpers.vector, 4, ...parameters);
  }

  override computeFloat(number: number, length: number, immediate: number): void {
    const parameters = [number, length, immediate].map((n) => this.constant(4, n));
    this.call(this.helpers.float, 4, ...parameters).push();
    this.abortIf();
  }

  override quickFloat(): Value {
    return this.eq(this.and(this.loadAt(Off.MXCSR, 4), this.constant(4, MXCSR_SETTING)), this.constant(4, MXCSR_QUICK));
  }

  override immediate(size: Size): Value {
    return this.low(this.field(Rec.IMMEDIATE, size === 8 ? 8 : 4), size);
  }

  override nextRip(): Value {
    return this.add(this.field(Rec.RIP, 8), this.zeroExtend(this.field(Rec.LENGTH, 1), 8));
  }

  // ---- memory

  override offset(): Value {
    if (!this.shape.flat) return this.let(this.call(this.helpers.offset, 8, this.variableOf(this.record, 4)));
    const register = (at: number): Value => this.load(this.field(at, 4), 0, 8);
    const scale = this.zeroExtend(this.field(Rec.SCALE, 1), 8);
    const indexed = this.shl(register(Rec.INDEX), scale);
    return this.let(this.add(this.add(register(Rec.BASE), this.field(Rec.DISPLACEMENT, 8)), indexed));
  }

  override wrapOffset(offset: Value): Value {
    if (this.shape.flat) return offset;
    return this.call(this.helpers.wrapOffset, 8, this.variableOf(this.record, 4), offset);
  }

  private describe(bytes: number, access: MemoryAccess, segment: AddressSegment): number {
    const explicit = segment === "operand" ? 0 : segment + 1;
    return bytes | bytesOf(access) | (explicit << AccessBits.SEGMENT_SHIFT);
  }

  override linear(segment: AddressSegment, offset: Value, bytes: number, access: MemoryAccess): Value {
    if (this.shape.long && (segment === "operand" ? this.shape.flat : segment < 4)) return offset;
    const faulted = this.call(
      this.helpers.segment,
      4,
      this.variableOf(this.record, 4),
      offset,
      this.constant(4, this.describe(bytes, access, segment)),
    );
    faulted.push();
    this.abortIf();
    return this.let(this.loadAt(Off.EA, 8));
  }

  private tlbSlot(linear: Value): Value {
    // Entries are 32 bytes: (linear >> 12) * 32 is linear >> 7 with the low five bits off.
    return this.and(this.shrBy(this.low(linear, 4), 7), this.constant(4, (TLB_ENTRIES - 1) << 5));
  }

  private tlbContext(): Value {
    return this.labels ? this.variableOf(this.labels.context, 8) : this.loadAt(Off.TLB_CONTEXT, 8);
  }

  /** Whether the slot's tag is that of the page of the last byte: a page crossing does not match. */
  private tlbHit(slot: Value, linear: Value, bytes: number, write: boolean): Value {
    const last = bytes === 1 ? linear : this.add(linear, this.constant(8, bytes - 1));
    const wanted = this.or(this.and(last, this.constant(8, -4096)), this.tlbContext());
    return this.eq(this.load(slot, TLB_BASE + (write ? 8 : 0), 8), wanted);
  }

  private hostOf(slot: Value, linear: Value): Value {
    return this.add(this.low(linear, 4), this.load(slot, TLB_BASE + 16, 4));
  }

  override quickHost(linear: Value, access: "read" | "write"): Value {
    const slot = this.let(this.tlbSlot(linear));
    return this.select(
      this.tlbHit(slot, linear, 1, access === "write"),
      this.hostOf(slot, linear),
      this.constant(4, 0),
    );
  }

  override reference(linear: Value, bytes: number, access: MemoryAccess, segment: AddressSegment): Reference {
    const at = this.let(linear);
    const description = this.describe(bytes, access, segment);
    if (this.road === "slow") return this.slowReference(at, access, description);
    const slot = this.let(this.tlbSlot(at));
    const host = this.variable(4);
    this.if(
      this.tlbHit(slot, at, bytes, access !== "read"),
      () => this.assign(host, this.hostOf(slot, at)),
      () => {
        const record = this.variableOf(this.record, 4);
        const access32 = this.constant(4, description);
        if (this.labels) {
          const budget = this.variableOf(this.labels.budget, 4);
          this.assign(host, this.call(this.labels.miss, 4, at, record, budget, access32));
          this.eq(host, this.constant(4, -1)).push();
          this.f.brIf(this.labels.leave);
        } else {
          this.storeAt(Off.EA, at);
          this.storeAt(Off.RIP, this.field(Rec.RIP, 8));
          this.assign(host, this.call(this.helpers.fill, 4, record, access32));
          this.eq(host, this.constant(4, -1)).push();
          this.abortIf();
        }
      },
    );
    return {
      load: (size, offset = 0) => this.load(host, offset, size),
      store: (value, offset = 0) => this.store(host, offset, value),
      loadVector: (bytes, offset = 0) => this.loadVector(host, offset, bytes),
      storeVector: (vector, bytes, offset = 0) => this.storeVector(host, offset, vector, bytes),
    };
  }

  /** Every load and store is a call; a write has been checked before, so that it cannot fault when it comes. */
  private slowReference(linear: Value, access: MemoryAccess, description: number): Reference {
    const call = (index: number, at: Value, access32: number): void => {
      this.storeAt(Off.EA, at);
      this.variableOf(this.record, 4).push();
      this.f.i32(access32);
      this.f.call(index);
    };
    if (access !== "read") call(this.helpers.slowCheck, linear, description);
    const part = (offset: number): Value => (offset === 0 ? linear : this.add(linear, this.constant(8, offset)));
    const described = (size: number): number => (description & ~AccessBits.SIZE) | size;
    return {
      load: (size, offset = 0) => {
        call(this.helpers.slowRead, part(offset), described(size));
        return this.let(this.loadAt(Off.VALUE, size));
      },
      store: (value, offset = 0) => {
        this.storeAt(Off.VALUE, value);
        call(this.helpers.slowWrite, part(offset), described(value.size));
      },
      loadVector: (bytes, offset = 0) => {
        call(this.helpers.slowRead, part(offset), described(bytes));
        return this.letVector(this.loadVectorAt(Off.VALUE, bytes));
      },
      storeVector: (vector, bytes, offset = 0) => {
        this.storeVectorAt(Off.VALUE, vector, bytes);
        call(this.helpers.slowWrite, part(offset), described(bytes));
      },
    };
  }

  override fault(vector: number | Value, error?: number): void {
    this.storeAt(Off.FAULT_VECTOR, typeof vector === "number" ? this.constant(4, vector) : vector);
    this.storeAt(Off.FAULT_ERROR, this.constant(4, error ?? 0));
    this.storeAt(Off.FAULT_HAS_ERROR, this.constant(4, error === undefined ? 0 : 1));
    this.storeAt(Off.FAULT_EXTRA, this.constant(8, 0));
    this.leaveUnretired(ExitStatus.FAULT);
  }

  override systemCall(): void {
    if (!this.labels) throw new Error(`semantics: ${this.shape.mnemonic} calls its handler from inside the loop only`);
    this.labels.callSystem();
  }

  override again(): void {
    this.leaveUnretired(ExitStatus.AGAIN);
  }

  private leaveUnretired(status: ExitStatus): void {
    this.storeAt(Off.STATUS, this.constant(4, status));
    if (this.labels) this.f.br(this.labels.abort);
    else this.returnAborted();
  }

  /** Takes a condition from the stack: STATUS is set, the instruction has not happened. */
  private abortIf(): void {
    if (this.labels) this.f.brIf(this.labels.abort);
    else {
      this.f.if();
      this.returnAborted();
      this.f.end();
    }
  }

  private returnAborted(): void {
    this.storeAt(Off.RIP, this.field(Rec.RIP, 8));
    this.f.i32(0);
    this.f.return();
  }

  // ---- flags

  override flagResult(): Value {
    return this.loadAt(Off.FLAG_RESULT, 8);
  }

  override flagAux(): Value {
    return this.loadAt(Off.FLAG_AUX, 8);
  }

  override setFlags(result: Value, aux: Value): void {
    this.storeAt(Off.FLAG_RESULT, result);
    this.storeAt(Off.FLAG_AUX, aux);
  }

  // ---- control transfer

  /** Goes on with the record on the stack. */
  private goTo(): void {
    if (this.labels) {
      this.f.set(this.labels.record);
      this.f.br(this.labels.next);
    } else this.f.return();
  }

  sequential(): void {
    this.add(this.variableOf(this.record, 4), this.constant(4, RECORD_SIZE)).push();
    this.goTo();
  }

  private leaveTo(rip: Value): void {
    const target = this.let(rip);
    if (this.labels) {
      target.push();
      this.f.set(this.labels.target);
      this.f.br(this.labels.lookup);
      return;
    }
    const found = this.let(this.call(this.helpers.resolve, 4, target));
    this.if(found, () => {
      found.push();
      this.f.return();
    });
    this.storeAt(Off.RIP, target);
    this.storeAt(Off.STATUS, this.constant(4, ExitStatus.MISS));
    this.storeAt(Off.BUDGET, this.sub(this.loadAt(Off.BUDGET, 4), this.constant(4, 1)));
    this.f.i32(0);
    this.f.return();
  }

  private jumpOwn(): void {
    const link = this.let(this.field(Rec.LINK, 4));
    this.if(link, () => {
      link.push();
      this.goTo();
    });
    this.leaveTo(this.field(Rec.IMMEDIATE, 8));
  }

  override jump(): void {
    this.jumpOwn();
    this.ended = true;
  }

  override jumpIf(condition: Value): void {
    this.if(condition, () => this.jumpOwn());
  }

  override jumpTo(rip: Value): void {
    this.leaveTo(rip);
    this.ended = true;
  }

  override divideHigh(high: Value, low: Value, divisor: Value): Value {
    return this.call(this.helpers.divideHigh, 8, high, low, divisor);
  }
}
