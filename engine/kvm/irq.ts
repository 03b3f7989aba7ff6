/** Which interrupt a vCPU would take (arch/x86/kvm/irq.c): user's, PIC's, or the local APIC's. */
import type { Kvm, KvmVcpu } from "./types";
import { kvmVcpuApicvActive } from "./vmx/apicvState";

/** irqchip_in_kernel: at least the local APICs are. */
export const irqchipInKernel = (kvm: Kvm): boolean => kvm.arch.irqchipMode !== "none";
export const irqchipSplit = (kvm: Kvm): boolean => kvm.arch.irqchipMode === "split";
export const picInKernel = (kvm: Kvm): boolean => kvm.arch.irqchipMode === "kernel";
export const lapicInKernel = (vcpu: KvmVcpu): boolean => vcpu.apic !== null;

/** kvm_cpu_has_extint: an interrupt that does not come from the local APIC. */
export function kvmCpuHasExtint(vcpu: KvmVcpu): boolean {
  if (!vcpu.apic) return vcpu.arch.interrupt.injected;
  if (!vcpu.apic.acceptsPicIntr()) return false;
  if (irqchipSplit(vcpu.kvm)) return vcpu.arch.pendingExternalVector !== -1;
  return vcpu.kvm.vpic?.output ?? false;
}

/** kvm_cpu_has_interrupt */
export function kvmCpuHasInterrupt(vcpu: KvmVcpu): boolean {
  if (kvmCpuHasExtint(vcpu)) return true;
  return vcpu.apic !== null && vcpu.apic.hasInterrupt() >= 0;
}

/**
 * kvm_cpu_has_injectable_intr: without an irqchip in the kernel userspace injects by KVM_INTERRUPT; with APICv the processor
 * delivers the local APIC's interrupts itself.
 */
export const kvmCpuHasInjectableIntr = (vcpu: KvmVcpu): boolean =>
  kvmVcpuApicvActive(vcpu) ? kvmCpuHasExtint(vcpu) : kvmCpuHasInterrupt(vcpu);

/** kvm_cpu_get_interrupt: takes the vector, -1 for none. */
export function kvmCpuGetInterrupt(vcpu: KvmVcpu): number {
  if (kvmCpuHasExtint(vcpu)) {
    if (!vcpu.apic) return vcpu.arch.interrupt.nr;
    if (irqchipSplit(vcpu.kvm)) {
      const vector = vcpu.arch.pendingExternalVector;
      vcpu.arch.pendingExternalVector = -1;
      return vector;
    }
    return vcpu.kvm.vpic?.readIrq() ?? -1;
  }
  return vcpu.apic?.getInterrupt() ?? -1;
}
