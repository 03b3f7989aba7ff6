/** How protocol messages travel: framed over a byte stream (stdio, TCP) or as objects (inline in the extension host). */

export interface Transport {
  send(message: object): void;
  close(): void;
}

/** What arrives. Called in order. */
export interface Receiver {
  message(message: unknown): void;
  /** Something that is not a message came in: what was wrong with it. */
  malformed(problem: string): void;
  closed(): void;
}

const MAX_HEADER = 8192;
const MAX_BODY = 64 * 1024 * 1024;
const HEADER_END = [13, 10, 13, 10];

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** A message as bytes, with its Content-Length header. */
export function frame(message: object): Uint8Array {
  const body = encoder.encode(JSON.stringify(message));
  const header = encoder.encode(`Content-Length: ${body.length}\r\n\r\n`);
  const bytes = new Uint8Array(header.length + body.length);
  bytes.set(header);
  bytes.set(body, header.length);
  return bytes;
}

/**
 * Takes a stream of bytes apart into messages. What cannot be a message is reported once and skipped up to the next
 * header, so that the session goes on.
 */
export class FrameReader {
  private buffer: Uint8Array = new Uint8Array(0);
  /** Bytes of the body being waited for, or -1 while in a header. */
  private expected = -1;
  private skipping = false;

  constructor(private readonly receiver: Receiver) {}

  feed(chunk: Uint8Array): void {
    const joined = new Uint8Array(this.buffer.length + chunk.length);
    joined.set(this.buffer);
    joined.set(chunk, this.buffer.length);
    this.buffer = joined;
    while (this.expected >= 0 ? this.readBody() : this.readHeader());
  }

  end(): void {
    if (this.buffer.length > 0 && !this.skipping)
      this.receiver.malformed(`the connection ended inside a message (${this.buffer.length} bytes of it had come)`);
    this.receiver.closed();
  }

  private readHeader(): boolean {
    const end = indexOf(this.buffer, HEADER_END);
    if (end < 0) {
      if (this.buffer.length > MAX_HEADER) this.skip(`no header ended within ${MAX_HEADER} bytes`);
      return false;
    }
    const text = String.fromCharCode(...this.buffer.subarray(Math.max(0, end - MAX_HEADER), end));
    // After garbage a header need not begin a line.
    const header = this.skipping
      ? /Content-Length:[ \t]*([0-9]+)[ \t]*(?:\r|$)/i
      : /(?:^|\n)Content-Length:[ \t]*([0-9]+)[ \t]*(?:\r|$)/i;
    const match = header.exec(text);
    this.buffer = this.buffer.subarray(end + 4);
    const length = match ? Number(match[1]) : -1;
    if (!match || length > MAX_BODY) {
      this.skip(
        match
          ? `a message of ${match[1]} bytes is larger than ${MAX_BODY}`
          : `expected a header "Content-Length: N", found ${JSON.stringify(text.slice(0, 60))}`,
      );
      return true;
    }
    this.skipping = false;
    this.expected = length;
    return true;
  }

  private skip(problem: string): void {
    if (!this.skipping) this.receiver.malformed(problem);
    this.skipping = true;
    // What could still be the start of the next header is kept.
    const next = lastIndexOf(this.buffer, encoder.encode("Content-Length:"));
    this.buffer = next >= 0 ? this.buffer.subarray(next) : this.buffer.subarray(Math.max(0, this.buffer.length - 16));
  }

  private readBody(): boolean {
    if (this.buffer.length < this.expected) return false;
    const body = this.buffer.subarray(0, this.expected);
    this.buffer = this.buffer.slice(this.expected);
    this.expected = -1;
    let message: unknown;
    try {
      message = JSON.parse(decoder.decode(body));
    } catch (error) {
      this.receiver.malformed(`the body is not JSON: ${error instanceof Error ? error.message : String(error)}`);
      // If the length was wrong, what is left of this message is no second mistake.
      this.skipping = true;
      return true;
    }
    this.receiver.message(message);
    return true;
  }
}

function matches(bytes: Uint8Array, pattern: ArrayLike<number>, at: number): boolean {
  for (let i = 0; i < pattern.length; i++) if (bytes[at + i] !== pattern[i]) return false;
  return true;
}

function indexOf(bytes: Uint8Array, pattern: ArrayLike<number>): number {
  for (let i = 0; i + pattern.length <= bytes.length; i++) if (matches(bytes, pattern, i)) return i;
  return -1;
}

function lastIndexOf(bytes: Uint8Array, pattern: ArrayLike<number>): number {
  for (let i = bytes.length - pattern.length; i >= 0; i--) if (matches(bytes, pattern, i)) return i;
  return -1;
}
