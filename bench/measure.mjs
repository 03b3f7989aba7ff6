// CPU time of other programs.
import { spawnSync } from "node:child_process";

/**
 * Runs a command under the shell's `time`, with nothing on its standard input.
 *
 * @param {readonly string[]} command
 * @param {{ status: number, timeout?: number }} expected exit status; milliseconds it may take
 * @returns {{ seconds: number, output: string }} user + system seconds, standard output
 */
export function measured(command, { status, timeout }) {
  const result = spawnSync("bash", ["-c", `TIMEFORMAT='%U %S'; time "$@"`, "bash", ...command], {
    encoding: "latin1",
    input: "",
    maxBuffer: 1 << 26,
    timeout,
  });
  if (result.status !== status) {
    throw new Error(`${command.join(" ")} ended with status ${result.status}\n${result.stdout}${result.stderr}`);
  }
  const [user, system] = (result.stderr.trim().split("\n").at(-1) ?? "").split(" ").map(Number);
  return { seconds: user + system, output: result.stdout };
}

/** Whether a program is there. @param {string} command */
export const has = (command) => spawnSync(command, ["--version"]).status === 0;
