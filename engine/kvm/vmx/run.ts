/**
 * Entering the guest and what follows an exit at once (arch/x86/kvm/vmx/vmx.c, vmenter.S): vmx_vcpu_run, event injection,
 * windows, and the recovery of events whose delivery was interrupted.
 */
import { RunExit } from "../../cpu/cpu";
import { Off } from "../../cpu/state";
import { CpuBased } from "../../cpu/vmx/controls";
import { ENTRY_FAILURE, ExitReason } from "../../cpu/vmx/exit-reasons";
import { Field } from "../../cpu/vmx/fields";
import { ApicReg } from "../../devices/local-apic";
import { EmulType } from "../emulateTypes";
import { kvmEmulateInstruction } from "../emulator";
import { KvmBug } from "../errno";
import { HostVector, hostInterrupt } from "../hostKernel";
import { is64BitMode, kvmRegisterIsDirty, kvmRipRead, kvmRipWrite } from "../kvmCacheRegs";
import { KvmReq, kvmMakeRequest } from "../requests";
import { type KvmVcpu, VcpuReg } from "../types";
import { KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, KvmGuestdbg } from "../uapi";
import { KvmDebugreg } from "../x86Debug";
import {
  ExcVector,
  kvmClearExceptionQueue,
  kvmClearInterruptQueue,
  kvmDeliverExceptionPayload,
  kvmQueueInterrupt,
  kvmRequeueException,
} from "../x86Events";
import { Fastpath } from "../x86Ops";
import { apicvEnter, apicvExit } from "./apicv";
import { kvmVcpuApicvActive } from "./apicvState";
import { vmxUpdateHvTimer } from "./hvTimer";
import { kvmInjectRealmodeInterrupt } from "./rmode";
import {
  controlsSetBit,
  loadedCpu,
  vmcsClearBits,
  vmcsRead,
  vmcsRead32,
  vmcsSetBits,
  vmcsWrite,
  vmcsWrite32,
} from "./vmcs";
import { GuestIntrState, vmxGetRflags } from "./vmx";

/** Fields of VM-entry, VM-exit and IDT-vectoring information (SDM 3C 25.8.3). */
export const IntrInfo = {
  VECTOR: 0xff,
  TYPE: 0x700,
  DELIVER_CODE: 0x800,
  UNBLOCK_NMI: 0x1000,
  VALID: 0x80000000,
  EXT_INTR: 0 << 8,
  NMI_INTR: 2 << 8,
  HARD_EXCEPTION: 3 << 8,
  SOFT_INTR: 4 << 8,
  PRIV_SW_EXCEPTION: 5 << 8,
  SOFT_EXCEPTION: 6 << 8,
} as const;
const isValid = (info: number): boolean => (info & IntrInfo.VALID) !== 0;

/** Registers read from the VMCS only when somebody asks (VMX_REGS_LAZY_LOAD_SET). */
const VMX_REGS_LAZY_LOAD_SET =
  (1 << VcpuReg.RIP) |
  (1 << VcpuReg.RSP) |
  (1 << VcpuReg.RFLAGS) |
  (1 << VcpuReg.PDPTR) |
  (1 << VcpuReg.SEGMENTS) |
  (1 << VcpuReg.CR0) |
  (1 << VcpuReg.CR3) |
  (1 << VcpuReg.CR4) |
  (1 << VcpuReg.EXIT_INFO_1) |
  (1 << VcpuReg.EXIT_INFO_2);

/** Exit reason vmx_vcpu_run leaves when VMLAUNCH or VMRESUME itself failed. */
const EXIT_REASON_VMFAIL = 0xdead;

// --- entering -----------------------------------------------------------------------------------------------------------

/** Fifteen general registers go between vcpu->arch.regs and the processor; RSP lies in the VMCS. */
function loadGuestRegs(vcpu: KvmVcpu): void {
  const { activeGprs } = vcpu.module;
  const { regs } = vcpu.arch;
  for (let i = 0; i < 16; i++) activeGprs[i] = regs[i];
}

