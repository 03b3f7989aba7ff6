/**
 * Contexts of the data TLB.
 *
 * Every TLB entry carries a 12-bit tag beside its linear page. A tag stands for one address space as one privilege sees
 * it: vCPU, VPID or ASID, PCID, second stage, the control bits that change what a walk answers, and whether accesses are
 * user, supervisor, or supervisor held back by SMAP. Switching any of these is another tag, not a flush; dropping an
 * address space is forgetting its tags. When tags run out the whole TLB is emptied once and numbering starts again.
 *
 * Translations of global pages stay over a MOV to CR3, which gives them the tag of the new address space; everything else
 * drops them with the others: a TLB may always forget (SDM 3A 4.10.2.4).
 *
 * All of it lies in the engine's memory (layout.ts), shared by the vCPUs, so that a copy of that memory is a snapshot.
 */
import { TLB_BASE, TLB_CONTEXTS_BASE, TLB_CONTEXTS_SIZE, TLB_ENTRIES, TLB_ENTRY_SIZE } from "../../memory/layout";

/** Who accesses: index of an address space's tags. */
export const Privilege = { SUPERVISOR: 0, SUPERVISOR_SMAP: 1, USER: 2 } as const;
export type Privilege = (typeof Privilege)[keyof typeof Privilege];

/** The tag under which nothing is ever entered: every access takes the slow path. */
export const NEVER_CACHED = 0;
const FIRST_TAG = 1;
/** 0xfff is left out: with the topmost page it would read as an invalid entry (-1). */
const LAST_TAG = 0xffe;

// Words (i32) from TLB_CONTEXTS_BASE.
const NEXT_TAG = 0;
const COUNT = 1;
const GENERATION = 2;
const HUGE_SEEN = 3;
const LARGE_BITMAP = 8;
const LARGE_WORDS = 128;
/** A bit for each GLOBAL_GROUP slots of the TLB: it is set where a global page may be among them. */
const GLOBAL_BITMAP = 136;
const GLOBAL_WORDS = 32;
const GLOBAL_GROUP = TLB_ENTRIES / (GLOBAL_WORDS * 32);
const SPACES = 256;

/** Words of one address space's record. */
const Word = {
  OWNER: 0,
  CONTROL: 1,
  PCID: 2,
  STAGE_LO: 3,
  STAGE_HI: 4,
  PKRU: 5,
  PKRS: 6,
  CR3_LO: 7,
  CR3_HI: 8,
  TAGS: 9,
} as const;
const SPACE_WORDS = 12;
const MAX_SPACES = Math.floor((TLB_CONTEXTS_SIZE / 4 - SPACES) / SPACE_WORDS);

/** What to forget; undefined matches anything. */
export interface SpaceFilter {
  readonly vcpu?: number;
  readonly vpid?: number;
  readonly pcid?: number;
  /** Address bits 63:12 of the second-stage tag, low and high halves. */
  readonly stageLo?: number;
  readonly stageHi?: number;
}

export class TlbContexts {
  private readonly i32: Int32Array;
  private readonly at = TLB_CONTEXTS_BASE >> 2;

  constructor(memory: WebAssembly.Memory) {
    this.i32 = new Int32Array(memory.buffer);
    if (this.i32[this.at + NEXT_TAG] === 0) this.flush();
  }

  /** Counts how often tags started anew; a tag obtained before is void afterwards. */
  get generation(): number {
    return this.i32[this.at + GENERATION];
  }

  /** Empties the TLB and forgets every address space. */
  flush(): void {
    const i32 = this.i32;
    const end = (TLB_BASE + TLB_ENTRIES * TLB_ENTRY_SIZE) >> 2;
    i32.fill(-1, TLB_BASE >> 2, end);
    const at = this.at;
    i32[at + NEXT_TAG] = FIRST_TAG;
    i32[at + COUNT] = 0;
    i32[at + GENERATION] += 1;
    i32[at + HUGE_SEEN] = 0;
    i32.fill(0, at + LARGE_BITMAP, at + LARGE_BITMAP + LARGE_WORDS);
    i32.fill(0, at + GLOBAL_BITMAP, at + GLOBAL_BITMAP + GLOBAL_WORDS);
  }

