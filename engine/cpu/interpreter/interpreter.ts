/**
 * The interpreter (tier 0): one generated wasm function, a loop around a br_table over the keys of pre-decoded records,
 * with the semantics of the hot shapes inlined. See record.ts for records and abi.ts for how it meets the rest.
 */

import { semantics } from "../isa/semantics";
import { Expressions } from "../isa/semantics/expressions";
import { ExitStatus, Off } from "../state";
import { FunctionBuilder, type Label } from "../wasm/function";
import { ModuleBuilder } from "../wasm/module";
import { WasmType } from "../wasm/opcodes";
import {
  COMPUTE,
  DIVIDE_HIGH,
  EFFECTIVE_OFFSET,
  FILL,
  HANDLER,
  RESOLVE,
  RUN,
  SEGMENT,
  SLOW_ACCESS,
  WRAP_OFFSET,
} from "./abi";
import {
  buildDivideHigh,
  buildMiss,
  buildOffset,
  buildResolve,
  buildSegment,
  buildWrapOffset,
  codeTlb,
  linearOfRip,
  recordIn,
} from "./helpers";
import { HOT_SHAPES } from "./hot";
import { CODE_MASK, FIRST_HOT, Key, RECORD_SIZE, Rec } from "./record";
import { type HelperIndices, type LoopLabels, RecordContext } from "./record-context";

/** What TypeScript provides to generated code. */
export interface TypeScriptImports extends Record<string, WebAssembly.ImportValue> {
  /** See FILL. */
  fill(record: number, access: number): number;
  /**
   * Runs a system instruction; RIP is at it, BUDGET as before it. The hook takes it off BUDGET when it has retired.
   * @returns 0 to go on behind it with BUDGET and TLB_CONTEXT as they are in memory then, 1 to leave, or the record to go on
   *   with
   */
  system(record: number): number;
  slowRead(record: number, access: number): void;
  slowWrite(record: number, access: number): void;
  slowCheck(record: number, access: number): void;
  /** See COMPUTE. */
  vector(number: number, length: number, immediate: number): number;
  float(number: number, length: number, immediate: number): number;
}

/** Imports the helpers into a module of out-of-line code. */
export function importHelpers(module: ModuleBuilder): HelperIndices {
  return {
    fill: module.importFunction("fill", FILL),
    slowRead: module.importFunction("slowRead", SLOW_ACCESS),
    slowWrite: module.importFunction("slowWrite", SLOW_ACCESS),
    slowCheck: module.importFunction("slowCheck", SLOW_ACCESS),
    resolve: module.importFunction("resolve", RESOLVE),
    offset: module.importFunction("offset", EFFECTIVE_OFFSET),
    wrapOffset: module.importFunction("wrapOffset", WRAP_OFFSET),
    segment: module.importFunction("segment", SEGMENT),
    divideHigh: module.importFunction("divideHigh", DIVIDE_HIGH),
    vector: module.importFunction("vector", COMPUTE),
    float: module.importFunction("float", COMPUTE),
  };
}

class LoopBuilder {
  private readonly f = new FunctionBuilder(RUN);
  private readonly e = new Expressions(this.f);
  private readonly record = this.f.parameters[0];
  private readonly budget = this.f.local(WasmType.I32);
  private readonly target = this.f.local(WasmType.I64);
  private readonly context = this.f.local(WasmType.I64);

  constructor(
    private readonly module: ModuleBuilder,
    private readonly helpers: HelperIndices,
    private readonly system: number,
    private readonly miss: number,
  ) {}

  private get recordValue() {
    return this.e.variableOf(this.record, 4);
  }

  private get budgetValue() {
    return this.e.variableOf(this.budget, 4);
  }

  private addToBudget(n: number): void {
    this.e.assign(this.budgetValue, this.e.add(this.budgetValue, this.e.constant(4, n)));
  }

  private status(status: ExitStatus): void {
    this.e.storeAt(Off.STATUS, this.e.constant(4, status));
  }

  private ripOfRecord(): void {
    this.e.storeAt(Off.RIP, this.e.load(this.recordValue, Rec.RIP, 8));
  }

