/**
 * KVM's side of the instruction emulator (arch/x86/kvm/x86.c): x86_emulate_instruction, and what completes an instruction
 * that went to userspace.
 */
import { X86Emulator } from "./emulate";
import { type EmulateResult, EmulFault, EmulType, ioNeeded } from "./emulateTypes";
import { completeEmulatedMmio, completeFastPioIn, completeFastPioOut, privilege } from "./emulatorIo";
import { KvmError } from "./errno";
import { completeHypercallExit } from "./hypercall";
import { is64BitMode, kvmGetLinearRip, kvmGetRflags, kvmRipRead } from "./kvmCacheRegs";
import { kvmVcpuReadGuest, kvmVcpuWriteGuest } from "./memslots";
import { Pferr } from "./mmu/fault";
import { kvmMmuUnprotectGva } from "./mmu/mmu";
import { gvaToGpa } from "./mmu/pagingTmpl";
import { completeFastRdmsr, completeFastWrmsr, msrAnswer, writeEdxEax } from "./msrFilter";
import { KvmReq, kvmMakeRequest } from "./requests";
import { type KvmVcpu, PAGE_SIZE } from "./types";
import { KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KvmExit, KvmInternalError, KvmX86Quirk } from "./uapi";
import { ExcVector, kvmInjectPageFault, kvmQueueException, kvmQueueExceptionE, kvmVcpuDoSinglestep } from "./x86Events";

const RF = 0x10000n;
const TF = 0x100n;
const IF = 0x200n;

/** complete_emulated_pio: a string IN goes on with the data userspace brought. */
function completeEmulatedPio(vcpu: KvmVcpu): number {
  return completeEmulatedIo(vcpu);
}

/** complete_emulated_io: takes the instruction up again without decoding it anew. */
export function completeEmulatedIo(vcpu: KvmVcpu): number {
  return x86EmulateInstruction(vcpu, 0n, EmulType.NO_DECODE);
}

/** complete_emulated_rdmsr */
function completeEmulatedRdmsr(vcpu: KvmVcpu): number {
  const { error, data } = msrAnswer(vcpu);
  if (!error) writeEdxEax(vcpu, data);
  return completeEmulatedInsnGp(vcpu, error);
}

/** complete_emulated_msr_access */
function completeEmulatedWrmsr(vcpu: KvmVcpu): number {
  return completeEmulatedInsnGp(vcpu, msrAnswer(vcpu).error);
}

/** complete_emulated_insn_gp */
function completeEmulatedInsnGp(vcpu: KvmVcpu, error: boolean): number {
  if (!error) return x86EmulateInstruction(vcpu, 0n, EmulType.NO_DECODE | EmulType.SKIP | EmulType.COMPLETE_USER_EXIT);
  vcpu.arch.emulate = null;
  kvmQueueExceptionE(vcpu, ExcVector.GP, 0);
  return 1;
}

/** vcpu->arch.complete_userspace_io, by name. */
const COMPLETIONS: Readonly<Record<string, (vcpu: KvmVcpu) => number>> = {
  completeEmulatedPio,
  completeEmulatedMmio,
  completeFastPioIn,
  completeFastPioOut,
  completeFastRdmsr,
  completeFastWrmsr,
  completeEmulatedRdmsr,
  completeEmulatedWrmsr,
  completeHypercallExit,
};

/** Calls what the last userspace exit left to be done. @returns 1 to enter the guest, otherwise vcpu_run's result */
export function completeUserspaceIo(vcpu: KvmVcpu): number {
  const name = vcpu.arch.completeUserspaceIo;
  if (name === null) return 1;
  vcpu.arch.completeUserspaceIo = null;
  const complete = COMPLETIONS[name];
  if (!complete) throw new KvmError("EINVAL", "KVM_RUN", `nothing completes ${name}`);
  return complete(vcpu);
}

// --- x86_emulate_instruction ----------------------------------------------------------------------------------------

/** Fetches the instruction's bytes: up to 15, or as many as the first page has before a fault. */
function fetchInstruction(vcpu: KvmVcpu): Uint8Array {
  const linear = kvmGetLinearRip(vcpu);
  const bytes = new Uint8Array(15);
  const access = privilege(vcpu) | Pferr.FETCH;
  let done = 0;
  while (done < 15) {
    const at = is64BitMode(vcpu) ? linear + BigInt(done) : (linear + BigInt(done)) & 0xffffffffn;
    const t = gvaToGpa(vcpu, at, access, true);
    const n = Math.min(15 - done, PAGE_SIZE - Number(at & 0xfffn));
    if (!t.ok) {
      if (done > 0) break;
      throw new EmulFault(ExcVector.PF, t.errorCode, at);
    }
    if (!kvmVcpuReadGuest(vcpu, t.gpa, bytes.subarray(done, done + n))) break;
    done += n;
  }
  return bytes.slice(0, done);
}

