/**
 * Events on their way into the guest (arch/x86/kvm/x86.c): queued exceptions, NMIs and interrupts, and the order in which
 * kvm_check_and_inject_events hands them to the processor.
 */
import { kvmCpuGetInterrupt, kvmCpuHasInjectableIntr } from "./irq";
import { Cr0, kvmGetLinearRip, kvmGetRflags, kvmReadCr0 } from "./kvmCacheRegs";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmQueuedException, KvmVcpu } from "./types";
import { KvmExit, KvmGuestdbg } from "./uapi";
import { kvmUpdateDr7 } from "./x86Debug";

/** Exception vectors, as the kernel calls them. */
// biome-ignore format: a table
export const ExcVector = {
  DE: 0, DB: 1, BP: 3, OF: 4, BR: 5, UD: 6, NM: 7, DF: 8, TS: 10, NP: 11, SS: 12, GP: 13, PF: 14, MF: 16, AC: 17, MC: 18,
  XM: 19,
} as const;

const NO_EXCEPTION: KvmQueuedException = {
  pending: false,
  injected: false,
  vector: 0,
  hasErrorCode: false,
  errorCode: 0,
  hasPayload: false,
  payload: 0n,
};
export const noException = (): KvmQueuedException => ({ ...NO_EXCEPTION });

const DR_TRAP_BITS = 0xfn;
const DR6_ACTIVE_LOW = 0xffff0ff0n;

const isContributory = (vector: number): boolean =>
  vector === ExcVector.DE || (vector >= ExcVector.TS && vector <= ExcVector.GP);

/** How two exceptions combine (SDM 3A table 6-5). */
function exceptionClass(vector: number): "pf" | "contributory" | "benign" {
  if (vector === ExcVector.PF) return "pf";
  return isContributory(vector) ? "contributory" : "benign";
}

/** exception_type: what restarts the instruction and what comes after it. */
const isFault = (vector: number): boolean =>
  vector !== ExcVector.BP && vector !== ExcVector.OF && vector !== ExcVector.DB;

/** x86_exception_has_error_code */
export const exceptionHasErrorCode = (vector: number): boolean =>
  ((1 << vector) &
    ((1 << ExcVector.DF) |
      (1 << ExcVector.TS) |
      (1 << ExcVector.NP) |
      (1 << ExcVector.SS) |
      (1 << ExcVector.GP) |
      (1 << ExcVector.PF) |
      (1 << ExcVector.AC))) !==
  0;

/** kvm_event_needs_reinjection: an event whose delivery a VM exit has interrupted. */
export const kvmEventNeedsReinjection = (vcpu: KvmVcpu): boolean =>
  vcpu.arch.exception.injected || vcpu.arch.interrupt.injected || vcpu.arch.nmiInjected;

/** kvm_clear_exception_queue */
export function kvmClearExceptionQueue(vcpu: KvmVcpu): void {
  vcpu.arch.exception.pending = false;
  vcpu.arch.exception.injected = false;
  vcpu.arch.exceptionVmexitPending = false;
}
/** kvm_clear_interrupt_queue */
export function kvmClearInterruptQueue(vcpu: KvmVcpu): void {
  vcpu.arch.interrupt.injected = false;
}
/** kvm_queue_interrupt */
export function kvmQueueInterrupt(vcpu: KvmVcpu, vector: number, soft: boolean): void {
  vcpu.arch.interrupt.injected = true;
  vcpu.arch.interrupt.soft = soft;
  vcpu.arch.interrupt.nr = vector;
}

/** kvm_deliver_exception_payload: CR2 or DR6 get what the exception carries. */
export function kvmDeliverExceptionPayload(vcpu: KvmVcpu, ex: KvmQueuedException): void {
  if (!ex.hasPayload) return;
  const { arch } = vcpu;
  if (ex.vector === ExcVector.DB) {
    // B0-B3 are replaced; RTM and bus lock are active low, so the payload clears them (SDM 3B 18.2.3).
    arch.dr6 &= ~DR_TRAP_BITS;
    arch.dr6 |= DR6_ACTIVE_LOW | ex.payload;
    arch.dr6 ^= ex.payload & DR6_ACTIVE_LOW;
    arch.dr6 &= ~(1n << 12n);
  } else if (ex.vector === ExcVector.PF) {
    arch.cr2 = ex.payload;
  }
  ex.hasPayload = false;
  ex.payload = 0n;
}

