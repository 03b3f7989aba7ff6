/**
 * Basic exit reasons (SDM 3D appendix C) with the layout of their exit qualification (SDM 3C 28.2.1). Names are Linux's
 * EXIT_REASON_* without the prefix.
 */
import type { BitField } from "../registers";
import { flag, part } from "./bits";

export interface ExitReasonRow {
  readonly reason: number;
  readonly name: ExitReasonName;
  readonly section: string;
  readonly help: string;
  /** What the exit qualification means: fields of bits, or one word for the whole value. Absent: it is 0. */
  readonly qualification?: readonly BitField[];
}

interface Spec<Reason extends number> {
  readonly reason: Reason;
  readonly section: string;
  readonly help: string;
  readonly qualification?: readonly BitField[];
}

const r = <const Reason extends number>(
  reason: Reason,
  section: string,
  help: string,
  qualification?: readonly BitField[],
): Spec<Reason> => ({ reason, section, help, qualification });

const whole = (name: string, help: string): readonly BitField[] => [part(name, 0, 64, help)];

const LINEAR = whole("linear", "Linear address of the operand.");
const DISPLACEMENT = whole("displacement", "Displacement of the memory operand.");

/** Numbers of general registers as exit qualifications and instruction information give them. */
const GPR_VALUES: Readonly<Record<number, string>> = {
  0: "rax",
  1: "rcx",
  2: "rdx",
  3: "rbx",
  4: "rsp",
  5: "rbp",
  6: "rsi",
  7: "rdi",
  8: "r8",
  9: "r9",
  10: "r10",
  11: "r11",
  12: "r12",
  13: "r13",
  14: "r14",
  15: "r15",
};

/** SDM 3C table 28-1: debug exceptions. */
const DEBUG = [
  flag("b0", 0, "Breakpoint 0 met."),
  flag("b1", 1, "Breakpoint 1 met."),
  flag("b2", 2, "Breakpoint 2 met."),
  flag("b3", 3, "Breakpoint 3 met."),
  flag("bld", 11, "Bus lock detected."),
  flag("bd", 13, "Debug register access detected."),
  flag("bs", 14, "Single step."),
  flag("rtm", 16, "Inside a transaction."),
];

/** SDM 3C table 28-2. */
const TASK_SWITCH = [
  part("selector", 0, 16, "Selector of the new task-state segment."),
  part("source", 30, 2, "What started the switch.", { 0: "call", 1: "iret", 2: "jmp", 3: "task gate" }),
];

/** SDM 3C table 28-3. */
const CR_ACCESS = [
  part("cr", 0, 4, "Control register (0 for CLTS and LMSW)."),
  part("access", 4, 2, "Kind of access.", { 0: "mov-to", 1: "mov-from", 2: "clts", 3: "lmsw" }),
  part("lmswMemory", 6, 1, "LMSW has a memory operand."),
  part("gpr", 8, 4, "General register of MOV CR.", GPR_VALUES),
  part("lmswSource", 16, 16, "Source of LMSW."),
];

/** SDM 3C table 28-4. */
const DR_ACCESS = [
  part("dr", 0, 3, "Debug register."),
  part("direction", 4, 1, "Direction.", { 0: "mov-to", 1: "mov-from" }),
  part("gpr", 8, 4, "General register.", GPR_VALUES),
];

/** SDM 3C table 28-5; `size` is in bytes here (the field holds it minus 1). */
const IO = [
  part("size", 0, 3, "Size of the access.", { 0: "1", 1: "2", 3: "4" }),
  part("direction", 3, 1, "Direction.", { 0: "out", 1: "in" }),
  flag("string", 4, "INS or OUTS."),
  flag("rep", 5, "With REP prefix."),
  part("operand", 6, 1, "How the port was given.", { 0: "dx", 1: "immediate" }),
  part("port", 16, 16, "Port number."),
];

/** SDM 3C table 28-6. */
const APIC_ACCESS = [
  part("offset", 0, 12, "Offset in the APIC page."),
  part("access", 12, 4, "Kind of access.", {
    0: "read",
    1: "write",
    2: "fetch",
    3: "event delivery",
    10: "guest-physical during event delivery",
    15: "guest-physical",
  }),
  flag("asynchronous", 16, "The access was asynchronous to instruction execution."),
];

