/**
 * The virtual-APIC page: TPR shadow, accesses to the APIC-access page, x2APIC registers through RDMSR and WRMSR, and the
 * emulation that follows a write (SDM 3C 30.1 to 30.5).
 */
import { CpuFault, Vector } from "../cpu";
import { Off } from "../state";
import { CpuBased, SecondaryExec } from "./controls";
import { SavedRf } from "./exit";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import type { VmxUnit } from "./unit";
import { VirtualInterrupts } from "./virtual-interrupts";
import { secondaryControls, word } from "./vmcs";

const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const VIRTUAL_APIC = word(Field.VIRTUAL_APIC_PAGE_ADDR);
const TPR_THRESHOLD = word(Field.TPR_THRESHOLD);

/** Offsets of registers in the page (SDM 3A table 10-1). */
export const Register = {
  TPR: 0x80,
  PPR: 0xa0,
  EOI: 0xb0,
  ISR: 0x100,
  IRR: 0x200,
  ICR_LOW: 0x300,
  ICR_HIGH: 0x310,
  SELF_IPI: 0x3f0,
} as const;

/** Kinds of access in the exit qualification (SDM 3C table 28-6). */
const Kind = { READ: 0, WRITE: 1, FETCH: 2, EVENT_DELIVERY: 3, PHYSICAL_DELIVERY: 10, PHYSICAL: 15 } as const;

/** Registers with a page offset of their own that APIC-register virtualization writes, by offset >> 4. */
const WRITABLE = registers([
  0x020, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0,
]);
/** Those it reads: also version, in-service, trigger mode and interrupt request. */
const READABLE = registers([
  0x020, 0x030, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380,
  0x3e0, ...[0x100, 0x180, 0x200].flatMap((first) => [0, 1, 2, 3, 4, 5, 6, 7].map((i) => first + i * 16)),
]); // biome-ignore format: a list

function registers(offsets: readonly number[]): Uint8Array {
  const set = new Uint8Array(256);
  for (const offset of offsets) set[offset >> 4] = 1;
  return set;
}

/** VICR_LO: reserved bits and delivery status 0, shorthand "self", edge, fixed (SDM 3C 30.4.3.2). */
const ICR_SELF_MASK = 0xfff3_b700 | 0xc_0000;
const ICR_SELF = 0x4_0000;

export class VirtualApic {
  readonly interrupts: VirtualInterrupts;

  constructor(private readonly unit: VmxUnit) {
    this.interrupts = new VirtualInterrupts(unit, this);
  }

  private get shadowed(): boolean {
    return (this.unit.vmcs.lo(CPU) & CpuBased.TPR_SHADOW) !== 0;
  }
  private secondary(control: number): boolean {
    return (secondaryControls(this.unit.vmcs) & control) !== 0;
  }

  /** Host offset of a register, -1 when no memory is there. */
  private at(offset: number): number {
    return this.unit.cpu.memory.hostOffset(this.unit.vmcs.address(VIRTUAL_APIC) + offset);
  }

  /** 32 bits of the page, all ones where no memory is. */
  read32(offset: number): number {
    const at = this.at(offset);
    return at < 0 ? 0xffff_ffff : this.unit.cpu.memory.view.getUint32(at, true);
  }

  write32(offset: number, value: number): void {
    const at = this.at(offset);
    if (at >= 0) this.unit.cpu.memory.view.setUint32(at, value, true);
  }

  /** Task-priority class, undefined without TPR shadow. */
  readTpr(): number | undefined {
    if (!this.shadowed) return undefined;
    return (this.read32(Register.TPR) >> 4) & 0xf;
  }

  /** MOV to CR8 (SDM 3C 30.3). @returns false without TPR shadow */
  writeTpr(value: number): boolean {
    if (!this.shadowed) return false;
    this.write32(Register.TPR, (value & 0xf) << 4);
    this.tprChanged();
    return true;
  }

  /** TPR virtualization (SDM 3C 30.1.2): without virtual-interrupt delivery an exit behind the instruction, with it VPPR. */
  private tprChanged(): void {
    if (this.interrupts.enabled) {
      this.interrupts.updatePriority();
      this.interrupts.evaluate();
    } else if (this.belowThreshold()) {
      this.unit.state.tprBelow = true;
      this.unit.cpu.attention();
    }
  }

  /** The TPR is below the threshold; never with virtual-interrupt delivery. */
  belowThreshold(): boolean {
    const threshold = this.unit.vmcs.lo(TPR_THRESHOLD) & 0xf;
    if (threshold === 0 || !this.shadowed || this.interrupts.enabled) return false;
    return (this.readTpr() ?? 0) < threshold;
  }

  /** Whether an access to the APIC-access page is virtualized (SDM 3C 30.4.2, 30.4.3.1). */
  private virtualizes(offset: number, size: number, write: boolean): boolean {
    // An access must lie in the low four bytes of a naturally aligned 16-byte region.
    if (!this.shadowed || size > 4 || (offset & 0xf) + size > 4) return false;
    const { apicWrite } = this.unit.state;
    // Part of an operation that has already written elsewhere on the page.
    if (apicWrite >= 0 && (!write || apicWrite !== offset)) return false;
    if (this.secondary(SecondaryExec.APIC_REGISTER_VIRT)) {
      return (write ? WRITABLE : READABLE)[offset >> 4] !== 0;
    }
    if (offset === Register.TPR) return true;
    return this.interrupts.enabled && (offset === Register.EOI || offset === Register.ICR_LOW);
  }

