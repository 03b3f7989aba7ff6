/**
 * Shadow paging (arch/x86/kvm/mmu/paging_tmpl.h and mmu.c without two-dimensional paging): the processor walks tables that
 * KVM derives from the guest's own. #PF exits: KVM walks the guest's tables, gives the fault to the guest where these say
 * so, and otherwise installs what is missing. Shadowed tables are write-protected; tables of the lowest level may be
 * written freely (unsync) and are compared again when the guest flushes its TLB.
 */
import { kvmSlotDirtyTrackEnabled } from "../dirtyLog";
import {
  Cr0,
  Cr4,
  EferBit,
  isLongMode,
  isPaging,
  kvmPdptrRead,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
} from "../kvmCacheRegs";
import {
  gfnToMemslot,
  KVM_MEMSLOT_INVALID,
  kvmIsVisibleMemslot,
  kvmMemslots,
  markPageDirtyInSlot,
  slotToHpa,
} from "../memslots";
import { APIC_ACCESS_PAGE_PRIVATE_MEMSLOT, type KvmVcpu, PAGE_SIZE } from "../types";
import { KvmMemFlag } from "../uapi";
import { kvmInjectPageFault } from "../x86Events";
import { Pferr, RetPf } from "./fault";
import { kvmPageTrackIsActive } from "./pageTrack";
import { type GuestWalker, pagingOf, readGuestPte, reserved, walkAddr } from "./pagingTmpl";
import {
  getShadowPage,
  guestIndexOf,
  isLegacyMode,
  isShadowedGfn,
  LEGACY_MODE,
  linkShadowPage,
  protectShadowedGfn,
  putShadowRoot,
  readShadowSpte,
  type ShadowPage,
  type ShadowRole,
  type ShadowRoots,
  setShadowLeaf,
  shadowState,
  tryToUnsyncPages,
  unprotectShadowedGfn,
  zapShadowSpte,
} from "./shadowPages";
import {
  Acc,
  isShadowMmio,
  isShadowPresent,
  isShadowWritable,
  makeShadowLeaf,
  makeShadowMmio,
  Pt,
  SHADOW_MMIO_GEN_COUNT,
  shadowMmioAccess,
  shadowMmioGeneration,
  shadowMmioGfn,
  shadowSpteToPa,
} from "./shadowSpte";
import { kvmFlushRemoteTlbs } from "./tdpMmu";

const LONG_LEVELS = 4;
const PAE_LEVELS = 2;
const FRAMES_PER_GIB = 1 << 18;
const ADDRESS = 0x000ffffffffff000n;
const PRESENT = 1n;

/** Bits of a role's mode beside LEGACY_MODE: what of CR0, CR4 and EFER shapes the entries (kvm_cpu_role). */
const Mode = { WP: 2, NX: 4, SMEP_WITHOUT_WP: 8, SMAP_WITHOUT_WP: 16, PAGING: 32, LONG: 64, PAE: 128 } as const;

function shadowMode(vcpu: KvmVcpu): number {
  const cr0 = kvmReadCr0(vcpu);
  if (!(cr0 & Cr0.PG)) return 0;
  const cr4 = kvmReadCr4(vcpu);
  const wp = (cr0 & Cr0.WP) !== 0n;
  let mode = Mode.PAGING | (wp ? Mode.WP : 0);
  if (vcpu.arch.efer & EferBit.NX) mode |= Mode.NX;
  if (!wp && cr4 & Cr4.SMEP) mode |= Mode.SMEP_WITHOUT_WP;
  if (!wp && cr4 & Cr4.SMAP) mode |= Mode.SMAP_WITHOUT_WP;
  if (isLongMode(vcpu)) mode |= Mode.LONG;
  else if (cr4 & Cr4.PAE) mode |= Mode.PAE;
  else mode |= LEGACY_MODE | (cr4 & Cr4.PSE ? 1 << 8 : 0);
  return mode;
}

