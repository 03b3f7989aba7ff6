/**
 * Extended page tables (SDM 3C 29.3): translation of guest-physical addresses, four levels, 4-KByte, 2-MByte and 1-GByte
 * pages. Entries are read as pairs of 32-bit halves; nothing is allocated on the way.
 */
import type { PhysicalMemory } from "../../memory/physical";
import { Access, LinearRight, type SecondStage } from "../cpu";

/** Bits of an EPT paging-structure entry (SDM 3C tables 29-1 to 29-6). */
export const EptEntry = {
  READ: 1 << 0,
  WRITE: 1 << 1,
  EXECUTE: 1 << 2,
  MEMORY_TYPE_SHIFT: 3,
  IGNORE_PAT: 1 << 6,
  PAGE: 1 << 7,
  ACCESSED: 1 << 8,
  DIRTY: 1 << 9,
  /** Execution from user-mode linear addresses, with mode-based execute control. */
  USER_EXECUTE: 1 << 10,
} as const;

/** Bits of an EPT-violation qualification (SDM 3C table 28-7). */
const Qualification = {
  READ: 1,
  WRITE: 2,
  FETCH: 4,
  ALLOWED_SHIFT: 3,
  USER_EXECUTABLE: 1 << 6,
  LINEAR_VALID: 1 << 7,
  TRANSLATED: 1 << 8,
} as const;

/** What comes of a translation besides an address. */
export interface EptExits {
  /** @param suppressed bit 63 of the entry that decides whether the violation may become a #VE; throws */
  violation(gpa: number, linear: bigint | undefined, qualification: number, suppressed: boolean): never;
  misconfiguration(gpa: number, linear: bigint | undefined): never;
  /** A dirty flag is about to be set. Logs the page, or throws when the page-modification log is full (SDM 3C 29.3.6). */
  logDirty(gpa: number): void;
  /** The page that the walk of the guest's tables is about to use; throws when it is the APIC-access page. */
  physicalAccess(pa: number): void;
}

/** Modes of translation that VM-execution controls choose. */
export interface EptModes {
  /** Mode-based execute control. */
  readonly userExecute: boolean;
  /** Page-modification logging. */
  readonly logging: boolean;
}

const PLAIN: EptModes = { userExecute: false, logging: false };

/** Part of the tag that no EPT pointer has: bit 11 tells mode-based execute control. */
const USER_EXECUTE_TAG = 1n << 11n;
const PRESENT = EptEntry.READ | EptEntry.WRITE | EptEntry.EXECUTE;

const Outcome = { OK: 0, VIOLATION: 1, MISCONFIGURATION: 2 } as const;

export class Ept implements SecondStage {
  tag = 0n;
  permissions = 0;
  pageSize = 4096;
  linearRights = 0;
  /** Bits of an entry that make it present. */
  private presence: number = PRESENT;
  private logging = false;
  /** EPT pointer in use. */
  private pointerLo = 0;
  private pointerHi = 0;
  /** Accessed and dirty flags are on (EPTP bit 6). */
  private accessedDirty = false;
  private root = 0;
  private readonly i32: Int32Array;
  /** Bits of an entry's high half that must be 0: physical-address bits beyond MAXPHYADDR. */
  private readonly reservedHigh: number;

  /** Results of the last walk. */
  private physical = 0;
  private allowed = 0;
  private levels = 0;
  private readonly entries = new Int32Array(4);

  constructor(
    private readonly memory: PhysicalMemory,
    physicalBits: number,
    private readonly exits: EptExits,
  ) {
    this.i32 = memory.i32;
    this.reservedHigh = physicalBits >= 52 ? 0 : 0xfffff & ~((1 << (physicalBits - 32)) - 1);
  }

