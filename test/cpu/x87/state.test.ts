import { describe, expect, test } from "vitest";
import { Gpr, Off } from "../../../engine/cpu/state";
import { DATA, type Mode, type Program, program } from "../system/program";

const CR0_EM = 1n << 2n;
const CR0_TS = 1n << 3n;
const CR0_NE = 1n << 5n;
const CR0_MP = 1n << 1n;

const UD = 6;
const NM = 7;
const SS = 12;
const GP = 13;
const PF = 14;
const MF = 16;

const FNINIT = [0xdb, 0xe3];
const FLD1 = [0xd9, 0xe8];
const FLDZ = [0xd9, 0xee];
const FLDPI = [0xd9, 0xeb];
/** fdiv st, st(1) */
const FDIV = [0xd8, 0xf1];
const FWAIT = [0x9b];
const FNCLEX = [0xdb, 0xe2];
const FNSTSW = [0xdf, 0xe0];

const at = (address: number): number[] => [address & 0xff, (address >> 8) & 0xff, (address >> 16) & 0xff, 0];
/** ModRM and SIB of [disp32] in 64-bit mode; ModRM of [disp32] in 32-bit code. */
const memory = (mode: Mode, reg: number, address: number): number[] =>
  mode === "long" ? [0x04 | (reg << 3), 0x25, ...at(address)] : [0x05 | (reg << 3), ...at(address)];

function start(mode: Mode, cr0 = CR0_NE): Program {
  const p = program(mode);
  const { state } = p.cpu;
  state.setU64(Off.CR0, (state.u64(Off.CR0) & ~(CR0_MP | CR0_EM | CR0_TS | CR0_NE)) | cr0);
  p.cpu.contextChanged();
  return p;
}

const status = (p: Program): number => p.cpu.state.view.getUint16(p.cpu.state.base + Off.FSW, true);
const tags = (p: Program): number => p.cpu.state.view.getUint16(p.cpu.state.base + Off.FTW, true);
/** mov word [DATA], value; fldcw [DATA] */
const setControl = (p: Program, value: number): number[] => {
  p.setU32(DATA, value);
  return [0xd9, ...memory(p.mode, 5, DATA)];
};

describe("availability (3A 2.5, table 2-2)", () => {
  test.each([
    ["undefined opcodes of D8 to DF raise #NM with CR0.EM", [0xd9, 0xd1], CR0_EM, NM],
    ["and #UD without", [0xd9, 0xd1], 0n, UD],
    ["FNSTENV raises #NM with CR0.TS", [0xd9, ...memory("long", 6, DATA)], CR0_TS, NM],
    ["FNSTSW AX raises #NM with CR0.EM", FNSTSW, CR0_EM, NM],
    ["FISTTP raises #NM with CR0.EM, not #UD", [0xdb, ...memory("long", 1, DATA)], CR0_EM, NM],
    ["LOCK raises #UD, not #NM", [0xf0, ...FLD1], CR0_TS, UD],
  ])("%s", (_rule, code, cr0, vector) => {
    expect(start("long", cr0).exec(code).vector).toBe(vector);
  });
});

describe("unmasked exceptions (SDM 1 8.6, 8.7)", () => {
  const divideByZero = (p: Program): number[] => [...FNINIT, ...setControl(p, 0x37b), ...FLDZ, ...FLD1, ...FDIV];

  test("the instruction that meets one is completed, the next waiting one raises #MF with RIP at itself", () => {
    const p = start("long");
    const code = divideByZero(p);
    const end = p.exec([...code, ...FLD1]);
    expect(end.vector).toBe(MF);
    expect(Number(end.stack[0] & 0xffffn)).toBe(code.length);
    expect(status(p) & 0x8084).toBe(0x8084);
  });

  test("operands stay as they were when divide-by-zero is unmasked", () => {
    const p = start("long");
    expect(p.exec(divideByZero(p)).vector).toBe("hlt");
    const top = (status(p) >> 11) & 7;
    expect(p.cpu.state.u64(Off.X87 + top * 16)).toBe(1n << 63n);
  });

  test("FNCLEX, FNSTSW and FNINIT do not wait for it", () => {
    for (const code of [FNCLEX, FNSTSW, FNINIT]) {
      const p = start("long");
      expect(p.exec([...divideByZero(p), ...code]).vector).toBe("hlt");
    }
  });

  test("FNOP and FWAIT wait for it", () => {
    for (const code of [[0xd9, 0xd0], FWAIT]) {
      const p = start("long");
      expect(p.exec([...divideByZero(p), ...code]).vector).toBe(MF);
    }
  });

  test("FNSTENV stores the status with its exception and masks all exceptions, so that nothing is pending any more", () => {
    const p = start("long");
    expect(p.exec([...divideByZero(p), 0xd9, ...memory("long", 6, DATA + 64), ...FWAIT]).vector).toBe("hlt");
    expect(p.u32(DATA + 68) & 0x8084).toBe(0x8084);
    expect(p.u32(DATA + 64) & 0xffff).toBe(0x37b);
    expect(p.cpu.state.view.getUint16(p.cpu.state.base + Off.FCW, true)).toBe(0x37f);
    expect(status(p) & 0x8084).toBe(4);
  });

  test("without CR0.NE there is no #MF: FERR# goes to the board (SDM 1 8.7.1)", () => {
    const p = start("long", 0n);
    const calls: boolean[] = [];
    Object.assign(p.cpu.bus, { floatError: (asserted: boolean) => calls.push(asserted) });
    expect(p.exec([...divideByZero(p), ...FWAIT, ...FNCLEX]).vector).toBe("hlt");
    // The first FNINIT takes it back too.
    expect(calls).toEqual([false, true, false]);
  });

  test("where the board answers FERR# with an interrupt, that comes before the waiting instruction", () => {
    const p = start("long", 0n);
    const code = divideByZero(p);
    Object.assign(p.cpu.bus, {
      floatError: (asserted: boolean) => {
        if (asserted) p.interrupt = 0x75;
      },
    });
    const end = p.exec([...code, ...FLD1], { flags: 0x200 });
    expect(end.vector).toBe(0x75);
    expect(Number(end.stack[0] & 0xffffn)).toBe(code.length);
  });
});

