/**
 * PCI configuration mechanism #1 (ports 0xcf8, 0xcfc-0xcff; PCI 2.3 section 3.2.2.3.2) with the functions of a small PC:
 * 440FX host bridge, PIIX3 ISA bridge, PIIX4 power management. Everything else answers as absent.
 */
import type { Registers, Stateful } from "./chip";

export interface PciState {
  /** CONFIG_ADDRESS. */
  address: number;
  /** 256 bytes of configuration space a function, in the order of the table below. */
  spaces: Uint8Array[];
}

interface PciFunction {
  readonly device: number;
  readonly function: number;
  /** Initial values by offset; width in bytes follows from the list's form. */
  readonly words: readonly (readonly [offset: number, size: 1 | 2 | 4, value: number])[];
  /** Ranges software may write. */
  readonly writable: readonly (readonly [first: number, last: number])[];
}

const FUNCTIONS: readonly PciFunction[] = [
  {
    // 82441FX host bridge; the PAM registers 0x59-0x5f keep what is written, memory behind them is always RAM.
    device: 0,
    function: 0,
    words: [
      [0x00, 2, 0x8086],
      [0x02, 2, 0x1237],
      [0x04, 2, 0x0006],
      [0x08, 1, 0x02],
      [0x0b, 1, 0x06],
    ],
    writable: [
      [0x50, 0x51],
      [0x59, 0x5f],
      [0x72, 0x72],
    ],
  },
  {
    // 82371SB ISA bridge, multifunction; PIRQ routing 0x60-0x63.
    device: 1,
    function: 0,
    words: [
      [0x00, 2, 0x8086],
      [0x02, 2, 0x7000],
      [0x04, 2, 0x0007],
      [0x0a, 1, 0x01],
      [0x0b, 1, 0x06],
      [0x0e, 1, 0x80],
      [0x60, 4, 0x80808080],
    ],
    writable: [
      [0x4c, 0x4f],
      [0x60, 0x63],
    ],
  },
  {
    // 82371AB power management; its PM base register says where the ACPI block really is.
    device: 1,
    function: 3,
    words: [
      [0x00, 2, 0x8086],
      [0x02, 2, 0x7113],
      [0x06, 2, 0x0280],
      [0x08, 1, 0x03],
      [0x0a, 1, 0x80],
      [0x0b, 1, 0x06],
      [0x3c, 1, 9],
      [0x3d, 1, 1],
      [0x40, 4, 0x0601],
      [0x80, 1, 1],
    ],
    writable: [[0x3c, 0x3c]],
  },
];

function initialSpace(f: PciFunction): Uint8Array {
  const space = new Uint8Array(256);
  const view = new DataView(space.buffer);
  for (const [offset, size, value] of f.words) {
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
  }
  return space;
}

const ENABLE = 0x80000000;

export class PciHost implements Stateful<PciState> {
  state: PciState = { address: 0, spaces: FUNCTIONS.map(initialSpace) };

  /** Port 0xcf8, 4 bytes; narrower accesses are not meant for it (0xcf9 is the reset control register). */
  readonly addressPort: Registers;
  /** Ports 0xcfc-0xcff. */
  readonly dataPorts: Registers;

  constructor() {
    this.addressPort = {
      read: (_offset, size) => (size === 4 ? this.state.address : 0xffffffff),
      write: (_offset, size, value) => {
        if (size === 4) this.state.address = (value & 0x80fffffc) >>> 0;
      },
    };
    this.dataPorts = {
      read: (offset, size) => this.readData(offset, size),
      write: (offset, size, value) => this.writeData(offset, size, value),
    };
  }

  reset(): void {
    this.state = { address: 0, spaces: FUNCTIONS.map(initialSpace) };
  }

  /** Index of the addressed function, -1 when it is absent. */
  private selected(): number {
    const { address } = this.state;
    if (!(address & ENABLE)) return -1;
    const bus = (address >>> 16) & 0xff;
    if (bus !== 0) return -1;
    const device = (address >>> 11) & 0x1f;
    const fn = (address >>> 8) & 7;
    return FUNCTIONS.findIndex((f) => f.device === device && f.function === fn);
  }

  private readData(offset: number, size: number): number {
    const which = this.selected();
    if (which < 0) return 0xffffffff;
    const at = (this.state.address & 0xfc) + offset;
    const space = this.state.spaces[which];
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = (value << 8) | space[at + i];
    return value >>> 0;
  }

  private writeData(offset: number, size: number, value: number): void {
    const which = this.selected();
    if (which < 0) return;
    const at = (this.state.address & 0xfc) + offset;
    const f = FUNCTIONS[which];
    for (let i = 0; i < size; i++) {
      if (f.writable.some(([first, last]) => at + i >= first && at + i <= last)) {
        this.state.spaces[which][at + i] = (value >>> (8 * i)) & 0xff;
      }
    }
  }
}
