/**
 * Decides, at every trace point, whether the machine stops there, and why: breakpoints, watchpoints, trace filters, the
 * running step, a requested pause. Knows nothing of messages; the engine host blocks when it says so.
 */
import type { Machine } from "../machine/machine";
import { TraceKind, type TracePoint } from "../trace";
import type {
  BreakpointRequest,
  PlacedBreakpoint,
  Refusal,
  Resume,
  Stop,
  StopReason,
  TraceFilter,
  WatchpointRequest,
} from "./api";
import { codeContext } from "./code";
import type { Scope } from "./evaluate";
import { KERNEL_MAP } from "./linux/kernel";
import { Step } from "./stepping";
import { StopPoints, type Verdict } from "./stop-points";
import type { SymbolIndex } from "./symbols";
import type { Frame } from "./unwind";

export interface StopEnvironment {
  readonly machine: Machine;
  readonly symbols: SymbolIndex;
  unwind(vcpu: number, limit: number): readonly Frame[];
  /** The guest's kernel serves an exception and goes back to the instruction. */
  isTransparent(vector: number): boolean;
  log(text: string): void;
  scope(vcpu: number, point: TracePoint | null): Scope;
  /** The set of trace kinds to listen to has changed. */
  armedChanged(): void;
  /** A vCPU has reached the linear addresses of a Linux kernel for the first time: its symbols can be read now. */
  kernelReached(vcpu: number, linear: bigint): void;
}

/** Why the machine was told to stop before an instruction. */
type Cause =
  | { readonly kind: "linear" }
  | { readonly kind: "physical"; readonly address: bigint }
  | { readonly kind: "kernel" };

/** A decided stop; the host adds the model's stack. */
export type Decision = Omit<Stop, "modelFrames">;

/** Points the debugger always wants to see. */
const ALWAYS = TraceKind.Instruction | TraceKind.Poll;

export class Stops {
  private readonly points: StopPoints;
  private step: Step | null = null;
  private searching = false;
  /** What the machine's breakpoints are for, by their id. */
  private causes: readonly Cause[] = [];
  /** Place a resume started from: the breakpoint there does not stop again before anything has retired. */
  private left: { vcpu: number; linear: bigint; retired: number } | null = null;

  constructor(private readonly environment: StopEnvironment) {
    this.points = new StopPoints((text) => environment.log(text));
  }

  get armed(): number {
    return ALWAYS | this.points.kinds | (this.step?.kinds ?? 0);
  }

  setBreakpoints(list: readonly BreakpointRequest[]): {
    refused: readonly Refusal[];
    placed: readonly PlacedBreakpoint[];
    pending: readonly number[];
  } {
    const refused = [...this.points.setBreakpoints(list, (symbol) => this.addressesOf(symbol))];
    const { placed, pending } = this.points;
    if (!this.searching) {
      refused.push(...this.missing(pending));
      this.points.dropPending();
    }
    this.placeBreakpoints();
    return { refused, placed, pending: this.searching ? pending.map(({ id }) => id) : [] };
  }

  private addressesOf(symbol: string): readonly bigint[] {
    const all = this.environment.symbols.all(symbol).filter((s) => s.kind !== "constant");
    const functions = all.filter((s) => s.kind === "function");
    return [...new Set((functions.length > 0 ? functions : all).map((s) => s.address))];
  }

  private missing(pending: readonly { readonly id: number; readonly symbol: string }[]): Refusal[] {
    return pending.map(({ id, symbol }) => ({ id, message: `there is no function "${symbol}" among the symbols` }));
  }

  get searchesKernel(): boolean {
    return this.searching;
  }

  /** @returns breakpoints that waited for the kernel's symbols and are dropped */
  searchKernel(on: boolean): Refusal[] {
    this.searching = on;
    const missing = on ? [] : this.missing(this.points.pending);
    if (!on) this.points.dropPending();
    this.placeBreakpoints();
    return missing;
  }

  /** Symbols have come to be known. @returns where the breakpoints that waited for them stand now */
  symbolsChanged(): readonly PlacedBreakpoint[] {
    this.points.resolve((symbol) => this.addressesOf(symbol));
    this.placeBreakpoints();
    return this.points.placed;
  }

  setWatchpoints(list: readonly WatchpointRequest[]): Refusal[] {
    const refused = this.points.setWatchpoints(list);
    this.environment.machine.setWatchpoints(this.points.watches);
    return refused;
  }

  setFilters(list: readonly TraceFilter[]): Refusal[] {
    const refused = this.points.setFilters(list);
    this.environment.armedChanged();
    return refused;
  }

  private placeBreakpoints(): void {
    const addresses = new Set(this.points.addresses);
    const goal = this.step?.goal ?? null;
    if (goal !== null) addresses.add(goal);
    const list: { cause: Cause; place: { linear: bigint; end?: bigint; physical?: boolean } }[] = [
      ...[...addresses].map((linear) => ({ cause: { kind: "linear" } as const, place: { linear } })),
      ...[...new Set(this.points.physicalAddresses)].map((address) => ({
        cause: { kind: "physical", address } as const,
        place: { linear: address, physical: true },
      })),
    ];
    if (this.searching)
      list.unshift({ cause: { kind: "kernel" }, place: { linear: KERNEL_MAP.from, end: KERNEL_MAP.to } });
    this.causes = list.map(({ cause }) => cause);
    this.environment.machine.setBreakpoints(list.map(({ place }, id) => ({ id, ...place })));
  }

