/** Moves, conversions and exchanges (SDM 1 5.1.1). */
import { Off, Seg } from "../../state";
import type { Context } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";
import { Form } from "./shape";

/** MOV; a selector moved to a general register is zero-extended to the operand size. */
function mov(c: Context): void {
  const source = c.readAs(1, c.size(0));
  c.write(0, source.size < c.size(0) ? c.zeroExtend(source, c.size(0)) : source);
}

const movzx = (c: Context): void => c.write(0, c.let(c.zeroExtend(c.read(1), c.size(0))));

function movsx(c: Context): void {
  const source = c.read(1);
  c.write(0, c.let(source.size < c.size(0) ? c.signExtend(source, c.size(0)) : source));
}

function lea(c: Context): void {
  c.write(0, c.let(c.low(c.offset(), c.size(0))));
}

function xchg(c: Context): void {
  const destination = c.modify(0);
  const source = c.read(1);
  destination.write(source);
  c.write(1, destination.value);
}

/** The register destination is written whether or not the condition holds: 32-bit forms clear the upper half. */
function cmov(c: Context): void {
  const source = c.read(1);
  const old = c.read(0);
  c.write(0, c.let(c.select(c.condition(c.shape.condition), source, old)));
}

function setcc(c: Context): void {
  const yes = c.isZero(c.isZero(c.condition(c.shape.condition)));
  c.write(0, c.let(c.low(yes, 1)));
}

/** Reverses the bytes of a value of 2, 4 or 8 bytes. */
function reverseBytes(c: Context, v: Value): Value {
  const x = c.let(v);
  if (x.size === 2) return c.or(c.shlBy(x, 8), c.shrBy(x, 8));
  if (x.size === 4) {
    return c.or(
      c.and(c.rotl(x, c.constant(4, 8)), c.constant(4, 0x00ff00ff)),
      c.and(c.rotr(x, c.constant(4, 8)), c.constant(4, 0xff00ff00)),
    );
  }
  const swap = (a: Value, mask: bigint, by: number): Value => {
    const m = c.constant(8, mask);
    return c.let(c.or(c.and(c.shrBy(a, by), m), c.shlBy(c.and(a, m), by)));
  };
  const bytes = swap(x, 0x00ff00ff00ff00ffn, 8);
  const words = swap(bytes, 0x0000ffff0000ffffn, 16);
  return c.rotl(words, c.constant(8, 32));
}

/** BSWAP of a 16-bit register is undefined (SDM 2A); processors clear it. */
function bswap(c: Context): void {
  const x = c.read(0);
  c.write(0, c.size(0) === 2 ? c.constant(2, 0) : c.let(reverseBytes(c, x)));
}

const movbe = (c: Context): void => c.write(0, c.let(reverseBytes(c, c.read(1))));

/** CBW, CWDE, CDQE: the lower half of the accumulator, sign-extended. */
function cbw(c: Context): void {
  const size = c.size(0);
  c.setGpr(0, c.let(c.signExtend(c.gpr(0, (size / 2) as Size), size)));
}

/** CWD, CDQ, CQO: the accumulator's sign throughout rDX. */
function cwd(c: Context): void {
  const size = c.size(0);
  c.setGpr(2, c.let(c.sar(c.gpr(0, size), c.constant(size, size * 8 - 1))));
}

function xlat(c: Context): void {
  const size = c.shape.addressSize as Size;
  const sum = c.add(c.gpr(3, size), c.zeroExtend(c.gpr(0, 1), size));
  const linear = c.linear(c.shape.flat ? Seg.DS : "operand", c.let(c.zeroExtend(sum, 8)), 1, "read");
  c.setGpr(0, c.let(c.reference(linear, 1, "read", "operand").load(1)));
}

function push(c: Context): void {
  const size = c.shape.operandSize as Size;
  const source = c.readAs(0, size);
  c.push(source.size < size ? c.let(c.zeroExtend(source, size)) : source);
}

/**
 * POP. With rSP as base the address uses the value after the increment (SDM 2B): whoever fills in the record or the
 * region's instruction has added the operand size to the displacement already.
 */
function pop(c: Context): void {
  const { value, commit } = c.pop(c.shape.operandSize as Size);
  if (c.form(0) === Form.MEMORY) {
    const destination = c.operand(0, "write");
    commit();
    destination.store(value);
  } else {
    commit();
    c.write(0, value);
  }
}

