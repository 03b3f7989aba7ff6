/** A decoded instruction, as the decoder fills it in and semantics, disassembler hooks and system handlers read it. */

/** What an operand is. */
// biome-ignore format: grouped by meaning
export const OperandKind = {
  NONE: 0,
  /** General register; `reg` 0..15, or with `high` set AH, CH, DH, BH as reg 0..3. */
  GPR: 1,
  /** Memory at segment:[base + index << scale + displacement]. */
  MEMORY: 2,
  /** Immediate: `Instruction.immediate` (first) or `.immediate2` (second, as in ENTER and far pointers). */
  IMMEDIATE: 3,
  /** Branch target relative to the next instruction: `Instruction.immediate` is the displacement. */
  RELATIVE: 4,
  SEGMENT: 5, CONTROL: 6, DEBUG: 7,
  /** Direct far pointer: offset in `immediate`, selector in `immediate2`. */
  FAR: 8,
  /** Register stack element ST(i), MMX register, XMM or YMM register, opmask register. */
  X87: 9, MMX: 10, VECTOR: 11, OPMASK: 12, BOUNDS: 13,
} as const;
export type OperandKind = (typeof OperandKind)[keyof typeof OperandKind];

export interface Operand {
  kind: OperandKind;
  /** Register number for register kinds. */
  reg: number;
  /** AH, CH, DH, BH. */
  high: boolean;
  /** Width in bytes of what is read or written (a far pointer in memory counts 4, 6 or 10). */
  size: number;
}

export const Rep = { NONE: 0, REPE: 0xf3, REPNE: 0xf2 } as const;
export type Rep = (typeof Rep)[keyof typeof Rep];

/** No base or index register. */
export const NO_REG = 16;
/** `base` of a RIP-relative address; `displacement` counts from the next instruction. */
export const RIP_BASE = 17;

/** One instruction. The decoder fills a caller-owned object, so that decoding allocates nothing. */
export interface Instruction {
  /** Row of the opcode table: mnemonic, operands and flags of use (isa/opcodes.ts). Index into OPCODES. */
  opcode: number;
  /** Bytes, prefixes included (1..15). */
  length: number;
  /** Effective operand size in bytes: 2, 4 or 8 (byte forms say so in their operands' sizes). */
  operandSize: number;
  /** Effective address size in bytes: 2, 4 or 8. */
  addressSize: number;
  /** Destination first, as in the manuals; kind NONE past the end. Always four objects. */
  readonly operands: readonly [Operand, Operand, Operand, Operand];
  /**
   * Memory operand, if any operand has kind MEMORY: registers 0..15, NO_REG or RIP_BASE. Of a string instruction this is
   * RSI with the source's segment, or RDI with ES where there is no source; a destination is at ES:RDI always.
   */
  base: number;
  index: number;
  /** `index` is a vector register (VSIB, SDM 2A 2.3.12), always given. */
  vsib: boolean;
  /** log2 of the index factor: 0..3. */
  scale: number;
  /** Displacement, sign-extended to 32 bits; `displacementHigh` is its upper half (only moffs64 has other than the sign). */
  displacement: number;
  displacementHigh: number;
  /** Segment register the memory operand uses (default or overridden), Seg order; DS or the override without one (XLAT). */
  segment: number;
  /** A segment override prefix was given (string instructions, far returns and hints care). */
  segmentOverride: boolean;
  /**
   * Immediate as low and high halves (signed 32-bit numbers): sign-extended to 64 bits, but unsigned where the table's
   * operand is Iub or Iuw (shift counts, ports, vectors, RET, ENTER).
   */
  immediate: number;
  immediateHigh: number;
  /** Second immediate: ENTER's level, far pointer's selector. */
  immediate2: number;
  lock: boolean;
  rep: Rep;
  /** Condition code for Jcc, SETcc, CMOVcc (low four bits of the opcode). */
  condition: number;
  /** REX, VEX or EVEX bits for those who need them: W 8, R 4, X 2, B 1; 0x40 set when a REX prefix was there. */
  rex: number;
  /** ModRM byte, or -1 without one. */
  modrm: number;
  /** Vector length of a VEX-encoded instruction in bytes, 16 or 32 (16 where VEX.L is ignored); 0 without VEX. */
  vex: number;
}

export function newInstruction(): Instruction {
  const operand = (): Operand => ({ kind: OperandKind.NONE, reg: 0, high: false, size: 0 });
  // biome-ignore format: one glance
  return {
    opcode: 0, length: 0, operandSize: 4, addressSize: 4,
    operands: [operand(), operand(), operand(), operand()],
    base: NO_REG, index: NO_REG, scale: 0, displacement: 0, displacementHigh: 0, segment: 3, segmentOverride: false,
    immediate: 0, immediateHigh: 0, immediate2: 0, lock: false, rep: Rep.NONE, condition: 0, rex: 0, modrm: -1,
    vsib: false, vex: 0,
  };
}

/** How decoding can end other than well. */
export const DecodeError = {
  /** The bytes given end inside the instruction: fetch more (page or segment end) and try again. */
  MORE: -1,
  /** #UD: no such instruction, or not in this mode, or LOCK where it may not be. */
  UD: -2,
  /** #GP(0): longer than 15 bytes (SDM 2A 2.3.11). */
  TOO_LONG: -3,
} as const;

/**
 * Decodes one instruction.
 * @param bytes source; the instruction starts at `at`, and bytes before `end` may be read
 * @param width default width of code in bits: 16, 32 or 64
 * @returns the length (1..15), or a DecodeError
 */
export type Decode = (bytes: Uint8Array, at: number, end: number, width: 16 | 32 | 64, into: Instruction) => number;
