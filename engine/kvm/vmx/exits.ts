/**
 * VM exits (arch/x86/kvm/vmx/vmx.c: kvm_vmx_exit_handlers). A handler returns 1 to re-enter the guest, 0 to hand kvm_run to
 * userspace, or a negative errno.
 */
import { CpuBased } from "../../cpu/vmx/controls";
import { decodeQualification, ENTRY_FAILURE, ExitReason, exitReasonName } from "../../cpu/vmx/exit-reasons";
import { Field, VMCS_FIELDS } from "../../cpu/vmx/fields";
import { TraceKind } from "../../trace";
import { kvmEmulateCpuid } from "../cpuid";
import { kvmTaskSwitch, TaskSwitchReason } from "../emulateTaskSwitch";
import { EmulType } from "../emulateTypes";
import { kvmEmulateInstruction } from "../emulator";
import { kvmFastPio } from "../emulatorIo";
import { kvmEmulateHypercall } from "../hypercall";
import { KvmBus, kvmIoBusWrite } from "../ioBus";
import {
  kvmGetLinearRip,
  kvmReadCr3,
  kvmRegisterRead,
  kvmRegisterWrite,
  kvmRegRead32,
  kvmRipRead,
  kvmRipWrite,
} from "../kvmCacheRegs";
import { kvmReadGuest } from "../memslots";
import { Pferr } from "../mmu/fault";
import { kvmHandlePageFault, kvmMmuInvlpg, kvmMmuPageFault } from "../mmu/mmu";
import { gvaToGpa } from "../mmu/pagingTmpl";
import { kvmEmulateRdmsr, kvmEmulateWrmsr } from "../msrFilter";
import { KvmReq, kvmMakeRequest } from "../requests";
import { type KvmVcpu, VcpuReg } from "../types";
import { KVM_X86_DISABLE_EXITS, KvmExit, KvmGuestdbg, KvmInternalError } from "../uapi";
import { KvmDebugreg, kvmGetDr, kvmSetDr } from "../x86Debug";
import {
  ExcVector,
  kvmCompleteInsnGp,
  kvmInjectGp,
  kvmQueueException,
  kvmQueueExceptionE,
  kvmQueueExceptionP,
  kvmSkipEmulatedInstruction,
} from "../x86Events";
import { kvmEmulateHalt, kvmVcpuOnSpin } from "../x86Halt";
import { Fastpath } from "../x86Ops";
import { kvmGetCr8, kvmLmsw, kvmSetCr0, kvmSetCr3, kvmSetCr4, kvmSetCr8, kvmSetXcr } from "../x86Regs";
import { handleApicEoiInduced, handleApicWrite } from "./apicv";
import { handlePreemptionTimer } from "./hvTimer";
import { handleInvpcid } from "./invpcid";
import { handlePmlFull, vmxFlushPmlBuffer } from "./pml";
import { handleInvalidGuestState, handleRmodeException, isRmodeException } from "./rmode";
import { IntrInfo, vmxGetExitQual, vmxGetIntrInfo, vmxSkipEmulatedInstruction } from "./run";
import { vmxGetCpl } from "./segments";
import { controlsClearBit, loadedCpu, vmcsRead, vmcsRead32, vmcsSetBits, vmcsWrite } from "./vmcs";
import { GuestIntrState, vmxGetRflags, vmxSetRflags } from "./vmx";

type ExitHandler = (vcpu: KvmVcpu) => number;

const VECTORING_INFO_VALID = 0x80000000;
const DR6_ACTIVE_LOW = 0xffff0ff0n;
const DR6_BD = 1n << 13n;
const DR6_BS = 1n << 14n;
const DR7_GD = 1n << 13n;

// --- exceptions and interrupts ------------------------------------------------------------------------------------------

