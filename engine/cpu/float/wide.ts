/** Unsigned arithmetic on 64 and 128 bits in 32-bit pieces, each held as a signed number. */

/** Upper half of the product of two unsigned 32-bit numbers. */
export function multiplyHigh(a: number, b: number): number {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const m = Math.imul(a1, b0);
  const n = Math.imul(a0, b1);
  const middle = (m & 0xffff) + (n & 0xffff) + (Math.imul(a0, b0) >>> 16);
  return (Math.imul(a1, b1) + (m >>> 16) + (n >>> 16) + (middle >>> 16)) | 0;
}

/** a < b, unsigned. */
export const below = (a: number, b: number): boolean => a >>> 0 < b >>> 0;

/** ah:al < bh:bl, unsigned. */
export function below64(ah: number, al: number, bh: number, bl: number): boolean {
  return ah === bh ? al >>> 0 < bl >>> 0 : ah >>> 0 < bh >>> 0;
}

/** Result of the last multiply64: bits 127:96 in `w3` down to 31:0 in `w0`. */
export const product = { w3: 0, w2: 0, w1: 0, w0: 0 };

export function multiply64(ah: number, al: number, bh: number, bl: number): void {
  const p00 = Math.imul(al, bl);
  const h00 = multiplyHigh(al, bl);
  const p01 = Math.imul(al, bh);
  const h01 = multiplyHigh(al, bh);
  const p10 = Math.imul(ah, bl);
  const h10 = multiplyHigh(ah, bl);
  const p11 = Math.imul(ah, bh);
  const h11 = multiplyHigh(ah, bh);
  let w1 = (h00 + p01) | 0;
  let carry = below(w1, p01) ? 1 : 0;
  w1 = (w1 + p10) | 0;
  if (below(w1, p10)) carry++;
  // Sums of four 32-bit numbers: exact in a double.
  const s2 = (h01 >>> 0) + (h10 >>> 0) + (p11 >>> 0) + carry;
  product.w0 = p00;
  product.w1 = w1;
  product.w2 = s2 | 0;
  product.w3 = (h11 + Math.floor(s2 / 4294967296)) | 0;
}

/** Result of the last shiftRightSticky: 64 bits and 32 more below them. */
export const shifted = { hi: 0, lo: 0, extra: 0 };

/** hi:lo, not 0, shifted right with 32 bits more; the last of them is also set when any bit beyond is. */
export function shiftRightSticky(hi: number, lo: number, distance: number): void {
  let extra = 0;
  if (distance >= 96) {
    hi = lo = 0;
    extra = 1;
  } else {
    while (distance >= 32) {
      extra = lo | (extra !== 0 ? 1 : 0);
      lo = hi;
      hi = 0;
      distance -= 32;
    }
    if (distance > 0) {
      const gone = extra << (32 - distance);
      extra = (extra >>> distance) | (lo << (32 - distance)) | (gone !== 0 ? 1 : 0);
      lo = (lo >>> distance) | (hi << (32 - distance));
      hi >>>= distance;
    }
  }
  shifted.hi = hi;
  shifted.lo = lo;
  shifted.extra = extra;
}

/** Quotient digit and remainder of the last divideStep. */
export const division = { quotient: 0, hi: 0, lo: 0 };

/**
 * (rh:rl * 2^32 + next) / (dh:dl) for a normalised divisor (bit 63 set) and rh:rl < dh:dl: one 32-bit digit of the
 * quotient, and the remainder.
 */
export function divideStep(rh: number, rl: number, next: number, dh: number, dl: number): void {
  const divisor = (dh >>> 0) * 4294967296 + (dl >>> 0);
  const dividend = ((rh >>> 0) * 4294967296 + (rl >>> 0)) * 4294967296 + (next >>> 0);
  // Doubles err by less than one unit of the digit: it is right or one off.
  let q = Math.floor(dividend / divisor);
  if (q > 4294967295) q = 4294967295;
  // q * divisor, 96 bits, and the remainder's lower 64 bits with the sign in the third word.
  const p0 = Math.imul(q | 0, dl);
  const m = multiplyHigh(q | 0, dl);
  const n = Math.imul(q | 0, dh);
  const p1 = (m + n) | 0;
  const p2 = (multiplyHigh(q | 0, dh) + (below(p1, n) ? 1 : 0)) | 0;
  let lo = (next - p0) | 0;
  let borrow = below(next, p0) ? 1 : 0;
  let hi = (rl - p1 - borrow) | 0;
  borrow = (rl >>> 0) - (p1 >>> 0) - borrow < 0 ? 1 : 0;
  let top = (rh - p2 - borrow) | 0;
  while (top < 0) {
    q--;
    const sum = (lo + dl) | 0;
    const carry = below(sum, dl) ? 1 : 0;
    lo = sum;
    const high = (hi >>> 0) + (dh >>> 0) + carry;
    hi = high | 0;
    if (high > 4294967295) top = (top + 1) | 0;
  }
  while (top !== 0 || !below64(hi, lo, dh, dl)) {
    q++;
    const b = below(lo, dl) ? 1 : 0;
    const high = (hi >>> 0) - (dh >>> 0) - b;
    lo = (lo - dl) | 0;
    hi = high | 0;
    if (high < 0) top = (top - 1) | 0;
  }
  division.quotient = q | 0;
  division.hi = hi;
  division.lo = lo;
}
