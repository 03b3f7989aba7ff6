/** AES rounds (SDM 1 12.13; FIPS 197): the state is the first operand, the round key the second. */
import { RESULT, source, type VectorFunction } from "./vector-function";

/** Product by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
const double = (a: number): number => ((a << 1) ^ (a & 0x80 ? 0x11b : 0)) & 0xff;

function multiply(a: number, b: number): number {
  let product = 0;
  for (let x = a, y = b; y !== 0; y >>= 1, x = double(x)) if (y & 1) product ^= x;
  return product;
}

/** S-box: the inverse, then the affine transformation (FIPS 197 5.1.1). */
function makeBox(): Uint8Array {
  const box = new Uint8Array(256);
  for (let a = 0; a < 256; a++) {
    let inverse = 0;
    if (a !== 0) for (let b = 1; b < 256 && inverse === 0; b++) if (multiply(a, b) === 1) inverse = b;
    let s = 0x63;
    for (let shift = 0; shift < 5; shift++) s ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xff;
    box[a] = s;
  }
  return box;
}

const BOX = makeBox();
const INVERSE_BOX = new Uint8Array(256);
BOX.forEach((s, a) => {
  INVERSE_BOX[s] = a;
});

/** Byte r + 4c of the state comes from column c + r (c - r where inverse): ShiftRows. */
const SHIFT = Array.from({ length: 16 }, (_, i) => (i & 3) + 4 * (((i >> 2) + (i & 3)) & 3));
const INVERSE_SHIFT = Array.from({ length: 16 }, (_, i) => (i & 3) + 4 * (((i >> 2) - (i & 3)) & 3));

/** Products by what the matrix of InvMixColumns and MixColumns has. */
const table = (by: number): Uint8Array => Uint8Array.from({ length: 256 }, (_, a) => multiply(a, by));
const MIX = [2, 3, 1, 1].map(table);
const INVERSE_MIX = [14, 11, 13, 9].map(table);

const state = new Uint8Array(16);

/** Reads the first operand through ShiftRows and SubBytes. */
function substitute(view: DataView, shift: readonly number[], box: Uint8Array): void {
  for (let i = 0; i < 16; i++) state[i] = box[view.getUint8(source(0) + shift[i])];
}

function mixColumns(matrix: readonly Uint8Array[]): void {
  for (let c = 0; c < 16; c += 4) {
    const [a0, a1, a2, a3] = state.subarray(c, c + 4);
    const [m0, m1, m2, m3] = matrix;
    state[c] = m0[a0] ^ m1[a1] ^ m2[a2] ^ m3[a3];
    state[c + 1] = m3[a0] ^ m0[a1] ^ m1[a2] ^ m2[a3];
    state[c + 2] = m2[a0] ^ m3[a1] ^ m0[a2] ^ m1[a3];
    state[c + 3] = m1[a0] ^ m2[a1] ^ m3[a2] ^ m0[a3];
  }
}

function addKey(view: DataView): void {
  for (let i = 0; i < 16; i++) view.setUint8(RESULT + i, state[i] ^ view.getUint8(source(1) + i));
}

function round(
  name: string,
  shift: readonly number[],
  box: Uint8Array,
  mix: readonly Uint8Array[] | null,
): VectorFunction {
  return {
    name,
    run: (view) => {
      substitute(view, shift, box);
      if (mix) mixColumns(mix);
      addKey(view);
      return 0;
    },
  };
}

const subWord = (w: number): number =>
  BOX[w & 255] | (BOX[(w >> 8) & 255] << 8) | (BOX[(w >> 16) & 255] << 16) | (BOX[w >>> 24] << 24);

/** RotWord of FIPS 197 on a word in little-endian order. */
const rotWord = (w: number): number => (w >>> 8) | (w << 24);

export const AES_FUNCTIONS: readonly VectorFunction[] = [
  round("AESENC", SHIFT, BOX, MIX),
  round("AESENCLAST", SHIFT, BOX, null),
  round("AESDEC", INVERSE_SHIFT, INVERSE_BOX, INVERSE_MIX),
  round("AESDECLAST", INVERSE_SHIFT, INVERSE_BOX, null),
  {
    name: "AESIMC",
    run: (view) => {
      for (let i = 0; i < 16; i++) state[i] = view.getUint8(source(1) + i);
      mixColumns(INVERSE_MIX);
      for (let i = 0; i < 16; i++) view.setUint8(RESULT + i, state[i]);
      return 0;
    },
  },
  {
    name: "AESKEYGENASSIST",
    run: (view, _length, immediate) => {
      const one = subWord(view.getUint32(source(1) + 4, true));
      const three = subWord(view.getUint32(source(1) + 12, true));
      view.setInt32(RESULT, one, true);
      view.setInt32(RESULT + 4, rotWord(one) ^ immediate, true);
      view.setInt32(RESULT + 8, three, true);
      view.setInt32(RESULT + 12, rotWord(three) ^ immediate, true);
      return 0;
    },
  },
];
