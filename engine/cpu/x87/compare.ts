/** FCOM, FUCOM, FICOM, FTST into the condition codes, FCOMI and FUCOMI into RFLAGS (SDM 1 8.3.6; 2A). */
import type { SystemHandler } from "../cpu";
import { compare, Relation } from "../float/compare";
import { PRE_COMPUTATION, setZero } from "../float/number";
import { type Instruction, OperandKind } from "../isa/instruction";
import { type CpuState, Rflags } from "../state";
import { readFloat, readInteger } from "./memory";
import { Fsw, isEmpty, load, pop, setStatus, status } from "./stack";
import { begin, computing, env, raise, stackFault, stackIndex, x, y } from "./unit";

const CODES: Readonly<Record<Relation, number>> = {
  [Relation.LESS]: Fsw.C0,
  [Relation.EQUAL]: Fsw.C3,
  [Relation.GREATER]: 0,
  [Relation.UNORDERED]: Fsw.C3 | Fsw.C2 | Fsw.C0,
};

const FLAGS: Readonly<Record<Relation, number>> = {
  [Relation.LESS]: Rflags.CF,
  [Relation.EQUAL]: Rflags.ZF,
  [Relation.GREATER]: 0,
  [Relation.UNORDERED]: Rflags.ZF | Rflags.PF | Rflags.CF,
};

/** Where a relation goes. */
type Report = (state: CpuState, relation: Relation) => void;

const toStatus: Report = (state, relation) => setStatus(state, (status(state) & ~Fsw.CONDITIONS) | CODES[relation]);

/** OF, SF and AF are cleared too. */
const toFlags: Report = (state, relation) => {
  state.rflags = (state.rflags & ~Rflags.ARITHMETIC) | FLAGS[relation];
};

/** Compares ST(0) with `y`, or reports an empty register, then pops. */
function finish(state: CpuState, empty: boolean, quiet: boolean, pops: number, report: Report): void {
  let relation: Relation = Relation.UNORDERED;
  if (empty) {
    if (!stackFault(state, false)) return;
  } else {
    load(state, 0, x);
    relation = compare(env, x, y, !quiet);
    if ((raise(state, env.flags, false) & PRE_COMPUTATION) !== 0) return;
  }
  report(state, relation);
  for (let n = 0; n < pops; n++) pop(state);
}

const comparison = (quiet: boolean, pops: number, report: Report): SystemHandler =>
  computing((cpu, instruction: Instruction) => {
    const { state } = cpu;
    begin(state);
    if (instruction.operands[0].kind === OperandKind.MEMORY) {
      readFloat(cpu, instruction, y);
      finish(state, isEmpty(state, 0), quiet, pops, report);
      return;
    }
    const i = pops === 2 ? 1 : stackIndex(instruction);
    load(state, i, y);
    finish(state, isEmpty(state, 0) || isEmpty(state, i), quiet, pops, report);
  });

const withInteger = (pops: number): SystemHandler =>
  computing((cpu, instruction) => {
    begin(cpu.state);
    readInteger(cpu, instruction, y);
    finish(cpu.state, isEmpty(cpu.state, 0), false, pops, toStatus);
  });

const ftst = computing(({ state }) => {
  begin(state);
  setZero(y, 0);
  finish(state, isEmpty(state, 0), false, 0, toStatus);
});

export const compareHandlers: Readonly<Record<string, SystemHandler>> = {
  FCOM: comparison(false, 0, toStatus),
  FCOMP: comparison(false, 1, toStatus),
  FCOMPP: comparison(false, 2, toStatus),
  FUCOM: comparison(true, 0, toStatus),
  FUCOMP: comparison(true, 1, toStatus),
  FUCOMPP: comparison(true, 2, toStatus),
  FICOM: withInteger(0),
  FICOMP: withInteger(1),
  FTST: ftst,
  FCOMI: comparison(false, 0, toFlags),
  FCOMIP: comparison(false, 1, toFlags),
  FUCOMI: comparison(true, 0, toFlags),
  FUCOMIP: comparison(true, 1, toFlags),
};
