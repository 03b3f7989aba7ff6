/** CPUID leaves made from a description of a processor (SDM 2A CPUID; APM 3 appendix E). */
import { type CpuidLeaf, type CpuModel, type Feature, XSAVE_COMPONENTS, XSAVE_HEADER_END } from "./model";

/** Where CPUID shows a feature. */
interface FeatureBit {
  readonly leaf: 1 | 6 | 7 | 0xd | 0x8000_0001 | 0x8000_0008 | 0x8000_0021;
  readonly register: "eax" | "ebx" | "ecx" | "edx";
  readonly bit: number;
  readonly vendor?: CpuModel["vendor"];
}

const group = (
  leaf: FeatureBit["leaf"],
  register: FeatureBit["register"],
  bits: Partial<Record<Feature, number | readonly number[]>>,
  vendor?: CpuModel["vendor"],
): [Feature, FeatureBit][] =>
  Object.entries(bits).flatMap(([feature, list]) =>
    [list].flat().map((bit): [Feature, FeatureBit] => [feature as Feature, { leaf, register, bit, vendor }]),
  );

// biome-ignore format: bit numbers, as the manual lists them
const FEATURE_BITS: readonly (readonly [Feature, FeatureBit])[] = [
  ...group(1, "edx", {
    fpu: 0, vme: 1, de: 2, pse: 3, tsc: 4, msr: 5, pae: 6, mce: 7, cx8: 8, apic: 9, sep: 11, mtrr: 12, pge: 13, mca: 14,
    cmov: 15, pat: 16, pse36: 17, clflush: 19, mmx: 23, fxsr: 24, sse: 25, sse2: 26,
  }),
  ...group(1, "ecx", {
    sse3: 0, pclmulqdq: 1, monitor: 3, vmx: 5, ssse3: 9, fma: 12, cx16: 13, pcid: 17, "sse4.1": 19, "sse4.2": 20,
    x2apic: 21, movbe: 22, popcnt: 23, "tsc-deadline": 24, aes: 25, xsave: 26, avx: 28, f16c: 29, rdrand: 30,
  }),
  ...group(6, "eax", { arat: 2 }),
  ...group(7, "ebx", {
    fsgsbase: 0, "tsc-adjust": 1, bmi1: 3, avx2: 5, smep: 7, bmi2: 8, erms: 9, invpcid: 10, rdseed: 18, adx: 19, smap: 20,
    clflushopt: 23, clwb: 24, sha: 29,
  }),
  ...group(7, "ecx", { umip: 2, pku: 3, la57: 16, rdpid: 22 }),
  // IBRS and IBPB, STIBP, SSBD
  ...group(7, "edx", { "spec-ctrl": [26, 27, 31], "arch-capabilities": 29 }, "GenuineIntel"),
  ...group(0xd, "eax", { xsaveopt: 0, xsavec: 1, xgetbv1: 2, xsaves: 3 }),
  ...group(0x8000_0001, "edx", { syscall: 11, nx: 20, mmxext: 22, page1gb: 26, rdtscp: 27, lm: 29 }),
  ...group(0x8000_0001, "ecx", { lahf64: 0, svm: 2, lzcnt: 5, prefetchw: 8, topoext: 22 }),
  // IBPB, IBRS, STIBP, SSBD; nothing is speculated on, so that stores are not bypassed either (26)
  ...group(0x8000_0008, "ebx", { wbnoinvd: 9, "spec-ctrl": [12, 14, 15, 24, 26] }, "AuthenticAMD"),
  ...group(0x8000_0008, "ebx", { wbnoinvd: 9 }, "GenuineIntel"),
  // LFENCE serializes (2), loads of null selectors clear the base (6); SRSO (29), TSA (ecx 1, 2) do not exist
  ...group(0x8000_0021, "eax", { "null-clears-base": 6, "auto-ibrs": 8, topoext: [2, 29] }, "AuthenticAMD"),
  ...group(0x8000_0021, "ecx", { topoext: [1, 2] }, "AuthenticAMD"),
];

/** A level of cache for leaf 4 (SDM 2A table 3-8). */
interface Cache {
  readonly type: 1 | 2 | 3;
  readonly level: number;
  readonly ways: number;
  readonly sets: number;
}

