/**
 * Segment descriptors and the loading of segment registers (SDM 3A chapters 3.4, 5.5 to 5.8; instruction page of MOV).
 * Error codes name the selector with its RPL cleared; event delivery adds EXT.
 */
import { type Cpu, CpuFault, Vector } from "../cpu";
import { CodeMode, CpuState, Off, Seg, SegAttr, SegPart } from "../state";
import { is64BitMode, isCanonical, isLongMode, isRealOrVm86, MASK32, MASK64 } from "./operands";

/** System-segment and gate types, S = 0 (SDM 3A table 3-2). */
export const SystemType = {
  TSS16_AVAILABLE: 1,
  LDT: 2,
  TSS16_BUSY: 3,
  CALL_GATE16: 4,
  TASK_GATE: 5,
  INTERRUPT_GATE16: 6,
  TRAP_GATE16: 7,
  /** 64-bit TSS in IA-32e mode. */
  TSS_AVAILABLE: 9,
  TSS_BUSY: 11,
  CALL_GATE: 12,
  INTERRUPT_GATE: 14,
  TRAP_GATE: 15,
} as const;

/** An 8-byte descriptor as read from its table, with the parts a segment register caches. */
export interface Descriptor {
  readonly selector: number;
  /** Linear address of the descriptor. */
  readonly address: bigint;
  readonly lo: number;
  readonly hi: number;
  /** Access rights in the layout of SegAttr. */
  readonly attributes: number;
  /** Type with S as bit 4. */
  readonly type: number;
  readonly dpl: number;
  readonly present: boolean;
  readonly base: bigint;
  /** Bytes, granularity applied. */
  readonly limit: number;
}

export const isNull = (selector: number): boolean => (selector & 0xfffc) === 0;
export const errorCode = (selector: number): number => selector & 0xfffc;
export const isCodeSegment = (d: Descriptor): boolean => (d.type & 0x18) === 0x18;
export const isConforming = (d: Descriptor): boolean => (d.type & 0x1c) === 0x1c;
export const isWritableData = (d: Descriptor): boolean => (d.type & 0x1a) === 0x12;
export const isDataOrReadableCode = (d: Descriptor): boolean => (d.type & 0x10) !== 0 && (d.type & 0xa) !== 8;

function decodeDescriptor(selector: number, address: bigint, lo: number, hi: number): Descriptor {
  const raw = ((lo & 0xffff) | (hi & 0xf0000)) >>> 0;
  const granular = (hi & (1 << 23)) !== 0;
  return {
    selector,
    address,
    lo,
    hi,
    attributes: (hi >>> 8) & 0xf0ff,
    type: (hi >>> 8) & 0x1f,
    dpl: (hi >>> 13) & 3,
    present: (hi & 0x8000) !== 0,
    base: BigInt(((lo >>> 16) | ((hi & 0xff) << 16) | (hi & 0xff00_0000)) >>> 0),
    limit: granular ? ((raw << 12) | 0xfff) >>> 0 : raw,
  };
}

/** Linear addresses of descriptor tables wrap at 32 bits outside IA-32e mode. */
function tableAddress(cpu: Cpu, base: bigint, offset: number): bigint {
  return (base + BigInt(offset)) & (isLongMode(cpu) ? MASK64 : MASK32);
}

/**
 * Reads the descriptor a selector names.
 * @param vector exception when the selector is outside its table: #GP, or #TS during task switches and stack switches
 */
export function readDescriptor(cpu: Cpu, selector: number, vector: number = Vector.GP): Descriptor {
  const descriptor = findDescriptor(cpu, selector);
  if (!descriptor) throw new CpuFault(vector, errorCode(selector));
  return descriptor;
}

