/**
 * State of x87, MMX and SSE: FXSAVE and FXRSTOR, MXCSR, EMMS (SDM 1 10.2.3, 10.5; 2A), with the handlers of x87 instructions
 * (cpu/x87) and of XSAVE and its like.
 */
import { type Cpu, CpuFault, Next, type SystemHandler } from "../cpu";
import type { Instruction } from "../isa/instruction";
import { Off, SimdAccess } from "../state";
import { checkMmx, checkSse, checkX87 } from "../x87/checks";
import { x87Handlers } from "../x87/handlers";
import { setTags, setTop } from "../x87/stack";
import {
  aligned,
  checkMxcsr,
  hasWidePointers,
  LEGACY_SIZE,
  loadX87,
  loadXmm,
  readBlock,
  storeMxcsr,
  storeX87,
  storeXmm,
  vectorCount,
  writeBlock,
} from "./fpu-image";
import { effectiveAddress } from "./operands";
import { xsaveHandlers } from "./xsave";

const CR4_OSFXSR = 1 << 9;

const fxsave: SystemHandler = (cpu, instruction) => {
  checkX87(cpu);
  const linear = aligned(cpu, instruction, LEGACY_SIZE, 16n);
  const image = new DataView(new ArrayBuffer(LEGACY_SIZE));
  storeX87(cpu, image, hasWidePointers(cpu, instruction));
  storeMxcsr(cpu, image);
  // Without CR4.OSFXSR the XMM registers stay out (SDM 2A FXSAVE).
  const sse = (cpu.state.lo(Off.CR4) & CR4_OSFXSR) !== 0;
  if (sse) storeXmm(cpu, image);
  writeBlock(cpu, linear, image, [[0, sse ? 160 + vectorCount(cpu) * 16 : 160]]);
  return Next.SEQUENTIAL;
};

const fxrstor: SystemHandler = (cpu, instruction) => {
  checkX87(cpu);
  const linear = aligned(cpu, instruction, LEGACY_SIZE, 16n);
  const image = readBlock(cpu, linear, LEGACY_SIZE);
  const mxcsr = image.getUint32(24, true);
  const sse = (cpu.state.lo(Off.CR4) & CR4_OSFXSR) !== 0;
  if (sse) checkMxcsr(mxcsr);
  loadX87(cpu, image, hasWidePointers(cpu, instruction));
  if (sse) {
    cpu.state.setU32(Off.MXCSR, mxcsr);
    loadXmm(cpu, image);
  }
  return Next.SEQUENTIAL;
};

/** LDMXCSR and STMXCSR exist in VEX encoding too, which asks for other conditions. */
function checkMxcsrAccess(cpu: Cpu, instruction: Instruction): void {
  if (instruction.vex === 0) {
    checkSse(cpu);
    return;
  }
  const vector = cpu.state.u8[cpu.state.base + Off.SIMD_ACCESS + SimdAccess.VEX];
  if (vector !== 0) throw new CpuFault(vector);
}

const ldmxcsr: SystemHandler = (cpu, instruction) => {
  checkMxcsrAccess(cpu, instruction);
  const value = Number(cpu.mmu.read(effectiveAddress(cpu, instruction, 4), 4));
  checkMxcsr(value);
  cpu.state.setU32(Off.MXCSR, value);
  return Next.SEQUENTIAL;
};

const stmxcsr: SystemHandler = (cpu, instruction) => {
  checkMxcsrAccess(cpu, instruction);
  cpu.mmu.write(effectiveAddress(cpu, instruction, 4), 4, BigInt(cpu.state.u32(Off.MXCSR)));
  return Next.SEQUENTIAL;
};

/** All registers become empty, and the top of stack 0, as MMX instructions leave it (SDM 3A table 12-1). */
const emms: SystemHandler = (cpu) => {
  checkMmx(cpu);
  setTop(cpu.state, 0);
  setTags(cpu.state, 0);
  return Next.SEQUENTIAL;
};

export { checkMmx, checkSse };

export const fpuHandlers: Readonly<Record<string, SystemHandler>> = {
  ...x87Handlers,
  ...xsaveHandlers,
  FXSAVE: fxsave,
  FXRSTOR: fxrstor,
  LDMXCSR: ldmxcsr,
  STMXCSR: stmxcsr,
  EMMS: emms,
};
