/**
 * Shadow pages (struct kvm_mmu_page of arch/x86/kvm/mmu/mmu.c): tables in host memory that shadow a guest page table, found
 * by frame and role; their parents; the reverse map from a guest frame to the entries that map it; write protection of
 * shadowed tables, and tables that are out of step with the guest's because the guest writes them (unsync).
 */
import { KvmReq, kvmMakeAllCpusRequest } from "../requests";
import type { Kvm, KvmMemorySlot } from "../types";
import { isShadowPresent, isShadowWritable, makeShadowNonleaf, Pt, shadowSpteToPa } from "./shadowSpte";
import { kvmFlushRemoteTlbs } from "./tdpMmu";

/** union kvm_mmu_page_role: what tells two shadows of one frame apart. */
export interface ShadowRole {
  readonly level: number;
  /** Which part of a 32-bit guest's table (1024 entries) this half or quarter (512) shadows. */
  readonly quadrant: number;
  /** No guest table is behind it: it maps `gfn` onwards as it is. */
  readonly direct: boolean;
  /** Acc bits of the path that leads here. */
  readonly access: number;
  /** Paging mode of the guest: 4-byte entries, CR0.WP, EFER.NX, SMEP and SMAP, and levels (shadowMode). */
  readonly mode: number;
}

/** struct kvm_mmu_page: one shadow table. */
export interface ShadowPage {
  /** Host-physical address of the table. */
  readonly spt: number;
  readonly gfn: number;
  readonly role: ShadowRole;
  /** Physical addresses of the entries that point here. */
  parents: number[];
  /** Guest frame each entry of a level-1 table maps, -1 for none. */
  readonly gfns: Int32Array | null;
  /** vCPUs that have it as root. */
  rootCount: number;
  /** The guest may write the table behind it; entries can be stale until the next synchronisation. */
  unsync: boolean;
  /** Writes of the guest's since the table was last walked (write_flooding_count). */
  writeFlooding: number;
  /** Nobody may find it any more; it goes when the last root lets go of it. */
  invalid: boolean;
}

/** The roots a vCPU runs with. */
export interface ShadowRoots {
  /** Page of four PDPTEs for guests without long mode, -1 until needed. Below 4 GBytes. */
  paeRoot: number;
  /** Tables in use as roots: one, or one for each PDPTE in use. */
  tables: number[];
  /** What they were made for: paging mode, CR3, PDPTEs. */
  mode: number;
  cr3: bigint;
  pdptrs: [bigint, bigint, bigint, bigint];
}

/** The shadow tables of a VM. */
export interface ShadowMmuState {
  pages: Map<number, ShadowPage>;
  /** Tables by guest frame (mmu_page_hash). */
  byGfn: Map<number, number[]>;
  /** Entries that map a guest frame (rmap), as physical addresses. */
  rmap: Map<number, number[]>;
  unsync: Set<number>;
  /** By vCPU index. */
  roots: Record<number, ShadowRoots>;
}

/** kvm->arch.n_max_mmu_pages: more tables than that make the oldest go. */
const MAX_SHADOW_PAGES = 4096;
/** BATCH_ZAP_PAGES of make_mmu_pages_available, generously. */
const RECLAIM = 256;
/** Writes in a row after which a table is no longer worth shadowing (detect_write_flooding). */
const WRITE_FLOOD = 3;
const ENTRIES = 512;

/** The shadow tables of a VM, made when they are asked for first. */
export function shadowState(kvm: Kvm): ShadowMmuState {
  const { mmu } = kvm.arch;
  mmu.shadow ??= { pages: new Map(), byGfn: new Map(), rmap: new Map(), unsync: new Set(), roots: {} };
  return mmu.shadow;
}

/** The entry at host-physical address `at`. */
export function readShadowSpte(kvm: Kvm, at: number): bigint {
  const { memory } = kvm.module.host;
  return memory.view.getBigUint64(memory.hostOffset(at), true);
}

function writeShadowSpte(kvm: Kvm, at: number, spte: bigint): void {
  const { memory } = kvm.module.host;
  memory.view.setBigUint64(memory.hostOffset(at), spte, true);
}

/** The page an entry lies in. */
const pageOf = (at: number): number => at - (at % 4096);
const indexOf = (at: number): number => (at % 4096) >> 3;

