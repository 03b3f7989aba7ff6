/**
 * Task switches, which VMX never does itself (arch/x86/kvm/emulate.c: emulator_task_switch; SDM 3A 7.3): registers go to the
 * old TSS and come from the new one.
 */
import { Rflags, Seg } from "../cpu/state";
import {
  accessSystem,
  baseOf,
  dplOf,
  isPresent,
  limitOf,
  loadSegmentDescriptor,
  nullSegment,
  readDescriptor,
  segmentOf,
  Transfer,
  typeOf,
  v86Segment,
  writeDescriptorHigh,
} from "./emulateSegment";
import { EmulFault } from "./emulateTypes";
import {
  Cr0,
  isLongMode,
  kvmGetRflags,
  kvmReadCr0,
  kvmReadCr3,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRipRead,
  kvmRipWrite,
} from "./kvmCacheRegs";
import type { KvmVcpu } from "./types";
import { KvmExit, KvmInternalError, type KvmSegment } from "./uapi";
import { ExcVector, kvmInjectPageFault, kvmQueueExceptionE } from "./x86Events";
import { kvmSetCr0, kvmSetCr3 } from "./x86Regs";

/** Bits 31:30 of the exit qualification. */
export const TaskSwitchReason = { CALL: 0, IRET: 1, JMP: 2, GATE: 3 } as const;
export type TaskSwitchReason = (typeof TaskSwitchReason)[keyof typeof TaskSwitchReason];

