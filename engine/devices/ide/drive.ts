/**
 * What disks and CD-ROM drives on an IDE cable have in common (ATA/ATAPI-6): the command block registers, and the data
 * register with its transfers. Commands are done at once; an interrupt follows where the standard says so.
 */
import type { Stateful } from "../chip";

/** Status register (ATA/ATAPI-6 7.15). */
export const Status = { ERROR: 0x01, DRQ: 0x08, SEEK: 0x10, FAULT: 0x20, READY: 0x40, BUSY: 0x80 } as const;
/** Error register (ATA/ATAPI-6 7.9). */
export const ErrorBit = { ABORT: 0x04, ID_NOT_FOUND: 0x10 } as const;
/** Device register. */
export const DeviceBit = { SECOND: 0x10, LBA: 0x40 } as const;

/** Which way data go, as the processor sees it. */
export type Direction = "in" | "out";

/** Registers and the transfer that is under way. */
export interface IdeDriveState {
  /** Written last and, for 48-bit commands, before that: feature, count, LBA low, mid, high. */
  registers: Uint8Array;
  previous: Uint8Array;
  device: number;
  status: number;
  error: number;
  command: number;
  /** Bytes of the block on its way through the data register. */
  buffer: Uint8Array;
  position: number;
  /** Which way the block goes, from the host's view; null when there is none. */
  direction: Direction | null;
  /** First sector of what is still to do, and how many. */
  sector: number;
  left: number;
  /** Sectors of a block between interrupts. */
  block: number;
  /** The command's data goes by DMA and waits for the bus master. */
  dma: Direction | null;
  /** ATAPI: the packet's answer that has not gone out, sense key and code. */
  answer: Uint8Array;
  sense: readonly [key: number, code: number];
  /** SET MULTIPLE MODE: sectors in a block of READ/WRITE MULTIPLE. */
  multiple: number;
}

/** Register numbers as offsets of the command block (0x1f0). */
export const IdeReg = { DATA: 0, FEATURE: 1, COUNT: 2, LOW: 3, MID: 4, HIGH: 5, DEVICE: 6, COMMAND: 7 } as const;

const newState = (): IdeDriveState => ({
  registers: new Uint8Array(8),
  previous: new Uint8Array(8),
  device: 0,
  status: Status.READY | Status.SEEK,
  error: 1,
  command: 0,
  buffer: new Uint8Array(0),
  position: 0,
  direction: null,
  sector: 0,
  left: 0,
  block: 1,
  dma: null,
  answer: new Uint8Array(0),
  sense: [0, 0],
  multiple: 0,
});

/** What the channel gives a drive. */
export interface DriveOutside {
  interrupt(): void;
  /** The command's data is ready for the bus master. */
  dmaRequest(): void;
}

/** What disks and CD-ROM drives have in common: registers, data blocks, interrupts. */
export abstract class IdeDrive implements Stateful<IdeDriveState> {
  state: IdeDriveState = newState();
  outside: DriveOutside = { interrupt: () => {}, dmaRequest: () => {} };

  /** The signature by which software tells what kind of drive this is: LBA mid and high (ATA/ATAPI-6 9.12). */
  protected abstract readonly signature: readonly [mid: number, high: number];
  protected abstract execute(command: number): void;
  /** The block in the buffer has gone through completely. */
  protected abstract blockDone(): void;
  /** All of a DMA command's data to the host. */
  abstract dmaIn(): Uint8Array;
  /** Bytes a DMA command wants from the host, and taking them. */
  abstract get dmaOutLength(): number;
  abstract dmaOut(bytes: Uint8Array): void;

  /** Power-on, software reset, DEVICE RESET. */
  reset(): void {
    const { multiple } = this.state;
    this.state = { ...newState(), multiple };
    this.sign();
  }

  protected sign(): void {
    const r = this.state.registers;
    r[IdeReg.COUNT] = 1;
    r[IdeReg.LOW] = 1;
    [r[IdeReg.MID], r[IdeReg.HIGH]] = this.signature;
    this.state.device &= DeviceBit.SECOND;
  }

  write(register: number, value: number): void {
    const s = this.state;
    if (register === IdeReg.DEVICE) {
      s.device = value;
      return;
    }
    s.previous[register] = s.registers[register];
    s.registers[register] = value;
  }

  /** @param high show what was written before (HOB bit of the device control register) */
  read(register: number, high: boolean): number {
    const s = this.state;
    if (register === IdeReg.FEATURE) return s.error;
    if (register === IdeReg.DEVICE) return s.device | 0xa0;
    if (register === IdeReg.COMMAND) return s.status;
    return (high ? s.previous : s.registers)[register];
  }

  command(value: number): void {
    const s = this.state;
    s.command = value;
    s.error = 0;
    s.direction = null;
    s.dma = null;
    s.status = Status.READY | Status.SEEK;
    this.execute(value);
  }

  // --- data register --------------------------------------------------------------------------------------------------

  readData(size: 1 | 2 | 4): number {
    const s = this.state;
    if (s.direction !== "in") return 0xffffffff;
    let value = 0;
    for (let i = 0; i < size; i++) value |= (s.buffer[s.position + i] ?? 0) << (8 * i);
    this.advance(size);
    return value >>> 0;
  }

  writeData(size: 1 | 2 | 4, value: number): void {
    const s = this.state;
    if (s.direction !== "out") return;
    for (let i = 0; i < size; i++) s.buffer[s.position + i] = (value >>> (8 * i)) & 0xff;
    this.advance(size);
  }

  private advance(size: number): void {
    const s = this.state;
    s.position += size;
    if (s.position < s.buffer.length) return;
    s.direction = null;
    s.status &= ~Status.DRQ;
    this.blockDone();
  }

  /** Offers a block to the host. */
  protected offer(bytes: Uint8Array): void {
    const s = this.state;
    s.buffer = bytes;
    s.position = 0;
    s.direction = "in";
    s.status = Status.READY | Status.SEEK | Status.DRQ;
  }

  /** Asks the host for a block. */
  protected ask(length: number): void {
    const s = this.state;
    s.buffer = new Uint8Array(length);
    s.position = 0;
    s.direction = "out";
    s.status = Status.READY | Status.SEEK | Status.DRQ;
  }

  protected startDma(direction: Direction): void {
    const s = this.state;
    s.dma = direction;
    s.status = Status.READY | Status.SEEK | Status.DRQ;
    this.outside.dmaRequest();
  }

  /** The command is done. */
  protected finish(): void {
    const s = this.state;
    s.dma = null;
    s.status = Status.READY | Status.SEEK;
    this.outside.interrupt();
  }

  protected abort(error: number = ErrorBit.ABORT): void {
    const s = this.state;
    s.dma = null;
    s.direction = null;
    s.error = error;
    s.status = Status.READY | Status.ERROR;
    this.outside.interrupt();
  }
}

/** Text of IDENTIFY data: two characters a word, the first in the high byte. */
export function identifyText(into: DataView, word: number, length: number, text: string): void {
  for (let i = 0; i < length; i++) into.setUint8(word * 2 + (i ^ 1), i < text.length ? text.charCodeAt(i) : 0x20);
}
