/** Random instances of x87 instructions, and both ways to run one: this machine's processor and ours. */

import { CpuFault } from "../../../engine/cpu/cpu";
import { decode } from "../../../engine/cpu/isa/decoder";
import { newInstruction } from "../../../engine/cpu/isa/instruction";
import { OPCODES } from "../../../engine/cpu/isa/opcodes";
import { Gpr, Off } from "../../../engine/cpu/state";
import { x87Handlers } from "../../../engine/cpu/x87/handlers";
import { FloatState, type NativeInstance, type NativeResult } from "../float/native";
import { operand, significand } from "../float/values";
import { Random } from "../random";
import { DATA, program } from "../system/program";

/** Instructions by family: opcode byte and ModRM bytes with mod 3, or memory forms at [RDI]. */
type Form = readonly [opcode: number, modrm: number];

const MEMORY = 0x07;
const mem = (opcode: number, reg: number): Form => [opcode, (reg << 3) | MEMORY];
const each = (opcode: number, first: number): Form[] =>
  Array.from({ length: 8 }, (_, i) => [opcode, first + i] as const);

const ARITHMETIC = [0, 1, 4, 5, 6, 7];
// biome-ignore format: a table
export const FAMILIES: Readonly<Record<string, readonly Form[]>> = {
  add: [...each(0xd8, 0xc0), ...each(0xdc, 0xc0), ...each(0xde, 0xc0), mem(0xd8, 0), mem(0xdc, 0), mem(0xda, 0), mem(0xde, 0)],
  multiply: [...each(0xd8, 0xc8), ...each(0xdc, 0xc8), ...each(0xde, 0xc8), mem(0xd8, 1), mem(0xdc, 1), mem(0xda, 1), mem(0xde, 1)],
  subtract: [0xe0, 0xe8].flatMap((m) => [...each(0xd8, m), ...each(0xdc, m), ...each(0xde, m)]),
  divide: [0xf0, 0xf8].flatMap((m) => [...each(0xd8, m), ...each(0xdc, m), ...each(0xde, m)]),
  memory: ARITHMETIC.flatMap((reg) => [mem(0xd8, reg), mem(0xdc, reg), mem(0xda, reg), mem(0xde, reg)]),
  root: [[0xd9, 0xfa]],
  compare: [
    ...each(0xd8, 0xd0), ...each(0xd8, 0xd8), [0xde, 0xd9], ...each(0xdd, 0xe0), ...each(0xdd, 0xe8), [0xda, 0xe9], [0xd9, 0xe4],
    ...each(0xdb, 0xe8), ...each(0xdb, 0xf0), ...each(0xdf, 0xe8), ...each(0xdf, 0xf0),
    mem(0xd8, 2), mem(0xd8, 3), mem(0xdc, 2), mem(0xdc, 3), mem(0xda, 2), mem(0xda, 3), mem(0xde, 2), mem(0xde, 3),
  ],
  load: [mem(0xd9, 0), mem(0xdd, 0), mem(0xdb, 5), mem(0xdf, 0), mem(0xdb, 0), mem(0xdf, 5), mem(0xdf, 4), ...each(0xd9, 0xc0)],
  store: [mem(0xd9, 2), mem(0xdd, 2), mem(0xd9, 3), mem(0xdd, 3), mem(0xdb, 7), ...each(0xdd, 0xd0), ...each(0xdd, 0xd8)],
  integer: [mem(0xdf, 2), mem(0xdb, 2), mem(0xdf, 3), mem(0xdb, 3), mem(0xdf, 7), mem(0xdf, 1), mem(0xdb, 1), mem(0xdd, 1)],
  decimal: [mem(0xdf, 6)],
  constant: [0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee].map((m) => [0xd9, m] as const),
  sign: [[0xd9, 0xe0], [0xd9, 0xe1], [0xd9, 0xe5], [0xd9, 0xd0], [0xd9, 0xf6], [0xd9, 0xf7], ...each(0xdd, 0xc0), ...each(0xdf, 0xc0)],
  alias: [...each(0xd9, 0xd8), ...each(0xdd, 0xc8), ...each(0xdf, 0xc8), ...each(0xdf, 0xd0), ...each(0xdf, 0xd8)],
  aliasCompare: [...each(0xdc, 0xd0), ...each(0xdc, 0xd8), ...each(0xde, 0xd0)],
  exchange: [...each(0xd9, 0xc8), ...[0xc0, 0xc8, 0xd0, 0xd8].flatMap((m) => [...each(0xda, m), ...each(0xdb, m)])],
  round: [[0xd9, 0xfc]],
  scale: [[0xd9, 0xfd]],
  extract: [[0xd9, 0xf4]],
  remainder: [[0xd9, 0xf8], [0xd9, 0xf5]],
  transcendental: [0xf0, 0xf1, 0xf2, 0xf3, 0xf9, 0xfb, 0xfe, 0xff].map((m) => [0xd9, m] as const),
  environment: [mem(0xd9, 4), mem(0xd9, 6), mem(0xdd, 4), mem(0xdd, 6)],
  control: [mem(0xd9, 5), mem(0xd9, 7), mem(0xdd, 7), [0xdf, 0xe0], [0xdb, 0xe2], [0xdb, 0xe3]],
};

