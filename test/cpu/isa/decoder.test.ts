import { describe, expect, test } from "vitest";
import { decode } from "../../../engine/cpu/isa/decoder";
import {
  DecodeError,
  type Instruction,
  newInstruction,
  OperandKind,
  RIP_BASE,
} from "../../../engine/cpu/isa/instruction";
import { type Mnemonic, OPCODES, rowOn } from "../../../engine/cpu/isa/opcodes";
import type { Feature } from "../../../engine/cpu/models/model";
import { Seg } from "../../../engine/cpu/state";
import { Random } from "../random";

type Width = 16 | 32 | 64;

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.split(" "), (byte) => Number.parseInt(byte, 16));
}

/** Decodes `hex`, which must be exactly one instruction. */
function decoded(hex: string, width: Width): Instruction & { mnemonic: Mnemonic } {
  const bytes = bytesOf(hex);
  const instruction = newInstruction();
  expect(decode(bytes, 0, bytes.length, width, instruction), hex).toBe(bytes.length);
  return { ...instruction, mnemonic: OPCODES[instruction.opcode].mnemonic };
}

function result(hex: string, width: Width): number {
  const bytes = bytesOf(hex);
  return decode(bytes, 0, bytes.length, width, newInstruction());
}

describe("prefixes", () => {
  test("a REX prefix counts only directly before the opcode (2A 2.2.1)", () => {
    expect(decoded("48 89 c8", 64).operandSize).toBe(8);
    expect(decoded("48 66 89 c8", 64).operandSize).toBe(2);
    expect(decoded("40 48 89 c8", 64).operandSize).toBe(8);
  });
  test("REX.W wins over 66 (2A 2.2.1.2)", () => {
    expect(decoded("66 48 89 c8", 64).operandSize).toBe(8);
  });
  test("of repeated segment overrides the last one counts; in 64-bit mode ES, CS, SS and DS mean nothing (2A 2.1.1)", () => {
    expect(decoded("2e 36 8b 00", 32).segment).toBe(Seg.SS);
    const longMode = decoded("64 3e 8b 00", 64);
    expect(longMode.segment).toBe(Seg.FS);
    expect(decoded("2e 8b 00", 64)).toMatchObject({ segment: Seg.DS, segmentOverride: false });
  });
  test("with any REX prefix byte registers 4..7 are SPL, BPL, SIL, DIL, without one AH, CH, DH, BH (2A table 2-2)", () => {
    expect(decoded("88 e0", 64).operands[1]).toMatchObject({ reg: 0, high: true });
    expect(decoded("40 88 e0", 64).operands[1]).toMatchObject({ reg: 4, high: false });
  });
  test("LOCK raises #UD but on the listed instructions with a memory destination (2A LOCK)", () => {
    expect(decoded("f0 01 08", 32).lock).toBe(true);
    expect(result("f0 01 c8", 32)).toBe(DecodeError.UD);
    expect(result("f0 03 08", 32)).toBe(DecodeError.UD);
    expect(result("f0 8b 08", 32)).toBe(DecodeError.UD);
    expect(result("f0 0f a3 08", 32)).toBe(DecodeError.UD);
    expect(decoded("f0 0f c7 08", 32).mnemonic).toBe("CMPXCHG8B");
    expect(decoded("f0 48 0f c7 08", 64).mnemonic).toBe("CMPXCHG16B");
  });
  test("an instruction of 15 bytes is legal, the 16th byte raises #GP (2A 2.3.11)", () => {
    expect(result("66 ".repeat(14) + "90", 32)).toBe(15);
    expect(result("66 ".repeat(15) + "90", 32)).toBe(DecodeError.TOO_LONG);
    expect(result("66 ".repeat(10) + "81 05 00 00 00 00 00", 32)).toBe(DecodeError.TOO_LONG);
  });
});

