/**
 * The VMX unit of one processor: VMX operation, the current VMCS, and the doors to VM entry and exit. The emulated VMX
 * instructions and the KVM model both come through here. SDM 3C chapters 24 to 31.
 */
import type { ClockEvent } from "../../clock";
import { TraceKind } from "../../trace";
import { type Cpu, CpuFault, Vector } from "../cpu";
import { Off } from "../state";
import { VmxCapabilities } from "./capabilities";
import { SecondaryExec } from "./controls";
import { enterGuest } from "./entry";
import { EntryState, READS_ALL } from "./entry-checks/check";
import { eptpOk } from "./entry-checks/controls";
import { allFailures } from "./entry-checks/index";
import { Ept } from "./ept";
import { ExitRecorder } from "./exit";
import { EXIT_REASON_COUNT } from "./exit-reasons";
import { FIELD_OFFSETS, Field, VMCS_FIELDS, vmcsField } from "./fields";
import { VmxGuestMode } from "./guest-mode";
import type { MsrAccess } from "./msr-lists";
import { type WriteEffect, writeEffect } from "./transfer";
import { VmError } from "./vm-instruction-errors";
import {
  highHalf,
  isCanonical,
  LaunchWord,
  lowHalf,
  RevisionWord,
  SHADOW_VMCS,
  secondaryControls,
  VMCS_REVISION,
  Vmcs,
  word,
} from "./vmcs";
import {
  type FailedCheck,
  VM_FAIL_INVALID,
  VM_SUCCEED,
  type Vmx,
  type VmxEvent,
  type VmxResult,
  type VmxState,
} from "./vmx";

/** What the unit needs of the rest of the processor (cpu/system). */
export interface VmxServices extends MsrAccess {
  /** Delivers an event through the guest's IDT, as an injected one: not subject to the exception bitmap itself. */
  deliver(event: VmxEvent): void;
}

/** Off.VMX_MODE. */
const VmxMode = { OFF: 0, ROOT: 1, GUEST: 2 } as const;

const FEATURE_CONTROL_LOCKED = 1;
const FEATURE_CONTROL_VMXON = 4;
const ERROR_WORD = word(Field.VM_INSTRUCTION_ERROR);
const EPTP_WORD = word(Field.EPT_POINTER);
const LINK_WORD = word(Field.VMCS_LINK_POINTER);

/** What VMREAD and VMWRITE need to know of a field, by encoding without its access-type bit. */
interface FieldAccess {
  readonly word: number;
  readonly encoding: number;
  /** Bits 14:13 of the encoding. */
  readonly width: number;
  readonly effect: WriteEffect;
}

export function newVmxState(): VmxState {
  return {
    written: READS_ALL,
    injection: null,
    vectoring: null,
    preemptionAt: -1,
    mtf: 0,
    mtfFrom: -1,
    tprBelow: false,
    apicWrite: -1,
    virtualInterrupt: false,
    hostNmiBlocked: false,
    nmiUnblocked: false,
    pauseFirst: 0,
    pauseLast: 0,
    exitCounts: new Float64Array(EXIT_REASON_COUNT),
    lastFailure: [],
  };
}

export class VmxUnit implements Vmx {
  readonly capabilities: VmxCapabilities;
  readonly vmcs: Vmcs;
  readonly ept: Ept;
  readonly guestMode: VmxGuestMode;
  readonly exits: ExitRecorder;
  readonly checks: EntryState;
  /** Name of the unit's clock events. */
  readonly clockOwner: string;
  /** Result of readHalves. */
  valueLo = 0;
  valueHi = 0;
  private readonly eptModes = { userExecute: false, logging: false };
  private data: VmxState = newVmxState();
  private readonly access: (FieldAccess | undefined)[] = new Array(0x4000).fill(undefined);

