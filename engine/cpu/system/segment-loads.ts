/** MOV and POP to segment registers, LDS and its like, ENTER (SDM 2A/2B). */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { Gpr, Inhibit, Off, Seg } from "../state";
import {
  is64BitMode,
  mergeStackPointer,
  readGpr,
  readMemoryPart,
  readOperand,
  StackReader,
  StackWriter,
  stackMask,
  undefinedOpcode,
  writeGpr,
} from "./operands";
import { loadSegment } from "./segmentation";

/**
 * What a load leads to. Only SS is part of the context (privilege, width of the stack); a load of it by MOV or POP holds
 * events off for an instruction (SDM 3A 6.8.3).
 */
function loaded(cpu: Cpu, seg: number, shadow: boolean): Next {
  if (seg !== Seg.SS) return Next.SEQUENTIAL;
  cpu.contextChanged();
  if (shadow) cpu.state.setU32(Off.INHIBIT, cpu.state.u32(Off.INHIBIT) | Inhibit.MOV_SS);
  return Next.ATTENTION;
}

const movSreg: SystemHandler = (cpu, instruction) => {
  const seg = instruction.operands[0].reg;
  if (seg === Seg.CS || seg > Seg.GS) throw undefinedOpcode();
  loadSegment(cpu, seg, Number(readOperand(cpu, instruction, 1) & 0xffffn));
  return loaded(cpu, seg, true);
};

const popSreg: SystemHandler = (cpu, instruction) => {
  const seg = instruction.operands[0].reg;
  const reader = new StackReader(cpu);
  const selector = Number(reader.pop(instruction.operandSize) & 0xffffn);
  // POP SS changes the width of the stack pointer only behind its own increment.
  const mask = stackMask(cpu);
  loadSegment(cpu, seg, selector);
  cpu.state.setGpr(Gpr.RSP, mergeStackPointer(cpu.state.gpr(Gpr.RSP), reader.pointer, mask));
  return loaded(cpu, seg, true);
};

const loadFarPointer =
  (seg: number): SystemHandler =>
  (cpu, instruction) => {
    const size = instruction.operandSize;
    const offset = readMemoryPart(cpu, instruction, 0, size);
    const selector = Number(readMemoryPart(cpu, instruction, size, 2));
    loadSegment(cpu, seg, selector);
    writeGpr(cpu, instruction.operands[0].reg, size, offset);
    return loaded(cpu, seg, false);
  };

/** ENTER: saves the frame pointer, copies outer ones by the display level, reserves the locals. */
const enter: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const size = instruction.operandSize;
  const reserve = BigInt(instruction.immediate & 0xffff);
  const level = instruction.immediate2 & 0x1f;
  const mask = stackMask(cpu);
  const stack = StackWriter.current(cpu);
  stack.push(size, state.gpr(Gpr.RBP));
  const frame = stack.pointer;
  if (level > 0) {
    const display = new StackReader(cpu);
    let at = state.gpr(Gpr.RBP) & mask;
    for (let i = 1; i < level; i++) {
      at = (at - BigInt(size)) & mask;
      display.pointer = at;
      stack.push(size, display.pop(size));
    }
    stack.push(size, frame);
  }
  const top = (stack.pointer - reserve) & mask;
  // The final stack pointer must be writable, so that a fault happens here and not in the body (SDM 2A ENTER).
  const probe = new StackWriter(
    cpu,
    top,
    mask,
    is64BitMode(cpu) ? 0n : state.segBase(Seg.SS),
    state.segLimit(Seg.SS),
    state.segAttributes(Seg.SS),
    is64BitMode(cpu),
    0,
    false,
  );
  probe.check(size);
  writeGpr(cpu, Gpr.RBP, size, size === 2 ? frame : mergeStackPointer(readGpr(cpu, Gpr.RBP, size), frame, mask));
  state.setGpr(Gpr.RSP, mergeStackPointer(state.gpr(Gpr.RSP), top, mask));
  return Next.SEQUENTIAL;
};

export const segmentLoadHandlers: Readonly<Record<string, SystemHandler>> = {
  MOV_SREG: movSreg,
  POP_SREG: popSreg,
  LDS: loadFarPointer(Seg.DS),
  LES: loadFarPointer(Seg.ES),
  LSS: loadFarPointer(Seg.SS),
  LFS: loadFarPointer(Seg.FS),
  LGS: loadFarPointer(Seg.GS),
  ENTER: enter,
};
