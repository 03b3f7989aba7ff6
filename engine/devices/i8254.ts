/**
 * 8254 programmable interval timer: three 16-bit counters at 1.193182 MHz, ports 0x40-0x43, and the system control port
 * 0x61 that gates counter 2. Reference: Intel 8254 data sheet (231164).
 *
 * Counters are not stepped: each keeps the tick at which it was loaded, and count and OUT are functions of the ticks since.
 * Only counter 0's OUT is wired to a line, so only it needs clock events.
 */
import type { VirtualClock } from "../clock";
import type { Line, Registers, Stateful } from "./chip";
import { Frequency } from "./frequency";

/** Input clock of the counters, in Hz. */
export const PIT_HZ = 1_193_182;
const crystal = new Frequency(PIT_HZ);

/** One counter. */
export interface PitChannelState {
  /** 0..5. */
  mode: number;
  bcd: boolean;
  /** Control word RW field: 1 low byte, 2 high byte, 3 low then high. */
  access: number;
  /** Initial count in use, 1..65536 (1..10000 in BCD). */
  reload: number;
  /** Initial count that takes over at the end of the current period (modes 2 and 3); 0 for none. */
  nextReload: number;
  /** Tick at which `nextReload` takes over. */
  switchAt: number;
  /** Tick at which the counter held `reload`; meaningless while not counting. */
  start: number;
  /** The counting element has been loaded since the control word (modes 1 and 5: and triggered). */
  counting: boolean;
  /** A count was written since the control word. */
  loaded: boolean;
  /** GATE input. */
  gate: boolean;
  /** Ticks that had passed when GATE or a half-written count stopped counting; -1 while it runs. */
  held: number;
  /** Low byte of a two-byte write, -1 when none is waiting. */
  writeLow: number;
  /** The next read of a two-byte access gives the high byte. */
  readHigh: boolean;
  /** Latched count, -1 when none. */
  latch: number;
  /** Latched status, -1 when none. */
  statusLatch: number;
  /** Read-back's NULL COUNT: a written count is not yet in the counting element. */
  nullCount: boolean;
  /** Value of the counting element when it last stopped for a control word. */
  residue: number;
  /** OUT before the last load, which it keeps until the load's clock pulse (mode 1). */
  outBefore: boolean;
}

/** The three counters and the gate port. */
export interface PitState {
  channels: [PitChannelState, PitChannelState, PitChannelState];
  /** Port 0x61 bits 1:0: speaker data enable, gate 2. */
  speaker: number;
}

const newChannel = (gate: boolean): PitChannelState => ({
  mode: 0,
  bcd: false,
  access: 3,
  reload: 65536,
  nextReload: 0,
  switchAt: 0,
  start: 0,
  counting: false,
  loaded: false,
  gate,
  held: -1,
  writeLow: -1,
  readHigh: false,
  latch: -1,
  statusLatch: -1,
  nullCount: true,
  residue: 0,
  outBefore: true,
});

const newPitState = (): PitState => ({
  channels: [newChannel(true), newChannel(true), newChannel(false)],
  speaker: 0,
});

const toBcd = (n: number): number =>
  (n % 10) | ((Math.floor(n / 10) % 10) << 4) | ((Math.floor(n / 100) % 10) << 8) | ((Math.floor(n / 1000) % 10) << 12);
const fromBcd = (n: number): number =>
  (n & 0xf) + ((n >> 4) & 0xf) * 10 + ((n >> 8) & 0xf) * 100 + ((n >> 12) & 0xf) * 1000;

/** DRAM refresh period that port 0x61 bit 4 shows, in nanoseconds. */
const REFRESH_NS = 15_085;

/** Programmable interval timer: ports 0x40 to 0x43. */
export class I8254 implements Stateful<PitState> {
  state: PitState = newPitState();

  /** Ports 0x40-0x43. */
  readonly ports: Registers;
  /** Port 0x61. */
  readonly speakerPort: Registers;

  /**
   * @param owner name of this chip in the clock's event queue
   * @param out0 counter 0's OUT pin (IRQ 0)
   */
  constructor(
    private readonly clock: VirtualClock,
    private readonly owner: string,
    private readonly out0: Line,
  ) {
    clock.register(owner, this);
    this.ports = {
      read: (offset) => (offset < 3 ? this.readCounter(this.state.channels[offset]) : 0xff),
      write: (offset, _size, value) => {
        if (offset < 3) this.writeCounter(offset, value & 0xff);
        else this.writeControl(value & 0xff);
      },
    };
    this.speakerPort = {
      read: () => this.readSpeaker(),
      write: (_offset, _size, value) => {
        this.state.speaker = value & 3;
        this.setGate(2, (value & 1) !== 0);
      },
    };
  }

  reset(): void {
    this.state = newPitState();
    this.clock.cancel(this.owner, "out0");
    this.out0.set(false);
  }

