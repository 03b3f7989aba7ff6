/**
 * Delivery of one event through the IDT (SDM 3A chapter 6; instruction page of INT n): real-address mode, protected mode
 * with stack switch, from virtual-8086 mode, through task gates, and IA-32e mode with the interrupt stack table.
 *
 * Registers change only after the last access that can fault, so that a fault in the middle leaves the interrupted
 * program as it was (a task switch is the exception: see task-switch.ts).
 */
import { type Cpu, CpuFault, Vector } from "../cpu";
import { CodeMode, CpuState, Gpr, Off, Rflags, Seg, SegAttr, SegPart } from "../state";
import { Cr0, Efer } from "./bits";
import { isCanonical, MASK16, MASK32, MASK64, StackWriter, stackMask } from "./operands";
import {
  checkStackSegment,
  type Descriptor,
  errorCode,
  isCodeSegment,
  isConforming,
  isNull,
  markAccessed,
  readDescriptor,
  SystemType,
} from "./segmentation";
import { switchTask, TaskSwitchSource } from "./task-switch";

/** Kinds of events, numbered as in VMX interruption information (SDM 3C table 25-17). */
export const EventType = {
  EXTERNAL: 0,
  NMI: 2,
  EXCEPTION: 3,
  SOFTWARE_INTERRUPT: 4,
  /** INT1. */
  PRIVILEGED_SOFTWARE_EXCEPTION: 5,
  /** INT3, INTO. */
  SOFTWARE_EXCEPTION: 6,
} as const;

export interface DeliveredEvent {
  readonly vector: number;
  readonly type: number;
  readonly error?: number;
  /** Bytes of the instruction behind a software interrupt or exception, whose end is the return address; else 0. */
  readonly instructionLength: number;
}

/** INT n, INT3, INTO: the gate's DPL counts, and faults on the way do not carry EXT. */
export const isSoftware = (type: number): boolean =>
  type === EventType.SOFTWARE_INTERRUPT || type === EventType.SOFTWARE_EXCEPTION;

/**
 * Delivers through the IDT of the current mode.
 * @param resume RF is set in the pushed flags (fault-class exceptions, SDM 3B 17.3.1.1)
 * @throws CpuFault for faults on the way, EXT bit not yet set; VmExitTaken
 */
export function deliverThroughIdt(cpu: Cpu, event: DeliveredEvent, resume: boolean): void {
  const { state } = cpu;
  if ((state.lo(Off.CR0) & Cr0.PE) === 0) deliverReal(cpu, event);
  else if (state.lo(Off.EFER) & Efer.LMA) deliverLong(cpu, event, resume);
  else deliverProtected(cpu, event, resume);
}

/** Return address: behind the instruction for software events. */
const returnAddress = (cpu: Cpu, event: DeliveredEvent): bigint => cpu.state.rip + BigInt(event.instructionLength);

/** Real-address mode (SDM 3B 20.1.4); `deliverReal` also serves INT n of virtual-8086 mode redirected by VME. */
function deliverReal(cpu: Cpu, event: DeliveredEvent): void {
  const { state } = cpu;
  const at = event.vector * 4;
  if (at + 3 > (state.u32(Off.IDTR_LIMIT) & 0xffff)) throw new CpuFault(Vector.GP, event.vector * 8 + 2);
  const target = cpu.mmu.read((state.u64(Off.IDTR_BASE) + BigInt(at)) & MASK32, 4, true);
  deliverToVector(cpu, event, target, state.rflags);
}

