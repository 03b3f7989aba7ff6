// A suite of vitest beside the main one: built first, its totals printed as the last line.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "./dependencies.mjs";
import { run } from "./run.mjs";

/**
 * @param {string} config path of the suite's vitest configuration
 * @param {readonly string[]} args for vitest
 * @returns {Promise<{ passed: number, failed: number }>}
 */
export async function runSuite(config, args) {
  const work = mkdtempSync(join(tmpdir(), "hyperstep-suite-"));
  const report = join(work, "report.json");
  const vitest = join(root, "node_modules", "vitest", "vitest.mjs");
  const flags = ["--reporter=default", "--reporter=json", `--outputFile=${report}`];
  try {
    await run(process.execPath, [vitest, "run", "--config", config, ...flags, ...args], { cwd: root }).catch(() => {});
    const { numPassedTests, numTotalTests, numPendingTests, success } = JSON.parse(readFileSync(report, "utf8"));
    const failed = numTotalTests - numPassedTests - numPendingTests;
    // A file that does not even load counts as one failure.
    return { passed: numPassedTests, failed: failed === 0 && !success ? 1 : failed };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/**
 * Runs a suite as a program: prints the totals, sets the exit status.
 *
 * @param {() => Promise<{ passed: number, failed: number }>} suite
 */
export async function suiteProgram(suite) {
  try {
    const { passed, failed } = await suite();
    console.log(`${passed} passed, ${failed} failed`);
    process.exit(failed > 0 || passed === 0 ? 1 : 0);
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
