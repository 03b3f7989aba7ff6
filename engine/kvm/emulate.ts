/**
 * The instruction emulator (arch/x86/kvm/emulate.c) for what the processor cannot do in the guest: memory-mapped I/O, string
 * I/O, and guest state VMX cannot hold. Decoding is the processor's own (cpu/isa). Here are operands, memory and the integer
 * instructions; the others are in emulateString, emulateControl, emulateStack and emulateSimd.
 */
import { decode } from "../cpu/isa/decoder";
import { type Instruction, NO_REG, newInstruction, type Operand, OperandKind, RIP_BASE } from "../cpu/isa/instruction";
import { type Mnemonic, OPCODES } from "../cpu/isa/opcodes";
import { Rflags, Seg } from "../cpu/state";
import { ALU, type Alu, BITS, byteSwap, EmulFlags, SHIFTS } from "./emulateAlu";
import { CONTROL } from "./emulateControl";
import { SIMD } from "./emulateSimd";
import { STACK } from "./emulateStack";
import { isString, runString } from "./emulateString";
import { bytesOf, type EmulateResult, EmulFault, maskOf, numberOf, signed, unhandleable } from "./emulateTypes";
import { emulatorReadWrite } from "./emulatorIo";
import {
  isLongMode,
  isProtmode,
  kvmGetRflags,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRipWrite,
} from "./kvmCacheRegs";
import type { EmulateCtxtState, KvmVcpu } from "./types";
import { VcpuReg } from "./types";
import type { KvmSegment } from "./uapi";
import { ExcVector } from "./x86Events";

const U64 = (1n << 64n) - 1n;

/** Mnemonics with two memory operands: the fault's guest-physical address cannot be matched to one of them. */
const TWO_MEMORY_OPERANDS: ReadonlySet<Mnemonic> = new Set<Mnemonic>([
  "MOVS",
  "CMPS",
  "PUSH",
  "POP",
  "CALL",
  "CALL_FAR",
]);

/** Working copies of the one emulation that runs at a time; nothing stays in them. */
const insnScratch = newInstruction();
const workingRegs = new BigUint64Array(16);

/** Emulates one kind of instruction. @throws EmulFault, ioNeeded, unhandleable */
export type EmulHandler = (c: X86Emulator) => void;

export class X86Emulator extends EmulFlags {
  mnemonic: Mnemonic | "" = "";
  readonly insn: Instruction = insnScratch;
  readonly regs: BigUint64Array;
  private dirty = 0;
  /** Where a branch goes; null for the next instruction. */
  target: bigint | null = null;
  /** Interrupt shadow after the instruction, KVM_X86_SHADOW_INT_* (ctxt->interruptibility). */
  interruptibility = 0;
  /** Code is 64-bit. */
  code64: boolean;
  private readonly width: 16 | 32 | 64;

  constructor(
    readonly vcpu: KvmVcpu,
    readonly ctxt: EmulateCtxtState,
  ) {
    super();
    this.regs = workingRegs;
    const { regs } = vcpu.arch;
    for (let i = 0; i < 16; i++) this.regs[i] = regs[i];
    this.regs[VcpuReg.RSP] = kvmRegisterReadRaw(vcpu, VcpuReg.RSP);
    this.rflags = kvmGetRflags(vcpu);
    const { db, l } = vcpu.module.ops.getCsDbLBits(vcpu);
    this.code64 = isLongMode(vcpu) && l !== 0;
    const vm86 = isProtmode(vcpu) && this.flag(Rflags.VM);
    this.width = this.code64 ? 64 : db && !vm86 && isProtmode(vcpu) ? 32 : 16;
  }

  /** x86_decode_insn. @returns false when there is no such instruction */
  decode(): boolean {
    const { bytes } = this.ctxt;
    if (decode(bytes, 0, bytes.length, this.width, this.insn) < 0) return false;
    this.mnemonic = OPCODES[this.insn.opcode].mnemonic;
    return true;
  }

  /** emulator_can_use_gpa */
  get canUseGpa(): boolean {
    return this.mnemonic !== "" && !TWO_MEMORY_OPERANDS.has(this.mnemonic);
  }

