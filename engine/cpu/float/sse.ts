/**
 * The slow way of SSE, AVX, FMA and F16C floating-point instructions: by mnemonic, on operands that generated code has put
 * into the CPU block, with MXCSR and #XM.
 */
import { type Cpu, CpuFault, Vector } from "../cpu";
import { Off } from "../state";
import { VectorFloat, VectorOp } from "./vector";

const CR4_OSXMMEXCPT = 1 << 10;
const SOURCE_SIZE = 32;

/** How a mnemonic is computed. */
interface Operation {
  readonly op: VectorOp | "comi" | "ucomi";
  readonly format: 32 | 64;
  /** Bytes of `length` that make one result; 0 = there is one result whatever the length. */
  readonly bytesPerLane: number;
  /** Fixed number of results. */
  readonly lanes: number;
  /** The operation on a 64-bit integer, where `length` is 8. */
  readonly quadword?: Operation;
}

const OPERATIONS = new Map<string, Operation>();

function define(mnemonic: string, op: Operation["op"], format: 32 | 64, bytesPerLane: number, lanes = 1): void {
  OPERATIONS.set(mnemonic, { op, format, bytesPerLane, lanes });
}

function defineForms(name: string, op: VectorOp, suffixes: readonly string[]): void {
  for (const suffix of suffixes) {
    const format = suffix[1] === "D" ? 64 : 32;
    define(`${name}${suffix}`, op, format, suffix[0] === "S" ? 0 : format / 8);
  }
}

const ALL = ["PS", "PD", "SS", "SD"] as const;
const PACKED = ["PS", "PD"] as const;
defineForms("ADD", VectorOp.ADD, ALL);
defineForms("SUB", VectorOp.SUB, ALL);
defineForms("MUL", VectorOp.MUL, ALL);
defineForms("DIV", VectorOp.DIV, ALL);
defineForms("SQRT", VectorOp.SQRT, ALL);
defineForms("MIN", VectorOp.MIN, ALL);
defineForms("MAX", VectorOp.MAX, ALL);
defineForms("CMP", VectorOp.CMP, ALL);
defineForms("ROUND", VectorOp.ROUND, ALL);
defineForms("ADDSUB", VectorOp.ADDSUB, PACKED);
defineForms("HADD", VectorOp.HADD, PACKED);
defineForms("HSUB", VectorOp.HSUB, PACKED);
defineForms("DP", VectorOp.DP, PACKED);
defineForms("RCP", VectorOp.RCP, ["PS", "SS"]);
defineForms("RSQRT", VectorOp.RSQRT, ["PS", "SS"]);
defineForms("VFMADD", VectorOp.FMADD, ALL);
defineForms("VFMSUB", VectorOp.FMSUB, ALL);
defineForms("VFNMADD", VectorOp.FNMADD, ALL);
defineForms("VFNMSUB", VectorOp.FNMSUB, ALL);
defineForms("VFMADDSUB", VectorOp.FMADDSUB, PACKED);
defineForms("VFMSUBADD", VectorOp.FMSUBADD, PACKED);

define("COMISS", "comi", 32, 0);
define("COMISD", "comi", 64, 0);
define("UCOMISS", "ucomi", 32, 0);
define("UCOMISD", "ucomi", 64, 0);
define("CVTPS2PD", VectorOp.CVT_FLOAT, 32, 8);
define("CVTPD2PS", VectorOp.CVT_FLOAT, 64, 8);
define("CVTSS2SD", VectorOp.CVT_FLOAT, 32, 0);
define("CVTSD2SS", VectorOp.CVT_FLOAT, 64, 0);
define("CVTDQ2PS", VectorOp.CVT_FROM_INT32, 32, 4);
define("CVTDQ2PD", VectorOp.CVT_FROM_INT32, 64, 8);
define("CVTPS2DQ", VectorOp.CVT_INT32, 32, 4);
define("CVTTPS2DQ", VectorOp.CVTT_INT32, 32, 4);
define("CVTPD2DQ", VectorOp.CVT_INT32, 64, 8);
define("CVTTPD2DQ", VectorOp.CVTT_INT32, 64, 8);
define("VCVTPH2PS", VectorOp.CVT_FROM_HALF, 32, 4);
define("VCVTPS2PH", VectorOp.CVT_HALF, 32, 4);

