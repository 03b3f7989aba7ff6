/**
 * Moves of vector and x87 state between registers and memory (arch/x86/kvm/emulate.c: Sse, Mmx, Avx; em_fnstcw and its kin):
 * drivers reach memory-mapped registers by them. Arithmetic is not emulated.
 */
import { type Operand, OperandKind } from "../cpu/isa/instruction";
import { Off } from "../cpu/state";
import type { EmulHandler, X86Emulator } from "./emulate";
import { bytesOf, EmulFault, maskOf, numberOf, unhandleable } from "./emulateTypes";
import { Cr0, Cr4, kvmReadCr0, kvmReadCr4 } from "./kvmCacheRegs";
import { ExcVector } from "./x86Events";

const XMM_BYTES = 16;
const XFEATURE_SSE_AVX = 6n;

const fault = (vector: number, errorCode?: number): never => {
  throw new EmulFault(vector, errorCode);
};

/** Conditions under which vector and x87 instructions fault (SDM 3A 2.5, 13.1). */
function checkAvailable(c: X86Emulator, kind: "x87" | "mmx" | "sse" | "vex"): void {
  const cr0 = kvmReadCr0(c.vcpu);
  const cr4 = kvmReadCr4(c.vcpu);
  if (kind === "vex") {
    const enabled = (c.vcpu.arch.xcr0 & XFEATURE_SSE_AVX) === XFEATURE_SSE_AVX;
    if (!(cr4 & Cr4.OSXSAVE) || !enabled) fault(ExcVector.UD);
  } else if (kind === "sse") {
    if (cr0 & Cr0.EM || !(cr4 & Cr4.OSFXSR)) fault(ExcVector.UD);
  } else if (cr0 & Cr0.EM) {
    fault(kind === "mmx" ? ExcVector.UD : ExcVector.NM);
  }
  if (cr0 & Cr0.TS) fault(ExcVector.NM);
}

/** The guest's registers lie in the processor while KVM_RUN is under way (kvm_fpu_get). */
function fpuState(c: X86Emulator): { u8: Uint8Array; view: DataView; base: number } {
  const { state } = c.vcpu.module.host.processors[c.vcpu.state.thread.cpu];
  return { u8: state.u8, view: state.view, base: state.base };
}

function registerAt(c: X86Emulator, op: Operand): number {
  const { base } = fpuState(c);
  return base + (op.kind === OperandKind.MMX ? Off.X87 + (op.reg & 7) * 16 : Off.VECTOR + op.reg * 64);
}

function read(c: X86Emulator, op: Operand, size: number, aligned: boolean): bigint {
  if (op.kind === OperandKind.VECTOR || op.kind === OperandKind.MMX) {
    const at = registerAt(c, op);
    return numberOf(fpuState(c).u8.subarray(at, at + size));
  }
  if (op.kind !== OperandKind.MEMORY) return c.readOperand(op) & maskOf(size);
  const linear = c.memoryLinear(size, false);
  if (aligned && linear % BigInt(size) !== 0n) fault(ExcVector.GP, 0);
  return c.readLinear(linear, size);
}

/** @param whole bytes of the register the move defines; what lies above them stays, or with VEX becomes 0 */
function write(c: X86Emulator, op: Operand, value: bigint, size: number, whole: number, aligned: boolean): void {
  const { u8, view, base } = fpuState(c);
  if (op.kind === OperandKind.VECTOR) {
    const at = registerAt(c, op);
    u8.set(bytesOf(value, whole), at);
    if (c.insn.vex !== 0) u8.fill(0, at + whole, at + 64);
  } else if (op.kind === OperandKind.MMX) {
    const at = registerAt(c, op);
    u8.set(bytesOf(value | (0xffffn << 64n), 10), at);
    // Any MMX write makes all registers valid and TOP 0 (SDM 1 9.5.1).
    view.setUint16(base + Off.FTW, 0xff, true);
    view.setUint16(base + Off.FSW, view.getUint16(base + Off.FSW, true) & ~0x3800, true);
  } else if (op.kind === OperandKind.MEMORY) {
    const linear = c.memoryLinear(size, true);
    if (aligned && linear % BigInt(size) !== 0n) fault(ExcVector.GP, 0);
    c.writeLinear(linear, size, value);
  } else {
    c.writeOperand(op, value & maskOf(op.size));
  }
}

