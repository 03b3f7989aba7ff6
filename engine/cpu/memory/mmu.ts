/**
 * Paging and the TLB of one processor: `fill` is the slow path of generated code, `read` and `write` are the accesses that
 * TypeScript makes for the program (descriptor tables, stacks of far transfers, system instructions, MMIO).
 *
 * All state is in the engine's memory: the TLB, its contexts and the CPU block.
 */
import { Access, type Cpu, CpuFault, type Mmu, Vector } from "../cpu";
import { ExitStatus, Off, Rflags } from "../state";
import { NEVER_CACHED, Privilege, TlbContexts } from "./contexts";
import { Control, controlBits, PageFault, PageWalker } from "./walk";

const CR0_AM = 1 << 18;
const TWO32 = 0x1_0000_0000;
/** IA32_APIC_BASE: EXTD and EN. */
const APIC_ENABLED = 1 << 11;
const APIC_X2 = 1 << 10;
/** PDPTE: reserved bits 2:1 and 8:5 (SDM 3A table 4-8). */
const PDPTE_RESERVED = 0x1e6;

export class PagingMmu implements Mmu {
  private readonly walker: PageWalker;
  private readonly contexts: TlbContexts;
  private readonly u8: Uint8Array;
  private readonly view: DataView;
  /** Splits bigints without allocating. */
  private readonly split64 = new BigUint64Array(1);
  private readonly split32 = new Int32Array(this.split64.buffer);
  private readonly reservedHigh: number;
  /** Record of the current address space: only a hint where to look first. */
  private space = 0;
  private user = false;
  private smap = false;
  private alignmentChecks = false;
  private tag = NEVER_CACHED;
  /** Of the contexts when `space` was looked up. */
  private generation = 0;

  constructor(private readonly cpu: Cpu) {
    this.walker = new PageWalker(cpu);
    this.contexts = new TlbContexts(cpu.memory.memory);
    this.u8 = cpu.memory.u8;
    this.view = cpu.memory.view;
    const bits = cpu.model.physicalBits;
    this.reservedHigh = ~((1 << Math.max(Math.min(bits, 52) - 32, 0)) - 1);
  }

  updateContext(): void {
    const { state, secondStage, guest } = this.cpu;
    const control = controlBits(this.cpu);
    this.walker.control = control;
    const user = state.u32(Off.CPL) === 3;
    const ac = (state.lo(Off.FLAGS_REST) & Rflags.AC) !== 0;
    this.user = user;
    this.smap = !user && (control & Control.SMAP) !== 0 && !ac;
    this.alignmentChecks = user && ac && (state.lo(Off.CR0) & CR0_AM) !== 0;
    if (this.alignmentChecks) {
      this.generation = 0;
      this.setTag(NEVER_CACHED);
      return;
    }
    let stageLo = 0;
    let stageHi = 0;
    if (secondStage) {
      this.split64[0] = secondStage.tag;
      stageLo = this.split32[0];
      stageHi = this.split32[1];
    }
    const paging = (control & Control.PG) !== 0;
    const cr3Lo = paging ? state.lo(Off.CR3) : 0;
    const cr3Hi = paging ? state.hi(Off.CR3) : 0;
    const pcid = control & Control.PCIDE ? cr3Lo & 0xfff : 0;
    const pkru = control & Control.PKE ? state.lo(Off.PKRU) : 0;
    const pkrs = control & Control.PKS ? state.lo(Off.PKRS) : 0;
    const owner = state.id | ((guest ? guest.addressSpaceTag : 0) << 8);
    const privilege = user ? Privilege.USER : this.smap ? Privilege.SUPERVISOR_SMAP : Privilege.SUPERVISOR;
    const contexts = this.contexts;
    for (;;) {
      this.space = contexts.space(this.space, owner, control, pcid, stageLo, stageHi, pkru, pkrs, cr3Lo, cr3Hi);
      const tag = contexts.tag(this.space, privilege);
      if (tag !== 0) {
        this.generation = contexts.generation;
        this.setTag(tag);
        return;
      }
      this.startOver();
    }
  }

