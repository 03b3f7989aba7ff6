/**
 * Display memory of a VGA adapter as the processor reaches it at 0xa0000-0xbffff: four planes with latches, write modes and
 * read modes (IBM VGA technical reference, "VGA memory maps" and "graphics controller registers").
 *
 * The planes lie interleaved, plane p of address a at byte 4a + p, so that chained addressing is linear. Text mode and
 * chained mode can be shown to the processor as plain memory; `window` tells when.
 */
import type { Registers, Stateful } from "./chip";
import { VGA_MEMORY_BASE, VGA_MEMORY_SIZE, VgaReg, type VgaState } from "./vga";

const TEXT_WINDOW = 0x18000;
const TEXT_SIZE = 0x8000;
const CHAIN_4 = 0x08;
const NOT_ODD_EVEN = 0x04;
const ODD_EVEN = 0x10;
const GRAPHICS = 1;
const ALL_PLANES = 0xf;
const TEXT_PLANES = 3;

/** A piece of the display window that is plain memory now. Addresses count from 0xa0000. */
export type PlainWindow =
  /** Character and attribute bytes, the text memory. */
  | { readonly kind: "text"; readonly at: number; readonly size: number }
  /** Display memory itself, from `offset` on. */
  | { readonly kind: "linear"; readonly at: number; readonly size: number; readonly offset: number };

/** The latches, and what the window shows; the contents are memory of the machine. */
export interface VgaMemoryState {
  /** What the last read of the planes took. */
  latch: number;
  /** Text is in the text memory, not in the planes. */
  textApart: boolean;
  /** Offset of the 64 KiB bank that chained addressing shows (Bochs VBE). */
  bank: number;
}

/** Where the display window shows (graphics register 6, bits 3:2): start and size from 0xa0000. */
const WINDOWS = [
  { at: 0, size: VGA_MEMORY_SIZE },
  { at: 0, size: 0x10000 },
  { at: 0x10000, size: 0x8000 },
  { at: TEXT_WINDOW, size: TEXT_SIZE },
] as const;

const windowOf = (vga: VgaState): (typeof WINDOWS)[number] => WINDOWS[(vga.graphics[VgaReg.MISCELLANEOUS] >> 2) & 3];

/** A byte of a mask of planes: 0xff in each byte whose plane is set. */
const spread = (planes: number): number =>
  (planes & 1 ? 0xff : 0) | (planes & 2 ? 0xff00 : 0) | (planes & 4 ? 0xff0000 : 0) | (planes & 8 ? 0xff000000 : 0);
const repeated = (byte: number): number => byte * 0x01010101;

/** The adapter's memory and the processor's window into it. */
export class VgaMemory implements Stateful<VgaMemoryState>, Registers {
  state: VgaMemoryState = { latch: 0, textApart: false, bank: 0 };
  private readonly words: DataView;

  /**
   * @param memory display memory
   * @param text the text memory, TEXT_SIZE bytes
   */
  constructor(
    private readonly vga: { readonly state: VgaState },
    private readonly memory: Uint8Array,
    private readonly text: Uint8Array,
  ) {
    this.words = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  }

  /** What of the window is plain memory, after a register has changed. Text moves to where it belongs. */
  window(): PlainWindow | null {
    const { state: vga } = this.vga;
    const { sequencer, graphics } = vga;
    const { at, size } = windowOf(vga);
    const memoryMode = sequencer[VgaReg.MEMORY_MODE];
    const planes = sequencer[VgaReg.MAP_MASK] & ALL_PLANES;
    const plainWrites =
      graphics[VgaReg.ENABLE_SET_RESET] === 0 &&
      graphics[VgaReg.DATA_ROTATE] === 0 &&
      graphics[VgaReg.BIT_MASK] === 0xff &&
      (graphics[VgaReg.MODE] & 0xb) === 0;
    const text =
      plainWrites &&
      at === TEXT_WINDOW &&
      !(graphics[VgaReg.MISCELLANEOUS] & GRAPHICS) &&
      (graphics[VgaReg.MODE] & ODD_EVEN) !== 0 &&
      !(graphics[VgaReg.READ_MAP] & 2) &&
      (memoryMode & (CHAIN_4 | NOT_ODD_EVEN)) === 0 &&
      planes === TEXT_PLANES;
    this.moveText(text);
    if (text) return { kind: "text", at, size };
    if (memoryMode & CHAIN_4 && planes === ALL_PLANES) {
      return { kind: "linear", at, size: Math.min(size, 0x10000), offset: this.state.bank };
    }
    return null;
  }