  /** Uses the tables an EPT pointer names. */
  setPointer(lo: number, hi: number, modes: EptModes = PLAIN): void {
    this.logging = modes.logging;
    const presence = modes.userExecute ? PRESENT | EptEntry.USER_EXECUTE : PRESENT;
    // Most entries use the tables of the last one.
    if (lo === this.pointerLo && hi === this.pointerHi && presence === this.presence) return;
    this.pointerLo = lo;
    this.pointerHi = hi;
    this.root = (hi & 0xfffff) * 0x1_0000_0000 + ((lo & ~0xfff) >>> 0);
    this.accessedDirty = (lo & 0x40) !== 0;
    this.presence = presence;
    this.tag = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0) | (modes.userExecute ? USER_EXECUTE_TAG : 0n);
  }

  translate(gpa: number, access: Access, linear: bigint | undefined, walk: boolean): number {
    const outcome = this.walk(gpa);
    if (outcome === Outcome.MISCONFIGURATION) this.exits.misconfiguration(gpa, linear);
    // With accessed and dirty flags, an access to a guest paging structure counts as a write (SDM 3C 29.3.5).
    const asWrite = access === Access.WRITE || (walk && this.accessedDirty);
    const needed = access === Access.EXECUTE ? this.executeBit() : asWrite ? EptEntry.WRITE : EptEntry.READ;
    if (outcome === Outcome.VIOLATION || (this.allowed & needed) === 0) {
      this.violation(gpa, access, linear, walk, asWrite);
    }
    if (walk) this.exits.physicalAccess(this.physical);
    this.permissions = this.allowed;
    if (this.accessedDirty) this.setFlags(asWrite, gpa);
    return this.physical;
  }

  /** The execute permission that a fetch needs: mode-based, by whether the linear address is a user-mode one. */
  private executeBit(): number {
    const byMode = this.presence !== PRESENT && (this.linearRights & LinearRight.USER) !== 0;
    return byMode ? EptEntry.USER_EXECUTE : EptEntry.EXECUTE;
  }

  private violation(gpa: number, access: Access, linear: bigint | undefined, walk: boolean, asWrite: boolean): never {
    let qualification = (this.allowed & PRESENT) << Qualification.ALLOWED_SHIFT;
    if (this.allowed & EptEntry.USER_EXECUTE) qualification |= Qualification.USER_EXECUTABLE;
    if (access === Access.EXECUTE) qualification |= Qualification.FETCH;
    else if (access === Access.WRITE) qualification |= Qualification.WRITE;
    else qualification |= Qualification.READ;
    if (walk && asWrite) qualification |= Qualification.READ | Qualification.WRITE;
    if (linear !== undefined) {
      qualification |= Qualification.LINEAR_VALID;
      if (!walk) qualification |= Qualification.TRANSLATED;
    }
    const at = this.levels > 0 ? this.entries[this.levels - 1] : -1;
    return this.exits.violation(gpa, linear, qualification, at < 0 || this.i32[at + 1] < 0);
  }

  probe(gpa: number): number {
    const outcome = this.walk(gpa);
    return outcome === Outcome.OK && this.allowed !== 0 ? this.physical : -1;
  }

  /** Sets accessed flags in all entries used, and dirty in the last for a write, which page-modification logging sees. */
  private setFlags(write: boolean, gpa: number): void {
    const i32 = this.i32;
    const last = this.levels - 1;
    const leaf = this.entries[last];
    if (write && this.logging && leaf >= 0 && (i32[leaf] & EptEntry.DIRTY) === 0) this.exits.logDirty(gpa);
    for (let i = 0; i <= last; i++) {
      const at = this.entries[i];
      const set = i === last && write ? EptEntry.ACCESSED | EptEntry.DIRTY : EptEntry.ACCESSED;
      if (at >= 0 && (i32[at] & set) !== set) i32[at] |= set;
    }
    // A page whose dirty flag is clear must come here again before its first write.
    if (leaf >= 0 && (i32[leaf] & EptEntry.DIRTY) === 0) this.permissions &= ~EptEntry.WRITE;
  }

  /** Walks the tables without side effects; leaves physical, allowed, pageSize, levels and entries. */
  private walk(gpa: number): number {
    const i32 = this.i32;
    const gpaLo = (gpa % 0x1_0000_0000) | 0;
    const gpaHi = Math.floor(gpa / 0x1_0000_0000);
    let table = this.root;
    const { presence } = this;
    let allowed = presence;
    this.levels = 0;
    this.allowed = 0;
    // Guest-physical addresses beyond the walk's 48 bits have no translation.
    if (gpaHi >>> 16 !== 0) return Outcome.VIOLATION;
    for (let level = 3; level >= 0; level--) {
      const index =
        level === 3
          ? (gpaHi >>> 7) & 0x1ff
          : level === 2
            ? ((gpaHi << 2) | (gpaLo >>> 30)) & 0x1ff
            : level === 1
              ? (gpaLo >>> 21) & 0x1ff
              : (gpaLo >>> 12) & 0x1ff;
      const host = this.memory.hostOffset(table + index * 8);
      // Where no memory answers, the entry reads as all ones.
      const at = host < 0 ? -1 : host >> 2;
      const lo = at < 0 ? -1 : i32[at];
      const hi = at < 0 ? -1 : i32[at + 1];
      this.entries[this.levels++] = at;
      if ((lo & presence) === 0) return Outcome.VIOLATION;
      if (misconfigured(lo, hi & this.reservedHigh, level)) return Outcome.MISCONFIGURATION;
      allowed &= lo;
      const isPage = level === 0 || (level < 3 && (lo & EptEntry.PAGE) !== 0);
      if (isPage) {
        const mask = level === 0 ? 0xfff : level === 1 ? 0x1f_ffff : 0x3fff_ffff;
        this.pageSize = mask + 1;
        this.physical = (hi & 0xfffff) * 0x1_0000_0000 + (((lo & ~mask) | (gpaLo & mask)) >>> 0);
        this.allowed = allowed;
        return Outcome.OK;
      }
      table = (hi & 0xfffff) * 0x1_0000_0000 + ((lo & ~0xfff) >>> 0);
    }
    return Outcome.VIOLATION;
  }
}

/** A present entry has a setting the processor does not support (SDM 3C 29.3.3.1). */
function misconfigured(lo: number, reservedHigh: number, level: number): boolean {
  if ((lo & 3) === EptEntry.WRITE || reservedHigh !== 0) return true;
  const page = level === 0 || (lo & EptEntry.PAGE) !== 0;
  if (level === 3) return (lo & 0xf8) !== 0;
  if (!page) return (lo & 0x78) !== 0;
  const type = (lo >> EptEntry.MEMORY_TYPE_SHIFT) & 7;
  if (type === 2 || type === 3 || type === 7) return true;
  if (level === 1) return (lo & 0x1f_f000) !== 0;
  return level === 2 && (lo & 0x3fff_f000) !== 0;
}
