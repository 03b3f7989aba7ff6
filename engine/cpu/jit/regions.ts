/**
 * Tier 1: notices which pages of 64-bit code run hot, compiles what is hot on them into regions, and puts the regions'
 * entries in the place of records. Which code is compiled, and when, never changes what a program does or counts.
 */
import type { PhysicalMemory } from "../../memory/physical";
import { ArenaFlushed, type CodePage, type CodeStore } from "../code/code-store";
import { writePseudo } from "../code/record-writer";
import { COMPUTE, DIVIDE_HIGH, RESOLVE } from "../interpreter/abi";
import { Key, RECORD_SIZE, Rec } from "../interpreter/record";
import type { Tier0 } from "../interpreter/tier0";
import type { Feature } from "../models/model";
import { CodeMode } from "../state";
import { ModuleBuilder } from "../wasm/module";
import { buildMaterialise } from "./flag-kind";
import { RegionFunction, type RegionPlan } from "./region-function";
import { type RegionBlock, RegionGraph, type RegionInstruction } from "./region-graph";

/** When code counts as hot. */
export interface RegionTuning {
  /** Instructions between two looks at where the program is. */
  readonly interval: number;
  /** Looks that must find a page outside its regions before it is compiled; twice as many before each time again. */
  readonly hot: number;
  /** Pages that go into one module, and looks after which a smaller batch is compiled all the same. */
  readonly batch: number;
  readonly patience: number;
}

export const DEFAULT_TUNING: RegionTuning = { interval: 100_000, hot: 40, batch: 8, patience: 8 };

/** Regions are not worth the trouble where they keep being compiled anew. */
const MAX_VERSIONS = 8;
const MAP_SIZE = 4096 * 2;

/** What is known of a page that was seen running. */
interface PageHeat {
  /** Looks that found it outside its regions since it was compiled last, and the latest place. */
  outside: number;
  offset: number;
  versions: number;
  regions: Region[];
}

interface Region {
  readonly slot: number;
  /** Entries that lead into it, with the copies of what they were. */
  readonly entries: readonly { readonly entry: number; readonly copy: number }[];
  /** A bit for each offset at which an instruction of the region begins. */
  readonly covered: Uint32Array;
}

interface Prepared {
  readonly page: CodePage;
  readonly heat: PageHeat;
  readonly plan: RegionPlan;
  readonly copies: ReadonlyMap<number, number>;
}

export class Regions {
  private readonly heat = new Map<CodePage, PageHeat>();
  private readonly freeSlots: number[] = [];
  private waiting = new Set<CodePage>();
  private patience = 0;
  /** Regions compiled so far. */
  compiled = 0;

  constructor(
    private readonly memory: PhysicalMemory,
    private readonly store: CodeStore,
    private readonly tier0: Tier0,
    private readonly features: ReadonlySet<Feature>,
    readonly tuning: RegionTuning = DEFAULT_TUNING,
  ) {
    store.onForget = (page) => this.forget(page);
    store.onPatch = (page) => {
      const heat = this.heat.get(page);
      if (heat) this.retire(heat);
    };
  }

  /** The program was seen at a linear address, between two instructions. */
  sample(linearLo: number, linearHi: number, context: number): void {
    if (this.waiting.size > 0 && --this.patience <= 0) this.compileWaiting();
    const page = this.store.pageAt(linearLo, linearHi, context);
    if (!page || page.mode !== CodeMode.LONG64) return;
    const offset = linearLo & 0xfff;
    let heat = this.heat.get(page);
    if (!heat) {
      heat = { outside: 0, offset, versions: 0, regions: [] };
      this.heat.set(page, heat);
    }
    if (heat.regions.some((r) => r.covered[offset >> 5] & (1 << (offset & 31)))) return;
    heat.offset = offset;
    if (++heat.outside < this.tuning.hot << heat.versions || heat.versions >= MAX_VERSIONS || this.waiting.has(page))
      return;
    if (this.store.hasBreakpoints(page)) return;
    if (this.waiting.size === 0) this.patience = this.tuning.patience;
    this.waiting.add(page);
    if (this.waiting.size >= this.tuning.batch) this.compileWaiting();
  }

  /** The record with which tier 0 does what stands at `record`. */
  originalOf(record: number): number {
    const { i32 } = this.memory;
    return i32[(record + Rec.KEY) >> 2] === Key.REGION ? i32[(record + Rec.EXPECTED) >> 2] : record;
  }

