/**
 * The local APIC's timer on the VMX-preemption timer (arch/x86/kvm/lapic.c start_hv_timer, vmx.c vmx_set_hv_timer): instead
 * of the host's timer interrupt, the guest exits by itself when its timer is due.
 */
import { PinBased } from "../../cpu/vmx/controls";
import { Field } from "../../cpu/vmx/fields";
import { kvmClockOwner } from "../lapic";
import type { KvmVcpu } from "../types";
import { controlsClearBit, controlsSetBit, vmcsWrite32 } from "./vmcs";

/** Rate of the timer: TSC ticks (ns) a count, as a shift (IA32_VMX_MISC 4:0). */
const rate = (vcpu: KvmVcpu): number => Number(vcpu.module.config.misc & 31n);

/** When the vCPU's own timer is due (ns), -1 when it is not running. */
function dueTime(vcpu: KvmVcpu): number {
  const owner = kvmClockOwner(vcpu);
  for (const event of vcpu.module.host.clock.state.events) if (event.owner === owner) return event.at;
  return -1;
}

/** vmx_update_hv_timer: before every entry. */
export function vmxUpdateHvTimer(vcpu: KvmVcpu): void {
  if (!vcpu.module.features.preemptionTimer || !vcpu.apic) return;
  const { vmx } = vcpu;
  const { clock } = vcpu.module.host;
  const at = dueTime(vcpu);
  vmx.hvTimerAt = at;
  const count = at < 0 ? -1 : Math.floor(Math.max(0, at - clock.now) / (1 << rate(vcpu)));
  // A timer too far away for 32 bits is left to the host (-ERANGE).
  if (count < 0 || count > 0xffffffff) {
    vmx.hvTimerAt = -1;
    controlsClearBit(vcpu, "pin", PinBased.VMX_PREEMPTION_TIMER);
    return;
  }
  vmcsWrite32(vcpu, Field.VMX_PREEMPTION_TIMER_VALUE, count);
  controlsSetBit(vcpu, "pin", PinBased.VMX_PREEMPTION_TIMER);
}

/**
 * handle_fastpath_preemption_timer, kvm_lapic_expired_hv_timer. The timer counts in coarser steps than the TSC: the rest is
 * waited for before the interrupt goes in (__kvm_wait_lapic_expire).
 */
export function handlePreemptionTimer(vcpu: KvmVcpu): number {
  const { clock } = vcpu.module.host;
  const { hvTimerAt } = vcpu.vmx;
  if (hvTimerAt >= 0) {
    if (hvTimerAt > clock.now) clock.pass(hvTimerAt - clock.now);
    clock.runDue();
  }
  return 1;
}