const sameRole = (a: ShadowRole, b: ShadowRole): boolean =>
  a.level === b.level &&
  a.quadrant === b.quadrant &&
  a.direct === b.direct &&
  a.access === b.access &&
  a.mode === b.mode;

// --- tables ---------------------------------------------------------------------------------------------------------

/** kvm_mmu_get_shadow_page: the shadow of a frame in a role, made when there is none. Shadowed tables are write-protected. */
export function getShadowPage(kvm: Kvm, gfn: number, role: ShadowRole): ShadowPage {
  const state = shadowState(kvm);
  for (const spt of state.byGfn.get(gfn) ?? []) {
    const sp = state.pages.get(spt);
    if (!sp || sp.invalid || !sameRole(sp.role, role)) continue;
    return sp;
  }
  if (state.pages.size >= MAX_SHADOW_PAGES) makeShadowPagesAvailable(kvm);
  const sp: ShadowPage = {
    spt: kvm.module.host.allocatePages(1),
    gfn,
    role,
    parents: [],
    gfns: role.level === 1 ? new Int32Array(ENTRIES).fill(-1) : null,
    rootCount: 0,
    unsync: false,
    writeFlooding: 0,
    invalid: false,
  };
  state.pages.set(sp.spt, sp);
  const list = state.byGfn.get(gfn);
  if (list) list.push(sp.spt);
  else state.byGfn.set(gfn, [sp.spt]);
  if (!role.direct && protectShadowedGfn(kvm, gfn)) kvmFlushRemoteTlbs(kvm);
  return sp;
}

/** make_mmu_pages_available: the oldest tables that are no roots go. */
function makeShadowPagesAvailable(kvm: Kvm): void {
  let count = RECLAIM;
  for (const sp of [...shadowState(kvm).pages.values()]) {
    if (count === 0) break;
    if (sp.rootCount > 0) continue;
    zapShadowPage(kvm, sp);
    count--;
  }
  kvmFlushRemoteTlbs(kvm);
}

/** Whether the frame holds a guest page table that is shadowed. */
export function isShadowedGfn(kvm: Kvm, gfn: number): boolean {
  const state = shadowState(kvm);
  for (const spt of state.byGfn.get(gfn) ?? []) {
    const sp = state.pages.get(spt);
    if (sp && !sp.invalid && !sp.role.direct) return true;
  }
  return false;
}

/** kvm_vcpu_write_protect_gfn. @returns whether an entry was writable */
export function protectShadowedGfn(kvm: Kvm, gfn: number): boolean {
  let changed = false;
  for (const at of shadowState(kvm).rmap.get(gfn) ?? []) {
    const spte = readShadowSpte(kvm, at);
    if (!isShadowWritable(spte)) continue;
    writeShadowSpte(kvm, at, spte & ~Pt.WRITABLE);
    changed = true;
  }
  return changed;
}

// --- entries --------------------------------------------------------------------------------------------------------

function rmapRemove(state: ShadowMmuState, gfn: number, at: number): void {
  const list = state.rmap.get(gfn);
  if (!list) return;
  const i = list.indexOf(at);
  if (i < 0) return;
  list[i] = list[list.length - 1];
  list.pop();
  if (list.length === 0) state.rmap.delete(gfn);
}

/** mmu_page_zap_pte: an entry goes, with its place in the reverse map or in its child's parents. */
export function zapShadowSpte(kvm: Kvm, at: number): boolean {
  const spte = readShadowSpte(kvm, at);
  if (spte === 0n) return false;
  const state = shadowState(kvm);
  writeShadowSpte(kvm, at, 0n);
  if (!isShadowPresent(spte)) return true;
  const sp = state.pages.get(pageOf(at));
  if (sp?.gfns) {
    const index = indexOf(at);
    rmapRemove(state, sp.gfns[index], at);
    sp.gfns[index] = -1;
    kvm.state.stat.pages_4k--;
  } else {
    const child = state.pages.get(shadowSpteToPa(spte));
    const i = child ? child.parents.indexOf(at) : -1;
    if (child && i >= 0) {
      child.parents[i] = child.parents[child.parents.length - 1];
      child.parents.pop();
    }
  }
  return true;
}

/** link_shadow_page */
export function linkShadowPage(kvm: Kvm, at: number, child: ShadowPage): void {
  zapShadowSpte(kvm, at);
  writeShadowSpte(kvm, at, makeShadowNonleaf(child.spt));
  child.parents.push(at);
}

