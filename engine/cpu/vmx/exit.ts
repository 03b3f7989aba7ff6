/**
 * VM exits (SDM 3C chapter 28): exit information is recorded, the guest's state saved, the host's loaded. Whoever takes
 * an exit fills in the fields of the recorder that its reason defines and calls `exit`, which never returns.
 */
import { TraceKind } from "../../trace";
import { Vector, vmExitTaken } from "../cpu";
import { Activity, Gpr, Inhibit, Off, Pending, SEG_SIZE, Seg, SegAttr, SegPart } from "../state";
import { PREEMPTION_TIMER_SHIFT } from "./capabilities";
import { PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "./controls";
import { Reads } from "./entry-checks/check";
import type { EptExits } from "./ept";
import { logModification, raiseVirtualizationException } from "./ept-events";
import { decodeQualification, ENTRY_FAILURE, ExitReason, exitReasonName } from "./exit-reasons";
import { Field } from "./fields";
import { loadMsrs, storeMsrs } from "./msr-lists";
import { GUEST_PLANS, HOST_PLAN, load, PDPTE_PLAN, save } from "./transfer";
import type { VmxUnit } from "./unit";
import { AbortWord, highHalf, lowHalf, secondaryControls, word } from "./vmcs";

const W = {
  REASON: word(Field.VM_EXIT_REASON),
  QUALIFICATION: word(Field.EXIT_QUALIFICATION),
  LINEAR: word(Field.GUEST_LINEAR_ADDRESS),
  PHYSICAL: word(Field.GUEST_PHYSICAL_ADDRESS),
  INTR_INFO: word(Field.VM_EXIT_INTR_INFO),
  INTR_ERROR: word(Field.VM_EXIT_INTR_ERROR_CODE),
  IDT_INFO: word(Field.IDT_VECTORING_INFO_FIELD),
  IDT_ERROR: word(Field.IDT_VECTORING_ERROR_CODE),
  LENGTH: word(Field.VM_EXIT_INSTRUCTION_LEN),
  INSTRUCTION: word(Field.VMX_INSTRUCTION_INFO),
  ENTRY_INTR_INFO: word(Field.VM_ENTRY_INTR_INFO_FIELD),
  PIN: word(Field.PIN_BASED_VM_EXEC_CONTROL),
  EXIT: word(Field.VM_EXIT_CONTROLS),
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
  TIMER: word(Field.VMX_PREEMPTION_TIMER_VALUE),
  STORE_COUNT: word(Field.VM_EXIT_MSR_STORE_COUNT),
  STORE_ADDR: word(Field.VM_EXIT_MSR_STORE_ADDR),
  LOAD_COUNT: word(Field.VM_EXIT_MSR_LOAD_COUNT),
  LOAD_ADDR: word(Field.VM_EXIT_MSR_LOAD_ADDR),
  HOST_CR0: word(Field.HOST_CR0),
  HOST_CR3: word(Field.HOST_CR3),
  HOST_CR4: word(Field.HOST_CR4),
  HOST_EFER: word(Field.HOST_IA32_EFER),
  HOST_PAT: word(Field.HOST_IA32_PAT),
  HOST_TR_BASE: word(Field.HOST_TR_BASE),
  HOST_FS_BASE: word(Field.HOST_FS_BASE),
  HOST_GS_BASE: word(Field.HOST_GS_BASE),
} as const;

const HOST_SELECTORS: readonly (readonly [seg: number, selector: number])[] = [
  [Seg.ES, word(Field.HOST_ES_SELECTOR)],
  [Seg.CS, word(Field.HOST_CS_SELECTOR)],
  [Seg.SS, word(Field.HOST_SS_SELECTOR)],
  [Seg.DS, word(Field.HOST_DS_SELECTOR)],
  [Seg.FS, word(Field.HOST_FS_SELECTOR)],
  [Seg.GS, word(Field.HOST_GS_SELECTOR)],
  [Seg.TR, word(Field.HOST_TR_SELECTOR)],
];

/** Pairs: word of a segment register in the processor's block, word of its selector in the VMCS. */
const HOST_SEGMENTS = Int32Array.from(
  HOST_SELECTORS.flatMap(([seg, selector]) => [(Off.SEG + seg * SEG_SIZE) >> 2, selector]),
);
const CS_ATTRIBUTES = (Off.SEG + Seg.CS * SEG_SIZE + SegPart.ATTRIBUTES) >> 2;
const TR_ATTRIBUTES = (Off.SEG + Seg.TR * SEG_SIZE + SegPart.ATTRIBUTES) >> 2;
const TR_LIMIT = (Off.SEG + Seg.TR * SEG_SIZE + SegPart.LIMIT) >> 2;

/** CR0 bits that neither entry nor exit changes: ET, 15:6, 17, 28:19, NW, CD (SDM 3C 27.3.2.1, 28.5.1). */
export const CR0_KEPT = 0x7ffa_ffd0;
const CR4_PAE = 1 << 5;
const CR4_PCIDE = 1 << 17;
const CR0_PE = 1;
const CR0_PG = 1 << 31;
const EFER_LME = 0x100;
const EFER_LMA = 0x400;
const DR7_RESET = 0x400;
const RF = 1 << 16;
/** RFLAGS bits the entry checks look at: all but the arithmetic ones and DF. */
const RFLAGS_CHECKED = ~0xcd5;
/** Access rights of the host's segments. */
const CODE = 0xb | SegAttr.S | SegAttr.P | SegAttr.G;
const DATA = 3 | SegAttr.S | SegAttr.P | SegAttr.DB | SegAttr.G;
const NO_DATA = SegAttr.UNUSABLE | SegAttr.DB;
const BUSY_TSS = 0xb | SegAttr.P;

/** "NMI unblocking due to IRET" in qualifications and interruption information (SDM 3C 28.2.3). */
export const NMI_UNBLOCKING = 1 << 12;

/** VMX-abort indicators (SDM 3C 28.7). */
const Abort = { SAVE_MSR: 1, HOST_PDPTE: 2, LOAD_MSR: 4, LEAVES_IA32E: 6 } as const;

/** What becomes of RFLAGS.RF in the saved state (SDM 3C 28.3.3). */
export const SavedRf = { KEEP: 0, CLEAR: 1, SET: 2 } as const;
export type SavedRf = (typeof SavedRf)[keyof typeof SavedRf];

export class ExitRecorder implements EptExits {
  /** Exit qualification, as halves. */
  qualificationLo = 0;
  qualificationHi = 0;
  linearLo = 0;
  linearHi = 0;
  hasLinear = false;
  /** Guest-physical address, -1 for none. */
  physical = -1;
  /** VM-exit interruption information and error code. */
  interruptInfo = 0;
  interruptError = 0;
  instructionLength = 0;
  instructionInfo = 0;
  rf: SavedRf = SavedRf.KEEP;

  constructor(private readonly unit: VmxUnit) {}

  setQualification(value: bigint): void {
    this.qualificationLo = lowHalf(value);
    this.qualificationHi = highHalf(value);
  }

  setLinear(linear: bigint | undefined): void {
    if (linear === undefined) return;
    this.linearLo = lowHalf(linear);
    this.linearHi = highHalf(linear);
    this.hasLinear = true;
  }

  violation(gpa: number, linear: bigint | undefined, qualification: number, suppressed: boolean): never {
    const full = qualification | (this.unit.guestMode.unblockedByIret ? NMI_UNBLOCKING : 0);
    if (!suppressed) raiseVirtualizationException(this.unit, gpa, linear, full);
    this.qualificationLo = full;
    return this.eptExit(ExitReason.EPT_VIOLATION, gpa, linear);
  }

  logDirty(gpa: number): void {
    if (logModification(this.unit, gpa)) return;
    this.qualificationLo = this.unit.guestMode.unblockedByIret ? NMI_UNBLOCKING : 0;
    this.rf = this.unit.state.vectoring ? SavedRf.KEEP : SavedRf.SET;
    this.exit(ExitReason.PML_FULL);
  }

  physicalAccess(pa: number): void {
    const { guestMode } = this.unit;
    if (guestMode.apicAccessPage === pa - (pa % 4096)) guestMode.virtualApic.physicalAccess();
  }

  misconfiguration(gpa: number, linear: bigint | undefined): never {
    return this.eptExit(ExitReason.EPT_MISCONFIG, gpa, linear);
  }

  private eptExit(reason: number, gpa: number, linear: bigint | undefined): never {
    this.physical = gpa;
    this.setLinear(linear);
    this.rf = this.unit.state.vectoring ? SavedRf.KEEP : SavedRf.SET;
    return this.exit(reason);
  }

  /** Takes the VM exit and leaves whatever was going on. Throws vmExitTaken. */
  exit(reason: number): never {
    this.vmExit(reason);
    throw vmExitTaken;
  }

  /** Takes the VM exit: exit information, guest state, MSR lists, host state. */
  vmExit(reason: number): void {
    const { unit } = this;
    const { cpu } = unit;
    this.record(reason);
    unit.guestMode.afterIret();
    this.saveGuest(reason);
    const nmi = reason === ExitReason.EXCEPTION_NMI && ((this.interruptInfo >> 8) & 7) === 2;
    this.reset();
    if (!this.storeMsrs()) {
      this.abort(Abort.SAVE_MSR);
      return;
    }
    this.toHost(nmi);
    unit.state.exitCounts[reason]++;
    if (cpu.trace.armed & TraceKind.VmExit) this.trace(reason);
  }

  /**
   * Saves the MSRs of the store list: the processor's own, the TSC without the guest's offset (SDM 3C 25.6.5, 28.4).
   * @returns false when one cannot be stored
   */
  private storeMsrs(): boolean {
    const { cpu, vmcs, services } = this.unit;
    const count = vmcs.u32(W.STORE_COUNT);
    if (count === 0) return true;
    const { guest } = cpu;
    cpu.guest = null;
    const bad = storeMsrs(cpu.memory, services, vmcs.address(W.STORE_ADDR), count);
    cpu.guest = guest;
    return bad === 0;
  }

  /** Loads the host after a VM entry that failed late; only reason and qualification are recorded (SDM 3C 27.8). */
  failEntry(reason: number, qualification: number): void {
    const { unit } = this;
    unit.vmcs.set64(W.REASON, (reason | ENTRY_FAILURE) >>> 0, 0);
    unit.vmcs.set64(W.QUALIFICATION, qualification, 0);
    this.reset();
    unit.state.exitCounts[reason]++;
    // Blocking by NMI is what it was before the entry, which may have loaded the guest's already.
    const { state } = unit.cpu;
    const blocked = unit.cpu.guest ? unit.state.hostNmiBlocked : (state.lo(Off.INHIBIT) & Inhibit.NMI) !== 0;
    state.setU32(Off.INHIBIT, blocked ? Inhibit.NMI : 0);
    this.toHost(blocked);
  }

  private reset(): void {
    this.qualificationLo = 0;
    this.qualificationHi = 0;
    this.linearLo = 0;
    this.linearHi = 0;
    this.hasLinear = false;
    this.physical = -1;
    this.interruptInfo = 0;
    this.interruptError = 0;
    this.instructionLength = 0;
    this.instructionInfo = 0;
    this.rf = SavedRf.KEEP;
  }

  /** VM-exit information fields (SDM 3C 28.2). */
  private record(reason: number): void {
    const { vmcs, state } = this.unit;
    vmcs.set64(W.REASON, reason, 0);
    vmcs.set64(W.QUALIFICATION, this.qualificationLo, this.qualificationHi);
    vmcs.set64(W.LINEAR, this.linearLo, this.linearHi);
    if (this.physical >= 0) {
      vmcs.set64(W.PHYSICAL, (this.physical % 0x1_0000_0000) | 0, Math.floor(this.physical / 0x1_0000_0000));
    }
    vmcs.set64(W.INTR_INFO, this.interruptInfo, 0);
    vmcs.set64(W.INTR_ERROR, this.interruptError, 0);
    vmcs.set64(W.INSTRUCTION, this.instructionInfo, 0);
    const event = state.vectoring;
    let length = this.instructionLength;
    let vectoring = 0;
    let vectoringError = 0;
    // Delivery that ended in a double or triple fault is not what the exit happened in (SDM 3C 28.2.4).
    const doubleFault = reason === ExitReason.EXCEPTION_NMI && (this.interruptInfo & 0xff) === Vector.DF;
    if (event && !doubleFault && reason !== ExitReason.TRIPLE_FAULT) {
      vectoring = event.vector | (event.type << 8) | (1 << 31);
      // In real-address mode no event has an error code.
      if (event.error !== undefined && this.unit.cpu.state.lo(Off.CR0) & CR0_PE) {
        vectoring |= 1 << 11;
        vectoringError = event.error;
      }
      if (event.type >= 4 && event.type <= 6) length = event.instructionLength;
    }
    vmcs.set64(W.IDT_INFO, vectoring, 0);
    vmcs.set64(W.IDT_ERROR, vectoringError, 0);
    vmcs.set64(W.LENGTH, length, 0);
    // The event to inject has been dealt with (SDM 3C 28.2).
    vmcs.set32(W.ENTRY_INTR_INFO, vmcs.lo(W.ENTRY_INTR_INFO) & 0x7fff_ffff);
  }

  /** Guest-state area (SDM 3C 28.3). */
  private saveGuest(reason: number): void {
    const { unit } = this;
    const { vmcs } = unit;
    const { state } = unit.cpu;
    const i32 = vmcs.i32;
    const block = state.base >> 2;
    const region = vmcs.at;
    let written = 0;
    for (let p = 0; p < GUEST_PLANS.length; p++) written |= save(GUEST_PLANS[p], i32, block, region);

    const cr0 = state.lo(Off.CR0);
    const cr4 = state.lo(Off.CR4);
    if (((cr0 ^ vmcs.lo(W.CR0)) | (cr4 ^ vmcs.lo(W.CR4))) !== 0) written |= Reads.REGISTERS;
    vmcs.set32(W.CR0, cr0);
    vmcs.set32(W.CR4, cr4);

    const controls = vmcs.lo(W.EXIT);
    if (controls & VmExitControl.SAVE_DEBUG_CONTROLS) {
      const dr7 = state.lo(Off.DR7);
      const debugctl = state.lo(Off.DEBUGCTL);
      if (((dr7 ^ vmcs.lo(W.DR7)) | (debugctl ^ vmcs.lo(W.DEBUGCTL))) !== 0) written |= Reads.REGISTERS;
      vmcs.set64(W.DR7, dr7, 0);
      vmcs.set64(W.DEBUGCTL, debugctl, state.hi(Off.DEBUGCTL));
    }
    const efer = state.lo(Off.EFER);
    if (controls & VmExitControl.SAVE_IA32_EFER) {
      if (efer !== vmcs.lo(W.EFER)) written |= Reads.REGISTERS;
      vmcs.set64(W.EFER, efer, 0);
    }
    if (controls & VmExitControl.SAVE_IA32_PAT) {
      if (state.lo(Off.PAT) !== vmcs.lo(W.PAT) || state.hi(Off.PAT) !== vmcs.hi(W.PAT)) written |= Reads.REGISTERS;
      vmcs.set64(W.PAT, state.lo(Off.PAT), state.hi(Off.PAT));
    }
    // IA-32e mode of the guest follows EFER.LMA (IA32_VMX_MISC bit 5).
    const entry = vmcs.lo(W.ENTRY);
    const entryNow = efer & EFER_LMA ? entry | VmEntryControl.IA32E_MODE : entry & ~VmEntryControl.IA32E_MODE;
    if (entry !== entryNow) {
      vmcs.set32(W.ENTRY, entryNow);
      written |= Reads.CONTROLS;
    }
    const pae = cr0 & CR0_PG && cr4 & CR4_PAE && !(efer & EFER_LMA);
    if (pae && secondaryControls(vmcs) & SecondaryExec.ENABLE_EPT) written |= save(PDPTE_PLAN, i32, block, region);

    const ripHi = state.hi(Off.RIP);
    if (ripHi !== vmcs.hi(W.RIP)) written |= Reads.RIP;
    vmcs.set64(W.RIP, state.lo(Off.RIP), ripHi);
    let flags = state.rflags;
    if (this.rf === SavedRf.CLEAR) flags &= ~RF;
    else if (this.rf === SavedRf.SET) flags |= RF;
    if ((flags ^ vmcs.lo(W.RFLAGS)) & RFLAGS_CHECKED) written |= Reads.RIP;
    vmcs.set64(W.RFLAGS, flags, 0);

    // A triple fault leaves the activity state it was in: the exit replaces the shutdown.
    let activity = state.activity;
    if (activity === Activity.MWAIT || activity === Activity.SHUTDOWN) activity = Activity.ACTIVE;
    const inhibit = state.lo(Off.INHIBIT) & (Inhibit.STI | Inhibit.MOV_SS | Inhibit.NMI);
    const direct = reason === ExitReason.EXCEPTION_NMI;
    const hits = direct ? 0 : state.lo(Off.PENDING_DEBUG) & 0x400f;
    const pending = hits & 0xf ? hits | (1 << 12) : hits;
    const changed =
      (activity ^ vmcs.lo(W.ACTIVITY)) | (inhibit ^ vmcs.lo(W.INTERRUPTIBILITY)) | (pending ^ vmcs.lo(W.PENDING_DEBUG));
    if (changed !== 0) written |= Reads.STATE;
    vmcs.set32(W.ACTIVITY, activity);
    vmcs.set32(W.INTERRUPTIBILITY, inhibit);
    vmcs.set64(W.PENDING_DEBUG, pending, 0);

    const at = unit.state.preemptionAt;
    if (at >= 0 && controls & VmExitControl.SAVE_VMX_PREEMPTION_TIMER) {
      const left = Math.ceil((at - unit.cpu.clock.now) / (1 << PREEMPTION_TIMER_SHIFT));
      vmcs.set64(W.TIMER, Math.max(0, left) | 0, 0);
    }
    unit.state.written |= written;
  }

  /** An end to everything of VMX non-root operation that is not architectural state. */
  private leaveGuest(): void {
    const { unit } = this;
    const { cpu, state: data } = unit;
    unit.stopPreemptionTimer();
    data.injection = null;
    data.vectoring = null;
    data.mtf = 0;
    data.tprBelow = false;
    data.apicWrite = -1;
    data.virtualInterrupt = false;
    data.nmiUnblocked = false;
    cpu.guest = null;
    cpu.secondStage = null;
    cpu.state.setU32(Off.VMX_MODE, 1);
  }

  /** Host state (SDM 3C 28.5, 28.6) and an end to everything of the guest. */
  private toHost(nmiBlocked: boolean): void {
    const { unit } = this;
    const { cpu, vmcs } = unit;
    const { state } = cpu;
    const data = unit.state;
    const i32 = vmcs.i32;
    const block = state.base >> 2;
    const guestInhibit = state.lo(Off.INHIBIT);
    const virtualNmis = (vmcs.lo(W.PIN) & PinBased.VIRTUAL_NMIS) !== 0;
    const inGuest = cpu.guest !== null;
    const flush = inGuest && !(secondaryControls(vmcs) & SecondaryExec.ENABLE_VPID);

    const controls = vmcs.lo(W.EXIT);
    const host64 = (controls & VmExitControl.HOST_ADDR_SPACE_SIZE) !== 0;
    if (!host64 && state.lo(Off.EFER) & EFER_LMA) {
      this.abort(Abort.LEAVES_IA32E);
      return;
    }
    this.leaveGuest();
    load(HOST_PLAN, i32, block, vmcs.at);
    state.setLo(Off.CR0, (vmcs.lo(W.HOST_CR0) & ~CR0_KEPT) | (state.lo(Off.CR0) & CR0_KEPT));
    const cr4 = vmcs.lo(W.HOST_CR4);
    state.setLo(Off.CR4, host64 ? cr4 | CR4_PAE : cr4 & ~CR4_PCIDE);
    state.setLo(Off.DR7, DR7_RESET);
    state.setLo(Off.DEBUGCTL, 0);
    state.setHi(Off.DEBUGCTL, 0);
    state.setHi(Off.SYSENTER_CS, 0);
    if (controls & VmExitControl.LOAD_IA32_EFER) {
      state.setLo(Off.EFER, vmcs.lo(W.HOST_EFER));
    } else {
      const efer = state.lo(Off.EFER);
      state.setLo(Off.EFER, host64 ? efer | EFER_LMA | EFER_LME : efer & ~(EFER_LMA | EFER_LME));
    }
    if (controls & VmExitControl.LOAD_IA32_PAT) {
      state.setLo(Off.PAT, vmcs.lo(W.HOST_PAT));
      state.setHi(Off.PAT, vmcs.hi(W.HOST_PAT));
    }
    this.loadSegments(block, host64);
    state.setU32(Off.GDTR_LIMIT, 0xffff);
    state.setU32(Off.IDTR_LIMIT, 0xffff);
    state.rflags = 2;
    state.setU32(Off.CPL, 0);
    state.activity = Activity.ACTIVE;
    const blocked = nmiBlocked || (inGuest && (virtualNmis ? data.hostNmiBlocked : (guestInhibit & Inhibit.NMI) !== 0));
    state.setU32(Off.INHIBIT, blocked || (!inGuest && guestInhibit & Inhibit.NMI) ? Inhibit.NMI : 0);
    state.setLo(Off.PENDING_DEBUG, 0);
    state.setHi(Off.PENDING_DEBUG, 0);
    state.setLo(Off.PENDING, state.lo(Off.PENDING) & ~(Pending.DEBUG | Pending.MTF));
    const pae = !host64 && state.lo(Off.CR0) & CR0_PG && cr4 & CR4_PAE;
    if (pae && !this.loadHostPdptes()) {
      this.abort(Abort.HOST_PDPTE);
      return;
    }

    if (flush) cpu.mmu.invalidateTagged({ vpid: 0 });
    cpu.contextChanged();
    const loads = vmcs.u32(W.LOAD_COUNT);
    if (loads !== 0 && loadMsrs(cpu.memory, unit.services, vmcs.address(W.LOAD_ADDR), loads) !== 0) {
      this.abort(Abort.LOAD_MSR);
    }
    cpu.attention();
  }

  /** SDM 3C 28.5.2, table 28-17. */
  private loadSegments(block: number, host64: boolean): void {
    const { vmcs } = this.unit;
    const { state } = this.unit.cpu;
    const i32 = vmcs.i32;
    for (let s = 0; s < HOST_SEGMENTS.length; s += 2) {
      const selector = i32[vmcs.at + HOST_SEGMENTS[s + 1]];
      const at = block + HOST_SEGMENTS[s];
      i32[at + (SegPart.BASE >> 2)] = 0;
      i32[at + (SegPart.BASE >> 2) + 1] = 0;
      i32[at + (SegPart.LIMIT >> 2)] = -1;
      i32[at + (SegPart.ATTRIBUTES >> 2)] = selector === 0 ? NO_DATA : DATA;
      i32[at + (SegPart.SELECTOR >> 2)] = selector;
    }
    i32[block + CS_ATTRIBUTES] = CODE | (host64 ? SegAttr.L : SegAttr.DB);
    i32[block + TR_ATTRIBUTES] = BUSY_TSS;
    i32[block + TR_LIMIT] = 0x67;
    this.loadBase(Seg.FS, W.HOST_FS_BASE);
    this.loadBase(Seg.GS, W.HOST_GS_BASE);
    this.loadBase(Seg.TR, W.HOST_TR_BASE);
    state.setSegment(Seg.LDTR, 0, 0n, 0, SegAttr.UNUSABLE);
  }

  private loadBase(seg: number, field: number): void {
    const { state } = this.unit.cpu;
    const at = Off.SEG + seg * SEG_SIZE + SegPart.BASE;
    state.setLo(at, this.unit.vmcs.lo(field));
    state.setHi(at, this.unit.vmcs.hi(field));
  }

  /** A host with PAE paging loads its PDPTEs on VM exit (SDM 3C 28.5.4). @returns false when one is not legal */
  private loadHostPdptes(): boolean {
    const { cpu, vmcs } = this.unit;
    const base = vmcs.u32(W.HOST_CR3) & ~0x1f;
    for (let i = 0; i < 4; i++) {
      const at = cpu.memory.hostOffset((base >>> 0) + i * 8);
      const lo = at < 0 ? -1 : cpu.memory.i32[at >> 2];
      const hi = at < 0 ? -1 : cpu.memory.i32[(at >> 2) + 1];
      if (lo & 1 && (lo & 0x1e6 || !this.unit.capabilities.physicalOk(hi))) return false;
      cpu.state.setLo(Off.PDPTE + i * 8, lo);
      cpu.state.setHi(Off.PDPTE + i * 8, hi);
    }
    return true;
  }

  /** VMX abort: the indicator is written into the VMCS region and the processor shuts down (SDM 3C 28.7). */
  private abort(indicator: number): void {
    const { unit } = this;
    const { cpu } = unit;
    unit.vmcs.set32(AbortWord, indicator);
    this.leaveGuest();
    cpu.state.activity = Activity.SHUTDOWN;
    cpu.contextChanged();
    cpu.attention();
  }

  private trace(reason: number): void {
    const { cpu, vmcs } = this.unit;
    const { state } = cpu;
    const qualification = vmcs.u64(W.QUALIFICATION);
    const interruptInfo = vmcs.u32(W.INTR_INFO);
    const decoded = decodeQualification(reason, qualification, interruptInfo);
    const name = exitReasonName(reason);
    const rip = vmcs.u64(W.RIP);
    const detail: Record<string, bigint | number | string | boolean> = {
      ...decoded.parts,
      reason,
      reasonName: name,
      qualification,
      rip,
      guestRip: rip,
      length: BigInt(vmcs.u32(W.LENGTH)),
    };
    let text = decoded.text;
    if (reason === ExitReason.IO_INSTRUCTION && detail.input === false && detail.string === false) {
      const size = Number(detail.size);
      detail.value = BigInt.asUintN(size * 8, state.gpr(Gpr.RAX));
    } else if (reason === ExitReason.MSR_READ || reason === ExitReason.MSR_WRITE) {
      detail.msr = BigInt(state.gpr32(Gpr.RCX));
      detail.index = detail.msr;
      detail.write = reason === ExitReason.MSR_WRITE;
      text = `msr 0x${detail.msr.toString(16)}`;
      if (detail.write) detail.value = (BigInt(state.gpr32(Gpr.RDX)) << 32n) | BigInt(state.gpr32(Gpr.RAX));
    } else if (reason === ExitReason.EPT_VIOLATION || reason === ExitReason.EPT_MISCONFIG) {
      detail.gpa = vmcs.u64(W.PHYSICAL);
      detail.gla = vmcs.u64(W.LINEAR);
      text = `gpa 0x${detail.gpa.toString(16)} ${text}`.trim();
    } else if (reason === ExitReason.CPUID) {
      detail.leaf = BigInt(state.gpr32(Gpr.RAX));
      detail.subleaf = BigInt(state.gpr32(Gpr.RCX));
      text = `leaf 0x${detail.leaf.toString(16)}`;
    } else if (interruptInfo >>> 31) {
      detail.vector = BigInt(interruptInfo & 0xff);
      if (interruptInfo & (1 << 11)) detail.error = BigInt(vmcs.u32(W.INTR_ERROR));
    }
    cpu.trace.hit({ kind: TraceKind.VmExit, vcpu: cpu.id, text: text ? `${name} ${text}` : name, detail });
  }
}
