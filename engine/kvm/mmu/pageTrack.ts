/** Write tracking of guest frames (arch/x86/kvm/mmu/page_track.c): tracked pages are mapped read-only. */
import type { Kvm, KvmMemorySlot } from "../types";
import { kvmFlushRemoteTlbs, kvmTdpMmuZapLeafs } from "./tdpMmu";

/** kvm_slot_page_track_add_page (write tracking): one more party wants to see writes to `gfn`. */
export function kvmSlotPageTrackAddPage(kvm: Kvm, slot: KvmMemorySlot, gfn: number): void {
  slot.gfnWriteTrack ??= new Uint16Array(slot.npages);
  slot.gfnWriteTrack[gfn - slot.baseGfn]++;
  if (kvmTdpMmuZapLeafs(kvm, gfn, gfn + 1)) kvmFlushRemoteTlbs(kvm);
}

/** kvm_slot_page_track_remove_page: ends one tracking of a frame. */
export function kvmSlotPageTrackRemovePage(kvm: Kvm, slot: KvmMemorySlot, gfn: number): void {
  if (!slot.gfnWriteTrack || slot.gfnWriteTrack[gfn - slot.baseGfn] === 0) return;
  slot.gfnWriteTrack[gfn - slot.baseGfn]--;
  if (kvmTdpMmuZapLeafs(kvm, gfn, gfn + 1)) kvmFlushRemoteTlbs(kvm);
}

/** kvm_page_track_is_active: whether writes to a frame are tracked. */
export const kvmPageTrackIsActive = (slot: KvmMemorySlot, gfn: number): boolean =>
  slot.gfnWriteTrack !== null && slot.gfnWriteTrack[gfn - slot.baseGfn] > 0;
