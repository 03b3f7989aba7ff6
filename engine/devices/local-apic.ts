/**
 * Local APIC in xAPIC and x2APIC mode (SDM 3A chapter 10). Registers are kept as the 4-KiB register page has them, one
 * 32-bit word per 16 bytes, so that the page can be copied out as it is.
 *
 * Its timer counts the 1 GHz bus clock, one tick a nanosecond, divided by the divide configuration register.
 */
import type { VirtualClock } from "../clock";
import { type ApicBus, type ApicTarget, DeliveryMode } from "./apic-bus";
import type { Registers, Stateful } from "./chip";

/** Physical address of the registers after reset. */
export const LOCAL_APIC_BASE = 0xfee00000;

/** Register offsets in the page (SDM 3A table 10-1). x2APIC MSR = 0x800 + (offset >> 4). */
export const ApicReg = {
  ID: 0x20,
  VERSION: 0x30,
  TPR: 0x80,
  APR: 0x90,
  PPR: 0xa0,
  EOI: 0xb0,
  RRD: 0xc0,
  LDR: 0xd0,
  DFR: 0xe0,
  SVR: 0xf0,
  ISR: 0x100,
  TMR: 0x180,
  IRR: 0x200,
  ESR: 0x280,
  CMCI: 0x2f0,
  ICR_LOW: 0x300,
  ICR_HIGH: 0x310,
  LVT_TIMER: 0x320,
  LVT_THERMAL: 0x330,
  LVT_PERF: 0x340,
  LVT_LINT0: 0x350,
  LVT_LINT1: 0x360,
  LVT_ERROR: 0x370,
  INITIAL_COUNT: 0x380,
  CURRENT_COUNT: 0x390,
  DIVIDE: 0x3e0,
  SELF_IPI: 0x3f0,
} as const;

/** Bits of an LVT entry (SDM 3A 10.5.1). */
export const Lvt = { VECTOR: 0xff, MODE_SHIFT: 8, LEVEL: 1 << 15, MASKED: 1 << 16, TIMER_SHIFT: 17 } as const;
const TimerMode = { ONE_SHOT: 0, PERIODIC: 1, TSC_DEADLINE: 2 } as const;

/** Error status bits (SDM 3A 10.5.3). */
const ApicError = {
  SEND_ILLEGAL_VECTOR: 1 << 5,
  RECEIVE_ILLEGAL_VECTOR: 1 << 6,
  ILLEGAL_REGISTER: 1 << 7,
} as const;

const SVR_ENABLE = 1 << 8;
const SVR_SUPPRESS_EOI = 1 << 12;
/** Version 0x14, six LVT entries (SDM 3A 10.4.8). */
const VERSION = 0x00050014;
const VERSION_SUPPRESS_EOI = 1 << 24;

const BASE_BSP = 1n << 8n;
const BASE_X2APIC = 1n << 10n;
const BASE_ENABLE = 1n << 11n;

const MSR_APIC_BASE = 0x1b;
const MSR_TSC_DEADLINE = 0x6e0;

/** Bits software may write in each LVT entry; delivery status (12) and remote IRR (14) are read-only. */
const LVT_WRITABLE: Readonly<Record<number, number>> = {
  [ApicReg.LVT_TIMER]: 0x700ff,
  [ApicReg.LVT_THERMAL]: 0x107ff,
  [ApicReg.LVT_PERF]: 0x107ff,
  [ApicReg.LVT_LINT0]: 0x1a7ff,
  [ApicReg.LVT_LINT1]: 0x1a7ff,
  [ApicReg.LVT_ERROR]: 0x100ff,
};
const LVT_ENTRIES = Object.keys(LVT_WRITABLE).map(Number);

/** Registers and timer. */
export interface LocalApicState {
  /** Physical id; 8 bits are visible in xAPIC mode. */
  id: number;
  /** IA32_APIC_BASE. */
  base: bigint;
  /** The register page, word `offset >> 4` at index `offset >> 4`; ISR, TMR, IRR, LVTs and all stored registers. */
  registers: Uint32Array;
  /** Errors since the last write of ESR. */
  errors: number;
  /** Virtual time (ns) at which the current timer period began; -1 when the timer is stopped. */
  timerStart: number;
  /** IA32_TSC_DEADLINE while armed, else 0. */
  tscDeadline: bigint;
  /** Levels of LINT0 and LINT1. */
  lint: [boolean, boolean];
}

