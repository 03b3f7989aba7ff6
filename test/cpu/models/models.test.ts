import { describe, expect, test } from "vitest";
import type { CpuidLeaf, CpuModel, Feature } from "../../../engine/cpu/models/model";
import { DEFAULT_MODEL, findModel, MODEL_NAMES } from "../../../engine/cpu/models/models";
import { modelOf } from "../../../engine/machine/cpuid";

const model = (name: string): CpuModel => findModel(name)!;
const NONE: CpuidLeaf = { leaf: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
const leaf = (m: CpuModel, number: number, subleaf = 0): CpuidLeaf =>
  m.leaves.find((l) => l.leaf === number && (l.subleaf === undefined || l.subleaf === subleaf)) ?? NONE;
const bit = (value: number, n: number): boolean => ((value >>> n) & 1) !== 0;

/** Required by the levels of the x86-64 psABI (3.1.1): leaf, register, bit. */
// biome-ignore format: a table
const LEVEL_3: readonly (readonly [string, number, "eax" | "ebx" | "ecx" | "edx", number])[] = [
  ["CMOV", 1, "edx", 15], ["CX8", 1, "edx", 8], ["FPU", 1, "edx", 0], ["FXSR", 1, "edx", 24], ["MMX", 1, "edx", 23],
  ["SYSCALL", 0x80000001, "edx", 11], ["SSE", 1, "edx", 25], ["SSE2", 1, "edx", 26],
  ["CX16", 1, "ecx", 13], ["LAHF", 0x80000001, "ecx", 0], ["POPCNT", 1, "ecx", 23], ["SSE3", 1, "ecx", 0],
  ["SSE4.1", 1, "ecx", 19], ["SSE4.2", 1, "ecx", 20], ["SSSE3", 1, "ecx", 9],
  ["AVX", 1, "ecx", 28], ["AVX2", 7, "ebx", 5], ["BMI1", 7, "ebx", 3], ["BMI2", 7, "ebx", 8], ["F16C", 1, "ecx", 29],
  ["FMA", 1, "ecx", 12], ["LZCNT", 0x80000001, "ecx", 5], ["MOVBE", 1, "ecx", 22], ["XSAVE", 1, "ecx", 26],
];

describe.each(MODEL_NAMES)("processor model %s", (name) => {
  const m = model(name);

  test("leaf 0 has the highest basic leaf, 80000000H the highest extended one (2A CPUID)", () => {
    const numbers = m.leaves.map((l) => l.leaf);
    expect(leaf(m, 0).eax).toBe(Math.max(...numbers.filter((n) => n < 0x4000_0000)));
    expect(leaf(m, 0x8000_0000).eax).toBe(Math.max(...numbers));
  });

  test("no leaf is there twice", () => {
    const keys = m.leaves.map((l) => `${l.leaf} ${l.subleaf ?? "-"}`);
    expect(new Set(keys).size).toBe(keys.length);
  });

  test("family, model and stepping of leaf 1 are those of the vendor's processors (2A figure 3-6)", () => {
    const { eax } = leaf(m, 1);
    const family = ((eax >> 8) & 15) + (((eax >> 8) & 15) === 15 ? (eax >> 20) & 0xff : 0);
    expect(m.vendor === "GenuineIntel" ? [6] : [15, 25]).toContain(family);
    if (m.vendor === "AuthenticAMD") expect(leaf(m, 0x8000_0001).eax).toBe(eax);
  });

  test("the brand string is 48 bytes and ends with a zero (2A figure 3-9)", () => {
    const words = [2, 3, 4].flatMap((n) => {
      const { eax, ebx, ecx, edx } = leaf(m, 0x8000_0000 + n);
      return [eax, ebx, ecx, edx];
    });
    const text = new TextDecoder().decode(Uint32Array.from(words));
    expect(text).toContain("Hyperstep virtual processor");
    expect(text.at(-1)).toBe("\0");
  });

  test("address widths of leaf 80000008H are the model's (2A CPUID)", () => {
    expect(leaf(m, 0x8000_0008).eax & 0xffff).toBe(m.physicalBits | (m.linearBits << 8));
  });

  test("XSAVE's standard area ends with the last component of leaf 0DH (1 13.4.2)", () => {
    const root = leaf(m, 0xd, 0);
    let end = 576;
    for (let i = 2; i < 32; i++) {
      expect(leaf(m, 0xd, i).eax !== 0 && i >= 2).toBe(bit(root.eax, i));
      if (bit(root.eax, i)) end = Math.max(end, leaf(m, 0xd, i).ebx + leaf(m, 0xd, i).eax);
    }
    expect(root.ecx).toBe(end);
    expect(bit(root.eax, 2)).toBe(m.features.has("avx"));
  });

  test("a feature is announced together with what it builds on (1 chapter 14)", () => {
    // biome-ignore format: a table
    const needs: readonly (readonly [Feature, Feature])[] = [
      ["sse2", "sse"], ["sse3", "sse2"], ["ssse3", "sse3"], ["sse4.1", "ssse3"], ["sse4.2", "sse4.1"], ["avx", "sse4.2"],
      ["avx", "xsave"], ["avx2", "avx"], ["fma", "avx"], ["f16c", "avx"], ["xsaveopt", "xsave"], ["xsavec", "xsave"],
      ["xsaves", "xsavec"], ["aes", "sse2"], ["pclmulqdq", "sse2"], ["sha", "sse2"], ["sse", "fxsr"],
    ];
    expect(needs.filter(([a, b]) => m.features.has(a) && !m.features.has(b))).toEqual([]);
  });
});

test("the default model, and the AMD one, have everything of x86-64-v3 (psABI 3.1.1)", () => {
  for (const name of [DEFAULT_MODEL, "skylake", "epyc"]) {
    const m = model(name);
    expect(LEVEL_3.filter(([, number, register, n]) => !bit(leaf(m, number)[register], n)).map(([f]) => f)).toEqual([]);
  }
});

test("the default model is an Intel processor with VMX", () => {
  expect(model("default").name).toBe(DEFAULT_MODEL);
  expect(model("default").vendor).toBe("GenuineIntel");
  expect(bit(leaf(model("default"), 1).ecx, 5)).toBe(true);
});

test("TSC and crystal are in leaf 15H, so that nothing has to be calibrated: 1 GHz each (3A 10.5.4, 3B 18.7.3)", () => {
  const { eax, ebx, ecx } = leaf(model("skylake"), 0x15);
  expect(ecx).toBe(1_000_000_000);
  expect((ecx * ebx) / eax).toBe(1_000_000_000);
  expect(leaf(model("skylake"), 0x16).eax).toBe(1000);
});

test("leaf 4 describes 32 KBytes of data and instructions, 256 KBytes, 8 MBytes (2A table 3-8)", () => {
  const sizes = [0, 1, 2, 3].map((i) => {
    const { ebx, ecx } = leaf(model("skylake"), 4, i);
    return ((ebx >>> 22) + 1) * (((ebx >> 12) & 0x3ff) + 1) * ((ebx & 0xfff) + 1) * (ecx + 1);
  });
  expect(sizes).toEqual([32 << 10, 32 << 10, 256 << 10, 8 << 20]);
  expect(leaf(model("skylake"), 4, 4).eax).toBe(0);
});

describe("topology of a machine of three processors", () => {
  test("Intel: leaf 0BH gives the x2APIC id, its shift and the number of processors (2A CPUID leaf 0BH)", () => {
    const m = modelOf(model("skylake"), { apicId: 2, smp: 3 });
    expect(leaf(m, 0xb, 0)).toMatchObject({ eax: 0, ebx: 1, ecx: 0x100, edx: 2 });
    expect(leaf(m, 0xb, 1)).toMatchObject({ eax: 2, ebx: 3, ecx: 0x201, edx: 2 });
    expect(leaf(m, 1).ebx >>> 24).toBe(2);
  });

  test("AMD: 80000008H counts the cores, 8000001EH gives id and core, CmpLegacy is set (APM 3 E.4)", () => {
    const m = modelOf(model("epyc"), { apicId: 2, smp: 3 });
    expect(leaf(m, 0x8000_0008).ecx).toBe((2 << 12) | 2);
    expect(leaf(m, 0x8000_001e)).toMatchObject({ eax: 2, ebx: 2, ecx: 0 });
    expect(bit(leaf(m, 0x8000_0001).ecx, 1)).toBe(true);
    // The third-level cache is shared by all of them.
    expect((leaf(m, 0x8000_001d, 3).eax >> 14) & 0xfff).toBe(2);
    expect((leaf(m, 0x8000_001d, 0).eax >> 14) & 0xfff).toBe(0);
  });
});
