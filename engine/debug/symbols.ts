/** Symbols as the engine needs them: names to addresses for expressions, addresses to names for log lines. */

export type SymbolKind = "function" | "object" | "label" | "constant";

export interface EngineSymbol {
  readonly name: string;
  /** Linear address; of a constant, its value. */
  readonly address: bigint;
  /** Bytes; 0 when unknown. */
  readonly size: bigint;
  readonly kind?: SymbolKind;
}

export class SymbolIndex {
  private readonly byName = new Map<string, EngineSymbol>();
  private readonly others = new Map<string, EngineSymbol[]>();
  private readonly sorted: readonly EngineSymbol[];

  constructor(symbols: readonly EngineSymbol[]) {
    this.sorted = symbols
      .filter((symbol) => symbol.kind !== "constant")
      .sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
    for (const symbol of symbols) {
      if (!this.byName.has(symbol.name)) this.byName.set(symbol.name, symbol);
      else {
        const list = this.others.get(symbol.name);
        if (list) list.push(symbol);
        else this.others.set(symbol.name, [symbol]);
      }
    }
  }

  find(name: string): EngineSymbol | undefined {
    return this.byName.get(name);
  }

  /** Every symbol of a name: static functions of several files may share one. */
  all(name: string): readonly EngineSymbol[] {
    const first = this.byName.get(name);
    return first ? [first, ...(this.others.get(name) ?? [])] : [];
  }

  /** The symbol that covers `address`: the nearest at or below it, within its size (4 KiB when it has none). */
  at(address: bigint): EngineSymbol | undefined {
    let low = 0;
    let high = this.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sorted[middle].address <= address) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    // Of several names the first given is the best one.
    let best = low - 1;
    while (best > 0 && this.sorted[best - 1].address === this.sorted[low - 1].address) best--;
    const symbol = this.sorted[best];
    const size = symbol.size > 0n ? symbol.size : 0x1000n;
    return address < symbol.address + size ? symbol : undefined;
  }

  /** Names that begin with `prefix`, at most `limit`. */
  *startingWith(prefix: string, limit: number): Generator<EngineSymbol> {
    let left = limit;
    for (const symbol of this.byName.values()) {
      if (!symbol.name.startsWith(prefix)) continue;
      yield symbol;
      if (--left <= 0) return;
    }
  }
}
