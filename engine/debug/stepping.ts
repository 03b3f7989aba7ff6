/**
 * Stepping as state machines over trace points.
 *
 * A step belongs to one vCPU and ends at its *goal* (a linear address, with a bound on the stack pointer so that recursion
 * does not count), after *counting* one retired instruction, or at a *stage* of a VM exit (step in only). Steps do not land
 * in interrupt handlers: an interrupt that arrives during a step sets the goal back to where it interrupted.
 *
 * - step in: an instruction that exits shows the way: exit, handler, MMU fault, userspace exit, device, VM entry, and
 *   then the guest's next instruction.
 * - step over: straight to the next guest instruction, over exits, calls, repeated string instructions, INT, HLT.
 *   Both may be given the addresses of a source line to stay in.
 * - step out: to the return address of the current function; from inside an exit, back to the guest.
 */
import type { Machine } from "../machine/machine";
import { TraceKind, type TracePoint } from "../trace";
import type { AddressRange, Resume } from "./api";
import { codeContext, instructionAt, vectorTarget } from "./code";
import type { Frame } from "./unwind";

/** The stages of a VM exit. */
export const EXIT_STAGES =
  TraceKind.VmExit |
  TraceKind.ExitHandler |
  TraceKind.MmuFault |
  TraceKind.UserspaceExit |
  TraceKind.Device |
  TraceKind.VmEntry |
  TraceKind.VmEntryFailed;

/** What a step watches silently besides. */
const FOLLOWED = TraceKind.VmExit | TraceKind.VmEntry | TraceKind.Vector | TraceKind.Instruction;

/** Exits that something outside the guest caused: they do not belong to the instruction being stepped. */
const ASYNCHRONOUS: ReadonlySet<number> = new Set([1, 3, 4, 5, 6, 7, 8, 52]);

/** Event types of the VM-entry interruption-information field that are interrupts (SDM 3C table 25-17). */
const ENTRY_INTERRUPT = { EXTERNAL: 0, NMI: 2 } as const;

interface Goal {
  readonly linear: bigint;
  /**
   * Bounds of the linear stack pointer, both included; null when any will do. Deeper is a recursion, far above is another
   * task on a stack of its own.
   */
  readonly stack: readonly [least: bigint, most: bigint] | null;
}

/** What a callee may take off the stack with its return address: RET imm16, which 64-bit code has no use for. */
const popped = (bits: 16 | 32 | 64): bigint => (bits === 64 ? 0x400n : 0x1_0000n);
const exactly = (stack: bigint): readonly [bigint, bigint] => [stack, stack];
/** Of CR3: the place of the tables, without PCID and the bit in which the two tables of a process differ under KPTI. */
const TABLES = 0xf_ffff_ffff_e000n;

export interface StepEnvironment {
  readonly machine: Machine;
  /** The frame that called the innermost one of a vCPU. */
  caller(vcpu: number): Frame | undefined;
  /** The guest's kernel serves this exception and goes back to the instruction, as if nothing had been (demand paging). */
  isTransparent(vector: number): boolean;
  /** Tells that the goal changed, so that the temporary breakpoint moves. */
  goalChanged(): void;
}

export class Step {
  private target: Goal | null = null;
  private readonly stages: number;
  /** Where the step began when it began at an instruction; null when it began inside an exit. */
  private start: { readonly linear: bigint; readonly stack: bigint } | null;
  /** A call-like instruction is being stepped over: what happens inside does not matter. */
  private within = false;
  /** An exit that has nothing to do with the stepped instruction is being handled. */
  private asynchronous = false;
  readonly vcpu: number;
  /** A source line: the step goes on for as long as it arrives in there. */
  private readonly range: AddressRange | null;
  private readonly over: boolean;
  /** Page tables of the program the step began in; null in a kernel, whose code is the same in all of them. */
  private readonly tables: bigint | null;
  /** The hypervisor is the KVM model, so that an exit has stages and comes back to the guest by itself. */
  private readonly modelled: boolean;