// --- roots ----------------------------------------------------------------------------------------------------------

function rootsOf(vcpu: KvmVcpu): ShadowRoots {
  const { roots } = shadowState(vcpu.kvm);
  roots[vcpu.state.vcpuIdx] ??= { paeRoot: -1, tables: [], mode: -1, cr3: 0n, pdptrs: [0n, 0n, 0n, 0n] };
  return roots[vcpu.state.vcpuIdx];
}

const writePdpte = (vcpu: KvmVcpu, table: number, index: number, value: bigint): void => {
  const { memory } = vcpu.module.host;
  memory.view.setBigUint64(memory.hostOffset(table) + index * 8, value, true);
};

function useRoot(vcpu: KvmVcpu, roots: ShadowRoots, gfn: number, role: ShadowRole): ShadowPage {
  // A root that no memory backs is an empty table: every access faults, and the walk tells the guest why.
  const backed = role.direct || kvmIsVisibleMemslot(gfnToMemslot(vcpu.kvm, gfn));
  const sp = getShadowPage(vcpu.kvm, backed ? gfn : -1, backed ? role : { ...role, direct: true });
  sp.rootCount++;
  roots.tables.push(sp.spt);
  return sp;
}

/** mmu_alloc_shadow_roots and mmu_alloc_direct_roots. @returns physical address for the guest's CR3 */
function allocateRoots(vcpu: KvmVcpu, roots: ShadowRoots): number {
  const mode = shadowMode(vcpu);
  const cr3 = kvmReadCr3(vcpu);
  roots.mode = mode;
  roots.cr3 = cr3;
  const base = { quadrant: 0, direct: false, access: Acc.ALL, mode };
  if (mode & Mode.LONG)
    return useRoot(vcpu, roots, Number((cr3 & ADDRESS) >> 12n), { ...base, level: LONG_LEVELS }).spt;
  if (roots.paeRoot < 0) roots.paeRoot = vcpu.module.host.allocatePages(1);
  for (let i = 0; i < 4; i++) {
    let gfn: number;
    let role: ShadowRole = { ...base, level: PAE_LEVELS };
    if (!(mode & Mode.PAGING)) {
      gfn = i * FRAMES_PER_GIB;
      role = { ...role, direct: true };
    } else if (mode & Mode.PAE) {
      const pdpte = kvmPdptrRead(vcpu, i);
      roots.pdptrs[i] = pdpte;
      if (!(pdpte & PRESENT)) {
        writePdpte(vcpu, roots.paeRoot, i, 0n);
        continue;
      }
      gfn = Number((pdpte & ADDRESS) >> 12n);
    } else {
      gfn = Number((cr3 & 0xffff_f000n) >> 12n);
      role = { ...role, quadrant: i };
    }
    writePdpte(vcpu, roots.paeRoot, i, BigInt(useRoot(vcpu, roots, gfn, role).spt) | PRESENT);
  }
  return roots.paeRoot;
}

/** kvm_mmu_load. @returns root for the VMCS */
export function shadowMmuLoad(vcpu: KvmVcpu): number {
  const roots = rootsOf(vcpu);
  const root = allocateRoots(vcpu, roots);
  shadowMmuSyncRoots(vcpu);
  return root;
}

/** kvm_mmu_unload */
export function shadowMmuUnload(vcpu: KvmVcpu): void {
  const roots = rootsOf(vcpu);
  for (const spt of roots.tables.splice(0)) putShadowRoot(vcpu.kvm, spt);
}

/** Whether the loaded roots no longer fit: CR3, a PDPTE or the paging mode has changed, or a table was zapped. */
export function shadowRootsObsolete(vcpu: KvmVcpu): boolean {
  const roots = rootsOf(vcpu);
  if (roots.mode !== shadowMode(vcpu) || roots.cr3 !== kvmReadCr3(vcpu)) return true;
  const state = shadowState(vcpu.kvm);
  if (roots.tables.some((spt) => state.pages.get(spt)?.invalid !== false)) return true;
  if (!(roots.mode & Mode.PAE)) return false;
  for (let i = 0; i < 4; i++) if (roots.pdptrs[i] !== kvmPdptrRead(vcpu, i)) return true;
  return false;
}