/** mmu_set_spte: installs a leaf. @returns the entry that was there */
export function setShadowLeaf(kvm: Kvm, at: number, gfn: number, spte: bigint): bigint {
  const state = shadowState(kvm);
  const old = readShadowSpte(kvm, at);
  const sp = state.pages.get(pageOf(at));
  const index = indexOf(at);
  if (isShadowPresent(old) && isShadowPresent(spte) && sp?.gfns?.[index] === gfn) {
    writeShadowSpte(kvm, at, spte);
    return old;
  }
  zapShadowSpte(kvm, at);
  writeShadowSpte(kvm, at, spte);
  if (isShadowPresent(spte) && sp?.gfns) {
    sp.gfns[index] = gfn;
    const list = state.rmap.get(gfn);
    if (list) list.push(at);
    else state.rmap.set(gfn, [at]);
    kvm.state.stat.pages_4k++;
  }
  return old;
}

/** kvm_mmu_prepare_zap_page: a table and the entries that point to it go. Its children stay, for others or for later. */
function zapShadowPage(kvm: Kvm, sp: ShadowPage): void {
  const state = shadowState(kvm);
  for (let i = 0; i < ENTRIES; i++) zapShadowSpte(kvm, sp.spt + i * 8);
  for (const at of [...sp.parents]) zapShadowSpte(kvm, at);
  const list = state.byGfn.get(sp.gfn);
  if (list?.includes(sp.spt)) {
    list.splice(list.indexOf(sp.spt), 1);
    if (list.length === 0) state.byGfn.delete(sp.gfn);
  }
  state.unsync.delete(sp.spt);
  if (!sp.invalid) kvm.state.stat.mmu_shadow_zapped++;
  if (sp.rootCount > 0) {
    sp.invalid = true;
    kvmMakeAllCpusRequest(kvm.vcpus, KvmReq.MMU_FREE_OBSOLETE_ROOTS);
    return;
  }
  state.pages.delete(sp.spt);
  kvm.module.host.freePages(sp.spt, 1);
}

/** A root lets go of a table; an invalid one goes with its last user. */
export function putShadowRoot(kvm: Kvm, spt: number): void {
  const state = shadowState(kvm);
  const sp = state.pages.get(spt);
  if (!sp) return;
  sp.rootCount--;
  if (sp.rootCount > 0 || !sp.invalid) return;
  state.pages.delete(spt);
  kvm.module.host.freePages(spt, 1);
}

/** kvm_mmu_zap_all_fast */
export function zapAllShadowPages(kvm: Kvm): void {
  for (const sp of [...shadowState(kvm).pages.values()]) zapShadowPage(kvm, sp);
  kvmFlushRemoteTlbs(kvm);
}

// --- writes to shadowed tables ----------------------------------------------------------------------------------------

/**
 * mmu_try_to_unsync_pages: the guest is about to write a frame that holds page tables.
 * @returns false when a table above level 1 is there, whose writes KVM must see
 */
export function tryToUnsyncPages(kvm: Kvm, gfn: number): boolean {
  const state = shadowState(kvm);
  const list = state.byGfn.get(gfn);
  if (!list) return true;
  for (const spt of [...list]) {
    const sp = state.pages.get(spt);
    if (!sp || sp.invalid || sp.role.direct || sp.role.level === 1) continue;
    // A table that nothing leads to any more is most likely no table any more.
    if (sp.parents.length > 0 || sp.rootCount > 0) return false;
    zapShadowPage(kvm, sp);
  }
  for (const spt of list) {
    const sp = state.pages.get(spt);
    if (!sp || sp.invalid || sp.role.direct || sp.unsync) continue;
    sp.unsync = true;
    state.unsync.add(sp.spt);
    kvm.state.stat.mmu_unsync++;
  }
  return true;
}

/**
 * kvm_mmu_unprotect_page: the shadows of a frame go, so that the guest can write it itself.
 * @returns false when one of them is the root of an address space in use
 */
export function unprotectShadowedGfn(kvm: Kvm, gfn: number): boolean {
  const state = shadowState(kvm);
  const tables = (state.byGfn.get(gfn) ?? []).map((spt) => state.pages.get(spt));
  if (tables.some((sp) => sp && !sp.role.direct && sp.rootCount > 0)) return false;
  let changed = false;
  for (const sp of tables) {
    if (!sp || sp.role.direct) continue;
    zapShadowPage(kvm, sp);
    changed = true;
  }
  if (changed) kvmFlushRemoteTlbs(kvm);
  return true;
}

