/** All semantics by mnemonic. A mnemonic of the opcode table is here or has a SystemHandler. */
import { arithmetic } from "./arithmetic";
import { decimals } from "./bcd";
import { bits } from "./bit";
import { branches } from "./branch";
import { flagInstructions, moves } from "./move";
import { multiplication } from "./multiply";
import type { Family, Semantics } from "./registry";
import { shifts } from "./shift";
import { strings } from "./string";

const families: readonly Family[] = [
  moves,
  flagInstructions,
  arithmetic,
  multiplication,
  shifts,
  bits,
  branches,
  strings,
  decimals,
];

export const semantics: ReadonlyMap<string, Semantics> = new Map(families.flatMap((f) => Object.entries(f)));
