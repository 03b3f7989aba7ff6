/**
 * RCPPS and RSQRTPS (SDM 2B): approximations with a relative error of at most 1.5 * 2^-12. The tables of real processors
 * differ between makers and are not published; here the exact value is rounded to 12 bits of fraction (relative error
 * 2^-13). Denormal operands count as zeros, tiny results become zeros, and no exception is raised.
 */

const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

const INDEFINITE = 0xffc0_0000 | 0;
const INFINITY = 0x7f80_0000;
const MAGNITUDE = 0x7fff_ffff;
const LEAST_NORMAL = 0x0080_0000;

/** The nearest value with 12 bits of fraction, ties away; tiny ones are zero. */
function shorten(value: number): number {
  float[0] = value;
  const sign = bits[0] & ~MAGNITUDE;
  const magnitude = ((bits[0] & MAGNITUDE) + 0x400) & ~0x7ff;
  return magnitude < LEAST_NORMAL ? sign : sign | magnitude;
}

export function approximateReciprocal(x: number): number {
  const magnitude = x & MAGNITUDE;
  const sign = x & ~MAGNITUDE;
  if (magnitude > INFINITY) return x | 0x0040_0000;
  if (magnitude === INFINITY) return sign;
  if (magnitude < LEAST_NORMAL) return sign | INFINITY;
  bits[0] = x;
  return shorten(1 / float[0]);
}

export function approximateReciprocalRoot(x: number): number {
  const magnitude = x & MAGNITUDE;
  const sign = x & ~MAGNITUDE;
  if (magnitude > INFINITY) return x | 0x0040_0000;
  if (magnitude < LEAST_NORMAL) return sign | INFINITY;
  if (sign !== 0) return INDEFINITE;
  if (magnitude === INFINITY) return 0;
  bits[0] = x;
  return shorten(1 / Math.sqrt(float[0]));
}
