import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { disassembleBackward, disassembleForward, type Stretch } from "../../debug-adapter/instructions";
import { readElf } from "../../debug-adapter/symbols/elf";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "fixtures");

interface Fixture {
  readonly bits: 32 | 64;
  readonly address: bigint;
  readonly text: Uint8Array;
  /** Instruction addresses as objdump has them. */
  readonly boundaries: readonly bigint[];
  readonly starts: readonly bigint[];
}

function fixture(name: string): Fixture {
  const bytes = new Uint8Array(readFileSync(join(fixtures, name)));
  const elf = readElf(bytes);
  const section = elf.sections.find((s) => s.name === ".text");
  if (!section) throw new Error("no .text");
  const golden = readFileSync(join(fixtures, "golden", `${name}.objdump.txt`), "utf8");
  const boundaries = [...golden.matchAll(/^\s*([0-9a-f]+):\t/gm)].map((m) => BigInt("0x" + m[1]));
  return {
    bits: elf.bits,
    address: section.address,
    text: bytes.slice(section.offset, section.offset + section.size),
    boundaries,
    starts: elf.symbols.filter((s) => s.kind === "function").map((s) => s.address),
  };
}

const stretch = (address: bigint, bytes: Uint8Array): Stretch => ({
  address,
  bytes,
  readable: new Uint8Array(bytes.length).fill(1),
});

describe.each(["sample32.elf", "sample64.elf"])("disassembly of %s", (name) => {
  const { bits, address, text, boundaries, starts } = fixture(name);

  test("forward rows begin where objdump's do", () => {
    const rows = disassembleForward(stretch(address, text), bits, 0n, 10_000, []);
    expect(rows.map((r) => r.address)).toEqual(boundaries);
    expect(rows.every((r) => r.valid)).toBe(true);
  });

  test("backward rows from every instruction are the true ones when symbols are known", () => {
    for (const end of boundaries.slice(1)) {
      const before = stretch(address, text.subarray(0, Number(end - address)));
      const rows = disassembleBackward(before, bits, 0n, 50, starts);
      expect(rows.map((r) => r.address)).toEqual(boundaries.filter((b) => b < end).slice(-50));
    }
  });

  test("without symbols the stream synchronises itself: the 20 rows before an instruction are true", () => {
    let right = 0;
    let all = 0;
    for (const end of boundaries.filter((b) => b > address + 160n)) {
      const rows = disassembleBackward(
        stretch(address + 1n, text.subarray(1, Number(end - address))),
        bits,
        0n,
        20,
        [],
      );
      const truth = boundaries.filter((b) => b < end).slice(-20);
      all++;
      if (rows.length === 20 && rows.every((r, i) => r.address === truth[i])) right++;
    }
    expect(right / all).toBeGreaterThan(0.98);
  });
});

describe("what is no instruction", () => {
  test("invalid bytes are rows of one byte, and decoding goes on behind them", () => {
    const rows = disassembleForward(stretch(0x1000n, Uint8Array.of(0x06, 0x90, 0x0f, 0x0b)), 64, 0n, 10, []);
    expect(rows.map((r) => [r.text, r.valid])).toEqual([
      [".byte 0x06", false],
      ["nop", true],
      ["ud2", true],
    ]);
  });

  test("an instruction that would run over a known start of code is shown as bytes", () => {
    // The first byte pretends to be a five-byte call; a function begins behind it.
    const rows = disassembleForward(stretch(0x1000n, Uint8Array.of(0xe8, 0x90, 0x90, 0x90, 0x90, 0x90)), 64, 0n, 10, [
      0x1001n,
    ]);
    expect(rows[0]).toMatchObject({ text: ".byte 0xe8", valid: false });
    expect(rows.slice(1).every((r) => r.text === "nop")).toBe(true);
  });

  test("unreadable memory gives a row for each byte, in both directions", () => {
    const bytes = Uint8Array.of(0, 0, 0x90, 0x90);
    const readable = Uint8Array.of(0, 0, 1, 1);
    const there = { address: 0x2000n, bytes, readable };
    expect(disassembleForward(there, 64, 0n, 4, []).map((r) => r.text)).toEqual(["??", "??", "nop", "nop"]);
    expect(disassembleBackward(there, 64, 0n, 4, []).map((r) => r.text)).toEqual(["??", "??", "nop", "nop"]);
  });

  test("16-bit code has targets relative to its segment", () => {
    // jmp $+0x10 at 07c0:0005
    const [row] = disassembleForward(stretch(0x7c05n, Uint8Array.of(0xeb, 0x0e)), 16, 0x7c00n, 1, []);
    expect(row.text).toBe("jmp 0x15");
    expect(row.target).toBe(0x7c15n);
  });
});
