/** MMX registers, which are the low 64 bits of the x87 registers by physical number (SDM 1 9.2.2, 9.5.1; 3A 12.2). */
import { type CpuState, Off } from "../state";
import { setTags, setTop } from "./stack";

const ALL_IN_USE = 0xff;
const ONES = 0xffff;

/** Place of MMX register i in the CPU block, 8 bytes. */
export const mmxOffset = (i: number): number => Off.X87 + i * 16;

/** What every MMX instruction but EMMS does to the x87: TOP becomes 0 and all registers are in use. */
export function enterMmx(state: CpuState): void {
  setTop(state, 0);
  setTags(state, ALL_IN_USE);
}

/** What a write of MMX register i does to the rest of its x87 register: exponent and sign become ones. */
export function markMmxWritten(state: CpuState, i: number): void {
  state.view.setUint16(state.base + mmxOffset(i) + 8, ONES, true);
}
