/** INT n, INT3, INTO, INT1, BOUND and the undefined opcodes (SDM 2A INT n; SDM 3B 20.3 for virtual-8086 mode). */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { CodeMode, Off, Rflags, Seg } from "../state";
import { Cr4 } from "./bits";
import { deliverToVector, EventType } from "./delivery";
import { deliverSoftware } from "./events";
import { gp0, MASK32, readGpr, readMemoryPart, undefinedOpcode } from "./operands";

/** Offset of the I/O map base in a TSS; the interrupt redirection bitmap is the 32 bytes below the map (SDM 3B 20.3.1). */
const IO_MAP_BASE = 0x66;

/** With VME: whether the TSS says that virtual-8086 code handles this vector itself. */
function redirected(cpu: Cpu, vector: number): boolean {
  if (!(cpu.state.lo(Off.CR4) & Cr4.VME)) return false;
  const base = cpu.state.segBase(Seg.TR);
  const map = Number(cpu.mmu.read((base + BigInt(IO_MAP_BASE)) & MASK32, 2, true));
  const at = map - 32 + (vector >> 3);
  if (at < 0 || at > cpu.state.segLimit(Seg.TR)) throw gp0();
  const byte = Number(cpu.mmu.read((base + BigInt(at)) & MASK32, 1, true));
  return ((byte >> (vector & 7)) & 1) === 0;
}

/** INT n in virtual-8086 mode through the interrupt table at linear address 0. */
function virtualInterrupt(cpu: Cpu, vector: number, length: number): void {
  const { state } = cpu;
  const target = cpu.mmu.read(BigInt(vector * 4), 4);
  const flags = state.rflags;
  const iopl3 = (flags & Rflags.IOPL) === Rflags.IOPL;
  const image = iopl3 ? flags : (flags & ~Rflags.IF) | Rflags.IOPL | (flags & Rflags.VIF ? Rflags.IF : 0);
  const event = { vector, type: EventType.SOFTWARE_INTERRUPT, instructionLength: length };
  deliverToVector(cpu, event, target, image);
  state.rflags = state.rflags & ~(Rflags.TF | Rflags.NT | (iopl3 ? Rflags.IF : Rflags.VIF));
}

const int: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("int", instruction);
  const vector = instruction.immediate & 0xff;
  if (cpu.state.codeMode === CodeMode.VM86) {
    if (redirected(cpu, vector)) {
      virtualInterrupt(cpu, vector, instruction.length);
      return Next.JUMP_ATTENTION;
    }
    if ((cpu.state.lo(Off.FLAGS_REST) & Rflags.IOPL) !== Rflags.IOPL) throw gp0();
  }
  deliverSoftware(cpu, vector, EventType.SOFTWARE_INTERRUPT, instruction.length);
  return Next.JUMP_ATTENTION;
};

const int3: SystemHandler = (cpu, instruction) => {
  deliverSoftware(cpu, Vector.BP, EventType.SOFTWARE_EXCEPTION, instruction.length);
  return Next.JUMP_ATTENTION;
};

const into: SystemHandler = (cpu, instruction) => {
  if (!(cpu.state.rflags & Rflags.OF)) return Next.SEQUENTIAL;
  deliverSoftware(cpu, Vector.OF, EventType.SOFTWARE_EXCEPTION, instruction.length);
  return Next.JUMP_ATTENTION;
};

const int1: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("icebp", instruction);
  deliverSoftware(cpu, Vector.DB, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, instruction.length);
  return Next.JUMP_ATTENTION;
};

/** BOUND: signed index against two limits in memory; #BR is a fault. */
const bound: SystemHandler = (cpu, instruction) => {
  const size = instruction.operandSize;
  const signed = (value: bigint): bigint => BigInt.asIntN(size * 8, value);
  const index = signed(readGpr(cpu, instruction.operands[0].reg, size));
  const lower = signed(readMemoryPart(cpu, instruction, 0, size));
  const upper = signed(readMemoryPart(cpu, instruction, size, size));
  if (index < lower || index > upper) throw new CpuFault(Vector.BR);
  return Next.SEQUENTIAL;
};

const undefinedHandler: SystemHandler = () => {
  throw undefinedOpcode();
};

export const interruptHandlers: Readonly<Record<string, SystemHandler>> = {
  INT: int,
  INT3: int3,
  INTO: into,
  INT1: int1,
  BOUND: bound,
  UD0: undefinedHandler,
  UD1: undefinedHandler,
  UD2: undefinedHandler,
};
