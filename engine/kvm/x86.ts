/**
 * The run loop (arch/x86/kvm/x86.c): kvm_arch_vcpu_ioctl_run > vcpu_run > vcpu_enter_guest.
 *
 * Functions return 1 to go on, 0 to return to userspace with kvm_run filled in, a negative errno, or KVM_RUN_YIELD when the
 * thread gives up its processor. After a yield the same functions are called again and take up where they were
 * (`state.suspended`).
 */
import { Off } from "../cpu/state";
import { TraceKind } from "../trace";
import { kvmDirtyRingCheckRequest } from "./dirtyRing";
import { completeUserspaceIo } from "./emulator";
import { kvmHandleSignalExit, xferToGuestModeHandleWork, xferToGuestModeWorkPending } from "./entry";
import { Errno, KvmError } from "./errno";
import { HostVector, localIrqEnable } from "./hostKernel";
import { kvmCpuHasExtint, lapicInKernel, picInKernel } from "./irq";
import { kvmGetRflags } from "./kvmCacheRegs";
import { kvmSchedIn, kvmSchedOut, kvmVcpuBlock, kvmVcpuHalt, vcpuLoad, vcpuPut } from "./kvmMain";
import {
  kvmApicAcceptEvents,
  kvmGetApicBase,
  kvmLapicEnabled,
  kvmLapicSyncFromVapic,
  kvmLapicSyncToVapic,
  kvmWaitLapicExpire,
} from "./lapic";
import { kvmMmuFreeObsoleteRoots, kvmMmuLoadPgd, kvmMmuReload, kvmMmuSyncRoots } from "./mmu/mmu";
import { kvmGuestTimeUpdate, kvmReadL1Tsc, kvmUpdateMasterclock, recordStealTime } from "./pvclock";
import { KvmReq, kvmCheckRequest, kvmClearRequest, kvmMakeRequest, kvmRequestPending } from "./requests";
import { type KvmVcpu, VcpuMode } from "./types";
import { KVM_SYNC_X86, KVM_SYNC_X86_VALID_FIELDS, KvmExit, KvmMpState, kvmExitName } from "./uapi";
import { KvmDebugreg, kvmUpdateDr7, kvmUpdateDr0123 } from "./x86Debug";
import { kvmCheckAndInjectEvents, kvmEventNeedsReinjection, NEEDS_IMMEDIATE_EXIT, processNmi } from "./x86Events";
import { kvmArchVcpuRunnable, kvmVcpuRunning } from "./x86Halt";
import { Fastpath, KVM_RUN_YIELD } from "./x86Ops";
import {
  kvmArchVcpuIoctlGetRegs,
  kvmArchVcpuIoctlGetSregs,
  kvmArchVcpuIoctlSetRegs,
  kvmArchVcpuIoctlSetSregs,
  kvmGetCr8,
  kvmSetCr8,
  kvmVcpuIoctlX86GetVcpuEvents,
  kvmVcpuIoctlX86SetVcpuEvents,
} from "./x86Regs";
import { kvmLoadGuestFpu, kvmPutGuestFpu } from "./x86Vcpu";

// --- interrupts injected by userspace -----------------------------------------------------------------------------------

/** dm_request_for_irq_injection: userspace asked to be told when it can inject. */
const dmRequestForIrqInjection = (vcpu: KvmVcpu): boolean =>
  vcpu.run.request_interrupt_window !== 0 && !picInKernel(vcpu.kvm);

/** kvm_cpu_accept_dm_intr */
const kvmCpuAcceptDmIntr = (vcpu: KvmVcpu): boolean =>
  !(lapicInKernel(vcpu) && !(vcpu.apic?.acceptsPicIntr() ?? false)) && !kvmCpuHasExtint(vcpu);

