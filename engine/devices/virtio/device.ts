/** What makes a virtio device one of its kind; the transport (pci-transport.ts) does what all have in common. */
import type { Dma, Stateful } from "../chip";
import { type Chain, Virtqueue, VirtqueueError, type VirtqueueState } from "./queue";

/** Device type numbers (Virtio 1.2 chapter 5). */
export const VirtioType = { BLOCK: 2, CONSOLE: 3, ENTROPY: 4 } as const;

/** Feature bits every device may have (chapter 6). */
const VirtioFeature = {
  INDIRECT: 1n << 28n,
  EVENT_INDEX: 1n << 29n,
  VERSION_1: 1n << 32n,
} as const;

/** Device status bits (2.1). */
const VirtioStatus = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 0x40,
  FAILED: 0x80,
} as const;

/** What every virtio device has. */
export interface VirtioState {
  status: number;
  /** Features the driver has accepted. */
  features: bigint;
  queues: VirtqueueState[];
}

/** What the transport does for a device. */
export interface VirtioTransport {
  /** Requests of a queue have been given back. */
  queueInterrupt(vector: number): void;
  /** The device's configuration has changed, or the device needs a reset. */
  configInterrupt(): void;
}

const quiet: VirtioTransport = { queueInterrupt: () => {}, configInterrupt: () => {} };

/** A virtio device without its transport. */
export abstract class VirtioDevice implements Stateful<VirtioState> {
  abstract readonly type: number;
  /** Features of its kind the device offers; those of all devices are added. */
  abstract readonly offered: bigint;
  /** Bytes of the device's configuration, as they are now. */
  abstract configuration(): Uint8Array;
  /** State of the kind itself, for snapshots; null when it has none. */
  readonly own: Stateful<unknown> | null = null;

  readonly queues: readonly Virtqueue[];
  private status = 0;
  private accepted = 0n;
  private transport = quiet;

  /** @param sizes entries of each queue, a power of two */
  constructor(
    protected readonly dma: Dma,
    sizes: readonly number[],
  ) {
    this.queues = sizes.map((size) => new Virtqueue(dma, size));
  }

  attach(transport: VirtioTransport): void {
    this.transport = transport;
  }

  get state(): VirtioState {
    return { status: this.status, features: this.accepted, queues: this.queues.map((q) => q.state) };
  }
  set state(state: VirtioState) {
    this.status = state.status;
    this.accepted = state.features;
    this.queues.forEach((queue, i) => {
      queue.state = state.queues[i];
    });
  }

  /** All features on offer. */
  get features(): bigint {
    return this.offered | VirtioFeature.INDIRECT | VirtioFeature.EVENT_INDEX | VirtioFeature.VERSION_1;
  }

  get driverFeatures(): bigint {
    return this.accepted;
  }
  /** The driver's choice; it holds until the status says FEATURES_OK, after which it cannot be changed (2.2.1). */
  set driverFeatures(value: bigint) {
    if (!(this.status & VirtioStatus.FEATURES_OK)) this.accepted = value & this.features;
  }

  get deviceStatus(): number {
    return this.status;
  }

  /** @param value as the driver writes it; 0 resets the device */
  setStatus(value: number): void {
    if (value === 0) {
      this.reset();
      return;
    }
    // A driver of this version must say that it is one: otherwise the features are not accepted (2.2.1, 6.2).
    const acceptable = (this.accepted & VirtioFeature.VERSION_1) !== 0n;
    const refused = value & VirtioStatus.FEATURES_OK && !acceptable ? VirtioStatus.FEATURES_OK : 0;
    this.status = (value & 0xff & ~refused & ~VirtioStatus.NEEDS_RESET) | (this.status & VirtioStatus.NEEDS_RESET);
  }

  /** The same for a driver of the version before 1.0, which knows no FEATURES_OK. */
  setLegacyStatus(value: number): void {
    if (value === 0) this.reset();
    else this.status = value & 0xff;
  }

  reset(): void {
    this.status = 0;
    this.accepted = 0n;
    for (const queue of this.queues) queue.reset();
    this.onReset();
  }

  protected onReset(): void {}

  /** The driver has written to the device's configuration. */
  writeConfiguration(_offset: number, _size: number, _value: number): void {}

  protected has(feature: bigint): boolean {
    return (this.accepted & feature) !== 0n;
  }

  private get eventIndex(): boolean {
    return this.has(VirtioFeature.EVENT_INDEX);
  }

  /** The driver says that a queue has something new. */
  notify(index: number): void {
    const queue = this.queues[index];
    if (!queue?.isReady || this.status & VirtioStatus.NEEDS_RESET) return;
    try {
      this.serve(index, queue);
      if (queue.mustTell(this.eventIndex)) this.transport.queueInterrupt(queue.state.vector);
    } catch (error) {
      if (!(error instanceof VirtqueueError)) throw error;
      this.status |= VirtioStatus.NEEDS_RESET;
      this.transport.configInterrupt();
    }
  }

  /** Works on what a queue holds: takes requests by `next`, gives them back by `queue.give`. */
  protected abstract serve(index: number, queue: Virtqueue): void;

  protected next(queue: Virtqueue): Chain | null {
    return queue.take(this.eventIndex);
  }
}
