/** Symbols as the engine needs them: names to addresses for expressions, addresses to names for log lines. */

export interface EngineSymbol {
  readonly name: string;
  /** Linear address. */
  readonly address: bigint;
  /** Bytes; 0 when unknown. */
  readonly size: bigint;
}

export class SymbolIndex {
  private readonly byName = new Map<string, EngineSymbol>();
  private readonly sorted: readonly EngineSymbol[];

  constructor(symbols: readonly EngineSymbol[]) {
    this.sorted = [...symbols].sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
    for (const symbol of symbols) if (!this.byName.has(symbol.name)) this.byName.set(symbol.name, symbol);
  }

  find(name: string): EngineSymbol | undefined {
    return this.byName.get(name);
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
    const symbol = this.sorted[low - 1];
    if (!symbol) return undefined;
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
