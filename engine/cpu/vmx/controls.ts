/**
 * VM-execution, VM-exit and VM-entry controls: every bit the SDM gives a meaning, and whether this processor has it.
 * The capability MSRs (capabilities.ts), the names of bits in VMCS fields (fields.ts) and the entry checks all read
 * these rows. SDM 3C 25.6, 25.7, 25.8. Names are Linux's, without the prefix of their word.
 */
import type { CpuModel, Feature } from "../models/model";
import type { BitField } from "../registers";

export interface ControlRow {
  readonly name: string;
  readonly bit: number;
  /** The control may be 1 on this processor: always, never, or when the model has the feature it is about. */
  readonly supported: boolean | Feature;
  readonly help: string;
}

/** One word of controls. */
export interface ControlWord<Rows extends readonly ControlRow[] = readonly ControlRow[]> {
  /** Bits of "default1": reserved and read as 1 by the plain capability MSR (SDM 3D A.2 to A.5). */
  readonly default1: number;
  /** Bits of default1 that the TRUE capability MSR nevertheless lets be 0. */
  readonly mayBeZero: number;
  readonly rows: Rows;
}

const row = <const Name extends string>(name: Name, bit: number, supported: boolean | Feature, help: string) => ({
  name,
  bit,
  supported,
  help,
});

type Masks<Rows extends readonly ControlRow[]> = { readonly [R in Rows[number] as R["name"]]: number };

/** Masks by name, as signed 32-bit numbers (bit 31 is negative), fit for `&`. */
const masks = <const Rows extends readonly ControlRow[]>(rows: Rows): Masks<Rows> =>
  Object.fromEntries(rows.map((r) => [r.name, 1 << r.bit])) as Masks<Rows>;

const bitFields = (rows: readonly ControlRow[]): readonly BitField[] =>
  rows.map((r) => ({ name: r.name, low: r.bit, width: 1, help: r.help }));

// biome-ignore-start format: one row a line
const pinRows = [
  row("EXT_INTR_EXITING", 0, true, "External interrupts cause VM exits instead of going through the guest's IDT."),
  row("NMI_EXITING", 3, true, "NMIs cause VM exits instead of going through vector 2 of the guest's IDT."),
  row("VIRTUAL_NMIS", 5, true, "Blocking by NMI is that of virtual NMIs: injected ones set it, IRET clears it."),
  row("VMX_PREEMPTION_TIMER", 6, true, "The VMX-preemption timer counts down in the guest and exits at zero."),
  row("POSTED_INTR", 7, true, "Interrupts with the notification vector post to the virtual APIC."),
] as const;

const primaryRows = [
  row("INTR_WINDOW_EXITING", 2, true, "VM exit at the first instruction boundary at which interrupts are open."),
  row("USE_TSC_OFFSETTING", 3, true, "RDTSC, RDTSCP and RDMSR of the TSC add the TSC offset."),
  row("HLT_EXITING", 7, true, "HLT causes a VM exit."),
  row("INVLPG_EXITING", 9, true, "INVLPG (and INVPCID) causes a VM exit."),
  row("MWAIT_EXITING", 10, true, "MWAIT causes a VM exit."),
  row("RDPMC_EXITING", 11, true, "RDPMC causes a VM exit."),
  row("RDTSC_EXITING", 12, true, "RDTSC and RDTSCP cause VM exits."),
  row("CR3_LOAD_EXITING", 15, true, "MOV to CR3 causes a VM exit unless the value is a CR3-target value."),
  row("CR3_STORE_EXITING", 16, true, "MOV from CR3 causes a VM exit."),
  row("ACTIVATE_TERTIARY_CONTROLS", 17, false, "The tertiary processor-based controls are used; otherwise all are 0."),
  row("CR8_LOAD_EXITING", 19, true, "MOV to CR8 causes a VM exit."),
  row("CR8_STORE_EXITING", 20, true, "MOV from CR8 causes a VM exit."),
  row("TPR_SHADOW", 21, true, "CR8 is virtualized by the task priority in the virtual-APIC page."),
  row("NMI_WINDOW_EXITING", 22, true, "VM exit at the first boundary at which there is no virtual-NMI blocking."),
  row("MOV_DR_EXITING", 23, true, "MOV to and from debug registers causes VM exits."),
  row("UNCOND_IO_EXITING", 24, true, "Every IN, OUT, INS and OUTS causes a VM exit (ignored with I/O bitmaps)."),
  row("USE_IO_BITMAPS", 25, true, "The I/O bitmaps say which ports cause VM exits."),
  row("MONITOR_TRAP_FLAG", 27, true, "A VM exit follows the next guest instruction."),
  row("USE_MSR_BITMAPS", 28, true, "The MSR bitmaps say which RDMSR and WRMSR cause VM exits; without, all do."),
  row("MONITOR_EXITING", 29, true, "MONITOR causes a VM exit."),
  row("PAUSE_EXITING", 30, true, "PAUSE causes a VM exit."),
  row("ACTIVATE_SECONDARY_CONTROLS", 31, true, "The secondary processor-based controls are used; otherwise all are 0."),
] as const;

