/** All symbols of a session: several files, each with its own slide, searched by name and by address. */
import type { ElfSymbol } from "./elf";

export interface Symbol {
  readonly name: string;
  /** Linear address, slide applied. */
  readonly address: bigint;
  readonly size: bigint;
  readonly kind: ElfSymbol["kind"];
  /** File it came from. */
  readonly file: string;
}

/** How far a symbol without a size reaches when nothing follows it. */
const UNSIZED_REACH = 0x1000n;
const RANK = { function: 0, object: 1, label: 2, constant: 3 } as const;
const BINDING = { global: 0, weak: 1, local: 2 } as const;

export class SymbolTable {
  private sorted: Symbol[] = [];
  private readonly list: Symbol[] = [];
  private readonly byName = new Map<string, Symbol>();

  add(file: string, symbols: readonly ElfSymbol[], slide: bigint): void {
    const added = symbols
      .filter((s) => s.name !== "" && !s.name.startsWith(".L"))
      .sort((a, b) => BINDING[a.binding] - BINDING[b.binding])
      .map(({ name, address, size, kind }) => ({
        name,
        address: BigInt.asUintN(64, address + slide),
        size,
        kind,
        file,
      }));
    this.addAll(added);
  }

  /** Symbols as they are, the best first of those with the same name or address. */
  addAll(added: readonly Symbol[]): void {
    for (const symbol of added) {
      this.list.push(symbol);
      if (!this.byName.has(symbol.name)) this.byName.set(symbol.name, symbol);
    }
    // A stable sort: of equals, functions first, then global before local.
    this.sorted = [...this.sorted, ...added.filter((symbol) => symbol.kind !== "constant")].sort((a, b) =>
      a.address < b.address ? -1 : a.address > b.address ? 1 : RANK[a.kind] - RANK[b.kind],
    );
  }

  /** Every symbol that has an address. */
  get all(): readonly Symbol[] {
    return this.sorted;
  }

  /** Constants too, and of equal names all. In the order they were added. */
  get everything(): readonly Symbol[] {
    return this.list;
  }

  find(name: string): Symbol | undefined {
    return this.byName.get(name);
  }

  /** Index of the first symbol above `address`. */
  private above(address: bigint): number {
    let low = 0;
    let high = this.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sorted[middle].address <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The symbol `address` lies in, and how far inside. */
  at(address: bigint): { symbol: Symbol; offset: bigint } | undefined {
    const next = this.above(address);
    for (let i = next - 1; i >= 0 && i > next - 32; i--) {
      const first = this.firstAt(i);
      const symbol = this.sorted[first];
      const offset = address - symbol.address;
      if (symbol.size > 0n ? offset < symbol.size : offset === 0n || this.reaches(i, address))
        return { symbol, offset };
      i = first;
    }
    return undefined;
  }

  /** Index of the best symbol with the address of the one at `index`. */
  private firstAt(index: number): number {
    let i = index;
    while (i > 0 && this.sorted[i - 1].address === this.sorted[index].address) i--;
    return i;
  }

  /** A label without a size covers what lies between it and the next symbol, but stays inside the function it lies in. */
  private reaches(index: number, address: bigint): boolean {
    const label = this.sorted[index];
    if (address - label.address >= UNSIZED_REACH) return false;
    const next = this.sorted[index + 1];
    if (next && address >= next.address) return false;
    for (let i = index - 1; i >= 0 && i > index - 32; i--) {
      const around = this.sorted[i];
      if (around.size > 0n)
        return label.address >= around.address + around.size || address < around.address + around.size;
    }
    return true;
  }

  /** `name`, `name+0x10`, or "" when nothing is known of the address. */
  describe(address: bigint): string {
    const found = this.at(address);
    if (!found) return "";
    return found.offset === 0n ? found.symbol.name : `${found.symbol.name}+0x${found.offset.toString(16)}`;
  }

  /** Functions and labels that begin inside [from, to), in order. */
  codeStarts(from: bigint, to: bigint): bigint[] {
    const starts: bigint[] = [];
    for (let i = this.above(from - 1n); i < this.sorted.length && this.sorted[i].address < to; i++)
      if (this.sorted[i].kind !== "object") starts.push(this.sorted[i].address);
    return starts;
  }

  /** Names that contain `text`. */
  matching(text: string, limit: number): Symbol[] {
    const lower = text.toLowerCase();
    const found: Symbol[] = [];
    for (const symbol of this.byName.values()) {
      if (!symbol.name.toLowerCase().includes(lower)) continue;
      found.push(symbol);
      if (found.length >= limit) break;
    }
    return found.sort((a, b) => (a.address < b.address ? -1 : 1));
  }
}
