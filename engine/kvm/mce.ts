/**
 * Machine-check banks of a vCPU (arch/x86/kvm/x86.c: set_msr_mce, get_msr_mce, kvm_vcpu_ioctl_x86_set_mce; SDM 3B chapter
 * 16). Errors come from userspace only (Documentation/virt/kvm/api.rst 4.104 to 4.107).
 */
import { KvmError } from "./errno";
import { Cr4, kvmReadCr4 } from "./kvmCacheRegs";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmVcpu } from "./types";
import type { KvmX86Mce } from "./uapi";
import { ExcVector, kvmQueueException } from "./x86Events";

/** Banks a vCPU can have at most. */
export const KVM_MAX_MCE_BANKS = 32;
const MCG_CTL_P = 1n << 8n;
const MCG_SER_P = 1n << 24n;
/** kvm_caps.supported_mce_cap. */
export const KVM_MCE_CAP_SUPPORTED = MCG_CTL_P | MCG_SER_P;
/** Bits of MCG_CAP that are numbers: of banks, and of extended state registers. */
const MCG_COUNTS = 0xff00ffn;
const MCG_STATUS_MCIP = 4n;

const MCI_STATUS_VAL = 1n << 63n;
const MCI_STATUS_OVER = 1n << 62n;
const MCI_STATUS_UC = 1n << 61n;
const MCI_STATUS_PCC = 1n << 57n;
const MCI_STATUS_S = 1n << 56n;
const MCI_STATUS_AR = 1n << 55n;
const HWCR_MC_STATUS_WR_EN = 1n << 18n;
const ALL = (1n << 64n) - 1n;

const MCG_CAP = 0x179;
const MCG_STATUS = 0x17a;
const MCG_CTL = 0x17b;
const MC0_CTL = 0x400;

/** Whether an MSR is one of IA32_MCG_* or of a bank. */
export const isMceMsr = (index: number): boolean =>
  (index >= MCG_CAP && index <= MCG_CTL) || (index >= MC0_CTL && index < MC0_CTL + 4 * KVM_MAX_MCE_BANKS);

const bankCount = (vcpu: KvmVcpu): number => Number(vcpu.arch.mcgCap & 0xffn);

/** set_msr_mce. @returns 0, or 1 where #GP is due */
export function kvmSetMsrMce(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number {
  const { arch } = vcpu;
  switch (index) {
    case MCG_CAP:
      return 1;
    case MCG_STATUS:
      arch.mcgStatus = data;
      return 0;
    case MCG_CTL:
      if (!(arch.mcgCap & MCG_CTL_P) && (data !== 0n || !hostInitiated)) return 1;
      if (data !== 0n && data !== ALL) return 1;
      arch.mcgCtl = data;
      return 0;
  }
  const at = index - MC0_CTL;
  if (at >> 2 >= bankCount(vcpu)) return 1;
  // A control register is all 0 or all 1; Linux clears bit 10 of bank 4, UnixWare bit 0 of bank 1.
  if ((at & 3) === 0 && data !== 0n && (data | 0x401n) !== ALL) return 1;
  if ((at & 3) === 1 && !hostInitiated && data !== 0n && !(arch.hwcr & HWCR_MC_STATUS_WR_EN)) return 1;
  arch.mceBanks[at] = data;
  return 0;
}

/** get_msr_mce. @returns null where #GP is due */
export function kvmGetMsrMce(vcpu: KvmVcpu, index: number, hostInitiated: boolean): bigint | null {
  const { arch } = vcpu;
  switch (index) {
    case MCG_CAP:
      return arch.mcgCap;
    case MCG_STATUS:
      return arch.mcgStatus;
    case MCG_CTL:
      return arch.mcgCap & MCG_CTL_P || hostInitiated ? arch.mcgCtl : null;
  }
  const at = index - MC0_CTL;
  return at >> 2 < bankCount(vcpu) ? arch.mceBanks[at] : null;
}

/** KVM_X86_SETUP_MCE: banks, all enabled. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetupMce(vcpu: KvmVcpu, mcgCap: bigint): void {
  const banks = Number(mcgCap & 0xffn);
  if (banks === 0 || banks > KVM_MAX_MCE_BANKS || mcgCap & ~(KVM_MCE_CAP_SUPPORTED | MCG_COUNTS)) {
    throw new KvmError("EINVAL", "KVM_X86_SETUP_MCE", `1 to ${KVM_MAX_MCE_BANKS} banks, and supported features only`);
  }
  const { arch } = vcpu;
  arch.mcgCap = mcgCap;
  if (mcgCap & MCG_CTL_P) arch.mcgCtl = ALL;
  for (let bank = 0; bank < banks; bank++) arch.mceBanks[bank * 4] = ALL;
}

/** is_ucna: uncorrected, and nothing needs to be done. */
const isUcna = (mce: KvmX86Mce): boolean =>
  mce.mcg_status === 0n &&
  !(mce.status & (MCI_STATUS_PCC | MCI_STATUS_S | MCI_STATUS_AR)) &&
  (mce.status & MCI_STATUS_UC) !== 0n;

/** KVM_X86_SET_MCE: an error appears in a bank; an uncorrected one raises #MC. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetMce(vcpu: KvmVcpu, mce: KvmX86Mce): void {
  const { arch } = vcpu;
  if (mce.bank >= bankCount(vcpu) || !(mce.status & MCI_STATUS_VAL)) {
    throw new KvmError("EINVAL", "KVM_X86_SET_MCE", "the bank does not exist, or the status is not valid");
  }
  const bank = arch.mceBanks.subarray(mce.bank * 4, mce.bank * 4 + 4);
  const record = (status: bigint) => {
    bank[1] = status;
    bank[2] = mce.addr;
    bank[3] = mce.misc;
  };
  const overflow = bank[1] & MCI_STATUS_VAL ? MCI_STATUS_OVER : 0n;
  if (isUcna(mce)) {
    record(mce.status);
    arch.mcgStatus = mce.mcg_status;
  } else if (mce.status & MCI_STATUS_UC) {
    // Reporting of uncorrected errors is off unless both control registers are all 1.
    if ((arch.mcgCap & MCG_CTL_P && arch.mcgCtl !== ALL) || bank[0] !== ALL) return;
    if (arch.mcgStatus & MCG_STATUS_MCIP || !(kvmReadCr4(vcpu) & Cr4.MCE)) {
      kvmMakeRequest(KvmReq.TRIPLE_FAULT, vcpu);
      return;
    }
    record(mce.status | overflow);
    arch.mcgStatus = mce.mcg_status;
    kvmQueueException(vcpu, ExcVector.MC);
  } else if (bank[1] & MCI_STATUS_VAL && bank[1] & MCI_STATUS_UC) {
    bank[1] |= MCI_STATUS_OVER;
  } else {
    record(mce.status | overflow);
  }
}
