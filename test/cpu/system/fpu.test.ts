import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { DATA, type Mode, program } from "./program";

const CR0_MP = 1n << 1n;
const CR0_EM = 1n << 2n;
const CR0_TS = 1n << 3n;
const CR0_NE = 1n << 5n;
const CR4_OSFXSR = 1n << 9n;

const UD = 6;
const NM = 7;
const GP = 13;
const MF = 16;

/** Runs code with bits of CR0 and CR4 set or clear. */
function run(code: readonly number[], cr0: bigint, cr4: bigint = CR4_OSFXSR, mode: Mode = "long") {
  const p = program(mode);
  const { state } = p.cpu;
  state.setU64(Off.CR0, (state.u64(Off.CR0) & ~(CR0_MP | CR0_EM | CR0_TS)) | cr0);
  state.setU64(Off.CR4, (state.u64(Off.CR4) & ~CR4_OSFXSR) | cr4);
  p.cpu.contextChanged();
  return { p, vector: p.exec(code).vector };
}

const at = (address: number): number[] => [address & 0xff, (address >> 8) & 0xff, (address >> 16) & 0xff, 0];
/** ModRM and SIB of [disp32] in 64-bit mode, with a register or opcode extension. */
const memory = (reg: number, address: number): number[] => [0x04 | (reg << 3), 0x25, ...at(address)];

const FNINIT = [0xdb, 0xe3];
const FWAIT = [0x9b];
const FLD1 = [0xd9, 0xe8];
const EMMS = [0x0f, 0x77];
const PXOR_MM = [0x0f, 0xef, 0xc0];
const XORPS = [0x0f, 0x57, 0xc0];
const PXOR_XMM = [0x66, 0x0f, 0xef, 0xc0];
const MOVAPS_STORE = [0x0f, 0x29, ...memory(0, DATA)];
const LDMXCSR = [0x0f, 0xae, ...memory(2, DATA)];
const STMXCSR = [0x0f, 0xae, ...memory(3, DATA)];
const FXSAVE = [0x0f, 0xae, ...memory(0, DATA)];
const FXRSTOR = [0x0f, 0xae, ...memory(1, DATA)];

describe("CR0.TS, CR0.EM, CR0.MP and CR4.OSFXSR (3A 2.5, tables 2-2 and 9-3)", () => {
  test.each([
    ["x87 instructions raise #NM with TS", FNINIT, CR0_TS, NM],
    ["x87 instructions raise #NM with EM", FLD1, CR0_EM, NM],
    ["FWAIT runs with TS and without MP", FWAIT, CR0_TS, "hlt"],
    ["FWAIT raises #NM with TS and MP", FWAIT, CR0_TS | CR0_MP, NM],
    ["FWAIT runs with EM", FWAIT, CR0_EM | CR0_MP, "hlt"],
    ["MMX instructions raise #UD with EM", PXOR_MM, CR0_EM, UD],
    ["MMX instructions raise #NM with TS", PXOR_MM, CR0_TS, NM],
    ["EMMS raises #NM with TS", EMMS, CR0_TS, NM],
    ["EMMS raises #UD with EM", EMMS, CR0_EM, UD],
    ["SSE instructions raise #NM with TS", XORPS, CR0_TS, NM],
    ["SSE2 instructions raise #NM with TS", PXOR_XMM, CR0_TS, NM],
    ["SSE stores raise #NM with TS before anything else", MOVAPS_STORE, CR0_TS, NM],
    ["SSE instructions raise #UD with EM, also with TS", XORPS, CR0_EM | CR0_TS, UD],
    ["LDMXCSR raises #NM with TS", LDMXCSR, CR0_TS, NM],
    ["FXSAVE raises #NM with TS", FXSAVE, CR0_TS, NM],
    ["FXSAVE raises #NM with EM", FXSAVE, CR0_EM, NM],
    ["FXRSTOR raises #NM with TS", FXRSTOR, CR0_TS, NM],
  ])("%s", (_rule, code, cr0, expected) => {
    expect(run(code, cr0).vector).toBe(expected);
  });

  test.each([
    ["SSE instructions", XORPS],
    ["LDMXCSR", LDMXCSR],
    ["STMXCSR", STMXCSR],
  ])("%s raise #UD without CR4.OSFXSR, also with TS", (_name, code) => {
    expect(run(code, CR0_TS, 0n).vector).toBe(UD);
  });
});

