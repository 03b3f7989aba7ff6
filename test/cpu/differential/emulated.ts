/**
 * Our engine as one side of the comparison: the same code page and data window at the same linear addresses, CPL 3, and
 * behind every exception vector a HLT at CPL 0.
 */
import { VirtualClock } from "../../../engine/clock";
import type { Bus } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import type { RegionTuning } from "../../../engine/cpu/jit/regions";
import type { CpuModel, Feature } from "../../../engine/cpu/models/model";
import { Activity, Off, Seg, SegAttr } from "../../../engine/cpu/state";
import { PhysicalMemory } from "../../../engine/memory/physical";
import { silentTracer } from "../../../engine/trace";
import { NO_INTERRUPTS } from "../long-mode";
import {
  CODE,
  CODE_SIZE,
  COMPLETED,
  DATA,
  DATA_SIZE,
  type Instance,
  type Mode,
  newVectorState,
  PATTERN,
  type Result,
  type VectorState,
} from "./instance";

/** Everything the opcode table knows and a user program may use. */
// biome-ignore format: a list
const FEATURES: readonly Feature[] = [
  "fpu", "tsc", "msr", "pae", "cx8", "apic", "sep", "pge", "cmov", "pat", "clflush", "mmx", "fxsr", "sse", "sse2", "sse3",
  "ssse3", "sse4.1", "sse4.2", "popcnt", "movbe", "cx16", "bmi1", "bmi2", "lzcnt", "adx", "lahf64", "prefetchw", "syscall", "nx",
  "page1gb", "lm", "pcid", "smep", "smap", "xsave", "avx", "avx2", "fma", "f16c", "aes", "pclmulqdq", "sha",
];

const MODEL: CpuModel = {
  name: "differential",
  vendor: "GenuineIntel",
  leaves: [],
  features: new Set(FEATURES),
  physicalBits: 40,
  linearBits: 48,
};

/** Tier 1 compiles whatever has run a few times, so that short programs run compiled too. */
const EAGER: RegionTuning = { interval: 13, hot: 1, batch: 1, patience: 1 };

const BUS: Bus = {
  portIn: () => 0,
  portOut: () => {},
  mmioRead: () => 0n,
  mmioWrite: () => {},
};

// Physical memory. The two pages of the data window are neighbours in linear addresses only.
const PML4 = 0x1000;
const PDPT = 0x2000;
const DIRECTORY = 0x3000;
const CODE_TABLE = 0x4000;
const DATA_TABLE = 0x5000;
const SYSTEM_TABLE = 0x6000;
const SYSTEM_DIRECTORY = 0x7000;
const SYSTEM_PDPT = 0xf000;
const GDT = 0x8000;
const IDT = 0x9000;
const TSS = 0xa000;
const HANDLERS = 0xb000;
const KERNEL_STACK = 0xd000;
const LDT = 0xe000;
const CODE_PAGE = 0x10000;
const DATA_PAGES = [0x14000, 0x12000];
const MEMORY_SIZE = 0x20000;

/** The system's pages appear at this linear address, one to one, for the supervisor only: where no program ever looks. */
const SYSTEM = 0xffff_8000_0000_0000n;

const P = 1n;
const RW = 2n;
const US = 4n;

const FLAT_DATA = SegAttr.P | SegAttr.DPL | SegAttr.S | 0x3 | SegAttr.DB | SegAttr.G;
const LONG_CODE = SegAttr.P | SegAttr.DPL | SegAttr.S | 0xb | SegAttr.L | SegAttr.G;
const FLAT_CODE = SegAttr.P | SegAttr.DPL | SegAttr.S | 0xb | SegAttr.DB | SegAttr.G;
const LDT_CODE = SegAttr.P | SegAttr.DPL | SegAttr.S | 0xb;
const LDT_DATA = SegAttr.P | SegAttr.DPL | SegAttr.S | 0x3 | SegAttr.DB;

