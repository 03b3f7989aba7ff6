import { describe, expect, test } from "vitest";
import { VirtualClock } from "../../engine/clock";
import { BochsVbe, Dispi } from "../../engine/devices/bochs-vbe";
import { Vga } from "../../engine/devices/vga";
import { VgaMemory } from "../../engine/devices/vga-memory";

function adapter() {
  const vga = new Vga(new VirtualClock());
  const pixels = new Uint8Array(1 << 20);
  const text = new Uint8Array(0x8000);
  const memory = new VgaMemory(vga, pixels, text);
  const indexed = (port: number, index: number, value: number): void => {
    vga.write(port - Vga.FIRST_PORT, 1, index);
    vga.write(port + 1 - Vga.FIRST_PORT, 1, value);
  };
  return {
    ...{ memory, pixels, text },
    sequencer: (index: number, value: number) => indexed(0x3c4, index, value),
    graphics: (index: number, value: number) => indexed(0x3ce, index, value),
  };
}

/** Planar graphics at 0xa0000, as in the 16-colour modes. */
function planar() {
  const a = adapter();
  a.sequencer(4, 0x06);
  a.sequencer(2, 0x0f);
  a.graphics(5, 0);
  a.graphics(6, 0x05);
  return a;
}
const plane = (pixels: Uint8Array, at: number): number[] => [...pixels.subarray(at * 4, at * 4 + 4)];

describe("VGA display memory (IBM VGA technical reference)", () => {
  test("in text mode the window at 0xb8000 is plain memory; leaving it, characters are in plane 0, attributes in plane 1", () => {
    const a = adapter();
    expect(a.memory.window()).toEqual({ kind: "text", at: 0x18000, size: 0x8000 });
    a.text.set([0x48, 0x07, 0x69, 0x1f]);
    a.graphics(5, 0);
    a.sequencer(4, 0x06);
    expect(a.memory.window()).toBeNull();
    expect([...a.pixels.subarray(0, 8)]).toEqual([0x48, 0x07, 0, 0, 0x69, 0x1f, 0, 0]);
    a.pixels[4] = 0x6f;
    a.graphics(5, 0x10);
    a.sequencer(4, 0x02);
    expect(a.memory.window()?.kind).toBe("text");
    expect([...a.text.subarray(0, 4)]).toEqual([0x48, 0x07, 0x6f, 0x1f]);
  });

  test("write mode 0 goes through rotation, set/reset, the logical function, the bit mask and the map mask", () => {
    const a = planar();
    a.memory.write(5, 1, 0x81);
    expect(plane(a.pixels, 5)).toEqual([0x81, 0x81, 0x81, 0x81]);
    a.graphics(3, 0x01);
    a.sequencer(2, 0x05);
    a.memory.write(6, 1, 0x03);
    expect(plane(a.pixels, 6)).toEqual([0x81, 0, 0x81, 0]);
    a.graphics(3, 0);
    a.sequencer(2, 0x0f);
    a.graphics(0, 0x0a);
    a.graphics(1, 0x0f);
    a.graphics(8, 0x0f);
    a.memory.read(5, 1);
    a.memory.write(5, 1, 0);
    expect(plane(a.pixels, 5)).toEqual([0x80, 0x8f, 0x80, 0x8f]);
    a.graphics(3, 0x18);
    a.graphics(1, 0);
    a.graphics(8, 0xff);
    a.memory.read(5, 1);
    a.memory.write(5, 1, 0xff);
    expect(plane(a.pixels, 5)).toEqual([0x7f, 0x70, 0x7f, 0x70]);
  });

  test("write mode 1 copies the latches, mode 2 spreads a colour, mode 3 masks set/reset", () => {
    const a = planar();
    a.pixels.set([1, 2, 3, 4], 4 * 9);
    a.memory.read(9, 1);
    a.graphics(5, 1);
    a.memory.write(10, 1, 0xff);
    expect(plane(a.pixels, 10)).toEqual([1, 2, 3, 4]);
    a.graphics(5, 2);
    a.memory.write(11, 1, 0x06);
    expect(plane(a.pixels, 11)).toEqual([0, 0xff, 0xff, 0]);
    a.graphics(5, 3);
    a.graphics(0, 0x01);
    a.memory.read(9, 1);
    a.memory.write(12, 1, 0xf0);
    expect(plane(a.pixels, 12)).toEqual([0xf1, 0x02, 0x03, 0x04]);
  });

  test("read mode 0 gives the selected plane, read mode 1 the pixels of the colour, don't-care planes apart", () => {
    const a = planar();
    a.pixels.set([0xf0, 0xcc, 0xaa, 0x00], 0);
    a.graphics(4, 2);
    expect(a.memory.read(0, 1)).toBe(0xaa);
    a.graphics(5, 8);
    a.graphics(2, 0x03);
    a.graphics(7, 0x0f);
    expect(a.memory.read(0, 1)).toBe(0xf0 & 0xcc & ~0xaa);
    a.graphics(7, 0x03);
    expect(a.memory.read(0, 1)).toBe(0xf0 & 0xcc);
  });

  test("chained addressing is linear and is shown as memory, bank by bank", () => {
    const a = planar();
    a.sequencer(4, 0x0e);
    expect(a.memory.window()).toEqual({ kind: "linear", at: 0, size: 0x10000, offset: 0 });
    a.memory.write(7, 1, 0x99);
    expect(a.pixels[7]).toBe(0x99);
    a.memory.state.bank = 0x20000;
    expect(a.memory.window()).toMatchObject({ offset: 0x20000 });
  });

  test("outside the window the adapter does not answer", () => {
    const a = planar();
    a.memory.write(0x18000, 1, 1);
    expect(a.memory.read(0x18000, 1)).toBe(0xff);
    expect(a.pixels.every((byte) => byte === 0)).toBe(true);
  });
});

