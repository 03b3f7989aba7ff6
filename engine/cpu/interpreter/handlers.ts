/**
 * Out-of-line handlers: one wasm function per shape and road, made the first time the shape is decoded (or takes the slow
 * road), many to a module, called through the function table.
 */
import { semantics } from "../isa/semantics";
import type { Shape } from "../isa/semantics/shape";
import { FunctionBuilder } from "../wasm/function";
import { ModuleBuilder } from "../wasm/module";
import { HANDLER } from "./abi";
import { importHelpers } from "./interpreter";
import { RecordContext, type Road } from "./record-context";

/** Compiled modules by the keys in them: machines of one process share them. */
const modules = new Map<string, WebAssembly.Module>();
const MAX_CACHED_MODULES = 2048;

/** Small modules after which their functions are put together into one: V8 does not bear tens of thousands. */
const MAX_SMALL_MODULES = 500;

interface Wanted {
  readonly shape: Shape;
  readonly road: Road;
  readonly slot: number;
}

export class HandlerTable {
  private readonly slots = new Map<string, number>();
  private wanted: Wanted[] = [];
  /** What is in small modules, and how many these are. */
  private small: Wanted[] = [];
  private smallModules = 0;
  private next = 1;

  constructor(
    private readonly table: WebAssembly.Table,
    private readonly imports: WebAssembly.ModuleImports,
  ) {}

  /** A free slot of the table. */
  allocate(): number {
    if (this.next === this.table.length) this.table.grow(this.table.length);
    return this.next++;
  }

  /** Slot of the handler of a shape; it may be called after the next `compile`. */
  slot(shape: Shape, road: "cold" | "slow"): number {
    const key = `${road} ${shape.key}`;
    let slot = this.slots.get(key);
    if (slot === undefined) {
      slot = this.allocate();
      this.slots.set(key, slot);
      this.wanted.push({ shape, road, slot });
    }
    return slot;
  }

  /** Makes all handlers that were asked for since the last time. */
  compile(): void {
    if (this.wanted.length === 0) return;
    const list = this.wanted;
    this.wanted = [];
    this.small.push(...list);
    if (++this.smallModules > MAX_SMALL_MODULES) {
      this.installAll(new WebAssembly.Module(build(this.small)), this.small);
      this.small = [];
      this.smallModules = 0;
      return;
    }
    const key = list.map((w) => `${w.road} ${w.shape.key}`).join("|");
    let module = modules.get(key);
    if (!module) {
      module = new WebAssembly.Module(build(list));
      if (modules.size >= MAX_CACHED_MODULES) modules.clear();
      modules.set(key, module);
    }
    this.installAll(module, list);
  }

  private installAll(module: WebAssembly.Module, list: readonly Wanted[]): void {
    const slots = list.map((w) => w.slot);
    this.install(module, slots, "h");
  }

  /** Puts the functions that a module exports as `prefix` and a number into slots of the table. */
  install(module: WebAssembly.Module, slots: readonly number[], prefix: string): void {
    const instance = new WebAssembly.Instance(module, { env: this.imports });
    slots.forEach((slot, i) => {
      this.table.set(slot, instance.exports[`${prefix}${i}`]);
    });
  }

  clear(slot: number): void {
    this.table.set(slot, null);
  }

  call(slot: number, record: number): number {
    return (this.table.get(slot) as (record: number) => number)(record);
  }
}

function build(list: readonly Wanted[]): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder();
  const helpers = importHelpers(module);
  list.forEach(({ shape, road }, i) => {
    const found = semantics.get(shape.mnemonic);
    if (!found) throw new Error(`interpreter: no semantics for ${shape.mnemonic}`);
    const f = new FunctionBuilder(HANDLER);
    const context = new RecordContext(f, shape, road, helpers);
    found.sem(context);
    if (!context.ended) context.sequential();
    f.i32(0);
    module.export(`h${i}`, module.addFunction(f));
  });
  return module.toBytes();
}
