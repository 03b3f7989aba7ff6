/**
 * The registers of a VGA adapter, in 80x25 colour text mode at first (IBM VGA technical reference). Software that sets up or
 * pokes the adapter reads back what it wrote, and software that waits for retrace sees it come. What is behind the display
 * window is vga-memory.ts's where the board has one, else plain memory at 0xb8000.
 */
import type { VirtualClock } from "../clock";
import type { Registers, Stateful } from "./chip";

/** Physical address of the window. */
export const VGA_MEMORY_BASE = 0xa0000;
/** Bytes of the window. */
export const VGA_MEMORY_SIZE = 0x20000;

/** CRT controller of mode 3. */
// biome-ignore format: a register table
const CRTC_MODE3 = [
  0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
  0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
// biome-ignore format: a register table
const ATTRIBUTE_MODE3 = [
  0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f,
  0x0c, 0x00, 0x0f, 0x08, 0x00,
];
const SEQUENCER_MODE3 = [0x03, 0x00, 0x03, 0x00, 0x02];
const GRAPHICS_MODE3 = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x0f, 0xff];

/** Registers by which the processor's way to display memory is set. */
export const VgaReg = {
  MAP_MASK: 2,
  MEMORY_MODE: 4,
  SET_RESET: 0,
  ENABLE_SET_RESET: 1,
  COLOUR_COMPARE: 2,
  DATA_ROTATE: 3,
  READ_MAP: 4,
  MODE: 5,
  MISCELLANEOUS: 6,
  COLOUR_DONT_CARE: 7,
  BIT_MASK: 8,
} as const;

/** 70 frames of 449 lines a second. */
const LINE_NS = 31_778;
const LINES = 449;
const VISIBLE_LINES = 400;
const VISIBLE_NS = 25_422;

/** The VGA registers with their indices. */
export interface VgaState {
  crtc: Uint8Array;
  crtcIndex: number;
  attribute: Uint8Array;
  attributeIndex: number;
  /** The next write of 0x3c0 is data. */
  attributeData: boolean;
  sequencer: Uint8Array;
  sequencerIndex: number;
  graphics: Uint8Array;
  graphicsIndex: number;
  miscellaneous: number;
  featureControl: number;
  /** 256 colours of three 6-bit components. */
  palette: Uint8Array;
  paletteMask: number;
  paletteReadAt: number;
  paletteWriteAt: number;
}

function padded(values: readonly number[], size: number): Uint8Array {
  const out = new Uint8Array(size);
  out.set(values);
  return out;
}

const newState = (): VgaState => ({
  crtc: padded(CRTC_MODE3, 256),
  crtcIndex: 0,
  attribute: padded(ATTRIBUTE_MODE3, 32),
  attributeIndex: 0x20,
  attributeData: false,
  sequencer: padded(SEQUENCER_MODE3, 256),
  sequencerIndex: 0,
  graphics: padded(GRAPHICS_MODE3, 256),
  graphicsIndex: 0,
  // Colour addresses, RAM enabled, 28 MHz clock.
  miscellaneous: 0x67,
  featureControl: 0,
  palette: new Uint8Array(768),
  paletteMask: 0xff,
  paletteReadAt: 0,
  paletteWriteAt: 0,
});

/** Ports 0x3b0-0x3df; claim the range at FIRST_PORT. */
export class Vga implements Stateful<VgaState>, Registers {
  static readonly FIRST_PORT = 0x3b0;
  static readonly PORTS = 0x30;
  state: VgaState = newState();

  /** @param modeChanged a register was written that decides how the processor reaches display memory */
  constructor(
    private readonly clock: VirtualClock,
    private readonly modeChanged: () => void = () => {},
  ) {}

  reset(): void {
    this.state = newState();
  }

