/**
 * Dirty rings (virt/kvm/dirty_ring.c): each vCPU records the pages it made dirty in a ring userspace has mapped. Userspace
 * marks entries it has taken, and KVM_RESET_DIRTY_RINGS logs their pages afresh (api.rst 8.29).
 */
import { KvmError } from "./errno";
import { kvmMemslots } from "./memslots";
import { kvmMmuSlotResetDirty } from "./mmu/mmu";
import { KvmReq, kvmCheckRequest, kvmMakeRequest } from "./requests";
import { KVM_ADDRESS_SPACE_NUM, KVM_USER_MEM_SLOTS, type Kvm, type KvmDirtyRing, type KvmVcpu } from "./types";
import { KvmDirtyGfn, KvmExit } from "./uapi";

/** struct kvm_dirty_gfn: flags, slot, offset. */
const ENTRY_BYTES = 16;
const FLAGS = 0;
const SLOT = 4;
const OFFSET = 8;
const MAX_ENTRIES = 65536;
/** Bytes of the largest ring: what KVM_CHECK_EXTENSION answers. */
export const KVM_DIRTY_RING_MAX_BYTES = MAX_ENTRIES * ENTRY_BYTES;
const RESERVED_ENTRIES = 64;
/** Entries a page-modification log may add at one exit. */
const PML_ENTITY_NUM = 512;

/** kvm_dirty_ring_get_rsvd_entries */
const reservedEntries = (kvm: Kvm): number => RESERVED_ENTRIES + (kvm.module.features.pml ? PML_ENTITY_NUM : 0);

/** kvm_vm_ioctl_enable_dirty_log_ring: before the first vCPU, once. @param size bytes of each ring. @throws KvmError EINVAL, E2BIG */
export function kvmEnableDirtyLogRing(kvm: Kvm, size: bigint): void {
  const fail = (errno: "EINVAL" | "E2BIG", why: string): never => {
    throw new KvmError(errno, "KVM_ENABLE_CAP", why);
  };
  if (size === 0n || size & (size - 1n)) fail("EINVAL", "the size of a dirty ring is a power of two");
  if (size < 4096n || size < BigInt(reservedEntries(kvm) * ENTRY_BYTES)) fail("EINVAL", "the dirty ring is too small");
  if (size > BigInt(KVM_DIRTY_RING_MAX_BYTES)) fail("E2BIG", `a dirty ring has at most ${MAX_ENTRIES} entries`);
  if (kvm.state.dirtyRingSize !== 0) fail("EINVAL", "the size can be set once");
  if (kvm.state.createdVcpus > 0) fail("EINVAL", "it must come before the first vCPU");
  kvm.state.dirtyRingSize = Number(size);
}

/** kvm_dirty_ring_alloc. @returns null without dirty rings */
export function kvmDirtyRingAlloc(kvm: Kvm): KvmDirtyRing | null {
  const { dirtyRingSize } = kvm.state;
  if (dirtyRingSize === 0) return null;
  const size = dirtyRingSize / ENTRY_BYTES;
  return {
    dirtyIndex: 0,
    resetIndex: 0,
    size,
    softLimit: size - reservedEntries(kvm),
    dirtyGfns: new Uint8Array(dirtyRingSize),
  };
}

const viewOf = (ring: KvmDirtyRing): DataView => new DataView(ring.dirtyGfns.buffer, ring.dirtyGfns.byteOffset);

/** kvm_dirty_ring_soft_full */
const softFull = (ring: KvmDirtyRing): boolean => ring.dirtyIndex - ring.resetIndex >= ring.softLimit;

/** kvm_dirty_ring_push */
export function kvmDirtyRingPush(vcpu: KvmVcpu, slot: number, offset: number): void {
  const ring = vcpu.state.dirtyRing;
  if (!ring) return;
  const view = viewOf(ring);
  const at = (ring.dirtyIndex % ring.size) * ENTRY_BYTES;
  view.setUint32(at + SLOT, slot, true);
  view.setBigUint64(at + OFFSET, BigInt(offset), true);
  view.setUint32(at + FLAGS, KvmDirtyGfn.DIRTY, true);
  ring.dirtyIndex++;
  if (softFull(ring)) kvmMakeRequest(KvmReq.DIRTY_RING_SOFT_FULL, vcpu);
}

/** kvm_dirty_ring_check_request: a ring that is nearly full must be emptied first. @returns whether to leave for userspace */
export function kvmDirtyRingCheckRequest(vcpu: KvmVcpu): boolean {
  const ring = vcpu.state.dirtyRing;
  if (!kvmCheckRequest(KvmReq.DIRTY_RING_SOFT_FULL, vcpu) || !ring || !softFull(ring)) return false;
  kvmMakeRequest(KvmReq.DIRTY_RING_SOFT_FULL, vcpu);
  vcpu.run.exit = { exit_reason: KvmExit.DIRTY_RING_FULL };
  return true;
}

/** kvm_vm_ioctl_reset_dirty_pages: all entries userspace has marked. @returns their number. @throws KvmError EINVAL */
export function kvmVmIoctlResetDirtyPages(kvm: Kvm): number {
  if (kvm.state.dirtyRingSize === 0) {
    throw new KvmError("EINVAL", "KVM_RESET_DIRTY_RINGS", "KVM_CAP_DIRTY_LOG_RING is not enabled");
  }
  /** Pages to be logged afresh, as bitmaps by slot. */
  const pages = new Map<number, Uint32Array>();
  let cleared = 0;
  for (const vcpu of kvm.vcpus)
    if (vcpu.state.dirtyRing) cleared += kvmDirtyRingReset(kvm, vcpu.state.dirtyRing, pages);
  for (const [id, bitmap] of pages) {
    const slot = kvmMemslots(kvm, id >>> 16).byId.get(id & 0xffff);
    if (slot) kvmMmuSlotResetDirty(kvm, slot, bitmap);
  }
  return cleared;
}

/** kvm_dirty_ring_reset: of one ring. */
function kvmDirtyRingReset(kvm: Kvm, ring: KvmDirtyRing, pages: Map<number, Uint32Array>): number {
  const view = viewOf(ring);
  let count = 0;
  while (count < ring.size) {
    const at = (ring.resetIndex % ring.size) * ENTRY_BYTES;
    if (!(view.getUint32(at + FLAGS, true) & KvmDirtyGfn.RESET)) break;
    markForReset(kvm, view.getUint32(at + SLOT, true), Number(view.getBigUint64(at + OFFSET, true)), pages);
    view.setUint32(at + FLAGS, 0, true);
    ring.resetIndex++;
    count++;
  }
  return count;
}

/** kvm_reset_dirty_gfn: entries userspace spoilt are passed over. */
function markForReset(kvm: Kvm, id: number, offset: number, pages: Map<number, Uint32Array>): void {
  if (id >>> 16 >= KVM_ADDRESS_SPACE_NUM || (id & 0xffff) >= KVM_USER_MEM_SLOTS) return;
  const slot = kvmMemslots(kvm, id >>> 16).byId.get(id & 0xffff);
  if (!slot || offset >= slot.npages) return;
  let bitmap = pages.get(id);
  if (!bitmap) {
    bitmap = new Uint32Array(Math.ceil(slot.npages / 32));
    pages.set(id, bitmap);
  }
  bitmap[offset >> 5] |= 1 << (offset & 31);
}
