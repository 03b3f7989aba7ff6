/** The IDE function of the PIIX3 (82371SB data sheet 2.3): two channels at the ports every PC has them, with bus master. */
import type { Dma, Line, Registers } from "../chip";
import { PciCommand } from "../pci/config-space";
import { PciFunction } from "../pci/function";
import { IdeChannel } from "./channel";
import type { IdeDrive } from "./drive";

const BUS_MASTER_PORTS = 16;
/** IDE timing: the channel answers (bit 15). */
const TIMING = [0x40, 0x42] as const;
const DECODE = 0x80;

/** I/O ports and ISA interrupt of each channel. */
export const IDE_CHANNELS = [
  { command: 0x1f0, control: 0x3f6, irq: 14 },
  { command: 0x170, control: 0x376, irq: 15 },
] as const;

/** PCI function with two channels. */
export interface Piix3Ide {
  readonly function: PciFunction;
  readonly channels: readonly IdeChannel[];
}

/** @param drives master and slave of the first, then of the second channel */
export function piix3Ide(drives: readonly (IdeDrive | null)[], irqs: readonly Line[], memory: Dma): Piix3Ide {
  const channels = irqs.map((irq, i) => new IdeChannel(drives.slice(2 * i, 2 * i + 2), irq, memory));
  const at = (offset: number): { registers: Registers; offset: number } => ({
    registers: channels[offset >> 3].busMaster,
    offset: offset & 7,
  });
  const busMaster: Registers = {
    read: (offset, size) => at(offset).registers.read(at(offset).offset, size),
    write: (offset, size, value) => at(offset).registers.write(at(offset).offset, size, value),
  };
  return {
    channels,
    function: new PciFunction({
      name: "IDE",
      vendor: 0x8086,
      device: 0x7010,
      classCode: 0x010180,
      subsystemVendor: 0x1af4,
      subsystem: 0x1100,
      bars: { 4: { space: "io", size: BUS_MASTER_PORTS, registers: busMaster } },
      values: [
        [0x04, 2, PciCommand.IO],
        [0x06, 2, 0x0280],
        ...TIMING.map((offset) => [offset + 1, 1, DECODE] as const),
      ],
      writable: [
        [TIMING[0], TIMING[1] + 1],
        [0x44, 0x44],
        [0x48, 0x4b],
      ],
    }),
  };
}
