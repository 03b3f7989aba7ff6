/**
 * Random instances of every user-mode integer instruction in the opcode table: all forms, operand and address sizes,
 * prefixes; register values and memory chosen so that most instances do something interesting and few fault.
 */
import {
  type Mnemonic,
  OPCODES,
  OpcodeMap,
  type OpcodeRow,
  type OperandCode,
  type OperandSpec,
} from "../../../engine/cpu/isa/opcodes";
import type { Random } from "../random";
import { CODE, DATA, DATA_SIZE, type Instance, type Mode, newInstance } from "./instance";

/** System instructions that behave the same for every user program; the others depend on the operating system. */
// biome-ignore format: a list
const SYSTEM_TOO: ReadonlySet<Mnemonic> = new Set<Mnemonic>([
  "ENTER", "BOUND", "ARPL", "PUSHF", "POPF", "INTO", "PAUSE", "UD0", "UD1", "UD2", "CLFLUSH",
  "CALL_FAR", "JMP_FAR", "RET_FAR", "IRET", "MOV_SREG", "POP_SREG", "LDS", "LES", "LSS", "LAR", "LSL", "VERR", "VERW",
  // privileged: #GP(0) at CPL 3 (SDM 3A 6.9, 19.3)
  "HLT", "CLI", "STI", "IN", "OUT", "INS", "OUTS", "CLTS", "INVD", "WBINVD", "INVLPG", "LGDT", "LIDT", "LLDT", "LTR", "LMSW",
  "RDMSR", "WRMSR", "MOV_CR", "MOV_DR", "SWAPGS",
]);

/** Plain rows left out, with the reason. */
const LEFT_OUT: Readonly<Partial<Record<Mnemonic, string>>> = {
  ENDBR64: "a NOP whose indirect-branch tracking is not modelled",
  ENDBR32: "a NOP whose indirect-branch tracking is not modelled",
};

const VECTOR_CODES = new Set<OperandCode>(["V", "W", "U", "H", "L", "P", "Q", "N", "XMM0"]);

/** Whether a row belongs to the vector families, or shares their encoding. */
export const isVector = (row: OpcodeRow): boolean => row.vex || row.operands.some((o) => VECTOR_CODES.has(o.code));

/** Rows to draw from in code of `mode`. */
export function rowsFor(mode: Mode): readonly OpcodeRow[] {
  return OPCODES.filter((row) => {
    if (isVector(row)) return false;
    if (row.system && !SYSTEM_TOO.has(row.mnemonic)) return false;
    if (row.mnemonic in LEFT_OUT) return false;
    // FS and GS belong to the harness's C library and to the operating system.
    if (row.mnemonic === "POP_SREG" && /[FG]S/.test(row.operands[0].code)) return false;
    return mode === 64 ? row.mode !== "i64" : row.mode !== "o64";
  });
}

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSP = 4;
const RBP = 5;
const RSI = 6;
const RDI = 7;

const M64 = (1n << 64n) - 1n;

// biome-ignore format: numbers at which carries, signs and widths change
const EDGES: readonly bigint[] = [
  0n, 1n, 2n, 3n, 7n, 8n, 9n, 10n, 0x0fn, 0x10n, 0x1fn, 0x20n, 0x3fn, 0x40n, 0x7en, 0x7fn, 0x80n, 0x81n, 0x99n, 0x9an, 0xfen,
  0xffn, 0x100n, 0x7fffn, 0x8000n, 0x8001n, 0xffffn, 0x10000n, 0x7fffffffn, 0x80000000n, 0x80000001n, 0xfffffffen, 0xffffffffn,
  0x100000000n, 0x7fffffffffffffffn, 0x8000000000000000n, 0x8000000000000001n, 0xfffffffffffffffen, 0xffffffffffffffffn,
  0xffffffff80000000n, 0xffffffffffff8000n, 0xffffffffffffff80n, 0xffffffffffffff7fn, 0x5555555555555555n, 0xaaaaaaaaaaaaaaaan,
];

