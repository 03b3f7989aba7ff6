/**
 * Line tables (.debug_line, DWARF 2 to 5, section 6.2 of the standard): which address is which line of which file.
 */
import type { ElfSection } from "./elf";

export interface LineRow {
  readonly address: bigint;
  /** As the table names it: directory and name joined, absolute or relative to the compilation directory. */
  readonly file: string;
  readonly line: number;
  readonly isStatement: boolean;
  /** First address behind a sequence; belongs to no line. */
  readonly end: boolean;
}

/** Standard opcodes (6.2.5.2), extended opcodes (6.2.5.3), and content types of DWARF 5 headers (6.2.4.1). */
const Op = {
  COPY: 1,
  ADVANCE_PC: 2,
  ADVANCE_LINE: 3,
  SET_FILE: 4,
  NEGATE: 6,
  CONST_ADD_PC: 8,
  FIXED_ADVANCE_PC: 9,
} as const;
const Extended = { END_SEQUENCE: 1, SET_ADDRESS: 2 } as const;
const Content = { PATH: 1, DIRECTORY: 2 } as const;
/** Forms that header entries use (7.5.6). */
const Form = {
  BLOCK: 0x09,
  DATA1: 0x0b,
  DATA2: 0x05,
  DATA4: 0x06,
  DATA8: 0x07,
  DATA16: 0x1e,
  STRING: 0x08,
  UDATA: 0x0f,
  STRP: 0x0e,
  LINE_STRP: 0x1f,
  SEC_OFFSET: 0x17,
} as const;

const MAX_ROWS = 8_000_000;
const decoder = new TextDecoder("utf-8");

/** Reads the sections' bytes with bounds. */
class Cursor {
  private readonly view: DataView;
  at = 0;

  constructor(
    readonly bytes: Uint8Array,
    private readonly what: string,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  private take(length: number): number {
    const start = this.at;
    if (length < 0 || start + length > this.bytes.length) throw new Error(`${this.what} is damaged: it ends too early`);
    this.at = start + length;
    return start;
  }

  u8(): number {
    return this.view.getUint8(this.take(1));
  }
  i8(): number {
    return this.view.getInt8(this.take(1));
  }
  u16(): number {
    return this.view.getUint16(this.take(2), true);
  }
  u32(): number {
    return this.view.getUint32(this.take(4), true);
  }
  u64(): bigint {
    return this.view.getBigUint64(this.take(8), true);
  }
  skip(length: number): void {
    this.take(length);
  }
  unsigned(size: number): bigint {
    return size === 8
      ? this.u64()
      : size === 4
        ? BigInt(this.u32())
        : size === 2
          ? BigInt(this.u16())
          : BigInt(this.u8());
  }
  uleb(): number {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
  }
  sleb(): number {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      scale *= 128;
      if (byte < 0x80) return byte & 0x40 ? value - scale : value;
    }
  }
  text(): string {
    const start = this.at;
    while (this.u8() !== 0);
    return decoder.decode(this.bytes.subarray(start, this.at - 1));
  }
}

/** The sections a line table needs, by their names without the dot. */
export interface LineSections {
  readonly line: Uint8Array;
  readonly strings: Uint8Array;
  readonly lineStrings: Uint8Array;
}

/** Finds the sections in an ELF file; undefined when it has no line table. Compressed sections are not read. */
export function lineSections(bytes: Uint8Array, sections: readonly ElfSection[]): LineSections | undefined {
  const find = (name: string): Uint8Array => {
    const section = sections.find((s) => s.name === name && s.type === 1 && (s.flags & 0x800n) === 0n);
    return section ? bytes.subarray(section.offset, section.offset + section.size) : new Uint8Array(0);
  };
  const line = find(".debug_line");
  if (line.length === 0) return undefined;
  return { line, strings: find(".debug_str"), lineStrings: find(".debug_line_str") };
}

interface Header {
  readonly addressSize: number;
  readonly minimumLength: number;
  readonly defaultStatement: boolean;
  readonly lineBase: number;
  readonly lineRange: number;
  readonly opcodeLengths: readonly number[];
  readonly files: readonly string[];
  /** Number of the first file: 0 in DWARF 5, 1 before. */
  readonly firstFile: number;
}

const join = (directory: string, name: string): string =>
  name.startsWith("/") || directory === "" || directory === "." ? name : `${directory.replace(/\/$/, "")}/${name}`;

/**
 * All rows of all units, in the order of the tables: addresses rise within a sequence only.
 * @param addressSize bytes of an address in units before DWARF 5 (the ELF class's; 8 for 64-bit code in an ELF32 file is
 *   found out by the length of the operand)
 * @throws Error when the section is damaged
 */
export function readLines(sections: LineSections, addressSize: number): LineRow[] {
  const rows: LineRow[] = [];
  const cursor = new Cursor(sections.line, "the line table");
  while (cursor.at + 4 <= sections.line.length) {
    let length = cursor.u32();
    let offsetSize = 4;
    if (length === 0xffff_ffff) {
      length = Number(cursor.u64());
      offsetSize = 8;
    }
    if (length === 0) continue;
    const end = cursor.at + length;
    if (end > sections.line.length) throw new Error("the line table is damaged: a unit reaches beyond its end");
    const unit = new Cursor(sections.line.subarray(0, end), "the line table");
    unit.at = cursor.at;
    readUnit(unit, offsetSize, addressSize, sections, rows);
    cursor.at = end;
  }
  return rows;
}

