import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import type { Accel } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import { silentTracer } from "../../engine/trace";

const guests = join(__dirname, "../guests");

/** Where QEMU 7.2's TCG is not right by the manual, and what is. */
const QEMU_ERRATA: Readonly<Record<string, string>> = {
  // A reserved bit is found in a present entry: P is set beside RSVD (SDM 3A 4.7).
  "PTE bit 51: vector e error 8 cr2 40000123 cs 8 ss 10": "PTE bit 51: vector e error 9 cr2 40000123 cs 8 ss 10",
  "2M page, bit 13: vector e error 8 cr2 40000123 cs 8 ss 10":
    "2M page, bit 13: vector e error 9 cr2 40000123 cs 8 ss 10",
  // A null selector in SS needs RPL = CPL (SDM 2B MOV, 64-bit mode exceptions).
  "3 mov ss: none": "3 mov ss: vector d error 0 cs 8 ss 10",
  // The index of an IDT error code is the vector, also with 16-byte gates (SDM 3A 6.13).
  "int 50 from user: vector d error 502 cs 1b ss 23": "int 50 from user: vector d error 282 cs 1b ss 23",
  "int 50, gate not present: vector b error 502 cs 8 ss 10": "int 50, gate not present: vector b error 282 cs 8 ss 10",
  "int 50, task gate: vector d error 502 cs 8 ss 10": "int 50, task gate: vector d error 282 cs 8 ss 10",
  "int 50, call gate: vector d error 502 cs 8 ss 10": "int 50, call gate: vector d error 282 cs 8 ss 10",
};

/** Runs a guest that prints one line for each probe of the processor's behaviour, and gives its lines. */
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
      serialOutput: (_index, bytes) => {
        output += Buffer.from(bytes).toString("latin1");
      },
    },
  );
  for (let i = 0; i < 100 && machine.ending === null; i++) machine.run(1_000_000);
  expect(machine.ending).toEqual({ kind: "debug-exit", code: 0 });
  return output.split("\n");
}

// The same image has run under QEMU, whose output is recorded (test/guests/golden.mjs).
describe.each(["system64"])("%s behaves as under QEMU", (name) => {
  const golden = readFileSync(join(guests, name, "golden.txt"), "utf8")
    .split("\n")
    .map((line) => QEMU_ERRATA[line] ?? line);
  test.each<Accel>(["none", "vmx"])("accel %s", (accel) => {
    const actual = lines(name, accel);
    const differences = golden.flatMap((line, i) =>
      actual[i] === line ? [] : [`expected ${line} | here ${actual[i]}`],
    );
    expect(differences).toEqual([]);
  });
});
