import { describe, expect, test } from "vitest";
import { VmExitTaken } from "../../../engine/cpu/cpu";
import { Activity, Inhibit, Off, Pending, Seg, SegAttr } from "../../../engine/cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { AbortWord } from "../../../engine/cpu/vmx/vmcs";
import { TraceKind } from "../../../engine/trace";
import { entered, failedEntry, PAGES, type TestVmcs, validVmcs } from "./valid-vmcs";

const VALID = 1 << 31;
/** Leaves the guest by a triple fault, which changes nothing of its state. */
const leave = (vm: TestVmcs): number | null => vm.exitOf(() => vm.guest.interceptTripleFault());
const state = (vm: TestVmcs) => vm.cpu.state;

describe("VM entry loads the guest (SDM 3C 27.3.2)", () => {
  test("registers, segments and tables come from the guest-state area", () => {
    const vm = validVmcs()
      .with(Field.GUEST_RIP, 0x7777)
      .with(Field.GUEST_RFLAGS, 0x246)
      .with(Field.GUEST_GS_BASE, 0xffff_8000_1234_0000n)
      .with(Field.GUEST_IDTR_LIMIT, 0x1ff)
      .with(Field.GUEST_SYSENTER_EIP, 0x4444)
      .enter();
    const s = state(vm);
    expect(s.rip).toBe(0x7777n);
    expect(s.rflags).toBe(0x246);
    expect(s.u64(Off.CR3)).toBe(0x6000n);
    expect(s.segBase(Seg.GS)).toBe(0xffff_8000_1234_0000n);
    expect(s.segAttributes(Seg.CS)).toBe(0xa09b);
    expect(s.segAttributes(Seg.LDTR) & SegAttr.UNUSABLE).toBe(SegAttr.UNUSABLE);
    expect(s.u32(Off.IDTR_LIMIT)).toBe(0x1ff);
    expect(s.u64(Off.SYSENTER_EIP)).toBe(0x4444n);
    expect(s.gpr(4)).toBe(0x9_0000n);
    expect(vm.cpu.contextChanges).toBe(1);
  });

  test("CPL is the DPL of SS, and 3 in virtual-8086 mode (27.3.2.2)", () => {
    expect(state(validVmcs().enter()).cpl).toBe(0);
    expect(state(validVmcs().virtual8086().enter()).cpl).toBe(3);
  });

  test("CR0 keeps ET, NW and CD; EFER follows IA32E_MODE without LOAD_IA32_EFER (27.3.2.1)", () => {
    const vm = validVmcs().off(Field.VM_ENTRY_CONTROLS, VmEntryControl.LOAD_IA32_EFER);
    state(vm).setU64(Off.CR0, 0xe005_0033n);
    vm.enter();
    expect(state(vm).u32(Off.CR0)).toBe(0xe005_0033);
    expect(state(vm).u32(Off.EFER)).toBe(0xd01);
    const real = validVmcs().realMode().off(Field.VM_ENTRY_CONTROLS, VmEntryControl.LOAD_IA32_EFER).enter();
    expect(state(real).u32(Off.EFER) & 0x400).toBe(0);
    expect(state(real).u32(Off.EFER) & 0x100).toBe(0x100);
  });

  test("PDPTEs come from the VMCS with EPT and from memory without (27.3.2.4)", () => {
    const vm = validVmcs().pae().with(Field.GUEST_PDPTR2, 0x9001).enter();
    expect(state(vm).u64(Off.PDPTE + 16)).toBe(0x9001n);
    const memory = validVmcs().pae().off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.ENABLE_EPT);
    memory.cpu.memory.view.setBigUint64(memory.cpu.memory.hostOffset(0x6008), 0xa001n, true);
    expect(state(memory.enter()).u64(Off.PDPTE + 8)).toBe(0xa001n);
  });

  test("activity, blocking and pending debug exceptions are taken over (27.7)", () => {
    const vm = validVmcs()
      .with(Field.GUEST_ACTIVITY_STATE, 1)
      .with(Field.GUEST_INTERRUPTIBILITY_INFO, Inhibit.NMI)
      .with(Field.GUEST_PENDING_DBG_EXCEPTIONS, 0x1001)
      .enter();
    expect(state(vm).activity).toBe(Activity.HLT);
    expect(state(vm).u32(Off.INHIBIT)).toBe(Inhibit.NMI);
    expect(state(vm).u32(Off.PENDING) & Pending.DEBUG).toBe(Pending.DEBUG);
    expect(state(vm).u64(Off.PENDING_DEBUG)).toBe(1n);
  });

  test("EPT and VPID are those of the VMCS; without VPID linear translations go", () => {
    const vm = validVmcs().enter();
    expect(vm.cpu.secondStage?.tag).toBe(vm.get(Field.EPT_POINTER));
    expect(vm.guest.addressSpaceTag).toBe(1);
    expect(vm.cpu.invalidations).toEqual([]);
    const plain = validVmcs().off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.ENABLE_VPID).enter();
    expect(plain.guest.addressSpaceTag).toBe(0);
    leave(plain);
    expect(plain.cpu.invalidations).toEqual([{ vpid: 0 }, { vpid: 0 }]);
  });

  test("the MSR-load list is loaded; a bad entry fails the entry with its number (27.4)", () => {
    const vm = validVmcs().with(Field.VM_ENTRY_MSR_LOAD_ADDR, PAGES).with(Field.VM_ENTRY_MSR_LOAD_COUNT, 2);
    const { memory, msrs } = vm.cpu;
    const at = memory.hostOffset(PAGES);
    msrs.set(0x277, 0n);
    memory.view.setUint32(at, 0x277, true);
    memory.view.setBigUint64(at + 8, 0x606n, true);
    memory.view.setUint32(at + 16, 0xc000_0100, true);
    expect(vm.launch()).toEqual(failedEntry(34, 2n));
    expect(msrs.get(0x277)).toBe(0x606n);
    expect(vm.cpu.vmx.lastFailure[0]).toMatchObject({ id: "msr-load.entry", group: "msr-load" });
    memory.view.setUint32(at + 16, 0x277, true);
    memory.view.setUint32(at + 20, 1, true);
    expect(vm.launch()).toEqual(failedEntry(34, 2n));
  });

  test("a failed entry loads the host and changes no guest state (27.8)", () => {
    const vm = validVmcs()
      .with(Field.GUEST_CR3, 1n << 50n)
      .with(Field.GUEST_RIP, 0x5555);
    expect(vm.launch()).toEqual(failedEntry(33));
    expect(state(vm).rip).toBe(0xffff_8000_0000_1000n);
    expect(vm.get(Field.GUEST_RIP)).toBe(0x5555n);
    expect(vm.cpu.vmx.launched).toBe(false);
  });

  test("trace points tell of entries, and of failed ones with all checks", () => {
    const vm = validVmcs()
      .with(Field.GUEST_CR3, 1n << 50n)
      .with(Field.GUEST_RFLAGS, 0);
    vm.cpu.trace.armed = TraceKind.VmEntry | TraceKind.VmEntryFailed | TraceKind.VmExit;
    vm.launch();
    const failed = vm.cpu.points[0];
    expect(failed.kind).toBe(TraceKind.VmEntryFailed);
    expect(failed.detail.checks).toBe("guest.cr3.width guest.rflags.reserved");
    expect(failed.detail.report).toContain("GUEST_CR3 0x4000000000000");
    vm.with(Field.GUEST_CR3, 0x6000).with(Field.GUEST_RFLAGS, 2).enter();
    leave(vm);
    expect(vm.cpu.points.slice(1).map((p) => p.kind)).toEqual([TraceKind.VmEntry, TraceKind.VmExit]);
    expect(vm.cpu.points[2].detail).toMatchObject({ reason: 2, reasonName: "TRIPLE_FAULT", rip: 0x10_0000n });
  });
});

