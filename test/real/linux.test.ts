import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { debianKernel, INIT_LINE, initramfs, type Kernel, moduleFiles } from "./images.mjs";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const work = mkdtempSync(join(tmpdir(), "hyperstep-linux-"));
afterAll(() => rmSync(work, { recursive: true, force: true }));

/** Words by which a kernel says that something is wrong. */
const TROUBLE = /\b(BUG|Oops|WARNING|Call Trace|Kernel panic|stalls? on|soft lockup|Firmware Bug|timed out)\b/;
/** Nobody here; a run that hangs is ended by then. */
const SECONDS = 280;

interface Outcome {
  readonly status: number | null;
  readonly output: string;
  readonly errors: string;
  readonly stats: {
    readonly instructions: number;
    readonly cpuSeconds: number;
    readonly exits: Record<string, number>;
  };
}

let kernel: Kernel;
let initrd: string;
beforeAll(async () => {
  kernel = await debianKernel("cloud");
  initrd = await initramfs();
});

/** Runs the kernel; `typed` is everything that is typed, at once, before it starts. */
function boot(name: string, options: readonly string[], typed: string, append = "console=ttyS0"): Promise<Outcome> {
  const statsFile = join(work, `${name}.json`);
  const args = [join(root, "dist", "cli.js"), "run", "--tier", "1", "--timeout", String(SECONDS), "--stats", statsFile];
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...args, ...options, "--append", append, kernel.vmlinuz]);
    let output = "";
    let errors = "";
    child.stdout.setEncoding("latin1").on("data", (text: string) => {
      output += text;
    });
    child.stderr.setEncoding("latin1").on("data", (text: string) => {
      errors += text;
    });
    child.on("close", (status) => {
      const stats = existsSync(statsFile) ? JSON.parse(readFileSync(statsFile, "utf8")) : {};
      console.log(
        `${name}: status ${status}, ${stats.instructions} instructions, ${stats.cpuSeconds} CPU s\n${errors}`,
      );
      resolve({ status, output: output.replaceAll("\r", ""), errors, stats });
    });
    child.stdin.end(typed);
  });
}

/** The shell works out 42 itself: its echo of what is typed does not contain it. */
const COMMANDS = ["echo marker-$((6*7))", "uname -r", "nproc", "poweroff -f"];
const script = `${COMMANDS.join("\n")}\n`;

const ways = ["none", "vmx"].flatMap((accel) => [1, 2].map((smp) => ({ accel, smp })));

describe("Debian's kernel with busybox", () => {
  for (const { accel, smp } of ways) {
    test(`accel ${accel}, ${smp} vCPUs: to /init, a shell on the serial port, power-off`, async () => {
      const options = ["--accel", accel, "--smp", String(smp), "--initrd", initrd];
      const { status, output, errors, stats } = await boot(`${accel}-${smp}`, options, script);
      const lines = output.split("\n");
      expect(lines).toContain(INIT_LINE);
      expect(lines).toContain("marker-42");
      expect(lines).toContain(kernel.release);
      expect(lines).toContain(String(smp));
      expect(lines.filter((line) => TROUBLE.test(line))).toEqual([]);
      expect(output).toContain("reboot: Power down");
      expect([status, errors]).toEqual([0, ""]);
      if (accel === "vmx") expect(stats.exits.IO_INSTRUCTION).toBeGreaterThan(10_000);
    });
  }
});

describe("virtio devices of Debian's kernel", () => {
  const modules = (...names: string[]) =>
    moduleFiles(kernel, names).map((file, i) => ({
      name: `lib/${String(i).padStart(2, "0")}.ko`,
      bytes: readFileSync(file),
    }));
  const load = "for m in /lib/*.ko; do insmod $m; done";

  test.skipIf(!existsSync("/sbin/mkfs.ext4"))(
    "an ext4 file system on /dev/vda: read, written, written back",
    async () => {
      const files = join(work, "files");
      const image = join(work, "disk.img");
      execFileSync("mkdir", ["-p", files]);
      writeFileSync(join(files, "hello"), "hello from the disk\n");
      writeFileSync(image, "");
      truncateSync(image, 16 << 20);
      execFileSync("/sbin/mkfs.ext4", ["-q", "-d", files, image]);
      const mount = `${load}; mount -t ext4 /dev/vda /mnt`;
      const withModules = await initramfs({ start: mount, extra: modules("virtio_pci", "virtio_blk") });
      const original = readFileSync(image);
      const options = ["--accel", "vmx", "--initrd", withModules];
      const say = "cat /mnt/hello; cat /mnt/again; echo written > /mnt/again; umount /mnt; poweroff -f\n";

      const first = await boot("disk", [...options, "--disk", image], say);
      expect(first.output).toContain("\nhello from the disk\n");
      expect(first.status).toBe(0);
      expect(readFileSync(image).equals(original)).toBe(true);

      const second = await boot("disk-write", [...options, "--disk", `${image},write`], say);
      expect(second.status).toBe(0);
      const third = await boot("disk-again", [...options, "--disk", image], say, "console=ttyS0 pci=nomsi");
      expect(third.output).toContain("\nwritten\n");
      expect(third.output.split("\n").filter((line) => TROUBLE.test(line))).toEqual([]);
    },
  );
});
