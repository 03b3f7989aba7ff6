/**
 * The local APIC in the kernel (arch/x86/kvm/lapic.c). The chip itself is devices/local-apic; this file gives it a vCPU: its
 * interrupts become requests, INIT and SIPI pending events, its register page an MMIO device.
 */

import { Off } from "../cpu/state";
import { DeliveryMode } from "../devices/apic-bus";
import { ApicReg, LocalApic, type LocalApicState, Lvt } from "../devices/local-apic";
import { TraceKind } from "../trace";
import { guestCpuidHas } from "./cpuid";
import { irqchipSplit } from "./irq";
import { kvmApicBus } from "./irqComm";
import { kvmRipRead } from "./kvmCacheRegs";
import { kvmVcpuKick } from "./kvmMain";
import { gpaToHpa, kvmReadGuest, kvmWriteGuest } from "./memslots";
import { hostTscOfGuestTsc } from "./pvclock";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmVcpu } from "./types";
import { KvmIrqRouting, KvmMpState } from "./uapi";
import { vmxCheckApicv, vmxDeliverPostedInterrupt } from "./vmx/apicv";
import { kvmVcpuApicvActive } from "./vmx/apicvState";
import { kvmInjectNmi } from "./x86Events";
import { kvmVcpuDeliverSipiVector, kvmVcpuReset } from "./x86Vcpu";

const APIC_BASE_MSR = 0x1b;
const LAPIC_MMIO_LENGTH = 4096;
/** Physical address of the registers after reset. */
export const APIC_DEFAULT_PHYS_BASE = 0xfee00000;
const BASE_BSP = 1n << 8n;
const BASE_X2APIC = 1n << 10n;
const BASE_ENABLE = 1n << 11n;
/** Bits of pending_events. */
const KVM_APIC_INIT = 1;
const KVM_APIC_SIPI = 2;

/** Name of a vCPU's local APIC in the clock's event queue. */
export const kvmClockOwner = (vcpu: KvmVcpu): string => `kvm${vcpu.kvm.id}.lapic${vcpu.state.vcpuId}`;

/** The in-kernel local APIC of a vCPU: the chip of engine/devices with KVM's wiring. */
export class KvmLapic {
  readonly chip: LocalApic;

  constructor(private readonly vcpu: KvmVcpu) {
    const { kvm, module } = vcpu;
    this.chip = new LocalApic({
      id: vcpu.state.vcpuId,
      bsp: vcpu.state.vcpuId === kvm.arch.bspVcpuId,
      x2apic: true,
      // kvm_apic_set_version: KVM's I/O APIC is an 82093AA, which has no EOI register.
      suppressesEoi: false,
      tscDeadline: true,
      minimumPeriod: module.params.min_timer_period_us * 1000,
      physicalBits: module.host.processors[0].model.physicalBits,
      clock: module.host.clock,
      owner: kvmClockOwner(vcpu),
      bus: { ...kvmApicBus(kvm), broadcastEoi: (vector) => kvmIoapicSendEoi(vcpu, vector) },
      core: {
        attention: () => {
          if (vmxDeliverPostedInterrupt(vcpu)) return;
          vmxCheckApicv(vcpu);
          kvmMakeRequest(KvmReq.EVENT, vcpu);
          kvmVcpuKick(vcpu);
        },
        signal: (event, vector) => this.signal(event, vector ?? 0),
        timeOfTsc: (tsc) => this.timeOfTsc(tsc),
      },
    });
  }

  get state(): LocalApicState {
    return this.chip.state;
  }
  set state(state: LocalApicState) {
    this.chip.state = state;
  }

  /** Virtual time (ns) at which the guest's TSC reaches `tsc`. */
  private timeOfTsc(tsc: bigint): number {
    const { host, params } = this.vcpu.module;
    const cpu = host.processors[this.vcpu.state.thread.cpu];
    const hostTsc = BigInt.asIntN(64, hostTscOfGuestTsc(this.vcpu, tsc) - cpu.state.u64(Off.TSC_BASE));
    const limit = 1n << 53n;
    const at = hostTsc <= 0n ? 0 : Number(hostTsc < limit ? hostTsc : limit);
    // The timer may fire early; the entry then waits for the rest (kvm_wait_lapic_expire).
    this.vcpu.arch.expiredTscDeadline = tsc;
    return Math.max(0, at - Math.max(0, params.lapic_timer_advance_ns));
  }

