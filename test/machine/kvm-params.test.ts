/**
 * The guest sees the same processor and chips whatever the module parameters of KVM are: the images whose output QEMU has
 * recorded (system-golden.test.ts) print it under each of them.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import { createMachine } from "../../engine/machine/create";
import { silentTracer } from "../../engine/trace";
import { corrected, DEVICES_DEVIATIONS, SYSTEM32_DEVIATIONS, SYSTEM64_DEVIATIONS } from "../cpu/system/qemu-deviations";

const guests = join(__dirname, "../guests");
type Params = Readonly<Record<string, boolean | number>>;

function lines(name: string, kvm: Params): string[] {
  let output = "";
  const machine = createMachine(
    {
      accel: "vmx",
      memory: 64 * 1024 * 1024,
      smp: 1,
      cpu: DEFAULT_MODEL,
      image: { name, bytes: readFileSync(join(guests, name, `${name}.elf`)) },
      append: "",
      tier: 0,
      kvm,
    },
    {
      trace: silentTracer,
      serialOutput: (index, bytes) => {
        if (index === 0) output += Buffer.from(bytes).toString("latin1");
      },
    },
  );
  for (let i = 0; i < 60 && machine.ending === null; i++) machine.run(1_000_000);
  expect(machine.ending).toEqual({ kind: "debug-exit", code: 0 });
  return output.split("\n");
}

const SETTINGS: Readonly<Record<string, readonly Params[]>> = {
  system64: [
    { enable_apicv: false, pml: false, preemption_timer: false },
    { enable_apicv: true, pml: true, preemption_timer: true },
    { ept: false },
    { ept: false, vpid: false, enable_apicv: false },
    { unrestricted_guest: false },
    { eptad: false, flexpriority: false, vnmi: false, vpid: false },
  ],
  // Some of its states cannot be entered without unrestricted guest, and KVM emulates no INT n in protected mode.
  system32: [
    { enable_apicv: false, pml: false, preemption_timer: false },
    { enable_apicv: true, pml: true, preemption_timer: true },
  ],
  devices: [
    { enable_apicv: false, pml: false, preemption_timer: false },
    { enable_apicv: true, preemption_timer: true },
    { ept: false },
  ],
};

describe.each([
  ["system64", SYSTEM64_DEVIATIONS],
  ["system32", SYSTEM32_DEVIATIONS],
  ["devices", DEVICES_DEVIATIONS],
] as const)("%s prints the same under", (name, deviations) => {
  const golden = corrected(readFileSync(join(guests, name, "golden.txt"), "utf8").split("\n"), deviations);
  test.each(SETTINGS[name].map((params) => [JSON.stringify(params), params] as const))("%s", (_title, params) => {
    const actual = lines(name, params);
    const differences = golden.flatMap((line, i) =>
      actual[i] === line ? [] : [`expected ${line} | here ${actual[i]}`],
    );
    expect(differences).toEqual([]);
  });
});
