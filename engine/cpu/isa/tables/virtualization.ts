/** VMX instructions (SDM 3C chapter 31) and SVM instructions (APM 3, chapter 4). */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const VIRTUALIZATION_ROWS = [
  ["VMCALL", "NP 0F 01 (C1)", "", "sys vmx"], ["VMLAUNCH", "NP 0F 01 (C2)", "", "sys vmx"],
  ["VMRESUME", "NP 0F 01 (C3)", "", "sys vmx"], ["VMXOFF", "NP 0F 01 (C4)", "", "sys vmx"],
  ["VMFUNC", "NP 0F 01 (D4)", "", "sys vmx"],
  ["VMPTRLD", "NP 0F C7 /6 mem", "Mq", "sys vmx"], ["VMPTRST", "NP 0F C7 /7 mem", "Mq:w", "sys vmx"],
  ["VMCLEAR", "66 0F C7 /6 mem", "Mq", "sys vmx"], ["VMXON", "F3 0F C7 /6 mem", "Mq", "sys vmx"],
  ["VMREAD", "NP 0F 78", "Ey:w Gy", "f64 sys vmx"], ["VMWRITE", "NP 0F 79", "Gy Ey", "f64 sys vmx"],
  ["INVEPT", "66 0F 38 80", "Gy Mdq", "f64 sys vmx"], ["INVVPID", "66 0F 38 81", "Gy Mdq", "f64 sys vmx"],

  ["VMRUN", "0F 01 (D8)", "", "sys svm"], ["VMMCALL", "0F 01 (D9)", "", "sys svm"],
  ["VMLOAD", "0F 01 (DA)", "", "sys svm"], ["VMSAVE", "0F 01 (DB)", "", "sys svm"],
  ["STGI", "0F 01 (DC)", "", "sys svm"], ["CLGI", "0F 01 (DD)", "", "sys svm"],
  ["SKINIT", "0F 01 (DE)", "", "sys svm"], ["INVLPGA", "0F 01 (DF)", "", "sys svm"],
] as const satisfies readonly RowSource[];
