/** What a debugger wants to know of the code a vCPU runs: where, how wide, what the instruction at a place will do. */

import { decode } from "../cpu/isa/decoder";
import { newInstruction } from "../cpu/isa/instruction";
import { CodeMode } from "../cpu/state";
import type { Machine, VcpuView } from "../machine/machine";
import type { CodeContext } from "./api";

const ATTRIBUTE_L = 1n << 13n;
const ATTRIBUTE_DB = 1n << 14n;
const CR0_PE = 1n;
const EFER_LMA = 1n << 10n;
const RFLAGS_VM = 1n << 17n;
const MASK = { 16: 0xffffn, 32: 0xffff_ffffn, 64: 0xffff_ffff_ffff_ffffn } as const;

const MODE_NAMES = {
  [CodeMode.REAL]: "real mode",
  [CodeMode.VM86]: "virtual-8086 mode",
  [CodeMode.PROTECTED16]: "16-bit protected mode",
  [CodeMode.PROTECTED32]: "32-bit protected mode",
  [CodeMode.COMPAT16]: "16-bit compatibility mode",
  [CodeMode.COMPAT32]: "32-bit compatibility mode",
  [CodeMode.LONG64]: "64-bit mode",
} as const;

/** Code mode from the registers (SDM 3A 2.2). */
function codeModeOf(read: (name: string) => bigint): CodeMode {
  if (!(read("cr0") & CR0_PE)) return CodeMode.REAL;
  const attributes = read("cs.attributes");
  const wide = (attributes & ATTRIBUTE_DB) !== 0n;
  if (read("ia32_efer") & EFER_LMA) {
    if (attributes & ATTRIBUTE_L) return CodeMode.LONG64;
    return wide ? CodeMode.COMPAT32 : CodeMode.COMPAT16;
  }
  if (read("rflags") & RFLAGS_VM) return CodeMode.VM86;
  return wide ? CodeMode.PROTECTED32 : CodeMode.PROTECTED16;
}

function widthOf(mode: CodeMode, wideReal: boolean): 16 | 32 | 64 {
  if (mode === CodeMode.LONG64) return 64;
  if (mode === CodeMode.PROTECTED32 || mode === CodeMode.COMPAT32) return 32;
  return wideReal ? 32 : 16;
}

export function codeContext(view: VcpuView): CodeContext {
  const read = (name: string): bigint => view.registers.read(name);
  const mode = codeModeOf(read);
  // "Unreal" code segments keep D from protected mode (SDM 3A 10.9.2).
  const bits = widthOf(mode, mode === CodeMode.REAL && (read("cs.attributes") & ATTRIBUTE_DB) !== 0n);
  const long = mode === CodeMode.LONG64;
  const stackBits = long ? 64 : read("ss.attributes") & ATTRIBUTE_DB ? 32 : 16;
  const csBase = long ? 0n : read("cs.base");
  const ssBase = long ? 0n : read("ss.base");
  const flat = (base: bigint, offset: bigint): bigint => (base + offset) & (long ? MASK[64] : MASK[32]);
  return {
    bits,
    csBase,
    ssBase,
    linear: flat(csBase, read("rip")),
    stack: flat(ssBase, read("rsp") & MASK[stackBits]),
    frame: flat(ssBase, read("rbp") & MASK[stackBits]),
    mode: MODE_NAMES[mode],
  };
}

/** What stepping over an instruction has to mind. */
export interface CodeAt {
  readonly length: number;
  /** Comes back behind itself after running something else: CALL, INT, repeated string instruction, HLT, SYSCALL. */
  readonly returns: boolean;
  /** RET, far RET or IRET. */
  readonly isReturn: boolean;
}

const scratch = newInstruction();
const MAX_LENGTH = 15;

/** Offset of the opcode byte behind legacy and REX prefixes. */
export function opcodeOffset(bytes: Uint8Array, bits: 16 | 32 | 64): number {
  let i = 0;
  while (i < bytes.length && [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0, 0xf2, 0xf3].includes(bytes[i])) i++;
  if (bits === 64 && i < bytes.length && bytes[i] >> 4 === 4) i++;
  return i;
}

