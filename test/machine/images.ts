/** Small images made by hand, and the memory loaders put them into. */

import type { MachineConfig } from "../../engine/machine/config";
import type { LoadContext } from "../../engine/machine/loaders/image";
import { GuestMemory, ramRanges } from "../../engine/machine/memory-map";
import { PhysicalMemory } from "../../engine/memory/physical";

const MIB = 1024 * 1024;

export function context(bytes: Uint8Array, overrides: Partial<MachineConfig> = {}): LoadContext {
  const memory = overrides.memory ?? 16 * MIB;
  const physical = new PhysicalMemory(memory);
  for (const r of ramRanges(memory)) physical.add("ram", r.name, r.base, r.size);
  const config: MachineConfig = {
    accel: "none",
    memory,
    smp: 1,
    cpu: "any",
    image: { name: "image", bytes },
    append: "",
    tier: 0,
    ...overrides,
  };
  return { memory: new GuestMemory(memory, physical, null), config, rsdp: 0xe0000 };
}

export interface SegmentPart {
  readonly virtual: bigint;
  readonly physical: number;
  readonly bytes: Uint8Array;
  readonly memorySize?: number;
}

export function elf(
  bits: 32 | 64,
  options: { machine?: number; entry: bigint; segments: readonly SegmentPart[] },
): Uint8Array {
  const wide = bits === 64;
  const headerSize = wide ? 64 : 52;
  const entrySize = wide ? 56 : 32;
  const { segments } = options;
  const dataAt = 0x1000;
  const size = dataAt + segments.reduce((n, s) => n + s.bytes.length, 0);
  const out = new Uint8Array(size);
  const v = new DataView(out.buffer);
  out.set([0x7f, 0x45, 0x4c, 0x46, wide ? 2 : 1, 1, 1]);
  v.setUint16(16, 2, true);
  v.setUint16(18, options.machine ?? (wide ? 62 : 3), true);
  v.setUint32(20, 1, true);
  if (wide) {
    v.setBigUint64(24, options.entry, true);
    v.setBigUint64(32, BigInt(headerSize), true);
    v.setUint16(54, entrySize, true);
    v.setUint16(56, segments.length, true);
  } else {
    v.setUint32(24, Number(options.entry), true);
    v.setUint32(28, headerSize, true);
    v.setUint16(42, entrySize, true);
    v.setUint16(44, segments.length, true);
  }
  let offset = dataAt;
  segments.forEach((s, i) => {
    const at = headerSize + i * entrySize;
    const memorySize = s.memorySize ?? s.bytes.length;
    v.setUint32(at, 1, true);
    if (wide) {
      v.setUint32(at + 4, 7, true);
      v.setBigUint64(at + 8, BigInt(offset), true);
      v.setBigUint64(at + 16, s.virtual, true);
      v.setBigUint64(at + 24, BigInt(s.physical), true);
      v.setBigUint64(at + 32, BigInt(s.bytes.length), true);
      v.setBigUint64(at + 40, BigInt(memorySize), true);
    } else {
      v.setUint32(at + 4, offset, true);
      v.setUint32(at + 8, Number(s.virtual), true);
      v.setUint32(at + 12, s.physical, true);
      v.setUint32(at + 16, s.bytes.length, true);
      v.setUint32(at + 20, memorySize, true);
      v.setUint32(at + 24, 7, true);
    }
    out.set(s.bytes, offset);
    offset += s.bytes.length;
  });
  return out;
}

/** A multiboot header with the given flags, and address fields when bit 16 is set. */
export function multibootHeader(flags: number, addresses: readonly number[] = []): Uint8Array {
  const words = [0x1badb002, flags, -(0x1badb002 + flags), ...addresses];
  const out = new Uint8Array(words.length * 4);
  const v = new DataView(out.buffer);
  words.forEach((w, i) => {
    v.setUint32(i * 4, w >>> 0, true);
  });
  return out;
}

export interface BzOptions {
  version?: number;
  sectors?: number;
  xloadflags?: number;
  relocatable?: boolean;
  preferred?: number;
  initSize?: number;
  alignment?: number;
  loadflags?: number;
  kernel?: Uint8Array;
  cmdlineSize?: number;
  initrdMax?: number;
}

export function bzImage(o: BzOptions = {}): Uint8Array {
  const sectors = o.sectors ?? 2;
  const kernel = o.kernel ?? new Uint8Array(0x1000).fill(0x90);
  const start = (sectors + 1) * 512;
  const out = new Uint8Array(start + kernel.length);
  const v = new DataView(out.buffer);
  v.setUint8(0x1f1, sectors);
  v.setUint32(0x1f4, Math.ceil(kernel.length / 16), true);
  v.setUint16(0x1fe, 0xaa55, true);
  v.setUint16(0x200, 0x66eb, true);
  v.setUint32(0x202, 0x53726448, true);
  v.setUint16(0x206, o.version ?? 0x020f, true);
  v.setUint8(0x211, o.loadflags ?? 1);
  v.setUint32(0x214, 0x100000, true);
  v.setUint32(0x22c, o.initrdMax ?? 0x7fffffff, true);
  v.setUint32(0x230, o.alignment ?? 0x1000, true);
  v.setUint8(0x234, o.relocatable ? 1 : 0);
  v.setUint16(0x236, o.xloadflags ?? 1, true);
  v.setUint32(0x238, o.cmdlineSize ?? 255, true);
  v.setBigUint64(0x258, BigInt(o.preferred ?? 0x100000), true);
  v.setUint32(0x260, o.initSize ?? kernel.length, true);
  out.set(kernel, start);
  return out;
}

/** A small deterministic stream of numbers, for property tests. */
export function* stream(seed: number): Generator<number> {
  let s = seed >>> 0;
  for (;;) {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    yield s >>> 8;
  }
}
