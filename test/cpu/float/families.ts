/** The recorded families of SSE, AVX, FMA and F16C operations. */
import type { Family } from "./series";
import { FAMILIES, nativeOutcome, ourOutcome, toNative, type VectorInstance, vectorInstance } from "./vector-cases";

export const VECTOR_GOLDEN = "float/golden.json";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

export const vectorFamilies: readonly Family<VectorInstance>[] = FAMILIES.map((name) => ({
  name,
  batches: 4,
  make: (seed) => vectorInstance(seed, name),
  toNative,
  native: (instance, result) => JSON.stringify(nativeOutcome(instance, result)),
  ours: (instance) => JSON.stringify(ourOutcome(instance)),
  describe: (v) =>
    `${v.name} ${v.format} ${v.scalar ? "scalar" : "packed"} imm ${v.imm} mxcsr ${v.mxcsr.toString(16)} ` +
    `a ${hex(v.a)} b ${hex(v.b)} c ${hex(v.c)}`,
}));