/** SDM 3C table 28-7. */
const EPT_VIOLATION = [
  flag("read", 0, "The access was a data read."),
  flag("write", 1, "The access was a data write."),
  flag("fetch", 2, "The access was an instruction fetch."),
  flag("readable", 3, "The EPT entries allow reads."),
  flag("writable", 4, "The EPT entries allow writes."),
  flag("executable", 5, "The EPT entries allow execution."),
  flag("userExecutable", 6, "The EPT entries allow execution from user-mode addresses (mode-based execute control)."),
  flag("linearValid", 7, "GUEST_LINEAR_ADDRESS is valid."),
  flag("translated", 8, "The access was to the translation of the linear address, not to a paging structure."),
  flag("user", 9, "The linear address is a user-mode address."),
  flag("linearWritable", 10, "Guest paging allows writes to the linear address."),
  flag("executeDisable", 11, "Guest paging forbids execution at the linear address."),
  flag("nmiUnblocking", 12, "IRET had just removed blocking by NMI."),
  flag("shadowStack", 13, "The access was a shadow-stack access."),
  flag("supervisorShadowStack", 14, "The EPT entries allow supervisor shadow-stack accesses."),
  flag("pagingVerification", 15, "Guest-paging verification failed."),
  flag("asynchronous", 16, "The access was asynchronous to instruction execution."),
];

