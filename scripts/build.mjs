// Bundles: the extension (desktop and web), the debug adapter, the engine's worker and the command line, into dist/.
//
// Names are kept and nothing is minified: the KVM model's own JavaScript frames are part of what a user sees when a guest
// stops inside a VM exit, and source maps (with their sources inside) lead from them to the TypeScript.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { build } from "esbuild";
import { root } from "./lib/dependencies.mjs";

/**
 * iced-x86 reads its WebAssembly from beside its own file, which a bundle does not have: put the bytes into the bundle.
 *
 * @type {import("esbuild").Plugin}
 */
const icedInBundle = {
  name: "iced-x86 in the bundle",
  setup(plugins) {
    plugins.onLoad({ filter: /iced_x86\.js$/ }, ({ path }) => {
      const source = readFileSync(path, "utf8");
      const contents = source
        .replace("const { TextDecoder, TextEncoder } = require(`util`);", "")
        .replace("const path = require('path').join(__dirname, 'iced_x86_bg.wasm');", "")
        .replace("require('fs').readFileSync(path)", "require('./iced_x86_bg.wasm')");
      if (/require\((['"`])(util|path|fs)\1\)/.test(contents.replace(/^\s*\*.*$/gm, "")))
        throw new Error("iced-x86 loads its WebAssembly in a new way; scripts/build.mjs must follow it");
      return { contents, loader: "js" };
    });
  },
};

/** @type {import("esbuild").BuildOptions} */
const common = {
  absWorkingDir: root,
  bundle: true,
  minify: false,
  keepNames: true,
  sourcemap: true,
  sourcesContent: true,
  target: "es2022",
  loader: { ".wasm": "binary" },
  plugins: [icedInBundle],
  logLevel: "warning",
};

/** @type {import("esbuild").BuildOptions} */
const node = { ...common, platform: "node", format: "cjs" };
/** @type {import("esbuild").BuildOptions} */
const web = { ...common, platform: "browser", format: "cjs" };

/** Every bundle: what it is made from and where it goes. */
export const bundles = [
  { ...node, entryPoints: ["extension/node.ts"], outfile: "dist/extension.js", external: ["vscode"] },
  { ...web, entryPoints: ["extension/web.ts"], outfile: "dist/web/extension.js", external: ["vscode"] },
  { ...node, entryPoints: ["debug-adapter/main.ts"], outfile: "dist/adapter.js" },
  { ...node, entryPoints: ["debug-adapter/demo.ts"], outfile: "dist/demo.js" },
  { ...node, entryPoints: ["engine/debug/worker-node.ts"], outfile: "dist/engine-worker.js" },
  {
    ...web,
    format: /** @type {const} */ ("iife"),
    entryPoints: ["engine/debug/worker-web.ts"],
    outfile: "dist/web/engine-worker.js",
  },
  { ...node, entryPoints: ["cli/main.ts"], outfile: "dist/cli.js", banner: { js: "#!/usr/bin/env node" } },
];

/** Builds everything. @throws Error naming the bundles that could not be built, after trying all of them */
export async function buildAll() {
  const results = await Promise.allSettled(bundles.map((options) => build(options)));
  const failed = bundles.filter((_, i) => results[i].status === "rejected").map((options) => options.outfile);
  if (failed.length > 0) throw new Error(`these bundles could not be built: ${failed.join(", ")}`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const started = process.hrtime.bigint();
  try {
    await buildAll();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
  console.log(`built ${bundles.length} bundles in ${Number((process.hrtime.bigint() - started) / 1_000_000n)} ms`);
}
