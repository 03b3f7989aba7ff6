/** Hand-assembled guests. Each line is one instruction with its assembly beside it. */

/** Bytes, or a 16-bit or 32-bit reference to a label. */
type Item = number | { readonly label: string; readonly as: "rel8" | "abs16" | "abs32" } | { readonly define: string };

export const label = (define: string): Item => ({ define });
export const rel8 = (to: string): Item => ({ label: to, as: "rel8" });
export const abs16 = (to: string): Item => ({ label: to, as: "abs16" });
export const abs32 = (to: string): Item => ({ label: to, as: "abs32" });

/** Puts lines of bytes and label references together at `origin`. */
export function assemble(origin: number, lines: readonly (readonly Item[])[]): Uint8Array {
  const items = lines.flat();
  const size = (item: Item): number => {
    if (typeof item === "number") return 1;
    if ("define" in item) return 0;
    return item.as === "rel8" ? 1 : item.as === "abs16" ? 2 : 4;
  };
  const labels = new Map<string, number>();
  let at = origin;
  for (const item of items) {
    if (typeof item !== "number" && "define" in item) labels.set(item.define, at);
    at += size(item);
  }
  const out: number[] = [];
  for (const item of items) {
    if (typeof item === "number") {
      out.push(item);
    } else if ("label" in item) {
      const target = labels.get(item.label);
      if (target === undefined) throw new Error(`no label ${item.label}`);
      const value = item.as === "rel8" ? target - (origin + out.length + 1) : target;
      for (let i = 0; i < size(item); i++) out.push((value >> (8 * i)) & 0xff);
    }
  }
  return Uint8Array.from(out);
}

export const ORIGIN = 0x7c00;

// biome-ignore-start format: one instruction a line
/** Ends with `code` at the debug-exit port. */
export const debugExit = (code: number): Uint8Array =>
  assemble(ORIGIN, [
    [0xb0, code], // mov al, code
    [0xe6, 0xf4], // out 0xf4, al
    [0xb0, 0x99], // mov al, 0x99
    [0xe6, 0xf4], // out 0xf4, al (never reached)
    [0xf4], // hlt
  ]);

export const powerOff = assemble(ORIGIN, [
  [0xba, 0x04, 0x06], // mov dx, 0x604
  [0xb8, 0x00, 0x20], // mov ax, 0x2000
  [0xef], // out dx, ax
  [0xf4], // hlt
]);

export const tripleFault = assemble(ORIGIN, [
  [0x0f, 0x01, 0x1e, abs16("idt")], // lidt [idt]
  [0xcc], // int3
  [label("idt"), 0, 0, 0, 0, 0, 0],
]);

export const deadHalt = assemble(ORIGIN, [
  [0xfa], // cli
  [0xf4], // hlt
]);

/** To real mode with a data segment of 4 GiB, and `handler` as the handler of NMIs. */
const bigRealMode: Item[][] = [
  [0xfa], // cli
  [0xb8, 0x10, 0x00], // mov ax, 0x10
  [0x66, 0x0f, 0x01, 0x16, abs16("gdtr")], // lgdt [gdtr]
  [0xc7, 0x06, 0x08, 0x00, abs16("handler")], // mov word [2 * 4], handler
  [0xc7, 0x06, 0x0a, 0x00, 0x00, 0x00], // mov word [2 * 4 + 2], 0
  [0x0f, 0x20, 0xc3], // mov ebx, cr0
  [0x43], // inc bx: PE
  [0x0f, 0x22, 0xc3], // mov cr0, ebx
  [0x8e, 0xd8], // mov ds, ax
  [0x4b], // dec bx
  [0x0f, 0x22, 0xc3], // mov cr0, ebx
];
/** The handler, which ends with code 6, and the descriptors. */
const nmiHandler: Item[][] = [
  [label("handler"), 0xb0, 0x06], // mov al, 6
  [0xe6, 0xf4], // out 0xf4, al
  [label("gdt"), 0, 0, 0, 0, 0, 0, 0, 0],
  [0, 0, 0, 0, 0, 0, 0, 0],
  [0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0], // data, 4 GiB
  [label("gdtr"), 0x17, 0x00, abs32("gdt")],
];

