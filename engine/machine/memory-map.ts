/**
 * Where things are in the guest's physical address space, and the e820 map that tells the guest (ACPI 15.1).
 *
 *   0          - 0x9fc00    RAM
 *   0x9fc00    - 0xa0000    extended BIOS data area
 *   0xa0000    - 0xc0000    display memory (text at 0xb8000)
 *   0xc0000    - 0xe0000    RAM, not reported (option ROMs would be here)
 *   0xe0000    - 0x100000   ACPI tables, from 0xf0000 SMBIOS tables; reserved
 *   0x100000   - 3 GiB      RAM
 *   0xfec00000, 0xfee00000  I/O APIC and local APIC
 *   4 GiB      -            what does not fit below 3 GiB
 */
import { GiB, KiB, MiB } from "../memory/layout";
import type { PhysicalMemory } from "../memory/physical";
import { MachineError } from "./config";

export const EBDA_BASE = 0x9fc00;
export const DISPLAY_BASE = 0xa0000;
export const DISPLAY_SIZE = 0x20000;
export const ACPI_TABLES_BASE = 0xe0000;
/** Up to 1 MiB: everything firmware would have there. */
const FIRMWARE_TABLES_SIZE = 0x20000;
/** RAM below 4 GiB ends here; the rest goes above 4 GiB. */
export const LOW_MEMORY_END = 3 * GiB;
/** Where nobody looks: memory of a firmware machine that is not mapped yet. */
export const EXTRA_MEMORY_BASE = 1024 * GiB;
const MINIMUM_MEMORY = 2 * MiB;

/**
 * A range of guest-physical addresses backed by memory; `offset` counts from the start of the guest's memory as the host
 * has it: RAM first, then what a firmware machine has besides (flash, display memory). Absent `kind` is RAM.
 */
export interface RamRange {
  readonly name: string;
  readonly base: number;
  readonly size: number;
  readonly offset: number;
  readonly kind?: "ram" | "rom";
}

/** The RAM ranges of a guest with `memory` bytes, display memory included. */
export function ramRanges(memory: number): readonly RamRange[] {
  const low = Math.min(memory, LOW_MEMORY_END);
  const ranges: RamRange[] = [
    { name: "ram below 640 KiB", base: 0, size: DISPLAY_BASE, offset: 0 },
    { name: "display memory", base: DISPLAY_BASE, size: DISPLAY_SIZE, offset: DISPLAY_BASE },
    { name: "ram", base: 0xc0000, size: low - 0xc0000, offset: 0xc0000 },
  ];
  if (memory > low) ranges.push({ name: "ram above 4 GiB", base: 4 * GiB, size: memory - low, offset: low });
  return ranges;
}

/** @throws MachineError for sizes no machine can have */
export function checkMemorySize(memory: number, most: number): void {
  const mib = (n: number): string => `${Math.floor(n / MiB)}M`;
  if (!Number.isInteger(memory) || memory % (4 * KiB) !== 0) {
    throw new MachineError(`memory: ${memory} bytes is not a multiple of 4096; use e.g. 256M`);
  }
  if (memory < MINIMUM_MEMORY) {
    throw new MachineError(`memory: ${memory} bytes is too little; use at least ${mib(MINIMUM_MEMORY)}`);
  }
  if (memory > most) {
    throw new MachineError(
      `memory: ${mib(memory)} is more than this engine can give a guest; use at most ${mib(most)}`,
    );
  }
}

export const E820Type = { RAM: 1, RESERVED: 2, ACPI: 3, NVS: 4 } as const;

export interface E820Entry {
  readonly base: number;
  readonly size: number;
  readonly type: number;
}

export function e820(memory: number): readonly E820Entry[] {
  const low = Math.min(memory, LOW_MEMORY_END);
  const entries: E820Entry[] = [
    { base: 0, size: EBDA_BASE, type: E820Type.RAM },
    { base: EBDA_BASE, size: DISPLAY_BASE - EBDA_BASE, type: E820Type.RESERVED },
    { base: ACPI_TABLES_BASE, size: FIRMWARE_TABLES_SIZE, type: E820Type.RESERVED },
    { base: MiB, size: low - MiB, type: E820Type.RAM },
    { base: 0xfec00000, size: 4 * KiB, type: E820Type.RESERVED },
    { base: 0xfee00000, size: 4 * KiB, type: E820Type.RESERVED },
  ];
  if (memory > low) entries.push({ base: 4 * GiB, size: memory - low, type: E820Type.RAM });
  return entries;
}

