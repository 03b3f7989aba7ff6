/**
 * The x87 register stack, its tags, status and control words in the CPU block (SDM 1 8.1). Registers lie there by physical
 * number; the tag word is kept abridged, a set bit meaning "in use" (SDM 1 10.5.1.1).
 */
import { Kind, type Num, pack80, unpack80 } from "../float/number";
import { type CpuState, Off } from "../state";

/** Status word (SDM 1 8.1.3); the exception flags are its low six bits. */
// biome-ignore format: a bit table
export const Fsw = {
  EXCEPTIONS: 0x3f, SF: 1 << 6, ES: 1 << 7, C0: 1 << 8, C1: 1 << 9, C2: 1 << 10, TOP_SHIFT: 11, C3: 1 << 14, BUSY: 1 << 15,
  CONDITIONS: (1 << 8) | (1 << 10) | (1 << 14),
} as const;

/** Control word (SDM 1 8.1.5): masks in the low six bits. */
export const Fcw = { PC_SHIFT: 8, RC_SHIFT: 10, INITIAL: 0x037f, IM: 1 } as const;

const REGISTER_SIZE = 16;

export const status = (state: CpuState): number => state.view.getUint16(state.base + Off.FSW, true);
export const setStatus = (state: CpuState, value: number): void =>
  state.view.setUint16(state.base + Off.FSW, value, true);
export const control = (state: CpuState): number => state.view.getUint16(state.base + Off.FCW, true);
export const tags = (state: CpuState): number => state.view.getUint16(state.base + Off.FTW, true);
export const setTags = (state: CpuState, value: number): void =>
  state.view.setUint16(state.base + Off.FTW, value, true);

export const top = (state: CpuState): number => (status(state) >> Fsw.TOP_SHIFT) & 7;

export function setTop(state: CpuState, value: number): void {
  setStatus(state, (status(state) & ~(7 << Fsw.TOP_SHIFT)) | ((value & 7) << Fsw.TOP_SHIFT));
}

/** Place of ST(i) in the engine's memory. */
export const registerAt = (state: CpuState, i: number): number =>
  state.base + Off.X87 + ((top(state) + i) & 7) * REGISTER_SIZE;

export const isEmpty = (state: CpuState, i: number): boolean => ((tags(state) >> ((top(state) + i) & 7)) & 1) === 0;

export function load(state: CpuState, i: number, n: Num): void {
  const at = registerAt(state, i);
  const { i32 } = state;
  unpack80(n, i32[(at >> 2) + 2] & 0xffff, i32[(at >> 2) + 1], i32[at >> 2]);
}

/** Writes ST(i) and marks it in use. */
export function store(state: CpuState, i: number, n: Num): void {
  const at = registerAt(state, i);
  state.view.setUint16(at + 8, pack80(n), true);
  state.i32[(at >> 2) + 1] = n.kind === Kind.ZERO ? 0 : n.hi;
  state.i32[at >> 2] = n.kind === Kind.ZERO ? 0 : n.lo;
  setTags(state, tags(state) | (1 << ((top(state) + i) & 7)));
}

/** Makes room: the new ST(0) is not written yet. */
export const decrementTop = (state: CpuState): void => setTop(state, top(state) - 1);

export function free(state: CpuState, i: number): void {
  setTags(state, tags(state) & ~(1 << ((top(state) + i) & 7)));
}

export function pop(state: CpuState): void {
  free(state, 0);
  setTop(state, top(state) + 1);
}

/** Recomputes ES, and B, which mirrors it, from the exception flags and their masks. */
export function updateSummary(state: CpuState): void {
  const word = status(state);
  const unmasked = word & ~control(state) & Fsw.EXCEPTIONS;
  const cleared = word & ~(Fsw.ES | Fsw.BUSY);
  setStatus(state, unmasked !== 0 ? cleared | Fsw.ES | Fsw.BUSY : cleared);
}

/** FNINIT (SDM 2A FINIT): also the x87 part of a reset by INIT and of XRSTOR's initial state. Registers keep their values. */
export function initialize(state: CpuState): void {
  const { view, base } = state;
  view.setUint16(base + Off.FCW, Fcw.INITIAL, true);
  view.setUint16(base + Off.FSW, 0, true);
  view.setUint16(base + Off.FTW, 0, true);
  view.setUint16(base + Off.FOP, 0, true);
  state.setU64(Off.FIP, 0n);
  state.setU64(Off.FDP, 0n);
  view.setUint16(base + Off.FCS, 0, true);
  view.setUint16(base + Off.FDS, 0, true);
}
