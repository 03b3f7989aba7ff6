/** VM entries (SDM 3C chapter 27): VMLAUNCH and VMRESUME behind their own checks of privilege and mode. */
import { TraceKind } from "../../trace";
import { type Activity, Inhibit, Off, Pending, SEG_SIZE, Seg, SegPart } from "../state";
import { PREEMPTION_TIMER_SHIFT } from "./capabilities";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl } from "./controls";
import { type EntryCheck, Reads } from "./entry-checks/check";
import { pdpteInMemory } from "./entry-checks/guest-state";
import { allFailures, firstFailure } from "./entry-checks/index";
import { CR0_KEPT } from "./exit";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import { loadMsrs } from "./msr-lists";
import { GUEST_PLANS, load, PDPTE_PLAN } from "./transfer";
import type { VmxUnit } from "./unit";
import { VmError } from "./vm-instruction-errors";
import { LaunchWord, secondaryControls, word } from "./vmcs";
import { VM_SUCCEED, type VmxEvent, type VmxResult } from "./vmx";

const W = {
  PIN: word(Field.PIN_BASED_VM_EXEC_CONTROL),
  CPU: word(Field.CPU_BASED_VM_EXEC_CONTROL),
  ENTRY: word(Field.VM_ENTRY_CONTROLS),
  CR0: word(Field.GUEST_CR0),
  CR4: word(Field.GUEST_CR4),
  RIP: word(Field.GUEST_RIP),
  RFLAGS: word(Field.GUEST_RFLAGS),
  DR7: word(Field.GUEST_DR7),
  DEBUGCTL: word(Field.GUEST_IA32_DEBUGCTL),
  EFER: word(Field.GUEST_IA32_EFER),
  PAT: word(Field.GUEST_IA32_PAT),
  ACTIVITY: word(Field.GUEST_ACTIVITY_STATE),
  INTERRUPTIBILITY: word(Field.GUEST_INTERRUPTIBILITY_INFO),
  PENDING_DEBUG: word(Field.GUEST_PENDING_DBG_EXCEPTIONS),
  INTR_INFO: word(Field.VM_ENTRY_INTR_INFO_FIELD),
  INTR_ERROR: word(Field.VM_ENTRY_EXCEPTION_ERROR_CODE),
  INTR_LENGTH: word(Field.VM_ENTRY_INSTRUCTION_LEN),
  TIMER: word(Field.VMX_PREEMPTION_TIMER_VALUE),
  LOAD_COUNT: word(Field.VM_ENTRY_MSR_LOAD_COUNT),
  LOAD_ADDR: word(Field.VM_ENTRY_MSR_LOAD_ADDR),
} as const;

const CR0_PG = 1 << 31;
const CR4_PAE = 1 << 5;
const EFER_LME = 0x100;
const EFER_LMA = 0x400;
const VM = 1 << 17;
/** DR7 bits 12, 14, 15 are 0 and bit 10 is 1 whatever the field says (SDM 3C 27.3.2.1). */
const DR7_ZERO = 0xd000;
const DR7_ONE = 0x400;
const EXTERNAL_INTERRUPT = 0;
const SOFTWARE_INTERRUPT = 4;
const SOFTWARE_EXCEPTION = 6;
const OTHER_EVENT = 7;

export function enterGuest(unit: VmxUnit, resume: boolean): VmxResult {
  const { cpu, vmcs, state: data } = unit;
  if (cpu.state.lo(Off.INHIBIT) & Inhibit.MOV_SS) return unit.failure(VmError.ENTRY_EVENTS_BLOCKED_BY_MOV_SS);
  const launched = vmcs.lo(LaunchWord) !== 0;
  if (resume !== launched) {
    return unit.failure(resume ? VmError.VMRESUME_NONLAUNCHED_VMCS : VmError.VMLAUNCH_NONCLEAR_VMCS);
  }
  const failed = firstFailure(unit.checks, data.written | Reads.OUTSIDE);
  if (failed !== null) return refuse(unit, failed);

  loadGuest(unit);
  const entries = vmcs.u32(W.LOAD_COUNT);
  if (entries !== 0) {
    const bad = loadMsrs(cpu.memory, unit.services, vmcs.address(W.LOAD_ADDR), entries);
    if (bad !== 0) {
      data.lastFailure = [msrLoadFailure(unit, bad)];
      unit.exits.failEntry(ExitReason.MSR_LOAD_FAIL, bad);
      unit.traceEntryFailure(`MSR_LOAD_FAIL: entry ${bad} of the VM-entry MSR-load list`, ExitReason.MSR_LOAD_FAIL);
      return VM_SUCCEED;
    }
  }
  if (!resume) vmcs.set32(LaunchWord, 1);
  data.written = 0;
  prepareEvents(unit);
  if (cpu.trace.armed & TraceKind.VmEntry) {
    const rip = cpu.state.rip;
    cpu.trace.hit({
      kind: TraceKind.VmEntry,
      vcpu: cpu.id,
      text: `${resume ? "VMRESUME" : "VMLAUNCH"} at 0x${rip.toString(16)}`,
      detail: { rip, guestRip: rip, resume, injected: data.injection !== null },
    });
  }
  return VM_SUCCEED;
}

