/** The `hyperstep` command: chooses what to do and turns errors into messages and exit statuses. */
import { MachineError } from "../engine/machine/config";
import { run } from "./run";
import { EXIT_STATUS, USAGE, UsageError } from "./usage";

/** @returns the process's exit status */
export async function command(args: readonly string[], version: string): Promise<number> {
  const [verb, ...rest] = args;
  try {
    switch (verb) {
      case "run":
        if (rest.includes("--help") || rest.includes("-h")) return say(USAGE);
        return await run(rest);
      case "dap": {
        // The adapter with its disassembler is large; a plain run does without.
        const { runAdapter } = await import("../debug-adapter/serve");
        return await runAdapter(rest);
      }
      case "--help":
      case "-h":
      case "help":
        return say(USAGE);
      case "--version":
        return say(`hyperstep ${version}\n`);
      case undefined:
        throw new UsageError("nothing to do");
      default:
        throw new UsageError(`there is no command "${verb}"; use run or dap`);
    }
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`hyperstep: ${error.message}\nSee: hyperstep --help\n`);
      return EXIT_STATUS.USAGE;
    }
    if (error instanceof MachineError) {
      process.stderr.write(`hyperstep: ${error.message}\n`);
      return EXIT_STATUS.USAGE;
    }
    throw error;
  }
}

function say(text: string): number {
  process.stdout.write(text);
  return 0;
}
