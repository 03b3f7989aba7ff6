import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bundles } from "../../scripts/build.mjs";
import { deadHalt, debugExit, pitTicks, powerOff, serialEcho, threeStarts, tripleFault } from "../machine/programs";

let folder: string;
let cli: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "hyperstep-cli-"));
  cli = join(folder, "cli.js");
  const options = bundles.find((b) => b.outfile === "dist/cli.js");
  await build({ ...options, outfile: cli, sourcemap: false });
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Result {
  status: number | null;
  out: string;
  err: string;
}

function hyperstep(args: readonly string[], input = ""): Promise<Result> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, ...args]);
    let out = "";
    let err = "";
    child.stdout.on("data", (d) => {
      out += d;
    });
    child.stderr.on("data", (d) => {
      err += d;
    });
    child.on("close", (status) => resolve({ status, out, err }));
    child.stdin.end(input);
  });
}

function guest(name: string, bytes: Uint8Array): string {
  const file = join(folder, name);
  writeFileSync(file, bytes);
  return file;
}
const flat = ["--load-address", "0x7c00", "--memory", "4M"];

describe.concurrent("hyperstep", () => {
  test("--help tells the options and exit statuses, --version the version", async ({ expect }) => {
    const help = await hyperstep(["--help"]);
    expect([help.status, help.err]).toEqual([0, ""]);
    expect(help.out).toMatch(/--accel none\|vmx/);
    expect(help.out).toMatch(/Exit status/);
    expect((await hyperstep(["--version"])).out).toMatch(/^hyperstep \d+\.\d+\.\d+\n$/);
  });

  test.each<[string[], RegExp]>([
    [[], /nothing to do/],
    [["walk"], /no command "walk"; use run or dap/],
    [["run"], /run needs an image/],
    [["run", "--accel", "kvm", "x"], /--accel kvm/],
    [["run", "/does/not/exist"], /image \/does\/not\/exist: there is no such file/],
    [["run", "/"], /image \/: it is a directory/],
  ])("wrong use %j: status 2, one clear line and a hint", async (args, message) => {
    const { status, out, err } = await hyperstep(args);
    expect([status, out]).toEqual([2, ""]);
    expect(err).toMatch(message);
    expect(err).toMatch(/^hyperstep: [^\n]+\nSee: hyperstep --help\n$/);
  });

  test("a bad image: status 2 and one line that names it and the mend", async ({ expect }) => {
    const { status, err } = await hyperstep(["run", guest("text.txt", new TextEncoder().encode("hello, world"))]);
    expect(status).toBe(2);
    expect(err).toMatch(/^hyperstep: text\.txt: [^\n]+--load-address[^\n]+\n$/);
  });
});

describe.concurrent("hyperstep run: exit status", () => {
  test("(code << 1) | 1 for a write to port 0xf4", async ({ expect }) => {
    expect((await hyperstep(["run", ...flat, guest("exit", debugExit(0x2a))])).status).toBe(85);
  });
  test("0 on power-off", async ({ expect }) => {
    expect((await hyperstep(["run", ...flat, guest("off", powerOff)])).status).toBe(0);
  });
  test("3 on a triple fault, its cause on standard error", async ({ expect }) => {
    const { status, err } = await hyperstep(["run", ...flat, guest("triple", tripleFault)]);
    expect(status).toBe(3);
    expect(err).toMatch(/^hyperstep: triple fault on vCPU 0: .+\n$/);
  });
  test("4 when all processors halt for good", async ({ expect }) => {
    expect((await hyperstep(["run", ...flat, guest("halt", deadHalt)])).status).toBe(4);
  });
  test("124 on time-out, also while the guest waits for input", async ({ expect }) => {
    const loop = guest("loop", Uint8Array.from([0xeb, 0xfe]));
    expect((await hyperstep(["run", ...flat, "--timeout", "0.2", loop])).status).toBe(124);
  });
  test("0 after --max-instructions, exactly so many", async ({ expect }) => {
    const stats = join(folder, "max.json");
    const loop = guest("loop2", Uint8Array.from([0xeb, 0xfe]));
    const { status } = await hyperstep(["run", ...flat, "--max-instructions", "12345", "--stats", stats, loop]);
    expect(status).toBe(0);
    expect(JSON.parse(readFileSync(stats, "utf8")).instructions).toBe(12345);
  });
});

describe.concurrent("hyperstep run: input and output", () => {
  test("standard input is typed at the serial port, its output is standard output", async ({ expect }) => {
    const { status, out, err } = await hyperstep(["run", ...flat, guest("echo", serialEcho)], "hello q");
    expect([status, out, err]).toEqual([11, "hello ", ""]);
  });
  test("a guest that waits for input when there is none any more is dead", async ({ expect }) => {
    expect((await hyperstep(["run", ...flat, guest("echo2", serialEcho)], "abc")).status).toBe(4);
  });
  test("a reset starts the image again; with --no-reboot it ends with status 0", async ({ expect }) => {
    const image = guest("starts", threeStarts);
    const again = await hyperstep(["run", ...flat, image]);
    expect([again.status, again.out, again.err]).toEqual([85, "123", ""]);
    const once = await hyperstep(["run", ...flat, "--no-reboot", image]);
    expect([once.status, once.out]).toEqual([0, "1"]);
  });
  test("a disk that is not there is a usage error, and a virtio device nobody knows", async ({ expect }) => {
    const off = guest("off2", powerOff);
    const disk = await hyperstep(["run", ...flat, "--disk", "/does/not/exist", off]);
    expect([disk.status, disk.err]).toEqual([
      2,
      expect.stringMatching(/disk \/does\/not\/exist: there is no such file/),
    ]);
    const virtio = await hyperstep(["run", ...flat, "--virtio", "toaster", off]);
    expect([virtio.status, virtio.err]).toEqual([2, expect.stringMatching(/--virtio toaster: use console, rng/)]);
  });
  test("--stats has instructions, cpu seconds and exits", async ({ expect }) => {
    const stats = join(folder, "stats.json");
    await hyperstep(["run", ...flat, "--accel", "vmx", "--stats", stats, guest("ticks", pitTicks(0xf4))]);
    const figures = JSON.parse(readFileSync(stats, "utf8"));
    expect(figures.instructions).toBeGreaterThan(100);
    expect(figures.cpuSeconds).toBeGreaterThan(0);
    expect(figures.exits.IO_INSTRUCTION).toBeGreaterThan(10);
  });
  test("--trace exits writes one line for every VM exit", async ({ expect }) => {
    const stats = join(folder, "trace.json");
    const args = ["run", ...flat, "--accel", "vmx", "--trace", "exits", "--stats", stats];
    const { status, err } = await hyperstep([...args, guest("traced", debugExit(0))]);
    expect(status).toBe(1);
    const { exits } = JSON.parse(readFileSync(stats, "utf8"));
    const total = Object.values(exits as Record<string, number>).reduce((a, b) => a + b, 0);
    expect(err.trim().split("\n")).toHaveLength(total);
    expect(err).toMatch(/IO_INSTRUCTION.*0xf4/);
  });
  test("a file for --stats that cannot be written is a usage error", async ({ expect }) => {
    const { status, err } = await hyperstep([
      "run",
      ...flat,
      "--stats",
      join(folder, "no", "such", "folder"),
      guest("s", powerOff),
    ]);
    expect(status).toBe(2);
    expect(err).toMatch(/--stats .* cannot be written/);
  });
});