/** kvm_vcpu_ready_for_interrupt_injection */
function kvmVcpuReadyForInterruptInjection(vcpu: KvmVcpu): boolean {
  return (
    vcpu.module.ops.interruptAllowed(vcpu) &&
    kvmCpuAcceptDmIntr(vcpu) &&
    !kvmEventNeedsReinjection(vcpu) &&
    !vcpu.arch.exception.pending
  );
}

/** post_kvm_run_save: the common fields of kvm_run. */
function postKvmRunSave(vcpu: KvmVcpu): void {
  const { run } = vcpu;
  run.if_flag = kvmGetRflags(vcpu) & 0x200n ? 1 : 0;
  run.flags = 0;
  run.cr8 = kvmGetCr8(vcpu);
  run.apic_base = kvmGetApicBase(vcpu);
  run.ready_for_interrupt_injection = picInKernel(vcpu.kvm) || kvmVcpuReadyForInterruptInjection(vcpu) ? 1 : 0;
}

/** update_cr8_intercept */
function updateCr8Intercept(vcpu: KvmVcpu): void {
  const { apic } = vcpu;
  if (!apic) return;
  const highest = apic.findHighestIrr();
  vcpu.module.ops.updateCr8Intercept(vcpu, apic.chip.readCr8(), highest < 0 ? -1 : highest >> 4);
}

// --- vcpu_enter_guest ---------------------------------------------------------------------------------------------------

/** The requests of vcpu_enter_guest, in its order. @returns 1 to go on, otherwise vcpu_enter_guest's result */
function serviceRequests(vcpu: KvmVcpu): number {
  const { run, arch } = vcpu;
  const { ops } = vcpu.module;
  if (kvmCheckRequest(KvmReq.VM_DEAD, vcpu)) return -Errno.EIO;
  if (kvmCheckRequest(KvmReq.MMU_FREE_OBSOLETE_ROOTS, vcpu)) kvmMmuFreeObsoleteRoots(vcpu);
  // Timers of the chips follow the clock, not a processor: nothing moves.
  kvmClearRequest(KvmReq.MIGRATE_TIMER, vcpu);
  if (kvmCheckRequest(KvmReq.MASTERCLOCK_UPDATE, vcpu)) kvmUpdateMasterclock(vcpu.kvm);
  if (kvmCheckRequest(KvmReq.GLOBAL_CLOCK_UPDATE, vcpu)) {
    for (const other of vcpu.kvm.vcpus) kvmMakeRequest(KvmReq.CLOCK_UPDATE, other);
  }
  if (kvmCheckRequest(KvmReq.CLOCK_UPDATE, vcpu)) {
    const r = kvmGuestTimeUpdate(vcpu);
    if (r !== 0) return r;
  }
  if (kvmCheckRequest(KvmReq.MMU_SYNC, vcpu)) kvmMmuSyncRoots(vcpu);
  if (kvmCheckRequest(KvmReq.LOAD_MMU_PGD, vcpu)) kvmMmuLoadPgd(vcpu);
  if (kvmCheckRequest(KvmReq.TLB_FLUSH, vcpu)) {
    vcpu.stat.tlb_flush++;
    ops.flushTlbAll(vcpu);
    kvmClearRequest(KvmReq.TLB_FLUSH_CURRENT, vcpu);
  }
  kvmServiceLocalTlbFlushRequests(vcpu);
  if (kvmCheckRequest(KvmReq.REPORT_TPR_ACCESS, vcpu)) {
    run.exit = {
      exit_reason: KvmExit.TPR_ACCESS,
      tpr_access: { rip: arch.tprAccess.rip, is_write: arch.tprAccess.write ? 1 : 0 },
    };
    return 0;
  }
  if (kvmCheckRequest(KvmReq.TRIPLE_FAULT, vcpu)) {
    run.exit = { exit_reason: KvmExit.SHUTDOWN };
    vcpu.state.mmioNeeded = false;
    return 0;
  }
  if (kvmCheckRequest(KvmReq.STEAL_UPDATE, vcpu)) recordStealTime(vcpu);
  if (kvmCheckRequest(KvmReq.NMI, vcpu)) processNmi(vcpu);
  if (kvmCheckRequest(KvmReq.IOAPIC_EOI_EXIT, vcpu)) {
    run.exit = { exit_reason: KvmExit.IOAPIC_EOI, eoi: { vector: arch.pendingIoapicEoi } };
    return 0;
  }
  kvmClearRequest(KvmReq.SCAN_IOAPIC, vcpu);
  kvmClearRequest(KvmReq.LOAD_EOI_EXITMAP, vcpu);
  if (kvmCheckRequest(KvmReq.APIC_PAGE_RELOAD, vcpu)) ops.setApicAccessPageAddr(vcpu);
  if (kvmCheckRequest(KvmReq.APICV_UPDATE, vcpu)) ops.setVirtualApicMode(vcpu);
  if (kvmCheckRequest(KvmReq.UPDATE_CPU_DIRTY_LOGGING, vcpu)) ops.updateCpuDirtyLogging(vcpu);
  if (kvmCheckRequest(KvmReq.MSR_FILTER_CHANGED, vcpu)) ops.msrFilterChanged(vcpu);
  if (kvmDirtyRingCheckRequest(vcpu)) return 0;
  return 1;
}

