import { describe, expect, test } from "vitest";
import { Access, CpuFault, type SecondStage } from "../../../engine/cpu/cpu";
import { ExitStatus, Off, Rflags, Seg, SegAttr } from "../../../engine/cpu/state";
import { TLB_BASE, TLB_ENTRIES, TLB_ENTRY_SIZE } from "../../../engine/memory/layout";
import { CODE, DATA, type Program, program, TABLES } from "../system/program";

const PAGE = 0x40000;
const FRAME = 0x41000;
const P = 1n;
const W = 2n;
const U = 4n;
const A = 0x20n;
const D = 0x40n;
const PS = 0x80n;
const NX = 1n << 63n;

/** A fault as text: vector, error code, and CR2 for #PF. */
function outcome(action: () => unknown): string {
  try {
    action();
    return "none";
  } catch (e) {
    if (!(e instanceof CpuFault)) throw e;
    return e.vector === 14 ? `#PF(${e.error}) at 0x${e.extra.toString(16)}` : `#${e.vector}(${e.error})`;
  }
}

/** Privilege and AC for the next accesses. */
function become(p: Program, cpl: 0 | 3, flags = 0): void {
  const { state } = p.cpu;
  state.setSegment(Seg.SS, 0x10, 0n, 0xffff_ffff, 0xc093 | (cpl << SegAttr.DPL_SHIFT));
  state.rflags = Rflags.FIXED | flags;
  p.cpu.contextChanged();
}

function setCr4(p: Program, bits: bigint): void {
  p.cpu.state.setU64(Off.CR4, bits | 0x20n);
  p.cpu.mmu.invalidateAll(true);
  p.cpu.contextChanged();
}

const pte = (p: Program, linear = PAGE): bigint => p.u64(TABLES + 0x3000 + (linear >> 12) * 8);
const read = (p: Program, linear = PAGE) => outcome(() => p.cpu.mmu.read(BigInt(linear), 1));
const write = (p: Program, linear = PAGE) => outcome(() => p.cpu.mmu.write(BigInt(linear), 1, 1n));
const fetch = (p: Program, linear = PAGE) => outcome(() => p.cpu.mmu.translate(BigInt(linear), Access.EXECUTE));

/** The slow path of generated code. */
function fill(p: Program, linear: number | bigint, access: 0 | 1, size: number): number {
  p.cpu.state.setU64(Off.EA, BigInt(linear));
  return p.cpu.mmu.fill(access, size);
}

/** Whether generated code would find a page in the TLB now. */
function cached(p: Program, linear: number, write = false): boolean {
  const at = TLB_BASE + ((linear >>> 12) % TLB_ENTRIES) * TLB_ENTRY_SIZE + (write ? 8 : 0);
  const tag = p.memory.view.getBigUint64(at, true);
  return tag === (BigInt(linear & ~0xfff) | p.cpu.state.u64(Off.TLB_CONTEXT));
}

