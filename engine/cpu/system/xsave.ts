/**
 * XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS, XGETBV and XSETBV (SDM 1 chapter 13). What components there are, and where
 * they lie in an area, is models/model.ts's table; here is what saves, loads and initialises each.
 *
 * This processor always knows whether a component is in its initial configuration (XINUSE), and takes every component for
 * modified (XMODIFIED), as the manual allows (13.6).
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { XSAVE_COMPONENTS, XSAVE_HEADER_END } from "../models/model";
import { type CpuState, Off } from "../state";
import { Fcw, initialize } from "../x87/stack";
import {
  aligned,
  checkMxcsr,
  copyIn,
  copyOut,
  hasWidePointers,
  LEGACY_SIZE,
  loadX87,
  loadXmm,
  type Range,
  readBlock,
  storeMxcsr,
  storeX87,
  storeXmm,
  vectorAt,
  vectorCount,
  writeBlock,
} from "./fpu-image";

const CR0_TS = 1 << 3;
const CR4_OSXSAVE = 1 << 18;
const MXCSR_INIT = 0x1f80;

/** State components of XCR0 (SDM 1 13.1). */
const X87 = 1 << 0;
const SSE = 1 << 1;
const AVX = 1 << 2;
const PKRU = 1 << 9;

const HEADER_SIZE = XSAVE_HEADER_END - LEGACY_SIZE;
const XCOMP_BV = 8;
const COMPACTED = 1n << 63n;

/** A component outside the legacy region. */
interface Extended {
  readonly bit: number;
  /** Place in the standard format, and bytes. */
  readonly offset: number;
  readonly size: number;
  inUse(state: CpuState): boolean;
  /** Writes the component into an area that begins with it. @returns bytes written */
  store(cpu: Cpu, area: DataView, at: number): number;
  /** Loads from an area that begins with it, or initialises. */
  load(cpu: Cpu, area: DataView | null): void;
}

const UPPER = 16;

function avxInUse(state: CpuState): boolean {
  for (let i = 0; i < 16; i++) {
    const at = vectorAt(i) + UPPER;
    if ((state.lo(at) | state.hi(at) | state.lo(at + 8) | state.hi(at + 8)) !== 0) return true;
  }
  return false;
}

const BEHAVIOUR: ReadonlyMap<number, Pick<Extended, "inUse" | "store" | "load">> = new Map([
  [
    AVX,
    {
      inUse: avxInUse,
      store(cpu, area, at) {
        const count = vectorCount(cpu);
        for (let i = 0; i < count; i++) copyOut(cpu.state, vectorAt(i) + UPPER, area, at + i * 16);
        return count * 16;
      },
      load(cpu, area) {
        for (let i = 0; i < vectorCount(cpu); i++) copyIn(cpu.state, vectorAt(i) + UPPER, area, i * 16);
      },
    },
  ],
  [
    PKRU,
    {
      inUse: (state) => state.u32(Off.PKRU) !== 0,
      store(cpu, area, at) {
        area.setBigUint64(at, BigInt(cpu.state.u32(Off.PKRU)), true);
        return 8;
      },
      load(cpu, area) {
        cpu.state.setU32(Off.PKRU, area ? area.getUint32(0, true) : 0);
        cpu.contextChanged();
      },
    },
  ],
]);

const EXTENDED: readonly Extended[] = XSAVE_COMPONENTS.flatMap(({ index, offset, size }) => {
  const behaviour = BEHAVIOUR.get(1 << index);
  return behaviour ? [{ bit: 1 << index, offset, size, ...behaviour }] : [];
});
const AREA_SIZE = Math.max(...EXTENDED.map((c) => c.offset + c.size));

/** XCR0 bits this processor has. */
export function xcr0Allowed(cpu: Cpu): number {
  let bits = 0;
  for (const { index, feature } of XSAVE_COMPONENTS) {
    if (feature === undefined || cpu.model.features.has(feature)) bits |= 1 << index;
  }
  return bits;
}

/** Whether x87 state differs from what FNINIT leaves, with all registers zero (SDM 1 13.6). */
function x87InUse(state: CpuState): boolean {
  const { view, base } = state;
  const at = base + Off.FCW;
  if (view.getUint16(at, true) !== Fcw.INITIAL) return true;
  for (let i = 2; i < Off.MXCSR - Off.FCW; i += 2) if (view.getUint16(at + i, true) !== 0) return true;
  for (let i = 0; i < 8; i++) {
    const register = Off.X87 + i * 16;
    if ((state.lo(register) | state.hi(register) | (state.lo(register + 8) & 0xffff)) !== 0) return true;
  }
  return false;
}

