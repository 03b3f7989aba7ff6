/**
 * What a machine has because it starts with firmware: flash at the top of 4 GiB, shadow RAM below 1 MiB, a display adapter,
 * IDE drives, and the memory map that follows from the chips' registers.
 */

import type { VirtualClock } from "../../clock";
import { BlockImage } from "../../devices/block-image";
import type { Line, Stateful } from "../../devices/chip";
import { Flash } from "../../devices/flash";
import type { FwCfg } from "../../devices/fw-cfg";
import { AtaDisk } from "../../devices/ide/ata-disk";
import { AtapiCdrom } from "../../devices/ide/atapi-cdrom";
import type { IdeDrive } from "../../devices/ide/drive";
import { IDE_CHANNELS, type Piix3Ide, piix3Ide } from "../../devices/ide/piix3-ide";
import type { MmioBus } from "../../devices/mmio-bus";
import type { PciBus } from "../../devices/pci/bus";
import { I440fx } from "../../devices/pci/chipset";
import type { PciFunction } from "../../devices/pci/function";
import type { PortBus } from "../../devices/port-bus";
import type { RtcCmos } from "../../devices/rtc-cmos";
import { VGA_MEMORY_SIZE, Vga } from "../../devices/vga";
import { VGA_MEMORY_BASE } from "../../devices/vga-memory";
import type { MachineConfig } from "../config";
import type { GuestMemory } from "../memory-map";
import { Display } from "./display";
import { drivesOf } from "./drives";
import { addFirmwareFiles } from "./fw-cfg-files";
import { type FirmwareLayout, firmwareOf } from "./layout";
import { firmwareMap, flashBase } from "./memory-controller";

/** CMOS cells in which firmware finds the order of boot devices: hard disk, CD-ROM (low nibble first). */
const BOOT_ORDER = [
  [0x3d, 0x32],
  [0x38, 0x00],
] as const;
/** The firmware's variables are erased by blocks of this size. */
const FLASH_BLOCK = 4096;
const VGA_DEVICE = 2;

/** What the board hands to the parts that firmware needs. */
export interface FirmwareOutside {
  readonly clock: VirtualClock;
  readonly config: MachineConfig;
  readonly memory: GuestMemory;
  readonly layout: FirmwareLayout;
  readonly ports: PortBus;
  readonly mmio: MmioBus;
  readonly pci: PciBus;
  readonly hostBridge: PciFunction;
  line(irq: number): Line;
}

/** The parts of a board that starts with firmware. */
export class FirmwareBoard {
  /** Chips with state, by name. */
  readonly chips: Record<string, Stateful<unknown>> = {};
  readonly vga: Vga;
  private readonly display: Display;
  private readonly flash: { readonly code: Flash; readonly variables: Flash | null };
  private readonly ide: Piix3Ide;
  private readonly images: { readonly [name: string]: BlockImage };
  private ready = false;

  constructor(private readonly outside: FirmwareOutside) {
    const { clock, config, memory, layout, ports, mmio, pci } = outside;
    const changed = (): void => this.updateMap();
    this.vga = new Vga(clock, changed);
    this.display = new Display(this.vga, layout, config, memory, changed);
    this.display.claim(ports);
    mmio.claim("display window", VGA_MEMORY_BASE, VGA_MEMORY_SIZE, this.display.memory);
    pci.add(VGA_DEVICE, 0, this.display.function);

    const images: { [name: string]: BlockImage } = {};
    const drives: (IdeDrive | null)[] = drivesOf(config).map((drive, i) => {
      if (!drive) return null;
      const image = new BlockImage(drive.name, drive.bytes, drive.kind === "cdrom");
      images[`disk${i}`] = image;
      const serial = `HS${String(i + 1).padStart(5, "0")}`;
      return drive.kind === "cdrom" ? new AtapiCdrom(image, serial) : new AtaDisk(image, serial);
    });
    const lines = IDE_CHANNELS.map(({ irq }) => outside.line(irq));
    this.ide = piix3Ide(drives, lines, memory);
    this.ide.channels.forEach((channel, i) => {
      const { command, control } = IDE_CHANNELS[i];
      ports.claim(`IDE channel ${i}`, command, 8, channel.commandBlock, 4);
      ports.claim(`IDE channel ${i} control`, control, 1, channel.controlBlock);
      this.chips[`ide${i}`] = channel;
    });
    pci.add(1, 1, this.ide.function);

    this.flash = this.makeFlash();
    const base = flashBase(layout);
    mmio.claim("firmware flash", base.code, layout.code.size, this.flash.code);
    this.chips.flash = this.flash.code;
    if (this.flash.variables && layout.variables) {
      mmio.claim("variables flash", base.variables, layout.variables.size, this.flash.variables);
      this.chips.variablesFlash = this.flash.variables;
    }
    this.images = images;
    Object.assign(this.chips, { vga: this.vga }, this.display.chips, images);
  }

  private makeFlash(): { code: Flash; variables: Flash | null } {
    const { config, memory, layout } = this.outside;
    const chip = (bytes: Uint8Array | undefined, area: { offset: number; size: number }, readOnly: boolean): Flash => {
      const array = memory.bytes(area.offset, area.size);
      if (bytes) array.set(bytes);
      const changed = (): void => this.updateMap();
      return new Flash(array, FLASH_BLOCK, readOnly, changed, (offset, length) =>
        memory.touched(area.offset + offset, length),
      );
    };
    const { variables } = layout;
    return {
      code: chip(firmwareOf(config)?.bytes, layout.code, true),
      variables: variables ? chip(config.firmwareVariables?.bytes, variables, false) : null,
    };
  }

  fill(fw: FwCfg, rtc: RtcCmos): void {
    addFirmwareFiles(fw, this.outside.config);
    for (const [cell, value] of BOOT_ORDER) rtc.setCmos(cell, value);
  }

  /** The board is complete: the memory map comes into force, and from now on follows the registers. */
  start(): void {
    this.ready = true;
    this.updateMap();
  }

  /** A register that decides about the memory map was written, or state was restored. */
  updateMap(): void {
    if (!this.ready) return;
    const { config, memory, layout, hostBridge } = this.outside;
    memory.map(
      firmwareMap(config.memory, layout, {
        pam: hostBridge.state.config.subarray(I440fx.PAM0, I440fx.PAM6 + 1),
        codeReadable: this.flash.code.readable,
        variablesReadable: this.flash.variables?.readable ?? false,
        devices: this.display.ranges(),
      }),
    );
  }

  /** What outlives a reset of the machine: contents of drives and of the variables' flash. @returns puts it back */
  nonvolatile(): () => void {
    const { memory, layout } = this.outside;
    const contents = Object.values(this.images).map((image) => image.state);
    const area = layout.variables;
    const variables = area ? memory.bytes(area.offset, area.size).slice() : null;
    return () => {
      Object.values(this.images).forEach((image, i) => {
        image.state = contents[i];
      });
      if (area && variables) memory.bytes(area.offset, area.size).set(variables);
    };
  }
}
