/**
 * Memory-mapped and port I/O on the guest's behalf (arch/x86/kvm/x86.c): the kernel's own devices first, then kvm_run takes
 * the access to userspace, whose answer is picked up by the next KVM_RUN.
 */
import { PORT_ACCESS_NANOSECONDS } from "../clock";
import type { X86Emulator } from "./emulate";
import { EmulFault, ioNeeded } from "./emulateTypes";
import { completeEmulatedIo } from "./emulator";
import { KvmBus, kvmIoBusRead, kvmIoBusWrite } from "./ioBus";
import { kvmGetLinearRip, kvmRegisterReadRaw, kvmRegisterWriteRaw, kvmRegRead32 } from "./kvmCacheRegs";
import { kvmVcpuReadGuest, kvmVcpuWriteGuest } from "./memslots";
import { Pferr } from "./mmu/fault";
import { vcpuMatchMmioGpa } from "./mmu/mmu";
import { gvaToGpa } from "./mmu/pagingTmpl";
import { type KvmVcpu, PAGE_SIZE, VcpuReg } from "./types";
import { KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_PIO_PAGE_OFFSET, KvmExit } from "./uapi";
import { ExcVector, kvmSkipEmulatedInstruction } from "./x86Events";

const APIC_DEFAULT_PHYS_PAGE = 0xfee00000 / PAGE_SIZE;

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
export const privilege = (vcpu: KvmVcpu): number => (vcpu.module.ops.getCpl(vcpu) === 3 ? Pferr.USER : 0);

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
export function completeEmulatedMmio(vcpu: KvmVcpu): number {
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
export function completeFastPioOut(vcpu: KvmVcpu): number {
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
export function completeFastPioIn(vcpu: KvmVcpu): number {
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
