/**
 * One logical processor: the run loop around the tiers, exceptions and events at instruction boundaries, the slow road for
 * accesses that generated code does not make itself, and the debugger's stops.
 */
import type { VirtualClock } from "../clock";
import type { PhysicalMemory } from "../memory/physical";
import { TraceKind, type Tracer } from "../trace";
import { type CodeContexts, type KeySource, VcpuCode } from "./code/code-cache";
import type { CodeStore } from "./code/code-store";
import { PseudoKey, RECORD_SIZE, RecordFault, RecordField } from "./code/record";
import {
  type Bus,
  type CodeBreakpoint,
  type Cpu,
  CpuFault,
  type InterruptPort,
  Next,
  RunExit,
  type SecondStage,
  Vector,
  VmExitTaken,
  type Watchpoint,
} from "./cpu";
import { DataWatch } from "./data-watch";
import type { GuestMode } from "./guest-mode";
import { OPCODES } from "./isa/opcodes";
import { PagingMmu } from "./memory/mmu";
import type { CpuModel } from "./models/model";
import { Activity, CpuState, ExitStatus, Inhibit, Off, Pending, Rflags } from "./state";
import { deliverFault, serviceEvents } from "./system/events";
import { systemHandlers } from "./system/handlers";
import { deriveMode } from "./system/mode";
import { resetProcessor } from "./system/reset";
import { createVmx } from "./vmx/create";
import type { VmxUnit } from "./vmx/unit";

/** Longest stay in generated code: V8 replaces running code only between calls. */
const LONGEST_SLICE = 1_000_000;

/** A tier that runs records (cpu/interpreter). */
export interface Tier {
  /** Runs from a record; at most `budget` instructions retire. @returns the record it stopped at */
  run(record: number, budget: number): number;
  /** Runs one record with every access going through the hooks. */
  runSlow(record: number): number;
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
  readonly keys: KeySource;
  readonly tier: Tier;
  /** The region compiler's tier, when it is on. */
  readonly regions: Tier | null;
}

/** What a processor keeps outside its CPU block. Plain data. */
export interface ProcessorState {
  /** Instructions retired by this vCPU. */
  retired: number;
  hostIsModel: boolean;
}

