/**
 * The FXSAVE image, which is also the legacy region of an XSAVE area (SDM 1 10.5, 13.4.1, 13.5), and how images get to memory
 * and back. The register stack lies in the CPU block by physical register; the image is relative to the top of stack.
 */
import { type Cpu, CpuFault, Vector } from "../cpu";
import type { Instruction } from "../isa/instruction";
import { CodeMode, type CpuState, Off } from "../state";
import { setControl } from "../x87/control";
import { Fsw, updateSummary } from "../x87/stack";
import { effectiveAddress } from "./operands";

/** MXCSR bits that exist (SDM 1 10.2.3), DAZ included. */
const MXCSR_MASK = 0xffff;
/** Bytes of the image. */
export const LEGACY_SIZE = 512;

/** Place of vector register `register` in the CPU block. */
export const vectorAt = (register: number): number => Off.VECTOR + register * 64;

const is64 = (cpu: Cpu): boolean => cpu.state.codeMode === CodeMode.LONG64;
const REX_W = 8;

/** XMM and YMM registers that exist in the current mode. */
export const vectorCount = (cpu: Cpu): number => (is64(cpu) ? 16 : 8);

/** Whether an image has 64-bit instruction and data pointers instead of offsets and selectors. */
export const hasWidePointers = (cpu: Cpu, instruction: Instruction): boolean =>
  is64(cpu) && (instruction.rex & REX_W) !== 0;

export function readBlock(cpu: Cpu, linear: bigint, length: number): DataView {
  const block = new DataView(new ArrayBuffer(length));
  for (let i = 0; i < length; ) {
    const from = cpu.mmu.plain(linear + BigInt(i), length - i, false);
    if (from >= 0) {
      new Uint8Array(block.buffer).set(cpu.state.u8.subarray(from, from + length - i), i);
      break;
    }
    block.setBigUint64(i, cpu.mmu.read(linear + BigInt(i), 8), true);
    i += 8;
  }
  return block;
}

/** From and to, in bytes from the start of an image; multiples of 8. */
export type Range = readonly [from: number, to: number];

/** Writes ranges of an image, after checking that all of it may be written. */
export function writeBlock(cpu: Cpu, linear: bigint, image: DataView, ranges: readonly Range[]): void {
  for (const [from, to] of ranges) {
    if (cpu.mmu.plain(linear + BigInt(from), to - from, true) >= 0) continue;
    cpu.mmu.checkWrite(linear + BigInt(from), 1);
    cpu.mmu.checkWrite(linear + BigInt(to - 1), 1);
  }
  for (const [from, to] of ranges) {
    for (let i = from; i < to; ) {
      const at = cpu.mmu.plain(linear + BigInt(i), to - i, true);
      if (at >= 0) {
        cpu.state.u8.set(new Uint8Array(image.buffer, i, to - i), at);
        break;
      }
      cpu.mmu.write(linear + BigInt(i), 8, image.getBigUint64(i, true));
      i += 8;
    }
  }
}

/** Linear address of the memory operand. @throws CpuFault #GP(0) when it is not aligned */
export function aligned(cpu: Cpu, instruction: Instruction, size: number, alignment: bigint): bigint {
  const linear = effectiveAddress(cpu, instruction, size);
  if (linear % alignment !== 0n) throw new CpuFault(Vector.GP, 0);
  return linear;
}

/** Copies 16 bytes of the CPU block to an image. */
export function copyOut(state: CpuState, offset: number, image: DataView, at: number): void {
  for (let i = 0; i < 16; i += 4) image.setInt32(at + i, state.i32[(state.base + offset + i) >> 2], true);
}

/** Copies 16 bytes of an image to the CPU block, or zeroes them there. */
export function copyIn(state: CpuState, offset: number, image: DataView | null, at: number): void {
  for (let i = 0; i < 16; i += 4) state.i32[(state.base + offset + i) >> 2] = image ? image.getInt32(at + i, true) : 0;
}

