/**
 * The engine in a Node worker thread. Commands come over a MessagePort given as workerData; after posting one, the other
 * side bumps the shared counter and notifies, so that a thread asleep inside a trace point wakes up and takes it.
 */
import { openSync } from "node:fs";
import { type MessagePort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { MachineError } from "../machine/config";
import type { FromEngine, ToEngine } from "./api";
import { EngineHost } from "./engine-host";
import { launchMachine, type OpenDisk } from "./launch-machine";
import type { CommandPump } from "./pump";
import { diskSource } from "./worker-disk";

interface WorkerData {
  readonly port: MessagePort;
  /** One 32-bit word, counted up with every command. */
  readonly signal: SharedArrayBuffer;
}

class NodePump implements CommandPump {
  readonly blocking = true;
  private readonly word: Int32Array;
  private seen = 0;

  constructor(
    private readonly port: MessagePort,
    signal: SharedArrayBuffer,
  ) {
    this.word = new Int32Array(signal);
  }

  poll(): ToEngine | undefined {
    if (Atomics.load(this.word, 0) === this.seen) return undefined;
    return this.take();
  }

  wait(): ToEngine {
    for (;;) {
      const now = Atomics.load(this.word, 0);
      const message = this.take();
      if (message) return message;
      Atomics.wait(this.word, 0, now);
    }
  }

  private take(): ToEngine | undefined {
    const received: { message: ToEngine } | undefined = receiveMessageOnPort(this.port);
    // Each command is counted once; they are taken one at a time, in order.
    if (received) this.seen = (this.seen + 1) | 0;
    return received?.message;
  }
}

const { port, signal } = workerData as WorkerData;

/** Disks are read where and when the guest reads them. They stay open as long as the worker lives. */
const openDisk: OpenDisk = (path) => {
  try {
    return diskSource(openSync(path, "r"));
  } catch (error) {
    throw new MachineError(`disk ${path}: ${error instanceof Error ? error.message : String(error)}`);
  }
};

new EngineHost(
  (message: FromEngine) => port.postMessage(message),
  new NodePump(port, signal),
  (request, environment) => launchMachine(request, environment, openDisk),
).serve();
port.close();