/** A value of 64 bits: random, an edge, small, a single bit or a run of bits. */
function value64(random: Random): bigint {
  switch (random.below(8)) {
    case 0:
    case 1:
      return random.pick(EDGES);
    case 2:
      return BigInt(random.below(256));
    case 3:
      return 1n << BigInt(random.below(64));
    case 4:
      return M64 >> BigInt(random.below(64));
    default:
      return random.u64();
  }
}

const ARITHMETIC_FLAGS = 0x8d5;
const DF = 0x400;
// biome-ignore format: a list
const STACK_ROWS: readonly string[] = [
  "PUSH", "POP", "PUSHA", "POPA", "PUSHF", "POPF", "ENTER", "LEAVE", "CALL", "RET", "POP_SREG", "CALL_FAR", "RET_FAR", "IRET",
];
/** Selectors in the operating system's GDT and the harness's LDT: null, code, data, system, absent, beyond the limit. */
// biome-ignore format: a list
const SELECTORS: readonly number[] = [
  0, 1, 2, 3, 0x08, 0x0b, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x21, 0x22, 0x23, 0x28, 0x29, 0x2a, 0x2b, 0x30, 0x31, 0x33, 0x38, 0x3b,
  0x40, 0x43, 4, 5, 6, 7, 0xc, 0xd, 0xe, 0xf, 0x17, 0x83, 0xfff8,
];
const BIT_STRING: readonly string[] = ["BT", "BTS", "BTR", "BTC"];
const COUNTED_JUMPS: readonly string[] = ["LOOP", "LOOPE", "LOOPNE", "JCXZ"];

/** What one instance is built from; `build` fills in the Instance. */
class Builder {
  readonly instance: Instance;
  private readonly gpr: BigUint64Array;
  private readonly prefixes: number[] = [];
  private rex = 0;
  private modrm = -1;
  /** SIB and displacement. */
  private tail: number[] = [];
  private immediates: number[] = [];
  /** Where in `tail` a displacement that counts from the next instruction stands, -1 without. */
  private ripRelative = -1;
  private ea = 0n;
  /** Registers whose value must stay. */
  private readonly taken = new Set<number>();
  private operandSize = 4;
  private addressSize = 4;
  private segmentBase = 0n;
  private inMemory = false;
  /** Offset in the data window of the memory operand, -1 when it is somewhere else. */
  private place = -1;
  private readonly registers: number;

  constructor(
    readonly row: OpcodeRow,
    readonly mode: Mode,
    readonly random: Random,
  ) {
    this.instance = newInstance(mode);
    this.gpr = this.instance.gpr;
    this.registers = mode === 64 ? 16 : 8;
  }

  build(): Instance {
    const { row, mode, random, instance } = this;
    for (let i = 0; i < this.registers; i++) this.gpr[i] = value64(random);
    instance.rflags = random.u32() & ARITHMETIC_FLAGS;
    if (random.oneIn(3)) instance.rflags |= DF;
    instance.ip = random.between(1600, 2400);

    this.choosePrefixes();
    this.chooseStack();
    const codes = row.operands.map((o) => o.code);
    const modrmOperand = row.operands.find((o) => o.code === "E" || o.code === "M");
    if (row.hasModrm) this.chooseModrm(modrmOperand);
    if (row.span === 8) this.setOpcodeRegister();
    for (const operand of row.operands) this.chooseImmediate(operand);
    if (codes.includes("O")) this.chooseOffset();
    if (row.repeat !== "none") this.chooseString();
    this.chooseMeaning();
    this.placeLock();
    this.assemble();
    if (mode !== 64) {
      for (let i = 0; i < 16; i++) this.gpr[i] = i < 8 ? BigInt.asUintN(32, this.gpr[i]) : 0n;
    }
    return instance;
  }

  // Prefixes and sizes

