/**
 * MSR filters and MSR accesses userspace wants to see (arch/x86/kvm/x86.c; Documentation/virt/kvm/api.rst 4.97, 7.21): the
 * guest's RDMSR and WRMSR, with the exits KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
 */
import { KvmError } from "./errno";
import { kvmRegRead32, kvmRegWrite32 } from "./kvmCacheRegs";
import { KVM_MSR_RET_INVALID, kvmGetMsr, kvmSetMsr } from "./msrs";
import { KvmReq, kvmMakeAllCpusRequest } from "./requests";
import { type CompleteUserspaceIo, type Kvm, type KvmVcpu, VcpuReg } from "./types";
import {
  KVM_MSR_FILTER_MAX_BITMAP_SIZE,
  KVM_MSR_FILTER_MAX_RANGES,
  KvmExit,
  KvmMsrExitReason,
  type KvmMsrFilter,
  KvmMsrFilterFlag,
} from "./uapi";
import { kvmCompleteInsnGp } from "./x86Events";

/** Answer for an access the filter denies. */
const KVM_MSR_RET_FILTERED = 3;

/** KVM_X86_SET_MSR_FILTER: replaces the filter; no ranges and default allow is none. @throws KvmError EINVAL */
export function kvmVmIoctlSetMsrFilter(kvm: Kvm, filter: KvmMsrFilter): void {
  const fail = (why: string): never => {
    throw new KvmError("EINVAL", "KVM_X86_SET_MSR_FILTER", why);
  };
  if (filter.flags & ~KvmMsrFilterFlag.DEFAULT_DENY) fail("unknown flags");
  if (filter.ranges.length > KVM_MSR_FILTER_MAX_RANGES) fail(`at most ${KVM_MSR_FILTER_MAX_RANGES} ranges`);
  const ranges = filter.ranges.filter((range) => range.nmsrs !== 0);
  const defaultAllow = !(filter.flags & KvmMsrFilterFlag.DEFAULT_DENY);
  if (ranges.length === 0 && !defaultAllow) fail("a filter without ranges cannot deny everything");
  for (const { flags, nmsrs, bitmap } of ranges) {
    if (flags === 0 || flags & ~(KvmMsrFilterFlag.READ | KvmMsrFilterFlag.WRITE))
      fail("a range is for reads, writes or both");
    const size = Math.ceil(nmsrs / 64) * 8;
    if (size > KVM_MSR_FILTER_MAX_BITMAP_SIZE) fail(`a bitmap has at most ${KVM_MSR_FILTER_MAX_BITMAP_SIZE} bytes`);
    if (bitmap.length < Math.ceil(nmsrs / 8))
      throw new KvmError("EFAULT", "KVM_X86_SET_MSR_FILTER", "a bitmap is too short");
  }
  kvm.arch.msrFilter = {
    defaultAllow,
    ranges: ranges.map((range) => ({ ...range, bitmap: range.bitmap.slice() })),
  };
  kvmMakeAllCpusRequest(kvm.vcpus, KvmReq.MSR_FILTER_CHANGED);
}

/** kvm_msr_allowed. x2APIC's MSRs are not filtered. */
export function kvmMsrAllowed(vcpu: KvmVcpu, index: number, write: boolean): boolean {
  const filter = vcpu.kvm.arch.msrFilter;
  if (filter === null || (index >= 0x800 && index <= 0x8ff)) return true;
  const type = write ? KvmMsrFilterFlag.WRITE : KvmMsrFilterFlag.READ;
  for (const { base, nmsrs, flags, bitmap } of filter.ranges) {
    const bit = index - base;
    if (bit >= 0 && bit < nmsrs && flags & type) return ((bitmap[bit >> 3] >> (bit & 7)) & 1) !== 0;
  }
  return filter.defaultAllow;
}

/** kvm_get_msr_with_filter. @returns the value, or a reason for failure: 1, KVM_MSR_RET_INVALID, or the filter's */
export function kvmGetMsrWithFilter(vcpu: KvmVcpu, index: number): bigint | number {
  if (!kvmMsrAllowed(vcpu, index, false)) return KVM_MSR_RET_FILTERED;
  const data = kvmGetMsr(vcpu, index, false);
  return data === null ? 1 : (data ?? KVM_MSR_RET_INVALID);
}