const LINE = 64;
/** 32 KBytes of data, 32 of instructions, 256 KBytes, 8 MBytes. */
const CACHES: readonly Cache[] = [
  { type: 1, level: 1, ways: 8, sets: 64 },
  { type: 2, level: 1, ways: 8, sets: 64 },
  { type: 3, level: 2, ways: 8, sets: 512 },
  { type: 3, level: 3, ways: 16, sets: 8192 },
];
/** EAX, EBX and ECX of leaf 4, and of leaf 8000001DH, which is the same: self-initializing. */
const cacheLeaf = (c: Cache): [eax: number, ebx: number, ecx: number] => [
  c.type | (c.level << 5) | (1 << 8),
  (LINE - 1) | ((c.ways - 1) << 22),
  c.sets - 1,
];
const kilobytes = (c: Cache): number => (c.ways * c.sets * LINE) / 1024;
/** Codes of associativity (APM 3, table E-4). */
const AMD_WAYS: Readonly<Record<number, number>> = { 8: 6, 16: 8 };

export interface ModelDescription {
  readonly name: string;
  readonly vendor: CpuModel["vendor"];
  readonly family: number;
  readonly model: number;
  readonly stepping: number;
  /** At most 47 characters. */
  readonly brand: string;
  readonly features: readonly Feature[];
  readonly physicalBits: number;
  readonly linearBits: number;
}

/** Version information of leaf 1 (SDM 2A figure 3-6). */
export function signature(family: number, model: number, stepping: number): number {
  const extended = family > 15 ? family - 15 : 0;
  return (extended << 20) | ((model >> 4) << 16) | (Math.min(family, 15) << 8) | ((model & 15) << 4) | stepping;
}

/** Four characters as a little-endian number. */
function word(text: string, at: number): number {
  let value = 0;
  for (let i = 3; i >= 0; i--) value = value * 256 + (at + i < text.length ? text.charCodeAt(at + i) : 0);
  return value;
}

/**
 * The TSC counts at 1 GHz: a crystal of 1 GHz times 1 (leaf 15H), 1000 MHz nominal (leaf 16H). The timer of the local APIC
 * counts the crystal where leaf 15H names one (SDM 3A 10.5.4), and it counts nanoseconds.
 */
const CRYSTAL_HZ = 1_000_000_000;
const CRYSTAL_RATIO = 1;
const MHZ = 1000;

