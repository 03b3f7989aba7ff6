/**
 * VM-entry checks: a VMCS that passes all of them is bent in one place, and the check that looks there must fail, with
 * the outcome the manual gives its group (SDM 3C 27.2, 27.3, 27.8).
 */
import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ENTRY_CHECKS } from "../../../engine/cpu/vmx/entry-checks/index";
import { Field } from "../../../engine/cpu/vmx/fields";
import { entered, failedEntry, PAGES, type TestVmcs, VMCS_REGION, validVmcs, vmfail } from "./valid-vmcs";

type Bend = (vm: TestVmcs) => TestVmcs;

const NON_CANONICAL = 0x8000_0000_0000n;
const BEYOND = 1n << 40n;
const inject =
  (info: number, error = 0, length = 0): Bend =>
  (vm) =>
    vm
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, info >>> 0)
      .with(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, error)
      .with(Field.VM_ENTRY_INSTRUCTION_LEN, length);
const set =
  (field: Field, value: bigint | number): Bend =>
  (vm) =>
    vm.with(field, value);

const VALID = 1 << 31;

/** All that posted interrupts need. */
const posted: Bend = (vm) =>
  vm
    .pin(PinBased.POSTED_INTR | PinBased.EXT_INTR_EXITING)
    .primary(CpuBased.TPR_SHADOW)
    .secondary(SecondaryExec.VIRTUAL_INTR_DELIVERY)
    .on(Field.VM_EXIT_CONTROLS, VmExitControl.ACK_INTR_ON_EXIT)
    .with(Field.VIRTUAL_APIC_PAGE_ADDR, PAGES)
    .with(Field.POSTED_INTR_DESC_ADDR, PAGES + 0x1000);
/** A secondary control without EPT. */
const withoutEpt =
  (control: number): Bend =>
  (vm) =>
    vm.secondary(control).off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.ENABLE_EPT);

