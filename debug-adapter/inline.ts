/** The adapter inside another process, messages as objects: the extension host, a browser, tests. */
import type { AdapterHost } from "./host";
import { DebugSession } from "./session";

export interface InlineAdapter {
  /** A message from the client. */
  handle(message: unknown): void;
  dispose(): void;
}

/** @param send takes the adapter's messages */
export function createInlineAdapter(host: AdapterHost, send: (message: object) => void): InlineAdapter {
  const session = new DebugSession({ send, close: () => {} }, host);
  return { handle: (message) => session.message(message), dispose: () => session.closed() };
}
