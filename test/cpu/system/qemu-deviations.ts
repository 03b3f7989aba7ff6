/**
 * Lines in which QEMU's translator and the manuals differ: what QEMU prints, what the manual says, and where. The engine
 * follows the manual. (Recorded with Debian's qemu-system-x86_64, see test/guests/golden.mjs.)
 */
export interface Deviation {
  readonly qemu: string;
  readonly here: string;
  readonly why: string;
}

export const SYSTEM64_DEVIATIONS: readonly Deviation[] = [
  {
    qemu: "PTE bit 51: vector e error 8 cr2 40000123 cs 8 ss 10",
    here: "PTE bit 51: vector e error 9 cr2 40000123 cs 8 ss 10",
    why: "RSVD is set only together with P (3A 4.7)",
  },
  {
    qemu: "2M page, bit 13: vector e error 8 cr2 40000123 cs 8 ss 10",
    here: "2M page, bit 13: vector e error 9 cr2 40000123 cs 8 ss 10",
    why: "RSVD is set only together with P (3A 4.7)",
  },
  {
    qemu: "3 mov ss: none",
    here: "3 mov ss: vector d error 0 cs 8 ss 10",
    why: "a null SS must have CPL as its RPL (2B MOV)",
  },
  ...["int 50 from user: vector d|cs 1b ss 23", "int 50, gate not present: vector b|cs 8 ss 10"].map(idtIndex),
  ...["int 50, task gate: vector d|cs 8 ss 10", "int 50, call gate: vector d|cs 8 ss 10"].map(idtIndex),
];

/** Error codes about a gate of the IDT: QEMU multiplies the vector by 16 in IA-32e mode. */
function idtIndex(text: string): Deviation {
  const [head, tail] = text.split("|");
  return {
    qemu: `${head} error 502 ${tail}`,
    here: `${head} error 282 ${tail}`,
    why: "the index in the error code is the vector (3A 6.13)",
  };
}

/** What the manuals make of QEMU's lines. */
export function corrected(lines: readonly string[], deviations: readonly Deviation[]): string[] {
  const known = new Map(deviations.map((d) => [d.qemu, d.here]));
  return lines.map((line) => known.get(line) ?? line);
}
