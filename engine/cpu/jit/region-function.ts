/**
 * Emits the wasm function of one region: general registers, flags and the budget in locals, a br_table to enter at any
 * block and to follow computed jumps, direct branches for everything that goes forward.
 *
 * Exactness: a block takes all its instructions off the budget when it is entered, and is only entered when they all fit;
 * whoever leaves it earlier gives the rest back. What does not fit, faults, or misses the TLB is left to tier 0, at a
 * record that stands for the very instruction.
 */

import { vectorOffset } from "../code/record-writer";
import { HANDLER } from "../interpreter/abi";
import { Rec } from "../interpreter/record";
import { semantics } from "../isa/semantics";
import { Expressions, type Value } from "../isa/semantics/expressions";
import { MXCSR_QUICK, MXCSR_SETTING } from "../isa/semantics/vector/quick-float";
import { ExitStatus, Off, type SimdAccess } from "../state";
import { FunctionBuilder, type Label, type Local } from "../wasm/function";
import { Simd, WasmType } from "../wasm/opcodes";
import { FlagOperation, flagKind } from "./flag-kind";
import { type KnownFlags, RegionContext } from "./region-context";
import type { RegionBlock, RegionInstruction } from "./region-graph";

export interface RegionPlan {
  readonly blocks: readonly RegionBlock[];
  /** Linear address of the page. */
  readonly page: bigint;
  /** Host offset of 4096 u16: 1 + number of the block that begins at an offset of the page, or 0. */
  readonly map: number;
  /** Record at which tier 0 does an instruction itself. */
  recordOf(i: RegionInstruction): number;
}

export interface RegionImports {
  readonly resolve: number;
  readonly divideHigh: number;
  readonly materialise: number;
  readonly vector: number;
}

export class RegionFunction {
  readonly f = new FunctionBuilder(HANDLER);
  private readonly e = new Expressions(this.f);
  readonly tlbContext = this.f.local(WasmType.I64);
  readonly flags = {
    kind: this.f.local(WasmType.I32),
    a: this.f.local(WasmType.I64),
    b: this.f.local(WasmType.I64),
    result: this.f.local(WasmType.I64),
  };
  readonly divideHigh: number;
  /** Index of the function that computes what TypeScript does. */
  readonly compute: number;
  /** Kinds of vector instructions that the present block has checked already. */
  readonly checkedSimd = new Set<SimdAccess>();
  /** In the present block: MXCSR is known to allow the quick way; registers whose lane 0 is known to be a plain number. */
  isQuick = false;
  readonly numbersIn = new Map<number, 32 | 64>();
  /** What is known of the flags at this point; null: their kind is in its local. */
  known: KnownFlags | null = null;

  private readonly budget = this.f.local(WasmType.I32);
  private readonly next = this.f.local(WasmType.I32);
  private readonly exitRecord = this.f.local(WasmType.I32);
  private readonly target = this.f.local(WasmType.I64);
  private readonly registers = new Map<number, Local>();
  private readonly written = new Set<number>();
  private readonly vectors = new Map<number, Local>();
  private readonly writtenVectors = new Set<number>();
  private quick: Local | null = null;
  private readonly numbers = new Map<number, number>();
  private labels: Label[] = [];
  private current = 0;
  private loopLabel: Label | null = null;
  private exit: Label = { depth: 0 };
  private exitToRip: Label = { depth: 0 };
  private dispatch: Label = { depth: 0 };

  constructor(
    private readonly plan: RegionPlan,
    private readonly imports: RegionImports,
  ) {
    this.divideHigh = imports.divideHigh;
    this.compute = imports.vector;
    plan.blocks.forEach((b, n) => {
      this.numbers.set(b.instructions[0].offset, n);
    });
  }

