/**
 * VMX non-root operation: which instructions and events cause VM exits, with what information (SDM 3C chapter 26). The
 * controls are read from the VMCS each time, so that nothing is cached that a snapshot or the debugger would miss.
 */
import { NANOSECONDS_PER_INSTRUCTION } from "../../clock";
import { CpuFault, Vector } from "../cpu";
import type { CrAccess, GuestMode, SimpleIntercept } from "../guest-mode";
import { type Instruction, OperandKind, Rep } from "../isa/instruction";
import { Activity, Gpr, Inhibit, Off, Pending, Rflags } from "../state";
import { bitAt, ioExits, msrExits } from "./bitmaps";
import { EPTP_LIST_ENTRIES, EPTP_SWITCHING } from "./capabilities";
import { ControlRegisters } from "./control-registers";
import { CpuBased, PinBased, SecondaryExec, VmExitControl } from "./controls";
import { eptpOk } from "./entry-checks/controls";
import { type ExitRecorder, NMI_UNBLOCKING, SavedRf } from "./exit";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import * as info from "./instruction-info";
import { ALWAYS, BY_PRIMARY, BY_SECONDARY, POINTERS, SEGMENT_REGISTERS, TABLE_REGISTERS } from "./intercept-tables";
import type { VmxUnit } from "./unit";
import { VirtualApic } from "./virtual-apic";
import { secondaryControls, type Vmcs, word } from "./vmcs";

const PIN = word(Field.PIN_BASED_VM_EXEC_CONTROL);
const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const EXCEPTION_BITMAP = word(Field.EXCEPTION_BITMAP);
const PFEC_MASK = word(Field.PAGE_FAULT_ERROR_CODE_MASK);
const PFEC_MATCH = word(Field.PAGE_FAULT_ERROR_CODE_MATCH);
const EXIT_CONTROLS = word(Field.VM_EXIT_CONTROLS);
const VPID = word(Field.VIRTUAL_PROCESSOR_ID);
const TSC_OFFSET = word(Field.TSC_OFFSET);
const TSC_MULTIPLIER = word(Field.TSC_MULTIPLIER);
const APIC_ACCESS = word(Field.APIC_ACCESS_ADDR);
const PLE_GAP = word(Field.PLE_GAP);
const PLE_WINDOW = word(Field.PLE_WINDOW);
const XSS_BITMAP = word(Field.XSS_EXIT_BITMAP);
const VM_FUNCTIONS = word(Field.VM_FUNCTION_CONTROL);
const EPTP = word(Field.EPT_POINTER);
const EPTP_LIST = word(Field.EPTP_LIST_ADDRESS);
const EPTP_INDEX = word(Field.EPTP_INDEX);
const VMREAD_BITMAP = word(Field.VMREAD_BITMAP);
const VMWRITE_BITMAP = word(Field.VMWRITE_BITMAP);

const VALID = 1 << 31;
const ERROR_VALID = 1 << 11;
const CR0_PE = 1;
const CR4_TSD = 1 << 2;
const TASK_GATE = 3;
const IA32_XSS = 0xda0;

/** Event types (SDM 3C table 25-18). */
const EventType = {
  EXTERNAL_INTERRUPT: 0,
  NMI: 2,
  HARDWARE_EXCEPTION: 3,
  PRIVILEGED_SOFTWARE_EXCEPTION: 5,
  SOFTWARE_EXCEPTION: 6,
} as const;

export class VmxGuestMode implements GuestMode {
  readonly kind = "vmx";
  private readonly vmcs: Vmcs;
  private readonly exits: ExitRecorder;
  private readonly controlRegisters: ControlRegisters;
  readonly virtualApic: VirtualApic;

  constructor(private readonly unit: VmxUnit) {
    this.vmcs = unit.vmcs;
    this.exits = unit.exits;
    this.controlRegisters = new ControlRegisters(unit, (reason, i) => this.exitInstruction(reason, i));
    this.virtualApic = new VirtualApic(unit);
  }

  /** A VM entry has just loaded the guest. */
  entered(): void {
    this.unit.state.pauseFirst = 0;
    this.unit.state.pauseLast = -1;
  }