describe("event injection (SDM 3C 27.6)", () => {
  test("the event is delivered at the first boundary, with its error code, and only once", () => {
    const vm = validVmcs()
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (3 << 8) | (1 << 11) | 13) >>> 0)
      .with(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, 0x28)
      .enter();
    expect(vm.cpu.delivered).toEqual([]);
    vm.guest.boundary();
    vm.guest.boundary();
    expect(vm.cpu.delivered).toEqual([{ vector: 13, type: 3, error: 0x28, instructionLength: 0 }]);
  });

  test("VM exits clear the valid bit of the injection field (28.2)", () => {
    const vm = validVmcs()
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (3 << 8) | 6) >>> 0)
      .enter();
    vm.guest.boundary();
    leave(vm);
    expect(vm.get(Field.VM_ENTRY_INTR_INFO_FIELD)).toBe(0x306n);
  });

  test("a software interrupt carries its instruction length; an NMI begins blocking by NMI", () => {
    const soft = validVmcs()
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (4 << 8) | 0x80) >>> 0)
      .with(Field.VM_ENTRY_INSTRUCTION_LEN, 2)
      .enter();
    soft.guest.boundary();
    expect(soft.cpu.delivered).toEqual([{ vector: 0x80, type: 4, instructionLength: 2 }]);
    const nmi = validVmcs()
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (2 << 8) | 2) >>> 0)
      .enter();
    nmi.guest.boundary();
    expect(state(nmi).u32(Off.INHIBIT) & Inhibit.NMI).toBe(Inhibit.NMI);
  });

  test("an injected event wakes a halted guest (27.7.2)", () => {
    const vm = validVmcs()
      .with(Field.GUEST_RFLAGS, 0x202)
      .with(Field.GUEST_ACTIVITY_STATE, 1)
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | 0x30) >>> 0)
      .enter();
    vm.guest.boundary();
    expect(state(vm).activity).toBe(Activity.ACTIVE);
  });

  test("an exit during delivery of the injected event reports it as IDT-vectoring information (28.2.4)", () => {
    const vm = validVmcs().with(Field.EXCEPTION_BITMAP, 1 << 14);
    vm.with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (6 << 8) | 3) >>> 0).with(Field.VM_ENTRY_INSTRUCTION_LEN, 1);
    vm.enter();
    vm.cpu.vmx.services.deliver = () => vm.guest.interceptException(14, 2, 0x8888n, false);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.EXCEPTION_NMI);
    expect(vm.get32(Field.IDT_VECTORING_INFO_FIELD)).toBe((VALID | (6 << 8) | 3) >>> 0);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (3 << 8) | (1 << 11) | 14) >>> 0);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x8888n);
    expect(vm.get(Field.VM_EXIT_INSTRUCTION_LEN)).toBe(1n);
  });

  test("an exit by a double fault is not one during delivery (28.2.4)", () => {
    const vm = validVmcs()
      .with(Field.EXCEPTION_BITMAP, 1 << 8)
      .enter();
    vm.guest.setVectoring({ vector: 13, type: 3, error: 0, instructionLength: 0 });
    vm.exitOf(() => vm.guest.interceptException(8, 0, 0n, false));
    expect(vm.get(Field.IDT_VECTORING_INFO_FIELD)).toBe(0n);
  });
});

