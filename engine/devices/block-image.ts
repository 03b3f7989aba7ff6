/**
 * A disk's contents: a raw image that is never written, and over it, by clusters, what the guest has written
 * (copy-on-write). Only the changes are state.
 */
import type { Stateful } from "./chip";

const CLUSTER = 4096;
/** Bytes of a sector of a disk. */
export const SECTOR_SIZE = 512;

/** Where the contents of a disk come from. Reading is synchronous and always gives the same bytes. */
export interface DiskSource {
  /** Bytes. */
  readonly size: number;
  /** Bytes [offset, offset + length), which lie inside. */
  read(offset: number, length: number): Uint8Array;
}

/** A source of bytes that are in memory. */
export const bytesSource = (bytes: Uint8Array): DiskSource => ({
  size: bytes.length,
  read: (offset, length) => bytes.subarray(offset, offset + length),
});

/** What the guest has written, in clusters of 4096 bytes. */
export interface BlockImageState {
  /** Changed clusters by number. */
  changed: Record<number, Uint8Array>;
}

/** A disk's contents, read and written by byte offset. */
export class BlockImage implements Stateful<BlockImageState> {
  state: BlockImageState = { changed: {} };
  /** Bytes, a multiple of 512: a part of a sector at the image's end reads as if zeros followed. */
  readonly size: number;

  constructor(
    /** What errors and identification call it. */
    readonly name: string,
    image: Uint8Array | DiskSource,
    readonly readOnly = false,
  ) {
    this.source = image instanceof Uint8Array ? bytesSource(image) : image;
    this.size = Math.ceil(this.source.size / SECTOR_SIZE) * SECTOR_SIZE;
  }

  private readonly source: DiskSource;

  /** Bytes of the image; nothing behind its end. */
  private original(offset: number, length: number): Uint8Array {
    const n = Math.min(length, this.source.size - offset);
    return n > 0 ? this.source.read(offset, n) : new Uint8Array(0);
  }

  get sectors(): number {
    return this.size / SECTOR_SIZE;
  }

  /** Zeros behind the end. */
  read(offset: number, length: number): Uint8Array {
    const out = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const inside = at % CLUSTER;
      const n = Math.min(length - done, CLUSTER - inside);
      const changed = this.state.changed[Math.floor(at / CLUSTER)];
      out.set(changed ? changed.subarray(inside, inside + n) : this.original(at, n), done);
      done += n;
    }
    return out;
  }

  /** What lies behind the end is dropped, and everything when the image is read-only. @returns whether all was written */
  write(offset: number, bytes: Uint8Array): boolean {
    if (this.readOnly) return false;
    const length = Math.max(0, Math.min(bytes.length, this.size - offset));
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const inside = at % CLUSTER;
      const n = Math.min(length - done, CLUSTER - inside);
      const cluster = Math.floor(at / CLUSTER);
      let changed = this.state.changed[cluster];
      if (!changed) {
        changed = new Uint8Array(CLUSTER);
        changed.set(this.original(cluster * CLUSTER, CLUSTER));
        this.state.changed[cluster] = changed;
      }
      changed.set(bytes.subarray(done, done + n), inside);
      done += n;
    }
    return length === bytes.length;
  }

  /** What the guest has changed, by offset; nothing reaches behind the image's end. */
  changes(): { readonly offset: number; readonly bytes: Uint8Array }[] {
    return Object.entries(this.state.changed).map(([cluster, bytes]) => {
      const offset = Number(cluster) * CLUSTER;
      return { offset, bytes: bytes.subarray(0, Math.min(CLUSTER, this.source.size - offset)) };
    });
  }

  /** The image as the guest has left it. */
  contents(): Uint8Array {
    return this.read(0, this.size);
  }
}
