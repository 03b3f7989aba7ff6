/** PUSHF, POPF, CLI, STI, CLAC, STAC with virtual-8086 and protected-mode virtual interrupts (SDM 2A/2B; SDM 3A 20.3). */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { CodeMode, Inhibit, Off, Rflags } from "../state";
import { peek, push, setStackPointer, stackPointer } from "./stack";

const CR4_VME = 1 << 0;
const CR4_PVI = 1 << 1;

const ioplOf = (cpu: Cpu): number => (cpu.state.lo(Off.FLAGS_REST) & Rflags.IOPL) >> Rflags.IOPL_SHIFT;
const isVm86 = (cpu: Cpu): boolean => cpu.state.codeMode === CodeMode.VM86;

/** Virtual-8086 code below IOPL 3: true when VME serves it with VIF, #GP(0) without. */
function virtualized(cpu: Cpu, size: number): boolean {
  if (!isVm86(cpu) || ioplOf(cpu) === 3) return false;
  if (!(cpu.state.lo(Off.CR4) & CR4_VME) || size !== 2) throw new CpuFault(Vector.GP, 0);
  return true;
}

const pushf: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("pushf", instruction);
  const size = instruction.operandSize;
  let image = cpu.state.rflags & ~(Rflags.VM | Rflags.RF);
  if (virtualized(cpu, size)) {
    image = (image & ~Rflags.IF) | Rflags.IOPL | (image & Rflags.VIF ? Rflags.IF : 0);
  }
  push(cpu, size, BigInt(image >>> 0));
  return Next.SEQUENTIAL;
};

const popf: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("popf", instruction);
  const { state } = cpu;
  const size = instruction.operandSize;
  const virtual = virtualized(cpu, size);
  const before = state.rflags;
  const popped = Number(peek(cpu, size) & 0xffff_ffffn);
  let writable: number = Rflags.ARITHMETIC | Rflags.TF | Rflags.DF | Rflags.NT;
  if (size > 2) writable |= Rflags.AC | Rflags.ID;
  let after: number;
  if (virtual) {
    if (popped & Rflags.TF || (popped & Rflags.IF && before & Rflags.VIP)) throw new CpuFault(Vector.GP, 0);
    after = (before & ~(writable | Rflags.VIF)) | (popped & writable) | (popped & Rflags.IF ? Rflags.VIF : 0);
  } else {
    const cpl = state.codeMode === CodeMode.REAL ? 0 : state.cpl;
    if (cpl === 0) writable |= Rflags.IOPL;
    if (cpl <= ioplOf(cpu)) writable |= Rflags.IF;
    after = (before & ~writable) | (popped & writable);
    if (size > 2) after &= ~Rflags.RF;
  }
  setStackPointer(cpu, stackPointer(cpu) + BigInt(size));
  state.rflags = after;
  if ((before ^ after) & Rflags.AC) cpu.contextChanged();
  return (before ^ after) & (Rflags.IF | Rflags.TF | Rflags.AC | Rflags.VIF) ? Next.ATTENTION : Next.SEQUENTIAL;
};

/** Which flag CLI and STI change: IF, or VIF where interrupts are virtual. @throws CpuFault #GP(0) */
function interruptFlag(cpu: Cpu): number {
  const { state } = cpu;
  if (state.codeMode === CodeMode.REAL) return Rflags.IF;
  const iopl = ioplOf(cpu);
  const cr4 = state.lo(Off.CR4);
  if (isVm86(cpu)) {
    if (iopl === 3) return Rflags.IF;
    if (cr4 & CR4_VME) return Rflags.VIF;
  } else {
    if (state.cpl <= iopl) return Rflags.IF;
    if (state.cpl === 3 && cr4 & CR4_PVI) return Rflags.VIF;
  }
  throw new CpuFault(Vector.GP, 0);
}

const cli: SystemHandler = (cpu) => {
  const flag = interruptFlag(cpu);
  cpu.state.setU32(Off.FLAGS_REST, cpu.state.u32(Off.FLAGS_REST) & ~flag);
  return Next.SEQUENTIAL;
};

const sti: SystemHandler = (cpu) => {
  const { state } = cpu;
  const flag = interruptFlag(cpu);
  const rest = state.u32(Off.FLAGS_REST);
  if (flag === Rflags.VIF && rest & Rflags.VIP) throw new CpuFault(Vector.GP, 0);
  state.setU32(Off.FLAGS_REST, rest | flag);
  // Only an STI that really turns interrupts on holds them off for one more instruction (SDM 2B STI).
  if (flag === Rflags.VIF || rest & Rflags.IF) return Next.SEQUENTIAL;
  state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) | Inhibit.STI);
  return Next.ATTENTION;
};

const setAc =
  (on: boolean): SystemHandler =>
  (cpu) => {
    if (cpu.state.cpl !== 0 || isVm86(cpu)) throw new CpuFault(Vector.UD);
    const rest = cpu.state.u32(Off.FLAGS_REST);
    const next = on ? rest | Rflags.AC : rest & ~Rflags.AC;
    if (next === rest) return Next.SEQUENTIAL;
    cpu.state.setU32(Off.FLAGS_REST, next);
    cpu.contextChanged();
    return Next.ATTENTION;
  };

export const flagHandlers: Readonly<Record<string, SystemHandler>> = {
  PUSHF: pushf,
  POPF: popf,
  CLI: cli,
  STI: sti,
  CLAC: setAc(false),
  STAC: setAc(true),
};
