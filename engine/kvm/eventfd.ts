/**
 * irqfds and ioeventfds (virt/kvm/eventfd.c): an eventfd that raises a GSI, and one that a guest's write adds to without an
 * exit to userspace (Documentation/virt/kvm/api.rst 4.75, 4.59).
 */
import { KvmError } from "./errno";
import type { EventFd, EventFdListener } from "./eventfdCtx";
import { KvmBus, type KvmIoDevice, kvmIoBusRegisterDev, kvmIoBusUnregisterDev } from "./ioBus";
import { irqchipInKernel, picInKernel } from "./irq";
import {
  KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
  kvmRegisterIrqAckNotifier,
  kvmSetIrq,
  kvmUnregisterIrqAckNotifier,
} from "./irqComm";
import type { Kvm, KvmVcpu } from "./types";
import { KVM_USERSPACE_IRQ_SOURCE_ID, KvmIoeventfdFlag, KvmIrqfdFlag } from "./uapi";

// --- irqfd --------------------------------------------------------------------------------------------------------------

/** struct kvm_irqfd. */
export interface KvmIrqfdArgs {
  readonly fd: EventFd;
  readonly gsi: number;
  /** KvmIrqfdFlag bits. */
  readonly flags: number;
  /** Signalled when the guest acknowledges a level-triggered interrupt, with KvmIrqfdFlag.RESAMPLE. */
  readonly resamplefd?: EventFd;
}

/** struct kvm_kernel_irqfd: wiring, no state of its own. */
export interface KvmKernelIrqfd {
  readonly eventfd: EventFd;
  readonly gsi: number;
  readonly resamplefd: EventFd | null;
  readonly listener: EventFdListener;
}

/** KVM_IRQFD. @throws KvmError EINVAL, EBADF, EBUSY */
export function kvmIrqfd(kvm: Kvm, args: KvmIrqfdArgs): void {
  if (args.flags & ~(KvmIrqfdFlag.DEASSIGN | KvmIrqfdFlag.RESAMPLE)) {
    throw new KvmError("EINVAL", "KVM_IRQFD", "unknown flags");
  }
  if (args.flags & KvmIrqfdFlag.DEASSIGN) kvmIrqfdDeassign(kvm, args);
  else kvmIrqfdAssign(kvm, args);
}

/** kvm_irqfd_assign */
function kvmIrqfdAssign(kvm: Kvm, args: KvmIrqfdArgs): void {
  const resample = (args.flags & KvmIrqfdFlag.RESAMPLE) !== 0;
  // kvm_arch_irqfd_allowed: acknowledgements are seen by an I/O APIC in the kernel only.
  if (!(resample ? picInKernel(kvm) : irqchipInKernel(kvm))) {
    throw new KvmError("EINVAL", "KVM_IRQFD", "there is no irqchip in the kernel for it");
  }
  needOpen(args.fd, "KVM_IRQFD");
  let resamplefd: EventFd | null = null;
  if (resample) {
    if (!args.resamplefd) throw new KvmError("EBADF", "KVM_IRQFD", "resamplefd is not an eventfd");
    needOpen(args.resamplefd, "KVM_IRQFD");
    resamplefd = args.resamplefd;
  }
  if (kvm.irqfds.some((other) => other.eventfd === args.fd)) {
    throw new KvmError("EBUSY", "KVM_IRQFD", "this eventfd drives an interrupt already");
  }
  const irqfd: KvmKernelIrqfd = {
    eventfd: args.fd,
    gsi: args.gsi,
    resamplefd,
    listener: (event) => irqfdWakeup(kvm, irqfd, event),
  };
  if (resamplefd && !kvm.irqfds.some((other) => other.resamplefd && other.gsi === args.gsi)) {
    kvmRegisterIrqAckNotifier(kvm, {
      gsi: args.gsi,
      owner: "resampler",
      irqAcked: () => irqfdResamplerAck(kvm, args.gsi),
    });
  }
  kvm.irqfds.push(irqfd);
  args.fd.listen(irqfd.listener);
  // Events that came before the assignment count.
  if (args.fd.state.count > 0n) irqfdWakeup(kvm, irqfd, "in");
}

