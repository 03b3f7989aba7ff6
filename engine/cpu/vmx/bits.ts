/** Bits of registers and words that VMCS fields hold a copy of, for display and for messages. */
import type { BitField } from "../registers";

/** A row of one bit. */
export const flag = (name: string, low: number, help: string): BitField => ({ name, low, width: 1, help });
/** A row of several bits, and what their values are called. */
export const part = (
  name: string,
  low: number,
  width: number,
  help: string,
  values?: Readonly<Record<number, string>>,
): BitField => ({ name, low, width, help, ...(values ? { values } : {}) });

/** SDM 3A 2.5. */
export const CR0_BITS: readonly BitField[] = [
  flag("PE", 0, "Protected mode."),
  flag("MP", 1, "WAIT looks at TS."),
  flag("EM", 2, "x87 instructions raise #NM."),
  flag("TS", 3, "Task switched: x87, MMX and SSE instructions raise #NM."),
  flag("ET", 4, "Always 1."),
  flag("NE", 5, "x87 errors raise #MF."),
  flag("WP", 16, "Supervisor writes respect read-only pages."),
  flag("AM", 18, "Alignment checks by RFLAGS.AC at CPL 3."),
  flag("NW", 29, "Not write-through."),
  flag("CD", 30, "Cache disabled."),
  flag("PG", 31, "Paging."),
];

/** SDM 3A 2.5. */
export const CR4_BITS: readonly BitField[] = [
  flag("VME", 0, "Virtual-8086 mode extensions."),
  flag("PVI", 1, "Protected-mode virtual interrupts."),
  flag("TSD", 2, "RDTSC only at CPL 0."),
  flag("DE", 3, "Debugging extensions: I/O breakpoints, no DR4/DR5."),
  flag("PSE", 4, "4-MByte pages with 32-bit paging."),
  flag("PAE", 5, "Physical-address extension."),
  flag("MCE", 6, "Machine-check exceptions."),
  flag("PGE", 7, "Global pages."),
  flag("PCE", 8, "RDPMC at any CPL."),
  flag("OSFXSR", 9, "FXSAVE, FXRSTOR and SSE enabled."),
  flag("OSXMMEXCPT", 10, "SIMD floating-point exceptions raise #XM."),
  flag("UMIP", 11, "SGDT, SIDT, SLDT, SMSW, STR only at CPL 0."),
  flag("LA57", 12, "57-bit linear addresses."),
  flag("VMXE", 13, "VMX enabled."),
  flag("SMXE", 14, "SMX enabled."),
  flag("FSGSBASE", 16, "RDFSBASE and its like enabled."),
  flag("PCIDE", 17, "Process-context identifiers."),
  flag("OSXSAVE", 18, "XSAVE and extended states enabled."),
  flag("KL", 19, "Key locker."),
  flag("SMEP", 20, "No supervisor execution from user pages."),
  flag("SMAP", 21, "No supervisor access to user pages."),
  flag("PKE", 22, "Protection keys for user pages."),
  flag("CET", 23, "Control-flow enforcement."),
  flag("PKS", 24, "Protection keys for supervisor pages."),
];

/** SDM 3A 2.2.1. */
export const EFER_BITS: readonly BitField[] = [
  flag("SCE", 0, "SYSCALL and SYSRET enabled."),
  flag("LME", 8, "IA-32e mode enabled."),
  flag("LMA", 10, "IA-32e mode active."),
  flag("NXE", 11, "Execute-disable bit of page entries enabled."),
];

/** SDM 3A 2.3. */
export const RFLAGS_BITS: readonly BitField[] = [
  flag("CF", 0, "Carry."),
  flag("PF", 2, "Parity."),
  flag("AF", 4, "Auxiliary carry."),
  flag("ZF", 6, "Zero."),
  flag("SF", 7, "Sign."),
  flag("TF", 8, "Single step."),
  flag("IF", 9, "Interrupts enabled."),
  flag("DF", 10, "String instructions go down."),
  flag("OF", 11, "Overflow."),
  part("IOPL", 12, 2, "I/O privilege level."),
  flag("NT", 14, "Nested task."),
  flag("RF", 16, "Resume: no instruction breakpoint."),
  flag("VM", 17, "Virtual-8086 mode."),
  flag("AC", 18, "Alignment check; SMAP override."),
  flag("VIF", 19, "Virtual interrupt flag."),
  flag("VIP", 20, "Virtual interrupt pending."),
  flag("ID", 21, "CPUID is there."),
];

