import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { bareMachine, loadMultiboot } from "./bare-machine";

const guests = join(__dirname, "..", "..", "guests");

test("64-bit paging, segments, interrupts and privileges answer as QEMU's do", () => {
  const machine = bareMachine();
  loadMultiboot(machine, readFileSync(join(guests, "system64", "system64.elf")));
  expect(machine.run()).toBe("exit 0");
  const golden = readFileSync(join(guests, "system64", "golden.txt"), "utf8").replaceAll("\r", "").split("\n");
  expect(machine.output().replaceAll("\r", "").split("\n")).toEqual(golden);
});
