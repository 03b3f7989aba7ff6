import { describe, expect, test } from "vitest";
import { BlockImage } from "../../engine/devices/block-image";
import type { Dma } from "../../engine/devices/chip";
import { PciBus } from "../../engine/devices/pci/bus";
import { PciCommand, PciReg } from "../../engine/devices/pci/config-space";
import { VirtioBlock } from "../../engine/devices/virtio/block";
import { VirtioConsole } from "../../engine/devices/virtio/console";
import type { VirtioDevice } from "../../engine/devices/virtio/device";
import { VirtioEntropy } from "../../engine/devices/virtio/entropy";
import { VirtioPci } from "../../engine/devices/virtio/pci-transport";
import { newClock, pass } from "./helpers";

const MEMORY = 1 << 20;
const SLOT = 4;
const BAR0 = 0xc000;
const BAR1 = 0xfe100000;
const BAR4 = 0xfe000000;
/** Where the driver of these tests keeps its rings and buffers. */
const TABLE = 0x1000;
const AVAILABLE = 0x2000;
const USED = 0x3000;
const INDIRECT = 0x4000;
const BUFFERS = 0x8000;

const F = { INDIRECT: 1n << 28n, EVENT: 1n << 29n, VERSION_1: 1n << 32n } as const;

interface Buffer {
  readonly address: number;
  readonly length: number;
  readonly write?: boolean;
}

/** A machine with one virtio device and the driver of it. */
class Driver {
  readonly memory = new Uint8Array(MEMORY);
  readonly view = new DataView(this.memory.buffer);
  readonly messages: number[] = [];
  irq = 0;
  readonly bus: PciBus;
  readonly transport: VirtioPci;
  size = 8;
  private next = 0;

  constructor(make: (dma: Dma) => VirtioDevice) {
    const dma: Dma = {
      read: (at, n) => this.memory.slice(at, Math.min(at + n, MEMORY)),
      write: (at, bytes) => this.memory.set(bytes.subarray(0, Math.max(0, MEMORY - at)), at),
    };
    this.bus = new PciBus({
      pirq: (levels) => {
        this.irq = levels;
      },
      message: (_address, _high, data) => this.messages.push(data),
    });
    this.transport = new VirtioPci("device", make(dma));
    this.bus.add(SLOT, 0, this.transport.function);
    this.transport.function.setBar(0, BAR0);
    this.transport.function.setBar(1, BAR1);
    this.transport.function.setBar(4, BAR4);
    this.config(PciReg.COMMAND, 2, PciCommand.IO | PciCommand.MEMORY | PciCommand.MASTER);
  }

  config(register: number, size: 1 | 2 | 4, value?: number): number {
    this.bus.addressPort.write(0, 4, (0x80000000 | (SLOT << 11) | (register & 0xfc)) >>> 0);
    if (value !== undefined) this.bus.dataPorts.write(register & 3, size, value);
    return this.bus.dataPorts.read(register & 3, size);
  }

  private at(space: "io" | "memory", address: number) {
    const found = this.bus.at(space, address);
    if (!found) throw new Error(`nothing at 0x${address.toString(16)}`);
    return { registers: found.registers, offset: address - found.base };
  }
  read(offset: number, size: 1 | 2 | 4): number {
    const { registers, offset: at } = this.at("memory", BAR4 + offset);
    return registers.read(at, size);
  }
  write(offset: number, size: 1 | 2 | 4, value: number): void {
    const { registers, offset: at } = this.at("memory", BAR4 + offset);
    registers.write(at, size, value);
  }
  in(offset: number, size: 1 | 2 | 4): number {
    const { registers, offset: at } = this.at("io", BAR0 + offset);
    return registers.read(at, size);
  }
  out(offset: number, size: 1 | 2 | 4, value: number): void {
    const { registers, offset: at } = this.at("io", BAR0 + offset);
    registers.write(at, size, value);
  }

  get features(): bigint {
    this.write(0, 4, 0);
    const low = BigInt(this.read(4, 4));
    this.write(0, 4, 1);
    return low | (BigInt(this.read(4, 4)) << 32n);
  }

