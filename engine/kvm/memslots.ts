/**
 * Memory slots (virt/kvm/kvm_main.c): two sets of slots in each address space. Readers use the active one; a change is
 * prepared in the other, which then becomes active with a new generation. Cached MMIO translations carry the generation,
 * so that any change makes them stale.
 */

import { kvmDirtyLogManualProtectAndInitSet, kvmSlotDirtyTrackEnabled, kvmUseDirtyBitmap } from "./dirtyLog";
import { kvmDirtyRingPush } from "./dirtyRing";
import { KvmError } from "./errno";
import { kvmArchFlushShadowMemslot, kvmArchMemslotsUpdated, kvmMmuSlotApplyFlags, kvmMmuTrackWrite } from "./mmu/mmu";
import {
  KVM_ADDRESS_SPACE_NUM,
  KVM_USER_MEM_SLOTS,
  type Kvm,
  type KvmMemorySlot,
  type KvmMemslotSets,
  type KvmMemslots,
  type KvmVcpu,
  PAGE_SIZE,
} from "./types";
import { KvmMemFlag, type KvmUserspaceMemoryRegion } from "./uapi";

/** KVM's own flag: readers fault on the slot while it is being changed. */
export const KVM_MEMSLOT_INVALID = 1 << 16;
/** Set in a generation while the sets are being swapped (bit 63 in Linux). */
export const KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 2 ** 52;
const KVM_MEM_SLOTS_NUM = 32767;
const KVM_MEM_MAX_NR_PAGES = 2 ** 31 - 1;
/** TASK_SIZE_MAX: user addresses of the host are below. */
const TASK_SIZE_MAX = 2 ** 47 - PAGE_SIZE;

/** Memslots of a new VM, for each address space. */
export const newMemslotSets = (): KvmMemslotSets[] =>
  Array.from({ length: KVM_ADDRESS_SPACE_NUM }, (_, asId) => ({
    active: 0,
    sets: [
      { generation: asId, slots: [], byId: new Map() },
      { generation: asId, slots: [], byId: new Map() },
    ],
  }));

/** The active set of an address space. */
export function kvmMemslots(kvm: Kvm, asId = 0): KvmMemslots {
  const space = kvm.state.memslots[asId];
  return space.sets[space.active];
}

/** Slot that holds guest frame `gfn`, or null. */
export function gfnToMemslot(kvm: Kvm, gfn: number): KvmMemorySlot | null {
  const { slots } = kvmMemslots(kvm);
  let low = 0;
  let high = slots.length - 1;
  while (low <= high) {
    const mid = (low + high) >> 1;
    const slot = slots[mid];
    if (gfn < slot.baseGfn) high = mid - 1;
    else if (gfn >= slot.baseGfn + slot.npages) low = mid + 1;
    else return slot;
  }
  return null;
}

/** Whether the guest sees memory at this frame: a slot of userspace's, not a private one. */
export function kvmIsVisibleMemslot(slot: KvmMemorySlot | null): boolean {
  return slot !== null && slot.id < KVM_USER_MEM_SLOTS && (slot.flags & KVM_MEMSLOT_INVALID) === 0;
}

/** Host-physical address of a guest frame in `slot`, -1 when the host has nothing mapped there. */
export function slotToHpa(kvm: Kvm, slot: KvmMemorySlot, gfn: number): number {
  if (slot.flags & KVM_MEMSLOT_INVALID) return -1;
  const offset = (gfn - slot.baseGfn) * PAGE_SIZE;
  if (slot.kernelPage >= 0) return slot.kernelPage + offset;
  return kvm.module.host.translateUserspace(BigInt(slot.userspaceAddr + offset));
}

/** Host-physical address of guest-physical `gpa`, -1 without memory there. */
export function gpaToHpa(kvm: Kvm, gpa: number): number {
  const gfn = Math.floor(gpa / PAGE_SIZE);
  const slot = gfnToMemslot(kvm, gfn);
  if (!slot) return -1;
  const hpa = slotToHpa(kvm, slot, gfn);
  return hpa < 0 ? -1 : hpa + (gpa % PAGE_SIZE);
}