/** Whether an XMM register, or as XSAVE counts it MXCSR too, is not as after a reset. */
function sseInUse(state: CpuState, withMxcsr: boolean): boolean {
  if (withMxcsr && state.u32(Off.MXCSR) !== MXCSR_INIT) return true;
  for (let i = 0; i < 16; i++) {
    const at = vectorAt(i);
    if ((state.lo(at) | state.hi(at) | state.lo(at + 8) | state.hi(at + 8)) !== 0) return true;
  }
  return false;
}

/** XINUSE, of the components in `mask`. */
function inUse(state: CpuState, mask: number, withMxcsr: boolean): number {
  let bits = 0;
  if (mask & X87 && x87InUse(state)) bits |= X87;
  if (mask & SSE && sseInUse(state, withMxcsr)) bits |= SSE;
  for (const { bit, inUse: used } of EXTENDED) if (mask & bit && used(state)) bits |= bit;
  return bits;
}

/** Where a component is: at its place, or in the compacted format behind those of lower number that are there (13.4.3). */
function placeOf(component: Extended, format: number, compacted: boolean): number {
  if (!compacted) return component.offset;
  let at = XSAVE_HEADER_END;
  for (const other of EXTENDED) {
    if (other.bit === component.bit) break;
    if (format & other.bit) at += other.size;
  }
  return at;
}

