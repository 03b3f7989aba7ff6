import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { CODE, DATA, type Mode, program } from "./program";

const CR0_EM = 1n << 2n;
const CR0_TS = 1n << 3n;
const OSFXSR = 1n << 9n;
const OSXMMEXCPT = 1n << 10n;
const OSXSAVE = 1n << 18n;
const ALL = OSFXSR | OSXMMEXCPT | OSXSAVE;

const UD = 6;
const NM = 7;
const GP = 13;
const PF = 14;
const AC = 17;
const XM = 19;

interface Setting {
  readonly cr0?: bigint;
  readonly cr4?: bigint;
  readonly xcr0?: bigint;
  readonly mode?: Mode;
  readonly model?: string;
  readonly mxcsr?: number;
  readonly cpl?: 0 | 3;
  readonly flags?: number;
}

/** Runs code with vector state enabled as asked for; all of it by default. */
function run(code: readonly number[], setting: Setting = {}) {
  const p = program(setting.mode ?? "long", setting.model ?? "skylake");
  const { state } = p.cpu;
  state.setU64(Off.CR0, (state.u64(Off.CR0) & ~(CR0_EM | CR0_TS)) | (setting.cr0 ?? 0n));
  state.setU64(Off.CR4, state.u64(Off.CR4) | (setting.cr4 ?? ALL));
  state.setU64(Off.XCR0, setting.xcr0 ?? 7n);
  state.setU32(Off.MXCSR, setting.mxcsr ?? 0x1f80);
  state.setGpr(3, BigInt(DATA));
  const end = p.exec(code, { cpl: setting.cpl ?? 0, flags: setting.flags ?? 0 });
  return { p, end, vector: end.vector };
}

const vectorOf = (code: readonly number[], setting?: Setting) => run(code, setting).vector;

/** [rbx + n] with a register: ModRM and displacement. */
const at = (reg: number, n: number): number[] => [0x43 | (reg << 3), n];

const ADDPS = [0x0f, 0x58, 0xc1];
const VADDPS = [0xc5, 0xf0, 0x58, 0xc1];
const VADDPS_256 = [0xc5, 0xf4, 0x58, 0xc1];
const ANDN = [0xc4, 0xe2, 0x70, 0xf2, 0xc1];
const VZEROUPPER = [0xc5, 0xf8, 0x77];
const PADDB_MMX = [0x0f, 0xfc, 0xc1];
const CRC32 = [0xf2, 0x0f, 0x38, 0xf0, 0xc1];

describe("what enables vector instructions (SDM 2A 2.4; 1 13.5.2; 3A 13.1)", () => {
  test.each<[string, readonly number[], Setting, number | "hlt"]>([
    ["VEX instructions run with OSXSAVE and XCR0.AVX", VADDPS, {}, "hlt"],
    ["they are #UD without CR4.OSXSAVE", VADDPS, { cr4: OSFXSR }, UD],
    ["they are #UD without XCR0.AVX", VADDPS, { xcr0: 3n }, UD],
    ["they do not need CR4.OSFXSR", VADDPS_256, { cr4: OSXSAVE }, "hlt"],
    ["CR0.EM means nothing to them", VADDPS, { cr0: CR0_EM }, "hlt"],
    ["they are #NM with CR0.TS", VADDPS, { cr0: CR0_TS }, NM],
    ["VZEROUPPER is #NM with CR0.TS too", VZEROUPPER, { cr0: CR0_TS }, NM],
    ["#UD comes before #NM", VADDPS, { cr0: CR0_TS, xcr0: 3n }, UD],
    [
      "VEX instructions on general registers need none of this",
      ANDN,
      { cr0: CR0_TS | CR0_EM, cr4: 0n, xcr0: 1n },
      "hlt",
    ],
    ["CRC32 neither", CRC32, { cr0: CR0_TS | CR0_EM, cr4: 0n, xcr0: 1n }, "hlt"],
    ["SSE needs CR4.OSFXSR", ADDPS, { cr4: OSXSAVE }, UD],
    ["SSE is #UD with CR0.EM", ADDPS, { cr0: CR0_EM }, UD],
    ["MMX needs no CR4 bit", PADDB_MMX, { cr4: 0n }, "hlt"],
    ["MMX is #UD with CR0.EM", PADDB_MMX, { cr0: CR0_EM }, UD],
    ["an AVX instruction is #UD to a model without", VADDPS, { model: "core" }, UD],
    ["an SSE4.2 instruction likewise", CRC32, { model: "core" }, UD],
    ["a BMI instruction likewise", ANDN, { model: "core" }, UD],
  ])("%s", (_rule, code, setting, expected) => {
    expect(vectorOf(code, setting)).toBe(expected);
  });

  test("VEX instructions are #UD in real-address mode, and C4 there is LES (2A 2.3)", () => {
    expect(vectorOf(VADDPS, { mode: "real" })).toBe(UD);
    expect(vectorOf(ANDN, { mode: "real" })).toBe(UD);
    // les ax, [bx]
    expect(vectorOf([0xc4, 0x07], { mode: "real" })).toBe("hlt");
  });
});