/** kvm_service_local_tlb_flush_requests */
function kvmServiceLocalTlbFlushRequests(vcpu: KvmVcpu): void {
  if (kvmCheckRequest(KvmReq.TLB_FLUSH_CURRENT, vcpu)) {
    vcpu.stat.tlb_flush++;
    vcpu.module.ops.flushTlbCurrent(vcpu);
  }
  if (kvmCheckRequest(KvmReq.TLB_FLUSH_GUEST, vcpu)) {
    vcpu.stat.tlb_flush++;
    kvmMmuSyncRoots(vcpu);
    vcpu.module.ops.flushTlbGuest(vcpu);
  }
}

/** kvm_vcpu_exit_request: something came up after the requests were served. */
const kvmVcpuExitRequest = (vcpu: KvmVcpu): boolean =>
  vcpu.state.mode === VcpuMode.EXITING_GUEST_MODE || kvmRequestPending(vcpu) || xferToGuestModeWorkPending(vcpu);

/** Debug registers of the guest go into the processor. */
function loadGuestDebugRegs(vcpu: KvmVcpu): void {
  const { arch } = vcpu;
  const state = vcpu.cpu?.state;
  if (!arch.switchDbRegs || !state) return;
  for (let i = 0; i < 4; i++) state.setU64(Off.DR0 + i * 8, arch.effDb[i]);
}