  private saveBudget(): void {
    this.e.storeAt(Off.BUDGET, this.budgetValue);
  }

  build(): FunctionBuilder {
    const { f, e } = this;
    e.assign(this.budgetValue, e.loadAt(Off.BUDGET, 4));
    e.assign(e.variableOf(this.context, 8), e.loadAt(Off.TLB_CONTEXT, 8));
    const leave = f.block();
    const abort = f.block();
    const exhausted = f.block();
    const next = f.loop();
    const lookup = f.block();

    e.isZero(this.budgetValue).push();
    f.brIf(exhausted);
    this.addToBudget(-1);
    this.dispatch({ next, lookup, abort, leave });

    f.end(); // lookup: `target` is the RIP to go to
    const target = e.variableOf(this.target, 8);
    const linear = e.let(linearOfRip(e, target));
    const { hit, table } = codeTlb(e, linear);
    e.if(hit, () => {
      recordIn(e, table, linear).push();
      f.tee(this.record);
      f.brIf(next);
    });
    e.storeAt(Off.RIP, target);
    this.saveBudget();
    this.status(ExitStatus.MISS);
    f.return();
    f.end(); // next

    f.end(); // exhausted
    this.ripOfRecord();
    this.saveBudget();
    this.status(ExitStatus.BUDGET);
    f.return();
    f.end(); // abort
    this.ripOfRecord();
    this.addToBudget(1);
    this.saveBudget();
    f.end(); // leave
    return f;
  }

  private dispatch(to: { next: Label; lookup: Label; abort: Label; leave: Label }): void {
    const { f } = this;
    const labels: LoopLabels = {
      ...to,
      record: this.record,
      budget: this.budget,
      target: this.target,
      context: this.context,
      miss: this.miss,
      callSystem: () => this.callSystem(to),
    };
    const pseudo: [number, () => void][] = [
      [Key.COLD, () => this.callHandler(to)],
      [Key.SYSTEM, () => this.callSystem(to)],
      [Key.GOTO, () => this.goTo(to)],
      [Key.CROSS, () => this.cross(to)],
      [Key.BREAK, () => this.leaveBefore(ExitStatus.BREAK)],
      [Key.REGION, () => this.callRegion(to)],
    ];
    const count = FIRST_HOT + HOT_SHAPES.length;
    const blocks: Label[] = [];
    for (let i = 0; i < count; i++) blocks.push(f.block());
    // The innermost block ends first: it is handler 0.
    blocks.reverse();
    this.e.load(this.recordValue, Rec.KEY, 4).push();
    f.brTable(blocks.slice(0, count - 1), blocks[count - 1]);
    for (let key = 0; key < count; key++) {
      f.end();
      if (key < FIRST_HOT) pseudo[key][1]();
      else this.hot(HOT_SHAPES[key - FIRST_HOT].mnemonic, key - FIRST_HOT, labels);
      f.releaseTemporaries();
    }
  }

  private hot(mnemonic: string, index: number, labels: LoopLabels): void {
    const found = semantics.get(mnemonic);
    if (!found) throw new Error(`interpreter: no semantics for ${mnemonic}`);
    const context = new RecordContext(this.f, HOT_SHAPES[index], "hot", this.helpers, labels);
    found.sem(context);
    if (!context.ended) context.sequential();
  }

  private callHandler(to: { next: Label; leave: Label }): void {
    const { f, e } = this;
    e.storeAt(Off.BUDGET, e.add(this.budgetValue, e.constant(4, 1)));
    this.recordValue.push();
    e.load(this.recordValue, Rec.HANDLER, 4).push();
    f.callIndirect(this.module.typeIndex(HANDLER));
    f.tee(this.record);
    f.brIf(to.next);
    f.br(to.leave);
  }

