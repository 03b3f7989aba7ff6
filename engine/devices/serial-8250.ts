/**
 * 16550A UART (National Semiconductor PC16550D data sheet): eight registers, 16-byte FIFOs, modem lines, loopback.
 *
 * What the guest sends leaves at once, as with QEMU's: the transmitter is always ready again after a write. What comes in
 * waits outside until the FIFO has room, so nothing is ever overrun. A patient sender also waits until software listens (it
 * has switched the receive interrupt on, or keeps asking for data) and sends again what a driver throws out of the FIFO when
 * it starts: nothing that is typed early is lost. The receive time-out of FIFO mode is kept in virtual time at the programmed speed.
 */
import type { VirtualClock } from "../clock";
import type { Line, Registers, Stateful } from "./chip";

// biome-ignore format: bit tables of the data sheet
const Ier = { RX: 1, TX: 2, LINE: 4, MODEM: 8 } as const;
// biome-ignore format: bit tables of the data sheet
const Iir = { NONE: 1, MODEM: 0, TX: 2, RX: 4, LINE: 6, TIMEOUT: 0xc, FIFOS: 0xc0 } as const;
const Fcr = { ENABLE: 1, CLEAR_RX: 2, CLEAR_TX: 4 } as const;
const Lcr = { BREAK: 0x40, DLAB: 0x80 } as const;
const Mcr = { DTR: 1, RTS: 2, OUT1: 4, OUT2: 8, LOOP: 0x10 } as const;
const Lsr = { DATA: 1, OVERRUN: 2, BREAK: 0x10, THRE: 0x20, EMPTY: 0x40 } as const;
const Msr = { DELTAS: 0x0f, CTS: 0x10, DSR: 0x20, RI: 0x40, DCD: 0x80 } as const;

const FIFO_SIZE = 16;
const TRIGGERS = [1, 4, 8, 14] as const;
const CLOCK_HZ = 1_843_200;
/** Reads of the line status register in a row, with nothing sent between, that mean software waits for data by polling. */
const LISTENING_POLLS = 16;

/** Registers and FIFOs of the port. */
export interface SerialState {
  /** Divisor latch. */
  divisor: number;
  ier: number;
  lcr: number;
  mcr: number;
  lsr: number;
  msr: number;
  scratch: number;
  /** FIFO control: enable bit and trigger. */
  fcr: number;
  /** Received bytes the guest can read. */
  rx: number[];
  /** Received bytes that wait for room in the FIFO, and, from a patient sender, for software that listens. */
  backlog: number[];
  /** Reads of LSR since something was sent, up to LISTENING_POLLS. */
  polls: number;
  /** Transmitter-empty interrupt waiting to be read from IIR. */
  txInterrupt: boolean;
  /** Receive time-out has struck. */
  timeout: boolean;
}

const newState = (): SerialState => ({
  divisor: 12,
  ier: 0,
  lcr: 0,
  mcr: Mcr.OUT2,
  lsr: Lsr.THRE | Lsr.EMPTY,
  // A terminal is connected and ready.
  msr: Msr.CTS | Msr.DSR | Msr.DCD,
  scratch: 0,
  fcr: 0,
  rx: [],
  backlog: [],
  polls: 0,
  txInterrupt: false,
  timeout: false,
});

/** One serial port, a 16550A. */
export class Serial8250 implements Stateful<SerialState>, Registers {
  state: SerialState = newState();

  /**
   * @param owner name of this chip in the clock's event queue
   * @param irq INTRPT pin, gated by OUT2 as on PC boards
   * @param output takes each byte sent
   * @param patient whoever sends to this port waits for software that listens
   */
  constructor(
    private readonly clock: VirtualClock,
    private readonly owner: string,
    private readonly irq: Line,
    private readonly output: (byte: number) => void,
    private readonly patient = false,
  ) {
    clock.register(owner, this);
  }

  reset(): void {
    const { backlog } = this.state;
    this.state = { ...newState(), backlog };
    this.clock.cancel(this.owner, "timeout");
    this.irq.set(false);
    this.fill();
  }

