/** The common MMU (arch/x86/kvm/mmu/mmu.c): faults, roots, MMIO caching, reactions to memslot changes. */
import { TraceKind } from "../../trace";
import { kvmDirtyLogManualProtectAndInitSet, kvmSlotDirtyTrackEnabled } from "../dirtyLog";
import { EmulType } from "../emulateTypes";
import { x86EmulateInstruction } from "../emulator";
import {
  gfnToMemslot,
  KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
  KVM_MEMSLOT_INVALID,
  kvmIsVisibleMemslot,
  kvmMemslots,
  slotToHpa,
} from "../memslots";
import { KvmReq, kvmMakeAllCpusRequest } from "../requests";
import { APIC_ACCESS_PAGE_PRIVATE_MEMSLOT, type Kvm, type KvmMemorySlot, type KvmVcpu, PAGE_SIZE } from "../types";
import { KvmMemFlag } from "../uapi";
import { kvmMmuUpdateCpuDirtyLogging, vmxFlushPmlBuffer } from "../vmx/pml";
import { type KvmPageFault, Pferr, RetPf } from "./fault";
import { kvmPageTrackIsActive } from "./pageTrack";
import {
  shadowGetWalk,
  shadowMmioEntry,
  shadowMmuInvlpg,
  shadowMmuLoad,
  shadowMmuSyncRoots,
  shadowMmuUnload,
  shadowPageFault,
  shadowRootsObsolete,
  shadowUnprotectGva,
} from "./shadowMmu";
import { trackShadowWrite, zapAllShadowPages } from "./shadowPages";
import { describeShadowSpte } from "./shadowSpte";
import { describeSpte, isMmioSpte, MMIO_SPTE_GEN_COUNT, mmioSpteGeneration, mmioSpteGfn } from "./spte";
import {
  fastPageFault,
  kvmFlushRemoteTlbs,
  kvmNxHugePages,
  kvmTdpMmuClearDirtyMasked,
  kvmTdpMmuGetVcpuRootHpa,
  kvmTdpMmuGetWalk,
  kvmTdpMmuInvalidateAllRoots,
  kvmTdpMmuMap,
  kvmTdpMmuPutRoot,
  kvmTdpMmuTrySplitHugePages,
  kvmTdpMmuWrprotSlot,
  pagesPerHpage,
} from "./tdpMmu";

const PT64_ROOT_4LEVEL = 4;

/** tdp_enabled: the processor translates guest-physical addresses itself. */
const tdpEnabled = (kvm: Kvm): boolean => kvm.module.features.ept;

/** kvm_mmu_reload: a valid root before the guest is entered. @returns 0, or a negative errno */
export function kvmMmuReload(vcpu: KvmVcpu): number {
  if (vcpu.arch.mmuRoot >= 0) {
    if (tdpEnabled(vcpu.kvm) || !shadowRootsObsolete(vcpu)) return 0;
    kvmMmuUnload(vcpu);
  }
  return kvmMmuLoad(vcpu);
}

/** kvm_mmu_load */
function kvmMmuLoad(vcpu: KvmVcpu): number {
  vcpu.arch.mmuRoot = tdpEnabled(vcpu.kvm) ? kvmTdpMmuGetVcpuRootHpa(vcpu) : shadowMmuLoad(vcpu);
  kvmMmuLoadPgd(vcpu);
  vcpu.module.ops.flushTlbCurrent(vcpu);
  return 0;
}

/** kvm_mmu_load_pgd */
export function kvmMmuLoadPgd(vcpu: KvmVcpu): void {
  if (vcpu.arch.mmuRoot < 0) return;
  vcpu.module.ops.loadMmuPgd(vcpu, vcpu.arch.mmuRoot, PT64_ROOT_4LEVEL);
}

/** kvm_mmu_unload */
export function kvmMmuUnload(vcpu: KvmVcpu): void {
  const root = vcpu.arch.mmuRoot;
  if (root < 0) return;
  vcpu.arch.mmuRoot = -1;
  if (tdpEnabled(vcpu.kvm)) kvmTdpMmuPutRoot(vcpu.kvm, root);
  else shadowMmuUnload(vcpu);
}

/** kvm_mmu_free_obsolete_roots: leaves a root that was invalidated. */
export function kvmMmuFreeObsoleteRoots(vcpu: KvmVcpu): void {
  if (!tdpEnabled(vcpu.kvm)) {
    if (vcpu.arch.mmuRoot >= 0 && shadowRootsObsolete(vcpu)) kvmMmuUnload(vcpu);
    return;
  }
  const root = vcpu.kvm.arch.mmu.pages.get(vcpu.arch.mmuRoot);
  if (!root || root.role.invalid) kvmMmuUnload(vcpu);
}

