// Builds the guest images that are in the repository from the sources beside them, and tells whether they are the same
// bytes. Every folder below samples/ and test/guests/ that has a guest.json is one guest:
//
//   output        the image's file name, or "images": a list of such objects, one for each image of the folder
//   sources       .c and .S files, relative to the folder (those of another folder may be named with ../)
//   linkerScript  for ld
//   cflags        more flags for the compiler, after the common ones below
//   container     "elf64-x86-64" (default), "elf32-i386" (64-bit code in a 32-bit file, as multiboot loaders want it),
//                 "binary" (a flat image)
//   bits          64 (default) or 32: what gcc and ld generate
//
// `npm run rebuild:guests` compares; `npm run rebuild:guests -- --write [FOLDER ...]` replaces the images.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { run } from "../../scripts/lib/run.mjs";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/**
 * Freestanding code for a machine without SSE state set up, with DWARF for the debugger, and nothing of this machine in
 * the image: no compiler name, no build id, no folder.
 */
const commonFlags = [
  "-O1",
  "-g",
  "-gdwarf-5",
  "-gno-record-gcc-switches",
  "-std=gnu11",
  "-ffreestanding",
  "-fno-pic",
  "-fno-pie",
  "-fno-ident",
  "-fno-stack-protector",
  "-fno-omit-frame-pointer",
  "-fno-asynchronous-unwind-tables",
  "-fcf-protection=none",
  "-mno-red-zone",
  "-mgeneral-regs-only",
  "-Wall",
  "-Wextra",
  "-Werror",
];

/**
 * @typedef {{ output: string, sources: string[], linkerScript?: string, cflags?: string[], container?: string,
 *   bits?: 32 | 64 }} Image
 */

/** @returns {{ folder: string, image: Image }[]} every image of the repository */
export function guests() {
  /** @type {{ folder: string, image: Image }[]} */
  const found = [];
  /** @param {string} folder */
  const walk = (folder) => {
    const description = join(folder, "guest.json");
    if (existsSync(description)) {
      const content = JSON.parse(readFileSync(description, "utf8"));
      for (const image of content.images ?? [content]) found.push({ folder, image });
    }
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (entry.isDirectory()) walk(join(folder, entry.name));
    }
  };
  for (const top of ["samples", "test/guests"]) walk(join(root, top));
  return found;
}

/**
 * @param {string} folder
 * @param {Image} image
 * @returns {Promise<Buffer>} the image's bytes
 */
export async function buildImage(folder, image) {
  const work = mkdtempSync(join(tmpdir(), "hyperstep-guest-"));
  try {
    const bits = image.bits ?? 64;
    const objects = [];
    for (const [index, source] of image.sources.entries()) {
      const object = join(work, `${index}-${basename(source)}.o`);
      // Compiled in the guest's folder, so that source names in DWARF are relative to it.
      const flags = [...commonFlags, `-ffile-prefix-map=${folder}=.`, `-Wa,--debug-prefix-map=${folder}=.`];
      if (bits === 64) flags.push("-mcmodel=small");
      await run("gcc", [`-m${bits}`, ...flags, ...(image.cflags ?? []), "-c", source, "-o", object], {
        cwd: folder,
        quiet: true,
      });
      objects.push(object);
    }
    const linked = join(work, "linked");
    const script = image.linkerScript ? ["-T", image.linkerScript] : [];
    const emulation = bits === 64 ? "elf_x86_64" : "elf_i386";
    const link = ["-m", emulation, "--build-id=none", "-z", "max-page-size=4096", "--no-warn-rwx-segments"];
    await run("ld", [...link, "-static", ...script, "-o", linked, ...objects], { cwd: folder, quiet: true });
    const container = image.container ?? (bits === 64 ? "elf64-x86-64" : "elf32-i386");
    const result = join(work, "image");
    await run("objcopy", ["-O", container, linked, result], { cwd: folder, quiet: true });
    return readFileSync(result);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const write = process.argv.includes("--write");
  const only = process.argv.slice(2).filter((a) => !a.startsWith("--"));
  let passed = 0;
  let failed = 0;
  for (const { folder, image } of guests()) {
    const path = join(folder, image.output);
    const name = relative(root, path);
    if (only.length > 0 && !only.some((o) => name.startsWith(o))) continue;
    const built = await buildImage(folder, image);
    const present = existsSync(path) ? readFileSync(path) : undefined;
    const same = present?.equals(built) ?? false;
    if (same) passed++;
    else if (write) {
      writeFileSync(path, built);
      passed++;
    } else failed++;
    const verdict = same ? "the same" : write ? "written" : present ? "DIFFERENT" : "MISSING";
    console.log(`${verdict.padEnd(9)} ${name} (${built.length} bytes)`);
  }
  if (failed > 0) console.error("Images differ from what gcc and binutils build here; see CONTRIBUTING.md, Guests.");
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0) process.exit(1);
}