  /** Bytes from the other end of the cable. */
  receive(bytes: Uint8Array): void {
    for (const byte of bytes) this.state.backlog.push(byte);
    this.fill();
  }

  /** Software waits for input by interrupt: a machine that is otherwise quiet is not dead. */
  get awaitsInput(): boolean {
    return (this.state.ier & Ier.RX) !== 0 && (this.state.mcr & Mcr.OUT2) !== 0;
  }

  read(offset: number): number {
    const s = this.state;
    const dlab = (s.lcr & Lcr.DLAB) !== 0;
    switch (offset) {
      case 0:
        return dlab ? s.divisor & 0xff : this.readData();
      case 1:
        return dlab ? s.divisor >> 8 : s.ier;
      case 2: {
        const id = this.interruptId();
        if ((id & 0xf) === Iir.TX) {
          s.txInterrupt = false;
          this.update();
        }
        return id;
      }
      case 3:
        return s.lcr;
      case 4:
        return s.mcr;
      case 5: {
        const value = s.lsr | (s.rx.length > 0 ? Lsr.DATA : 0);
        s.lsr &= ~(Lsr.OVERRUN | Lsr.BREAK);
        if (s.polls < LISTENING_POLLS) {
          s.polls++;
          if (s.polls === LISTENING_POLLS) this.fill();
        }
        this.update();
        return value;
      }
      case 6:
        return this.readModemStatus();
      default:
        return s.scratch;
    }
  }

  write(offset: number, _size: 1 | 2 | 4, value: number): void {
    const s = this.state;
    const dlab = (s.lcr & Lcr.DLAB) !== 0;
    switch (offset) {
      case 0:
        if (dlab) s.divisor = (s.divisor & 0xff00) | value;
        else this.send(value);
        return;
      case 1:
        if (dlab) {
          s.divisor = (s.divisor & 0xff) | (value << 8);
        } else {
          // Enabling the transmitter interrupt while the register is empty raises it (data sheet 8.6.1).
          if (value & ~s.ier & Ier.TX && s.lsr & Lsr.THRE) s.txInterrupt = true;
          s.ier = value & 0xf;
          this.fill();
        }
        return;
      case 2:
        this.writeFifoControl(value);
        return;
      case 3:
        s.lcr = value;
        return;
      case 4:
        this.writeModemControl(value & 0x1f);
        return;
      case 7:
        s.scratch = value;
        return;
    }
  }

  onClockEvent(): void {
    if (this.state.rx.length === 0) return;
    this.state.timeout = true;
    this.update();
  }

  private get fifo(): boolean {
    return (this.state.fcr & Fcr.ENABLE) !== 0;
  }

  /** Software takes what comes in: by interrupt, or by asking again and again. */
  private get listening(): boolean {
    if (!this.patient) return true;
    return (this.state.ier & Ier.RX) !== 0 || this.state.polls >= LISTENING_POLLS;
  }

  private get capacity(): number {
    return this.fifo ? FIFO_SIZE : 1;
  }

  private get trigger(): number {
    return this.fifo ? TRIGGERS[this.state.fcr >> 6] : 1;
  }

  /** Moves waiting bytes into the FIFO as far as there is room. */
  private fill(): void {
    const s = this.state;
    if (s.mcr & Mcr.LOOP) return;
    let moved = false;
    while (this.listening && s.backlog.length > 0 && s.rx.length < this.capacity) {
      s.rx.push(s.backlog.shift() as number);
      moved = true;
    }
    if (moved) this.startTimeout();
    this.update();
  }

  /** Four character times without a read or a new character (data sheet 8.4, FIFO interrupt mode). */
  private startTimeout(): void {
    this.state.timeout = false;
    if (!this.fifo || this.state.rx.length === 0) {
      this.clock.cancel(this.owner, "timeout");
      return;
    }
    const bits = 1 + 5 + (this.state.lcr & 3) + (this.state.lcr & 8 ? 1 : 0) + (this.state.lcr & 4 ? 2 : 1);
    const bitNs = Math.ceil(((this.state.divisor || 65536) * 16 * 1e9) / CLOCK_HZ);
    this.clock.schedule(this.owner, "timeout", this.clock.now + 4 * bits * bitNs);
  }