/** A segment descriptor (SDM 3A figure 3-8) of byte granularity. */
function descriptor(base: number, limit: number, attributes: number): bigint {
  const low = (BigInt(base & 0xffffff) << 16n) | BigInt(limit & 0xffff);
  const high = BigInt(attributes & 0xf0ff) | (BigInt(limit >>> 16) << 8n) | (BigInt(base >>> 24) << 16n);
  return low | (high << 40n);
}

const GDT_ENTRIES: readonly bigint[] = [
  0n,
  0x00cf9b000000ffffn, // 0x08: the supervisor's 32-bit code
  0x00af9b000000ffffn, // 0x10: its 64-bit code
  0x00cf93000000ffffn, // 0x18: its data
  0x00cffb000000ffffn, // 0x23: the user's 32-bit code
  0x00cff3000000ffffn, // 0x2b: the user's data
  0x00affb000000ffffn, // 0x33: the user's 64-bit code
  0n,
  0x00008b0000000067n, // 0x40: a busy TSS
  0n,
  0x000082000000000fn, // 0x50: the LDT
  0n,
];

/** Selectors user code starts with, by mode. */
const USER_CS: Readonly<Record<Mode, number>> = { 64: 0x33, 32: 0x23, 16: 7 };
const USER_SS: Readonly<Record<Mode, number>> = { 64: 0x2b, 32: 0x2b, 16: 0xf };

/** Exceptions that push an error code (SDM 3A table 6-1). */
const WITH_ERROR = new Set([8, 10, 11, 12, 13, 14, 17]);
/** The engine decodes up to 48 instructions in one go; one of them is the NOP. */
const DECODED_AT_ONCE = 47;

const BREAKPOINT = 3;
const PAGE_FAULT = 14;

export class Emulated {
  private readonly memory = new PhysicalMemory(MEMORY_SIZE);
  private readonly cpu;
  private readonly codeAt: number;
  private readonly dataAt: readonly number[];
  private readonly before = new Uint8Array(DATA_SIZE);
  private readonly beforeWords = new Int32Array(this.before.buffer);
  /** Bytes of the previous instance's instruction in the code page. */
  private lastIp = 0;
  private lastLength = 0;
  private lastMode: Mode | 0 = 0;

  constructor(tier: 0 | 1 = 0) {
    this.memory.add("ram", "ram", 0, MEMORY_SIZE);
    this.buildTables();
    const clock = new VirtualClock();
    const engine = new CpuEngine({ memory: this.memory, clock, trace: silentTracer, tier, tuning: EAGER });
    this.cpu = engine.createProcessor({ id: 0, model: MODEL, bus: BUS, interrupts: NO_INTERRUPTS });
    engine.activate(0);
    this.codeAt = this.memory.hostOffset(CODE_PAGE);
    this.dataAt = DATA_PAGES.map((pa) => this.memory.hostOffset(pa));
    this.memory.u8.fill(0xcc, this.codeAt, this.codeAt + CODE_SIZE);
    this.enterLongMode();
  }

  /** From now on every access to the data window takes the slow road, as accesses to watched pages do; or none does. */
  slowRoad(on: boolean): void {
    const watch = { space: "physical", length: 1, access: "readWrite" } as const;
    this.cpu.setWatchpoints(on ? DATA_PAGES.map((pa, id) => ({ ...watch, id, address: BigInt(pa) })) : []);
  }

  /**
   * For speed: has the handlers of many instructions made at once, by laying them out one behind another and running a NOP
   * in front of them, behind which the engine decodes on.
   */
  warmUp(instances: readonly Instance[]): void {
    const { cpu, codeAt } = this;
    const { u8 } = this.memory;
    for (let next = 0; next < instances.length; ) {
      const { mode } = instances[next];
      if (this.lastMode !== mode) this.setMode(mode);
      let at = codeAt;
      u8[at++] = 0x90;
      for (const { code, length } of instances.slice(next, next + DECODED_AT_ONCE)) {
        u8.set(code.subarray(0, length), at);
        at += length;
      }
      next += DECODED_AT_ONCE;
      cpu.code.invalidatePhysical(CODE_PAGE, CODE_SIZE);
      cpu.state.rip = mode === 16 ? 0n : BigInt(CODE);
      cpu.run(1);
    }
    u8.fill(0xcc, codeAt, codeAt + CODE_SIZE);
  }

