/**
 * Far JMP, CALL and RET in all modes: to code segments, through call gates with and without stack switch, to tasks
 * (SDM 3A 5.8; instruction pages of CALL, JMP, RET).
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { type Instruction, OperandKind } from "../isa/instruction";
import { CodeMode, CpuState, Gpr, Off, Seg, SegAttr, SegPart } from "../state";
import { innerStack, innerStackWriter, longStackPointer } from "./delivery";
import {
  gp0,
  is64BitMode,
  isCanonical,
  isLongMode,
  isRealOrVm86,
  MASK16,
  MASK32,
  MASK64,
  mergeStackPointer,
  nextRip,
  readMemoryPart,
  StackReader,
  StackWriter,
  sizeMask,
} from "./operands";
import {
  type Descriptor,
  dropInnerSegments,
  errorCode,
  isCodeSegment,
  isConforming,
  isNull,
  isWritableData,
  loadNull,
  markAccessed,
  readDescriptor,
  readUpperHalf,
  SystemType,
} from "./segmentation";
import { switchTask, TaskSwitchSource } from "./task-switch";

/** Selector and offset of a direct or indirect far pointer. */
function farPointer(cpu: Cpu, instruction: Instruction): { selector: number; offset: bigint } {
  const size = instruction.operandSize;
  const operand = instruction.operands[0];
  if (operand.kind === OperandKind.FAR) {
    const offset = BigInt(instruction.immediate >>> 0) & sizeMask(size);
    return { selector: instruction.immediate2 & 0xffff, offset };
  }
  const offset = readMemoryPart(cpu, instruction, 0, size);
  return { selector: Number(readMemoryPart(cpu, instruction, size, 2)), offset };
}

/** CS:IP of real-address and virtual-8086 mode. */
export function jumpReal(cpu: Cpu, selector: number, offset: bigint): void {
  const { state } = cpu;
  const limit = state.codeMode === CodeMode.VM86 ? 0xffff : state.segLimit(Seg.CS);
  if (offset > BigInt(limit)) throw gp0();
  const cs = CpuState.segOffset(Seg.CS);
  state.setU32(cs + SegPart.SELECTOR, selector);
  state.setU64(cs + SegPart.BASE, BigInt(selector << 4));
  state.rip = offset;
  cpu.contextChanged();
}

/** L and D together are reserved in IA-32e mode (SDM 3A 5.2.1). */
function checkLongBits(cpu: Cpu, code: Descriptor): void {
  const both = SegAttr.L | SegAttr.DB;
  if (isLongMode(cpu) && (code.attributes & both) === both) throw new CpuFault(Vector.GP, errorCode(code.selector));
}

/** Whether a code segment is 64-bit code here. */
export const is64BitCode = (cpu: Cpu, code: Descriptor): boolean =>
  isLongMode(cpu) && (code.attributes & SegAttr.L) !== 0;

/** The target lies in its segment, or is canonical in 64-bit code. */
export function checkTarget(cpu: Cpu, code: Descriptor, offset: bigint): void {
  const fine = is64BitCode(cpu, code) ? isCanonical(cpu, offset) : offset <= BigInt(code.limit);
  if (!fine) throw gp0();
}

/** Loads CS with `cpl` as RPL, and RIP. */
export function loadCode(cpu: Cpu, code: Descriptor, cpl: number, rip: bigint): void {
  const { state } = cpu;
  const attributes = markAccessed(cpu, code);
  state.setSegment(Seg.CS, (code.selector & ~3) | cpl, code.base, code.limit, attributes);
  state.rip = rip;
}

/** Checks of a direct transfer to a code segment (SDM 3A 5.8.1). */
function checkDirect(cpu: Cpu, code: Descriptor): void {
  const { cpl } = cpu.state;
  const error = errorCode(code.selector);
  checkLongBits(cpu, code);
  if (isConforming(code)) {
    if (code.dpl > cpl) throw new CpuFault(Vector.GP, error);
  } else if ((code.selector & 3) > cpl || code.dpl !== cpl) throw new CpuFault(Vector.GP, error);
  if (!code.present) throw new CpuFault(Vector.NP, error);
}

