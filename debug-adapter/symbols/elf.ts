/**
 * Symbols of ELF files (System V gABI, chapters 4 and 5; the x86-64 psABI adds nothing here): ELF32 and ELF64, little-endian
 * x86. 64-bit code inside an ELF32 container, as multiboot images have it, is ordinary here: only addresses are read.
 * Line tables and call frame information are sections of the same list.
 */

export interface ElfSymbol {
  readonly name: string;
  readonly address: bigint;
  readonly size: bigint;
  /** "constant": an absolute value, no address. */
  readonly kind: "function" | "object" | "label" | "constant";
  readonly binding: "local" | "global" | "weak";
}

export interface ElfSection {
  readonly name: string;
  readonly type: number;
  readonly flags: bigint;
  readonly address: bigint;
  readonly offset: number;
  readonly size: number;
  readonly link: number;
  readonly entrySize: number;
}

export interface ElfFile {
  readonly bits: 32 | 64;
  readonly entry: bigint;
  readonly sections: readonly ElfSection[];
  readonly symbols: readonly ElfSymbol[];
}

const MACHINE_386 = 3;
const MACHINE_X86_64 = 62;
const SHT_SYMTAB = 2;
const SHT_DYNSYM = 11;
const SHN_UNDEF = 0;
const SHN_ABS = 0xfff1;
const SHN_XINDEX = 0xffff;
const STT_NOTYPE = 0;
const STT_OBJECT = 1;
const STT_FUNC = 2;
const STT_GNU_IFUNC = 10;
const MAX_SECTIONS = 65_536;
const MAX_SYMBOLS = 4_000_000;

const decoder = new TextDecoder("utf-8");

/** Reads with bounds: a header that lies about an offset gives a clear error, never a wrong slice. */
class Reader {
  private readonly view: DataView;

  constructor(
    readonly bytes: Uint8Array,
    readonly wide: boolean,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  private at(offset: number, length: number, what: string): number {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + length > this.bytes.length)
      throw new Error(`the ELF file is damaged: ${what} lies outside the file`);
    return offset;
  }

  u8(offset: number, what: string): number {
    return this.view.getUint8(this.at(offset, 1, what));
  }
  u16(offset: number, what: string): number {
    return this.view.getUint16(this.at(offset, 2, what), true);
  }
  u32(offset: number, what: string): number {
    return this.view.getUint32(this.at(offset, 4, what), true);
  }
  u64(offset: number, what: string): bigint {
    return this.view.getBigUint64(this.at(offset, 8, what), true);
  }
  /** An address-sized word. */
  word(offset: number, what: string): bigint {
    return this.wide ? this.u64(offset, what) : BigInt(this.u32(offset, what));
  }

  text(table: ElfSection, index: number, what: string): string {
    if (index >= table.size) throw new Error(`the ELF file is damaged: ${what} has a name outside its string table`);
    const start = this.at(table.offset + index, 1, what);
    const limit = Math.min(table.offset + table.size, this.bytes.length);
    let end = start;
    while (end < limit && this.bytes[end] !== 0) end++;
    return decoder.decode(this.bytes.subarray(start, end));
  }
}

/** @throws Error saying what is wrong with the file */
export function readElf(bytes: Uint8Array): ElfFile {
  if (bytes.length < 16 || bytes[0] !== 0x7f || bytes[1] !== 0x45 || bytes[2] !== 0x4c || bytes[3] !== 0x46)
    throw new Error("this is not an ELF file");
  if (bytes[4] !== 1 && bytes[4] !== 2) throw new Error(`unknown ELF class ${bytes[4]}`);
  if (bytes[5] !== 1) throw new Error("the ELF file is big-endian; only x86 files can be read");
  const reader = new Reader(bytes, bytes[4] === 2);
  const { wide } = reader;
  const machine = reader.u16(18, "the header");
  if (machine !== MACHINE_386 && machine !== MACHINE_X86_64)
    throw new Error(`the ELF file is for machine ${machine}; only x86 (3) and x86-64 (62) can be read`);
  const entry = reader.word(24, "the header");
  const sections = readSections(reader);
  const tables = sections.filter((s) => s.type === SHT_SYMTAB);
  const chosen = tables.length > 0 ? tables : sections.filter((s) => s.type === SHT_DYNSYM);
  return { bits: wide ? 64 : 32, entry, sections, symbols: chosen.flatMap((t) => readSymbols(reader, sections, t)) };
}

