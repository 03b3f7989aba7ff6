/** What the manuals leave undefined, and the comparison therefore leaves out: flags by mnemonic, each with its section. */
import { decode } from "../../../engine/cpu/isa/decoder";
import { type Instruction, newInstruction, OperandKind } from "../../../engine/cpu/isa/instruction";
import { type Mnemonic, OPCODES } from "../../../engine/cpu/isa/opcodes";
import { COMPLETED, type Instance } from "./instance";

export const CF = 0x001;
export const PF = 0x004;
export const AF = 0x010;
export const ZF = 0x040;
export const SF = 0x080;
export const OF = 0x800;
export const ARITHMETIC = CF | PF | AF | ZF | SF | OF;

/** What a row's condition may ask about. */
export interface Circumstances {
  /** Width of the destination in bits. */
  readonly bits: number;
  /** Shift count as the processor masks it: to 5 bits, or 6 with a 64-bit operand. */
  readonly count: number;
  /** Vector of the exception the instruction raised, or COMPLETED. */
  readonly vector: number;
}

interface UndefinedRow {
  readonly mnemonics: readonly Mnemonic[];
  readonly flags: number;
  readonly when?: (c: Circumstances) => boolean;
  readonly section: string;
}

// biome-ignore format: a table
export const UNDEFINED_FLAGS: readonly UndefinedRow[] = [
  { mnemonics: ["AND", "OR", "XOR", "TEST"], flags: AF, section: "2A AND: AF is undefined" },
  { mnemonics: ["MUL", "IMUL"], flags: SF | ZF | AF | PF, section: "2A IMUL, 2B MUL: SF, ZF, AF, PF are undefined" },
  { mnemonics: ["DIV", "IDIV"], flags: ARITHMETIC, section: "2A DIV: all six are undefined" },
  { mnemonics: ["AAA", "AAS"], flags: OF | SF | ZF | PF, section: "2A AAA: OF, SF, ZF, PF are undefined" },
  { mnemonics: ["AAM", "AAD"], flags: OF | AF | CF, section: "2A AAM: OF, AF, CF are undefined" },
  { mnemonics: ["DAA", "DAS"], flags: OF, section: "2A DAA: OF is undefined" },
  { mnemonics: ["BT", "BTS", "BTR", "BTC"], flags: OF | SF | AF | PF, section: "2A BT: OF, SF, AF, PF are undefined" },
  { mnemonics: ["BSF", "BSR"], flags: CF | OF | SF | AF | PF, section: "2A BSF: all but ZF are undefined" },
  { mnemonics: ["TZCNT", "LZCNT"], flags: OF | SF | AF | PF, section: "2B TZCNT: OF, SF, PF, AF are undefined" },
  { mnemonics: ["SHL", "SHR", "SAR"], flags: AF, when: (c) => c.count !== 0,
    section: "2B SAL: AF is undefined for a count other than 0" },
  { mnemonics: ["SHL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR"], flags: OF, when: (c) => c.count > 1,
    section: "2B SAL, RCL: OF is defined for 1-bit shifts and rotates only" },
  { mnemonics: ["SHL", "SHR"], flags: CF, when: (c) => c.count > c.bits,
    section: "2B SAL: CF is undefined when the count exceeds the operand (at the exact size the last bit is well known)" },
  { mnemonics: ["SHLD", "SHRD"], flags: AF, when: (c) => c.count !== 0, section: "2B SHLD: AF is undefined" },
  { mnemonics: ["SHLD", "SHRD"], flags: OF, when: (c) => c.count > 1, section: "2B SHLD: OF is undefined for counts above 1" },
  { mnemonics: ["ANDN", "BLSR", "BLSMSK", "BLSI", "BZHI"], flags: AF | PF, section: "2A ANDN, BLSR ...: AF and PF are undefined" },
  { mnemonics: ["BEXTR"], flags: AF | SF | PF, section: "2A BEXTR: AF, SF, PF are undefined" },
  { mnemonics: ["CMPS", "SCAS"], flags: ARITHMETIC, when: (c) => c.vector !== COMPLETED,
    section: "2A REP: flags of an interrupted REPE CMPS are those before the instruction on some processors, of the last "
      + "iteration on others; a resumed one does not read them" },
];

/** Bits of a register destination that are undefined. */
const UNDEFINED_RESULTS: readonly { mnemonics: readonly Mnemonic[]; bits: bigint; section: string }[] = [
  { mnemonics: ["LAR"], bits: 0xf0000n, section: "2A LAR: bits 19:16 are undefined" },
];

const instruction = newInstruction();

function countOf(instance: Instance, decoded: Instruction): number {
  const operand = decoded.operands[2].kind === OperandKind.NONE ? decoded.operands[1] : decoded.operands[2];
  const raw = operand.kind === OperandKind.IMMEDIATE ? decoded.immediate : Number(instance.gpr[1] & 0xffn);
  return raw & (decoded.operands[0].size === 8 ? 63 : 31);
}

export interface UndefinedState {
  /** Flags that may have any value, as a mask of RFLAGS. */
  readonly flags: number;
  /** Bits of the destination register that may have any value. */
  readonly operand0?: { readonly register: number; readonly bits: bigint };
}

/** The flags that a mnemonic leaves undefined. */
export function undefinedFlagsOf(mnemonic: Mnemonic, circumstances: Circumstances): number {
  let flags = 0;
  for (const row of UNDEFINED_FLAGS) {
    if (row.mnemonics.includes(mnemonic) && (row.when === undefined || row.when(circumstances))) flags |= row.flags;
  }
  return flags;
}

/** What may have any value after this instance. */
export function undefinedState(instance: Instance, vector: number): UndefinedState {
  if (instance.undefinedFlags !== undefined) {
    return { flags: vector === COMPLETED ? instance.undefinedFlags : ARITHMETIC };
  }
  if (decode(instance.code, 0, instance.length, instance.mode, instruction) <= 0) return { flags: 0 };
  const { mnemonic } = OPCODES[instruction.opcode];
  const circumstances = { bits: instruction.operands[0].size * 8, count: countOf(instance, instruction), vector };
  const flags = undefinedFlagsOf(mnemonic, circumstances);
  const result = UNDEFINED_RESULTS.find((row) => row.mnemonics.includes(mnemonic));
  const [destination] = instruction.operands;
  if (!result || destination.kind !== OperandKind.GPR) return { flags };
  return { flags, operand0: { register: destination.reg, bits: result.bits } };
}