/** Pushes FLAGS, CS, IP and jumps to a real-mode far pointer. */
export function deliverToVector(cpu: Cpu, event: DeliveredEvent, target: bigint, image: number): void {
  const { state } = cpu;
  const stack = StackWriter.current(cpu);
  stack.push(2, BigInt(image & 0xffff));
  stack.push(2, BigInt(state.segSelector(Seg.CS)));
  stack.push(2, returnAddress(cpu, event) & MASK16);
  stack.commit();
  const selector = Number(target >> 16n);
  const cs = CpuState.segOffset(Seg.CS);
  state.setU32(cs + SegPart.SELECTOR, selector);
  state.setU64(cs + SegPart.BASE, BigInt(selector << 4));
  state.rip = target & MASK16;
  if (state.codeMode !== CodeMode.VM86) {
    state.rflags = state.rflags & ~(Rflags.IF | Rflags.TF | Rflags.RF | Rflags.AC);
  }
  cpu.contextChanged();
}

/** Error code of faults about the gate itself: IDT bit set. */
const gateError = (vector: number): number => vector * 8 + 2;

interface Gate {
  readonly type: number;
  readonly selector: number;
  readonly offset: bigint;
  readonly ist: number;
}

/** Reads and checks an IDT gate (8 bytes, 16 in IA-32e mode). */
function readGate(cpu: Cpu, event: DeliveredEvent, long: boolean): Gate {
  const { state } = cpu;
  const size = long ? 16 : 8;
  const error = gateError(event.vector);
  const at = event.vector * size;
  if (at + size - 1 > (state.u32(Off.IDTR_LIMIT) & 0xffff)) throw new CpuFault(Vector.GP, error);
  const mask = long ? MASK64 : MASK32;
  const address = (state.u64(Off.IDTR_BASE) + BigInt(at)) & mask;
  const raw = cpu.mmu.read(address, 8, true);
  const lo = Number(raw & MASK32);
  const hi = Number(raw >> 32n);
  const upper = long ? cpu.mmu.read((address + 8n) & mask, 8, true) : 0n;
  const type = (hi >>> 8) & 0x1f;
  const known =
    type === SystemType.INTERRUPT_GATE ||
    type === SystemType.TRAP_GATE ||
    (!long &&
      (type === SystemType.TASK_GATE || type === SystemType.INTERRUPT_GATE16 || type === SystemType.TRAP_GATE16));
  if (!known) throw new CpuFault(Vector.GP, error);
  if (isSoftware(event.type) && ((hi >>> 13) & 3) < state.cpl) throw new CpuFault(Vector.GP, error);
  if ((hi & 0x8000) === 0) throw new CpuFault(Vector.NP, error);
  const wide = type >= 8;
  const low = (lo & 0xffff) | (wide ? hi & 0xffff_0000 : 0);
  return {
    type,
    selector: lo >>> 16,
    offset: BigInt(low >>> 0) | ((upper & MASK32) << 32n),
    ist: long ? hi & 7 : 0,
  };
}

/** Code segment of a gate: must be code, of at most CPL's number. */
function gateCode(cpu: Cpu, selector: number): Descriptor {
  if (isNull(selector)) throw new CpuFault(Vector.GP, 0);
  const code = readDescriptor(cpu, selector);
  if (!isCodeSegment(code) || code.dpl > cpu.state.cpl) throw new CpuFault(Vector.GP, errorCode(selector));
  if (!code.present) throw new CpuFault(Vector.NP, errorCode(selector));
  return code;
}

/** Stack that the TSS names for a privilege level, 16- or 32-bit TSS (SDM 3A 8.2.1, 5.8.5). */
export function innerStack(cpu: Cpu, dpl: number): { descriptor: Descriptor; pointer: bigint } {
  const { state } = cpu;
  const attributes = state.segAttributes(Seg.TR);
  const wide = (attributes & 8) !== 0;
  const at = wide ? 4 + dpl * 8 : 2 + dpl * 4;
  const last = at + (wide ? 5 : 3);
  if (last > state.segLimit(Seg.TR)) throw new CpuFault(Vector.TS, errorCode(state.segSelector(Seg.TR)));
  const base = (state.segBase(Seg.TR) + BigInt(at)) & MASK32;
  const pointer = cpu.mmu.read(base, wide ? 4 : 2, true);
  const selector = Number(cpu.mmu.read((base + (wide ? 4n : 2n)) & MASK32, 2, true));
  if (isNull(selector)) throw new CpuFault(Vector.TS, 0);
  const descriptor = readDescriptor(cpu, selector, Vector.TS);
  checkStackSegment(descriptor, dpl, Vector.TS);
  return { descriptor, pointer };
}

