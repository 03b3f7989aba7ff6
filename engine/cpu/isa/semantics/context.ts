/**
 * What the semantics of an instruction are written against. One `sem` function per mnemonic produces the hot handlers of
 * the interpreter, its out-of-line handlers, their slow-road variants and the code of compiled regions, each through its
 * own Context.
 *
 * The rule that makes every instruction restartable: a sem function makes all its memory references (`reference`,
 * `operand`, `push` ...), which may fault, before it changes any register or flag. A store through a reference never
 * faults.
 */
import { CpuState, Off, Rflags, Seg, SegAttr, SegPart, SimdAccess } from "../../state";
import type { Size, Value } from "./expressions";
import { Form, type Shape, sizeOfOperand } from "./shape";
import { type Vector, type VectorBytes, VectorExpressions } from "./vector-expressions";

export type MemoryAccess = "read" | "write" | "modify";

/** A memory operand that has been checked for the access. */
export interface Reference {
  load(size: Size, offset?: number): Value;
  store(value: Value, offset?: number): void;
  loadVector(bytes: VectorBytes, offset?: number): Vector;
  storeVector(vector: Vector, bytes: VectorBytes, offset?: number): void;
}

/** An operand opened for reading and then writing. */
export interface OpenOperand {
  /** Its value before, in a variable. */
  readonly value: Value;
  write(value: Value): void;
}

/** `segment` of an address: one of Seg, or the one the instruction's memory operand uses. */
export type AddressSegment = Seg | "operand";

/** Bits of FLAG_AUX (cpu/state.ts). */
const AUX_CARRIES = 0xc000_0000_0000_0008n;
const AuxBit = { CF: 63, CF_XOR_OF: 62, PARITY: 8, AF: 3, SF: 0 } as const;

const GP = 13;
const MF = 16;
/** FSW: an unmasked x87 exception is pending. */
const FSW_ES = 1 << 7;

export abstract class Context extends VectorExpressions {
  abstract readonly shape: Shape;
  /** Set once the instruction has left by a jump: nothing follows it. */
  ended = false;

  // ---- registers

  /** A general register by number; `high` for AH, CH, DH, BH as 0..3. */
  abstract gpr(index: number, size: Size, high?: boolean): Value;
  /** 4-byte values zero the upper half, narrower ones keep the rest (SDM 1 3.4.1.1). */
  abstract setGpr(index: number, value: Value, high?: boolean): void;
  protected abstract registerOperand(index: number, size: Size): Value;
  protected abstract setRegisterOperand(index: number, value: Value): void;
  /** The first immediate, cut to `size`. */
  abstract immediate(size: Size): Value;
  // ---- vector registers; `half` 0 is the XMM register, 1 bytes 16 to 31 of the YMM register

  abstract xmm(register: number, half: 0 | 1): Vector;
  abstract setXmm(register: number, half: 0 | 1, value: Vector): void;
  /** The register of operand `index`: an MMX register has its 8 bytes in half 0, zeros above. */
  abstract vectorOperand(index: number, half: 0 | 1): Vector;
  /** Of an MMX register the low 8 bytes are written. */
  abstract setVectorOperand(index: number, half: 0 | 1, value: Vector): void;
  /** Half of the vector of indices of a memory operand with VSIB. */
  abstract vsibIndices(half: 0 | 1): Vector;
  /** Offset inside the segment of the element whose index, of 8 bytes, is given. */
  abstract vsibOffset(index: Value): Value;

  /** Selector of the segment register that operand `index` names; 2 bytes. */
  protected abstract selectorOperand(index: number): Value;

  // ---- instruction pointer

  /** RIP of the instruction behind this one; 8 bytes. */
  abstract nextRip(): Value;

  // ---- memory

  /** Offset of the memory operand inside its segment, address size applied; the linear address where the shape is flat. */
  abstract offset(): Value;
  /** Cuts an offset to the instruction's address size. */
  abstract wrapOffset(offset: Value): Value;
  /** Linear address of an offset, after the checks of segmentation for an access of `bytes`. */
  abstract linear(segment: AddressSegment, offset: Value, bytes: number, access: MemoryAccess): Value;
  /** Checks paging for an access of `bytes` at a linear address. */
  abstract reference(linear: Value, bytes: number, access: MemoryAccess, segment: AddressSegment): Reference;
  /** Raises an exception; nothing of the instruction happens. Use inside `if`. */
  abstract fault(vector: number | Value, error?: number): void;

