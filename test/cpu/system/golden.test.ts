import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { bareMachine, loadMultiboot } from "./bare-machine";
import { corrected, SYSTEM64_DEVIATIONS } from "./qemu-deviations";

const guests = join(__dirname, "..", "..", "guests");

const linesOf = (text: string): string[] => text.replaceAll("\r", "").split("\n");

test("64-bit paging, segments, interrupts and privileges answer as QEMU's do, but for known deviations", () => {
  const machine = bareMachine();
  loadMultiboot(machine, readFileSync(join(guests, "system64", "system64.elf")));
  expect(machine.run()).toBe("exit 0");
  const golden = linesOf(readFileSync(join(guests, "system64", "golden.txt"), "utf8"));
  expect(linesOf(machine.output())).toEqual(corrected(golden, SYSTEM64_DEVIATIONS));
});
