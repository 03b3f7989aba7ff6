import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

// Instructions that feed each other with registers, memory and flags, in loops. The recorded results
// are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "programs"))("$mode-bit $family", (series) => {
  test(`${series.batches * series.batch} random instances end as on a processor`, () => {
    expectRecordedResults(new Emulated(), series);
  });
});
