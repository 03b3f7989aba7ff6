/**
 * The architecture-independent part (virt/kvm/kvm_main.c): creating virtual machines and vCPUs, loading and scheduling a
 * vCPU's thread, kicks, and blocking with halt polling.
 */
import { newCoalescedMmioRing } from "./coalescedMmio";
import { kvmDirtyRingAlloc } from "./dirtyRing";
import { Errno, KvmError } from "./errno";
import { kvmIrqfdRelease } from "./eventfd";
import { HostVector } from "./hostKernel";
import { KvmPit } from "./i8254";
import { KvmPic } from "./i8259";
import { KvmIoapic } from "./ioapic";
import { KvmIoBuses } from "./ioBus";
import { irqchipInKernel, picInKernel } from "./irq";
import { defaultRouting } from "./irqComm";
import { newMemslotSets } from "./memslots";
import { kvmMmuUnload } from "./mmu/mmu";
import { hardwareDisableAll, hardwareEnableAll, type KvmModuleBase } from "./moduleBase";
import { HOST_TSC_KHZ, kvmclockOwner, kvmclockSyncFn } from "./pvclock";
import { KvmReq, kvmCheckRequest } from "./requests";
import { newKvmVmStat } from "./stats";
import { KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS, Kvm, type KvmState, KvmVcpu, VcpuMode } from "./types";
import { kvmArchVcpuRunnable } from "./x86Halt";
import { KVM_RUN_YIELD } from "./x86Ops";
import {
  kvmArchVcpuCreate,
  kvmArchVcpuLoad,
  kvmArchVcpuPostcreate,
  kvmArchVcpuPut,
  kvmLoadGuestFpu,
  kvmPutGuestFpu,
  kvmVcpuReset,
  newVcpuState,
} from "./x86Vcpu";

// --- virtual machines -----------------------------------------------------------------------------------------------

const newKvmState = (tscKhz: number, now: number): KvmState => ({
  memslots: newMemslotSets(),
  createdVcpus: 0,
  manualDirtyLogProtect: 0,
  dirtyRingSize: 0,
  maxHaltPollNs: -1,
  vmDead: false,
  coalescedMmioRing: newCoalescedMmioRing(),
  stat: newKvmVmStat(),
  arch: {
    irqchipMode: "none",
    tssAddr: 0,
    identityMapReady: false,
    identityMapAddr: 0xfffbc000,
    apicAccessMemslotEnabled: false,
    apicAccessPage: -1,
    bspVcpuId: 0,
    disabledExits: 0,
    x2apicFormat: false,
    x2apicBroadcastQuirkDisabled: false,
    exceptionPayloadEnabled: false,
    tripleFaultEvent: false,
    exitOnEmulationError: false,
    guestCanReadMsrPlatformInfo: true,
    maxVcpuIds: 0,
    kvmclockOffset: -now,
    tscKhz,
    tsc: {
      lastNsec: 0,
      lastWrite: 0n,
      lastOffset: 0n,
      lastKhz: 0,
      curNsec: 0,
      curWrite: 0n,
      curOffset: 0n,
      curGeneration: 0,
      nrVcpusMatched: 0,
    },
    useMasterClock: false,
    masterKernelNs: 0,
    masterCycleNow: 0n,
    bootVcpuRunsOldKvmclock: false,
    userSpaceMsrMask: 0,
    msrFilter: null,
    hypercallExitEnabled: 0n,
    nrReservedIoapicPins: 0,
    disableNxHugePages: false,
    nMaxMmuPages: 0,
    mmu: { pages: new Map(), roots: [], validGen: 0, invalidateSeq: 0 },
    irqStates: {},
    irqRoutes: [],
    disabledQuirks: 0n,
  },
});

/** kvm_create_vm. @throws KvmError EINVAL for an unknown machine type */
export function kvmCreateVm(module: KvmModuleBase, type: number): Kvm {
  if (type !== 0)
    throw new KvmError("EINVAL", "KVM_CREATE_VM", `machine type ${type}: only KVM_X86_DEFAULT_VM (0) exists`);
  hardwareEnableAll(module);
  const kvm = new Kvm(module, module.nextVmId++, newKvmState(HOST_TSC_KHZ, module.host.clock.now), new KvmIoBuses());
  module.host.clock.register(kvmclockOwner(kvm), { onClockEvent: () => kvmclockSyncFn(kvm) });
  module.ops.vmInit(kvm);
  module.vmList.push(kvm);
  return kvm;
}

/** kvm_destroy_vm: the last file descriptor is closed. */
export function kvmDestroyVm(kvm: Kvm): void {
  const at = kvm.module.vmList.indexOf(kvm);
  if (at < 0) return;
  kvmIrqfdRelease(kvm);
  for (const vcpu of kvm.vcpus) {
    kvmMmuUnload(vcpu);
    kvm.module.ops.vcpuFree(vcpu);
  }
  kvm.vcpus.length = 0;
  kvm.module.vmList.splice(at, 1);
  hardwareDisableAll(kvm.module);
}

