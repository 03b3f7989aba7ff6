/**
 * All VMCS fields: SDM 3D appendix B as one table. Width, access and area follow from the encoding (SDM 3C 25.11.2);
 * names are Linux's (enum vmcs_field). The processor, the KVM model, the debugger and the documentation read these rows.
 */
import type { BitField } from "../registers";
import * as bits from "./bits";
import * as controls from "./controls";

export type FieldWidth = 16 | 32 | 64 | "natural";
export type FieldGroup =
  | "guest-state"
  | "host-state"
  | "execution-control"
  | "exit-control"
  | "entry-control"
  | "exit-information";

export interface VmcsField {
  readonly name: FieldName;
  readonly encoding: number;
  readonly width: FieldWidth;
  /** VMWRITE may write it ("ro": VM-exit information, unless IA32_VMX_MISC bit 29 says otherwise). */
  readonly access: "rw" | "ro";
  readonly group: FieldGroup;
  /** Where displays list it inside its group. */
  readonly subgroup: string;
  readonly bits?: readonly BitField[];
  readonly section: string;
  readonly help: string;
  /** Byte offset of its 8-byte slot in our format of a VMCS region; narrower fields keep the rest of the slot 0. */
  readonly offset: number;
}

interface Spec<Encoding extends number> {
  readonly encoding: Encoding;
  readonly subgroup: string;
  readonly section: string;
  readonly help: string;
  readonly bits?: readonly BitField[];
}

const f = <const Encoding extends number>(
  encoding: Encoding,
  subgroup: string,
  section: string,
  help: string,
  bits?: readonly BitField[],
): Spec<Encoding> => ({ encoding, subgroup, section, help, bits });

const AR = bits.ACCESS_RIGHTS_BITS;
const SEL = bits.SELECTOR_BITS;

