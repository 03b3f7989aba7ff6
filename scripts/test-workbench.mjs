// `npm run test:workbench`: the packaged extension in the real VS Code workbench (code-server), driven in chromium.
import { ensureDependencies } from "./lib/dependencies.mjs";
import { runSuite, suiteProgram } from "./lib/suite.mjs";

await suiteProgram(async () => {
  await ensureDependencies();
  const { packageExtension } = await import("./package.mjs");
  await packageExtension();
  return runSuite("test/workbench/vitest.config.mjs", process.argv.slice(2));
});