/** kvm_read_guest: fills `into` from guest-physical memory. @returns false (-EFAULT) when part of it is not memory */
export function kvmReadGuest(kvm: Kvm, gpa: number, into: Uint8Array): boolean {
  const { memory } = kvm.module.host;
  let done = 0;
  while (done < into.length) {
    const at = gpa + done;
    const hpa = gpaToHpa(kvm, at);
    const offset = hpa < 0 ? -1 : memory.hostOffset(hpa);
    if (offset < 0) return false;
    const n = Math.min(into.length - done, PAGE_SIZE - (at % PAGE_SIZE));
    into.set(memory.u8.subarray(offset, offset + n), done);
    done += n;
  }
  return true;
}

/** kvm_write_guest. Pages become dirty; decoded code on them is forgotten. @returns false (-EFAULT) as kvmReadGuest */
export function kvmWriteGuest(kvm: Kvm, gpa: number, bytes: Uint8Array): boolean {
  const { host } = kvm.module;
  let done = 0;
  while (done < bytes.length) {
    const at = gpa + done;
    const gfn = Math.floor(at / PAGE_SIZE);
    const slot = gfnToMemslot(kvm, gfn);
    if (!slot || slot.flags & KvmMemFlag.READONLY) return false;
    const hpa = slotToHpa(kvm, slot, gfn);
    const offset = hpa < 0 ? -1 : host.memory.hostOffset(hpa);
    if (offset < 0) return false;
    const n = Math.min(bytes.length - done, PAGE_SIZE - (at % PAGE_SIZE));
    const start = at % PAGE_SIZE;
    host.memory.u8.set(bytes.subarray(done, done + n), offset + start);
    for (const cpu of host.processors) cpu.code.invalidatePhysical(hpa + start, n);
    markPageDirtyInSlot(kvm, slot, gfn);
    kvmMmuTrackWrite(kvm, at, n);
    done += n;
  }
  return true;
}

/** mark_page_dirty_in_slot: into the running vCPU's ring, or the slot's bitmap. */
export function markPageDirtyInSlot(kvm: Kvm, slot: KvmMemorySlot | null, gfn: number): void {
  if (slot === null || !kvmSlotDirtyTrackEnabled(slot)) return;
  const rel = gfn - slot.baseGfn;
  const vcpu = kvm.state.dirtyRingSize > 0 ? kvm.runningVcpu : null;
  if (vcpu) kvmDirtyRingPush(vcpu, (slot.asId << 16) | slot.id, rel);
  else if (slot.dirtyBitmap) slot.dirtyBitmap[rel >> 5] |= 1 << (rel & 31);
}

/** kvm_vcpu_read_guest. @returns false when a page has no memslot */
export const kvmVcpuReadGuest = (vcpu: KvmVcpu, gpa: number, into: Uint8Array): boolean =>
  kvmReadGuest(vcpu.kvm, gpa, into);
/** kvm_vcpu_write_guest. @returns false when a page has no memslot or a read-only one */
export const kvmVcpuWriteGuest = (vcpu: KvmVcpu, gpa: number, bytes: Uint8Array): boolean =>
  kvmWriteGuest(vcpu.kvm, gpa, bytes);

const IOCTL = "KVM_SET_USER_MEMORY_REGION";

function requireThat(ok: boolean, errno: "EINVAL" | "EEXIST", why: string): void {
  if (!ok) throw new KvmError(errno, IOCTL, why);
}

/** kvm_mmu_max_gfn: with second-level paging the host's physical-address width limits the guest's memory. */
const kvmMmuMaxGfn = (kvm: Kvm): number => 2 ** (kvm.module.host.processors[0].model.physicalBits - 12) - 1;

