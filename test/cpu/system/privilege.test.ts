import { describe, expect, test } from "vitest";
import { CodeMode, Gpr, Off, Seg } from "../../../engine/cpu/state";
import { CODE, DATA, GDT, program, Sel, STACK_TOP, TSS, USER_STACK_TOP } from "./program";

const bytes = (value: bigint, size: number): number[] => {
  const out: number[] = [];
  for (let i = 0; i < size; i++) out.push(Number((value >> BigInt(i * 8)) & 0xffn));
  return out;
};

describe("segment checks of memory accesses (3A 5.3 to 5.5)", () => {
  /** Loads a descriptor into DS, then runs code. */
  function withData(descriptor: bigint, code: readonly number[]) {
    const p = program("protected");
    p.setU64(GDT + 0x40, descriptor);
    // mov eax, 0x40; mov ds, eax
    return p.exec([0xb8, 0x40, 0, 0, 0, 0x8e, 0xd8, ...code]);
  }
  const AT = CODE + 7;
  const readAt = (offset: number): number[] => [0xa1, ...bytes(BigInt(offset), 4)];
  const writeAt = (offset: number): number[] => [0xa3, ...bytes(BigInt(offset), 4)];
  const LIMIT_FFF = 0x0040930000000fffn;
  const EXPAND_DOWN = 0x0040970000000fffn;

  test("the last byte of an access must lie within the limit", () => {
    expect(withData(LIMIT_FFF, readAt(0xffc)).vector).toBe("hlt");
    const end = withData(LIMIT_FFF, readAt(0xffd));
    expect(end.vector).toBe(13);
    expect(end.stack.slice(0, 2)).toEqual([0n, BigInt(AT)]);
  });

  test("an expand-down segment begins behind its limit", () => {
    expect(withData(EXPAND_DOWN, readAt(0x1000)).vector).toBe("hlt");
    expect(withData(EXPAND_DOWN, readAt(0xfff)).vector).toBe(13);
  });

  test("a read-only segment cannot be written, an execute-only one cannot be loaded into DS", () => {
    expect(withData(0x00cf91000000ffffn, writeAt(DATA)).vector).toBe(13);
    const end = withData(0x00cf99000000ffffn, []);
    expect(end.vector).toBe(13);
    expect(end.stack[0]).toBe(0x40n);
  });

  test("a readable code segment can be read through CS but not written", () => {
    const p = program("protected");
    // cs: mov eax, [DATA]; cs: mov [DATA], eax
    expect(p.exec([0x2e, ...readAt(DATA)]).vector).toBe("hlt");
    expect(p.exec([0x2e, ...writeAt(DATA)]).vector).toBe(13);
  });

  test("a null DS can be loaded and not used", () => {
    const p = program("protected");
    const end = p.exec([0x31, 0xc0, 0x8e, 0xd8, ...readAt(DATA)]);
    expect(end.vector).toBe(13);
    expect(end.stack.slice(0, 2)).toEqual([0n, BigInt(CODE + 4)]);
  });

  test("limit violations of the stack segment are #SS(0)", () => {
    const p = program("protected");
    p.setU64(GDT + 0x40, LIMIT_FFF);
    // The handler's frame still fits below ESP: mov eax, 0x40; mov ss, eax; mov esp, 0xff0; mov ebp, 0x1000; mov eax, [ebp]
    const code = [0xb8, 0x40, 0, 0, 0, 0x8e, 0xd0, 0xbc, 0xf0, 0xf, 0, 0, 0xbd, 0, 0x10, 0, 0, 0x8b, 0x45, 0];
    const end = p.exec(code);
    expect(end.vector).toBe(12);
    expect(end.stack.slice(0, 2)).toEqual([0n, BigInt(CODE + 17)]);
  });

  test("in real-address mode a word at offset 0xffff is #GP (3B 20.1.1)", () => {
    const p = program("real");
    expect(p.exec([0xa1, 0xfe, 0xff]).vector).toBe("hlt");
    expect(p.exec([0xa1, 0xff, 0xff]).vector).toBe(13);
  });

  test("64-bit mode ignores limits and checks canonicality: #SS by the stack, #GP otherwise (1 3.3.7.1)", () => {
    const p = program("long");
    // mov rbp, 0x800000000000; mov eax, [rbp]
    const load = [0x48, 0xbd, ...bytes(0x8000_0000_0000n, 8)];
    expect(p.exec([...load, 0x8b, 0x45, 0]).vector).toBe(12);
    expect(p.exec([...load, 0x3e, 0x8b, 0x45, 0]).vector).toBe(12);
    // mov eax, [rbp+rbp] has RBP as base; by RAX: mov rax, rbp; mov eax, [rax]
    expect(p.exec([...load, 0x48, 0x89, 0xe8, 0x8b, 0x00]).vector).toBe(13);
  });
});