/** vcpu_enter_guest: requests, events, entry, exit, and the exit's handler. */
function vcpuEnterGuest(vcpu: KvmVcpu): number {
  const { arch } = vcpu;
  const { ops, host } = vcpu.module;
  if (vcpu.state.suspended !== "guest") {
    const reqIntWin = dmRequestForIrqInjection(vcpu) && kvmCpuAcceptDmIntr(vcpu);
    let reqImmediateExit = false;
    if (kvmRequestPending(vcpu)) {
      const r = serviceRequests(vcpu);
      if (r !== 1) return r;
    }
    if (kvmCheckRequest(KvmReq.EVENT, vcpu) || reqIntWin) {
      vcpu.stat.req_event++;
      const r = kvmApicAcceptEvents(vcpu);
      if (r < 0) return 0;
      if (arch.mpState === KvmMpState.INIT_RECEIVED) return 1;
      reqImmediateExit = kvmCheckAndInjectEvents(vcpu) === NEEDS_IMMEDIATE_EXIT;
      if (reqIntWin) ops.enableIrqWindow(vcpu);
      if (kvmLapicEnabled(vcpu)) {
        updateCr8Intercept(vcpu);
        kvmLapicSyncToVapic(vcpu);
      }
    }
    const r = kvmMmuReload(vcpu);
    if (r !== 0) {
      cancelInjection(vcpu, reqImmediateExit);
      return r;
    }
    ops.prepareSwitchToGuest(vcpu);
    // The last moment with interrupts open: expired timers run now rather than by an exit.
    localIrqEnable(host.clock, host.interrupts[vcpu.state.cpu]);
    vcpu.state.mode = VcpuMode.IN_GUEST_MODE;
    if (kvmVcpuExitRequest(vcpu)) {
      vcpu.state.mode = VcpuMode.OUTSIDE_GUEST_MODE;
      cancelInjection(vcpu, reqImmediateExit);
      return 1;
    }
    if (reqImmediateExit) {
      kvmMakeRequest(KvmReq.EVENT, vcpu);
      requestImmediateExit(vcpu);
    }
    loadGuestDebugRegs(vcpu);
    kvmWaitLapicExpire(vcpu);
  }

  const fastpath = ops.vcpuRun(vcpu);
  if (fastpath === Fastpath.YIELD) {
    vcpu.state.suspended = "guest";
    return KVM_RUN_YIELD;
  }
  vcpu.state.suspended = null;

  if (arch.switchDbRegs & KvmDebugreg.WONT_EXIT) {
    ops.syncDirtyDebugRegs(vcpu);
    kvmUpdateDr0123(vcpu);
    kvmUpdateDr7(vcpu);
  }
  arch.lastVmentryCpu = vcpu.state.cpu;
  arch.lastGuestTsc = kvmReadL1Tsc(vcpu);
  vcpu.state.mode = VcpuMode.OUTSIDE_GUEST_MODE;
  ops.handleExitIrqoff(vcpu);
  vcpu.stat.exits++;
  kvmLapicSyncFromVapic(vcpu);
  if (fastpath === Fastpath.EXIT_USERSPACE) return 0;
  return ops.handleExit(vcpu, fastpath);
}

function cancelInjection(vcpu: KvmVcpu, reqImmediateExit: boolean): void {
  if (reqImmediateExit) kvmMakeRequest(KvmReq.EVENT, vcpu);
  vcpu.module.ops.cancelInjection(vcpu);
}

/** __kvm_request_immediate_exit: an interrupt to oneself, which the entry delivers as an exit. */
function requestImmediateExit(vcpu: KvmVcpu): void {
  const { host } = vcpu.module;
  host.interrupts[vcpu.state.cpu].raise(HostVector.RESCHEDULE);
  host.processors[vcpu.state.cpu].attention();
}

/** Entries without a retired instruction after which KVM_RUN lets its caller look about. */
const FRUITLESS_ITERATIONS = 10_000;

// --- vcpu_run -----------------------------------------------------------------------------------------------------------

/** vcpu_block: the vCPU is halted or waits for INIT and SIPI. */
function vcpuBlock(vcpu: KvmVcpu): number {
  const { arch } = vcpu;
  if (!kvmArchVcpuRunnable(vcpu) || vcpu.state.suspended === "block") {
    const r = arch.mpState === KvmMpState.HALTED ? kvmVcpuHalt(vcpu) : kvmVcpuBlock(vcpu);
    if (r === KVM_RUN_YIELD) return r;
    // Not runnable: a signal or another host event is to be handled first.
    if (!kvmArchVcpuRunnable(vcpu)) return 1;
  }
  if (kvmApicAcceptEvents(vcpu) < 0) return 0;
  switch (arch.mpState) {
    case KvmMpState.HALTED:
      arch.pvUnhalted = false;
      arch.mpState = KvmMpState.RUNNABLE;
      arch.apfHalted = false;
      break;
    case KvmMpState.RUNNABLE:
      arch.apfHalted = false;
      break;
  }
  return 1;
}

