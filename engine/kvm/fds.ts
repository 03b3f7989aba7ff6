/**
 * File descriptors of /dev/kvm, of virtual machines and of vCPUs, whose methods are the ioctls by name
 * (Documentation/virt/kvm/api.rst). Failures throw KvmError with Linux's errno, except KVM_RUN's, which are part of its
 * outcome.
 */
import type { RegisterFile } from "../cpu/registers";
import type { Stateful } from "../devices/chip";
import type { PitState } from "../devices/i8254";
import type { PicChipState } from "../devices/i8259";
import type { IoApicState } from "../devices/io-apic";
import { kvmDevIoctlGetCpuid, kvmVcpuIoctlSetCpuid2 } from "./cpuid";
import { Errno, KvmError } from "./errno";
import { KVM_PIT_SPEAKER_DUMMY } from "./i8254";
import { irqchipInKernel, picInKernel } from "./irq";
import { kvmSendUserspaceMsi, kvmSetIrq, kvmSetIrqRouting } from "./irqComm";
import {
  kvmCreateIrqchip,
  kvmCreatePit,
  kvmCreateVm,
  kvmDestroyVm,
  kvmVcpuKick,
  kvmVmIoctlCreateVcpu,
  vcpuLoad,
  vcpuPut,
} from "./kvmMain";
import { kvmApicAcceptEvents, kvmApicGetState, kvmApicSetState } from "./lapic";
import { kvmVmIoctlGetDirtyLog, kvmVmIoctlSetMemoryRegion } from "./memslots";
import { gvaToGpa } from "./mmu/pagingTmpl";
import type { KvmModule } from "./module";
import type { KvmModuleBase } from "./moduleBase";
import {
  EMULATED_MSRS,
  FEATURE_MSRS,
  KVM_MAX_MCE_BANKS,
  KVM_MCE_CAP_SUPPORTED,
  kvmGetMsr,
  kvmGetMsrFeature,
  kvmSetMsr,
  MSRS_TO_SAVE,
} from "./msrs";
import { type KvmVmcsView, kvmProbe, kvmRegisterFile, kvmVmcsView } from "./registerFile";
import { KvmReq, kvmMakeRequest } from "./requests";
import { type KvmSnapshot, kvmRestore, kvmSnapshot } from "./snapshot";
import { KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS, KVM_USER_MEM_SLOTS, type Kvm, type KvmVcpu } from "./types";
import * as uapi from "./uapi";
import { kvmArchVcpuIoctlRun } from "./x86";
import { kvmArchVcpuIoctlSetGuestDebug } from "./x86Debug";
import { kvmInjectNmi, kvmQueueInterrupt } from "./x86Events";
import { KVM_RUN_YIELD } from "./x86Ops";
import * as regs from "./x86Regs";

/** How KVM_RUN ended. */
export type KvmRunOutcome =
  /** Back in userspace: kvm_run says why. */
  | { readonly kind: "exit" }
  /** -1 with errno (a positive number of errno.ts). EINTR with exit reason KVM_EXIT_INTR is a signal. */
  | { readonly kind: "error"; readonly errno: number }
  /**
   * Still inside KVM_RUN; call it again. "slice": the instructions given are used up. "resched": the thread gave up its
   * processor. "blocked": the vCPU sleeps until an interrupt, INIT or SIPI comes.
   */
  | { readonly kind: "yield"; readonly reason: "slice" | "resched" | "blocked" };

const EXIT: KvmRunOutcome = { kind: "exit" };
const SLICE: KvmRunOutcome = { kind: "yield", reason: "slice" };
const RESCHED: KvmRunOutcome = { kind: "yield", reason: "resched" };
const BLOCKED: KvmRunOutcome = { kind: "yield", reason: "blocked" };

/** open("/dev/kvm") */
export const openDevKvm = (module: KvmModule): KvmDevFd => new KvmDevFd(module);

