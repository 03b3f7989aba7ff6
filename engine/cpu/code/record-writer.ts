/** Fills in records (interpreter/record.ts) from decoded instructions. */

import { RECORD_SIZE, Rec } from "../interpreter/record";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../isa/instruction";
import { OPCODES } from "../isa/opcodes";
import { CpuState, Gpr, Off, Seg, SegPart } from "../state";

/** What the interpreter does with an instruction: values for Rec.KEY, Rec.HANDLER and Rec.SHAPE. */
export interface Binding {
  key: number;
  handler: number;
  shape: number;
  /** A hot instruction that may call its SystemHandler. */
  callsSystem?: boolean;
}

/** Rec.HANDLER of a Key.SYSTEM record that only raises an exception; all others are indices of instructions. */
export const RecordFault = {
  UD: 0x7fff_fffe,
  /** #GP(0): longer than 15 bytes, or beyond CS.limit. */
  GP: 0x7fff_fffd,
} as const;

export interface RecordViews {
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  readonly view: DataView;
}

const registerOffset = (reg: number): number => (reg === NO_REG || reg === RIP_BASE ? Off.ZERO : Off.GPR + reg * 8);

/** Host offset of an XMM or YMM register. */
export const vectorOffset = (reg: number): number => Off.VECTOR + reg * 64;

/** Host offset of what a register operand names. */
function operandOffset(instruction: Instruction, n: number): number {
  const operand = instruction.operands[n];
  switch (operand.kind) {
    case OperandKind.GPR:
      return Off.GPR + operand.reg * 8 + (operand.high ? 1 : 0);
    case OperandKind.SEGMENT:
      return CpuState.segOffset(operand.reg) + SegPart.SELECTOR;
    case OperandKind.VECTOR:
      return vectorOffset(operand.reg);
    case OperandKind.MMX:
      return Off.X87 + (operand.reg & 7) * 16;
    default:
      return Off.ZERO;
  }
}

/** Target RIP of a relative branch: cut to 64 bits in 64-bit mode, else to the operand size (SDM 2A, JMP). */
export function branchTarget(instruction: Instruction, rip: bigint, long: boolean): bigint {
  const target = rip + BigInt(instruction.length) + BigInt(instruction.immediate);
  return BigInt.asUintN(long ? 64 : instruction.operandSize * 8, target);
}

/** Puts rip + offset at host offset `at`, where rip is given as two halves and `offset` is a number below 2^53. */
function writeSum({ i32 }: RecordViews, at: number, ripLo: number, ripHi: number, offset: number, bytes: number): void {
  const sum = (ripLo >>> 0) + offset;
  i32[at >> 2] = bytes === 2 ? sum & 0xffff : sum | 0;
  i32[(at + 4) >> 2] = bytes === 8 ? (ripHi + Math.floor(sum / 0x1_0000_0000)) | 0 : 0;
}

/** Mnemonics by row that this file asks for. */
const IS_LEA = OPCODES.map((row) => row.mnemonic === "LEA");
const IS_POP = OPCODES.map((row) => row.mnemonic === "POP");

/**
 * Writes the record at host offset `at`.
 * @param ripLo RIP of the instruction as two signed halves
 * @param long 64-bit mode: the base of FS or GS then takes the place of an absent base or index register where there is one
 */
export function writeRecord(
  memory: RecordViews,
  at: number,
  binding: Binding,
  instruction: Instruction,
  ripLo: number,
  ripHi: number,
  long: boolean,
): void {
  const { i32, u8 } = memory;
  const { opcode, operands, length } = instruction;
  i32[(at + Rec.KEY) >> 2] = binding.key;
  i32[(at + Rec.OPERAND0) >> 2] = operandOffset(instruction, 0);
  i32[(at + Rec.OPERAND1) >> 2] = operandOffset(instruction, 1);
  let base = registerOffset(instruction.base);
  let index = instruction.vsib ? vectorOffset(instruction.index) : registerOffset(instruction.index);
  let { scale } = instruction;
  // A segment has no part in LEA.
  const based = long && instruction.segment >= Seg.FS && instruction.addressSize === 8;
  if (based && !IS_LEA[opcode] && !instruction.vsib) {
    const segmentBase = CpuState.segOffset(instruction.segment) + SegPart.BASE;
    if (index === Off.ZERO) {
      index = segmentBase;
      scale = 0;
    } else if (base === Off.ZERO) base = segmentBase;
  }
  i32[(at + Rec.BASE) >> 2] = base;
  i32[(at + Rec.INDEX) >> 2] = index;
  u8[at + Rec.SCALE] = scale;
  u8[at + Rec.SEGMENT] = instruction.segment;
  u8[at + Rec.ADDRESS_SIZE] = instruction.addressSize;
  u8[at + Rec.LENGTH] = length;
  if (instruction.base === RIP_BASE) {
    const offset = length + instruction.displacement;
    writeSum(memory, at + Rec.DISPLACEMENT, ripLo, ripHi, offset, instruction.addressSize);
  } else {
    let { displacement, displacementHigh } = instruction;
    if (IS_POP[opcode] && instruction.base === Gpr.RSP && operands[0].kind === OperandKind.MEMORY) {
      // POP to memory forms its address with the stack pointer already incremented (SDM 2B POP).
      const sum = displacement + instruction.operandSize;
      displacement = sum | 0;
      displacementHigh = Math.floor(sum / 0x1_0000_0000);
    }
    i32[(at + Rec.DISPLACEMENT) >> 2] = displacement;
    i32[(at + Rec.DISPLACEMENT + 4) >> 2] = displacementHigh;
  }
  if (operands[0].kind === OperandKind.RELATIVE) {
    const bytes = long ? 8 : instruction.operandSize;
    writeSum(memory, at + Rec.IMMEDIATE, ripLo, ripHi, length + instruction.immediate, bytes);
  } else {
    i32[(at + Rec.IMMEDIATE) >> 2] = instruction.immediate;
    i32[(at + Rec.IMMEDIATE + 4) >> 2] = instruction.immediateHigh;
  }
  i32[(at + Rec.RIP) >> 2] = ripLo;
  i32[(at + Rec.RIP + 4) >> 2] = ripHi;
  i32[(at + Rec.LINK) >> 2] = 0;
  if (operands[2].kind !== OperandKind.NONE) {
    i32[(at + Rec.OPERAND2) >> 2] = operandOffset(instruction, 2) | (operandOffset(instruction, 3) << 16);
  }
  i32[(at + Rec.HANDLER) >> 2] = binding.handler;
  i32[(at + Rec.SHAPE) >> 2] = binding.shape;
  i32[(at + Rec.EXPECTED) >> 2] = 0;
}

/** Writes a pseudo-record that stands before, or leads to, a RIP given as two halves. */
export function writePseudo(
  memory: RecordViews,
  at: number,
  key: number,
  ripLo: number,
  ripHi: number,
  link = 0,
): void {
  const { i32 } = memory;
  i32.fill(0, at >> 2, (at + RECORD_SIZE) >> 2);
  i32[(at + Rec.KEY) >> 2] = key;
  i32[(at + Rec.RIP) >> 2] = ripLo;
  i32[(at + Rec.RIP + 4) >> 2] = ripHi;
  i32[(at + Rec.LINK) >> 2] = link;
}