  /** Virtio 1.2 3.1.1. */
  start(features: bigint, queue = 0): void {
    this.write(20, 1, 0);
    this.write(20, 1, 1);
    this.write(20, 1, 3);
    this.write(8, 4, 0);
    this.write(12, 4, Number(features & 0xffffffffn));
    this.write(8, 4, 1);
    this.write(12, 4, Number(features >> 32n));
    this.write(20, 1, 0xb);
    expect(this.read(20, 1)).toBe(0xb);
    this.write(22, 2, queue);
    this.write(24, 2, this.size);
    this.write(32, 4, TABLE);
    this.write(40, 4, AVAILABLE);
    this.write(48, 4, USED);
    this.write(28, 2, 1);
    this.write(20, 1, 0xf);
  }

  private descriptor(table: number, i: number, b: Buffer, flags: number, next: number): void {
    this.view.setBigUint64(table + 16 * i, BigInt(b.address), true);
    this.view.setUint32(table + 16 * i + 8, b.length, true);
    this.view.setUint16(table + 16 * i + 12, flags | (b.write ? 2 : 0), true);
    this.view.setUint16(table + 16 * i + 14, next, true);
  }

  /** Puts a chain at descriptor `from` into the available ring; does not notify. */
  offer(buffers: readonly Buffer[], options: { from?: number; indirect?: boolean } = {}): void {
    const { from = 0, indirect = false } = options;
    const table = indirect ? INDIRECT : TABLE + 16 * from;
    buffers.forEach((b, i) => {
      const last = i === buffers.length - 1;
      this.descriptor(table, i, b, last ? 0 : 1, last ? 0 : (indirect ? 0 : from) + i + 1);
    });
    if (indirect) this.descriptor(TABLE, from, { address: INDIRECT, length: 16 * buffers.length }, 4, 0);
    this.view.setUint16(AVAILABLE + 4 + 2 * (this.next % this.size), from, true);
    this.next = (this.next + 1) & 0xffff;
    this.view.setUint16(AVAILABLE + 2, this.next, true);
  }

  notify(queue = 0): void {
    this.write(0x3000 + 4 * queue, 2, queue);
  }

  get usedIndex(): number {
    return this.view.getUint16(USED + 2, true);
  }
  used(i: number): { id: number; length: number } {
    const at = USED + 4 + 8 * (i % this.size);
    return { id: this.view.getUint32(at, true), length: this.view.getUint32(at + 4, true) };
  }

  /** A block request: header at BUFFERS, data behind, then the status. */
  request(type: number, sector: number, data: number, write: boolean): readonly Buffer[] {
    this.view.setUint32(BUFFERS, type, true);
    this.view.setBigUint64(BUFFERS + 8, BigInt(sector), true);
    this.memory[BUFFERS + 16 + data] = 0xff;
    return [
      { address: BUFFERS, length: 16 },
      ...(data > 0 ? [{ address: BUFFERS + 16, length: data, write }] : []),
      { address: BUFFERS + 16 + data, length: 1, write: true },
    ];
  }
  status(data: number): number {
    return this.memory[BUFFERS + 16 + data];
  }
}

const pattern = (sectors: number): Uint8Array => Uint8Array.from({ length: sectors * 512 }, (_, i) => (i >> 9) + i * 7);
const disk = (image: BlockImage) => new Driver((dma) => new VirtioBlock(dma, image, "serial"));