  private primary(control: number): boolean {
    return (this.vmcs.lo(CPU) & control) !== 0;
  }
  private secondary(control: number): boolean {
    return (secondaryControls(this.vmcs) & control) !== 0;
  }
  private pin(control: number): boolean {
    return (this.vmcs.lo(PIN) & control) !== 0;
  }

  /**
   * Exits that need no more than the instruction: CPUID and VMCALL, which have no fault of their own, and at CPL 0 HLT,
   * RDMSR, WRMSR, IN and OUT, which then have none before the exit.
   */
  takeEarlyExit(mnemonic: string, instruction: Instruction): boolean {
    const reason = this.earlyReason(mnemonic, instruction);
    if (reason < 0) return false;
    this.exits.instructionLength = instruction.length;
    this.exits.rf = SavedRf.CLEAR;
    this.exits.vmExit(reason);
    return true;
  }

  /** Exit reason of an early exit, its qualification recorded; -1 for none. */
  private earlyReason(mnemonic: string, instruction: Instruction): number {
    if (mnemonic === "CPUID") return ExitReason.CPUID;
    if (mnemonic === "VMCALL") return ExitReason.VMCALL;
    const { state } = this.unit.cpu;
    if (state.cpl !== 0) return -1;
    switch (mnemonic) {
      case "IN":
      case "OUT": {
        const input = mnemonic === "IN";
        const operand = instruction.operands[input ? 1 : 0];
        const size = instruction.operands[input ? 0 : 1].size;
        const immediate = operand.kind === OperandKind.IMMEDIATE;
        const port = immediate ? instruction.immediate & 0xff : state.gpr32(Gpr.RDX) & 0xffff;
        if (!ioExits(this.vmcs, this.unit.cpu.memory, port, size)) return -1;
        this.exits.qualificationLo = ioQualification(port, size, input) | (immediate ? 1 << 6 : 0);
        return ExitReason.IO_INSTRUCTION;
      }
      case "HLT":
        return this.primary(CpuBased.HLT_EXITING) ? ExitReason.HLT : -1;
      case "RDMSR":
        return msrExits(this.vmcs, this.unit.cpu.memory, state.gpr32(Gpr.RCX), false) ? ExitReason.MSR_READ : -1;
      case "WRMSR":
        return msrExits(this.vmcs, this.unit.cpu.memory, state.gpr32(Gpr.RCX), true) ? ExitReason.MSR_WRITE : -1;
      default:
        return -1;
    }
  }

  /** A fault-like exit of an instruction. */
  private exitInstruction(reason: number, instruction: Instruction): never {
    this.exits.instructionLength = instruction.length;
    this.exits.rf = SavedRf.CLEAR;
    return this.exits.exit(reason);
  }

  /** The same for one with a memory operand: its displacement is the qualification. */
  private exitWithOperand(reason: number, instruction: Instruction, instructionInfo: number): never {
    this.exits.setQualification(info.displacement(this.unit.cpu, instruction));
    this.exits.instructionInfo = instructionInfo;
    return this.exitInstruction(reason, instruction);
  }

  interceptInstruction(what: SimpleIntercept, instruction: Instruction): void {
    const always = ALWAYS[what];
    if (always !== undefined) this.exitInstruction(always, instruction);
    const byPrimary = BY_PRIMARY[what];
    if (byPrimary !== undefined) {
      if (this.primary(byPrimary[0])) this.exitInstruction(byPrimary[1], instruction);
      return;
    }
    const bySecondary = BY_SECONDARY[what];
    if (bySecondary !== undefined) {
      if (this.secondary(bySecondary[0])) this.exitInstruction(bySecondary[1], instruction);
      return;
    }
    const pointer = POINTERS[what];
    if (pointer !== undefined) this.exitWithOperand(pointer, instruction, info.pointerInfo(instruction));
    const table = TABLE_REGISTERS[what];
    if (table !== undefined) {
      if (!this.secondary(SecondaryExec.DESC)) return;
      this.exitWithOperand(ExitReason.GDTR_IDTR, instruction, info.tableRegisterInfo(instruction, table));
    }
    const selector = SEGMENT_REGISTERS[what];
    if (selector !== undefined) {
      if (!this.secondary(SecondaryExec.DESC)) return;
      this.exitWithOperand(ExitReason.LDTR_TR, instruction, info.segmentRegisterInfo(instruction, selector));
    }
    this.interceptOther(what, instruction);
  }

