/** GDTR, IDTR, LDTR and TR: loads and stores (SDM 2A LGDT/LIDT, LLDT, SGDT, SIDT, SLDT; SDM 2B LTR, STR). */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { OperandKind } from "../isa/instruction";
import { CodeMode, CpuState, Off, Seg, SegAttr, SegPart } from "../state";
import {
  effectiveAddress,
  isCanonical,
  isLongMode,
  readOperand,
  requireCpl0,
  uncheckedAddress,
  writeGpr,
} from "./operands";
import { markDescriptor, readSystemDescriptor, SystemType } from "./segmentation";

const CR4_UMIP = 1 << 11;

/** User-mode instruction prevention: #GP(0) for SGDT, SIDT, SLDT, STR, SMSW above CPL 0 with CR4.UMIP. */
export function checkUmip(cpu: Cpu): void {
  if (cpu.state.lo(Off.CR4) & CR4_UMIP && cpu.state.cpl > 0) throw new CpuFault(Vector.GP, 0);
}

const load =
  (name: "lgdt" | "lidt", baseAt: number, limitAt: number): SystemHandler =>
  (cpu, instruction) => {
    requireCpl0(cpu);
    cpu.guest?.interceptInstruction(name, instruction, uncheckedAddress(cpu, instruction));
    const long = cpu.state.codeMode === CodeMode.LONG64;
    const linear = effectiveAddress(cpu, instruction, long ? 10 : 6);
    const limit = Number(cpu.mmu.read(linear, 2));
    let base = cpu.mmu.read(linear + 2n, long ? 8 : 4);
    // With a 16-bit operand size the base has 24 bits.
    if (!long && instruction.operandSize === 2) base &= 0xff_ffffn;
    if (long && !isCanonical(cpu, base)) throw new CpuFault(Vector.GP, 0);
    cpu.state.setU64(baseAt, base);
    cpu.state.setU32(limitAt, limit);
    return Next.SEQUENTIAL;
  };

const store =
  (name: "sgdt" | "sidt", baseAt: number, limitAt: number): SystemHandler =>
  (cpu, instruction) => {
    checkUmip(cpu);
    cpu.guest?.interceptInstruction(name, instruction, uncheckedAddress(cpu, instruction));
    const baseSize = cpu.state.codeMode === CodeMode.LONG64 ? 8 : 4;
    const linear = effectiveAddress(cpu, instruction, 2 + baseSize, true);
    cpu.mmu.checkWrite(linear, 2);
    cpu.mmu.checkWrite(linear + 2n, baseSize);
    cpu.mmu.write(linear, 2, BigInt(cpu.state.u32(limitAt) & 0xffff));
    cpu.mmu.write(linear + 2n, baseSize, cpu.state.u64(baseAt));
    return Next.SEQUENTIAL;
  };

/** SLDT and STR: 16 bits to memory, zero-extended into a register of operand size. */
const storeSelector =
  (name: "sldt" | "str", seg: number): SystemHandler =>
  (cpu, instruction) => {
    checkUmip(cpu);
    const operand = instruction.operands[0];
    const linear = operand.kind === OperandKind.MEMORY ? uncheckedAddress(cpu, instruction) : undefined;
    cpu.guest?.interceptInstruction(name, instruction, linear);
    const selector = BigInt(cpu.state.segSelector(seg));
    if (operand.kind === OperandKind.GPR) writeGpr(cpu, operand.reg, instruction.operandSize, selector);
    else cpu.mmu.write(effectiveAddress(cpu, instruction, 2, true), 2, selector);
    return Next.SEQUENTIAL;
  };

const lldt: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const memory = instruction.operands[0].kind === OperandKind.MEMORY;
  cpu.guest?.interceptInstruction("lldt", instruction, memory ? uncheckedAddress(cpu, instruction) : undefined);
  const selector = Number(readOperand(cpu, instruction, 0)) & 0xffff;
  if ((selector & 0xfffc) === 0) {
    const at = CpuState.segOffset(Seg.LDTR);
    cpu.state.setU32(at + SegPart.SELECTOR, selector);
    cpu.state.setU32(at + SegPart.ATTRIBUTES, cpu.state.u32(at + SegPart.ATTRIBUTES) | SegAttr.UNUSABLE);
    return Next.SEQUENTIAL;
  }
  if (selector & 4) throw new CpuFault(Vector.GP, selector & 0xfffc);
  const descriptor = readSystemDescriptor(cpu, selector);
  const type = descriptor.attributes & (SegAttr.TYPE | SegAttr.S);
  if (type !== SystemType.LDT) throw new CpuFault(Vector.GP, selector & 0xfffc);
  if (!(descriptor.attributes & SegAttr.P)) throw new CpuFault(Vector.NP, selector & 0xfffc);
  cpu.state.setSegment(Seg.LDTR, selector, descriptor.base, descriptor.limit, descriptor.attributes);
  return Next.SEQUENTIAL;
};

const ltr: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const memory = instruction.operands[0].kind === OperandKind.MEMORY;
  cpu.guest?.interceptInstruction("ltr", instruction, memory ? uncheckedAddress(cpu, instruction) : undefined);
  const selector = Number(readOperand(cpu, instruction, 0)) & 0xffff;
  if ((selector & 0xfffc) === 0) throw new CpuFault(Vector.GP, 0);
  if (selector & 4) throw new CpuFault(Vector.GP, selector & 0xfffc);
  const descriptor = readSystemDescriptor(cpu, selector);
  const type = descriptor.attributes & (SegAttr.TYPE | SegAttr.S);
  const is16 = type === SystemType.TSS16_AVAILABLE;
  if (type !== SystemType.TSS_AVAILABLE && (!is16 || isLongMode(cpu))) {
    throw new CpuFault(Vector.GP, selector & 0xfffc);
  }
  if (!(descriptor.attributes & SegAttr.P)) throw new CpuFault(Vector.NP, selector & 0xfffc);
  markDescriptor(cpu, descriptor.address, 2);
  cpu.state.setSegment(Seg.TR, selector, descriptor.base, descriptor.limit, descriptor.attributes | 2);
  return Next.SEQUENTIAL;
};

export const descriptorTableHandlers: Readonly<Record<string, SystemHandler>> = {
  LGDT: load("lgdt", Off.GDTR_BASE, Off.GDTR_LIMIT),
  LIDT: load("lidt", Off.IDTR_BASE, Off.IDTR_LIMIT),
  SGDT: store("sgdt", Off.GDTR_BASE, Off.GDTR_LIMIT),
  SIDT: store("sidt", Off.IDTR_BASE, Off.IDTR_LIMIT),
  SLDT: storeSelector("sldt", Seg.LDTR),
  STR: storeSelector("str", Seg.TR),
  LLDT: lldt,
  LTR: ltr,
};
