/** Where a person asked to stop: breakpoints, watchpoints and trace filters, with their conditions, counts and log lines. */
import type { TracePoint } from "../trace";
import type { BreakpointRequest, HitRule, PlacedBreakpoint, Refusal, TraceFilter, WatchpointRequest } from "./api";
import { assigns, fillLog, holds, type Scope } from "./evaluate";
import { AbsentName, type Expression, type LogTemplate, parseExpression, parseLogTemplate } from "./expression";
import { detailOf } from "./names";

interface Guard {
  readonly condition: Expression | null;
  readonly hit: HitRule | undefined;
  readonly log: LogTemplate | null;
  hits: number;
}

interface Guarded {
  readonly id: string | number;
  readonly condition: string;
  readonly hit?: HitRule;
  readonly log?: string;
}

/** What a point that matched has to say. */
export interface Verdict {
  readonly ids: readonly (string | number)[];
  /** Conditions that could not be evaluated: the stop happens all the same, and says why. */
  readonly problems: readonly string[];
}

function guardOf(item: Guarded): Guard {
  const condition = item.condition.trim() === "" ? null : parseExpression(item.condition);
  if (condition && assigns(condition)) throw new Error("a condition must not change anything; compare with ==");
  return { condition, hit: item.hit, log: item.log === undefined ? null : parseLogTemplate(item.log), hits: 0 };
}

function counts(rule: HitRule | undefined, hits: number): boolean {
  if (!rule || rule.count <= 0) return true;
  if (rule.kind === "exactly") return hits === rule.count;
  return rule.kind === "every" ? hits % rule.count === 0 : hits >= rule.count;
}

const sameValue = (a: bigint | number | string | boolean | undefined, b: bigint | number | string): boolean => {
  if (typeof a === "bigint" || typeof a === "number") return typeof b !== "string" && BigInt(a) === BigInt(b);
  return a === b;
};

/** Linear addresses of a symbol, none when it is not known. */
export type Resolve = (symbol: string) => readonly bigint[];

/** A code breakpoint where it stands: on one or, for a name several functions share, several linear addresses. */
interface Breakpoint {
  readonly request: BreakpointRequest;
  readonly guard: Guard;
  linear: readonly bigint[];
}

export class StopPoints {
  private breakpoints: Breakpoint[] = [];
  private byLinear = new Map<bigint, Breakpoint[]>();
  private watchpoints = new Map<number, { request: WatchpointRequest; guard: Guard }>();
  private filters: { filter: TraceFilter; guard: Guard }[] = [];

  constructor(private readonly log: (text: string) => void) {}

  /** TraceKind bits some filter listens to. */
  get kinds(): number {
    return this.filters.reduce((kinds, f) => kinds | f.filter.kind, 0);
  }

  /** Linear and guest-physical addresses of code to stop at. */
  get addresses(): readonly bigint[] {
    return [...this.byLinear.keys()];
  }
  get physicalAddresses(): readonly bigint[] {
    return this.breakpoints.flatMap(({ request: { at } }) => ("physical" in at ? [at.physical] : []));
  }

  /** Breakpoints on symbols: where they stand, and which of them stand nowhere yet. */
  get placed(): readonly PlacedBreakpoint[] {
    return this.breakpoints.flatMap(({ request: { id, at }, linear }) =>
      "symbol" in at && linear.length > 0 ? [{ id, linear: linear[0] }] : [],
    );
  }
  get pending(): readonly { readonly id: number; readonly symbol: string }[] {
    return this.breakpoints.flatMap(({ request: { id, at }, linear }) =>
      "symbol" in at && linear.length === 0 ? [{ id, symbol: at.symbol }] : [],
    );
  }

  get watches(): readonly WatchpointRequest[] {
    return [...this.watchpoints.values()].map((w) => w.request);
  }

  setBreakpoints(list: readonly BreakpointRequest[], resolve: Resolve): Refusal[] {
    const old = new Map(this.breakpoints.map((b) => [b.request.id, b.guard.hits]));
    this.breakpoints = [];
    const refused = this.guarded(list, old, (request, guard) => this.breakpoints.push({ request, guard, linear: [] }));
    this.resolve(resolve);
    return refused;
  }