/** What the local APIC does to its processor. */
export interface ApicCore {
  /** The answer of `pending` may have changed. */
  attention(): void;
  signal(event: "nmi" | "init" | "sipi" | "smi", vector?: number): void;
  /** Virtual time (ns) at which the processor's TSC reaches `tsc`; may be in the past. */
  timeOfTsc(tsc: bigint): number;
}

/** What tells one local APIC from another. */
export interface LocalApicOptions {
  readonly id: number;
  /** Bootstrap processor: IA32_APIC_BASE.BSP, and LINT0 passes the 8259's interrupts as firmware leaves it. */
  readonly bsp: boolean;
  readonly x2apic: boolean;
  /** EOI broadcasts can be suppressed: the I/O APICs have EOI registers. */
  readonly suppressesEoi: boolean;
  readonly tscDeadline: boolean;
  /** Shortest period (ns) of the timer in periodic mode; absent: any. */
  readonly minimumPeriod?: number;
  /** MAXPHYADDR: what IA32_APIC_BASE may hold. */
  readonly physicalBits: number;
  readonly clock: VirtualClock;
  /** Name of this APIC in the clock's event queue. */
  readonly owner: string;
  readonly bus: ApicBus;
  readonly core: ApicCore;
}

/** One processor's local APIC, xAPIC and x2APIC (SDM 3A chapter 10). */
export class LocalApic implements Stateful<LocalApicState>, Registers, ApicTarget {
  state: LocalApicState;

  constructor(private readonly options: LocalApicOptions) {
    this.state = {
      id: options.id,
      base: BigInt(LOCAL_APIC_BASE) | BASE_ENABLE | (options.bsp ? BASE_BSP : 0n),
      registers: new Uint32Array(64),
      errors: 0,
      timerStart: -1,
      tscDeadline: 0n,
      lint: [false, false],
    };
    this.clearRegisters();
    options.clock.register(options.owner, this);
  }

  /** INIT (SDM 3A 10.4.7.3): everything but the id and IA32_APIC_BASE. */
  initReset(): void {
    this.clearRegisters();
  }

  /** Power-up (SDM 3A 10.4.7.1). */
  reset(): void {
    this.state.id = this.options.id;
    this.state.base = BigInt(LOCAL_APIC_BASE) | BASE_ENABLE | (this.options.bsp ? BASE_BSP : 0n);
    this.state.lint = [false, false];
    this.clearRegisters();
  }

  private clearRegisters(): void {
    const r = this.state.registers;
    r.fill(0);
    for (const entry of LVT_ENTRIES) r[entry >> 4] = Lvt.MASKED;
    if (this.options.bsp) r[ApicReg.LVT_LINT0 >> 4] = DeliveryMode.EXTINT << Lvt.MODE_SHIFT;
    r[ApicReg.DFR >> 4] = 0xffffffff;
    r[ApicReg.SVR >> 4] = 0xff;
    r[ApicReg.VERSION >> 4] = VERSION | (this.options.suppressesEoi ? VERSION_SUPPRESS_EOI : 0);
    this.state.errors = 0;
    this.state.timerStart = -1;
    this.state.tscDeadline = 0n;
    this.options.clock.cancel(this.options.owner, "timer");
    this.updateId();
  }

  private updateId(): void {
    const { registers: r, id } = this.state;
    if (this.x2apicMode) {
      r[ApicReg.ID >> 4] = id;
      // SDM 3A 10.12.10.2: the logical id is made from the physical one.
      r[ApicReg.LDR >> 4] = ((id >>> 4) << 16) | (1 << (id & 0xf));
    } else {
      r[ApicReg.ID >> 4] = id << 24;
    }
  }