// biome-ignore-start format: one row a line
const TABLE = {
  EXCEPTION_NMI: r(
    0,
    "3C 26.2",
    "An exception whose bit is set in the exception bitmap, or an NMI.",
    whole("faultAddress", "Linear address of a page fault; conditions of a debug exception; 0 otherwise."),
  ),
  EXTERNAL_INTERRUPT: r(1, "3C 26.2", "An external interrupt arrived with external-interrupt exiting."),
  TRIPLE_FAULT: r(2, "3C 26.2", "An exception during the delivery of a double fault."),
  INIT_SIGNAL: r(3, "3C 26.2", "An INIT signal arrived."),
  SIPI_SIGNAL: r(4, "3C 26.2", "A start-up IPI arrived in the wait-for-SIPI state.", [
    part("vector", 0, 8, "Start-up vector."),
  ]),
  IO_SMI: r(5, "3C 32.15.2", "An SMI arrived immediately after an I/O instruction."),
  OTHER_SMI: r(6, "3C 32.15.2", "An SMI arrived otherwise."),
  INTERRUPT_WINDOW: r(7, "3C 26.2", "Interrupts are open and interrupt-window exiting is on."),
  NMI_WINDOW: r(8, "3C 26.2", "There is no virtual-NMI blocking and NMI-window exiting is on."),
  TASK_SWITCH: r(9, "3C 26.4.2", "The guest tried a task switch.", TASK_SWITCH),
  CPUID: r(10, "3C 26.1.2", "CPUID."),
  GETSEC: r(11, "3C 26.1.2", "GETSEC."),
  HLT: r(12, "3C 26.1.3", "HLT with HLT exiting."),
  INVD: r(13, "3C 26.1.2", "INVD."),
  INVLPG: r(14, "3C 26.1.3", "INVLPG with INVLPG exiting.", LINEAR),
  RDPMC: r(15, "3C 26.1.3", "RDPMC with RDPMC exiting."),
  RDTSC: r(16, "3C 26.1.3", "RDTSC with RDTSC exiting."),
  RSM: r(17, "3C 26.1.3", "RSM in SMM."),
  VMCALL: r(18, "3C 26.1.2", "VMCALL."),
  VMCLEAR: r(19, "3C 26.1.2", "VMCLEAR.", DISPLACEMENT),
  VMLAUNCH: r(20, "3C 26.1.2", "VMLAUNCH."),
  VMPTRLD: r(21, "3C 26.1.2", "VMPTRLD.", DISPLACEMENT),
  VMPTRST: r(22, "3C 26.1.2", "VMPTRST.", DISPLACEMENT),
  VMREAD: r(23, "3C 26.1.3", "VMREAD.", DISPLACEMENT),
  VMRESUME: r(24, "3C 26.1.2", "VMRESUME."),
  VMWRITE: r(25, "3C 26.1.3", "VMWRITE.", DISPLACEMENT),
  VMOFF: r(26, "3C 26.1.2", "VMXOFF."),
  VMON: r(27, "3C 26.1.2", "VMXON.", DISPLACEMENT),
  CR_ACCESS: r(28, "3C 26.1.3", "MOV CR, CLTS or LMSW that the controls want to see.", CR_ACCESS),
  DR_ACCESS: r(29, "3C 26.1.3", "MOV DR with MOV-DR exiting.", DR_ACCESS),
  IO_INSTRUCTION: r(30, "3C 26.1.3", "IN, OUT, INS or OUTS that the controls want to see.", IO),
  MSR_READ: r(31, "3C 26.1.3", "RDMSR that the MSR bitmaps want to see."),
  MSR_WRITE: r(32, "3C 26.1.3", "WRMSR that the MSR bitmaps want to see."),
  INVALID_STATE: r(33, "3C 27.8", "VM entry failed because of invalid guest state.", [
    part("cause", 0, 64, "What failed.", {
      0: "guest state",
      2: "PDPTE loading",
      3: "NMI injection into blocked state",
      4: "VMCS link pointer",
    }),
  ]),
  MSR_LOAD_FAIL: r(34, "3C 27.8", "VM entry failed in loading MSRs.", [
    part("entry", 0, 64, "Number of the entry of the list, from 1."),
  ]),
  MWAIT_INSTRUCTION: r(36, "3C 26.1.3", "MWAIT with MWAIT exiting.", [
    flag("armed", 0, "Address-range monitoring is armed."),
  ]),
  MONITOR_TRAP_FLAG: r(37, "3C 26.5.2", "The monitor trap flag was set, or an MTF exit was injected."),
  MONITOR_INSTRUCTION: r(39, "3C 26.1.3", "MONITOR with MONITOR exiting."),
  PAUSE_INSTRUCTION: r(40, "3C 26.1.3", "PAUSE with PAUSE exiting, or a PAUSE loop."),
  MCE_DURING_VMENTRY: r(41, "3C 27.9", "A machine check occurred during VM entry."),
  TPR_BELOW_THRESHOLD: r(43, "3C 30.1.2", "The TPR shadow is below the TPR threshold."),
  APIC_ACCESS: r(44, "3C 30.4", "An access to the APIC-access page.", APIC_ACCESS),
  EOI_INDUCED: r(45, "3C 30.1.4", "A virtual EOI whose vector is in the EOI-exit bitmap.", [
    part("vector", 0, 8, "Vector."),
  ]),
  GDTR_IDTR: r(46, "3C 26.1.3", "LGDT, LIDT, SGDT or SIDT with descriptor-table exiting.", DISPLACEMENT),
  LDTR_TR: r(47, "3C 26.1.3", "LLDT, LTR, SLDT or STR with descriptor-table exiting.", DISPLACEMENT),
  EPT_VIOLATION: r(48, "3C 29.3.3.2", "The EPT do not allow an access with a guest-physical address.", EPT_VIOLATION),
  EPT_MISCONFIG: r(49, "3C 29.3.3.1", "An EPT entry has a setting that is not supported."),
  INVEPT: r(50, "3C 26.1.2", "INVEPT.", DISPLACEMENT),
  RDTSCP: r(51, "3C 26.1.3", "RDTSCP with RDTSC exiting."),
  PREEMPTION_TIMER: r(52, "3C 26.5.1", "The VMX-preemption timer reached zero."),
  INVVPID: r(53, "3C 26.1.2", "INVVPID.", DISPLACEMENT),
  WBINVD: r(54, "3C 26.1.3", "WBINVD or WBNOINVD with WBINVD exiting."),
  XSETBV: r(55, "3C 26.1.2", "XSETBV."),
  APIC_WRITE: r(56, "3C 30.4.3.3", "A write to the virtual-APIC page that needs the hypervisor's help.", [
    part("offset", 0, 12, "Offset in the APIC page."),
  ]),
  RDRAND: r(57, "3C 26.1.3", "RDRAND with RDRAND exiting."),
  INVPCID: r(58, "3C 26.1.3", "INVPCID with INVLPG exiting.", DISPLACEMENT),
  VMFUNC: r(59, "3C 26.5.6", "VMFUNC with a function that is not enabled or failed."),
  ENCLS: r(60, "3C 26.1.3", "ENCLS leaf with its bit set in the ENCLS-exiting bitmap."),
  RDSEED: r(61, "3C 26.1.3", "RDSEED with RDSEED exiting."),
  PML_FULL: r(62, "3C 29.3.6", "The page-modification log is full."),
  XSAVES: r(63, "3C 26.1.3", "XSAVES of a state in the XSS-exiting bitmap.", DISPLACEMENT),
  XRSTORS: r(64, "3C 26.1.3", "XRSTORS of a state in the XSS-exiting bitmap.", DISPLACEMENT),
  PCONFIG: r(65, "3C 26.1.3", "PCONFIG leaf with its bit set in the PCONFIG-exiting bitmap."),
  SPP_EVENT: r(66, "3C 29.3.4", "A miss or misconfiguration of the sub-page permission table."),
  UMWAIT: r(67, "3C 26.1.3", "UMWAIT with RDTSC exiting."),
  TPAUSE: r(68, "3C 26.1.3", "TPAUSE with RDTSC exiting."),
  LOADIWKEY: r(69, "3C 26.1.3", "LOADIWKEY with LOADIWKEY exiting."),
  ENCLV: r(70, "3C 26.1.3", "ENCLV leaf with its bit set in the ENCLV-exiting bitmap."),
  ENQCMD_PASID: r(72, "3C 26.5.8", "PASID translation of ENQCMD failed."),
  ENQCMDS_PASID: r(73, "3C 26.5.8", "PASID translation of ENQCMDS failed."),
  BUS_LOCK: r(74, "3C 26.2", "A bus lock with bus-lock detection."),
  NOTIFY: r(75, "3C 26.2", "The instruction-timeout control expired."),
  SEAMCALL: r(76, "3C 26.1.2", "SEAMCALL."),
  TDCALL: r(77, "3C 26.1.2", "TDCALL."),
  RDMSRLIST: r(78, "3C 26.1.3", "RDMSRLIST that the controls want to see.", whole("msr", "MSR that was to be read.")),
  WRMSRLIST: r(
    79,
    "3C 26.1.3",
    "WRMSRLIST that the controls want to see.",
    whole("msr", "MSR that was to be written."),
  ),
  URDMSR: r(80, "3C 26.1.3", "URDMSR that the controls want to see.", whole("msr", "MSR that was to be read.")),
  UWRMSR: r(81, "3C 26.1.3", "UWRMSR that the controls want to see.", whole("msr", "MSR that was to be written.")),
  MSR_READ_IMM: r(
    84,
    "3C 26.1.3",
    "RDMSR with an immediate operand that the MSR bitmaps want to see.",
    whole("msr", "MSR that was to be read."),
  ),
  MSR_WRITE_IMM: r(
    85,
    "3C 26.1.3",
    "WRMSRNS with an immediate operand that the MSR bitmaps want to see.",
    whole("msr", "MSR that was to be written."),
  ),
} as const;
// biome-ignore-end format: one row a line

