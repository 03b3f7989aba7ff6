// Real guests from Debian: packages are downloaded by name and unpacked into the cache, never installed.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cacheFolder } from "./cache.mjs";
import { run } from "./run.mjs";

/** Whether this is a machine with apt (Debian and its kin). */
export const hasApt = existsSync("/usr/bin/apt-get") && existsSync("/usr/bin/dpkg-deb");

/**
 * @param {string} name of a Debian package
 * @returns {Promise<string>} the folder its files are in
 */
export async function debianPackage(name) {
  const folder = join(cacheFolder("debian"), name);
  const mark = join(folder, ".complete");
  if (existsSync(mark)) return folder;
  if (!hasApt) throw new Error(`the Debian package ${name} cannot be fetched here: there is no apt-get`);
  const work = `${folder}.new`;
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  try {
    await run("apt-get", ["download", name], { cwd: work, quiet: true });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`the Debian package ${name} was not found (run apt-get update first?)\n${why}`);
  }
  const archive = readdirSync(work).find((file) => file.endsWith(".deb"));
  if (!archive) throw new Error(`apt-get download ${name} left no .deb file`);
  await run("dpkg-deb", ["-x", archive, "."], { cwd: work, quiet: true });
  writeFileSync(join(work, ".complete"), archive);
  rmSync(folder, { recursive: true, force: true });
  renameSync(work, folder);
  return folder;
}

/** Guests the tests know, by package and file. `used` names the tests; the others wait for theirs. */
export const guests = {
  memtest: { package: "memtest86+", file: "boot/memtest86+x64.bin", used: "test/real/memtest.test.ts" },
  seabios: { package: "seabios", file: "usr/share/seabios/bios-256k.bin", used: "test/real/firmware.test.ts" },
  ipxe: { package: "ipxe", file: "usr/lib/ipxe/ipxe.iso", used: "test/real/firmware.test.ts" },
  grub: {
    package: "grub-rescue-pc",
    file: "usr/lib/grub-rescue/grub-rescue-cdrom.iso",
    used: "test/real/firmware.test.ts",
  },
};

/** @param {keyof typeof guests} name @returns {Promise<string>} the image's path */
export async function guestImage(name) {
  const { package: packageName, file } = guests[name];
  return join(await debianPackage(packageName), file);
}