  get id(): number {
    return this.state.id;
  }
  /** IA32_APIC_BASE.EN. */
  get globallyEnabled(): boolean {
    return (this.state.base & BASE_ENABLE) !== 0n;
  }
  get x2apicMode(): boolean {
    return (this.state.base & (BASE_ENABLE | BASE_X2APIC)) === (BASE_ENABLE | BASE_X2APIC);
  }
  /** Physical address of the register page, or -1 when there is none (disabled, or x2APIC mode). */
  get page(): number {
    if (!this.globallyEnabled || this.x2apicMode) return -1;
    return Number(this.state.base & ~0xfffn);
  }
  /** SVR bit 8. */
  get enabled(): boolean {
    return this.globallyEnabled && (this.reg(ApicReg.SVR) & SVR_ENABLE) !== 0;
  }
  get priority(): number {
    return this.ppr();
  }

  private reg(offset: number): number {
    return this.state.registers[offset >> 4];
  }

  // --- interrupt acceptance -------------------------------------------------------------------------------------------

  /** SDM 3A 10.6.2: whether a message with this destination is for this APIC. */
  matches(destination: number, logical: boolean): boolean {
    if (!this.globallyEnabled) return false;
    if (this.x2apicMode) {
      if (destination >>> 0 === 0xffffffff || destination === 0xff) return true;
      if (!logical) return destination === this.state.id;
      const ldr = this.reg(ApicReg.LDR);
      return destination >>> 16 === ldr >>> 16 && (destination & ldr & 0xffff) !== 0;
    }
    if ((destination & 0xff) === 0xff) return true;
    if (!logical) return destination === this.state.id;
    const ldr = this.reg(ApicReg.LDR) >>> 24;
    if (this.reg(ApicReg.DFR) >>> 28 === 0xf) return (ldr & destination) !== 0;
    return ldr >> 4 === ((destination >> 4) & 0xf) && (ldr & destination & 0xf) !== 0;
  }

  accept(deliveryMode: number, vector: number, level: boolean, assert: boolean): void {
    const { core } = this.options;
    switch (deliveryMode) {
      case DeliveryMode.FIXED:
      case DeliveryMode.LOWEST_PRIORITY:
        this.acceptFixed(vector, level);
        break;
      case DeliveryMode.SMI:
        core.signal("smi");
        break;
      case DeliveryMode.NMI:
        core.signal("nmi");
        break;
      case DeliveryMode.INIT:
        // The level de-assert only resets arbitration ids, which nobody has any more.
        if (assert || !level) core.signal("init");
        break;
      case DeliveryMode.STARTUP:
        core.signal("sipi", vector);
        break;
    }
  }

  private acceptFixed(vector: number, level: boolean): void {
    if (!this.enabled) return;
    if (vector < 16) {
      this.raiseError(ApicError.RECEIVE_ILLEGAL_VECTOR);
      return;
    }
    this.setBit(ApicReg.IRR, vector, true);
    this.setBit(ApicReg.TMR, vector, level);
    this.options.core.attention();
  }

  /** Vector that may be delivered now: the highest in IRR above the processor priority; -1 for none. */
  pending(): number {
    if (!this.globallyEnabled) return -1;
    const vector = this.highest(ApicReg.IRR);
    return vector >> 4 > this.ppr() >> 4 ? vector : -1;
  }

  /** The processor takes the vector `pending` announced; the spurious vector when it went away (SDM 3A 10.9). */
  acknowledge(): number {
    const vector = this.pending();
    if (vector < 0) return this.reg(ApicReg.SVR) & 0xff;
    this.setBit(ApicReg.IRR, vector, false);
    this.setBit(ApicReg.ISR, vector, true);
    return vector;
  }

  /** Whether an 8259's INTR reaches the processor: no APIC in the way, or LINT0 in ExtINT mode. */
  get passesExtInt(): boolean {
    if (!this.globallyEnabled) return true;
    const entry = this.reg(ApicReg.LVT_LINT0);
    return !(entry & Lvt.MASKED) && ((entry >> Lvt.MODE_SHIFT) & 7) === DeliveryMode.EXTINT;
  }

  /** Whether LINT0, the only local pin something drives on a PC, raises NMIs. */
  get carriesNmi(): boolean {
    const entry = this.reg(ApicReg.LVT_LINT0);
    return this.globallyEnabled && !(entry & Lvt.MASKED) && ((entry >> Lvt.MODE_SHIFT) & 7) === DeliveryMode.NMI;
  }

