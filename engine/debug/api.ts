/**
 * The typed engine API: what the debug adapter may ask of an engine in a worker, as messages. Structured-clonable both ways,
 * bigint included. The adapter never touches the engine's memory.
 */
import type { BitField, RegisterRow } from "../cpu/registers";
import type { Accel, ImageFile, VirtioKind } from "../machine/config";
import type { AddressSpace, Ending } from "../machine/machine";
import type { FrameTable } from "./frames/table";
import type { EngineSymbol } from "./symbols";

export type { AddressSpace, Ending } from "../machine/machine";
export type { FrameTable } from "./frames/table";
export type { EngineSymbol } from "./symbols";

/** Which hits of a breakpoint stop: all from the n-th on, only the n-th, or every n-th. */
export interface HitRule {
  readonly kind: "from" | "exactly" | "every";
  readonly count: number;
}

export interface LaunchRequest {
  readonly accel: Accel;
  readonly memory: number;
  readonly smp: number;
  /** Processor model; empty for the default one. */
  readonly cpu: string;
  readonly image: ImageFile;
  /** Firmware to start with, the flash chip with its variables, the display adapter's option ROM. */
  readonly firmware?: ImageFile;
  readonly firmwareVariables?: ImageFile;
  readonly videoBios?: ImageFile;
  readonly initrd?: ImageFile;
  readonly append: string;
  readonly loadAddress?: number;
  readonly tier: 0 | 1;
  readonly kvm?: Readonly<Record<string, boolean | number>>;
  /** Virtio disks: files the engine's worker can open itself, or their bytes. They are never written. */
  readonly diskFiles?: readonly LaunchDisk[];
  readonly virtio?: readonly VirtioKind[];
  readonly reboot?: boolean;
}

export type LaunchDisk = { readonly name: string; readonly path: string } | ImageFile;

/** A condition to stop at a trace point: reason filter plus an expression over the point's detail and registers. */
export interface TraceFilter {
  readonly id: string;
  /** TraceKind bit. */
  readonly kind: number;
  /** Only points whose detail has these values, e.g. { reason: 30 }. */
  readonly match: Readonly<Record<string, bigint | number | string>>;
  /** Expression of the debugger's language (debug/expression.ts), empty for always. */
  readonly condition: string;
  readonly hit?: HitRule;
  /** A log line with {expressions} instead of a stop. */
  readonly log?: string;
}

export interface BreakpointRequest {
  readonly id: number;
  /** Where: a linear address, a guest-physical one, or a symbol, which may come to be known later. */
  readonly at:
    | { readonly linear: bigint }
    | { readonly physical: bigint }
    | { readonly symbol: string; readonly offset: bigint };
  readonly condition: string;
  readonly hit?: HitRule;
  readonly log?: string;
}

export interface WatchpointRequest {
  readonly id: number;
  readonly space: "linear" | "physical";
  readonly address: bigint;
  readonly length: number;
  readonly access: "read" | "write" | "readWrite";
  readonly condition: string;
  readonly hit?: HitRule;
}

/** Where a breakpoint on a symbol has come to stand. */
export interface PlacedBreakpoint {
  readonly id: number;
  readonly linear: bigint;
}

/** A Linux kernel that has been found in the guest, with its symbols. */
export interface FoundKernel {
  /** "Linux version ...", empty when it does not say. */
  readonly banner: string;
  /** Linear and guest-physical address of _text, and what KASLR added to the linear one. */
  readonly text: bigint;
  readonly physical: bigint;
  readonly slide: bigint;
  /** The kernel's own table: names separated by newlines, an address and a letter of the kind for each. */
  readonly names: string;
  readonly addresses: BigUint64Array;
  readonly sizes: BigUint64Array;
  /** f(unction), o(bject) or c(onstant), by symbol. */
  readonly kinds: string;
  /** Breakpoints that waited for a symbol: where they are now, and those that go on waiting in vain. */
  readonly placed: readonly PlacedBreakpoint[];
  readonly missing: readonly Refusal[];
}

/** What is wrong with a breakpoint, watchpoint or filter; the others are set all the same. */
export interface Refusal {
  readonly id: string | number;
  readonly message: string;
}

/** Linear addresses [from, to): a source line that a step should not stop in again. */
export interface AddressRange {
  readonly from: bigint;
  readonly to: bigint;
}

