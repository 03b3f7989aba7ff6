/**
 * A "Linux kernel" of a few dozen bytes of code, in the form of the real one: a bzImage whose 64-bit entry maps an image at
 * the kernel's addresses (moved, as KASLR does it) and jumps there. The image has a kallsyms table, ORC tables, per-CPU
 * variables and tasks, and functions without frame pointers. Enough for a debugger to find everything it finds in Debian's.
 */
import { type TableLayout, type TableSymbol, writeKallsyms } from "../debug/linux/kallsyms-writer";

const LOADED = 0x100_0000;
/** Where in the payload the image begins, and what is mapped there. */
const IMAGE = 0x20_0000;
const SIZE = 0x2_0000;
export const SLIDE = 0x1200_0000n;
export const TEXT = 0xffff_ffff_8100_0000n + SLIDE;
export const BANNER = "Linux version 6.1.0-synthetic (test@house) #1 SMP";
const EXIT_PORT = 0xf4;

const TABLES = 0x1000;
const STACK_TOP = 0x5000;
const DATA = { banner: 0x5000, perCpuOffset: 0x5100, perCpu: 0x6000, init: 0x7000, child: 0x7400, kallsyms: 0x8000 };
const ORC = 0x1_0000;
const TASK = { pid: 0x1f0, canary: 0x1f8, parent: 0x200, children: 0x210, sibling: 0x220, leader: 0x230, comm: 0x300 };
const CURRENT = 0x40;

/** sp_offset, sp_reg (5 SP), type, end, as Linux 6.1 packs them. */
interface OrcRow {
  readonly at: number;
  readonly sp: number;
  readonly end?: boolean;
}

class Code {
  readonly bytes: number[] = [];
  readonly names: { name: string; at: number }[] = [];
  readonly orc: OrcRow[] = [];
  private readonly calls: { at: number; name: string }[] = [];

  get at(): number {
    return this.bytes.length;
  }
  begin(name: string): this {
    while (this.at % 16 !== 0) this.bytes.push(0x90);
    this.names.push({ name, at: this.at });
    return this;
  }
  emit(...bytes: number[]): this {
    this.bytes.push(...bytes);
    return this;
  }
  /** Bytes between the stack pointer and the caller's from here on. */
  frame(sp: number): this {
    this.orc.push({ at: this.at, sp });
    return this;
  }
  end(): this {
    this.orc.push({ at: this.at, sp: 0, end: true });
    return this;
  }
  word(value: number | bigint, size = 4): this {
    let rest = BigInt.asUintN(8 * size, BigInt(value));
    for (let i = 0; i < size; i++, rest >>= 8n) this.bytes.push(Number(rest & 0xffn));
    return this;
  }
  call(name: string): this {
    this.emit(0xe8);
    this.calls.push({ at: this.at, name });
    return this.word(0);
  }
  link(): Uint8Array {
    const bytes = Uint8Array.from(this.bytes);
    for (const { at, name } of this.calls) {
      const target = this.names.find((n) => n.name === name);
      if (!target) throw new Error(`no ${name}`);
      new DataView(bytes.buffer).setInt32(at, target.at - (at + 4), true);
    }
    return bytes;
  }
}

const low32 = (offset: number): bigint => BigInt.asUintN(32, TEXT + BigInt(offset));

