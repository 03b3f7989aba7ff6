/**
 * Events: what happens at instruction boundaries, and how one event leads to another (SDM 3A chapter 6).
 */
import { TraceKind } from "../../trace";
import { type Cpu, CpuFault, Vector } from "../cpu";
import { Activity, Inhibit, Off, Pending, Rflags, Seg } from "../state";
import { Dr7 } from "./bits";
import { type DeliveredEvent, deliverThroughIdt, EventType, isSoftware } from "./delivery";

/** An exception's side register: CR2 for #PF, DR6 bits for #DB. Absent for injected events, which change neither. */
interface PendingEvent extends DeliveredEvent {
  readonly extra?: bigint;
  /** Injected by VM entry: not subject to the exception bitmap, RF as the guest state says. */
  readonly injected?: boolean;
}

/** Exceptions that promote to a double fault (SDM 3A table 6-4). */
const Class = { BENIGN: 0, CONTRIBUTORY: 1, PAGE_FAULT: 2, DOUBLE_FAULT: 3 } as const;

function classOf(event: DeliveredEvent): number {
  if (event.type !== EventType.EXCEPTION) return Class.BENIGN;
  switch (event.vector) {
    case Vector.DE:
    case Vector.TS:
    case Vector.NP:
    case Vector.SS:
    case Vector.GP:
    case Vector.CP:
      return Class.CONTRIBUTORY;
    case Vector.PF:
    case Vector.VE:
      return Class.PAGE_FAULT;
    case Vector.DF:
      return Class.DOUBLE_FAULT;
    default:
      return Class.BENIGN;
  }
}

/** Fault-class exceptions push RF set, but for #DB (SDM 3B 17.3.1.1). */
const FAULTS: ReadonlySet<number> = new Set<number>([
  Vector.DE,
  Vector.BR,
  Vector.UD,
  Vector.NM,
  Vector.TS,
  Vector.NP,
  Vector.SS,
  Vector.GP,
  Vector.PF,
  Vector.MF,
  Vector.AC,
  Vector.XM,
  Vector.VE,
  Vector.CP,
]);

const NAMES = Object.fromEntries(Object.entries(Vector).map(([name, vector]) => [vector, `#${name}`]));
const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

/** One link of the chain that a triple fault ends, in words. */
function describe(cpu: Cpu, event: PendingEvent): string {
  const { state } = cpu;
  const what =
    event.type === EventType.EXCEPTION
      ? (NAMES[event.vector] ?? `exception ${event.vector}`)
      : event.type === EventType.EXTERNAL
        ? `interrupt ${hex(event.vector)}`
        : event.type === EventType.NMI
          ? "NMI"
          : `INT ${hex(event.vector)}`;
  const error = event.error === undefined ? "" : ` error code ${hex(event.error)}`;
  const cr2 = event.vector === Vector.PF && event.extra !== undefined ? ` at ${hex(event.extra)}` : "";
  return `${what}${error}${cr2} (CS:RIP ${hex(state.segSelector(Seg.CS))}:${hex(state.rip)})`;
}

const causes = new WeakMap<Cpu, string>();

/** What led to the last triple fault of this processor: exceptions in order, with error codes and addresses. */
export function tripleFaultCause(cpu: Cpu): string {
  return causes.get(cpu) ?? "no triple fault has happened";
}

/** An exception found by the run loop or by a system instruction; RIP is at the instruction. */
export function deliverFault(cpu: Cpu, fault: CpuFault): void {
  deliver(cpu, exceptionOf(fault));
}

/** An event that VM entry injects (SDM 3C 27.6). */
export function deliverInjected(cpu: Cpu, event: DeliveredEvent): void {
  deliver(cpu, { ...event, injected: true });
}

/** INT n, INT3, INTO, INT1: delivered from inside their handlers; RIP is at the instruction. */
export function deliverSoftware(cpu: Cpu, vector: number, type: number, instructionLength: number): void {
  deliver(cpu, { vector, type, instructionLength });
}

function exceptionOf(fault: CpuFault): PendingEvent {
  return {
    vector: fault.vector,
    type: EventType.EXCEPTION,
    error: fault.error,
    instructionLength: 0,
    extra: fault.extra,
  };
}

/** Exceptions whose error code is a selector, with the EXT bit at its bottom. */
const SELECTOR_ERRORS: ReadonlySet<number> = new Set<number>([Vector.TS, Vector.NP, Vector.SS, Vector.GP]);