/** kvm_mmu_zap_all_fast: every translation is forgotten by giving all vCPUs a new root. */
function kvmMmuZapAllFast(kvm: Kvm): void {
  const { mmu } = kvm.arch;
  mmu.validGen = mmu.validGen ? 0 : 1;
  mmu.invalidateSeq++;
  // vCPUs leave the old roots before these are let go, so that no processor walks a freed table.
  kvmMakeAllCpusRequest(kvm.vcpus, KvmReq.MMU_FREE_OBSOLETE_ROOTS);
  if (tdpEnabled(kvm)) kvmTdpMmuInvalidateAllRoots(kvm);
  else zapAllShadowPages(kvm);
}

/** kvm_mmu_sync_roots: the guest has flushed its TLB, so what it wrote into its page tables counts from now on. */
export function kvmMmuSyncRoots(vcpu: KvmVcpu): void {
  if (!tdpEnabled(vcpu.kvm)) shadowMmuSyncRoots(vcpu);
}

/** kvm_mmu_invlpg */
export function kvmMmuInvlpg(vcpu: KvmVcpu, gva: bigint): void {
  if (!tdpEnabled(vcpu.kvm)) shadowMmuInvlpg(vcpu, gva);
  vcpu.module.ops.flushTlbGva(vcpu, gva);
}

/** reexecute_instruction: see shadowUnprotectGva. */
export const kvmMmuUnprotectGva = (vcpu: KvmVcpu, gva: bigint): boolean =>
  !tdpEnabled(vcpu.kvm) && shadowUnprotectGva(vcpu, gva);

/** kvm_mmu_track_write: KVM has written guest memory that may hold page tables. */
export function kvmMmuTrackWrite(kvm: Kvm, gpa: number, length: number): void {
  if (!tdpEnabled(kvm)) trackShadowWrite(kvm, gpa, length);
}

/** kvm_arch_flush_shadow_memslot */
export function kvmArchFlushShadowMemslot(kvm: Kvm, _slot: KvmMemorySlot): void {
  kvmMmuZapAllFast(kvm);
}

/** kvm_arch_memslots_updated: MMIO entries cannot tell generations apart that are a whole cycle away. */
export function kvmArchMemslotsUpdated(kvm: Kvm, generation: number): void {
  kvmMmuUpdateCpuDirtyLogging(kvm);
  if (generation % MMIO_SPTE_GEN_COUNT === 0 && generation !== 0) kvmMmuZapAllFast(kvm);
}

/** kvm_mmu_slot_apply_flags: dirty logging was turned on (pages become read-only) or off (they may become huge again). */
export function kvmMmuSlotApplyFlags(kvm: Kvm, old: KvmMemorySlot, next: KvmMemorySlot): void {
  if (kvmSlotDirtyTrackEnabled(next) && !kvmSlotDirtyTrackEnabled(old)) {
    // Pages that begin as dirty are not protected before userspace clears their bits.
    if (kvmDirtyLogManualProtectAndInitSet(kvm)) return;
    if (kvm.module.params.eager_page_split) {
      kvmTdpMmuTrySplitHugePages(kvm, next.baseGfn, next.baseGfn + next.npages);
    }
    if (kvmTdpMmuWrprotSlot(kvm, next)) kvmFlushRemoteTlbs(kvm);
  } else if (!kvmSlotDirtyTrackEnabled(next) && kvmSlotDirtyTrackEnabled(old)) {
    kvmMmuZapAllFast(kvm);
  }
}

/** kvm_arch_sync_dirty_log: writes the processors still hold in their own logs come out; without PML there are none. */
export function kvmArchSyncDirtyLog(kvm: Kvm, _slot: KvmMemorySlot): void {
  if (kvm.module.features.pml) for (const vcpu of kvm.vcpus) vmxFlushPmlBuffer(vcpu);
}

