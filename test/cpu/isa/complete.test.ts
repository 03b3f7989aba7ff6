import { expect, test } from "vitest";
import { OPCODES, rowOn } from "../../../engine/cpu/isa/opcodes";
import { semantics } from "../../../engine/cpu/isa/semantics";
import { findModel, MODEL_NAMES } from "../../../engine/cpu/models/models";
import { systemHandlers } from "../../../engine/cpu/system/handlers";

test.each(MODEL_NAMES)(
  "every opcode of processor model %s is executed by somebody: semantics, or a handler",
  (name) => {
    const features = findModel(name)?.features ?? new Set();
    const nobody = OPCODES.filter((row) => {
      if (rowOn(features, row) !== row) return false;
      return row.system ? systemHandlers[row.mnemonic] === undefined : !semantics.has(row.mnemonic);
    });
    expect([...new Set(nobody.map((row) => row.mnemonic))]).toEqual([]);
  },
);

test("nothing is executed that the opcode table does not have", () => {
  const known = new Set<string>(OPCODES.map((row) => row.mnemonic));
  expect([...semantics.keys(), ...Object.keys(systemHandlers)].filter((name) => !known.has(name))).toEqual([]);
});
