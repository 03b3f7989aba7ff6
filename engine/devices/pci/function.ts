/**
 * One PCI function: its configuration space with base address registers, capabilities, INTx pin and message signalled
 * interrupts (PCI Local Bus 3.0 chapter 6). A device is made by giving it an identity and the registers behind its BARs:
 *
 *   const card = new PciFunction({ name: "card", vendor: 0x1af4, device: 0x1005, classCode: 0x00ff00, interruptPin: 1,
 *     bars: { 0: { space: "io", size: 32, registers } } });
 *   bus.add(4, 0, card);
 */
import type { Registers, Stateful } from "../chip";
import { BAR_COUNT, CONFIG_SPACE_SIZE, HEADER_MULTIFUNCTION, PciCommand, PciReg, PciStatus } from "./config-space";
import { MSIX_BAR_SIZE, MsiCapability, MsixCapability, type MsixOptions } from "./message-interrupts";

/** What lies behind a base address register. */
export interface PciBar {
  readonly space: "io" | "memory";
  /** Bytes: a power of two, at least 4 (I/O) or 16 (memory). */
  readonly size: number;
  readonly registers: Registers;
  /** Memory only: 64 bits, the next register is its high half. */
  readonly wide?: boolean;
  readonly prefetchable?: boolean;
}

/** A range of addresses a function answers at now. */
export interface PciRange {
  readonly space: "io" | "memory";
  readonly name: string;
  readonly base: number;
  readonly size: number;
  readonly registers: Registers;
}

/** What a function is: identification and base address registers. */
export interface PciFunctionOptions {
  /** Name in traces and, on its bus, in snapshots. */
  readonly name: string;
  readonly vendor: number;
  readonly device: number;
  readonly revision?: number;
  /** Base class, sub-class and programming interface: 0x010100 is an IDE controller. */
  readonly classCode: number;
  readonly subsystemVendor?: number;
  readonly subsystem?: number;
  readonly multifunction?: boolean;
  /** INTA# is 1. Without one the function has no INTx. */
  readonly interruptPin?: 1 | 2 | 3 | 4;
  /** By register number 0..5. */
  readonly bars?: Readonly<Record<number, PciBar>>;
  /** Expansion ROM; its size is rounded up to a power of two, at least 2 KiB. */
  readonly rom?: Uint8Array;
  /** Further initial values: bytes by offset. */
  readonly values?: readonly (readonly [offset: number, size: 1 | 2 | 4, value: number])[];
  /** Further bytes software may write, first to last; of each, the bits of `mask` (all of them without it). */
  readonly writable?: readonly (readonly [first: number, last: number, mask?: number])[];
  /** Vectors of an MSI capability. */
  readonly msi?: number;
  readonly msix?: MsixOptions;
  /** Software has written to [offset, offset + size). */
  readonly onConfigWrite?: (offset: number, size: number) => void;
  /** Software is about to read [offset, offset + size). */
  readonly onConfigRead?: (offset: number, size: number) => void;
  /** Ranges the function answers at besides its BARs, worked out anew after every configuration write. */
  readonly extraRanges?: () => readonly PciRange[];
}

/** Configuration space, INTx, and the MSI-X table. */
export interface PciFunctionState {
  readonly config: Uint8Array;
  /** The function asserts its INTx pin. */
  intx: boolean;
  readonly msix: { readonly table: Uint32Array; readonly pending: Uint32Array } | null;
}

/** What a bus gives the functions on it. */
export interface PciSlot {
  /** INTx levels or their gates may have changed. */
  interruptChanged(): void;
  /** Address decoding may have changed. */
  decodeChanged(): void;
  message(address: number, addressHigh: number, data: number): void;
}

const nowhere: PciSlot = { interruptChanged: () => {}, decodeChanged: () => {}, message: () => {} };

/** Bits of a BAR that say what it is (6.2.5.1). */
const BAR_IO = 1;
const BAR_WIDE = 4;
const BAR_PREFETCHABLE = 8;
const ROM_ENABLE = 1;
const MINIMUM_ROM = 2048;
const FIRST_CAPABILITY = 0x40;
const COMMAND_WRITABLE =
  PciCommand.IO | PciCommand.MEMORY | PciCommand.MASTER | PciCommand.SERR | PciCommand.INTX_DISABLE;

/** One function: configuration space, address decoding, interrupts. */
export class PciFunction implements Stateful<PciFunctionState> {
  readonly name: string;
  readonly msi: MsiCapability | null;
  readonly msix: MsixCapability | null;
  private current: PciFunctionState;
  private readonly initial = new Uint8Array(CONFIG_SPACE_SIZE);
  private readonly writable = new Uint8Array(CONFIG_SPACE_SIZE);
  private readonly bars: (PciBar | undefined)[] = new Array(BAR_COUNT).fill(undefined);
  private readonly rom: PciBar | null;
  private slot = nowhere;
  private lastCapability: number = PciReg.CAPABILITIES;
  private nextCapability = FIRST_CAPABILITY;

