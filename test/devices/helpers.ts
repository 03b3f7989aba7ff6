import { VirtualClock } from "../../engine/clock";
import type { Line } from "../../engine/devices/chip";

/** A line that remembers its level and counts rising edges. */
export class Probe implements Line {
  level = false;
  rises = 0;
  /** Virtual times of all changes, when a clock was given. */
  readonly changes: { at: number; level: boolean }[] = [];
  constructor(private readonly clock?: VirtualClock) {}
  set(level: boolean): void {
    if (level === this.level) return;
    this.level = level;
    if (level) this.rises++;
    if (this.clock) this.changes.push({ at: this.clock.now, level });
  }
}

/** Lets virtual time pass to `ns`, handing out every event at its own time. */
export function passTo(clock: VirtualClock, ns: number): void {
  while (clock.nextEventAt <= ns) {
    if (clock.nextEventAt > clock.now) clock.state.skipped += clock.nextEventAt - clock.now;
    clock.runDue();
  }
  if (ns > clock.now) clock.state.skipped += ns - clock.now;
}

export const pass = (clock: VirtualClock, ns: number): void => passTo(clock, clock.now + ns);

export const newClock = (): VirtualClock => new VirtualClock();
