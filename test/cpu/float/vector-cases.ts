/** SSE, AVX, FMA and F16C instructions as operations of VectorFloat, random instances of them, and both ways to run one. */
import { VectorFloat, VectorOp } from "../../../engine/cpu/float/vector";
import { Random } from "../random";
import { FloatState, type NativeInstance, type NativeResult } from "./native";
import { operand, relative } from "./values";

export interface VectorInstance {
  readonly name: string;
  readonly op: VectorOp | "comi" | "ucomi";
  readonly format: 32 | 64;
  readonly scalar: boolean;
  readonly lanes: number;
  readonly imm: number;
  readonly mxcsr: number;
  /** Three operands of 32 bytes. */
  readonly a: Uint8Array;
  readonly b: Uint8Array;
  readonly c: Uint8Array;
  readonly code: readonly number[];
  /** Where operands and result lie in registers: fused operations overwrite the first. */
  readonly fused: boolean;
  /** The source, or the result, is RAX. */
  readonly general: "none" | "source" | "result";
  /** Bytes of result. */
  readonly size: number;
}

interface Encoding {
  readonly map: 1 | 2 | 3;
  readonly pp: number;
  readonly w?: 0 | 1;
  readonly opcode: number;
  readonly wide?: boolean;
  readonly oneSource?: boolean;
  readonly imm?: number;
  /** ModRM; registers 0 (destination) and 2 unless given. */
  readonly modrm?: number;
}

/** VEX, three-byte form (SDM 2A 2.3.5): destination register 0, vvvv register 1, r/m register 2. */
function vex(e: Encoding): number[] {
  const vvvv = e.oneSource ? 15 : 14;
  const code = [
    0xc4,
    0xe0 | e.map,
    ((e.w ?? 0) << 7) | (vvvv << 3) | (e.wide ? 4 : 0) | e.pp,
    e.opcode,
    e.modrm ?? 0xc2,
  ];
  return e.imm === undefined ? code : [...code, e.imm];
}

const PLAIN: Readonly<Record<string, readonly [VectorOp, number]>> = {
  add: [VectorOp.ADD, 0x58], mul: [VectorOp.MUL, 0x59], sub: [VectorOp.SUB, 0x5c], min: [VectorOp.MIN, 0x5d],
  div: [VectorOp.DIV, 0x5e], max: [VectorOp.MAX, 0x5f], sqrt: [VectorOp.SQRT, 0x51], cmp: [VectorOp.CMP, 0xc2],
}; // biome-ignore format: a table

const PAIRS: Readonly<Record<string, readonly [VectorOp, number]>> = {
  addsub: [VectorOp.ADDSUB, 0xd0], hadd: [VectorOp.HADD, 0x7c], hsub: [VectorOp.HSUB, 0x7d],
}; // biome-ignore format: a table

const FUSED: Readonly<Record<string, readonly [VectorOp, number]>> = {
  fmaddsub: [VectorOp.FMADDSUB, 0x96], fmsubadd: [VectorOp.FMSUBADD, 0x97], fmadd: [VectorOp.FMADD, 0x98],
  fmsub: [VectorOp.FMSUB, 0x9a], fnmadd: [VectorOp.FNMADD, 0x9c], fnmsub: [VectorOp.FNMSUB, 0x9e],
}; // biome-ignore format: a table

export const FAMILIES = [
  ...Object.keys(PLAIN), ...Object.keys(PAIRS), ...Object.keys(FUSED),
  "dp", "round", "float", "int", "fromint", "fromhalf", "half", "comi", "rcp",
] as const; // biome-ignore format: a list

type Parts = Pick<VectorInstance, "op" | "lanes" | "code" | "size" | "imm"> &
  Partial<Pick<VectorInstance, "fused" | "general">>;

