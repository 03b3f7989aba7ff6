/** MSRs the Intel module knows itself (vmx_get_msr, vmx_set_msr): those that lie in the VMCS or are switched with the guest. */
import { Field } from "../../cpu/vmx/fields";
import { guestCpuidHas } from "../cpuid";
import { rdmsrl, wrmsrl } from "../hostKernel";
import { KVM_MSR_RET_INVALID, kvmGetMsrCommon, kvmSetMsrCommon, Msr } from "../msrs";
import type { KvmVcpu } from "../types";
import { loadedCpu, vmcsRead, vmcsWrite } from "./vmcs";

/** Guest MSRs of the SYSCALL family by index: kept in vmx->guest_uret_msrs, in the processor while the guest runs. */
const URET: Readonly<Record<number, keyof KvmVcpu["vmx"]["uretMsrs"]>> = {
  [Msr.STAR]: "star",
  [Msr.LSTAR]: "lstar",
  [Msr.CSTAR]: "cstar",
  [Msr.SYSCALL_MASK]: "syscallMask",
  [Msr.TSC_AUX]: "tscAux",
};

/** vmx_get_msr. @returns null where #GP is due, undefined where nobody knows the MSR */
export function vmxGetMsr(vcpu: KvmVcpu, index: number, hostInitiated: boolean): bigint | null | undefined {
  const { vmx } = vcpu;
  switch (index) {
    case Msr.FS_BASE:
      return vmcsRead(vcpu, Field.GUEST_FS_BASE);
    case Msr.GS_BASE:
      return vmcsRead(vcpu, Field.GUEST_GS_BASE);
    case Msr.KERNEL_GS_BASE:
      return vmx.guestStateLoaded ? rdmsrl(loadedCpu(vcpu), index) : vmx.msrGuestKernelGsBase;
    case Msr.SYSENTER_CS:
      return vmcsRead(vcpu, Field.GUEST_SYSENTER_CS);
    case Msr.SYSENTER_EIP:
      return vmcsRead(vcpu, Field.GUEST_SYSENTER_EIP);
    case Msr.SYSENTER_ESP:
      return vmcsRead(vcpu, Field.GUEST_SYSENTER_ESP);
    case Msr.FEAT_CTL:
      return vmx.msrIa32FeatureControl;
    case Msr.DEBUGCTL:
      return vmcsRead(vcpu, Field.GUEST_IA32_DEBUGCTL);
  }
  const uret = URET[index];
  if (uret !== undefined) return vmx.uretMsrs[uret];
  return kvmGetMsrCommon(vcpu, index, hostInitiated);
}

/** vmx_set_msr */
export function vmxSetMsr(vcpu: KvmVcpu, index: number, data: bigint, hostInitiated: boolean): number {
  const { vmx } = vcpu;
  switch (index) {
    case Msr.FS_BASE:
      vmcsWrite(vcpu, Field.GUEST_FS_BASE, data);
      return 0;
    case Msr.GS_BASE:
      vmcsWrite(vcpu, Field.GUEST_GS_BASE, data);
      return 0;
    case Msr.KERNEL_GS_BASE:
      if (vmx.guestStateLoaded) wrmsrl(loadedCpu(vcpu), index, data);
      vmx.msrGuestKernelGsBase = data;
      return 0;
    case Msr.SYSENTER_CS:
      vmcsWrite(vcpu, Field.GUEST_SYSENTER_CS, data);
      return 0;
    case Msr.SYSENTER_EIP:
      vmcsWrite(vcpu, Field.GUEST_SYSENTER_EIP, data);
      return 0;
    case Msr.SYSENTER_ESP:
      vmcsWrite(vcpu, Field.GUEST_SYSENTER_ESP, data);
      return 0;
    case Msr.DEBUGCTL:
      // BTF and LBR are not offered; writes of them are ignored as KVM does (report_ignored_msrs).
      if (data & ~3n) return 1;
      vmcsWrite(vcpu, Field.GUEST_IA32_DEBUGCTL, 0n);
      return 0;
    case Msr.FEAT_CTL: {
      const valid = 1n | (guestCpuidHas(vcpu, 1, 0, "ecx", 5) ? 4n : 0n) | (1n << 20n);
      if (data & ~valid || (!hostInitiated && vmx.msrIa32FeatureControl & 1n)) return 1;
      vmx.msrIa32FeatureControl = data;
      return 0;
    }
    case Msr.PAT: {
      const r = kvmSetMsrCommon(vcpu, index, data, hostInitiated);
      if (r === 0 && vcpu.module.features.loadPat) vmcsWrite(vcpu, Field.GUEST_IA32_PAT, data);
      return r;
    }
  }
  const uret = URET[index];
  if (uret !== undefined) {
    vmx.uretMsrs[uret] = data;
    if (vmx.guestUretMsrsLoaded) wrmsrl(loadedCpu(vcpu), index, data);
    return 0;
  }
  // Nested virtualization is off: the VMX capability MSRs do not exist.
  if (index >= 0x480 && index <= 0x493) return KVM_MSR_RET_INVALID;
  return kvmSetMsrCommon(vcpu, index, data, hostInitiated);
}