describe("virtio over PCI (Virtio 1.2 4.1)", () => {
  test("vendor capabilities name the structures; the ids are those of a transitional device", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    expect(d.config(0, 4)).toBe(0x10011af4);
    expect(d.config(0x2e, 2)).toBe(2);
    const types: number[] = [];
    for (let at = d.config(PciReg.CAPABILITIES, 1); at !== 0; at = d.config(at + 1, 1)) {
      if (d.config(at, 1) === 9) types.push(d.config(at + 3, 1));
    }
    expect(types.sort()).toEqual([1, 2, 3, 4, 5]);
  });

  test("FEATURES_OK does not stay set for a driver that leaves out VERSION_1 (2.2.1)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.write(20, 1, 3);
    d.write(20, 1, 0xb);
    expect(d.read(20, 1)).toBe(3);
  });

  test("features cannot be changed after FEATURES_OK, and what is not offered cannot be accepted", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1 | (1n << 63n));
    d.write(8, 4, 1);
    expect(d.read(12, 4)).toBe(1);
    d.write(12, 4, 0);
    expect(d.read(12, 4)).toBe(1);
  });

  test("a queue's addresses and size read back; a queue in use is not changed; writing 0 to the status resets", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    expect([d.read(24, 2), d.read(32, 4), d.read(40, 4), d.read(48, 4), d.read(28, 2)]).toEqual([
      8,
      TABLE,
      AVAILABLE,
      USED,
      1,
    ]);
    d.write(32, 4, 0);
    expect(d.read(32, 4)).toBe(TABLE);
    d.write(20, 1, 0);
    d.write(22, 2, 0);
    expect([d.read(24, 2), d.read(28, 2), d.read(20, 1)]).toEqual([256, 0, 0]);
    d.write(22, 2, 7);
    expect(d.read(24, 2)).toBe(0);
  });

  test("without MSI-X the ISR register tells why and reading it lets the line fall (4.1.4.5)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.irq).toBe(1 << PciBus.pirqOf(SLOT, 1));
    expect(d.read(0x1000, 1)).toBe(1);
    expect(d.irq).toBe(0);
    expect(d.read(0x1000, 1)).toBe(0);
  });

  test("with MSI-X each queue has its vector; a vector that is not there reads back as none (4.1.5.1.2)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.write(22, 2, 0);
    d.write(26, 2, 9);
    expect(d.read(26, 2)).toBe(0xffff);
    d.write(26, 2, 1);
    const { offset } = d.transport.function.msix ?? { offset: 0 };
    d.config(offset + 2, 2, 0x8000);
    const table = d.bus.at("memory", BAR1)?.registers;
    table?.write(0x18, 4, 0x77);
    table?.write(0x1c, 4, 0);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.messages).toEqual([0x77]);
    expect(d.irq).toBe(0);
  });

  test("BAR 4 is reachable through configuration space (4.1.4.9)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    let at = d.config(PciReg.CAPABILITIES, 1);
    while (d.config(at, 1) !== 9 || d.config(at + 3, 1) !== 5) at = d.config(at + 1, 1);
    d.config(at + 4, 1, 4);
    d.config(at + 8, 4, 20);
    d.config(at + 12, 4, 1);
    d.config(at + 16, 1, 3);
    expect(d.read(20, 1)).toBe(3);
    d.config(at + 8, 4, 18);
    d.config(at + 12, 4, 2);
    expect(d.config(at + 16, 2)).toBe(1);
  });

  test("the registers of before version 1: page number of the queue, configuration from 20, with MSI-X from 24", () => {
    const image = new BlockImage("disk", pattern(8));
    const d = disk(image);
    d.size = d.in(12, 2);
    expect(d.in(20, 4)).toBe(8);
    d.out(18, 1, 3);
    d.out(4, 4, 0);
    d.out(14, 2, 0);
    d.out(8, 4, 1);
    d.out(18, 1, 7);
    // Ring of 256 entries at 0x1000: available ring at 0x2000, used ring at 0x3000 as above.
    d.offer(d.request(0, 1, 512, true));
    d.out(16, 2, 0);
    expect(d.usedIndex).toBe(1);
    expect(d.memory.slice(BUFFERS + 16, BUFFERS + 528)).toEqual(pattern(8).subarray(512, 1024));
    expect(d.in(19, 1)).toBe(1);
    d.config((d.transport.function.msix?.offset ?? 0) + 2, 2, 0x8000);
    expect(d.in(24, 4)).toBe(8);
  });
});

