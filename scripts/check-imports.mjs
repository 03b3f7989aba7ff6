// The storeys of the house (ARCHITECTURE.md): imports point downwards only. `npm test` runs this over the checkout.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

/**
 * Storeys from the top down: a file may import its own storey and those with a smaller rank. Storeys of the same rank do
 * not know each other. The longest matching path wins.
 *
 * @type {readonly { path: string, rank: number }[]}
 */
export const storeys = [
  { path: "extension/", rank: 90 },
  { path: "cli/", rank: 90 },
  { path: "debug-adapter/", rank: 80 },
  { path: "engine/debug/", rank: 70 },
  { path: "engine/machine/", rank: 60 },
  { path: "engine/kvm/", rank: 50 },
  { path: "engine/devices/", rank: 40 },
  { path: "engine/cpu/", rank: 40 },
  { path: "engine/memory/", rank: 30 },
  { path: "engine/", rank: 20 },
];

/**
 * The engine runs in a worker and is reached by messages: above it, only its types may be imported, and these files of
 * plain tables and pure functions. Each may itself use only others of the list.
 */
export const pureTables = [
  "engine/clock.ts",
  "engine/trace.ts",
  "engine/memory/layout.ts",
  "engine/debug/api.ts",
  "engine/debug/bits.ts",
  "engine/debug/pump.ts",
  "engine/machine/loaders/detect.ts",
  "engine/cpu/registers.ts",
  "engine/cpu/state.ts",
  "engine/cpu/vmx/bits.ts",
  "engine/cpu/vmx/controls.ts",
  "engine/cpu/vmx/fields.ts",
  "engine/cpu/vmx/exit-reasons.ts",
];

/** Thin files that connect the engine to its surroundings: a worker thread, a web worker. They alone may import node:. */
export const workerEntries = /^engine\/debug\/worker[^/]*\.ts$/;

const importPattern =
  /(?:^|[\n;])\s*(import|export)\s+(type\s+)?((?:[\w*$]+|\{[^}]*\})(?:\s*,\s*(?:[\w*$]+|\{[^}]*\}))*(?:\s+as\s+\w+)?\s+from\s+)?["']([^"']+)["']/g;
const dynamicPattern = /\bimport\(\s*["']([^"']+)["']\s*\)(?!\s*\.\s*\w+\s*[;,|)\]}>[])/g;

/**
 * @typedef {{ specifier: string, typeOnly: boolean }} Import
 * @param {string} source
 * @returns {Import[]}
 */
export function importsOf(source) {
  const plain = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  const found = [];
  for (const match of plain.matchAll(importPattern)) {
    const clause = match[3] ?? "";
    const names = /^\{([^}]*)\}\s*from\s*$/.exec(clause)?.[1] ?? "";
    const listed = names.split(",").filter((name) => name.trim() !== "");
    const allTypes = listed.length > 0 && listed.every((name) => /^\s*type\s/.test(name));
    found.push({ specifier: match[4], typeOnly: match[2] !== undefined || allTypes });
  }
  for (const match of plain.matchAll(dynamicPattern)) found.push({ specifier: match[1], typeOnly: false });
  return found;
}

/** @param {string} file @returns {{ path: string, rank: number } | undefined} */
function storeyOf(file) {
  return storeys.find((s) => file.startsWith(s.path));
}

/**
 * All violations among the given files.
 *
 * @param {ReadonlyMap<string, string>} files source text by path from the checkout's root, with forward slashes
 * @returns {string[]} one sentence each, naming file and import
 */
export function violations(files) {
  /** @type {string[]} */
  const found = [];
  for (const [file, source] of files) {
    const from = storeyOf(file);
    if (!from) continue;
    const inEngine = file.startsWith("engine/");
    const entry = workerEntries.test(file);
    for (const { specifier, typeOnly } of importsOf(source)) {
      if (!specifier.startsWith(".")) {
        if (inEngine && !entry)
          found.push(`${file} imports ${specifier}: the engine uses no platform module and no package`);
        else if (specifier === "vscode" && !file.startsWith("extension/"))
          found.push(`${file} imports vscode: only extension/ may`);
        continue;
      }
      const base = posix.normalize(posix.join(posix.dirname(file), specifier));
      const target = [`${base}.ts`, `${base}/index.ts`, base].find((path) => files.has(path));
      if (!target) {
        if (/\.(json|wasm)$/.test(base)) continue;
        found.push(`${file} imports ${specifier}, which does not exist`);
        continue;
      }
      const to = storeyOf(target);
      if (!to) {
        found.push(`${file} imports ${target}, which is outside the storeys`);
        continue;
      }
      if (to.path !== from.path && to.rank >= from.rank)
        found.push(`${file} imports ${target}: ${from.path} may only import storeys below it, not ${to.path}`);
      if (typeOnly) continue;
      if (
        inEngine === false &&
        target.startsWith("engine/") &&
        !file.startsWith("cli/") &&
        !pureTables.includes(target)
      )
        found.push(`${file} imports code of ${target}: the engine runs in a worker; import its types or a pure table`);
      if (pureTables.includes(file) && !pureTables.includes(target))
        found.push(`${file} is a pure table and imports code of ${target}, which is not`);
    }
    if (inEngine && !entry) {
      const code = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/\/\/.*$/gm, "");
      const clock =
        /\b(Date\.now|new Date\b|Math\.random|performance\.now|setTimeout|setInterval|queueMicrotask|crypto\.getRandomValues)/.exec(
          code,
        );
      if (clock) found.push(`${file} uses ${clock[1]}: the engine knows virtual time only and is deterministic`);
    }
  }
  return found;
}

/** @param {string} root @returns {Map<string, string>} every TypeScript file of the storeys */
export function readStoreys(root) {
  const files = new Map();
  /** @param {string} folder */
  const walk = (folder) => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) walk(path);
      else if (entry.name.endsWith(".ts")) files.set(path, readFileSync(join(root, path), "utf8"));
    }
  };
  for (const top of ["extension", "cli", "debug-adapter", "engine"]) walk(top);
  return files;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const root = dirname(dirname(fileURLToPath(import.meta.url)));
  const files = readStoreys(root);
  const found = violations(files);
  for (const line of found) console.error(line);
  console.log(`imports: ${files.size} files, ${found.length} violations`);
  if (found.length > 0) process.exit(1);
}
