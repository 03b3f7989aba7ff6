/**
 * The opcode table: every encoding the processor knows, one row each (SDM 2D appendix A). Decoder, semantics, system
 * handlers, the differential test and documentation all read these rows. Row sources are in tables/, one file per
 * family; here they are parsed once, at load.
 *
 * A row source is `[mnemonic, encoding, operands?, properties?]`.
 *
 * **Encoding**, tokens in this order:
 * - `VEX`, or `VEX L0`, `VEX L1`: a VEX prefix (SDM 2A 2.3), with VEX.L clear or set; without L both lengths, or where no
 *   operand's size depends on it, L is ignored. Such a row is #UD in real-address and virtual-8086 mode.
 * - `NP` (none of 66, F2, F3), `NFx` (neither F2 nor F3; 66 means operand size), or the mandatory prefix `66`, `F3`,
 *   `F2`; without any of these the prefixes do not select the row. F2 and F3 win over 66; of the two the last wins.
 * - `W0`, `W1`: REX.W clear or set (W1 exists in 64-bit mode only); of VEX rows VEX.W, which exists in every mode.
 * - `0F`, `0F 38`, `0F 3A`: the map; nothing for the one-byte map.
 * - the opcode, `50+r` with the register in its low three bits, `70+cc` with the condition in its low four.
 * - `/0`../7`: ModRM.reg extends the opcode; `mem` or `reg`: ModRM.mod must be not 3, or 3; `(C1)`: the ModRM byte
 *   itself; `/r`: there is a ModRM byte though no operand needs it.
 *
 * Where rows overlap, the one with more conditions wins.
 *
 * **Operands** are written `code type [:access]`, destination first. Codes (appendix A.2.1):
 * A far pointer in the instruction; C control register by ModRM.reg; D debug register by reg; E general register or
 * memory by ModRM; G general register by reg; I immediate; J relative branch; M memory only; O memory offset without
 * ModRM; R general register by ModRM.rm, mod ignored; S segment register by reg; X memory at DS:rSI; Y memory at ES:rDI;
 * Z general register by the opcode's low bits; V XMM or YMM register by reg; W XMM or YMM register or memory by ModRM; U
 * XMM or YMM register by rm; H XMM or YMM register by VEX.vvvv; L XMM or YMM register by bits 7:4 of an immediate byte; P
 * MMX register by reg; Q MMX register or memory; N MMX register by rm; B general register by VEX.vvvv. Fixed operands: AL
 * AH AX CL DX ES CS SS DS FS GS 1, rAX rDX (operand size), eAX (operand size, at most 32 bits), XMM0, DIq and DIdq (memory
 * at DS:rDI).
 *
 * Types (A.2.2): b w d q dq qq = 1 2 4 8 16 32 bytes; v = operand size; z = operand size but at most 4; y = 4 or, with a
 * 64-bit operand size, 8; x = 16, or 32 with VEX.L; x2 x4 x8 = a half, a quarter, an eighth of x; p = far pointer, 2 +
 * operand size; s = pseudo-descriptor, 6 or in 64-bit mode 10; a = two operands of operand size in memory; none = the
 * address alone, or a block whose size the mnemonic defines.
 *
 * Access: r (default), w, rw, n (nothing is read or written).
 *
 * A vector register that is only written (w) to fewer than 16 bytes has the rest of these 16 bytes cleared; written and read
 * (rw), it keeps them. With VEX, what lies above is cleared; a scalar operation with three operands takes the rest of the
 * low 16 bytes from its H operand (MOVSS Vd Hd Ud, ADDSD Vq Hq Wq, SQRTSS, CVTSI2SD ...).
 *
 * **Properties**: `lock` LOCK is allowed when the destination is memory; `sys` run by the SystemHandler of the mnemonic;
 * `i64` invalid in 64-bit mode; `o64` only there; `d64` operand size there is 64 by default and cannot be 32; `f64` it is
 * 64 whatever the prefixes; `rep` string instruction that F2 and F3 repeat; `repz` string instruction with REPE and
 * REPNE; `prot` #UD in real-address and virtual-8086 mode; `align` a memory operand that is not aligned to its 16 or 32
 * bytes raises #GP(0); `vsib` the memory operand's index is a vector register (SDM 2A 2.3.12), and the row is #UD where two
 * of destination, index and mask are the same register; any other word is a Feature without which the row is #UD (all of
 * several) or, written `feature/MNEMONIC`, decodes as the same opcode's row of that mnemonic.
 *
 * Deviations from appendix A:
 * - Z, which appendix A spells as register names (rAX/r8).
 * - type `ub`, `uw`: byte and word immediates that are unsigned and not extended to the operand size (shift counts, ports,
 *   vectors, RET, ENTER); plain Ib is sign-extended.
 * - type `vw`: a register of operand size, or 16 bits of memory (appendix A: Rv/Mw); `yb`, `yw`, `yd`: a register of type y,
 *   or 8, 16, 32 bits of memory (appendix A: Ry/Mb ...).
 * - the VEX form of an instruction has the mnemonic of the form without VEX, where there is one: VPADDB is PADDB.
 * - mnemonics: CBW and CWD stand for all their sizes, JCXZ likewise; Jcc, SETcc, CMOVcc are one row each (JCC, SETCC,
 *   CMOVCC). Far control transfers are CALL_FAR, JMP_FAR, RET_FAR. Moves to and from control and debug registers are
 *   MOV_CR and MOV_DR, loads of segment registers MOV_SREG and POP_SREG.
 * - near branches in 64-bit mode ignore the 66 prefix, as on Intel processors; AMD's truncate RIP to 16 bits.
 * - MOVSXD with 66 reads 16 bits (Intel).
 * - type `t`: ten bytes, extended floating point or packed BCD. Register operands of x87 instructions are not written: the
 *   handlers take them from ModRM.
 */