/** kvm_arch_mmu_enable_log_dirty_pt_masked: writes to the pages set in `dirty` are to be seen again. */
export function kvmMmuSlotResetDirty(kvm: Kvm, slot: KvmMemorySlot, dirty: Uint32Array): void {
  if (kvmDirtyLogManualProtectAndInitSet(kvm) && kvm.module.params.eager_page_split) {
    for (let word = 0; word < dirty.length; word++) {
      if (dirty[word] === 0) continue;
      const start = slot.baseGfn + word * 32;
      kvmTdpMmuTrySplitHugePages(kvm, start, Math.min(start + 32, slot.baseGfn + slot.npages));
    }
  }
  if (kvmTdpMmuClearDirtyMasked(kvm, slot, dirty)) kvmFlushRemoteTlbs(kvm);
}

// --- MMIO cache (x86.h: vcpu_cache_mmio_info and its kin) ---------------------------------------------------------------

function vcpuCacheMmioInfo(vcpu: KvmVcpu, gva: bigint, gfn: number, access: number): void {
  const { generation } = kvmMemslots(vcpu.kvm);
  if (generation >= KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) return;
  vcpu.arch.mmioGva = gva & ~0xfffn;
  vcpu.arch.mmioGfn = gfn;
  vcpu.arch.mmioAccess = access;
  vcpu.arch.mmioGen = generation;
}

/** Whether `gpa` is the address the last MMIO went to and no memslot changed since. */
export function vcpuMatchMmioGpa(vcpu: KvmVcpu, gpa: number): boolean {
  const { arch } = vcpu;
  return (
    arch.mmioGen === kvmMemslots(vcpu.kvm).generation &&
    arch.mmioGfn > 0 &&
    arch.mmioGfn === Math.floor(gpa / PAGE_SIZE)
  );
}

// --- faults -------------------------------------------------------------------------------------------------------------

/** handle_mmio_page_fault with shadow paging: the entry has a reserved bit set. */
function handleShadowMmio(vcpu: KvmVcpu, gva: bigint): RetPf {
  const entry = shadowMmioEntry(vcpu, gva);
  if (entry === null) return RetPf.RETRY;
  if (entry === "stale") return RetPf.INVALID;
  vcpuCacheMmioInfo(vcpu, gva, entry.gfn, entry.access);
  return RetPf.EMULATE;
}

/** handle_mmio_page_fault: the processor met a misconfigured entry. */
function handleMmioPageFault(vcpu: KvmVcpu, addr: number): RetPf {
  if (vcpuMatchMmioGpa(vcpu, addr)) return RetPf.EMULATE;
  const walk = kvmTdpMmuGetWalk(vcpu.kvm, vcpu.arch.mmuRoot, Math.floor(addr / PAGE_SIZE));
  const { spte } = walk[walk.length - 1];
  if (!isMmioSpte(spte)) return RetPf.RETRY;
  const { generation } = kvmMemslots(vcpu.kvm);
  if (mmioSpteGeneration(spte) !== generation % MMIO_SPTE_GEN_COUNT) return RetPf.INVALID;
  vcpuCacheMmioInfo(vcpu, 0n, mmioSpteGfn(spte), 0);
  return RetPf.EMULATE;
}

/** kvm_handle_noslot_fault */
function kvmHandleNoslotFault(vcpu: KvmVcpu, fault: KvmPageFault): RetPf {
  vcpuCacheMmioInfo(vcpu, 0n, fault.gfn, 0);
  if (!vcpu.module.params.mmio_caching) return RetPf.EMULATE;
  if (fault.gfn >= 2 ** (vcpu.module.host.processors[0].model.physicalBits - 12)) return RetPf.EMULATE;
  return RetPf.CONTINUE;
}

/** kvm_faultin_pfn: finds the host frame behind the guest frame. @returns CONTINUE, another RET_PF, or -EFAULT (-14) */
function kvmFaultinPfn(vcpu: KvmVcpu, fault: KvmPageFault): number {
  const slot = gfnToMemslot(vcpu.kvm, fault.gfn);
  fault.slot = slot;
  if (slot && slot.flags & KVM_MEMSLOT_INVALID) return RetPf.RETRY;
  if (slot && !kvmIsVisibleMemslot(slot)) {
    if (slot.id === APIC_ACCESS_PAGE_PRIVATE_MEMSLOT && !vcpu.kvm.arch.apicAccessMemslotEnabled) return RetPf.EMULATE;
  }
  if (!slot) return kvmHandleNoslotFault(vcpu, fault);
  const readOnly = (slot.flags & KvmMemFlag.READONLY) !== 0;
  // Writing to a ROM slot is MMIO (KVM_PFN_ERR_RO_FAULT).
  if (readOnly && fault.write) return RetPf.EMULATE;
  const pa = slotToHpa(vcpu.kvm, slot, fault.gfn);
  if (pa < 0) return -14;
  fault.pa = pa;
  fault.mapWritable = !readOnly;
  return RetPf.CONTINUE;
}