  private put64(pa: number, value: bigint): void {
    this.memory.view.setBigUint64(this.memory.hostOffset(pa), value, true);
  }

  private buildTables(): void {
    this.put64(PML4, BigInt(PDPT) | P | RW | US);
    this.put64(PDPT, BigInt(DIRECTORY) | P | RW | US);
    const directoryEntry = (linear: number): number => DIRECTORY + ((linear >>> 21) & 511) * 8;
    this.put64(directoryEntry(CODE), BigInt(CODE_TABLE) | P | RW | US);
    this.put64(directoryEntry(DATA), BigInt(DATA_TABLE) | P | RW | US);
    this.put64(CODE_TABLE, BigInt(CODE_PAGE) | P | RW | US);
    DATA_PAGES.forEach((pa, i) => {
      this.put64(DATA_TABLE + i * 8, BigInt(pa) | P | RW | US);
    });
    // SYSTEM is the first page of the upper half.
    this.put64(PML4 + 256 * 8, BigInt(SYSTEM_PDPT) | P | RW);
    this.put64(SYSTEM_PDPT, BigInt(SYSTEM_DIRECTORY) | P | RW);
    this.put64(SYSTEM_DIRECTORY, BigInt(SYSTEM_TABLE) | P | RW);
    for (let page = 0; page < 16; page++) this.put64(SYSTEM_TABLE + page * 8, BigInt(page * 4096) | P | RW);

    // Linux's GDT and the harness's LDT: programs see the same selectors.
    GDT_ENTRIES.forEach((entry, i) => {
      this.put64(GDT + i * 8, entry);
    });
    this.put64(LDT, descriptor(CODE, CODE_SIZE - 1, LDT_CODE));
    this.put64(LDT + 8, descriptor(DATA, DATA_SIZE - 1, LDT_DATA));
    const entryPoint = SYSTEM + BigInt(HANDLERS);
    for (let vector = 0; vector < 32; vector++) {
      const offset = entryPoint + BigInt(vector * 16);
      const gate = (offset & 0xffffn) | (0x10n << 16n) | (0x8en << 40n) | (((offset >> 16n) & 0xffffn) << 48n);
      // INTO is an instruction of ring 3: gates have DPL 3.
      this.put64(IDT + vector * 16, gate | (3n << 45n));
      this.put64(IDT + vector * 16 + 8, offset >> 32n);
      this.memory.u8[this.memory.hostOffset(HANDLERS) + vector * 16] = 0xf4;
    }
    const tss = this.memory.hostOffset(TSS);
    this.memory.view.setBigUint64(tss + 4, SYSTEM + BigInt(KERNEL_STACK + 4096), true);
    // The I/O permission map would start behind the limit: every port is forbidden.
    this.memory.view.setUint16(tss + 0x66, 0x68, true);
  }

  private enterLongMode(): void {
    const { cpu } = this;
    const { state } = cpu;
    cpu.reset("power-up");
    state.setU64(Off.CR0, 0x80050033n);
    state.setU64(Off.CR3, BigInt(PML4));
    state.setU64(Off.CR4, 0x406a0n);
    state.setU64(Off.XCR0, 7n);
    state.setU64(Off.EFER, 0xd01n);
    state.setU64(Off.GDTR_BASE, SYSTEM + BigInt(GDT));
    state.setU32(Off.GDTR_LIMIT, 0x7f);
    state.setU64(Off.IDTR_BASE, SYSTEM + BigInt(IDT));
    state.setU32(Off.IDTR_LIMIT, 0x1ff);
    state.setSegment(Seg.TR, 0x40, SYSTEM + BigInt(TSS), 0x67, SegAttr.P | 0xb);
    state.setSegment(Seg.LDTR, 0x50, SYSTEM + BigInt(LDT), 0xf, SegAttr.P | 0x2);
    state.activity = Activity.ACTIVE;
    this.setMode(64);
  }