  private forget(page: CodePage): void {
    this.waiting.delete(page);
    for (const region of this.heat.get(page)?.regions ?? []) this.release(region);
    this.heat.delete(page);
  }

  private release(region: Region): void {
    this.tier0.clearSlot(region.slot);
    this.freeSlots.push(region.slot);
  }

  /** Makes the entries of a page's regions plain records again. */
  private retire(heat: PageHeat): void {
    const { u8 } = this.memory;
    for (const region of heat.regions) {
      for (const { entry, copy } of region.entries) u8.copyWithin(entry, copy, copy + RECORD_SIZE);
      this.release(region);
    }
    heat.regions = [];
  }

  private compileWaiting(): void {
    const pages = [...this.waiting];
    this.waiting.clear();
    const prepared: Prepared[] = [];
    try {
      for (const page of pages) {
        const one = this.prepare(page);
        if (one) prepared.push(one);
      }
    } catch (e) {
      // The arena is full: all code is forgotten, these pages too.
      if (e instanceof ArenaFlushed) return;
      throw e;
    }
    if (prepared.length === 0) return;
    const module = new ModuleBuilder();
    const imports = {
      resolve: module.importFunction("resolve", RESOLVE),
      divideHigh: module.importFunction("divideHigh", DIVIDE_HIGH),
      vector: module.importFunction("vector", COMPUTE),
    };
    const materialise = module.addFunction(buildMaterialise());
    prepared.forEach(({ plan }, n) => {
      const body = new RegionFunction(plan, { ...imports, materialise }).build();
      module.export(`r${n}`, module.addFunction(body));
    });
    const slots = prepared.map(() => this.freeSlots.pop() ?? this.tier0.allocateSlot());
    this.tier0.install(new WebAssembly.Module(module.toBytes()), slots);
    for (const [n, one] of prepared.entries()) this.enter(one, slots[n]);
  }

  /** Plans the region of a page; takes space in the arena, changes nothing else that runs. @throws ArenaFlushed */
  private prepare(page: CodePage): Prepared | null {
    const heat = this.heat.get(page);
    if (!heat || this.store.hasBreakpoints(page)) return null;
    heat.outside = 0;
    heat.versions++;
    this.retire(heat);
    const graph = new RegionGraph(this.memory, page, this.features, (record) => this.originalOf(record));
    const blocks = graph.collect(heat.offset);
    if (blocks.length === 0) return null;
    const map = this.store.allocate(MAP_SIZE);
    this.fillMap(map, blocks);
    const copies = new Map<number, number>();
    for (const { instructions } of blocks) {
      copies.set(instructions[0].entry, this.store.allocate(2 * RECORD_SIZE));
    }
    const recordOf = (i: RegionInstruction): number => copies.get(i.entry) ?? i.record;
    return { page, heat, plan: { blocks, page: page.linear, map, recordOf }, copies };
  }

  private fillMap(map: number, blocks: readonly RegionBlock[]): void {
    const { u16 } = this.memory;
    u16.fill(0, map >> 1, (map + MAP_SIZE) >> 1);
    blocks.forEach((block, n) => {
      u16[(map >> 1) + block.instructions[0].offset] = n + 1;
    });
  }

  /** Makes the first records of the blocks lead into the compiled region. */
  private enter({ heat, plan, copies }: Prepared, slot: number): void {
    const { i32, u8 } = this.memory;
    const covered = new Uint32Array(128);
    const entries: { entry: number; copy: number }[] = [];
    plan.blocks.forEach(({ instructions }, n) => {
      for (const { offset } of instructions) covered[offset >> 5] |= 1 << (offset & 31);
      const [first] = instructions;
      const { entry } = first;
      const copy = copies.get(entry) as number;
      u8.copyWithin(copy, entry, entry + RECORD_SIZE);
      const behind = first.rip + BigInt(first.instruction.length);
      const lo = Number(behind & 0xffff_ffffn) | 0;
      writePseudo(this.memory, copy + RECORD_SIZE, Key.GOTO, lo, Number(behind >> 32n) | 0, entry + RECORD_SIZE);
      i32[(entry + Rec.KEY) >> 2] = Key.REGION;
      i32[(entry + Rec.HANDLER) >> 2] = slot;
      i32[(entry + Rec.EXPECTED) >> 2] = copy;
      i32[(entry + Rec.IMMEDIATE) >> 2] = n;
      entries.push({ entry, copy });
    });
    heat.regions.push({ slot, entries, covered });
    this.compiled++;
  }
}
