/**
 * One vCPU's view of decoded code: works out its code context, finds the record for RIP and decodes what is not there.
 */
import { Access, type CodeCache, type Cpu, CpuFault, Vector } from "../cpu";
import { CODE_BASE, CODE_MASK, Key, RECORD_SIZE, Rec } from "../interpreter/record";
import { decode, MAX_INSTRUCTION_LENGTH } from "../isa/decoder";
import { DecodeError, type Instruction, newInstruction, OperandKind } from "../isa/instruction";
import { OPCODES, rowOn } from "../isa/opcodes";
import { NEVER_CACHED } from "../memory/contexts";
import { CodeMode, CpuState, Off, Seg, SegPart } from "../state";
import { ArenaFlushed, type CodePage, type CodeStore } from "./code-store";
import { type Binding, RecordFault, writePseudo, writeRecord } from "./record-writer";

/** Longest run of instructions decoded in one go. */
const MAX_RUN = 48;
/** Contexts of code are numbered from 1; 0 is for what must not be remembered. */
const UNCACHED = 0;
const LAST_CONTEXT = 0xffe;
const MASK64 = 0xffff_ffff_ffff_ffffn;
const MASK32 = 0xffff_ffffn;

/** Tells how instructions are run: tier 0. */
export interface Binder {
  bind(instruction: Instruction, mode: CodeMode): Binding;
  /** Makes everything that was bound ready to run. */
  prepare(): void;
}

/** What code contexts are made of, shared by the vCPUs of one CodeStore. */
export class CodeContexts {
  private numbers = new Map<string, number>();
  /** By tag and mode: the last number given out and the segment it is for. A segment seldom changes. */
  private readonly last = new Uint16Array(4096 * 8);
  private readonly lastBase = new Uint32Array(4096 * 8);
  private readonly lastLimit = new Int32Array(4096 * 8);
  private next = 1;

  constructor(private readonly store: CodeStore) {}

  /** Number for a TLB tag and a kind of code; `base` and `limit` are those of CS, 32 bits each. */
  number(tag: number, mode: CodeMode, base: number, limit: number): number {
    const at = tag * 8 + mode;
    const known = this.last[at];
    if (known !== 0 && this.lastBase[at] === base >>> 0 && this.lastLimit[at] === (limit | 0)) return known;
    const name = `${at} ${base} ${limit}`;
    let number = this.numbers.get(name);
    if (number === undefined) {
      if (this.next > LAST_CONTEXT) {
        this.numbers = new Map();
        this.last.fill(0);
        this.next = 1;
        this.store.flushItlb();
        this.store.generation++;
      }
      number = this.next++;
      this.numbers.set(name, number);
    }
    this.last[at] = number;
    this.lastBase[at] = base;
    this.lastLimit[at] = limit;
    return number;
  }
}

/** Default width of code in bits. */
export function codeWidth(mode: CodeMode): 16 | 32 | 64 {
  if (mode === CodeMode.LONG64) return 64;
  return mode === CodeMode.PROTECTED32 || mode === CodeMode.COMPAT32 ? 32 : 16;
}

export class VcpuCode implements CodeCache {
  private readonly scratch = newInstruction();
  private context = UNCACHED;
  private mode: CodeMode = CodeMode.REAL;
  /** CS.base, 32 bits; 0 in 64-bit mode. */
  private base = 0;
  private limit = 0;
  /** A run that is used once: code that is not in memory, and contexts that are not remembered. */
  private readonly crossBytes = new Uint8Array(MAX_INSTRUCTION_LENGTH);
  private crossRecords = 0;
  private crossIndex = 0;
  private crossGeneration = -1;

  constructor(
    private readonly cpu: Cpu,
    readonly store: CodeStore,
    private readonly contexts: CodeContexts,
    private readonly binder: Binder,
  ) {}

