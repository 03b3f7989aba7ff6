import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { StateHash } from "../../../engine/memory/hash";
import { CODE, DATA, EAGER, type LongMode, type LongModeOptions, longMode, SMALL, SMALL_TABLE } from "../long-mode";
import { type BareMachine, loadMultiboot } from "../system/bare-machine";

const RAX = 0;
const RCX = 1;
const RSI = 6;
const RDI = 7;

const tiers: readonly [string, LongModeOptions][] = [
  ["tier 0", {}],
  ["tier 1", { tier: 1, tuning: EAGER }],
];

/** Registers, RIP and flags as one hash. */
function registers(m: LongMode): string {
  const hash = new StateHash();
  const { state } = m.cpu;
  for (let i = 0; i < 16; i++) hash.bigint(state.gpr(i));
  hash.bigint(state.rip);
  hash.word(state.rflags);
  return hash.digest();
}

/**
 * A mix of everything that may end a stay in generated code: calls, pushes, multiplications, flags carried over, a store
 * and a load per round, shifts by CL, a string instruction, a forward and a backward branch.
 */
// biome-ignore format: one instruction group a line
const MIX = [
  0xb9, 0x40, 0, 0, 0, // mov ecx, 64
  // loop (at 5):
  0x48, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // imul rax, rax, 1664525
  0x48, 0x05, 0x5f, 0xf3, 0x6e, 0x3c, // add rax, 1013904223
  0x50, 0x5a, // push rax; pop rdx
  0x48, 0xd3, 0xea, // shr rdx, cl
  0x83, 0xd3, 0x00, // adc ebx, 0
  0x48, 0x89, 0x04, 0xcf, // mov [rdi + rcx*8], rax
  0x48, 0x33, 0x34, 0xcf, // xor rsi, [rdi + rcx*8]
  0xa8, 0x04, // test al, 4
  0x74, 0x03, // jz +3
  0x48, 0xff, 0xc3, // inc rbx
  0xe8, 0x05, 0, 0, 0, // call f
  0xff, 0xc9, // dec ecx
  0x75, 0xd3, // jnz loop
  0xf4, // hlt
  // f (at 51): lea r8, [rbx + rsi*2 + 5]; sbb r9, r8; setc r10b; ret
];
const F = [0x4c, 0x8d, 0x44, 0x73, 0x05, 0x4d, 0x19, 0xc1, 0x41, 0x0f, 0x92, 0xc2, 0xc3];

function startMix(options: LongModeOptions): LongMode {
  const m = longMode(options);
  m.start([...MIX, ...F]);
  m.setGpr(RDI, BigInt(DATA));
  m.setGpr(RAX, 12345n);
  return m;
}

describe("a run of n instructions stops behind exactly n (virtual time is the count of retired instructions)", () => {
  const single: string[] = [];
  const m = startMix({});
  for (let n = 0; n < 800; n++) {
    single.push(registers(m));
    m.run(1);
  }

  test("single steps move one instruction each", () => {
    expect(m.cpu.retired).toBe(800);
    expect(new Set(single).size).toBe(800);
  });

  test.each(tiers)(
    "stops at every 2nd, 3rd, 7th ... instruction show the states of single steps, %s",
    (_n, options) => {
      for (const step of [2, 3, 7, 10, 31, 100, 799]) {
        const other = startMix(options);
        for (let n = 0; n < 800; n += step) {
          expect(registers(other), `after ${n} instructions in steps of ${step}`).toBe(single[n]);
          other.run(step);
          if (n + step <= 800) expect(other.cpu.retired).toBe(n + step);
        }
      }
    },
  );
});