const secondaryRows = [
  row("VIRTUALIZE_APIC_ACCESSES", 0, true, "Accesses to the APIC-access page are virtualized or exit."),
  row("ENABLE_EPT", 1, true, "Guest-physical addresses are translated by extended page tables."),
  row("DESC", 2, true, "LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT and STR cause VM exits."),
  row("ENABLE_RDTSCP", 3, "rdtscp", "RDTSCP (and RDPID) may be used; otherwise they raise #UD."),
  row("VIRTUALIZE_X2APIC_MODE", 4, "x2apic", "RDMSR and WRMSR of x2APIC registers are virtualized."),
  row("ENABLE_VPID", 5, true, "Cached translations of linear addresses are tagged with the VPID."),
  row("WBINVD_EXITING", 6, true, "WBINVD and WBNOINVD cause VM exits."),
  row("UNRESTRICTED_GUEST", 7, true, "The guest may run without paging and in real-address mode."),
  row("APIC_REGISTER_VIRT", 8, true, "Most reads of the virtual APIC are served from the virtual-APIC page."),
  row("VIRTUAL_INTR_DELIVERY", 9, true, "Virtual interrupts are evaluated and delivered without VM exits."),
  row("PAUSE_LOOP_EXITING", 10, true, "A tight loop of PAUSE at CPL 0 causes a VM exit (PLE_GAP, PLE_WINDOW)."),
  row("RDRAND_EXITING", 11, "rdrand", "RDRAND causes a VM exit."),
  row("ENABLE_INVPCID", 12, "invpcid", "INVPCID may be used; otherwise it raises #UD."),
  row("ENABLE_VMFUNC", 13, true, "VMFUNC may be used in the guest."),
  row("SHADOW_VMCS", 14, true, "VMREAD and VMWRITE in the guest may access a shadow VMCS."),
  row("ENCLS_EXITING", 15, false, "The ENCLS-exiting bitmap says which ENCLS leaves exit."),
  row("RDSEED_EXITING", 16, "rdseed", "RDSEED causes a VM exit."),
  row("ENABLE_PML", 17, true, "EPT dirty-bit updates are logged to a page of guest-physical addresses."),
  row("EPT_VIOLATION_VE", 18, true, "EPT violations may become virtualization exceptions (#VE)."),
  row("PT_CONCEAL_VMX", 19, false, "Intel PT does not show that the processor is in VMX non-root operation."),
  row("ENABLE_XSAVES", 20, "xsaves", "XSAVES and XRSTORS may be used in the guest."),
  row("PASID_TRANSLATION", 21, false, "ENQCMD and ENQCMDS translate PASIDs."),
  row("MODE_BASED_EPT_EXEC", 22, true, "EPT execute permission distinguishes user from supervisor addresses."),
  row("SPP", 23, false, "EPT write permissions may be given to 128-byte sub-pages."),
  row("PT_USE_GPA", 24, false, "Intel PT output addresses are guest-physical."),
  row("TSC_SCALING", 25, true, "The guest's TSC is multiplied by the TSC multiplier before the offset is added."),
  row("ENABLE_USR_WAIT_PAUSE", 26, false, "TPAUSE, UMONITOR and UMWAIT may be used in the guest."),
  row("ENABLE_PCONFIG", 27, false, "PCONFIG may be used in the guest."),
  row("ENCLV_EXITING", 28, false, "The ENCLV-exiting bitmap says which ENCLV leaves exit."),
  row("BUS_LOCK_DETECTION", 30, false, "A bus lock in the guest causes a VM exit."),
  row("NOTIFY_VM_EXITING", 31, false, "A VM exit follows when no event window opens for a while."),
] as const;