describe("VM exit saves the guest and loads the host (SDM 3C 28.3, 28.5)", () => {
  test("what the guest changed is in the guest-state area", () => {
    const vm = validVmcs().enter();
    const s = state(vm);
    s.rip = 0x4242n;
    s.rflags = 0x893;
    s.setU64(Off.CR3, 0x7000n);
    s.setGpr(4, 0x1111n);
    s.setSegment(Seg.FS, 0x10, 0xdead0000n, 0xffff_ffff, 0xc093);
    s.setU32(Off.IDTR_LIMIT, 0x7ff);
    s.activity = Activity.HLT;
    s.setU32(Off.INHIBIT, Inhibit.STI);
    s.setU64(Off.PENDING_DEBUG, 2n);
    leave(vm);
    expect(vm.get(Field.GUEST_RIP)).toBe(0x4242n);
    expect(vm.get(Field.GUEST_RFLAGS)).toBe(0x893n);
    expect(vm.get(Field.GUEST_CR3)).toBe(0x7000n);
    expect(vm.get(Field.GUEST_RSP)).toBe(0x1111n);
    expect(vm.get(Field.GUEST_FS_BASE)).toBe(0xdead0000n);
    expect(vm.get(Field.GUEST_IDTR_LIMIT)).toBe(0x7ffn);
    expect(vm.get(Field.GUEST_ACTIVITY_STATE)).toBe(1n);
    expect(vm.get(Field.GUEST_INTERRUPTIBILITY_INFO)).toBe(1n);
    expect(vm.get(Field.GUEST_PENDING_DBG_EXCEPTIONS)).toBe(0x1002n);
  });

  test("IA32E_MODE follows EFER.LMA on exit (28.3.1, IA32_VMX_MISC bit 5)", () => {
    const vm = validVmcs().enter();
    state(vm).setU64(Off.EFER, 0n);
    leave(vm);
    expect(vm.get32(Field.VM_ENTRY_CONTROLS) & VmEntryControl.IA32E_MODE).toBe(0);
  });

  test("the host is in ring 0 with flat segments, interrupts off, and at HOST_RIP (28.5)", () => {
    const vm = validVmcs().enter();
    leave(vm);
    const s = state(vm);
    expect(s.rip).toBe(0xffff_8000_0000_1000n);
    expect(s.gpr(4)).toBe(0xffff_8000_0000_8000n);
    expect(s.rflags).toBe(2);
    expect(s.cpl).toBe(0);
    expect(s.segSelector(Seg.CS)).toBe(8);
    expect(s.segAttributes(Seg.CS)).toBe(0xa09b);
    expect(s.segLimit(Seg.SS)).toBe(0xffff_ffff);
    expect(s.segAttributes(Seg.SS)).toBe(0xc093);
    expect(s.segAttributes(Seg.DS) & SegAttr.UNUSABLE).toBe(SegAttr.UNUSABLE);
    expect(s.segBase(Seg.FS)).toBe(0x1234n);
    expect(s.segBase(Seg.TR)).toBe(0xffff_8000_0000_7000n);
    expect(s.segLimit(Seg.TR)).toBe(0x67);
    expect(s.segAttributes(Seg.TR)).toBe(0x8b);
    expect(s.u32(Off.GDTR_LIMIT)).toBe(0xffff);
    expect(s.u32(Off.DR7)).toBe(0x400);
    expect(s.u32(Off.CR0)).toBe(0x8005_0033);
    expect(vm.cpu.guest).toBeNull();
    expect(vm.cpu.secondStage).toBeNull();
    expect(vm.cpu.vmx.exitCounts[ExitReason.TRIPLE_FAULT]).toBe(1);
  });

  test("MSRs of the store list are saved before those of the load list are loaded (28.4, 28.6)", () => {
    const vm = validVmcs()
      .with(Field.VM_EXIT_MSR_STORE_ADDR, PAGES)
      .with(Field.VM_EXIT_MSR_STORE_COUNT, 1)
      .with(Field.VM_EXIT_MSR_LOAD_ADDR, PAGES + 0x800)
      .with(Field.VM_EXIT_MSR_LOAD_COUNT, 1);
    const { memory, msrs } = vm.cpu;
    const at = memory.hostOffset(PAGES);
    msrs.set(0x277, 5n);
    memory.view.setUint32(at, 0x277, true);
    memory.view.setUint32(at + 0x800, 0x277, true);
    memory.view.setBigUint64(at + 0x808, 9n, true);
    leave(vm.enter());
    expect(memory.view.getBigUint64(at + 8, true)).toBe(5n);
    expect(msrs.get(0x277)).toBe(9n);
  });

  test("an MSR that cannot be loaded on exit aborts: indicator 4 and shutdown (28.7)", () => {
    const vm = validVmcs().with(Field.VM_EXIT_MSR_LOAD_ADDR, PAGES).with(Field.VM_EXIT_MSR_LOAD_COUNT, 1).enter();
    const { cpu } = vm;
    expect(() => vm.guest.interceptTripleFault()).toThrow();
    expect(cpu.vmx.vmcs.lo(AbortWord)).toBe(4);
    expect(state(vm).activity).toBe(Activity.SHUTDOWN);
    expect(cpu.guest).toBeNull();
  });

  test("a failed entry whose exit cannot load its MSRs aborts too, and enter only returns (28.7)", () => {
    const vm = validVmcs()
      .with(Field.VM_EXIT_MSR_LOAD_ADDR, PAGES)
      .with(Field.VM_EXIT_MSR_LOAD_COUNT, 1)
      .with(Field.GUEST_RFLAGS, 0);
    expect(vm.launch()).toEqual(failedEntry(33));
    expect(vm.cpu.vmx.vmcs.lo(AbortWord)).toBe(4);
    expect(state(vm).activity).toBe(Activity.SHUTDOWN);
  });

  test("an NMI exit blocks NMIs in the host; others leave blocking as it was (28.5.5)", () => {
    const vm = validVmcs()
      .pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)
      .with(Field.GUEST_INTERRUPTIBILITY_INFO, 8)
      .enter();
    leave(vm);
    expect(state(vm).u32(Off.INHIBIT)).toBe(0);
    vm.with(Field.GUEST_INTERRUPTIBILITY_INFO, 0).enter();
    state(vm).setU32(Off.PENDING, Pending.NMI);
    vm.exitOf(() => vm.guest.interceptNmi());
    expect(state(vm).u32(Off.INHIBIT)).toBe(Inhibit.NMI);
    expect(state(vm).u32(Off.PENDING)).toBe(0);
  });

  test("the exit comes to the run loop as VmExitTaken", () => {
    const vm = validVmcs().enter();
    expect(() => vm.guest.interceptTripleFault()).toThrow(VmExitTaken as unknown as Error);
  });
});

