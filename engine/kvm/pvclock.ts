/**
 * Paravirtual time (arch/x86/kvm/x86.c, Documentation/virt/kvm/x86/msr.rst): the TSC each vCPU sees, the VM's master clock,
 * kvmclock's page in guest memory, wall clock and steal time.
 */
import { guestPvHas } from "./cpuid";
import { KvmError } from "./errno";
import { rdtsc } from "./hostKernel";
import { kvmVcpuKick } from "./kvmMain";
import { KvmFeature } from "./kvmPara";
import { kvmReadGuest, kvmWriteGuest } from "./memslots";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { Kvm, KvmVcpu } from "./types";
import {
  KVM_CLOCK_HOST_TSC,
  KVM_CLOCK_REALTIME,
  KVM_CLOCK_TSC_STABLE,
  KVM_CLOCK_VALID_FLAGS,
  type KvmClockData,
} from "./uapi";

/** Bit 0 of the clock MSRs: the address in them is in use. */
export const KVM_MSR_ENABLED = 1n;
const NSEC_PER_SEC = 1_000_000_000n;
const U64 = (1n << 64n) - 1n;

// --- TSC ------------------------------------------------------------------------------------------------------------------

/** Fraction bits of a TSC-scaling ratio (kvm_caps.tsc_scaling_ratio_frac_bits). */
const TSC_RATIO_FRAC_BITS = 48n;
/** TSC multiplier 1, with 48 fractional bits. */
export const DEFAULT_TSC_SCALING_RATIO = 1n << TSC_RATIO_FRAC_BITS;
/** tsc_khz of the host: one tick a nanosecond. */
export const HOST_TSC_KHZ = 1_000_000;
/** max_guest_tsc_khz: the largest ratio, as far as 31 bits hold it. */
const MAX_GUEST_TSC_KHZ = 0x7fffffff;

const hostTsc = (vcpu: KvmVcpu): bigint => rdtsc(vcpu.module.host.processors[vcpu.state.thread.cpu]);

/** kvm_scale_tsc */
const kvmScaleTsc = (vcpu: KvmVcpu, tsc: bigint): bigint =>
  ((BigInt.asUintN(64, tsc) * vcpu.arch.tscScalingRatio) >> TSC_RATIO_FRAC_BITS) & U64;

/** kvm_read_l1_tsc: the guest's TSC, at a host TSC or now. */
export const kvmReadL1Tsc = (vcpu: KvmVcpu, host = hostTsc(vcpu)): bigint =>
  BigInt.asUintN(64, kvmScaleTsc(vcpu, host) + vcpu.arch.tscOffset);

/** Host TSC at which the guest's shows `tsc`. */
export const hostTscOfGuestTsc = (vcpu: KvmVcpu, tsc: bigint): bigint => {
  const scaled = BigInt.asIntN(64, tsc - vcpu.arch.tscOffset);
  return vcpu.arch.tscScalingRatio === DEFAULT_TSC_SCALING_RATIO
    ? scaled
    : (scaled << TSC_RATIO_FRAC_BITS) / vcpu.arch.tscScalingRatio;
};

/** kvm_vcpu_write_tsc_offset */
function kvmVcpuWriteTscOffset(vcpu: KvmVcpu, offset: bigint): void {
  vcpu.arch.tscOffset = BigInt.asUintN(64, offset);
  vcpu.module.ops.writeTscOffset(vcpu);
  vcpu.apic?.chip.tscChanged();
}

/** adjust_tsc_offset_guest */
export const adjustTscOffset = (vcpu: KvmVcpu, adjustment: bigint): void =>
  kvmVcpuWriteTscOffset(vcpu, vcpu.arch.tscOffset + adjustment);

/** KVM_VCPU_TSC_OFFSET: the vCPU is taken to match the others when the offset is theirs. */
export function kvmSetTscOffset(vcpu: KvmVcpu, offset: bigint): void {
  const { tsc } = vcpu.kvm.arch;
  const value = BigInt.asUintN(64, offset);
  const matched = vcpu.arch.virtualTscKhz !== 0 && tsc.lastKhz === vcpu.arch.virtualTscKhz && tsc.curOffset === value;
  trackTsc(vcpu, value, kvmScaleTsc(vcpu, hostTsc(vcpu)) + value, matched);
}

