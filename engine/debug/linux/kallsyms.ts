/**
 * The symbol table a Linux kernel carries in its own memory (CONFIG_KALLSYMS), found by its structure alone: no symbol, no
 * debug package, no address is needed. What scripts/kallsyms.c writes, 8-byte aligned each:
 *
 *     kallsyms_num_syms     u32
 *     kallsyms_names        num_syms times: length (one byte, two with bit 7 set: Linux 6.1), so many token numbers
 *     kallsyms_markers      offset into names of every 256th symbol: u32, u64 before 4.20
 *     kallsyms_token_table  256 strings; a symbol is the strings of its tokens, its type letter first
 *     kallsyms_token_index  u16 offset into the table of each string
 *
 * and where the symbols are: addresses (u64), or offsets (32 bits) with kallsyms_relative_base (u64) behind; before
 * num_syms up to Linux 6.3, behind token_index since 6.4. Offsets are plain, or with KALLSYMS_ABSOLUTE_PERCPU (up to 6.14)
 * an address itself when not negative, else base - 1 - offset.
 *
 * Each part checks another: the index must name every string's offset, the markers every 256th name, and the addresses must
 * ascend. Random data passes none of it.
 */

export interface KernelSymbol {
  readonly name: string;
  /** Linear address, or the offset inside a processor's area of per-CPU variables. */
  readonly address: bigint;
  /** As nm prints it: "t" code, "d" data, "b" bss, "r" read-only data, "a" absolute, "w" weak; capital when global. */
  readonly type: string;
}

export interface Kallsyms {
  /** In the table's order: ascending addresses. */
  readonly symbols: readonly KernelSymbol[];
  /** Where in the image it was found, for people. */
  readonly layout: string;
}

const TOKENS = 256;
const MARKED = 256;
const DIGIT_0 = 0x30;
const MIN_SYMBOLS = 16;
const MAX_SYMBOLS = 1 << 21;
/** Names, markers and the numbers of symbols sorted by name (3 bytes each) lie at most this far before the token table. */
const MAX_NAMES = 64 << 20;
/** Symbols that must read well before all of them are read. */
const PROBES = 12;
const TYPE = /^[A-Za-z?-]/;

const align8 = (n: number): number => (n + 7) & ~7;

interface TokenTable {
  readonly start: number;
  /** Behind token_index. */
  readonly end: number;
  readonly tokens: readonly string[];
}