/** At least one probe for every check but those of segments, which follow by pattern. */
const probes: Record<string, Bend | readonly Bend[]> = {
  "control.pin-based.reserved": [set(Field.PIN_BASED_VM_EXEC_CONTROL, 0), (vm) => vm.pin(1 << 8)],
  "control.cpu-based.reserved": set(Field.CPU_BASED_VM_EXEC_CONTROL, 0x8000_0000),
  "control.secondary.reserved": (vm) => vm.secondary(SecondaryExec.ENCLS_EXITING),
  "control.cr3-target-count": set(Field.CR3_TARGET_COUNT, 5),
  "control.io-bitmap-a": (vm) => vm.primary(CpuBased.USE_IO_BITMAPS).with(Field.IO_BITMAP_A, 0x1800),
  "control.io-bitmap-b": (vm) => vm.primary(CpuBased.USE_IO_BITMAPS).with(Field.IO_BITMAP_B, BEYOND),
  "control.msr-bitmap": (vm) => vm.primary(CpuBased.USE_MSR_BITMAPS).with(Field.MSR_BITMAP, 8),
  "control.virtual-apic-page": (vm) => vm.primary(CpuBased.TPR_SHADOW).with(Field.VIRTUAL_APIC_PAGE_ADDR, 0x10),
  "control.tpr-threshold.reserved": (vm) =>
    vm.primary(CpuBased.TPR_SHADOW).with(Field.VIRTUAL_APIC_PAGE_ADDR, PAGES).with(Field.TPR_THRESHOLD, 0x10),
  "control.tpr-threshold.above-vtpr": (vm) =>
    vm.primary(CpuBased.TPR_SHADOW).with(Field.VIRTUAL_APIC_PAGE_ADDR, PAGES).with(Field.TPR_THRESHOLD, 1),
  "control.tpr-shadow.needed": (vm) => vm.secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE),
  "control.virtual-nmis.without-nmi-exiting": (vm) => vm.pin(PinBased.VIRTUAL_NMIS),
  "control.nmi-window.without-virtual-nmis": (vm) => vm.primary(CpuBased.NMI_WINDOW_EXITING),
  "control.apic-access-page": (vm) =>
    vm.secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES).with(Field.APIC_ACCESS_ADDR, 0x123),
  "control.x2apic-and-apic-accesses": (vm) =>
    vm.secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE | SecondaryExec.VIRTUALIZE_APIC_ACCESSES),
  "control.virtual-interrupt-delivery.without-interrupt-exiting": (vm) =>
    vm.secondary(SecondaryExec.VIRTUAL_INTR_DELIVERY),
  "control.vpid.zero": set(Field.VIRTUAL_PROCESSOR_ID, 0),
  "control.eptp": [
    set(Field.EPT_POINTER, 0x1001f),
    set(Field.EPT_POINTER, 0x10006),
    set(Field.EPT_POINTER, 0x1009e),
    set(Field.EPT_POINTER, BEYOND | 0x1en),
  ],
  "control.posted-interrupts.needed": [
    (vm) => vm.pin(PinBased.POSTED_INTR),
    (vm) => posted(vm).off(Field.VM_EXIT_CONTROLS, VmExitControl.ACK_INTR_ON_EXIT),
    (vm) => posted(vm).off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.VIRTUAL_INTR_DELIVERY),
  ],
  "control.posted-interrupts.vector": (vm) => posted(vm).with(Field.POSTED_INTR_NV, 0x100),
  "control.posted-interrupts.descriptor": [
    (vm) => posted(vm).with(Field.POSTED_INTR_DESC_ADDR, PAGES + 0x20),
    (vm) => posted(vm).with(Field.POSTED_INTR_DESC_ADDR, BEYOND),
  ],
  "control.mode-based-execute.without-ept": withoutEpt(SecondaryExec.MODE_BASED_EPT_EXEC),
  "control.pml.without-ept": withoutEpt(SecondaryExec.ENABLE_PML),
  "control.pml-address": (vm) => vm.secondary(SecondaryExec.ENABLE_PML).with(Field.PML_ADDRESS, 0x800),
  "control.vm-functions.reserved": [
    (vm) => vm.secondary(SecondaryExec.ENABLE_VMFUNC).with(Field.VM_FUNCTION_CONTROL, 2),
    (vm) => vm.secondary(SecondaryExec.ENABLE_VMFUNC).with(Field.VM_FUNCTION_CONTROL, 1n << 63n),
  ],
  "control.eptp-switching.without-ept": (vm) =>
    withoutEpt(SecondaryExec.ENABLE_VMFUNC)(vm).with(Field.VM_FUNCTION_CONTROL, 1),
  "control.eptp-list": (vm) =>
    vm.secondary(SecondaryExec.ENABLE_VMFUNC).with(Field.VM_FUNCTION_CONTROL, 1).with(Field.EPTP_LIST_ADDRESS, 8),
  "control.vmread-bitmap": (vm) => vm.secondary(SecondaryExec.SHADOW_VMCS).with(Field.VMREAD_BITMAP, 1),
  "control.vmwrite-bitmap": (vm) => vm.secondary(SecondaryExec.SHADOW_VMCS).with(Field.VMWRITE_BITMAP, BEYOND),
  "control.virtualization-exception-area": (vm) =>
    vm.secondary(SecondaryExec.EPT_VIOLATION_VE).with(Field.VIRT_EXCEPTION_INFO, 0x40),
  "control.unrestricted-guest.without-ept": (vm) =>
    vm.with(Field.SECONDARY_VM_EXEC_CONTROL, BigInt(SecondaryExec.UNRESTRICTED_GUEST | SecondaryExec.ENABLE_VPID)),
  "control.exit.reserved": [set(Field.VM_EXIT_CONTROLS, 0x200), (vm) => vm.on(Field.VM_EXIT_CONTROLS, 1 << 31)],
  "control.exit.save-preemption-timer": (vm) => vm.on(Field.VM_EXIT_CONTROLS, VmExitControl.SAVE_VMX_PREEMPTION_TIMER),
  "control.exit.msr-store-list": (vm) =>
    vm.with(Field.VM_EXIT_MSR_STORE_COUNT, 1).with(Field.VM_EXIT_MSR_STORE_ADDR, 8),
  "control.exit.msr-load-list": (vm) =>
    vm.with(Field.VM_EXIT_MSR_LOAD_COUNT, 2).with(Field.VM_EXIT_MSR_LOAD_ADDR, BEYOND - 16n),
  "control.entry.reserved": [set(Field.VM_ENTRY_CONTROLS, 0x200), (vm) => vm.on(Field.VM_ENTRY_CONTROLS, 1 << 10)],
  "control.event.type": inject(VALID | (1 << 8)),
  "control.event.vector": [inject(VALID | (2 << 8) | 3), inject(VALID | (3 << 8) | 32), inject(VALID | (7 << 8) | 1)],
  "control.event.deliver-error-code": [inject(VALID | (3 << 8) | 13), inject(VALID | (3 << 8) | (1 << 11) | 6)],
  "control.event.reserved": inject(VALID | (3 << 8) | 6 | (1 << 12)),
  "control.event.error-code": inject(VALID | (3 << 8) | (1 << 11) | 13, 0x10000),
  "control.event.instruction-length": inject(VALID | (6 << 8) | 3, 0, 16),
  "control.entry.msr-load-list": (vm) =>
    vm.with(Field.VM_ENTRY_MSR_LOAD_COUNT, 1).with(Field.VM_ENTRY_MSR_LOAD_ADDR, 4),

  "host.cr0.fixed": [set(Field.HOST_CR0, 0x33), set(Field.HOST_CR0, 0x1_8005_0033n)],
  "host.cr4.fixed": [set(Field.HOST_CR4, 0x20), set(Field.HOST_CR4, 0x80_2020)],
  "host.cr3.width": set(Field.HOST_CR3, BEYOND),
  "host.sysenter-esp.canonical": set(Field.HOST_IA32_SYSENTER_ESP, NON_CANONICAL),
  "host.sysenter-eip.canonical": set(Field.HOST_IA32_SYSENTER_EIP, NON_CANONICAL),
  "host.pat": (vm) => vm.on(Field.VM_EXIT_CONTROLS, VmExitControl.LOAD_IA32_PAT).with(Field.HOST_IA32_PAT, 2),
  "host.efer.reserved": set(Field.HOST_IA32_EFER, 0xf01),
  "host.efer.lma-lme": set(Field.HOST_IA32_EFER, 0x901),
  "host.cs.selector": set(Field.HOST_CS_SELECTOR, 0x0b),
  "host.ss.selector": set(Field.HOST_SS_SELECTOR, 0x14),
  "host.ds.selector": set(Field.HOST_DS_SELECTOR, 1),
  "host.es.selector": set(Field.HOST_ES_SELECTOR, 2),
  "host.fs.selector": set(Field.HOST_FS_SELECTOR, 4),
  "host.gs.selector": set(Field.HOST_GS_SELECTOR, 3),
  "host.tr.selector": set(Field.HOST_TR_SELECTOR, 0x2c),
  "host.cs.null": set(Field.HOST_CS_SELECTOR, 0),
  "host.tr.null": set(Field.HOST_TR_SELECTOR, 0),
  "host.ss.null": (vm) =>
    vm.off(Field.VM_EXIT_CONTROLS, VmExitControl.HOST_ADDR_SPACE_SIZE).with(Field.HOST_SS_SELECTOR, 0),
  "host.fs-base.canonical": set(Field.HOST_FS_BASE, NON_CANONICAL),
  "host.gs-base.canonical": set(Field.HOST_GS_BASE, NON_CANONICAL),
  "host.gdtr-base.canonical": set(Field.HOST_GDTR_BASE, NON_CANONICAL),
  "host.idtr-base.canonical": set(Field.HOST_IDTR_BASE, NON_CANONICAL),
  "host.tr-base.canonical": set(Field.HOST_TR_BASE, NON_CANONICAL),
  "host.address-space.outside-ia32e": (vm) => {
    vm.cpu.state.setU64(Off.EFER, 0n);
    return vm;
  },
  "host.address-space.inside-ia32e": (vm) => vm.off(Field.VM_EXIT_CONTROLS, VmExitControl.HOST_ADDR_SPACE_SIZE),
  "host.address-space.32-bit": (vm) => vm.off(Field.VM_EXIT_CONTROLS, VmExitControl.HOST_ADDR_SPACE_SIZE),
  "host.address-space.64-bit": [set(Field.HOST_CR4, 0x2000), set(Field.HOST_RIP, NON_CANONICAL)],

  "guest.cr0.fixed": [set(Field.GUEST_CR0, 0x8005_0013), set(Field.GUEST_CR0, 0x33)],
  "guest.cr0.pg-without-pe": (vm) => vm.secondary(SecondaryExec.UNRESTRICTED_GUEST).with(Field.GUEST_CR0, 0x8000_0030),
  "guest.cr4.fixed": [set(Field.GUEST_CR4, 0x20), set(Field.GUEST_CR4, 0x8000_2020)],
  "guest.debugctl.reserved": set(Field.GUEST_IA32_DEBUGCTL, 4),
  "guest.ia32e.needs-paging": set(Field.GUEST_CR4, 0x2000),
  "guest.cr4.pcide-outside-ia32e": (vm) => vm.pae().with(Field.GUEST_CR4, 0x2_2020),
  "guest.cr3.width": set(Field.GUEST_CR3, BEYOND),
  "guest.dr7.high": set(Field.GUEST_DR7, 0x1_0000_0400n),
  "guest.sysenter-esp.canonical": set(Field.GUEST_SYSENTER_ESP, NON_CANONICAL),
  "guest.sysenter-eip.canonical": set(Field.GUEST_SYSENTER_EIP, NON_CANONICAL),
  "guest.pat": (vm) => vm.on(Field.VM_ENTRY_CONTROLS, VmEntryControl.LOAD_IA32_PAT).with(Field.GUEST_IA32_PAT, 0x0300n),
  "guest.efer.reserved": set(Field.GUEST_IA32_EFER, 0xd03),
  "guest.efer.lma": set(Field.GUEST_IA32_EFER, 0x901),
  "guest.efer.lme": set(Field.GUEST_IA32_EFER, 0xc01),

  "guest.ss.selector": set(Field.GUEST_SS_SELECTOR, 0x13),
  "guest.ss.dpl-zero": (vm) => vm.realMode().with(Field.GUEST_SS_AR_BYTES, 0xf3),
  "guest.cs.l-and-d": set(Field.GUEST_CS_AR_BYTES, 0xe09b),
  "guest.cs.type": set(Field.GUEST_CS_AR_BYTES, 0xa093),
  "guest.cs.dpl": [set(Field.GUEST_CS_AR_BYTES, 0xa0fb), set(Field.GUEST_CS_AR_BYTES, 0xa0ff)],
  "guest.ss.type": set(Field.GUEST_SS_AR_BYTES, 0xc091),
  "guest.ss.dpl": set(Field.GUEST_SS_AR_BYTES, 0xc0f3),
  "guest.tr.selector": set(Field.GUEST_TR_SELECTOR, 0x2c),
  "guest.tr.type": set(Field.GUEST_TR_AR_BYTES, 0x89),
  "guest.tr.s": set(Field.GUEST_TR_AR_BYTES, 0x9b),
  "guest.tr.present": set(Field.GUEST_TR_AR_BYTES, 0x0b),
  "guest.tr.reserved": set(Field.GUEST_TR_AR_BYTES, 0x18b),
  "guest.tr.granularity": set(Field.GUEST_TR_AR_BYTES, 0x808b),
  "guest.tr.unusable": set(Field.GUEST_TR_AR_BYTES, 0x1008b),
  "guest.tr.base": set(Field.GUEST_TR_BASE, NON_CANONICAL),
  "guest.ldtr.selector": (vm) => vm.with(Field.GUEST_LDTR_AR_BYTES, 0x82).with(Field.GUEST_LDTR_SELECTOR, 4),
  "guest.ldtr.base": (vm) => vm.with(Field.GUEST_LDTR_AR_BYTES, 0x82).with(Field.GUEST_LDTR_BASE, NON_CANONICAL),
  "guest.ldtr.type": set(Field.GUEST_LDTR_AR_BYTES, 0x83),
  "guest.ldtr.s": set(Field.GUEST_LDTR_AR_BYTES, 0x92),
  "guest.ldtr.present": set(Field.GUEST_LDTR_AR_BYTES, 0x02),
  "guest.ldtr.reserved": set(Field.GUEST_LDTR_AR_BYTES, 0x282),
  "guest.ldtr.granularity": (vm) => vm.with(Field.GUEST_LDTR_AR_BYTES, 0x82).with(Field.GUEST_LDTR_LIMIT, 0x10_0000),
  "guest.gdtr.base": set(Field.GUEST_GDTR_BASE, NON_CANONICAL),
  "guest.gdtr.limit": set(Field.GUEST_GDTR_LIMIT, 0x1_0000),
  "guest.idtr.base": set(Field.GUEST_IDTR_BASE, NON_CANONICAL),
  "guest.idtr.limit": set(Field.GUEST_IDTR_LIMIT, 0x1_0000),

  "guest.rip": [set(Field.GUEST_RIP, 0x1_0000_0000_0000n), (vm) => vm.pae().with(Field.GUEST_RIP, 0x1_0000_0000n)],
  "guest.rflags.reserved": [set(Field.GUEST_RFLAGS, 0), set(Field.GUEST_RFLAGS, 0x8002)],
  "guest.rflags.vm": set(Field.GUEST_RFLAGS, 0x20002),
  "guest.rflags.if": inject(VALID | 0x20),
  "guest.activity.supported": set(Field.GUEST_ACTIVITY_STATE, 2),
  "guest.activity.hlt-dpl": (vm) => vm.with(Field.GUEST_ACTIVITY_STATE, 1).with(Field.GUEST_SS_AR_BYTES, 0xc0f3),
  "guest.activity.blocking": (vm) => vm.with(Field.GUEST_ACTIVITY_STATE, 1).with(Field.GUEST_INTERRUPTIBILITY_INFO, 2),
  "guest.activity.injection": [
    (vm) => inject(VALID | (3 << 8) | 6)(vm.with(Field.GUEST_ACTIVITY_STATE, 1)),
    (vm) => inject(VALID | (2 << 8) | 2)(vm.with(Field.GUEST_ACTIVITY_STATE, 3)),
  ],
  "guest.interruptibility.reserved": set(Field.GUEST_INTERRUPTIBILITY_INFO, 0x10),
  "guest.interruptibility.sti-and-mov-ss": (vm) =>
    vm.with(Field.GUEST_RFLAGS, 0x202).with(Field.GUEST_INTERRUPTIBILITY_INFO, 3),
  "guest.interruptibility.sti-without-if": set(Field.GUEST_INTERRUPTIBILITY_INFO, 1),
  "guest.interruptibility.interrupt": (vm) =>
    inject(VALID | 0x20)(vm.with(Field.GUEST_RFLAGS, 0x202).with(Field.GUEST_INTERRUPTIBILITY_INFO, 1)),
  "guest.interruptibility.smi": set(Field.GUEST_INTERRUPTIBILITY_INFO, 4),
  "guest.interruptibility.nmi-mov-ss": (vm) =>
    inject(VALID | (2 << 8) | 2)(vm.with(Field.GUEST_INTERRUPTIBILITY_INFO, 2)),
  "guest.interruptibility.virtual-nmi": (vm) =>
    inject(VALID | (2 << 8) | 2)(
      vm.pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS).with(Field.GUEST_INTERRUPTIBILITY_INFO, 8),
    ),
  "guest.pending-debug.reserved": set(Field.GUEST_PENDING_DBG_EXCEPTIONS, 0x10),
  "guest.pending-debug.single-step": (vm) =>
    vm.with(Field.GUEST_RFLAGS, 0x302).with(Field.GUEST_INTERRUPTIBILITY_INFO, 1),
  "guest.link-pointer.address": set(Field.VMCS_LINK_POINTER, 0x123),
  "guest.link-pointer.revision": set(Field.VMCS_LINK_POINTER, PAGES),
  "guest.link-pointer.current": set(Field.VMCS_LINK_POINTER, VMCS_REGION),
  ...Object.fromEntries(
    [0, 1, 2, 3].flatMap((i): (readonly [string, Bend])[] => [
      [`guest.pdpte${i}.field`, (vm) => vm.pae().with(Field[`GUEST_PDPTR${i as 0 | 1 | 2 | 3}`], 3)],
      [
        `guest.pdpte${i}.memory`,
        (vm) => {
          const { memory } = vm.cpu;
          memory.view.setBigUint64(memory.hostOffset(0x6000 + i * 8), 1n | (1n << 45n), true);
          return vm.pae().off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.ENABLE_EPT);
        },
      ],
    ]),
  ),
};

