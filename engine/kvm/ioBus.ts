/**
 * KVM's own I/O buses (struct kvm_io_bus): ports and memory-mapped ranges served inside the kernel. What no device claims
 * goes to userspace.
 */
import { TraceKind } from "../trace";
import { KvmError } from "./errno";
import type { Kvm, KvmVcpu } from "./types";

/** enum kvm_bus */
export const KvmBus = { MMIO: 0, PIO: 1, VIRTIO_CCW_NOTIFY: 2, FAST_MMIO: 3 } as const;
export type KvmBus = (typeof KvmBus)[keyof typeof KvmBus];
const BUS_NAMES = ["mmio", "pio", "virtio-ccw-notify", "fast-mmio"] as const;

/** Largest number of devices on one bus (NR_IOBUS_DEVS), ioeventfds apart. */
const NR_IOBUS_DEVS = 1000;

/** struct kvm_io_device. Both answer false (-EOPNOTSUPP) when the device does not want this access. */
export interface KvmIoDevice {
  readonly name: string;
  read(vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean;
  write(vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean;
}

interface KvmIoRange {
  readonly addr: number;
  readonly len: number;
  readonly dev: KvmIoDevice;
  readonly ioeventfd: boolean;
}

/** The buses of a VM: wiring, no state of its own. */
export class KvmIoBuses {
  readonly ranges: readonly [KvmIoRange[], KvmIoRange[], KvmIoRange[], KvmIoRange[]] = [[], [], [], []];
}

/** kvm_io_bus_register_dev. @throws KvmError ENOSPC when the bus is full */
export function kvmIoBusRegisterDev(
  kvm: Kvm,
  bus: KvmBus,
  addr: number,
  len: number,
  dev: KvmIoDevice,
  ioeventfd = false,
): void {
  const ranges = kvm.buses.ranges[bus];
  const devices = ranges.reduce((n, range) => n + (range.ioeventfd ? 0 : 1), 0);
  if (devices >= NR_IOBUS_DEVS) throw new KvmError("ENOSPC", "kvm_io_bus_register_dev", "the bus is full");
  ranges.push({ addr, len, dev, ioeventfd });
  ranges.sort((a, b) => a.addr - b.addr || a.len - b.len);
}

/** kvm_io_bus_unregister_dev */
export function kvmIoBusUnregisterDev(kvm: Kvm, bus: KvmBus, dev: KvmIoDevice): void {
  const ranges = kvm.buses.ranges[bus];
  const at = ranges.findIndex((range) => range.dev === dev);
  if (at >= 0) ranges.splice(at, 1);
}

/** Devices of a bus. */
export const kvmIoBusDevices = (kvm: Kvm, bus: KvmBus): KvmIoDevice[] =>
  kvm.buses.ranges[bus].map((range) => range.dev);

/** kvm_io_bus_cmp: a range without length takes accesses of any length at its address. */
const covers = (range: KvmIoRange, addr: number, length: number): boolean =>
  range.len === 0 ? addr === range.addr : addr + length <= range.addr + range.len;

const numberOf = (data: Uint8Array): bigint => {
  let value = 0n;
  for (let i = data.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[i]);
  return value;
};

function traceDevice(
  kvm: Kvm,
  vcpu: KvmVcpu | null,
  bus: KvmBus,
  range: KvmIoRange,
  addr: number,
  write: boolean,
  data: Uint8Array,
): void {
  const { trace } = kvm.module.host;
  if (!(trace.armed & TraceKind.Device)) return;
  const value = numberOf(data);
  const where = bus === KvmBus.PIO ? "port" : "address";
  trace.hit({
    kind: TraceKind.Device,
    vcpu: vcpu?.state.vcpuIdx ?? 0,
    text: `${range.dev.name} (in kernel) ${write ? "write" : "read"} ${where} 0x${addr.toString(16)} size ${data.length}`,
    detail: {
      device: range.dev.name,
      bus: BUS_NAMES[bus],
      [where]: BigInt(addr),
      size: BigInt(data.length),
      write,
      ...(write ? { value } : {}),
    },
  });
}

/** kvm_io_bus_write. @returns whether a device took it */
export function kvmIoBusWrite(kvm: Kvm, vcpu: KvmVcpu | null, bus: KvmBus, addr: number, data: Uint8Array): boolean {
  for (const range of kvm.buses.ranges[bus]) {
    if (range.addr > addr) break;
    if (!covers(range, addr, data.length)) continue;
    traceDevice(kvm, vcpu, bus, range, addr, true, data);
    if (range.dev.write(vcpu, addr, data)) return true;
  }
  return false;
}

/** kvm_io_bus_read. Fills `data` when a device answers. */
export function kvmIoBusRead(kvm: Kvm, vcpu: KvmVcpu | null, bus: KvmBus, addr: number, data: Uint8Array): boolean {
  for (const range of kvm.buses.ranges[bus]) {
    if (range.addr > addr) break;
    if (!covers(range, addr, data.length)) continue;
    traceDevice(kvm, vcpu, bus, range, addr, false, data);
    if (range.dev.read(vcpu, addr, data)) return true;
  }
  return false;
}
