/** Which NaN an operation answers with, and the invalid-operation exception of signalling ones (SDM 1 table 4-7). */
import type { Environment } from "./environment";
import { copy, Flag, Kind, type Num, QUIET_BIT, setIndefinite } from "./number";
import { below64 } from "./wide";

export const isNan = (n: Num): boolean => n.kind >= Kind.QUIET;

/** The invalid operation's masked response. */
export function invalid(env: Environment, out: Num): void {
  env.flags |= Flag.IE;
  setIndefinite(out);
}

export function quiet(from: Num, out: Num): void {
  copy(from, out);
  out.kind = Kind.QUIET;
  out.hi |= QUIET_BIT;
}

/** Result of an operation on one NaN. */
export function propagateOne(env: Environment, a: Num, out: Num): void {
  if (a.kind === Kind.UNSUPPORTED) {
    invalid(env, out);
    return;
  }
  if (a.kind === Kind.SIGNALLING) env.flags |= Flag.IE;
  quiet(a, out);
}

/** Which of two NaNs the x87 takes: a quiet one before a signalling one, then the larger significand, then the positive. */
function x87Choice(a: Num, b: Num): Num {
  if (!isNan(a)) return b;
  if (!isNan(b)) return a;
  if (a.kind !== b.kind) return a.kind === Kind.QUIET ? a : b;
  if (a.hi === b.hi && a.lo === b.lo) return a.sign <= b.sign ? a : b;
  return below64(a.hi, a.lo, b.hi, b.lo) ? b : a;
}

/** Result of an operation of which at least one operand is a NaN: SSE takes the first source that is one. */
export function propagate(env: Environment, a: Num, b: Num, out: Num): void {
  if (a.kind === Kind.UNSUPPORTED || b.kind === Kind.UNSUPPORTED) {
    invalid(env, out);
    return;
  }
  if (a.kind === Kind.SIGNALLING || b.kind === Kind.SIGNALLING) env.flags |= Flag.IE;
  quiet(env.x87 ? x87Choice(a, b) : isNan(a) ? a : b, out);
}