  updateContext(): void {
    const { state } = this.cpu;
    const mode = state.codeMode;
    const long = mode === CodeMode.LONG64;
    const cs = CpuState.segOffset(Seg.CS);
    this.mode = mode;
    this.base = long ? 0 : state.u32(cs + SegPart.BASE);
    this.limit = long ? -1 : state.u32(cs + SegPart.LIMIT);
    const tag = state.lo(Off.TLB_CONTEXT);
    if (tag === NEVER_CACHED) {
      this.store.flushItlb();
      this.context = UNCACHED;
    } else this.context = this.contexts.number(tag, mode, this.base, this.limit);
    state.setLo(Off.CODE_CONTEXT, this.context);
    state.setHi(Off.CODE_CONTEXT, 0);
    const { i32 } = this.store.memory;
    i32[CODE_BASE >> 2] = this.base;
    i32[(CODE_BASE >> 2) + 1] = 0;
    i32[CODE_MASK >> 2] = -1;
    i32[(CODE_MASK >> 2) + 1] = long ? -1 : 0;
  }

  carryGlobals(from: number): void {
    const { context } = this;
    if (from !== context && from !== UNCACHED && context !== UNCACHED) this.store.carryGlobals(from, context);
  }

  invalidateLinear(linear: bigint | undefined): void {
    if (linear === undefined) this.store.flushItlb();
    else this.store.dropItlb(Number(linear & MASK32) | 0);
    this.store.generation++;
  }

  invalidatePhysical(pa: number, length: number): void {
    this.store.invalidate(pa, length);
  }

  hasCode(pa: number): boolean {
    return this.store.hasCode(pa);
  }

  touches(pa: number, length: number): boolean {
    return this.store.touches(pa, length);
  }

  flushEverything(): void {
    this.store.flush();
  }

  /** The record for the instruction at RIP where the code TLB leads to one, else 0. */
  known(): number {
    const { state } = this.cpu;
    if (this.mode === CodeMode.LONG64) return this.store.lookup(state.lo(Off.RIP), state.hi(Off.RIP), this.context);
    return this.store.lookup((state.lo(Off.RIP) + this.base) | 0, 0, this.context);
  }

  /**
   * The record for the instruction at RIP, decoded if need be.
   * @throws CpuFault #PF, or #GP(0) for a RIP beyond CS.limit or not canonical; VmExitTaken
   */
  locate(): number {
    const { state } = this.cpu;
    const long = this.mode === CodeMode.LONG64;
    const known = this.known();
    if (known !== 0) return known;
    const { rip } = state;
    const linear = this.linearOf(rip);
    if (!long && rip > BigInt(this.limit >>> 0)) throw new CpuFault(Vector.GP, 0);
    const pa = this.cpu.mmu.translate(linear, Access.EXECUTE);
    const host = this.cpu.memory.hostOffset(pa - (pa % 4096));
    if (host < 0) return this.putTogether();
    for (;;) {
      try {
        const record = this.decodeAt(Math.floor(pa / 4096), host, linear, rip);
        this.binder.prepare();
        return record;
      } catch (e) {
        if (!(e instanceof ArenaFlushed)) throw e;
      }
    }
  }

  /** Linear address of a RIP. */
  linearOf(rip: bigint): bigint {
    return this.mode === CodeMode.LONG64 ? rip : (rip + BigInt(this.base)) & MASK32;
  }

  /** Physical address of the instruction at RIP when it has been located, else -1. */
  physicalOf(linear: bigint): number {
    const page = this.store.pageAt(Number(linear & MASK32) | 0, Number(linear >> 32n) | 0, this.context);
    return page ? page.frame * 4096 + Number(linear & 0xfffn) : -1;
  }

  private decodeAt(frame: number, host: number, linear: bigint, rip: bigint): number {
    const store = this.store;
    const key = { linear: linear & ~0xfffn, mode: this.mode, base: this.base, limit: this.limit };
    const page = store.page(frame, host, key, () => this.cpu.mmu.protectPhysicalPage(frame * 4096));
    const offset = Number(linear & 0xfffn);
    const i32 = store.memory.i32;
    const lo = Number(linear & MASK32) | 0;
    store.enterItlb(lo, Number(linear >> 32n) | 0, this.context, page.table, this.cpu.mmu.translatedGlobal);
    const there = i32[(page.table >> 2) + offset];
    if (there !== 0) return there;
    return this.decodeInPlace(page, offset, rip) ? i32[(page.table >> 2) + offset] : this.decodeRun(page, offset, rip);
  }

