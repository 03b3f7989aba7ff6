import { describe, expect, test } from "vitest";
import { CoprocessorError } from "../../engine/devices/coprocessor-error";

function chip() {
  const levels: boolean[] = [];
  return { levels, error: new CoprocessorError({ set: (level) => levels.push(level) }) };
}

describe("x87 exceptions of a PC (SDM 1 8.7.1, appendix D.2)", () => {
  test("FERR# raises the interrupt, and its end lowers it", () => {
    const { levels, error } = chip();
    error.setError(true);
    error.setError(false);
    expect(levels).toEqual([true, false]);
  });

  test("a write to port F0H takes the interrupt back and asserts IGNNE#: no further interrupt until FERR# has gone away", () => {
    const { levels, error } = chip();
    error.setError(true);
    error.write();
    error.setError(true);
    expect(levels).toEqual([true, false]);
    error.setError(false);
    error.setError(true);
    expect(levels.at(-1)).toBe(true);
  });
});
