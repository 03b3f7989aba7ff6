/**
 * Which row of the opcode table an encoding means. At load the rows become dense look-up tables, so that selecting one
 * costs the decoder two array reads.
 */
import { OPCODES, OpcodeMap, type OpcodeRow } from "./opcodes";

const NO_ROW = -1;

/** Prefix column of a variant: what 66, F2 and F3 select. */
export const Column = { NONE: 0, P66: 1, PF3: 2, PF2: 3 } as const;

/** Mode line of a variant: 16- and 32-bit code, 64-bit code without and with REX.W. */
export const MODES = 3;

/** Entries per opcode that needs more than its own byte: column x mode x ModRM. */
export const VARIANT_SIZE = 4 * MODES * 256;

/** By map << 8 | opcode: a row; or NO_ROW; or -2 - n where variant block n decides. */
export const direct = new Int16Array(4 * 256).fill(NO_ROW);
/** By map << 8 | opcode: whether a ModRM byte follows. */
export const withModrm = new Uint8Array(4 * 256);

/**
 * VEX: by (map << 8 | opcode) << 2 | pp as `direct`. A block has an entry per 64-bit mode, VEX.W, VEX.L, mod 3, reg, in this
 * order from the high bits down.
 */
export const vexDirect = new Int16Array(4 * 4 * 256).fill(NO_ROW);
export const VEX_VARIANT_SIZE = 128;
/** VZEROUPPER and VZEROALL: the one VEX opcode without ModRM. */
export const VEX_WITHOUT_MODRM = (OpcodeMap.TWO << 8) | 0x77;

function conditions(row: OpcodeRow): number {
  let n = 0;
  if (row.reg >= 0) n += 2;
  if (row.rm >= 0) n += 2;
  if (row.mod !== "any") n++;
  if (row.prefix !== "any") n++;
  if (row.w !== "any") n++;
  return n;
}

/** Columns of the prefixes that select a row. */
const COLUMNS: Readonly<Record<OpcodeRow["prefix"], readonly number[]>> = {
  any: [Column.NONE, Column.P66, Column.PF3, Column.PF2],
  NP: [Column.NONE],
  NFx: [Column.NONE, Column.P66],
  "66": [Column.P66],
  F3: [Column.PF3],
  F2: [Column.PF2],
};

function modesOf(row: OpcodeRow): number[] {
  return [0, 1, 2].filter((mode) => {
    if (row.mode === (mode === 0 ? "o64" : "i64")) return false;
    return row.w !== (mode === 2 ? "W0" : "W1");
  });
}

/** Enters a row for all ModRM bytes it is about; `at` is the place of ModRM 0 in the block. */
function enter(block: Int16Array, at: number, row: OpcodeRow): void {
  const from = row.hasModrm && row.mod === "reg" ? 0xc0 : 0;
  const to = row.hasModrm && row.mod === "mem" ? 0xc0 : 0x100;
  if (!row.hasModrm || (row.reg < 0 && row.rm < 0)) {
    block.fill(row.index, at + from, at + to);
    return;
  }
  for (let group = from; group < to; group += 8) {
    if (row.reg >= 0 && row.reg !== ((group >> 3) & 7)) continue;
    if (row.rm < 0) block.fill(row.index, at + group, at + group + 8);
    else block[at + group + row.rm] = row.index;
  }
}

function buildTables(): Int16Array {
  const byOpcode: OpcodeRow[][] = Array.from({ length: 4 * 256 }, () => []);
  for (const row of OPCODES) {
    if (row.vex) continue;
    for (let i = 0; i < row.span; i++) byOpcode[(row.map << 8) | (row.opcode + i)].push(row);
  }
  const blocks: Int16Array[] = [];
  byOpcode.forEach((rows, key) => {
    if (rows.length === 0) return;
    withModrm[key] = rows.some((row) => row.hasModrm) ? 1 : 0;
    if (rows.length === 1 && conditions(rows[0]) === 0 && rows[0].mode === "any") {
      direct[key] = rows[0].index;
      return;
    }
    const block = new Int16Array(VARIANT_SIZE).fill(NO_ROW);
    const ordered = [...rows].sort((a, b) => conditions(a) - conditions(b));
    for (const row of ordered) {
      for (const column of COLUMNS[row.prefix]) {
        for (const mode of modesOf(row)) enter(block, (column * MODES + mode) * 256, row);
      }
    }
    direct[key] = -2 - blocks.length;
    blocks.push(block);
  });
  const all = new Int16Array(blocks.length * VARIANT_SIZE);
  blocks.forEach((block, i) => {
    all.set(block, i * VARIANT_SIZE);
  });
  return all;
}

export const variants = buildTables();

function vexMatches(row: OpcodeRow, variant: number): boolean {
  const long = (variant & 64) !== 0;
  if (row.mode === (long ? "i64" : "o64")) return false;
  if (row.w === (variant & 32 ? "W0" : "W1") || row.l === (variant & 16 ? "L0" : "L1")) return false;
  if (row.mod === (variant & 8 ? "mem" : "reg")) return false;
  return row.reg < 0 || row.reg === (variant & 7);
}

function buildVexTables(): Int16Array {
  const byKey = new Map<number, OpcodeRow[]>();
  for (const row of OPCODES) {
    if (!row.vex) continue;
    const key = (((row.map << 8) | row.opcode) << 2) | COLUMNS[row.prefix][0];
    byKey.set(key, [...(byKey.get(key) ?? []), row]);
  }
  const blocks: number[] = [];
  for (const [key, rows] of byKey) {
    vexDirect[key] = -2 - blocks.length / VEX_VARIANT_SIZE;
    const ordered = rows.sort((a, b) => conditions(a) - conditions(b));
    for (let variant = 0; variant < VEX_VARIANT_SIZE; variant++) {
      let found = NO_ROW;
      for (const row of ordered) if (vexMatches(row, variant)) found = row.index;
      blocks.push(found);
    }
  }
  return Int16Array.from(blocks);
}

export const vexVariants = buildVexTables();
