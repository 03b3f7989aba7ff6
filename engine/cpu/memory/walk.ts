/**
 * Page walks (SDM 3A chapter 4): no paging, 32-bit, PAE, 4-level and 5-level. Linear addresses are pairs of 32-bit halves,
 * physical addresses numbers; a walk allocates nothing (under a second stage one bigint for its reports).
 */
import { Access, type Cpu, LinearRight } from "../cpu";
import { Off } from "../state";

/** Bits of a #PF error code (SDM 3A 4.7). */
export const PageFault = { P: 1, W: 2, U: 4, RSVD: 8, I: 16, PK: 32 } as const;

/** The bits that decide how a walk goes, gathered from CR0, CR4 and EFER; part of a TLB context's identity. */
export const Control = {
  PG: 1 << 0,
  WP: 1 << 1,
  PSE: 1 << 2,
  PAE: 1 << 3,
  LMA: 1 << 4,
  NXE: 1 << 5,
  SMEP: 1 << 6,
  SMAP: 1 << 7,
  LA57: 1 << 8,
  PKE: 1 << 9,
  PKS: 1 << 10,
  PCIDE: 1 << 11,
  /** Lowest of four bits: a data breakpoint is on in DR0, DR1, DR2, DR3. Its page has no entries. */
  BREAKPOINT0: 1 << 12,
} as const;

// Bits of CR0, CR4 and EFER (SDM 3A 2.5, 2.2.1).
const CR0_WP = 1 << 16;
const CR4_PSE = 1 << 4;
const CR4_PAE = 1 << 5;
const CR4_LA57 = 1 << 12;
const CR4_PCIDE = 1 << 17;
const CR4_SMEP = 1 << 20;
const CR4_SMAP = 1 << 21;
const CR4_PKE = 1 << 22;
const CR4_PKS = 1 << 24;
const EFER_LMA = 1 << 10;
const EFER_NXE = 1 << 11;

/** Bits of a paging-structure entry, low half (SDM 3A 4.5.4). */
const Entry = { P: 1, W: 2, U: 4, A: 1 << 5, D: 1 << 6, PS: 1 << 7, G: 1 << 8 } as const;

const TWO32 = 0x1_0000_0000;

/** Gathers the Control bits of a processor. */
export function controlBits(cpu: Cpu): number {
  const state = cpu.state;
  const cr0 = state.lo(Off.CR0);
  let control = 0;
  const dr7 = state.lo(Off.DR7);
  // R/W fields: bit 0 set means writes or reads and writes.
  if (dr7 & 0xff) {
    for (let i = 0; i < 4; i++)
      if ((dr7 >> (i * 2)) & 3 && (dr7 >> (16 + i * 4)) & 1) control |= Control.BREAKPOINT0 << i;
  }
  if (cr0 >= 0) return control;
  const cr4 = state.lo(Off.CR4);
  const efer = state.lo(Off.EFER);
  control |= Control.PG;
  if (cr0 & CR0_WP) control |= Control.WP;
  if (cr4 & CR4_PSE) control |= Control.PSE;
  if (cr4 & CR4_PAE) control |= Control.PAE;
  if (efer & EFER_LMA) control |= Control.LMA;
  if (efer & EFER_NXE) control |= Control.NXE;
  if (cr4 & CR4_SMEP) control |= Control.SMEP;
  if (cr4 & CR4_SMAP) control |= Control.SMAP;
  if (cr4 & CR4_LA57) control |= Control.LA57;
  if (cr4 & CR4_PKE) control |= Control.PKE;
  if (cr4 & CR4_PKS) control |= Control.PKS;
  if (cr4 & CR4_PCIDE) control |= Control.PCIDE;
  return control;
}

export class PageWalker {
  /** Control bits of the current context; Mmu.updateContext sets them. */
  control = 0;

  // Results of the last walk.
  /** Physical address of the byte asked for (host-physical under a second stage). */
  physical = 0;
  /** Guest-physical address of it; the same without a second stage. */
  guestPhysical = 0;
  /** log2 of the page size of the guest's own tables. */
  pageShift = 12;
  /** Reads, and writes (dirty flag set, second stage willing), may go on through the TLB. */
  readable = false;
  writable = false;
  /** The guest's entry has the global flag: it is not PCID's own where CR4.PGE is set (SDM 3A 4.10.2.4). */
  global = false;
  /** #PF error code of a walk that failed. */
  error = 0;

