/** Tier 0 of one engine memory: the interpreter's instance, its out-of-line handlers, and the slow road. */
import type { PhysicalMemory } from "../../memory/physical";
import type { Binding } from "../code/record-writer";
import { type Instruction, NO_REG, OperandKind, RIP_BASE } from "../isa/instruction";
import { OPCODES } from "../isa/opcodes";
import { semantics } from "../isa/semantics";
import { type Shape, shapeOf } from "../isa/semantics/shape";
import { CodeMode, ExitStatus, Off, Seg } from "../state";
import { HandlerTable } from "./handlers";
import { HOT_SHAPES } from "./hot";
import { type InterpreterExports, interpreterModule, type TypeScriptImports } from "./interpreter";
import { FIRST_HOT, Key, Rec } from "./record";

const TABLE_SIZE = 4096;

/** Rows whose semantics ask for the value of the immediate. */
const IMMEDIATE_MATTERS: readonly boolean[] = OPCODES.map(
  (r) => semantics.get(r.mnemonic)?.needs.immediateValue === true,
);

/** A number that is different for instructions of different shapes: everything `shapeOf` looks at. */
function signatureOf(i: Instruction, long: boolean): number {
  const [a, b, c] = i.operands;
  const memory =
    a.kind === OperandKind.MEMORY ? 1 : b.kind === OperandKind.MEMORY ? 2 : c.kind === OperandKind.MEMORY ? 3 : 0;
  const registers = (a.kind === OperandKind.GPR ? 1 : 0) | (b.kind === OperandKind.GPR ? 2 : 0);
  const last = c.kind === OperandKind.NONE ? b : c;
  const count =
    last.kind === OperandKind.IMMEDIATE ? ((i.immediate & 63) === 0 ? 1 : (i.immediate & 31) === 0 ? 2 : 0) : 0;
  const plainBase = i.base !== NO_REG && i.base !== RIP_BASE;
  let bits = memory | (registers << 2) | (count << 4) | (long ? 1 << 6 : 0);
  bits |= (i.index !== NO_REG && plainBase ? 1 << 7 : 0) | (i.segment >= Seg.FS ? 1 << 8 : 0) | (i.condition << 9);
  bits |= (i.rep === 0 ? 0 : i.rep === 0xf3 ? 1 : 2) << 13;
  const sizes = (Math.log2(i.operandSize) - 1) * 3 + Math.log2(i.addressSize) - 1;
  const vector = (IMMEDIATE_MATTERS[i.opcode] ? i.immediate & 0xff : 0) * 4 + i.vex / 16;
  return ((i.opcode * 9 + sizes) * (1 << 15) + bits) * 1024 + vector;
}

const SYSTEM_BINDING: Binding = { key: Key.SYSTEM, handler: 0, shape: 0 };

export class Tier0 {
  private readonly exports: InterpreterExports;
  private readonly handlers: HandlerTable;
  private readonly hot = new Map<string, number>();
  private readonly shapes: Shape[] = [];
  private readonly shapeIndices = new Map<string, number>();
  private readonly slow = new Map<number, number>();
  private readonly bindings = new Map<number, Binding>();
  private readonly i32: Int32Array;
  private readonly view: DataView;

  constructor(memory: PhysicalMemory, hooks: TypeScriptImports) {
    this.i32 = memory.i32;
    this.view = memory.view;
    const table = new WebAssembly.Table({ element: "anyfunc", initial: TABLE_SIZE });
    const shared = { memory: memory.memory, table };
    const instance = new WebAssembly.Instance(interpreterModule(), { env: { ...shared, ...hooks } });
    this.exports = instance.exports as unknown as InterpreterExports;
    const { resolve, offset, wrapOffset, segment, divideHigh } = this.exports;
    const helpers = { resolve, offset, wrapOffset, segment, divideHigh };
    this.handlers = new HandlerTable(table, { ...shared, ...hooks, ...helpers });
    HOT_SHAPES.forEach((shape, index) => {
      this.hot.set(shape.key, FIRST_HOT + index);
    });
  }

  /** How the interpreter runs an instruction; `prepare` before it does. */
  bind(instruction: Instruction, mode: CodeMode): Binding {
    const long = mode === CodeMode.LONG64;
    const signature = signatureOf(instruction, long);
    let binding = this.bindings.get(signature);
    if (!binding) {
      binding = this.bindShape(instruction, long);
      this.bindings.set(signature, binding);
    }
    return binding;
  }

  private bindShape(instruction: Instruction, long: boolean): Binding {
    const row = OPCODES[instruction.opcode];
    const found = semantics.get(row.mnemonic);
    // Without semantics the handler of its mnemonic runs it, or says that it is undefined.
    if (!found || (row.system && !found.needs.usualCase)) return SYSTEM_BINDING;
    const shape = shapeOf(instruction, long, found.needs);
    const key = this.hot.get(shape.key);
    if (row.system && key === undefined) return SYSTEM_BINDING;
    const index = this.shapeIndex(shape);
    if (key !== undefined) return { key, handler: 0, shape: index, callsSystem: row.system };
    return { key: Key.COLD, handler: this.handlers.slot(shape, "cold"), shape: index };
  }

  /** For compiled regions: a slot of the function table. */
  allocateSlot(): number {
    return this.handlers.allocate();
  }

  /** Puts the functions of a module of compiled regions into their slots, by the names r0, r1 ... */
  install(module: WebAssembly.Module, slots: readonly number[]): void {
    this.handlers.install(module, slots, "r");
  }

  /** Empties a slot, so that what was in it can be freed. */
  clearSlot(slot: number): void {
    this.handlers.clear(slot);
  }

  private shapeIndex(shape: Shape): number {
    let index = this.shapeIndices.get(shape.key);
    if (index === undefined) {
      index = this.shapes.push(shape) - 1;
      this.shapeIndices.set(shape.key, index);
    }
    return index;
  }

  prepare(): void {
    this.handlers.compile();
  }

  run(record: number): void {
    this.exports.run(record);
  }

  /**
   * Runs one instruction with every access made by the hooks. As `run` with a budget of one: STATUS is BUDGET when it
   * retired and RIP is the next instruction's; FAULT or AGAIN when it did not. Hooks may throw through it.
   */
  runSlow(record: number): void {
    const index = this.i32[(record + Rec.SHAPE) >> 2];
    let slot = this.slow.get(index);
    if (slot === undefined) {
      slot = this.handlers.slot(this.shapes[index], "slow");
      this.handlers.compile();
      this.slow.set(index, slot);
    }
    const next = this.handlers.call(slot, record);
    if (next !== 0) {
      this.i32[Off.BUDGET >> 2]--;
      this.view.setBigUint64(Off.RIP, this.view.getBigUint64(next + Rec.RIP, true), true);
    } else if (this.i32[Off.STATUS >> 2] !== ExitStatus.MISS) return;
    this.i32[Off.STATUS >> 2] = ExitStatus.BUDGET;
  }
}
