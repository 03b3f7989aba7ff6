/** struct kvm_x86_ops: what the vendor module (kvm_intel, later kvm_amd) does for the common code. */
import type { KvmModuleBase } from "./moduleBase";
import type { Kvm, KvmVcpu } from "./types";
import type { KvmSegment } from "./uapi";

/** fastpath_t. YIELD: the time slice is over and the guest stays entered. */
export const Fastpath = { NONE: 0, REENTER_GUEST: 1, EXIT_HANDLED: 2, EXIT_USERSPACE: 3, YIELD: 4 } as const;
export type Fastpath = (typeof Fastpath)[keyof typeof Fastpath];

/** Return value of the run loop's functions when KVM_RUN yields: neither a userspace exit (0) nor an errno (< 0). */
export const KVM_RUN_YIELD = -0x10000;

/** Numbers of segment registers (VCPU_SREG_*), as Seg of cpu/state. */
export interface KvmX86Ops {
  readonly name: "kvm_intel";
  hardwareEnable(module: KvmModuleBase, cpu: number): void;
  hardwareDisable(module: KvmModuleBase, cpu: number): void;

  vmInit(kvm: Kvm): void;
  vcpuCreate(vcpu: KvmVcpu): void;
  vcpuFree(vcpu: KvmVcpu): void;
  vcpuReset(vcpu: KvmVcpu, initEvent: boolean): void;
  vcpuLoad(vcpu: KvmVcpu, cpu: number): void;
  vcpuPut(vcpu: KvmVcpu): void;
  schedIn(vcpu: KvmVcpu): void;
  prepareSwitchToGuest(vcpu: KvmVcpu): void;

  updateExceptionBitmap(vcpu: KvmVcpu): void;
  /** @returns null where #GP is due, undefined for an MSR nobody knows */
  getMsr(vcpu: KvmVcpu, index: number, hostInitiated: boolean): bigint | null | undefined;
  /** @returns 0, 1 for #GP, or a negative errno */
  setMsr(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number;
  getSegmentBase(vcpu: KvmVcpu, seg: number): bigint;
  getSegment(vcpu: KvmVcpu, seg: number): KvmSegment;
  setSegment(vcpu: KvmVcpu, seg: number, value: KvmSegment): void;
  getCpl(vcpu: KvmVcpu): number;
  getCsDbLBits(vcpu: KvmVcpu): { db: number; l: number };
  isValidCr0(vcpu: KvmVcpu, cr0: bigint): boolean;
  setCr0(vcpu: KvmVcpu, cr0: bigint): void;
  isValidCr4(vcpu: KvmVcpu, cr4: bigint): boolean;
  setCr4(vcpu: KvmVcpu, cr4: bigint): void;
  setEfer(vcpu: KvmVcpu, efer: bigint): void;
  getIdt(vcpu: KvmVcpu): { base: bigint; limit: number };
  setIdt(vcpu: KvmVcpu, table: { base: bigint; limit: number }): void;
  getGdt(vcpu: KvmVcpu): { base: bigint; limit: number };
  setGdt(vcpu: KvmVcpu, table: { base: bigint; limit: number }): void;
  syncDirtyDebugRegs(vcpu: KvmVcpu): void;
  setDr7(vcpu: KvmVcpu, value: bigint): void;
  cacheReg(vcpu: KvmVcpu, reg: number): void;
  getRflags(vcpu: KvmVcpu): bigint;
  setRflags(vcpu: KvmVcpu, rflags: bigint): void;

  flushTlbAll(vcpu: KvmVcpu): void;
  flushTlbCurrent(vcpu: KvmVcpu): void;
  flushTlbGva(vcpu: KvmVcpu, gva: bigint): void;
  flushTlbGuest(vcpu: KvmVcpu): void;

  vcpuPreRun(vcpu: KvmVcpu): number;
  vcpuRun(vcpu: KvmVcpu): Fastpath;
  handleExitIrqoff(vcpu: KvmVcpu): void;
  handleExit(vcpu: KvmVcpu, fastpath: Fastpath): number;
  skipEmulatedInstruction(vcpu: KvmVcpu): number;
  setInterruptShadow(vcpu: KvmVcpu, mask: number): void;
  getInterruptShadow(vcpu: KvmVcpu): number;
  injectIrq(vcpu: KvmVcpu): void;
  injectNmi(vcpu: KvmVcpu): void;
  injectException(vcpu: KvmVcpu): void;
  cancelInjection(vcpu: KvmVcpu): void;
  interruptAllowed(vcpu: KvmVcpu): boolean;
  nmiAllowed(vcpu: KvmVcpu): boolean;
  getNmiMask(vcpu: KvmVcpu): boolean;
  setNmiMask(vcpu: KvmVcpu, masked: boolean): void;
  enableNmiWindow(vcpu: KvmVcpu): void;
  enableIrqWindow(vcpu: KvmVcpu): void;
  updateCr8Intercept(vcpu: KvmVcpu, tpr: number, irr: number): void;
  setVirtualApicMode(vcpu: KvmVcpu): void;
  setApicAccessPageAddr(vcpu: KvmVcpu): void;
  setTssAddr(kvm: Kvm, addr: number): void;
  setIdentityMapAddr(kvm: Kvm, addr: number): void;
  loadMmuPgd(vcpu: KvmVcpu, root: number, level: number): void;
  vcpuAfterSetCpuid(vcpu: KvmVcpu): void;
  writeTscOffset(vcpu: KvmVcpu): void;
  writeTscMultiplier(vcpu: KvmVcpu): void;
  msrFilterChanged(vcpu: KvmVcpu): void;
  updateCpuDirtyLogging(vcpu: KvmVcpu): void;
}
