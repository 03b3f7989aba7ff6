/**
 * The Bochs display interface (VBE DISPI): resolution and linear frame buffer of QEMU's standard VGA, by index and data
 * ports 0x1ce and 0x1cf, or memory-mapped in its register BAR (QEMU docs/specs/standard-vga).
 */
import type { Registers, Stateful } from "./chip";

/** Index of each register behind ports 0x1ce and 0x1cf. */
export const Dispi = {
  ID: 0,
  X_RESOLUTION: 1,
  Y_RESOLUTION: 2,
  BITS_PER_PIXEL: 3,
  ENABLE: 4,
  BANK: 5,
  VIRTUAL_WIDTH: 6,
  VIRTUAL_HEIGHT: 7,
  X_OFFSET: 8,
  Y_OFFSET: 9,
  MEMORY_64K: 10,
} as const;
const REGISTERS = 11;
const ID_FIRST = 0xb0c0;
const ID_LAST = 0xb0c5;
const DispiEnable = { ENABLED: 1, GET_CAPABILITIES: 2, LINEAR: 0x40, KEEP_MEMORY: 0x80 } as const;
const CAPABILITIES: Readonly<Record<number, number>> = {
  [Dispi.X_RESOLUTION]: 16000,
  [Dispi.Y_RESOLUTION]: 12000,
  [Dispi.BITS_PER_PIXEL]: 32,
};

/** The registers by index. */
export interface BochsVbeState {
  index: number;
  registers: Uint16Array;
}

const newState = (): BochsVbeState => {
  const registers = new Uint16Array(REGISTERS);
  registers[Dispi.ID] = ID_LAST;
  return { index: 0, registers };
};

/** The index and data registers, and the mode they ask for. */
export class BochsVbe implements Stateful<BochsVbeState> {
  state: BochsVbeState = newState();

  /** Ports 0x1ce (index), 0x1cf and 0x1d0 (data), 16 bits wide. */
  readonly ports: Registers = {
    read: (offset) => (offset === 0 ? this.state.index : this.readRegister(this.state.index)),
    write: (offset, _size, value) => {
      if (offset === 0) this.state.index = value & 0xffff;
      else this.writeRegister(this.state.index, value & 0xffff);
    },
  };
  /** The registers one after the other, 16 bits each, as the register BAR has them at 0x500. */
  readonly memory: Registers = {
    read: (offset, size) => {
      const word = this.readRegister(offset >> 1);
      return size === 1 && offset & 1 ? word >> 8 : word;
    },
    write: (offset, _size, value) => this.writeRegister(offset >> 1, value & 0xffff),
  };

  /**
   * @param memorySize bytes of display memory
   * @param modeSet a mode was switched on (with `clear`: display memory starts black) or off
   * @param bankChanged the 64 KiB bank seen in the display window
   */
  constructor(
    private readonly memorySize: number,
    private readonly modeSet: (on: boolean, clear: boolean) => void,
    private readonly bankChanged: (bank: number) => void,
  ) {}

  get enabled(): boolean {
    return (this.state.registers[Dispi.ENABLE] & DispiEnable.ENABLED) !== 0;
  }

  private readRegister(index: number): number {
    const { registers } = this.state;
    if (index === Dispi.MEMORY_64K) return this.memorySize >> 16;
    if (registers[Dispi.ENABLE] & DispiEnable.GET_CAPABILITIES && index in CAPABILITIES) return CAPABILITIES[index];
    return registers[index] ?? 0;
  }

  private writeRegister(index: number, value: number): void {
    const { registers: r } = this.state;
    switch (index) {
      case Dispi.ID:
        if (value >= ID_FIRST && value <= ID_LAST) r[Dispi.ID] = value;
        break;
      case Dispi.X_RESOLUTION:
      case Dispi.Y_RESOLUTION:
      case Dispi.BITS_PER_PIXEL:
      case Dispi.VIRTUAL_WIDTH:
      case Dispi.X_OFFSET:
      case Dispi.Y_OFFSET:
        r[index] = value;
        this.fit();
        break;
      case Dispi.BANK:
        r[index] = value % (this.memorySize >> 16);
        this.bankChanged(r[index] * 0x10000);
        break;
      case Dispi.ENABLE: {
        const was = this.enabled;
        const on = (value & DispiEnable.ENABLED) !== 0;
        if (on && !was) {
          r[Dispi.VIRTUAL_WIDTH] = 0;
          r[Dispi.X_OFFSET] = 0;
          r[Dispi.Y_OFFSET] = 0;
          this.fit();
        }
        r[Dispi.ENABLE] = value;
        r[Dispi.BANK] = 0;
        this.bankChanged(0);
        if (on !== was || on) this.modeSet(on, on && !was && !(value & DispiEnable.KEEP_MEMORY));
        break;
      }
    }
  }

  /** Keeps virtual size and offsets within display memory. */
  private fit(): void {
    const { registers: r } = this.state;
    const bytes = (r[Dispi.BITS_PER_PIXEL] === 15 ? 16 : r[Dispi.BITS_PER_PIXEL]) / 8 || 1;
    if (r[Dispi.VIRTUAL_WIDTH] < r[Dispi.X_RESOLUTION]) r[Dispi.VIRTUAL_WIDTH] = r[Dispi.X_RESOLUTION];
    const line = Math.max(1, r[Dispi.VIRTUAL_WIDTH] * bytes);
    r[Dispi.VIRTUAL_HEIGHT] = Math.min(0xffff, Math.floor(this.memorySize / line));
    if (r[Dispi.X_OFFSET] + r[Dispi.X_RESOLUTION] > r[Dispi.VIRTUAL_WIDTH]) r[Dispi.X_OFFSET] = 0;
    if (r[Dispi.Y_OFFSET] + r[Dispi.Y_RESOLUTION] > r[Dispi.VIRTUAL_HEIGHT]) r[Dispi.Y_OFFSET] = 0;
  }
}
