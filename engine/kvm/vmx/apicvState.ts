/** Whether a vCPU's local APIC is virtualized by the processor at the moment (kvm_vcpu_apicv_active). */
import { SecondaryExec } from "../../cpu/vmx/controls";
import type { KvmVcpu } from "../types";

/** kvm_vcpu_apicv_active */
export function kvmVcpuApicvActive(vcpu: KvmVcpu): boolean {
  const { secondaryExec } = vcpu.vmx.controls;
  return secondaryExec !== -1 && (secondaryExec & SecondaryExec.VIRTUAL_INTR_DELIVERY) !== 0;
}