  private interceptOther(what: SimpleIntercept, instruction: Instruction): void {
    const { state } = this.unit.cpu;
    switch (what) {
      case "rdpid":
        if (!this.secondary(SecondaryExec.ENABLE_RDTSCP)) throw new CpuFault(Vector.UD);
        return;
      case "rdtscp":
        // #UD comes before all other faults, the exit behind those by privilege, which are the handler's (SDM 3C 26.3).
        if (!this.secondary(SecondaryExec.ENABLE_RDTSCP)) throw new CpuFault(Vector.UD);
        if (state.cpl !== 0 && state.lo(Off.CR4) & CR4_TSD) return;
        if (this.primary(CpuBased.RDTSC_EXITING)) this.exitInstruction(ExitReason.RDTSCP, instruction);
        return;
      case "invpcid":
        if (!this.secondary(SecondaryExec.ENABLE_INVPCID)) throw new CpuFault(Vector.UD);
        if (state.cpl !== 0 || !this.primary(CpuBased.INVLPG_EXITING)) return;
        this.exitWithOperand(ExitReason.INVPCID, instruction, info.invalidateInfo(instruction));
        break;
      case "invept":
        this.exitWithOperand(ExitReason.INVEPT, instruction, info.invalidateInfo(instruction));
        break;
      case "invvpid":
        this.exitWithOperand(ExitReason.INVVPID, instruction, info.invalidateInfo(instruction));
        break;
      case "vmread":
        this.exitWithOperand(ExitReason.VMREAD, instruction, info.vmcsAccessInfo(instruction, 0));
        break;
      case "vmwrite":
        this.exitWithOperand(ExitReason.VMWRITE, instruction, info.vmcsAccessInfo(instruction, 1));
        break;
      case "rdrand":
        if (!this.secondary(SecondaryExec.RDRAND_EXITING)) return;
        this.exits.instructionInfo = info.randomInfo(instruction);
        this.exitInstruction(ExitReason.RDRAND, instruction);
        break;
      case "rdseed":
        if (!this.secondary(SecondaryExec.RDSEED_EXITING)) return;
        this.exits.instructionInfo = info.randomInfo(instruction);
        this.exitInstruction(ExitReason.RDSEED, instruction);
        break;
      case "xsaves":
      case "xrstors":
        this.interceptSupervisorState(what, instruction);
        return;
      case "tpause":
      case "umwait":
      case "pconfig":
        // Their enabling controls cannot be 1 here: #UD in the guest (SDM 3C 26.3).
        throw new CpuFault(Vector.UD);
      case "iret":
        this.unit.state.nmiUnblocked = (this.unit.cpu.state.lo(Off.INHIBIT) & Inhibit.NMI) !== 0;
        return;
      case "pause":
        this.interceptPause(instruction);
        return;
      default:
    }
  }

  /** XSAVES and XRSTORS exit for components of EDX:EAX and IA32_XSS that the XSS-exiting bitmap has (SDM 3C 26.1.3). */
  private interceptSupervisorState(what: "xsaves" | "xrstors", instruction: Instruction): void {
    if (!this.secondary(SecondaryExec.ENABLE_XSAVES)) throw new CpuFault(Vector.UD);
    const { services, cpu } = this.unit;
    const { state } = cpu;
    const mask = (BigInt(state.gpr32(Gpr.RDX)) << 32n) | BigInt(state.gpr32(Gpr.RAX));
    if (
      (mask & this.vmcs.u64(XSS_BITMAP)) === 0n ||
      (mask & this.vmcs.u64(XSS_BITMAP) & services.readMsr(IA32_XSS)) === 0n
    )
      return;
    const reason = what === "xsaves" ? ExitReason.XSAVES : ExitReason.XRSTORS;
    this.exitWithOperand(reason, instruction, info.pointerInfo(instruction));
  }

