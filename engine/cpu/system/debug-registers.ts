/**
 * Debug registers (SDM 3B chapter 17): which breakpoints an access or an instruction meets, single step, the shadow of STI
 * and MOV SS, and MOV DR. The run loop asks for them where they can matter: pages with data breakpoints have no TLB
 * entries, and instructions that need watching run one at a time.
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { OperandKind } from "../isa/instruction";
import { Inhibit, Off, Pending, Rflags, Seg } from "../state";
import { Cr4, Dr6, Dr7 } from "./bits";
import { is64BitMode, MASK32, readGpr, requireCpl0, undefinedOpcode, writeGpr } from "./operands";

/** R/W fields of DR7 (SDM 3B 17.2.4). */
const BreakOn = { EXECUTE: 0, WRITE: 1, IO: 2, ACCESS: 3 } as const;
/** LEN fields: 0 one byte, 1 two, 2 eight, 3 four. */
const LENGTHS = [1, 2, 8, 4] as const;

const enabled = (dr7: number, n: number): boolean => ((dr7 >> (n * 2)) & 3) !== 0;
const condition = (dr7: number, n: number): number => (dr7 >> (16 + n * 4)) & 3;
const lengthOf = (dr7: number, n: number): number => LENGTHS[(dr7 >> (18 + n * 4)) & 3];
const isData = (on: number): boolean => (on & 1) !== 0;

/** DR6 bits of the breakpoints among `conditions` that [address, address + size) meets; 0 when none of them is on. */
function hits(cpu: Cpu, address: bigint, size: number, matches: (condition: number) => boolean): number {
  const { state } = cpu;
  const dr7 = state.lo(Off.DR7);
  let bits = 0;
  let armed = false;
  for (let n = 0; n < 4; n++) {
    if (!matches(condition(dr7, n))) continue;
    const length = BigInt(lengthOf(dr7, n));
    const start = state.u64(Off.DR0 + n * 8) & ~(length - 1n);
    if (address + BigInt(size) <= start || address >= start + length) continue;
    // A breakpoint that is not enabled is still reported beside one that is (SDM 3B 17.2.3).
    bits |= Dr6.B0 << n;
    armed ||= enabled(dr7, n);
  }
  return armed ? bits : 0;
}

/** DR6 bits of the data breakpoints an access meets; the caller adds them to the pending debug exceptions. */
export function dataBreakpoints(cpu: Cpu, linear: bigint, size: number, write: boolean): number {
  if ((cpu.state.lo(Off.DR7) & Dr7.ENABLED) === 0) return 0;
  return hits(cpu, linear, size, (on) => on === BreakOn.ACCESS || (write && on === BreakOn.WRITE));
}

/** Whether a data breakpoint that is on lies on the page of `linear`. */
export function watchesDataPage(cpu: Cpu, linear: bigint): boolean {
  const dr7 = cpu.state.lo(Off.DR7);
  if ((dr7 & Dr7.ENABLED) === 0) return false;
  for (let n = 0; n < 4; n++) {
    if (!enabled(dr7, n) || !isData(condition(dr7, n))) continue;
    // A breakpoint is aligned to its length, so that it never leaves its page.
    if (cpu.state.u64(Off.DR0 + n * 8) >> 12n === linear >> 12n) return true;
  }
  return false;
}

/** Notes I/O breakpoints met by IN, OUT, INS, OUTS; they are traps (SDM 3B 17.3.1.2). */
export function ioBreakpoint(cpu: Cpu, port: number, size: number): void {
  if ((cpu.state.lo(Off.DR7) & Dr7.ENABLED) === 0 || !(cpu.state.lo(Off.CR4) & Cr4.DE)) return;
  const bits = hits(cpu, BigInt(port), size, (on) => on === BreakOn.IO);
  if (bits !== 0) pendDebug(cpu, bits);
}

/** Adds DR6 bits to the debug exceptions that wait for the instruction's end. */
export function pendDebug(cpu: Cpu, bits: number): void {
  const { state } = cpu;
  state.setLo(Off.PENDING_DEBUG, state.lo(Off.PENDING_DEBUG) | bits);
  state.setU32(Off.PENDING, state.u32(Off.PENDING) | Pending.DEBUG);
  cpu.attention();
}