  private setTag(tag: number): void {
    this.tag = tag;
    this.cpu.state.setLo(Off.TLB_CONTEXT, tag);
    this.cpu.state.setHi(Off.TLB_CONTEXT, 0);
  }

  /** Tags have run out, or everything is to be forgotten: what was derived from old tags goes too. */
  private startOver(): void {
    this.contexts.flush();
    this.space = 0;
    this.cpu.code.invalidateLinear(undefined);
  }

  fill(access: Access, size: number): number {
    const state = this.cpu.state;
    const lo = state.lo(Off.EA);
    const hi = state.hi(Off.EA);
    // Vectors are not checked (SDM 2A table 2-21).
    if (this.alignmentChecks && access !== Access.EXECUTE && size <= 8 && (lo & (size - 1)) !== 0) {
      return this.raise(Vector.AC, 0, 0, 0);
    }
    if ((lo & 0xfff) + size > 4096) return this.slow();
    if (this.walker.control & Control.LMA && !this.isCanonical(hi)) return this.raise(Vector.GP, 0, 0, 0);
    const walker = this.walker;
    try {
      if (!walker.walk(lo, hi, access, this.user, this.smap)) return this.raise(Vector.PF, walker.error, lo, hi);
    } catch (e) {
      // A virtualization exception, which has no error code.
      if (!(e instanceof CpuFault)) throw e;
      this.raise(e.vector, 0, 0, 0);
      state.setU32(Off.FAULT_HAS_ERROR, 0);
      return -1;
    }
    const pa = walker.physical;
    if (walker.pageShift > 12) this.contexts.noteLarge(lo, hi, walker.pageShift);
    const offset = this.cpu.memory.hostOffset(pa);
    if (offset < 0 || this.isApicPage(pa)) return this.slow();
    if (this.cpu.watchesPage(state.u64(Off.EA), pa)) return this.slow();
    if (access === Access.WRITE) {
      if (this.cpu.memory.region(pa)?.kind !== "ram") return this.slow();
      if (this.cpu.code.hasCode(pa) && this.cpu.code.touches(pa, size)) return this.slow();
    }
    if (access !== Access.EXECUTE) this.enter(lo, hi, this.tag, pa, offset);
    return offset;
  }

  /** Enters the walk just made into the TLB: no write tag for ROM and for pages with code. */
  private enter(lo: number, hi: number, tag: number, pa: number, offset: number): void {
    if (tag === NEVER_CACHED) return;
    const { walker, cpu } = this;
    const writable = walker.writable && cpu.memory.region(pa)?.kind === "ram" && !cpu.code.hasCode(pa);
    const frame = Math.floor(pa / 4096) | 0;
    const { readable, pageShift, global } = walker;
    this.contexts.enter(lo, hi, tag, readable, writable, (offset - lo) | 0, frame, pageShift, global);
  }

  /** The tag under which an access by TypeScript finds its translations, NEVER_CACHED where it must walk. */
  private tagOf(implicit: boolean): number {
    const smap = (this.walker.control & Control.SMAP) !== 0;
    if (!implicit || (!this.user && this.smap === smap)) return this.tag;
    if (this.contexts.generation !== this.generation) return NEVER_CACHED;
    return this.contexts.tag(this.space, smap ? Privilege.SUPERVISOR_SMAP : Privilege.SUPERVISOR);
  }

  private slow(): number {
    this.cpu.state.setU32(Off.STATUS, ExitStatus.SLOW);
    return -1;
  }

  private raise(vector: number, error: number, extraLo: number, extraHi: number): number {
    const state = this.cpu.state;
    state.setU32(Off.FAULT_VECTOR, vector);
    state.setU32(Off.FAULT_ERROR, error);
    state.setU32(Off.FAULT_HAS_ERROR, 1);
    state.setLo(Off.FAULT_EXTRA, extraLo);
    state.setHi(Off.FAULT_EXTRA, extraHi);
    state.setU32(Off.STATUS, ExitStatus.FAULT);
    return -1;
  }

  /** Canonical for the current paging mode: 48 bits, or 57 with CR4.LA57 (SDM 1 3.3.7.1). */
  private isCanonical(hi: number): boolean {
    const top = hi >> (this.walker.control & Control.LA57 ? 24 : 15);
    return top === 0 || top === -1;
  }

