/** Checks on VM-execution, VM-exit and VM-entry control fields. SDM 3C 27.2.1. */
import { type AllowedSettings, CR3_TARGETS, EPTP_SWITCHING } from "../capabilities";
import { CpuBased, PinBased, SecondaryExec, VmExitControl } from "../controls";
import { Field } from "../fields";
import { checks, type EntryCheck, type EntryState, hex, Reads, show } from "./check";

const check = checks("control", Reads.CONTROLS);

const allowed = (value: number, settings: AllowedSettings): boolean =>
  (value & settings.must) === (settings.must | 0) && (value & ~settings.may) === 0;

const reserved = (
  id: string,
  section: string,
  field: Field,
  settings: (v: EntryState) => AllowedSettings,
  applies: (v: EntryState) => boolean = () => true,
): EntryCheck =>
  check(
    id,
    section,
    (v) => !applies(v) || allowed(v.u32(field), settings(v)),
    (v) => {
      const { must, may } = settings(v);
      const value = v.u32(field);
      const missing = must & ~value;
      const extra = value & ~may;
      const wrong = [
        missing ? `bits ${hex(missing)} must be 1` : "",
        extra ? `bits ${hex(extra)} must be 0` : "",
      ].filter((text) => text !== "");
      return `${show(v, field)}: ${wrong.join(", ")} (allowed: ${hex(must)} set, at most ${hex(may)})`;
    },
  );

/** An address that must be a page within MAXPHYADDR when a control is on. */
const page = (id: string, section: string, field: Field, applies: (v: EntryState) => boolean, control: string) =>
  check(
    id,
    section,
    (v) => !applies(v) || v.pageAddressOk(field),
    (v) =>
      `${show(v, field)} must be 4-KByte aligned and within ${v.capabilities.physicalBits} address bits (${control} is on)`,
  );

/** An MSR list: 16-byte aligned, all of it within MAXPHYADDR. */
const msrList = (id: string, section: string, address: Field, count: Field) =>
  check(
    id,
    section,
    (v) => {
      const entries = v.u32(count);
      if (entries === 0) return true;
      if ((v.u32(address) & 0xf) !== 0 || !v.capabilities.physicalOk(v.hi(address))) return false;
      return v.address(address) + entries * 16 <= 2 ** v.capabilities.physicalBits;
    },
    (v) =>
      `${show(v, address)} with ${v.u32(count)} entries must be 16-byte aligned and end within ${v.capabilities.physicalBits} address bits`,
  );

const delivers = (v: EntryState) => v.secondary(SecondaryExec.VIRTUAL_INTR_DELIVERY);
const posts = (v: EntryState) => v.pin(PinBased.POSTED_INTR);
/** EPTP switching is enabled. */
const switches = (v: EntryState) =>
  v.secondary(SecondaryExec.ENABLE_VMFUNC) && (v.u32(Field.VM_FUNCTION_CONTROL) & EPTP_SWITCHING) !== 0;
const tprShadow = (v: EntryState) => v.cpu(CpuBased.TPR_SHADOW);

/** Lowest bits of the task priority in the virtual-APIC page, 7:4; 15 where no memory is. */
function virtualTaskPriority(v: EntryState): number {
  const at = v.memory.hostOffset(v.address(Field.VIRTUAL_APIC_PAGE_ADDR) + 0x80);
  return at < 0 ? 15 : v.memory.u8[at] >> 4;
}

