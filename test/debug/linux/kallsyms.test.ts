/** kallsyms tables are found by structure in any of the layouts kernels have had, and nothing else is taken for one. */
import { describe, expect, test } from "vitest";
import { findKallsyms } from "../../../engine/debug/linux/kallsyms";
import { sized } from "../../../engine/debug/linux/kernel";
import { random } from "../random";
import { type TableLayout, type TableSymbol, writeKallsyms } from "./kallsyms-writer";

const TEXT = 0xffff_ffff_9a00_0000n;
const WORDS = "do_ sys_ vfs_ open read write init task sched irq handle page fault net dev queue lock timer tick".split(
  " ",
);

/** Ascending symbols with names of the usual kind. */
function symbols(count: number, perCpu: number, seed = 1): TableSymbol[] {
  const below = random(seed);
  const list: TableSymbol[] = [];
  for (let i = 0; i < perCpu; i++) list.push({ name: `pcpu_${i}`, type: "A", address: BigInt(i) * 0x40n });
  let address = TEXT;
  for (let i = 0; i < count; i++) {
    const words = Array.from({ length: 1 + below(4) }, () => WORDS[below(WORDS.length)]);
    list.push({ name: `${words.join("")}_${i}`, type: "tTdDbrRW"[below(8)], address });
    address += BigInt(below(5) === 0 ? 0 : 16 * (1 + below(20)));
  }
  return list;
}

/** The table between bytes that mean nothing. */
function image(table: Uint8Array, before = 0x5008, seed = 2): Uint8Array {
  const below = random(seed);
  const bytes = new Uint8Array(before + table.length + 0x1000);
  for (let i = 0; i < bytes.length; i++) bytes[i] = below(3) === 0 ? 0 : below(256);
  bytes.fill(0, before - 16, before);
  bytes.set(table, before);
  return bytes;
}

const LAYOUTS: readonly (readonly [string, TableLayout, number])[] = [
  ["4.19: addresses before the names, 8-byte markers", { addresses: "before", form: "absolute", marker: 8 }, 0],
  ["5.10 to 6.1: offsets with per-CPU symbols", { addresses: "before", form: "percpu", marker: 4 }, 20],
  ["6.2: numbers by name between", { addresses: "before", form: "percpu", marker: 4, sequences: true }, 20],
  ["6.4 to 6.14: offsets behind the tokens", { addresses: "behind", form: "percpu", marker: 4 }, 20],
  ["since 6.15: plain offsets", { addresses: "behind", form: "plain", marker: 4 }, 0],
  ["addresses behind the tokens", { addresses: "behind", form: "absolute", marker: 4 }, 0],
];

describe("a table is read back, whatever its layout", () => {
  for (const [name, layout, perCpu] of LAYOUTS)
    test(name, () => {
      const written = symbols(1500, perCpu);
      const found = findKallsyms(image(writeKallsyms(written, layout)));
      expect(found?.symbols).toEqual(written);
    });
});

const usual: TableLayout = { addresses: "before", form: "percpu", marker: 4 };

test("names of 128 tokens and more have a two-byte length (Linux 6.1)", () => {
  const below = random(5);
  const long = Array.from({ length: 400 }, () => String.fromCharCode(0x41 + below(26))).join("");
  const written = [...symbols(300, 0), { name: long, type: "t", address: TEXT + 0x100_0000n }];
  expect(findKallsyms(image(writeKallsyms(written, usual)))?.symbols.at(-1)?.name).toBe(long);
});

test("no table is found where its parts disagree", () => {
  const table = writeKallsyms(symbols(1500, 20), usual);
  expect(findKallsyms(image(table))).toBeDefined();
  const view = new DataView(table.buffer);
  const count = Array.from({ length: table.length / 8 }, (_, i) => 8 * i).find(
    (at) => view.getUint32(at, true) === 1520 && view.getUint32(at + 4, true) === 0,
  );
  if (count === undefined) throw new Error("no num_syms");
  const damage: readonly (readonly [string, (bytes: Uint8Array) => void])[] = [
    ["a symbol too many", (b) => new DataView(b.buffer).setUint32(count, 1521, true)],
    ["addresses that do not ascend", (b) => b.copyWithin(400, 4000, 4100)],
    ["a token index that is off by one", (b) => b.set([b[b.length - 2] + 1], b.length - 2)],
    ["a base that is no kernel's", (b) => b.fill(0, count - 8, count)],
  ];
  for (const [what, change] of damage) {
    const bytes = table.slice();
    change(bytes);
    expect(findKallsyms(image(bytes)), what).toBeUndefined();
  }
});

test("a table cut off at any place gives none, never an exception", () => {
  const whole = image(writeKallsyms(symbols(400, 4), usual));
  for (let length = 0; length < whole.length - 0x1000; length += 997)
    expect(findKallsyms(whole.subarray(0, length))).toBeUndefined();
});

test("a symbol reaches to the next higher address; symbols at one address share it", () => {
  const at = (offset: bigint, name: string, type = "t"): TableSymbol => ({ name, type, address: TEXT + offset });
  const per: TableSymbol = { name: "current_task", type: "A", address: 0x1fb80n };
  expect(
    sized([per, at(0n, "_text", "T"), at(0n, "startup_64"), at(0x30n, "next"), at(0x40n, "data", "D")]),
  ).toMatchObject([
    { name: "current_task", kind: "constant" },
    { name: "_text", size: 0x30n, kind: "function" },
    { name: "startup_64", size: 0x30n, kind: "function" },
    { name: "next", size: 0x10n, kind: "function" },
    { name: "data", size: 0n, kind: "object" },
  ]);
});