const tertiaryRows = [
  row("LOADIWKEY_EXITING", 0, false, "LOADIWKEY causes a VM exit."),
  row("HLAT", 1, false, "Hypervisor-managed linear-address translation is used."),
  row("EPT_PAGING_WRITE", 2, false, "EPT entries may allow writes by page walks only."),
  row("GUEST_PAGING_VERIFICATION", 3, false, "EPT entries may ask that guest paging was verified."),
  row("IPI_VIRT", 4, false, "IPIs of the guest are virtualized by the PID-pointer table."),
  row("VIRTUALIZE_SPEC_CTRL", 7, false, "IA32_SPEC_CTRL is virtualized by a mask and a shadow."),
] as const;

const exitRows = [
  row("SAVE_DEBUG_CONTROLS", 2, true, "DR7 and IA32_DEBUGCTL are saved on VM exit."),
  row("HOST_ADDR_SPACE_SIZE", 9, true, "The host is in 64-bit mode after VM exit (CS.L, EFER.LMA and LME)."),
  row("LOAD_IA32_PERF_GLOBAL_CTRL", 12, false, "IA32_PERF_GLOBAL_CTRL is loaded on VM exit."),
  row("ACK_INTR_ON_EXIT", 15, true, "An external-interrupt exit acknowledges the interrupt and stores its vector."),
  row("SAVE_IA32_PAT", 18, true, "IA32_PAT is saved on VM exit."),
  row("LOAD_IA32_PAT", 19, true, "IA32_PAT is loaded on VM exit."),
  row("SAVE_IA32_EFER", 20, true, "IA32_EFER is saved on VM exit."),
  row("LOAD_IA32_EFER", 21, true, "IA32_EFER is loaded on VM exit."),
  row("SAVE_VMX_PREEMPTION_TIMER", 22, true, "The value of the VMX-preemption timer is saved on VM exit."),
  row("CLEAR_BNDCFGS", 23, false, "IA32_BNDCFGS is cleared on VM exit."),
  row("PT_CONCEAL_PIP", 24, false, "Intel PT does not show VM exits."),
  row("CLEAR_IA32_RTIT_CTL", 25, false, "IA32_RTIT_CTL is cleared on VM exit."),
  row("CLEAR_IA32_LBR_CTL", 26, false, "IA32_LBR_CTL is cleared on VM exit."),
  row("CLEAR_UINV", 27, false, "UINV is cleared on VM exit."),
  row("LOAD_CET_STATE", 28, false, "CET state is loaded on VM exit."),
  row("LOAD_PKRS", 29, false, "IA32_PKRS is loaded on VM exit."),
  row("SAVE_IA32_PERF_GLOBAL_CTRL", 30, false, "IA32_PERF_GLOBAL_CTRL is saved on VM exit."),
  row("ACTIVATE_SECONDARY_EXIT_CONTROLS", 31, false, "The secondary VM-exit controls are used."),
] as const;