  private readonly i32: Int32Array;
  /** High-half bits of an entry beyond MAXPHYADDR (up to bit 51). */
  private readonly reservedHigh: number;
  private readonly hugePages: boolean;
  private readonly pse36: boolean;
  private readonly physicalBits: number;
  private entryLo = 0;
  private entryHi = 0;
  /** Host offset of the entry last read, or -1 where the bus answered, and its physical address. */
  private entryOffset = -1;
  private entryPhysical = 0;
  private entryGuestPhysical = 0;
  private linear: bigint | undefined;
  /** LinearRight bits of the leaf; without paging every address is a user-mode one and writable (SDM 3C 29.3.3.2). */
  private linearRights = 0;
  private probing = false;

  constructor(private readonly cpu: Cpu) {
    this.i32 = cpu.memory.i32;
    const bits = cpu.model.physicalBits;
    this.physicalBits = bits;
    this.reservedHigh = bits >= 52 ? 0 : 0xfffff & ~((1 << Math.max(bits - 32, 0)) - 1);
    this.hugePages = cpu.model.features.has("page1gb");
    this.pse36 = cpu.model.features.has("pse36");
  }

  /**
   * Translates and sets accessed and dirty flags.
   * @param user a user-mode access (CPL 3 and not one the processor makes on its own behalf)
   * @param smap supervisor accesses to user pages are held back
   * @returns false with `error` filled in on a page fault
   * @throws VmExitTaken from the second stage
   */
  walk(lo: number, hi: number, access: Access, user: boolean, smap: boolean): boolean {
    this.probing = false;
    if (this.cpu.secondStage) this.linear = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    return this.tables(lo, hi, access, user, smap) && this.finish(access);
  }

  /** Translates for a debugger: no flags, no permissions, no exits. @returns physical address or -1 */
  probe(lo: number, hi: number): number {
    this.probing = true;
    try {
      if (!this.tables(lo, hi, Access.READ, false, false)) return -1;
      const stage = this.cpu.secondStage;
      return stage ? stage.probe(this.guestPhysical) : this.guestPhysical;
    } finally {
      this.probing = false;
    }
  }

  /** Second stage of the page itself. */
  private finish(access: Access): boolean {
    const stage = this.cpu.secondStage;
    if (!stage) {
      this.physical = this.guestPhysical;
      return true;
    }
    stage.linearRights = this.linearRights;
    this.physical = stage.translate(this.guestPhysical, access, this.linear, false);
    const allowed = stage.permissions;
    if ((allowed & 1) === 0) this.readable = false;
    if ((allowed & 2) === 0) this.writable = false;
    return true;
  }

  private tables(lo: number, hi: number, access: Access, user: boolean, smap: boolean): boolean {
    const control = this.control;
    if ((control & Control.PG) === 0) {
      this.guestPhysical = lo >>> 0;
      this.linearRights = LinearRight.USER | LinearRight.WRITABLE;
      this.pageShift = 12;
      this.global = false;
      this.readable = true;
      this.writable = true;
      return true;
    }
    if (control & Control.LMA) return this.walkLong(lo, hi, access, user, smap);
    if (control & Control.PAE) return this.walkPae(lo, access, user, smap);
    return this.walk32(lo, access, user, smap);
  }

  /** Reads the 32- or 64-bit entry at a guest-physical address. @returns false where a probe finds nothing */
  private readEntry(at: number, wide: boolean): boolean {
    const stage = this.cpu.secondStage;
    let pa = at;
    if (stage) {
      pa = this.probing ? stage.probe(at) : stage.translate(at, Access.READ, this.linear, true);
      if (pa < 0) return false;
    }
    this.entryGuestPhysical = at;
    this.entryPhysical = pa;
    const offset = this.cpu.memory.hostOffset(pa);
    this.entryOffset = offset;
    if (offset >= 0) {
      this.entryLo = this.i32[offset >> 2];
      this.entryHi = wide ? this.i32[(offset + 4) >> 2] : 0;
      return true;
    }
    if (this.probing) return false;
    this.entryLo = Number(this.cpu.bus.mmioRead(pa, 4)) | 0;
    this.entryHi = wide ? Number(this.cpu.bus.mmioRead(pa + 4, 4)) | 0 : 0;
    return true;
  }

  /** Sets flags (A, D) in the entry last read. */
  private setFlags(flags: number): void {
    const value = this.entryLo | flags;
    if (value === this.entryLo || this.probing) return;
    const stage = this.cpu.secondStage;
    // Updating a flag is a write to the paging structure, which the second stage must allow (SDM 3C 29.3.3.2).
    if (stage) this.entryPhysical = stage.translate(this.entryGuestPhysical, Access.WRITE, this.linear, true);
    this.entryLo = value;
    if (this.entryOffset < 0) {
      this.cpu.bus.mmioWrite(this.entryPhysical, 4, BigInt(value >>> 0));
      return;
    }
    const region = this.cpu.memory.region(this.entryPhysical);
    if (region?.kind !== "ram") return;
    this.i32[this.entryOffset >> 2] = value;
    if (this.cpu.code.hasCode(this.entryPhysical)) this.cpu.code.invalidatePhysical(this.entryPhysical, 4);
  }

