/** Life of a vCPU on the architecture's side (arch/x86/kvm/x86.c): create, reset, load and put, FPU and kvmclock. */

import { Off, Seg } from "../cpu/state";
import { ARCH_CAPABILITIES } from "../cpu/system/msrs";
import { cr4GuestRsvdBits, kvmFindCpuidEntry, kvmUpdateCpuidRuntime } from "./cpuid";
import { irqchipInKernel } from "./irq";
import { Cr0, kvmReadCr0, kvmRegisterMarkDirty } from "./kvmCacheRegs";
import { KvmLapic, kvmLapicReset } from "./lapic";
import { KVM_MAX_MCE_BANKS } from "./mce";
import { DEFAULT_TSC_SCALING_RATIO, kvmSetTscKhz, kvmStealTimeSetPreempted, kvmSynchronizeTsc } from "./pvclock";

import { KvmReq, kvmMakeRequest } from "./requests";
import { newKvmVcpuStat } from "./stats";
import { type KvmVcpu, type KvmVcpuArchState, type KvmVcpuState, VcpuMode, VcpuReg, type VcpuVmxState } from "./types";
import { KvmMpState, newKvmRun } from "./uapi";
import { newApicvState } from "./vmx/apicv";
import { newRmodeState } from "./vmx/rmode";
import { kvmUpdateDr7, kvmUpdateDr0123 } from "./x86Debug";
import { kvmClearExceptionQueue, kvmClearInterruptQueue, noException } from "./x86Events";
import { FPU_AREA } from "./xsave";

/** Bytes of the processor's block that are FPU and vector state: Off.FCW up to the end of the opmask registers. */
const FPU_BYTES = Off.OPMASK + 64 - Off.FCW;
const DR6_ACTIVE_LOW = 0xffff0ff0n;
const DR7_FIXED_1 = 0x400n;
/** Memory types after power-up: WB, WT, UC-, UC, twice. */
const MSR_IA32_CR_PAT_DEFAULT = 0x0007040600070406n;
/** IA32_MISC_ENABLE: BTS and PEBS unavailable. */
const MISC_ENABLE_RESET = 0x1800n;
const PIO_PAGE_SIZE = 4096;

function newArchState(): KvmVcpuArchState {
  return {
    regs: new BigUint64Array(17),
    regsAvail: 0xffffffff,
    regsDirty: 0xffffffff,
    cr0: 0x60000010n,
    cr0GuestOwnedBits: 0n,
    cr2: 0n,
    cr3: 0n,
    cr4: 0n,
    cr4GuestOwnedBits: 0n,
    cr4GuestRsvdBits: 0n,
    cr8: 0n,
    efer: 0n,
    apicBase: 0n,
    pat: MSR_IA32_CR_PAT_DEFAULT,
    pdptrs: [0n, 0n, 0n, 0n],
    mpState: KvmMpState.UNINITIALIZED,
    apicPendingEvents: 0,
    sipiVector: 0,
    exception: noException(),
    interrupt: { injected: false, nr: 0, soft: false },
    nmiQueued: 0,
    nmiPending: 0,
    nmiInjected: false,
    exceptionVmexitPending: false,
    eventExitInstLen: 0,
    pio: { count: 0, in: false, port: 0, size: 0, linearRip: 0n, data: new Uint8Array(0) },
    completeUserspaceIo: null,
    emulate: null,
    mmioGva: 0n,
    mmioGfn: 0,
    mmioAccess: 0,
    mmioGen: -1,
    cpuidEntries: [],
    maxphyaddr: 36,
    db: [0n, 0n, 0n, 0n],
    dr6: DR6_ACTIVE_LOW,
    dr7: DR7_FIXED_1,
    effDb: [0n, 0n, 0n, 0n],
    guestDebugDr7: DR7_FIXED_1,
    switchDbRegs: 0,
    singlestepRip: 0n,
    xcr0: 1n,
    xss: 0n,
    guestFpu: new Uint8Array(FPU_BYTES),
    guestFpuLoaded: false,
    tscOffset: 0n,
    virtualTscKhz: 0,
    tscScalingRatio: DEFAULT_TSC_SCALING_RATIO,
    thisTscGeneration: 0,
    ia32TscAdjust: 0n,
    lastGuestTsc: 0n,
    ia32MiscEnable: MISC_ENABLE_RESET,
    smbase: 0x30000,
    mtrrDefType: 0n,
    mtrrFixed: new BigUint64Array(11),
    mtrrVariable: new BigUint64Array(16),
    mcgStatus: 0n,
    mcgCap: BigInt(KVM_MAX_MCE_BANKS),
    mcgCtl: 0n,
    mceBanks: new BigUint64Array(KVM_MAX_MCE_BANKS * 4),
    microcodeVersion: 0x100000000n,
    platformInfo: 1n << 31n,
    archCapabilities: ARCH_CAPABILITIES,
    specCtrl: 0n,
    pvTime: 0n,
    wallClock: 0n,
    pvclockSetGuestStoppedRequest: false,
    stealMsr: 0n,
    stealPreempted: false,
    lastSteal: 0,
    pvEoiPending: false,
    pvFeatures: 0,
    pvEnforce: false,
    asyncPfIntMsr: 0n,
    pendingExternalVector: -1,
    expiredTscDeadline: 0n,
    miscFeaturesEnables: 0n,
    hwcr: 0n,
    powerCtl: 0n,
    pendingMsr: null,
    sigset: null,
    pvEoiMsr: 0n,
    asyncPfMsr: 0n,
    tprAccessReporting: false,
    tprAccess: { rip: 0n, write: false },
    pollControl: 1n,
    apfHalted: false,
    pvUnhalted: false,
    lastVmentryCpu: -1,
    pendingIoapicEoi: 0,
    mmuRoot: -1,
    atInstructionBoundary: true,
    haltRequest: false,
    guestDebug: 0,
  };
}

