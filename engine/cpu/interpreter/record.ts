/**
 * A decoded instruction as the interpreter reads it: 64 bytes in the code arena. Records of a run of instructions stand
 * behind one another, so that the next instruction is the next record; pseudo-records (Key) join runs, mark
 * breakpoints and check what crosses pages.
 */
import { Off } from "../state";

export const RECORD_SIZE = 64;

// biome-ignore format: an address map
export const Rec = {
  /** u32: Key, or index of a hot handler from FIRST_HOT on. */
  KEY: 0,
  /** u32: host offset of the register of operand 0 and 1, or of a selector for segment-register operands. */
  OPERAND0: 4, OPERAND1: 8,
  /** u32: host offsets of base and index register (Off.ZERO for none, a segment base for FS and GS). */
  BASE: 12, INDEX: 16,
  /** u8 each: log2 of the index factor, segment (Seg), address size in bytes, instruction length. */
  SCALE: 20, SEGMENT: 21, ADDRESS_SIZE: 22, LENGTH: 23,
  /** i64: displacement, RIP-relative ones made absolute. */
  DISPLACEMENT: 24,
  /** i64: immediate, or the branch target as RIP. */
  IMMEDIATE: 32,
  /** i64: RIP of the instruction. */
  RIP: 40,
  /** u32: record of the branch target, 0 while not linked. */
  LINK: 48,
  /** u16: host offsets of the registers of operands 2 and 3, in the place of LINK: branches have no such operands. */
  OPERAND2: 48, OPERAND3: 50,
  /** u32: slot of the function table for Key.COLD; index of the Instruction for Key.SYSTEM. */
  HANDLER: 52,
  /** u32: index of the instruction's shape. */
  SHAPE: 56,
  /** u32: for Key.CROSS, the record table expected for the second page; for a region's entry, the copy of what it was. */
  EXPECTED: 60,
  /** u32, in the same place: for a hot instruction that may call its SystemHandler, the index of the Instruction. */
  INSTRUCTION: 60,
} as const;

/** What a record means when it is not a hot instruction. Pseudo-records do not count as instructions. */
export const Key = {
  /** Calls the function HANDLER of the table. */
  COLD: 0,
  /** Calls the system-instruction import. */
  SYSTEM: 1,
  /** Goes to LINK, or where RIP leads by the code TLB. */
  GOTO: 2,
  /** The instruction behind crosses into a page that must still be the one it was decoded from. */
  CROSS: 3,
  /** A breakpoint stands before the instruction behind. */
  BREAK: 4,
  /** A compiled region may start here: calls the function HANDLER of the table. */
  REGION: 5,
} as const;
export const FIRST_HOT = 6;

/** Part of TIER_SCRATCH, written when the code context changes: linear = (RIP + CODE_BASE) & CODE_MASK. */
export const CODE_BASE = Off.TIER_SCRATCH;
export const CODE_MASK = Off.TIER_SCRATCH + 8;