describe("operand and address sizes", () => {
  test("near branches in 64-bit mode have 64-bit operands whatever 66 says (2A JMP, Intel behaviour)", () => {
    const jump = decoded("66 e9 00 00 00 80", 64);
    expect(jump).toMatchObject({ operandSize: 8, immediate: -0x80000000, immediateHigh: -1 });
    expect(decoded("66 e9 00 80", 32)).toMatchObject({ operandSize: 2, immediate: -0x8000 });
  });
  test("PUSH and POP have 64-bit operands in 64-bit mode, or 16-bit ones with 66 (2B PUSH)", () => {
    expect(decoded("50", 64).operandSize).toBe(8);
    expect(decoded("66 50", 64).operandSize).toBe(2);
  });
  test("MOV with an offset holds a full address: 2, 4 or 8 bytes (2B MOV)", () => {
    expect(decoded("a1 ff ff", 16)).toMatchObject({ displacement: 0xffff, addressSize: 2 });
    expect(decoded("48 a1 01 00 00 00 02 00 00 80", 64)).toMatchObject({
      displacement: 1,
      displacementHigh: -0x7ffffffe,
    });
    expect(decoded("67 48 a1 01 00 00 00", 64).addressSize).toBe(4);
  });
  test("MOV r64, imm64 is the only 64-bit immediate; others are sign-extended (2A 2.2.1.5)", () => {
    expect(decoded("48 b8 01 00 00 00 02 00 00 00", 64)).toMatchObject({ immediate: 1, immediateHigh: 2 });
    expect(decoded("48 c7 c0 ff ff ff ff", 64)).toMatchObject({ immediate: -1, immediateHigh: -1 });
  });
  test("immediates that are counts, ports, vectors or stack bytes are unsigned", () => {
    expect(decoded("cd 80", 32).immediate).toBe(0x80);
    expect(decoded("c1 e0 ff", 32).immediate).toBe(0xff);
    expect(decoded("c2 fe ff", 32).immediate).toBe(0xfffe);
    expect(decoded("c8 ff ff 81", 32)).toMatchObject({ immediate: 0xffff, immediate2: 0x81 });
  });
});

describe("addressing (2A tables 2-1 to 2-3)", () => {
  test("ModRM 00.101 is RIP-relative in 64-bit mode and absolute elsewhere; through SIB it is absolute everywhere", () => {
    expect(decoded("8b 05 10 00 00 00", 64)).toMatchObject({ base: RIP_BASE, displacement: 0x10 });
    expect(decoded("8b 05 10 00 00 00", 32).base).not.toBe(RIP_BASE);
    expect(decoded("8b 04 25 10 00 00 00", 64).base).not.toBe(RIP_BASE);
  });
  test("BP, EBP, RBP and RSP as base imply SS, R12 and R13 do not", () => {
    expect(decoded("8b 46 00", 16).segment).toBe(Seg.SS);
    expect(decoded("8b 44 24 08", 32).segment).toBe(Seg.SS);
    expect(decoded("41 8b 45 00", 64).segment).toBe(Seg.DS);
  });
  test("index 4 means none, but R12 can be an index", () => {
    expect(decoded("8b 04 60", 64).index).toBe(16);
    expect(decoded("42 8b 04 60", 64)).toMatchObject({ index: 12, scale: 1 });
  });
});

describe("rows", () => {
  test("90 is NOP, XCHG with REX.B, PAUSE with F3 (2B NOP)", () => {
    expect(decoded("90", 64).mnemonic).toBe("NOP");
    expect(decoded("66 90", 64).mnemonic).toBe("NOP");
    expect(decoded("41 90", 64)).toMatchObject({ mnemonic: "XCHG" });
    expect(decoded("f3 90", 64).mnemonic).toBe("PAUSE");
    expect(decoded("91", 64).mnemonic).toBe("XCHG");
  });
  test("there are no segment registers 6 and 7, and MOV to CS raises #UD (2B MOV)", () => {
    expect(result("8e c8", 32)).toBe(DecodeError.UD);
    expect(result("8e f0", 32)).toBe(DecodeError.UD);
    expect(result("8c f8", 32)).toBe(DecodeError.UD);
    expect(decoded("8c c8", 32).operands[1]).toMatchObject({ kind: OperandKind.SEGMENT, reg: Seg.CS });
  });
  test("only CR0, CR2, CR3, CR4 and CR8 exist, and DR8..DR15 do not (2B MOV)", () => {
    expect(result("0f 20 c8", 64)).toBe(DecodeError.UD);
    expect(decoded("44 0f 20 c0", 64).operands[1]).toMatchObject({ kind: OperandKind.CONTROL, reg: 8, size: 8 });
    expect(result("44 0f 21 c0", 64)).toBe(DecodeError.UD);
    expect(decoded("0f 22 18", 32).operands[1]).toMatchObject({ kind: OperandKind.GPR, reg: 0, size: 4 });
  });
  test("a far pointer in memory counts 4, 6 or 10 bytes", () => {
    expect(decoded("ff 2f", 16).operands[0].size).toBe(4);
    expect(decoded("ff 2f", 64).operands[0].size).toBe(6);
    expect(decoded("48 ff 2f", 64).operands[0].size).toBe(10);
  });
  test("string instructions name their source's segment; the destination is ES (2B MOVS)", () => {
    expect(decoded("64 a5", 32)).toMatchObject({ base: 6, segment: Seg.FS });
    expect(decoded("64 ab", 32)).toMatchObject({ base: 7, segment: Seg.ES });
  });
  test("TZCNT and LZCNT are BSF and BSR to processors without them (2B TZCNT)", () => {
    const tzcnt = OPCODES[decoded("f3 0f bc c1", 64).opcode];
    expect(tzcnt.mnemonic).toBe("TZCNT");
    expect(rowOn(new Set<Feature>(["bmi1"]), tzcnt)?.mnemonic).toBe("TZCNT");
    expect(rowOn(new Set<Feature>(), tzcnt)?.mnemonic).toBe("BSF");
    const popcnt = OPCODES[decoded("f3 0f b8 c1", 64).opcode];
    expect(rowOn(new Set<Feature>(), popcnt)).toBeUndefined();
  });
});

