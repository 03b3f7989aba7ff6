/**
 * The debugger's expression language, second half: value of a syntax tree in a scope.
 *
 * Values are 64-bit integers or strings. Registers, fields and u8..u64 are unsigned, literals and i8..i64 are signed;
 * signed with unsigned gives unsigned, as in C, except that a negative number is compared with a narrower unsigned value
 * at that value's width (`eax == -1` means 0xffffffff). Nothing is ever a JavaScript number.
 */
import type { BinaryOperator, Expression, LogTemplate, MemoryType, SpaceName } from "./expression";
import { AbsentName, ExpressionError } from "./expression";

/** Where a value can be stored. */
export interface Place {
  /** As it can be written in an expression again. */
  readonly name: string;
  /** Bits. */
  readonly width: number;
  store(value: bigint): void;
}

export interface Value {
  readonly value: bigint;
  readonly signed: boolean;
  /** Bits: 8, 16, 32, 64, or any for bit fields. */
  readonly width: number;
  readonly place?: Place;
  /** Set on addresses with a named space. */
  readonly space?: SpaceName;
  /** The memory a memory expression read. */
  readonly memory?: { readonly space: SpaceName; readonly address: bigint };
  /** What the bits mean, when a table knows. */
  readonly decoded?: string;
  readonly help?: string;
}
export type Result = Value | string;

/** What names mean and where memory is. */
export interface Scope {
  /** Undefined when nothing has that name. `quoted` asks for symbols only. */
  lookup(name: string, quoted: boolean): Result | undefined;
  /** Undefined when the bytes are not mapped. */
  readMemory(space: SpaceName, address: bigint, length: number): Uint8Array | undefined;
  /** False when the bytes are not mapped or cannot be written. */
  writeMemory(space: SpaceName, address: bigint, bytes: Uint8Array): boolean;
  /** Whether `name` is a detail that other stops have, but not this one. */
  isAbsent?(name: string): boolean;
  /** Names like `name`, for the error message; may be empty. */
  suggest(name: string): readonly string[];
}

const typeBits = (type: MemoryType): number => Number(type.slice(1));
const isSigned = (type: MemoryType): boolean => type[0] === "i";
const U64 = (v: bigint): bigint => BigInt.asUintN(64, v);
const wrap = (v: bigint, signed: boolean): bigint => (signed ? BigInt.asIntN(64, v) : U64(v));
const hex = (v: bigint): string => `0x${U64(v).toString(16)}`;

export const integer = (value: bigint, signed = true, width = 64): Value => ({
  value: wrap(value, signed),
  signed,
  width,
});
const truth = (v: boolean): Value => ({ value: v ? 1n : 0n, signed: true, width: 64 });

function number(result: Result, at: number, what: string): Value {
  if (typeof result === "string") throw new ExpressionError(`${what} must be a number, not the string "${result}"`, at);
  return result;
}

function isTrue(result: Result): boolean {
  return typeof result === "string" ? result !== "" : result.value !== 0n;
}

/** Both operands as the comparison and arithmetic of C see them. */
function balance(l: Value, r: Value, comparing: boolean): { a: bigint; b: bigint; signed: boolean; width: number } {
  const width = Math.max(l.width, r.width);
  if (l.signed === r.signed) return { a: l.value, b: r.value, signed: l.signed, width };
  if (comparing && l.signed && l.value < 0n && r.width < 64)
    return { a: BigInt.asUintN(r.width, l.value), b: r.value, signed: false, width };
  if (comparing && r.signed && r.value < 0n && l.width < 64)
    return { a: l.value, b: BigInt.asUintN(l.width, r.value), signed: false, width };
  return { a: U64(l.value), b: U64(r.value), signed: false, width };
}

function shift(a: bigint, b: bigint, left: boolean): bigint {
  if (b < 0n || b >= 64n) return left || a >= 0n ? 0n : -1n;
  return left ? a << b : a >> b;
}