describe("system calls", () => {
  test("SYSCALL saves RIP and RFLAGS, masks flags, loads flat segments by STAR (3A 5.8.8)", () => {
    const p = program("long");
    const { state } = p.cpu;
    state.setU64(Off.STAR, (0x18n << 32n) | (0x33n << 48n));
    state.setU64(Off.LSTAR, 0x4500n);
    state.setU64(Off.FMASK, 0x200n);
    // Stub 0x50 is HLT.
    const end = p.exec([0x0f, 0x05], { cpl: 3, flags: 0x201 });
    expect(end.vector).toBe(0x50);
    expect(state.gpr(Gpr.RCX)).toBe(BigInt(CODE + 2));
    expect(state.gpr(11)).toBe(0x203n);
    expect(state.rflags).toBe(0x3);
    expect([state.segSelector(Seg.CS), state.segSelector(Seg.SS), state.cpl]).toEqual([0x18, 0x20, 0]);
    expect(state.codeMode).toBe(CodeMode.LONG64);
    expect(state.gpr(Gpr.RSP)).toBe(BigInt(USER_STACK_TOP));
  });

  test("SYSRET to 64-bit code takes RIP from RCX, flags from R11, CS from STAR 63:48 + 16 (2B SYSRET)", () => {
    const p = program("long");
    const { state } = p.cpu;
    state.setU64(Off.STAR, 0x33n << 48n);
    // mov ecx, DATA; mov r11d, 0x30287; sysretq: VM and RF stay clear
    p.memory.write(DATA, Uint8Array.of(0xf4));
    const code = [0xb9, ...bytes(BigInt(DATA), 4), 0x41, 0xbb, 0x87, 2, 3, 0, 0x48, 0x0f, 0x07];
    const end = p.exec(code);
    // HLT at CPL 3.
    expect(end.vector).toBe(13);
    expect(end.stack.slice(1, 4)).toEqual([BigInt(DATA), 0x43n, 0x10287n]);
    expect(end.stack[5]).toBe(0x3bn);
  });

  test("SYSRET with RCX that is not canonical is #GP(0) at CPL 0 (2B SYSRET)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.STAR, 0x33n << 48n);
    const end = p.exec([0x48, 0xb9, ...bytes(0x8000_0000_0000n, 8), 0x48, 0x0f, 0x07]);
    expect(end.vector).toBe(13);
    expect(end.stack[2]).toBe(0x18n);
  });

  test("SYSCALL without EFER.SCE, and on Intel outside 64-bit mode, is #UD (2B SYSCALL)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.EFER, 0xd00n);
    expect(p.exec([0x0f, 0x05]).vector).toBe(6);
    const q = program("protected");
    q.cpu.state.setU64(Off.EFER, 1n);
    expect(q.exec([0x0f, 0x05]).vector).toBe(6);
  });

  test("SYSENTER loads CS, SS, ESP, EIP from its MSRs; with a null CS it is #GP(0) (3A 5.8.7)", () => {
    const p = program("protected");
    const { state } = p.cpu;
    expect(p.exec([0x0f, 0x34], { cpl: 3 }).vector).toBe(13);
    state.setU64(Off.SYSENTER_CS, 8n);
    state.setU64(Off.SYSENTER_ESP, BigInt(STACK_TOP));
    state.setU64(Off.SYSENTER_EIP, 0x4510n);
    expect(p.exec([0x0f, 0x34], { cpl: 3, flags: 0x200 }).vector).toBe(0x51);
    expect([state.segSelector(Seg.CS), state.segSelector(Seg.SS), state.cpl]).toEqual([8, 0x10, 0]);
    expect(state.rflags & 0x200).toBe(0);
  });

  test("SWAPGS exchanges GS.base with KERNEL_GS_BASE at CPL 0 (2B SWAPGS)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.KERNEL_GS_BASE, 0x1234n);
    expect(p.exec([0x0f, 0x01, 0xf8]).vector).toBe("hlt");
    expect(p.cpu.state.segBase(Seg.GS)).toBe(0x1234n);
    expect(p.cpu.state.u64(Off.KERNEL_GS_BASE)).toBe(0n);
    expect(p.exec([0x0f, 0x01, 0xf8], { cpl: 3 }).vector).toBe(13);
  });
});