/** vcpu_run: until something needs userspace, a signal comes, or the thread yields. */
function vcpuRun(vcpu: KvmVcpu): number {
  if (vcpu.state.suspended === null) {
    vcpu.run.exit = { exit_reason: KvmExit.UNKNOWN, hw: { hardware_exit_reason: 0n } };
  }
  let resched = vcpu.state.suspended === "resched";
  const { clock } = vcpu.module.host;
  let before = clock.instructions;
  let fruitless = 0;
  for (;;) {
    if (!resched) {
      vcpu.arch.atInstructionBoundary = false;
      const running = vcpu.state.suspended === "guest" || (vcpu.state.suspended === null && kvmVcpuRunning(vcpu));
      const r = running ? vcpuEnterGuest(vcpu) : vcpuBlock(vcpu);
      if (r <= 0) return r;
      kvmClearRequest(KvmReq.UNBLOCK, vcpu);
      if (dmRequestForIrqInjection(vcpu) && kvmVcpuReadyForInterruptInjection(vcpu)) {
        vcpu.run.exit = { exit_reason: KvmExit.IRQ_WINDOW_OPEN };
        vcpu.stat.request_irq_exits++;
        return 0;
      }
    }
    resched = false;
    vcpu.state.suspended = null;
    if (clock.instructions !== before) {
      before = clock.instructions;
      fruitless = 0;
    } else if (++fruitless > FRUITLESS_ITERATIONS) {
      // The guest goes round in exits without an instruction done: the thread's tick would come, virtual time does not.
      vcpu.state.thread.needResched = true;
    }
    if (xferToGuestModeWorkPending(vcpu)) {
      const r = xferToGuestModeHandleWork(vcpu);
      if (r !== 0) return r;
    }
  }
}

// --- kvm_arch_vcpu_ioctl_run --------------------------------------------------------------------------------------------

/** sync_regs: register sets that travel in kvm_run. @returns 0, or a negative errno where one is not legal */
function syncRegs(vcpu: KvmVcpu): number {
  try {
    loadDirtyRegs(vcpu);
    return 0;
  } catch (error) {
    if (error instanceof KvmError) return -error.number;
    throw error;
  }
}

function loadDirtyRegs(vcpu: KvmVcpu): void {
  const { run } = vcpu;
  const dirty = Number(run.kvm_dirty_regs);
  if (dirty & KVM_SYNC_X86.REGS && run.s.regs) kvmArchVcpuIoctlSetRegs(vcpu, run.s.regs);
  if (dirty & KVM_SYNC_X86.SREGS && run.s.sregs) kvmArchVcpuIoctlSetSregs(vcpu, run.s.sregs);
  if (dirty & KVM_SYNC_X86.EVENTS && run.s.events) kvmVcpuIoctlX86SetVcpuEvents(vcpu, run.s.events);
  run.kvm_dirty_regs = 0n;
}

/** store_regs */
function storeRegs(vcpu: KvmVcpu): void {
  const { run } = vcpu;
  const valid = Number(run.kvm_valid_regs);
  if (valid & KVM_SYNC_X86.REGS) run.s.regs = kvmArchVcpuIoctlGetRegs(vcpu);
  if (valid & KVM_SYNC_X86.SREGS) run.s.sregs = kvmArchVcpuIoctlGetSregs(vcpu);
  if (valid & KVM_SYNC_X86.EVENTS) run.s.events = kvmVcpuIoctlX86GetVcpuEvents(vcpu);
}

/** kvm_arch_vcpu_ioctl_run. @returns 0, a negative errno, or KVM_RUN_YIELD */
export function kvmArchVcpuIoctlRun(vcpu: KvmVcpu): number {
  if (vcpu.state.suspended !== null) {
    kvmSchedIn(vcpu, vcpu.state.thread.cpu);
    return endRun(vcpu, vcpu.state.suspended === "block-uninitialized" ? runUninitialized(vcpu) : vcpuRun(vcpu));
  }
  vcpuLoad(vcpu);
  vcpu.run.flags = 0;
  kvmLoadGuestFpu(vcpu);
  return endRun(vcpu, startRun(vcpu));
}

