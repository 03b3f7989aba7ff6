/**
 * Guest call stacks. A frame's caller comes from the unwind table that covers its address: a Linux kernel's ORC, or call
 * frame information (unwind-tables.ts). Code without one is unwound by what is on the stack. The caller is looked for, in
 * this order: at the stack pointer while the function has not made its frame yet or is leaving it, behind the frame
 * pointer, and in the stack slots from the stack pointer up. A slot counts only when its value lies behind a CALL; when
 * symbols tell where the frame's function begins and the CALL is direct, it must be a call of that function, which makes
 * frames without a frame pointer certain too. Where no caller is found, an interrupt's frame is looked for (SDM 3A 6.12.1,
 * 6.14.2): handlers were not called.
 */
import { decode } from "../cpu/isa/decoder";
import { newInstruction } from "../cpu/isa/instruction";
import type { Machine } from "../machine/machine";
import { codeContext, instructionAt, opcodeOffset, readInteger } from "./code";
import type { SymbolIndex } from "./symbols";
import { type Cursor, REGISTERS, type UnwindTables, unwindByTables } from "./unwind-tables";

export interface Frame {
  /** Linear address of the next instruction (of a caller: the one behind its call). */
  readonly linear: bigint;
  /** Address of the stack slot that holds it; null for the innermost frame. */
  readonly slot: bigint | null;
  /** An interrupt or exception took the processor away from here: `linear` is not behind a call. */
  readonly interrupted: boolean;
  /** The best return address on the stack, nothing better was found. */
  readonly guess: boolean;
  /** Registers of the frame that are known, by name; "rsp" is the stack pointer when it goes on. */
  readonly registers: ReadonlyMap<string, bigint>;
}

interface Caller {
  readonly linear: bigint;
  readonly slot: bigint;
  /** Linear stack pointer of the caller. */
  readonly stack: bigint;
  readonly by: "call" | "frame" | "interrupt" | "guess";
  /** Code width of an interrupted program that differs from its handler's. */
  readonly bits?: 16 | 32 | 64;
}

type Call = { readonly direct: true; readonly target: bigint } | { readonly direct: false };
/** How sure a return address is. */
const Trust = { NONE: 0, CALL: 1, EXACT: 2 } as const;

const MAX_FRAME = 1n << 20n;
const SCAN_SLOTS = 512;
const INTERRUPT_SLOTS = 64;
/** RFLAGS bits that are always 0 (SDM 1 3.4.3), and the one that is always 1. */
const FLAGS_ZERO = ~0x3f_7fd7n;
const FLAGS_ONE = 2n;
const PUSH_RBP = 0x55;
const scratch = newInstruction();

class Unwinder {
  private bits: 16 | 32 | 64;
  private size: number;
  private mask: bigint;
  private readonly csBase: bigint;

  constructor(
    private readonly machine: Machine,
    private readonly vcpu: number,
    private readonly symbols: SymbolIndex,
    private readonly tables: UnwindTables,
  ) {
    const context = codeContext(machine.vcpus[vcpu]);
    this.bits = context.bits;
    this.size = context.bits / 8;
    this.csBase = context.csBase;
    this.mask = context.bits === 64 ? (1n << 64n) - 1n : 0xffff_ffffn;
  }

  private setBits(bits: 16 | 32 | 64): void {
    this.bits = bits;
    this.size = bits / 8;
    this.mask = bits === 64 ? (1n << 64n) - 1n : 0xffff_ffffn;
  }

  /** Where the processor stands. */
  private innermost(): Cursor {
    const { registers } = this.machine.vcpus[this.vcpu];
    const context = codeContext(this.machine.vcpus[this.vcpu]);
    return {
      linear: context.linear,
      stack: context.stack,
      registers: new Map<string, bigint>([
        ...REGISTERS.map((name) => [name, registers.read(name)] as const),
        ["rbp", context.frame],
        ["rsp", context.stack],
      ]),
      anywhere: true,
      bits: context.bits,
    };
  }

