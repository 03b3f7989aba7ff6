/** VM-instruction errors: what VMfailValid leaves in VM_INSTRUCTION_ERROR. SDM 3C 31.4, table 31-1. */

export interface VmInstructionErrorRow {
  readonly number: number;
  readonly name: string;
  readonly text: string;
}

// biome-ignore-start format: one row a line
const ROWS = [
  { number: 1, name: "VMCALL_IN_ROOT", text: "VMCALL executed in VMX root operation" },
  { number: 2, name: "VMCLEAR_INVALID_ADDRESS", text: "VMCLEAR with invalid physical address" },
  { number: 3, name: "VMCLEAR_VMXON_POINTER", text: "VMCLEAR with VMXON pointer" },
  { number: 4, name: "VMLAUNCH_NONCLEAR_VMCS", text: "VMLAUNCH with non-clear VMCS" },
  { number: 5, name: "VMRESUME_NONLAUNCHED_VMCS", text: "VMRESUME with non-launched VMCS" },
  {
    number: 6,
    name: "VMRESUME_AFTER_VMXOFF",
    text: "VMRESUME after VMXOFF (VMXOFF and VMXON between VMLAUNCH and VMRESUME)",
  },
  { number: 7, name: "ENTRY_INVALID_CONTROL_FIELD", text: "VM entry with invalid control field(s)" },
  { number: 8, name: "ENTRY_INVALID_HOST_STATE_FIELD", text: "VM entry with invalid host-state field(s)" },
  { number: 9, name: "VMPTRLD_INVALID_ADDRESS", text: "VMPTRLD with invalid physical address" },
  { number: 10, name: "VMPTRLD_VMXON_POINTER", text: "VMPTRLD with VMXON pointer" },
  { number: 11, name: "VMPTRLD_INCORRECT_VMCS_REVISION_ID", text: "VMPTRLD with incorrect VMCS revision identifier" },
  { number: 12, name: "UNSUPPORTED_VMCS_COMPONENT", text: "VMREAD/VMWRITE from/to unsupported VMCS component" },
  { number: 13, name: "VMWRITE_READ_ONLY_VMCS_COMPONENT", text: "VMWRITE to read-only VMCS component" },
  { number: 15, name: "VMXON_IN_ROOT", text: "VMXON executed in VMX root operation" },
  { number: 16, name: "ENTRY_INVALID_EXECUTIVE_VMCS_POINTER", text: "VM entry with invalid executive-VMCS pointer" },
  { number: 17, name: "ENTRY_NONLAUNCHED_EXECUTIVE_VMCS", text: "VM entry with non-launched executive VMCS" },
  {
    number: 18,
    name: "ENTRY_EXECUTIVE_VMCS_NOT_VMXON_POINTER",
    text: "VM entry with executive-VMCS pointer not VMXON pointer (when attempting to deactivate the dual-monitor treatment of SMIs and SMM)",
  },
  {
    number: 19,
    name: "VMCALL_NONCLEAR_VMCS",
    text: "VMCALL with non-clear VMCS (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
  },
  { number: 20, name: "VMCALL_INVALID_VM_EXIT_CONTROLS", text: "VMCALL with invalid VM-exit control fields" },
  {
    number: 22,
    name: "VMCALL_INCORRECT_MSEG_REVISION_ID",
    text: "VMCALL with incorrect MSEG revision identifier (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
  },
  { number: 23, name: "VMXOFF_UNDER_DUAL_MONITOR", text: "VMXOFF under dual-monitor treatment of SMIs and SMM" },
  {
    number: 24,
    name: "VMCALL_INVALID_SMM_FEATURES",
    text: "VMCALL with invalid SMM-monitor features (when attempting to activate the dual-monitor treatment of SMIs and SMM)",
  },
  {
    number: 25,
    name: "ENTRY_INVALID_VM_EXECUTION_CONTROL_IN_EXECUTIVE_VMCS",
    text: "VM entry with invalid VM-execution control fields in executive VMCS (when attempting to return from SMM)",
  },
  { number: 26, name: "ENTRY_EVENTS_BLOCKED_BY_MOV_SS", text: "VM entry with events blocked by MOV SS" },
  { number: 28, name: "INVALID_OPERAND_TO_INVEPT_INVVPID", text: "Invalid operand to INVEPT/INVVPID" },
] as const satisfies readonly VmInstructionErrorRow[];
// biome-ignore-end format: one row a line

type Row = (typeof ROWS)[number];

/** Numbers by name: `VmError.VMLAUNCH_NONCLEAR_VMCS` is 4. */
export const VmError = Object.fromEntries(ROWS.map((r) => [r.name, r.number])) as {
  readonly [R in Row as R["name"]]: R["number"];
};

export const VM_INSTRUCTION_ERRORS: readonly VmInstructionErrorRow[] = ROWS;