  /** Leaves the instruction to its SystemHandler; nothing of it has happened. Use inside `if`. */
  abstract systemCall(): void;

  /**
   * Calls function `number` of vector/functions on the vectors in VECTOR_SOURCE. @returns what it leaves in VECTOR_FLAGS;
   * 4 bytes
   */
  abstract compute(number: number, length: number, immediate: number): Value;
  /**
   * The slow way of floating-point operation `number` (vector/float.ts) on the vectors in VECTOR_SOURCE; the result is in
   * VECTOR_RESULT and VECTOR_FLAGS. The instruction is abandoned where it raises an exception.
   */
  abstract computeFloat(number: number, length: number, immediate: number): void;
  /** Whether floating-point operations may take the quick way: see vector/quick-float.ts; 4 bytes, 0 or 1. */
  abstract quickFloat(): Value;
  /** The same, for an operation that has no other way to be quick. */
  needQuickFloat(): Value {
    return this.quickFloat();
  }
  /** Whether lane 0 of register operand `index` is known to be a normal number, or zero, of so many bits. */
  knowsNumber(_index: number, _bits: 32 | 64): boolean {
    return false;
  }
  /** It is, from here on. */
  noteNumber(_index: number, _bits: 32 | 64): void {}
  /** What is known of operand `from` now holds for operand `to`. */
  copyNumber(_to: number, _from: number): void {}

  // ---- lazy flags (see cpu/state.ts)

  abstract flagResult(): Value;
  abstract flagAux(): Value;
  /** Sets all six arithmetic flags. */
  abstract setFlags(result: Value, aux: Value): void;

  // ---- control transfer

  /** Goes to the instruction's own target (relative branches). */
  abstract jump(): void;
  /** Goes to the instruction's own target where `condition` holds, to the next instruction otherwise. */
  abstract jumpIf(condition: Value): void;
  /** Goes to a computed RIP that `checkTarget` has approved. */
  abstract jumpTo(rip: Value): void;
  /** Leaves with the instruction not retired, registers as they are: it will be run again. */
  abstract again(): void;
  /** Number of iterations a REP instruction may make before `again`; one on the slow road. */
  abstract readonly iterations: number;

  /** Unsigned quotient of high:low by a divisor that is greater than `high`; all of 8 bytes. */
  abstract divideHigh(high: Value, low: Value, divisor: Value): Value;

  /**
   * A host offset for a plain access at a linear address, or 0 when the TLB does not know it; 4 bytes, computed without
   * side effects. 0 always on the slow road.
   */
  abstract quickHost(linear: Value, access: "read" | "write"): Value;

  // ================ built from the above

  size(operand: number): Size {
    return sizeOfOperand(this.shape, operand);
  }

  form(operand: number): Form {
    return this.shape.operands[operand].form;
  }

  /** Reference to the memory operand. */
  operand(index: number, access: MemoryAccess): Reference {
    const bytes = this.shape.operands[index].size;
    const linear = this.linear("operand", this.offset(), bytes, access);
    if (!this.shape.aligned) return this.reference(linear, bytes, access, "operand");
    const at = this.let(linear);
    this.if(this.and(this.low(at, 4), this.constant(4, bytes - 1)), () => this.fault(GP, 0));
    return this.reference(at, bytes, access, "operand");
  }

  /** Raises what instructions of a kind raise under the present CR0, CR4 and XCR0 (SDM 1 13.5; 3A 13.1). */
  checkSimd(kind: SimdAccess): void {
    const vector = this.let(this.loadAt(Off.SIMD_ACCESS + kind, 1));
    this.if(vector, () => this.fault(this.zeroExtend(vector, 4)));
    if (kind !== SimdAccess.MMX) return;
    // Without CR0.NE a pending x87 exception is the board's business (SDM 1 8.7.2).
    const pending = this.isZero(this.isZero(this.and(this.loadAt(Off.FSW, 1), this.constant(1, FSW_ES))));
    const native = this.and(this.shrBy(this.loadAt(Off.CR0, 4), 5), this.constant(4, 1));
    this.if(this.and(pending, native), () => this.fault(MF));
  }