/** Whether host memory behind [gfn, gfn + pages) of the slot is one aligned run (host_pfn_mapping_level, lpage_info). */
function hugePageAllowed(kvm: Kvm, slot: KvmMemorySlot, gfn: number, level: number): boolean {
  const pages = pagesPerHpage(level);
  const first = gfn - (gfn % pages);
  if (first < slot.baseGfn || first + pages > slot.baseGfn + slot.npages) return false;
  const base = slotToHpa(kvm, slot, first);
  if (base < 0 || base % (pages * PAGE_SIZE) !== 0) return false;
  // Regions are mapped in large runs; their ends are what could break one.
  const step = level === 2 ? 1 : 256;
  for (let i = step; i < pages; i += step) {
    if (slotToHpa(kvm, slot, first + i) !== base + i * PAGE_SIZE) return false;
  }
  return slotToHpa(kvm, slot, first + pages - 1) === base + (pages - 1) * PAGE_SIZE;
}

/** kvm_mmu_hugepage_adjust */
function kvmMmuHugepageAdjust(vcpu: KvmVcpu, fault: KvmPageFault): void {
  const { slot } = fault;
  fault.goalLevel = 1;
  if (!slot || kvmSlotDirtyTrackEnabled(slot) || slot.gfnWriteTrack || slot.kernelPage >= 0) return;
  if (fault.exec && kvmNxHugePages(vcpu.kvm)) {
    // A page of a huge one is executed: it becomes small (disallowed_hugepage_adjust).
    vcpu.kvm.state.stat.nx_lpage_splits++;
    return;
  }
  const { ept2m, ept1g } = vcpu.module.features;
  const max = ept1g ? 3 : ept2m ? 2 : 1;
  for (let level = max; level > 1; level--) {
    if (hugePageAllowed(vcpu.kvm, slot, fault.gfn, level)) {
      fault.goalLevel = level;
      return;
    }
  }
}

/** kvm_tdp_page_fault. @returns a RET_PF, or a negative errno */
function kvmTdpPageFault(vcpu: KvmVcpu, fault: KvmPageFault): number {
  fault.slot = gfnToMemslot(vcpu.kvm, fault.gfn);
  fault.writeTracked = fault.slot !== null && kvmPageTrackIsActive(fault.slot, fault.gfn);
  if (fault.present && fault.write && fault.writeTracked) return RetPf.EMULATE;
  const fast = fastPageFault(vcpu, fault);
  if (fast !== RetPf.INVALID) return fast;
  const faultin = kvmFaultinPfn(vcpu, fault);
  if (faultin !== RetPf.CONTINUE) return faultin;
  kvmMmuHugepageAdjust(vcpu, fault);
  return kvmTdpMmuMap(vcpu, fault);
}

/** kvm_mmu_do_page_fault */
function kvmMmuDoPageFault(vcpu: KvmVcpu, gpa: number, errorCode: number): number {
  const fault: KvmPageFault = {
    addr: gpa,
    errorCode,
    exec: (errorCode & Pferr.FETCH) !== 0,
    write: (errorCode & Pferr.WRITE) !== 0,
    present: (errorCode & Pferr.PRESENT) !== 0,
    rsvd: (errorCode & Pferr.RSVD) !== 0,
    gfn: Math.floor(gpa / PAGE_SIZE),
    slot: null,
    pa: -1,
    mapWritable: false,
    writeTracked: false,
    goalLevel: 1,
    mmioGeneration: kvmMemslots(vcpu.kvm).generation,
  };
  vcpu.stat.pf_taken++;
  const r = kvmTdpPageFault(vcpu, fault);
  if (r === RetPf.FIXED) vcpu.stat.pf_fixed++;
  else if (r === RetPf.EMULATE) vcpu.stat.pf_emulate++;
  else if (r === RetPf.SPURIOUS) vcpu.stat.pf_spurious++;
  return r;
}

/**
 * kvm_mmu_page_fault: resolves a second-level fault at guest-physical `gpa`.
 * @param errorCode Pferr bits; RSVD for a misconfiguration, which means MMIO
 * @returns 1 to re-enter, 0 for a userspace exit, or a negative errno
 */
