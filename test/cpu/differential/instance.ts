/**
 * One instruction, or a short program, with everything it starts from, and what became of it: the forms that the native harness
 * (native/harness.c) and our engine share.
 */

/** Offset of RIP and of memory as in the harness. */
export const CODE = 0x10000000;
export const CODE_SIZE = 4096;
export const DATA = 0x20000000;
export const DATA_SIZE = 8192;

export type Mode = 16 | 32 | 64;

export interface Instance {
  readonly mode: Mode;
  /** RAX..R15; in 32- and 16-bit code the upper halves and R8..R15 are 0. */
  readonly gpr: BigUint64Array;
  /** Offset of the (first) instruction in the code page, which is full of INT3 otherwise. */
  ip: number;
  /** Arithmetic flags and DF; bit 1 and IF are always set. */
  rflags: number;
  readonly code: Uint8Array;
  length: number;
  /** Bytes that lie over the pattern of the data window, from offset `patchAt`. */
  patchAt: number;
  patchLength: number;
  readonly patch: Uint8Array;
  /** Of vector instructions: the registers they may use besides. */
  vector?: VectorState;
  /** RCP and RSQRT, which are precise to 12 bits only: where the result lies and what it is of. */
  approximation?: Approximation;
  /** Vector registers of a gather: how much of them is done when an element faults is the processor's choice (SDM 2C). */
  gathered?: readonly number[];
  /** Of a program: flags that are undefined at its end. A single instruction's follow from the instruction. */
  undefinedFlags?: number;
}

/** x87, MMX and vector registers. */
export interface VectorState {
  /** YMM0 to YMM15. */
  readonly ymm: Uint8Array;
  /** ST(0) to ST(7), 16 bytes each, 10 of them used. */
  readonly x87: Uint8Array;
  fcw: number;
  fsw: number;
  /** Abridged, as FXSAVE has it. */
  ftw: number;
  mxcsr: number;
}

export interface Approximation {
  readonly root: boolean;
  readonly destination: number;
  /** Numbers of 4 bytes. */
  readonly lanes: number;
  readonly source: Uint8Array;
}

/** Longest program, bytes. */
export const CODE_BYTES = 160;

/** Vector of a result whose instruction was completed. */
export const COMPLETED = 0xff;

export interface Result {
  readonly gpr: BigUint64Array;
  /** Of the next instruction, or of the one that faulted; relative to the segment's base in 16-bit code. */
  rip: bigint;
  rflags: number;
  /** COMPLETED, or the vector of the exception. */
  vector: number;
  error: number;
  /** Linear address of a page fault, otherwise 0. */
  cr2: bigint;
  /** Selectors of CS, SS, DS, ES. */
  readonly selectors: readonly number[];
  readonly state?: VectorState;
  /** Words of 8 bytes of the data window that are not as before: index and new value, by index. */
  readonly changes: { word: number; value: bigint }[];
}

export function newInstance(mode: Mode): Instance {
  return {
    mode,
    gpr: new BigUint64Array(16),
    ip: 0,
    rflags: 0,
    code: new Uint8Array(CODE_BYTES),
    length: 0,
    patchAt: 0,
    patchLength: 0,
    patch: new Uint8Array(64),
  };
}

/** The data window before any patch: word i is the splitmix64 of i, as the harness computes it. */
export const PATTERN: Uint8Array = (() => {
  const words = new BigUint64Array(DATA_SIZE / 8);
  for (let i = 0; i < words.length; i++) {
    let z = BigInt.asUintN(64, BigInt(i + 1) * 0x9e3779b97f4a7c15n);
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    words[i] = z ^ (z >> 31n);
  }
  return new Uint8Array(words.buffer);
})();

export function newVectorState(): VectorState {
  return { ymm: new Uint8Array(512), x87: new Uint8Array(128), fcw: 0x37f, fsw: 0, ftw: 0, mxcsr: 0x1f80 };
}

const VECTOR_SIZE = 652;