describe.each(tiers)("a REP string instruction is one instruction and restarts where it faulted, %s", (_n, options) => {
  test("REP MOVSB counts once, however long (SDM 2B, REP)", () => {
    const m = longMode(options);
    m.start([0xf3, 0xa4]);
    m.setGpr(RCX, 10_000n);
    m.setGpr(RSI, BigInt(DATA));
    m.setGpr(RDI, BigInt(DATA + 0x8000));
    for (let i = 0; i < 10_000; i += 8) m.setU64(DATA + i, BigInt(i) * 0x0101_0101n);
    m.run(1);
    expect(m.cpu.retired).toBe(1);
    expect(m.gpr(RCX)).toBe(0n);
    expect(m.gpr(RDI)).toBe(BigInt(DATA + 0x8000 + 10_000));
    expect([...m.memory.read(DATA + 0x8000, 10_000)]).toEqual([...m.memory.read(DATA, 10_000)]);
  });

  test("overlapping REP MOVSB upwards repeats its first bytes", () => {
    const m = longMode(options);
    m.start([0xf3, 0xa4]);
    m.setGpr(RCX, 100n);
    m.setGpr(RSI, BigInt(DATA));
    m.setGpr(RDI, BigInt(DATA + 3));
    m.memory.write(DATA, Uint8Array.of(1, 2, 3));
    m.run(1);
    expect([...m.memory.read(DATA, 9)]).toEqual([1, 2, 3, 1, 2, 3, 1, 2, 3]);
  });

  test("downward REP STOSD across a page", () => {
    const m = longMode(options);
    m.start([0xfd, 0xf3, 0xab, 0xfc]);
    m.setGpr(RAX, 0x11223344n);
    m.setGpr(RCX, 16n);
    m.setGpr(RDI, BigInt(DATA + 4096 + 20));
    m.run(3);
    expect(m.gpr(RDI)).toBe(BigInt(DATA + 4096 + 20 - 64));
    expect(m.u64(DATA + 4096 + 16)).toBe(0x1122334411223344n);
    expect(m.u64(DATA + 4096 + 24 - 64)).toBe(0x1122334411223344n);
    expect(m.u64(DATA + 4096 + 24 - 64 - 8) >> 32n).toBe(0n);
  });

  test("a page fault in the middle leaves RCX, RSI and RDI at the faulting iteration", () => {
    const m = longMode(options);
    m.start([0xf3, 0x48, 0xa5]);
    m.setU64(SMALL_TABLE + 2 * 8, 0n);
    m.setGpr(RCX, 1024n);
    m.setGpr(RSI, BigInt(DATA));
    m.setGpr(RDI, BigInt(SMALL + 4096 + 8));
    // There is no IDT: the fault ends in a shutdown, with the registers as the fault left them.
    m.run(1);
    expect(m.cpu.state.u64(Off.CR2)).toBe(BigInt(SMALL + 2 * 4096));
    expect(m.gpr(RCX)).toBe(1024n - 511n);
    expect(m.gpr(RSI)).toBe(BigInt(DATA + 511 * 8));
    expect(m.gpr(RDI)).toBe(BigInt(SMALL + 2 * 4096));
    expect(m.cpu.retired).toBe(0);
  });

  test("REPNE SCASB and REPE CMPSB stop behind the element that decides", () => {
    const m = longMode(options);
    m.start([0xf2, 0xae, 0xf3, 0xa6]);
    m.memory.write(DATA, Uint8Array.from([1, 2, 3, 4, 5, 6]));
    m.setGpr(RAX, 4n);
    m.setGpr(RCX, 6n);
    m.setGpr(RDI, BigInt(DATA));
    m.run(1);
    expect(m.gpr(RCX)).toBe(2n);
    expect(m.gpr(RDI)).toBe(BigInt(DATA + 4));
    expect(m.cpu.state.rflags & 0x40).toBe(0x40);
    m.memory.write(DATA + 64, Uint8Array.from([9, 9, 9, 7]));
    m.memory.write(DATA + 128, Uint8Array.from([9, 9, 9, 8]));
    m.setGpr(RSI, BigInt(DATA + 64));
    m.setGpr(RDI, BigInt(DATA + 128));
    m.setGpr(RCX, 10n);
    m.run(1);
    expect(m.gpr(RCX)).toBe(6n);
    // 7 - 8 borrows: CF, SF, AF; not ZF.
    expect(m.cpu.state.rflags & 0xd1).toBe(0x91);
  });

  test("a REP of more iterations than one stay allows is still one instruction", () => {
    const m = longMode(options);
    // rep lodsb with 32-bit addresses: nothing of it is done in bulk.
    m.start([0x67, 0xf3, 0xac]);
    m.setGpr(RCX, 250_000n);
    m.setGpr(RSI, BigInt(DATA));
    m.run(1);
    expect(m.cpu.retired).toBe(1);
    expect(m.gpr(RCX)).toBe(0n);
    expect(m.gpr(RSI)).toBe(BigInt(DATA + 250_000));
  });
});

describe("faults inside a compiled loop are precise", () => {
  test.each(tiers)("a load that runs off a mapping, %s", (_n, options) => {
    const m = longMode(options);
    m.setU64(SMALL_TABLE + 8, 0n);
    // 1: add rax, [rdi]; add rdi, 8; inc ecx; jmp 1b
    m.start([0x48, 0x03, 0x07, 0x48, 0x83, 0xc7, 0x08, 0xff, 0xc1, 0xeb, 0xf5]);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 0n);
    m.setGpr(RDI, BigInt(SMALL));
    for (let i = 0; i < 512; i++) m.setU64(SMALL + i * 8, 3n);
    m.run(100_000);
    expect(m.cpu.state.u64(Off.CR2)).toBe(BigInt(SMALL + 4096));
    expect(m.gpr(RAX)).toBe(1536n);
    expect(m.gpr(RCX)).toBe(512n);
    expect(m.cpu.state.rip).toBe(BigInt(CODE));
    expect(m.cpu.retired).toBe(2048);
  });

  test.each(tiers)("a division by zero, %s", (_n, options) => {
    const m = longMode(options);
    // 1: xor edx, edx; mov eax, 100; div ecx; dec ecx; jmp 1b
    m.start([0x31, 0xd2, 0xb8, 100, 0, 0, 0, 0xf7, 0xf1, 0xff, 0xc9, 0xeb, 0xf3]);
    m.setGpr(RCX, 50n);
    m.run(100_000);
    expect(m.cpu.state.rip).toBe(BigInt(CODE + 7));
    expect(m.gpr(RAX)).toBe(100n);
    expect(m.cpu.retired).toBe(50 * 5 + 2);
  });
});

describe("both tiers go through the same states", () => {
  const image = readFileSync(join(__dirname, "../../guests/bench/bench.elf"));
  const states = (tier: 0 | 1, step: number): string[] => {
    const machine = longMode({ tier, tuning: { ...EAGER, interval: 400 }, bus: { portIn: () => 0x60 } });
    machine.cpu.reset("power-up");
    loadMultiboot(machine as unknown as BareMachine, image);
    const list: string[] = [];
    for (let n = 0; n < 40; n++) {
      machine.run(step);
      const hash = new StateHash();
      const { state } = machine.cpu;
      for (let i = 0; i < 16; i++) hash.bigint(state.gpr(i));
      hash.bigint(state.rip);
      hash.word(state.rflags);
      hash.range(machine.memory.i32, machine.memory.hostOffset(0), 0x400000);
      list.push(hash.digest());
    }
    return list;
  };

  test.each([7919, 50_000])("bench.elf every %i instructions", (step) => {
    expect(states(1, step)).toEqual(states(0, step));
  });
});
