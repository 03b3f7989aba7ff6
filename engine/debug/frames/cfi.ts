/**
 * Call frame information: DWARF 5 section 6.4, and its form in .eh_frame (Linux Standard Base Core 5.0, 10.6). For a code
 * address it tells how to get at the caller's registers: the canonical frame address (CFA) from a register or an
 * expression, and where each saved register lies. Entries are indexed when the first address is asked for.
 */
import type { FrameTable } from "./table";

export type CfaRule =
  | { readonly kind: "register"; readonly register: number; readonly offset: bigint }
  | { readonly kind: "expression"; readonly code: Uint8Array };

export type RegisterRule =
  | { readonly kind: "undefined" }
  | { readonly kind: "same" }
  /** Saved at CFA + offset; `value`: the register is CFA + offset itself. */
  | { readonly kind: "offset"; readonly offset: bigint; readonly value: boolean }
  | { readonly kind: "register"; readonly register: number }
  | { readonly kind: "expression"; readonly code: Uint8Array; readonly value: boolean };

/** How to unwind from one address. Registers by their DWARF numbers. */
export interface FrameRow {
  readonly cfa: CfaRule;
  readonly rules: ReadonlyMap<number, RegisterRule>;
  readonly returnRegister: number;
  /** A signal trampoline: the address is that of the interrupted instruction itself. */
  readonly signal: boolean;
  readonly pointer: 4 | 8;
  /** First address and end of the function's entry. */
  readonly from: bigint;
  readonly to: bigint;
}

/** A damaged table. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/** Reads numbers of a section one after the other. */
export class FrameReader {
  private readonly view: DataView;
  private readonly end: number;

