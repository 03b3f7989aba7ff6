/**
 * Operands of system instructions: effective addresses with the checks of their segment (SDM 3A 5.3 to 5.5, and 1 3.3.7.1
 * for 64-bit mode), registers, and the stack.
 */
import { Access, type Cpu, CpuFault, Vector } from "../cpu";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../isa/instruction";
import { OPCODES } from "../isa/opcodes";
import { CodeMode, Gpr, Off, Seg, SegAttr } from "../state";
import { Cr4, Efer } from "./bits";

export const MASK16 = 0xffffn;
export const MASK32 = 0xffff_ffffn;
export const MASK64 = 0xffff_ffff_ffff_ffffn;

/** All ones in `size` bytes. */
export const sizeMask = (size: number): bigint =>
  size === 8 ? MASK64 : size === 4 ? MASK32 : size === 2 ? MASK16 : 0xffn;

export const is64BitMode = (cpu: Cpu): boolean => cpu.state.codeMode === CodeMode.LONG64;
export const isLongMode = (cpu: Cpu): boolean => (cpu.state.lo(Off.EFER) & Efer.LMA) !== 0;
/** Real-address or virtual-8086 mode: selectors are paragraphs. */
export const isRealOrVm86 = (cpu: Cpu): boolean => cpu.state.codeMode <= CodeMode.VM86;

/** #GP(0). */
export const gp0 = (): CpuFault => new CpuFault(Vector.GP, 0);
export const undefinedOpcode = (): CpuFault => new CpuFault(Vector.UD);

/** Instructions of CPL 0 only. */
export function requireCpl0(cpu: Cpu): void {
  if (cpu.state.cpl !== 0) throw gp0();
}

/** Splits bigints without allocating. */
const whole = new BigUint64Array(1);
const halves = new Int32Array(whole.buffer);

/** Canonical in the linear-address width that CR4.LA57 chooses. */
export function isCanonical(cpu: Cpu, address: bigint): boolean {
  whole[0] = address;
  const top = halves[1] >> (cpu.state.lo(Off.CR4) & Cr4.LA57 ? 24 : 15);
  return top === 0 || top === -1;
}

/** Whether [offset, offset + size) lies within a segment's limit (SDM 3A 5.3). */
export function withinLimit(attributes: number, limit: number, offset: number, size: number): boolean {
  const last = offset + size - 1;
  const expandDown =
    (attributes & (SegAttr.S | SegAttr.CODE | SegAttr.EXPAND_DOWN)) === (SegAttr.S | SegAttr.EXPAND_DOWN);
  if (expandDown) return offset > limit && last <= (attributes & SegAttr.DB ? 0xffff_ffff : 0xffff);
  return last <= limit;
}

/**
 * Linear address of `size` bytes at `offset` in a segment register, after the checks of limit, type and canonicality.
 * @throws CpuFault #SS(0) for SS, #GP(0) otherwise
 */
export function linearAddress(cpu: Cpu, seg: number, offset: bigint, size: number, access: Access): bigint {
  const { state } = cpu;
  const vector = seg === Seg.SS ? Vector.SS : Vector.GP;
  if (is64BitMode(cpu)) {
    const base = seg === Seg.FS || seg === Seg.GS ? state.segBase(seg) : 0n;
    const linear = (base + offset) & MASK64;
    if (!isCanonical(cpu, linear) || !isCanonical(cpu, (linear + BigInt(size - 1)) & MASK64)) {
      throw new CpuFault(vector, 0);
    }
    return linear;
  }
  const attributes = state.segAttributes(seg);
  if (!isRealOrVm86(cpu)) {
    if (attributes & SegAttr.UNUSABLE) throw new CpuFault(vector, 0);
    const code = (attributes & SegAttr.CODE) !== 0;
    const allowed =
      access === Access.WRITE ? !code && (attributes & SegAttr.WRITABLE) !== 0 : !code || (attributes & 2) !== 0;
    if (!allowed) throw new CpuFault(vector, 0);
  }
  if (!withinLimit(attributes, state.segLimit(seg), Number(offset), size)) throw new CpuFault(vector, 0);
  return (state.segBase(seg) + offset) & MASK32;
}

/** `linearAddress` by direction. */
export function segmentLinear(cpu: Cpu, seg: number, offset: bigint, size: number, write: boolean): bigint {
  return linearAddress(cpu, seg, offset, size, write ? Access.WRITE : Access.READ);
}

