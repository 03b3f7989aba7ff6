// Child processes for the scripts: one way to start them, one way to fail.
import { spawn } from "node:child_process";

/** The name npm is started by on this platform. */
export const npm = process.platform === "win32" ? "npm.cmd" : "npm";

/** A command that ended with a status other than 0. */
export class CommandError extends Error {
  /**
   * @param {string} command
   * @param {number} status
   * @param {string} output
   */
  constructor(command, status, output) {
    super(`${command} ended with status ${status}${output ? `\n${output}` : ""}`);
    this.name = "CommandError";
    this.status = status;
  }
}

/**
 * Runs a command to its end. With `quiet` its output is kept back and shown only in the error.
 *
 * @param {string} command
 * @param {readonly string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, quiet?: boolean }} [options]
 * @returns {Promise<string>} what it printed, when quiet
 */
export function run(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: options.cwd,
      env: options.env ?? process.env,
      stdio: options.quiet ? ["ignore", "pipe", "pipe"] : "inherit",
      shell: process.platform === "win32" && command.endsWith(".cmd"),
    });
    let output = "";
    child.stdout?.on("data", (chunk) => {
      output += chunk;
    });
    child.stderr?.on("data", (chunk) => {
      output += chunk;
    });
    child.on("error", (error) => reject(new Error(`${command} could not be started: ${error.message}`)));
    child.on("close", (status) => {
      if (status === 0) resolve(output);
      else reject(new CommandError([command, ...args].join(" "), status ?? 1, output));
    });
  });
}
