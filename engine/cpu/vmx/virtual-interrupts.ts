/**
 * Virtual-interrupt delivery: RVI and SVI, evaluation and delivery of pending virtual interrupts, the virtualization of
 * EOI, self-IPIs and PPR, and posted interrupts (SDM 3C 30.1.3 to 30.1.5, 30.2, 30.6).
 */
import { Inhibit, Off, Rflags } from "../state";
import { CpuBased, PinBased, SecondaryExec } from "./controls";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import type { VmxUnit } from "./unit";
import type { VirtualApic } from "./virtual-apic";
import { secondaryControls, word } from "./vmcs";

const PIN = word(Field.PIN_BASED_VM_EXEC_CONTROL);
const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const STATUS = word(Field.GUEST_INTR_STATUS);
const NOTIFICATION_VECTOR = word(Field.POSTED_INTR_NV);
const DESCRIPTOR = word(Field.POSTED_INTR_DESC_ADDR);
const EOI_EXIT = [
  word(Field.EOI_EXIT_BITMAP0),
  word(Field.EOI_EXIT_BITMAP1),
  word(Field.EOI_EXIT_BITMAP2),
  word(Field.EOI_EXIT_BITMAP3),
];

/** Offsets in the virtual-APIC page. */
const TPR = 0x80;
const PPR = 0xa0;
const ISR = 0x100;
const IRR = 0x200;

/** Posted-interrupt descriptor: 256 bits of requests, then ON in bit 256 (SDM 3C table 30-1). */
const ON_OFFSET = 32;
const ON = 1;

/** Registers of the processor's own local APIC, to dismiss a notification. */
const APIC_X2 = 1 << 10;
const EOI_OFFSET = 0xb0;
const EOI_MSR = 0x80b;

const EXTERNAL_INTERRUPT = 0;

export class VirtualInterrupts {
  constructor(
    private readonly unit: VmxUnit,
    private readonly page: VirtualApic,
  ) {}

  /** The "virtual-interrupt delivery" control. */
  get enabled(): boolean {
    return (secondaryControls(this.unit.vmcs) & SecondaryExec.VIRTUAL_INTR_DELIVERY) !== 0;
  }

  /** Requesting virtual interrupt: vector of the highest request, 0 for none. */
  private get rvi(): number {
    return this.unit.vmcs.lo(STATUS) & 0xff;
  }
  private set rvi(vector: number) {
    this.unit.vmcs.set32(STATUS, (this.unit.vmcs.lo(STATUS) & 0xff00) | vector);
  }
  /** Servicing virtual interrupt. */
  private get svi(): number {
    return (this.unit.vmcs.lo(STATUS) >> 8) & 0xff;
  }
  private set svi(vector: number) {
    this.unit.vmcs.set32(STATUS, (this.unit.vmcs.lo(STATUS) & 0xff) | (vector << 8));
  }

  private bit(base: number, vector: number, set: boolean): void {
    const offset = base + ((vector & 0xe0) >> 1);
    const mask = 1 << (vector & 31);
    const old = this.page.read32(offset);
    this.page.write32(offset, set ? old | mask : old & ~mask);
  }

  /** Highest vector set in VIRR or VISR, 0 for none. */
  private highest(base: number): number {
    for (let i = 7; i >= 0; i--) {
      const bits = this.page.read32(base + i * 16);
      if (bits !== 0) return i * 32 + 31 - Math.clz32(bits);
    }
    return 0;
  }

  /** A VM entry has loaded the guest (SDM 3C 27.3.2.5, 27.7.5). */
  entered(): void {
    this.unit.state.virtualInterrupt = false;
    if (!this.enabled) return;
    this.updatePriority();
    this.evaluate();
  }

  /** PPR virtualization (SDM 3C 30.1.3). */
  updatePriority(): void {
    const tpr = this.page.read32(TPR) & 0xff;
    const { svi } = this;
    this.page.write32(PPR, tpr >> 4 >= svi >> 4 ? tpr : svi & 0xf0);
  }