  private signal(event: "nmi" | "init" | "sipi" | "smi", vector: number): void {
    const { vcpu } = this;
    if (event === "nmi") {
      kvmInjectNmi(vcpu);
    } else if (event === "init") {
      // INIT swallows a SIPI that came before it.
      vcpu.arch.apicPendingEvents = KVM_APIC_INIT;
      kvmMakeRequest(KvmReq.EVENT, vcpu);
    } else if (event === "sipi") {
      vcpu.arch.sipiVector = vector;
      vcpu.arch.apicPendingEvents |= KVM_APIC_SIPI;
      kvmMakeRequest(KvmReq.EVENT, vcpu);
    } else {
      vcpu.module.printk("kvm: SMI dropped, there is no system-management mode");
      return;
    }
    kvmVcpuKick(vcpu);
  }

  /** kvm_apic_has_interrupt: the vector that may be delivered now, -1 for none. */
  hasInterrupt(): number {
    return this.chip.pending();
  }

  /** kvm_get_apic_interrupt */
  getInterrupt(): number {
    return this.chip.pending() < 0 ? -1 : this.chip.acknowledge();
  }

  /** kvm_apic_accept_pic_intr: LINT0 passes the PIC's interrupts, or the APIC is off. */
  acceptsPicIntr(): boolean {
    return this.chip.passesExtInt;
  }

  /** kvm_lapic_find_highest_irr, regardless of priorities. */
  findHighestIrr(): number {
    return this.chip.highest(ApicReg.IRR);
  }

  /** TPR register, 8 bits. */
  get tpr(): number {
    return this.state.registers[ApicReg.TPR >> 4] & 0xff;
  }
  /** The processor changed the TPR shadow while the guest ran. */
  set tpr(value: number) {
    this.state.registers[ApicReg.TPR >> 4] = value & 0xff;
  }

  /** apic_mmio_in_range with an enabled page. */
  private inRange(addr: number): boolean {
    const page = this.chip.page;
    return page >= 0 && addr >= page && addr < page + LAPIC_MMIO_LENGTH;
  }

  /** apic_mmio_read. @returns false when the address is not this APIC's */
  mmioRead(addr: number, data: Uint8Array): boolean {
    if (!this.inRange(addr)) return false;
    this.trace(addr, false, data);
    this.reportTprAccess(addr, false);
    const offset = addr % LAPIC_MMIO_LENGTH;
    let value = this.chip.read(offset, 4);
    for (let i = 0; i < data.length; i++) {
      data[i] = value & 0xff;
      value >>>= 8;
    }
    return true;
  }

  /** apic_mmio_write: only aligned 32-bit writes do anything. */
  mmioWrite(addr: number, data: Uint8Array): boolean {
    if (!this.inRange(addr)) return false;
    this.trace(addr, true, data);
    this.reportTprAccess(addr, true);
    const offset = addr % LAPIC_MMIO_LENGTH;
    if (data.length !== 4 || offset & 0xf) return true;
    const value = (data[0] | (data[1] << 8) | (data[2] << 16) | (data[3] << 24)) >>> 0;
    this.chip.write(offset, 4, value);
    return true;
  }

  /** __report_tpr_access: userspace may patch the instruction (KVM_TPR_ACCESS_REPORTING). */
  private reportTprAccess(addr: number, write: boolean): void {
    const { vcpu } = this;
    if (!vcpu.arch.tprAccessReporting || (addr & 0xff0) !== ApicReg.TPR) return;
    vcpu.arch.tprAccess = { rip: kvmRipRead(vcpu), write };
    kvmMakeRequest(KvmReq.REPORT_TPR_ACCESS, vcpu);
  }

  private trace(addr: number, write: boolean, data: Uint8Array): void {
    const { trace } = this.vcpu.module.host;
    if (!(trace.armed & TraceKind.Device)) return;
    const offset = addr % LAPIC_MMIO_LENGTH;
    const name = registerNames.get(offset & 0xff0) ?? "reserved";
    trace.hit({
      kind: TraceKind.Device,
      vcpu: this.vcpu.state.vcpuIdx,
      text: `lapic (in kernel) ${write ? "write" : "read"} ${name} (offset 0x${offset.toString(16)})`,
      detail: {
        device: "lapic",
        register: name,
        address: BigInt(addr),
        size: BigInt(data.length),
        write,
        ...(write && data.length === 4
          ? { value: BigInt(new DataView(data.buffer, data.byteOffset).getUint32(0, true)) }
          : {}),
      },
    });
  }

