/**
 * MC146818 real-time clock with 128 bytes of CMOS memory, ports 0x70 (index) and 0x71 (data). Interrupt line: IRQ 8.
 * Reference: Motorola MC146818A data sheet. Time is virtual time from a start date; nothing here knows today's.
 */
import type { VirtualClock } from "../clock";
import type { Line, Registers, Stateful } from "./chip";
import { toCivil, toSeconds } from "./civil-time";
import { Frequency } from "./frequency";

const Reg = {
  SECONDS: 0,
  MINUTES: 2,
  HOURS: 4,
  WEEKDAY: 6,
  DAY: 7,
  MONTH: 8,
  YEAR: 9,
  A: 10,
  B: 11,
  C: 12,
  D: 13,
} as const;
/** Where PC firmware keeps the century (the FADT's CENTURY says so too). */
export const CMOS_CENTURY = 0x32;
/** Registers that tell the time. */
const TIME: ReadonlySet<number> = new Set([
  Reg.SECONDS,
  Reg.MINUTES,
  Reg.HOURS,
  Reg.WEEKDAY,
  Reg.DAY,
  Reg.MONTH,
  Reg.YEAR,
  CMOS_CENTURY,
]);

const RegA = { UIP: 0x80, DIVIDER: 0x70, DIVIDER_RUNNING: 0x20, RATE: 0x0f } as const;
const RegB = { DSE: 1, HOURS_24: 2, BINARY: 4, SQWE: 8, UIE: 0x10, AIE: 0x20, PIE: 0x40, SET: 0x80 } as const;
const RegC = { UF: 0x10, AF: 0x20, PF: 0x40, IRQF: 0x80 } as const;

const SECONDS_PER_DAY = 86400;
const SECOND = 1_000_000_000;
/** The update-in-progress bit goes up this long before the update (data sheet table 6, tBUC). */
const UIP_NS = 244_000;

const crystal = new Frequency(32768);

/** The clock and the battery-backed memory. */
export interface RtcState {
  index: number;
  /** 128 bytes; time registers 0..9 are held here only while SET stops the clock. */
  memory: Uint8Array;
  /** Seconds since 1970 at virtual time `phase`. */
  seconds: number;
  /** Virtual time (ns) of that second's beginning. */
  phase: number;
  /** Virtual time (ns) up to which the flags of register C are worked out. */
  flagged: number;
}

/** Real-time clock with CMOS memory: ports 0x70 and 0x71. */
export class RtcCmos implements Stateful<RtcState>, Registers {
  state: RtcState;

  /**
   * @param owner name of this chip in the clock's event queue
   * @param irq IRQ 8
   * @param start seconds since 1970-01-01 UTC at virtual time 0
   */
  constructor(
    private readonly clock: VirtualClock,
    private readonly owner: string,
    private readonly irq: Line,
    start: number,
  ) {
    const memory = new Uint8Array(128);
    memory[Reg.A] = RegA.DIVIDER_RUNNING | 6;
    memory[Reg.B] = RegB.HOURS_24;
    // Valid RAM and time: the battery is good.
    memory[Reg.D] = 0x80;
    this.state = { index: 0, memory, seconds: start, phase: 0, flagged: 0 };
    clock.register(owner, this);
  }

  /** What the battery keeps: the memory, and the time in seconds since 1970. */
  now(): { readonly memory: Uint8Array; readonly seconds: number } {
    return { memory: this.state.memory.slice(), seconds: this.secondsAt(this.clock.now) };
  }

  /** Plain CMOS cell, for the board to tell firmware data (memory size, floppies ...). */
  setCmos(index: number, value: number): void {
    this.state.memory[index] = value;
  }

  /** The chip's RESET pin clears interrupt enables and flags; time and memory stay. */
  reset(): void {
    const m = this.state.memory;
    m[Reg.B] &= ~(RegB.PIE | RegB.AIE | RegB.UIE | RegB.SQWE);
    m[Reg.C] = 0;
    this.irq.set(false);
    this.schedule();
  }

