import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

// Instructions that feed each other with registers, memory and flags, in loops. The recorded results
// are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family === "programs"))("$mode-bit programs", (series) => {
  test.each([0, 1] as const)(`${series.batches * series.batch} of them end as on a processor, in tier %i`, (tier) => {
    expectRecordedResults(new Emulated(tier), series);
  });
});
