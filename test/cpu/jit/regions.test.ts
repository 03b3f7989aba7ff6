import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { TraceKind, type TracePoint, type Tracer } from "../../../engine/trace";
import { CODE, DATA, EAGER, longMode, SMALL } from "../long-mode";

const RAX = 0;
const RCX = 1;
const RDI = 7;

/** 1: add rax, rcx; dec ecx; jnz 1b */
const SUM = [0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9];
const eager = { tier: 1, tuning: EAGER } as const;

class Recorder implements Tracer {
  armed = TraceKind.Instruction as number;
  readonly points: TracePoint[] = [];
  hit(point: TracePoint): void {
    this.points.push(point);
  }
}

describe("hot 64-bit code is compiled into regions", () => {
  test("a loop runs in its region and counts every instruction", () => {
    const m = longMode(eager);
    m.start(SUM);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 10_000n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(50_005_000n);
    expect(m.cpu.retired).toBe(30_001);
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
  });

  test("a recursive function: calls and returns inside the page", () => {
    const m = longMode(eager);
    // call fib; hlt; fib: cmp edi, 2; jb 1f; push rdi; dec edi; call fib; pop rdi; push rax; sub edi, 2; call fib;
    // pop rdx; add rax, rdx; ret; 1: mov eax, edi; ret
    m.start([
      ...[0xe8, 0x01, 0, 0, 0, 0xf4, 0x83, 0xff, 0x02, 0x72, 0x17, 0x57, 0xff, 0xcf, 0xe8, 0xf3, 0xff, 0xff, 0xff],
      ...[0x5f, 0x50, 0x83, 0xef, 0x02, 0xe8, 0xe9, 0xff, 0xff, 0xff, 0x5a, 0x48, 0x01, 0xd0, 0xc3, 0x89, 0xf8, 0xc3],
    ]);
    m.setGpr(RDI, 15n);
    const plain = longMode();
    plain.start([...m.memory.read(CODE, 37)]);
    plain.setGpr(RDI, 15n);
    expect(plain.run()).toBe(true);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(610n);
    expect(m.cpu.retired).toBe(plain.cpu.retired);
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
  });

  test("a jump table: computed jumps inside the page", () => {
    const m = longMode(eager);
    // 1: mov edx, ecx; and edx, 3; jmp [rdi + rdx*8]
    // cases: inc rax; add rax, 16; sub rax, 3; neg rax, each followed by a jump to 2: dec ecx; jnz 1b; hlt
    const code = [0x89, 0xca, 0x83, 0xe2, 0x03, 0xff, 0x24, 0xd7];
    const cases = [
      [0x48, 0xff, 0xc0],
      [0x48, 0x83, 0xc0, 0x10],
      [0x48, 0x83, 0xe8, 0x03],
      [0x48, 0xf7, 0xd8],
    ];
    const end = 8 + cases.reduce((n, c) => n + c.length + 2, 0);
    cases.forEach((c, i) => {
      m.setU64(DATA + i * 8, BigInt(CODE + code.length));
      code.push(...c, 0xeb, end - code.length - c.length - 2);
    });
    code.push(0xff, 0xc9, 0x75, 256 - (end + 4));
    m.start(code);
    m.setGpr(RDI, BigInt(DATA));
    m.setGpr(RCX, 1001n);
    m.setGpr(RAX, 0n);
    let expected = 0n;
    for (let n = 1001; n > 0; n--) {
      expected = [expected + 1n, expected + 16n, expected - 3n, -expected][n & 3];
    }
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(BigInt.asUintN(64, expected));
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
  });

  test("code in two pages that call each other", () => {
    const m = longMode(eager);
    // SMALL: 1: call far page; dec ecx; jnz 1b; hlt. Behind it: lea rax, [rax + rcx]; ret
    m.memory.write(SMALL + 4096, Uint8Array.of(0x48, 0x8d, 0x04, 0x08, 0xc3));
    m.start([0xe8, 0xfb, 0x0f, 0, 0, 0xff, 0xc9, 0x75, 0xf7], SMALL);
    m.setGpr(RAX, 0n);
    m.setGpr(RCX, 1000n);
    expect(m.run()).toBe(true);
    expect(m.gpr(RAX)).toBe(500_500n);
    expect(m.cpu.retired).toBe(5001);
    expect(m.engine.compiledRegions).toBeGreaterThan(1);
  });

  test("flags come out of a region as an instruction left them", () => {
    const m = longMode(eager);
    // 1: sub eax, 3; adc edx, 0; inc ebx; ror rsi, 1; dec ecx; jnz 1b
    const loop = [0x83, 0xe8, 0x03, 0x83, 0xd2, 0x00, 0xff, 0xc3, 0x48, 0xd1, 0xce, 0xff, 0xc9, 0x75, 0xf1];
    for (const count of [599, 600, 601, 602, 603, 604, 605]) {
      const other = longMode();
      for (const machine of [m, other]) {
        machine.start(loop);
        for (let i = 0; i < 8; i++) if (i !== 4) machine.setGpr(i, BigInt(i + 1));
        machine.setGpr(RCX, 1000n);
        machine.run(count);
      }
      expect(m.cpu.state.rflags).toBe(other.cpu.state.rflags);
      expect(m.cpu.state.rip).toBe(other.cpu.state.rip);
    }
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
  });
});

