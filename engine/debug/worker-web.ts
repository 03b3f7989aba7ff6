/**
 * The engine in a web worker. The first message carries a shared ring for commands where the page is cross-origin
 * isolated; launch itself always comes as an ordinary message, because an image may be larger than the ring.
 *
 * Without shared memory the thread cannot sleep inside a trace point: then the machine runs in slices from the worker's
 * event loop, stops take effect at slice tops, and the first log line says so.
 */

import type { FromEngine, ToEngine } from "./api";
import { EngineHost } from "./engine-host";
import { launchMachine } from "./launch-machine";
import { type CommandPump, SharedRing } from "./pump";

/** What the page sends first. */
export interface WebWorkerStart {
  readonly start: true;
  readonly ring?: SharedArrayBuffer;
}

interface WorkerScope {
  postMessage(message: unknown): void;
  onmessage: ((event: { data: unknown }) => void) | null;
  close(): void;
}
const worker = globalThis as unknown as WorkerScope;
const post = (message: FromEngine): void => worker.postMessage(message);

class RingPump implements CommandPump {
  readonly blocking = true;
  constructor(private readonly ring: SharedRing) {}

  poll(): ToEngine | undefined {
    return this.ring.read() as ToEngine | undefined;
  }

  wait(): ToEngine {
    for (;;) {
      const message = this.poll();
      if (message) return message;
      this.ring.sleep();
    }
  }
}

class QueuePump implements CommandPump {
  readonly blocking = false;
  readonly queue: ToEngine[] = [];

  poll(): ToEngine | undefined {
    return this.queue.shift();
  }

  wait(): ToEngine {
    throw new Error("this page has no shared memory: the engine cannot wait for commands");
  }
}

function serveFromRing(ring: SharedRing): void {
  const host = new EngineHost(post, new RingPump(ring), launchMachine);
  worker.onmessage = ({ data }) => {
    host.command(data as ToEngine);
    host.serve();
    worker.close();
  };
}

function serveFromEvents(): void {
  post({
    event: "log",
    text: "This page is not cross-origin isolated: the guest stops at the end of a slice, not at the exact place.",
  });
  const pump = new QueuePump();
  const host = new EngineHost(post, pump, launchMachine);
  const turn = new MessageChannel();
  const go = (): void => {
    if (host.running) {
      host.slice();
      if (!host.idle) turn.port2.postMessage(0);
    } else for (let m = pump.poll(); m; m = pump.poll()) host.command(m);
    if (host.closed) worker.close();
  };
  turn.port1.onmessage = go;
  worker.onmessage = ({ data }) => {
    pump.queue.push(data as ToEngine);
    turn.port2.postMessage(0);
  };
}

worker.onmessage = ({ data }) => {
  const { ring } = data as WebWorkerStart;
  if (ring) serveFromRing(new SharedRing(ring));
  else serveFromEvents();
};
