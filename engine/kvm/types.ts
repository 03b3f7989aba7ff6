/**
 * Structures of the model by Linux's names: struct kvm, struct kvm_vcpu with its arch and vendor parts, memslots, MMU
 * pages. All that changes lies in plain `state` objects (structured-clonable), so that a snapshot is a copy; classes hold
 * only the wiring.
 */
import type { Cpu } from "../cpu/cpu";
import type { Ioeventfd, KvmKernelIrqfd } from "./eventfd";
import type { KvmPit } from "./i8254";
import type { KvmPic } from "./i8259";
import type { KvmIoapic } from "./ioapic";
import type { KvmIoBuses } from "./ioBus";
import type { KvmIrqAckNotifier } from "./irqComm";
import type { KvmLapic } from "./lapic";
import type { ShadowMmuState } from "./mmu/shadowPages";
import type { KvmModuleBase } from "./moduleBase";
import type { KvmVcpuStat, KvmVmStat } from "./stats";
import type {
  KvmCoalescedMmioRing,
  KvmCpuidEntry2,
  KvmIrqRoutingEntry,
  KvmMpState,
  KvmMsrFilterRange,
  KvmRun,
} from "./uapi";
import type { ApicvState } from "./vmx/apicv";
import type { RmodeState } from "./vmx/rmode";

/** Bytes of a page. */
export const PAGE_SIZE = 4096;
/** KVM_ADDRESS_SPACE_NUM without SMM. */
export const KVM_ADDRESS_SPACE_NUM = 1;
/** Memslots userspace may use (KVM_CAP_NR_MEMSLOTS); the ids above are KVM's own. */
export const KVM_USER_MEM_SLOTS = 32764;
/** Memslots that KVM makes for itself, by number. */
export const TSS_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS;
export const APIC_ACCESS_PAGE_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS + 1;
export const IDENTITY_PAGETABLE_PRIVATE_MEMSLOT = KVM_USER_MEM_SLOTS + 2;
/** vCPUs of a VM at most. */
export const KVM_MAX_VCPUS = 16;
/** KVM_MAX_VCPU_IDS: one more than the largest vCPU id. */
export const KVM_MAX_VCPU_IDS = 255;

/** struct kvm_memory_slot */
export interface KvmMemorySlot {
  readonly id: number;
  readonly asId: number;
  readonly baseGfn: number;
  readonly npages: number;
  /** Host-virtual address; of a page the kernel mapped itself when `kernelPage` is set. */
  readonly userspaceAddr: number;
  flags: number;
  /** A set bit is a dirty page; null without KVM_MEM_LOG_DIRTY_PAGES. */
  dirtyBitmap: Uint32Array | null;
  /** Write-tracking counts by page (arch.gfn_write_track); null until something is tracked. */
  gfnWriteTrack: Uint16Array | null;
  /** Host-physical address of a private slot's memory, -1 for userspace's. */
  readonly kernelPage: number;
}

/** struct kvm_memslots: one generation of an address space's slots. */
export interface KvmMemslots {
  generation: number;
  /** Ascending by baseGfn. */
  slots: KvmMemorySlot[];
  /** id_hash. */
  byId: Map<number, KvmMemorySlot>;
}

/** The two sets of an address space; `active` is the one readers use. */
export interface KvmMemslotSets {
  active: 0 | 1;
  sets: [KvmMemslots, KvmMemslots];
}

/** union kvm_mmu_page_role, the bits a direct MMU needs. */
export interface KvmMmuPageRole {
  level: number;
  invalid: boolean;
  adDisabled: boolean;
}

/** struct kvm_mmu_page: one page of the second-level tables. */
export interface KvmMmuPage {
  /** Host-physical address of the table (sp->spt). */
  readonly spt: number;
  readonly gfn: number;
  role: KvmMmuPageRole;
  /** Table that points here, and the index of the entry; -1 for a root. */
  readonly ptep: number;
  readonly ptepIndex: number;
  /** vCPUs that use it as root, plus one while the root is valid. */
  rootCount: number;
}

export interface KvmMmuState {
  /** By host-physical address of the table. */
  pages: Map<number, KvmMmuPage>;
  roots: number[];
  /** mmu_valid_gen. */
  validGen: number;
  invalidateSeq: number;
  /** Shadow paging (ept=0); absent until the first vCPU needs it. */
  shadow?: ShadowMmuState;
}