  frames(limit: number): Frame[] {
    let cursor = this.innermost();
    const frames: Frame[] = [
      { linear: cursor.linear, slot: null, interrupted: false, guess: false, registers: cursor.registers },
    ];
    while (frames.length < limit) {
      this.setBits(cursor.bits);
      const found = unwindByTables(this.machine, this.vcpu, this.tables, cursor);
      if (found === "end") break;
      const next = found ?? this.bySearch(cursor, frames.length === 1);
      if (!next || (next.cursor.stack <= cursor.stack && next.cursor.linear === cursor.linear)) break;
      cursor = next.cursor;
      frames.push({
        linear: cursor.linear,
        slot: next.slot,
        interrupted: cursor.anywhere,
        guess: next.guess,
        registers: cursor.registers,
      });
    }
    return frames;
  }

  /** The caller by what lies on the stack. */
  private bySearch(
    { linear, stack, registers, anywhere }: Cursor,
    innermost: boolean,
  ): { cursor: Cursor; slot: bigint; guess: boolean } | undefined {
    const frame = registers.get("rbp") ?? 0n;
    const found = this.caller(linear, stack, frame, anywhere, innermost);
    if (!found) return undefined;
    const saved = found.by === "frame" ? this.word(found.slot - BigInt(this.size)) : undefined;
    const { ssBase } = codeContext(this.machine.vcpus[this.vcpu]);
    return {
      slot: found.slot,
      guess: found.by === "guess",
      cursor: {
        linear: found.linear,
        stack: found.stack,
        registers: new Map([
          ["rbp", saved === undefined ? frame : (ssBase + saved) & this.mask],
          ["rsp", found.stack],
        ]),
        anywhere: found.by === "interrupt",
        bits: found.bits ?? this.bits,
      },
    };
  }

  private caller(
    linear: bigint,
    stack: bigint,
    frame: bigint,
    anywhere: boolean,
    innermost: boolean,
  ): Caller | undefined {
    const start = this.symbols.at(anywhere ? linear : linear - 1n)?.address;
    const size = BigInt(this.size);
    const at = (slot: bigint, least: number, by: Caller["by"]): Caller | undefined => {
      const back = this.returnAddress(slot);
      if (back === undefined || this.trust(back, start) < least) return undefined;
      return { linear: back, slot, stack: slot + size, by };
    };
    const early = anywhere ? this.early(linear, stack, start) : undefined;
    if (early !== undefined) {
      const found = at(early, Trust.CALL, "call");
      if (found) return found;
    }
    const framed = frame >= stack && frame - stack <= MAX_FRAME ? at(frame + size, Trust.CALL, "frame") : undefined;
    if (framed && this.trust(framed.linear, start) === Trust.EXACT) return framed;
    for (let i = 0; i < SCAN_SLOTS; i++) {
      const found = at(stack + BigInt(i) * size, Trust.EXACT, "call");
      if (found) return found;
    }
    const interrupted = this.interruptFrame(stack);
    if (interrupted && !(framed && framed.slot < interrupted.slot)) return interrupted;
    if (framed) return framed;
    // Without a symbol nothing certain can be found; the nearest return address is the best guess, for the innermost frame.
    for (let i = 0; innermost && start === undefined && i < SCAN_SLOTS; i++) {
      const found = at(stack + BigInt(i) * size, Trust.CALL, "guess");
      if (found) return found;
    }
    return undefined;
  }

