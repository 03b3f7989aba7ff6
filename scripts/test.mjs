// `npm test`: everything that needs nothing but Node and npm.
import { join } from "node:path";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { CommandError, run } from "./lib/run.mjs";

/** Steps by title; each is a program of node_modules or of this folder, run with this Node. */
const bin = join(root, "node_modules");
const steps = [
  ["types", [join(bin, "typescript", "bin", "tsc"), "--noEmit"]],
  ["style", [join(bin, "@biomejs", "biome", "bin", "biome"), "check", "."]],
  ["imports", [join(root, "scripts", "check-imports.mjs")]],
  ["bundles", [join(root, "scripts", "build.mjs")]],
  ["tests", [join(bin, "vitest", "vitest.mjs"), "run", ...process.argv.slice(2)]],
];

try {
  await ensureDependencies();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}

const failed = [];
for (const [title, args] of steps) {
  console.log(`\n== ${title}`);
  try {
    await run(process.execPath, /** @type {string[]} */ (args), { cwd: root });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    failed.push(title);
  }
}
if (failed.length > 0) {
  console.error(`\nfailed: ${failed.join(", ")}`);
  process.exit(1);
}
