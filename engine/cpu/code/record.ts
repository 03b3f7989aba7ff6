/**
 * A record: one decoded instruction as the interpreter reads it, 64 bytes in the code arena. Register operands are host
 * offsets into the CPU block of the running vCPU, so that a handler loads them without knowing which register they are.
 *
 * Records of consecutive instructions stand one behind another; a run ends with a pseudo-record (PseudoKey) that retires
 * nothing.
 */
import { SCRATCH_BASE } from "../../memory/layout";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../isa/instruction";
import { CpuState, Off, Seg, SegPart } from "../state";

export const RECORD_SIZE = 64;

export const RecordField = {
  /** u32: handler number. */
  KEY: 0,
  /** u32: host offset of the register that is operand 0, 1 (Off.ZERO where it is none). */
  OPERAND0: 4,
  OPERAND1: 8,
  /** u32: host offset of the base and index of the memory operand (Off.ZERO where there is none). */
  BASE: 12,
  INDEX: 16,
  /** u32: bits 7:0 scale (0..3), 15:8 segment register, 23:16 address size in bytes. */
  ADDRESS: 20,
  /** i64: displacement; RIP-relative ones are absolute already. */
  DISPLACEMENT: 24,
  /** i64: first immediate; of relative branches the target RIP; of a GOTO unused. */
  IMMEDIATE: 32,
  /** i64: RIP of the instruction; of a LOOKUP or GOTO the RIP to go on at. */
  RIP: 40,
  /** u32: RIP of the next instruction less RIP of this one. */
  LENGTH: 48,
  /** u32: index of the Instruction that CodeCache keeps (system handlers, slow road); or a RecordFault. */
  INSTRUCTION: 52,
  /** u32: record of the branch target (of a GOTO: of RIP) when it lies on the same page and is decoded, else 0. */
  LINK: 56,
  /** u32: free for the tiers (hotness). */
  COUNTER: 60,
} as const;

/** Handler numbers that are no instructions. They retire nothing. Handlers of instructions count from FIRST_KEY. */
export const PseudoKey = {
  /** Goes on at RIP through the code TLB; ExitStatus.MISS where that does not know it. */
  LOOKUP: 0,
  /** Goes on at LINK. */
  GOTO: 1,
  /** ExitStatus.BREAK; the instruction itself stands in the next record. */
  BREAK: 2,
  /** ExitStatus.MISS at RIP: an instruction that crosses the page's end, which TypeScript puts together. */
  CROSS: 3,
  FIRST_KEY: 4,
} as const;

/** INSTRUCTION of a record of the system key that only raises an exception. */
export const RecordFault = {
  /** #UD. */
  UD: 0xffff_fffe,
  /** #GP(0): longer than 15 bytes, or beyond CS.limit. */
  GP: 0xffff_fffd,
} as const;

/**
 * Linear addresses of code, for indirect branches and LOOKUP: linear = (RIP + CODE_BASE) & CODE_MASK. i64 each, kept by
 * CodeCache.updateContext.
 */
export const CODE_BASE_AT = SCRATCH_BASE;
export const CODE_MASK_AT = SCRATCH_BASE + 8;

const registerOffset = (reg: number): number => (reg === NO_REG || reg === RIP_BASE ? Off.ZERO : Off.GPR + reg * 8);

/** Host offset of what a register operand names. */
function operandOffset(instruction: Instruction, n: number): number {
  const operand = instruction.operands[n];
  switch (operand.kind) {
    case OperandKind.GPR:
      return Off.GPR + operand.reg * 8 + (operand.high ? 1 : 0);
    case OperandKind.SEGMENT:
      return CpuState.segOffset(operand.reg) + SegPart.SELECTOR;
    default:
      return Off.ZERO;
  }
}

/** Host offset of a segment's base address. */
const segmentBase = (seg: number): number => CpuState.segOffset(seg) + SegPart.BASE;

export interface RecordViews {
  readonly i32: Int32Array;
  readonly view: DataView;
}

/**
 * Fills in the record at host offset `at`.
 * @param rip RIP of the instruction, as an unsigned 64-bit number
 * @param long 64-bit mode: FS and GS bases then take the place of an absent base or index register where there is one
 */
export function writeRecord(
  memory: RecordViews,
  at: number,
  key: number,
  instruction: Instruction,
  instructionIndex: number,
  rip: bigint,
  long: boolean,
): void {
  const { i32, view } = memory;
  const w = at >> 2;
  i32[w] = key;
  i32[w + 1] = operandOffset(instruction, 0);
  i32[w + 2] = operandOffset(instruction, 1);
  let base = registerOffset(instruction.base);
  let index = registerOffset(instruction.index);
  let scale = instruction.scale;
  if (long && instruction.segment >= Seg.FS && instruction.addressSize === 8) {
    if (index === Off.ZERO) {
      index = segmentBase(instruction.segment);
      scale = 0;
    } else if (base === Off.ZERO) base = segmentBase(instruction.segment);
  }
  i32[w + 3] = base;
  i32[w + 4] = index;
  i32[w + 5] = scale | (instruction.segment << 8) | (instruction.addressSize << 16);
  const next = rip + BigInt(instruction.length);
  if (instruction.base === RIP_BASE) {
    view.setBigUint64(at + RecordField.DISPLACEMENT, BigInt.asUintN(64, next + BigInt(instruction.displacement)), true);
  } else {
    i32[w + 6] = instruction.displacement;
    i32[w + 7] = instruction.displacementHigh;
  }
  if (instruction.operands[0].kind === OperandKind.RELATIVE) {
    view.setBigUint64(at + RecordField.IMMEDIATE, branchTarget(instruction, rip, long), true);
  } else {
    i32[w + 8] = instruction.immediate;
    i32[w + 9] = instruction.immediateHigh;
  }
  view.setBigUint64(at + RecordField.RIP, rip, true);
  i32[w + 12] = instruction.length;
  i32[w + 13] = instructionIndex;
  i32[w + 14] = 0;
  i32[w + 15] = 0;
}

/** A pseudo-record. */
export function writePseudo(memory: RecordViews, at: number, key: number, rip: bigint, link = 0): void {
  const w = at >> 2;
  memory.i32.fill(0, w, w + RECORD_SIZE / 4);
  memory.i32[w] = key;
  memory.view.setBigUint64(at + RecordField.RIP, rip, true);
  memory.i32[w + 14] = link;
}

/** Target RIP of a relative branch: cut to 64 bits in 64-bit mode, else to the operand size (SDM 2A, JMP). */
export function branchTarget(instruction: Instruction, rip: bigint, long: boolean): bigint {
  const target = rip + BigInt(instruction.length) + BigInt(instruction.immediate);
  return BigInt.asUintN(long ? 64 : instruction.operandSize * 8, target);
}