describe("split virtqueues (2.7)", () => {
  test("the used ring names the chain's head and how much was written", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.offer(d.request(0, 2, 1024, true), { from: 3 });
    d.notify();
    expect(d.usedIndex).toBe(1);
    expect(d.used(0)).toEqual({ id: 3, length: 1025 });
    expect(d.memory.slice(BUFFERS + 16, BUFFERS + 16 + 1024)).toEqual(pattern(8).subarray(1024, 2048));
  });

  test("indirect descriptors (2.7.5.3)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1 | F.INDIRECT);
    d.offer(d.request(0, 1, 512, true), { from: 5, indirect: true });
    d.notify();
    expect(d.used(0)).toEqual({ id: 5, length: 513 });
    expect(d.memory[BUFFERS + 16]).toBe(pattern(8)[512]);
  });

  test("header and status may be cut anywhere (2.7.4)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.request(0, 1, 512, true);
    d.offer([
      { address: BUFFERS, length: 5 },
      { address: BUFFERS + 5, length: 11 },
      { address: BUFFERS + 16, length: 100, write: true },
      { address: BUFFERS + 116, length: 413, write: true },
    ]);
    d.notify();
    expect(d.status(512)).toBe(0);
    expect(d.memory.slice(BUFFERS + 16, BUFFERS + 528)).toEqual(pattern(8).subarray(512, 1024));
  });

  test("the driver's no-interrupt flag holds the interrupt back (2.7.7)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.view.setUint16(AVAILABLE, 1, true);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect([d.usedIndex, d.irq]).toEqual([1, 0]);
  });

  test("event index: an interrupt only when the used index passes used_event; avail_event follows (2.7.10)", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1 | F.EVENT);
    const usedEvent = AVAILABLE + 4 + 2 * d.size;
    const availEvent = USED + 4 + 8 * d.size;
    d.view.setUint16(usedEvent, 0, true);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.read(0x1000, 1)).toBe(1);
    expect(d.view.getUint16(availEvent, true)).toBe(1);
    d.view.setUint16(usedEvent, 2, true);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.read(0x1000, 1)).toBe(0);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.read(0x1000, 1)).toBe(1);
    expect(d.usedIndex).toBe(3);
  });

  test("both indices wrap at 65536", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    for (let i = 0; i < 65540; i++) {
      d.offer(d.request(4, 0, 0, true));
      d.notify();
    }
    expect(d.usedIndex).toBe(4);
  });

  for (const [what, spoil] of [
    ["a loop", (d: Driver) => d.view.setUint16(TABLE + 16 * 2 + 12, 3, true)],
    ["a descriptor beyond the table", (d: Driver) => d.view.setUint16(TABLE + 14, 100, true)],
    ["an available index that runs away", (d: Driver) => d.view.setUint16(AVAILABLE + 2, 100, true)],
    ["memory that is not there", (d: Driver) => d.view.setBigUint64(TABLE, 0xffff0000n, true)],
  ] as const) {
    test(`${what} makes the device ask for a reset, and nothing else (2.1.2)`, () => {
      const d = disk(new BlockImage("disk", pattern(8)));
      d.start(F.VERSION_1);
      d.offer(d.request(0, 0, 512, true));
      spoil(d);
      d.notify();
      expect(d.read(20, 1) & 0x40).toBe(0x40);
      expect(d.read(0x1000, 1) & 2).toBe(2);
      expect(d.usedIndex).toBe(0);
      d.write(20, 1, 0);
      expect(d.read(20, 1)).toBe(0);
    });
  }

  test("a device that is no bus master does not touch memory", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.config(PciReg.COMMAND, 2, PciCommand.IO | PciCommand.MEMORY);
    d.offer(d.request(0, 0, 512, true));
    d.notify();
    expect(d.usedIndex).toBe(0);
  });
});

