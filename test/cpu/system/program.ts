/**
 * Runs a few bytes of machine code on a real processor and tells how they ended: all gates of the IDT lead to HLT, so that
 * the event can be read off the instruction pointer and the stack.
 */
import { Gpr, Off, Rflags, Seg, SegAttr } from "../../../engine/cpu/state";
import { type BareMachine, bareMachine } from "./bare-machine";

export const CODE = 0x10000;
export const DATA = 0x12000;
export const STACK_TOP = 0x9000;
export const USER_STACK_TOP = 0xb000;
export const GDT = 0x1000;
export const IDT = 0x2000;
export const TSS = 0x6000;
/** PML4, PDPT, page directory and, for the first 2 MBytes, a page table. */
export const TABLES = 0x20000;
const STUBS = 0x4000;

export const Sel = { CODE32: 0x08, DATA: 0x10, CODE64: 0x18, TSS: 0x20, UCODE32: 0x33, UDATA: 0x3b, UCODE64: 0x43 };

const DESCRIPTORS: readonly bigint[] = [
  0n,
  0x00cf9b000000ffffn,
  0x00cf93000000ffffn,
  0x00af9b000000ffffn,
  0n, // TSS, 16 bytes in IA-32e mode
  0n,
  0x00cffb000000ffffn,
  0x00cff3000000ffffn,
  0x00affb000000ffffn,
];

export type Mode = "real" | "protected" | "long";

export interface Ending {
  /** Vector of the event, or "hlt" when the code came to its own HLT. */
  readonly vector: number | "hlt" | string;
  /** Words on the handler's stack, from its top: error code where the vector has one, then RIP, CS, RFLAGS, RSP, SS. */
  readonly stack: readonly bigint[];
}

export interface Program extends BareMachine {
  readonly mode: Mode;
  /** Runs the bytes at CODE, followed by HLT; at CPL 3 a HLT raises #GP. */
  exec(code: readonly number[], options?: { readonly cpl?: 0 | 3; readonly flags?: number }): Ending;
  u32(pa: number): number;
  setU32(pa: number, value: number): void;
  u64(pa: number): bigint;
  setU64(pa: number, value: bigint): void;
  /** Entry of the page table for linear address 0 to 2 MBytes (long mode). */
  setPte(linear: number, entry: bigint): void;
  gpr(index: number): bigint;
  /** Runs on, after something has been changed from outside. */
  resume(instructions?: number): Ending;
}

function writeIdt(p: Program): void {
  for (let v = 0; v < 256; v++) {
    const to = STUBS + v * 16;
    p.memory.write(to, Uint8Array.of(0xf4));
    if (p.mode === "real") p.setU32(v * 4, to);
    else if (p.mode === "protected") p.setU64(IDT + v * 8, BigInt(to & 0xffff) | 0x0008_0000n | (0x8en << 40n));
    else p.setU64(IDT + v * 16, BigInt(to & 0xffff) | 0x0018_0000n | (0x8en << 40n));
  }
}

function enterProtected(p: Program): void {
  const { state } = p.cpu;
  for (const [i, d] of DESCRIPTORS.entries()) p.setU64(GDT + i * 8, d);
  const busy = p.mode === "long" ? 0x8bn : 0x8bn;
  p.setU64(GDT + Sel.TSS, 0x67n | (BigInt(TSS) << 16n) | (busy << 40n));
  p.setU64(GDT + Sel.TSS + 8, 0n);
  if (p.mode === "long") p.setU64(TSS + 4, BigInt(STACK_TOP));
  else {
    p.setU32(TSS + 4, STACK_TOP);
    p.setU32(TSS + 8, Sel.DATA);
  }
  state.setU64(Off.GDTR_BASE, BigInt(GDT));
  state.setU32(Off.GDTR_LIMIT, DESCRIPTORS.length * 8 - 1);
  state.setU64(Off.IDTR_BASE, BigInt(IDT));
  state.setU32(Off.IDTR_LIMIT, (p.mode === "long" ? 4096 : 2048) - 1);
  state.setSegment(Seg.TR, Sel.TSS, BigInt(TSS), 0x67, 0x8b);
  state.setSegment(Seg.LDTR, 0, 0n, 0, SegAttr.UNUSABLE);
}