export function kvmMmuPageFault(vcpu: KvmVcpu, gpa: number, errorCode: number): number {
  traceMmuFault(vcpu, gpa, errorCode);
  let emulationType = EmulType.PF;
  let r: number = RetPf.INVALID;
  if (errorCode & Pferr.RSVD) {
    r = handleMmioPageFault(vcpu, gpa);
    if (r === RetPf.EMULATE) return x86EmulateInstruction(vcpu, BigInt(gpa), emulationType);
  }
  if (r === RetPf.INVALID) r = kvmMmuDoPageFault(vcpu, gpa, errorCode);
  if (r < 0) return r;
  if (r !== RetPf.EMULATE) return 1;
  if (!vcpuMatchMmioGpa(vcpu, gpa)) emulationType |= EmulType.ALLOW_RETRY_PF;
  return x86EmulateInstruction(vcpu, BigInt(gpa), emulationType);
}

/**
 * kvm_handle_page_fault: a #PF of a guest under shadow paging, at linear address `gva`.
 * @param errorCode as the processor reported it
 * @returns 1 to re-enter, 0 for a userspace exit, or a negative errno
 */
export function kvmHandlePageFault(vcpu: KvmVcpu, gva: bigint, errorCode: number): number {
  traceShadowFault(vcpu, gva, errorCode);
  vcpu.stat.pf_taken++;
  let r: number = RetPf.INVALID;
  if (errorCode & Pferr.RSVD) r = handleShadowMmio(vcpu, gva);
  if (r === RetPf.INVALID) r = shadowPageFault(vcpu, gva, errorCode & ~Pferr.RSVD);
  if (r < 0) return r;
  if (r === RetPf.FIXED) vcpu.stat.pf_fixed++;
  else if (r === RetPf.SPURIOUS) vcpu.stat.pf_spurious++;
  if (r !== RetPf.EMULATE) return 1;
  vcpu.stat.pf_emulate++;
  return x86EmulateInstruction(vcpu, gva, EmulType.PF | EmulType.ALLOW_RETRY_PF);
}

const accessOf = (errorCode: number): "fetch" | "write" | "read" =>
  errorCode & Pferr.FETCH ? "fetch" : errorCode & Pferr.WRITE ? "write" : "read";

/** Detail of a trace point that both kinds of paging have; `last` is the deepest entry of the walk. */
const faultDetail = (errorCode: number, last: { readonly level: number; readonly spte: bigint } | undefined) => ({
  write: (errorCode & Pferr.WRITE) !== 0,
  fetch: (errorCode & Pferr.FETCH) !== 0,
  present: (errorCode & Pferr.PRESENT) !== 0,
  misconfig: (errorCode & Pferr.RSVD) !== 0,
  level: BigInt(last?.level ?? 0),
  spte: last?.spte ?? 0n,
});

function traceShadowFault(vcpu: KvmVcpu, gva: bigint, errorCode: number): void {
  const { trace } = vcpu.module.host;
  if (!(trace.armed & TraceKind.MmuFault)) return;
  const walk = shadowGetWalk(vcpu, gva);
  const last = walk[walk.length - 1];
  const entry = last ? `entry at level ${last.level}: ${describeShadowSpte(last.spte, last.level)}` : "no root";
  trace.hit({
    kind: TraceKind.MmuFault,
    vcpu: vcpu.state.vcpuIdx,
    text: `#PF at 0x${gva.toString(16)} (${accessOf(errorCode)}), ${entry}`,
    detail: { gva, ...faultDetail(errorCode, last) },
  });
}

function traceMmuFault(vcpu: KvmVcpu, gpa: number, errorCode: number): void {
  const { trace } = vcpu.module.host;
  if (!(trace.armed & TraceKind.MmuFault)) return;
  const root = vcpu.arch.mmuRoot;
  const walk = root < 0 ? [] : kvmTdpMmuGetWalk(vcpu.kvm, root, Math.floor(gpa / PAGE_SIZE));
  const last = walk[walk.length - 1];
  const what = errorCode & Pferr.RSVD ? "misconfiguration" : "violation";
  trace.hit({
    kind: TraceKind.MmuFault,
    vcpu: vcpu.state.vcpuIdx,
    text: `EPT ${what} at gpa 0x${gpa.toString(16)} (${accessOf(errorCode)}), entry at level ${last?.level ?? 0}: ${last ? describeSpte(last.spte, last.level) : "no root"}`,
    detail: { gpa: BigInt(gpa), ...faultDetail(errorCode, last) },
  });
}
