// Bundles regenerate.ts and runs it, from the package's root: `node test/cpu/float/regenerate.mjs`.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { buildSync } from "esbuild";

const outfile = join("node_modules", ".cache", "differential", "regenerate-float.cjs");
buildSync({
  entryPoints: [join("test", "cpu", "float", "regenerate.ts")],
  bundle: true,
  platform: "node",
  format: "cjs",
  outfile,
});
process.exitCode = spawnSync(process.execPath, [outfile], { stdio: "inherit" }).status ?? 1;
