/** Every system instruction by the mnemonic of its opcode row. */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import type { OpcodeRow } from "../isa/opcodes";
import { Gpr, Off } from "../state";
import { vmxHandlers } from "../vmx/instructions";
import { Cr4 } from "./bits";
import { cacheHandlers } from "./caches";
import { controlHandlers } from "./control-registers";
import { cpuidHandlers } from "./cpuid";
import { debugHandlers } from "./debug-registers";
import { descriptorTableHandlers } from "./descriptor-tables";
import { farHandlers } from "./far-transfer";
import { flagHandlers } from "./flags";
import { checkMmx, checkSse, fpuHandlers } from "./fpu";
import { haltHandlers } from "./halt";
import { interruptHandlers } from "./interrupts";
import { ioHandlers } from "./io";
import { iretHandlers } from "./iret";
import { msrHandlers } from "./msrs";
import { effectiveAddress, gp0, undefinedOpcode } from "./operands";
import { randomHandlers } from "./random";
import { segmentLoadHandlers } from "./segment-loads";
import { selectorCheckHandlers } from "./selector-checks";
import { syscallHandlers } from "./syscall";
import { timeHandlers } from "./time";

/** RSM outside system-management mode, which is nowhere (SDM 3B 31.2). */
const rsm: SystemHandler = (cpu, instruction) => {
  cpu.guest?.interceptInstruction("rsm", instruction);
  throw undefinedOpcode();
};

/** CLFLUSH and its like: there is no cache, but the address must be readable (SDM 2A CLFLUSH). */
const flushLine: SystemHandler = (cpu, instruction) => {
  cpu.mmu.read(effectiveAddress(cpu, instruction, 1, false), 1);
  return Next.SEQUENTIAL;
};

function checkPkru(cpu: Cpu): void {
  if (!(cpu.state.lo(Off.CR4) & Cr4.PKE)) throw undefinedOpcode();
  if (cpu.state.gpr32(Gpr.RCX) !== 0) throw gp0();
}

const rdpkru: SystemHandler = (cpu) => {
  checkPkru(cpu);
  cpu.state.setGpr32(Gpr.RAX, cpu.state.u32(Off.PKRU));
  cpu.state.setGpr32(Gpr.RDX, 0);
  return Next.SEQUENTIAL;
};

const wrpkru: SystemHandler = (cpu) => {
  checkPkru(cpu);
  if (cpu.state.gpr32(Gpr.RDX) !== 0) throw gp0();
  cpu.state.setU32(Off.PKRU, cpu.state.gpr32(Gpr.RAX));
  cpu.contextChanged();
  return Next.ATTENTION;
};

export const systemHandlers: Readonly<Record<string, SystemHandler>> = {
  ...segmentLoadHandlers,
  ...farHandlers,
  ...iretHandlers,
  ...interruptHandlers,
  ...syscallHandlers,
  ...flagHandlers,
  ...haltHandlers,
  ...ioHandlers,
  ...descriptorTableHandlers,
  ...selectorCheckHandlers,
  ...controlHandlers,
  ...debugHandlers,
  ...msrHandlers,
  ...cpuidHandlers,
  ...timeHandlers,
  ...randomHandlers,
  ...cacheHandlers,
  ...fpuHandlers,
  ...vmxHandlers,
  CLFLUSH: flushLine,
  CLFLUSHOPT: flushLine,
  CLWB: flushLine,
  RSM: rsm,
  RDPKRU: rdpkru,
  WRPKRU: wrpkru,
};

const MMX_CODES = "PQN";
const VECTOR_CODES = "VWUH";

/**
 * What runs a row that has no semantics: the handler of its mnemonic. An MMX or SSE instruction without one is undefined,
 * but only after the checks that all of these make (SDM 3A 2.5, 13.1).
 */
export function handlerOf(row: OpcodeRow): SystemHandler | undefined {
  const handler = systemHandlers[row.mnemonic];
  if (handler) return handler;
  const uses = (codes: string): boolean => row.operands.some((o) => o.code.length === 1 && codes.includes(o.code));
  const check = uses(MMX_CODES) ? checkMmx : uses(VECTOR_CODES) && !row.vex ? checkSse : undefined;
  return check
    ? (cpu) => {
        check(cpu);
        throw undefinedOpcode();
      }
    : undefined;
}