/** kvm_vm_ioctl_create_vcpu. @throws KvmError EINVAL, EEXIST */
export function kvmVmIoctlCreateVcpu(kvm: Kvm, id: number): KvmVcpu {
  const fail = (errno: "EINVAL" | "EEXIST", why: string): never => {
    throw new KvmError(errno, "KVM_CREATE_VCPU", why);
  };
  if (!Number.isInteger(id) || id < 0 || id >= KVM_MAX_VCPU_IDS)
    fail("EINVAL", `vCPU ids are 0 to ${KVM_MAX_VCPU_IDS - 1}`);
  if (kvm.state.createdVcpus >= KVM_MAX_VCPUS) fail("EINVAL", `at most ${KVM_MAX_VCPUS} vCPUs`);
  // kvm_arch_vcpu_precreate: the limit is fixed from the first vCPU on.
  if (kvm.arch.maxVcpuIds === 0) kvm.arch.maxVcpuIds = KVM_MAX_VCPU_IDS;
  if (id >= kvm.arch.maxVcpuIds) fail("EINVAL", `KVM_CAP_MAX_VCPU_ID limits the ids to ${kvm.arch.maxVcpuIds - 1}`);
  if (kvm.vcpus.some((v) => v.state.vcpuId === id)) fail("EEXIST", `vCPU ${id} exists`);
  const idx = kvm.state.createdVcpus++;
  const cpu = idx % kvm.module.host.processors.length;
  const vcpu = new KvmVcpu(kvm, newVcpuState(id, idx, cpu));
  vcpu.state.dirtyRing = kvmDirtyRingAlloc(kvm);
  kvmArchVcpuCreate(vcpu);
  kvm.vcpus.push(vcpu);
  vcpuLoad(vcpu);
  kvmVcpuReset(vcpu, false);
  kvmArchVcpuPostcreate(vcpu);
  vcpuPut(vcpu);
  return vcpu;
}

/** KVM_CREATE_IRQCHIP: PIC, I/O APIC, and a local APIC for every vCPU to come. @throws KvmError EEXIST, EINVAL */
export function kvmCreateIrqchip(kvm: Kvm): void {
  if (irqchipInKernel(kvm)) throw new KvmError("EEXIST", "KVM_CREATE_IRQCHIP", "there is an irqchip already");
  if (kvm.state.createdVcpus > 0)
    throw new KvmError("EINVAL", "KVM_CREATE_IRQCHIP", "it must come before the first vCPU");
  kvm.vpic = new KvmPic(kvm);
  kvm.vioapic = new KvmIoapic(kvm);
  kvm.arch.irqRoutes = defaultRouting();
  kvm.arch.irqchipMode = "kernel";
}

/** KVM_CREATE_PIT2. @throws KvmError EEXIST, ENOENT */
export function kvmCreatePit(kvm: Kvm, flags: number): void {
  if (kvm.vpit) throw new KvmError("EEXIST", "KVM_CREATE_PIT2", "there is a PIT already");
  if (!picInKernel(kvm)) throw new KvmError("ENOENT", "KVM_CREATE_PIT2", "it needs KVM_CREATE_IRQCHIP first");
  kvm.vpit = new KvmPit(kvm, flags);
}

// --- loading and scheduling -----------------------------------------------------------------------------------------

/** vcpu_load: the thread's processor gets the vCPU's state. */
export function vcpuLoad(vcpu: KvmVcpu): void {
  kvmArchVcpuLoad(vcpu, vcpu.state.thread.cpu);
}

/** vcpu_put */
export function vcpuPut(vcpu: KvmVcpu): void {
  kvmArchVcpuPut(vcpu);
}

/**
 * kvm_sched_in, the preempt notifier: the thread has a processor again, perhaps another one. Inside the guest nothing was
 * put away, so there is only the processor to make the running one.
 */
export function kvmSchedIn(vcpu: KvmVcpu, cpu: number): void {
  if (vcpu.state.suspended === "guest") {
    vcpu.cpu = vcpu.module.host.processors[vcpu.state.cpu];
    vcpu.module.host.activate(vcpu.state.cpu);
    return;
  }
  vcpu.module.ops.schedIn(vcpu);
  kvmArchVcpuLoad(vcpu, cpu);
  if (!vcpu.arch.guestFpuLoaded) kvmLoadGuestFpu(vcpu);
}

/** kvm_sched_out: the thread gives up its processor in the kernel. */
export function kvmSchedOut(vcpu: KvmVcpu): void {
  if (vcpu.state.suspended === "guest") return;
  kvmPutGuestFpu(vcpu);
  kvmArchVcpuPut(vcpu);
}

// --- kicks ------------------------------------------------------------------------------------------------------------

/** kvm_vcpu_wake_up: a blocked vCPU looks again at its next turn. @returns whether it was blocked */
function kvmVcpuWakeUp(vcpu: KvmVcpu): boolean {
  return vcpu.state.suspended === "block" || vcpu.state.suspended === "block-uninitialized";
}

