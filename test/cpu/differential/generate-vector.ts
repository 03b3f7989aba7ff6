/**
 * Random instances of every vector instruction in the opcode table, and of what shares their encodings: MMX, SSE, AVX, FMA,
 * BMI. Register values are drawn from those at which floating point and saturating integers change their ways.
 */
import { decode } from "../../../engine/cpu/isa/decoder";
import { newInstruction as newDecoded, OperandKind } from "../../../engine/cpu/isa/instruction";
import { type Mnemonic, OPCODES, OpcodeMap, type OpcodeRow, type OperandSpec } from "../../../engine/cpu/isa/opcodes";
import type { Random } from "../random";
import { isVector } from "./generate";
import { CODE, DATA, DATA_SIZE, type Instance, type Mode, newInstance, newVectorState } from "./instance";

/** Run by handlers, but as any program may. */
const SYSTEM_TOO: ReadonlySet<Mnemonic> = new Set<Mnemonic>(["LDMXCSR", "STMXCSR", "EMMS"]);

export function vectorRowsFor(mode: Mode): readonly OpcodeRow[] {
  return OPCODES.filter((row) => {
    if (!(isVector(row) || SYSTEM_TOO.has(row.mnemonic)) || (row.system && !SYSTEM_TOO.has(row.mnemonic))) return false;
    // Outside 64-bit mode VEX.W1 means nothing to Intel processors and #UD to AMD's (SDM 2B PEXTRD, PINSRD).
    if (row.mode === "i64" && (row.mnemonic === "PEXTRD" || row.mnemonic === "PINSRD")) return false;
    return mode === 64 ? row.mode !== "i64" : row.mode !== "o64";
  });
}

const scratch = new DataView(new ArrayBuffer(8));

// biome-ignore format: zero, one, two, three, a half, 1.5, 2.5, the largest and smallest, subnormals, infinity, quiet and signalling NaNs
const SINGLES: readonly number[] = [
  0, 0x3f800000, 0x40000000, 0x40400000, 0x3f000000, 0x3fc00000, 0x40200000, 0x7f7fffff, 0x00800000, 0x00800001, 0x007fffff,
  0x00000001, 0x00000002, 0x00400000, 0x7f800000, 0x7fc00000, 0x7fc12345, 0x7f800001, 0x7fa00000, 0x3f7fffff, 0x3f800001,
  0x4b000000, 0x4b000001, 0x4effffff, 0x4f000000, 0x4f000001, 0x5f000000, 0x5effffff, 0x33800000, 0x34000000, 0x1f800000,
  0x477fe000, 0x477ff000, 0x38800000, 0x387fc000, 0x33000000, 0x33000001,
];
// biome-ignore format: likewise
const DOUBLES: readonly bigint[] = [
  0n, 0x3ff0000000000000n, 0x4000000000000000n, 0x4008000000000000n, 0x3fe0000000000000n, 0x3ff8000000000000n,
  0x4004000000000000n, 0x7fefffffffffffffn, 0x0010000000000000n, 0x0010000000000001n, 0x000fffffffffffffn, 1n, 2n,
  0x0008000000000000n, 0x7ff0000000000000n, 0x7ff8000000000000n, 0x7ff8000012345678n, 0x7ff0000000000001n, 0x7ff4000000000000n,
  0x3fefffffffffffffn, 0x3ff0000000000001n, 0x4330000000000000n, 0x4330000000000001n, 0x41dfffffffc00000n, 0x41e0000000000000n,
  0x41dfffffffe00000n, 0x43e0000000000000n, 0x43dfffffffffffffn, 0x47efffffe0000000n, 0x47effffff0000000n, 0x3810000000000000n,
  0x36a0000000000000n, 0x369fffffffffffffn, 0x3690000000000000n, 0x380fffffe0000000n, 0x380ffffff0000000n, 0x3cb0000000000000n,
];
// biome-ignore format: likewise
const HALVES: readonly number[] = [
  0, 0x3c00, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, 0x7c01, 0x7e00, 0x7fff, 0x3555, 0x3bff,
];
const INTEGERS: readonly bigint[] = [
  0n,
  1n,
  0x7fn,
  0x80n,
  0xffn,
  0x7fffn,
  0x8000n,
  0xffffn,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x7fffffffffffffffn,
  0x8000000000000000n,
  0xffffffffffffffffn,
  0x8080808080808080n,
  0x7f7f7f7f7f7f7f7fn,
  0x8000800080008000n,
  0x7fff7fff7fff7fffn,
  0x8000000080000000n,
  0x7fffffff7fffffffn,
  0x0101010101010101n,
  0x0001000100010001n,
];