function readUnit(
  unit: Cursor,
  offsetSize: number,
  addressSize: number,
  sections: LineSections,
  rows: LineRow[],
): void {
  const version = unit.u16();
  if (version < 2 || version > 5) return;
  let size = addressSize;
  if (version >= 5) {
    size = unit.u8();
    unit.skip(1);
  }
  const headerLength = Number(unit.unsigned(offsetSize));
  const program = unit.at + headerLength;
  const minimumLength = unit.u8();
  if (version >= 4) unit.skip(1);
  const defaultStatement = unit.u8() !== 0;
  const lineBase = unit.i8();
  const lineRange = unit.u8();
  const opcodeBase = unit.u8();
  if (lineRange === 0) throw new Error("the line table is damaged: its line range is 0");
  const opcodeLengths = Array.from({ length: Math.max(0, opcodeBase - 1) }, () => unit.u8());
  const files = version >= 5 ? filesOf5(unit, offsetSize, sections) : filesBefore5(unit);
  unit.at = program;
  run(
    unit,
    {
      addressSize: size,
      minimumLength,
      defaultStatement,
      lineBase,
      lineRange,
      opcodeLengths,
      files,
      firstFile: version >= 5 ? 0 : 1,
    },
    rows,
  );
}

function filesBefore5(unit: Cursor): string[] {
  // Directory 0 is the compilation directory, which the table does not name.
  const directories = [""];
  for (let name = unit.text(); name !== ""; name = unit.text()) directories.push(name);
  const files: string[] = [];
  for (let name = unit.text(); name !== ""; name = unit.text()) {
    files.push(join(directories[unit.uleb()] ?? "", name));
    unit.uleb();
    unit.uleb();
  }
  return files;
}

function filesOf5(unit: Cursor, offsetSize: number, sections: LineSections): string[] {
  const directories = entries(unit, offsetSize, sections).map((e) => e.path);
  const root = directories[0] ?? "";
  return entries(unit, offsetSize, sections).map(({ path, directory }) => {
    const named = directories[directory] ?? "";
    return join(directory === 0 ? root : join(root, named), path);
  });
}

function entries(unit: Cursor, offsetSize: number, sections: LineSections): { path: string; directory: number }[] {
  const formats = Array.from({ length: unit.u8() }, () => [unit.uleb(), unit.uleb()] as const);
  const count = unit.uleb();
  const list: { path: string; directory: number }[] = [];
  for (let i = 0; i < count; i++) {
    let path = "";
    let directory = 0;
    for (const [content, form] of formats) {
      const value = formValue(unit, form, offsetSize, sections);
      if (content === Content.PATH && typeof value === "string") path = value;
      else if (content === Content.DIRECTORY && typeof value === "number") directory = value;
    }
    list.push({ path, directory });
  }
  return list;
}

function formValue(unit: Cursor, form: number, offsetSize: number, sections: LineSections): string | number {
  switch (form) {
    case Form.STRING:
      return unit.text();
    case Form.LINE_STRP:
    case Form.STRP: {
      const strings = new Cursor(
        form === Form.STRP ? sections.strings : sections.lineStrings,
        "the line table's strings",
      );
      strings.at = Number(unit.unsigned(offsetSize));
      return strings.text();
    }
    case Form.UDATA:
      return unit.uleb();
    case Form.DATA1:
      return unit.u8();
    case Form.DATA2:
      return unit.u16();
    case Form.DATA4:
      return unit.u32();
    case Form.DATA8:
      return Number(unit.u64());
    case Form.DATA16:
      unit.skip(16);
      return 0;
    case Form.BLOCK:
      unit.skip(unit.uleb());
      return 0;
    case Form.SEC_OFFSET:
      return Number(unit.unsigned(offsetSize));
    default:
      throw new Error(`the line table uses form 0x${form.toString(16)}, which is not known`);
  }
}

/** The line-number program (6.2.2). */
function run(unit: Cursor, header: Header, rows: LineRow[]): void {
  const { minimumLength, lineBase, lineRange, opcodeLengths, files, firstFile } = header;
  const opcodeBase = opcodeLengths.length + 1;
  let address = 0n;
  let file = 1;
  let line = 1;
  let isStatement = header.defaultStatement;
  const emit = (end: boolean): void => {
    if (rows.length >= MAX_ROWS) throw new Error(`the line table has more than ${MAX_ROWS} rows`);
    rows.push({ address, file: files[file - firstFile] ?? "", line, isStatement, end });
  };
  const advance = (operations: number): void => {
    address += BigInt(operations * minimumLength);
  };
  while (unit.at < unit.bytes.length) {
    const opcode = unit.u8();
    if (opcode >= opcodeBase) {
      const adjusted = opcode - opcodeBase;
      advance(Math.floor(adjusted / lineRange));
      line += lineBase + (adjusted % lineRange);
      emit(false);
      continue;
    }
    switch (opcode) {
      case 0: {
        const length = unit.uleb();
        const next = unit.at + length;
        const extended = unit.u8();
        if (extended === Extended.END_SEQUENCE) {
          emit(true);
          address = 0n;
          file = 1;
          line = 1;
          isStatement = header.defaultStatement;
        } else if (extended === Extended.SET_ADDRESS) address = unit.unsigned(length - 1);
        unit.at = next;
        break;
      }
      case Op.COPY:
        emit(false);
        break;
      case Op.ADVANCE_PC:
        advance(unit.uleb());
        break;
      case Op.ADVANCE_LINE:
        line += unit.sleb();
        break;
      case Op.SET_FILE:
        file = unit.uleb();
        break;
      case Op.NEGATE:
        isStatement = !isStatement;
        break;
      case Op.CONST_ADD_PC:
        advance(Math.floor((255 - opcodeBase) / lineRange));
        break;
      case Op.FIXED_ADVANCE_PC:
        address += BigInt(unit.u16());
        break;
      default:
        for (let i = 0; i < (opcodeLengths[opcode - 1] ?? 0); i++) unit.uleb();
    }
  }
}
