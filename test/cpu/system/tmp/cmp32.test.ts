import { readFileSync, writeFileSync } from "node:fs";
import { test } from "vitest";
import { bareMachine, loadMultiboot } from "/work/main/test/cpu/system/bare-machine";
test("x", () => {
  const machine = bareMachine();
  loadMultiboot(machine, readFileSync("/work/main/test/guests/system32/system32.elf"));
  const r = machine.run();
  writeFileSync("/tmp/h.txt", machine.output());
  console.log(r, machine.cpu.retired);
});
