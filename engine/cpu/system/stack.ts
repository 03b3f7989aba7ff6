/** The stack as system instructions use it: width of the stack pointer, PUSH and POP (SDM 1 6.2). */
import type { Cpu } from "../cpu";
import { CodeMode, CpuState, Gpr, Off, Seg, SegAttr, SegPart } from "../state";
import { segmentLinear, truncate, writeGpr } from "./operands";

/** Bytes of the stack pointer in use: 8 in 64-bit mode, else 4 or 2 by SS.B (SDM 1 6.2.3). */
function stackAddressSize(cpu: Cpu): 2 | 4 | 8 {
  if (cpu.state.codeMode === CodeMode.LONG64) return 8;
  return cpu.state.u32(CpuState.segOffset(Seg.SS) + SegPart.ATTRIBUTES) & SegAttr.DB ? 4 : 2;
}

/** The stack pointer in its width. */
export function stackPointer(cpu: Cpu): bigint {
  return truncate(cpu.state.u64(Off.GPR + Gpr.RSP * 8), stackAddressSize(cpu));
}

export function setStackPointer(cpu: Cpu, value: bigint): void {
  writeGpr(cpu, Gpr.RSP, stackAddressSize(cpu), value);
}

/** Pushes `size` bytes. Nothing has changed when it faults. @throws CpuFault, VmExitTaken */
export function push(cpu: Cpu, size: number, value: bigint): void {
  const pointer = truncate(stackPointer(cpu) - BigInt(size), stackAddressSize(cpu));
  cpu.mmu.write(segmentLinear(cpu, Seg.SS, pointer, size, true), size, truncate(value, size));
  setStackPointer(cpu, pointer);
}

/** The `size` bytes at `depth` bytes above the top of stack, which stays where it is. @throws CpuFault, VmExitTaken */
export function peek(cpu: Cpu, size: number, depth = 0): bigint {
  const pointer = truncate(stackPointer(cpu) + BigInt(depth), stackAddressSize(cpu));
  return cpu.mmu.read(segmentLinear(cpu, Seg.SS, pointer, size, false), size);
}

/** Pops `size` bytes. @throws CpuFault, VmExitTaken */
export function pop(cpu: Cpu, size: number): bigint {
  const value = peek(cpu, size);
  setStackPointer(cpu, stackPointer(cpu) + BigInt(size));
  return value;
}
