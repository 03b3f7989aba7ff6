/** The I/O APIC in the kernel (arch/x86/kvm/ioapic.c) over devices/io-apic. */
import { IO_APIC_BASE, IoApic, type IoApicState } from "../devices/io-apic";
import { KvmBus, type KvmIoDevice, kvmIoBusRegisterDev } from "./ioBus";
import { kvmApicBus, kvmNotifyAckedIrq } from "./irqComm";
import type { Kvm, KvmVcpu } from "./types";
import { KvmIrqchip } from "./uapi";

const IOAPIC_DEFAULT_BASE_ADDRESS = IO_APIC_BASE;
const IOAPIC_MEM_LENGTH = 0x100;
/** Version KVM shows: an 82093AA without EOI register. */
const IOAPIC_VERSION_ID = 0x11;

/** The in-kernel I/O APIC: the chip of engine/devices with KVM's wiring. */
export class KvmIoapic implements KvmIoDevice {
  readonly name = "ioapic";
  readonly chip: IoApic;

  constructor(private readonly kvm: Kvm) {
    this.chip = new IoApic(kvmApicBus(kvm), IOAPIC_VERSION_ID, () => kvm.vpic?.readIrq() ?? 0xff);
    kvmIoBusRegisterDev(kvm, KvmBus.MMIO, IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, this);
  }

  get state(): IoApicState {
    return this.chip.state;
  }
  set state(state: IoApicState) {
    this.chip.state = state;
  }

  /** kvm_set_ioapic: what the new state has requested is delivered (kvm_ioapic_inject_all). */
  setState(state: IoApicState): void {
    this.state = { ...state, irr: 0 };
    for (let pin = 0; pin < state.low.length; pin++) {
      const mask = 1 << pin;
      if (!(state.irr & mask)) continue;
      this.state.lines &= ~mask;
      this.chip.setLine(pin, true);
      this.state.lines = (this.state.lines & ~mask) | (state.lines & mask);
    }
  }

  /** kvm_ioapic_set_irq. @returns 1 delivered, 0 coalesced or masked */
  setIrq(pin: number, level: boolean): number {
    return this.chip.setLine(pin, level) ? 1 : 0;
  }

  /** kvm_ioapic_update_eoi: who wants to know of the acknowledgement may lower the line before it is looked at again. */
  updateEoi(vector: number): void {
    for (const [pin, low] of this.state.low.entries()) {
      if ((low & 0xff) === vector) kvmNotifyAckedIrq(this.kvm, KvmIrqchip.IOAPIC, pin);
    }
    this.chip.eoi(vector);
  }

  read(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    let value = this.chip.read(addr & 0xff, 4);
    for (let i = 0; i < data.length; i++) {
      data[i] = value & 0xff;
      value = i === 3 ? 0 : value >>> 8;
    }
    return true;
  }

  write(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    let value = 0;
    for (let i = Math.min(4, data.length) - 1; i >= 0; i--) value = value * 256 + data[i];
    this.chip.write(addr & 0xff, 4, value);
    return true;
  }
}
