/** Entry of the `hyperstep` command. */
import manifest from "../package.json";
import { command } from "./command";
import { EXIT_STATUS } from "./usage";

// Whoever reads our output may leave (head, grep -q): that is no error of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

command(process.argv.slice(2), manifest.version).then(
  (status) => process.exit(status),
  (error: unknown) => {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    process.stderr.write(`hyperstep: a fault of Hyperstep itself, please report it:\n${text}\n`);
    process.exit(EXIT_STATUS.INTERNAL_ERROR);
  },
);
