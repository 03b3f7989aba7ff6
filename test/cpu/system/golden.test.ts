import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { bareMachine, loadMultiboot } from "./bare-machine";
import { corrected, SYSTEM32_DEVIATIONS, SYSTEM64_DEVIATIONS } from "./qemu-deviations";

const guests = join(__dirname, "..", "..", "guests");

const linesOf = (text: string): string[] => text.replaceAll("\r", "").split("\n");

test.each([
  ["64-bit paging, segments, interrupts and privileges", "system64", SYSTEM64_DEVIATIONS],
  ["gates, tasks, virtual-8086 mode, 32-bit and PAE paging, real-address mode", "system32", SYSTEM32_DEVIATIONS],
] as const)("%s answer as QEMU's do, but for known deviations", (_what, name, deviations) => {
  const machine = bareMachine();
  loadMultiboot(machine, readFileSync(join(guests, name, `${name}.elf`)));
  expect(machine.run()).toBe("exit 0");
  const golden = linesOf(readFileSync(join(guests, name, "golden.txt"), "utf8"));
  expect(linesOf(machine.output())).toEqual(corrected(golden, deviations));
});