  constructor(private readonly options: PciFunctionOptions) {
    this.name = options.name;
    this.rom = options.rom ? romBar(options.rom) : null;
    this.writeHeader();
    for (const [first, last, mask = 0xff] of options.writable ?? []) this.writable.fill(mask, first, last + 1);
    const used = Math.max(0, ...(options.writable ?? []).map(([, last]) => last + 1), ...this.valueEnds());
    this.nextCapability = Math.max(FIRST_CAPABILITY, (used + 3) & ~3);
    this.current = { config: this.initial.slice(), intx: false, msix: null };
    this.msix = options.msix ? new MsixCapability(this, options.msix) : null;
    if (this.msix) {
      this.bars[this.msix.options.bar] = { space: "memory", size: MSIX_BAR_SIZE, registers: this.msix.registers };
    }
    this.msi = options.msi ? new MsiCapability(this, options.msi) : null;
    for (const [register, bar] of Object.entries(options.bars ?? {})) this.bars[Number(register)] = bar;
    this.writeBars();
    this.current = this.fresh();
  }

  private valueEnds(): number[] {
    return (this.options.values ?? []).map(([offset, size]) => offset + size);
  }

  private fresh(): PciFunctionState {
    const { msix } = this.options;
    return {
      config: this.initial.slice(),
      intx: false,
      msix: msix ? MsixCapability.initialTable(msix.vectors) : null,
    };
  }

  private writeHeader(): void {
    const { options: o, initial, writable } = this;
    const view = new DataView(initial.buffer);
    view.setUint16(PciReg.VENDOR_ID, o.vendor, true);
    view.setUint16(PciReg.DEVICE_ID, o.device, true);
    view.setUint32(PciReg.REVISION, ((o.classCode << 8) | (o.revision ?? 0)) >>> 0, true);
    view.setUint8(PciReg.HEADER_TYPE, o.multifunction ? HEADER_MULTIFUNCTION : 0);
    view.setUint16(PciReg.SUBSYSTEM_VENDOR_ID, o.subsystemVendor ?? 0, true);
    view.setUint16(PciReg.SUBSYSTEM_ID, o.subsystem ?? 0, true);
    view.setUint8(PciReg.INTERRUPT_PIN, o.interruptPin ?? 0);
    for (const [offset, size, value] of o.values ?? []) {
      for (let i = 0; i < size; i++) view.setUint8(offset + i, (value >>> (8 * i)) & 0xff);
    }
    const w = new DataView(writable.buffer);
    w.setUint16(PciReg.COMMAND, COMMAND_WRITABLE, true);
    w.setUint8(PciReg.CACHE_LINE_SIZE, 0xff);
    w.setUint8(PciReg.LATENCY_TIMER, 0xff);
    w.setUint8(PciReg.INTERRUPT_LINE, 0xff);
  }

  private writeBars(): void {
    const view = new DataView(this.initial.buffer);
    const w = new DataView(this.writable.buffer);
    this.bars.forEach((bar, i) => {
      if (!bar) return;
      const at = PciReg.BAR0 + 4 * i;
      if (bar.space === "io") {
        view.setUint32(at, BAR_IO, true);
        w.setUint32(at, (-bar.size & 0xfffffffc) >>> 0, true);
        return;
      }
      view.setUint32(at, (bar.wide ? BAR_WIDE : 0) | (bar.prefetchable ? BAR_PREFETCHABLE : 0), true);
      w.setUint32(at, bar.size > 0xffffffff ? 0 : (-bar.size & 0xfffffff0) >>> 0, true);
      if (bar.wide) w.setUint32(at + 4, 0xffffffff, true);
    });
    if (this.rom) w.setUint32(PciReg.ROM, ((-this.rom.size & 0xfffff800) | ROM_ENABLE) >>> 0, true);
  }

  /**
   * Adds a capability to the list; `body` starts with room for id and link. `writable` are the bits software may change.
   * @returns its offset
   */
  addCapability(id: number, body: Uint8Array, writable?: Uint8Array): number {
    const at = this.nextCapability;
    if (at + body.length > CONFIG_SPACE_SIZE) throw new RangeError(`${this.name}: no room for capability ${id}`);
    this.initial.set(body, at);
    this.initial[at] = id;
    this.initial[at + 1] = 0;
    this.initial[this.lastCapability === PciReg.CAPABILITIES ? PciReg.CAPABILITIES : this.lastCapability + 1] = at;
    this.initial[PciReg.STATUS] |= PciStatus.CAPABILITIES;
    if (writable) this.writable.set(writable, at);
    this.lastCapability = at;
    this.nextCapability = (at + body.length + 3) & ~3;
    // Capabilities are added while the device is being made, before anything has been written.
    if (this.current) this.current.config.set(this.initial);
    return at;
  }

  get state(): PciFunctionState {
    return this.current;
  }
  set state(state: PciFunctionState) {
    this.current = state;
    this.slot.decodeChanged();
  }

  /** The bus takes the function in. */
  attach(slot: PciSlot): void {
    this.slot = slot;
  }

  reset(): void {
    this.current = this.fresh();
    this.slot.decodeChanged();
    this.slot.interruptChanged();
  }

  // --- configuration space --------------------------------------------------------------------------------------------

