/**
 * Virtual time. It follows from what the machine does, above all from the count of retired instructions: no wall clock
 * anywhere in the engine.
 *
 * One instruction lasts NANOSECONDS_PER_INSTRUCTION, an access to a port PORT_ACCESS_NANOSECONDS more, the TSC runs at
 * TSC_HZ, and a halted machine skips forward to its next event. All counts are exact integers below 2^53.
 *
 * An event belongs to a component (its `owner`) and carries a `kind` the owner understands; both are plain data, so that
 * the whole queue is structured-clonable and a snapshot is a copy.
 */

export const NANOSECONDS_PER_INSTRUCTION = 10;
/**
 * How long an access to an I/O port takes: a cycle of the ISA bus. Without it a loop that waits for a timer by reading a
 * port would have to run a hundred times as often as on a real machine.
 */
export const PORT_ACCESS_NANOSECONDS = 1_000;

export interface ClockEvent {
  readonly owner: string;
  readonly kind: string;
  /** Nanoseconds of virtual time at which it is due. */
  readonly at: number;
}

/** Who an event is handed to when it is due. */
export interface EventOwner {
  /** `now` is the due time of the event, which may be a little before clock.now (an instruction lasts several ns). */
  onClockEvent(kind: string, now: number): void;
}

export interface ClockState {
  /** Instructions retired by all vCPUs. */
  instructions: number;
  /** Nanoseconds that passed without instructions: every vCPU was halted, or waited for a port. */
  skipped: number;
  /** Sorted by due time; equal times keep the order of scheduling. */
  events: ClockEvent[];
}

export class VirtualClock {
  state: ClockState = { instructions: 0, skipped: 0, events: [] };
  private readonly owners = new Map<string, EventOwner>();

  /** Names a component, so that events can find it. One owner a name. */
  register(owner: string, target: EventOwner): void {
    if (this.owners.has(owner)) throw new Error(`clock owner ${owner} is registered twice`);
    this.owners.set(owner, target);
  }

  /** Nanoseconds of virtual time. */
  get now(): number {
    return this.state.instructions * NANOSECONDS_PER_INSTRUCTION + this.state.skipped;
  }

  get instructions(): number {
    return this.state.instructions;
  }

  /** Adds retired instructions; the processors call it when they leave a slice. */
  retire(instructions: number): void {
    this.state.instructions += instructions;
  }

  /** Lets time pass without instructions. */
  pass(nanoseconds: number): void {
    this.state.skipped += nanoseconds;
  }

  /** Schedules `kind` for `owner` at `at` (ns), replacing an earlier one of the same owner and kind. */
  schedule(owner: string, kind: string, at: number): void {
    this.cancel(owner, kind);
    const events = this.state.events;
    let i = events.length;
    while (i > 0 && events[i - 1].at > at) i--;
    events.splice(i, 0, { owner, kind, at });
  }

  cancel(owner: string, kind: string): void {
    const i = this.state.events.findIndex((e) => e.owner === owner && e.kind === kind);
    if (i >= 0) this.state.events.splice(i, 1);
  }

  /** When the next event is due (ns), or Infinity. */
  get nextEventAt(): number {
    return this.state.events.length > 0 ? this.state.events[0].at : Number.POSITIVE_INFINITY;
  }

  /** How many whole instructions may retire before the next event is due (0 when one is due now). */
  instructionsToNextEvent(): number {
    const ns = this.nextEventAt - this.now;
    return ns <= 0 ? 0 : Math.ceil(ns / NANOSECONDS_PER_INSTRUCTION);
  }

  /** Hands every due event to its owner, in order. Owners may schedule more. */
  runDue(): void {
    while (this.state.events.length > 0 && this.state.events[0].at <= this.now) {
      const event = this.state.events.shift() as ClockEvent;
      const owner = this.owners.get(event.owner);
      if (!owner) throw new Error(`clock event ${event.kind} for unknown owner ${event.owner}`);
      owner.onClockEvent(event.kind, event.at);
    }
  }

  /** Everything is halted: moves to the next event and returns true, or returns false when there is none. */
  skipToNextEvent(): boolean {
    const at = this.nextEventAt;
    if (at === Number.POSITIVE_INFINITY) return false;
    if (at > this.now) this.state.skipped += at - this.now;
    return true;
  }
}
