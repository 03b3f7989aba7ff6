/**
 * KVM's side of the instruction emulator (arch/x86/kvm/x86.c): x86_emulate_instruction, memory and port access on the guest's
 * behalf with exits to userspace, and their completion at the next KVM_RUN.
 */

import { PORT_ACCESS_NANOSECONDS } from "../clock";
import { X86Emulator } from "./emulate";
import { type EmulateResult, EmulFault, EmulType, ioNeeded } from "./emulateTypes";
import { KvmError } from "./errno";
import { completeHypercallExit } from "./hypercall";
import { KvmBus, kvmIoBusRead, kvmIoBusWrite } from "./ioBus";
import {
  is64BitMode,
  kvmGetLinearRip,
  kvmGetRflags,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRegRead32,
  kvmRipRead,
} from "./kvmCacheRegs";
import { kvmVcpuReadGuest, kvmVcpuWriteGuest } from "./memslots";
import { Pferr } from "./mmu/fault";
import { kvmMmuUnprotectGva, vcpuMatchMmioGpa } from "./mmu/mmu";
import { gvaToGpa } from "./mmu/pagingTmpl";
import { completeFastRdmsr, completeFastWrmsr, msrAnswer, writeEdxEax } from "./msrFilter";
import { KvmReq, kvmMakeRequest } from "./requests";
import { type KvmVcpu, PAGE_SIZE, VcpuReg } from "./types";
import {
  KVM_EXIT_IO_IN,
  KVM_EXIT_IO_OUT,
  KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
  KVM_PIO_PAGE_OFFSET,
  KvmExit,
  KvmInternalError,
  KvmX86Quirk,
} from "./uapi";
import {
  ExcVector,
  kvmInjectPageFault,
  kvmQueueException,
  kvmQueueExceptionE,
  kvmSkipEmulatedInstruction,
  kvmVcpuDoSinglestep,
} from "./x86Events";

const APIC_DEFAULT_PHYS_PAGE = 0xfee00000 / PAGE_SIZE;
const RF = 0x10000n;
const TF = 0x100n;
const IF = 0x200n;

// --- memory-mapped I/O --------------------------------------------------------------------------------------------------

/** vcpu_mmio_read: the vCPU's local APIC, then the MMIO bus, in pieces of up to 8 bytes. @returns bytes served */
function vcpuMmioRead(vcpu: KvmVcpu, addr: number, data: Uint8Array): number {
  let done = 0;
  while (done < data.length) {
    const n = Math.min(data.length - done, 8);
    const piece = data.subarray(done, done + n);
    if (!vcpu.apic?.mmioRead(addr + done, piece) && !kvmIoBusRead(vcpu.kvm, vcpu, KvmBus.MMIO, addr + done, piece))
      break;
    done += n;
  }
  return done;
}

/** vcpu_mmio_write */
function vcpuMmioWrite(vcpu: KvmVcpu, addr: number, data: Uint8Array): number {
  let done = 0;
  while (done < data.length) {
    const n = Math.min(data.length - done, 8);
    const piece = data.subarray(done, done + n);
    if (!vcpu.apic?.mmioWrite(addr + done, piece) && !kvmIoBusWrite(vcpu.kvm, vcpu, KvmBus.MMIO, addr + done, piece))
      break;
    done += n;
  }
  return done;
}

/** vcpu_is_mmio_gpa: known to be MMIO without looking for memory. */
function vcpuIsMmioGpa(vcpu: KvmVcpu, gpa: number): boolean {
  return Math.floor(gpa / PAGE_SIZE) === APIC_DEFAULT_PHYS_PAGE && vcpu.apic !== null
    ? true
    : vcpuMatchMmioGpa(vcpu, gpa);
}

/** Access bits of a data access at the current privilege. */
const privilege = (vcpu: KvmVcpu): number => (vcpu.module.ops.getCpl(vcpu) === 3 ? Pferr.USER : 0);

/** emulator_read_write_onepage: within one page; what nobody serves becomes a fragment for userspace. */
function emulatorReadWriteOnepage(
  vcpu: KvmVcpu,
  emul: X86Emulator,
  addr: bigint,
  data: Uint8Array,
  write: boolean,
): void {
  let gpa: number;
  let mmio: boolean;
  const ctxt = emul.ctxt;
  if (ctxt.gpaAvailable && emul.canUseGpa && (addr & 0xfffn) === BigInt(ctxt.gpaVal % PAGE_SIZE)) {
    gpa = ctxt.gpaVal;
    mmio = vcpuIsMmioGpa(vcpu, gpa);
  } else {
    const t = gvaToGpa(vcpu, addr, privilege(vcpu) | (write ? Pferr.WRITE : 0), true);
    if (!t.ok) throw new EmulFault(ExcVector.PF, t.errorCode, addr);
    gpa = t.gpa;
    mmio = vcpuIsMmioGpa(vcpu, gpa);
  }
  if (!mmio && (write ? kvmVcpuWriteGuest(vcpu, gpa, data) : kvmVcpuReadGuest(vcpu, gpa, data))) return;
  const handled = write ? vcpuMmioWrite(vcpu, gpa, data) : vcpuMmioRead(vcpu, gpa, data);
  if (handled === data.length) return;
  vcpu.state.mmioFragments.push({ gpa: gpa + handled, data: data.slice(handled), done: 0, len: data.length - handled });
}

