/**
 * Lines in which QEMU and the manuals differ: what QEMU prints, what the manual says, and where. The engine
 * follows the manual. (Recorded with Debian's qemu-system-x86_64, see test/guests/golden.mjs.)
 */
export interface Deviation {
  readonly qemu: string;
  readonly here: string;
  readonly why: string;
}

const LVT_PROBE = "apic LVT: timer, thermal, performance, LINT0, LINT1, error:";

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

export const SYSTEM32_DEVIATIONS: readonly Deviation[] = [
  {
    qemu: "#UD gate to code not present: vector b error 50 cs 8 handler ss 10",
    here: "#UD gate to code not present: vector b error 51 cs 8 handler ss 10",
    why: "a fault in the delivery of an exception has EXT set (3A 6.13)",
  },
  {
    qemu: "e1 as inner SS: user int 50: vector a error e0 cs 1b ss 23 handler ss 10",
    here: "e1 as inner SS: user int 50: vector c error e0 cs 1b ss 23 handler ss 10",
    why: "an inner stack segment that is not present is #SS (2A INT n)",
  },
  {
    qemu: "SS not present: vector b error 30 cs 0 handler ss 10",
    here: "SS not present: vector c error 30 cs 0 handler ss 10",
    why: "the stack segment of a task that is not present is #SS (3A table 8-1)",
  },
  {
    qemu: "   entered 0 flags 0 tr then 0 tr f0 link 60 ts 1 busy 60 1 68 1",
    here: "   entered 0 flags 0 tr then 0 tr f8 link 60 ts 1 busy 60 1 68 1",
    why: "as above: the handler's task",
  },
  {
    qemu: "   in the task: cs 8 ss 30 ds 10 fs 10 ldt 0 handler link 0  68  0",
    here: "   in the task: cs 8 ss 30 ds 10 fs 10 ldt 0 handler link 0  0  68",
    why: "as above: the handler's task",
  },
];

export const DEVICES_DEVIATIONS: readonly Deviation[] = [
  {
    qemu: "pit mode 2: 34 0",
    here: "pit mode 2: b4 0",
    why: "OUT is high until the count reaches 1 (8254 data sheet, mode 2)",
  },
  {
    qemu: "pit mode 2, BCD: 0",
    here: "pit mode 2, BCD: 1",
    why: "QEMU does not count in BCD",
  },
  {
    qemu: "pit mode 1, out: control word, count, trigger: 80 80 80",
    here: "pit mode 1, out: control word, count, trigger: 80 80 0",
    why: "the trigger takes OUT low (8254 data sheet, mode 1)",
  },
  {
    qemu: "pit mode 4, out: control word, count: 0 0 0",
    here: "pit mode 4, out: control word, count: 80 80 0",
    why: "OUT is high until the strobe (8254 data sheet, mode 4)",
  },
  {
    qemu: "pit mode 5, out: control word, trigger: 0 0 0",
    here: "pit mode 5, out: control word, trigger: 80 80 0",
    why: "OUT is high until the strobe (8254 data sheet, mode 5)",
  },
  {
    qemu: "apic registers written: SVR, DFR, LDR, ICR, DCR, TPR: 1f3 fffffff ffffffff 12000000 1000000 12345678 b ff",
    here: "apic registers written: SVR, DFR, LDR, ICR, DCR, TPR: 1f3 fffffff ffffffff 12000000 1000000 12000000 b ff",
    why: "the ICR's bits 55:32 are reserved (3A 10.6.1)",
  },
  {
    qemu: `${LVT_PROBE}${" fffbafff 10000".repeat(6)}`,
    here: `${LVT_PROBE} 300ff 10000 107ff 10000 107ff 10000 1a7ff 10000 1a7ff 10000 100ff 10000`,
    why: "each LVT entry has reserved bits of its own (3A figure 10-8)",
  },
  {
    qemu: "apic disabled by software: SVR, LVT masked, IPI: ff 400 700 700 1",
    here: "apic disabled by software: SVR, LVT masked, IPI: ff 10400 10700 10700 0",
    why: "a disabled APIC masks its LVT entries and accepts no fixed interrupts (3A 10.4.7.2)",
  },
  {
    qemu: "pci address: only whole writes, reserved bits: 80000000 ff00000b",
    here: "pci address: only whole writes, reserved bits: 80000000 80000008",
    why: "bits 30:24 and 1:0 of CONFIG_ADDRESS read as zero (PCI 2.3, 3.2.2.3.2)",
  },
  {
    qemu: "PM1 enable, SCI_EN: 0 120 0",
    here: "PM1 enable, SCI_EN: 0 120 1",
    why: "the board has no SMI command port: it is always in ACPI mode (ACPI 4.8.3.2)",
  },
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

/** What the manuals make of QEMU's lines. A line that occurs more than once counts where it comes behind the one before. */
export function corrected(lines: readonly string[], deviations: readonly Deviation[]): string[] {
  const result = [...lines];
  let from = 0;
  for (const deviation of deviations) {
    const at = result.indexOf(deviation.qemu, from);
    if (at < 0) throw new Error(`QEMU does not print "${deviation.qemu}"`);
    result[at] = deviation.here;
    from = at;
  }
  return result;
}