function compare(operator: BinaryOperator, order: number): Value | undefined {
  switch (operator) {
    case "==":
      return truth(order === 0);
    case "!=":
      return truth(order !== 0);
    case "<":
      return truth(order < 0);
    case ">":
      return truth(order > 0);
    case "<=":
      return truth(order <= 0);
    case ">=":
      return truth(order >= 0);
    default:
      return undefined;
  }
}

function applyBinary(operator: BinaryOperator, left: Result, right: Result, at: number): Value {
  if (typeof left === "string" || typeof right === "string") {
    if (operator !== "==" && operator !== "!=") throw new ExpressionError(`strings have no operator "${operator}"`, at);
    if (typeof left !== "string" || typeof right !== "string")
      throw new ExpressionError("a string can only be compared with a string", at);
    return truth((left === right) === (operator === "=="));
  }
  const compared = /^[=!<>]=?$/.test(operator) && operator !== ("=" as string);
  const { a, b, signed } = balance(left, right, compared);
  if (compared) {
    const result = compare(operator, a < b ? -1 : a > b ? 1 : 0);
    if (result) return result;
  }
  const make = (v: bigint): Value => integer(v, signed);
  switch (operator) {
    case "+":
    case "-": {
      const sum = make(operator === "+" ? a + b : a - b);
      // An address stays an address of its space when something is added to it.
      const space = left.space ?? (operator === "+" ? right.space : undefined);
      return space ? { ...sum, space } : sum;
    }
    case "*":
      return make(a * b);
    case "/":
    case "%":
      if (b === 0n) throw new ExpressionError("division by zero", at);
      return make(operator === "/" ? a / b : a % b);
    case "&":
      return make(a & b);
    case "|":
      return make(a | b);
    case "^":
      return make(a ^ b);
    case "<<":
      return { ...left, ...integer(shift(left.value, U64(right.value), true), left.signed), ...NO_PLACE };
    case ">>":
      return { ...left, ...integer(shift(left.value, U64(right.value), false), left.signed), ...NO_PLACE };
    default:
      throw new ExpressionError(`operator "${operator}" has no meaning here`, at);
  }
}

/** What a computed value must not inherit from its operand. */
const NO_PLACE = { place: undefined, memory: undefined, decoded: undefined, help: undefined } as const;

function castTo(type: MemoryType, value: bigint): Value {
  const width = typeBits(type);
  const signed = isSigned(type);
  return { value: signed ? BigInt.asIntN(width, value) : BigInt.asUintN(width, value), signed, width };
}

function littleEndian(bytes: Uint8Array): bigint {
  let value = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
  return value;
}

function toBytes(value: bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  return bytes;
}

function memoryValue(e: Expression & { kind: "memory" }, scope: Scope): Value {
  const pointer = number(evaluate(e.address, scope), e.address.at, "an address");
  const space = pointer.space ?? "gva";
  const address = U64(pointer.value);
  const length = typeBits(e.type) / 8;
  const bytes = scope.readMemory(space, address, length);
  if (!bytes) throw new ExpressionError(`no memory at ${space}:${hex(address)}`, e.at);
  const name = `${e.type}[${space === "gva" ? "" : space + ": "}${hex(address)}]`;
  return {
    ...castTo(e.type, littleEndian(bytes)),
    memory: { space, address },
    place: {
      name,
      width: length * 8,
      store: (value) => {
        if (!scope.writeMemory(space, address, toBytes(U64(value), length)))
          throw new ExpressionError(`memory at ${space}:${hex(address)} cannot be written`, e.at);
      },
    },
  };
}

function lookup(name: string, quoted: boolean, at: number, scope: Scope): Result {
  let found: Result | undefined;
  try {
    found = scope.lookup(name, quoted);
  } catch (error) {
    if (error instanceof ExpressionError || !(error instanceof Error)) throw error;
    throw new ExpressionError(error.message, at);
  }
  if (found !== undefined) return found;
  if (scope.isAbsent?.(name)) throw new AbsentName(`this stop has no "${name}"`, at);
  const like = scope.suggest(name);
  const hint = like.length > 0 ? `; did you mean ${like.join(" or ")}?` : "";
  throw new ExpressionError(`nothing is called "${name}" here${hint}`, at);
}

