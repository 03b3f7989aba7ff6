/**
 * The processor models --cpu can name. CPUID of a model announces what the processor then executes, no more: rows of the
 * opcode table whose feature a model lacks are #UD.
 */
import { composeModel } from "./compose";
import type { CpuModel, Feature } from "./model";

/** What every x86-64 processor has: level 1 of the psABI. */
// biome-ignore format: a list
const X86_64_V1: readonly Feature[] = [
  "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
  "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
];

/** Levels 2 and 3 of the psABI. */
// biome-ignore format: a list
const X86_64_V3: readonly Feature[] = [
  ...X86_64_V1, "cx16", "lahf64", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3",
  "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave",
];

/** Instructions beyond these levels that processors of both makers have. */
// biome-ignore format: a list
const MORE: readonly Feature[] = [
  "aes", "pclmulqdq", "sha", "adx", "rdrand", "rdseed", "rdpid", "clflushopt", "clwb", "wbnoinvd", "xsaveopt", "xsavec", "xgetbv1", "xsaves",
];

// biome-ignore format: a list
const SYSTEM: readonly Feature[] = [
  "cx16", "lahf64", "xsave", "xsaveopt", "xsavec", "fsgsbase", "smep", "smap", "umip", "page1gb", "rdtscp", "arat", "prefetchw",
];

const INTEL: readonly Feature[] = ["vmx", "pcid", "invpcid", "x2apic", "tsc-deadline", "tsc-adjust", "erms"];

/** A generic Intel processor of x86-64-v3 with VMX: the default. */
const skylake = composeModel({
  name: "skylake",
  vendor: "GenuineIntel",
  family: 6,
  model: 94,
  stepping: 3,
  brand: "Hyperstep virtual processor (Intel, x86-64-v3)",
  features: [...X86_64_V3, ...MORE, ...SYSTEM, ...INTEL, "spec-ctrl", "arch-capabilities"],
  physicalBits: 40,
  linearBits: 48,
});

/** An AMD processor of x86-64-v3, family 19H; without SVM. */
const epyc = composeModel({
  name: "epyc",
  vendor: "AuthenticAMD",
  family: 25,
  model: 1,
  stepping: 1,
  brand: "Hyperstep virtual processor (AMD, x86-64-v3)",
  features: [
    ...X86_64_V3,
    ...MORE,
    ...SYSTEM,
    "pcid",
    "invpcid",
    "x2apic",
    "erms",
    "mmxext",
    "topoext",
    "spec-ctrl",
    "auto-ibrs",
    "null-clears-base",
  ],
  physicalBits: 40,
  linearBits: 48,
});

/** An Intel processor of x86-64-v1 with VMX. */
const core = composeModel({
  name: "core",
  vendor: "GenuineIntel",
  family: 6,
  model: 15,
  stepping: 11,
  brand: "Hyperstep virtual processor (Intel, VMX)",
  features: [...X86_64_V1, ...SYSTEM, ...INTEL],
  physicalBits: 40,
  linearBits: 48,
});

/** An AMD processor of x86-64-v1. */
const opteron = composeModel({
  name: "opteron",
  vendor: "AuthenticAMD",
  family: 15,
  model: 107,
  stepping: 1,
  brand: "Hyperstep virtual processor (AMD)",
  features: [...X86_64_V1, ...SYSTEM],
  physicalBits: 40,
  linearBits: 48,
});

const MODELS: readonly CpuModel[] = [skylake, epyc, core, opteron];

/** What --cpu accepts. */
export const MODEL_NAMES: readonly string[] = MODELS.map((m) => m.name);

/** The model of a machine that names none. */
export const DEFAULT_MODEL: string = skylake.name;

/** A model by name; "default" is the one of a machine that names none. */
export function findModel(name: string): CpuModel | undefined {
  const wanted = name === "default" ? DEFAULT_MODEL : name;
  return MODELS.find((m) => m.name === wanted);
}
