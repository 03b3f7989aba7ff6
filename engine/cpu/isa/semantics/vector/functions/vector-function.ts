/** A vector instruction as a function of TypeScript: deterministic, without exceptions. */
import { Off } from "../../../../state";

export interface VectorFunction {
  /** Mnemonic. */
  readonly name: string;
  /**
   * Reads the operands (`source`), writes the result (RESULT) of `length` bytes.
   * @returns what the instruction needs besides: an index, flags
   */
  run(view: DataView, length: number, immediate: number): number;
}

const STEP = 32;

/** Offset of the first, second or third operand in the CPU block. */
export const source = (n: 0 | 1 | 2): number => Off.VECTOR_SOURCE + n * STEP;

export const RESULT = Off.VECTOR_RESULT;
