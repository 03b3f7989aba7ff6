/** HLT and spinning (arch/x86/kvm/x86.c): when a vCPU runs, waits, or lets another one run. */
import { kvmCpuHasInterrupt } from "./irq";
import { kvmApicHasPendingInitOrSipi } from "./lapic";
import { KvmReq, kvmTestRequest } from "./requests";
import type { KvmVcpu } from "./types";
import { KvmExit, KvmMpState } from "./uapi";
import { kvmSkipEmulatedInstruction } from "./x86Events";

/** kvm_vcpu_running */
export const kvmVcpuRunning = (vcpu: KvmVcpu): boolean =>
  vcpu.arch.mpState === KvmMpState.RUNNABLE && !vcpu.arch.apfHalted;

/** kvm_vcpu_has_events: something would end a halt. */
function kvmVcpuHasEvents(vcpu: KvmVcpu): boolean {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  if (kvmApicHasPendingInitOrSipi(vcpu)) return true;
  if (arch.pvUnhalted || arch.exception.pending) return true;
  if (kvmTestRequest(KvmReq.NMI, vcpu) || (arch.nmiPending > 0 && ops.nmiAllowed(vcpu))) return true;
  return kvmCpuHasInterrupt(vcpu) && ops.interruptAllowed(vcpu);
}

/** kvm_arch_vcpu_runnable */
export const kvmArchVcpuRunnable = (vcpu: KvmVcpu): boolean => kvmVcpuRunning(vcpu) || kvmVcpuHasEvents(vcpu);

/** kvm_emulate_halt: with a LAPIC in the kernel the vCPU waits in KVM_RUN, otherwise userspace does the waiting. */
export function kvmEmulateHalt(vcpu: KvmVcpu): number {
  const r = kvmSkipEmulatedInstruction(vcpu);
  return kvmEmulateHaltNoskip(vcpu) && r;
}

/** kvm_emulate_halt_noskip */
export function kvmEmulateHaltNoskip(vcpu: KvmVcpu): number {
  vcpu.stat.halt_exits++;
  if (!vcpu.apic) {
    vcpu.run.exit = { exit_reason: KvmExit.HLT };
    return 0;
  }
  vcpu.arch.mpState = kvmVcpuHasEvents(vcpu) ? KvmMpState.RUNNABLE : KvmMpState.HALTED;
  return 1;
}

/** kvm_vcpu_on_spin: another vCPU may hold what this one waits for, so the thread gives up its processor. */
export function kvmVcpuOnSpin(vcpu: KvmVcpu): void {
  if (vcpu.kvm.vcpus.length < 2) return;
  vcpu.stat.directed_yield_attempted++;
  vcpu.state.thread.needResched = true;
  vcpu.stat.directed_yield_successful++;
}
