/** vcpu->requests (include/linux/kvm_host.h, arch/x86/include/asm/kvm_host.h): work a vCPU owes before it enters again. */

import { kvmVcpuKick } from "./kvmMain";
import type { KvmVcpu } from "./types";

/** KVM_REQ_*: what a vCPU has to do before its next entry. */
// biome-ignore format: numbers as in the headers; architecture requests start at 8
export const KvmReq = {
  TLB_FLUSH: 0, VM_DEAD: 1, UNBLOCK: 2, DIRTY_RING_SOFT_FULL: 3,
  MIGRATE_TIMER: 8, REPORT_TPR_ACCESS: 9, TRIPLE_FAULT: 10, MMU_SYNC: 11, CLOCK_UPDATE: 12, LOAD_MMU_PGD: 13, EVENT: 14,
  APF_HALT: 15, STEAL_UPDATE: 16, NMI: 17, PMU: 18, PMI: 19, SMI: 20, MASTERCLOCK_UPDATE: 21, MCLOCK_INPROGRESS: 22,
  SCAN_IOAPIC: 23, GLOBAL_CLOCK_UPDATE: 24, APIC_PAGE_RELOAD: 25, IOAPIC_EOI_EXIT: 27, LOAD_EOI_EXITMAP: 31,
  APICV_UPDATE: 33, TLB_FLUSH_CURRENT: 34, TLB_FLUSH_GUEST: 35, MSR_FILTER_CHANGED: 37, UPDATE_CPU_DIRTY_LOGGING: 38,
  MMU_FREE_OBSOLETE_ROOTS: 39,
} as const;
export type KvmReq = (typeof KvmReq)[keyof typeof KvmReq];

/** kvm_make_request */
export function kvmMakeRequest(request: KvmReq, vcpu: KvmVcpu): void {
  const { requests } = vcpu.state;
  if (requests[request] === 0) {
    requests[request] = 1;
    vcpu.state.requestsPending++;
  }
}

/** kvm_request_pending */
export const kvmRequestPending = (vcpu: KvmVcpu): boolean => vcpu.state.requestsPending > 0;

/** kvm_test_request: asks, and does not clear. */
export const kvmTestRequest = (request: KvmReq, vcpu: KvmVcpu): boolean => vcpu.state.requests[request] !== 0;

/** kvm_clear_request */
export function kvmClearRequest(request: KvmReq, vcpu: KvmVcpu): void {
  const { requests } = vcpu.state;
  if (requests[request] !== 0) {
    requests[request] = 0;
    vcpu.state.requestsPending--;
  }
}

/** Takes a request: true at most once for each time it was made. */
export function kvmCheckRequest(request: KvmReq, vcpu: KvmVcpu): boolean {
  if (vcpu.state.requests[request] === 0) return false;
  kvmClearRequest(request, vcpu);
  return true;
}

/** kvm_make_all_cpus_request: on every vCPU, and those inside the guest leave it. */
export function kvmMakeAllCpusRequest(vcpus: readonly KvmVcpu[], request: KvmReq): void {
  for (const vcpu of vcpus) {
    kvmMakeRequest(request, vcpu);
    kvmVcpuKick(vcpu);
  }
}
