/**
 * Writes kallsyms tables as scripts/kallsyms.c of the Linux source describes them: names compressed by a table of 256
 * tokens, the pairs of characters that save the most first. For tests only: what it writes has to be read back.
 */

export interface TableSymbol {
  readonly name: string;
  readonly type: string;
  readonly address: bigint;
}

export interface TableLayout {
  /** Before the names (up to Linux 6.3) or behind the tokens (since 6.4). */
  readonly addresses: "before" | "behind";
  /** 64-bit addresses; offsets with absolute per-CPU symbols (up to 6.14); plain offsets (since 6.15). */
  readonly form: "absolute" | "percpu" | "plain";
  /** Bytes of a marker: 8 before Linux 4.20. */
  readonly marker: 4 | 8;
  /** Numbers of symbols in order of name, 3 bytes each, right before the token table (6.2 and 6.3). */
  readonly sequences?: boolean;
}

const bytesOf = (text: string): number[] => [...text].map((c) => c.charCodeAt(0));

/** Replaces the most profitable pair by a free code, again and again. */
function compress(names: readonly string[]): { tokens: string[]; coded: number[][] } {
  const tokens: string[] = Array.from({ length: 256 }, () => "");
  let coded = names.map(bytesOf);
  for (const byte of new Set(coded.flat())) tokens[byte] = String.fromCharCode(byte);
  for (const digit of "0123456789") tokens[digit.charCodeAt(0)] = digit;
  for (let code = 255; code >= 0; code--) {
    if (tokens[code] !== "") continue;
    const counts = new Map<number, number>();
    for (const name of coded)
      for (let i = 0; i + 1 < name.length; i++) {
        const pair = (name[i] << 8) | name[i + 1];
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    const best = [...counts].sort((a, b) => b[1] - a[1])[0];
    if (!best || best[1] < 2) break;
    const [first, second] = [best[0] >> 8, best[0] & 0xff];
    tokens[code] = tokens[first] + tokens[second];
    coded = coded.map((name) => {
      const shorter: number[] = [];
      for (let i = 0; i < name.length; i++) {
        const both = name[i] === first && name[i + 1] === second;
        shorter.push(both ? code : name[i]);
        if (both) i++;
      }
      return shorter;
    });
  }
  return { tokens, coded };
}

class Writer {
  readonly bytes: number[] = [];
  align(): void {
    while (this.bytes.length % 8 !== 0) this.bytes.push(0);
  }
  number(value: bigint | number, size: number): void {
    let rest = BigInt.asUintN(8 * size, BigInt(value));
    for (let i = 0; i < size; i++, rest >>= 8n) this.bytes.push(Number(rest & 0xffn));
  }
}

const KERNEL = 0xffff_8000_0000_0000n;

function writeAddresses(w: Writer, symbols: readonly TableSymbol[], form: TableLayout["form"]): void {
  w.align();
  if (form === "absolute") {
    for (const { address } of symbols) w.number(address, 8);
    return;
  }
  const base = symbols.find(({ address }) => address >= KERNEL)?.address ?? 0n;
  for (const { address } of symbols) {
    if (form === "plain") w.number(address - base, 4);
    else w.number(address >= KERNEL ? base - 1n - address : address, 4);
  }
  w.align();
  w.number(base, 8);
}

/** The tables as bytes, to lie at a multiple of 8. `symbols` must ascend by address. */
export function writeKallsyms(symbols: readonly TableSymbol[], layout: TableLayout): Uint8Array {
  const { tokens, coded } = compress(symbols.map(({ type, name }) => type + name));
  const w = new Writer();
  if (layout.addresses === "before") writeAddresses(w, symbols, layout.form);
  w.align();
  w.number(symbols.length, 4);
  w.align();
  const start = w.bytes.length;
  const markers: number[] = [];
  for (const [i, name] of coded.entries()) {
    if (i % 256 === 0) markers.push(w.bytes.length - start);
    if (name.length < 128) w.number(name.length, 1);
    else {
      w.number((name.length & 0x7f) | 0x80, 1);
      w.number(name.length >> 7, 1);
    }
    w.bytes.push(...name);
  }
  w.align();
  for (const marker of markers) w.number(marker, layout.marker);
  w.align();
  if (layout.sequences) {
    for (const i of symbols.keys()) w.number(symbols.length - 1 - i, 3);
    w.align();
  }
  const offsets: number[] = [];
  const table = w.bytes.length;
  for (const token of tokens) {
    offsets.push(w.bytes.length - table);
    w.bytes.push(...bytesOf(token), 0);
  }
  w.align();
  for (const offset of offsets) w.number(offset, 2);
  if (layout.addresses === "behind") writeAddresses(w, symbols, layout.form);
  w.align();
  return Uint8Array.from(w.bytes);
}