describe("encodings of VEX (SDM 2A 2.3)", () => {
  test.each<[string, readonly number[], number | "hlt"]>([
    ["66 before VEX is #UD", [0x66, ...VADDPS], UD],
    ["F2 before VEX is #UD", [0xf2, ...VADDPS], UD],
    ["F3 before VEX is #UD", [0xf3, ...VADDPS], UD],
    ["LOCK before VEX is #UD", [0xf0, ...VADDPS], UD],
    ["REX before VEX is #UD", [0x40, ...VADDPS], UD],
    ["a segment override is allowed", [0x2e, ...VADDPS], "hlt"],
    ["an address-size prefix is allowed", [0x67, ...VADDPS], "hlt"],
    ["vvvv other than 1111b is #UD where it is no operand", [0xc5, 0xf0, 0x28, 0xc1], UD],
    ["VMOVAPS with vvvv 1111b runs", [0xc5, 0xf8, 0x28, 0xc1], "hlt"],
    ["map 0 is #UD", [0xc4, 0xe0, 0x70, 0x58, 0xc1], UD],
    ["map 4 is #UD", [0xc4, 0xe4, 0x70, 0x58, 0xc1], UD],
    ["VEX.L set is #UD to ANDN", [0xc4, 0xe2, 0x74, 0xf2, 0xc1], UD],
    ["VEX.L set is #UD to VMOVD", [0xc5, 0xfd, 0x6e, 0xc1], UD],
    ["VEX.L is ignored by VADDSS", [0xc5, 0xf6, 0x58, 0xc1], "hlt"],
    ["VPERMQ needs W1", [0xc4, 0xe3, 0x7d, 0x00, 0xc1, 0], UD],
    ["VPERMQ with W1 runs", [0xc4, 0xe3, 0xfd, 0x00, 0xc1, 0], "hlt"],
    ["VPERMQ with 128 bits is #UD", [0xc4, 0xe3, 0xf9, 0x00, 0xc1, 0], UD],
    ["VBROADCASTF128 from a register is #UD", [0xc4, 0xe2, 0x7d, 0x1a, 0xc1], UD],
    ["a gather whose mask is its destination is #UD", [0xc4, 0xe2, 0x79, 0x92, 0x04, 0x0b], UD],
    ["a gather without SIB is #UD", [0xc4, 0xe2, 0x61, 0x92, 0x03], UD],
  ])("%s", (_rule, code, expected) => {
    expect(vectorOf(code)).toBe(expected);
  });
});

describe("alignment (SDM 2A 2.4, exceptions type 1, 2 and 4)", () => {
  test.each<[string, readonly number[], number | "hlt"]>([
    ["MOVAPS from a misaligned address is #GP(0)", [0x0f, 0x28, ...at(0, 8)], GP],
    ["MOVAPS to one likewise", [0x0f, 0x29, ...at(0, 8)], GP],
    ["MOVUPS may", [0x0f, 0x10, ...at(0, 9)], "hlt"],
    ["ADDPS from a misaligned address is #GP(0)", [0x0f, 0x58, ...at(0, 8)], GP],
    ["ADDSS reads 4 bytes and may", [0xf3, 0x0f, 0x58, ...at(0, 9)], "hlt"],
    ["PADDB from a misaligned address is #GP(0)", [0x66, 0x0f, 0xfc, ...at(0, 1)], GP],
    ["PADDB on MMX registers may", [0x0f, 0xfc, ...at(0, 1)], "hlt"],
    ["LDDQU may", [0xf2, 0x0f, 0xf0, ...at(0, 1)], "hlt"],
    ["MOVNTDQ to a misaligned address is #GP(0)", [0x66, 0x0f, 0xe7, ...at(0, 8)], GP],
    ["PCMPISTRI may", [0x66, 0x0f, 0x3a, 0x63, ...at(0, 1), 0], "hlt"],
    ["PMOVZXBW reads 8 bytes and may", [0x66, 0x0f, 0x38, 0x30, ...at(0, 1)], "hlt"],
    ["VADDPS may", [0xc5, 0xf0, 0x58, ...at(0, 8)], "hlt"],
    ["VMOVAPS of 128 bits needs 16 bytes", [0xc5, 0xf8, 0x28, ...at(0, 8)], GP],
    ["and runs with them", [0xc5, 0xf8, 0x28, ...at(0, 16)], "hlt"],
    ["VMOVAPS of 256 bits needs 32", [0xc5, 0xfc, 0x28, ...at(0, 16)], GP],
    ["and runs with them", [0xc5, 0xfc, 0x28, ...at(0, 32)], "hlt"],
    ["VMOVNTDQ of 256 bits likewise", [0xc5, 0xfd, 0xe7, ...at(0, 16)], GP],
    ["VMOVDQU may", [0xc5, 0xfe, 0x6f, ...at(0, 17)], "hlt"],
    ["CMPXCHG16B needs 16 bytes", [0x48, 0x0f, 0xc7, ...at(1, 8)], GP],
  ])("%s", (_rule, code, expected) => {
    expect(vectorOf(code)).toBe(expected);
  });

  test("a misaligned operand raises its #GP even where the page is absent, a MOVUPS #PF (3A 6.9)", () => {
    const p = program("long", "skylake");
    const { state } = p.cpu;
    state.setU64(Off.CR4, state.u64(Off.CR4) | ALL);
    p.setPte(DATA + 0x1000, 0n);
    state.setGpr(3, BigInt(DATA + 0x1000));
    expect(p.exec([0x0f, 0x28, ...at(0, 8)]).vector).toBe(GP);
    state.setGpr(3, BigInt(DATA + 0x1000));
    const end = p.exec([0x0f, 0x10, ...at(0, 8)]);
    expect(end.vector).toBe(PF);
    expect(state.u64(Off.CR2)).toBe(BigInt(DATA + 0x1008));
  });

  test("RFLAGS.AC and CR0.AM check accesses of up to 8 bytes at CPL 3, not vectors (2A table 2-21; 3A 6.15)", () => {
    const setting: Setting = { cpl: 3, flags: 1 << 18, cr0: 1n << 18n };
    expect(vectorOf([0xf3, 0x0f, 0x10, ...at(0, 1)], setting)).toBe(AC);
    expect(vectorOf([0x66, 0x0f, 0xd6, ...at(0, 4)], setting)).toBe(AC);
    // At its end the program raises #GP: HLT is for CPL 0.
    expect(vectorOf([0x0f, 0x10, ...at(0, 1)], setting)).toBe(GP);
    expect(vectorOf([0xf3, 0x0f, 0x10, ...at(0, 4)], setting)).toBe(GP);
  });
});

