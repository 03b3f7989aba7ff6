// `npm test`: everything that needs nothing but Node and npm. The last line is "N passed, N failed"; each check before the
// tests counts as one.
import { join } from "node:path";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { CommandError, run } from "./lib/run.mjs";
import { runSuite, suiteProgram } from "./lib/suite.mjs";

/** Checks by title; each is a program of node_modules or of this folder, run with this Node. */
const bin = join(root, "node_modules");
/** @type {readonly [string, readonly string[]][]} */
const checks = [
  ["types", [join(bin, "typescript", "bin", "tsc"), "--noEmit"]],
  ["style", [join(bin, "@biomejs", "biome", "bin", "biome"), "check", "--max-diagnostics=50", "."]],
  ["imports", [join(root, "scripts", "check-imports.mjs")]],
  ["bundles", [join(root, "scripts", "build.mjs")]],
];

await suiteProgram(async () => {
  await ensureDependencies();
  const failures = [];
  for (const [title, args] of checks) {
    console.log(`\n== ${title}`);
    try {
      await run(process.execPath, args, { cwd: root });
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      failures.push(title);
    }
  }
  console.log("\n== tests");
  const { passed, failed } = await runSuite("vitest.config.mjs", process.argv.slice(2));
  if (failures.length > 0) console.error(`failed before the tests: ${failures.join(", ")}`);
  return { passed: passed + checks.length - failures.length, failed: failed + failures.length };
});
