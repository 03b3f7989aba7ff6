/**
 * Entries of shadow page tables (arch/x86/kvm/mmu/spte.h without two-dimensional paging): the processor walks them as
 * ordinary PAE or 4-level entries (SDM 3A 4.4, 4.5). MMIO entries are present with a reserved address bit set, so that
 * every access raises #PF with RSVD.
 */

/** Access rights a path of guest entries leaves (ACC_*_MASK). */
export const Acc = { EXEC: 1, WRITE: 2, USER: 4, ALL: 7 } as const;

// biome-ignore-start format: a bit table
export const Pt = {
  PRESENT: 1n << 0n,
  WRITABLE: 1n << 1n,
  USER: 1n << 2n,
  ACCESSED: 1n << 5n,
  DIRTY: 1n << 6n,
  LARGE: 1n << 7n,
  /** Bits 9 to 11 are the software's: DEFAULT_SPTE_HOST_WRITABLE, DEFAULT_SPTE_MMU_WRITABLE, SPTE_MMU_PRESENT. */
  HOST_WRITABLE: 1n << 9n,
  MMU_WRITABLE: 1n << 10n,
  MMU_PRESENT: 1n << 11n,
  ADDRESS: 0x000ffffffffff000n,
  NX: 1n << 63n,
} as const;
// biome-ignore-end format: a bit table

/** Bit 51: beyond every MAXPHYADDR this host has, so reserved. */
const MMIO_RESERVED = 1n << 51n;
const MMIO_FRAME = MMIO_RESERVED - 0x1000n;
const GEN_LOW_BITS = 6n;
const GEN_LOW_SHIFT = 3n;
const GEN_HIGH_SHIFT = 52n;
/** Generations an MMIO entry can tell apart: 6 bits in 8:3, 11 in 62:52. */
export const SHADOW_MMIO_GEN_COUNT = 2 ** 17;

/** Questions about an entry, and its parts. */
export const isShadowPresent = (spte: bigint): boolean => (spte & Pt.MMU_PRESENT) !== 0n;
export const isShadowMmio = (spte: bigint): boolean => !isShadowPresent(spte) && (spte & MMIO_RESERVED) !== 0n;
export const isShadowWritable = (spte: bigint): boolean => (spte & Pt.WRITABLE) !== 0n;
export const shadowSpteToPa = (spte: bigint): number => Number(spte & Pt.ADDRESS);

/** A pointer to a table: all rights, the leaf decides. */
export const makeShadowNonleaf = (child: number): bigint =>
  Pt.MMU_PRESENT | Pt.PRESENT | Pt.WRITABLE | Pt.USER | Pt.ACCESSED | BigInt(child);

/** What a leaf entry is made from. */
export interface ShadowLeaf {
  readonly pa: number;
  /** Acc bits the guest's own tables give. */
  readonly access: number;
  /** The memslot may be written. */
  readonly hostWritable: boolean;
  /** KVM lets it be written now: neither dirty logging nor write protection of a page table is in the way. */
  readonly writable: boolean;
}

/** make_spte for a 4-KByte page. */
export function makeShadowLeaf(o: ShadowLeaf): bigint {
  let spte = Pt.MMU_PRESENT | Pt.PRESENT | Pt.ACCESSED | BigInt(o.pa);
  if (!(o.access & Acc.EXEC)) spte |= Pt.NX;
  if (o.access & Acc.USER) spte |= Pt.USER;
  if (o.hostWritable) spte |= Pt.HOST_WRITABLE;
  if (o.access & Acc.WRITE && o.hostWritable) {
    spte |= Pt.MMU_WRITABLE;
    if (o.writable) spte |= Pt.WRITABLE | Pt.DIRTY;
  }
  return spte;
}

/** make_mmio_spte */
export function makeShadowMmio(gfn: number, access: number, generation: number): bigint {
  const gen = BigInt(generation % SHADOW_MMIO_GEN_COUNT);
  return (
    Pt.PRESENT |
    MMIO_RESERVED |
    (access & Acc.WRITE ? Pt.WRITABLE : 0n) |
    ((gen & ((1n << GEN_LOW_BITS) - 1n)) << GEN_LOW_SHIFT) |
    (access & Acc.USER ? 1n << 9n : 0n) |
    ((gen >> GEN_LOW_BITS) << GEN_HIGH_SHIFT) |
    ((BigInt(gfn) << 12n) & MMIO_FRAME)
  );
}

export const shadowMmioGfn = (spte: bigint): number => Number((spte & MMIO_FRAME) >> 12n);
export const shadowMmioAccess = (spte: bigint): number =>
  (spte & Pt.WRITABLE ? Acc.WRITE : 0) | (spte & (1n << 9n) ? Acc.USER : 0);
export const shadowMmioGeneration = (spte: bigint): number =>
  Number(((spte >> GEN_LOW_SHIFT) & 0x3fn) | (((spte >> GEN_HIGH_SHIFT) & 0x7ffn) << GEN_LOW_BITS));

/** One line for a person: "page 0x1234000 W U NX". */
export function describeShadowSpte(spte: bigint, level: number): string {
  if (isShadowMmio(spte)) {
    return `MMIO gfn 0x${shadowMmioGfn(spte).toString(16)} generation ${shadowMmioGeneration(spte)}`;
  }
  if (!isShadowPresent(spte)) return "not present";
  const flags = [
    spte & Pt.WRITABLE ? "W" : "",
    spte & Pt.USER ? "U" : "",
    spte & Pt.ACCESSED ? "A" : "",
    spte & Pt.DIRTY ? "D" : "",
    spte & Pt.NX ? "NX" : "",
    spte & Pt.MMU_WRITABLE ? "MMU_WRITABLE" : "",
  ].filter((flag) => flag !== "");
  return `${level === 1 ? "page" : "table"} 0x${shadowSpteToPa(spte).toString(16)} ${flags.join(" ")}`.trimEnd();
}