import type { Feature } from "../models/model";
import { AVX_ROWS } from "./tables/avx";
import { BMI_ROWS } from "./tables/bmi";
import { FPU_ROWS } from "./tables/fpu";
import { INTEGER_ROWS } from "./tables/integer";
import { MMX_ROWS } from "./tables/mmx";
import { SSE_ROWS } from "./tables/sse";
import { SYSTEM_ROWS } from "./tables/system";
import { VIRTUALIZATION_ROWS } from "./tables/virtualization";

/** A row as the files in tables/ write it. */
export type RowSource = readonly [mnemonic: string, encoding: string, operands?: string, properties?: string];

// biome-ignore format: a list
const SOURCES = [
  ...INTEGER_ROWS, ...SYSTEM_ROWS, ...VIRTUALIZATION_ROWS, ...FPU_ROWS, ...MMX_ROWS, ...SSE_ROWS, ...AVX_ROWS, ...BMI_ROWS,
] as const;

export type Mnemonic = (typeof SOURCES)[number][0];

/** One-byte map, 0F, 0F 38, 0F 3A. */
export const OpcodeMap = { ONE: 0, TWO: 1, THREE_38: 2, THREE_3A: 3 } as const;
export type OpcodeMap = (typeof OpcodeMap)[keyof typeof OpcodeMap];

// biome-ignore format: codes of appendix A, then fixed operands
export type OperandCode =
  | "A" | "C" | "D" | "E" | "G" | "I" | "J" | "M" | "O" | "R" | "S" | "X" | "Y" | "Z"
  | "V" | "W" | "U" | "H" | "L" | "P" | "Q" | "N" | "B"
  | "AL" | "AH" | "AX" | "CL" | "DX" | "rAX" | "rDX" | "eAX" | "ES" | "CS" | "SS" | "DS" | "FS" | "GS" | "1" | "XMM0" | "DIq" | "DIdq";

// biome-ignore format: as in appendix A
export type OperandType =
  | "b" | "w" | "d" | "q" | "dq" | "qq" | "x" | "x2" | "x4" | "x8" | "v" | "z" | "y" | "p" | "s" | "a"
  | "ub" | "uw" | "vw" | "yb" | "yw" | "yd" | "t" | "";

export type OperandAccess = "r" | "w" | "rw" | "n";

export interface OperandSpec {
  readonly code: OperandCode;
  readonly type: OperandType;
  readonly access: OperandAccess;
}

