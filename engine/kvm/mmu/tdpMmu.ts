/**
 * The TDP MMU (arch/x86/kvm/mmu/tdp_mmu.c): second-level page tables of a VM in host memory, filled on faults, one root for
 * all vCPUs of the same role.
 */

import { kvmSlotDirtyTrackEnabled } from "../dirtyLog";
import { markPageDirtyInSlot } from "../memslots";
import { KvmReq, kvmMakeAllCpusRequest } from "../requests";
import type { Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu } from "../types";
import { type KvmPageFault, RetPf } from "./fault";
import { wrprotShadowSlot, zapShadowGfns } from "./shadowPages";
import {
  Ept,
  isLargePte,
  isLastSpte,
  isMmioSpte,
  isShadowPresentPte,
  isWritablePte,
  makeMmioSpte,
  makeNonleafSpte,
  makeSpte,
  Spte,
  spteToPa,
} from "./spte";

const PT64_ROOT_4LEVEL = 4;
const ENTRIES = 512;

/** Guest frames one entry of a table at `level` covers. */
export const pagesPerHpage = (level: number): number => 512 ** (level - 1);
const indexOf = (gfn: number, level: number): number => Math.floor(gfn / pagesPerHpage(level)) % ENTRIES;

/** is_nx_huge_page_enabled */
export const kvmNxHugePages = (kvm: Kvm): boolean => kvm.module.params.nx_huge_pages && !kvm.arch.disableNxHugePages;

function readSpte(kvm: Kvm, table: number, index: number): bigint {
  const { memory } = kvm.module.host;
  return memory.view.getBigUint64(memory.hostOffset(table) + index * 8, true);
}

function writeSpte(kvm: Kvm, table: number, index: number, spte: bigint): void {
  const { memory } = kvm.module.host;
  memory.view.setBigUint64(memory.hostOffset(table) + index * 8, spte, true);
}

function tdpMmuAllocSp(kvm: Kvm, gfn: number, level: number, ptep: number, ptepIndex: number): KvmMmuPage {
  const spt = kvm.module.host.allocatePages(1);
  const sp: KvmMmuPage = {
    spt,
    gfn,
    role: { level, invalid: false, adDisabled: !kvm.module.features.eptAdBits },
    ptep,
    ptepIndex,
    rootCount: 0,
  };
  kvm.arch.mmu.pages.set(spt, sp);
  return sp;
}

function tdpMmuFreeSp(kvm: Kvm, spt: number): void {
  kvm.arch.mmu.pages.delete(spt);
  kvm.module.host.freePages(spt, 1);
}

/** kvm_tdp_mmu_get_vcpu_root_hpa: the valid root, made when there is none. The vCPU counts as its user. */
export function kvmTdpMmuGetVcpuRootHpa(vcpu: KvmVcpu): number {
  const { kvm } = vcpu;
  const { mmu } = kvm.arch;
  for (const hpa of mmu.roots) {
    const root = mmu.pages.get(hpa);
    if (root && !root.role.invalid) {
      root.rootCount++;
      return hpa;
    }
  }
  const root = tdpMmuAllocSp(kvm, 0, PT64_ROOT_4LEVEL, -1, -1);
  root.rootCount = 2;
  mmu.roots.push(root.spt);
  return root.spt;
}

/** kvm_tdp_mmu_put_root: the last user of a root frees the whole tree. */
export function kvmTdpMmuPutRoot(kvm: Kvm, hpa: number): void {
  const { mmu } = kvm.arch;
  const root = mmu.pages.get(hpa);
  if (!root || --root.rootCount > 0) return;
  mmu.roots.splice(mmu.roots.indexOf(hpa), 1);
  freeSubtree(kvm, hpa, PT64_ROOT_4LEVEL);
}

/** handle_removed_pt: a table and everything below it goes away. */
function freeSubtree(kvm: Kvm, table: number, level: number): void {
  for (let i = 0; i < ENTRIES; i++) {
    const spte = readSpte(kvm, table, i);
    if (spte === 0n) continue;
    if (isShadowPresentPte(spte)) {
      if (isLastSpte(spte, level)) countPages(kvm, level, -1);
      else freeSubtree(kvm, spteToPa(spte), level - 1);
    }
  }
  tdpMmuFreeSp(kvm, table);
}