function saveGuestRegs(vcpu: KvmVcpu): void {
  const { activeGprs } = vcpu.module;
  const { regs } = vcpu.arch;
  for (let i = 0; i < 16; i++) if (i !== VcpuReg.RSP) regs[i] = activeGprs[i];
}

/** With the TPR shadow the guest's TPR lies in the virtual-APIC page while it runs; with APICv all of the local APIC. */
function syncTprToVirtualApic(vcpu: KvmVcpu): void {
  if (kvmVcpuApicvActive(vcpu)) {
    apicvEnter(vcpu);
    return;
  }
  if (!vcpu.apic || !(vcpu.vmx.controls.exec & CpuBased.TPR_SHADOW)) return;
  const { memory } = vcpu.module.host;
  memory.u8[memory.hostOffset(vcpu.vmx.virtualApicPage) + ApicReg.TPR] = vcpu.apic.tpr;
}

function syncTprFromVirtualApic(vcpu: KvmVcpu): void {
  if (kvmVcpuApicvActive(vcpu)) {
    apicvExit(vcpu);
    return;
  }
  if (!vcpu.apic || !(vcpu.vmx.controls.exec & CpuBased.TPR_SHADOW)) return;
  const { memory } = vcpu.module.host;
  const tpr = memory.u8[memory.hostOffset(vcpu.vmx.virtualApicPage) + ApicReg.TPR];
  if (tpr !== vcpu.apic.tpr) vcpu.apic.tpr = tpr;
}

/**
 * vmx_vcpu_run. Comes back after a VM exit, or with Fastpath.YIELD when the time slice is over: then the guest stays
 * entered, and the next call goes on inside it.
 */
export function vmxVcpuRun(vcpu: KvmVcpu): Fastpath {
  const { vmx, arch } = vcpu;
  if (vmx.emulationRequired && vcpu.state.suspended !== "guest") {
    // VM entry would refuse this state: the emulator takes over (vmx_handle_exit).
    vmx.fail = false;
    vmx.exitReason = (ENTRY_FAILURE | ExitReason.INVALID_STATE) >>> 0;
    vmx.exitQualification = 0n;
    vmx.exitIntrInfo = 0;
    arch.regsAvail |= (1 << VcpuReg.EXIT_INFO_1) | (1 << VcpuReg.EXIT_INFO_2);
    return Fastpath.NONE;
  }
  if (vcpu.state.suspended !== "guest") {
    if (vmx.pleWindowDirty) {
      vmx.pleWindowDirty = false;
      vmcsWrite32(vcpu, Field.PLE_WINDOW, vmx.pleWindow);
    }
    if (kvmRegisterIsDirty(vcpu, VcpuReg.RSP)) vmcsWrite(vcpu, Field.GUEST_RSP, arch.regs[VcpuReg.RSP]);
    if (kvmRegisterIsDirty(vcpu, VcpuReg.RIP)) vmcsWrite(vcpu, Field.GUEST_RIP, arch.regs[VcpuReg.RIP]);
    arch.regsDirty = 0;
    if (arch.switchDbRegs & KvmDebugreg.WONT_EXIT) loadedCpu(vcpu).state.setU64(Off.DR6, arch.dr6);
    if (arch.guestDebug & KvmGuestdbg.SINGLESTEP) vmxSetInterruptShadow(vcpu, 0);
    vmxUpdateHvTimer(vcpu);
    kvmLoadGuestXsaveState(vcpu);
    syncTprToVirtualApic(vcpu);
  }

  if (!vmxVcpuEnterExit(vcpu)) return Fastpath.YIELD;

  syncTprFromVirtualApic(vcpu);
  kvmLoadHostXsaveState(vcpu);
  arch.regsAvail &= ~VMX_REGS_LAZY_LOAD_SET;
  vmx.csAr = -1;
  vmx.idtVectoringInfo = 0;
  if (vmx.fail) {
    vmx.exitReason = EXIT_REASON_VMFAIL;
    return Fastpath.NONE;
  }
  vmx.exitReason = vmcsRead32(vcpu, Field.VM_EXIT_REASON);
  const failedVmentry = (vmx.exitReason & ENTRY_FAILURE) !== 0;
  countExit(vcpu);
  if (failedVmentry) return Fastpath.NONE;
  vmx.idtVectoringInfo = vmcsRead32(vcpu, Field.IDT_VECTORING_INFO_FIELD);
  vmx.launched = true;
  vmxRecoverNmiBlocking(vcpu);
  vmxCompleteInterrupts(vcpu);
  return Fastpath.NONE;
}