/** Ten bytes of a random extended value; related to `other` if given. */
function extended(random: Random, other?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  let exponent: number;
  let fraction = significand(random, 63);
  let integer = 1n;
  switch (random.below(12)) {
    case 0:
      exponent = random.pick([0, 0x7fff]);
      integer = random.oneIn(4) ? BigInt(random.below(2)) : exponent === 0 ? 0n : 1n;
      if (random.oneIn(3)) fraction = 0n;
      break;
    case 1:
      exponent = random.below(0x8000);
      integer = BigInt(random.oneIn(8) ? 0 : 1);
      break;
    case 2:
      exponent = random.below(4) + random.pick([0, 0x7ffb]);
      if (exponent === 0) integer = 0n;
      break;
    case 3:
      exponent =
        16383 + random.pick([-1022, -1023, -1050, -126, -127, -140, 127, 128, 1023, 1024]) + random.between(-2, 2);
      break;
    case 4:
    case 5:
      exponent = 16383 + random.between(-70, 70);
      break;
    case 6:
      // An integer, or a half more.
      exponent = 16383 + random.between(0, 66);
      fraction = ((fraction >> BigInt(random.between(0, 63))) << BigInt(random.between(0, 63))) & ((1n << 63n) - 1n);
      break;
    default:
      exponent = 16383 + random.between(-3, 3);
  }
  let sign = random.below(2) << 15;
  if (other && random.oneIn(3)) {
    const from = new DataView(other.buffer, other.byteOffset);
    const exponents = from.getUint16(8, true);
    exponent = Math.max(0, (exponents & 0x7fff) + random.pick([0, 0, 0, -1, 1, random.between(-70, 70)])) & 0x7fff;
    sign = random.oneIn(2) ? exponents & 0x8000 : ~exponents & 0x8000;
    const bits = from.getBigUint64(0, true) + BigInt(random.between(-2, 2));
    integer = BigInt.asUintN(64, bits) >> 63n;
    fraction = BigInt.asUintN(63, bits);
  }
  view.setBigUint64(0, (integer << 63n) | fraction, true);
  view.setUint16(8, sign | exponent, true);
  return bytes;
}

