// Guest speed on the kernels of test/guests/bench: both tiers of the engine, QEMU TCG and this machine's own CPU,
// measured in one run of the same image and source. Prints figures and ratios; judges nothing.
//
//   npm run bench                  every kernel
//   npm run bench -- sha256 sort   some of them
//
// Each figure is the CPU time of a run less the CPU time of the same command with 0 rounds, so that start-up does not
// count. QEMU needs Debian's qemu-system-x86, native needs gcc; a missing one is left out with a line that says so.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { has, measured } from "./measure.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const cli = join(root, "dist", "cli.js");
const image = join(root, "test", "guests", "bench", "bench.elf");

/** Rounds chosen for about half a second to a second under TCG. */
const kernels = {
  sha256: 8000,
  sort: 1500,
  bytecode: 20000,
  bytes: 40000,
  strings: 200000,
  mandelbrot: 6000,
  nbody: 600000,
};
const wanted = process.argv.slice(2).filter((a) => !a.startsWith("-"));
const unknown = wanted.filter((name) => !(name in kernels));
if (unknown.length > 0) {
  console.error(`unknown kernel ${unknown.join(", ")}; there are ${Object.keys(kernels).join(", ")}`);
  process.exit(2);
}
if (!existsSync(cli)) {
  console.error("dist/cli.js is missing: run `npm run build` first");
  process.exit(2);
}

const work = mkdtempSync(join(tmpdir(), "hyperstep-bench-"));
/**
 * @param {number} tier
 * @param {string} kernel
 * @param {number} rounds
 */
function engine(tier, kernel, rounds) {
  const file = join(work, "stats.json");
  const args = ["run", "--accel", "none", "--tier", String(tier), "--memory", "64M", "--stats", file];
  const result = spawnSync(process.execPath, [cli, ...args, "--append", `${kernel} ${rounds}`, image], {
    encoding: "utf8",
  });
  if (result.status !== 1) throw new Error(`tier ${tier}, ${kernel}: status ${result.status}\n${result.stderr}`);
  const stats = JSON.parse(readFileSync(file, "utf8"));
  return { seconds: stats.cpuSeconds, instructions: stats.instructions, output: result.stdout.trim() };
}

/**
 * @param {string} kernel
 * @param {number} rounds
 */
function qemu(kernel, rounds) {
  const machine = ["-accel", "tcg", "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"];
  const command = ["qemu-system-x86_64", ...machine, "-kernel", image, "-append", `${kernel} ${rounds}`];
  const { seconds, output } = measured(command, { status: 1 });
  return { seconds, output: output.trim() };
}

let nativeBinary;
if (has("gcc")) {
  nativeBinary = join(work, "native");
  const sources = ["native.c", "kernels.c", "vector-kernels.c"].map((name) =>
    join(root, "test", "guests", "bench", name),
  );
  execFileSync("gcc", ["-O1", "-fno-tree-vectorize", "-ffp-contract=off", "-o", nativeBinary, ...sources]);
} else console.log("native: left out, no gcc");
const withQemu = has("qemu-system-x86_64");
if (!withQemu) console.log("QEMU TCG: left out, no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)");

/** @param {string | number} text */
const column = (text) => String(text).padStart(11);
/** @type {(instructions: number, seconds: number) => number} */
const mips = (instructions, seconds) => instructions / seconds / 1e6;
console.log(`${cpus()[0].model}, Node ${process.versions.node}; guest MIPS by CPU time\n`);
console.log(
  "kernel      " +
    ["Minstr", "tier 0", "tier 1", "QEMU TCG", "native", "t0/TCG", "t1/TCG", "t1/native"].map(column).join(""),
);

try {
  for (const [kernel, rounds] of Object.entries(kernels)) {
    if (wanted.length > 0 && !wanted.includes(kernel)) continue;
    const outputs = new Set();
    let instructions = 0;
    const tiers = [0, 1].map((tier) => {
      const empty = engine(tier, kernel, 0);
      const full = engine(tier, kernel, rounds);
      outputs.add(full.output);
      instructions = full.instructions - empty.instructions;
      return mips(instructions, full.seconds - empty.seconds);
    });
    let tcg = Number.NaN;
    if (withQemu) {
      const empty = qemu(kernel, 0);
      const full = qemu(kernel, rounds);
      outputs.add(full.output);
      tcg = mips(instructions, full.seconds - empty.seconds);
    }
    let native = Number.NaN;
    if (nativeBinary) {
      const [name, sum, seconds] = execFileSync(nativeBinary, [kernel, String(rounds)], { encoding: "utf8" }).split(
        " ",
      );
      outputs.add(`${name} ${sum}`);
      native = mips(instructions, Number(seconds));
    }
    if (outputs.size !== 1) throw new Error(`${kernel}: checksums differ: ${[...outputs].join(" | ")}`);
    /** @type {(a: number, b: number) => string} */
    const ratio = (a, b) => (Number.isNaN(a / b) ? "-" : (a / b).toFixed(2));
    const figures = [instructions / 1e6, ...tiers, tcg, native].map((v) => (Number.isNaN(v) ? "-" : v.toFixed(0)));
    const ratios = [ratio(tiers[0], tcg), ratio(tiers[1], tcg), ratio(tiers[1], native)];
    console.log(kernel.padEnd(12) + [...figures, ...ratios].map(column).join(""));
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
