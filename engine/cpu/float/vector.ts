/**
 * SSE, AVX, FMA and F16C floating point on values in memory: every operation with MXCSR's rounding, DAZ, FTZ and exception
 * flags (SDM 1 chapters 11 and 14).
 *
 * `new VectorFloat(buffer)` works on one memory; operands and destination are byte offsets into it, multiples of 4, and may
 * overlap. A call answers the exception flags it raised (bits as in MXCSR 5:0) and writes the results unless one of these
 * is unmasked in MXCSR. The caller ORs the flags into MXCSR, and raises #XM (#UD without CR4.OSXMMEXCPT) when
 * `flags & ~(mxcsr >> 7) & 0x3f` is not 0.
 */

import { approximateReciprocal, approximateReciprocalRoot } from "./approximation";
import { add, divide, multiply, squareRoot } from "./arithmetic";
import { compare, holds, Relation, signals } from "./compare";
import { convert } from "./conversion";
import { Environment } from "./environment";
import { multiplyAdd } from "./fused";
import { fromIntegerRounded, integer, roundToIntegral, toInteger } from "./integers";
import { isNan, quiet } from "./nan";
import {
  DOUBLE,
  Flag,
  type Format,
  HALF,
  Kind,
  Num,
  PRE_COMPUTATION,
  pack16,
  pack32,
  pack64,
  type Rounding,
  Rounding as RoundingMode,
  SINGLE,
  setZero,
  unpack16,
  unpack32,
  unpack64,
} from "./number";

/**
 * Operations. `format` of a call is the width of the elements computed with (of the source, for conversions between formats
 * and to integers; of the result, for those from integers), `lanes` how many results there are.
 */
export const VectorOp = {
  ADD: 0,
  SUB: 1,
  MUL: 2,
  DIV: 3,
  /** Of b. */
  SQRT: 4,
  MIN: 5,
  MAX: 6,
  /** `imm` is the predicate, 0 to 31. Results are masks. */
  CMP: 7,
  /** Even lanes a - b, odd lanes a + b. */
  ADDSUB: 8,
  /** Within 16 bytes each: sums (differences) of neighbours in a, then in b. */
  HADD: 9,
  HSUB: 10,
  /** Dot product by `imm`, within 16 bytes each. */
  DP: 11,
  /** Of b, by `imm` as ROUNDPS has it. */
  ROUND: 12,
  /** a * b + c. NaNs take precedence in this order, which the manual's descriptions of the three forms keep. */
  FMADD: 13,
  FMSUB: 14,
  FNMADD: 15,
  FNMSUB: 16,
  /** Odd lanes add, even lanes subtract; and the other way round. */
  FMADDSUB: 17,
  FMSUBADD: 18,
  /** Approximations of b, format 32 only; no flags. */
  RCP: 19,
  RSQRT: 20,
  /** Of b, to the other format: 64 to 32 bits, or 32 to 64. */
  CVT_FLOAT: 21,
  /** Of b, to signed integers of 32 or 64 bits, rounded by MXCSR or truncated. */
  CVT_INT32: 22,
  CVT_INT64: 23,
  CVTT_INT32: 24,
  CVTT_INT64: 25,
  /** Of b, from signed integers of 32 or 64 bits. */
  CVT_FROM_INT32: 26,
  CVT_FROM_INT64: 27,
  /** Of b: 16 to 32 bits; and 32 to 16 (two results a word, `imm` is the rounding control of VCVTPS2PH). Format 32. */
  CVT_FROM_HALF: 28,
  CVT_HALF: 29,
} as const;
export type VectorOp = (typeof VectorOp)[keyof typeof VectorOp];

/** Bits of MXCSR. */
const Mxcsr = { DAZ: 1 << 6, MASKS_SHIFT: 7, OM: 1 << 10, UM: 1 << 11, RC_SHIFT: 13, FTZ: 1 << 15 } as const;

/** Flags of RFLAGS that COMISD and its like set (SDM 2A COMISD): bits 6, 2 and 0. */
const Eflags = { ZF: 0x40, PF: 4, CF: 1 } as const;

const FLAGS = 0x3f;

export class VectorFloat {
  private readonly words: Int32Array;
  private readonly halves: Uint16Array;
  private readonly env = new Environment();
  private readonly x = new Num();
  private readonly y = new Num();
  private readonly z = new Num();
  private readonly out = new Num();
  /** Results, until it is known that they may be written. */
  private readonly results = new Int32Array(16);
  private daz = false;
  private format: Format = SINGLE;
  private double = false;