/** Whether any instruction breakpoint of DR0..DR3 is on. */
export function hasInstructionBreakpoints(cpu: Cpu): boolean {
  const dr7 = cpu.state.lo(Off.DR7);
  if ((dr7 & Dr7.ENABLED) === 0) return false;
  for (let n = 0; n < 4; n++) if (enabled(dr7, n) && condition(dr7, n) === BreakOn.EXECUTE) return true;
  return false;
}

/** Whether the next instruction must run alone, between `beforeInstruction` and `afterInstruction`. */
export function needsSingleStep(cpu: Cpu): boolean {
  const { state } = cpu;
  if (state.u32(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS)) return true;
  if (state.lo(Off.FLAGS_REST) & (Rflags.TF | Rflags.RF)) return true;
  return hasInstructionBreakpoints(cpu);
}

/** What `afterInstruction` must know of the moment before: TF and INHIBIT bits. */
export type StepToken = number;

/**
 * Before an instruction that runs alone: instruction breakpoints, and RF, which lasts for one instruction.
 * @throws CpuFault #DB when a breakpoint stands at CS:RIP (SDM 3B 17.3.1.1)
 */
export function beforeInstruction(cpu: Cpu): StepToken {
  const { state } = cpu;
  const flags = state.u32(Off.FLAGS_REST);
  const shadow = state.u32(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS);
  if (!(flags & Rflags.RF)) {
    if (hasInstructionBreakpoints(cpu) && !(shadow & Inhibit.MOV_SS)) {
      const linear = is64BitMode(cpu) ? state.rip : (state.segBase(Seg.CS) + state.rip) & MASK32;
      const bits = hits(cpu, linear, 1, (on) => on === BreakOn.EXECUTE);
      if (bits !== 0) throw new CpuFault(Vector.DB, undefined, BigInt(bits));
    }
  } else state.setU32(Off.FLAGS_REST, flags & ~Rflags.RF);
  return (flags & Rflags.TF) | shadow;
}

/** After the instruction has retired: the shadow of STI and MOV SS ends, and TF traps (SDM 3B 17.3.1.4). */
export function afterInstruction(cpu: Cpu, token: StepToken): void {
  const { state } = cpu;
  const shadow = token & (Inhibit.STI | Inhibit.MOV_SS);
  if (shadow) state.setU32(Off.INHIBIT, state.u32(Off.INHIBIT) & ~shadow);
  if (token & Rflags.TF) pendDebug(cpu, Dr6.BS);
}

const movDr: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  const write = instruction.operands[0].kind === OperandKind.DEBUG;
  let register = instruction.operands[write ? 0 : 1].reg;
  const gpr = instruction.operands[write ? 1 : 0];
  if (register > 7) throw undefinedOpcode();
  // The exit comes before the instruction's own faults (SDM 3C 26.1.3).
  cpu.guest?.interceptDr(register, write, instruction);
  if (register === 4 || register === 5) {
    if (state.lo(Off.CR4) & Cr4.DE) throw undefinedOpcode();
    register += 2;
  }
  requireCpl0(cpu);
  if (state.lo(Off.DR7) & Dr7.GD) throw new CpuFault(Vector.DB, undefined, BigInt(Dr6.BD));
  const offset = register < 4 ? Off.DR0 + register * 8 : register === 6 ? Off.DR6 : Off.DR7;
  if (!write) {
    writeGpr(cpu, gpr.reg, gpr.size, state.u64(offset));
    return Next.SEQUENTIAL;
  }
  const value = readGpr(cpu, gpr.reg, gpr.size);
  const before = state.u64(offset);
  if (register < 4) state.setU64(offset, value);
  else {
    if (value >> 32n !== 0n) throw new CpuFault(Vector.GP, 0);
    const low = Number(value);
    // Reserved bits of DR6 and DR7 read as they always do, whatever is written.
    state.setU64(offset, BigInt((register === 6 ? (low & 0xe00f) | Dr6.FIXED : (low & 0xffff_2bff) | Dr7.FIXED) >>> 0));
  }
  if (register !== 6 && state.u64(offset) !== before) {
    cpu.mmu.flushEverything();
    cpu.contextChanged();
  }
  return Next.ATTENTION;
};

export const debugHandlers: Readonly<Record<string, SystemHandler>> = { MOV_DR: movDr };