/** Conversions with MMX registers: two results. */
const MMX_CONVERSIONS: Readonly<Record<string, readonly [VectorOp, 32 | 64]>> = {
  CVTPI2PS: [VectorOp.CVT_FROM_INT32, 32],
  CVTPI2PD: [VectorOp.CVT_FROM_INT32, 64],
  CVTPS2PI: [VectorOp.CVT_INT32, 32],
  CVTTPS2PI: [VectorOp.CVTT_INT32, 32],
  CVTPD2PI: [VectorOp.CVT_INT32, 64],
  CVTTPD2PI: [VectorOp.CVTT_INT32, 64],
};
for (const [mnemonic, [op, format]] of Object.entries(MMX_CONVERSIONS)) define(mnemonic, op, format, 0, 2);

/** Conversions with general registers: operations on integers of 32 and 64 bits. */
const GENERAL_CONVERSIONS: Readonly<Record<string, readonly [VectorOp, VectorOp, 32 | 64]>> = {
  CVTSI2SS: [VectorOp.CVT_FROM_INT32, VectorOp.CVT_FROM_INT64, 32],
  CVTSI2SD: [VectorOp.CVT_FROM_INT32, VectorOp.CVT_FROM_INT64, 64],
  CVTSS2SI: [VectorOp.CVT_INT32, VectorOp.CVT_INT64, 32],
  CVTSD2SI: [VectorOp.CVT_INT32, VectorOp.CVT_INT64, 64],
  CVTTSS2SI: [VectorOp.CVTT_INT32, VectorOp.CVTT_INT64, 32],
  CVTTSD2SI: [VectorOp.CVTT_INT32, VectorOp.CVTT_INT64, 64],
};
for (const [mnemonic, [narrow, wide, format]] of Object.entries(GENERAL_CONVERSIONS)) {
  OPERATIONS.set(mnemonic, {
    op: narrow,
    format,
    bytesPerLane: 0,
    lanes: 1,
    quadword: { op: wide, format, bytesPerLane: 0, lanes: 1 },
  });
}

/** Mnemonics that executeSse knows. */
export const isFloatOperation = (mnemonic: string): boolean => OPERATIONS.has(mnemonic);

let unit = new VectorFloat(new ArrayBuffer(0));

/**
 * Executes one instruction on the operands at Off.VECTOR_SOURCE, 32 bytes each: first and second source as in the VEX form
 * (of legacy SSE the destination's old value and the source); operations of one source read the second. Fused operations
 * are multiplicand, multiplier, addend, and go by their mnemonic without 132, 213 or 231. The result is at
 * Off.VECTOR_RESULT; of COMISD and its like ZF, PF and CF are in Off.VECTOR_FLAGS, at their places in RFLAGS.
 *
 * @param length bytes of the vector (of the wider one, where a conversion has two widths); scalar operations ignore it,
 *   but for conversions with general registers, of whose integer it is the size
 * @param immediate predicate of CMPPS and its like, control of ROUNDPS, DPPS, VCVTPS2PH
 * @throws CpuFault #XM, or #UD without CR4.OSXMMEXCPT, for an unmasked exception; MXCSR has its flags, the result is unset
 */
export function executeSse(cpu: Cpu, mnemonic: string, length: number, immediate: number): void {
  const { state } = cpu;
  const known = OPERATIONS.get(mnemonic);
  if (!known) throw new Error(`${mnemonic} is no floating-point operation of SSE or AVX`);
  const operation = length === 8 ? (known.quadword ?? known) : known;
  if (!unit.uses(state.view.buffer)) unit = new VectorFloat(state.view.buffer);
  const { op, format, bytesPerLane } = operation;
  const mxcsr = state.u32(Off.MXCSR);
  const first = state.base + Off.VECTOR_SOURCE;
  const second = first + SOURCE_SIZE;
  let flags: number;
  if (op === "comi" || op === "ucomi") {
    const both = unit.compareScalar(op === "comi", format, mxcsr, first, second);
    flags = both & 0x3f;
    state.setU32(Off.VECTOR_FLAGS, both >> 8);
  } else {
    const lanes = bytesPerLane === 0 ? operation.lanes : length / bytesPerLane;
    const dest = state.base + Off.VECTOR_RESULT;
    flags = unit.run(op, format, lanes, mxcsr, immediate, first, second, second + SOURCE_SIZE, dest);
  }
  if (flags === 0) return;
  state.setU32(Off.MXCSR, mxcsr | flags);
  if ((flags & ~(mxcsr >> 7) & 0x3f) === 0) return;
  throw new CpuFault(state.lo(Off.CR4) & CR4_OSXMMEXCPT ? Vector.XM : Vector.UD);
}
