/** The adapter as a process over stdio, with a small machine behind it: the protocol's rules. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { bundle, cache } from "./bundles";
import { Client } from "./client";

const NOP = 0x90;
let adapter = "";
let image = "";
let clients: Client[] = [];

beforeAll(async () => {
  [adapter] = await Promise.all([
    bundle("debug-adapter/main.ts", "fake/adapter.js"),
    bundle("test/debug-adapter/fake-worker.ts", "fake/engine-worker.js"),
  ]);
  // out 0x38, al; nop; nop; call +1; jmp -12 (to the start); f: nop; ret
  image = program("loop.bin", [0xe6, 0x38, NOP, NOP, 0xe8, 2, 0, 0, 0, 0xeb, 0xf5, NOP, 0xc3]);
}, 60_000);

afterEach(async () => {
  for (const client of clients) client.process.kill("SIGKILL");
  clients = [];
});

function program(name: string, bytes: readonly number[]): string {
  mkdirSync(cache, { recursive: true });
  const path = join(cache, name);
  writeFileSync(path, Uint8Array.from(bytes));
  return path;
}

function client(...args: string[]): Client {
  const made = new Client(adapter, args);
  clients.push(made);
  return made;
}

async function stopped(configuration: object = {}): Promise<Client> {
  const c = client();
  await c.start({ program: image, stopOnEntry: true, ...configuration });
  await c.event("stopped");
  return c;
}

const top = async (c: Client): Promise<number> =>
  (await c.request("stackTrace", { threadId: 1 })).stackFrames.find(
    (f: { instructionPointerReference?: string }) => f.instructionPointerReference,
  ).id;
const pc = async (c: Client): Promise<string> =>
  (await c.request("evaluate", { expression: "pc", context: "clipboard" })).result;

describe("life of a session", () => {
  test("stop on entry, step, continue to a breakpoint, disconnect: the process ends with status 0", async () => {
    const c = await stopped();
    await c.request("next", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({ reason: "step", threadId: 1, allThreadsStopped: true });
    const set = await c.request("setInstructionBreakpoints", { breakpoints: [{ instructionReference: "0x100b" }] });
    expect(set.breakpoints[0]).toMatchObject({ verified: true, instructionReference: "0x0000100b" });
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({
      reason: "instruction breakpoint",
      hitBreakpointIds: [set.breakpoints[0].id],
    });
    expect(await c.end()).toBe(0);
    expect(c.stderr).toBe("");
  });

  test("pause stops a running guest; requests that need a stopped one say so before", async () => {
    const c = client();
    await c.start({ program: image });
    expect(await c.failure("stackTrace", { threadId: 1 })).toContain("pause");
    expect(await c.failure("next", { threadId: 1 })).toContain("not stopped");
    await c.request("pause", { threadId: 1 });
    expect((await c.event("stopped")).body.reason).toBe("pause");
  });

  test("terminate while stopped inside an exit ends the session cleanly", async () => {
    const c = await stopped();
    await c.request("stepIn", { threadId: 1 });
    expect((await c.event("stopped")).body.description).toContain("IO_INSTRUCTION");
    await c.request("terminate", {});
    await c.event("terminated");
    expect(await c.end()).toBe(0);
  });

  test("restart runs the guest anew, with the breakpoints it had", async () => {
    const c = await stopped();
    await c.request("setFunctionBreakpoints", { breakpoints: [{ name: "0x1003" }] });
    await c.request("continue", { threadId: 1 });
    await c.event("stopped");
    await c.request("restart", {});
    expect((await c.event("stopped")).body.reason).toBe("entry");
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body.reason).toBe("function breakpoint");
    expect(await pc(c)).toBe("0x0000000000001003");
  });

  test("a guest that writes to the debug-exit port ends the session with that status", async () => {
    const c = client();
    await c.start({ program: program("exit.bin", [0xe6, 0xf4]), accel: "none" });
    expect((await c.event("exited")).body.exitCode).toBe(1);
    await c.event("terminated");
  });

  test("a dead guest can be looked at; going on ends the session", async () => {
    const c = client();
    await c.start({ program: program("halt.bin", [NOP, 0xf4]) });
    const { body } = await c.event("stopped");
    expect(body).toMatchObject({ reason: "exception" });
    expect((await c.request("exceptionInfo", { threadId: 1 })).exceptionId).toBe("dead-halt");
    expect(await pc(c)).toBe("0x0000000000001002");
    await c.request("continue", { threadId: 1 });
    await c.event("terminated");
  });

  test("a restart whose image cannot be read leaves the guest as it is; the next restart works", async () => {
    const c = await stopped();
    expect(await c.failure("restart", { arguments: { program: "/no/such/file" } })).toContain("there is no file");
    expect(await pc(c)).toBe("0x0000000000001000");
    await c.request("restart", { arguments: { program: image, stopOnEntry: true } });
    expect((await c.event("stopped")).body.reason).toBe("entry");
  });

  test("events that a request brings about follow its response", async () => {
    const c = await stopped();
    const { source, line } = (await c.request("stackTrace", { threadId: 1 })).stackFrames[0];
    const { targets } = await c.request("gotoTargets", { source, line: line + 1 });
    await c.request("goto", { threadId: 1, targetId: targets[0].id });
    await c.event("stopped");
    await c.request("restart", {});
    await c.event("stopped");
    const order = c.received.map((m) => m.event ?? m.command);
    for (const command of ["configurationDone", "goto", "restart"])
      expect(order[order.indexOf(command) + 1]).toBe("stopped");
  });

  test("pause stops what the requests before it have set going, without waiting for their responses", async () => {
    const c = await stopped();
    c.post("continue", { threadId: 1 });
    c.post("pause", { threadId: 1 });
    expect((await c.event("stopped")).body.reason).toBe("pause");
  });

  test("disconnecting while the launch is under way ends the process", async () => {
    const c = client();
    c.post("initialize", { adapterID: "x" });
    c.post("launch", { program: image });
    expect(await c.end()).toBe(0);
  });

  test("with noDebug nothing stops", async () => {
    const c = client();
    await c.start({ program: program("halt2.bin", [NOP, 0xf4]), stopOnEntry: true, noDebug: true });
    await c.event("terminated");
    expect(c.received.some((m) => m.event === "stopped")).toBe(false);
  });

  test("an instruction the engine fails on is reported and leaves the session usable", async () => {
    const c = client();
    await c.start({ program: program("bad.bin", [NOP, 0x06]) });
    const { body } = await c.event("stopped");
    expect(body.text).toContain("no instruction 6");
    expect((await c.request("threads")).threads).toHaveLength(1);
  });

  test("the client closing its side ends the adapter", async () => {
    const c = await stopped();
    c.process.stdin.end();
    expect(await c.exited).toBe(0);
  });
});

describe("bad launch configurations give one clear error each", () => {
  test.each([
    [{}, 'the launch configuration needs "program"'],
    [{ program: "" }, 'launch attribute "program" must not be empty'],
    [{ program: "/no/such/file" }, 'launch attribute "program": there is no file /no/such/file'],
    [{ program: "/" }, 'launch attribute "program": / is a folder, not a file'],
    [{ program: "x", accel: "kvm" }, 'launch attribute "accel" must be "none", "vmx" or "svm", not "kvm"'],
    [{ program: "x", memory: "lots" }, 'launch attribute "memory" must be a size such as "256M"'],
    [{ program: "x", memory: 1 }, 'launch attribute "memory" must be at least 1048576, not 1'],
    [{ program: "x", smp: 0 }, 'launch attribute "smp" must be at least 1, not 0'],
    [{ program: "x", tier: 2 }, 'launch attribute "tier" must be 0 or 1, not 2'],
    [{ program: "x", loadAddress: "here" }, 'launch attribute "loadAddress" must be an address such as "0x7c00"'],
    [{ program: "x", stopOnEntry: "yes" }, 'launch attribute "stopOnEntry" must be true or false, not "yes"'],
    [{ program: "x", kvm: { ept: "no" } }, 'launch attribute "kvm.ept" must be true or false or a whole number'],
    [{ program: "x", memroy: "1G" }, 'launch attribute "memroy" is unknown; did you mean "memory"?'],
    [{ program: "x", symbols: [{ slide: 1 }] }, 'launch attribute "symbols" needs a "path" in every entry'],
  ])("%j", async (configuration, message) => {
    const c = client();
    await c.request("initialize", { adapterID: "hyperstep" });
    expect(await c.failure("launch", configuration)).toContain(message);
    expect(c.received.filter((m) => m.type === "event")).toEqual([]);
    expect(await c.end()).toBe(0);
  });
});

describe("malformed messages give one error and do not end the session", () => {
  const bad = async (bytes: string): Promise<string> => {
    const c = client();
    c.raw(bytes);
    const message = await c.response(0);
    expect(message.success).toBe(false);
    const body = await c.request("initialize", { adapterID: "x" });
    expect(body.supportsConfigurationDoneRequest).toBe(true);
    expect(c.received.filter((m) => m.request_seq === 0)).toHaveLength(1);
    return message.message ?? "";
  };
  const framed = (body: string): string => `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

  test("a header without a length", async () => {
    expect(await bad("Hello: 5\r\n\r\n")).toContain('expected a header "Content-Length: N", found "Hello: 5"');
  });
  test("a body that is no JSON", async () => {
    expect(await bad(framed("{nonsense"))).toContain("the body is not JSON");
  });
  test("a length that is too short: the rest of the message is not a second mistake", async () => {
    const body = '{"seq":1,"type":"request","command":"threads"}';
    expect(await bad(`Content-Length: ${body.length - 9}\r\n\r\n${body}`)).toContain("the body is not JSON");
  });
  test("a body that is no object", async () => {
    expect(await bad(framed("[1]"))).toContain("must be a JSON object");
  });
  test("a request without a sequence number", async () => {
    expect(await bad(framed('{"type":"request","command":"threads"}'))).toContain(
      '"seq" must be a positive whole number',
    );
  });
  test("a message of an unknown type", async () => {
    expect(await bad(framed('{"type":"wish"}'))).toContain('"type" must be "request"');
  });
  test("garbage longer than any header", async () => {
    expect(await bad("x".repeat(20_000))).toContain("no header ended within");
  });
  test("a message that claims to be enormous", async () => {
    expect(await bad("Content-Length: 99999999999\r\n\r\n")).toContain("is larger than");
  });

  test("unknown requests, missing and wrong arguments, requests out of order", async () => {
    const c = client();
    expect(await c.failure("launch", {})).toBe("the first request must be initialize");
    await c.request("initialize", { adapterID: "x" });
    expect(await c.failure("initialize", { adapterID: "x" })).toContain("initialized already");
    expect(await c.failure("treads")).toBe('this adapter knows no request "treads"; did you mean "threads"?');
    expect(await c.failure("readMemory", { count: 1 })).toBe('readMemory: arguments need "memoryReference"');
    expect(await c.failure("readMemory", { memoryReference: "0", count: "1" })).toBe(
      'readMemory: argument "count" must be a whole number, not "1"',
    );
    expect(await c.failure("next", {})).toContain('needs "threadId"'.replace("needs", "need"));
    expect(await c.failure("threads")).toBe("nothing has been launched yet");
    expect(await c.failure("configurationDone")).toBe("nothing has been launched yet");
    expect(await c.failure("attach", {})).toContain("nothing to attach to");
    expect(await c.failure("scopes", 5 as unknown as object)).toBe("scopes: argument must be an object, not 5");
  });

  test("bad ids in a running session", async () => {
    const c = await stopped();
    expect(await c.failure("scopes", { frameId: 99 })).toContain("no longer there");
    expect(await c.failure("variables", { variablesReference: 99 })).toContain("no longer there");
    expect(await c.failure("next", { threadId: 9 })).toContain("no vCPU 8");
    expect(await c.failure("source", { sourceReference: 9 })).toContain("no source 9");
    expect(await c.failure("evaluate", { expression: "rax +" })).toContain("column 6");
  });
});

describe("stopping", () => {
  test("an exit filter with a condition stops, names itself, and shows the model's frames above the guest's", async () => {
    const c = await stopped();
    const set = await c.request("setExceptionBreakpoints", {
      filters: [],
      filterOptions: [{ filterId: "exit:IO_INSTRUCTION", condition: "port == 0x38 && size == 1" }],
    });
    expect(set.breakpoints).toEqual([{ verified: true }]);
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({
      reason: "exception",
      description: "VM exit: IO_INSTRUCTION out port 0x38 size 1",
    });
    expect(await c.request("exceptionInfo", { threadId: 1 })).toMatchObject({
      exceptionId: "exit:IO_INSTRUCTION",
      breakMode: "always",
    });
    const { stackFrames } = await c.request("stackTrace", { threadId: 1 });
    expect(stackFrames[0]).toMatchObject({
      name: "VM exit: IO_INSTRUCTION out port 0x38 size 1",
      presentationHint: "label",
    });
    expect(stackFrames[1]).toMatchObject({ instructionPointerReference: "0x00001000" });
    const { scopes } = await c.request("scopes", { frameId: stackFrames[1].id });
    expect(scopes.map((s: { name: string }) => s.name)).toEqual([
      "Stop",
      "General",
      "Flags",
      "Segment",
      "Control",
      "Debug",
      "MSRs",
      "x87 and MMX",
      "Vector",
      "VMCS",
      "kvm_run",
    ]);
  });

  test("a wrong condition is reported at its filter, others are set", async () => {
    const c = await stopped();
    const { breakpoints } = await c.request("setExceptionBreakpoints", {
      filters: ["exit:CPUID", "exit:NONSENSE"],
      filterOptions: [{ filterId: "exit:HLT", condition: "1 +" }],
    });
    expect(breakpoints[0]).toEqual({ verified: true });
    expect(breakpoints[1]).toEqual({ verified: false, message: 'there is no exception filter "exit:NONSENSE"' });
    expect(breakpoints[2]).toMatchObject({ verified: false, message: expect.stringContaining("column 4") });
  });

  test("function breakpoints: addresses, exits, and clear refusals", async () => {
    const c = await stopped();
    const { breakpoints } = await c.request("setFunctionBreakpoints", {
      breakpoints: [
        { name: "0x1002" },
        { name: "exit:io_instruction", condition: "size == 2" },
        { name: "exit:FOO" },
        { name: "main" },
        { name: "pc + 4", hitCondition: "sometimes" },
        { name: "phys:0x9000" },
      ],
    });
    expect(breakpoints.map((b: { verified: boolean }) => b.verified)).toEqual([true, true, false, false, false, true]);
    expect(breakpoints[2].message).toBe('there is no exit reason "FOO"');
    expect(breakpoints[3].message).toContain('there is no function "main"');
    expect(breakpoints[4].message).toContain('"sometimes" is no hit count');
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({
      reason: "function breakpoint",
      hitBreakpointIds: [breakpoints[0].id],
    });
  });

  test("data breakpoints: info, set, hit", async () => {
    const c = client();
    await c.start({ program: program("store.bin", [0xa2, 0, 0x90, 0, 0, NOP, 0xf4]), stopOnEntry: true });
    await c.event("stopped");
    const info = await c.request("dataBreakpointInfo", { name: "0x9000", asAddress: true, bytes: 8 });
    expect(info).toMatchObject({ dataId: "gva:0x9000:8", accessTypes: ["read", "write", "readWrite"] });
    expect((await c.request("dataBreakpointInfo", { name: "nonsense" })).dataId).toBeNull();
    const { breakpoints } = await c.request("setDataBreakpoints", {
      breakpoints: [{ dataId: info.dataId, accessType: "write" }, { dataId: "what" }],
    });
    expect(breakpoints.map((b: { verified: boolean }) => b.verified)).toEqual([true, false]);
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({
      reason: "data breakpoint",
      hitBreakpointIds: [breakpoints[0].id],
    });
  });

  test("a data breakpoint's id names 1 to 4096 bytes of guest memory", async () => {
    const c = await stopped();
    const ids = ["gva:0x1000:0", "gva:0x1000:99999", "gva:0xfffffffffffffffff:4", "hpa:0x1000:4"];
    const { breakpoints } = await c.request("setDataBreakpoints", { breakpoints: ids.map((dataId) => ({ dataId })) });
    expect(breakpoints.map((b: { verified: boolean }) => b.verified)).toEqual([false, false, false, false]);
    expect(await c.request("dataBreakpointInfo", { name: "hpa:0x1000", asAddress: true })).toMatchObject({
      dataId: null,
      description: expect.stringContaining("host-physical"),
    });
  });

  test("only an event has exception information", async () => {
    const c = await stopped();
    expect(await c.failure("exceptionInfo", { threadId: 1 })).toContain("not stopped at an event");
    await c.request("stepIn", { threadId: 1 });
    await c.event("stopped");
    expect((await c.request("exceptionInfo", { threadId: 1 })).description).toContain("VM exit");
  });

  test("lines without conditions, as older clients send them", async () => {
    const c = await stopped();
    const { source, line } = (await c.request("stackTrace", { threadId: 1 })).stackFrames[0];
    const { breakpoints } = await c.request("setBreakpoints", { source, lines: [line + 1] });
    expect(breakpoints).toMatchObject([{ verified: true, line: line + 1 }]);
  });

  test("step-in targets lead to a stage of the exit", async () => {
    const c = await stopped();
    const { targets } = await c.request("stepInTargets", { frameId: await top(c) });
    const device = targets.find((t: { label: string }) => t.label === "the device");
    await c.request("stepIn", { threadId: 1, targetId: device.id });
    expect((await c.event("stopped")).body).toMatchObject({ reason: "step", description: "Device: serial write 56" });
    expect(await c.failure("stepIn", { threadId: 1, targetId: 77 })).toContain("no step-in target 77");
  });
});

describe("values", () => {
  test("registers, bits, formats, paging, and setting them", async () => {
    const c = await stopped();
    const { scopes } = await c.request("scopes", { frameId: await top(c) });
    const reference = (name: string): number =>
      scopes.find((s: { name: string }) => s.name === name).variablesReference;
    const general = (await c.request("variables", { variablesReference: reference("General") })).variables;
    expect(general.find((v: { name: string }) => v.name === "rsp")).toMatchObject({
      value: "0x0000000000008000",
      evaluateName: "rsp",
      memoryReference: "0x00008000",
    });
    const page = await c.request("variables", { variablesReference: reference("General"), start: 2, count: 3 });
    expect(page.variables.map((v: { name: string }) => v.name)).toEqual(["rdx", "rbx", "rsp"]);
    const control = (await c.request("variables", { variablesReference: reference("Control") })).variables;
    const cr0 = control.find((v: { name: string }) => v.name === "cr0");
    expect(cr0.value).toBe("0x0000000080000011 PG|ET|PE");
    const bits = (await c.request("variables", { variablesReference: cr0.variablesReference })).variables;
    expect(bits.find((v: { name: string }) => v.name === "PG")).toMatchObject({ value: "1", evaluateName: "cr0.PG" });
    const set = await c.request("setVariable", {
      variablesReference: reference("General"),
      name: "rax",
      value: "rsp + 0x10",
    });
    expect(set.value).toBe("0x0000000000008010");
    expect((await c.event("invalidated")).body.areas).toContain("variables");
    expect(
      await c.failure("setVariable", { variablesReference: reference("Control"), name: "cr0", value: "0x80000000" }),
    ).toContain("CR0.PG needs CR0.PE");
    expect(
      await c.failure("setVariable", { variablesReference: reference("General"), name: "rax", value: "1 <" }),
    ).toContain("column");
    await c.request("hyperstep/setNumbers", { numbers: "decimal" });
    const decimal = (await c.request("variables", { variablesReference: reference("General") })).variables;
    expect(decimal.find((v: { name: string }) => v.name === "rsp").value).toBe("32768");
  });

  test("a value set is answered as it is shown, and shown that way again", async () => {
    const c = await stopped();
    const { scopes } = await c.request("scopes", { frameId: await top(c) });
    type Row = { name: string; value: string; variablesReference: number };
    const rows = async (variablesReference: number): Promise<Row[]> =>
      (await c.request("variables", { variablesReference })).variables;
    for (const scope of scopes.filter((s: { name: string }) => /^(Flags|Segment|Debug)$/.test(s.name)))
      for (const { name, value } of await rows(scope.variablesReference)) {
        const { variablesReference } = scope;
        expect(await c.request("setVariable", { variablesReference, name, value })).toMatchObject({ value });
      }
    const control = scopes.find((s: { name: string }) => s.name === "Control").variablesReference;
    const cr0 = (await rows(control)).find((v) => v.name === "cr0")?.variablesReference ?? 0;
    await c.request("setVariable", { variablesReference: cr0, name: "WP", value: "1" });
    expect((await rows(cr0)).find((v) => v.name === "WP")?.value).toBe("1");
    const segment = scopes.find((s: { name: string }) => s.name === "Segment");
    expect(await rows(segment.variablesReference)).toHaveLength(segment.namedVariables);
  });

  test("frames of an earlier stop are gone for everything that names one", async () => {
    const c = await stopped();
    const frameId = await top(c);
    await c.request("next", { threadId: 1 });
    await c.event("stopped");
    for (const [command, args] of [
      ["evaluate", { expression: "rax" }],
      ["setExpression", { expression: "rax", value: "1" }],
      ["completions", { text: "ra", column: 3 }],
      ["stepInTargets", {}],
      ["scopes", {}],
    ] as const)
      expect(await c.failure(command, { ...args, frameId })).toContain("no longer there");
  });

  test("what a client says it cannot use is left out", async () => {
    const c = client();
    await c.request("initialize", {
      adapterID: "hyperstep",
      clientID: "vscode",
      supportsVariableType: false,
      supportsMemoryReferences: false,
    });
    await c.request("launch", { program: image, stopOnEntry: true });
    await c.request("configurationDone");
    await c.event("stopped");
    const result = await c.request("evaluate", { expression: "1 - 2", format: { hex: true } });
    expect(result).toEqual({
      result: "0xffffffffffffffff",
      variablesReference: 0,
      presentationHint: { attributes: ["readOnly"] },
    });
    const { targets } = await c.request("completions", { text: "x + ra", column: 7 });
    expect(targets[0]).toMatchObject({ label: "rax", length: 2 });
    expect(targets[0].start).toBeUndefined();
  });

  test("the VMCS in groups, fields set through it", async () => {
    const c = await stopped();
    const { scopes } = await c.request("scopes", { frameId: await top(c) });
    const vmcs = scopes.find((s: { name: string }) => s.name === "VMCS");
    const groups = (await c.request("variables", { variablesReference: vmcs.variablesReference })).variables;
    const guest = groups.find((v: { name: string }) => v.name === "Guest state");
    const fields = (await c.request("variables", { variablesReference: guest.variablesReference })).variables;
    expect(fields.some((v: { name: string }) => v.name === "GUEST_RIP")).toBe(true);
    await c.request("setVariable", { variablesReference: guest.variablesReference, name: "GUEST_CR0", value: "0x31" });
    expect((await c.request("evaluate", { expression: "vmcs.GUEST_CR0.NE", context: "hover" })).result).toContain(
      "0x1",
    );
  });

  test("evaluate: contexts, assignments only where they belong, console commands, completions", async () => {
    const c = await stopped();
    expect((await c.request("evaluate", { expression: "rsp", context: "hover" })).result).toBe(
      "0x0000000000008000 (32768)",
    );
    expect(await c.failure("evaluate", { expression: "rax = 1", context: "hover" })).toContain(
      "does not change anything",
    );
    expect((await c.request("evaluate", { expression: "rax = 7", context: "repl" })).result).toContain("(7)");
    expect((await c.request("evaluate", { expression: "help", context: "repl" })).result).toContain("vmcs [TEXT]");
    expect((await c.request("evaluate", { expression: "x 0x1000 4", context: "repl" })).result).toContain(
      "e6 38 90 90",
    );
    expect((await c.request("evaluate", { expression: "dis pc 2", context: "repl" })).result.split("\n")).toEqual([
      "=> 0x00001000  out 0x38, al",
      "   0x00001002  nop",
    ]);
    const { targets } = await c.request("completions", { text: "rax + vmcs.GUEST_RI", column: 20 });
    expect(targets).toEqual([expect.objectContaining({ label: "vmcs.GUEST_RIP", start: 7, length: 13 })]);
  });

  test("custom requests answer with fields, and refuse bad arguments", async () => {
    const c = await stopped();
    const { fields } = await c.request("hyperstep/registers", { threadId: 1 });
    expect(fields.find((f: { name: string }) => f.name === "rip")).toMatchObject({ value: "0x1000", group: "general" });
    expect((await c.request("hyperstep/vmcs", { threadId: 1 })).pointer).toBe("0x7000");
    expect((await c.request("hyperstep/stats", {})).vcpus).toHaveLength(1);
    await c.request("hyperstep/serialInput", { data: "aGk=" });
    expect(await c.failure("hyperstep/serialInput", { data: "***" })).toContain("base64");
  });
});

describe("memory and disassembly", () => {
  test("unreadable bytes are counted, nothing is made up", async () => {
    const c = await stopped();
    const read = (memoryReference: string, count: number, offset = 0): Promise<unknown> =>
      c.request("readMemory", { memoryReference, count, offset });
    expect(await read("0x1000", 2)).toEqual({ address: "0x1000", data: "5jg=" });
    expect(await read("0x10000", 16)).toEqual({ address: "0x10000", data: "", unreadableBytes: 16 });
    expect(await read("gpa:0xfffe", 4)).toMatchObject({ unreadableBytes: 2 });
    expect(await read("0x10", 4, -32)).toMatchObject({ data: "", unreadableBytes: 4 });
    expect(await read("pc", 1)).toMatchObject({ address: "0x1000" });
    expect(await c.failure("readMemory", { memoryReference: "??", count: 1 })).toContain("column 1");
  });

  test("memory is written, in part only when that is allowed", async () => {
    const c = await stopped();
    expect(await c.request("writeMemory", { memoryReference: "0x2000", data: "AQI=" })).toMatchObject({
      bytesWritten: 2,
    });
    expect((await c.event("memory")).body).toEqual({ memoryReference: "0x2000", offset: 0, count: 2 });
    expect(await c.failure("writeMemory", { memoryReference: "0xffff", data: "AQI=" })).toContain("only 1 of 2 bytes");
    expect(
      await c.request("writeMemory", { memoryReference: "0xffff", data: "AQI=", allowPartial: true }),
    ).toMatchObject({
      bytesWritten: 1,
    });
  });

  test("a disassembly has exactly the rows asked for, around the address, padded at the ends", async () => {
    const c = await stopped();
    const rows = async (args: object): Promise<{ address: string; instruction: string; presentationHint?: string }[]> =>
      (await c.request("disassemble", args)).instructions;
    const around = await rows({ memoryReference: "0x1004", instructionOffset: -200, instructionCount: 400 });
    expect(around).toHaveLength(400);
    expect(around[200]).toMatchObject({ address: "0x00001004", instruction: "call 0x100b" });
    expect(around[199]).toMatchObject({ address: "0x00001003", instruction: "nop" });
    expect(around[197]).toMatchObject({ address: "0x00001000", instruction: "out 0x38, al" });
    const low = await rows({ memoryReference: "0x0", instructionOffset: -5, instructionCount: 6 });
    expect(low.map((r) => r.address)).toEqual(["-1", "-1", "-1", "-1", "-1", "0x00000000"]);
    const outside = await rows({ memoryReference: "0x20000", instructionCount: 3 });
    expect(outside.map((r) => [r.address, r.instruction, r.presentationHint])).toEqual([
      ["0x00020000", "??", "invalid"],
      ["0x00020001", "??", "invalid"],
      ["0x00020002", "??", "invalid"],
    ]);
    expect(await rows({ memoryReference: "0xffffffffffffffff", instructionCount: 3 })).toHaveLength(3);
    expect(await rows({ memoryReference: "0x1000", instructionOffset: 2, instructionCount: 1 })).toMatchObject([
      { address: "0x00001003" },
    ]);
    expect(await rows({ memoryReference: "0x1000", instructionCount: 0 })).toEqual([]);
  });
});

describe("listings: guest code without debugging information as a source", () => {
  interface Frame {
    readonly source: { readonly sourceReference: number; readonly name: string };
    readonly line: number;
  }
  const frame = async (c: Client): Promise<Frame> =>
    (await c.request("stackTrace", { threadId: 1 })).stackFrames.find(
      (f: { instructionPointerReference?: string }) => f.instructionPointerReference,
    );

  test("a guest frame has one, its line is the instruction's, and it stays the same document while stepping", async () => {
    const c = await stopped();
    const first = await frame(c);
    const { content } = await c.request("source", {
      source: first.source,
      sourceReference: first.source.sourceReference,
    });
    expect(content.split("\n")[first.line - 1]).toMatch(/^0x00001000 {2}e6 38 +out 0x38, al$/);
    await c.request("next", { threadId: 1 });
    await c.event("stopped");
    const second = await frame(c);
    expect(second.source).toEqual(first.source);
    expect(second.line).toBe(first.line + 1);
  });

  test("breakpoints are set on its lines, and jumps made to them", async () => {
    const c = await stopped();
    const { source, line } = await frame(c);
    const { breakpoints } = await c.request("setBreakpoints", { source, breakpoints: [{ line: line + 2 }] });
    expect(breakpoints[0]).toMatchObject({ verified: true, line: line + 2, instructionReference: "0x00001003" });
    const locations = await c.request("breakpointLocations", { source, line, endLine: line + 2 });
    expect(locations.breakpoints.map((b: { line: number }) => b.line)).toEqual([line, line + 1, line + 2]);
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body).toMatchObject({
      reason: "breakpoint",
      hitBreakpointIds: [breakpoints[0].id],
    });
    const { targets } = await c.request("gotoTargets", { source, line });
    await c.request("goto", { threadId: 1, targetId: targets[0].id });
    expect((await c.event("stopped")).body.reason).toBe("goto");
    expect(await pc(c)).toBe("0x0000000000001000");
    expect(await c.failure("goto", { threadId: 1, targetId: 99 })).toContain("no goto target 99");
  });

  test("a breakpoint in a source without line information says what to do instead", async () => {
    const c = await stopped();
    const { breakpoints } = await c.request("setBreakpoints", {
      source: { path: "/x/main.c" },
      breakpoints: [{ line: 3 }],
    });
    expect(breakpoints[0]).toMatchObject({
      verified: false,
      message: expect.stringContaining("function or an instruction breakpoint"),
    });
  });
});

describe("transports", () => {
  test("a TCP port serves one session a connection", async () => {
    const { createConnection } = await import("node:net");
    const c = client("--port", "0");
    const port = await new Promise<number>((resolve) => {
      const look = (): void => {
        const found = /listening on 127\.0\.0\.1:([0-9]+)/.exec(c.stderr);
        if (found) resolve(Number(found[1]));
        else setTimeout(look, 20);
      };
      look();
    });
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = createConnection(port, "127.0.0.1", () => {
        const body = '{"seq":1,"type":"request","command":"initialize","arguments":{"adapterID":"x"}}';
        socket.write(`Content-Length: ${body.length}\r\n\r\n${body}`);
      });
      socket.on("data", (data) => {
        resolve(data.toString());
        socket.end();
      });
      socket.on("error", reject);
    });
    expect(answer).toContain('"success":true');
  });

  test("bad usage is refused with status 2", async () => {
    const c = client("--port", "many");
    expect(await c.exited).toBe(2);
    expect(c.stderr).toContain('"many" is no port');
  });
});