/** Capabilities that are 1 where the model has them. */
const CAPABILITIES: ReadonlySet<number> = new Set([
  uapi.KvmCap.IRQCHIP, uapi.KvmCap.HLT, uapi.KvmCap.USER_MEMORY, uapi.KvmCap.SET_TSS_ADDR, uapi.KvmCap.EXT_CPUID,
  uapi.KvmCap.CLOCKSOURCE, uapi.KvmCap.PIT, uapi.KvmCap.NOP_IO_DELAY, uapi.KvmCap.MP_STATE, uapi.KvmCap.SYNC_MMU,
  uapi.KvmCap.USER_NMI, uapi.KvmCap.IRQ_INJECT_STATUS, uapi.KvmCap.PIT2, uapi.KvmCap.PIT_STATE2,
  uapi.KvmCap.SET_IDENTITY_MAP_ADDR, uapi.KvmCap.VCPU_EVENTS, uapi.KvmCap.DEBUGREGS,
  uapi.KvmCap.X86_ROBUST_SINGLESTEP, uapi.KvmCap.SET_BOOT_CPU_ID, uapi.KvmCap.TSC_DEADLINE_TIMER,
  uapi.KvmCap.SIGNAL_MSI, uapi.KvmCap.DESTROY_MEMORY_REGION_WORKS, uapi.KvmCap.JOIN_MEMORY_REGIONS_WORKS,
  uapi.KvmCap.INTERNAL_ERROR_DATA, uapi.KvmCap.READONLY_MEM, uapi.KvmCap.IMMEDIATE_EXIT, uapi.KvmCap.ENABLE_CAP,
  uapi.KvmCap.CHECK_EXTENSION_VM, uapi.KvmCap.GET_MSR_FEATURES, uapi.KvmCap.SET_GUEST_DEBUG, uapi.KvmCap.XCRS,
  uapi.KvmCap.GET_TSC_KHZ, uapi.KvmCap.KVMCLOCK_CTRL, uapi.KvmCap.SREGS2, uapi.KvmCap.MSR_PLATFORM_INFO,
  uapi.KvmCap.X86_TRIPLE_FAULT_EVENT, uapi.KvmCap.EXIT_ON_EMULATION_FAILURE, uapi.KvmCap.EXCEPTION_PAYLOAD, uapi.KvmCap.DISABLE_QUIRKS, uapi.KvmCap.INTR_SHADOW,
]); // biome-ignore format: a list

/** kvm_vm_ioctl_check_extension: 0 for what there is not. */
function checkExtension(module: KvmModuleBase, capability: number): number {
  switch (capability) {
    case uapi.KvmCap.NR_VCPUS:
      return Math.min(module.host.processors.length, KVM_MAX_VCPUS);
    case uapi.KvmCap.MAX_VCPUS:
      return KVM_MAX_VCPUS;
    case uapi.KvmCap.MAX_VCPU_ID:
      return KVM_MAX_VCPU_IDS;
    case uapi.KvmCap.NR_MEMSLOTS:
      return KVM_USER_MEM_SLOTS;
    case uapi.KvmCap.MCE:
      return KVM_MAX_MCE_BANKS;
    case uapi.KvmCap.ADJUST_CLOCK:
      return uapi.KVM_CLOCK_TSC_STABLE;
    case uapi.KvmCap.SET_GUEST_DEBUG2:
      return Object.values(uapi.KvmGuestdbg).reduce((all, bit) => all | bit, 0);
    case uapi.KvmCap.IRQ_ROUTING:
      return uapi.KVM_MAX_IRQ_ROUTES;
    case uapi.KvmCap.SYNC_REGS:
      return uapi.KVM_SYNC_X86_VALID_FIELDS;
    case uapi.KvmCap.X86_DISABLE_EXITS:
      return uapi.KVM_X86_DISABLE_EXITS.HLT | uapi.KVM_X86_DISABLE_EXITS.PAUSE | uapi.KVM_X86_DISABLE_EXITS.MWAIT;
    case uapi.KvmCap.X2APIC_API:
      return 3;
    case uapi.KvmCap.MULTI_ADDRESS_SPACE:
      return 1;
    default:
      return CAPABILITIES.has(capability) ? 1 : 0;
  }
}

/** /dev/kvm */
export class KvmDevFd implements Stateful<KvmSnapshot> {
  constructor(readonly module: KvmModule) {}

  /** Everything of the model: module, VMs, vCPUs, chips. Valid between KVM_RUN calls. */
  get state(): KvmSnapshot {
    return kvmSnapshot(this.module);
  }
  set state(snapshot: KvmSnapshot) {
    kvmRestore(this.module, snapshot);
  }

  KVM_GET_API_VERSION(): number {
    return uapi.KVM_API_VERSION;
  }

  KVM_CHECK_EXTENSION(capability: number): number {
    return checkExtension(this.module, capability);
  }

  KVM_GET_VCPU_MMAP_SIZE(): number {
    return uapi.KVM_VCPU_MMAP_SIZE;
  }

  /** MCG_CAP bits KVM_X86_SETUP_MCE may have. */
  KVM_X86_GET_MCE_CAP_SUPPORTED(): bigint {
    return KVM_MCE_CAP_SUPPORTED;
  }

