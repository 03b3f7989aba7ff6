/** The recorded families of x87 instructions. */
import type { Family } from "../float/series";
import { FAMILIES, outcome, runOurs, toNative, type X87Instance, x87Instance } from "./cases";

export const X87_GOLDEN = "x87/golden.json";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** Transcendental instructions differ in the last place between processors: they are compared otherwise. */
export const x87Families: readonly Family<X87Instance>[] = Object.keys(FAMILIES)
  .filter((name) => name !== "transcendental")
  .map((name) => ({
    name,
    batches: 12,
    make: (seed) => x87Instance(seed, name),
    toNative,
    native: outcome,
    ours: (instance) => outcome(instance, runOurs(instance)),
    describe: ({ code, state }) =>
      `${code.map((b) => b.toString(16)).join(" ")} fcw ${state.fcw.toString(16)} fsw ${state.fsw.toString(16)} ftw ` +
      `${state.ftw.toString(16)} registers ${hex(state.bytes.subarray(32, 160))} memory ${hex(state.memory.subarray(0, 16))}`,
  }));