  read(offset: number): number {
    // The index register is write-only; the bus is pulled up.
    if (offset === 0) return 0xff;
    const index = this.state.index & 0x7f;
    const m = this.state.memory;
    if (TIME.has(index) && this.running) this.storeTime();
    switch (index) {
      case Reg.A:
        return (m[Reg.A] & ~RegA.UIP) | (this.updateInProgress ? RegA.UIP : 0);
      case Reg.C: {
        this.noteFlags(this.clock.now);
        const value = m[Reg.C];
        m[Reg.C] = 0;
        this.irq.set(false);
        this.schedule();
        return value;
      }
      default:
        return m[index];
    }
  }

  write(offset: number, _size: 1 | 2 | 4, value: number): void {
    if (offset === 0) {
      // Bit 7 masks NMI on PC boards; nothing here raises one.
      this.state.index = value & 0xff;
      return;
    }
    const index = this.state.index & 0x7f;
    const m = this.state.memory;
    if (TIME.has(index)) {
      const { running } = this;
      if (running) this.storeTime();
      m[index] = value;
      if (running) this.loadTime();
      this.schedule();
      return;
    }
    switch (index) {
      case Reg.A: {
        this.noteFlags(this.clock.now);
        const was = this.running;
        if (was) this.storeTime();
        m[Reg.A] = value & ~RegA.UIP;
        this.startOrStop(was);
        return;
      }
      case Reg.B: {
        this.noteFlags(this.clock.now);
        const was = this.running;
        if (was) this.storeTime();
        m[Reg.B] = value & RegB.SET ? value & ~RegB.UIE : value;
        this.startOrStop(was);
        this.raise(0);
        return;
      }
      case Reg.C:
      case Reg.D:
        return;
      default:
        // The alarm cells too: what has passed is judged by their old values.
        this.noteFlags(this.clock.now);
        m[index] = value;
    }
  }

  onClockEvent(_kind: string, now: number): void {
    this.noteFlags(now);
    this.schedule();
  }

  /** Sets the flags of everything that happened up to `now`; they are set whether or not they interrupt. */
  private noteFlags(now: number): void {
    const from = this.state.flagged;
    this.state.flagged = now;
    let flags = 0;
    const period = this.periodicTicks;
    if (period > 0 && this.dividerRunning) {
      if (Math.floor(crystal.ticks(now) / period) !== Math.floor(crystal.ticks(from) / period)) flags |= RegC.PF;
    }
    if (this.running) {
      const last = this.secondsAt(now);
      const first = Math.max(this.secondsAt(from), last - SECONDS_PER_DAY);
      if (last > first) flags |= RegC.UF;
      for (let t = first + 1; t <= last && !(flags & RegC.AF); t++) if (this.alarmMatches(t)) flags |= RegC.AF;
    }
    this.raise(flags);
  }

  private get dividerRunning(): boolean {
    return (this.state.memory[Reg.A] & RegA.DIVIDER) === RegA.DIVIDER_RUNNING;
  }

  /** The divider chain runs and updates are allowed. */
  private get running(): boolean {
    return this.dividerRunning && !(this.state.memory[Reg.B] & RegB.SET);
  }

  private get updateInProgress(): boolean {
    if (!this.running) return false;
    const into = (this.clock.now - this.state.phase) % SECOND;
    return into >= SECOND - UIP_NS;
  }

  private secondsAt(now: number): number {
    return this.state.seconds + Math.floor((now - this.state.phase) / SECOND);
  }

  private startOrStop(was: boolean): void {
    const is = this.running;
    if (is && !was) {
      // Data sheet, "divider control": the first update comes half a second after the divider starts.
      this.state.phase = this.clock.now - SECOND / 2;
      this.loadTime(true);
    }
    this.schedule();
  }