function countExit(vcpu: KvmVcpu): void {
  const basic = vcpu.vmx.exitReason & 0xffff;
  const counts = vcpu.state.exitsByReason;
  counts[basic] = (counts[basic] ?? 0) + 1;
}

/** vmx_vcpu_enter_exit. @returns false when the slice ended with the guest entered */
function vmxVcpuEnterExit(vcpu: KvmVcpu): boolean {
  const { state } = loadedCpu(vcpu);
  if (vcpu.state.suspended !== "guest") {
    state.setU64(Off.CR2, vcpu.arch.cr2);
    vcpu.vmx.fail = !vmEnter(vcpu);
    if (vcpu.vmx.fail) return true;
  }
  if (loadedCpu(vcpu).guest !== null && !runGuest(vcpu)) return false;
  saveGuestRegs(vcpu);
  vcpu.arch.cr2 = state.u64(Off.CR2);
  return true;
}

/** The way in of __vmx_vcpu_run: VMLAUNCH the first time, VMRESUME from then on. @returns false on VMfail */
function vmEnter(vcpu: KvmVcpu): boolean {
  loadGuestRegs(vcpu);
  return loadedCpu(vcpu).vmx.enter(vcpu.vmx.launched) === 0;
}

/**
 * The guest runs until it exits or the slice ends. A clock event that falls due becomes pending as the host's timer
 * interrupt and makes the guest exit. @returns false at the end of the slice
 */
function runGuest(vcpu: KvmVcpu): boolean {
  const cpu = loadedCpu(vcpu);
  const { clock, interrupts } = vcpu.module.host;
  for (;;) {
    if (clock.nextEventAt <= clock.now) {
      interrupts[cpu.id].raise(HostVector.LOCAL_TIMER);
      cpu.attention();
    }
    const left = vcpu.deadline - clock.instructions;
    // An interrupt that is pending at the very end of the slice is taken in the next one.
    if (left <= 0) return false;
    switch (cpu.run(left)) {
      case RunExit.VM_EXIT:
        return true;
      case RunExit.HALTED:
        // HLT does not exit (KVM_X86_DISABLE_EXITS_HLT): the processor idles in the guest until a host interrupt comes.
        if (interrupts[cpu.id].pending() < 0) {
          vcpu.guestHalted = true;
          return false;
        }
        break;
      case RunExit.SHUTDOWN:
        throw new KvmBug(`physical processor ${cpu.id} shut down in VMX root operation`);
    }
  }
}

/** kvm_load_guest_xsave_state: XCR0 of the guest, if it has switched XSAVE on. */
function kvmLoadGuestXsaveState(vcpu: KvmVcpu): void {
  loadedCpu(vcpu).state.setU64(Off.XCR0, vcpu.arch.xcr0);
}

function kvmLoadHostXsaveState(vcpu: KvmVcpu): void {
  loadedCpu(vcpu).state.setU64(Off.XCR0, 3n);
}

// --- after the exit -----------------------------------------------------------------------------------------------------

/** vmx_get_exit_qual */
export function vmxGetExitQual(vcpu: KvmVcpu): bigint {
  const bit = 1 << VcpuReg.EXIT_INFO_1;
  if (!(vcpu.arch.regsAvail & bit)) {
    vcpu.arch.regsAvail |= bit;
    vcpu.vmx.exitQualification = vmcsRead(vcpu, Field.EXIT_QUALIFICATION);
  }
  return vcpu.vmx.exitQualification;
}