  /** The value of an operand, in a variable. */
  read(index: number): Value {
    const size = this.size(index);
    switch (this.form(index)) {
      case Form.REGISTER:
        return this.let(this.registerOperand(index, size));
      case Form.MEMORY:
        return this.let(this.operand(index, "read").load(size));
      case Form.IMMEDIATE:
        return this.let(this.immediate(size));
      case Form.SEGMENT:
        return this.let(this.selectorOperand(index));
      default:
        throw new Error(`semantics: operand ${index} of ${this.shape.mnemonic} is a vector`);
    }
  }

  /** Reads an operand whose immediate form is extended to `size` (ALU operations on operand 0). */
  readAs(index: number, size: Size): Value {
    return this.form(index) === Form.IMMEDIATE ? this.let(this.immediate(size)) : this.read(index);
  }

  write(index: number, value: Value): void {
    if (this.form(index) === Form.MEMORY) this.operand(index, "write").store(value);
    else this.setRegisterOperand(index, value);
  }

  /** Opens an operand for read-modify-write. */
  modify(index: number): OpenOperand {
    const size = this.size(index);
    if (this.form(index) === Form.MEMORY) {
      const reference = this.operand(index, "modify");
      return { value: this.let(reference.load(size)), write: (v) => reference.store(v) };
    }
    const value = this.let(this.registerOperand(index, size));
    return { value, write: (v) => this.setRegisterOperand(index, v) };
  }

  // ---- flags

  /** Takes the carries out of bit positions 7, 6 and 3 (or the like for other sizes) of a carry vector into aux. */
  protected carries(vector: Value): Value {
    const wide = this.zeroExtend(vector, 8);
    const spread =
      vector.size === 8 ? wide : this.mul(wide, this.constant(8, (1n << BigInt(64 - vector.size * 8)) | 1n));
    return this.and(spread, this.constant(8, AUX_CARRIES));
  }

  /** Flags of r = a + b, or a + b + CF `withCarry`. The three are variables or constants of one size. */
  flagsAdd(a: Value, b: Value, r: Value, _withCarry = false): void {
    this.setFlags(this.signExtend(r, 8), this.carries(this.addCarries(a, b, r)));
  }

  /** Flags of r = a - b, or a - b - CF `withBorrow`. */
  flagsSub(a: Value, b: Value, r: Value, _withBorrow = false): void {
    this.setFlags(this.signExtend(r, 8), this.carries(this.subBorrows(a, b, r)));
  }

  protected addCarries(a: Value, b: Value, r: Value): Value {
    return this.or(this.and(a, b), this.and(this.or(a, b), this.not(r)));
  }

  protected subBorrows(a: Value, b: Value, r: Value): Value {
    return this.or(this.and(this.not(a), b), this.and(this.or(this.not(a), b), r));
  }

  /** Flags of INC and DEC: as r = a + 1 or a - 1, but CF stays. */
  flagsKeepCarry(a: Value, r: Value, up: boolean): void {
    const one = this.constant(a.size, 1);
    const aux = this.let(this.carries(up ? this.addCarries(a, one, r) : this.subBorrows(a, one, r)));
    const old = this.let(this.and(this.flagAux(), this.constant(8, 1n << 63n)));
    const overflow = this.and(this.xor(aux, this.shlBy(aux, 1)), this.constant(8, 1n << 63n));
    const adjust = this.and(aux, this.constant(8, 8));
    const top = this.let(overflow);
    // CF as it was, then CF xor OF.
    this.setFlags(this.signExtend(r, 8), this.or(this.or(old, this.shrBy(this.xor(old, top), 1)), adjust));
  }

  /** Flags of a logical operation: CF, OF and AF clear. */
  flagsLogic(r: Value): void {
    this.setFlags(this.signExtend(r, 8), this.constant(8, 0));
  }

  /** Flags with SF, ZF and PF of `r`, AF clear; `carry` and `overflow` are 4-byte 0 or 1. */
  flagsOf(r: Value, carry: Value, overflow: Value): void {
    this.setFlags(this.signExtend(r, 8), this.carryAux(carry, overflow));
  }

