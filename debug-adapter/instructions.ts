/** Disassembly of bytes that may or may not be readable: text from iced-x86, exact rows in both directions. */
import { Decoder, DecoderOptions, Formatter, FormatterSyntax, Instruction } from "iced-x86";

export type CodeBits = 16 | 32 | 64;

/** One row of a disassembly. */
export interface Row {
  /** Linear (or physical) address. */
  readonly address: bigint;
  /** Empty when the memory is not readable. */
  readonly bytes: Uint8Array;
  readonly text: string;
  /** False for bytes that are no instruction, and for memory that is not there. */
  readonly valid: boolean;
  /** Address of a direct branch or a RIP-relative operand. */
  readonly target?: bigint;
}

/** A stretch of an address space: bytes where they are readable. */
export interface Stretch {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  /** One flag a byte. */
  readonly readable: Uint8Array;
}

const MAX_LENGTH = 15;
const UNREADABLE = "??";

function makeFormatter(): Formatter {
  const formatter = new Formatter(FormatterSyntax.Intel);
  formatter.hexPrefix = "0x";
  formatter.hexSuffix = "";
  formatter.uppercaseHex = false;
  formatter.spaceAfterOperandSeparator = true;
  formatter.branchLeadingZeros = false;
  formatter.showBranchSize = false;
  formatter.ripRelativeAddresses = true;
  formatter.smallHexNumbersInDecimal = false;
  return formatter;
}

let formatter: Formatter | undefined;

/** Decodes at any offset of a stretch. Owns wasm objects: call `free`. */
class StretchDecoder {
  private readonly decoder: Decoder;
  readonly instruction = new Instruction();

  constructor(
    private readonly stretch: Stretch,
    bits: CodeBits,
    private readonly codeBase: bigint,
  ) {
    this.decoder = new Decoder(bits, stretch.bytes, DecoderOptions.None);
  }

  /** Length of the instruction at `offset`, or 0 when there is none. */
  decode(offset: number): number {
    const { stretch, decoder, instruction } = this;
    if (!stretch.readable[offset]) return 0;
    decoder.position = offset;
    decoder.ip = BigInt.asUintN(64, stretch.address + BigInt(offset) - this.codeBase);
    decoder.decodeOut(instruction);
    const { length } = instruction;
    if (instruction.isInvalid || length === 0 || length > MAX_LENGTH) return 0;
    for (let i = 1; i < length; i++) if (!stretch.readable[offset + i]) return 0;
    return length;
  }

  /** The same, and 0 when it would run over one of the offsets `known` to begin code. */
  decodeBefore(known: ReadonlySet<number>, offset: number): number {
    const length = this.decode(offset);
    for (let i = 1; i < length; i++) if (known.has(offset + i)) return 0;
    return length;
  }

  row(offset: number, length: number): Row {
    const { stretch, instruction, codeBase } = this;
    const address = stretch.address + BigInt(offset);
    if (!stretch.readable[offset]) return { address, bytes: new Uint8Array(0), text: UNREADABLE, valid: false };
    const bytes = stretch.bytes.slice(offset, offset + Math.max(1, length));
    if (length === 0)
      return { address, bytes, text: `.byte 0x${bytes[0].toString(16).padStart(2, "0")}`, valid: false };
    formatter ??= makeFormatter();
    const text = formatter.format(instruction);
    const branch = instruction.nearBranchTarget;
    if (branch !== 0n) return { address, bytes, text, valid: true, target: codeBase + branch };
    if (instruction.isIpRelMemoryOperand)
      return { address, bytes, text, valid: true, target: instruction.ipRelMemoryAddress };
    return { address, bytes, text, valid: true };
  }

  free(): void {
    this.decoder.free();
    this.instruction.free();
  }
}

/**
 * Rows from `stretch.address` on. An instruction that would run over one of `starts` (addresses known to begin code) is
 * shown as bytes instead, so that the rows meet them.
 */
export function disassembleForward(
  stretch: Stretch,
  bits: CodeBits,
  codeBase: bigint,
  count: number,
  starts: readonly bigint[],
): Row[] {
  const decoder = new StretchDecoder(stretch, bits, codeBase);
  const known = new Set(starts.map((s) => Number(s - stretch.address)));
  try {
    const rows: Row[] = [];
    for (let offset = 0; offset < stretch.bytes.length && rows.length < count; ) {
      const length = decoder.decodeBefore(known, offset);
      rows.push(decoder.row(offset, length));
      offset += Math.max(1, length);
    }
    return rows;
  } finally {
    decoder.free();
  }
}

/**
 * The `count` rows that end exactly at the end of `stretch`.
 *
 * x86 code cannot be read backwards, but it synchronises itself: decoded from almost any byte, the stream soon falls into
 * the true one. So every byte is tried as a start, each stream votes for the boundaries it passes, and walking back from
 * the end takes the predecessor with most votes. Streams from known starts of code are certain and beat all votes.
 */
export function disassembleBackward(
  stretch: Stretch,
  bits: CodeBits,
  codeBase: bigint,
  count: number,
  starts: readonly bigint[],
): Row[] {
  const decoder = new StretchDecoder(stretch, bits, codeBase);
  try {
    const size = stretch.bytes.length;
    const known = new Set(starts.map((s) => Number(s - stretch.address)));
    const lengths = new Uint8Array(size);
    const votes = new Float64Array(size + MAX_LENGTH + 1);
    for (let offset = 0; offset < size; offset++) {
      const length = decoder.decodeBefore(known, offset);
      lengths[offset] = length;
      votes[offset] += 1;
      if (length > 0) votes[offset + length] += votes[offset];
    }
    for (const start of known) {
      for (let at = start; at >= 0 && at < size && lengths[at] > 0; at += lengths[at]) votes[at] += 1e9;
    }
    const offsets = walkBack(size, count, lengths, votes, stretch.readable);
    return offsets.map((offset) => decoder.row(offset, lengthAt(decoder, offset, lengths)));
  } finally {
    decoder.free();
  }
}

/** Decodes again, so that the decoder's instruction is the one `row` formats; keeps the length that was decided. */
function lengthAt(decoder: StretchDecoder, offset: number, lengths: Uint8Array): number {
  decoder.decode(offset);
  return lengths[offset];
}

function walkBack(
  size: number,
  count: number,
  lengths: Uint8Array,
  votes: Float64Array,
  readable: Uint8Array,
): number[] {
  const offsets: number[] = [];
  let end = size;
  while (end > 0 && offsets.length < count) {
    let best = -1;
    for (let start = end - 1; start >= 0 && start >= end - MAX_LENGTH; start--)
      if (lengths[start] === end - start && (best < 0 || votes[start] > votes[best])) best = start;
    if (best < 0) {
      best = end - 1;
      // No instruction ends here: one byte for itself.
      if (readable[best]) lengths[best] = 0;
    }
    offsets.push(best);
    end = best;
  }
  return offsets.reverse();
}
