/** Decimal adjustment (SDM 1 5.1.3; pages of AAA, AAD, AAM, AAS, DAA, DAS). Undefined flags follow the result in AL. */
import { Vector } from "../../cpu";
import { Rflags } from "../../state";
import type { Context } from "./context";
import type { Value } from "./expressions";
import { define, type Family } from "./registry";

const bool = (c: Context, v: Value): Value => c.isZero(c.isZero(v));

/** AF as 0 or 1. */
const adjustFlag = (c: Context): Value => c.and(c.shrBy(c.low(c.flagAux(), 4), 3), c.constant(4, 1));

/** Flags of AL with AF and CF given. */
function setDecimalFlags(c: Context, al: Value, adjust: Value, carry: Value): void {
  const k = (n: number): Value => c.constant(4, n);
  const wide = c.let(c.zeroExtend(al, 4));
  const even = c.isZero(c.and(c.popcnt(wide), k(1)));
  let word = c.or(carry, c.shlBy(adjust, 4));
  word = c.or(word, c.shlBy(even, 2));
  word = c.or(word, c.shlBy(c.isZero(wide), 6));
  word = c.or(word, c.and(wide, k(Rflags.SF)));
  c.setFlagBits(word, k(0));
}

const decimal =
  (subtract: boolean) =>
  (c: Context): void => {
    const k = (n: number): Value => c.constant(4, n);
    const old = c.let(c.zeroExtend(c.gpr(0, 1), 4));
    const carry = c.let(c.carry());
    const low = c.let(bool(c, c.or(c.gtU(c.and(old, k(15)), k(9)), adjustFlag(c))));
    const high = c.let(bool(c, c.or(c.gtU(old, k(0x99)), carry)));
    const six = c.mul(low, k(6));
    const sixty = c.mul(high, k(0x60));
    const al = subtract ? c.sub(c.sub(old, six), sixty) : c.add(c.add(old, six), sixty);
    const r = c.let(c.low(al, 1));
    // A borrow out of the low adjustment of DAS also sets CF.
    const out = subtract ? c.let(c.or(high, c.and(low, c.ltU(old, k(6))))) : high;
    c.setGpr(0, r);
    setDecimalFlags(c, r, low, out);
  };

const ascii =
  (subtract: boolean) =>
  (c: Context): void => {
    const ax = c.let(c.gpr(0, 2));
    const digit = c.zeroExtend(c.and(ax, c.constant(2, 15)), 4);
    const adjust = c.let(bool(c, c.or(c.gtU(digit, c.constant(4, 9)), adjustFlag(c))));
    const by = c.mul(c.low(adjust, 2), c.constant(2, 0x106));
    const sum = c.let(subtract ? c.sub(ax, by) : c.add(ax, by));
    const r = c.let(c.and(sum, c.constant(2, 0xff0f)));
    c.setGpr(0, r);
    setDecimalFlags(c, c.let(c.low(r, 1)), adjust, adjust);
  };

function aam(c: Context): void {
  const base = c.let(c.immediate(1));
  c.if(c.isZero(base), () => c.fault(Vector.DE));
  const al = c.let(c.zeroExtend(c.gpr(0, 1), 4));
  const b = c.let(c.zeroExtend(base, 4));
  const rest = c.let(c.remU(al, b));
  c.setGpr(0, c.let(c.low(c.or(c.shlBy(c.divU(al, b), 8), rest), 2)));
  const zero = c.constant(4, 0);
  setDecimalFlags(c, c.let(c.low(rest, 1)), zero, zero);
}

function aad(c: Context): void {
  const ax = c.let(c.zeroExtend(c.gpr(0, 2), 4));
  const product = c.mul(c.shrBy(ax, 8), c.zeroExtend(c.immediate(1), 4));
  const al = c.let(c.and(c.add(ax, product), c.constant(4, 0xff)));
  c.setGpr(0, c.let(c.low(al, 2)));
  const zero = c.constant(4, 0);
  setDecimalFlags(c, c.let(c.low(al, 1)), zero, zero);
}

export const decimals: Family = {
  DAA: define(decimal(false)),
  DAS: define(decimal(true)),
  AAA: define(ascii(false)),
  AAS: define(ascii(true)),
  AAM: define(aam),
  AAD: define(aad),
};
