/**
 * The disassemble request. The client asks for a window around an address and counts on exactly the number of rows it asked
 * for; rows are one flat address space, `symbol` is not drawn by VS Code (so symbols are part of the text), and rows that
 * cannot exist have the address -1.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { CodeContext } from "../engine/debug/api";
import type { CancelToken, Handlers, SessionContext } from "./context";
import type { MemoryReference } from "./format";
import type { GuestSources } from "./guest-sources";
import { type CodeBits, disassembleBackward, disassembleForward, type Row, type Stretch } from "./instructions";
import type { Memory } from "./memory";

const TOP = 1n << 64n;
const PAGE = 4096;
const MAX_LENGTH = 15;
/** Rows fetched at a time: bounds one message, and lets a cancelled request end. */
const CHUNK = 512;
/** Text column of the comment behind an instruction. */
const COMMENT_COLUMN = 36;

/** Addresses of code as clients compare them: by value only, so that rows and frames agree. */
export const codeAddress = (address: bigint): string =>
  `0x${address.toString(16).padStart(address > 0xffff_ffffn ? 16 : 8, "0")}`;

const PADDING: DebugProtocol.DisassembledInstruction = {
  address: "-1",
  instruction: "(outside the address space)",
  presentationHint: "invalid",
};

export class Disassembly {
  constructor(
    private readonly session: SessionContext,
    private readonly memory: Memory,
    private readonly guestSources: GuestSources,
  ) {}

  readonly handlers: Handlers = {
    disassemble: (args: DebugProtocol.DisassembleArguments, token) => this.disassemble(args, token),
  };

  private async disassemble(
    args: DebugProtocol.DisassembleArguments,
    token: CancelToken,
  ): Promise<DebugProtocol.DisassembleResponse["body"]> {
    const reference = await this.memory.resolve(args.memoryReference);
    const base = reference.address + BigInt(args.offset ?? 0);
    const skip = args.instructionOffset ?? 0;
    const count = args.instructionCount;
    const context = await this.session.engine.request("codeContext", { vcpu: this.memory.vcpu });
    const place = { space: reference.space, address: base };
    const before = skip < 0 ? await this.before(place, -skip, context, token) : [];
    const missing = Math.max(0, -skip - before.length);
    const after = await this.after(place, Math.max(0, count + skip), context, token);
    const rows = [...before, ...after].slice(Math.max(0, skip), Math.max(0, skip) + count);
    const named = args.resolveSymbols !== false;
    const printed = await Promise.all(rows.map((row) => this.print(row, reference.space === "gva", named)));
    const instructions = [...Array.from({ length: missing }, () => PADDING), ...printed].slice(0, count);
    while (instructions.length < count) instructions.push(PADDING);
    return { instructions };
  }

  /** `count` rows from a place on, or as many as there are up to the end of the address space. */
  async after(place: MemoryReference, count: number, context: CodeContext, token: CancelToken): Promise<Row[]> {
    const rows: Row[] = [];
    let at = place.address;
    while (rows.length < count && at >= 0n && at < TOP) {
      token.check();
      const want = Math.min(CHUNK, count - rows.length);
      const stretch = await this.stretch({ space: place.space, address: at }, want * MAX_LENGTH);
      if (stretch.bytes.length === 0) break;
      const starts = this.session.symbols.codeStarts(at, at + BigInt(stretch.bytes.length));
      const more = disassembleForward(stretch, bitsOf(context), context.csBase, want, starts);
      rows.push(...more);
      const last = more[more.length - 1];
      at = last.address + BigInt(Math.max(1, last.bytes.length));
    }
    return rows;
  }

  /** The `count` rows before a place, or as many as there are down to address 0. */
  async before(place: MemoryReference, count: number, context: CodeContext, token: CancelToken): Promise<Row[]> {
    let rows: Row[] = [];
    let end = place.address;
    while (rows.length < count && end > 0n && end <= TOP) {
      token.check();
      const want = Math.min(CHUNK, count - rows.length);
      // Room for streams to fall into step before the first row that is wanted.
      const size = BigInt(want * MAX_LENGTH + 64);
      const from = end > size ? end - size : 0n;
      const stretch = await this.stretch({ space: place.space, address: from }, Number(end - from));
      const starts = this.session.symbols.codeStarts(from, end);
      const more = disassembleBackward(stretch, bitsOf(context), context.csBase, want, starts);
      if (more.length === 0) break;
      rows = [...more, ...rows];
      end = more[0].address;
    }
    return rows;
  }

  /** Bytes of a range with what of them is readable, page by page. */
  private async stretch({ space, address }: MemoryReference, length: number): Promise<Stretch> {
    const size = Number(address + BigInt(length) > TOP ? TOP - address : BigInt(length));
    const bytes = new Uint8Array(size);
    const readable = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const there = await this.memory.read({ space, address: address + BigInt(at) }, size - at);
      bytes.set(there, at);
      readable.fill(1, at, at + there.length);
      at += there.length;
      // Behind an unreadable byte memory can only go on in another page.
      if (at < size) at += PAGE - Number((address + BigInt(at)) % BigInt(PAGE));
    }
    return { address, bytes, readable };
  }

  /** Text with the symbol of the branch target or operand behind it. */
  plainText(row: Row): string {
    const target = row.target === undefined ? "" : this.session.symbols.describe(row.target);
    return target ? `${row.text} <${target}>` : row.text;
  }

  /** Text with symbols: of the target, and of the row itself when a symbol begins there. */
  text(row: Row): string {
    const withTarget = this.plainText(row);
    const here = this.session.symbols.at(row.address);
    return here?.offset === 0n ? `${withTarget.padEnd(COMMENT_COLUMN)}; ${here.symbol.name}:` : withTarget;
  }

  private async print(row: Row, linear: boolean, named: boolean): Promise<DebugProtocol.DisassembledInstruction> {
    const place = linear ? await this.guestSources.place(row.address) : undefined;
    const line = place && (this.session.client.linesStartAt1 ? place.line : place.line - 1);
    const symbol = named ? this.session.symbols.describe(row.address) : "";
    return {
      address: codeAddress(row.address),
      ...(row.bytes.length > 0 ? { instructionBytes: printBytes(row.bytes) } : {}),
      instruction: named ? this.text(row) : row.text,
      ...(symbol ? { symbol } : {}),
      ...(place ? { location: place.source, line } : {}),
      ...(row.valid ? {} : { presentationHint: "invalid" as const }),
    };
  }
}

const bitsOf = (context: CodeContext): CodeBits => context.bits;

const printBytes = (bytes: Uint8Array): string => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");
