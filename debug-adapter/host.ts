/** What the adapter needs from where it runs: files, and an engine in a worker. Node and the browser each implement it. */
import type { FromEngine, ToEngine } from "../engine/debug/api";

/** The engine's worker, as messages. */
export interface EnginePort {
  post(message: ToEngine): void;
  /** Ends the worker at once, whatever it is doing. */
  dispose(): void;
}

export interface EngineListener {
  message(message: FromEngine): void;
  /** The worker died. */
  failed(error: Error): void;
}

export interface AdapterHost {
  /** @throws Error fit for the user when there is no such file or it cannot be read */
  readFile(path: string): Promise<Uint8Array>;
  exists(path: string): Promise<boolean>;
  /** The engine's worker can open files itself. */
  readonly engineOpensFiles?: boolean;
  /** Directory part and joining, by the platform's rules. */
  directory(path: string): string;
  join(...parts: string[]): string;
  /** Source map of the engine's worker where it is not beside the script (the script runs from a blob, say). */
  engineMap?(): Promise<{ readonly text: string; readonly directory: string } | undefined>;
  startEngine(listener: EngineListener): EnginePort;
}
