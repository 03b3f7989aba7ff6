/** x87 control and state instructions (SDM 1 chapter 8, 10.5); the rest of D8..DF is one row per opcode and form. */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const FPU_ROWS = [
  ["FWAIT", "9B", "", "sys"],
  ["FLDCW", "D9 /5", "Mw", "sys"], ["FNSTCW", "D9 /7", "Mw:w", "sys"], ["FNSTSW", "DD /7", "Mw:w", "sys"],
  ["FNSTSW", "DF (E0)", "AX:w", "sys"], ["FNCLEX", "DB (E2)", "", "sys"], ["FNINIT", "DB (E3)", "", "sys"],
  ["X87", "D8 mem", "M:n", "sys"], ["X87", "D9 mem", "M:n", "sys"], ["X87", "DA mem", "M:n", "sys"], ["X87", "DB mem", "M:n", "sys"],
  ["X87", "DC mem", "M:n", "sys"], ["X87", "DD mem", "M:n", "sys"], ["X87", "DE mem", "M:n", "sys"], ["X87", "DF mem", "M:n", "sys"],
  ["X87", "D8 reg", "", "sys"], ["X87", "D9 reg", "", "sys"], ["X87", "DA reg", "", "sys"], ["X87", "DB reg", "", "sys"],
  ["X87", "DC reg", "", "sys"], ["X87", "DD reg", "", "sys"], ["X87", "DE reg", "", "sys"], ["X87", "DF reg", "", "sys"],
  ["FXSAVE", "NP 0F AE /0", "M:w", "sys fxsr"], ["FXRSTOR", "NP 0F AE /1", "M", "sys fxsr"],
  ["LDMXCSR", "NP 0F AE /2", "Md", "sys sse"], ["STMXCSR", "NP 0F AE /3", "Md:w", "sys sse"],
  ["EMMS", "NP 0F 77", "", "sys mmx"],
] as const satisfies readonly RowSource[];
