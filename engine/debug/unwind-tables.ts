/** One step up the stack by a table: a Linux kernel's ORC, or DWARF call frame information. */
import type { Machine } from "../machine/machine";
import { readInteger } from "./code";
import { FrameError, type FrameRow, type FrameTables } from "./frames/cfi";
import { type ExpressionContext, evaluateAddress, NotAvailable } from "./frames/expression";
import { OrcRegister, type OrcTable } from "./linux/orc";

export interface UnwindTables {
  readonly orc?: OrcTable;
  readonly frames: FrameTables;
}

/** Where a frame stands. */
export interface Cursor {
  readonly linear: bigint;
  /** Linear stack pointer. */
  readonly stack: bigint;
  /** What is known of the general registers, by their 64-bit names. */
  readonly registers: ReadonlyMap<string, bigint>;
  /** The frame may be at any instruction, not just behind a call: the innermost one, and interrupted ones. */
  readonly anywhere: boolean;
  readonly bits: 16 | 32 | 64;
}

export interface TableStep {
  readonly cursor: Cursor;
  /** Stack slot of the return address. */
  readonly slot: bigint;
  readonly guess: false;
}

/** General registers by their DWARF numbers (x86-64 psABI 3.6.2, figure 3.36). */
export const REGISTERS: readonly string[] = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
/** i386 psABI 2.4.2. */
const REGISTERS_32: readonly string[] = "rax rcx rdx rbx rsp rbp rsi rdi".split(" ");

/** Registers a called function leaves as they were (x86-64 psABI 3.2.1; i386 psABI 2.2.1). */
const PRESERVED: readonly string[] = ["rbx", "rbp", "r12", "r13", "r14", "r15"];
const PRESERVED_32: readonly string[] = ["rbx", "rbp", "rsi", "rdi"];

export const dwarfRegister = (number: number, pointer: 4 | 8): string | undefined =>
  (pointer === 8 ? REGISTERS : REGISTERS_32)[number];

/** struct pt_regs (arch/x86/include/asm/ptrace.h), in its order, 8 bytes each. */
const PT_REGS: readonly string[] =
  "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss".split(" ");
/** Where in it the processor's own frame begins. */
const IRET_FRAME = 16 * 8;
const LONG_SEGMENT_USER = 0x33n;

const ORC_BASES: Readonly<Record<number, string>> = {
  [OrcRegister.BP]: "rbp",
  [OrcRegister.BP_INDIRECT]: "rbp",
  [OrcRegister.DX]: "rdx",
  [OrcRegister.DI]: "rdi",
  [OrcRegister.R10]: "r10",
  [OrcRegister.R13]: "r13",
};

class Tables {
  constructor(
    private readonly machine: Machine,
    private readonly vcpu: number,
  ) {}

  private word(address: bigint, size = 8): bigint | undefined {
    return readInteger(this.machine, this.vcpu, BigInt.asUintN(64, address), size);
  }

  /** As unwind_next_frame() of arch/x86/kernel/unwind_orc.c goes about it. */
  orc(table: OrcTable, cursor: Cursor): TableStep | "end" | undefined {
    const { linear, registers } = cursor;
    const entry = table.at(this.vcpu, cursor.anywhere ? linear : linear - 1n);
    if (!entry) return undefined;
    if (entry.type === "end" || entry.type === "undefined") return "end";
    const cfa = this.orcStack(entry.spRegister, entry.spOffset, cursor);
    if (cfa === undefined) return "end";
    const add = (base: bigint): bigint => BigInt.asUintN(64, base + entry.bpOffset);
    if (entry.type !== "call") return this.orcRegisters(cfa, entry.type === "regs", cursor) ?? "end";
    const slot = cfa - 8n;
    const back = this.word(slot);
    if (back === undefined || back === 0n) return "end";
    const bp = registers.get("rbp");
    let frame: bigint | undefined = bp;
    if (entry.bpRegister === OrcRegister.PREV_SP) frame = this.word(add(cfa));
    else if (entry.bpRegister === OrcRegister.BP && bp !== undefined) frame = this.word(add(bp));
    return {
      slot,
      guess: false,
      cursor: {
        linear: back,
        stack: cfa,
        registers: new Map([["rsp", cfa], ...(frame === undefined ? [] : [["rbp", frame] as const])]),
        anywhere: false,
        bits: 64,
      },
    };
  }

  private orcStack(register: number, offset: bigint, { stack, registers }: Cursor): bigint | undefined {
    if (register === OrcRegister.SP) return BigInt.asUintN(64, stack + offset);
    if (register === OrcRegister.SP_INDIRECT) {
      const value = this.word(stack);
      return value === undefined ? undefined : BigInt.asUintN(64, value + offset);
    }
    const base = registers.get(ORC_BASES[register] ?? "");
    if (base === undefined) return undefined;
    if (register === OrcRegister.BP) return BigInt.asUintN(64, base + offset);
    return register === OrcRegister.BP_INDIRECT ? this.word(base + offset) : base;
  }

