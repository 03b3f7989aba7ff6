import { describe, expect, test } from "vitest";
import { Gpr, Off } from "../../../engine/cpu/state";
import { DATA, type Program, program } from "./program";

const CR4_OSFXSR = 1n << 9n;
const CR4_OSXSAVE = 1n << 18n;
const CR0_TS = 1n << 3n;

const UD = 6;
const NM = 7;
const GP = 13;

const AREA = DATA + 0x400;
const HEADER = AREA + 512;
const AVX_AREA = AREA + 576;
const at = (address: number): number[] => [address & 0xff, (address >> 8) & 0xff, (address >> 16) & 0xff, 0];
const memory = (reg: number, address = AREA): number[] => [0x04 | (reg << 3), 0x25, ...at(address)];

const XSAVE = [0x0f, 0xae, ...memory(4)];
const XRSTOR = [0x0f, 0xae, ...memory(5)];
const XSAVEOPT = [0x0f, 0xae, ...memory(6)];
const XSAVEC = [0x0f, 0xc7, ...memory(4)];
const XSAVES = [0x0f, 0xc7, ...memory(5)];
const XRSTORS = [0x0f, 0xc7, ...memory(3)];
const XGETBV = [0x0f, 0x01, 0xd0];
const XSETBV = [0x0f, 0x01, 0xd1];
const FNINIT = [0xdb, 0xe3];

const COMPACTED = 1n << 63n;
const FILL = 0xa5a5_a5a5_a5a5_a5a5n;

/** A processor with x87, SSE and AVX state enabled, EDX:EAX = mask, and an area full of A5H with a clear header. */
function start(mask = 7, xcr0 = 7n): Program {
  const p = program("long", "skylake");
  const { state, model } = p.cpu;
  Object.assign(p.cpu, { model: { ...model, features: new Set([...model.features, "xsaves"]) } });
  state.setU64(Off.CR4, state.u64(Off.CR4) | CR4_OSFXSR | CR4_OSXSAVE);
  state.setU64(Off.XCR0, xcr0);
  state.setGpr(Gpr.RAX, BigInt(mask));
  state.setGpr(Gpr.RDX, 0n);
  state.setGpr(Gpr.RCX, 0n);
  state.setU32(Off.MXCSR, 0x1f80);
  for (let i = 0; i < 1024; i += 8) p.setU64(AREA + i, FILL);
  for (let i = 0; i < 64; i += 8) p.setU64(HEADER + i, 0n);
  p.cpu.contextChanged();
  // All state components as after a reset of their own.
  for (let i = 0; i < 16 * 8; i++) state.setU64(Off.VECTOR + i * 8, 0n);
  for (let i = 0; i < 16; i++) state.setU64(Off.X87 + i * 8, 0n);
  return p;
}

const setXmm = (p: Program, i: number, low: bigint): void => p.cpu.state.setU64(Off.VECTOR + i * 64, low);
const setYmmHigh = (p: Program, i: number, low: bigint): void => p.cpu.state.setU64(Off.VECTOR + i * 64 + 16, low);
const xmm = (p: Program, i: number): bigint => p.cpu.state.u64(Off.VECTOR + i * 64);
const ymmHigh = (p: Program, i: number): bigint => p.cpu.state.u64(Off.VECTOR + i * 64 + 16);

describe("XGETBV and XSETBV (SDM 2D; 1 13.3)", () => {
  test.each([
    ["XCR0 without bit 0", 6n, 0n, GP],
    ["AVX without SSE", 5n, 0n, GP],
    ["components the processor does not have", 0xffn, 0n, GP],
    ["another register than XCR0", 7n, 1n, GP],
    ["x87, SSE and AVX", 7n, 0n, "hlt"],
    ["x87 alone", 1n, 0n, "hlt"],
  ])("XSETBV: %s", (_name, value, index, vector) => {
    const p = start();
    p.cpu.state.setGpr(Gpr.RAX, value);
    p.cpu.state.setGpr(Gpr.RCX, index);
    expect(p.exec(XSETBV).vector).toBe(vector);
    if (vector === "hlt") expect(p.cpu.state.u64(Off.XCR0)).toBe(value);
  });

  test("XSETBV raises #GP at CPL 3, XGETBV does not", () => {
    expect(start().exec(XSETBV, { cpl: 3 }).vector).toBe(GP);
    const p = start();
    // At CPL 3 the HLT behind it raises #GP too: RAX tells that XGETBV came to its end.
    p.cpu.state.setGpr(Gpr.RAX, 0x99n);
    p.exec(XGETBV, { cpl: 3 });
    expect(p.gpr(0)).toBe(7n);
  });

  test("XGETBV with ECX 1 tells which components are not in their initial configuration", () => {
    const p = start();
    p.cpu.state.setGpr(Gpr.RCX, 1n);
    p.exec([...FNINIT, ...XGETBV]);
    expect(p.gpr(0)).toBe(0n);
    setXmm(p, 3, 1n);
    p.exec(XGETBV);
    expect(p.gpr(0)).toBe(2n);
    setYmmHigh(p, 3, 1n);
    p.exec([0xd9, 0xe8, ...XGETBV]);
    expect(p.gpr(0)).toBe(7n);
  });
});

