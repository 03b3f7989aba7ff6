/**
 * Writes golden/*.json anew from this machine's processor (Linux on x86-64 with gcc). To be run after a change of the
 * generator or of the table of undefined flags; never to make a failing comparison pass.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { batchOf, type Golden, goldenFile, hashOf, SERIES } from "./batches";
import { nativeAvailable, runNative } from "./native";

function processorName(): string {
  const line = readFileSync("/proc/cpuinfo", "utf8").split("\n");
  const field = (name: string): string =>
    line
      .find((l) => l.startsWith(name))
      ?.split(":")[1]
      .trim() ?? "unknown";
  return `${field("model name")}, family ${field("cpu family")} model ${field("model")}`;
}

/**
 * @param family only series of this family; all without
 * @throws Error when this machine cannot run the harness
 */
function regenerate(family?: string): void {
  if (!nativeAvailable())
    throw new Error("golden results come from Linux on x86-64 with gcc; this machine has not both");
  for (const series of SERIES.filter((s) => family === undefined || s.family === family)) {
    const hashes = Array.from({ length: series.batches }, (_, number) => {
      const instances = batchOf(series, number);
      const hash = hashOf(instances, runNative(instances));
      if (hash !== hashOf(instances, runNative(instances))) {
        throw new Error(`${series.mode}-bit ${series.family}, batch ${number}: two runs differ`);
      }
      return hash;
    });
    const golden: Golden = { ...series, processor: processorName(), hashes };
    writeFileSync(goldenFile(series), `${JSON.stringify(golden, null, 1)}\n`);
  }
}

regenerate(process.argv[2]);
