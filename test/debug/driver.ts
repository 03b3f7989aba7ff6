/** Drives an EngineHost in one thread: a script of commands stands in for the sleeping pump. */
import type { EngineMethod, EngineRequests, FromEngine, Resume, Stop, ToEngine } from "../../engine/debug/api";
import { EngineHost } from "../../engine/debug/engine-host";
import type { CommandPump } from "../../engine/debug/pump";
import { FakeMachine, fakeConfig } from "./fake-machine";

/** Runs a script of commands: at every stop the next one; when there are no more, the engine is told to end. */
export class Driver {
  machine!: FakeMachine;
  readonly sent: FromEngine[] = [];
  private readonly queue: ToEngine[] = [];
  private id = 1;
  readonly host: EngineHost;

  constructor(code: readonly number[], accel: "none" | "vmx" = "vmx", smp = 1) {
    const pump: CommandPump = {
      blocking: true,
      poll: () => undefined,
      wait: () => this.queue.shift() ?? { id: 0, method: "terminate", request: {} },
    };
    this.host = new EngineHost(
      (message) => this.sent.push(message),
      pump,
      (config, environment) => {
        this.machine = new FakeMachine(config, environment);
        return this.machine;
      },
    );
    this.now("launch", fakeConfig(code, accel, smp));
  }

  /** A command given while the machine stands at its start. */
  now<M extends EngineMethod>(method: M, request: EngineRequests[M]["request"]): EngineRequests[M]["response"] {
    const id = this.id++;
    this.host.command({ id, method, request });
    const answer = this.sent.find((m) => "id" in m && m.id === id);
    if (!answer || !("id" in answer)) throw new Error(`no answer to ${method}`);
    if ("error" in answer) throw new Error(answer.error);
    return answer.response as EngineRequests[M]["response"];
  }

  /** Queues a command for the next stop. */
  queueNext<M extends EngineMethod>(method: M, request: EngineRequests[M]["request"]): this {
    this.queue.push({ id: this.id++, method, request });
    return this;
  }

  /** Resumes one after the other, once; returns a line for each stop that followed. */
  play(...resumes: readonly Resume[]): string[] {
    const before = this.sent.length;
    for (const resume of resumes) this.queueNext("resume", resume);
    this.host.serve();
    return this.sent.slice(before).flatMap((m) => {
      if ("error" in m) return [`error: ${m.error}`];
      if (!("event" in m)) return [];
      if (m.event === "stopped") return [describeStop(m.stop)];
      if (m.event === "ended") return [`ended: ${m.ending.kind}`];
      return m.event === "log" ? [`log: ${m.text}`] : [];
    });
  }
}

function describeStop(stop: Stop): string {
  const hits = stop.hits.length > 0 ? ` [${stop.hits.join(", ")}]` : "";
  return `${stop.reason}${hits}${stop.traceKind ? ` ${stop.text}` : ""}`;
}