  /**
   * Decodes an instruction whose bytes have changed into the record it had.
   * @returns whether that could be done: the new instruction must be as long as the old one
   */
  private decodeInPlace(page: CodePage, offset: number, rip: bigint): boolean {
    const stale = page.stale.get(offset);
    const { store, scratch } = this;
    if (!stale || stale.length === 0 || store.stopsAt(page, offset)) return false;
    const { u8 } = store.memory;
    const length = decode(u8, page.host + offset, page.host + 4096, codeWidth(this.mode), scratch);
    const [lo, hi] = halvesOf(rip);
    if (length !== stale.length || this.faultOf(length, lo) !== 0) return false;
    const { record } = stale;
    this.write(record, 0, lo, hi);
    if (scratch.operands[0].kind === OperandKind.RELATIVE) this.link(page, record);
    this.enter(page, offset, record);
    return true;
  }

  /** Puts a record into its page's table, and tells whoever waited for it. */
  private enter(page: CodePage, offset: number, record: number): void {
    const { i32 } = this.store.memory;
    i32[(page.table >> 2) + offset] = record;
    for (const waiting of page.waiting.get(offset) ?? []) i32[(waiting + Rec.LINK) >> 2] = record;
    page.waiting.delete(offset);
    const stale = page.stale.get(offset);
    if (!stale) return;
    if (stale.record !== record) i32[(stale.record + Rec.LINK) >> 2] = record;
    page.stale.delete(offset);
  }

  /** Decodes from `offset` on until control leaves for good, the page ends, or known code is reached. */
  private decodeRun(page: CodePage, start: number, startRip: bigint): number {
    const { store, scratch, cpu } = this;
    const { memory } = store;
    const { i32, u8 } = memory;
    const width = codeWidth(this.mode);
    const table = page.table >> 2;
    const stops = store.hasBreakpoints(page);
    const first = store.allocate((MAX_RUN * 2 + 3) * RECORD_SIZE);
    const [startLo, hi] = halvesOf(startRip);
    let at = first;
    let offset = start;
    begun.length = 0;
    for (let n = 0; ; n++) {
      // A run stays on its page, so that the upper half of RIP stays as it is, but for what leads on behind it.
      const lo = (startLo + (offset - start)) | 0;
      if (offset >= 4096 || n >= MAX_RUN) {
        writePseudo(memory, at, Key.GOTO, lo, this.upperBehind(startLo, lo, hi));
        break;
      }
      const known = i32[table + offset];
      if (known !== 0) {
        writePseudo(memory, at, Key.GOTO, lo, hi, known);
        break;
      }
      begun.push(offset, at);
      if (stops && store.stopsAt(page, offset)) {
        writePseudo(memory, at, Key.BREAK, lo, hi);
        at += RECORD_SIZE;
      }
      const length = decode(u8, page.host + offset, page.host + 4096, width, scratch);
      if (length === DecodeError.MORE) {
        store.markDecoded(page.frame, offset, 4096 - offset);
        this.writeCross(at, lo, hi);
        at += 2 * RECORD_SIZE;
        break;
      }
      store.markDecoded(page.frame, offset, length > 0 ? length : MAX_INSTRUCTION_LENGTH);
      const fault = this.faultOf(length, lo);
      this.write(at, fault, lo, hi);
      if (fault !== 0) break;
      if (scratch.operands[0].kind === OperandKind.RELATIVE) this.link(page, at);
      at += RECORD_SIZE;
      offset += length;
      if (ENDS[scratch.opcode]) {
        const behind = (lo + length) | 0;
        writePseudo(memory, at, Key.GOTO, behind, this.upperBehind(startLo, behind, hi));
        break;
      }
    }
    store.shrink(at + RECORD_SIZE);
    for (let i = 0; i < begun.length; i += 2) this.enter(page, begun[i], begun[i + 1]);
    if (cpu.state.base !== 0) throw new Error("code is decoded for the running vCPU only");
    return first;
  }

  /** Upper half of a RIP at or behind `start`, less than 2 pages away. */
  private upperBehind(startLo: number, lo: number, hi: number): number {
    return lo >>> 0 < startLo >>> 0 ? (hi + 1) | 0 : hi;
  }

  /** The RecordFault that the processor raises instead of what `scratch` holds, or 0. */
  private faultOf(length: number, ripLo: number): number {
    const { scratch } = this;
    if (length === DecodeError.UD) return RecordFault.UD;
    if (length <= 0) return RecordFault.GP;
    if (this.mode !== CodeMode.LONG64 && (ripLo >>> 0) + length - 1 > this.limit >>> 0) return RecordFault.GP;
    const row = OPCODES[scratch.opcode];
    const effective = rowOn(this.cpu.model.features, row);
    if (!effective || (row.protectedOnly && this.mode <= CodeMode.VM86)) return RecordFault.UD;
    scratch.opcode = effective.index;
    return 0;
  }

