import { describe, expect, test } from "vitest";
import { BlockImage } from "../../engine/devices/block-image";
import { AtaDisk } from "../../engine/devices/ide/ata-disk";
import { AtapiCdrom } from "../../engine/devices/ide/atapi-cdrom";
import { IdeChannel } from "../../engine/devices/ide/channel";

const SECTORS = 4096;
const READY = 0x40;
const DRQ = 0x08;
const ERROR = 0x01;

function contents(): Uint8Array {
  const bytes = new Uint8Array(SECTORS * 512);
  for (let s = 0; s < SECTORS; s++) new DataView(bytes.buffer).setUint32(s * 512, s, true);
  return bytes;
}

function channel() {
  const disk = new BlockImage("disk", contents());
  const disc = new BlockImage("disc", contents(), true);
  const ram = new Uint8Array(1 << 20);
  const irq = { level: false, edges: 0 };
  const c = new IdeChannel(
    [new AtaDisk(disk, "HS1"), new AtapiCdrom(disc, "HS2")],
    {
      set: (level) => {
        if (level && !irq.level) irq.edges++;
        irq.level = level;
      },
    },
    {
      read: (address, length) => ram.slice(address, address + length),
      write: (address, bytes) => ram.set(bytes, address),
    },
  );
  const { commandBlock: r, controlBlock } = c;
  return {
    ...{ c, disk, ram, irq, controlBlock },
    set: (register: number, value: number) => r.write(register, 1, value),
    get: (register: number) => r.read(register, 1),
    status: () => controlBlock.read(0, 1),
    word: () => r.read(0, 2),
    words: (n: number) => Array.from({ length: n }, () => r.read(0, 2)),
    put: (value: number) => r.write(0, 2, value),
    /** 28-bit LBA command to drive 0. */
    lba: (command: number, sector: number, count: number) => {
      r.write(6, 1, 0xe0 | (sector >>> 24));
      r.write(2, 1, count);
      r.write(3, 1, sector);
      r.write(4, 1, sector >>> 8);
      r.write(5, 1, sector >>> 16);
      r.write(7, 1, command);
    },
    packet: (bytes: number[], limit = 2048, features = 0) => {
      r.write(6, 1, 0xb0);
      r.write(1, 1, features);
      r.write(4, 1, limit & 0xff);
      r.write(5, 1, limit >> 8);
      r.write(7, 1, 0xa0);
      const p = [...bytes, ...new Array(12 - bytes.length).fill(0)];
      for (let i = 0; i < 12; i += 2) r.write(0, 2, p[i] | (p[i + 1] << 8));
    },
  };
}

describe("an ATA disk (ATA/ATAPI-6)", () => {
  test("READ SECTORS: an interrupt for each sector, cleared by reading the status; DRQ until the last word", () => {
    const d = channel();
    d.lba(0x20, 5, 2);
    expect([d.irq.edges, d.status()]).toEqual([1, READY | DRQ | 0x10]);
    expect(d.get(7) & DRQ).toBe(DRQ);
    expect(d.irq.level).toBe(false);
    expect(d.words(256)[0]).toBe(5);
    expect(d.irq.edges).toBe(2);
    expect(d.words(256)[0]).toBe(6);
    expect([d.irq.edges, d.get(7) & (DRQ | ERROR)]).toEqual([2, 0]);
  });

  test("WRITE SECTORS: no interrupt before the first block, one behind each", () => {
    const d = channel();
    d.lba(0x30, 7, 1);
    expect(d.irq.edges).toBe(0);
    for (let i = 0; i < 256; i++) d.put(0xbeef);
    expect([d.irq.edges, d.get(7) & DRQ]).toEqual([1, 0]);
    expect([...d.disk.read(7 * 512, 2)]).toEqual([0xef, 0xbe]);
  });

  test("READ MULTIPLE needs SET MULTIPLE MODE, then interrupts once a block", () => {
    const d = channel();
    d.lba(0xc4, 0, 4);
    expect(d.get(7) & ERROR).toBe(ERROR);
    d.lba(0xc6, 0, 4);
    const before = d.irq.edges;
    d.get(7);
    d.lba(0xc4, 8, 8);
    d.get(7);
    d.words(1024);
    d.get(7);
    expect(d.words(1024)[0]).toBe(12);
    expect(d.irq.edges - before).toBe(2);
  });

  test("a 48-bit command takes the registers' previous contents as its high half", () => {
    const d = channel();
    for (const [register, high, low] of [
      [2, 0, 1],
      [3, 0, 0x34],
      [4, 0, 0x0a],
      [5, 0, 0],
    ]) {
      d.set(register, high);
      d.set(register, low);
    }
    d.set(6, 0x40);
    d.set(7, 0x24);
    expect(d.word()).toBe(0xa34);
  });

  test("beyond the last sector: IDNF; an unknown command: ABRT", () => {
    const d = channel();
    d.lba(0x20, SECTORS, 1);
    expect([d.get(7) & ERROR, d.get(1)]).toEqual([1, 0x10]);
    d.lba(0xfe, 0, 0);
    expect([d.get(7) & ERROR, d.get(1)]).toEqual([1, 0x04]);
  });

  test("IDENTIFY DEVICE: capacity in words 60-61 and 100-103, LBA and DMA in word 49", () => {
    const d = channel();
    d.lba(0xec, 0, 0);
    const w = d.words(256);
    expect([w[60] | (w[61] << 16), w[100], w[49] & 0x300]).toEqual([SECTORS, SECTORS, 0x300]);
  });

  test("READ DMA goes by the descriptor table when the bus master is started (SFF-8038i)", () => {
    const d = channel();
    const view = new DataView(d.ram.buffer);
    view.setUint32(0x1000, 0x2000, true);
    view.setUint32(0x1004, 512, true);
    view.setUint32(0x1008, 0x8000, true);
    view.setUint32(0x100c, 0x80000000 | 512, true);
    d.c.busMaster.write(4, 4, 0x1000);
    d.lba(0xc8, 20, 2);
    expect(d.irq.edges).toBe(0);
    d.c.busMaster.write(0, 1, 9);
    expect([view.getUint32(0x2000, true), view.getUint32(0x8000, true)]).toEqual([20, 21]);
    expect([d.irq.edges, d.c.busMaster.read(2, 1) & 7]).toEqual([1, 4]);
  });

  test("software reset leaves the signature; an absent drive reads as zero", () => {
    const d = channel();
    d.controlBlock.write(0, 1, 4);
    d.controlBlock.write(0, 1, 0);
    expect([d.get(2), d.get(3), d.get(4), d.get(5)]).toEqual([1, 1, 0, 0]);
    d.set(6, 0xb0);
    expect([d.get(4), d.get(5)]).toEqual([0x14, 0xeb]);
    const alone = new IdeChannel([null, null], { set: () => {} }, { read: () => new Uint8Array(0), write: () => {} });
    expect(alone.commandBlock.read(7, 1)).toBe(0);
  });

  test("with nIEN there is no interrupt", () => {
    const d = channel();
    d.controlBlock.write(0, 1, 2);
    d.lba(0x20, 0, 1);
    expect(d.irq.edges).toBe(0);
  });
});