  /** `cpu` needs its state, model, memory and clock already. */
  constructor(
    readonly cpu: Cpu,
    readonly services: VmxServices,
  ) {
    this.capabilities = new VmxCapabilities(cpu.model);
    this.vmcs = new Vmcs(cpu.memory);
    this.exits = new ExitRecorder(this);
    this.ept = new Ept(cpu.memory, cpu.model.physicalBits, this.exits);
    this.guestMode = new VmxGuestMode(this);
    this.checks = new EntryState(this.vmcs, this.capabilities, cpu.memory, () => this.hostLongMode());
    for (const row of VMCS_FIELDS) {
      if (!this.capabilities.hasField(row)) continue;
      this.access[row.encoding >> 1] = {
        word: row.offset >> 2,
        encoding: row.encoding,
        width: (row.encoding >> 13) & 3,
        effect: writeEffect(row.encoding),
      };
    }
    this.clockOwner = `vmx${cpu.id}`;
    cpu.clock.register(this.clockOwner, { onClockEvent: (kind) => this.onClockEvent(kind) });
    cpu.state.setU64(Off.VMCS_POINTER, -1n);
    cpu.state.setU64(Off.VMXON_POINTER, -1n);
  }

  get state(): VmxState {
    return this.data;
  }

  /** Takes over a snapshot; the processor's block must already be that of the snapshot. */
  set state(state: VmxState) {
    this.data = state;
    this.derive();
  }

  /** Works out everything cached from the block and the VMCS. */
  private derive(): void {
    this.vmcs.at = this.regionWord(this.currentVmcs);
    const guest = this.mode === VmxMode.GUEST && this.vmcs.at >= 0;
    this.cpu.guest = guest ? this.guestMode : null;
    this.cpu.secondStage = null;
    if (guest && secondaryControls(this.vmcs) & SecondaryExec.ENABLE_EPT) {
      this.useEpt();
    }
  }

  /** Translates by the EPT pointer and the controls of the current VMCS. */
  useEpt(): void {
    const { eptModes } = this;
    const secondary = secondaryControls(this.vmcs);
    eptModes.userExecute = (secondary & SecondaryExec.MODE_BASED_EPT_EXEC) !== 0;
    eptModes.logging = (secondary & SecondaryExec.ENABLE_PML) !== 0;
    this.ept.setPointer(this.vmcs.lo(EPTP_WORD), this.vmcs.hi(EPTP_WORD), eptModes);
    this.cpu.secondStage = this.ept;
  }

  private regionWord(pa: number): number {
    const host = pa < 0 ? -1 : this.cpu.memory.hostOffset(pa);
    return host < 0 ? -1 : host >> 2;
  }

  get mode(): number {
    return this.cpu.state.u32(Off.VMX_MODE);
  }
  get on(): boolean {
    return this.mode !== VmxMode.OFF;
  }
  get exitCounts(): Float64Array {
    return this.data.exitCounts;
  }
  get lastFailure(): readonly FailedCheck[] {
    return this.data.lastFailure;
  }
  get currentVmcs(): number {
    return this.pointer(Off.VMCS_POINTER);
  }

  private pointer(offset: number): number {
    const hi = this.cpu.state.hi(offset);
    return hi === -1 ? -1 : (hi & 0xfffff) * 0x1_0000_0000 + this.cpu.state.u32(offset);
  }

  private setPointer(offset: number, pa: number): void {
    this.cpu.state.setU64(offset, BigInt(pa));
  }

  capability(index: number): bigint {
    return this.hasCapability(index) ? (this.capabilities.msr(index) as bigint) : 0n;
  }

  hasCapability(index: number): boolean {
    return this.cpu.model.features.has("vmx") && this.capabilities.msr(index) !== undefined;
  }

  /** The host is in IA-32e mode. A model in TypeScript counts as 64-bit code; in a guest its VMCS tells. */
  private hostLongMode(): boolean {
    if (this.mode === VmxMode.GUEST) return this.checks.host64;
    return this.cpu.hostIsModel || (this.cpu.state.u32(Off.EFER) & 0x400) !== 0;
  }

  crAllowed(cr: 0 | 4, value: bigint): boolean {
    if (!this.on) return true;
    const lo = Number(value & 0xffff_ffffn);
    const hi = Number(value >> 32n);
    if (cr === 4) return this.capabilities.cr4Allowed(lo, hi);
    const unrestricted =
      this.mode === VmxMode.GUEST && (secondaryControls(this.vmcs) & SecondaryExec.UNRESTRICTED_GUEST) !== 0;
    return this.capabilities.cr0Allowed(lo, hi, unrestricted);
  }

