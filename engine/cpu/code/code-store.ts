/**
 * Decoded code of one engine memory, shared by its vCPUs: pages of records in the code arena, which physical bytes they
 * were decoded from, and the code TLB that leads from linear addresses to them.
 *
 * A code page belongs to one physical page as one kind of code sees it: same linear page, same mode, same CS base and
 * limit. Its table has a word for each of the 4096 places an instruction may begin at: its record, or 0. Nothing here is
 * architectural: all of it may be forgotten at any instruction boundary.
 */
import { CODE_ARENA_BASE, CODE_ARENA_SIZE, ITLB_BASE, ITLB_ENTRIES, ITLB_ENTRY_SIZE } from "../../memory/layout";
import type { PhysicalMemory } from "../../memory/physical";
import { Key, Rec } from "../interpreter/record";
import type { Instruction } from "../isa/instruction";
import type { CodeMode } from "../state";

export const TABLE_SIZE = 4096 * 4;

/** What makes one code page differ from another on the same physical page. */
export interface CodePageKey {
  /** Linear address of the page. */
  readonly linear: bigint;
  readonly mode: CodeMode;
  /** CS.base and CS.limit; 0 and -1 in 64-bit mode. */
  readonly base: number;
  readonly limit: number;
}

export interface CodePage extends CodePageKey {
  /** Physical page number. */
  readonly frame: number;
  /** Host offset of the page's first byte. */
  readonly host: number;
  /** Host offset of the record table. */
  readonly table: number;
  /** Records whose LINK waits for the instruction at an offset of this page to be decoded. */
  readonly waiting: Map<number, number[]>;
  /** By offset: records whose bytes have changed. They lead to wherever the place is decoded anew. */
  readonly stale: Map<number, StaleRecord>;
}

export interface StaleRecord {
  readonly record: number;
  /** Length of the instruction it was, or 0 where it was none and its place cannot be used again. */
  readonly length: number;
}

/** Code decoded from one physical page. */
interface FrameCode {
  /** A bit for each byte that belongs to a decoded instruction. */
  readonly bytes: Uint32Array;
  pages: CodePage[];
}

/**
 * After so many changes to the code of one frame, single instructions are forgotten instead of the whole frame, for so many
 * changes: programs that patch themselves do not stop doing so.
 */
const DROPS_BEFORE_PATCHING = 4;
const PATCHES_BEFORE_DROP = 256;
const LONGEST_PATCH = 16;
const LONGEST_INSTRUCTION = 15;

/** The arena is full: everything has been forgotten, and whoever was decoding starts again. */
export class ArenaFlushed {}

/** Code addresses [from, to): every instruction that begins there gets a BREAK in front. */
export interface CodeStop {
  readonly physical: boolean;
  readonly from: bigint;
  readonly to: bigint;
}

function onPage({ physical, from, to }: CodeStop, page: CodePage): boolean {
  const start = physical ? BigInt(page.frame * 4096) : page.linear;
  return from < start + 4096n && to > start;
}

export class CodeStore {
  private readonly frames = new Map<number, FrameCode>();
  /** Code pages by the host offset of their table. */
  private readonly byTable = new Map<number, CodePage>();
  /** Changes of each frame's code since it was last forgotten for good. */
  private readonly changes = new Map<number, number>();
  /** Told of every code page that is forgotten. */
  onForget: (page: CodePage) => void = () => {};
  /** Told of a page some of whose records become stale: all of them must be as they were decoded. */
  onPatch: (page: CodePage) => void = () => {};
  private readonly i32: Int32Array;
  private next = CODE_ARENA_BASE;
  private readonly end = CODE_ARENA_BASE + CODE_ARENA_SIZE;
  /** Instructions that system handlers read, by RecordField.INSTRUCTION. */
  instructions: Instruction[] = [];
  /** Changes whenever records may have become stale: code that runs must look itself up again. */
  generation = 0;
  /** Code to stop at, by vCPU. */
  private readonly stops = new Map<number, readonly CodeStop[]>();
  /** What gets a BREAK in front of its instructions: single linear addresses, and everything else. */
  private linearStops: ReadonlySet<bigint> = new Set();
  private otherStops: readonly CodeStop[] = [];

  constructor(readonly memory: PhysicalMemory) {
    this.i32 = memory.i32;
    this.flush();
  }

  /** Forgets everything. */
  flush(): void {
    for (const page of this.byTable.values()) this.onForget(page);
    this.byTable.clear();
    this.frames.clear();
    this.changes.clear();
    this.instructions = [];
    this.next = CODE_ARENA_BASE;
    this.generation++;
    this.flushItlb();
  }