/** A move of all the operand's bytes. Loads of less than 16 bytes clear the rest of the XMM register. */
const move =
  (aligned: boolean): EmulHandler =>
  (c) => {
    const [dst, src, third] = c.insn.operands;
    if (third.kind !== OperandKind.NONE) throw unhandleable;
    const mmx = dst.kind === OperandKind.MMX || src.kind === OperandKind.MMX;
    const vector = dst.kind === OperandKind.VECTOR || src.kind === OperandKind.VECTOR;
    checkAvailable(c, c.insn.vex !== 0 ? "vex" : vector ? "sse" : mmx ? "mmx" : "sse");
    const memory = [dst, src].find((op) => op.kind === OperandKind.MEMORY || op.kind === OperandKind.GPR);
    const size = memory ? memory.size : Math.min(dst.size, src.size);
    const value = read(c, src, size, aligned);
    write(c, dst, value, size, Math.max(XMM_BYTES, size), aligned);
  };

/** MOVLPS, MOVHPS and their kin: one half of an XMM register and eight bytes of memory. */
const half =
  (high: boolean): EmulHandler =>
  (c) => {
    const [dst, src, third] = c.insn.operands;
    if (third.kind !== OperandKind.NONE) throw unhandleable;
    checkAvailable(c, c.insn.vex !== 0 ? "vex" : "sse");
    const register = dst.kind === OperandKind.VECTOR ? dst : src;
    const at = registerAt(c, register) + (high ? 8 : 0);
    const { u8 } = fpuState(c);
    if (dst.kind === OperandKind.VECTOR) {
      if (src.kind !== OperandKind.MEMORY) throw unhandleable;
      u8.set(bytesOf(c.readLinear(c.memoryLinear(8, false), 8), 8), at);
    } else {
      c.writeLinear(c.memoryLinear(8, true), 8, numberOf(u8.subarray(at, at + 8)));
    }
  };

const storeX87Word =
  (offset: number): EmulHandler =>
  (c) => {
    checkAvailable(c, "x87");
    const { view, base } = fpuState(c);
    c.writeOperand(c.insn.operands[0], BigInt(view.getUint16(base + offset, true)));
  };

/** By mnemonic, VEX forms included. */
// biome-ignore format: a table of short handlers
const MOVES: Readonly<Record<string, EmulHandler>> = {
  MOVUPS: move(false), MOVUPD: move(false), MOVDQU: move(false), LDDQU: move(false), MOVSS: move(false), MOVSD: move(false),
  MOVD: move(false), MOVQ: move(false), MOVNTQ: move(false),
  MOVAPS: move(true), MOVAPD: move(true), MOVDQA: move(true), MOVNTPS: move(true), MOVNTPD: move(true), MOVNTDQ: move(true),
  MOVNTDQA: move(true),
  MOVLPS: half(false), MOVLPD: half(false), MOVHPS: half(true), MOVHPD: half(true),
};

/** Moves of vector registers and the few x87 instructions the emulator knows, by mnemonic. */
export const SIMD: Readonly<Record<string, EmulHandler>> = {
  ...MOVES,
  ...Object.fromEntries(Object.entries(MOVES).map(([name, handler]) => [`V${name}`, handler])),
  FNSTCW: storeX87Word(Off.FCW),
  FNSTSW: storeX87Word(Off.FSW),
  FLDCW: (c) => {
    checkAvailable(c, "x87");
    const { view, base } = fpuState(c);
    view.setUint16(base + Off.FCW, Number(c.readOperand(c.insn.operands[0]) & 0xffffn) | 0x40, true);
  },
  FWAIT: (c) => {
    const cr0 = kvmReadCr0(c.vcpu);
    if (cr0 & Cr0.MP && cr0 & Cr0.TS) fault(ExcVector.NM);
  },
};
