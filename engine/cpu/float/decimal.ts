/** Packed BCD of 18 digits, FBLD and FBSTP (SDM 1 4.7, figure 4-3). */
import type { Environment } from "./environment";
import { fromInteger, integer, toInteger } from "./integers";
import { Flag, type Num, setZero } from "./number";

const LIMIT = 10n ** 18n;
const SIGN = 0x8000;

/** The packed BCD indefinite: FFFFC000000000000000H. */
function setIndefinite(words: Int32Array): void {
  words[0] = 0;
  words[1] = 0xc000_0000;
  words[2] = 0xffff;
}

/** Digits from ten bytes, as words of 32, 32 and 16 bits. Digits above nine are undefined: each counts for its value. */
export function fromBcd(words: Int32Array, out: Num): void {
  const value = (((BigInt(words[2] & 0xff) << 32n) | BigInt(words[1] >>> 0)) << 32n) | BigInt(words[0] >>> 0);
  let magnitude = 0n;
  for (let shift = 68n; shift >= 0n; shift -= 4n) magnitude = magnitude * 10n + ((value >> shift) & 15n);
  const sign = (words[2] & SIGN) !== 0 ? 1 : 0;
  if (magnitude === 0n) setZero(out, sign);
  else {
    fromInteger(Number(magnitude >> 32n) | 0, Number(magnitude & 0xffff_ffffn) | 0, out);
    out.sign = sign;
  }
}

/** Rounds to an integer of 18 digits; the indefinite and IE where it does not fit. */
export function toBcd(env: Environment, a: Num, words: Int32Array): void {
  const before = env.flags;
  toInteger(env, a, env.rounding, 64);
  let magnitude = (BigInt(integer.hi) << 32n) | BigInt(integer.lo >>> 0);
  if (magnitude < 0n) magnitude = -magnitude;
  if ((env.flags & Flag.IE) !== 0 || magnitude >= LIMIT) {
    env.flags = before | Flag.IE;
    env.roundedUp = false;
    setIndefinite(words);
    return;
  }
  let value = 0n;
  for (let shift = 0n; shift < 72n; shift += 4n) {
    value |= (magnitude % 10n) << shift;
    magnitude /= 10n;
  }
  words[0] = Number(BigInt.asIntN(32, value));
  words[1] = Number(BigInt.asIntN(32, value >> 32n));
  words[2] = Number(value >> 64n) | (a.sign !== 0 ? SIGN : 0);
}
