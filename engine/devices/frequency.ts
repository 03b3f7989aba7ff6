/** Exact conversion between the nanoseconds of virtual time and the ticks of a crystal. */

const NANOSECONDS_PER_SECOND = 1_000_000_000;

/** Ticks of a fixed frequency, counted exactly from virtual time. */
export class Frequency {
  /** @param hz ticks a second, a whole number below 9 million, so that every intermediate product stays exact */
  constructor(readonly hz: number) {}

  /** Ticks completed at virtual time `ns`. */
  ticks(ns: number): number {
    const seconds = Math.floor(ns / NANOSECONDS_PER_SECOND);
    const rest = ns - seconds * NANOSECONDS_PER_SECOND;
    return seconds * this.hz + Math.floor((rest * this.hz) / NANOSECONDS_PER_SECOND);
  }

  /** First nanosecond at which `ticks` ticks are complete: the inverse of `ticks`. */
  time(ticks: number): number {
    const seconds = Math.floor(ticks / this.hz);
    const rest = ticks - seconds * this.hz;
    return seconds * NANOSECONDS_PER_SECOND + Math.ceil((rest * NANOSECONDS_PER_SECOND) / this.hz);
  }
}
