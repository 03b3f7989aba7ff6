/** What the VM Exits view shows, without the editor. */

export interface ExitCount {
  readonly reason: string;
  readonly count: number;
  /** How many more than at the stop before. */
  readonly more: number;
  /** Share of all exits, 0 to 1. */
  readonly share: number;
}

/** Reasons by falling count; equal counts by name. */
export function exitCounts(
  now: Readonly<Record<string, number>>,
  before: Readonly<Record<string, number>>,
): ExitCount[] {
  const total = Object.values(now).reduce((sum, n) => sum + n, 0);
  return Object.entries(now)
    .filter(([, count]) => count > 0)
    .map(([reason, count]) => ({ reason, count, more: count - (before[reason] ?? 0), share: count / total }))
    .sort((a, b) => b.count - a.count || (a.reason < b.reason ? -1 : 1));
}

/** 1234567 as "1 234 567" (with no-break spaces). */
export function grouped(n: number): string {
  return String(n).replace(/\B(?=(\d{3})+$)/g, "\u00a0");
}