  private choosePrefixes(): void {
    const { row, mode, random } = this;
    // Near branches of 64-bit code ignore 66 on Intel processors and truncate RIP on AMD's (APM 3, 1.2.2).
    const branch = mode === 64 && row.size64 === "f64" && !row.system;
    const free = (row.prefix === "any" || row.prefix === "NFx") && !branch;
    let operand = free && random.oneIn(3);
    if (row.mnemonic === "BSWAP" && (mode === 16) !== operand) {
      // BSWAP of 16 bits is undefined (2A BSWAP).
      operand = mode === 16;
    }
    if (row.prefix === "66" || (row.prefix === "F2" && row.mnemonic === "CRC32" && random.oneIn(3))) operand = true;
    // The segment that a 16-bit address could reach lies elsewhere in flat 32-bit code: those fault.
    const address = random.oneIn(mode === 32 ? 40 : 8);
    // Far pointers with REX.W have 64-bit offsets on Intel processors and 32-bit ones on AMD's (APM 3, CALL far).
    const farPointer = row.operands.some((o) => o.type === "p");
    const wide = mode === 64 && row.w !== "W0" && !farPointer && (row.w === "W1" || random.oneIn(2));
    this.rex = mode === 64 && (wide || random.oneIn(8)) ? 0x40 | (wide ? 8 : 0) : 0;
    if (operand) this.prefixes.push(0x66);
    if (address) this.prefixes.push(0x67);
    if (random.oneIn(10)) this.chooseOverride();
    if (row.prefix === "F3") this.prefixes.push(0xf3);
    if (row.prefix === "F2") this.prefixes.push(0xf2);
    if (row.repeat !== "none" && !random.oneIn(4)) this.prefixes.push(random.oneIn(2) ? 0xf3 : 0xf2);
    if (mode === 64) {
      this.operandSize = wide || row.size64 === "f64" ? 8 : operand ? 2 : row.size64 === "d64" ? 8 : 4;
      this.addressSize = address ? 4 : 8;
    } else {
      this.operandSize = (mode === 16) === operand ? 4 : 2;
      this.addressSize = (mode === 16) === address ? 4 : 2;
    }
  }

  private chooseOverride(): void {
    const { mode, random } = this;
    if (mode === 64) {
      const prefix = random.pick([0x26, 0x2e, 0x36, 0x3e, 0x65, 0x65]);
      this.prefixes.push(prefix);
      // The harness points GS at the data window; the other four mean nothing.
      if (prefix === 0x65) this.segmentBase = BigInt(DATA);
    } else this.prefixes.push(random.pick([0x26, 0x2e, 0x36, 0x3e]));
  }

  private placeLock(): void {
    const { row, random } = this;
    // LOCK MOV CR0 means CR8 to AMD processors (APM 3, MOV CRn).
    const misplaced = row.mnemonic !== "MOV_CR" && random.oneIn(200);
    if ((row.lock && this.inMemory && random.oneIn(5)) || misplaced) this.prefixes.push(0xf0);
    // Order and repetition of prefixes mean nothing.
    if (this.prefixes.length > 1 && random.oneIn(4)) this.prefixes.reverse();
    if (this.prefixes.length === 1 && random.oneIn(8)) this.prefixes.push(this.prefixes[0]);
  }

  // Registers with a meaning

  /** Linear address or offset, as the code's data segment sees it, of an offset in the data window. */
  private address(offset: number): bigint {
    return BigInt.asUintN(64, BigInt(this.mode === 16 ? offset : DATA + offset) - this.segmentBase);
  }

  private setRegister(reg: number, value: bigint, size: number): void {
    const low = (1n << BigInt(size * 8)) - 1n;
    this.gpr[reg] = (this.gpr[reg] & ~low & M64) | (value & low);
    this.taken.add(reg);
  }