const isString = (opcode: number): boolean =>
  (opcode >= 0xa4 && opcode <= 0xa7) || (opcode >= 0xaa && opcode <= 0xaf) || (opcode >= 0x6c && opcode <= 0x6f);

/** The instruction at a linear address, or undefined when its bytes are unreadable or no instruction. */
export function instructionAt(machine: Machine, vcpu: number, linear: bigint, bits: 16 | 32 | 64): CodeAt | undefined {
  const bytes = machine.readMemory("gva", vcpu, linear, MAX_LENGTH);
  return classify(bytes, bits);
}

function classify(bytes: Uint8Array, bits: 16 | 32 | 64): CodeAt | undefined {
  const length = decode(bytes, 0, bytes.length, bits, scratch);
  if (length <= 0) return undefined;
  const at = opcodeOffset(bytes, bits);
  const opcode = bytes[at];
  const reg = (bytes[at + 1] >> 3) & 7;
  const repeated = bytes.subarray(0, at).some((b) => b === 0xf2 || b === 0xf3);
  const call = opcode === 0xe8 || opcode === 0x9a || (opcode === 0xff && (reg === 2 || reg === 3));
  const interrupt = opcode === 0xcc || opcode === 0xcd || opcode === 0xce || opcode === 0xf1;
  const syscall = opcode === 0x0f && bytes[at + 1] === 0x05;
  const returns = call || interrupt || syscall || opcode === 0xf4 || (repeated && isString(opcode));
  const isReturn = [0xc2, 0xc3, 0xca, 0xcb, 0xcf].includes(opcode);
  return { length, returns, isReturn };
}

/** Reads an unsigned little-endian integer at a linear address, or undefined where nothing is mapped. */
export function readInteger(machine: Machine, vcpu: number, linear: bigint, length: number): bigint | undefined {
  const bytes = machine.readMemory("gva", vcpu, linear, length);
  if (bytes.length < length) return undefined;
  let value = 0n;
  for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
  return value;
}

/**
 * Linear address of the handler that the interrupt table now names for `vector` (SDM 3A 6.10, 6.14, 20.1.4), or undefined
 * when the table cannot be read, or names a task gate.
 */
export function vectorTarget(machine: Machine, vcpu: number, vector: number): bigint | undefined {
  const { registers } = machine.vcpus[vcpu];
  const read = (name: string): bigint => registers.read(name);
  const integer = (linear: bigint, length: number): bigint | undefined => readInteger(machine, vcpu, linear, length);
  const idt = read("idtr.base");
  const mode = codeModeOf(read);
  if (mode === CodeMode.REAL) {
    const entry = integer(idt + BigInt(4 * vector), 4);
    return entry === undefined ? undefined : (entry >> 16n) * 16n + (entry & 0xffffn);
  }
  const long = (read("ia32_efer") & EFER_LMA) !== 0n;
  const at = idt + BigInt((long ? 16 : 8) * vector);
  const low = integer(at, 8);
  if (low === undefined) return undefined;
  const type = (low >> 40n) & 0x1fn;
  if (type === 5n) return undefined;
  const offset16 = (low & 0xffffn) | ((low >> 32n) & 0xffff_0000n);
  if (long) {
    const high = integer(at + 8n, 4);
    return high === undefined ? undefined : offset16 | (high << 32n);
  }
  const offset = type === 6n || type === 7n ? offset16 & 0xffffn : offset16;
  const selector = (low >> 16n) & 0xffffn;
  const table = selector & 4n ? read("ldtr.base") : read("gdtr.base");
  const descriptor = integer(table + (selector & 0xfff8n), 8);
  if (descriptor === undefined) return undefined;
  const base = ((descriptor >> 16n) & 0xff_ffffn) | ((descriptor >> 32n) & 0xff00_0000n);
  return (base + offset) & MASK[32];
}