export interface OpcodeRow {
  /** Position in OPCODES. */
  readonly index: number;
  readonly mnemonic: Mnemonic;
  /** The encoding as written in the table. */
  readonly encoding: string;
  readonly map: OpcodeMap;
  /** First opcode byte of the row in its map. */
  readonly opcode: number;
  /** How many consecutive opcodes the row takes: 1, 8 (register in the opcode) or 16 (condition). */
  readonly span: 1 | 8 | 16;
  readonly hasModrm: boolean;
  /** ModRM.reg, ModRM.rm that select the row; -1 = any. */
  readonly reg: number;
  readonly rm: number;
  readonly mod: "any" | "mem" | "reg";
  readonly prefix: "any" | "NP" | "NFx" | "66" | "F3" | "F2";
  /** Has a VEX prefix. */
  readonly vex: boolean;
  /** VEX.L that selects the row; "any" of rows without VEX. */
  readonly l: "any" | "L0" | "L1";
  /** REX.W or VEX.W that selects the row. */
  readonly w: "any" | "W0" | "W1";
  readonly operands: readonly OperandSpec[];
  readonly lock: boolean;
  readonly system: boolean;
  /** In which code the row exists: everywhere, not in 64-bit mode, only there. */
  readonly mode: "any" | "i64" | "o64";
  /** Operand size in 64-bit mode: 32 with the usual prefixes, 64 unless 66, or 64 always. */
  readonly size64: "default" | "d64" | "f64";
  /** String instruction: not, repeated by either prefix, or with REPE and REPNE. */
  readonly repeat: "none" | "rep" | "repz";
  /** #UD in real-address and virtual-8086 mode. */
  readonly protectedOnly: boolean;
  /** A memory operand must be aligned to its size. */
  readonly align: boolean;
  /** The memory operand's index is a vector register. */
  readonly vsib: boolean;
  /** Without any one of these the row does not exist ... */
  readonly features: readonly Feature[];
  /** ... and this other row takes its place, if any (a prefix that means nothing to older processors). */
  readonly without?: number;
}

// biome-ignore format: a table
const FIXED: Readonly<Record<string, OperandType>> = {
  AL: "b", AH: "b", AX: "w", CL: "b", DX: "w", rAX: "v", rDX: "v", eAX: "z", ES: "v", CS: "v", SS: "v", DS: "v", FS: "v",
  GS: "v", "1": "ub", XMM0: "x", DIq: "q", DIdq: "dq",
};

const CODES = "ABCDEGHIJLMNOPQRSUVWXYZ";
// biome-ignore format: a list
const TYPES: readonly string[] = [
  "b", "w", "d", "q", "dq", "qq", "x", "x2", "x4", "x8", "v", "z", "y", "p", "s", "a", "ub", "uw", "vw", "yb", "yw", "yd", "t", "",
];
const NEEDS_MODRM: readonly string[] = ["C", "D", "E", "G", "M", "N", "P", "Q", "R", "S", "U", "V", "W"];

function parseOperand(text: string): OperandSpec {
  const [name, access = "r"] = text.split(":");
  if (!["r", "w", "rw", "n"].includes(access)) throw new Error(`operand ${text}: unknown access`);
  const fixed = FIXED[name];
  if (fixed !== undefined) {
    return { code: name as OperandCode, type: fixed, access: access as OperandAccess };
  }
  const type = name.slice(1);
  if (!CODES.includes(name[0]) || !TYPES.includes(type)) throw new Error(`operand ${text}: not in appendix A`);
  return { code: name[0] as OperandCode, type: type as OperandType, access: access as OperandAccess };
}

/** Operands as written, parsed: there are few different ones. */
const parsedOperands = new Map<string, readonly OperandSpec[]>();

function parseOperands(text: string): readonly OperandSpec[] {
  let operands = parsedOperands.get(text);
  if (!operands) {
    operands = text === "" ? [] : text.split(" ").map(parseOperand);
    parsedOperands.set(text, operands);
  }
  return operands;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };
type ParsedRow = Mutable<Omit<OpcodeRow, "features">> & { features: Feature[]; fallback?: string };

