/** Loads, stores, exchanges and constants (SDM 1 8.3.1 to 8.3.4; 2A FLD to FXCH). */
import type { Cpu, SystemHandler } from "../cpu";
import { convert } from "../float/conversion";
import { fromBcd, toBcd } from "../float/decimal";
import { integer, toInteger } from "../float/integers";
import {
  DOUBLE,
  EXTENDED,
  Flag,
  pack32,
  pack64,
  Rounding,
  SINGLE,
  setFinite,
  setIndefinite,
  setZero,
} from "../float/number";
import { type Instruction, OperandKind } from "../isa/instruction";
import { type CpuState, Rflags } from "../state";
import { readFloat, readInteger, readTenBytes, writeTenBytes, writeWords } from "./memory";
import {
  control,
  decrementTop,
  free,
  isEmpty,
  load,
  pop,
  registerAt,
  setTags,
  setTop,
  store,
  tags,
  top,
} from "./stack";
import { begin, computing, env, out, push, raise, stackFault, stackIndex, x } from "./unit";

const words = new Int32Array(3);

/** The indefinite in the formats of memory (SDM 1 4.8.3.7, 4.2.1, 4.7). */
const INDEFINITE_SINGLE = 0xffc0_0000 | 0;
const INDEFINITE_DOUBLE_HIGH = 0xfff8_0000 | 0;
const INDEFINITE_HIGH = 0xc000_0000 | 0;
const INTEGER_INDEFINITE = 0x8000_0000 | 0;

function readRegister(state: CpuState, i: number): void {
  const at = registerAt(state, i) >> 2;
  words[0] = state.i32[at];
  words[1] = state.i32[at + 1];
  words[2] = state.i32[at + 2] & 0xffff;
}

/** Writes ST(i) bit by bit and marks it in use. */
function writeRegister(state: CpuState, i: number): void {
  const at = registerAt(state, i);
  state.i32[at >> 2] = words[0];
  state.i32[(at >> 2) + 1] = words[1];
  state.view.setUint16(at + 8, words[2], true);
  setTags(state, tags(state) | (1 << ((top(state) + i) & 7)));
}

function setIndefiniteWords(): void {
  words[0] = 0;
  words[1] = INDEFINITE_HIGH;
  words[2] = 0xffff;
}

/** Pushes ten bytes as they are, or the indefinite where there is no room. */
function pushWords(state: CpuState): void {
  if (!isEmpty(state, -1)) {
    if (!stackFault(state, true)) return;
    setIndefiniteWords();
  } else raise(state, 0, false);
  decrementTop(state);
  writeRegister(state, 0);
}

const fld = computing((cpu, instruction) => {
  const { state } = cpu;
  const [operand] = instruction.operands;
  if (operand.kind !== OperandKind.MEMORY) {
    const i = stackIndex(instruction);
    if (isEmpty(state, i)) {
      if (!stackFault(state, false)) return;
      setIndefiniteWords();
      decrementTop(state);
      writeRegister(state, 0);
      return;
    }
    readRegister(state, i);
    pushWords(state);
    return;
  }
  if (operand.size === 10) {
    readTenBytes(cpu, instruction, words);
    pushWords(state);
    return;
  }
  begin(state);
  readFloat(cpu, instruction, x);
  if (!isEmpty(state, -1)) {
    push(state);
    return;
  }
  convert(env, EXTENDED, x, out);
  // A denormal is pushed even when its exception is unmasked.
  if ((raise(state, env.flags, false) & Flag.IE) === 0) push(state);
});

const fild = computing((cpu, instruction) => {
  readInteger(cpu, instruction, out);
  pushExact(cpu.state);
});

const fbld = computing((cpu, instruction) => {
  readTenBytes(cpu, instruction, words);
  fromBcd(words, out);
  pushExact(cpu.state);
});

function pushExact(state: CpuState): void {
  if (isEmpty(state, -1)) raise(state, 0, false);
  push(state);
}