  private fault(access: Access, user: boolean, cause: number): boolean {
    let error = cause;
    if (access === Access.WRITE) error |= PageFault.W;
    if (user) error |= PageFault.U;
    if (access === Access.EXECUTE) {
      const control = this.control;
      const nx = (control & Control.PAE) !== 0 && (control & Control.NXE) !== 0;
      if (nx || (control & Control.SMEP) !== 0) error |= PageFault.I;
    }
    this.error = error;
    return false;
  }

  /**
   * Checks of the leaf (SDM 3A 4.6) and its A and D flags.
   * @param rights AND of the W and U bits of all levels
   * @param noExecute OR of the XD bits
   * @param key protection key of the leaf
   */
  private leaf(access: Access, user: boolean, smap: boolean, rights: number, noExecute: boolean, key: number): boolean {
    const control = this.control;
    const userPage = (rights & Entry.U) !== 0;
    // A supervisor write is allowed to a read-only page without CR0.WP.
    let writeAllowed = (rights & Entry.W) !== 0 || (!user && (control & Control.WP) === 0);
    if (this.probing) return true;
    this.linearRights =
      (userPage ? LinearRight.USER : 0) |
      (rights & Entry.W ? LinearRight.WRITABLE : 0) |
      (noExecute ? LinearRight.NO_EXECUTE : 0);
    let bad = false;
    if (user) bad = !userPage;
    else if (userPage) bad = access === Access.EXECUTE ? (control & Control.SMEP) !== 0 : smap;
    if (access === Access.EXECUTE) bad ||= noExecute;
    else if (access === Access.WRITE) bad ||= !writeAllowed;
    let keyFault = false;
    if (access !== Access.EXECUTE && control & Control.LMA) {
      const keyRights = this.keyRights(userPage, key);
      if (keyRights & 1) keyFault = true;
      else if (keyRights & 2 && (user || control & Control.WP)) {
        if (access === Access.WRITE) keyFault = true;
        writeAllowed = false;
      }
    }
    if (bad || keyFault) return this.fault(access, user, PageFault.P | (keyFault ? PageFault.PK : 0));
    this.global = (this.entryLo & Entry.G) !== 0;
    this.setFlags(access === Access.WRITE ? Entry.A | Entry.D : Entry.A);
    this.readable = true;
    this.writable = writeAllowed && (this.entryLo & Entry.D) !== 0;
    return true;
  }

  /** Access-disable (bit 0) and write-disable (bit 1) of a protection key (SDM 3A 4.6.2). */
  private keyRights(userPage: boolean, key: number): number {
    const control = this.control;
    if (userPage) return control & Control.PKE ? (this.cpu.state.u32(Off.PKRU) >>> (key * 2)) & 3 : 0;
    return control & Control.PKS ? (this.cpu.state.u32(Off.PKRS) >>> (key * 2)) & 3 : 0;
  }

  private walkLong(lo: number, hi: number, access: Access, user: boolean, smap: boolean): boolean {
    const control = this.control;
    const cr3Lo = this.cpu.state.lo(Off.CR3);
    const cr3Hi = this.cpu.state.hi(Off.CR3);
    let table = (cr3Hi & 0xfffff) * TWO32 + ((cr3Lo & ~0xfff) >>> 0);
    const reservedHigh = this.reservedHigh | (control & Control.NXE ? 0 : 0x8000_0000);
    let rights = Entry.W | Entry.U;
    let noExecute = false;
    for (let level = control & Control.LA57 ? 5 : 4; ; level--) {
      const index =
        level === 1
          ? (lo >>> 12) & 0x1ff
          : level === 2
            ? (lo >>> 21) & 0x1ff
            : level === 3
              ? ((hi << 2) | (lo >>> 30)) & 0x1ff
              : level === 4
                ? (hi >>> 7) & 0x1ff
                : (hi >>> 16) & 0x1ff;
      if (!this.readEntry(table + index * 8, true)) return this.fault(access, user, 0);
      const entryLo = this.entryLo;
      const entryHi = this.entryHi;
      if ((entryLo & Entry.P) === 0) return this.fault(access, user, 0);
      const page = level === 1 || (entryLo & Entry.PS) !== 0;
      let reserved = entryHi & reservedHigh;
      if (page && level > 1) {
        if (level === 2) reserved |= entryLo & 0x1f_e000;
        else if (level === 3 && this.hugePages) reserved |= entryLo & 0x3fff_e000;
        else reserved |= Entry.PS;
      }
      if (reserved !== 0) return this.fault(access, user, PageFault.P | PageFault.RSVD);
      rights &= entryLo;
      noExecute ||= entryHi < 0;
      if (page) {
        const shift = level === 1 ? 12 : level === 2 ? 21 : 30;
        const mask = (1 << shift) - 1;
        if (!this.leaf(access, user, smap, rights, noExecute, (entryHi >>> 27) & 15)) return false;
        this.guestPhysical = (entryHi & 0xfffff) * TWO32 + (((entryLo & ~mask) | (lo & mask)) >>> 0);
        this.pageShift = shift;
        return true;
      }
      this.setFlags(Entry.A);
      table = (entryHi & 0xfffff) * TWO32 + ((entryLo & ~0xfff) >>> 0);
    }
  }