  /** Local interrupt pin LINT0 or LINT1. ExtINT is level-sensitive and asked for through `passesExtInt`. */
  setLint(pin: 0 | 1, level: boolean): void {
    const before = this.state.lint[pin];
    this.state.lint[pin] = level;
    if (!this.globallyEnabled) {
      // SDM 3A 10.4.3: the pins are INTR and NMI then.
      if (pin === 1 && level && !before) this.options.core.signal("nmi");
      this.options.core.attention();
      return;
    }
    const entry = this.reg(pin === 0 ? ApicReg.LVT_LINT0 : ApicReg.LVT_LINT1);
    if (((entry >> Lvt.MODE_SHIFT) & 7) === DeliveryMode.EXTINT) this.options.core.attention();
    else if (level && !before) this.deliverLvt(pin === 0 ? ApicReg.LVT_LINT0 : ApicReg.LVT_LINT1);
  }

  /** Signals one local vector table entry; nothing when it is masked. */
  deliverLvt(offset: number): void {
    const entry = this.reg(offset);
    if (entry & Lvt.MASKED || !this.globallyEnabled) return;
    const mode = offset === ApicReg.LVT_TIMER || offset === ApicReg.LVT_ERROR ? 0 : (entry >> Lvt.MODE_SHIFT) & 7;
    const level = mode === DeliveryMode.FIXED && offset === ApicReg.LVT_LINT0 && (entry & Lvt.LEVEL) !== 0;
    this.accept(mode, entry & Lvt.VECTOR, level, true);
  }

  // --- priorities -----------------------------------------------------------------------------------------------------

  /** Highest vector set in IRR, ISR or TMR, -1 for none. */
  highest(offset: number): number {
    const { registers } = this.state;
    for (let i = 7; i >= 0; i--) {
      const word = registers[(offset >> 4) + i];
      if (word !== 0) return i * 32 + 31 - Math.clz32(word);
    }
    return -1;
  }

  private setBit(offset: number, vector: number, value: boolean): void {
    const at = (offset >> 4) + (vector >> 5);
    const mask = 1 << (vector & 31);
    if (value) this.state.registers[at] |= mask;
    else this.state.registers[at] &= ~mask;
  }

  /** Processor priority (SDM 3A 10.8.3.1). */
  ppr(): number {
    const tpr = this.reg(ApicReg.TPR) & 0xff;
    const isr = Math.max(0, this.highest(ApicReg.ISR));
    return tpr >> 4 >= isr >> 4 ? tpr : isr & 0xf0;
  }

  /** Task-priority class, as CR8. */
  readCr8(): number {
    return (this.reg(ApicReg.TPR) >> 4) & 0xf;
  }
  writeCr8(value: number): void {
    this.state.registers[ApicReg.TPR >> 4] = (value & 0xf) << 4;
    this.options.core.attention();
  }

  /** EOI register written: the highest in-service vector is done (SDM 3A 10.8.5). @returns the vector, -1 for none */
  endOfInterrupt(): number {
    const vector = this.highest(ApicReg.ISR);
    if (vector < 0) return -1;
    this.setBit(ApicReg.ISR, vector, false);
    const levelTriggered = (this.state.registers[(ApicReg.TMR >> 4) + (vector >> 5)] & (1 << (vector & 31))) !== 0;
    if (levelTriggered && !(this.reg(ApicReg.SVR) & SVR_SUPPRESS_EOI)) this.options.bus.broadcastEoi(vector);
    this.options.core.attention();
    return vector;
  }

  private raiseError(bit: number): void {
    this.state.errors |= bit;
    const entry = this.reg(ApicReg.LVT_ERROR);
    // An error entry with an illegal vector of its own must not raise errors forever.
    if ((entry & Lvt.VECTOR) >= 16) this.deliverLvt(ApicReg.LVT_ERROR);
  }

  // --- the register page ----------------------------------------------------------------------------------------------

  read(offset: number, _size: 1 | 2 | 4): number {
    const register = offset & 0xff0;
    const value = this.readRegister(register);
    // Bytes 4..15 of each register are reserved (SDM 3A 10.4.1).
    const shift = (offset & 0xf) * 8;
    return shift >= 32 ? 0 : value >>> shift;
  }

  write(offset: number, _size: 1 | 2 | 4, value: number): void {
    if (offset & 0xf) return;
    this.writeRegister(offset & 0xff0, value >>> 0);
  }

