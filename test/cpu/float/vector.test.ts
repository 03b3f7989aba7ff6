import { describe, expect, test } from "vitest";
import { VectorFloat, VectorOp } from "../../../engine/cpu/float/vector";
import { VECTOR_GOLDEN, vectorFamilies } from "./families";
import { expectRecorded } from "./recorded";
import { BATCH } from "./series";

// SSE, AVX, FMA and F16C floating point with all rounding modes, DAZ, FTZ, masked and unmasked exceptions (SDM 1 11, 14).
describe("floating-point operations end as on a processor, flags included", () => {
  test.each(vectorFamilies.map((f) => [f.name, f] as const))("%s", { timeout: 60_000 }, (_name, family) => {
    expectRecorded(family, VECTOR_GOLDEN);
  });

  test(`that is at least ${60 * BATCH} instances`, () => {
    expect(vectorFamilies.reduce((n, f) => n + f.batches * BATCH, 0)).toBeGreaterThanOrEqual(60 * BATCH);
  });
});

describe("RCPPS and RSQRTPS (SDM 2B)", () => {
  const memory = new Float32Array(16);
  const bits = new Int32Array(memory.buffer);
  const core = new VectorFloat(memory.buffer);
  const approximate = (op: VectorOp, value: number): number => {
    memory[0] = value;
    if (core.run(op, 32, 1, 0, 0, 0, 0, 0, 16) !== 0) throw new Error("no exception is raised by an approximation");
    return memory[4];
  };

  test("the relative error is at most 1.5 * 2^-12", () => {
    let worst = 0;
    for (let i = 0; i < 20_000; i++) {
      bits[8] = 0x0100_0000 + i * 91_331;
      const x = memory[8];
      if (!(x < 2 ** 125)) continue;
      worst = Math.max(worst, Math.abs(approximate(VectorOp.RCP, x) * x - 1));
      worst = Math.max(worst, Math.abs(approximate(VectorOp.RSQRT, x) * Math.sqrt(x) - 1));
    }
    expect(worst).toBeLessThanOrEqual(1.5 * 2 ** -12);
  });

  test("zeros and denormals give infinities, infinities zeros, negative operands of RSQRTPS the indefinite", () => {
    expect(approximate(VectorOp.RCP, -0)).toBe(Number.NEGATIVE_INFINITY);
    expect(approximate(VectorOp.RCP, 2 ** -140)).toBe(Number.POSITIVE_INFINITY);
    expect(approximate(VectorOp.RCP, Number.NEGATIVE_INFINITY)).toBe(-0);
    expect(approximate(VectorOp.RSQRT, -0)).toBe(Number.NEGATIVE_INFINITY);
    expect(approximate(VectorOp.RSQRT, Number.POSITIVE_INFINITY)).toBe(0);
    expect(approximate(VectorOp.RSQRT, -1)).toBeNaN();
    expect(bits[4]).toBe(0xffc0_0000 | 0);
  });
});
