/** struct kvm_page_fault and what a fault handler answers (arch/x86/kvm/mmu/mmu_internal.h). */
import type { KvmMemorySlot } from "../types";

/** RET_PF_*. Negative errnos are returned beside these. */
export const RetPf = { CONTINUE: 0, RETRY: 1, EMULATE: 2, INVALID: 3, FIXED: 4, SPURIOUS: 5 } as const;
export type RetPf = (typeof RetPf)[keyof typeof RetPf];

/** Page-fault error code bits (PFERR_*_MASK); those above bit 31 are KVM's for second-level faults. */
export const Pferr = {
  PRESENT: 1,
  WRITE: 2,
  USER: 4,
  RSVD: 8,
  FETCH: 16,
  PK: 32,
  /** The fault was on the translation of a linear address (PFERR_GUEST_FINAL_MASK, bit 32). */
  GUEST_FINAL: 2 ** 32,
  /** The fault was on the guest's own page tables (PFERR_GUEST_PAGE_MASK, bit 33). */
  GUEST_PAGE: 2 ** 33,
} as const;

/** struct kvm_page_fault: a fault on its way through the MMU. */
export interface KvmPageFault {
  readonly addr: number;
  readonly errorCode: number;
  readonly exec: boolean;
  readonly write: boolean;
  readonly present: boolean;
  readonly rsvd: boolean;
  readonly gfn: number;
  slot: KvmMemorySlot | null;
  /** Host-physical address of the frame. */
  pa: number;
  mapWritable: boolean;
  writeTracked: boolean;
  goalLevel: number;
  /** Generation of the memslots the fault was resolved with. */
  mmioGeneration: number;
}
