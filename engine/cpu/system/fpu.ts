/**
 * State of x87, MMX and SSE: the instructions that save, load and reset it, and the conditions under which any of these
 * instructions raises #NM, #UD or #MF (SDM 3A 2.5, table 2-2 and 13.1; SDM 1 8.1, 10.5, 13.4 to 13.11).
 *
 * The register stack lies in the CPU block by physical register; FXSAVE and XSAVE images are relative to the top of stack.
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import type { Instruction } from "../isa/instruction";
import { CodeMode, Off } from "../state";
import { checkMmx, checkSse, checkX87 } from "../x87/checks";
import { setControl } from "../x87/control";
import { x87Handlers } from "../x87/handlers";
import { initialize, setTags, updateSummary } from "../x87/stack";
import { effectiveAddress } from "./operands";

const CR0_TS = 1 << 3;
const CR4_OSFXSR = 1 << 9;
const CR4_OSXSAVE = 1 << 18;

const TOP_SHIFT = 11;

/** MXCSR bits that exist (SDM 1 10.2.3), DAZ included. */
export const MXCSR_MASK = 0xffff;
const MXCSR_INIT = 0x1f80;

/** State components of XCR0 (SDM 1 13.1). */
const Component = { X87: 1, SSE: 2, AVX: 4 } as const;
const LEGACY_SIZE = 512;
const HEADER_SIZE = 64;
/** The AVX component: 16 bytes for each of 16 registers, at this place of the standard format. */
const AVX_OFFSET = LEGACY_SIZE + HEADER_SIZE;
const AVX_SIZE = 256;
const COMPACTED = 1n << 63n;

const vectorAt = (register: number): number => Off.VECTOR + register * 64;

/** Whether 64-bit forms of the images are used: XMM8 to XMM15, and with REX.W 64-bit instruction pointers. */
const is64 = (cpu: Cpu): boolean => cpu.state.codeMode === CodeMode.LONG64;
const REX_W = 8;

function readBlock(cpu: Cpu, linear: bigint, length: number): DataView {
  const view = new DataView(new ArrayBuffer(length));
  for (let i = 0; i < length; i += 8) view.setBigUint64(i, cpu.mmu.read(linear + BigInt(i), 8), true);
  return view;
}

/** Writes ranges of an image, after checking that all of it may be written. */
function writeBlock(cpu: Cpu, linear: bigint, image: DataView, ranges: readonly (readonly [number, number])[]): void {
  for (const [from, to] of ranges) {
    cpu.mmu.checkWrite(linear + BigInt(from), 1);
    cpu.mmu.checkWrite(linear + BigInt(to - 1), 1);
  }
  for (const [from, to] of ranges) {
    for (let i = from; i < to; i += 8) cpu.mmu.write(linear + BigInt(i), 8, image.getBigUint64(i, true));
  }
}

function aligned(cpu: Cpu, instruction: Instruction, size: number, alignment: bigint): bigint {
  const linear = effectiveAddress(cpu, instruction, size);
  if (linear % alignment !== 0n) throw new CpuFault(Vector.GP, 0);
  return linear;
}

/** x87 part of an FXSAVE or XSAVE image (SDM 1 table 10-2, 13.5.1). */
function storeX87(cpu: Cpu, image: DataView, wide: boolean): void {
  const { view, base, u8 } = cpu.state;
  image.setUint16(0, view.getUint16(base + Off.FCW, true), true);
  const status = view.getUint16(base + Off.FSW, true);
  image.setUint16(2, status, true);
  image.setUint8(4, view.getUint16(base + Off.FTW, true) & 0xff);
  image.setUint8(5, 0);
  image.setUint16(6, view.getUint16(base + Off.FOP, true), true);
  if (wide) {
    image.setBigUint64(8, cpu.state.u64(Off.FIP), true);
    image.setBigUint64(16, cpu.state.u64(Off.FDP), true);
  } else {
    image.setUint32(8, cpu.state.u32(Off.FIP), true);
    image.setUint32(12, view.getUint16(base + Off.FCS, true), true);
    image.setUint32(16, cpu.state.u32(Off.FDP), true);
    image.setUint32(20, view.getUint16(base + Off.FDS, true), true);
  }
  const top = (status >> TOP_SHIFT) & 7;
  for (let i = 0; i < 8; i++) {
    const from = base + Off.X87 + ((top + i) & 7) * 16;
    for (let b = 0; b < 16; b++) image.setUint8(32 + i * 16 + b, b < 10 ? u8[from + b] : 0);
  }
}