/** kvm_set_msr_with_filter. @returns 0, or a reason for failure */
export function kvmSetMsrWithFilter(vcpu: KvmVcpu, index: number, data: bigint): number {
  if (!kvmMsrAllowed(vcpu, index, true)) return KVM_MSR_RET_FILTERED;
  return kvmSetMsr(vcpu, index, data, false);
}

/** kvm_msr_reason */
function kvmMsrReason(r: number): number {
  if (r === KVM_MSR_RET_INVALID) return KvmMsrExitReason.UNKNOWN;
  return r === KVM_MSR_RET_FILTERED ? KvmMsrExitReason.FILTER : KvmMsrExitReason.INVAL;
}

/** kvm_msr_user_space: a failed access goes to userspace if it asked for this kind. @returns whether it does */
export function kvmMsrUserSpace(
  vcpu: KvmVcpu,
  write: boolean,
  index: number,
  data: bigint,
  completion: CompleteUserspaceIo,
  r: number,
): boolean {
  const reason = kvmMsrReason(r);
  if (!(vcpu.kvm.arch.userSpaceMsrMask & reason)) return false;
  vcpu.run.exit = {
    exit_reason: write ? KvmExit.X86_WRMSR : KvmExit.X86_RDMSR,
    msr: { error: 0, reason, index, data },
  };
  vcpu.arch.completeUserspaceIo = completion;
  return true;
}

/** What userspace answered. */
export function msrAnswer(vcpu: KvmVcpu): { error: boolean; data: bigint } {
  const { exit } = vcpu.run;
  if (exit.exit_reason !== KvmExit.X86_RDMSR && exit.exit_reason !== KvmExit.X86_WRMSR)
    return { error: true, data: 0n };
  return { error: exit.msr.error !== 0, data: exit.msr.data };
}

/** Puts an MSR's value into EDX:EAX. */
export function writeEdxEax(vcpu: KvmVcpu, data: bigint): void {
  kvmRegWrite32(vcpu, VcpuReg.RAX, Number(data & 0xffffffffn));
  kvmRegWrite32(vcpu, VcpuReg.RDX, Number((data >> 32n) & 0xffffffffn));
}

const readEdxEax = (vcpu: KvmVcpu): bigint =>
  BigInt(kvmRegRead32(vcpu, VcpuReg.RAX)) | (BigInt(kvmRegRead32(vcpu, VcpuReg.RDX)) << 32n);

/** kvm_emulate_rdmsr */
export function kvmEmulateRdmsr(vcpu: KvmVcpu): number {
  const index = kvmRegRead32(vcpu, VcpuReg.RCX);
  const data = kvmGetMsrWithFilter(vcpu, index);
  if (typeof data === "number") {
    if (kvmMsrUserSpace(vcpu, false, index, 0n, "completeFastRdmsr", data)) return 0;
    return kvmCompleteInsnGp(vcpu, true);
  }
  writeEdxEax(vcpu, data);
  return kvmCompleteInsnGp(vcpu, false);
}

/** kvm_emulate_wrmsr */
export function kvmEmulateWrmsr(vcpu: KvmVcpu): number {
  const index = kvmRegRead32(vcpu, VcpuReg.RCX);
  const data = readEdxEax(vcpu);
  const r = kvmSetMsrWithFilter(vcpu, index, data);
  if (r < 0) return r;
  if (r !== 0 && kvmMsrUserSpace(vcpu, true, index, data, "completeFastWrmsr", r)) return 0;
  return kvmCompleteInsnGp(vcpu, r);
}

/** complete_fast_rdmsr */
export function completeFastRdmsr(vcpu: KvmVcpu): number {
  const { error, data } = msrAnswer(vcpu);
  if (!error) writeEdxEax(vcpu, data);
  return kvmCompleteInsnGp(vcpu, error);
}

/** complete_fast_msr_access */
export function completeFastWrmsr(vcpu: KvmVcpu): number {
  return kvmCompleteInsnGp(vcpu, msrAnswer(vcpu).error);
}
