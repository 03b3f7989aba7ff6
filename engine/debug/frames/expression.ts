/**
 * DWARF expressions (DWARF 5, 2.5 and 4.3): small stack programs that compute an address or a value. Call frame rules and
 * the places of variables are written in them.
 */
import { FrameReader } from "./cfi";

export interface ExpressionContext {
  /** Bytes of an address. */
  readonly pointer: 4 | 8;
  /** A register by its DWARF number, or undefined when its value in this frame is not known. */
  register(number: number): bigint | undefined;
  /** Little-endian unsigned integer in memory, or undefined where nothing is mapped. */
  read(address: bigint, size: number): bigint | undefined;
  /** DW_OP_fbreg counts from here. */
  frameBase?(): bigint | undefined;
  /** DW_OP_call_frame_cfa. */
  cfa?(): bigint | undefined;
  /** What addresses in the program (DW_OP_addr) are moved by. */
  readonly slide?: bigint;
  /** DW_OP_addrx: an address of the unit's table. */
  address?(index: bigint): bigint | undefined;
  /** DW_OP_entry_value: the value of a register when the function was entered. */
  entryValue?(register: number): bigint | undefined;
}

/** Where something is, or what it is. */
export type Located =
  | { readonly kind: "memory"; readonly address: bigint }
  | { readonly kind: "register"; readonly register: number }
  | { readonly kind: "value"; readonly value: bigint }
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  | { readonly kind: "none" };

/** A piece of a composite location (DW_OP_piece): bytes. */
export interface Piece {
  readonly size: number;
  readonly place: Located;
}

/** Thrown when a value the program needs is not there. */
export class NotAvailable extends Error {
  override readonly name = "NotAvailable";
}

const MAX_STEPS = 10_000;

function need<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new NotAvailable(what);
  return value;
}