// biome-ignore-start format: one row a line
const TABLE = {
  // B.1 16-bit fields
  VIRTUAL_PROCESSOR_ID: f(
    0x0000,
    "Execution controls",
    "3C 25.6.12",
    "Tag of the guest's cached linear translations (VPID); 0 is the host's.",
  ),
  POSTED_INTR_NV: f(
    0x0002,
    "APIC virtualization",
    "3C 25.6.8",
    "Vector whose arrival starts posted-interrupt processing.",
  ),
  EPTP_INDEX: f(0x0004, "Execution controls", "3C 25.6.20", "Index into the EPTP list of the current EPTP."),
  HLAT_PREFIX_SIZE: f(
    0x0006,
    "Execution controls",
    "3C 25.6.24",
    "High bits of a linear address that must match for HLAT paging.",
  ),
  LAST_PID_POINTER_INDEX: f(
    0x0008,
    "APIC virtualization",
    "3C 25.6.8",
    "Index of the last entry of the PID-pointer table.",
  ),
  GUEST_ES_SELECTOR: f(0x0800, "Segments", "3C 25.4.1", "ES selector.", SEL),
  GUEST_CS_SELECTOR: f(0x0802, "Segments", "3C 25.4.1", "CS selector.", SEL),
  GUEST_SS_SELECTOR: f(0x0804, "Segments", "3C 25.4.1", "SS selector.", SEL),
  GUEST_DS_SELECTOR: f(0x0806, "Segments", "3C 25.4.1", "DS selector.", SEL),
  GUEST_FS_SELECTOR: f(0x0808, "Segments", "3C 25.4.1", "FS selector.", SEL),
  GUEST_GS_SELECTOR: f(0x080a, "Segments", "3C 25.4.1", "GS selector.", SEL),
  GUEST_LDTR_SELECTOR: f(0x080c, "Segments", "3C 25.4.1", "LDTR selector.", SEL),
  GUEST_TR_SELECTOR: f(0x080e, "Segments", "3C 25.4.1", "TR selector.", SEL),
  GUEST_INTR_STATUS: f(
    0x0810,
    "Non-register state",
    "3C 25.4.2",
    "Requesting (7:0) and servicing (15:8) virtual interrupt of virtual-interrupt delivery.",
  ),
  GUEST_PML_INDEX: f(0x0812, "Non-register state", "3C 25.4.2", "Index of the next page-modification log entry."),
  GUEST_UINV: f(0x0814, "Non-register state", "3C 25.4.1", "User-interrupt notification vector."),
  HOST_ES_SELECTOR: f(0x0c00, "Segments", "3C 25.5", "ES selector of the host.", SEL),
  HOST_CS_SELECTOR: f(0x0c02, "Segments", "3C 25.5", "CS selector of the host.", SEL),
  HOST_SS_SELECTOR: f(0x0c04, "Segments", "3C 25.5", "SS selector of the host.", SEL),
  HOST_DS_SELECTOR: f(0x0c06, "Segments", "3C 25.5", "DS selector of the host.", SEL),
  HOST_FS_SELECTOR: f(0x0c08, "Segments", "3C 25.5", "FS selector of the host.", SEL),
  HOST_GS_SELECTOR: f(0x0c0a, "Segments", "3C 25.5", "GS selector of the host.", SEL),
  HOST_TR_SELECTOR: f(0x0c0c, "Segments", "3C 25.5", "TR selector of the host.", SEL),

  // B.2 64-bit fields
  IO_BITMAP_A: f(
    0x2000,
    "Execution controls",
    "3C 25.6.4",
    "Physical address of the I/O bitmap for ports 0000 to 7fff.",
  ),
  IO_BITMAP_B: f(
    0x2002,
    "Execution controls",
    "3C 25.6.4",
    "Physical address of the I/O bitmap for ports 8000 to ffff.",
  ),
  MSR_BITMAP: f(0x2004, "Execution controls", "3C 25.6.9", "Physical address of the MSR bitmaps."),
  VM_EXIT_MSR_STORE_ADDR: f(0x2006, "MSR lists", "3C 25.7.2", "Physical address of the list of MSRs saved on VM exit."),
  VM_EXIT_MSR_LOAD_ADDR: f(0x2008, "MSR lists", "3C 25.7.2", "Physical address of the list of MSRs loaded on VM exit."),
  VM_ENTRY_MSR_LOAD_ADDR: f(
    0x200a,
    "MSR lists",
    "3C 25.8.2",
    "Physical address of the list of MSRs loaded on VM entry.",
  ),
  EXECUTIVE_VMCS_POINTER: f(
    0x200c,
    "Execution controls",
    "3C 25.6.10",
    "Executive VMCS of the dual-monitor treatment of SMIs.",
  ),
  PML_ADDRESS: f(0x200e, "Execution controls", "3C 25.6.17", "Physical address of the page-modification log."),
  TSC_OFFSET: f(0x2010, "Execution controls", "3C 25.6.5", "Added to the guest's reads of the TSC."),
  VIRTUAL_APIC_PAGE_ADDR: f(0x2012, "APIC virtualization", "3C 25.6.8", "Physical address of the virtual-APIC page."),
  APIC_ACCESS_ADDR: f(0x2014, "APIC virtualization", "3C 25.6.8", "Physical address of the APIC-access page."),
  POSTED_INTR_DESC_ADDR: f(
    0x2016,
    "APIC virtualization",
    "3C 25.6.8",
    "Physical address of the posted-interrupt descriptor.",
  ),
  VM_FUNCTION_CONTROL: f(0x2018, "Execution controls", "3C 25.6.14", "VM functions the guest may use.", [
    { name: "EPTP_SWITCHING", low: 0, width: 1, help: "VMFUNC 0 switches the EPTP." },
  ]),
  EPT_POINTER: f(
    0x201a,
    "Execution controls",
    "3C 25.6.11",
    "EPT pointer: table, walk length, memory type, A/D flags.",
    bits.EPTP_BITS,
  ),
  EOI_EXIT_BITMAP0: f(0x201c, "APIC virtualization", "3C 25.6.8", "Vectors 00 to 3f whose virtual EOI exits."),
  EOI_EXIT_BITMAP1: f(0x201e, "APIC virtualization", "3C 25.6.8", "Vectors 40 to 7f whose virtual EOI exits."),
  EOI_EXIT_BITMAP2: f(0x2020, "APIC virtualization", "3C 25.6.8", "Vectors 80 to bf whose virtual EOI exits."),
  EOI_EXIT_BITMAP3: f(0x2022, "APIC virtualization", "3C 25.6.8", "Vectors c0 to ff whose virtual EOI exits."),
  EPTP_LIST_ADDRESS: f(
    0x2024,
    "Execution controls",
    "3C 25.6.14",
    "Physical address of the list of EPTPs VMFUNC 0 may switch to.",
  ),
  VMREAD_BITMAP: f(0x2026, "Execution controls", "3C 25.6.15", "Fields whose VMREAD exits with a shadow VMCS."),
  VMWRITE_BITMAP: f(0x2028, "Execution controls", "3C 25.6.15", "Fields whose VMWRITE exits with a shadow VMCS."),
  VIRT_EXCEPTION_INFO: f(
    0x202a,
    "Execution controls",
    "3C 25.6.18",
    "Physical address of the virtualization-exception information area.",
  ),
  XSS_EXIT_BITMAP: f(0x202c, "Execution controls", "3C 25.6.21", "States whose XSAVES and XRSTORS exit."),
  ENCLS_EXITING_BITMAP: f(0x202e, "Execution controls", "3C 25.6.16", "ENCLS leaves that exit."),
  SPPTP: f(0x2030, "Execution controls", "3C 25.6.22", "Sub-page-permission-table pointer."),
  TSC_MULTIPLIER: f(0x2032, "Execution controls", "3C 25.6.5", "Factor of the guest's TSC, 48 fraction bits."),
  TERTIARY_VM_EXEC_CONTROL: f(
    0x2034,
    "Execution controls",
    "3C 25.6.2",
    "Tertiary processor-based controls.",
    controls.TERTIARY_EXEC_BITS,
  ),
  ENCLV_EXITING_BITMAP: f(0x2036, "Execution controls", "3C 25.6.16", "ENCLV leaves that exit."),
  LOW_PASID_DIR_ADDR: f(0x2038, "Execution controls", "3C 25.6.19", "Physical address of the low PASID directory."),
  HIGH_PASID_DIR_ADDR: f(0x203a, "Execution controls", "3C 25.6.19", "Physical address of the high PASID directory."),
  SHARED_EPT_POINTER: f(0x203c, "Execution controls", "3C 25.6.11", "EPT pointer of shared guest-physical addresses."),
  PCONFIG_EXITING_BITMAP: f(0x203e, "Execution controls", "3C 25.6.16", "PCONFIG leaves that exit."),
  HLATP: f(0x2040, "Execution controls", "3C 25.6.24", "HLAT pointer."),
  PID_POINTER_TABLE: f(
    0x2042,
    "APIC virtualization",
    "3C 25.6.8",
    "Physical address of the PID-pointer table of IPI virtualization.",
  ),
  SECONDARY_VM_EXIT_CONTROLS: f(0x2044, "Controls", "3C 25.7.1", "Secondary VM-exit controls."),
  SPEC_CTRL_MASK: f(0x204a, "Execution controls", "3C 25.6.3", "Bits of IA32_SPEC_CTRL the guest may not change."),
  SPEC_CTRL_SHADOW: f(0x204c, "Execution controls", "3C 25.6.3", "IA32_SPEC_CTRL as the guest sees it."),
  INJECTED_EVENT_DATA: f(0x2052, "Event injection", "3C 25.8.3", "Event data of an injected event with FRED."),
  GUEST_PHYSICAL_ADDRESS: f(
    0x2400,
    "Basic information",
    "3C 25.9.1",
    "Guest-physical address of an EPT violation or misconfiguration.",
  ),
  ORIGINAL_EVENT_DATA: f(0x2404, "Vectoring", "3C 25.9.3", "Event data of the event being delivered with FRED."),
  VMCS_LINK_POINTER: f(
    0x2800,
    "Non-register state",
    "3C 25.4.2",
    "All ones, or the VMCS shadowed by VMREAD and VMWRITE.",
  ),
  GUEST_IA32_DEBUGCTL: f(0x2802, "MSRs", "3C 25.4.1", "IA32_DEBUGCTL.", bits.DEBUGCTL_BITS),
  GUEST_IA32_PAT: f(0x2804, "MSRs", "3C 25.4.1", "IA32_PAT.", bits.PAT_BITS),
  GUEST_IA32_EFER: f(0x2806, "MSRs", "3C 25.4.1", "IA32_EFER.", bits.EFER_BITS),
  GUEST_IA32_PERF_GLOBAL_CTRL: f(0x2808, "MSRs", "3C 25.4.1", "IA32_PERF_GLOBAL_CTRL."),
  GUEST_PDPTR0: f(0x280a, "PDPTEs", "3C 25.4.2", "PDPTE0 of PAE paging under EPT."),
  GUEST_PDPTR1: f(0x280c, "PDPTEs", "3C 25.4.2", "PDPTE1 of PAE paging under EPT."),
  GUEST_PDPTR2: f(0x280e, "PDPTEs", "3C 25.4.2", "PDPTE2 of PAE paging under EPT."),
  GUEST_PDPTR3: f(0x2810, "PDPTEs", "3C 25.4.2", "PDPTE3 of PAE paging under EPT."),
  GUEST_BNDCFGS: f(0x2812, "MSRs", "3C 25.4.1", "IA32_BNDCFGS."),
  GUEST_IA32_RTIT_CTL: f(0x2814, "MSRs", "3C 25.4.1", "IA32_RTIT_CTL."),
  GUEST_IA32_LBR_CTL: f(0x2816, "MSRs", "3C 25.4.1", "IA32_LBR_CTL."),
  GUEST_IA32_PKRS: f(0x2818, "MSRs", "3C 25.4.1", "IA32_PKRS."),
  GUEST_IA32_FRED_CONFIG: f(0x281a, "MSRs", "3C 25.4.1", "IA32_FRED_CONFIG."),
  GUEST_IA32_FRED_RSP1: f(0x281c, "MSRs", "3C 25.4.1", "IA32_FRED_RSP1."),
  GUEST_IA32_FRED_RSP2: f(0x281e, "MSRs", "3C 25.4.1", "IA32_FRED_RSP2."),
  GUEST_IA32_FRED_RSP3: f(0x2820, "MSRs", "3C 25.4.1", "IA32_FRED_RSP3."),
  GUEST_IA32_FRED_STKLVLS: f(0x2822, "MSRs", "3C 25.4.1", "IA32_FRED_STKLVLS."),
  GUEST_IA32_FRED_SSP1: f(0x2824, "MSRs", "3C 25.4.1", "IA32_FRED_SSP1."),
  GUEST_IA32_FRED_SSP2: f(0x2826, "MSRs", "3C 25.4.1", "IA32_FRED_SSP2."),
  GUEST_IA32_FRED_SSP3: f(0x2828, "MSRs", "3C 25.4.1", "IA32_FRED_SSP3."),
  HOST_IA32_PAT: f(0x2c00, "MSRs", "3C 25.5", "IA32_PAT of the host.", bits.PAT_BITS),
  HOST_IA32_EFER: f(0x2c02, "MSRs", "3C 25.5", "IA32_EFER of the host.", bits.EFER_BITS),
  HOST_IA32_PERF_GLOBAL_CTRL: f(0x2c04, "MSRs", "3C 25.5", "IA32_PERF_GLOBAL_CTRL of the host."),
  HOST_IA32_PKRS: f(0x2c06, "MSRs", "3C 25.5", "IA32_PKRS of the host."),
  HOST_IA32_FRED_CONFIG: f(0x2c08, "MSRs", "3C 25.5", "IA32_FRED_CONFIG of the host."),
  HOST_IA32_FRED_RSP1: f(0x2c0a, "MSRs", "3C 25.5", "IA32_FRED_RSP1 of the host."),
  HOST_IA32_FRED_RSP2: f(0x2c0c, "MSRs", "3C 25.5", "IA32_FRED_RSP2 of the host."),
  HOST_IA32_FRED_RSP3: f(0x2c0e, "MSRs", "3C 25.5", "IA32_FRED_RSP3 of the host."),
  HOST_IA32_FRED_STKLVLS: f(0x2c10, "MSRs", "3C 25.5", "IA32_FRED_STKLVLS of the host."),
  HOST_IA32_FRED_SSP1: f(0x2c12, "MSRs", "3C 25.5", "IA32_FRED_SSP1 of the host."),
  HOST_IA32_FRED_SSP2: f(0x2c14, "MSRs", "3C 25.5", "IA32_FRED_SSP2 of the host."),
  HOST_IA32_FRED_SSP3: f(0x2c16, "MSRs", "3C 25.5", "IA32_FRED_SSP3 of the host."),

  // B.3 32-bit fields
  PIN_BASED_VM_EXEC_CONTROL: f(
    0x4000,
    "Execution controls",
    "3C 25.6.1",
    "Pin-based controls: asynchronous events.",
    controls.PIN_BASED_BITS,
  ),
  CPU_BASED_VM_EXEC_CONTROL: f(
    0x4002,
    "Execution controls",
    "3C 25.6.2",
    "Primary processor-based controls.",
    controls.CPU_BASED_BITS,
  ),
  EXCEPTION_BITMAP: f(
    0x4004,
    "Execution controls",
    "3C 25.6.3",
    "Exceptions that cause VM exits, by vector.",
    bits.EXCEPTION_BITMAP_BITS,
  ),
  PAGE_FAULT_ERROR_CODE_MASK: f(
    0x4006,
    "Execution controls",
    "3C 25.6.3",
    "Error-code bits of a page fault that are compared.",
    bits.PF_ERROR_BITS,
  ),
  PAGE_FAULT_ERROR_CODE_MATCH: f(
    0x4008,
    "Execution controls",
    "3C 25.6.3",
    "What they are compared with.",
    bits.PF_ERROR_BITS,
  ),
  CR3_TARGET_COUNT: f(0x400a, "Execution controls", "3C 25.6.7", "How many CR3-target values count, 0 to 4."),
  VM_EXIT_CONTROLS: f(0x400c, "Controls", "3C 25.7.1", "Primary VM-exit controls.", controls.VM_EXIT_BITS),
  VM_EXIT_MSR_STORE_COUNT: f(0x400e, "MSR lists", "3C 25.7.2", "Entries of the list of MSRs saved on VM exit."),
  VM_EXIT_MSR_LOAD_COUNT: f(0x4010, "MSR lists", "3C 25.7.2", "Entries of the list of MSRs loaded on VM exit."),
  VM_ENTRY_CONTROLS: f(0x4012, "Controls", "3C 25.8.1", "VM-entry controls.", controls.VM_ENTRY_BITS),
  VM_ENTRY_MSR_LOAD_COUNT: f(0x4014, "MSR lists", "3C 25.8.2", "Entries of the list of MSRs loaded on VM entry."),
  VM_ENTRY_INTR_INFO_FIELD: f(
    0x4016,
    "Event injection",
    "3C 25.8.3",
    "Event delivered at the end of VM entry.",
    bits.ENTRY_INTR_INFO_BITS,
  ),
  VM_ENTRY_EXCEPTION_ERROR_CODE: f(0x4018, "Event injection", "3C 25.8.3", "Error code of the injected exception."),
  VM_ENTRY_INSTRUCTION_LEN: f(
    0x401a,
    "Event injection",
    "3C 25.8.3",
    "Length of the instruction behind an injected software event.",
  ),
  TPR_THRESHOLD: f(
    0x401c,
    "APIC virtualization",
    "3C 25.6.8",
    "VM exit when the TPR shadow falls below it (bits 3:0).",
  ),
  SECONDARY_VM_EXEC_CONTROL: f(
    0x401e,
    "Execution controls",
    "3C 25.6.2",
    "Secondary processor-based controls.",
    controls.SECONDARY_EXEC_BITS,
  ),
  PLE_GAP: f(0x4020, "Execution controls", "3C 25.6.13", "Most TSC ticks between two PAUSEs of one loop."),
  PLE_WINDOW: f(0x4022, "Execution controls", "3C 25.6.13", "TSC ticks a PAUSE loop may take."),
  NOTIFY_WINDOW: f(0x4024, "Execution controls", "3C 25.6.23", "Instruction-timeout control."),
  VM_INSTRUCTION_ERROR: f(
    0x4400,
    "Instruction error",
    "3C 25.9.5",
    "Why the last VMX instruction failed (VMfailValid).",
  ),
  VM_EXIT_REASON: f(0x4402, "Basic information", "3C 25.9.1", "Exit reason.", bits.EXIT_REASON_BITS),
  VM_EXIT_INTR_INFO: f(
    0x4404,
    "Vectored event",
    "3C 25.9.2",
    "Exception or interrupt that caused the exit.",
    bits.EXIT_INTR_INFO_BITS,
  ),
  VM_EXIT_INTR_ERROR_CODE: f(0x4406, "Vectored event", "3C 25.9.2", "Its error code."),
  IDT_VECTORING_INFO_FIELD: f(
    0x4408,
    "Vectoring",
    "3C 25.9.3",
    "Event whose delivery the exit interrupted.",
    bits.IDT_VECTORING_INFO_BITS,
  ),
  IDT_VECTORING_ERROR_CODE: f(0x440a, "Vectoring", "3C 25.9.3", "Its error code."),
  VM_EXIT_INSTRUCTION_LEN: f(0x440c, "Instruction", "3C 25.9.4", "Length of the instruction that exited, in bytes."),
  VMX_INSTRUCTION_INFO: f(
    0x440e,
    "Instruction",
    "3C 25.9.4",
    "Operands of the instruction that exited (tables 28-8 to 28-16).",
  ),
  GUEST_ES_LIMIT: f(0x4800, "Segments", "3C 25.4.1", "ES limit, in bytes."),
  GUEST_CS_LIMIT: f(0x4802, "Segments", "3C 25.4.1", "CS limit, in bytes."),
  GUEST_SS_LIMIT: f(0x4804, "Segments", "3C 25.4.1", "SS limit, in bytes."),
  GUEST_DS_LIMIT: f(0x4806, "Segments", "3C 25.4.1", "DS limit, in bytes."),
  GUEST_FS_LIMIT: f(0x4808, "Segments", "3C 25.4.1", "FS limit, in bytes."),
  GUEST_GS_LIMIT: f(0x480a, "Segments", "3C 25.4.1", "GS limit, in bytes."),
  GUEST_LDTR_LIMIT: f(0x480c, "Segments", "3C 25.4.1", "LDTR limit, in bytes."),
  GUEST_TR_LIMIT: f(0x480e, "Segments", "3C 25.4.1", "TR limit, in bytes."),
  GUEST_GDTR_LIMIT: f(0x4810, "Descriptor tables", "3C 25.4.1", "GDTR limit."),
  GUEST_IDTR_LIMIT: f(0x4812, "Descriptor tables", "3C 25.4.1", "IDTR limit."),
  GUEST_ES_AR_BYTES: f(0x4814, "Segments", "3C 25.4.1", "ES access rights.", AR),
  GUEST_CS_AR_BYTES: f(0x4816, "Segments", "3C 25.4.1", "CS access rights.", AR),
  GUEST_SS_AR_BYTES: f(0x4818, "Segments", "3C 25.4.1", "SS access rights; DPL is the CPL.", AR),
  GUEST_DS_AR_BYTES: f(0x481a, "Segments", "3C 25.4.1", "DS access rights.", AR),
  GUEST_FS_AR_BYTES: f(0x481c, "Segments", "3C 25.4.1", "FS access rights.", AR),
  GUEST_GS_AR_BYTES: f(0x481e, "Segments", "3C 25.4.1", "GS access rights.", AR),
  GUEST_LDTR_AR_BYTES: f(0x4820, "Segments", "3C 25.4.1", "LDTR access rights.", AR),
  GUEST_TR_AR_BYTES: f(0x4822, "Segments", "3C 25.4.1", "TR access rights.", AR),
  GUEST_INTERRUPTIBILITY_INFO: f(
    0x4824,
    "Non-register state",
    "3C 25.4.2",
    "Events that are blocked.",
    bits.INTERRUPTIBILITY_BITS,
  ),
  GUEST_ACTIVITY_STATE: f(
    0x4826,
    "Non-register state",
    "3C 25.4.2",
    "Active, HLT, shutdown or wait-for-SIPI.",
    bits.ACTIVITY_BITS,
  ),
  GUEST_SMBASE: f(0x4828, "MSRs", "3C 25.4.1", "SMBASE."),
  GUEST_SYSENTER_CS: f(0x482a, "MSRs", "3C 25.4.1", "IA32_SYSENTER_CS."),
  VMX_PREEMPTION_TIMER_VALUE: f(
    0x482e,
    "Non-register state",
    "3C 25.4.2",
    "What the VMX-preemption timer starts with.",
  ),
  HOST_IA32_SYSENTER_CS: f(0x4c00, "MSRs", "3C 25.5", "IA32_SYSENTER_CS of the host."),

  // B.4 natural-width fields
  CR0_GUEST_HOST_MASK: f(0x6000, "Execution controls", "3C 25.6.6", "CR0 bits the host owns.", bits.CR0_BITS),
  CR4_GUEST_HOST_MASK: f(0x6002, "Execution controls", "3C 25.6.6", "CR4 bits the host owns.", bits.CR4_BITS),
  CR0_READ_SHADOW: f(
    0x6004,
    "Execution controls",
    "3C 25.6.6",
    "What the guest reads in host-owned bits of CR0.",
    bits.CR0_BITS,
  ),
  CR4_READ_SHADOW: f(
    0x6006,
    "Execution controls",
    "3C 25.6.6",
    "What the guest reads in host-owned bits of CR4.",
    bits.CR4_BITS,
  ),
  CR3_TARGET_VALUE0: f(0x6008, "Execution controls", "3C 25.6.7", "CR3 value that may be loaded without a VM exit."),
  CR3_TARGET_VALUE1: f(0x600a, "Execution controls", "3C 25.6.7", "CR3 value that may be loaded without a VM exit."),
  CR3_TARGET_VALUE2: f(0x600c, "Execution controls", "3C 25.6.7", "CR3 value that may be loaded without a VM exit."),
  CR3_TARGET_VALUE3: f(0x600e, "Execution controls", "3C 25.6.7", "CR3 value that may be loaded without a VM exit."),
  EXIT_QUALIFICATION: f(
    0x6400,
    "Basic information",
    "3C 25.9.1",
    "More about the exit; its layout depends on the exit reason.",
  ),
  EXIT_IO_RCX: f(0x6402, "Instruction", "3C 25.9.4", "RCX before an I/O instruction (SMM exits only)."),
  EXIT_IO_RSI: f(0x6404, "Instruction", "3C 25.9.4", "RSI before an I/O instruction (SMM exits only)."),
  EXIT_IO_RDI: f(0x6406, "Instruction", "3C 25.9.4", "RDI before an I/O instruction (SMM exits only)."),
  EXIT_IO_RIP: f(0x6408, "Instruction", "3C 25.9.4", "RIP before an I/O instruction (SMM exits only)."),
  GUEST_LINEAR_ADDRESS: f(
    0x640a,
    "Basic information",
    "3C 25.9.1",
    "Linear address of the access, where the exit has one.",
  ),
  GUEST_CR0: f(
    0x6800,
    "Control registers",
    "3C 25.4.1",
    "CR0 the guest runs with; some bits are fixed in VMX operation.",
    bits.CR0_BITS,
  ),
  GUEST_CR3: f(0x6802, "Control registers", "3C 25.4.1", "CR3."),
  GUEST_CR4: f(
    0x6804,
    "Control registers",
    "3C 25.4.1",
    "CR4 the guest runs with; some bits are fixed in VMX operation.",
    bits.CR4_BITS,
  ),
  GUEST_ES_BASE: f(0x6806, "Segments", "3C 25.4.1", "ES base."),
  GUEST_CS_BASE: f(0x6808, "Segments", "3C 25.4.1", "CS base."),
  GUEST_SS_BASE: f(0x680a, "Segments", "3C 25.4.1", "SS base."),
  GUEST_DS_BASE: f(0x680c, "Segments", "3C 25.4.1", "DS base."),
  GUEST_FS_BASE: f(0x680e, "Segments", "3C 25.4.1", "FS base."),
  GUEST_GS_BASE: f(0x6810, "Segments", "3C 25.4.1", "GS base."),
  GUEST_LDTR_BASE: f(0x6812, "Segments", "3C 25.4.1", "LDTR base."),
  GUEST_TR_BASE: f(0x6814, "Segments", "3C 25.4.1", "TR base."),
  GUEST_GDTR_BASE: f(0x6816, "Descriptor tables", "3C 25.4.1", "GDTR base."),
  GUEST_IDTR_BASE: f(0x6818, "Descriptor tables", "3C 25.4.1", "IDTR base."),
  GUEST_DR7: f(0x681a, "Debug", "3C 25.4.1", "DR7.", bits.DR7_BITS),
  GUEST_RSP: f(0x681c, "General", "3C 25.4.1", "RSP."),
  GUEST_RIP: f(0x681e, "General", "3C 25.4.1", "RIP."),
  GUEST_RFLAGS: f(0x6820, "General", "3C 25.4.1", "RFLAGS.", bits.RFLAGS_BITS),
  GUEST_PENDING_DBG_EXCEPTIONS: f(
    0x6822,
    "Non-register state",
    "3C 25.4.2",
    "Debug exceptions that were recognised and not yet delivered.",
    bits.PENDING_DEBUG_BITS,
  ),
  GUEST_SYSENTER_ESP: f(0x6824, "MSRs", "3C 25.4.1", "IA32_SYSENTER_ESP."),
  GUEST_SYSENTER_EIP: f(0x6826, "MSRs", "3C 25.4.1", "IA32_SYSENTER_EIP."),
  GUEST_S_CET: f(0x6828, "MSRs", "3C 25.4.1", "IA32_S_CET."),
  GUEST_SSP: f(0x682a, "General", "3C 25.4.1", "Shadow-stack pointer."),
  GUEST_INTR_SSP_TABLE: f(0x682c, "MSRs", "3C 25.4.1", "IA32_INTERRUPT_SSP_TABLE_ADDR."),
  HOST_CR0: f(0x6c00, "Control registers", "3C 25.5", "CR0 of the host.", bits.CR0_BITS),
  HOST_CR3: f(0x6c02, "Control registers", "3C 25.5", "CR3 of the host."),
  HOST_CR4: f(0x6c04, "Control registers", "3C 25.5", "CR4 of the host.", bits.CR4_BITS),
  HOST_FS_BASE: f(0x6c06, "Segments", "3C 25.5", "FS base of the host."),
  HOST_GS_BASE: f(0x6c08, "Segments", "3C 25.5", "GS base of the host."),
  HOST_TR_BASE: f(0x6c0a, "Segments", "3C 25.5", "TR base of the host."),
  HOST_GDTR_BASE: f(0x6c0c, "Descriptor tables", "3C 25.5", "GDTR base of the host; its limit becomes ffff."),
  HOST_IDTR_BASE: f(0x6c0e, "Descriptor tables", "3C 25.5", "IDTR base of the host; its limit becomes ffff."),
  HOST_IA32_SYSENTER_ESP: f(0x6c10, "MSRs", "3C 25.5", "IA32_SYSENTER_ESP of the host."),
  HOST_IA32_SYSENTER_EIP: f(0x6c12, "MSRs", "3C 25.5", "IA32_SYSENTER_EIP of the host."),
  HOST_RSP: f(0x6c14, "General", "3C 25.5", "RSP of the host."),
  HOST_RIP: f(0x6c16, "General", "3C 25.5", "RIP of the host: where VM exits go."),
  HOST_S_CET: f(0x6c18, "MSRs", "3C 25.5", "IA32_S_CET of the host."),
  HOST_SSP: f(0x6c1a, "General", "3C 25.5", "Shadow-stack pointer of the host."),
  HOST_INTR_SSP_TABLE: f(0x6c1c, "MSRs", "3C 25.5", "IA32_INTERRUPT_SSP_TABLE_ADDR of the host."),
} as const;
// biome-ignore-end format: one row a line

