/**
 * ORC unwind tables of a Linux kernel built without frame pointers (Documentation/arch/x86/orc-unwinder.rst,
 * arch/x86/include/asm/orc_types.h). Two arrays in the kernel's memory, found by their symbols and sorted by address:
 * __start_orc_unwind_ip, 32-bit offsets from each element's own place to code, and __start_orc_unwind, 6 bytes each:
 *
 *     s16 sp_offset, s16 bp_offset, u16 sp_reg:4 bp_reg:4 and
 *       type:2 end:1               4.14 to 6.2
 *       type:2 signal:1 end:1      6.3
 *       type:3 signal:1            since 6.4, with numbers of its own for the types
 *
 * Which of the encodings a kernel has shows in the table itself: nearly all of its entries are plain calls.
 */
import type { Machine } from "../../machine/machine";
import { readInteger } from "../code";
import type { SymbolIndex } from "../symbols";

/** What the previous stack pointer is computed from. */
export const OrcRegister = {
  UNDEFINED: 0,
  PREV_SP: 1,
  DX: 2,
  DI: 3,
  BP: 4,
  SP: 5,
  R10: 6,
  R13: 7,
  BP_INDIRECT: 8,
  SP_INDIRECT: 9,
} as const;

export type OrcType = "undefined" | "end" | "call" | "regs" | "regs-partial";

export interface OrcEntry {
  readonly spOffset: bigint;
  readonly bpOffset: bigint;
  readonly spRegister: number;
  readonly bpRegister: number;
  readonly type: OrcType;
}

const OLD_TYPES: readonly OrcType[] = ["call", "regs", "regs-partial", "undefined"];
const NEW_TYPES: readonly OrcType[] = ["undefined", "end", "call", "regs", "regs-partial"];
const ENTRY_SIZE = 6n;

export class OrcTable {
  private constructor(
    private readonly machine: Machine,
    private readonly ips: bigint,
    private readonly entries: bigint,
    private readonly count: number,
    private readonly code: readonly { readonly from: bigint; readonly to: bigint }[],
    /** Whether types are numbered as since Linux 6.4, and otherwise the bit that ends a stack. */
    private readonly encoding: { readonly modern: boolean; readonly endBit: number },
  ) {}

  /** @returns undefined when the symbols name no table, or what they name is none */
  static find(machine: Machine, vcpu: number, symbols: SymbolIndex): OrcTable | undefined {
    const at = (name: string): bigint | undefined => symbols.find(name)?.address;
    const [ips, ipsEnd, entries] = ["__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind"].map(at);
    if (ips === undefined || ipsEnd === undefined || entries === undefined || ipsEnd <= ips) return undefined;
    const code = [
      ["_stext", "_etext"],
      ["_sinittext", "_einittext"],
    ].flatMap(([first, last]) => {
      const [from, to] = [at(first), at(last)];
      return from !== undefined && to !== undefined ? [{ from, to }] : [];
    });
    const count = Number((ipsEnd - ips) / 4n);
    const bytes = machine.readMemory("gva", vcpu, entries, count * Number(ENTRY_SIZE));
    const words = Array.from(
      { length: Math.floor(bytes.length / 6) },
      (_, i) => bytes[6 * i + 4] | (bytes[6 * i + 5] << 8),
    );
    if (words.length === 0 || code.length === 0) return undefined;
    const share = (test: (word: number) => boolean): number => words.filter(test).length / words.length;
    const modern = share((word) => ((word >> 8) & 7) === NEW_TYPES.indexOf("call")) > 0.5;
    // In 6.3 `signal` stands where `end` stood. Signal frames are those with registers, which no end of a stack has.
    const hasSignal = !modern && words.some((word) => ((word >> 8) & 3) !== 0 && (word >> 10) & 1);
    return new OrcTable(machine, ips, entries, count, code, { modern, endBit: hasSignal ? 11 : 10 });
  }

  private ip(vcpu: number, index: number): bigint | undefined {
    const place = this.ips + 4n * BigInt(index);
    const offset = readInteger(this.machine, vcpu, place, 4);
    return offset === undefined ? undefined : BigInt.asUintN(64, place + BigInt.asIntN(32, offset));
  }

  /** The entry that covers a code address; undefined outside the kernel's own text. */
  at(vcpu: number, address: bigint): OrcEntry | undefined {
    if (!this.code.some(({ from, to }) => address >= from && address < to)) return undefined;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      const ip = this.ip(vcpu, middle);
      if (ip === undefined) return undefined;
      if (ip <= address) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? undefined : this.entry(vcpu, low - 1);
  }

  private entry(vcpu: number, index: number): OrcEntry | undefined {
    const raw = readInteger(this.machine, vcpu, this.entries + ENTRY_SIZE * BigInt(index), Number(ENTRY_SIZE));
    if (raw === undefined) return undefined;
    const word = Number(raw >> 32n);
    const spRegister = word & 15;
    const { modern, endBit } = this.encoding;
    let type: OrcType;
    if (modern) type = NEW_TYPES[(word >> 8) & 7] ?? "undefined";
    else if ((word >> endBit) & 1) type = "end";
    else type = spRegister === OrcRegister.UNDEFINED ? "undefined" : OLD_TYPES[(word >> 8) & 3];
    return {
      spOffset: BigInt.asIntN(16, raw),
      bpOffset: BigInt.asIntN(16, raw >> 16n),
      spRegister,
      bpRegister: (word >> 4) & 15,
      type,
    };
  }
}
