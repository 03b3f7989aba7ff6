// `npm run bench`: builds, then measures (bench/run.mjs; `npm run bench -- linux`: bench/linux.mjs).
import { join } from "node:path";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { CommandError, run } from "./lib/run.mjs";

try {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  const args = process.argv.slice(2);
  const linux = args[0] === "linux";
  const script = join(root, "bench", linux ? "linux.mjs" : "run.mjs");
  await run(process.execPath, [script, ...(linux ? args.slice(1) : args)], { cwd: root });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(error instanceof CommandError ? error.status : 1);
}