class Image {
  private readonly view: DataView;
  constructor(readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  get length(): number {
    return this.bytes.length;
  }
  has(at: number, length: number): boolean {
    return at >= 0 && at + length <= this.length;
  }
  u16(at: number): number {
    return this.view.getUint16(at, true);
  }
  u32(at: number): number {
    return this.view.getUint32(at, true);
  }
  i32(at: number): number {
    return this.view.getInt32(at, true);
  }
  u64(at: number): bigint {
    return this.view.getBigUint64(at, true);
  }
}

/** The digits stand for themselves in every table: "0", "1" ... "9" as ten strings, the first of which has number 48. */
function* digitStrings(bytes: Uint8Array): Generator<number> {
  for (let i = bytes.indexOf(DIGIT_0); i >= 0; i = bytes.indexOf(DIGIT_0, i + 1)) {
    if (bytes[i + 1] !== 0 || bytes[i + 2] !== DIGIT_0 + 1) continue;
    let n = 1;
    while (n < 10 && bytes[i + 2 * n] === DIGIT_0 + n && bytes[i + 2 * n + 1] === 0) n++;
    if (n === 10) yield i;
  }
}

/** The token table around the string "0" at `digit`, when the index behind it agrees with every string. */
function tokenTableAt(image: Image, digit: number): TokenTable | undefined {
  const { bytes } = image;
  // Markers may end right before the first string, so the start is where the index says, not where the bytes look like it.
  let end = digit;
  const offsets: number[] = [];
  for (let n = DIGIT_0; n < TOKENS; n++) {
    offsets.push(end - digit);
    while (end < bytes.length && bytes[end] !== 0) end++;
    end++;
  }
  const index = align8(end);
  if (!image.has(index, 2 * TOKENS) || image.u16(index) !== 0) return undefined;
  const start = digit - image.u16(index + 2 * DIGIT_0);
  if (start < 0) return undefined;
  const tokens: string[] = [];
  let at = start;
  for (let n = 0; n < TOKENS; n++) {
    if (image.u16(index + 2 * n) !== at - start) return undefined;
    const from = at;
    while (at < end && bytes[at] !== 0) at++;
    tokens.push(String.fromCharCode(...bytes.subarray(from, at)));
    at++;
  }
  return { start, end: index + 2 * TOKENS, tokens };
}

/** Length of the name at `at` and where its tokens begin. */
function nameLength(bytes: Uint8Array, at: number): { length: number; tokens: number } {
  const first = bytes[at];
  return first & 0x80
    ? { length: (first & 0x7f) | (bytes[at + 1] << 7), tokens: at + 2 }
    : { length: first, tokens: at + 1 };
}

function nameAt(bytes: Uint8Array, from: number, length: number, tokens: readonly string[]): string {
  let name = "";
  for (let i = from; i < from + length; i++) name += tokens[bytes[i]];
  return name;
}

interface Names {
  /** Where num_syms is. */
  readonly start: number;
  readonly names: readonly string[];
}

/** The names whose count is at `at`, when the first ones read well and the markers behind agree. */
function namesAt(image: Image, at: number, table: TokenTable): Names | undefined {
  const { bytes } = image;
  const count = image.u32(at);
  if (count < MIN_SYMBOLS || count > MAX_SYMBOLS || image.u32(at + 4) !== 0) return undefined;
  const first = at + 8;
  let p = first;
  for (let n = 0; n < PROBES; n++) {
    const { length, tokens } = nameLength(bytes, p);
    if (length === 0 || tokens + length > table.start) return undefined;
    if (!TYPE.test(nameAt(bytes, tokens, length, table.tokens))) return undefined;
    p = tokens + length;
  }
  const marks: number[] = [];
  p = first;
  for (let n = 0; n < count; n++) {
    if (n % MARKED === 0) marks.push(p - first);
    const { length, tokens } = nameLength(bytes, p);
    p = tokens + length;
    if (length === 0 || p > table.start) return undefined;
  }
  const markers = align8(p);
  const agree = (size: 4 | 8): boolean =>
    markers + size * marks.length <= table.start &&
    marks.every((mark, i) => (size === 4 ? image.u32(markers + 4 * i) : Number(image.u64(markers + 8 * i))) === mark);
  if (!agree(4) && !agree(8)) return undefined;
  const names: string[] = [];
  p = first;
  for (let n = 0; n < count; n++) {
    const { length, tokens } = nameLength(bytes, p);
    names.push(nameAt(bytes, tokens, length, table.tokens));
    p = tokens + length;
  }
  return { start: at, names };
}

function findNames(image: Image, table: TokenTable): Names | undefined {
  const lowest = Math.max(0, table.start - MAX_NAMES);
  for (let at = (table.start - 16) & ~7; at >= lowest; at -= 8) {
    const found = namesAt(image, at, table);
    if (found) return found;
  }
  return undefined;
}

function ascending(addresses: BigUint64Array): boolean {
  for (let i = 1; i < addresses.length; i++) if (addresses[i] < addresses[i - 1]) return false;
  return true;
}

const KERNEL_HALF = 0xffff_8000_0000_0000n;

/** Offsets at `at` with their base behind or at `baseAt`. */
function relative(image: Image, at: number, baseAt: number, count: number): BigUint64Array | undefined {
  if (!image.has(at, 4 * count) || !image.has(baseAt, 8)) return undefined;
  const base = image.u64(baseAt);
  if (base < KERNEL_HALF) return undefined;
  const addresses = new BigUint64Array(count);
  for (let i = 0; i < count; i++) {
    const offset = image.i32(at + 4 * i);
    addresses[i] = offset >= 0 ? BigInt(offset) : base - 1n - BigInt(offset);
  }
  if (addresses[count - 1] >= base && ascending(addresses)) return addresses;
  for (let i = 0; i < count; i++) addresses[i] = base + BigInt(image.u32(at + 4 * i));
  return ascending(addresses) && addresses[count - 1] > addresses[0] ? addresses : undefined;
}

function absolute(image: Image, at: number, count: number): BigUint64Array | undefined {
  if (!image.has(at, 8 * count)) return undefined;
  const addresses = new BigUint64Array(count);
  for (let i = 0; i < count; i++) addresses[i] = image.u64(at + 8 * i);
  return addresses[count - 1] >= KERNEL_HALF && ascending(addresses) ? addresses : undefined;
}

function findAddresses(
  image: Image,
  names: Names,
  table: TokenTable,
): { addresses: BigUint64Array; layout: string } | undefined {
  const count = names.names.length;
  const size = align8(4 * count);
  const before = names.start;
  const behind = align8(table.end);
  const tries: readonly [string, () => BigUint64Array | undefined][] = [
    ["offsets behind the tokens", () => relative(image, behind, behind + size, count)],
    ["offsets before the names", () => relative(image, before - 8 - size, before - 8, count)],
    ["addresses behind the tokens", () => absolute(image, behind, count)],
    ["addresses before the names", () => absolute(image, before - 8 * count, count)],
  ];
  for (const [layout, attempt] of tries) {
    const addresses = attempt();
    if (addresses) return { addresses, layout };
  }
  return undefined;
}

/**
 * @param bytes the kernel's image as it lies in memory, relocated, from an address that is a multiple of 8
 * @returns undefined when there is no complete table in it
 */
export function findKallsyms(bytes: Uint8Array): Kallsyms | undefined {
  const image = new Image(bytes);
  for (const digit of digitStrings(bytes)) {
    const table = tokenTableAt(image, digit);
    const names = table && findNames(image, table);
    const found = names && findAddresses(image, names, table);
    if (!found) continue;
    return {
      layout: found.layout,
      symbols: names.names.map((name, i) => ({ type: name[0], name: name.slice(1), address: found.addresses[i] })),
    };
  }
  return undefined;
}