type Kind = "half" | "single" | "double" | "integer" | "text" | "mask";

function kindOf(mnemonic: string): Kind {
  if (/^PCMP[EI]STR/.test(mnemonic)) return "text";
  if (mnemonic === "VCVTPH2PS") return "half";
  if (/^CVT(T?)(PD|SD)2|^CVTSD/.test(mnemonic)) return "double";
  if (/^CVT(T?)(PS|SS)2/.test(mnemonic) || mnemonic === "VCVTPS2PH") return "single";
  if (/^(AND|ANDN|OR|XOR|BLENDV|MOV|UNPCK|SHUF|VPERM|VBROADCAST|VINSERT|VEXTRACT|CVTDQ)/.test(mnemonic))
    return "integer";
  if (/(PS|SS)$/.test(mnemonic)) return "single";
  if (/(PD|SD)$/.test(mnemonic)) return "double";
  return "integer";
}

function single(random: Random): number {
  const sign = random.oneIn(2) ? 0x80000000 : 0;
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
      return (random.pick(SINGLES) | sign) >>> 0;
    case 3:
      return random.u32();
    case 4:
      // Few significant bits near 1: sums and products that are exact, or half way.
      return (
        ((random.between(118, 136) << 23) | (random.below(16) << 19) | random.pick([0, 0, 1, 0x400000]) | sign) >>> 0
      );
    case 5:
      return (
        ((random.pick([0, 1, 2, 24, 25, 100, 126, 127, 128, 150, 230, 252, 253, 254]) << 23) |
          (random.u32() & 0x7fffff) |
          sign) >>>
        0
      );
    default: {
      // Numbers that stand between integers.
      scratch.setFloat32(0, (random.u32() | 0) / 2 ** random.below(34));
      return scratch.getUint32(0);
    }
  }
}

function double(random: Random): bigint {
  const sign = random.oneIn(2) ? 1n << 63n : 0n;
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
      return random.pick(DOUBLES) | sign;
    case 3:
      return random.u64();
    case 4:
      return (
        (BigInt(random.between(1014, 1032)) << 52n) |
        (BigInt(random.below(16)) << 48n) |
        random.pick([0n, 0n, 1n, 1n << 51n]) |
        sign
      );
    case 5: {
      const exponent = random.pick([
        0, 1, 2, 53, 54, 800, 873, 896, 1022, 1023, 1024, 1075, 1150, 1151, 1152, 2044, 2045, 2046,
      ]);
      return (BigInt(exponent) << 52n) | (random.u64() >> 12n) | sign;
    }
    default:
      scratch.setFloat64(
        0,
        (random.u32() | 0) / 2 ** random.below(34) + (random.oneIn(2) ? 0 : random.u32() * 2 ** random.below(33)),
      );
      return scratch.getBigUint64(0);
  }
}

function integer(random: Random): bigint {
  switch (random.below(4)) {
    case 0:
      return random.pick(INTEGERS);
    case 1:
      return BigInt(random.below(256)) << BigInt(random.below(57));
    default:
      return random.u64();
  }
}

/** Fills a register or memory with lanes of a kind. */
function fill(bytes: Uint8Array, kind: Kind, random: Random): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chosen: Kind = random.oneIn(8) ? random.pick(["single", "double", "integer"] as const) : kind;
  for (let at = 0; at < bytes.length; at += 8) {
    switch (chosen) {
      case "half":
        for (let i = 0; i < 8; i += 2) {
          view.setUint16(at + i, random.oneIn(2) ? random.pick(HALVES) | (random.below(2) << 15) : random.u32(), true);
        }
        break;
      case "single":
        view.setUint32(at, single(random), true);
        view.setUint32(at + 4, single(random), true);
        break;
      case "double":
        view.setBigUint64(at, double(random), true);
        break;
      case "text":
        for (let i = 0; i < 8; i++)
          bytes[at + i] = random.oneIn(12) ? 0 : 0x61 + random.below(3) + (random.oneIn(16) ? 0x80 : 0);
        break;
      default:
        view.setBigUint64(at, integer(random), true);
    }
  }
}

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RSP = 4;
const RDI = 7;

