import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

// User-mode integer instructions with every operand size, address size and prefix, flags included (SDM volume 2). The recorded results
// are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "integer" && s.mode === 64))("$mode-bit instructions", (series) => {
  test(`${series.batches * series.batch} random instances end as on a processor`, () => {
    expectRecordedResults(new Emulated(), series);
  });

  test("memory accesses on the slow road (page crossings, watched pages) do the same", () => {
    expectRecordedResults(new Emulated(0, true), series, 25);
  });
});
