/** What loaders have in common: where they put things, what they find, and how they complain. */
import type { ImageFile, MachineConfig } from "../config";
import { MachineError } from "../config";
import type { GuestMemory } from "../memory-map";

export interface LoadContext {
  readonly memory: GuestMemory;
  readonly config: MachineConfig;
  /** Guest-physical address of the ACPI RSDP. */
  readonly rsdp: number;
}

/** @throws MachineError "name: what is wrong; what to do" */
export function reject(image: ImageFile, problem: string, mend: string): never {
  throw new MachineError(`${image.name}: ${problem}; ${mend}`);
}

export const hex = (n: number | bigint): string => `0x${n.toString(16)}`;

/** Little-endian reads of an image's header that turn "beyond the end" into an error naming the field. */
export class HeaderReader {
  private readonly view: DataView;

  constructor(
    private readonly image: ImageFile,
    private readonly what: string,
  ) {
    const { bytes } = image;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  private need(offset: number, size: number, field: string): void {
    if (offset + size > this.view.byteLength) {
      reject(
        this.image,
        `${this.what} field ${field} at ${hex(offset)} lies beyond the end of the file (${this.view.byteLength} bytes)`,
        "the file is truncated: build or copy it again",
      );
    }
  }
  u8(offset: number, field: string): number {
    this.need(offset, 1, field);
    return this.view.getUint8(offset);
  }
  u16(offset: number, field: string): number {
    this.need(offset, 2, field);
    return this.view.getUint16(offset, true);
  }
  u32(offset: number, field: string): number {
    this.need(offset, 4, field);
    return this.view.getUint32(offset, true);
  }
  /** @throws MachineError when the value is 2^53 or more: no address or size of a real image is */
  u64(offset: number, field: string): number {
    this.need(offset, 8, field);
    const value = this.view.getBigUint64(offset, true);
    if (value >= 1n << 53n) {
      reject(this.image, `${this.what} field ${field} is ${hex(value)}, which no machine has`, "build it again");
    }
    return Number(value);
  }
  big64(offset: number, field: string): bigint {
    this.need(offset, 8, field);
    return this.view.getBigUint64(offset, true);
  }
}

/** Ranges of guest memory that are taken, so that boot structures find a place of their own. */
export class Placement {
  private readonly taken: { start: number; end: number; what: string }[] = [];

  constructor(
    private readonly image: ImageFile,
    private readonly memory: GuestMemory,
  ) {}

  /** Claims a range the image asks for. @throws MachineError when the guest has no RAM there */
  claim(start: number, size: number, what: string): void {
    if (size === 0) return;
    const end = start + size;
    const ram = this.memory.ranges.find((r) => start >= r.base && end <= r.base + r.size);
    if (!ram || ram.name === "display memory") {
      const more =
        start >= 0x100000 ? "give the machine more memory, or link it lower" : "link it at 0x100000 or above";
      reject(this.image, `${what} wants ${hex(start)}-${hex(end)}, where the machine has no free RAM`, more);
    }
    this.taken.push({ start, end, what });
  }

  /** What overlaps [start, start + size), if anything does. */
  clash(start: number, size: number): string | undefined {
    return this.taken.find((t) => start < t.end && t.start < start + size)?.what;
  }

  /**
   * Takes `size` bytes, `align`-aligned, as high as possible below `limit`, clear of everything claimed.
   * @throws MachineError when there is no room
   */
  below(limit: number, size: number, align: number, what: string): number {
    const floor = 0x1000;
    let top = limit;
    for (;;) {
      const start = Math.floor((top - size) / align) * align;
      if (start < floor) {
        reject(this.image, `no room for ${what} (${size} bytes) below ${hex(limit)}`, "give the machine more memory");
      }
      const end = start + size;
      const hit = this.taken.find((t) => start < t.end && t.start < end);
      // The hole from display memory to 1 MiB is taken too.
      if (!hit && (end <= 0x9f000 || start >= 0x100000)) {
        this.taken.push({ start, end, what });
        return start;
      }
      top = hit ? Math.min(hit.start, top - 1) : 0x9f000;
    }
  }
}

/** Where the structures a loader makes itself go: below the extended BIOS data area. */
export const BOOT_AREA_END = 0x9f000;
