/**
 * One logical processor: the run loop around the tiers, exceptions and events at instruction boundaries, the slow road for
 * accesses that generated code does not make itself, and the debugger's stops.
 */
import { NANOSECONDS_PER_INSTRUCTION, type VirtualClock } from "../clock";
import type { PhysicalMemory } from "../memory/physical";
import { TraceKind, type Tracer } from "../trace";
import { type Binder, type CodeContexts, VcpuCode } from "./code/code-cache";
import type { CodeStore } from "./code/code-store";
import { RecordFault } from "./code/record-writer";
import {
  Access,
  type Bus,
  type CodeBreakpoint,
  type Cpu,
  CpuFault,
  type InterruptPort,
  Next,
  RunExit,
  type SecondStage,
  type SystemHandler,
  Vector,
  VmExitTaken,
  type Watchpoint,
} from "./cpu";
import { DataWatch } from "./data-watch";
import type { GuestMode } from "./guest-mode";
import { AccessBits } from "./interpreter/abi";
import { mayCallSystem } from "./interpreter/hot";
import { Key, RECORD_SIZE, Rec } from "./interpreter/record";
import { OPCODES } from "./isa/opcodes";
import type { Regions } from "./jit/regions";
import { PagingMmu } from "./memory/mmu";
import type { CpuModel } from "./models/model";
import { Activity, CodeMode, CpuState, ExitStatus, Inhibit, Off, Pending, Rflags, Seg } from "./state";
import { Cr4, Dr6 } from "./system/bits";
import { pendDebug } from "./system/debug-registers";
import { deliverFault, serviceEvents } from "./system/events";
import { handlerOf } from "./system/handlers";
import { deriveMode } from "./system/mode";
import { resetProcessor } from "./system/reset";
import { deriveSimdAccess } from "./system/simd-access";
import { VectorUnit } from "./vector-unit";
import { createVmx } from "./vmx/create";
import type { VmxUnit } from "./vmx/unit";

/** Longest stay in generated code: V8 replaces running code only between calls. */
const LONGEST_SLICE = 1_000_000;

/** Turns of the run loop without a retired instruction after which it comes back. */
const MAX_IDLE_TURNS = 10_000;

/** A tier that runs records: tier 0 (interpreter/tier0.ts). */
export interface Tier extends Binder {
  /** Runs from a record on; BUDGET in the CPU block is how many instructions may retire. */
  run(record: number): void;
  /** Runs the instruction of one record with every access going through the hooks. */
  runSlow(record: number): void;
}

export interface ProcessorParts {
  readonly id: number;
  readonly model: CpuModel;
  readonly bus: Bus;
  readonly interrupts: InterruptPort;
  readonly memory: PhysicalMemory;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly store: CodeStore;
  readonly contexts: CodeContexts;
  readonly tier: Tier;
  /** The region compiler, where tier 1 is on. */
  readonly regions: Regions | null;
}

/** What a processor keeps outside its CPU block. Plain data. */
export interface ProcessorState {
  /** Instructions retired by this vCPU. */
  retired: number;
  hostIsModel: boolean;
}

/** After these TF raises no single-step trap, because they clear it on their way (SDM 3B 17.3.1.4). */
const CLEARS_TF: ReadonlySet<string> = new Set(["INT", "INT3", "INTO", "INT1", "SYSCALL", "SYSENTER"]);

/** Keys that are no instructions, and system instructions, which have no slow road. */
const PSEUDO: ReadonlySet<number> = new Set([Key.SYSTEM, Key.GOTO, Key.CROSS, Key.BREAK, Key.REGION]);

/** These load RFLAGS with RF as their image says. */
const SETS_RF: ReadonlySet<string> = new Set(["IRET", "SYSRET", "VMLAUNCH", "VMRESUME"]);

/** SystemHandler of each row of the opcode table. */
const HANDLERS: readonly (SystemHandler | undefined)[] = OPCODES.map(handlerOf);

const ENTERS_GUEST: ReadonlySet<string> = new Set(["VMLAUNCH", "VMRESUME"]);

const SHADOW = Inhibit.STI | Inhibit.MOV_SS;