/** Segment base plus offset without any check: what an interception reports. */
export function uncheckedLinear(cpu: Cpu, seg: number, offset: bigint): bigint {
  const { state } = cpu;
  if (!is64BitMode(cpu)) return (state.segBase(seg) + offset) & MASK32;
  return ((seg === Seg.FS || seg === Seg.GS ? state.segBase(seg) : 0n) + offset) & MASK64;
}

export const truncate = (value: bigint, size: number): bigint => value & sizeMask(size);

/** Offset part of the memory operand, within its address size. */
export function effectiveOffset(cpu: Cpu, instruction: Instruction): bigint {
  const { state } = cpu;
  let offset = (BigInt(instruction.displacementHigh) << 32n) + BigInt(instruction.displacement >>> 0);
  if (instruction.base === RIP_BASE) offset += state.rip + BigInt(instruction.length);
  else if (instruction.base !== NO_REG) offset += state.gpr(instruction.base);
  if (instruction.index !== NO_REG) offset += state.gpr(instruction.index) << BigInt(instruction.scale);
  return offset & sizeMask(instruction.addressSize);
}

/** Whether the row says its memory operand is written. */
function writesMemory(instruction: Instruction): boolean {
  for (const operand of OPCODES[instruction.opcode].operands) {
    if ("EMOY".includes(operand.code)) return operand.access === "w" || operand.access === "rw";
  }
  return false;
}

/** Linear address of the instruction's memory operand of `size` bytes, checked for what the opcode table says it does. */
export function effectiveAddress(
  cpu: Cpu,
  instruction: Instruction,
  size: number,
  write = writesMemory(instruction),
): bigint {
  const access = write ? Access.WRITE : Access.READ;
  return linearAddress(cpu, instruction.segment, effectiveOffset(cpu, instruction), size, access);
}

/** Reads `size` bytes `at` bytes into the memory operand (parts of far pointers and pseudo-descriptors). */
export function readMemoryPart(cpu: Cpu, instruction: Instruction, at: number, size: number): bigint {
  const offset = (effectiveOffset(cpu, instruction) + BigInt(at)) & sizeMask(instruction.addressSize);
  return cpu.mmu.read(linearAddress(cpu, instruction.segment, offset, size, Access.READ), size);
}

export function readGpr(cpu: Cpu, register: number, size: number, high = false): bigint {
  const value = cpu.state.gpr(register);
  if (size === 1) return (high ? value >> 8n : value) & 0xffn;
  return value & sizeMask(size);
}

/** Writes a register; a 32-bit write clears the upper half. */
export function writeGpr(cpu: Cpu, register: number, size: number, value: bigint, high = false): void {
  const { state } = cpu;
  if (size === 8) state.setGpr(register, value & MASK64);
  else if (size === 4) state.setGpr(register, value & MASK32);
  else {
    const shift = high ? 8n : 0n;
    const mask = sizeMask(size) << shift;
    state.setGpr(register, (state.gpr(register) & ~mask & MASK64) | ((value << shift) & mask));
  }
}

/** Value of operand `n`: register, memory, segment register or immediate. */
export function readOperand(cpu: Cpu, instruction: Instruction, n: number): bigint {
  const operand = instruction.operands[n];
  switch (operand.kind) {
    case OperandKind.GPR:
      return readGpr(cpu, operand.reg, operand.size, operand.high);
    case OperandKind.MEMORY:
      return cpu.mmu.read(effectiveAddress(cpu, instruction, operand.size, false), operand.size);
    case OperandKind.SEGMENT:
      return BigInt(cpu.state.segSelector(operand.reg));
    default: {
      const value = (BigInt(instruction.immediateHigh) << 32n) | BigInt(instruction.immediate >>> 0);
      return BigInt.asUintN(operand.size * 8, value);
    }
  }
}

export function writeOperand(cpu: Cpu, instruction: Instruction, n: number, value: bigint): void {
  const operand = instruction.operands[n];
  if (operand.kind === OperandKind.GPR) writeGpr(cpu, operand.reg, operand.size, value, operand.high);
  else {
    const linear = effectiveAddress(cpu, instruction, operand.size);
    cpu.mmu.write(linear, operand.size, value & sizeMask(operand.size));
  }
}

/** Linear address of the memory operand without any check. */
export function uncheckedAddress(cpu: Cpu, instruction: Instruction): bigint {
  return uncheckedLinear(cpu, instruction.segment, effectiveOffset(cpu, instruction));
}

/** The same where the instruction has a memory operand, undefined where its operand is a register. */
export function memoryLinear(cpu: Cpu, instruction: Instruction): bigint | undefined {
  const memory = instruction.operands.some((o) => o.kind === OperandKind.MEMORY);
  return memory ? uncheckedAddress(cpu, instruction) : undefined;
}

