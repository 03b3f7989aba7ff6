import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

/** Batches to one engine, which keeps a handler for every immediate it has met. */
const PART = 15;

// MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA, F16C, BMI and ADX with special values, rounding modes, denormals,
// masked and unmasked exceptions (SDM volume 2). The recorded results are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "vector" && s.mode !== 64))("$mode-bit vector code", (series) => {
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
