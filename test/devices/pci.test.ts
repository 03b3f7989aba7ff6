import { describe, expect, test } from "vitest";
import { messageOf } from "../../engine/devices/apic-bus";
import type { Registers } from "../../engine/devices/chip";
import { PciBus } from "../../engine/devices/pci/bus";
import { hostBridge, Piix3, powerManagement } from "../../engine/devices/pci/chipset";
import { PciCommand, PciReg, PciStatus } from "../../engine/devices/pci/config-space";
import { PciFunction, type PciFunctionOptions } from "../../engine/devices/pci/function";
import { setUpPci } from "../../engine/machine/pci-setup";

/** Registers that keep what is written, by offset. */
function ram(): Registers & { cells: Map<number, number> } {
  const cells = new Map<number, number>();
  return {
    cells,
    read: (offset) => cells.get(offset) ?? 0,
    write: (offset, _size, value) => void cells.set(offset, value),
  };
}

function computer(...cards: PciFunction[]) {
  const irqs: number[] = [];
  const messages: (readonly [number, number, number])[] = [];
  const bridge = new Piix3((levels) => irqs.push(levels));
  const bus = new PciBus({
    pirq: (levels) => bridge.setPirqs(levels),
    message: (address, high, data) => messages.push([address, high, data]),
  });
  bus.add(0, 0, hostBridge());
  bus.add(1, 0, bridge.function);
  bus.add(1, 3, powerManagement(ram(), 0x600));
  cards.forEach((card, i) => {
    bus.add(4 + i, 0, card);
  });
  const select = (device: number, fn: number, register: number): void =>
    bus.addressPort.write(0, 4, (0x80000000 | (device << 11) | (fn << 8) | (register & 0xfc)) >>> 0);
  return {
    bus,
    bridge,
    irqs,
    messages,
    read: (device: number, fn: number, register: number, size: 1 | 2 | 4 = 4): number => {
      select(device, fn, register);
      return bus.dataPorts.read(register & 3, size);
    },
    write: (device: number, fn: number, register: number, value: number, size: 1 | 2 | 4 = 4): void => {
      select(device, fn, register);
      bus.dataPorts.write(register & 3, size, value);
    },
  };
}

const card = (options: Partial<PciFunctionOptions> = {}): PciFunction =>
  new PciFunction({ name: "card", vendor: 0x1af4, device: 0x1234, classCode: 0x00ff00, ...options });

describe("PCI configuration mechanism 1 (PCI 2.3 3.2.2.3.2)", () => {
  test("host bridge, ISA bridge and power management answer, others read as ones", () => {
    const { read } = computer();
    expect(read(0, 0, 0)).toBe(0x12378086);
    expect(read(1, 0, 0)).toBe(0x70008086);
    expect(read(1, 3, 0)).toBe(0x71138086);
    expect(read(2, 0, 0)).toBe(0xffffffff);
    expect(read(1, 0, 0xe, 1)).toBe(0x80);
  });

  test("ids cannot be written; the PIRQ routing registers can, byte by byte", () => {
    const { read, write } = computer();
    write(1, 0, 0, 0);
    expect(read(1, 0, 0)).toBe(0x70008086);
    write(1, 0, 0x61, 0x0b, 1);
    expect(read(1, 0, 0x60)).toBe(0x80800b80);
  });

  test("without the enable bit nothing answers", () => {
    const { bus } = computer();
    bus.addressPort.write(0, 4, 0);
    expect(bus.dataPorts.read(0, 4)).toBe(0xffffffff);
  });

  test("CONFIG_ADDRESS takes accesses of four bytes only", () => {
    const { bus } = computer();
    bus.addressPort.write(0, 4, 0x80000800);
    bus.addressPort.write(0, 1, 0);
    expect(bus.addressPort.read(0, 4)).toBe(0x80000800);
  });
});

