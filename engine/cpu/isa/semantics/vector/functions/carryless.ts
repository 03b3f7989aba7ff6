/** PCLMULQDQ: product of two polynomials over GF(2) (SDM 1 12.13.4). */
import { RESULT, source, type VectorFunction } from "./vector-function";

/** Product of two 32-bit polynomials into two words of `out` at `at`, added to what is there. */
function addProduct(a: number, b: number, out: Int32Array, at: number): void {
  let low = 0;
  let high = 0;
  for (let i = 0; i < 32; i++) {
    if (((b >>> i) & 1) === 0) continue;
    low ^= a << i;
    if (i !== 0) high ^= a >>> (32 - i);
  }
  out[at] ^= low;
  out[at + 1] ^= high;
}

const out = new Int32Array(4);

export const CARRYLESS_FUNCTIONS: readonly VectorFunction[] = [
  {
    name: "PCLMULQDQ",
    run: (view, _length, immediate) => {
      const a = source(0) + (immediate & 1 ? 8 : 0);
      const b = source(1) + (immediate & 16 ? 8 : 0);
      out.fill(0);
      for (let i = 0; i < 2; i++) {
        for (let j = 0; j < 2; j++) {
          addProduct(view.getInt32(a + i * 4, true), view.getInt32(b + j * 4, true), out, i + j);
        }
      }
      for (let i = 0; i < 4; i++) view.setInt32(RESULT + i * 4, out[i], true);
      return 0;
    },
  },
];
