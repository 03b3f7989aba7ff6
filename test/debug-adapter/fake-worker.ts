/** The engine's worker around the fake machine. */
import { type MessagePort, receiveMessageOnPort, workerData } from "node:worker_threads";
import type { ToEngine } from "../../engine/debug/api";
import { EngineHost } from "../../engine/debug/engine-host";
import { FakeMachine } from "../debug/fake-machine";

const { port, signal } = workerData as { port: MessagePort; signal: SharedArrayBuffer };
const word = new Int32Array(signal);
const take = (): ToEngine | undefined => receiveMessageOnPort(port)?.message as ToEngine | undefined;
new EngineHost(
  (message) => port.postMessage(message),
  {
    blocking: true,
    poll: take,
    wait: () => {
      for (;;) {
        const now = Atomics.load(word, 0);
        const message = take();
        if (message) return message;
        Atomics.wait(word, 0, now);
      }
    },
  },
  (config, environment) => new FakeMachine(config, environment),
).serve();
port.close();