  private setMode(mode: Mode): void {
    const { state } = this.cpu;
    const cs = USER_CS[mode];
    if (mode === 16) state.setSegment(Seg.CS, cs, BigInt(CODE), CODE_SIZE - 1, LDT_CODE);
    else state.setSegment(Seg.CS, cs, 0n, 0xffffffff, mode === 32 ? FLAT_CODE : LONG_CODE);
    for (const seg of [Seg.ES, Seg.SS, Seg.DS]) {
      if (mode === 16) state.setSegment(seg, USER_SS[mode], BigInt(DATA), DATA_SIZE - 1, LDT_DATA);
      else state.setSegment(seg, USER_SS[mode], 0n, 0xffffffff, FLAT_DATA);
    }
    state.setSegment(Seg.FS, 0, 0n, 0, SegAttr.UNUSABLE);
    state.setSegment(Seg.GS, 0, mode === 64 ? BigInt(DATA) : 0n, 0, SegAttr.UNUSABLE);
    state.setU32(Off.CPL, 3);
    this.cpu.contextChanged();
    this.lastMode = mode;
  }

  /** Runs one instance and says what became of it. */
  run(instance: Instance): Result {
    const { cpu, memory, before } = this;
    const { state } = cpu;
    const { u8 } = memory;
    before.set(PATTERN);
    before.set(instance.patch.subarray(0, instance.patchLength), instance.patchAt);
    u8.set(before.subarray(0, 4096), this.dataAt[0]);
    u8.set(before.subarray(4096), this.dataAt[1]);
    u8.fill(0xcc, this.codeAt + this.lastIp, this.codeAt + this.lastIp + this.lastLength);
    u8.set(instance.code.subarray(0, instance.length), this.codeAt + instance.ip);
    cpu.code.invalidatePhysical(CODE_PAGE, CODE_SIZE);
    this.lastIp = instance.ip;
    this.lastLength = instance.length;

    if (this.lastMode !== instance.mode) this.setMode(instance.mode);
    for (let i = 0; i < 16; i++) state.setGpr(i, instance.gpr[i]);
    state.rip = BigInt(instance.mode === 16 ? instance.ip : CODE + instance.ip);
    state.rflags = instance.rflags | 0x202;
    if (instance.vector) this.loadVector(instance.vector);
    if (instance.undefinedFlags !== undefined) {
      const result = this.runProgram();
      return instance.vector ? { ...result, state: this.storeVector() } : result;
    }
    const retired = cpu.retired;
    cpu.run(1);
    if (state.cpl === 0) return { ...this.faulted(), ...(instance.vector ? { state: this.storeVector() } : {}) };
    // Far transfers and segment loads leave other segments than the next instance wants.
    const data = USER_SS[instance.mode];
    const same = [Seg.SS, Seg.DS, Seg.ES].every((seg) => state.segSelector(seg) === data);
    if (!same || state.segSelector(Seg.CS) !== USER_CS[instance.mode]) this.lastMode = 0;
    if (cpu.retired !== retired + 1) throw new Error(`one instruction ran, ${cpu.retired - retired} retired`);
    return {
      ...(instance.vector ? { state: this.storeVector() } : {}),
      gpr: this.registers(),
      rip: state.rip,
      rflags: state.rflags,
      vector: COMPLETED,
      error: 0,
      cr2: 0n,
      selectors: [Seg.CS, Seg.SS, Seg.DS, Seg.ES].map((seg) => state.segSelector(seg)),
      changes: this.changes(),
    };
  }