/** kvm_multiple_exception: queues, or combines with what is queued already. */
function kvmMultipleException(
  vcpu: KvmVcpu,
  vector: number,
  errorCode: number | undefined,
  payload: bigint | undefined,
  reinject: boolean,
): void {
  const { arch } = vcpu;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  const ex = arch.exception;
  if (!ex.pending && !ex.injected) {
    ex.pending = !reinject;
    ex.injected = reinject;
    ex.vector = vector;
    ex.hasErrorCode = errorCode !== undefined;
    ex.errorCode = errorCode ?? 0;
    ex.hasPayload = payload !== undefined;
    ex.payload = payload ?? 0n;
    return;
  }
  const previous = ex.vector;
  if (previous === ExcVector.DF) {
    kvmMakeRequest(KvmReq.TRIPLE_FAULT, vcpu);
    return;
  }
  const first = exceptionClass(previous);
  const second = exceptionClass(vector);
  if ((first === "contributory" && second === "contributory") || (first === "pf" && second !== "benign")) {
    // Double fault: it replaces both and has error code 0.
    arch.exception = { ...NO_EXCEPTION, pending: true, vector: ExcVector.DF, hasErrorCode: true };
    return;
  }
  arch.exception = {
    ...NO_EXCEPTION,
    pending: !reinject,
    injected: reinject,
    vector,
    hasErrorCode: errorCode !== undefined,
    errorCode: errorCode ?? 0,
    hasPayload: payload !== undefined,
    payload: payload ?? 0n,
  };
}

/** kvm_queue_exception, and below it its kin with an error code or a payload. */
export const kvmQueueException = (vcpu: KvmVcpu, vector: number): void =>
  kvmMultipleException(vcpu, vector, undefined, undefined, false);
export const kvmQueueExceptionE = (vcpu: KvmVcpu, vector: number, errorCode: number): void =>
  kvmMultipleException(vcpu, vector, errorCode, undefined, false);
export const kvmQueueExceptionP = (vcpu: KvmVcpu, vector: number, payload: bigint): void =>
  kvmMultipleException(vcpu, vector, undefined, payload, false);
export const kvmRequeueException = (vcpu: KvmVcpu, vector: number, errorCode: number | undefined): void =>
  kvmMultipleException(vcpu, vector, errorCode, undefined, true);

/** kvm_inject_page_fault */
export function kvmInjectPageFault(vcpu: KvmVcpu, address: bigint, errorCode: number): void {
  vcpu.stat.pf_guest++;
  kvmMultipleException(vcpu, ExcVector.PF, errorCode, address, false);
}

/** kvm_inject_gp */
export const kvmInjectGp = (vcpu: KvmVcpu, errorCode: number): void =>
  kvmQueueExceptionE(vcpu, ExcVector.GP, errorCode);

/** kvm_complete_insn_gp: error gives #GP(0), success skips the instruction. */
export function kvmCompleteInsnGp(vcpu: KvmVcpu, failed: boolean | number): number {
  if (failed) {
    kvmInjectGp(vcpu, 0);
    return 1;
  }
  return kvmSkipEmulatedInstruction(vcpu);
}

/**
 * kvm_skip_emulated_instruction: KVM has done the instruction's work. It counts as retired, and the single-step trap behind
 * it is raised.
 */
export function kvmSkipEmulatedInstruction(vcpu: KvmVcpu): number {
  const rflags = kvmGetRflags(vcpu);
  if (!vcpu.module.ops.skipEmulatedInstruction(vcpu)) return 0;
  return rflags & 0x100n ? kvmVcpuDoSinglestep(vcpu) : 1;
}

/** kvm_vcpu_do_singlestep */
export function kvmVcpuDoSinglestep(vcpu: KvmVcpu): number {
  const DR6_BS = 1n << 14n;
  if (vcpu.arch.guestDebug & KvmGuestdbg.SINGLESTEP) {
    vcpu.run.exit = {
      exit_reason: KvmExit.DEBUG,
      debug: { exception: ExcVector.DB, pc: kvmGetLinearRip(vcpu), dr6: DR6_BS | DR6_ACTIVE_LOW, dr7: vcpu.arch.dr7 },
    };
    return 0;
  }
  kvmQueueExceptionP(vcpu, ExcVector.DB, DR6_BS);
  return 1;
}