function loadX87(cpu: Cpu, image: DataView, wide: boolean): void {
  const { view, base, u8 } = cpu.state;
  setControl(cpu.state, image.getUint16(0, true));
  const status = image.getUint16(2, true);
  view.setUint16(base + Off.FSW, status, true);
  view.setUint16(base + Off.FTW, image.getUint8(4), true);
  view.setUint16(base + Off.FOP, image.getUint16(6, true) & 0x7ff, true);
  if (wide) {
    cpu.state.setU64(Off.FIP, image.getBigUint64(8, true));
    cpu.state.setU64(Off.FDP, image.getBigUint64(16, true));
    view.setUint16(base + Off.FCS, 0, true);
    view.setUint16(base + Off.FDS, 0, true);
  } else {
    cpu.state.setU64(Off.FIP, BigInt(image.getUint32(8, true)));
    view.setUint16(base + Off.FCS, image.getUint16(12, true), true);
    cpu.state.setU64(Off.FDP, BigInt(image.getUint32(16, true)));
    view.setUint16(base + Off.FDS, image.getUint16(20, true), true);
  }
  const top = (status >> TOP_SHIFT) & 7;
  for (let i = 0; i < 8; i++) {
    const to = base + Off.X87 + ((top + i) & 7) * 16;
    for (let b = 0; b < 10; b++) u8[to + b] = image.getUint8(32 + i * 16 + b);
  }
  updateSummary(cpu.state);
}

function storeMxcsr(cpu: Cpu, image: DataView): void {
  image.setUint32(24, cpu.state.u32(Off.MXCSR), true);
  image.setUint32(28, MXCSR_MASK, true);
}

function storeXmm(cpu: Cpu, image: DataView): void {
  const count = is64(cpu) ? 16 : 8;
  for (let i = 0; i < count; i++) {
    image.setBigUint64(160 + i * 16, cpu.state.u64(vectorAt(i)), true);
    image.setBigUint64(168 + i * 16, cpu.state.u64(vectorAt(i) + 8), true);
  }
}

function loadXmm(cpu: Cpu, image: DataView | null): void {
  const count = is64(cpu) ? 16 : 8;
  for (let i = 0; i < count; i++) {
    cpu.state.setU64(vectorAt(i), image ? image.getBigUint64(160 + i * 16, true) : 0n);
    cpu.state.setU64(vectorAt(i) + 8, image ? image.getBigUint64(168 + i * 16, true) : 0n);
  }
}

function checkMxcsr(value: number): void {
  if (value & ~MXCSR_MASK) throw new CpuFault(Vector.GP, 0);
}

const fxsave: SystemHandler = (cpu, instruction) => {
  checkX87(cpu);
  const linear = aligned(cpu, instruction, LEGACY_SIZE, 16n);
  const image = new DataView(new ArrayBuffer(LEGACY_SIZE));
  storeX87(cpu, image, is64(cpu) && (instruction.rex & REX_W) !== 0);
  storeMxcsr(cpu, image);
  // Without CR4.OSFXSR the XMM registers stay out (SDM 2A FXSAVE).
  const sse = (cpu.state.lo(Off.CR4) & CR4_OSFXSR) !== 0;
  if (sse) storeXmm(cpu, image);
  const xmmEnd = sse ? 160 + (is64(cpu) ? 256 : 128) : 160;
  writeBlock(cpu, linear, image, [[0, xmmEnd]]);
  return Next.SEQUENTIAL;
};

const fxrstor: SystemHandler = (cpu, instruction) => {
  checkX87(cpu);
  const linear = aligned(cpu, instruction, LEGACY_SIZE, 16n);
  const image = readBlock(cpu, linear, LEGACY_SIZE);
  const mxcsr = image.getUint32(24, true);
  const sse = (cpu.state.lo(Off.CR4) & CR4_OSFXSR) !== 0;
  if (sse) checkMxcsr(mxcsr);
  loadX87(cpu, image, is64(cpu) && (instruction.rex & REX_W) !== 0);
  if (sse) {
    cpu.state.setU32(Off.MXCSR, mxcsr);
    loadXmm(cpu, image);
  }
  return Next.SEQUENTIAL;
};

