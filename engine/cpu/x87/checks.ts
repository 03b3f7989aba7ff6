/** Conditions under which x87, MMX and SSE instructions raise #NM, #UD or #MF (SDM 3A 2.5, tables 2-2 and 9-3; SDM 1 8.7). */
import { type Cpu, CpuFault, Vector } from "../cpu";
import { Off, Rflags } from "../state";
import { Fsw } from "./stack";

const CR0_MP = 1 << 1;
const CR0_EM = 1 << 2;
const CR0_TS = 1 << 3;
const CR0_NE = 1 << 5;
const CR4_OSFXSR = 1 << 9;

/** x87 instructions: #NM when CR0.EM or CR0.TS is set. */
export function checkX87(cpu: Cpu): void {
  if (cpu.state.lo(Off.CR0) & (CR0_EM | CR0_TS)) throw new CpuFault(Vector.NM);
}

/** WAIT: #NM when CR0.MP and CR0.TS are set. */
export function checkWait(cpu: Cpu): void {
  const both = CR0_MP | CR0_TS;
  if ((cpu.state.lo(Off.CR0) & both) === both) throw new CpuFault(Vector.NM);
}

/**
 * Waiting x87 and MMX instructions: #MF for an unmasked exception that is still pending (SDM 1 8.7). Without CR0.NE the
 * processor asserts FERR# instead, which PC boards turn into interrupt 13, and waits for it; where none can come, it goes on
 * as with IGNNE# (SDM 1 8.7.1, 3A 2.5).
 * @returns true when an interrupt has to be taken before the instruction can run
 */
export function checkPendingX87(cpu: Cpu): boolean {
  const { state } = cpu;
  if ((state.view.getUint16(state.base + Off.FSW, true) & Fsw.ES) === 0) return false;
  if (state.lo(Off.CR0) & CR0_NE) throw new CpuFault(Vector.MF);
  cpu.bus.floatError?.(true);
  return (state.u32(Off.FLAGS_REST) & Rflags.IF) !== 0 && cpu.interrupts.pending() >= 0;
}

/** FNCLEX and FNINIT have cleared all exceptions: FERR# goes away. */
export function endFloatError(cpu: Cpu): void {
  if ((cpu.state.lo(Off.CR0) & CR0_NE) === 0) cpu.bus.floatError?.(false);
}

/** MMX instructions: #UD with CR0.EM, #NM with CR0.TS. */
export function checkMmx(cpu: Cpu): void {
  const cr0 = cpu.state.lo(Off.CR0);
  if (cr0 & CR0_EM) throw new CpuFault(Vector.UD);
  if (cr0 & CR0_TS) throw new CpuFault(Vector.NM);
  checkPendingX87(cpu);
}

/** SSE instructions: #UD with CR0.EM or without CR4.OSFXSR, #NM with CR0.TS. */
export function checkSse(cpu: Cpu): void {
  const cr0 = cpu.state.lo(Off.CR0);
  if (cr0 & CR0_EM || !(cpu.state.lo(Off.CR4) & CR4_OSFXSR)) throw new CpuFault(Vector.UD);
  if (cr0 & CR0_TS) throw new CpuFault(Vector.NM);
}
