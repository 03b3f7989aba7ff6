/** The virtio devices of a machine: its disks, and a console and a source of random bytes when they are asked for. */
import type { VirtualClock } from "../clock";
import { BlockImage } from "../devices/block-image";
import type { Dma, Stateful } from "../devices/chip";
import type { PciBus } from "../devices/pci/bus";
import { VirtioBlock } from "../devices/virtio/block";
import { VirtioConsole } from "../devices/virtio/console";
import type { VirtioDevice } from "../devices/virtio/device";
import { VirtioEntropy } from "../devices/virtio/entropy";
import { VirtioPci } from "../devices/virtio/pci-transport";
import { type MachineConfig, MachineError } from "./config";

/** Slots below are the chip set's, the display's and the drives'. */
const FIRST_SLOT = 4;
const SLOTS = 32;

/** Serial output of the virtio console comes under this number, after COM1 and COM2. */
export const VIRTIO_CONSOLE_OUTPUT = 2;

export interface VirtioOutside {
  readonly config: MachineConfig;
  readonly clock: VirtualClock;
  readonly dma: Dma;
  readonly pci: PciBus;
  output(index: number, byte: number): void;
}

export class VirtioDevices {
  /** Everything with state, by name. */
  readonly chips: Record<string, Stateful<unknown>> = {};
  readonly disks: readonly BlockImage[];
  readonly console: VirtioConsole | null = null;
  private slot = FIRST_SLOT;

  constructor(private readonly outside: VirtioOutside) {
    const { config, clock, dma, output } = outside;
    this.disks = (config.disks ?? []).map((disk) => new BlockImage(disk.name, disk.source, disk.readOnly));
    this.disks.forEach((image, i) => {
      this.add(`virtio-blk${i}`, new VirtioBlock(dma, image, `hyperstep-disk${i}`));
      this.chips[`virtio-disk${i}`] = image;
    });
    const wanted = config.virtio ?? [];
    if (wanted.includes("console")) {
      this.console = new VirtioConsole(dma, clock, "virtio-console", (byte) => output(VIRTIO_CONSOLE_OUTPUT, byte));
      this.add("virtio-console", this.console);
    }
    if (wanted.includes("rng")) this.add("virtio-rng", new VirtioEntropy(dma));
  }

  private add(name: string, device: VirtioDevice): void {
    if (this.slot >= SLOTS) throw new MachineError(`no PCI slot left for ${name}; use fewer disks`);
    const transport = new VirtioPci(name, device);
    this.outside.pci.add(this.slot++, 0, transport.function);
    this.chips[name] = device;
    this.chips[`${name}-pci`] = transport;
    if (device.own) this.chips[`${name}-own`] = device.own;
  }

  /** What outlives a reset of the machine: contents of disks, what has been typed. @returns puts it back */
  nonvolatile(): () => void {
    const contents = this.disks.map((disk) => disk.state);
    const typed = this.console?.own.state.input ?? [];
    return () => {
      this.disks.forEach((disk, i) => {
        disk.state = contents[i];
      });
      if (this.console) this.console.own.state.input = typed;
    };
  }
}