export const executionControlChecks: readonly EntryCheck[] = [
  reserved(
    "control.pin-based.reserved",
    "3C 27.2.1.1",
    Field.PIN_BASED_VM_EXEC_CONTROL,
    (v) => v.capabilities.pinBased,
  ),
  reserved(
    "control.cpu-based.reserved",
    "3C 27.2.1.1",
    Field.CPU_BASED_VM_EXEC_CONTROL,
    (v) => v.capabilities.cpuBased,
  ),
  reserved(
    "control.secondary.reserved",
    "3C 27.2.1.1",
    Field.SECONDARY_VM_EXEC_CONTROL,
    (v) => v.capabilities.secondary,
    (v) => v.cpu(CpuBased.ACTIVATE_SECONDARY_CONTROLS),
  ),
  check(
    "control.cr3-target-count",
    "3C 27.2.1.1",
    (v) => v.u32(Field.CR3_TARGET_COUNT) <= CR3_TARGETS,
    (v) => `${show(v, Field.CR3_TARGET_COUNT)} must be at most ${CR3_TARGETS}`,
  ),
  page(
    "control.io-bitmap-a",
    "3C 27.2.1.1",
    Field.IO_BITMAP_A,
    (v) => v.cpu(CpuBased.USE_IO_BITMAPS),
    "USE_IO_BITMAPS",
  ),
  page(
    "control.io-bitmap-b",
    "3C 27.2.1.1",
    Field.IO_BITMAP_B,
    (v) => v.cpu(CpuBased.USE_IO_BITMAPS),
    "USE_IO_BITMAPS",
  ),
  page(
    "control.msr-bitmap",
    "3C 27.2.1.1",
    Field.MSR_BITMAP,
    (v) => v.cpu(CpuBased.USE_MSR_BITMAPS),
    "USE_MSR_BITMAPS",
  ),
  page("control.virtual-apic-page", "3C 27.2.1.1", Field.VIRTUAL_APIC_PAGE_ADDR, tprShadow, "TPR_SHADOW"),
  check(
    "control.tpr-threshold.reserved",
    "3C 27.2.1.1",
    (v) => !tprShadow(v) || delivers(v) || v.u32(Field.TPR_THRESHOLD) >>> 4 === 0,
    (v) => `${show(v, Field.TPR_THRESHOLD)}: bits 31:4 must be 0`,
  ),
  check(
    "control.tpr-threshold.above-vtpr",
    "3C 27.2.1.1",
    (v) =>
      !tprShadow(v) ||
      v.secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES | SecondaryExec.VIRTUAL_INTR_DELIVERY) ||
      (v.u32(Field.TPR_THRESHOLD) & 0xf) <= virtualTaskPriority(v),
    (v) => `${show(v, Field.TPR_THRESHOLD)} must not exceed bits 7:4 of VTPR, ${virtualTaskPriority(v)}`,
    { reads: Reads.CONTROLS | Reads.OUTSIDE },
  ),
  check(
    "control.tpr-shadow.needed",
    "3C 27.2.1.1",
    (v) =>
      tprShadow(v) ||
      !v.secondary(
        SecondaryExec.VIRTUALIZE_X2APIC_MODE | SecondaryExec.APIC_REGISTER_VIRT | SecondaryExec.VIRTUAL_INTR_DELIVERY,
      ),
    (v) =>
      `${show(v, Field.SECONDARY_VM_EXEC_CONTROL)}: VIRTUALIZE_X2APIC_MODE, APIC_REGISTER_VIRT and VIRTUAL_INTR_DELIVERY need TPR_SHADOW`,
  ),
  check(
    "control.virtual-nmis.without-nmi-exiting",
    "3C 27.2.1.1",
    (v) => v.pin(PinBased.NMI_EXITING) || !v.pin(PinBased.VIRTUAL_NMIS),
    (v) => `${show(v, Field.PIN_BASED_VM_EXEC_CONTROL)}: VIRTUAL_NMIS needs NMI_EXITING`,
  ),
  check(
    "control.nmi-window.without-virtual-nmis",
    "3C 27.2.1.1",
    (v) => v.pin(PinBased.VIRTUAL_NMIS) || !v.cpu(CpuBased.NMI_WINDOW_EXITING),
    (v) => `${show(v, Field.CPU_BASED_VM_EXEC_CONTROL)}: NMI_WINDOW_EXITING needs VIRTUAL_NMIS`,
  ),
  page(
    "control.apic-access-page",
    "3C 27.2.1.1",
    Field.APIC_ACCESS_ADDR,
    (v) => v.secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES),
    "VIRTUALIZE_APIC_ACCESSES",
  ),
  check(
    "control.x2apic-and-apic-accesses",
    "3C 27.2.1.1",
    (v) => !(v.secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE) && v.secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES)),
    (v) =>
      `${show(v, Field.SECONDARY_VM_EXEC_CONTROL)}: VIRTUALIZE_X2APIC_MODE and VIRTUALIZE_APIC_ACCESSES exclude each other`,
  ),
  check(
    "control.virtual-interrupt-delivery.without-interrupt-exiting",
    "3C 27.2.1.1",
    (v) => !v.secondary(SecondaryExec.VIRTUAL_INTR_DELIVERY) || v.pin(PinBased.EXT_INTR_EXITING),
    (v) => `${show(v, Field.PIN_BASED_VM_EXEC_CONTROL)}: VIRTUAL_INTR_DELIVERY needs EXT_INTR_EXITING`,
  ),
  check(
    "control.posted-interrupts.needed",
    "3C 27.2.1.1",
    (v) => !posts(v) || (delivers(v) && v.exit(VmExitControl.ACK_INTR_ON_EXIT)),
    (v) => `${show(v, Field.PIN_BASED_VM_EXEC_CONTROL)}: POSTED_INTR needs VIRTUAL_INTR_DELIVERY and ACK_INTR_ON_EXIT`,
  ),
  check(
    "control.posted-interrupts.vector",
    "3C 27.2.1.1",
    (v) => !posts(v) || v.u32(Field.POSTED_INTR_NV) >>> 8 === 0,
    (v) => `${show(v, Field.POSTED_INTR_NV)} must be at most 255`,
  ),
  check(
    "control.posted-interrupts.descriptor",
    "3C 27.2.1.1",
    (v) =>
      !posts(v) ||
      ((v.u32(Field.POSTED_INTR_DESC_ADDR) & 0x3f) === 0 &&
        v.capabilities.physicalOk(v.hi(Field.POSTED_INTR_DESC_ADDR))),
    (v) =>
      `${show(v, Field.POSTED_INTR_DESC_ADDR)} must be 64-byte aligned and within ${v.capabilities.physicalBits} address bits`,
  ),
  check(
    "control.vpid.zero",
    "3C 27.2.1.1",
    (v) => !v.secondary(SecondaryExec.ENABLE_VPID) || v.u32(Field.VIRTUAL_PROCESSOR_ID) !== 0,
    (v) => `${show(v, Field.VIRTUAL_PROCESSOR_ID)} must not be 0 (ENABLE_VPID is on)`,
  ),
  check(
    "control.eptp",
    "3C 27.2.1.1",
    (v) => !v.secondary(SecondaryExec.ENABLE_EPT) || eptpOk(v.u32(Field.EPT_POINTER), v.hi(Field.EPT_POINTER), v),
    (v) =>
      `${show(v, Field.EPT_POINTER)}: bits 2:0 must be 0 (UC) or 6 (WB), bits 5:3 must be 3 (walk length 4), bits 11:7 and those above ${v.capabilities.physicalBits - 1} must be 0`,
  ),
  check(
    "control.unrestricted-guest.without-ept",
    "3C 27.2.1.1",
    (v) => !v.unrestricted || v.secondary(SecondaryExec.ENABLE_EPT),
    (v) => `${show(v, Field.SECONDARY_VM_EXEC_CONTROL)}: UNRESTRICTED_GUEST needs ENABLE_EPT`,
  ),
  check(
    "control.mode-based-execute.without-ept",
    "3C 27.2.1.1",
    (v) => !v.secondary(SecondaryExec.MODE_BASED_EPT_EXEC) || v.secondary(SecondaryExec.ENABLE_EPT),
    (v) => `${show(v, Field.SECONDARY_VM_EXEC_CONTROL)}: MODE_BASED_EPT_EXEC needs ENABLE_EPT`,
  ),
  check(
    "control.pml.without-ept",
    "3C 27.2.1.1",
    (v) => !v.secondary(SecondaryExec.ENABLE_PML) || v.secondary(SecondaryExec.ENABLE_EPT),
    (v) => `${show(v, Field.SECONDARY_VM_EXEC_CONTROL)}: ENABLE_PML needs ENABLE_EPT`,
  ),
  page(
    "control.pml-address",
    "3C 27.2.1.1",
    Field.PML_ADDRESS,
    (v) => v.secondary(SecondaryExec.ENABLE_PML),
    "ENABLE_PML",
  ),
  check(
    "control.vm-functions.reserved",
    "3C 27.2.1.1",
    (v) =>
      !v.secondary(SecondaryExec.ENABLE_VMFUNC) ||
      ((v.u32(Field.VM_FUNCTION_CONTROL) & ~v.capabilities.functions) === 0 && v.hi(Field.VM_FUNCTION_CONTROL) === 0),
    (v) => `${show(v, Field.VM_FUNCTION_CONTROL)} must have no bits but ${hex(v.capabilities.functions)}`,
  ),
  check(
    "control.eptp-switching.without-ept",
    "3C 27.2.1.1",
    (v) => !switches(v) || v.secondary(SecondaryExec.ENABLE_EPT),
    (v) => `${show(v, Field.VM_FUNCTION_CONTROL)}: EPTP switching needs ENABLE_EPT`,
  ),
  page("control.eptp-list", "3C 27.2.1.1", Field.EPTP_LIST_ADDRESS, switches, "EPTP switching"),
  page(
    "control.vmread-bitmap",
    "3C 27.2.1.1",
    Field.VMREAD_BITMAP,
    (v) => v.secondary(SecondaryExec.SHADOW_VMCS),
    "SHADOW_VMCS",
  ),
  page(
    "control.vmwrite-bitmap",
    "3C 27.2.1.1",
    Field.VMWRITE_BITMAP,
    (v) => v.secondary(SecondaryExec.SHADOW_VMCS),
    "SHADOW_VMCS",
  ),
  page(
    "control.virtualization-exception-area",
    "3C 27.2.1.1",
    Field.VIRT_EXCEPTION_INFO,
    (v) => v.secondary(SecondaryExec.EPT_VIOLATION_VE),
    "EPT_VIOLATION_VE",
  ),
];

