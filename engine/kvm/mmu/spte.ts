/**
 * Second-level page-table entries as KVM writes them for EPT (arch/x86/kvm/mmu/spte.h, SDM 3C 29.3.2). An entry is either
 * shadow-present (SPTE_MMU_PRESENT), an MMIO entry (a misconfiguration by intent, with the memslot generation in it), or 0.
 */
import type { BitField } from "../../cpu/registers";

// biome-ignore-start format: a bit table
/** Bits of an EPT entry that the processor looks at. */
export const Ept = {
  READABLE: 1n << 0n,
  WRITABLE: 1n << 1n,
  EXECUTABLE: 1n << 2n,
  RWX: 7n,
  MEMTYPE_SHIFT: 3n,
  IPAT: 1n << 6n,
  PAGE_SIZE: 1n << 7n,
  ACCESSED: 1n << 8n,
  DIRTY: 1n << 9n,
} as const;
const MEMTYPE_UC = 0n;
const MEMTYPE_WB = 6n;

/** Bits the processor ignores and KVM uses. */
export const Spte = {
  MMU_PRESENT: 1n << 11n,
  TDP_AD_MASK: 3n << 52n,
  TDP_AD_DISABLED: 1n << 52n,
  TDP_AD_WRPROT_ONLY: 2n << 52n,
  HOST_WRITABLE: 1n << 57n,
  MMU_WRITABLE: 1n << 58n,
  ADDRESS: 0x000ffffffffff000n,
} as const;

/** Writable and executable but not readable: EPT misconfiguration (VMX_EPT_MISCONFIG_WX_VALUE). */
const MMIO_VALUE = 6n;
const MMIO_MASK = 7n;
/** Generation: low 8 bits in 10:3, high 11 bits in 62:52. */
const GEN_LOW_BITS = 8n;
const GEN_LOW_SHIFT = 3n;
const GEN_HIGH_SHIFT = 52n;
/** Generations an MMIO entry can tell apart. */
export const MMIO_SPTE_GEN_COUNT = 2 ** 19;

/** For displays: what the bits of an entry mean. */
const SPTE_BITS: readonly BitField[] = [
  { name: "R", low: 0, width: 1, help: "Readable." },
  { name: "W", low: 1, width: 1, help: "Writable." },
  { name: "X", low: 2, width: 1, help: "Executable." },
  {
    name: "memtype",
    low: 3,
    width: 3,
    help: "EPT memory type.",
    values: { 0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB" },
  },
  { name: "IPAT", low: 6, width: 1, help: "The guest's PAT is ignored." },
  { name: "PS", low: 7, width: 1, help: "Maps a large page." },
  { name: "A", low: 8, width: 1, help: "Accessed." },
  { name: "D", low: 9, width: 1, help: "Dirty." },
  { name: "MMU_PRESENT", low: 11, width: 1, help: "KVM: the entry is a translation, not an MMIO entry." },
  {
    name: "AD",
    low: 52,
    width: 2,
    help: "KVM: use of accessed and dirty bits.",
    values: { 0: "enabled", 1: "disabled", 2: "wrprot only" },
  },
  { name: "HOST_WRITABLE", low: 57, width: 1, help: "KVM: the host mapping is writable." },
  { name: "MMU_WRITABLE", low: 58, width: 1, help: "KVM: the MMU lets the page be writable." },
];
// biome-ignore-end format: a bit table

/** is_shadow_present_pte: a translation, not an MMIO entry. Below it Linux's other questions about an entry. */
export const isShadowPresentPte = (spte: bigint): boolean => (spte & Spte.MMU_PRESENT) !== 0n;
export const isLargePte = (spte: bigint): boolean => (spte & Ept.PAGE_SIZE) !== 0n;
export const isLastSpte = (spte: bigint, level: number): boolean => level === 1 || isLargePte(spte);
export const isMmioSpte = (spte: bigint): boolean => !isShadowPresentPte(spte) && (spte & MMIO_MASK) === MMIO_VALUE;
export const spteToPa = (spte: bigint): number => Number(spte & Spte.ADDRESS);
export const isWritablePte = (spte: bigint): boolean => (spte & Ept.WRITABLE) !== 0n;

/** make_mmio_spte. @param generation of the active memslots */
export function makeMmioSpte(gfn: number, generation: number): bigint {
  const gen = BigInt(generation % MMIO_SPTE_GEN_COUNT);
  return (
    MMIO_VALUE |
    ((gen & ((1n << GEN_LOW_BITS) - 1n)) << GEN_LOW_SHIFT) |
    ((gen >> GEN_LOW_BITS) << GEN_HIGH_SHIFT) |
    ((BigInt(gfn) << 12n) & Spte.ADDRESS)
  );
}

export const mmioSpteGfn = (spte: bigint): number => Number((spte & Spte.ADDRESS) >> 12n);
export const mmioSpteGeneration = (spte: bigint): number =>
  Number(((spte >> GEN_LOW_SHIFT) & 0xffn) | (((spte >> GEN_HIGH_SHIFT) & 0x7ffn) << GEN_LOW_BITS));

/** make_nonleaf_spte: points to the table at `child`. */
export const makeNonleafSpte = (child: number, adDisabled: boolean): bigint =>
  Spte.MMU_PRESENT | BigInt(child) | Ept.RWX | (adDisabled ? Spte.TDP_AD_DISABLED : Ept.ACCESSED);

/** What a leaf entry is made from. */
export interface LeafOptions {
  readonly pa: number;
  readonly level: number;
  readonly writable: boolean;
  readonly hostWritable: boolean;
  readonly adDisabled: boolean;
  readonly executable: boolean;
  /** The page is being logged and not written yet: its dirty flag is clear. */
  readonly clean: boolean;
}

/** make_spte: maps a page with everything the memslot allows. Guest RAM is write-back and the guest's PAT is ignored. */
export function makeSpte(o: LeafOptions): bigint {
  let spte = Spte.MMU_PRESENT | BigInt(o.pa) | Ept.READABLE | (MEMTYPE_WB << Ept.MEMTYPE_SHIFT) | Ept.IPAT;
  if (o.executable) spte |= Ept.EXECUTABLE;
  spte |= o.adDisabled ? Spte.TDP_AD_DISABLED : Ept.ACCESSED;
  if (o.level > 1) spte |= Ept.PAGE_SIZE;
  if (o.hostWritable) spte |= Spte.HOST_WRITABLE;
  if (o.writable) spte |= Ept.WRITABLE | Spte.MMU_WRITABLE | (o.adDisabled || o.clean ? 0n : Ept.DIRTY);
  return spte;
}

/** One line for a person: "MMU_PRESENT R W X WB pa 0x1234000". */
export function describeSpte(spte: bigint, level: number): string {
  if (spte === 0n) return "not present";
  if (isMmioSpte(spte)) {
    return `MMIO gfn 0x${mmioSpteGfn(spte).toString(16)} generation ${mmioSpteGeneration(spte)}`;
  }
  const flags = SPTE_BITS.filter((b) => b.width === 1 && (spte >> BigInt(b.low)) & 1n).map((b) => b.name);
  const what = isLastSpte(spte, level) ? "page" : "table";
  const type = (spte >> Ept.MEMTYPE_SHIFT) & 7n;
  const memtype = isLastSpte(spte, level)
    ? type === MEMTYPE_UC
      ? " UC"
      : type === MEMTYPE_WB
        ? " WB"
        : ` type ${type}`
    : "";
  return `${what} 0x${spteToPa(spte).toString(16)}${memtype} ${flags.join(" ")}`;
}