/** handle_exception_nmi: exceptions in the exception bitmap. NMIs of the host have been served when this runs. */
function handleExceptionNmi(vcpu: KvmVcpu): number {
  const { vmx, arch, run } = vcpu;
  const intrInfo = vmxGetIntrInfo(vcpu);
  const type = intrInfo & IntrInfo.TYPE;
  const vector = intrInfo & IntrInfo.VECTOR;
  if (type === IntrInfo.NMI_INTR || (type === IntrInfo.HARD_EXCEPTION && vector === ExcVector.MC)) return 1;
  if (type === IntrInfo.HARD_EXCEPTION && vector === ExcVector.UD && !vmx.rmode.vm86Active) return handleUd(vcpu);
  const errorCode = intrInfo & IntrInfo.DELIVER_CODE ? vmcsRead32(vcpu, Field.VM_EXIT_INTR_ERROR_CODE) : 0;
  const pageFault = type === IntrInfo.HARD_EXCEPTION && vector === ExcVector.PF;
  if (vmx.idtVectoringInfo & VECTORING_INFO_VALID && !pageFault) {
    run.exit = {
      exit_reason: KvmExit.INTERNAL_ERROR,
      internal: {
        suberror: KvmInternalError.SIMUL_EX,
        ndata: 4,
        data: [BigInt(vmx.idtVectoringInfo), BigInt(intrInfo), BigInt(errorCode), BigInt(arch.lastVmentryCpu)],
      },
    };
    return 0;
  }
  if (pageFault) return kvmHandlePageFault(vcpu, vmxGetExitQual(vcpu), errorCode);
  if (vmx.rmode.vm86Active && isRmodeException(vcpu, vector)) return handleRmodeException(vcpu, vector, errorCode);
  if (vector === ExcVector.GP && vcpu.module.params.enable_vmware_backdoor) {
    // The backdoor's instructions fault without an error code.
    if (errorCode === 0) return kvmEmulateInstruction(vcpu, EmulType.VMWARE_GP);
    kvmQueueExceptionE(vcpu, ExcVector.GP, errorCode);
    return 1;
  }
  switch (vector) {
    case ExcVector.DB: {
      const dr6 = vmxGetExitQual(vcpu);
      if (!(arch.guestDebug & (KvmGuestdbg.SINGLESTEP | KvmGuestdbg.USE_HW_BP))) {
        if (type === IntrInfo.PRIV_SW_EXCEPTION) {
          // ICEBP is a trap: RIP goes on before #DB is delivered.
          vmxSkipEmulatedInstruction(vcpu);
        } else if (vmxGetRflags(vcpu) & 0x100n) {
          // VM entry wants BS pending when TF is set in an interrupt shadow (SDM 3C 27.3.1.5).
          const shadow =
            vmcsRead32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO) & (GuestIntrState.STI | GuestIntrState.MOV_SS);
          if (shadow) {
            const pending = vmcsRead(vcpu, Field.GUEST_PENDING_DBG_EXCEPTIONS);
            vmcsWrite(vcpu, Field.GUEST_PENDING_DBG_EXCEPTIONS, pending | DR6_BS);
          }
        }
        kvmQueueExceptionP(vcpu, ExcVector.DB, dr6);
        return 1;
      }
      return debugExit(vcpu, vector, dr6 | DR6_ACTIVE_LOW);
    }
    case ExcVector.BP:
      return debugExit(vcpu, vector, 0n);
    case ExcVector.AC:
      kvmQueueExceptionE(vcpu, ExcVector.AC, errorCode);
      return 1;
    default:
      run.exit = { exit_reason: KvmExit.EXCEPTION, ex: { exception: vector, error_code: errorCode } };
      return 0;
  }
}

/** KVM_EXIT_DEBUG; the instruction's length is kept in case userspace gives #BP back to the guest. */
function debugExit(vcpu: KvmVcpu, exception: number, dr6: bigint): number {
  vcpu.arch.eventExitInstLen = vmcsRead32(vcpu, Field.VM_EXIT_INSTRUCTION_LEN);
  vcpu.run.exit = {
    exit_reason: KvmExit.DEBUG,
    debug: { exception, pc: kvmGetLinearRip(vcpu), dr6, dr7: vmcsRead(vcpu, Field.GUEST_DR7) },
  };
  return 0;
}

