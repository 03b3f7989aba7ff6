/** What an operation rounds by and reports to, and the rounding of every result (SDM 1 4.8.4, 4.9.1). */
import { Flag, type Format, Kind, type Num, Rounding, SIGN_BIT, setInfinity, setZero } from "./number";

export class Environment {
  rounding: Rounding = Rounding.NEAREST;
  /** Exceptions raised; operations only add to them. */
  flags = 0;
  /** Overflow and underflow are masked. Unmasked, tiny results raise UE whether exact or not. */
  overflowMasked = true;
  underflowMasked = true;
  /** MXCSR.FTZ: tiny results become zero while underflow is masked. */
  flushToZero = false;
  /** x87 rules: choice among NaNs by significand, unmasked over- and underflow with adjusted exponents. */
  x87 = false;
  /** The last rounding increased the magnitude (C1 of the x87). */
  roundedUp = false;
}

/** What unmasked over- and underflow add to or take off the exponent of a result in a register (SDM 1 8.5.4, 8.5.5). */
const EXPONENT_ADJUSTMENT = 24576;

/** What rounding does with the bits behind the last place. */
const Lost = { NOTHING: 0, BELOW_HALF: 1, HALF: 2, ABOVE_HALF: 3 } as const;

/** How the bits below `precision` of hi:lo:extra compare with half a unit in the last place. */
function lostBits(precision: number, hi: number, lo: number, extra: number): number {
  if (precision === 64) {
    return extra === 0 ? Lost.NOTHING : extra > 0 ? Lost.BELOW_HALF : extra === SIGN_BIT ? Lost.HALF : Lost.ABOVE_HALF;
  }
  const wide = precision > 32;
  const width = wide ? 64 - precision : 32 - precision;
  const part = (wide ? lo : hi) & ((1 << width) - 1);
  const rest = wide ? extra : lo | extra;
  if ((part | rest) === 0) return Lost.NOTHING;
  const half = 1 << (width - 1);
  if (part < half) return Lost.BELOW_HALF;
  return part === half && rest === 0 ? Lost.HALF : Lost.ABOVE_HALF;
}

function increments(rounding: Rounding, sign: number, lost: number, odd: boolean): boolean {
  switch (rounding) {
    case Rounding.NEAREST:
      return lost === Lost.ABOVE_HALF || (lost === Lost.HALF && odd);
    case Rounding.DOWN:
      return lost !== Lost.NOTHING && sign !== 0;
    case Rounding.UP:
      return lost !== Lost.NOTHING && sign === 0;
    default:
      return false;
  }
}

function lastPlaceIsOdd(precision: number, hi: number, lo: number): boolean {
  return (precision > 32 ? (lo >>> (64 - precision)) & 1 : (hi >>> (32 - precision)) & 1) !== 0;
}

/** Whether a magnitude just below the least normal number rounds up to it. */
function becomesNormal(
  env: Environment,
  precision: number,
  sign: number,
  hi: number,
  lo: number,
  extra: number,
): boolean {
  const ones = precision > 32 ? hi === -1 && lo >> (64 - precision) === -1 : hi >> (32 - precision) === -1;
  return ones && increments(env.rounding, sign, lostBits(precision, hi, lo, extra), true);
}

/** The largest finite magnitude of a format, or infinity, as overflow gives them (SDM 1 table 4-10). */
function overflow(env: Environment, format: Format, sign: number, out: Num): void {
  env.flags |= Flag.OE | Flag.PE;
  const towardZero =
    env.rounding === Rounding.ZERO ||
    (env.rounding === Rounding.DOWN && sign === 0) ||
    (env.rounding === Rounding.UP && sign !== 0);
  env.roundedUp = !towardZero;
  if (!towardZero) {
    setInfinity(out, sign);
    return;
  }
  const { precision } = format;
  out.kind = Kind.FINITE;
  out.sign = sign;
  out.denormal = 0;
  out.exp = format.maxExponent;
  out.hi = precision >= 32 ? -1 : -1 << (32 - precision);
  out.lo = precision <= 32 ? 0 : precision === 64 ? -1 : -1 << (64 - precision);
}