  constructor(private readonly buffer: ArrayBufferLike) {
    this.words = new Int32Array(buffer);
    this.halves = new Uint16Array(buffer);
  }

  uses(buffer: ArrayBufferLike): boolean {
    return this.buffer === buffer;
  }

  /**
   * One instruction.
   * @param format width of an element, see VectorOp
   * @param a first source (byte offset); operations of one source read b
   * @param c third source, of fused operations
   * @returns exception flags raised
   */
  run(
    op: VectorOp,
    format: 32 | 64,
    lanes: number,
    mxcsr: number,
    imm: number,
    a: number,
    b: number,
    c: number,
    dest: number,
  ): number {
    this.begin(format, mxcsr);
    const { env } = this;
    const unmasked = ~(mxcsr >> Mxcsr.MASKS_SHIFT) & FLAGS;
    let size = format >> 5;
    switch (op) {
      case VectorOp.HADD:
      case VectorOp.HSUB:
        this.horizontal(op, lanes, a, b);
        break;
      case VectorOp.DP:
        this.dotProduct(lanes, imm, a, b, unmasked);
        break;
      case VectorOp.RCP:
      case VectorOp.RSQRT:
        for (let i = 0; i < lanes; i++) {
          const bits = this.words[(b >> 2) + i];
          this.results[i] = op === VectorOp.RCP ? approximateReciprocal(bits) : approximateReciprocalRoot(bits);
        }
        break;
      case VectorOp.CVT_HALF:
        return this.toHalf(lanes, imm, mxcsr, b, dest);
      default:
        if (op >= VectorOp.CVT_FLOAT) size = this.conversions(op, lanes, b);
        else for (let i = 0; i < lanes; i++) this.lane(op, i, imm, a, b, c);
    }
    if (op !== VectorOp.DP) this.endStage(0, unmasked);
    const { flags } = env;
    if ((flags & unmasked) !== 0) return flags;
    const to = dest >> 2;
    for (let i = 0; i < lanes * size; i++) this.words[to + i] = this.results[i];
    return flags;
  }

  /**
   * COMISS, COMISD (`signalling`), UCOMISS, UCOMISD of a with b.
   * @returns exception flags in bits 5:0, and ZF, PF, CF at their places in RFLAGS shifted left by 8
   */
  compareScalar(signalling: boolean, format: 32 | 64, mxcsr: number, a: number, b: number): number {
    this.begin(format, mxcsr);
    this.load(this.x, a, 0);
    this.load(this.y, b, 0);
    const relation = compare(this.env, this.x, this.y, signalling);
    let eflags = 0;
    if (relation === Relation.UNORDERED) eflags = Eflags.ZF | Eflags.PF | Eflags.CF;
    else if (relation === Relation.LESS) eflags = Eflags.CF;
    else if (relation === Relation.EQUAL) eflags = Eflags.ZF;
    return this.env.flags | (eflags << 8);
  }

  private begin(format: 32 | 64, mxcsr: number): void {
    const { env } = this;
    env.flags = 0;
    env.rounding = ((mxcsr >> Mxcsr.RC_SHIFT) & 3) as Rounding;
    env.overflowMasked = (mxcsr & Mxcsr.OM) !== 0;
    env.underflowMasked = (mxcsr & Mxcsr.UM) !== 0;
    env.flushToZero = (mxcsr & Mxcsr.FTZ) !== 0;
    this.daz = (mxcsr & Mxcsr.DAZ) !== 0;
    this.double = format === 64;
    this.format = this.double ? DOUBLE : SINGLE;
  }

  private load(n: Num, from: number, lane: number): void {
    if (this.double) {
      const at = (from >> 2) + lane * 2;
      unpack64(n, this.words[at + 1], this.words[at], this.daz);
    } else unpack32(n, this.words[(from >> 2) + lane], this.daz);
  }

  private store(n: Num, lane: number): void {
    if (this.double) pack64(n, this.results, lane * 2);
    else this.results[lane] = pack32(n);
  }