export type ExitReasonName = keyof typeof TABLE;

/** Numbers by name: `ExitReason.CPUID` is 10. */
export const ExitReason = Object.fromEntries(Object.entries(TABLE).map(([name, spec]) => [name, spec.reason])) as {
  readonly [Name in ExitReasonName]: (typeof TABLE)[Name]["reason"];
};
export type ExitReason = (typeof ExitReason)[ExitReasonName];

/** One more than the largest basic exit reason. */
export const EXIT_REASON_COUNT = 86;

/** Bit 31 of the exit reason: the exit is a VM-entry failure (SDM 3C 27.8). */
export const ENTRY_FAILURE = 0x8000_0000;

export const EXIT_REASONS: readonly ExitReasonRow[] = Object.entries(TABLE).map(([name, spec]) => ({
  name: name as ExitReasonName,
  reason: spec.reason,
  section: spec.section,
  help: spec.help,
  ...(spec.qualification ? { qualification: spec.qualification } : {}),
}));

const byReason: (ExitReasonRow | undefined)[] = [];
for (const row of EXIT_REASONS) byReason[row.reason] = row;

/** The row of a basic exit reason (bits 31:16 are ignored), or undefined. */
export const exitReason = (reason: number): ExitReasonRow | undefined => byReason[reason & 0xffff];

export const exitReasonName = (reason: number): string =>
  byReason[reason & 0xffff]?.name ?? `REASON_${reason & 0xffff}`;

/** What conditions may name: numbers as bigint, flags as boolean, named values as string. */
export type QualificationParts = Record<string, bigint | boolean | string>;

export interface DecodedQualification {
  /** One line for a person, e.g. "out port 0x3f8 size 1"; empty when there is nothing to tell. */
  readonly text: string;
  readonly parts: Readonly<QualificationParts>;
}

const hex = (value: bigint): string => `0x${value.toString(16)}`;

function decodeParts(rows: readonly BitField[], qualification: bigint): QualificationParts {
  const parts: QualificationParts = {};
  for (const bit of rows) {
    const value = (qualification >> BigInt(bit.low)) & ((1n << BigInt(bit.width)) - 1n);
    const named = bit.values?.[Number(value)];
    if (bit.values && named !== undefined) parts[bit.name] = named;
    else if (bit.width === 1) parts[bit.name] = value === 1n;
    else parts[bit.name] = value;
  }
  return parts;
}

