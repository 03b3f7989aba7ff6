/**
 * Listings: guest code without debugging information as a read-only source of disassembly, so that a client has something to
 * show, to put its cursor on, to break at and to jump in. (VS Code does not even select a stack frame that has no source.)
 *
 * A listing is a function when symbols know it, otherwise a window around the address. It stays the same document for as
 * long as its bytes are the same.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { CodeContext } from "../engine/debug/api";
import type { CancelToken, SessionContext } from "./context";
import { codeAddress, type Disassembly } from "./disassembly";
import type { Row } from "./instructions";

interface Listing {
  readonly source: DebugProtocol.Source;
  readonly reference: number;
  readonly text: string;
  /** Row on each line (counted from 0); null for label lines. */
  readonly lines: readonly (Row | null)[];
  readonly lineOf: ReadonlyMap<bigint, number>;
  readonly bits: CodeContext["bits"];
}

/** Source references of listings begin here; those of files in source maps are below. */
const FIRST_REFERENCE = 1_000_000;
const ROWS_BEFORE = 60;
const ROWS_AFTER = 200;
const MAX_FUNCTION = 16_384n;
const BYTES_COLUMN = 32;
const never: CancelToken = { check: () => {} };

export class Listings {
  private listings = new Map<number, Listing>();
  private next = FIRST_REFERENCE;

  constructor(
    private readonly session: SessionContext,
    private readonly disassembly: Disassembly,
  ) {}

  /** Source and line (from 1) that show the code at a linear address; undefined when the memory is not there. */
  async place(
    linear: bigint,
    context: CodeContext,
  ): Promise<{ source: DebugProtocol.Source; line: number } | undefined> {
    const [row] = await this.disassembly.after({ space: "gva", address: linear }, 1, context, never);
    if (!row) return undefined;
    const listing = this.known(row, context) ?? (await this.make(linear, context));
    const line = listing.lineOf.get(linear);
    return line === undefined ? undefined : { source: listing.source, line: line + 1 };
  }

  private known(row: Row, context: CodeContext): Listing | undefined {
    for (const listing of [...this.listings.values()].reverse()) {
      const line = listing.lineOf.get(row.address);
      const there = line === undefined ? null : listing.lines[line];
      if (there && listing.bits === context.bits && same(there.bytes, row.bytes)) return listing;
    }
    return undefined;
  }

  private async make(linear: bigint, context: CodeContext): Promise<Listing> {
    const { symbols } = this.session;
    const found = symbols.at(linear);
    const place = { space: "gva", address: linear } as const;
    let rows: Row[] = await this.disassembly.after(place, 1, context, never);
    // RIP in memory that is not mapped: the one thing to show is that.
    if (rows[0]?.bytes.length === 0) return this.add(codeAddress(linear), rows, context);
    if (found && found.symbol.kind === "function" && found.symbol.size > 0n && found.symbol.size <= MAX_FUNCTION) {
      const { address, size } = found.symbol;
      const all = await this.disassembly.after({ space: "gva", address }, Number(size), context, never);
      rows = all.filter((r) => r.address < address + size);
    } else rows = [];
    if (!rows.some((r) => r.address === linear)) {
      const before = await this.disassembly.before(place, ROWS_BEFORE, context, never);
      const firstReadable = before.findLastIndex((r) => r.bytes.length === 0) + 1;
      const after = await this.disassembly.after(place, ROWS_AFTER, context, never);
      const end = after.findIndex((r) => r.bytes.length === 0);
      rows = [...before.slice(firstReadable), ...(end < 0 ? after : after.slice(0, end))];
    }
    return this.add(found?.symbol.name ?? codeAddress(rows[0].address), rows, context);
  }

  private add(name: string, rows: readonly Row[], context: CodeContext): Listing {
    const { symbols } = this.session;
    const lines: (Row | null)[] = [];
    const text: string[] = [];
    for (const row of rows) {
      const here = symbols.at(row.address);
      if (here?.offset === 0n) {
        lines.push(null);
        text.push(`${here.symbol.name}:`);
      }
      lines.push(row);
      if (row.bytes.length === 0) {
        text.push(`${codeAddress(row.address)}  ??  (no memory is mapped here)`);
        continue;
      }
      const bytes = Array.from(row.bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");
      text.push(`${codeAddress(row.address)}  ${bytes.padEnd(BYTES_COLUMN)}  ${this.disassembly.plainText(row)}`);
    }
    const reference = this.next++;
    const listing: Listing = {
      reference,
      lines,
      text: text.join("\n") + "\n",
      lineOf: new Map(lines.flatMap((row, i) => (row ? [[row.address, i] as const] : []))),
      bits: context.bits,
      source: { name: `${name}.asm`, sourceReference: reference, origin: "disassembly" },
    };
    this.listings.set(reference, listing);
    return listing;
  }

  content(reference: number): string | undefined {
    return this.listings.get(reference)?.text;
  }

  isListing(source: DebugProtocol.Source): boolean {
    return (source.sourceReference ?? 0) >= FIRST_REFERENCE;
  }

  /**
   * Address of the instruction on a line, or of the next one below it.
   * @param line counted from 1
   */
  addressAt(source: DebugProtocol.Source, line: number): { address: bigint; line: number } | undefined {
    const listing = this.listings.get(source.sourceReference ?? 0);
    if (!listing) return undefined;
    for (let i = Math.max(0, line - 1); i < listing.lines.length; i++) {
      const row = listing.lines[i];
      if (row) return { address: row.address, line: i + 1 };
    }
    return undefined;
  }

  /** Lines (from 1) with an instruction between two lines, both included. */
  linesWithCode(source: DebugProtocol.Source, from: number, to: number): number[] {
    const listing = this.listings.get(source.sourceReference ?? 0);
    if (!listing) return [];
    return listing.lines.flatMap((row, i) => (row && i + 1 >= from && i + 1 <= to ? [i + 1] : []));
  }

  /** The guest starts anew: what was shown is gone. */
  forget(): void {
    this.listings = new Map();
  }
}

const same = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((byte, i) => byte === b[i]);