  /** Linear addresses wrap at 4 GiB outside 64-bit mode. */
  truncate(linear: bigint): bigint {
    return this.code64 ? linear & U64 : linear & 0xffffffffn;
  }

  writebackRegisters(): void {
    for (let i = 0; i < 16; i++) if (this.dirty & (1 << i)) kvmRegisterWriteRaw(this.vcpu, i, this.regs[i]);
    this.dirty = 0;
  }

  writebackRip(): void {
    const next = this.target ?? this.ctxt.eip + BigInt(this.insn.length);
    kvmRipWrite(this.vcpu, this.code64 ? next & U64 : next & 0xffffffffn);
  }

  // --- registers and operands -----------------------------------------------------------------------------------------

  readReg(reg: number, size: number, high = false): bigint {
    if (high) return (this.regs[reg] >> 8n) & 0xffn;
    return this.regs[reg] & maskOf(size);
  }

  /** 32-bit results clear the upper half; 8- and 16-bit ones leave the rest alone. */
  writeReg(reg: number, size: number, value: bigint, high = false): void {
    const old = this.regs[reg];
    if (high) this.regs[reg] = (old & ~0xff00n) | ((value & 0xffn) << 8n);
    else if (size >= 4) this.regs[reg] = value & maskOf(size);
    else this.regs[reg] = (old & ~maskOf(size)) | (value & maskOf(size));
    this.dirty |= 1 << reg;
  }

  /** Index and pointer registers of string instructions change by address size. */
  addToReg(reg: number, delta: bigint): void {
    const size = this.insn.addressSize;
    this.writeReg(reg, size, this.readReg(reg, size) + delta);
  }

  get immediate(): bigint {
    const { immediate, immediateHigh } = this.insn;
    return (BigInt(immediate >>> 0) | (BigInt(immediateHigh >>> 0) << 32n)) & U64;
  }

  /** Effective address of the memory operand, before the segment base. */
  effectiveAddress(): bigint {
    const i = this.insn;
    let ea = BigInt(i.displacement >>> 0) | (BigInt(i.displacementHigh >>> 0) << 32n);
    if (i.base === RIP_BASE) ea += this.ctxt.eip + BigInt(i.length);
    else if (i.base !== NO_REG) ea += this.regs[i.base];
    if (i.index !== NO_REG) ea += this.regs[i.index] << BigInt(i.scale);
    return ea & maskOf(i.addressSize);
  }

  /** linearize: segment base, limit and type (SDM 3A 5.3, 5.4). */
  linearize(segment: number, ea: bigint, size: number, write: boolean): bigint {
    const { ops } = this.vcpu.module;
    const stack = segment === Seg.SS;
    const refuse = (): never => {
      throw new EmulFault(stack ? ExcVector.SS : ExcVector.GP, 0);
    };
    if (this.code64) {
      const base = segment === Seg.FS || segment === Seg.GS ? ops.getSegmentBase(this.vcpu, segment) : 0n;
      const linear = (base + ea) & U64;
      const bits = this.vcpu.module.host.processors[0].model.linearBits;
      if (BigInt.asUintN(64, BigInt.asIntN(bits, linear)) !== linear) refuse();
      return linear;
    }
    const s = ops.getSegment(this.vcpu, segment);
    if (isProtmode(this.vcpu) && !this.flag(Rflags.VM)) {
      if (s.unusable) refuse();
      const code = (s.type & 8) !== 0;
      if (write ? code || !(s.type & 2) : code && !(s.type & 2)) refuse();
    }
    if (!withinLimit(s, ea & 0xffffffffn, BigInt(size))) refuse();
    return (s.base + ea) & 0xffffffffn;
  }

  /** read_emulated: data of this instruction already read before a userspace exit comes from the cache. */
  readLinear(linear: bigint, size: number): bigint {
    const cache = this.ctxt.memRead;
    if (cache.pos >= cache.end) {
      const data = new Uint8Array(size);
      emulatorReadWrite(this.vcpu, this, linear, data, false);
      const grown = new Uint8Array(cache.end + size);
      grown.set(cache.data.subarray(0, cache.end));
      grown.set(data, cache.end);
      cache.data = grown;
      cache.end += size;
    }
    const value = numberOf(cache.data.subarray(cache.pos, cache.pos + size));
    cache.pos += size;
    return value;
  }