/** kvm_mmu_track_write: KVM has written guest memory; shadow entries of the words written go. */
export function trackShadowWrite(kvm: Kvm, gpa: number, length: number): void {
  const state = shadowState(kvm);
  const list = state.byGfn.get(Math.floor(gpa / 4096));
  if (!list) return;
  const first = gpa % 4096;
  let changed = false;
  for (const spt of [...list]) {
    const sp = state.pages.get(spt);
    if (!sp || sp.role.direct) continue;
    if (sp.role.level > 1 && ++sp.writeFlooding >= WRITE_FLOOD && sp.rootCount === 0) {
      zapShadowPage(kvm, sp);
      kvm.state.stat.mmu_flooded++;
      changed = true;
      continue;
    }
    const legacy = isLegacyMode(sp.role.mode);
    const size = legacy ? 4 : 8;
    for (let i = Math.floor(first / size); i * size < first + length && i < 4096 / size; i++) {
      for (const index of shadowIndices(sp.role, legacy, i)) {
        if (zapShadowSpte(kvm, spt + index * 8)) changed = true;
      }
    }
  }
  if (changed) {
    kvm.state.stat.mmu_pte_write++;
    kvmFlushRemoteTlbs(kvm);
  }
}

/** Bit of a role's mode: the guest's entries have 4 bytes. */
export const LEGACY_MODE = 1 << 0;
export const isLegacyMode = (mode: number): boolean => (mode & LEGACY_MODE) !== 0;

/** Entries of a shadow that stand for entry `i` of the guest's table: a 32-bit guest's directory entry takes two. */
function shadowIndices(role: ShadowRole, legacy: boolean, i: number): number[] {
  if (!legacy) return [i];
  if (role.level === 1) return Math.floor(i / ENTRIES) === role.quadrant ? [i % ENTRIES] : [];
  // A quadrant of the directory covers 1 GByte: 256 entries of 4 MBytes, two shadow entries each.
  return Math.floor(i / 256) === role.quadrant ? [(i % 256) * 2, (i % 256) * 2 + 1] : [];
}

/** Index in the guest's table that entry `i` of a level-1 shadow stands for. */
export const guestIndexOf = (role: ShadowRole, i: number): number =>
  isLegacyMode(role.mode) ? role.quadrant * ENTRIES + i : i;

// --- dirty logging and zapping by frame ---------------------------------------------------------------------------------

/** Calls `visit` for each entry that maps a frame of [start, end). @returns whether one changed */
function forEachRmap(kvm: Kvm, start: number, end: number, visit: (spte: bigint, gfn: number) => bigint): boolean {
  const state = shadowState(kvm);
  let changed = false;
  const one = (gfn: number, list: readonly number[]): void => {
    for (const at of [...list]) {
      const spte = readShadowSpte(kvm, at);
      const next = visit(spte, gfn);
      if (next === spte) continue;
      changed = true;
      if (next === 0n) zapShadowSpte(kvm, at);
      else writeShadowSpte(kvm, at, next);
    }
  };
  if (end - start > state.rmap.size) {
    for (const [gfn, list] of [...state.rmap]) if (gfn >= start && gfn < end) one(gfn, list);
    return changed;
  }
  for (let gfn = start; gfn < end; gfn++) {
    const list = state.rmap.get(gfn);
    if (list) one(gfn, list);
  }
  return changed;
}

const protect = (spte: bigint): bigint => spte & ~(Pt.WRITABLE | Pt.DIRTY);

/** slot_rmap_write_protect over a slot, or over those of its frames whose bit is set in `dirty`. */
export function wrprotShadowSlot(kvm: Kvm, slot: KvmMemorySlot, dirty: Uint32Array | null): boolean {
  return forEachRmap(kvm, slot.baseGfn, slot.baseGfn + slot.npages, (spte, gfn) => {
    const rel = gfn - slot.baseGfn;
    return dirty === null || (dirty[rel >> 5] >>> (rel & 31)) & 1 ? protect(spte) : spte;
  });
}

/** kvm_zap_rmap over [start, end). */
export const zapShadowGfns = (kvm: Kvm, start: number, end: number): boolean => forEachRmap(kvm, start, end, () => 0n);