describe("memory operands", () => {
  test("a fault leaves the stack, the flags and the pointers alone", () => {
    const p = start("long");
    p.setPte(0x30_000, 0n);
    const end = p.exec([...FNINIT, ...FLDPI, 0xdd, ...memory("long", 3, 0x30_000)]);
    expect(end.vector).toBe(PF);
    expect(tags(p)).toBe(0x80);
    expect(status(p) & 0x3800).toBe(0x3800);
    expect(p.cpu.state.view.getUint16(p.cpu.state.base + Off.FOP, true)).toBe(0x1eb);
  });

  test("a store of ten bytes across a page that cannot be written writes nothing", () => {
    const p = start("long");
    p.setPte(0x31_000, 0n);
    p.setU64(0x30_ff8, 0x1122_3344_5566_7788n);
    expect(p.exec([...FNINIT, ...FLDPI, 0xdb, ...memory("long", 7, 0x30_ff8)]).vector).toBe(PF);
    expect(p.u64(0x30_ff8)).toBe(0x1122_3344_5566_7788n);
  });

  test("addresses that are not canonical raise #GP, and #SS through the stack segment", () => {
    const p = start("long");
    p.cpu.state.setGpr(Gpr.RBX, 1n << 62n);
    expect(p.exec([0xdd, 0x03]).vector).toBe(GP);
    p.cpu.state.setGpr(Gpr.RBP, 1n << 62n);
    expect(p.exec([0xdd, 0x45, 0]).vector).toBe(SS);
  });
});

describe("last instruction and operand (SDM 1 8.1.8)", () => {
  const fop = (p: Program): number => p.cpu.state.view.getUint16(p.cpu.state.base + Off.FOP, true);

  test("instructions that are no control instructions leave opcode, address and operand behind", () => {
    const p = start("long");
    p.exec([...FNINIT, 0xdd, ...memory("long", 0, DATA)]);
    expect(fop(p)).toBe(0x504);
    expect(p.cpu.state.u64(Off.FIP)).toBe(0x10002n);
    expect(p.cpu.state.u64(Off.FDP)).toBe(BigInt(DATA));
  });

  test("the operand pointer stays when there is no memory operand; prefixes belong to the instruction", () => {
    const p = start("long");
    p.exec([...FNINIT, 0xdd, ...memory("long", 0, DATA), 0x66, ...FLD1]);
    expect(fop(p)).toBe(0x1e8);
    expect(p.cpu.state.u64(Off.FIP)).toBe(0x10009n);
    expect(p.cpu.state.u64(Off.FDP)).toBe(BigInt(DATA));
  });

  test("control instructions leave them alone", () => {
    const p = start("long");
    p.exec([...FNINIT, ...FLD1, ...FNCLEX, ...FNSTSW, ...setControl(p, 0x37f), ...FWAIT]);
    expect(fop(p)).toBe(0x1e8);
    expect(p.cpu.state.u64(Off.FIP)).toBe(0x10002n);
  });
});

