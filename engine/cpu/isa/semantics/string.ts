/**
 * String instructions (SDM 1 5.1.8). A repeated one is one instruction however many iterations it makes; every iteration
 * leaves rCX, rSI, rDI and the flags as the manual has them between iterations, so that a fault in the middle restarts
 * where it happened.
 */
import { Seg } from "../../state";
import type { AddressSegment, Context } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";

const RCX = 1;
const RSI = 6;
const RDI = 7;

interface StringParts {
  readonly size: Size;
  readonly address: Size;
}

const partsOf = (c: Context): StringParts => ({
  size: c.shape.operandSize as Size,
  address: c.shape.addressSize as Size,
});

/** Linear address a pointer register gives; in flat shapes the segment has no part in it. */
function pointer(
  c: Context,
  register: number,
  segment: AddressSegment,
  p: StringParts,
  access: "read" | "write",
): Value {
  const offset = c.let(c.zeroExtend(c.gpr(register, p.address), 8));
  return c.let(c.linear(segment, offset, p.size, access));
}

const source = (c: Context, p: StringParts): Value => pointer(c, RSI, c.shape.flat ? Seg.DS : "operand", p, "read");
const destination = (c: Context, p: StringParts, access: "read" | "write"): Value => pointer(c, RDI, Seg.ES, p, access);

function advance(c: Context, register: number, p: StringParts): void {
  c.setGpr(register, c.let(c.add(c.gpr(register, p.address), c.stringStep(p.size, p.address))));
}

const load = (c: Context, linear: Value, p: StringParts, segment: AddressSegment): Value =>
  c.let(c.reference(linear, p.size, "read", segment).load(p.size));

/**
 * Repeats `iteration`. `bulk` may do many iterations at once: it leaves their number (8 bytes) in its variable and has
 * updated the pointers, or leaves 0.
 */
function repeat(c: Context, p: StringParts, iteration: () => void, bulk?: () => Value): void {
  const { f } = c;
  const counter = (): Value => c.gpr(RCX, p.address);
  const left = c.mutable(c.constant(4, c.iterations));
  const done = f.block();
  c.isZero(counter()).push();
  f.brIf(done);
  const top = f.loop();
  const decrement = (by: Value): void => c.setGpr(RCX, c.let(c.sub(counter(), by)));
  const next = (): void => {
    // Nothing left: done. Enough for one go: come up for air, else round again.
    c.isZero(counter()).push();
    f.brIf(done);
    c.assign(left, c.sub(left, c.constant(4, 1)));
    c.if(c.isZero(left), () => c.again());
    f.br(top);
  };
  if (bulk && c.iterations > 1) {
    const made = bulk();
    c.if(c.ne(made, c.constant(8, 0)), () => {
      decrement(c.low(made, p.address));
      c.isZero(counter()).push();
      f.brIf(done);
      c.assign(left, c.sub(left, c.constant(4, 1)));
      c.if(c.isZero(left), () => c.again());
      f.br(top);
    });
  }
  iteration();
  decrement(c.constant(p.address, 1));
  if (c.shape.repeat !== 0 && (c.shape.mnemonic === "CMPS" || c.shape.mnemonic === "SCAS")) {
    const equal = c.isZero(c.flagResult());
    (c.shape.repeat === 0xf3 ? c.isZero(equal) : equal).push();
    f.brIf(done);
  }
  next();
  f.end();
  f.end();
}

/** Iterations until rCX or the page of one of the addresses ends; 8 bytes. Only for upward strings. */
function iterationsInPage(c: Context, p: StringParts, linears: readonly Value[]): Value {
  const n = c.mutable(c.zeroExtend(c.gpr(RCX, p.address), 8));
  for (const linear of linears) {
    const bytes = c.sub(c.constant(8, 4096), c.and(linear, c.constant(8, 4095)));
    const items = c.let(c.shrBy(bytes, Math.log2(p.size)));
    c.assign(n, c.select(c.ltU(items, n), items, n));
  }
  return n;
}

const upward = (c: Context, p: StringParts): Value => c.geS(c.stringStep(p.size, 4), c.constant(4, 0));

function move(c: Context, register: number, bytes: Value, p: StringParts): void {
  c.setGpr(register, c.let(c.add(c.gpr(register, p.address), c.low(bytes, p.address))));
}