  private chooseStack(): void {
    const { row, random } = this;
    if (!STACK_ROWS.includes(row.mnemonic)) return;
    const at = (): number => (random.oneIn(8) ? random.between(300, 7800) : random.between(300, 7800) & ~7);
    // The stack pointer is 64 bits wide in 64-bit code, and 32 in the others: SS.B is set.
    const stack = (offset: number): bigint => BigInt(this.mode === 16 ? offset : DATA + offset);
    const top = at();
    this.gpr[RSP] = stack(top);
    this.taken.add(RSP);
    if (row.mnemonic === "ENTER" || row.mnemonic === "LEAVE") {
      this.gpr[RBP] = stack(at());
      this.taken.add(RBP);
    }
    if (row.mnemonic === "POPF") this.patch(top, BigInt(random.u32() & (ARITHMETIC_FLAGS | DF | 0x200)) | 2n, 8);
    if (row.mnemonic === "RET") this.patch(top, this.target(), 8);
    if (row.mnemonic === "POP_SREG") this.patch(top, BigInt(random.pick(SELECTORS)), 8);
    if (row.mnemonic === "RET_FAR") this.patchFrame(top, this.farTarget());
    if (row.mnemonic === "IRET") {
      const flags = (random.u32() & (ARITHMETIC_FLAGS | DF | 0x200)) | 2;
      const ss = random.oneIn(4) ? random.pick(SELECTORS) : random.pick([0x2b, 0x2b, 0xf]);
      this.patchFrame(top, [...this.farTarget(), BigInt(flags), stack(at()), BigInt(ss)]);
    }
  }

  /** A place in the code page as an instruction pointer. */
  private target(): bigint {
    const anywhere = this.random.between(64, 3900);
    const offset = anywhere >= this.instance.ip && anywhere < this.instance.ip + 15 ? anywhere + 15 : anywhere;
    return BigInt(this.mode === 16 ? offset : CODE + offset);
  }

  /** Instruction pointer and selector of a far transfer that mostly succeeds. */
  private farTarget(): readonly [bigint, bigint] {
    const { random } = this;
    let selector = random.oneIn(4) ? random.pick(SELECTORS) : random.pick([0x23, 0x33, 7]);
    // A CALL from 16-bit into 64-bit code pushes through SS on some processors and flat on others.
    if (this.row.mnemonic === "CALL_FAR" && this.mode === 16 && (selector & ~3) === 0x30) selector = 0x23;
    const offset = random.between(64, 1500);
    return [BigInt((selector & ~3) === 4 ? offset : CODE + offset), BigInt(selector)];
  }

  /** Puts values of operand size on the stack. */
  private patchFrame(offset: number, values: readonly bigint[]): void {
    const size = this.operandSize;
    let all = 0n;
    values.forEach((value, i) => {
      all |= BigInt.asUintN(size * 8, value) << BigInt(i * size * 8);
    });
    this.patch(offset, all, values.length * size);
  }

  private patch(offset: number, value: bigint, size: number): void {
    if (offset < 0 || offset + size > DATA_SIZE) return;
    this.instance.patchAt = offset;
    this.instance.patchLength = size;
    for (let i = 0; i < size; i++) this.instance.patch[i] = Number((value >> BigInt(i * 8)) & 0xffn);
  }

  private setOpcodeRegister(): void {
    const reg = this.random.below(this.registers);
    this.opcodeRegister = reg & 7;
    if (reg > 7) this.rex |= 0x41;
  }
  private opcodeRegister = 0;

  // ModRM

  private chooseModrm(operand: OperandSpec | undefined): void {
    const { row, random } = this;
    let reg = row.reg >= 0 ? row.reg : random.below(this.registers);
    if (row.operands.some((o) => o.code === "S")) {
      // FS and GS may be read; loading them would take the C library's thread storage away.
      reg = row.mnemonic === "MOV_SREG" ? random.pick([0, 1, 2, 3, 6, 7]) : random.below(6);
    }
    if (row.operands.some((o) => o.code === "C")) reg = random.pick([0, 2, 3, 4]);
    if (row.operands.some((o) => o.code === "D")) reg = random.pick([0, 1, 2, 3, 6, 7]);
    if (reg > 7) this.rex |= 0x44;
    // The register form of 0F 0D is a NOP to Intel processors and #UD to AMD's (APM 3, PREFETCH).
    const memoryOnly = row.mod === "mem" || row.encoding === "0F 0D";
    this.inMemory = operand !== undefined && (memoryOnly || (row.mod === "any" && random.oneIn(2)));
    if (!this.inMemory) {
      const rm = row.rm >= 0 ? row.rm : random.below(this.registers);
      if (rm > 7) this.rex |= 0x41;
      this.modrm = 0xc0 | ((reg & 7) << 3) | (rm & 7);
      if (operand) this.operandRegister = rm;
      this.regOperand = reg;
      return;
    }
    this.regOperand = reg;
    this.chooseAddress();
    this.encodeAddress((reg & 7) << 3);
  }
  /** General register in ModRM.rm, -1 when there is none. */
  private operandRegister = -1;
  private regOperand = 0;

