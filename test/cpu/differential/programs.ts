/**
 * Random little programs: instructions that feed each other with registers, memory and flags, with forward branches,
 * often in a loop. What single instances cannot show is here: flags as one instruction leaves them and another reads
 * them, and code that runs often enough to be compiled.
 */
import { type Mnemonic, OPCODES, OpcodeMap, type OpcodeRow } from "../../../engine/cpu/isa/opcodes";
import type { Random } from "../random";
import { AF, ARITHMETIC, CF, OF, PF, SF, undefinedFlagsOf, ZF } from "./flags-undefined";
import { CODE, COMPLETED, DATA, type Instance, newInstance } from "./instance";

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
const RSP = 4;
/** Counts a loop down; no instruction of the body touches it, RBX or RSP, nor the counter of inner loops, RBP. */
const COUNTER = { 32: 7, 64: 15 } as const;
const INNER_COUNTER = 5;
/** Registers of the body: wide ones, byte ones without REX (4..6 are AH, CH, DH). */
const WIDE = { 32: [0, 1, 2, 6], 64: [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14] } as const;
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
  /** It is a branch, which wants a target. */
  readonly branches: boolean;
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
          displacement = little(random.oneIn(8) ? -random.below(16) : random.between(-3900, 2000), 4);
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
    branches: row.mnemonic === "JCC",
  };
}

function immediateSize(type: string, size: number): number {
  if (type === "b" || type === "ub") return 1;
  if (type === "v") return size;
  return type === "z" ? Math.min(size, 4) : 2;
}

const DEC_EAX = 0xc8;
const ZERO_AND_THE_LIKE = AF | PF | ZF | SF | OF;

/** A program being put together. */
class Program {
  readonly bytes: number[] = [];
  /** Flags that are undefined at the end of what there is. */
  undefinedNow = 0;
  /** Calls whose function is yet to come: where their displacement stands, and what the function is. */
  private readonly calls: { at: number; body: number[] }[] = [];

  constructor(
    private readonly rows: readonly OpcodeRow[],
    private readonly mode: ProgramMode,
    private readonly random: Random,
    /** Linear address of the first byte. */
    private readonly start: number,
  ) {}

  /** An instruction that reads none of the flags in `avoid`. */
  private draw(avoid: number): Encoded {
    for (;;) {
      const drawn = encode(this.random.pick(this.rows), this.mode, this.random);
      if (drawn && !drawn.branches && (drawn.reads & avoid) === 0) return drawn;
    }
  }

  private put(...bytes: number[]): void {
    this.bytes.push(...bytes);
  }

  /** One instruction. */
  single(): void {
    const next = this.draw(this.undefinedNow);
    this.put(...next.bytes);
    this.undefinedNow = next.flow(this.undefinedNow);
  }

  /** A conditional or indirect jump, and an instruction it may skip. */
  branch(): void {
    const { random } = this;
    const before = this.undefinedNow;
    const next = this.draw(before);
    const condition = random.below(16);
    if ((CONDITION_READS[condition >> 1] & before) === 0 && !random.oneIn(4)) {
      if (random.oneIn(2)) this.put(0x70 | condition, next.bytes.length);
      else this.put(0x0f, 0x80 | condition, ...little(next.bytes.length, 4));
      this.put(...next.bytes);
      this.undefinedNow = before | next.flow(before);
    } else {
      // MOV EAX, target; JMP rAX
      const target = this.start + this.bytes.length + 7 + next.bytes.length;
      this.put(0xb8, ...little(target, 4), 0xff, 0xe0, ...next.bytes);
    }
  }

  /** PUSH, an instruction, POP into another register. */
  stack(): void {
    const [from, to] = [this.random.below(3), this.random.below(3)];
    this.put(0x50 | from);
    this.single();
    this.put(0x58 | to);
  }

  /** CALL of a function of one instruction. */
  call(): void {
    const body = this.draw(this.undefinedNow);
    this.undefinedNow = body.flow(this.undefinedNow);
    this.put(0xe8, 0, 0, 0, 0);
    this.calls.push({ at: this.bytes.length, body: body.bytes });
  }

