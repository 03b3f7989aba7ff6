/**
 * The usual cases of PUSHF, CLI and STI in 64-bit mode (SDM 2A, 2B): what kernels do around every lock. Virtual interrupts
 * and faults are the SystemHandlers' (cpu/system/flags.ts).
 */
import { Off, Rflags } from "../../state";
import type { Context } from "./context";
import type { Value } from "./expressions";
import { define, type Family } from "./registry";

/** Whether CPL is at most IOPL; 4 bytes. */
function privileged(c: Context): Value {
  const iopl = c.and(c.shrBy(c.loadAt(Off.FLAGS_REST, 4), Rflags.IOPL_SHIFT), c.constant(4, 3));
  return c.leU(c.loadAt(Off.CPL, 4), iopl);
}

function pushf(c: Context): void {
  const rest = c.and(c.loadAt(Off.FLAGS_REST, 4), c.constant(4, ~(Rflags.VM | Rflags.RF)));
  const overflow = c.shlBy(c.overflow(), 31 - Math.clz32(Rflags.OF));
  c.push(c.let(c.zeroExtend(c.or(c.or(rest, overflow), c.flagsByte()), 8)));
}

function cli(c: Context): void {
  c.if(c.isZero(privileged(c)), () => c.systemCall());
  c.storeAt(Off.FLAGS_REST, c.and(c.loadAt(Off.FLAGS_REST, 4), c.constant(4, ~Rflags.IF)));
}

/** An STI that turns interrupts on has something behind it to look at. */
function sti(c: Context): void {
  const on = c.and(c.loadAt(Off.FLAGS_REST, 4), c.constant(4, Rflags.IF));
  c.if(c.or(c.isZero(privileged(c)), c.isZero(on)), () => c.systemCall());
}

export const interruptFlag: Family = {
  PUSHF: define(pushf, { usualCase: true, modeMatters: "always", operandSize: true }),
  CLI: define(cli, { usualCase: true, modeMatters: "always" }),
  STI: define(sti, { usualCase: true, modeMatters: "always" }),
};
