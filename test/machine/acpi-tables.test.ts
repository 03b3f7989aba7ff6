import { describe, expect, test } from "vitest";
import { acpiTables } from "../../engine/machine/acpi-tables";

const BASE = 0xe0000;
const CPUS = 3;
const { rsdp, bytes } = acpiTables(BASE, CPUS, 0x10000000);
const view = new DataView(bytes.buffer);
const u32 = (at: number): number => view.getUint32(at - BASE, true);
const u64 = (at: number): number => Number(view.getBigUint64(at - BASE, true));
const text = (at: number, n: number): string => String.fromCharCode(...bytes.subarray(at - BASE, at - BASE + n));
const sum = (at: number, n: number): number =>
  bytes.subarray(at - BASE, at - BASE + n).reduce((a, b) => (a + b) & 0xff, 0);
const entries = (at: number, size: 4 | 8): number[] => {
  const out: number[] = [];
  for (let i = 36; i < u32(at + 4); i += size) out.push(size === 4 ? u32(at + i) : u64(at + i));
  return out;
};
const rsdt = u32(rsdp + 16);
const xsdt = u64(rsdp + 24);
const find = (signature: string): number => entries(xsdt, 8).find((at) => text(at, 4) === signature) as number;
const fadt = find("FACP");

describe("ACPI tables", () => {
  test("the RSDP is 16-byte aligned, of revision 2, with both checksums good (5.2.5.3)", () => {
    expect(rsdp % 16).toBe(0);
    expect(text(rsdp, 8)).toBe("RSD PTR ");
    expect([sum(rsdp, 20), sum(rsdp, 36)]).toEqual([0, 0]);
    expect(bytes[15]).toBe(2);
  });

  test("RSDT and XSDT list the same tables", () => {
    expect(text(rsdt, 4)).toBe("RSDT");
    expect(text(xsdt, 4)).toBe("XSDT");
    expect(entries(rsdt, 4)).toEqual(entries(xsdt, 8));
  });

  test("every table's bytes sum to zero over its length (5.2.6)", () => {
    for (const at of [rsdt, xsdt, ...entries(xsdt, 8), u32(fadt + 40)]) {
      expect([text(at, 4), sum(at, u32(at + 4))]).toEqual([text(at, 4), 0]);
    }
  });

  test("the FADT has its revision's length, and 32-bit and 64-bit pointers agree (5.2.9)", () => {
    expect([u32(fadt + 4), bytes[fadt - BASE + 8]]).toEqual([268, 5]);
    expect(u64(fadt + 140)).toBe(u32(fadt + 40));
    expect(text(u32(fadt + 40), 4)).toBe("DSDT");
    expect(u32(fadt + 76)).toBe(0x608);
    expect(u64(fadt + 208 + 4)).toBe(0x608);
    expect(u64(fadt + 148 + 4)).toBe(0x600);
    expect(u64(fadt + 172 + 4)).toBe(0x604);
    expect(u64(fadt + 116 + 4)).toBe(0xcf9);
  });

  test("the FACS is 64-byte aligned and 64 bytes long (5.2.10)", () => {
    const facs = u32(fadt + 36);
    expect([text(facs, 4), facs % 64, u32(facs + 4)]).toEqual(["FACS", 0, 64]);
  });

  test("the MADT has one enabled local APIC a processor, the I/O APIC, and IRQ 0 at pin 2 (5.2.12)", () => {
    const madt = find("APIC");
    const ids: number[] = [];
    const types: number[] = [];
    for (let at = madt + 44; at < madt + u32(madt + 4); at += bytes[at - BASE + 1]) {
      const type = bytes[at - BASE];
      types.push(type);
      if (type === 0) {
        ids.push(bytes[at - BASE + 3]);
        expect(u32(at + 4)).toBe(1);
      }
      if (type === 1) expect(u32(at + 4)).toBe(0xfec00000);
      if (type === 2 && bytes[at - BASE + 3] === 0) expect(u32(at + 4)).toBe(2);
    }
    expect(ids).toEqual([0, 1, 2]);
    expect(types.filter((t) => t === 1)).toHaveLength(1);
  });

  test("the DSDT's AML is one well-formed list of packages (20.2)", () => {
    const dsdt = u32(fadt + 40);
    const aml = bytes.subarray(dsdt - BASE + 36, dsdt - BASE + u32(dsdt + 4));
    const packageEnd = (at: number): number => {
      const extra = aml[at] >> 6;
      let length = extra === 0 ? aml[at] & 0x3f : aml[at] & 0xf;
      for (let i = 0; i < extra; i++) length |= aml[at + 1 + i] << (4 + 8 * i);
      return at + length;
    };
    // Name(_S5_, Package{...}), then Scope(\_SB_).
    expect(aml[0]).toBe(0x08);
    expect(String.fromCharCode(...aml.subarray(1, 5))).toBe("_S5_");
    expect(aml[5]).toBe(0x12);
    const scope = packageEnd(6);
    expect(aml[scope]).toBe(0x10);
    expect(packageEnd(scope + 1)).toBe(aml.length);
  });
});