const FLAGS = 0x8d5;

class VectorBuilder {
  private readonly instance: Instance;
  private readonly state = newVectorState();
  private readonly kind: Kind;
  private readonly registers: number;
  private readonly taken = new Set<number>();
  private rex = 0;
  private modrm = 0;
  private vvvv = 0;
  private length256 = false;
  private wide = false;
  private tail: number[] = [];
  private immediates: number[] = [];
  private ripAt = -1;
  private target = 0n;
  private addressSize: 2 | 4 | 8;
  private reg = 0;
  private rm = -1;
  /** Offset of the memory operand in the data window, -1 without one. */
  private place = -1;

  constructor(
    private readonly row: OpcodeRow,
    private readonly mode: Mode,
    private readonly random: Random,
    /** Part of a program: registers and absolute addresses only, nothing that faults. */
    private readonly plain = false,
  ) {
    this.instance = newInstance(mode);
    this.instance.vector = this.state;
    this.kind = kindOf(row.mnemonic);
    this.registers = mode === 64 ? 16 : 8;
    const other = random.oneIn(12);
    if (mode === 64) this.addressSize = other ? 4 : 8;
    else this.addressSize = (mode === 16) === (other || (row.vsib && mode === 16)) ? 4 : 2;
    if (plain) this.addressSize = mode === 64 ? 8 : 4;
    if (mode === 32 && this.addressSize === 2) this.addressSize = 4;
  }

  build(): Instance {
    const { row, random, instance } = this;
    instance.ip = random.between(1600, 2400);
    instance.rflags = random.u32() & FLAGS;
    this.chooseState();
    this.length256 = row.l === "L1" || (row.vex && row.l === "any" && random.oneIn(2));
    const rexW = this.mode === 64 && random.oneIn(3);
    this.wide = row.w === "W1" || (row.w === "any" && (row.vex ? random.oneIn(3) : rexW));
    this.reg = row.reg >= 0 ? row.reg : random.below(this.uses("P") ? 8 : this.registers);
    if (this.reg > 7) this.rex |= 4;
    const hasH = row.operands.some((o) => o.code === "H" || o.code === "B");
    this.vvvv = hasH ? random.below(this.registers) : 0;
    if (row.hasModrm) this.chooseRm();
    for (const o of row.operands) {
      if (o.code === "I") this.immediates.push(this.immediate());
      if (o.code === "L") this.immediates.push((random.below(16) << 4) | random.below(16));
    }
    this.chooseMeaning();
    if (row.operands.some((o) => o.code === "DIq" || o.code === "DIdq")) this.chooseDi();
    this.assemble();
    if (this.mode !== 64) {
      for (let i = 0; i < 16; i++) instance.gpr[i] = i < 8 ? BigInt.asUintN(32, instance.gpr[i]) : 0n;
    }
    return instance;
  }

  private uses(code: string): boolean {
    return this.row.operands.some((o) => o.code === code);
  }

  // Registers

  private chooseState(): void {
    const { random, state, instance } = this;
    for (let i = 0; i < this.registers; i++) instance.gpr[i] = random.oneIn(2) ? random.u64() : integer(random);
    for (let i = 0; i < 16; i++) fill(state.ymm.subarray(i * 32, i * 32 + 32), this.kind, random);
    if (random.oneIn(4)) state.ymm.copyWithin(32, 0, 32);
    const x87 = new DataView(state.x87.buffer);
    for (let i = 0; i < 8; i++) {
      fill(state.x87.subarray(i * 16, i * 16 + 8), this.kind, random);
      x87.setUint16(i * 16 + 8, random.u32(), true);
    }
    if (random.oneIn(4)) state.fsw = random.below(8) << 11;
    state.ftw = random.oneIn(2) ? 0 : random.below(256);
    let mxcsr = 0x1f80 | (random.below(4) << 13);
    if (random.oneIn(4)) mxcsr |= 1 << 6;
    if (random.oneIn(4)) mxcsr |= 1 << 15;
    if (random.oneIn(3)) mxcsr |= random.below(64);
    if (random.oneIn(5)) mxcsr &= ~(random.below(64) << 7);
    // A flag whose exception is unmasked is a state that no program gets into.
    state.mxcsr = mxcsr & ~(~(mxcsr >> 7) & 0x3f);
  }

