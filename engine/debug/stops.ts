/**
 * Decides, at every trace point, whether the machine stops there, and why: breakpoints, watchpoints, trace filters, the
 * running step, a requested pause. Knows nothing of messages; the engine host blocks when it says so.
 */
import type { Machine } from "../machine/machine";
import { TraceKind, type TracePoint } from "../trace";
import type { BreakpointRequest, Refusal, Resume, Stop, StopReason, TraceFilter, WatchpointRequest } from "./api";
import { codeContext } from "./code";
import type { Scope } from "./evaluate";
import { Step } from "./stepping";
import { StopPoints, type Verdict } from "./stop-points";
import type { SymbolIndex } from "./symbols";

export interface StopEnvironment {
  readonly machine: Machine;
  readonly symbols: SymbolIndex;
  log(text: string): void;
  scope(vcpu: number, point: TracePoint | null): Scope;
  /** The set of trace kinds to listen to has changed. */
  armedChanged(): void;
}

/** A decided stop; the host adds the model's stack. */
export type Decision = Omit<Stop, "modelFrames">;

/** Points the debugger always wants to see. */
const ALWAYS = TraceKind.Instruction | TraceKind.Poll;

export class Stops {
  private readonly points: StopPoints;
  private step: Step | null = null;
  /** Place a resume started from: the breakpoint there does not stop again before anything has retired. */
  private left: { vcpu: number; linear: bigint; retired: number } | null = null;

  constructor(private readonly environment: StopEnvironment) {
    this.points = new StopPoints((text) => environment.log(text));
  }

  get armed(): number {
    return ALWAYS | this.points.kinds | (this.step?.kinds ?? 0);
  }

  setBreakpoints(list: readonly BreakpointRequest[]): Refusal[] {
    const refused = this.points.setBreakpoints(list);
    this.placeBreakpoints();
    return refused;
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
    this.environment.machine.setBreakpoints([...addresses].map((linear, id) => ({ linear, id })));
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
      const { machine, symbols } = this.environment;
      this.step = new Step({ machine, symbols, goalChanged: () => this.goalChanged() }, resume, at);
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
      text: headline(point, verdict !== null),
      ...(description ? { description } : {}),
      detail: point.detail,
      ...this.onGuestMemory(point),
      traceKind: point.kind === TraceKind.Instruction ? 0 : point.kind,
    };
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
    const { left } = this;
    if (left && left.vcpu === point.vcpu && left.linear === linear && left.retired === view.retired)
      return { verdict: null, reason: "breakpoint" };
    return { verdict: this.points.atAddress(linear, scope), reason: "breakpoint" };
  }
}

function headline(point: TracePoint, asked: boolean): string {
  if (point.kind !== TraceKind.Instruction) return point.text;
  return asked ? point.text : "";
}

/** Longer text a trace point carries for people. */
function explanation(point: TracePoint): string {
  const { report, cause } = point.detail;
  if (typeof report === "string") return report;
  return point.kind === TraceKind.TripleFault && typeof cause === "string" ? cause : "";
}