  private lane(op: VectorOp, i: number, imm: number, a: number, b: number, c: number): void {
    const { env, format, x, y, out } = this;
    this.load(y, b, i);
    if (op !== VectorOp.SQRT && op !== VectorOp.ROUND) this.load(x, a, i);
    switch (op) {
      case VectorOp.ADD:
        add(env, format, x, y, 0, out);
        break;
      case VectorOp.SUB:
        add(env, format, x, y, 1, out);
        break;
      case VectorOp.ADDSUB:
        add(env, format, x, y, ~i & 1, out);
        break;
      case VectorOp.MUL:
        multiply(env, format, x, y, out);
        break;
      case VectorOp.DIV:
        divide(env, format, x, y, out);
        break;
      case VectorOp.SQRT:
        squareRoot(env, format, y, out);
        break;
      case VectorOp.MIN:
      case VectorOp.MAX: {
        // The second source whenever the comparison does not hold: for NaNs as they are, and for equal zeros.
        const relation = compare(env, x, y, true);
        const first = relation === (op === VectorOp.MIN ? Relation.LESS : Relation.GREATER);
        this.storeOperand(first ? x : y, i, first ? a : b);
        return;
      }
      case VectorOp.CMP: {
        const mask = holds(imm, compare(env, x, y, signals(imm))) ? -1 : 0;
        if (this.double) {
          this.results[i * 2] = mask;
          this.results[i * 2 + 1] = mask;
        } else this.results[i] = mask;
        return;
      }
      case VectorOp.ROUND: {
        const before = env.flags;
        const rounding = imm & 4 ? env.rounding : ((imm & 3) as Rounding);
        roundToIntegral(env, y, rounding, out);
        if (imm & 8) env.flags = before | (env.flags & Flag.IE);
        break;
      }
      default:
        this.fused(op, i, c);
    }
    this.store(out, i);
  }

  /** An operand of MIN and MAX as the result: unchanged, but for denormals under DAZ. */
  private storeOperand(n: Num, lane: number, from: number): void {
    if (n.kind === Kind.ZERO) {
      this.store(n, lane);
      return;
    }
    const size = this.double ? 2 : 1;
    for (let w = 0; w < size; w++) this.results[lane * size + w] = this.words[(from >> 2) + lane * size + w];
  }

  private fused(op: VectorOp, i: number, c: number): void {
    const { env, x, y, z, out } = this;
    this.load(z, c, i);
    const negateProduct = op === VectorOp.FNMADD || op === VectorOp.FNMSUB ? 1 : 0;
    let negateAddend = op === VectorOp.FMSUB || op === VectorOp.FNMSUB ? 1 : 0;
    if (op === VectorOp.FMADDSUB) negateAddend = ~i & 1;
    else if (op === VectorOp.FMSUBADD) negateAddend = i & 1;
    if (isNan(x) || isNan(y) || isNan(z)) {
      if (x.kind === Kind.SIGNALLING || y.kind === Kind.SIGNALLING || z.kind === Kind.SIGNALLING) env.flags |= Flag.IE;
      quiet(isNan(x) ? x : isNan(y) ? y : z, out);
      return;
    }
    multiplyAdd(env, this.format, x, y, z, negateProduct, negateAddend, out);
  }

  private horizontal(op: VectorOp, lanes: number, a: number, b: number): void {
    const perBlock = this.double ? 2 : 4;
    const { env, x, y, out } = this;
    for (let i = 0; i < lanes; i++) {
      const block = i - (i % perBlock);
      const within = i % perBlock;
      const half = perBlock >> 1;
      const from = within < half ? a : b;
      const pair = block + (within % half) * 2;
      this.load(x, from, pair);
      this.load(y, from, pair + 1);
      add(env, this.format, x, y, op === VectorOp.HSUB ? 1 : 0, out);
      this.store(out, i);
    }
  }

  /**
   * SDM 2A DPPS, DPPD: products, then sums of pairs, then their sum, each rounded, and each stage only when the one before
   * raised nothing unmasked; imm 7:4 chooses products, 3:0 results.
   */
  private dotProduct(lanes: number, imm: number, a: number, b: number, unmasked: number): void {
    const { env, format, x, y, out } = this;
    const perBlock = this.double ? 2 : 4;
    let before = 0;
    for (let i = 0; i < lanes; i++) {
      if (imm & (16 << (i % perBlock))) {
        this.load(x, a, i);
        this.load(y, b, i);
        multiply(env, format, x, y, out);
      } else setZero(out, 0);
      this.store(out, i);
    }
    for (let pairs = perBlock >> 1; pairs > 0; pairs >>= 1) {
      this.endStage(before, unmasked);
      if ((env.flags & unmasked) !== 0) return;
      before = env.flags;
      for (let block = 0; block < lanes; block += perBlock) {
        for (let pair = 0; pair < pairs; pair++) {
          this.loadResult(x, block + pair * 2);
          this.loadResult(y, block + pair * 2 + 1);
          add(env, format, x, y, 0, out);
          this.store(out, block + pair);
        }
      }
    }
    this.endStage(before, unmasked);
    for (let block = 0; block < lanes; block += perBlock) {
      const whole = this.double ? [this.results[block * 2], this.results[block * 2 + 1]] : [this.results[block]];
      for (let i = 0; i < perBlock; i++) {
        for (let w = 0; w < whole.length; w++) {
          this.results[(block + i) * whole.length + w] = imm & (1 << i) ? whole[w] : 0;
        }
      }
    }
  }

