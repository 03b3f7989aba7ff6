import { describe, expect, test } from "vitest";
import { VirtualClock } from "../../engine/clock";
import { type MachineConfig, MachineError } from "../../engine/machine/config";
import { cpuidOf } from "../../engine/machine/cpuid";
import { loadMemory, saveMemory } from "../../engine/machine/host-state";
import type { Ending } from "../../engine/machine/machine";
import { checkMemorySize, e820, GuestMemory, LOW_MEMORY_END, ramRanges } from "../../engine/machine/memory-map";
import { PcBoard } from "../../engine/machine/pc";
import { PhysicalMemory } from "../../engine/memory/physical";

const MIB = 1024 * 1024;

function board() {
  const size = 16 * MIB;
  const physical = new PhysicalMemory(size);
  for (const r of ramRanges(size)) physical.add("ram", r.name, r.base, r.size);
  const memory = new GuestMemory(size, physical, null);
  const config: MachineConfig = {
    accel: "none",
    memory: size,
    smp: 2,
    cpu: "any",
    image: { name: "image", bytes: new Uint8Array(1) },
    append: "words",
    tier: 0,
  };
  const endings: Ending[] = [];
  const levels: [number, boolean][] = [];
  const output: [number, number][] = [];
  const clock = new VirtualClock();
  const b = new PcBoard({
    clock,
    memory,
    config,
    setGsi: (gsi, level) => levels.push([gsi, level]),
    sendMessage: () => {},
    end: (ending) => endings.push(ending),
    output: (index, byte) => output.push([index, byte]),
  });
  return { board: b, memory, physical, endings, levels, output, clock };
}

describe("the board", () => {
  test("port 0xf4 ends with the code, 0x604 powers off, 0xcf9, 0x92 and the 8042 reset", () => {
    const { board: b, endings } = board();
    b.ports.write(0xf4, 1, 0x2a);
    b.ports.write(0x604, 2, 0x2000);
    b.ports.write(0xcf9, 1, 6);
    b.ports.write(0x92, 1, 1);
    b.ports.write(0x64, 1, 0xfe);
    expect(endings).toEqual([
      { kind: "debug-exit", code: 0x2a },
      { kind: "power-off" },
      { kind: "reset" },
      { kind: "reset" },
      { kind: "reset" },
    ]);
  });

  test("both serial ports send, the debug consoles too", () => {
    const { board: b, output } = board();
    b.ports.write(0x3f8, 1, 0x41);
    b.ports.write(0x2f8, 1, 0x42);
    b.ports.write(0xe9, 1, 0x43);
    b.ports.write(0x402, 1, 0x44);
    expect(output).toEqual([
      [0, 0x41],
      [1, 0x42],
      [-1, 0x43],
      [-1, 0x44],
    ]);
    expect(b.ports.read(0xe9, 1)).toBe(0xe9);
  });

  test("only changes of an interrupt line go out", () => {
    const { board: b, levels } = board();
    b.ports.write(0x3fc, 1, 0x0b);
    b.ports.write(0x3f9, 1, 0x02);
    b.ports.write(0x3f8, 1, 0x41);
    b.ports.write(0x3f8, 1, 0x41);
    b.ports.read(0x3fa, 1);
    expect(levels).toEqual([
      [4, true],
      [4, false],
    ]);
  });

  test("a 4-byte access at 0xcf8 is the PCI address, a byte at 0xcf9 the reset control register", () => {
    const { board: b, endings } = board();
    b.ports.write(0xcf8, 4, 0x80000800);
    expect(b.ports.read(0xcfc, 4)).toBe(0x70008086);
    expect(b.ports.read(0xcf8, 4)).toBe(0x80000800);
    expect(endings).toEqual([]);
  });

  test("CMOS tells the extended memory in KiB and the number of processors", () => {
    const { board: b } = board();
    const cell = (i: number): number => {
      b.ports.write(0x70, 1, i);
      return b.ports.read(0x71, 1);
    };
    expect(cell(0x17) | (cell(0x18) << 8)).toBe(15 * 1024);
    expect(cell(0x5f)).toBe(1);
  });

  test("firmware tables: the RSDP at a 16-byte boundary below 1 MiB, COM ports in the BIOS data area", () => {
    const { board: b, memory } = board();
    b.setUpAsFirmware();
    expect(String.fromCharCode(...memory.read(0xe0000, 8))).toBe("RSD PTR ");
    expect([...memory.read(0x400, 4)]).toEqual([0xf8, 3, 0xf8, 2]);
    expect([...memory.read(0x40e, 2)]).toEqual([0xc0, 0x9f]);
  });
});

