/** One series of the differential test: our engine against the recorded results of a real processor. */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { agree, batchOf, type Golden, goldenFile, hashOf, type Series } from "./batches";
import type { Emulated } from "./emulated";
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
