/** Batches of instances from a seed, and the hash by which two processors compare what became of a batch. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { Random } from "../random";
import { undefinedState } from "./flags-undefined";
import { generate, rowsFor } from "./generate";
import { generateVector, generateVectorProgram, vectorProgramRows, vectorRowsFor } from "./generate-vector";
import { COMPLETED, type Instance, type Mode, type Result, startRip, type VectorState } from "./instance";
import { generateProgram, programRows } from "./programs";

/** What is compared: single instructions, or programs, in code of a mode. */
export type Family = "integer" | "vector" | "programs" | "vector-programs";

export interface Series {
  readonly family: Family;
  readonly mode: Mode;
  /** Instances per batch, and how many batches. */
  readonly batch: number;
  readonly batches: number;
}

/** 216,000 integer and 210,000 vector instructions, and 6,500 programs. */
export const SERIES: readonly Series[] = [
  { family: "integer", mode: 64, batch: 1000, batches: 116 },
  { family: "integer", mode: 32, batch: 1000, batches: 66 },
  { family: "integer", mode: 16, batch: 1000, batches: 34 },
  { family: "vector", mode: 64, batch: 1000, batches: 150 },
  { family: "vector", mode: 32, batch: 1000, batches: 50 },
  { family: "vector", mode: 16, batch: 1000, batches: 10 },
  { family: "programs", mode: 64, batch: 100, batches: 25 },
  { family: "programs", mode: 32, batch: 100, batches: 15 },
  { family: "vector-programs", mode: 64, batch: 100, batches: 20 },
  { family: "vector-programs", mode: 32, batch: 100, batches: 5 },
];

/** A series' file in golden/. */
export interface Golden extends Series {
  /** Processor the results come from. */
  readonly processor: string;
  /** Hash of the results by batch; the seed of a batch is its number. */
  readonly hashes: readonly string[];
}

export const goldenFile = (series: Series): string =>
  join(process.cwd(), "test", "cpu", "differential", "golden", `${series.family}-${series.mode}.json`);

/** The instances of batch `number`; the same on every machine. */
export function batchOf(series: Series, number: number): Instance[] {
  const { family, mode, batch } = series;
  const random = new Random((mode << 24) | number);
  if (family === "programs") {
    const rows = programRows(mode === 64 ? 64 : 32);
    return Array.from({ length: batch }, () => generateProgram(rows, mode === 64 ? 64 : 32, random));
  }
  if (family === "vector-programs") {
    const width = mode === 64 ? 64 : 32;
    const rows = vectorProgramRows(width);
    return Array.from({ length: batch }, () => generateVectorProgram(rows, width, random));
  }
  if (family === "vector") {
    const rows = vectorRowsFor(mode);
    return Array.from({ length: batch }, (_, i) => generateVector(rows, number * batch + i, mode, random));
  }
  const rows = rowsFor(mode);
  return Array.from({ length: batch }, (_, i) => generate(rows, number * batch + i, mode, random));
}

/** The flags compared: the six arithmetic ones and DF. */
const COMPARED_FLAGS = 0xcd5;
const PAGE_FAULT = 14;
const SIMD_EXCEPTION = 19;
/** The user's 64-bit code in Linux's GDT, without RPL. */
const LONG_CODE_SELECTOR = 0x30;

/** Architecturally defined state only: what two processors must agree on. */
export function normalised(instance: Instance, raw: Result): Result {
  const result = withoutNextFetch(instance, raw);
  const gpr = result.gpr.slice();
  const { flags, operand0 } = undefinedState(instance, result.vector);
  if (operand0) gpr[operand0.register] &= ~operand0.bits;
  const long = (result.selectors[0] & ~3) === LONG_CODE_SELECTOR;
  if (instance.mode !== 64 || !long) {
    // Outside 64-bit code R8..R15 do not exist and upper halves are undefined (SDM 1, 3.4.1.1).
    for (let i = 0; i < 16; i++) gpr[i] = i < 8 || instance.mode === 64 ? BigInt.asUintN(32, gpr[i]) : 0n;
  }
  const [cs, ss, ds, es] = result.selectors;
  return {
    gpr,
    rip: result.rip,
    rflags: result.rflags & COMPARED_FLAGS & ~flags,
    vector: result.vector,
    // Linux pretends that pages of its own half are present, so as not to show its address space.
    error: result.vector === PAGE_FAULT && result.cr2 >= 1n << 47n ? result.error | 1 : result.error,
    cr2: result.vector === PAGE_FAULT ? result.cr2 : 0n,
    // A return from the supervisor clears null selectors whatever their RPL (SDM 2A, IRET).
    selectors: [cs, ss, ...[ds, es].map((selector) => (selector < 4 ? 0 : selector))],
    changes: result.changes,
    ...(raw.state ? { state: normalisedState(instance, raw.vector, raw.state) } : {}),
  };
}

