/**
 * Model-specific registers common to both vendors (arch/x86/kvm/x86.c): lists for userspace, kvm_get_msr and kvm_set_msr.
 * A setter answers 0, 1 where #GP is due, or a negative errno.
 */
import { ARCH_CAPABILITIES } from "../cpu/system/msrs";
import { kvmPvEnableAsyncPf, kvmPvEnableAsyncPfInt } from "./asyncPf";
import { guestCpuidHas, guestEferBits, guestPvHas, kvmUpdateCpuidRuntime } from "./cpuid";
import { EferBit, isPaging } from "./kvmCacheRegs";
import { KvmFeature } from "./kvmPara";
import { kvmGetApicBase, kvmLapicReadMsr, kvmLapicSetPvEoi, kvmLapicWriteMsr, kvmSetApicBase } from "./lapic";
import { isMceMsr, kvmGetMsrMce, kvmSetMsrMce } from "./mce";
import {
  adjustTscOffset,
  KVM_MSR_ENABLED,
  KVM_STEAL_RESERVED_MASK,
  kvmReadL1Tsc,
  kvmSynchronizeTsc,
  kvmWriteSystemTime,
  kvmWriteWallClock,
} from "./pvclock";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmVcpu } from "./types";
import { KvmX86Quirk } from "./uapi";

/** Numbers of the MSRs that the common and vendor code name. */
// biome-ignore format: a table
export const Msr = {
  P5_MC_ADDR: 0x0, P5_MC_TYPE: 0x1, TSC: 0x10, PLATFORM_ID: 0x17, EBL_CR_POWERON: 0x2a, FEAT_CTL: 0x3a,
  TSC_ADJUST: 0x3b, SPEC_CTRL: 0x48, PRED_CMD: 0x49, UCODE_REV: 0x8b, PLATFORM_INFO: 0xce, MTRR_CAP: 0xfe,
  ARCH_CAPABILITIES: 0x10a, BBL_CR_CTL3: 0x11e, SYSENTER_CS: 0x174, SYSENTER_ESP: 0x175, SYSENTER_EIP: 0x176,
  MCG_CAP: 0x179, MCG_STATUS: 0x17a, MCG_CTL: 0x17b, PERF_STATUS: 0x198, MISC_ENABLE: 0x1a0,
  MISC_FEATURES_ENABLES: 0x140, DEBUGCTL: 0x1d9, LASTBRANCHFROMIP: 0x1db, LASTBRANCHTOIP: 0x1dc, LASTINTFROMIP: 0x1dd,
  LASTINTTOIP: 0x1de, MTRR_FIX64K: 0x250, PAT: 0x277, MTRR_DEF_TYPE: 0x2ff, MC0_CTL: 0x400, XSS: 0xda0,
  EFER: 0xc0000080, STAR: 0xc0000081, LSTAR: 0xc0000082, CSTAR: 0xc0000083, SYSCALL_MASK: 0xc0000084,
  FS_BASE: 0xc0000100, GS_BASE: 0xc0000101, KERNEL_GS_BASE: 0xc0000102, TSC_AUX: 0xc0000103, SMI_COUNT: 0x34,
  K7_HWCR: 0xc0010015, K7_CLK_CTL: 0xc001001b, EBC_FREQUENCY_ID: 0x2c, UCODE_WRITE: 0x79, PERF_CTL: 0x199,
  POWER_CTL: 0x1fc, RAPL_POWER_UNIT: 0x606,
  KVM_WALL_CLOCK: 0x11, KVM_SYSTEM_TIME: 0x12, KVM_WALL_CLOCK_NEW: 0x4b564d00, KVM_SYSTEM_TIME_NEW: 0x4b564d01,
  KVM_ASYNC_PF_EN: 0x4b564d02, KVM_STEAL_TIME: 0x4b564d03, KVM_PV_EOI_EN: 0x4b564d04, KVM_POLL_CONTROL: 0x4b564d05,
  KVM_ASYNC_PF_INT: 0x4b564d06, KVM_ASYNC_PF_ACK: 0x4b564d07,
} as const;

