/**
 * One IDE channel (ATA/ATAPI-6 clause 9): command and control block registers in front of up to two drives, the interrupt
 * line, and the PIIX3's bus master for it (82371SB data sheet 2.7, SFF-8038i).
 */
import type { Dma, Line, Registers, Stateful } from "../chip";
import { DeviceBit, type IdeDrive, type IdeDriveState, IdeReg } from "./drive";

const Control = { NO_INTERRUPT: 2, RESET: 4, HIGH: 0x80 } as const;
const BusMaster = { START: 1, TO_MEMORY: 8 } as const;
const BusMasterStatus = { ACTIVE: 1, ERROR: 2, INTERRUPT: 4, CAPABLE: 0x60 } as const;
const END_OF_TABLE = 0x80000000;
/** Descriptors of a table that is no table. */
const MOST_DESCRIPTORS = 8192;

/** Registers of the channel and of its bus master. */
export interface IdeChannelState {
  /** Number of the selected drive. */
  selected: number;
  control: number;
  interrupt: boolean;
  drives: (IdeDriveState | null)[];
  busMaster: { command: number; status: number; table: number };
}

/** One channel with up to two drives. */
export class IdeChannel implements Stateful<IdeChannelState> {
  private own: Omit<IdeChannelState, "drives"> = IdeChannel.fresh();
  /** Command block, 8 ports. */
  readonly commandBlock: Registers;
  /** Device control and alternate status, 1 port. */
  readonly controlBlock: Registers;
  /** Command, status and descriptor table of the bus master, 8 ports. */
  readonly busMaster: Registers;

  /** @param drives master and slave */
  constructor(
    private readonly drives: readonly (IdeDrive | null)[],
    private readonly irq: Line,
    private readonly memory: Dma,
  ) {
    drives.forEach((drive, i) => {
      if (!drive) return;
      drive.outside = { interrupt: () => this.interrupt(i), dmaRequest: () => this.transfer() };
    });
    this.commandBlock = {
      read: (offset, size) => this.read(offset, size),
      write: (offset, size, value) => this.write(offset, size, value),
    };
    this.controlBlock = {
      read: () => this.drive?.read(IdeReg.COMMAND, false) ?? 0,
      write: (_offset, _size, value) => this.writeControl(value),
    };
    this.busMaster = {
      read: (offset, size) => this.readBusMaster(offset, size),
      write: (offset, size, value) => this.writeBusMaster(offset, size, value),
    };
  }

  private static fresh(): Omit<IdeChannelState, "drives"> {
    return { selected: 0, control: 0, interrupt: false, busMaster: { command: 0, status: 0, table: 0 } };
  }

  get state(): IdeChannelState {
    return { ...this.own, drives: this.drives.map((d) => d?.state ?? null) };
  }
  set state(state: IdeChannelState) {
    const { drives, ...own } = state;
    this.own = own;
    this.drives.forEach((drive, i) => {
      const saved = drives[i];
      if (drive && saved) drive.state = saved;
    });
  }

  private get drive(): IdeDrive | null {
    return this.drives[this.own.selected] ?? null;
  }

  private interrupt(of: number): void {
    if (of !== this.own.selected) return;
    this.own.interrupt = true;
    this.own.busMaster.status |= BusMasterStatus.INTERRUPT;
    this.update();
  }

  private update(): void {
    this.irq.set(this.own.interrupt && !(this.own.control & Control.NO_INTERRUPT));
  }

  private read(register: number, size: 1 | 2 | 4): number {
    const { drive } = this;
    if (register === IdeReg.DATA) return drive?.readData(size) ?? 0xffffffff;
    if (!drive) return 0;
    if (register === IdeReg.COMMAND) {
      this.own.interrupt = false;
      this.update();
    }
    return drive.read(register, (this.own.control & Control.HIGH) !== 0);
  }