  constructor(
    readonly bytes: Uint8Array,
    public at: number,
    end: number,
  ) {
    this.end = Math.min(end, bytes.length);
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Where the reading ends. */
  get last(): number {
    return this.end;
  }
  get more(): boolean {
    return this.at < this.end;
  }
  private take(length: number): number {
    const { at } = this;
    if (at < 0 || !(length >= 0 && at + length <= this.end))
      throw new FrameError(`the frame table ends at ${this.end}, inside an entry`);
    this.at += length;
    return at;
  }
  u8(): number {
    return this.view.getUint8(this.take(1));
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
  uint(size: number): bigint {
    return size === 8
      ? this.u64()
      : size === 4
        ? BigInt(this.u32())
        : size === 2
          ? BigInt(this.u16())
          : BigInt(this.u8());
  }
  sint(size: number): bigint {
    return BigInt.asIntN(8 * size, this.uint(size));
  }
  uleb(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.u8();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
  }
  sleb(): bigint {
    let value = 0n;
    for (let shift = 0n; ; ) {
      const byte = this.u8();
      value |= BigInt(byte & 0x7f) << shift;
      shift += 7n;
      if (byte < 0x80) return BigInt.asIntN(64, byte & 0x40 ? value - (1n << shift) : value);
    }
  }
  block(length: number): Uint8Array {
    const at = this.take(length);
    return this.bytes.subarray(at, at + length);
  }
  text(): string {
    let text = "";
    for (let byte = this.u8(); byte !== 0; byte = this.u8()) text += String.fromCharCode(byte);
    return text;
  }
}

interface Cie {
  readonly codeAlign: bigint;
  readonly dataAlign: bigint;
  readonly returnRegister: number;
  readonly pointer: 4 | 8;
  readonly encoding: number;
  readonly augmented: boolean;
  readonly signal: boolean;
  readonly instructions: readonly [from: number, to: number];
}

interface Fde {
  readonly table: FrameTable;
  readonly cie: Cie;
  readonly from: bigint;
  readonly to: bigint;
  readonly instructions: readonly [from: number, to: number];
}

/** Pointer encodings (LSB 10.5.1): the low four bits are the form, the next three what it is relative to. */
const DW_EH_PE_OMIT = 0xff;
const DW_EH_PE_PCREL = 0x10;
const FORM_SIZES: Readonly<Record<number, number>> = { 2: 2, 3: 4, 4: 8, 10: 2, 11: 4, 12: 8 };

function encoded(
  reader: FrameReader,
  encoding: number,
  table: FrameTable,
  pointer: 4 | 8 = table.pointer,
  plain = false,
): bigint {
  const at = table.address + BigInt(reader.at);
  const form = encoding & 0xf;
  const size = FORM_SIZES[form];
  let value: bigint;
  if (form === 0) value = reader.uint(pointer);
  else if (form === 1) value = reader.uleb();
  else if (form === 9) value = reader.sleb();
  else if (size === undefined) throw new FrameError(`the pointer encoding 0x${encoding.toString(16)} is unknown`);
  else value = form >= 8 ? reader.sint(size) : reader.uint(size);
  if (plain) return value;
  const relative = (encoding & 0x70) === DW_EH_PE_PCREL;
  const mask = pointer === 8 ? 64 : 32;
  return BigInt.asUintN(mask, relative ? value + at : value + table.slide);
}

/** Column of the return address, and with it the width of addresses (x86-64 psABI figure 3.36; i386 psABI table 2.14). */
const RETURN_REGISTERS: Readonly<Record<number, 4 | 8>> = { 8: 4, 16: 8 };

function readCie(table: FrameTable, reader: FrameReader): Cie {
  const version = reader.u8();
  if (![1, 3, 4].includes(version)) throw new FrameError(`frame information of version ${version} is unknown`);
  const augmentation = reader.text();
  // Address size, and the size of segment selectors, which x86 has none of here.
  const addresses = version === 4 ? reader.block(2)[0] : 0;
  const codeAlign = reader.uleb();
  const dataAlign = reader.sleb();
  const returnRegister = version === 1 ? reader.u8() : Number(reader.uleb());
  let encoding = 0;
  let signal = false;
  const augmented = augmentation.startsWith("z");
  if (augmented) {
    const end = Number(reader.uleb()) + reader.at;
    for (const letter of augmentation.slice(1)) {
      if (letter === "R") encoding = reader.u8();
      else if (letter === "L") reader.u8();
      else if (letter === "P") encoded(reader, reader.u8(), table, table.pointer, true);
      else if (letter === "S") signal = true;
    }
    reader.at = end;
  } else if (augmentation !== "") throw new FrameError(`the augmentation "${augmentation}" is unknown`);
  // 64-bit code inside an ELF32 file says so by the number of its return address.
  const byRegister = RETURN_REGISTERS[returnRegister] ?? table.pointer;
  const pointer = addresses === 4 || addresses === 8 ? addresses : byRegister;
  const instructions = [reader.at, reader.last] as const;
  return { codeAlign, dataAlign, returnRegister, pointer, encoding, augmented, signal, instructions };
}

/** All entries of a section. A damaged entry ends it; what was read before it counts. */
function readTable(table: FrameTable): Fde[] {
  const { bytes } = table;
  const list: Fde[] = [];
  const cies = new Map<number, Cie>();
  const outer = new FrameReader(bytes, 0, bytes.length);
  const cieAt = (at: number): Cie => {
    const known = cies.get(at);
    if (known) return known;
    const header = new FrameReader(bytes, at, bytes.length);
    const length = header.u32();
    const long = length === 0xffff_ffff;
    const size = long ? Number(header.u64()) : length;
    const end = header.at + size;
    const reader = new FrameReader(bytes, header.at, Math.min(end, bytes.length));
    reader.block(long && table.kind === "debug" ? 8 : 4);
    const cie = readCie(table, reader);
    cies.set(at, cie);
    return cie;
  };
  try {
    while (outer.more) {
      const short = outer.u32();
      if (short === 0) {
        if (table.kind === "eh") break;
        continue;
      }
      const long = short === 0xffff_ffff;
      const size = long ? Number(outer.u64()) : short;
      const idAt = outer.at;
      const reader = new FrameReader(bytes, idAt, idAt + size);
      outer.block(size);
      const wide = long && table.kind === "debug";
      const id = wide ? reader.u64() : BigInt(reader.u32());
      const isCie = table.kind === "eh" ? id === 0n : id === (wide ? 0xffff_ffff_ffff_ffffn : 0xffff_ffffn);
      if (isCie) continue;
      const cie = cieAt(table.kind === "eh" ? idAt - Number(id) : Number(id));
      const from = encoded(reader, cie.encoding, table, cie.pointer);
      const length = encoded(reader, cie.encoding & 0xf, table, cie.pointer, true);
      if (cie.augmented) reader.block(Number(reader.uleb()));
      if (cie.encoding !== DW_EH_PE_OMIT && length > 0n)
        list.push({ table, cie, from, to: from + length, instructions: [reader.at, reader.last] });
    }
  } catch (error) {
    if (!(error instanceof FrameError)) throw error;
  }
  return list;
}

interface State {
  cfa: CfaRule;
  rules: Map<number, RegisterRule>;
}

/** Runs call frame instructions (DWARF 5, 6.4.2) up to an address. */
function run(
  fde: Fde,
  [from, to]: readonly [number, number],
  state: State,
  initial: ReadonlyMap<number, RegisterRule>,
  pc: bigint,
): void {
  const { table, cie } = fde;
  const reader = new FrameReader(table.bytes, from, to);
  const stack: State[] = [];
  let location = fde.from;
  const reg = (): number => Number(reader.uleb());
  const factored = (signed: boolean): bigint => (signed ? reader.sleb() : reader.uleb()) * cie.dataAlign;
  const block = (): Uint8Array => reader.block(Number(reader.uleb()));
  const set = (register: number, rule: RegisterRule): unknown => state.rules.set(register, rule);
  const restore = (register: number): void => {
    const rule = initial.get(register);
    if (rule) state.rules.set(register, rule);
    else state.rules.delete(register);
  };
  const offset = (register: number, value: bigint, itself = false): unknown =>
    set(register, { kind: "offset", offset: value, value: itself });
  while (reader.more) {
    const code = reader.u8();
    const low = code & 0x3f;
    switch (code >> 6) {
      case 1:
        location += BigInt(low) * cie.codeAlign;
        if (location > pc) return;
        continue;
      case 2:
        offset(low, factored(false));
        continue;
      case 3:
        restore(low);
        continue;
    }
    switch (code) {
      case 0x00:
        break;
      case 0x01:
        location = encoded(reader, cie.encoding, table, cie.pointer);
        break;
      case 0x02:
      case 0x03:
      case 0x04:
        location += reader.uint(1 << (code - 2)) * cie.codeAlign;
        break;
      case 0x05:
        offset(reg(), factored(false));
        break;
      case 0x06:
        restore(reg());
        break;
      case 0x07:
        set(reg(), { kind: "undefined" });
        break;
      case 0x08:
        set(reg(), { kind: "same" });
        break;
      case 0x09:
        set(reg(), { kind: "register", register: reg() });
        break;
      case 0x0a:
        stack.push({ cfa: state.cfa, rules: new Map(state.rules) });
        break;
      case 0x0b: {
        const saved = stack.pop();
        if (!saved) throw new FrameError("DW_CFA_restore_state without a saved state");
        state.cfa = saved.cfa;
        state.rules = saved.rules;
        break;
      }
      case 0x0c:
        state.cfa = { kind: "register", register: reg(), offset: reader.uleb() };
        break;
      case 0x0d:
        state.cfa = { kind: "register", register: reg(), offset: cfaOffset(state.cfa) };
        break;
      case 0x0e:
        state.cfa = { kind: "register", register: cfaRegister(state.cfa), offset: reader.uleb() };
        break;
      case 0x0f:
        state.cfa = { kind: "expression", code: block() };
        break;
      case 0x10:
      case 0x16:
        set(reg(), { kind: "expression", code: block(), value: code === 0x16 });
        break;
      case 0x11:
        offset(reg(), factored(true));
        break;
      case 0x12:
        state.cfa = { kind: "register", register: reg(), offset: factored(true) };
        break;
      case 0x13:
        state.cfa = { kind: "register", register: cfaRegister(state.cfa), offset: factored(true) };
        break;
      case 0x14:
        offset(reg(), factored(false), true);
        break;
      case 0x15:
        offset(reg(), factored(true), true);
        break;
      case 0x2e:
        // DW_CFA_GNU_args_size: for exception handling only.
        reader.uleb();
        break;
      case 0x2f:
        offset(reg(), -factored(false));
        break;
      default:
        throw new FrameError(`the call frame instruction 0x${code.toString(16)} is unknown`);
    }
    if (location > pc) return;
  }
}

const cfaRegister = (cfa: CfaRule): number => (cfa.kind === "register" ? cfa.register : 0);
const cfaOffset = (cfa: CfaRule): bigint => (cfa.kind === "register" ? cfa.offset : 0n);

export class FrameTables {
  private entries: readonly Fde[] | null = null;

  constructor(private readonly tables: readonly FrameTable[]) {}

  private get index(): readonly Fde[] {
    this.entries ??= this.tables.flatMap(readTable).sort((a, b) => (a.from < b.from ? -1 : a.from > b.from ? 1 : 0));
    return this.entries;
  }

  /** Address ranges that have an entry, ascending. */
  get ranges(): readonly { readonly from: bigint; readonly to: bigint }[] {
    return this.index.map(({ from, to }) => ({ from, to }));
  }

  /** How to unwind from the instruction at a linear address; undefined without an entry, or when it is damaged. */
  at(pc: bigint): FrameRow | undefined {
    const { index } = this;
    let low = 0;
    let high = index.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (index[middle].from <= pc) low = middle + 1;
      else high = middle;
    }
    const fde = index[low - 1];
    if (!fde || pc >= fde.to) return undefined;
    const state: State = { cfa: { kind: "register", register: 0, offset: 0n }, rules: new Map() };
    try {
      run(fde, fde.cie.instructions, state, new Map(), pc);
      run(fde, fde.instructions, state, new Map(state.rules), pc);
    } catch (error) {
      if (error instanceof FrameError) return undefined;
      throw error;
    }
    const { returnRegister, signal, pointer } = fde.cie;
    return { ...state, returnRegister, signal, pointer, from: fde.from, to: fde.to };
  }
}