/** A fault met while delivering `event`: EXT tells that the program is not to blame (SDM 3A 6.13). */
function nested(event: PendingEvent, fault: CpuFault): PendingEvent {
  const result = exceptionOf(fault);
  const external = !isSoftware(event.type);
  if (!external || fault.error === undefined || !SELECTOR_ERRORS.has(fault.vector)) return result;
  return { ...result, error: fault.error | 1 };
}

function deliver(cpu: Cpu, first: PendingEvent): void {
  const chain = [describe(cpu, first)];
  let event = first;
  for (;;) {
    intercept(cpu, event);
    trace(cpu, event);
    applySideRegisters(cpu, event);
    cpu.guest?.setVectoring(event);
    try {
      const resume = event.type === EventType.EXCEPTION && !event.injected && FAULTS.has(event.vector);
      deliverThroughIdt(cpu, event, resume);
    } catch (fault) {
      if (!(fault instanceof CpuFault)) throw fault;
      const second = nested(event, fault);
      chain.push(describe(cpu, second));
      const before = classOf(event);
      const after = classOf(second);
      const promotes =
        (before === Class.CONTRIBUTORY && after === Class.CONTRIBUTORY) ||
        (before === Class.PAGE_FAULT && (after === Class.CONTRIBUTORY || after === Class.PAGE_FAULT));
      if (before === Class.DOUBLE_FAULT && after !== Class.BENIGN) {
        intercept(cpu, second);
        shutDown(cpu, chain);
        return;
      }
      if (promotes) {
        // The second exception may exit by itself; else it turns into a double fault, which may exit too.
        intercept(cpu, second);
        applySideRegisters(cpu, second);
        event = { vector: Vector.DF, type: EventType.EXCEPTION, error: 0, instructionLength: 0 };
        chain.push(describe(cpu, event));
      } else event = second;
      continue;
    }
    cpu.guest?.setVectoring(null);
    const { state } = cpu;
    state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~(Inhibit.STI | Inhibit.MOV_SS));
    state.activity = Activity.ACTIVE;
    return;
  }
}

function intercept(cpu: Cpu, event: PendingEvent): void {
  if (!cpu.guest || event.injected) return;
  const exception = event.type === EventType.EXCEPTION;
  const software =
    event.type === EventType.SOFTWARE_EXCEPTION || event.type === EventType.PRIVILEGED_SOFTWARE_EXCEPTION;
  if (!exception && !software) return;
  cpu.guest.interceptException(event.vector, event.error, event.extra ?? 0n, software, event.instructionLength);
}

/** CR2 and DR6 are loaded before delivery begins; DR7.GD is cleared on the way to the #DB handler (SDM 3B 17.2.4). */
function applySideRegisters(cpu: Cpu, event: PendingEvent): void {
  if (event.extra === undefined || event.type !== EventType.EXCEPTION) return;
  const { state } = cpu;
  if (event.vector === Vector.PF) state.setU64(Off.CR2, event.extra);
  else if (event.vector === Vector.DB) {
    state.setLo(Off.DR6, (state.lo(Off.DR6) & ~0xf) | Number(event.extra & 0xffff_ffffn));
    state.setLo(Off.DR7, state.lo(Off.DR7) & ~Dr7.GD);
  }
}

function trace(cpu: Cpu, event: PendingEvent): void {
  if (!(cpu.trace.armed & TraceKind.Vector)) return;
  const type =
    event.type === EventType.EXCEPTION
      ? "exception"
      : event.type === EventType.EXTERNAL
        ? "interrupt"
        : event.type === EventType.NMI
          ? "nmi"
          : "software";
  cpu.trace.hit({
    kind: TraceKind.Vector,
    vcpu: cpu.id,
    text: describe(cpu, event),
    detail: {
      vector: event.vector,
      type,
      ...(event.error === undefined ? {} : { error: event.error }),
      ...(event.vector === Vector.PF && event.extra !== undefined ? { address: event.extra } : {}),
    },
  });
}

function shutDown(cpu: Cpu, chain: readonly string[]): void {
  const cause = `triple fault: ${chain.join(", then ")}`;
  causes.set(cpu, cause);
  cpu.guest?.interceptTripleFault();
  cpu.state.activity = Activity.SHUTDOWN;
  if (cpu.trace.armed & TraceKind.TripleFault) {
    cpu.trace.hit({ kind: TraceKind.TripleFault, vcpu: cpu.id, text: cause, detail: { cause } });
  }
}