describe("the debugger's stops hold in compiled code", () => {
  test("a breakpoint set in a compiled loop stops every round, with exact counts", () => {
    const trace = new Recorder();
    const m = longMode({ ...eager, trace });
    m.start(SUM);
    m.setGpr(RCX, 1000n);
    m.run(600);
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
    const seen: number[] = [];
    trace.hit = (point) => {
      if (point.detail.cause === "breakpoint") seen.push(m.cpu.retired);
    };
    m.cpu.setBreakpoints([{ linear: BigInt(CODE + 3), id: 1 }]);
    m.run(9);
    expect(seen).toEqual([601, 604, 607]);
    m.cpu.setBreakpoints([]);
    m.run(300);
    expect(seen.length).toBe(3);
    expect(m.cpu.retired).toBe(909);
  });

  test("stopAfter n stops behind exactly n", () => {
    const trace = new Recorder();
    const m = longMode({ ...eager, trace });
    m.start(SUM);
    m.setGpr(RCX, 1000n);
    m.run(600);
    m.cpu.stopAfter(7);
    let at = 0;
    trace.hit = (point) => {
      expect(point.detail.cause).toBe("step");
      at = m.cpu.retired;
    };
    m.run(100);
    expect(at).toBe(607);
  });

  test("a watchpoint on memory that compiled code writes", () => {
    const trace = new Recorder();
    const m = longMode({ ...eager, trace });
    // 1: mov [rdi + rcx*8], rcx; dec ecx; jnz 1b
    m.start([0x48, 0x89, 0x0c, 0xcf, 0xff, 0xc9, 0x75, 0xf8]);
    m.setGpr(RDI, BigInt(DATA));
    m.setGpr(RCX, 400n);
    m.run(300);
    expect(m.engine.compiledRegions).toBeGreaterThan(0);
    m.cpu.setWatchpoints([{ id: 4, space: "linear", address: BigInt(DATA + 800), length: 8, access: "write" }]);
    let rcx = 0n;
    trace.hit = (point) => {
      expect(point.detail).toMatchObject({ cause: "watchpoint", id: 4, write: true });
      rcx = m.gpr(RCX);
    };
    m.run();
    expect(rcx).toBe(100n);
    expect(m.u64(DATA + 800)).toBe(100n);
  });

  test("TF traps behind each instruction of a compiled loop (SDM 3B 17.3.1.4)", () => {
    const m = longMode(eager);
    m.start(SUM);
    m.setGpr(RCX, 1000n);
    m.run(600);
    // No IDT: the trap ends in a shutdown, behind one more instruction.
    m.cpu.state.rflags |= 0x100;
    m.run(100);
    expect(m.cpu.retired).toBe(601);
    expect(m.cpu.state.u64(Off.DR6) & 0x4000n).toBe(0x4000n);
  });
});

test("regions survive that all code is forgotten, and are made anew", () => {
  const m = longMode(eager);
  m.start(SUM);
  m.setGpr(RAX, 0n);
  m.setGpr(RCX, 3000n);
  let before = 0;
  for (let i = 0; i < 5; i++) {
    m.run(500);
    m.cpu.code.flushEverything();
    expect(m.engine.compiledRegions).toBeGreaterThan(before);
    before = m.engine.compiledRegions;
  }
  expect(m.run()).toBe(true);
  expect(m.gpr(RAX)).toBe(4_501_500n);
  expect(m.cpu.retired).toBe(9001);
});