  /** PAE paging starts at the PDPTE registers, loaded with CR3 (SDM 3A 4.4.1). */
  private walkPae(lo: number, access: Access, user: boolean, smap: boolean): boolean {
    const state = this.cpu.state;
    const pdpte = Off.PDPTE + (lo >>> 30) * 8;
    if ((state.lo(pdpte) & Entry.P) === 0) return this.fault(access, user, 0);
    let table = (state.hi(pdpte) & 0xfffff) * TWO32 + ((state.lo(pdpte) & ~0xfff) >>> 0);
    // Bits 62:52 are reserved too, unlike in 4-level paging.
    const reservedHigh = this.reservedHigh | 0x7ff0_0000 | (this.control & Control.NXE ? 0 : 0x8000_0000);
    let rights = Entry.W | Entry.U;
    let noExecute = false;
    for (let level = 2; ; level--) {
      const index = level === 2 ? (lo >>> 21) & 0x1ff : (lo >>> 12) & 0x1ff;
      if (!this.readEntry(table + index * 8, true)) return this.fault(access, user, 0);
      const entryLo = this.entryLo;
      const entryHi = this.entryHi;
      if ((entryLo & Entry.P) === 0) return this.fault(access, user, 0);
      const large = level === 2 && (entryLo & Entry.PS) !== 0;
      const reserved = (entryHi & reservedHigh) | (large ? entryLo & 0x1f_e000 : 0);
      if (reserved !== 0) return this.fault(access, user, PageFault.P | PageFault.RSVD);
      rights &= entryLo;
      noExecute ||= entryHi < 0;
      if (large || level === 1) {
        const shift = large ? 21 : 12;
        const mask = (1 << shift) - 1;
        if (!this.leaf(access, user, smap, rights, noExecute, 0)) return false;
        this.guestPhysical = (entryHi & 0xfffff) * TWO32 + (((entryLo & ~mask) | (lo & mask)) >>> 0);
        this.pageShift = shift;
        return true;
      }
      this.setFlags(Entry.A);
      table = (entryHi & 0xfffff) * TWO32 + ((entryLo & ~0xfff) >>> 0);
    }
  }

  private walk32(lo: number, access: Access, user: boolean, smap: boolean): boolean {
    const cr3 = this.cpu.state.lo(Off.CR3);
    const directory = ((cr3 & ~0xfff) >>> 0) + (lo >>> 22) * 4;
    if (!this.readEntry(directory, false)) return this.fault(access, user, 0);
    const pde = this.entryLo;
    if ((pde & Entry.P) === 0) return this.fault(access, user, 0);
    if (pde & Entry.PS && this.control & Control.PSE) {
      // Bits 20:13 are address bits 39:32 with PSE-36 as far as MAXPHYADDR goes; the others up to bit 21 are reserved.
      const wide = this.pse36 ? Math.min(Math.max(this.physicalBits - 32, 0), 8) : 0;
      const addressBits = ((1 << wide) - 1) << 13;
      if (pde & 0x3f_e000 & ~addressBits) return this.fault(access, user, PageFault.P | PageFault.RSVD);
      if (!this.leaf(access, user, smap, pde, false, 0)) return false;
      this.guestPhysical = ((pde & addressBits) >>> 13) * TWO32 + (((pde & 0xffc0_0000) | (lo & 0x3f_ffff)) >>> 0);
      this.pageShift = 22;
      return true;
    }
    this.setFlags(Entry.A);
    if (!this.readEntry(((pde & ~0xfff) >>> 0) + ((lo >>> 12) & 0x3ff) * 4, false)) return this.fault(access, user, 0);
    const pte = this.entryLo;
    if ((pte & Entry.P) === 0) return this.fault(access, user, 0);
    if (!this.leaf(access, user, smap, pde & pte, false, 0)) return false;
    this.guestPhysical = ((pte & ~0xfff) >>> 0) + (lo & 0xfff);
    this.pageShift = 12;
    return true;
  }
}