describe("state of the unit is plain data", () => {
  test("a snapshot taken in the guest brings the guest back", () => {
    const vm = validVmcs().pin(PinBased.VMX_PREEMPTION_TIMER).with(Field.VMX_PREEMPTION_TIMER_VALUE, 100).enter();
    const { cpu } = vm;
    const memory = cpu.memory.u8.slice();
    const unit = structuredClone(cpu.vmx.state);
    leave(vm);
    expect(cpu.guest).toBeNull();
    cpu.memory.u8.set(memory);
    cpu.vmx.state = structuredClone(unit);
    expect(cpu.guest?.kind).toBe("vmx");
    expect(cpu.secondStage?.tag).toBe(0x1001en);
    expect(cpu.vmx.state).toEqual(unit);
    expect(leave(vm)).toBe(ExitReason.TRIPLE_FAULT);
  });
});

describe("VMX-preemption timer (SDM 3C 26.5.1)", () => {
  const timer = (value: number): TestVmcs =>
    validVmcs()
      .pin(PinBased.VMX_PREEMPTION_TIMER)
      .on(Field.VM_EXIT_CONTROLS, VmExitControl.SAVE_VMX_PREEMPTION_TIMER)
      .with(Field.VMX_PREEMPTION_TIMER_VALUE, value)
      .enter();

  test("it counts down every 32 TSC ticks and exits at zero", () => {
    const vm = timer(10);
    expect(vm.guest.instructionsToPreemption()).toBe(32);
    vm.cpu.clock.retire(31);
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
    vm.cpu.clock.retire(1);
    expect(vm.guest.instructionsToPreemption()).toBe(0);
    expect(vm.exitOf(() => vm.guest.preemptionTimerExpired())).toBe(ExitReason.PREEMPTION_TIMER);
    expect(vm.get(Field.VMX_PREEMPTION_TIMER_VALUE)).toBe(0n);
  });

  test("its value is saved on other exits, and the clock forgets it", () => {
    const vm = timer(10);
    vm.cpu.clock.retire(16);
    leave(vm);
    expect(vm.get(Field.VMX_PREEMPTION_TIMER_VALUE)).toBe(5n);
    expect(vm.cpu.clock.nextEventAt).toBe(Number.POSITIVE_INFINITY);
  });

  test("value 0 exits before the first instruction, and the timer ends a halted state", () => {
    expect(timer(0).guest.instructionsToPreemption()).toBe(0);
    const vm = timer(10);
    const before = vm.cpu.attentions;
    vm.cpu.clock.skipToNextEvent();
    vm.cpu.clock.runDue();
    expect(vm.cpu.attentions).toBe(before + 1);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.PREEMPTION_TIMER);
  });
});