  reset(): void {
    const counts = this.data.exitCounts;
    this.stopPreemptionTimer();
    this.cpu.state.setU32(Off.VMX_MODE, VmxMode.OFF);
    this.cpu.state.setU64(Off.VMCS_POINTER, -1n);
    this.cpu.state.setU64(Off.VMXON_POINTER, -1n);
    this.data = { ...newVmxState(), exitCounts: counts };
    this.derive();
  }

  /** VMfailInvalid without a current VMCS, else VMfailValid with this error number (SDM 3C 31.2). */
  failure(error: number): VmxResult {
    if (this.vmcs.at < 0) return VM_FAIL_INVALID;
    this.vmcs.set64(ERROR_WORD, error, 0);
    return error;
  }

  private pageAddressOk(pa: number): boolean {
    return pa >= 0 && pa % 4096 === 0 && pa < 2 ** this.cpu.model.physicalBits;
  }

  private revisionAt(pa: number): number {
    const at = this.regionWord(pa);
    return at < 0 ? -1 : this.cpu.memory.u32[at + RevisionWord];
  }

  /** SDM 3C 31.3 VMXON. Mode and CPL (#UD, #GP) were looked at by the instruction. */
  vmxon(region: number | (() => number)): VmxResult {
    const state = this.cpu.state;
    if (this.on) return this.failure(VmError.VMXON_IN_ROOT);
    const enabled = FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMXON;
    if (
      (state.u32(Off.FEATURE_CONTROL) & enabled) !== enabled ||
      !this.capabilities.cr0Allowed(state.lo(Off.CR0), state.hi(Off.CR0), false) ||
      !this.capabilities.cr4Allowed(state.lo(Off.CR4), state.hi(Off.CR4))
    ) {
      throw new CpuFault(Vector.GP, 0);
    }
    const pa = typeof region === "number" ? region : region();
    if (!this.pageAddressOk(pa) || this.revisionAt(pa) !== VMCS_REVISION) return VM_FAIL_INVALID;
    state.setU32(Off.VMX_MODE, VmxMode.ROOT);
    this.setPointer(Off.VMXON_POINTER, pa);
    this.leaveVmcs();
    return VM_SUCCEED;
  }

  vmxoff(): VmxResult {
    this.cpu.state.setU32(Off.VMX_MODE, VmxMode.OFF);
    this.cpu.state.setU64(Off.VMXON_POINTER, -1n);
    this.leaveVmcs();
    // An INIT may have been waiting for the end of VMX operation (SDM 3C 24.8).
    this.cpu.attention();
    return VM_SUCCEED;
  }

  private leaveVmcs(): void {
    this.cpu.state.setU64(Off.VMCS_POINTER, -1n);
    this.vmcs.at = -1;
  }

  vmclear(pa: number): VmxResult {
    if (!this.pageAddressOk(pa)) return this.failure(VmError.VMCLEAR_INVALID_ADDRESS);
    if (pa === this.pointer(Off.VMXON_POINTER)) return this.failure(VmError.VMCLEAR_VMXON_POINTER);
    const at = this.regionWord(pa);
    if (at >= 0) this.cpu.memory.i32[at + LaunchWord] = 0;
    if (pa === this.currentVmcs) this.leaveVmcs();
    return VM_SUCCEED;
  }

  vmptrld(pa: number): VmxResult {
    if (!this.pageAddressOk(pa)) return this.failure(VmError.VMPTRLD_INVALID_ADDRESS);
    if (pa === this.pointer(Off.VMXON_POINTER)) return this.failure(VmError.VMPTRLD_VMXON_POINTER);
    const revision = this.revisionAt(pa);
    if (revision !== VMCS_REVISION && revision !== VMCS_REVISION + SHADOW_VMCS) {
      return this.failure(VmError.VMPTRLD_INCORRECT_VMCS_REVISION_ID);
    }
    if (pa === this.currentVmcs) return VM_SUCCEED;
    this.setPointer(Off.VMCS_POINTER, pa);
    this.vmcs.at = this.regionWord(pa);
    this.data.written = READS_ALL;
    return VM_SUCCEED;
  }

