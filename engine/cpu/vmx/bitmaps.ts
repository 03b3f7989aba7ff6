/** The I/O bitmaps and MSR bitmaps (SDM 3C 25.6.4, 25.6.9). */
import type { PhysicalMemory } from "../../memory/physical";
import { CpuBased } from "./controls";
import { Field } from "./fields";
import { type Vmcs, word } from "./vmcs";

const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const IO_BITMAP_A = word(Field.IO_BITMAP_A);
const IO_BITMAP_B = word(Field.IO_BITMAP_B);
const MSR_BITMAP = word(Field.MSR_BITMAP);

/** The bit at an offset of a bitmap; 1 where no memory is. */
export function bitAt(memory: PhysicalMemory, bitmap: number, bit: number): boolean {
  const at = memory.hostOffset(bitmap + (bit >> 3));
  return at < 0 || ((memory.u8[at] >> (bit & 7)) & 1) !== 0;
}

/**
 * Whether an access to a port exits (SDM 3C 26.1.3): the bits of all its bytes count when bitmaps are used, and accesses
 * that wrap around port ffff exit; without bitmaps it is all ports or none.
 */
export function ioExits(vmcs: Vmcs, memory: PhysicalMemory, port: number, size: number): boolean {
  const controls = vmcs.lo(CPU);
  if (!(controls & CpuBased.USE_IO_BITMAPS)) return (controls & CpuBased.UNCOND_IO_EXITING) !== 0;
  if (port + size > 0x1_0000) return true;
  for (let p = port; p < port + size; p++) {
    if (bitAt(memory, vmcs.address(p < 0x8000 ? IO_BITMAP_A : IO_BITMAP_B), p & 0x7fff)) return true;
  }
  return false;
}

/** Whether RDMSR or WRMSR exits: four bitmaps of 1024 bytes, read low, read high, write low, write high. */
export function msrExits(vmcs: Vmcs, memory: PhysicalMemory, index: number, write: boolean): boolean {
  if (!(vmcs.lo(CPU) & CpuBased.USE_MSR_BITMAPS)) return true;
  const high = index >= 0xc000_0000;
  const bit = high ? index - 0xc000_0000 : index;
  if (bit > 0x1fff) return true;
  return bitAt(memory, vmcs.address(MSR_BITMAP) + (write ? 2048 : 0) + (high ? 1024 : 0), bit);
}