/** @param resets writes to the reset control register (port 0xcf9) instead of ending */
function kernelCode(resets: boolean): Code {
  const c = new Code();
  // mov rsp, stack; wrmsr IA32_GS_BASE, per-CPU area
  c.begin("_text").end().emit(0x48, 0xc7, 0xc4).word(low32(STACK_TOP));
  c.emit(0xb9).word(0xc000_0101).emit(0xb8).word(low32(DATA.perCpu)).emit(0xba).word(0xffff_ffff).emit(0x0f, 0x30);
  c.call("start_kernel");
  if (resets) c.emit(0xb0, 0x06, 0x66, 0xba, 0xf9, 0x0c, 0xee);
  // out exit, al; hlt
  else c.emit(0xb0, 0x2a, 0xe6, EXIT_PORT);
  c.emit(0xf4, 0xeb, 0xfd);
  // sub rsp, 0x18; call; add rsp, 0x18; ret
  c.begin("start_kernel").frame(8).emit(0x48, 0x83, 0xec, 0x18).frame(0x20).call("rest_init");
  c.emit(0x48, 0x83, 0xc4, 0x18).frame(8).emit(0xc3);
  // push rbx; mov qword gs:[CURRENT], child; call; pop rbx; ret
  c.begin("rest_init").frame(8).emit(0x53).frame(0x10);
  c.emit(0x65, 0x48, 0xc7, 0x04, 0x25).word(CURRENT).word(low32(DATA.child));
  c.call("say_hello").emit(0x5b).frame(8).emit(0xc3);
  // push rbp used for anything but a frame: mov ebp, 5; out 0x3f8, 'H' 'i' '\n'; pop rbp; ret
  c.begin("say_hello").frame(8).emit(0x55).frame(0x10).emit(0xbd).word(5).emit(0x66, 0xba, 0xf8, 0x03);
  for (const letter of "Hi\n") c.emit(0xb0, letter.charCodeAt(0), 0xee);
  c.emit(0x5d).frame(8).emit(0xc3);
  c.begin("_etext").end();
  return c;
}