  /** Evaluation of pending virtual interrupts (SDM 3C 30.2.1). */
  evaluate(): void {
    const window = (this.unit.vmcs.lo(CPU) & CpuBased.INTR_WINDOW_EXITING) !== 0;
    this.unit.state.virtualInterrupt = !window && this.rvi >> 4 > ((this.page.read32(PPR) >> 4) & 0xf);
    if (this.unit.state.virtualInterrupt) this.unit.cpu.attention();
  }

  /** EOI virtualization (SDM 3C 30.1.4): an exit when the vector's bit in the EOI-exit bitmap is set. */
  endOfInterrupt(): void {
    const { vmcs, exits } = this.unit;
    const vector = this.svi;
    this.bit(ISR, vector, false);
    this.svi = this.highest(ISR);
    this.updatePriority();
    const bitmap = EOI_EXIT[vector >> 6];
    const half = vector & 32 ? vmcs.hi(bitmap) : vmcs.lo(bitmap);
    if ((half >>> (vector & 31)) & 1) {
      exits.qualificationLo = vector;
      exits.exit(ExitReason.EOI_INDUCED);
    }
    this.evaluate();
  }

  /** Self-IPI virtualization (SDM 3C 30.1.5). */
  selfIpi(vector: number): void {
    this.bit(IRR, vector, true);
    this.rvi = Math.max(this.rvi, vector);
    this.evaluate();
  }

  /**
   * Delivers a recognised virtual interrupt where interrupts are open (SDM 3C 30.2.2).
   * @returns true when one was delivered
   */
  deliver(): boolean {
    const { cpu, state: data, services } = this.unit;
    if (!data.virtualInterrupt) return false;
    const { state } = cpu;
    const blocked = state.lo(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS);
    if (blocked || !(state.lo(Off.FLAGS_REST) & Rflags.IF)) return false;
    const vector = this.rvi;
    this.bit(ISR, vector, true);
    this.svi = vector;
    this.page.write32(PPR, vector & 0xf0);
    this.bit(IRR, vector, false);
    this.rvi = this.highest(IRR);
    data.virtualInterrupt = false;
    services.deliver({ vector, type: EXTERNAL_INTERRUPT, instructionLength: 0 });
    return true;
  }

  /** Whether this vector of an acknowledged external interrupt is a notification of posted ones. */
  notifies(vector: number): boolean {
    const { vmcs } = this.unit;
    return (vmcs.lo(PIN) & PinBased.POSTED_INTR) !== 0 && vector === (vmcs.lo(NOTIFICATION_VECTOR) & 0xff);
  }

  /** Posted-interrupt processing behind the acknowledgement (SDM 3C 30.6). */
  processPosted(): void {
    const { cpu, vmcs } = this.unit;
    const at = cpu.memory.hostOffset(vmcs.address(DESCRIPTOR));
    this.dismiss();
    if (at >= 0) {
      const { u32 } = cpu.memory;
      const first = at >> 2;
      u32[(at + ON_OFFSET) >> 2] &= ~ON;
      let highest = 0;
      for (let i = 0; i < 8; i++) {
        const bits = u32[first + i];
        if (bits === 0) continue;
        this.page.write32(IRR + i * 16, this.page.read32(IRR + i * 16) | bits);
        u32[first + i] = 0;
        highest = i * 32 + 31 - Math.clz32(bits);
      }
      this.rvi = Math.max(this.rvi, highest);
    }
    this.evaluate();
  }

  /** EOI to the processor's own local APIC. */
  private dismiss(): void {
    const { cpu } = this.unit;
    const base = cpu.interrupts.readMsr(0x1b);
    if (base === undefined) return;
    const { guest } = cpu;
    cpu.guest = null;
    if (Number(base & 0xfffn) & APIC_X2) cpu.interrupts.writeMsr(EOI_MSR, 0n);
    else cpu.bus.mmioWrite(Number(base & ~0xfffn) + EOI_OFFSET, 4, 0n);
    cpu.guest = guest;
  }
}
