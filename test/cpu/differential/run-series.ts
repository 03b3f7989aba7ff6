/** One series of the differential test: our engine against the recorded results of a real processor. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { agree, batchOf, type Golden, goldenFile, hashOf, SERIES, type Series } from "./batches";
import { Emulated } from "./emulated";
import { nativeAvailable, runNative } from "./native";
import { describeDifference } from "./report";

/** The first instance of a batch whose results differ, in words; needs gcc, and says so without. */
function firstDifference(engine: Emulated, series: Series, number: number): string {
  const where = `${series.mode}-bit ${series.family}, batch ${number}`;
  if (!nativeAvailable())
    return `${where} differs; on Linux x86-64 with gcc this would show the first differing instance`;
  const instances = batchOf(series, number);
  const expected = runNative(instances);
  for (let i = 0; i < instances.length; i++) {
    const actual = engine.run(instances[i]);
    if (!agree(instances[i], expected[i], actual)) {
      return `${where}, instance ${i}: ${describeDifference(instances[i], expected[i], actual)}`;
    }
  }
  return `${where} agrees with this machine's processor, but not with the recorded one`;
}

/**
 * Runs all batches, or `batches` of them from number `from` on, and expects the recorded hashes; shows the first difference of
 * up to three batches.
 */
export function expectRecordedResults(engine: Emulated, series: Series, batches = series.batches, from = 0): void {
  const golden = JSON.parse(readFileSync(goldenFile(series), "utf8")) as Golden;
  expect(golden).toMatchObject(series);
  expect(golden.hashes.length).toBe(series.batches);
  if (series.family === "integer") engine.warmUp(Array.from({ length: 20 }, (_, i) => batchOf(series, i)).flat());
  const failures: string[] = [];
  golden.hashes.slice(from, from + batches).forEach((hash, i) => {
    const number = from + i;
    if (failures.length >= 3) return;
    const instances = batchOf(series, number);
    // Immediates make handlers of their own: every batch has new ones.
    if (series.family === "vector") engine.warmUp(instances);
    const results = instances.map((instance) => engine.run(instance));
    if (hashOf(instances, results) !== hash) failures.push(firstDifference(engine, series, number));
  });
  expect(failures.join("\n\n")).toBe("");
}

/** Batches of vector code to one engine, which keeps a handler for every immediate it has met. */
const PART = 15;

/**
 * MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA, F16C, BMI and ADX with special values, rounding modes, denormals,
 * masked and unmasked exceptions (SDM volume 2).
 */
export function describeVectorCode(modes: (mode: Series["mode"]) => boolean): void {
  describe.each(SERIES.filter((s) => s.family === "vector" && modes(s.mode)))("$mode-bit vector code", (series) => {
    const parts = Array.from({ length: Math.ceil(series.batches / PART) }, (_, i) => i * PART);

    test.each(parts)("random instances from batch %i on end as on a processor", { timeout: 600_000 }, (from) => {
      const engine = new Emulated();
      engine.slowRoad(false);
      expectRecordedResults(engine, series, PART, from);
    });

    test("memory accesses on the slow road (page crossings, watched pages) do the same", { timeout: 600_000 }, () => {
      const engine = new Emulated();
      engine.slowRoad(true);
      expectRecordedResults(engine, series, 5);
    });
  });
}

/** Integer instructions of user mode with every operand size, address size and prefix, flags included (SDM volume 2). */
export function describeIntegerCode(modes: (mode: Series["mode"]) => boolean, slowBatches: number): void {
  describe.each(SERIES.filter((s) => s.family === "integer" && modes(s.mode)))("$mode-bit instructions", (series) => {
    const engine = new Emulated();

    test(`${series.batches * series.batch} random instances end as on a processor`, { timeout: 240_000 }, () => {
      engine.slowRoad(false);
      expectRecordedResults(engine, series);
    });

    test("memory accesses on the slow road (page crossings, watched pages) do the same", { timeout: 240_000 }, () => {
      engine.slowRoad(true);
      expectRecordedResults(engine, series, slowBatches);
    });
  });
}
