/** IRET in all forms (SDM 2A IRET; SDM 3A 6.12.1, 8.4, 20.2.4 for virtual-8086 mode). */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { CodeMode, Gpr, Inhibit, Off, Rflags, Seg } from "../state";
import { Cr4 } from "./bits";
import {
  checkTarget,
  is64BitCode,
  jumpReal,
  loadCode,
  loadReturnFrame,
  readReturnCode,
  readReturnStack,
} from "./far-transfer";
import { gp0, is64BitMode, isLongMode, MASK16, MASK32, StackReader } from "./operands";
import { VM86_ATTRIBUTES } from "./segmentation";
import { switchTask, TaskSwitchSource } from "./task-switch";

const ioplOf = (flags: number): number => (flags & Rflags.IOPL) >> Rflags.IOPL_SHIFT;

/** Flags IRET takes from the image whatever the privilege. */
const ALWAYS = Rflags.ARITHMETIC | Rflags.TF | Rflags.DF | Rflags.NT;
const ALWAYS_WIDE = Rflags.RF | Rflags.AC | Rflags.ID;

/** RFLAGS behind an IRET executed at `cpl` with `size` bytes of image. */
function mergeFlags(before: number, image: number, size: number, cpl: number): number {
  let mask: number = ALWAYS;
  if (size > 2) mask |= ALWAYS_WIDE;
  if (cpl <= ioplOf(before)) mask |= Rflags.IF;
  if (cpl === 0) {
    mask |= Rflags.IOPL;
    if (size > 2) mask |= Rflags.VIF | Rflags.VIP;
  }
  return (before & ~mask) | (image & mask);
}

/** Real-address mode, and virtual-8086 mode at IOPL 3. */
function iretReal(cpu: Cpu, size: number): void {
  const { state } = cpu;
  const reader = new StackReader(cpu);
  const rip = reader.pop(size);
  const selector = Number(reader.pop(size) & MASK16);
  const image = Number(reader.pop(size) & MASK32);
  const before = state.rflags;
  const vm86 = state.codeMode === CodeMode.VM86;
  let mask: number = ALWAYS | Rflags.IF;
  if (!vm86) mask |= Rflags.IOPL;
  if (size > 2) mask |= ALWAYS_WIDE;
  jumpReal(cpu, selector, rip);
  reader.commit();
  state.rflags = (before & ~mask) | (image & mask);
}

/** Virtual-8086 mode below IOPL 3: with VME a 16-bit IRET works on VIF (SDM 3B 20.3). */
function iretVirtualized(cpu: Cpu, size: number): void {
  const { state } = cpu;
  if (!(state.lo(Off.CR4) & Cr4.VME) || size !== 2) throw gp0();
  const reader = new StackReader(cpu);
  const rip = reader.pop(2);
  const selector = Number(reader.pop(2));
  const image = Number(reader.pop(2));
  const before = state.rflags;
  if (image & Rflags.TF || (image & Rflags.IF && before & Rflags.VIP)) throw gp0();
  jumpReal(cpu, selector, rip);
  reader.commit();
  const vif = image & Rflags.IF ? Rflags.VIF : 0;
  state.rflags = (before & ~(ALWAYS | Rflags.VIF)) | (image & ALWAYS) | vif;
}

/** To virtual-8086 mode, from CPL 0: six more words on the stack. */
function iretToVm86(cpu: Cpu, reader: StackReader, rip: bigint, cs: number, image: number): void {
  const { state } = cpu;
  const esp = reader.pop(4);
  const selectors = [Seg.SS, Seg.ES, Seg.DS, Seg.FS, Seg.GS].map((seg) => [seg, Number(reader.pop(4) & MASK16)]);
  if (rip > MASK16) throw gp0();
  const load = (seg: number, selector: number): void =>
    state.setSegment(seg, selector, BigInt(selector << 4), 0xffff, VM86_ATTRIBUTES);
  load(Seg.CS, cs);
  for (const [seg, selector] of selectors) load(seg, selector);
  state.rip = rip;
  state.setGpr(Gpr.RSP, esp);
  state.setU32(Off.CPL, 3);
  state.rflags = (image & 0x3f_7fd7) | Rflags.FIXED;
}

/** To a code segment of protected or IA-32e mode. */
function iretProtected(cpu: Cpu, size: number): void {
  const { state } = cpu;
  const reader = new StackReader(cpu);
  const rip = reader.pop(size);
  const cs = Number(reader.pop(size) & MASK16);
  const image = Number(reader.pop(size) & MASK32);
  const before = state.rflags;
  const { cpl } = state;
  if (size === 4 && image & Rflags.VM && cpl === 0 && !isLongMode(cpu)) {
    iretToVm86(cpu, reader, rip, cs, image);
    return;
  }
  const code = readReturnCode(cpu, cs);
  // 64-bit mode pops SS:RSP always; elsewhere only a return to an outer level does.
  if (is64BitMode(cpu) || (cs & 3) > cpl) {
    const rsp = reader.pop(size);
    const ss = Number(reader.pop(size) & MASK16);
    const stack = readReturnStack(cpu, ss, code);
    checkTarget(cpu, code, rip);
    loadReturnFrame(cpu, code, rip, ss, stack, rsp, size);
  } else {
    checkTarget(cpu, code, rip);
    loadCode(cpu, code, cpl, rip);
    reader.commit();
  }
  const flags = mergeFlags(before, image, size, cpl);
  // A 32-bit frame cannot bring VM back in IA-32e mode.
  state.rflags = is64BitCode(cpu, code) ? flags & ~Rflags.VM : flags;
}

const iret: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  cpu.guest?.interceptInstruction("iret", instruction);
  const size = instruction.operandSize;
  // IRET ends the blocking of NMIs even when it faults (SDM 3A 6.7.1).
  state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~Inhibit.NMI);
  const flags = state.lo(Off.FLAGS_REST);
  if (state.codeMode === CodeMode.REAL) iretReal(cpu, size);
  else if (state.codeMode === CodeMode.VM86) {
    if (ioplOf(flags) === 3) iretReal(cpu, size);
    else iretVirtualized(cpu, size);
  } else if (flags & Rflags.NT) {
    if (isLongMode(cpu)) throw gp0();
    const back = Number(cpu.mmu.read(state.segBase(Seg.TR), 2, true));
    switchTask(cpu, back, TaskSwitchSource.IRET, instruction.length);
    return Next.JUMP_ATTENTION;
  } else iretProtected(cpu, size);
  cpu.contextChanged();
  return Next.JUMP_ATTENTION;
};

export const iretHandlers: Readonly<Record<string, SystemHandler>> = { IRET: iret };
