import { describe, expect, test } from "vitest";
import { CpuFault } from "../../../engine/cpu/cpu";
import { Off, Seg } from "../../../engine/cpu/state";
import { cpuid } from "../../../engine/cpu/system/cpuid";
import { MSRS, readMsr, writeMsr } from "../../../engine/cpu/system/msrs";
import { CODE, type Program, program, Sel } from "./program";

/** mov rax, value; then the bytes. */
const withRax = (value: bigint, code: readonly number[]): number[] => {
  const bytes = [0x48, 0xb8];
  for (let i = 0n; i < 8n; i++) bytes.push(Number((value >> (i * 8n)) & 0xffn));
  return [...bytes, ...code];
};
const movCr = (cr: number): number[] => [0x0f, 0x22, 0xc0 | (cr << 3)];

/** #GP(0) of reading or writing an MSR, or its value. */
function attempt(action: () => bigint | undefined): bigint | string | undefined {
  try {
    return action();
  } catch (e) {
    if (e instanceof CpuFault) return `#${e.vector}(${e.error})`;
    throw e;
  }
}
const set = (p: Program, index: number, value: bigint) => attempt(() => void writeMsr(p.cpu, index, value));
const get = (p: Program, index: number) => attempt(() => readMsr(p.cpu, index));

describe("control registers", () => {
  test.each([
    ["CR0 with PG and without PE", 0, 0x8001_0030n],
    ["CR0 with NW and without CD", 0, 0xa001_0031n],
    ["CR0 with bit 32", 0, 0x1_8001_0031n],
    ["CR0 with PG clear in 64-bit mode", 0, 0x31n],
    ["CR3 beyond MAXPHYADDR", 3, 1n << 40n],
    ["CR4 with a reserved bit", 4, 0x20n | (1n << 15n)],
    ["CR4 without PAE in IA-32e mode", 4, 0n],
    ["CR4 with bit 32", 4, 0x1_0000_0020n],
    ["CR4.PCIDE while CR3 11:0 is not 0", 4, 0x2_0020n],
  ])("%s is #GP(0) and changes nothing (2B MOV)", (_what, cr, value) => {
    const p = program("long");
    if (value === 0x2_0020n) p.cpu.state.setU64(Off.CR3, p.cpu.state.u64(Off.CR3) | 0x18n);
    const offset = cr === 0 ? Off.CR0 : cr === 3 ? Off.CR3 : Off.CR4;
    const before = p.cpu.state.u64(offset);
    const end = p.exec(withRax(value, movCr(cr)));
    expect(end.vector).toBe(13);
    expect(end.stack.slice(0, 2)).toEqual([0n, BigInt(CODE + 10)]);
    expect(p.cpu.state.u64(offset)).toBe(before);
  });

  test("CR1, CR5 to CR7 and CR9 on are #UD (2B MOV)", () => {
    const p = program("long");
    expect(p.exec([0x0f, 0x20, 0xc8]).vector).toBe(6);
    expect(p.exec([0x0f, 0x20, 0xe8]).vector).toBe(6);
    expect(p.exec([0x44, 0x0f, 0x20, 0xc8]).vector).toBe(6);
  });

  test("LMSW sets PE and the three flags above it, and never clears PE (2A LMSW)", () => {
    const p = program("protected");
    // mov eax, 0xe; lmsw ax
    expect(p.exec([0xb8, 0xe, 0, 0, 0, 0x0f, 0x01, 0xf0]).vector).toBe("hlt");
    expect(p.cpu.state.lo(Off.CR0)).toBe(0x3f);
  });

  test("IA-32e mode is LME and PG: LMA follows, and needs PAE (3A 9.8.5)", () => {
    const p = program("protected");
    const { state } = p.cpu;
    state.setU64(Off.EFER, 0x100n);
    // mov eax, 0x80000011; mov cr0, eax
    const pg = [0xb8, 0x11, 0, 0, 0x80, 0x0f, 0x22, 0xc0];
    expect(p.exec(pg).vector).toBe(13);
    expect(state.lo(Off.EFER)).toBe(0x100);
    state.setU64(Off.CR4, 0x20n);
    state.setU64(Off.CR3, 0x20000n);
    for (const [at, value] of [
      [0x20000, 0x21007n],
      [0x21000, 0x22007n],
      [0x22000, 0x87n],
    ] as const) {
      p.setU64(at, value);
    }
    // A 16-bit TSS cannot come along.
    state.setSegment(Seg.TR, Sel.TSS, 0x6000n, 0x67, 0x83);
    expect(p.exec(pg).vector).toBe(13);
    state.setSegment(Seg.TR, Sel.TSS, 0x6000n, 0x67, 0x8b);
    expect(p.exec(pg).vector).toBe("hlt");
    expect(state.lo(Off.EFER)).toBe(0x500);
    // Still 32-bit code, in compatibility mode.
    expect(state.segAttributes(Seg.CS) & 0x2000).toBe(0);
  });

  test("PAE paging loads its PDPTEs with CR3, and reserved bits in a present one are #GP(0) (3A 4.4.1)", () => {
    const p = program("protected");
    const { state } = p.cpu;
    state.setU64(Off.CR4, 0x20n);
    p.setU64(0x30000, 0x31001n);
    p.setU64(0x31000, 0x87n);
    state.setU64(Off.CR3, 0x30000n);
    const pg = [0xb8, 0x11, 0, 0, 0x80, 0x0f, 0x22, 0xc0];
    p.setU64(0x30008, 0x32003n);
    expect(p.exec(pg).vector).toBe(13);
    p.setU64(0x30008, 0x32002n);
    expect(p.exec(pg).vector).toBe("hlt");
    // The registers hold, whatever becomes of memory.
    p.setU64(0x30000, 0n);
    p.cpu.mmu.flushEverything();
    expect(p.cpu.mmu.read(0x31000n, 8)).toBe(0x87n | 0x20n);
  });

  test("SMSW and SGDT above CPL 0 are #GP(0) with CR4.UMIP only (3A 2.5)", () => {
    const p = program("protected");
    const smsw = [0x0f, 0x01, 0xe0];
    // Without UMIP the HLT behind it is the fault.
    expect(p.exec(smsw, { cpl: 3 }).stack[1]).toBe(BigInt(CODE + 3));
    p.cpu.state.setU64(Off.CR4, 0x800n);
    expect(p.exec(smsw, { cpl: 3 }).stack[1]).toBe(BigInt(CODE));
  });
});

