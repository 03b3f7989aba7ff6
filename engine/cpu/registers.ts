/** Registers as a table: what debuggers list, name, format and set. */
import { GPR_NAMES, Off, SEG_NAMES } from "./state";
import {
  ACCESS_RIGHTS_BITS,
  CR0_BITS,
  CR4_BITS,
  DEBUGCTL_BITS,
  DR7_BITS,
  EFER_BITS,
  PAT_BITS,
  RFLAGS_BITS,
  SELECTOR_BITS,
} from "./vmx/bits";

export type RegisterGroup = "general" | "segment" | "control" | "debug" | "msr" | "fpu" | "vector";

/** A named field of bits inside a register or VMCS field. */
export interface BitField {
  readonly name: string;
  /** Lowest bit. */
  readonly low: number;
  /** Number of bits; 1 for a flag. */
  readonly width: number;
  readonly help: string;
  /** Names of values, where values have names. */
  readonly values?: Readonly<Record<number, string>>;
}

export interface RegisterRow {
  /** Lower case, as users type it: "rax", "cs.base", "cr0", "ia32_efer". */
  readonly name: string;
  readonly group: RegisterGroup;
  /** Bits. */
  readonly width: number;
  readonly section: string;
  readonly help: string;
  readonly bits?: readonly BitField[];
}

/** Reads and writes by row name. Setting checks what the architecture would check and throws RangeError with the rule. */
export interface RegisterFile {
  readonly rows: readonly RegisterRow[];
  read(name: string): bigint;
  write(name: string, value: bigint): void;
}

const flag = (name: string, low: number, help: string): BitField => ({ name, low, width: 1, help });

/** SDM 3A 17.2.3. */
const DR6_BITS: readonly BitField[] = [
  flag("B0", 0, "Breakpoint 0 was met."),
  flag("B1", 1, "Breakpoint 1 was met."),
  flag("B2", 2, "Breakpoint 2 was met."),
  flag("B3", 3, "Breakpoint 3 was met."),
  flag("BLD", 11, "0: a bus lock was acquired."),
  flag("BD", 13, "The next instruction accesses a debug register and DR7.GD is set."),
  flag("BS", 14, "Single step."),
  flag("BT", 15, "Task switch to a TSS with its T flag set."),
  flag("RTM", 16, "0: inside a transaction."),
];

/** SDM 3A 13.3. */
const XCR0_BITS: readonly BitField[] = [
  flag("X87", 0, "x87 state; always 1."),
  flag("SSE", 1, "XMM registers and MXCSR."),
  flag("AVX", 2, "Upper halves of the YMM registers."),
  flag("OPMASK", 5, "AVX-512 opmask registers."),
  flag("ZMM_HI256", 6, "Upper halves of ZMM0 to ZMM15."),
  flag("HI16_ZMM", 7, "ZMM16 to ZMM31."),
  flag("PKRU", 9, "Protection-key rights."),
];

/** The floating-point exceptions, by their letter, in the order of their bits (SDM 1 8.1.3.3 and 11.5.2). */
const EXCEPTIONS = [
  ["I", "Invalid operation"],
  ["D", "Denormal operand"],
  ["Z", "Zero divide"],
  ["O", "Overflow"],
  ["U", "Underflow"],
  ["P", "Precision"],
] as const;

const EXCEPTION_FLAGS: readonly BitField[] = EXCEPTIONS.map(([letter, what], i) => flag(`${letter}E`, i, `${what}.`));

const exceptionMasks = (low: number): readonly BitField[] =>
  EXCEPTIONS.map(([letter, what], i) => flag(`${letter}M`, low + i, `${what} is masked.`));

const roundingControl = (low: number): BitField => ({
  name: "RC",
  low,
  width: 2,
  help: "Rounding control.",
  values: { 0: "nearest", 1: "down", 2: "up", 3: "toward zero" },
});

/** SDM 1 8.1.5. */
const FCW_BITS: readonly BitField[] = [
  ...exceptionMasks(0),
  {
    name: "PC",
    low: 8,
    width: 2,
    help: "Precision control.",
    values: { 0: "single", 2: "double", 3: "extended" },
  },
  roundingControl(10),
];

/** SDM 1 8.1.3. */
const FSW_BITS: readonly BitField[] = [
  ...EXCEPTION_FLAGS,
  flag("SF", 6, "Stack fault."),
  flag("ES", 7, "An exception that is not masked is pending."),
  flag("C0", 8, "Condition code 0."),
  flag("C1", 9, "Condition code 1; with SF the direction of the stack fault."),
  flag("C2", 10, "Condition code 2."),
  { name: "TOP", low: 11, width: 3, help: "Number of the register that is ST(0)." },
  flag("C3", 14, "Condition code 3."),
  flag("B", 15, "Busy; a copy of ES."),
];