/** SDM 3B 18.2.4. */
export const DR7_BITS: readonly BitField[] = [
  ...[0, 1, 2, 3].flatMap((n) => [
    flag(`L${n}`, n * 2, `Breakpoint ${n} enabled for this task.`),
    flag(`G${n}`, n * 2 + 1, `Breakpoint ${n} enabled for all tasks.`),
  ]),
  flag("LE", 8, "Local exact breakpoints (ignored)."),
  flag("GE", 9, "Global exact breakpoints (ignored)."),
  flag("RTM", 11, "Debugging inside transactions."),
  flag("GD", 13, "MOV DR raises #DB."),
  ...[0, 1, 2, 3].flatMap((n) => [
    part(`RW${n}`, 16 + n * 4, 2, `What breakpoint ${n} watches.`, {
      0: "execute",
      1: "write",
      2: "io",
      3: "read-write",
    }),
    part(`LEN${n}`, 18 + n * 4, 2, `Length of breakpoint ${n}.`, { 0: "1", 1: "2", 2: "8", 3: "4" }),
  ]),
];

/** SDM 3B 18.4.1. */
export const DEBUGCTL_BITS: readonly BitField[] = [
  flag("LBR", 0, "Last-branch recording."),
  flag("BTF", 1, "Single step on branches."),
  flag("TR", 6, "Branch trace messages."),
  flag("BTS", 7, "Branch trace store."),
  flag("BTINT", 8, "Interrupt when the branch trace store is full."),
  flag("FREEZE_LBRS_ON_PMI", 11, "LBRs freeze on PMI."),
  flag("FREEZE_PERFMON_ON_PMI", 12, "Counters freeze on PMI."),
  flag("FREEZE_WHILE_SMM", 14, "Counters freeze in SMM."),
  flag("RTM", 15, "Debugging inside transactions."),
];

/** SDM 3C table 25-2. */
export const ACCESS_RIGHTS_BITS: readonly BitField[] = [
  part("TYPE", 0, 4, "Segment type."),
  flag("S", 4, "Code or data (0: system)."),
  part("DPL", 5, 2, "Descriptor privilege level."),
  flag("P", 7, "Present."),
  flag("AVL", 12, "Available to software."),
  flag("L", 13, "64-bit code (CS)."),
  flag("DB", 14, "Default operation size 32 bits."),
  flag("G", 15, "Limit counts 4-KByte units."),
  flag("UNUSABLE", 16, "The segment may not be used."),
];

/** SDM 3A 3.4.2. */
export const SELECTOR_BITS: readonly BitField[] = [
  part("RPL", 0, 2, "Requested privilege level."),
  flag("TI", 2, "Local descriptor table."),
  part("INDEX", 3, 13, "Index of the descriptor."),
];

const EVENT_TYPES = {
  0: "external interrupt",
  2: "NMI",
  3: "hardware exception",
  4: "software interrupt",
  5: "privileged software exception",
  6: "software exception",
  7: "other event",
} as const;

/** VM_ENTRY_INTR_INFO_FIELD: SDM 3C table 25-17. */
export const ENTRY_INTR_INFO_BITS: readonly BitField[] = [
  part("VECTOR", 0, 8, "Vector of the event."),
  part("TYPE", 8, 3, "Type of the event.", EVENT_TYPES),
  flag("DELIVER_ERROR_CODE", 11, "Delivery pushes the error code field."),
  flag("VALID", 31, "Inject the event."),
];

/** VM_EXIT_INTR_INFO: SDM 3C table 25-18. */
export const EXIT_INTR_INFO_BITS: readonly BitField[] = [
  part("VECTOR", 0, 8, "Vector of the event."),
  part("TYPE", 8, 3, "Type of the event.", EVENT_TYPES),
  flag("ERROR_CODE_VALID", 11, "The error code field holds one."),
  flag("NMI_UNBLOCKING", 12, "IRET had just removed blocking by NMI."),
  flag("VALID", 31, "The exit came from an event."),
];

/** IDT_VECTORING_INFO_FIELD: SDM 3C table 25-19. */
export const IDT_VECTORING_INFO_BITS: readonly BitField[] = [
  part("VECTOR", 0, 8, "Vector of the event being delivered."),
  part("TYPE", 8, 3, "Type of the event.", EVENT_TYPES),
  flag("ERROR_CODE_VALID", 11, "The error code field holds one."),
  flag("VALID", 31, "The exit came during delivery of this event."),
];