  /** The local of a general register, loaded when the region is entered. */
  register(index: number): Local {
    let local = this.registers.get(index);
    if (!local) {
      const made = this.f.local(WasmType.I64);
      local = made;
      this.registers.set(index, made);
      this.f.atStart(() => {
        this.e.loadAt(Off.GPR + index * 8, 8).push();
        this.f.set(made);
      });
    }
    return local;
  }

  writtenRegister(index: number): Local {
    this.written.add(index);
    return this.register(index);
  }

  /** The local of half a vector register, loaded when the region is entered. */
  vectorRegister(register: number, half: 0 | 1): Local {
    const offset = vectorOffset(register) + half * 16;
    let local = this.vectors.get(offset);
    if (!local) {
      const made = this.f.local(WasmType.V128);
      local = made;
      this.vectors.set(offset, made);
      this.f.atStart(() => {
        this.f.i32(0);
        this.f.simdMemory(Simd.V128_LOAD, offset);
        this.f.set(made);
      });
    }
    return local;
  }

  writtenVectorRegister(register: number, half: 0 | 1): Local {
    this.writtenVectors.add(vectorOffset(register) + half * 16);
    return this.vectorRegister(register, half);
  }

  /** Whether MXCSR lets floating-point operations take the quick way: nothing inside a region changes it. */
  quickFloat(): Local {
    const local = this.quick ?? this.f.local(WasmType.I32);
    if (this.quick) return local;
    this.quick = local;
    this.f.atStart(() => {
      const setting = this.e.and(this.e.loadAt(Off.MXCSR, 4), this.e.constant(4, MXCSR_SETTING));
      this.e.assign(this.variable(local, 4), this.e.eq(setting, this.e.constant(4, MXCSR_QUICK)));
    });
    return local;
  }

  private variable(local: Local, size: 4 | 8): ReturnType<Expressions["variable"]> {
    return this.e.variableOf(local, size);
  }

  private addToBudget(n: number): void {
    if (n === 0) return;
    const budget = this.variable(this.budget, 4);
    this.e.assign(budget, this.e.add(budget, this.e.constant(4, n)));
  }

  // ---- flags

  /** Puts the known kind of the flags into its local. */
  storeKind(): void {
    if (this.known === null) return;
    this.f.i32(flagKind(this.known.operation, this.known.size));
    this.f.set(this.flags.kind);
  }

  private materialise(): void {
    const { kind, a, b, result } = this.flags;
    for (const local of [kind, a, b, result]) this.f.get(local);
    this.f.call(this.imports.materialise);
  }

  /** Turns flags of unknown kind into their raw form. */
  makeRaw(): void {
    this.materialise();
    this.loadFlags();
    this.known = { operation: FlagOperation.RAW, size: 8 };
  }

  private loadFlags(): void {
    this.e.assign(this.variable(this.flags.result, 8), this.e.loadAt(Off.FLAG_RESULT, 8));
    this.e.assign(this.variable(this.flags.a, 8), this.e.loadAt(Off.FLAG_AUX, 8));
    this.f.i32(flagKind(FlagOperation.RAW, 8));
    this.f.set(this.flags.kind);
  }

  // ---- ways out of an instruction

  /** Leaves before instruction `i`, giving back the `remaining` instructions of its block. */
  leaveAt(i: RegionInstruction, remaining: number): void {
    this.storeKind();
    this.addToBudget(remaining);
    this.f.i32(this.plan.recordOf(i));
    this.f.set(this.exitRecord);
    this.f.br(this.exit);
  }

  /** Goes to a RIP known now, giving back what the block has left. */
  goTo(rip: bigint, remaining: number): void {
    this.storeKind();
    this.addToBudget(remaining);
    const number = (rip & ~0xfffn) === this.plan.page ? this.numbers.get(Number(rip & 0xfffn)) : undefined;
    if (number === undefined) {
      this.f.i64(rip);
      this.f.set(this.target);
      this.f.br(this.exitToRip);
    } else if (number > this.current) this.f.br(this.labels[number]);
    else if (number === this.current && this.loopLabel) this.f.br(this.loopLabel);
    else {
      this.f.i32(number);
      this.f.set(this.next);
      this.f.br(this.dispatch);
    }
  }