const newVmxState = (): VcpuVmxState => ({
  vmcs: -1,
  launched: false,
  loadedCpu: -1,
  msrBitmap: -1,
  vpid: 0,
  fail: false,
  exitReason: 0,
  exitQualification: 0n,
  exitIntrInfo: 0,
  idtVectoringInfo: 0,
  rflags: 2n,
  emulationRequired: false,
  rmode: newRmodeState(),
  apicv: newApicvState(),
  pmlPage: -1,
  hvTimerAt: -1,
  msrGuestKernelGsBase: 0n,
  uretMsrs: { star: 0n, lstar: 0n, cstar: 0n, syscallMask: 0n, tscAux: 0n },
  guestStateLoaded: false,
  msrIa32FeatureControl: 0n,
  pleWindow: 0,
  pleWindowDirty: false,
  softVnmiBlocked: false,
  controls: { vmEntry: -1, vmExit: -1, pin: -1, exec: -1, secondaryExec: -1 },
  csAr: -1,
  virtualApicPage: -1,
  nmiKnownUnmasked: false,
  guestUretMsrsLoaded: false,
});

/** A vCPU as kvm_vm_ioctl_create_vcpu allocates it. @param cpu physical processor its thread starts on */
export const newVcpuState = (vcpuId: number, vcpuIdx: number, cpu: number): KvmVcpuState => ({
  vcpuId,
  vcpuIdx,
  cpu: -1,
  mode: VcpuMode.OUTSIDE_GUEST_MODE,
  requests: new Uint8Array(64),
  requestsPending: 0,
  suspended: null,
  haltStart: 0,
  haltPollNs: 0,
  stat: newKvmVcpuStat(),
  exitsByReason: {},
  userspaceExits: {},
  arch: newArchState(),
  vmx: newVmxState(),
  mmioNeeded: false,
  mmioReadCompleted: false,
  mmioIsWrite: false,
  mmioCurFragment: 0,
  mmioFragments: [],
  run: newKvmRun(),
  pioPage: new Uint8Array(PIO_PAGE_SIZE),
  dirtyRing: null,
  runDelay: 0,
  waitingSince: -1,
  thread: { cpu, signalPending: false, signals: 0n, notifySignal: false, needResched: false, notifyResume: false },
});

/** fx_init: FNINIT state, MXCSR at its reset value. */
function initFpu(vcpu: KvmVcpu): void {
  const area = vcpu.arch.guestFpu;
  area.fill(0);
  const view = new DataView(area.buffer);
  view.setUint16(FPU_AREA.FCW, 0x37f, true);
  view.setUint32(FPU_AREA.MXCSR, 0x1f80, true);
}

/** kvm_arch_vcpu_create. The vCPU gets loaded by the caller for the reset. */
export function kvmArchVcpuCreate(vcpu: KvmVcpu): void {
  const { kvm, arch } = vcpu;
  const bsp = vcpu.state.vcpuId === kvm.arch.bspVcpuId;
  arch.mpState = !irqchipInKernel(kvm) || bsp ? KvmMpState.RUNNABLE : KvmMpState.UNINITIALIZED;
  arch.maxphyaddr = 36;
  arch.cr4GuestRsvdBits = cr4GuestRsvdBits(vcpu);
  if (irqchipInKernel(kvm)) vcpu.apic = new KvmLapic(vcpu);
  initFpu(vcpu);
  vcpu.module.ops.vcpuCreate(vcpu);
  kvmSetTscKhz(vcpu, kvm.arch.tscKhz);
}

/** kvm_arch_vcpu_postcreate: the TSC starts at 0. */
export const kvmArchVcpuPostcreate = (vcpu: KvmVcpu): void => kvmSynchronizeTsc(vcpu, 0n);

