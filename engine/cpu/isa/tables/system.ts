/** System instructions (SDM 3A chapter 2.8 and the instruction pages): all run by handlers in cpu/system. */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const SYSTEM_ROWS = [
  // Segment registers
  ["MOV_SREG", "8E", "Sw:w Ew", "sys"],
  ["POP_SREG", "07", "ES:w", "i64 sys"], ["POP_SREG", "17", "SS:w", "i64 sys"], ["POP_SREG", "1F", "DS:w", "i64 sys"],
  ["POP_SREG", "0F A1", "FS:w", "d64 sys"], ["POP_SREG", "0F A9", "GS:w", "d64 sys"],
  ["LES", "C4", "Gv:w Mp", "i64 sys"], ["LDS", "C5", "Gv:w Mp", "i64 sys"],
  ["LSS", "0F B2", "Gv:w Mp", "sys"], ["LFS", "0F B4", "Gv:w Mp", "sys"], ["LGS", "0F B5", "Gv:w Mp", "sys"],
  ["SWAPGS", "0F 01 (F8)", "", "o64 sys"],
  ["RDFSBASE", "F3 0F AE /0 reg", "Ry:w", "o64 sys fsgsbase"], ["RDGSBASE", "F3 0F AE /1 reg", "Ry:w", "o64 sys fsgsbase"],
  ["WRFSBASE", "F3 0F AE /2 reg", "Ry", "o64 sys fsgsbase"], ["WRGSBASE", "F3 0F AE /3 reg", "Ry", "o64 sys fsgsbase"],

  // Far transfers, interrupts, fast system calls
  ["CALL_FAR", "9A", "Ap", "i64 sys"], ["CALL_FAR", "FF /3", "Mp", "sys"],
  ["JMP_FAR", "EA", "Ap", "i64 sys"], ["JMP_FAR", "FF /5", "Mp", "sys"],
  ["RET_FAR", "CA", "Iuw", "sys"], ["RET_FAR", "CB", "", "sys"], ["IRET", "CF", "", "sys"],
  ["INT3", "CC", "", "sys"], ["INT", "CD", "Iub", "sys"], ["INTO", "CE", "", "i64 sys"], ["INT1", "F1", "", "sys"],
  ["SYSCALL", "0F 05", "", "sys syscall"], ["SYSRET", "0F 07", "", "sys syscall"],
  ["SYSENTER", "0F 34", "", "sys sep"], ["SYSEXIT", "0F 35", "", "sys sep"],
  ["UD0", "0F FF", "Gv:n Ev:n", "sys"], ["UD1", "0F B9", "Gv:n Ev:n", "sys"], ["UD2", "0F 0B", "", "sys"],

  // Flags, halting
  ["PUSHF", "9C", "", "d64 sys"], ["POPF", "9D", "", "d64 sys"], ["CLI", "FA", "", "sys"], ["STI", "FB", "", "sys"],
  ["CLAC", "NP 0F 01 (CA)", "", "sys smap"], ["STAC", "NP 0F 01 (CB)", "", "sys smap"],
  ["HLT", "F4", "", "sys"], ["MONITOR", "NP 0F 01 (C8)", "", "sys monitor"], ["MWAIT", "NP 0F 01 (C9)", "", "sys monitor"],

  // Ports
  ["IN", "E4", "AL:w Iub", "sys"], ["IN", "E5", "eAX:w Iub", "sys"], ["IN", "EC", "AL:w DX", "sys"], ["IN", "ED", "eAX:w DX", "sys"],
  ["OUT", "E6", "Iub AL", "sys"], ["OUT", "E7", "Iub eAX", "sys"], ["OUT", "EE", "DX AL", "sys"], ["OUT", "EF", "DX eAX", "sys"],
  ["INS", "6C", "Yb:w DX", "rep sys"], ["INS", "6D", "Yz:w DX", "rep sys"],
  ["OUTS", "6E", "DX Xb", "rep sys"], ["OUTS", "6F", "DX Xz", "rep sys"],

  // Descriptor tables and checks
  ["SLDT", "0F 00 /0", "Evw:w", "prot sys"], ["STR", "0F 00 /1", "Evw:w", "prot sys"],
  ["LLDT", "0F 00 /2", "Ew", "prot sys"], ["LTR", "0F 00 /3", "Ew", "prot sys"],
  ["VERR", "0F 00 /4", "Ew", "prot sys"], ["VERW", "0F 00 /5", "Ew", "prot sys"],
  ["LAR", "0F 02", "Gv:w Ew", "prot sys"], ["LSL", "0F 03", "Gv:w Ew", "prot sys"], ["ARPL", "63", "Ew:rw Gw", "i64 prot sys"],
  ["SGDT", "0F 01 /0 mem", "Ms:w", "f64 sys"], ["SIDT", "0F 01 /1 mem", "Ms:w", "f64 sys"],
  ["LGDT", "0F 01 /2 mem", "Ms", "f64 sys"], ["LIDT", "0F 01 /3 mem", "Ms", "f64 sys"],

  // Control and debug registers, MSRs, identification
  ["MOV_CR", "0F 20", "Ry:w Cy", "f64 sys"], ["MOV_CR", "0F 22", "Cy:w Ry", "f64 sys"],
  ["MOV_DR", "0F 21", "Ry:w Dy", "f64 sys"], ["MOV_DR", "0F 23", "Dy:w Ry", "f64 sys"],
  ["SMSW", "0F 01 /4", "Evw:w", "sys"], ["LMSW", "0F 01 /6", "Ew", "sys"], ["CLTS", "0F 06", "", "sys"],
  ["RDMSR", "0F 32", "", "sys msr"], ["WRMSR", "0F 30", "", "sys msr"], ["RDPMC", "0F 33", "", "sys"],
  ["RDTSC", "0F 31", "", "sys tsc"], ["RDTSCP", "NP 0F 01 (F9)", "", "sys rdtscp"], ["RDPID", "F3 0F C7 /7 reg", "Ry:w", "sys rdpid f64"],
  ["CPUID", "0F A2", "", "sys"], ["RSM", "0F AA", "", "sys"],
  ["RDRAND", "NFx 0F C7 /6 reg", "Rv:w", "sys rdrand"], ["RDSEED", "NFx 0F C7 /7 reg", "Rv:w", "sys rdseed"],
  ["RDPKRU", "NP 0F 01 (EE)", "", "sys pku"], ["WRPKRU", "NP 0F 01 (EF)", "", "sys pku"],

  // Caches and TLB
  ["INVD", "0F 08", "", "sys"], ["WBINVD", "0F 09", "", "sys"], ["WBNOINVD", "F3 0F 09", "", "sys wbnoinvd/WBINVD"],
  ["INVLPG", "0F 01 /7 mem", "Mb:n", "sys"], ["INVPCID", "66 0F 38 82", "Gy Mdq", "f64 sys invpcid"],

  // Extended state
  ["XGETBV", "NP 0F 01 (D0)", "", "sys xsave"], ["XSETBV", "NP 0F 01 (D1)", "", "sys xsave"],
  ["XSAVE", "NP 0F AE /4", "M:w", "sys xsave"], ["XRSTOR", "NP 0F AE /5", "M", "sys xsave"],
  ["XSAVEOPT", "NP 0F AE /6", "M:w", "sys xsaveopt"], ["XSAVEC", "NP 0F C7 /4", "M:w", "sys xsavec"],
  ["XSAVES", "NP 0F C7 /5", "M:w", "sys xsaves"], ["XRSTORS", "NP 0F C7 /3", "M", "sys xsaves"],
] as const satisfies readonly RowSource[];