export class Processor implements Cpu {
  readonly id: number;
  readonly state: CpuState;
  readonly model: CpuModel;
  readonly memory: PhysicalMemory;
  readonly bus: Bus;
  readonly interrupts: InterruptPort;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly mmu: PagingMmu;
  readonly code: VcpuCode;
  readonly vmx: VmxUnit;
  guest: GuestMode | null = null;
  secondStage: SecondStage | null = null;
  readonly own: ProcessorState = { retired: 0, hostIsModel: false };

  private readonly vectorUnit: VectorUnit;
  private readonly store: CodeStore;
  private readonly tier: Tier;
  private readonly regions: Regions | null;
  private readonly watch: DataWatch;
  private breakpoints: readonly CodeBreakpoint[] = [];
  /** What the code cache was told last. */
  private stopsOfDebugger: readonly CodeBreakpoint[] = this.breakpoints;
  private stopsOfRegisters: readonly bigint[] = [];
  /** Somebody wants the run loop to look at events or context. */
  private wantsAttention = true;
  /** Retired count at which the debugger wants to stop; Infinity for never. */
  private stopAt = Number.POSITIVE_INFINITY;
  /** Budget of the present stay in generated code, and how much of it the clock knows of. */
  private sliceBudget = 0;
  private accounted = 0;
  /** A VM exit has been taken since the run loop last looked. */
  private exitTaken = false;
  /** The last system instruction that ran. */
  private lastMnemonic = "";

  constructor(parts: ProcessorParts) {
    this.id = parts.id;
    this.model = parts.model;
    this.bus = parts.bus;
    this.interrupts = parts.interrupts;
    this.memory = parts.memory;
    this.clock = parts.clock;
    this.trace = parts.trace;
    this.store = parts.store;
    this.tier = parts.tier;
    this.regions = parts.regions;
    this.state = new CpuState(parts.id, parts.memory.memory);
    this.watch = new DataWatch(this.state);
    this.mmu = new PagingMmu(this);
    this.vectorUnit = new VectorUnit(this);
    this.code = new VcpuCode(this, parts.store, parts.contexts, parts.tier);
    this.vmx = createVmx(this);
    this.reset("power-up");
  }

  get hostIsModel(): boolean {
    return this.own.hostIsModel;
  }
  set hostIsModel(value: boolean) {
    this.own.hostIsModel = value;
  }
  get retired(): number {
    return this.own.retired;
  }

  // ================ the run loop

  run(instructions: number): RunExit {
    const last = this.own.retired + instructions;
    let before = this.own.retired;
    let idleTurns = 0;
    for (;;) {
      // A program whose exception handler faults at once never retires anything: others must have their turn all the same.
      idleTurns = this.own.retired === before ? idleTurns + 1 : 0;
      if (idleTurns > MAX_IDLE_TURNS) return RunExit.SLICE;
      before = this.own.retired;
      if (this.own.retired >= this.stopAt) this.hitStep();
      if (this.trace.armed & TraceKind.Poll) {
        this.trace.hit({ kind: TraceKind.Poll, vcpu: this.id, text: "", detail: {} });
      }
      try {
        if (this.boundary()) {
          if (this.state.activity === Activity.SHUTDOWN) return RunExit.SHUTDOWN;
          return RunExit.HALTED;
        }
        const left = last - this.own.retired;
        if (left <= 0) return RunExit.SLICE;
        let toEvent = this.clock.instructionsToNextEvent();
        if (toEvent <= 0) {
          // What is due reaches a host that is a model as an external interrupt, which waits for one more instruction
          // behind STI and MOV SS (SDM 2B, STI).
          if (!this.own.hostIsModel || (this.state.u32(Off.INHIBIT) & SHADOW) === 0) return RunExit.SLICE;
          toEvent = 1;
        }
        const longest = this.regions ? this.regions.tuning.interval : LONGEST_SLICE;
        let budget = Math.min(left, toEvent, this.stopAt - this.own.retired, longest);
        if (this.guest) {
          const timer = this.guest.instructionsToPreemption();
          if (timer <= 0) {
            this.guest.preemptionTimerExpired();
            continue;
          }
          budget = Math.min(budget, timer);
        }
        if (budget <= 0) continue;
        this.step(budget);
      } catch (e) {
        if (!(e instanceof VmExitTaken)) throw e;
        this.exitTaken = true;
      }
      if (this.exitTaken) {
        this.exitTaken = false;
        this.wantsAttention = true;
        if (this.own.hostIsModel) return RunExit.VM_EXIT;
      }
    }
  }

