/** Bits of control registers and small shared constants of the system instructions (SDM 3A 2.5, 2.2.1). */

// biome-ignore format: a bit table
export const Cr0 = {
  PE: 1 << 0, MP: 1 << 1, EM: 1 << 2, TS: 1 << 3, ET: 1 << 4, NE: 1 << 5, WP: 1 << 16, AM: 1 << 18,
  NW: 1 << 29, CD: 1 << 30, PG: 1 << 31,
} as const;

// biome-ignore format: a bit table
export const Cr4 = {
  VME: 1 << 0, PVI: 1 << 1, TSD: 1 << 2, DE: 1 << 3, PSE: 1 << 4, PAE: 1 << 5, MCE: 1 << 6, PGE: 1 << 7, PCE: 1 << 8,
  OSFXSR: 1 << 9, OSXMMEXCPT: 1 << 10, UMIP: 1 << 11, LA57: 1 << 12, VMXE: 1 << 13, FSGSBASE: 1 << 16, PCIDE: 1 << 17,
  OSXSAVE: 1 << 18, SMEP: 1 << 20, SMAP: 1 << 21, PKE: 1 << 22, CET: 1 << 23, PKS: 1 << 24,
} as const;

export const Efer = { SCE: 1 << 0, LME: 1 << 8, LMA: 1 << 10, NXE: 1 << 11, SVME: 1 << 12, AIBRSE: 1 << 21 } as const;

/** DR6 bits (SDM 3A 17.2.3). */
export const Dr6 = { B0: 1, BD: 1 << 13, BS: 1 << 14, BT: 1 << 15, FIXED: 0xffff_0ff0 } as const;
/** DR7 bits (SDM 3A 17.2.4). */
export const Dr7 = { ENABLED: 0xff, GD: 1 << 13, FIXED: 0x400 } as const;
