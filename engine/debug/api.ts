/**
 * The typed engine API: what the debug adapter may ask of an engine in a worker, as messages. Structured-clonable both ways,
 * bigint included. The adapter never touches the engine's memory.
 */
import type { RegisterRow } from "../cpu/registers";
import type { Accel } from "../machine/config";
import type { AddressSpace, Ending } from "../machine/machine";

export interface LaunchRequest {
  readonly accel: Accel;
  readonly memory: number;
  readonly smp: number;
  readonly cpu: string;
  readonly image: { readonly name: string; readonly bytes: Uint8Array };
  readonly initrd?: { readonly name: string; readonly bytes: Uint8Array };
  readonly append: string;
  readonly loadAddress?: number;
  readonly tier: 0 | 1;
  readonly kvm?: Readonly<Record<string, boolean | number>>;
}

/** A condition to stop at a trace point: reason filter plus an expression over the point's detail and registers. */
export interface TraceFilter {
  readonly id: string;
  /** TraceKind bit. */
  readonly kind: number;
  /** Only points whose detail has these values, e.g. { reason: 30 }. */
  readonly match: Readonly<Record<string, bigint | number | string>>;
  /** Expression of the debugger's language (debug/expression.ts), empty for always. */
  readonly condition: string;
  /** Stop only from the n-th hit on; 0 or 1 = at once. */
  readonly hitCount: number;
  /** A log line with {expressions} instead of a stop. */
  readonly log?: string;
}

export interface BreakpointRequest {
  readonly id: number;
  readonly linear: bigint;
  readonly condition: string;
  readonly hitCount: number;
  readonly log?: string;
}

/** How to go on from a stop. */
export type Resume =
  | { readonly kind: "continue" }
  /** To the next guest instruction of `vcpu`, over VM exits, calls, repeats and interrupts. */
  | { readonly kind: "next"; readonly vcpu: number }
  /** One instruction, or one stage of a VM exit when it takes one. */
  | { readonly kind: "stepIn"; readonly vcpu: number }
  /** To the return of the current function; from inside an exit: back to the guest. */
  | { readonly kind: "stepOut"; readonly vcpu: number };

export type StopReason = "entry" | "pause" | "step" | "breakpoint" | "watchpoint" | "trace" | "ending";

/** A frame of the KVM model's real JavaScript stack at a trace point; position in the built bundle, for source maps. */
export interface ModelFrame {
  readonly functionName: string;
  readonly script: string;
  readonly line: number;
  readonly column: number;
}

export interface Stop {
  readonly reason: StopReason;
  readonly vcpu: number;
  /** Breakpoint, watchpoint or filter ids that caused it. */
  readonly hits: readonly (string | number)[];
  /** Headline, e.g. the trace point's text. */
  readonly text: string;
  /** Multi-line explanation: a failed entry's checks, a triple fault's cause. */
  readonly description?: string;
  readonly detail?: Readonly<Record<string, bigint | number | string | boolean>>;
  /** TraceKind of the point it stopped at, 0 between instructions. */
  readonly traceKind: number;
  /** Innermost first; empty between instructions. */
  readonly modelFrames: readonly ModelFrame[];
  readonly ending?: Ending;
}

export interface FieldValue {
  readonly name: string;
  readonly value: bigint;
  readonly row: RegisterRow;
}