  /** kvm_lapic_set_eoi: what an EOI write to the APIC-access page does. */
  setEoi(): void {
    this.chip.write(ApicReg.EOI, 4, 0);
  }
}

const registerNames = new Map<number, string>(Object.entries(ApicReg).map(([name, offset]) => [offset, name]));

/** kvm_wait_lapic_expire: an interrupt of a timer that fired early goes in at its own time. */
export function kvmWaitLapicExpire(vcpu: KvmVcpu): void {
  const { arch, apic } = vcpu;
  if (arch.expiredTscDeadline === 0n || !apic || apic.state.tscDeadline !== 0n) return;
  const { host } = vcpu.module;
  const cpu = host.processors[vcpu.state.thread.cpu];
  const due = Number(BigInt.asIntN(64, hostTscOfGuestTsc(vcpu, arch.expiredTscDeadline) - cpu.state.u64(Off.TSC_BASE)));
  arch.expiredTscDeadline = 0n;
  if (due > host.clock.now) host.clock.pass(due - host.clock.now);
}

/** kvm_ioapic_send_eoi: to the I/O APIC in the kernel, or to userspace's (split irqchip). */
function kvmIoapicSendEoi(vcpu: KvmVcpu, vector: number): void {
  const { kvm } = vcpu;
  if (!irqchipSplit(kvm)) {
    kvm.vioapic?.updateEoi(vector);
    return;
  }
  if (!splitIoapicHandlesVector(kvm, vector)) return;
  vcpu.arch.pendingIoapicEoi = vector;
  kvmMakeRequest(KvmReq.IOAPIC_EOI_EXIT, vcpu);
}

/** kvm_scan_ioapic_routes: level-triggered MSI routes of the GSIs that are userspace's I/O APIC pins. */
const splitIoapicHandlesVector = (kvm: KvmVcpu["kvm"], vector: number): boolean =>
  kvm.arch.irqRoutes.some(
    (route) =>
      route.type === KvmIrqRouting.MSI &&
      route.gsi < kvm.arch.nrReservedIoapicPins &&
      (route.data & 0x8000) !== 0 &&
      (route.data & 0xff) === vector,
  );

/** kvm_lapic_reset at INIT and power-up. */
export function kvmLapicReset(vcpu: KvmVcpu, initEvent: boolean): void {
  if (!vcpu.apic) return;
  if (initEvent) vcpu.apic.chip.initReset();
  else vcpu.apic.chip.reset();
  vcpu.arch.apicPendingEvents = 0;
  vcpu.arch.pvEoiPending = false;
  vcpu.arch.pvEoiMsr = 0n;
}

export const kvmLapicEnabled = (vcpu: KvmVcpu): boolean => vcpu.apic?.chip.enabled ?? false;
export const apicX2apicMode = (vcpu: KvmVcpu): boolean => vcpu.apic?.chip.x2apicMode ?? false;

/** kvm_get_apic_base: IA32_APIC_BASE. */
export const kvmGetApicBase = (vcpu: KvmVcpu): bigint => vcpu.apic?.state.base ?? vcpu.arch.apicBase;

/** kvm_set_apic_base. @returns true where #GP(0) (or EINVAL) is due */
export function kvmSetApicBase(vcpu: KvmVcpu, value: bigint, hostInitiated: boolean): boolean {
  const limit = 1n << BigInt(vcpu.arch.maxphyaddr);
  if (value & (0x2ffn | ~(limit - 1n))) return true;
  const mode = value & (BASE_ENABLE | BASE_X2APIC);
  if (mode === BASE_X2APIC) return true;
  if (mode & BASE_X2APIC && !guestCpuidHas(vcpu, 1, 0, "ecx", 21)) return true;
  if (!vcpu.apic) {
    vcpu.arch.apicBase = value;
    return false;
  }
  const { chip } = vcpu.apic;
  if (hostInitiated) {
    // Userspace may go from any mode to any other, by way of the disabled one where the chip would refuse.
    if (!chip.writeMsr(APIC_BASE_MSR, value)) {
      chip.writeMsr(APIC_BASE_MSR, value & ~(BASE_ENABLE | BASE_X2APIC));
      if (mode !== 0n) chip.writeMsr(APIC_BASE_MSR, (value & ~BASE_X2APIC) | BASE_ENABLE);
      if (mode & BASE_X2APIC) chip.writeMsr(APIC_BASE_MSR, value);
    }
  } else if (!chip.writeMsr(APIC_BASE_MSR, value)) {
    return true;
  }
  vcpu.module.ops.setVirtualApicMode(vcpu);
  return false;
}

