import { describe, expect, test } from "vitest";
import { StatusLine } from "../../cli/status-line";

function terminal(isTTY: boolean) {
  let text = "";
  const stream = {
    isTTY,
    columns: 60,
    write: (piece: string) => {
      text += piece;
      return true;
    },
  };
  return { stream: stream as unknown as NodeJS.WriteStream, text: () => text };
}
const stats = (instructions: number) => ({
  instructions,
  nanoseconds: instructions * 10,
  resets: 0,
  exits: { CPUID: 3, HLT: 4 },
  userspaceExits: {},
});

describe("the status line", () => {
  test("tells instructions, their rate and exits, and is gone before the guest writes", () => {
    const { stream, text } = terminal(true);
    const line = new StatusLine(true, stream);
    line.tick(0, stats(0), true);
    line.tick(1000, stats(50_000_000), true);
    expect(text()).toContain("booting | 0.5 s of guest time | 50 M instructions | 50 MIPS");
    line.hide();
    expect(text().endsWith("\r\x1b[K")).toBe(true);
    line.tick(2000, stats(60_000_000), true);
    expect(text()).toContain("running");
  });

  test("is not drawn in the middle of a line of the guest, nor too often", () => {
    const { stream, text } = terminal(true);
    const line = new StatusLine(true, stream);
    line.tick(0, stats(0), true);
    line.tick(1000, stats(1), false);
    line.tick(1001, stats(2), true);
    expect(text()).toBe("");
  });

  test("fits the terminal", () => {
    const { stream, text } = terminal(true);
    new StatusLine(true, stream).show("x".repeat(200));
    expect(text()).toContain(`\x1b[2m${"x".repeat(59)}\x1b[0m`);
  });

  test("there is none without a terminal, or when it is not wanted", () => {
    for (const [wanted, isTTY] of [
      [true, false],
      [false, true],
    ]) {
      const { stream, text } = terminal(isTTY);
      const line = new StatusLine(wanted, stream);
      line.show("loading");
      line.tick(0, stats(0), true);
      line.tick(1000, stats(1), true);
      line.hide();
      line.close();
      expect(text()).toBe("");
    }
  });
});