  /** Where the memory operand lies. */
  private chooseAddress(): void {
    const { row, random } = this;
    const kind = random.below(64);
    let offset: number;
    if (kind < 44)
      offset = random.between(64, DATA_SIZE - 128) & (row.mnemonic === "CMPXCHG16B" && !random.oneIn(16) ? ~15 : ~0);
    else if (kind < 56) offset = 64 + (random.between(0, DATA_SIZE - 256) & ~15);
    else if (kind < 62) offset = 4096 - random.between(1, 15);
    else offset = DATA_SIZE - random.between(0, 15);
    this.place = offset;
    this.ea = this.address(offset);
    if (random.oneIn(100)) {
      this.place = -1;
      const elsewhere = [0x30000000n, 0x1fffffffn, 0x2ffffff8n, 0x0000800000000000n, 0x1234567890abcdefn];
      this.ea = random.pick(this.mode === 64 ? elsewhere : elsewhere.slice(0, 3));
    }
    if (this.place >= 0 && this.instance.patchLength === 0 && random.oneIn(2)) {
      this.patch(offset, value64(random) | (value64(random) << 64n), 16);
    }
  }

  private freeRegister(candidates: readonly number[]): number {
    const free = candidates.filter((r) => !this.taken.has(r));
    return free.length === 0 ? -1 : this.random.pick(free);
  }

  private encodeAddress(reg: number): void {
    if (this.addressSize === 2) this.encodeAddress16(reg);
    else this.encodeAddress32(reg);
  }

  private pushBytes(list: number[], value: bigint | number, size: number): void {
    let rest = BigInt.asUintN(64, BigInt(value));
    for (let i = 0; i < size; i++) {
      list.push(Number(rest & 0xffn));
      rest >>= 8n;
    }
  }

  private encodeAddress16(reg: number): void {
    const { random } = this;
    const rm = random.below(8);
    const mod = random.below(3);
    if (mod === 0 && rm === 6) {
      this.modrm = reg | 6;
      this.pushBytes(this.tail, this.ea, 2);
      return;
    }
    this.modrm = (mod << 6) | reg | rm;
    const displacement = mod === 0 ? 0 : mod === 1 ? random.between(-128, 127) : random.between(-32768, 32767);
    this.pushBytes(this.tail, displacement, mod);
    const parts = [[RBX, RSI], [RBX, RDI], [RBP, RSI], [RBP, RDI], [RSI], [RDI], [RBP], [RBX]][rm];
    let rest = this.ea - BigInt(displacement);
    if (parts.length === 2) rest -= this.gpr[parts[1]] & 0xffffn;
    const base = parts[0];
    if (parts.length === 2) this.taken.add(parts[1]);
    this.setRegister(base, rest, 2);
  }

