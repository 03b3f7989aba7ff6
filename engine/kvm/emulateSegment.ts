/**
 * Segment descriptors in the emulator (arch/x86/kvm/emulate.c: __load_segment_descriptor and its kin; SDM 3A chapters 3 and
 * 5): reading them, checking a load, and what a segment register then holds.
 */
import { Seg } from "../cpu/state";
import { EmulFault, unhandleable } from "./emulateTypes";
import { isLongMode, isProtmode, kvmGetRflags } from "./kvmCacheRegs";
import { kvmReadGuest, kvmWriteGuest } from "./memslots";
import { Pferr } from "./mmu/fault";
import { gvaToGpa } from "./mmu/pagingTmpl";
import type { KvmVcpu } from "./types";
import type { KvmSegment } from "./uapi";
import { ExcVector } from "./x86Events";

/** What a segment register is loaded for (x86_transfer_type). */
export const Transfer = { NONE: 0, CALL_JMP: 1, RET: 2, TASK_SWITCH: 3 } as const;
export type Transfer = (typeof Transfer)[keyof typeof Transfer];

const RFLAGS_VM = 0x20000n;

/** linear_read_system and linear_write_system: data structures of the processor are accessed as supervisor. */
export function accessSystem(vcpu: KvmVcpu, linear: bigint, data: Uint8Array, write: boolean): void {
  const wide = isLongMode(vcpu);
  let done = 0;
  while (done < data.length) {
    const at = (linear + BigInt(done)) & (wide ? 0xffffffffffffffffn : 0xffffffffn);
    const n = Math.min(data.length - done, 4096 - Number(at & 0xfffn));
    const t = gvaToGpa(vcpu, at, write ? Pferr.WRITE : 0, true);
    if (!t.ok) throw new EmulFault(ExcVector.PF, t.errorCode, at);
    const part = data.subarray(done, done + n);
    if (!(write ? kvmWriteGuest(vcpu.kvm, t.gpa, part) : kvmReadGuest(vcpu.kvm, t.gpa, part))) {
      throw new EmulFault(ExcVector.GP, 0);
    }
    done += n;
  }
}

/** Eight bytes of a descriptor table, and where they lie. */
export interface Descriptor {
  readonly linear: bigint;
  low: number;
  high: number;
}

/** read_segment_descriptor of the GDT or, with TI, the LDT. @param vector of a selector beyond the table's limit */
export function readDescriptor(vcpu: KvmVcpu, selector: number, vector: number): Descriptor {
  const { ops } = vcpu.module;
  let table: { base: bigint; limit: number };
  if (selector & 4) {
    const ldt = ops.getSegment(vcpu, Seg.LDTR);
    if (ldt.unusable || !ldt.present) throw new EmulFault(vector, selector & 0xfffc);
    table = ldt;
  } else {
    table = ops.getGdt(vcpu);
  }
  const offset = selector & 0xfff8;
  if (offset + 7 > table.limit) throw new EmulFault(vector, selector & 0xfffc);
  return descriptorAt(vcpu, table.base + BigInt(offset));
}

/** The descriptor at a linear address. */
function descriptorAt(vcpu: KvmVcpu, base: bigint): Descriptor {
  const linear = isLongMode(vcpu) ? BigInt.asUintN(64, base) : base & 0xffffffffn;
  const bytes = new Uint8Array(8);
  accessSystem(vcpu, linear, bytes, false);
  const view = new DataView(bytes.buffer);
  return { linear, low: view.getUint32(0, true), high: view.getUint32(4, true) };
}

/** Writes the upper half of a descriptor back to its table, as for the accessed and busy bits. */
export function writeDescriptorHigh(vcpu: KvmVcpu, d: Descriptor): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, d.high >>> 0, true);
  accessSystem(vcpu, d.linear + 4n, bytes, true);
}

/** Parts of a descriptor. */
export const baseOf = (d: Descriptor): bigint =>
  BigInt(((d.low >>> 16) | ((d.high & 0xff) << 16) | (d.high & 0xff000000)) >>> 0);
export const limitOf = (d: Descriptor): number => {
  const limit = (d.low & 0xffff) | (d.high & 0xf0000);
  return d.high & 0x800000 ? limit * 4096 + 4095 : limit;
};
export const typeOf = (d: Descriptor): number => (d.high >> 8) & 15;
export const dplOf = (d: Descriptor): number => (d.high >> 13) & 3;
export const isPresent = (d: Descriptor): boolean => (d.high & 0x8000) !== 0;
const isCodeOrData = (d: Descriptor): boolean => (d.high & 0x1000) !== 0;

/** A segment register's contents after a load of `d`. */
export const segmentOf = (selector: number, d: Descriptor): KvmSegment => ({
  selector,
  base: baseOf(d),
  limit: limitOf(d),
  type: typeOf(d),
  s: (d.high >> 12) & 1,
  dpl: dplOf(d),
  present: (d.high >> 15) & 1,
  avl: (d.high >> 20) & 1,
  l: (d.high >> 21) & 1,
  db: (d.high >> 22) & 1,
  g: (d.high >> 23) & 1,
  unusable: 0,
});

/** A segment register after a load of a null selector: unusable. */
export const nullSegment = (selector: number): KvmSegment => ({
  selector,
  base: 0n,
  limit: 0,
  type: 0,
  s: 0,
  dpl: 0,
  present: 0,
  avl: 0,
  l: 0,
  db: 0,
  g: 0,
  unusable: 1,
});