/** The same, or undefined when the selector is outside its table (LAR, LSL, VERR). */
export function findDescriptor(cpu: Cpu, selector: number): Descriptor | undefined {
  const { state } = cpu;
  const index = selector & 0xfff8;
  let base: bigint;
  let limit: number;
  if (selector & 4) {
    if (state.segAttributes(Seg.LDTR) & SegAttr.UNUSABLE || isNull(state.segSelector(Seg.LDTR))) return undefined;
    base = state.segBase(Seg.LDTR);
    limit = state.segLimit(Seg.LDTR);
  } else {
    base = state.u64(Off.GDTR_BASE);
    limit = state.u32(Off.GDTR_LIMIT) & 0xffff;
  }
  if (index + 7 > limit) return undefined;
  const address = tableAddress(cpu, base, index);
  const raw = cpu.mmu.read(address, 8, true);
  return decodeDescriptor(selector, address, Number(raw & MASK32) | 0, Number(raw >> 32n) | 0);
}

/**
 * Upper half of the base of a 16-byte system descriptor of IA-32e mode (SDM 3A figure 7-4).
 * @throws CpuFault when the table ends before it or its type field is not 0
 */
export function readUpperHalf(cpu: Cpu, descriptor: Descriptor, vector: number = Vector.GP): bigint {
  const { state } = cpu;
  const limit = descriptor.selector & 4 ? state.segLimit(Seg.LDTR) : state.u32(Off.GDTR_LIMIT) & 0xffff;
  if ((descriptor.selector & 0xfff8) + 15 > limit) throw new CpuFault(vector, errorCode(descriptor.selector));
  const upper = cpu.mmu.read((descriptor.address + 8n) & MASK64, 8, true);
  if ((upper >> 40n) & 0x1fn) throw new CpuFault(vector, errorCode(descriptor.selector));
  return upper & MASK32;
}

/**
 * A system descriptor (TSS, LDT), 16 bytes with a 64-bit base in IA-32e mode (SDM 3A 8.2.3).
 * @throws CpuFault where `vector` and the selector say, also for a base that is not canonical (#GP)
 */
export function readSystemDescriptor(cpu: Cpu, selector: number, vector: number = Vector.GP): Descriptor {
  const descriptor = readDescriptor(cpu, selector, vector);
  if (!isLongMode(cpu)) return descriptor;
  const base = (readUpperHalf(cpu, descriptor, vector) << 32n) | descriptor.base;
  if (!isCanonical(cpu, base)) throw new CpuFault(Vector.GP, errorCode(selector));
  return { ...descriptor, base };
}

/** Sets and clears bits of byte 5 (type, S, DPL, P) of a descriptor in its table: busy marks. */
export function markDescriptor(cpu: Cpu, address: bigint, set: number, clear = 0): void {
  const at = address + 5n;
  const byte = Number(cpu.mmu.read(at, 1, true));
  cpu.mmu.write(at, 1, BigInt((byte & ~clear) | set), true);
}

/** Sets the accessed flag of a code or data descriptor in its table; returns the attributes with it set. */
export function markAccessed(cpu: Cpu, descriptor: Descriptor): number {
  if ((descriptor.type & SegAttr.ACCESSED) === 0) {
    cpu.mmu.write(descriptor.address + 5n, 1, BigInt((descriptor.attributes & 0xff) | SegAttr.ACCESSED), true);
  }
  return descriptor.attributes | SegAttr.ACCESSED;
}

/** Caches a descriptor in a segment register. */
function cacheSegment(cpu: Cpu, seg: number, selector: number, d: Descriptor, attributes: number): void {
  cpu.state.setSegment(seg, selector, d.base, d.limit, attributes);
}

/**
 * Null selector: the register becomes unusable; its base reads as 0 on Intel and stays on AMD (APM 2 4.5.1), but for
 * processors whose CPUID says otherwise (80000021H EAX 6).
 */
export function loadNull(cpu: Cpu, seg: number, selector: number): void {
  const { state } = cpu;
  const keeps = cpu.model.vendor === "AuthenticAMD" && !cpu.model.features.has("null-clears-base");
  const base = keeps && isLongMode(cpu) ? state.segBase(seg) : 0n;
  // SS.DPL always shows CPL (SDM 3C 25.4.1).
  const dpl = seg === Seg.SS ? state.cpl << SegAttr.DPL_SHIFT : 0;
  state.setSegment(seg, selector, base, 0, SegAttr.UNUSABLE | dpl);
}