describe("x87 control state (SDM 1 8.1; 2A FINIT, FLDCW, FSTCW, FSTSW, FCLEX)", () => {
  test("FNINIT sets the control word to 37FH and clears status and tags", () => {
    const { p } = run([...FNINIT, 0xd9, ...memory(7, DATA), 0xdf, 0xe0], 0n);
    expect(p.u32(DATA) & 0xffff).toBe(0x37f);
    expect(p.gpr(0) & 0xffffn).toBe(0n);
  });

  test("an unmasked exception that FLDCW uncovers raises #MF at the next waiting instruction, not at FNSTSW", () => {
    const p = program("long");
    const { state } = p.cpu;
    state.setU64(Off.CR0, state.u64(Off.CR0) | CR0_NE);
    state.view.setUint16(state.base + Off.FSW, 1, true);
    p.setU32(DATA, 0x37e);
    // fldcw; fnstsw ax; fwait
    const end = p.exec([0xd9, ...memory(5, DATA), 0xdf, 0xe0, 0x9b]);
    expect(end.vector).toBe(MF);
    expect(p.gpr(0) & 0x8081n).toBe(0x8081n);
  });
});

describe("FXSAVE, FXRSTOR and MXCSR (SDM 1 10.5)", () => {
  test("an image that is not aligned to 16 bytes raises #GP(0)", () => {
    expect(run([0x0f, 0xae, ...memory(0, DATA + 8)], 0n).vector).toBe(GP);
  });

  test("reserved bits of MXCSR raise #GP(0) in LDMXCSR and FXRSTOR", () => {
    for (const code of [LDMXCSR, FXRSTOR]) {
      const p = program("long");
      const { state } = p.cpu;
      state.setU64(Off.CR4, state.u64(Off.CR4) | CR4_OSFXSR);
      p.setU32(DATA, 1 << 16);
      p.setU32(DATA + 24, 1 << 16);
      expect(p.exec(code).vector).toBe(GP);
    }
  });

  test("what FXSAVE wrote FXRSTOR takes back", () => {
    const p = program("long");
    const { state } = p.cpu;
    state.setU64(Off.CR4, state.u64(Off.CR4) | CR4_OSFXSR);
    for (let i = 0; i < 32; i++) state.setU64(Off.VECTOR + (i >> 1) * 64 + (i & 1) * 8, BigInt(i) * 0x0101010101n);
    state.setU64(Off.X87 + 5 * 16, 0x8000_0000_0000_0001n);
    state.view.setUint16(state.base + Off.FSW, 5 << 11, true);
    expect(p.exec(FXSAVE).vector).toBe("hlt");
    // ST(0) is physical register 5; XMM1 follows XMM0 at byte 160.
    expect(p.u64(DATA + 32)).toBe(0x8000_0000_0000_0001n);
    expect(p.u64(DATA + 176)).toBe(2n * 0x0101010101n);
    const saved = p.memory.read(DATA, 512);
    state.u8.fill(0, state.base + Off.FCW, state.base + Off.OPMASK);
    p.memory.write(DATA, saved);
    expect(p.exec(FXRSTOR).vector).toBe("hlt");
    expect(state.u64(Off.VECTOR + 15 * 64 + 8)).toBe(31n * 0x0101010101n);
    expect(state.u64(Off.X87 + 5 * 16)).toBe(0x8000_0000_0000_0001n);
  });
});