  /** The record of what `scratch` holds, or of an exception. */
  private write(at: number, fault: number, ripLo: number, ripHi: number, instructionIndex?: number): void {
    const { scratch, store } = this;
    if (fault !== 0) {
      writePseudo(store.memory, at, Key.SYSTEM, ripLo, ripHi);
      store.memory.i32[(at + Rec.HANDLER) >> 2] = fault;
      return;
    }
    const binding = this.binder.bind(scratch, this.mode);
    const long = this.mode === CodeMode.LONG64;
    if (binding.key !== Key.SYSTEM && !binding.callsSystem) {
      writeRecord(store.memory, at, binding, scratch, ripLo, ripHi, long);
      return;
    }
    const index = instructionIndex ?? store.instructions.length;
    store.instructions[index] = copyInstruction(scratch);
    writeRecord(store.memory, at, binding, scratch, ripLo, ripHi, long);
    store.memory.i32[(at + (binding.callsSystem ? Rec.INSTRUCTION : Rec.HANDLER)) >> 2] = index;
  }

  /**
   * An instruction that goes on in the next page: CROSS, and space for its record and what leads on. Nothing of the next
   * page is looked at before the instruction is executed.
   */
  private writeCross(at: number, ripLo: number, ripHi: number): void {
    writePseudo(this.store.memory, at, Key.CROSS, ripLo, ripHi);
    this.store.memory.i32[(at + Rec.EXPECTED) >> 2] = -1;
  }

  /**
   * The record of the instruction at RIP that goes on in the next page, now that it is executed. Its CROSS is filled in, so
   * that it passes by itself for as long as the code TLB has the next page, unchanged, at its linear address.
   * @param record its CROSS
   * @throws CpuFault, VmExitTaken
   */
  crossing(record: number): number {
    const { cpu, scratch, store } = this;
    const { u8, i32 } = store.memory;
    const long = this.mode === CodeMode.LONG64;
    const { rip } = cpu.state;
    const linear = this.linearOf(rip);
    const second = (linear | 0xfffn) + 1n;
    const lo = Number(linear & MASK32) | 0;
    const page = store.pageAt(lo, Number(linear >> 32n) | 0, this.context);
    // A limit inside the instruction, and the end of the address space, are for byte by byte.
    if (!page || second > (long ? MASK64 : MASK32) || (!long && this.limit >>> 0 !== 0xffff_ffff)) {
      return this.putTogether();
    }
    const pa = cpu.mmu.translate(second, Access.EXECUTE);
    const host = cpu.memory.hostOffset(pa);
    if (host < 0) return this.putTogether();
    const frame = Math.floor(pa / 4096);
    const key = { linear: second, mode: this.mode, base: this.base, limit: this.limit };
    let table: number;
    try {
      table = store.page(frame, host, key, () => cpu.mmu.protectPhysicalPage(frame * 4096)).table;
    } catch (e) {
      if (!(e instanceof ArenaFlushed)) throw e;
      return this.putTogether();
    }
    const { translatedGlobal } = cpu.mmu;
    store.enterItlb(Number(second & MASK32) | 0, Number(second >> 32n) | 0, this.context, table, translatedGlobal);
    const own = record + RECORD_SIZE;
    if (i32[(record + Rec.EXPECTED) >> 2] === table) return own;
    const start = page.host + (lo & 0xfff);
    const before = 4096 - (lo & 0xfff);
    const bytes = this.crossBytes;
    bytes.set(u8.subarray(start, start + before));
    bytes.set(u8.subarray(host, host + MAX_INSTRUCTION_LENGTH - before), before);
    const length = decode(bytes, 0, MAX_INSTRUCTION_LENGTH, codeWidth(this.mode), scratch);
    const [ripLo, ripHi] = halvesOf(rip);
    const fault = this.faultOf(length, ripLo);
    store.markDecoded(frame, 0, (length > 0 ? length : MAX_INSTRUCTION_LENGTH) - before);
    this.write(own, fault, ripLo, ripHi);
    this.binder.prepare();
    writePseudo(store.memory, own + RECORD_SIZE, Key.GOTO, ...halvesOf(rip + BigInt(Math.max(length, 0))));
    i32[(record + Rec.EXPECTED) >> 2] = table;
    return own;
  }