describe("model-specific registers", () => {
  test("an index that does not exist is #GP(0), for reads and writes (2B RDMSR)", () => {
    const p = program("long");
    expect(get(p, 0x1234_5678)).toBe("#13(0)");
    expect(set(p, 0x1234_5678, 0n)).toBe("#13(0)");
    // mov ecx, 0x12345678; rdmsr
    expect(p.exec([0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32]).vector).toBe(13);
  });

  test("indexes in the table are unique, and every row tells its section and purpose", () => {
    expect(new Set(MSRS.map((m) => m.index)).size).toBe(MSRS.length);
    expect(MSRS.filter((m) => m.help === "" || m.section === "")).toEqual([]);
  });

  test.each([
    ["EFER with a reserved bit", 0xc000_0080, 0xd03n],
    ["EFER.LME under paging", 0xc000_0080, 0xc01n],
    ["LSTAR that is not canonical", 0xc000_0082, 1n << 47n],
    ["FS.base that is not canonical", 0xc000_0100, 1n << 63n],
    ["PAT with memory type 2", 0x277, 0x0007_0402_0007_0406n],
    ["an MTRR of memory type 3", 0x250, 3n],
    ["IA32_MTRRCAP", 0xfe, 0n],
    ["MTRR mask beyond MAXPHYADDR", 0x201, 1n << 40n],
    ["FEATURE_CONTROL with a reserved bit", 0x3a, 1n << 20n],
    ["TSC_AUX above 32 bits", 0xc000_0103, 1n << 32n],
    ["MC0_STATUS other than 0", 0x401, 1n],
    ["XSS", 0xda0, 1n],
  ])("%s is #GP(0) (4 table 2-2)", (_what, index, value) => {
    const p = program("long");
    const before = get(p, index);
    expect(set(p, index, value)).toBe("#13(0)");
    expect(get(p, index)).toBe(before);
  });

  test("FEATURE_CONTROL cannot be written once its lock bit is set (3C 24.7)", () => {
    const p = program("long");
    expect(set(p, 0x3a, 5n)).toBeUndefined();
    expect(set(p, 0x3a, 4n)).toBe("#13(0)");
    expect(get(p, 0x3a)).toBe(5n);
  });

  test("a write to the TSC moves TSC_ADJUST by as much, and the other way round (3B 18.17.3)", () => {
    const p = program("long");
    expect(set(p, 0x10, 1_000_000n)).toBeUndefined();
    expect(get(p, 0x10)).toBe(1_000_000n);
    expect(get(p, 0x3b)).toBe(1_000_000n);
    expect(set(p, 0x3b, 5n)).toBeUndefined();
    expect(get(p, 0x10)).toBe(5n);
  });

  test("LMA of EFER is read-only (3A 2.2.1)", () => {
    const p = program("long");
    expect(set(p, 0xc000_0080, 0x901n)).toBeUndefined();
    expect(get(p, 0xc000_0080)).toBe(0xd01n);
  });

  test("FS and GS base by MSR are those of the segment registers (3A 3.4.4)", () => {
    const p = program("long");
    set(p, 0xc000_0100, 0x1234_5678_9abcn);
    expect(p.cpu.state.segBase(Seg.FS)).toBe(0x1234_5678_9abcn);
  });

  test("IA32_SPEC_CTRL has IBRS, STIBP and SSBD; IA32_PRED_CMD is write-only (4 table 2-2)", () => {
    const p = program("long", "skylake");
    expect(set(p, 0x48, 7n)).toBeUndefined();
    expect(get(p, 0x48)).toBe(7n);
    expect(set(p, 0x48, 8n)).toBe("#13(0)");
    expect(set(p, 0x49, 1n)).toBeUndefined();
    expect(set(p, 0x49, 2n)).toBe("#13(0)");
    expect(get(p, 0x49)).toBe("#13(0)");
    expect(set(p, 0x10a, 0n)).toBe("#13(0)");
    for (const index of [0x48, 0x49, 0x10a]) expect(get(program("long", "core"), index)).toBe("#13(0)");
  });

  test("machine-check banks: CTL keeps what is written, STATUS, ADDR and MISC take 0 only (3B 16.3)", () => {
    const p = program("long", "skylake");
    const banks = Number((get(p, 0x179) as bigint) & 0xffn);
    expect(banks).toBe(10);
    for (let bank = 0; bank < banks; bank++) {
      const ctl = 0x400 + bank * 4;
      expect(set(p, ctl, 0xffff_ffff_ffff_ffffn)).toBeUndefined();
      expect(get(p, ctl)).toBe(0xffff_ffff_ffff_ffffn);
      for (const index of [ctl + 1, ctl + 2, ctl + 3]) {
        expect(set(p, index, 0n)).toBeUndefined();
        expect(set(p, index, 1n)).toBe("#13(0)");
      }
    }
    expect(get(p, 0x400 + banks * 4)).toBe("#13(0)");
    expect(set(p, 0x17a, 4n)).toBeUndefined();
    expect(get(p, 0x17a)).toBe(4n);
    expect(set(p, 0x17a, 0x10n)).toBe("#13(0)");
    expect(set(p, 0x179, 0n)).toBe("#13(0)");
  });

  test("an AMD processor has no TSC_ADJUST and no MISC_ENABLE (APM 2 appendix A)", () => {
    const p = program("long", "opteron");
    expect(get(p, 0x3b)).toBe("#13(0)");
    expect(get(p, 0x1a0)).toBe("#13(0)");
    expect(get(p, 0xc001_0015)).toBe(1n << 24n);
  });
});

