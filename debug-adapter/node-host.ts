/** The adapter's surroundings in Node: the file system, and an engine in a worker thread. */
import { existsSync, promises as files, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { MessageChannel, Worker } from "node:worker_threads";
import type { FromEngine } from "../engine/debug/api";
import type { AdapterHost, EngineListener, EnginePort } from "./host";

const MAX_FILE = 1024 * 1024 * 1024;

export class NodeHost implements AdapterHost {
  readonly engineOpensFiles = true;

  /** @param engineScript the engine worker's bundle */
  constructor(private readonly engineScript: string) {}

  async readFile(path: string): Promise<Uint8Array> {
    const full = resolve(path);
    let size: number;
    try {
      const found = await files.stat(full);
      if (found.isDirectory()) throw new Error(`${path} is a folder, not a file`);
      size = found.size;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code === "ENOTDIR") throw new Error(`there is no file ${path}`);
      if (code === "EACCES") throw new Error(`${path} may not be read`);
      throw error;
    }
    if (size > MAX_FILE) throw new Error(`${path} has ${size} bytes; at most ${MAX_FILE} can be loaded`);
    try {
      return new Uint8Array(await files.readFile(full));
    } catch (error) {
      throw new Error(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  async exists(path: string): Promise<boolean> {
    return existsSync(path) && statSync(path).isFile();
  }

  directory(path: string): string {
    return dirname(path);
  }

  join(...parts: string[]): string {
    return join(...parts);
  }

  startEngine(listener: EngineListener): EnginePort {
    const { port1, port2 } = new MessageChannel();
    const signal = new SharedArrayBuffer(4);
    const word = new Int32Array(signal);
    const worker = new Worker(this.engineScript, { workerData: { port: port2, signal }, transferList: [port2] });
    port1.on("message", (message: FromEngine) => listener.message(message));
    worker.on("error", (error) => listener.failed(error));
    return {
      post: (message) => {
        port1.postMessage(message);
        Atomics.add(word, 0, 1);
        Atomics.notify(word, 0);
      },
      dispose: () => {
        port1.close();
        void worker.terminate();
      },
    };
  }
}
