/** Helper functions of the interpreter module: addresses, segmentation, code look-up, 128-bit division. */

import { ITLB_BASE, ITLB_ENTRIES } from "../../memory/layout";
import { Expressions, type Value } from "../isa/semantics/expressions";
import { CodeMode, CpuState, ExitStatus, Off, SEG_SIZE, Seg, SegAttr, SegPart } from "../state";
import { FunctionBuilder, type Local } from "../wasm/function";
import { AccessBits, DIVIDE_HIGH, EFFECTIVE_OFFSET, MISS, RESOLVE, SEGMENT, WRAP_OFFSET } from "./abi";
import { CODE_BASE, CODE_MASK, Rec } from "./record";

const MASK_16 = 0xffffn;
const MASK_32 = 0xffff_ffffn;

/** Linear address of a RIP in the current code segment. */
export function linearOfRip(e: Expressions, rip: Value): Value {
  return e.and(e.add(rip, e.loadAt(CODE_BASE, 8)), e.loadAt(CODE_MASK, 8));
}

/** Whether the code TLB knows the page of `linear`, and where its record table is. */
export function codeTlb(e: Expressions, linear: Value): { hit: Value; table: Value } {
  const page = e.low(e.shrBy(linear, 12), 4);
  const slot = e.let(e.shlBy(e.and(page, e.constant(4, ITLB_ENTRIES - 1)), 4));
  const wanted = e.or(e.and(linear, e.constant(8, -4096)), e.loadAt(Off.CODE_CONTEXT, 8));
  return { hit: e.eq(e.load(slot, ITLB_BASE, 8), wanted), table: e.load(slot, ITLB_BASE + 8, 4) };
}

/** The record of `linear` in a page's table; 0 where nothing is decoded. */
export function recordIn(e: Expressions, table: Value, linear: Value): Value {
  const index = e.shlBy(e.and(e.low(linear, 4), e.constant(4, 4095)), 2);
  return e.load(e.add(table, index), 0, 4);
}

/** resolve(rip): the record there, or 0. */
export function buildResolve(): FunctionBuilder {
  const f = new FunctionBuilder(RESOLVE);
  const e = new Expressions(f);
  const linear = e.let(linearOfRip(e, e.variableOf(f.parameters[0], 8)));
  const { hit, table } = codeTlb(e, linear);
  e.if(hit, () => {
    recordIn(e, table, linear).push();
    f.return();
  });
  f.i32(0);
  return f;
}

function wrap(e: Expressions, record: Value, offset: Value): Value {
  const size = e.let(e.load(record, Rec.ADDRESS_SIZE, 1));
  const narrow = e.select(e.eq(size, e.constant(1, 4)), e.constant(8, MASK_32), e.constant(8, MASK_16));
  return e.and(offset, e.select(e.eq(size, e.constant(1, 8)), e.constant(8, -1), narrow));
}

/** offset(record): effective address of the memory operand (SDM 1 3.7.5), cut to the address size. */
export function buildOffset(): FunctionBuilder {
  const f = new FunctionBuilder(EFFECTIVE_OFFSET);
  const e = new Expressions(f);
  const record = e.variableOf(f.parameters[0], 4);
  const register = (field: number): Value => e.load(e.load(record, field, 4), 0, 8);
  const scaled = e.shl(register(Rec.INDEX), e.zeroExtend(e.load(record, Rec.SCALE, 1), 8));
  const sum = e.let(e.add(e.add(register(Rec.BASE), e.load(record, Rec.DISPLACEMENT, 8)), scaled));
  wrap(e, record, sum).push();
  return f;
}

export function buildWrapOffset(): FunctionBuilder {
  const f = new FunctionBuilder(WRAP_OFFSET);
  const e = new Expressions(f);
  wrap(e, e.variableOf(f.parameters[0], 4), e.variableOf(f.parameters[1], 8)).push();
  return f;
}

/**
 * segment(record, offset, access): checks type and limit of the segment (SDM 3A 5.3 to 5.5) and leaves the linear address
 * in EA; #GP(0), or #SS(0) for the stack segment. In 64-bit mode only FS and GS have bases and nothing is checked here:
 * whether the address is canonical shows when the TLB does not know it.
 */