  writeLinear(linear: bigint, size: number, value: bigint): void {
    emulatorReadWrite(this.vcpu, this, linear, bytesOf(value, size), true);
  }

  memoryLinear(size: number, write: boolean, offset = 0n): bigint {
    const ea = (this.effectiveAddress() + offset) & maskOf(this.insn.addressSize);
    return this.linearize(this.insn.segment, ea, size, write);
  }

  readOperand(op: Operand): bigint {
    switch (op.kind) {
      case OperandKind.GPR:
        return this.readReg(op.reg, op.size, op.high);
      case OperandKind.IMMEDIATE:
        // Sign-extended to what it is combined with.
        return this.immediate & maskOf(Math.max(op.size, this.insn.operands[0].size));
      case OperandKind.MEMORY:
        return this.readLinear(this.memoryLinear(op.size, false), op.size);
      case OperandKind.SEGMENT:
        return BigInt(this.vcpu.module.ops.getSegment(this.vcpu, op.reg).selector);
      default:
        throw unhandleable;
    }
  }

  writeOperand(op: Operand, value: bigint): void {
    if (op.kind === OperandKind.GPR) this.writeReg(op.reg, op.size, value, op.high);
    else this.writeLinear(this.memoryLinear(op.size, true), op.size, value);
  }

  // --- execution ------------------------------------------------------------------------------------------------------

  /** x86_emulate_insn: one instruction, or one iteration of a repeated one. @throws EmulFault, ioNeeded */
  run(): EmulateResult {
    this.ctxt.memRead.pos = 0;
    if (isString(this.mnemonic)) return runString(this);
    const handler = HANDLERS.get(this.mnemonic);
    if (!handler) return "failed";
    try {
      handler(this);
    } catch (e) {
      if (e === unhandleable) return "failed";
      throw e;
    }
    return "done";
  }

  /** BT and its kin: a register bit offset may reach beyond the operand (SDM 2A, BT). */
  bitInstruction(): void {
    const m = this.mnemonic;
    const [dst, src] = this.insn.operands;
    const bits = BigInt(dst.size * 8);
    let bit = this.readOperand(src);
    let linear: bigint | null = null;
    let value: bigint;
    if (dst.kind === OperandKind.MEMORY) {
      let offset = 0n;
      if (src.kind === OperandKind.GPR) {
        const index = signed(bit, src.size);
        offset = (index >> BigInt(Math.log2(dst.size * 8))) * BigInt(dst.size);
      }
      linear = this.memoryLinear(dst.size, m !== "BT", offset);
      value = this.readLinear(linear, dst.size);
    } else {
      value = this.readOperand(dst);
    }
    bit &= bits - 1n;
    const mask = 1n << bit;
    this.setFlag(Rflags.CF, (value & mask) !== 0n);
    if (m === "BT") return;
    const r = m === "BTS" ? value | mask : m === "BTR" ? value & ~mask : value ^ mask;
    if (linear !== null) this.writeLinear(linear, dst.size, r);
    else this.writeOperand(dst, r);
  }

  /** CMPXCHG8B and CMPXCHG16B. @param size bytes of a half */
  compareExchangePair(size: 4 | 8): void {
    const linear = this.memoryLinear(size * 2, true);
    const low = this.readLinear(linear, size);
    const high = this.readLinear(linear + BigInt(size), size);
    const equal = low === this.readReg(VcpuReg.RAX, size) && high === this.readReg(VcpuReg.RDX, size);
    this.setFlag(Rflags.ZF, equal);
    if (equal) {
      const value = this.readReg(VcpuReg.RBX, size) | (this.readReg(VcpuReg.RCX, size) << BigInt(size * 8));
      this.writeLinear(linear, size * 2, value);
    } else {
      this.writeReg(VcpuReg.RAX, size, low);
      this.writeReg(VcpuReg.RDX, size, high);
    }
  }