  /**
   * The record (word index) of an address space, made when there is none. A record whose CR3 is another one than asked
   * for loses its tags: they were made from other tables.
   * @param hint a record to try first, or 0
   */
  space(
    hint: number,
    owner: number,
    control: number,
    pcid: number,
    stageLo: number,
    stageHi: number,
    pkru: number,
    pkrs: number,
    cr3Lo: number,
    cr3Hi: number,
  ): number {
    const i32 = this.i32;
    const first = this.at + SPACES;
    const end = first + i32[this.at + COUNT] * SPACE_WORDS;
    let found = 0;
    for (let s = hint >= first && hint < end ? hint : first, tried = s === hint; ; ) {
      if (s >= end) break;
      if (
        i32[s] === owner &&
        i32[s + Word.CONTROL] === control &&
        i32[s + Word.PCID] === pcid &&
        i32[s + Word.STAGE_LO] === stageLo &&
        i32[s + Word.STAGE_HI] === stageHi &&
        i32[s + Word.PKRU] === pkru &&
        i32[s + Word.PKRS] === pkrs
      ) {
        found = s;
        break;
      }
      if (tried) {
        tried = false;
        s = first;
      } else s += SPACE_WORDS;
    }
    if (found === 0) {
      if (i32[this.at + COUNT] >= MAX_SPACES) this.flush();
      found = first + i32[this.at + COUNT] * SPACE_WORDS;
      i32[this.at + COUNT] += 1;
      i32[found] = owner;
      i32[found + Word.CONTROL] = control;
      i32[found + Word.PCID] = pcid;
      i32[found + Word.STAGE_LO] = stageLo;
      i32[found + Word.STAGE_HI] = stageHi;
      i32[found + Word.PKRU] = pkru;
      i32[found + Word.PKRS] = pkrs;
      this.adopt(found, cr3Lo, cr3Hi);
    } else if (i32[found + Word.CR3_LO] !== cr3Lo || i32[found + Word.CR3_HI] !== cr3Hi) {
      this.adopt(found, cr3Lo, cr3Hi);
    }
    return found;
  }

  private adopt(space: number, cr3Lo: number, cr3Hi: number): void {
    this.i32[space + Word.CR3_LO] = cr3Lo;
    this.i32[space + Word.CR3_HI] = cr3Hi;
    this.i32.fill(0, space + Word.TAGS, space + Word.TAGS + 3);
  }

  /** The tag of an address space at a privilege, or 0 when tags have run out (flush, and ask for the space again). */
  tag(space: number, privilege: Privilege): number {
    const i32 = this.i32;
    const at = space + Word.TAGS + privilege;
    let tag = i32[at];
    if (tag === 0) {
      tag = i32[this.at + NEXT_TAG];
      if (tag > LAST_TAG) return 0;
      i32[this.at + NEXT_TAG] = tag + 1;
      i32[at] = tag;
    }
    return tag;
  }

  /** Forgets the tags of all address spaces that match. */
  forget(filter: SpaceFilter): void {
    const i32 = this.i32;
    const first = this.at + SPACES;
    const end = first + i32[this.at + COUNT] * SPACE_WORDS;
    for (let s = first; s < end; s += SPACE_WORDS) {
      const owner = i32[s];
      if (filter.vcpu !== undefined && (owner & 0xff) !== filter.vcpu) continue;
      if (filter.vpid !== undefined && owner >>> 8 !== filter.vpid) continue;
      if (filter.pcid !== undefined && i32[s + Word.PCID] !== filter.pcid) continue;
      if (filter.stageLo !== undefined) {
        if ((i32[s + Word.STAGE_LO] & ~0xfff) !== filter.stageLo || i32[s + Word.STAGE_HI] !== filter.stageHi) continue;
      }
      i32.fill(0, s + Word.TAGS, s + Word.TAGS + 3);
    }
  }

  /** Notes that a translation by a page larger than 4 KiB was made, so that INVLPG knows to look for its pieces. */
  noteLarge(lo: number, hi: number, shift: number): void {
    if (shift > 21) {
      this.i32[this.at + HUGE_SEEN] = 1;
      return;
    }
    const bit = ((lo >>> 21) ^ (hi << 11)) & 0xfff;
    this.i32[this.at + LARGE_BITMAP + (bit >> 5)] |= 1 << (bit & 31);
  }

  /** Whether `lo`/`hi` may lie in a large page somewhere. */
  maybeLarge(lo: number, hi: number): boolean {
    if (this.i32[this.at + HUGE_SEEN] !== 0) return true;
    const bit = ((lo >>> 21) ^ (hi << 11)) & 0xfff;
    return ((this.i32[this.at + LARGE_BITMAP + (bit >> 5)] >>> (bit & 31)) & 1) !== 0;
  }

