import { describe, expect, test } from "vitest";
import { AcpiPm, PM_TIMER_HZ, ResetControl } from "../../engine/devices/acpi-pm";
import { DebugExit } from "../../engine/devices/debug-exit";
import { FwCfg } from "../../engine/devices/fw-cfg";
import { I8042 } from "../../engine/devices/i8042";
import { MmioBus } from "../../engine/devices/mmio-bus";
import { PortBus } from "../../engine/devices/port-bus";
import { Vga } from "../../engine/devices/vga";
import { newClock, Probe, pass } from "./helpers";

describe("port bus", () => {
  const bytes = () => {
    const log: [number, number, number][] = [];
    return {
      log,
      read: (offset: number) => 0x10 + offset,
      write: (offset: number, size: number, value: number) => log.push([offset, size, value]),
    };
  };

  test("unclaimed ports read as all ones of the access's size", () => {
    const bus = new PortBus();
    expect([bus.read(0x80, 1), bus.read(0x80, 2), bus.read(0x80, 4)]).toEqual([0xff, 0xffff, 0xffffffff]);
  });

  test("an access wider than the chip is split into bytes, each with its own port", () => {
    const bus = new PortBus();
    const chip = bytes();
    bus.claim("chip", 0x300, 4, chip);
    expect(bus.read(0x300, 4)).toBe(0x13121110);
    bus.write(0x302, 2, 0xbbaa);
    expect(chip.log).toEqual([
      [2, 1, 0xaa],
      [3, 1, 0xbb],
    ]);
    expect(bus.read(0x303, 2)).toBe(0xff13);
  });

  test("a port is claimed once; the error names both", () => {
    const bus = new PortBus();
    bus.claim("first", 0x300, 4, bytes());
    expect(() => bus.claim("second", 0x303, 1, bytes())).toThrow("port 0x303 of second is claimed by first");
  });
});

describe("mmio bus", () => {
  test("8 bytes are two accesses of 4; unclaimed bytes read as ones", () => {
    const bus = new MmioBus();
    bus.claim("chip", 0x1000, 8, { read: (offset) => 0x100 + offset, write: () => {} });
    expect(bus.read(0x1000, 8)).toBe(0x0000010400000100n);
    expect(bus.read(0x1004, 8)).toBe(0xffffffff00000104n);
    expect(() => bus.claim("other", 0x1004, 8, { read: () => 0, write: () => {} })).toThrow("overlap");
  });
});

describe("fw_cfg", () => {
  const memory = new Uint8Array(4096);
  const dma = {
    read: (at: number, n: number) => memory.slice(at, Math.min(at + n, memory.length)),
    write: (at: number, b: Uint8Array) => memory.set(b.subarray(0, Math.max(0, memory.length - at)), at),
  };
  const fw = new FwCfg(dma);
  fw.addFile("etc/hello", Uint8Array.from([1, 2, 3]));
  const bytes = (n: number): number[] => Array.from({ length: n }, () => fw.ports.read(1, 1));

  test("key 0 is the signature QEMU, key 1 announces DMA", () => {
    fw.ports.write(0, 2, 0);
    expect(String.fromCharCode(...bytes(4))).toBe("QEMU");
    fw.ports.write(0, 2, 1);
    expect(bytes(4)).toEqual([3, 0, 0, 0]);
  });

  test("the directory lists files with big-endian size and key", () => {
    fw.ports.write(0, 2, 0x19);
    const d = bytes(68);
    expect(d.slice(0, 10)).toEqual([0, 0, 0, 1, 0, 0, 0, 3, 0, 0x20]);
    expect(String.fromCharCode(...d.slice(12, 21))).toBe("etc/hello");
  });

  test("bytes behind an item's end are zero", () => {
    fw.ports.write(0, 2, 0x20);
    expect(bytes(5)).toEqual([1, 2, 3, 0, 0]);
  });

  test("DMA: select and read in one operation, control cleared when done", () => {
    const v = new DataView(memory.buffer);
    v.setUint32(0x100, (0x20 << 16) | 8 | 2);
    v.setUint32(0x104, 3);
    v.setBigUint64(0x108, 0x200n);
    fw.dmaPorts.write(4, 4, 0x00010000);
    expect(v.getUint32(0x100)).toBe(0);
    expect([...memory.slice(0x200, 0x204)]).toEqual([1, 2, 3, 0]);
  });

  test("a DMA length beyond memory ends with the error bit and no endless loop", () => {
    const v = new DataView(memory.buffer);
    v.setUint32(0x100, 2);
    v.setUint32(0x104, 0xffffffff);
    v.setBigUint64(0x108, 0x10_0000_0000n);
    fw.dmaPorts.write(4, 4, 0x00010000);
    expect(v.getUint32(0x100)).toBe(1);
  });

  test("the DMA register reads as its signature", () => {
    expect(fw.dmaPorts.read(0, 4)).toBe(0x554d4551);
  });
});

