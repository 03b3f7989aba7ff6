/**
 * The shape of an instruction: what code made for it may rely on without looking at a particular instruction. Equal
 * shapes share one handler; a compiled region has the instruction itself at hand besides.
 */

import { Seg } from "../../state";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../instruction";
import { OPCODES } from "../opcodes";
import type { Size } from "./expressions";

export const Form = {
  REGISTER: "r",
  MEMORY: "m",
  IMMEDIATE: "i",
  SEGMENT: "s",
  /** XMM or YMM register, and MMX register. */
  VECTOR: "x",
  MMX: "n",
} as const;
export type Form = (typeof Form)[keyof typeof Form];

export interface OperandShape {
  readonly form: Form;
  /** Bytes; 16 for CMPXCHG16B's operand, up to 32 for vectors. */
  readonly size: number;
}

export interface Shape {
  /** Equal for equal shapes. */
  readonly key: string;
  readonly mnemonic: string;
  /** 64-bit mode: flat segments, 64-bit stack. Also true where the mode makes no difference. */
  readonly long: boolean;
  /** The memory operand's linear address is base + (index << scale) + displacement of the record, in 64 bits. */
  readonly flat: boolean;
  /** 0 where the semantics do not ask for it; so are the next three. */
  readonly operandSize: 0 | 2 | 4 | 8 | 1;
  readonly addressSize: 0 | 2 | 4 | 8;
  readonly condition: number;
  /** 0, 0xf3 (REP, REPE) or 0xf2 (REPNE). */
  readonly repeat: number;
  readonly operands: readonly OperandShape[];
  /** The count of a shift is an immediate that is not 0 after masking. */
  readonly countNotZero: boolean;
  /** Length in bytes that VEX gives, or 0 without VEX. */
  readonly vex: 0 | 16 | 32;
  /** A memory operand must be aligned to its size. */
  readonly aligned: boolean;
  /** The low byte of the immediate where the semantics ask for it, else -1. */
  readonly immediateValue: number;
}

/** What a mnemonic's semantics ask of a shape beyond its operands. */
export interface ShapeNeeds {
  readonly operandSize?: boolean;
  readonly addressSize?: boolean;
  /** The address size matters with a memory operand. */
  readonly memoryAddressSize?: boolean;
  readonly condition?: boolean;
  readonly repeat?: boolean;
  /** The memory operand's segment matters though no ModRM operand is read (strings, XLAT). */
  readonly implicitMemory?: boolean;
  /** Operands are not looked at. */
  readonly ignoresOperands?: boolean;
  readonly shiftCount?: boolean;
  /** A system instruction whose usual case is generated code: everything else is its SystemHandler's (`systemCall`). */
  readonly usualCase?: boolean;
  /** Not worth compiling in a region, or changes registers before its last access. */
  readonly leftToTier0?: boolean;
  /** The immediate is part of the operation: each value has code of its own. */
  readonly immediateValue?: boolean;
  /** The stack is used, or RIP as an operand gives it: what they are depends on the mode. */
  readonly modeMatters?: "always" | "with operands";
}

type VectorFields = "vex" | "aligned" | "immediateValue";
export type ShapeFields = Omit<Shape, "key" | VectorFields> & Partial<Pick<Shape, VectorFields>>;

export function makeShape(fields: ShapeFields): Shape {
  const operands = fields.operands.map((o) => o.form + o.size).join(",");
  const extra =
    (fields.operandSize ? `o${fields.operandSize}` : "") +
    (fields.addressSize ? `a${fields.addressSize}` : "") +
    (fields.condition ? `c${fields.condition}` : "") +
    (fields.repeat ? `p${fields.repeat.toString(16)}` : "") +
    (fields.countNotZero ? "n" : "") +
    (fields.vex ? `v${fields.vex}` : "") +
    (fields.aligned ? "l" : "") +
    (fields.immediateValue !== undefined && fields.immediateValue >= 0 ? `i${fields.immediateValue}` : "");
  const key = `${fields.mnemonic} ${fields.long ? "long" : "legacy"}${fields.flat ? " flat" : ""} ${operands} ${extra}`;
  return { vex: 0, aligned: false, immediateValue: -1, ...fields, key };
}

/** Whether the linear address of the memory operand in 64-bit code is a plain sum of two registers and a constant. */
function isFlat(i: Instruction, long: boolean): boolean {
  if (!long || i.addressSize !== 8 || i.vsib) return false;
  if (i.segment < Seg.FS) return true;
  return i.index === NO_REG || i.base === NO_REG || i.base === RIP_BASE;
}

export function shapeOf(i: Instruction, long64: boolean, needs: ShapeNeeds): Shape {
  const row = OPCODES[i.opcode];
  const operands: OperandShape[] = [];
  let memory = needs.implicitMemory === true;
  let operandSize = needs.operandSize ? (i.operandSize as 2 | 4 | 8) : 0;
  if (needs.ignoresOperands !== true) {
    for (const o of i.operands) {
      if (o.kind === OperandKind.NONE) break;
      if (o.kind === OperandKind.GPR) operands.push({ form: Form.REGISTER, size: o.size });
      else if (o.kind === OperandKind.MEMORY) {
        operands.push({ form: Form.MEMORY, size: o.size });
        memory = true;
      } else if (o.kind === OperandKind.IMMEDIATE) operands.push({ form: Form.IMMEDIATE, size: o.size });
      else if (o.kind === OperandKind.SEGMENT) operands.push({ form: Form.SEGMENT, size: 2 });
      else if (o.kind === OperandKind.VECTOR) operands.push({ form: Form.VECTOR, size: o.size });
      else if (o.kind === OperandKind.MMX) operands.push({ form: Form.MMX, size: o.size });
    }
  }
  const moded = needs.modeMatters === "always" || (needs.modeMatters === "with operands" && operands.length > 0);
  const long = long64 || !(memory || moded);
  let flat = true;
  if (needs.implicitMemory) {
    operandSize = i.operands[0].size as 1 | 2 | 4 | 8;
    flat = long && i.segment < Seg.FS;
  } else if (row.mnemonic === "LEA") flat = long && i.addressSize === 8;
  else if (memory) flat = isFlat(i, long);
  let countNotZero = false;
  if (needs.shiftCount) {
    const mask = i.operands[0].size === 8 ? 63 : 31;
    const last = i.operands[2].kind === OperandKind.NONE ? i.operands[1] : i.operands[2];
    countNotZero = last.kind === OperandKind.IMMEDIATE && (i.immediate & mask) !== 0;
  }
  return makeShape({
    mnemonic: row.mnemonic,
    long,
    flat,
    operandSize: operandSize as Shape["operandSize"],
    addressSize: needs.addressSize || (needs.memoryAddressSize && memory) ? (i.addressSize as 2 | 4 | 8) : 0,
    condition: needs.condition ? i.condition : 0,
    repeat: needs.repeat ? i.rep : 0,
    operands,
    countNotZero,
    vex: i.vex as 0 | 16 | 32,
    aligned: row.align && memory,
    immediateValue: needs.immediateValue ? i.immediate & 0xff : -1,
  });
}

/** Size of operand `index` as a value. */
export const sizeOfOperand = (shape: Shape, index: number): Size => shape.operands[index].size as Size;