// --- synchronisation -------------------------------------------------------------------------------------------------

/** The access a guest entry adds to its path: FNAME(gpte_access) with protect_clean_gpte. */
function entryAccess(mode: number, entry: bigint): number {
  let access = mode & Mode.NX && entry & Pt.NX ? 0 : Acc.EXEC;
  if (entry & Pt.WRITABLE && entry & Pt.DIRTY) access |= Acc.WRITE;
  if (entry & Pt.USER) access |= Acc.USER;
  return access;
}

/** Access rights an entry of ours stands for. */
const accessOf = (spte: bigint): number =>
  (spte & Pt.NX ? 0 : Acc.EXEC) | (spte & Pt.MMU_WRITABLE ? Acc.WRITE : 0) | (spte & Pt.USER ? Acc.USER : 0);

/** FNAME(sync_page): entries that no longer say what the guest's do go. @returns whether any did */
function syncShadowPage(vcpu: KvmVcpu, sp: ShadowPage): boolean {
  const { kvm } = vcpu;
  const state = shadowState(kvm);
  const paging = pagingOf(vcpu);
  const legacy = isLegacyMode(sp.role.mode);
  const bytes = legacy ? 4 : 8;
  const nx = (sp.role.mode & Mode.NX) !== 0;
  let changed = false;
  for (let i = 0; i < 512; i++) {
    const at = sp.spt + i * 8;
    const spte = readShadowSpte(kvm, at);
    if (spte === 0n) continue;
    const entry = readGuestPte(vcpu, sp.gfn * PAGE_SIZE + guestIndexOf(sp.role, i) * bytes, bytes);
    let keep = false;
    if (entry !== undefined && entry & PRESENT && entry & Pt.ACCESSED) {
      const gfn = Number((entry & ADDRESS & (legacy ? 0xffff_f000n : ADDRESS)) >> 12n);
      const access = sp.role.access & entryAccess(sp.role.mode, entry);
      if (isShadowMmio(spte)) keep = shadowMmioGfn(spte) === gfn && shadowMmioAccess(spte) === (access & ~Acc.EXEC);
      else keep = sp.gfns?.[i] === gfn && sameRights(accessOf(spte), access, spte);
      if (keep && reserved(vcpu, paging, entry, 12n, bytes, nx)) keep = false;
    }
    if (!keep && zapShadowSpte(kvm, at)) changed = true;
  }
  sp.unsync = false;
  state.unsync.delete(sp.spt);
  return changed;
}

/** A page the host may not write has no MMU_WRITABLE whatever the guest says. */
const sameRights = (had: number, has: number, spte: bigint): boolean =>
  had === (spte & Pt.HOST_WRITABLE ? has : has & ~Acc.WRITE);

/** kvm_mmu_sync_roots: all tables the guest has written since, compared with the guest's and protected again. */
export function shadowMmuSyncRoots(vcpu: KvmVcpu): void {
  const { kvm } = vcpu;
  const state = shadowState(kvm);
  if (state.unsync.size === 0) return;
  let flush = false;
  for (const spt of [...state.unsync]) {
    const sp = state.pages.get(spt);
    if (!sp) {
      state.unsync.delete(spt);
      continue;
    }
    if (protectShadowedGfn(kvm, sp.gfn)) flush = true;
    if (syncShadowPage(vcpu, sp)) flush = true;
  }
  if (flush) kvmFlushRemoteTlbs(kvm);
}

// --- walks of the shadow ----------------------------------------------------------------------------------------------

const indexAt = (gva: bigint, level: number): number => Number((gva >> BigInt(12 + (level - 1) * 9)) & 0x1ffn);