  /** @param type KVM_X86_DEFAULT_VM (0). @throws KvmError EINVAL */
  KVM_CREATE_VM(type = 0): KvmVmFd {
    return new KvmVmFd(kvmCreateVm(this.module, type));
  }

  KVM_GET_SUPPORTED_CPUID(): uapi.KvmCpuidEntry2[] {
    return kvmDevIoctlGetCpuid(this.module);
  }

  /** Guest MSRs worth saving, those KVM emulates included. */
  KVM_GET_MSR_INDEX_LIST(): number[] {
    return [...MSRS_TO_SAVE, ...EMULATED_MSRS];
  }

  KVM_GET_MSR_FEATURE_INDEX_LIST(): number[] {
    return [...FEATURE_MSRS];
  }

  /** Feature MSRs. @returns entries up to the first one that does not exist. @throws KvmError E2BIG */
  KVM_GET_MSRS(indices: readonly number[]): uapi.KvmMsrEntry[] {
    checkMsrCount("KVM_GET_MSRS", indices.length);
    const out: uapi.KvmMsrEntry[] = [];
    for (const index of indices) {
      const data = kvmGetMsrFeature(index);
      if (data === null) break;
      out.push({ index, data });
    }
    return out;
  }

  /** Lines KVM wrote to the kernel log. */
  get kernelLog(): readonly string[] {
    return this.module.state.log;
  }
}

/** msr_io takes fewer than MAX_IO_MSRS entries. */
function checkMsrCount(ioctl: string, count: number): void {
  if (count >= uapi.MAX_IO_MSRS) throw new KvmError("E2BIG", ioctl, `fewer than ${uapi.MAX_IO_MSRS} MSRs at a time`);
}

/** Fails an ioctl that needs the irqchip in the kernel. */
function needIrqchip(kvm: Kvm, ioctl: string): void {
  if (!irqchipInKernel(kvm)) throw new KvmError("ENXIO", ioctl, "there is no irqchip in the kernel");
}

/** What KVM_GET_IRQCHIP and KVM_SET_IRQCHIP carry. */
export type KvmIrqchipState =
  | { chip_id: typeof uapi.KvmIrqchip.PIC_MASTER | typeof uapi.KvmIrqchip.PIC_SLAVE; pic: PicChipState }
  | { chip_id: typeof uapi.KvmIrqchip.IOAPIC; ioapic: IoApicState };

/** A virtual machine. */
export class KvmVmFd {
  readonly vcpus: KvmVcpuFd[] = [];

  constructor(private readonly vm: Kvm) {}

  /** @throws KvmError EBADF after close() */
  get kvm(): Kvm {
    if (!this.vm.module.vmList.includes(this.vm)) throw new KvmError("EBADF", "ioctl", "the VM is closed");
    return this.vm;
  }

  KVM_CHECK_EXTENSION(capability: number): number {
    return checkExtension(this.kvm.module, capability);
  }

  /** @throws KvmError EINVAL, EEXIST */
  KVM_CREATE_VCPU(id: number): KvmVcpuFd {
    const fd = new KvmVcpuFd(kvmVmIoctlCreateVcpu(this.kvm, id));
    this.vcpus.push(fd);
    return fd;
  }

  /** @throws KvmError EINVAL, EEXIST */
  KVM_SET_USER_MEMORY_REGION(region: uapi.KvmUserspaceMemoryRegion): void {
    kvmVmIoctlSetMemoryRegion(this.kvm, region);
  }

  /** The same with room for guest_memfd, of which there is none: KVM_MEM_GUEST_MEMFD is refused. */
  KVM_SET_USER_MEMORY_REGION2(region: uapi.KvmUserspaceMemoryRegion): void {
    kvmVmIoctlSetMemoryRegion(this.kvm, region);
  }

  /** One bit a page, since the last call. @throws KvmError EINVAL, ENOENT */
  KVM_GET_DIRTY_LOG(slot: number): Uint32Array {
    return kvmVmIoctlGetDirtyLog(this.kvm, slot);
  }

  /** @throws KvmError EEXIST, EINVAL */
  KVM_CREATE_IRQCHIP(): void {
    kvmCreateIrqchip(this.kvm);
  }

  /** @param config flags: KVM_PIT_SPEAKER_DUMMY (1). @throws KvmError EEXIST, ENOENT */
  KVM_CREATE_PIT2(config: { readonly flags: number }): void {
    kvmCreatePit(this.kvm, config.flags);
  }

  /** The PIT with the speaker's port. @throws KvmError EEXIST, ENOENT */
  KVM_CREATE_PIT(): void {
    kvmCreatePit(this.kvm, KVM_PIT_SPEAKER_DUMMY);
  }

