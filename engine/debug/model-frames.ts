/**
 * The real JavaScript stack at a trace point. The engine is synchronous, so the functions between the machine's top level
 * and the trace point are the KVM model, the machine, the chips and VMX at work, with the true call positions.
 *
 * Positions are those of the running script (the bundle); whoever shows them maps them back with its source map and keeps
 * the frames that belong to the model.
 */
import type { ModelFrame } from "./api";

/** The part of V8's stack API this needs; other engines of JavaScript give no structured stack. */
interface CallSite {
  getFunctionName(): string | null;
  getMethodName(): string | null;
  getTypeName(): string | null;
  getFileName(): string | null | undefined;
  getLineNumber(): number | null;
  getColumnNumber(): number | null;
}
interface StackApi {
  stackTraceLimit?: number;
  prepareStackTrace?: (error: Error, sites: readonly CallSite[]) => unknown;
  captureStackTrace?: (target: object, below?: (...args: never[]) => unknown) => void;
}

const MAX_FRAMES = 64;

/**
 * @param below the debugger's own function; it and what it called are left out
 * @returns innermost first; empty where the platform has no structured stacks
 */
export function captureModelFrames(below: (...args: never[]) => unknown): readonly ModelFrame[] {
  const api = Error as unknown as StackApi;
  if (!api.captureStackTrace) return [];
  const { prepareStackTrace, stackTraceLimit } = api;
  const holder: { stack?: unknown } = {};
  try {
    api.stackTraceLimit = MAX_FRAMES;
    api.prepareStackTrace = (_error, sites) => sites;
    api.captureStackTrace(holder, below);
    const sites = holder.stack;
    return Array.isArray(sites) ? (sites as CallSite[]).flatMap(toFrame) : [];
  } finally {
    api.prepareStackTrace = prepareStackTrace;
    api.stackTraceLimit = stackTraceLimit;
  }
}

function toFrame(site: CallSite): ModelFrame[] {
  const script = site.getFileName();
  const line = site.getLineNumber();
  if (!script || line === null || script.startsWith("node:") || script.startsWith("wasm:")) return [];
  const functionName = site.getFunctionName() ?? site.getMethodName() ?? "(anonymous)";
  return [{ functionName: functionName.replace(/^.*\./, ""), script, line, column: site.getColumnNumber() ?? 1 }];
}