export function composeModel(d: ModelDescription): CpuModel {
  const features = new Set(d.features);
  const intel = d.vendor === "GenuineIntel";
  const flags = (leaf: FeatureBit["leaf"], register: FeatureBit["register"]): number => {
    let value = 0;
    for (const [feature, at] of FEATURE_BITS) {
      if (at.leaf !== leaf || at.register !== register || !features.has(feature)) continue;
      if (at.vendor === undefined || at.vendor === d.vendor) value |= 1 << at.bit;
    }
    return value >>> 0;
  };
  const leaves: CpuidLeaf[] = [];
  const add = (leaf: number, eax: number, ebx: number, ecx: number, edx: number, subleaf?: number): void => {
    const registers = { eax: eax >>> 0, ebx: ebx >>> 0, ecx: ecx >>> 0, edx: edx >>> 0 };
    leaves.push(subleaf === undefined ? { leaf, ...registers } : { leaf, subleaf, ...registers });
  };

  const highest = intel ? 0x16 : 0xd;
  add(0, highest, word(d.vendor, 0), word(d.vendor, 8), word(d.vendor, 4));
  const version = signature(d.family, d.model, d.stepping);
  // CLFLUSH line size in units of 8 bytes, one logical processor.
  add(1, version, ((LINE / 8) << 8) | (1 << 16), flags(1, "ecx"), flags(1, "edx"));
  if (intel) {
    // Descriptors: TLBs 03H, 63H, 76H, B5H, C3H; caches in leaf 4 (FFH), 64-byte prefetch (F0H).
    add(2, 0x7603_6301, 0x00f0_b5ff, 0, 0x00c3_0000);
    for (const [i, c] of CACHES.entries()) {
      add(4, ...cacheLeaf(c), 0, i);
    }
    add(4, 0, 0, 0, 0, CACHES.length);
  }
  add(5, 0, 0, 0, 0);
  add(6, flags(6, "eax"), 0, 0, 0);
  add(7, 0, flags(7, "ebx"), flags(7, "ecx"), flags(7, "edx"), 0);
  if (intel) {
    add(0xa, 0, 0, 0, 0);
    add(0xb, 0, 1, 0x100, 0, 0);
    add(0xb, 0, 1, 0x201, 0, 1);
  }
  if (features.has("xsave")) {
    const components = XSAVE_COMPONENTS.filter((c) => c.feature === undefined || features.has(c.feature));
    const size = components.reduce((end, c) => Math.max(end, c.offset + c.size), XSAVE_HEADER_END);
    const mask = components.reduce((bits, c) => bits | (1 << c.index), 0);
    // EBX, the size for what is enabled, follows XCR0 (system/cpuid.ts); here it is that at reset.
    add(0xd, mask, XSAVE_HEADER_END, size, 0, 0);
    const extensions = flags(0xd, "eax");
    add(0xd, extensions, extensions & 0xa ? XSAVE_HEADER_END : 0, 0, 0, 1);
    for (const c of components) if (c.index >= 2) add(0xd, c.size, c.offset, 0, 0, c.index);
  } else add(0xd, 0, 0, 0, 0, 0);
  if (intel) {
    add(0x15, 1, CRYSTAL_RATIO, CRYSTAL_HZ, 0);
    add(0x16, MHZ, MHZ, 100, 0);
  }

  const vendorWords = intel ? [0, 0, 0] : [word(d.vendor, 0), word(d.vendor, 8), word(d.vendor, 4)];
  add(0x8000_0000, features.has("topoext") ? 0x8000_0021 : 0x8000_0008, vendorWords[0], vendorWords[1], vendorWords[2]);
  // AMD repeats most of leaf 1's EDX here (APM 3 E.4.1).
  const mirrored = intel ? 0 : flags(1, "edx") & 0x0183_f3ff;
  const extendedEdx = flags(0x8000_0001, "edx") | mirrored;
  add(0x8000_0001, intel ? 0 : version, 0, flags(0x8000_0001, "ecx"), extendedEdx);
  for (let i = 0; i < 3; i++) {
    const at = i * 16;
    const [a, b, c, e] = [0, 4, 8, 12].map((k) => word(d.brand, at + k));
    add(0x8000_0002 + i, a, b, c, e);
  }
  const [data, code, second, third] = CACHES;
  const first = (c: Cache): number => (kilobytes(c) << 24) | (c.ways << 16) | (1 << 8) | LINE;
  if (intel) {
    add(0x8000_0005, 0, 0, 0, 0);
    add(0x8000_0006, 0, 0, (kilobytes(second) << 16) | (AMD_WAYS[second.ways] << 12) | LINE, 0);
  } else {
    // TLBs: 64 entries, fully associative; second level 1536, 8 ways for 4-KByte pages.
    add(0x8000_0005, 0xff40_ff40, 0xff40_ff40, first(data), first(code));
    const secondTlb = (6 << 28) | (1536 << 16) | (6 << 12) | 1536;
    const l2 = (kilobytes(second) << 16) | (AMD_WAYS[second.ways] << 12) | (1 << 8) | LINE;
    const l3 = ((kilobytes(third) / 512) << 18) | (AMD_WAYS[third.ways] << 12) | (1 << 8) | LINE;
    add(0x8000_0006, secondTlb, secondTlb, l2, l3);
  }
  // Invariant TSC.
  add(0x8000_0007, 0, 0, 0, 1 << 8);
  add(0x8000_0008, d.physicalBits | (d.linearBits << 8), flags(0x8000_0008, "ebx"), 0, 0);
  if (features.has("topoext")) {
    for (const [i, c] of CACHES.entries()) add(0x8000_001d, ...cacheLeaf(c), 0, i);
    add(0x8000_001d, 0, 0, 0, 0, CACHES.length);
    // APIC id, core and node of this processor: machine/cpuid.ts.
    add(0x8000_001e, 0, 0, 0, 0);
    add(0x8000_0021, flags(0x8000_0021, "eax"), 0, flags(0x8000_0021, "ecx"), 0);
  }
  return {
    name: d.name,
    vendor: d.vendor,
    leaves,
    features,
    physicalBits: d.physicalBits,
    linearBits: d.linearBits,
  };
}