describe("SIMD floating-point exceptions (SDM 1 11.5; 3A 6.15)", () => {
  /** Divides XMM0, which is 1.0, by XMM1, which is 0. */
  const divide = (mxcsr: number, cr4: bigint) => {
    const p = program("long", "skylake");
    const { state } = p.cpu;
    state.setU64(Off.CR4, state.u64(Off.CR4) | cr4);
    state.setU32(Off.MXCSR, mxcsr);
    state.setU64(Off.VECTOR, 0x3f800000n);
    const end = p.exec([0xf3, 0x0f, 0x5e, 0xc1]);
    return { state, end };
  };

  test("masked, a division by zero sets ZE and gives infinity", () => {
    const { state, end } = divide(0x1f80, ALL);
    expect(end.vector).toBe("hlt");
    expect(state.u32(Off.MXCSR)).toBe(0x1f84);
    expect(state.u64(Off.VECTOR)).toBe(0x7f800000n);
  });

  test("unmasked, it is #XM with ZE set and the destination unchanged", () => {
    const { state, end } = divide(0x1f80 & ~0x200, ALL);
    expect(end.vector).toBe(XM);
    expect(end.stack[0]).toBe(BigInt(CODE));
    expect(state.u32(Off.MXCSR)).toBe(0x1d84);
    expect(state.u64(Off.VECTOR)).toBe(0x3f800000n);
  });

  test("without CR4.OSXMMEXCPT it is #UD instead", () => {
    expect(divide(0x1f80 & ~0x200, OSFXSR).end.vector).toBe(UD);
  });

  test("a flag that is set already raises nothing", () => {
    const { end } = divide(0x1f80 | 0x21, ALL);
    expect(end.vector).toBe("hlt");
  });
});

describe("prefixes that mean another instruction to older processors", () => {
  // mov ecx, 0x10; rep bsf eax, ecx or tzcnt eax, ecx; of 0 the former leaves eax
  const code = (count: number): number[] => [0xb8, 0x77, 0, 0, 0, 0xb9, count, 0, 0, 0, 0xf3, 0x0f, 0xbc, 0xc1];

  test("TZCNT of 0 is the width with CF set, to a processor without it BSF leaves its destination (2B TZCNT)", () => {
    expect(run(code(0)).p.gpr(0)).toBe(32n);
    expect(run(code(0), { model: "core" }).p.gpr(0)).toBe(0x77n);
    expect(run(code(0x10), { model: "core" }).p.gpr(0)).toBe(4n);
  });

  test("LZCNT is BSR to a processor without it (2A LZCNT)", () => {
    const lzcnt = [0xb9, 0x10, 0, 0, 0, 0xf3, 0x0f, 0xbd, 0xc1];
    expect(run(lzcnt).p.gpr(0)).toBe(27n);
    expect(run(lzcnt, { model: "core" }).p.gpr(0)).toBe(4n);
  });
});