describe("permissions", () => {
  test("SMEP forbids supervisor fetches from user pages, with the I/D bit (3A 4.6, 4.7)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | U | W | P);
    become(p, 0);
    expect(fetch(p)).toBe("none");
    setCr4(p, 1n << 20n);
    expect(fetch(p)).toBe("#PF(17) at 0x40000");
    become(p, 3);
    expect(fetch(p)).toBe("none");
  });

  test("SMAP forbids supervisor accesses to user pages unless AC is set; implicit ones always (3A 4.6.1)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | U | W | P);
    setCr4(p, 1n << 21n);
    become(p, 0);
    expect(read(p)).toBe("#PF(1) at 0x40000");
    expect(write(p)).toBe("#PF(3) at 0x40000");
    become(p, 0, Rflags.AC);
    expect(read(p)).toBe("none");
    expect(outcome(() => p.cpu.mmu.read(BigInt(PAGE), 1, true))).toBe("#PF(1) at 0x40000");
    become(p, 3);
    expect(read(p)).toBe("none");
  });

  test("AC switches between TLB contexts, so that a page allowed with AC is not found without (3A 4.6.1)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | U | W | P);
    setCr4(p, 1n << 21n);
    become(p, 0, Rflags.AC);
    expect(fill(p, PAGE, 0, 4)).toBe(p.memory.hostOffset(FRAME));
    expect(cached(p, PAGE)).toBe(true);
    become(p, 0);
    expect(cached(p, PAGE)).toBe(false);
    expect(fill(p, PAGE, 0, 4)).toBe(-1);
    expect(p.cpu.state.u32(Off.STATUS)).toBe(ExitStatus.FAULT);
  });

  test("a reserved bit is #PF with P and RSVD, whatever the rights (3A 4.7)", () => {
    const p = program("long");
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | P | (1n << 40n));
    expect(read(p)).toBe("#PF(9) at 0x40000");
    p.setPte(PAGE, BigInt(FRAME) | (1n << 40n));
    expect(read(p)).toBe("#PF(0) at 0x40000");
  });

  test("XD is reserved while EFER.NXE is clear (3A 4.5.4)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | P | NX);
    become(p, 0);
    expect(fetch(p)).toBe("#PF(17) at 0x40000");
    p.cpu.state.setU64(Off.EFER, 0x501n);
    p.cpu.contextChanged();
    expect(fetch(p)).toBe("#PF(9) at 0x40000");
    expect(read(p)).toBe("#PF(9) at 0x40000");
  });

  test("protection keys deny user pages with the PK bit; fetches are exempt (3A 4.6.2)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | U | W | P | (3n << 59n));
    setCr4(p, 1n << 22n);
    become(p, 3);
    // Key 3: write-disable, then access-disable.
    p.cpu.state.setU32(Off.PKRU, 2 << 6);
    p.cpu.contextChanged();
    expect(read(p)).toBe("none");
    expect(write(p)).toBe("#PF(39) at 0x40000");
    p.cpu.state.setU32(Off.PKRU, 1 << 6);
    p.cpu.contextChanged();
    expect(read(p)).toBe("#PF(37) at 0x40000");
    expect(fetch(p)).toBe("none");
  });

  test("an address that is not canonical is #GP(0), and no page fault (1 3.3.7.1)", () => {
    const p = program("long");
    expect(outcome(() => p.cpu.mmu.read(0x8000_0000_0000n, 1))).toBe("#13(0)");
    expect(outcome(() => p.cpu.mmu.read(0xffff_8000_0000_0000n, 1))).toBe("#PF(0) at 0xffff800000000000");
  });
});

describe("accessed and dirty flags (3A 4.8)", () => {
  test("a read sets A on every level, a write D on the last", () => {
    const p = program("long");
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    p.setU64(TABLES, p.u64(TABLES) & ~A);
    read(p);
    expect(pte(p) & (A | D)).toBe(A);
    expect(p.u64(TABLES) & A).toBe(A);
    write(p);
    expect(pte(p) & (A | D)).toBe(A | D);
  });

  test("a page that is clean has no write tag, so that its first store sets D", () => {
    const p = program("long");
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    fill(p, PAGE, 0, 4);
    expect([cached(p, PAGE), cached(p, PAGE, true)]).toEqual([true, false]);
    fill(p, PAGE, 1, 4);
    expect(cached(p, PAGE, true)).toBe(true);
    expect(pte(p) & D).toBe(D);
  });

  test("an access that is refused sets neither flag in the last entry", () => {
    const p = program("long");
    become(p, 3);
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    expect(write(p)).toBe("#PF(7) at 0x40000");
    expect(pte(p) & (A | D)).toBe(0n);
  });
});