/** @param initial pushed first: the CFA for register rules */
function evaluateDwarf(code: Uint8Array, context: ExpressionContext, initial?: bigint): Located | readonly Piece[] {
  const reader = new FrameReader(code, 0, code.length);
  const bits = context.pointer * 8;
  const wrap = (value: bigint): bigint => BigInt.asUintN(bits, value);
  const signed = (value: bigint): bigint => BigInt.asIntN(bits, value);
  const stack: bigint[] = initial === undefined ? [] : [initial];
  const pop = (): bigint => need(stack.pop(), "the expression's stack is empty");
  const push = (value: bigint): number => stack.push(wrap(value));
  const pieces: Piece[] = [];
  let direct: Located | null = null;
  const place = (): Located => {
    const found: Located = direct ?? (stack.length > 0 ? { kind: "memory", address: pop() } : { kind: "none" });
    direct = null;
    return found;
  };
  const register = (number: number): bigint => need(context.register(number), `register ${number} is not known here`);
  const binary = (operation: (a: bigint, b: bigint) => bigint): void => {
    const b = pop();
    push(operation(pop(), b));
  };
  for (let steps = 0; reader.more; steps++) {
    if (steps > MAX_STEPS) throw new NotAvailable("the expression does not end");
    const op = reader.u8();
    if (op >= 0x30 && op <= 0x4f) push(BigInt(op - 0x30));
    else if (op >= 0x50 && op <= 0x6f) direct = { kind: "register", register: op - 0x50 };
    else if (op >= 0x70 && op <= 0x8f) push(register(op - 0x70) + reader.sleb());
    else
      switch (op) {
        case 0x03:
          push(reader.uint(context.pointer) + (context.slide ?? 0n));
          break;
        case 0x06:
          push(need(context.read(pop(), context.pointer), "memory that is not mapped"));
          break;
        case 0x08:
        case 0x0a:
        case 0x0c:
        case 0x0e:
          push(reader.uint(1 << ((op - 8) / 2)));
          break;
        case 0x09:
        case 0x0b:
        case 0x0d:
        case 0x0f:
          push(reader.sint(1 << ((op - 9) / 2)));
          break;
        case 0x10:
          push(reader.uleb());
          break;
        case 0x11:
          push(reader.sleb());
          break;
        case 0x12:
          push(need(stack[stack.length - 1], "the expression's stack is empty"));
          break;
        case 0x13:
          pop();
          break;
        case 0x14:
          push(need(stack[stack.length - 2], "the expression's stack is empty"));
          break;
        case 0x15:
          push(need(stack[stack.length - 1 - reader.u8()], "the expression's stack is empty"));
          break;
        case 0x16: {
          const [a, b] = [pop(), pop()];
          push(a);
          push(b);
          break;
        }
        case 0x17: {
          const [a, b, c] = [pop(), pop(), pop()];
          push(a);
          push(c);
          push(b);
          break;
        }
        case 0x19: {
          const value = signed(pop());
          push(value < 0n ? -value : value);
          break;
        }
        case 0x1a:
          binary((a, b) => a & b);
          break;
        case 0x1b:
          binary((a, b) => {
            if (b === 0n) throw new NotAvailable("a division by zero");
            return signed(a) / signed(b);
          });
          break;
        case 0x1c:
          binary((a, b) => a - b);
          break;
        case 0x1d:
          binary((a, b) => {
            if (b === 0n) throw new NotAvailable("a division by zero");
            return a % b;
          });
          break;
        case 0x1e:
          binary((a, b) => a * b);
          break;
        case 0x1f:
          push(-pop());
          break;
        case 0x20:
          push(~pop());
          break;
        case 0x21:
          binary((a, b) => a | b);
          break;
        case 0x22:
          binary((a, b) => a + b);
          break;
        case 0x23:
          push(pop() + reader.uleb());
          break;
        case 0x24:
          binary((a, b) => (b >= 64n ? 0n : a << b));
          break;
        case 0x25:
          binary((a, b) => (b >= 64n ? 0n : a >> b));
          break;
        case 0x26:
          binary((a, b) => signed(a) >> (b >= 64n ? 63n : b));
          break;
        case 0x27:
          binary((a, b) => a ^ b);
          break;
        case 0x28: {
          const by = Number(reader.sint(2));
          if (pop() !== 0n) reader.at += by;
          break;
        }
        case 0x29:
        case 0x2a:
        case 0x2b:
        case 0x2c:
        case 0x2d:
        case 0x2e:
          binary((x, y) => {
            const [a, b] = [signed(x), signed(y)];
            const results = [a === b, a >= b, a > b, a <= b, a < b, a !== b];
            return results[op - 0x29] ? 1n : 0n;
          });
          break;
        case 0x2f: {
          const by = Number(reader.sint(2));
          reader.at += by;
          break;
        }
        case 0x90:
          direct = { kind: "register", register: Number(reader.uleb()) };
          break;
        case 0x91:
          push(need(context.frameBase?.(), "the frame base is not known") + reader.sleb());
          break;
        case 0x92: {
          const number = Number(reader.uleb());
          push(register(number) + reader.sleb());
          break;
        }
        case 0x93:
          pieces.push({ size: Number(reader.uleb()), place: place() });
          break;
        case 0x94: {
          const size = reader.u8();
          push(need(context.read(pop(), size), "memory that is not mapped"));
          break;
        }
        case 0x96:
          break;
        case 0x9c:
          push(need(context.cfa?.(), "the frame's address is not known"));
          break;
        case 0x9e:
          direct = { kind: "bytes", bytes: reader.block(Number(reader.uleb())) };
          break;
        case 0x9f:
          direct = { kind: "value", value: pop() };
          break;
        case 0xa1:
        case 0xa2:
          push(need(context.address?.(reader.uleb()), "an address of the unit's table"));
          break;
        case 0xa3:
        case 0xf3: {
          const inner = reader.block(Number(reader.uleb()));
          const number = inner.length === 1 && inner[0] >= 0x50 && inner[0] <= 0x6f ? inner[0] - 0x50 : -1;
          push(need(context.entryValue?.(number), "a value from when the function was entered"));
          break;
        }
        default:
          throw new NotAvailable(`the operation 0x${op.toString(16)} is not known`);
      }
  }
  return pieces.length > 0 ? pieces : place();
}

/** The number an expression of call frame information computes. @throws NotAvailable */
export function evaluateAddress(code: Uint8Array, context: ExpressionContext, initial?: bigint): bigint {
  const result = evaluateDwarf(code, context, initial);
  if (!("kind" in result) || result.kind !== "memory") throw new NotAvailable("the expression gives no address");
  return result.address;
}
