/** Stack instructions and near branches of the emulator (arch/x86/kvm/emulate.c). */
import { OperandKind } from "../cpu/isa/instruction";
import { Rflags, Seg } from "../cpu/state";
import type { EmulHandler, X86Emulator } from "./emulate";
import { EmulFault, maskOf } from "./emulateTypes";
import { isProtmode } from "./kvmCacheRegs";
import { VcpuReg } from "./types";
import { ExcVector } from "./x86Events";

/** Bytes of the stack pointer in use: RSP, ESP or SP. */
function stackSize(c: X86Emulator): number {
  if (c.code64) return 8;
  return c.vcpu.module.ops.getSegment(c.vcpu, Seg.SS).db ? 4 : 2;
}

/** Pushes `size` bytes. RSP changes only when the write succeeds. */
export function pushValue(c: X86Emulator, value: bigint, size = c.insn.operandSize): void {
  const stack = stackSize(c);
  const rsp = (c.readReg(VcpuReg.RSP, stack) - BigInt(size)) & maskOf(stack);
  c.writeLinear(c.linearize(Seg.SS, rsp, size, true), size, value & maskOf(size));
  c.writeReg(VcpuReg.RSP, stack, rsp);
}

/** Pops `size` bytes. */
export function popValue(c: X86Emulator, size = c.insn.operandSize): bigint {
  const rsp = c.readReg(VcpuReg.RSP, stackSize(c));
  const value = c.readLinear(c.linearize(Seg.SS, rsp, size, false), size);
  moveStack(c, BigInt(size));
  return value;
}

/** Adds to the stack pointer, by the stack's address size. */
export function moveStack(c: X86Emulator, bytes: bigint): void {
  const stack = stackSize(c);
  c.writeReg(VcpuReg.RSP, stack, (c.readReg(VcpuReg.RSP, stack) + bytes) & maskOf(stack));
}

/** assign_eip_near: a target outside the code segment, or not canonical, faults. */
function branchTo(c: X86Emulator, value: bigint): void {
  const target = c.code64 ? value & maskOf(8) : value & maskOf(c.insn.operandSize);
  if (c.code64) {
    const bits = c.vcpu.module.host.processors[0].model.linearBits;
    if (BigInt.asUintN(64, BigInt.asIntN(bits, target)) !== target) throw new EmulFault(ExcVector.GP, 0);
  } else if (target > BigInt(c.vcpu.module.ops.getSegment(c.vcpu, Seg.CS).limit >>> 0)) {
    throw new EmulFault(ExcVector.GP, 0);
  }
  c.target = target;
}

const nextEip = (c: X86Emulator): bigint => c.ctxt.eip + BigInt(c.insn.length);

const branchIf = (c: X86Emulator, taken: boolean): void => {
  if (taken) branchTo(c, nextEip(c) + c.immediate);
};

/** LOOP and its kin count in RCX by address size. */
function loop(c: X86Emulator): boolean {
  c.addToReg(VcpuReg.RCX, -1n);
  return c.readReg(VcpuReg.RCX, c.insn.addressSize) !== 0n;
}

const jump: EmulHandler = (c) => {
  const [dst] = c.insn.operands;
  branchTo(c, dst.kind === OperandKind.RELATIVE ? nextEip(c) + c.immediate : c.readOperand(dst));
};

/** POPF: what of RFLAGS may change depends on CPL and IOPL (SDM 2B, POPF). */
export function writableFlags(c: X86Emulator, size: number): bigint {
  let writable = Rflags.ARITHMETIC | Rflags.TF | Rflags.DF | Rflags.NT;
  if (size > 2) writable |= Rflags.RF | Rflags.AC | Rflags.ID;
  const iopl = (Number(c.rflags) >> Rflags.IOPL_SHIFT) & 3;
  const cpl = c.vcpu.module.ops.getCpl(c.vcpu);
  if (!isProtmode(c.vcpu)) return BigInt(writable | Rflags.IOPL | Rflags.IF);
  if (c.flag(Rflags.VM)) {
    if (iopl < 3) throw new EmulFault(ExcVector.GP, 0);
    return BigInt(writable | Rflags.IF);
  }
  if (cpl === 0) writable |= Rflags.IOPL;
  if (cpl <= iopl) writable |= Rflags.IF;
  return BigInt(writable);
}

