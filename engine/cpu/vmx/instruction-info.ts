/**
 * VM-exit instruction information (SDM 3C 28.2.5, tables 28-8 to 28-16) and the displacement that exit qualifications of
 * instructions with a memory operand hold.
 */
import type { Cpu } from "../cpu";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../isa/instruction";

const addressSizeCode = (instruction: Instruction): number =>
  instruction.addressSize === 2 ? 0 : instruction.addressSize === 4 ? 1 : 2;

/** Scaling, address size, segment, index and base of the memory operand: common to all layouts. */
function memoryOperand(i: Instruction): number {
  let info = i.scale | (addressSizeCode(i) << 7) | (i.segment << 15);
  if (i.index === NO_REG) info |= 1 << 22;
  else info |= i.index << 18;
  if (i.base === NO_REG || i.base === RIP_BASE) info |= 1 << 27;
  else info |= i.base << 23;
  return info;
}

const memoryIndex = (i: Instruction): number => i.operands.findIndex((o) => o.kind === OperandKind.MEMORY);

/** Table 28-8: INS and OUTS. */
export const stringIoInfo = (i: Instruction): number => (addressSizeCode(i) << 7) | (i.segment << 15);

/** Table 28-9: INVEPT, INVPCID, INVVPID (register operand first). */
export const invalidateInfo = (i: Instruction): number => memoryOperand(i) | (i.operands[0].reg << 28);

/** Table 28-10: SGDT 0, SIDT 1, LGDT 2, LIDT 3. */
export const tableRegisterInfo = (i: Instruction, identity: number): number =>
  memoryOperand(i) | (i.operandSize === 2 ? 0 : 1 << 11) | (identity << 28);

/** Table 28-11: SLDT 0, STR 1, LLDT 2, LTR 3. */
export const segmentRegisterInfo = (i: Instruction, identity: number): number =>
  (memoryIndex(i) < 0 ? (1 << 10) | (i.operands[0].reg << 3) : memoryOperand(i)) | (identity << 28);

/** Table 28-12: RDRAND, RDSEED. */
export const randomInfo = (i: Instruction): number =>
  (i.operands[0].reg << 3) | ((i.operandSize === 2 ? 0 : i.operandSize === 4 ? 1 : 2) << 11);

/** Table 28-13: VMCLEAR, VMPTRLD, VMPTRST, VMXON, XSAVES, XRSTORS. */
export const pointerInfo = (i: Instruction): number => memoryOperand(i);

/**
 * Table 28-14: VMREAD and VMWRITE. Reg1 is the register form of the value operand, Reg2 the field's encoding.
 * @param value index of the value operand: 0 for VMREAD, 1 for VMWRITE
 */
export function vmcsAccessInfo(i: Instruction, value: 0 | 1): number {
  const operand = i.operands[value];
  const field = i.operands[1 - value].reg << 28;
  return operand.kind === OperandKind.MEMORY ? memoryOperand(i) | field : (1 << 10) | (operand.reg << 3) | field;
}

/**
 * Displacement of the memory operand, sign-extended to 64 bits; for RIP-relative addresses the sum of displacement and
 * next RIP (SDM 3C 28.2.1). 0n without a memory operand.
 */
export function displacement(cpu: Cpu, i: Instruction): bigint {
  if (memoryIndex(i) < 0) return 0n;
  const value = (BigInt(i.displacementHigh) << 32n) | BigInt(i.displacement >>> 0);
  const next = i.base === RIP_BASE ? cpu.state.rip + BigInt(i.length) : 0n;
  return BigInt.asUintN(64, value + next);
}
