/**
 * x87 instructions (SDM 2D appendix A, tables ), and those on x87 and SSE state. The rows X87 are what remains of
 * D8 to DF: no instruction, but #NM comes before #UD. Encodings that the manual calls reserved and every processor treats
 * as another instruction have that one's mnemonic.
 */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const FPU_ROWS = [
  ["FWAIT", "9B", "", "sys"],

  ["FADD", "D8 /0 mem", "Md", "sys"], ["FADD", "D8 /0 reg", "", "sys"], ["FADD", "DC /0 mem", "Mq", "sys"], ["FADD", "DC /0 reg", "", "sys"],
  ["FMUL", "D8 /1 mem", "Md", "sys"], ["FMUL", "D8 /1 reg", "", "sys"], ["FMUL", "DC /1 mem", "Mq", "sys"], ["FMUL", "DC /1 reg", "", "sys"],
  ["FCOM", "D8 /2 mem", "Md", "sys"], ["FCOM", "D8 /2 reg", "", "sys"], ["FCOM", "DC /2 mem", "Mq", "sys"], ["FCOM", "DC /2 reg", "", "sys"],
  ["FCOMP", "D8 /3 mem", "Md", "sys"], ["FCOMP", "D8 /3 reg", "", "sys"], ["FCOMP", "DC /3 mem", "Mq", "sys"], ["FCOMP", "DC /3 reg", "", "sys"],
  ["FSUB", "D8 /4 mem", "Md", "sys"], ["FSUB", "D8 /4 reg", "", "sys"], ["FSUB", "DC /4 mem", "Mq", "sys"], ["FSUBR", "DC /4 reg", "", "sys"],
  ["FSUBR", "D8 /5 mem", "Md", "sys"], ["FSUBR", "D8 /5 reg", "", "sys"], ["FSUBR", "DC /5 mem", "Mq", "sys"], ["FSUB", "DC /5 reg", "", "sys"],
  ["FDIV", "D8 /6 mem", "Md", "sys"], ["FDIV", "D8 /6 reg", "", "sys"], ["FDIV", "DC /6 mem", "Mq", "sys"], ["FDIVR", "DC /6 reg", "", "sys"],
  ["FDIVR", "D8 /7 mem", "Md", "sys"], ["FDIVR", "D8 /7 reg", "", "sys"], ["FDIVR", "DC /7 mem", "Mq", "sys"], ["FDIV", "DC /7 reg", "", "sys"],

  ["FADDP", "DE /0 reg", "", "sys"], ["FMULP", "DE /1 reg", "", "sys"], ["FCOMP", "DE /2 reg", "", "sys"], ["FCOMPP", "DE (D9)", "", "sys"],
  ["FSUBRP", "DE /4 reg", "", "sys"], ["FSUBP", "DE /5 reg", "", "sys"], ["FDIVRP", "DE /6 reg", "", "sys"], ["FDIVP", "DE /7 reg", "", "sys"],

  ["FIADD", "DA /0 mem", "Md", "sys"], ["FIMUL", "DA /1 mem", "Md", "sys"], ["FICOM", "DA /2 mem", "Md", "sys"], ["FICOMP", "DA /3 mem", "Md", "sys"],
  ["FISUB", "DA /4 mem", "Md", "sys"], ["FISUBR", "DA /5 mem", "Md", "sys"], ["FIDIV", "DA /6 mem", "Md", "sys"], ["FIDIVR", "DA /7 mem", "Md", "sys"],
  ["FIADD", "DE /0 mem", "Mw", "sys"], ["FIMUL", "DE /1 mem", "Mw", "sys"], ["FICOM", "DE /2 mem", "Mw", "sys"], ["FICOMP", "DE /3 mem", "Mw", "sys"],
  ["FISUB", "DE /4 mem", "Mw", "sys"], ["FISUBR", "DE /5 mem", "Mw", "sys"], ["FIDIV", "DE /6 mem", "Mw", "sys"], ["FIDIVR", "DE /7 mem", "Mw", "sys"],

  ["FLD", "D9 /0 mem", "Md", "sys"], ["FLD", "D9 /0 reg", "", "sys"], ["FLD", "DD /0 mem", "Mq", "sys"], ["FLD", "DB /5 mem", "Mt", "sys"],
  ["FST", "D9 /2 mem", "Md:w", "sys"], ["FST", "DD /2 mem", "Mq:w", "sys"], ["FST", "DD /2 reg", "", "sys"],
  ["FSTP", "D9 /3 mem", "Md:w", "sys"], ["FSTP", "DD /3 mem", "Mq:w", "sys"], ["FSTP", "DB /7 mem", "Mt:w", "sys"], ["FSTP", "DD /3 reg", "", "sys"],
  ["FSTPNCE", "D9 /3 reg", "", "sys"], ["FSTP", "DF /2 reg", "", "sys"], ["FSTP", "DF /3 reg", "", "sys"],
  ["FILD", "DF /0 mem", "Mw", "sys"], ["FILD", "DB /0 mem", "Md", "sys"], ["FILD", "DF /5 mem", "Mq", "sys"],
  ["FIST", "DF /2 mem", "Mw:w", "sys"], ["FIST", "DB /2 mem", "Md:w", "sys"],
  ["FISTP", "DF /3 mem", "Mw:w", "sys"], ["FISTP", "DB /3 mem", "Md:w", "sys"], ["FISTP", "DF /7 mem", "Mq:w", "sys"],
  ["FISTTP", "DF /1 mem", "Mw:w", "sys fpu sse3/X87"], ["FISTTP", "DB /1 mem", "Md:w", "sys fpu sse3/X87"], ["FISTTP", "DD /1 mem", "Mq:w", "sys fpu sse3/X87"],
  ["FBLD", "DF /4 mem", "Mt", "sys"], ["FBSTP", "DF /6 mem", "Mt:w", "sys"],
  ["FXCH", "D9 /1 reg", "", "sys"], ["FXCH", "DD /1 reg", "", "sys"], ["FXCH", "DF /1 reg", "", "sys"],
  ["FCMOVB", "DA /0 reg", "", "sys cmov/X87"], ["FCMOVE", "DA /1 reg", "", "sys cmov/X87"], ["FCMOVBE", "DA /2 reg", "", "sys cmov/X87"], ["FCMOVU", "DA /3 reg", "", "sys cmov/X87"],
  ["FCMOVNB", "DB /0 reg", "", "sys cmov/X87"], ["FCMOVNE", "DB /1 reg", "", "sys cmov/X87"], ["FCMOVNBE", "DB /2 reg", "", "sys cmov/X87"], ["FCMOVNU", "DB /3 reg", "", "sys cmov/X87"],

  ["FUCOM", "DD /4 reg", "", "sys"], ["FUCOMP", "DD /5 reg", "", "sys"], ["FUCOMPP", "DA (E9)", "", "sys"],
  ["FCOMI", "DB /6 reg", "", "sys cmov/X87"], ["FCOMIP", "DF /6 reg", "", "sys cmov/X87"], ["FUCOMI", "DB /5 reg", "", "sys cmov/X87"], ["FUCOMIP", "DF /5 reg", "", "sys cmov/X87"],

  ["FNOP", "D9 (D0)", "", "sys"], ["FCHS", "D9 (E0)", "", "sys"], ["FABS", "D9 (E1)", "", "sys"], ["FTST", "D9 (E4)", "", "sys"], ["FXAM", "D9 (E5)", "", "sys"],
  ["FLD1", "D9 (E8)", "", "sys"], ["FLDL2T", "D9 (E9)", "", "sys"], ["FLDL2E", "D9 (EA)", "", "sys"], ["FLDPI", "D9 (EB)", "", "sys"],
  ["FLDLG2", "D9 (EC)", "", "sys"], ["FLDLN2", "D9 (ED)", "", "sys"], ["FLDZ", "D9 (EE)", "", "sys"],
  ["F2XM1", "D9 (F0)", "", "sys"], ["FYL2X", "D9 (F1)", "", "sys"], ["FPTAN", "D9 (F2)", "", "sys"], ["FPATAN", "D9 (F3)", "", "sys"],
  ["FXTRACT", "D9 (F4)", "", "sys"], ["FPREM1", "D9 (F5)", "", "sys"], ["FDECSTP", "D9 (F6)", "", "sys"], ["FINCSTP", "D9 (F7)", "", "sys"],
  ["FPREM", "D9 (F8)", "", "sys"], ["FYL2XP1", "D9 (F9)", "", "sys"], ["FSQRT", "D9 (FA)", "", "sys"], ["FSINCOS", "D9 (FB)", "", "sys"],
  ["FRNDINT", "D9 (FC)", "", "sys"], ["FSCALE", "D9 (FD)", "", "sys"], ["FSIN", "D9 (FE)", "", "sys"], ["FCOS", "D9 (FF)", "", "sys"],
  ["FFREE", "DD /0 reg", "", "sys"], ["FFREEP", "DF /0 reg", "", "sys"],

  ["FLDENV", "D9 /4 mem", "M", "sys"], ["FLDCW", "D9 /5 mem", "Mw", "sys"], ["FNSTENV", "D9 /6 mem", "M:w", "sys"], ["FNSTCW", "D9 /7 mem", "Mw:w", "sys"],
  ["FRSTOR", "DD /4 mem", "M", "sys"], ["FNSAVE", "DD /6 mem", "M:w", "sys"], ["FNSTSW", "DD /7 mem", "Mw:w", "sys"], ["FNSTSW", "DF (E0)", "AX:w", "sys"],
  ["FNENI", "DB (E0)", "", "sys"], ["FNDISI", "DB (E1)", "", "sys"], ["FNCLEX", "DB (E2)", "", "sys"], ["FNINIT", "DB (E3)", "", "sys"], ["FNSETPM", "DB (E4)", "", "sys"],

  ["X87", "D8 mem", "M:n", "sys"], ["X87", "D9 mem", "M:n", "sys"], ["X87", "DA mem", "M:n", "sys"], ["X87", "DB mem", "M:n", "sys"],
  ["X87", "DC mem", "M:n", "sys"], ["X87", "DD mem", "M:n", "sys"], ["X87", "DE mem", "M:n", "sys"], ["X87", "DF mem", "M:n", "sys"],
  ["X87", "D8 reg", "", "sys"], ["X87", "D9 reg", "", "sys"], ["X87", "DA reg", "", "sys"], ["X87", "DB reg", "", "sys"],
  ["X87", "DC reg", "", "sys"], ["X87", "DD reg", "", "sys"], ["X87", "DE reg", "", "sys"], ["X87", "DF reg", "", "sys"],

  ["FXSAVE", "NP 0F AE /0", "M:w", "sys fxsr"], ["FXRSTOR", "NP 0F AE /1", "M", "sys fxsr"],
  ["LDMXCSR", "NP 0F AE /2", "Md", "sys sse"], ["STMXCSR", "NP 0F AE /3", "Md:w", "sys sse"],
  ["EMMS", "NP 0F 77", "", "sys mmx"],
] as const satisfies readonly RowSource[];