const MSR_IA32_APICBASE = 0x1b;
const MSR_IA32_TSC_DEADLINE = 0x6e0;

/** Indices of the eleven fixed-range MTRRs. */
const MTRR_FIXED = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f] as const;
const MTRR_VARIABLE = 0x200;
const KVM_NR_VAR_MTRR = 8;

/** msrs_to_save_base: guest state that lies in processor MSRs. */
export const MSRS_TO_SAVE: readonly number[] = [
  Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP, Msr.STAR, Msr.CSTAR, Msr.KERNEL_GS_BASE, Msr.SYSCALL_MASK,
  Msr.LSTAR, Msr.TSC, Msr.PAT, Msr.FEAT_CTL, Msr.TSC_AUX,
]; // biome-ignore format: a list

/** emulated_msrs_all: guest state KVM keeps itself. */
export const EMULATED_MSRS: readonly number[] = [
  Msr.KVM_WALL_CLOCK, Msr.KVM_SYSTEM_TIME, Msr.KVM_WALL_CLOCK_NEW, Msr.KVM_SYSTEM_TIME_NEW, Msr.KVM_ASYNC_PF_EN,
  Msr.KVM_STEAL_TIME, Msr.KVM_PV_EOI_EN, Msr.KVM_ASYNC_PF_INT, Msr.KVM_ASYNC_PF_ACK, Msr.TSC_ADJUST,
  MSR_IA32_TSC_DEADLINE, Msr.ARCH_CAPABILITIES, Msr.MISC_ENABLE, Msr.MCG_STATUS, Msr.MCG_CTL, Msr.SMI_COUNT,
  Msr.PLATFORM_INFO, Msr.MISC_FEATURES_ENABLES, Msr.POWER_CTL, Msr.UCODE_REV, Msr.K7_HWCR, Msr.KVM_POLL_CONTROL,
]; // biome-ignore format: a list

/** msr_based_features (KVM_GET_MSR_FEATURE_INDEX_LIST). */
export const FEATURE_MSRS: readonly number[] = [Msr.ARCH_CAPABILITIES, Msr.UCODE_REV];

/** kvm_get_msr_feature */
export const kvmGetMsrFeature = (index: number): bigint | null =>
  index === Msr.UCODE_REV ? 0x100000000n : index === Msr.ARCH_CAPABILITIES ? ARCH_CAPABILITIES : null;

const memoryTypeOk = (type: bigint): boolean => type === 0n || type === 1n || (type >= 4n && type <= 6n);
/** kvm_pat_valid */
function patValid(data: bigint): boolean {
  for (let i = 0n; i < 8n; i++) {
    const type = (data >> (i * 8n)) & 0xffn;
    if (!memoryTypeOk(type) && type !== 7n) return false;
  }
  return true;
}

/** set_efer: LME may not change while paging is on. */
function setEfer(vcpu: KvmVcpu, data: bigint, hostInitiated: boolean): number {
  const { arch } = vcpu;
  const old = arch.efer;
  if (data & ~(EferBit.SCE | EferBit.LME | EferBit.LMA | EferBit.NX)) return 1;
  if (!hostInitiated) {
    if (data & ~(guestEferBits(vcpu) | EferBit.LMA)) return 1;
    if (isPaging(vcpu) && (old & EferBit.LME) !== (data & EferBit.LME)) return 1;
  }
  const efer = (data & ~EferBit.LMA) | (old & EferBit.LMA);
  vcpu.module.ops.setEfer(vcpu, efer);
  return 0;
}