/** inject_emulated_exception */
function injectEmulatedException(vcpu: KvmVcpu, fault: EmulFault): void {
  if (fault.vector === ExcVector.PF) kvmInjectPageFault(vcpu, fault.address, fault.errorCode ?? 0);
  else if (fault.errorCode !== undefined) kvmQueueExceptionE(vcpu, fault.vector, fault.errorCode);
  else kvmQueueException(vcpu, fault.vector);
}

/**
 * x86_emulate_instruction.
 * @param cr2OrGpa guest-physical address of a second-level fault (EmulType.PF), otherwise ignored
 * @returns 1 to re-enter, 0 for a userspace exit
 */
export function x86EmulateInstruction(vcpu: KvmVcpu, cr2OrGpa: bigint, emulationType: number): number {
  const { arch, state } = vcpu;
  if (!(emulationType & EmulType.NO_DECODE)) {
    let bytes: Uint8Array;
    try {
      bytes = fetchInstruction(vcpu);
    } catch (e) {
      if (!(e instanceof EmulFault)) throw e;
      injectEmulatedException(vcpu, e);
      return 1;
    }
    arch.emulate = {
      bytes,
      eip: kvmRipRead(vcpu),
      memRead: { data: new Uint8Array(0), pos: 0, end: 0 },
      ioRead: { data: new Uint8Array(0), pos: 0, end: 0 },
      // Under shadow paging the faulting address is a linear one.
      gpaAvailable: (emulationType & EmulType.PF) !== 0 && vcpu.module.features.ept,
      gpaVal: emulationType & EmulType.PF ? Number(cr2OrGpa) : 0,
      cr2: cr2OrGpa,
      emulationType,
    };
  }
  const ctxt = arch.emulate;
  if (!ctxt) throw new KvmError("EINVAL", "KVM_RUN", "no emulation is under way");
  const emul = new X86Emulator(vcpu, ctxt);
  if (!emul.decode()) {
    if (emulationType & (EmulType.TRAP_UD | EmulType.TRAP_UD_FORCED)) {
      kvmQueueException(vcpu, ExcVector.UD);
      return 1;
    }
    return handleEmulationFailure(vcpu);
  }
  if (emulationType & EmulType.TRAP_UD) return emulateTrapUd(vcpu, emul);
  if (emulationType & EmulType.VMWARE_GP && !isVmwareBackdoorOpcode(emul)) {
    arch.emulate = null;
    kvmQueueExceptionE(vcpu, ExcVector.GP, 0);
    return 1;
  }
  if (emulationType & EmulType.SKIP) return emulateSkip(vcpu, emul);
  vcpu.stat.insn_emulation++;

  for (;;) {
    let result: EmulateResult;
    try {
      result = emul.run();
    } catch (e) {
      if (e === ioNeeded) {
        result = "io-needed";
      } else if (e instanceof EmulFault) {
        arch.emulate = null;
        injectEmulatedException(vcpu, e);
        return 1;
      } else {
        throw e;
      }
    }
    if (result === "failed") return handleEmulationFailure(vcpu);
    if (arch.pio.count > 0) {
      if (!arch.pio.in) arch.pio.count = 0;
      else arch.completeUserspaceIo = "completeEmulatedPio";
      if (result !== "io-needed") finishInstruction(vcpu, emul, result);
      return 0;
    }
    if (state.mmioNeeded) {
      vcpu.stat.mmio_exits++;
      arch.completeUserspaceIo = "completeEmulatedMmio";
      if (result !== "io-needed") finishInstruction(vcpu, emul, result);
      return 0;
    }
    // The MSR is userspace's to answer.
    if (result === "io-needed") return 0;
    if (result === "restart") {
      emul.writebackRegisters();
      continue;
    }
    return finishInstruction(vcpu, emul, result);
  }
}

/** Registers, flags and RIP take effect; a repeated string instruction that is not through stays at its own RIP. */
function finishInstruction(vcpu: KvmVcpu, emul: X86Emulator, result: EmulateResult): number {
  const before = kvmGetRflags(vcpu);
  emul.writebackRegisters();
  vcpu.arch.emulate = null;
  if (result !== "done") return 1;
  emul.writebackRip();
  vcpu.module.ops.setRflags(vcpu, emul.rflags & ~RF);
  toggleInterruptibility(vcpu, emul.interruptibility);
  // POPF and its kin may have opened interrupts.
  if (emul.rflags & ~before & IF) kvmMakeRequest(KvmReq.EVENT, vcpu);
  vcpu.module.host.clock.retire(1);
  return before & TF ? kvmVcpuDoSinglestep(vcpu) : 1;
}

