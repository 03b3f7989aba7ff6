/** Control instructions: words, environments and whole states (SDM 1 8.1.9, 8.1.10; 2A FINIT, FLDCW, FSTENV, FSAVE ...). */
import { Access, type Cpu, Next, type SystemHandler } from "../cpu";
import { Kind, Num } from "../float/number";
import { type Instruction, OperandKind } from "../isa/instruction";
import { type CpuState, Off } from "../state";
import { effectiveAddress, effectiveOffset, isRealOrVm86, linearAddress } from "../system/operands";
import { checkPendingX87, checkWait, endFloatError } from "./checks";
import { control, Fsw, initialize, load, setStatus, setTags, status, tags, top, updateSummary } from "./stack";
import { computing, controlling } from "./unit";

/** FCW bits that can be written; bit 6 is reserved and reads as 1. */
const CONTROL_BITS = 0x1f3f;
const CONTROL_FIXED = 0x40;
const OPCODE_BITS = 0x7ff;

export function setControl(state: CpuState, value: number): void {
  state.view.setUint16(state.base + Off.FCW, (value & CONTROL_BITS) | CONTROL_FIXED, true);
}

const Tag = { VALID: 0, ZERO: 1, SPECIAL: 2, EMPTY: 3 } as const;

const value = new Num();

/** The tag word with two bits a register, worked out from the registers' contents (SDM 1 8.1.7). */
function fullTags(state: CpuState): number {
  const used = tags(state);
  const first = top(state);
  let word = 0;
  for (let register = 0; register < 8; register++) {
    let tag: number = Tag.EMPTY;
    if ((used >> register) & 1) {
      load(state, (register - first) & 7, value);
      if (value.kind === Kind.ZERO) tag = Tag.ZERO;
      else tag = value.kind === Kind.FINITE && value.denormal === 0 ? Tag.VALID : Tag.SPECIAL;
    }
    word |= tag << (register * 2);
  }
  return word;
}

function setFullTags(state: CpuState, word: number): void {
  let used = 0;
  for (let register = 0; register < 8; register++) {
    if (((word >> (register * 2)) & 3) !== Tag.EMPTY) used |= 1 << register;
  }
  setTags(state, used);
}

const environmentSize = (instruction: Instruction): number => (instruction.operandSize === 2 ? 14 : 28);
const STACK_SIZE = 80;

/** Linear address of a block, all of it within its segment. */
function blockAddress(cpu: Cpu, instruction: Instruction, size: number, write: boolean): bigint {
  const access = write ? Access.WRITE : Access.READ;
  return linearAddress(cpu, instruction.segment, effectiveOffset(cpu, instruction), size, access);
}

function readBlock(cpu: Cpu, instruction: Instruction, size: number): DataView {
  const linear = blockAddress(cpu, instruction, size, false);
  const block = new DataView(new ArrayBuffer(size));
  for (let at = 0; at < size; at += 2) block.setUint16(at, Number(cpu.mmu.read(linear + BigInt(at), 2)), true);
  return block;
}

function writeBlock(cpu: Cpu, instruction: Instruction, block: DataView): void {
  const size = block.byteLength;
  const linear = blockAddress(cpu, instruction, size, true);
  // All of it or nothing: the block spans two pages at most.
  cpu.mmu.checkWrite(linear, 2);
  cpu.mmu.checkWrite(linear + BigInt(size - 2), 2);
  for (let at = 0; at < size; at += 2) cpu.mmu.write(linear + BigInt(at), 2, BigInt(block.getUint16(at, true)));
}

/** Writes the environment in the format of operand size and mode (SDM 1 figures 8-9 to 8-12). */
function storeEnvironment(cpu: Cpu, instruction: Instruction, block: DataView): void {
  const { state } = cpu;
  const { view, base } = state;
  const narrow = instruction.operandSize === 2;
  const step = narrow ? 2 : 4;
  const real = isRealOrVm86(cpu);
  const put = (index: number, low: number, high = 0xffff): void => {
    block.setUint16(index * step, low, true);
    if (!narrow) block.setUint16(index * step + 2, high, true);
  };
  put(0, control(state));
  put(1, status(state));
  put(2, fullTags(state));
  const opcode = view.getUint16(base + Off.FOP, true) & OPCODE_BITS;
  const code = view.getUint16(base + Off.FCS, true);
  const data = view.getUint16(base + Off.FDS, true);
  let ip = state.u32(Off.FIP);
  let dp = state.u32(Off.FDP);
  if (!real) {
    put(3, ip, ip >>> 16);
    put(4, code, opcode);
    put(5, dp, dp >>> 16);
    put(6, data);
    return;
  }
  ip = (ip + code * 16) >>> 0;
  dp = (dp + data * 16) >>> 0;
  put(3, ip, 0);
  put(5, dp, 0);
  if (narrow) {
    put(4, ((ip >>> 4) & 0xf000) | opcode);
    put(6, (dp >>> 4) & 0xf000);
  } else {
    // The upper halves of the pointers lie across the words: bits 31:16 at 27:12.
    block.setUint32(16, (((ip >>> 16) << 12) | opcode) >>> 0, true);
    block.setUint32(24, ((dp >>> 16) << 12) >>> 0, true);
  }
}