/** kvm_vcpu_reset: power-up, or INIT (SDM 3A 9.1.1, table 9-1). The vCPU must be loaded. */
export function kvmVcpuReset(vcpu: KvmVcpu, initEvent: boolean): void {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  const oldCr0 = initEvent ? kvmReadCr0(vcpu) : 0n;
  kvmLapicReset(vcpu, initEvent);
  arch.smbase = 0x30000;
  arch.nmiQueued = 0;
  arch.nmiPending = 0;
  arch.nmiInjected = false;
  kvmClearInterruptQueue(vcpu);
  kvmClearExceptionQueue(vcpu);
  arch.db = [0n, 0n, 0n, 0n];
  kvmUpdateDr0123(vcpu);
  arch.dr6 = DR6_ACTIVE_LOW;
  arch.dr7 = DR7_FIXED_1;
  arch.cr2 = 0n;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  arch.asyncPfMsr = 0n;
  arch.asyncPfIntMsr = 0n;
  arch.stealMsr = 0n;
  arch.apfHalted = false;
  arch.pvTime = 0n;
  if (!initEvent) {
    arch.ia32MiscEnable = MISC_ENABLE_RESET;
    arch.miscFeaturesEnables = 0n;
    arch.xcr0 = 1n;
    arch.xss = 0n;
  }
  arch.regs.fill(0n);
  const one = kvmFindCpuidEntry(vcpu, 1, 0);
  arch.regs[VcpuReg.RDX] = BigInt(one ? one.eax >>> 0 : 0x600);
  ops.vcpuReset(vcpu, initEvent);
  kvmUpdateDr7(vcpu);
  arch.regs[VcpuReg.RIP] = 0xfff0n;
  kvmRegisterMarkDirty(vcpu, VcpuReg.RIP);
  kvmRegisterMarkDirty(vcpu, VcpuReg.RSP);
  arch.regsAvail |= 0x1ffff;
  ops.setRflags(vcpu, 2n);
  arch.cr3 = 0n;
  kvmRegisterMarkDirty(vcpu, VcpuReg.CR3);
  // CD and NW keep their values over an INIT.
  const cr0 = initEvent ? Cr0.ET | (oldCr0 & (Cr0.NW | Cr0.CD)) : Cr0.ET | Cr0.NW | Cr0.CD;
  ops.setCr0(vcpu, cr0);
  ops.setCr4(vcpu, 0n);
  ops.setEfer(vcpu, 0n);
  ops.updateExceptionBitmap(vcpu);
  kvmUpdateCpuidRuntime(vcpu);
  kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
  if (initEvent) kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
}

/** kvm_vcpu_deliver_sipi_vector: real mode at vector:0000. */
export function kvmVcpuDeliverSipiVector(vcpu: KvmVcpu, vector: number): void {
  const { ops } = vcpu.module;
  const cs = ops.getSegment(vcpu, Seg.CS);
  ops.setSegment(vcpu, Seg.CS, { ...cs, selector: vector << 8, base: BigInt(vector << 12) });
  vcpu.arch.regs[VcpuReg.RIP] = 0n;
  kvmRegisterMarkDirty(vcpu, VcpuReg.RIP);
}

/** kvm_arch_vcpu_load: the vCPU's state goes to physical processor `cpu`. */
export function kvmArchVcpuLoad(vcpu: KvmVcpu, cpu: number): void {
  const { host, ops } = vcpu.module;
  vcpu.cpu = host.processors[cpu];
  host.activate(cpu);
  ops.vcpuLoad(vcpu, cpu);
  if (vcpu.state.cpu !== cpu) {
    // TSCs of all physical processors tick alike; a new one may have a different base.
    kvmMakeRequest(KvmReq.GLOBAL_CLOCK_UPDATE, vcpu);
    if (vcpu.state.cpu >= 0) kvmMakeRequest(KvmReq.MIGRATE_TIMER, vcpu);
    vcpu.state.cpu = cpu;
  }
  vcpu.kvm.runningVcpu = vcpu;
  kvmMakeRequest(KvmReq.STEAL_UPDATE, vcpu);
}

/** kvm_arch_vcpu_put */
export function kvmArchVcpuPut(vcpu: KvmVcpu): void {
  kvmStealTimeSetPreempted(vcpu);
  vcpu.module.ops.vcpuPut(vcpu);
  vcpu.cpu = null;
  vcpu.kvm.runningVcpu = null;
}

/** kvm_load_guest_fpu: the guest's x87, SSE and vector state goes into the processor. */
export function kvmLoadGuestFpu(vcpu: KvmVcpu): void {
  const { state } = vcpu.module.host.processors[vcpu.state.thread.cpu];
  state.u8.set(vcpu.arch.guestFpu, state.base + Off.FCW);
  vcpu.arch.guestFpuLoaded = true;
}

/** kvm_put_guest_fpu */
export function kvmPutGuestFpu(vcpu: KvmVcpu): void {
  if (!vcpu.arch.guestFpuLoaded) return;
  const { state } = vcpu.module.host.processors[vcpu.state.thread.cpu];
  vcpu.arch.guestFpu.set(state.u8.subarray(state.base + Off.FCW, state.base + Off.FCW + FPU_BYTES));
  vcpu.arch.guestFpuLoaded = false;
  vcpu.stat.fpu_reload++;
}