/** A store to memory, and what happens to the stack behind it. */
function store32or64(cpu: Cpu, instruction: Instruction, pops: number): void {
  const { state } = cpu;
  const wide = instruction.operands[0].size === 8;
  if (isEmpty(state, 0)) {
    if ((control(state) & Flag.IE) !== 0) {
      writeWords(cpu, instruction, INDEFINITE_DOUBLE_HIGH, wide ? 0 : INDEFINITE_SINGLE);
    }
    if (stackFault(state, false) && pops !== 0) pop(state);
    return;
  }
  begin(state);
  load(state, 0, x);
  // Stores do not report denormals, and unmasked overflow and underflow store nothing: there is no adjusted exponent.
  x.denormal = 0;
  env.x87 = false;
  convert(env, wide ? DOUBLE : SINGLE, x, out);
  env.x87 = true;
  if ((env.flags & (Flag.OE | Flag.UE) & ~control(state)) !== 0) env.flags &= ~Flag.PE;
  if ((env.flags & ~control(state) & ~Flag.PE) === 0) {
    if (wide) {
      pack64(out, words, 0);
      writeWords(cpu, instruction, words[1], words[0]);
    } else writeWords(cpu, instruction, 0, pack32(out));
  }
  finishStore(state, pops);
}

/** Raises what a conversion to memory met; the stack is popped unless something other than PE is unmasked. */
function finishStore(state: CpuState, pops: number): void {
  const unmasked = raise(state, env.flags, (env.flags & Flag.PE) !== 0 && env.roundedUp);
  if (pops !== 0 && (unmasked & ~Flag.PE) === 0) pop(state);
}

const fst = (pops: number): SystemHandler =>
  computing((cpu, instruction) => {
    const { state } = cpu;
    const [operand] = instruction.operands;
    if (operand.kind === OperandKind.MEMORY && operand.size !== 10) {
      store32or64(cpu, instruction, pops);
      return;
    }
    const empty = isEmpty(state, 0);
    if (empty) setIndefiniteWords();
    else readRegister(state, 0);
    const masked = !empty || (control(state) & Flag.IE) !== 0;
    if (masked) {
      if (operand.kind === OperandKind.MEMORY) writeTenBytes(cpu, instruction, words);
      else writeRegister(state, stackIndex(instruction));
    }
    if (empty) stackFault(state, false);
    else raise(state, 0, false);
    if (masked && pops !== 0) pop(state);
  });

/** FSTP ST(i) at its undocumented place (D9 D8): an empty ST(0) is popped without exception, and nothing is stored. */
const fstpnce = computing(({ state }, instruction) => {
  if (!isEmpty(state, 0)) {
    readRegister(state, 0);
    writeRegister(state, stackIndex(instruction));
  }
  raise(state, 0, false);
  pop(state);
});

const fist = (pops: number, truncate: boolean): SystemHandler =>
  computing((cpu, instruction) => {
    const { state } = cpu;
    const width = (instruction.operands[0].size * 8) as 16 | 32 | 64;
    if (isEmpty(state, 0)) {
      if ((control(state) & Flag.IE) !== 0) {
        const lo = width === 16 ? 0x8000 : width === 32 ? INTEGER_INDEFINITE : 0;
        writeWords(cpu, instruction, INTEGER_INDEFINITE, lo);
      }
      if (stackFault(state, false) && pops !== 0) pop(state);
      return;
    }
    begin(state);
    load(state, 0, x);
    toInteger(env, x, truncate ? Rounding.ZERO : env.rounding, width);
    if ((env.flags & ~control(state) & ~Flag.PE) === 0) writeWords(cpu, instruction, integer.hi, integer.lo);
    finishStore(state, pops);
  });

const fbstp = computing((cpu, instruction) => {
  const { state } = cpu;
  const empty = isEmpty(state, 0);
  begin(state);
  if (empty) env.flags = Flag.IE;
  else load(state, 0, x);
  if (empty) setIndefinite(x);
  toBcd(env, x, words);
  if ((env.flags & ~control(state) & ~Flag.PE) === 0) writeTenBytes(cpu, instruction, words);
  if (empty) {
    if (stackFault(state, false)) pop(state);
  } else finishStore(state, 1);
});

const other = new Int32Array(3);

