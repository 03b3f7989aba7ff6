/** The real adapter and engine with a synthetic Linux kernel: symbols found at run time, breakpoints by name, ORC, tasks. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { bundle, cache, root } from "./bundles";
import { Client, type Message } from "./client";
import { BANNER, SLIDE, syntheticKernel, TEXT } from "./synthetic-kernel";
import { Session } from "./transcript";

// biome-ignore lint/suspicious/noExplicitAny: bodies of any message
type Any = any;

let adapter = "";
const kernel = join(cache, "linux", "vmlinuz");
const bare = join(cache, "linux", "vmlinuz-bare");
const open: Client[] = [];

beforeAll(async () => {
  mkdirSync(join(cache, "linux"), { recursive: true });
  writeFileSync(kernel, syntheticKernel());
  writeFileSync(bare, syntheticKernel(null));
  [adapter] = await Promise.all([
    bundle("debug-adapter/main.ts", "linux/adapter.js"),
    bundle("engine/debug/worker-node.ts", "linux/engine-worker.js"),
  ]);
}, 60_000);

afterEach(() => {
  for (const client of open.splice(0)) client.process.kill("SIGKILL");
});

function client(): Client {
  const made = new Client(adapter);
  open.push(made);
  return made;
}

const events = (c: Client, name: string): Any[] =>
  c.received.filter((m: Message) => m.event === name).map((m) => m.body);
const says = (c: Client): string =>
  events(c, "output")
    .filter((body) => body.category !== "stdout")
    .map((body) => body.output)
    .join("");

for (const accel of ["none", "vmx"])
  test(`a breakpoint set before the kernel has run is hit; the stack has symbols by ORC (accel ${accel})`, async () => {
    const s = new Session(client());
    const { client: c } = s;
    await s.begin({ program: kernel, accel, memory: "64M", serial: "console" }, async () => {
      await s.ask(
        "setFunctionBreakpoints",
        { breakpoints: [{ name: "say_hello + 1" }, { name: "no_such_function" }] },
        ({ breakpoints }) => breakpoints.map((b: Any) => `${b.verified} ${b.reason} ${b.message}`).join("\n"),
      );
    });
    const stop = await s.event("stopped");
    expect(stop.body).toMatchObject({ reason: "function breakpoint" });
    await s.stack();
    await s.ask("threads", undefined, ({ threads }) => threads.map((t: Any) => t.name).join("\n"));
    s.note("what the kernel's table knows is known everywhere");
    await s.values("start_kernel", "u64[gs.base + current_task]", "u64[rsp + 8]");
    await s.code(3);
    for (const { breakpoint } of events(c, "breakpoint"))
      s.lines.push(`! breakpoint ${breakpoint.verified} ${breakpoint.instructionReference ?? breakpoint.message}`);
    s.note("out of the function, over a call, and to the end");
    await s.go("stepOut");
    await s.stack(2);
    const info = await s.ask("dataBreakpointInfo", { name: "child_task", asAddress: true, bytes: 8 }, (body) =>
      JSON.stringify(body),
    );
    expect(info.dataId).not.toBeNull();
    await s.ask("setFunctionBreakpoints", { breakpoints: [] });
    await s.ask("continue", { threadId: 1 });
    await s.event("exited");
    s.showSerial();
    expect(says(c)).toContain(BANNER);
    await expect(await s.end()).toMatchFileSnapshot(join(root, "test", "sessions", `linux-${accel}.txt`));
  });

test("symbols of every table layout serve breakpoints", async () => {
  for (const layout of [
    { addresses: "behind", form: "percpu", marker: 4 },
    { addresses: "behind", form: "absolute", marker: 4 },
  ] as const) {
    const program = join(cache, "linux", "vmlinuz-layout");
    writeFileSync(program, syntheticKernel(layout));
    const c = client();
    await c.start({ program, accel: "none", memory: "64M" }, () =>
      c.request("setFunctionBreakpoints", { breakpoints: [{ name: "rest_init" }] }),
    );
    expect((await c.event("stopped")).body.reason).toBe("function breakpoint");
  }
});

test("without a table the kernel's System.map moves with it; a placeholder of a distribution is told apart", async () => {
  const map = join(cache, "linux", "System.map");
  const linked = (offset: bigint, name: string): string => `${(TEXT - SLIDE + offset).toString(16)} T ${name}`;
  writeFileSync(map, [linked(0n, "_text"), linked(0x70n, "rest_init_of_the_map"), linked(0x1000n, "_end")].join("\n"));
  const stub = join(cache, "linux", "System.map-stub");
  writeFileSync(stub, "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n");
  const c = client();
  await c.start({ program: bare, symbols: [map, stub], accel: "none", memory: "64M" }, async () => {
    expect(says(c)).toContain("The real System.map is in the linux-image-<version>-dbg package");
    await c.request("setFunctionBreakpoints", { breakpoints: [{ name: "rest_init_of_the_map" }] });
  });
  expect((await c.event("stopped")).body.reason).toBe("function breakpoint");
  const { stackFrames } = await c.request("stackTrace", { threadId: 1 });
  expect(stackFrames[0].name).toBe("rest_init_of_the_map");
});

test("after a reset the kernel is looked for anew", async () => {
  const program = join(cache, "linux", "vmlinuz-resets");
  writeFileSync(program, syntheticKernel({ addresses: "before", form: "percpu", marker: 4 }, true));
  const c = client();
  await c.start({ program, accel: "none", memory: "64M", reboot: true }, () =>
    c.request("setFunctionBreakpoints", { breakpoints: [{ name: "say_hello" }] }),
  );
  for (let boots = 1; boots <= 2; boots++) {
    await c.event("stopped");
    expect(says(c).split(BANNER).length - 1).toBe(boots);
    await c.request("continue", { threadId: 1 });
  }
});

test("a kernel without any symbols says so, and what to do; its breakpoints by name are refused then", async () => {
  const c = client();
  await c.start({ program: bare, accel: "none", memory: "64M" }, () =>
    c.request("setFunctionBreakpoints", { breakpoints: [{ name: "rest_init" }] }),
  );
  await c.event("exited");
  expect(says(c)).toContain("CONFIG_KALLSYMS");
  expect(says(c)).toContain("System.map");
  expect(events(c, "breakpoint").at(-1)).toMatchObject({
    breakpoint: { verified: false, message: 'there is no function "rest_init" among the symbols' },
  });
});

describe("progress", () => {
  const begin = async (c: Client, program: string): Promise<void> => {
    await c.request("initialize", { adapterID: "hyperstep", supportsProgressReporting: true });
    await c.request("launch", { program, accel: "none", memory: "64M" });
    await c.event("initialized");
  };

  test("loading and booting are shown, and end", async () => {
    const c = client();
    await begin(c, kernel);
    await c.request("configurationDone");
    await c.event("exited");
    const started = events(c, "progressStart").map(({ progressId, title }) => ({ progressId, title }));
    expect(started.map(({ title }) => title)).toEqual([`Loading ${kernel}`, "Booting Linux"]);
    expect(events(c, "progressEnd").map((body) => body.progressId)).toEqual(started.map((body) => body.progressId));
    expect(events(c, "progressEnd").at(-1).message).toBe(BANNER);
  });

  test("the wait for the kernel can be taken back: breakpoints by name wait no longer", async () => {
    const c = client();
    // A kernel that never gets to its own addresses: it spins at its entry.
    const spinning = syntheticKernel();
    spinning.set([0xeb, 0xfe], 1024 + 0x200);
    const program = join(cache, "linux", "vmlinuz-spinning");
    writeFileSync(program, spinning);
    await begin(c, program);
    const { breakpoints } = await c.request("setFunctionBreakpoints", { breakpoints: [{ name: "rest_init" }] });
    expect(breakpoints[0]).toMatchObject({ verified: false, reason: "pending" });
    await c.request("configurationDone");
    await c.event("progressStart");
    const booting = (await c.event("progressStart")).body;
    expect(booting).toMatchObject({ title: "Booting Linux", cancellable: true });
    await c.request("cancel", { progressId: booting.progressId });
    expect((await c.event("breakpoint")).body.breakpoint).toMatchObject({
      verified: false,
      message: 'there is no function "rest_init" among the symbols',
    });
    expect(events(c, "progressEnd").at(-1)).toEqual({ progressId: booting.progressId });
    await c.request("pause", { threadId: 1 });
    await c.event("stopped");
  });
});

test("breakpoints by physical address stop at code too, at whatever linear address it runs", async () => {
  for (const accel of ["none", "vmx"]) {
    const c = client();
    await c.start({ program: kernel, accel, memory: "64M" }, () =>
      c.request("setFunctionBreakpoints", { breakpoints: [{ name: "start_kernel" }] }),
    );
    await c.event("stopped");
    const { result } = await c.request("evaluate", { expression: "translate say_hello", context: "repl" });
    const gpa = /gpa:(0x[0-9a-f]+)/.exec(result)?.[1];
    const { breakpoints } = await c.request("setInstructionBreakpoints", {
      breakpoints: [{ instructionReference: gpa, mode: "physical" }],
    });
    expect(breakpoints[0]).toMatchObject({ verified: true });
    await c.request("continue", { threadId: 1 });
    expect((await c.event("stopped")).body.reason).toBe("instruction breakpoint");
    const { stackFrames } = await c.request("stackTrace", { threadId: 1 });
    expect(stackFrames[0].name).toBe("say_hello");
  }
});