describe("page sizes", () => {
  test("2-MByte and 1-GByte pages translate, and reserve the address bits below their size (3A 4.5.4)", () => {
    const p = program("long");
    become(p, 0);
    p.setU64(DATA, 0x1234_5678n);
    p.setU64(TABLES + 0x2000 + 100 * 8, P | W | PS);
    expect(p.cpu.mmu.read(100n * 0x20_0000n + BigInt(DATA), 8)).toBe(0x1234_5678n);
    p.setU64(TABLES + 0x2000 + 101 * 8, P | W | PS | (1n << 13n));
    expect(read(p, 101 * 0x20_0000)).toBe("#PF(9) at 0xca00000");
    p.setU64(TABLES + 0x1000 + 3 * 8, P | W | PS);
    expect(p.cpu.mmu.read(3n * 0x4000_0000n + BigInt(DATA), 8)).toBe(0x1234_5678n);
  });

  test("the PS bit is reserved in a PML4 entry (3A table 4-15)", () => {
    const p = program("long");
    become(p, 0);
    p.setU64(TABLES + 8, P | W | PS);
    expect(outcome(() => p.cpu.mmu.read(1n << 39n, 1))).toBe("#PF(9) at 0x8000000000");
  });

  test("32-bit paging: PSE-36 gives 4-MByte pages address bits 39:32, and reserves bit 21 (3A table 4-4)", () => {
    const p = program("protected");
    const { state } = p.cpu;
    state.setU64(Off.CR4, 0x10n);
    state.setU64(Off.CR3, 0x30000n);
    state.setU64(Off.CR0, 0x8000_0011n);
    p.cpu.contextChanged();
    p.setU32(0x30000, 0x83);
    p.setU32(0x30004, 0x83 | (5 << 13));
    p.setU32(0x30008, 0x83 | (1 << 21));
    expect(p.cpu.mmu.translate(0x40_1234n, Access.READ)).toBe(5 * 2 ** 32 + 0x1234);
    expect(read(p, 0x80_0000)).toBe("#PF(9) at 0x800000");
  });

  test("32-bit paging without CR4.PSE ignores the PS bit (3A 4.3)", () => {
    const p = program("protected");
    const { state } = p.cpu;
    state.setU64(Off.CR3, 0x30000n);
    state.setU64(Off.CR0, 0x8000_0011n);
    p.cpu.contextChanged();
    p.setU32(0x30000, 0x31083);
    p.setU32(0x31000 + 0x40 * 4, FRAME | 3);
    expect(p.cpu.mmu.translate(BigInt(PAGE + 5), Access.READ)).toBe(FRAME + 5);
  });
});

describe("invalidation (3A 4.10.4)", () => {
  test("a translation may stay until INVLPG, which drops it", () => {
    const p = program("long");
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    fill(p, PAGE, 1, 4);
    p.setPte(PAGE, 0n);
    expect(cached(p, PAGE)).toBe(true);
    p.cpu.mmu.invalidatePage(BigInt(PAGE));
    expect(cached(p, PAGE)).toBe(false);
    expect(fill(p, PAGE, 0, 4)).toBe(-1);
  });

  test("INVLPG of any address in a large page drops all its pieces", () => {
    const p = program("long");
    become(p, 0);
    fill(p, 0x20_1000, 0, 4);
    fill(p, 0x3f_f000, 0, 4);
    fill(p, 0x40_0000, 0, 4);
    p.cpu.mmu.invalidatePage(0x30_0000n);
    expect([0x20_1000, 0x3f_f000, 0x40_0000].map((a) => cached(p, a))).toEqual([false, false, true]);
  });

  test("a write of CR3 drops the translations, also of the same value", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    // mov eax, [PAGE]; then the entry points elsewhere; mov rax, cr3; mov cr3, rax; mov eax, [PAGE]
    p.setU32(FRAME, 0x1111);
    p.setU32(FRAME + 0x1000, 0x2222);
    const load = [0x8b, 0x04, 0x25, 0, 0, 4, 0];
    const entry = TABLES + 0x3000 + (PAGE >> 12) * 8;
    // mov byte [entry + 1], 0x20: the next frame
    const change = [0xc6, 0x04, 0x25, (entry + 1) & 0xff, (entry >> 8) & 0xff, entry >> 16, 0, 0x20];
    const reload = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
    p.exec([...load, 0x89, 0xc3, ...change, ...load, 0x89, 0xc1, ...reload, ...load]);
    expect([3, 1, 0].map((r) => p.gpr(r))).toEqual([0x1111n, 0x1111n, 0x2222n]);
  });

  test.each([
    { name: "a global page", pte: 1n << 8n, cr4: 1n << 7n, kept: true },
    { name: "a global page without CR4.PGE", pte: 1n << 8n, cr4: 0n, kept: false },
    { name: "another page", pte: 0n, cr4: 1n << 7n, kept: false },
  ])("$name outlasts a write of CR3: $kept; INVLPG drops it (3A 4.10.2.4)", ({ pte, cr4, kept }) => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | pte | W | P);
    setCr4(p, cr4);
    p.setU32(FRAME, 0x1111);
    p.setU32(FRAME + 0x1000, 0x2222);
    const load = [0x8b, 0x04, 0x25, 0, 0, 4, 0];
    const entry = TABLES + 0x3000 + (PAGE >> 12) * 8;
    const high = 0x20 | Number(pte >> 8n);
    const change = [0xc6, 0x04, 0x25, (entry + 1) & 0xff, (entry >> 8) & 0xff, entry >> 16, 0, high];
    const reload = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
    const invlpg = [0x0f, 0x01, 0x3c, 0x25, 0, 0, 4, 0];
    p.exec([...load, ...change, ...reload, ...reload, ...load, 0x89, 0xc1, ...invlpg, ...load]);
    expect([1, 0].map((r) => p.gpr(r))).toEqual([kept ? 0x1111n : 0x2222n, 0x2222n]);
  });

  test("with PCIDs the no-flush bit of CR3 keeps what a PCID has, without it that PCID is emptied (3A 4.10.4.1)", () => {
    const p = program("long");
    setCr4(p, 1n << 17n);
    become(p, 0);
    const cr3 = (value: bigint) => {
      p.cpu.state.setU64(Off.CR3, value & ~NX);
      if (!(value & NX)) p.cpu.mmu.invalidatePcid(Number(value & 0xfffn));
      p.cpu.contextChanged();
    };
    cr3(BigInt(TABLES) | 1n);
    fill(p, PAGE, 0, 4);
    cr3(BigInt(TABLES) | 2n);
    expect(cached(p, PAGE)).toBe(false);
    cr3(BigInt(TABLES) | 1n | NX);
    expect(cached(p, PAGE)).toBe(true);
    cr3(BigInt(TABLES) | 1n);
    expect(cached(p, PAGE)).toBe(false);
  });

  test("tags are not mistaken for older ones when they run out", () => {
    const p = program("long");
    become(p, 0);
    fill(p, PAGE, 0, 4);
    for (let i = 0; i < 5000; i++) {
      p.cpu.mmu.invalidatePcid(0);
      p.cpu.mmu.updateContext();
      expect(cached(p, PAGE)).toBe(false);
    }
  });

  test("CR0.WP is part of the context: a page made writable without it is not with it (3A 4.6.1)", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | P);
    p.cpu.state.setU64(Off.CR0, 0x8000_0031n);
    become(p, 0);
    fill(p, PAGE, 1, 4);
    expect(cached(p, PAGE, true)).toBe(true);
    p.cpu.state.setU64(Off.CR0, 0x8001_0031n);
    p.cpu.contextChanged();
    expect(cached(p, PAGE, true)).toBe(false);
    expect(write(p)).toBe("#PF(3) at 0x40000");
  });
});