/** Bits of an EPT pointer are legal (SDM 3C table 25-9); also asked by INVEPT. */
export function eptpOk(lo: number, hi: number, v: Pick<EntryState, "capabilities">): boolean {
  const type = lo & 7;
  return (type === 0 || type === 6) && (lo & 0x38) === 0x18 && (lo & 0xf80) === 0 && v.capabilities.physicalOk(hi);
}

export const exitControlChecks: readonly EntryCheck[] = [
  reserved("control.exit.reserved", "3C 27.2.1.2", Field.VM_EXIT_CONTROLS, (v) => v.capabilities.exit),
  check(
    "control.exit.save-preemption-timer",
    "3C 27.2.1.2",
    (v) => v.pin(PinBased.VMX_PREEMPTION_TIMER) || !v.exit(VmExitControl.SAVE_VMX_PREEMPTION_TIMER),
    (v) => `${show(v, Field.VM_EXIT_CONTROLS)}: SAVE_VMX_PREEMPTION_TIMER needs VMX_PREEMPTION_TIMER`,
  ),
  msrList("control.exit.msr-store-list", "3C 27.2.1.2", Field.VM_EXIT_MSR_STORE_ADDR, Field.VM_EXIT_MSR_STORE_COUNT),
  msrList("control.exit.msr-load-list", "3C 27.2.1.2", Field.VM_EXIT_MSR_LOAD_ADDR, Field.VM_EXIT_MSR_LOAD_COUNT),
];