/** Stands for a number that is close enough. */
const CLOSE = 0x600df00d;

/** Whether RCP or RSQRT may give `got` for `source` (SDM 2B RCPPS: relative error at most 1.5 x 2^-12; subnormals are 0). */
function closeEnough(root: boolean, source: number, got: number, bits: number): boolean {
  if (Number.isNaN(source)) return (bits & 0x7fc00000) === 0x7fc00000;
  const x = Math.abs(source) < 2 ** -126 ? (Object.is(source, -0) || source < 0 ? -0 : 0) : source;
  const exact = root ? 1 / Math.sqrt(x) : 1 / x;
  if (Number.isNaN(exact)) return bits >>> 0 === 0xffc00000;
  if (root && x === 0) return got === (Object.is(x, -0) ? -Infinity : Infinity);
  if (!Number.isFinite(exact) || exact === 0) return Object.is(got, exact);
  if (Math.abs(exact) < 2 ** -126)
    return Math.abs(got) <= 2 ** -126 && Object.is(Math.sign(got) < 0 || Object.is(got, -0), exact < 0);
  return Math.abs(got / exact - 1) <= 1.5 * 2 ** -12;
}

function normalisedState(instance: Instance, vector: number, raw: VectorState): VectorState {
  const { approximation, gathered } = instance;
  if (gathered && vector !== COMPLETED) {
    const ymm = raw.ymm.slice();
    for (const register of gathered) ymm.fill(0, register * 32, register * 32 + 32);
    return { ...raw, ymm };
  }
  // A conversion into an MMX register that raises #XM may have made the x87 registers valid before (SDM 3B 23.25.3).
  if (vector === SIMD_EXCEPTION) return { ...raw, x87: new Uint8Array(128), fsw: 0, ftw: 0 };
  if (!approximation || vector !== COMPLETED) return raw;
  const ymm = raw.ymm.slice();
  const view = new DataView(ymm.buffer);
  const source = new DataView(approximation.source.buffer);
  for (let lane = 0; lane < approximation.lanes; lane++) {
    const at = approximation.destination * 32 + lane * 4;
    const from = source.getFloat32(lane * 4, true);
    const bits = view.getUint32(at, true);
    if (closeEnough(approximation.root, from, view.getFloat32(at, true), bits)) view.setUint32(at, CLOSE, true);
  }
  return { ...raw, ymm };
}

/** A branch to where no code can be fetched was completed itself: the fault belongs to the next instruction. */
function withoutNextFetch(instance: Instance, result: Result): Result {
  if (result.vector !== PAGE_FAULT || result.cr2 !== result.rip || result.rip === startRip(instance)) return result;
  return { ...result, vector: COMPLETED, error: 0 };
}

const scratch = Buffer.alloc(1 << 16);

function writeResult(result: Result): number {
  let at = 0;
  const put = (value: bigint): void => {
    at = scratch.writeBigUInt64LE(value, at);
  };
  for (const value of result.gpr) put(value);
  put(result.rip);
  put(result.cr2);
  at = scratch.writeUInt32LE(result.rflags, at);
  at = scratch.writeUInt32LE(result.error, at);
  at = scratch.writeUInt16LE(result.vector, at);
  for (const selector of result.selectors) at = scratch.writeUInt16LE(selector, at);
  if (result.state) {
    const { ymm, x87, fcw, fsw, ftw, mxcsr } = result.state;
    scratch.set(ymm, at);
    scratch.set(x87, at + ymm.length);
    at += ymm.length + x87.length;
    for (const word of [fcw, fsw, ftw]) at = scratch.writeUInt16LE(word, at);
    at = scratch.writeUInt32LE(mxcsr, at);
  }
  for (const change of result.changes) {
    at = scratch.writeUInt16LE(change.word, at);
    put(change.value);
  }
  return at;
}

/** Hash of a batch's results, with everything undefined left out. */
export function hashOf(instances: readonly Instance[], results: readonly Result[]): string {
  const hash = createHash("sha256");
  instances.forEach((instance, i) => {
    const size = writeResult(normalised(instance, results[i]));
    hash.update(scratch.subarray(0, size));
  });
  return hash.digest("hex").slice(0, 24);
}

/** Whether two results of one instance agree in everything defined. */
export function agree(instance: Instance, a: Result, b: Result): boolean {
  const size = writeResult(normalised(instance, a));
  const first = Buffer.from(scratch.subarray(0, size));
  return first.equals(scratch.subarray(0, writeResult(normalised(instance, b))));
}
