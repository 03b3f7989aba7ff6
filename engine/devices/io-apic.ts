/**
 * I/O APIC with 24 redirection entries (Intel 82093AA data sheet, 290566; EOI register: ICH family data sheets).
 * Memory-mapped: IOREGSEL at 0x00, IOWIN at 0x10, EOI at 0x40 (version 0x20 and above).
 */
import { type ApicBus, DeliveryMode } from "./apic-bus";
import type { Line, Registers, Stateful } from "./chip";

const IO_APIC_PINS = 24;
/** Physical address of the registers. */
export const IO_APIC_BASE = 0xfec00000;

/** Bits of the low half of a redirection entry (data sheet 3.2.4). */
const Redirection = {
  VECTOR: 0xff,
  DELIVERY_SHIFT: 8,
  LOGICAL: 1 << 11,
  PENDING: 1 << 12,
  LOW_ACTIVE: 1 << 13,
  REMOTE_IRR: 1 << 14,
  LEVEL: 1 << 15,
  MASKED: 1 << 16,
} as const;

/** Software may write everything but delivery status, remote IRR and the reserved bits. */
const WRITABLE_LOW = 0x1afff;
const READ_ONLY_LOW = Redirection.PENDING | Redirection.REMOTE_IRR;

/** Registers and the levels of the pins. */
export interface IoApicState {
  /** IOREGSEL. */
  select: number;
  /** APIC id, 0..15. */
  id: number;
  /** Redirection entries, low and high halves, unsigned. */
  low: number[];
  high: number[];
  /** Input pin levels, pin 0 in bit 0. */
  lines: number;
  /** Requests waiting for delivery (edge remembered, or level asserted). */
  irr: number;
}

const newState = (): IoApicState => ({
  select: 0,
  id: 0,
  low: new Array(IO_APIC_PINS).fill(Redirection.MASKED),
  high: new Array(IO_APIC_PINS).fill(0),
  lines: 0,
  irr: 0,
});

/** One I/O APIC (82093AA data sheet). */
export class IoApic implements Stateful<IoApicState>, Registers {
  state: IoApicState = newState();

  /**
   * @param version of the version register: 0x11 (82093AA: no EOI register) or 0x20
   * @param acknowledgePic gives the vector of an entry in ExtINT mode (the 8259's INTA)
   */
  constructor(
    private readonly bus: ApicBus,
    private readonly version: 0x11 | 0x20 = 0x20,
    private readonly acknowledgePic: () => number = () => 0xff,
  ) {}

  reset(): void {
    const { lines } = this.state;
    this.state = { ...newState(), lines };
  }

  /** Some input may raise NMIs. */
  get carriesNmi(): boolean {
    return this.state.low.some(
      (entry) => !(entry & Redirection.MASKED) && ((entry >> Redirection.DELIVERY_SHIFT) & 7) === DeliveryMode.NMI,
    );
  }

  line(pin: number): Line {
    return { set: (level) => this.setLine(pin, level) };
  }

  /** Input pin `pin` (0..23); `level` is the pin's electrical level as asserted (true) or not, polarity already meant. */
  setLine(pin: number, level: boolean): boolean {
    const s = this.state;
    const mask = 1 << pin;
    const before = (s.lines & mask) !== 0;
    if (level) s.lines |= mask;
    else s.lines &= ~mask;
    if (s.low[pin] & Redirection.LEVEL) {
      if (!level) {
        s.irr &= ~mask;
        return true;
      }
      s.irr |= mask;
      if (s.low[pin] & Redirection.REMOTE_IRR) return false;
    } else {
      if (!level || before) return true;
      s.irr |= mask;
    }
    return this.service(pin);
  }

  /** EOI message for `vector`: level-triggered entries with it may interrupt again. */
  eoi(vector: number): void {
    const s = this.state;
    for (let pin = 0; pin < IO_APIC_PINS; pin++) {
      const entry = s.low[pin];
      if ((entry & Redirection.VECTOR) !== vector || !(entry & Redirection.LEVEL)) continue;
      s.low[pin] &= ~Redirection.REMOTE_IRR;
      if (s.irr & (1 << pin)) this.service(pin);
    }
  }

  read(offset: number, _size: 1 | 2 | 4): number {
    switch (offset & 0xff) {
      case 0x00:
        return this.state.select;
      case 0x10:
        return this.readRegister(this.state.select);
      default:
        return 0;
    }
  }

  write(offset: number, _size: 1 | 2 | 4, value: number): void {
    switch (offset & 0xff) {
      case 0x00:
        this.state.select = value & 0xff;
        break;
      case 0x10:
        this.writeRegister(this.state.select, value >>> 0);
        break;
      case 0x40:
        if (this.version >= 0x20) this.eoi(value & 0xff);
        break;
    }
  }

  private readRegister(index: number): number {
    const s = this.state;
    switch (index) {
      case 0:
      case 2:
        return s.id << 24;
      case 1:
        return ((IO_APIC_PINS - 1) << 16) | this.version;
    }
    const pin = (index - 0x10) >> 1;
    if (pin < 0 || pin >= IO_APIC_PINS) return 0;
    return index & 1 ? s.high[pin] >>> 0 : s.low[pin] >>> 0;
  }

  private writeRegister(index: number, value: number): void {
    const s = this.state;
    if (index === 0) {
      s.id = (value >>> 24) & 0xf;
      return;
    }
    const pin = (index - 0x10) >> 1;
    if (pin < 0 || pin >= IO_APIC_PINS) return;
    if (index & 1) {
      s.high[pin] = (value & 0xff000000) >>> 0;
      return;
    }
    const wasMasked = (s.low[pin] & Redirection.MASKED) !== 0;
    s.low[pin] = (value & WRITABLE_LOW) | (s.low[pin] & READ_ONLY_LOW);
    // Edge mode has no remote IRR; a switch to it is how software clears one that is stuck.
    if (!(s.low[pin] & Redirection.LEVEL)) s.low[pin] &= ~Redirection.REMOTE_IRR;
    const mask = 1 << pin;
    if (s.low[pin] & Redirection.LEVEL) {
      if (s.lines & mask) s.irr |= mask;
      else s.irr &= ~mask;
    } else if (wasMasked && !(s.lines & mask)) {
      s.irr &= ~mask;
    }
    if (s.irr & mask && !(s.low[pin] & Redirection.REMOTE_IRR)) this.service(pin);
  }

  /** Sends the entry's message if it may be sent. */
  private service(pin: number): boolean {
    const s = this.state;
    const mask = 1 << pin;
    const entry = s.low[pin];
    if (entry & Redirection.MASKED) {
      // An edge at a masked pin is lost (data sheet 3.2.4, interrupt mask).
      if (!(entry & Redirection.LEVEL)) s.irr &= ~mask;
      return false;
    }
    const level = (entry & Redirection.LEVEL) !== 0;
    const mode = (entry >> Redirection.DELIVERY_SHIFT) & 7;
    const extInt = mode === DeliveryMode.EXTINT;
    const delivered = this.bus.deliver({
      vector: extInt ? this.acknowledgePic() : entry & Redirection.VECTOR,
      deliveryMode: extInt ? DeliveryMode.FIXED : mode,
      logical: (entry & Redirection.LOGICAL) !== 0,
      destination: s.high[pin] >>> 24,
      level,
      assert: true,
      exclude: -1,
    });
    if (!level) s.irr &= ~mask;
    else if (delivered && (mode === DeliveryMode.FIXED || mode === DeliveryMode.LOWEST_PRIORITY)) {
      s.low[pin] |= Redirection.REMOTE_IRR;
    }
    return delivered;
  }
}
