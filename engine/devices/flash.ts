/**
 * A parallel NOR flash chip with the Intel command set (CFI, JEDEC JESD68; QEMU's pflash_cfi01): reading as memory, block
 * erase, single and buffered writes, status register, identifiers and the CFI query table. One 8-bit wide chip, as firmware
 * for QEMU's PC expects it.
 */
import type { Registers, Stateful } from "./chip";

const Command = {
  PROGRAM_ALT: 0x10,
  ERASE: 0x20,
  PROGRAM: 0x40,
  CLEAR_STATUS: 0x50,
  LOCK: 0x60,
  READ_STATUS: 0x70,
  READ_ID: 0x90,
  QUERY: 0x98,
  CONFIRM: 0xd0,
  WRITE_BUFFER: 0xe8,
  RESET: 0xf0,
  READ_ARRAY: 0xff,
} as const;
const READY = 0x80;
const PROGRAM_ERROR = 0x10;
const ERASE_ERROR = 0x20;
/** Bytes of the write buffer. */
const BUFFER = 2048;
const BUFFER_LOG2 = 11;

/** What reads give, beside the array. */
const Shows = { ARRAY: 0, STATUS: 1, ID: 2, QUERY: 3 } as const;

/** State of the command interface. */
export interface FlashState {
  shows: number;
  status: number;
  /** The command whose further cycles follow, 0 for none. */
  command: number;
  /** Bytes of a buffered write still to come, -1 before their count is known. */
  left: number;
  /** Bytes of a buffered write so far, by offset in the array. */
  buffer: { at: number; bytes: Uint8Array } | null;
}

const newState = (): FlashState => ({ shows: Shows.ARRAY, status: READY, command: 0, left: 0, buffer: null });

/** Writes always come here; reads only while the chip does not show its array (`readable`). */
export class Flash implements Stateful<FlashState>, Registers {
  state: FlashState = newState();
  private readonly query: Uint8Array;

  /**
   * @param array the contents
   * @param block bytes of an erase block, a power of two
   * @param readOnly the board has tied down the write enable: commands that change the array fail
   * @param modeChanged reads show the array now, or no longer
   * @param contentsChanged bytes of the array
   */
  constructor(
    private readonly array: Uint8Array,
    private readonly block: number,
    private readonly readOnly: boolean,
    private readonly modeChanged: () => void,
    private readonly contentsChanged: (offset: number, length: number) => void,
  ) {
    this.query = cfiQuery(array.length, block);
  }

  /** Reads give the array: the processor may see it as plain memory. */
  get readable(): boolean {
    return this.state.shows === Shows.ARRAY;
  }