  private readRegister(offset: number): number {
    switch (offset) {
      case ApicReg.PPR:
        return this.ppr();
      case ApicReg.CURRENT_COUNT:
        return this.currentCount();
      case ApicReg.EOI:
      case ApicReg.SELF_IPI:
      case ApicReg.RRD:
      case ApicReg.APR:
        return 0;
      default:
        if (!isRegister(offset)) this.raiseError(ApicError.ILLEGAL_REGISTER);
        return this.reg(offset);
    }
  }

  private writeRegister(offset: number, value: number): void {
    const r = this.state.registers;
    switch (offset) {
      case ApicReg.TPR:
        r[offset >> 4] = value & 0xff;
        this.options.core.attention();
        return;
      case ApicReg.EOI:
        this.endOfInterrupt();
        return;
      case ApicReg.LDR:
        if (!this.x2apicMode) r[offset >> 4] = value & 0xff000000;
        return;
      case ApicReg.DFR:
        r[offset >> 4] = value | 0x0fffffff;
        return;
      case ApicReg.SVR:
        r[offset >> 4] = value & (0x3ff | (this.options.suppressesEoi ? SVR_SUPPRESS_EOI : 0));
        if (!(value & SVR_ENABLE)) for (const entry of LVT_ENTRIES) r[entry >> 4] |= Lvt.MASKED;
        this.options.core.attention();
        return;
      case ApicReg.ESR:
        r[offset >> 4] = this.state.errors;
        this.state.errors = 0;
        return;
      case ApicReg.ICR_LOW:
        r[offset >> 4] = value & 0xcdfff & ~0x1000;
        this.sendIpi(r[offset >> 4], this.x2apicMode ? r[ApicReg.ICR_HIGH >> 4] : r[ApicReg.ICR_HIGH >> 4] >>> 24);
        return;
      case ApicReg.ICR_HIGH:
        r[offset >> 4] = value & 0xff000000;
        return;
      case ApicReg.INITIAL_COUNT:
        if (this.timerMode === TimerMode.TSC_DEADLINE) return;
        r[offset >> 4] = value;
        this.state.timerStart = value === 0 ? -1 : this.options.clock.now;
        this.armTimer();
        return;
      case ApicReg.DIVIDE:
        this.writeDivide(value & 0xb);
        return;
      case ApicReg.SELF_IPI:
        if (this.x2apicMode) this.accept(DeliveryMode.FIXED, value & 0xff, false, true);
        return;
    }
    if (LVT_WRITABLE[offset] !== undefined) this.writeLvt(offset, value);
    else if (!isRegister(offset)) this.raiseError(ApicError.ILLEGAL_REGISTER);
  }

  private writeLvt(offset: number, value: number): void {
    const r = this.state.registers;
    const before = this.timerMode;
    let next = value & LVT_WRITABLE[offset];
    if (!(r[ApicReg.SVR >> 4] & SVR_ENABLE)) next |= Lvt.MASKED;
    r[offset >> 4] = next;
    if (offset === ApicReg.LVT_TIMER) {
      const after = this.timerMode;
      // SDM 3A 10.5.4.1: going to or from TSC-deadline mode disarms the timer.
      if (before !== after && (before === TimerMode.TSC_DEADLINE || after === TimerMode.TSC_DEADLINE)) {
        this.state.timerStart = -1;
        this.state.tscDeadline = 0n;
        r[ApicReg.INITIAL_COUNT >> 4] = 0;
      }
      this.armTimer();
    } else if (offset === ApicReg.LVT_LINT0) {
      this.options.core.attention();
    }
  }

  // --- interprocessor interrupts (SDM 3A 10.6) ------------------------------------------------------------------------

