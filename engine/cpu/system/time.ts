/** RDTSC, RDTSCP, RDPID, RDPMC (SDM 2B, SDM 3B 18.17). The TSC is virtual time: see clock.ts. */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { Gpr, Off } from "../state";
import { writeOperand } from "./operands";

const CR4_TSD = 1 << 2;
const CR4_PCE = 1 << 8;

/** This processor's time-stamp counter, before any VMX offset. */
export function rawTsc(cpu: Cpu): bigint {
  return BigInt.asUintN(64, BigInt(cpu.clock.now) + cpu.state.u64(Off.TSC_BASE));
}

/** The time-stamp counter as the running program sees it. */
export function readTsc(cpu: Cpu): bigint {
  const tsc = rawTsc(cpu);
  return cpu.guest ? BigInt.asUintN(64, cpu.guest.adjustTsc(tsc)) : tsc;
}

function checkTsd(cpu: Cpu): void {
  if (cpu.state.lo(Off.CR4) & CR4_TSD && cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
}

function giveTsc(cpu: Cpu): void {
  const { state } = cpu;
  // Programs wait by reading the counter: the plain case makes no bigint.
  if (!cpu.guest && (state.lo(Off.TSC_BASE) | state.hi(Off.TSC_BASE)) === 0) {
    const { now } = cpu.clock;
    state.setGpr32(Gpr.RAX, now);
    state.setGpr32(Gpr.RDX, Math.floor(now / 0x1_0000_0000));
    return;
  }
  const tsc = readTsc(cpu);
  state.setGpr(Gpr.RAX, tsc & 0xffff_ffffn);
  state.setGpr(Gpr.RDX, tsc >> 32n);
}

const rdtsc: SystemHandler = (cpu, instruction) => {
  checkTsd(cpu);
  cpu.guest?.interceptInstruction("rdtsc", instruction);
  giveTsc(cpu);
  return Next.SEQUENTIAL;
};

const rdtscp: SystemHandler = (cpu, instruction) => {
  // In a guest it may not exist at all (SDM 3C 26.3): that is asked first.
  cpu.guest?.interceptInstruction("rdtscp", instruction);
  checkTsd(cpu);
  giveTsc(cpu);
  cpu.state.setGpr32(Gpr.RCX, cpu.state.u32(Off.TSC_AUX));
  return Next.SEQUENTIAL;
};

const rdpid: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("rdpid", instruction);
  writeOperand(cpu, instruction, 0, BigInt(cpu.state.u32(Off.TSC_AUX)));
  return Next.SEQUENTIAL;
};

/** CPUID leaf 0AH announces no performance counter, so that every index is a wrong one. */
const rdpmc: SystemHandler = (cpu, instruction) => {
  if (!(cpu.state.lo(Off.CR4) & CR4_PCE) && cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
  cpu.guest?.interceptInstruction("rdpmc", instruction);
  throw new CpuFault(Vector.GP, 0);
};

export const timeHandlers: Readonly<Record<string, SystemHandler>> = {
  RDTSC: rdtsc,
  RDTSCP: rdtscp,
  RDPID: rdpid,
  RDPMC: rdpmc,
};
