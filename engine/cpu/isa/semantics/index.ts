/** All semantics by mnemonic. A mnemonic of the opcode table is here or has a SystemHandler. */
import { arithmetic } from "./arithmetic";
import { decimals } from "./bcd";
import { bits } from "./bit";
import { bitManipulation } from "./bmi";
import { branches } from "./branch";
import { interruptFlag } from "./interrupt-flag";
import { flagInstructions, moves } from "./move";
import { multiplication } from "./multiply";
import type { Family, Semantics } from "./registry";
import { shifts } from "./shift";
import { strings } from "./string";
import { computedVectors } from "./vector/computed";
import { vectorConversions } from "./vector/convert";
import { vectorFloats } from "./vector/float";
import { vectorIntegers } from "./vector/integer";
import { maskedMoves } from "./vector/masked";
import { vectorMoves } from "./vector/move";
import { vectorShifts } from "./vector/shift";
import { vectorShuffles } from "./vector/shuffle";

const families: readonly Family[] = [
  moves,
  flagInstructions,
  interruptFlag,
  arithmetic,
  multiplication,
  shifts,
  bits,
  bitManipulation,
  branches,
  strings,
  decimals,
  vectorMoves,
  vectorIntegers,
  vectorShifts,
  vectorShuffles,
  maskedMoves,
  vectorFloats,
  vectorConversions,
  computedVectors,
];

export const semantics: ReadonlyMap<string, Semantics> = new Map(families.flatMap((f) => Object.entries(f)));