function encodeVector(bytes: Uint8Array, view: DataView, at: number, v: VectorState): void {
  bytes.set(v.ymm, at);
  bytes.set(v.x87, at + 512);
  view.setUint16(at + 640, v.fcw, true);
  view.setUint16(at + 642, v.fsw, true);
  view.setUint16(at + 644, v.ftw, true);
  view.setUint32(at + 648, v.mxcsr, true);
}

function decodeVector(view: DataView, at: number): VectorState {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + at, VECTOR_SIZE);
  return {
    ymm: bytes.slice(0, 512),
    x87: bytes.slice(512, 640),
    fcw: view.getUint16(at + 640, true),
    fsw: view.getUint16(at + 642, true),
    ftw: view.getUint16(at + 644, true),
    mxcsr: view.getUint32(at + 648, true),
  };
}

const INSTANCE_SIZE = 140 + CODE_BYTES + 68;
const RESULT_SIZE = 128 + 8 + 8 + 8 + 4 + 4 + 8 + 2;

/** What the harness reads. */
export function encodeInstances(instances: readonly Instance[]): Uint8Array {
  const stride = INSTANCE_SIZE + (instances[0].vector ? VECTOR_SIZE : 0);
  const bytes = new Uint8Array(instances.length * stride);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const instance of instances) {
    for (let i = 0; i < 16; i++) view.setBigUint64(at + i * 8, instance.gpr[i], true);
    view.setUint32(at + 128, instance.ip, true);
    view.setUint32(at + 132, instance.rflags, true);
    view.setUint16(at + 136, instance.mode, true);
    view.setUint16(at + 138, instance.length, true);
    bytes.set(instance.code, at + 140);
    view.setUint16(at + 140 + CODE_BYTES, instance.patchAt, true);
    view.setUint16(at + 142 + CODE_BYTES, instance.patchLength, true);
    bytes.set(instance.patch, at + 144 + CODE_BYTES);
    if (instance.vector) encodeVector(bytes, view, at + INSTANCE_SIZE, instance.vector);
    at += stride;
  }
  return bytes;
}

const PAGE_FAULT = 14;
const BREAKPOINT = 3;

/** Reads the harness's answers, one per instance. */
export function decodeResults(bytes: Uint8Array, instances: readonly Instance[]): Result[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const results: Result[] = [];
  let at = 0;
  while (results.length < instances.length) {
    const gpr = new BigUint64Array(16);
    for (let i = 0; i < 16; i++) gpr[i] = view.getBigUint64(at + i * 8, true);
    const count = view.getUint16(at + 168, true);
    const state = instances[0].vector ? decodeVector(view, at + RESULT_SIZE) : undefined;
    const result: Result = {
      ...(state ? { state } : {}),
      gpr,
      rip: view.getBigUint64(at + 128, true),
      rflags: Number(view.getBigUint64(at + 136, true)),
      cr2: view.getBigUint64(at + 144, true),
      vector: view.getUint32(at + 152, true),
      error: view.getUint32(at + 156, true),
      selectors: [160, 162, 164, 166].map((offset) => view.getUint16(at + offset, true)),
      changes: [],
    };
    at += RESULT_SIZE + (state ? VECTOR_SIZE : 0);
    for (let i = 0; i < count; i++) {
      result.changes.push({ word: view.getUint16(at, true), value: view.getBigUint64(at + 2, true) });
      at += 10;
    }
    if (result.vector === BREAKPOINT) {
      result.vector = COMPLETED;
      result.rip -= 1n;
      result.error = 0;
    }
    if (result.vector !== PAGE_FAULT) result.cr2 = 0n;
    results.push(result);
  }
  if (at !== bytes.length) throw new Error(`the harness answered ${bytes.length} bytes, ${at} of them understood`);
  return results;
}

/** RIP of the instruction itself. */
export function startRip(instance: Instance): bigint {
  return BigInt(instance.mode === 16 ? instance.ip : CODE + instance.ip);
}
