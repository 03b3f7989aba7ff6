/**
 * `npm start`: the sample guest under the real debug adapter, in a child process, as a readable transcript. Everything shown
 * comes through the Debug Adapter Protocol, as an editor would get it.
 *
 *     node dist/demo.js [IMAGE]
 */
import { type ChildProcess, spawn } from "node:child_process";
import { join, relative } from "node:path";
import type { DebugProtocol } from "@vscode/debugprotocol";
import { FrameReader, frame } from "./transport";

const CONDITION = 'port == 0x3f8 && direction == "out" && al >= 0x20';
const REGISTERS = ["rip", "rsp", "rax", "rdx", "rflags"];
const FIELDS = ["VM_EXIT_REASON", "EXIT_QUALIFICATION", "VM_EXIT_INSTRUCTION_LEN", "GUEST_RIP", "GUEST_CR0"];
const MAX_STAGES = 12;
const PATIENCE = 60_000;

const color = process.stdout.isTTY && !process.env.NO_COLOR;
const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text);
const say = (text = ""): void => {
  process.stdout.write(`${text}\n`);
};
const title = (text: string): void => {
  say();
  say(paint(1, `== ${text}`));
};

class Failure extends Error {}

/** As much of a debug client as the demonstration needs. */
class Client {
  serial = "";
  private readonly adapter: ChildProcess;
  private seq = 1;
  private readonly responses = new Map<number, (message: DebugProtocol.Response) => void>();
  private readonly events: DebugProtocol.Event[] = [];
  private wake: (() => void) | null = null;
  private gone = "";

  constructor(script: string) {
    this.adapter = spawn(process.execPath, [script], { stdio: ["pipe", "pipe", "inherit"] });
    const reader = new FrameReader({
      message: (message) => this.receive(message as DebugProtocol.ProtocolMessage),
      malformed: (problem) => this.lost(problem),
      closed: () => {},
    });
    this.adapter.stdout?.on("data", (chunk: Buffer) => reader.feed(chunk));
    this.adapter.stdin?.on("error", () => {});
    this.adapter.on("exit", (status) => this.lost(`the adapter ended with status ${status}`));
    this.adapter.on("error", (error) => this.lost(error.message));
  }

  private lost(why: string): void {
    this.gone = why;
    this.wake?.();
    for (const [seq, answer] of this.responses)
      answer({ seq: 0, type: "response", request_seq: seq, success: false, command: "", message: why });
    this.responses.clear();
  }

  private receive(message: DebugProtocol.ProtocolMessage): void {
    if (message.type === "response") {
      const response = message as DebugProtocol.Response;
      this.responses.get(response.request_seq)?.(response);
      this.responses.delete(response.request_seq);
      return;
    }
    const event = message as DebugProtocol.Event;
    if (event.event === "output") {
      const { category, output } = (event as DebugProtocol.OutputEvent).body;
      if (category === "stdout") this.serial += output;
      else say(paint(2, `   ${output.trimEnd()}`));
      return;
    }
    this.events.push(event);
    this.wake?.();
  }

  async request<T = Record<string, unknown>>(command: string, args?: object): Promise<T> {
    const seq = this.seq++;
    const answer = new Promise<DebugProtocol.Response>((resolve) => this.responses.set(seq, resolve));
    this.adapter.stdin?.write(frame({ seq, type: "request", command, arguments: args }));
    const response = await answer;
    if (!response.success) throw new Failure(response.message ?? `${command} failed`);
    return response.body;
  }