/** UD2 and "kvm": what follows is to be emulated (force_emulation_prefix). */
const KVM_EMULATE_PREFIX = [0x0f, 0x0b, 0x6b, 0x76, 0x6d] as const;
/** Bit of force_emulation_prefix: RFLAGS.RF is cleared as well. */
const KVM_FEP_CLEAR_RFLAGS_RF = 2;
const RFLAGS_RF = 0x10000n;

/** handle_ud: an instruction KVM emulates for the guest (VMMCALL, UD of migrated guests, a forced one), or #UD for real. */
function handleUd(vcpu: KvmVcpu): number {
  const flags = vcpu.module.params.force_emulation_prefix;
  if (flags !== 0) {
    const linear = kvmGetLinearRip(vcpu);
    if (KVM_EMULATE_PREFIX.every((byte, i) => kvmReadGuestVirtByte(vcpu, linear + BigInt(i)) === byte)) {
      if (flags & KVM_FEP_CLEAR_RFLAGS_RF) vmxSetRflags(vcpu, vmxGetRflags(vcpu) & ~RFLAGS_RF);
      kvmRipWrite(vcpu, kvmRipRead(vcpu) + BigInt(KVM_EMULATE_PREFIX.length));
      return kvmEmulateInstruction(vcpu, EmulType.TRAP_UD_FORCED);
    }
  }
  return kvmEmulateInstruction(vcpu, EmulType.TRAP_UD);
}

/** kvm_read_guest_virt of one byte; -1 where the guest has nothing mapped. */
function kvmReadGuestVirtByte(vcpu: KvmVcpu, linear: bigint): number {
  const t = gvaToGpa(vcpu, linear, 0, false);
  const byte = new Uint8Array(1);
  return t.ok && kvmReadGuest(vcpu.kvm, t.gpa, byte) ? byte[0] : -1;
}

/** handle_external_interrupt: the host has served it already (vmx_handle_exit_irqoff). */
function handleExternalInterrupt(vcpu: KvmVcpu): number {
  vcpu.stat.irq_exits++;
  return 1;
}

function handleTripleFault(vcpu: KvmVcpu): number {
  vcpu.run.exit = { exit_reason: KvmExit.SHUTDOWN };
  vcpu.state.mmioNeeded = false;
  return 0;
}

function handleNmiWindow(vcpu: KvmVcpu): number {
  controlsClearBit(vcpu, "exec", CpuBased.NMI_WINDOW_EXITING);
  vcpu.stat.nmi_window_exits++;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  return 1;
}

function handleInterruptWindow(vcpu: KvmVcpu): number {
  controlsClearBit(vcpu, "exec", CpuBased.INTR_WINDOW_EXITING);
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  vcpu.stat.irq_window_exits++;
  return 1;
}

// --- instructions -------------------------------------------------------------------------------------------------------

/** handle_io: IN and OUT at once, INS and OUTS by the emulator. */
export function handleIo(vcpu: KvmVcpu): number {
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
  vcpu.stat.io_exits++;
  if (qualification & 16) return kvmEmulateInstruction(vcpu, 0);
  const port = qualification >>> 16;
  const size = (qualification & 7) + 1;
  return kvmFastPio(vcpu, size, port, (qualification & 8) !== 0);
}