class Bytes {
  readonly view: DataView;
  constructor(readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  u64(at: number, value: bigint): void {
    this.view.setBigUint64(at, BigInt.asUintN(64, value), true);
  }
  u32(at: number, value: number): void {
    this.view.setUint32(at, value, true);
  }
  text(at: number, text: string): void {
    this.bytes.set(new TextEncoder().encode(text), at);
  }
}

function writeTasks(image: Bytes): void {
  const init = TEXT + BigInt(DATA.init);
  const child = TEXT + BigInt(DATA.child);
  for (const [at, own, pid, name] of [
    [DATA.init, init, 0, "swapper"],
    [DATA.child, child, 1, "kworker/0:7"],
  ] as const) {
    image.u32(at + TASK.pid, pid);
    image.u32(at + TASK.pid + 4, pid);
    image.u64(at + TASK.canary, 0x1234_5678_9abc_de00n);
    for (const field of [TASK.parent, TASK.parent + 8]) image.u64(at + field, init);
    image.u64(at + TASK.leader, own);
    image.text(at + TASK.comm, name);
  }
  image.u64(DATA.init + TASK.children, child + BigInt(TASK.sibling));
  image.u64(DATA.init + TASK.children + 8, child + BigInt(TASK.sibling));
  image.u64(DATA.perCpuOffset, TEXT + BigInt(DATA.perCpu));
  image.u64(DATA.perCpu + CURRENT, init);
}

function writeOrc(image: Bytes, rows: readonly OrcRow[]): { ip: number; ipEnd: number; entries: number } {
  const entries = ORC + 4 * rows.length;
  for (const [i, { at, sp, end }] of rows.entries()) {
    image.u32(ORC + 4 * i, at - (ORC + 4 * i));
    image.view.setInt16(entries + 6 * i, sp, true);
    image.view.setUint16(entries + 6 * i + 4, end ? 1 << 10 : 5, true);
  }
  return { ip: ORC, ipEnd: entries, entries };
}

/** The image's content, linked at TEXT. */
function kernelImage(layout: TableLayout | null, resets: boolean): Uint8Array {
  const code = kernelCode(resets);
  const image = new Bytes(new Uint8Array(SIZE));
  image.bytes.set(code.link());
  image.text(DATA.banner, `${BANNER}\n`);
  writeTasks(image);
  const orc = writeOrc(image, code.orc);
  const at = (name: string, offset: number, type: string): TableSymbol => ({
    name,
    type,
    address: TEXT + BigInt(offset),
  });
  const fillers = Array.from({ length: 40 }, (_, i) => at(`filler_of_the_table_${i}`, 0x800 + 16 * i, "t"));
  const symbols: TableSymbol[] = [
    { name: "current_task", type: "A", address: BigInt(CURRENT) },
    ...code.names.flatMap(({ name, at: offset }) =>
      name === "_text" ? [at("_text", offset, "T"), at("_stext", offset, "T")] : [at(name, offset, "T")],
    ),
    ...fillers,
    at("linux_banner", DATA.banner, "R"),
    at("__per_cpu_offset", DATA.perCpuOffset, "D"),
    at("init_task", DATA.init, "D"),
    at("child_task", DATA.child, "d"),
    at("__start_orc_unwind_ip", orc.ip, "R"),
    at("__stop_orc_unwind_ip", orc.ipEnd, "R"),
    at("__start_orc_unwind", orc.entries, "R"),
  ].sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
  if (layout) image.bytes.set(writeKallsyms(symbols, layout), DATA.kallsyms);
  return image.bytes;
}

/** Page tables: the first GiB as it is, and the image's 2 MiB at TEXT. */
function writeTables(payload: Bytes): void {
  const [pml4, lowPointers, highPointers, low, high] = [0, 1, 2, 3, 4].map((n) => TABLES + 0x1000 * n);
  const entry = (at: number, index: number, target: number, flags: number): void =>
    payload.u64(at + 8 * index, BigInt(target) | BigInt(flags));
  entry(pml4, 0, LOADED + lowPointers, 3);
  entry(pml4, 511, LOADED + highPointers, 3);
  entry(lowPointers, 0, LOADED + low, 3);
  entry(highPointers, 510, LOADED + high, 3);
  for (let i = 0; i < 512; i++) entry(low, i, i << 21, 0x83);
  entry(high, Number((TEXT - 0xffff_ffff_8000_0000n) >> 21n), LOADED + IMAGE, 0x83);
}

/**
 * The bzImage (Documentation/arch/x86/boot.rst).
 * @param layout of its symbol table, or null for a kernel without one
 * @param resets ends by a reset of the machine
 */
export function syntheticKernel(
  layout: TableLayout | null = { addresses: "before", form: "percpu", marker: 4 },
  resets = false,
): Uint8Array {
  const payload = new Bytes(new Uint8Array(IMAGE + SIZE));
  writeTables(payload);
  payload.bytes.set(kernelImage(layout, resets), IMAGE);
  const entry = new Code();
  // mov eax, tables; mov cr3, rax; mov rax, TEXT; jmp rax
  // In the decompressor's place: a while in low memory (mov ecx, count; loop).
  if (resets) entry.emit(0xb9).word(1_000_000).emit(0xe2, 0xfe);
  entry
    .emit(0xb8)
    .word(LOADED + TABLES)
    .emit(0x0f, 0x22, 0xd8, 0x48, 0xb8)
    .word(TEXT, 8)
    .emit(0xff, 0xe0);
  payload.bytes.set(entry.link(), 0x200);
  const setup = new Bytes(new Uint8Array(1024));
  const { view } = setup;
  setup.bytes[0x1f1] = 1;
  setup.u32(0x1f4, payload.bytes.length / 16);
  view.setUint16(0x1fe, 0xaa55, true);
  setup.bytes.set([0xeb, 0x66], 0x200);
  setup.text(0x202, "HdrS");
  view.setUint16(0x206, 0x020f, true);
  view.setUint16(0x20e, 0x100, true);
  setup.bytes[0x211] = 1;
  setup.u32(0x22c, 0x7fff_ffff);
  setup.u32(0x230, 0x20_0000);
  setup.bytes[0x234] = 1;
  view.setUint16(0x236, 1, true);
  setup.u32(0x238, 255);
  setup.u64(0x258, BigInt(LOADED));
  setup.u32(0x260, payload.bytes.length);
  setup.text(0x300, "6.1.0-synthetic (test@house) #1 SMP");
  const file = new Uint8Array(setup.bytes.length + payload.bytes.length);
  file.set(setup.bytes);
  file.set(payload.bytes, setup.bytes.length);
  return file;
}