// --- NMI ------------------------------------------------------------------------------------------------------------

/** kvm_inject_nmi: an NMI arrives from anywhere. */
export function kvmInjectNmi(vcpu: KvmVcpu): void {
  vcpu.arch.nmiQueued++;
  kvmMakeRequest(KvmReq.NMI, vcpu);
}

/** process_nmi: at most two NMIs are kept, one if NMIs are blocked (one in service and one latched). */
export function processNmi(vcpu: KvmVcpu): void {
  const { arch } = vcpu;
  let limit = 2;
  if (vcpu.module.ops.getNmiMask(vcpu) || arch.nmiInjected) limit = 1;
  arch.nmiPending = Math.min(arch.nmiPending + arch.nmiQueued, limit);
  arch.nmiQueued = 0;
  if (arch.nmiPending) kvmMakeRequest(KvmReq.EVENT, vcpu);
}

// --- injection --------------------------------------------------------------------------------------------------------

/** kvm_inject_exception: real mode pushes no error codes. */
function kvmInjectException(vcpu: KvmVcpu): void {
  const ex = vcpu.arch.exception;
  if (ex.hasErrorCode && !(kvmReadCr0(vcpu) & Cr0.PE)) ex.hasErrorCode = false;
  vcpu.module.ops.injectException(vcpu);
}

/** -EBUSY of kvmCheckAndInjectEvents: enter, deliver what is injected, and exit at once for the rest. */
export const NEEDS_IMMEDIATE_EXIT = -16;

/**
 * kvm_check_and_inject_events: first what was being delivered when the guest exited, then pending exceptions, then NMIs,
 * then interrupts; a window is asked for where an event must wait for the guest.
 * @returns 0, or NEEDS_IMMEDIATE_EXIT when an event waits only for the one that is injected now
 */
export function kvmCheckAndInjectEvents(vcpu: KvmVcpu): number {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  // Side effects of an injected event have happened already, so it comes before anything new.
  if (arch.exception.injected) kvmInjectException(vcpu);
  else if (!arch.exception.pending) {
    if (arch.nmiInjected) ops.injectNmi(vcpu);
    else if (arch.interrupt.injected) ops.injectIrq(vcpu);
  }

  let canInject = !kvmEventNeedsReinjection(vcpu);

  const ex = arch.exception;
  if (ex.pending) {
    // Faults other than #DB push RFLAGS with RF set (SDM 3B 18.3.1.1).
    if (isFault(ex.vector)) ops.setRflags(vcpu, kvmGetRflags(vcpu) | 0x10000n);
    kvmDeliverExceptionPayload(vcpu, ex);
    if (ex.vector === ExcVector.DB && arch.dr7 & 0x2000n) {
      // Delivering #DB clears DR7.GD (SDM 3B 18.2.4).
      arch.dr7 &= ~0x2000n;
      kvmUpdateDr7(vcpu);
    }
    kvmInjectException(vcpu);
    ex.pending = false;
    ex.injected = true;
    canInject = false;
  }

  if (arch.guestDebug & KvmGuestdbg.BLOCKIRQ) return 0;

  if (arch.nmiPending) {
    if (!canInject) return NEEDS_IMMEDIATE_EXIT;
    if (ops.nmiAllowed(vcpu)) {
      arch.nmiPending--;
      arch.nmiInjected = true;
      ops.injectNmi(vcpu);
      canInject = false;
    }
    if (arch.nmiPending) ops.enableNmiWindow(vcpu);
  }

  if (kvmCpuHasInjectableIntr(vcpu)) {
    if (!canInject) return NEEDS_IMMEDIATE_EXIT;
    if (ops.interruptAllowed(vcpu)) {
      const irq = kvmCpuGetInterrupt(vcpu);
      if (irq >= 0) {
        kvmQueueInterrupt(vcpu, irq, false);
        ops.injectIrq(vcpu);
      }
    }
    if (kvmCpuHasInjectableIntr(vcpu)) ops.enableIrqWindow(vcpu);
  }
  return 0;
}
