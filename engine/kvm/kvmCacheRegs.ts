/**
 * Lazily cached guest registers (arch/x86/kvm/kvm_cache_regs.h): what the VMCS holds is read when first asked for after an
 * exit, and written back before the next entry when it was changed.
 */
import { type KvmVcpu, VcpuReg } from "./types";

const kvmRegisterIsAvailable = (vcpu: KvmVcpu, reg: number): boolean => (vcpu.arch.regsAvail & (1 << reg)) !== 0;
/** kvm_register_is_dirty */
export const kvmRegisterIsDirty = (vcpu: KvmVcpu, reg: number): boolean => (vcpu.arch.regsDirty & (1 << reg)) !== 0;

/** kvm_register_mark_available: the copy is as new as the VMCS. */
export function kvmRegisterMarkAvailable(vcpu: KvmVcpu, reg: number): void {
  vcpu.arch.regsAvail |= 1 << reg;
}

/** kvm_register_mark_dirty: the copy is newer than the VMCS and goes there before the next entry. */
export function kvmRegisterMarkDirty(vcpu: KvmVcpu, reg: number): void {
  vcpu.arch.regsAvail |= 1 << reg;
  vcpu.arch.regsDirty |= 1 << reg;
}

/** kvm_register_read_raw: all 64 bits. @param reg 0..15, or VcpuReg.RIP */
export function kvmRegisterReadRaw(vcpu: KvmVcpu, reg: number): bigint {
  if (!kvmRegisterIsAvailable(vcpu, reg)) vcpu.module.ops.cacheReg(vcpu, reg);
  return vcpu.arch.regs[reg];
}

/** kvm_register_write_raw: all 64 bits, whatever the mode. */
export function kvmRegisterWriteRaw(vcpu: KvmVcpu, reg: number, value: bigint): void {
  vcpu.arch.regs[reg] = value;
  kvmRegisterMarkDirty(vcpu, reg);
}

/** kvm_register_read: the low 32 bits outside 64-bit mode. */
export function kvmRegisterRead(vcpu: KvmVcpu, reg: number): bigint {
  const value = kvmRegisterReadRaw(vcpu, reg);
  return is64BitMode(vcpu) ? value : value & 0xffffffffn;
}

/** kvm_register_write: 32 bits outside 64-bit mode. */
export function kvmRegisterWrite(vcpu: KvmVcpu, reg: number, value: bigint): void {
  kvmRegisterWriteRaw(vcpu, reg, is64BitMode(vcpu) ? value : value & 0xffffffffn);
}

/** Low 32 bits of a general register, unsigned (kvm_eax_read and its kin). */
export const kvmRegRead32 = (vcpu: KvmVcpu, reg: number): number => Number(kvmRegisterReadRaw(vcpu, reg) & 0xffffffffn);

/** Writes 32 bits and clears the upper half (kvm_rax_write of a u32). */
export const kvmRegWrite32 = (vcpu: KvmVcpu, reg: number, value: number): void =>
  kvmRegisterWriteRaw(vcpu, reg, BigInt(value >>> 0));

export const kvmRipRead = (vcpu: KvmVcpu): bigint => kvmRegisterReadRaw(vcpu, VcpuReg.RIP);
export const kvmRipWrite = (vcpu: KvmVcpu, value: bigint): void => kvmRegisterWriteRaw(vcpu, VcpuReg.RIP, value);

function readCached(vcpu: KvmVcpu, reg: number): void {
  if (!kvmRegisterIsAvailable(vcpu, reg)) vcpu.module.ops.cacheReg(vcpu, reg);
}

/** kvm_read_cr0: as the guest sees it, bits it owns taken from the VMCS. */
export const kvmReadCr0 = (vcpu: KvmVcpu): bigint => {
  readCached(vcpu, VcpuReg.CR0);
  return vcpu.arch.cr0;
};
/** kvm_read_cr3 */
export const kvmReadCr3 = (vcpu: KvmVcpu): bigint => {
  readCached(vcpu, VcpuReg.CR3);
  return vcpu.arch.cr3;
};
/** kvm_read_cr4: as the guest sees it, bits it owns taken from the VMCS. */
export const kvmReadCr4 = (vcpu: KvmVcpu): bigint => {
  readCached(vcpu, VcpuReg.CR4);
  return vcpu.arch.cr4;
};
/** kvm_pdptr_read: one of the four PDPTEs of PAE paging. */
export const kvmPdptrRead = (vcpu: KvmVcpu, index: number): bigint => {
  readCached(vcpu, VcpuReg.PDPTR);
  return vcpu.arch.pdptrs[index];
};

/** Bits of CR0, CR4 and EFER, 64 bits wide. */
// biome-ignore-start format: bit tables
export const Cr0 = {
  PE: 1n << 0n,
  MP: 1n << 1n,
  EM: 1n << 2n,
  TS: 1n << 3n,
  ET: 1n << 4n,
  NE: 1n << 5n,
  WP: 1n << 16n,
  AM: 1n << 18n,
  NW: 1n << 29n,
  CD: 1n << 30n,
  PG: 1n << 31n,
} as const;
export const Cr4 = {
  VME: 1n << 0n,
  PVI: 1n << 1n,
  TSD: 1n << 2n,
  DE: 1n << 3n,
  PSE: 1n << 4n,
  PAE: 1n << 5n,
  MCE: 1n << 6n,
  PGE: 1n << 7n,
  PCE: 1n << 8n,
  OSFXSR: 1n << 9n,
  OSXMMEXCPT: 1n << 10n,
  UMIP: 1n << 11n,
  LA57: 1n << 12n,
  VMXE: 1n << 13n,
  SMXE: 1n << 14n,
  FSGSBASE: 1n << 16n,
  PCIDE: 1n << 17n,
  OSXSAVE: 1n << 18n,
  SMEP: 1n << 20n,
  SMAP: 1n << 21n,
  PKE: 1n << 22n,
} as const;
export const EferBit = { SCE: 1n << 0n, LME: 1n << 8n, LMA: 1n << 10n, NX: 1n << 11n, SVME: 1n << 12n } as const;
// biome-ignore-end format: bit tables

/** is_protmode, and below it Linux's other questions about the guest's mode. */
export const isProtmode = (vcpu: KvmVcpu): boolean => (kvmReadCr0(vcpu) & Cr0.PE) !== 0n;
export const isPaging = (vcpu: KvmVcpu): boolean => (kvmReadCr0(vcpu) & Cr0.PG) !== 0n;
export const isPae = (vcpu: KvmVcpu): boolean => (kvmReadCr4(vcpu) & Cr4.PAE) !== 0n;
export const isLongMode = (vcpu: KvmVcpu): boolean => (vcpu.arch.efer & EferBit.LMA) !== 0n;
export const isPaePaging = (vcpu: KvmVcpu): boolean => !isLongMode(vcpu) && isPae(vcpu) && isPaging(vcpu);
export const is64BitMode = (vcpu: KvmVcpu): boolean => isLongMode(vcpu) && vcpu.module.ops.getCsDbLBits(vcpu).l !== 0;
/** RFLAGS as 64 bits. */
export const kvmGetRflags = (vcpu: KvmVcpu): bigint => vcpu.module.ops.getRflags(vcpu);

/** kvm_get_linear_rip */
export function kvmGetLinearRip(vcpu: KvmVcpu): bigint {
  if (is64BitMode(vcpu)) return kvmRipRead(vcpu);
  return (vcpu.module.ops.getSegmentBase(vcpu, 1) + kvmRipRead(vcpu)) & 0xffffffffn;
}