  /**
   * What is found before computing, unmasked in any lane, keeps all lanes from being computed, so that nothing else is
   * found (SDM 1 11.5.2). `before` are flags of earlier stages.
   */
  private endStage(before: number, unmasked: number): void {
    const { env } = this;
    const pre = env.flags & PRE_COMPUTATION;
    if ((pre & unmasked) !== 0) env.flags = before | pre;
  }

  private loadResult(n: Num, lane: number): void {
    if (this.double) unpack64(n, this.results[lane * 2 + 1], this.results[lane * 2], this.daz);
    else unpack32(n, this.results[lane], this.daz);
  }

  /** Conversions whose results are whole words. @returns words per result */
  private conversions(op: VectorOp, lanes: number, b: number): 1 | 2 {
    const { env, y, out, words, results } = this;
    const at = b >> 2;
    switch (op) {
      case VectorOp.CVT_FLOAT:
        for (let i = 0; i < lanes; i++) {
          this.load(y, b, i);
          convert(env, this.double ? SINGLE : DOUBLE, y, out);
          if (this.double) results[i] = pack32(out);
          else pack64(out, results, i * 2);
        }
        return this.double ? 1 : 2;
      case VectorOp.CVT_INT32:
      case VectorOp.CVTT_INT32:
      case VectorOp.CVT_INT64:
      case VectorOp.CVTT_INT64: {
        const truncate = op === VectorOp.CVTT_INT32 || op === VectorOp.CVTT_INT64;
        const wide = op === VectorOp.CVT_INT64 || op === VectorOp.CVTT_INT64;
        for (let i = 0; i < lanes; i++) {
          this.load(y, b, i);
          toInteger(env, y, truncate ? RoundingMode.ZERO : env.rounding, wide ? 64 : 32);
          if (wide) {
            results[i * 2] = integer.lo;
            results[i * 2 + 1] = integer.hi;
          } else results[i] = integer.lo;
        }
        return wide ? 2 : 1;
      }
      case VectorOp.CVT_FROM_INT32:
      case VectorOp.CVT_FROM_INT64:
        for (let i = 0; i < lanes; i++) {
          const wide = op === VectorOp.CVT_FROM_INT64;
          const lo = words[wide ? at + i * 2 : at + i];
          fromIntegerRounded(env, this.format, wide ? words[at + i * 2 + 1] : lo >> 31, lo, out);
          this.store(out, i);
        }
        return this.double ? 2 : 1;
      default:
        // From half precision: exact, and denormals raise nothing (SDM 2C VCVTPH2PS).
        for (let i = 0; i < lanes; i++) {
          unpack16(y, this.halves[(b >> 1) + i]);
          y.denormal = 0;
          convert(env, SINGLE, y, out);
          results[i] = pack32(out);
        }
        return 1;
    }
  }

  /** SDM 2C VCVTPS2PH: imm 2 chooses MXCSR's rounding, else imm 1:0; MXCSR.FTZ has no effect. */
  private toHalf(lanes: number, imm: number, mxcsr: number, b: number, dest: number): number {
    const { env, y, out, results } = this;
    if ((imm & 4) === 0) env.rounding = (imm & 3) as Rounding;
    env.flushToZero = false;
    for (let i = 0; i < lanes; i++) {
      this.load(y, b, i);
      convert(env, HALF, y, out);
      results[i] = pack16(out);
    }
    const unmasked = ~(mxcsr >> Mxcsr.MASKS_SHIFT) & FLAGS;
    this.endStage(0, unmasked);
    if ((env.flags & unmasked) === 0) for (let i = 0; i < lanes; i++) this.halves[(dest >> 1) + i] = results[i];
    return env.flags;
  }
}