describe("8042", () => {
  const make = () => {
    const key = new Probe();
    const aux = new Probe();
    let resets = 0;
    const chip = new I8042(key, aux, () => resets++);
    const command = (value: number): void => chip.commandPort.write(0, 1, value);
    const data = (value: number): void => chip.dataPort.write(0, 1, value);
    const read = (): number => chip.dataPort.read(0, 1);
    const status = (): number => chip.commandPort.read(0, 1);
    return { chip, key, aux, command, data, read, status, resets: () => resets };
  };

  test("self test and interface tests pass", () => {
    const c = make();
    for (const [command, answer] of [
      [0xaa, 0x55],
      [0xab, 0],
      [0xa9, 0],
    ]) {
      c.command(command);
      expect(c.status() & 1).toBe(1);
      expect(c.read()).toBe(answer);
      expect(c.status() & 1).toBe(0);
    }
  });

  test("keyboard reset and identification", () => {
    const c = make();
    c.data(0xff);
    expect([c.read(), c.read()]).toEqual([0xfa, 0xaa]);
    c.data(0xf2);
    expect([c.read(), c.read(), c.read()]).toEqual([0xfa, 0xab, 0x41]);
  });

  test("a command with an argument acknowledges both bytes", () => {
    const c = make();
    c.data(0xed);
    expect(c.read()).toBe(0xfa);
    c.data(0x07);
    expect(c.read()).toBe(0xfa);
    expect(c.status() & 1).toBe(0);
  });

  test("keys raise IRQ 1 until read; mouse bytes are marked", () => {
    const c = make();
    c.chip.typed([0x1e]);
    expect(c.key.level).toBe(true);
    expect(c.read()).toBe(0x1e);
    expect(c.key.level).toBe(false);
    c.command(0xd4);
    c.data(0xff);
    expect(c.status() & 0x21).toBe(0x21);
    expect([c.read(), c.read(), c.read()]).toEqual([0xfa, 0xaa, 0]);
  });

  test("bytes written to the output buffer read as the device's, though its interface is off", () => {
    const c = make();
    c.command(0x60);
    c.data(0x33);
    c.command(0xd3);
    c.data(0x5a);
    expect([c.status() & 0x21, c.key.level, c.aux.level, c.read()]).toEqual([0x21, false, true, 0x5a]);
    c.command(0xd2);
    c.data(0xa5);
    expect([c.status() & 0x21, c.key.level, c.aux.level, c.read()]).toEqual([0x01, true, false, 0xa5]);
    expect(c.status() & 1).toBe(0);
  });

  test("the scan code set is told translated while translation is on", () => {
    const c = make();
    const scanSet = (): number => {
      c.data(0xf0);
      expect(c.read()).toBe(0xfa);
      c.data(0);
      expect(c.read()).toBe(0xfa);
      return c.read();
    };
    expect(scanSet()).toBe(0x41);
    c.command(0x60);
    c.data(0x05);
    expect(scanSet()).toBe(2);
  });

  test("the mouse keeps resolution, rate and scaling until its defaults are set", () => {
    const c = make();
    const send = (...bytes: number[]): number[] => {
      for (const byte of bytes) {
        c.command(0xd4);
        c.data(byte);
      }
      const answers: number[] = [];
      while (c.status() & 1) answers.push(c.read());
      return answers;
    };
    send(0xe8, 3, 0xf3, 40, 0xe7, 0xf4);
    expect(send(0xe9)).toEqual([0xfa, 0x30, 3, 40]);
    send(0xf6);
    expect(send(0xe9)).toEqual([0xfa, 0, 2, 100]);
  });

  test("0xfe pulses the reset line; so does clearing bit 0 of the output port", () => {
    const c = make();
    c.command(0xfe);
    c.command(0xd1);
    c.data(0x02);
    expect(c.resets()).toBe(2);
  });
});