/** handle_cr: qualification as SDM 3C table 28-3. */
function handleCr(vcpu: KvmVcpu): number {
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
  const cr = qualification & 15;
  const reg = (qualification >> 8) & 15;
  switch ((qualification >> 4) & 3) {
    case 0: {
      const value = kvmRegisterRead(vcpu, reg);
      switch (cr) {
        case 0:
          return kvmCompleteInsnGp(vcpu, kvmSetCr0(vcpu, value));
        case 3:
          return kvmCompleteInsnGp(vcpu, kvmSetCr3(vcpu, value));
        case 4:
          return kvmCompleteInsnGp(vcpu, kvmSetCr4(vcpu, value));
        case 8: {
          const previous = kvmGetCr8(vcpu);
          const r = kvmCompleteInsnGp(vcpu, kvmSetCr8(vcpu, value));
          if (vcpu.apic || previous <= value) return r;
          vcpu.run.exit = { exit_reason: KvmExit.SET_TPR };
          return 0;
        }
      }
      break;
    }
    case 1:
      if (cr === 3) kvmRegisterWrite(vcpu, reg, kvmReadCr3(vcpu));
      else if (cr === 8) kvmRegisterWrite(vcpu, reg, kvmGetCr8(vcpu));
      else break;
      return kvmSkipEmulatedInstruction(vcpu);
    case 3:
      kvmLmsw(vcpu, BigInt((qualification >>> 16) & 0xf));
      return kvmSkipEmulatedInstruction(vcpu);
  }
  vcpu.module.printk(`kvm: unhandled control register: op ${(qualification >> 4) & 3} cr ${cr}`);
  vcpu.run.exit = { exit_reason: KvmExit.UNKNOWN, hw: { hardware_exit_reason: 0n } };
  return 0;
}

/** handle_dr: at the first access the guest gets its debug registers; they are read back at the next exit. */
function handleDr(vcpu: KvmVcpu): number {
  const { arch } = vcpu;
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
  const dr = qualification & 7;
  if (vmxGetCpl(vcpu) > 0) return kvmCompleteInsnGp(vcpu, true);
  const dr7 = vmcsRead(vcpu, Field.GUEST_DR7);
  if (dr7 & DR7_GD) {
    if (arch.guestDebug & KvmGuestdbg.USE_HW_BP) {
      vcpu.run.exit = {
        exit_reason: KvmExit.DEBUG,
        debug: { exception: ExcVector.DB, pc: kvmGetLinearRip(vcpu), dr6: DR6_BD | DR6_ACTIVE_LOW, dr7 },
      };
      return 0;
    }
    kvmQueueExceptionP(vcpu, ExcVector.DB, DR6_BD);
    return 1;
  }
  if (arch.guestDebug === 0) {
    controlsClearBit(vcpu, "exec", CpuBased.MOV_DR_EXITING);
    arch.switchDbRegs |= KvmDebugreg.WONT_EXIT;
    return 1;
  }
  const reg = (qualification >> 8) & 15;
  if (qualification & 16) {
    kvmRegisterWrite(vcpu, reg, kvmGetDr(vcpu, dr));
    return kvmSkipEmulatedInstruction(vcpu);
  }
  return kvmCompleteInsnGp(vcpu, kvmSetDr(vcpu, dr, kvmRegisterRead(vcpu, reg)));
}

/** kvm_emulate_rdpmc: there is no virtual PMU, so every counter is missing. */
const handleRdpmc = (vcpu: KvmVcpu): number => kvmCompleteInsnGp(vcpu, true);

/** kvm_emulate_invd and kvm_emulate_wbinvd: caches are coherent. */
const handleInvd = (vcpu: KvmVcpu): number => kvmSkipEmulatedInstruction(vcpu);
const handleWbinvd = (vcpu: KvmVcpu): number => kvmSkipEmulatedInstruction(vcpu);

/** handle_invlpg */
function handleInvlpg(vcpu: KvmVcpu): number {
  vcpu.stat.invlpg++;
  kvmMmuInvlpg(vcpu, vmxGetExitQual(vcpu));
  return kvmSkipEmulatedInstruction(vcpu);
}

/** handle_vmx_instruction without nested virtualization. */
function handleVmxInstruction(vcpu: KvmVcpu): number {
  kvmQueueException(vcpu, ExcVector.UD);
  return 1;
}

