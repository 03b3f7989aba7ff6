import { describe, expect, test } from "vitest";
import { expectRecorded } from "../float/recorded";
import { BATCH } from "../float/series";
import { X87_GOLDEN, x87Families } from "./families";

// x87 instructions with every rounding and precision control, masked and unmasked exceptions, empty registers (SDM 1 8).
describe("x87 instructions end as on a processor: registers, tags, status, memory", () => {
  test.each(x87Families.map((f) => [f.name, f] as const))("%s", { timeout: 120_000 }, (_name, family) => {
    expectRecorded(family, X87_GOLDEN);
  });

  test("that is at least 200,000 instances", () => {
    expect(x87Families.reduce((n, f) => n + f.batches * BATCH, 0)).toBeGreaterThanOrEqual(200_000);
  });
});