/** RIP behind the instruction, within the current code size. */
export function nextRip(cpu: Cpu, instruction: Instruction): bigint {
  const next = cpu.state.rip + BigInt(instruction.length);
  switch (cpu.state.codeMode) {
    case CodeMode.LONG64:
      return next & MASK64;
    case CodeMode.PROTECTED32:
    case CodeMode.COMPAT32:
      return next & MASK32;
    case CodeMode.REAL:
      // Big real mode keeps a 32-bit default size of CS.
      return next & (cpu.state.segAttributes(Seg.CS) & SegAttr.DB ? MASK32 : MASK16);
    default:
      return next & MASK16;
  }
}

/** Width mask of the stack pointer: 64-bit mode, or the B flag of SS. */
export function stackMask(cpu: Cpu): bigint {
  if (is64BitMode(cpu)) return MASK64;
  return cpu.state.segAttributes(Seg.SS) & SegAttr.DB ? MASK32 : MASK16;
}

/** A stack pointer with only the bits of the stack's width replaced (a 32-bit stack clears bits 63:32). */
export function mergeStackPointer(old: bigint, value: bigint, mask: bigint): bigint {
  return mask === MASK16 ? (old & ~MASK16 & MASK32) | (value & MASK16) : value & mask;
}

/**
 * Reads of the current stack ahead of committing: `pop` walks a private pointer, `commit` stores it to RSP.
 */
export class StackReader {
  pointer: bigint;
  private readonly mask: bigint;

  constructor(private readonly cpu: Cpu) {
    this.mask = stackMask(cpu);
    this.pointer = cpu.state.gpr(Gpr.RSP) & this.mask;
  }

  pop(size: number): bigint {
    const linear = linearAddress(this.cpu, Seg.SS, this.pointer, size, Access.READ);
    const value = this.cpu.mmu.read(linear, size);
    this.pointer = (this.pointer + BigInt(size)) & this.mask;
    return value;
  }

  skip(bytes: number): void {
    this.pointer = (this.pointer + BigInt(bytes)) & this.mask;
  }

  commit(): void {
    const { state } = this.cpu;
    state.setGpr(Gpr.RSP, mergeStackPointer(state.gpr(Gpr.RSP), this.pointer, this.mask));
  }
}

/** A stack that is written ahead of committing: the current one, or one a privilege change is about to load. */
export class StackWriter {
  constructor(
    private readonly cpu: Cpu,
    public pointer: bigint,
    private readonly mask: bigint,
    private readonly base: bigint,
    private readonly limit: number,
    private readonly attributes: number,
    private readonly long: boolean,
    /** Error code of #SS when it overflows. */
    private readonly errorCode: number,
    /** The pushes are made at CPL 0..2 while the program still runs at 3. */
    private readonly supervisor: boolean,
  ) {
    this.pointer = pointer & mask;
  }

  static current(cpu: Cpu, errorCode = 0): StackWriter {
    const { state } = cpu;
    const long = is64BitMode(cpu);
    return new StackWriter(
      cpu,
      state.gpr(Gpr.RSP),
      stackMask(cpu),
      long ? 0n : state.segBase(Seg.SS),
      state.segLimit(Seg.SS),
      state.segAttributes(Seg.SS),
      long,
      errorCode,
      false,
    );
  }

  push(size: number, value: bigint): void {
    const pointer = (this.pointer - BigInt(size)) & this.mask;
    this.cpu.mmu.write(this.linear(pointer, size), size, value & sizeMask(size), this.supervisor);
    this.pointer = pointer;
  }

  /** Checks that `size` bytes at the pointer could be written, and writes nothing. */
  check(size: number): void {
    this.cpu.mmu.checkWrite(this.linear(this.pointer, size), size, this.supervisor);
  }

  private linear(pointer: bigint, size: number): bigint {
    if (this.long) {
      if (!isCanonical(this.cpu, pointer)) throw new CpuFault(Vector.SS, this.errorCode);
      return pointer;
    }
    const usable = (this.attributes & SegAttr.UNUSABLE) === 0;
    if (!usable || !withinLimit(this.attributes, this.limit, Number(pointer), size)) {
      throw new CpuFault(Vector.SS, this.errorCode);
    }
    return (this.base + pointer) & MASK32;
  }

  commit(): void {
    const { state } = this.cpu;
    state.setGpr(Gpr.RSP, mergeStackPointer(state.gpr(Gpr.RSP), this.pointer, this.mask));
  }
}