  /** Sets LINK of a branch whose target lies on its page, now or when the target is decoded. */
  private link(page: CodePage, record: number): void {
    const { i32 } = this.store.memory;
    // In 64-bit mode linear addresses are RIPs, elsewhere the upper half of both is 0 and the base is added.
    const target = (i32[(record + Rec.IMMEDIATE) >> 2] + this.base) | 0;
    const ripLo = (i32[(record + Rec.RIP) >> 2] + this.base) | 0;
    if ((target & ~0xfff) !== (ripLo & ~0xfff)) return;
    if (i32[(record + Rec.IMMEDIATE + 4) >> 2] !== i32[(record + Rec.RIP + 4) >> 2]) return;
    const offset = target & 0xfff;
    const there = i32[(page.table >> 2) + offset];
    if (there !== 0) i32[(record + Rec.LINK) >> 2] = there;
    else {
      const list = page.waiting.get(offset);
      if (list) list.push(record);
      else page.waiting.set(offset, [record]);
    }
  }

  /**
   * A record for the instruction at RIP made of bytes fetched one by one, as it is not in memory, or at some end. It is good for one execution. A BREAK in front of it has been looked at already.
   * @throws CpuFault, VmExitTaken
   */
  putTogether(): number {
    const { cpu, scratch, store } = this;
    const rip = cpu.state.rip;
    const long = this.mode === CodeMode.LONG64;
    const bytes = this.crossBytes;
    const width = codeWidth(this.mode);
    let length: number = DecodeError.MORE;
    let have = 0;
    while (length === DecodeError.MORE && have < MAX_INSTRUCTION_LENGTH) {
      const linear = this.linearOf(rip + BigInt(have));
      if (!long && rip + BigInt(have) > BigInt(this.limit >>> 0)) throw new CpuFault(Vector.GP, 0);
      const pa = cpu.mmu.translate(long ? linear & MASK64 : linear, Access.EXECUTE);
      const host = cpu.memory.hostOffset(pa);
      bytes[have++] = host >= 0 ? store.memory.u8[host] : Number(cpu.bus.mmioRead(pa, 1));
      length = decode(bytes, 0, have, width, scratch);
    }
    if (this.crossGeneration !== store.generation || this.crossRecords === 0) {
      this.crossRecords = this.allocateCross();
      this.crossIndex = store.instructions.push(newInstruction()) - 1;
      this.crossGeneration = store.generation;
    }
    const at = this.crossRecords;
    const [ripLo, ripHi] = halvesOf(rip);
    this.write(at, this.faultOf(length, ripLo), ripLo, ripHi, this.crossIndex);
    this.binder.prepare();
    writePseudo(store.memory, at + RECORD_SIZE, Key.GOTO, ...halvesOf(rip + BigInt(Math.max(length, 0))));
    return at;
  }

  private allocateCross(): number {
    for (;;) {
      try {
        return this.store.allocate(2 * RECORD_SIZE);
      } catch (e) {
        if (!(e instanceof ArenaFlushed)) throw e;
      }
    }
  }
}

/** A RIP as two signed halves. */
const halvesOf = (rip: bigint): [lo: number, hi: number] => [
  Number(rip & MASK32) | 0,
  Number((rip >> 32n) & MASK32) | 0,
];

/** Offsets and records of the run being decoded, in pairs. */
const begun: number[] = [];

/** Behind these nothing follows that is surely code. */
const ENDING: ReadonlySet<string> = new Set([
  "JMP",
  "JMP_FAR",
  "RET",
  "RET_FAR",
  "IRET",
  "INT3",
  "UD0",
  "UD1",
  "UD2",
  "SYSRET",
  "SYSEXIT",
  "RSM",
  "VMLAUNCH",
  "VMRESUME",
]);

const ENDS = OPCODES.map((row) => ENDING.has(row.mnemonic));

function copyInstruction(from: Instruction): Instruction {
  const [a, b, c, d] = from.operands;
  return { ...from, operands: [{ ...a }, { ...b }, { ...c }, { ...d }] };
}
