/**
 * What x87 instructions have in common: checks before, the environment of their arithmetic, delivery of results with masked
 * and unmasked responses, and the pointers to the last instruction (SDM 1 8.1.8, 8.4 to 8.6).
 */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { Environment } from "../float/environment";
import {
  EXTENDED,
  EXTENDED_24,
  EXTENDED_53,
  Flag,
  type Format,
  Num,
  PRE_COMPUTATION,
  type Rounding,
  setIndefinite,
} from "../float/number";
import type { Instruction } from "../isa/instruction";
import { OperandKind } from "../isa/instruction";
import { OPCODES } from "../isa/opcodes";
import { type CpuState, Off, Seg } from "../state";
import { effectiveOffset } from "../system/operands";
import { checkPendingX87, checkX87 } from "./checks";
import { operand } from "./memory";
import { control, decrementTop, Fcw, Fsw, isEmpty, load, pop, setStatus, status, store } from "./stack";

/** What precision control stands for; 01 is reserved. */
const PRECISIONS: readonly Format[] = [EXTENDED_24, EXTENDED, EXTENDED_53, EXTENDED];

/** The environment of the current instruction. Instructions run one at a time, so one serves all processors. */
export const env = new Environment();
env.x87 = true;
/** Format that precision control asks for. */
export let precision: Format = EXTENDED;

/** Operands and result. */
export const x = new Num();
export const y = new Num();
export const out = new Num();

/** Takes rounding, precision and masks from the control word, and no exceptions. */
export function begin(state: CpuState): void {
  const word = control(state);
  env.flags = 0;
  env.roundedUp = false;
  env.rounding = ((word >> Fcw.RC_SHIFT) & 3) as Rounding;
  env.overflowMasked = (word & Flag.OE) !== 0;
  env.underflowMasked = (word & Flag.UE) !== 0;
  precision = PRECISIONS[(word >> Fcw.PC_SHIFT) & 3];
}

/** Adds exceptions to the status word, with their summary, and sets C1. @returns those of them that are unmasked */
export function raise(state: CpuState, flags: number, c1: boolean): number {
  let word = (status(state) & ~Fsw.C1) | flags | (c1 ? Fsw.C1 : 0);
  const unmasked = flags & ~control(state) & Fsw.EXCEPTIONS;
  if (unmasked !== 0) word |= Fsw.ES | Fsw.BUSY;
  setStatus(state, word);
  return unmasked;
}

/** Stack overflow or underflow (SDM 1 8.5.1.1). @returns whether it is masked: the indefinite takes the result's place */
export function stackFault(state: CpuState, overflow: boolean): boolean {
  return raise(state, Flag.IE | Fsw.SF, overflow) === 0;
}

/** Exceptions of a computation, before its result is stored. @returns false when the result is not to be stored */
export function accept(state: CpuState): boolean {
  const pre = env.flags & PRE_COMPUTATION;
  if ((pre & ~control(state)) !== 0) {
    raise(state, pre, false);
    return false;
  }
  raise(state, env.flags, (env.flags & Flag.PE) !== 0 && env.roundedUp);
  return true;
}

/** Delivers `out` to ST(i) and pops. */
export function deliver(state: CpuState, i: number, pops: number): void {
  if (!accept(state)) return;
  store(state, i, out);
  for (let n = 0; n < pops; n++) pop(state);
}

/** An operand in the stack is missing. */
export function underflow(state: CpuState, i: number, pops: number): void {
  if (!stackFault(state, false)) return;
  setIndefinite(out);
  store(state, i, out);
  for (let n = 0; n < pops; n++) pop(state);
}

/** Pushes `out`, or the indefinite where there is no room. */
export function push(state: CpuState): void {
  if (!isEmpty(state, -1)) {
    if (!stackFault(state, true)) return;
    setIndefinite(out);
  }
  decrementTop(state);
  store(state, 0, out);
}

const opcodeBytes = OPCODES.map((row) => row.opcode & 7);

/** Instruction and data pointers and opcode of the last x87 instruction that is no control instruction (SDM 1 8.1.8). */
function remember(cpu: Cpu, instruction: Instruction): void {
  const { state } = cpu;
  const { view, base } = state;
  view.setUint16(base + Off.FOP, (opcodeBytes[instruction.opcode] << 8) | instruction.modrm, true);
  state.setLo(Off.FIP, state.lo(Off.RIP));
  state.setHi(Off.FIP, state.hi(Off.RIP));
  view.setUint16(base + Off.FCS, state.segSelector(Seg.CS), true);
  if (instruction.operands[0].kind !== OperandKind.MEMORY) return;
  state.setU64(Off.FDP, operand.known ? operand.offset : effectiveOffset(cpu, instruction));
  view.setUint16(base + Off.FDS, state.segSelector(instruction.segment), true);
}

/** Executes one instruction behind the checks; changes nothing before it throws. */
export type X87Operation = (cpu: Cpu, instruction: Instruction) => void;

/** An x87 instruction that computes, loads or stores: waits for pending exceptions and leaves its address behind. */
export const computing =
  (operation: X87Operation): SystemHandler =>
  (cpu, instruction) => {
    checkX87(cpu);
    if (checkPendingX87(cpu)) return Next.JUMP_ATTENTION;
    operand.known = false;
    operation(cpu, instruction);
    remember(cpu, instruction);
    return Next.SEQUENTIAL;
  };

/** ST(0) becomes what `operation` leaves in `out`. */
export const unary = (operation: (a: Num) => void): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    if (isEmpty(state, 0)) {
      underflow(state, 0, 0);
      return;
    }
    load(state, 0, x);
    operation(x);
    deliver(state, 0, 0);
  });

/** A control instruction, which leaves the pointers alone; `waits` for pending exceptions or not. */
export const controlling =
  (waits: boolean, operation: X87Operation): SystemHandler =>
  (cpu, instruction) => {
    checkX87(cpu);
    if (waits && checkPendingX87(cpu)) return Next.JUMP_ATTENTION;
    operation(cpu, instruction);
    return Next.SEQUENTIAL;
  };

/** ST(i) of the instruction's ModRM byte. */
export const stackIndex = (instruction: Instruction): number => instruction.modrm & 7;
