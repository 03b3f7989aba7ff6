/**
 * Whole sessions as text, to be read and compared: what the client asked (`>`), what came back (`<`), events (`*`). Lines and
 * columns inside the project's own sources are left out, because any edit moves them.
 */
import { root } from "./bundles";
import type { Client, Message } from "./client";

// biome-ignore lint/suspicious/noExplicitAny: bodies of any message
type Any = any;

const LANDMARKS: ReadonlySet<string> = new Set(
  "vmxHandleExit handleIo vmxVcpuRun vcpuEnterGuest vcpuRun kvmArchVcpuIoctlRun KVM_RUN kvmCpuExec kvmVcpuThreadFn kvmHandleIo".split(
    " ",
  ),
);

export class Session {
  readonly lines: string[] = [];
  constructor(readonly client: Client) {}

  note(text: string): void {
    this.lines.push("", `# ${text}`);
  }

  private write(mark: string, text: string): void {
    for (const line of text.split("\n")) this.lines.push(`${mark} ${line.replaceAll(root, "ROOT")}`.trimEnd());
  }

  /** Sends a request and writes it down with its answer. @param show makes the text of the body; nothing by default */
  async ask(command: string, args?: object, show?: (body: Any) => string): Promise<Any> {
    this.write(">", `${command}${args ? ` ${JSON.stringify(args)}` : ""}`);
    const response = await this.client.response(this.client.post(command, args));
    if (!response.success) {
      this.write("<", `failed: ${response.message}`);
      return undefined;
    }
    const text = show?.(response.body);
    if (text) this.write("<", text);
    return response.body;
  }

  async event(name: string): Promise<Message> {
    const event = await this.client.event(name);
    const { threadId, allThreadsStopped, hitBreakpointIds, ...rest } = event.body ?? {};
    void hitBreakpointIds;
    void allThreadsStopped;
    const thread = threadId === undefined ? "" : ` thread ${threadId}`;
    this.write("*", `${name}${thread}${Object.keys(rest).length > 0 ? ` ${JSON.stringify(rest)}` : ""}`);
    return event;
  }

  /** Asks for something that runs the guest, and waits for the stop. */
  async go(command: string, args: object = {}): Promise<Message> {
    const granularity = command === "next" || command === "stepIn" ? { granularity: "instruction" } : {};
    await this.ask(command, { threadId: 1, ...granularity, ...args });
    return this.event("stopped");
  }

  async begin(configuration: object, before?: () => Promise<void>): Promise<void> {
    await this.ask("initialize", { adapterID: "hyperstep" });
    if ((await this.ask("launch", configuration, () => "ok")) === undefined && !this.lines.at(-1)?.endsWith("ok"))
      return;
    await this.event("initialized");
    await before?.();
    await this.ask("configurationDone");
  }

  /** Guest frames, and of the model's frames those that are Linux's and QEMU's own by name. */
  stack(levels = 30): Promise<Any> {
    return this.ask("stackTrace", { threadId: 1 }, ({ stackFrames }) =>
      stackFrames
        .flatMap((f: Any) => {
          if (f.presentationHint === "label") return [`-- ${f.name} --`];
          const place = f.source?.path ? ` ${f.source.name}:${f.line}` : "";
          if (f.instructionPointerReference) return [`${f.name}  [guest ${f.instructionPointerReference}${place}]`];
          return LANDMARKS.has(f.name) ? [`${f.name}  [${f.source.name}]`] : [];
        })
        .slice(0, levels)
        .join("\n"),
    );
  }

  async guestFrame(): Promise<Any> {
    const { stackFrames } = await this.client.request("stackTrace", { threadId: 1 });
    return stackFrames.find((f: Any) => f.instructionPointerReference);
  }

  /** Values of expressions at the guest's innermost frame. */
  async values(...expressions: readonly string[]): Promise<void> {
    const { id } = await this.guestFrame();
    for (const expression of expressions) {
      const response = await this.client.response(
        this.client.post("evaluate", { expression, frameId: id, context: "watch" }),
      );
      this.write("=", `${expression}: ${response.success ? response.body.result : `failed: ${response.message}`}`);
    }
  }

  code(count: number): Promise<Any> {
    return this.guestFrame().then((f) =>
      this.ask(
        "disassemble",
        { memoryReference: f.instructionPointerReference, instructionOffset: 0, instructionCount: count },
        ({ instructions }) =>
          instructions
            .map((i: Any) => `${i.address}  ${(i.instructionBytes ?? "").padEnd(24)} ${i.instruction}`)
            .join("\n"),
      ),
    );
  }

  /** What the guest wrote to its serial port so far, by the debug console. */
  serial(): string {
    return this.client.received
      .filter((m) => m.event === "output" && m.body.category === "stdout")
      .map((m) => m.body.output)
      .join("");
  }

  showSerial(): void {
    this.write("|", this.serial().replaceAll("\r", "").trimEnd().replaceAll("\n", "\n| ").replaceAll("\n| ", "\n"));
  }

  async end(): Promise<string> {
    this.write(">", "disconnect");
    this.write("<", `the adapter ended with status ${await this.client.end()}`);
    return `${this.lines.join("\n").trim()}\n`;
  }
}