  /** A struct pt_regs, or of a partial one the processor's own frame only, at `at`: what an interrupt or a call interrupted. */
  private orcRegisters(at: bigint, full: boolean, { registers }: Cursor): TableStep | undefined {
    const start = full ? at : at - BigInt(IRET_FRAME);
    const read = (name: string): bigint | undefined => this.word(start + 8n * BigInt(PT_REGS.indexOf(name)));
    const [rip, cs, rsp] = ["rip", "cs", "rsp"].map(read);
    if (rip === undefined || cs === undefined || rsp === undefined) return undefined;
    const values = full ? PT_REGS.map((name) => [name, read(name)] as const) : [];
    const known = new Map<string, bigint>(full ? [] : [["rbp", registers.get("rbp") ?? 0n]]);
    for (const [name, value] of values) if (value !== undefined && REGISTERS.includes(name)) known.set(name, value);
    known.set("rsp", rsp);
    // Kernel code is 64 bits wide; a program's selector tells (GDT_ENTRY_DEFAULT_USER_CS, and the others 32-bit code).
    const bits = (cs & 3n) === 0n || cs === LONG_SEGMENT_USER ? 64 : 32;
    return {
      slot: start + BigInt(IRET_FRAME),
      guess: false,
      cursor: { linear: rip, stack: rsp, registers: known, anywhere: true, bits },
    };
  }

  cfi(row: FrameRow, cursor: Cursor): TableStep | "end" | undefined {
    const { pointer } = row;
    const name = (register: number): string | undefined => dwarfRegister(register, pointer);
    const context: ExpressionContext = {
      pointer,
      register: (number) => cursor.registers.get(name(number) ?? ""),
      read: (address, size) => this.word(address, size),
    };
    try {
      const base = row.cfa.kind === "register" ? context.register(row.cfa.register) : undefined;
      if (row.cfa.kind === "register" && base === undefined) return undefined;
      const cfa = BigInt.asUintN(
        8 * pointer,
        row.cfa.kind === "register" ? (base ?? 0n) + row.cfa.offset : evaluateAddress(row.cfa.code, context),
      );
      const value = (register: number): { value: bigint | undefined; slot: bigint } | undefined => {
        const rule = row.rules.get(register);
        switch (rule?.kind) {
          case undefined:
          case "same":
          case "undefined":
            return undefined;
          case "register":
            return { value: context.register(rule.register), slot: cfa };
          case "offset": {
            const slot = cfa + rule.offset;
            return { value: rule.value ? BigInt.asUintN(64, slot) : this.word(slot, pointer), slot };
          }
          case "expression": {
            const slot = evaluateAddress(rule.code, context, cfa);
            return { value: rule.value ? slot : this.word(slot, pointer), slot };
          }
        }
      };
      // The outermost function says so by an undefined return address.
      if (row.rules.get(row.returnRegister)?.kind === "undefined") return "end";
      const back = value(row.returnRegister);
      if (back?.value === undefined || back.value === 0n) return "end";
      const registers = new Map<string, bigint>();
      for (const kept of pointer === 8 ? PRESERVED : PRESERVED_32) {
        const same = cursor.registers.get(kept);
        if (same !== undefined) registers.set(kept, same);
      }
      for (const [register, rule] of row.rules) {
        const known = name(register);
        if (known === undefined) continue;
        const found = rule.kind === "same" ? cursor.registers.get(known) : value(register)?.value;
        if (found === undefined) registers.delete(known);
        else registers.set(known, found);
      }
      const stack = registers.get("rsp") ?? cfa;
      registers.set("rsp", stack);
      return {
        slot: back.slot,
        guess: false,
        cursor: { linear: back.value, stack, registers, anywhere: row.signal, bits: cursor.bits },
      };
    } catch (error) {
      if (error instanceof NotAvailable || error instanceof FrameError) return undefined;
      throw error;
    }
  }
}

/** The caller's frame by the table that covers this one; "end" at the outermost frame, undefined where no table knows. */
export function unwindByTables(
  machine: Machine,
  vcpu: number,
  { orc, frames }: UnwindTables,
  cursor: Cursor,
): TableStep | "end" | undefined {
  const tables = new Tables(machine, vcpu);
  if (orc && cursor.bits === 64) {
    const found = tables.orc(orc, cursor);
    if (found) return found;
  }
  const row = frames.at(cursor.anywhere ? cursor.linear : cursor.linear - 1n);
  return row && tables.cfi(row, cursor);
}