  private sendIpi(low: number, destination: number): void {
    const vector = low & 0xff;
    const deliveryMode = (low >> 8) & 7;
    const shorthand = (low >> 18) & 3;
    const assert = (low & (1 << 14)) !== 0;
    const level = (low & (1 << 15)) !== 0;
    if ((deliveryMode === DeliveryMode.FIXED || deliveryMode === DeliveryMode.LOWEST_PRIORITY) && vector < 16) {
      this.raiseError(ApicError.SEND_ILLEGAL_VECTOR);
      return;
    }
    if (shorthand === 1) {
      this.accept(deliveryMode, vector, false, true);
      return;
    }
    this.options.bus.deliver({
      vector,
      deliveryMode,
      logical: shorthand === 0 && (low & (1 << 11)) !== 0,
      destination: shorthand === 0 ? destination >>> 0 : 0xffffffff,
      // The trigger mode matters only for INIT; IPIs are edges (SDM 3A 10.6.1).
      level: deliveryMode === DeliveryMode.INIT && level,
      assert: deliveryMode !== DeliveryMode.INIT || assert,
      exclude: shorthand === 3 ? this.state.id : -1,
    });
  }

  // --- timer (SDM 3A 10.5.4) ------------------------------------------------------------------------------------------

  private get timerMode(): number {
    return (this.reg(ApicReg.LVT_TIMER) >> Lvt.TIMER_SHIFT) & 3;
  }

  private get divisor(): number {
    const d = this.reg(ApicReg.DIVIDE);
    return 1 << ((((d & 3) | ((d & 8) >> 1)) + 1) & 7);
  }

  /** Nanoseconds from the initial count to zero. */
  private get timerPeriod(): number {
    const period = this.reg(ApicReg.INITIAL_COUNT) * this.divisor;
    return this.timerMode === TimerMode.PERIODIC ? Math.max(period, this.options.minimumPeriod ?? 0) : period;
  }

  private currentCount(): number {
    const { timerStart } = this.state;
    if (timerStart < 0 || this.timerMode === TimerMode.TSC_DEADLINE) return 0;
    const initial = this.reg(ApicReg.INITIAL_COUNT);
    const passed = Math.floor((this.options.clock.now - timerStart) / this.divisor);
    if (passed < initial) return initial - passed;
    return this.timerMode === TimerMode.PERIODIC ? initial - (passed % initial) : 0;
  }

  private writeDivide(value: number): void {
    const r = this.state.registers;
    const running = this.state.timerStart >= 0 && this.timerMode !== TimerMode.TSC_DEADLINE;
    const count = this.currentCount();
    r[ApicReg.DIVIDE >> 4] = value;
    if (!running) return;
    if (count > 0) {
      this.state.timerStart = this.options.clock.now - (this.reg(ApicReg.INITIAL_COUNT) - count) * this.divisor;
    }
    this.armTimer();
  }

  private armTimer(): void {
    const { clock, owner, core } = this.options;
    const s = this.state;
    if (this.timerMode === TimerMode.TSC_DEADLINE) {
      if (s.tscDeadline !== 0n) clock.schedule(owner, "timer", Math.max(clock.now, core.timeOfTsc(s.tscDeadline)));
      else clock.cancel(owner, "timer");
      return;
    }
    if (s.timerStart < 0) {
      clock.cancel(owner, "timer");
      return;
    }
    const period = this.timerPeriod;
    const passed = clock.now - s.timerStart;
    if (this.timerMode === TimerMode.PERIODIC) {
      clock.schedule(owner, "timer", s.timerStart + (Math.floor(passed / period) + 1) * period);
    } else if (passed < period) {
      clock.schedule(owner, "timer", s.timerStart + period);
    } else {
      clock.cancel(owner, "timer");
    }
  }

  /** The TSC was written or adjusted: an armed deadline is at another time now. */
  tscChanged(): void {
    if (this.timerMode === TimerMode.TSC_DEADLINE) this.armTimer();
  }

  onClockEvent(_kind: string, now: number): void {
    const s = this.state;
    switch (this.timerMode) {
      case TimerMode.TSC_DEADLINE:
        s.tscDeadline = 0n;
        break;
      case TimerMode.PERIODIC:
        // The next period starts at the exact end of this one.
        s.timerStart = now;
        this.options.clock.schedule(this.options.owner, "timer", now + this.timerPeriod);
        break;
    }
    this.deliverLvt(ApicReg.LVT_TIMER);
  }

  // --- MSRs (SDM 3A 10.4.4, 10.12) ------------------------------------------------------------------------------------

