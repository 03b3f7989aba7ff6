/**
 * The instruction emulator (arch/x86/kvm/emulate.c) for what the processor cannot do in the guest: memory-mapped I/O, string
 * I/O, and accesses to the APIC page. Decoding is the processor's own (cpu/isa); here are the semantics of the integer
 * instructions that may have a memory operand.
 */
import { decode } from "../cpu/isa/decoder";
import {
  type Instruction,
  NO_REG,
  newInstruction,
  type Operand,
  OperandKind,
  Rep,
  RIP_BASE,
} from "../cpu/isa/instruction";
import { type Mnemonic, OPCODES } from "../cpu/isa/opcodes";
import { Rflags, Seg } from "../cpu/state";
import { completeEmulatorPioIn, emulatorPioIn, emulatorPioOut, emulatorReadWrite } from "./emulator";
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

/** An exception of the emulated instruction (ctxt->exception). */
export class EmulFault {
  constructor(
    readonly vector: number,
    readonly errorCode?: number,
    readonly address = 0n,
  ) {}
}

/** Userspace must serve a read first (X86EMUL_IO_NEEDED). */
export const ioNeeded = Symbol("X86EMUL_IO_NEEDED");

/**
 * How an emulation step ended: the instruction is done; one iteration is done and the next can follow at once ("restart");
 * the guest is to be entered at the same RIP ("again"); userspace must serve a read; the instruction is not emulated.
 */
export type EmulateResult = "done" | "restart" | "again" | "io-needed" | "failed";

const U64 = (1n << 64n) - 1n;
const maskOf = (size: number): bigint => (1n << BigInt(size * 8)) - 1n;
const signOf = (size: number): bigint => 1n << BigInt(size * 8 - 1);
const signed = (value: bigint, size: number): bigint => BigInt.asIntN(size * 8, value);

/** Mnemonics with two memory operands: the fault's guest-physical address cannot be matched to one of them. */
const TWO_MEMORY_OPERANDS: ReadonlySet<Mnemonic> = new Set<Mnemonic>(["MOVS", "CMPS", "PUSH", "POP"]);
const STRINGS: ReadonlySet<Mnemonic> = new Set<Mnemonic>(["MOVS", "STOS", "LODS", "CMPS", "SCAS", "INS", "OUTS"]);
/** Bytes read ahead by a string IN (struct read_cache). */
const READ_CACHE = 1024;
/** Iterations of a repeated string instruction between two entries of the guest. */
const RESTART_MASK = 0x3ffn;

/** Working copies of the one emulation that runs at a time; nothing stays in them. */
const insnScratch = newInstruction();
const workingRegs = new BigUint64Array(16);

type Alu = "ADD" | "OR" | "ADC" | "SBB" | "AND" | "SUB" | "XOR" | "CMP";
const ALU: ReadonlySet<string> = new Set(["ADD", "OR", "ADC", "SBB", "AND", "SUB", "XOR", "CMP"]);
const SHIFTS: ReadonlySet<string> = new Set(["ROL", "ROR", "RCL", "RCR", "SHL", "SHR", "SAR"]);
const BITS: ReadonlySet<string> = new Set(["BT", "BTS", "BTR", "BTC"]);

export class X86Emulator {
  rflags: bigint;
  mnemonic: Mnemonic | "" = "";
  private insn: Instruction = insnScratch;
  private readonly regs: BigUint64Array;
  private dirty = 0;
  /** Where a branch goes; null for the next instruction. */
  private target: bigint | null = null;
  private readonly long: boolean;
  private readonly code64: boolean;
  private readonly width: 16 | 32 | 64;

