import { describe, expect, test } from "vitest";
import { CODE, DATA, EAGER, type LongModeOptions, longMode, SMALL, SMALL_TABLE } from "../long-mode";

const RAX = 0;
const RCX = 1;

const tiers: readonly [string, LongModeOptions][] = [
  ["tier 0", {}],
  ["tier 1", { tier: 1, tuning: EAGER }],
];

/** mov dword [address], imm32 */
const store32 = (address: number, bytes: readonly number[]): number[] => [
  ...[0xc7, 0x04, 0x25],
  ...[address & 0xff, (address >> 8) & 0xff, (address >> 16) & 0xff, address >>> 24],
  ...bytes,
];

// SDM 3A 11.6: a store to code is seen by the next instruction fetch of the processor that made it (with a jump in
// between on old processors; the linear addresses are the same here).
describe.each(tiers)("code that changes itself, %s", (_name, options) => {
  test("the very next instruction is the stored one", () => {
    const m = longMode(options);
    // The four bytes behind the store become inc eax; inc eax.
    m.start([...store32(CODE + 11, [0xff, 0xc0, 0xff, 0xc0]), 0x90, 0x90, 0x90, 0x90]);
    m.setGpr(RAX, 5n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(7n);
  });

  test("a loop that rewrites its own immediate every time round", () => {
    const m = longMode(options);
    // 1: add eax, 1 (81 C0 imm32); inc dword [1b + 2]; dec ecx; jnz 1b
    const loop = [0x81, 0xc0, 1, 0, 0, 0, 0xff, 0x04, 0x25, 0x02, 0x00, 0x10, 0x00, 0xff, 0xc9, 0x75, 0xef];
    m.start(loop);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 100n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(5050n);
    expect(m.cpu.retired).toBe(401);
  });

  test("a place that becomes another instruction every time round: longer, shorter, a branch, two of them", () => {
    const m = longMode(options);
    const at = CODE + 0x40;
    // inc eax twice; add eax, 5; dec eax, nop, nop; jmp over two bytes; lea eax, [rax+rax], nop
    const variants = [
      { bytes: [0xff, 0xc0, 0xff, 0xc0], next: (x: number) => x + 2 },
      { bytes: [0x83, 0xc0, 0x05, 0x90], next: (x: number) => x + 5 },
      { bytes: [0xff, 0xc8, 0x90, 0x90], next: (x: number) => x - 1 },
      { bytes: [0xeb, 0x02, 0xff, 0xc0], next: (x: number) => x },
      { bytes: [0x8d, 0x04, 0x00, 0x90], next: (x: number) => x * 2 },
    ];
    variants.forEach(({ bytes }, i) => {
      m.memory.write(DATA + i * 4, Uint8Array.from(bytes));
    });
    // 1: mov ebx, [rdi + rdx*4]; mov [at + 15], ebx; (4 bytes); inc edx; cmp edx, esi; cmovae edx, ebp; dec ecx; jnz 1b
    const loop = [0x8b, 0x1c, 0x97, 0x89, 0x1c, 0x25, ...[0x4e, 0x00, 0x10, 0x00], 0x0f, 0x1f, 0x40, 0x00];
    loop.push(0x90, 0x90, 0x90, 0x90, 0xff, 0xc2, 0x39, 0xf2, 0x0f, 0x43, 0xd5, 0xff, 0xc9, 0x75, 0xe3);
    m.start(loop, at);
    const rounds = 1000;
    for (const [register, value] of [
      [RAX, 1n],
      [RCX, BigInt(rounds)],
      [2, 0n],
      [5, 0n],
      [6, BigInt(variants.length)],
      [7, BigInt(DATA)],
    ] as const) {
      m.setGpr(register, value);
    }
    expect(m.run()).toBe(true);
    let x = 1;
    for (let i = 0; i < rounds; i++) x = variants[i % variants.length].next(x) >>> 0;
    expect(m.gpr(RAX)).toBe(BigInt(x));
  });

  test("data beside code on one page is written without harm", () => {
    const m = longMode(options);
    // 1: inc qword [CODE + 0x800]; dec ecx; jnz 1b
    m.start([0x48, 0xff, 0x04, 0x25, 0x00, 0x08, 0x10, 0x00, 0xff, 0xc9, 0x75, 0xf4]);
    m.setU64(CODE + 0x800, 0n);
    m.setGpr(RCX, 1000n);
    expect(m.run()).toBe(true);
    expect(m.u64(CODE + 0x800)).toBe(1000n);
  });

  test("code written through another linear address of the same physical page", () => {
    const m = longMode(options);
    // Page 1 of the small pages is mapped to page 0 too.
    m.setU64(SMALL_TABLE + 8, BigInt(SMALL) | 3n);
    const other = SMALL + 4096;
    m.start([0xff, 0xc0, ...store32(other, [0xff, 0xc8, 0xeb, 0x0b]), 0xeb, 0xf1], SMALL);
    // First inc eax; then that becomes dec eax and a jump to the HLT behind.
    m.setGpr(RAX, 10n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(10n);
  });

  test("code written by DMA or the debugger", () => {
    const m = longMode(options);
    m.start([0xff, 0xc0, 0xeb, 0xfc]);
    m.setGpr(RAX, 0n);
    m.run(200);
    expect(m.gpr(RAX)).toBe(100n);
    m.memory.write(CODE, Uint8Array.of(0xff, 0xc8));
    m.cpu.code.invalidatePhysical(CODE, 2);
    m.run(200);
    expect(m.gpr(RAX)).toBe(0n);
  });
});

// An instruction may lie in two pages; each has its own translation (SDM 3A 4.10.2).
describe.each(tiers)("code across the end of a page, %s", (_name, options) => {
  const at = SMALL + 4096 - 2;

  test("runs, in a loop, and counts once", () => {
    const m = longMode(options);
    // add eax, 0x01010101 (5 bytes with the short form: 05); dec ecx; jnz back
    m.start([0x05, 1, 1, 1, 1, 0xff, 0xc9, 0x75, 0xf7], at);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 200n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe((200n * 0x01010101n) & 0xffff_ffffn);
    expect(m.cpu.retired).toBe(601);
  });

  test("follows a new translation of the second page", () => {
    const m = longMode(options);
    m.start([0x05, 1, 0, 0, 0, 0xf4], at);
    m.setGpr(RAX, 0n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(1n);
    // Another page with another end of the instruction in the second place.
    m.memory.write(SMALL + 9 * 4096, Uint8Array.of(7, 0, 0, 0xf4));
    m.memory.write(SMALL + 9 * 4096 - 1, Uint8Array.of(0));
    m.setU64(SMALL_TABLE + 8, BigInt(SMALL + 9 * 4096) | 3n);
    m.cpu.mmu.invalidatePage(BigInt(SMALL + 4096));
    m.cpu.state.rip = BigInt(at);
    m.cpu.state.activity = 0;
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(1n + 0x701n);
  });

  test("sees a store to its second part", () => {
    const m = longMode(options);
    // 05 01 | 00 00 00: add eax, 1; inc byte [second page] makes it 0x101, 0x201 ...; dec ecx; jnz back
    m.start([0x05, 1, 0, 0, 0, 0xfe, 0x04, 0x25, 0x00, 0x10, 0x40, 0x00, 0xff, 0xc9, 0x75, 0xf0], at);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 4n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(1n + 0x101n + 0x201n + 0x301n);
  });
});

describe.each(tiers)("data across the end of a page, %s", (_name, options) => {
  test("loads, stores and read-modify-writes of every size at every place", () => {
    const m = longMode(options);
    const edge = DATA + 4096;
    // 1: mov rax, [rcx]; add rax, rdx; mov [rcx], rax; add word [rcx], dx; inc rcx; cmp rcx, rbx; jne 1b
    m.start([
      ...[0x48, 0x8b, 0x01, 0x48, 0x01, 0xd0, 0x48, 0x89, 0x01, 0x66, 0x01, 0x11],
      ...[0x48, 0xff, 0xc1, 0x48, 0x39, 0xd9, 0x75, 0xec],
    ]);
    const expected = new Uint8Array(32);
    const view = new DataView(expected.buffer);
    for (let i = 0; i < 32; i++) expected[i] = i * 7;
    m.memory.write(edge - 16, expected);
    for (let i = 0; i < 20; i++) {
      view.setBigUint64(i, BigInt.asUintN(64, view.getBigUint64(i, true) + 0x1234_5678_9abc_def1n), true);
      view.setUint16(i, (view.getUint16(i, true) + 0xdef1) & 0xffff, true);
    }
    m.setGpr(RCX, BigInt(edge - 16));
    m.setGpr(2, 0x1234_5678_9abc_def1n);
    m.setGpr(3, BigInt(edge + 4));
    expect(m.run()).toBe(true);
    expect([...m.memory.read(edge - 16, 32)]).toEqual([...expected]);
  });
});
