/**
 * SMBIOS tables (DMTF DSP0134, version 2.8): what the firmware would say about itself, the board, processors and memory.
 * The entry point lies on a 16-byte boundary between 0xf0000 and 0xfffff, the structures behind it.
 */
import { GiB, MiB } from "../memory/layout";
import { LOW_MEMORY_END } from "./memory-map";

export const SMBIOS_BASE = 0xf0000;
const ENTRY_POINT_SIZE = 0x20;

/** One structure: formatted area behind the 4-byte header, then its strings. */
interface Structure {
  readonly type: number;
  readonly body: readonly number[];
  readonly strings: readonly string[];
}

const word = (v: number): number[] => [v & 0xff, (v >> 8) & 0xff];
const dword = (v: number): number[] => [...word(v), ...word(v >>> 16)];
const zeros = (n: number): number[] => new Array(n).fill(0);

const FIRST_HANDLE = 0x100;
/** "Not provided" and "unknown" of the many code tables. */
const UNKNOWN = 2;

function structures(memory: number, cpus: number): Structure[] {
  const list: Structure[] = [];
  // 7.1 firmware: vendor, version, segment, date, ROM size, characteristics (not supported; virtual machine).
  list.push({
    type: 0,
    body: [1, 2, ...word(0xf000), 3, 0, ...dword(8), ...zeros(4), 0, 0x10, 0, 1, 0xff, 0xff],
    strings: ["Hyperstep", "1", "01/01/2000"],
  });
  // 7.2 system: manufacturer, product, version, serial, UUID, wake-up type power switch, SKU, family.
  list.push({ type: 1, body: [1, 2, 0, 0, ...zeros(16), 6, 0, 0], strings: ["Hyperstep", "Emulated PC"] });
  // 7.4 chassis: type "other".
  list.push({ type: 3, body: [1, 1, 0, 0, 0, 3, 3, 3, UNKNOWN, ...dword(0), 0, 0, 0, 0, 0], strings: ["Hyperstep"] });
  for (let i = 0; i < cpus; i++) {
    // 7.5 processor: socket, type central, family other, id, version, voltage, clocks, status, upgrade, caches, counts.
    list.push({
      type: 4,
      body: [
        ...[1, 3, 1, 2, ...zeros(8), 0, 0, ...word(0), ...word(1000), ...word(1000), 0x41, 1],
        ...[...word(0xffff), ...word(0xffff), ...word(0xffff), 0, 0, 0, 1, 1, 1, ...word(4), ...word(1)],
        ...[...word(1), ...word(1), ...word(1)],
      ],
      strings: [`CPU ${i}`, "Hyperstep"],
    });
  }
  // 7.17 physical memory array: on the board, system memory, no error correction.
  const array = FIRST_HANDLE + list.length;
  const kib = memory / 1024;
  list.push({
    type: 16,
    body: [3, 3, 3, ...(kib < 0x80000000 ? dword(kib) : dword(0x80000000)), ...word(0xfffe), ...word(1), ...zeros(8)],
    strings: [],
  });
  // 7.18 memory device: one DIMM of RAM; sizes of 32 GiB and more do not occur here.
  const mib = Math.floor(memory / MiB);
  const extended = mib >= 0x7fff;
  list.push({
    type: 17,
    body: [
      ...[...word(array), ...word(0xfffe), ...word(64), ...word(64), ...word(extended ? 0x7fff : mib), 9, 0, 1, 0],
      ...[7, ...word(UNKNOWN), ...word(0), 0, 0, 0, 0, 0, ...dword(extended ? mib : 0), ...word(0)],
      ...[...word(0), ...word(0), ...word(0)],
    ],
    strings: ["DIMM 0"],
  });
  // 7.20 mapped addresses, in KiB, one for each range of RAM.
  const low = Math.min(memory, LOW_MEMORY_END);
  const ranges = [{ base: 0, size: low }, ...(memory > low ? [{ base: 4 * GiB, size: memory - low }] : [])];
  for (const r of ranges) {
    list.push({
      type: 19,
      body: [...dword(r.base / 1024), ...dword((r.base + r.size) / 1024 - 1), ...word(array), 1, ...zeros(16)],
      strings: [],
    });
  }
  // 7.33 system boot status: no errors. 7.45 end of table.
  list.push({ type: 32, body: [...zeros(6), 0], strings: [] });
  list.push({ type: 127, body: [], strings: [] });
  return list;
}

function encode(s: Structure, handle: number): number[] {
  const out = [s.type, s.body.length + 4, ...word(handle), ...s.body];
  for (const text of s.strings) out.push(...Array.from(text, (c) => c.charCodeAt(0)), 0);
  // The string set ends with an empty string; without strings it is two zeros.
  out.push(0);
  if (s.strings.length === 0) out.push(0);
  return out;
}

const negatedSum = (bytes: readonly number[]): number => -bytes.reduce((a, b) => a + b, 0) & 0xff;

/** Entry point and structures, to be placed at SMBIOS_BASE. */
export function smbiosTables(memory: number, cpus: number): Uint8Array {
  const encoded = structures(memory, cpus).map((s, i) => encode(s, FIRST_HANDLE + i));
  const table = encoded.flat();
  const largest = Math.max(...encoded.map((e) => e.length));
  // 5.2.1: the intermediate anchor has its own checksum.
  const intermediate = [
    ...Array.from("_DMI_", (c) => c.charCodeAt(0)),
    0,
    ...word(table.length),
    ...dword(SMBIOS_BASE + ENTRY_POINT_SIZE),
    ...word(encoded.length),
    0x28,
  ];
  intermediate[5] = negatedSum(intermediate);
  const entry = [
    ...Array.from("_SM_", (c) => c.charCodeAt(0)),
    0,
    0x1f,
    2,
    8,
    ...word(largest),
    0,
    ...zeros(5),
    ...intermediate,
  ];
  entry[4] = negatedSum(entry);
  return Uint8Array.from([...entry, ...zeros(ENTRY_POINT_SIZE - entry.length), ...table]);
}
