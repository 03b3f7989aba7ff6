import type { Instruction as IcedInstruction } from "iced-x86";
import { describe, expect, test } from "vitest";
import type { Instruction } from "../../../engine/cpu/isa/instruction";
import { OPCODES } from "../../../engine/cpu/isa/opcodes";
import { Random } from "../random";
import { Comparison, featuresOf, mnemonicOf, STRIDE, type Width } from "./iced";

/**
 * Instruction-set extensions that iced decodes and the table leaves out: their encodings are #UD (or, in the hint space,
 * NOP) on the processors we model.
 */
// biome-ignore format: a list
const NOT_MODELLED = new Set([
  // Vector families no processor model has
  "SSE4A", "GFNI", "D3NOW", "D3NOWEXT", "XOP", "FMA4", "TBM", "LWP", "AMX_TILE", "AMX_INT8", "AMX_BF16", "AMX_FP16", "AMX_COMPLEX",
  "AVX512F", "AVX512DQ", "AVX512BW", "AVX512VL", "AVX_VNNI", "AVX_IFMA", "AVX_NE_CONVERT", "AVX_VNNI_INT8", "AVX_VNNI_INT16",
  "VAES", "VPCLMULQDQ", "CMPCCXADD", "SHA512", "SM3", "SM4", "USER_MSR", "KNC",
  // Extensions no processor model has
  "RTM", "HLE", "SMX", "CET_SS", "CET_IBT", "WAITPKG", "PTWRITE", "RAO_INT", "MOVDIRI", "MOVDIR64B", "ENQCMD", "KL", "AESKLE",
  "WIDE_KL", "UINTR", "LKGS", "FRED", "TSE", "HRESET", "SERIALIZE", "TSXLDTRK", "PCONFIG", "SGX1", "ENCLV", "OSS", "MSRLIST",
  "WRMSRNS", "TDX", "SEAM", "MPX", "CLZERO", "MONITORX", "RDPRU", "MCOMMIT", "INVLPGB", "TLBSYNC", "SEV_SNP", "HLE_or_RTM", "SEV_ES", "SKINIT",
  "PREFETCHITI", "RMPQUERY", "MSR_IMM",
  "PADLOCK_ACE", "PADLOCK_PHE", "PADLOCK_RNG", "PADLOCK_UNDOC", "PADLOCK_PMM", "PADLOCK_GMI", "CYRIX_D3NOW",
]);

/** Differences between the two decoders that are known and right; each with its reason. */
const DEVIATIONS: readonly {
  reason: string;
  holds: (ours: Instruction | undefined, iced: IcedInstruction) => boolean;
}[] = [
  {
    reason: "the extension is not modelled, so its encodings raise #UD",
    holds: (ours, iced) => !ours && !iced.isInvalid && featuresOf(iced).some((feature) => NOT_MODELLED.has(feature)),
  },
  {
    reason: "what is undefined in D8 to DF decodes as X87, because #NM comes before #UD there",
    holds: (ours, iced) => ours !== undefined && OPCODES[ours.opcode].mnemonic === "X87" && iced.isInvalid,
  },
  {
    reason: "REX.B makes 90 an exchange with R8 even behind F3 (APM 3, XCHG; measured); iced says PAUSE",
    holds: (ours, iced) =>
      ours !== undefined &&
      (ours.rex & 1) === 1 &&
      OPCODES[ours.opcode].mnemonic === "XCHG" &&
      mnemonicOf(iced) === "PAUSE",
  },
];

function differences(bytes: Uint8Array, width: Width): string[] {
  return new Comparison().run(bytes, width, (ours, iced) => DEVIATIONS.some((d) => d.holds(ours, iced)));
}

/** ModRM bytes that together reach every reg value with every addressing form. */
const MODRM_SAMPLE = Array.from({ length: 8 }, (_, reg) =>
  [0x00, 0x04, 0x05, 0x46, 0x84, 0xc0, 0xc7].map((modrm) => modrm | (reg << 3)),
).flat();
const ALL_MODRM = Array.from({ length: 256 }, (_, i) => i);

