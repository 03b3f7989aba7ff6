/** A virtio block device (Virtio 1.2 section 5.2) on a disk image. */
import { type BlockImage, SECTOR_SIZE } from "../block-image";
import type { Dma } from "../chip";
import { VirtioDevice, VirtioType } from "./device";
import { type Chain, gather, lengthOf, scatter, type Virtqueue } from "./queue";

const Feature = {
  SEG_MAX: 1n << 2n,
  GEOMETRY: 1n << 4n,
  READ_ONLY: 1n << 5n,
  BLOCK_SIZE: 1n << 6n,
  FLUSH: 1n << 9n,
  DISCARD: 1n << 13n,
  WRITE_ZEROES: 1n << 14n,
} as const;

const Request = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const;
const Status = { OK: 0, IO_ERROR: 1, UNSUPPORTED: 2 } as const;

const QUEUE_SIZE = 256;
/** Data segments of a request: the queue's entries less header and status. */
const SEG_MAX = QUEUE_SIZE - 2;
const HEADER_SIZE = 16;
const CONFIG_SIZE = 60;
const ID_SIZE = 20;
const HEADS = 16;
const SECTORS = 63;
/** struct virtio_blk_discard_write_zeroes. */
const RANGE_SIZE = 16;
const MOST_SECTORS = 0x3fffff;
const ZERO_CHUNK = 1 << 16;

/** A virtio disk over a block image (Virtio 1.2, 5.2). */
export class VirtioBlock extends VirtioDevice {
  readonly type = VirtioType.BLOCK;
  readonly offered: bigint;

  /** @param serial at most 20 characters, what GET_ID answers */
  constructor(
    dma: Dma,
    private readonly image: BlockImage,
    private readonly serial: string,
  ) {
    super(dma, [QUEUE_SIZE]);
    const common = Feature.SEG_MAX | Feature.GEOMETRY | Feature.BLOCK_SIZE | Feature.FLUSH;
    this.offered = common | (image.readOnly ? Feature.READ_ONLY : Feature.DISCARD | Feature.WRITE_ZEROES);
  }

  /** struct virtio_blk_config (5.2.4). */
  configuration(): Uint8Array {
    const bytes = new Uint8Array(CONFIG_SIZE);
    const view = new DataView(bytes.buffer);
    const { sectors } = this.image;
    view.setBigUint64(0, BigInt(sectors), true);
    view.setUint32(12, SEG_MAX, true);
    view.setUint16(16, Math.min(0xffff, Math.floor(sectors / (HEADS * SECTORS))), true);
    view.setUint8(18, HEADS);
    view.setUint8(19, SECTORS);
    view.setUint32(20, SECTOR_SIZE, true);
    view.setUint16(34, 1, true);
    view.setUint32(36, MOST_SECTORS, true);
    view.setUint32(40, 1, true);
    view.setUint32(44, 1, true);
    view.setUint32(48, MOST_SECTORS, true);
    view.setUint32(52, 1, true);
    view.setUint8(56, 1);
    return bytes;
  }

  protected serve(_index: number, queue: Virtqueue): void {
    for (let chain = this.next(queue); chain; chain = this.next(queue)) {
      const room = lengthOf(chain.writable);
      // The status is the last byte the device may write.
      const { status, written } = this.execute(chain, room - 1);
      scatter(this.dma, chain.writable, Uint8Array.of(status), room - 1);
      queue.give(chain, written + 1);
    }
  }

  /** @param room bytes for data that come in */
  private execute(chain: Chain, room: number): { status: number; written: number } {
    const header = gather(this.dma, chain.readable, 0, HEADER_SIZE);
    if (header.length < HEADER_SIZE || room < 0) return { status: Status.IO_ERROR, written: 0 };
    const view = new DataView(header.buffer);
    const offset = Number(view.getBigUint64(8, true)) * SECTOR_SIZE;
    switch (view.getUint32(0, true)) {
      case Request.IN: {
        if (room % SECTOR_SIZE !== 0 || !this.inside(offset, room)) return { status: Status.IO_ERROR, written: 0 };
        scatter(this.dma, chain.writable, this.image.read(offset, room));
        return { status: Status.OK, written: room };
      }
      case Request.OUT: {
        const data = gather(this.dma, chain.readable, HEADER_SIZE);
        const bad = data.length % SECTOR_SIZE !== 0 || !this.inside(offset, data.length);
        return { status: bad || !this.image.write(offset, data) ? Status.IO_ERROR : Status.OK, written: 0 };
      }
      case Request.FLUSH:
        return { status: Status.OK, written: 0 };
      case Request.GET_ID: {
        const id = new Uint8Array(Math.min(ID_SIZE, room));
        id.set(new TextEncoder().encode(this.serial).subarray(0, id.length));
        scatter(this.dma, chain.writable, id);
        return { status: Status.OK, written: id.length };
      }
      case Request.DISCARD:
      case Request.WRITE_ZEROES:
        return { status: this.image.readOnly ? Status.UNSUPPORTED : this.zero(chain), written: 0 };
      default:
        return { status: Status.UNSUPPORTED, written: 0 };
    }
  }

  private inside(offset: number, length: number): boolean {
    return offset + length <= this.image.size;
  }

  /** Discarded sectors read as zeros too. */
  private zero(chain: Chain): number {
    const ranges = gather(this.dma, chain.readable, HEADER_SIZE);
    if (ranges.length !== RANGE_SIZE) return Status.UNSUPPORTED;
    const view = new DataView(ranges.buffer);
    const offset = Number(view.getBigUint64(0, true)) * SECTOR_SIZE;
    const length = view.getUint32(8, true) * SECTOR_SIZE;
    if (view.getUint32(8, true) > MOST_SECTORS || !this.inside(offset, length)) return Status.IO_ERROR;
    const zeros = new Uint8Array(ZERO_CHUNK);
    for (let done = 0; done < length; done += ZERO_CHUNK) {
      this.image.write(offset + done, zeros.subarray(0, Math.min(ZERO_CHUNK, length - done)));
    }
    return Status.OK;
  }
}
