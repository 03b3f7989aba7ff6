import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

// The same in compatibility mode: 32-bit code with flat segments, 16-bit code with segments that have bases and limits. The recorded results
// are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "integer" && s.mode !== 64))("$mode-bit instructions", (series) => {
  const engine = new Emulated();

  test(`${series.batches * series.batch} random instances end as on a processor`, { timeout: 240_000 }, () => {
    engine.slowRoad(false);
    expectRecordedResults(engine, series);
  });

  test("memory accesses on the slow road (page crossings, watched pages) do the same", { timeout: 240_000 }, () => {
    engine.slowRoad(true);
    expectRecordedResults(engine, series, 12);
  });
});
