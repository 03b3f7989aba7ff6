/** The debug adapter as a process of its own. */
import { runAdapter } from "./serve";

void runAdapter(process.argv.slice(2)).then((status) => {
  process.exitCode = status;
});