/** SDM 3C table 25-3. */
export const INTERRUPTIBILITY_BITS: readonly BitField[] = [
  flag("STI", 0, "Blocking by STI."),
  flag("MOV_SS", 1, "Blocking by MOV SS or POP SS."),
  flag("SMI", 2, "Blocking by SMI."),
  flag("NMI", 3, "Blocking by NMI (by virtual NMI with virtual NMIs)."),
  flag("ENCLAVE", 4, "The exit came from an enclave."),
];

/** SDM 3C 25.4.2. */
export const ACTIVITY_BITS: readonly BitField[] = [
  part("STATE", 0, 32, "Activity state.", { 0: "active", 1: "HLT", 2: "shutdown", 3: "wait-for-SIPI" }),
];

/** SDM 3C table 25-4. */
export const PENDING_DEBUG_BITS: readonly BitField[] = [
  flag("B0", 0, "Breakpoint 0 met."),
  flag("B1", 1, "Breakpoint 1 met."),
  flag("B2", 2, "Breakpoint 2 met."),
  flag("B3", 3, "Breakpoint 3 met."),
  flag("BLD", 11, "Bus lock detected."),
  flag("ENABLED_BREAKPOINT", 12, "At least one data or I/O breakpoint met was enabled."),
  flag("BS", 14, "Single step."),
  flag("RTM", 16, "Inside a transaction."),
];

/** SDM 3C table 25-9. */
export const EPTP_BITS: readonly BitField[] = [
  part("MEMORY_TYPE", 0, 3, "Memory type of EPT paging-structure accesses.", { 0: "UC", 6: "WB" }),
  part("WALK_LENGTH", 3, 3, "EPT page-walk length minus 1."),
  flag("AD", 6, "Accessed and dirty flags of EPT entries are used."),
  flag("SSS", 7, "Supervisor shadow-stack access rights are enforced."),
  part("PML4", 12, 40, "Frame number of the EPT PML4 table."),
];

/** SDM 3C table 25-16. */
export const EXIT_REASON_BITS: readonly BitField[] = [
  part("BASIC", 0, 16, "Basic exit reason."),
  flag("SHADOW_STACK_BUSY", 25, "The shadow stack was made busy."),
  flag("BUS_LOCK", 26, "A bus lock preceded the exit."),
  flag("ENCLAVE", 27, "The exit came from an enclave."),
  flag("PENDING_MTF", 28, "An MTF exit was pending (SMM exits)."),
  flag("FROM_ROOT", 29, "The exit came from VMX root operation."),
  flag("ENTRY_FAILURE", 31, "VM-entry failure."),
];

/** Exceptions by vector (SDM 3A table 6-1), for the exception bitmap. */
export const EXCEPTION_BITMAP_BITS: readonly BitField[] = [
  flag("DE", 0, "Divide error."),
  flag("DB", 1, "Debug exception."),
  flag("BP", 3, "Breakpoint."),
  flag("OF", 4, "Overflow."),
  flag("BR", 5, "BOUND range exceeded."),
  flag("UD", 6, "Invalid opcode."),
  flag("NM", 7, "Device not available."),
  flag("DF", 8, "Double fault."),
  flag("TS", 10, "Invalid TSS."),
  flag("NP", 11, "Segment not present."),
  flag("SS", 12, "Stack-segment fault."),
  flag("GP", 13, "General protection."),
  flag("PF", 14, "Page fault; PAGE_FAULT_ERROR_CODE_MASK and _MATCH may invert this bit."),
  flag("MF", 16, "x87 error."),
  flag("AC", 17, "Alignment check."),
  flag("MC", 18, "Machine check."),
  flag("XM", 19, "SIMD floating-point exception."),
  flag("VE", 20, "Virtualization exception."),
  flag("CP", 21, "Control protection."),
];

/** SDM 3A 4.7. */
export const PF_ERROR_BITS: readonly BitField[] = [
  flag("P", 0, "Protection violation (0: not present)."),
  flag("W", 1, "Write."),
  flag("U", 2, "User mode."),
  flag("RSVD", 3, "Reserved bit set."),
  flag("I", 4, "Instruction fetch."),
  flag("PK", 5, "Protection key."),
  flag("SS", 6, "Shadow stack."),
];

/** SDM 3A 11.12.2. */
export const PAT_BITS: readonly BitField[] = [0, 1, 2, 3, 4, 5, 6, 7].map((n) =>
  part(`PA${n}`, n * 8, 3, `Memory type ${n}.`, { 0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-" }),
);
