import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

// MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA, F16C, BMI and ADX with special values, rounding modes, denormals, masked and
// unmasked exceptions (SDM volume 2). The recorded results are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "vector" && s.mode === 64))("$mode-bit vector code", (series) => {
  const engine = new Emulated();

  test(`${series.batches * series.batch} random instances end as on a processor`, { timeout: 240_000 }, () => {
    engine.slowRoad(false);
    expectRecordedResults(engine, series);
  });

  test("memory accesses on the slow road (page crossings, watched pages) do the same", { timeout: 240_000 }, () => {
    engine.slowRoad(true);
    expectRecordedResults(engine, series, 20);
  });
});