  private encode(value: number): number {
    return this.state.memory[Reg.B] & RegB.BINARY ? value : ((Math.floor(value / 10) % 10) << 4) | (value % 10);
  }
  private decode(value: number): number {
    return this.state.memory[Reg.B] & RegB.BINARY ? value : (value >> 4) * 10 + (value & 0xf);
  }
  private encodeHour(hour: number): number {
    if (this.state.memory[Reg.B] & RegB.HOURS_24) return this.encode(hour);
    return this.encode(hour % 12 === 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0);
  }
  private decodeHour(value: number): number {
    if (this.state.memory[Reg.B] & RegB.HOURS_24) return this.decode(value);
    return (this.decode(value & 0x7f) % 12) + (value & 0x80 ? 12 : 0);
  }

  /** Puts the time of now into the registers. */
  private storeTime(): void {
    const m = this.state.memory;
    const t = toCivil(this.secondsAt(this.clock.now));
    m[Reg.SECONDS] = this.encode(t.second);
    m[Reg.MINUTES] = this.encode(t.minute);
    m[Reg.HOURS] = this.encodeHour(t.hour);
    m[Reg.WEEKDAY] = this.encode(t.weekday);
    m[Reg.DAY] = this.encode(t.day);
    m[Reg.MONTH] = this.encode(t.month);
    m[Reg.YEAR] = this.encode(t.year % 100);
    m[CMOS_CENTURY] = this.encode(Math.floor(t.year / 100));
  }

  /** Takes the time from the registers, keeping the place within the second unless it was just set. */
  private loadTime(phaseIsSet = false): void {
    const s = this.state;
    const m = s.memory;
    if (!phaseIsSet) s.phase += Math.floor((this.clock.now - s.phase) / SECOND) * SECOND;
    s.seconds = toSeconds({
      year: this.decode(m[CMOS_CENTURY]) * 100 + this.decode(m[Reg.YEAR]),
      month: Math.min(12, Math.max(1, this.decode(m[Reg.MONTH]))),
      day: Math.min(31, Math.max(1, this.decode(m[Reg.DAY]))),
      hour: this.decodeHour(m[Reg.HOURS]),
      minute: this.decode(m[Reg.MINUTES]),
      second: this.decode(m[Reg.SECONDS]),
    });
  }

  private alarmMatches(seconds: number): boolean {
    const m = this.state.memory;
    const t = toCivil(seconds);
    const same = (cell: number, value: number): boolean => (cell & 0xc0) === 0xc0 || cell === value;
    return (
      same(m[1], this.encode(t.second)) && same(m[3], this.encode(t.minute)) && same(m[5], this.encodeHour(t.hour))
    );
  }

  private raise(flags: number): void {
    const m = this.state.memory;
    m[Reg.C] |= flags;
    const active = m[Reg.C] & m[Reg.B] & (RegC.UF | RegC.AF | RegC.PF);
    if (active) m[Reg.C] |= RegC.IRQF;
    else m[Reg.C] &= ~RegC.IRQF;
    this.irq.set(active !== 0);
  }

  /** Ticks of the 32768 Hz crystal between periodic interrupts, 0 for none (data sheet table 5). */
  private get periodicTicks(): number {
    const rate = this.state.memory[Reg.A] & RegA.RATE;
    if (rate === 0) return 0;
    return 1 << (rate <= 2 ? rate + 6 : rate - 1);
  }

  /** Asks the clock only for what somebody would notice: an interrupt, or a flag that is still clear. */
  private schedule(): void {
    const m = this.state.memory;
    const now = this.clock.now;
    const period = this.periodicTicks;
    if (period > 0 && m[Reg.B] & RegB.PIE && this.dividerRunning) {
      const next = (Math.floor(crystal.ticks(now) / period) + 1) * period;
      this.clock.schedule(this.owner, "periodic", crystal.time(next));
    } else {
      this.clock.cancel(this.owner, "periodic");
    }
    const wanted = m[Reg.B] & (RegB.UIE | RegB.AIE);
    if (this.running && wanted) {
      const { phase } = this.state;
      this.clock.schedule(this.owner, "update", phase + (Math.floor((now - phase) / SECOND) + 1) * SECOND);
    } else {
      this.clock.cancel(this.owner, "update");
    }
  }
}