/** What kvm_synchronize_tsc remembers of the writes of TSCs. */
export interface KvmTscTracking {
  lastNsec: number;
  lastWrite: bigint;
  lastOffset: bigint;
  lastKhz: number;
  curNsec: number;
  curWrite: bigint;
  curOffset: bigint;
  curGeneration: number;
  nrVcpusMatched: number;
}

/** struct kvm_x86_msr_filter. */
export interface KvmMsrFilterState {
  defaultAllow: boolean;
  ranges: KvmMsrFilterRange[];
}

/** struct kvm_arch, the part that is plain data. */
export interface KvmArchState {
  irqchipMode: "none" | "kernel" | "split";
  tssAddr: number;
  identityMapAddr: number;
  /** The identity map has been written (ept without unrestricted guest). */
  identityMapReady: boolean;
  apicAccessMemslotEnabled: boolean;
  apicAccessPage: number;
  bspVcpuId: number;
  /** Bits of KVM_X86_DISABLE_EXITS_*. */
  disabledExits: number;
  x2apicFormat: boolean;
  x2apicBroadcastQuirkDisabled: boolean;
  exceptionPayloadEnabled: boolean;
  tripleFaultEvent: boolean;
  exitOnEmulationError: boolean;
  /** KVM_CAP_VM_DISABLE_NX_HUGE_PAGES. */
  disableNxHugePages: boolean;
  /** n_max_mmu_pages of KVM_SET_NR_MMU_PAGES. */
  nMaxMmuPages: number;
  guestCanReadMsrPlatformInfo: boolean;
  /** max_vcpu_ids: one more than the largest vCPU id of this VM, 0 until it is set or the first vCPU is made. */
  maxVcpuIds: number;
  kvmclockOffset: number;
  /** default_tsc_khz: rate of vCPUs to come. */
  tscKhz: number;
  tsc: KvmTscTracking;
  /** All vCPUs have the same TSC, so that kvmclock needs only one point in time (the two numbers after it). */
  useMasterClock: boolean;
  masterKernelNs: number;
  masterCycleNow: bigint;
  bootVcpuRunsOldKvmclock: boolean;
  /** KVM_MSR_EXIT_REASON_* bits of KVM_CAP_X86_USER_SPACE_MSR. */
  userSpaceMsrMask: number;
  msrFilter: KvmMsrFilterState | null;
  /** KVM_CAP_EXIT_HYPERCALL: bit n sends hypercall n to userspace. */
  hypercallExitEnabled: bigint;
  /** Pins that KVM_CAP_SPLIT_IRQCHIP reserved for the I/O APICs in userspace. */
  nrReservedIoapicPins: number;
  mmu: KvmMmuState;
  /** irq_states: level of each GSI by irq source id. */
  irqStates: Record<number, number>;
  irqRoutes: KvmIrqRoutingEntry[];
  disabledQuirks: bigint;
}

/** struct kvm_dirty_ring. */
export interface KvmDirtyRing {
  dirtyIndex: number;
  resetIndex: number;
  /** Entries. */
  size: number;
  softLimit: number;
  /** struct kvm_dirty_gfn, 16 bytes each, as userspace has them mapped. */
  dirtyGfns: Uint8Array;
}

/** struct kvm, the part that is plain data. */
export interface KvmState {
  memslots: KvmMemslotSets[];
  createdVcpus: number;
  /** KVM_DIRTY_LOG_MANUAL_* bits. */
  manualDirtyLogProtect: number;
  /** Bytes of each vCPU's dirty ring, 0 for none. */
  dirtyRingSize: number;
  /** max_halt_poll_ns of KVM_CAP_HALT_POLL; -1 follows the module's parameter. */
  maxHaltPollNs: number;
  /** vm_bugged: every ioctl fails with EIO. */
  vmDead: boolean;
  coalescedMmioRing: KvmCoalescedMmioRing;
  stat: KvmVmStat;
  arch: KvmArchState;
}

/** vcpu->mode. */
export const VcpuMode = { OUTSIDE_GUEST_MODE: 0, IN_GUEST_MODE: 1, EXITING_GUEST_MODE: 2 } as const;

