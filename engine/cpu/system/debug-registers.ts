/**
 * Debug registers (SDM 3B chapter 17): MOV DR, the breakpoints an I/O access meets, and debug exceptions that wait for the
 * end of an instruction. Breakpoints on data and instructions are found by `DataWatch` and the run loop.
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { DR7_LENGTHS } from "../data-watch";
import { OperandKind } from "../isa/instruction";
import { Off, Pending } from "../state";
import { Cr4, Dr6, Dr7 } from "./bits";
import { readGpr, requireCpl0, undefinedOpcode, writeGpr } from "./operands";

/** R/W field of DR7 that asks for I/O accesses (SDM 3B 17.2.4). */
const BREAK_ON_IO = 2;

const enabled = (dr7: number, n: number): boolean => ((dr7 >> (n * 2)) & 3) !== 0;
const condition = (dr7: number, n: number): number => (dr7 >> (16 + n * 4)) & 3;
const lengthOf = (dr7: number, n: number): number => DR7_LENGTHS[(dr7 >> (18 + n * 4)) & 3];

/** Notes I/O breakpoints met by IN, OUT, INS, OUTS; they are traps (SDM 3B 17.3.1.2). */
export function ioBreakpoint(cpu: Cpu, port: number, size: number): void {
  const { state } = cpu;
  const dr7 = state.lo(Off.DR7);
  if ((dr7 & Dr7.ENABLED) === 0 || !(state.lo(Off.CR4) & Cr4.DE)) return;
  const address = BigInt(port);
  let bits = 0;
  let armed = false;
  for (let n = 0; n < 4; n++) {
    if (condition(dr7, n) !== BREAK_ON_IO) continue;
    const length = BigInt(lengthOf(dr7, n));
    const start = state.u64(Off.DR0 + n * 8) & ~(length - 1n);
    if (address + BigInt(size) <= start || address >= start + length) continue;
    // A breakpoint that is not enabled is still reported beside one that is (SDM 3B 17.2.3).
    bits |= Dr6.B0 << n;
    armed ||= enabled(dr7, n);
  }
  if (armed) pendDebug(cpu, bits);
}

/** Adds DR6 bits to the debug exceptions that wait for the instruction's end. */
export function pendDebug(cpu: Cpu, bits: number): void {
  const { state } = cpu;
  state.setLo(Off.PENDING_DEBUG, state.lo(Off.PENDING_DEBUG) | bits);
  state.setU32(Off.PENDING, state.u32(Off.PENDING) | Pending.DEBUG);
  cpu.attention();
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