function countPages(kvm: Kvm, level: number, delta: number): void {
  const { stat } = kvm.state;
  if (level === 1) stat.pages_4k += delta;
  else if (level === 2) stat.pages_2m += delta;
  else stat.pages_1g += delta;
}

/** kvm_tdp_mmu_invalidate_all_roots: nobody may take these roots any more; users leave them at the next request. */
export function kvmTdpMmuInvalidateAllRoots(kvm: Kvm): void {
  const { mmu } = kvm.arch;
  for (const hpa of [...mmu.roots]) {
    const root = mmu.pages.get(hpa);
    if (!root || root.role.invalid) continue;
    root.role = { ...root.role, invalid: true };
    kvmTdpMmuPutRoot(kvm, hpa);
  }
}

/** tdp_mmu_set_spte with handle_changed_spte: writes an entry and lets go of what was below it. */
function tdpMmuSetSpte(kvm: Kvm, table: number, index: number, level: number, next: bigint): void {
  const old = readSpte(kvm, table, index);
  writeSpte(kvm, table, index, next);
  const wasLeaf = isShadowPresentPte(old) && isLastSpte(old, level);
  const isLeaf = isShadowPresentPte(next) && isLastSpte(next, level);
  if (wasLeaf) countPages(kvm, level, -1);
  if (isLeaf) countPages(kvm, level, 1);
  if (
    isShadowPresentPte(old) &&
    !isLastSpte(old, level) &&
    !(isShadowPresentPte(next) && spteToPa(next) === spteToPa(old))
  ) {
    freeSubtree(kvm, spteToPa(old), level - 1);
    kvm.state.stat.mmu_shadow_zapped++;
  }
}

/** tdp_mmu_split_huge_page: a table of smaller pages takes the place of a huge one. */
function tdpMmuSplitHugePage(kvm: Kvm, table: number, index: number, level: number, huge: bigint): number {
  const sp = tdpMmuAllocSp(kvm, 0, level - 1, table, index);
  const step = pagesPerHpage(level - 1) * 4096;
  let flags = huge & ~Spte.ADDRESS & (level - 1 === 1 ? ~Ept.PAGE_SIZE : ~0n);
  // Only huge pages are without execution (nx_huge_pages).
  if (level - 1 === 1) flags |= Ept.EXECUTABLE;
  for (let i = 0; i < ENTRIES; i++) writeSpte(kvm, sp.spt, i, flags | BigInt(spteToPa(huge) + i * step));
  writeSpte(kvm, table, index, makeNonleafSpte(sp.spt, sp.role.adDisabled));
  countPages(kvm, level, -1);
  countPages(kvm, level - 1, ENTRIES);
  return sp.spt;
}

/** kvm_tdp_mmu_map: walks to the goal level, linking tables, and installs the entry. */
export function kvmTdpMmuMap(vcpu: KvmVcpu, fault: KvmPageFault): RetPf {
  const { kvm } = vcpu;
  let table = vcpu.arch.mmuRoot;
  let level = PT64_ROOT_4LEVEL;
  const adDisabled = !kvm.module.features.eptAdBits;
  while (level > fault.goalLevel) {
    const index = indexOf(fault.gfn, level);
    const old = readSpte(kvm, table, index);
    if (isShadowPresentPte(old) && !isLargePte(old)) {
      table = spteToPa(old);
    } else if (isShadowPresentPte(old)) {
      table = tdpMmuSplitHugePage(kvm, table, index, level, old);
      kvmFlushRemoteTlbs(kvm);
    } else {
      const gfn = fault.gfn - (fault.gfn % pagesPerHpage(level));
      const sp = tdpMmuAllocSp(kvm, gfn, level - 1, table, index);
      tdpMmuSetSpte(kvm, table, index, level, makeNonleafSpte(sp.spt, adDisabled));
      table = sp.spt;
    }
    level--;
  }
  return tdpMmuMapHandleTargetLevel(vcpu, fault, table, level);
}

