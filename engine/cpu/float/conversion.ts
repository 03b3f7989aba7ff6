/** Conversion between floating-point formats (SDM 1 4.8.4, 8.5, 11.4.1.6). */
import { type Environment, round } from "./environment";
import { isNan, propagateOne } from "./nan";
import { copy, Flag, type Format, Kind, type Num } from "./number";

/** Rounds a value to a narrower format, or takes it as it is to a wider one; raises DE, and IE for signalling NaNs. */
export function convert(env: Environment, format: Format, a: Num, out: Num): void {
  env.roundedUp = false;
  if (isNan(a)) {
    propagateOne(env, a, out);
    return;
  }
  if (a.kind !== Kind.FINITE) {
    copy(a, out);
    return;
  }
  if (a.denormal !== 0) env.flags |= Flag.DE;
  round(env, format, a.sign, a.exp, a.hi, a.lo, 0, out);
}