function parseEncoding(row: ParsedRow): void {
  const tokens = row.encoding.split(" ");
  let at = 0;
  if (tokens[at] === "VEX") {
    row.vex = true;
    row.protectedOnly = true;
    at++;
    if (/^L[01]$/.test(tokens[at])) row.l = tokens[at++] as OpcodeRow["l"];
  }
  if (/^(NP|NFx|66|F3|F2)$/.test(tokens[at]) && tokens.length > 1) row.prefix = tokens[at++] as OpcodeRow["prefix"];
  if (/^W[01]$/.test(tokens[at])) row.w = tokens[at++] as OpcodeRow["w"];
  if (tokens[at] === "0F" && tokens.length > at + 1) {
    row.map = OpcodeMap.TWO;
    at++;
    if (tokens[at] === "38" || tokens[at] === "3A") {
      row.map = tokens[at++] === "38" ? OpcodeMap.THREE_38 : OpcodeMap.THREE_3A;
    }
  }
  const [, byte, suffix] = /^([0-9A-F]{2})(\+r|\+cc)?$/.exec(tokens[at++] ?? "") ?? [];
  if (byte === undefined) throw new Error(`encoding ${row.encoding}: no opcode byte`);
  row.opcode = Number.parseInt(byte, 16);
  row.span = suffix === "+r" ? 8 : suffix === "+cc" ? 16 : 1;
  for (; at < tokens.length; at++) {
    const token = tokens[at];
    row.hasModrm = true;
    if (/^\/[0-7]$/.test(token)) row.reg = Number(token[1]);
    else if (token === "mem" || token === "reg") row.mod = token;
    else if (/^\([C-F][0-9A-F]\)$/.test(token)) {
      const modrm = Number.parseInt(token.slice(1, 3), 16);
      row.mod = "reg";
      row.reg = (modrm >> 3) & 7;
      row.rm = modrm & 7;
    } else if (token !== "/r") throw new Error(`encoding ${row.encoding}: unknown token ${token}`);
  }
}

function parseProperty(row: ParsedRow, word: string): void {
  if (word === "lock") row.lock = true;
  else if (word === "sys") row.system = true;
  else if (word === "i64" || word === "o64") row.mode = word;
  else if (word === "d64" || word === "f64") row.size64 = word;
  else if (word === "rep" || word === "repz") row.repeat = word;
  else if (word === "prot") row.protectedOnly = true;
  else if (word === "align") row.align = true;
  else if (word === "vsib") row.vsib = true;
  else {
    const [feature, fallback] = word.split("/");
    row.features.push(feature as Feature);
    row.fallback = fallback;
  }
}

function parseRow(source: RowSource, index: number): ParsedRow {
  const [mnemonic, encoding, operands = "", properties = ""] = source;
  const row: ParsedRow = {
    index,
    mnemonic: mnemonic as Mnemonic,
    encoding,
    map: OpcodeMap.ONE,
    opcode: 0,
    span: 1,
    hasModrm: false,
    reg: -1,
    rm: -1,
    mod: "any",
    prefix: "any",
    w: "any",
    operands: parseOperands(operands),
    lock: false,
    system: false,
    mode: "any",
    size64: "default",
    repeat: "none",
    protectedOnly: false,
    vex: false,
    l: "any",
    align: false,
    vsib: false,
    features: [],
  };
  parseEncoding(row);
  if (properties !== "") for (const word of properties.split(" ")) parseProperty(row, word);
  if (row.operands.some((o) => NEEDS_MODRM.includes(o.code))) row.hasModrm = true;
  if (row.operands.some((o) => o.code === "M")) row.mod = "mem";
  return row;
}

function parseAll(sources: readonly RowSource[]): readonly OpcodeRow[] {
  const rows = sources.map(parseRow);
  for (const row of rows) {
    if (row.fallback === undefined) continue;
    const other = rows.find((r) => r.mnemonic === row.fallback && r.map === row.map && r.opcode === row.opcode);
    if (!other) throw new Error(`encoding ${row.encoding}: no row ${row.fallback} with this opcode`);
    row.without = other.index;
    row.fallback = undefined;
  }
  return rows;
}

export const OPCODES: readonly OpcodeRow[] = parseAll(SOURCES);

/**
 * The row an encoding means on a processor with `features`: itself, the row older processors see instead, or undefined
 * where the processor raises #UD.
 */
export function rowOn(features: ReadonlySet<Feature>, row: OpcodeRow): OpcodeRow | undefined {
  if (row.features.every((feature) => features.has(feature))) return row;
  return row.without === undefined ? undefined : OPCODES[row.without];
}
