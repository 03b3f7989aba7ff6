/**
 * Messages of a session: requests are checked and answered one after the other, in the order they came; whatever is wrong
 * with one gives exactly one error and nothing else.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import { Cancelled, type CancelToken, type Handler } from "./context";
import { requestSchemas } from "./request-schemas";
import { check, nearest } from "./schema";
import type { Transport } from "./transport";

/** Requests that do not wait for those before them. Pause does: it means the machine the requests before it set going. */
const AT_ONCE: ReadonlySet<string> = new Set(["cancel", "terminate", "disconnect", "hyperstep/serialInput"]);
/** Error ids of the protocol's error bodies. */
const ErrorId = { FAILED: 1, BAD_ARGUMENTS: 2, UNKNOWN_COMMAND: 3 } as const;

interface Pending {
  readonly seq: number;
  readonly command: string;
  readonly args: unknown;
  cancelled: boolean;
}

export class Dispatcher {
  private readonly queue: Pending[] = [];
  private working: Pending | null = null;
  private nextSeq = 1;

  /** @param after called when a request has been answered well */
  constructor(
    private readonly transport: Transport,
    private readonly handlers: ReadonlyMap<string, Handler>,
    private readonly after: (command: string) => void,
  ) {}

  message(message: unknown): void {
    if (typeof message !== "object" || message === null || Array.isArray(message)) {
      this.malformed("a message must be a JSON object");
      return;
    }
    const { seq, type, command } = message as { seq?: unknown; type?: unknown; command?: unknown };
    const args = (message as { arguments?: unknown }).arguments;
    // This adapter sends no requests, so that a response answers nothing.
    if (type === "response") return;
    const number = typeof seq === "number" && Number.isInteger(seq) ? seq : 0;
    const name = typeof command === "string" ? command : "";
    if (type !== "request" || number <= 0 || name === "") {
      const what =
        type !== "request"
          ? `"type" must be "request"`
          : number <= 0
            ? `"seq" must be a positive whole number`
            : `"command" must be a string`;
      this.fail({ seq: number, command: name }, ErrorId.BAD_ARGUMENTS, `malformed message: ${what}`);
      return;
    }
    const pending: Pending = { seq: number, command: name, args: args ?? {}, cancelled: false };
    if (AT_ONCE.has(name)) void this.answer(pending);
    else {
      this.queue.push(pending);
      void this.work();
    }
  }

  malformed(problem: string): void {
    this.fail({ seq: 0, command: "" }, ErrorId.BAD_ARGUMENTS, `malformed message: ${problem}`);
  }

  private async work(): Promise<void> {
    if (this.working) return;
    for (let next = this.queue.shift(); next; next = this.queue.shift()) {
      this.working = next;
      await this.answer(next);
      this.working = null;
    }
  }

  private async answer(request: Pending): Promise<void> {
    const handler = this.handlers.get(request.command);
    if (!handler) {
      const like = nearest(request.command, [...this.handlers.keys()]);
      const hint = like ? `; did you mean "${like}"?` : "";
      this.fail(request, ErrorId.UNKNOWN_COMMAND, `this adapter knows no request "${request.command}"${hint}`);
      return;
    }
    const problems = check(request.args, requestSchemas[request.command] ?? {}, `${request.command}: argument`);
    if (problems.length > 0) {
      this.fail(
        request,
        ErrorId.BAD_ARGUMENTS,
        problems.map((p) => p.replace(": argument needs", ": arguments need")).join("; "),
      );
      return;
    }
    const token: CancelToken = {
      check: () => {
        if (request.cancelled) throw new Cancelled();
      },
    };
    try {
      token.check();
      // The schema of the command has checked them: they are what this handler names.
      const body = await handler(request.args as never, token);
      this.respond(request, true, body);
      this.after(request.command);
    } catch (error) {
      if (error instanceof Cancelled) this.respond(request, false, {}, "cancelled");
      else this.fail(request, ErrorId.FAILED, error instanceof Error ? error.message : String(error));
    }
  }

  /** Takes a request back that has not been answered yet. */
  cancel(seq: number | undefined): void {
    for (const pending of [this.working, ...this.queue]) if (pending && pending.seq === seq) pending.cancelled = true;
  }

  event(name: string, body?: object): void {
    this.send({ type: "event", event: name, ...(body ? { body } : {}) } as DebugProtocol.Event);
  }

  private send(message: Omit<DebugProtocol.ProtocolMessage, "seq">): void {
    this.transport.send({ seq: this.nextSeq++, ...message });
  }

  private respond(request: { seq: number; command: string }, success: boolean, body?: object, message?: string): void {
    const response = { type: "response", request_seq: request.seq, success, command: request.command };
    this.send({ ...response, ...(message ? { message } : {}), ...(body ? { body } : {}) } as DebugProtocol.Response);
  }

  private fail(request: { seq: number; command: string }, id: number, text: string): void {
    // Braces in an error's format are placeholders; here they are text.
    const error = { id, format: "{text}", variables: { text }, showUser: request.command === "launch" };
    this.respond(request, false, { error }, text);
  }
}
