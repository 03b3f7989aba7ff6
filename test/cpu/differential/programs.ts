/**
 * Random little programs: instructions that feed each other with registers, memory and flags, with forward branches,
 * often in a loop. What single instances cannot show is here: flags as one instruction leaves them and another reads
 * them, and code that runs often enough to be compiled.
 */
import { type Mnemonic, OPCODES, OpcodeMap, type OpcodeRow } from "../../../engine/cpu/isa/opcodes";
import type { Random } from "../random";
import { AF, ARITHMETIC, CF, OF, PF, SF, undefinedFlagsOf, ZF } from "./flags-undefined";
import { COMPLETED, DATA, type Instance, newInstance } from "./instance";

/** Flags a mnemonic writes, all of them defined but those in the table of undefined flags. */
// biome-ignore format: a table
const WRITES: Readonly<Partial<Record<Mnemonic, number>>> = {
  ADD: ARITHMETIC, ADC: ARITHMETIC, SUB: ARITHMETIC, SBB: ARITHMETIC, CMP: ARITHMETIC, NEG: ARITHMETIC, XADD: ARITHMETIC,
  CMPXCHG: ARITHMETIC, AND: ARITHMETIC, OR: ARITHMETIC, XOR: ARITHMETIC, TEST: ARITHMETIC, IMUL: ARITHMETIC, MUL: ARITHMETIC,
  POPCNT: ARITHMETIC, BSF: ARITHMETIC, BSR: ARITHMETIC, TZCNT: ARITHMETIC, LZCNT: ARITHMETIC,
  INC: ARITHMETIC & ~CF, DEC: ARITHMETIC & ~CF,
  SHL: ARITHMETIC, SHR: ARITHMETIC, SAR: ARITHMETIC, SHLD: ARITHMETIC, SHRD: ARITHMETIC,
  ROL: CF | OF, ROR: CF | OF, RCL: CF | OF, RCR: CF | OF,
  BT: CF, BTS: CF, BTR: CF, BTC: CF, CLC: CF, STC: CF, CMC: CF, SAHF: ARITHMETIC & ~OF, ADCX: CF, ADOX: OF, CMPXCHG8B: ZF,
  DAA: ARITHMETIC, DAS: ARITHMETIC, AAA: ARITHMETIC, AAS: ARITHMETIC, DIV: ARITHMETIC, IDIV: ARITHMETIC,
  // these write none
  NOT: 0, MOV: 0, MOVZX: 0, MOVSX: 0, MOVSXD: 0, XCHG: 0, CBW: 0, CWD: 0, BSWAP: 0, LEA: 0, CMOVCC: 0, SETCC: 0, LAHF: 0, JCC: 0,
  CRC32: 0, MOVBE: 0, NOP: 0, SALC: 0,
};

/** Flags a mnemonic reads; of the conditional ones by the condition number without its lowest bit. */
// biome-ignore format: a table
const READS: Readonly<Partial<Record<Mnemonic, number>>> = {
  ADC: CF, SBB: CF, RCL: CF, RCR: CF, CMC: CF, ADCX: CF, ADOX: OF, LAHF: ARITHMETIC & ~OF, SALC: CF,
  DAA: AF | CF, DAS: AF | CF, AAA: AF, AAS: AF,
};
const CONDITION_READS = [OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF];

const SHIFTS: readonly string[] = ["SHL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR", "SHLD", "SHRD"];

type ProgramMode = 32 | 64;

const RBX = 3;
/** Counts a loop down; no instruction of the body touches it, RBX or RSP. */
const COUNTER = { 32: 5, 64: 15 } as const;
/** Registers of the body: wide ones, byte ones without REX (4..6 are AH, CH, DH). */
const WIDE = { 32: [0, 1, 2, 6, 7], 64: [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] } as const;
const BYTE = [0, 1, 2, 4, 5, 6];

export function programRows(mode: ProgramMode): readonly OpcodeRow[] {
  return OPCODES.filter((row) => {
    if (row.system || WRITES[row.mnemonic] === undefined) return false;
    if (row.operands.some((o) => "ASO".includes(o.code))) return false;
    // Its register form is #UD to AMD processors (APM 3, PREFETCH).
    if (row.encoding === "0F 0D") return false;
    return mode === 64 ? row.mode !== "i64" : row.mode !== "o64";
  });
}

