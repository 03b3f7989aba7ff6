/** SHA-1 and SHA-256 rounds and message schedules (SDM 2B SHA1RNDS4 and following; FIPS 180-4). */
import { RESULT, source, type VectorFunction } from "./vector-function";

/** Doublewords of an operand, lane 0 first. */
function words(view: DataView, n: 0 | 1 | 2): readonly number[] {
  const at = source(n);
  return [0, 4, 8, 12].map((i) => view.getInt32(at + i, true));
}

function result(view: DataView, lanes: readonly number[]): number {
  for (const [i, v] of lanes.entries()) view.setInt32(RESULT + i * 4, v, true);
  return 0;
}

const left = (x: number, n: number): number => (x << n) | (x >>> (32 - n));
const right = (x: number, n: number): number => (x >>> n) | (x << (32 - n));

const choose = (x: number, y: number, z: number): number => (x & y) ^ (~x & z);
const majority = (x: number, y: number, z: number): number => (x & y) ^ (x & z) ^ (y & z);
const parity = (x: number, y: number, z: number): number => x ^ y ^ z;

const SHA1 = [
  { f: choose, k: 0x5a827999 },
  { f: parity, k: 0x6ed9eba1 },
  { f: majority, k: 0x8f1bbcdc },
  { f: parity, k: 0xca62c1d6 },
] as const;

const bigSigma0 = (x: number): number => right(x, 2) ^ right(x, 13) ^ right(x, 22);
const bigSigma1 = (x: number): number => right(x, 6) ^ right(x, 11) ^ right(x, 25);
const sigma0 = (x: number): number => right(x, 7) ^ right(x, 18) ^ (x >>> 3);
const sigma1 = (x: number): number => right(x, 17) ^ right(x, 19) ^ (x >>> 10);

export const SHA_FUNCTIONS: readonly VectorFunction[] = [
  {
    name: "SHA1RNDS4",
    run: (view, _length, immediate) => {
      const { f, k } = SHA1[immediate & 3];
      let [d, c, b, a] = words(view, 0);
      const schedule = words(view, 1);
      let e = 0;
      for (let round = 0; round < 4; round++) {
        // Word 0 has E added to it already.
        const next = (f(b, c, d) + left(a, 5) + schedule[3 - round] + e + k) | 0;
        e = d;
        d = c;
        c = left(b, 30);
        b = a;
        a = next;
      }
      return result(view, [d, c, b, a]);
    },
  },
  {
    name: "SHA1NEXTE",
    run: (view) => {
      const [a, b] = [words(view, 0), words(view, 1)];
      return result(view, [b[0], b[1], b[2], b[3] + left(a[3], 30)]);
    },
  },
  {
    name: "SHA1MSG1",
    run: (view) => {
      const [a, b] = [words(view, 0), words(view, 1)];
      return result(view, [a[0] ^ b[2], a[1] ^ b[3], a[2] ^ a[0], a[3] ^ a[1]]);
    },
  },
  {
    name: "SHA1MSG2",
    run: (view) => {
      const [a, b] = [words(view, 0), words(view, 1)];
      const w16 = left(a[3] ^ b[2], 1);
      return result(view, [left(a[0] ^ w16, 1), left(a[1] ^ b[0], 1), left(a[2] ^ b[1], 1), w16]);
    },
  },
  {
    name: "SHA256RNDS2",
    run: (view) => {
      let [h, g, d, c] = words(view, 0);
      let [f, e, b, a] = words(view, 1);
      const schedule = words(view, 2);
      for (let round = 0; round < 2; round++) {
        const t = (choose(e, f, g) + bigSigma1(e) + schedule[round] + h) | 0;
        const next = (t + majority(a, b, c) + bigSigma0(a)) | 0;
        h = g;
        g = f;
        f = e;
        e = (t + d) | 0;
        d = c;
        c = b;
        b = a;
        a = next;
      }
      return result(view, [f, e, b, a]);
    },
  },
  {
    name: "SHA256MSG1",
    run: (view) => {
      const [a, b] = [words(view, 0), words(view, 1)];
      const next = [a[1], a[2], a[3], b[0]];
      return result(
        view,
        a.map((w, i) => w + sigma0(next[i])),
      );
    },
  },
  {
    name: "SHA256MSG2",
    run: (view) => {
      const [a, b] = [words(view, 0), words(view, 1)];
      const w16 = (a[0] + sigma1(b[2])) | 0;
      const w17 = (a[1] + sigma1(b[3])) | 0;
      return result(view, [w16, w17, a[2] + sigma1(w16), a[3] + sigma1(w17)]);
    },
  },
];