/** Checks of a load of SS (MOV SS, POP SS, LSS); `cpl` is the privilege the stack is for. */
export function checkStackSegment(d: Descriptor, cpl: number, vector: number = Vector.GP): void {
  const error = errorCode(d.selector);
  if ((d.selector & 3) !== cpl || !isWritableData(d) || d.dpl !== cpl) throw new CpuFault(vector, error);
  if (!d.present) throw new CpuFault(Vector.SS, error);
}

/** Checks of a load of DS, ES, FS or GS. */
function checkDataSegment(d: Descriptor, cpl: number, vector: number = Vector.GP): void {
  const error = errorCode(d.selector);
  if (!isDataOrReadableCode(d)) throw new CpuFault(vector, error);
  if (!isConforming(d) && ((d.selector & 3) > d.dpl || cpl > d.dpl)) throw new CpuFault(vector, error);
  if (!d.present) throw new CpuFault(Vector.NP, error);
}

/** Segment register load of real-address mode: only selector and base change (limits stay: "unreal mode"). */
function loadRealSegment(cpu: Cpu, seg: number, selector: number): void {
  const { state } = cpu;
  const at = CpuState.segOffset(seg);
  if (state.codeMode === CodeMode.VM86) {
    state.setSegment(seg, selector, BigInt(selector << 4), 0xffff, VM86_ATTRIBUTES);
    return;
  }
  state.setU32(at + SegPart.SELECTOR, selector);
  state.setU64(at + SegPart.BASE, BigInt(selector << 4));
  // A segment that was null in protected mode becomes usable again.
  const attributes = state.segAttributes(seg);
  if (attributes & SegAttr.UNUSABLE) state.setSegment(seg, selector, BigInt(selector << 4), 0xffff, REAL_ATTRIBUTES);
}

/** Present, writable, accessed data at DPL 3 (virtual-8086 mode, SDM 3C 27.3.1.2) and at DPL 0 (real-address mode). */
export const VM86_ATTRIBUTES = 0xf3;
const REAL_ATTRIBUTES = 0x93;

/**
 * Loads SS, DS, ES, FS or GS as MOV does, in any mode. The caller re-derives the context after a load of SS.
 * @throws CpuFault #GP, #NP, #SS; nothing has changed then
 */
export function loadSegment(cpu: Cpu, seg: number, selector: number): void {
  if (isRealOrVm86(cpu)) {
    loadRealSegment(cpu, seg, selector);
    return;
  }
  const { cpl } = cpu.state;
  if (isNull(selector)) {
    if (seg === Seg.SS && !(is64BitMode(cpu) && cpl < 3 && (selector & 3) === cpl)) throw new CpuFault(Vector.GP, 0);
    loadNull(cpu, seg, selector);
    return;
  }
  const descriptor = readDescriptor(cpu, selector);
  if (seg === Seg.SS) checkStackSegment(descriptor, cpl);
  else checkDataSegment(descriptor, cpl);
  cacheSegment(cpu, seg, selector, descriptor, markAccessed(cpu, descriptor));
}

/** Nulls DS, ES, FS, GS that the outer privilege level may not use (returns to outer levels, SDM 3A 5.8.6). */
export function dropInnerSegments(cpu: Cpu, cpl: number): void {
  const { state } = cpu;
  for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS]) {
    const attributes = state.segAttributes(seg);
    if (attributes & SegAttr.UNUSABLE) {
      if (!isNull(state.segSelector(seg))) loadNull(cpu, seg, 0);
      continue;
    }
    const conforming =
      (attributes & (SegAttr.S | SegAttr.CODE | SegAttr.CONFORMING)) ===
      (SegAttr.S | SegAttr.CODE | SegAttr.CONFORMING);
    const dpl = (attributes & SegAttr.DPL) >> SegAttr.DPL_SHIFT;
    if (!conforming && dpl < cpl) loadNull(cpu, seg, 0);
  }
}