  /**
   * Space in the arena, 64-byte aligned.
   * @throws ArenaFlushed when there was none
   */
  allocate(bytes: number): number {
    const at = this.next;
    if (at + bytes > this.end) {
      this.flush();
      throw new ArenaFlushed();
    }
    this.next = at + Math.ceil(bytes / 64) * 64;
    return at;
  }

  /** Gives back the tail of the last allocation. */
  shrink(end: number): void {
    this.next = Math.ceil(end / 64) * 64;
  }

  // ---- code TLB

  flushItlb(): void {
    this.i32.fill(-1, ITLB_BASE >> 2, (ITLB_BASE + ITLB_ENTRIES * ITLB_ENTRY_SIZE) >> 2);
  }

  static itlbEntry(linearLo: number): number {
    return ITLB_BASE + ((linearLo >>> 12) & (ITLB_ENTRIES - 1)) * ITLB_ENTRY_SIZE;
  }

  /** Drops the one entry that could hold a linear page, whatever its context. */
  dropItlb(linearLo: number): void {
    const w = CodeStore.itlbEntry(linearLo) >> 2;
    this.i32[w] = -1;
    this.i32[w + 1] = -1;
  }

  enterItlb(linearLo: number, linearHi: number, context: number, table: number, global: boolean): void {
    const w = CodeStore.itlbEntry(linearLo) >> 2;
    this.i32[w] = (linearLo & ~0xfff) | context;
    this.i32[w + 1] = linearHi;
    this.i32[w + 2] = table;
    this.i32[w + 3] = global ? 1 : 0;
  }

  /** Gives the code TLB's entries of global pages in one context another. */
  carryGlobals(from: number, to: number): void {
    const { i32 } = this;
    const change = from ^ to;
    const end = (ITLB_BASE + ITLB_ENTRIES * ITLB_ENTRY_SIZE) >> 2;
    for (let w = ITLB_BASE >> 2; w < end; w += ITLB_ENTRY_SIZE >> 2) {
      if (i32[w + 3] === 1 && (i32[w] & 0xfff) === from) i32[w] ^= change;
    }
  }

  /** Record at a linear address if the code TLB knows it, else 0. */
  lookup(linearLo: number, linearHi: number, context: number): number {
    const w = CodeStore.itlbEntry(linearLo) >> 2;
    if (this.i32[w] !== ((linearLo & ~0xfff) | context) || this.i32[w + 1] !== linearHi) return 0;
    return this.i32[(this.i32[w + 2] >> 2) + (linearLo & 0xfff)];
  }

  // ---- pages

  /**
   * The code page for a key on a physical page, made when it is not there.
   * @param fresh called when the physical page gets its first code page: stores to it must be seen from now on
   */
  page(frame: number, host: number, key: CodePageKey, fresh: () => void): CodePage {
    let code = this.frames.get(frame);
    const found = code?.pages.find(
      (p) => p.linear === key.linear && p.mode === key.mode && p.base === key.base && p.limit === key.limit,
    );
    if (found) return found;
    const table = this.allocate(TABLE_SIZE);
    this.i32.fill(0, table >> 2, (table + TABLE_SIZE) >> 2);
    if (!code) {
      code = { bytes: new Uint32Array(128), pages: [] };
      this.frames.set(frame, code);
      fresh();
    }
    const page: CodePage = { ...key, frame, host, table, waiting: new Map(), stale: new Map() };
    code.pages.push(page);
    this.byTable.set(table, page);
    return page;
  }

  /** The code page the code TLB has for a linear address, if any. */
  pageAt(linearLo: number, linearHi: number, context: number): CodePage | undefined {
    const w = CodeStore.itlbEntry(linearLo) >> 2;
    if (this.i32[w] !== ((linearLo & ~0xfff) | context) || this.i32[w + 1] !== linearHi) return undefined;
    return this.byTable.get(this.i32[w + 2]);
  }

  /** Whether a breakpoint stands at an offset of a page. */
  stopsAt(page: CodePage, offset: number): boolean {
    const linear = page.linear + BigInt(offset);
    if (this.linearStops.has(linear)) return true;
    return this.otherStops.some(({ physical, from, to }) => {
      const at = physical ? BigInt(page.frame * 4096 + offset) : linear;
      return at >= from && at < to;
    });
  }

  /** Whether any breakpoint stands on a page. */
  hasBreakpoints(page: CodePage): boolean {
    for (const b of this.linearStops) if ((b & ~0xfffn) === page.linear) return true;
    return this.otherStops.some((stop) => onPage(stop, page));
  }

