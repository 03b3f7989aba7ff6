/**
 * Work before a guest is entered (kernel/entry/kvm.c): signals, rescheduling and callbacks that would otherwise be handled
 * on the way to user mode.
 */
import { Errno } from "./errno";
import type { KvmVcpu } from "./types";
import { KvmExit } from "./uapi";
import { KVM_RUN_YIELD } from "./x86Ops";

/** __xfer_to_guest_mode_work_pending: TIF_NEED_RESCHED, TIF_SIGPENDING, TIF_NOTIFY_SIGNAL, TIF_NOTIFY_RESUME. */
export function xferToGuestModeWorkPending(vcpu: KvmVcpu): boolean {
  const { thread } = vcpu.state;
  return thread.needResched || thread.signalPending || thread.notifySignal || thread.notifyResume;
}

/** kvm_handle_signal_exit */
export function kvmHandleSignalExit(vcpu: KvmVcpu): void {
  vcpu.run.exit = { exit_reason: KvmExit.INTR };
  vcpu.stat.signal_exits++;
}

/** arch_xfer_to_guest_mode_handle_work: x86 has nothing of its own to do here. */
const archXferToGuestModeHandleWork = (_vcpu: KvmVcpu): number => 0;

/**
 * xfer_to_guest_mode_work: loops while work is pending. Rescheduling leaves KVM_RUN for the scheduler and comes back here.
 * @returns 0, -EINTR with KVM_EXIT_INTR, or KVM_RUN_YIELD
 */
export function xferToGuestModeHandleWork(vcpu: KvmVcpu): number {
  const { thread } = vcpu.state;
  while (xferToGuestModeWorkPending(vcpu)) {
    if (thread.signalPending || thread.notifySignal) {
      kvmHandleSignalExit(vcpu);
      return -Errno.EINTR;
    }
    if (thread.needResched) {
      thread.needResched = false;
      vcpu.state.suspended = "resched";
      return KVM_RUN_YIELD;
    }
    if (thread.notifyResume) thread.notifyResume = false;
    const r = archXferToGuestModeHandleWork(vcpu);
    if (r !== 0) return r;
  }
  return 0;
}