  /** VMFUNC: the one function is EPTP switching (SDM 3C 26.5.6). */
  vmfunc(instruction: Instruction): void {
    const { vmcs, unit } = this;
    const { state } = unit.cpu;
    const number = state.gpr32(Gpr.RAX);
    if (!this.secondary(SecondaryExec.ENABLE_VMFUNC) || number > 63) throw new CpuFault(Vector.UD);
    const enabled = number === 0 && (vmcs.lo(VM_FUNCTIONS) & EPTP_SWITCHING) !== 0;
    const index = state.gpr32(Gpr.RCX);
    if (!enabled || index >= EPTP_LIST_ENTRIES) this.exitInstruction(ExitReason.VMFUNC, instruction);
    const at = unit.cpu.memory.hostOffset(vmcs.address(EPTP_LIST) + index * 8);
    const lo = at < 0 ? -1 : unit.cpu.memory.i32[at >> 2];
    const hi = at < 0 ? -1 : unit.cpu.memory.i32[(at >> 2) + 1];
    if (!eptpOk(lo >>> 0, hi, unit)) this.exitInstruction(ExitReason.VMFUNC, instruction);
    vmcs.set64(EPTP, lo, hi);
    vmcs.set32(EPTP_INDEX, index & 0xffff);
    unit.useEpt();
    unit.cpu.contextChanged();
  }

  /** VMCS shadowing: bits beyond 14 of the encoding, and those set in the bitmaps, exit (SDM 3C 26.1.3). */
  shadowsVmcs(encoding: bigint, write: boolean): boolean {
    if (!this.secondary(SecondaryExec.SHADOW_VMCS) || encoding > 0x7fffn) return false;
    const field = Number(encoding);
    const bitmap = this.vmcs.address(write ? VMWRITE_BITMAP : VMREAD_BITMAP);
    return !bitAt(this.unit.cpu.memory, bitmap, field);
  }

  virtualizeRdmsr(index: number): bigint | undefined {
    return this.virtualApic.readMsr(index);
  }

  virtualizeWrmsr(index: number, value: bigint): boolean {
    return this.virtualApic.writeMsr(index, value);
  }

  /** PAUSE exiting, and PAUSE-loop exiting at CPL 0 (SDM 3C 26.1.3). */
  private interceptPause(instruction: Instruction): void {
    if (this.primary(CpuBased.PAUSE_EXITING)) this.exitInstruction(ExitReason.PAUSE_INSTRUCTION, instruction);
    if (!this.secondary(SecondaryExec.PAUSE_LOOP_EXITING) || this.unit.cpu.state.cpl !== 0) return;
    const data = this.unit.state;
    const now = this.unit.cpu.clock.now;
    if (data.pauseLast < 0 || now - data.pauseLast > this.vmcs.u32(PLE_GAP)) data.pauseFirst = now;
    else if (now - data.pauseFirst > this.vmcs.u32(PLE_WINDOW)) {
      this.exitInstruction(ExitReason.PAUSE_INSTRUCTION, instruction);
    }
    data.pauseLast = now;
  }

  interceptCr(cr: number, access: CrAccess, value: bigint, instruction: Instruction, linear?: bigint): bigint {
    return this.controlRegisters.intercept(cr, access, value, instruction, linear);
  }

  interceptDr(dr: number, write: boolean, instruction: Instruction): void {
    if (!this.primary(CpuBased.MOV_DR_EXITING)) return;
    const register = instruction.operands.find((o) => o.kind === OperandKind.GPR)?.reg ?? 0;
    this.exits.qualificationLo = dr | (write ? 0 : 1 << 4) | (register << 8);
    this.exitInstruction(ExitReason.DR_ACCESS, instruction);
  }

  interceptIo(port: number, size: number, input: boolean, instruction: Instruction, linear?: bigint): void {
    if (!ioExits(this.vmcs, this.unit.cpu.memory, port, size)) return;
    let qualification = ioQualification(port, size, input);
    const string = linear !== undefined;
    if (string) {
      qualification |= 1 << 4;
      if (instruction.rep !== Rep.NONE) qualification |= 1 << 5;
      this.exits.setLinear(linear);
      this.exits.instructionInfo = info.stringIoInfo(instruction);
    } else if (instruction.operands.some((o) => o.kind === OperandKind.IMMEDIATE)) {
      qualification |= 1 << 6;
    }
    this.exits.qualificationLo = qualification;
    this.exitInstruction(ExitReason.IO_INSTRUCTION, instruction);
  }

  interceptMsr(index: number, write: boolean, instruction: Instruction): void {
    if (msrExits(this.vmcs, this.unit.cpu.memory, index >>> 0, write)) {
      this.exitInstruction(write ? ExitReason.MSR_WRITE : ExitReason.MSR_READ, instruction);
    }
  }