describe("accesses", () => {
  test("an access across two pages faults before it touches either, with CR2 in the second (3A 4.7)", () => {
    const p = program("long");
    become(p, 0);
    p.setPte(PAGE + 0x1000, 0n);
    p.setU32(PAGE + 0xffc, 0x55aa);
    expect(outcome(() => p.cpu.mmu.write(BigInt(PAGE + 0xffe), 4, 0n))).toBe("#PF(2) at 0x41000");
    expect(p.u32(PAGE + 0xffc)).toBe(0x55aa);
    expect(fill(p, PAGE + 0xffe, 1, 4)).toBe(-1);
    expect(p.cpu.state.u32(Off.STATUS)).toBe(ExitStatus.SLOW);
  });

  test("stores to ROM are dropped, and its pages have no write tag", () => {
    const p = program("long");
    p.memory.add("rom", "rom", 0x200_0000, 4096);
    p.setU64(TABLES + 0x2000 + 16 * 8, 0x200_0000n | PS | W | P);
    become(p, 0);
    p.cpu.mmu.write(0x200_0000n, 4, 0x1234n);
    expect(p.u32(0x200_0000)).toBe(0);
    fill(p, 0x200_0000, 0, 4);
    expect([cached(p, 0x200_0000), cached(p, 0x200_0000, true)]).toEqual([true, false]);
    expect(fill(p, 0x200_0000, 1, 4)).toBe(-1);
  });

  test("the local APIC's page is never memory, even where RAM lies behind it (3A 10.4.1)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.APIC_BASE, BigInt(FRAME) | 0x900n);
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    expect(fill(p, PAGE, 0, 4)).toBe(-1);
    expect(p.cpu.state.u32(Off.STATUS)).toBe(ExitStatus.SLOW);
    expect(p.cpu.mmu.read(BigInt(PAGE), 4)).toBe(0xffff_ffffn);
  });

  test("misaligned user accesses are #AC(0) with CR0.AM and AC, and such contexts have no TLB entries (3A 6.15)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.CR0, 0x8005_0031n);
    become(p, 3, Rflags.AC);
    expect(outcome(() => p.cpu.mmu.read(BigInt(PAGE + 2), 4))).toBe("#17(0)");
    expect(outcome(() => p.cpu.mmu.read(BigInt(PAGE + 4), 4))).toBe("none");
    expect(fill(p, PAGE + 2, 0, 4)).toBe(-1);
    expect(p.cpu.state.u32(Off.FAULT_VECTOR)).toBe(17);
    expect(fill(p, PAGE + 4, 0, 4)).toBe(p.memory.hostOffset(PAGE + 4));
    expect(cached(p, PAGE)).toBe(false);
    become(p, 0, Rflags.AC);
    expect(outcome(() => p.cpu.mmu.read(BigInt(PAGE + 2), 4))).toBe("none");
  });

  test("a store into decoded code makes it decode again (3A 11.6)", () => {
    const p = program("long");
    // mov byte [rip + 0], 0x43: turns inc eax (ff c0) into inc r.. the ModRM byte behind it; run twice by a loop
    // mov ecx, 2; L: inc eax (ff c0); mov byte [CODE+6], 0xc3 (inc ebx); loop L
    const code = [0xb9, 2, 0, 0, 0, 0xff, 0xc0, 0xc6, 0x04, 0x25, 6, 0, 1, 0, 0xc3, 0xe2, 0xf4];
    p.cpu.state.setGpr(0, 0n);
    p.cpu.state.setGpr(3, 0n);
    p.exec(code);
    expect([p.gpr(0), p.gpr(3)]).toEqual([1n, 1n]);
    expect(p.u32(CODE + 5) & 0xffff).toBe(0xc3ff);
  });

  test("probing a translation changes nothing and never faults", () => {
    const p = program("long");
    p.setPte(PAGE, BigInt(FRAME) | P);
    become(p, 3);
    expect(p.cpu.mmu.probe(BigInt(PAGE + 7))).toBe(FRAME + 7);
    expect(pte(p) & A).toBe(0n);
    p.setPte(PAGE, 0n);
    expect(p.cpu.mmu.probe(BigInt(PAGE))).toBe(-1);
    expect(p.cpu.mmu.probe(0x8000_0000_0000n)).toBe(-1);
  });
});

