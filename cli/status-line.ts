/**
 * One quiet line on standard error about what is going on. It is only there on a terminal, while the cursor is at the start
 * of a line, and goes away before the guest writes.
 */
import type { MachineStats } from "../engine/machine/machine";

const REDRAW_MILLISECONDS = 500;
const ERASE = "\r\x1b[K";
const DIM = "\x1b[2m";
const PLAIN = "\x1b[0m";

export class StatusLine {
  private shown = false;
  private last = { at: Number.NEGATIVE_INFINITY, instructions: 0 };
  private outputSeen = false;
  private readonly enabled: boolean;

  constructor(
    wanted: boolean,
    private readonly stream: NodeJS.WriteStream = process.stderr,
  ) {
    this.enabled = wanted && stream.isTTY === true;
  }

  /** Before the machine runs. */
  show(text: string): void {
    if (!this.enabled) return;
    const width = (this.stream.columns ?? 80) - 1;
    this.stream.write(`${ERASE}${DIM}${text.slice(0, width)}${PLAIN}`);
    this.shown = true;
  }

  /** The guest has written something: the line must be gone by then. */
  hide(): void {
    this.outputSeen = true;
    if (!this.shown) return;
    this.stream.write(ERASE);
    this.shown = false;
  }

  /** Draws the line anew when it is time. @param atLineStart where the guest's output has left the cursor */
  tick(now: number, stats: MachineStats, atLineStart: boolean): void {
    if (!this.enabled || now - this.last.at < REDRAW_MILLISECONDS) return;
    const { at, instructions } = this.last;
    const seconds = (now - at) / 1000;
    this.last = { at: now, instructions: stats.instructions };
    if (!atLineStart || !Number.isFinite(seconds)) return;
    const mips = (stats.instructions - instructions) / seconds / 1e6;
    const exits = Object.values(stats.exits).reduce((sum, n) => sum + n, 0);
    const parts = [
      this.outputSeen ? "running" : "booting",
      `${(stats.nanoseconds / 1e9).toFixed(1)} s of guest time`,
      `${Math.round(stats.instructions / 1e6)} M instructions`,
      `${mips.toFixed(0)} MIPS`,
      ...(exits > 0 ? [`${exits} exits`] : []),
    ];
    this.show(parts.join(" | "));
  }

  close(): void {
    if (this.shown) this.stream.write(ERASE);
    this.shown = false;
  }
}