  private encodeAddress32(reg: number): void {
    const { random, mode } = this;
    const size = this.addressSize;
    const all = Array.from({ length: this.registers }, (_, i) => i);
    const form = random.below(10);
    if (form === 0) {
      // Without registers: RIP-relative in 64-bit code, absolute elsewhere and through SIB.
      if (mode === 64 && random.oneIn(2)) {
        this.modrm = reg | 5;
        this.ripRelative = 0;
        this.pushBytes(this.tail, 0, 4);
        return;
      }
      if (BigInt.asUintN(size * 8, BigInt.asIntN(32, this.ea)) === BigInt.asUintN(size * 8, this.ea)) {
        if (mode === 64) {
          this.modrm = reg | 4;
          this.tail.push(0x25);
        } else this.modrm = reg | 5;
        this.pushBytes(this.tail, this.ea, 4);
        return;
      }
    }
    let mod = random.below(3);
    const withIndex = random.oneIn(2);
    // RSP may be the base of a stack instruction too: then the displacement does the rest.
    if (this.taken.has(RSP) && random.oneIn(3)) {
      const displacement = BigInt.asIntN(64, this.ea - this.gpr[RSP]);
      if (this.segmentBase === 0n && displacement === BigInt.asIntN(32, displacement)) {
        this.modrm = 0x80 | reg | 4;
        this.tail.push(0x24);
        this.pushBytes(this.tail, displacement, 4);
        return;
      }
    }
    const base = this.freeRegister(all);
    if (base < 0) return;
    this.taken.add(base);
    const index = withIndex ? this.freeRegister(all.filter((r) => r !== RSP)) : -1;
    let rest = this.ea;
    if ((base & 7) === 5 && mod === 0) mod = 1;
    const displacement = mod === 0 ? 0 : mod === 1 ? random.between(-128, 127) : random.u32() | 0;
    rest -= BigInt(displacement);
    const modrm = (mod << 6) | reg;
    if (index >= 0 || (base & 7) === 4) {
      const scale = random.below(4);
      const indexField = index >= 0 ? index & 7 : 4;
      this.modrm = modrm | 4;
      this.tail.push((scale << 6) | (indexField << 3) | (base & 7));
      if (index > 7) this.rex |= 0x42;
      if (index >= 0) {
        rest -= this.gpr[index] << BigInt(scale);
        this.taken.add(index);
      }
    } else this.modrm = modrm | (base & 7);
    if (base > 7) this.rex |= 0x41;
    this.pushBytes(this.tail, displacement, mod === 0 ? 0 : mod === 1 ? 1 : 4);
    this.setRegister(base, rest, size);
  }

  private chooseOffset(): void {
    this.chooseAddress();
    this.inMemory = true;
    this.pushBytes(this.immediates, this.ea, this.addressSize);
  }

  // Immediates

  private chooseImmediate(operand: OperandSpec): void {
    const { random, row, operandSize } = this;
    if (operand.code === "J") {
      const size = operand.type === "b" ? 1 : Math.min(operandSize, 4);
      const anywhere = size === 1 ? random.between(-128, 127) : random.between(-1500, 1500);
      // Not back into the instruction itself, which would never end.
      const displacement = anywhere < 0 && anywhere >= -15 ? anywhere + 15 : anywhere;
      this.pushBytes(this.immediates, displacement, size);
      return;
    }
    if (operand.code === "A") {
      const [offset, selector] = this.farTarget();
      this.pushBytes(this.immediates, offset, operandSize);
      this.pushBytes(this.immediates, selector, 2);
      return;
    }
    if (operand.code !== "I") return;
    const size =
      operand.type === "b" || operand.type === "ub"
        ? 1
        : operand.type === "uw"
          ? 2
          : operand.type === "z"
            ? Math.min(operandSize, 4)
            : operandSize;
    let value = value64(random);
    if (row.mnemonic === "ENTER") {
      value = BigInt(operand.type === "uw" ? random.below(200) : random.oneIn(2) ? 0 : random.below(64));
    } else if (row.mnemonic === "RET" || row.mnemonic === "RET_FAR") value = BigInt(random.below(200));
    else if ((row.mnemonic === "SHLD" || row.mnemonic === "SHRD") && operandSize === 2) value = this.doubleShiftCount();
    this.pushBytes(this.immediates, value, size);
  }

  /** SHLD and SHRD of 16 bits by more than 16 are undefined altogether (2B SHLD). */
  private doubleShiftCount(): bigint {
    return BigInt(this.random.below(17) + 32 * this.random.below(8));
  }

  // Strings