interface CallGate {
  readonly size: 2 | 4 | 8;
  readonly offset: bigint;
  readonly code: Descriptor;
  readonly parameters: number;
}

/** Privilege to use a gate or a TSS: DPL at least CPL and RPL. */
function checkGatePrivilege(cpu: Cpu, gate: Descriptor): void {
  if (gate.dpl < cpu.state.cpl || gate.dpl < (gate.selector & 3)) {
    throw new CpuFault(Vector.GP, errorCode(gate.selector));
  }
}

/** Reads a call gate and the code segment it leads to (SDM 3A 5.8.3, 5.8.3.1). */
function readCallGate(cpu: Cpu, gate: Descriptor): CallGate {
  const long = isLongMode(cpu);
  checkGatePrivilege(cpu, gate);
  if (!gate.present) throw new CpuFault(Vector.NP, errorCode(gate.selector));
  const selector = gate.lo >>> 16;
  const wide = gate.type === SystemType.CALL_GATE;
  const upper = long ? readUpperHalf(cpu, gate) : 0n;
  const low = (gate.lo & 0xffff) | (wide ? gate.hi & 0xffff_0000 : 0);
  if (isNull(selector)) throw gp0();
  const code = readDescriptor(cpu, selector);
  const error = errorCode(selector);
  if (!isCodeSegment(code) || code.dpl > cpu.state.cpl) throw new CpuFault(Vector.GP, error);
  if (long && (code.attributes & (SegAttr.L | SegAttr.DB)) !== SegAttr.L) throw new CpuFault(Vector.GP, error);
  if (!code.present) throw new CpuFault(Vector.NP, error);
  return {
    size: long ? 8 : wide ? 4 : 2,
    offset: BigInt(low >>> 0) | (upper << 32n),
    code,
    parameters: long ? 0 : gate.hi & 0x1f,
  };
}

/** The descriptor a far transfer names; gates that mode does not have are #GP. */
function targetOf(cpu: Cpu, selector: number): Descriptor {
  if (isNull(selector)) throw gp0();
  const target = readDescriptor(cpu, selector);
  if (target.type & 0x10) {
    if (!isCodeSegment(target)) throw new CpuFault(Vector.GP, errorCode(selector));
    return target;
  }
  const legacy: readonly number[] = [
    SystemType.CALL_GATE16,
    SystemType.TASK_GATE,
    SystemType.TSS16_AVAILABLE,
    SystemType.TSS_AVAILABLE,
  ];
  const known = target.type === SystemType.CALL_GATE || (!isLongMode(cpu) && legacy.includes(target.type));
  if (!known) throw new CpuFault(Vector.GP, errorCode(selector));
  return target;
}

/** JMP or CALL to a TSS or through a task gate. */
function transferToTask(cpu: Cpu, target: Descriptor, source: TaskSwitchSource, length: number): void {
  checkGatePrivilege(cpu, target);
  let selector = target.selector;
  if (target.type === SystemType.TASK_GATE) {
    if (!target.present) throw new CpuFault(Vector.NP, errorCode(target.selector));
    selector = target.lo >>> 16;
  }
  switchTask(cpu, selector, source, length);
}

const isCallGate = (d: Descriptor): boolean => d.type === SystemType.CALL_GATE || d.type === SystemType.CALL_GATE16;