for (const name of ["ES", "CS", "SS", "DS", "FS", "GS"] as const) {
  const id = name.toLowerCase();
  const rights = Field[`GUEST_${name}_AR_BYTES`];
  const base = Field[`GUEST_${name}_BASE`];
  const limit = Field[`GUEST_${name}_LIMIT`];
  const good = name === "CS" ? 0xa09b : 0xc093;
  probes[`guest.${id}.s`] = set(rights, good & ~0x10);
  probes[`guest.${id}.present`] = set(rights, good & ~0x80);
  probes[`guest.${id}.reserved`] = [set(rights, good | 0x100), set(rights, BigInt(good) | (1n << 17n))];
  probes[`guest.${id}.granularity`] = [set(limit, 0xffff_fffe), set(rights, good & ~0x8000)];
  probes[`guest.${id}.base`] = set(base, name === "FS" || name === "GS" ? NON_CANONICAL : 0x1_0000_0000n);
  probes[`guest.${id}.v8086.base`] = (vm) => vm.virtual8086().with(base, 0x20000);
  probes[`guest.${id}.v8086.limit`] = (vm) => vm.virtual8086().with(limit, 0xfffe);
  probes[`guest.${id}.v8086.rights`] = (vm) => vm.virtual8086().with(rights, 0x93);
  if (name !== "CS" && name !== "SS") {
    probes[`guest.${id}.type`] = [set(rights, 0xc092), set(rights, 0xc099)];
    probes[`guest.${id}.dpl`] = set(Field[`GUEST_${name}_SELECTOR`], 0x13);
  }
}