/**
 * The guest's memory as its machine's makers see it: by guest-physical address, wherever the host keeps it. Loaders and
 * DMA go through here; `changed` is told so that decoded code does not go stale.
 */
export class GuestMemory {
  /**
   * @param hostBase physical address (of `physical`) of guest RAM offset 0, or null when guest and host addresses agree
   * @param changed told of host-physical memory that was written
   * @param mapped told of a new map, already in force here: the processors and KVM must follow
   */
  constructor(
    readonly size: number,
    private readonly physical: PhysicalMemory,
    private readonly hostBase: number | null,
    private readonly changed: (hostPhysical: number, length: number) => void = () => {},
    private readonly mapped: (before: readonly RamRange[], now: readonly RamRange[]) => void = () => {},
  ) {
    this.current = ramRanges(size);
    this.first = physical.allocations[hostBase === null ? 0 : physical.allocations.length - 1]?.offset ?? 0;
  }

  private current: readonly RamRange[];
  /** Where offset 0 lies in the engine's memory. */
  private readonly first: number;

  get ranges(): readonly RamRange[] {
    return this.current;
  }

  /** Replaces the map. Nothing happens when it is the same. */
  map(ranges: readonly RamRange[]): void {
    const before = this.current;
    if (sameRanges(before, ranges)) return;
    this.current = ranges;
    this.mapped(before, ranges);
  }

  /** The guest's memory by offset, seen now or not: for chips that own part of it. */
  bytes(offset: number, length: number): Uint8Array {
    return this.physical.u8.subarray(this.first + offset, this.first + offset + length);
  }

  /** End of RAM below 4 GiB. */
  get lowEnd(): number {
    return Math.min(this.size, LOW_MEMORY_END);
  }

  /** A chip has changed bytes of its memory: `offset` as in `bytes`. */
  touched(offset: number, length: number): void {
    if (this.hostBase !== null) {
      this.changed(this.hostBase + offset, length);
      return;
    }
    for (const r of this.ranges) {
      const from = Math.max(offset, r.offset);
      const to = Math.min(offset + length, r.offset + r.size);
      if (from < to) this.changed(r.base + (from - r.offset), to - from);
    }
  }

  /** Physical address in the host of a guest-physical one; -1 where the guest has no RAM. */
  hostAddress(gpa: number): number {
    for (const r of this.ranges) {
      if (gpa >= r.base && gpa < r.base + r.size) {
        return this.hostBase === null ? gpa : this.hostBase + r.offset + (gpa - r.base);
      }
    }
    return -1;
  }

  private isRom(gpa: number): boolean {
    return this.ranges.some((r) => r.kind === "rom" && gpa >= r.base && gpa < r.base + r.size);
  }

  /** Bytes of RAM from `gpa` to the end of its range, at most `length`. */
  private run(gpa: number, length: number): number {
    for (const r of this.ranges) {
      if (gpa >= r.base && gpa < r.base + r.size) return Math.min(length, r.base + r.size - gpa);
    }
    return 0;
  }

  /** Shorter than `length` where RAM ends. */
  read(gpa: number, length: number): Uint8Array {
    let there = 0;
    for (let n = this.run(gpa, length); n > 0 && there < length; n = this.run(gpa + there, length - there)) there += n;
    const out = new Uint8Array(there);
    for (let done = 0; done < there; ) {
      const n = this.run(gpa + done, there - done);
      out.set(this.physical.read(this.hostAddress(gpa + done), n), done);
      done += n;
    }
    return out;
  }

  /** What falls on ROM is dropped. @returns how many bytes found memory */
  write(gpa: number, bytes: Uint8Array): number {
    let done = 0;
    while (done < bytes.length) {
      const n = this.run(gpa + done, bytes.length - done);
      if (n === 0) break;
      const at = this.hostAddress(gpa + done);
      if (!this.isRom(gpa + done)) {
        this.physical.write(at, bytes.subarray(done, done + n));
        this.changed(at, n);
      }
      done += n;
    }
    return done;
  }
}

const sameRanges = (a: readonly RamRange[], b: readonly RamRange[]): boolean =>
  a.length === b.length &&
  a.every((r, i) => r.base === b[i].base && r.size === b[i].size && r.offset === b[i].offset && r.kind === b[i].kind);