describe("conditions of XSAVE and XRSTOR (SDM 1 13.7, 13.8)", () => {
  test.each([
    ["#UD without CR4.OSXSAVE", (p: Program) => p.cpu.state.setU64(Off.CR4, 0x20n | CR4_OSFXSR), XSAVE, UD],
    ["#NM with CR0.TS", (p: Program) => p.cpu.state.setU64(Off.CR0, p.cpu.state.u64(Off.CR0) | CR0_TS), XSAVE, NM],
    ["#GP when the area is not aligned to 64 bytes", () => {}, [0x0f, 0xae, ...memory(4, AREA + 16)], GP],
    ["#GP for components in XSTATE_BV that XCR0 has not", (p: Program) => p.setU64(HEADER, 8n), XRSTOR, GP],
    ["#GP for XCOMP_BV in the standard format", (p: Program) => p.setU64(HEADER + 8, 1n), XRSTOR, GP],
    ["#GP for the reserved bytes behind XCOMP_BV", (p: Program) => p.setU64(HEADER + 16, 1n), XRSTOR, GP],
    [
      "later bytes of the header do not count in the standard format",
      (p: Program) => p.setU64(HEADER + 24, 1n),
      [0x31, 0xc0, ...XRSTOR],
      "hlt",
    ],
    [
      "but they do in the compacted one",
      (p: Program) => {
        p.setU64(HEADER + 8, COMPACTED);
        p.setU64(HEADER + 56, 1n);
      },
      XRSTOR,
      GP,
    ],
    [
      "#GP for components in XCOMP_BV that XCR0 has not",
      (p: Program) => p.setU64(HEADER + 8, COMPACTED | 8n),
      XRSTOR,
      GP,
    ],
    [
      "#GP for components in XSTATE_BV that XCOMP_BV has not",
      (p: Program) => {
        p.setU64(HEADER, 4n);
        p.setU64(HEADER + 8, COMPACTED | 3n);
      },
      XRSTOR,
      GP,
    ],
    ["#GP when XRSTORS meets the standard format", () => {}, XRSTORS, GP],
    [
      "#GP for reserved bits of MXCSR",
      (p: Program) => {
        p.setU64(HEADER, 2n);
        p.setU32(AREA + 24, 1 << 16);
      },
      XRSTOR,
      GP,
    ],
  ] as const)("%s", (_rule, prepare, code, vector) => {
    const p = start();
    prepare(p);
    p.cpu.contextChanged();
    expect(p.exec(code).vector).toBe(vector);
  });

  test("XSAVES and XRSTORS raise #GP at CPL 3", () => {
    for (const code of [XSAVES, XRSTORS]) expect(start().exec(code, { cpl: 3 }).vector).toBe(GP);
  });
});

describe("what is saved (SDM 1 13.6 to 13.11)", () => {
  test("XSAVE writes the components asked for, in use or not, and leaves the rest of XSTATE_BV alone", () => {
    const p = start(6);
    p.setU64(HEADER, 0x8001n);
    setXmm(p, 2, 0x1234n);
    expect(p.exec(XSAVE).vector).toBe("hlt");
    expect(p.u64(HEADER)).toBe(0x8003n);
    expect(p.u64(AREA)).toBe(FILL);
    expect(p.u64(AREA + 160 + 2 * 16)).toBe(0x1234n);
    expect(p.u64(AVX_AREA)).toBe(0n);
    expect(p.u32(AREA + 24)).toBe(0x1f80);
    expect(p.u32(AREA + 28)).toBe(0xffff);
  });

  test("XSAVE with AVX alone writes MXCSR but no XMM register", () => {
    const p = start(4);
    p.exec(XSAVE);
    expect(p.u32(AREA + 24)).toBe(0x1f80);
    expect(p.u64(AREA + 160)).toBe(FILL);
  });

  test("MXCSR other than after a reset counts as SSE in use", () => {
    const p = start(2);
    p.cpu.state.setU32(Off.MXCSR, 0x1fa0);
    p.exec(XSAVE);
    expect(p.u64(HEADER)).toBe(2n);
  });

  test("XSAVEOPT does not write components in their initial configuration", () => {
    const p = start(7);
    setYmmHigh(p, 0, 5n);
    p.exec([...FNINIT, ...XSAVEOPT]);
    expect(p.u64(HEADER)).toBe(4n);
    expect(p.u64(AREA)).toBe(FILL);
    expect(p.u64(AREA + 160)).toBe(FILL);
    expect(p.u64(AVX_AREA)).toBe(5n);
  });

  test("XSAVEC writes XSTATE_BV and XCOMP_BV and what is in use", () => {
    const p = start(7);
    setXmm(p, 0, 9n);
    p.setU64(HEADER + 16, 0x77n);
    p.exec([...FNINIT, ...XSAVEC]);
    expect(p.u64(HEADER)).toBe(2n);
    expect(p.u64(HEADER + 8)).toBe(COMPACTED | 7n);
    expect(p.u64(HEADER + 16)).toBe(0x77n);
    expect(p.u64(AREA)).toBe(FILL);
    expect(p.u64(AREA + 160)).toBe(9n);
    expect(p.u64(AVX_AREA)).toBe(FILL);
  });

  test("XSAVEC with AVX alone leaves MXCSR out", () => {
    const p = start(4);
    setYmmHigh(p, 1, 3n);
    p.exec(XSAVEC);
    expect(p.u64(AREA + 24)).toBe(FILL);
    expect(p.u64(AVX_AREA + 16)).toBe(3n);
  });

  test("components that XCR0 has not are not saved, whatever the mask says", () => {
    const p = start(7, 3n);
    p.exec(XSAVEC);
    expect(p.u64(HEADER + 8)).toBe(COMPACTED | 3n);
    expect(p.u64(AVX_AREA)).toBe(FILL);
  });

  test("in 32-bit code there are eight registers", () => {
    const p = program("protected", "skylake");
    const { state } = p.cpu;
    state.setU64(Off.CR4, state.u64(Off.CR4) | CR4_OSFXSR | CR4_OSXSAVE);
    state.setU64(Off.XCR0, 7n);
    state.setGpr(Gpr.RAX, 6n);
    for (let i = 0; i < 1024; i += 8) p.setU64(AREA + i, FILL);
    p.setU64(HEADER, 0n);
    setXmm(p, 7, 1n);
    setXmm(p, 8, 1n);
    p.cpu.contextChanged();
    expect(p.exec([0x0f, 0xae, 0x25, ...at(AREA)]).vector).toBe("hlt");
    expect(p.u64(AREA + 160 + 7 * 16)).toBe(1n);
    expect(p.u64(AREA + 160 + 8 * 16)).toBe(FILL);
    expect(p.u64(AVX_AREA + 8 * 16)).toBe(FILL);
  });
});