  private write(register: number, size: 1 | 2 | 4, value: number): void {
    if (register === IdeReg.DATA) {
      this.drive?.writeData(size, value);
      return;
    }
    // Writing any register shows the latest contents again.
    this.own.control &= ~Control.HIGH;
    if (register === IdeReg.COMMAND) {
      this.own.interrupt = false;
      this.update();
      // EXECUTE DEVICE DIAGNOSTIC is for both drives, the first one answers.
      if (value === 0x90) this.own.selected = 0;
      this.drive?.command(value);
      return;
    }
    if (register === IdeReg.DEVICE) this.own.selected = value & DeviceBit.SECOND ? 1 : 0;
    for (const drive of this.drives) drive?.write(register, value);
  }

  private writeControl(value: number): void {
    const was = this.own.control;
    this.own.control = value;
    if (!(was & Control.RESET) && value & Control.RESET) {
      for (const drive of this.drives) drive?.reset();
      this.own.selected = 0;
      this.own.interrupt = false;
    }
    this.update();
  }

  // --- bus master -----------------------------------------------------------------------------------------------------

  private readBusMaster(offset: number, size: number): number {
    const { command, status, table } = this.own.busMaster;
    let value = 0;
    for (let i = size - 1; i >= 0; i--) {
      const at = offset + i;
      const byte = at === 0 ? command : at === 2 ? status : at >= 4 ? (table >>> (8 * (at - 4))) & 0xff : 0;
      value = (value << 8) | byte;
    }
    return value >>> 0;
  }

  private writeBusMaster(offset: number, size: number, value: number): void {
    const b = this.own.busMaster;
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      if (at === 0) {
        const was = b.command;
        b.command = byte & (BusMaster.START | BusMaster.TO_MEMORY);
        if (!(byte & BusMaster.START)) b.status &= ~BusMasterStatus.ACTIVE;
        else if (!(was & BusMaster.START)) {
          b.status |= BusMasterStatus.ACTIVE;
          this.transfer();
        }
      } else if (at === 2) {
        b.status =
          (byte & BusMasterStatus.CAPABLE) |
          (b.status & BusMasterStatus.ACTIVE) |
          (b.status & ~byte & (BusMasterStatus.ERROR | BusMasterStatus.INTERRUPT));
      } else if (at >= 4) {
        const shift = 8 * (at - 4);
        b.table = ((b.table & ~(0xff << shift)) | (byte << shift)) >>> 0;
      }
    }
  }

  /** Moves a DMA command's data when both sides are ready. */
  private transfer(): void {
    const b = this.own.busMaster;
    const { drive } = this;
    const direction = drive?.state.dma;
    if (!drive || !direction || !(b.status & BusMasterStatus.ACTIVE)) return;
    if (direction === "in") {
      const bytes = drive.dmaIn();
      let done = 0;
      for (const { address, length } of this.descriptors()) {
        if (done >= bytes.length) break;
        this.memory.write(address, bytes.subarray(done, done + length));
        done += length;
      }
      if (done < bytes.length) b.status |= BusMasterStatus.ERROR;
    } else {
      const bytes = new Uint8Array(drive.dmaOutLength);
      let done = 0;
      for (const { address, length } of this.descriptors()) {
        if (done >= bytes.length) break;
        bytes.set(this.memory.read(address, Math.min(length, bytes.length - done)), done);
        done += length;
      }
      drive.dmaOut(bytes);
    }
    b.status &= ~BusMasterStatus.ACTIVE;
  }

  /** The physical region descriptors: address, byte count (0 is 64 KiB), last one marked. */
  private *descriptors(): Generator<{ address: number; length: number }> {
    for (let i = 0; i < MOST_DESCRIPTORS; i++) {
      const bytes = this.memory.read(((this.own.busMaster.table & ~3) >>> 0) + 8 * i, 8);
      if (bytes.length < 8) return;
      const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
      const count = view.getUint32(4, true);
      yield { address: (view.getUint32(0, true) & ~1) >>> 0, length: count & 0xfffe || 0x10000 };
      if (count & END_OF_TABLE) return;
    }
  }
}