  /** IMUL with two or three operands. */
  signedMultiply(dst: Operand, src: Operand, third: Operand): void {
    const a = third.kind === OperandKind.NONE ? this.readOperand(dst) : this.readOperand(src);
    const b = third.kind === OperandKind.NONE ? this.readOperand(src) : this.readOperand(third);
    const product = signed(a, dst.size) * signed(b, dst.size);
    const r = product & maskOf(dst.size);
    const over = signed(r, dst.size) !== product;
    this.setProductFlags(r, dst.size, over);
    this.writeReg(dst.reg, dst.size, r);
  }

  /** CF and OF tell whether the upper half counts; the others are undefined, and follow the lower half here. */
  private setProductFlags(low: bigint, size: number, over: boolean): void {
    this.setResultFlags(low, size);
    this.setFlag(Rflags.AF, false);
    this.setFlag(Rflags.CF, over);
    this.setFlag(Rflags.OF, over);
  }

  /** One-operand MUL, IMUL, DIV, IDIV with the accumulator pair. */
  multiply(m: "MUL" | "IMUL" | "DIV" | "IDIV", op: Operand): void {
    const { size } = op;
    const bits = BigInt(size * 8);
    const b = this.readOperand(op);
    const wide =
      size === 1
        ? this.readReg(VcpuReg.RAX, 2)
        : this.readReg(VcpuReg.RAX, size) | (this.readReg(VcpuReg.RDX, size) << bits);
    const putPair = (low: bigint, high: bigint) => {
      if (size === 1) {
        this.writeReg(VcpuReg.RAX, 2, (low & 0xffn) | ((high & 0xffn) << 8n));
      } else {
        this.writeReg(VcpuReg.RAX, size, low);
        this.writeReg(VcpuReg.RDX, size, high);
      }
    };
    if (m === "MUL" || m === "IMUL") {
      const a = this.readReg(VcpuReg.RAX, size);
      const product = m === "MUL" ? a * b : signed(a, size) * signed(b, size);
      const over = m === "MUL" ? product >> bits !== 0n : signed(product, size) !== product;
      this.setProductFlags(product & maskOf(size), size, over);
      putPair(product & maskOf(size), (product >> bits) & maskOf(size));
      return;
    }
    const isSigned = m === "IDIV";
    const dividend = isSigned ? BigInt.asIntN(size * 16, wide) : wide;
    const divisor = isSigned ? signed(b, size) : b;
    if (divisor === 0n) throw new EmulFault(ExcVector.DE);
    const quotient = dividend / divisor;
    const fits = isSigned ? signed(quotient, size) === quotient : quotient <= maskOf(size);
    if (!fits) throw new EmulFault(ExcVector.DE);
    putPair(quotient & maskOf(size), (dividend % divisor) & maskOf(size));
  }
}

const binary =
  (op: Alu): EmulHandler =>
  (c) => {
    const [dst, src] = c.insn.operands;
    const a = c.readOperand(dst);
    const r = c.alu(op, a, c.readOperand(src), dst.size);
    if (op !== "CMP") c.writeOperand(dst, r);
  };

const shiftOf =
  (op: string): EmulHandler =>
  (c) => {
    const [dst, src] = c.insn.operands;
    const count = Number(c.readOperand(src) & 0xffn);
    c.writeOperand(dst, c.shift(op, c.readOperand(dst), count, dst.size));
  };

const move: EmulHandler = (c) => {
  const [dst, src] = c.insn.operands;
  c.writeOperand(dst, c.readOperand(src));
};

const moveSigned: EmulHandler = (c) => {
  const [dst, src] = c.insn.operands;
  c.writeOperand(dst, signed(c.readOperand(src), src.size) & maskOf(dst.size));
};

const step =
  (op: "ADD" | "SUB"): EmulHandler =>
  (c) => {
    const [dst] = c.insn.operands;
    const carry = c.flag(Rflags.CF);
    const r = c.alu(op, c.readOperand(dst), 1n, dst.size);
    c.setFlag(Rflags.CF, carry);
    c.writeOperand(dst, r);
  };