describe("an ATAPI CD-ROM drive", () => {
  test("IDENTIFY DEVICE is aborted with the packet signature; IDENTIFY PACKET DEVICE answers", () => {
    const d = channel();
    d.set(6, 0xb0);
    d.set(7, 0xec);
    expect([d.get(7) & ERROR, d.get(4), d.get(5)]).toEqual([1, 0x14, 0xeb]);
    d.set(7, 0xa1);
    expect(d.word()).toBe(0x85c0);
  });

  test("READ(10): the byte count says how much comes, the interrupt reason which phase it is", () => {
    const d = channel();
    d.packet([0x28, 0, 0, 0, 0, 3, 0, 0, 2], 2048);
    expect([d.get(2), d.get(4) | (d.get(5) << 8), d.irq.edges]).toEqual([2, 2048, 1]);
    d.get(7);
    expect(d.words(1024)[0]).toBe(12);
    expect(d.irq.edges).toBe(2);
    d.get(7);
    expect(d.words(1024)[0]).toBe(16);
    expect([d.get(2), d.irq.edges, d.get(7) & (DRQ | ERROR)]).toEqual([3, 3, 0]);
  });

  test("READ CAPACITY gives the last block and 2048", () => {
    const d = channel();
    d.packet([0x25]);
    const w = d.words(4).map((x) => ((x & 0xff) << 8) | (x >> 8));
    expect(w).toEqual([0, SECTORS / 4 - 1, 0, 2048]);
  });

  test("an unknown packet fails with a check condition, whose sense is then read", () => {
    const d = channel();
    d.packet([0xff]);
    expect([d.get(7) & ERROR, d.get(1) >> 4]).toEqual([1, 5]);
    d.packet([0x03, 0, 0, 0, 18]);
    const w = d.words(9);
    expect([w[1] & 0xf, w[6] & 0xff]).toEqual([5, 0x20]);
  });

  test("a packet with the DMA feature goes by the bus master", () => {
    const d = channel();
    const view = new DataView(d.ram.buffer);
    view.setUint32(0x1000, 0x4000, true);
    view.setUint32(0x1004, 0x80000000 | 2048, true);
    d.c.busMaster.write(4, 4, 0x1000);
    d.packet([0x28, 0, 0, 0, 0, 1, 0, 0, 1], 0, 1);
    d.c.busMaster.write(0, 1, 9);
    expect(view.getUint32(0x4000, true)).toBe(4);
    expect(d.irq.edges).toBe(1);
  });

  test("the state of a transfer in the middle is copied and taken back", () => {
    const d = channel();
    d.lba(0x20, 9, 1);
    d.words(10);
    const saved = structuredClone(d.c.state);
    const rest = d.words(246);
    d.c.state = structuredClone(saved);
    expect(d.words(246)).toEqual(rest);
  });
});