/**
 * kvm_synchronize_tsc: userspace gives a vCPU a TSC. Writes of 0, and writes within a second of virtual time of what the
 * other vCPUs would show, mean that the TSCs are to be the same.
 */
export function kvmSynchronizeTsc(vcpu: KvmVcpu, data: bigint): void {
  const { arch } = vcpu;
  const { tsc } = vcpu.kvm.arch;
  const ns = vcpu.module.host.clock.now;
  let offset = BigInt.asUintN(64, data - kvmScaleTsc(vcpu, hostTsc(vcpu)));
  let synchronizing = false;
  if (arch.virtualTscKhz !== 0) {
    if (data === 0n) {
      synchronizing = true;
    } else {
      const elapsed = (BigInt(ns - tsc.lastNsec) * BigInt(arch.virtualTscKhz)) / 1_000_000n;
      const difference = BigInt.asIntN(64, data - tsc.lastWrite - elapsed);
      const second = BigInt(arch.virtualTscKhz) * 1000n;
      synchronizing = difference > -second && difference < second;
    }
  }
  const matched = synchronizing && arch.virtualTscKhz === tsc.lastKhz && tsc.curGeneration > 0;
  if (matched) offset = tsc.curOffset;
  trackTsc(vcpu, offset, data, matched);
}

/** __kvm_synchronize_tsc, kvm_track_tsc_matching */
function trackTsc(vcpu: KvmVcpu, offset: bigint, data: bigint, matched: boolean): void {
  const { arch } = vcpu;
  const { tsc } = vcpu.kvm.arch;
  const ns = vcpu.module.host.clock.now;
  tsc.lastNsec = ns;
  tsc.lastWrite = BigInt.asUintN(64, data);
  tsc.lastKhz = arch.virtualTscKhz;
  tsc.lastOffset = offset;
  kvmVcpuWriteTscOffset(vcpu, offset);
  if (!matched) {
    tsc.curGeneration++;
    tsc.curNsec = ns;
    tsc.curWrite = BigInt.asUintN(64, data);
    tsc.curOffset = offset;
    tsc.nrVcpusMatched = 0;
  } else if (arch.thisTscGeneration !== tsc.curGeneration) {
    tsc.nrVcpusMatched++;
  }
  arch.thisTscGeneration = tsc.curGeneration;
  kvmMakeRequest(KvmReq.MASTERCLOCK_UPDATE, vcpu);
}

/** adjust_tsc_khz */
const adjustTscKhz = (khz: number, ppm: number): number => Math.floor((khz * (1_000_000 + ppm)) / 1_000_000);

/** kvm_set_tsc_khz. @returns false where the rate cannot be had */
export function kvmSetTscKhz(vcpu: KvmVcpu, khz: number): boolean {
  const { arch, module } = vcpu;
  const tolerance = module.params.tsc_tolerance_ppm;
  const scale = khz < adjustTscKhz(HOST_TSC_KHZ, -tolerance) || khz > adjustTscKhz(HOST_TSC_KHZ, tolerance);
  if (scale && !module.features.tscScaling) return false;
  arch.virtualTscKhz = khz;
  const ratio = scale ? (BigInt(khz) << TSC_RATIO_FRAC_BITS) / BigInt(HOST_TSC_KHZ) : DEFAULT_TSC_SCALING_RATIO;
  arch.tscScalingRatio = ratio;
  module.ops.writeTscMultiplier(vcpu);
  vcpu.apic?.chip.tscChanged();
  return true;
}

/** The rate of KVM_SET_TSC_KHZ: 0 is the host's. @throws KvmError EINVAL */
export function tscKhzOf(module: KvmVcpu["module"], khz: number): number {
  if (module.features.tscScaling && khz >= MAX_GUEST_TSC_KHZ) {
    throw new KvmError("EINVAL", "KVM_SET_TSC_KHZ", `the TSC can be scaled to less than ${MAX_GUEST_TSC_KHZ} kHz`);
  }
  return khz === 0 ? HOST_TSC_KHZ : khz;
}

// --- the master clock -----------------------------------------------------------------------------------------------------

/** get_kvmclock_base_ns: the host's monotonic clock. */
const kvmclockBaseNs = (kvm: Kvm): number => kvm.module.host.clock.now;
/** ktime_get_real_ns */
const realNs = (kvm: Kvm): number => kvm.module.host.clock.now + (kvm.module.host.realtimeOffset ?? 0);

