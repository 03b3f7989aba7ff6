/**
 * The guest's own paging as KVM walks it for the emulator and KVM_TRANSLATE (arch/x86/kvm/mmu/paging_tmpl.h): 2-level, PAE,
 * 4- and 5-level (SDM 3A chapter 4).
 */

import { guestCpuidHas } from "../cpuid";
import { Cr0, Cr4, EferBit, kvmGetRflags, kvmPdptrRead, kvmReadCr0, kvmReadCr3, kvmReadCr4 } from "../kvmCacheRegs";
import { gfnToMemslot, gpaToHpa, markPageDirtyInSlot } from "../memslots";
import type { KvmVcpu } from "../types";
import { Pferr } from "./fault";
import { Acc } from "./shadowSpte";

const PRESENT = 1n;
const WRITABLE = 2n;
const USER = 4n;
const ACCESSED = 0x20n;
const DIRTY = 0x40n;
const LARGE = 0x80n;
const NX = 1n << 63n;
const ADDRESS = 0x000ffffffffff000n;

/** Result of a walk of the guest's page tables. */
export type GvaTranslation =
  | { readonly ok: true; readonly gpa: number; readonly writable: boolean; readonly user: boolean }
  /** Error code of the #PF. */
  | { readonly ok: false; readonly errorCode: number };

interface Level {
  /** Bits of the linear address this level indexes with. */
  readonly shift: bigint;
  readonly bits: bigint;
  readonly entryBytes: 4 | 8;
}

const LEGACY: readonly Level[] = [
  { shift: 22n, bits: 10n, entryBytes: 4 },
  { shift: 12n, bits: 10n, entryBytes: 4 },
];
const level64 = (shift: bigint): Level => ({ shift, bits: 9n, entryBytes: 8 });
const PAE_LEVELS: readonly Level[] = [level64(21n), level64(12n)];
const LONG4: readonly Level[] = [level64(39n), level64(30n), level64(21n), level64(12n)];
const LONG5: readonly Level[] = [level64(48n), ...LONG4];

/** Reads a paging-structure entry; undefined where there is no memory. */
export function readGuestPte(vcpu: KvmVcpu, gpa: number, bytes: 4 | 8): bigint | undefined {
  const { memory } = vcpu.module.host;
  const hpa = gpaToHpa(vcpu.kvm, gpa);
  const offset = hpa < 0 ? -1 : memory.hostOffset(hpa);
  if (offset < 0) return undefined;
  return bytes === 8 ? memory.view.getBigUint64(offset, true) : BigInt(memory.view.getUint32(offset, true));
}

function updateEntry(vcpu: KvmVcpu, gpa: number, bytes: 4 | 8, entry: bigint): void {
  const { memory } = vcpu.module.host;
  const offset = memory.hostOffset(gpaToHpa(vcpu.kvm, gpa));
  if (bytes === 8) memory.view.setBigUint64(offset, entry, true);
  else memory.view.setUint32(offset, Number(entry), true);
  const gfn = Math.floor(gpa / 4096);
  markPageDirtyInSlot(vcpu.kvm, gfnToMemslot(vcpu.kvm, gfn), gfn);
}

/** What a walk depends on. */
export interface GuestPaging {
  readonly cr0: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
  pdpte(index: number): bigint;
  /** RFLAGS.AC, for SMAP. */
  readonly alignmentCheck: boolean;
}

/** What a successful walk went through (struct guest_walker), for shadow paging. Index 0 is the top table. */
export interface GuestWalker {
  /** Guest frames of the tables. */
  readonly tables: number[];
  /** Acc bits (shadowSpte.ts) of the path to each table: pt_access of the level above. */
  readonly access: number[];
  /** Acc bits of the whole path (pte_access), before the dirty flag counts. */
  leafAccess: number;
  /** The leaf's dirty flag, as the walk leaves it. */
  dirty: boolean;
  /** Level of the leaf: 1, or 2 and 3 for large pages. */
  level: number;
}

