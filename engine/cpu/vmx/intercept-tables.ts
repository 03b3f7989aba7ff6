/** Which instructions exit, by what control and with what reason (SDM 3C 26.1.2, 26.1.3). */
import type { SimpleIntercept } from "../guest-mode";
import { CpuBased, SecondaryExec } from "./controls";
import { ExitReason } from "./exit-reasons";

type ByInstruction<T> = Partial<Readonly<Record<SimpleIntercept, T>>>;

/** Always, and no more to say than the reason. */
export const ALWAYS: ByInstruction<number> = {
  cpuid: ExitReason.CPUID,
  getsec: ExitReason.GETSEC,
  invd: ExitReason.INVD,
  xsetbv: ExitReason.XSETBV,
  vmcall: ExitReason.VMCALL,
  vmlaunch: ExitReason.VMLAUNCH,
  vmresume: ExitReason.VMRESUME,
  vmxoff: ExitReason.VMOFF,
};

/** By a control of their own in the primary processor-based controls. */
export const BY_PRIMARY: ByInstruction<readonly [control: number, reason: number]> = {
  hlt: [CpuBased.HLT_EXITING, ExitReason.HLT],
  rdpmc: [CpuBased.RDPMC_EXITING, ExitReason.RDPMC],
  rdtsc: [CpuBased.RDTSC_EXITING, ExitReason.RDTSC],
  monitor: [CpuBased.MONITOR_EXITING, ExitReason.MONITOR_INSTRUCTION],
  mwait: [CpuBased.MWAIT_EXITING, ExitReason.MWAIT_INSTRUCTION],
};

/** By one in the secondary controls. */
export const BY_SECONDARY: ByInstruction<readonly [control: number, reason: number]> = {
  wbinvd: [SecondaryExec.WBINVD_EXITING, ExitReason.WBINVD],
  wbnoinvd: [SecondaryExec.WBINVD_EXITING, ExitReason.WBINVD],
};

/** Always, with one memory operand to tell of (table 28-13). */
export const POINTERS: ByInstruction<number> = {
  vmclear: ExitReason.VMCLEAR,
  vmptrld: ExitReason.VMPTRLD,
  vmptrst: ExitReason.VMPTRST,
  vmxon: ExitReason.VMON,
};

/** With descriptor-table exiting; their identity in the instruction information (tables 28-10 and 28-11). */
export const TABLE_REGISTERS: ByInstruction<number> = { sgdt: 0, sidt: 1, lgdt: 2, lidt: 3 };
export const SEGMENT_REGISTERS: ByInstruction<number> = { sldt: 0, str: 1, lldt: 2, ltr: 3 };