  private moveText(apart: boolean): void {
    if (this.state.textApart === apart) return;
    this.state.textApart = apart;
    const { memory, text } = this;
    for (let i = 0; i < TEXT_SIZE; i++) {
      const at = ((i & ~1) << 1) | (i & 1);
      if (apart) text[i] = memory[at];
      else memory[at] = text[i];
    }
  }

  /** The first `length` bytes of the text page, wherever they are: what a screen shows. */
  screen(length: number): Uint8Array {
    if (this.state.textApart) return this.text.slice(0, length);
    return Uint8Array.from({ length }, (_, i) => this.memory[((i & ~1) << 1) | (i & 1)]);
  }

  /** Offset into the window, or -1 where the adapter does not answer. `offset` counts from 0xa0000. */
  private inside(offset: number): number {
    const { at, size } = windowOf(this.vga.state);
    return offset >= at && offset < at + size ? offset - at : -1;
  }

  read(offset: number, size: 1 | 2 | 4): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = (value << 8) | this.readByte(offset + i);
    return value >>> 0;
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < size; i++) this.writeByte(offset + i, (value >>> (8 * i)) & 0xff);
  }

  private readByte(offset: number): number {
    const at = this.inside(offset);
    if (at < 0) return 0xff;
    const { sequencer, graphics } = this.vga.state;
    if (sequencer[VgaReg.MEMORY_MODE] & CHAIN_4) return this.memory[this.state.bank + at];
    const map = graphics[VgaReg.READ_MAP] & 3;
    if (graphics[VgaReg.MODE] & ODD_EVEN) return this.memory[((at & ~1) << 1) | (map & 2) | (at & 1)];
    const latch = this.words.getUint32(at * 4, true);
    this.state.latch = latch;
    if (!(graphics[VgaReg.MODE] & 8)) return (latch >>> (8 * map)) & 0xff;
    // Read mode 1: a one for each pixel whose colour compares.
    const compared = spread(graphics[VgaReg.COLOUR_DONT_CARE]);
    const different = (latch ^ spread(graphics[VgaReg.COLOUR_COMPARE])) & compared;
    return ~(different | (different >>> 8) | (different >>> 16) | (different >>> 24)) & 0xff;
  }

  private writeByte(offset: number, value: number): void {
    const at = this.inside(offset);
    if (at < 0) return;
    const { sequencer, graphics } = this.vga.state;
    const planes = sequencer[VgaReg.MAP_MASK] & ALL_PLANES;
    if (sequencer[VgaReg.MEMORY_MODE] & CHAIN_4) {
      if (planes & (1 << (at & 3))) this.memory[this.state.bank + at] = value;
      return;
    }
    if (graphics[VgaReg.MODE] & ODD_EVEN) {
      const plane = (graphics[VgaReg.READ_MAP] & 2) | (at & 1);
      if (planes & (1 << plane)) this.memory[((at & ~1) << 1) | plane] = value;
      return;
    }
    const next = this.combined(value);
    const mask = spread(planes);
    const before = this.words.getUint32(at * 4, true);
    this.words.setUint32(at * 4, ((before & ~mask) | (next & mask)) >>> 0, true);
  }

  /** What a byte from the processor makes of the latches, by write mode. */
  private combined(value: number): number {
    const { graphics } = this.vga.state;
    const { latch } = this.state;
    const mode = graphics[VgaReg.MODE] & 3;
    if (mode === 1) return latch;
    const rotation = graphics[VgaReg.DATA_ROTATE] & 7;
    const rotated = ((value >> rotation) | (value << (8 - rotation))) & 0xff;
    const setReset = spread(graphics[VgaReg.SET_RESET]);
    let bits = graphics[VgaReg.BIT_MASK];
    let data: number;
    if (mode === 0) {
      const enabled = spread(graphics[VgaReg.ENABLE_SET_RESET]);
      data = (repeated(rotated) & ~enabled) | (setReset & enabled);
    } else if (mode === 2) {
      data = spread(value);
    } else {
      data = setReset;
      bits &= rotated;
    }
    const operation = (graphics[VgaReg.DATA_ROTATE] >> 3) & 3;
    if (operation === 1) data &= latch;
    else if (operation === 2) data |= latch;
    else if (operation === 3) data ^= latch;
    const mask = repeated(bits);
    return (data & mask) | (latch & ~mask);
  }
}

export { VGA_MEMORY_BASE };