/** Whether `value` can be stored in `width` bits, signed or not. */
export function fits(value: bigint, width: number): boolean {
  return value >= -(1n << BigInt(width - 1)) && value < 1n << BigInt(width);
}

function assign(e: Expression & { kind: "assign" }, scope: Scope): Value {
  const target = evaluate(e.target, scope);
  if (typeof target === "string" || !target.place) throw new ExpressionError("this cannot be changed", e.target.at);
  const right = evaluate(e.value, scope);
  const value = number(
    e.operator === "" ? right : applyBinary(e.operator, target, right, e.at),
    e.value.at,
    "the new value",
  );
  const { place } = target;
  if (e.operator === "" && !fits(value.value, place.width))
    throw new ExpressionError(`${hex(value.value)} does not fit the ${place.width} bits of ${place.name}`, e.value.at);
  try {
    place.store(BigInt.asUintN(place.width, value.value));
  } catch (error) {
    if (error instanceof ExpressionError || !(error instanceof Error)) throw error;
    throw new ExpressionError(error.message, e.at);
  }
  return number(evaluate(e.target, scope), e.target.at, "the target");
}

/** @throws ExpressionError */
export function evaluate(e: Expression, scope: Scope): Result {
  switch (e.kind) {
    case "integer":
      return integer(e.value, e.value < 1n << 63n);
    case "string":
      return e.value;
    case "name":
      return lookup(e.name, e.quoted, e.at, scope);
    case "unary": {
      const result = evaluate(e.operand, scope);
      if (e.operator === "!") return truth(!isTrue(result));
      const { value, signed, width } = number(result, e.operand.at, `the operand of "${e.operator}"`);
      if (e.operator === "-") return integer(-value, signed || value <= 1n << 63n);
      if (e.operator === "+") return { value, signed, width };
      return signed ? integer(~value, true) : { value: BigInt.asUintN(width, ~value), signed, width };
    }
    case "binary": {
      const left = evaluate(e.left, scope);
      if (e.operator === "&&") return truth(isTrue(left) && isTrue(evaluate(e.right, scope)));
      if (e.operator === "||") return truth(isTrue(left) || isTrue(evaluate(e.right, scope)));
      return applyBinary(e.operator, left, evaluate(e.right, scope), e.at);
    }
    case "conditional":
      return evaluate(isTrue(evaluate(e.test, scope)) ? e.yes : e.no, scope);
    case "memory":
      return memoryValue(e, scope);
    case "cast":
      return castTo(e.type, number(evaluate(e.operand, scope), e.operand.at, "the operand").value);
    case "space": {
      const operand = number(evaluate(e.operand, scope), e.operand.at, "an address");
      const address = U64(operand.value);
      return { value: address, signed: false, width: 64, space: e.space, memory: { space: e.space, address } };
    }
    case "assign":
      return assign(e, scope);
  }
}

/** Whether a condition holds. @throws ExpressionError */
export function holds(e: Expression, scope: Scope): boolean {
  return isTrue(evaluate(e, scope));
}

/** Whether evaluating could change anything: hovers and conditions must not. */
export function assigns(e: Expression): boolean {
  switch (e.kind) {
    case "assign":
      return true;
    case "unary":
    case "cast":
    case "space":
      return assigns(e.operand);
    case "memory":
      return assigns(e.address);
    case "binary":
      return assigns(e.left) || assigns(e.right);
    case "conditional":
      return assigns(e.test) || assigns(e.yes) || assigns(e.no);
    default:
      return false;
  }
}

/** A log line filled in. What cannot be evaluated says so in its place. */
export function fillLog(template: LogTemplate, scope: Scope): string {
  return template
    .map((part) => {
      if (typeof part === "string") return part;
      try {
        const result = evaluate(part.expression, scope);
        if (typeof result === "string") return result;
        return result.signed ? String(result.value) : hex(result.value);
      } catch (error) {
        return `<${part.source}: ${error instanceof Error ? error.message : String(error)}>`;
      }
    })
    .join("");
}