describe("far transfers in IA-32e mode", () => {
  test("a far jump leads to compatibility mode and back (3A 9.8.5.3)", () => {
    const p = program("long");
    // jmp far [rip+0] ; pointer to CODE+0x40, selector 8
    const code = [0xff, 0x2d, 0, 0, 0, 0, ...bytes(BigInt(CODE + 0x40), 4), ...bytes(8n, 2)];
    while (code.length < 0x40) code.push(0x90);
    // 32-bit: dec eax (48 would be REX in 64-bit code); jmp far 0x18:CODE+0x60
    code.push(0x31, 0xc0, 0x48, 0xea, ...bytes(BigInt(CODE + 0x60), 4), ...bytes(0x18n, 2));
    while (code.length < 0x60) code.push(0x90);
    // 64-bit: mov rbx, rax
    code.push(0x48, 0x89, 0xc3);
    expect(p.exec(code).vector).toBe("hlt");
    expect(p.cpu.state.codeMode).toBe(CodeMode.LONG64);
    expect(p.gpr(Gpr.RBX)).toBe(0xffff_ffffn);
  });

  test("IRETQ pops SS:RSP even to the same level, and may load a null SS below CPL 3 (2A IRET)", () => {
    const p = program("long");
    // push 0; push 0x8000; pushfq; push 0x18; push CODE+..; iretq
    const code = [
      0x6a,
      0,
      0x68,
      ...bytes(0x8000n, 4),
      0x9c,
      0x6a,
      0x18,
      0x68,
      ...bytes(BigInt(CODE + 17), 4),
      0x48,
      0xcf,
    ];
    expect(code.length).toBe(17);
    expect(p.exec(code).vector).toBe("hlt");
    expect(p.gpr(Gpr.RSP)).toBe(0x8000n);
    expect(p.cpu.state.segSelector(Seg.SS)).toBe(0);
    expect(p.cpu.state.cpl).toBe(0);
  });

  test("IRET with NT set is #GP(0) in IA-32e mode (3A 8.7)", () => {
    const p = program("long");
    expect(p.exec([0x48, 0xcf], { flags: 0x4000 }).vector).toBe(13);
  });

  test("a selector beyond the GDT is #GP with the selector (3A 5.2)", () => {
    const p = program("long");
    const end = p.exec([0xff, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0xf8, 0xff]);
    expect(end.vector).toBe(13);
    expect(end.stack[0]).toBe(0xfff8n);
  });
});