function tdpMmuMapHandleTargetLevel(vcpu: KvmVcpu, fault: KvmPageFault, table: number, level: number): RetPf {
  const { kvm } = vcpu;
  const index = indexOf(fault.gfn, level);
  const old = readSpte(kvm, table, index);
  const { slot } = fault;
  let next: bigint;
  if (!slot) {
    next = makeMmioSpte(fault.gfn, fault.mmioGeneration);
  } else {
    // Dirty logging lets a page be writable only from the write on that is logged.
    const logged = kvmSlotDirtyTrackEnabled(slot) && !fault.write;
    // With page-modification logging the processor notes the first write: only the dirty flag must be clear.
    const noted = kvm.module.features.pml && level === 1;
    const writable = fault.mapWritable && !(logged && !noted) && !fault.writeTracked;
    const gfn = fault.gfn - (fault.gfn % pagesPerHpage(level));
    const pa = fault.pa - (fault.gfn - gfn) * 4096;
    next = makeSpte({
      pa,
      level,
      writable,
      hostWritable: fault.mapWritable,
      adDisabled: !kvm.module.features.eptAdBits,
      executable: level === 1 || !kvmNxHugePages(kvm),
      clean: logged,
    });
    if (writable && fault.write) markPageDirtyInSlot(kvm, slot, fault.gfn);
  }
  if (next === old) return fault.write && slot && !isWritablePte(next) ? RetPf.EMULATE : RetPf.SPURIOUS;
  tdpMmuSetSpte(kvm, table, index, level, next);
  if (isShadowPresentPte(old)) kvmFlushRemoteTlbs(kvm);
  if (isMmioSpte(next)) {
    vcpu.stat.pf_mmio_spte_created++;
    return RetPf.EMULATE;
  }
  if (fault.write && !isWritablePte(next)) return RetPf.EMULATE;
  return RetPf.FIXED;
}

/** One entry of a walk of the EPT tables. */
export interface SpteWalkStep {
  readonly level: number;
  /** Host-physical address of the table and index in it. */
  readonly table: number;
  readonly index: number;
  readonly spte: bigint;
}

/** kvm_tdp_mmu_get_walk: entries from the root down to the last one for `gfn`. Also what the inspector shows. */
export function kvmTdpMmuGetWalk(kvm: Kvm, root: number, gfn: number): SpteWalkStep[] {
  const steps: SpteWalkStep[] = [];
  let table = root;
  for (let level = PT64_ROOT_4LEVEL; level >= 1; level--) {
    const index = indexOf(gfn, level);
    const spte = readSpte(kvm, table, index);
    steps.push({ level, table, index, spte });
    if (!isShadowPresentPte(spte) || isLastSpte(spte, level)) break;
    table = spteToPa(spte);
  }
  return steps;
}

/**
 * fast_page_fault: a write to a page that is only write-protected for dirty logging becomes writable again without
 * building anything.
 */
export function fastPageFault(vcpu: KvmVcpu, fault: KvmPageFault): RetPf {
  if (!fault.present || !fault.write || !fault.slot || fault.writeTracked) return RetPf.INVALID;
  const walk = kvmTdpMmuGetWalk(vcpu.kvm, vcpu.arch.mmuRoot, fault.gfn);
  const leaf = walk[walk.length - 1];
  if (!isShadowPresentPte(leaf.spte) || !isLastSpte(leaf.spte, leaf.level)) return RetPf.INVALID;
  if (isWritablePte(leaf.spte)) return RetPf.SPURIOUS;
  if (!(leaf.spte & Spte.MMU_WRITABLE) || !(leaf.spte & Spte.HOST_WRITABLE) || leaf.level > 1) return RetPf.INVALID;
  const dirty = vcpu.module.features.eptAdBits ? Ept.DIRTY : 0n;
  writeSpte(vcpu.kvm, leaf.table, leaf.index, leaf.spte | Ept.WRITABLE | dirty);
  markPageDirtyInSlot(vcpu.kvm, fault.slot, fault.gfn);
  vcpu.stat.pf_fast++;
  return RetPf.FIXED;
}

