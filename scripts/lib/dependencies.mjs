// Installs the npm packages of the lockfile when some are missing or have another version. Node built-ins only: this runs
// before anything is installed.
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { npm, run } from "./run.mjs";

/** The checkout. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** @returns {string | undefined} why the installed packages do not do, or undefined when they do */
export function whyInstall() {
  const installed = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installed)) return "nothing is installed";
  const wanted = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const present = JSON.parse(readFileSync(installed, "utf8")).packages;
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "" || entry.optional) continue;
    if (present[path]?.version !== entry.version) return `${path} ${entry.version} is missing`;
  }
  return undefined;
}

/** Makes node_modules match package-lock.json. */
export async function ensureDependencies() {
  const [major] = process.versions.node.split(".").map(Number);
  if (major < 20) throw new Error(`Hyperstep needs Node 20 or newer; this is ${process.versions.node}`);
  const why = whyInstall();
  if (why === undefined) return;
  console.log(`Installing packages (${why}) ...`);
  // Not `npm ci`: that refuses when a registry lacks some other platform's optional package and the lockfile therefore too.
  await run(npm, ["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: root });
}
