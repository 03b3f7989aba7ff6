/** Binary arithmetic, logic, comparison and compare-and-exchange (SDM 1 5.1.2, 5.1.4). */
import type { Context } from "./context";
import type { Value } from "./expressions";
import { define, type Family } from "./registry";

function add(c: Context): void {
  const b = c.readAs(1, c.size(0));
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.add(a, b));
  destination.write(r);
  c.flagsAdd(a, b, r);
}

function sub(c: Context): void {
  const b = c.readAs(1, c.size(0));
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.sub(a, b));
  destination.write(r);
  c.flagsSub(a, b, r);
}

function cmp(c: Context): void {
  const b = c.readAs(1, c.size(0));
  const a = c.read(0);
  c.flagsSub(a, b, c.let(c.sub(a, b)));
}

const carryOf = (c: Context, v: Value): Value => (v.size === 8 ? c.shrBy(c.flagAux(), 63) : c.low(c.carry(), v.size));

function adc(c: Context): void {
  const b = c.readAs(1, c.size(0));
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.add(c.add(a, b), carryOf(c, a)));
  destination.write(r);
  c.flagsAdd(a, b, r, true);
}

function sbb(c: Context): void {
  const b = c.readAs(1, c.size(0));
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.sub(c.sub(a, b), carryOf(c, a)));
  destination.write(r);
  c.flagsSub(a, b, r, true);
}

/** ADCX and ADOX: carries through CF or OF alone, the other five flags stay. */
const addWith =
  (flag: "CF" | "OF") =>
  (c: Context): void => {
    const b = c.read(1);
    const a = c.read(0);
    const carry = c.let(c.carry());
    const overflow = c.let(c.overflow());
    const r = c.let(c.add(c.add(a, b), c.zeroExtend(flag === "CF" ? carry : overflow, a.size)));
    const out = c.let(c.low(c.signBit(c.or(c.and(a, b), c.and(c.or(a, b), c.not(r)))), 4));
    c.write(0, r);
    if (flag === "CF") c.setCarryOverflow(out, overflow);
    else c.setCarryOverflow(carry, out);
  };

const logic =
  (op: "and" | "or" | "xor") =>
  (c: Context): void => {
    const b = c.readAs(1, c.size(0));
    const destination = c.modify(0);
    const r = c.let(c[op](destination.value, b));
    destination.write(r);
    c.flagsLogic(r);
  };

function test(c: Context): void {
  const b = c.readAs(1, c.size(0));
  c.flagsLogic(c.let(c.and(c.read(0), b)));
}

const step =
  (up: boolean) =>
  (c: Context): void => {
    const destination = c.modify(0);
    const a = destination.value;
    const one = c.constant(a.size, 1);
    const r = c.let(up ? c.add(a, one) : c.sub(a, one));
    destination.write(r);
    c.flagsKeepCarry(a, r, up);
  };

function neg(c: Context): void {
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.neg(a));
  destination.write(r);
  c.flagsSub(c.constant(a.size, 0), a, r);
}

function not(c: Context): void {
  const destination = c.modify(0);
  destination.write(c.let(c.not(destination.value)));
}

function xadd(c: Context): void {
  const b = c.read(1);
  const destination = c.modify(0);
  const a = destination.value;
  const r = c.let(c.add(a, b));
  // The sum wins where both operands are the same register.
  if (c.form(0) === "m") {
    destination.write(r);
    c.write(1, a);
  } else {
    c.write(1, a);
    destination.write(r);
  }
  c.flagsAdd(a, b, r);
}

/** CMPXCHG writes its destination either way: with the source, or with what was there (SDM 2A). */
function cmpxchg(c: Context): void {
  const size = c.size(0);
  const source = c.read(1);
  const destination = c.modify(0);
  const old = destination.value;
  const accumulator = c.let(c.gpr(0, size));
  const difference = c.let(c.sub(accumulator, old));
  const equal = c.let(c.isZero(difference));
  if (c.form(0) === "m") {
    destination.write(c.select(equal, source, old));
    c.if(
      equal,
      () => {},
      () => c.setGpr(0, old),
    );
  } else {
    c.if(
      equal,
      () => destination.write(source),
      () => c.setGpr(0, old),
    );
  }
  c.flagsSub(accumulator, old, difference);
}

/** CMPXCHG8B and CMPXCHG16B: only ZF changes. */
const cmpxchgWide =
  (half: 4 | 8) =>
  (c: Context): void => {
    const address = c.let(c.linear("operand", c.offset(), half * 2, "modify"));
    if (half === 8) {
      c.if(c.ne(c.and(address, c.constant(8, 15)), c.constant(8, 0)), () => c.fault(13, 0));
    }
    const destination = c.reference(address, half * 2, "modify", "operand");
    const low = c.let(destination.load(half, 0));
    const high = c.let(destination.load(half, half));
    const same = c.let(c.and(c.eq(low, c.gpr(0, half)), c.eq(high, c.gpr(2, half))));
    destination.store(c.select(same, c.gpr(3, half), low), 0);
    destination.store(c.select(same, c.gpr(1, half), high), half);
    c.if(c.isZero(same), () => {
      c.setGpr(0, low);
      c.setGpr(2, high);
    });
    const others = c.let(c.and(c.flagsByte(), c.constant(4, ~0x40)));
    c.setFlagBits(c.or(others, c.shlBy(same, 6)), c.let(c.overflow()));
  };

export const arithmetic: Family = {
  ADD: define(add),
  SUB: define(sub),
  CMP: define(cmp),
  ADC: define(adc),
  SBB: define(sbb),
  ADCX: define(addWith("CF")),
  ADOX: define(addWith("OF")),
  AND: define(logic("and")),
  OR: define(logic("or")),
  XOR: define(logic("xor")),
  TEST: define(test),
  INC: define(step(true)),
  DEC: define(step(false)),
  NEG: define(neg),
  NOT: define(not),
  XADD: define(xadd),
  CMPXCHG: define(cmpxchg),
  CMPXCHG8B: define(cmpxchgWide(4)),
  CMPXCHG16B: define(cmpxchgWide(8)),
};
