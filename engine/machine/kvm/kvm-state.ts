/**
 * QEMU's KVMState and what it does once a machine (accel/kvm/kvm-all.c): open /dev/kvm, create the VM and its interrupt
 * chips, hand guest RAM over as memory slots, drive interrupt lines. Function names are QEMU's.
 */
import type { Stateful } from "../../devices/chip";
import { KvmError } from "../../kvm/errno";
import type { KvmDevFd, KvmVmFd } from "../../kvm/fds";
import {
  KVM_API_VERSION,
  KvmCap,
  KvmIrqchip,
  KvmIrqRouting,
  type KvmIrqRoutingEntry,
  KvmMemFlag,
} from "../../kvm/uapi";
import { MachineError } from "../config";
import type { RamRange } from "../memory-map";
import { GUEST_RAM_HVA } from "./emulated-host";

/** A slot as QEMU remembers it. */
export interface KVMSlot {
  readonly slot: number;
  readonly startAddr: number;
  readonly memorySize: number;
  readonly ram: number;
  readonly flags: number;
}

export interface KVMState {
  readonly fd: KvmDevFd;
  readonly vmfd: KvmVmFd;
  readonly nrSlots: number;
  /** Slots in use. */
  readonly slots: Stateful<KVMSlot[]>;
  readonly coalescedMmio: number;
  readonly readonlyMem: boolean;
  readonly vcpuEvents: boolean;
  readonly maxVcpus: number;
}

/** Page tables and TSS that KVM keeps for real mode, just below the APICs (kvm_arch_init). */
const IDENTITY_BASE = 0xfeffc000;
const TSS_BASE = 0xfeffd000;

const REQUIRED = [
  ["USER_MEMORY", KvmCap.USER_MEMORY],
  ["DESTROY_MEMORY_REGION_WORKS", KvmCap.DESTROY_MEMORY_REGION_WORKS],
  ["JOIN_MEMORY_REGIONS_WORKS", KvmCap.JOIN_MEMORY_REGIONS_WORKS],
  ["IRQCHIP", KvmCap.IRQCHIP],
  ["SET_TSS_ADDR", KvmCap.SET_TSS_ADDR],
  ["EXT_CPUID", KvmCap.EXT_CPUID],
  ["MP_STATE", KvmCap.MP_STATE],
] as const;

/** kvm_init. @throws MachineError when KVM cannot do what the machine needs */
export function kvmInit(fd: KvmDevFd, smp: number): KVMState {
  const version = fd.KVM_GET_API_VERSION();
  if (version !== KVM_API_VERSION)
    throw new MachineError(`KVM API version ${version}, the machine speaks ${KVM_API_VERSION}`);
  for (const [name, cap] of REQUIRED) {
    if (fd.KVM_CHECK_EXTENSION(cap) === 0) throw new MachineError(`KVM does not support KVM_CAP_${name}`);
  }
  const maxVcpus = fd.KVM_CHECK_EXTENSION(KvmCap.MAX_VCPUS) || fd.KVM_CHECK_EXTENSION(KvmCap.NR_VCPUS);
  if (smp > maxVcpus) throw new MachineError(`smp: ${smp} vCPUs; KVM takes at most ${maxVcpus}`);
  const vmfd = fd.KVM_CREATE_VM(0);
  const s: KVMState = {
    fd,
    vmfd,
    nrSlots: fd.KVM_CHECK_EXTENSION(KvmCap.NR_MEMSLOTS) || 32,
    slots: { state: [] },
    coalescedMmio: fd.KVM_CHECK_EXTENSION(KvmCap.COALESCED_MMIO),
    readonlyMem: fd.KVM_CHECK_EXTENSION(KvmCap.READONLY_MEM) > 0,
    vcpuEvents: fd.KVM_CHECK_EXTENSION(KvmCap.VCPU_EVENTS) > 0,
    maxVcpus,
  };
  kvmArchInit(s);
  kvmIrqchipCreate(s);
  return s;
}

/** kvm_arch_init: the pages KVM needs in guest-physical space. */
function kvmArchInit(s: KVMState): void {
  s.vmfd.KVM_SET_IDENTITY_MAP_ADDR(IDENTITY_BASE);
  s.vmfd.KVM_SET_TSS_ADDR(TSS_BASE);
}

