/**
 * QEMU's standard VGA as a PCI function (1234:1111; docs/specs/standard-vga): linear frame buffer in BAR 0, its registers
 * once more in BAR 2, the option ROM with the video BIOS.
 */
import { BochsVbe } from "../../devices/bochs-vbe";
import type { Registers, Stateful } from "../../devices/chip";
import { PciFunction } from "../../devices/pci/function";
import type { PortBus } from "../../devices/port-bus";
import { Vga, VgaReg } from "../../devices/vga";
import { VGA_MEMORY_BASE, VgaMemory } from "../../devices/vga-memory";
import type { MachineConfig } from "../config";
import type { GuestMemory, RamRange } from "../memory-map";
import type { FirmwareLayout } from "./layout";

const REGISTER_BAR_SIZE = 4096;
/** Places in the register BAR: VGA ports from 0x3c0, the Bochs registers, QEMU's own. */
const VGA_AT = 0x400;
const VGA_PORTS = 0x20;
const DISPI_AT = 0x500;
const DISPI_SIZE = 0x16;
const EXTENDED_AT = 0x600;
/** Size of QEMU's own registers, and the byte order of the frame buffer: little-endian. */
const EXTENDED = [8, 0x1e1e1e1e] as const;
const FIRST_VGA_PORT = 0x3c0;

/** The display adapter: PCI function, memory and register chips. */
export class Display {
  readonly function: PciFunction;
  readonly memory: VgaMemory;
  readonly chips: Readonly<Record<string, Stateful<unknown>>>;
  private readonly vbe: BochsVbe;
  private readonly frameBuffer: Registers;

  /** @param changed what the processor sees of display memory may be another */
  constructor(
    private readonly vga: Vga,
    private readonly layout: FirmwareLayout,
    config: MachineConfig,
    guest: GuestMemory,
    changed: () => void,
  ) {
    const { videoMemory, textMemory } = layout;
    const pixels = guest.bytes(videoMemory.offset, videoMemory.size);
    const memory = new VgaMemory(vga, pixels, guest.bytes(textMemory.offset, textMemory.size));
    this.memory = memory;
    this.vbe = new BochsVbe(
      videoMemory.size,
      (on, clear) => {
        if (on) this.setLinear();
        if (clear) pixels.fill(0);
        changed();
      },
      (bank) => {
        memory.state.bank = bank;
        changed();
      },
    );
    this.chips = { vgaMemory: memory, vbe: this.vbe };
    // Never asked while the processor sees the memory itself.
    this.frameBuffer = { read: () => 0xffffffff, write: () => {} };
    this.function = new PciFunction({
      name: "standard VGA",
      vendor: 0x1234,
      device: 0x1111,
      revision: 2,
      classCode: 0x030000,
      subsystemVendor: 0x1af4,
      subsystem: 0x1100,
      bars: {
        0: { space: "memory", size: videoMemory.size, registers: this.frameBuffer, prefetchable: true },
        2: { space: "memory", size: REGISTER_BAR_SIZE, registers: this.registers() },
      },
      rom: config.videoBios?.bytes,
      onConfigWrite: changed,
    });
  }

  claim(ports: PortBus): void {
    ports.claim("VBE", 0x1ce, 3, this.vbe.ports, 2);
  }

  /** The register BAR. */
  private registers(): Registers {
    const find = (offset: number): { registers: Registers; offset: number } | null => {
      if (offset >= VGA_AT && offset < VGA_AT + VGA_PORTS) {
        return { registers: this.vga, offset: offset - VGA_AT + FIRST_VGA_PORT - Vga.FIRST_PORT };
      }
      if (offset >= DISPI_AT && offset < DISPI_AT + DISPI_SIZE) {
        return { registers: this.vbe.memory, offset: offset - DISPI_AT };
      }
      return null;
    };
    return {
      read: (offset, size) => {
        if (offset >= EXTENDED_AT) return EXTENDED[(offset - EXTENDED_AT) >> 2] ?? 0;
        const found = find(offset);
        return found ? found.registers.read(found.offset, size) : 0;
      },
      write: (offset, size, value) => {
        const found = find(offset);
        found?.registers.write(found.offset, size, value);
      },
    };
  }

  /** A Bochs mode makes the display window linear too. */
  private setLinear(): void {
    const { graphics, sequencer } = this.vga.state;
    graphics[VgaReg.MISCELLANEOUS] = (graphics[VgaReg.MISCELLANEOUS] & ~0x0c) | 0x05;
    sequencer[VgaReg.MAP_MASK] |= 0x0f;
    sequencer[VgaReg.MEMORY_MODE] |= 0x08;
  }

  /** Display memory the processor sees as memory now. */
  ranges(): RamRange[] {
    const { videoMemory, textMemory } = this.layout;
    const out: RamRange[] = [];
    const window = this.memory.window();
    if (window) {
      const offset = window.kind === "text" ? textMemory.offset : videoMemory.offset + window.offset;
      out.push({ name: "display window", base: VGA_MEMORY_BASE + window.at, size: window.size, offset });
    }
    for (const range of this.function.ranges()) {
      if (range.registers === this.frameBuffer) {
        out.push({ name: "frame buffer", base: range.base, size: range.size, offset: videoMemory.offset });
      }
    }
    return out;
  }
}
