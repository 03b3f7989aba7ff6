/**
 * Flags inside a compiled region: what the last operation on them was, and its operands, in four locals. RFLAGS' lazy
 * form (FLAG_RESULT, FLAG_AUX) is only made of them where somebody outside looks.
 */
import { Expressions, type Value } from "../isa/semantics/expressions";
import { Off } from "../state";
import { FunctionBuilder, type FunctionType } from "../wasm/function";
import { WasmType } from "../wasm/opcodes";

export const FlagOperation = {
  /** `result` is FLAG_RESULT and `a` is FLAG_AUX. */
  RAW: 0,
  /** result = a + b, a - b, the same with a carry coming in, or any result with CF, OF and AF clear. */
  ADD: 1,
  SUB: 2,
  ADC: 3,
  SBB: 4,
  LOGIC: 5,
} as const;
export type FlagOperation = (typeof FlagOperation)[keyof typeof FlagOperation];

/** Operation << 4 | size of the operands. */
export const flagKind = (operation: FlagOperation, size: number): number => (operation << 4) | size;

/** materialise(kind, a, b, result): writes FLAG_RESULT and FLAG_AUX. */
export const MATERIALISE: FunctionType = {
  parameters: [WasmType.I32, WasmType.I64, WasmType.I64, WasmType.I64],
  results: [],
};

export function buildMaterialise(): FunctionBuilder {
  const f = new FunctionBuilder(MATERIALISE);
  const e = new Expressions(f);
  const kind = e.variableOf(f.parameters[0], 4);
  const [a, b, result] = [1, 2, 3].map((i) => e.variableOf(f.parameters[i], 8));
  const k = (n: number | bigint): Value => e.constant(8, n);
  const operation = e.let(e.shrBy(kind, 4));
  e.if(e.isZero(operation), () => {
    e.storeAt(Off.FLAG_RESULT, result);
    e.storeAt(Off.FLAG_AUX, a);
    f.return();
  });
  const size = e.zeroExtend(e.and(kind, e.constant(4, 15)), 8);
  const unused = e.let(e.sub(k(64), e.shlBy(size, 3)));
  e.storeAt(Off.FLAG_RESULT, e.sar(e.shl(result, unused), unused));
  const is = (...operations: FlagOperation[]): Value =>
    operations.map((o) => e.eq(operation, e.constant(4, o))).reduce((x, y) => e.or(x, y));
  const add = e.or(e.and(a, b), e.and(e.or(a, b), e.not(result)));
  const sub = e.or(e.and(e.not(a), b), e.and(e.or(e.not(a), b), result));
  const vector = e.select(is(FlagOperation.ADD, FlagOperation.ADC), add, sub);
  const carries = e.let(e.select(is(FlagOperation.LOGIC), k(0), vector));
  e.storeAt(Off.FLAG_AUX, e.or(e.and(e.shl(carries, unused), k(3n << 62n)), e.and(carries, k(8))));
  return f;
}
