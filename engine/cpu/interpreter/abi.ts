/** Function signatures between the interpreter module, out-of-line handlers, compiled regions and TypeScript. */
import type { FunctionType } from "../wasm/function";
import { WasmType } from "../wasm/opcodes";

const { I32, I64 } = WasmType;
const type = (parameters: readonly WasmType[], results: readonly WasmType[]): FunctionType => ({ parameters, results });

/**
 * run(record): interprets from there until the tier comes back. BUDGET is the number of instructions that may retire;
 * on return BUDGET, RIP and STATUS tell how it went.
 */
export const RUN = type([I32], []);

/**
 * An out-of-line handler: takes its record, gives the record to go on with, or 0 after it has set STATUS and RIP. While it
 * runs the instruction has not been taken off BUDGET in memory; where it returns 0 with STATUS MISS (a jump to undecoded
 * code) it has taken it off itself.
 */
export const HANDLER = type([I32], [I32]);

/** fill(record, access): the TLB does not know the access at EA. @returns host offset, or -1 with STATUS set */
export const FILL = type([I32, I32], [I32]);

/** A slow-road access at EA: read leaves the value in VALUE, write takes it from there, check only checks a write. */
export const SLOW_ACCESS = type([I32, I32], []);

/**
 * vector(number, length, immediate) and float(number, length, immediate): TypeScript's computations on VECTOR_SOURCE.
 * vector @returns VECTOR_FLAGS; float @returns 0, or 1 after an exception, with FAULT_* and STATUS set.
 */
export const COMPUTE = type([I32, I32, I32], [I32]);

/** Adjacent helpers, exported by the interpreter module. */
export const RESOLVE = type([I64], [I32]);
export const EFFECTIVE_OFFSET = type([I32], [I64]);
export const WRAP_OFFSET = type([I32, I64], [I64]);
/** segment(record, offset, access): the linear address goes to EA. @returns 0, or 1 with FAULT_* and STATUS set */
export const SEGMENT = type([I32, I64, I32], [I32]);
export const DIVIDE_HIGH = type([I64, I64, I64], [I64]);
/** miss(linear, record, budget, access): as FILL, after EA, RIP and BUDGET have been stored. */
export const MISS = type([I64, I32, I32, I32], [I32]);

/**
 * Description of an access in one i32: size in bits 7:0, write in bit 8, segment + 1 in bits 15:12 (0: the segment of the
 * record's memory operand).
 */
export const AccessBits = { SIZE: 0xff, WRITE: 1 << 8, SEGMENT_SHIFT: 12 } as const;
