/**
 * Physical memory of the emulated machine: RAM and ROM as ranges of the engine's WebAssembly.Memory.
 *
 * Physical addresses are plain numbers: 52 bits (SDM 3A 4.1.4, MAXPHYADDR) fit a double exactly. What is neither RAM nor
 * ROM here belongs to the bus (MMIO).
 */
import { MAX_PHYSICAL, PHYSICAL_BASE } from "./layout";

export type RegionKind = "ram" | "rom";

/** A range of physical addresses backed by memory. `base` and `size` are multiples of 4096. */
export interface MemoryRegion {
  readonly kind: RegionKind;
  readonly name: string;
  /** First physical address. */
  readonly base: number;
  /** Length in bytes. */
  readonly size: number;
  /** Host offset of the first byte. */
  readonly offset: number;
}

const PAGE = 4096;

export class PhysicalMemory {
  readonly memory: WebAssembly.Memory;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly view: DataView;
  private map: MemoryRegion[] = [];
  private readonly backing: MemoryRegion[] = [];
  private next = PHYSICAL_BASE;

  /**
   * @param capacity bytes of RAM and ROM that `add` may hand out in all; the wasm memory never grows after this.
   * @throws RangeError when `capacity` is more than MAX_PHYSICAL
   */
  constructor(capacity: number) {
    if (!(capacity >= 0 && capacity <= MAX_PHYSICAL)) {
      throw new RangeError(
        `physical memory of ${capacity} bytes: at most ${MAX_PHYSICAL} fit the engine; ask for less guest memory`,
      );
    }
    const pages = Math.ceil((PHYSICAL_BASE + capacity) / 65536);
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const buffer = this.memory.buffer;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.view = new DataView(buffer);
  }

  get regions(): readonly MemoryRegion[] {
    return this.map;
  }

  /** Memory that was handed out, whether or not it can be seen now: what a snapshot keeps. `base` is where it was first. */
  get allocations(): readonly MemoryRegion[] {
    return this.backing;
  }

  /** Backs [base, base + size) with fresh zeroed memory and returns the region. */
  add(kind: RegionKind, name: string, base: number, size: number): MemoryRegion {
    if (base % PAGE !== 0 || size % PAGE !== 0 || size <= 0) {
      throw new RangeError(`memory region ${name}: base ${base} and size ${size} must be multiples of 4096`);
    }
    if (this.next + size > this.u8.length) throw new RangeError(`memory region ${name}: capacity exhausted`);
    const region: MemoryRegion = { kind, name, base, size, offset: this.next };
    this.next += size;
    this.backing.push(region);
    this.place(region);
    return region;
  }

  /**
   * Shows memory handed out before in another way: replaces the whole map. The caller sees to translations and code.
   * @throws RangeError when regions overlap
   */
  remap(regions: readonly MemoryRegion[]): void {
    this.map = [];
    for (const region of regions) this.place(region);
  }

  /** Shows memory that is already there at a second range of physical addresses (a ROM alias, say). */
  alias(kind: RegionKind, name: string, base: number, size: number, offset: number): MemoryRegion {
    const region: MemoryRegion = { kind, name, base, size, offset };
    this.place(region);
    return region;
  }

  private place(region: MemoryRegion): void {
    const clash = this.map.find((r) => region.base < r.base + r.size && r.base < region.base + region.size);
    if (clash) throw new RangeError(`memory region ${region.name} overlaps ${clash.name}`);
    this.map.push(region);
    this.map.sort((a, b) => a.base - b.base);
  }

  /** The region that holds physical address `pa`, or undefined where the bus answers. */
  region(pa: number): MemoryRegion | undefined {
    for (const r of this.map) if (pa >= r.base && pa < r.base + r.size) return r;
    return undefined;
  }

  /** Host offset of physical address `pa`, or -1 when neither RAM nor ROM is there. */
  hostOffset(pa: number): number {
    const map = this.map;
    for (let i = 0; i < map.length; i++) {
      const r = map[i];
      if (pa >= r.base && pa < r.base + r.size) return r.offset + (pa - r.base);
    }
    return -1;
  }

  /** Copies out up to `length` bytes from `pa`; shorter when the memory ends before. */
  read(pa: number, length: number): Uint8Array {
    const parts: Uint8Array[] = [];
    let done = 0;
    while (done < length) {
      const r = this.region(pa + done);
      if (!r) break;
      const n = Math.min(length - done, r.base + r.size - (pa + done));
      const at = r.offset + (pa + done - r.base);
      parts.push(this.u8.slice(at, at + n));
      done += n;
    }
    if (parts.length === 1) return parts[0];
    const out = new Uint8Array(done);
    let at = 0;
    for (const p of parts) {
      out.set(p, at);
      at += p.length;
    }
    return out;
  }

  /** Copies bytes in (ROM too: this is the loader's and the debugger's door); returns how many were placed. */
  write(pa: number, bytes: Uint8Array): number {
    let done = 0;
    while (done < bytes.length) {
      const r = this.region(pa + done);
      if (!r) break;
      const n = Math.min(bytes.length - done, r.base + r.size - (pa + done));
      this.u8.set(bytes.subarray(done, done + n), r.offset + (pa + done - r.base));
      done += n;
    }
    return done;
  }
}