const fxch = computing((cpu, instruction) => {
  const { state } = cpu;
  const i = stackIndex(instruction);
  if (isEmpty(state, 0) || isEmpty(state, i)) {
    if (!stackFault(state, false)) return;
    for (const n of [0, i]) {
      if (!isEmpty(state, n)) continue;
      setIndefiniteWords();
      writeRegister(state, n);
    }
  } else raise(state, 0, false);
  readRegister(state, i);
  other.set(words);
  readRegister(state, 0);
  writeRegister(state, i);
  words.set(other);
  writeRegister(state, 0);
});

/** FCMOVcc: by CF, ZF or PF, or their absence. */
const fcmov = (flags: number, set: boolean): SystemHandler =>
  computing((cpu, instruction) => {
    const { state } = cpu;
    const i = stackIndex(instruction);
    if (isEmpty(state, 0) || isEmpty(state, i)) {
      if (!stackFault(state, false)) return;
      setIndefinite(out);
      store(state, 0, out);
      return;
    }
    if (((state.rflags & flags) !== 0) !== set) return;
    readRegister(state, i);
    writeRegister(state, 0);
  });

/** Constants: 64 bits rounded down, and whether rounding to nearest and up add one (SDM 1 8.3.4). */
type Constant = readonly [exponent: number, high: number, low: number, nearestUp: boolean];
const ONE: Constant = [0, 0x8000_0000, 0, false];
const LOG2_10: Constant = [1, 0xd49a_784b, 0xcd1b_8afe, false];
const LOG2_E: Constant = [0, 0xb8aa_3b29, 0x5c17_f0bb, true];
const PI: Constant = [1, 0xc90f_daa2, 0x2168_c234, true];
const LOG10_2: Constant = [-2, 0x9a20_9a84, 0xfbcf_f798, true];
const LN_2: Constant = [-1, 0xb172_17f7, 0xd1cf_79ab, true];

const constant = ([exponent, high, low, nearestUp]: Constant): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    const exact = low === 0;
    const up = !exact && (env.rounding === Rounding.UP || (env.rounding === Rounding.NEAREST && nearestUp));
    setFinite(out, 0, exponent, high | 0, (low + (up ? 1 : 0)) | 0);
    pushExact(state);
  });

const fldz = computing(({ state }) => {
  setZero(out, 0);
  pushExact(state);
});

const ffree = (pops: number): SystemHandler =>
  computing(({ state }, instruction) => {
    raise(state, 0, false);
    free(state, stackIndex(instruction));
    if (pops !== 0) pop(state);
  });

const moveTop = (by: number): SystemHandler =>
  computing(({ state }) => {
    raise(state, 0, false);
    setTop(state, top(state) + by);
  });

export const transferHandlers: Readonly<Record<string, SystemHandler>> = {
  FLD: fld,
  FILD: fild,
  FBLD: fbld,
  FST: fst(0),
  FSTP: fst(1),
  FSTPNCE: fstpnce,
  FIST: fist(0, false),
  FISTP: fist(1, false),
  FISTTP: fist(1, true),
  FBSTP: fbstp,
  FXCH: fxch,
  FCMOVB: fcmov(Rflags.CF, true),
  FCMOVE: fcmov(Rflags.ZF, true),
  FCMOVBE: fcmov(Rflags.CF | Rflags.ZF, true),
  FCMOVU: fcmov(Rflags.PF, true),
  FCMOVNB: fcmov(Rflags.CF, false),
  FCMOVNE: fcmov(Rflags.ZF, false),
  FCMOVNBE: fcmov(Rflags.CF | Rflags.ZF, false),
  FCMOVNU: fcmov(Rflags.PF, false),
  FLD1: constant(ONE),
  FLDL2T: constant(LOG2_10),
  FLDL2E: constant(LOG2_E),
  FLDPI: constant(PI),
  FLDLG2: constant(LOG10_2),
  FLDLN2: constant(LN_2),
  FLDZ: fldz,
  FFREE: ffree(0),
  FFREEP: ffree(1),
  FINCSTP: moveTop(1),
  FDECSTP: moveTop(-1),
};
