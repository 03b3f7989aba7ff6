/**
 * ACPI fixed hardware at 0x600 as in QEMU's PIIX4: PM1a event block (0x600), PM1a control (0x604), PM timer (0x608), and
 * the reset control register 0xcf9. ACPI specification 4.8.3. The machine is always in ACPI mode (no SMI command port).
 */
import type { VirtualClock } from "../clock";
import type { Line, Registers, Stateful } from "./chip";
import { Frequency } from "./frequency";

/** First I/O port of the PM1 event block; the control block and the timer follow. */
export const ACPI_PM_BASE = 0x600;
/** Frequency of the power management timer (ACPI 6.4, 4.8.3.3). */
export const PM_TIMER_HZ = 3_579_545;
/** SLP_TYP of S5 in the DSDT's \_S5 package. */
export const SLEEP_TYPE_S5 = 0;

const crystal = new Frequency(PM_TIMER_HZ);

const Pm1 = {
  TIMER: 1,
  GLOBAL: 1 << 5,
  POWER_BUTTON: 1 << 8,
  SLEEP_BUTTON: 1 << 9,
  RTC: 1 << 10,
  WAKE: 1 << 15,
} as const;
const STATUS_BITS = Pm1.TIMER | Pm1.GLOBAL | Pm1.POWER_BUTTON | Pm1.SLEEP_BUTTON | Pm1.RTC | Pm1.WAKE;
const ENABLE_BITS = STATUS_BITS & ~Pm1.WAKE;
const SCI_EN = 1;
const SLP_TYPE_SHIFT = 10;
const SLP_EN = 1 << 13;
/** Ticks between changes of the timer's bit 23. */
const HALF_TIMER = 1 << 23;

/** PM1 event and control registers, and what the timer has shown. */
export interface AcpiPmState {
  status: number;
  enable: number;
  control: number;
  /** Number of changes of the timer's bit 23 already shown in TMR_STS. */
  carries: number;
}

/** PM1 event, PM1 control and power management timer (ACPI 6.4, 4.8.3). */
export class AcpiPm implements Stateful<AcpiPmState>, Registers {
  state: AcpiPmState = { status: 0, enable: 0, control: SCI_EN, carries: 0 };

  /**
   * @param owner name of this chip in the clock's event queue
   * @param sci system control interrupt (IRQ 9)
   * @param powerOff SLP_EN was written with the type of S5
   */
  constructor(
    private readonly clock: VirtualClock,
    private readonly owner: string,
    private readonly sci: Line,
    private readonly powerOff: () => void,
  ) {
    clock.register(owner, this);
  }

  reset(): void {
    this.state = { status: 0, enable: 0, control: SCI_EN, carries: this.carriesNow() };
    this.clock.cancel(this.owner, "carry");
    this.sci.set(false);
  }

  read(offset: number, size: 1 | 2 | 4): number {
    if (offset >= 8) return offset < 12 ? (this.timer() >>> ((offset - 8) * 8)) & mask(size) : 0;
    this.noteCarry();
    const { status, enable, control } = this.state;
    const words = [status, enable, control, 0];
    const both = (words[offset >> 1] | ((words[(offset >> 1) + 1] ?? 0) << 16)) >>> 0;
    return (both >>> ((offset & 1) * 8)) & mask(size);
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    this.noteCarry();
    // Registers are words; a byte access changes its half only.
    const shift = (offset & 1) * 8;
    const word = (value << shift) & 0xffff;
    const touched = size === 1 ? 0xff << shift : 0xffff;
    const s = this.state;
    switch (offset >> 1) {
      case 0:
        s.status &= ~word;
        if (size === 4) this.writeEnable(value >>> 16, 0xffff);
        break;
      case 1:
        this.writeEnable(word, touched);
        break;
      case 2:
        s.control = (s.control & ~touched) | (word & touched & ~SLP_EN) | SCI_EN;
        if (word & SLP_EN && ((s.control >> SLP_TYPE_SHIFT) & 7) === SLEEP_TYPE_S5) this.powerOff();
        break;
    }
    this.update();
  }

  onClockEvent(): void {
    this.noteCarry();
    this.update();
  }

  private writeEnable(word: number, touched: number): void {
    this.state.enable = ((this.state.enable & ~touched) | (word & touched)) & ENABLE_BITS;
  }

  /** 32-bit counter; the FADT says TMR_VAL_EXT. */
  private timer(): number {
    return crystal.ticks(this.clock.now) % 2 ** 32;
  }

  private carriesNow(): number {
    return Math.floor(crystal.ticks(this.clock.now) / HALF_TIMER);
  }

  private noteCarry(): void {
    const now = this.carriesNow();
    if (now !== this.state.carries) {
      this.state.carries = now;
      this.state.status |= Pm1.TIMER;
    }
  }

  private update(): void {
    const s = this.state;
    this.sci.set((s.status & s.enable) !== 0);
    if (s.enable & Pm1.TIMER && !(s.status & Pm1.TIMER)) {
      this.clock.schedule(this.owner, "carry", crystal.time((s.carries + 1) * HALF_TIMER));
    } else {
      this.clock.cancel(this.owner, "carry");
    }
  }
}

const mask = (size: 1 | 2 | 4): number => (size === 1 ? 0xff : size === 2 ? 0xffff : 0xffffffff);

/** The register as last written. */
export interface ResetControlState {
  value: number;
}

/** Reset control register, port 0xcf9 (PIIX3 3.2.5): bit 2 going from 0 to 1 resets. */
export class ResetControl implements Stateful<ResetControlState>, Registers {
  state: ResetControlState = { value: 0 };

  constructor(private readonly resetSystem: () => void) {}

  read(): number {
    return this.state.value;
  }
  write(_offset: number, _size: 1 | 2 | 4, value: number): void {
    const rising = value & ~this.state.value & 4;
    this.state.value = value & 2;
    if (rising) this.resetSystem();
  }
}

/** System control port A, 0x92: bit 0 fast reset, bit 1 the A20 gate, which is always open here. */
export class SystemPortA implements Stateful<ResetControlState>, Registers {
  state: ResetControlState = { value: 0 };

  constructor(private readonly resetCpu: () => void) {}

  read(): number {
    return this.state.value | 2;
  }
  write(_offset: number, _size: 1 | 2 | 4, value: number): void {
    const rising = value & ~this.state.value & 1;
    this.state.value = value & 0xfd;
    if (rising) this.resetCpu();
  }
}