function enterLong(p: Program): void {
  const { state } = p.cpu;
  p.setU64(TABLES, BigInt(TABLES + 0x1000) | 7n);
  p.setU64(TABLES + 0x1000, BigInt(TABLES + 0x2000) | 7n);
  p.setU64(TABLES + 0x2000, BigInt(TABLES + 0x3000) | 7n);
  for (let i = 1; i < 8; i++) p.setU64(TABLES + 0x2000 + i * 8, BigInt(i * 0x20_0000) | 0x87n);
  for (let i = 0; i < 512; i++) p.setU64(TABLES + 0x3000 + i * 8, BigInt(i * 4096) | 7n);
  state.setU64(Off.CR3, BigInt(TABLES));
  state.setU64(Off.CR4, 0x20n);
  state.setU64(Off.EFER, 0xd01n);
}

function setSegments(p: Program, cpl: 0 | 3): void {
  const { state } = p.cpu;
  const flat = (seg: number, selector: number, attributes: number): void =>
    state.setSegment(seg, selector, 0n, 0xffff_ffff, attributes | (cpl << SegAttr.DPL_SHIFT));
  const data = cpl === 3 ? Sel.UDATA : Sel.DATA;
  for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS]) flat(seg, data, 0xc093);
  if (p.mode === "long") flat(Seg.CS, cpl === 3 ? Sel.UCODE64 : Sel.CODE64, 0xa09b);
  else flat(Seg.CS, cpl === 3 ? Sel.UCODE32 : Sel.CODE32, 0xc09b);
}

export function program(mode: Mode, model = "core"): Program {
  const machine = bareMachine(model);
  const { memory, cpu } = machine;
  const { state } = cpu;
  const at = (pa: number): number => memory.hostOffset(pa);
  const p: Program = Object.assign(machine, {
    mode,
    u32: (pa: number) => memory.view.getUint32(at(pa), true),
    setU32: (pa: number, value: number) => memory.view.setUint32(at(pa), value, true),
    u64: (pa: number) => memory.view.getBigUint64(at(pa), true),
    setU64: (pa: number, value: bigint) => memory.view.setBigUint64(at(pa), value, true),
    setPte: (linear: number, entry: bigint) =>
      memory.view.setBigUint64(at(TABLES + 0x3000 + (linear >> 12) * 8), entry, true),
    gpr: (index: number) => state.gpr(index),
    exec: (code: readonly number[], options: { readonly cpl?: 0 | 3; readonly flags?: number } = {}) => {
      memory.write(CODE, Uint8Array.from([...code, 0xf4]));
      cpu.code.invalidatePhysical(CODE, code.length + 1);
      const cpl = options.cpl ?? 0;
      if (mode === "real") {
        state.setSegment(Seg.CS, CODE >> 4, BigInt(CODE), 0xffff, 0x9b);
        for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS]) state.setSegment(seg, 0, 0n, 0xffff, 0x93);
        state.setSegment(Seg.SS, 0, 0n, 0xffff, 0x93);
        state.rip = 0n;
      } else {
        setSegments(p, cpl);
        state.rip = BigInt(CODE);
      }
      state.setGpr(Gpr.RSP, BigInt(cpl === 3 ? USER_STACK_TOP : STACK_TOP));
      state.rflags = Rflags.FIXED | (options.flags ?? 0);
      state.setU32(Off.INHIBIT, 0);
      cpu.contextChanged();
      cpu.mmu.flushEverything();
      return p.resume();
    },
    resume: (instructions = 10_000) => {
      state.activity = 0;
      cpu.attention();
      const how = machine.run(instructions);
      const rip = Number(state.rip);
      const stack: bigint[] = [];
      const rsp = Number(state.gpr(Gpr.RSP) & 0xffff_ffffn);
      const word = mode === "real" ? 2 : mode === "protected" ? 4 : 8;
      for (let i = 0; i < 7; i++) {
        const where = at(rsp + i * word);
        if (where < 0) break;
        const value = memory.view.getBigUint64(where, true);
        stack.push(BigInt.asUintN(word * 8, value));
      }
      if (how !== "halted") return { vector: how, stack };
      const stub = mode === "real" && state.segSelector(Seg.CS) !== 0 ? -1 : rip - 1 - STUBS;
      return { vector: stub >= 0 && stub < 4096 && stub % 16 === 0 ? stub / 16 : "hlt", stack };
    },
  });
  writeIdt(p);
  if (mode !== "real") {
    enterProtected(p);
    if (mode === "long") enterLong(p);
    state.setU64(Off.CR0, mode === "long" ? 0x8001_0031n : 0x31n);
  }
  setSegmentsIfProtected(p);
  cpu.contextChanged();
  return p;
}

function setSegmentsIfProtected(p: Program): void {
  if (p.mode !== "real") setSegments(p, 0);
}
