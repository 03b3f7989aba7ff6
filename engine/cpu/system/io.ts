/** Port I/O: IN, OUT, INS, OUTS with the checks of IOPL and the TSS's I/O map (SDM 1 chapter 19; SDM 2A). */

import { PORT_ACCESS_NANOSECONDS } from "../../clock";
import { TraceKind } from "../../trace";
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { type Instruction, OperandKind, Rep } from "../isa/instruction";
import { CodeMode, CpuState, Gpr, Off, Rflags, Seg, SegAttr, SegPart } from "../state";
import { ioBreakpoint } from "./debug-registers";
import { readGpr, readOperand, segmentLinear, truncate, uncheckedLinear, writeGpr, writeOperand } from "./operands";
import { SystemType } from "./segmentation";

/** Offset of the I/O map base in a 32- or 64-bit TSS (SDM 3A figures 8-2 and 8-11). */
const IO_MAP_BASE = 0x66;

/** #GP(0) unless the program may use `size` ports from `port` on (SDM 1 19.5). */
export function checkIoPermission(cpu: Cpu, port: number, size: number): void {
  const { state } = cpu;
  const mode = state.codeMode;
  if (mode === CodeMode.REAL) return;
  const iopl = (state.lo(Off.FLAGS_REST) & Rflags.IOPL) >> Rflags.IOPL_SHIFT;
  if (mode !== CodeMode.VM86 && state.cpl <= iopl) return;
  const tr = CpuState.segOffset(Seg.TR);
  const attributes = state.u32(tr + SegPart.ATTRIBUTES);
  const type = attributes & SegAttr.TYPE;
  const limit = state.u32(tr + SegPart.LIMIT);
  const is32 = type === SystemType.TSS_AVAILABLE || type === SystemType.TSS_BUSY;
  if (!(attributes & SegAttr.P) || !is32 || limit < IO_MAP_BASE + 1) throw new CpuFault(Vector.GP, 0);
  const base = state.u64(tr + SegPart.BASE);
  const map = Number(cpu.mmu.read(base + BigInt(IO_MAP_BASE), 2, true));
  const at = map + (port >> 3);
  // Two bytes are always read, because the ports may straddle a byte.
  if (at + 1 > limit) throw new CpuFault(Vector.GP, 0);
  const bits = Number(cpu.mmu.read(base + BigInt(at), 2, true)) >> (port & 7);
  if (bits & ((1 << size) - 1)) throw new CpuFault(Vector.GP, 0);
}

function trace(cpu: Cpu, port: number, size: number, input: boolean, value: number): void {
  if (!(cpu.trace.armed & TraceKind.Io)) return;
  const direction = input ? "in" : "out";
  cpu.trace.hit({
    kind: TraceKind.Io,
    vcpu: cpu.id,
    text: `${direction} port 0x${port.toString(16)} size ${size} value 0x${value.toString(16)}`,
    detail: { port: BigInt(port), size: BigInt(size), input, value: BigInt(value) },
  });
}

function portIn(cpu: Cpu, port: number, size: number): number {
  cpu.clock.pass(PORT_ACCESS_NANOSECONDS);
  const value = cpu.bus.portIn(port, size) >>> 0;
  trace(cpu, port, size, true, value);
  ioBreakpoint(cpu, port, size);
  return value;
}

function portOut(cpu: Cpu, port: number, size: number, value: number): void {
  trace(cpu, port, size, false, value);
  cpu.clock.pass(PORT_ACCESS_NANOSECONDS);
  cpu.bus.portOut(port, size, value);
  ioBreakpoint(cpu, port, size);
}

/** The port: an immediate or DX. */
function portOf(cpu: Cpu, instruction: Instruction, n: number): number {
  if (instruction.operands[n].kind === OperandKind.IMMEDIATE) return instruction.immediate & 0xff;
  return Number(readGpr(cpu, Gpr.RDX, 2));
}

const handleIn: SystemHandler = (cpu, instruction) => {
  const { size } = instruction.operands[0];
  const port = portOf(cpu, instruction, 1);
  checkIoPermission(cpu, port, size);
  cpu.guest?.interceptIo(port, size, true, instruction);
  writeOperand(cpu, instruction, 0, BigInt(portIn(cpu, port, size)));
  return Next.SEQUENTIAL;
};

const handleOut: SystemHandler = (cpu, instruction) => {
  const { size } = instruction.operands[1];
  const port = portOf(cpu, instruction, 0);
  checkIoPermission(cpu, port, size);
  cpu.guest?.interceptIo(port, size, false, instruction);
  portOut(cpu, port, size, Number(readOperand(cpu, instruction, 1)));
  return Next.SEQUENTIAL;
};

/** INS and OUTS: each iteration is complete before the next begins, so that a fault finds RCX, RSI and RDI at it. */
const stringIo =
  (input: boolean): SystemHandler =>
  (cpu, instruction) => {
    const { state } = cpu;
    const size = instruction.operands[input ? 0 : 1].size;
    const width = instruction.addressSize;
    const port = Number(readGpr(cpu, Gpr.RDX, 2));
    const index = input ? Gpr.RDI : Gpr.RSI;
    const seg = input ? Seg.ES : instruction.segment;
    const step = BigInt(state.lo(Off.FLAGS_REST) & Rflags.DF ? -size : size);
    const repeated = instruction.rep !== Rep.NONE;
    while (!repeated || readGpr(cpu, Gpr.RCX, width) !== 0n) {
      checkIoPermission(cpu, port, size);
      const offset = readGpr(cpu, index, width);
      cpu.guest?.interceptIo(port, size, input, instruction, uncheckedLinear(cpu, seg, offset));
      const linear = segmentLinear(cpu, seg, offset, size, input);
      if (input) {
        cpu.mmu.checkWrite(linear, size);
        cpu.mmu.write(linear, size, BigInt(portIn(cpu, port, size)));
      } else portOut(cpu, port, size, Number(cpu.mmu.read(linear, size)));
      writeGpr(cpu, index, width, truncate(offset + step, width));
      if (!repeated) break;
      const left = readGpr(cpu, Gpr.RCX, width) - 1n;
      writeGpr(cpu, Gpr.RCX, width, left);
      // Single-stepping, and the monitor trap flag, see every iteration (SDM 3B 17.3.1.4; 3C 26.5.2).
      if (left !== 0n && (cpu.guest?.stepsIterations || state.lo(Off.FLAGS_REST) & Rflags.TF)) {
        cpu.guest?.iterated?.();
        return Next.JUMP_ATTENTION;
      }
    }
    return Next.SEQUENTIAL;
  };

export const ioHandlers: Readonly<Record<string, SystemHandler>> = {
  IN: handleIn,
  OUT: handleOut,
  INS: stringIo(true),
  OUTS: stringIo(false),
};