  private carryAux(carry: Value, overflow: Value): Value {
    const c = this.let(carry);
    return this.or(
      this.shlBy(this.zeroExtend(c, 8), AuxBit.CF),
      this.shlBy(this.zeroExtend(this.xor(c, overflow), 8), AuxBit.CF_XOR_OF),
    );
  }

  /** Sets CF and OF, keeps the other four. */
  setCarryOverflow(carry: Value, overflow: Value): void {
    const kept = this.and(this.flagAux(), this.constant(8, ~(3n << 62n)));
    const aux = this.let(this.or(kept, this.carryAux(carry, overflow)));
    this.setFlags(this.flagResult(), aux);
  }

  /** Sets CF alone. */
  setCarry(carry: Value): void {
    const overflow = this.let(this.overflow());
    this.setCarryOverflow(carry, overflow);
  }

  /** CF as 0 or 1; 4 bytes. */
  carry(): Value {
    return this.low(this.shrBy(this.flagAux(), 63), 4);
  }

  /** OF as 0 or 1; 4 bytes. */
  overflow(): Value {
    const aux = this.let(this.flagAux());
    return this.low(this.shrBy(this.xor(aux, this.shlBy(aux, 1)), 63), 4);
  }

  /** Any condition of Jcc, SETcc and CMOVcc by its number (SDM 1 appendix B); 4 bytes, zero or not. */
  condition(code: number): Value {
    const zero = (): Value => this.isZero(this.flagResult());
    const inverted = (code & 1) !== 0;
    const not = (v: Value): Value => (inverted ? this.isZero(v) : v);
    const signOf = (v: Value): Value => (inverted ? this.geS(v, this.constant(8, 0)) : this.isNegative(v));
    switch (code >> 1) {
      case 0: {
        const aux = this.let(this.flagAux());
        return signOf(this.xor(aux, this.shlBy(aux, 1)));
      }
      case 1:
        return signOf(this.flagAux());
      case 2:
        return inverted ? this.ne(this.flagResult(), this.constant(8, 0)) : zero();
      case 3:
        return not(this.or(this.isNegative(this.flagAux()), zero()));
      case 4:
        return signOf(this.signFlag());
      case 5:
        return not(this.parity());
      case 6:
        return signOf(this.less());
      default:
        return not(this.or(this.isNegative(this.less()), zero()));
    }
  }

  /** SF in bit 63. */
  private signFlag(): Value {
    return this.xor(this.flagResult(), this.shlBy(this.flagAux(), 63));
  }

  /** SF xor OF in bit 63. */
  private less(): Value {
    const aux = this.let(this.flagAux());
    const overflow = this.xor(aux, this.shlBy(aux, 1));
    return this.xor(this.xor(this.flagResult(), this.shlBy(aux, 63)), overflow);
  }

  /** PF as 0 or 1. */
  private parity(): Value {
    const byte = this.and(
      this.low(this.xor(this.flagResult(), this.shrBy(this.flagAux(), AuxBit.PARITY)), 4),
      this.constant(4, 0xff),
    );
    return this.isZero(this.and(this.popcnt(byte), this.constant(4, 1)));
  }

  /** The low byte of RFLAGS as LAHF shows it; 4 bytes. */
  flagsByte(): Value {
    const bit = (v: Value, mask: number): Value => this.shlBy(v, 31 - Math.clz32(mask));
    const zero = this.isZero(this.flagResult());
    const adjust = this.and(this.low(this.flagAux(), 4), this.constant(4, 8));
    const sign = this.low(this.shrBy(this.signFlag(), 63), 4);
    let all: Value = this.constant(4, Rflags.FIXED);
    all = this.or(all, this.carry());
    all = this.or(all, bit(this.parity(), Rflags.PF));
    all = this.or(all, this.shlBy(adjust, 1));
    all = this.or(all, bit(zero, Rflags.ZF));
    return this.or(all, bit(sign, Rflags.SF));
  }

