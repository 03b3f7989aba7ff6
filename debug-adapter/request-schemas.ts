/** What the arguments of each protocol request must be like, as far as this adapter uses them (DAP 1.68). */
import { customRequestSchemas } from "./custom-protocol";
import type { Schema } from "./schema";

const object = (properties: Readonly<Record<string, Schema>>, ...required: string[]): Schema => ({
  type: "object",
  properties,
  required,
});
const string: Schema = { type: "string" };
const boolean: Schema = { type: "boolean" };
const integer: Schema = { type: "integer" };
const count: Schema = { type: "integer", minimum: 0 };
const format: Schema = { type: "object", properties: { hex: boolean } };
const source = object({ path: string, name: string, sourceReference: integer });
const list = (items: Schema): Schema => ({ type: "array", items });
const step = object({ threadId: integer, granularity: string, singleThread: boolean, targetId: integer }, "threadId");
/** Instructions one disassemble request may ask for, or skip. */
const MAX_ROWS = 100_000;
const anything: Schema = { type: "object" };

export const requestSchemas: Readonly<Record<string, Schema>> = {
  initialize: object({ adapterID: string, linesStartAt1: boolean, columnsStartAt1: boolean }),
  launch: anything,
  configurationDone: anything,
  restart: anything,
  terminate: anything,
  disconnect: object({ terminateDebuggee: boolean, restart: boolean }),
  cancel: object({ requestId: integer, progressId: string }),
  setBreakpoints: object(
    {
      source,
      breakpoints: list(object({ line: integer, condition: string, hitCondition: string, logMessage: string }, "line")),
      lines: list(integer),
    },
    "source",
  ),
  setFunctionBreakpoints: object(
    { breakpoints: list(object({ name: string, condition: string, hitCondition: string }, "name")) },
    "breakpoints",
  ),
  setInstructionBreakpoints: object(
    {
      breakpoints: list(
        object(
          { instructionReference: string, offset: integer, condition: string, hitCondition: string },
          "instructionReference",
        ),
      ),
    },
    "breakpoints",
  ),
  setDataBreakpoints: object(
    {
      breakpoints: list(
        object(
          {
            dataId: string,
            accessType: { type: "string", enum: ["read", "write", "readWrite"] },
            condition: string,
            hitCondition: string,
          },
          "dataId",
        ),
      ),
    },
    "breakpoints",
  ),
  dataBreakpointInfo: object(
    { name: string, variablesReference: integer, frameId: integer, bytes: integer, asAddress: boolean },
    "name",
  ),
  setExceptionBreakpoints: object(
    {
      filters: list(string),
      filterOptions: list(object({ filterId: string, condition: string }, "filterId")),
    },
    "filters",
  ),
  exceptionInfo: object({ threadId: integer }, "threadId"),
  breakpointLocations: object({ source, line: integer, endLine: integer }, "source", "line"),
  threads: anything,
  stackTrace: object({ threadId: integer, startFrame: count, levels: count, format }, "threadId"),
  scopes: object({ frameId: integer }, "frameId"),
  variables: object({ variablesReference: integer, start: count, count, format, filter: string }, "variablesReference"),
  setVariable: object(
    { variablesReference: integer, name: string, value: string, format },
    "variablesReference",
    "name",
    "value",
  ),
  setExpression: object({ expression: string, value: string, frameId: integer, format }, "expression", "value"),
  evaluate: object({ expression: string, frameId: integer, context: string, format }, "expression"),
  completions: object({ text: string, column: integer, line: integer, frameId: integer }, "text", "column"),
  readMemory: object({ memoryReference: string, offset: integer, count }, "memoryReference", "count"),
  writeMemory: object(
    { memoryReference: string, offset: integer, data: string, allowPartial: boolean },
    "memoryReference",
    "data",
  ),
  disassemble: object(
    {
      memoryReference: string,
      offset: integer,
      instructionOffset: { type: "integer", minimum: -MAX_ROWS, maximum: MAX_ROWS },
      instructionCount: { type: "integer", minimum: 0, maximum: MAX_ROWS },
      resolveSymbols: boolean,
    },
    "memoryReference",
    "instructionCount",
  ),
  source: object({ source, sourceReference: integer }, "sourceReference"),
  loadedSources: anything,
  gotoTargets: object({ source, line: integer }, "source", "line"),
  goto: object({ threadId: integer, targetId: integer }, "threadId", "targetId"),
  stepInTargets: object({ frameId: integer }, "frameId"),
  continue: object({ threadId: integer, singleThread: boolean }, "threadId"),
  next: step,
  stepIn: step,
  stepOut: step,
  pause: object({ threadId: integer }, "threadId"),
  ...customRequestSchemas,
};