/** One entry of a walk of the shadow tables. */
export interface ShadowWalkStep {
  readonly level: number;
  /** Physical address of the entry. */
  readonly at: number;
  readonly spte: bigint;
}

/** The table a walk for `gva` starts with, -1 where there is none, and its level. */
function startOf(vcpu: KvmVcpu, gva: bigint): { table: number; level: number } {
  const roots = rootsOf(vcpu);
  if (roots.mode & Mode.LONG) return { table: vcpu.arch.mmuRoot, level: LONG_LEVELS };
  const { memory } = vcpu.module.host;
  const index = Number((gva >> 30n) & 3n);
  const pdpte = memory.view.getBigUint64(memory.hostOffset(roots.paeRoot) + index * 8, true);
  return { table: pdpte & PRESENT ? Number(pdpte & ADDRESS) : -1, level: PAE_LEVELS };
}

/** shadow_walk: entries from the root down to the last one for `gva`. Also what the inspector shows. */
export function shadowGetWalk(vcpu: KvmVcpu, gva: bigint): ShadowWalkStep[] {
  const steps: ShadowWalkStep[] = [];
  if (vcpu.arch.mmuRoot < 0) return steps;
  let { table, level } = startOf(vcpu, gva);
  for (; level >= 1 && table >= 0; level--) {
    const at = table + indexAt(gva, level) * 8;
    const spte = readShadowSpte(vcpu.kvm, at);
    steps.push({ level, at, spte });
    if (!isShadowPresent(spte)) break;
    table = shadowSpteToPa(spte);
  }
  return steps;
}

/** kvm_mmu_invalidate_addr: INVLPG. The entry is looked up anew at the next access. */
export function shadowMmuInvlpg(vcpu: KvmVcpu, gva: bigint): void {
  const walk = shadowGetWalk(vcpu, gva);
  const last = walk[walk.length - 1];
  if (last && last.level === 1 && zapShadowSpte(vcpu.kvm, last.at)) kvmFlushRemoteTlbs(vcpu.kvm);
}

/** get_mmio_spte for handle_mmio_page_fault. @returns frame and access, "stale" for another generation, null for no MMIO entry */
export function shadowMmioEntry(vcpu: KvmVcpu, gva: bigint): { gfn: number; access: number } | "stale" | null {
  const walk = shadowGetWalk(vcpu, gva);
  const last = walk[walk.length - 1];
  if (!last || !isShadowMmio(last.spte)) return null;
  const { generation } = kvmMemslots(vcpu.kvm);
  if (shadowMmioGeneration(last.spte) !== generation % SHADOW_MMIO_GEN_COUNT) return "stale";
  return { gfn: shadowMmioGfn(last.spte), access: shadowMmioAccess(last.spte) };
}

// --- faults -------------------------------------------------------------------------------------------------------------

interface ShadowFault {
  readonly gva: bigint;
  readonly write: boolean;
  readonly user: boolean;
  readonly gfn: number;
  /** Acc bits the leaf gets. */
  access: number;
}

/** The child an entry leads to, when it is the one asked for; else that one is linked. */
function childOf(vcpu: KvmVcpu, at: number, gfn: number, role: ShadowRole): ShadowPage {
  const { kvm } = vcpu;
  const spte = readShadowSpte(kvm, at);
  const state = shadowState(kvm);
  if (isShadowPresent(spte)) {
    const sp = state.pages.get(shadowSpteToPa(spte));
    const same =
      sp &&
      sp.gfn === gfn &&
      sp.role.direct === role.direct &&
      sp.role.access === role.access &&
      sp.role.quadrant === role.quadrant;
    if (sp && same) {
      sp.writeFlooding = 0;
      return sp;
    }
    kvmFlushRemoteTlbs(kvm);
  }
  const sp = getShadowPage(kvm, gfn, role);
  // What this table maps was not visible here before, so stale entries may not be either.
  if (sp.unsync && syncShadowPage(vcpu, sp)) kvmFlushRemoteTlbs(kvm);
  linkShadowPage(kvm, at, sp);
  return sp;
}