/** Sleeps with interrupts off; the timer's tick comes as NMI by the I/O APIC's pin 2. Ends with code 6. */
export const nmiWakes = assemble(ORIGIN, [
  ...bigRealMode,
  [0x66, 0xbe, 0x00, 0x00, 0xc0, 0xfe], // mov esi, 0xfec00000
  [0x67, 0x66, 0xc7, 0x06, 0x14, 0x00, 0x00, 0x00], // mov dword [esi], 0x14
  [0x67, 0x66, 0xc7, 0x46, 0x10, 0x00, 0x04, 0x00, 0x00], // mov dword [esi + 0x10], 0x400: NMI
  [0xb0, 0x34],
  [0xe6, 0x43], // counter 0, mode 2
  [0xb0, 0x00],
  [0xe6, 0x40], // 0x2000
  [0xb0, 0x20],
  [0xe6, 0x40],
  [label("loop"), 0xf4], // hlt
  [0xeb, rel8("loop")], // jmp loop
  ...nmiHandler,
]);

/** Waits for an NMI in a loop. Ends with code 6. */
export const nmiButton = assemble(ORIGIN, [...bigRealMode, [label("loop"), 0xeb, rel8("loop")], ...nmiHandler]);

/** Counts its starts in a CMOS cell, says the number, and resets the machine until it is 3. Ends with code 0x2a. */
export const threeStarts = assemble(ORIGIN, [
  [0xb0, 0x50],
  [0xe6, 0x70], // CMOS cell 0x50
  [0xe4, 0x71], // in al, 0x71
  [0xfe, 0xc0], // inc al
  [0xe6, 0x71], // out 0x71, al
  [0x04, 0x30], // add al, '0'
  [0xba, 0xf8, 0x03], // mov dx, 0x3f8
  [0xee], // out dx, al
  [0x3c, 0x33], // cmp al, '3'
  [0x74, rel8("done")], // je done
  [0xfe, 0x06, 0x00, 0x06], // inc byte [0x600]: memory does not outlive a reset
  [0xba, 0xf9, 0x0c], // mov dx, 0xcf9
  [0xb0, 0x06], // mov al, 6
  [0xee], // out dx, al
  [0xf4], // hlt
  [label("done"), 0xb0, 0x2a], // mov al, 0x2a
  [0xe6, 0xf4], // out 0xf4, al
]);

const picInit = (mask: number): Item[][] => [
  [0xb0, 0x11],
  [0xe6, 0x20], // ICW1
  [0xb0, 0x08],
  [0xe6, 0x21], // ICW2: vectors 8..15
  [0xb0, 0x04],
  [0xe6, 0x21], // ICW3
  [0xb0, 0x01],
  [0xe6, 0x21], // ICW4
  [0xb0, mask],
  [0xe6, 0x21], // OCW1
];

/** Sends back what it receives by interrupt; "q" ends it with code 5. */
export const serialEcho = assemble(ORIGIN, [
  [0xfa], // cli
  [0xc7, 0x06, 0x30, 0x00, abs16("handler")], // mov word [0x0c * 4], handler
  [0xc7, 0x06, 0x32, 0x00, 0x00, 0x00], // mov word [0x0c * 4 + 2], 0
  ...picInit(0xef),
  [0xba, 0xfc, 0x03],
  [0xb0, 0x0b],
  [0xee], // modem control: DTR, RTS, OUT2
  [0xba, 0xf9, 0x03],
  [0xb0, 0x01],
  [0xee], // receive interrupt
  [0xfb], // sti
  [label("loop"), 0xf4], // hlt
  [0xeb, rel8("loop")], // jmp loop
  [label("handler"), 0xba, 0xf8, 0x03], // mov dx, 0x3f8
  [0xec], // in al, dx
  [0x3c, 0x71], // cmp al, 'q'
  [0x74, rel8("quit")], // je quit
  [0xee], // out dx, al
  [0xb0, 0x20],
  [0xe6, 0x20], // EOI
  [0xcf], // iret
  [label("quit"), 0xb0, 0x05], // mov al, 5
  [0xe6, 0xf4], // out 0xf4, al
]);

