/** Standard input as the machine's serial keyboard, raw on a terminal. */

const CTRL_A = 0x01;
const ESCAPE_QUIT = "x".charCodeAt(0);

export class Keyboard {
  private readonly waiting: Uint8Array[] = [];
  private readonly input = process.stdin;
  private readonly raw: boolean;
  private escaped = false;
  private wake: (() => void) | null = null;
  /** The person asked to end the run. */
  quit = false;
  /** No more input will come. */
  ended = false;

  constructor() {
    this.raw = this.input.isTTY === true;
    if (this.raw) this.input.setRawMode(true);
    this.input.on("data", (chunk: Buffer) => this.accept(chunk));
    const end = (): void => {
      this.ended = true;
      this.wake?.();
    };
    this.input.on("end", end);
    this.input.on("error", end);
    this.input.resume();
  }

  private accept(chunk: Uint8Array): void {
    const bytes = this.raw ? this.unescape(chunk) : chunk;
    if (bytes.length > 0) this.waiting.push(bytes);
    this.wake?.();
  }

  /** Takes the escape sequences out of what was typed. */
  private unescape(chunk: Uint8Array): Uint8Array {
    const out: number[] = [];
    for (const byte of chunk) {
      if (this.escaped) {
        this.escaped = false;
        if (byte === ESCAPE_QUIT) this.quit = true;
        else out.push(byte === CTRL_A ? CTRL_A : byte);
      } else if (byte === CTRL_A) {
        this.escaped = true;
      } else {
        out.push(byte);
      }
    }
    return Uint8Array.from(out);
  }

  /** A person types, not a file or a program. */
  get isTerminal(): boolean {
    return this.raw;
  }

  /** The next bytes typed, if there are any. */
  take(): Uint8Array | undefined {
    return this.waiting.shift();
  }

  /** Waits until something is typed, input ends, or `milliseconds` have passed. */
  async wait(milliseconds: number): Promise<void> {
    if (milliseconds <= 0 || this.waiting.length > 0 || this.ended || this.quit) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.min(milliseconds, 2 ** 31 - 1));
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.wake = null;
  }

  /** Gives the terminal back. */
  close(): void {
    if (this.raw) this.input.setRawMode(false);
    this.input.pause();
    this.input.removeAllListeners("data");
    this.input.destroy();
  }
}
