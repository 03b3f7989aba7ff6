import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import type { Accel } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import { silentTracer } from "../../engine/trace";
import { elf, stream } from "./images";

/** Bytes without meaning: real mode, protected mode and 64-bit mode in turn. */
function image(seed: number): { bytes: Uint8Array; loadAddress?: number } {
  const random = stream(seed);
  const code = Uint8Array.from({ length: 2048 }, () => (random.next().value as number) & 0xff);
  switch (seed % 3) {
    case 0:
      return { bytes: code, loadAddress: 0x7c00 };
    case 1:
      return { bytes: code, loadAddress: 0x100000 };
    default:
      return {
        bytes: elf(64, { entry: 0x100000n, segments: [{ virtual: 0x100000n, physical: 0x100000, bytes: code }] }),
      };
  }
}

function run(accel: Accel, tier: 0 | 1, seed: number): string {
  const { bytes, loadAddress } = image(seed);
  const machine = createMachine(
    {
      accel,
      memory: 2 * 1024 * 1024,
      smp: 1,
      cpu: DEFAULT_MODEL,
      image: { name: "noise", bytes },
      append: "",
      tier,
      loadAddress,
    },
    { trace: silentTracer, serialOutput: () => {} },
  );
  for (let i = 0; i < 3 && !machine.ending && !machine.waitingForInput; i++) machine.run(5_000);
  return `${machine.stats().instructions} ${machine.ending?.kind} ${machine.hash()}`;
}

describe.each<Accel>(["none", "vmx"])("images of random bytes with accel %s", (accel) => {
  test("never take the engine down, and both tiers end in the same state", () => {
    for (let seed = 1; seed <= 9; seed++) expect(run(accel, 1, seed)).toBe(run(accel, 0, seed));
  });
});
