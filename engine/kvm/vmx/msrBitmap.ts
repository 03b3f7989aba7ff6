/**
 * MSR bitmap of a vCPU: a page of four 1-KiB bitmaps, a set bit intercepts (SDM 3C 25.6.9). KVM intercepts all but the few
 * MSRs whose guest value is in the processor while the guest runs.
 */
import { kvmMsrAllowed } from "../msrFilter";
import { Msr } from "../msrs";
import type { KvmVcpu } from "../types";

/** MSR_TYPE_R, MSR_TYPE_W. */
export const MsrType = { R: 1, W: 2, RW: 3 } as const;

/** MSRs every guest may access without exits (vmx_vcpu_create). */
const PASS_THROUGH: readonly { index: number; type: number }[] = [
  { index: Msr.TSC, type: MsrType.R },
  { index: Msr.FS_BASE, type: MsrType.RW },
  { index: Msr.GS_BASE, type: MsrType.RW },
  { index: Msr.KERNEL_GS_BASE, type: MsrType.RW },
  { index: Msr.SYSENTER_CS, type: MsrType.RW },
  { index: Msr.SYSENTER_ESP, type: MsrType.RW },
  { index: Msr.SYSENTER_EIP, type: MsrType.RW },
];

/** Byte offset of an MSR's bit in the read half, -1 for MSRs no bitmap covers (they always exit). */
function bitmapBit(index: number): number {
  if (index <= 0x1fff) return index;
  if (index >= 0xc0000000 && index <= 0xc0001fff) return (index - 0xc0000000) | 0x2000;
  return -1;
}

/** vmx_enable_intercept_for_msr and vmx_disable_intercept_for_msr. */
export function setInterceptForMsr(vcpu: KvmVcpu, index: number, type: number, intercept: boolean): void {
  const { memory } = vcpu.module.host;
  const bit = bitmapBit(index);
  if (bit < 0) return;
  const page = memory.hostOffset(vcpu.vmx.msrBitmap);
  for (const [flag, half] of [
    [MsrType.R, 0],
    [MsrType.W, 0x800],
  ] as const) {
    if (!(type & flag)) continue;
    const at = page + half + (bit >> 3);
    if (intercept) memory.u8[at] |= 1 << (bit & 7);
    else memory.u8[at] &= ~(1 << (bit & 7));
  }
}

/** Whether RDMSR or WRMSR of `index` exits, for displays and tests. */
export function msrIntercepted(vcpu: KvmVcpu, index: number, write: boolean): boolean {
  const bit = bitmapBit(index);
  if (bit < 0 || vcpu.vmx.msrBitmap < 0) return true;
  const { memory } = vcpu.module.host;
  const at = memory.hostOffset(vcpu.vmx.msrBitmap) + (write ? 0x800 : 0) + (bit >> 3);
  return ((memory.u8[at] >> (bit & 7)) & 1) !== 0;
}

/** vmx_msr_filter_changed: MSRs the filter has something against exit. */
export function vmxMsrFilterChanged(vcpu: KvmVcpu): void {
  for (const { index, type } of PASS_THROUGH) {
    if (type & MsrType.R) setInterceptForMsr(vcpu, index, MsrType.R, !kvmMsrAllowed(vcpu, index, false));
    if (type & MsrType.W) setInterceptForMsr(vcpu, index, MsrType.W, !kvmMsrAllowed(vcpu, index, true));
  }
}

/** All set, then the pass-through ones cleared. */
export function initMsrBitmap(vcpu: KvmVcpu): void {
  const { memory } = vcpu.module.host;
  const page = memory.hostOffset(vcpu.vmx.msrBitmap);
  memory.u8.fill(0xff, page, page + 4096);
  vmxMsrFilterChanged(vcpu);
}