/** kvm_emulate_xsetbv */
function handleXsetbv(vcpu: KvmVcpu): number {
  const value = BigInt(kvmRegRead32(vcpu, VcpuReg.RAX)) | (BigInt(kvmRegRead32(vcpu, VcpuReg.RDX)) << 32n);
  if (vmxGetCpl(vcpu) !== 0 || kvmSetXcr(vcpu, kvmRegRead32(vcpu, VcpuReg.RCX), value)) {
    kvmInjectGp(vcpu, 0);
    return 1;
  }
  return kvmSkipEmulatedInstruction(vcpu);
}

/** handle_pause: somebody spins; the loop may go on longer next time, and another vCPU gets the processor. */
function handlePause(vcpu: KvmVcpu): number {
  if (vcpu.module.features.pleGap !== 0) growPleWindow(vcpu);
  kvmVcpuOnSpin(vcpu);
  return kvmSkipEmulatedInstruction(vcpu);
}

function growPleWindow(vcpu: KvmVcpu): void {
  const { ple_window, ple_window_grow, ple_window_max } = vcpu.module.params;
  const old = vcpu.vmx.pleWindow;
  let next = ple_window;
  if (ple_window_grow >= 1) next = ple_window_grow < ple_window ? old * ple_window_grow : old + ple_window_grow;
  vcpu.vmx.pleWindow = Math.min(next, ple_window_max, 0xffffffff);
  if (vcpu.vmx.pleWindow !== old) vcpu.vmx.pleWindowDirty = true;
}

/** shrink_ple_window */
function shrinkPleWindow(vcpu: KvmVcpu): void {
  const { ple_window, ple_window_shrink } = vcpu.module.params;
  const old = vcpu.vmx.pleWindow;
  let next = ple_window;
  if (ple_window_shrink >= 1) next = ple_window_shrink < ple_window ? old / ple_window_shrink : old - ple_window_shrink;
  vcpu.vmx.pleWindow = Math.max(Math.floor(next), ple_window);
  if (vcpu.vmx.pleWindow !== old) vcpu.vmx.pleWindowDirty = true;
}

/** vmx_sched_in: the thread has a processor again, so spinning was not in vain. */
export function vmxSchedIn(vcpu: KvmVcpu): void {
  if (vcpu.module.features.pleGap !== 0 && !(vcpu.kvm.arch.disabledExits & KVM_X86_DISABLE_EXITS.PAUSE)) {
    shrinkPleWindow(vcpu);
  }
}

/** kvm_emulate_mwait and kvm_emulate_monitor: no operation (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS). */
const handleMwait = (vcpu: KvmVcpu): number => kvmSkipEmulatedInstruction(vcpu);
const handleMonitor = (vcpu: KvmVcpu): number => kvmSkipEmulatedInstruction(vcpu);

/** kvm_handle_invalid_op: the guest's CPUID does not have this instruction. */
function handleInvalidOp(vcpu: KvmVcpu): number {
  kvmQueueException(vcpu, ExcVector.UD);
  return 1;
}

/** handle_monitor_trap */
const handleMonitorTrap = (_vcpu: KvmVcpu): number => 1;

/** handle_machine_check: the host has seen it (kvm_machine_check). */
const handleMachineCheck = (_vcpu: KvmVcpu): number => 1;

/** handle_desc: descriptor-table instructions under emulated UMIP. */
const handleDesc = (vcpu: KvmVcpu): number => kvmEmulateInstruction(vcpu, 0);