  /** @returns as KVM_IRQ_LINE. @throws KvmError ENXIO */
  KVM_IRQ_LINE_STATUS(line: { readonly irq: number; readonly level: number }): number {
    return this.KVM_IRQ_LINE(line);
  }

  /**
   * Drives a GSI.
   * @returns < 0 ignored, 0 coalesced, > 0 delivered to so many vCPUs. @throws KvmError ENXIO
   */
  KVM_IRQ_LINE(line: { readonly irq: number; readonly level: number }): number {
    needIrqchip(this.kvm, "KVM_IRQ_LINE");
    return kvmSetIrq(this.kvm, uapi.KVM_USERSPACE_IRQ_SOURCE_ID, line.irq, line.level !== 0);
  }

  /** @throws KvmError EINVAL */
  KVM_SIGNAL_MSI(msi: uapi.KvmMsi): number {
    return kvmSendUserspaceMsi(this.kvm, msi);
  }

  /** @throws KvmError EINVAL */
  KVM_SET_GSI_ROUTING(entries: readonly uapi.KvmIrqRoutingEntry[]): void {
    kvmSetIrqRouting(this.kvm, entries);
  }

  /** @throws KvmError ENXIO, EINVAL */
  KVM_GET_IRQCHIP(chipId: number): KvmIrqchipState {
    const { vpic, vioapic } = this.chips("KVM_GET_IRQCHIP");
    switch (chipId) {
      case uapi.KvmIrqchip.PIC_MASTER:
        return { chip_id: chipId, pic: structuredClone(vpic.state.master) };
      case uapi.KvmIrqchip.PIC_SLAVE:
        return { chip_id: chipId, pic: structuredClone(vpic.state.slave) };
      case uapi.KvmIrqchip.IOAPIC:
        return { chip_id: chipId, ioapic: structuredClone(vioapic.state) };
      default:
        throw new KvmError("EINVAL", "KVM_GET_IRQCHIP", `there is no chip ${chipId}`);
    }
  }

  /** @throws KvmError ENXIO, EINVAL */
  KVM_SET_IRQCHIP(state: KvmIrqchipState): void {
    const { vpic, vioapic } = this.chips("KVM_SET_IRQCHIP");
    const { chip_id } = state;
    switch (chip_id) {
      case uapi.KvmIrqchip.IOAPIC:
        vioapic.setState(structuredClone(state.ioapic));
        return;
      case uapi.KvmIrqchip.PIC_MASTER:
        vpic.setState({ ...vpic.state, master: structuredClone(state.pic) });
        return;
      case uapi.KvmIrqchip.PIC_SLAVE:
        vpic.setState({ ...vpic.state, slave: structuredClone(state.pic) });
        return;
    }
    throw new KvmError("EINVAL", "KVM_SET_IRQCHIP", `there is no chip ${chip_id as number}`);
  }

  private chips(ioctl: string) {
    needIrqchip(this.kvm, ioctl);
    const { vpic, vioapic } = this.kvm;
    if (!vpic || !vioapic) throw new KvmError("ENXIO", ioctl, "there is no irqchip in the kernel");
    return { vpic, vioapic };
  }

  /** @throws KvmError ENXIO */
  KVM_GET_PIT2(): PitState {
    if (!this.kvm.vpit) throw new KvmError("ENXIO", "KVM_GET_PIT2", "there is no PIT in the kernel");
    return structuredClone(this.kvm.vpit.state);
  }

  /** @throws KvmError ENXIO */
  KVM_SET_PIT2(state: PitState): void {
    if (!this.kvm.vpit) throw new KvmError("ENXIO", "KVM_SET_PIT2", "there is no PIT in the kernel");
    this.kvm.vpit.state = structuredClone(state);
  }

  /** Three pages for the real-mode TSS. @throws KvmError EINVAL */
  KVM_SET_TSS_ADDR(addr: number): void {
    if (addr > 2 ** 32 - 3 * 4096) throw new KvmError("EINVAL", "KVM_SET_TSS_ADDR", "the three pages end above 4 GiB");
    this.kvm.module.ops.setTssAddr(this.kvm, addr);
  }

  /** @param addr 0 is the default, 0xfffbc000. @throws KvmError EINVAL once there are vCPUs */
  KVM_SET_IDENTITY_MAP_ADDR(addr: number): void {
    if (this.kvm.state.createdVcpus > 0) {
      throw new KvmError("EINVAL", "KVM_SET_IDENTITY_MAP_ADDR", "it must come before the first vCPU");
    }
    this.kvm.module.ops.setIdentityMapAddr(this.kvm, addr);
  }