/** kvm_vm_ioctl_set_memory_region: userspace may only name its own slots. */
export function kvmVmIoctlSetMemoryRegion(kvm: Kvm, mem: KvmUserspaceMemoryRegion): void {
  requireThat((mem.slot & 0xffff) < KVM_USER_MEM_SLOTS, "EINVAL", `slot ids go up to ${KVM_USER_MEM_SLOTS - 1}`);
  kvmSetMemoryRegion(kvm, mem, -1);
}

/**
 * __kvm_set_memory_region: creates, moves, deletes (size 0) or re-flags a slot.
 * @param kernelPage host-physical memory of a private slot, -1 for userspace's
 * @throws KvmError EINVAL, EEXIST
 */
export function kvmSetMemoryRegion(kvm: Kvm, mem: KvmUserspaceMemoryRegion, kernelPage: number): void {
  const valid = KvmMemFlag.LOG_DIRTY_PAGES | KvmMemFlag.READONLY;
  requireThat((mem.flags & ~valid) === 0, "EINVAL", `unknown flags 0x${(mem.flags & ~valid).toString(16)}`);
  const asId = mem.slot >>> 16;
  const id = mem.slot & 0xffff;
  requireThat(mem.memory_size % PAGE_SIZE === 0, "EINVAL", "memory_size is not a multiple of 4096");
  requireThat(mem.guest_phys_addr % PAGE_SIZE === 0, "EINVAL", "guest_phys_addr is not a multiple of 4096");
  requireThat(
    mem.userspace_addr % PAGE_SIZE === 0 && mem.userspace_addr + mem.memory_size <= TASK_SIZE_MAX,
    "EINVAL",
    "userspace_addr is not a page-aligned user address",
  );
  requireThat(asId < KVM_ADDRESS_SPACE_NUM && id < KVM_MEM_SLOTS_NUM, "EINVAL", "no such address space or slot id");
  requireThat(mem.guest_phys_addr + mem.memory_size < 2 ** 64, "EINVAL", "the slot wraps around");
  requireThat(mem.memory_size / PAGE_SIZE <= KVM_MEM_MAX_NR_PAGES, "EINVAL", "too many pages");
  const active = kvmMemslots(kvm, asId);
  const old = active.byId.get(id) ?? null;
  if (mem.memory_size === 0) {
    requireThat(old !== null, "EINVAL", `slot ${id} does not exist, so it cannot be deleted`);
    kvmSetMemslot(kvm, asId, old, null);
    return;
  }
  const baseGfn = mem.guest_phys_addr / PAGE_SIZE;
  const npages = mem.memory_size / PAGE_SIZE;
  if (old) {
    requireThat(
      mem.userspace_addr === old.userspaceAddr &&
        npages === old.npages &&
        ((mem.flags ^ old.flags) & KvmMemFlag.READONLY) === 0,
      "EINVAL",
      `slot ${id} exists; only its address and dirty logging may change`,
    );
    if (baseGfn === old.baseGfn && mem.flags === old.flags) return;
  }
  if (!old || baseGfn !== old.baseGfn) {
    const clash = overlappingSlot(active.slots, id, baseGfn, npages);
    requireThat(clash === undefined, "EEXIST", `it overlaps slot ${clash?.id}`);
    requireThat(baseGfn + npages - 1 <= kvmMmuMaxGfn(kvm), "EINVAL", "it ends above the host's physical addresses");
  }
  kvmSetMemslot(kvm, asId, old, {
    id,
    asId,
    baseGfn,
    npages,
    userspaceAddr: mem.userspace_addr,
    flags: mem.flags,
    dirtyBitmap: mem.flags & KvmMemFlag.LOG_DIRTY_PAGES ? (old?.dirtyBitmap ?? newDirtyBitmap(kvm, npages)) : null,
    gfnWriteTrack: old?.gfnWriteTrack ?? null,
    kernelPage,
  });
}

