/**
 * How vector instructions meet their operands. A vector operand is handled as its halves: vectors of 16 bytes, one for XMM
 * and MMX registers (whose 8 bytes stand in the low half) and for whatever is shorter in memory, two for YMM.
 */
import { Off, SimdAccess } from "../../../state";
import type { Context } from "../context";
import type { Value } from "../expressions";
import { define, type Semantics } from "../registry";
import { Form, type ShapeNeeds } from "../shape";
import type { Vector, VectorBytes } from "../vector-expressions";

export type Half = 0 | 1;

const hasForm = (c: Context, form: Form): boolean => c.shape.operands.some((o) => o.form === form);

export const isMmx = (c: Context): boolean => hasForm(c, Form.MMX);

/** MMX instructions make all x87 registers valid and put the top of stack at 0 (SDM 1 9.5.1). */
function enterMmx(c: Context): void {
  c.storeAt(Off.FSW, c.and(c.loadAt(Off.FSW, 2), c.constant(2, ~0x3800)));
  c.storeAt(Off.FTW, c.constant(2, 0xff));
}

/** The semantics of a vector instruction: the checks every one makes, and what MMX does to the x87 state. */
export function vector(sem: (c: Context) => void, needs: ShapeNeeds & { readonly mmx?: boolean } = {}): Semantics {
  return define((c) => {
    const mmx = needs.mmx === true || isMmx(c);
    if (c.shape.vex) c.checkSimd(SimdAccess.VEX);
    else {
      if (!mmx || hasForm(c, Form.VECTOR)) c.checkSimd(SimdAccess.SSE);
      if (mmx) c.checkSimd(SimdAccess.MMX);
    }
    sem(c);
    if (mmx) enterMmx(c);
  }, needs);
}

/** The halves of operand `index`, in variables. Of a register narrower than 16 bytes the whole lowest half is given. */
export function halves(c: Context, index: number): Vector[] {
  const { form, size } = c.shape.operands[index];
  const long = size === 32;
  if (form !== Form.MEMORY) {
    return (long ? ([0, 1] as const) : ([0] as const)).map((h) => c.letVector(c.vectorOperand(index, h)));
  }
  const memory = c.operand(index, "read");
  if (!long) return [c.letVector(memory.loadVector(size as VectorBytes))];
  return [c.letVector(memory.loadVector(16)), c.letVector(memory.loadVector(16, 16))];
}

/** The only, or lower, half of an operand. */
export const half = (c: Context, index: number): Vector => halves(c, index)[0];

/**
 * Writes a vector operand. Legacy instructions keep what is above the XMM register, VEX ones clear it (SDM 1 14.1.2, 14.3);
 * memory gets as many bytes as the operand has.
 */
export function setHalves(c: Context, index: number, values: readonly Vector[]): void {
  const { form, size } = c.shape.operands[index];
  if (form === Form.MEMORY) {
    const memory = c.operand(index, "write");
    if (size < 16) memory.storeVector(values[0], size as VectorBytes);
    else for (const [h, value] of values.entries()) memory.storeVector(value, 16, h * 16);
    return;
  }
  c.setVectorOperand(index, 0, values[0]);
  if (c.shape.vex) c.setVectorOperand(index, 1, values[1] ?? c.zeroVector());
}

/** Writes an operand whose halves are those of another with `f` applied. */
function setEach(c: Context, index: number, inputs: readonly Vector[][], f: (h: Half, ...v: Vector[]) => Vector): void {
  const results = inputs[0].map((_, h) => c.letVector(f(h as Half, ...inputs.map((input) => input[h]))));
  setHalves(c, index, results);
}

/** Number of operands before the immediate. */
const operandCount = (c: Context): number => c.shape.operands.filter((o) => o.form !== Form.IMMEDIATE).length;

/** Which operands the two sources are: the first is the destination where the encoding has no third register. */
export function sourceIndices(c: Context): readonly [number, number] {
  return operandCount(c) >= 3 ? [1, 2] : [0, 1];
}

/** Halves of the two sources. */
export function sources(c: Context): readonly [Vector[], Vector[]] {
  const [first, second] = sourceIndices(c);
  return [halves(c, first), halves(c, second)];
}

/** destination = f(first source, second source), half by half. */
export function binary(c: Context, f: (a: Vector, b: Vector, h: Half) => Vector): void {
  const [a, b] = sources(c);
  setEach(c, 0, [a, b], (h, x, y) => f(x, y, h));
}

/** destination = f(source), half by half. */
export function unary(c: Context, f: (a: Vector, h: Half) => Vector): void {
  setEach(c, 0, [halves(c, 1)], (h, x) => f(x, h));
}

/**
 * As `binary`, for operations that take the low part of the result from the first source and the upper part from the
 * second (packs, horizontal sums). With MMX registers, f gets both in one vector, twice, and its low 8 bytes count.
 */
export function combining(c: Context, f: (a: Vector, b: Vector) => Vector): void {
  binary(c, (a, b) => {
    if (!isMmx(c)) return f(a, b);
    const both = c.letVector(c.shuffleLanes(8, a, b, [0, 2]));
    return f(both, both);
  });
}

/** Operands that select by the top bit of each lane: XMM0, or a fourth register with VEX. */
export function maskedSources(c: Context): readonly [Vector[], Vector[], Vector[]] {
  const first = c.shape.vex ? 1 : 0;
  return [halves(c, first), halves(c, first + 1), halves(c, first + 2)];
}

/** Writes a register or memory operand with an integer, extended with zeros. */
export function writeInteger(c: Context, index: number, value: Value): void {
  const size = c.size(index);
  c.write(index, c.let(value.size < size ? c.zeroExtend(value, size) : c.low(value, size)));
}

/** The immediate that is part of the shape. */
export function immediateOf(c: Context): number {
  if (c.shape.immediateValue < 0) throw new Error(`semantics: ${c.shape.mnemonic} does not ask for its immediate`);
  return c.shape.immediateValue;
}

/** Needs of what depends on the value of the immediate. */
export const BY_IMMEDIATE = { immediateValue: true } as const;
