/** The comparison of a family with its recorded results. */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { nativeAvailable, runNative } from "./native";
import { type Family, type Golden, hashOf, instances, pathOf } from "./series";

/** Compares with the recorded results; where a batch differs and this machine can tell, shows the first instance. */
export function expectRecorded<I>(family: Family<I>, file: string): void {
  const golden = JSON.parse(readFileSync(pathOf(file), "utf8")) as Golden;
  const hashes = golden.hashes[family.name];
  expect(hashes?.length).toBe(family.batches);
  for (let batch = 0; batch < family.batches; batch++) {
    const list = instances(family, batch);
    const ours = list.map(family.ours);
    if (hashOf(ours) === hashes[batch]) continue;
    if (!nativeAvailable()) {
      expect.fail(`${family.name}, batch ${batch} differs; on Linux x86-64 with gcc this would show the instance`);
    }
    const native = runNative(list.map(family.toNative));
    const at = list.findIndex((instance, i) => family.native(instance, native[i]) !== ours[i]);
    if (at < 0) expect.fail(`${family.name}, batch ${batch} agrees with this processor, but not with the recorded one`);
    expect(ours[at], family.describe(list[at])).toBe(family.native(list[at], native[at]));
  }
}