describe("selectors", () => {
  test("ARPL that has nothing to raise only reads its operand (2A ARPL)", () => {
    const p = program("protected");
    p.setU64(GDT + 0x40, 0x00cf91000000ffffn);
    // mov eax, 0x40; mov ds, eax (read-only); xor ecx, ecx; arpl [DATA], cx
    const arpl = [0x63, 0x0d, ...bytes(BigInt(DATA), 4)];
    const load = [0xb8, 0x40, 0, 0, 0, 0x8e, 0xd8];
    expect(p.exec([...load, 0x31, 0xc9, ...arpl]).vector).toBe("hlt");
    // With RPL 3 in CX it writes.
    expect(p.exec([...load, 0x6a, 3, 0x59, ...arpl]).vector).toBe(13);
  });
});

describe("virtual interrupts (3B 20.3, 20.4)", () => {
  test("with CR4.PVI, CLI and STI at CPL 3 above IOPL work on VIF; STI with VIP is #GP(0)", () => {
    const p = program("protected");
    expect(p.exec([0xfb], { cpl: 3 }).stack[1]).toBe(BigInt(CODE));
    p.cpu.state.setU64(Off.CR4, 2n);
    const end = p.exec([0xfb], { cpl: 3 });
    // The HLT behind it is the fault.
    expect(end.stack[1]).toBe(BigInt(CODE + 1));
    expect(Number(end.stack[3]) & 0x80200).toBe(0x80000);
    expect(p.exec([0xfb], { cpl: 3, flags: 0x10_0000 }).stack[1]).toBe(BigInt(CODE));
  });
});

describe("ports", () => {
  test("at CPL above IOPL every port of the access must be clear in the TSS's I/O map (1 19.5.2)", () => {
    const p = program("protected");
    p.setU32(TSS + 0x64, 0x68 << 16);
    p.cpu.state.setSegment(Seg.TR, Sel.TSS, BigInt(TSS), 0x68 + 32, 0x8b);
    for (let i = 0; i < 32; i++) p.memory.write(TSS + 0x68 + i, Uint8Array.of(0xff));
    p.memory.write(TSS + 0x68 + 0x10, Uint8Array.of(0x7f));
    p.memory.write(TSS + 0x68 + 0x11, Uint8Array.of(0xfe));
    // in al, 0x87; in ax, 0x87 (across the byte of the map); in eax, 0x87
    expect(p.exec([0xe4, 0x87], { cpl: 3 }).stack[1]).toBe(BigInt(CODE + 2));
    expect(p.exec([0x66, 0xe5, 0x87], { cpl: 3 }).stack[1]).toBe(BigInt(CODE + 3));
    expect(p.exec([0xe5, 0x87], { cpl: 3 }).stack[1]).toBe(BigInt(CODE));
    // A map beyond the limit forbids everything.
    p.cpu.state.setSegment(Seg.TR, Sel.TSS, BigInt(TSS), 0x67, 0x8b);
    expect(p.exec([0xe4, 0x87], { cpl: 3 }).stack[1]).toBe(BigInt(CODE));
  });
});

describe("stack frames", () => {
  test("ENTER with a level copies the outer frame pointers (2A ENTER)", () => {
    const p = program("protected");
    // mov ebp, DATA; then ENTER 16, 3
    p.setU32(DATA - 4, 0x1111);
    p.setU32(DATA - 8, 0x2222);
    expect(p.exec([0xbd, ...bytes(BigInt(DATA), 4), 0xc8, 16, 0, 3]).vector).toBe("hlt");
    expect(p.gpr(Gpr.RBP)).toBe(BigInt(STACK_TOP - 4));
    expect([0, 4, 8, 12].map((n) => p.u32(STACK_TOP - 4 - n))).toEqual([DATA, 0x1111, 0x2222, STACK_TOP - 4]);
    expect(p.gpr(Gpr.RSP)).toBe(BigInt(STACK_TOP - 16 - 16));
  });

  test("POP SS uses the width of the old stack for its own increment (2B POP)", () => {
    const p = program("protected");
    p.setU64(GDT + 0x40, 0x000093000000ffffn);
    // push 0x40; pop ss
    expect(p.exec([0x6a, 0x40, 0x17]).vector).toBe("hlt");
    expect(p.gpr(Gpr.RSP)).toBe(BigInt(STACK_TOP));
  });
});