function loadEnvironment(cpu: Cpu, instruction: Instruction, block: DataView): void {
  const { state } = cpu;
  const { view, base } = state;
  const narrow = instruction.operandSize === 2;
  const step = narrow ? 2 : 4;
  const word = (index: number): number => block.getUint16(index * step, true);
  setControl(state, word(0));
  setStatus(state, word(1));
  setFullTags(state, word(2));
  let ip: number;
  let dp: number;
  let code = 0;
  let data = 0;
  let opcode: number;
  if (isRealOrVm86(cpu)) {
    const high = (index: number): number =>
      narrow ? (word(index) >> 12) & 0xf : (block.getUint32(index * step, true) >>> 12) & 0xffff;
    ip = (word(3) | (high(4) << 16)) >>> 0;
    dp = (word(5) | (high(6) << 16)) >>> 0;
    opcode = word(4);
  } else {
    ip = narrow ? word(3) : block.getUint32(12, true);
    dp = narrow ? word(5) : block.getUint32(20, true);
    code = word(4);
    data = word(6);
    opcode = narrow ? 0 : block.getUint16(18, true);
  }
  state.setU64(Off.FIP, BigInt(ip));
  state.setU64(Off.FDP, BigInt(dp));
  view.setUint16(base + Off.FCS, code, true);
  view.setUint16(base + Off.FDS, data, true);
  view.setUint16(base + Off.FOP, opcode & OPCODE_BITS, true);
  updateSummary(state);
}

const fnstenv = controlling(false, (cpu, instruction) => {
  const block = new DataView(new ArrayBuffer(environmentSize(instruction)));
  storeEnvironment(cpu, instruction, block);
  writeBlock(cpu, instruction, block);
  // All exceptions are masked afterwards.
  setControl(cpu.state, control(cpu.state) | Fsw.EXCEPTIONS);
  updateSummary(cpu.state);
});

const fldenv = controlling(true, (cpu, instruction) => {
  loadEnvironment(cpu, instruction, readBlock(cpu, instruction, environmentSize(instruction)));
});

const fnsave = controlling(false, (cpu, instruction) => {
  const { state } = cpu;
  const size = environmentSize(instruction);
  const block = new DataView(new ArrayBuffer(size + STACK_SIZE));
  storeEnvironment(cpu, instruction, block);
  const first = top(state);
  for (let i = 0; i < 8; i++) {
    const from = state.base + Off.X87 + ((first + i) & 7) * 16;
    for (let b = 0; b < 10; b++) block.setUint8(size + i * 10 + b, state.u8[from + b]);
  }
  writeBlock(cpu, instruction, block);
  initialize(state);
});

const frstor = controlling(true, (cpu, instruction) => {
  const { state } = cpu;
  const size = environmentSize(instruction);
  const block = readBlock(cpu, instruction, size + STACK_SIZE);
  loadEnvironment(cpu, instruction, block);
  const first = top(state);
  for (let i = 0; i < 8; i++) {
    const to = state.base + Off.X87 + ((first + i) & 7) * 16;
    for (let b = 0; b < 10; b++) state.u8[to + b] = block.getUint8(size + i * 10 + b);
  }
});

const fldcw = controlling(true, (cpu, instruction) => {
  setControl(cpu.state, Number(cpu.mmu.read(effectiveAddress(cpu, instruction, 2), 2)));
  updateSummary(cpu.state);
});

const fnstcw = controlling(false, (cpu, instruction) => {
  cpu.mmu.write(effectiveAddress(cpu, instruction, 2), 2, BigInt(control(cpu.state)));
});

const fnstsw = controlling(false, (cpu, instruction) => {
  const { view, base } = cpu.state;
  const word = status(cpu.state);
  if (instruction.operands[0].kind === OperandKind.GPR) view.setUint16(base + Off.GPR, word, true);
  else cpu.mmu.write(effectiveAddress(cpu, instruction, 2), 2, BigInt(word));
});

const fnclex = controlling(false, (cpu) => {
  const { state } = cpu;
  setStatus(state, status(state) & ~(Fsw.EXCEPTIONS | Fsw.SF | Fsw.ES | Fsw.BUSY));
  endFloatError(cpu);
});

const fninit = controlling(false, (cpu) => {
  initialize(cpu.state);
  endFloatError(cpu);
});

const fwait: SystemHandler = (cpu) => {
  checkWait(cpu);
  return checkPendingX87(cpu) ? Next.JUMP_ATTENTION : Next.SEQUENTIAL;
};

export const controlHandlers: Readonly<Record<string, SystemHandler>> = {
  FWAIT: fwait,
  FNINIT: fninit,
  FNCLEX: fnclex,
  FLDCW: fldcw,
  FNSTCW: fnstcw,
  FNSTSW: fnstsw,
  FNSTENV: fnstenv,
  FLDENV: fldenv,
  FNSAVE: fnsave,
  FRSTOR: frstor,
  // FNOP waits like any other; FENI, FDISI and FSETPM of older coprocessors do nothing (SDM 3B 23.18.2).
  FNOP: computing(() => {}),
  FNENI: controlling(false, () => {}),
  FNDISI: controlling(false, () => {}),
  FNSETPM: controlling(false, () => {}),
};
