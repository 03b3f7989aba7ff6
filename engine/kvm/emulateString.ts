/** String instructions and port I/O of the emulator (arch/x86/kvm/emulate.c): one iteration at a time. */
import { OperandKind, Rep } from "../cpu/isa/instruction";
import { Rflags, Seg } from "../cpu/state";
import type { X86Emulator } from "./emulate";
import { accessSystem } from "./emulateSegment";
import { bytesOf, type EmulateResult, EmulFault, ioNeeded, numberOf } from "./emulateTypes";
import { completeEmulatorPioIn, emulatorPioIn, emulatorPioOut } from "./emulatorIo";
import { isProtmode } from "./kvmCacheRegs";
import { VcpuReg } from "./types";
import { ExcVector } from "./x86Events";

const STRINGS: ReadonlySet<string> = new Set(["MOVS", "STOS", "LODS", "CMPS", "SCAS", "INS", "OUTS"]);
/** Whether an instruction is a string operation, which may have REP. */
export const isString = (mnemonic: string): boolean => STRINGS.has(mnemonic);

/** Bytes read ahead by a string IN (struct read_cache). */
const READ_CACHE = 1024;
/** Iterations of a repeated string instruction between two entries of the guest. */
const RESTART_MASK = 0x3ffn;
/** VMware's backdoor: ports a guest may use at any privilege (enable_vmware_backdoor). */
const VMWARE_PORT = 0x5658;
const VMWARE_PORT_HB = 0x5659;

/** emulator_io_permitted: IOPL, or the I/O map of the TSS (SDM 1 19.5). @throws EmulFault #GP(0) */
export function checkIoPermission(c: X86Emulator, port: number, size: number): void {
  const { vcpu } = c;
  const { ops, params } = vcpu.module;
  if (params.enable_vmware_backdoor && (port === VMWARE_PORT || port === VMWARE_PORT_HB)) return;
  if (!isProtmode(vcpu)) return;
  const iopl = (Number(c.rflags) >> Rflags.IOPL_SHIFT) & 3;
  if (!c.flag(Rflags.VM) && ops.getCpl(vcpu) <= iopl) return;
  const refuse = (): never => {
    throw new EmulFault(ExcVector.GP, 0);
  };
  const tr = ops.getSegment(vcpu, Seg.TR);
  if (tr.unusable || tr.limit < 103) refuse();
  const word = new Uint8Array(2);
  accessSystem(vcpu, tr.base + 102n, word, false);
  const offset = Number(numberOf(word)) + (port >> 3);
  if (offset + 1 > tr.limit) refuse();
  accessSystem(vcpu, tr.base + BigInt(offset), word, false);
  if ((Number(numberOf(word)) >> (port & 7)) & ((1 << size) - 1)) refuse();
}

/** em_in */
export function emIn(c: X86Emulator): void {
  const [dst, src] = c.insn.operands;
  const port = Number(c.readOperand(src) & 0xffffn);
  checkIoPermission(c, port, dst.size);
  c.writeReg(VcpuReg.RAX, dst.size, pioIn(c, port, dst.size, 1));
}

/** em_out */
export function emOut(c: X86Emulator): void {
  const [dst, src] = c.insn.operands;
  const port = Number(c.readOperand(dst) & 0xffffn);
  checkIoPermission(c, port, src.size);
  emulatorPioOut(c.vcpu, src.size, port, bytesOf(c.readOperand(src), src.size), 1);
}

/** pio_in_emulated: reads ahead as many items as the instruction wants from this port. @throws ioNeeded */
function pioIn(c: X86Emulator, port: number, size: number, count: number): bigint {
  const cache = c.ctxt.ioRead;
  if (cache.pos === cache.end) {
    const n = Math.max(1, Math.min(count, Math.floor(READ_CACHE / size)));
    const { pio } = c.vcpu.arch;
    if (pio.count > 0) {
      // Userspace has answered the request of the run before.
      const data = new Uint8Array(pio.size * pio.count);
      completeEmulatorPioIn(c.vcpu, data);
      cache.data = data;
    } else {
      const data = new Uint8Array(n * size);
      if (!emulatorPioIn(c.vcpu, size, port, data, n)) throw ioNeeded;
      cache.data = data;
    }
    cache.pos = 0;
    cache.end = cache.data.length;
  }
  const value = numberOf(cache.data.subarray(cache.pos, cache.pos + size));
  cache.pos += size;
  return value;
}

