/**
 * Messages of our own beside the Debug Adapter Protocol, defined once for the adapter and the extension. Every name begins
 * with "hyperstep/"; unsigned 64-bit values travel as hexadecimal strings ("0x..."), bytes as base64.
 */
import type { Schema } from "./schema";

export type Base64 = string;
export type Hex = string;
export type NumberFormat = "hex" | "decimal" | "binary";

export interface CustomBitField {
  readonly name: string;
  readonly low: number;
  readonly width: number;
  readonly help: string;
  readonly value: Hex;
  /** The value's name, when it has one. */
  readonly text?: string;
}

export interface CustomField {
  /** As expressions name it: "rax", "vmcs.GUEST_RIP", "kvm_run.exit_reason". */
  readonly name: string;
  readonly group: string;
  readonly value: Hex | string;
  /** Bits; 0 for text. */
  readonly width: number;
  readonly decoded: string;
  readonly help: string;
  readonly section: string;
  readonly bits: readonly CustomBitField[];
}

export interface CustomRequests {
  /** Bytes typed at the guest's serial port. */
  "hyperstep/serialInput": { arguments: { data: Base64 }; body: Record<string, never> };
  /** How numbers are shown from now on; the variables view is invalidated. */
  "hyperstep/setNumbers": { arguments: { numbers: NumberFormat }; body: { numbers: NumberFormat } };
  /** All registers of a vCPU, in groups ("general", "segment", "control", "debug", "msr" ...). */
  "hyperstep/registers": { arguments: { threadId: number }; body: { fields: readonly CustomField[] } };
  /** The current VMCS of a vCPU; `pointer` is null without one. */
  "hyperstep/vmcs": {
    arguments: { threadId: number };
    body: { pointer: Hex | null; fields: readonly CustomField[] };
  };
  /** The kvm_run page of a vCPU; empty when the machine does not run under KVM. */
  "hyperstep/kvmRun": { arguments: { threadId: number }; body: { fields: readonly CustomField[] } };
  /** Instructions retired, VM exits by reason, and every vCPU's place. */
  "hyperstep/stats": {
    arguments: Record<string, never>;
    body: {
      instructions: number;
      exits: Readonly<Record<string, number>>;
      vcpus: readonly {
        threadId: number;
        pc: Hex;
        mode: string;
        halted: boolean;
        inGuest: boolean;
        retired: number;
      }[];
    };
  };
}
export type CustomRequest = keyof CustomRequests;

export interface CustomEvents {
  /** Bytes the guest wrote to serial port `port` (0 = COM1). */
  "hyperstep/serial": { port: number; data: Base64 };
  /** Where the machine stopped, for views: the trace point's stage and details. */
  "hyperstep/stopped": {
    threadId: number;
    /** Name of the trace kind, e.g. "VmExit", or "" between instructions. */
    stage: string;
    text: string;
    detail: Readonly<Record<string, string | number | boolean>>;
  };
  "hyperstep/continued": Record<string, never>;
}
export type CustomEvent = keyof CustomEvents;

const thread: Schema = {
  type: "object",
  required: ["threadId"],
  properties: { threadId: { type: "integer", minimum: 1 } },
};

/** What arguments must be like. */
export const customRequestSchemas: Readonly<Record<CustomRequest, Schema>> = {
  "hyperstep/serialInput": {
    type: "object",
    required: ["data"],
    properties: {
      data: { type: "string", pattern: "^[A-Za-z0-9+/]*={0,2}$", patternErrorMessage: "base64 text" },
    },
  },
  "hyperstep/setNumbers": {
    type: "object",
    required: ["numbers"],
    properties: { numbers: { type: "string", enum: ["hex", "decimal", "binary"] } },
  },
  "hyperstep/registers": thread,
  "hyperstep/vmcs": thread,
  "hyperstep/kvmRun": thread,
  "hyperstep/stats": { type: "object" },
};
