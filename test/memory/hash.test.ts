import { describe, expect, test } from "vitest";
import { StateHash } from "../../engine/memory/hash";

function hashOf(words: Int32Array): string {
  const hash = new StateHash();
  hash.range(words, 0, words.byteLength);
  return hash.digest();
}

describe("StateHash", () => {
  test("every single-bit change of a page changes the hash", () => {
    const words = new Int32Array(1024).map((_, i) => i * 2654435761);
    const before = hashOf(words);
    const seen = new Set([before]);
    for (let bit = 0; bit < 32768; bit += 37) {
      words[bit >> 5] ^= 1 << (bit & 31);
      seen.add(hashOf(words));
      words[bit >> 5] ^= 1 << (bit & 31);
    }
    expect(seen.size).toBe(Math.ceil(32768 / 37) + 1);
    expect(hashOf(words)).toBe(before);
  });

  test("a word that moves to another page changes the hash, though empty pages are skipped", () => {
    const one = new Int32Array(8192);
    const two = new Int32Array(8192);
    one[5] = 7;
    two[4096 + 5] = 7;
    expect(hashOf(one)).not.toBe(hashOf(two));
  });

  test("the order of an object's keys does not matter, its values do", () => {
    const of = (value: unknown) => {
      const hash = new StateHash();
      hash.data(value);
      return hash.digest();
    };
    expect(of({ a: 1, b: [2n, "x"] })).toBe(of({ b: [2n, "x"], a: 1 }));
    expect(of({ a: 1, b: [2n, "x"] })).not.toBe(of({ a: 1, b: [2n, "y"] }));
    expect(of(new Uint8Array([1, 2]))).not.toBe(of(new Uint8Array([2, 1])));
    expect(() => of(() => 0)).toThrow(TypeError);
  });
});
