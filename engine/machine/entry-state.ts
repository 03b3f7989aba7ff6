/**
 * The state in which a vCPU enters an image: what firmware or a boot loader would have left, set directly. One description
 * for both roads: accel none writes it into the processor, KVM's userspace into KVM_SET_REGS and KVM_SET_SREGS.
 */

import type { Cpu } from "../cpu/cpu";
import { Gpr, Off, Rflags, Seg, SegAttr } from "../cpu/state";

export interface EntrySegment {
  readonly selector: number;
  readonly base: number;
  /** Bytes. */
  readonly limit: number;
  /** As SegAttr. */
  readonly attributes: number;
}

export interface EntryState {
  /** One line for logs and docs: what kind of start this is. */
  readonly how: string;
  /** General registers that are not zero, by Gpr number. */
  readonly gpr: Readonly<Record<number, bigint>>;
  readonly rip: bigint;
  readonly rflags: number;
  readonly cr0: bigint;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly efer: bigint;
  readonly cs: EntrySegment;
  /** SS, DS, ES; FS and GS too. */
  readonly data: EntrySegment;
  readonly tr: EntrySegment;
  readonly gdt: { readonly base: number; readonly limit: number };
  readonly idt: { readonly base: number; readonly limit: number };
}

const A = SegAttr;
const PRESENT_S = A.P | A.S;
const CODE_XR = A.CODE | A.READABLE | A.ACCESSED;
const DATA_RW = A.WRITABLE | A.ACCESSED;

const CR0_PE_ET = 0x11n;
const CR0_ET = 0x10n;
const CR0_CD_NW_ET = 0x60000010n;
const CR0_PG_PE_ET = 0x80000011n;
const CR4_PAE = 0x20n;
const EFER_LME_LMA = 0x500n;

const BUSY_TSS32 = 0xb;
const tssSegment = (selector: number): EntrySegment => ({
  selector,
  base: 0,
  limit: 0xffff,
  attributes: A.P | BUSY_TSS32,
});

/** Real-address mode at cs:ip, as a BIOS enters a boot sector: DL = 0x80, stack at 0:7c00, interrupts off. */
export function realModeEntry(cs: number, ip: number): EntryState {
  const attributes = PRESENT_S | DATA_RW;
  return {
    how: `real mode at ${cs.toString(16)}:${ip.toString(16)}`,
    gpr: { [Gpr.RDX]: 0x80n, [Gpr.RSP]: 0x7c00n },
    rip: BigInt(ip),
    rflags: Rflags.FIXED,
    cr0: CR0_ET,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
    cs: { selector: cs, base: cs * 16, limit: 0xffff, attributes: PRESENT_S | CODE_XR },
    data: { selector: 0, base: 0, limit: 0xffff, attributes },
    tr: tssSegment(0),
    gdt: { base: 0, limit: 0xffff },
    idt: { base: 0, limit: 0x3ff },
  };
}

/** The state behind a reset (SDM 3A table 9-1): the next instruction is at 0xfffffff0. EDX tells the processor's signature. */
export function resetEntry(signature: number): EntryState {
  const attributes = PRESENT_S | DATA_RW;
  return {
    how: "reset vector, real mode at f000:fff0 with the base ffff0000",
    gpr: { [Gpr.RDX]: BigInt(signature) },
    rip: 0xfff0n,
    rflags: Rflags.FIXED,
    cr0: CR0_CD_NW_ET,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
    cs: { selector: 0xf000, base: 0xffff0000, limit: 0xffff, attributes: PRESENT_S | CODE_XR },
    data: { selector: 0, base: 0, limit: 0xffff, attributes },
    tr: tssSegment(0),
    gdt: { base: 0, limit: 0xffff },
    idt: { base: 0, limit: 0xffff },
  };
}

/** Selectors of the boot GDT that `bootGdt` lays out. */
export interface BootSelectors {
  readonly code: number;
  readonly data: number;
}
/** As the Linux boot protocol wants them (__BOOT_CS, __BOOT_DS). */
export const LINUX_SELECTORS: BootSelectors = { code: 0x10, data: 0x18 };
/** Multiboot leaves them open; these are GRUB's. */
export const MULTIBOOT_SELECTORS: BootSelectors = { code: 0x10, data: 0x18 };

/** A GDT with flat code and data at the selectors of `s`; 64-bit code when `long`. */
export function bootGdt(s: BootSelectors, long: boolean): Uint8Array {
  const gdt = new Uint8Array(s.data + 8);
  const view = new DataView(gdt.buffer);
  view.setBigUint64(s.code, long ? 0x00af9b000000ffffn : 0x00cf9b000000ffffn, true);
  view.setBigUint64(s.data, 0x00cf93000000ffffn, true);
  return gdt;
}

interface FlatEntry {
  readonly how: string;
  readonly entry: number | bigint;
  readonly gpr: Readonly<Record<number, bigint>>;
  readonly selectors: BootSelectors;
  readonly gdtBase: number;
}

/** 32-bit protected mode, flat segments, paging and interrupts off. */
export function protectedModeEntry(e: FlatEntry): EntryState {
  const flat = A.G | A.DB | PRESENT_S;
  return {
    how: e.how,
    gpr: e.gpr,
    rip: BigInt(e.entry),
    rflags: Rflags.FIXED,
    cr0: CR0_PE_ET,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
    cs: { selector: e.selectors.code, base: 0, limit: 0xffffffff, attributes: flat | CODE_XR },
    data: { selector: e.selectors.data, base: 0, limit: 0xffffffff, attributes: flat | DATA_RW },
    tr: tssSegment(0),
    gdt: { base: e.gdtBase, limit: e.selectors.data + 7 },
    idt: { base: 0, limit: 0 },
  };
}

/** 64-bit mode with the page tables at `cr3`, interrupts off. */
export function longModeEntry(e: FlatEntry & { readonly cr3: number }): EntryState {
  return {
    ...protectedModeEntry(e),
    cr0: CR0_PG_PE_ET,
    cr3: BigInt(e.cr3),
    cr4: CR4_PAE,
    efer: EFER_LME_LMA,
    cs: {
      selector: e.selectors.code,
      base: 0,
      limit: 0xffffffff,
      attributes: A.G | A.L | PRESENT_S | CODE_XR,
    },
  };
}

/** Puts a processor, fresh from power-up reset, into an entry state. */
export function applyEntryState(cpu: Cpu, e: EntryState): void {
  const s = cpu.state;
  for (let i = 0; i < 16; i++) s.setGpr(i, e.gpr[i] ?? 0n);
  s.rip = e.rip;
  s.rflags = e.rflags;
  s.setU64(Off.CR0, e.cr0);
  s.setU64(Off.CR3, e.cr3);
  s.setU64(Off.CR4, e.cr4);
  s.setU64(Off.EFER, e.efer);
  s.setU32(Off.CPL, 0);
  const set = (seg: number, d: EntrySegment): void =>
    s.setSegment(seg, d.selector, BigInt(d.base), d.limit, d.attributes);
  set(Seg.CS, e.cs);
  for (const seg of [Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS]) set(seg, e.data);
  set(Seg.TR, e.tr);
  s.setU64(Off.GDTR_BASE, BigInt(e.gdt.base));
  s.setU32(Off.GDTR_LIMIT, e.gdt.limit);
  s.setU64(Off.IDTR_BASE, BigInt(e.idt.base));
  s.setU32(Off.IDTR_LIMIT, e.idt.limit);
  cpu.contextChanged();
}