  /**
   * @param at the trace point the machine is stopped at, or null between instructions
   * @throws Error fit for the user when there is nowhere to step to
   */
  constructor(
    private readonly environment: StepEnvironment,
    resume: Exclude<Resume, { kind: "continue" | "start" }>,
    at: TracePoint | null,
  ) {
    const { machine } = environment;
    this.vcpu = resume.vcpu;
    this.modelled = machine.config.accel !== "none";
    const inExit = at !== null && at.vcpu === resume.vcpu && (at.kind & EXIT_STAGES) !== 0 && this.modelled;
    this.stages = resume.kind === "stepIn" ? (resume.stages ?? this.defaultStages()) : 0;
    const here = this.here();
    this.tables = this.programTables();
    const inWorlds = at !== null && at.vcpu === resume.vcpu && this.changedWorlds(at);
    this.start = inExit ? null : here;
    this.range = "range" in resume ? (resume.range ?? null) : null;
    this.over = resume.kind === "next";
    if (inExit) {
      if (at.kind === TraceKind.VmEntry) this.enterGuest();
      return;
    }
    if (inWorlds) {
      // A hypervisor of the guest's own, on the bare processor: the state loaded now runs next. Once its first instruction
      // is reached (that is the start of this step, so it does not end there) it is stepped.
      this.setGoal({ linear: here.linear, stack: null });
      return;
    }
    if (at?.kind === TraceKind.Vector && at.vcpu === resume.vcpu) {
      this.onVector(at, resume.kind === "stepIn");
      return;
    }
    if (resume.kind === "stepOut") {
      const back = environment.caller(resume.vcpu);
      if (!back || back.slot === null)
        throw new Error("no return address was found on the stack: step over or set a breakpoint instead");
      this.within = true;
      // An interrupted program of another privilege has another stack.
      const { bits } = codeContext(machine.vcpus[this.vcpu]);
      const most = back.slot + BigInt(bits / 8) + popped(bits);
      this.setGoal({ linear: back.linear, stack: back.interrupted ? null : [back.slot + 1n, most] });
      return;
    }
    this.stepInstruction();
  }

  /** From an instruction boundary: over the instruction, or into whatever it does. */
  private stepInstruction(): void {
    const { machine } = this.environment;
    const context = codeContext(machine.vcpus[this.vcpu]);
    this.start = { linear: context.linear, stack: context.stack };
    const code = instructionAt(machine, this.vcpu, context.linear, context.bits);
    this.within = this.over && code?.returns === true;
    const bounds = [context.stack, context.stack + popped(context.bits)] as const;
    if (this.within && code) this.setGoal({ linear: context.linear + BigInt(code.length), stack: bounds });
    else this.count();
  }

  /** The next instruction has been reached. @returns whether the step is over, or goes on within its source line */
  private arrived(linear: bigint): boolean {
    if (!this.range || linear < this.range.from || linear >= this.range.to) return true;
    this.stepInstruction();
    return false;
  }

  /** TraceKind bits to listen to. */
  get kinds(): number {
    return this.stages | FOLLOWED;
  }

  get goal(): bigint | null {
    return this.target?.linear ?? null;
  }

  /** @returns true when the step ends here */
  decide(point: TracePoint): boolean {
    if (point.vcpu !== this.vcpu) return false;
    switch (point.kind) {
      case TraceKind.Instruction:
        return this.onInstruction(point);
      case TraceKind.Vector:
        this.onVector(point, true);
        return false;
      case TraceKind.VmExit:
        return this.onExit(point);
      case TraceKind.VmEntry:
        return this.onEntry(point);
      default:
        return (point.kind & this.stages) !== 0 && !this.asynchronous;
    }
  }

  /** Takes back what the step asked of the machine. */
  end(): void {
    this.environment.machine.stopAfter(this.vcpu, 0);
    this.target = null;
  }

  /** Another context than the instruction's has been loaded: a guest, or after an exit or a failed entry the host. */
  private changedWorlds(at: TracePoint): boolean {
    if (at.kind === TraceKind.VmExit || at.kind === TraceKind.VmEntry) return true;
    // Without an exit reason (VMfail) VMLAUNCH just goes on behind itself.
    return at.kind === TraceKind.VmEntryFailed && Number(at.detail.reason ?? -1) > 0;
  }

  private defaultStages(): number {
    return this.modelled ? EXIT_STAGES : TraceKind.VmExit | TraceKind.VmEntry | TraceKind.VmEntryFailed;
  }

  private here(): { linear: bigint; stack: bigint } {
    const context = codeContext(this.environment.machine.vcpus[this.vcpu]);
    return { linear: context.linear, stack: context.stack };
  }

