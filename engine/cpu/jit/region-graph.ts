/** Finds what to compile on a page of decoded 64-bit code: the blocks around an instruction that was seen running. */
import type { CodePage } from "../code/code-store";
import { branchTarget } from "../code/record-writer";
import { Key, Rec } from "../interpreter/record";
import { decode } from "../isa/decoder";
import { type Instruction, newInstruction, OperandKind } from "../isa/instruction";
import { OPCODES, rowOn } from "../isa/opcodes";
import { semantics } from "../isa/semantics";
import { Form, type Shape, shapeOf } from "../isa/semantics/shape";
import type { Feature } from "../models/model";

export interface RegionInstruction {
  readonly offset: number;
  readonly rip: bigint;
  /** Its record in the page's table. */
  readonly entry: number;
  /** The record with which tier 0 does it: `entry`, or the copy of an entry that leads into a region. */
  readonly record: number;
  readonly instruction: Instruction;
  readonly shape: Shape;
}

/** A run of instructions entered only at its first; branches may leave it in the middle. */
export interface RegionBlock {
  readonly instructions: readonly RegionInstruction[];
  /** Offset in the page of what comes behind, where control falls through to it; -1 where it does not. */
  readonly next: number;
}

/** More instructions than this V8 compiles too slowly. */
const MAX_INSTRUCTIONS = 800;
const MAX_BLOCK = 100;

/** Repeated string instructions stay with tier 0: their loops are its bulk operations. */
const LEFT_TO_TIER0: ReadonlySet<string> = new Set(["MOVS", "STOS", "LODS", "CMPS", "SCAS"]);

/** After these control does not come to the next instruction. */
const ENDS: ReadonlySet<string> = new Set(["JMP", "RET", "CALL"]);

export interface PageMemory {
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
}

export class RegionGraph {
  private readonly instructions = new Map<number, RegionInstruction | null>();
  private readonly leaders = new Set<number>();
  /** Offsets that some earlier compiled instruction falls through to. */
  private readonly fallsInto = new Set<number>();

  constructor(
    private readonly memory: PageMemory,
    private readonly page: CodePage,
    private readonly features: ReadonlySet<Feature>,
    /** Records that regions replaced, and the copies that stand for them. */
    private readonly originalOf: (record: number) => number,
  ) {
    for (let offset = 0; offset < 4096; offset++) if (this.recordAt(offset) !== 0) this.note(offset);
  }

  private recordAt(offset: number): number {
    return this.memory.i32[(this.page.table >> 2) + offset];
  }

  /** The instruction decoded at an offset, or null where there is none that can be compiled. */
  at(offset: number): RegionInstruction | null {
    if (offset < 0 || offset >= 4096) return null;
    let found = this.instructions.get(offset);
    if (found === undefined) {
      found = this.decodeAt(offset);
      this.instructions.set(offset, found);
    }
    return found;
  }

  private decodeAt(offset: number): RegionInstruction | null {
    const there = this.recordAt(offset);
    if (there === 0) return null;
    const record = this.originalOf(there);
    const key = this.memory.i32[(record + Rec.KEY) >> 2];
    if (key === Key.SYSTEM || key === Key.CROSS || key === Key.BREAK || key === Key.GOTO) return null;
    const instruction = newInstruction();
    const host = this.page.host;
    if (decode(this.memory.u8, host + offset, host + 4096, 64, instruction) <= 0) return null;
    const row = rowOn(this.features, OPCODES[instruction.opcode]);
    if (!row || LEFT_TO_TIER0.has(row.mnemonic)) return null;
    instruction.opcode = row.index;
    const found = semantics.get(row.mnemonic);
    if (!found || (row.system && !found.needs.usualCase)) return null;
    const shape = shapeOf(instruction, true, found.needs);
    if (found.needs.leftToTier0 || shape.operands.some((o) => o.form === Form.MMX)) return null;
    return { offset, rip: this.page.linear + BigInt(offset), entry: there, record, instruction, shape };
  }

  /** Offset of a relative branch's target, -1 outside the page. */
  target(i: RegionInstruction): number {
    if (i.instruction.operands[0].kind !== OperandKind.RELATIVE) return -1;
    const linear = branchTarget(i.instruction, i.rip, true);
    return (linear & ~0xfffn) === this.page.linear ? Number(linear & 0xfffn) : -1;
  }

  /** Marks the leaders that the instruction at `offset` makes. */
  private note(offset: number): void {
    const i = this.at(offset);
    if (!i) return;
    const next = offset + i.instruction.length;
    const target = this.target(i);
    if (target >= 0) this.leaders.add(target);
    if (ENDS.has(i.shape.mnemonic)) this.leaders.add(next);
    if (!this.fallsInto.has(offset)) this.leaders.add(offset);
    // Behind what is not compiled a new block begins.
    if (!ENDS.has(i.shape.mnemonic)) this.fallsInto.add(next);
  }

  private block(offset: number): RegionBlock {
    const instructions: RegionInstruction[] = [];
    let at = offset;
    for (;;) {
      const i = this.at(at);
      if (!i) break;
      instructions.push(i);
      at += i.instruction.length;
      if (ENDS.has(i.shape.mnemonic)) return { instructions, next: -1 };
      if (this.leaders.has(at) || instructions.length >= MAX_BLOCK) break;
    }
    if (instructions.length >= MAX_BLOCK) this.leaders.add(at);
    return { instructions, next: at };
  }

  /** The blocks that the one around `offset` is connected with, sorted by address. */
  collect(offset: number): RegionBlock[] {
    const blocks = new Map<number, RegionBlock>();
    const into = new Map<number, number[]>();
    for (const leader of this.leaders) {
      if (!this.at(leader)) continue;
      const block = this.block(leader);
      blocks.set(leader, block);
      for (const s of this.successors(block)) {
        const list = into.get(s);
        if (list) list.push(leader);
        else into.set(s, [leader]);
      }
    }
    const start = [...blocks].find(([, b]) => b.instructions.some((i) => i.offset === offset))?.[0];
    if (start === undefined) return [];
    const chosen = new Set<number>([start]);
    const queue = [start];
    let size = 0;
    for (let n = 0; n < queue.length && size < MAX_INSTRUCTIONS; n++) {
      const block = blocks.get(queue[n]);
      if (!block) continue;
      size += block.instructions.length;
      for (const other of [...this.successors(block), ...(into.get(queue[n]) ?? [])]) {
        if (!chosen.has(other) && blocks.has(other)) {
          chosen.add(other);
          queue.push(other);
        }
      }
    }
    return [...chosen].sort((a, b) => a - b).map((leader) => blocks.get(leader) as RegionBlock);
  }

  private successors(block: RegionBlock): number[] {
    const list: number[] = block.next >= 0 ? [block.next] : [];
    for (const i of block.instructions) {
      const target = this.target(i);
      if (target >= 0) list.push(target);
      // A call comes back, as a rule.
      if (i.shape.mnemonic === "CALL") list.push(i.offset + i.instruction.length);
    }
    return list;
  }
}
