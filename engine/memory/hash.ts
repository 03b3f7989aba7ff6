/**
 * A deterministic 128-bit hash of memory ranges and words, to tell whether two machine states are the same.
 *
 * Four 32-bit lanes, each multiplied and rotated as words go by, mixed at the end. Not cryptographic: it is there to
 * notice differences, and any single changed bit changes it. Pages that are all zero cost one compare a word and are
 * skipped by position, so that a large, mostly empty RAM hashes quickly.
 */

const PAGE_WORDS = 1024;

export class StateHash {
  private a = 0x243f6a88 | 0;
  private b = 0x85a308d3 | 0;
  private c = 0x13198a2e | 0;
  private d = 0x03707344 | 0;

  /** Adds one 32-bit word. */
  word(value: number): void {
    this.a = Math.imul(this.a ^ value, 0x9e3779b1);
    this.a ^= this.a >>> 15;
    this.b = (Math.imul(this.b, 0x85ebca6b) + (this.a ^ value)) | 0;
    this.c = Math.imul(((this.c << 13) | (this.c >>> 19)) ^ this.b, 0xc2b2ae35);
    this.d = (this.d + Math.imul(this.c ^ value, 0x27d4eb2f)) | 0;
    this.d ^= this.d >>> 13;
  }

  /** Adds a number below 2^53 or a small negative one. */
  number(value: number): void {
    this.word(value | 0);
    this.word(Math.floor(value / 0x1_0000_0000) | 0);
  }

  /** Adds the low 64 bits of `value`. */
  bigint(value: bigint): void {
    this.word(Number(BigInt.asIntN(32, value)));
    this.word(Number(BigInt.asIntN(32, value >> 32n)));
  }

  text(value: string): void {
    this.number(value.length);
    for (let i = 0; i < value.length; i++) this.word(value.charCodeAt(i));
  }

  /** Adds `length` bytes of `memory` from host offset `offset`; both multiples of 4. */
  range(memory: Int32Array, offset: number, length: number): void {
    const end = (offset + length) >>> 2;
    for (let page = offset >>> 2; page < end; page += PAGE_WORDS) {
      const stop = Math.min(page + PAGE_WORDS, end);
      let first = page;
      while (first < stop && memory[first] === 0) first++;
      if (first === stop) continue;
      this.word(page - (offset >>> 2));
      for (let i = first; i < stop; i++) this.word(memory[i] ^ i);
    }
    this.number(length);
  }

  /** Adds plain data of any depth: objects by sorted keys, arrays, typed arrays, strings, numbers, bigint, booleans. */
  data(value: unknown): void {
    if (value === null || value === undefined) this.word(value === null ? 1 : 2);
    else if (typeof value === "number") {
      this.word(3);
      if (Number.isSafeInteger(value)) this.number(value);
      else this.text(String(value));
    } else if (typeof value === "bigint") {
      this.word(4);
      this.text(value.toString(16));
    } else if (typeof value === "boolean") this.word(value ? 5 : 6);
    else if (typeof value === "string") {
      this.word(7);
      this.text(value);
    } else if (ArrayBuffer.isView(value)) {
      this.word(8);
      const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
      this.number(bytes.length);
      for (const byte of bytes) this.word(byte);
    } else if (Array.isArray(value)) {
      this.word(9);
      this.number(value.length);
      for (const item of value) this.data(item);
    } else if (value instanceof Map) {
      this.word(10);
      this.data([...value.entries()]);
    } else if (value instanceof Set) {
      this.word(11);
      this.data([...value]);
    } else if (typeof value === "object") {
      this.word(12);
      for (const key of Object.keys(value).sort()) {
        this.text(key);
        this.data((value as Record<string, unknown>)[key]);
      }
    } else throw new TypeError(`cannot hash a ${typeof value}: state must be plain data`);
  }

  /** 32 hex digits. The hash can go on after this. */
  digest(): string {
    let [a, b, c, d] = [this.a, this.b, this.c, this.d];
    for (let i = 0; i < 2; i++) {
      a = mix(a ^ d);
      b = mix(b + a);
      c = mix(c ^ b);
      d = mix(d + c);
    }
    return [a, b, c, d].map((v) => (v >>> 0).toString(16).padStart(8, "0")).join("");
  }
}

/** Full avalanche of one word. */
function mix(value: number): number {
  let v = value | 0;
  v = Math.imul(v ^ (v >>> 16), 0x7feb352d);
  v = Math.imul(v ^ (v >>> 15), 0x846ca68b);
  return v ^ (v >>> 16);
}
