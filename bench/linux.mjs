// How long Debian's kernel takes to its first line of userspace: CPU seconds of both tiers and accelerators beside QEMU TCG,
// measured one after the other in one run with the same kernel, initramfs and command line. Prints figures; judges nothing.
//
//   npm run bench -- linux                   the cloud kernel, everything
//   npm run bench -- linux generic           the generic kernel
//   npm run bench -- linux none-1 qemu       some of the rows
//
// A figure is the CPU time of the process (all threads, user and system) from its start to its end: /init prints its line
// and powers the machine off at once. QEMU's figure contains its firmware, which the others do not have.
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { debianKernel, INIT_LINE, initramfs } from "../test/real/images.mjs";
import { has as hasProgram, measured } from "./measure.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const cli = join(root, "dist", "cli.js");
const MEMORY = "256M";
const APPEND = "console=ttyS0";
const TIMEOUT_MS = 600_000;

const ways = [
  { name: "none-0", accel: "none", tier: 0 },
  { name: "none-1", accel: "none", tier: 1 },
  { name: "vmx-0", accel: "vmx", tier: 0 },
  { name: "vmx-1", accel: "vmx", tier: 1 },
];

/** @param {readonly string[]} command */
function timed(command) {
  const result = measured(command, { status: 0, timeout: TIMEOUT_MS });
  if (!result.output.includes(INIT_LINE)) throw new Error(`${command.join(" ")} did not reach /init\n${result.output}`);
  return result;
}

/** @param {string | number} text */
const column = (text) => String(text).padStart(12);

/** @param {readonly string[]} args @returns {Promise<void>} */
export async function benchLinux(args) {
  if (!existsSync(cli)) throw new Error("dist/cli.js is missing: run `npm run build` first");
  const flavour = args.includes("generic") ? "generic" : "cloud";
  const names = [...ways.map((way) => way.name), "qemu"];
  const wanted = args.filter((arg) => arg !== "generic" && arg !== "cloud");
  const unknown = wanted.filter((name) => !names.includes(name));
  if (unknown.length > 0) throw new Error(`unknown row ${unknown.join(", ")}; there are ${names.join(", ")}`);
  const has = (/** @type {string} */ name) => wanted.length === 0 || wanted.includes(name);

  const kernel = await debianKernel(flavour);
  const initrd = await initramfs({ start: "poweroff -f" });
  const work = mkdtempSync(join(tmpdir(), "hyperstep-bench-linux-"));
  const stats = join(work, "stats.json");
  console.log(`${cpus()[0].model}, Node ${process.versions.node}; ${kernel.release} to /init, CPU seconds\n`);
  console.log("way         " + ["seconds", "Minstr", "MIPS", "exits", "x QEMU"].map(column).join(""));
  try {
    let qemu = Number.NaN;
    if (has("qemu")) {
      if (hasProgram("qemu-system-x86_64")) {
        const machine = ["-accel", "tcg", "-m", MEMORY, "-display", "none", "-serial", "stdio", "-no-reboot"];
        const guest = ["-kernel", kernel.vmlinuz, "-initrd", initrd, "-append", APPEND];
        qemu = timed(["qemu-system-x86_64", ...machine, ...guest]).seconds;
        console.log("qemu tcg".padEnd(12) + [qemu.toFixed(1), "-", "-", "-", "1.0"].map(column).join(""));
      } else console.log("QEMU TCG: left out, no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)");
    }
    for (const { name, accel, tier } of ways) {
      if (!has(name)) continue;
      const options = ["--accel", accel, "--tier", String(tier), "--memory", MEMORY, "--stats", stats];
      const guest = ["--initrd", initrd, "--append", APPEND, kernel.vmlinuz];
      const { seconds } = timed([process.execPath, cli, "run", ...options, ...guest]);
      const figures = JSON.parse(readFileSync(stats, "utf8"));
      const exits = Object.values(figures.exits).reduce((sum, n) => sum + n, 0);
      const million = figures.instructions / 1e6;
      const row = [
        seconds.toFixed(1),
        million.toFixed(0),
        (million / seconds).toFixed(0),
        exits,
        (seconds / qemu).toFixed(1),
      ];
      console.log(`${accel} tier ${tier}`.padEnd(12) + row.map((v) => column(v === "NaN" ? "-" : v)).join(""));
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await benchLinux(process.argv.slice(2));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