/** pvclock_update_vm_gtod_copy: one clock for all vCPUs if their TSCs are the same. */
export function kvmUpdateMasterclock(kvm: Kvm): void {
  const { arch } = kvm;
  const matched = arch.tsc.nrVcpusMatched + 1 === kvm.vcpus.length;
  arch.useMasterClock = matched && !arch.bootVcpuRunsOldKvmclock;
  if (arch.useMasterClock) {
    arch.masterKernelNs = kvmclockBaseNs(kvm);
    arch.masterCycleNow = rdtsc(kvm.module.host.processors[0]);
  }
  for (const vcpu of kvm.vcpus) kvmMakeRequest(KvmReq.CLOCK_UPDATE, vcpu);
}

/** get_kvmclock_ns */
const kvmclockNs = (kvm: Kvm): number => kvmclockBaseNs(kvm) + kvm.arch.kvmclockOffset;

/** KVM_GET_CLOCK */
export function kvmVmIoctlGetClock(kvm: Kvm): KvmClockData {
  const clock = BigInt(kvmclockNs(kvm));
  // A request for the master clock that no vCPU has served yet counts as served (kvm_end_pvclock_update).
  if (kvm.vcpus.some((v) => v.state.requests[KvmReq.MASTERCLOCK_UPDATE] !== 0)) kvmUpdateMasterclock(kvm);
  if (!kvm.arch.useMasterClock) return { clock, flags: 0, realtime: 0n, host_tsc: 0n };
  return {
    clock,
    flags: KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
    realtime: BigInt(realNs(kvm)),
    host_tsc: rdtsc(kvm.module.host.processors[0]),
  };
}

/** KVM_SET_CLOCK: with KVM_CLOCK_REALTIME the time that passed since is added. @throws KvmError EINVAL */
export function kvmVmIoctlSetClock(kvm: Kvm, data: KvmClockData): void {
  if (data.flags & ~KVM_CLOCK_VALID_FLAGS) {
    throw new KvmError("EINVAL", "KVM_SET_CLOCK", "KVM_CAP_ADJUST_CLOCK has the flags there are");
  }
  let clock = Number(data.clock);
  if (data.flags & KVM_CLOCK_REALTIME && data.realtime !== undefined) {
    clock += Math.max(0, realNs(kvm) - Number(data.realtime));
  }
  kvmUpdateMasterclock(kvm);
  kvm.arch.kvmclockOffset = clock - (kvm.arch.useMasterClock ? kvm.arch.masterKernelNs : kvmclockBaseNs(kvm));
}

// --- kvmclock -------------------------------------------------------------------------------------------------------------

const PVCLOCK_TSC_STABLE = 1;
const PVCLOCK_GUEST_STOPPED = 2;
const PVCLOCK_BYTES = 32;
const PVCLOCK_FLAGS = 29;

/** kvm_get_time_scale: multiplier (32-bit fraction) and shift that turn `base` Hz into `scaled` Hz. */
export function kvmGetTimeScale(scaledHz: bigint, baseHz: bigint): { shift: number; multiplier: number } {
  const HIGH = 0xffffffff00000000n;
  let shift = 0;
  let scaled = scaledHz;
  let tps = baseHz;
  while (tps > scaled * 2n || tps & HIGH) {
    tps >>= 1n;
    shift--;
  }
  while (tps <= scaled || scaled & HIGH) {
    if (scaled & HIGH || tps & 0x80000000n) scaled >>= 1n;
    else tps <<= 1n;
    shift++;
  }
  return { shift, multiplier: Number((scaled << 32n) / tps) };
}

/**
 * kvm_guest_time_update: struct pvclock_vcpu_time_info in guest memory. The version is odd while the rest changes, so that a
 * reader on another vCPU tries again.
 */