  /**
   * Host offset of a linear address that the TLB has under `tag`, or -1.
   * @param write looks for the write tag
   */
  lookup(lo: number, hi: number, tag: number, write: boolean): number {
    const i32 = this.i32;
    const slot = (TLB_BASE >> 2) + ((lo >>> 12) & (TLB_ENTRIES - 1)) * (TLB_ENTRY_SIZE >> 2);
    const at = write ? slot + 2 : slot;
    if (i32[at] !== ((lo & ~0xfff) | tag) || i32[at + 1] !== hi) return -1;
    return (lo + i32[slot + 4]) >>> 0;
  }

  /** Drops the entries of one linear page in every context; all pieces of its large page, where it may lie in one. */
  dropPage(lo: number, hi: number): void {
    const i32 = this.i32;
    const slot = (TLB_BASE >> 2) + ((lo >>> 12) & (TLB_ENTRIES - 1)) * (TLB_ENTRY_SIZE >> 2);
    if (((i32[slot] ^ lo) & ~0xfff) === 0 && i32[slot + 1] === hi) i32.fill(-1, slot, slot + 4);
    if (!this.maybeLarge(lo, hi)) return;
    const step = TLB_ENTRY_SIZE >> 2;
    const end = (TLB_BASE >> 2) + TLB_ENTRIES * step;
    for (let e = TLB_BASE >> 2; e < end; e += step) {
      const shift = i32[e + 6];
      if (shift <= 12 || i32[e + 1] !== hi) continue;
      if (((i32[e] ^ lo) & (-1 << shift)) === 0) i32.fill(-1, e, e + 4);
    }
  }

  /** Clears the write tags of every entry that leads to the physical page with this number (low 32 bits). */
  protectFrame(frame: number): void {
    const i32 = this.i32;
    const step = TLB_ENTRY_SIZE >> 2;
    const end = (TLB_BASE >> 2) + TLB_ENTRIES * step;
    for (let e = TLB_BASE >> 2; e < end; e += step) {
      if (i32[e + 5] === frame) {
        i32[e + 2] = -1;
        i32[e + 3] = -1;
      }
    }
  }

  /**
   * Enters a translation.
   * @param lo, hi linear address
   * @param addend host offset minus low half of the linear address
   * @param frame physical page number, low 32 bits
   * @param shift log2 of the page size
   * @param global whether the page is global
   */
  enter(
    lo: number,
    hi: number,
    tag: number,
    readable: boolean,
    writable: boolean,
    addend: number,
    frame: number,
    shift: number,
    global: boolean,
  ): void {
    const i32 = this.i32;
    const index = (lo >>> 12) & (TLB_ENTRIES - 1);
    const slot = (TLB_BASE >> 2) + index * (TLB_ENTRY_SIZE >> 2);
    const page = (lo & ~0xfff) | tag;
    i32[slot] = readable ? page : -1;
    i32[slot + 1] = readable ? hi : -1;
    i32[slot + 2] = writable ? page : -1;
    i32[slot + 3] = writable ? hi : -1;
    i32[slot + 4] = addend;
    i32[slot + 5] = frame;
    i32[slot + 6] = shift;
    i32[slot + 7] = global ? 1 : 0;
    if (!global) return;
    const group = Math.floor(index / GLOBAL_GROUP);
    i32[this.at + GLOBAL_BITMAP + (group >> 5)] |= 1 << (group & 31);
  }

  /** Gives the entries of global pages under one tag another. */
  carryGlobals(from: number, to: number): void {
    const i32 = this.i32;
    const step = TLB_ENTRY_SIZE >> 2;
    const change = from ^ to;
    for (let word = 0; word < GLOBAL_WORDS; word++) {
      for (let bits = i32[this.at + GLOBAL_BITMAP + word]; bits !== 0; bits &= bits - 1) {
        const group = word * 32 + 31 - Math.clz32(bits & -bits);
        const first = (TLB_BASE >> 2) + group * GLOBAL_GROUP * step;
        for (let e = first; e < first + GLOBAL_GROUP * step; e += step) {
          if (i32[e + 7] !== 1) continue;
          if ((i32[e] & 0xfff) === from) i32[e] ^= change;
          if ((i32[e + 2] & 0xfff) === from) i32[e + 2] ^= change;
        }
      }
    }
  }
}