/** Requests and their answers, by name. Every request may fail with an Error whose message is fit for the user. */
export interface EngineRequests {
  launch: { request: LaunchRequest; response: { readonly vcpus: number; readonly entry: bigint } };
  resume: { request: Resume; response: Record<string, never> };
  pause: { request: Record<string, never>; response: Record<string, never> };
  terminate: { request: Record<string, never>; response: Record<string, never> };
  setBreakpoints: { request: { readonly list: readonly BreakpointRequest[] }; response: Record<string, never> };
  setWatchpoints: {
    request: {
      readonly list: readonly {
        readonly id: number;
        readonly space: "linear" | "physical";
        readonly address: bigint;
        readonly length: number;
        readonly access: "read" | "write" | "readWrite";
        readonly condition: string;
        readonly hitCount: number;
      }[];
    };
    response: Record<string, never>;
  };
  setTraceFilters: { request: { readonly list: readonly TraceFilter[] }; response: Record<string, never> };
  readRegisters: { request: { readonly vcpu: number }; response: { readonly fields: readonly FieldValue[] } };
  writeRegister: {
    request: { readonly vcpu: number; readonly name: string; readonly value: bigint };
    response: { readonly value: bigint };
  };
  /** Fields of the current VMCS, in table order, grouped by their row's group; null without one. */
  readVmcs: {
    request: { readonly vcpu: number };
    response: { readonly pointer: bigint; readonly fields: readonly VmcsFieldValue[] } | null;
  };
  writeVmcs: {
    request: { readonly vcpu: number; readonly name: string; readonly value: bigint };
    response: { readonly value: bigint };
  };
  readKvmRun: {
    request: { readonly vcpu: number };
    response: { readonly fields: Readonly<Record<string, bigint | number | string>> } | null;
  };
  readMemory: {
    request: { readonly space: AddressSpace; readonly vcpu: number; readonly address: bigint; readonly length: number };
    response: { readonly bytes: Uint8Array };
  };
  writeMemory: {
    request: {
      readonly space: AddressSpace;
      readonly vcpu: number;
      readonly address: bigint;
      readonly bytes: Uint8Array;
    };
    response: { readonly written: number };
  };
  translate: {
    request: { readonly vcpu: number; readonly linear: bigint };
    response: { readonly physical: bigint | null };
  };
  evaluate: { request: { readonly vcpu: number; readonly expression: string }; response: EvaluateResult };
  completions: {
    request: { readonly text: string };
    response: { readonly items: readonly { label: string; help: string }[] };
  };
  /** Code mode of the vCPU, for disassembly: 16, 32 or 64, and the linear address of CS:RIP. */
  codeContext: {
    request: { readonly vcpu: number };
    response: { readonly bits: 16 | 32 | 64; readonly linear: bigint; readonly csBase: bigint };
  };
  setSymbols: {
    request: { readonly symbols: readonly { name: string; address: bigint; size: bigint }[] };
    response: Record<string, never>;
  };
  serialInput: { request: { readonly bytes: Uint8Array }; response: Record<string, never> };
  stats: {
    request: Record<string, never>;
    response: { readonly instructions: number; readonly exits: Readonly<Record<string, number>> };
  };
  hash: { request: Record<string, never>; response: { readonly hash: string } };
}

export interface VmcsFieldValue {
  readonly name: string;
  readonly encoding: number;
  readonly group: string;
  readonly value: bigint;
  /** Names of the bits that are set, or of the decoded sub-fields, e.g. "PG|PE" or "vector 14, hardware exception". */
  readonly decoded: string;
  readonly help: string;
  readonly section: string;
  readonly width: number;
}

export interface EvaluateResult {
  readonly value: bigint;
  /** Bytes of width for formatting. */
  readonly width: number;
  readonly decoded?: string;
  /** Where it lives, when it is memory. */
  readonly memory?: { readonly space: AddressSpace; readonly address: bigint };
  /** Name to assign to, when it may be assigned. */
  readonly assignable?: string;
  readonly help?: string;
}

export type EngineMethod = keyof EngineRequests;

export type EngineEvent =
  | { readonly event: "stopped"; readonly stop: Stop }
  | { readonly event: "continued" }
  | { readonly event: "serial"; readonly port: number; readonly bytes: Uint8Array }
  | { readonly event: "log"; readonly text: string }
  | { readonly event: "ended"; readonly ending: Ending };

/** On the wire. */
export type ToEngine = { readonly id: number; readonly method: EngineMethod; readonly request: unknown };
export type FromEngine =
  | { readonly id: number; readonly response: unknown }
  | { readonly id: number; readonly error: string }
  | EngineEvent;