  /** Whether the current VMCS has been launched (its launch state); false without one. */
  get launched(): boolean {
    return this.vmcs.at >= 0 && this.vmcs.lo(LaunchWord) !== 0;
  }

  private fieldAccess(encoding: number): FieldAccess | undefined {
    if (encoding < 0 || encoding > 0x7fff) return undefined;
    const field = this.access[encoding >> 1];
    // Only 64-bit fields have a "high" access type.
    return field !== undefined && (encoding & 1) === 1 && field.width !== 1 ? undefined : field;
  }

  vmread(encoding: number): bigint | VmxResult {
    if (this.vmcs.at < 0) return VM_FAIL_INVALID;
    const field = this.fieldAccess(encoding);
    if (!field) return this.failure(VmError.UNSUPPORTED_VMCS_COMPONENT);
    if (encoding & 1) return BigInt(this.vmcs.hi(field.word) >>> 0);
    return this.vmcs.u64(field.word);
  }

  vmwrite(encoding: number, value: bigint): VmxResult {
    return this.writeHalves(encoding, lowHalf(value), highHalf(value));
  }

  readHalves(encoding: number): VmxResult {
    if (this.vmcs.at < 0) return VM_FAIL_INVALID;
    const field = this.fieldAccess(encoding);
    if (!field) return this.failure(VmError.UNSUPPORTED_VMCS_COMPONENT);
    const high = this.vmcs.hi(field.word);
    const upper = (encoding & 1) !== 0;
    this.valueLo = upper ? high : this.vmcs.lo(field.word);
    this.valueHi = upper ? 0 : high;
    return VM_SUCCEED;
  }

  writeHalves(encoding: number, lo: number, hi: number): VmxResult {
    if (this.vmcs.at < 0) return VM_FAIL_INVALID;
    const field = this.fieldAccess(encoding);
    if (!field) return this.failure(VmError.UNSUPPORTED_VMCS_COMPONENT);
    if (encoding & 1) this.store(field, this.vmcs.lo(field.word), lo);
    else this.store(field, lo, hi);
    return VM_SUCCEED;
  }

  /** Stores a field, cut to its width, and notes which checks must be made again. */
  private store(field: FieldAccess, lo: number, hi: number): void {
    const { vmcs } = this;
    const w = field.word;
    const newLo = field.width === 0 ? lo & 0xffff : lo;
    const newHi = field.width === 0 || field.width === 2 ? 0 : hi;
    const effect = field.effect;
    const changed = ((vmcs.lo(w) ^ newLo) & ~effect.harmlessLo) | ((vmcs.hi(w) ^ newHi) & ~effect.harmlessHi);
    if (changed !== 0) this.data.written |= effect.group;
    vmcs.set64(w, newLo, newHi);
  }

  /** Word of the VMCS that the link pointer names, -1 when there is none. */
  private linkedRegion(): number {
    const { vmcs } = this;
    if (vmcs.lo(LINK_WORD) === -1 && vmcs.hi(LINK_WORD) === -1) return -1;
    return this.regionWord(vmcs.address(LINK_WORD));
  }

  /** VMfailValid in a guest is told to the shadow VMCS, the one its VMREAD reads. */
  private shadowFailure(region: number, error: number): VmxResult {
    this.cpu.memory.i32[region + ERROR_WORD] = error;
    return error;
  }

  shadowRead(encoding: number): bigint | VmxResult {
    const region = this.linkedRegion();
    if (region < 0) return VM_FAIL_INVALID;
    const field = this.fieldAccess(encoding);
    if (!field) return this.shadowFailure(region, VmError.UNSUPPORTED_VMCS_COMPONENT);
    const { u32 } = this.cpu.memory;
    const high = BigInt(u32[region + field.word + 1]);
    return encoding & 1 ? high : (high << 32n) | BigInt(u32[region + field.word]);
  }