/** kvm_vcpu_is_bsp */
export const kvmVcpuIsBsp = (vcpu: KvmVcpu): boolean => (kvmGetApicBase(vcpu) & BASE_BSP) !== 0n;

/** kvm_lapic_get_cr8 */
export const kvmLapicGetCr8 = (vcpu: KvmVcpu): number => vcpu.apic?.chip.readCr8() ?? 0;

/** kvm_apic_has_pending_init_or_sipi */
export const kvmApicHasPendingInitOrSipi = (vcpu: KvmVcpu): boolean =>
  vcpu.apic !== null && vcpu.arch.apicPendingEvents !== 0;

/** kvm_apic_accept_events: INIT and SIPI take effect. @returns 0, or a negative errno */
export function kvmApicAcceptEvents(vcpu: KvmVcpu): number {
  const { arch } = vcpu;
  if (!kvmApicHasPendingInitOrSipi(vcpu)) return 0;
  if (arch.apicPendingEvents & KVM_APIC_INIT) {
    const sipi = arch.apicPendingEvents & KVM_APIC_SIPI;
    kvmVcpuReset(vcpu, true);
    arch.apicPendingEvents = sipi;
    arch.mpState = kvmVcpuIsBsp(vcpu) ? KvmMpState.RUNNABLE : KvmMpState.INIT_RECEIVED;
  }
  if (arch.apicPendingEvents & KVM_APIC_SIPI) {
    arch.apicPendingEvents &= ~KVM_APIC_SIPI;
    if (arch.mpState === KvmMpState.INIT_RECEIVED) {
      kvmVcpuDeliverSipiVector(vcpu, arch.sipiVector);
      arch.mpState = KvmMpState.RUNNABLE;
    }
  }
  return 0;
}

/** KVM_GET_LAPIC: the first KiB of the register page. */
export function kvmApicGetState(vcpu: KvmVcpu): Uint8Array {
  const page = new Uint8Array(0x400);
  const view = new DataView(page.buffer);
  const apic = vcpu.apic as KvmLapic;
  const { registers } = apic.state;
  for (let i = 0; i < registers.length; i++) view.setUint32(i * 16, registers[i], true);
  // kvm_apic_state_fixup: userspace that knows no x2APIC format finds the id where xAPIC has it.
  if (apic.chip.x2apicMode && !vcpu.kvm.arch.x2apicFormat) view.setUint32(ApicReg.ID, vcpu.state.vcpuId << 24, true);
  view.setUint32(ApicReg.PPR, apic.chip.ppr(), true);
  view.setUint32(ApicReg.CURRENT_COUNT, apic.chip.read(ApicReg.CURRENT_COUNT, 4), true);
  return page;
}

/**
 * KVM_SET_LAPIC: the timer starts afresh with the initial count of the page.
 * @returns false (-EINVAL) for a wrong x2APIC id, which only userspace that knows that format is held to
 */
export function kvmApicSetState(vcpu: KvmVcpu, page: Uint8Array): boolean {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  const { chip } = vcpu.apic as KvmLapic;
  const x2apic = chip.x2apicMode;
  if (x2apic && vcpu.kvm.arch.x2apicFormat && view.getUint32(ApicReg.ID, true) !== vcpu.state.vcpuId) return false;
  const initial = view.getUint32(ApicReg.INITIAL_COUNT, true);
  chip.write(ApicReg.INITIAL_COUNT, 4, 0);
  const { registers } = chip.state;
  const { [ApicReg.ID >> 4]: id, [ApicReg.LDR >> 4]: ldr } = registers;
  for (let i = 0; i < registers.length; i++) registers[i] = view.getUint32(i * 16, true);
  if (x2apic) {
    // Both are fixed in x2APIC mode.
    registers[ApicReg.ID >> 4] = id;
    registers[ApicReg.LDR >> 4] = ldr;
  }
  chip.write(ApicReg.INITIAL_COUNT, 4, initial);
  vmxCheckApicv(vcpu);
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  return true;
}