  /** Notes that an instruction of `length` bytes at `offset` of the frame was decoded (what lies beyond its end is cut). */
  markDecoded(frame: number, offset: number, length: number): void {
    const bytes = this.frames.get(frame)?.bytes;
    if (!bytes) return;
    for (let i = offset; i < Math.min(offset + length, 4096); i++) bytes[i >> 5] |= 1 << (i & 31);
  }

  hasCode(pa: number): boolean {
    return this.frames.has(Math.floor(pa / 4096));
  }

  touches(pa: number, length: number): boolean {
    const code = this.frames.get(Math.floor(pa / 4096));
    if (!code) return false;
    const first = pa % 4096;
    for (let i = first; i < Math.min(first + length, 4096); i++) {
      if (code.bytes[i >> 5] & (1 << (i & 31))) return true;
    }
    return false;
  }

  /** Bytes of physical memory changed. */
  invalidate(pa: number, length: number): void {
    const end = pa + length;
    for (let at = pa; at < end; at = (Math.floor(at / 4096) + 1) * 4096) {
      const part = Math.min(end - at, 4096 - (at % 4096));
      if (this.touches(at, part)) this.change(Math.floor(at / 4096), at % 4096, part);
    }
  }

  /** Decoded bytes of a frame have changed. */
  private change(frame: number, first: number, length: number): void {
    const count = (this.changes.get(frame) ?? 0) + 1;
    this.changes.set(frame, count);
    // An instruction of the page before may end in the first bytes.
    const patch = count > DROPS_BEFORE_PATCHING && length <= LONGEST_PATCH && first >= LONGEST_INSTRUCTION;
    if (!patch || count > DROPS_BEFORE_PATCHING + PATCHES_BEFORE_DROP) {
      if (patch) this.changes.set(frame, DROPS_BEFORE_PATCHING);
      this.dropFrame(frame);
      return;
    }
    for (const page of this.frames.get(frame)?.pages ?? []) this.patch(page, first, length);
    this.generation++;
  }

  /** Makes stale what was decoded from some bytes of a page. */
  private patch(page: CodePage, first: number, length: number): void {
    this.onPatch(page);
    for (let offset = first - LONGEST_INSTRUCTION + 1; offset < first + length; offset++) {
      const at = (page.table >> 2) + offset;
      const record = this.i32[at];
      if (record === 0) continue;
      const key = this.i32[(record + Rec.KEY) >> 2];
      const plain = key !== Key.BREAK && key !== Key.CROSS;
      const size = plain ? this.memory.u8[record + Rec.LENGTH] : 0;
      if (offset + (size || LONGEST_INSTRUCTION) <= first) continue;
      this.i32[at] = 0;
      for (const list of page.waiting.values()) {
        const place = list.indexOf(record);
        if (place >= 0) list.splice(place, 1);
      }
      // Everything else stays as it is: the instruction may be the one that has just made the change.
      this.i32[(record + Rec.KEY) >> 2] = Key.GOTO;
      this.i32[(record + Rec.LINK) >> 2] = 0;
      page.stale.set(offset, { record, length: size });
    }
  }

  /** Forgets the code of a physical page. Old records stay readable until the arena is flushed, so that running ones end well. */
  private dropFrame(frame: number): void {
    const code = this.frames.get(frame);
    if (!code) return;
    for (const page of code.pages) {
      this.i32.fill(0, page.table >> 2, (page.table + TABLE_SIZE) >> 2);
      this.dropItlb(Number(page.linear & 0xffff_ffffn) | 0);
      this.byTable.delete(page.table);
      this.onForget(page);
    }
    this.frames.delete(frame);
    this.generation++;
  }

  /** Sets the code a vCPU is to stop at; pages on which that changes anything are decoded anew. */
  setBreakpoints(vcpu: number, stops: readonly CodeStop[]): void {
    const keyed = (): Map<string, CodeStop> =>
      new Map([...this.stops.values()].flat().map((s) => [`${s.physical}:${s.from}:${s.to}`, s]));
    const old = keyed();
    this.stops.set(vcpu, stops);
    const next = keyed();
    const isSingle = (s: CodeStop): boolean => !s.physical && s.to === s.from + 1n;
    this.linearStops = new Set([...next.values()].filter(isSingle).map((s) => s.from));
    this.otherStops = [...next.values()].filter((s) => !isSingle(s));
    const changed = [...next, ...old].filter(([key]) => !(next.has(key) && old.has(key))).map(([, stop]) => stop);
    if (changed.length === 0) return;
    for (const [frame, code] of [...this.frames]) {
      if (code.pages.some((page) => changed.some((stop) => onPage(stop, page)))) this.dropFrame(frame);
    }
  }
}