/** Indices of vcpu->arch.regs and bits of regs_avail and regs_dirty (enum kvm_reg). */
// biome-ignore format: a table
export const VcpuReg = {
  RAX: 0, RCX: 1, RDX: 2, RBX: 3, RSP: 4, RBP: 5, RSI: 6, RDI: 7, RIP: 16,
  PDPTR: 17, CR0: 18, CR3: 19, CR4: 20, RFLAGS: 21, SEGMENTS: 22, EXIT_INFO_1: 23, EXIT_INFO_2: 24,
} as const;

/** struct kvm_queued_exception */
export interface KvmQueuedException {
  pending: boolean;
  injected: boolean;
  vector: number;
  hasErrorCode: boolean;
  errorCode: number;
  hasPayload: boolean;
  payload: bigint;
}

/** struct kvm_mmio_fragment */
export interface KvmMmioFragment {
  gpa: number;
  data: Uint8Array;
  /** Bytes of `data` already served. */
  done: number;
  len: number;
}

/** Emulation in progress (struct x86_emulate_ctxt): kept over a userspace exit, so that it can be taken up again. */
export interface EmulateCtxtState {
  /** Instruction bytes as fetched. */
  bytes: Uint8Array;
  eip: bigint;
  /** Data read from MMIO so far in this instruction, in order (ctxt->mem_read). */
  memRead: { data: Uint8Array; pos: number; end: number };
  /** Items read ahead by a string IN (ctxt->io_read). */
  ioRead: { data: Uint8Array; pos: number; end: number };
  gpaAvailable: boolean;
  gpaVal: number;
  cr2: bigint;
  emulationType: number;
}

/** What complete_userspace_io points to, by name. */
export type CompleteUserspaceIo =
  | "completeEmulatedPio"
  | "completeEmulatedMmio"
  | "completeFastPioIn"
  | "completeFastPioOut"
  | "completeHypercallExit"
  | "completeEmulatedRdmsr"
  | "completeEmulatedWrmsr"
  | "completeFastRdmsr"
  | "completeFastWrmsr";

