/** A virtual machine: its ioctls by name (Documentation/virt/kvm/api.rst). Failures throw KvmError with Linux's errno. */
import type { PitState } from "../devices/i8254";
import type { PicChipState } from "../devices/i8259";
import type { IoApicState } from "../devices/io-apic";
import { KvmStatsFd } from "./binaryStats";
import { kvmVmIoctlRegisterCoalescedMmio, kvmVmIoctlUnregisterCoalescedMmio } from "./coalescedMmio";
import { kvmVmIoctlClearDirtyLog, kvmVmIoctlGetDirtyLog } from "./dirtyLog";
import { kvmVmIoctlResetDirtyPages } from "./dirtyRing";
import { KvmError } from "./errno";
import { type KvmIoeventfdArgs, type KvmIrqfdArgs, kvmIoeventfd, kvmIrqfd } from "./eventfd";
import { kvmVmIoctlCheckExtension, kvmVmIoctlEnableCap } from "./extensions";
import { KVM_PIT_SPEAKER_DUMMY } from "./i8254";
import { irqchipInKernel, picInKernel } from "./irq";
import { kvmSendUserspaceMsi, kvmSetIrq, kvmSetIrqRouting } from "./irqComm";
import { kvmCreateIrqchip, kvmCreatePit, kvmDestroyVm, kvmVmIoctlCreateVcpu } from "./kvmMain";
import { kvmVmIoctlSetMemoryRegion } from "./memslots";
import { kvmVmIoctlSetMsrFilter } from "./msrFilter";
import { kvmVmIoctlGetClock, kvmVmIoctlSetClock, tscKhzOf } from "./pvclock";
import { KVM_MAX_VCPU_IDS, type Kvm } from "./types";
import * as uapi from "./uapi";
import { KvmVcpuFd } from "./vcpuFd";

/** Fails an ioctl that needs the irqchip in the kernel. */
function needIrqchip(kvm: Kvm, ioctl: string): void {
  if (!irqchipInKernel(kvm)) throw new KvmError("ENXIO", ioctl, "there is no irqchip in the kernel");
}

/** What KVM_GET_IRQCHIP and KVM_SET_IRQCHIP carry. */
export type KvmIrqchipState =
  | { chip_id: typeof uapi.KvmIrqchip.PIC_MASTER | typeof uapi.KvmIrqchip.PIC_SLAVE; pic: PicChipState }
  | { chip_id: typeof uapi.KvmIrqchip.IOAPIC; ioapic: IoApicState };

/** KVM_MIN_ALLOC_MMU_PAGES */
const KVM_MIN_ALLOC_MMU_PAGES = 64;

/** A virtual machine. */
export class KvmVmFd {
  readonly vcpus: KvmVcpuFd[] = [];

  constructor(private readonly vm: Kvm) {}

  /** @throws KvmError EBADF after close(), EIO when the VM is dead */
  get kvm(): Kvm {
    if (!this.vm.module.vmList.includes(this.vm)) throw new KvmError("EBADF", "ioctl", "the VM is closed");
    if (this.vm.state.vmDead) throw new KvmError("EIO", "ioctl", "the VM is dead");
    return this.vm;
  }