/** vmx_get_intr_info */
export function vmxGetIntrInfo(vcpu: KvmVcpu): number {
  const bit = 1 << VcpuReg.EXIT_INFO_2;
  if (!(vcpu.arch.regsAvail & bit)) {
    vcpu.arch.regsAvail |= bit;
    vcpu.vmx.exitIntrInfo = vmcsRead32(vcpu, Field.VM_EXIT_INTR_INFO);
  }
  return vcpu.vmx.exitIntrInfo;
}

/** vmx_recover_nmi_blocking: an IRET that faulted had already unblocked NMIs; they are blocked again (SDM 3C 28.2.3). */
function vmxRecoverNmiBlocking(vcpu: KvmVcpu): void {
  const { vmx, module } = vcpu;
  if (!module.features.vnmi || vmx.nmiKnownUnmasked) return;
  const info = vmxGetIntrInfo(vcpu);
  const unblocked = (info & IntrInfo.UNBLOCK_NMI) !== 0;
  if (isValid(info) && unblocked && (info & IntrInfo.VECTOR) !== ExcVector.DF && !isValid(vmx.idtVectoringInfo)) {
    vmcsSetBits(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, GuestIntrState.NMI);
  } else {
    vmx.nmiKnownUnmasked = !(vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO) & GuestIntrState.NMI);
  }
}

/** vmx_complete_interrupts: an event whose delivery was cut off by the exit is queued again. */
function vmxCompleteInterrupts(vcpu: KvmVcpu): void {
  completeInterrupts(vcpu, vcpu.vmx.idtVectoringInfo, Field.VM_EXIT_INSTRUCTION_LEN, Field.IDT_VECTORING_ERROR_CODE);
}

/** __vmx_complete_interrupts */
function completeInterrupts(vcpu: KvmVcpu, info: number, lengthField: Field, errorField: Field): void {
  const { arch } = vcpu;
  arch.nmiInjected = false;
  kvmClearExceptionQueue(vcpu);
  kvmClearInterruptQueue(vcpu);
  if (!isValid(info)) return;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  const vector = info & IntrInfo.VECTOR;
  const type = info & IntrInfo.TYPE;
  switch (type) {
    case IntrInfo.NMI_INTR:
      arch.nmiInjected = true;
      // The NMI is delivered again, so it must not find itself blocked (SDM 3C 28.2.4).
      vmxSetNmiMask(vcpu, false);
      break;
    case IntrInfo.SOFT_EXCEPTION:
    case IntrInfo.PRIV_SW_EXCEPTION:
    case IntrInfo.HARD_EXCEPTION:
      if (type !== IntrInfo.HARD_EXCEPTION) arch.eventExitInstLen = vmcsRead32(vcpu, lengthField);
      kvmRequeueException(vcpu, vector, info & IntrInfo.DELIVER_CODE ? vmcsRead32(vcpu, errorField) : undefined);
      break;
    case IntrInfo.SOFT_INTR:
    case IntrInfo.EXT_INTR:
      if (type === IntrInfo.SOFT_INTR) arch.eventExitInstLen = vmcsRead32(vcpu, lengthField);
      kvmQueueInterrupt(vcpu, vector, type === IntrInfo.SOFT_INTR);
      break;
  }
}

/** vmx_cancel_injection: the entry did not happen; what was to be injected is queued again. */
export function vmxCancelInjection(vcpu: KvmVcpu): void {
  completeInterrupts(
    vcpu,
    vmcsRead32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD),
    Field.VM_ENTRY_INSTRUCTION_LEN,
    Field.VM_ENTRY_EXCEPTION_ERROR_CODE,
  );
  vmcsWrite32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD, 0);
}

/** vmx_handle_exit_irqoff: the host takes the interrupt that made the guest exit. */
export function vmxHandleExitIrqoff(vcpu: KvmVcpu): void {
  if (vcpu.vmx.exitReason !== ExitReason.EXTERNAL_INTERRUPT) return;
  handleExternalInterruptIrqoff(vcpu);
}

