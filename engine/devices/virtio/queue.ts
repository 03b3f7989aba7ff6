/**
 * A split virtqueue as the device sees it (Virtio 1.2 section 2.7), with indirect descriptors (2.7.5.3) and the event index
 * (2.7.10). Rings and buffers lie in guest memory and are reached through DMA.
 */
import type { Dma } from "../chip";

const Descriptor = { NEXT: 1, WRITE: 2, INDIRECT: 4, SIZE: 16 } as const;
const AVAIL_NO_INTERRUPT = 1;
const USED_ELEMENT = 8;

/** Set-up and positions of one split virtqueue. */
export interface VirtqueueState {
  /** Entries, a power of two; 0 is no queue. */
  size: number;
  enabled: boolean;
  /** Guest-physical addresses of descriptor table, available ring (driver area), used ring (device area). */
  descriptors: number;
  available: number;
  used: number;
  /** Entries of the available ring taken so far, and of the used ring filled, as 16-bit counts. */
  taken: number;
  filled: number;
  /** Value of `filled` when the driver was last told, -1 before the first time. */
  told: number;
  /** MSI-X vector, 0xffff for none. */
  vector: number;
}

/** VIRTIO_MSI_NO_VECTOR: no MSI-X vector. */
export const NO_VECTOR = 0xffff;

/** A piece of guest memory. */
export interface Segment {
  readonly address: number;
  readonly length: number;
}

/** Buffers of one request: what the device may read comes before what it may write (2.7.4.2). */
export interface Chain {
  readonly head: number;
  readonly readable: readonly Segment[];
  readonly writable: readonly Segment[];
}

/** The driver has broken a rule the device cannot go on with. */
export class VirtqueueError extends Error {
  override readonly name = "VirtqueueError";
}

/** Bytes in all segments. */
export const lengthOf = (segments: readonly Segment[]): number => segments.reduce((sum, s) => sum + s.length, 0);

/** The bytes of `segments` from `from` on, at most `length`. @throws VirtqueueError where there is no memory */
export function gather(
  dma: Dma,
  segments: readonly Segment[],
  from = 0,
  length = Number.POSITIVE_INFINITY,
): Uint8Array {
  const total = Math.max(0, Math.min(length, lengthOf(segments) - from));
  const out = new Uint8Array(total);
  let skip = from;
  let done = 0;
  for (const s of segments) {
    if (done === total) break;
    if (skip >= s.length) {
      skip -= s.length;
      continue;
    }
    const n = Math.min(s.length - skip, total - done);
    out.set(readMemory(dma, s.address + skip, n), done);
    done += n;
    skip = 0;
  }
  return out;
}

/** Puts `bytes` into `segments` from `from` on. @returns how many there was room for */
export function scatter(dma: Dma, segments: readonly Segment[], bytes: Uint8Array, from = 0): number {
  let skip = from;
  let done = 0;
  for (const s of segments) {
    if (done === bytes.length) break;
    if (skip >= s.length) {
      skip -= s.length;
      continue;
    }
    const n = Math.min(s.length - skip, bytes.length - done);
    dma.write(s.address + skip, bytes.subarray(done, done + n));
    done += n;
    skip = 0;
  }
  return done;
}

function readMemory(dma: Dma, address: number, length: number): Uint8Array {
  const bytes = dma.read(address, length);
  if (bytes.length !== length) throw new VirtqueueError(`no memory at 0x${address.toString(16)}`);
  return bytes;
}

const u16 = (b: Uint8Array, at: number): number => b[at] | (b[at + 1] << 8);
const u32 = (b: Uint8Array, at: number): number => (u16(b, at) | (u16(b, at + 2) << 16)) >>> 0;
const u64 = (b: Uint8Array, at: number): number => u32(b, at) + u32(b, at + 4) * 2 ** 32;

/** One split virtqueue from the device's side (Virtio 1.2, 2.7). */
export class Virtqueue {
  state: VirtqueueState;

  /** @param maximum entries it may have */
  constructor(
    private readonly dma: Dma,
    readonly maximum: number,
  ) {
    this.state = Virtqueue.initial(maximum);
  }