/** handle_task_switch: qualification as SDM 3C table 28-2; the event that led there is not delivered again. */
function handleTaskSwitch(vcpu: KvmVcpu): number {
  const { vmx, arch } = vcpu;
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
  const reason = (qualification >>> 30) as TaskSwitchReason;
  const selector = qualification & 0xffff;
  const info = vmx.idtVectoringInfo;
  const type = info & IntrInfo.TYPE;
  const vectoring = (info & VECTORING_INFO_VALID) !== 0;
  let errorCode: number | null = null;
  let idtIndex = -1;
  if (reason === TaskSwitchReason.GATE && vectoring) {
    idtIndex = info & IntrInfo.VECTOR;
    if (type === IntrInfo.NMI_INTR) {
      arch.nmiInjected = false;
      vcpu.module.ops.setNmiMask(vcpu, true);
    } else if (type === IntrInfo.EXT_INTR || type === IntrInfo.SOFT_INTR) {
      arch.interrupt.injected = false;
    } else {
      if (info & IntrInfo.DELIVER_CODE) errorCode = vmcsRead32(vcpu, Field.IDT_VECTORING_ERROR_CODE);
      arch.exception.pending = false;
      arch.exception.injected = false;
    }
  }
  // RIP of the old task is behind the instruction, except after an event that came from outside.
  const asynchronous =
    vectoring && (type === IntrInfo.HARD_EXCEPTION || type === IntrInfo.EXT_INTR || type === IntrInfo.NMI_INTR);
  if (!asynchronous) vmxSkipEmulatedInstruction(vcpu);
  return kvmTaskSwitch(vcpu, selector, type === IntrInfo.SOFT_INTR ? idtIndex : -1, reason, errorCode);
}

// --- local APIC ---------------------------------------------------------------------------------------------------------

/** handle_tpr_below_threshold: an interrupt that waited for the task priority may go in now. */
function handleTprBelowThreshold(vcpu: KvmVcpu): number {
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  return 1;
}

const APIC_EOI = 0xb0;
const TYPE_LINEAR_APIC_INST_WRITE = 1 << 12;

/** handle_apic_access: EOI at once, everything else by the emulator. */
function handleApicAccess(vcpu: KvmVcpu): number {
  if (vcpu.module.params.fasteoi && vcpu.apic) {
    const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
    if ((qualification & 0xf000) === TYPE_LINEAR_APIC_INST_WRITE && (qualification & 0xfff) === APIC_EOI) {
      vcpu.apic.setEoi();
      return kvmSkipEmulatedInstruction(vcpu);
    }
  }
  return kvmEmulateInstruction(vcpu, 0);
}

// --- second-level tables --------------------------------------------------------------------------------------------

/** handle_ept_violation: qualification as SDM 3C table 28-7. */
function handleEptViolation(vcpu: KvmVcpu): number {
  const qualification = Number(vmxGetExitQual(vcpu) & 0xffffffffn);
  // IRET had unblocked NMIs when its stack access faulted: they are blocked again.
  if (
    !(vcpu.vmx.idtVectoringInfo & VECTORING_INFO_VALID) &&
    vcpu.module.features.vnmi &&
    qualification & IntrInfo.UNBLOCK_NMI
  ) {
    vmcsSetBits(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, GuestIntrState.NMI);
  }
  const gpa = Number(vmcsRead(vcpu, Field.GUEST_PHYSICAL_ADDRESS));
  let errorCode = qualification & 1 ? Pferr.USER : 0;
  if (qualification & 2) errorCode |= Pferr.WRITE;
  if (qualification & 4) errorCode |= Pferr.FETCH;
  if (qualification & 0x38) errorCode |= Pferr.PRESENT;
  const final = (qualification & 0x100) !== 0;
  return kvmMmuPageFault(vcpu, gpa, errorCode + (final ? Pferr.GUEST_FINAL : Pferr.GUEST_PAGE));
}

/** handle_ept_misconfig: MMIO. Data-less writes to a fast-MMIO address are done here. */
function handleEptMisconfig(vcpu: KvmVcpu): number {
  const gpa = Number(vmcsRead(vcpu, Field.GUEST_PHYSICAL_ADDRESS));
  if (kvmIoBusWrite(vcpu.kvm, vcpu, KvmBus.FAST_MMIO, gpa, NO_DATA)) return kvmSkipEmulatedInstruction(vcpu);
  return kvmMmuPageFault(vcpu, gpa, Pferr.RSVD);
}
const NO_DATA = new Uint8Array(0);

// --- the table ----------------------------------------------------------------------------------------------------------

