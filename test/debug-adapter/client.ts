/** A debug client for tests: the real adapter in a child process, messages over its standard streams. */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { FrameReader, frame } from "../../debug-adapter/transport";

export interface Message {
  readonly seq: number;
  readonly type: "response" | "event";
  readonly command?: string;
  readonly event?: string;
  readonly success?: boolean;
  readonly request_seq?: number;
  readonly message?: string;
  // biome-ignore lint/suspicious/noExplicitAny: bodies are checked by the tests
  readonly body?: any;
}

const PATIENCE = 20_000;

export class Client {
  readonly received: Message[] = [];
  readonly process: ChildProcessWithoutNullStreams;
  readonly exited: Promise<number | null>;
  stderr = "";
  private seq = 1;
  private watchers: (() => void)[] = [];
  /** Index of the first message `event` has not handed out yet, by event name. */
  private readonly seen = new Map<string, number>();

  constructor(adapter: string, args: readonly string[] = []) {
    this.process = spawn(process.execPath, [adapter, ...args], { stdio: ["pipe", "pipe", "pipe"] });
    this.exited = new Promise((resolve) => this.process.on("exit", resolve));
    const reader = new FrameReader({
      message: (message) => {
        this.received.push(message as Message);
        for (const watch of this.watchers.splice(0)) watch();
      },
      malformed: (problem) => {
        throw new Error(`the adapter wrote no message: ${problem}`);
      },
      closed: () => {},
    });
    this.process.stdout.on("data", (chunk: Buffer) => reader.feed(chunk));
    this.process.stderr.on("data", (chunk: Buffer) => {
      this.stderr += chunk.toString();
    });
    this.process.stdin.on("error", () => {});
  }

  raw(bytes: string | Uint8Array): void {
    this.process.stdin.write(bytes);
  }

  /** Sends without waiting; returns the sequence number. */
  post(command: string, args?: object): number {
    const seq = this.seq++;
    this.raw(frame({ seq, type: "request", command, ...(args ? { arguments: args } : {}) }));
    return seq;
  }

  async response(seq: number): Promise<Message> {
    return this.find((m) => m.type === "response" && m.request_seq === seq, `the response to ${seq}`);
  }

  /** The response's body. @throws Error with the response's message when it failed */
  // biome-ignore lint/suspicious/noExplicitAny: bodies are checked by the tests
  async request(command: string, args?: object): Promise<any> {
    const response = await this.response(this.post(command, args));
    if (!response.success) throw new Error(response.message);
    return response.body;
  }

  /** The message of a failed response. */
  async failure(command: string, args?: object): Promise<string> {
    const response = await this.response(this.post(command, args));
    if (response.success) throw new Error(`${command} did not fail`);
    return response.message ?? "";
  }

  /** The next event of that name that has not been handed out. */
  async event(name: string): Promise<Message> {
    const from = this.seen.get(name) ?? 0;
    const found = await this.find((m, i) => i >= from && m.event === name, `the event ${name}`);
    this.seen.set(name, this.received.indexOf(found) + 1);
    return found;
  }

  private async find(test: (m: Message, index: number) => boolean, what: string): Promise<Message> {
    const deadline = Date.now() + PATIENCE;
    for (;;) {
      const found = this.received.find(test);
      if (found) return found;
      const left = deadline - Date.now();
      if (left <= 0) {
        const last = this.received.slice(-5).map((m) => JSON.stringify(m).slice(0, 300));
        throw new Error(`waited in vain for ${what}; last messages:\n${last.join("\n")}\n${this.stderr}`);
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.watchers.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  async start(configuration: object, before?: (client: Client) => Promise<void>): Promise<void> {
    await this.request("initialize", {
      adapterID: "hyperstep",
      linesStartAt1: true,
      columnsStartAt1: true,
      supportsInvalidatedEvent: true,
      supportsMemoryEvent: true,
    });
    await this.request("launch", configuration);
    await this.event("initialized");
    await before?.(this);
    await this.request("configurationDone");
  }

  async end(): Promise<number | null> {
    this.post("disconnect", {});
    const timer = setTimeout(() => this.process.kill("SIGKILL"), PATIENCE);
    const status = await this.exited;
    clearTimeout(timer);
    return status;
  }
}