  onClockEvent(_kind: string, _now: number): void {
    this.updateOut0();
  }

  /** GATE input of a counter; only counter 2's is not tied high on a PC. */
  setGate(channel: number, level: boolean): void {
    const c = this.state.channels[channel];
    if (c.gate === level) return;
    const tick = this.tick();
    this.settle(c, tick);
    c.gate = level;
    switch (c.mode) {
      case 0:
      case 4:
        if (level) this.release(c, tick);
        else this.hold(c, tick);
        break;
      case 1:
      case 5:
        if (level && c.loaded) this.load(c, tick);
        break;
      default:
        if (level && c.loaded) this.load(c, tick);
        else this.hold(c, tick);
    }
    if (channel === 0) this.updateOut0();
  }

  /** OUT pin of a counter now. */
  out(channel: number): boolean {
    const c = this.state.channels[channel];
    const tick = this.tick();
    this.settle(c, tick);
    return outAt(c, tick);
  }

  /** Value of the counting element now, as a number read from the port would show (BCD counters in BCD). */
  count(channel: number): number {
    const c = this.state.channels[channel];
    const tick = this.tick();
    this.settle(c, tick);
    return this.shown(c, tick);
  }

  private tick(): number {
    return crystal.ticks(this.clock.now);
  }

  /** Lets a count written in the middle of a period take over if that period (mode 3: half period) has ended. */
  private settle(c: PitChannelState, tick: number): void {
    if (c.nextReload === 0 || !c.counting || c.held >= 0 || tick < c.switchAt) return;
    const half = (c.switchAt - c.start) % c.reload !== 0;
    c.start = half ? c.switchAt - Math.ceil(c.nextReload / 2) : c.switchAt;
    c.reload = c.nextReload;
    c.nextReload = 0;
    c.nullCount = false;
  }

  private load(c: PitChannelState, tick: number): void {
    if (c.nextReload !== 0) {
      c.reload = c.nextReload;
      c.nextReload = 0;
    }
    c.outBefore = outAt(c, tick);
    // The counting element takes the count on the next clock pulse.
    c.start = tick + 1;
    c.counting = true;
    c.held = -1;
    c.nullCount = false;
  }

  private hold(c: PitChannelState, tick: number): void {
    if (c.counting && c.held < 0) c.held = Math.max(0, tick - c.start);
  }

  private release(c: PitChannelState, tick: number): void {
    if (!c.counting || c.held < 0) return;
    c.start = tick - c.held;
    c.held = -1;
  }

  private writeControl(value: number): void {
    const select = value >> 6;
    if (select === 3) {
      this.readBack(value);
      return;
    }
    const c = this.state.channels[select];
    const access = (value >> 4) & 3;
    if (access === 0) {
      this.latchCount(c);
      return;
    }
    const tick = this.tick();
    this.settle(c, tick);
    c.residue = countAt(c, tick);
    const mode = (value >> 1) & 7;
    c.mode = mode > 5 ? mode - 4 : mode;
    c.bcd = (value & 1) !== 0;
    c.access = access;
    c.counting = false;
    c.loaded = false;
    c.nextReload = 0;
    c.held = -1;
    c.writeLow = -1;
    c.readHigh = false;
    c.latch = -1;
    c.statusLatch = -1;
    c.nullCount = true;
    if (select === 0) this.updateOut0();
  }

  private readBack(value: number): void {
    for (let i = 0; i < 3; i++) {
      if (!(value & (2 << i))) continue;
      const c = this.state.channels[i];
      if (!(value & 0x20)) this.latchCount(c);
      if (!(value & 0x10) && c.statusLatch < 0) {
        const out = this.out(i) ? 0x80 : 0;
        c.statusLatch = out | (c.nullCount ? 0x40 : 0) | (c.access << 4) | (c.mode << 1) | (c.bcd ? 1 : 0);
      }
    }
  }

  private latchCount(c: PitChannelState): void {
    if (c.latch >= 0) return;
    const tick = this.tick();
    this.settle(c, tick);
    c.latch = this.shown(c, tick);
  }

  private shown(c: PitChannelState, tick: number): number {
    const n = countAt(c, tick);
    return c.bcd ? toBcd(n % 10000) : n & 0xffff;
  }

  private readCounter(c: PitChannelState): number {
    if (c.statusLatch >= 0) {
      const status = c.statusLatch;
      c.statusLatch = -1;
      return status;
    }
    let value = c.latch;
    if (value < 0) {
      const tick = this.tick();
      this.settle(c, tick);
      value = this.shown(c, tick);
    }
    if (c.access === 3) {
      const high = c.readHigh;
      c.readHigh = !high;
      if (high) c.latch = -1;
      return high ? value >> 8 : value & 0xff;
    }
    c.latch = -1;
    return c.access === 2 ? value >> 8 : value & 0xff;
  }