const doubleShift =
  (m: "SHLD" | "SHRD"): EmulHandler =>
  (c) => {
    const [dst, src, third] = c.insn.operands;
    const a = c.readOperand(dst);
    const r = c.doubleShift(m, a, c.readOperand(src), Number(c.readOperand(third) & 0xffn), dst.size);
    c.writeOperand(dst, r);
  };

const scan =
  (m: "BSF" | "BSR" | "TZCNT" | "LZCNT" | "POPCNT"): EmulHandler =>
  (c) => {
    const [dst, src] = c.insn.operands;
    const r = c.bitScan(m, c.readOperand(src), dst.size);
    if (r !== null) c.writeReg(dst.reg, dst.size, r);
  };

const wideMultiply =
  (m: "MUL" | "DIV" | "IDIV"): EmulHandler =>
  (c) =>
    c.multiply(m, c.insn.operands[0]);

const decimal: EmulHandler = (c) => {
  const ax = c.decimal(c.mnemonic, Number(c.readReg(VcpuReg.RAX, 2)), c.insn.immediate & 0xff);
  if (ax === null) throw new EmulFault(ExcVector.DE);
  c.writeReg(VcpuReg.RAX, 2, BigInt(ax));
};

const setFlagTo =
  (flag: number, on: boolean): EmulHandler =>
  (c) =>
    c.setFlag(flag, on);
const nothing: EmulHandler = () => {};