  /** The next event with one of these names. */
  async event(...names: readonly string[]): Promise<DebugProtocol.Event> {
    const deadline = Date.now() + PATIENCE;
    for (;;) {
      const at = this.events.findIndex((e) => names.includes(e.event));
      if (at >= 0) return this.events.splice(at, 1)[0];
      if (this.gone) throw new Failure(this.gone);
      const left = deadline - Date.now();
      if (left <= 0)
        throw new Failure(`nothing came for ${PATIENCE / 1000} seconds (waiting for ${names.join(" or ")})`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async stop(): Promise<DebugProtocol.StoppedEvent["body"]> {
    const event = await this.event("stopped", "terminated");
    if (event.event === "terminated") throw new Failure("the guest ended before it was expected to");
    return event.body;
  }

  kill(): void {
    this.adapter.kill();
  }
}

async function guestFrame(client: Client): Promise<DebugProtocol.StackFrame> {
  const { stackFrames } = await client.request("stackTrace", { threadId: 1 });
  const frame = (stackFrames as DebugProtocol.StackFrame[]).find((f) => f.instructionPointerReference);
  if (!frame) throw new Failure("the stack has no guest frame");
  return frame;
}

async function showStack(client: Client, root: string): Promise<void> {
  const { stackFrames } = await client.request("stackTrace", { threadId: 1, levels: 40 });
  for (const f of stackFrames as DebugProtocol.StackFrame[]) {
    if (f.presentationHint === "label") say(paint(33, `   -- ${f.name} --`));
    else if (f.source?.path && !f.instructionPointerReference) {
      const path = f.source.path?.startsWith("/") ? relative(root, f.source.path) : f.source.path;
      say(`   ${f.name.padEnd(32)} ${paint(2, `${path}:${f.line}`)}`);
    } else {
      const place = f.source?.path ? `  ${relative(root, f.source.path)}:${f.line}` : "";
      say(`   ${f.name.padEnd(32)} ${paint(2, `guest ${f.instructionPointerReference}${place}`)}`);
    }
  }
}

async function showExpressions(client: Client, names: readonly string[], prefix = ""): Promise<void> {
  const { id } = await guestFrame(client);
  for (const name of names) {
    const body = await client.request("evaluate", { expression: `${prefix}${name}`, frameId: id, context: "watch" });
    say(`   ${name.padEnd(26)} ${body.result}`);
  }
}

async function showCode(client: Client): Promise<void> {
  const { instructionPointerReference } = await guestFrame(client);
  const { instructions } = await client.request("disassemble", {
    memoryReference: instructionPointerReference,
    instructionOffset: -2,
    instructionCount: 6,
    resolveSymbols: true,
  });
  for (const row of instructions as DebugProtocol.DisassembledInstruction[]) {
    const here = row.address === instructionPointerReference;
    const text = `${here ? "=>" : "  "} ${row.address}  ${(row.instructionBytes ?? "").padEnd(24)} ${row.instruction}`;
    say(`   ${here ? paint(1, text) : text}`);
  }
}

const serialLines = (text: string): string =>
  text
    .split("\n")
    .map((line) => line.replace(/\r$/, ""))
    .filter((line, i, all) => line !== "" || i < all.length - 1)
    .map((line) => `   | ${line}`)
    .join("\n");

async function demonstrate(client: Client, image: string, root: string): Promise<void> {
  say(
    `${paint(1, "Hyperstep")}: ${relative(process.cwd(), image) || image} as a KVM guest on an emulated VMX processor.`,
  );
  await client.request("initialize", { adapterID: "hyperstep", linesStartAt1: true, columnsStartAt1: true });
  await client.request("launch", { program: image, accel: "vmx", memory: "64M", serial: "console" });
  await client.event("initialized");

  title(`Stop at the VM exit IO_INSTRUCTION when ${CONDITION}`);
  await client.request("setExceptionBreakpoints", {
    filters: ["entry-failed", "triple-fault"],
    filterOptions: [{ filterId: "exit:IO_INSTRUCTION", condition: CONDITION }],
  });
  await client.request("configurationDone");
  const stop = await client.stop();
  say(`   stopped: ${stop.description ?? stop.reason}`);

  title("The call stack: the KVM model's own frames above the guest's");
  await showStack(client, root);
  title("Registers of the guest");
  await showExpressions(client, REGISTERS);
  title("VMCS");
  await showExpressions(client, FIELDS, "vmcs.");
  title("Code");
  await showCode(client);

  title("Step into the exit, stage by stage, back to the guest");
  for (let i = 0; i < MAX_STAGES; i++) {
    await client.request("stepIn", { threadId: 1 });
    const { description } = await client.stop();
    const { stackFrames } = await client.request("stackTrace", { threadId: 1, levels: 1 });
    const [top] = stackFrames as DebugProtocol.StackFrame[];
    const source = top.source ? ` (${top.source.name}:${top.line})` : "";
    const where = `${top.instructionPointerReference ? "guest " : ""}${top.name}${source}`;
    say(`   ${(description ?? "next guest instruction").padEnd(62)} ${paint(2, where)}`);
    if (!description) break;
  }
  await showCode(client);

  title("Step over goes straight to the next guest instruction");
  for (let i = 0; i < 3; i++) {
    await client.request("next", { threadId: 1, granularity: "instruction" });
    await client.stop();
    say(`   ${(await guestFrame(client)).name}`);
  }

  title("Run to the end");
  await client.request("setExceptionBreakpoints", { filters: ["entry-failed", "triple-fault"] });
  await client.request("continue", { threadId: 1 });
  const ended = await client.event("exited", "stopped");
  say(paint(32, serialLines(client.serial)));
  if (ended.event === "exited")
    say(`   the session's exit code is ${ended.body.exitCode}: (code << 1) | 1, as QEMU's isa-debug-exit`);
  else say(`   stopped: ${ended.body.text ?? ended.body.description}`);
  await client.request("disconnect", {});
  say();
  say("In VS Code: open this folder, press F5 on an image, and see the same in the editor.");
}

async function main(): Promise<number> {
  const root = join(__dirname, "..");
  const image = process.argv[2] ?? join(root, "samples", "hello-guest", "hello.elf");
  const client = new Client(join(__dirname, "adapter.js"));
  try {
    await demonstrate(client, image, root);
    return 0;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (client.serial) say(serialLines(client.serial));
    process.stderr.write(`${error.message}\n`);
    return 1;
  } finally {
    client.kill();
  }
}

void main().then((status) => {
  process.exitCode = status;
});
