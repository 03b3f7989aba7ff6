import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { CODE, DATA, EAGER, type LongMode, type LongModeOptions, longMode, SMALL, SMALL_TABLE } from "../long-mode";

const RAX = 0;
const RCX = 1;
const RDI = 7;

const CR0 = { EM: 1n << 2n, TS: 1n << 3n } as const;
const CR4 = { OSFXSR: 1n << 9n, OSXMMEXCPT: 1n << 10n, OSXSAVE: 1n << 18n } as const;

const tiers: readonly [string, LongModeOptions][] = [
  ["tier 0", {}],
  ["tier 1", { tier: 1, tuning: EAGER }],
];

const IDT = 0x6000;
/** Behind vector n: HLT at HANDLERS + 16 n. */
const HANDLERS = 0x110000;

interface Setting {
  readonly cr0?: bigint;
  readonly without?: bigint;
  readonly xcr0?: bigint;
  readonly options?: LongModeOptions;
}

/** A machine with vector instructions turned on, RDI at DATA, and a HLT behind every exception. */
function vectorMachine({ cr0 = 0n, without = 0n, xcr0 = 7n, options = {} }: Setting = {}): LongMode {
  const m = longMode(options);
  const { state } = m.cpu;
  state.setU64(Off.CR0, 0x8001_0031n | cr0);
  state.setU64(Off.CR4, (0x20n | CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE) & ~without);
  state.setU64(Off.XCR0, xcr0);
  state.setU32(Off.MXCSR, 0x1f80);
  // A GDT for the handlers' code segment.
  m.setU64(0x7008, 0x00af9b000000ffffn);
  m.setU64(0x7010, 0x00cf93000000ffffn);
  state.setU64(Off.GDTR_BASE, 0x7000n);
  state.setU32(Off.GDTR_LIMIT, 0x1f);
  state.setU64(Off.IDTR_BASE, BigInt(IDT));
  state.setU32(Off.IDTR_LIMIT, 0x1ff);
  for (let vector = 0; vector < 32; vector++) {
    const at = BigInt(HANDLERS + vector * 16);
    m.setU64(IDT + vector * 16, (at & 0xffffn) | (8n << 16n) | (0x8en << 40n) | ((at >> 16n) << 48n));
    m.setU64(IDT + vector * 16 + 8, 0n);
    m.memory.write(HANDLERS + vector * 16, Uint8Array.of(0xf4));
  }
  m.cpu.contextChanged();
  m.setGpr(RDI, BigInt(DATA));
  return m;
}

/** Runs code; the vector of the exception that ended it, or -1 when it came to its end. */
function run(m: LongMode, code: readonly number[]): number {
  m.start(code);
  expect(m.run()).toBe(true);
  const at = Number(m.cpu.state.rip) - 1 - HANDLERS;
  return at >= 0 && at < 512 ? at / 16 : -1;
}

/** Quadwords of a vector register, lowest first. */
const quads = (m: LongMode, register: number): bigint[] =>
  [0, 8, 16, 24].map((i) => m.cpu.state.u64(Off.VECTOR + register * 64 + i));

function setQuads(m: LongMode, register: number, ...values: readonly bigint[]): void {
  for (const [i, v] of values.entries()) m.cpu.state.setU64(Off.VECTOR + register * 64 + i * 8, v);
}

const bitsOf = (value: number): bigint => new BigUint64Array(Float64Array.of(value).buffer)[0];

const PXOR_MMX = [0x0f, 0xef, 0xc1]; // pxor mm0, mm1
const PXOR_SSE = [0x66, 0x0f, 0xef, 0xc1]; // pxor xmm0, xmm1
const PXOR_VEX = [0xc5, 0xf1, 0xef, 0xc1]; // vpxor xmm0, xmm1, xmm1
const UD = 6;
const NM = 7;
const GP = 13;
const PF = 14;
const MF = 16;
const XM = 19;

