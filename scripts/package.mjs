// `npm run package`: the installable extension, hyperstep.vsix.
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensureDependencies, root } from "./lib/dependencies.mjs";
import { run } from "./lib/run.mjs";
import { vsceCommand } from "./lib/workbench-environment.mjs";

/** Builds and packages. @returns {Promise<string>} the .vsix */
export async function packageExtension() {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  const vsix = join(root, "hyperstep.vsix");
  const flags = [
    "--no-dependencies",
    "--allow-missing-repository",
    "--no-rewrite-relative-links",
    "--skip-license",
    "-o",
    vsix,
  ];
  await run(process.execPath, [await vsceCommand(), "package", ...flags], { cwd: root, quiet: true });
  return vsix;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    console.log(await packageExtension());
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