  static initial(size: number): VirtqueueState {
    return {
      ...{ size, enabled: false, descriptors: 0, available: 0, used: 0 },
      ...{ taken: 0, filled: 0, told: -1, vector: NO_VECTOR },
    };
  }

  reset(): void {
    this.state = Virtqueue.initial(this.maximum);
  }

  get isReady(): boolean {
    return this.state.enabled && this.state.size > 0;
  }

  private word(address: number): number {
    return u16(readMemory(this.dma, address, 2), 0);
  }

  private putWord(address: number, value: number): void {
    this.dma.write(address, Uint8Array.of(value & 0xff, (value >> 8) & 0xff));
  }

  /**
   * The next request the driver has made available, or null.
   * @param eventIndex VIRTIO_F_EVENT_IDX was negotiated
   * @throws VirtqueueError
   */
  take(eventIndex: boolean): Chain | null {
    const s = this.state;
    if (!this.isReady) return null;
    const index = this.word(s.available + 2);
    const waiting = (index - s.taken) & 0xffff;
    if (waiting > s.size) throw new VirtqueueError(`available index ${index} is ${waiting} ahead of ${s.taken}`);
    if (waiting === 0) return null;
    const head = this.word(s.available + 4 + 2 * (s.taken % s.size));
    s.taken = (s.taken + 1) & 0xffff;
    // Tells the driver that it need not notify before it goes beyond this entry (avail_event).
    if (eventIndex) this.putWord(s.used + 4 + USED_ELEMENT * s.size, s.taken);
    return this.follow(head);
  }

  private follow(head: number): Chain {
    const s = this.state;
    const readable: Segment[] = [];
    const writable: Segment[] = [];
    let table = s.descriptors;
    let entries = s.size;
    let at = head;
    let indirect = false;
    for (let left = entries; ; left--) {
      if (at >= entries) throw new VirtqueueError(`descriptor ${at} of ${entries}`);
      if (left === 0) throw new VirtqueueError("descriptors form a loop");
      const d = readMemory(this.dma, table + at * Descriptor.SIZE, Descriptor.SIZE);
      const flags = u16(d, 12);
      const segment = { address: u64(d, 0), length: u32(d, 8) };
      if (flags & Descriptor.INDIRECT) {
        if (indirect || flags & Descriptor.NEXT || segment.length === 0 || segment.length % Descriptor.SIZE !== 0) {
          throw new VirtqueueError("indirect descriptor where none may be");
        }
        indirect = true;
        table = segment.address;
        entries = segment.length / Descriptor.SIZE;
        left = entries + 1;
        at = 0;
        continue;
      }
      if (flags & Descriptor.WRITE) writable.push(segment);
      else if (writable.length > 0) throw new VirtqueueError("a readable buffer behind a writable one");
      else readable.push(segment);
      if (!(flags & Descriptor.NEXT)) return { head, readable, writable };
      at = u16(d, 14);
    }
  }

  /** Gives a request back; `written` bytes of its writable buffers hold something now. */
  give(chain: Chain, written: number): void {
    const s = this.state;
    const element = new Uint8Array(USED_ELEMENT);
    const view = new DataView(element.buffer);
    view.setUint32(0, chain.head, true);
    view.setUint32(4, written, true);
    this.dma.write(s.used + 4 + USED_ELEMENT * (s.filled % s.size), element);
    s.filled = (s.filled + 1) & 0xffff;
    this.putWord(s.used + 2, s.filled);
  }

  /** Whether the driver wants to be told of what has been given back since it was last told (2.7.7.2). */
  mustTell(eventIndex: boolean): boolean {
    const s = this.state;
    const before = s.told;
    if (before === s.filled) return false;
    s.told = s.filled;
    if (!eventIndex) return (this.word(s.available) & AVAIL_NO_INTERRUPT) === 0;
    if (before < 0) return true;
    const event = this.word(s.available + 4 + 2 * s.size);
    return ((s.filled - event - 1) & 0xffff) < ((s.filled - before) & 0xffff);
  }
}