/** kvm_vmx_exit_handlers */
// biome-ignore format: one row a line
const kvmVmxExitHandlers: Readonly<Partial<Record<number, ExitHandler>>> = {
  [ExitReason.EXCEPTION_NMI]: handleExceptionNmi,
  [ExitReason.EXTERNAL_INTERRUPT]: handleExternalInterrupt,
  [ExitReason.TRIPLE_FAULT]: handleTripleFault,
  [ExitReason.NMI_WINDOW]: handleNmiWindow,
  [ExitReason.IO_INSTRUCTION]: handleIo,
  [ExitReason.CR_ACCESS]: handleCr,
  [ExitReason.DR_ACCESS]: handleDr,
  [ExitReason.CPUID]: kvmEmulateCpuid,
  [ExitReason.MSR_READ]: kvmEmulateRdmsr,
  [ExitReason.MSR_WRITE]: kvmEmulateWrmsr,
  [ExitReason.INTERRUPT_WINDOW]: handleInterruptWindow,
  [ExitReason.HLT]: kvmEmulateHalt,
  [ExitReason.INVD]: handleInvd,
  [ExitReason.INVLPG]: handleInvlpg,
  [ExitReason.RDPMC]: handleRdpmc,
  [ExitReason.VMCALL]: kvmEmulateHypercall,
  [ExitReason.VMCLEAR]: handleVmxInstruction,
  [ExitReason.VMLAUNCH]: handleVmxInstruction,
  [ExitReason.VMPTRLD]: handleVmxInstruction,
  [ExitReason.VMPTRST]: handleVmxInstruction,
  [ExitReason.VMREAD]: handleVmxInstruction,
  [ExitReason.VMRESUME]: handleVmxInstruction,
  [ExitReason.VMWRITE]: handleVmxInstruction,
  [ExitReason.VMOFF]: handleVmxInstruction,
  [ExitReason.VMON]: handleVmxInstruction,
  [ExitReason.TPR_BELOW_THRESHOLD]: handleTprBelowThreshold,
  [ExitReason.APIC_ACCESS]: handleApicAccess,
  [ExitReason.WBINVD]: handleWbinvd,
  [ExitReason.XSETBV]: handleXsetbv,
  [ExitReason.TASK_SWITCH]: handleTaskSwitch,
  [ExitReason.MCE_DURING_VMENTRY]: handleMachineCheck,
  [ExitReason.GDTR_IDTR]: handleDesc,
  [ExitReason.LDTR_TR]: handleDesc,
  [ExitReason.EPT_VIOLATION]: handleEptViolation,
  [ExitReason.EPT_MISCONFIG]: handleEptMisconfig,
  [ExitReason.EOI_INDUCED]: handleApicEoiInduced,
  [ExitReason.APIC_WRITE]: handleApicWrite,
  [ExitReason.PML_FULL]: handlePmlFull,
  [ExitReason.PREEMPTION_TIMER]: handlePreemptionTimer,
  [ExitReason.INVPCID]: handleInvpcid,
  [ExitReason.PAUSE_INSTRUCTION]: handlePause,
  [ExitReason.MWAIT_INSTRUCTION]: handleMwait,
  [ExitReason.MONITOR_TRAP_FLAG]: handleMonitorTrap,
  [ExitReason.MONITOR_INSTRUCTION]: handleMonitor,
  [ExitReason.INVEPT]: handleVmxInstruction,
  [ExitReason.INVVPID]: handleVmxInstruction,
  [ExitReason.RDRAND]: handleInvalidOp,
  [ExitReason.RDSEED]: handleInvalidOp,
  [ExitReason.VMFUNC]: handleVmxInstruction,
};

/** Exits that may interrupt the delivery of an event without being an error. */
const MAY_INTERRUPT_DELIVERY: ReadonlySet<number> = new Set([
  ExitReason.EXCEPTION_NMI,
  ExitReason.EPT_VIOLATION,
  ExitReason.PML_FULL,
  ExitReason.APIC_ACCESS,
  ExitReason.TASK_SWITCH,
  ExitReason.NOTIFY,
]);