  interceptInvlpg(linear: bigint, instruction: Instruction): void {
    if (!this.primary(CpuBased.INVLPG_EXITING)) return;
    this.exits.setQualification(linear);
    this.exitInstruction(ExitReason.INVLPG, instruction);
  }

  interceptTaskSwitch(selector: number, source: number, instructionLength = 0): void {
    this.exits.qualificationLo = selector | (source << 30);
    this.exits.instructionLength = instructionLength;
    // An instruction's exit saves RF as 0; a task gate in the IDT is an event's (SDM 3C 28.3.3).
    if (source !== TASK_GATE) this.exits.rf = SavedRf.CLEAR;
    this.exits.exit(ExitReason.TASK_SWITCH);
  }

  interceptException(
    vector: number,
    error: number | undefined,
    extra: bigint,
    software: boolean,
    instructionLength = 0,
  ): void {
    if (!this.exceptionExits(vector, error ?? 0)) return;
    const { exits } = this;
    let type: number = EventType.HARDWARE_EXCEPTION;
    if (software) {
      type = vector === Vector.DB ? EventType.PRIVILEGED_SOFTWARE_EXCEPTION : EventType.SOFTWARE_EXCEPTION;
      exits.instructionLength = instructionLength;
    }
    // In real-address mode exceptions have no error codes (SDM 3C 28.2.2).
    const coded = error !== undefined && (this.unit.cpu.state.lo(Off.CR0) & CR0_PE) !== 0;
    exits.interruptInfo = vector | (type << 8) | (coded ? ERROR_VALID : 0) | VALID;
    exits.interruptError = coded ? error : 0;
    if (this.unblockedByIret && vector !== Vector.DF) exits.interruptInfo |= NMI_UNBLOCKING;
    if (vector === Vector.PF || vector === Vector.DB) exits.setQualification(extra);
    // Faults save RF as delivery would push it: 1, but for traps (SDM 3C 28.3.3).
    const trap = software || vector === Vector.DB || vector === Vector.BP || vector === Vector.OF;
    if (!trap) exits.rf = SavedRf.SET;
    exits.exit(ExitReason.EXCEPTION_NMI);
  }

  /** Exception bitmap; for page faults the error code decides which way its bit is meant (SDM 3C 25.6.3). */
  private exceptionExits(vector: number, error: number): boolean {
    const bit = ((this.vmcs.lo(EXCEPTION_BITMAP) >>> vector) & 1) !== 0;
    if (vector !== Vector.PF) return bit;
    const matches = (error & this.vmcs.lo(PFEC_MASK)) === this.vmcs.lo(PFEC_MATCH);
    return bit === matches;
  }

  interceptTripleFault(): void {
    this.exits.exit(ExitReason.TRIPLE_FAULT);
  }

  interceptExternalInterrupt(): boolean {
    if (!this.pin(PinBased.EXT_INTR_EXITING)) return true;
    const { cpu } = this.unit;
    if (this.vmcs.lo(EXIT_CONTROLS) & VmExitControl.ACK_INTR_ON_EXIT) {
      const virtual = this.virtualApic.interrupts;
      for (;;) {
        const vector = cpu.interrupts.acknowledge();
        if (!virtual.notifies(vector)) {
          this.exits.interruptInfo = (vector & 0xff) | VALID;
          break;
        }
        virtual.processPosted();
        if (cpu.interrupts.pending() >= 0) continue;
        virtual.deliver();
        return false;
      }
    }
    return this.exits.exit(ExitReason.EXTERNAL_INTERRUPT);
  }

  interceptNmi(): void {
    if (!this.pin(PinBased.NMI_EXITING)) return;
    this.clearPending(Pending.NMI);
    this.exits.interruptInfo = Vector.NMI | (EventType.NMI << 8) | VALID;
    this.exits.exit(ExitReason.EXCEPTION_NMI);
  }

  interceptInit(): void {
    this.clearPending(Pending.INIT);
    this.exits.exit(ExitReason.INIT_SIGNAL);
  }