/**
 * emulator_read_write: an access that may cross pages. A read that userspace must serve throws `ioNeeded` and is answered
 * when the instruction is emulated again; a write goes on, and leaves KVM_RUN at its end.
 */
export function emulatorReadWrite(
  vcpu: KvmVcpu,
  emul: X86Emulator,
  addr: bigint,
  data: Uint8Array,
  write: boolean,
): void {
  const { state } = vcpu;
  if (!write && state.mmioReadCompleted) {
    data.set(state.mmioFragments[0].data.subarray(0, data.length));
    state.mmioReadCompleted = false;
    return;
  }
  // Several writes of one instruction (PUSHA) go out one after the other.
  if (!(write && state.mmioNeeded)) state.mmioFragments = [];
  const toPageEnd = PAGE_SIZE - Number(addr & 0xfffn);
  if (data.length > toPageEnd) {
    emulatorReadWriteOnepage(vcpu, emul, addr, data.subarray(0, toPageEnd), write);
    const next = emul.truncate(addr + BigInt(toPageEnd));
    emulatorReadWriteOnepage(vcpu, emul, next, data.subarray(toPageEnd), write);
  } else {
    emulatorReadWriteOnepage(vcpu, emul, addr, data, write);
  }
  if (state.mmioFragments.length === 0) return;
  state.mmioNeeded = true;
  state.mmioCurFragment = 0;
  state.mmioIsWrite = write;
  prepareMmioExit(vcpu);
  if (!write) throw ioNeeded;
}

/** Fills kvm_run with the current fragment, at most 8 bytes of it. */
function prepareMmioExit(vcpu: KvmVcpu): void {
  const { state } = vcpu;
  const frag = state.mmioFragments[state.mmioCurFragment];
  const len = Math.min(8, frag.len - frag.done);
  const data = new Uint8Array(8);
  if (state.mmioIsWrite) data.set(frag.data.subarray(frag.done, frag.done + len));
  vcpu.run.exit = {
    exit_reason: KvmExit.MMIO,
    mmio: { phys_addr: frag.gpa + frag.done, data, len, is_write: state.mmioIsWrite ? 1 : 0 },
  };
}

/** complete_emulated_mmio: userspace has served a piece; goes on with the next one, or with the instruction. */
function completeEmulatedMmio(vcpu: KvmVcpu): number {
  const { state, run } = vcpu;
  const frag = state.mmioFragments[state.mmioCurFragment];
  const len = Math.min(8, frag.len - frag.done);
  if (!state.mmioIsWrite && run.exit.exit_reason === KvmExit.MMIO) {
    frag.data.set(run.exit.mmio.data.subarray(0, len), frag.done);
  }
  frag.done += len;
  if (frag.done >= frag.len) state.mmioCurFragment++;
  if (state.mmioCurFragment < state.mmioFragments.length) {
    prepareMmioExit(vcpu);
    vcpu.arch.completeUserspaceIo = "completeEmulatedMmio";
    return 0;
  }
  state.mmioNeeded = false;
  if (state.mmioIsWrite) return 1;
  if (state.mmioFragments.length > 1) {
    // A read across two pages: the parts are one value again.
    const whole = new Uint8Array(state.mmioFragments.reduce((n, f) => n + f.len, 0));
    let at = 0;
    for (const f of state.mmioFragments) {
      whole.set(f.data, at);
      at += f.len;
    }
    state.mmioFragments[0].data = whole;
  }
  state.mmioReadCompleted = true;
  return completeEmulatedIo(vcpu);
}

// --- ports --------------------------------------------------------------------------------------------------------------

/** emulator_pio_in_out: the kernel's chips serve all items, or kvm_run takes them to userspace. @returns whether it is done */
function emulatorPioInOut(
  vcpu: KvmVcpu,
  size: number,
  port: number,
  data: Uint8Array,
  count: number,
  input: boolean,
): boolean {
  const { arch, state } = vcpu;
  // The bus cycles cost time, whoever answers.
  vcpu.module.host.clock.pass(count * PORT_ACCESS_NANOSECONDS);
  for (let i = 0; i < count; i++) {
    const item = data.subarray(i * size, (i + 1) * size);
    const served = input
      ? kvmIoBusRead(vcpu.kvm, vcpu, KvmBus.PIO, port, item)
      : kvmIoBusWrite(vcpu.kvm, vcpu, KvmBus.PIO, port, item);
    if (served) {
      if (i === count - 1) return true;
      continue;
    }
    if (i === 0) break;
    // The device went away in between: writes are dropped, reads give 0.
    if (input) data.fill(0, i * size);
    return true;
  }
  arch.pio.port = port;
  arch.pio.in = input;
  arch.pio.count = count;
  arch.pio.size = size;
  const bytes = state.pioPage.subarray(0, size * count);
  if (input) bytes.fill(0);
  else bytes.set(data.subarray(0, size * count));
  vcpu.run.exit = {
    exit_reason: KvmExit.IO,
    io: {
      direction: input ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT,
      size,
      port,
      count,
      data_offset: BigInt(KVM_PIO_PAGE_OFFSET * PAGE_SIZE),
      data: bytes,
    },
  };
  return false;
}