  /** An access to the APIC-access page through a linear address: virtualized, or an APIC-access VM exit. */
  access(offset: number, size: number, write: boolean, linear: bigint): boolean {
    const { cpu, state: data } = this.unit;
    if (data.vectoring !== null || !this.virtualizes(offset, size, write)) {
      return this.accessExit(offset, write ? Kind.WRITE : Kind.READ, linear);
    }
    const at = this.at(offset);
    if (!write) {
      let value = 0;
      for (let i = size - 1; i >= 0; i--) value = value * 256 + (at < 0 ? 0xff : cpu.memory.u8[at + i]);
      cpu.state.setU64(Off.VALUE, BigInt(value));
      return true;
    }
    const value = cpu.state.lo(Off.VALUE);
    if (at >= 0) for (let i = 0; i < size; i++) cpu.memory.u8[at + i] = value >>> (i * 8);
    if (offset === Register.TPR && !this.interrupts.enabled) this.virtualizeTpr();
    else data.apicWrite = offset;
    cpu.attention();
    return true;
  }

  /** What follows a write of the task priority. */
  private virtualizeTpr(): void {
    this.write32(Register.TPR, this.read32(Register.TPR) & 0xff);
    this.tprChanged();
  }

  /** An instruction fetch from the APIC-access page. */
  fetch(linear: bigint): never {
    return this.accessExit(Number(linear & 0xfffn), Kind.FETCH, linear);
  }

  /** A page walk reads the APIC-access page through EPT: a guest-physical access, whose offset is not reported. */
  physicalAccess(): never {
    const { exits, state: data } = this.unit;
    exits.qualificationLo = (data.vectoring !== null ? Kind.PHYSICAL_DELIVERY : Kind.PHYSICAL) << 12;
    exits.rf = data.vectoring === null ? SavedRf.SET : SavedRf.KEEP;
    return exits.exit(ExitReason.APIC_ACCESS);
  }

  private accessExit(offset: number, kind: number, linear: bigint): never {
    const { exits, state: data } = this.unit;
    const delivery = data.vectoring !== null;
    exits.qualificationLo = (offset & 0xfff) | ((delivery ? Kind.EVENT_DELIVERY : kind) << 12);
    exits.setLinear(linear);
    exits.rf = delivery ? SavedRf.KEEP : SavedRf.SET;
    return exits.exit(ExitReason.APIC_ACCESS);
  }

  /** APIC-write emulation, behind the operation that made the access (SDM 3C 30.4.3.2). */
  emulateWrite(): void {
    const { state: data } = this.unit;
    const offset = data.apicWrite;
    if (offset < 0) return;
    data.apicWrite = -1;
    const register = offset & ~0xf;
    const { enabled } = this.interrupts;
    if (register === Register.TPR) this.virtualizeTpr();
    else if (register === Register.EOI && enabled) {
      this.write32(Register.EOI, 0);
      this.interrupts.endOfInterrupt();
    } else if (register === Register.ICR_LOW && enabled && this.sendsToSelf()) {
      this.interrupts.selfIpi(this.read32(Register.ICR_LOW) & 0xff);
    } else if (register === Register.ICR_HIGH) {
      this.write32(Register.ICR_HIGH, this.read32(Register.ICR_HIGH) & 0xff00_0000);
    } else this.writeExit(offset);
  }

  private sendsToSelf(): boolean {
    const icr = this.read32(Register.ICR_LOW);
    return ((icr & ICR_SELF_MASK) ^ ICR_SELF) === 0 && (icr & 0xf0) !== 0;
  }

  /** APIC-write VM exit: trap-like, the page offset is the qualification (SDM 3C 30.4.3.3). */
  private writeExit(offset: number): never {
    this.unit.exits.qualificationLo = offset & 0xfff;
    return this.unit.exits.exit(ExitReason.APIC_WRITE);
  }

  /** RDMSR with "virtualize x2APIC mode" (SDM 3C 30.5). @returns undefined where the real register is meant */
  readMsr(index: number): bigint | undefined {
    if (index >>> 8 !== 8 || !this.secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE)) return undefined;
    const offset = (index & 0xff) << 4;
    if (offset !== Register.TPR && !this.secondary(SecondaryExec.APIC_REGISTER_VIRT)) return undefined;
    return (BigInt(this.read32(offset + 4)) << 32n) | BigInt(this.read32(offset));
  }

  /**
   * WRMSR with "virtualize x2APIC mode". What follows the write comes behind the instruction.
   * @returns false where the real register is meant
   * @throws CpuFault #GP(0) for reserved bits
   */
  writeMsr(index: number, value: bigint): boolean {
    if (index >>> 8 !== 8 || !this.secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE)) return false;
    const offset = (index & 0xff) << 4;
    if (offset !== Register.TPR) {
      if (!this.interrupts.enabled || (offset !== Register.EOI && offset !== Register.SELF_IPI)) return false;
    }
    const most = offset === Register.EOI ? 0n : 0xffn;
    if (value > most) throw new CpuFault(Vector.GP, 0);
    this.write32(offset, Number(value));
    this.write32(offset + 4, 0);
    this.unit.state.apicWrite = offset;
    if (offset === Register.SELF_IPI && value >= 16n) {
      this.unit.state.apicWrite = -1;
      this.interrupts.selfIpi(Number(value));
    }
    this.unit.cpu.attention();
    return true;
  }
}
