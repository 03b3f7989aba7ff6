import { describe, test } from "vitest";
import { SERIES } from "./batches";
import { Emulated } from "./emulated";
import { expectRecordedResults } from "./run-series";

const TIER1_BATCHES = 6;

// Instructions that feed each other with registers, memory and flags, in loops. The recorded results
// are a real processor's: see golden/.
describe.each(SERIES.filter((s) => s.family.endsWith("programs")))("$mode-bit $family", (series) => {
  test(`${series.batches * series.batch} of them end as on a processor in tier 0`, { timeout: 600_000 }, () => {
    expectRecordedResults(new Emulated(0), series);
  });

  // Every program is compiled as soon as it runs, which takes its time.
  test(`${Math.min(TIER1_BATCHES, series.batches) * series.batch} of them end as on a processor in tier 1`, {
    timeout: 600_000,
  }, () => {
    expectRecordedResults(new Emulated(1), series, TIER1_BATCHES);
  });
});