/** Whole-page copies by memory.copy, where the TLB knows both pages and the copy does not feed on itself. */
function copyBulk(c: Context, p: StringParts): Value {
  const made = c.mutable(c.constant(8, 0));
  c.if(upward(c, p), () => {
    const from = c.let(c.gpr(RSI, 8));
    const to = c.let(c.gpr(RDI, 8));
    const hostFrom = c.let(c.quickHost(from, "read"));
    const hostTo = c.let(c.quickHost(to, "write"));
    c.if(c.and(c.ne(hostFrom, c.constant(4, 0)), c.ne(hostTo, c.constant(4, 0))), () => {
      const n = iterationsInPage(c, p, [from, to]);
      const bytes = c.let(c.shlBy(n, Math.log2(p.size)));
      const length = c.let(c.low(bytes, 4));
      c.if(c.geU(c.sub(hostTo, hostFrom), length), () => {
        hostTo.push();
        hostFrom.push();
        length.push();
        c.f.memoryCopy();
        move(c, RSI, bytes, p);
        move(c, RDI, bytes, p);
        c.assign(made, n);
      });
    });
  });
  return made;
}

/** Whole-page fills by memory.fill, where all bytes of the accumulator are the same. */
function fillBulk(c: Context, p: StringParts): Value {
  const made = c.mutable(c.constant(8, 0));
  const byte = c.let(c.zeroExtend(c.gpr(0, 1), 4));
  const ones = { 1: 1n, 2: 0x101n, 4: 0x1010101n, 8: 0x101010101010101n }[p.size];
  const pattern = c.mul(c.zeroExtend(byte, p.size === 8 ? 8 : 4), c.constant(p.size === 8 ? 8 : 4, ones));
  const uniform = c.eq(c.low(pattern, p.size), c.gpr(0, p.size));
  c.if(c.and(uniform, upward(c, p)), () => {
    const to = c.let(c.gpr(RDI, 8));
    const host = c.let(c.quickHost(to, "write"));
    c.if(c.ne(host, c.constant(4, 0)), () => {
      const n = iterationsInPage(c, p, [to]);
      const bytes = c.let(c.shlBy(n, Math.log2(p.size)));
      host.push();
      byte.push();
      c.low(bytes, 4).push();
      c.f.memoryFill();
      move(c, RDI, bytes, p);
      c.assign(made, n);
    });
  });
  return made;
}

/** Bulk work only where addresses are the registers themselves. */
const bulkable = (c: Context, p: StringParts): boolean => c.shape.flat && p.address === 8;

function movs(c: Context): void {
  const p = partsOf(c);
  const once = (): void => {
    const from = source(c, p);
    const to = destination(c, p, "write");
    const value = load(c, from, p, "operand");
    c.reference(to, p.size, "write", Seg.ES).store(value);
    advance(c, RSI, p);
    advance(c, RDI, p);
  };
  if (c.shape.repeat === 0) once();
  else repeat(c, p, once, bulkable(c, p) ? () => copyBulk(c, p) : undefined);
}

function stos(c: Context): void {
  const p = partsOf(c);
  const once = (): void => {
    const to = destination(c, p, "write");
    c.reference(to, p.size, "write", Seg.ES).store(c.gpr(0, p.size));
    advance(c, RDI, p);
  };
  if (c.shape.repeat === 0) once();
  else repeat(c, p, once, bulkable(c, p) ? () => fillBulk(c, p) : undefined);
}

function lods(c: Context): void {
  const p = partsOf(c);
  const once = (): void => {
    const value = load(c, source(c, p), p, "operand");
    c.setGpr(0, value);
    advance(c, RSI, p);
  };
  if (c.shape.repeat === 0) once();
  else repeat(c, p, once);
}

function cmps(c: Context): void {
  const p = partsOf(c);
  const once = (): void => {
    const a = load(c, source(c, p), p, "operand");
    const b = load(c, destination(c, p, "read"), p, Seg.ES);
    advance(c, RSI, p);
    advance(c, RDI, p);
    c.flagsSub(a, b, c.let(c.sub(a, b)));
  };
  if (c.shape.repeat === 0) once();
  else repeat(c, p, once);
}

function scas(c: Context): void {
  const p = partsOf(c);
  const once = (): void => {
    const b = load(c, destination(c, p, "read"), p, Seg.ES);
    const a = c.let(c.gpr(0, p.size));
    advance(c, RDI, p);
    c.flagsSub(a, b, c.let(c.sub(a, b)));
  };
  if (c.shape.repeat === 0) once();
  else repeat(c, p, once);
}

const needs = { addressSize: true, repeat: true, implicitMemory: true, ignoresOperands: true };

export const strings: Family = {
  MOVS: define(movs, needs),
  STOS: define(stos, needs),
  LODS: define(lods, needs),
  CMPS: define(cmps, needs),
  SCAS: define(scas, needs),
};