function clearPending(cpu: Cpu, bits: number): void {
  cpu.state.setU32(Off.PENDING, cpu.state.u32(Off.PENDING) & ~bits);
}

/**
 * Everything that waits for an instruction boundary, in the order of SDM 3A table 6-2. Afterwards the processor is
 * where it goes on: in a handler, halted, or where it was.
 * @throws VmExitTaken
 */
export function serviceEvents(cpu: Cpu): void {
  const { state } = cpu;
  // Each event that is delivered makes a new boundary, at the first instruction of its handler.
  for (;;) {
    cpu.guest?.boundary();
    if (externalIntervention(cpu)) continue;
    if (state.activity === Activity.WAIT_FOR_SIPI || state.activity === Activity.SHUTDOWN) return;
    const pending = state.u32(Off.PENDING);
    const inhibit = state.u32(Off.INHIBIT);
    if (pending & Pending.DEBUG && !(inhibit & Inhibit.MOV_SS)) {
      const bits = state.u64(Off.PENDING_DEBUG);
      state.setU64(Off.PENDING_DEBUG, 0n);
      clearPending(cpu, Pending.DEBUG);
      deliver(cpu, { vector: Vector.DB, type: EventType.EXCEPTION, instructionLength: 0, extra: bits });
      continue;
    }
    if (pending & Pending.NMI && !(inhibit & (Inhibit.NMI | Inhibit.MOV_SS))) {
      cpu.guest?.interceptNmi();
      clearPending(cpu, Pending.NMI);
      state.setU32(Off.INHIBIT, inhibit | Inhibit.NMI);
      deliver(cpu, { vector: Vector.NMI, type: EventType.NMI, instructionLength: 0 });
      continue;
    }
    if (!externalInterrupt(cpu)) return;
  }
}

/** SMI, INIT, SIPI. @returns true when one was taken */
function externalIntervention(cpu: Cpu): boolean {
  const { state } = cpu;
  const pending = state.u32(Off.PENDING);
  if (pending & Pending.SMI) {
    cpu.guest?.interceptSmi();
    // There is no system-management mode here: nobody has loaded a handler.
    clearPending(cpu, Pending.SMI);
    return true;
  }
  if (pending & Pending.INIT && state.activity !== Activity.WAIT_FOR_SIPI) {
    cpu.guest?.interceptInit();
    // INIT is blocked in VMX root operation (SDM 3C 24.8).
    if (!cpu.vmx.on) {
      clearPending(cpu, Pending.INIT);
      cpu.reset("init");
      return true;
    }
  } else if (pending & Pending.INIT) clearPending(cpu, Pending.INIT);
  if (pending & Pending.SIPI) {
    const vector = (pending >> Pending.SIPI_VECTOR_SHIFT) & 0xff;
    clearPending(cpu, Pending.SIPI | (0xff << Pending.SIPI_VECTOR_SHIFT));
    if (state.activity !== Activity.WAIT_FOR_SIPI) return false;
    cpu.guest?.interceptSipi(vector);
    startUp(cpu, vector);
    return true;
  }
  return false;
}

/** Start-up IPI: real-address mode at vector * 4096 (SDM 3A 9.4.3). */
function startUp(cpu: Cpu, vector: number): void {
  const { state } = cpu;
  state.setSegment(Seg.CS, vector << 8, BigInt(vector << 12), 0xffff, state.segAttributes(Seg.CS));
  state.rip = 0n;
  state.activity = Activity.ACTIVE;
  cpu.contextChanged();
}

/** @returns true when an interrupt was delivered */
function externalInterrupt(cpu: Cpu): boolean {
  const { state } = cpu;
  const { guest } = cpu;
  const open = guest?.ignoresIf || (state.lo(Off.FLAGS_REST) & Rflags.IF) !== 0;
  if (!open || state.u32(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS)) return false;
  if (cpu.interrupts.pending() < 0) return false;
  if (guest && !guest.interceptExternalInterrupt()) return false;
  const vector = cpu.interrupts.acknowledge();
  if (vector < 0) return false;
  deliver(cpu, { vector, type: EventType.EXTERNAL, instructionLength: 0 });
  return true;
}