  private immediate(): number {
    const { random, row } = this;
    if (/^CMP[PS]/.test(row.mnemonic)) return row.vex || random.oneIn(8) ? random.below(256) : random.below(8);
    if (/^P(SLL|SRL|SRA)/.test(row.mnemonic)) return random.oneIn(8) ? random.below(256) : random.below(70);
    if (row.mnemonic === "PALIGNR") return random.below(random.oneIn(4) ? 256 : 34);
    return random.below(256);
  }

  // The ModRM operand

  private chooseRm(): void {
    const { row, random } = this;
    const operand = row.operands.find((o) => "EMWQ".includes(o.code) && o.code.length === 1);
    const approximate = /^(RCP|RSQRT)/.test(row.mnemonic);
    const memory =
      operand !== undefined && (row.mod === "mem" || (row.mod === "any" && !approximate && random.oneIn(2)));
    if (!memory) {
      const eight = row.operands.some((o) => o.code === "Q" || o.code === "N");
      this.rm = random.below(eight ? 8 : this.registers);
      if (this.rm > 7) this.rex |= 1;
      this.modrm = 0xc0 | ((this.reg & 7) << 3) | (this.rm & 7);
      if (approximate) this.noteApproximation();
      return;
    }
    this.chooseMemory(operand);
  }

  private noteApproximation(): void {
    const { row } = this;
    const packed = row.mnemonic.endsWith("PS");
    const at = this.rm * 32;
    this.instance.approximation = {
      root: row.mnemonic.startsWith("RSQRT"),
      destination: this.reg,
      lanes: !packed ? 1 : this.length256 ? 8 : 4,
      source: this.state.ymm.slice(at, at + 32),
    };
  }

  private chooseMemory(operand: OperandSpec): void {
    const { row, random, instance } = this;
    let offset = random.between(256, DATA_SIZE - 512);
    // SHA instructions demand alignment by SDM 2B; AMD processors let it pass.
    const sha = row.mnemonic.startsWith("SHA");
    if (row.align ? sha || !random.oneIn(10) : random.oneIn(3)) offset &= ~31;
    if (!row.align && random.oneIn(10)) offset = 4096 - random.between(1, 31);
    // Beyond the limit and misaligned: which of #SS and #GP it is, is not said.
    if (this.plain) offset &= ~31;
    const end = !this.plain && !sha && !(this.mode === 16 && row.align);
    if (end && random.oneIn(30)) offset = DATA_SIZE - random.between(0, 40);
    this.place = offset;
    instance.patchAt = Math.min(offset, DATA_SIZE - 32);
    instance.patchLength = 32;
    fill(instance.patch.subarray(0, 32), this.kind, random);
    if (operand.code === "E") {
      new DataView(instance.patch.buffer).setBigUint64(0, integer(random), true);
    }
    if (row.mnemonic === "LDMXCSR") {
      const value = random.oneIn(6) ? random.u32() : random.u32() & 0xffbf;
      new DataView(instance.patch.buffer).setUint32(0, value & ~0x20000, true);
    }
    this.target = BigInt(this.mode === 16 ? offset : DATA + offset);
    if (row.vsib) this.encodeVsib(operand);
    else this.encodeAddress();
  }

  private setGpr(register: number, value: bigint, size: number): void {
    const mask = (1n << BigInt(size * 8)) - 1n;
    this.instance.gpr[register] = (this.instance.gpr[register] & ~mask & ((1n << 64n) - 1n)) | (value & mask);
    this.taken.add(register);
  }

  private push(list: number[], value: bigint | number, size: number): void {
    for (let i = 0; i < size; i++) list.push(Number((BigInt.asUintN(64, BigInt(value)) >> BigInt(i * 8)) & 0xffn));
  }

