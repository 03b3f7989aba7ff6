import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import type { Accel } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import { silentTracer } from "../../engine/trace";
import { corrected, DEVICES_DEVIATIONS, SYSTEM32_DEVIATIONS, SYSTEM64_DEVIATIONS } from "../cpu/system/qemu-deviations";

const guests = join(__dirname, "../guests");

/** Runs a guest that prints one line for each probe of the processor's or the chips' behaviour, and gives its lines. */
function lines(name: string, accel: Accel): string[] {
  let output = "";
  const machine = createMachine(
    {
      accel,
      memory: 64 * 1024 * 1024,
      smp: 1,
      cpu: DEFAULT_MODEL,
      image: { name, bytes: readFileSync(join(guests, name, `${name}.elf`)) },
      append: "",
      tier: 0,
    },
    {
      trace: silentTracer,
      serialOutput: (index, bytes) => {
        if (index === 0) output += Buffer.from(bytes).toString("latin1");
      },
    },
  );
  for (let i = 0; i < 100 && machine.ending === null; i++) machine.run(1_000_000);
  expect(machine.ending).toEqual({ kind: "debug-exit", code: 0 });
  return output.split("\n");
}

// The same image has run under QEMU, whose output is recorded (test/guests/golden.mjs).
describe.each([
  ["system64", SYSTEM64_DEVIATIONS],
  ["system32", SYSTEM32_DEVIATIONS],
  ["devices", DEVICES_DEVIATIONS],
] as const)("%s behaves as under QEMU", (name, deviations) => {
  const recorded = readFileSync(join(guests, name, "golden.txt"), "utf8").split("\n");
  test.each<Accel>(["none", "vmx"])("accel %s", (accel) => {
    const golden = corrected(recorded, deviations);
    const actual = lines(name, accel);
    const differences = golden.flatMap((line, i) =>
      actual[i] === line ? [] : [`expected ${line} | here ${actual[i]}`],
    );
    expect(differences).toEqual([]);
  });
});