describe("monitor trap flag (SDM 3C 26.5.2)", () => {
  test("the exit follows one instruction", () => {
    const vm = validVmcs().primary(CpuBased.MONITOR_TRAP_FLAG).enter();
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
    expect(vm.guest.instructionsToPreemption()).toBe(1);
    vm.cpu.retired++;
    expect(vm.guest.instructionsToPreemption()).toBe(0);
    expect(vm.exitOf(() => vm.guest.preemptionTimerExpired())).toBe(ExitReason.MONITOR_TRAP_FLAG);
  });

  test("with an injected event it follows the delivery", () => {
    const vm = validVmcs()
      .primary(CpuBased.MONITOR_TRAP_FLAG)
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (3 << 8) | 6) >>> 0)
      .enter();
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.MONITOR_TRAP_FLAG);
    expect(vm.cpu.delivered.length).toBe(1);
    expect(vm.get(Field.IDT_VECTORING_INFO_FIELD)).toBe(0n);
  });

  test("event type 7 injects an MTF exit", () => {
    const vm = validVmcs().with(Field.VM_ENTRY_INTR_INFO_FIELD, (VALID | (7 << 8)) >>> 0);
    expect(vm.launch()).toEqual(entered);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.MONITOR_TRAP_FLAG);
  });
});