describe("base address registers (PCI 3.0 6.2.5.1)", () => {
  const io = ram();
  const low = ram();
  const high = ram();
  const make = () =>
    computer(
      card({
        bars: {
          0: { space: "io", size: 64, registers: io },
          1: { space: "memory", size: 4096, registers: low },
          4: { space: "memory", size: 16384, registers: high, wide: true, prefetchable: true },
        },
      }),
    );

  test("all ones written read back as the size, with the kind in the low bits", () => {
    const { read, write } = make();
    for (const register of [0x10, 0x14, 0x18, 0x20, 0x24]) write(4, 0, register, 0xffffffff);
    expect(read(4, 0, 0x10)).toBe(0xffffffc1);
    expect(read(4, 0, 0x14)).toBe(0xfffff000);
    expect(read(4, 0, 0x18)).toBe(0);
    expect(read(4, 0, 0x20)).toBe(0xffffc00c);
    expect(read(4, 0, 0x24)).toBe(0xffffffff);
  });

  test("a range answers only while the command register switches its space on", () => {
    const { bus, write } = make();
    write(4, 0, 0x10, 0xc001);
    write(4, 0, 0x14, 0xfe000000);
    expect(bus.at("io", 0xc000)).toBeUndefined();
    write(4, 0, PciReg.COMMAND, PciCommand.IO, 2);
    expect(bus.at("io", 0xc03f)?.registers).toBe(io);
    expect(bus.at("io", 0xc040)).toBeUndefined();
    expect(bus.at("memory", 0xfe000000)).toBeUndefined();
    write(4, 0, PciReg.COMMAND, PciCommand.MEMORY, 2);
    expect(bus.at("memory", 0xfe000fff)?.registers).toBe(low);
    expect(bus.at("io", 0xc000)).toBeUndefined();
  });

  test("a 64-bit BAR may lie above 4 GiB and can be moved", () => {
    const { bus, write } = make();
    write(4, 0, PciReg.COMMAND, PciCommand.MEMORY, 2);
    write(4, 0, 0x20, 0x4000);
    write(4, 0, 0x24, 0x8);
    expect(bus.at("memory", 0x8_0000_4000)?.registers).toBe(high);
    write(4, 0, 0x24, 0x9);
    expect(bus.at("memory", 0x8_0000_4000)).toBeUndefined();
    expect(bus.at("memory", 0x9_0000_4000)?.registers).toBe(high);
  });

  test("while a BAR is being sized it claims nothing at the end of the space", () => {
    const { bus, write } = make();
    write(4, 0, PciReg.COMMAND, PciCommand.MEMORY | PciCommand.IO, 2);
    write(4, 0, 0x14, 0xffffffff);
    write(4, 0, 0x10, 0xffffffff);
    expect(bus.at("memory", 0xfffff000)).toBeUndefined();
    expect(bus.at("io", 0xffc0)).toBeUndefined();
  });

  test("the ROM BAR needs its own enable bit and the command register's", () => {
    const { bus, read, write } = computer(card({ rom: Uint8Array.of(0x55, 0xaa, 1) }));
    write(4, 0, PciReg.ROM, 0xffffffff);
    expect(read(4, 0, PciReg.ROM)).toBe(0xfffff801);
    write(4, 0, PciReg.ROM, 0xfeb00001);
    expect(bus.at("memory", 0xfeb00000)).toBeUndefined();
    write(4, 0, PciReg.COMMAND, PciCommand.MEMORY, 2);
    expect(bus.at("memory", 0xfeb00000)?.registers.read(0, 2)).toBe(0xaa55);
    write(4, 0, PciReg.ROM, 0xfeb00000);
    expect(bus.at("memory", 0xfeb00000)).toBeUndefined();
  });

  test("restored state decodes as it did", () => {
    const { bus, write } = make();
    write(4, 0, PciReg.COMMAND, PciCommand.IO, 2);
    write(4, 0, 0x10, 0xc001);
    const saved = structuredClone(bus.state);
    write(4, 0, 0x10, 0xd001);
    expect(bus.at("io", 0xc000)).toBeUndefined();
    bus.state = saved;
    expect(bus.at("io", 0xc000)?.registers).toBe(io);
  });

  test("firmware's set-up gives every BAR aligned addresses and switches its space on", () => {
    const { bus, bridge, read } = make();
    setUpPci(bus, bridge);
    expect(read(4, 0, PciReg.COMMAND, 2) & 3).toBe(3);
    for (const { function: f } of bus.functions) {
      for (const range of f.ranges()) expect(range.base % range.size).toBe(0);
    }
    expect(read(4, 0, PciReg.INTERRUPT_LINE, 1)).toBe(0);
  });
});

describe("INTx", () => {
  test("pins of neighbouring slots go to neighbouring PIRQ inputs; the router decides about the IRQ (PIIX3 3.1.8)", () => {
    const first = card({ name: "first", interruptPin: 1 });
    const second = card({ name: "second", interruptPin: 1 });
    const { irqs, write } = computer(first, second);
    // Slot 4, INTA#: PIRQD#. Slot 5, INTA#: PIRQA#.
    write(1, 0, 0x60, 0x0b80800a);
    first.setIntx(true);
    expect(irqs.at(-1)).toBe(1 << 11);
    second.setIntx(true);
    expect(irqs.at(-1)).toBe((1 << 11) | (1 << 10));
    first.setIntx(false);
    expect(irqs.at(-1)).toBe(1 << 10);
  });

  test("two devices share a line: it falls when both are quiet", () => {
    const first = card({ name: "first", interruptPin: 1 });
    const second = card({ name: "second", interruptPin: 4 });
    const { irqs, write } = computer(first, second);
    write(1, 0, 0x63, 5, 1);
    first.setIntx(true);
    second.setIntx(true);
    first.setIntx(false);
    expect(irqs.at(-1)).toBe(1 << 5);
    second.setIntx(false);
    expect(irqs.at(-1)).toBe(0);
  });

  test("command bit 10 holds the pin back, status bit 3 shows the interrupt all the same (PCI 3.0 6.2.2, 6.2.3)", () => {
    const f = card({ interruptPin: 1 });
    const { irqs, read, write } = computer(f);
    write(1, 0, 0x63, 11, 1);
    f.setIntx(true);
    write(4, 0, PciReg.COMMAND, PciCommand.INTX_DISABLE, 2);
    expect(irqs.at(-1)).toBe(0);
    expect(read(4, 0, PciReg.STATUS, 2) & PciStatus.INTERRUPT).toBe(PciStatus.INTERRUPT);
    write(4, 0, PciReg.COMMAND, 0, 2);
    expect(irqs.at(-1)).toBe(1 << 11);
  });
});