  private callSystem(to: { next: Label; leave: Label }): void {
    const { f, e } = this;
    this.ripOfRecord();
    e.storeAt(Off.BUDGET, e.add(this.budgetValue, e.constant(4, 1)));
    const answer = e.let(e.call(this.system, 4, this.recordValue));
    e.eq(answer, e.constant(4, 1)).push();
    f.brIf(to.leave);
    e.assign(this.budgetValue, e.loadAt(Off.BUDGET, 4));
    e.assign(e.variableOf(this.context, 8), e.loadAt(Off.TLB_CONTEXT, 8));
    const behind = e.add(this.recordValue, e.constant(4, RECORD_SIZE));
    e.assign(this.recordValue, e.select(answer, answer, behind));
    f.br(to.next);
  }

  private callRegion(to: { next: Label; leave: Label }): void {
    const { f, e } = this;
    this.addToBudget(1);
    this.saveBudget();
    this.recordValue.push();
    e.load(this.recordValue, Rec.HANDLER, 4).push();
    f.callIndirect(this.module.typeIndex(HANDLER));
    f.set(this.record);
    e.assign(this.budgetValue, e.loadAt(Off.BUDGET, 4));
    this.recordValue.push();
    f.brIf(to.next);
    f.br(to.leave);
  }

  private goTo(to: { next: Label; lookup: Label }): void {
    const { f, e } = this;
    this.addToBudget(1);
    const link = e.let(e.load(this.recordValue, Rec.LINK, 4));
    e.if(link, () => {
      e.assign(this.recordValue, link);
      f.br(to.next);
    });
    e.load(this.recordValue, Rec.RIP, 8).push();
    f.set(this.target);
    f.br(to.lookup);
  }

  private cross(to: { next: Label }): void {
    const { f, e } = this;
    const linear = linearOfRip(e, e.load(this.recordValue, Rec.RIP, 8));
    const following = e.add(e.or(linear, e.constant(8, 4095)), e.constant(8, 1));
    const second = e.let(e.and(following, e.loadAt(CODE_MASK, 8)));
    const { hit, table } = codeTlb(e, second);
    const expected = e.load(this.recordValue, Rec.EXPECTED, 4);
    e.if(e.and(hit, e.eq(table, expected)), () => {
      this.addToBudget(1);
      e.assign(this.recordValue, e.add(this.recordValue, e.constant(4, RECORD_SIZE)));
      f.br(to.next);
    });
    this.leaveBefore(ExitStatus.MISS);
  }

  /** Leaves before the instruction behind this pseudo-record. */
  private leaveBefore(status: ExitStatus): void {
    this.addToBudget(1);
    this.ripOfRecord();
    this.saveBudget();
    this.status(status);
    this.f.return();
  }
}

function build(): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder();
  const fill = module.importFunction("fill", FILL);
  const system = module.importFunction("system", HANDLER);
  const resolve = module.addFunction(buildResolve());
  const offset = module.addFunction(buildOffset());
  const wrapOffset = module.addFunction(buildWrapOffset());
  const segment = module.addFunction(buildSegment());
  const divideHigh = module.addFunction(buildDivideHigh());
  const miss = module.addFunction(buildMiss(fill));
  // Slow-road imports and computations are for out-of-line handlers only: the loop never uses their indices.
  const none = -1;
  const helpers: HelperIndices = {
    fill,
    slowRead: none,
    slowWrite: none,
    slowCheck: none,
    resolve,
    offset,
    wrapOffset,
    segment,
    divideHigh,
    vector: none,
    float: none,
  };
  const run = module.addFunction(new LoopBuilder(module, helpers, system, miss).build());
  module.export("run", run);
  module.export("resolve", resolve);
  module.export("offset", offset);
  module.export("wrapOffset", wrapOffset);
  module.export("segment", segment);
  module.export("divideHigh", divideHigh);
  return module.toBytes();
}

export interface InterpreterExports {
  run(record: number): void;
  resolve(rip: bigint): number;
  offset(record: number): bigint;
  wrapOffset(record: number, offset: bigint): bigint;
  segment(record: number, offset: bigint, access: number): number;
  divideHigh(high: bigint, low: bigint, divisor: bigint): bigint;
}

let compiled: WebAssembly.Module | undefined;

/** The interpreter's module; it is the same for every machine of the process. */
export function interpreterModule(): WebAssembly.Module {
  compiled ??= new WebAssembly.Module(build());
  return compiled;
}
