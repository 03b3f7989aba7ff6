/**
 * The engine in a Node worker thread. Commands come over a MessagePort given as workerData; after posting one, the other
 * side bumps the shared counter and notifies, so that a thread asleep inside a trace point wakes up and takes it.
 */
import { type MessagePort, receiveMessageOnPort, workerData } from "node:worker_threads";

import type { FromEngine, ToEngine } from "./api";
import { EngineHost } from "./engine-host";
import { launchMachine } from "./launch-machine";
import type { CommandPump } from "./pump";

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
new EngineHost((message: FromEngine) => port.postMessage(message), new NodePump(port, signal), launchMachine).serve();
port.close();