  interceptSipi(vector: number): void {
    this.clearPending(Pending.SIPI);
    // Outside the wait-for-SIPI state a SIPI is dropped (SDM 3C 26.2).
    if (this.unit.cpu.state.activity !== Activity.WAIT_FOR_SIPI) return;
    this.exits.qualificationLo = vector & 0xff;
    this.exits.exit(ExitReason.SIPI_SIGNAL);
  }

  /** Default treatment of SMIs: no VM exit (SDM 3C 32.14). */
  interceptSmi(): void {}

  private clearPending(bit: number): void {
    const { state } = this.unit.cpu;
    state.setLo(Off.PENDING, state.lo(Off.PENDING) & ~bit);
  }

  boundary(): void {
    const { cpu, state: data } = this.unit;
    const { state } = cpu;
    this.afterIret();
    if (data.apicWrite >= 0) this.virtualApic.emulateWrite();
    if (data.injection !== null) this.inject();
    if (data.mtf === 1) {
      if (data.mtfFrom < 0) data.mtfFrom = cpu.retired;
      else if (cpu.retired > data.mtfFrom) data.mtf = 2;
    }
    const activity = state.activity;
    if (activity === Activity.WAIT_FOR_SIPI) return;
    // INIT comes before all that follows (SDM 3A table 6-2; 3C 26.5.1, 26.5.2).
    if (state.lo(Off.PENDING) & Pending.INIT) this.interceptInit();
    if (data.tprBelow) this.exits.exit(ExitReason.TPR_BELOW_THRESHOLD);
    if (data.mtf === 2) this.exits.exit(ExitReason.MONITOR_TRAP_FLAG);
    const pending = state.lo(Off.PENDING);
    // Debug traps come first; what follows gets its turn at the handler's first instruction (SDM 3A table 6-2).
    if (pending & Pending.DEBUG) return;
    if (data.preemptionAt >= 0 && cpu.clock.now >= data.preemptionAt) this.preemptionTimerExpired();
    const inhibit = state.lo(Off.INHIBIT);
    const shadow = (inhibit & (Inhibit.STI | Inhibit.MOV_SS)) !== 0;
    const controls = this.vmcs.lo(CPU);
    if (controls & CpuBased.NMI_WINDOW_EXITING && !shadow && !(inhibit & Inhibit.NMI)) {
      this.exits.exit(ExitReason.NMI_WINDOW);
    }
    if (pending & Pending.NMI && this.nmiOpen(inhibit)) {
      this.interceptNmi();
      return;
    }
    if (controls & CpuBased.INTR_WINDOW_EXITING && !shadow && state.lo(Off.FLAGS_REST) & Rflags.IF) {
      this.exits.exit(ExitReason.INTERRUPT_WINDOW);
    }
    this.virtualApic.interrupts.deliver();
  }

  quiet(): boolean {
    const data = this.unit.state;
    if (data.nmiUnblocked || data.apicWrite >= 0 || data.injection !== null || data.mtf !== 0) return false;
    if (data.tprBelow || data.virtualInterrupt) return false;
    const windows = CpuBased.NMI_WINDOW_EXITING | CpuBased.INTR_WINDOW_EXITING;
    if (this.vmcs.lo(CPU) & windows) return false;
    return data.preemptionAt < 0 || this.unit.cpu.clock.now < data.preemptionAt;
  }

  /**
   * The end of an IRET, or an exit in its middle. Without virtual NMIs, it does not touch blocking by NMI when NMIs exit
   * (SDM 3C 26.3).
   */
  afterIret(): void {
    const data = this.unit.state;
    if (!data.nmiUnblocked) return;
    data.nmiUnblocked = false;
    if (this.iretUnblocks) return;
    const { state } = this.unit.cpu;
    state.setLo(Off.INHIBIT, state.lo(Off.INHIBIT) | Inhibit.NMI);
  }

  private get iretUnblocks(): boolean {
    return !this.pin(PinBased.NMI_EXITING) || this.pin(PinBased.VIRTUAL_NMIS);
  }

  /** The IRET that runs now, and not the delivery of an event, has ended blocking by NMI (SDM 3C 28.2.3). */
  get unblockedByIret(): boolean {
    const data = this.unit.state;
    return data.nmiUnblocked && data.vectoring === null && this.iretUnblocks;
  }