  read(offset: number, size: 1 | 2 | 4): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = (value << 8) | this.readByte(offset + i);
    return value >>> 0;
  }

  private readByte(offset: number): number {
    switch (this.state.shows) {
      case Shows.STATUS:
        return this.state.status;
      case Shows.ID:
        // Manufacturer Intel, device 28F320-like; locked blocks: none.
        return [0x89, 0x18][offset & 0xff] ?? 0;
      case Shows.QUERY:
        return this.query[offset & 0xff] ?? 0;
      default:
        return this.array[offset] ?? 0xff;
    }
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    const { state: s } = this;
    if (s.command === Command.WRITE_BUFFER && s.left > 0) {
      for (let i = 0; i < size; i++) this.bufferByte(offset + i, (value >>> (8 * i)) & 0xff);
      return;
    }
    if (s.command === Command.PROGRAM) {
      for (let i = 0; i < size; i++) this.program(offset + i, Uint8Array.of((value >>> (8 * i)) & 0xff));
      s.command = 0;
      return;
    }
    this.cycle(offset, value & 0xff);
  }

  private show(what: number): void {
    const was = this.readable;
    this.state.shows = what;
    if (this.readable !== was) this.modeChanged();
  }

  private cycle(offset: number, value: number): void {
    const { state: s } = this;
    const { command } = s;
    if (command !== 0) {
      s.command = 0;
      switch (command) {
        case Command.ERASE:
          if (value === Command.CONFIRM) this.erase(offset);
          else this.fail(PROGRAM_ERROR | ERASE_ERROR);
          return;
        case Command.LOCK:
          s.status |= READY;
          return;
        case Command.WRITE_BUFFER:
          if (s.left < 0) {
            s.command = command;
            s.left = Math.min(value + 1, BUFFER);
          } else if (value === Command.CONFIRM) this.programBuffer();
          else this.fail(PROGRAM_ERROR | ERASE_ERROR);
          return;
      }
    }
    switch (value) {
      case Command.READ_ARRAY:
      case Command.RESET:
      case 0:
        this.show(Shows.ARRAY);
        break;
      case Command.CLEAR_STATUS:
        // A real chip would still be ready; firmware for QEMU's knows it by the zero.
        s.status = 0;
        this.show(Shows.ARRAY);
        break;
      case Command.READ_STATUS:
        this.show(Shows.STATUS);
        break;
      case Command.READ_ID:
        this.show(Shows.ID);
        break;
      case Command.QUERY:
        this.show(Shows.QUERY);
        break;
      case Command.PROGRAM:
      case Command.PROGRAM_ALT:
        s.command = Command.PROGRAM;
        this.show(Shows.STATUS);
        break;
      case Command.ERASE:
      case Command.LOCK:
        s.command = value;
        this.show(Shows.STATUS);
        break;
      case Command.WRITE_BUFFER:
        s.command = value;
        s.left = -1;
        s.buffer = null;
        this.show(Shows.STATUS);
        break;
      default:
        // An unknown command: back to reading the array.
        this.show(Shows.ARRAY);
    }
  }

  private fail(bits: number): void {
    this.state.status |= READY | bits;
  }

  private bufferByte(offset: number, value: number): void {
    const { state: s } = this;
    if (s.left <= 0) return;
    s.buffer ??= {
      at: offset - (offset % BUFFER),
      bytes: this.array.slice(offset - (offset % BUFFER), offset - (offset % BUFFER) + BUFFER),
    };
    const at = offset - s.buffer.at;
    if (at >= 0 && at < s.buffer.bytes.length) s.buffer.bytes[at] = value;
    s.left--;
  }

  private programBuffer(): void {
    const { buffer } = this.state;
    this.state.buffer = null;
    if (buffer) this.program(buffer.at, buffer.bytes);
  }

  /** Flash cells only go from one to zero; QEMU's chip, which firmware is made for, stores what it is given. */
  private program(offset: number, bytes: Uint8Array): void {
    if (this.readOnly) {
      this.fail(PROGRAM_ERROR);
      return;
    }
    this.array.set(bytes.subarray(0, Math.max(0, this.array.length - offset)), offset);
    this.contentsChanged(offset, bytes.length);
    this.state.status |= READY;
  }

  private erase(offset: number): void {
    if (this.readOnly) {
      this.fail(ERASE_ERROR);
      return;
    }
    const first = offset - (offset % this.block);
    this.array.fill(0xff, first, first + this.block);
    this.contentsChanged(first, this.block);
    this.state.status |= READY;
  }
}

/** The CFI query structure (JESD68.01 table 2): Intel extended command set, one erase region. */
function cfiQuery(size: number, block: number): Uint8Array {
  const q = new Uint8Array(0x52);
  const put = (at: number, ...bytes: number[]): void => q.set(bytes, at);
  put(0x10, 0x51, 0x52, 0x59, 0x01, 0x00, 0x31, 0x00);
  // Supply voltages, typical and largest times as powers of two.
  put(0x1b, 0x45, 0x55, 0x00, 0x00, 0x07, 0x07, 0x0a, 0x00, 0x04, 0x04, 0x04, 0x00);
  put(0x27, Math.ceil(Math.log2(size)), 0x02, 0x00, BUFFER_LOG2, 0x00, 0x01);
  const blocks = Math.ceil(size / block) - 1;
  put(0x2d, blocks & 0xff, blocks >> 8, (block >> 8) & 0xff, (block >> 16) & 0xff);
  put(0x31, 0x50, 0x52, 0x49, 0x31, 0x30);
  return q;
}