  private writeCounter(channel: number, byte: number): void {
    const c = this.state.channels[channel];
    const tick = this.tick();
    this.settle(c, tick);
    let raw: number;
    if (c.access === 3) {
      if (c.writeLow < 0) {
        c.writeLow = byte;
        // Mode 0: the first byte stops the counter.
        if (c.mode === 0) {
          this.hold(c, tick);
          if (channel === 0) this.updateOut0();
        }
        return;
      }
      raw = c.writeLow | (byte << 8);
      c.writeLow = -1;
    } else {
      raw = c.access === 2 ? byte << 8 : byte;
    }
    const value = c.bcd ? fromBcd(raw) || 10000 : raw || 65536;
    c.nullCount = true;
    const running = c.counting;
    c.loaded = true;
    switch (c.mode) {
      case 0:
      case 4:
        c.reload = value;
        c.nextReload = 0;
        this.load(c, tick);
        if (!c.gate) c.held = 0;
        break;
      case 1:
      case 5:
        // Takes effect at the next trigger.
        if (running) c.nextReload = value;
        else c.reload = value;
        break;
      default:
        if (running && c.held < 0) {
          c.nextReload = value;
          c.switchAt = periodEnd(c, tick);
        } else {
          c.reload = value;
          if (c.gate) this.load(c, tick);
        }
    }
    if (channel === 0) this.updateOut0();
  }

  private readSpeaker(): number {
    const refresh = Math.floor(this.clock.now / REFRESH_NS) & 1;
    return this.state.speaker | (refresh << 4) | (this.out(2) ? 0x20 : 0);
  }

  /** Drives counter 0's OUT and asks the clock for its next change. */
  private updateOut0(): void {
    const c = this.state.channels[0];
    const tick = this.tick();
    this.settle(c, tick);
    this.out0.set(outAt(c, tick));
    const next = nextChange(c, tick);
    if (next === Number.POSITIVE_INFINITY) this.clock.cancel(this.owner, "out0");
    else this.clock.schedule(this.owner, "out0", crystal.time(next));
  }
}

/** Ticks since the load, or what was held; negative before the load's clock pulse. */
const elapsedAt = (c: PitChannelState, tick: number): number => (c.held >= 0 ? c.held : tick - c.start);

/** The counting element at `tick`. */
function countAt(c: PitChannelState, tick: number): number {
  if (!c.counting) return c.loaded ? c.reload : c.residue;
  const elapsed = Math.max(0, elapsedAt(c, tick));
  const modulus = c.bcd ? 10000 : 65536;
  switch (c.mode) {
    case 2:
      return c.reload - (elapsed % c.reload);
    case 3: {
      const at = elapsed % c.reload;
      const high = Math.ceil(c.reload / 2);
      // Odd counts load one less; both halves count down by two.
      const top = c.reload - (c.reload & 1);
      return top - 2 * (at < high ? at : at - high);
    }
    default:
      // After zero the counter goes on from the top.
      return (((c.reload - elapsed) % modulus) + modulus) % modulus;
  }
}

function outAt(c: PitChannelState, tick: number): boolean {
  if (!c.counting) return c.mode !== 0;
  const elapsed = elapsedAt(c, tick);
  switch (c.mode) {
    case 0:
      return elapsed >= c.reload;
    case 1:
      return elapsed < 0 ? c.outBefore : elapsed >= c.reload;
    case 2:
      return !c.gate || elapsed < 0 || elapsed % c.reload !== c.reload - 1;
    case 3:
      return !c.gate || elapsed < 0 || elapsed % c.reload < Math.ceil(c.reload / 2);
    default:
      return elapsed !== c.reload;
  }
}

/** End of the current period (mode 2) or half period (mode 3). */
function periodEnd(c: PitChannelState, tick: number): number {
  const at = Math.max(0, tick - c.start) % c.reload;
  const period = Math.max(tick, c.start) - at;
  const high = Math.ceil(c.reload / 2);
  return c.mode === 3 && at < high ? period + high : period + c.reload;
}

/** First tick after `tick` at which OUT may change, or Infinity. */
function nextChange(c: PitChannelState, tick: number): number {
  if (!c.counting || c.held >= 0) return Number.POSITIVE_INFINITY;
  const elapsed = tick - c.start;
  if (elapsed < 0) {
    // The load's own clock pulse: in mode 1 OUT falls there.
    return c.start;
  }
  switch (c.mode) {
    case 0:
    case 1:
      return elapsed < c.reload ? c.start + c.reload : Number.POSITIVE_INFINITY;
    case 2:
    case 3: {
      const at = elapsed % c.reload;
      const period = tick - at;
      const fall = c.mode === 2 ? c.reload - 1 : Math.ceil(c.reload / 2);
      return at < fall ? period + fall : period + c.reload;
    }
    default:
      if (elapsed < c.reload) return c.start + c.reload;
      return elapsed === c.reload ? c.start + c.reload + 1 : Number.POSITIVE_INFINITY;
  }
}
