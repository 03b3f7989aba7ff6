import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { lineSections, readLines } from "../../debug-adapter/symbols/dwarf-line";
import { readElf } from "../../debug-adapter/symbols/elf";
import { LineTable } from "../../debug-adapter/symbols/line-table";
import { random } from "../debug/random";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "fixtures");
const file = (name: string): Uint8Array => new Uint8Array(readFileSync(join(fixtures, name)));

function linesOf(bytes: Uint8Array): ReturnType<typeof readLines> {
  const elf = readElf(bytes);
  const sections = lineSections(bytes, elf.sections);
  if (!sections) throw new Error("no line table");
  return readLines(sections, elf.bits / 8);
}

/** Rows of `readelf --debug-dump=decodedline`: line, address, statement; the end of a sequence as "end". */
function golden(name: string): string[] {
  const text = readFileSync(join(fixtures, "golden", `${name}.lines.txt`), "utf8");
  return text.split("\n").flatMap((line) => {
    const row = /^(\S+)\s+(\d+|-)\s+(0x[0-9a-f]+|0)(?:\[\d+\])?(?:\s+\d+)?(\s+x)?(?:\s+END)?\s*$/.exec(line);
    if (!row) return [];
    return [row[2] === "-" ? `end ${BigInt(row[3])}` : `${row[1]}:${row[2]} ${BigInt(row[3])}${row[4] ? " x" : ""}`];
  });
}

describe.each(["sample32.elf", "sample64.elf"])("the line table of %s", (name) => {
  test("has the rows readelf shows", () => {
    const ours = linesOf(file(name)).map((r) =>
      r.end ? `end ${r.address}` : `${r.file.replace(/^.*\//, "")}:${r.line} ${r.address}${r.isStatement ? " x" : ""}`,
    );
    expect(ours).toEqual(golden(name));
    expect(ours.length).toBeGreaterThan(50);
  });

  test("a damaged table gives an error or fewer rows, never a crash or a hang", () => {
    const next = random(11);
    const bytes = file(name);
    const section = readElf(bytes).sections.find((s) => s.name === ".debug_line");
    for (let i = 0; i < 300 && section; i++) {
      const broken = Uint8Array.from(bytes);
      for (let k = 0; k < 3; k++) broken[section.offset + next(section.size)] = next(256);
      try {
        linesOf(broken);
      } catch (error) {
        expect((error as Error).message).toMatch(/line table/);
      }
    }
  });
});

describe("searching a line table", () => {
  const row = (address: bigint, line: number, end = false, path = "src/a.c") => ({
    address,
    file: path,
    line,
    isStatement: true,
    end,
  });
  const table = new LineTable();
  table.add(
    "/x/program.elf",
    [
      row(0x1000n, 10),
      row(0x1004n, 11),
      row(0x1008n, 11),
      row(0x100cn, 14),
      row(0x1010n, 11),
      row(0x1014n, 0, true),
      row(0x1014n, 10, false, "lib/a.c"),
      row(0x1018n, 0, true),
    ],
    0x100n,
  );

  test("an address belongs to a line; behind the end of a sequence to none", () => {
    expect(table.at(0x1105n)).toMatchObject({ line: 11, file: "src/a.c" });
    expect(table.at(0x1118n)).toBeUndefined();
    expect(table.at(0xfffn)).toBeUndefined();
  });

  test("a step over a line runs through all its adjacent pieces", () => {
    expect(table.lineAround(0x1106n)).toEqual({ from: 0x1104n, to: 0x110cn });
  });

  test("a line without code means the next one that has some", () => {
    expect(table.addressesOf("/home/me/src/a.c", 12)).toEqual({ line: 14, addresses: [0x110cn] });
    expect(table.addressesOf("/home/me/src/a.c", 15)).toBeUndefined();
    expect(table.addressesOf("/home/me/src/b.c", 10)).toBeUndefined();
  });

  test("a line has an address for each statement that begins on it", () => {
    expect(table.addressesOf("src/a.c", 11)?.addresses).toEqual([0x1104n, 0x1108n, 0x1110n]);
  });

  test("several lines may begin at one address: each can be broken at, the last one is shown", () => {
    const same = new LineTable();
    same.add("x", [row(0x10n, 1), row(0x10n, 2), row(0x20n, 0, true)], 0n);
    expect(same.addressesOf("src/a.c", 1)).toEqual({ line: 1, addresses: [0x10n] });
    expect(same.at(0x10n)?.line).toBe(2);
  });

  test("of files with the same name the one with more of the path is meant", () => {
    expect(table.addressesOf("/home/me/lib/a.c", 10)?.addresses).toEqual([0x1114n]);
    expect(table.linesOf("/home/me/src/a.c", 1, 20)).toEqual([10, 11, 14]);
  });
});