/** emulator_pio_in. @returns whether `data` holds the items now */
export function emulatorPioIn(vcpu: KvmVcpu, size: number, port: number, data: Uint8Array, count: number): boolean {
  return emulatorPioInOut(vcpu, size, port, data, count, true);
}

/** emulator_pio_out. @returns whether the items are written */
export function emulatorPioOut(vcpu: KvmVcpu, size: number, port: number, data: Uint8Array, count: number): boolean {
  return emulatorPioInOut(vcpu, size, port, data, count, false);
}

/** complete_emulator_pio_in: what userspace put into the pio page. */
export function completeEmulatorPioIn(vcpu: KvmVcpu, data: Uint8Array): void {
  const { pio } = vcpu.arch;
  data.set(vcpu.state.pioPage.subarray(0, pio.size * pio.count));
  pio.count = 0;
}

/** kvm_is_linear_rip */
const kvmIsLinearRip = (vcpu: KvmVcpu, linearRip: bigint): boolean => kvmGetLinearRip(vcpu) === linearRip;

/** kvm_fast_pio: IN and OUT without the emulator. */
export function kvmFastPio(vcpu: KvmVcpu, size: number, port: number, input: boolean): number {
  const done = input ? kvmFastPioIn(vcpu, size, port) : kvmFastPioOut(vcpu, size, port);
  return done ? kvmSkipEmulatedInstruction(vcpu) : 0;
}

/** One item of 1, 2 or 4 bytes on its way; nothing stays in it. */
const ITEM: Readonly<Record<number, Uint8Array>> = { 1: new Uint8Array(1), 2: new Uint8Array(2), 4: new Uint8Array(4) };

function kvmFastPioOut(vcpu: KvmVcpu, size: number, port: number): boolean {
  const data = ITEM[size];
  let value = kvmRegRead32(vcpu, VcpuReg.RAX);
  for (let i = 0; i < size; i++) {
    data[i] = value;
    value >>>= 8;
  }
  if (emulatorPioOut(vcpu, size, port, data, 1)) return true;
  vcpu.arch.pio.linearRip = kvmGetLinearRip(vcpu);
  vcpu.arch.completeUserspaceIo = "completeFastPioOut";
  return false;
}

/** complete_fast_pio_out: the instruction is over, unless userspace moved RIP. */
function completeFastPioOut(vcpu: KvmVcpu): number {
  vcpu.arch.pio.count = 0;
  if (!kvmIsLinearRip(vcpu, vcpu.arch.pio.linearRip)) return 1;
  return kvmSkipEmulatedInstruction(vcpu);
}

function kvmFastPioIn(vcpu: KvmVcpu, size: number, port: number): boolean {
  const data = ITEM[size];
  if (emulatorPioIn(vcpu, size, port, data, 1)) {
    writeAccumulator(vcpu, data, size);
    return true;
  }
  vcpu.arch.pio.linearRip = kvmGetLinearRip(vcpu);
  vcpu.arch.completeUserspaceIo = "completeFastPioIn";
  return false;
}

/** complete_fast_pio_in */
function completeFastPioIn(vcpu: KvmVcpu): number {
  const { pio } = vcpu.arch;
  if (!kvmIsLinearRip(vcpu, pio.linearRip)) {
    pio.count = 0;
    return 1;
  }
  const data = ITEM[pio.size];
  completeEmulatorPioIn(vcpu, data);
  writeAccumulator(vcpu, data, pio.size);
  return kvmSkipEmulatedInstruction(vcpu);
}

/** AL, AX or EAX; a 32-bit result clears the upper half of RAX. */
function writeAccumulator(vcpu: KvmVcpu, data: Uint8Array, size: number): void {
  let value = 0n;
  for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[i]);
  const old = kvmRegisterReadRaw(vcpu, VcpuReg.RAX);
  const mask = (1n << BigInt(size * 8)) - 1n;
  kvmRegisterWriteRaw(vcpu, VcpuReg.RAX, size === 4 ? value : (old & ~mask) | value);
}

/** complete_emulated_pio: a string IN goes on with the data userspace brought. */
function completeEmulatedPio(vcpu: KvmVcpu): number {
  return completeEmulatedIo(vcpu);
}

/** complete_emulated_io: takes the instruction up again without decoding it anew. */
function completeEmulatedIo(vcpu: KvmVcpu): number {
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