/** Layout of a TSS: offsets of what a switch saves and loads (SDM 3A figures 7-2 and 7-10). */
interface TssLayout {
  readonly size: number;
  readonly word: 2 | 4;
  readonly ip: number;
  readonly flags: number;
  readonly gpr: number;
  readonly segments: readonly number[];
  readonly ldt: number;
}
const TSS32: TssLayout = {
  size: 104,
  word: 4,
  ip: 32,
  flags: 36,
  gpr: 40,
  segments: [72, 76, 80, 84, 88, 92],
  ldt: 96,
};
const TSS16: TssLayout = { size: 44, word: 2, ip: 14, flags: 16, gpr: 18, segments: [34, 36, 38, 40], ldt: 42 };
/** Indices of SEGMENT_ORDER in the order in which descriptors are loaded. */
const LOAD_ORDER = [1, 2, 0, 3, 4, 5] as const;
const SEGMENT_ORDER = [Seg.ES, Seg.CS, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const;

/**
 * kvm_task_switch.
 * @param idtIndex vector of INT n that led through a task gate, or -1
 * @param errorCode to be pushed on the new task's stack, or null
 * @returns 1 to re-enter, 0 for KVM_EXIT_INTERNAL_ERROR
 */
export function kvmTaskSwitch(
  vcpu: KvmVcpu,
  selector: number,
  idtIndex: number,
  reason: TaskSwitchReason,
  errorCode: number | null,
): number {
  if (isLongMode(vcpu)) return taskSwitchFailed(vcpu);
  try {
    emulatorDoTaskSwitch(vcpu, selector, idtIndex, reason, errorCode);
  } catch (e) {
    if (!(e instanceof EmulFault)) throw e;
    if (e.vector === ExcVector.PF) kvmInjectPageFault(vcpu, e.address, e.errorCode ?? 0);
    else kvmQueueExceptionE(vcpu, e.vector, e.errorCode ?? 0);
  }
  return 1;
}

/** There are no task switches in long mode. */
function taskSwitchFailed(vcpu: KvmVcpu): number {
  vcpu.run.exit = {
    exit_reason: KvmExit.INTERNAL_ERROR,
    internal: { suberror: KvmInternalError.EMULATION, ndata: 0, data: [] },
  };
  return 0;
}

/** emulator_do_task_switch */
function emulatorDoTaskSwitch(
  vcpu: KvmVcpu,
  selector: number,
  idtIndex: number,
  reason: TaskSwitchReason,
  errorCode: number | null,
): void {
  const { ops } = vcpu.module;
  const oldTr = ops.getSegment(vcpu, Seg.TR);
  const next = readDescriptor(vcpu, selector, reason === TaskSwitchReason.IRET ? ExcVector.TS : ExcVector.GP);
  if (reason === TaskSwitchReason.GATE) {
    if (idtIndex >= 0) checkGate(vcpu, idtIndex);
  } else if (reason !== TaskSwitchReason.IRET) {
    const cpl = ops.getCpl(vcpu);
    if ((selector & 3) > dplOf(next) || cpl > dplOf(next)) throw new EmulFault(ExcVector.GP, selector & 0xfffc);
  }
  const wide = (typeOf(next) & 8) !== 0;
  const layout = wide ? TSS32 : TSS16;
  if (!isPresent(next) || limitOf(next) < layout.size - 1) throw new EmulFault(ExcVector.TS, selector & 0xfffc);

  if (reason === TaskSwitchReason.IRET || reason === TaskSwitchReason.JMP) setBusy(vcpu, oldTr.selector, false);
  let oldFlags = kvmGetRflags(vcpu);
  if (reason === TaskSwitchReason.IRET) oldFlags &= ~BigInt(Rflags.NT);
  saveTask(vcpu, oldTr, oldFlags);

  const tss = new Uint8Array(layout.size);
  accessSystem(vcpu, baseOf(next), tss, false);
  const nested = reason === TaskSwitchReason.CALL || reason === TaskSwitchReason.GATE;
  if (nested) {
    const link = new Uint8Array(2);
    new DataView(link.buffer).setUint16(0, oldTr.selector, true);
    accessSystem(vcpu, baseOf(next), link, true);
  }
  if (reason !== TaskSwitchReason.IRET) {
    next.high |= 1 << 9;
    writeDescriptorHigh(vcpu, next);
  }
  kvmSetCr0(vcpu, kvmReadCr0(vcpu) | Cr0.TS);
  ops.setSegment(vcpu, Seg.TR, { ...segmentOf(selector, next), type: typeOf(next) | 2 });
  loadTask(vcpu, tss, layout, nested);
  if (errorCode !== null) pushErrorCode(vcpu, layout.word, errorCode);
}

/** INT n through a task gate needs the gate's DPL. */
function checkGate(vcpu: KvmVcpu, vector: number): void {
  const idt = vcpu.module.ops.getIdt(vcpu);
  const gate = new Uint8Array(8);
  accessSystem(vcpu, idt.base + BigInt(vector * 8), gate, false);
  const dpl = (gate[5] >> 5) & 3;
  if (dpl < vcpu.module.ops.getCpl(vcpu)) throw new EmulFault(ExcVector.GP, vector * 8 + 2);
}

function setBusy(vcpu: KvmVcpu, selector: number, busy: boolean): void {
  const d = readDescriptor(vcpu, selector, ExcVector.TS);
  if (busy) d.high |= 1 << 9;
  else d.high &= ~(1 << 9);
  writeDescriptorHigh(vcpu, d);
}

/** task_switch_32 and task_switch_16, first half: the dynamic fields of the old TSS. */
function saveTask(vcpu: KvmVcpu, tr: KvmSegment, flags: bigint): void {
  const layout = tr.type & 8 ? TSS32 : TSS16;
  const bytes = new Uint8Array(layout.size);
  accessSystem(vcpu, tr.base, bytes, false);
  const view = new DataView(bytes.buffer);
  const put = (offset: number, value: bigint) => {
    if (layout.word === 4) view.setUint32(offset, Number(value & 0xffffffffn), true);
    else view.setUint16(offset, Number(value & 0xffffn), true);
  };
  put(layout.ip, kvmRipRead(vcpu));
  put(layout.flags, flags);
  for (let i = 0; i < 8; i++) put(layout.gpr + i * layout.word, kvmRegisterReadRaw(vcpu, i));
  for (const [i, offset] of layout.segments.entries()) {
    view.setUint16(offset, vcpu.module.ops.getSegment(vcpu, SEGMENT_ORDER[i]).selector, true);
  }
  const end = layout.segments[layout.segments.length - 1] + layout.word;
  accessSystem(vcpu, tr.base + BigInt(layout.ip), bytes.subarray(layout.ip, end), true);
}

/** Second half: everything from the new TSS; segments are checked as their loads would be. */
function loadTask(vcpu: KvmVcpu, tss: Uint8Array, layout: TssLayout, nested: boolean): void {
  const { ops } = vcpu.module;
  const view = new DataView(tss.buffer, tss.byteOffset, tss.byteLength);
  const get = (offset: number) => (layout.word === 4 ? view.getUint32(offset, true) : view.getUint16(offset, true));
  if (layout.word === 4 && kvmReadCr0(vcpu) & Cr0.PG) {
    const cr3 = BigInt(view.getUint32(28, true));
    if (cr3 !== kvmReadCr3(vcpu) && kvmSetCr3(vcpu, cr3)) throw new EmulFault(ExcVector.GP, 0);
  }
  kvmRipWrite(vcpu, BigInt(get(layout.ip)));
  let flags = BigInt(get(layout.flags)) | 2n;
  if (nested) flags |= BigInt(Rflags.NT);
  ops.setRflags(vcpu, flags);
  for (let i = 0; i < 8; i++) kvmRegisterWriteRaw(vcpu, i, BigInt(get(layout.gpr + i * layout.word)));

  const selectors = layout.segments.map((offset) => view.getUint16(offset, true));
  const v86 = (flags & BigInt(Rflags.VM)) !== 0n;
  // Selectors first: a fault while a descriptor is loaded happens in the new task.
  for (const [i, selector] of selectors.entries()) {
    const seg = SEGMENT_ORDER[i];
    ops.setSegment(vcpu, seg, { ...ops.getSegment(vcpu, seg), selector });
  }
  loadLdt(vcpu, view.getUint16(layout.ldt, true));
  const cpl = v86 ? 3 : selectors[1] & 3;
  // As the processor does it, CS and SS before the data segments (SDM 3A table 8-1); Linux begins with ES.
  for (const i of LOAD_ORDER) {
    const selector = selectors[i];
    if (selector === undefined) continue;
    const seg = SEGMENT_ORDER[i];
    if (v86) ops.setSegment(vcpu, seg, v86Segment(selector));
    else ops.setSegment(vcpu, seg, loadSegmentDescriptor(vcpu, selector, seg, cpl, Transfer.TASK_SWITCH));
  }
  for (let i = selectors.length; i < SEGMENT_ORDER.length; i++) {
    ops.setSegment(vcpu, SEGMENT_ORDER[i], nullSegment(0));
  }
}

function loadLdt(vcpu: KvmVcpu, selector: number): void {
  if ((selector & 0xfffc) === 0) {
    vcpu.module.ops.setSegment(vcpu, Seg.LDTR, nullSegment(selector));
    return;
  }
  if (selector & 4) throw new EmulFault(ExcVector.TS, selector & 0xfffc);
  const d = readDescriptor(vcpu, selector, ExcVector.TS);
  if (typeOf(d) !== 2 || d.high & 0x1000 || !isPresent(d)) throw new EmulFault(ExcVector.TS, selector & 0xfffc);
  vcpu.module.ops.setSegment(vcpu, Seg.LDTR, segmentOf(selector, d));
}

function pushErrorCode(vcpu: KvmVcpu, word: 2 | 4, errorCode: number): void {
  const ss = vcpu.module.ops.getSegment(vcpu, Seg.SS);
  const mask = ss.db ? 0xffffffffn : 0xffffn;
  const old = kvmRegisterReadRaw(vcpu, 4);
  const rsp = (old - BigInt(word)) & mask;
  const bytes = new Uint8Array(word);
  new DataView(bytes.buffer).setUint16(0, errorCode & 0xffff, true);
  accessSystem(vcpu, ss.base + rsp, bytes, true);
  kvmRegisterWriteRaw(vcpu, 4, (old & ~mask) | rsp);
}