const jmpFar: SystemHandler = (cpu, instruction) => {
  const { selector, offset } = farPointer(cpu, instruction);
  if (isRealOrVm86(cpu)) {
    jumpReal(cpu, selector, offset);
    return Next.JUMP_ATTENTION;
  }
  const target = targetOf(cpu, selector);
  if (target.type & 0x10) {
    checkDirect(cpu, target);
    checkTarget(cpu, target, offset);
    loadCode(cpu, target, cpu.state.cpl, offset);
  } else if (isCallGate(target)) {
    const { code, offset: entry } = readCallGate(cpu, target);
    if (!isConforming(code) && code.dpl !== cpu.state.cpl) throw new CpuFault(Vector.GP, errorCode(code.selector));
    checkTarget(cpu, code, entry);
    loadCode(cpu, code, cpu.state.cpl, entry);
  } else {
    transferToTask(cpu, target, TaskSwitchSource.JMP, instruction.length);
    return Next.JUMP_ATTENTION;
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

const callFar: SystemHandler = (cpu, instruction) => {
  const { selector, offset } = farPointer(cpu, instruction);
  const { state } = cpu;
  const size = instruction.operandSize;
  const back = nextRip(cpu, instruction);
  const cs = BigInt(state.segSelector(Seg.CS));
  if (isRealOrVm86(cpu)) {
    const stack = StackWriter.current(cpu);
    stack.push(size, cs);
    stack.push(size, back);
    jumpReal(cpu, selector, offset);
    stack.commit();
    return Next.JUMP_ATTENTION;
  }
  const target = targetOf(cpu, selector);
  if (target.type & 0x10) {
    checkDirect(cpu, target);
    const stack = StackWriter.current(cpu);
    stack.push(size, cs);
    stack.push(size, back);
    checkTarget(cpu, target, offset);
    loadCode(cpu, target, state.cpl, offset);
    stack.commit();
  } else if (isCallGate(target)) callThroughGate(cpu, readCallGate(cpu, target), cs, back);
  else {
    transferToTask(cpu, target, TaskSwitchSource.CALL, instruction.length);
    return Next.JUMP_ATTENTION;
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

function callThroughGate(cpu: Cpu, gate: CallGate, cs: bigint, back: bigint): void {
  const { state } = cpu;
  const { code, size } = gate;
  if (isConforming(code) || code.dpl === state.cpl) {
    const stack = StackWriter.current(cpu);
    stack.push(size, cs);
    stack.push(size, back);
    checkTarget(cpu, code, gate.offset);
    loadCode(cpu, code, state.cpl, gate.offset);
    stack.commit();
    return;
  }
  const cpl = code.dpl;
  const ss = BigInt(state.segSelector(Seg.SS));
  const oldRsp = state.gpr(Gpr.RSP);
  if (size === 8) {
    const stack = new StackWriter(cpu, longStackPointer(cpu, cpl, 0), MASK64, 0n, 0, 0, true, 0, state.cpl === 3);
    stack.push(8, ss);
    stack.push(8, is64BitMode(cpu) ? oldRsp : oldRsp & MASK32);
    stack.push(8, cs);
    stack.push(8, back);
    checkTarget(cpu, code, gate.offset);
    loadCode(cpu, code, cpl, gate.offset);
    state.setU32(Off.CPL, cpl);
    state.setSegment(Seg.SS, cpl, 0n, 0, SegAttr.UNUSABLE | (cpl << SegAttr.DPL_SHIFT));
    state.setGpr(Gpr.RSP, stack.pointer);
    return;
  }
  const { descriptor, pointer } = innerStack(cpu, cpl);
  const parameters: bigint[] = [];
  const reader = new StackReader(cpu);
  for (let i = 0; i < gate.parameters; i++) parameters.unshift(reader.pop(size));
  const stack = innerStackWriter(cpu, descriptor, pointer);
  stack.push(size, ss);
  stack.push(size, oldRsp & MASK32);
  for (const parameter of parameters) stack.push(size, parameter);
  stack.push(size, cs);
  stack.push(size, back);
  checkTarget(cpu, code, gate.offset);
  const attributes = markAccessed(cpu, descriptor);
  loadCode(cpu, code, cpl, gate.offset);
  state.setU32(Off.CPL, cpl);
  state.setSegment(Seg.SS, descriptor.selector, descriptor.base, descriptor.limit, attributes);
  const mask = descriptor.attributes & SegAttr.DB ? MASK32 : MASK16;
  state.setGpr(Gpr.RSP, mergeStackPointer(oldRsp, stack.pointer, mask));
}

/** Code segment that RET or IRET goes back to: RPL may not be below CPL (SDM 3A 5.8.6). */
export function readReturnCode(cpu: Cpu, selector: number): Descriptor {
  if (isNull(selector)) throw gp0();
  const code = readDescriptor(cpu, selector);
  const error = errorCode(selector);
  const rpl = selector & 3;
  if (!isCodeSegment(code) || rpl < cpu.state.cpl) throw new CpuFault(Vector.GP, error);
  checkLongBits(cpu, code);
  if (isConforming(code) ? code.dpl > rpl : code.dpl !== rpl) throw new CpuFault(Vector.GP, error);
  if (!code.present) throw new CpuFault(Vector.NP, error);
  return code;
}

/** SS of the outer level; undefined stands for a null selector, which 64-bit code below CPL 3 may have. */
export function readReturnStack(cpu: Cpu, selector: number, code: Descriptor): Descriptor | undefined {
  const rpl = code.selector & 3;
  const error = errorCode(selector);
  if (isNull(selector)) {
    if (is64BitCode(cpu, code) && rpl < 3 && (selector & 3) === rpl) return undefined;
    throw gp0();
  }
  const stack = readDescriptor(cpu, selector);
  if ((selector & 3) !== rpl || !isWritableData(stack) || stack.dpl !== rpl) throw new CpuFault(Vector.GP, error);
  if (!stack.present) throw new CpuFault(Vector.SS, error);
  return stack;
}

/** Loads CS:RIP and SS:RSP of an outer level (or, by IRET in 64-bit mode, of the same). */
export function loadReturnFrame(
  cpu: Cpu,
  code: Descriptor,
  rip: bigint,
  selector: number,
  stack: Descriptor | undefined,
  rsp: bigint,
  size: number,
): void {
  const { state } = cpu;
  const cpl = code.selector & 3;
  const attributes = stack ? markAccessed(cpu, stack) : 0;
  const before = state.cpl;
  loadCode(cpu, code, cpl, rip);
  state.setU32(Off.CPL, cpl);
  if (stack) state.setSegment(Seg.SS, selector, stack.base, stack.limit, attributes);
  else loadNull(cpu, Seg.SS, selector);
  if (is64BitCode(cpu, code)) state.setGpr(Gpr.RSP, rsp & sizeMask(size));
  else {
    const mask = stack && stack.attributes & SegAttr.DB ? MASK32 : MASK16;
    state.setGpr(Gpr.RSP, mergeStackPointer(state.gpr(Gpr.RSP), rsp & sizeMask(size), mask));
  }
  if (cpl > before) dropInnerSegments(cpu, cpl);
}

const retFar: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const size = instruction.operandSize;
  const release = instruction.operands[0].kind === OperandKind.IMMEDIATE ? instruction.immediate & 0xffff : 0;
  const reader = new StackReader(cpu);
  const rip = reader.pop(size);
  const selector = Number(reader.pop(size) & MASK16);
  if (isRealOrVm86(cpu)) {
    reader.skip(release);
    jumpReal(cpu, selector, rip);
    reader.commit();
    return Next.JUMP_ATTENTION;
  }
  const code = readReturnCode(cpu, selector);
  if ((selector & 3) === state.cpl) {
    checkTarget(cpu, code, rip);
    reader.skip(release);
    loadCode(cpu, code, state.cpl, rip);
    reader.commit();
  } else {
    reader.skip(release);
    const rsp = reader.pop(size);
    const ss = Number(reader.pop(size) & MASK16);
    const stack = readReturnStack(cpu, ss, code);
    checkTarget(cpu, code, rip);
    loadReturnFrame(cpu, code, rip, ss, stack, rsp + BigInt(release), size);
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

export const farHandlers: Readonly<Record<string, SystemHandler>> = {
  JMP_FAR: jmpFar,
  CALL_FAR: callFar,
  RET_FAR: retFar,
};
