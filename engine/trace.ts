/**
 * Trace points: the named moments at which a person may want to stop, log or count.
 *
 * Code passes one as `if (trace.armed & TraceKind.VmExit) trace.hit({...})`: when nobody listens it costs that one check.
 * `hit` may block for as long as the user looks around (the engine is synchronous code in a worker, so the JavaScript
 * stack at that moment is the real one), and it may throw `Unwind` to take the engine back to its top level.
 */

export const TraceKind = {
  /** A VM exit was taken; guest state is saved, the exit reason known (hypervisor's view, in root mode). */
  VmExit: 1 << 0,
  /** An exit handler of the KVM model is about to run. */
  ExitHandler: 1 << 1,
  /** KVM's MMU handles a fault or an EPT violation. */
  MmuFault: 1 << 2,
  /** KVM_RUN is about to return to userspace with kvm_run filled in. */
  UserspaceExit: 1 << 3,
  /** A device model is about to be read or written. */
  Device: 1 << 4,
  /** The processor is about to enter a guest (all checks passed, state loaded). */
  VmEntry: 1 << 5,
  /** A VM entry failed: invalid control or host fields (VMfailValid) or invalid guest state (exit reason 33/34). */
  VmEntryFailed: 1 << 6,
  /** An exception or interrupt is about to be delivered through the IDT. */
  Vector: 1 << 7,
  /** A triple fault shut the processor down. */
  TripleFault: 1 << 8,
  /** A code breakpoint, data watchpoint, finished step or requested pause at an instruction boundary. */
  Instruction: 1 << 9,
  /** The top of a slice: a chance to pause and to read commands; no state of interest. */
  Poll: 1 << 10,
  /** RDMSR/WRMSR, for msr:0x... breakpoints. */
  Msr: 1 << 11,
  /** IN/OUT, for io:0x... breakpoints. */
  Io: 1 << 12,
} as const;
export type TraceKind = (typeof TraceKind)[keyof typeof TraceKind];

export interface TracePoint {
  readonly kind: TraceKind;
  /** Index of the vCPU it happens on. */
  readonly vcpu: number;
  /** One line for a log or a stop reason, e.g. "IO_INSTRUCTION out port 0x3f8 size 1". */
  readonly text: string;
  /** What conditions may name, e.g. { reason: 30, port: 0x3f8n, size: 1n }. Plain data. */
  readonly detail: Readonly<Record<string, bigint | number | string | boolean>>;
}

export interface Tracer {
  /** Set of TraceKind bits somebody listens to now. */
  armed: number;
  hit(point: TracePoint): void;
}

/** Nobody listens. */
export const silentTracer: Tracer = { armed: 0, hit: () => {} };

/** Thrown out of `hit` to leave everything that runs (terminate, restart, restore a snapshot). */
export class Unwind {
  constructor(readonly why: string) {}
}
