import { describe, expect, test } from "vitest";
import { Gpr } from "../../engine/cpu/state";
import { type MachineConfig, MachineError } from "../../engine/machine/config";
import type { EntryState } from "../../engine/machine/entry-state";
import { detectImage } from "../../engine/machine/loaders/detect";
import type { LoadContext } from "../../engine/machine/loaders/image";
import { loadImage } from "../../engine/machine/loaders/load";
import { bzImage, context, elf, multibootHeader, stream } from "./images";

const MIB = 1024 * 1024;
const code = Uint8Array.from([0xfa, 0xf4, 0xeb, 0xfd]);

function load(bytes: Uint8Array, overrides: Partial<MachineConfig> = {}): LoadContext & { entry: EntryState } {
  const c = context(bytes, overrides);
  return { ...c, entry: loadImage(c) };
}
const u32 = (c: LoadContext, at: number): number => {
  const b = c.memory.read(at, 4);
  return new DataView(b.buffer, b.byteOffset).getUint32(0, true);
};
function text(c: LoadContext, at: number): string {
  let s = "";
  for (;;) {
    const [b] = c.memory.read(at + s.length, 1);
    if (!b) return s;
    s += String.fromCharCode(b);
  }
}
const reg = (e: EntryState, n: number): number => Number(e.gpr[n] ?? 0n);
const withHeader = (header: Uint8Array): Uint8Array => Uint8Array.from([...header, ...code]);

