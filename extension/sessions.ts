/** The debug sessions of this extension: their requests, typed, and what happens in them. */
import * as vscode from "vscode";
import type { CustomEvent, CustomEvents, CustomRequest, CustomRequests } from "../debug-adapter/custom-protocol";

export const DEBUG_TYPE = "hyperstep";

/** Where a session's machine is. */
export type SessionState =
  | { readonly kind: "running" }
  | { readonly kind: "stopped"; readonly threadId: number; readonly stage: string; readonly text: string };

export interface SerialBytes {
  readonly session: vscode.DebugSession;
  readonly port: number;
  readonly data: string;
}

/** A custom request, with the types of debug-adapter/custom-protocol.ts. @throws Error with the adapter's message */
export async function ask<R extends CustomRequest>(
  session: vscode.DebugSession,
  request: R,
  args: CustomRequests[R]["arguments"],
): Promise<CustomRequests[R]["body"]> {
  return (await session.customRequest(request, args)) as CustomRequests[R]["body"];
}

export class Sessions implements vscode.Disposable {
  private readonly states = new Map<string, SessionState>();
  private readonly disposables: vscode.Disposable[] = [];
  private readonly changed = new vscode.EventEmitter<vscode.DebugSession>();
  private readonly invalidated = new vscode.EventEmitter<vscode.DebugSession>();
  private readonly serial = new vscode.EventEmitter<SerialBytes>();
  private readonly ended = new vscode.EventEmitter<vscode.DebugSession>();
  private readonly activeChanged = new vscode.EventEmitter<void>();

  /** A session started, stopped somewhere or went on. */
  readonly onDidChange = this.changed.event;
  /** Values changed while stopped: somebody wrote a register, a field or memory. */
  readonly onDidInvalidate = this.invalidated.event;
  readonly onDidReceiveSerial = this.serial.event;
  readonly onDidEnd = this.ended.event;
  /** Another session or another vCPU is the one being looked at. */
  readonly onDidChangeActive = this.activeChanged.event;

  constructor() {
    const { debug } = vscode;
    this.disposables.push(
      debug.onDidStartDebugSession((session) => {
        if (session.type === DEBUG_TYPE) this.set(session, { kind: "running" }, false);
      }),
      debug.onDidTerminateDebugSession((session) => {
        if (session.type !== DEBUG_TYPE) return;
        this.states.delete(session.id);
        this.ended.fire(session);
      }),
      debug.onDidChangeActiveDebugSession(() => this.activeChanged.fire()),
      debug.onDidChangeActiveStackItem(() => this.activeChanged.fire()),
      debug.onDidReceiveDebugSessionCustomEvent(({ session, event, body }) => {
        if (session.type === DEBUG_TYPE) this.custom(session, event as CustomEvent, body);
      }),
      debug.registerDebugAdapterTrackerFactory(DEBUG_TYPE, {
        createDebugAdapterTracker: (session) => ({
          onDidSendMessage: (message: { type: string; event?: string; command?: string; success?: boolean }) => {
            const wrote = message.command === "setVariable" || message.command === "setExpression";
            const invalid = message.type === "event" && message.event === "invalidated";
            if (invalid || (message.type === "response" && wrote && message.success)) this.invalidated.fire(session);
          },
        }),
      }),
      this.changed,
      this.invalidated,
      this.serial,
      this.ended,
      this.activeChanged,
    );
  }

  dispose(): void {
    for (const disposable of this.disposables) disposable.dispose();
  }

  /** The session being looked at, when it is one of ours. */
  get active(): vscode.DebugSession | undefined {
    const session = vscode.debug.activeDebugSession;
    return session?.type === DEBUG_TYPE ? session : undefined;
  }

  state(session: { readonly id: string }): SessionState | undefined {
    return this.states.get(session.id);
  }

  /** DAP thread of the vCPU being looked at in a stopped session. */
  threadOf(session: vscode.DebugSession): number | undefined {
    const state = this.states.get(session.id);
    if (state?.kind !== "stopped") return undefined;
    const item = vscode.debug.activeStackItem;
    return item?.session.id === session.id ? item.threadId : state.threadId;
  }

  private set(session: vscode.DebugSession, state: SessionState, replace = true): void {
    if (!replace && this.states.has(session.id)) return;
    this.states.set(session.id, state);
    this.changed.fire(session);
  }

  private custom(session: vscode.DebugSession, event: CustomEvent, body: unknown): void {
    if (event === "hyperstep/serial") {
      const { port, data } = body as CustomEvents["hyperstep/serial"];
      this.serial.fire({ session, port, data });
    } else if (event === "hyperstep/stopped") {
      const { threadId, stage, text } = body as CustomEvents["hyperstep/stopped"];
      this.set(session, { kind: "stopped", threadId, stage, text });
    } else if (event === "hyperstep/continued") this.set(session, { kind: "running" });
  }
}
