/**
 * 8042 keyboard controller, ports 0x60 and 0x64, with an idle AT keyboard and PS/2 mouse on it: enough for software that
 * probes, sets up, reads keys, or resets the machine by pulsing the output port. IBM PS/2 technical reference; OSDev 8042.
 */
import type { Line, Registers, Stateful } from "./chip";

const Status = { OUTPUT_FULL: 1, SYSTEM: 4, COMMAND: 8, UNLOCKED: 0x10, AUX_DATA: 0x20 } as const;
const Config = {
  KEYBOARD_IRQ: 1,
  AUX_IRQ: 2,
  SYSTEM: 4,
  NO_KEYBOARD: 0x10,
  NO_AUX: 0x20,
  TRANSLATION: 0x40,
} as const;
/** Output port: bit 0 is the active-low reset, bit 1 the A20 gate (always open here, as on today's processors). */
const Output = { NOT_RESET: 1, A20: 2, KEYBOARD_IRQ: 0x10, AUX_IRQ: 0x20 } as const;

const ACK = 0xfa;
const RESEND = 0xfe;
const SELF_TEST_OK = 0xaa;
/** What the controller's translation makes of the numbers of the scan code sets 1, 2, 3. */
const TRANSLATED_SET = [0x43, 0x41, 0x3f] as const;

interface Source {
  /** Bytes from the device that wait to be read. */
  queue: number[];
  /** A command byte that waits for its argument, -1 for none. */
  argumentOf: number;
  scanning: boolean;
}

interface MouseSettings {
  /** Code 0..3 of the resolution: 1, 2, 4, 8 counts a millimetre. */
  resolution: number;
  /** Samples a second. */
  rate: number;
  /** Scaling 2:1. */
  doubled: boolean;
}

const defaultMouse = (): MouseSettings => ({ resolution: 2, rate: 100, doubled: false });

/** Registers of the controller and what waits to be read. */
export interface I8042State {
  config: number;
  outputPort: number;
  /** Byte in the output buffer, -1 when empty; `fromAux` tells whose. */
  output: number;
  fromAux: boolean;
  /** Bytes the controller itself puts into the output buffer, whether or not the devices' interfaces are enabled. */
  answers: { byte: number; aux: boolean }[];
  /** Controller command that waits for a data byte at port 0x60, -1 for none. */
  pendingCommand: number;
  lastWasCommand: boolean;
  scanSet: number;
  keyboard: Source;
  aux: Source;
  mouse: MouseSettings;
}

const newState = (): I8042State => ({
  config: Config.KEYBOARD_IRQ | Config.SYSTEM | Config.TRANSLATION,
  outputPort: Output.NOT_RESET | Output.A20,
  output: -1,
  fromAux: false,
  answers: [],
  pendingCommand: -1,
  lastWasCommand: false,
  scanSet: 2,
  keyboard: { queue: [], argumentOf: -1, scanning: true },
  aux: { queue: [], argumentOf: -1, scanning: false },
  mouse: defaultMouse(),
});

/** Keyboard controller: ports 0x60 and 0x64. */
export class I8042 implements Stateful<I8042State> {
  state: I8042State = newState();
  readonly dataPort: Registers;
  readonly commandPort: Registers;

  /**
   * @param keyboardIrq IRQ 1
   * @param auxIrq IRQ 12
   * @param resetCpu the reset output
   */
  constructor(
    private readonly keyboardIrq: Line,
    private readonly auxIrq: Line,
    private readonly resetCpu: () => void,
  ) {
    this.dataPort = { read: () => this.readData(), write: (_o, _s, value) => this.writeData(value & 0xff) };
    this.commandPort = { read: () => this.status(), write: (_o, _s, value) => this.command(value & 0xff) };
  }

  reset(): void {
    this.state = newState();
    this.update();
  }

  /** Scan codes (set 1, as software reads them with translation on) typed at the keyboard. */
  typed(codes: Iterable<number>): void {
    if (!this.state.keyboard.scanning) return;
    this.state.keyboard.queue.push(...codes);
    this.refill();
  }

  /** Software waits for keys by interrupt. */
  get awaitsInput(): boolean {
    return (this.state.config & (Config.KEYBOARD_IRQ | Config.NO_KEYBOARD)) === Config.KEYBOARD_IRQ;
  }

  private status(): number {
    const s = this.state;
    return (
      (s.output >= 0 ? Status.OUTPUT_FULL : 0) |
      (s.output >= 0 && s.fromAux ? Status.AUX_DATA : 0) |
      (s.config & Config.SYSTEM ? Status.SYSTEM : 0) |
      (s.lastWasCommand ? Status.COMMAND : 0) |
      Status.UNLOCKED
    );
  }

  private readData(): number {
    const s = this.state;
    const value = Math.max(s.output, 0);
    s.output = -1;
    this.update();
    this.refill();
    return value;
  }

  /** Puts the next waiting byte into the output buffer: controller first, then keyboard, then mouse. */
  private refill(): void {
    const s = this.state;
    if (s.output < 0) {
      const answer = s.answers.shift();
      if (answer) {
        s.output = answer.byte;
        s.fromAux = answer.aux;
      } else if (s.keyboard.queue.length > 0 && !(s.config & Config.NO_KEYBOARD)) {
        s.output = s.keyboard.queue.shift() as number;
        s.fromAux = false;
      } else if (s.aux.queue.length > 0 && !(s.config & Config.NO_AUX)) {
        s.output = s.aux.queue.shift() as number;
        s.fromAux = true;
      }
    }
    this.update();
  }