/** kvm_irqfd_deassign: nothing to do is no error. */
function kvmIrqfdDeassign(kvm: Kvm, args: KvmIrqfdArgs): void {
  needOpen(args.fd, "KVM_IRQFD");
  for (const irqfd of [...kvm.irqfds]) {
    if (irqfd.eventfd === args.fd && irqfd.gsi === args.gsi) irqfdDeactivate(kvm, irqfd);
  }
}

/** irqfd_wakeup and irqfd_inject: an edge, or a level that stays until the guest has acknowledged it. */
function irqfdWakeup(kvm: Kvm, irqfd: KvmKernelIrqfd, event: "in" | "hangup"): void {
  if (event === "hangup") {
    irqfdDeactivate(kvm, irqfd);
    return;
  }
  irqfd.eventfd.state.count = 0n;
  if (irqfd.resamplefd) {
    kvmSetIrq(kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, irqfd.gsi, true);
  } else {
    kvmSetIrq(kvm, KVM_USERSPACE_IRQ_SOURCE_ID, irqfd.gsi, true);
    kvmSetIrq(kvm, KVM_USERSPACE_IRQ_SOURCE_ID, irqfd.gsi, false);
  }
}

/** irqfd_resampler_ack: the line goes low, and the devices are asked whether they still want it high. */
function irqfdResamplerAck(kvm: Kvm, gsi: number): void {
  kvmSetIrq(kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, gsi, false);
  for (const irqfd of [...kvm.irqfds]) if (irqfd.gsi === gsi) irqfd.resamplefd?.signal();
}

/** irqfd_deactivate and irqfd_shutdown */
function irqfdDeactivate(kvm: Kvm, irqfd: KvmKernelIrqfd): void {
  const at = kvm.irqfds.indexOf(irqfd);
  if (at < 0) return;
  kvm.irqfds.splice(at, 1);
  irqfd.eventfd.unlisten(irqfd.listener);
  if (irqfd.resamplefd && !kvm.irqfds.some((other) => other.resamplefd && other.gsi === irqfd.gsi)) {
    kvmUnregisterIrqAckNotifier(kvm, irqfd.gsi, "resampler");
    kvmSetIrq(kvm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, irqfd.gsi, false);
  }
}

/** kvm_irqfd_release: the VM is closed. */
export function kvmIrqfdRelease(kvm: Kvm): void {
  for (const irqfd of [...kvm.irqfds]) irqfdDeactivate(kvm, irqfd);
}

function needOpen(fd: EventFd, ioctl: string): void {
  if (fd.state.closed) throw new KvmError("EBADF", ioctl, "the eventfd is closed");
}

// --- ioeventfd ------------------------------------------------------------------------------------------------------------

/** struct kvm_ioeventfd. */
export interface KvmIoeventfdArgs {
  readonly datamatch?: bigint;
  readonly addr: number;
  /** 1, 2, 4 or 8 bytes; 0 for writes of any length. */
  readonly len: number;
  readonly fd: EventFd;
  /** KvmIoeventfdFlag bits. */
  readonly flags: number;
}

/** struct _ioeventfd. */
class Ioeventfd implements KvmIoDevice {
  readonly name = "ioeventfd";

  constructor(
    readonly bus: KvmBus,
    readonly addr: number,
    readonly length: number,
    readonly eventfd: EventFd,
    /** Value that counts; null for any (wildcard). */
    readonly datamatch: bigint | null,
  ) {}

  read(_vcpu: KvmVcpu | null, _addr: number, _data: Uint8Array): boolean {
    return false;
  }

  /** ioeventfd_write: the value itself is thrown away. */
  write(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    if (!this.inRange(addr, data)) return false;
    this.eventfd.signal();
    return true;
  }

  /** ioeventfd_in_range */
  private inRange(addr: number, data: Uint8Array): boolean {
    if (addr !== this.addr) return false;
    if (this.length === 0) return true;
    if (data.length !== this.length) return false;
    if (this.datamatch === null) return true;
    let value = 0n;
    for (let i = data.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[i]);
    return value === this.datamatch;
  }

  /** ioeventfd_check_collision: both would answer the same write. */
  collides(other: Ioeventfd): boolean {
    if (this.bus !== other.bus || this.addr !== other.addr) return false;
    if (this.length === 0 || other.length === 0) return true;
    if (this.length !== other.length) return false;
    return this.datamatch === null || other.datamatch === null || this.datamatch === other.datamatch;
  }
}

