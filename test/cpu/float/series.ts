/**
 * Recorded results of a real processor: batches of random instances are a function of family and number, and the golden
 * file keeps one hash for each.
 */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type NativeInstance, type NativeResult, nativeAvailable, runNative } from "./native";

/** One kind of instance, and what counts of its results. */
export interface Family<I> {
  readonly name: string;
  readonly batches: number;
  readonly make: (seed: number) => I;
  readonly toNative: (instance: I) => NativeInstance;
  /** What the processor did, and what our code does, as comparable text. */
  readonly native: (instance: I, result: NativeResult) => string;
  readonly ours: (instance: I) => string;
  readonly describe: (instance: I) => string;
}

export const BATCH = 1000;

export interface Golden {
  readonly processor: string;
  readonly batch: number;
  readonly hashes: Readonly<Record<string, readonly string[]>>;
}

export const pathOf = (file: string): string => join(process.cwd(), "test", "cpu", file);

export function instances<I>(family: Family<I>, batch: number): I[] {
  return Array.from({ length: BATCH }, (_, i) => family.make((batch * BATCH + i) * 7919 + 13));
}

export function hashOf(results: readonly string[]): string {
  const hash = createHash("sha256");
  for (const result of results) hash.update(result).update("\n");
  return hash.digest("hex").slice(0, 16);
}

/** Writes a golden file from this machine's processor. @throws Error when this machine cannot run the harness */
export function record<I>(families: readonly Family<I>[], file: string): void {
  if (!nativeAvailable()) throw new Error("golden results come from Linux on x86-64 with gcc, AVX2, FMA and F16C");
  const hashes: Record<string, string[]> = {};
  for (const family of families) {
    hashes[family.name] = Array.from({ length: family.batches }, (_, batch) => {
      const list = instances(family, batch);
      const native = runNative(list.map(family.toNative));
      return hashOf(list.map((instance, i) => family.native(instance, native[i])));
    });
  }
  const processor = /model name\s*: (.*)/.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? "unknown";
  writeFileSync(pathOf(file), `${JSON.stringify({ processor, batch: BATCH, hashes }, null, 1)}\n`);
}
