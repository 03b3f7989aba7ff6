/** HLT, PAUSE, MONITOR, MWAIT (SDM 2A, 2B; SDM 3A 9.10). */
import { CpuFault, Next, type SystemHandler, Vector } from "../cpu";

import { Activity, Gpr, Seg } from "../state";
import { readGpr, requireCpl0, segmentLinear } from "./operands";

const hlt: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  cpu.guest?.interceptInstruction("hlt", instruction);
  cpu.state.activity = Activity.HLT;
  return Next.ATTENTION;
};

const pause: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("pause", instruction);
  return Next.SEQUENTIAL;
};

/** MONITOR checks and touches its address; nothing is armed, see MWAIT. */
const monitor: SystemHandler = (cpu, instruction) => {
  if (cpu.state.cpl !== 0) throw new CpuFault(Vector.UD);
  cpu.guest?.interceptInstruction("monitor", instruction);
  if (cpu.state.gpr32(Gpr.RCX) !== 0) throw new CpuFault(Vector.GP, 0);
  const seg = instruction.segmentOverride ? instruction.segment : Seg.DS;
  const linear = segmentLinear(cpu, seg, readGpr(cpu, Gpr.RAX, instruction.addressSize), 1, false);
  cpu.mmu.read(linear, 1);
  return Next.SEQUENTIAL;
};

/** MWAIT may end at once for any reason the implementation has (SDM 3A 9.10.4): here it always does. */
const mwait: SystemHandler = (cpu, instruction) => {
  if (cpu.state.cpl !== 0) throw new CpuFault(Vector.UD);
  cpu.guest?.interceptInstruction("mwait", instruction);
  if (cpu.state.gpr32(Gpr.RCX) > 1) throw new CpuFault(Vector.GP, 0);
  return Next.SEQUENTIAL;
};

export const haltHandlers: Readonly<Record<string, SystemHandler>> = {
  HLT: hlt,
  PAUSE: pause,
  MONITOR: monitor,
  MWAIT: mwait,
};
