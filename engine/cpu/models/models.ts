/**
 * The processor models --cpu can name.
 *
 * Both are x86-64-v1 processors with the system features that work here. CPUID shows FPU, MMX, SSE and SSE2, because
 * x86-64 has no way not to have them and system software refuses to start without. Of these, what saves, restores,
 * initialises and controls their state is executed (FXSAVE, XSAVE and their like, FNINIT, FLDCW, FNSTSW, LDMXCSR ...),
 * with CR0.EM, TS and MP behaving as they should; x87, MMX and SSE arithmetic and data movement are not, and raise #UD.
 */
import { composeModel } from "./compose";
import type { CpuModel, Feature } from "./model";

// biome-ignore format: a list
const X86_64_V1: readonly Feature[] = [
  "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
  "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
];

// biome-ignore format: a list
const SYSTEM: readonly Feature[] = [
  "cx16", "lahf64", "xsave", "fsgsbase", "smep", "smap", "umip", "page1gb", "rdtscp", "arat", "prefetchw",
];

/** An Intel processor with VMX: the default. */
const core = composeModel({
  name: "core",
  vendor: "GenuineIntel",
  family: 6,
  model: 15,
  stepping: 11,
  brand: "Hyperstep virtual processor (Intel, VMX)",
  features: [...X86_64_V1, ...SYSTEM, "vmx", "pcid", "invpcid", "x2apic", "tsc-deadline", "erms"],
  physicalBits: 40,
  linearBits: 48,
});

/** An AMD processor; without SVM. */
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

const MODELS: readonly CpuModel[] = [core, opteron];

/** What --cpu accepts; the first is the default. */
export const MODEL_NAMES: readonly string[] = MODELS.map((m) => m.name);

/** The model of a machine that names none. */
export const DEFAULT_MODEL: string = core.name;

/** A model by name; "default" is the one of a machine that names none. */
export function findModel(name: string): CpuModel | undefined {
  if (name === "default") return core;
  return MODELS.find((m) => m.name === name);
}
