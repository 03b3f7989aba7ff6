/** Call frame information against readelf's reading of the same files. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { readElf } from "../../../debug-adapter/symbols/elf";
import { frameTables } from "../../../debug-adapter/symbols/symbol-files";
import { type FrameRow, FrameTables } from "../../../engine/debug/frames/cfi";
import { dwarfRegister } from "../../../engine/debug/unwind-tables";

const fixtures = join(dirname(dirname(dirname(fileURLToPath(import.meta.url)))), "debug-adapter", "fixtures");

function tablesOf(name: string): FrameTables {
  const bytes = new Uint8Array(readFileSync(join(fixtures, name)));
  return new FrameTables(frameTables(bytes, readElf(bytes), 0n));
}

interface Golden {
  readonly address: bigint;
  readonly cfa: string;
  /** By register: "c-16", "u", "s". */
  readonly rules: Readonly<Record<string, string>>;
}

/** Rows of readelf's "frames-interp": a block for each function, its columns named in the first line. */
function golden(name: string): { rows: Golden[]; functions: { from: bigint; to: bigint }[] } {
  const rows: Golden[] = [];
  const functions: { from: bigint; to: bigint }[] = [];
  let columns: string[] = [];
  let inFunction = false;
  for (const line of readFileSync(join(fixtures, "golden", `${name}.frames.txt`), "utf8").split("\n")) {
    const entry = /^[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ (CIE|FDE)(?:.*pc=([0-9a-f]+)\.\.([0-9a-f]+))?/.exec(line);
    if (entry) {
      inFunction = entry[1] === "FDE";
      if (inFunction) functions.push({ from: BigInt(`0x${entry[2]}`), to: BigInt(`0x${entry[3]}`) });
    } else if (line.trimStart().startsWith("LOC")) columns = line.trim().split(/\s+/).slice(2);
    else if (inFunction && /^[0-9a-f]+ /.test(line)) {
      const [address, cfa, ...rules] = line.trim().split(/\s+/);
      rows.push({
        address: BigInt(`0x${address}`),
        cfa,
        rules: Object.fromEntries(columns.map((column, i) => [column, rules[i]])),
      });
    }
  }
  return { rows, functions };
}

const signed = (value: bigint): string => (value < 0n ? String(value) : `+${value}`);

/** A row as readelf writes it. */
function written(row: FrameRow, columns: readonly string[]): Pick<Golden, "cfa" | "rules"> {
  // readelf calls 32-bit registers by their own names.
  const name = (register: number): string => {
    if (register === row.returnRegister) return "ra";
    const known = dwarfRegister(register, row.pointer) ?? `r${register}`;
    return row.pointer === 4 ? known.replace(/^r/, "e") : known;
  };
  const rules = Object.fromEntries(columns.map((column) => [column, "u"]));
  for (const [register, rule] of row.rules) {
    if (rule.kind === "offset") rules[name(register)] = `${rule.value ? "v" : "c"}${signed(rule.offset)}`;
    else if (rule.kind === "expression") rules[name(register)] = rule.value ? "vexp" : "exp";
    else if (rule.kind === "same") rules[name(register)] = "s";
  }
  const cfa = row.cfa.kind === "register" ? `${name(row.cfa.register)}${signed(row.cfa.offset)}` : "exp";
  return { cfa, rules };
}

describe("every row readelf prints", () => {
  for (const file of ["sample64.elf", "sample32.elf", "frames64.elf"])
    test(file, () => {
      const tables = tablesOf(file);
      const { rows, functions } = golden(file);
      expect(rows.length).toBeGreaterThan(10);
      for (const { address, cfa, rules } of rows) {
        const row = tables.at(address);
        if (!row) throw new Error(`nothing at ${address.toString(16)}`);
        expect({ ...written(row, Object.keys(rules)) }, address.toString(16)).toEqual({ cfa, rules });
      }
      const byAddress = (a: { from: bigint }, b: { from: bigint }): number => Number(a.from - b.from);
      expect(tables.ranges.map(({ from, to }) => ({ from, to }))).toEqual(functions.sort(byAddress));
    });
});

test("a row holds up to the next one, and no longer than the function", () => {
  const tables = tablesOf("sample64.elf");
  expect(tables.at(0x401013n)?.cfa).toEqual({ kind: "register", register: 7, offset: 16n });
  expect(tables.at(0x401014n)?.cfa).toEqual({ kind: "register", register: 7, offset: 24n });
  expect(tables.at(0x40117cn)).toBeUndefined();
  expect(tables.at(0x400fffn)).toBeUndefined();
});

test("64-bit code in an ELF32 file: the return address's column tells the width", () => {
  const sample = join(dirname(dirname(fixtures)), "..", "samples", "hello-guest", "hello.elf");
  const bytes = new Uint8Array(readFileSync(sample));
  const elf = readElf(bytes);
  expect(elf.bits).toBe(32);
  const tables = new FrameTables(frameTables(bytes, elf, 0n));
  const main = elf.symbols.find((s) => s.name === "guest_main");
  expect(tables.at(main?.address ?? 0n)).toMatchObject({ pointer: 8, from: main?.address });
});

test("a damaged table gives what it can, never an exception", () => {
  const bytes = new Uint8Array(readFileSync(join(fixtures, "frames64.elf")));
  const [table] = frameTables(bytes, readElf(bytes), 0n);
  for (let i = 0; i < table.bytes.length; i++)
    for (const value of [0, 0x7f, 0xff]) {
      const damaged = table.bytes.slice();
      damaged[i] = value;
      const tables = new FrameTables([{ ...table, bytes: damaged }]);
      for (const pc of [0x401000n, 0x401014n, 0x4011b5n]) expect(() => tables.at(pc)).not.toThrow();
    }
});