  /** @throws KvmError EBUSY once there are vCPUs, EINVAL for an id beyond the limit */
  KVM_SET_BOOT_CPU_ID(id: number): void {
    if (this.kvm.state.createdVcpus > 0) {
      throw new KvmError("EBUSY", "KVM_SET_BOOT_CPU_ID", "it must come before the first vCPU");
    }
    const { maxVcpuIds } = this.kvm.arch;
    if (id < 0 || id > KVM_MAX_VCPU_IDS || (maxVcpuIds !== 0 && id > maxVcpuIds)) {
      throw new KvmError("EINVAL", "KVM_SET_BOOT_CPU_ID", "there cannot be such a vCPU id");
    }
    this.kvm.arch.bspVcpuId = id;
  }

  /** Nanoseconds of the guest's kvmclock. */
  KVM_GET_CLOCK(): { clock: bigint; flags: number } {
    return {
      clock: BigInt(this.kvm.module.host.clock.now + this.kvm.arch.kvmclockOffset),
      flags: uapi.KVM_CLOCK_TSC_STABLE,
    };
  }

  /** @param flags what KVM_GET_CLOCK gave, or 0. @throws KvmError EINVAL */
  KVM_SET_CLOCK(clock: bigint, flags = 0): void {
    if (flags & ~uapi.KVM_CLOCK_TSC_STABLE) {
      throw new KvmError("EINVAL", "KVM_SET_CLOCK", "KVM_CAP_ADJUST_CLOCK has the flags there are");
    }
    this.kvm.arch.kvmclockOffset = Number(clock) - this.kvm.module.host.clock.now;
    for (const vcpu of this.kvm.vcpus) kvmMakeRequest(KvmReq.CLOCK_UPDATE, vcpu);
  }

  /** @throws KvmError EINVAL for a capability that cannot be enabled or wrong arguments */
  KVM_ENABLE_CAP(capability: number, args: readonly bigint[] = []): void {
    const { arch } = this.kvm;
    const argument = args[0] ?? 0n;
    switch (capability) {
      case uapi.KvmCap.X86_DISABLE_EXITS:
        if (argument & ~7n || this.kvm.state.createdVcpus > 0) break;
        arch.disabledExits = Number(argument);
        return;
      case uapi.KvmCap.X2APIC_API:
        if (argument & ~3n) break;
        arch.x2apicFormat = (argument & 1n) !== 0n;
        arch.x2apicBroadcastQuirkDisabled = (argument & 2n) !== 0n;
        return;
      case uapi.KvmCap.EXCEPTION_PAYLOAD:
        arch.exceptionPayloadEnabled = argument !== 0n;
        return;
      case uapi.KvmCap.DISABLE_QUIRKS:
        arch.disabledQuirks = argument;
        return;
      case uapi.KvmCap.X86_TRIPLE_FAULT_EVENT:
        arch.tripleFaultEvent = argument !== 0n;
        return;
      case uapi.KvmCap.EXIT_ON_EMULATION_FAILURE:
        if (argument & ~1n) break;
        arch.exitOnEmulationError = argument !== 0n;
        return;
      case uapi.KvmCap.MSR_PLATFORM_INFO:
        arch.guestCanReadMsrPlatformInfo = argument !== 0n;
        return;
      case uapi.KvmCap.MAX_VCPU_ID:
        if (argument > BigInt(KVM_MAX_VCPU_IDS)) break;
        if (arch.maxVcpuIds !== 0 && BigInt(arch.maxVcpuIds) !== argument) break;
        arch.maxVcpuIds = Number(argument);
        return;
    }
    throw new KvmError("EINVAL", "KVM_ENABLE_CAP", `capability ${capability} cannot be enabled like this`);
  }

  get stats(): Kvm["state"]["stat"] {
    return this.kvm.state.stat;
  }

  /** Closes the VM and all its vCPUs. */
  close(): void {
    kvmDestroyVm(this.vm);
    this.vcpus.length = 0;
  }
}

/** A virtual CPU. */
export class KvmVcpuFd {
  constructor(readonly vcpu: KvmVcpu) {}

  /** close() of the VM takes its vCPUs along. */
  private get closed(): boolean {
    return !this.vcpu.kvm.vcpus.includes(this.vcpu);
  }

  /** The mapped kvm_run. */
  get run(): uapi.KvmRun {
    return this.vcpu.state.run;
  }

