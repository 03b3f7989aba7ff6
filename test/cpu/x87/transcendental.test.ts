import { describe, expect, test } from "vitest";
import { COUNT, compareWithRecorded } from "./transcendental";

// F2XM1, FYL2X, FYL2XP1, FPATAN, FPTAN, FSIN, FCOS, FSINCOS (SDM 1 8.3.7, 8.3.8): recorded results of a real processor.
describe("transcendental instructions", () => {
  const { different, exact } = compareWithRecorded();

  test("are within one unit in the last place of a processor's results, special operands and exceptions included", () => {
    expect(different).toEqual([]);
  });

  test("are mostly the same, because both round nearly always correctly", () => {
    expect(exact).toBeGreaterThan(COUNT * 0.98);
  });
});