interface Encoded {
  readonly bytes: number[];
  readonly reads: number;
  /** Undefined flags behind it, from those before it. */
  readonly flow: (undefinedBefore: number) => number;
  /** It is a branch whose displacement, the last byte, skips the next instruction. */
  readonly skips: boolean;
}

function immediate(random: Random, size: number): number[] {
  const kind = random.below(4);
  if (kind === 0) return Array.from({ length: size }, () => random.pick([0, 0xff]));
  if (kind === 1) return [random.below(256), ...Array.from({ length: size - 1 }, () => 0)];
  if (kind === 2) return [...Array.from({ length: size - 1 }, () => 0), random.pick([0x80, 0x7f])];
  return Array.from({ length: size }, () => random.below(256));
}

function little(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => (value >> (i * 8)) & 0xff);
}

/** One instruction of the body; undefined when chance has chosen something the program cannot have. */
function encode(row: OpcodeRow, mode: ProgramMode, random: Random): Encoded | undefined {
  const free = row.prefix === "any" || row.prefix === "NFx";
  const narrow = row.prefix === "66" || (free && row.mnemonic !== "JCC" && row.mnemonic !== "BSWAP" && random.oneIn(4));
  const wide = mode === 64 && row.mnemonic !== "CMPXCHG8B" && random.oneIn(2);
  const size = wide ? 8 : narrow ? 2 : 4;
  let rex = mode === 64 && (wide || random.oneIn(3)) ? 0x40 | (wide ? 8 : 0) : 0;
  const condition = random.below(16);
  const prefixes: number[] = [];
  if (narrow) prefixes.push(0x66);
  if (row.prefix === "F3") prefixes.push(0xf3);
  if (row.prefix === "F2") prefixes.push(0xf2);

  const register = (bytes: boolean): number => {
    if (bytes && rex === 0) return random.pick(BYTE);
    return random.pick(WIDE[mode]);
  };
  const isByte = (type: string): boolean => type === "b";
  let modrm = -1;
  let opcodeRegister = 0;
  let displacement: number[] = [];
  const immediates: number[] = [];
  let reg = Math.max(row.reg, 0);
  let memory = false;
  let count: number | "cl" = 0;
  // A byte register named with a REX prefix and one named without cannot meet in one instruction.
  const bytes = row.operands.some((o) => isByte(o.type) && "EGZ".includes(o.code));
  if (bytes && mode === 64 && random.oneIn(2)) rex |= 0x40;
  const highs = bytes && rex === 0;
  const pick = (type: string): number | undefined => {
    const r = register(isByte(type));
    if (r > 7 && highs) return undefined;
    return r;
  };
  for (const operand of row.operands) {
    switch (operand.code) {
      case "G": {
        const r = pick(operand.type);
        if (r === undefined) return undefined;
        if (r > 7) rex |= 0x44;
        reg = r & 7;
        break;
      }
      case "Z": {
        const r = pick(operand.type);
        if (r === undefined) return undefined;
        if (r > 7) rex |= 0x41;
        opcodeRegister = r & 7;
        break;
      }
      case "E":
      case "M": {
        if (row.mnemonic === "LEA") {
          // Any base and index: nothing is accessed.
          const index = random.pick(WIDE[mode]);
          const base = random.pick([RBX, ...WIDE[mode]]);
          if (base > 7) rex |= 0x41;
          if (index > 7) rex |= 0x42;
          modrm = 0x84;
          displacement = [(random.below(4) << 6) | ((index & 7) << 3) | (base & 7), ...little(random.u32() | 0, 4)];
          break;
        }
        const far = row.mnemonic.startsWith("BT") && row.operands[1].code === "G";
        memory = row.mod === "mem" || (row.mod === "any" && !far && row.mnemonic !== "NOP" && random.oneIn(3));
        if (memory) {
          modrm = 0x80 | RBX;
          displacement = little(random.oneIn(8) ? -random.below(16) : random.between(-3900, 3900), 4);
        } else {
          const r = pick(operand.type);
          if (r === undefined) return undefined;
          if (r > 7) rex |= 0x41;
          modrm = 0xc0 | (r & 7);
        }
        break;
      }
      case "I":
        if (SHIFTS.includes(row.mnemonic)) {
          const limit = row.mnemonic.length === 4 && size === 2 ? 17 : 256;
          immediates.push(random.below(limit));
          count = immediates[0] & (size === 8 && !bytes ? 63 : 31);
        } else immediates.push(...immediate(random, immediateSize(operand.type, size)));
        break;
      case "1":
        count = 1;
        break;
      case "CL":
        if (row.mnemonic.length === 4 && size === 2) return undefined;
        count = "cl";
        break;
      case "J":
        if (operand.type !== "b") return undefined;
        immediates.push(0);
        break;
      default:
        break;
    }
  }
  if (row.hasModrm && modrm < 0) return undefined;
  // AH, CH, DH need an encoding without REX: a register chosen before REX came up would be another one.
  if (highs && rex !== 0) return undefined;
  if (modrm >= 0) modrm |= reg << 3;
  if (row.lock && memory && random.oneIn(4)) prefixes.unshift(0xf0);

  const code = [...prefixes];
  if (rex !== 0) code.push(rex);
  if (row.map !== OpcodeMap.ONE) code.push(0x0f);
  if (row.map === OpcodeMap.THREE_38) code.push(0x38);
  code.push(row.opcode + (row.span === 8 ? opcodeRegister : row.span === 16 ? condition : 0));
  if (modrm >= 0) code.push(modrm);
  code.push(...displacement, ...immediates);

  const bits = (bytes ? 1 : size) * 8;
  const writes = WRITES[row.mnemonic] ?? 0;
  return {
    bytes: code,
    reads: row.span === 16 ? CONDITION_READS[condition >> 1] : (READS[row.mnemonic] ?? 0),
    flow: (before) => {
      if (count === "cl") return before | AF | OF | CF;
      const shift = SHIFTS.includes(row.mnemonic);
      if (shift && count === 0) return before;
      return (before & ~writes) | undefinedFlagsOf(row.mnemonic, { bits, count, vector: COMPLETED });
    },
    skips: row.mnemonic === "JCC",
  };
}