  /** A general register for an address: not the one that the instruction uses for something else. */
  private baseRegister(): number {
    const { row, random } = this;
    const free = Array.from({ length: this.registers }, (_, i) => i).filter((r) => {
      if (r === RSP || this.taken.has(r)) return false;
      if (/^PCMPESTR/.test(row.mnemonic) && (r === RAX || r === RDX)) return false;
      if (row.mnemonic === "MULX" && r === RDX) return false;
      return !((this.uses("G") && r === this.reg) || (this.uses("B") && r === this.vvvv));
    });
    return random.pick(free);
  }

  private encodeAddress(): void {
    const { random, mode } = this;
    const reg = (this.reg & 7) << 3;
    if (this.addressSize === 2) {
      this.modrm = reg | 6;
      this.push(this.tail, this.target, 2);
      return;
    }
    if (this.plain || random.oneIn(8)) {
      if (!this.plain && mode === 64 && random.oneIn(2)) {
        this.modrm = reg | 5;
        this.ripAt = 0;
        this.push(this.tail, 0, 4);
      } else {
        this.modrm = reg | 4;
        this.tail.push(0x25);
        this.push(this.tail, this.target, 4);
      }
      return;
    }
    const base = this.baseRegister();
    this.taken.add(base);
    if (base > 7) this.rex |= 1;
    const displacement = random.oneIn(2) ? random.between(-128, 127) : random.u32() | 0;
    const small = displacement >= -128 && displacement <= 127;
    let rest = this.target - BigInt(displacement);
    this.modrm = (small ? 0x40 : 0x80) | reg;
    if (random.oneIn(3) || (base & 7) === 4) {
      const index = random.oneIn(2) ? this.baseRegister() : 4;
      const scale = random.below(4);
      if (index > 7) this.rex |= 2;
      if (index !== 4) {
        rest -= this.instance.gpr[index] << BigInt(scale);
        this.taken.add(index);
      }
      this.modrm |= 4;
      this.tail.push((scale << 6) | ((index & 7) << 3) | (base & 7));
    } else this.modrm |= base & 7;
    this.push(this.tail, displacement, small ? 1 : 4);
    this.setGpr(base, rest, this.addressSize);
  }

  /** A gather: an index vector whose elements lead into the window where the mask asks for them. */
  private encodeVsib(operand: OperandSpec): void {
    const { random, row, state } = this;
    const wideIndex = /(QD|QQ|QPS|QPD)$/.test(row.mnemonic);
    const element = operand.type === "d" ? 4 : 8;
    const length = this.length256 ? 32 : 16;
    let index = random.below(this.registers);
    if (!random.oneIn(40)) while (index === this.reg || index === this.vvvv) index = random.below(this.registers);
    if (!random.oneIn(40)) {
      while (this.vvvv === this.reg || this.vvvv === index) this.vvvv = random.below(this.registers);
    }
    const base = this.baseRegister();
    this.taken.add(base);
    const scale = random.below(4);
    const middle = 4096;
    const displacement = random.between(-100, 100);
    this.setGpr(base, BigInt((this.mode === 16 ? 0 : DATA) + middle - displacement), this.addressSize);
    const view = new DataView(state.ymm.buffer);
    const indexSize = wideIndex ? 8 : 4;
    const wild = random.oneIn(60);
    for (let i = 0; i < 32 / indexSize; i++) {
      const at = index * 32 + i * indexSize;
      const value = random.between(-3900, 3900) >> scale;
      if (indexSize === 8) view.setBigInt64(at, BigInt(value), true);
      else view.setInt32(at, value, true);
    }
    for (let i = 0; i < length / element; i++) {
      const at = this.vvvv * 32 + i * element + element - 1;
      state.ymm[at] = random.oneIn(2) ? state.ymm[at] | 0x80 : state.ymm[at] & 0x7f;
      // An element that is not asked for may lie anywhere.
      const where = index * 32 + i * indexSize + indexSize - 1;
      if ((wild || !(state.ymm[at] & 0x80)) && random.oneIn(4) && where < index * 32 + 32) state.ymm[where] ^= 0x40;
    }
    this.instance.gathered = [this.reg, this.vvvv];
    if (index > 7) this.rex |= 2;
    if (base > 7) this.rex |= 1;
    this.modrm = 0x40 | ((this.reg & 7) << 3) | 4;
    this.tail.push((scale << 6) | ((index & 7) << 3) | (base & 7));
    this.push(this.tail, displacement, 1);
  }