/** Items INS may read ahead: up to RCX, within the page of the destination. */
function insCount(c: X86Emulator, size: number, repeated: boolean): number {
  if (!repeated) return 1;
  const rcx = c.readReg(VcpuReg.RCX, c.insn.addressSize);
  const offset = Number(c.readReg(VcpuReg.RDI, c.insn.addressSize) & 0xfffn);
  const inPage = c.flag(Rflags.DF) ? Math.floor(offset / size) + 1 : Math.floor((4096 - offset) / size);
  return Number(rcx < BigInt(inPage) ? rcx : BigInt(Math.max(1, inPage)));
}

/** Item size: that of the memory operand, which the decoder gives every string instruction. */
function stringSize(c: X86Emulator): number {
  for (const op of c.insn.operands) if (op.kind === OperandKind.MEMORY) return op.size;
  return c.insn.operandSize;
}

/** One iteration of a string instruction. */
export function runString(c: X86Emulator): EmulateResult {
  const { insn } = c;
  const repeated = insn.rep !== Rep.NONE;
  const address = insn.addressSize;
  if (repeated && c.readReg(VcpuReg.RCX, address) === 0n) return "done";
  const size = stringSize(c);
  const step = c.flag(Rflags.DF) ? BigInt(-size) : BigInt(size);
  const source = () => c.linearize(insn.segment, c.readReg(VcpuReg.RSI, address), size, false);
  const target = (write: boolean) => c.linearize(Seg.ES, c.readReg(VcpuReg.RDI, address), size, write);
  let usesSource = false;
  let usesTarget = false;
  switch (c.mnemonic) {
    case "MOVS":
      c.writeLinear(target(true), size, c.readLinear(source(), size));
      usesSource = true;
      usesTarget = true;
      break;
    case "STOS":
      c.writeLinear(target(true), size, c.readReg(VcpuReg.RAX, size));
      usesTarget = true;
      break;
    case "LODS":
      c.writeReg(VcpuReg.RAX, size, c.readLinear(source(), size));
      usesSource = true;
      break;
    case "CMPS": {
      const a = c.readLinear(source(), size);
      c.alu("CMP", a, c.readLinear(target(false), size), size);
      usesSource = true;
      usesTarget = true;
      break;
    }
    case "SCAS":
      c.alu("CMP", c.readReg(VcpuReg.RAX, size), c.readLinear(target(false), size), size);
      usesTarget = true;
      break;
    case "INS": {
      const port = Number(c.readReg(VcpuReg.RDX, 2));
      checkIoPermission(c, port, size);
      const value = pioIn(c, port, size, insCount(c, size, repeated));
      c.writeLinear(target(true), size, value);
      usesTarget = true;
      break;
    }
    default: {
      const port = Number(c.readReg(VcpuReg.RDX, 2));
      checkIoPermission(c, port, size);
      const value = c.readLinear(source(), size);
      emulatorPioOut(c.vcpu, size, port, bytesOf(value, size), 1);
      usesSource = true;
    }
  }
  if (usesSource) c.addToReg(VcpuReg.RSI, step);
  if (usesTarget) c.addToReg(VcpuReg.RDI, step);
  if (!repeated) return "done";
  c.addToReg(VcpuReg.RCX, -1n);
  return afterIteration(c);
}

/** string_insn_completed, and whether to go on here or to let the guest take interrupts first. */
function afterIteration(c: X86Emulator): EmulateResult {
  const { insn, ctxt } = c;
  const rcx = c.readReg(VcpuReg.RCX, insn.addressSize);
  if (rcx === 0n) return "done";
  if (c.mnemonic === "CMPS" || c.mnemonic === "SCAS") {
    if (c.flag(Rflags.ZF) !== (insn.rep === Rep.REPE)) return "done";
  }
  ctxt.memRead.end = 0;
  ctxt.memRead.pos = 0;
  const io = ctxt.ioRead;
  const more = io.end !== 0 ? io.pos !== io.end : (rcx & RESTART_MASK) !== 0n;
  return more ? "restart" : "again";
}
