/** Vector instructions that TypeScript computes, by number. */
import { AES_FUNCTIONS } from "./aes";
import { CARRYLESS_FUNCTIONS } from "./carryless";
import { SHA_FUNCTIONS } from "./sha";
import { STRING_FUNCTIONS } from "./strings";
import { SUM_FUNCTIONS } from "./sums";
import type { VectorFunction } from "./vector-function";

export const VECTOR_FUNCTIONS: readonly VectorFunction[] = [
  ...AES_FUNCTIONS,
  ...CARRYLESS_FUNCTIONS,
  ...SHA_FUNCTIONS,
  ...STRING_FUNCTIONS,
  ...SUM_FUNCTIONS,
];

const numbers = new Map(VECTOR_FUNCTIONS.map((f, number) => [f.name, number]));

/** Number of a function, as generated code passes it. */
export function functionNumber(name: string): number {
  const number = numbers.get(name);
  if (number === undefined) throw new Error(`there is no vector function ${name}`);
  return number;
}
