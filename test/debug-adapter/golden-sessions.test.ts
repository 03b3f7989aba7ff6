/** The real adapter and the real engine, over stdio, with the sample guest: whole sessions as golden transcripts. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, expect, test } from "vitest";
import { bundle, cache, root } from "./bundles";
import { Client } from "./client";
import { Session } from "./transcript";

// biome-ignore lint/suspicious/noExplicitAny: bodies of any message
type Any = any;

const hello = join(root, "samples", "hello-guest", "hello.elf");
let adapter = "";
const open: Client[] = [];

beforeAll(async () => {
  [adapter] = await Promise.all([
    bundle("debug-adapter/main.ts", "real/adapter.js"),
    bundle("engine/debug/worker-node.ts", "real/engine-worker.js"),
  ]);
}, 60_000);

afterEach(() => {
  for (const client of open.splice(0)) client.process.kill("SIGKILL");
});

function session(): Session {
  const client = new Client(adapter);
  open.push(client);
  return new Session(client);
}

const golden = (name: string): string => join(root, "test", "sessions", `${name}.txt`);
const serialByte = 'port == 0x3f8 && size == 1 && direction == "out" && al >= 0x20';

test("a condition on the serial port's exit stops there; step in walks the exit, step over does not", async () => {
  const s = session();
  await s.begin({ program: hello, accel: "vmx", memory: "64M", serial: "console" }, async () => {
    await s.ask(
      "setExceptionBreakpoints",
      { filters: [], filterOptions: [{ filterId: "exit:IO_INSTRUCTION", condition: serialByte }] },
      ({ breakpoints }) => JSON.stringify(breakpoints),
    );
  });
  await s.event("stopped");
  await s.stack();
  await s.values(
    "rip",
    "rsp",
    "al",
    "dx",
    "port",
    "direction",
    "vmcs.VM_EXIT_REASON",
    "vmcs.EXIT_QUALIFICATION",
    "vmcs.GUEST_RIP",
  );
  await s.ask("exceptionInfo", { threadId: 1 }, (body) => `${body.exceptionId}: ${body.description}`);

  s.note("step in, stage by stage");
  for (let i = 0; i < 12; i++) {
    const { body } = await s.go("stepIn");
    await s.stack(1);
    if (!body.description) break;
  }
  await s.values("rip");
  await s.code(3);

  s.note("step over an exit goes straight to the next guest instruction");
  await s.go("continue");
  await s.go("next");
  await s.stack(1);

  s.note("step out of an exit goes back to the guest");
  await s.go("continue");
  await s.go("stepIn");
  await s.go("stepOut");
  await s.stack(1);

  s.note("step out of the function");
  await s.go("stepOut");
  await s.stack(2);

  s.note("to the end");
  await s.ask("setExceptionBreakpoints", { filters: [] });
  await s.ask("continue", { threadId: 1 });
  await s.event("exited");
  await s.event("terminated");
  s.showSerial();
  await expect(await s.end()).toMatchFileSnapshot(golden("serial-exit"));
});

test("scopes: registers, VMCS with decoded bits, kvm_run", async () => {
  const s = session();
  await s.begin({ program: hello, accel: "vmx", memory: "64M" }, async () => {
    await s.ask("setFunctionBreakpoints", { breakpoints: [{ name: "guest_main" }] }, ({ breakpoints }) =>
      breakpoints.map((b: Any) => `${b.verified} ${b.instructionReference}`).join("\n"),
    );
  });
  await s.event("stopped");
  const frame = await s.guestFrame();
  const { scopes } = await s.ask("scopes", { frameId: frame.id }, ({ scopes: list }) =>
    list.map((x: Any) => x.name).join(", "),
  );
  const steady = /^(rip|rsp|rflags|cs|cr0|cr3|exit|exit_reason|[A-Z]+)$/;
  const show = ({ variables }: Any): string =>
    variables
      .filter((v: Any) => steady.test(v.name))
      .map((v: Any) => `${v.name} = ${v.value}`)
      .join("\n");
  const reference = (name: string): number => scopes.find((x: Any) => x.name === name).variablesReference;
  for (const name of ["General", "Flags", "Segment", "Control", "kvm_run"]) {
    s.note(name);
    await s.ask("variables", { variablesReference: reference(name) }, show);
  }
  s.note("VMCS");
  const groups = await s.ask("variables", { variablesReference: reference("VMCS") }, ({ variables }) =>
    variables.map((v: Any) => v.name).join(", "),
  );
  const controls = groups.variables.find((v: Any) => v.name === "Execution controls");
  const { variables } = await s.client.request("variables", { variablesReference: controls.variablesReference });
  const value = (name: string): string => variables.find((v: Any) => v.name === name).value;
  expect(value("CPU_BASED_VM_EXEC_CONTROL")).toContain("HLT_EXITING");
  expect(value("SECONDARY_VM_EXEC_CONTROL")).toContain("ENABLE_EPT");
  s.note("setting a register");
  const general = reference("General");
  await s.ask(
    "setVariable",
    { variablesReference: general, name: "rax", value: "0xfedcba9876543210" },
    ({ value }) => value,
  );
  await s.ask("setVariable", { variablesReference: general, name: "rax", value: "rsp + 1 ==" });
  await s.ask("setVariable", { variablesReference: reference("Control"), name: "cr0", value: "0x80000000" });
  await s.values("rax", "eax", "cr0.PG");
  await expect(await s.end()).toMatchFileSnapshot(golden("scopes"));
});

test("the bare machine: from real entry to long mode, breakpoints of every kind", async () => {
  const s = session();
  await s.begin({ program: hello, accel: "none", memory: "64M", serial: "console", stopOnEntry: true });
  await s.event("stopped");
  await s.ask("threads", undefined, ({ threads }) => threads.map((t: Any) => t.name).join("\n"));
  await s.code(6);
  await s.go("next");
  await s.go("stepIn");
  await s.stack(1);

  s.note("function, MSR, port and data breakpoints");
  await s.ask(
    "setFunctionBreakpoints",
    { breakpoints: [{ name: "start64" }, { name: "msr:0xc0000080" }, { name: "io:0x70" }, { name: "no_such" }] },
    ({ breakpoints }) => breakpoints.map((b: Any) => `${b.verified} ${b.message ?? ""}`).join("\n"),
  );
  await s.go("continue");
  await s.go("continue");
  await s.stack(1);
  await s.ask("threads", undefined, ({ threads }) => threads.map((t: Any) => t.name).join("\n"));
  const info = await s.ask("dataBreakpointInfo", { name: "ticks", asAddress: true, bytes: 8 }, (body) =>
    JSON.stringify(body),
  );
  await s.ask("setDataBreakpoints", {
    breakpoints: [{ dataId: info.dataId, accessType: "write", condition: "u64[ticks] == 2" }],
  });
  await s.ask("setFunctionBreakpoints", { breakpoints: [{ name: "io:0x70" }] });
  await s.go("continue");
  await s.stack(3);
  await s.ask("setFunctionBreakpoints", { breakpoints: [] });
  await s.go("continue");
  await s.values("u64[ticks]");
  await s.stack(3);

  s.note("a step over HLT is not caught by the timer's handler");
  await s.ask("setDataBreakpoints", { breakpoints: [] });
  const { address } = (
    await s.client.request("disassemble", { memoryReference: "wait_for_ticks", instructionCount: 40 })
  ).instructions.find((i: Any) => i.instruction.startsWith("hlt"));
  await s.ask("setInstructionBreakpoints", { breakpoints: [{ instructionReference: address }] });
  await s.go("continue");
  await s.go("next");
  await s.code(1);
  await s.ask("setInstructionBreakpoints", { breakpoints: [] });
  await s.ask("continue", { threadId: 1 });
  await s.event("exited");
  s.showSerial();
  await expect(await s.end()).toMatchFileSnapshot(golden("bare-machine"));
});

test("source lines: breakpoints, steps over lines, stacks with files, jumps", async () => {
  const s = session();
  const path = join(root, "samples", "hello-guest", "main.c");
  const text = readFileSync(path, "utf8").split("\n");
  const lineOf = (code: string): number => text.findIndex((line) => line.includes(code)) + 1;
  const show = ({ breakpoints }: Any): string =>
    breakpoints.map((b: Any) => (b.verified ? text[b.line - 1].trim() : `refused: ${b.message}`)).join("\n");
  const where = async (): Promise<void> => {
    const { source, line } = await s.guestFrame();
    s.lines.push(`@ ${source.name}: ${text[line - 1].trim()}`);
  };
  const serial = { program: hello, accel: "vmx", memory: "64M", serial: "console" };
  const breakpoints = [{ line: lineOf("interrupts_init();") }, { line: lineOf("ticks++;") }, { line: 100_000 }];
  await s.begin(serial, async () => {
    const response = await s.client.request("setBreakpoints", { source: { path }, breakpoints });
    s.lines.push(
      "> setBreakpoints in main.c",
      ...show(response)
        .split("\n")
        .map((line) => `< ${line}`),
    );
    const other = await s.client.request("setBreakpoints", {
      source: { path: "/tmp/none.c" },
      breakpoints: [{ line: 1 }],
    });
    s.lines.push(`< ${other.breakpoints[0].message}`);
  });
  await s.event("stopped");
  await where();
  for (let i = 0; i < 4; i++) {
    await s.ask("next", { threadId: 1 });
    await s.event("stopped");
    await where();
  }
  await s.go("continue");
  await where();
  const { stackFrames } = await s.client.request("stackTrace", { threadId: 1 });
  for (const frame of stackFrames)
    s.lines.push(`  ${frame.name.replace(/\+.*/, "")} ${frame.source?.name ?? ""}`.trimEnd());
  await s.ask("setBreakpoints", { source: { path: "main.c" }, breakpoints: [] });
  await s.ask("loadedSources", undefined, ({ sources }) =>
    sources
      .filter((x: Any) => !x.path.includes("engine"))
      .map((x: Any) => x.name)
      .join(", "),
  );
  await expect(await s.end()).toMatchFileSnapshot(golden("source-lines"));
});

test.each(["none", "vmx"])("ports, MSRs and guest-physical memory stop the guest under accel %s", async (accel) => {
  const { client } = session();
  await client.start({ program: hello, accel, memory: "64M", stopOnEntry: true });
  await client.event("stopped");
  const stopAt = async (name: string): Promise<string> => {
    const { breakpoints } = await client.request("setFunctionBreakpoints", { breakpoints: [{ name }] });
    await client.request("continue", { threadId: 1 });
    const { body } = await client.event("stopped");
    expect(body).toMatchObject({ reason: "function breakpoint", hitBreakpointIds: [breakpoints[0].id] });
    return body.description;
  };
  expect(await stopAt("msr:ia32_efer")).toMatch(/ia32_efer|msr 0xc0000080/);
  expect(await stopAt("io:0x3f8")).toContain("out port 0x3f8 size 1");
  const stack = BigInt((await client.request("evaluate", { expression: "rsp - 8", context: "clipboard" })).result);
  expect(await stopAt("phys:rsp - 8")).toContain(`0x${stack.toString(16)}`);
});

test("life: pause while running, restart, terminate while stopped inside an exit", async () => {
  const s = session();
  await s.begin({ program: hello, accel: "vmx", memory: "64M", append: "interactive" });
  await s.ask("stackTrace", { threadId: 1 });
  await s.go("pause");
  await s.ask("setFunctionBreakpoints", { breakpoints: [{ name: "exit:CPUID" }] });
  await s.ask("restart", {}, () => "ok");
  const { body } = await s.event("stopped");
  expect(body.description).toContain("VM exit: CPUID");
  await s.ask("terminate", {}, () => "ok");
  await s.event("terminated");
  await s.ask("threads");
  const text = await s.end();
  expect(text).toContain("* terminated");
  expect(text).toContain("status 0");
});

test("bad launches with the real machine: one clear error each", async () => {
  mkdirSync(cache, { recursive: true });
  const image = readFileSync(hello);
  const file = (name: string, bytes: Uint8Array): string => {
    const path = join(cache, name);
    writeFileSync(path, bytes);
    return path;
  };
  const lying = Uint8Array.from(image);
  lying.fill(0xff, 28, 32);
  const lines: string[] = [];
  for (const configuration of [
    { program: file("empty.elf", new Uint8Array(0)) },
    { program: file("short.elf", image.subarray(0, 40)) },
    { program: file("cut.elf", image.subarray(0, 5000)) },
    { program: file("lying.elf", lying) },
    { program: file("text.txt", new TextEncoder().encode("hello")) },
    { program: hello, memory: "3T" },
    { program: hello, memory: "1M" },
    { program: hello, accel: "svm" },
    { program: hello, cpu: "z80" },
    { program: hello, kvm: { nonsense: true } },
    { program: hello, initrd: join(cache, "absent") },
    { program: hello, symbols: file("not.elf", new TextEncoder().encode("hello, I am no ELF")) },
  ]) {
    const s = session();
    await s.begin(configuration);
    await s.end();
    // The KVM model's parameters are its own business.
    const lasting = s.lines.map((l) => l.replace(/known are .*/, "known are ..."));
    lines.push(...lasting.filter((l) => /^(> launch|< failed)/.test(l)), "");
    expect(
      s.lines.some((l) => l.startsWith("< failed")),
      JSON.stringify(configuration),
    ).toBe(true);
  }
  await expect(`${lines.join("\n").trim()}\n`).toMatchFileSnapshot(golden("bad-launch"));
});
