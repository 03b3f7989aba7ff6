/**
 * Which shapes have a handler inside the interpreter's loop: what compilers make of 64-bit programs most of the time.
 * More would make the loop too large for V8's optimising compiler; everything else is one indirect call away.
 */
import { semantics } from "../isa/semantics";
import { Form, makeShape, type OperandShape, type Shape, type ShapeFields } from "../isa/semantics/shape";
import { FIRST_HOT } from "./record";

const r = (size: number): OperandShape => ({ form: Form.REGISTER, size });
const m = (size: number): OperandShape => ({ form: Form.MEMORY, size });
const i = (size: number): OperandShape => ({ form: Form.IMMEDIATE, size });

function shape(mnemonic: string, operands: readonly OperandShape[], more: Partial<ShapeFields> = {}): Shape {
  return makeShape({
    mnemonic,
    long: true,
    flat: true,
    operandSize: 0,
    addressSize: 0,
    condition: 0,
    repeat: 0,
    operands,
    countNotZero: false,
    ...more,
  });
}

/** Immediates as the encodings have them: one byte, or the operand size but at most four. */
const immediates = (size: number): readonly OperandShape[] => (size === 1 ? [i(1)] : [i(1), i(4)]);

function binary(mnemonic: string, sizes: readonly number[], memoryDestination = true): Shape[] {
  return sizes.flatMap((size) => [
    shape(mnemonic, [r(size), r(size)]),
    shape(mnemonic, [r(size), m(size)]),
    ...(memoryDestination ? [shape(mnemonic, [m(size), r(size)])] : []),
    ...immediates(size).flatMap((imm) => [
      shape(mnemonic, [r(size), imm]),
      ...(memoryDestination ? [shape(mnemonic, [m(size), imm])] : []),
    ]),
  ]);
}

function hotShapes(): Shape[] {
  const list: Shape[] = [];
  for (const mnemonic of ["ADD", "SUB", "AND", "OR", "XOR", "CMP"]) list.push(...binary(mnemonic, [4, 8]));
  for (const mnemonic of ["CMP", "AND", "OR"]) list.push(...binary(mnemonic, [1]));
  for (const size of [4, 8]) {
    list.push(shape("ADC", [r(size), r(size)]), shape("SBB", [r(size), r(size)]), shape("ADC", [r(size), i(1)]));
    list.push(shape("SBB", [r(size), i(1)]));
  }
  list.push(
    shape("CMP", [r(2), r(2)]),
    shape("CMP", [m(2), i(1)]),
    shape("CMP", [r(2), i(1)]),
    shape("CMP", [r(2), i(2)]),
  );
  list.push(
    shape("ADD", [r(1), i(1)]),
    shape("ADD", [r(1), r(1)]),
    shape("SUB", [r(1), i(1)]),
    shape("XOR", [r(1), r(1)]),
  );
  for (const size of [1, 4, 8]) {
    list.push(shape("TEST", [r(size), r(size)]), shape("TEST", [r(size), i(Math.min(size, 4))]));
    list.push(shape("TEST", [m(size), i(Math.min(size, 4))]));
  }
  for (const size of [1, 2, 4, 8]) {
    list.push(shape("MOV", [r(size), r(size)]), shape("MOV", [r(size), m(size)]), shape("MOV", [m(size), r(size)]));
    list.push(shape("MOV", [m(size), i(Math.min(size, 4))]));
  }
  list.push(
    shape("MOV", [r(1), i(1)]),
    shape("MOV", [r(4), i(4)]),
    shape("MOV", [r(8), i(8)]),
    shape("MOV", [r(8), i(4)]),
  );
  for (const mnemonic of ["MOVZX", "MOVSX"]) {
    for (const from of [1, 2]) {
      for (const to of [4, 8]) list.push(shape(mnemonic, [r(to), r(from)]), shape(mnemonic, [r(to), m(from)]));
    }
  }
  list.push(shape("MOVSXD", [r(8), r(4)]), shape("MOVSXD", [r(8), m(4)]), shape("CBW", [r(8)]), shape("CBW", [r(4)]));
  list.push(shape("CWD", [r(4), r(4)]), shape("CWD", [r(8), r(8)]));
  for (const size of [4, 8]) {
    list.push(shape("LEA", [r(size), m(0)], { addressSize: 8 }));
    for (const mnemonic of ["SHL", "SHR", "SAR", "ROL", "ROR"]) {
      list.push(shape(mnemonic, [r(size), i(1)], { countNotZero: true }));
      list.push(shape(mnemonic, [r(size), r(1)]));
    }
    for (const mnemonic of ["INC", "DEC"]) list.push(shape(mnemonic, [r(size)]), shape(mnemonic, [m(size)]));
    list.push(shape("NEG", [r(size)]), shape("NOT", [r(size)]));
    list.push(shape("IMUL", [r(size), r(size)]), shape("IMUL", [r(size), m(size)]));
    list.push(shape("IMUL", [r(size), r(size), i(1)]), shape("IMUL", [r(size), r(size), i(4)]));
    list.push(shape("MUL", [r(size)]), shape("DIV", [r(size)]), shape("XCHG", [r(size), r(size)]));
    list.push(shape("BT", [r(size), r(size)]), shape("BT", [r(size), i(1)]));
    list.push(shape("BSWAP", [r(size)]));
  }
  for (let condition = 0; condition < 16; condition++) {
    list.push(shape("JCC", [], { condition }), shape("SETCC", [r(1)], { condition }));
    list.push(shape("CMOVCC", [r(4), r(4)], { condition }), shape("CMOVCC", [r(8), r(8)], { condition }));
  }
  const stack = { operandSize: 8 } as const;
  list.push(shape("PUSH", [r(8)], stack), shape("POP", [r(8)], stack), shape("PUSH", [m(8)], stack));
  list.push(shape("PUSH", [i(1)], stack), shape("PUSH", [i(4)], stack), shape("LEAVE", [], stack));
  list.push(
    shape("CALL", [], stack),
    shape("CALL", [r(8)], stack),
    shape("CALL", [m(8)], stack),
    shape("RET", [], stack),
  );
  const x = { form: Form.VECTOR, size: 16 } as const;
  for (const [mnemonic, aligned] of [
    ["MOVUPS", false],
    ["MOVDQU", false],
    ["MOVAPS", true],
    ["MOVDQA", true],
  ] as const) {
    list.push(shape(mnemonic, [x, m(16)], { aligned }), shape(mnemonic, [m(16), x], { aligned }));
  }
  list.push(shape("PXOR", [x, x]), shape("MOVAPS", [x, x]), shape("MOVDQA", [x, x]));
  list.push(shape("PUSHF", [], stack), shape("CLI", []), shape("STI", []));
  list.push(shape("JMP", []), shape("JMP", [r(8)]), shape("JMP", [m(8)]), shape("NOP", []), shape("ENDBR64", []));
  return list;
}

export const HOT_SHAPES: readonly Shape[] = hotShapes();

/** Whether a key belongs to a hot instruction that may call its SystemHandler. */
const callsSystem = HOT_SHAPES.map((s) => semantics.get(s.mnemonic)?.needs.usualCase === true);
export const mayCallSystem = (key: number): boolean => callsSystem[key - FIRST_HOT] === true;