/** Integer instructions without a family of their own. */
// biome-ignore format: a table of short handlers
const INTEGER: Readonly<Record<string, EmulHandler>> = {
  MOV: move, MOVNTI: move, MOVZX: move, MOVSX: moveSigned, MOVSXD: moveSigned,
  MOVBE: (c) => {
    const [dst, src] = c.insn.operands;
    c.writeOperand(dst, byteSwap(c.readOperand(src), dst.size));
  },
  BSWAP: (c) => {
    const [dst] = c.insn.operands;
    c.writeOperand(dst, byteSwap(c.readOperand(dst), dst.size));
  },
  LEA: (c) => c.writeReg(c.insn.operands[0].reg, c.insn.operands[0].size, c.effectiveAddress()),
  XCHG: (c) => {
    const [dst, src] = c.insn.operands;
    const a = c.readOperand(dst);
    const b = c.readOperand(src);
    c.writeOperand(dst, b);
    c.writeOperand(src, a);
  },
  XADD: (c) => {
    const [dst, src] = c.insn.operands;
    const a = c.readOperand(dst);
    const sum = c.alu("ADD", a, c.readOperand(src), dst.size);
    if (dst.kind === OperandKind.GPR) c.writeOperand(src, a);
    c.writeOperand(dst, sum);
    if (dst.kind !== OperandKind.GPR) c.writeOperand(src, a);
  },
  CMPXCHG: (c) => {
    const [dst, src] = c.insn.operands;
    const old = c.readOperand(dst);
    const accumulator = c.readReg(VcpuReg.RAX, dst.size);
    c.alu("CMP", accumulator, old, dst.size);
    const equal = accumulator === old;
    c.writeOperand(dst, equal ? c.readOperand(src) : old);
    if (!equal) c.writeReg(VcpuReg.RAX, dst.size, old);
  },
  CMPXCHG8B: (c) => c.compareExchangePair(4),
  CMPXCHG16B: (c) => c.compareExchangePair(8),
  TEST: (c) => {
    const [dst, src] = c.insn.operands;
    c.alu("AND", c.readOperand(dst), c.readOperand(src), dst.size);
  },
  NOT: (c) => {
    const [dst] = c.insn.operands;
    c.writeOperand(dst, ~c.readOperand(dst) & maskOf(dst.size));
  },
  NEG: (c) => {
    const [dst] = c.insn.operands;
    c.writeOperand(dst, c.alu("SUB", 0n, c.readOperand(dst), dst.size));
  },
  INC: step("ADD"), DEC: step("SUB"), SHLD: doubleShift("SHLD"), SHRD: doubleShift("SHRD"),
  IMUL: (c) => {
    const [dst, src, third] = c.insn.operands;
    if (src.kind === OperandKind.NONE) c.multiply("IMUL", dst);
    else c.signedMultiply(dst, src, third);
  },
  MUL: wideMultiply("MUL"), DIV: wideMultiply("DIV"), IDIV: wideMultiply("IDIV"),
  SETCC: (c) => c.writeOperand(c.insn.operands[0], c.condition(c.insn.condition) ? 1n : 0n),
  CMOVCC: (c) => {
    const [dst, src] = c.insn.operands;
    const value = c.readOperand(src);
    c.writeReg(dst.reg, dst.size, c.condition(c.insn.condition) ? value : c.readReg(dst.reg, dst.size));
  },
  BSF: scan("BSF"), BSR: scan("BSR"), TZCNT: scan("TZCNT"), LZCNT: scan("LZCNT"), POPCNT: scan("POPCNT"),
  CBW: (c) => {
    const size = c.insn.operandSize;
    c.writeReg(VcpuReg.RAX, size, signed(c.readReg(VcpuReg.RAX, size / 2), size / 2) & maskOf(size));
  },
  CWD: (c) => {
    const size = c.insn.operandSize;
    c.writeReg(VcpuReg.RDX, size, signed(c.readReg(VcpuReg.RAX, size), size) < 0n ? maskOf(size) : 0n);
  },
  DAA: decimal, DAS: decimal, AAA: decimal, AAS: decimal, AAM: decimal, AAD: decimal,
  SALC: (c) => c.writeReg(VcpuReg.RAX, 1, c.flag(Rflags.CF) ? 0xffn : 0n),
  XLAT: (c) => {
    const { addressSize, segment } = c.insn;
    const ea = (c.readReg(VcpuReg.RBX, addressSize) + c.readReg(VcpuReg.RAX, 1)) & maskOf(addressSize);
    c.writeReg(VcpuReg.RAX, 1, c.readLinear(c.linearize(segment, ea, 1, false), 1));
  },
  LAHF: (c) => c.writeReg(VcpuReg.RAX, 1, (c.rflags & 0xd5n) | 2n, true),
  SAHF: (c) => {
    c.rflags = (c.rflags & ~0xd5n) | (c.readReg(VcpuReg.RAX, 1, true) & 0xd5n);
  },
  CMC: (c) => c.setFlag(Rflags.CF, !c.flag(Rflags.CF)),
  CLC: setFlagTo(Rflags.CF, false), STC: setFlagTo(Rflags.CF, true),
  CLD: setFlagTo(Rflags.DF, false), STD: setFlagTo(Rflags.DF, true),
  NOP: nothing, PAUSE: nothing, PREFETCHW: nothing, PREFETCHNTA: nothing, PREFETCHT0: nothing, PREFETCHT1: nothing, PREFETCHT2: nothing,
  CLFLUSH: nothing, CLFLUSHOPT: nothing, CLWB: nothing, LFENCE: nothing, MFENCE: nothing, SFENCE: nothing,
  ENDBR64: nothing, ENDBR32: nothing,
};

/** The opcode tables of emulate.c: what is emulated, by mnemonic. */
const HANDLERS: ReadonlyMap<string, EmulHandler> = new Map([
  ...[...ALU].map((m): [string, EmulHandler] => [m, binary(m as Alu)]),
  ...[...SHIFTS].map((m): [string, EmulHandler] => [m, shiftOf(m)]),
  ...[...BITS].map((m): [string, EmulHandler] => [m, (c) => c.bitInstruction()]),
  ...Object.entries({ ...INTEGER, ...STACK, ...CONTROL, ...SIMD }),
]);

/** Whether [ea, ea + size) lies inside the segment; expand-down data segments have their limit at the bottom. */
function withinLimit(s: KvmSegment, ea: bigint, size: bigint): boolean {
  const limit = BigInt(s.limit >>> 0);
  const last = ea + size - 1n;
  const expandDown = (s.type & 0xc) === 4 && s.s !== 0;
  if (!expandDown) return last <= limit;
  const top = s.db ? 0xffffffffn : 0xffffn;
  return ea > limit && last <= top;
}