export type { Ioeventfd };

const VALID_IOEVENTFD_FLAGS = 0xf;

/** ioeventfd_bus_from_flags */
function ioeventfdBus(flags: number): KvmBus {
  if (flags & KvmIoeventfdFlag.PIO) return KvmBus.PIO;
  if (flags & KvmIoeventfdFlag.VIRTIO_CCW_NOTIFY) return KvmBus.VIRTIO_CCW_NOTIFY;
  return KvmBus.MMIO;
}

/** KVM_IOEVENTFD. @throws KvmError EINVAL, EBADF, EEXIST, ENOENT, ENOSPC */
export function kvmIoeventfd(kvm: Kvm, args: KvmIoeventfdArgs): void {
  if (args.flags & KvmIoeventfdFlag.DEASSIGN) kvmDeassignIoeventfd(kvm, args);
  else kvmAssignIoeventfd(kvm, args);
}

/** kvm_assign_ioeventfd */
function kvmAssignIoeventfd(kvm: Kvm, args: KvmIoeventfdArgs): void {
  const fail = (errno: "EINVAL" | "EEXIST", why: string): never => {
    throw new KvmError(errno, "KVM_IOEVENTFD", why);
  };
  if (![0, 1, 2, 4, 8].includes(args.len)) fail("EINVAL", "the length is 1, 2, 4, 8, or 0 for any");
  if (args.addr + args.len >= 2 ** 64) fail("EINVAL", "the range wraps around");
  if (args.flags & ~VALID_IOEVENTFD_FLAGS) fail("EINVAL", "unknown flags");
  if (args.len === 0 && args.flags & KvmIoeventfdFlag.DATAMATCH)
    fail("EINVAL", "without a length there is no data to match");
  const bus = ioeventfdBus(args.flags);
  assignIoeventfdIdx(kvm, bus, args);
  // Without a length the write needs no decoding: the fast bus answers it before the emulator is asked.
  if (args.len === 0 && bus === KvmBus.MMIO) {
    try {
      assignIoeventfdIdx(kvm, KvmBus.FAST_MMIO, args);
    } catch (error) {
      deassignIoeventfdIdx(kvm, bus, args);
      throw error;
    }
  }
}

/** kvm_assign_ioeventfd_idx */
function assignIoeventfdIdx(kvm: Kvm, bus: KvmBus, args: KvmIoeventfdArgs): void {
  needOpen(args.fd, "KVM_IOEVENTFD");
  const match = args.flags & KvmIoeventfdFlag.DATAMATCH ? (args.datamatch ?? 0n) : null;
  const p = new Ioeventfd(bus, args.addr, args.len, args.fd, match);
  if (kvm.ioeventfds.some((other) => other.collides(p))) {
    throw new KvmError("EEXIST", "KVM_IOEVENTFD", "another ioeventfd answers this write");
  }
  kvmIoBusRegisterDev(kvm, bus, p.addr, p.length, p, true);
  kvm.ioeventfds.push(p);
}

/** kvm_deassign_ioeventfd */
function kvmDeassignIoeventfd(kvm: Kvm, args: KvmIoeventfdArgs): void {
  const bus = ioeventfdBus(args.flags);
  needOpen(args.fd, "KVM_IOEVENTFD");
  const found = deassignIoeventfdIdx(kvm, bus, args);
  if (args.len === 0 && bus === KvmBus.MMIO) deassignIoeventfdIdx(kvm, KvmBus.FAST_MMIO, args);
  if (!found) throw new KvmError("ENOENT", "KVM_IOEVENTFD", "there is no such ioeventfd");
}

/** kvm_deassign_ioeventfd_idx. @returns whether there was one */
function deassignIoeventfdIdx(kvm: Kvm, bus: KvmBus, args: KvmIoeventfdArgs): boolean {
  const match = args.flags & KvmIoeventfdFlag.DATAMATCH ? (args.datamatch ?? 0n) : null;
  const at = kvm.ioeventfds.findIndex(
    (p) =>
      p.bus === bus && p.eventfd === args.fd && p.addr === args.addr && p.length === args.len && p.datamatch === match,
  );
  if (at < 0) return false;
  const [p] = kvm.ioeventfds.splice(at, 1);
  kvmIoBusUnregisterDev(kvm, bus, p);
  return true;
}