function parts(random: Random, family: string, format: 32 | 64, scalar: boolean): Parts {
  const double = format === 64;
  const wide = !scalar;
  const lanes = scalar ? 1 : 256 / format;
  const size = (lanes * format) / 8;
  const pp = (scalar ? 2 : 0) | (double ? 1 : 0);
  if (family in PLAIN) {
    const [op, opcode] = PLAIN[family];
    const imm = family === "cmp" ? random.below(32) : 0;
    const code = vex({
      map: 1, pp, opcode, wide, oneSource: family === "sqrt" && !scalar, imm: family === "cmp" ? imm : undefined,
    }); // biome-ignore format: fields of the prefix
    return { op, lanes, code, size, imm };
  }
  if (family in PAIRS) {
    const [op, opcode] = PAIRS[family];
    const all = 256 / format;
    return { op, lanes: all, code: vex({ map: 1, pp: double ? 1 : 3, opcode, wide: true }), size: 32, imm: 0 };
  }
  if (family in FUSED) {
    const [op, opcode] = FUSED[family];
    const imm = random.pick([132, 213, 231]);
    const alternating = family === "fmaddsub" || family === "fmsubadd";
    const one = scalar && !alternating;
    const code = vex({
      map: 2, pp: 1, w: double ? 1 : 0, wide: !one,
      opcode: opcode + (one ? 1 : 0) + (imm === 132 ? 0 : imm === 213 ? 0x10 : 0x20),
    }); // biome-ignore format: fields of the prefix
    return { op, lanes: one ? 1 : 256 / format, code, size: one ? format / 8 : 32, imm, fused: true };
  }
  switch (family) {
    case "dp": {
      const imm = random.below(256);
      const code = vex({ map: 3, pp: 1, opcode: double ? 0x41 : 0x40, wide: !double, imm });
      return { op: VectorOp.DP, lanes: double ? 2 : 8, code, size: double ? 16 : 32, imm };
    }
    case "round": {
      const imm = random.below(16);
      const opcode = 8 + (double ? 1 : 0) + (scalar ? 2 : 0);
      return {
        op: VectorOp.ROUND,
        lanes,
        code: vex({ map: 3, pp: 1, opcode, wide, oneSource: !scalar, imm }),
        size,
        imm,
      };
    }
    case "float": {
      const count = scalar ? 1 : 4;
      const code = vex({ map: 1, pp, opcode: 0x5a, wide, oneSource: !scalar });
      return { op: VectorOp.CVT_FLOAT, lanes: count, code, size: count * (double ? 4 : 8), imm: 0 };
    }
    case "int": {
      const truncate = random.oneIn(2);
      if (scalar) {
        const long = random.oneIn(2);
        const op = long
          ? truncate ? VectorOp.CVTT_INT64 : VectorOp.CVT_INT64
          : truncate ? VectorOp.CVTT_INT32 : VectorOp.CVT_INT32; // biome-ignore format: a choice of four
        const code = vex({ map: 1, pp, w: long ? 1 : 0, opcode: truncate ? 0x2c : 0x2d, oneSource: true });
        return { op, lanes: 1, code, size: long ? 8 : 4, imm: 0, general: "result" };
      }
      const prefix = double ? (truncate ? 1 : 3) : truncate ? 2 : 1;
      const code = vex({ map: 1, pp: prefix, opcode: double ? 0xe6 : 0x5b, wide, oneSource: true });
      return { op: truncate ? VectorOp.CVTT_INT32 : VectorOp.CVT_INT32, lanes, code, size: lanes * 4, imm: 0 };
    }
    case "fromint": {
      if (scalar) {
        const long = random.oneIn(2);
        const code = vex({ map: 1, pp, w: long ? 1 : 0, opcode: 0x2a, modrm: 0xc0 });
        const op = long ? VectorOp.CVT_FROM_INT64 : VectorOp.CVT_FROM_INT32;
        return { op, lanes: 1, code, size, imm: 0, general: "source" };
      }
      const code = vex({ map: 1, pp: double ? 2 : 0, opcode: double ? 0xe6 : 0x5b, wide, oneSource: true });
      return { op: VectorOp.CVT_FROM_INT32, lanes, code, size, imm: 0 };
    }
    case "rcp": {
      const root = random.oneIn(2);
      const prefix = scalar ? 2 : 0;
      const count = scalar ? 1 : 8;
      const code = vex({ map: 1, pp: prefix, opcode: root ? 0x52 : 0x53, wide, oneSource: !scalar });
      return { op: root ? VectorOp.RSQRT : VectorOp.RCP, lanes: count, code, size: count * 4, imm: 0 };
    }
    case "fromhalf": {
      const code = vex({ map: 2, pp: 1, opcode: 0x13, wide: true, oneSource: true });
      return { op: VectorOp.CVT_FROM_HALF, lanes: 8, code, size: 32, imm: 0 };
    }
    case "half": {
      const imm = random.below(8);
      const code = vex({ map: 3, pp: 1, opcode: 0x1d, wide: true, oneSource: true, imm, modrm: 0xd0 });
      return { op: VectorOp.CVT_HALF, lanes: 8, code, size: 16, imm };
    }
    default: {
      const op = random.pick(["comi", "ucomi"] as const);
      const code = vex({
        map: 1,
        pp: double ? 1 : 0,
        opcode: op === "comi" ? 0x2f : 0x2e,
        oneSource: true,
        modrm: 0xca,
      });
      return { op, lanes: 1, code, size: 0, imm: 0 };
    }
  }
}