  /** What an interrupt pushed: RIP, CS, RFLAGS and, in 64-bit mode always, RSP and SS. */
  private interruptFrame(stack: bigint): Caller | undefined {
    if (this.bits === 16) return undefined;
    const size = BigInt(this.size);
    const cs = this.machine.vcpus[this.vcpu].registers.read("cs");
    for (let i = 0; i < INTERRUPT_SLOTS; i++) {
      const slot = stack + BigInt(i) * size;
      const [back, selector, flags] = [0n, 1n, 2n].map((n) => this.word(slot + n * size));
      if (back === undefined || selector === undefined || flags === undefined) return undefined;
      if (selector !== cs && (selector > 0xffffn || (selector & 3n) !== 3n)) continue;
      if ((flags & FLAGS_ZERO) !== 0n || (flags & FLAGS_ONE) === 0n || back === 0n) continue;
      const linear = this.bits === 64 ? back : (this.csBase + back) & this.mask;
      // At a handler's very start the frame is on top whatever it says: a jump into the void has no code at RIP.
      if (i > 1 && !instructionAt(this.machine, this.vcpu, linear, this.bits)) continue;
      const after = slot + 3n * size;
      if (this.bits === 32 && selector === cs) return { linear, slot, stack: after, by: "interrupt" };
      const pointer = this.word(after);
      if (pointer === undefined) continue;
      // The processor aligns RSP to 16 bytes before it pushes.
      const near = pointer >= after + 2n * size && pointer < after + 2n * size + 16n;
      if (selector === cs && !near) continue;
      return { linear, slot, stack: pointer, by: "interrupt" };
    }
    return undefined;
  }

  private word(address: bigint): bigint | undefined {
    return readInteger(this.machine, this.vcpu, address & this.mask, this.size);
  }

  private returnAddress(slot: bigint): bigint | undefined {
    const value = this.word(slot);
    if (value === undefined || value === 0n) return undefined;
    return this.bits === 64 ? value : (this.csBase + value) & this.mask;
  }

  private trust(linear: bigint, start: bigint | undefined): number {
    const call = this.callBefore(linear);
    if (!call) return Trust.NONE;
    if (!call.direct || start === undefined) return Trust.CALL;
    return call.target === start ? Trust.EXACT : Trust.NONE;
  }

  /** Slot of the return address at the first instructions of a function (PUSH rBP; MOV rBP, rSP) and at its RET. */
  private early(linear: bigint, stack: bigint, start: bigint | undefined): bigint | undefined {
    const { machine, vcpu, bits } = this;
    if (linear === start || instructionAt(machine, vcpu, linear, bits)?.isReturn) return stack;
    const code = machine.readMemory("gva", vcpu, linear, 3);
    if (code[0] === PUSH_RBP) return stack;
    const [before] = machine.readMemory("gva", vcpu, linear - 1n, 1);
    const wide = code[0] === 0x48 && code[1] === 0x89 && code[2] === 0xe5;
    const moves = wide || (code[0] === 0x89 && code[1] === 0xe5);
    return before === PUSH_RBP && moves ? stack + BigInt(this.size) : undefined;
  }

  /** The CALL that ends right before `linear`. */
  private callBefore(linear: bigint): Call | undefined {
    for (const length of [5, 2, 3, 6, 7, 4, 8]) {
      const from = linear - BigInt(length);
      if (from < 0n) continue;
      const bytes = this.machine.readMemory("gva", this.vcpu, from, length);
      if (bytes.length < length) continue;
      const at = opcodeOffset(bytes, this.bits);
      const opcode = bytes[at];
      const reg = (bytes[at + 1] >> 3) & 7;
      if (opcode !== 0xe8 && opcode !== 0x9a && !(opcode === 0xff && (reg === 2 || reg === 3))) continue;
      if (decode(bytes, 0, length, this.bits, scratch) !== length) continue;
      if (opcode !== 0xe8) return { direct: false };
      return { direct: true, target: (linear + BigInt(scratch.immediate)) & this.mask };
    }
    return undefined;
  }
}

/** Innermost first, at least one frame, at most `limit`. */
export function unwind(
  machine: Machine,
  vcpu: number,
  symbols: SymbolIndex,
  tables: UnwindTables,
  limit: number,
): Frame[] {
  return new Unwinder(machine, vcpu, symbols, tables).frames(limit);
}