  KVM_CHECK_EXTENSION(capability: number): number {
    return kvmVmIoctlCheckExtension(this.kvm.module, capability);
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

  /** One bit a page, since the last call. @throws KvmError ENXIO, EINVAL, ENOENT */
  KVM_GET_DIRTY_LOG(slot: number): Uint32Array {
    return kvmVmIoctlGetDirtyLog(this.kvm, slot);
  }

  /** @throws KvmError ENXIO, EINVAL, ENOENT, EFAULT */
  KVM_CLEAR_DIRTY_LOG(log: uapi.KvmClearDirtyLog): void {
    kvmVmIoctlClearDirtyLog(this.kvm, log);
  }

  /** @returns entries whose pages are logged afresh. @throws KvmError EINVAL */
  KVM_RESET_DIRTY_RINGS(): number {
    return kvmVmIoctlResetDirtyPages(this.kvm);
  }

  /** @throws KvmError EINVAL, ENOSPC */
  KVM_REGISTER_COALESCED_MMIO(zone: uapi.KvmCoalescedMmioZone): void {
    kvmVmIoctlRegisterCoalescedMmio(this.kvm, zone);
  }
  /** @throws KvmError EINVAL */
  KVM_UNREGISTER_COALESCED_MMIO(zone: uapi.KvmCoalescedMmioZone): void {
    kvmVmIoctlUnregisterCoalescedMmio(this.kvm, zone);
  }
  /** The ring in the third page of every vCPU's mapping. */
  get coalescedMmioRing(): uapi.KvmCoalescedMmioRing {
    return this.kvm.state.coalescedMmioRing;
  }

  /** @throws KvmError EINVAL, EBADF, EBUSY */
  KVM_IRQFD(args: KvmIrqfdArgs): void {
    kvmIrqfd(this.kvm, args);
  }
  /** @throws KvmError EINVAL, EBADF, EEXIST, ENOENT, ENOSPC */
  KVM_IOEVENTFD(args: KvmIoeventfdArgs): void {
    kvmIoeventfd(this.kvm, args);
  }

  /** @throws KvmError EINVAL */
  KVM_X86_SET_MSR_FILTER(filter: uapi.KvmMsrFilter): void {
    kvmVmIoctlSetMsrFilter(this.kvm, filter);
  }

  /** Devices other than vCPUs: none can be made on this architecture. @throws KvmError ENODEV */
  KVM_CREATE_DEVICE(device: { readonly type: number; readonly flags: number }): never {
    throw new KvmError("ENODEV", "KVM_CREATE_DEVICE", `there are no devices of type ${device.type}`);
  }

  /** Limit on shadow pages, which second-level tables do not need. @throws KvmError EINVAL below the least number */
  KVM_SET_NR_MMU_PAGES(pages: number): void {
    if (pages < KVM_MIN_ALLOC_MMU_PAGES) {
      throw new KvmError("EINVAL", "KVM_SET_NR_MMU_PAGES", `at least ${KVM_MIN_ALLOC_MMU_PAGES} pages`);
    }
    this.kvm.arch.nMaxMmuPages = pages;
  }
  KVM_GET_NR_MMU_PAGES(): number {
    return this.kvm.arch.nMaxMmuPages;
  }

  /** Rate of the TSC of vCPUs to come. @param khz 0 is the host's. @throws KvmError EINVAL */
  KVM_SET_TSC_KHZ(khz: number): void {
    this.kvm.arch.tscKhz = tscKhzOf(this.kvm.module, khz);
  }
  KVM_GET_TSC_KHZ(): number {
    return this.kvm.arch.tscKhz;
  }

  /** The VM's statistics as a file. */
  KVM_GET_STATS_FD(): KvmStatsFd {
    return new KvmStatsFd(`kvm-${this.kvm.id}`, () => this.vm.state.stat);
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
    if (!picInKernel(this.kvm)) throw new KvmError("ENXIO", ioctl, "PIC and I/O APIC are not in the kernel");
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
    this.kvm.vpit.setState(structuredClone(state));
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

  /** Nanoseconds of the guest's kvmclock, and of the host's clocks at the same moment. */
  KVM_GET_CLOCK(): uapi.KvmClockData {
    return kvmVmIoctlGetClock(this.kvm);
  }

  /**
   * @param flags what KVM_GET_CLOCK gave, or 0
   * @param realtime host's wall-clock time (ns) at which the clock was read, with KVM_CLOCK_REALTIME
   * @throws KvmError EINVAL
   */
  KVM_SET_CLOCK(clock: bigint, flags = 0, realtime?: bigint): void {
    kvmVmIoctlSetClock(this.kvm, { clock, flags, realtime });
  }

  /** @throws KvmError EINVAL for a capability that cannot be enabled or wrong arguments, EEXIST, E2BIG */
  KVM_ENABLE_CAP(capability: number, args: readonly bigint[] = [], flags = 0): void {
    kvmVmIoctlEnableCap(this.kvm, capability, args, flags);
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
