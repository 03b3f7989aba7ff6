/** Line tables of a session's files, searched by address and by source line. */
import type { LineRow } from "./dwarf-line";

/** Addresses that belong to one line, in one piece. */
export interface LineRange {
  readonly from: bigint;
  readonly to: bigint;
  readonly file: string;
  readonly line: number;
}

/** A good place to stop: the compiler says a statement begins here. Several lines may begin at one address. */
interface Statement {
  readonly address: bigint;
  readonly file: string;
  readonly line: number;
}

const baseName = (path: string): string => path.slice(Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1);

/** How many trailing parts two paths share. */
function sharedParts(a: string, b: string): number {
  const x = a.split(/[\\/]/).reverse();
  const y = b.split(/[\\/]/).reverse();
  let n = 0;
  while (n < x.length && n < y.length && x[n] === y[n]) n++;
  return n;
}

export class LineTable {
  private ranges: LineRange[] = [];
  private statements: Statement[] = [];
  /** ELF file each source name was found in. */
  private readonly origins = new Map<string, string>();

  /**
   * @param origin the ELF file's path
   * @param slide added to every address
   */
  add(origin: string, rows: readonly LineRow[], slide: bigint): void {
    const added: LineRange[] = [];
    for (let i = 0; i + 1 < rows.length; i++) {
      const { address, file, line, isStatement, end } = rows[i];
      const next = rows[i + 1];
      // A linker leaves the sequences of discarded sections at address 0.
      if (end || file === "" || line === 0 || address === 0n) continue;
      this.origins.set(file, origin);
      if (isStatement) this.statements.push({ address: address + slide, file, line });
      if (next.address > address) added.push({ from: address + slide, to: next.address + slide, file, line });
    }
    this.ranges = [...this.ranges, ...added].sort((a, b) => (a.from < b.from ? -1 : a.from > b.from ? 1 : 0));
  }

  /** The ELF file whose line table names a source. */
  originOf(file: string): string | undefined {
    return this.origins.get(file);
  }

  /** The line an address belongs to. */
  at(address: bigint): LineRange | undefined {
    let low = 0;
    let high = this.ranges.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ranges[middle].from <= address) low = middle + 1;
      else high = middle;
    }
    for (let i = low - 1; i >= 0 && i > low - 8; i--) if (address < this.ranges[i].to) return this.ranges[i];
    return undefined;
  }

  /** All pieces around `address` that belong to the same line without a gap: what a step over the line runs through. */
  lineAround(address: bigint): { from: bigint; to: bigint } | undefined {
    const here = this.at(address);
    if (!here) return undefined;
    const index = this.ranges.indexOf(here);
    let first = index;
    let last = index;
    const same = (r: LineRange | undefined): boolean => r !== undefined && r.file === here.file && r.line === here.line;
    while (same(this.ranges[first - 1]) && this.ranges[first - 1].to >= this.ranges[first].from) first--;
    while (same(this.ranges[last + 1]) && this.ranges[last + 1].from <= this.ranges[last].to) last++;
    return { from: this.ranges[first].from, to: this.ranges[last].to };
  }

  /** Names of files in the tables that a client's path can mean: the best match of trailing path parts. */
  private filesLike(path: string): ReadonlySet<string> {
    const names = this.files.filter((f) => baseName(f) === baseName(path));
    const best = Math.max(0, ...names.map((n) => sharedParts(n, path)));
    return new Set(names.filter((n) => sharedParts(n, path) === best));
  }

  /**
   * Where to stop for a line of a source: everywhere a statement of the line begins, or of the nearest line below it that
   * has code.
   */
  addressesOf(path: string, line: number): { line: number; addresses: readonly bigint[] } | undefined {
    const files = this.filesLike(path);
    const there = this.statements.filter((s) => s.line >= line && files.has(s.file));
    if (there.length === 0) return undefined;
    const actual = there.reduce((least, s) => Math.min(least, s.line), Number.MAX_SAFE_INTEGER);
    const starts = new Set(there.filter((s) => s.line === actual).map((s) => s.address));
    return { line: actual, addresses: [...starts].sort((a, b) => (a < b ? -1 : 1)) };
  }

  /** Lines with code between two lines of a source, both included. */
  linesOf(path: string, from: number, to: number): number[] {
    const files = this.filesLike(path);
    const lines = this.statements.filter((s) => s.line >= from && s.line <= to && files.has(s.file));
    return [...new Set(lines.map((s) => s.line))].sort((a, b) => a - b);
  }

  /** Every file that code came from. */
  get files(): readonly string[] {
    return [...this.origins.keys()];
  }
}
