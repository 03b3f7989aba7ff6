// `npm run test:real`: guests from Debian's packages, through the command line.
import { ensureDependencies } from "./lib/dependencies.mjs";
import { runSuite, suiteProgram } from "./lib/suite.mjs";

await suiteProgram(async () => {
  await ensureDependencies();
  const { buildAll } = await import("./build.mjs");
  await buildAll();
  return runSuite("test/real/vitest.config.mjs", process.argv.slice(2));
});