/** Paging of a loaded vCPU, by KVM's cached registers. */
export const pagingOf = (vcpu: KvmVcpu): GuestPaging => ({
  cr0: kvmReadCr0(vcpu),
  cr3: kvmReadCr3(vcpu),
  cr4: kvmReadCr4(vcpu),
  efer: vcpu.arch.efer,
  pdpte: (index) => kvmPdptrRead(vcpu, index),
  get alignmentCheck() {
    return (kvmGetRflags(vcpu) & (1n << 18n)) !== 0n;
  },
});

/**
 * gva_to_gpa: translates a linear address.
 * @param access Pferr.WRITE, USER and FETCH as the access has them
 * @param touch set accessed and dirty bits, as the processor would
 */
export const gvaToGpa = (vcpu: KvmVcpu, gva: bigint, access: number, touch: boolean): GvaTranslation =>
  walkAddr(vcpu, pagingOf(vcpu), gva, access, touch);

/** walk_addr_generic. @param access -1: no permissions are checked (a debugger looks) */
export function walkAddr(
  vcpu: KvmVcpu,
  paging: GuestPaging,
  gva: bigint,
  access: number,
  touch: boolean,
  walker?: GuestWalker,
): GvaTranslation {
  const { cr0, cr3, cr4, efer } = paging;
  if (!(cr0 & Cr0.PG)) return { ok: true, gpa: Number(gva & 0xffffffffn), writable: true, user: true };
  const nx = (efer & EferBit.NX) !== 0n;
  const long = (efer & EferBit.LMA) !== 0n;
  const fetchBit = access & Pferr.FETCH && (nx || cr4 & Cr4.SMEP) ? Pferr.FETCH : 0;
  const code = (access & (Pferr.WRITE | Pferr.USER)) | fetchBit;
  const fail = (extra: number): GvaTranslation => ({ ok: false, errorCode: code | extra });

  let levels: readonly Level[];
  let table: number;
  if (long) {
    levels = cr4 & Cr4.LA57 ? LONG5 : LONG4;
    table = Number(cr3 & ADDRESS);
  } else if (cr4 & Cr4.PAE) {
    const pdpte = paging.pdpte(Number((gva >> 30n) & 3n));
    if (!(pdpte & PRESENT)) return fail(0);
    levels = PAE_LEVELS;
    table = Number(pdpte & ADDRESS);
  } else {
    levels = LEGACY;
    table = Number(cr3 & 0xfffff000n);
  }

  let writable = true;
  let user = true;
  let executable = true;
  const visited: { gpa: number; bytes: 4 | 8; entry: bigint }[] = [];
  for (let i = 0; i < levels.length; i++) {
    const { shift, bits, entryBytes } = levels[i];
    const index = Number((gva >> shift) & ((1n << bits) - 1n));
    const at = table + index * entryBytes;
    walker?.tables.push(table / 4096);
    walker?.access.push(accOf(writable, user, executable));
    const entry = readGuestPte(vcpu, at, entryBytes);
    if (entry === undefined || !(entry & PRESENT)) return fail(0);
    if (reserved(vcpu, paging, entry, shift, entryBytes, nx)) return fail(Pferr.PRESENT | Pferr.RSVD);
    writable &&= (entry & WRITABLE) !== 0n;
    user &&= (entry & USER) !== 0n;
    if (entryBytes === 8 && entry & NX) executable = false;
    visited.push({ gpa: at, bytes: entryBytes, entry });
    const last = i === levels.length - 1;
    const large = !last && (entry & LARGE) !== 0n && (entryBytes === 8 ? shift <= 30n : (cr4 & Cr4.PSE) !== 0n);
    if (!last && !large) {
      table = Number(entry & (entryBytes === 8 ? ADDRESS : 0xfffff000n));
      continue;
    }
    if (access >= 0 && !permitted(paging, access, writable, user, executable)) return fail(Pferr.PRESENT);
    if (touch) setAccessedDirty(vcpu, visited, (access & Pferr.WRITE) !== 0);
    if (walker) {
      walker.leafAccess = accOf(writable, user, executable);
      walker.dirty = (entry & DIRTY) !== 0n || (touch && (access & Pferr.WRITE) !== 0);
      walker.level = levels.length - i;
    }
    const mask = (1n << shift) - 1n;
    let base: bigint;
    if (entryBytes === 4 && large) base = (entry & 0xffc00000n) | ((entry & 0x1fe000n) << 19n);
    else if (entryBytes === 4) base = entry & 0xfffff000n;
    else base = entry & ADDRESS & ~mask;
    return { ok: true, gpa: Number(base | (gva & mask)), writable, user };
  }
  return fail(0);
}

