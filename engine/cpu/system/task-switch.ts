/**
 * Hardware task switches (SDM 3A chapter 8): through TSS descriptors and task gates, by CALL, JMP, IRET and events, with
 * 16- and 32-bit TSSs. After the state of the new task is loaded, faults belong to the new task (8.3, step 12 on).
 */
import { type Cpu, CpuFault, Vector } from "../cpu";
import { CpuState, Off, Pending, Rflags, Seg, SegAttr, SegPart } from "../state";
import { Cr0, Dr6 } from "./bits";
import { loadCr3 } from "./control-registers";
import { MASK16, MASK32, StackWriter, sizeMask } from "./operands";
import {
  type Descriptor,
  errorCode,
  isCodeSegment,
  isConforming,
  isDataOrReadableCode,
  isNull,
  isWritableData,
  loadNull,
  markAccessed,
  markDescriptor,
  readDescriptor,
  SystemType,
  VM86_ATTRIBUTES,
} from "./segmentation";

/** What started a task switch, numbered as in the exit qualification (SDM 3C table 28-2). */
export const TaskSwitchSource = { CALL: 0, IRET: 1, JMP: 2, GATE: 3 } as const;
export type TaskSwitchSource = (typeof TaskSwitchSource)[keyof typeof TaskSwitchSource];

/** Offsets in a TSS: 32-bit (SDM 3A figure 8-2) and 16-bit (figure 8-10). */
const TSS32 = { size: 4, cr3: 0x1c, eip: 0x20, eflags: 0x24, gpr: 0x28, seg: 0x48, ldt: 0x60, trap: 0x64, limit: 0x67 };
const TSS16 = { size: 2, cr3: -1, eip: 0x0e, eflags: 0x10, gpr: 0x12, seg: 0x22, ldt: 0x2a, trap: -1, limit: 0x2b };

const BUSY = 2;