describe("ELF", () => {
  const multiboot = (bits: 32 | 64, flags = 3): Uint8Array =>
    elf(bits, {
      entry: 0x10000cn,
      segments: [
        { virtual: 0x100000n, physical: 0x100000, bytes: withHeader(multibootHeader(flags)), memorySize: 0x2000 },
      ],
    });

  test.each([32, 64] as const)("ELF%i with a multiboot header starts as multiboot 3.2 says", (bits) => {
    const { entry } = load(multiboot(bits));
    expect(entry.rip).toBe(0x10000cn);
    expect(reg(entry, Gpr.RAX)).toBe(0x2badb002);
    expect(entry.cr0 & 0x80000001n).toBe(1n);
    expect(entry.cs.limit).toBe(0xffffffff);
    expect(entry.rflags & 0x200).toBe(0);
  });

  test("a segment goes to its physical address, and memory behind its file bytes is zero", () => {
    const c = load(multiboot(32));
    expect([...c.memory.read(0x10000c, 4)]).toEqual([...code]);
    expect(c.memory.read(0x100010, 0x1000).every((b) => b === 0)).toBe(true);
  });

  test("the multiboot information has memory sizes, command line, memory map and loader name", () => {
    const c = load(multiboot(32), { append: "one two" });
    const info = reg(c.entry, Gpr.RBX);
    const flags = u32(c, info);
    expect(flags & 0x245).toBe(0x245);
    expect(u32(c, info + 4)).toBe(639);
    expect(u32(c, info + 8)).toBe(15 * 1024);
    expect(text(c, u32(c, info + 16))).toBe("image one two");
    const map = u32(c, info + 48);
    const length = u32(c, info + 44);
    let ram = 0;
    for (let at = map; at < map + length; at += u32(c, at) + 4) if (u32(c, at + 20) === 1) ram += u32(c, at + 12);
    expect(ram).toBe(0x9fc00 + 15 * MIB);
  });

  test("modules are page-aligned behind the image and carry their argument", () => {
    const module = Uint8Array.from([9, 8, 7]);
    const c = load(multiboot(32), {
      initrd: { name: "disk", bytes: module },
      modules: [{ name: "second", bytes: Uint8Array.from([5]), argument: "second arg" }],
    });
    const info = reg(c.entry, Gpr.RBX);
    expect(u32(c, info + 20)).toBe(2);
    const list = u32(c, info + 24);
    const start = u32(c, list);
    expect(start % 4096).toBe(0);
    expect(start).toBeGreaterThanOrEqual(0x102000);
    expect(u32(c, list + 4) - start).toBe(3);
    expect([...c.memory.read(start, 3)]).toEqual([9, 8, 7]);
    expect(text(c, u32(c, list + 16 + 8))).toBe("second arg");
  });

  test("the video flag gets an EGA text frame buffer", () => {
    const c = load(multiboot(32, 7));
    const info = reg(c.entry, Gpr.RBX);
    expect(u32(c, info) & 0x1000).toBe(0x1000);
    expect(u32(c, info + 88)).toBe(0xb8000);
  });

  test("ELF64 without multiboot starts in 64-bit mode with an identity map", () => {
    const c = load(elf(64, { entry: 0x200000n, segments: [{ virtual: 0x200000n, physical: 0x200000, bytes: code }] }));
    expect(c.entry.rip).toBe(0x200000n);
    expect(c.entry.efer).toBe(0x500n);
    const cr3 = Number(c.entry.cr3);
    const pdpt = u32(c, cr3) & ~0xfff;
    const directory = u32(c, pdpt) & ~0xfff;
    expect(u32(c, directory + 8)).toBe(0x200083);
    expect(reg(c.entry, Gpr.RSP) % 16).toBe(8);
    expect(reg(c.entry, Gpr.RDI)).toBe(0xe0000);
  });

  test("a kernel linked in the last 2 GiB starts there", () => {
    const { entry } = load(
      elf(64, {
        entry: 0xffffffff80200000n,
        segments: [{ virtual: 0xffffffff80200000n, physical: 0x200000, bytes: code }],
      }),
    );
    expect(entry.rip).toBe(0xffffffff80200000n);
  });

  test("a 386 ELF without multiboot starts in 32-bit protected mode", () => {
    const { entry } = load(
      elf(32, { entry: 0x100000n, segments: [{ virtual: 0x100000n, physical: 0x100000, bytes: code }] }),
    );
    expect(entry.cr0).toBe(0x11n);
    expect(entry.rip).toBe(0x100000n);
  });

  const bad = (mutate: (v: DataView) => void, bits: 32 | 64 = 64): Uint8Array => {
    const bytes = elf(bits, { entry: 0x200000n, segments: [{ virtual: 0x200000n, physical: 0x200000, bytes: code }] });
    mutate(new DataView(bytes.buffer));
    return bytes;
  };
  test.each<[string, Uint8Array, RegExp]>([
    ["class", bad((v) => v.setUint8(4, 7)), /ELF class 7/],
    ["byte order", bad((v) => v.setUint8(5, 2)), /big-endian/],
    ["object file", bad((v) => v.setUint16(16, 1, true)), /not an executable.*link it/],
    ["machine", bad((v) => v.setUint16(18, 183, true)), /machine 183/],
    ["no program headers", bad((v) => v.setUint16(56, 0, true)), /no program headers/],
    ["e_phentsize", bad((v) => v.setUint16(54, 8, true)), /e_phentsize is 8/],
    ["e_phoff beyond the file", bad((v) => v.setBigUint64(32, 0x99999n, true)), /p_type.*beyond the end/],
    ["p_offset", bad((v) => v.setBigUint64(72, 0x100000n, true)), /truncated/],
    ["p_filesz above p_memsz", bad((v) => v.setBigUint64(104, 1n, true)), /p_filesz .* above p_memsz/],
    ["p_paddr in the display", bad((v) => v.setBigUint64(88, 0xb8000n, true)), /no free RAM/],
    ["p_paddr beyond RAM", bad((v) => v.setBigUint64(88, 0x80000000n, true)), /more memory/],
    ["huge p_paddr", bad((v) => v.setBigUint64(88, 1n << 60n, true)), /which no machine has/],
    ["e_entry", bad((v) => v.setBigUint64(24, 0x500000n, true)), /e_entry 0x500000 lies in no loaded segment/],
    ["unmapped link address", bad((v) => v.setBigUint64(80, 0x7f0000000000n, true)), /e_entry|do not map/],
  ])("a wrong %s is one clear error", (_what, bytes, message) => {
    expect(() => load(bytes)).toThrow(MachineError);
    expect(() => load(bytes)).toThrow(message);
  });

  test("a load address for an ELF file is refused", () => {
    expect(() => load(multiboot(32), { loadAddress: 0x100000 })).toThrow(/leave out the load address/);
  });
});

