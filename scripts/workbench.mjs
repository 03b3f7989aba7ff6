// `npm run workbench`: the sample folder in a real VS Code with this checkout's extension, ready for F5. Uses the `code`
// on the PATH when there is one, otherwise code-server from npm, to be opened in any browser.
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { cacheFolder } from "./lib/cache.mjs";
import { ensureDependencies, root } from "./lib/dependencies.mjs";

const args = process.argv.slice(2);
const serve = args.includes("--serve");
const portAt = args.indexOf("--port");
const port = portAt >= 0 ? Number(args[portAt + 1]) : 8842;
const named = args.find((a, i) => !a.startsWith("--") && i !== portAt + 1);

/** A copy of the sample outside the checkout: what is done there stays there. */
function sampleCopy() {
  const folder = join(cacheFolder("workbench-profile"), "hello-guest");
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true });
    cpSync(join(root, "samples", "hello-guest"), folder, { recursive: true });
  }
  return folder;
}

try {
  await ensureDependencies();
  const folder = named ? resolve(named) : sampleCopy();
  const hasCode = !serve && spawnSync("code", ["--version"]).status === 0;
  if (hasCode) {
    const { buildAll } = await import("./build.mjs");
    await buildAll();
    spawnSync("code", [`--extensionDevelopmentPath=${root}`, folder], { stdio: "inherit" });
  } else {
    const { packageExtension } = await import("./package.mjs");
    const { startWorkbench } = await import("./lib/workbench-server.mjs");
    const profile = cacheFolder("workbench-profile");
    const server = await startWorkbench({ profile, folder, extensions: [await packageExtension()], port });
    console.log(`\nOpen ${server.url} in a browser and press F5.  Ctrl+C ends.`);
    for (const signal of ["SIGINT", "SIGTERM"])
      process.on(signal, () => void server.stop().then(() => process.exit(0)));
  }
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