  /** Symbols have come to be known: breakpoints on them are placed anew. */
  resolve(resolve: Resolve): void {
    this.byLinear = new Map();
    for (const breakpoint of this.breakpoints) {
      const { at } = breakpoint.request;
      if ("physical" in at) continue;
      breakpoint.linear =
        "linear" in at ? [at.linear] : resolve(at.symbol).map((start) => BigInt.asUintN(64, start + at.offset));
      for (const linear of breakpoint.linear) {
        const there = this.byLinear.get(linear);
        if (there) there.push(breakpoint);
        else this.byLinear.set(linear, [breakpoint]);
      }
    }
  }

  /** Breakpoints on symbols that will not come to be known: they go. */
  dropPending(): void {
    this.breakpoints = this.breakpoints.filter(({ request, linear }) => !("symbol" in request.at) || linear.length > 0);
  }

  setWatchpoints(list: readonly WatchpointRequest[]): Refusal[] {
    const old = new Map([...this.watchpoints.values()].map((w) => [w.request.id, w.guard.hits]));
    this.watchpoints = new Map();
    return this.guarded(list, old, (request, guard) => this.watchpoints.set(request.id, { request, guard }));
  }

  setFilters(list: readonly TraceFilter[]): Refusal[] {
    const old = new Map(this.filters.map((f) => [f.filter.id, f.guard.hits]));
    this.filters = [];
    return this.guarded(list, old, (filter, guard) => this.filters.push({ filter, guard }));
  }

  private guarded<T extends Guarded>(
    list: readonly T[],
    hits: ReadonlyMap<string | number, number>,
    add: (item: T, guard: Guard) => void,
  ): Refusal[] {
    const refused: Refusal[] = [];
    for (const item of list) {
      try {
        add(item, { ...guardOf(item), hits: hits.get(item.id) ?? 0 });
      } catch (error) {
        refused.push({ id: item.id, message: error instanceof Error ? error.message : String(error) });
      }
    }
    return refused;
  }

  atAddress(linear: bigint, scope: () => Scope): Verdict | null {
    return this.judgeCode(this.byLinear.get(linear) ?? [], scope);
  }

  atPhysical(address: bigint, scope: () => Scope): Verdict | null {
    const here = ({ request: { at } }: Breakpoint): boolean => "physical" in at && at.physical === address;
    return this.judgeCode(this.breakpoints.filter(here), scope);
  }

  private judgeCode(list: readonly Breakpoint[], scope: () => Scope): Verdict | null {
    if (list.length === 0) return null;
    return this.judge(
      list.map((b) => ({ id: b.request.id, guard: b.guard })),
      scope,
    );
  }

  atWatch(id: number, scope: () => Scope): Verdict | null {
    const watch = this.watchpoints.get(id);
    return watch ? this.judge([{ id, guard: watch.guard }], scope) : null;
  }

  atPoint(point: TracePoint, scope: () => Scope): Verdict | null {
    let detail: ReturnType<typeof detailOf> | null = null;
    const matching: { id: string; guard: Guard }[] = [];
    for (const { filter, guard } of this.filters) {
      if ((filter.kind & point.kind) === 0) continue;
      detail ??= detailOf(point);
      const seen = detail;
      if (Object.entries(filter.match).every(([name, value]) => sameValue(seen[name], value)))
        matching.push({ id: filter.id, guard });
    }
    return matching.length > 0 ? this.judge(matching, scope) : null;
  }

  private judge(list: readonly { id: string | number; guard: Guard }[], scope: () => Scope): Verdict | null {
    const ids: (string | number)[] = [];
    const problems: string[] = [];
    const names = scope();
    for (const { id, guard } of list) {
      try {
        if (guard.condition && !holds(guard.condition, names)) continue;
      } catch (error) {
        // A condition over the port of an I/O exit does not hold at an exit that has no port.
        if (error instanceof AbsentName) continue;
        problems.push(`The condition of ${id} failed: ${error instanceof Error ? error.message : String(error)}.`);
        ids.push(id);
        continue;
      }
      guard.hits++;
      if (!counts(guard.hit, guard.hits)) continue;
      if (guard.log) this.log(fillLog(guard.log, names));
      else ids.push(id);
    }
    return ids.length > 0 ? { ids, problems } : null;
  }
}