export function buildSegment(): FunctionBuilder {
  const f = new FunctionBuilder(SEGMENT);
  const e = new Expressions(f);
  const record = e.variableOf(f.parameters[0], 4);
  const offset = e.variableOf(f.parameters[1], 8);
  const access = e.variableOf(f.parameters[2], 4);
  const k = (n: number): Value => e.constant(4, n);
  const explicit = e.let(e.and(e.shrBy(access, AccessBits.SEGMENT_SHIFT), k(15)));
  const own = e.zeroExtend(e.load(record, Rec.SEGMENT, 1), 4);
  const segment = e.let(e.select(explicit, e.sub(explicit, k(1)), own));
  const part = e.let(e.mul(segment, k(SEG_SIZE)));
  const base = e.load(part, Off.SEG + SegPart.BASE, 8);
  const mode = e.let(e.loadAt(Off.CODE_MODE, 4));
  const answer = (linear: Value): void => {
    e.storeAt(Off.EA, linear);
    f.i32(0);
    f.return();
  };
  e.if(e.eq(mode, k(CodeMode.LONG64)), () => {
    const used = e.select(e.geU(segment, k(Seg.FS)), base, e.constant(8, 0));
    answer(e.add(offset, used));
  });
  const attributes = e.let(e.load(part, Off.SEG + SegPart.ATTRIBUTES, 4));
  const limit = e.let(e.zeroExtend(e.load(part, Off.SEG + SegPart.LIMIT, 4), 8));
  const has = (bits: number): Value => e.and(attributes, k(bits));
  const size = e.let(e.zeroExtend(e.and(access, k(AccessBits.SIZE)), 8));
  const last = e.let(e.sub(e.add(offset, size), e.constant(8, 1)));
  const bad = e.mutable(e.constant(4, 0));
  e.if(e.gtU(mode, k(CodeMode.VM86)), () => {
    e.assign(bad, has(SegAttr.UNUSABLE));
    const isCode = e.let(has(SegAttr.CODE));
    const second = e.let(e.isZero(has(SegAttr.READABLE)));
    // Writes need a writable data segment, reads of code segments a readable one (bit 1 is both).
    const write = e.and(access, k(AccessBits.WRITE));
    const refused = e.select(write, e.or(isCode, second), e.and(e.isZero(e.isZero(isCode)), second));
    e.assign(bad, e.or(bad, refused));
  });
  const expandDown = e.eq(has(SegAttr.CODE | SegAttr.EXPAND_DOWN | SegAttr.S), k(SegAttr.EXPAND_DOWN | SegAttr.S));
  e.if(
    expandDown,
    () => {
      const top = e.select(has(SegAttr.DB), e.constant(8, MASK_32), e.constant(8, MASK_16));
      e.assign(bad, e.or(bad, e.or(e.leU(offset, limit), e.gtU(last, top))));
    },
    () => e.assign(bad, e.or(bad, e.gtU(last, limit))),
  );
  e.if(e.isZero(bad), () => answer(e.and(e.add(base, offset), e.constant(8, MASK_32))));
  e.storeAt(Off.FAULT_VECTOR, e.select(e.eq(segment, k(Seg.SS)), k(12), k(13)));
  e.storeAt(Off.FAULT_ERROR, k(0));
  e.storeAt(Off.FAULT_HAS_ERROR, k(1));
  e.storeAt(Off.FAULT_EXTRA, e.constant(8, 0));
  e.storeAt(Off.STATUS, k(ExitStatus.FAULT));
  f.i32(1);
  return f;
}

/** miss(linear, record, budget, access): stores what TypeScript may look at, then asks it. */
export function buildMiss(fill: number): FunctionBuilder {
  const f = new FunctionBuilder(MISS);
  const e = new Expressions(f);
  const [linear, record, budget, access] = f.parameters;
  const at = e.variableOf(record, 4);
  e.storeAt(Off.EA, e.variableOf(linear, 8));
  e.storeAt(Off.RIP, e.load(at, Rec.RIP, 8));
  // The instruction has been taken off already, but has not retired.
  e.storeAt(Off.BUDGET, e.add(e.variableOf(budget, 4), e.constant(4, 1)));
  e.call(fill, 4, at, e.variableOf(access, 4)).push();
  return f;
}

/** divideHigh(high, low, divisor): quotient of a 128-bit value whose upper half is below the divisor, bit by bit. */
export function buildDivideHigh(): FunctionBuilder {
  const f = new FunctionBuilder(DIVIDE_HIGH);
  const e = new Expressions(f);
  const variable = (local: Local): ReturnType<Expressions["variable"]> => e.variableOf(local, 8);
  const [high, low, divisor] = f.parameters.map(variable);
  const k = (n: number): Value => e.constant(8, n);
  const quotient = e.mutable(k(0));
  const left = e.mutable(e.constant(4, 64));
  const top = f.loop();
  const carry = e.let(e.shrBy(high, 63));
  e.assign(high, e.or(e.shlBy(high, 1), e.shrBy(low, 63)));
  e.assign(low, e.shlBy(low, 1));
  e.assign(quotient, e.shlBy(quotient, 1));
  e.if(e.or(e.low(carry, 4), e.geU(high, divisor)), () => {
    e.assign(high, e.sub(high, divisor));
    e.assign(quotient, e.or(quotient, k(1)));
  });
  e.assign(left, e.sub(left, e.constant(4, 1)));
  left.push();
  f.brIf(top);
  f.end();
  quotient.push();
  return f;
}