/** FNAME(fetch) and direct_map: links tables down to level 1. @returns address of the leaf's entry, -1 without a root */
function linkTables(vcpu: KvmVcpu, fault: ShadowFault, walker: GuestWalker | null): number {
  const start = startOf(vcpu, fault.gva);
  if (start.table < 0) return -1;
  const { mode } = rootsOf(vcpu);
  let { table } = start;
  for (let { level } = start; level > 1; level--) {
    const at = table + indexAt(fault.gva, level) * 8;
    const depth = start.level - level + 1;
    let child: ShadowPage;
    if (walker && level > walker.level) {
      const quadrant = isLegacyMode(mode) && level === 2 ? Number((fault.gva >> 21n) & 1n) : 0;
      const role = { level: level - 1, quadrant, direct: false, access: walker.access[depth], mode };
      child = childOf(vcpu, at, walker.tables[depth], role);
    } else {
      const span = 512 ** (level - 1);
      const access = walker ? fault.access : Acc.ALL;
      const role = { level: level - 1, quadrant: 0, direct: true, access, mode };
      child = childOf(vcpu, at, fault.gfn - (fault.gfn % span), role);
    }
    table = child.spt;
  }
  return table + indexAt(fault.gva, 1) * 8;
}

/** The frame is one of the tables that this very access goes through, above the lowest level. */
function isSelfMapped(walker: GuestWalker | null, gfn: number): boolean {
  if (!walker) return false;
  const upper = walker.tables.length - (walker.level === 1 ? 1 : 0);
  for (let i = 0; i < upper; i++) if (walker.tables[i] === gfn) return true;
  return false;
}

/** mmu_set_spte and what decides over write access. @returns a RET_PF, or a negative errno */
function mapLeaf(vcpu: KvmVcpu, fault: ShadowFault, walker: GuestWalker | null): number {
  const { kvm } = vcpu;
  const slot = gfnToMemslot(kvm, fault.gfn);
  if (slot && slot.flags & KVM_MEMSLOT_INVALID) return RetPf.RETRY;
  if (slot && !kvmIsVisibleMemslot(slot)) {
    if (slot.id === APIC_ACCESS_PAGE_PRIVATE_MEMSLOT && !kvm.arch.apicAccessMemslotEnabled) return RetPf.EMULATE;
  }
  if (!slot) {
    const { generation } = kvmMemslots(kvm);
    cacheMmio(vcpu, fault.gva, fault.gfn, fault.access, generation);
    if (!vcpu.module.params.mmio_caching) return RetPf.EMULATE;
    const at = linkTables(vcpu, fault, walker);
    if (at < 0) return RetPf.RETRY;
    setShadowLeaf(kvm, at, fault.gfn, makeShadowMmio(fault.gfn, fault.access, generation));
    vcpu.stat.pf_mmio_spte_created++;
    return RetPf.EMULATE;
  }
  const readOnly = (slot.flags & KvmMemFlag.READONLY) !== 0;
  if (readOnly && fault.write) return RetPf.EMULATE;
  const pa = slotToHpa(kvm, slot, fault.gfn);
  if (pa < 0) return -14;
  let writable = !readOnly;
  if (kvmPageTrackIsActive(slot, fault.gfn)) writable = false;
  else if (kvmSlotDirtyTrackEnabled(slot) && !fault.write) writable = false;
  const at = linkTables(vcpu, fault, walker);
  if (at < 0) return RetPf.RETRY;
  if (writable && fault.access & Acc.WRITE && isShadowedGfn(kvm, fault.gfn)) {
    // The guest's page tables are read through this entry; the first write decides what becomes of their shadows.
    writable = fault.write && !isSelfMapped(walker, fault.gfn) && tryToUnsyncPages(kvm, fault.gfn);
    // Letting go of a table may have unlinked the one this entry is in.
    if (!stillLinked(vcpu, fault.gva, at)) return RetPf.RETRY;
  }
  const spte = makeShadowLeaf({ pa, access: fault.access, hostWritable: !readOnly, writable });
  if (writable && fault.write) markPageDirtyInSlot(kvm, slot, fault.gfn);
  const old = setShadowLeaf(kvm, at, fault.gfn, spte);
  const replaces = isShadowPresent(old) && shadowSpteToPa(old) !== pa;
  if (replaces || isShadowMmio(old) || (isShadowWritable(old) && !isShadowWritable(spte))) kvmFlushRemoteTlbs(kvm);
  if (fault.write && !isShadowWritable(spte)) return RetPf.EMULATE;
  return old === spte ? RetPf.SPURIOUS : RetPf.FIXED;
}