export function kvmGuestTimeUpdate(vcpu: KvmVcpu): number {
  const { arch, kvm } = vcpu;
  const master = kvm.arch.useMasterClock;
  const hostNow = master ? kvm.arch.masterCycleNow : hostTsc(vcpu);
  const kernelNs = master ? kvm.arch.masterKernelNs : kvmclockBaseNs(kvm);
  const tsc = kvmReadL1Tsc(vcpu, hostNow);
  if (!(arch.pvTime & KVM_MSR_ENABLED)) return 0;
  const address = Number(arch.pvTime & ~KVM_MSR_ENABLED);
  const bytes = new Uint8Array(PVCLOCK_BYTES);
  const view = new DataView(bytes.buffer);
  if (!kvmReadGuest(kvm, address, bytes)) return 0;
  const odd = (view.getUint32(0, true) | 1) >>> 0;
  // The guest clears GUEST_STOPPED itself when it has seen it.
  let flags = bytes[PVCLOCK_FLAGS] & PVCLOCK_GUEST_STOPPED;
  if (arch.pvclockSetGuestStoppedRequest) flags |= PVCLOCK_GUEST_STOPPED;
  arch.pvclockSetGuestStoppedRequest = false;
  if (master) flags |= PVCLOCK_TSC_STABLE;
  const { shift, multiplier } = kvmGetTimeScale(NSEC_PER_SEC, BigInt(arch.virtualTscKhz) * 1000n);
  writeVersion(kvm, address, 0, odd);
  view.setUint32(0, odd, true);
  view.setBigUint64(8, tsc, true);
  view.setBigUint64(16, BigInt.asUintN(64, BigInt(kernelNs + kvm.arch.kvmclockOffset)), true);
  view.setUint32(24, multiplier, true);
  view.setInt8(28, shift);
  view.setUint8(PVCLOCK_FLAGS, flags);
  kvmWriteGuest(kvm, address, bytes);
  writeVersion(kvm, address, 0, (odd + 1) >>> 0);
  return 0;
}

function writeVersion(kvm: Kvm, address: number, offset: number, version: number): void {
  const word = new Uint8Array(4);
  new DataView(word.buffer).setUint32(0, version, true);
  kvmWriteGuest(kvm, address + offset, word);
}

/** kvm_write_system_time. @param oldMsr MSR_KVM_SYSTEM_TIME, whose users know no master clock */
export function kvmWriteSystemTime(vcpu: KvmVcpu, data: bigint, oldMsr: boolean, hostInitiated: boolean): void {
  const { arch } = vcpu.kvm;
  if (vcpu.state.vcpuId === 0 && !hostInitiated) {
    if (arch.bootVcpuRunsOldKvmclock !== oldMsr) kvmMakeRequest(KvmReq.MASTERCLOCK_UPDATE, vcpu);
    arch.bootVcpuRunsOldKvmclock = oldMsr;
  }
  vcpu.arch.pvTime = data;
  scheduleKvmclockSync(vcpu.kvm);
  kvmMakeRequest(KvmReq.GLOBAL_CLOCK_UPDATE, vcpu);
}

/** kvm_write_wall_clock: struct pvclock_wall_clock, the wall-clock time at which the guest's kvmclock was 0. */
export function kvmWriteWallClock(kvm: Kvm, address: number): void {
  if (address === 0) return;
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  if (!kvmReadGuest(kvm, address, bytes.subarray(0, 4))) return;
  const odd = (view.getUint32(0, true) | 1) >>> 0;
  writeVersion(kvm, address, 0, odd);
  const epoch = realNs(kvm) - kvmclockNs(kvm);
  view.setUint32(0, odd, true);
  view.setUint32(4, Math.floor(epoch / 1e9) >>> 0, true);
  view.setUint32(8, ((epoch % 1e9) + 1e9) % 1e9, true);
  kvmWriteGuest(kvm, address, bytes);
  writeVersion(kvm, address, 0, (odd + 1) >>> 0);
}

/** KVMCLOCK_SYNC_PERIOD: how often kvmclock_sync_work brings the clocks up to date. */
const KVMCLOCK_SYNC_PERIOD_NS = 300e9;

/** Owner of a VM's clock events. */
export const kvmclockOwner = (kvm: Kvm): string => `kvm${kvm.id}.kvmclock`;

/** schedule_delayed_work(kvmclock_sync_work), while a guest uses kvmclock (kvmclock_periodic_sync). */
function scheduleKvmclockSync(kvm: Kvm): void {
  const { clock } = kvm.module.host;
  const used = kvm.vcpus.some((vcpu) => vcpu.arch.pvTime & KVM_MSR_ENABLED);
  if (!kvm.module.params.kvmclock_periodic_sync || !used) return;
  clock.schedule(kvmclockOwner(kvm), "sync", clock.now + KVMCLOCK_SYNC_PERIOD_NS);
}

