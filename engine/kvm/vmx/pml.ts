/**
 * Dirty logging by page-modification logging (arch/x86/kvm/vmx/vmx.c): the processor notes the pages whose dirty flag it
 * sets, KVM empties the notes at every exit.
 */
import { SecondaryExec } from "../../cpu/vmx/controls";
import { Field } from "../../cpu/vmx/fields";
import { gfnToMemslot, kvmMemslots, markPageDirtyInSlot } from "../memslots";
import { KvmReq, kvmMakeRequest } from "../requests";
import type { Kvm, KvmVcpu } from "../types";
import { KvmMemFlag } from "../uapi";
import { IntrInfo, vmxGetExitQual } from "./run";
import { controlsClearBit, controlsSetBit, vmcsSetBits, vmcsWrite, vmcsWrite32 } from "./vmcs";

/** PML_ENTITY_NUM */
const ENTRIES = 512;
const VECTORING_VALID = 0x80000000;
const BLOCKING_BY_NMI = 8;

/** init_vmcs' part. */
export function initPml(vcpu: KvmVcpu): void {
  const { vmx, module } = vcpu;
  if (!module.features.pml) return;
  if (vmx.pmlPage < 0) vmx.pmlPage = module.host.allocatePages(1);
  vmcsWrite(vcpu, Field.PML_ADDRESS, BigInt(vmx.pmlPage));
  vmcsWrite32(vcpu, Field.GUEST_PML_INDEX, ENTRIES - 1);
  if (anySlotLogs(vcpu.kvm)) kvmMakeRequest(KvmReq.UPDATE_CPU_DIRTY_LOGGING, vcpu);
}

const anySlotLogs = (kvm: Kvm): boolean =>
  kvmMemslots(kvm).slots.some((slot) => (slot.flags & KvmMemFlag.LOG_DIRTY_PAGES) !== 0);

/** kvm_mmu_update_cpu_dirty_logging: the number of slots that log has become zero, or no longer is. */
export function kvmMmuUpdateCpuDirtyLogging(kvm: Kvm): void {
  if (!kvm.module.features.pml) return;
  for (const vcpu of kvm.vcpus) kvmMakeRequest(KvmReq.UPDATE_CPU_DIRTY_LOGGING, vcpu);
}

/** vmx_update_cpu_dirty_logging */
export function vmxUpdateCpuDirtyLogging(vcpu: KvmVcpu): void {
  if (!vcpu.module.features.pml) return;
  if (anySlotLogs(vcpu.kvm)) controlsSetBit(vcpu, "secondaryExec", SecondaryExec.ENABLE_PML);
  else controlsClearBit(vcpu, "secondaryExec", SecondaryExec.ENABLE_PML);
}

/** vmx_flush_pml_buffer: at every exit, and for a vCPU that sleeps in the guest before its log is read. */
export function vmxFlushPmlBuffer(vcpu: KvmVcpu): void {
  const { vmx, module, kvm } = vcpu;
  if (!module.features.pml || vmx.pmlPage < 0) return;
  const { memory } = module.host;
  const processor = module.host.processors[Math.max(vmx.loadedCpu, 0)].vmx;
  const index = Number(processor.peek(vmx.vmcs, Field.GUEST_PML_INDEX));
  if (index === ENTRIES - 1) return;
  // After the last entry the index is beyond the table.
  const at = memory.hostOffset(vmx.pmlPage);
  for (let i = index >= ENTRIES ? 0 : index + 1; i < ENTRIES; i++) {
    const gfn = Number(memory.view.getBigUint64(at + i * 8, true) >> 12n);
    markPageDirtyInSlot(kvm, gfnToMemslot(kvm, gfn), gfn);
  }
  processor.poke(vmx.vmcs, Field.GUEST_PML_INDEX, BigInt(ENTRIES - 1));
}

/** handle_pml_full: the log has been emptied by now. */
export function handlePmlFull(vcpu: KvmVcpu): number {
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffn);
  const { vmx, module } = vcpu;
  if (!(vmx.idtVectoringInfo & VECTORING_VALID) && module.features.vnmi && qualification & IntrInfo.UNBLOCK_NMI) {
    vmcsSetBits(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, BLOCKING_BY_NMI);
  }
  return 1;
}