export type FieldName = keyof typeof TABLE;

/** Encodings by name: `Field.GUEST_RIP` is 0x681e. */
export const Field = Object.fromEntries(Object.entries(TABLE).map(([name, spec]) => [name, spec.encoding])) as {
  readonly [Name in FieldName]: (typeof TABLE)[Name]["encoding"];
};
export type Field = (typeof Field)[FieldName];

/** Offset of the first field slot in a VMCS region: behind the revision identifier, the abort indicator and our header. */
const FIELDS_OFFSET = 64;

const WIDTHS: readonly FieldWidth[] = [16, 64, 32, "natural"];

/** Width a field encoding says (bits 14:13). */
export const widthOf = (encoding: number): FieldWidth => WIDTHS[(encoding >> 13) & 3];

function groupOf(name: FieldName, encoding: number): FieldGroup {
  const type = (encoding >> 10) & 3;
  if (type === 1) return "exit-information";
  if (type === 2) return "guest-state";
  if (type === 3) return "host-state";
  if (name.startsWith("VM_EXIT_") || name === "SECONDARY_VM_EXIT_CONTROLS") return "exit-control";
  if (name.startsWith("VM_ENTRY_") || name === "INJECTED_EVENT_DATA") return "entry-control";
  return "execution-control";
}

/** All fields, in the order of their encodings' widths as in appendix B. */
export const VMCS_FIELDS: readonly VmcsField[] = Object.entries(TABLE).map(([key, spec], slot) => {
  const name = key as FieldName;
  return {
    name,
    encoding: spec.encoding,
    width: widthOf(spec.encoding),
    access: ((spec.encoding >> 10) & 3) === 1 ? "ro" : "rw",
    group: groupOf(name, spec.encoding),
    subgroup: spec.subgroup,
    ...(spec.bits ? { bits: spec.bits } : {}),
    section: spec.section,
    help: spec.help,
    offset: FIELDS_OFFSET + slot * 8,
  };
});

const byEncoding = new Map(VMCS_FIELDS.map((row) => [row.encoding, row]));
const byName = new Map<string, VmcsField>(VMCS_FIELDS.map((row) => [row.name, row]));

/** The row of a field by its encoding (full access type), or undefined. */
export const vmcsField = (encoding: number): VmcsField | undefined => byEncoding.get(encoding & ~1);

/** The row of a field by its name in any case, or undefined. */
export const vmcsFieldByName = (name: string): VmcsField | undefined => byName.get(name.toUpperCase());

/**
 * Offset of a field's slot by encoding, -1 for none: the hot path of VMREAD and VMWRITE. Indexed by the encoding without
 * its access-type bit.
 */
export const FIELD_OFFSETS: Int16Array = (() => {
  const offsets = new Int16Array(0x4000).fill(-1);
  for (const row of VMCS_FIELDS) offsets[row.encoding >> 1] = row.offset;
  return offsets;
})();

/** Offset of a field's slot in a VMCS region. */
export const offsetOf = (encoding: Field): number => FIELD_OFFSETS[encoding >> 1];