describe("the block device (5.2)", () => {
  test("its configuration gives the capacity in sectors of 512 bytes, partial ones rounded up", () => {
    const d = disk(new BlockImage("disk", new Uint8Array(1000)));
    expect([d.read(0x2000, 4), d.read(0x2014, 4)]).toEqual([2, 512]);
  });

  test("what is written can be read again, and the source stays as it was", () => {
    const source = pattern(16);
    const image = new BlockImage("disk", source);
    const d = disk(image);
    d.start(F.VERSION_1);
    const write = d.request(1, 9, 512, false);
    d.memory.fill(0xa5, BUFFERS + 16, BUFFERS + 528);
    d.offer(write);
    d.notify();
    expect([d.status(512), d.used(0).length]).toEqual([0, 1]);
    d.offer(d.request(0, 9, 512, true));
    d.notify();
    expect(d.memory.slice(BUFFERS + 16, BUFFERS + 528).every((b) => b === 0xa5)).toBe(true);
    expect(source).toEqual(pattern(16));
    expect(image.changes().map((c) => [c.offset, c.bytes.length])).toEqual([[4096, 4096]]);
  });

  test("a request beyond the end or of part of a sector is an I/O error, an unknown one unsupported", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    for (const [type, sector, data, status] of [
      [0, 8, 512, 1],
      [0, 0, 100, 1],
      [99, 0, 0, 2],
    ]) {
      d.offer(d.request(type, sector, data, true));
      d.notify();
      expect(d.status(data)).toBe(status);
    }
  });

  test("a read-only image says so, and refuses to be written", () => {
    const d = disk(new BlockImage("disk", pattern(8), true));
    expect(d.features & 0x20n).toBe(0x20n);
    d.start(F.VERSION_1);
    d.offer(d.request(1, 0, 512, false));
    d.notify();
    expect(d.status(512)).toBe(1);
  });

  test("GET_ID gives the serial number; FLUSH succeeds", () => {
    const d = disk(new BlockImage("disk", pattern(8)));
    d.start(F.VERSION_1);
    d.offer(d.request(8, 0, 20, true));
    d.notify();
    expect(new TextDecoder().decode(d.memory.slice(BUFFERS + 16, BUFFERS + 22))).toBe("serial");
    d.offer(d.request(4, 0, 0, true));
    d.notify();
    expect(d.status(0)).toBe(0);
  });

  test("write-zeroes clears exactly its range", () => {
    const image = new BlockImage("disk", pattern(16));
    const d = disk(image);
    d.start(F.VERSION_1);
    const request = d.request(13, 0, 16, false);
    d.view.setBigUint64(BUFFERS + 16, 3n, true);
    d.view.setUint32(BUFFERS + 24, 2, true);
    d.view.setUint32(BUFFERS + 28, 0, true);
    d.offer(request);
    d.notify();
    expect(d.status(16)).toBe(0);
    const expected = pattern(16).fill(0, 1536, 2560);
    expect(image.contents()).toEqual(expected);
  });
});

describe("console and entropy device", () => {
  test("typed bytes wait for a buffer of the driver; what the driver sends comes out (5.3)", () => {
    const sent: number[] = [];
    const clock = newClock();
    let port: VirtioConsole | undefined;
    const d = new Driver((dma) => {
      port = new VirtioConsole(dma, clock, "console", (byte) => sent.push(byte));
      return port;
    });
    d.start(F.VERSION_1, 0);
    port?.receive(Uint8Array.of(1, 2, 3));
    expect(d.usedIndex).toBe(0);
    d.offer([{ address: BUFFERS, length: 2, write: true }]);
    d.notify();
    // A driver is given a moment to get ready.
    expect(d.usedIndex).toBe(0);
    pass(clock, 100_000_000);
    expect([d.usedIndex, d.used(0).length, d.memory[BUFFERS], d.memory[BUFFERS + 1]]).toEqual([1, 2, 1, 2]);
    d.write(0x2008, 4, 0x41);
    expect(sent).toEqual([0x41]);
    const t = new Driver((dma) => new VirtioConsole(dma, clock, "other", (byte) => sent.push(byte)));
    t.start(F.VERSION_1, 1);
    t.memory.set([0x42, 0x43], BUFFERS);
    t.offer([{ address: BUFFERS, length: 2 }]);
    t.notify(1);
    expect(sent).toEqual([0x41, 0x42, 0x43]);
  });

  test("the random bytes differ from each other and are the same in every machine (5.4)", () => {
    const bytes = (): Uint8Array => {
      const d = new Driver((dma) => new VirtioEntropy(dma));
      d.start(F.VERSION_1);
      d.offer([{ address: BUFFERS, length: 256, write: true }]);
      d.notify();
      expect(d.used(0).length).toBe(256);
      return d.memory.slice(BUFFERS, BUFFERS + 256);
    };
    expect(bytes()).toEqual(bytes());
    expect(new Set(bytes()).size).toBeGreaterThan(100);
  });
});