  shadowWrite(encoding: number, value: bigint): VmxResult {
    const region = this.linkedRegion();
    if (region < 0) return VM_FAIL_INVALID;
    const field = this.fieldAccess(encoding);
    if (!field) return this.shadowFailure(region, VmError.UNSUPPORTED_VMCS_COMPONENT);
    const { i32 } = this.cpu.memory;
    const at = region + field.word;
    if (encoding & 1) i32[at + 1] = lowHalf(value);
    else {
      i32[at] = field.width === 0 ? lowHalf(value) & 0xffff : lowHalf(value);
      i32[at + 1] = field.width === 0 || field.width === 2 ? 0 : highHalf(value);
    }
    return VM_SUCCEED;
  }

  enter(resume: boolean): VmxResult {
    // A shadow VMCS cannot be entered.
    if (this.vmcs.at < 0 || this.vmcs.lo(RevisionWord) < 0) return VM_FAIL_INVALID;
    return enterGuest(this, resume);
  }

  invept(type: number, eptp: bigint): VmxResult {
    if (type === 1) {
      const lo = Number(eptp & 0xffff_ffffn);
      if (!eptpOk(lo, Number(eptp >> 32n), this)) return this.failure(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
      this.cpu.mmu.invalidateTagged({ eptp });
      return VM_SUCCEED;
    }
    if (type !== 2) return this.failure(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
    this.cpu.mmu.invalidateTagged({});
    return VM_SUCCEED;
  }

  invvpid(type: number, vpid: number, linear: bigint): VmxResult {
    const bad = () => this.failure(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
    if (type < 0 || type > 3) return bad();
    if (type !== 2 && (vpid === 0 || vpid > 0xffff)) return bad();
    if (type === 0 && !isCanonical(highHalf(linear), this.cpu.model.linearBits)) return bad();
    if (type === 0) this.cpu.mmu.invalidateTagged({ vpid, linear });
    else if (type === 1) this.cpu.mmu.invalidateTagged({ vpid });
    else if (type === 3) this.cpu.mmu.invalidateTagged({ vpid, keepGlobals: true });
    else this.cpu.mmu.invalidateTagged({});
    return VM_SUCCEED;
  }

  peek(pa: number, encoding: number): bigint {
    const at = this.regionWord(pa);
    const offset = FIELD_OFFSETS[(encoding & 0x7fff) >> 1];
    if (at < 0 || offset < 0) return 0n;
    const w = at + (offset >> 2);
    const u32 = this.cpu.memory.u32;
    return (BigInt(u32[w + 1]) << 32n) | BigInt(u32[w]);
  }

  poke(pa: number, encoding: number, value: bigint): void {
    const at = this.regionWord(pa);
    const row = vmcsField(encoding);
    if (at < 0 || !row) return;
    const bits = row.width === "natural" ? 64 : row.width;
    this.cpu.memory.view.setBigUint64(at * 4 + row.offset, BigInt.asUintN(bits, value), true);
    if (pa === this.currentVmcs) this.data.written = READS_ALL;
  }

  checkEntry(): readonly FailedCheck[] {
    return this.vmcs.at < 0 ? [] : allFailures(this.checks);
  }

  /** Starts the VMX-preemption timer (SDM 3C 26.5.1); it also runs while the guest is halted. */
  startPreemptionTimer(at: number): void {
    this.data.preemptionAt = at;
    this.cpu.clock.schedule(this.clockOwner, "preemption-timer", at);
  }

  stopPreemptionTimer(): void {
    if (this.data.preemptionAt < 0) return;
    this.data.preemptionAt = -1;
    this.cpu.clock.cancel(this.clockOwner, "preemption-timer");
  }

  private onClockEvent(kind: ClockEvent["kind"]): void {
    if (kind === "preemption-timer") this.cpu.attention();
  }

  /** Tells listeners of a failed VM entry; `what` is the headline. */
  traceEntryFailure(what: string, reason: number): void {
    const { trace } = this.cpu;
    if (!(trace.armed & TraceKind.VmEntryFailed)) return;
    const failed = this.data.lastFailure;
    trace.hit({
      kind: TraceKind.VmEntryFailed,
      vcpu: this.cpu.id,
      text: what,
      detail: {
        reason,
        checks: failed.map((check) => check.id).join(" "),
        report: failed.map((check) => `${check.id} (${check.section}): ${check.message}`).join("\n"),
      },
    });
  }
}