describe("FNSTENV and FNSAVE by mode and operand size (SDM 1 figures 8-9 to 8-12)", () => {
  test("32-bit protected mode: pointers with selectors and opcode, upper halves of words are ones", () => {
    const p = start("protected");
    p.exec([...FNINIT, 0xdd, ...memory("protected", 0, DATA + 128), 0xd9, ...memory("protected", 6, DATA)]);
    const words = Array.from({ length: 7 }, (_, i) => p.u32(DATA + i * 4));
    expect(words.slice(0, 3)).toEqual([0xffff_037f, 0xffff_3800, 0xffff_7fff]);
    expect(words[3]).toBe(0x10002);
    expect(words[4]).toBe((0x505 << 16) | 0x08);
    expect(words[5]).toBe(DATA + 128);
    expect(words[6]).toBe(0xffff_0010);
  });

  test("16-bit protected mode: seven words", () => {
    const p = start("protected");
    p.setU32(DATA + 12, 0xdead_beef);
    p.exec([...FNINIT, ...FLD1, 0x66, 0xd9, ...memory("protected", 6, DATA)]);
    const words = Array.from({ length: 7 }, (_, i) => (p.u32(DATA + i * 2) & 0xffff) >>> 0);
    expect(words).toEqual([0x37f, 0x3800, 0x3fff, 0x0002, 0x08, 0, 0]);
    expect(p.u32(DATA + 12) >>> 16).toBe(0xdead);
  });

  test("real-address mode: linear pointers of 20 bits with the opcode between", () => {
    const p = start("real");
    // fninit; fld1; fnstenv [0x9000]
    p.exec([...FNINIT, ...FLD1, 0xd9, 0x36, 0x00, 0x90]);
    const words = Array.from({ length: 7 }, (_, i) => p.u32(0x9000 + i * 2) & 0xffff);
    expect(words.slice(0, 3)).toEqual([0x37f, 0x3800, 0x3fff]);
    // CS 1000H, IP 2: linear 10002H.
    expect(words[3]).toBe(0x0002);
    expect(words[4]).toBe(0x1000 | 0x1e8);
    expect(words[6]).toBe(0);
  });

  test("32-bit format in real-address mode: bits 31:16 of the pointers at 27:12", () => {
    const p = start("real");
    p.exec([...FNINIT, ...FLD1, 0x66, 0xd9, 0x36, 0x00, 0x90]);
    expect(p.u32(0x900c)).toBe(0x0002);
    expect(p.u32(0x9010)).toBe((1 << 12) | 0x1e8);
  });

  test("FNSAVE stores the stack in order and leaves the state of FNINIT; FRSTOR takes it back", () => {
    const p = start("long");
    const save = [0xdd, ...memory("long", 6, DATA)];
    p.exec([...FNINIT, ...FLD1, ...FLDPI, ...save]);
    expect(tags(p)).toBe(0);
    expect(status(p)).toBe(0);
    // ST(0) is pi, at byte 28; ST(1) is 1, ten bytes further.
    expect(p.u64(DATA + 28)).toBe(0xc90f_daa2_2168_c235n);
    expect(p.u64(DATA + 38)).toBe(1n << 63n);
    p.exec([0xdd, ...memory("long", 4, DATA)]);
    expect(status(p) & 0x3800).toBe(6 << 11);
    expect(tags(p)).toBe(0xc0);
  });

  test("FLDENV with an unmasked exception in its status makes it pending", () => {
    const p = start("long");
    [0x37e, 1, 0xffff, 0, 0, 0, 0].forEach((word, i) => {
      p.setU32(DATA + i * 4, word);
    });
    const load = [0xd9, ...memory("long", 4, DATA)];
    expect(p.exec([...load, ...FLD1]).vector).toBe(MF);
  });
});

describe("MMX registers are x87 registers (SDM 1 9.2.2, 9.5; 3A 12.2)", () => {
  /** movd mm1, ecx */
  const MOVD = [0x0f, 0x6e, 0xc9];

  test("an MMX instruction makes all tags valid and TOP 0; a written register has ones in bits 79:64", () => {
    const p = start("long");
    p.cpu.state.setGpr(Gpr.RCX, 0x1234n);
    expect(p.exec([...FNINIT, ...FLD1, ...MOVD]).vector).toBe("hlt");
    expect(tags(p)).toBe(0xff);
    expect(status(p) & 0x3800).toBe(0);
    expect(p.cpu.state.u64(Off.X87 + 16)).toBe(0x1234n);
    expect(p.cpu.state.lo(Off.X87 + 24) & 0xffff).toBe(0xffff);
  });

  test("EMMS empties all registers, so that loads work again", () => {
    const p = start("long");
    expect(p.exec([...FNINIT, ...MOVD, ...FLD1, 0x0f, 0x77, ...FLD1]).vector).toBe("hlt");
    // The first load found no room: stack overflow, C1 set. The second did.
    expect(status(p) & 0x41).toBe(0x41);
    expect(tags(p)).not.toBe(0);
  });

  test("MMX instructions raise #MF for a pending x87 exception", () => {
    const p = start("long");
    const pending = [...FNINIT, ...setControl(p, 0x37b), ...FLDZ, ...FLD1, ...FDIV];
    expect(p.exec([...pending, ...MOVD]).vector).toBe(MF);
  });
});
