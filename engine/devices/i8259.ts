/**
 * Two cascaded 8259A programmable interrupt controllers as a PC has them: the slave's output is the master's input 2,
 * ports 0x20-0x21 and 0xa0-0xa1, edge/level control registers (ELCR) at 0x4d0-0x4d1.
 * Reference: Intel 8259A data sheet (231468); ELCR: Intel 82371SB (PIIX3) 3.2.
 */
import type { Line, Registers, Stateful } from "./chip";

/** One 8259A. Masks of inputs have input 0 in bit 0. */
export interface PicChipState {
  /** Interrupt request register. */
  irr: number;
  /** In-service register. */
  isr: number;
  /** Interrupt mask register (OCW1). */
  imr: number;
  /** Input levels as last seen. */
  lines: number;
  /** Level-triggered inputs (ELCR). */
  elcr: number;
  /** Vector of input 0 (ICW2, a multiple of 8). */
  vectorBase: number;
  /** The input with the lowest priority is (highest - 1) modulo 8. */
  highest: number;
  /** 0: ready; 1..3: ICW2..ICW4 is expected at the odd port. */
  initStep: number;
  /** ICW4 will follow. */
  needIcw4: boolean;
  /** ICW1 single mode: no ICW3. */
  single: boolean;
  /** ICW1 LTIM: all inputs level-triggered. */
  levelMode: boolean;
  autoEoi: boolean;
  rotateOnAutoEoi: boolean;
  specialFullyNested: boolean;
  specialMask: boolean;
  /** OCW3: the even port reads ISR instead of IRR. */
  readIsr: boolean;
  /** OCW3: the next read is a poll. */
  poll: boolean;
  /** The INT pin. */
  output: boolean;
}

/** Registers of both controllers. */
export interface PicState {
  master: PicChipState;
  slave: PicChipState;
}

const newChip = (): PicChipState => ({
  irr: 0,
  isr: 0,
  imr: 0,
  lines: 0,
  elcr: 0,
  vectorBase: 0,
  highest: 0,
  initStep: 0,
  needIcw4: false,
  single: false,
  levelMode: false,
  autoEoi: false,
  rotateOnAutoEoi: false,
  specialFullyNested: false,
  specialMask: false,
  readIsr: false,
  poll: false,
  output: false,
});

/** The master's input that the slave drives. */
const CASCADE = 2;
/** Answered when the request went away before the acknowledge (data sheet, "default IR7"). */
const SPURIOUS = 7;
/** ELCR bits that may be set: inputs 0, 1, 2, 8 and 13 are always edge-triggered. */
const ELCR_MASK = { master: 0xf8, slave: 0xde } as const;

/** The pair of programmable interrupt controllers, master and slave. */
export class I8259 implements Stateful<PicState> {
  state: PicState = { master: newChip(), slave: newChip() };

  /** Even and odd port of the master: 0x20, 0x21. */
  readonly masterPorts: Registers;
  /** Even and odd port of the slave: 0xa0, 0xa1. */
  readonly slavePorts: Registers;
  /** 0x4d0 (inputs 0-7) and 0x4d1 (inputs 8-15). */
  readonly elcrPorts: Registers;

  /**
   * @param intr the master's INT pin
   * @param onEoi told when an input 0..15 leaves service (level-triggered sources may want to know)
   */
  constructor(
    private readonly intr: Line,
    private readonly onEoi: (irq: number) => void = () => {},
  ) {
    this.masterPorts = {
      read: (offset) => this.readPort("master", offset),
      write: (offset, _size, value) => this.writePort("master", offset, value & 0xff),
    };
    this.slavePorts = {
      read: (offset) => this.readPort("slave", offset),
      write: (offset, _size, value) => this.writePort("slave", offset, value & 0xff),
    };
    this.elcrPorts = {
      read: (offset) => (offset === 0 ? this.state.master.elcr : this.state.slave.elcr),
      write: (offset, _size, value) => {
        const which = offset === 0 ? "master" : "slave";
        this.state[which].elcr = value & ELCR_MASK[which];
      },
    };
  }

