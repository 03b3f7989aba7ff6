/**
 * A processor in 64-bit mode with nothing around it: RAM mapped one to one by 2-MByte pages (the third 2 MBytes by small
 * pages, for tests that change mappings), flat segments, CPL 0, interrupts off.
 */
import { VirtualClock } from "../../engine/clock";
import { type Bus, type InterruptPort, RunExit } from "../../engine/cpu/cpu";
import { CpuEngine } from "../../engine/cpu/engine";
import type { RegionTuning } from "../../engine/cpu/jit/regions";
import { findModel } from "../../engine/cpu/models/models";
import type { Processor } from "../../engine/cpu/processor";
import { Off, Seg } from "../../engine/cpu/state";
import { MiB } from "../../engine/memory/layout";
import { PhysicalMemory } from "../../engine/memory/physical";
import { silentTracer, type Tracer } from "../../engine/trace";

export const CODE = 0x100000;
export const DATA = 0x180000;
/** Here pages are small: entry n of the page table at SMALL_TABLE maps SMALL + n * 4096. */
export const SMALL = 0x400000;
export const SMALL_TABLE = 0x4000;
const PML4 = 0x1000;
const PDPT = 0x2000;
const DIRECTORY = 0x3000;
const STACK = 0x90000;

/** Compiles everything at once. */
export const EAGER: RegionTuning = { interval: 17, hot: 1, batch: 1, patience: 1 };

export interface LongMode {
  readonly engine: CpuEngine;
  readonly cpu: Processor;
  readonly memory: PhysicalMemory;
  readonly clock: VirtualClock;
  /** Puts code at `address` (as the debugger would) and RIP there. */
  start(code: readonly number[], address?: number): void;
  /** Runs until HLT or until so many instructions have retired; true when it halted. */
  run(instructions?: number): boolean;
  gpr(index: number): bigint;
  setGpr(index: number, value: bigint): void;
  u64(pa: number): bigint;
  setU64(pa: number, value: bigint): void;
}

export interface LongModeOptions {
  readonly tier?: 0 | 1;
  readonly tuning?: RegionTuning;
  readonly trace?: Tracer;
  readonly bus?: Partial<Bus>;
}

/** An interrupt controller at which nothing ever arrives. */
export const NO_INTERRUPTS: InterruptPort = {
  pending: () => -1,
  acknowledge: () => -1,
  readCr8: () => 0,
  writeCr8: () => {},
  readMsr: () => undefined,
  writeMsr: () => false,
};

export function longMode(options: LongModeOptions = {}): LongMode {
  const memory = new PhysicalMemory(8 * MiB);
  memory.add("ram", "ram", 0, 8 * MiB);
  const clock = new VirtualClock();
  const { tier = 0, tuning, trace = silentTracer } = options;
  const engine = new CpuEngine({ memory, clock, trace, tier, tuning });
  const cpu = engine.createProcessor({
    id: 0,
    model: findModel("default")!,
    interrupts: NO_INTERRUPTS,
    bus: { portIn: () => 0, portOut: () => {}, mmioRead: () => 0n, mmioWrite: () => {}, ...options.bus },
  });
  const { view } = memory;
  const setU64 = (pa: number, value: bigint): void => view.setBigUint64(memory.hostOffset(pa), value, true);
  setU64(PML4, BigInt(PDPT) | 3n);
  setU64(PDPT, BigInt(DIRECTORY) | 3n);
  for (let i = 0; i < 16; i++) setU64(DIRECTORY + i * 8, BigInt(i * 2 * MiB) | 0x83n);
  setU64(DIRECTORY + 2 * 8, BigInt(SMALL_TABLE) | 3n);
  for (let i = 0; i < 512; i++) setU64(SMALL_TABLE + i * 8, BigInt(SMALL + i * 4096) | 3n);
  const { state } = cpu;
  for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS]) state.setSegment(seg, 0x10, 0n, 0xffff_ffff, 0xc093);
  state.setSegment(Seg.CS, 8, 0n, 0xffff_ffff, 0xa09b);
  state.setU64(Off.CR0, 0x8001_0011n);
  state.setU64(Off.CR3, BigInt(PML4));
  state.setU64(Off.CR4, 0x20n);
  state.setU64(Off.EFER, 0x500n);
  cpu.contextChanged();
  return {
    engine,
    cpu,
    memory,
    clock,
    start: (code, address = CODE) => {
      memory.write(address, Uint8Array.from([...code, 0xf4]));
      cpu.code.invalidatePhysical(address, code.length + 1);
      state.rip = BigInt(address);
      state.setGpr(4, BigInt(STACK));
      state.activity = 0;
    },
    run: (instructions = 1_000_000) => cpu.run(instructions) === RunExit.HALTED,
    gpr: (index) => state.gpr(index),
    setGpr: (index, value) => state.setGpr(index, BigInt.asUintN(64, value)),
    u64: (pa) => view.getBigUint64(memory.hostOffset(pa), true),
    setU64,
  };
}