/** How to go on from a stop. */
export type Resume =
  /** The first run: a breakpoint at the entry point stops at once. */
  | { readonly kind: "start" }
  | { readonly kind: "continue" }
  /** To the next guest instruction of `vcpu`, over VM exits, calls, repeats and interrupts. */
  | { readonly kind: "next"; readonly vcpu: number; readonly range?: AddressRange }
  /**
   * One instruction, or one stage of a VM exit when it takes one. `stages` is a set of TraceKind bits that count as a
   * stage; without it all stages of an exit do.
   */
  | { readonly kind: "stepIn"; readonly vcpu: number; readonly stages?: number; readonly range?: AddressRange }
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
  setBreakpoints: {
    request: { readonly list: readonly BreakpointRequest[] };
    /** `pending` wait for the kernel's symbols. */
    response: {
      readonly refused: readonly Refusal[];
      readonly placed: readonly PlacedBreakpoint[];
      readonly pending: readonly number[];
    };
  };
  setWatchpoints: {
    request: { readonly list: readonly WatchpointRequest[] };
    response: { readonly refused: readonly Refusal[] };
  };
  setTraceFilters: {
    request: { readonly list: readonly TraceFilter[] };
    response: { readonly refused: readonly Refusal[] };
  };
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
  /** `readOnly` refuses assignments, for hovers. */
  evaluate: {
    request: { readonly vcpu: number; readonly expression: string; readonly readOnly?: boolean };
    response: EvaluateResult;
  };
  completions: {
    request: { readonly vcpu: number; readonly text: string };
    response: { readonly items: readonly { label: string; help: string }[] };
  };
  /** Code mode of the vCPU, for disassembly: 16, 32 or 64, and the linear address of CS:RIP. */
  codeContext: { request: { readonly vcpu: number }; response: CodeContext };
  /** Guest frames, innermost first: addresses of the next instruction of each. */
  unwind: {
    request: { readonly vcpu: number; readonly limit: number };
    response: {
      readonly frames: readonly {
        readonly linear: bigint;
        /** Stack slot of the return address; null for the innermost frame. */
        readonly slot: bigint | null;
        /** An interrupt or exception took the processor away from here. */
        readonly interrupted: boolean;
        /** Found by looking through the stack for what may be a return address: not certain. */
        readonly guess: boolean;
      }[];
    };
  };
  /** Every vCPU at a glance, for the threads view. */
  vcpus: { request: Record<string, never>; response: { readonly list: readonly VcpuSummary[] } };
  setSymbols: {
    request: {
      readonly symbols: readonly EngineSymbol[];
      /** Symbols of a kernel's file, as linked: they move with the kernel when it is found. */
      readonly kernel?: readonly EngineSymbol[];
      readonly frames?: readonly FrameTable[];
    };
    response: Record<string, never>;
  };
  /** Whether to look for a Linux kernel in the guest. Off, breakpoints wait no longer. */
  searchKernel: { request: { readonly on: boolean }; response: { readonly missing: readonly Refusal[] } };
  serialInput: { request: { readonly bytes: Uint8Array }; response: Record<string, never> };
  stats: {
    request: Record<string, never>;
    response: { readonly instructions: number; readonly exits: Readonly<Record<string, number>> };
  };
  hash: { request: Record<string, never>; response: { readonly hash: string } };
}

/** Where a vCPU is, for disassembly and unwinding. All addresses linear. */
export interface CodeContext {
  readonly bits: 16 | 32 | 64;
  /** CS base + RIP. */
  readonly linear: bigint;
  readonly csBase: bigint;
  readonly ssBase: bigint;
  /** SS base + RSP and SS base + RBP, at the stack's width. */
  readonly stack: bigint;
  readonly frame: bigint;
  /** "real", "virtual-8086", "16-bit", "32-bit", "64-bit" and the like, for people. */
  readonly mode: string;
}

export interface VcpuSummary {
  readonly index: number;
  readonly linear: bigint;
  readonly halted: boolean;
  readonly inGuest: boolean;
  readonly retired: number;
  readonly mode: string;
  /** What Linux runs on it, when its symbols tell for certain. */
  readonly task?: { readonly name: string; readonly pid?: number };
}

export interface VmcsFieldValue {
  readonly name: string;
  readonly encoding: number;
  readonly group: string;
  /** Where displays list it inside its group. */
  readonly subgroup: string;
  readonly readOnly: boolean;
  readonly bits?: readonly BitField[];
  readonly value: bigint;
  /** Names of the bits that are set, or of the decoded sub-fields, e.g. "PG|PE" or "vector 14, hardware exception". */
  readonly decoded: string;
  readonly help: string;
  readonly section: string;
  /** Bits. */
  readonly width: number;
}

export interface EvaluateResult {
  /** A number, or a string such as a trace point's direction. */
  readonly value: bigint | string;
  /** Bits, for formatting. */
  readonly width: number;
  readonly signed: boolean;
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
  | { readonly event: "ended"; readonly ending: Ending }
  /** The search for a kernel goes on; instructions retired so far. */
  | { readonly event: "searching"; readonly instructions: number }
  /** The guest runs in the place of a Linux kernel: here it is, or why it is none that can be read. */
  | { readonly event: "kernel"; readonly kernel: FoundKernel }
  | { readonly event: "noKernel"; readonly why: string; readonly missing: readonly Refusal[] };

/** On the wire. */
export type ToEngine = { readonly id: number; readonly method: EngineMethod; readonly request: unknown };
export type FromEngine =
  | { readonly id: number; readonly response: unknown }
  | { readonly id: number; readonly error: string }
  | EngineEvent;
