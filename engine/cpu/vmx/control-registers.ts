/** Control registers in a guest: exits, guest/host masks and read shadows (SDM 3C 25.6.6, 26.1.3, 26.3). */
import type { CrAccess } from "../guest-mode";
import { type Instruction, OperandKind } from "../isa/instruction";
import { Off } from "../state";
import { CpuBased } from "./controls";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import type { VmxUnit } from "./unit";
import { word } from "./vmcs";

const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const CR0_MASK = word(Field.CR0_GUEST_HOST_MASK);
const CR0_SHADOW = word(Field.CR0_READ_SHADOW);
const CR4_MASK = word(Field.CR4_GUEST_HOST_MASK);
const CR4_SHADOW = word(Field.CR4_READ_SHADOW);
const CR3_COUNT = word(Field.CR3_TARGET_COUNT);
const CR3_TARGETS = [
  word(Field.CR3_TARGET_VALUE0),
  word(Field.CR3_TARGET_VALUE1),
  word(Field.CR3_TARGET_VALUE2),
  word(Field.CR3_TARGET_VALUE3),
];
const CR0_TS = 8n;

/** Kinds of access in the exit qualification (SDM 3C table 28-3). */
const Kind = { MOV_TO: 0, MOV_FROM: 1, CLTS: 2, LMSW: 3 } as const;

/** `a` where the mask is 0, `b` where it is 1. */
const blend = (a: bigint, b: bigint, mask: bigint): bigint => (a & ~mask) | (b & mask);

export class ControlRegisters {
  constructor(
    private readonly unit: VmxUnit,
    private readonly exitInstruction: (reason: number, instruction: Instruction) => never,
  ) {}

  private control(mask: number): boolean {
    return (this.unit.vmcs.lo(CPU) & mask) !== 0;
  }

  /** GuestMode.interceptCr. */
  intercept(cr: number, access: CrAccess, value: bigint, instruction: Instruction, linear?: bigint): bigint {
    switch (access) {
      case "mov-to":
        return this.write(cr, value, instruction);
      case "mov-from":
        if (cr === 3 && this.control(CpuBased.CR3_STORE_EXITING)) this.exit(cr, Kind.MOV_FROM, instruction);
        if (cr === 8 && this.control(CpuBased.CR8_STORE_EXITING)) this.exit(cr, Kind.MOV_FROM, instruction);
        return this.read(cr);
      case "smsw":
        return this.read(0);
      case "clts":
        return this.clearTaskSwitched(instruction);
      case "lmsw":
        return this.loadMachineStatus(value & 0xffffn, instruction, linear);
    }
  }

  private exit(cr: number, kind: number, instruction: Instruction): never {
    let qualification = cr | (kind << 4);
    if (kind <= Kind.MOV_FROM) {
      const register = instruction.operands.find((o) => o.kind === OperandKind.GPR)?.reg ?? 0;
      qualification |= register << 8;
    }
    this.unit.exits.qualificationLo = qualification;
    return this.exitInstruction(ExitReason.CR_ACCESS, instruction);
  }

  /** What guest code reads: host-owned bits come from the read shadow. */
  private read(cr: number): bigint {
    const { cpu, vmcs, guestMode } = this.unit;
    const { state } = cpu;
    if (cr === 0) return blend(state.u64(Off.CR0), vmcs.u64(CR0_SHADOW), vmcs.u64(CR0_MASK));
    if (cr === 4) return blend(state.u64(Off.CR4), vmcs.u64(CR4_SHADOW), vmcs.u64(CR4_MASK));
    if (cr === 2) return state.u64(Off.CR2);
    if (cr === 3) return state.u64(Off.CR3);
    return BigInt(guestMode.readTprShadow() ?? cpu.interrupts.readCr8());
  }

  private write(cr: number, value: bigint, instruction: Instruction): bigint {
    const { cpu, vmcs } = this.unit;
    if (cr === 0 || cr === 4) {
      const mask = vmcs.u64(cr === 0 ? CR0_MASK : CR4_MASK);
      const shadow = vmcs.u64(cr === 0 ? CR0_SHADOW : CR4_SHADOW);
      if (((value ^ shadow) & mask) !== 0n) this.exit(cr, Kind.MOV_TO, instruction);
      return blend(value, cpu.state.u64(cr === 0 ? Off.CR0 : Off.CR4), mask);
    }
    if (cr === 3 && this.control(CpuBased.CR3_LOAD_EXITING) && !this.isCr3Target(value)) {
      this.exit(3, Kind.MOV_TO, instruction);
    }
    if (cr === 8 && this.control(CpuBased.CR8_LOAD_EXITING)) this.exit(8, Kind.MOV_TO, instruction);
    return value;
  }

  private isCr3Target(value: bigint): boolean {
    const { vmcs } = this.unit;
    const count = vmcs.u32(CR3_COUNT);
    for (let i = 0; i < count; i++) if (vmcs.u64(CR3_TARGETS[i]) === value) return true;
    return false;
  }

  /** CLTS: exits when TS is host-owned and shadowed as 1; host-owned and shadowed as 0, it changes nothing. */
  private clearTaskSwitched(instruction: Instruction): bigint {
    const { cpu, vmcs } = this.unit;
    const cr0 = cpu.state.u64(Off.CR0);
    if ((vmcs.u64(CR0_MASK) & CR0_TS) === 0n) return cr0 & ~CR0_TS;
    if ((vmcs.u64(CR0_SHADOW) & CR0_TS) !== 0n) this.exit(0, Kind.CLTS, instruction);
    return cr0;
  }

  /** LMSW changes CR0 bits 3:0 and never clears PE; `source` is its 16-bit operand. */
  private loadMachineStatus(source: bigint, instruction: Instruction, linear?: bigint): bigint {
    const { cpu, vmcs, exits } = this.unit;
    const mask = vmcs.u64(CR0_MASK);
    const shadow = vmcs.u64(CR0_SHADOW);
    const differs = ((source ^ shadow) & mask & 0xen) !== 0n;
    const setsPe = (mask & source & ~shadow & 1n) !== 0n;
    if (differs || setsPe) {
      exits.qualificationLo = (Kind.LMSW << 4) | (linear === undefined ? 0 : 1 << 6) | (Number(source) << 16);
      exits.setLinear(linear);
      this.exitInstruction(ExitReason.CR_ACCESS, instruction);
    }
    const cr0 = cpu.state.u64(Off.CR0);
    return blend((cr0 & ~0xen) | (source & 0xfn), cr0, mask);
  }
}
