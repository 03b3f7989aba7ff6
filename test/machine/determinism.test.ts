import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import type { Accel } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import { silentTracer } from "../../engine/trace";

const root = join(__dirname, "../..");
const MILLION = 1_000_000;

interface Run {
  readonly image: string;
  readonly append?: string;
  readonly accel?: Accel;
  readonly tier?: 0 | 1;
  readonly smp?: number;
  /** Instructions between hashes, for guests that are short. */
  readonly every?: number;
}

function start({ image, append = "", accel = "none", tier = 0, smp = 1 }: Run) {
  const bytes = readFileSync(join(root, image));
  return createMachine(
    { accel, memory: 16 << 20, smp, cpu: DEFAULT_MODEL, image: { name: image, bytes }, append, tier },
    { trace: silentTracer, serialOutput: () => {} },
  );
}

/** Hashes of all state after each `every` instructions (a million), reached in steps of `slice`. */
function hashes(run: Run, count: number, slice = run.every ?? MILLION): string[] {
  const every = run.every ?? MILLION;
  const machine = start(run);
  const list: string[] = [];
  for (let n = 1; n <= count; n++) {
    for (let done = 0; done < every; done += slice) machine.run(Math.min(slice, every - done));
    list.push(machine.hash());
  }
  return list;
}

const bench = "test/guests/bench/bench.elf";

describe("same image, same inputs: same state at every count", () => {
  test.each<[string, Run]>([
    ["sha256, accel none", { image: bench, append: "sha256 1000" }],
    ["sort, accel none", { image: bench, append: "sort 1000" }],
    ["sha256, accel vmx", { image: bench, append: "sha256 1000", accel: "vmx" }],
    ["a guest with timer interrupts, accel none", { image: "samples/hello-guest/hello.elf", every: 10_000 }],
    [
      "a guest with timer interrupts, accel vmx",
      { image: "samples/hello-guest/hello.elf", accel: "vmx", every: 10_000 },
    ],
    ["a hypervisor and its guest", { image: "test/guests/hypervisor/exits.elf" }],
  ])("two runs of %s agree every million instructions", (_name, run) => {
    const first = hashes(run, 8);
    expect(new Set(first).size).toBeGreaterThan(1);
    expect(hashes(run, 8)).toEqual(first);
  });

  test.each<[string, Run]>([
    ["accel none", { image: bench, append: "bytecode 100000" }],
    ["accel vmx", { image: bench, append: "bytecode 100000", accel: "vmx" }],
    ["a hypervisor and its guest", { image: "test/guests/hypervisor/exits.elf" }],
  ])("how a run is sliced changes nothing, %s", (_name, run) => {
    expect(hashes(run, 4, 77_777)).toEqual(hashes(run, 4));
  });

  test.each(["sha256 1000", "sort 1000", "bytecode 100000", "bytes 1000"])("both tiers agree on %s", (append) => {
    const run = { image: bench, append };
    expect(hashes({ ...run, tier: 1 }, 8)).toEqual(hashes(run, 8));
  });

  test("a snapshot restored goes the same way again", () => {
    const machine = start({ image: bench, append: "sort 1000" });
    machine.run(3 * MILLION);
    const snapshot = machine.snapshot();
    const before = machine.hash();
    machine.run(2 * MILLION);
    const after = machine.hash();
    machine.restore(snapshot);
    expect(machine.hash()).toBe(before);
    machine.run(2 * MILLION);
    expect(machine.hash()).toBe(after);
  });
});
