/**
 * How commands reach a synchronous engine. Between slices, and for as long as it is stopped inside a trace point, the
 * engine asks its pump for the next command; a blocking pump sleeps until one comes.
 */
import type { ToEngine } from "./api";

export interface CommandPump {
  /** Whether `wait` can sleep. Where it cannot (a page without cross-origin isolation), stops happen at slice tops only. */
  readonly blocking: boolean;
  /** The next command, if one is there. Cheap. */
  poll(): ToEngine | undefined;
  /** Sleeps until a command comes. @throws Error when the pump is not blocking */
  wait(): ToEngine;
}

/** Words of the control block at the start of a shared command buffer. */
const RingWord = { SIGNAL: 0, HEAD: 1, TAIL: 2 } as const;
const RING_HEADER = 16;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Structured data as JSON text: bigint and bytes, which JSON has no words for, as tagged strings. */
export function packMessage(message: unknown): Uint8Array {
  const text = JSON.stringify(message, (_key, value: unknown) => {
    if (typeof value === "bigint") return `\u0001n${value}`;
    if (value instanceof Uint8Array) return `\u0001b${btoa(Array.from(value, (b) => String.fromCharCode(b)).join(""))}`;
    return value;
  });
  return encoder.encode(text);
}

export function unpackMessage(bytes: Uint8Array): unknown {
  return JSON.parse(decoder.decode(bytes), (_key, value: unknown) => {
    if (typeof value !== "string" || !value.startsWith("\u0001")) return value;
    if (value[1] === "n") return BigInt(value.slice(2));
    return Uint8Array.from(atob(value.slice(2)), (c) => c.charCodeAt(0));
  });
}

/**
 * A ring of length-prefixed messages in shared memory, for web workers: one writer (the adapter's side), one reader (the
 * engine). HEAD and TAIL count bytes ever written and read, modulo 2^32.
 */
export class SharedRing {
  private readonly words: Int32Array;
  private readonly data: Uint8Array;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.words = new Int32Array(buffer, 0, RING_HEADER / 4);
    this.data = new Uint8Array(buffer, RING_HEADER);
  }

  /** @param capacity bytes, a power of two: the largest message is a big kernel's symbols */
  static create(capacity = 1 << 24): SharedRing {
    return new SharedRing(new SharedArrayBuffer(RING_HEADER + capacity));
  }

  /** @returns false when there is no room now: try again after the engine has read */
  write(message: unknown): boolean {
    const body = packMessage(message);
    const head = Atomics.load(this.words, RingWord.HEAD) >>> 0;
    const tail = Atomics.load(this.words, RingWord.TAIL) >>> 0;
    const used = (head - tail) >>> 0;
    if (body.length + 4 > this.data.length)
      throw new RangeError(`a message of ${body.length} bytes does not fit the ring`);
    if (used + body.length + 4 > this.data.length) return false;
    const length = new Uint8Array([body.length, body.length >> 8, body.length >> 16, body.length >> 24]);
    this.copyIn(head, length);
    this.copyIn(head + 4, body);
    Atomics.store(this.words, RingWord.HEAD, (head + 4 + body.length) | 0);
    Atomics.add(this.words, RingWord.SIGNAL, 1);
    Atomics.notify(this.words, RingWord.SIGNAL);
    return true;
  }

  read(): unknown {
    const head = Atomics.load(this.words, RingWord.HEAD) >>> 0;
    const tail = Atomics.load(this.words, RingWord.TAIL) >>> 0;
    if (head === tail) return undefined;
    const length = this.copyOut(tail, 4);
    const size = length[0] | (length[1] << 8) | (length[2] << 16) | (length[3] << 24);
    const body = this.copyOut(tail + 4, size);
    Atomics.store(this.words, RingWord.TAIL, (tail + 4 + size) | 0);
    return unpackMessage(body);
  }

  /** Sleeps until something has been written. */
  sleep(): void {
    const seen = Atomics.load(this.words, RingWord.SIGNAL);
    if (Atomics.load(this.words, RingWord.HEAD) !== Atomics.load(this.words, RingWord.TAIL)) return;
    Atomics.wait(this.words, RingWord.SIGNAL, seen);
  }

  private copyIn(at: number, bytes: Uint8Array): void {
    const size = this.data.length;
    for (let i = 0; i < bytes.length; i++) this.data[((at + i) >>> 0) % size] = bytes[i];
  }

  private copyOut(at: number, length: number): Uint8Array {
    const size = this.data.length;
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.data[((at + i) >>> 0) % size];
    return bytes;
  }
}