/** kvm_set_msr_common */
export function kvmSetMsrCommon(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number {
  const { arch } = vcpu;
  switch (index) {
    case Msr.UCODE_REV:
      if (hostInitiated) arch.microcodeVersion = data;
      return 0;
    case Msr.ARCH_CAPABILITIES:
      if (!hostInitiated) return 1;
      arch.archCapabilities = data;
      return 0;
    case Msr.EFER:
      return setEfer(vcpu, data, hostInitiated);
    case Msr.UCODE_WRITE:
      return 0;
    case Msr.K7_HWCR: {
      // Flush filter, IGNNE and TLB caching hints are ignored; of the rest only McStatusWrEn exists.
      const hwcr = data & ~0x148n;
      if (hwcr !== 0n && hwcr !== 1n << 18n) return 1;
      arch.hwcr = hwcr;
      return 0;
    }
    case Msr.PAT:
      if (!patValid(data)) return 1;
      arch.pat = data;
      return 0;
    case MSR_IA32_APICBASE:
      if (kvmSetApicBase(vcpu, data, hostInitiated)) return 1;
      kvmUpdateCpuidRuntime(vcpu);
      return 0;
    case MSR_IA32_TSC_DEADLINE:
      // Without a LAPIC in the kernel, and outside TSC-deadline mode, the write is ignored.
      if (vcpu.apic) kvmLapicWriteMsr(vcpu, index, data);
      return 0;
    case Msr.TSC_ADJUST:
      if (!guestCpuidHas(vcpu, 7, 0, "ebx", 1)) return 0;
      if (!hostInitiated) {
        adjustTscOffset(vcpu, data - arch.ia32TscAdjust);
        kvmMakeRequest(KvmReq.CLOCK_UPDATE, vcpu);
      }
      arch.ia32TscAdjust = data;
      return 0;
    case Msr.MISC_ENABLE:
      return setMiscEnable(vcpu, data, hostInitiated);
    case Msr.XSS:
      if (!hostInitiated && !guestCpuidHas(vcpu, 0xd, 1, "eax", 3)) return 1;
      if (data !== 0n) return 1;
      arch.xss = data;
      return 0;
    case Msr.SMI_COUNT:
      // There are no system-management interrupts to count.
      return hostInitiated && data === 0n ? 0 : 1;
    case Msr.POWER_CTL:
      arch.powerCtl = data;
      return 0;
    case Msr.TSC:
      if (hostInitiated) {
        kvmSynchronizeTsc(vcpu, data);
      } else {
        const change = BigInt.asUintN(64, data - kvmReadL1Tsc(vcpu));
        adjustTscOffset(vcpu, change);
        arch.ia32TscAdjust = BigInt.asUintN(64, arch.ia32TscAdjust + change);
      }
      return 0;
    case Msr.MTRR_DEF_TYPE:
      if (data & ~0xcffn || !memoryTypeOk(data & 0xffn)) return 1;
      arch.mtrrDefType = data;
      return 0;
    case Msr.PLATFORM_INFO:
      // CPUID faulting cannot be taken away while it is in use.
      if (!hostInitiated || (!(data & PLATFORM_INFO_CPUID_FAULT) && arch.miscFeaturesEnables & 1n)) return 1;
      arch.platformInfo = data;
      return 0;
    case Msr.MISC_FEATURES_ENABLES:
      if (data & ~1n || (data & 1n && !(arch.platformInfo & PLATFORM_INFO_CPUID_FAULT))) return 1;
      arch.miscFeaturesEnables = data;
      return 0;
    case Msr.SPEC_CTRL:
      if (!guestCpuidHas(vcpu, 7, 0, "edx", 26) && !hostInitiated) return 1;
      if (data & ~7n) return 1;
      arch.specCtrl = data;
      return 0;
    case Msr.PRED_CMD:
      if (!guestCpuidHas(vcpu, 7, 0, "edx", 26) && !hostInitiated) return 1;
      return data & ~1n ? 1 : 0;
    case Msr.BBL_CR_CTL3:
      return 0;
  }
  if (index >= 0x800 && index <= 0x8ff) return kvmLapicWriteMsr(vcpu, index, data) ? 0 : 1;
  const fixed = (MTRR_FIXED as readonly number[]).indexOf(index);
  if (fixed >= 0) {
    for (let i = 0n; i < 8n; i++) if (!memoryTypeOk((data >> (i * 8n)) & 0xffn)) return 1;
    arch.mtrrFixed[fixed] = data;
    return 0;
  }
  if (index >= MTRR_VARIABLE && index < MTRR_VARIABLE + 2 * KVM_NR_VAR_MTRR) {
    const reserved = ~((1n << BigInt(arch.maxphyaddr)) - 1n) | (index & 1 ? 0x7ffn : 0xf00n);
    if (data & reserved || (!(index & 1) && !memoryTypeOk(data & 0xffn))) return 1;
    arch.mtrrVariable[index - MTRR_VARIABLE] = data;
    return 0;
  }
  if (isMceMsr(index)) return kvmSetMsrMce(vcpu, index, data, hostInitiated);
  return setPvMsr(vcpu, index, data, hostInitiated);
}

const PLATFORM_INFO_CPUID_FAULT = 1n << 31n;
const MISC_ENABLE_EMON = 1n << 7n;
const MISC_ENABLE_MWAIT = 1n << 18n;
/** BTS and PEBS are not there; the guest cannot change that. */
const MISC_ENABLE_PMU_RO = 3n << 11n;

function setMiscEnable(vcpu: KvmVcpu, value: bigint, hostInitiated: boolean): number {
  const { arch } = vcpu;
  const old = arch.ia32MiscEnable;
  let data = value;
  if (!hostInitiated) {
    if ((old ^ data) & MISC_ENABLE_PMU_RO) return 1;
    data = (data & ~MISC_ENABLE_EMON) | (old & MISC_ENABLE_EMON);
  }
  const quirk = !(vcpu.kvm.arch.disabledQuirks & BigInt(KvmX86Quirk.MISC_ENABLE_NO_MWAIT));
  const mwaitChanges = !quirk && ((old ^ data) & MISC_ENABLE_MWAIT) !== 0n;
  if (mwaitChanges && !guestCpuidHas(vcpu, 1, 0, "ecx", 0)) return 1;
  arch.ia32MiscEnable = data;
  if (mwaitChanges) kvmUpdateCpuidRuntime(vcpu);
  return 0;
}

/** Features of CPUID 40000001h that bring an MSR. */
// biome-ignore format: a table
const PV_MSR_FEATURE: ReadonlyMap<number, number> = new Map([
  [Msr.KVM_WALL_CLOCK, KvmFeature.CLOCKSOURCE], [Msr.KVM_SYSTEM_TIME, KvmFeature.CLOCKSOURCE],
  [Msr.KVM_WALL_CLOCK_NEW, KvmFeature.CLOCKSOURCE2], [Msr.KVM_SYSTEM_TIME_NEW, KvmFeature.CLOCKSOURCE2],
  [Msr.KVM_ASYNC_PF_EN, KvmFeature.ASYNC_PF], [Msr.KVM_ASYNC_PF_INT, KvmFeature.ASYNC_PF_INT],
  [Msr.KVM_ASYNC_PF_ACK, KvmFeature.ASYNC_PF_INT], [Msr.KVM_STEAL_TIME, KvmFeature.STEAL_TIME],
  [Msr.KVM_PV_EOI_EN, KvmFeature.PV_EOI], [Msr.KVM_POLL_CONTROL, KvmFeature.POLL_CONTROL],
]);

/** KVM's own MSRs (Documentation/virt/kvm/x86/msr.rst). */
function setPvMsr(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number {
  const { arch } = vcpu;
  const feature = PV_MSR_FEATURE.get(index);
  if (feature === undefined) return KVM_MSR_RET_INVALID;
  if (!guestPvHas(vcpu, feature)) return 1;
  switch (index) {
    case Msr.KVM_WALL_CLOCK:
    case Msr.KVM_WALL_CLOCK_NEW:
      arch.wallClock = data;
      kvmWriteWallClock(vcpu.kvm, Number(data));
      return 0;
    case Msr.KVM_SYSTEM_TIME:
    case Msr.KVM_SYSTEM_TIME_NEW:
      kvmWriteSystemTime(vcpu, data, index === Msr.KVM_SYSTEM_TIME, hostInitiated);
      return 0;
    case Msr.KVM_ASYNC_PF_EN:
      return kvmPvEnableAsyncPf(vcpu, data);
    case Msr.KVM_ASYNC_PF_INT:
      return kvmPvEnableAsyncPfInt(vcpu, data);
    case Msr.KVM_ASYNC_PF_ACK:
      // No page-ready notification is ever under way.
      return 0;
    case Msr.KVM_STEAL_TIME:
      if (data & KVM_STEAL_RESERVED_MASK) return 1;
      arch.stealMsr = data;
      if (data & KVM_MSR_ENABLED) kvmMakeRequest(KvmReq.STEAL_UPDATE, vcpu);
      return 0;
    case Msr.KVM_PV_EOI_EN:
      return kvmLapicSetPvEoi(vcpu, data) ? 0 : 1;
    default:
      if (data & ~1n) return 1;
      arch.pollControl = data;
      return 0;
  }
}

/** @returns null without the feature, undefined for another MSR */
function getPvMsr(vcpu: KvmVcpu, index: number): bigint | null | undefined {
  const { arch } = vcpu;
  const feature = PV_MSR_FEATURE.get(index);
  if (feature === undefined) return undefined;
  if (!guestPvHas(vcpu, feature)) return null;
  switch (index) {
    case Msr.KVM_WALL_CLOCK:
    case Msr.KVM_WALL_CLOCK_NEW:
      return arch.wallClock;
    case Msr.KVM_SYSTEM_TIME:
    case Msr.KVM_SYSTEM_TIME_NEW:
      return arch.pvTime;
    case Msr.KVM_ASYNC_PF_EN:
      return arch.asyncPfMsr;
    case Msr.KVM_ASYNC_PF_INT:
      return arch.asyncPfIntMsr;
    case Msr.KVM_ASYNC_PF_ACK:
      return 0n;
    case Msr.KVM_STEAL_TIME:
      return arch.stealMsr;
    case Msr.KVM_PV_EOI_EN:
      return arch.pvEoiMsr;
    default:
      return arch.pollControl;
  }
}

/** Answer of the common and vendor functions for an MSR nobody knows. */
export const KVM_MSR_RET_INVALID = 2;

/** kvm_get_msr_common. @returns null where #GP is due, undefined where nobody knows the MSR */
export function kvmGetMsrCommon(vcpu: KvmVcpu, index: number, hostInitiated: boolean): bigint | null | undefined {
  const { arch } = vcpu;
  switch (index) {
    case Msr.PLATFORM_ID:
    case Msr.EBL_CR_POWERON:
    case Msr.LASTBRANCHFROMIP:
    case Msr.LASTBRANCHTOIP:
    case Msr.LASTINTFROMIP:
    case Msr.LASTINTTOIP:
    case Msr.P5_MC_ADDR:
    case Msr.P5_MC_TYPE:
    case Msr.PERF_CTL:
    case Msr.RAPL_POWER_UNIT:
    case Msr.SMI_COUNT:
    case Msr.PRED_CMD:
      return 0n;
    case Msr.MISC_FEATURES_ENABLES:
      return arch.miscFeaturesEnables;
    case Msr.K7_HWCR:
      return arch.hwcr;
    case Msr.K7_CLK_CTL:
      return 0x20000000n;
    case Msr.EBC_FREQUENCY_ID:
      return 1n << 24n;
    case Msr.POWER_CTL:
      return arch.powerCtl;
    case Msr.XSS:
      return hostInitiated || guestCpuidHas(vcpu, 0xd, 1, "eax", 3) ? arch.xss : null;
    case Msr.UCODE_REV:
      return arch.microcodeVersion;
    case Msr.ARCH_CAPABILITIES:
      return hostInitiated || guestCpuidHas(vcpu, 7, 0, "edx", 29) ? arch.archCapabilities : null;
    case Msr.TSC:
      return kvmReadL1Tsc(vcpu);
    case Msr.TSC_ADJUST:
      return arch.ia32TscAdjust;
    case Msr.PAT:
      return arch.pat;
    case Msr.MTRR_CAP:
      return 0x500n | BigInt(KVM_NR_VAR_MTRR);
    case Msr.MTRR_DEF_TYPE:
      return arch.mtrrDefType;
    case MSR_IA32_APICBASE:
      return kvmGetApicBase(vcpu);
    case MSR_IA32_TSC_DEADLINE:
      return vcpu.apic ? kvmLapicReadMsr(vcpu, index) : 0n;
    case Msr.MISC_ENABLE:
      return arch.ia32MiscEnable;
    case Msr.PERF_STATUS:
      // TSC increment by tick (1000) and CPU multiplier (10).
      return 1000n | (10n << 40n);
    case Msr.EFER:
      return arch.efer;
    case Msr.PLATFORM_INFO:
      if (!hostInitiated && !vcpu.kvm.arch.guestCanReadMsrPlatformInfo) return null;
      return arch.platformInfo;
    case Msr.SPEC_CTRL:
      return arch.specCtrl;
    case Msr.BBL_CR_CTL3:
      return 0xbe702111n;
  }
  if (index >= 0x800 && index <= 0x8ff) return kvmLapicReadMsr(vcpu, index);
  const fixed = (MTRR_FIXED as readonly number[]).indexOf(index);
  if (fixed >= 0) return arch.mtrrFixed[fixed];
  if (index >= MTRR_VARIABLE && index < MTRR_VARIABLE + 2 * KVM_NR_VAR_MTRR)
    return arch.mtrrVariable[index - MTRR_VARIABLE];
  if (isMceMsr(index)) return kvmGetMsrMce(vcpu, index, hostInitiated);
  return getPvMsr(vcpu, index);
}

/** kvm_get_msr_ignored_check: ignore_msrs answers 0 for what nobody knows. @returns as kvmGetMsrCommon */
export function kvmGetMsr(vcpu: KvmVcpu, index: number, hostInitiated: boolean): bigint | null | undefined {
  const data = vcpu.module.ops.getMsr(vcpu, index, hostInitiated);
  if (data !== undefined) return data;
  const { params } = vcpu.module;
  if (!params.ignore_msrs) {
    vcpu.module.printk(`kvm: vcpu${vcpu.state.vcpuId}, unhandled rdmsr: 0x${index.toString(16)}`);
    return undefined;
  }
  if (params.report_ignored_msrs) vcpu.module.printk(`kvm: ignored rdmsr: 0x${index.toString(16)} data 0x0`);
  return 0n;
}

/** Linear addresses in these must be canonical (__kvm_set_msr). */
// biome-ignore format: a list
const CANONICAL_MSRS: ReadonlySet<number> = new Set([
  Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.CSTAR, Msr.LSTAR, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP,
]);

/** kvm_set_msr_ignored_check. @returns 0, or why #GP is due: 1, or KVM_MSR_RET_INVALID where nobody knows the MSR */
export function kvmSetMsr(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number {
  const bits = vcpu.module.host.processors[0].model.linearBits;
  let value = data;
  if (CANONICAL_MSRS.has(index)) {
    const canonical = BigInt.asUintN(64, BigInt.asIntN(bits, data)) === data;
    if (!canonical) {
      if (index !== Msr.SYSENTER_ESP && index !== Msr.SYSENTER_EIP) return 1;
      // AMD keeps any value there; KVM makes it canonical so that VM entry does not fail.
      value = BigInt.asUintN(64, BigInt.asIntN(bits, data));
    }
  } else if (index === Msr.TSC_AUX && !hostInitiated) {
    if (!guestCpuidHas(vcpu, 0x80000001, 0, "edx", 27) && !guestCpuidHas(vcpu, 7, 0, "ecx", 22)) return 1;
    if (value >> 32n) return 1;
  }
  const r = vcpu.module.ops.setMsr(vcpu, index, value, hostInitiated);
  if (r !== KVM_MSR_RET_INVALID) return r;
  const { params } = vcpu.module;
  const text = `wrmsr: 0x${index.toString(16)} data 0x${value.toString(16)}`;
  if (!params.ignore_msrs) {
    vcpu.module.printk(`kvm: vcpu${vcpu.state.vcpuId}, unhandled ${text}`);
    return KVM_MSR_RET_INVALID;
  }
  if (params.report_ignored_msrs) vcpu.module.printk(`kvm: ignored ${text}`);
  return 0;
}