  private update(): void {
    const s = this.state;
    const full = s.output >= 0;
    this.keyboardIrq.set(full && !s.fromAux && (s.config & Config.KEYBOARD_IRQ) !== 0);
    this.auxIrq.set(full && s.fromAux && (s.config & Config.AUX_IRQ) !== 0);
  }

  private answer(byte: number, aux = false): void {
    this.state.answers.push({ byte, aux });
    this.refill();
  }

  private command(value: number): void {
    const s = this.state;
    s.lastWasCommand = true;
    s.pendingCommand = -1;
    if (value >= 0xf0) {
      // Pulses the output port bits whose command bit is 0; bit 0 is the processor's reset.
      if (!(value & 1)) this.resetCpu();
      return;
    }
    if (value >= 0x20 && value < 0x40) {
      this.answer(value === 0x20 ? s.config : 0);
      return;
    }
    switch (value) {
      case 0xa7:
        s.config |= Config.NO_AUX;
        break;
      case 0xa8:
        s.config &= ~Config.NO_AUX;
        break;
      case 0xa9:
      case 0xab:
        // Interface tests: no error.
        this.answer(0);
        return;
      case 0xaa:
        s.config |= Config.SYSTEM;
        this.answer(0x55);
        return;
      case 0xad:
        s.config |= Config.NO_KEYBOARD;
        break;
      case 0xae:
        s.config &= ~Config.NO_KEYBOARD;
        break;
      case 0xc0:
        this.answer(0x80);
        return;
      case 0xd0:
        this.answer(
          s.outputPort | (s.output >= 0 ? (s.fromAux ? Output.AUX_IRQ : Output.KEYBOARD_IRQ) : 0) | Output.A20,
        );
        return;
      case 0xd1:
      case 0xd2:
      case 0xd3:
      case 0xd4:
        s.pendingCommand = value;
        break;
      default:
        if (value >= 0x60 && value < 0x80) s.pendingCommand = value;
    }
    this.refill();
  }

  private writeData(value: number): void {
    const s = this.state;
    const command = s.pendingCommand;
    s.pendingCommand = -1;
    s.lastWasCommand = false;
    switch (command) {
      case -1:
        // Talking to the keyboard enables it.
        s.config &= ~Config.NO_KEYBOARD;
        this.keyboardCommand(value);
        break;
      case 0xd1:
        s.outputPort = value;
        if (!(value & Output.NOT_RESET)) this.resetCpu();
        break;
      case 0xd2:
      case 0xd3:
        // The byte reads as if the device had sent it.
        this.answer(value, command === 0xd3);
        break;
      case 0xd4:
        s.config &= ~Config.NO_AUX;
        this.auxCommand(value);
        break;
      case 0x60:
        s.config = value;
        break;
    }
    this.refill();
  }

  private keyboardCommand(value: number): void {
    const k = this.state.keyboard;
    const pending = k.argumentOf;
    k.argumentOf = -1;
    if (pending >= 0) {
      k.queue.push(ACK);
      if (pending === 0xf0 && value === 0) {
        const { config, scanSet } = this.state;
        k.queue.push(config & Config.TRANSLATION ? TRANSLATED_SET[scanSet - 1] : scanSet);
      }
      if (pending === 0xf0 && value >= 1 && value <= 3) this.state.scanSet = value;
      return;
    }
    switch (value) {
      case 0xff:
        k.scanning = true;
        this.state.scanSet = 2;
        k.queue.push(ACK, SELF_TEST_OK);
        break;
      case 0xf2:
        k.queue.push(ACK, 0xab, this.state.config & Config.TRANSLATION ? 0x41 : 0x83);
        break;
      case 0xee:
        k.queue.push(0xee);
        break;
      case 0xed:
      case 0xf0:
      case 0xf3:
        k.argumentOf = value;
        k.queue.push(ACK);
        break;
      case 0xf4:
        k.scanning = true;
        k.queue.push(ACK);
        break;
      case 0xf5:
        k.scanning = false;
        k.queue.push(ACK);
        break;
      default:
        k.queue.push(value >= 0xf6 && value <= 0xfd ? ACK : RESEND);
    }
  }

  private auxCommand(value: number): void {
    const { aux: m, mouse } = this.state;
    const pending = m.argumentOf;
    m.argumentOf = -1;
    if (pending >= 0) {
      if (pending === 0xe8) mouse.resolution = value & 3;
      else mouse.rate = value;
      m.queue.push(ACK);
      return;
    }
    switch (value) {
      case 0xff:
        m.scanning = false;
        this.state.mouse = defaultMouse();
        m.queue.push(ACK, SELF_TEST_OK, 0);
        break;
      case 0xf2:
        m.queue.push(ACK, 0);
        break;
      case 0xe9:
        // Status: stream mode, reporting, scaling; resolution; rate.
        m.queue.push(ACK, (m.scanning ? 0x20 : 0) | (mouse.doubled ? 0x10 : 0), mouse.resolution, mouse.rate);
        break;
      case 0xeb:
        m.queue.push(ACK, 8, 0, 0);
        break;
      case 0xe6:
      case 0xe7:
        mouse.doubled = value === 0xe7;
        m.queue.push(ACK);
        break;
      case 0xf6:
        m.scanning = false;
        this.state.mouse = defaultMouse();
        m.queue.push(ACK);
        break;
      case 0xe8:
      case 0xf3:
        m.argumentOf = value;
        m.queue.push(ACK);
        break;
      case 0xf4:
      case 0xf5:
        m.scanning = value === 0xf4;
        m.queue.push(ACK);
        break;
      default:
        m.queue.push(value >= 0xe6 ? ACK : RESEND);
    }
  }
}