  /** The local APIC's page, or the APIC-access page of a VMX guest: not memory, whatever is behind it. */
  private isApicPage(pa: number): boolean {
    const page = pa - (pa % 4096);
    const guest = this.cpu.guest;
    if (guest && guest.apicAccessPage === page) return true;
    const state = this.cpu.state;
    const base = state.lo(Off.APIC_BASE);
    if ((base & (APIC_ENABLED | APIC_X2)) !== APIC_ENABLED) return false;
    return page === (state.hi(Off.APIC_BASE) & 0xfffff) * TWO32 + ((base & ~0xfff) >>> 0);
  }

  /** Walks or faults for TypeScript. `implicit`: an access of the processor itself, supervisor whatever CPL is. */
  private locate(lo: number, hi: number, access: Access, implicit: boolean): number {
    const walker = this.walker;
    if (walker.control & Control.LMA && !this.isCanonical(hi)) throw new CpuFault(Vector.GP, 0);
    const user = !implicit && this.user;
    // RFLAGS.AC does not lift SMAP from implicit accesses (SDM 3A 4.6.1).
    const smap = implicit ? (walker.control & Control.SMAP) !== 0 : this.smap;
    if (!walker.walk(lo, hi, access, user, smap)) {
      throw new CpuFault(Vector.PF, walker.error, (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0));
    }
    if (walker.pageShift > 12) this.contexts.noteLarge(lo, hi, walker.pageShift);
    return walker.physical;
  }

  private checkAlignment(lo: number, size: number, implicit: boolean): void {
    if (this.alignmentChecks && !implicit && size <= 8 && (lo & (size - 1)) !== 0) throw new CpuFault(Vector.AC, 0);
  }

  translate(linear: bigint, access: Access, supervisor = false): number {
    this.split64[0] = linear;
    const pa = this.locate(this.split32[0], this.split32[1], access, supervisor);
    const guest = this.cpu.guest;
    if (guest && access === Access.EXECUTE && guest.apicAccessPage === pa - (pa % 4096)) guest.apicFetch?.(linear);
    return pa;
  }

  get translatedGlobal(): boolean {
    return this.walker.global;
  }

  probe(linear: bigint): number {
    this.split64[0] = linear;
    const lo = this.split32[0];
    const hi = this.split32[1];
    if (this.walker.control & Control.LMA && !this.isCanonical(hi)) return -1;
    return this.walker.probe(lo, hi);
  }

  read(linear: bigint, size: number, supervisor = false): bigint {
    this.split64[0] = linear;
    const lo = this.split32[0];
    const hi = this.split32[1];
    this.checkAlignment(lo, size, supervisor);
    if ((lo & 0xfff) + size > 4096) return this.readCrossing(linear, lo, hi, size, supervisor);
    const tag = this.tagOf(supervisor);
    const known = this.contexts.lookup(lo, hi, tag, false);
    if (known >= 0) return this.load(known, size);
    const pa = this.locate(lo, hi, Access.READ, supervisor);
    this.remember(linear, lo, hi, tag, pa);
    return this.readPhysical(pa, size, linear);
  }

  /** Enters a translation that TypeScript has walked for, where generated code would too. */
  private remember(linear: bigint, lo: number, hi: number, tag: number, pa: number): void {
    const offset = this.cpu.memory.hostOffset(pa);
    if (offset < 0 || this.isApicPage(pa) || this.cpu.watchesPage(linear, pa)) return;
    this.enter(lo, hi, tag, pa, offset);
  }