describe("what is restored (SDM 1 13.8, 13.12)", () => {
  test("components that XSTATE_BV has not get their initial configuration; others than those asked for stay", () => {
    const p = start(5);
    p.setU32(AREA + 24, 0x1f80);
    setXmm(p, 1, 7n);
    setYmmHigh(p, 1, 8n);
    expect(p.exec([...FNINIT, 0xd9, 0xe8, ...XRSTOR]).vector).toBe("hlt");
    expect(xmm(p, 1)).toBe(7n);
    expect(ymmHigh(p, 1)).toBe(0n);
    const { view, base } = p.cpu.state;
    expect(view.getUint16(base + Off.FCW, true)).toBe(0x37f);
    expect(view.getUint16(base + Off.FTW, true)).toBe(0);
    expect(p.cpu.state.u64(Off.X87 + 7 * 16)).toBe(0n);
  });

  test("the standard format loads MXCSR with AVX too, in XSTATE_BV or not", () => {
    const p = start(4);
    p.setU32(AREA + 24, 0x1fbf);
    p.exec(XRSTOR);
    expect(p.cpu.state.u32(Off.MXCSR)).toBe(0x1fbf);
  });

  test("the compacted format initialises MXCSR where XSTATE_BV has no SSE, and ignores it for AVX", () => {
    for (const [mask, expected] of [
      [2, 0x1f80],
      [4, 0x1fa5],
    ] as const) {
      const p = start(mask);
      p.cpu.state.setU32(Off.MXCSR, 0x1fa5);
      p.setU64(HEADER + 8, COMPACTED | 7n);
      p.setU32(AREA + 24, 0x1fbf);
      expect(p.exec(XRSTOR).vector).toBe("hlt");
      expect(p.cpu.state.u32(Off.MXCSR)).toBe(expected);
    }
  });

  test("what XSAVES wrote XRSTORS takes back", () => {
    const p = start(7);
    setXmm(p, 15, 0xabcdn);
    setYmmHigh(p, 14, 0xef01n);
    p.exec([...FNINIT, 0xd9, 0xeb, ...XSAVES]);
    setXmm(p, 15, 0n);
    setYmmHigh(p, 14, 1n);
    setYmmHigh(p, 2, 1n);
    expect(p.exec([...FNINIT, ...XRSTORS]).vector).toBe("hlt");
    expect(xmm(p, 15)).toBe(0xabcdn);
    expect(ymmHigh(p, 14)).toBe(0xef01n);
    expect(ymmHigh(p, 2)).toBe(0n);
    expect(p.cpu.state.u64(Off.X87 + 7 * 16)).toBe(0xc90f_daa2_2168_c235n);
  });

  test("a #GP of the header or of MXCSR changes nothing", () => {
    const p = start(7);
    setXmm(p, 1, 7n);
    p.setU64(HEADER, 7n);
    p.setU32(AREA + 24, 1 << 20);
    expect(p.exec(XRSTOR).vector).toBe(GP);
    expect(xmm(p, 1)).toBe(7n);
  });
});
