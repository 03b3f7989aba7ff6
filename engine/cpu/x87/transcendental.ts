/** Transcendental instructions (SDM 1 8.3.7, 8.3.8; 2A F2XM1, FCOS, FPATAN, FPTAN, FSIN, FSINCOS, FYL2X, FYL2XP1). */
import type { SystemHandler } from "../cpu";
import { isNan } from "../float/nan";
import { Num, SIGN_BIT, setFinite, setIndefinite } from "../float/number";
import {
  angle,
  exponential,
  logarithm,
  logarithmPlus1,
  outOfRange,
  Trigonometric,
  trigonometric,
} from "../float/transcendental";
import type { CpuState } from "../state";
import { decrementTop, Fsw, isEmpty, load, pop, setStatus, status, store } from "./stack";
import { accept, begin, computing, deliver, env, out, stackFault, unary, underflow, x, y } from "./unit";

/** ST(1) becomes f(ST(0), ST(1)), and the stack is popped. */
const ofTwo = (operation: (st0: Num, st1: Num) => void): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    if (isEmpty(state, 0) || isEmpty(state, 1)) {
      underflow(state, 1, 1);
      return;
    }
    load(state, 0, x);
    load(state, 1, y);
    operation(x, y);
    if (!accept(state)) return;
    store(state, 1, out);
    pop(state);
  });

/** C2 says that the operand is out of range; then nothing else happens. */
function rangeChecked(state: CpuState): boolean {
  load(state, 0, x);
  const out = outOfRange(x);
  setStatus(state, (status(state) & ~(Fsw.C2 | (out ? Fsw.C1 : 0))) | (out ? Fsw.C2 : 0));
  return !out;
}

const ofAngle = (which: Trigonometric): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    if (isEmpty(state, 0)) {
      setStatus(state, status(state) & ~Fsw.C2);
      underflow(state, 0, 0);
      return;
    }
    if (!rangeChecked(state)) return;
    trigonometric(env, which, x, out);
    deliver(state, 0, 0);
  });

const second = new Num();

/** FSINCOS and FPTAN replace ST(0) by one result and push another. */
const withPush = (results: () => void): SystemHandler =>
  computing(({ state }) => {
    begin(state);
    const full = !isEmpty(state, -1);
    if (isEmpty(state, 0) || full) {
      setStatus(state, status(state) & ~Fsw.C2);
      if (!stackFault(state, !isEmpty(state, 0))) return;
      setIndefinite(out);
      store(state, 0, out);
      decrementTop(state);
      store(state, 0, out);
      return;
    }
    if (!rangeChecked(state)) return;
    results();
    if (!accept(state)) return;
    store(state, 0, out);
    decrementTop(state);
    store(state, 0, second);
  });

const fsincos = withPush(() => {
  trigonometric(env, Trigonometric.SINE, x, out);
  trigonometric(env, Trigonometric.COSINE, x, second);
});

const fptan = withPush(() => {
  trigonometric(env, Trigonometric.TANGENT, x, out);
  if (isNan(out)) trigonometric(env, Trigonometric.TANGENT, x, second);
  else setFinite(second, 0, 0, SIGN_BIT, 0);
});

export const transcendentalHandlers: Readonly<Record<string, SystemHandler>> = {
  F2XM1: unary((a) => exponential(env, a, out)),
  FYL2X: ofTwo((a, b) => logarithm(env, a, b, out)),
  FYL2XP1: ofTwo((a, b) => logarithmPlus1(env, a, b, out)),
  FPATAN: ofTwo((a, b) => angle(env, b, a, out)),
  FSIN: ofAngle(Trigonometric.SINE),
  FCOS: ofAngle(Trigonometric.COSINE),
  FSINCOS: fsincos,
  FPTAN: fptan,
};
