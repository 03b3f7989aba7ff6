import { describe, expect, test } from "vitest";
import { SMBIOS_BASE, smbiosTables } from "../../engine/machine/smbios";

const MIB = 1024 * 1024;
const bytes = smbiosTables(4096 * MIB, 2);
const view = new DataView(bytes.buffer);
const sum = (at: number, n: number): number => bytes.subarray(at, at + n).reduce((a, b) => (a + b) & 0xff, 0);

/** Walks the structures: type, formatted area, strings. */
function walk(): { type: number; at: number; strings: string[] }[] {
  const out: { type: number; at: number; strings: string[] }[] = [];
  let at = view.getUint32(0x18, true) - SMBIOS_BASE;
  for (;;) {
    const type = bytes[at];
    let p = at + bytes[at + 1];
    const strings: string[] = [];
    while (bytes[p] !== 0) {
      let s = "";
      while (bytes[p] !== 0) s += String.fromCharCode(bytes[p++]);
      strings.push(s);
      p++;
    }
    out.push({ type, at, strings });
    if (type === 127) return out;
    at = p + (strings.length === 0 ? 2 : 1);
  }
}

describe("SMBIOS 2.8", () => {
  test("the entry point and its intermediate part have good checksums (5.2.1)", () => {
    expect(SMBIOS_BASE % 16).toBe(0);
    expect(String.fromCharCode(...bytes.subarray(0, 4))).toBe("_SM_");
    expect([sum(0, bytes[5]), sum(0x10, 0xf)]).toEqual([0, 0]);
  });

  test("number, total length and largest size of the structures are as announced", () => {
    const list = walk();
    expect(list).toHaveLength(view.getUint16(0x1c, true));
    const start = list[0].at;
    expect(view.getUint16(0x16, true)).toBe(bytes.length - start);
    const sizes = list.map((s, i) => (list[i + 1]?.at ?? bytes.length) - s.at);
    expect(view.getUint16(8, true)).toBe(Math.max(...sizes));
  });

  test("required structures are there, one processor structure a CPU, string numbers in range", () => {
    const types = walk().map((s) => s.type);
    for (const required of [0, 1, 3, 4, 16, 17, 19, 32, 127]) expect(types).toContain(required);
    expect(types.filter((t) => t === 4)).toHaveLength(2);
    expect(types.filter((t) => t === 19)).toHaveLength(2);
  });

  test("formatted areas have the lengths of version 2.8", () => {
    const lengths = Object.fromEntries(walk().map((s) => [s.type, bytes[s.at + 1]]));
    expect(lengths).toMatchObject({ 0: 0x18, 1: 0x1b, 4: 0x30, 16: 0x17, 17: 0x28, 19: 0x1f, 127: 4 });
  });

  test("the memory device has the machine's size", () => {
    const device = walk().find((s) => s.type === 17);
    expect(view.getUint16((device?.at ?? 0) + 12, true)).toBe(4096);
  });
});