/** Calls `visit` for each present leaf that maps frames of [start, end) in any valid root; it returns the new entry. */
function forEachLeaf(
  kvm: Kvm,
  start: number,
  end: number,
  visit: (spte: bigint, gfn: number, level: number) => bigint,
): boolean {
  let changed = false;
  const walk = (table: number, level: number, first: number): void => {
    const span = pagesPerHpage(level);
    for (let i = 0; i < ENTRIES; i++) {
      const gfn = first + i * span;
      if (gfn >= end || gfn + span <= start) continue;
      const spte = readSpte(kvm, table, i);
      if (!isShadowPresentPte(spte)) continue;
      if (!isLastSpte(spte, level)) {
        walk(spteToPa(spte), level - 1, gfn);
        continue;
      }
      const next = visit(spte, gfn, level);
      if (next !== spte) {
        tdpMmuSetSpte(kvm, table, i, level, next);
        changed = true;
      }
    }
  };
  for (const root of [...kvm.arch.mmu.roots]) walk(root, PT64_ROOT_4LEVEL, 0);
  return changed;
}

/** The next write to a page is to be seen: by a fault, or with page-modification logging by its dirty flag. */
const logWritesOf = (kvm: Kvm, spte: bigint, level: number): bigint =>
  kvm.module.features.pml && level === 1 ? spte & ~Ept.DIRTY : spte & ~(Ept.WRITABLE | Ept.DIRTY);

/** kvm_tdp_mmu_wrprot_slot: writes to the slot fault from now on. A huge page is split by the first one. */
export function kvmTdpMmuWrprotSlot(kvm: Kvm, slot: KvmMemorySlot): boolean {
  if (!kvm.module.features.ept) return wrprotShadowSlot(kvm, slot, null);
  return forEachLeaf(kvm, slot.baseGfn, slot.baseGfn + slot.npages, (spte, _gfn, level) =>
    logWritesOf(kvm, spte, level),
  );
}

/** kvm_tdp_mmu_try_split_huge_pages: huge pages with frames of [start, end) become 4-KiB pages now (eager_page_split). */
export function kvmTdpMmuTrySplitHugePages(kvm: Kvm, start: number, end: number): boolean {
  let changed = false;
  const walk = (table: number, level: number, first: number): void => {
    const span = pagesPerHpage(level);
    for (let i = 0; i < ENTRIES; i++) {
      const gfn = first + i * span;
      if (gfn >= end || gfn + span <= start) continue;
      const spte = readSpte(kvm, table, i);
      if (!isShadowPresentPte(spte) || level === 1) continue;
      let child = spteToPa(spte);
      if (isLargePte(spte)) {
        child = tdpMmuSplitHugePage(kvm, table, i, level, spte);
        changed = true;
      }
      if (level > 2) walk(child, level - 1, gfn);
    }
  };
  for (const root of [...kvm.arch.mmu.roots]) walk(root, PT64_ROOT_4LEVEL, 0);
  return changed;
}

/** kvm_tdp_mmu_clear_dirty_pt_masked: write-protects the pages whose bit is set in `dirty`. */
export function kvmTdpMmuClearDirtyMasked(kvm: Kvm, slot: KvmMemorySlot, dirty: Uint32Array): boolean {
  if (!kvm.module.features.ept) return wrprotShadowSlot(kvm, slot, dirty);
  return forEachLeaf(kvm, slot.baseGfn, slot.baseGfn + slot.npages, (spte, gfn, level) => {
    // Of a slot that began as all dirty, huge pages are still writable; the next write splits them.
    const rel = gfn - slot.baseGfn;
    const marked = level > 1 || (dirty[rel >> 5] >>> (rel & 31)) & 1;
    return marked ? logWritesOf(kvm, spte, level) : spte;
  });
}

/** kvm_tdp_mmu_zap_leafs: unmaps frames [start, end). */
export function kvmTdpMmuZapLeafs(kvm: Kvm, start: number, end: number): boolean {
  if (!kvm.module.features.ept) return zapShadowGfns(kvm, start, end);
  return forEachLeaf(kvm, start, end, () => 0n);
}

/** kvm_flush_remote_tlbs */
export function kvmFlushRemoteTlbs(kvm: Kvm): void {
  kvm.state.stat.remote_tlb_flush_requests++;
  kvmMakeAllCpusRequest(kvm.vcpus, KvmReq.TLB_FLUSH);
  kvm.state.stat.remote_tlb_flush++;
}