describe("memory map", () => {
  test("RAM above 3 GiB goes above 4 GiB, and the map says so", () => {
    const size = LOW_MEMORY_END + 512 * MIB;
    expect(ramRanges(size).at(-1)).toMatchObject({ base: 2 ** 32, size: 512 * MIB, offset: LOW_MEMORY_END });
    expect(e820(size).at(-1)).toEqual({ base: 2 ** 32, size: 512 * MIB, type: 1 });
  });

  test("entries are sorted and do not overlap", () => {
    const map = e820(LOW_MEMORY_END + MIB);
    for (let i = 1; i < map.length; i++) expect(map[i].base).toBeGreaterThanOrEqual(map[i - 1].base + map[i - 1].size);
  });

  test.each([
    [12345, /multiple of 4096/],
    [4096, /too little/],
    [64 * 1024 * MIB, /at most/],
    [Number.NaN, /multiple/],
  ])("%d bytes of memory is refused with a reason", (size, message) => {
    expect(() => checkMemorySize(size, 3000 * MIB)).toThrow(MachineError);
    expect(() => checkMemorySize(size, 3000 * MIB)).toThrow(message);
  });

  test("guest memory reads and writes across its ranges and stops at the end", () => {
    const { memory } = board();
    const bytes = new Uint8Array(8).fill(7);
    expect(memory.write(0xbfffc, bytes)).toBe(8);
    expect([...memory.read(0xbfffc, 8)]).toEqual([...bytes]);
    expect(memory.write(16 * MIB - 4, bytes)).toBe(4);
    expect(memory.read(16 * MIB - 4, 100)).toHaveLength(4);
    expect(memory.read(0xfee00000, 4)).toHaveLength(0);
  });
});

describe("saved memory", () => {
  test("comes back exactly, pages that were zero included", () => {
    const { physical, memory } = board();
    memory.write(0x5000, Uint8Array.from([1, 2, 3]));
    const saved = saveMemory(physical);
    expect(saved.bytes.length).toBe(4096);
    memory.write(0x5000, Uint8Array.from([9]));
    memory.write(0x800000, Uint8Array.from([9]));
    loadMemory(physical, saved);
    expect([...memory.read(0x5000, 3)]).toEqual([1, 2, 3]);
    expect(memory.read(0x800000, 1)[0]).toBe(0);
  });
});

describe("CPUID of a vCPU", () => {
  const model = {
    name: "test",
    vendor: "GenuineIntel",
    features: new Set(),
    physicalBits: 40,
    linearBits: 48,
    leaves: [
      { leaf: 0, eax: 0xb, ebx: 0, ecx: 0, edx: 0 },
      { leaf: 1, eax: 0x600, ebx: 0x0800, ecx: 0, edx: 0x1 },
      { leaf: 4, subleaf: 0, eax: 0x121, ebx: 0, ecx: 0, edx: 0 },
      { leaf: 0xb, subleaf: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 },
    ],
  } as const;
  const find = (smp: number, apicId: number, leaf: number, subleaf?: number) =>
    cpuidOf(model as never, { smp, apicId }).find((l) => l.leaf === leaf && l.subleaf === subleaf);

  test("leaf 1 has the initial APIC id, the count, and HTT only with several processors", () => {
    expect(find(4, 3, 1)).toMatchObject({ ebx: 0x03040800, edx: 0x10000001 });
    expect(find(1, 0, 1)).toMatchObject({ ebx: 0x00010800, edx: 1 });
  });

  test("leaf 0BH tells one thread a core and the id bits of the package", () => {
    expect(find(6, 5, 0xb, 0)).toMatchObject({ eax: 0, ebx: 1, ecx: 0x100, edx: 5 });
    expect(find(6, 5, 0xb, 1)).toMatchObject({ eax: 3, ebx: 6, ecx: 0x201, edx: 5 });
  });

  test("leaf 4 tells the addressable core ids less one", () => {
    expect((find(6, 0, 4, 0)?.eax ?? 0) >>> 26).toBe(7);
    expect((find(1, 0, 4, 0)?.eax ?? 0) >>> 26).toBe(0);
  });
});