  /**
   * The machine is about to go on.
   * @throws Error when the step has nowhere to go; nothing has changed then
   */
  resume(resume: Resume, at: TracePoint | null, vcpu: number): void {
    this.endStep();
    const view = this.environment.machine.vcpus[vcpu];
    this.left = resume.kind === "start" ? null : { vcpu, linear: codeContext(view).linear, retired: view.retired };
    if (resume.kind !== "continue" && resume.kind !== "start") {
      const { machine } = this.environment;
      const callers = (index: number): Frame | undefined => this.environment.unwind(index, 2)[1];
      const isTransparent = (vector: number): boolean => this.environment.isTransparent(vector);
      const goalChanged = (): void => this.goalChanged();
      this.step = new Step({ machine, caller: callers, isTransparent, goalChanged }, resume, at);
      this.goalChanged();
    }
    this.environment.armedChanged();
  }

  private goalChanged(): void {
    if (this.step) this.placeBreakpoints();
  }

  private endStep(): void {
    if (!this.step) return;
    this.step.end();
    this.step = null;
    this.placeBreakpoints();
    this.environment.armedChanged();
  }

  /**
   * A slice is over: what has run has left the place the resume started from. The count of instructions alone would not
   * tell for ever, a machine that was reset counts anew.
   */
  sliceDone(): void {
    const { left } = this;
    if (left && this.environment.machine.vcpus[left.vcpu].retired !== left.retired) this.left = null;
  }

  /** The machine stops for another reason than a point: a pause, its end, its entry. */
  interrupt(): void {
    this.endStep();
  }

  /** @returns why to stop at `point`, or null to go on */
  decide(point: TracePoint): Decision | null {
    const { verdict, reason } = this.verdictOf(point);
    const stepped = this.step?.decide(point) ?? false;
    if (!verdict && !stepped) return null;
    this.endStep();
    const description = [...(verdict?.problems ?? []), explanation(point)].filter((text) => text !== "").join("\n");
    return {
      reason: verdict ? reason : "step",
      vcpu: point.vcpu,
      hits: verdict?.ids ?? [],
      text: this.headline(point, verdict !== null),
      ...(description ? { description } : {}),
      detail: point.detail,
      ...this.onGuestMemory(point),
      traceKind: point.kind === TraceKind.Instruction ? 0 : point.kind,
    };
  }

  /** One line for the stop; a breakpoint in code with a symbol is named by that. */
  private headline(point: TracePoint, asked: boolean): string {
    if (point.kind !== TraceKind.Instruction) return point.text;
    const { cause, linear } = point.detail;
    const symbol = typeof linear === "bigint" ? this.environment.symbols.at(linear) : undefined;
    if (cause === "breakpoint" && symbol && typeof linear === "bigint") {
      const offset = linear - symbol.address;
      return asked ? `breakpoint at ${symbol.name}${offset === 0n ? "" : `+0x${offset.toString(16)}`}` : "";
    }
    return asked ? point.text : "";
  }

  /**
   * A watched guest-physical place lies elsewhere in the host's memory, where the processor met it: what is told is the
   * guest's address.
   */
  private onGuestMemory(point: TracePoint): Pick<Decision, "text" | "detail"> | undefined {
    const { cause, id, size, write } = point.detail;
    if (cause !== "watchpoint" || this.environment.machine.config.accel === "none") return undefined;
    const watch = this.points.watches.find((w) => w.id === Number(id));
    if (watch?.space !== "physical") return undefined;
    const text = `${write ? "wrote" : "read"} ${size} bytes at gpa:0x${watch.address.toString(16)}`;
    return { text, detail: { ...point.detail, address: watch.address } };
  }

  private verdictOf(point: TracePoint): { verdict: Verdict | null; reason: StopReason } {
    const scope = (): Scope => this.environment.scope(point.vcpu, point);
    if (point.kind !== TraceKind.Instruction) return { verdict: this.points.atPoint(point, scope), reason: "trace" };
    if (point.detail.cause === "watchpoint")
      return { verdict: this.points.atWatch(Number(point.detail.id), scope), reason: "watchpoint" };
    if (point.detail.cause !== "breakpoint") return { verdict: null, reason: "step" };
    const view = this.environment.machine.vcpus[point.vcpu];
    const { linear } = codeContext(view);
    const cause = this.causes[Number(point.detail.id)];
    // In the same breath the breakpoints that waited are placed: one may stand right here.
    if (cause?.kind === "kernel" && this.searching) this.environment.kernelReached(point.vcpu, linear);
    const { left } = this;
    if (left && left.vcpu === point.vcpu && left.linear === linear && left.retired === view.retired)
      return { verdict: null, reason: "breakpoint" };
    const verdict =
      cause?.kind === "physical" ? this.points.atPhysical(cause.address, scope) : this.points.atAddress(linear, scope);
    return { verdict, reason: "breakpoint" };
  }
}

/** Longer text a trace point carries for people. */
function explanation(point: TracePoint): string {
  const { report, cause } = point.detail;
  if (typeof report === "string") return report;
  return point.kind === TraceKind.TripleFault && typeof cause === "string" ? cause : "";
}