function fill(random: Random, width: 16 | 32 | 64, other?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  const near = other && new DataView(other.buffer);
  for (let at = 0; at < 32; at += width / 8) {
    const get = (v: DataView): bigint => (width === 64 ? v.getBigUint64(at, true) : BigInt(v.getUint32(at, true)));
    const value = near ? relative(random, width, get(near)) : operand(random, width);
    if (width === 64) view.setBigUint64(at, value, true);
    else if (width === 32) view.setUint32(at, Number(value), true);
    else view.setUint16(at, Number(value), true);
  }
  return bytes;
}

/** A random instance of a family. Exceptions are masked, or some of them are not. */
export function vectorInstance(seed: number, family: string): VectorInstance {
  const random = new Random(seed);
  const format = random.pick([32, 64] as const);
  const scalar = !random.oneIn(4);
  const { fused = false, general = "none", ...rest } = parts(random, family, format, scalar);
  const single = family === "fromhalf" || family === "half" || family === "rcp";
  const width = family === "fromhalf" ? 16 : family === "rcp" ? 32 : format;
  const a = fill(random, width);
  const b =
    family === "fromint" && random.oneIn(2) ? fill(random, 64) : fill(random, width, width === 16 ? undefined : a);
  const c = fill(random, width, width === 16 ? undefined : random.pick([a, b]));
  const masks = random.oneIn(5) ? random.below(64) << 7 : 0x1f80;
  const mxcsr = masks | (random.below(4) << 13) | (random.oneIn(4) ? 0x40 : 0) | (random.oneIn(4) ? 0x8000 : 0);
  return {
    name: family,
    format: single ? 32 : format,
    scalar,
    mxcsr,
    a,
    b,
    c,
    fused,
    general,
    ...rest,
  };
}

export function toNative(v: VectorInstance): NativeInstance {
  const state = new FloatState();
  state.fcw = 0x37f;
  state.mxcsr = v.mxcsr;
  state.rflags = 0x202;
  if (v.fused) {
    state.setYmm(0, v.a);
    state.setYmm(1, v.b);
    state.setYmm(2, v.c);
  } else {
    state.setYmm(0, v.c);
    state.setYmm(1, v.a);
    state.setYmm(2, v.b);
  }
  if (v.general === "source") state.rax = new DataView(v.b.buffer).getBigUint64(0, true);
  return { code: v.code, state };
}

/** What one instruction did: flags, whether it raised #XM, the bytes of the result, and RFLAGS of comparisons. */
export interface VectorOutcome {
  readonly flags: number;
  readonly exception: boolean;
  readonly result: string;
  readonly eflags: number;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

export function nativeOutcome(v: VectorInstance, { state, vector }: NativeResult): VectorOutcome {
  const raised = vector !== -1;
  const rax = new Uint8Array(8);
  new DataView(rax.buffer).setBigUint64(0, state.rax, true);
  const bytes = v.general === "result" ? rax : state.ymm(0);
  return {
    flags: state.mxcsr & 0x3f,
    exception: raised,
    result: raised ? "" : hex(bytes.subarray(0, v.size)),
    eflags: typeof v.op === "string" && !raised ? state.rflags & 0x45 : 0,
  };
}

const memory = new Uint8Array(256);
const core = new VectorFloat(memory.buffer);
const DEST = 128;
/** Multiplicand, multiplier and addend of the three forms of fused instructions, as places of operands. */
const FACTORS: Readonly<Record<number, readonly [number, number, number]>> = {
  132: [0, 64, 32],
  213: [32, 0, 64],
  231: [32, 64, 0],
};

export function ourOutcome(v: VectorInstance): VectorOutcome {
  memory.set(v.a, 0);
  memory.set(v.b, 32);
  memory.set(v.c, 64);
  memory.fill(0xee, DEST);
  let flags: number;
  let eflags = 0;
  if (typeof v.op === "string") {
    const both = core.compareScalar(v.op === "comi", v.format, v.mxcsr, 0, 32);
    flags = both & 0x3f;
    eflags = both >> 8;
  } else {
    const [a, b, c] = v.fused ? FACTORS[v.imm] : [0, 32, 64];
    flags = core.run(v.op, v.format, v.lanes, v.mxcsr, v.imm, a, b, c, DEST);
  }
  const exception = (flags & ~(v.mxcsr >> 7) & 0x3f) !== 0;
  const untouched = memory.subarray(DEST, DEST + 32).every((b) => b === 0xee);
  const result = exception && untouched ? "" : hex(memory.subarray(DEST, DEST + v.size));
  return { flags, exception, result, eflags: exception ? 0 : eflags };
}
