import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { guestImage } from "../../scripts/lib/debian.mjs";
import { Screen } from "./screen";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const work = mkdtempSync(join(tmpdir(), "hyperstep-real-"));
afterAll(() => rmSync(work, { recursive: true, force: true }));

/** Enough to get well into the tests. */
const INSTRUCTIONS = 400_000_000;
const MEMORY = "64M";

interface Outcome {
  readonly status: number;
  readonly screen: string[];
  readonly errors: string;
  readonly stats: { instructions: number; exits: Record<string, number> };
}

let image = "";
beforeAll(async () => {
  image = await guestImage("memtest");
});

function run(accel: string, ...more: string[]): Promise<Outcome> {
  const statsFile = join(work, `${accel}.json`);
  const args = [join(root, "dist", "cli.js"), "run", "--accel", accel, "--memory", MEMORY];
  args.push("--append", "console=ttyS0,115200 nosmp nopause", "--max-instructions", String(INSTRUCTIONS));
  args.push("--timeout", "280", "--stats", statsFile, ...more, image);
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      args,
      { encoding: "latin1", maxBuffer: 1 << 26 },
      (_error, output, errors) => {
        const screen = new Screen().write(output).lines;
        const stats = JSON.parse(readFileSync(statsFile, "utf8"));
        resolve({ status: child.exitCode ?? -1, screen, errors, stats });
      },
    );
    child.stdin?.end();
  });
}

/** The clock and the spinner tell the time; the rest must be the same however the guest runs. */
const timeless = (screen: string[]): string[] =>
  screen.map((line) => line.replace(/Time:\s+[\d:]+/, "Time:").replace(/(Status: \w+).*/, "$1"));

describe("Debian's memtest86+ on the serial console", () => {
  const outcomes = new Map<string, Outcome>();

  for (const accel of ["none", "vmx"]) {
    test(`reaches its running test screen with accel ${accel}`, async () => {
      const outcome = await run(accel);
      outcomes.set(accel, outcome);
      const { status, screen, errors, stats } = outcome;
      console.log(`accel ${accel}: ${stats.instructions} instructions\n${screen.join("\n")}\n${errors}`);
      expect(status).toBe(0);
      expect(screen[0]).toContain("Memtest86+ v6.");
      expect(screen[3]).toMatch(/Test #\d+\s+\[/);
      expect(screen[4]).toMatch(/Testing: \d+\S+ - \d+/);
      expect(screen[5]).toMatch(/Pattern: 0x[0-9a-f]{16}/);
      expect(screen[7]).toContain("Status: Testing");
      expect(screen[8]).toMatch(/Pass: {2}0 +Errors: 0/);
    });
  }

  test("the two modes show the same screen after the same number of instructions", () => {
    const [none, vmx] = [outcomes.get("none"), outcomes.get("vmx")];
    expect(none && timeless(none.screen)).toEqual(vmx && timeless(vmx.screen));
  });

  test("under accel vmx every serial byte was a VM exit", () => {
    const exits = outcomes.get("vmx")?.stats.exits ?? {};
    expect(exits.IO_INSTRUCTION).toBeGreaterThan(1000);
    expect(exits.EPT_VIOLATION).toBeGreaterThan(10);
  });
});