/** Instructions after which TF raises no single-step trap, because they clear it on their way (SDM 3A 17.3.1.4). */
const CLEARS_TF: ReadonlySet<string> = new Set(["INT", "INT3", "INTO", "INT1", "SYSCALL", "SYSENTER"]);

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

  private readonly store: CodeStore;
  private readonly tier: Tier;
  private readonly regions: Tier | null;
  private readonly watch: DataWatch;
  private breakpoints: readonly CodeBreakpoint[] = [];
  /** Somebody wants the run loop to look at events or context. */
  private wantsAttention = true;
  /** Retired count at which the debugger wants to stop; Infinity for never. */
  private stopAt = Number.POSITIVE_INFINITY;
  /** Budget of the present stay in generated code, and how much of it the clock knows of. */
  private sliceBudget = 0;
  private accounted = 0;
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
    this.code = new VcpuCode(this, parts.store, parts.contexts, parts.keys);
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
    for (;;) {
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
        const toEvent = this.clock.instructionsToNextEvent();
        if (toEvent <= 0) return RunExit.SLICE;
        let budget = Math.min(left, toEvent, this.stopAt - this.own.retired, LONGEST_SLICE);
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
    const shadow = state.u32(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS);
    const singleStep = (state.u32(Off.FLAGS_REST) & Rflags.TF) !== 0;
    if (shadow === 0 && !singleStep) {
      this.execute(budget);
      return;
    }
    const before = this.own.retired;
    this.lastMnemonic = "";
    this.execute(1);
    state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~shadow);
    if (shadow !== 0) this.wantsAttention = true;
    if (singleStep && this.own.retired > before && !CLEARS_TF.has(this.lastMnemonic)) this.pendingDebug(1 << 14);
  }

  /** Adds DR6 bits to the debug exception that is due at this boundary. */
  private pendingDebug(bits: number): void {
    const { state } = this;
    state.setU64(Off.PENDING_DEBUG, state.u64(Off.PENDING_DEBUG) | BigInt(bits));
    state.setU32(Off.PENDING, state.u32(Off.PENDING) | Pending.DEBUG);
  }

  /** Runs up to `budget` instructions and handles why generated code came back, until the budget is used or events wait. */
  private execute(budget: number): void {
    const { state } = this;
    const end = this.own.retired + budget;
    let record = 0;
    let skipBreak = false;
    for (;;) {
      const left = end - this.own.retired;
      if (left <= 0) return;
      if (record === 0) {
        try {
          record = this.code.locate();
        } catch (e) {
          if (!(e instanceof CpuFault)) throw e;
          this.fault(e);
          return;
        }
      }
      if (skipBreak) {
        record += RECORD_SIZE;
        skipBreak = false;
      }
      record = this.stay(record, left);
      switch (state.u32(Off.STATUS)) {
        case ExitStatus.BUDGET:
        case ExitStatus.ATTENTION:
          return;
        case ExitStatus.MISS:
          // Either no record yet, or an instruction across the end of a page: locate() finds the latter's CROSS again.
          record = this.isCross(record) ? this.crossing() : 0;
          if (record < 0) return;
          break;
        case ExitStatus.FAULT:
          this.fault(this.pendingFault());
          return;
        case ExitStatus.SLOW:
          if (!this.slowRoad(record)) return;
          record = 0;
          break;
        case ExitStatus.AGAIN:
          return;
        case ExitStatus.BREAK:
          if (!this.breakHit()) {
            record = 0;
            if (this.wantsAttention) return;
          } else skipBreak = true;
          break;
        default:
          throw new Error(`unknown exit status ${state.u32(Off.STATUS)}`);
      }
    }
  }

  /** One call of a tier, with its retired instructions accounted for. */
  private stay(record: number, budget: number): number {
    this.beginSlice(budget);
    try {
      const tier = this.regions !== null && budget > 1 && this.store.breakpoints.size === 0 ? this.regions : this.tier;
      return tier.run(record, budget);
    } finally {
      this.account();
    }
  }

  private beginSlice(budget: number): void {
    this.sliceBudget = budget;
    this.accounted = 0;
    this.state.setU32(Off.BUDGET, budget);
  }

  /** Tells the clock of the instructions that have retired since the last time. */
  private account(uncounted = 0): void {
    const retired = this.sliceBudget - this.state.u32(Off.BUDGET) - uncounted;
    const more = retired - this.accounted;
    if (more === 0) return;
    this.accounted = retired;
    this.own.retired += more;
    this.clock.retire(more);
  }

  // ================ instructions that generated code hands over

  /** Where a record says CROSS. */
  private isCross(record: number): boolean {
    return record !== 0 && this.memory.i32[record >> 2] === PseudoKey.CROSS;
  }

  /** Puts the crossing instruction at RIP together. @returns its record, or -1 after a fault */
  private crossing(): number {
    try {
      return this.code.putTogether();
    } catch (e) {
      if (!(e instanceof CpuFault)) throw e;
      this.fault(e);
      return -1;
    }
  }

  /**
   * Runs the SystemHandler of a record (a hook of the tiers). RIP becomes the instruction's for the time.
   * @returns 0 to go on behind the record, 1 to leave generated code
   */
  system(record: number): number {
    const { state } = this;
    const i32 = this.memory.i32;
    const w = record >> 2;
    state.setLo(Off.RIP, i32[w + RecordField.RIP / 4]);
    state.setHi(Off.RIP, i32[w + RecordField.RIP / 4 + 1]);
    // The instruction has been counted already; what it sees of time is before it.
    this.account(1);
    const index = i32[w + RecordField.INSTRUCTION / 4] >>> 0;
    const generation = this.store.generation;
    try {
      if (index >= RecordFault.GP) {
        throw index === RecordFault.UD ? new CpuFault(Vector.UD) : new CpuFault(Vector.GP, 0);
      }
      const instruction = this.store.instructions[index];
      const mnemonic = OPCODES[instruction.opcode].mnemonic;
      this.lastMnemonic = mnemonic;
      const handler = systemHandlers[mnemonic];
      if (!handler) throw new CpuFault(Vector.UD);
      const next = handler(this, instruction);
      if (next === Next.SEQUENTIAL && !this.wantsAttention && generation === this.store.generation) {
        return this.state.u32(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS) ? this.leave(record, false) : 0;
      }
      return this.leave(record, next === Next.JUMP || next === Next.JUMP_ATTENTION);
    } catch (e) {
      state.setU32(Off.BUDGET, state.u32(Off.BUDGET) + 1);
      if (e instanceof CpuFault) {
        this.setFault(e);
        state.setU32(Off.STATUS, ExitStatus.FAULT);
        return 1;
      }
      // A VM exit: the instruction has not retired, and RIP is the host's.
      this.account();
      throw e;
    }
  }

  private leave(record: number, jumped: boolean): number {
    if (!jumped) this.advance(record);
    this.wantsAttention = true;
    this.state.setU32(Off.STATUS, ExitStatus.ATTENTION);
    return 1;
  }

  /** RIP to the instruction behind the record. */
  private advance(record: number): void {
    const length = BigInt(this.memory.i32[(record + RecordField.LENGTH) >> 2]);
    const next = this.state.rip + length;
    this.state.rip = BigInt.asUintN(64, next);
  }

  /** Runs one instruction with every access checked and made here. @returns false when it ended in a fault */
  private slowRoad(record: number): boolean {
    this.beginSlice(1);
    this.watch.clear();
    let ended: number;
    try {
      this.tier.runSlow(record);
    } finally {
      ended = this.state.u32(Off.STATUS);
      this.account();
    }
    if (ended === ExitStatus.FAULT) {
      this.fault(this.pendingFault());
      return false;
    }
    this.watchHits();
    return !this.wantsAttention && ended === ExitStatus.BUDGET && this.state.u32(Off.PENDING) === 0;
  }

  /** Hook of the tiers: the access misses the TLB. */
  fill(access: 0 | 1, size: number): number {
    this.account();
    return this.mmu.fill(access, size);
  }

  /** Hooks of the slow road: `size` bytes at EA, value in VALUE. @returns 0, or 1 with the fault pending */
  loadSlow(size: number): number {
    return this.guarded(() => {
      const linear = this.state.u64(Off.EA);
      this.account();
      for (let i = 0; i < size; i += 8) {
        const part = Math.min(size - i, 8);
        this.state.setU64(Off.VALUE + i, this.mmu.read(linear + BigInt(i), part));
      }
      this.watch.note(linear, size, false, this.mmu);
    });
  }

  storeSlow(size: number): number {
    return this.guarded(() => {
      const linear = this.state.u64(Off.EA);
      this.account();
      for (let i = 0; i < size; i += 8) {
        const part = Math.min(size - i, 8);
        this.mmu.write(linear + BigInt(i), part, BigInt.asUintN(part * 8, this.state.u64(Off.VALUE + i)));
      }
      this.watch.note(linear, size, true, this.mmu);
    });
  }

  /** Checks that a store will be allowed. */
  checkSlow(size: number): number {
    return this.guarded(() => {
      const linear = this.state.u64(Off.EA);
      for (let i = 0; i < size; i += 8) this.mmu.checkWrite(linear + BigInt(i), Math.min(size - i, 8));
    });
  }

  private guarded(access: () => void): number {
    try {
      access();
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
    deliverFault(this, fault);
  }

  // ================ what other parts ask for

  contextChanged(): void {
    deriveMode(this);
    this.mmu.updateContext();
    this.code.updateContext();
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

  /** Addresses of code to stop at: the debugger's and those of DR0 to DR3. */
  private updateStops(): void {
    if (this.watch.updateDebugRegisters()) this.mmu.flushEverything();
    const wanted = new Set(this.breakpoints.map((b) => b.linear));
    for (const linear of this.watch.executeAddresses) wanted.add(linear);
    const now = this.store.breakpoints;
    if (wanted.size === now.size && [...wanted].every((linear) => now.has(linear))) return;
    this.store.setBreakpoints(wanted);
    this.wantsAttention = true;
  }

  private linearRip(): bigint {
    return this.code.linearOf(this.state.rip);
  }

  /**
   * A BREAK stands at RIP: stops for the debugger, then raises #DB where DR0 to DR3 ask for it (SDM 3A 17.3.1.1).
   * @returns true to go on with the instruction itself
   */
  private breakHit(): boolean {
    const { state } = this;
    const rip = state.rip;
    const linear = this.linearRip();
    const generation = this.store.generation;
    for (const { id } of this.breakpoints.filter((b) => b.linear === linear)) {
      if (!(this.trace.armed & TraceKind.Instruction)) break;
      this.trace.hit({
        kind: TraceKind.Instruction,
        vcpu: this.id,
        text: `breakpoint at 0x${linear.toString(16)}`,
        detail: { cause: "breakpoint", id, linear },
      });
    }
    const bits = this.watch.executeHits(linear);
    if (bits !== 0 && !(state.u32(Off.FLAGS_REST) & Rflags.RF)) {
      this.fault(new CpuFault(Vector.DB, undefined, BigInt(bits)));
      return false;
    }
    return state.rip === rip && generation === this.store.generation;
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
      this.pendingDebug(this.watch.debugBits);
      this.wantsAttention = true;
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