describe("vector instructions ask the control registers (SDM 1 13.5, 14.1.3; SDM 3A table 2-2, 13.1)", () => {
  // biome-ignore format: a table
  const cases: readonly [string, Setting, mmx: number, sse: number, vex: number][] = [
    ["everything on", {}, -1, -1, -1],
    ["CR0.EM", { cr0: CR0.EM }, UD, UD, -1],
    ["CR0.TS", { cr0: CR0.TS }, NM, NM, NM],
    ["CR0.EM and TS", { cr0: CR0.EM | CR0.TS }, UD, UD, NM],
    ["no CR4.OSFXSR", { without: CR4.OSFXSR }, -1, UD, -1],
    ["no CR4.OSXSAVE", { without: CR4.OSXSAVE }, -1, -1, UD],
    ["no CR4.OSXSAVE, CR0.TS", { without: CR4.OSXSAVE, cr0: CR0.TS }, NM, NM, UD],
    ["XCR0 without AVX", { xcr0: 3n }, -1, -1, UD],
    ["XCR0 without SSE", { xcr0: 5n }, -1, -1, UD],
  ];
  test.each(cases)("%s", (_name, setting, mmx, sse, vex) => {
    expect(run(vectorMachine(setting), PXOR_MMX)).toBe(mmx);
    expect(run(vectorMachine(setting), PXOR_SSE)).toBe(sse);
    expect(run(vectorMachine(setting), PXOR_VEX)).toBe(vex);
  });

  test("an x87 exception that waits is taken by MMX instructions, not by SSE ones (SDM 1 9.5.2)", () => {
    for (const [code, vector] of [
      [PXOR_MMX, MF],
      [PXOR_SSE, -1],
    ] as const) {
      const m = vectorMachine();
      m.cpu.state.view.setUint16(m.cpu.state.base + Off.FSW, 0x8081, true);
      m.cpu.state.view.setUint16(m.cpu.state.base + Off.FCW, 0x37e, true);
      expect(run(m, code)).toBe(vector);
    }
  });

  test("CLTS opens what CR0.TS kept shut", () => {
    expect(run(vectorMachine({ cr0: CR0.TS }), [0x0f, 0x06, ...PXOR_SSE])).toBe(-1);
  });
});

describe("memory operands", () => {
  const movaps = [0x0f, 0x28, 0x07];
  const addps = [0x0f, 0x58, 0x07];
  const movups = [0x0f, 0x10, 0x07];
  const vaddps = [0xc5, 0xfc, 0x58, 0x07]; // vaddps ymm0, ymm0, [rdi]
  const vmovaps = [0xc5, 0xfc, 0x28, 0x07]; // vmovaps ymm0, [rdi]

  test.each([
    ["MOVAPS", movaps, 16, GP],
    ["ADDPS", addps, 16, GP],
    ["MOVUPS", movups, 16, -1],
    ["VADDPS", vaddps, 16, -1],
    ["VMOVAPS of 32 bytes", vmovaps, 32, GP],
  ] as const)("%s at an address that is not aligned (SDM 1 10.4.1.1, 14.9)", (_name, code, alignment, vector) => {
    for (const offset of [0, 1, alignment / 2]) {
      const m = vectorMachine();
      m.setGpr(RDI, BigInt(DATA + offset));
      expect(run(m, code)).toBe(offset === 0 ? -1 : vector);
    }
  });

  test("stores and loads of 32 bytes across a page, and nothing happens where the second page is missing", () => {
    // vmovdqu [rdi], ymm1; vmovdqu ymm2, [rdi]
    const code = [0xc5, 0xfe, 0x7f, 0x0f, 0xc5, 0xfe, 0x6f, 0x17];
    const at = SMALL + 4096 - 12;
    const values = [0x1111n, 0x2222n << 40n, 0x3333n, 0x4444n << 44n];
    const m = vectorMachine();
    m.setGpr(RDI, BigInt(at));
    setQuads(m, 1, ...values);
    expect(run(m, code)).toBe(-1);
    expect(quads(m, 2)).toEqual(values);

    const torn = vectorMachine();
    torn.setU64(SMALL_TABLE + 8, 0n);
    torn.setGpr(RDI, BigInt(at));
    setQuads(torn, 1, ...values);
    expect(run(torn, code)).toBe(PF);
    expect(torn.cpu.state.u64(Off.CR2)).toBe(BigInt(SMALL + 4096));
    expect(torn.u64(at)).toBe(0n);
  });

  test("VMASKMOVPS does not touch what its mask leaves out (SDM 2C VMASKMOV)", () => {
    // vmaskmovps ymm2, ymm1, [rdi]: the upper half lies on a page that is missing
    const code = [0xc4, 0xe2, 0x75, 0x2c, 0x17];
    const m = vectorMachine();
    m.setU64(SMALL_TABLE + 8, 0n);
    m.setGpr(RDI, BigInt(SMALL + 4096 - 16));
    m.setU64(SMALL + 4096 - 16, 0x2222_2222_1111_1111n);
    m.setU64(SMALL + 4096 - 8, 0x4444_4444_3333_3333n);
    setQuads(m, 1, 1n << 63n, 1n << 31n, 0n, 0n);
    setQuads(m, 2, -1n, -1n, -1n, -1n);
    expect(run(m, code)).toBe(-1);
    expect(quads(m, 2)).toEqual([0x2222_2222_0000_0000n, 0x3333_3333n, 0n, 0n]);
    setQuads(m, 1, 0n, 0n, 1n << 31n, 0n);
    expect(run(m, code)).toBe(PF);
  });

  test("a gather that faults keeps the elements it has, and their mask is clear (SDM 2C VPGATHERDD)", () => {
    // vpgatherdd xmm1, [rdi + xmm3*1], xmm2
    const code = [0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x1f];
    const m = vectorMachine();
    m.setU64(SMALL_TABLE + 8, 0n);
    m.setGpr(RDI, BigInt(SMALL));
    m.setU64(SMALL, 0xbbbb_bbbb_aaaa_aaaan);
    setQuads(m, 3, 4n << 32n, 0x1000n | (8n << 32n));
    setQuads(m, 2, 0xffff_ffff_ffff_ffffn, 0xffff_ffff_ffff_ffffn);
    setQuads(m, 1, 0n, 0n);
    expect(run(m, code)).toBe(PF);
    expect(m.cpu.state.u64(Off.CR2)).toBe(BigInt(SMALL + 4096));
    expect(quads(m, 1).slice(0, 2)).toEqual([0xbbbb_bbbb_aaaa_aaaan, 0n]);
    expect(quads(m, 2).slice(0, 2)).toEqual([0n, 0xffff_ffff_ffff_ffffn]);
    m.setU64(SMALL_TABLE + 8, BigInt(SMALL + 4096) | 3n);
    m.setU64(SMALL + 4096, 0xccccn);
    expect(run(m, code)).toBe(-1);
    expect(quads(m, 1)).toEqual([0xbbbb_bbbb_aaaa_aaaan, 0xccccn, 0n, 0n]);
    expect(quads(m, 2)).toEqual([0n, 0n, 0n, 0n]);
  });
});