/** A segment of virtual-8086 mode. */
export const v86Segment = (selector: number): KvmSegment => ({
  ...nullSegment(selector),
  base: BigInt(selector << 4),
  limit: 0xffff,
  type: 3,
  s: 1,
  dpl: 3,
  present: 1,
  unusable: 0,
});

/** Whether the guest is in virtual-8086 mode by its own RFLAGS. */
export const isVm86 = (vcpu: KvmVcpu): boolean => isProtmode(vcpu) && (kvmGetRflags(vcpu) & RFLAGS_VM) !== 0n;

/**
 * __load_segment_descriptor: what register `seg` would hold. Marks the descriptor accessed, or busy for TR.
 * @throws EmulFault, or `unhandleable` for transfers through gates and returns to outer privilege levels
 */
export function loadSegmentDescriptor(
  vcpu: KvmVcpu,
  selector: number,
  seg: number,
  cpl: number,
  transfer: Transfer,
): KvmSegment {
  const { ops } = vcpu.module;
  if (!isProtmode(vcpu)) {
    // Limit and rights stay, as in "unreal mode".
    return { ...ops.getSegment(vcpu, seg), selector, base: BigInt(selector << 4) };
  }
  const vector = transfer === Transfer.TASK_SWITCH ? ExcVector.TS : ExcVector.GP;
  const refuse = (): never => {
    throw new EmulFault(vector, selector & 0xfffc);
  };
  const long64 = isLongMode(vcpu) && ops.getCsDbLBits(vcpu).l !== 0;
  if (seg <= Seg.GS && isVm86(vcpu)) return v86Segment(selector);
  if (seg === Seg.TR && selector & 4) refuse();
  if (seg === Seg.LDTR && selector & 4) refuse();
  if ((selector & 0xfffc) === 0) {
    if (seg === Seg.CS || seg === Seg.TR) refuse();
    if (seg !== Seg.SS) return nullSegment(selector);
    if (!long64 || (selector & 3) !== cpl) refuse();
    // SS.DPL is where the CPL lies.
    return {
      ...nullSegment(selector),
      type: 3,
      s: 1,
      present: 1,
      dpl: cpl,
      db: 1,
      g: 1,
      limit: 0xffffffff,
      unusable: 0,
    };
  }
  const d = readDescriptor(vcpu, selector, vector);
  if (seg <= Seg.GS && !isCodeOrData(d)) {
    if (transfer === Transfer.CALL_JMP) throw unhandleable;
    refuse();
  }
  const checked = checkLoad(vcpu, d, selector, seg, cpl, transfer, refuse);
  if (!isPresent(d)) throw new EmulFault(seg === Seg.SS ? ExcVector.SS : ExcVector.NP, selector & 0xfffc);
  if (isCodeOrData(d)) {
    if (!(typeOf(d) & 1)) {
      d.high |= 1 << 8;
      writeDescriptorHigh(vcpu, d);
    }
    return segmentOf(checked, d);
  }
  let upper = 0n;
  if (isLongMode(vcpu)) {
    upper = BigInt(descriptorAt(vcpu, d.linear + 8n).low >>> 0) << 32n;
    const bits = vcpu.module.host.processors[0].model.linearBits;
    const base = upper | baseOf(d);
    if (BigInt.asUintN(64, BigInt.asIntN(bits, base)) !== base) refuse();
  }
  if (seg === Seg.TR) {
    d.high |= 1 << 9;
    writeDescriptorHigh(vcpu, d);
  }
  const loaded = segmentOf(checked, d);
  return { ...loaded, base: upper | loaded.base };
}

/** The checks by register (SDM 3A table 8-1, 5.5 to 5.8). @returns the selector the register gets */
function checkLoad(
  vcpu: KvmVcpu,
  d: Descriptor,
  selector: number,
  seg: number,
  cpl: number,
  transfer: Transfer,
  refuse: () => never,
): number {
  const type = typeOf(d);
  const dpl = dplOf(d);
  const rpl = selector & 3;
  switch (seg) {
    case Seg.SS:
      if (rpl !== cpl || (type & 0xa) !== 2 || dpl !== cpl) refuse();
      return selector;
    case Seg.CS: {
      if (!(type & 8)) refuse();
      if (transfer === Transfer.RET && rpl < cpl) refuse();
      if (transfer === Transfer.RET && rpl > cpl) throw unhandleable;
      const conforming = (type & 4) !== 0;
      if (transfer === Transfer.CALL_JMP) {
        if (conforming ? dpl > cpl : rpl > cpl || dpl !== cpl) refuse();
      } else if (conforming ? dpl > rpl : dpl !== rpl) {
        refuse();
      }
      const both = 3 << 21;
      if ((d.high & both) === both && isLongMode(vcpu)) refuse();
      return (selector & 0xfffc) | cpl;
    }
    case Seg.TR:
      if (isCodeOrData(d) || (type !== 1 && type !== 9)) refuse();
      return selector;
    case Seg.LDTR:
      if (isCodeOrData(d) || type !== 2) refuse();
      return selector;
    default:
      if ((type & 0xa) === 8) refuse();
      if ((type & 0xc) !== 0xc && (rpl > dpl || cpl > dpl)) refuse();
      return selector;
  }
}