  /** vcpu_load and vcpu_put around an ioctl. @throws KvmError EBUSY while the vCPU is inside KVM_RUN (Linux would wait) */
  private loaded<T>(ioctl: string, body: (vcpu: KvmVcpu) => T): T {
    const { vcpu } = this;
    if (this.closed) throw new KvmError("EBADF", ioctl, "the VM is closed");
    if (vcpu.state.suspended !== null) throw new KvmError("EBUSY", ioctl, "the vCPU's thread is inside KVM_RUN");
    vcpuLoad(vcpu);
    try {
      return body(vcpu);
    } finally {
      vcpuPut(vcpu);
    }
  }

  /**
   * Runs the vCPU until userspace is needed, a signal comes, or the thread yields.
   * @param instructions time slice: most instructions that may retire in this call
   */
  KVM_RUN(instructions: number): KvmRunOutcome {
    const { vcpu } = this;
    if (this.closed) return { kind: "error", errno: Errno.EBADF };
    vcpu.deadline = vcpu.module.host.clock.instructions + instructions;
    vcpu.guestHalted = false;
    const r = kvmArchVcpuIoctlRun(vcpu);
    if (r === KVM_RUN_YIELD) {
      if (vcpu.state.suspended === "resched") return RESCHED;
      return vcpu.state.suspended === "guest" && !vcpu.guestHalted ? SLICE : BLOCKED;
    }
    if (r < 0) return { kind: "error", errno: -r };
    return EXIT;
  }

  /** A signal for the vCPU's thread: KVM_RUN returns -EINTR. */
  signal(): void {
    this.vcpu.state.thread.signalPending = true;
    kvmVcpuKick(this.vcpu);
  }

  /** The signal has been handled. */
  clearSignal(): void {
    this.vcpu.state.thread.signalPending = false;
  }