describe("the upper half of YMM registers (SDM 1 14.1.2, 14.3)", () => {
  test("legacy instructions keep it, VEX ones of 128 bits clear it", () => {
    const m = vectorMachine();
    setQuads(m, 0, 1n, 2n, 3n, 4n);
    setQuads(m, 1, 5n, 6n, 7n, 8n);
    expect(run(m, [0x66, 0x0f, 0xd4, 0xc1])).toBe(-1); // paddq xmm0, xmm1
    expect(quads(m, 0)).toEqual([6n, 8n, 3n, 4n]);
    expect(run(m, [0xc5, 0xf9, 0xd4, 0xc1])).toBe(-1); // vpaddq xmm0, xmm0, xmm1
    expect(quads(m, 0)).toEqual([11n, 14n, 0n, 0n]);
    expect(run(m, [0xc5, 0xf5, 0xd4, 0xc9])).toBe(-1); // vpaddq ymm1, ymm1, ymm1
    expect(quads(m, 1)).toEqual([10n, 12n, 14n, 16n]);
    expect(run(m, [0xc5, 0xf8, 0x77])).toBe(-1); // vzeroupper
    expect(quads(m, 1)).toEqual([10n, 12n, 0n, 0n]);
  });
});

describe("floating-point exceptions (SDM 1 11.5; SDM 3A 6.15 interrupt 19)", () => {
  const divsd = [0xf2, 0x0f, 0x5e, 0xc1];
  const divide = (setting: Setting, mxcsr: number): { m: LongMode; vector: number } => {
    const m = vectorMachine(setting);
    m.cpu.state.setU32(Off.MXCSR, mxcsr);
    setQuads(m, 0, bitsOf(1), 9n);
    setQuads(m, 1, bitsOf(0), 0n);
    return { m, vector: run(m, divsd) };
  };

  test("masked: the flag is set and the result is the default one", () => {
    const { m, vector } = divide({}, 0x1f80);
    expect(vector).toBe(-1);
    expect(m.cpu.state.u32(Off.MXCSR)).toBe(0x1f84);
    expect(quads(m, 0).slice(0, 2)).toEqual([bitsOf(Number.POSITIVE_INFINITY), 9n]);
  });

  test("unmasked: #XM, or #UD without CR4.OSXMMEXCPT; the flag is set and the destination kept", () => {
    for (const [setting, expected] of [
      [{}, XM],
      [{ without: CR4.OSXMMEXCPT }, UD],
    ] as const) {
      const { m, vector } = divide(setting, 0x1d80);
      expect(vector).toBe(expected);
      expect(m.cpu.state.u32(Off.MXCSR)).toBe(0x1d84);
      expect(quads(m, 0).slice(0, 2)).toEqual([bitsOf(1), 9n]);
    }
  });

  test.each(tiers)("the quick way leaves the same bits and flags as the slow one, %s", (_name, options) => {
    // 1: addsd xmm0, xmm1; mulsd xmm0, xmm2; subsd xmm0, xmm3; divsd xmm0, xmm4; sqrtsd xmm5, xmm0; dec ecx; jnz 1b
    const code = [0xf2, 0x0f, 0x58, 0xc1, 0xf2, 0x0f, 0x59, 0xc2, 0xf2, 0x0f, 0x5c, 0xc3, 0xf2, 0x0f, 0x5e, 0xc4];
    code.push(0xf2, 0x0f, 0x51, 0xe8, 0xff, 0xc9, 0x75, 0xe6);
    const results = [0x1f80, 0x1fa0].map((mxcsr) => {
      const m = vectorMachine({ options });
      for (const [i, v] of [4.5, 0.1, 1.25, 0.3, 1.2].entries()) setQuads(m, i, bitsOf(v), 0n);
      m.setGpr(RCX, 1000n);
      m.cpu.state.setU32(Off.MXCSR, mxcsr);
      expect(run(m, code)).toBe(-1);
      return [quads(m, 0)[0], quads(m, 5)[0], m.cpu.state.u32(Off.MXCSR), m.cpu.retired] as const;
    });
    expect(results[0]).toEqual(results[1]);
    let x = 4.5;
    for (let i = 0; i < 1000; i++) x = ((x + 0.1) * 1.25 - 0.3) / 1.2;
    expect(results[0][0]).toBe(bitsOf(x));
    expect(results[0][1]).toBe(bitsOf(Math.sqrt(x)));
    expect(results[0][2]).toBe(0x1fa0);
  });

  test.each(tiers)("numbers that turn denormal inside a loop set DE and UE there, %s", (_name, options) => {
    // 1: mulsd xmm0, xmm1; dec ecx; jnz 1b
    const m = vectorMachine({ options });
    setQuads(m, 0, bitsOf(1), 0n);
    setQuads(m, 1, bitsOf(0.1), 0n);
    m.setGpr(RCX, 320n);
    expect(run(m, [0xf2, 0x0f, 0x59, 0xc1, 0xff, 0xc9, 0x75, 0xf8])).toBe(-1);
    let x = 1;
    for (let i = 0; i < 320; i++) x *= 0.1;
    expect(quads(m, 0)[0]).toBe(bitsOf(x));
    expect(m.cpu.state.u32(Off.MXCSR)).toBe(0x1fb2);
  });
});

