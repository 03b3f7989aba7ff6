/**
 * Asynchronous page faults (arch/x86/kvm/x86.c, Documentation/virt/kvm/x86/msr.rst). Guest memory of the emulated host is
 * never swapped out, so no fault has to wait for a page: the MSRs are checked and kept, and notifications never come.
 */
import { guestPvHas } from "./cpuid";
import { KvmFeature } from "./kvmPara";
import { gpaToHpa } from "./memslots";
import type { KvmVcpu } from "./types";

const ENABLED = 1n;
const DELIVERY_AS_PF_VMEXIT = 4n;
const DELIVERY_AS_INT = 8n;
const RESERVED = 0x30n;
const ADDRESS = ~0x3fn;

/** kvm_pv_enable_async_pf: MSR_KVM_ASYNC_PF_EN. @returns 0, or 1 where #GP is due */
export function kvmPvEnableAsyncPf(vcpu: KvmVcpu, data: bigint): number {
  if (data & RESERVED) return 1;
  if (data & DELIVERY_AS_PF_VMEXIT && !guestPvHas(vcpu, KvmFeature.ASYNC_PF_VMEXIT)) return 1;
  if (data & DELIVERY_AS_INT && !guestPvHas(vcpu, KvmFeature.ASYNC_PF_INT)) return 1;
  if (!vcpu.apic) return data !== 0n ? 1 : 0;
  const on = ENABLED | DELIVERY_AS_INT;
  vcpu.arch.asyncPfMsr = data;
  if ((data & on) === on && gpaToHpa(vcpu.kvm, Number(data & ADDRESS)) < 0) return 1;
  return 0;
}

/** kvm_pv_enable_async_pf_int: MSR_KVM_ASYNC_PF_INT, the vector of page-ready notifications. */
export function kvmPvEnableAsyncPfInt(vcpu: KvmVcpu, data: bigint): number {
  if (data >> 8n || (!vcpu.apic && data !== 0n)) return 1;
  vcpu.arch.asyncPfIntMsr = data;
  return 0;
}
