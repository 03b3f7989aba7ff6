// `npm run bench`: builds, then measures (bench/run.mjs).
import { join } from "node:path";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { CommandError, run } from "./lib/run.mjs";

try {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  await run(process.execPath, [join(root, "bench", "run.mjs"), ...process.argv.slice(2)], { cwd: root });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(error instanceof CommandError ? error.status : 1);
}