  KVM_GET_REGS(): uapi.KvmRegs {
    return this.loaded("KVM_GET_REGS", regs.kvmArchVcpuIoctlGetRegs);
  }
  KVM_SET_REGS(r: uapi.KvmRegs): void {
    this.loaded("KVM_SET_REGS", (v) => regs.kvmArchVcpuIoctlSetRegs(v, r));
  }
  KVM_GET_SREGS(): uapi.KvmSregs {
    return this.loaded("KVM_GET_SREGS", regs.kvmArchVcpuIoctlGetSregs);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_SREGS(s: uapi.KvmSregs): void {
    this.loaded("KVM_SET_SREGS", (v) => regs.kvmArchVcpuIoctlSetSregs(v, s));
  }
  KVM_GET_SREGS2(): uapi.KvmSregs2 {
    return this.loaded("KVM_GET_SREGS2", regs.kvmArchVcpuIoctlGetSregs2);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_SREGS2(s: uapi.KvmSregs2): void {
    this.loaded("KVM_SET_SREGS2", (v) => regs.kvmArchVcpuIoctlSetSregs2(v, s));
  }
  KVM_GET_FPU(): uapi.KvmFpu {
    return this.loaded("KVM_GET_FPU", regs.kvmArchVcpuIoctlGetFpu);
  }
  KVM_SET_FPU(fpu: uapi.KvmFpu): void {
    this.loaded("KVM_SET_FPU", (v) => regs.kvmArchVcpuIoctlSetFpu(v, fpu));
  }

  /** @returns entries up to the first MSR that cannot be read. @throws KvmError E2BIG */
  KVM_GET_MSRS(indices: readonly number[]): uapi.KvmMsrEntry[] {
    checkMsrCount("KVM_GET_MSRS", indices.length);
    return this.loaded("KVM_GET_MSRS", (v) => {
      const out: uapi.KvmMsrEntry[] = [];
      for (const index of indices) {
        const data = kvmGetMsr(v, index, true);
        if (data === null) break;
        out.push({ index, data });
      }
      return out;
    });
  }

  /** @returns how many entries were set before one failed. @throws KvmError E2BIG */
  KVM_SET_MSRS(entries: readonly uapi.KvmMsrEntry[]): number {
    checkMsrCount("KVM_SET_MSRS", entries.length);
    return this.loaded("KVM_SET_MSRS", (v) => {
      let done = 0;
      for (const { index, data } of entries) {
        if (kvmSetMsr(v, index, data, true) !== 0) break;
        done++;
      }
      return done;
    });
  }

  /** @throws KvmError E2BIG, EINVAL */
  KVM_SET_CPUID2(entries: readonly uapi.KvmCpuidEntry2[]): void {
    this.loaded("KVM_SET_CPUID2", (v) => kvmVcpuIoctlSetCpuid2(v, entries));
  }
  KVM_GET_CPUID2(): uapi.KvmCpuidEntry2[] {
    return this.vcpu.arch.cpuidEntries.map((e) => ({ ...e }));
  }

  /** The first KiB of the register page. @throws KvmError EINVAL */
  KVM_GET_LAPIC(): Uint8Array {
    return this.loaded("KVM_GET_LAPIC", (v) => {
      if (!v.apic) throw new KvmError("EINVAL", "KVM_GET_LAPIC", "there is no local APIC in the kernel");
      return kvmApicGetState(v);
    });
  }
  /** @throws KvmError EINVAL */
  KVM_SET_LAPIC(page: Uint8Array): void {
    this.loaded("KVM_SET_LAPIC", (v) => {
      if (!v.apic) throw new KvmError("EINVAL", "KVM_SET_LAPIC", "there is no local APIC in the kernel");
      if (page.length < 0x400) throw new KvmError("EFAULT", "KVM_SET_LAPIC", "the page has 1024 bytes");
      if (!kvmApicSetState(v, page)) {
        throw new KvmError("EINVAL", "KVM_SET_LAPIC", "the x2APIC id is not the vCPU's");
      }
    });
  }

  KVM_GET_VCPU_EVENTS(): uapi.KvmVcpuEvents {
    return this.loaded("KVM_GET_VCPU_EVENTS", regs.kvmVcpuIoctlX86GetVcpuEvents);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_VCPU_EVENTS(events: uapi.KvmVcpuEvents): void {
    this.loaded("KVM_SET_VCPU_EVENTS", (v) => regs.kvmVcpuIoctlX86SetVcpuEvents(v, events));
  }
  KVM_GET_DEBUGREGS(): uapi.KvmDebugregs {
    return this.loaded("KVM_GET_DEBUGREGS", regs.kvmVcpuIoctlX86GetDebugregs);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_DEBUGREGS(d: uapi.KvmDebugregs): void {
    this.loaded("KVM_SET_DEBUGREGS", (v) => regs.kvmVcpuIoctlX86SetDebugregs(v, d));
  }
  KVM_GET_XCRS(): uapi.KvmXcrs {
    return regs.kvmVcpuIoctlX86GetXcrs(this.vcpu);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_XCRS(x: uapi.KvmXcrs): void {
    this.loaded("KVM_SET_XCRS", (v) => regs.kvmVcpuIoctlX86SetXcrs(v, x));
  }

  /** A pending INIT or SIPI takes effect first, unless the vCPU is inside KVM_RUN. */
  KVM_GET_MP_STATE(): uapi.KvmMpState {
    const { vcpu } = this;
    if (vcpu.state.suspended === null) this.loaded("KVM_GET_MP_STATE", kvmApicAcceptEvents);
    const { mpState, pvUnhalted } = vcpu.arch;
    return mpState === uapi.KvmMpState.HALTED && pvUnhalted ? uapi.KvmMpState.RUNNABLE : mpState;
  }
  /** @throws KvmError EINVAL */
  KVM_SET_MP_STATE(state: uapi.KvmMpState): void {
    if (!Object.values(uapi.KvmMpState).includes(state))
      throw new KvmError("EINVAL", "KVM_SET_MP_STATE", "no such state");
    if (!this.vcpu.apic && state !== uapi.KvmMpState.RUNNABLE) {
      throw new KvmError("EINVAL", "KVM_SET_MP_STATE", "without an irqchip in the kernel a vCPU is always runnable");
    }
    if (state === uapi.KvmMpState.SIPI_RECEIVED) {
      this.vcpu.arch.mpState = uapi.KvmMpState.INIT_RECEIVED;
      this.vcpu.arch.apicPendingEvents |= 2;
    } else {
      this.vcpu.arch.mpState = state;
    }
    kvmMakeRequest(KvmReq.EVENT, this.vcpu);
  }

  /** Machine-check banks, all enabled. @throws KvmError EINVAL */
  KVM_X86_SETUP_MCE(mcgCap: bigint): void {
    const banks = Number(mcgCap & 0xffn);
    if (banks === 0 || banks > KVM_MAX_MCE_BANKS || mcgCap & ~(KVM_MCE_CAP_SUPPORTED | 0xff00ffn)) {
      throw new KvmError("EINVAL", "KVM_X86_SETUP_MCE", `1 to ${KVM_MAX_MCE_BANKS} banks, and supported features only`);
    }
    const { arch } = this.vcpu;
    arch.mcgCap = mcgCap;
    if (mcgCap & 0x100n) arch.mcgCtl = 0xffffffffffffffffn;
    for (let bank = 0; bank < banks; bank++) arch.mceBanks[bank * 4] = 0xffffffffffffffffn;
  }

  /** @throws KvmError EBUSY */
  KVM_SET_GUEST_DEBUG(dbg: uapi.KvmGuestDebug): void {
    this.loaded("KVM_SET_GUEST_DEBUG", (v) => kvmArchVcpuIoctlSetGuestDebug(v, dbg));
  }

  /** Translates a linear address by the guest's present paging. */
  KVM_TRANSLATE(linear: bigint): uapi.KvmTranslation {
    return this.loaded("KVM_TRANSLATE", (v) => {
      const t = gvaToGpa(v, linear, 0, false);
      return {
        linear_address: linear,
        physical_address: t.ok ? BigInt(t.gpa) : 0xffffffffffffffffn,
        valid: t.ok ? 1 : 0,
        writeable: 1,
        usermode: 0,
      };
    });
  }

  /** External interrupt from userspace's irqchip. @throws KvmError EINVAL, ENXIO */
  KVM_INTERRUPT(irq: number): void {
    if (irq < 0 || irq >= 256) throw new KvmError("EINVAL", "KVM_INTERRUPT", "vectors are 0 to 255");
    if (picInKernel(this.vcpu.kvm)) throw new KvmError("ENXIO", "KVM_INTERRUPT", "the irqchip is in the kernel");
    kvmQueueInterrupt(this.vcpu, irq, false);
    kvmMakeRequest(KvmReq.EVENT, this.vcpu);
  }

  KVM_NMI(): void {
    kvmInjectNmi(this.vcpu);
  }

  /** @param khz 0 is the host's. @throws KvmError EINVAL */
  KVM_SET_TSC_KHZ(khz: number): void {
    if (khz !== 0 && khz !== this.vcpu.kvm.arch.tscKhz) {
      throw new KvmError(
        "EINVAL",
        "KVM_SET_TSC_KHZ",
        `the TSC runs at ${this.vcpu.kvm.arch.tscKhz} kHz; it is not scaled`,
      );
    }
  }
  KVM_GET_TSC_KHZ(): number {
    return this.vcpu.kvm.arch.tscKhz;
  }

  /** The host tells the guest it was stopped (kvmclock). @throws KvmError EINVAL when the guest has no kvmclock */
  KVM_KVMCLOCK_CTRL(): void {
    if (!(this.vcpu.arch.pvTime & 1n)) throw new KvmError("EINVAL", "KVM_KVMCLOCK_CTRL", "the guest uses no kvmclock");
    this.vcpu.arch.pvclockSetGuestStoppedRequest = true;
    kvmMakeRequest(KvmReq.CLOCK_UPDATE, this.vcpu);
  }

  get stats(): KvmVcpu["state"]["stat"] {
    return this.vcpu.state.stat;
  }
  /** VM exits by basic exit reason. */
  get exitsByReason(): Readonly<Record<number, number>> {
    return this.vcpu.state.exitsByReason;
  }
  /** Returns to userspace by kvm_run exit reason. */
  get userspaceExits(): Readonly<Record<number, number>> {
    return this.vcpu.state.userspaceExits;
  }

  /** Registers of the guest, valid at every trace point and between KVM_RUN calls. */
  get registers(): RegisterFile {
    return kvmRegisterFile(this.vcpu);
  }
  /** Physical address of the vCPU's VMCS. */
  get vmcs(): number {
    return this.vcpu.vmx.vmcs;
  }
  /** The VMCS's fields, likewise valid at every moment; writes reach what KVM keeps copies of. */
  get vmcsView(): KvmVmcsView {
    return kvmVmcsView(this.vcpu);
  }
  /** Guest-physical address of a linear one by the guest's present paging, -1 where nothing is mapped. No side effects. */
  probe(linear: bigint): number {
    return kvmProbe(this.vcpu, linear);
  }
  /** Fields of kvm_run that mean something now. */
  get kvmRunFields(): Record<string, bigint | number | string> {
    return uapi.kvmRunFields(this.run);
  }
  /** An interrupt or NMI could still end the vCPU's sleep: it does not sleep with interrupts closed for good. */
  get wakeable(): boolean {
    const { vcpu } = this;
    if (vcpu.arch.mpState !== uapi.KvmMpState.HALTED) return vcpu.arch.mpState === uapi.KvmMpState.RUNNABLE;
    if (vcpu.kvm.vioapic?.chip.carriesNmi || vcpu.kvm.vcpus.some((v) => v.apic?.chip.carriesNmi)) return true;
    return (this.registers.read("rflags") & 0x200n) !== 0n;
  }
  /** Halted, or waiting for INIT and SIPI. */
  get halted(): boolean {
    return this.vcpu.arch.mpState !== uapi.KvmMpState.RUNNABLE || this.vcpu.guestHalted;
  }
}
