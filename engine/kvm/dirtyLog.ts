/**
 * The dirty log (virt/kvm/kvm_main.c): one bit a page of a slot, set by writes, handed to userspace and cleared, at once or,
 * with manual protection, when userspace asks (Documentation/virt/kvm/api.rst 4.8, 4.117, 7.18).
 */
import { KvmError } from "./errno";
import { kvmMemslots } from "./memslots";
import { kvmArchSyncDirtyLog, kvmMmuSlotResetDirty } from "./mmu/mmu";
import { KVM_ADDRESS_SPACE_NUM, KVM_USER_MEM_SLOTS, type Kvm, type KvmMemorySlot } from "./types";
import { type KvmClearDirtyLog, KvmDirtyLogManual, KvmMemFlag } from "./uapi";

/** kvm_use_dirty_bitmap: a VM with dirty rings has no bitmaps. */
export const kvmUseDirtyBitmap = (kvm: Kvm): boolean => kvm.state.dirtyRingSize === 0;

/** kvm_slot_dirty_track_enabled */
export const kvmSlotDirtyTrackEnabled = (slot: KvmMemorySlot): boolean =>
  (slot.flags & KvmMemFlag.LOG_DIRTY_PAGES) !== 0;

/** kvm_dirty_log_manual_protect_and_init_set: all pages begin as dirty, and are write-protected only as they are cleared. */
export const kvmDirtyLogManualProtectAndInitSet = (kvm: Kvm): boolean =>
  (kvm.state.manualDirtyLogProtect & KvmDirtyLogManual.INITIALLY_SET) !== 0;

/** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. @returns false (-EINVAL) for options that do not go together */
export function kvmEnableManualDirtyLogProtect(kvm: Kvm, options: bigint): boolean {
  const allowed =
    options & BigInt(KvmDirtyLogManual.PROTECT_ENABLE)
      ? KvmDirtyLogManual.PROTECT_ENABLE | KvmDirtyLogManual.INITIALLY_SET
      : KvmDirtyLogManual.PROTECT_ENABLE;
  if (options & ~BigInt(allowed)) return false;
  kvm.state.manualDirtyLogProtect = Number(options);
  return true;
}

/** The slot of a dirty-log ioctl, which must have a bitmap. @throws KvmError ENXIO, EINVAL, ENOENT */
function loggedSlot(kvm: Kvm, slotId: number, ioctl: string): KvmMemorySlot & { dirtyBitmap: Uint32Array } {
  if (!kvmUseDirtyBitmap(kvm)) throw new KvmError("ENXIO", ioctl, "the VM uses dirty rings");
  const asId = slotId >>> 16;
  const id = slotId & 0xffff;
  if (asId >= KVM_ADDRESS_SPACE_NUM || id >= KVM_USER_MEM_SLOTS) {
    throw new KvmError("EINVAL", ioctl, "no such address space or slot id");
  }
  const slot = kvmMemslots(kvm, asId).byId.get(id);
  if (!slot?.dirtyBitmap) throw new KvmError("ENOENT", ioctl, `slot ${id} has no dirty log`);
  return slot as KvmMemorySlot & { dirtyBitmap: Uint32Array };
}

/**
 * KVM_GET_DIRTY_LOG: the slot's dirty bits. Without manual protection they are cleared and logged afresh.
 * @throws KvmError ENXIO, EINVAL for a bad slot, ENOENT without logging
 */
export function kvmVmIoctlGetDirtyLog(kvm: Kvm, slotId: number): Uint32Array {
  const slot = loggedSlot(kvm, slotId, "KVM_GET_DIRTY_LOG");
  kvmArchSyncDirtyLog(kvm, slot);
  const dirty = slot.dirtyBitmap.slice();
  if (kvm.state.manualDirtyLogProtect !== 0) return dirty;
  slot.dirtyBitmap.fill(0);
  kvmMmuSlotResetDirty(kvm, slot, dirty);
  return dirty;
}

/**
 * KVM_CLEAR_DIRTY_LOG: bits of the given ones that are set are cleared, and their pages logged afresh.
 * @throws KvmError ENXIO, EINVAL, ENOENT
 */
export function kvmVmIoctlClearDirtyLog(kvm: Kvm, log: KvmClearDirtyLog): void {
  const ioctl = "KVM_CLEAR_DIRTY_LOG";
  const fail = (why: string): never => {
    throw new KvmError("EINVAL", ioctl, why);
  };
  const { first_page: first, num_pages: count } = log;
  if (!kvmUseDirtyBitmap(kvm)) throw new KvmError("ENXIO", ioctl, "the VM uses dirty rings");
  if (log.slot >>> 16 >= KVM_ADDRESS_SPACE_NUM || (log.slot & 0xffff) >= KVM_USER_MEM_SLOTS)
    fail("no such address space or slot id");
  if (first % 64 !== 0) fail("first_page is not a multiple of 64");
  const slot = loggedSlot(kvm, log.slot, ioctl);
  const rest = slot.npages - first;
  if (rest < 0 || count > rest) fail("the pages are not all in the slot");
  if (count < rest && count % 64 !== 0) fail("num_pages is not a multiple of 64 and does not reach the slot's end");
  if (log.dirty_bitmap.length < Math.ceil(count / 32)) throw new KvmError("EFAULT", ioctl, "the bitmap is too short");
  kvmArchSyncDirtyLog(kvm, slot);
  const cleared = new Uint32Array(slot.dirtyBitmap.length);
  for (let i = 0; i < Math.ceil(count / 32); i++) {
    const inside = count - i * 32 >= 32 ? 0xffffffff : 2 ** (count % 32) - 1;
    const at = first / 32 + i;
    cleared[at] = log.dirty_bitmap[i] & inside & slot.dirtyBitmap[at];
    slot.dirtyBitmap[at] &= ~cleared[at];
  }
  kvmMmuSlotResetDirty(kvm, slot, cleared);
}