function checkXsave(cpu: Cpu): void {
  if (!(cpu.state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  if (cpu.state.lo(Off.CR0) & CR0_TS) throw new CpuFault(Vector.NM);
}

/** Requested-feature bitmap: EDX:EAX and what is enabled. User states only: this processor has no supervisor states. */
function requested(cpu: Cpu): number {
  return cpu.state.gpr32(0) & cpu.state.lo(Off.XCR0);
}

const xgetbv: SystemHandler = (cpu) => {
  if (!(cpu.state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  if (cpu.state.gpr32(1) !== 0) throw new CpuFault(Vector.GP, 0);
  cpu.state.setGpr32(0, cpu.state.u32(Off.XCR0));
  cpu.state.setGpr32(2, cpu.state.hi(Off.XCR0) >>> 0);
  return Next.SEQUENTIAL;
};

/** XCR0 bits this processor has. */
export function xcr0Allowed(cpu: Cpu): number {
  return cpu.model.features.has("avx") ? 7 : 3;
}

const xsetbv: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  if (!(state.lo(Off.CR4) & CR4_OSXSAVE)) throw new CpuFault(Vector.UD);
  if (state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
  cpu.guest?.interceptInstruction("xsetbv", instruction);
  const value = state.gpr32(0);
  const sseWithoutAvx = (value & (Component.SSE | Component.AVX)) === Component.AVX;
  const bad = state.gpr32(1) !== 0 || state.gpr32(2) !== 0 || (value & ~xcr0Allowed(cpu)) !== 0;
  if (bad || !(value & Component.X87) || sseWithoutAvx) throw new CpuFault(Vector.GP, 0);
  state.setU64(Off.XCR0, BigInt(value));
  cpu.contextChanged();
  return Next.SEQUENTIAL;
};

function storeComponents(
  cpu: Cpu,
  image: DataView,
  components: number,
  wide: boolean,
  avxAt: number,
): [number, number][] {
  const ranges: [number, number][] = [];
  if (components & Component.X87) {
    storeX87(cpu, image, wide);
    ranges.push([0, 24], [32, 160]);
  }
  if (components & (Component.SSE | Component.AVX)) {
    storeMxcsr(cpu, image);
    ranges.push([24, 32]);
  }
  if (components & Component.SSE) {
    storeXmm(cpu, image);
    ranges.push([160, 160 + (is64(cpu) ? 256 : 128)]);
  }
  if (components & Component.AVX) {
    const count = is64(cpu) ? 16 : 8;
    for (let i = 0; i < count; i++) {
      image.setBigUint64(avxAt + i * 16, cpu.state.u64(vectorAt(i) + 16), true);
      image.setBigUint64(avxAt + i * 16 + 8, cpu.state.u64(vectorAt(i) + 24), true);
    }
    ranges.push([avxAt, avxAt + count * 16]);
  }
  return ranges;
}

/** XSAVE, XSAVEOPT (standard format) and XSAVEC, XSAVES (compacted format). All components count as in use. */
const xsave =
  (compacted: boolean, supervisor: boolean): SystemHandler =>
  (cpu, instruction) => {
    checkXsave(cpu);
    if (supervisor && cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
    if (supervisor) cpu.guest?.interceptInstruction("xsaves", instruction);
    const linear = aligned(cpu, instruction, LEGACY_SIZE + HEADER_SIZE, 64n);
    const components = requested(cpu);
    const image = new DataView(new ArrayBuffer(AVX_OFFSET + AVX_SIZE));
    const ranges = storeComponents(cpu, image, components, is64(cpu) && (instruction.rex & REX_W) !== 0, AVX_OFFSET);
    if (compacted) {
      image.setBigUint64(LEGACY_SIZE, BigInt(components), true);
      image.setBigUint64(LEGACY_SIZE + 8, BigInt(components) | COMPACTED, true);
      ranges.push([LEGACY_SIZE, LEGACY_SIZE + 16]);
    } else {
      const before = cpu.mmu.read(linear + BigInt(LEGACY_SIZE), 8);
      const asked = BigInt(components);
      image.setBigUint64(LEGACY_SIZE, (before & ~asked) | asked, true);
      ranges.push([LEGACY_SIZE, LEGACY_SIZE + 8]);
    }
    writeBlock(cpu, linear, image, ranges);
    return Next.SEQUENTIAL;
  };

/** XRSTOR and XRSTORS: SDM 1 13.8, 13.12. Components of the mask that the header does not list get their initial state. */
const xrstor =
  (supervisor: boolean): SystemHandler =>
  (cpu, instruction) => {
    checkXsave(cpu);
    if (supervisor && cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
    if (supervisor) cpu.guest?.interceptInstruction("xrstors", instruction);
    const linear = aligned(cpu, instruction, LEGACY_SIZE + HEADER_SIZE, 64n);
    const header = readBlock(cpu, linear + BigInt(LEGACY_SIZE), HEADER_SIZE);
    const present = header.getBigUint64(0, true);
    const format = header.getBigUint64(8, true);
    const enabled = cpu.state.u64(Off.XCR0);
    const compacted = (format & COMPACTED) !== 0n;
    let reserved = compacted ? (format & ~COMPACTED & ~enabled) | (present & ~format) : format | (present & ~enabled);
    for (let i = 16; i < HEADER_SIZE; i += 8) if (compacted || i < 24) reserved |= header.getBigUint64(i, true);
    if (reserved !== 0n || (supervisor && !compacted)) throw new CpuFault(Vector.GP, 0);

    const components = requested(cpu);
    const image = readBlock(cpu, linear, LEGACY_SIZE);
    const has = (component: number): boolean => (present & BigInt(component)) !== 0n;
    // The standard form loads MXCSR whenever SSE or AVX is asked for, the compacted one with SSE only (SDM 1 13.8.1, 13.8.2).
    const wantsMxcsr = (components & (compacted ? Component.SSE : Component.SSE | Component.AVX)) !== 0;
    const mxcsr = compacted && !has(Component.SSE) ? MXCSR_INIT : image.getUint32(24, true);
    if (wantsMxcsr) checkMxcsr(mxcsr);
    const avx =
      components & Component.AVX && has(Component.AVX) ? readBlock(cpu, linear + BigInt(AVX_OFFSET), AVX_SIZE) : null;
    if (components & Component.X87) {
      if (has(Component.X87)) loadX87(cpu, image, is64(cpu) && (instruction.rex & REX_W) !== 0);
      else {
        initialize(cpu.state);
        for (let i = 0; i < 16; i++) cpu.state.setU64(Off.X87 + i * 8, 0n);
      }
    }
    if (wantsMxcsr) cpu.state.setU32(Off.MXCSR, mxcsr);
    if (components & Component.SSE) loadXmm(cpu, has(Component.SSE) ? image : null);
    if (components & Component.AVX) {
      const count = is64(cpu) ? 16 : 8;
      for (let i = 0; i < count; i++) {
        cpu.state.setU64(vectorAt(i) + 16, avx ? avx.getBigUint64(i * 16, true) : 0n);
        cpu.state.setU64(vectorAt(i) + 24, avx ? avx.getBigUint64(i * 16 + 8, true) : 0n);
      }
    }
    return Next.SEQUENTIAL;
  };

const ldmxcsr: SystemHandler = (cpu, instruction) => {
  checkSse(cpu);
  const value = Number(cpu.mmu.read(effectiveAddress(cpu, instruction, 4), 4));
  checkMxcsr(value);
  cpu.state.setU32(Off.MXCSR, value);
  return Next.SEQUENTIAL;
};

const stmxcsr: SystemHandler = (cpu, instruction) => {
  checkSse(cpu);
  cpu.mmu.write(effectiveAddress(cpu, instruction, 4), 4, BigInt(cpu.state.u32(Off.MXCSR)));
  return Next.SEQUENTIAL;
};

const emms: SystemHandler = (cpu) => {
  checkMmx(cpu);
  const { view, base } = cpu.state;
  view.setUint16(base + Off.FSW, view.getUint16(base + Off.FSW, true) & ~(7 << 11), true);
  setTags(cpu.state, 0);
  return Next.SEQUENTIAL;
};

export { checkMmx, checkSse };

export const fpuHandlers: Readonly<Record<string, SystemHandler>> = {
  ...x87Handlers,
  FXSAVE: fxsave,
  FXRSTOR: fxrstor,
  LDMXCSR: ldmxcsr,
  STMXCSR: stmxcsr,
  EMMS: emms,
  XGETBV: xgetbv,
  XSETBV: xsetbv,
  XSAVE: xsave(false, false),
  XSAVEOPT: xsave(false, false),
  XSAVEC: xsave(true, false),
  XSAVES: xsave(true, true),
  XRSTOR: xrstor(false),
  XRSTORS: xrstor(true),
};
