/**
 * All processors of one machine: they share the engine's memory, generated code and the code arena. One of them is active:
 * its block of state lies at the constant addresses of generated code, the others wait in their banks.
 */
import type { VirtualClock } from "../clock";
import { CPU_BLOCK_SIZE, cpuBank, MAX_VCPUS, SCRATCH_BASE } from "../memory/layout";
import type { PhysicalMemory } from "../memory/physical";
import type { Tracer } from "../trace";
import { CodeContexts } from "./code/code-cache";
import { CodeStore } from "./code/code-store";
import type { Bus, InterruptPort } from "./cpu";
import { Tier0 } from "./interpreter/tier0";
import { Regions, type RegionTuning } from "./jit/regions";
import type { CpuModel } from "./models/model";
import { Processor } from "./processor";

export interface EngineOptions {
  readonly memory: PhysicalMemory;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly tier: 0 | 1;
  /** When tier 1 compiles; tests make it eager. */
  readonly tuning?: RegionTuning;
}

export interface ProcessorOptions {
  readonly id: number;
  readonly model: CpuModel;
  readonly bus: Bus;
  readonly interrupts: InterruptPort;
}

/** Everything of all processors that is not physical memory; plain data. */
export interface SavedProcessors {
  readonly active: number;
  /** CPU blocks, banks, TLB and its contexts: host offsets 0 to SCRATCH_BASE. */
  readonly low: Uint8Array;
  readonly processors: readonly { readonly retired: number; readonly hostIsModel: boolean; readonly vmx: unknown }[];
}

export class CpuEngine {
  private readonly store: CodeStore;
  private readonly contexts: CodeContexts;
  private readonly tier: Tier0;
  private regions: Regions | null = null;
  private readonly processors: Processor[] = [];
  private current: Processor | null = null;

  constructor(private readonly options: EngineOptions) {
    this.store = new CodeStore(options.memory);
    this.contexts = new CodeContexts(this.store);
    this.tier = new Tier0(options.memory, {
      fill: (record, access) => this.active.fill(record, access),
      system: (record) => this.active.system(record),
      slowRead: (record, access) => this.active.slowRead(record, access),
      slowWrite: (record, access) => this.active.slowWrite(record, access),
      slowCheck: (record, access) => this.active.slowCheck(record, access),
      vector: (number, length, immediate) => this.active.vector(number, length, immediate),
      float: (number, length, immediate) => this.active.float(number, length, immediate),
    });
  }

  /** Makes a processor in its power-up state. The first one becomes the active one. */
  createProcessor(options: ProcessorOptions): Processor {
    if (options.id >= MAX_VCPUS) throw new RangeError(`at most ${MAX_VCPUS} processors fit the engine`);
    const { memory, clock, trace } = this.options;
    if (this.options.tier === 1 && !this.regions) {
      this.regions = new Regions(memory, this.store, this.tier, options.model.features, this.options.tuning);
    }
    const processor = new Processor({
      ...options,
      memory,
      clock,
      trace,
      store: this.store,
      contexts: this.contexts,
      tier: this.tier,
      regions: this.regions,
    });
    this.processors[options.id] = processor;
    if (!this.current) this.activate(options.id);
    return processor;
  }

  /** The processor whose state is at the constant addresses of generated code. */
  get active(): Processor {
    if (!this.current) throw new Error("the engine has no processor yet");
    return this.current;
  }

  /** Regions that tier 1 has compiled so far. */
  get compiledRegions(): number {
    return this.regions?.compiled ?? 0;
  }

  activate(id: number): void {
    const next = this.processors[id];
    if (!next) throw new RangeError(`there is no processor ${id}`);
    if (this.current === next) return;
    const { u8 } = this.options.memory;
    if (this.current) {
      u8.copyWithin(cpuBank(this.current.id), 0, CPU_BLOCK_SIZE);
      this.current.state.base = cpuBank(this.current.id);
    }
    u8.copyWithin(0, cpuBank(id), cpuBank(id) + CPU_BLOCK_SIZE);
    next.state.base = 0;
    this.current = next;
    // Tags may have been handed out anew while it was away.
    next.contextChanged();
    next.attention();
  }

  save(): SavedProcessors {
    return {
      active: this.active.id,
      low: this.options.memory.u8.slice(0, SCRATCH_BASE),
      processors: this.processors.map((p) => ({ ...p.own, vmx: structuredClone(p.vmx.state) })),
    };
  }

  /** Takes back what `save` gave; physical memory must have been restored before. */
  load(saved: SavedProcessors): void {
    this.options.memory.u8.set(saved.low, 0);
    this.store.flush();
    this.current = this.processors[saved.active];
    for (const p of this.processors) p.state.base = p === this.current ? 0 : cpuBank(p.id);
    for (const [i, p] of this.processors.entries()) {
      const { retired, hostIsModel, vmx } = saved.processors[i];
      p.own.retired = retired;
      p.own.hostIsModel = hostIsModel;
      p.vmx.state = structuredClone(vmx) as typeof p.vmx.state;
      p.attention();
    }
    this.active.contextChanged();
  }
}