  private programTables(): bigint | null {
    const { registers } = this.environment.machine.vcpus[this.vcpu];
    return registers.read("cpl") === 3n ? registers.read("cr3") & TABLES : null;
  }

  private setGoal(goal: Goal | null): void {
    this.target = goal;
    this.environment.goalChanged();
  }

  private count(): void {
    this.setGoal(null);
    this.environment.machine.stopAfter(this.vcpu, 1);
  }

  private onInstruction(point: TracePoint): boolean {
    const here = this.here();
    if (point.detail.cause === "step") return !this.within && this.target === null && this.arrived(here.linear);
    if (point.detail.cause !== "breakpoint" || !this.target) return false;
    if (here.linear !== this.target.linear) return false;
    const bounds = this.target.stack;
    if (bounds !== null && (here.stack < bounds[0] || here.stack > bounds[1])) return false;
    // Another process may run the same code at the same place on its stack.
    if (this.tables !== null && this.tables !== this.programTables()) return false;
    const again = this.start !== null && here.linear === this.start.linear && here.stack === this.start.stack;
    if (!again) return this.arrived(here.linear);
    // Back from an interrupt before the stepped instruction ran: now step it.
    this.count();
    return false;
  }

  private onExit(point: TracePoint): boolean {
    const asynchronous = ASYNCHRONOUS.has(Number(point.detail.reason ?? -1) & 0xffff);
    if (this.modelled) {
      this.asynchronous = asynchronous;
      if (!this.within) this.environment.machine.stopAfter(this.vcpu, 0);
    }
    return (this.stages & TraceKind.VmExit) !== 0 && !asynchronous;
  }

  private onEntry(point: TracePoint): boolean {
    if ((this.stages & point.kind) !== 0 && !this.asynchronous) return true;
    if (this.modelled) this.enterGuest();
    return false;
  }

  /** The guest goes on: sets the goal to its next instruction. */
  private enterGuest(): void {
    this.asynchronous = false;
    if (this.within) return;
    const here = this.here();
    const event = this.injected();
    const transparent = this.over && event !== null && this.environment.isTransparent(event.vector);
    if (event && !event.interrupt && !transparent) {
      const handler = vectorTarget(this.environment.machine, this.vcpu, event.vector);
      if (handler !== undefined) {
        this.setGoal({ linear: handler, stack: null });
        return;
      }
    }
    const again = this.start !== null && here.linear === this.start.linear && here.stack === this.start.stack;
    if (again && !event) this.count();
    else this.setGoal({ linear: here.linear, stack: exactly(here.stack) });
  }

  private injected(): { vector: number; interrupt: boolean } | null {
    const { vmcs } = this.environment.machine.vcpus[this.vcpu];
    const information = vmcs ? Number(vmcs.read(VM_ENTRY_INTR_INFO)) : 0;
    if ((information & 0x8000_0000) === 0) return null;
    const type = (information >> 8) & 7;
    return { vector: information & 0xff, interrupt: type === ENTRY_INTERRUPT.EXTERNAL || type === ENTRY_INTERRUPT.NMI };
  }

  private onVector(point: TracePoint, into: boolean): void {
    const { type } = point.detail;
    const here = this.here();
    // During a call only the call instruction's own exception matters (its target or stack is not present).
    if (this.within) {
      const own = this.start !== null && here.linear === this.start.linear && here.stack === this.start.stack;
      if (type !== "exception" || !own) return;
    }
    if (type === "software") return;
    const transparent = this.over && this.environment.isTransparent(Number(point.detail.vector ?? 0));
    if (type === "exception" && into && !transparent) {
      const handler = vectorTarget(this.environment.machine, this.vcpu, Number(point.detail.vector ?? 0));
      if (handler === undefined) return;
      this.environment.machine.stopAfter(this.vcpu, 0);
      this.setGoal({ linear: handler, stack: null });
      return;
    }
    // An interrupt: come back to the instruction it interrupted.
    this.environment.machine.stopAfter(this.vcpu, 0);
    if (this.target === null) this.setGoal({ linear: here.linear, stack: exactly(here.stack) });
  }
}

/** VM-entry interruption-information field (SDM 3D appendix B.3.1). */
const VM_ENTRY_INTR_INFO = 0x4016;