/** x87 part of an FXSAVE or XSAVE image that is all zeros so far (SDM 1 table 10-2, 13.5.1). */
export function storeX87(cpu: Cpu, image: DataView, wide: boolean): void {
  const { view, base, u8 } = cpu.state;
  image.setUint16(0, view.getUint16(base + Off.FCW, true), true);
  const status = view.getUint16(base + Off.FSW, true);
  image.setUint16(2, status, true);
  image.setUint8(4, view.getUint16(base + Off.FTW, true) & 0xff);
  const top = (status >> Fsw.TOP_SHIFT) & 7;
  for (let i = 0; i < 8; i++) {
    const from = base + Off.X87 + ((top + i) & 7) * 16;
    for (let b = 0; b < 10; b++) image.setUint8(32 + i * 16 + b, u8[from + b]);
  }
  // AMD processors store opcode and pointers as zeros unless an unmasked exception is pending (APM 2 11.4.4.3).
  if (cpu.model.vendor === "AuthenticAMD" && (status & Fsw.ES) === 0) return;
  image.setUint16(6, view.getUint16(base + Off.FOP, true), true);
  if (wide) {
    image.setBigUint64(8, cpu.state.u64(Off.FIP), true);
    image.setBigUint64(16, cpu.state.u64(Off.FDP), true);
  } else {
    image.setUint32(8, cpu.state.u32(Off.FIP), true);
    image.setUint32(12, view.getUint16(base + Off.FCS, true), true);
    image.setUint32(16, cpu.state.u32(Off.FDP), true);
    image.setUint32(20, view.getUint16(base + Off.FDS, true), true);
  }
}

export function loadX87(cpu: Cpu, image: DataView, wide: boolean): void {
  const { view, base, u8 } = cpu.state;
  setControl(cpu.state, image.getUint16(0, true));
  const status = image.getUint16(2, true);
  view.setUint16(base + Off.FSW, status, true);
  view.setUint16(base + Off.FTW, image.getUint8(4), true);
  view.setUint16(base + Off.FOP, image.getUint16(6, true) & 0x7ff, true);
  if (wide) {
    cpu.state.setU64(Off.FIP, image.getBigUint64(8, true));
    cpu.state.setU64(Off.FDP, image.getBigUint64(16, true));
    view.setUint16(base + Off.FCS, 0, true);
    view.setUint16(base + Off.FDS, 0, true);
  } else {
    cpu.state.setU64(Off.FIP, BigInt(image.getUint32(8, true)));
    view.setUint16(base + Off.FCS, image.getUint16(12, true), true);
    cpu.state.setU64(Off.FDP, BigInt(image.getUint32(16, true)));
    view.setUint16(base + Off.FDS, image.getUint16(20, true), true);
  }
  const top = (status >> Fsw.TOP_SHIFT) & 7;
  for (let i = 0; i < 8; i++) {
    const to = base + Off.X87 + ((top + i) & 7) * 16;
    for (let b = 0; b < 10; b++) u8[to + b] = image.getUint8(32 + i * 16 + b);
  }
  updateSummary(cpu.state);
}

export function storeMxcsr(cpu: Cpu, image: DataView): void {
  image.setUint32(24, cpu.state.u32(Off.MXCSR), true);
  image.setUint32(28, MXCSR_MASK, true);
}

export function storeXmm(cpu: Cpu, image: DataView): void {
  for (let i = 0; i < vectorCount(cpu); i++) {
    copyOut(cpu.state, vectorAt(i), image, 160 + i * 16);
  }
}

/** Loads the XMM registers from an image, or zeroes them. */
export function loadXmm(cpu: Cpu, image: DataView | null): void {
  for (let i = 0; i < vectorCount(cpu); i++) {
    copyIn(cpu.state, vectorAt(i), image, 160 + i * 16);
  }
}

/** @throws CpuFault #GP(0) for reserved bits */
export function checkMxcsr(value: number): void {
  if (value & ~MXCSR_MASK) throw new CpuFault(Vector.GP, 0);
}
