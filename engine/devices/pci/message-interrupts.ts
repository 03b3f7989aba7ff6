/**
 * Message signalled interrupts of a PCI function: MSI (PCI Local Bus 3.0 section 6.8.1) and MSI-X (6.8.2). A message is a
 * memory write of `data` to `address`, which the chipset turns into an interrupt.
 */
import type { Registers } from "../chip";
import { PciCapability } from "./config-space";
import type { PciFunction } from "./function";

/** MSI capability with a 64-bit address and per-vector masks: offsets from its start. */
const Msi = { CONTROL: 2, ADDRESS: 4, ADDRESS_HIGH: 8, DATA: 12, MASK: 16, PENDING: 20, SIZE: 24 } as const;
const MSI_ENABLE = 1;
const MSI_64_BIT = 1 << 7;
const MSI_MASKS = 1 << 8;

const MsixCap = { CONTROL: 2, TABLE: 4, PENDING: 8, SIZE: 12 } as const;
const MSIX_ENABLE = 1 << 15;
const MSIX_MASK_ALL = 1 << 14;
const ENTRY_SIZE = 16;
const ENTRY_MASKED = 1;

/** The MSI capability of a function. */
export class MsiCapability {
  readonly offset: number;

  /** @param vectors 1, 2, 4, 8, 16 or 32 */
  constructor(
    private readonly owner: PciFunction,
    private readonly vectors: number,
  ) {
    const body = new Uint8Array(Msi.SIZE);
    const view = new DataView(body.buffer);
    const capable = Math.log2(vectors) << 1;
    view.setUint16(Msi.CONTROL, MSI_64_BIT | MSI_MASKS | capable, true);
    const writable = new Uint8Array(Msi.SIZE);
    const w = new DataView(writable.buffer);
    w.setUint16(Msi.CONTROL, MSI_ENABLE | 0x70, true);
    w.setUint32(Msi.ADDRESS, 0xfffffffc, true);
    w.setUint32(Msi.ADDRESS_HIGH, 0xffffffff, true);
    w.setUint16(Msi.DATA, 0xffff, true);
    w.setUint32(Msi.MASK, vectors === 32 ? 0xffffffff : 2 ** vectors - 1, true);
    this.offset = owner.addCapability(PciCapability.MSI, body, writable);
  }

  private word(at: number): number {
    return this.owner.peek(this.offset + at, 4);
  }

  get enabled(): boolean {
    return (this.owner.peek(this.offset + Msi.CONTROL, 2) & MSI_ENABLE) !== 0;
  }

  /** Sends the message of one vector, or keeps it pending while it is masked. */
  notify(vector: number): void {
    if (!this.enabled) return;
    const mask = 1 << (vector % this.vectors);
    if (this.word(Msi.MASK) & mask) this.owner.poke(this.offset + Msi.PENDING, 4, this.word(Msi.PENDING) | mask);
    else this.send(vector % this.vectors);
  }

  /** Software wrote to the capability: what is no longer masked goes out. */
  written(): void {
    const ready = this.word(Msi.PENDING) & ~this.word(Msi.MASK);
    if (!this.enabled || ready === 0) return;
    this.owner.poke(this.offset + Msi.PENDING, 4, this.word(Msi.PENDING) & ~ready);
    for (let v = 0; v < this.vectors; v++) if (ready & (1 << v)) this.send(v);
  }

  private send(vector: number): void {
    const log2 = (this.owner.peek(this.offset + Msi.CONTROL, 2) >> 4) & 7;
    const allocated = Math.min(1 << log2, this.vectors);
    const data = (this.word(Msi.DATA) & 0xffff & ~(allocated - 1)) | (vector & (allocated - 1));
    this.owner.sendMessage(this.word(Msi.ADDRESS), this.word(Msi.ADDRESS_HIGH), data);
  }
}

/** Size and place of an MSI-X table. */
export interface MsixOptions {
  readonly vectors: number;
  /** BAR that holds the table (offset 0) and the pending bits (offset `MSIX_PENDING_OFFSET`). */
  readonly bar: number;
}

/** Where the pending bits are in the BAR: room for 128 vectors before. */
const MSIX_PENDING_OFFSET = 0x800;
/** Bytes of the BAR that holds table and pending bits. */
export const MSIX_BAR_SIZE = 0x1000;

