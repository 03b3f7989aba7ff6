/**
 * A virtio entropy device (Virtio 1.2 section 5.4). Its bytes come from a generator with a fixed seed: the same machine gives
 * the same bytes, as everything here repeats exactly. They are good for starting an operating system, not for secrets.
 */
import type { Dma, Stateful } from "../chip";
import { VirtioDevice, VirtioType } from "./device";
import { lengthOf, scatter, type Virtqueue } from "./queue";

const QUEUE_SIZE = 8;
const MOST_BYTES = 4096;
const SEED = 0x9e3779b9;

/** State of the generator, whose bytes are the same in every run. */
export interface VirtioEntropyState {
  /** Counter of the generator, 32 bits. */
  counter: number;
}

/** A virtio source of random bytes (Virtio 1.2, 5.4). */
export class VirtioEntropy extends VirtioDevice {
  readonly type = VirtioType.ENTROPY;
  readonly offered = 0n;
  override readonly own: Stateful<VirtioEntropyState> = { state: { counter: SEED } };

  constructor(dma: Dma) {
    super(dma, [QUEUE_SIZE]);
  }

  configuration(): Uint8Array {
    return new Uint8Array(0);
  }

  protected serve(_index: number, queue: Virtqueue): void {
    for (let chain = this.next(queue); chain; chain = this.next(queue)) {
      const bytes = new Uint8Array(Math.min(MOST_BYTES, lengthOf(chain.writable)));
      for (let i = 0; i < bytes.length; i++) bytes[i] = this.byte();
      queue.give(chain, scatter(this.dma, chain.writable, bytes));
    }
  }

  /** A counter, mixed (the finaliser of MurmurHash3). */
  private byte(): number {
    const s = this.own.state;
    s.counter = (s.counter + SEED) >>> 0;
    let h = s.counter;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return (h ^ (h >>> 16)) & 0xff;
  }
}
