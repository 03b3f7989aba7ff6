/** Serves the Debug Adapter Protocol on standard input and output, or on a TCP port. */
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { NodeHost } from "./node-host";
import { DebugSession } from "./session";
import { FrameReader, frame, type Transport } from "./transport";

const USAGE =
  "usage: dap [--port N]   (N from 0 to 65535; 0 chooses a free port; without it: standard input and output)";

/** Where the bundles put the engine's worker: beside the script that runs. */
const besideThis = (): string => join(__dirname, "engine-worker.js");

/**
 * @param args the command line behind the program's name
 * @returns the process status: 0, or 2 on bad usage
 */
export async function runAdapter(args: readonly string[], engineScript = besideThis()): Promise<number> {
  let port: number | undefined;
  for (let i = 0; i < args.length; i++) {
    const [name, inline] = args[i].split("=", 2);
    if (name !== "--port") return refuse(`unknown argument "${args[i]}"`);
    const text = inline ?? args[++i];
    if (text === undefined || !/^[0-9]+$/.test(text) || Number(text) > 65535)
      return refuse(`"${text ?? ""}" is no port`);
    port = Number(text);
  }
  if (port !== undefined) return listen(port, engineScript);
  await serveStreams(process.stdin, process.stdout, engineScript);
  return 0;
}

function refuse(problem: string): number {
  process.stderr.write(`${problem}\n${USAGE}\n`);
  return 2;
}

/** One session over a pair of streams; ends when the client closes or disconnects. */
function serveStreams(input: Readable, output: Writable, engineScript: string): Promise<void> {
  return new Promise((resolve) => {
    let open = true;
    const transport: Transport = {
      send: (message) => {
        if (open && output.writable) output.write(frame(message));
      },
      close: () => {
        if (!open) return;
        open = false;
        input.destroy();
        // What has been answered must still arrive.
        if (output === process.stdout) output.write("", () => resolve());
        else output.end(() => resolve());
      },
    };
    const session = new DebugSession(transport, new NodeHost(engineScript));
    const reader = new FrameReader(session);
    input.on("data", (chunk: Buffer) => reader.feed(chunk));
    const ended = (): void => {
      if (!open) return;
      reader.end();
      transport.close();
    };
    input.on("end", ended);
    input.on("close", ended);
    input.on("error", ended);
    output.on("error", ended);
  });
}

function listen(port: number, engineScript: string): Promise<number> {
  return new Promise((resolve) => {
    const server: Server = createServer((socket) => {
      socket.setNoDelay(true);
      void serveStreams(socket, socket, engineScript);
    });
    server.on("error", (error) => {
      process.stderr.write(`cannot listen on port ${port}: ${error.message}\n`);
      resolve(2);
    });
    server.listen(port, "127.0.0.1", () => {
      const address = server.address();
      const actual = typeof address === "object" && address ? address.port : port;
      process.stderr.write(`listening on 127.0.0.1:${actual}\n`);
    });
  });
}
