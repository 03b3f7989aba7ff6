/** The engine's API as promises over its worker's port. */
import type { EngineEvent, EngineMethod, EngineRequests, FromEngine } from "../engine/debug/api";
import type { AdapterHost, EnginePort } from "./host";

interface Waiting {
  resolve(response: unknown): void;
  reject(error: Error): void;
}

export class EngineClient {
  private readonly waiting = new Map<number, Waiting>();
  private readonly port: EnginePort;
  private nextId = 1;
  private gone = false;

  /** @param failed the worker died by itself */
  constructor(host: AdapterHost, onEvent: (event: EngineEvent) => void, failed: (error: Error) => void) {
    this.port = host.startEngine({
      message: (message) => {
        if (!this.gone) this.receive(message, onEvent);
      },
      failed: (error) => {
        if (this.gone) return;
        this.release(error);
        failed(error);
      },
    });
  }

  request<M extends EngineMethod>(
    method: M,
    request: EngineRequests[M]["request"],
  ): Promise<EngineRequests[M]["response"]> {
    if (this.gone) return Promise.reject(new Error("the machine is gone"));
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve: (response) => resolve(response as EngineRequests[M]["response"]), reject });
      this.port.post({ id, method, request });
    });
  }

  /** Asks the engine to end, and ends its worker when it does not answer in time. */
  async terminate(patience: number): Promise<void> {
    if (this.gone) return;
    const asked = this.request("terminate", {}).catch(() => undefined);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, patience);
    });
    await Promise.race([asked, late]);
    clearTimeout(timer);
    this.dispose();
  }

  dispose(): void {
    if (this.gone) return;
    this.release(new Error("the session is over"));
    this.port.dispose();
  }

  private release(error: Error): void {
    this.gone = true;
    for (const waiting of this.waiting.values()) waiting.reject(error);
    this.waiting.clear();
  }

  private receive(message: FromEngine, onEvent: (event: EngineEvent) => void): void {
    if ("event" in message) {
      onEvent(message);
      return;
    }
    const waiting = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if ("error" in message) waiting?.reject(new Error(message.error));
    else waiting?.resolve(message.response);
  }
}