describe("the Bochs display interface (QEMU standard-vga)", () => {
  function dispi() {
    const modes: [boolean, boolean][] = [];
    const banks: number[] = [];
    const vbe = new BochsVbe(
      16 << 20,
      (on, clear) => modes.push([on, clear]),
      (bank) => banks.push(bank),
    );
    const write = (index: number, value: number): void => {
      vbe.ports.write(0, 2, index);
      vbe.ports.write(1, 2, value);
    };
    const read = (index: number): number => {
      vbe.ports.write(0, 2, index);
      return vbe.ports.read(1, 2);
    };
    return { ...{ vbe, modes, banks, write, read } };
  }

  test("the ID is b0c5; older ones can be asked for, others not; memory is told in 64 KiB", () => {
    const { write, read } = dispi();
    expect(read(Dispi.ID)).toBe(0xb0c5);
    write(Dispi.ID, 0xb0c2);
    expect(read(Dispi.ID)).toBe(0xb0c2);
    write(Dispi.ID, 0x1234);
    expect(read(Dispi.ID)).toBe(0xb0c2);
    expect(read(Dispi.MEMORY_64K)).toBe(256);
  });

  test("a mode is set by size and depth, then enabled: memory is cleared unless it shall be kept", () => {
    const { write, read, modes } = dispi();
    write(Dispi.X_RESOLUTION, 1024);
    write(Dispi.Y_RESOLUTION, 768);
    write(Dispi.BITS_PER_PIXEL, 32);
    write(Dispi.ENABLE, 0x41);
    expect([read(Dispi.VIRTUAL_WIDTH), read(Dispi.VIRTUAL_HEIGHT)]).toEqual([1024, 4096]);
    write(Dispi.ENABLE, 0);
    write(Dispi.ENABLE, 0xc1);
    expect(modes).toEqual([
      [true, true],
      [false, false],
      [true, false],
    ]);
  });

  test("capabilities are read with bit 1 of enable", () => {
    const { write, read } = dispi();
    write(Dispi.ENABLE, 2);
    expect([read(Dispi.X_RESOLUTION), read(Dispi.BITS_PER_PIXEL)]).toEqual([16000, 32]);
    write(Dispi.ENABLE, 0);
    expect(read(Dispi.X_RESOLUTION)).toBe(0);
  });

  test("the bank register moves the display window by 64 KiB", () => {
    const { write, banks } = dispi();
    write(Dispi.BANK, 3);
    expect(banks).toEqual([0x30000]);
  });
});
