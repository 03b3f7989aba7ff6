/** FADD, FSUB, FMUL, FDIV with all their forms, FSQRT, FCHS, FABS, FRNDINT, FSCALE, FXTRACT, FPREM (SDM 2A). */
import type { Cpu, SystemHandler } from "../cpu";
import { add, divide, multiply, squareRoot } from "../float/arithmetic";
import { roundToIntegral } from "../float/integers";
import { EXTENDED, Flag, Kind, Num, setIndefinite } from "../float/number";
import { extract, Remainder, remainder, scale } from "../float/scaling";
import { OperandKind } from "../isa/instruction";
import { OPCODES } from "../isa/opcodes";
import type { CpuState } from "../state";
import { readFloat, readInteger } from "./memory";
import { decrementTop, Fsw, isEmpty, load, registerAt, setStatus, status, store } from "./stack";
import {
  accept,
  begin,
  computing,
  deliver,
  env,
  out,
  precision,
  raise,
  stackFault,
  stackIndex,
  unary,
  underflow,
  x,
  y,
} from "./unit";

/** Computes `out` from the destination's value and the source's. */
type Binary = (destination: Num, source: Num) => void;

const sum: Binary = (d, s) => add(env, precision, d, s, 0, out);
const difference: Binary = (d, s) => add(env, precision, d, s, 1, out);
const reverseDifference: Binary = (d, s) => add(env, precision, s, d, 1, out);
const product: Binary = (d, s) => multiply(env, precision, d, s, out);
const quotient: Binary = (d, s) => divide(env, precision, d, s, out);
const reverseQuotient: Binary = (d, s) => divide(env, precision, s, d, out);

/** D8 has ST(0) as destination; DC and DE have ST(i). */
const TO_ST0 = OPCODES.map((row) => row.opcode === 0xd8);

const binary = (operation: Binary, pops: number): SystemHandler =>
  computing((cpu, instruction) => {
    const { state } = cpu;
    begin(state);
    if (instruction.operands[0].kind === OperandKind.MEMORY) {
      readFloat(cpu, instruction, y);
      memoryOperand(state, operation);
      return;
    }
    const i = stackIndex(instruction);
    const toTop = TO_ST0[instruction.opcode];
    const destination = toTop ? 0 : i;
    if (isEmpty(state, 0) || isEmpty(state, i)) {
      underflow(state, destination, pops);
      return;
    }
    load(state, destination, x);
    load(state, toTop ? i : 0, y);
    operation(x, y);
    deliver(state, destination, pops);
  });

const withInteger = (operation: Binary): SystemHandler =>
  computing((cpu, instruction) => {
    begin(cpu.state);
    readInteger(cpu, instruction, y);
    memoryOperand(cpu.state, operation);
  });

/** ST(0) with the operand from memory in `y`. */
function memoryOperand(state: CpuState, operation: Binary): void {
  if (isEmpty(state, 0)) {
    underflow(state, 0, 0);
    return;
  }
  load(state, 0, x);
  operation(x, y);
  deliver(state, 0, 0);
}

/** An operation on ST(0) alone. */
/** FCHS, FABS: the sign bit only, of whatever is there. */
const signChange = (change: (high: number) => number): SystemHandler =>
  computing((cpu) => {
    const { state } = cpu;
    if (isEmpty(state, 0)) {
      underflow(state, 0, 0);
      return;
    }
    raise(state, 0, false);
    const at = registerAt(state, 0) + 8;
    state.view.setUint16(at, change(state.view.getUint16(at, true)), true);
  });

const roundToInteger = unary((a) => {
  if (a.denormal !== 0) env.flags |= Flag.DE;
  roundToIntegral(env, a, env.rounding, out);
});

const fscale = computing(({ state }) => {
  begin(state);
  if (isEmpty(state, 0) || isEmpty(state, 1)) {
    underflow(state, 0, 0);
    return;
  }
  load(state, 0, x);
  load(state, 1, y);
  scale(env, EXTENDED, x, y, out);
  deliver(state, 0, 0);
});

const significand = new Num();

const fxtract = computing(({ state }) => {
  begin(state);
  if (isEmpty(state, 0) || !isEmpty(state, -1)) {
    if (!stackFault(state, !isEmpty(state, 0))) return;
    setIndefinite(out);
    store(state, 0, out);
    decrementTop(state);
    store(state, 0, out);
    return;
  }
  load(state, 0, x);
  extract(env, x, out, significand);
  if (!accept(state)) return;
  store(state, 0, out);
  decrementTop(state);
  store(state, 0, significand);
});

/** FPREM truncates the quotient, FPREM1 rounds it to nearest (SDM 2A). */
const partialRemainder = (nearest: boolean): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    setStatus(state, status(state) & ~Fsw.C2);
    if (isEmpty(state, 0) || isEmpty(state, 1)) {
      underflow(state, 0, 0);
      return;
    }
    load(state, 0, x);
    load(state, 1, y);
    const bits = remainder(env, x, y, nearest, out);
    if (!accept(state)) return;
    store(state, 0, out);
    if (bits === Remainder.NONE) return;
    let word = status(state) & ~(Fsw.CONDITIONS | Fsw.C1);
    if (bits === Remainder.PARTIAL) word |= Fsw.C2;
    else word |= (bits & 4 ? Fsw.C0 : 0) | (bits & 2 ? Fsw.C3 : 0) | (bits & 1 ? Fsw.C1 : 0);
    setStatus(state, word);
  });

/** FXAM: class of ST(0) in C3, C2, C0 and its sign in C1, empty or not (SDM 2A table 3-42). */
const fxam = computing(({ state }: Cpu) => {
  load(state, 0, x);
  let word = status(state) & ~(Fsw.CONDITIONS | Fsw.C1);
  if (x.sign !== 0) word |= Fsw.C1;
  if (isEmpty(state, 0)) word |= Fsw.C3 | Fsw.C0;
  else if (x.kind === Kind.ZERO) word |= Fsw.C3;
  else if (x.kind === Kind.INFINITE) word |= Fsw.C2 | Fsw.C0;
  else if (x.kind === Kind.QUIET || x.kind === Kind.SIGNALLING) word |= Fsw.C0;
  else if (x.kind === Kind.FINITE) word |= x.denormal !== 0 ? Fsw.C3 | Fsw.C2 : Fsw.C2;
  setStatus(state, word);
});

export const arithmeticHandlers: Readonly<Record<string, SystemHandler>> = {
  FADD: binary(sum, 0),
  FADDP: binary(sum, 1),
  FIADD: withInteger(sum),
  FSUB: binary(difference, 0),
  FSUBP: binary(difference, 1),
  FISUB: withInteger(difference),
  FSUBR: binary(reverseDifference, 0),
  FSUBRP: binary(reverseDifference, 1),
  FISUBR: withInteger(reverseDifference),
  FMUL: binary(product, 0),
  FMULP: binary(product, 1),
  FIMUL: withInteger(product),
  FDIV: binary(quotient, 0),
  FDIVP: binary(quotient, 1),
  FIDIV: withInteger(quotient),
  FDIVR: binary(reverseQuotient, 0),
  FDIVRP: binary(reverseQuotient, 1),
  FIDIVR: withInteger(reverseQuotient),
  FSQRT: unary((a) => squareRoot(env, precision, a, out)),
  FCHS: signChange((high) => high ^ 0x8000),
  FABS: signChange((high) => high & 0x7fff),
  FRNDINT: roundToInteger,
  FSCALE: fscale,
  FXTRACT: fxtract,
  FPREM: partialRemainder(false),
  FPREM1: partialRemainder(true),
  FXAM: fxam,
};