describe("multiboot without ELF", () => {
  const flat = (addresses: readonly number[]): Uint8Array => withHeader(multibootHeader(0x10003, addresses));

  test("the header's addresses say where bytes, bss and entry are", () => {
    const c = load(flat([0x100000, 0x100000, 0, 0x101000, 0x100020]));
    expect(c.entry.rip).toBe(0x100020n);
    expect([...c.memory.read(0x100020, 4)]).toEqual([...code]);
  });

  test.each<[string, number[], RegExp]>([
    ["load_addr above header_addr", [0x100000, 0x100010, 0, 0, 0x100020], /header_addr/],
    ["load_end_addr beyond the file", [0x100000, 0x100000, 0x200000, 0, 0x100020], /load_end_addr/],
    ["entry_addr outside", [0x100000, 0x100000, 0, 0, 0x300000], /entry_addr/],
    ["bss_end_addr before the end", [0x100000, 0x100000, 0, 0x100004, 0x100020], /bss_end_addr/],
  ])("%s is one clear error", (_what, addresses, message) => {
    expect(() => load(flat(addresses))).toThrow(message);
  });

  test("required features nobody knows are refused by name", () => {
    const bytes = withHeader(multibootHeader(0x10083, [0x100000, 0x100000, 0, 0, 0x100020]));
    expect(() => load(bytes)).toThrow(/features 0x80/);
  });

  test("a header with a wrong checksum is no header", () => {
    const bytes = flat([0x100000, 0x100000, 0, 0, 0x100020]);
    bytes[8] ^= 1;
    expect(detectImage(bytes)).toBe("flat");
  });
});

describe("Linux boot protocol", () => {
  test("XLF_KERNEL_64: 64-bit entry 0x200 behind the start, RSI = zero page, __BOOT_CS and __BOOT_DS", () => {
    const { entry } = load(bzImage({ initSize: 0x8000 }));
    expect(entry.rip).toBe(0x100200n);
    expect(entry.efer).toBe(0x500n);
    expect(entry.cs.selector).toBe(0x10);
    expect(entry.data.selector).toBe(0x18);
    expect(reg(entry, Gpr.RSI)).toBeGreaterThan(0);
  });

  test("without it: 32-bit entry at the start, paging off", () => {
    const { entry } = load(bzImage({ xloadflags: 0 }));
    expect(entry.rip).toBe(0x100000n);
    expect(entry.cr0).toBe(0x11n);
    expect(reg(entry, Gpr.RBX) | reg(entry, Gpr.RBP) | reg(entry, Gpr.RDI)).toBe(0);
  });

  test("the zero page has the set-up header, loader type, command line, e820 map and the RSDP", () => {
    const c = load(bzImage(), { append: "console=ttyS0" });
    const zero = reg(c.entry, Gpr.RSI);
    expect(u32(c, zero + 0x202)).toBe(0x53726448);
    expect(c.memory.read(zero + 0x210, 1)[0]).toBe(0xff);
    expect(text(c, u32(c, zero + 0x228))).toBe("console=ttyS0");
    expect(u32(c, zero + 0x70)).toBe(0xe0000);
    const n = c.memory.read(zero + 0x1e8, 1)[0];
    let ram = 0;
    for (let i = 0; i < n; i++) if (u32(c, zero + 0x2d0 + i * 20 + 16) === 1) ram += u32(c, zero + 0x2d0 + i * 20 + 8);
    expect(ram).toBe(0x9fc00 + 15 * MIB);
  });

  test("the initrd lies page-aligned as high as initrd_addr_max allows, clear of the kernel", () => {
    const disk = new Uint8Array(5000).fill(7);
    const c = load(bzImage({ initrdMax: 0x7fffff }), { initrd: { name: "disk", bytes: disk } });
    const zero = reg(c.entry, Gpr.RSI);
    const at = u32(c, zero + 0x218);
    expect(at).toBe(0x7fe000);
    expect(u32(c, zero + 0x21c)).toBe(5000);
    expect(c.memory.read(at + 4999, 1)[0]).toBe(7);
  });

  test("a relocatable kernel whose preferred address has no RAM moves to the first aligned place", () => {
    const { entry } = load(bzImage({ preferred: 64 * MIB, relocatable: true, alignment: 0x200000 }));
    expect(entry.rip).toBe(0x200200n);
  });

  const patch = (mutate: (v: DataView) => void): Uint8Array => {
    const bytes = bzImage();
    mutate(new DataView(bytes.buffer));
    return bytes;
  };
  test.each<[string, Uint8Array, RegExp]>([
    ["boot_flag", patch((v) => v.setUint16(0x1fe, 0, true)), /boot_flag/],
    ["old protocol", bzImage({ version: 0x0105 }), /protocol 1.5 is too old/],
    ["zImage", bzImage({ loadflags: 0 }), /LOADED_HIGH/],
    ["setup_sects", patch((v) => v.setUint8(0x1f1, 200)), /setup_sects 200/],
    ["syssize", patch((v) => v.setUint32(0x1f4, 0x10000, true)), /syssize/],
    ["kernel_alignment", bzImage({ alignment: 0x3000 }), /kernel_alignment/],
    ["preferred address without RAM", bzImage({ preferred: 64 * MIB }), /pref_address.*more memory/],
    ["init_size", bzImage({ initSize: 512 * MIB }), /init_size/],
  ])("a wrong %s is one clear error", (_what, bytes, message) => {
    expect(() => load(bytes)).toThrow(MachineError);
    expect(() => load(bytes)).toThrow(message);
  });

  test("a command line above cmdline_size is refused", () => {
    expect(() => load(bzImage({ cmdlineSize: 10 }), { append: "0123456789a" })).toThrow(/cmdline_size/);
  });
});