/** RSP that a 64-bit TSS holds: RSP0..2 by privilege level, or an IST entry 1..7 (SDM 3A 8.7). */
export function longStackPointer(cpu: Cpu, dpl: number, ist: number): bigint {
  const { state } = cpu;
  const at = ist > 0 ? 0x24 + (ist - 1) * 8 : 4 + dpl * 8;
  if (at + 7 > state.segLimit(Seg.TR)) throw new CpuFault(Vector.TS, errorCode(state.segSelector(Seg.TR)));
  const pointer = cpu.mmu.read((state.segBase(Seg.TR) + BigInt(at)) & MASK64, 8, true);
  if (!isCanonical(cpu, pointer)) throw new CpuFault(Vector.SS, 0);
  return pointer;
}

/** A writer on the stack segment a privilege change is about to load. */
export function innerStackWriter(cpu: Cpu, descriptor: Descriptor, pointer: bigint): StackWriter {
  const mask = descriptor.attributes & SegAttr.DB ? MASK32 : MASK16;
  return new StackWriter(
    cpu,
    pointer,
    mask,
    descriptor.base,
    descriptor.limit,
    descriptor.attributes,
    false,
    errorCode(descriptor.selector),
    true,
  );
}

/** RFLAGS to push, and the flags the handler starts with. */
function flagImages(cpu: Cpu, trap: boolean, resume: boolean): { pushed: number; entered: number } {
  const before = cpu.state.rflags;
  let cleared: number = Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM;
  if (!trap) cleared |= Rflags.IF;
  return { pushed: resume ? before | Rflags.RF : before, entered: before & ~cleared };
}

/** Loads CS for a handler; RPL of the selector shows the new CPL. */
function enterCode(cpu: Cpu, code: Descriptor, cpl: number, rip: bigint): void {
  const { state } = cpu;
  const attributes = markAccessed(cpu, code);
  state.setSegment(Seg.CS, (code.selector & ~3) | cpl, code.base, code.limit, attributes);
  state.setU32(Off.CPL, cpl);
  state.rip = rip;
}

function deliverProtected(cpu: Cpu, event: DeliveredEvent, resume: boolean): void {
  const { state } = cpu;
  const gate = readGate(cpu, event, false);
  if (gate.type === SystemType.TASK_GATE) {
    switchTask(cpu, gate.selector, TaskSwitchSource.GATE, event.instructionLength, event.error, resume);
    return;
  }
  const vm86 = state.codeMode === CodeMode.VM86;
  const code = gateCode(cpu, gate.selector);
  const size = gate.type >= 8 ? 4 : 2;
  const trap = (gate.type & 1) !== 0;
  const { pushed, entered } = flagImages(cpu, trap, resume);
  const oldCs = BigInt(state.segSelector(Seg.CS));
  const oldRip = returnAddress(cpu, event) & MASK32;

  if (!isConforming(code) && code.dpl < state.cpl) {
    if (vm86 && code.dpl !== 0) throw new CpuFault(Vector.GP, errorCode(gate.selector));
    const { descriptor, pointer } = innerStack(cpu, code.dpl);
    const stack = innerStackWriter(cpu, descriptor, pointer);
    if (vm86) {
      for (const seg of [Seg.GS, Seg.FS, Seg.DS, Seg.ES]) stack.push(size, BigInt(state.segSelector(seg)));
    }
    stack.push(size, BigInt(state.segSelector(Seg.SS)));
    stack.push(size, state.gpr(Gpr.RSP) & MASK32);
    stack.push(size, BigInt(pushed >>> 0));
    stack.push(size, oldCs);
    stack.push(size, oldRip);
    if (event.error !== undefined) stack.push(size, BigInt(event.error));
    if (gate.offset > BigInt(code.limit)) throw new CpuFault(Vector.GP, 0);
    const ssAttributes = markAccessed(cpu, descriptor);
    const rsp = stack.pointer;
    enterCode(cpu, code, code.dpl, gate.offset);
    state.setSegment(Seg.SS, descriptor.selector, descriptor.base, descriptor.limit, ssAttributes);
    const wide = (descriptor.attributes & SegAttr.DB) !== 0;
    const old = state.gpr(Gpr.RSP) & MASK32;
    state.setGpr(Gpr.RSP, wide ? rsp : (old & ~MASK16) | rsp);
    if (vm86) {
      for (const seg of [Seg.GS, Seg.FS, Seg.DS, Seg.ES]) state.setSegment(seg, 0, 0n, 0, SegAttr.UNUSABLE);
    }
  } else {
    if (vm86) throw new CpuFault(Vector.GP, errorCode(gate.selector));
    const stack = StackWriter.current(cpu);
    stack.push(size, BigInt(pushed >>> 0));
    stack.push(size, oldCs);
    stack.push(size, oldRip);
    if (event.error !== undefined) stack.push(size, BigInt(event.error));
    if (gate.offset > BigInt(code.limit)) throw new CpuFault(Vector.GP, 0);
    enterCode(cpu, code, state.cpl, gate.offset);
    stack.commit();
  }
  state.rflags = entered;
  cpu.contextChanged();
}

