// Bundles regenerate.ts and runs it, from the package's root: `npm run rebuild:golden`, or `npm run rebuild:golden vector`
// for one family of series.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { buildSync } from "esbuild";

const outfile = join("node_modules", ".cache", "differential", "regenerate.cjs");
buildSync({
  entryPoints: [join("test", "cpu", "differential", "regenerate.ts")],
  bundle: true,
  platform: "node",
  format: "cjs",
  external: ["iced-x86"],
  outfile,
});
process.exitCode = spawnSync(process.execPath, [outfile, ...process.argv.slice(2)], { stdio: "inherit" }).status ?? 1;