function readSections(reader: Reader): ElfSection[] {
  const { wide } = reader;
  const tableOffset = Number(reader.word(wide ? 40 : 32, "the header"));
  const entrySize = reader.u16(wide ? 58 : 46, "the header");
  let count = reader.u16(wide ? 60 : 48, "the header");
  let nameIndex = reader.u16(wide ? 62 : 50, "the header");
  if (tableOffset === 0) return [];
  if (entrySize < (wide ? 64 : 40)) throw new Error(`the ELF file is damaged: section headers of ${entrySize} bytes`);
  const raw = (index: number): ElfSection & { nameOffset: number } => {
    const at = tableOffset + index * entrySize;
    const what = `section header ${index}`;
    return {
      name: "",
      nameOffset: reader.u32(at, what),
      type: reader.u32(at + 4, what),
      flags: reader.word(at + 8, what),
      address: reader.word(at + (wide ? 16 : 12), what),
      offset: Number(reader.word(at + (wide ? 24 : 16), what)),
      size: Number(reader.word(at + (wide ? 32 : 20), what)),
      link: reader.u32(at + (wide ? 40 : 24), what),
      entrySize: Number(reader.word(at + (wide ? 56 : 36), what)),
    };
  };
  // More than 65279 sections: the true numbers are in section 0 (gABI, "ELF header", e_shnum and e_shstrndx).
  if (count === 0) count = raw(0).size;
  if (nameIndex === SHN_XINDEX) nameIndex = raw(0).link;
  if (count > MAX_SECTIONS) throw new Error(`the ELF file has ${count} sections; at most ${MAX_SECTIONS} can be read`);
  const headers = Array.from({ length: count }, (_, i) => raw(i));
  const names = headers[nameIndex];
  return headers.map(({ nameOffset, ...section }, i) => ({
    ...section,
    name: names && names.type !== 0 ? reader.text(names, nameOffset, `section ${i}`) : "",
  }));
}

function readSymbols(reader: Reader, sections: readonly ElfSection[], table: ElfSection): ElfSymbol[] {
  const { wide } = reader;
  const size = wide ? 24 : 16;
  const stride = table.entrySize || size;
  if (stride < size) throw new Error(`the ELF file is damaged: symbols of ${stride} bytes`);
  const count = Math.floor(table.size / stride);
  if (count > MAX_SYMBOLS) throw new Error(`the ELF file has ${count} symbols; at most ${MAX_SYMBOLS} can be read`);
  const strings = sections[table.link];
  if (!strings) throw new Error("the ELF file is damaged: its symbol table has no string table");
  const symbols: ElfSymbol[] = [];
  for (let i = 1; i < count; i++) {
    const at = table.offset + i * stride;
    const what = `symbol ${i}`;
    const nameOffset = reader.u32(at, what);
    const info = reader.u8(at + (wide ? 4 : 12), what);
    const section = reader.u16(at + (wide ? 6 : 14), what);
    const type = info & 15;
    const kind = kindOf(type, section);
    if (section === SHN_UNDEF || nameOffset === 0 || kind === undefined) continue;
    symbols.push({
      name: reader.text(strings, nameOffset, what),
      address: reader.word(at + (wide ? 8 : 4), what),
      size: wide ? reader.u64(at + 16, what) : BigInt(reader.u32(at + 8, what)),
      kind,
      binding: info >> 4 === 0 ? "local" : info >> 4 === 2 ? "weak" : "global",
    });
  }
  return symbols;
}

function kindOf(type: number, section: number): ElfSymbol["kind"] | undefined {
  if (type === STT_FUNC || type === STT_GNU_IFUNC) return "function";
  if (type === STT_OBJECT) return "object";
  if (type !== STT_NOTYPE) return undefined;
  return section === SHN_ABS ? "constant" : "label";
}
