// Linux guests made from Debian's packages: kernels, and an initramfs with busybox in it. Everything is fetched by package
// name and kept in the cache outside the checkout; tests, benchmarks and scripts share it.
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { cacheFolder } from "../../scripts/lib/cache.mjs";
import { debianPackage } from "../../scripts/lib/debian.mjs";
import { run } from "../../scripts/lib/run.mjs";
import { cpio } from "./cpio.mjs";

/** The kernels by the metapackages that stand for Debian's current one. */
export const KERNELS = /** @type {const} */ ({
  generic: "linux-image-amd64",
  cloud: "linux-image-cloud-amd64",
});

/**
 * @typedef {object} Kernel
 * @property {string} vmlinuz path of the bzImage
 * @property {string} release e.g. "6.1.0-56-amd64"
 * @property {string} modules folder with the modules (lib/modules/RELEASE)
 * @property {string} systemMap path of System.map; Debian's holds no symbols, they are in a package of their own
 */

/** @type {Map<string, Promise<Kernel>>} */
const kernels = new Map();

/** @param {keyof typeof KERNELS} flavour @returns {Promise<Kernel>} */
export function debianKernel(flavour = "generic") {
  const known = kernels.get(flavour);
  if (known) return known;
  const made = fetchKernel(KERNELS[flavour]);
  kernels.set(flavour, made);
  return made;
}

/** @param {string} metapackage @returns {Promise<Kernel>} */
async function fetchKernel(metapackage) {
  const folder = await debianPackage(await kernelPackage(metapackage));
  const file = readdirSync(join(folder, "boot")).find((name) => name.startsWith("vmlinuz-"));
  if (!file) throw new Error(`${metapackage} has no boot/vmlinuz-*`);
  const release = file.slice("vmlinuz-".length);
  return {
    vmlinuz: join(folder, "boot", file),
    release,
    modules: join(folder, "lib", "modules", release),
    systemMap: join(folder, "boot", `System.map-${release}`),
  };
}

/**
 * The package a kernel metapackage depends on. Where a kernel has been fetched before, that one is used as long as the
 * package lists cannot tell.
 *
 * @param {string} metapackage
 */
async function kernelPackage(metapackage) {
  const listing = await run("apt-cache", ["depends", metapackage], { quiet: true }).catch(() => "");
  const wanted = /Depends: (linux-image-\S+)/.exec(listing)?.[1];
  if (wanted) return wanted;
  const pattern = metapackage.includes("cloud")
    ? /^linux-image-[\d.]+-\d+-cloud-amd64$/
    : /^linux-image-[\d.]+-\d+-amd64$/;
  const there = readdirSync(cacheFolder("debian")).filter((name) => pattern.test(name));
  const newest = there.sort((a, b) => a.localeCompare(b, "en", { numeric: true })).at(-1);
  if (!newest) throw new Error(`${metapackage} is not known here (run apt-get update first?)`);
  return newest;
}

/** What /init prints when it runs: the first line of userspace. */
export const INIT_LINE = "hyperstep: init is running";

const INIT = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "${INIT_LINE}"
[ -x /start ] && . /start
setsid cttyhack sh -i
poweroff -f
`;

/** @type {readonly import("./cpio.mjs").CpioEntry[]} */
const FOLDERS = ["bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sys", "tmp"].map((name) => ({
  name,
  directory: true,
}));

/** @returns {Promise<string>} path of the static busybox */
export const busybox = async () => join(await debianPackage("busybox-static"), "bin", "busybox");

/**
 * An initramfs: busybox as /bin/busybox with a link for each of the commands named (all of them can be had by
 * "busybox NAME"), /init as above, and whatever else is given. It lies in the cache, named by its contents.
 *
 * @param {{ start?: string, extra?: readonly import("./cpio.mjs").CpioEntry[] }} [options] `start`: commands of a shell that
 *   run before the prompt
 * @returns {Promise<string>} its path
 */
export async function initramfs(options = {}) {
  const { start, extra = [] } = options;
  const entries = [
    ...FOLDERS,
    /** @type {const} */ ({ name: "dev/console", device: "characters", major: 5, minor: 1 }),
    /** @type {const} */ ({ name: "dev/null", device: "characters", major: 1, minor: 3 }),
    { name: "bin/busybox", bytes: readFileSync(await busybox()), mode: 0o755 },
    ...APPLETS.map((name) => ({ name: `bin/${name}`, link: "busybox" })),
    { name: "init", bytes: INIT, mode: 0o755 },
    ...(start === undefined ? [] : [{ name: "start", bytes: `${start}\n`, mode: 0o755 }]),
    ...extra,
  ];
  return keep("initramfs", "cpio", cpio(entries));
}

// biome-ignore format: a list
const APPLETS = [
  "ash", "cat", "cp", "cttyhack", "cut", "dd", "df", "dmesg", "echo", "expr", "find", "free", "grep", "head", "hexdump",
  "insmod", "kill", "ln", "ls", "lsmod", "md5sum", "mkdir", "mknod", "modprobe", "mount", "nproc", "poweroff", "ps",
  "reboot", "rm", "sed", "setsid", "sh", "sha256sum", "sleep", "sort", "stty", "sync", "tail", "taskset", "tr", "true",
  "umount", "uname", "uptime", "wc",
];

/**
 * Puts bytes into the cache under a name made from what they are.
 *
 * @param {string} name
 * @param {string} extension
 * @param {Uint8Array} bytes
 */
export async function keep(name, extension, bytes) {
  const digest = await crypto.subtle.digest("SHA-256", Uint8Array.from(bytes));
  const file = join(cacheFolder("guests"), `${name}-${Buffer.from(digest).toString("hex").slice(0, 16)}.${extension}`);
  mkdirSync(cacheFolder("guests"), { recursive: true });
  const work = `${file}.${process.pid}`;
  writeFileSync(work, bytes);
  renameSync(work, file);
  return file;
}

/**
 * Module files of a kernel in the order in which insmod takes them, each after what it needs.
 *
 * @param {Kernel} kernel
 * @param {readonly string[]} names without ".ko"
 * @returns {string[]} paths
 */
export function moduleFiles(kernel, names) {
  /** @type {Map<string, string>} */
  const files = new Map();
  /** @type {(folder: string) => void} */
  const walk = (folder) => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) walk(path);
      else if (entry.name.endsWith(".ko")) files.set(moduleName(path), path);
    }
  };
  walk(join(kernel.modules, "kernel"));
  /** @type {string[]} */
  const ordered = [];
  /** @type {(name: string) => void} */
  const add = (name) => {
    const file = files.get(name.replaceAll("-", "_"));
    if (!file) throw new Error(`kernel ${kernel.release} has no module ${name}`);
    if (ordered.includes(file)) return;
    for (const needed of dependsOn(file)) add(needed);
    ordered.push(file);
  };
  for (const name of names) add(name);
  return ordered;
}

/** @param {string} path */
const moduleName = (path) => basename(path, ".ko").replaceAll("-", "_");

/** The "depends=" line of a module's .modinfo section. @param {string} file */
function dependsOn(file) {
  const text = readFileSync(file).toString("latin1");
  const line = /\0depends=([^\0]*)\0/.exec(text)?.[1] ?? "";
  return line.split(",").filter((name) => name !== "");
}