/** kvm_irqchip_create: PICs, I/O APIC and local APICs in the kernel, then the PIT (kvm_pit_realizefn). */
function kvmIrqchipCreate(s: KVMState): void {
  s.vmfd.KVM_CREATE_IRQCHIP();
  kvmPcSetupIrqRouting(s);
  s.vmfd.KVM_CREATE_PIT2({ flags: KVM_PIT_SPEAKER_DUMMY });
}

/** The kernel serves port 0x61 with the PIT's gate and output. */
const KVM_PIT_SPEAKER_DUMMY = 1;

/** kvm_pc_setup_irq_routing: ISA IRQ 0 is the I/O APIC's pin 2. */
function kvmPcSetupIrqRouting(s: KVMState): void {
  const entries: KvmIrqRoutingEntry[] = [];
  const add = (gsi: number, irqchip: number, pin: number): void => {
    entries.push({ gsi, type: KvmIrqRouting.IRQCHIP, irqchip, pin });
  };
  for (let i = 0; i < 8; i++) if (i !== 2) add(i, KvmIrqchip.PIC_MASTER, i);
  for (let i = 8; i < 16; i++) add(i, KvmIrqchip.PIC_SLAVE, i - 8);
  for (let i = 0; i < 24; i++) {
    if (i === 0) add(i, KvmIrqchip.IOAPIC, 2);
    else if (i !== 2) add(i, KvmIrqchip.IOAPIC, i);
  }
  s.vmfd.KVM_SET_GSI_ROUTING(entries);
}

/**
 * What the memory listener does when the guest's memory map changes: kvm_region_del for what is gone, kvm_region_add for
 * what is new. Ranges that stay keep their slots.
 */
export function kvmCommit(s: KVMState, ranges: readonly RamRange[]): void {
  const wanted = ranges.map((range) => ({
    startAddr: range.base,
    memorySize: range.size,
    ram: GUEST_RAM_HVA + range.offset,
    flags: range.kind === "rom" && s.readonlyMem ? KvmMemFlag.READONLY : 0,
  }));
  const same = (a: Omit<KVMSlot, "slot">, b: Omit<KVMSlot, "slot">): boolean =>
    a.startAddr === b.startAddr && a.memorySize === b.memorySize && a.ram === b.ram && a.flags === b.flags;
  for (const old of [...s.slots.state]) if (!wanted.some((w) => same(w, old))) kvmRegionDel(s, old);
  for (const next of wanted) if (!s.slots.state.some((old) => same(next, old))) kvmRegionAdd(s, next);
}

/** kvm_region_add */
function kvmRegionAdd(s: KVMState, range: Omit<KVMSlot, "slot">): void {
  const slot: KVMSlot = { slot: kvmGetFreeSlot(s), ...range };
  kvmSetUserMemoryRegion(s, slot, slot.memorySize);
  s.slots.state.push(slot);
}

/** kvm_region_del: a slot of size zero is none. */
function kvmRegionDel(s: KVMState, slot: KVMSlot): void {
  kvmSetUserMemoryRegion(s, slot, 0);
  s.slots.state.splice(s.slots.state.indexOf(slot), 1);
}

/** kvm_get_free_slot. @throws MachineError when there is none */
function kvmGetFreeSlot(s: KVMState): number {
  for (let slot = 0; slot < s.nrSlots; slot++) if (!s.slots.state.some((used) => used.slot === slot)) return slot;
  throw new MachineError(`no free memory slot: KVM has ${s.nrSlots}`);
}

/** kvm_set_user_memory_region */
function kvmSetUserMemoryRegion(s: KVMState, slot: KVMSlot, memorySize: number): void {
  s.vmfd.KVM_SET_USER_MEMORY_REGION({
    slot: slot.slot,
    flags: slot.flags,
    guest_phys_addr: slot.startAddr,
    memory_size: memorySize,
    userspace_addr: slot.ram,
  });
}

/** kvm_set_irq: an interrupt line of the board changed. */
export function kvmSetIrq(s: KVMState, irq: number, level: boolean): void {
  s.vmfd.KVM_IRQ_LINE({ irq, level: level ? 1 : 0 });
}

/** kvm_irqchip_send_msi: a device's message. */
export function kvmIrqchipSendMsi(s: KVMState, msi: { address: number; addressHigh: number; data: number }): void {
  s.vmfd.KVM_SIGNAL_MSI({ address_lo: msi.address, address_hi: msi.addressHigh, data: msi.data, flags: 0 });
}

/** What an ioctl's failure means to the person who configured the machine. */
export function kvmFailure(error: unknown): never {
  if (error instanceof KvmError) throw new MachineError(`KVM refused: ${error.message}`);
  throw error;
}