  /** Monochrome and colour aliases of the CRT controller: only the selected one answers. */
  private port(offset: number): number {
    const port = Vga.FIRST_PORT + offset;
    const colour = (this.state.miscellaneous & 1) !== 0;
    const alias = port & 0xf0;
    if (alias === 0xc0) return port;
    if (alias !== (colour ? 0xd0 : 0xb0)) return -1;
    return (port & 0xf) | 0x3d0;
  }

  read(offset: number): number {
    const s = this.state;
    switch (this.port(offset)) {
      case 0x3c0:
        return s.attributeIndex;
      case 0x3c1:
        return s.attribute[s.attributeIndex & 0x1f];
      case 0x3c2:
        return 0x10;
      case 0x3c4:
        return s.sequencerIndex;
      case 0x3c5:
        return s.sequencer[s.sequencerIndex];
      case 0x3c6:
        return s.paletteMask;
      case 0x3c7:
        return 3;
      case 0x3c8:
        return Math.floor(s.paletteWriteAt / 3);
      case 0x3c9: {
        const value = s.palette[s.paletteReadAt];
        s.paletteReadAt = (s.paletteReadAt + 1) % 768;
        return value;
      }
      case 0x3ca:
        return s.featureControl;
      case 0x3cc:
        return s.miscellaneous;
      case 0x3ce:
        return s.graphicsIndex;
      case 0x3cf:
        return s.graphics[s.graphicsIndex];
      case 0x3d4:
        return s.crtcIndex;
      case 0x3d5:
        return s.crtc[s.crtcIndex];
      case 0x3da:
        return this.inputStatus();
      default:
        return 0xff;
    }
  }

  write(offset: number, _size: 1 | 2 | 4, value: number): void {
    const s = this.state;
    switch (this.port(offset)) {
      case 0x3c0:
        if (s.attributeData) s.attribute[s.attributeIndex & 0x1f] = value;
        else s.attributeIndex = value & 0x3f;
        s.attributeData = !s.attributeData;
        break;
      case 0x3c2:
        s.miscellaneous = value;
        this.modeChanged();
        break;
      case 0x3c4:
        s.sequencerIndex = value;
        break;
      case 0x3c5:
        s.sequencer[s.sequencerIndex] = value;
        if (s.sequencerIndex === VgaReg.MAP_MASK || s.sequencerIndex === VgaReg.MEMORY_MODE) this.modeChanged();
        break;
      case 0x3c6:
        s.paletteMask = value;
        break;
      case 0x3c7:
        s.paletteReadAt = value * 3;
        break;
      case 0x3c8:
        s.paletteWriteAt = value * 3;
        break;
      case 0x3c9:
        s.palette[s.paletteWriteAt] = value & 0x3f;
        s.paletteWriteAt = (s.paletteWriteAt + 1) % 768;
        break;
      case 0x3ce:
        s.graphicsIndex = value;
        break;
      case 0x3cf:
        s.graphics[s.graphicsIndex] = value;
        this.modeChanged();
        break;
      case 0x3d4:
        s.crtcIndex = value;
        break;
      case 0x3d5:
        // The first eight registers are protected by bit 7 of the end-of-vertical-retrace register; overflow bit 4 is not.
        if (s.crtcIndex < 8 && s.crtc[0x11] & 0x80) {
          if (s.crtcIndex === 7) s.crtc[7] = (s.crtc[7] & ~0x10) | (value & 0x10);
        } else {
          s.crtc[s.crtcIndex] = value;
        }
        break;
      case 0x3da:
        s.featureControl = value;
        break;
    }
  }

  /** Input status 1: bit 0 no display, bit 3 vertical retrace; reading it resets the attribute flip-flop. */
  private inputStatus(): number {
    this.state.attributeData = false;
    const { now } = this.clock;
    const line = Math.floor(now / LINE_NS) % LINES;
    const blank = line >= VISIBLE_LINES || now % LINE_NS >= VISIBLE_NS;
    const retrace = line >= 412 && line < 414;
    return (blank ? 1 : 0) | (retrace ? 8 : 0);
  }
}
