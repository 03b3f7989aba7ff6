// Records what QEMU prints for the guests that probe the processor's and the chips' behaviour: golden.txt beside each image. The tests
// compare the engine with the recorded output, so that they need no QEMU.
//
//   node test/guests/golden.mjs            compares the records with this machine's QEMU
//   node test/guests/golden.mjs --write    replaces them
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
// COM2 is there for the guest about the chips, which uses it as an interrupt source.
const guests = { system64: "qemu64", system32: "qemu64", devices: "qemu64" };

let failed = 0;
for (const [name, cpu] of Object.entries(guests)) {
  const image = join(here, name, `${name}.elf`);
  if (!existsSync(image)) continue;
  const machine = ["-accel", "tcg", "-cpu", cpu, "-m", "64", "-no-reboot", "-display", "none"];
  machine.push("-serial", "stdio", "-serial", "null");
  const result = spawnSync(
    "qemu-system-x86_64",
    [...machine, "-device", "isa-debug-exit,iobase=0xf4", "-kernel", image],
    { encoding: "utf8", timeout: 60_000 },
  );
  if (result.error) throw new Error(`qemu-system-x86_64 (Debian: qemu-system-x86): ${result.error.message}`);
  if (result.status !== 1) throw new Error(`${name} ended with status ${result.status}, not 1\n${result.stderr}`);
  const golden = join(here, name, "golden.txt");
  const same = existsSync(golden) && readFileSync(golden, "utf8") === result.stdout;
  if (!same && process.argv.includes("--write")) writeFileSync(golden, result.stdout);
  else if (!same) failed++;
  console.log(`${same ? "same" : "different"}  ${name} (${result.stdout.split("\n").length - 1} lines)`);
}
process.exit(failed > 0 ? 1 : 0);
