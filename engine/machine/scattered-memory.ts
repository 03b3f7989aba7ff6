/** Ranges of an address space that lie in physical memory page by page: how both accelerators serve a debugger. */
import type { PhysicalMemory } from "../memory/physical";

const PAGE = 4096;

/** Part of a range: `size` bytes at physical address `pa`, `done` bytes behind the range's start. */
export interface Run {
  readonly pa: number;
  readonly done: number;
  readonly size: number;
}

/**
 * The range page by page, up to the first page that is not mapped.
 * @param physical physical address of an address of the space, negative where nothing is mapped
 */
export function* runsOf(address: bigint, length: number, physical: (at: bigint) => number): Generator<Run> {
  let done = 0;
  while (done < length) {
    const at = address + BigInt(done);
    const size = Math.min(length - done, PAGE - Number(at & 0xfffn));
    const pa = physical(at);
    if (pa < 0) return;
    yield { pa, done, size };
    done += size;
  }
}

/** Shorter than `length` where a page is not mapped or the memory ends. */
export function readRuns(memory: PhysicalMemory, length: number, runs: Iterable<Run>): Uint8Array {
  const out = new Uint8Array(length);
  let there = 0;
  for (const { pa, done, size } of runs) {
    const bytes = memory.read(pa, size);
    out.set(bytes, done);
    there = done + bytes.length;
    if (bytes.length < size) break;
  }
  return out.subarray(0, there);
}

/** @param changed told of every stretch that was written @returns how many bytes were written */
export function writeRuns(
  memory: PhysicalMemory,
  bytes: Uint8Array,
  runs: Iterable<Run>,
  changed: (pa: number, length: number) => void,
): number {
  let written = 0;
  for (const { pa, done, size } of runs) {
    const n = memory.write(pa, bytes.subarray(done, done + size));
    changed(pa, n);
    written = done + n;
    if (n < size) break;
  }
  return written;
}