/** toggle_interruptibility: of two STI or stack-segment loads in a row only the first keeps interrupts off. */
function toggleInterruptibility(vcpu: KvmVcpu, mask: number): void {
  const { ops } = vcpu.module;
  const shadow = ops.getInterruptShadow(vcpu);
  const next = shadow & mask ? 0 : mask;
  if (shadow === 0 && next === 0) return;
  ops.setInterruptShadow(vcpu, next);
  if (next === 0) kvmMakeRequest(KvmReq.EVENT, vcpu);
}

/** is_vmware_backdoor_opcode */
const isVmwareBackdoorOpcode = (emul: X86Emulator): boolean =>
  ["IN", "OUT", "INS", "OUTS", "RDPMC"].includes(emul.mnemonic);

/** EMULTYPE_SKIP: KVM has done the instruction's work; only RIP goes on. */
function emulateSkip(vcpu: KvmVcpu, emul: X86Emulator): number {
  vcpu.arch.emulate = null;
  emul.writebackRip();
  vcpu.module.ops.setRflags(vcpu, emul.rflags & ~RF);
  vcpu.module.ops.setInterruptShadow(vcpu, 0);
  vcpu.module.host.clock.retire(1);
  return 1;
}

/** em_hypercall of the other vendor: VMMCALL becomes VMCALL (KVM_X86_QUIRK_FIX_HYPERCALL_INSN); others are #UD. */
function emulateTrapUd(vcpu: KvmVcpu, emul: X86Emulator): number {
  vcpu.arch.emulate = null;
  const fix = !(vcpu.kvm.arch.disabledQuirks & BigInt(KvmX86Quirk.FIX_HYPERCALL_INSN));
  if (emul.mnemonic === "VMMCALL" && fix) {
    const t = gvaToGpa(vcpu, kvmGetLinearRip(vcpu), Pferr.WRITE, true);
    if (t.ok && kvmVcpuWriteGuest(vcpu, t.gpa, new Uint8Array([0x0f, 0x01, 0xc1]))) return 1;
  }
  kvmQueueException(vcpu, ExcVector.UD);
  return 1;
}

/** handle_emulation_failure: #UD, and for the guest's kernel KVM_EXIT_INTERNAL_ERROR with the instruction's bytes. */
function handleEmulationFailure(vcpu: KvmVcpu): number {
  const ctxt = vcpu.arch.emulate;
  if (ctxt && ctxt.emulationType & EmulType.ALLOW_RETRY_PF && kvmMmuUnprotectGva(vcpu, ctxt.cr2)) {
    vcpu.arch.emulate = null;
    return 1;
  }
  vcpu.stat.insn_emulation_fail++;
  if (ctxt && ctxt.emulationType & EmulType.VMWARE_GP) {
    vcpu.arch.emulate = null;
    kvmQueueExceptionE(vcpu, ExcVector.GP, 0);
    return 1;
  }
  if (vcpu.kvm.arch.exitOnEmulationError) {
    prepareEmulationFailureExit(vcpu);
    return 0;
  }
  kvmQueueException(vcpu, ExcVector.UD);
  if (vcpu.module.ops.getCpl(vcpu) !== 0) return 1;
  prepareEmulationFailureExit(vcpu);
  return 0;
}

/** prepare_emulation_failure_exit: flags, size and bytes of the instruction, exit reason, qualification, information. */
function prepareEmulationFailureExit(vcpu: KvmVcpu): void {
  const bytes = vcpu.arch.emulate?.bytes ?? new Uint8Array(0);
  const { vmx } = vcpu;
  const info = [
    BigInt(vmx.exitReason >>> 0),
    vmx.exitQualification,
    BigInt(vmx.idtVectoringInfo >>> 0),
    BigInt(vmx.exitIntrInfo >>> 0),
    0n,
  ];
  const insn = new Uint8Array(16).fill(0x90);
  insn[0] = bytes.length;
  insn.set(bytes, 1);
  const view = new DataView(insn.buffer);
  // The instruction's words are there only if any of it could be fetched.
  const fetched = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
  const data =
    bytes.length > 0
      ? [BigInt(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES), ...fetched, ...info]
      : [0n, ...info];
  vcpu.run.exit = {
    exit_reason: KvmExit.INTERNAL_ERROR,
    internal: { suberror: KvmInternalError.EMULATION, ndata: data.length, data },
  };
}

/** kvm_emulate_instruction */
export const kvmEmulateInstruction = (vcpu: KvmVcpu, emulationType: number): number =>
  x86EmulateInstruction(vcpu, 0n, emulationType);