/** vmx_handle_exit */
export function vmxHandleExit(vcpu: KvmVcpu, fastpath: Fastpath): number {
  const { vmx, arch, run } = vcpu;
  const exitReason = vmx.exitReason >>> 0;
  const basic = exitReason & 0xffff;
  const vectoring = vmx.idtVectoringInfo;

  if (vcpu.module.features.pml) vmxFlushPmlBuffer(vcpu);
  if (vmx.emulationRequired) return handleInvalidGuestState(vcpu);
  if (vmx.fail || (exitReason & ENTRY_FAILURE) !== 0) {
    dumpVmcs(vcpu);
    const reason = vmx.fail ? vmcsRead32(vcpu, Field.VM_INSTRUCTION_ERROR) : exitReason;
    run.exit = {
      exit_reason: KvmExit.FAIL_ENTRY,
      fail_entry: { hardware_entry_failure_reason: BigInt(reason), cpu: arch.lastVmentryCpu },
    };
    return 0;
  }

  if (vectoring & VECTORING_INFO_VALID && !MAY_INTERRUPT_DELIVERY.has(basic)) {
    const data = [BigInt(vectoring), BigInt(exitReason), vmxGetExitQual(vcpu)];
    if (basic === ExitReason.EPT_MISCONFIG) data.push(vmcsRead(vcpu, Field.GUEST_PHYSICAL_ADDRESS));
    data.push(BigInt(arch.lastVmentryCpu));
    run.exit = {
      exit_reason: KvmExit.INTERNAL_ERROR,
      internal: { suberror: KvmInternalError.DELIVERY_EV, ndata: data.length, data },
    };
    return 0;
  }

  if (fastpath !== Fastpath.NONE) return 1;

  const handler = kvmVmxExitHandlers[basic];
  if (handler) {
    traceExitHandler(vcpu, basic, handler.name);
    return handler(vcpu);
  }
  vcpu.module.printk(`kvm: vmx: unexpected exit reason 0x${exitReason.toString(16)}`);
  dumpVmcs(vcpu);
  run.exit = {
    exit_reason: KvmExit.INTERNAL_ERROR,
    internal: {
      suberror: KvmInternalError.UNEXPECTED_EXIT_REASON,
      ndata: 2,
      data: [BigInt(exitReason), BigInt(arch.lastVmentryCpu)],
    },
  };
  return 0;
}

function traceExitHandler(vcpu: KvmVcpu, basic: number, handler: string): void {
  const { trace } = vcpu.module.host;
  if (!(trace.armed & TraceKind.ExitHandler)) return;
  const qualification = vmxGetExitQual(vcpu);
  const decoded = decodeQualification(basic, qualification, vmxGetIntrInfo(vcpu));
  trace.hit({
    kind: TraceKind.ExitHandler,
    vcpu: vcpu.state.vcpuIdx,
    text: `${handler}: ${exitReasonName(basic)} ${decoded.text}`.trimEnd(),
    detail: { handler, reason: basic, qualification, rip: vmcsRead(vcpu, Field.GUEST_RIP), ...decoded.parts },
  });
}

/** dump_vmcs: with dump_invalid_vmcs the fields go to the kernel log; the failed entry checks always do. */
function dumpVmcs(vcpu: KvmVcpu): void {
  const { module } = vcpu;
  for (const check of loadedCpu(vcpu).vmx.lastFailure) {
    module.printk(`kvm: VM entry check ${check.id} (${check.section}): ${check.message}`);
  }
  if (!module.params.dump_invalid_vmcs) {
    module.printk("kvm: set dump_invalid_vmcs=1 to dump internal KVM state");
    return;
  }
  for (const field of VMCS_FIELDS) {
    const value = loadedCpu(vcpu).vmx.peek(vcpu.vmx.vmcs, field.encoding);
    module.printk(`kvm: ${field.name} = 0x${value.toString(16)}`);
  }
}