  /** MASKMOVQ and MASKMOVDQU store at DS:rDI. */
  private chooseDi(): void {
    const { random } = this;
    this.place = random.oneIn(8) ? 4096 - random.below(16) : random.between(64, DATA_SIZE - 64);
    this.setGpr(RDI, BigInt(this.mode === 16 ? this.place : DATA + this.place), this.addressSize);
  }

  private chooseMeaning(): void {
    const { row, random, instance } = this;
    const { mnemonic } = row;
    const small = (register: number): void => {
      if (register >= 0 && !this.taken.has(register)) instance.gpr[register] = BigInt(random.below(300));
    };
    if (/^PCMPESTR/.test(mnemonic)) {
      for (const register of [RAX, RDX]) {
        const value = random.oneIn(4) ? random.u64() : BigInt(random.between(-20, 20));
        instance.gpr[register] = BigInt.asUintN(64, value);
      }
    }
    if (["BEXTR", "BZHI", "SHLX", "SHRX", "SARX"].includes(mnemonic) && random.oneIn(2)) {
      small(this.vvvv);
      if (mnemonic === "BEXTR" && !this.taken.has(this.vvvv)) {
        instance.gpr[this.vvvv] = BigInt(random.below(70) | (random.below(70) << 8));
      }
    }
    if (/^P(SLL|SRL|SRA)|^VPS[LR]/.test(mnemonic) && this.rm >= 0 && random.oneIn(2)) {
      const view = new DataView(this.state.ymm.buffer);
      const size = /[DW]$/.test(mnemonic) && mnemonic.startsWith("V") ? 4 : 8;
      for (let i = 0; i < 32 / size; i++) {
        const count = random.below(72);
        if (size === 4) view.setUint32(this.rm * 32 + i * 4, count, true);
        else view.setBigUint64(this.rm * 32 + i * 8, BigInt(count), true);
      }
      new DataView(this.state.x87.buffer).setBigUint64((this.rm & 7) * 16, BigInt(random.below(70)), true);
    } else if (/^P(SLL|SRL|SRA)/.test(mnemonic) && this.place >= 0 && random.oneIn(2)) {
      new DataView(instance.patch.buffer).setBigUint64(0, BigInt(random.below(70)), true);
    }
    if (row.mnemonic === "MULX" && random.oneIn(4)) instance.gpr[RDX] = random.u64();
    if (random.oneIn(4) && !this.taken.has(RCX)) instance.gpr[RCX] = integer(random);
  }

  // Bytes

  private assemble(): void {
    const { row, random, mode, instance } = this;
    const bytes: number[] = [];
    const natural = mode === 64 ? 8 : mode === 32 ? 4 : 2;
    if (this.addressSize !== natural) bytes.push(0x67);
    if (!this.plain && random.oneIn(20))
      bytes.push(mode === 64 ? random.pick([0x26, 0x2e, 0x36, 0x3e]) : random.pick([0x36, 0x3e]));
    if (row.vex) this.vexPrefix(bytes);
    else {
      if (row.prefix === "66") bytes.push(0x66);
      if (row.prefix === "F3") bytes.push(0xf3);
      if (row.prefix === "F2") bytes.push(0xf2);
      if ((row.prefix === "F3" || row.prefix === "F2") && random.oneIn(40)) bytes.push(0x66);
      if (!this.plain && random.oneIn(300)) bytes.unshift(0xf0);
      let { rex } = this;
      if (mode === 64 && this.wide) rex |= 8;
      if (rex !== 0 || (mode === 64 && random.oneIn(10))) bytes.push(0x40 | rex);
      bytes.push(0x0f);
      if (row.map === OpcodeMap.THREE_38) bytes.push(0x38);
      if (row.map === OpcodeMap.THREE_3A) bytes.push(0x3a);
    }
    bytes.push(row.opcode);
    if (row.hasModrm) bytes.push(this.modrm);
    const tailAt = bytes.length;
    bytes.push(...this.tail, ...this.immediates);
    if (this.ripAt >= 0) {
      const displacement = BigInt.asUintN(64, this.target - BigInt(CODE + instance.ip + bytes.length));
      for (let i = 0; i < 4; i++) bytes[tailAt + i] = Number((displacement >> BigInt(i * 8)) & 0xffn);
    }
    instance.code.set(bytes);
    instance.length = bytes.length;
  }