  /** The two pages of a crossing access are both checked before either is touched. */
  private readCrossing(linear: bigint, lo: number, hi: number, size: number, supervisor: boolean): bigint {
    const first = 4096 - (lo & 0xfff);
    const pa = this.locate(lo, hi, Access.READ, supervisor);
    const next = this.nextPage(linear, first);
    const pa2 = this.locate(Number(next & 0xffff_ffffn) | 0, Number(next >> 32n) | 0, Access.READ, supervisor);
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) {
      const at = i < first ? pa + i : pa2 + (i - first);
      value = (value << 8n) | this.readPhysical(at, 1, linear + BigInt(i));
    }
    return value;
  }

  /** Linear addresses wrap at 4 GiB outside 64-bit mode. */
  private nextPage(linear: bigint, bytes: number): bigint {
    const next = linear + BigInt(bytes);
    return this.walker.control & Control.LMA ? BigInt.asUintN(64, next) : next & 0xffff_ffffn;
  }

  private readPhysical(pa: number, size: number, linear: bigint): bigint {
    const offset = this.isApicPage(pa) ? -1 : this.cpu.memory.hostOffset(pa);
    if (offset < 0) {
      const guest = this.cpu.guest;
      if (guest?.apicAccessPage === pa - (pa % 4096) && guest.apicAccess(pa, pa % 4096, size, false, linear)) {
        return BigInt.asUintN(size * 8, this.cpu.state.u64(Off.VALUE));
      }
      return this.cpu.bus.mmioRead(pa, size);
    }
    return this.load(offset, size);
  }

  private load(offset: number, size: number): bigint {
    switch (size) {
      case 1:
        return BigInt(this.u8[offset]);
      case 2:
        return BigInt(this.view.getUint16(offset, true));
      case 4:
        return BigInt(this.view.getUint32(offset, true));
      default:
        return this.view.getBigUint64(offset, true);
    }
  }

  write(linear: bigint, size: number, value: bigint, supervisor = false): void {
    this.split64[0] = linear;
    const lo = this.split32[0];
    const hi = this.split32[1];
    this.checkAlignment(lo, size, supervisor);
    const first = 4096 - (lo & 0xfff);
    const tag = this.tagOf(supervisor);
    if (size <= first) {
      const known = this.contexts.lookup(lo, hi, tag, true);
      if (known >= 0) {
        this.store(known, size, value);
        return;
      }
    }
    const pa = this.locate(lo, hi, Access.WRITE, supervisor);
    if (size <= first) {
      this.remember(linear, lo, hi, tag, pa);
      this.writePhysical(pa, size, value, linear);
      return;
    }
    const next = this.nextPage(linear, first);
    const pa2 = this.locate(Number(next & 0xffff_ffffn) | 0, Number(next >> 32n) | 0, Access.WRITE, supervisor);
    for (let i = 0; i < size; i++) {
      const at = i < first ? pa + i : pa2 + (i - first);
      this.writePhysical(at, 1, (value >> BigInt(i * 8)) & 0xffn, linear + BigInt(i));
    }
  }

  private writePhysical(pa: number, size: number, value: bigint, linear: bigint): void {
    const offset = this.isApicPage(pa) ? -1 : this.cpu.memory.hostOffset(pa);
    if (offset < 0) {
      const guest = this.cpu.guest;
      if (guest?.apicAccessPage === pa - (pa % 4096)) {
        this.cpu.state.setU64(Off.VALUE, BigInt.asUintN(size * 8, value));
        if (guest.apicAccess(pa, pa % 4096, size, true, linear)) return;
      }
      this.cpu.bus.mmioWrite(pa, size, BigInt.asUintN(size * 8, value));
      return;
    }
    // Stores to ROM are the bus's: a flash chip takes them as commands, everything else drops them.
    if (this.cpu.memory.region(pa)?.kind !== "ram") {
      this.cpu.bus.mmioWrite(pa, size, BigInt.asUintN(size * 8, value));
      return;
    }
    this.store(offset, size, value);
    if (this.cpu.code.hasCode(pa)) this.cpu.code.invalidatePhysical(pa, size);
  }

  private store(offset: number, size: number, value: bigint): void {
    switch (size) {
      case 1:
        this.u8[offset] = Number(value & 0xffn);
        break;
      case 2:
        this.view.setUint16(offset, Number(value & 0xffffn), true);
        break;
      case 4:
        this.view.setUint32(offset, Number(value & 0xffff_ffffn), true);
        break;
      default:
        this.view.setBigUint64(offset, value, true);
    }
  }

  plain(linear: bigint, size: number, write: boolean): number {
    this.split64[0] = linear;
    const lo = this.split32[0];
    if ((lo & 0xfff) + size > 4096) return -1;
    return this.contexts.lookup(lo, this.split32[1], this.tagOf(false), write);
  }

  checkWrite(linear: bigint, size: number, supervisor = false): void {
    this.split64[0] = linear;
    const lo = this.split32[0];
    const hi = this.split32[1];
    this.checkAlignment(lo, size, supervisor);
    this.locate(lo, hi, Access.WRITE, supervisor);
    const first = 4096 - (lo & 0xfff);
    if (size <= first) return;
    const next = this.nextPage(linear, first);
    this.locate(Number(next & 0xffff_ffffn) | 0, Number(next >> 32n) | 0, Access.WRITE, supervisor);
  }

  /**
   * Loads the PDPTE registers from the table `cr3` names (SDM 3A 4.4.1).
   * @returns false, with nothing changed, when a present entry has reserved bits set (#GP)
   */
  loadPdptes(cr3: bigint): boolean {
    const stage = this.cpu.secondStage;
    const table = Number(cr3 & 0xffff_ffe0n);
    const values = [0n, 0n, 0n, 0n];
    for (let i = 0; i < 4; i++) {
      const gpa = table + i * 8;
      const pa = stage ? stage.translate(gpa, Access.READ, undefined, true) : gpa;
      const value = this.readPhysicalRaw(pa);
      const reservedLow = Number(value & 0xffff_ffffn) & PDPTE_RESERVED;
      const reservedHigh = Number(value >> 32n) & this.reservedHigh;
      if ((value & 1n) !== 0n && (reservedLow !== 0 || reservedHigh !== 0)) return false;
      values[i] = value;
    }
    for (let i = 0; i < 4; i++) this.cpu.state.setU64(Off.PDPTE + i * 8, values[i]);
    return true;
  }

  private readPhysicalRaw(pa: number): bigint {
    const offset = this.cpu.memory.hostOffset(pa);
    return offset < 0 ? this.cpu.bus.mmioRead(pa, 8) : this.view.getBigUint64(offset, true);
  }

  invalidatePage(linear: bigint): void {
    this.split64[0] = linear;
    const lo = this.split32[0];
    const hi = this.split32[1];
    const large = this.contexts.maybeLarge(lo, hi);
    this.contexts.dropPage(lo, hi);
    this.cpu.code.invalidateLinear(large ? undefined : linear);
  }

  invalidateAll(_globals: boolean): void {
    const guest = this.cpu.guest;
    this.contexts.forget({ vcpu: this.cpu.state.id, vpid: guest ? guest.addressSpaceTag : 0 });
    this.updateContext();
    this.cpu.code.updateContext();
  }

  /** MOV to CR3 without the no-flush bit (SDM 3A 4.10.4.1); the caller re-derives the context. */
  invalidatePcid(pcid: number): void {
    const guest = this.cpu.guest;
    this.contexts.forget({ vcpu: this.cpu.state.id, vpid: guest ? guest.addressSpaceTag : 0, pcid });
  }

  carryGlobals(from: number): void {
    if (from !== this.tag && from !== NEVER_CACHED && this.tag !== NEVER_CACHED)
      this.contexts.carryGlobals(from, this.tag);
  }

  invalidateTagged(what: {
    pcid?: number;
    vpid?: number;
    eptp?: bigint;
    linear?: bigint;
    keepGlobals?: boolean;
  }): void {
    if (what.linear !== undefined) {
      this.invalidatePage(what.linear);
      return;
    }
    let stageLo: number | undefined;
    let stageHi: number | undefined;
    if (what.eptp !== undefined) {
      this.split64[0] = what.eptp;
      stageLo = this.split32[0] & ~0xfff;
      stageHi = this.split32[1];
    }
    this.contexts.forget({ vcpu: this.cpu.state.id, vpid: what.vpid, pcid: what.pcid, stageLo, stageHi });
    this.updateContext();
    this.cpu.code.updateContext();
  }

  protectPhysicalPage(pa: number): void {
    this.contexts.protectFrame(Math.floor(pa / 4096) | 0);
  }

  flushEverything(): void {
    this.startOver();
    this.updateContext();
    this.cpu.code.updateContext();
  }
}

export { PageFault };
