/** Memory operands of x87 instructions: floating point of 32, 64 and 80 bits, integers of 16, 32 and 64 bits. */
import { Access, type Cpu } from "../cpu";
import { fromInteger } from "../float/integers";
import { type Num, unpack32, unpack64 } from "../float/number";
import type { Instruction } from "../isa/instruction";
import { effectiveOffset, linearAddress } from "../system/operands";

/** Offset of the current instruction's operand, once it has been accessed. */
export const operand = { known: false, offset: 0n };

function address(cpu: Cpu, instruction: Instruction, size: number, access: Access): bigint {
  operand.offset = effectiveOffset(cpu, instruction);
  operand.known = true;
  return linearAddress(cpu, instruction.segment, operand.offset, size, access);
}

/** Splits bigints without allocating. */
const whole = new BigUint64Array(1);
const halves = new Int32Array(whole.buffer);

function read(cpu: Cpu, instruction: Instruction, size: number): void {
  whole[0] = cpu.mmu.read(address(cpu, instruction, size, Access.READ), size);
}

/** 32 or 64 bits, by the operand's size. */
export function readFloat(cpu: Cpu, instruction: Instruction, n: Num): void {
  const { size } = instruction.operands[0];
  read(cpu, instruction, size);
  if (size === 8) unpack64(n, halves[1], halves[0], false);
  else unpack32(n, halves[0], false);
}

/** A signed integer of the operand's size. */
export function readInteger(cpu: Cpu, instruction: Instruction, n: Num): void {
  const { size } = instruction.operands[0];
  read(cpu, instruction, size);
  const lo = size === 2 ? (halves[0] << 16) >> 16 : halves[0];
  fromInteger(size === 8 ? halves[1] : lo >> 31, lo, n);
}

/** Ten bytes as they are: low and high half of the significand, then sign and exponent. */
export function readTenBytes(cpu: Cpu, instruction: Instruction, words: Int32Array): void {
  const linear = address(cpu, instruction, 10, Access.READ);
  const last = cpu.mmu.read(linear + 8n, 2);
  whole[0] = cpu.mmu.read(linear, 8);
  words[0] = halves[0];
  words[1] = halves[1];
  words[2] = Number(last);
}

export function writeTenBytes(cpu: Cpu, instruction: Instruction, words: Int32Array): void {
  const linear = address(cpu, instruction, 10, Access.WRITE);
  cpu.mmu.checkWrite(linear + 8n, 2);
  halves[0] = words[0];
  halves[1] = words[1];
  cpu.mmu.write(linear, 8, whole[0]);
  cpu.mmu.write(linear + 8n, 2, BigInt(words[2] & 0xffff));
}

/** Writes the low bytes of hi:lo, as many as the operand has. */
export function writeWords(cpu: Cpu, instruction: Instruction, hi: number, lo: number): void {
  const { size } = instruction.operands[0];
  const linear = address(cpu, instruction, size, Access.WRITE);
  halves[0] = size === 2 ? lo & 0xffff : lo;
  halves[1] = size === 8 ? hi : 0;
  cpu.mmu.write(linear, size, whole[0]);
}