  private chooseString(): void {
    const { random, row } = this;
    const spec = row.operands.find((o) => o.code === "X" || o.code === "Y")!;
    const size = spec.type === "b" ? 1 : spec.type === "z" ? Math.min(this.operandSize, 4) : this.operandSize;
    const edge = random.oneIn(16);
    let source = edge ? random.pick([40, DATA_SIZE - 40]) : random.between(700, 7400);
    let destination = edge ? random.pick([40, DATA_SIZE - 40]) : random.between(700, 7400);
    if (row.repeat === "repz") {
      // A run of equal bytes with one that differs, so that the comparison stops somewhere.
      const fill = random.below(256);
      source = random.between(700, 7400);
      for (let i = 0; i < 64; i++) this.instance.patch[i] = fill;
      if (!random.oneIn(4)) this.instance.patch[random.below(64)] ^= 1 << random.below(8);
      this.instance.patchAt = source;
      this.instance.patchLength = 64;
      if (random.oneIn(2)) this.gpr[RAX] = BigInt(fill) * 0x0101010101010101n;
      const inside = (): number => source + random.below(8) * size * ((this.instance.rflags & DF) !== 0 ? 1 : 0);
      destination = random.oneIn(4) ? destination : inside();
      source = inside();
      if ((this.instance.rflags & DF) === 0 && random.oneIn(2)) destination = source + random.below(9);
    } else if (random.oneIn(4)) destination = Math.max(0, source + random.between(-20, 20));
    this.setRegister(RSI, this.address(source), this.addressSize);
    // The destination is in ES, which no prefix changes.
    this.setRegister(RDI, this.address(destination) + this.segmentBase, this.addressSize);
    // REP INS of no iterations is #GP where the port is forbidden on some processors, and nothing at all on others.
    const count = random.oneIn(6) && row.mnemonic !== "INS" && row.mnemonic !== "OUTS" ? 0 : random.between(1, 40);
    this.setRegister(RCX, BigInt(count), this.addressSize);
  }

  // What makes the mnemonic interesting

  private setOperand(value: bigint, size: number): void {
    if (!this.inMemory) {
      if (this.operandRegister >= 0 && !this.taken.has(this.operandRegister)) {
        this.setRegister(this.operandRegister, value, size);
      }
    } else if (this.place >= 0) this.patch(this.place, value, size);
  }

  private chooseMeaning(): void {
    const { row, random, gpr } = this;
    const size = row.operands.some((o) => o.code === "E" && o.type === "b") ? 1 : this.operandSize;
    switch (row.mnemonic) {
      case "JMP":
      case "CALL":
        if (row.operands[0].code === "E") this.setOperand(this.target(), 8);
        break;
      case "CALL_FAR":
      case "JMP_FAR":
        if (row.operands[0].code === "M" && this.place >= 0) {
          const [offset, selector] = this.farTarget();
          const bits = this.operandSize * 8;
          this.patch(this.place, BigInt.asUintN(bits, offset) | (selector << BigInt(bits)), this.operandSize + 2);
        }
        break;
      case "LDS":
      case "LES":
      case "LSS":
        if (this.place >= 0) {
          const pointer = value64(random) & ((1n << BigInt(this.operandSize * 8)) - 1n);
          const selector = BigInt(random.pick(SELECTORS)) << BigInt(this.operandSize * 8);
          this.patch(this.place, pointer | selector, this.operandSize + 2);
        }
        break;
      case "MOV_SREG":
      case "LAR":
      case "LSL":
      case "VERR":
      case "VERW":
        this.setOperand(BigInt(random.pick(SELECTORS)), 2);
        break;
      case "DIV":
      case "IDIV":
        this.chooseDividend(size, row.mnemonic === "IDIV");
        break;
      case "CMPXCHG":
        if (random.oneIn(2)) this.setOperand(gpr[RAX], 8);
        break;
      case "CMPXCHG8B":
      case "CMPXCHG16B": {
        const half = row.mnemonic === "CMPXCHG8B" ? 4 : 8;
        const mask = (1n << BigInt(half * 8)) - 1n;
        if (random.oneIn(2) && this.place >= 0) {
          this.patch(this.place, (gpr[RAX] & mask) | ((gpr[RDX] & mask) << BigInt(half * 8)), half * 2);
        }
        break;
      }
      case "SHLD":
      case "SHRD":
        if (row.operands[2].code === "CL" && this.operandSize === 2 && !this.taken.has(RCX)) {
          this.setRegister(RCX, this.doubleShiftCount(), 1);
        }
        break;
      case "XLAT": {
        const offset = random.between(0, DATA_SIZE - 1);
        this.setRegister(RBX, this.address(offset) - (gpr[RAX] & 0xffn), this.addressSize);
        break;
      }
      case "BOUND": {
        const bits = BigInt(this.operandSize * 8);
        const low = value64(random);
        const high = random.oneIn(2) ? low + BigInt(random.below(1000)) : value64(random);
        const mask = (1n << bits) - 1n;
        if (this.place >= 0) this.patch(this.place, (low & mask) | ((high & mask) << bits), this.operandSize * 2);
        if (random.oneIn(2) && !this.taken.has(this.regOperand)) {
          this.setRegister(this.regOperand, low + BigInt(random.below(1000)), this.operandSize);
        }
        break;
      }
      default:
        if (BIT_STRING.includes(row.mnemonic)) this.chooseBitOffset();
        else if (COUNTED_JUMPS.includes(row.mnemonic)) {
          if (random.oneIn(2)) this.setRegister(RCX, BigInt(random.below(3)), this.addressSize);
        }
    }
  }

