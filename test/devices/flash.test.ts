import { describe, expect, test } from "vitest";
import { Flash } from "../../engine/devices/flash";

function chip(readOnly = false) {
  const array = Uint8Array.from({ length: 16384 }, (_, i) => i & 0xff);
  const changes: [number, number][] = [];
  let modes = 0;
  const flash = new Flash(
    array,
    4096,
    readOnly,
    () => modes++,
    (offset, length) => changes.push([offset, length]),
  );
  return { array, changes, flash, modes: () => modes };
}

describe("a flash chip with the Intel command set (CFI, pflash_cfi01)", () => {
  test("firmware for QEMU finds it: after clear status, read status gives zero, and read array the contents again", () => {
    const { flash, modes } = chip();
    flash.write(0, 1, 0x50);
    expect(flash.readable).toBe(true);
    flash.write(0, 1, 0x70);
    expect([flash.readable, flash.read(0, 1)]).toEqual([false, 0]);
    flash.write(0, 1, 0xff);
    expect([flash.readable, flash.read(0x12, 1)]).toEqual([true, 0x12]);
    expect(modes()).toBe(2);
  });

  test("erase sets a block to ones, program writes a byte; the status says ready", () => {
    const { flash, array, changes } = chip();
    flash.write(0x1234, 1, 0x20);
    flash.write(0x1234, 1, 0xd0);
    expect(array.subarray(0x1000, 0x2000).every((byte) => byte === 0xff)).toBe(true);
    expect(array[0xfff]).toBe(0xff);
    expect(array[0x2000]).toBe(0);
    flash.write(0x1234, 1, 0x10);
    flash.write(0x1234, 1, 0x5a);
    expect(flash.read(0, 1) & 0x80).toBe(0x80);
    expect(array[0x1234]).toBe(0x5a);
    expect(changes).toEqual([
      [0x1000, 4096],
      [0x1234, 1],
    ]);
  });

  test("a buffered write takes count, bytes, confirmation", () => {
    const { flash, array } = chip();
    flash.write(0x800, 1, 0xe8);
    flash.write(0x800, 1, 3);
    for (const [i, byte] of [9, 8, 7, 6].entries()) flash.write(0x810 + i, 1, byte);
    expect(array[0x810]).toBe(0x10);
    flash.write(0x800, 1, 0xd0);
    expect([...array.subarray(0x80f, 0x815)]).toEqual([0x0f, 9, 8, 7, 6, 0x14]);
  });

  test("an erase that is not confirmed is a sequence error: status bits 4 and 5", () => {
    const { flash, array } = chip();
    flash.write(0, 1, 0x20);
    flash.write(0, 1, 0x00);
    flash.write(0, 1, 0x70);
    expect(flash.read(0, 1) & 0x30).toBe(0x30);
    expect(array[1]).toBe(1);
  });

  test("identifiers and the CFI query: QRY, size, block size", () => {
    const { flash } = chip();
    flash.write(0x55, 1, 0x98);
    expect([0x10, 0x11, 0x12].map((at) => String.fromCharCode(flash.read(at, 1))).join("")).toBe("QRY");
    expect(flash.read(0x27, 1)).toBe(14);
    expect([flash.read(0x2d, 1), flash.read(0x2f, 1)]).toEqual([3, 0x10]);
    flash.write(0, 1, 0x90);
    expect(flash.read(0, 1)).toBe(0x89);
  });

  test("a chip whose write enable is tied down reports errors and keeps its contents", () => {
    const { flash, array } = chip(true);
    flash.write(0, 1, 0x40);
    flash.write(0, 1, 0x77);
    expect(flash.read(0, 1) & 0x10).toBe(0x10);
    flash.write(0, 1, 0x20);
    flash.write(0, 1, 0xd0);
    expect(flash.read(0, 1) & 0x20).toBe(0x20);
    expect(array[1]).toBe(1);
  });
});