describe("CPUID", () => {
  test("OSXSAVE shows CR4.OSXSAVE, the APIC bit the enable of IA32_APIC_BASE (2A CPUID)", () => {
    const p = program("long");
    expect(cpuid(p.cpu, 1, 0).ecx & (1 << 27)).toBe(0);
    p.cpu.state.setU64(Off.CR4, 0x4_0020n);
    expect(cpuid(p.cpu, 1, 0).ecx & (1 << 27)).not.toBe(0);
    expect(cpuid(p.cpu, 1, 0).edx & (1 << 9)).not.toBe(0);
    p.cpu.state.setU64(Off.APIC_BASE, 0xfee0_0100n);
    expect(cpuid(p.cpu, 1, 0).edx & (1 << 9)).toBe(0);
  });

  test("beyond the highest leaf Intel gives the highest basic one, AMD zeros (2A CPUID; APM 3 E.3)", () => {
    const p = program("long");
    expect(cpuid(p.cpu, 0x4000_0000, 0)).toEqual(cpuid(p.cpu, 0x16, 0));
    expect(cpuid(p.cpu, 0x8000_0009, 0)).toEqual(cpuid(p.cpu, 0x16, 0));
    expect(cpuid(program("long", "opteron").cpu, 0x8000_0100, 0)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
  });

  test("the vendor is in EBX, EDX, ECX of leaf 0, the TSC frequency 1 GHz in leaf 15H (2A CPUID)", () => {
    const p = program("long");
    const { ebx, ecx, edx } = cpuid(p.cpu, 0, 0);
    const text = new TextDecoder().decode(Uint32Array.of(ebx, edx, ecx));
    expect(text).toBe("GenuineIntel");
    const tsc = cpuid(p.cpu, 0x15, 0);
    expect((tsc.ecx * tsc.ebx) / tsc.eax).toBe(1_000_000_000);
  });

  test("the size of the XSAVE area follows XCR0 and the features of the model (2A CPUID leaf 0DH)", () => {
    const p = program("long");
    expect(cpuid(p.cpu, 0xd, 0)).toEqual({ eax: 3, ebx: 576, ecx: 576, edx: 0 });
    expect(cpuid(p.cpu, 0xd, 1)).toEqual({ eax: 3, ebx: 576, ecx: 0, edx: 0 });
  });
});
