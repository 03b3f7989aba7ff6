/**
 * Coalesced MMIO and PIO (virt/kvm/coalesced_mmio.c): writes to registered zones wait in a ring that userspace empties at
 * its next exit (Documentation/virt/kvm/api.rst 4.116).
 */
import { KvmError } from "./errno";
import { KvmBus, type KvmIoDevice, kvmIoBusDevices, kvmIoBusRegisterDev, kvmIoBusUnregisterDev } from "./ioBus";
import type { Kvm, KvmVcpu } from "./types";
import type { KvmCoalescedMmioRing, KvmCoalescedMmioZone } from "./uapi";

/** Entries of 24 bytes in a page behind two 32-bit indices. */
export const KVM_COALESCED_MMIO_MAX = Math.floor((4096 - 8) / 24);

/** struct kvm_coalesced_mmio_ring, empty. */
export const newCoalescedMmioRing = (): KvmCoalescedMmioRing => ({
  first: 0,
  last: 0,
  coalesced_mmio: Array.from({ length: KVM_COALESCED_MMIO_MAX }, () => ({
    phys_addr: 0,
    len: 0,
    pio: 0,
    data: new Uint8Array(8),
  })),
});

class CoalescedMmioDev implements KvmIoDevice {
  readonly name = "coalesced-mmio";

  constructor(
    private readonly kvm: Kvm,
    readonly zone: KvmCoalescedMmioZone,
  ) {}

  /** coalesced_mmio_in_range */
  inRange(addr: number, len: number): boolean {
    return addr >= this.zone.addr && addr + len <= this.zone.addr + this.zone.size;
  }

  read(_vcpu: KvmVcpu | null, _addr: number, _data: Uint8Array): boolean {
    return false;
  }

  /** coalesced_mmio_write: a full ring lets the write go to userspace. */
  write(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    if (!this.inRange(addr, data.length) || data.length > 8) return false;
    const ring = this.kvm.state.coalescedMmioRing;
    const { first, last } = ring;
    const room = (first - last - 1 + 2 * KVM_COALESCED_MMIO_MAX) % KVM_COALESCED_MMIO_MAX;
    if (last >= KVM_COALESCED_MMIO_MAX || room === 0) return false;
    const bytes = new Uint8Array(8);
    bytes.set(data);
    ring.coalesced_mmio[last] = { phys_addr: addr, len: data.length, pio: this.zone.pio, data: bytes };
    ring.last = (last + 1) % KVM_COALESCED_MMIO_MAX;
    return true;
  }
}

const busOf = (zone: KvmCoalescedMmioZone): KvmBus => (zone.pio ? KvmBus.PIO : KvmBus.MMIO);

function checkZone(zone: KvmCoalescedMmioZone, ioctl: string): void {
  if (zone.pio !== 0 && zone.pio !== 1) throw new KvmError("EINVAL", ioctl, "pio is 0 or 1");
}

/** KVM_REGISTER_COALESCED_MMIO. @throws KvmError EINVAL, ENOSPC */
export function kvmVmIoctlRegisterCoalescedMmio(kvm: Kvm, zone: KvmCoalescedMmioZone): void {
  checkZone(zone, "KVM_REGISTER_COALESCED_MMIO");
  const dev = new CoalescedMmioDev(kvm, { ...zone });
  kvmIoBusRegisterDev(kvm, busOf(zone), zone.addr, zone.size, dev);
}

/** KVM_UNREGISTER_COALESCED_MMIO: every zone that holds the given one. @throws KvmError EINVAL */
export function kvmVmIoctlUnregisterCoalescedMmio(kvm: Kvm, zone: KvmCoalescedMmioZone): void {
  checkZone(zone, "KVM_UNREGISTER_COALESCED_MMIO");
  for (const dev of kvmIoBusDevices(kvm, busOf(zone))) {
    if (dev instanceof CoalescedMmioDev && dev.inRange(zone.addr, zone.size))
      kvmIoBusUnregisterDev(kvm, busOf(zone), dev);
  }
}