  /** Power-up: everything clear, inputs low. */
  reset(): void {
    this.state = { master: newChip(), slave: newChip() };
    this.intr.set(false);
  }

  /** Input pin `irq` (0..15). */
  setLine(irq: number, level: boolean): void {
    this.setInput(irq < 8 ? this.state.master : this.state.slave, irq & 7, level);
    this.update();
  }

  /** A line for each input, for wiring. */
  line(irq: number): Line {
    return { set: (level) => this.setLine(irq, level) };
  }

  /** The INT pin of the master. */
  get output(): boolean {
    return this.state.master.output;
  }

  /** Vector an acknowledge would give now, without any effect. */
  peek(): number {
    const { master, slave } = this.state;
    const irq = pendingInput(master, true);
    if (irq < 0) return master.vectorBase + SPURIOUS;
    if (irq !== CASCADE) return master.vectorBase + irq;
    const slaveIrq = pendingInput(slave, false);
    return slave.vectorBase + (slaveIrq < 0 ? SPURIOUS : slaveIrq);
  }

  /** The two INTA pulses: puts the request into service and gives its vector. */
  acknowledge(): number {
    const { master, slave } = this.state;
    const irq = pendingInput(master, true);
    let vector: number;
    if (irq < 0) {
      vector = master.vectorBase + SPURIOUS;
    } else {
      this.enterService(master, irq, 0);
      if (irq !== CASCADE) {
        vector = master.vectorBase + irq;
      } else {
        const slaveIrq = pendingInput(slave, false);
        if (slaveIrq < 0) {
          vector = slave.vectorBase + SPURIOUS;
        } else {
          this.enterService(slave, slaveIrq, 8);
          vector = slave.vectorBase + slaveIrq;
        }
      }
    }
    this.update();
    return vector;
  }

  private setInput(chip: PicChipState, input: number, level: boolean): void {
    const mask = 1 << input;
    if (chip.levelMode || chip.elcr & mask) {
      if (level) chip.irr |= mask;
      else chip.irr &= ~mask;
    } else if (level && (chip.lines & mask) === 0) {
      chip.irr |= mask;
    }
    if (level) chip.lines |= mask;
    else chip.lines &= ~mask;
  }

  private enterService(chip: PicChipState, input: number, first: number): void {
    const mask = 1 << input;
    // A level-triggered request stays as long as its line does.
    if (!(chip.levelMode || chip.elcr & mask)) chip.irr &= ~mask;
    if (chip.autoEoi) {
      if (chip.rotateOnAutoEoi) chip.highest = (input + 1) & 7;
      this.onEoi(first + input);
    } else {
      chip.isr |= mask;
    }
  }

  /** Recomputes both INT pins; the slave's is the master's input 2. */
  private update(): void {
    const { master, slave } = this.state;
    slave.output = pendingInput(slave, false) >= 0;
    this.setInput(master, CASCADE, slave.output);
    // The slave's pin is combinational: a request that went away before the acknowledge takes the master's with it.
    if (!slave.output) master.irr &= ~(1 << CASCADE);
    else master.irr |= 1 << CASCADE;
    const output = pendingInput(master, true) >= 0;
    if (output !== master.output) {
      master.output = output;
      this.intr.set(output);
    }
  }

  private readPort(which: "master" | "slave", offset: number): number {
    const chip = this.state[which];
    if (chip.poll) {
      // Poll command: the read is the acknowledge; bit 7 says whether there was a request (data sheet, "Poll command").
      chip.poll = false;
      const irq = pendingInput(chip, which === "master");
      if (irq < 0) return 0;
      this.enterService(chip, irq, which === "master" ? 0 : 8);
      this.update();
      return 0x80 | irq;
    }
    if (offset === 1) return chip.imr;
    return chip.readIsr ? chip.isr : chip.irr;
  }