/**
 * kvm_mmu_unprotect_gfn_and_retry: an instruction the emulator does not know writes a page table; with the shadow gone the
 * guest can write it itself.
 * @returns whether trying again makes sense
 */
export function shadowUnprotectGva(vcpu: KvmVcpu, gva: bigint): boolean {
  const t = walkAddr(vcpu, pagingOf(vcpu), gva, -1, false);
  if (!t.ok) return false;
  const gfn = Math.floor(t.gpa / PAGE_SIZE);
  return isShadowedGfn(vcpu.kvm, gfn) && unprotectShadowedGfn(vcpu.kvm, gfn);
}

function stillLinked(vcpu: KvmVcpu, gva: bigint, at: number): boolean {
  const walk = shadowGetWalk(vcpu, gva);
  const last = walk[walk.length - 1];
  return last !== undefined && last.level === 1 && last.at === at;
}

/** vcpu_cache_mmio_info */
function cacheMmio(vcpu: KvmVcpu, gva: bigint, gfn: number, access: number, generation: number): void {
  vcpu.arch.mmioGva = gva & ~0xfffn;
  vcpu.arch.mmioGfn = gfn;
  vcpu.arch.mmioAccess = access;
  vcpu.arch.mmioGen = generation;
}

/**
 * FNAME(page_fault), and direct_page_fault for a guest without paging.
 * @param errorCode as the processor reported it
 * @returns a RET_PF, or a negative errno; RETRY also when the fault went to the guest
 */
export function shadowPageFault(vcpu: KvmVcpu, gva: bigint, errorCode: number): number {
  const write = (errorCode & Pferr.WRITE) !== 0;
  const user = (errorCode & Pferr.USER) !== 0;
  if (!isPaging(vcpu)) {
    const gfn = Number((gva & 0xffff_ffffn) >> 12n);
    return mapLeaf(vcpu, { gva: gva & 0xffff_ffffn, write, user, gfn, access: Acc.ALL }, null);
  }
  const walker: GuestWalker = { tables: [], access: [], leafAccess: 0, dirty: false, level: 1 };
  const asked = errorCode & (Pferr.WRITE | Pferr.USER | Pferr.FETCH);
  const t = walkAddr(vcpu, pagingOf(vcpu), gva, asked, true, walker);
  if (!t.ok) {
    kvmInjectPageFault(vcpu, gva, t.errorCode);
    return RetPf.RETRY;
  }
  let access = walker.leafAccess;
  const cr0 = kvmReadCr0(vcpu);
  if (write && !(access & Acc.WRITE) && !user && !(cr0 & Cr0.WP)) {
    // CR0.WP is 1 in the processor: the page becomes the kernel's alone while it may be written.
    access = (access | Acc.WRITE) & ~Acc.USER;
    if (kvmReadCr4(vcpu) & Cr4.SMEP) access &= ~Acc.EXEC;
  } else if (!walker.dirty) access &= ~Acc.WRITE;
  return mapLeaf(vcpu, { gva, write, user, gfn: Math.floor(t.gpa / PAGE_SIZE), access }, walker);
}
