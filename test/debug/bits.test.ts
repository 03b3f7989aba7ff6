import { expect, test } from "vitest";
import { CR0_BITS, ENTRY_INTR_INFO_BITS } from "../../engine/cpu/vmx/bits";
import { describeBits, extract, insert } from "../../engine/debug/bits";
import { packMessage, SharedRing, unpackMessage } from "../../engine/debug/pump";

test("set flags are named, high bits first; fields without a name for zero are left out", () => {
  expect(describeBits(0x8000_0011n, CR0_BITS)).toBe("PG|ET|PE");
  expect(describeBits(0x8000_0011n | (1n << 40n), CR0_BITS)).toBe("PG|ET|PE");
  expect(describeBits(0x20n, ENTRY_INTR_INFO_BITS)).toBe("not valid");
});

test("fields with named values are written with their names", () => {
  expect(describeBits(0x8000_0b0en, ENTRY_INTR_INFO_BITS)).toMatch(/hardware exception/i);
});

test("a field of bits comes out as it went in, and nothing else changes", () => {
  const field = { name: "f", low: 60, width: 4, help: "" };
  const value = insert(0x0fff_ffff_ffff_ffffn, field, 0xan);
  expect(extract(value, field)).toBe(0xan);
  expect(value).toBe(0xafff_ffff_ffff_ffffn);
});

test("commands survive the shared ring, bigint and bytes included, around its end too", () => {
  const ring = SharedRing.create(256);
  for (let i = 0; i < 40; i++) {
    const message = { id: i, method: "x", request: { address: (1n << 63n) + BigInt(i), bytes: Uint8Array.of(i, 255) } };
    expect(ring.write(message)).toBe(true);
    expect(ring.read()).toEqual(message);
  }
  expect(ring.read()).toBeUndefined();
});

test("a full ring says so, and a message that can never fit is an error", () => {
  const ring = SharedRing.create(64);
  expect(ring.write({ text: "x".repeat(30) })).toBe(true);
  expect(ring.write({ text: "x".repeat(30) })).toBe(false);
  expect(() => ring.write({ text: "x".repeat(100) })).toThrow("does not fit");
});

test("messages pack and unpack to equals", () => {
  const message = { a: -5n, b: Uint8Array.of(), c: [1, "text", null], d: { e: true } };
  expect(unpackMessage(packMessage(message))).toEqual(message);
});
