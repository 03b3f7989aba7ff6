/**
 * The machine's own processor as the other side of the comparison: one floating-point instruction with the state before and
 * after it, run by native/harness.c.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

const SOURCE = join(process.cwd(), "test", "cpu", "float", "native", "harness.c");
const FOLDER = join(process.cwd(), "node_modules", ".cache", "differential");
const PROGRAM = join(FOLDER, "float-harness");

const CODE_SIZE = 24;
const FX_SIZE = 512;
const HIGH_SIZE = 64;
const MEMORY_SIZE = 128;
const STATE_SIZE = FX_SIZE + HIGH_SIZE + MEMORY_SIZE + 16;
const INSTANCE_SIZE = CODE_SIZE + 8 + STATE_SIZE;
const RESULT_SIZE = STATE_SIZE + 8;

/** Processor state around one instruction, as the harness loads and saves it. */
export class FloatState {
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(bytes = new Uint8Array(STATE_SIZE)) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, STATE_SIZE);
  }

  /** FXSAVE image: fields at their places in SDM 1 table 10-2. */
  get fcw(): number {
    return this.view.getUint16(0, true);
  }
  set fcw(value: number) {
    this.view.setUint16(0, value, true);
  }
  get fsw(): number {
    return this.view.getUint16(2, true);
  }
  set fsw(value: number) {
    this.view.setUint16(2, value, true);
  }
  /** Abridged: a set bit means in use. */
  get ftw(): number {
    return this.view.getUint8(4);
  }
  set ftw(value: number) {
    this.view.setUint8(4, value);
  }
  get mxcsr(): number {
    return this.view.getUint32(24, true);
  }
  set mxcsr(value: number) {
    this.view.setUint32(24, value, true);
  }
  /** Offset of ST(i). */
  static st(i: number): number {
    return 32 + i * 16;
  }
  /** Offset of the low half of XMM register i. */
  static xmm(i: number): number {
    return 160 + i * 16;
  }
  /** Copies 32 bytes into YMM register i (0 to 3). */
  setYmm(i: number, value: Uint8Array): void {
    this.bytes.set(value.subarray(0, 16), FloatState.xmm(i));
    this.bytes.set(value.subarray(16, 32), FX_SIZE + i * 16);
  }
  ymm(i: number): Uint8Array {
    const value = new Uint8Array(32);
    value.set(this.bytes.subarray(FloatState.xmm(i), FloatState.xmm(i) + 16));
    value.set(this.bytes.subarray(FX_SIZE + i * 16, FX_SIZE + i * 16 + 16), 16);
    return value;
  }
  /** What RDI points to. */
  get memory(): Uint8Array {
    return this.bytes.subarray(FX_SIZE + HIGH_SIZE, FX_SIZE + HIGH_SIZE + MEMORY_SIZE);
  }
  get rax(): bigint {
    return this.view.getBigUint64(FX_SIZE + HIGH_SIZE + MEMORY_SIZE, true);
  }
  set rax(value: bigint) {
    this.view.setBigUint64(FX_SIZE + HIGH_SIZE + MEMORY_SIZE, value, true);
  }
  get rflags(): number {
    return this.view.getUint32(FX_SIZE + HIGH_SIZE + MEMORY_SIZE + 8, true);
  }
  set rflags(value: number) {
    this.view.setUint32(FX_SIZE + HIGH_SIZE + MEMORY_SIZE + 8, value, true);
  }
}

export interface NativeInstance {
  readonly code: readonly number[];
  readonly state: FloatState;
}

export interface NativeResult {
  readonly state: FloatState;
  /** Exception, or -1. */
  readonly vector: number;
}

/** Compiles the harness if need be. Returns whether this machine can run it (Linux on x86-64 with gcc, AVX and FMA). */
export function nativeAvailable(): boolean {
  if (process.platform !== "linux" || process.arch !== "x64") return false;
  const flags = /^flags.*$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[0].split(" ") ?? [];
  if (!["avx2", "fma", "f16c"].every((flag) => flags.includes(flag))) return false;
  if (existsSync(PROGRAM) && statSync(PROGRAM).mtimeMs > statSync(SOURCE).mtimeMs) return true;
  mkdirSync(FOLDER, { recursive: true });
  return spawnSync("gcc", ["-O1", "-Wall", "-mavx2", "-o", PROGRAM, SOURCE]).status === 0;
}

/** Runs instructions on the processor of this machine. */
export function runNative(instances: readonly NativeInstance[]): NativeResult[] {
  const input = new Uint8Array(instances.length * INSTANCE_SIZE);
  const view = new DataView(input.buffer);
  instances.forEach(({ code, state }, i) => {
    const at = i * INSTANCE_SIZE;
    input.set(code, at);
    view.setUint32(at + CODE_SIZE, code.length, true);
    input.set(state.bytes, at + CODE_SIZE + 8);
  });
  const output = execFileSync(PROGRAM, { input, maxBuffer: 1 << 30 });
  return instances.map((_, i) => {
    const at = i * RESULT_SIZE;
    const state = new FloatState(new Uint8Array(output.subarray(at, at + STATE_SIZE)));
    return { state, vector: output.readInt32LE(at + STATE_SIZE) };
  });
}
