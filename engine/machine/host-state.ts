/** Saving, restoring and hashing the engine's memory: processor blocks and physical memory. */

import { type CpuState, Off } from "../cpu/state";
import type { StateHash } from "../memory/hash";
import type { PhysicalMemory } from "../memory/physical";

const PAGE = 4096;

/** Pages of memory that are not all zero. */
export interface SavedMemory {
  /** Page numbers, counted over all memory in the order it was handed out in. */
  readonly pages: Uint32Array;
  readonly bytes: Uint8Array;
}

/** All memory there is, seen or not, in a fixed order. */
function* pagesOf(memory: PhysicalMemory): Generator<number> {
  for (const r of memory.allocations) for (let at = 0; at < r.size; at += PAGE) yield r.offset + at;
}

function isZero(words: Int32Array, offset: number): boolean {
  const first = offset >> 2;
  for (let i = first; i < first + PAGE / 4; i++) if (words[i] !== 0) return false;
  return true;
}

export function saveMemory(memory: PhysicalMemory): SavedMemory {
  const kept: number[] = [];
  const offsets: number[] = [];
  let n = 0;
  for (const offset of pagesOf(memory)) {
    if (!isZero(memory.i32, offset)) {
      kept.push(n);
      offsets.push(offset);
    }
    n++;
  }
  const bytes = new Uint8Array(kept.length * PAGE);
  for (const [i, offset] of offsets.entries()) bytes.set(memory.u8.subarray(offset, offset + PAGE), i * PAGE);
  return { pages: Uint32Array.from(kept), bytes };
}

export function loadMemory(memory: PhysicalMemory, saved: SavedMemory): void {
  let n = 0;
  let next = 0;
  for (const offset of pagesOf(memory)) {
    if (next < saved.pages.length && saved.pages[next] === n) {
      memory.u8.set(saved.bytes.subarray(next * PAGE, (next + 1) * PAGE), offset);
      next++;
    } else if (!isZero(memory.i32, offset)) {
      memory.u8.fill(0, offset, offset + PAGE);
    }
    n++;
  }
}

export function hashMemory(memory: PhysicalMemory, into: StateHash): void {
  for (const r of memory.allocations) {
    into.number(r.base);
    into.range(memory.i32, r.offset, r.size);
  }
}

/**
 * Adds what is architectural in a processor's block. Lazy flags go in as RFLAGS, because the tiers may leave different
 * pairs for the same flags; scratch of the tiers and of fault delivery stays out.
 */
export function hashBlock(state: CpuState, into: StateHash): void {
  const words = new Int32Array(state.memory.buffer);
  into.range(words, state.base + Off.GPR, Off.ZERO - Off.GPR);
  into.bigint(state.rip);
  into.word(state.rflags);
  into.word(state.u32(Off.CPL));
  into.word(state.u32(Off.CODE_MODE));
  into.word(state.u32(Off.INHIBIT));
  into.word(state.u32(Off.ACTIVITY));
  into.word(state.u32(Off.PENDING));
  into.range(words, state.base + Off.SEG, Off.FAULT_VECTOR - Off.SEG);
  into.range(words, state.base + Off.PENDING_DEBUG, Off.TIER_SCRATCH - Off.PENDING_DEBUG);
}