function memoryOperand(random: Random, [opcode, modrm]: Form, into: DataView): void {
  for (let at = 0; at < 16; at += 8) into.setBigUint64(at, random.u64(), true);
  const reg = modrm >> 3;
  if (opcode === 0xdf && reg === 4) {
    // Packed BCD with valid digits.
    for (let i = 0; i < 9; i++) into.setUint8(i, random.below(10) * 16 + random.below(10));
    into.setUint8(9, random.pick([0, 0x80]));
  } else if (opcode === 0xdb && reg === 5) {
    const value = extended(random);
    for (let i = 0; i < 10; i++) into.setUint8(i, value[i]);
  } else if (opcode === 0xda || opcode === 0xde || opcode === 0xdf || opcode === 0xdb) {
    into.setBigUint64(
      0,
      random.oneIn(2) ? significand(random, 64) : BigInt.asUintN(64, BigInt(random.between(-5, 5))),
      true,
    );
  } else if (opcode === 0xdc || opcode === 0xdd) into.setBigUint64(0, operand(random, 64), true);
  else if (opcode === 0xd8 || reg === 0) into.setUint32(0, Number(operand(random, 32)), true);
}

export interface X87Instance {
  readonly family: string;
  readonly code: readonly number[];
  readonly state: FloatState;
}

/** F2XM1 and FYL2XP1 are defined for small operands only: takes the others' exponents down. */
function limitOperand([, modrm]: Form, state: FloatState): void {
  const at = FloatState.st(0) + 8;
  const word = state.view.getUint16(at, true);
  const exponent = word & 0x7fff;
  const limit = modrm === 0xf0 ? 16382 : modrm === 0xf9 ? 16380 : 0x7fff;
  if (exponent > limit && exponent < 0x7fff)
    state.view.setUint16(at, (word & 0x8000) | ((exponent % 100) + limit - 99), true);
}

/** A random instance: exceptions masked or not, every rounding and precision, mostly a full stack. */
export function x87Instance(seed: number, family: string): X87Instance {
  const random = new Random(seed);
  const form = random.pick(FAMILIES[family]);
  const state = new FloatState();
  const masks = random.oneIn(4) ? random.below(64) : 0x3f;
  state.fcw = 0x40 | masks | (random.pick([0, 2, 3, 3, 3]) << 8) | (random.below(4) << 10);
  const topOfStack = random.below(8);
  const conditions = (random.below(8) << 8) | (random.below(2) << 14);
  state.fsw = (topOfStack << 11) | conditions;
  // Exceptions that have been before: only masked ones, so that nothing is pending.
  if (random.oneIn(4)) state.fsw |= random.below(64) & masks;
  const pushes = ["load", "constant", "extract", "push"].includes(family);
  const full = pushes ? 0xff & ~(1 << ((topOfStack + 7) & 7)) : 0xff;
  state.ftw = random.oneIn(6) ? random.below(256) : full;
  const first = extended(random);
  for (let i = 0; i < 8; i++) state.bytes.set(i === 0 ? first : extended(random, first), FloatState.st(i));
  if (family === "transcendental") limitOperand(form, state);
  memoryOperand(random, form, new DataView(state.memory.buffer, state.memory.byteOffset));
  if (family === "environment") {
    for (let at = 0; at < 128; at += 4)
      state.view.setUint32(state.memory.byteOffset - state.bytes.byteOffset + at, random.u32(), true);
    // Opcode, instruction and data pointers.
    state.view.setUint16(6, random.below(2048), true);
    state.view.setBigUint64(8, BigInt(random.u32()), true);
    state.view.setBigUint64(16, BigInt(random.u32()), true);
  }
  if (form[0] === 0xd9 && form[1] === 0x2f) {
    new DataView(state.memory.buffer, state.memory.byteOffset).setUint16(0, random.u32() & 0xffff, true);
  }
  state.mxcsr = 0x1f80;
  state.rflags = 0x202 | (random.u32() & 0x8d5);
  state.rax = 0x1122_3344_5566_7788n;
  return { family, code: form, state };
}

export const toNative = ({ code, state }: X87Instance): NativeInstance => ({ code, state });

const machine = program("long", "core");
const { cpu } = machine;
const dataAt = cpu.memory.hostOffset(DATA);
const instruction = newInstruction();