test("the decoder reads no byte at or behind `end`, and asks for more instead", () => {
  const random = new Random(0xdec0de);
  const bytes = new Uint8Array(15);
  const instruction = newInstruction();
  const again = newInstruction();
  for (let n = 0; n < 30_000; n++) {
    for (let i = 0; i < bytes.length; i++) bytes[i] = random.below(256);
    if (random.oneIn(2)) bytes[0] = 0x0f;
    const width = random.pick([16, 32, 64] as const);
    const length = decode(bytes, 0, 15, width, instruction);
    if (length <= 0) continue;
    expect(length).toBeLessThanOrEqual(15);
    for (let end = 0; end < length; end++) {
      expect(decode(bytes, 0, end, width, again)).toBe(DecodeError.MORE);
    }
    const tail = bytes.slice(0, length);
    const padded = new Uint8Array(length + 1).fill(0xff);
    padded.set(tail);
    expect(decode(padded, 0, length, width, again)).toBe(length);
    expect(again).toEqual(instruction);
  }
});

test("no two rows with equally many conditions claim the same encoding", () => {
  // Where they do, which one wins would hang on the order of the table.
  const weight = (row: (typeof OPCODES)[number]): number =>
    (row.reg >= 0 ? 2 : 0) +
    (row.rm >= 0 ? 2 : 0) +
    (row.mod !== "any" ? 1 : 0) +
    (row.prefix !== "any" ? 1 : 0) +
    (row.l !== "any" ? 1 : 0) +
    (row.w !== "any" ? 1 : 0);
  const compatible = (a: string, b: string): boolean => a === "any" || b === "any" || a === b;
  const prefixesMeet = (a: string, b: string): boolean => {
    const columns = (p: string): string[] =>
      p === "any" ? ["NP", "66", "F3", "F2"] : p === "NFx" ? ["NP", "66"] : [p];
    return columns(a).some((column) => columns(b).includes(column));
  };
  const clashes: string[] = [];
  for (const a of OPCODES) {
    for (const b of OPCODES) {
      if (a.index >= b.index || a.map !== b.map || a.vex !== b.vex || weight(a) !== weight(b)) continue;
      if (a.opcode + a.span <= b.opcode || b.opcode + b.span <= a.opcode) continue;
      if (a.reg >= 0 && b.reg >= 0 && a.reg !== b.reg) continue;
      if (a.rm >= 0 && b.rm >= 0 && a.rm !== b.rm) continue;
      const meets =
        compatible(a.mod, b.mod) && compatible(a.w, b.w) && compatible(a.mode, b.mode) && compatible(a.l, b.l);
      if (meets && prefixesMeet(a.prefix, b.prefix))
        clashes.push(`${a.mnemonic} ${a.encoding} / ${b.mnemonic} ${b.encoding}`);
    }
  }
  expect(clashes).toEqual([]);
});