/**
 * Rounds a normalised magnitude, hi:lo with 32 bits more in `extra` whose last bit stands for everything further, to a
 * format. Raises OE, UE, PE.
 */
export function round(
  env: Environment,
  format: Format,
  sign: number,
  exp: number,
  hi: number,
  lo: number,
  extra: number,
  out: Num,
): void {
  const { precision } = format;
  let tiny = false;
  if (exp < format.minExponent) {
    const under = format.minExponent - exp;
    tiny = under > 1 || !becomesNormal(env, precision, sign, hi, lo, extra);
    if (tiny && !env.underflowMasked) {
      env.flags |= Flag.UE;
      tiny = false;
      if (env.x87) {
        exp += EXPONENT_ADJUSTMENT;
        // Only FSCALE comes so far down: the result is zero (SDM 1 8.5.5).
        if (exp < format.minExponent) {
          env.flags |= Flag.PE;
          env.roundedUp = false;
          setZero(out, sign);
          return;
        }
      }
    } else if (tiny && env.flushToZero) {
      env.flags |= Flag.UE | Flag.PE;
      env.roundedUp = false;
      setZero(out, sign);
      return;
    } else {
      // Denormalise: shift right, keeping what falls out as a sticky bit.
      exp = format.minExponent;
      if (under >= 96) {
        extra = 1;
        hi = lo = 0;
      } else {
        let left = under;
        while (left >= 32) {
          extra = lo | (extra !== 0 ? 1 : 0);
          lo = hi;
          hi = 0;
          left -= 32;
        }
        if (left > 0) {
          const out32 = extra << (32 - left);
          extra = (extra >>> left) | (lo << (32 - left)) | (out32 !== 0 ? 1 : 0);
          lo = (lo >>> left) | (hi << (32 - left));
          hi >>>= left;
        }
      }
    }
  }
  const lost = lostBits(precision, hi, lo, extra);
  const up = increments(env.rounding, sign, lost, lastPlaceIsOdd(precision, hi, lo));
  if (precision <= 32) {
    const unit = precision === 32 ? 1 : 1 << (32 - precision);
    hi &= -unit;
    lo = 0;
    if (up) {
      hi = (hi + unit) | 0;
      if (hi === 0) {
        hi = SIGN_BIT;
        exp++;
      }
    }
  } else {
    const unit = precision === 64 ? 1 : 1 << (64 - precision);
    lo &= -unit;
    if (up) {
      lo = (lo + unit) | 0;
      if (lo === 0) {
        hi = (hi + 1) | 0;
        if (hi === 0) {
          hi = SIGN_BIT;
          exp++;
        }
      }
    }
  }
  if (exp > format.maxExponent) {
    if (env.overflowMasked) {
      overflow(env, format, sign, out);
      return;
    }
    // SSE writes no result then; only its own inexactness counts (SDM 1 4.9.1.4).
    env.flags |= Flag.OE;
    if (env.x87) {
      exp -= EXPONENT_ADJUSTMENT;
      if (exp > format.maxExponent) {
        // FSCALE again: infinity.
        env.flags |= Flag.PE;
        env.roundedUp = true;
        setInfinity(out, sign);
        return;
      }
    }
  }
  env.roundedUp = up;
  if (lost !== Lost.NOTHING) {
    env.flags |= Flag.PE;
    if (tiny) env.flags |= Flag.UE;
  }
  if ((hi | lo) === 0) {
    setZero(out, sign);
    return;
  }
  out.kind = Kind.FINITE;
  out.sign = sign;
  out.exp = exp;
  out.hi = hi;
  out.lo = lo;
  out.denormal = 0;
}