  constructor(
    private readonly vcpu: KvmVcpu,
    readonly ctxt: EmulateCtxtState,
  ) {
    this.regs = workingRegs;
    const { regs } = vcpu.arch;
    for (let i = 0; i < 16; i++) this.regs[i] = regs[i];
    this.regs[VcpuReg.RSP] = kvmRegisterReadRaw(vcpu, VcpuReg.RSP);
    this.rflags = kvmGetRflags(vcpu);
    const { db, l } = vcpu.module.ops.getCsDbLBits(vcpu);
    this.long = isLongMode(vcpu);
    this.code64 = this.long && l !== 0;
    this.width = this.code64 ? 64 : db ? 32 : 16;
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

  private readReg(reg: number, size: number, high = false): bigint {
    if (high) return (this.regs[reg] >> 8n) & 0xffn;
    return this.regs[reg] & maskOf(size);
  }

  /** 32-bit results clear the upper half; 8- and 16-bit ones leave the rest alone. */
  private writeReg(reg: number, size: number, value: bigint, high = false): void {
    const old = this.regs[reg];
    if (high) this.regs[reg] = (old & ~0xff00n) | ((value & 0xffn) << 8n);
    else if (size >= 4) this.regs[reg] = value & maskOf(size);
    else this.regs[reg] = (old & ~maskOf(size)) | (value & maskOf(size));
    this.dirty |= 1 << reg;
  }

  /** Index and pointer registers of string instructions change by address size. */
  private addToReg(reg: number, delta: bigint): void {
    const size = this.insn.addressSize;
    this.writeReg(reg, size, this.readReg(reg, size) + delta);
  }

  private get immediate(): bigint {
    const { immediate, immediateHigh } = this.insn;
    return (BigInt(immediate >>> 0) | (BigInt(immediateHigh >>> 0) << 32n)) & U64;
  }

  /** Effective address of the memory operand, before the segment base. */
  private effectiveAddress(): bigint {
    const i = this.insn;
    let ea = BigInt(i.displacement >>> 0) | (BigInt(i.displacementHigh >>> 0) << 32n);
    if (i.base === RIP_BASE) ea += this.ctxt.eip + BigInt(i.length);
    else if (i.base !== NO_REG) ea += this.regs[i.base];
    if (i.index !== NO_REG) ea += this.regs[i.index] << BigInt(i.scale);
    return ea & maskOf(i.addressSize);
  }

  /** linearize: segment base, limit and type (SDM 3A 5.3, 5.4). */
  private linearize(segment: number, ea: bigint, size: number, write: boolean): bigint {
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
    if (isProtmode(this.vcpu) && !(this.rflags & 0x20000n)) {
      if (s.unusable) refuse();
      const code = (s.type & 8) !== 0;
      if (write ? code || !(s.type & 2) : code && !(s.type & 2)) refuse();
    }
    if (!withinLimit(s, ea & 0xffffffffn, BigInt(size))) refuse();
    return (s.base + ea) & 0xffffffffn;
  }

  /** read_emulated: data of this instruction already read before a userspace exit comes from the cache. */
  private readLinear(linear: bigint, size: number): bigint {
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
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(cache.data[cache.pos + i]);
    cache.pos += size;
    return value;
  }

  private writeLinear(linear: bigint, size: number, value: bigint): void {
    const data = new Uint8Array(size);
    let v = value;
    for (let i = 0; i < size; i++) {
      data[i] = Number(v & 0xffn);
      v >>= 8n;
    }
    emulatorReadWrite(this.vcpu, this, linear, data, true);
  }

  private memoryLinear(size: number, write: boolean, offset = 0n): bigint {
    const ea = (this.effectiveAddress() + offset) & maskOf(this.insn.addressSize);
    return this.linearize(this.insn.segment, ea, size, write);
  }

  private readOperand(op: Operand): bigint {
    switch (op.kind) {
      case OperandKind.GPR:
        return this.readReg(op.reg, op.size, op.high);
      case OperandKind.IMMEDIATE:
        return this.immediate & maskOf(Math.max(op.size, 1));
      case OperandKind.MEMORY:
        return this.readLinear(this.memoryLinear(op.size, false), op.size);
      case OperandKind.SEGMENT:
        return BigInt(this.vcpu.module.ops.getSegment(this.vcpu, op.reg).selector);
      default:
        throw new EmulFault(ExcVector.UD);
    }
  }

  private writeOperand(op: Operand, value: bigint): void {
    if (op.kind === OperandKind.GPR) this.writeReg(op.reg, op.size, value, op.high);
    else this.writeLinear(this.memoryLinear(op.size, true), op.size, value);
  }

  // --- flags ----------------------------------------------------------------------------------------------------------

  private setFlag(flag: number, on: boolean): void {
    this.rflags = on ? this.rflags | BigInt(flag) : this.rflags & ~BigInt(flag);
  }
  private flag(flag: number): boolean {
    return (this.rflags & BigInt(flag)) !== 0n;
  }

  /** SF, ZF and PF of a result. */
  private setResultFlags(result: bigint, size: number): void {
    const r = result & maskOf(size);
    this.setFlag(Rflags.ZF, r === 0n);
    this.setFlag(Rflags.SF, (r & signOf(size)) !== 0n);
    let low = Number(r & 0xffn);
    low ^= low >> 4;
    low ^= low >> 2;
    low ^= low >> 1;
    this.setFlag(Rflags.PF, (low & 1) === 0);
  }

  /** The eight operations of the first opcode rows. @returns the result, cut to size */
  private alu(op: Alu, a: bigint, b: bigint, size: number): bigint {
    const mask = maskOf(size);
    const carry = this.flag(Rflags.CF) ? 1n : 0n;
    let r: bigint;
    switch (op) {
      case "ADD":
      case "ADC": {
        const sum = a + b + (op === "ADC" ? carry : 0n);
        r = sum & mask;
        this.setFlag(Rflags.CF, sum > mask);
        this.setFlag(Rflags.OF, ((a ^ r) & (b ^ r) & signOf(size)) !== 0n);
        this.setFlag(Rflags.AF, ((a ^ b ^ r) & 0x10n) !== 0n);
        break;
      }
      case "SUB":
      case "SBB":
      case "CMP": {
        const difference = a - b - (op === "SBB" ? carry : 0n);
        r = difference & mask;
        this.setFlag(Rflags.CF, difference < 0n);
        this.setFlag(Rflags.OF, ((a ^ b) & (a ^ r) & signOf(size)) !== 0n);
        this.setFlag(Rflags.AF, ((a ^ b ^ r) & 0x10n) !== 0n);
        break;
      }
      default:
        r = op === "AND" ? a & b : op === "OR" ? a | b : a ^ b;
        this.setFlag(Rflags.CF, false);
        this.setFlag(Rflags.OF, false);
        this.setFlag(Rflags.AF, false);
    }
    this.setResultFlags(r, size);
    return r;
  }

  /** Shifts and rotates (SDM 2B: RCL/RCR/ROL/ROR, SAL/SAR/SHL/SHR). */
  private shift(op: string, value: bigint, rawCount: number, size: number): bigint {
    const bits = size * 8;
    const mask = maskOf(size);
    let count = rawCount & (size === 8 ? 63 : 31);
    if (count === 0) return value;
    const top = (v: bigint) => (v & signOf(size)) !== 0n;
    let r = value;
    switch (op) {
      case "SHL":
        this.setFlag(Rflags.CF, count <= bits && ((value >> BigInt(bits - count)) & 1n) !== 0n);
        r = (value << BigInt(count)) & mask;
        this.setFlag(Rflags.OF, top(r) !== this.flag(Rflags.CF));
        break;
      case "SHR":
        this.setFlag(Rflags.CF, ((value >> BigInt(count - 1)) & 1n) !== 0n);
        this.setFlag(Rflags.OF, top(value));
        r = value >> BigInt(count);
        break;
      case "SAR": {
        const s = signed(value, size);
        this.setFlag(Rflags.CF, ((s >> BigInt(count - 1)) & 1n) !== 0n);
        this.setFlag(Rflags.OF, false);
        r = (s >> BigInt(count)) & mask;
        break;
      }
      case "ROL":
        count %= bits;
        r = ((value << BigInt(count)) | (value >> BigInt(bits - count))) & mask;
        this.setFlag(Rflags.CF, (r & 1n) !== 0n);
        this.setFlag(Rflags.OF, top(r) !== this.flag(Rflags.CF));
        return r;
      case "ROR":
        count %= bits;
        r = ((value >> BigInt(count)) | (value << BigInt(bits - count))) & mask;
        this.setFlag(Rflags.CF, top(r));
        this.setFlag(Rflags.OF, top(r) !== ((r & (signOf(size) >> 1n)) !== 0n));
        return r;
      default: {
        // RCL and RCR go through CF: one bit at a time.
        for (let i = count % (bits + 1); i > 0; i--) {
          const carry = this.flag(Rflags.CF) ? 1n : 0n;
          if (op === "RCL") {
            this.setFlag(Rflags.CF, top(r));
            r = ((r << 1n) | carry) & mask;
          } else {
            this.setFlag(Rflags.CF, (r & 1n) !== 0n);
            r = (r >> 1n) | (carry << BigInt(bits - 1));
          }
        }
        const second = (r & (signOf(size) >> 1n)) !== 0n;
        this.setFlag(Rflags.OF, top(r) !== (op === "RCL" ? this.flag(Rflags.CF) : second));
        return r;
      }
    }
    this.setResultFlags(r, size);
    return r;
  }

  /** Condition code of Jcc, SETcc, CMOVcc (SDM 1 appendix B). */
  private condition(code: number): boolean {
    const f = (flag: number) => this.flag(flag);
    let met: boolean;
    switch (code >> 1) {
      case 0:
        met = f(Rflags.OF);
        break;
      case 1:
        met = f(Rflags.CF);
        break;
      case 2:
        met = f(Rflags.ZF);
        break;
      case 3:
        met = f(Rflags.CF) || f(Rflags.ZF);
        break;
      case 4:
        met = f(Rflags.SF);
        break;
      case 5:
        met = f(Rflags.PF);
        break;
      case 6:
        met = f(Rflags.SF) !== f(Rflags.OF);
        break;
      default:
        met = f(Rflags.ZF) || f(Rflags.SF) !== f(Rflags.OF);
    }
    return code & 1 ? !met : met;
  }

  // --- execution ------------------------------------------------------------------------------------------------------

  /** x86_emulate_insn: one instruction, or one iteration of a repeated one. @throws EmulFault, ioNeeded */
  run(): EmulateResult {
    this.ctxt.memRead.pos = 0;
    if (this.mnemonic !== "" && STRINGS.has(this.mnemonic)) return this.runString();
    return this.runPlain() ? "done" : "failed";
  }

  /** @returns false when the instruction is not one that is emulated */
  private runPlain(): boolean {
    const m = this.mnemonic;
    const [dst, src, third] = this.insn.operands;
    if (ALU.has(m)) {
      const a = this.readOperand(dst);
      const r = this.alu(m as Alu, a, this.readOperand(src), dst.size);
      if (m !== "CMP") this.writeOperand(dst, r);
      return true;
    }
    if (SHIFTS.has(m)) {
      const count = Number(this.readOperand(src) & 0xffn);
      this.writeOperand(dst, this.shift(m, this.readOperand(dst), count, dst.size));
      return true;
    }
    if (BITS.has(m)) {
      this.bitInstruction(m, dst, src);
      return true;
    }
    switch (m) {
      case "MOV":
      case "MOVNTI":
        this.writeOperand(dst, this.readOperand(src));
        return true;
      case "MOVZX":
        this.writeOperand(dst, this.readOperand(src));
        return true;
      case "MOVSX":
      case "MOVSXD":
        this.writeOperand(dst, signed(this.readOperand(src), src.size) & maskOf(dst.size));
        return true;
      case "MOVBE":
        this.writeOperand(dst, byteSwap(this.readOperand(src), dst.size));
        return true;
      case "XCHG": {
        const a = this.readOperand(dst);
        const b = this.readOperand(src);
        this.writeOperand(dst, b);
        this.writeOperand(src, a);
        return true;
      }
      case "XADD": {
        const a = this.readOperand(dst);
        const b = this.readOperand(src);
        const sum = this.alu("ADD", a, b, dst.size);
        this.writeOperand(dst, sum);
        this.writeOperand(src, a);
        return true;
      }
      case "CMPXCHG": {
        const old = this.readOperand(dst);
        const accumulator = this.readReg(VcpuReg.RAX, dst.size);
        this.alu("CMP", accumulator, old, dst.size);
        const equal = accumulator === old;
        this.writeOperand(dst, equal ? this.readOperand(src) : old);
        if (!equal) this.writeReg(VcpuReg.RAX, dst.size, old);
        return true;
      }
      case "CMPXCHG8B":
      case "CMPXCHG16B":
        this.compareExchangePair(m === "CMPXCHG8B" ? 4 : 8);
        return true;
      case "TEST":
        this.alu("AND", this.readOperand(dst), this.readOperand(src), dst.size);
        return true;
      case "NOT":
        this.writeOperand(dst, ~this.readOperand(dst) & maskOf(dst.size));
        return true;
      case "NEG": {
        const a = this.readOperand(dst);
        this.writeOperand(dst, this.alu("SUB", 0n, a, dst.size));
        return true;
      }
      case "INC":
      case "DEC": {
        const carry = this.flag(Rflags.CF);
        const r = this.alu(m === "INC" ? "ADD" : "SUB", this.readOperand(dst), 1n, dst.size);
        this.setFlag(Rflags.CF, carry);
        this.writeOperand(dst, r);
        return true;
      }
      case "SHLD":
      case "SHRD":
        this.doubleShift(m, dst, src, Number(this.readOperand(third) & 0xffn));
        return true;
      case "IMUL":
        if (dst.kind !== OperandKind.GPR || src.kind === OperandKind.NONE) return this.multiply(m, dst);
        this.signedMultiply(dst, src, third);
        return true;
      case "MUL":
      case "DIV":
      case "IDIV":
        return this.multiply(m, dst);
      case "SETCC":
        this.writeOperand(dst, this.condition(this.insn.condition) ? 1n : 0n);
        return true;
      case "CMOVCC": {
        const value = this.readOperand(src);
        this.writeReg(dst.reg, dst.size, this.condition(this.insn.condition) ? value : this.readReg(dst.reg, dst.size));
        return true;
      }
      case "BSF":
      case "BSR":
      case "TZCNT":
      case "LZCNT":
      case "POPCNT":
        this.bitScan(m, dst, src);
        return true;
      case "PUSH":
        return this.push(dst);
      case "POP":
        return this.pop(dst);
      case "CALL":
      case "JMP": {
        const next = this.ctxt.eip + BigInt(this.insn.length);
        const target = dst.kind === OperandKind.RELATIVE ? next + this.immediate : this.readOperand(dst);
        if (m === "CALL") this.pushValue(next);
        this.target = target & maskOf(this.insn.operandSize);
        return true;
      }
      case "RET": {
        const target = this.popValue();
        if (dst.kind === OperandKind.IMMEDIATE) this.moveStack(this.immediate);
        this.target = target;
        return true;
      }
      case "PUSHF":
        this.pushValue(this.rflags & ~BigInt(Rflags.VM | Rflags.RF));
        return true;
      case "PUSHA": {
        const rsp = this.regs[VcpuReg.RSP];
        for (let i = 0; i < 8; i++) this.pushValue(i === VcpuReg.RSP ? rsp : this.regs[i]);
        return true;
      }
      case "POPA":
        for (let i = 7; i >= 0; i--) {
          const value = this.popValue();
          if (i !== VcpuReg.RSP) this.writeReg(i, this.insn.operandSize, value);
        }
        return true;
      case "XLAT": {
        const ea =
          (this.readReg(VcpuReg.RBX, this.insn.addressSize) + this.readReg(VcpuReg.RAX, 1)) &
          maskOf(this.insn.addressSize);
        this.writeReg(VcpuReg.RAX, 1, this.readLinear(this.linearize(this.insn.segment, ea, 1, false), 1));
        return true;
      }
      case "NOP":
      case "PREFETCHW":
      case "PREFETCHNTA":
      case "PREFETCHT0":
      case "PREFETCHT1":
      case "PREFETCHT2":
      case "CLFLUSH":
      case "CLFLUSHOPT":
      case "CLWB":
        return true;
      case "IN":
      case "OUT":
        return this.portInstruction(m);
      default:
        return false;
    }
  }

  /** BT and its kin: a register bit offset may reach beyond the operand (SDM 2A, BT). */
  private bitInstruction(m: string, dst: Operand, src: Operand): void {
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

  private compareExchangePair(size: 4 | 8): void {
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

  private doubleShift(m: "SHLD" | "SHRD", dst: Operand, src: Operand, rawCount: number): void {
    const { size } = dst;
    const bits = size * 8;
    const count = rawCount & (size === 8 ? 63 : 31);
    const a = this.readOperand(dst);
    if (count === 0 || count > bits) return;
    const b = this.readOperand(src);
    const n = BigInt(count);
    const rest = BigInt(bits - count);
    const r = m === "SHLD" ? ((a << n) | (b >> rest)) & maskOf(size) : ((a >> n) | (b << rest)) & maskOf(size);
    this.setFlag(Rflags.CF, ((m === "SHLD" ? a >> rest : a >> (n - 1n)) & 1n) !== 0n);
    this.setFlag(Rflags.OF, ((a ^ r) & signOf(size)) !== 0n);
    this.setResultFlags(r, size);
    this.writeOperand(dst, r);
  }

  /** IMUL with two or three operands. */
  private signedMultiply(dst: Operand, src: Operand, third: Operand): void {
    const a = third.kind === OperandKind.NONE ? this.readOperand(dst) : this.readOperand(src);
    const b = third.kind === OperandKind.NONE ? this.readOperand(src) : this.readOperand(third);
    const product = signed(a, dst.size) * signed(b, dst.size);
    const r = product & maskOf(dst.size);
    const over = signed(r, dst.size) !== product;
    this.setFlag(Rflags.CF, over);
    this.setFlag(Rflags.OF, over);
    this.writeReg(dst.reg, dst.size, r);
  }

  /** One-operand MUL, IMUL, DIV, IDIV with the accumulator pair. */
  private multiply(m: "MUL" | "IMUL" | "DIV" | "IDIV", op: Operand): boolean {
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
      this.setFlag(Rflags.CF, over);
      this.setFlag(Rflags.OF, over);
      putPair(product & maskOf(size), (product >> bits) & maskOf(size));
      return true;
    }
    const isSigned = m === "IDIV";
    const dividend = isSigned ? BigInt.asIntN(size * 16, wide) : wide;
    const divisor = isSigned ? signed(b, size) : b;
    if (divisor === 0n) throw new EmulFault(ExcVector.DE);
    const quotient = dividend / divisor;
    const fits = isSigned ? signed(quotient, size) === quotient : quotient <= maskOf(size);
    if (!fits) throw new EmulFault(ExcVector.DE);
    putPair(quotient & maskOf(size), (dividend % divisor) & maskOf(size));
    return true;
  }

  private bitScan(m: "BSF" | "BSR" | "TZCNT" | "LZCNT" | "POPCNT", dst: Operand, src: Operand): void {
    const value = this.readOperand(src);
    const text = value.toString(2);
    const bits = dst.size * 8;
    const lowest = value === 0n ? bits : text.length - 1 - text.lastIndexOf("1");
    const highest = text.length - 1;
    if (m === "POPCNT") {
      const ones = text.split("1").length - 1;
      for (const flag of [Rflags.CF, Rflags.OF, Rflags.SF, Rflags.AF, Rflags.PF]) this.setFlag(flag, false);
      this.setFlag(Rflags.ZF, value === 0n);
      this.writeReg(dst.reg, dst.size, BigInt(ones));
      return;
    }
    if (m === "TZCNT" || m === "LZCNT") {
      const n = value === 0n ? bits : m === "TZCNT" ? lowest : bits - 1 - highest;
      this.setFlag(Rflags.CF, value === 0n);
      this.setFlag(Rflags.ZF, n === 0);
      this.writeReg(dst.reg, dst.size, BigInt(n));
      return;
    }
    this.setFlag(Rflags.ZF, value === 0n);
    if (value !== 0n) this.writeReg(dst.reg, dst.size, BigInt(m === "BSF" ? lowest : highest));
  }

  private get stackSize(): number {
    if (this.code64) return 8;
    const ss: KvmSegment = this.vcpu.module.ops.getSegment(this.vcpu, Seg.SS);
    return ss.db ? 4 : 2;
  }

  private push(op: Operand): boolean {
    this.pushValue(this.readOperand(op));
    return true;
  }

  private pushValue(value: bigint): void {
    const size = this.insn.operandSize;
    const stack = this.stackSize;
    const rsp = (this.readReg(VcpuReg.RSP, stack) - BigInt(size)) & maskOf(stack);
    this.writeLinear(this.linearize(Seg.SS, rsp, size, true), size, value & maskOf(size));
    this.writeReg(VcpuReg.RSP, stack, rsp);
  }

  private popValue(): bigint {
    const size = this.insn.operandSize;
    const rsp = this.readReg(VcpuReg.RSP, this.stackSize);
    const value = this.readLinear(this.linearize(Seg.SS, rsp, size, false), size);
    this.moveStack(BigInt(size));
    return value;
  }

  private moveStack(bytes: bigint): void {
    const stack = this.stackSize;
    this.writeReg(VcpuReg.RSP, stack, (this.readReg(VcpuReg.RSP, stack) + bytes) & maskOf(stack));
  }

  private pop(op: Operand): boolean {
    const size = this.insn.operandSize;
    const stack = this.stackSize;
    const rsp = this.readReg(VcpuReg.RSP, stack);
    const value = this.readLinear(this.linearize(Seg.SS, rsp, size, false), size);
    const before = this.regs[VcpuReg.RSP];
    // POP to memory addressed by RSP uses the incremented value (SDM 2B, POP).
    this.writeReg(VcpuReg.RSP, stack, (rsp + BigInt(size)) & maskOf(stack));
    try {
      this.writeOperand(op, value);
    } catch (e) {
      this.regs[VcpuReg.RSP] = before;
      this.dirty &= ~(1 << VcpuReg.RSP);
      throw e;
    }
    return true;
  }

  // --- ports and strings ----------------------------------------------------------------------------------------------

  private portInstruction(m: "IN" | "OUT"): boolean {
    const [dst, src] = this.insn.operands;
    const size = m === "IN" ? dst.size : src.size;
    const port = Number(this.readOperand(m === "IN" ? src : dst) & 0xffffn);
    if (m === "IN") {
      this.writeReg(VcpuReg.RAX, size, this.pioIn(port, size, 1));
    } else {
      emulatorPioOut(this.vcpu, size, port, bytesOf(this.readOperand(src), size), 1);
    }
    return true;
  }

  /** pio_in_emulated: reads ahead as many items as the instruction wants from this port. @throws ioNeeded */
  private pioIn(port: number, size: number, count: number): bigint {
    const cache = this.ctxt.ioRead;
    if (cache.pos === cache.end) {
      const n = Math.max(1, Math.min(count, Math.floor(READ_CACHE / size)));
      const { pio } = this.vcpu.arch;
      if (pio.count > 0) {
        // Userspace has answered the request of the run before.
        const data = new Uint8Array(pio.size * pio.count);
        completeEmulatorPioIn(this.vcpu, data);
        cache.data = data;
      } else {
        const data = new Uint8Array(n * size);
        if (!emulatorPioIn(this.vcpu, size, port, data, n)) throw ioNeeded;
        cache.data = data;
      }
      cache.pos = 0;
      cache.end = cache.data.length;
    }
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(cache.data[cache.pos + i]);
    cache.pos += size;
    return value;
  }

  /** Items INS may read ahead: up to RCX, within the page of the destination. */
  private insCount(size: number, repeated: boolean): number {
    if (!repeated) return 1;
    const rcx = this.readReg(VcpuReg.RCX, this.insn.addressSize);
    const offset = Number(this.readReg(VcpuReg.RDI, this.insn.addressSize) & 0xfffn);
    const inPage = this.flag(Rflags.DF) ? Math.floor(offset / size) + 1 : Math.floor((4096 - offset) / size);
    return Number(rcx < BigInt(inPage) ? rcx : BigInt(Math.max(1, inPage)));
  }

  /** One iteration of a string instruction. */
  private runString(): EmulateResult {
    const { insn } = this;
    const repeated = insn.rep !== Rep.NONE;
    const address = insn.addressSize;
    if (repeated && this.readReg(VcpuReg.RCX, address) === 0n) return "done";
    const size = this.stringSize();
    const step = this.flag(Rflags.DF) ? BigInt(-size) : BigInt(size);
    const source = () => this.linearize(insn.segment, this.readReg(VcpuReg.RSI, address), size, false);
    const target = (write: boolean) => this.linearize(Seg.ES, this.readReg(VcpuReg.RDI, address), size, write);
    let usesSource = false;
    let usesTarget = false;
    switch (this.mnemonic) {
      case "MOVS":
        this.writeLinear(target(true), size, this.readLinear(source(), size));
        usesSource = true;
        usesTarget = true;
        break;
      case "STOS":
        this.writeLinear(target(true), size, this.readReg(VcpuReg.RAX, size));
        usesTarget = true;
        break;
      case "LODS":
        this.writeReg(VcpuReg.RAX, size, this.readLinear(source(), size));
        usesSource = true;
        break;
      case "CMPS": {
        const a = this.readLinear(source(), size);
        this.alu("CMP", a, this.readLinear(target(false), size), size);
        usesSource = true;
        usesTarget = true;
        break;
      }
      case "SCAS":
        this.alu("CMP", this.readReg(VcpuReg.RAX, size), this.readLinear(target(false), size), size);
        usesTarget = true;
        break;
      case "INS": {
        const port = Number(this.readReg(VcpuReg.RDX, 2));
        const value = this.pioIn(port, size, this.insCount(size, repeated));
        this.writeLinear(target(true), size, value);
        usesTarget = true;
        break;
      }
      default: {
        const value = this.readLinear(source(), size);
        emulatorPioOut(this.vcpu, size, Number(this.readReg(VcpuReg.RDX, 2)), bytesOf(value, size), 1);
        usesSource = true;
      }
    }
    if (usesSource) this.addToReg(VcpuReg.RSI, step);
    if (usesTarget) this.addToReg(VcpuReg.RDI, step);
    if (!repeated) return "done";
    this.addToReg(VcpuReg.RCX, -1n);
    return this.afterIteration();
  }

  /** string_insn_completed, and whether to go on here or to let the guest take interrupts first. */
  private afterIteration(): EmulateResult {
    const { insn, ctxt } = this;
    const rcx = this.readReg(VcpuReg.RCX, insn.addressSize);
    if (rcx === 0n) return "done";
    if (this.mnemonic === "CMPS" || this.mnemonic === "SCAS") {
      if (this.flag(Rflags.ZF) !== (insn.rep === Rep.REPE)) return "done";
    }
    ctxt.memRead.end = 0;
    ctxt.memRead.pos = 0;
    const io = ctxt.ioRead;
    const more = io.end !== 0 ? io.pos !== io.end : (rcx & RESTART_MASK) !== 0n;
    return more ? "restart" : "again";
  }

  /** Item size: that of the memory operand, which the decoder gives every string instruction. */
  private stringSize(): number {
    for (const op of this.insn.operands) if (op.kind === OperandKind.MEMORY) return op.size;
    return this.insn.operandSize;
  }
}

const bytesOf = (value: bigint, size: number): Uint8Array => {
  const bytes = new Uint8Array(size);
  let v = value;
  for (let i = 0; i < size; i++) {
    bytes[i] = Number(v & 0xffn);
    v >>= 8n;
  }
  return bytes;
};

const byteSwap = (value: bigint, size: number): bigint => {
  let r = 0n;
  for (let i = 0; i < size; i++) r = (r << 8n) | ((value >> BigInt(i * 8)) & 0xffn);
  return r;
};

/** Whether [ea, ea + size) lies inside the segment; expand-down data segments have their limit at the bottom. */
function withinLimit(s: KvmSegment, ea: bigint, size: bigint): boolean {
  const limit = BigInt(s.limit >>> 0);
  const last = ea + size - 1n;
  const expandDown = (s.type & 0xc) === 4 && s.s !== 0;
  if (!expandDown) return last <= limit;
  const top = s.db ? 0xffffffffn : 0xffffn;
  return ea > limit && last <= top;
}
