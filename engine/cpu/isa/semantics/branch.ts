/** Near control transfers (SDM 1 5.1.7). */
import type { Context } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";

/** A branch operand as RIP: operand sizes below 64 bits clear the rest. */
const asRip = (c: Context, v: Value): Value => c.let(c.zeroExtend(v, 8));

function jmp(c: Context): void {
  if (c.shape.operands.length === 0) {
    c.jump();
    return;
  }
  const target = asRip(c, c.read(0));
  c.checkTarget(target);
  c.jumpTo(target);
}

/** The target is checked before anything is pushed, so that a bad one leaves the stack alone. */
function call(c: Context): void {
  const size = c.shape.operandSize as Size;
  if (c.shape.operands.length === 0) {
    c.push(c.low(c.nextRip(), size));
    c.jump();
    return;
  }
  const target = asRip(c, c.read(0));
  c.checkTarget(target);
  c.push(c.low(c.nextRip(), size));
  c.jumpTo(target);
}

function ret(c: Context): void {
  const { value, commit } = c.pop(c.shape.operandSize as Size);
  const target = asRip(c, value);
  c.checkTarget(target);
  commit(c.shape.operands.length > 0 ? c.immediate(8) : undefined);
  c.jumpTo(target);
}

const jcc = (c: Context): void => c.jumpIf(c.condition(c.shape.condition));

/** LOOP counts rCX of address size; LOOPE and LOOPNE also look at ZF. Flags do not change. */
const loop =
  (kind: "always" | "equal" | "notEqual") =>
  (c: Context): void => {
    const size = c.shape.addressSize as Size;
    const count = c.let(c.sub(c.gpr(1, size), c.constant(size, 1)));
    const again = c.ne(count, c.constant(size, 0));
    const condition =
      kind === "always" ? again : c.and(again, kind === "equal" ? c.condition(4) : c.isZero(c.condition(4)));
    const taken = c.let(condition);
    c.setGpr(1, count);
    c.jumpIf(taken);
  };

function jcxz(c: Context): void {
  c.jumpIf(c.isZero(c.gpr(1, c.shape.addressSize as Size)));
}

export const branches: Family = {
  JMP: define(jmp, { modeMatters: "with operands" }),
  JCC: define(jcc, { condition: true }),
  CALL: define(call, { modeMatters: "always", operandSize: true }),
  RET: define(ret, { modeMatters: "always", operandSize: true }),
  LOOP: define(loop("always"), { addressSize: true }),
  LOOPE: define(loop("equal"), { addressSize: true }),
  LOOPNE: define(loop("notEqual"), { addressSize: true }),
  JCXZ: define(jcxz, { addressSize: true }),
};