function immediateSize(type: string, size: number): number {
  if (type === "b" || type === "ub") return 1;
  if (type === "v") return size;
  return type === "z" ? Math.min(size, 4) : 2;
}

/** A program of up to a dozen instructions, run once, a few times or thousands of times. */
export function generateProgram(rows: readonly OpcodeRow[], mode: ProgramMode, random: Random): Instance {
  const instance = newInstance(mode);
  for (let i = 0; i < (mode === 64 ? 16 : 8); i++)
    instance.gpr[i] = random.oneIn(3) ? BigInt(random.below(300)) : random.u64();
  const iterations = random.pick([1, 1, 1, 2, 40, 3000]);
  instance.gpr[RBX] = BigInt(DATA + 4096);
  instance.gpr[COUNTER[mode]] = BigInt(iterations);
  instance.rflags = random.u32() & ARITHMETIC;
  instance.ip = random.between(1600, 2400);

  const bytes: number[] = [];
  // All defined at the start; in a loop the DEC (and CLC) at its end see to that again.
  let undefinedNow = 0;
  const length = random.between(3, 11);
  let skip: { at: number; before: number } | undefined;
  for (let made = 0; made < length; ) {
    const next = encode(random.pick(rows), mode, random);
    if (!next || (next.reads & undefinedNow) !== 0 || bytes.length + next.bytes.length > 140) continue;
    if (skip && next.skips) continue;
    const before = undefinedNow;
    undefinedNow = next.flow(before);
    bytes.push(...next.bytes);
    if (skip) {
      bytes[skip.at - 1] = next.bytes.length;
      undefinedNow |= skip.before;
      skip = undefined;
    } else if (next.skips) skip = { at: bytes.length, before };
    made++;
  }
  if (iterations > 1) {
    const counter = COUNTER[mode];
    if (undefinedNow & CF) {
      bytes.push(0xf8);
      undefinedNow &= ~CF;
    }
    // DEC counter; JNZ back to the start
    bytes.push(...(mode === 64 ? [0x49, 0xff, 0xc8 | (counter & 7)] : [0x48 | counter]));
    undefinedNow &= CF;
    bytes.push(0x0f, 0x85, ...little(-(bytes.length + 6), 4));
  }
  if (mode === 32) for (let i = 0; i < 8; i++) instance.gpr[i] = BigInt.asUintN(32, instance.gpr[i]);
  instance.code.set(bytes);
  instance.length = bytes.length;
  instance.undefinedFlags = undefinedNow;
  return instance;
}