  /** REP MOVS or STOS, REPE CMPS or SCAS, upwards, over a few bytes of the data window. */
  string(): void {
    const { random, mode } = this;
    const place = (): number[] => little(DATA + random.between(100, 6000), 4);
    const saved = mode === 32 ? [0x57] : [];
    // In 32-bit code EDI is the loop counter.
    this.put(...saved, 0xbf, ...place(), 0xbe, ...place(), 0xb9, ...little(random.between(0, 40), 4));
    const opcode = random.pick([0xa4, 0xa5, 0xaa, 0xab, 0xa6, 0xa7, 0xae, 0xaf]);
    const wide = mode === 64 && random.oneIn(2) ? [0x48] : [];
    this.put(random.oneIn(2) ? 0xf3 : 0xf2, ...wide, opcode);
    if (mode === 32) this.put(0x5f);
    // A comparison of no iterations leaves the flags, whatever they are; one of some defines all.
  }

  /** An inner loop of one instruction. */
  loop(): void {
    const before = this.undefinedNow;
    const next = this.draw(before | CF);
    this.put(0xb8 | INNER_COUNTER, ...little(this.random.between(1, 9), 4));
    const top = this.bytes.length;
    this.put(...next.bytes, 0xff, DEC_EAX | INNER_COUNTER);
    this.put(0x75, 0x100 + top - (this.bytes.length + 2));
    this.undefinedNow = next.flow(before) & ~ZERO_AND_THE_LIKE;
  }

  /** Repeats everything so far until the counter register is 0. */
  repeat(): void {
    const counter = COUNTER[this.mode];
    if (this.undefinedNow & CF) this.put(0xf8);
    if (this.mode === 64) this.put(0x49, 0xff, DEC_EAX | (counter & 7));
    else this.put(0x48 | counter);
    this.put(0x0f, 0x85, ...little(-(this.bytes.length + 6), 4));
    this.undefinedNow = 0;
  }

  /** Puts the functions behind the INT3 that ends the program. */
  finish(): void {
    for (const { at, body } of this.calls) {
      this.put(0xcc);
      const displacement = little(this.bytes.length - at, 4);
      displacement.forEach((byte, i) => {
        this.bytes[at - 4 + i] = byte;
      });
      this.put(...body, 0xc3);
    }
  }
}

/** A program of a few to a dozen pieces, run once, a few times or thousands of times. */
export function generateProgram(rows: readonly OpcodeRow[], mode: ProgramMode, random: Random): Instance {
  const instance = newInstance(mode);
  for (let i = 0; i < (mode === 64 ? 16 : 8); i++) {
    const value = random.oneIn(3) ? BigInt(random.below(300)) : random.u64();
    instance.gpr[i] = mode === 64 ? value : BigInt.asUintN(32, value);
  }
  const iterations = random.pick([1, 1, 1, 2, 40, 3000]);
  instance.gpr[RBX] = BigInt(DATA + 4096);
  // The memory operands of the body do not reach the stack, or they would change return addresses.
  instance.gpr[RSP] = BigInt(DATA + 8000);
  instance.gpr[COUNTER[mode]] = BigInt(iterations);
  instance.rflags = random.u32() & ARITHMETIC;
  instance.ip = random.between(1600, 2400);

  const program = new Program(rows, mode, random, CODE + instance.ip);
  const pieces = random.between(3, 10);
  for (let i = 0; i < pieces && program.bytes.length < 90; i++) {
    const kind = random.below(16);
    if (kind < 8) program.single();
    else if (kind < 11) program.branch();
    else if (kind === 11) program.stack();
    else if (kind === 12) program.call();
    else if (kind === 13) program.loop();
    else if (kind === 14) program.string();
    else program.single();
  }
  if (iterations > 1) program.repeat();
  program.finish();
  if (program.bytes.length > instance.code.length) throw new Error(`a program of ${program.bytes.length} bytes`);
  instance.code.set(program.bytes);
  instance.length = program.bytes.length;
  instance.undefinedFlags = program.undefinedNow;
  return instance;
}