/** Back to userspace, or off the processor while the thread sleeps or another one runs (the preempt notifier). */
function endRun(vcpu: KvmVcpu, r: number): number {
  if (r !== KVM_RUN_YIELD) return finishRun(vcpu, r);
  kvmSchedOut(vcpu);
  return r;
}

/** A vCPU that waits for its SIPI: nothing runs until it comes. */
function runUninitialized(vcpu: KvmVcpu): number {
  const { run, state } = vcpu;
  if (state.suspended === null && run.immediate_exit) return -Errno.EINTR;
  const r = kvmVcpuBlock(vcpu);
  if (r === KVM_RUN_YIELD) {
    state.suspended = "block-uninitialized";
    return r;
  }
  state.suspended = null;
  if (kvmApicAcceptEvents(vcpu) < 0) return 0;
  if (state.thread.signalPending) {
    kvmHandleSignalExit(vcpu);
    return -Errno.EINTR;
  }
  return -Errno.EAGAIN;
}

function startRun(vcpu: KvmVcpu): number {
  const { run, arch } = vcpu;
  if (arch.mpState === KvmMpState.UNINITIALIZED) return runUninitialized(vcpu);
  const unknown = ~BigInt(KVM_SYNC_X86_VALID_FIELDS);
  if (run.kvm_valid_regs & unknown || run.kvm_dirty_regs & unknown) return -Errno.EINVAL;
  if (run.kvm_dirty_regs) {
    const r = syncRegs(vcpu);
    if (r !== 0) return r;
  }
  // CR8 travels in kvm_run when the local APIC is in userspace.
  if (!lapicInKernel(vcpu) && kvmSetCr8(vcpu, run.cr8)) return -Errno.EINVAL;
  if (arch.completeUserspaceIo) {
    const r = completeUserspaceIo(vcpu);
    if (r <= 0) return r;
  }
  if (run.immediate_exit) return -Errno.EINTR;
  const r = vcpu.module.ops.vcpuPreRun(vcpu);
  if (r <= 0) return r;
  return vcpuRun(vcpu);
}

function finishRun(vcpu: KvmVcpu, r: number): number {
  const { run } = vcpu;
  vcpu.state.suspended = null;
  kvmPutGuestFpu(vcpu);
  if (run.kvm_valid_regs) storeRegs(vcpu);
  postKvmRunSave(vcpu);
  if (r === 0 || r === -Errno.EINTR) traceUserspaceExit(vcpu, r);
  vcpuPut(vcpu);
  return r;
}

function traceUserspaceExit(vcpu: KvmVcpu, r: number): void {
  const reason = vcpu.run.exit.exit_reason;
  if (r === 0) {
    const counts = vcpu.state.userspaceExits;
    counts[reason] = (counts[reason] ?? 0) + 1;
  }
  const { trace } = vcpu.module.host;
  if (!(trace.armed & TraceKind.UserspaceExit)) return;
  const { exit } = vcpu.run;
  const detail: Record<string, bigint | number | string | boolean> = { exitReason: kvmExitName(reason) };
  let text = r === 0 ? kvmExitName(reason) : "KVM_RUN interrupted (EINTR)";
  if (exit.exit_reason === KvmExit.IO) {
    const { direction, port, size, count } = exit.io;
    text += ` ${direction === 0 ? "in" : "out"} port 0x${port.toString(16)} size ${size} count ${count}`;
    Object.assign(detail, { port: BigInt(port), size: BigInt(size), count: BigInt(count), input: direction === 0 });
  } else if (exit.exit_reason === KvmExit.MMIO) {
    const { phys_addr, len, is_write } = exit.mmio;
    text += ` ${is_write ? "write" : "read"} 0x${phys_addr.toString(16)} len ${len}`;
    Object.assign(detail, { address: BigInt(phys_addr), size: BigInt(len), write: is_write !== 0 });
  }
  trace.hit({ kind: TraceKind.UserspaceExit, vcpu: vcpu.state.vcpuIdx, text, detail });
}