function checkXsave(cpu: Cpu): void {
  if (!(cpu.state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  if (cpu.state.lo(Off.CR0) & CR0_TS) throw new CpuFault(Vector.NM);
}

/** The supervisor instructions: CPL 0, and a hypervisor may intercept them. */
function checkSupervisor(cpu: Cpu): void {
  if (cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
}

/** Requested-feature bitmap: EDX:EAX and what is enabled, with IA32_XSS for the supervisor's instructions. */
function requested(cpu: Cpu, supervisor: boolean): number {
  const { state } = cpu;
  return state.gpr32(0) & (state.lo(Off.XCR0) | (supervisor ? state.lo(Off.XSS) : 0));
}

const xgetbv: SystemHandler = (cpu) => {
  const { state } = cpu;
  if (!(state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  const index = state.gpr32(1);
  if (index > 1 || (index === 1 && !cpu.model.features.has("xgetbv1"))) throw new CpuFault(Vector.GP, 0);
  const xcr0 = state.lo(Off.XCR0);
  state.setGpr32(0, index === 0 ? xcr0 : inUse(state, xcr0, false));
  state.setGpr32(2, index === 0 ? state.hi(Off.XCR0) : 0);
  return Next.SEQUENTIAL;
};

const xsetbv: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  if (!(state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  checkSupervisor(cpu);
  cpu.guest?.interceptInstruction("xsetbv", instruction);
  const value = state.gpr32(0);
  const avxWithoutSse = (value & (SSE | AVX)) === AVX;
  const bad = state.gpr32(1) !== 0 || state.gpr32(2) !== 0 || (value & ~xcr0Allowed(cpu)) !== 0;
  if (bad || !(value & X87) || avxWithoutSse) throw new CpuFault(Vector.GP, 0);
  state.setU64(Off.XCR0, BigInt(value));
  cpu.contextChanged();
  return Next.SEQUENTIAL;
};

/** How the saving instructions differ. */
interface SaveForm {
  readonly compacted: boolean;
  /** Components in their initial configuration are not written. */
  readonly initOptimization: boolean;
  readonly supervisor: boolean;
}

const save =
  ({ compacted, initOptimization, supervisor }: SaveForm): SystemHandler =>
  (cpu, instruction) => {
    const { state } = cpu;
    checkXsave(cpu);
    if (supervisor) {
      checkSupervisor(cpu);
      cpu.guest?.interceptInstruction("xsaves", instruction);
    }
    const linear = aligned(cpu, instruction, XSAVE_HEADER_END, 64n);
    const mask = requested(cpu, supervisor);
    const used = inUse(state, mask, true);
    const written = initOptimization ? used : mask;
    const image = new DataView(new ArrayBuffer(AREA_SIZE));
    const ranges: Range[] = [];
    if (written & X87) {
      storeX87(cpu, image, hasWidePointers(cpu, instruction));
      ranges.push([0, 24], [32, 160]);
    }
    // MXCSR belongs to SSE in the compacted format, to SSE and AVX, in use or not, in the standard one (13.7 to 13.11).
    if (compacted ? written & SSE : mask & (SSE | AVX)) {
      storeMxcsr(cpu, image);
      ranges.push([24, 32]);
    }
    if (written & SSE) {
      storeXmm(cpu, image);
      ranges.push([160, 160 + vectorCount(cpu) * 16]);
    }
    for (const component of EXTENDED) {
      if (!(written & component.bit)) continue;
      const at = placeOf(component, mask, compacted);
      ranges.push([at, at + component.store(cpu, image, at)]);
    }
    if (compacted) {
      image.setBigUint64(LEGACY_SIZE, BigInt(used), true);
      image.setBigUint64(LEGACY_SIZE + XCOMP_BV, BigInt(mask) | COMPACTED, true);
      ranges.push([LEGACY_SIZE, LEGACY_SIZE + 16]);
    } else {
      const before = cpu.mmu.read(linear + BigInt(LEGACY_SIZE), 8);
      image.setBigUint64(LEGACY_SIZE, (before & ~BigInt(mask)) | BigInt(used), true);
      ranges.push([LEGACY_SIZE, LEGACY_SIZE + 8]);
    }
    writeBlock(cpu, linear, image, ranges);
    return Next.SEQUENTIAL;
  };

/** Whether the header of an area breaks a rule (SDM 1 13.8, 13.12). */
function badHeader(cpu: Cpu, header: DataView, supervisor: boolean): boolean {
  const { state } = cpu;
  const present = header.getBigUint64(0, true);
  const format = header.getBigUint64(XCOMP_BV, true);
  const compacted = (format & COMPACTED) !== 0n;
  const enabled = state.u64(Off.XCR0) | (supervisor ? state.u64(Off.XSS) : 0n);
  if (!compacted) {
    return supervisor || format !== 0n || header.getBigUint64(16, true) !== 0n || (present & ~enabled) !== 0n;
  }
  if (!cpu.model.features.has("xsavec")) return true;
  if ((format & ~COMPACTED & ~enabled) !== 0n || (present & ~format) !== 0n) return true;
  for (let i = 16; i < HEADER_SIZE; i += 8) if (header.getBigUint64(i, true) !== 0n) return true;
  return false;
}

/** XRSTOR and XRSTORS. Components of the mask that the header does not list get their initial configuration. */
const restore =
  (supervisor: boolean): SystemHandler =>
  (cpu, instruction) => {
    const { state } = cpu;
    checkXsave(cpu);
    if (supervisor) {
      checkSupervisor(cpu);
      cpu.guest?.interceptInstruction("xrstors", instruction);
    }
    const linear = aligned(cpu, instruction, XSAVE_HEADER_END, 64n);
    const header = readBlock(cpu, linear + BigInt(LEGACY_SIZE), HEADER_SIZE);
    if (badHeader(cpu, header, supervisor)) throw new CpuFault(Vector.GP, 0);
    const present = header.getUint32(0, true);
    const format = header.getUint32(XCOMP_BV, true);
    const compacted = (header.getBigUint64(XCOMP_BV, true) & COMPACTED) !== 0n;

    // Everything is read before anything is loaded, so that a fault changes nothing.
    const mask = requested(cpu, supervisor);
    const image = mask & (X87 | SSE | AVX) ? readBlock(cpu, linear, LEGACY_SIZE) : new DataView(new ArrayBuffer(0));
    const areas = EXTENDED.map((component) => {
      if (!(mask & present & component.bit)) return null;
      return readBlock(cpu, linear + BigInt(placeOf(component, format, compacted)), component.size);
    });
    // The standard form loads MXCSR whenever SSE or AVX is asked for, the compacted one with SSE only (13.8.1, 13.8.2).
    const loadsMxcsr = (mask & (compacted ? SSE : SSE | AVX)) !== 0;
    const mxcsr = loadsMxcsr && (!compacted || present & SSE) ? image.getUint32(24, true) : MXCSR_INIT;
    if (loadsMxcsr) checkMxcsr(mxcsr);

    if (mask & X87) {
      if (present & X87) loadX87(cpu, image, hasWidePointers(cpu, instruction));
      else {
        initialize(state);
        for (let i = 0; i < 16; i++) state.setU64(Off.X87 + i * 8, 0n);
      }
    }
    if (loadsMxcsr) state.setU32(Off.MXCSR, mxcsr);
    if (mask & SSE) loadXmm(cpu, present & SSE ? image : null);
    EXTENDED.forEach((component, i) => {
      if (mask & component.bit) component.load(cpu, areas[i]);
    });
    return Next.SEQUENTIAL;
  };

export const xsaveHandlers: Readonly<Record<string, SystemHandler>> = {
  XGETBV: xgetbv,
  XSETBV: xsetbv,
  XSAVE: save({ compacted: false, initOptimization: false, supervisor: false }),
  XSAVEOPT: save({ compacted: false, initOptimization: true, supervisor: false }),
  XSAVEC: save({ compacted: true, initOptimization: true, supervisor: false }),
  XSAVES: save({ compacted: true, initOptimization: true, supervisor: true }),
  XRSTOR: restore(false),
  XRSTORS: restore(true),
};