const setFlags = (parts: QualificationParts): string =>
  Object.entries(parts)
    .filter(([, value]) => value === true)
    .map(([name]) => name)
    .join(" ");

const EXCEPTION_NAMES: Readonly<Record<number, string>> = {
  0: "#DE",
  1: "#DB",
  2: "NMI",
  3: "#BP",
  4: "#OF",
  5: "#BR",
  6: "#UD",
  7: "#NM",
  8: "#DF",
  10: "#TS",
  11: "#NP",
  12: "#SS",
  13: "#GP",
  14: "#PF",
  16: "#MF",
  17: "#AC",
  18: "#MC",
  19: "#XM",
  20: "#VE",
  21: "#CP",
};

/**
 * Takes an exit qualification apart.
 * @param reason exit reason (bits 31:16 are ignored)
 * @param interruptInfo VM_EXIT_INTR_INFO, which says what the qualification of EXCEPTION_NMI means and which vector an
 *   EXTERNAL_INTERRUPT acknowledged
 */
export function decodeQualification(reason: number, qualification: bigint, interruptInfo = 0): DecodedQualification {
  const basic = reason & 0xffff;
  if (basic === ExitReason.EXCEPTION_NMI) return decodeException(qualification, interruptInfo);
  if (basic === ExitReason.EXTERNAL_INTERRUPT) {
    if (!(interruptInfo & ~0x7fff_ffff)) return { text: "", parts: {} };
    return { text: `vector ${hex(BigInt(interruptInfo & 0xff))}`, parts: { vector: BigInt(interruptInfo & 0xff) } };
  }
  const rows = byReason[basic]?.qualification;
  if (!rows) return { text: "", parts: {} };
  const parts = decodeParts(rows, qualification);
  switch (basic) {
    case ExitReason.IO_INSTRUCTION: {
      const size = (qualification & 7n) + 1n;
      parts.size = size;
      parts.input = parts.direction === "in";
      const name = `${parts.rep ? "rep " : ""}${parts.direction}${parts.string ? "s" : ""}`;
      return { text: `${name} port ${hex(parts.port as bigint)} size ${size}`, parts };
    }
    case ExitReason.CR_ACCESS: {
      const access = parts.access as string;
      const register = `cr${parts.cr}`;
      if (access === "mov-to") return { text: `mov ${register}, ${parts.gpr}`, parts };
      if (access === "mov-from") return { text: `mov ${parts.gpr}, ${register}`, parts };
      return { text: access === "lmsw" ? `lmsw ${hex(parts.lmswSource as bigint)}` : access, parts };
    }
    case ExitReason.DR_ACCESS: {
      const register = `dr${parts.dr}`;
      return {
        text: parts.direction === "mov-to" ? `mov ${register}, ${parts.gpr}` : `mov ${parts.gpr}, ${register}`,
        parts,
      };
    }
    case ExitReason.TASK_SWITCH:
      return { text: `selector ${hex(parts.selector as bigint)} by ${parts.source}`, parts };
    case ExitReason.APIC_ACCESS:
      return { text: `${parts.access} offset ${hex(parts.offset as bigint)}`, parts };
    case ExitReason.EPT_VIOLATION: {
      const kinds = ["read", "write", "fetch"].filter((kind) => parts[kind] === true).join("+");
      const allowed = `${parts.readable ? "r" : "-"}${parts.writable ? "w" : "-"}${parts.executable ? "x" : "-"}`;
      const what = parts.linearValid && !parts.translated ? " by the page walk" : "";
      return { text: `${kinds || "access"}${what}, EPT allow ${allowed}`, parts };
    }
    default: {
      const first = rows[0];
      const value = parts[first.name];
      if (rows.length > 1) return { text: setFlags(parts), parts };
      return { text: `${first.name} ${typeof value === "bigint" ? hex(value) : value}`, parts };
    }
  }
}

function decodeException(qualification: bigint, interruptInfo: number): DecodedQualification {
  const vector = interruptInfo & 0xff;
  const type = (interruptInfo >> 8) & 7;
  const name = EXCEPTION_NAMES[vector] ?? `vector ${vector}`;
  const base = { vector: BigInt(vector), eventType: BigInt(type) };
  if (vector === 14) {
    return { text: `${name} at ${hex(qualification)}`, parts: { ...base, faultAddress: qualification } };
  }
  if (vector === 1) {
    const parts = decodeParts(DEBUG, qualification);
    return { text: `${name} ${setFlags(parts)}`.trim(), parts: { ...base, ...parts } };
  }
  return { text: name, parts: base };
}
