/** What the parts of a session share. */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { Stop } from "../engine/debug/api";
import { TraceKind } from "../engine/trace";
import type { CustomEvent, CustomEvents, NumberFormat } from "./custom-protocol";
import type { EngineClient } from "./engine-client";
import type { AdapterHost } from "./host";
import type { LineTable } from "./symbols/line-table";
import type { SymbolTable } from "./symbols/symbol-table";

/** A request that was taken back. */
export class Cancelled extends Error {
  override readonly name = "Cancelled";
  constructor() {
    super("cancelled");
  }
}

/** Asked between the steps of long work. */
export interface CancelToken {
  /** @throws Cancelled */
  check(): void;
}

/** What the client said of itself. */
export interface ClientCapabilities {
  readonly linesStartAt1: boolean;
  readonly columnsStartAt1: boolean;
  readonly invalidatedEvents: boolean;
  readonly memoryEvents: boolean;
  readonly progress: boolean;
  /** Types and memory references of values; a client that says nothing gets them. */
  readonly variableTypes: boolean;
  readonly memoryReferences: boolean;
  /** Whether completions say where they begin. */
  readonly completionStarts: boolean;
}

export type OutputCategory = "console" | "important" | "stdout" | "stderr";

export interface SessionContext {
  readonly host: AdapterHost;
  readonly client: ClientCapabilities;
  /** @throws Error when no machine runs */
  readonly engine: EngineClient;
  readonly symbols: SymbolTable;
  readonly lines: LineTable;
  /** The guest is looked through for a Linux kernel: names that are not known may come to be known. */
  readonly searchesKernel: boolean;
  /** Where the machine stands; null while it runs. */
  readonly stop: Stop | null;
  numbers: NumberFormat;
  event(name: string, body?: object): void;
  customEvent<E extends CustomEvent>(name: E, body: CustomEvents[E]): void;
  output(text: string, category?: OutputCategory): void;
  /** Registers, memory or both changed under the client's eyes. */
  invalidate(areas: readonly DebugProtocol.InvalidatedAreas[]): void;
}

/** Answers one command. Arguments have been checked against request-schemas.ts. */
export type Handler = (args: never, token: CancelToken) => Promise<object | undefined>;
export type Handlers = Readonly<Record<string, Handler>>;

const STAGES: Readonly<Record<number, string>> = {
  [TraceKind.VmExit]: "VM exit",
  [TraceKind.ExitHandler]: "Exit handler",
  [TraceKind.MmuFault]: "MMU fault",
  [TraceKind.UserspaceExit]: "Exit to userspace",
  [TraceKind.Device]: "Device",
  [TraceKind.VmEntry]: "VM entry",
  [TraceKind.VmEntryFailed]: "VM entry failed",
};

/** One line for a stop: its stage, and what happened there. */
export function headlineOf(stop: Stop): string {
  const stage = STAGES[stop.traceKind];
  return stage ? `${stage}: ${stop.text}` : stop.text;
}

const FIRST_THREAD = 1;
export const vcpuOf = (threadId: number): number => threadId - FIRST_THREAD;
export const threadOf = (vcpu: number): number => vcpu + FIRST_THREAD;
