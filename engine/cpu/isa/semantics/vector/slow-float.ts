/** The slow way of floating-point instructions: operands go through the CPU block to cpu/float and come back. */
import type { VectorOp } from "../../../float/vector";
import { Off } from "../../../state";
import type { Context } from "../context";
import type { Vector } from "../vector-expressions";

/** Comparisons that set flags, beside the operations of cpu/float. */
export const FlagCompare = { UCOMI: 62, COMI: 63 } as const;

/** An operation and its format in one number, as generated code passes it. */
export const floatNumber = (op: VectorOp | 62 | 63, format: 32 | 64): number => op | (format === 64 ? 64 : 0);
export const operationOf = (number: number): number => number & 63;
export const formatOf = (number: number): 32 | 64 => (number & 64 ? 64 : 32);

/** Bytes between the places of two operands. */
export const SOURCE_STEP = 32;

export function storeSources(c: Context, sources: readonly (readonly Vector[])[]): void {
  for (const [i, source] of sources.entries()) {
    for (const [h, v] of source.entries()) c.storeVectorAt(Off.VECTOR_SOURCE + i * SOURCE_STEP + h * 16, v);
  }
}

/** Halves of the result, not yet in variables. */
export const results = (c: Context, count: number): Vector[] =>
  Array.from({ length: count }, (_, h) => c.loadVectorAt(Off.VECTOR_RESULT + h * 16));

/** Computes; the instruction is abandoned where it raises an exception. @returns `count` halves of the result */
export function computeSlowly(
  c: Context,
  op: VectorOp,
  format: 32 | 64,
  lanes: number,
  immediate: number,
  sources: readonly (readonly Vector[])[],
  count: number,
): Vector[] {
  storeSources(c, sources);
  c.computeFloat(floatNumber(op, format), lanes, immediate);
  return results(c, count);
}
