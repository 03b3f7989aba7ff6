/** Under which control registers vector instructions exist (SDM 1 13.5, 14.1.3; 3A 2.5 table 2-2, 13.1). */
import { Vector } from "../cpu";
import { type CpuState, Off, SimdAccess } from "../state";

const CR0_EM = 1 << 2;
const CR0_TS = 1 << 3;
const CR4_OSFXSR = 1 << 9;
const CR4_OSXSAVE = 1 << 18;
/** XCR0: the SSE and AVX components. */
const SSE_AND_AVX = 6;

/**
 * Works out SIMD_ACCESS. #UD: legacy SSE with CR0.EM or without CR4.OSFXSR, MMX with CR0.EM, VEX without CR4.OSXSAVE or
 * without both components in XCR0. Otherwise #NM with CR0.TS.
 */
export function deriveSimdAccess(state: CpuState): void {
  const cr0 = state.lo(Off.CR0);
  const cr4 = state.lo(Off.CR4);
  const present = cr0 & CR0_TS ? Vector.NM : 0;
  const emulated = (cr0 & CR0_EM) !== 0;
  const enabled = (cr4 & CR4_OSXSAVE) !== 0 && (state.lo(Off.XCR0) & SSE_AND_AVX) === SSE_AND_AVX;
  const word =
    ((emulated || (cr4 & CR4_OSFXSR) === 0 ? Vector.UD : present) << (SimdAccess.SSE * 8)) |
    ((enabled ? present : Vector.UD) << (SimdAccess.VEX * 8)) |
    ((emulated ? Vector.UD : present) << (SimdAccess.MMX * 8));
  state.setU32(Off.SIMD_ACCESS, word);
}