/** SDM 1 10.2.3. */
const MXCSR_BITS: readonly BitField[] = [
  ...EXCEPTION_FLAGS,
  flag("DAZ", 6, "Denormal operands count as zero."),
  ...exceptionMasks(7),
  roundingControl(13),
  flag("FZ", 15, "Results that underflow become zero."),
];

/** SDM 4, table 2-2. */
const APIC_BASE_BITS: readonly BitField[] = [
  flag("BSP", 8, "This is the bootstrap processor."),
  flag("EXTD", 10, "x2APIC mode."),
  flag("EN", 11, "The local APIC is enabled."),
  { name: "base", low: 12, width: 40, help: "Physical page of the local APIC." },
];

/** SDM 3A 2.3, CR3 without PCIDs and PAE. */
const CR3_BITS: readonly BitField[] = [
  flag("PWT", 3, "Page-level write-through (without PCIDs)."),
  flag("PCD", 4, "Page-level cache disable (without PCIDs)."),
  { name: "base", low: 12, width: 40, help: "Physical page of the first paging structure." },
];

const row = (
  name: string,
  group: RegisterGroup,
  width: number,
  section: string,
  help: string,
  bits?: readonly BitField[],
): RegisterRow => ({ name, group, width, section, help, ...(bits ? { bits } : {}) });

const segmentRows = SEG_NAMES.flatMap((name, i) => {
  const what = i < 6 ? `${name.toUpperCase()} segment register` : i === 6 ? "LDT register" : "task register";
  return [
    row(
      name,
      "segment",
      16,
      "3A 3.4.2",
      `Selector of the ${what}; the hidden parts are set by their own names.`,
      SELECTOR_BITS,
    ),
    row(`${name}.base`, "segment", 64, "3A 3.4.3", `Base address of the ${what}.`),
    row(`${name}.limit`, "segment", 32, "3A 3.4.3", `Limit of the ${what} in bytes (granularity applied).`),
    row(`${name}.attributes`, "segment", 17, "3C table 25-2", `Access rights of the ${what}.`, ACCESS_RIGHTS_BITS),
  ];
});

/** An MSR that is plainly a 64-bit word of the CPU block: also the storage of its row in system/msrs.ts. */
export interface StoredMsr extends RegisterRow {
  readonly index: number;
  readonly offset: number;
  /** The value is a linear address and must be canonical. */
  readonly canonical: boolean;
}

const msr = (
  name: string,
  index: number,
  offset: number,
  help: string,
  bits?: readonly BitField[],
  canonical = false,
): StoredMsr => ({ ...row(name, "msr", 64, "4 table 2-2", help, bits), index, offset, canonical });

const segBase = (seg: number) => Off.SEG + seg * 24;

/** Model-specific registers whose value lies in the CPU block. */
export const STORED_MSRS: readonly StoredMsr[] = [
  msr("ia32_efer", 0xc0000080, Off.EFER, "Extended features: long mode, SYSCALL, NX.", EFER_BITS),
  msr("ia32_star", 0xc0000081, Off.STAR, "Selectors of SYSCALL (47:32) and SYSRET (63:48)."),
  msr("ia32_lstar", 0xc0000082, Off.LSTAR, "RIP of SYSCALL in 64-bit mode.", undefined, true),
  msr("ia32_cstar", 0xc0000083, Off.CSTAR, "RIP of SYSCALL in compatibility mode (AMD).", undefined, true),
  msr("ia32_fmask", 0xc0000084, Off.FMASK, "RFLAGS bits that SYSCALL clears."),
  msr("ia32_fs_base", 0xc0000100, segBase(4), "Base address of FS.", undefined, true),
  msr("ia32_gs_base", 0xc0000101, segBase(5), "Base address of GS.", undefined, true),
  msr("ia32_kernel_gs_base", 0xc0000102, Off.KERNEL_GS_BASE, "What SWAPGS exchanges with GS.base.", undefined, true),
  msr("ia32_tsc_aux", 0xc0000103, Off.TSC_AUX, "What RDTSCP and RDPID give in ECX."),
  msr("ia32_sysenter_cs", 0x174, Off.SYSENTER_CS, "CS of SYSENTER; SS, and those of SYSEXIT, follow from it."),
  msr("ia32_sysenter_esp", 0x175, Off.SYSENTER_ESP, "RSP of SYSENTER.", undefined, true),
  msr("ia32_sysenter_eip", 0x176, Off.SYSENTER_EIP, "RIP of SYSENTER.", undefined, true),
  msr("ia32_pat", 0x277, Off.PAT, "Memory types of the eight page-attribute combinations.", PAT_BITS),
  msr("ia32_apic_base", 0x1b, Off.APIC_BASE, "Mode and place of the local APIC.", APIC_BASE_BITS),
  msr("ia32_misc_enable", 0x1a0, Off.MISC_ENABLE, "Processor features that can be switched."),
  msr("ia32_debugctl", 0x1d9, Off.DEBUGCTL, "Branch trace and debug control.", DEBUGCTL_BITS),
  msr("ia32_feature_control", 0x3a, Off.FEATURE_CONTROL, "Lock (0), VMX outside SMX (2)."),
  msr("ia32_tsc_adjust", 0x3b, Off.TSC_ADJUST, "What software added to the TSC."),
  msr("ia32_xss", 0xda0, Off.XSS, "Supervisor states of XSAVES."),
];