/**
 * Counts ticks of the PIT (divisor 1193) at 0x500, and keeps the PM timer at the first and last of eleven at 0x504, 0x508.
 * `wait` is the instruction between interrupts: HLT or NOP.
 */
export const pitTicks = (wait: number): Uint8Array =>
  assemble(ORIGIN, [
    [0xfa], // cli
    [0xc7, 0x06, 0x20, 0x00, abs16("handler")], // mov word [8 * 4], handler
    [0xc7, 0x06, 0x22, 0x00, 0x00, 0x00], // mov word [8 * 4 + 2], 0
    ...picInit(0xfe),
    [0xb0, 0x34],
    [0xe6, 0x43], // counter 0, mode 2
    [0xb0, 0xa9],
    [0xe6, 0x40], // 1193
    [0xb0, 0x04],
    [0xe6, 0x40],
    [0xfb], // sti
    [label("loop"), wait],
    [0xeb, rel8("loop")], // jmp loop
    [label("handler"), 0xba, 0x08, 0x06], // mov dx, 0x608
    [0x66, 0xed], // in eax, dx
    [0x83, 0x3e, 0x00, 0x05, 0x00], // cmp word [0x500], 0
    [0x75, rel8("later")], // jne later
    [0x66, 0xa3, 0x04, 0x05], // mov [0x504], eax
    [label("later"), 0x66, 0xa3, 0x08, 0x05], // mov [0x508], eax
    [0xff, 0x06, 0x00, 0x05], // inc word [0x500]
    [0x83, 0x3e, 0x00, 0x05, 0x0b], // cmp word [0x500], 11
    [0x74, rel8("quit")], // je quit
    [0xb0, 0x20],
    [0xe6, 0x20], // EOI
    [0xcf], // iret
    [label("quit"), 0xb0, 0x00], // mov al, 0
    [0xe6, 0xf4], // out 0xf4, al
  ]);

export const PROTECTED_ORIGIN = 0x100000;

/** Wakes processor 1 by INIT and start-up; it answers by 0x55 at 0x9000. Ends with code 7. */
export const wakeSecond = assemble(PROTECTED_ORIGIN, [
  [0xbe, abs32("trampoline")], // mov esi, trampoline
  [0xbf, 0x00, 0x80, 0x00, 0x00], // mov edi, 0x8000
  [0xb9, 0x10, 0x00, 0x00, 0x00], // mov ecx, 16
  [0xf3, 0xa4], // rep movsb
  [0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00], // SVR: enabled
  [0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x01], // ICR: to 1
  [0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x00, 0x00], // INIT
  [0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x08, 0x46, 0x00, 0x00], // start-up at 0x8000
  [label("wait"), 0x80, 0x3d, 0x00, 0x90, 0x00, 0x00, 0x55], // cmp byte [0x9000], 0x55
  [0x75, rel8("wait")], // jne wait
  [0xb0, 0x07], // mov al, 7
  [0xe6, 0xf4], // out 0xf4, al
  [label("trampoline"), 0xc6, 0x06, 0x00, 0x90, 0x55], // mov byte [0x9000], 0x55 (16 bits)
  [0xf4], // hlt
  [0xeb, 0xfd], // jmp to the hlt
  new Array(8).fill(0x90),
]);
// biome-ignore-end format: one instruction a line