function handleExternalInterruptIrqoff(vcpu: KvmVcpu): void {
  const info = vmxGetIntrInfo(vcpu);
  if (!isValid(info)) throw new KvmBug(`unexpected VM-exit interrupt info 0x${info.toString(16)}`);
  hostInterrupt(vcpu.module.host.clock, info & IntrInfo.VECTOR);
}

// --- injection ------------------------------------------------------------------------------------------------------

/** vmx_clear_hlt: an injected event ends the HLT activity state. */
function vmxClearHlt(vcpu: KvmVcpu): void {
  if (vcpu.kvm.arch.disabledExits & 2 && vmcsRead32(vcpu, Field.GUEST_ACTIVITY_STATE) === 1) {
    vmcsWrite32(vcpu, Field.GUEST_ACTIVITY_STATE, 0);
  }
}

/** vmx_inject_irq: an interrupt for the next entry. */
export function vmxInjectIrq(vcpu: KvmVcpu): void {
  const { interrupt, eventExitInstLen } = vcpu.arch;
  vcpu.stat.irq_injections++;
  if (vcpu.vmx.rmode.vm86Active) {
    kvmInjectRealmodeInterrupt(vcpu, interrupt.nr, interrupt.soft ? eventExitInstLen : 0);
    return;
  }
  let info = interrupt.nr | IntrInfo.VALID;
  if (interrupt.soft) {
    info |= IntrInfo.SOFT_INTR;
    vmcsWrite32(vcpu, Field.VM_ENTRY_INSTRUCTION_LEN, eventExitInstLen);
  } else {
    info |= IntrInfo.EXT_INTR;
  }
  vmcsWrite32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD, info);
  vmxClearHlt(vcpu);
}

/** vmx_inject_nmi: an NMI for the next entry. */
export function vmxInjectNmi(vcpu: KvmVcpu): void {
  const { vmx, module } = vcpu;
  if (!module.features.vnmi) vmx.softVnmiBlocked = true;
  vcpu.stat.nmi_injections++;
  vmx.nmiKnownUnmasked = false;
  if (vmx.rmode.vm86Active) {
    kvmInjectRealmodeInterrupt(vcpu, 2, 0);
    return;
  }
  vmcsWrite32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD, IntrInfo.NMI_INTR | IntrInfo.VALID | 2);
  vmxClearHlt(vcpu);
}

/** vmx_inject_exception: an exception for the next entry. */
export function vmxInjectException(vcpu: KvmVcpu): void {
  const ex = vcpu.arch.exception;
  let info = ex.vector | IntrInfo.VALID;
  kvmDeliverExceptionPayload(vcpu, ex);
  if (vcpu.vmx.rmode.vm86Active) {
    const soft = ex.vector === ExcVector.BP || ex.vector === ExcVector.OF;
    kvmInjectRealmodeInterrupt(vcpu, ex.vector, soft ? vcpu.arch.eventExitInstLen : 0);
    return;
  }
  if (ex.hasErrorCode) {
    vmcsWrite32(vcpu, Field.VM_ENTRY_EXCEPTION_ERROR_CODE, ex.errorCode & 0xffff);
    info |= IntrInfo.DELIVER_CODE;
  }
  if (ex.vector === ExcVector.BP || ex.vector === ExcVector.OF) {
    vmcsWrite32(vcpu, Field.VM_ENTRY_INSTRUCTION_LEN, vcpu.arch.eventExitInstLen);
    info |= IntrInfo.SOFT_EXCEPTION;
  } else {
    info |= IntrInfo.HARD_EXCEPTION;
  }
  vmcsWrite32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD, info);
  vmxClearHlt(vcpu);
}

/** vmx_get_interrupt_shadow: KVM_X86_SHADOW_INT_* bits. */
export function vmxGetInterruptShadow(vcpu: KvmVcpu): number {
  const state = vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO);
  return (
    (state & GuestIntrState.STI ? KVM_X86_SHADOW_INT_STI : 0) |
    (state & GuestIntrState.MOV_SS ? KVM_X86_SHADOW_INT_MOV_SS : 0)
  );
}