/** struct kvm_vcpu_arch, the part that is plain data. */
export interface KvmVcpuArchState {
  regs: BigUint64Array;
  regsAvail: number;
  regsDirty: number;
  cr0: bigint;
  cr0GuestOwnedBits: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr4GuestOwnedBits: bigint;
  cr4GuestRsvdBits: bigint;
  cr8: bigint;
  efer: bigint;
  /** IA32_APIC_BASE while there is no LAPIC in the kernel. */
  apicBase: bigint;
  pat: bigint;
  pdptrs: [bigint, bigint, bigint, bigint];
  mpState: KvmMpState;
  /** pending_events: bits KVM_APIC_INIT (0), KVM_APIC_SIPI (1). */
  apicPendingEvents: number;
  sipiVector: number;
  exception: KvmQueuedException;
  interrupt: { injected: boolean; nr: number; soft: boolean };
  nmiQueued: number;
  nmiPending: number;
  nmiInjected: boolean;
  exceptionVmexitPending: boolean;
  /** Length of the instruction behind a queued soft exception or interrupt (event_exit_inst_len). */
  eventExitInstLen: number;
  pio: { count: number; in: boolean; port: number; size: number; linearRip: bigint; data: Uint8Array };
  completeUserspaceIo: CompleteUserspaceIo | null;
  emulate: EmulateCtxtState | null;
  /** Cache of the last MMIO address (mmio_gva, mmio_gfn, mmio_access, mmio_gen). */
  mmioGva: bigint;
  mmioGfn: number;
  mmioAccess: number;
  mmioGen: number;
  cpuidEntries: KvmCpuidEntry2[];
  maxphyaddr: number;
  db: [bigint, bigint, bigint, bigint];
  dr6: bigint;
  dr7: bigint;
  effDb: [bigint, bigint, bigint, bigint];
  guestDebugDr7: bigint;
  switchDbRegs: number;
  singlestepRip: bigint;
  xcr0: bigint;
  xss: bigint;
  /** Off.FCW .. end of Off.OPMASK of the processor's block, while another vCPU or nobody has the processor. */
  guestFpu: Uint8Array;
  guestFpuLoaded: boolean;
  tscOffset: bigint;
  virtualTscKhz: number;
  /** Ratio of guest TSC to host TSC, 48 bits of fraction. */
  tscScalingRatio: bigint;
  thisTscGeneration: number;
  ia32TscAdjust: bigint;
  lastGuestTsc: bigint;
  ia32MiscEnable: bigint;
  smbase: number;
  mtrrDefType: bigint;
  mtrrFixed: BigUint64Array;
  mtrrVariable: BigUint64Array;
  mcgStatus: bigint;
  mcgCap: bigint;
  mcgCtl: bigint;
  mceBanks: BigUint64Array;
  microcodeVersion: bigint;
  platformInfo: bigint;
  archCapabilities: bigint;
  specCtrl: bigint;
  /** kvmclock: MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW. */
  pvTime: bigint;
  wallClock: bigint;
  /** KVM_KVMCLOCK_CTRL: the next update of the clock tells the guest that it was stopped. */
  pvclockSetGuestStoppedRequest: boolean;
  stealMsr: bigint;
  /** The guest's record says that this vCPU does not run. */
  stealPreempted: boolean;
  /** Run delay already reported (ns). */
  lastSteal: number;
  /** The guest may leave out the next EOI: its byte is set (KVM_APIC_PV_EOI_PENDING). */
  pvEoiPending: boolean;
  /** pv_cpuid: features of leaf 40000001h, and whether the guest is held to them. */
  pvFeatures: number;
  pvEnforce: boolean;
  /** MSR_KVM_ASYNC_PF_INT. */
  asyncPfIntMsr: bigint;
  /** Vector userspace injected for a PIC of its own (split irqchip), -1 for none. */
  pendingExternalVector: number;
  /** The last TSC deadline armed, until its interrupt's entry (lapic_timer_advance_ns). */
  expiredTscDeadline: bigint;
  /** msr_misc_features_enables and msr_hwcr. */
  miscFeaturesEnables: bigint;
  hwcr: bigint;
  powerCtl: bigint;
  /** Access that a filter or userspace's wish sent to userspace. */
  pendingMsr: { index: number; write: boolean } | null;
  /** KVM_SET_SIGNAL_MASK: null when none is set. */
  sigset: bigint | null;
  pvEoiMsr: bigint;
  asyncPfMsr: bigint;
  tprAccessReporting: boolean;
  tprAccess: { rip: bigint; write: boolean };
  pollControl: bigint;
  apfHalted: boolean;
  pvUnhalted: boolean;
  lastVmentryCpu: number;
  pendingIoapicEoi: number;
  /** Root of the second-level tables (mmu->root.hpa), -1 when none is loaded. */
  mmuRoot: number;
  atInstructionBoundary: boolean;
  /** HLT was emulated (halt_request). */
  haltRequest: boolean;
  guestDebug: number;
}

/** struct vcpu_vmx. */
export interface VcpuVmxState {
  /** Physical address of vmcs01. */
  vmcs: number;
  launched: boolean;
  /** Physical processor on which the VMCS is active, -1 when it is clear. */
  loadedCpu: number;
  msrBitmap: number;
  vpid: number;
  /** VMfail of the last entry. */
  fail: boolean;
  exitReason: number;
  exitQualification: bigint;
  exitIntrInfo: number;
  idtVectoringInfo: number;
  rflags: bigint;
  emulationRequired: boolean;
  rmode: RmodeState;
  apicv: ApicvState;
  /** Page of the page-modification log, -1 without one. */
  pmlPage: number;
  /** The VMX-preemption timer stands for the local APIC's timer (hv_deadline_tsc): due time in ns, -1 when it does not. */
  hvTimerAt: number;
  msrGuestKernelGsBase: bigint;
  /** vmx->guest_uret_msrs: guest values of MSRs switched on the way to userspace. */
  uretMsrs: { star: bigint; lstar: bigint; cstar: bigint; syscallMask: bigint; tscAux: bigint };
  guestStateLoaded: boolean;
  msrIa32FeatureControl: bigint;
  pleWindow: number;
  pleWindowDirty: boolean;
  softVnmiBlocked: boolean;
  /** Shadow copies of VMCS controls (vmcs_controls_shadow). */
  controls: { vmEntry: number; vmExit: number; pin: number; exec: number; secondaryExec: number };
  /** Cached access rights of CS (vmx->segment_cache), -1 when not read since the last exit. */
  csAr: number;
  /** Virtual-APIC page: holds TPR while the guest runs with the TPR shadow. */
  virtualApicPage: number;
  /** loaded_vmcs->nmi_known_unmasked. */
  nmiKnownUnmasked: boolean;
  /** Processor MSRs hold the guest's values (guest_uret_msrs_loaded). */
  guestUretMsrsLoaded: boolean;
}