/** kvmclock_sync_fn and kvmclock_update_fn */
export function kvmclockSyncFn(kvm: Kvm): void {
  for (const vcpu of kvm.vcpus) {
    kvmMakeRequest(KvmReq.CLOCK_UPDATE, vcpu);
    kvmVcpuKick(vcpu);
  }
  scheduleKvmclockSync(kvm);
}

// --- steal time -------------------------------------------------------------------------------------------------------------

/** Alignment bits that must be 0 in MSR_KVM_STEAL_TIME. */
export const KVM_STEAL_RESERVED_MASK = 0x3en;
const KVM_VCPU_PREEMPTED = 1;
const KVM_VCPU_FLUSH_TLB = 2;
/** struct kvm_steal_time: u64 steal, u32 version, u32 flags, u8 preempted. */
const STEAL_VERSION = 8;
const STEAL_PREEMPTED = 16;

const stealAddress = (vcpu: KvmVcpu): number =>
  vcpu.arch.stealMsr & KVM_MSR_ENABLED ? Number(vcpu.arch.stealMsr & ~(KVM_STEAL_RESERVED_MASK | KVM_MSR_ENABLED)) : -1;

/** record_steal_time: time the vCPU wanted to run and did not; TLB flushes another vCPU left for this one are done. */
export function recordStealTime(vcpu: KvmVcpu): void {
  const address = stealAddress(vcpu);
  if (address < 0) return;
  const { kvm, arch } = vcpu;
  const bytes = new Uint8Array(24);
  if (!kvmReadGuest(kvm, address, bytes)) return;
  const view = new DataView(bytes.buffer);
  if (bytes[STEAL_PREEMPTED] & KVM_VCPU_FLUSH_TLB && guestPvHas(vcpu, KvmFeature.PV_TLB_FLUSH)) {
    vcpu.stat.tlb_flush++;
    vcpu.module.ops.flushTlbGuest(vcpu);
  }
  arch.stealPreempted = false;
  kvmWriteGuest(kvm, address + STEAL_PREEMPTED, new Uint8Array(1));
  const odd = (view.getUint32(STEAL_VERSION, true) | 1) >>> 0;
  writeVersion(kvm, address, STEAL_VERSION, odd);
  const steal = new Uint8Array(8);
  const runDelay = vcpu.state.runDelay - arch.lastSteal;
  arch.lastSteal = vcpu.state.runDelay;
  new DataView(steal.buffer).setBigUint64(0, view.getBigUint64(0, true) + BigInt(runDelay), true);
  kvmWriteGuest(kvm, address, steal);
  writeVersion(kvm, address, STEAL_VERSION, (odd + 1) >>> 0);
}

/** kvm_steal_time_set_preempted: other vCPUs see that this one does not run. */
export function kvmStealTimeSetPreempted(vcpu: KvmVcpu): void {
  const address = stealAddress(vcpu);
  if (address < 0) return;
  if (vcpu.arch.atInstructionBoundary) vcpu.stat.preemption_reported++;
  else vcpu.stat.preemption_other++;
  if (vcpu.arch.stealPreempted) return;
  if (kvmWriteGuest(vcpu.kvm, address + STEAL_PREEMPTED, Uint8Array.of(KVM_VCPU_PREEMPTED))) {
    vcpu.arch.stealPreempted = true;
  }
}

// --- clock pairing ----------------------------------------------------------------------------------------------------------

/** kvm_pv_clock_pairing: struct kvm_clock_pairing with host time and guest TSC of one moment. @returns 0 or a KVM_E* */
export function kvmPvClockPairing(vcpu: KvmVcpu, address: bigint, clockType: bigint): bigint {
  const KVM_EOPNOTSUPP = 95n;
  const KVM_EFAULT = 14n;
  if (clockType !== 0n || !vcpu.kvm.arch.useMasterClock) return -KVM_EOPNOTSUPP;
  const bytes = new Uint8Array(64);
  const view = new DataView(bytes.buffer);
  const now = BigInt(realNs(vcpu.kvm));
  view.setBigInt64(0, now / NSEC_PER_SEC, true);
  view.setBigInt64(8, now % NSEC_PER_SEC, true);
  view.setBigUint64(16, kvmReadL1Tsc(vcpu), true);
  return kvmWriteGuest(vcpu.kvm, Number(address), bytes) ? 0n : -KVM_EFAULT;
}
