/** Bundles of the adapter and of engines for tests, as the build makes them, in the cache folder. */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
export const cache = join(root, ".cache", "test-adapter");

/** @returns the path of the bundle */
export async function bundle(entry: string, output: string): Promise<string> {
  const { bundles } = (await import(join(root, "scripts", "build.mjs"))) as {
    bundles: readonly import("esbuild").BuildOptions[];
  };
  const like = bundles.find((b) => Array.isArray(b.entryPoints) && b.entryPoints[0] === "debug-adapter/main.ts");
  const outfile = join(cache, output);
  await build({ ...like, entryPoints: [entry], outfile, logLevel: "error" });
  return outfile;
}