// --- paravirtual EOI (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN) ---------------------------------------------

const KVM_PV_EOI_ENABLED = 1;

/** kvm_lapic_set_pv_eoi. @returns false where #GP is due */
export function kvmLapicSetPvEoi(vcpu: KvmVcpu, data: bigint): boolean {
  const address = data & ~1n;
  if (address & 3n) return false;
  if (data & 1n && gpaToHpa(vcpu.kvm, Number(address)) < 0) return false;
  vcpu.arch.pvEoiMsr = data;
  return true;
}

const pvEoiAddress = (vcpu: KvmVcpu): number => Number(vcpu.arch.pvEoiMsr & ~1n);

/** kvm_ioapic_handles_vector: the I/O APIC waits for this vector's EOI. */
function kvmIoapicHandlesVector(vcpu: KvmVcpu, vector: number): boolean {
  const { apic, kvm } = vcpu;
  if (apic && (apic.state.registers[(ApicReg.TMR >> 4) + (vector >> 5)] >>> (vector & 31)) & 1) return true;
  if (kvm.irqAckNotifiers.length > 0 && kvm.vioapic)
    return kvm.vioapic.state.low.some((low) => (low & 0xff) === vector);
  return false;
}

/** apic_sync_pv_eoi_to_guest: with one interrupt in service and none waiting, the guest need not write EOI. */
export function kvmLapicSyncToVapic(vcpu: KvmVcpu): void {
  const { apic, arch } = vcpu;
  // Where the processor virtualizes EOI there is nothing to save.
  if (!apic || !(arch.pvEoiMsr & 1n) || kvmVcpuApicvActive(vcpu)) return;
  const inService = apic.chip.highest(ApicReg.ISR);
  if (apic.findHighestIrr() >= 0 || inService < 0 || kvmIoapicHandlesVector(vcpu, inService)) return;
  if (kvmWriteGuest(vcpu.kvm, pvEoiAddress(vcpu), Uint8Array.of(KVM_PV_EOI_ENABLED))) arch.pvEoiPending = true;
}

/** apic_sync_pv_eoi_from_guest: a cleared byte means that the guest has ended its interrupt. */
export function kvmLapicSyncFromVapic(vcpu: KvmVcpu): void {
  const { apic, arch } = vcpu;
  if (!apic || !arch.pvEoiPending) return;
  arch.pvEoiPending = false;
  const flag = new Uint8Array(1);
  if (!kvmReadGuest(vcpu.kvm, pvEoiAddress(vcpu), flag)) return;
  if (flag[0] & KVM_PV_EOI_ENABLED) {
    kvmWriteGuest(vcpu.kvm, pvEoiAddress(vcpu), Uint8Array.of(flag[0] & ~KVM_PV_EOI_ENABLED));
    return;
  }
  apic.setEoi();
}

/** kvm_x2apic_msr_read and kvm_x2apic_msr_write, and the TSC deadline. */
export const kvmLapicReadMsr = (vcpu: KvmVcpu, index: number): bigint | null => vcpu.apic?.chip.readMsr(index) ?? null;
export const kvmLapicWriteMsr = (vcpu: KvmVcpu, index: number, value: bigint): boolean =>
  vcpu.apic?.chip.writeMsr(index, value) ?? false;

/** kvm_apic_local_deliver(APIC_LVT0) in NMI mode: the PIT as NMI watchdog. */
export function kvmApicNmiWdDeliver(vcpu: KvmVcpu): void {
  const entry = vcpu.apic?.state.registers[ApicReg.LVT_LINT0 >> 4] ?? Lvt.MASKED;
  if (!(entry & Lvt.MASKED) && ((entry >> Lvt.MODE_SHIFT) & 7) === DeliveryMode.NMI) kvmInjectNmi(vcpu);
}