describe("ACPI fixed hardware (ACPI 4.8.3)", () => {
  const make = () => {
    const clock = newClock();
    const sci = new Probe();
    let off = 0;
    const pm = new AcpiPm(clock, "pm", sci, () => off++);
    return { clock, sci, pm, off: () => off };
  };

  test("the PM timer runs at 3.579545 MHz", () => {
    const { clock, pm } = make();
    pass(clock, 1_000_000_000);
    expect(pm.read(8, 4)).toBe(PM_TIMER_HZ);
  });

  test("SLP_EN with the type of S5 powers off; SCI_EN stays set", () => {
    const { pm, off } = make();
    pm.write(4, 2, 0x0400);
    expect(off()).toBe(0);
    expect(pm.read(4, 2)).toBe(0x0401);
    pm.write(4, 2, 0x2000);
    expect(off()).toBe(1);
  });

  test("TMR_STS is set when bit 23 changes, raises SCI when enabled, and is cleared by writing 1", () => {
    const { clock, sci, pm } = make();
    pm.write(2, 2, 1);
    pass(clock, 2_343_500_000);
    expect(sci.level).toBe(true);
    expect(pm.read(0, 2)).toBe(1);
    pm.write(0, 2, 1);
    expect(sci.level).toBe(false);
  });

  test("port 0xcf9 resets on the rising edge of bit 2", () => {
    let resets = 0;
    const control = new ResetControl(() => resets++);
    control.write(0, 1, 2);
    expect(resets).toBe(0);
    control.write(0, 1, 6);
    expect(resets).toBe(1);
  });
});

describe("VGA registers", () => {
  const io = (vga: Vga) => ({
    in: (port: number) => vga.read(port - Vga.FIRST_PORT),
    out: (port: number, value: number) => vga.write(port - Vga.FIRST_PORT, 1, value),
  });

  test("indexed registers keep what is written; protected CRTC registers do not", () => {
    const p = io(new Vga(newClock()));
    p.out(0x3d4, 0x0f);
    p.out(0x3d5, 0x42);
    expect(p.in(0x3d5)).toBe(0x42);
    p.out(0x3d4, 0);
    p.out(0x3d5, 0);
    expect(p.in(0x3d5)).toBe(0x5f);
  });

  test("reading input status 1 makes the next write of 0x3c0 an index", () => {
    const p = io(new Vga(newClock()));
    p.out(0x3c0, 0x31);
    p.in(0x3da);
    p.out(0x3c0, 0x32);
    p.out(0x3c0, 0x07);
    expect(p.in(0x3c1)).toBe(0x07);
  });

  test("vertical retrace comes and goes with virtual time", () => {
    const clock = newClock();
    const p = io(new Vga(clock));
    let seen = 0;
    let before = 0;
    for (let i = 0; i < 3000; i++) {
      pass(clock, 10_000);
      const now = p.in(0x3da) & 8;
      if (now && !before) seen++;
      before = now;
    }
    expect(seen).toBe(2);
  });
});

test("debug exit hands out the whole value written", () => {
  const codes: number[] = [];
  new DebugExit((code) => codes.push(code)).write(0, 4, 0x12345678);
  expect(codes).toEqual([0x12345678]);
});
