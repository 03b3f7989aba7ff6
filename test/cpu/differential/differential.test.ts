import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { agree, BATCH, BATCHES, batchOf, type Golden, goldenFile, hashOf } from "./batches";
import { Emulated } from "./emulated";
import type { Mode } from "./instance";
import { nativeAvailable, runNative } from "./native";
import { describeDifference } from "./report";

/** The first instance of a batch whose results differ, in words; needs gcc, and says so without. */
function firstDifference(engine: Emulated, mode: Mode, number: number): string {
  const where = `${mode}-bit batch ${number}`;
  if (!nativeAvailable())
    return `${where} differs; on Linux x86-64 with gcc this would show the first differing instance`;
  const instances = batchOf(mode, number);
  const expected = runNative(instances);
  for (let i = 0; i < instances.length; i++) {
    const actual = engine.run(instances[i]);
    if (!agree(instances[i], expected[i], actual)) {
      return `${where}, instance ${i}: ${describeDifference(instances[i], expected[i], actual)}`;
    }
  }
  return `${where} agrees with this machine's processor, but not with the recorded one`;
}

// User-mode integer instructions with every operand size, address size and prefix, flags included (SDM volume 2). The
// recorded results are a real processor's: see golden/.
describe.each([64, 32, 16] as const)("%i-bit instructions do what a processor does", (mode) => {
  const golden = JSON.parse(readFileSync(goldenFile(mode), "utf8")) as Golden;
  const engine = new Emulated();

  test(`${BATCHES[mode] * BATCH} random instances`, () => {
    expect(golden.batch).toBe(BATCH);
    expect(golden.hashes.length).toBe(BATCHES[mode]);
    const failures: string[] = [];
    golden.hashes.forEach((hash, number) => {
      if (failures.length >= 3) return;
      const instances = batchOf(mode, number);
      const results = instances.map((instance) => engine.run(instance));
      if (hashOf(instances, results) !== hash) failures.push(firstDifference(engine, mode, number));
    });
    expect(failures.join("\n\n")).toBe("");
  });
});