/** The MSI-X capability of a function. */
export class MsixCapability {
  readonly offset: number;
  /** The table and the pending bits, memory-mapped. */
  readonly registers: Registers;

  constructor(
    private readonly owner: PciFunction,
    readonly options: MsixOptions,
  ) {
    const body = new Uint8Array(MsixCap.SIZE);
    const view = new DataView(body.buffer);
    view.setUint16(MsixCap.CONTROL, options.vectors - 1, true);
    view.setUint32(MsixCap.TABLE, options.bar, true);
    view.setUint32(MsixCap.PENDING, MSIX_PENDING_OFFSET | options.bar, true);
    const writable = new Uint8Array(MsixCap.SIZE);
    new DataView(writable.buffer).setUint16(MsixCap.CONTROL, MSIX_ENABLE | MSIX_MASK_ALL, true);
    this.offset = owner.addCapability(PciCapability.MSI_X, body, writable);
    this.registers = {
      read: (offset, size) => this.read(offset, size),
      write: (offset, size, value) => this.write(offset, size, value),
    };
  }

  /** The table and pending bits at power-up: every vector masked. */
  static initialTable(vectors: number): { table: Uint32Array; pending: Uint32Array } {
    const table = new Uint32Array(vectors * 4);
    for (let v = 0; v < vectors; v++) table[v * 4 + 3] = ENTRY_MASKED;
    return { table, pending: new Uint32Array(Math.ceil(vectors / 32)) };
  }

  private get control(): number {
    return this.owner.peek(this.offset + MsixCap.CONTROL, 2);
  }

  get enabled(): boolean {
    return (this.control & MSIX_ENABLE) !== 0;
  }

  /** Sends the message of one vector, or keeps it pending while it is masked. Vectors beyond the table go nowhere. */
  notify(vector: number): void {
    if (!this.enabled || vector >= this.options.vectors) return;
    if (this.isMasked(vector)) this.setPending(vector, true);
    else this.send(vector);
  }

  /** Software wrote to the control register or the table: what is no longer masked goes out. */
  written(): void {
    if (!this.enabled) return;
    const { pending } = this.owner.state.msix ?? { pending: new Uint32Array(0) };
    if (pending.every((word) => word === 0)) return;
    for (let v = 0; v < this.options.vectors; v++) {
      if (!(pending[v >> 5] & (1 << (v & 31))) || this.isMasked(v)) continue;
      this.setPending(v, false);
      this.send(v);
    }
  }

  private get table(): Uint32Array {
    return this.owner.state.msix?.table ?? new Uint32Array(0);
  }

  private isMasked(vector: number): boolean {
    return (this.control & MSIX_MASK_ALL) !== 0 || (this.table[vector * 4 + 3] & ENTRY_MASKED) !== 0;
  }

  private setPending(vector: number, value: boolean): void {
    const words = this.owner.state.msix?.pending;
    if (!words) return;
    if (value) words[vector >> 5] |= 1 << (vector & 31);
    else words[vector >> 5] &= ~(1 << (vector & 31));
  }

  private send(vector: number): void {
    const { table } = this;
    this.owner.sendMessage(table[vector * 4], table[vector * 4 + 1], table[vector * 4 + 2]);
  }

  private read(offset: number, size: 1 | 2 | 4): number {
    const shift = (offset & 3) * 8;
    const mask = size === 4 ? 0xffffffff : 2 ** (size * 8) - 1;
    let word = 0;
    if (offset < this.options.vectors * ENTRY_SIZE) word = this.table[offset >> 2];
    else if (offset >= MSIX_PENDING_OFFSET) {
      word = this.owner.state.msix?.pending[(offset - MSIX_PENDING_OFFSET) >> 2] ?? 0;
    }
    return (word >>> shift) & mask;
  }

  /** Table entries take aligned accesses of 4 bytes; others are not allowed (6.8.2) and change nothing. */
  private write(offset: number, size: 1 | 2 | 4, value: number): void {
    if (size !== 4 || offset & 3 || offset >= this.options.vectors * ENTRY_SIZE) return;
    this.table[offset >> 2] = offset % ENTRY_SIZE === 12 ? value & ENTRY_MASKED : value >>> 0;
    this.written();
  }
}
