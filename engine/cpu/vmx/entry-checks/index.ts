/** All VM-entry checks, in the order the processor makes them (SDM 3C 27.2, 27.3). */
import type { FailedCheck } from "../vmx";
import { type EntryCheck, type EntryState, READS_ALL } from "./check";
import { entryControlChecks, executionControlChecks, exitControlChecks } from "./controls";
import { guestRegisterChecks } from "./guest-registers";
import { guestSegmentChecks } from "./guest-segments";
import { guestFlowChecks, guestPdpteChecks, guestStateChecks } from "./guest-state";
import { hostChecks } from "./host";

export const ENTRY_CHECKS: readonly EntryCheck[] = [
  ...executionControlChecks,
  ...exitControlChecks,
  ...entryControlChecks,
  ...hostChecks,
  ...guestRegisterChecks,
  ...guestSegmentChecks,
  ...guestFlowChecks,
  ...guestStateChecks,
  ...guestPdpteChecks,
];

/** Rows to run again for each set of written groups, worked out when first needed. */
const byWritten = new Map<number, readonly EntryCheck[]>();

function rowsFor(written: number): readonly EntryCheck[] {
  let rows = byWritten.get(written);
  if (!rows) {
    rows = ENTRY_CHECKS.filter((row) => (row.reads & written) !== 0);
    byWritten.set(written, rows);
  }
  return rows;
}

/**
 * The first check that fails among those that look at a written group, or null.
 * @param written Reads bits
 */
export function firstFailure(v: EntryState, written: number): EntryCheck | null {
  const rows = rowsFor(written);
  for (let i = 0; i < rows.length; i++) if (!rows[i].holds(v)) return rows[i];
  return null;
}

/** Everything that fails. */
export function allFailures(v: EntryState): readonly FailedCheck[] {
  return rowsFor(READS_ALL)
    .filter((row) => !row.holds(v))
    .map((row) => ({ id: row.id, group: row.group, section: row.section, message: row.message(v) }));
}