  /** A dividend whose quotient mostly fits, so that #DE stays the exception. */
  private chooseDividend(size: number, signed: boolean): void {
    const { random } = this;
    const bits = BigInt(size * 8);
    let divisor = BigInt.asUintN(size * 8, value64(random));
    if (divisor === 0n && !random.oneIn(8)) divisor = 3n;
    this.setOperand(divisor, size);
    if (random.oneIn(6) || this.taken.has(RAX) || this.taken.has(RDX)) return;
    const quotient = value64(random);
    const d = signed ? BigInt.asIntN(size * 8, divisor) : divisor;
    const q = signed ? BigInt.asIntN(size * 8, quotient) : BigInt.asUintN(size * 8, quotient);
    const dividend = q * d + (d === 0n ? 0n : value64(random) % (d < 0n ? -d : d));
    const half = (1n << bits) - 1n;
    if (size === 1) this.setRegister(RAX, dividend, 2);
    else {
      this.setRegister(RAX, dividend & half, size);
      this.setRegister(RDX, (dividend >> bits) & half, size);
    }
  }

  /** A bit offset that leads from the operand to another place of the data window, far away if it may. */
  private chooseBitOffset(): void {
    const { random, row } = this;
    if (row.operands[1].code !== "G" || !this.inMemory || this.place < 0 || this.taken.has(this.regOperand)) return;
    let there = random.between(16, DATA_SIZE - 32);
    if (this.operandSize === 2)
      there = Math.min(DATA_SIZE - 32, Math.max(16, this.place + random.between(-4000, 4000)));
    const bit = BigInt(there - this.place) * 8n + BigInt(random.below(8));
    this.setRegister(this.regOperand, bit, this.operandSize);
  }

  // Bytes

  private assemble(): void {
    const { row, instance, mode } = this;
    const bytes = [...this.prefixes];
    if (mode === 64 && this.rex !== 0) bytes.push(this.rex);
    if (row.map !== OpcodeMap.ONE) bytes.push(0x0f);
    if (row.map === OpcodeMap.THREE_38) bytes.push(0x38);
    if (row.map === OpcodeMap.THREE_3A) bytes.push(0x3a);
    const low = row.span === 8 ? this.opcodeRegister : row.span === 16 ? this.random.below(16) : 0;
    bytes.push(row.opcode + low);
    if (this.modrm >= 0) bytes.push(this.modrm);
    const tailAt = bytes.length;
    bytes.push(...this.tail, ...this.immediates);
    // One byte too many is an instance worth having: #GP(0) (SDM 2A 2.3.11).
    if (bytes.length > 16) throw new Error(`${row.mnemonic} ${row.encoding}: ${bytes.length} bytes`);
    if (this.ripRelative >= 0) {
      const displacement = this.ea - BigInt(CODE + instance.ip + bytes.length);
      const at = tailAt + this.ripRelative;
      for (let i = 0; i < 4; i++) bytes[at + i] = Number((BigInt.asUintN(64, displacement) >> BigInt(i * 8)) & 0xffn);
    }
    instance.code.set(bytes);
    instance.length = bytes.length;
  }
}

/** Instance number `index` of a batch goes through the rows in turn; the rest is chance. */
export function generate(rows: readonly OpcodeRow[], index: number, mode: Mode, random: Random): Instance {
  return new Builder(rows[index % rows.length], mode, random).build();
}