  /** Runs a program up to the exception that ends it, as a rule the INT3 behind it. */
  private runProgram(): Result {
    const { cpu } = this;
    for (let slices = 0; cpu.state.cpl !== 0; slices++) {
      if (slices === 100) throw new Error("the program does not end");
      cpu.run(100_000);
    }
    const result = this.faulted();
    if (result.vector !== BREAKPOINT) return result;
    return { ...result, vector: COMPLETED, rip: result.rip - 1n };
  }

  private loadVector(v: VectorState): void {
    const { state } = this.cpu;
    const { u8, view, base } = state;
    for (let i = 0; i < 16; i++) u8.set(v.ymm.subarray(i * 32, i * 32 + 32), base + Off.VECTOR + i * 64);
    const top = v.fsw >> 11;
    for (let i = 0; i < 8; i++) u8.set(v.x87.subarray(i * 16, i * 16 + 16), base + Off.X87 + ((top + i) & 7) * 16);
    view.setUint16(base + Off.FCW, v.fcw, true);
    view.setUint16(base + Off.FSW, v.fsw, true);
    view.setUint16(base + Off.FTW, v.ftw, true);
    state.setU32(Off.MXCSR, v.mxcsr);
  }

  private storeVector(): VectorState {
    const { state } = this.cpu;
    const { u8, view, base } = state;
    const v = newVectorState();
    for (let i = 0; i < 16; i++) {
      const at = base + Off.VECTOR + i * 64;
      v.ymm.set(u8.subarray(at, at + 32), i * 32);
    }
    v.fcw = view.getUint16(base + Off.FCW, true);
    v.fsw = view.getUint16(base + Off.FSW, true);
    v.ftw = view.getUint16(base + Off.FTW, true);
    v.mxcsr = state.u32(Off.MXCSR);
    const top = (v.fsw >> 11) & 7;
    for (let i = 0; i < 8; i++) {
      const at = base + Off.X87 + ((top + i) & 7) * 16;
      v.x87.set(u8.subarray(at, at + 10), i * 16);
    }
    return v;
  }

  private registers(): BigUint64Array {
    const gpr = new BigUint64Array(16);
    for (let i = 0; i < 16; i++) gpr[i] = this.cpu.state.gpr(i);
    return gpr;
  }

  /** Reads the exception from the supervisor's stack and goes back to user mode. */
  private faulted(): Result {
    const { state } = this.cpu;
    const vector = Math.floor((Number(state.rip - SYSTEM) - HANDLERS) / 16);
    const stack = this.memory.hostOffset(Number(state.gpr(4) - SYSTEM));
    const slot = (n: number): bigint => this.memory.view.getBigUint64(stack + n * 8, true);
    const error = WITH_ERROR.has(vector) ? 1 : 0;
    const gpr = this.registers();
    gpr[4] = slot(error + 3);
    const result: Result = {
      gpr,
      rip: slot(error),
      rflags: Number(slot(error + 2)),
      vector,
      error: error === 1 ? Number(slot(0)) : 0,
      cr2: vector === PAGE_FAULT ? state.u64(Off.CR2) : 0n,
      selectors: [
        Number(slot(error + 1)),
        Number(slot(error + 4)),
        state.segSelector(Seg.DS),
        state.segSelector(Seg.ES),
      ],
      changes: this.changes(),
    };
    state.activity = Activity.ACTIVE;
    this.lastMode = 0;
    return result;
  }

  private changes(): Result["changes"] {
    const changes: { word: number; value: bigint }[] = [];
    const { i32, view } = this.memory;
    for (let page = 0; page < 2; page++) {
      const at = this.dataAt[page];
      for (let i = 0; i < 1024; i += 2) {
        const w = (at >> 2) + i;
        if (i32[w] === this.beforeWords[page * 1024 + i] && i32[w + 1] === this.beforeWords[page * 1024 + i + 1])
          continue;
        changes.push({ word: page * 512 + i / 2, value: view.getBigUint64(at + i * 4, true) });
      }
    }
    return changes;
  }
}