/** One instruction per opcode of the four maps and ModRM byte; what follows it is a fixed pattern. */
function exhaustive(
  prefixes: readonly number[],
  modrms: readonly number[],
  maps: readonly (readonly number[])[],
): Uint8Array {
  const bytes = new Uint8Array(maps.length * 256 * modrms.length * STRIDE).fill(0xcc);
  let at = 0;
  for (const map of maps) {
    for (let opcode = 0; opcode < 256; opcode++) {
      for (const modrm of modrms) {
        const head = [...prefixes, ...map, opcode, modrm];
        bytes.set(head, at);
        for (let i = head.length; i < STRIDE - 1; i++) bytes[at + i] = 0x91 * i + 0x37 * modrm + 0x1d;
        at += STRIDE;
      }
    }
  }
  return bytes;
}

const MAPS = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]];

describe.each([16, 32, 64] as const)("%i-bit code decodes as iced-x86 decodes it", (width) => {
  test("every opcode of every map with every ModRM byte", () => {
    expect(differences(exhaustive([], ALL_MODRM, MAPS), width).slice(0, 20)).toEqual([]);
  });

  // biome-ignore format: a list
  const prefixes = [
    [0x66], [0x67], [0xf2], [0xf3], [0xf0], [0x66, 0xf3], [0xf3, 0x66], [0xf2, 0xf3], [0x64], [0x2e],
    ...(width === 64 ? [[0x48], [0x41], [0x44], [0x42], [0x66, 0x48], [0xf3, 0x48], [0x48, 0x66], [0x67, 0x4f], [0x40]] : []),
  ];
  test.each(prefixes.map((p) => [p.map((b) => b.toString(16)).join(" "), p] as const))("prefix %s", (_, prefix) => {
    expect(differences(exhaustive(prefix, MODRM_SAMPLE, MAPS), width).slice(0, 20)).toEqual([]);
  });

  test("every VEX encoding: two and three bytes, maps, L, W, pp, vvvv, register and memory", () => {
    const modrms = width === 16 ? MODRM_SAMPLE : MODRM_SAMPLE.filter((modrm) => (modrm & 0xc7) !== 0x46);
    const all: string[] = [];
    for (const vvvv of [15, 0, 5]) {
      for (let low = 0; low < 8; low++) {
        const bits = (vvvv << 3) | low;
        const heads = [
          [0xc5, bits | 0x80],
          ...[0xe1, 0xe2, 0xe3].flatMap((map) => [
            [0xc4, map, bits],
            [0xc4, map, bits | 0x80],
          ]),
        ];
        for (const head of heads) all.push(...differences(exhaustive(head, modrms, [[]]), width));
      }
    }
    expect(all.slice(0, 20)).toEqual([]);
  });

  test("random VEX prefixes, with prefixes before them", () => {
    const random = new Random(0x7e50000 + width);
    const pool = [0x66, 0xf0, 0xf2, 0xf3, 0x67, 0x2e, 0x64, 0x40, 0x48];
    const bytes = new Uint8Array(60_000 * STRIDE).fill(0xcc);
    for (let at = 0; at < bytes.length; at += STRIDE) {
      let i = at;
      if (random.oneIn(3)) bytes[i++] = pool[random.below(pool.length)];
      bytes[i++] = random.oneIn(3) ? 0xc5 : 0xc4;
      if (bytes[i - 1] === 0xc4 && !random.oneIn(8)) bytes[i++] = (random.below(8) << 5) | (1 + random.below(3));
      while (i < at + STRIDE - 1) bytes[i++] = random.below(256);
    }
    expect(differences(bytes, width).slice(0, 20)).toEqual([]);
  });

  test("random bytes behind random prefixes", () => {
    const random = new Random(0x5eed0000 + width);
    // biome-ignore format: a list
    const pool = [
      0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x41, 0x42, 0x44, 0x48, 0x49, 0x4c, 0x4f,
    ];
    const bytes = new Uint8Array(60_000 * STRIDE).fill(0xcc);
    for (let at = 0; at < bytes.length; at += STRIDE) {
      const end = at + STRIDE - 1;
      let i = at;
      const count = random.below(16) === 0 ? random.below(15) : random.below(4);
      for (let n = 0; n < count; n++) bytes[i++] = pool[random.below(pool.length)];
      const map = random.below(8);
      if (map < 4) bytes[i++] = 0x0f;
      if (map === 0) bytes[i++] = random.below(2) ? 0x38 : 0x3a;
      while (i < end) bytes[i++] = random.below(256);
      bytes[end] = 0xcc;
    }
    expect(differences(bytes, width).slice(0, 20)).toEqual([]);
  });
});
