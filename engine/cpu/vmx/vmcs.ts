/**
 * The VMCS region in physical memory (SDM 3C 25.2), in this processor's own format:
 *
 *   +0   u32 revision identifier (bit 31: shadow VMCS)
 *   +4   u32 VMX-abort indicator
 *   +8   u32 launch state: 0 clear, 1 launched
 *   +64  one 8-byte slot a field, in table order (fields.ts)
 *
 * Fields are addressed by word: index into the region's 32-bit words. Low halves are at `word`, high halves one on.
 */
import type { PhysicalMemory } from "../../memory/physical";
import { CpuBased } from "./controls";
import { FIELD_OFFSETS, Field, offsetOf } from "./fields";

/** Reported in IA32_VMX_BASIC and expected in the first word of VMXON and VMCS regions. */
export const VMCS_REVISION = 0x0048_5301;
/** Bit 31 of the revision word: a shadow VMCS, which cannot be entered (SDM 3C 25.2). */
export const SHADOW_VMCS = 0x8000_0000;
/** Bytes of a VMCS region. */
export const VMCS_SIZE = 4096;

/** Words of the region's header. */
export const RevisionWord = 0;
export const AbortWord = 1;
export const LaunchWord = 2;

/** Word of a field's slot. */
export const word = (field: Field): number => offsetOf(field) >> 2;

/** A VMCS region that lies in RAM. */
export class Vmcs {
  readonly i32: Int32Array;
  private readonly view: DataView;
  /** Index of the region's first word in `i32`; -1 when there is no current VMCS. */
  at = -1;

  constructor(memory: PhysicalMemory) {
    this.i32 = memory.i32;
    this.view = memory.view;
  }

  /** Low half of a field by word, signed. */
  lo(w: number): number {
    return this.i32[this.at + w];
  }
  hi(w: number): number {
    return this.i32[this.at + w + 1];
  }
  u32(w: number): number {
    return this.i32[this.at + w] >>> 0;
  }
  u64(w: number): bigint {
    return this.view.getBigUint64((this.at + w) * 4, true);
  }
  /** A physical address field as a number; bits above 52 are lost. */
  address(w: number): number {
    return (this.i32[this.at + w + 1] & 0xfffff) * 0x1_0000_0000 + (this.i32[this.at + w] >>> 0);
  }
  set32(w: number, value: number): void {
    this.i32[this.at + w] = value;
  }
  set64(w: number, lo: number, hi: number): void {
    this.i32[this.at + w] = lo;
    this.i32[this.at + w + 1] = hi;
  }
  /** A field by encoding (full access). */
  get(field: Field): bigint {
    return this.u64(FIELD_OFFSETS[field >> 1] >> 2);
  }
}

const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const SECONDARY = word(Field.SECONDARY_VM_EXEC_CONTROL);

/** The secondary controls in effect: all 0 unless activated (SDM 3C 25.6.2). */
export const secondaryControls = (vmcs: Vmcs): number =>
  vmcs.lo(CPU) & CpuBased.ACTIVATE_SECONDARY_CONTROLS ? vmcs.lo(SECONDARY) : 0;

const wide = new BigInt64Array(1);
const halves = new Int32Array(wide.buffer);

/** Halves of a 64-bit value as signed numbers, without any intermediate bigint. Little-endian hosts, as wasm has it. */
export function lowHalf(value: bigint): number {
  wide[0] = value;
  return halves[0];
}
export function highHalf(value: bigint): number {
  wide[0] = value;
  return halves[1];
}

/** Bits 63:47 of an address are all equal (48-bit linear addresses), or 63:56 (57-bit). */
export const isCanonical = (hi: number, linearBits: number): boolean => {
  const shift = linearBits - 33;
  return hi >> shift === hi >> 31;
};
