/** MPSADBW and PHMINPOSUW (SDM 1 5.10.4, 5.10.6; SDM 2B). */
import { RESULT, source, type VectorFunction } from "./vector-function";

const sums = new Uint16Array(16);

export const SUM_FUNCTIONS: readonly VectorFunction[] = [
  {
    // Eight sums of absolute differences of four bytes, for each half; three bits of the immediate choose where.
    name: "MPSADBW",
    run: (view, length, immediate) => {
      for (let h = 0; h < length / 16; h++) {
        const imm = immediate >> (h * 3);
        const a = source(0) + h * 16 + (imm & 4);
        const b = source(1) + h * 16 + (imm & 3) * 4;
        for (let i = 0; i < 8; i++) {
          let sum = 0;
          for (let k = 0; k < 4; k++) sum += Math.abs(view.getUint8(a + i + k) - view.getUint8(b + k));
          sums[h * 8 + i] = sum;
        }
      }
      for (let i = 0; i < length / 2; i++) view.setUint16(RESULT + i * 2, sums[i], true);
      return 0;
    },
  },
  {
    name: "PHMINPOSUW",
    run: (view) => {
      let least = 0x10000;
      let index = 0;
      for (let i = 0; i < 8; i++) {
        const word = view.getUint16(source(1) + i * 2, true);
        if (word >= least) continue;
        least = word;
        index = i;
      }
      view.setUint32(RESULT, least | (index << 16), true);
      for (let i = 4; i < 16; i += 4) view.setUint32(RESULT + i, 0, true);
      return 0;
    },
  },
];