  private vexPrefix(bytes: number[]): void {
    const { row, random, rex } = this;
    if (!this.plain && random.oneIn(300)) bytes.push(random.pick([0x66, 0xf2, 0xf3, 0xf0]));
    const pp = { NP: 0, any: 0, NFx: 0, "66": 1, F3: 2, F2: 3 }[row.prefix];
    const unused = !row.operands.some((o) => o.code === "H" || o.code === "B");
    // vvvv must be 1111b where it is not an operand.
    const vvvv = unused && !this.plain && random.oneIn(150) ? random.below(16) : this.vvvv;
    const low = ((~vvvv & 15) << 3) | (this.length256 ? 4 : 0) | pp;
    const short = row.map === OpcodeMap.TWO && !(rex & 3) && !this.wide && random.oneIn(2);
    if (short) bytes.push(0xc5, (rex & 4 ? 0 : 0x80) | low);
    else {
      const r = rex & 4 ? 0 : 0x80;
      const x = rex & 2 ? 0 : 0x40;
      const b = rex & 1 ? 0 : 0x20;
      bytes.push(0xc4, r | x | b | row.map, (this.wide ? 0x80 : 0) | low);
    }
  }
}

/** Instance number `index` of a batch goes through the rows in turn; the rest is chance. */
export function generateVector(rows: readonly OpcodeRow[], index: number, mode: Mode, random: Random): Instance {
  return new VectorBuilder(rows[index % rows.length], mode, random).build();
}

/** Register of the loop's counter: not one that programs use. */
const COUNTER = 5;
const LOOPS = 3;
const INSTRUCTIONS = 10;
const RBX = 3;

/** Not in programs: precise to 12 bits only, or dependent on more than registers and absolute addresses. */
const NOT_IN_PROGRAMS = /^(RCP|RSQRT|MASKMOV|LDMXCSR)/;

export function vectorProgramRows(mode: 32 | 64): readonly OpcodeRow[] {
  return vectorRowsFor(mode).filter((row) => !row.vsib && !NOT_IN_PROGRAMS.test(row.mnemonic));
}

/** Whether an instruction may name the loop's counter. */
function usesCounter(row: OpcodeRow, instance: Instance): boolean {
  if (!row.operands.some((o) => "GEB".includes(o.code))) return false;
  if (decode(instance.code, 0, instance.length, instance.mode, scratchInstruction) <= 0) return true;
  return scratchInstruction.operands.some((o) => o.kind === OperandKind.GPR && o.reg === COUNTER);
}

const scratchInstruction = newDecoded();

/**
 * Vector instructions that feed each other, in a loop, all exceptions masked. Flags are those of the loop's end but for CF,
 * which may be undefined.
 */
export function generateVectorProgram(rows: readonly OpcodeRow[], mode: 32 | 64, random: Random): Instance {
  let program: Instance | undefined;
  const body: number[] = [];
  for (let n = 0; n < INSTRUCTIONS; ) {
    const row = random.pick(rows);
    const next = new VectorBuilder(row, mode, random, true).build();
    if (usesCounter(row, next)) continue;
    program ??= next;
    body.push(...next.code.subarray(0, next.length));
    n++;
  }
  if (!program?.vector) throw new Error("a program without instructions");
  // mov ebp, LOOPS; body; dec ebp; jnz body
  const decrement = mode === 64 ? [0xff, 0xcd] : [0x4d];
  const code = [0xb8 | COUNTER, LOOPS, 0, 0, 0, ...body, ...decrement, 0x0f, 0x85];
  const back = -(body.length + decrement.length + 6);
  for (let i = 0; i < 4; i++) code.push((back >> (i * 8)) & 0xff);
  program.code.set(code);
  program.length = code.length;
  program.undefinedFlags = 0x8d5;
  program.vector.mxcsr = (program.vector.mxcsr & 0xe040) | 0x1f80;
  // BEXTR and its like take any number; an address is never made of a register.
  program.gpr[RBX] &= 0xffffn;
  return program;
}
