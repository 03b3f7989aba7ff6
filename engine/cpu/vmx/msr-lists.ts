/** The MSR lists of VM entry and VM exit (SDM 3C 25.7.2, 27.4, 28.4, 28.6): 16 bytes an entry: index, 0, value. */
import type { PhysicalMemory } from "../../memory/physical";
import { CpuFault } from "../cpu";

/** Reads and writes MSRs as RDMSR and WRMSR at CPL 0 do. @throws CpuFault */
export interface MsrAccess {
  readMsr(index: number): bigint;
  writeMsr(index: number, value: bigint): void;
}

const FS_BASE = 0xc000_0100;
const GS_BASE = 0xc000_0101;
const SMM_MONITOR_CTL = 0x9b;
const SMBASE = 0x9e;

/** MSRs that no list may name: FS and GS base (the VMCS has them), x2APIC registers, and those of SMM. */
const mayLoad = (index: number): boolean =>
  index !== FS_BASE && index !== GS_BASE && index >>> 8 !== 8 && index !== SMM_MONITOR_CTL;
const mayStore = (index: number): boolean => index >>> 8 !== 8 && index !== SMBASE;

/**
 * Loads MSRs from a list.
 * @returns 0, or the number (from 1) of the entry that cannot be loaded
 */
export function loadMsrs(memory: PhysicalMemory, access: MsrAccess, address: number, count: number): number {
  for (let i = 0; i < count; i++) {
    const at = memory.hostOffset(address + i * 16);
    if (at < 0 || memory.view.getUint32(at + 4, true) !== 0) return i + 1;
    const index = memory.view.getUint32(at, true);
    if (!mayLoad(index)) return i + 1;
    try {
      access.writeMsr(index, memory.view.getBigUint64(at + 8, true));
    } catch (refusal) {
      if (!(refusal instanceof CpuFault)) throw refusal;
      return i + 1;
    }
  }
  return 0;
}

/**
 * Stores MSRs into a list.
 * @returns 0, or the number (from 1) of the entry that cannot be stored
 */
export function storeMsrs(memory: PhysicalMemory, access: MsrAccess, address: number, count: number): number {
  for (let i = 0; i < count; i++) {
    const at = memory.hostOffset(address + i * 16);
    if (at < 0 || memory.view.getUint32(at + 4, true) !== 0) return i + 1;
    const index = memory.view.getUint32(at, true);
    if (!mayStore(index)) return i + 1;
    try {
      memory.view.setBigUint64(at + 8, access.readMsr(index), true);
    } catch (refusal) {
      if (!(refusal instanceof CpuFault)) throw refusal;
      return i + 1;
    }
  }
  return 0;
}