/** Runs an instance through our decoder and handler. */
export function runOurs({ code, state: before }: X87Instance): NativeResult {
  const { state } = cpu;
  const { view, base } = state;
  state.setU64(Off.CR0, (state.u64(Off.CR0) & ~0xen) | 0x20n);
  view.setUint16(base + Off.FCW, before.fcw, true);
  view.setUint16(base + Off.FSW, before.fsw, true);
  view.setUint16(base + Off.FTW, before.ftw, true);
  const first = (before.fsw >> 11) & 7;
  for (let i = 0; i < 8; i++) {
    const at = base + Off.X87 + ((first + i) & 7) * 16;
    state.u8.set(before.bytes.subarray(FloatState.st(i), FloatState.st(i) + 16), at);
  }
  view.setUint16(base + Off.FOP, before.view.getUint16(6, true), true);
  state.setU64(Off.FIP, before.view.getBigUint64(8, true));
  state.setU64(Off.FDP, before.view.getBigUint64(16, true));
  view.setUint16(base + Off.FCS, 0, true);
  view.setUint16(base + Off.FDS, 0, true);
  state.setGpr(Gpr.RAX, before.rax);
  state.setGpr(7, BigInt(DATA));
  state.rflags = before.rflags;
  state.u8.set(before.memory, dataAt);
  const bytes = Uint8Array.from(code);
  decode(bytes, 0, bytes.length, 64, instruction);
  let vector = -1;
  try {
    x87Handlers[OPCODES[instruction.opcode].mnemonic](cpu, instruction);
  } catch (e) {
    if (!(e instanceof CpuFault)) throw e;
    ({ vector } = e);
  }
  const after = new FloatState();
  after.fcw = view.getUint16(base + Off.FCW, true);
  after.fsw = view.getUint16(base + Off.FSW, true);
  after.ftw = view.getUint16(base + Off.FTW, true);
  const last = (after.fsw >> 11) & 7;
  for (let i = 0; i < 8; i++) {
    const at = base + Off.X87 + ((last + i) & 7) * 16;
    after.bytes.set(state.u8.subarray(at, at + 10), FloatState.st(i));
  }
  after.mxcsr = 0x1f80;
  after.rax = state.gpr(Gpr.RAX);
  after.rflags = state.rflags;
  after.memory.set(state.u8.subarray(dataAt, dataAt + 128));
  return { state: after, vector };
}

/** Families whose C0, C2 and C3 the manual leaves undefined. */
const DEFINES_CONDITIONS = new Set([
  "compare",
  "aliasCompare",
  "remainder",
  "control",
  "environment",
  "transcendental",
]);

/** What two processors must agree on, in words. */
export function outcome({ family, code }: X87Instance, { state, vector }: NativeResult): string {
  const xam = code[0] === 0xd9 && code[1] === 0xe5;
  // FCOMI clears C1 (SDM 2A); AMD's processors keep it. Comparisons that end in an unmasked exception leave the conditions
  // and flags alone (SDM 2A FCOM, FCOMI); on AMD's they are set.
  const comi = (code[0] === 0xdb || code[0] === 0xdf) && code[1] >= 0xe8 && code[1] <= 0xf7;
  const unmasked = /compare/i.test(family) && (state.fsw & ~state.fcw & 7) !== 0;
  const conditions = (DEFINES_CONDITIONS.has(family) || xam) && !unmasked;
  const status = state.fsw & ~((conditions ? 0 : 0x4500) | (comi ? 0x200 : 0));
  const registers = Array.from({ length: 8 }, (_, i) => {
    const at = FloatState.st(i);
    return Buffer.from(state.bytes.subarray(at, at + 10))
      .reverse()
      .toString("hex");
  });
  const memory = Buffer.from(state.memory.subarray(0, family === "environment" ? 128 : 16)).toString("hex");
  const flags = unmasked ? 0 : state.rflags & 0x8d5;
  const c1 = family === "transcendental" ? 0x200 : 0;
  return [
    `vector ${vector} fcw ${state.fcw.toString(16)} fsw ${(status & ~c1).toString(16)} ftw ${state.ftw.toString(16)}`,
    `rax ${state.rax.toString(16)} flags ${flags.toString(16)} memory ${memory}`,
    ...registers,
  ].join("\n");
}
