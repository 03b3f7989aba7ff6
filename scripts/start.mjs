// `npm start`: from a fresh clone to a guest under the debugger, in this terminal.
import { join } from "node:path";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { run } from "./lib/run.mjs";

try {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  await run(process.execPath, [join(root, "dist", "demo.js"), ...process.argv.slice(2)], { cwd: root });
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