/** vmx_set_interrupt_shadow: KVM_X86_SHADOW_INT_* bits. */
export function vmxSetInterruptShadow(vcpu: KvmVcpu, mask: number): void {
  const old = vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO);
  let state = old & ~(GuestIntrState.STI | GuestIntrState.MOV_SS);
  if (mask & KVM_X86_SHADOW_INT_MOV_SS) state |= GuestIntrState.MOV_SS;
  else if (mask & KVM_X86_SHADOW_INT_STI) state |= GuestIntrState.STI;
  if (state !== old) vmcsWrite32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, state);
}

/** vmx_interrupt_allowed */
export function vmxInterruptAllowed(vcpu: KvmVcpu): boolean {
  if (!(vmxGetRflags(vcpu) & 0x200n)) return false;
  const state = vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO);
  return (state & (GuestIntrState.STI | GuestIntrState.MOV_SS)) === 0;
}

/** vmx_nmi_allowed */
export function vmxNmiAllowed(vcpu: KvmVcpu): boolean {
  if (!vcpu.module.features.vnmi && vcpu.vmx.softVnmiBlocked) return false;
  const state = vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO);
  return (state & (GuestIntrState.MOV_SS | GuestIntrState.STI | GuestIntrState.NMI)) === 0;
}

/** vmx_get_nmi_mask: whether NMIs are blocked. */
export function vmxGetNmiMask(vcpu: KvmVcpu): boolean {
  const { vmx, module } = vcpu;
  if (!module.features.vnmi) return vmx.softVnmiBlocked;
  if (vmx.nmiKnownUnmasked) return false;
  const masked = (vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO) & GuestIntrState.NMI) !== 0;
  vmx.nmiKnownUnmasked = !masked;
  return masked;
}

/** vmx_set_nmi_mask */
export function vmxSetNmiMask(vcpu: KvmVcpu, masked: boolean): void {
  const { vmx, module } = vcpu;
  if (!module.features.vnmi) {
    vmx.softVnmiBlocked = masked;
    return;
  }
  vmx.nmiKnownUnmasked = !masked;
  if (masked) vmcsSetBits(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, GuestIntrState.NMI);
  else vmcsClearBits(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, GuestIntrState.NMI);
}

/** vmx_enable_irq_window */
export const vmxEnableIrqWindow = (vcpu: KvmVcpu): void => controlsSetBit(vcpu, "exec", CpuBased.INTR_WINDOW_EXITING);

/** vmx_enable_nmi_window: with STI blocking an interrupt window opens first. */
export function vmxEnableNmiWindow(vcpu: KvmVcpu): void {
  const sti = (vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO) & GuestIntrState.STI) !== 0;
  if (!vcpu.module.features.vnmi || sti) {
    vmxEnableIrqWindow(vcpu);
    return;
  }
  controlsSetBit(vcpu, "exec", CpuBased.NMI_WINDOW_EXITING);
}

/**
 * skip_emulated_instruction: RIP goes behind the instruction that exited, which counts as retired. The SDM leaves the
 * instruction length undefined for EPT misconfigurations and APIC accesses; without one the emulator finds it.
 */
export function vmxSkipEmulatedInstruction(vcpu: KvmVcpu): number {
  const length = BigInt(vmcsRead32(vcpu, Field.VM_EXIT_INSTRUCTION_LEN));
  if (length === 0n) return kvmEmulateInstruction(vcpu, EmulType.SKIP);
  const old = kvmRipRead(vcpu);
  let rip = (old + length) & 0xffffffffffffffffn;
  if ((rip ^ old) >> 31n !== 0n && !is64BitMode(vcpu)) rip &= 0xffffffffn;
  kvmRipWrite(vcpu, rip);
  vmxSetInterruptShadow(vcpu, 0);
  vcpu.module.host.clock.retire(1);
  return 1;
}