const reservedBits = (vcpu: KvmVcpu): bigint => ADDRESS & ~((1n << BigInt(vcpu.arch.maxphyaddr)) - 1n);

const accOf = (writable: boolean, user: boolean, executable: boolean): number =>
  (writable ? Acc.WRITE : 0) | (user ? Acc.USER : 0) | (executable ? Acc.EXEC : 0);

/** Bits 62:52 of PAE entries (SDM 3A tables 4-9 to 4-11). */
const PAE_RESERVED = 0x7ff0_0000_0000_0000n;
/** PSE-36: bits 20:13 of a 4-MByte page's entry are address bits 39:32; bit 21 is reserved (SDM 3A table 4-4). */
const PSE_RESERVED = 1n << 21n;

/** Whether an entry that is present has a reserved bit set (SDM 3A 4.3 to 4.5). */
export function reserved(
  vcpu: KvmVcpu,
  paging: GuestPaging,
  entry: bigint,
  shift: bigint,
  entryBytes: 4 | 8,
  nx: boolean,
): boolean {
  const large = shift > 12n && (entry & LARGE) !== 0n;
  if (entryBytes === 4) return large && (paging.cr4 & Cr4.PSE) !== 0n && (entry & PSE_RESERVED) !== 0n;
  if (reservedBits(vcpu) & entry || (entry & NX && !nx)) return true;
  if (!(paging.efer & EferBit.LMA) && entry & PAE_RESERVED) return true;
  if (!large) return false;
  // Only directory entries and, with 1-GByte pages, entries above them map pages; bit 12 of those is PAT.
  if (shift > 30n || (shift === 30n && !guestCpuidHas(vcpu, 0x80000001, 0, "edx", 26))) return true;
  return (entry & ((1n << shift) - 0x2000n)) !== 0n;
}

/** SDM 3A 4.6.1: access rights of supervisor and user accesses. */
function permitted(
  paging: GuestPaging,
  access: number,
  writable: boolean,
  user: boolean,
  executable: boolean,
): boolean {
  const { cr0, cr4 } = paging;
  const userAccess = (access & Pferr.USER) !== 0;
  if (userAccess && !user) return false;
  if (access & Pferr.FETCH) return executable && !(!userAccess && user && cr4 & Cr4.SMEP);
  if (!userAccess && user && cr4 & Cr4.SMAP && !paging.alignmentCheck) return false;
  if (access & Pferr.WRITE && !writable) return !userAccess && !(cr0 & Cr0.WP);
  return true;
}

function setAccessedDirty(
  vcpu: KvmVcpu,
  visited: readonly { gpa: number; bytes: 4 | 8; entry: bigint }[],
  write: boolean,
): void {
  for (let i = 0; i < visited.length; i++) {
    const { gpa, bytes, entry } = visited[i];
    const wanted = entry | ACCESSED | (write && i === visited.length - 1 ? DIRTY : 0n);
    if (wanted !== entry) updateEntry(vcpu, gpa, bytes, wanted);
  }
}