describe("compiled regions keep vector registers like tier 0", () => {
  test("a loop over memory with both halves of YMM registers", () => {
    // 1: vmovdqu ymm0, [rdi + rcx*8]; vpaddd ymm1, ymm1, ymm0; vpshufb ymm2, ymm1, ymm3; paddb xmm4, xmm2;
    //    movdqu [rdi + rcx*8 + 4096], xmm4; dec ecx; jnz 1b
    const code = [0xc5, 0xfe, 0x6f, 0x04, 0xcf, 0xc5, 0xf5, 0xfe, 0xc8, 0xc4, 0xe2, 0x75, 0x00, 0xd3];
    code.push(0x66, 0x0f, 0xfc, 0xe2, 0xf3, 0x0f, 0x7f, 0xa4, 0xcf, 0x00, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xdf);
    const ends = tiers.map(([, options]) => {
      const m = vectorMachine({ options });
      for (let i = 0; i < 600; i++) m.setU64(DATA + i * 8, BigInt.asUintN(64, BigInt(i * 7919) * 0x9e3779b97f4a7c15n));
      setQuads(m, 3, 0x0f0e_0d0c_8b0a_0908n, 0x0706_0504_0302_0100n, 0x8001_0203_0405_0607n, 0x1n);
      m.setGpr(RCX, 500n);
      expect(run(m, code)).toBe(-1);
      if (options.tier === 1) expect(m.engine.compiledRegions).toBeGreaterThan(0);
      const memory = Buffer.from(m.memory.read(DATA, 0x4000)).toString("hex");
      return { registers: [0, 1, 2, 3, 4].map((r) => quads(m, r)), memory, retired: m.cpu.retired };
    });
    expect(ends[1]).toEqual(ends[0]);
  });

  test("MMX registers are those of the x87: all valid, top of stack 0, exponents of ones (SDM 1 9.5.1)", () => {
    const m = vectorMachine();
    const { state } = m.cpu;
    state.view.setUint16(state.base + Off.FSW, 0x3800, true);
    m.setGpr(RAX, 0x1234n);
    expect(run(m, [0x48, 0x0f, 0x6e, 0xd0])).toBe(-1); // movq mm2, rax
    expect(state.view.getUint16(state.base + Off.FSW, true)).toBe(0);
    expect(state.view.getUint8(state.base + Off.FTW)).toBe(0xff);
    expect(state.u64(Off.X87 + 2 * 16)).toBe(0x1234n);
    expect(state.view.getUint16(state.base + Off.X87 + 2 * 16 + 8, true)).toBe(0xffff);
    expect(Number(state.rip)).toBe(CODE + 5);
  });
});