describe("second stage (3C 29.3.3)", () => {
  /** Guest-physical addresses are shifted by one frame; what was asked for is noted. */
  function shifted(): SecondStage & { log: string[]; permissions: number } {
    const log: string[] = [];
    return {
      tag: 0x1000n,
      linearRights: 0,
      permissions: 7,
      pageSize: 4096,
      log,
      translate: (gpa, access, _linear, walk) => {
        log.push(`${walk ? "walk " : ""}${access === Access.WRITE ? "write" : "read"} 0x${gpa.toString(16)}`);
        return gpa;
      },
      probe: (gpa) => gpa,
    };
  }

  test("every entry is read through it, and setting A or D is a write there", () => {
    const p = program("long");
    become(p, 0);
    read(p, 0);
    const stage = shifted();
    p.cpu.secondStage = stage;
    p.cpu.contextChanged();
    p.setPte(PAGE, BigInt(FRAME) | W | P);
    write(p);
    const entry = (TABLES + 0x3000 + (PAGE >> 12) * 8).toString(16);
    expect(stage.log).toEqual([
      "walk read 0x20000",
      "walk read 0x21000",
      "walk read 0x22000",
      `walk read 0x${entry}`,
      `walk write 0x${entry}`,
      `write 0x${FRAME.toString(16)}`,
    ]);
  });

  test("a TLB entry allows no more than both stages do", () => {
    const p = program("long");
    const stage = shifted();
    stage.permissions = 1;
    p.cpu.secondStage = stage;
    become(p, 0);
    p.setPte(PAGE, BigInt(FRAME) | W | D | P);
    fill(p, PAGE, 0, 4);
    expect([cached(p, PAGE), cached(p, PAGE, true)]).toEqual([true, false]);
  });

  test("translations belong to the structure they were made through, and INVEPT drops those of one", () => {
    const p = program("long");
    become(p, 0);
    p.cpu.secondStage = shifted();
    p.cpu.contextChanged();
    fill(p, PAGE, 0, 4);
    p.cpu.secondStage = null;
    p.cpu.contextChanged();
    expect(cached(p, PAGE)).toBe(false);
    p.cpu.secondStage = shifted();
    p.cpu.contextChanged();
    expect(cached(p, PAGE)).toBe(true);
    p.cpu.mmu.invalidateTagged({ eptp: 0x1000n });
    expect(cached(p, PAGE)).toBe(false);
  });
});