/** Qualifications of failed guest checks other than 0 (SDM 3C 27.8). */
function qualificationOf(id: string): bigint {
  if (id.includes("pdpte")) return 2n;
  return id.startsWith("guest.link-pointer") ? 4n : 0n;
}

describe("every VM-entry check refuses what it is about", () => {
  for (const row of ENTRY_CHECKS) {
    test(`${row.id} (${row.section})`, () => {
      const bends = probes[row.id];
      expect(bends, "every row needs a probe").toBeDefined();
      for (const bend of ([] as Bend[]).concat(bends)) {
        const vm = bend(validVmcs());
        const report = vm.report();
        const failure = report.find((f) => f.id === row.id);
        expect(failure?.section).toBe(row.section);
        expect(failure?.message.length).toBeGreaterThan(10);
        const groups = new Set(report.map((f) => f.group));
        const outcome = vm.launch();
        if (groups.has("control")) expect(outcome).toEqual(vmfail(7));
        else if (groups.has("host")) expect(outcome).toEqual(vmfail(8));
        else if (report.length === 1) expect(outcome).toEqual(failedEntry(33, qualificationOf(row.id)));
        else expect(outcome).toMatchObject({ kind: "failed-entry", reason: 33 });
      }
    });
  }
});

describe("VM entry", () => {
  test("a valid VMCS passes all checks and enters (3C 27.2, 27.3)", () => {
    const vm = validVmcs();
    expect(vm.report()).toEqual([]);
    expect(vm.launch()).toEqual(entered);
  });

  test("an unrestricted guest may start in real-address mode (3C 27.3.1)", () => {
    expect(validVmcs().realMode().enter().report()).toEqual([]);
  });

  test("bits 63:48 of RIP must be identical, bit 47 may differ: the address behind the lower half enters (3C 27.3.1.4)", () => {
    expect(validVmcs().with(Field.GUEST_RIP, NON_CANONICAL).launch()).toEqual(entered);
    expect(validVmcs().with(Field.GUEST_RIP, 0x8000_0000_0000_0000n).launch()).toEqual(failedEntry(33));
  });

  test("a guest may start in virtual-8086 mode, with PAE paging, and in a 32-bit segment (3C 27.3.1.2)", () => {
    expect(validVmcs().virtual8086().launch()).toEqual(entered);
    expect(validVmcs().pae().launch()).toEqual(entered);
  });

  test("VM entry fails with reason 33 when CR0.PG is set and CR0.PE clear (3C 27.3.1.1)", () => {
    const vm = validVmcs()
      .secondary(SecondaryExec.UNRESTRICTED_GUEST)
      .with(Field.GUEST_CR0, (v) => v & ~1n);
    expect(vm.launch()).toEqual(failedEntry(33));
    expect(vm.report().map((r) => r.id)).toContain("guest.cr0.pg-without-pe");
    expect(vm.cpu.vmx.lastFailure.map((r) => r.id)).toContain("guest.cr0.pg-without-pe");
  });

  test("checks are made again only for what was written, and a repaired VMCS enters (3C 27.1)", () => {
    const vm = validVmcs().with(Field.GUEST_CR3, BEYOND);
    expect(vm.launch()).toEqual(failedEntry(33));
    expect(vm.with(Field.GUEST_CR3, 0x6000).launch()).toEqual(entered);
    // Enter again and again: fields that nobody wrote stay good, bad writes are seen.
    vm.exitOf(() => vm.guest.interceptTripleFault());
    expect(vm.with(Field.GUEST_RIP, 0x2000).launch()).toEqual(entered);
    vm.exitOf(() => vm.guest.interceptTripleFault());
    expect(vm.with(Field.GUEST_RIP, 0x1_0000_0000_0000n).launch()).toEqual(failedEntry(33));
    expect(vm.with(Field.GUEST_RIP, 0x2000).with(Field.GUEST_RFLAGS, 0).launch()).toEqual(failedEntry(33));
    expect(vm.with(Field.GUEST_RFLAGS, 2).with(Field.GUEST_SS_AR_BYTES, 0).launch()).toEqual(failedEntry(33));
  });

  test("a check sees what the guest itself changed before the exit (3C 28.3)", () => {
    const vm = validVmcs().enter();
    vm.cpu.state.setU64(Off.SYSENTER_ESP, NON_CANONICAL);
    vm.exitOf(() => vm.guest.interceptTripleFault());
    expect(vm.launch()).toEqual(failedEntry(33));
  });
});