/** IA-32e mode: 64-bit handlers only, a 16-byte aligned frame that always holds SS:RSP (SDM 3A 6.14). */
function deliverLong(cpu: Cpu, event: DeliveredEvent, resume: boolean): void {
  const { state } = cpu;
  const gate = readGate(cpu, event, true);
  const code = gateCode(cpu, gate.selector);
  if ((code.attributes & (SegAttr.L | SegAttr.DB)) !== SegAttr.L) {
    throw new CpuFault(Vector.GP, errorCode(gate.selector));
  }
  const trap = (gate.type & 1) !== 0;
  const { pushed, entered } = flagImages(cpu, trap, resume);
  const inner = !isConforming(code) && code.dpl < state.cpl;
  const cpl = inner ? code.dpl : state.cpl;
  const oldRsp = state.codeMode === CodeMode.LONG64 ? state.gpr(Gpr.RSP) : state.gpr(Gpr.RSP) & MASK32;
  const from = inner || gate.ist > 0 ? longStackPointer(cpu, cpl, gate.ist) : oldRsp & stackMaskOf(cpu);
  const stack = new StackWriter(cpu, from & ~15n, MASK64, 0n, 0, 0, true, 0, state.cpl === 3 && cpl < 3);
  stack.push(8, BigInt(state.segSelector(Seg.SS)));
  stack.push(8, oldRsp);
  stack.push(8, BigInt(pushed >>> 0));
  stack.push(8, BigInt(state.segSelector(Seg.CS)));
  stack.push(8, returnAddress(cpu, event) & (state.codeMode === CodeMode.LONG64 ? MASK64 : MASK32));
  if (event.error !== undefined) stack.push(8, BigInt(event.error));
  if (!isCanonical(cpu, gate.offset)) throw new CpuFault(Vector.GP, 0);
  enterCode(cpu, code, cpl, gate.offset);
  if (inner) state.setSegment(Seg.SS, cpl, 0n, 0, SegAttr.UNUSABLE | (cpl << SegAttr.DPL_SHIFT));
  state.setGpr(Gpr.RSP, stack.pointer);
  state.rflags = entered;
  cpu.contextChanged();
}

/** The old stack pointer of compatibility mode has the width of its SS. */
const stackMaskOf = (cpu: Cpu): bigint => (cpu.state.codeMode === CodeMode.LONG64 ? MASK64 : stackMask(cpu));