  /** IA32_APIC_BASE, IA32_TSC_DEADLINE and, in x2APIC mode, 0x800..0x8ff. @returns undefined where #GP(0) is due */
  readMsr(index: number): bigint | undefined {
    if (index === MSR_APIC_BASE) return this.state.base;
    if (index === MSR_TSC_DEADLINE) return this.options.tscDeadline ? this.state.tscDeadline : undefined;
    if (!this.x2apicMode) return undefined;
    const offset = (index - 0x800) << 4;
    if (offset === ApicReg.ICR_LOW) {
      return BigInt(this.reg(ApicReg.ICR_LOW)) | (BigInt(this.reg(ApicReg.ICR_HIGH)) << 32n);
    }
    if (!isX2apicReadable(offset)) return undefined;
    return BigInt(this.readRegister(offset) >>> 0);
  }

  /** @returns false where #GP(0) is due */
  writeMsr(index: number, value: bigint): boolean {
    if (index === MSR_APIC_BASE) return this.writeBase(value);
    if (index === MSR_TSC_DEADLINE) {
      if (!this.options.tscDeadline) return false;
      if (this.timerMode === TimerMode.TSC_DEADLINE) {
        this.state.tscDeadline = value;
        this.armTimer();
      }
      return true;
    }
    if (!this.x2apicMode) return false;
    const offset = (index - 0x800) << 4;
    if (offset === ApicReg.ICR_LOW) {
      if (value & 0xfff32000n) return false;
      const r = this.state.registers;
      r[ApicReg.ICR_LOW >> 4] = Number(value & 0xffffffffn);
      r[ApicReg.ICR_HIGH >> 4] = Number(value >> 32n);
      this.sendIpi(r[ApicReg.ICR_LOW >> 4], r[ApicReg.ICR_HIGH >> 4]);
      return true;
    }
    const allowed = x2apicWritable(offset);
    if (allowed < 0 || value >> 32n !== 0n || Number(value) & ~allowed) return false;
    this.writeRegister(offset, Number(value));
    return true;
  }

  /** SDM 3A 10.12.5: which mode changes are legal. */
  private writeBase(value: bigint): boolean {
    const s = this.state;
    const limit = 1n << BigInt(this.options.physicalBits);
    const reserved = 0xffn | (1n << 9n) | (this.options.x2apic ? 0n : BASE_X2APIC) | ~(limit - 1n);
    if (value & reserved) return false;
    const was = s.base & (BASE_ENABLE | BASE_X2APIC);
    const next = value & (BASE_ENABLE | BASE_X2APIC);
    if (next === BASE_X2APIC) return false;
    if (was === (BASE_ENABLE | BASE_X2APIC) && next === BASE_ENABLE) return false;
    if (was === 0n && next === (BASE_ENABLE | BASE_X2APIC)) return false;
    s.base = value;
    if (was !== next) {
      if (next === 0n) this.clearRegisters();
      else this.updateId();
    }
    this.options.core.attention();
    return true;
  }
}

const PLAIN_REGISTERS: ReadonlySet<number> = new Set(Object.values(ApicReg).filter((o) => o !== ApicReg.CMCI));

function isRegister(offset: number): boolean {
  return PLAIN_REGISTERS.has(offset) || (offset >= ApicReg.ISR && offset < ApicReg.ESR);
}

function isX2apicReadable(offset: number): boolean {
  switch (offset) {
    case ApicReg.APR:
    case ApicReg.EOI:
    case ApicReg.RRD:
    case ApicReg.DFR:
    case ApicReg.ICR_HIGH:
    case ApicReg.SELF_IPI:
      return false;
    default:
      return isRegister(offset);
  }
}

/** Bits that may be set in a write of an x2APIC register, -1 when it may not be written at all (SDM 3A table 10-6). */
function x2apicWritable(offset: number): number {
  switch (offset) {
    case ApicReg.TPR:
    case ApicReg.SELF_IPI:
      return 0xff;
    case ApicReg.EOI:
    case ApicReg.ESR:
      return 0;
    case ApicReg.SVR:
      return 0x11ff;
    case ApicReg.INITIAL_COUNT:
      return 0xffffffff;
    case ApicReg.DIVIDE:
      return 0xb;
    default:
      // Read-only status bits may be written as read (delivery status 12, remote IRR 14).
      return LVT_WRITABLE[offset] === undefined ? -1 : LVT_WRITABLE[offset] | 0x5000;
  }
}
