import { describe, expect, test } from "vitest";
import { Off } from "../../../engine/cpu/state";
import { program } from "./program";

const CF = 1;
const ARITHMETIC = 0x8d5;
const UD = 6;

const RDRAND_RAX = [0x48, 0x0f, 0xc7, 0xf0];
const RDRAND_EAX = [0x0f, 0xc7, 0xf0];
const RDRAND_AX = [0x66, 0x0f, 0xc7, 0xf0];
const RDSEED_RAX = [0x48, 0x0f, 0xc7, 0xf8];

describe("RDRAND and RDSEED (2B RDRAND)", () => {
  test("CF is set, the other arithmetic flags are clear", () => {
    const p = program("long", "skylake");
    p.exec(RDRAND_RAX, { flags: ARITHMETIC & ~CF });
    expect(p.cpu.state.rflags & ARITHMETIC).toBe(CF);
  });

  test("16 bits leave the rest of the register, 32 bits clear the upper half", () => {
    const p = program("long", "skylake");
    p.cpu.state.setGpr(0, 0xffff_ffff_ffff_ffffn);
    p.exec(RDRAND_AX);
    expect(p.gpr(0) >> 16n).toBe(0xffff_ffff_ffffn);
    p.exec(RDRAND_EAX);
    expect(p.gpr(0) >> 32n).toBe(0n);
  });

  test("numbers differ from one another, and a run repeats itself", () => {
    const numbers = (): bigint[] => {
      const p = program("long", "skylake");
      return Array.from({ length: 20 }, (_, i) => {
        p.exec(i % 2 ? RDSEED_RAX : RDRAND_RAX);
        return p.gpr(0);
      });
    };
    const first = numbers();
    expect(new Set(first).size).toBe(20);
    expect(numbers()).toEqual(first);
  });

  test("the generator is part of the processor's state: put back, it goes the same way again", () => {
    const p = program("long", "skylake");
    p.exec(RDRAND_RAX);
    const saved = p.cpu.state.u64(Off.RANDOM);
    p.exec(RDRAND_RAX);
    const next = p.gpr(0);
    p.cpu.state.setU64(Off.RANDOM, saved);
    p.exec(RDRAND_RAX);
    expect(p.gpr(0)).toBe(next);
  });

  test("without the feature they are #UD", () => {
    expect(program("long", "core").exec(RDRAND_RAX).vector).toBe(UD);
    expect(program("long", "core").exec(RDSEED_RAX).vector).toBe(UD);
  });
});

describe("RDPID, FSGSBASE (2B RDPID, RDFSBASE)", () => {
  test("RDPID gives IA32_TSC_AUX", () => {
    const p = program("long", "skylake");
    p.cpu.state.setU64(Off.TSC_AUX, 0x1234n);
    p.exec([0xf3, 0x0f, 0xc7, 0xf8]);
    expect(p.gpr(0)).toBe(0x1234n);
  });

  test("WRFSBASE and RDFSBASE are #UD without CR4.FSGSBASE, and #GP(0) for a non-canonical base", () => {
    const p = program("long", "skylake");
    const wrfsbase = [0xf3, 0x48, 0x0f, 0xae, 0xd0];
    expect(p.exec(wrfsbase).vector).toBe(UD);
    p.cpu.state.setU64(Off.CR4, p.cpu.state.u64(Off.CR4) | (1n << 16n));
    p.cpu.state.setGpr(0, 1n << 47n);
    expect(p.exec(wrfsbase).vector).toBe(13);
    p.cpu.state.setGpr(0, 0x7fff_1234_5678n);
    // and rdfsbase rcx, rdfsbase edx: 32 bits are zero-extended
    expect(p.exec([...wrfsbase, 0xf3, 0x48, 0x0f, 0xae, 0xc1, 0xf3, 0x0f, 0xae, 0xc2]).vector).toBe("hlt");
    expect(p.gpr(1)).toBe(0x7fff_1234_5678n);
    expect(p.gpr(2)).toBe(0x1234_5678n);
  });
});
