/** SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions (SDM 3A 5.8.7, 5.8.8; APM 2 6.1). */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { CodeMode, CpuState, Gpr, Off, Rflags, Seg, SegPart } from "../state";
import { Cr0, Cr4, Efer } from "./bits";
import {
  gp0,
  is64BitMode,
  isCanonical,
  isLongMode,
  MASK32,
  nextRip,
  readGpr,
  requireCpl0,
  undefinedOpcode,
  writeGpr,
} from "./operands";

/** Fixed contents these instructions load: flat, present, accessed, 4-GByte limit. */
const CODE64 = 0xa09b;
const CODE32 = 0xc09b;
const DATA = 0xc093;
const DPL3 = 3 << 5;

function loadFlat(cpu: Cpu, cs: number, code: number, ss: number, cpl: 0 | 3): void {
  const dpl = cpl === 3 ? DPL3 : 0;
  cpu.state.setSegment(Seg.CS, (cs & 0xfffc) | cpl, 0n, 0xffff_ffff, code | dpl);
  cpu.state.setSegment(Seg.SS, (ss & 0xfffc) | cpl, 0n, 0xffff_ffff, DATA | dpl);
  cpu.state.setU32(Off.CPL, cpl);
}

const RFLAGS_DEFINED = 0x3f_7fd7;

const syscall: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const intel = cpu.model.vendor === "GenuineIntel";
  // Intel knows SYSCALL in 64-bit mode only; AMD in every protected mode.
  if (!(state.lo(Off.EFER) & Efer.SCE) || (intel && !is64BitMode(cpu))) throw undefinedOpcode();
  if (state.codeMode <= CodeMode.VM86) throw undefinedOpcode();
  const back = nextRip(cpu, instruction);
  const flags = state.rflags & ~Rflags.RF;
  const selector = state.hi(Off.STAR) & 0xffff;
  state.setGpr(Gpr.RCX, back);
  if (isLongMode(cpu)) {
    state.setGpr(11, BigInt(flags >>> 0));
    const entry = is64BitMode(cpu) ? Off.LSTAR : Off.CSTAR;
    state.rip = state.u64(entry);
    state.rflags = flags & ~state.lo(Off.FMASK);
    loadFlat(cpu, selector, CODE64, selector + 8, 0);
  } else {
    state.rip = BigInt(state.lo(Off.STAR) >>> 0);
    state.rflags = flags & ~(Rflags.IF | Rflags.VM);
    loadFlat(cpu, selector, CODE32, selector + 8, 0);
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

const sysret: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const intel = cpu.model.vendor === "GenuineIntel";
  if (!(state.lo(Off.EFER) & Efer.SCE) || (intel && !is64BitMode(cpu))) throw undefinedOpcode();
  if (state.codeMode <= CodeMode.VM86) throw undefinedOpcode();
  requireCpl0(cpu);
  const selector = (state.hi(Off.STAR) >>> 16) & 0xffff;
  const rcx = state.gpr(Gpr.RCX);
  if (is64BitMode(cpu)) {
    const wide = instruction.operandSize === 8;
    if (wide && !isCanonical(cpu, rcx)) throw gp0();
    state.rip = wide ? rcx : rcx & MASK32;
    state.rflags = (Number(state.gpr(11) & MASK32) & RFLAGS_DEFINED & ~(Rflags.RF | Rflags.VM)) | Rflags.FIXED;
    loadFlat(cpu, wide ? selector + 16 : selector, wide ? CODE64 : CODE32, selector + 8, 3);
  } else {
    state.rip = rcx & MASK32;
    state.rflags = state.rflags | Rflags.IF;
    loadFlat(cpu, selector, CODE32, selector + 8, 3);
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

/** #GP(0) in real-address mode and with a null IA32_SYSENTER_CS; AMD has neither instruction in IA-32e mode. */
function sysenterSelector(cpu: Cpu): number {
  if (cpu.model.vendor === "AuthenticAMD" && isLongMode(cpu)) throw undefinedOpcode();
  const selector = cpu.state.lo(Off.SYSENTER_CS) & 0xfffc;
  if (!(cpu.state.lo(Off.CR0) & Cr0.PE) || selector === 0) throw gp0();
  return selector;
}

const sysenter: SystemHandler = (cpu) => {
  const { state } = cpu;
  const selector = sysenterSelector(cpu);
  const long = isLongMode(cpu);
  const rip = state.u64(Off.SYSENTER_EIP);
  const rsp = state.u64(Off.SYSENTER_ESP);
  state.rflags = state.rflags & ~(Rflags.VM | Rflags.IF | Rflags.RF);
  loadFlat(cpu, selector, long ? CODE64 : CODE32, selector + 8, 0);
  state.rip = long ? rip : rip & MASK32;
  state.setGpr(Gpr.RSP, long ? rsp : rsp & MASK32);
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

const sysexit: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const selector = sysenterSelector(cpu);
  requireCpl0(cpu);
  const rip = state.gpr(Gpr.RDX);
  const rsp = state.gpr(Gpr.RCX);
  if (instruction.operandSize === 8) {
    if (!isCanonical(cpu, rip) || !isCanonical(cpu, rsp)) throw gp0();
    loadFlat(cpu, selector + 32, CODE64, selector + 40, 3);
    state.rip = rip;
    state.setGpr(Gpr.RSP, rsp);
  } else {
    loadFlat(cpu, selector + 16, CODE32, selector + 24, 3);
    state.rip = rip & MASK32;
    state.setGpr(Gpr.RSP, rsp & MASK32);
  }
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

const gsBase = CpuState.segOffset(Seg.GS) + SegPart.BASE;
const fsBase = CpuState.segOffset(Seg.FS) + SegPart.BASE;

const swapgs: SystemHandler = (cpu) => {
  const { state } = cpu;
  requireCpl0(cpu);
  const base = state.u64(gsBase);
  state.setU64(gsBase, state.u64(Off.KERNEL_GS_BASE));
  state.setU64(Off.KERNEL_GS_BASE, base);
  return Next.SEQUENTIAL;
};

const readBase =
  (offset: number): SystemHandler =>
  (cpu, instruction) => {
    if (!(cpu.state.lo(Off.CR4) & Cr4.FSGSBASE)) throw undefinedOpcode();
    const operand = instruction.operands[0];
    writeGpr(cpu, operand.reg, operand.size, cpu.state.u64(offset));
    return Next.SEQUENTIAL;
  };

const writeBase =
  (offset: number): SystemHandler =>
  (cpu, instruction) => {
    if (!(cpu.state.lo(Off.CR4) & Cr4.FSGSBASE)) throw undefinedOpcode();
    const operand = instruction.operands[0];
    const value = readGpr(cpu, operand.reg, operand.size);
    if (!isCanonical(cpu, value)) throw gp0();
    cpu.state.setU64(offset, value);
    return Next.SEQUENTIAL;
  };

export const syscallHandlers: Readonly<Record<string, SystemHandler>> = {
  SYSCALL: syscall,
  SYSRET: sysret,
  SYSENTER: sysenter,
  SYSEXIT: sysexit,
  SWAPGS: swapgs,
  RDFSBASE: readBase(fsBase),
  RDGSBASE: readBase(gsBase),
  WRFSBASE: writeBase(fsBase),
  WRGSBASE: writeBase(gsBase),
};