/** kvm_vcpu_kick: a vCPU inside the guest leaves it (reschedule IPI), a blocked one wakes up. */
export function kvmVcpuKick(vcpu: KvmVcpu): void {
  if (kvmVcpuWakeUp(vcpu)) return;
  if (vcpu.state.mode !== VcpuMode.IN_GUEST_MODE) return;
  vcpu.state.mode = VcpuMode.EXITING_GUEST_MODE;
  const { host } = vcpu.module;
  host.interrupts[vcpu.state.cpu].raise(HostVector.RESCHEDULE);
  host.processors[vcpu.state.cpu].attention();
}

// --- blocking -----------------------------------------------------------------------------------------------------------

/** kvm_cpu_has_pending_timer: the chip delivers its own timer's interrupts, so none waits outside it. */
const kvmCpuHasPendingTimer = (_vcpu: KvmVcpu): boolean => false;

/** kvm_vcpu_check_block. @returns -EINTR when the vCPU has a reason to go on */
function kvmVcpuCheckBlock(vcpu: KvmVcpu): number {
  const { thread } = vcpu.state;
  if (kvmArchVcpuRunnable(vcpu) || kvmCpuHasPendingTimer(vcpu)) return -Errno.EINTR;
  if (thread.signalPending || thread.notifySignal) return -Errno.EINTR;
  if (kvmCheckRequest(KvmReq.UNBLOCK, vcpu)) return -Errno.EINTR;
  return 0;
}

/** kvm_vcpu_block. @returns 0 when there is a reason to go on, KVM_RUN_YIELD while the thread sleeps */
export function kvmVcpuBlock(vcpu: KvmVcpu): number {
  vcpu.stat.blocking = 1;
  if (kvmVcpuCheckBlock(vcpu) === 0) {
    if (vcpu.state.suspended === null) vcpu.state.suspended = "block";
    return KVM_RUN_YIELD;
  }
  if (vcpu.state.suspended !== null) vcpu.stat.halt_wakeup++;
  vcpu.stat.blocking = 0;
  vcpu.state.suspended = null;
  return 0;
}

/** kvm_vcpu_max_halt_poll_ns: what KVM_CAP_HALT_POLL set for this VM, otherwise the module's. */
const kvmVcpuMaxHaltPollNs = (vcpu: KvmVcpu): number =>
  vcpu.kvm.state.maxHaltPollNs >= 0 ? vcpu.kvm.state.maxHaltPollNs : vcpu.module.params.halt_poll_ns;

/** kvm_arch_no_poll: the guest polls itself (MSR_KVM_POLL_CONTROL). */
const kvmArchNoPoll = (vcpu: KvmVcpu): boolean => (vcpu.arch.pollControl & 1n) === 0n;

/**
 * kvm_vcpu_halt: polls for a while, then blocks. Polling passes no virtual time here: once the vCPU goes on, the length of
 * the halt tells whether polling would have caught its end, and the statistics and the window follow from that.
 */
export function kvmVcpuHalt(vcpu: KvmVcpu): number {
  const { stat, module } = vcpu;
  const { clock } = module.host;
  const window = kvmArchNoPoll(vcpu) ? 0 : Math.min(vcpu.state.haltPollNs, kvmVcpuMaxHaltPollNs(vcpu));
  if (vcpu.state.suspended === null) {
    vcpu.state.haltStart = clock.now;
    if (window > 0) stat.halt_attempted_poll++;
  }
  if (kvmVcpuBlock(vcpu) === KVM_RUN_YIELD) return KVM_RUN_YIELD;
  const haltNs = clock.now - vcpu.state.haltStart;
  const polled = window > 0 && haltNs <= window;
  if (polled) {
    stat.halt_successful_poll++;
    stat.halt_poll_success_ns += haltNs;
    if (!kvmArchVcpuRunnable(vcpu)) stat.halt_poll_invalid++;
  } else {
    if (window > 0) stat.halt_poll_fail_ns += window;
    stat.halt_wait_ns += haltNs - window;
  }
  adjustHaltPoll(vcpu, haltNs, polled);
  return 0;
}

/** grow_halt_poll_ns and shrink_halt_poll_ns, by how long the halt was. */
function adjustHaltPoll(vcpu: KvmVcpu, haltNs: number, polled: boolean): void {
  const { halt_poll_ns_grow, halt_poll_ns_grow_start, halt_poll_ns_shrink } = vcpu.module.params;
  const halt_poll_ns = kvmVcpuMaxHaltPollNs(vcpu);
  if (halt_poll_ns === 0) {
    vcpu.state.haltPollNs = 0;
    return;
  }
  if (polled || kvmArchNoPoll(vcpu)) return;
  const { haltPollNs } = vcpu.state;
  if (haltPollNs > 0 && haltNs > halt_poll_ns) {
    const shrunk = halt_poll_ns_shrink === 0 ? 0 : Math.floor(haltPollNs / halt_poll_ns_shrink);
    vcpu.state.haltPollNs = shrunk < halt_poll_ns_grow_start ? 0 : shrunk;
  } else if (haltPollNs < halt_poll_ns && haltNs < halt_poll_ns && halt_poll_ns_grow > 0) {
    vcpu.state.haltPollNs = Math.min(Math.max(haltPollNs * halt_poll_ns_grow, halt_poll_ns_grow_start), halt_poll_ns);
  }
}