  private writePort(which: "master" | "slave", offset: number, value: number): void {
    const chip = this.state[which];
    if (offset === 0) {
      if (value & 0x10) this.icw1(chip, value);
      else if (value & 0x08) ocw3(chip, value);
      else this.ocw2(chip, value, which === "master" ? 0 : 8);
    } else {
      this.writeOdd(chip, value);
    }
    this.update();
  }

  private icw1(chip: PicChipState, value: number): void {
    chip.imr = 0;
    chip.isr = 0;
    chip.highest = 0;
    chip.specialMask = false;
    chip.readIsr = false;
    chip.poll = false;
    chip.autoEoi = false;
    chip.rotateOnAutoEoi = false;
    chip.specialFullyNested = false;
    chip.needIcw4 = (value & 1) !== 0;
    chip.single = (value & 2) !== 0;
    chip.levelMode = (value & 8) !== 0;
    // The edge-sense circuit is reset: an input must go low and high again; level inputs keep their request.
    const level = chip.levelMode ? 0xff : chip.elcr;
    chip.irr = chip.lines & level;
    chip.initStep = 1;
  }

  private writeOdd(chip: PicChipState, value: number): void {
    switch (chip.initStep) {
      case 0:
        chip.imr = value;
        return;
      case 1:
        chip.vectorBase = value & 0xf8;
        chip.initStep = chip.single ? (chip.needIcw4 ? 3 : 0) : 2;
        return;
      case 2:
        // ICW3 tells how the chips are cascaded, which is soldered here.
        chip.initStep = chip.needIcw4 ? 3 : 0;
        return;
      default:
        chip.specialFullyNested = (value & 0x10) !== 0;
        chip.autoEoi = (value & 2) !== 0;
        chip.initStep = 0;
    }
  }

  private ocw2(chip: PicChipState, value: number, first: number): void {
    const rotate = (value & 0x80) !== 0;
    const specific = (value & 0x40) !== 0;
    const eoi = (value & 0x20) !== 0;
    const level = value & 7;
    if (!eoi) {
      if (specific && rotate) chip.highest = (level + 1) & 7;
      else if (!specific) chip.rotateOnAutoEoi = rotate;
      return;
    }
    const input = specific ? level : highestInput(chip, chip.isr);
    if (input < 0) return;
    const served = (chip.isr & (1 << input)) !== 0;
    chip.isr &= ~(1 << input);
    if (rotate) chip.highest = (input + 1) & 7;
    if (served) this.onEoi(first + input);
  }
}

function ocw3(chip: PicChipState, value: number): void {
  if (value & 0x40) chip.specialMask = (value & 0x20) !== 0;
  if (value & 0x04) chip.poll = true;
  else if (value & 0x02) chip.readIsr = (value & 0x01) !== 0;
}

/** The set input of highest priority, or -1. */
function highestInput(chip: PicChipState, mask: number): number {
  for (let i = 0; i < 8; i++) {
    const input = (chip.highest + i) & 7;
    if (mask & (1 << input)) return input;
  }
  return -1;
}

/** The input that may interrupt now: unmasked and of higher priority than everything in service; -1 for none. */
function pendingInput(chip: PicChipState, master: boolean): number {
  const requests = chip.irr & ~chip.imr;
  if (requests === 0) return -1;
  let service = chip.isr;
  // Special mask mode: in-service inputs that are masked no longer hold back lower ones.
  if (chip.specialMask) service &= ~chip.imr;
  for (let i = 0; i < 8; i++) {
    const input = (chip.highest + i) & 7;
    const mask = 1 << input;
    // Special fully nested mode: the slave may interrupt again while one of its requests is in service.
    const nested = master && chip.specialFullyNested && input === CASCADE;
    if (service & mask && !nested) return -1;
    if (requests & mask) return input;
    if (service & mask) return -1;
  }
  return -1;
}