  /**
   * Sets the flags from RFLAGS bits CF, PF, AF, ZF, SF in `bits` (4 bytes) and OF as 0 or 1. The result is 0 with ZF and
   * 1 without, and aux corrects its sign and parity.
   */
  setFlagBits(bits: Value, overflow: Value): void {
    const b = this.let(bits);
    const flag = (mask: number): Value => this.and(this.shrBy(b, 31 - Math.clz32(mask)), this.constant(4, 1));
    const zf = this.let(flag(Rflags.ZF));
    // Parity of result 0 is even, of 1 odd: it needs correcting where PF differs from ZF.
    const low = this.or(
      this.or(flag(Rflags.SF), this.shlBy(flag(Rflags.AF), AuxBit.AF)),
      this.shlBy(this.xor(flag(Rflags.PF), zf), AuxBit.PARITY),
    );
    const aux = this.let(this.or(this.zeroExtend(low, 8), this.carryAux(flag(Rflags.CF), overflow)));
    this.setFlags(this.zeroExtend(this.xor(zf, this.constant(4, 1)), 8), aux);
  }

  /** RFLAGS.DF as +1 or -1 times `bytes`; of the given size. */
  stringStep(bytes: number, size: Size): Value {
    const down = this.and(this.loadAt(Off.FLAGS_REST, 4), this.constant(4, Rflags.DF));
    return this.select(down, this.constant(size, -bytes), this.constant(size, bytes));
  }

  // ---- stack (SDM 1 6.2.3: width of the stack pointer by SS.B, 64 bits in 64-bit mode)

  private stackIsBig(): Value {
    const attributes = CpuState.segOffset(Seg.SS) + SegPart.ATTRIBUTES;
    return this.and(this.loadAt(attributes, 4), this.constant(4, SegAttr.DB));
  }

  /** Cuts a value to the width of the stack pointer; 8 bytes outside and in. */
  wrapStack(v: Value): Value {
    if (this.shape.long) return v;
    const mask = this.select(this.stackIsBig(), this.constant(8, 0xffff_ffffn), this.constant(8, 0xffffn));
    return this.and(v, mask);
  }

  /** The stack pointer, cut to its width; 8 bytes. */
  stackPointer(): Value {
    return this.wrapStack(this.gpr(4, 8));
  }

  /** Sets the stack pointer, keeping what is above its width. `v` is cut to the width already. */
  setStackPointer(v: Value): void {
    if (this.shape.long) {
      this.setGpr(4, v);
      return;
    }
    const value = this.let(v);
    const narrow = this.or(this.and(this.gpr(4, 4), this.constant(4, 0xffff0000)), this.low(value, 4));
    const all = this.select(this.stackIsBig(), this.low(value, 4), narrow);
    this.setGpr(4, this.let(all));
  }

  /** Reference to `bytes` of stack at an offset that wrapStack has cut. */
  stack(offset: Value, bytes: number, access: MemoryAccess): Reference {
    return this.reference(this.linear(Seg.SS, offset, bytes, access), bytes, access, Seg.SS);
  }

  push(value: Value): void {
    const top = this.let(this.wrapStack(this.sub(this.gpr(4, 8), this.constant(8, value.size))));
    this.stack(top, value.size, "write").store(value);
    this.setStackPointer(top);
  }

  /** Reads the top of stack. `commit` moves the stack pointer behind it and `extra` bytes further. */
  pop(size: Size): { value: Value; commit: (extra?: Value) => void; newPointer: () => Value } {
    const top = this.let(this.stackPointer());
    const value = this.let(this.stack(top, size, "read").load(size));
    const newPointer = (extra?: Value): Value => {
      const plain = this.add(top, this.constant(8, size));
      return this.wrapStack(extra ? this.add(plain, extra) : plain);
    };
    return { value, newPointer, commit: (extra) => this.setStackPointer(newPointer(extra)) };
  }

  // ---- branch targets

  /** Raises #GP(0) where a near branch may not go to `rip`: non-canonical, or beyond CS.limit (SDM 2A, CALL). */
  checkTarget(rip: Value): void {
    const bad = this.shape.long
      ? this.ne(this.sar(this.shlBy(rip, 16), this.constant(8, 16)), rip)
      : this.gtU(rip, this.zeroExtend(this.loadAt(CpuState.segOffset(Seg.CS) + SegPart.LIMIT, 4), 8));
    this.if(bad, () => this.fault(13, 0));
  }
}

/** Emits what an instruction does. */
export type Sem = (c: Context) => void;