  /** Goes to a computed RIP: within the page by the map, else out. */
  goToComputed(rip: Value): void {
    const { f, e } = this;
    this.storeKind();
    const target = this.variable(this.target, 8);
    e.assign(target, rip);
    const inPage = e.eq(e.and(target, e.constant(8, -4096)), e.constant(8, this.plan.page));
    inPage.push();
    f.if();
    const index = e.shlBy(e.and(e.low(target, 4), e.constant(4, 4095)), 1);
    e.zeroExtend(e.load(index, this.plan.map, 2), 4).push();
    f.tee(this.next);
    f.if();
    e.assign(this.variable(this.next, 4), e.sub(this.variable(this.next, 4), e.constant(4, 1)));
    f.br(this.dispatch);
    f.end();
    f.end();
    f.br(this.exitToRip);
  }

  // ---- the function

  build(): FunctionBuilder {
    const { f, e } = this;
    const record = f.parameters[0];
    f.atStart(() => {
      e.assign(this.variable(this.budget, 4), e.loadAt(Off.BUDGET, 4));
      e.assign(this.variable(this.tlbContext, 8), e.loadAt(Off.TLB_CONTEXT, 8));
      e.assign(this.variable(this.next, 4), e.load(this.variable(record, 4), Rec.IMMEDIATE, 4));
      this.loadFlags();
    });
    this.exit = f.block();
    this.exitToRip = f.block();
    this.dispatch = f.loop();
    this.labels = this.plan.blocks.map(() => f.block()).reverse();
    f.get(this.next);
    const last = this.labels.length - 1;
    f.brTable(this.labels.slice(0, last), this.labels[last]);
    this.plan.blocks.forEach((block, n) => {
      f.end();
      this.current = n;
      this.emitBlock(block);
    });
    f.end();
    f.end();
    // A RIP outside: the interpreter goes on there if it is decoded.
    e.assign(this.variable(this.exitRecord, 4), e.call(this.imports.resolve, 4, this.variable(this.target, 8)));
    e.if(e.isZero(this.variable(this.exitRecord, 4)), () => {
      e.storeAt(Off.RIP, this.variable(this.target, 8));
      e.storeAt(Off.STATUS, e.constant(4, ExitStatus.MISS));
    });
    f.end();
    for (const index of this.written) {
      e.storeAt(Off.GPR + index * 8, this.variable(this.registers.get(index) as Local, 8));
    }
    for (const offset of this.writtenVectors) {
      f.i32(0);
      f.get(this.vectors.get(offset) as Local);
      f.simdMemory(Simd.V128_STORE, offset);
    }
    this.materialise();
    e.storeAt(Off.BUDGET, this.variable(this.budget, 4));
    f.get(this.exitRecord);
    return f;
  }

  private emitBlock(block: RegionBlock): void {
    const { f, e } = this;
    const { instructions } = block;
    const count = instructions.length;
    this.known = null;
    this.checkedSimd.clear();
    this.numbersIn.clear();
    this.isQuick = false;
    this.loopLabel = f.loop();
    const budget = this.variable(this.budget, 4);
    e.if(e.ltU(budget, e.constant(4, count)), () => this.leaveAt(instructions[0], 0));
    this.addToBudget(-count);
    let ended = false;
    instructions.forEach((i, n) => {
      const found = semantics.get(i.shape.mnemonic);
      if (!found) throw new Error(`jit: no semantics for ${i.shape.mnemonic}`);
      const context = new RegionContext(this, i, count - n);
      found.sem(context);
      ended = context.ended;
      f.releaseTemporaries();
    });
    if (!ended) this.goTo(this.plan.page + BigInt(block.next), 0);
    f.end();
    this.loopLabel = null;
  }
}