/** kvm_alloc_dirty_bitmap: all set when userspace asked for that; none beside a dirty ring. */
function newDirtyBitmap(kvm: Kvm, npages: number): Uint32Array | null {
  if (!kvmUseDirtyBitmap(kvm)) return null;
  const bitmap = new Uint32Array(Math.ceil(npages / 32));
  if (kvmDirtyLogManualProtectAndInitSet(kvm)) {
    bitmap.fill(0xffffffff);
    if (npages & 31) bitmap[bitmap.length - 1] = 2 ** (npages & 31) - 1;
  }
  return bitmap;
}

/** kvm_set_memslot: deleting and moving go through a moment in which the slot is invalid. */
function kvmSetMemslot(kvm: Kvm, asId: number, old: KvmMemorySlot | null, next: KvmMemorySlot | null): void {
  const moved = old !== null && (next === null || next.baseGfn !== old.baseGfn);
  let current = old;
  if (moved) {
    const invalid = { ...old, flags: old.flags | KVM_MEMSLOT_INVALID };
    kvmActivateMemslot(kvm, asId, old, invalid);
    kvmArchFlushShadowMemslot(kvm, old);
    current = invalid;
  }
  kvmActivateMemslot(kvm, asId, current, next);
  if (old && next && !moved) kvmMmuSlotApplyFlags(kvm, old, next);
}

/** kvm_activate_memslot: the change goes into the inactive set, which becomes active, and then into the other one. */
function kvmActivateMemslot(kvm: Kvm, asId: number, old: KvmMemorySlot | null, next: KvmMemorySlot | null): void {
  kvmReplaceMemslot(kvm, asId, old, next);
  kvmSwapActiveMemslots(kvm, asId);
  kvmReplaceMemslot(kvm, asId, old, next);
}

/** kvm_check_memslot_overlap: a slot other than `id` with frames of [baseGfn, baseGfn + npages). */
function overlappingSlot(
  slots: readonly KvmMemorySlot[],
  id: number,
  baseGfn: number,
  npages: number,
): KvmMemorySlot | undefined {
  // Slots do not overlap each other, so of those that begin below only the last one, or with `id` itself the one before, can.
  for (let i = Math.max(0, firstSlotAt(slots, baseGfn) - 2); i < slots.length; i++) {
    const s = slots[i];
    if (s.baseGfn >= baseGfn + npages) return undefined;
    if (s.id !== id && baseGfn < s.baseGfn + s.npages) return s;
  }
  return undefined;
}

/** Index of the first slot that begins at or above `gfn`. */
function firstSlotAt(slots: readonly KvmMemorySlot[], gfn: number): number {
  let low = 0;
  let high = slots.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (slots[mid].baseGfn < gfn) low = mid + 1;
    else high = mid;
  }
  return low;
}

/** kvm_replace_memslot: exchanges one slot in the inactive set. */
function kvmReplaceMemslot(kvm: Kvm, asId: number, old: KvmMemorySlot | null, next: KvmMemorySlot | null): void {
  const space = kvm.state.memslots[asId];
  const { slots, byId } = space.sets[space.active === 0 ? 1 : 0];
  if (old) {
    slots.splice(firstSlotAt(slots, old.baseGfn), 1);
    byId.delete(old.id);
  }
  if (next) {
    slots.splice(firstSlotAt(slots, next.baseGfn), 0, next);
    byId.set(next.id, next);
  }
}

/** kvm_swap_active_memslots: the new set is marked as in progress while readers of the old one could still be about. */
function kvmSwapActiveMemslots(kvm: Kvm, asId: number): void {
  const space = kvm.state.memslots[asId];
  const generation = space.sets[space.active].generation;
  const inactive = space.active === 0 ? 1 : 0;
  const next = space.sets[inactive];
  next.generation = generation + KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
  space.active = inactive;
  const updated = generation + KVM_ADDRESS_SPACE_NUM;
  kvmArchMemslotsUpdated(kvm, updated);
  next.generation = updated;
}