  /** As software sees it. `offset` + `size` stay inside an aligned word of 4 bytes. */
  readConfig(offset: number, size: number): number {
    this.options.onConfigRead?.(offset, size);
    let value = this.peek(offset, size);
    if (this.state.intx && offset <= PciReg.STATUS && offset + size > PciReg.STATUS) {
      value |= PciStatus.INTERRUPT << ((PciReg.STATUS - offset) * 8);
    }
    return value >>> 0;
  }

  writeConfig(offset: number, size: number, value: number): void {
    const { config } = this.state;
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      // Error bits of the status register are cleared by writing ones.
      if (at === PciReg.STATUS + 1) config[at] &= ~(byte & (PciStatus.ERRORS >> 8));
      else config[at] = (config[at] & ~this.writable[at]) | (byte & this.writable[at]);
    }
    this.slot.decodeChanged();
    if (offset < PciReg.STATUS && offset + size > PciReg.COMMAND) this.slot.interruptChanged();
    this.msi?.written();
    this.msix?.written();
    this.options.onConfigWrite?.(offset, size);
  }

  /** Configuration bytes as a number, without side effects. */
  peek(offset: number, size: number): number {
    const { config } = this.state;
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = (value << 8) | config[offset + i];
    return value >>> 0;
  }

  /** Changes configuration bytes from the device's side, read-only ones too. */
  poke(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) this.state.config[offset + i] = (value >>> (8 * i)) & 0xff;
    this.slot.decodeChanged();
  }

  get command(): number {
    return this.peek(PciReg.COMMAND, 2);
  }

  /** The function may write to memory and send messages (command register, bus master). */
  get isMaster(): boolean {
    return (this.command & PciCommand.MASTER) !== 0;
  }

  // --- address decoding -----------------------------------------------------------------------------------------------

  /** The base address registers that are there, in order; for whoever hands out addresses. */
  get barList(): readonly { readonly register: number; readonly bar: PciBar }[] {
    return this.bars.flatMap((bar, register) => (bar ? [{ register, bar }] : []));
  }

  /** Writes a BAR as software would. */
  setBar(register: number, base: number): void {
    const at = PciReg.BAR0 + 4 * register;
    this.writeConfig(at, 4, base % 2 ** 32);
    if (this.bars[register]?.wide) this.writeConfig(at + 4, 4, Math.floor(base / 2 ** 32));
  }

  /** Where the function answers now. */
  ranges(): PciRange[] {
    const out: PciRange[] = [];
    const { command } = this;
    this.bars.forEach((bar, register) => {
      if (!bar || !(command & (bar.space === "io" ? PciCommand.IO : PciCommand.MEMORY))) return;
      const base = this.barBase(register, bar);
      if (base > 0) out.push({ space: bar.space, name: this.name, base, size: bar.size, registers: bar.registers });
    });
    if (this.rom && command & PciCommand.MEMORY) {
      const value = this.peek(PciReg.ROM, 4);
      const base = (value & -this.rom.size) >>> 0;
      if (value & ROM_ENABLE && base !== 0) {
        out.push({
          space: "memory",
          name: `${this.name} ROM`,
          base,
          size: this.rom.size,
          registers: this.rom.registers,
        });
      }
    }
    if (this.options.extraRanges) out.push(...this.options.extraRanges());
    return out;
  }

  /** Address in a BAR; 0 where it cannot be meant, as while its size is asked for with all ones. */
  private barBase(register: number, bar: PciBar): number {
    const at = PciReg.BAR0 + 4 * register;
    const low = this.peek(at, 4);
    if (bar.space === "io") {
      const base = low & 0xfffc;
      return low > 0xffff || base + bar.size > 0xffff ? 0 : base;
    }
    const high = bar.wide ? this.peek(at + 4, 4) : 0;
    const base = high * 2 ** 32 + ((low & 0xfffffff0) >>> 0);
    const last = base + bar.size - 1;
    if (!bar.wide && last >= 0xffffffff) return 0;
    return last > Number.MAX_SAFE_INTEGER ? 0 : base;
  }

  // --- interrupts -----------------------------------------------------------------------------------------------------

  /** INTA# is 1; 0 for none. */
  get interruptPin(): number {
    return this.options.interruptPin ?? 0;
  }

  /** The pin's level as the bus sees it: gated by the command register. */
  get intxAsserted(): boolean {
    return this.state.intx && !(this.command & PciCommand.INTX_DISABLE);
  }

  setIntx(level: boolean): void {
    if (this.state.intx === level) return;
    this.state.intx = level;
    this.slot.interruptChanged();
  }

  sendMessage(address: number, addressHigh: number, data: number): void {
    if (this.isMaster) this.slot.message(address >>> 0, addressHigh >>> 0, data >>> 0);
  }
}

function romBar(bytes: Uint8Array): PciBar {
  let size = MINIMUM_ROM;
  while (size < bytes.length) size *= 2;
  const read = (offset: number, width: 1 | 2 | 4): number => {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = (value << 8) | (bytes[offset + i] ?? 0xff);
    return value;
  };
  return { space: "memory", size, registers: { read, write: () => {} } };
}
