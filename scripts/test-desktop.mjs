// `npm run test:desktop`: the extension in a desktop VS Code, downloaded by @vscode/test-electron. Where there is no way to
// download VS Code, says so and ends with status 3; `npm run test:workbench` needs no such download.
import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { cacheFolder } from "./lib/cache.mjs";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { npm, run } from "./lib/run.mjs";

const TEST_ELECTRON = "2.5.2";
/** The oldest VS Code the manifest promises. */
const VERSION = "1.101.0";
const CANNOT_DOWNLOAD = 3;

try {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  const { build } = await import("esbuild");
  const tests = join(root, ".cache", "desktop-test.js");
  await build({
    entryPoints: [join(root, "test", "desktop", "index.ts")],
    outfile: tests,
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "es2022",
    external: ["vscode"],
  });
  const folder = cacheFolder("test-electron");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
  const flags = ["install", "--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts"];
  await run(npm, [...flags, `@vscode/test-electron@${TEST_ELECTRON}`], { cwd: folder, quiet: true });
  const { downloadAndUnzipVSCode, runTests } = createRequire(join(folder, "package.json"))("@vscode/test-electron");
  let vscodeExecutablePath;
  try {
    vscodeExecutablePath = await downloadAndUnzipVSCode({ version: VERSION, cachePath: join(folder, "vscode") });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    console.error(`VS Code ${VERSION} cannot be downloaded here (${why}).`);
    console.error("This test needs it; `npm run test:workbench` drives the same workbench from npm packages instead.");
    process.exit(CANNOT_DOWNLOAD);
  }
  const failures = await runTests({
    vscodeExecutablePath,
    extensionDevelopmentPath: root,
    extensionTestsPath: tests,
    launchArgs: [join(root, "samples", "hello-guest"), "--disable-extensions", "--disable-workspace-trust"],
  });
  process.exit(failures);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