describe("flat images", () => {
  const sector = new Uint8Array(512);
  sector.set([0x55, 0xaa], 510);

  test("a boot sector starts at 0:7c00 in real mode with DL = 0x80", () => {
    const { entry } = load(sector);
    expect([entry.cs.selector, entry.rip, entry.cr0]).toEqual([0, 0x7c00n, 0x10n]);
    expect(reg(entry, Gpr.RDX)).toBe(0x80);
  });

  test("addresses from 64 KiB to 1 MiB start with CS = address >> 4", () => {
    const { entry } = load(code, { loadAddress: 0x20008 });
    expect([entry.cs.selector, entry.cs.base, entry.rip]).toEqual([0x2000, 0x20000, 8n]);
  });

  test("addresses from 1 MiB on start in protected mode", () => {
    const { entry } = load(code, { loadAddress: 0x100000 });
    expect([entry.rip, entry.cr0]).toEqual([0x100000n, 0x11n]);
  });

  test("without a load address an unknown file says what to do", () => {
    expect(() => load(code)).toThrow(/neither ELF, Linux bzImage nor multiboot.*--load-address/);
    expect(() => load(new Uint8Array(0))).toThrow(/empty/);
    expect(() => load(code, { loadAddress: 0x100000000 })).toThrow(/load address/);
    expect(() => load(code, { loadAddress: 0x3000000 })).toThrow(/no free RAM/);
  });
});

describe("lying headers", () => {
  const images: readonly (readonly [string, Uint8Array])[] = [
    [
      "ELF64",
      elf(64, {
        entry: 0x100000n,
        segments: [
          { virtual: 0x100000n, physical: 0x100000, bytes: new Uint8Array(600).fill(0x90) },
          { virtual: 0x200000n, physical: 0x200000, bytes: code, memorySize: 0x10000 },
        ],
      }),
    ],
    [
      "ELF32 multiboot",
      elf(32, {
        entry: 0x10000cn,
        segments: [{ virtual: 0x100000n, physical: 0x100000, bytes: withHeader(multibootHeader(7)) }],
      }),
    ],
    ["bzImage", bzImage({ relocatable: true })],
    ["multiboot", withHeader(multibootHeader(0x10003, [0x100000, 0x100000, 0, 0x101000, 0x100020]))],
  ];

  /** Loading either works or says why in a MachineError that names the image; nothing else may come out. */
  function tolerate(bytes: Uint8Array, what: string): void {
    try {
      load(bytes, { memory: 4 * MIB });
    } catch (error) {
      if (!(error instanceof MachineError)) throw new Error(`${what}: ${String(error)}`);
      expect(error.message).toMatch(/^image: .+; .+/);
    }
  }

  test.each(images)("%s cut off anywhere loads or is refused with a reason", (name, bytes) => {
    for (let length = 0; length <= bytes.length; length += length < 700 ? 7 : 97) {
      tolerate(bytes.slice(0, length), `${name} cut to ${length}`);
    }
  });

  test.each(images)("%s with random header bytes loads or is refused with a reason", (name, bytes) => {
    const random = stream(12345);
    const next = (below: number): number => (random.next().value as number) % below;
    const header = Math.min(bytes.length, 0x290);
    for (let i = 0; i < 150; i++) {
      const copy = bytes.slice();
      for (let j = 0; j <= next(4); j++) copy[next(header)] = [0, 1, 0x7f, 0x80, 0xff, next(256)][next(6)];
      tolerate(copy, `${name} variant ${i}`);
    }
  });
});