const eight = Array.from({ length: 8 }, (_, n) => n);
const sixteen = Array.from({ length: 16 }, (_, n) => n);

/** Every register a debugger shows, in the order it shows them. */
export const REGISTER_ROWS: readonly RegisterRow[] = [
  ...GPR_NAMES.map((name) => row(name, "general", 64, "1 3.4.1", `General-purpose register ${name.toUpperCase()}.`)),
  row("rip", "general", 64, "1 3.5", "Instruction pointer: offset of the next instruction in CS."),
  row("rflags", "general", 64, "1 3.4.3", "Status, control and system flags.", RFLAGS_BITS),
  ...segmentRows,
  row("gdtr.base", "segment", 64, "3A 2.4.1", "Linear address of the GDT."),
  row("gdtr.limit", "segment", 16, "3A 2.4.1", "Size of the GDT in bytes less one."),
  row("idtr.base", "segment", 64, "3A 2.4.3", "Linear address of the IDT."),
  row("idtr.limit", "segment", 16, "3A 2.4.3", "Size of the IDT in bytes less one."),
  row("cpl", "control", 2, "3A 5.5", "Current privilege level; follows from the segment registers."),
  row("cr0", "control", 64, "3A 2.5", "Operating mode: protection, paging, x87.", CR0_BITS),
  row("cr2", "control", 64, "3A 2.5", "Linear address of the last page fault."),
  row("cr3", "control", 64, "3A 2.5", "Physical address of the first paging structure.", CR3_BITS),
  row("cr4", "control", 64, "3A 2.5", "Architectural extensions in use.", CR4_BITS),
  row("cr8", "control", 4, "3A 10.8.6", "Task-priority class."),
  row("xcr0", "control", 64, "3A 2.6", "State components XSAVE manages.", XCR0_BITS),
  ...[0, 1, 2, 3].map((n) => row(`dr${n}`, "debug", 64, "3A 17.2.1", `Linear address of breakpoint ${n}.`)),
  row("dr6", "debug", 64, "3A 17.2.3", "What the last debug exception was.", DR6_BITS),
  row("dr7", "debug", 64, "3A 17.2.4", "Which breakpoints are on, and their conditions.", DR7_BITS),
  ...STORED_MSRS,
  row("fcw", "fpu", 16, "1 8.1.5", "x87 control word.", FCW_BITS),
  row("fsw", "fpu", 16, "1 8.1.3", "x87 status word.", FSW_BITS),
  row(
    "ftw",
    "fpu",
    8,
    "1 10.5.1.1",
    "x87 tags, as FXSAVE has them: a bit is set where register R0 to R7 is not empty.",
  ),
  row("fop", "fpu", 11, "1 8.1.9", "Opcode of the last x87 instruction that was not a control instruction."),
  row("fip", "fpu", 64, "1 8.1.8", "Address of the last x87 instruction that was not a control instruction."),
  row("fdp", "fpu", 64, "1 8.1.8", "Address of its memory operand."),
  ...eight.map((n) => row(`st${n}`, "fpu", 80, "1 8.1.2", `x87 register ST(${n}), counted from the top of the stack.`)),
  ...eight.map((n) => row(`mm${n}`, "fpu", 64, "1 9.2.2", `MMX register: the significand of x87 register R${n}.`)),
  row("mxcsr", "vector", 32, "1 10.2.3", "SSE control and status.", MXCSR_BITS),
  ...sixteen.map((n) => row(`xmm${n}`, "vector", 128, "1 10.2.2", "Low half of the YMM register.")),
  ...sixteen.map((n) => row(`ymm${n}`, "vector", 256, "1 14.1.1", "AVX register.")),
];

const ROWS = new Map(REGISTER_ROWS.map((r) => [r.name, r]));

export function registerRow(name: string): RegisterRow | undefined {
  return ROWS.get(name);
}
