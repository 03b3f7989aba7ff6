/** What follows from CR0, EFER, RFLAGS.VM, CS and SS: how code is decoded, and the current privilege level. */
import type { Cpu } from "../cpu";
import { CodeMode, Off, Rflags, Seg, SegAttr } from "../state";
import { Cr0, Efer } from "./bits";

/**
 * Works out CODE_MODE and CPL. CPL is SS.DPL in protected mode (SDM 3C 25.4.1 relies on the same), 3 in virtual-8086 and
 * 0 in real-address mode.
 */
export function deriveMode(cpu: Cpu): void {
  const { state } = cpu;
  const cs = state.segAttributes(Seg.CS);
  const wide = (cs & SegAttr.DB) !== 0;
  let mode: CodeMode;
  let cpl = (state.segAttributes(Seg.SS) & SegAttr.DPL) >> SegAttr.DPL_SHIFT;
  if (!(state.lo(Off.CR0) & Cr0.PE)) {
    mode = CodeMode.REAL;
    cpl = 0;
  } else if (state.lo(Off.EFER) & Efer.LMA) {
    mode = cs & SegAttr.L ? CodeMode.LONG64 : wide ? CodeMode.COMPAT32 : CodeMode.COMPAT16;
  } else if (state.lo(Off.FLAGS_REST) & Rflags.VM) {
    mode = CodeMode.VM86;
    cpl = 3;
  } else mode = wide ? CodeMode.PROTECTED32 : CodeMode.PROTECTED16;
  state.setU32(Off.CODE_MODE, mode);
  state.setU32(Off.CPL, cpl);
}