/** PUSHA and PUSHAD: eight registers, SP as it was before. */
function pusha(c: Context): void {
  const size = c.shape.operandSize as Size;
  const sp = c.let(c.gpr(4, 8));
  const slots = [0, 1, 2, 3, 4, 5, 6, 7].map((register) => {
    const offset = c.let(c.wrapStack(c.sub(sp, c.constant(8, size * (register + 1)))));
    return { register, offset, reference: c.stack(offset, size, "write") };
  });
  for (const { register, reference } of slots) reference.store(c.gpr(register, size));
  c.setStackPointer(slots[7].offset);
}

/** POPA and POPAD: the stacked SP is skipped. */
function popa(c: Context): void {
  const size = c.shape.operandSize as Size;
  const sp = c.let(c.gpr(4, 8));
  const values = [7, 6, 5, 4, 3, 2, 1, 0].map((register, i) => {
    const offset = c.let(c.wrapStack(c.add(sp, c.constant(8, size * i))));
    return { register, value: c.let(c.stack(offset, size, "read").load(size)) };
  });
  for (const { register, value } of values) if (register !== 4) c.setGpr(register, value);
  c.setStackPointer(c.let(c.wrapStack(c.add(sp, c.constant(8, size * 8)))));
}

/** LEAVE: rSP = rBP, pop rBP. */
function leave(c: Context): void {
  const size = c.shape.operandSize as Size;
  const top = c.let(c.wrapStack(c.gpr(5, 8)));
  const value = c.let(c.stack(top, size, "read").load(size));
  c.setStackPointer(c.let(c.wrapStack(c.add(top, c.constant(8, size)))));
  c.setGpr(5, value);
}

const nop = (): void => {};

/** The four-operand exchanges of 16 bytes are in arithmetic.ts beside CMPXCHG. */
export const moves: Family = {
  MOV: define(mov),
  MOVNTI: define(mov),
  MOVZX: define(movzx),
  MOVSX: define(movsx),
  MOVSXD: define(movsx),
  MOVBE: define(movbe),
  LEA: define(lea, { memoryAddressSize: true }),
  XCHG: define(xchg),
  CMOVCC: define(cmov, { condition: true }),
  SETCC: define(setcc, { condition: true }),
  BSWAP: define(bswap),
  CBW: define(cbw),
  CWD: define(cwd),
  XLAT: define(xlat, { addressSize: true, implicitMemory: true }),
  PUSH: define(push, { modeMatters: "always", operandSize: true }),
  POP: define(pop, { modeMatters: "always", operandSize: true }),
  PUSHA: define(pusha, { modeMatters: "always", operandSize: true }),
  POPA: define(popa, { modeMatters: "always", operandSize: true }),
  LEAVE: define(leave, { modeMatters: "always", operandSize: true }),
  NOP: define(nop, { ignoresOperands: true }),
  PREFETCHW: define(nop, { ignoresOperands: true }),
  PREFETCHNTA: define(nop, { ignoresOperands: true }),
  PREFETCHT0: define(nop, { ignoresOperands: true }),
  PREFETCHT1: define(nop, { ignoresOperands: true }),
  PREFETCHT2: define(nop, { ignoresOperands: true }),
  ENDBR64: define(nop, { ignoresOperands: true }),
  ENDBR32: define(nop, { ignoresOperands: true }),
  LFENCE: define(nop, { ignoresOperands: true }),
  MFENCE: define(nop, { ignoresOperands: true }),
  SFENCE: define(nop, { ignoresOperands: true }),
};

/** SALC: AL = CF ? FF : 0. */
function salc(c: Context): void {
  c.setGpr(0, c.let(c.low(c.neg(c.carry()), 1)));
}

function lahf(c: Context): void {
  c.write(0, c.let(c.low(c.flagsByte(), 1)));
}

function sahf(c: Context): void {
  const bits = c.zeroExtend(c.read(0), 4);
  c.setFlagBits(bits, c.let(c.overflow()));
}

const setDirection =
  (down: boolean) =>
  (c: Context): void => {
    const rest = c.loadAt(Off.FLAGS_REST, 4);
    const value = down ? c.or(rest, c.constant(4, 0x400)) : c.and(rest, c.constant(4, ~0x400));
    c.storeAt(Off.FLAGS_REST, value);
  };

/** Instructions on the flags (SDM 1 5.1.11) that ring 3 may always use. */
export const flagInstructions: Family = {
  CLC: define((c) => c.setCarry(c.constant(4, 0))),
  STC: define((c) => c.setCarry(c.constant(4, 1))),
  CMC: define((c) => c.setCarry(c.xor(c.carry(), c.constant(4, 1)))),
  CLD: define(setDirection(false)),
  STD: define(setDirection(true)),
  LAHF: define(lahf),
  SAHF: define(sahf),
  SALC: define(salc),
};
