import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { type ElfSymbol, readElf } from "../../debug-adapter/symbols/elf";
import { SymbolTable } from "../../debug-adapter/symbols/symbol-table";
import { random } from "../debug/random";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "fixtures");
const elf = (name: string): Uint8Array => new Uint8Array(readFileSync(join(fixtures, name)));

/** Rows of `readelf -sW` as the reader should give them. */
function golden(name: string): string[] {
  const text = readFileSync(join(fixtures, "golden", `${name}.symbols.txt`), "utf8");
  const kinds: Record<string, ElfSymbol["kind"]> = { FUNC: "function", OBJECT: "object", NOTYPE: "label" };
  return text.split("\n").flatMap((line) => {
    const row = /^\s*\d+: ([0-9a-f]+)\s+(\d+) (\w+)\s+(\w+)\s+\w+\s+(\w+) (\S+)$/.exec(line);
    if (!row || row[5] === "UND" || !kinds[row[3]]) return [];
    const kind = row[5] === "ABS" && row[3] === "NOTYPE" ? "constant" : kinds[row[3]];
    return [`${BigInt("0x" + row[1]).toString(16)} ${row[2]} ${kind} ${row[4].toLowerCase()} ${row[6]}`];
  });
}

describe.each(["sample32.elf", "sample64.elf"])("symbols of %s", (name) => {
  test("are those readelf shows", () => {
    const ours = readElf(elf(name)).symbols.map(
      (s) => `${s.address.toString(16)} ${s.size} ${s.kind} ${s.binding} ${s.name}`,
    );
    expect(ours).toEqual(golden(name));
    expect(ours.length).toBeGreaterThan(6);
  });

  test("a truncated file gives a clear error, never a wrong symbol or a crash", () => {
    const bytes = elf(name);
    for (let length = 0; length < bytes.length; length += 97) {
      try {
        readElf(bytes.subarray(0, length));
      } catch (error) {
        expect((error as Error).message).toMatch(/ELF/);
      }
    }
  });

  test("a file with lying headers gives a clear error or fewer symbols, never a crash", () => {
    const next = random(7);
    for (let i = 0; i < 400; i++) {
      const bytes = elf(name);
      for (let k = 0; k < 4; k++) bytes[next(2) ? next(64) : next(bytes.length)] = next(256);
      try {
        readElf(bytes);
      } catch (error) {
        expect((error as Error).message).toMatch(/ELF|section|symbol/);
      }
    }
  });
});

describe("files that are not for us", () => {
  test("say what they are", () => {
    const bytes = elf("sample64.elf");
    expect(() => readElf(new Uint8Array(100))).toThrow("not an ELF file");
    bytes[18] = 183;
    expect(() => readElf(bytes)).toThrow("machine 183");
    bytes[5] = 2;
    expect(() => readElf(bytes)).toThrow("big-endian");
  });
});

describe("the symbol table", () => {
  const symbol = (name: string, address: bigint, size: bigint, kind: ElfSymbol["kind"] = "function"): ElfSymbol => ({
    name,
    address,
    size,
    kind,
    binding: "global",
  });
  const table = new SymbolTable();
  table.add(
    "a",
    [
      symbol("f", 0x1000n, 16n),
      symbol("g", 0x1020n, 16n),
      symbol("loop", 0x1004n, 0n, "label"),
      symbol("data", 0x2000n, 64n, "object"),
    ],
    0n,
  );
  table.add("b", [symbol("kernel", 0x100n, 0x50n)], 0xffff_ffff_8000_0000n);

  test("names addresses inside a symbol, and only there", () => {
    expect(table.describe(0x1000n)).toBe("f");
    expect(table.describe(0x1003n)).toBe("f+0x3");
    expect(table.describe(0x1010n)).toBe("");
    expect(table.describe(0x1020n)).toBe("g");
    expect(table.describe(0xfffn)).toBe("");
  });

  test("a slide moves every address of its file", () => {
    expect(table.describe(0xffff_ffff_8000_0110n)).toBe("kernel+0x10");
    expect(table.find("kernel")?.address).toBe(0xffff_ffff_8000_0100n);
  });

  test("code starts leave data out", () => {
    expect(table.codeStarts(0x1000n, 0x3000n)).toEqual([0x1000n, 0x1004n, 0x1020n]);
  });
});