  /** A physical NMI would be recognised: with virtual NMIs the guest's own blocking does not count (SDM 3C 26.2). */
  private nmiOpen(inhibit: number): boolean {
    if (inhibit & Inhibit.MOV_SS) return false;
    if (this.pin(PinBased.VIRTUAL_NMIS)) return !this.unit.state.hostNmiBlocked;
    return (inhibit & Inhibit.NMI) === 0;
  }

  /** Delivers the event of VM entry (SDM 3C 27.6.1). */
  private inject(): void {
    const { cpu, services, state: data } = this.unit;
    const event = data.injection;
    if (event === null) return;
    data.injection = null;
    cpu.state.activity = Activity.ACTIVE;
    let inhibit = cpu.state.lo(Off.INHIBIT) & ~(Inhibit.STI | Inhibit.MOV_SS);
    if (event.type === EventType.NMI) inhibit |= Inhibit.NMI;
    cpu.state.setLo(Off.INHIBIT, inhibit);
    data.vectoring = event;
    services.deliver(event);
    this.setVectoring(null);
  }

  get ignoresIf(): boolean {
    return this.pin(PinBased.EXT_INTR_EXITING);
  }

  /** The monitor trap flag exits behind the first iteration of a repeated string instruction (SDM 3C 26.5.2). */
  get stepsIterations(): boolean {
    return this.unit.state.mtf === 1;
  }

  iterated(): void {
    if (this.unit.state.mtf === 1) this.unit.state.mtf = 2;
  }

  instructionsToPreemption(): number {
    const data = this.unit.state;
    let count = Number.POSITIVE_INFINITY;
    if (data.mtf === 2) return 0;
    if (data.mtf === 1) count = data.mtfFrom >= 0 && this.unit.cpu.retired > data.mtfFrom ? 0 : 1;
    if (data.preemptionAt >= 0) {
      const left = Math.ceil((data.preemptionAt - this.unit.cpu.clock.now) / NANOSECONDS_PER_INSTRUCTION);
      count = Math.min(count, Math.max(0, left));
    }
    return count;
  }

  preemptionTimerExpired(): void {
    const { cpu, state: data } = this.unit;
    if (data.mtf === 2 || (data.mtf === 1 && data.mtfFrom >= 0 && cpu.retired > data.mtfFrom)) {
      this.exits.exit(ExitReason.MONITOR_TRAP_FLAG);
    }
    if (data.preemptionAt >= 0 && cpu.clock.now >= data.preemptionAt) this.exits.exit(ExitReason.PREEMPTION_TIMER);
  }

  setVectoring(event: { vector: number; type: number; error?: number; instructionLength: number } | null): void {
    const data = this.unit.state;
    // An event delivered through the IDT counts as the step the monitor trap flag waits for (SDM 3C 26.5.2).
    if (event === null && data.vectoring !== null && data.mtf === 1) {
      data.mtf = 2;
      this.unit.cpu.attention();
    }
    data.vectoring = event;
  }

  adjustTsc(tsc: bigint): bigint {
    if (!this.primary(CpuBased.USE_TSC_OFFSETTING)) return tsc;
    let value = tsc;
    if (this.secondary(SecondaryExec.TSC_SCALING)) value = (value * this.vmcs.u64(TSC_MULTIPLIER)) >> 48n;
    return BigInt.asUintN(64, value + this.vmcs.u64(TSC_OFFSET));
  }

  readTprShadow(): number | undefined {
    return this.virtualApic.readTpr();
  }

  writeTprShadow(value: number): boolean {
    return this.virtualApic.writeTpr(value);
  }

  get addressSpaceTag(): number {
    return this.secondary(SecondaryExec.ENABLE_VPID) ? this.vmcs.lo(VPID) : 0;
  }

  get apicAccessPage(): number {
    return this.secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES) ? this.vmcs.address(APIC_ACCESS) : -1;
  }

  apicFetch(linear: bigint): never {
    return this.virtualApic.fetch(linear);
  }

  apicAccess(_pa: number, offset: number, size: number, write: boolean, linear: bigint): boolean {
    return this.virtualApic.access(offset, size, write, linear);
  }
}

/** Size, direction and port of an I/O exit (SDM 3C table 28-5). */
const ioQualification = (port: number, size: number, input: boolean): number =>
  (size - 1) | (input ? 8 : 0) | (port << 16);
