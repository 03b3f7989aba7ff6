/**
 * Everything the Breakpoints view offers to stop at: VM exits by reason, exceptions by vector, failed VM entries, triple
 * faults. Each is one trace filter of the engine; conditions are expressions over the trace point's details.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import { EXCEPTION_BITMAP_BITS } from "../engine/cpu/vmx/bits";
import { EXIT_REASONS } from "../engine/cpu/vmx/exit-reasons";
import type { TraceFilter } from "../engine/debug/api";
import { TraceKind } from "../engine/trace";

interface FilterRow {
  readonly filter: string;
  readonly label: string;
  readonly description: string;
  readonly kind: number;
  readonly match: TraceFilter["match"];
  readonly on?: boolean;
  readonly example: string;
}

const GENERAL: readonly FilterRow[] = [
  {
    filter: "entry-failed",
    label: "VM entry failed",
    description: "A VM entry failed a check of the processor; the report names every check that does not hold.",
    kind: TraceKind.VmEntryFailed,
    match: {},
    on: true,
    example: "vmcs.VM_EXIT_REASON == 0x80000021",
  },
  {
    filter: "triple-fault",
    label: "Triple fault",
    description: "The processor shut down because a double fault could not be delivered.",
    kind: TraceKind.TripleFault,
    match: {},
    on: true,
    example: "rip < 0x1000",
  },
  {
    filter: "exit:*",
    label: "Any VM exit",
    description: "Every VM exit, whatever its reason.",
    kind: TraceKind.VmExit,
    match: {},
    example: "reason != EXTERNAL_INTERRUPT",
  },
];

const EXAMPLES: Readonly<Record<string, string>> = {
  IO_INSTRUCTION: "port == 0x3f8 && size == 1",
  CPUID: "eax == 0x40000000",
  MSR_READ: "ecx == 0x1b",
  MSR_WRITE: "ecx == 0x1b",
  CR_ACCESS: "cr == 3",
  EPT_VIOLATION: "gpa >= 0xfee00000",
  EXCEPTION_NMI: "vector == 14",
};

const EXITS: readonly FilterRow[] = EXIT_REASONS.map((row) => ({
  filter: `exit:${row.name}`,
  label: `VM exit: ${row.name}`,
  description: `${row.help} (exit reason ${row.reason}, SDM ${row.section})`,
  kind: TraceKind.VmExit,
  match: { reason: row.reason },
  example: EXAMPLES[row.name] ?? "rip > 0x1000",
}));

const VECTORS: readonly FilterRow[] = EXCEPTION_BITMAP_BITS.map((bit) => ({
  filter: `vector:${bit.low}`,
  label: `#${bit.name} (vector ${bit.low})`,
  description: `Exception about to be delivered: ${bit.help}`,
  kind: TraceKind.Vector,
  match: { vector: bit.low },
  example: bit.name === "PF" ? "cr2 < 0x1000" : "rip > 0x1000",
}));

const ROWS: ReadonlyMap<string, FilterRow> = new Map(
  [...GENERAL, ...EXITS, ...VECTORS].map((row) => [row.filter, row]),
);

export const exceptionFilters: readonly DebugProtocol.ExceptionBreakpointsFilter[] = [...ROWS.values()].map((row) => ({
  filter: row.filter,
  label: row.label,
  description: row.description,
  default: row.on ?? false,
  supportsCondition: true,
  conditionDescription: `Expression that must hold, such as ${row.example}`,
}));

/** What a filter asks of the engine. @throws Error when there is no such filter */
export function traceFilterOf(filter: string): { kind: number; match: TraceFilter["match"] } {
  const row = ROWS.get(filter);
  if (!row) throw new Error(`there is no exception filter "${filter}"`);
  return { kind: row.kind, match: row.match };
}

/** Exit reasons by name, for `exit:NAME` function breakpoints: without case, with or without EXIT_REASON_. */
export function exitFilter(name: string): { kind: number; match: TraceFilter["match"] } {
  const plain = name
    .trim()
    .toUpperCase()
    .replace(/^EXIT_REASON_/, "");
  const row = ROWS.get(`exit:${plain}`) ?? [...EXITS].find((r) => String(r.match.reason) === plain);
  if (!row) throw new Error(`there is no exit reason "${name}"`);
  return { kind: row.kind, match: row.match };
}
