/** Comparison, minimum and maximum (SDM 1 8.1.3.3; 2A CMPPD, COMISD, MAXPD, MINPD). */
import { denormals } from "./arithmetic";
import type { Environment } from "./environment";
import { isNan } from "./nan";
import { Flag, Kind, type Num } from "./number";
import { below64 } from "./wide";

/** How a stands to b, as bits, so that a predicate is a set of them. */
export const Relation = { LESS: 1, EQUAL: 2, GREATER: 4, UNORDERED: 8 } as const;
export type Relation = (typeof Relation)[keyof typeof Relation];

/** Order of magnitudes of two numbers that are no NaNs. */
function magnitudes(a: Num, b: Num): Relation {
  if (a.kind !== b.kind) return a.kind < b.kind ? Relation.LESS : Relation.GREATER;
  if (a.kind !== Kind.FINITE) return Relation.EQUAL;
  if (a.exp !== b.exp) return a.exp < b.exp ? Relation.LESS : Relation.GREATER;
  if (a.hi === b.hi && a.lo === b.lo) return Relation.EQUAL;
  return below64(a.hi, a.lo, b.hi, b.lo) ? Relation.LESS : Relation.GREATER;
}

/**
 * Compares, raising DE for denormals and IE for signalling NaNs and unsupported encodings, and for quiet NaNs too when
 * `signalling`.
 */
export function compare(env: Environment, a: Num, b: Num, signalling: boolean): Relation {
  if (isNan(a) || isNan(b)) {
    if (signalling || a.kind > Kind.QUIET || b.kind > Kind.QUIET) env.flags |= Flag.IE;
    return Relation.UNORDERED;
  }
  denormals(env, a, b);
  if (a.kind === Kind.ZERO && b.kind === Kind.ZERO) return Relation.EQUAL;
  if (a.sign !== b.sign) return a.sign !== 0 ? Relation.LESS : Relation.GREATER;
  return a.sign === 0 ? magnitudes(a, b) : magnitudes(b, a);
}

// biome-ignore format: eight a row, as in SDM 2A table 3-1
const PREDICATES: readonly number[] = [
  2, 1, 3, 8, 13, 14, 12, 7, // EQ LT LE UNORD NEQ NLT NLE ORD
  10, 9, 11, 0, 5, 6, 4, 15, // EQ_UQ NGE NGT FALSE NEQ_OQ GE GT TRUE
];

/** Whether a predicate (0..31) holds for a relation. */
export function holds(predicate: number, relation: Relation): boolean {
  return (PREDICATES[predicate & 15] & relation) !== 0;
}

/** Whether a predicate (0..31) raises IE for quiet NaNs. */
export function signals(predicate: number): boolean {
  const low = predicate & 3;
  return (low === 1 || low === 2) !== (predicate & 16) > 0;
}