/** A check failed: VMfailValid for controls and host state, a failed entry with the host loaded for guest state. */
function refuse(unit: VmxUnit, failed: EntryCheck): VmxResult {
  const message = failed.message(unit.checks);
  unit.state.lastFailure = allFailures(unit.checks);
  if (failed.group === "guest") {
    unit.exits.failEntry(ExitReason.INVALID_STATE, failed.qualification);
    unit.traceEntryFailure(`INVALID_STATE: ${message}`, ExitReason.INVALID_STATE);
    return VM_SUCCEED;
  }
  const error =
    failed.group === "control" ? VmError.ENTRY_INVALID_CONTROL_FIELD : VmError.ENTRY_INVALID_HOST_STATE_FIELD;
  const result = unit.failure(error);
  unit.traceEntryFailure(`VM-instruction error ${error}: ${message}`, -1);
  return result;
}

function msrLoadFailure(unit: VmxUnit, entry: number) {
  const { memory } = unit.cpu;
  const at = memory.hostOffset(unit.vmcs.address(W.LOAD_ADDR) + (entry - 1) * 16);
  const what =
    at < 0
      ? "lies outside memory"
      : `cannot load MSR 0x${memory.view.getUint32(at, true).toString(16)} with 0x${memory.view.getBigUint64(at + 8, true).toString(16)}`;
  return {
    id: "msr-load.entry",
    group: "msr-load" as const,
    section: "3C 27.4",
    message: `entry ${entry} of the VM-entry MSR-load list ${what}`,
  };
}

/** Guest-state area to processor (SDM 3C 27.3.2). */
function loadGuest(unit: VmxUnit): void {
  const { cpu, vmcs, state: data } = unit;
  const { state } = cpu;
  const i32 = vmcs.i32;
  const block = state.base >> 2;
  const region = vmcs.at;
  for (let p = 0; p < GUEST_PLANS.length; p++) load(GUEST_PLANS[p], i32, block, region);
  state.setHi(Off.SYSENTER_CS, 0);

  const cr0 = (vmcs.lo(W.CR0) & ~CR0_KEPT) | (state.lo(Off.CR0) & CR0_KEPT);
  const cr4 = vmcs.lo(W.CR4);
  state.setLo(Off.CR0, cr0);
  state.setHi(Off.CR0, 0);
  state.setLo(Off.CR4, cr4);
  state.setHi(Off.CR4, 0);
  state.setLo(Off.RIP, vmcs.lo(W.RIP));
  state.setHi(Off.RIP, vmcs.hi(W.RIP));
  const flags = vmcs.lo(W.RFLAGS);
  state.rflags = flags;

  const controls = vmcs.lo(W.ENTRY);
  if (controls & VmEntryControl.LOAD_DEBUG_CONTROLS) {
    state.setLo(Off.DR7, (vmcs.lo(W.DR7) & ~DR7_ZERO) | DR7_ONE);
    state.setLo(Off.DEBUGCTL, vmcs.lo(W.DEBUGCTL));
  }
  if (controls & VmEntryControl.LOAD_IA32_PAT) {
    state.setLo(Off.PAT, vmcs.lo(W.PAT));
    state.setHi(Off.PAT, vmcs.hi(W.PAT));
  }
  const ia32e = (controls & VmEntryControl.IA32E_MODE) !== 0;
  if (controls & VmEntryControl.LOAD_IA32_EFER) {
    state.setLo(Off.EFER, vmcs.lo(W.EFER));
  } else {
    let efer = state.lo(Off.EFER);
    efer = ia32e ? efer | EFER_LMA : efer & ~EFER_LMA;
    if (cr0 & CR0_PG) efer = ia32e ? efer | EFER_LME : efer & ~EFER_LME;
    state.setLo(Off.EFER, efer);
  }
  const stack = state.lo(Off.SEG + Seg.SS * SEG_SIZE + SegPart.ATTRIBUTES);
  state.setU32(Off.CPL, flags & VM ? 3 : (stack >> 5) & 3);

  const secondary = secondaryControls(vmcs);
  const ept = (secondary & SecondaryExec.ENABLE_EPT) !== 0;
  if (cr0 & CR0_PG && cr4 & CR4_PAE && !ia32e) {
    if (ept) load(PDPTE_PLAN, i32, block, region);
    else loadPdptes(unit);
  }
  data.hostNmiBlocked = (state.lo(Off.INHIBIT) & Inhibit.NMI) !== 0;
  state.setU32(Off.INHIBIT, vmcs.lo(W.INTERRUPTIBILITY));
  state.activity = vmcs.lo(W.ACTIVITY) as Activity;

  state.setU32(Off.VMX_MODE, 2);
  cpu.guest = unit.guestMode;
  unit.guestMode.entered();
  if (ept) {
    unit.useEpt();
  }
  // Without VPIDs every transition drops the linear translations (SDM 3C 29.4.3.3).
  if (!(secondary & SecondaryExec.ENABLE_VPID)) cpu.mmu.invalidateTagged({ vpid: 0 });
  cpu.contextChanged();
}