const info = (v: EntryState) => v.u32(Field.VM_ENTRY_INTR_INFO_FIELD);
const injects = (v: EntryState) => info(v) >>> 31 === 1;
const event = checks("control", Reads.CONTROLS | Reads.EVENT);

/** Exceptions that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC. */
const WITH_ERROR_CODE = (1 << 8) | (1 << 10) | (1 << 11) | (1 << 12) | (1 << 13) | (1 << 14) | (1 << 17);

function shouldDeliverErrorCode(v: EntryState): boolean {
  const vector = info(v) & 0xff;
  const protectedMode = !v.unrestricted || (v.u32(Field.GUEST_CR0) & 1) !== 0;
  return v.eventType === 3 && vector < 32 && ((WITH_ERROR_CODE >>> vector) & 1) === 1 && protectedMode;
}

export const entryControlChecks: readonly EntryCheck[] = [
  reserved("control.entry.reserved", "3C 27.2.1.3", Field.VM_ENTRY_CONTROLS, (v) => v.capabilities.entry),
  event(
    "control.event.type",
    "3C 27.2.1.3",
    (v) => v.eventType !== 1,
    (v) => `${show(v, Field.VM_ENTRY_INTR_INFO_FIELD)}: event type 1 (bits 10:8) is reserved`,
  ),
  event(
    "control.event.vector",
    "3C 27.2.1.3",
    (v) => {
      const vector = info(v) & 0xff;
      const type = v.eventType;
      if (type === 2) return vector === 2;
      if (type === 3) return vector <= 31;
      return type !== 7 || vector === 0;
    },
    (v) =>
      `${show(v, Field.VM_ENTRY_INTR_INFO_FIELD)}: vector ${info(v) & 0xff} does not fit type ${v.eventType} (NMI: 2; hardware exception: at most 31; other event: 0)`,
  ),
  event(
    "control.event.deliver-error-code",
    "3C 27.2.1.3",
    (v) => !injects(v) || ((info(v) & (1 << 11)) !== 0) === shouldDeliverErrorCode(v),
    (v) =>
      `${show(v, Field.VM_ENTRY_INTR_INFO_FIELD)}: bit 11 (deliver error code) must be ${shouldDeliverErrorCode(v) ? 1 : 0} for vector ${info(v) & 0xff} of type ${v.eventType}`,
    { reads: Reads.CONTROLS | Reads.EVENT | Reads.REGISTERS },
  ),
  event(
    "control.event.reserved",
    "3C 27.2.1.3",
    (v) => !injects(v) || (info(v) & 0x7fff_f000) === 0,
    (v) => `${show(v, Field.VM_ENTRY_INTR_INFO_FIELD)}: bits 30:12 must be 0`,
  ),
  event(
    "control.event.error-code",
    "3C 27.2.1.3",
    (v) => !injects(v) || (info(v) & (1 << 11)) === 0 || v.u32(Field.VM_ENTRY_EXCEPTION_ERROR_CODE) >>> 16 === 0,
    (v) => `${show(v, Field.VM_ENTRY_EXCEPTION_ERROR_CODE)}: bits 31:16 must be 0`,
  ),
  event(
    "control.event.instruction-length",
    "3C 27.2.1.3",
    (v) => v.eventType < 4 || v.eventType > 6 || v.u32(Field.VM_ENTRY_INSTRUCTION_LEN) <= 15,
    (v) => `${show(v, Field.VM_ENTRY_INSTRUCTION_LEN)} must be at most 15`,
  ),
  msrList("control.entry.msr-load-list", "3C 27.2.1.3", Field.VM_ENTRY_MSR_LOAD_ADDR, Field.VM_ENTRY_MSR_LOAD_COUNT),
];