const entryRows = [
  row("LOAD_DEBUG_CONTROLS", 2, true, "DR7 and IA32_DEBUGCTL are loaded on VM entry."),
  row("IA32E_MODE", 9, true, "The guest is in IA-32e mode after VM entry (EFER.LMA)."),
  row("SMM", 10, false, "The guest is in SMM after VM entry."),
  row("DEACT_DUAL_MONITOR", 11, false, "The default treatment of SMIs and SMM is in effect after VM entry."),
  row("LOAD_IA32_PERF_GLOBAL_CTRL", 13, false, "IA32_PERF_GLOBAL_CTRL is loaded on VM entry."),
  row("LOAD_IA32_PAT", 14, true, "IA32_PAT is loaded on VM entry."),
  row("LOAD_IA32_EFER", 15, true, "IA32_EFER is loaded on VM entry."),
  row("LOAD_BNDCFGS", 16, false, "IA32_BNDCFGS is loaded on VM entry."),
  row("PT_CONCEAL_PIP", 17, false, "Intel PT does not show VM entries."),
  row("LOAD_IA32_RTIT_CTL", 18, false, "IA32_RTIT_CTL is loaded on VM entry."),
  row("LOAD_UINV", 19, false, "UINV is loaded on VM entry."),
  row("LOAD_CET_STATE", 20, false, "CET state is loaded on VM entry."),
  row("LOAD_IA32_LBR_CTL", 21, false, "IA32_LBR_CTL is loaded on VM entry."),
  row("LOAD_PKRS", 22, false, "IA32_PKRS is loaded on VM entry."),
] as const;
// biome-ignore-end format: one row a line

/** Bits of PIN_BASED_VM_EXEC_CONTROL (SDM 3C 25.6.1). */
export const PinBased = masks(pinRows);
/** Bits of CPU_BASED_VM_EXEC_CONTROL (SDM 3C 25.6.2, table 25-6). */
export const CpuBased = masks(primaryRows);
/** Bits of SECONDARY_VM_EXEC_CONTROL (SDM 3C 25.6.2, table 25-7). */
export const SecondaryExec = masks(secondaryRows);
/** Bits of VM_EXIT_CONTROLS (SDM 3C 25.7.1). */
export const VmExitControl = masks(exitRows);
/** Bits of VM_ENTRY_CONTROLS (SDM 3C 25.8.1). */
export const VmEntryControl = masks(entryRows);

export const PIN_BASED: ControlWord<typeof pinRows> = { default1: 0x16, mayBeZero: 0, rows: pinRows };
export const CPU_BASED: ControlWord<typeof primaryRows> = {
  default1: 0x0401_e172,
  mayBeZero: CpuBased.CR3_LOAD_EXITING | CpuBased.CR3_STORE_EXITING,
  rows: primaryRows,
};
export const SECONDARY_EXEC: ControlWord<typeof secondaryRows> = { default1: 0, mayBeZero: 0, rows: secondaryRows };
export const VM_EXIT: ControlWord<typeof exitRows> = {
  default1: 0x0003_6dff,
  mayBeZero: VmExitControl.SAVE_DEBUG_CONTROLS,
  rows: exitRows,
};
export const VM_ENTRY: ControlWord<typeof entryRows> = {
  default1: 0x0000_11ff,
  mayBeZero: VmEntryControl.LOAD_DEBUG_CONTROLS,
  rows: entryRows,
};

export const PIN_BASED_BITS = bitFields(pinRows);
export const CPU_BASED_BITS = bitFields(primaryRows);
export const SECONDARY_EXEC_BITS = bitFields(secondaryRows);
export const TERTIARY_EXEC_BITS = bitFields(tertiaryRows);
export const VM_EXIT_BITS = bitFields(exitRows);
export const VM_ENTRY_BITS = bitFields(entryRows);

/** Mask of the controls that may be 1 on a processor of this model. */
export const supportedMask = (word: ControlWord, model: CpuModel): number =>
  word.rows.reduce((mask, r) => {
    const has = typeof r.supported === "string" ? model.features.has(r.supported) : r.supported;
    return has ? mask | (1 << r.bit) : mask;
  }, 0);