const popf: EmulHandler = (c) => {
  const size = c.insn.operandSize;
  const value = popValue(c);
  const writable = writableFlags(c, size) & ~BigInt(Rflags.RF);
  c.rflags = (c.rflags & ~writable & ~BigInt(Rflags.RF)) | (value & writable) | 2n;
};

const pop: EmulHandler = (c) => {
  const [dst] = c.insn.operands;
  const size = c.insn.operandSize;
  const stack = stackSize(c);
  const rsp = c.readReg(VcpuReg.RSP, stack);
  const value = c.readLinear(c.linearize(Seg.SS, rsp, size, false), size);
  const before = c.regs[VcpuReg.RSP];
  // POP to memory addressed by RSP uses the incremented value (SDM 2B, POP).
  c.writeReg(VcpuReg.RSP, stack, (rsp + BigInt(size)) & maskOf(stack));
  try {
    c.writeOperand(dst, value);
  } catch (e) {
    c.regs[VcpuReg.RSP] = before;
    throw e;
  }
};

/** ENTER: a frame with copies of the enclosing frames' pointers (SDM 2A). */
const enter: EmulHandler = (c) => {
  const size = c.insn.operandSize;
  const stack = stackSize(c);
  const level = c.insn.immediate2 & 31;
  const bytes = BigInt(c.insn.immediate & 0xffff);
  pushValue(c, c.readReg(VcpuReg.RBP, size));
  const frame = c.readReg(VcpuReg.RSP, stack);
  for (let i = 1; i < level; i++) {
    const at = (c.readReg(VcpuReg.RBP, stack) - BigInt(size * i)) & maskOf(stack);
    pushValue(c, c.readLinear(c.linearize(Seg.SS, at, size, false), size));
  }
  if (level > 0) pushValue(c, frame);
  c.writeReg(VcpuReg.RBP, Math.min(size, stack), frame);
  moveStack(c, -bytes);
};

const leave: EmulHandler = (c) => {
  const stack = stackSize(c);
  c.writeReg(VcpuReg.RSP, stack, c.readReg(VcpuReg.RBP, stack));
  c.writeReg(VcpuReg.RBP, c.insn.operandSize, popValue(c));
};

/** By mnemonic. */
export const STACK: Readonly<Record<string, EmulHandler>> = {
  PUSH: (c) => {
    const [src] = c.insn.operands;
    pushValue(c, src.kind === OperandKind.IMMEDIATE ? c.immediate : c.readOperand(src));
  },
  POP: pop,
  PUSHA: (c) => {
    const rsp = c.regs[VcpuReg.RSP];
    for (let i = 0; i < 8; i++) pushValue(c, i === VcpuReg.RSP ? rsp : c.regs[i]);
  },
  POPA: (c) => {
    for (let i = 7; i >= 0; i--) {
      const value = popValue(c);
      if (i !== VcpuReg.RSP) c.writeReg(i, c.insn.operandSize, value);
    }
  },
  PUSHF: (c) => {
    if (c.flag(Rflags.VM) && ((Number(c.rflags) >> Rflags.IOPL_SHIFT) & 3) < 3) throw new EmulFault(ExcVector.GP, 0);
    pushValue(c, c.rflags & ~BigInt(Rflags.VM | Rflags.RF));
  },
  POPF: popf,
  ENTER: enter,
  LEAVE: leave,
  JMP: jump,
  CALL: (c) => {
    const back = nextEip(c);
    jump(c);
    pushValue(c, back);
  },
  RET: (c) => {
    const [dst] = c.insn.operands;
    branchTo(c, popValue(c));
    if (dst.kind === OperandKind.IMMEDIATE) moveStack(c, c.immediate);
  },
  JCC: (c) => branchIf(c, c.condition(c.insn.condition)),
  JCXZ: (c) => branchIf(c, c.readReg(VcpuReg.RCX, c.insn.addressSize) === 0n),
  LOOP: (c) => branchIf(c, loop(c)),
  LOOPE: (c) => branchIf(c, loop(c) && c.flag(Rflags.ZF)),
  LOOPNE: (c) => branchIf(c, loop(c) && !c.flag(Rflags.ZF)),
};