function loadPdptes(unit: VmxUnit): void {
  for (let i = 0; i < 4; i++) {
    const [lo, hi] = pdpteInMemory(unit.checks, i);
    unit.cpu.state.setLo(Off.PDPTE + i * 8, lo);
    unit.cpu.state.setHi(Off.PDPTE + i * 8, hi);
  }
}

/** Event injection, pending debug exceptions, preemption timer and monitor trap flag (SDM 3C 27.6, 27.7). */
function prepareEvents(unit: VmxUnit): void {
  const { cpu, vmcs, state: data } = unit;
  const { state } = cpu;
  const info = vmcs.u32(W.INTR_INFO);
  const type = info >>> 31 ? (info >> 8) & 7 : -1;
  data.injection = null;
  data.vectoring = null;
  data.nmiUnblocked = false;
  data.mtf = vmcs.lo(W.CPU) & CpuBased.MONITOR_TRAP_FLAG ? 1 : 0;
  data.mtfFrom = -1;
  if (type === OTHER_EVENT) {
    data.mtf = 2;
  } else if (type >= 0) {
    const event: { -readonly [K in keyof VmxEvent]: VmxEvent[K] } = {
      vector: info & 0xff,
      type,
      instructionLength: type >= SOFTWARE_INTERRUPT ? vmcs.lo(W.INTR_LENGTH) : 0,
    };
    if (info & (1 << 11)) event.error = vmcs.u32(W.INTR_ERROR);
    data.injection = event;
  }

  const softwareEvent = type === SOFTWARE_INTERRUPT || type === SOFTWARE_EXCEPTION;
  const vectored = type >= EXTERNAL_INTERRUPT && type !== OTHER_EVENT;
  const pending = vmcs.lo(W.PENDING_DEBUG);
  const dropped = vectored && !(softwareEvent && vmcs.lo(W.INTERRUPTIBILITY) & Inhibit.MOV_SS);
  state.setLo(Off.PENDING_DEBUG, dropped ? 0 : pending & 0x400f);
  state.setHi(Off.PENDING_DEBUG, 0);
  let waiting = state.lo(Off.PENDING) & ~(Pending.DEBUG | Pending.MTF);
  if (!dropped && pending & 0x5000) waiting |= Pending.DEBUG;
  state.setLo(Off.PENDING, waiting);

  // A TPR below the threshold exits at once; without the APIC-access page a check has refused it (SDM 3C 27.7.7).
  data.tprBelow = unit.guestMode.virtualApic.belowThreshold();
  data.apicWrite = -1;
  unit.guestMode.virtualApic.interrupts.entered();

  if (vmcs.lo(W.PIN) & PinBased.VMX_PREEMPTION_TIMER) {
    const tick = 1 << PREEMPTION_TIMER_SHIFT;
    const phase = (cpu.clock.now + state.u32(Off.TSC_BASE)) % tick;
    unit.startPreemptionTimer(Math.max(0, cpu.clock.now - phase + vmcs.u32(W.TIMER) * tick));
  }
  cpu.attention();
}
