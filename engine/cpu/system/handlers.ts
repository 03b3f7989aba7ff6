/** Every system instruction by the mnemonic of its opcode row. */
import { type Cpu, Next, type SystemHandler } from "../cpu";
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
import { fpuHandlers } from "./fpu";
import { haltHandlers } from "./halt";
import { interruptHandlers } from "./interrupts";
import { ioHandlers } from "./io";
import { iretHandlers } from "./iret";
import { msrHandlers } from "./msrs";
import { effectiveAddress, gp0, undefinedOpcode } from "./operands";
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

/** What no handler stands for is not executed by this processor: #UD. */
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