describe("message signalled interrupts", () => {
  /** Offset of a capability, by walking the list. */
  function find(read: ReturnType<typeof computer>["read"], id: number): number {
    for (let at = read(4, 0, PciReg.CAPABILITIES, 1); at !== 0; at = read(4, 0, at + 1, 1)) {
      if (read(4, 0, at, 1) === id) return at;
    }
    return -1;
  }

  test("MSI: the message number goes into the low bits of the data; a masked vector waits (PCI 3.0 6.8.1)", () => {
    const f = card({ msi: 4 });
    const { read, write, messages } = computer(f);
    const at = find(read, 5);
    expect(read(4, 0, PciReg.STATUS, 2) & PciStatus.CAPABILITIES).toBe(PciStatus.CAPABILITIES);
    write(4, 0, PciReg.COMMAND, PciCommand.MASTER, 2);
    write(4, 0, at + 4, 0xfee01000);
    write(4, 0, at + 12, 0x4040, 2);
    f.msi?.notify(0);
    expect(messages).toEqual([]);
    write(4, 0, at + 2, (2 << 4) | 1, 2);
    f.msi?.notify(3);
    expect(messages).toEqual([[0xfee01000, 0, 0x4043]]);
    write(4, 0, at + 16, 2);
    f.msi?.notify(1);
    expect(messages.length).toBe(1);
    expect(read(4, 0, at + 20)).toBe(2);
    write(4, 0, at + 16, 0);
    expect(messages[1]).toEqual([0xfee01000, 0, 0x4041]);
    expect(read(4, 0, at + 20)).toBe(0);
  });

  test("MSI-X: each vector has its own message and mask, the function mask holds all of them back (6.8.2)", () => {
    const f = card({ msix: { vectors: 3, bar: 1 } });
    const { bus, read, write, messages } = computer(f);
    const at = find(read, 0x11);
    expect(read(4, 0, at + 2, 2)).toBe(2);
    write(4, 0, 0x14, 0xfe000000);
    write(4, 0, PciReg.COMMAND, PciCommand.MASTER | PciCommand.MEMORY, 2);
    const table = bus.at("memory", 0xfe000000)?.registers;
    if (!table) throw new Error("the table is not mapped");
    expect(table.read(0x1c, 4)).toBe(1);
    table.write(0x10, 4, 0xfee00000);
    table.write(0x18, 4, 0x41);
    write(4, 0, at + 2, 0x8000, 2);
    f.msix?.notify(1);
    expect(messages).toEqual([]);
    expect(table.read(0x800, 4)).toBe(2);
    table.write(0x1c, 4, 0);
    expect(messages).toEqual([[0xfee00000, 0, 0x41]]);
    expect(table.read(0x800, 4)).toBe(0);
    write(4, 0, at + 2, 0xc000, 2);
    f.msix?.notify(1);
    expect(messages.length).toBe(1);
    write(4, 0, at + 2, 0x8000, 2);
    expect(messages.length).toBe(2);
  });

  test("a function that is no bus master sends nothing (6.2.2)", () => {
    const f = card({ msi: 1 });
    const { read, write, messages } = computer(f);
    write(4, 0, find(read, 5) + 2, 1, 2);
    f.msi?.notify(0);
    expect(messages).toEqual([]);
  });

  test("address and data are an interrupt message (SDM 3A 10.11)", () => {
    expect(messageOf(0xfee0300c, 0, 0x0141)).toMatchObject({
      vector: 0x41,
      deliveryMode: 1,
      logical: true,
      destination: 3,
      level: false,
    });
    expect(messageOf(0xfee01000, 0x100, 0x8030)).toMatchObject({ destination: 0x101, level: true, assert: false });
    expect(messageOf(0xfed00000, 0, 0)).toBeUndefined();
  });
});

describe("the chip set", () => {
  test("the power management block lies where its base register says, while it is enabled (PIIX4 7.1)", () => {
    const { bus, write } = computer();
    expect(bus.at("io", 0x608)?.name).toBe("ACPI PM");
    write(1, 3, 0x40, 0xb000);
    expect(bus.at("io", 0x608)).toBeUndefined();
    expect(bus.at("io", 0xb008)?.name).toBe("ACPI PM");
    write(1, 3, 0x80, 0, 1);
    expect(bus.at("io", 0xb008)).toBeUndefined();
  });
});