  private readData(): number {
    const s = this.state;
    const byte = s.rx.shift() ?? 0;
    this.startTimeout();
    // The line falls before the next byte raises it again: edge-triggered controllers need to see that.
    this.update();
    this.fill();
    return byte;
  }

  private send(byte: number): void {
    const s = this.state;
    if (s.mcr & Mcr.LOOP) {
      // Data sheet 8.4, overrun: the new character destroys the one in the receiver buffer, but not those in the FIFO.
      if (s.rx.length >= this.capacity) s.lsr |= Lsr.OVERRUN;
      if (!this.fifo) s.rx = [byte];
      else if (s.rx.length < this.capacity) s.rx.push(byte);
      this.startTimeout();
    } else {
      s.polls = 0;
      this.output(byte);
    }
    s.txInterrupt = true;
    this.update();
  }

  private writeFifoControl(value: number): void {
    const s = this.state;
    // A change of the enable bit empties both FIFOs.
    if ((value ^ s.fcr) & Fcr.ENABLE || value & Fcr.CLEAR_RX) {
      if (this.patient && !(s.mcr & Mcr.LOOP)) s.backlog.unshift(...s.rx);
      s.rx = [];
      s.timeout = false;
      this.clock.cancel(this.owner, "timeout");
    }
    if (value & Fcr.CLEAR_TX) s.txInterrupt = true;
    s.fcr = value & Fcr.ENABLE ? value & 0xc9 : 0;
    this.fill();
  }

  private writeModemControl(value: number): void {
    const s = this.state;
    const before = this.modemLines();
    s.mcr = value;
    this.noteModemChange(before, this.modemLines());
    if (!(value & Mcr.LOOP)) this.fill();
    this.update();
  }

  /** Inputs CTS, DSR, RI, DCD in bits 7:4; in loopback they are the outputs RTS, DTR, OUT1, OUT2. */
  private modemLines(): number {
    const { mcr, msr } = this.state;
    if (!(mcr & Mcr.LOOP)) return msr & 0xf0;
    return (
      (mcr & Mcr.RTS ? Msr.CTS : 0) |
      (mcr & Mcr.DTR ? Msr.DSR : 0) |
      (mcr & Mcr.OUT1 ? Msr.RI : 0) |
      (mcr & Mcr.OUT2 ? Msr.DCD : 0)
    );
  }

  private noteModemChange(before: number, after: number): void {
    const changed = before ^ after;
    let deltas = (changed >> 4) & 0xb;
    // Ring indicator: only the trailing edge counts.
    if (changed & Msr.RI && !(after & Msr.RI)) deltas |= 4;
    this.state.msr |= deltas;
  }

  private readModemStatus(): number {
    const s = this.state;
    const value = this.modemLines() | (s.msr & Msr.DELTAS);
    s.msr &= ~Msr.DELTAS;
    this.update();
    return value;
  }

  private interruptId(): number {
    const s = this.state;
    const fifos = this.fifo ? Iir.FIFOS : 0;
    if (s.ier & Ier.LINE && s.lsr & (Lsr.OVERRUN | Lsr.BREAK)) return Iir.LINE | fifos;
    if (s.ier & Ier.RX && s.rx.length >= this.trigger) return Iir.RX | fifos;
    if (s.ier & Ier.RX && s.timeout) return Iir.TIMEOUT | fifos;
    if (s.ier & Ier.TX && s.txInterrupt) return Iir.TX | fifos;
    if (s.ier & Ier.MODEM && s.msr & Msr.DELTAS) return Iir.MODEM | fifos;
    return Iir.NONE | fifos;
  }

  private update(): void {
    const pending = (this.interruptId() & 1) === 0;
    // OUT2 gates the interrupt pin on PC boards; in loopback the pin is off.
    this.irq.set(pending && (this.state.mcr & (Mcr.OUT2 | Mcr.LOOP)) === Mcr.OUT2);
  }
}