/** Segment registers in the order of the TSS: a 16-bit TSS has no FS and GS. */
const SEGMENTS = [Seg.ES, Seg.CS, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const;

/**
 * Switches to the task of a TSS selector; privilege has been checked by the caller.
 * @param instructionLength bytes of the instruction behind it: the saved EIP is behind that instruction
 * @param error pushed on the new task's stack
 * @param resume RF is set in the saved flags (fault-class exceptions)
 */
export function switchTask(
  cpu: Cpu,
  selector: number,
  source: TaskSwitchSource,
  instructionLength: number,
  error?: number,
  resume = false,
): void {
  const descriptor = checkTss(cpu, selector, source);
  cpu.guest?.interceptTaskSwitch(selector, source, instructionLength);
  const { state } = cpu;
  const next = descriptor.type & 8 ? TSS32 : TSS16;
  const old = state.segAttributes(Seg.TR) & 8 ? TSS32 : TSS16;
  const oldBase = state.segBase(Seg.TR);
  const oldSelector = state.segSelector(Seg.TR);
  const nested = source === TaskSwitchSource.CALL || source === TaskSwitchSource.GATE;

  // Everything is read, and every page that will be written is checked, before anything changes.
  const image = readTask(cpu, descriptor.base, next);
  if (old.limit > state.segLimit(Seg.TR)) throw new CpuFault(Vector.TS, errorCode(oldSelector));
  for (const at of [old.eip, old.seg + 11]) cpu.mmu.checkWrite(linear(oldBase, at), 1, true);
  if (nested) cpu.mmu.checkWrite(descriptor.base, 2, true);

  const oldDescriptor = readDescriptor(cpu, oldSelector, Vector.TS).address;
  if (!nested) markDescriptor(cpu, oldDescriptor, 0, BUSY);
  let flags = state.rflags;
  if (source === TaskSwitchSource.IRET) flags &= ~Rflags.NT;
  if (resume) flags |= Rflags.RF;
  saveTask(cpu, oldBase, old, flags, state.rip + BigInt(instructionLength));
  if (nested) cpu.mmu.write(descriptor.base, 2, BigInt(oldSelector), true);
  if (source !== TaskSwitchSource.IRET) markDescriptor(cpu, descriptor.address, BUSY);

  state.setSegment(Seg.TR, selector, descriptor.base, descriptor.limit, descriptor.attributes | BUSY);
  state.setLo(Off.CR0, state.lo(Off.CR0) | Cr0.TS);
  loadTask(cpu, image, next, nested, error);
}

const linear = (base: bigint, offset: number): bigint => (base + BigInt(offset)) & MASK32;

/** Checks of the TSS descriptor (SDM 3A 8.3 steps 2 to 4). Errors of an IRET are #TS. */
function checkTss(cpu: Cpu, selector: number, source: TaskSwitchSource): Descriptor {
  const vector = source === TaskSwitchSource.IRET ? Vector.TS : Vector.GP;
  if (isNull(selector) || selector & 4) throw new CpuFault(vector, errorCode(selector));
  const descriptor = readDescriptor(cpu, selector, vector);
  const busy = source === TaskSwitchSource.IRET;
  const wanted16 = busy ? SystemType.TSS16_BUSY : SystemType.TSS16_AVAILABLE;
  const wanted32 = busy ? SystemType.TSS_BUSY : SystemType.TSS_AVAILABLE;
  if (descriptor.type !== wanted16 && descriptor.type !== wanted32) throw new CpuFault(vector, errorCode(selector));
  if (!descriptor.present) throw new CpuFault(Vector.NP, errorCode(selector));
  const least = descriptor.type & 8 ? TSS32.limit : TSS16.limit;
  if (descriptor.limit < least) throw new CpuFault(Vector.TS, errorCode(selector));
  return descriptor;
}

interface TaskImage {
  readonly cr3: bigint;
  readonly eip: bigint;
  readonly eflags: number;
  readonly gpr: readonly bigint[];
  readonly selectors: readonly number[];
  readonly ldt: number;
  readonly trap: boolean;
}

function readTask(cpu: Cpu, base: bigint, tss: typeof TSS32): TaskImage {
  const read = (at: number, size: number): bigint => cpu.mmu.read(linear(base, at), size, true);
  const wide = tss.size === 4;
  const gpr: bigint[] = [];
  // The upper halves of registers that a 16-bit task loads are undefined; 0 here.
  for (let i = 0; i < 8; i++) gpr.push(read(tss.gpr + i * tss.size, tss.size));
  const selectors = SEGMENTS.map((_, i) => (wide || i < 4 ? Number(read(tss.seg + i * tss.size, 2)) : 0));
  return {
    cr3: wide ? read(tss.cr3, 4) : 0n,
    eip: read(tss.eip, tss.size),
    eflags: Number(read(tss.eflags, tss.size)),
    gpr,
    selectors,
    ldt: Number(read(tss.ldt, 2)),
    trap: wide && (read(tss.trap, 1) & 1n) !== 0n,
  };
}

function saveTask(cpu: Cpu, base: bigint, tss: typeof TSS32, flags: number, rip: bigint): void {
  const { state } = cpu;
  const { size } = tss;
  const put = (at: number, bytes: number, value: bigint): void =>
    cpu.mmu.write(linear(base, at), bytes, value & sizeMask(bytes), true);
  put(tss.eip, size, rip);
  put(tss.eflags, size, BigInt(flags >>> 0));
  for (let i = 0; i < 8; i++) put(tss.gpr + i * size, size, state.gpr(i));
  for (const [i, seg] of SEGMENTS.entries()) {
    if (size === 4 || i < 4) put(tss.seg + i * size, 2, BigInt(state.segSelector(seg)));
  }
}

/** Loads the new task (SDM 3A 8.3 steps 11 to 14). */
function loadTask(cpu: Cpu, image: TaskImage, tss: typeof TSS32, nested: boolean, error?: number): void {
  const { state } = cpu;
  const wide = tss.size === 4;
  const paging = (state.lo(Off.CR0) & Cr0.PG) !== 0;
  const badCr3 = wide && paging && !loadCr3(cpu, image.cr3);
  state.rip = image.eip;
  for (let i = 0; i < 8; i++) state.setGpr(i, image.gpr[i]);
  const known = 0x3f_7fd7;
  const kept = wide ? 0 : state.rflags & 0x3f_0000 & ~(Rflags.VM | Rflags.RF);
  state.rflags = kept | (image.eflags & known) | Rflags.FIXED | (nested ? Rflags.NT : 0);
  // The T flag of the TSS is a trap behind the switch.
  if (image.trap) {
    state.setLo(Off.PENDING_DEBUG, state.lo(Off.PENDING_DEBUG) | Dr6.BT);
    state.setU32(Off.PENDING, state.u32(Off.PENDING) | Pending.DEBUG);
    cpu.attention();
  }
  // Local breakpoints end with the task (SDM 3B 17.2.4).
  state.setLo(Off.DR7, state.lo(Off.DR7) & ~0x155);

  // All selectors are loaded, invalid as yet, before the first check: a fault handler finds them in the new task.
  const vm86 = (image.eflags & Rflags.VM) !== 0 && wide;
  for (const [i, seg] of SEGMENTS.entries()) {
    const selector = image.selectors[i];
    if (vm86) state.setSegment(seg, selector, BigInt(selector << 4), 0xffff, VM86_ATTRIBUTES);
    else state.setSegment(seg, selector, 0n, 0, SegAttr.UNUSABLE);
  }
  state.setSegment(Seg.LDTR, image.ldt, 0n, 0, SegAttr.UNUSABLE);
  const cpl = vm86 ? 3 : image.selectors[1] & 3;
  state.setU32(Off.CPL, cpl);
  if (!vm86) {
    const ss = CpuState.segOffset(Seg.SS);
    state.setU32(ss + SegPart.ATTRIBUTES, SegAttr.UNUSABLE | (cpl << SegAttr.DPL_SHIFT));
  }
  cpu.contextChanged();
  if (badCr3) throw new CpuFault(Vector.GP, 0);

  loadLdt(cpu, image.ldt);
  if (!vm86) loadSegments(cpu, image.selectors, cpl);
  cpu.contextChanged();
  if (error !== undefined) {
    const stack = StackWriter.current(cpu);
    stack.push(tss.size, BigInt(error));
    stack.commit();
  }
  const limit = BigInt(state.segLimit(Seg.CS));
  if ((state.rip & (wide ? MASK32 : MASK16)) > limit) throw new CpuFault(Vector.GP, 0);
}

function loadLdt(cpu: Cpu, selector: number): void {
  if (isNull(selector)) return;
  if (selector & 4) throw new CpuFault(Vector.TS, errorCode(selector));
  const ldt = readDescriptor(cpu, selector, Vector.TS);
  if (ldt.type !== SystemType.LDT || !ldt.present) throw new CpuFault(Vector.TS, errorCode(selector));
  cpu.state.setSegment(Seg.LDTR, selector, ldt.base, ldt.limit, ldt.attributes);
}

function loadSegments(cpu: Cpu, selectors: readonly number[], cpl: number): void {
  const { state } = cpu;
  const cache = (seg: number, d: Descriptor): void =>
    state.setSegment(seg, d.selector, d.base, d.limit, markAccessed(cpu, d));
  const refuse = (vector: number, selector: number): never => {
    throw new CpuFault(vector, errorCode(selector));
  };

  const cs = selectors[1];
  if (isNull(cs)) refuse(Vector.TS, cs);
  const code = readDescriptor(cpu, cs, Vector.TS);
  if (!isCodeSegment(code)) refuse(Vector.TS, cs);
  if (isConforming(code) ? code.dpl > cpl : code.dpl !== cpl) refuse(Vector.TS, cs);
  if (!code.present) refuse(Vector.NP, cs);
  cache(Seg.CS, code);

  const ss = selectors[2];
  if (isNull(ss)) refuse(Vector.TS, ss);
  const stack = readDescriptor(cpu, ss, Vector.TS);
  if (!isWritableData(stack) || stack.dpl !== cpl || (ss & 3) !== cpl) refuse(Vector.TS, ss);
  if (!stack.present) refuse(Vector.SS, ss);
  cache(Seg.SS, stack);

  for (const [i, seg] of SEGMENTS.entries()) {
    if (seg === Seg.CS || seg === Seg.SS) continue;
    const selector = selectors[i];
    if (isNull(selector)) {
      loadNull(cpu, seg, selector);
      continue;
    }
    const data = readDescriptor(cpu, selector, Vector.TS);
    if (!isDataOrReadableCode(data)) refuse(Vector.TS, selector);
    if (!isConforming(data) && (data.dpl < cpl || data.dpl < (selector & 3))) refuse(Vector.TS, selector);
    if (!data.present) refuse(Vector.NP, selector);
    cache(seg, data);
  }
}
