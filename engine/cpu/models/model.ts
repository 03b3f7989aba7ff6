/** A processor model: what CPUID says and which features therefore exist. Data only. */

export interface CpuidLeaf {
  readonly leaf: number;
  /** Undefined: the same for every subleaf. */
  readonly subleaf?: number;
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** Features the processor's code asks for by name. A feature not listed raises what the manual says without it. */
export type Feature =
  | "fpu" | "vme" | "de" | "pse" | "tsc" | "msr" | "pae" | "mce" | "cx8" | "apic" | "sep" | "mtrr" | "pge" | "mca"
  | "cmov" | "pat" | "pse36" | "clflush" | "mmx" | "fxsr" | "sse" | "sse2" | "sse3" | "ssse3" | "sse4.1" | "sse4.2"
  | "pclmulqdq" | "aes" | "popcnt" | "movbe" | "cx16" | "pcid" | "x2apic" | "tsc-deadline" | "xsave" | "avx" | "f16c"
  | "fma" | "avx2" | "bmi1" | "bmi2" | "rdrand" | "rdseed" | "adx" | "fsgsbase" | "smep" | "smap" | "umip" | "pku"
  | "erms" | "invpcid" | "clflushopt" | "clwb" | "sha" | "rdpid" | "syscall" | "nx" | "page1gb" | "rdtscp" | "lm"
  | "lahf64" | "lzcnt" | "prefetchw" | "vmx" | "svm" | "monitor" | "arat" | "wbnoinvd" | "la57"
  | "xsaveopt" | "xsavec" | "xgetbv1" | "xsaves" | "tsc-adjust" | "mmxext" | "topoext" | "spec-ctrl" | "arch-capabilities" | "auto-ibrs" | "null-clears-base"; // biome-ignore format: a list

export interface CpuModel {
  /** As given to --cpu. */
  readonly name: string;
  readonly vendor: "GenuineIntel" | "AuthenticAMD";
  readonly leaves: readonly CpuidLeaf[];
  readonly features: ReadonlySet<Feature>;
  /** MAXPHYADDR, bits. */
  readonly physicalBits: number;
  /** Linear-address width, bits: 48 or 57. */
  readonly linearBits: number;
}

/** End of the legacy region and the header of an XSAVE area (SDM 1 13.4). */
export const XSAVE_HEADER_END = 576;

/** State components of XSAVE: their place in the standard format, which is that of the compacted one as well (SDM 1 13.4). */
export interface XsaveComponent {
  /** Bit of XCR0. */
  readonly index: number;
  /** Without it the component does not exist. */
  readonly feature?: Feature;
  readonly offset: number;
  readonly size: number;
}

export const XSAVE_COMPONENTS: readonly XsaveComponent[] = [
  { index: 0, offset: 0, size: 160 },
  { index: 1, offset: 160, size: 256 },
  { index: 2, feature: "avx", offset: XSAVE_HEADER_END, size: 256 },
];