/** Where KVM_RUN left off when it yielded. */
export type Suspended = null | "guest" | "block" | "block-uninitialized" | "resched";

/** struct kvm_vcpu, the part that is plain data. */
export interface KvmVcpuState {
  readonly vcpuId: number;
  readonly vcpuIdx: number;
  /** Physical processor it is loaded on, -1. */
  cpu: number;
  mode: number;
  requests: Uint8Array;
  requestsPending: number;
  suspended: Suspended;
  /** The halt that is being waited out: start (ns) and whether it goes through halt polling. */
  haltStart: number;
  haltPollNs: number;
  stat: KvmVcpuStat;
  /** VM exits by basic exit reason. */
  exitsByReason: Record<number, number>;
  userspaceExits: Record<number, number>;
  arch: KvmVcpuArchState;
  vmx: VcpuVmxState;
  mmioNeeded: boolean;
  mmioReadCompleted: boolean;
  mmioIsWrite: boolean;
  mmioCurFragment: number;
  mmioFragments: KvmMmioFragment[];
  run: KvmRun;
  pioPage: Uint8Array;
  dirtyRing: KvmDirtyRing | null;
  thread: ThreadState;
  /** Time (ns) the thread wanted a processor and waited for it, and since when it waits (-1: it does not). */
  runDelay: number;
  waitingSince: number;
}

/** What of task_struct KVM looks at. */
export interface ThreadState {
  /** Physical processor the thread runs on. */
  cpu: number;
  /** A signal that is not blocked waits (TIF_SIGPENDING). */
  signalPending: boolean;
  /** Signals that wait, bit n for signal n + 1; those KVM_SET_SIGNAL_MASK blocks included. */
  signals: bigint;
  /** task_work by signal (TIF_NOTIFY_SIGNAL). */
  notifySignal: boolean;
  /** TIF_NEED_RESCHED. */
  needResched: boolean;
  /** TIF_NOTIFY_RESUME: callbacks before returning to user mode or to a guest. */
  notifyResume: boolean;
}

/** struct kvm: a virtual machine. */
export class Kvm {
  readonly vcpus: KvmVcpu[] = [];
  vpic: KvmPic | null = null;
  vioapic: KvmIoapic | null = null;
  vpit: KvmPit | null = null;
  /** kvm_get_running_vcpu: the vCPU that is loaded, null for none. */
  runningVcpu: KvmVcpu | null = null;
  /** Wiring that userspace set up: eventfds, and who wants to know of acknowledged interrupts. */
  readonly irqfds: KvmKernelIrqfd[] = [];
  readonly ioeventfds: Ioeventfd[] = [];
  readonly irqAckNotifiers: KvmIrqAckNotifier[] = [];

  constructor(
    readonly module: KvmModuleBase,
    /** Number of the VM, for the names of its clock owners. */
    readonly id: number,
    public state: KvmState,
    readonly buses: KvmIoBuses,
  ) {}

  get arch(): KvmArchState {
    return this.state.arch;
  }
}

/** struct kvm_vcpu. */
export class KvmVcpu {
  apic: KvmLapic | null = null;
  /** The physical processor it is loaded on (kvm_get_running_vcpu's inverse); null between vcpu_put and vcpu_load. */
  cpu: Cpu | null = null;
  /** Instruction count at which the current KVM_RUN call must come back. */
  deadline = 0;
  /** The guest idles in HLT without having exited (KVM_X86_DISABLE_EXITS_HLT). */
  guestHalted = false;

  constructor(
    readonly kvm: Kvm,
    public state: KvmVcpuState,
  ) {}

  get module(): KvmModuleBase {
    return this.kvm.module;
  }
  get arch(): KvmVcpuArchState {
    return this.state.arch;
  }
  get vmx(): VcpuVmxState {
    return this.state.vmx;
  }
  get run(): KvmRun {
    return this.state.run;
  }
  get stat(): KvmVcpuStat {
    return this.state.stat;
  }
}