  /** Pending events at an instruction boundary. @returns true when the processor sleeps after all */
  private boundary(): boolean {
    const { state } = this;
    if (this.wantsAttention || state.u32(Off.PENDING) !== 0 || this.guest || state.activity !== Activity.ACTIVE) {
      this.wantsAttention = false;
      serviceEvents(this);
    }
    return state.activity !== Activity.ACTIVE;
  }

  /** One stay in generated code, or one instruction where something must be looked at behind each. */
  private step(budget: number): void {
    const { state } = this;
    const shadow = state.u32(Off.INHIBIT) & SHADOW;
    const flags = state.u32(Off.FLAGS_REST);
    const iterations = this.guest?.stepsIterations === true;
    if (!iterations && shadow === 0 && (flags & (Rflags.TF | Rflags.RF)) === 0) {
      this.execute(budget, false);
      return;
    }
    const before = this.own.retired;
    this.lastMnemonic = "";
    this.execute(1, iterations || (flags & Rflags.TF) !== 0);
    // The shadow lasts for one instruction, however it ends; so does RF, unless the instruction set it (SDM 3B 17.3.1.1).
    // VM entry has loaded the guest's own.
    const entry = ENTERS_GUEST.has(this.lastMnemonic);
    if (!entry || !this.guest) state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~shadow);
    if (shadow !== 0) this.wantsAttention = true;
    const retired = this.own.retired > before;
    if (retired && flags & Rflags.RF && !SETS_RF.has(this.lastMnemonic)) {
      state.setU32(Off.FLAGS_REST, state.u32(Off.FLAGS_REST) & ~Rflags.RF);
    }
    const iterated = state.u32(Off.STATUS) === ExitStatus.AGAIN;
    if (iterated) this.guest?.iterated?.();
    // A successful VM entry, and one that failed late, has loaded other flags: the trap is lost (SDM 3C 27.7.3, 27.8).
    if (entry && (this.guest || (state.u32(Off.FLAGS_REST) & Rflags.TF) === 0)) return;
    if (flags & Rflags.TF && (retired || iterated) && !CLEARS_TF.has(this.lastMnemonic)) pendDebug(this, Dr6.BS);
  }

  /**
   * Runs up to `budget` instructions and handles why generated code came back, until the budget is used or something has
   * to be looked at. `slowly`: by the slow road, where a REP instruction makes one iteration at a time.
   */
  private execute(budget: number, slowly: boolean): void {
    const { state } = this;
    const end = this.own.retired + budget;
    let atBreak = -1n;
    let crossing = 0;
    for (;;) {
      // The debugger may have asked for a nearer stop meanwhile.
      const left = Math.min(end, this.stopAt) - this.own.retired;
      if (left <= 0) return;
      let record = crossing;
      crossing = 0;
      if (record === 0) {
        try {
          record = this.code.locate();
          // A BREAK that has been looked at at this very boundary does not stop again.
          if (this.keyOf(record) === Key.BREAK && atBreak === state.rip) record += RECORD_SIZE;
          if (slowly && this.keyOf(record) === Key.CROSS) record = this.code.crossing(record);
        } catch (e) {
          if (!(e instanceof CpuFault)) throw e;
          this.fault(e);
          return;
        }
      }
      if (slowly) record = this.regions?.originalOf(record) ?? record;
      if (slowly && !PSEUDO.has(this.keyOf(record))) {
        this.slowRoad(record);
        return;
      }
      this.beginSlice(left);
      try {
        this.tier.run(record);
      } finally {
        this.account();
      }
      switch (state.u32(Off.STATUS)) {
        case ExitStatus.BUDGET:
          this.regions?.sample(state.lo(Off.RIP), state.hi(Off.RIP), state.lo(Off.CODE_CONTEXT));
          return;
        case ExitStatus.ATTENTION:
        case ExitStatus.AGAIN:
          return;
        case ExitStatus.MISS:
          // What the next instruction may raise is not for this stay.
          if (this.own.retired >= end) return;
          crossing = this.crossingRecord();
          if (crossing < 0) return;
          break;
        case ExitStatus.FAULT:
          this.fault(this.pendingFault());
          return;
        case ExitStatus.SLOW:
          this.slowRoad(this.instructionRecord());
          if (this.wantsAttention || state.u32(Off.STATUS) !== ExitStatus.BUDGET) return;
          // A device may have scheduled something before the budget's end.
          if (this.clock.instructionsToNextEvent() < end - this.own.retired) return;
          break;
        case ExitStatus.BREAK:
          if (!this.breakHit()) return;
          atBreak = state.rip;
          break;
        default:
          throw new Error(`unknown exit status ${state.u32(Off.STATUS)}`);
      }
    }
  }

  private keyOf(record: number): number {
    return this.memory.i32[(record + Rec.KEY) >> 2];
  }

  /** The record of the instruction at RIP that has just taken the slow road. */
  private instructionRecord(): number {
    let record = this.code.locate();
    if (this.keyOf(record) === Key.BREAK) record += RECORD_SIZE;
    if (this.regions) record = this.regions.originalOf(record);
    return this.keyOf(record) === Key.CROSS ? this.code.crossing(record) : record;
  }

  /** After a MISS: the record of an instruction that crosses a page's end, 0 for anything else, -1 after a fault. */
  private crossingRecord(): number {
    try {
      let record = this.code.locate();
      if (this.keyOf(record) === Key.BREAK) record += RECORD_SIZE;
      return this.keyOf(record) === Key.CROSS ? this.code.crossing(record) : 0;
    } catch (e) {
      if (!(e instanceof CpuFault)) throw e;
      this.fault(e);
      return -1;
    }
  }

  private beginSlice(budget: number): void {
    this.sliceBudget = budget;
    this.accounted = 0;
    this.state.setU32(Off.BUDGET, budget);
  }

  /** Tells the clock of the instructions that have retired since the last time. */
  private account(): void {
    const retired = this.sliceBudget - this.state.u32(Off.BUDGET);
    const more = retired - this.accounted;
    if (more === 0) return;
    this.accounted = retired;
    this.own.retired += more;
    this.clock.retire(more);
  }

  // ================ hooks of generated code

  /**
   * Runs the SystemHandler of a record, or raises what a faulty record stands for. RIP is the instruction's.
   * @returns 0 to go on with the next record, 1 to leave generated code, or the record to go on with
   */
  system(record: number): number {
    const { state } = this;
    this.account();
    const field = this.keyOf(record) === Key.SYSTEM ? Rec.HANDLER : Rec.INSTRUCTION;
    const index = this.memory.i32[(record + field) >> 2];
    const { guest } = this;
    const generation = this.store.generation;
    try {
      if (index === RecordFault.UD) throw new CpuFault(Vector.UD);
      if (index === RecordFault.GP) throw new CpuFault(Vector.GP, 0);
      const instruction = this.store.instructions[index];
      const { mnemonic } = OPCODES[instruction.opcode];
      this.lastMnemonic = mnemonic;
      if (this.guest?.takeEarlyExit?.(mnemonic, instruction)) {
        this.exitTaken = true;
        this.wantsAttention = true;
        state.setU32(Off.STATUS, ExitStatus.ATTENTION);
        return 1;
      }
      const handler = HANDLERS[instruction.opcode];
      if (!handler) throw new CpuFault(Vector.UD);
      const next = handler(this, instruction);
      const shadow = state.u32(Off.INHIBIT) & SHADOW;
      const sequential = next === Next.SEQUENTIAL;
      if (sequential && !this.wantsAttention && generation === this.store.generation && shadow === 0) {
        const left = state.u32(Off.BUDGET) - 1;
        state.setU32(Off.BUDGET, left);
        // A device may have scheduled something before the budget's end: then the next instruction is for the run loop.
        if (this.clock.instructionsToNextEvent() > left) return 0;
        this.advance(instruction.length);
        state.setU32(Off.STATUS, ExitStatus.ATTENTION);
        return 1;
      }
      if (sequential || next === Next.ATTENTION) this.advance(instruction.length);
    } catch (e) {
      if (!(e instanceof CpuFault)) throw e;
      this.setFault(e);
      state.setU32(Off.STATUS, ExitStatus.FAULT);
      return 1;
    }
    const left = state.u32(Off.BUDGET) - 1;
    state.setU32(Off.BUDGET, left);
    if (this.guest === guest && this.nothingPending(left)) {
      const next = this.code.known();
      if (next !== 0) {
        state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~Inhibit.STI);
        return next;
      }
    }
    this.wantsAttention = true;
    state.setU32(Off.STATUS, ExitStatus.ATTENTION);
    return 1;
  }

  /**
   * Whether the run loop would find nothing to do at this boundary, nor for the next `left` instructions, so that generated
   * code may go on by itself. The shadow of STI has no effect then.
   */
  private nothingPending(left: number): boolean {
    const { state, guest } = this;
    if (this.wantsAttention || this.exitTaken || left < 2 || this.clock.instructionsToNextEvent() <= left) return false;
    if (state.u32(Off.PENDING) !== 0 || state.activity !== Activity.ACTIVE) return false;
    // A VM exit saves the shadow of STI.
    const inhibit = state.u32(Off.INHIBIT) & (guest ? ~0 : ~Inhibit.STI);
    const rest = state.u32(Off.FLAGS_REST);
    if (inhibit !== 0 || rest & (Rflags.TF | Rflags.RF)) return false;
    if (guest && (guest.quiet?.() !== true || guest.instructionsToPreemption() <= left)) return false;
    const open = guest?.ignoresIf === true || (rest & Rflags.IF) !== 0;
    return !open || this.interrupts.pending() < 0;
  }

  /** RIP to the instruction behind one of `length` bytes. */
  private advance(length: number): void {
    const { state } = this;
    const lo = (state.lo(Off.RIP) + length) | 0;
    state.setLo(Off.RIP, lo);
    if (lo >>> 0 < length) state.setHi(Off.RIP, state.hi(Off.RIP) + 1);
  }

  /** The segment an access goes through: the one it names, or the record's own. */
  private segmentOf(record: number, access: number): number {
    const named = access >> AccessBits.SEGMENT_SHIFT;
    return named !== 0 ? named - 1 : this.memory.u8[record + Rec.SEGMENT];
  }

  /** Whether EA is not canonical in 64-bit mode. */
  private notCanonical(): boolean {
    const { state } = this;
    if (state.codeMode !== CodeMode.LONG64) return false;
    const top = state.hi(Off.EA) >> (state.lo(Off.CR4) & Cr4.LA57 ? 24 : 15);
    return top !== 0 && top !== -1;
  }

  private notCanonicalFault(record: number, access: number): CpuFault {
    return new CpuFault(this.segmentOf(record, access) === Seg.SS ? Vector.SS : Vector.GP, 0);
  }

  /** The TLB does not know the access at EA. @returns host offset, or -1 with STATUS set */
  fill(record: number, access: number): number {
    this.account();
    if (this.notCanonical()) {
      this.setFault(this.notCanonicalFault(record, access));
      this.state.setU32(Off.STATUS, ExitStatus.FAULT);
      return -1;
    }
    return this.mmu.fill(access & AccessBits.WRITE ? Access.WRITE : Access.READ, access & AccessBits.SIZE);
  }

  /** Runs one instruction with every access checked and made here. */
  private slowRoad(record: number): void {
    const { state } = this;
    if (this.keyOf(record) === Key.SYSTEM) throw new Error("a system instruction does not take the slow road");
    this.beginSlice(1);
    this.watch.clear();
    try {
      if (mayCallSystem(this.keyOf(record))) this.systemSlowly(record);
      else this.tier.runSlow(record);
    } catch (e) {
      if (!(e instanceof CpuFault)) throw e;
      this.setFault(e);
      state.setU32(Off.STATUS, ExitStatus.FAULT);
      state.setU32(Off.BUDGET, 1);
    } finally {
      this.account();
    }
    if (state.u32(Off.STATUS) === ExitStatus.FAULT) this.fault(this.pendingFault());
    else this.watchHits();
  }

  /** As Tier.runSlow, for an instruction whose SystemHandler knows all of it. */
  private systemSlowly(record: number): void {
    const answer = this.system(record);
    if (answer === 1) return;
    if (answer === 0) this.advance(this.memory.u8[record + Rec.LENGTH]);
    this.state.setU32(Off.STATUS, ExitStatus.BUDGET);
  }

  /** Slow-road accesses of generated code: EA says where, VALUE holds what. They throw through it. */
  slowRead(record: number, access: number): void {
    if (this.notCanonical()) throw this.notCanonicalFault(record, access);
    const linear = this.state.u64(Off.EA);
    const size = access & AccessBits.SIZE;
    for (let i = 0; i < size; i += 8) {
      this.state.setU64(Off.VALUE + i, this.mmu.read(linear + BigInt(i), Math.min(size - i, 8)));
    }
    this.watch.note(linear, size, false, this.mmu);
  }

  slowWrite(record: number, access: number): void {
    if (this.notCanonical()) throw this.notCanonicalFault(record, access);
    const linear = this.state.u64(Off.EA);
    const size = access & AccessBits.SIZE;
    for (let i = 0; i < size; i += 8) {
      const part = Math.min(size - i, 8);
      const value = BigInt.asUintN(part * 8, this.state.u64(Off.VALUE + i));
      this.mmu.write(linear + BigInt(i), part, value);
    }
    this.watch.note(linear, size, true, this.mmu);
  }

  slowCheck(record: number, access: number): void {
    if (this.notCanonical()) throw this.notCanonicalFault(record, access);
    const linear = this.state.u64(Off.EA);
    const size = access & AccessBits.SIZE;
    for (let i = 0; i < size; i += 8) this.mmu.checkWrite(linear + BigInt(i), Math.min(size - i, 8));
  }

  /** Vector instructions that TypeScript computes: see COMPUTE. */
  vector(number: number, length: number, immediate: number): number {
    return this.vectorUnit.compute(number, length, immediate);
  }

  float(number: number, lanes: number, immediate: number): number {
    try {
      this.vectorUnit.float(number, lanes, immediate);
      return 0;
    } catch (e) {
      if (!(e instanceof CpuFault)) throw e;
      this.setFault(e);
      this.state.setU32(Off.STATUS, ExitStatus.FAULT);
      return 1;
    }
  }

  // ================ exceptions

  private setFault(fault: CpuFault): void {
    const { state } = this;
    state.setU32(Off.FAULT_VECTOR, fault.vector);
    state.setU32(Off.FAULT_ERROR, fault.error ?? 0);
    state.setU32(Off.FAULT_HAS_ERROR, fault.error === undefined ? 0 : 1);
    state.setU64(Off.FAULT_EXTRA, fault.extra);
  }

  private pendingFault(): CpuFault {
    const { state } = this;
    const error = state.u32(Off.FAULT_HAS_ERROR) ? state.u32(Off.FAULT_ERROR) : undefined;
    return new CpuFault(state.u32(Off.FAULT_VECTOR), error, state.u64(Off.FAULT_EXTRA));
  }

  /** Delivers an exception; RIP is at the faulting instruction. @throws VmExitTaken */
  private fault(fault: CpuFault): void {
    this.wantsAttention = true;
    // Delivery takes time, so that a program that does nothing but fault still sees its timers fire.
    this.clock.pass(NANOSECONDS_PER_INSTRUCTION);
    deliverFault(this, fault);
  }

  // ================ what other parts ask for

  contextChanged(): void {
    deriveMode(this);
    deriveSimdAccess(this.state);
    this.mmu.updateContext();
    this.code.updateContext();
    if (this.watch.updateDebugRegisters()) this.mmu.flushEverything();
    this.updateStops();
  }

  attention(): void {
    this.wantsAttention = true;
  }

  signal(event: "nmi" | "init" | "sipi" | "smi", vector = 0): void {
    const bit = { nmi: Pending.NMI, init: Pending.INIT, sipi: Pending.SIPI, smi: Pending.SMI }[event];
    let pending = this.state.u32(Off.PENDING) | bit;
    if (event === "sipi") {
      pending = (pending & ~(0xff << Pending.SIPI_VECTOR_SHIFT)) | ((vector & 0xff) << Pending.SIPI_VECTOR_SHIFT);
    }
    this.state.setU32(Off.PENDING, pending);
    this.wantsAttention = true;
  }

  reset(kind: "power-up" | "init"): void {
    resetProcessor(this, kind);
    this.vmx.reset();
    this.contextChanged();
    this.wantsAttention = true;
  }

  // ================ the debugger's stops

  setBreakpoints(list: readonly CodeBreakpoint[]): void {
    this.breakpoints = list;
    this.updateStops();
    this.wantsAttention = true;
  }

  setWatchpoints(list: readonly Watchpoint[]): void {
    this.watch.setWatchpoints(list);
    this.mmu.flushEverything();
  }

  stopAfter(count: number): void {
    this.stopAt = count > 0 ? this.own.retired + count : Number.POSITIVE_INFINITY;
    this.wantsAttention = true;
  }

  watchesPage(linear: bigint, pa: number): boolean {
    return this.watch.watchesPage(linear, pa);
  }

  /** Addresses of code to stop at, the debugger's and those of DR0 to DR3, go to the code cache. */
  private updateStops(): void {
    const { executeAddresses } = this.watch;
    if (executeAddresses === this.stopsOfRegisters && this.breakpoints === this.stopsOfDebugger) return;
    this.stopsOfRegisters = executeAddresses;
    this.stopsOfDebugger = this.breakpoints;
    this.store.setBreakpoints(this.id, [
      ...this.breakpoints.map(({ linear, end = linear + 1n, physical = false }) => ({
        physical,
        from: linear,
        to: end,
      })),
      ...executeAddresses.map((linear) => ({ physical: false, from: linear, to: linear + 1n })),
    ]);
  }

  private linearRip(): bigint {
    return this.code.linearOf(this.state.rip);
  }

  /**
   * A BREAK stands at RIP: stops for the debugger, then raises #DB where DR0 to DR3 ask for it (SDM 3B 17.3.1.1).
   * @returns true to go on with the instruction, false after an exception or when the debugger moved RIP
   */
  private breakHit(): boolean {
    const { state } = this;
    const rip = state.rip;
    const linear = this.linearRip();
    const met = this.breakpoints.filter((b) => {
      const at = b.physical ? BigInt(this.code.physicalOf(linear)) : linear;
      return at === b.linear || (b.end !== undefined && at > b.linear && at < b.end);
    });
    for (const { id } of met) {
      if (!(this.trace.armed & TraceKind.Instruction)) break;
      this.trace.hit({
        kind: TraceKind.Instruction,
        vcpu: this.id,
        text: `breakpoint at 0x${linear.toString(16)}`,
        detail: { cause: "breakpoint", id, linear },
      });
    }
    if (state.rip !== rip) return false;
    const bits = this.watch.executeHits(linear);
    const blocked = state.u32(Off.FLAGS_REST) & Rflags.RF || state.u32(Off.INHIBIT) & Inhibit.MOV_SS;
    if (bits === 0 || blocked) return true;
    this.fault(new CpuFault(Vector.DB, undefined, BigInt(bits)));
    return false;
  }

  private hitStep(): void {
    this.stopAt = Number.POSITIVE_INFINITY;
    if (!(this.trace.armed & TraceKind.Instruction)) return;
    const text = `step to 0x${this.linearRip().toString(16)}`;
    this.trace.hit({ kind: TraceKind.Instruction, vcpu: this.id, text, detail: { cause: "step" } });
  }

  /** Tells the debugger of watchpoints, and the program of data breakpoints, that the last instruction met. */
  private watchHits(): void {
    if (this.watch.debugBits !== 0) {
      pendDebug(this, this.watch.debugBits);
    }
    for (const hit of this.watch.hits) {
      if (!(this.trace.armed & TraceKind.Instruction)) return;
      const verb = hit.write ? "wrote" : "read";
      this.trace.hit({
        kind: TraceKind.Instruction,
        vcpu: this.id,
        text: `${verb} ${hit.size} bytes at 0x${hit.address.toString(16)}`,
        detail: { cause: "watchpoint", id: hit.id, address: hit.address, size: BigInt(hit.size), write: hit.write },
      });
    }
  }
}
