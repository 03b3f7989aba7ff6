/**
 * An ATAPI CD-ROM drive with a data disc in it (ATA/ATAPI-6 packet feature set; SFF-8020i / MMC-3 commands): blocks of 2048
 * bytes, PIO and DMA.
 */
import type { BlockImage } from "../block-image";
import { ErrorBit, IdeDrive, IdeReg, identifyText } from "./drive";

const BLOCK = 2048;
const PACKET_SIZE = 12;
const Command = {
  DEVICE_RESET: 0x08,
  DIAGNOSTIC: 0x90,
  PACKET: 0xa0,
  IDENTIFY_PACKET: 0xa1,
  STANDBY_NOW: 0xe0,
  IDLE_NOW: 0xe1,
  CHECK_POWER: 0xe5,
  SLEEP: 0xe6,
  IDENTIFY: 0xec,
  SET_FEATURES: 0xef,
} as const;
/** Interrupt reason, in the count register: command or data, to the host. */
const Reason = { COMMAND: 1, TO_HOST: 2 } as const;
const Sense = { NONE: [0, 0], ILLEGAL_COMMAND: [5, 0x20], OUT_OF_RANGE: [5, 0x21], BAD_FIELD: [5, 0x24] } as const;

const Packet = {
  TEST_UNIT_READY: 0x00,
  REQUEST_SENSE: 0x03,
  INQUIRY: 0x12,
  START_STOP: 0x1b,
  PREVENT_REMOVAL: 0x1e,
  READ_CAPACITY: 0x25,
  READ_10: 0x28,
  SEEK_10: 0x2b,
  READ_TOC: 0x43,
  GET_CONFIGURATION: 0x46,
  GET_EVENT_STATUS: 0x4a,
  READ_DISC_INFORMATION: 0x51,
  MODE_SENSE_10: 0x5a,
  READ_12: 0xa8,
  MECHANISM_STATUS: 0xbd,
  READ_CD: 0xbe,
} as const;

const bigEndian = (value: number, size: number): number[] =>
  Array.from({ length: size }, (_, i) => Math.floor(value / 2 ** (8 * (size - 1 - i))) & 0xff);

/** A CD-ROM drive with a disc in it: packet commands, PIO and DMA. */
export class AtapiCdrom extends IdeDrive {
  protected readonly signature = [0x14, 0xeb] as const;

  constructor(
    private readonly image: BlockImage,
    private readonly serial: string,
  ) {
    super();
    this.sign();
    this.state.status = 0;
  }

  override reset(): void {
    super.reset();
    // A packet device is not ready before its first command (9.12).
    this.state.status = 0;
  }

  private get blocks(): number {
    return Math.ceil(this.image.size / BLOCK);
  }

  protected execute(command: number): void {
    const r = this.state.registers;
    switch (command) {
      case Command.PACKET:
        this.ask(PACKET_SIZE);
        r[IdeReg.COUNT] = Reason.COMMAND;
        return;
      case Command.IDENTIFY_PACKET:
        this.state.answer = new Uint8Array(0);
        this.offer(this.identify());
        this.outside.interrupt();
        return;
      case Command.IDENTIFY:
        // "This is no ATA device": aborted, with the signature (8.12.5.2).
        this.sign();
        this.abort();
        return;
      case Command.DEVICE_RESET:
        this.reset();
        return;
      case Command.DIAGNOSTIC:
        this.sign();
        this.state.error = 1;
        this.state.status = 0;
        this.outside.interrupt();
        return;
      case Command.CHECK_POWER:
        r[IdeReg.COUNT] = 0xff;
        this.finish();
        return;
      case Command.SET_FEATURES:
      case Command.STANDBY_NOW:
      case Command.IDLE_NOW:
      case Command.SLEEP:
        this.finish();
        return;
      default:
        this.abort();
    }
  }

  protected blockDone(): void {
    const s = this.state;
    if (s.command !== Command.PACKET) return;
    if (s.registers[IdeReg.COUNT] === Reason.COMMAND) this.packet(s.buffer.slice());
    else if (s.answer.length > 0) this.offerPart();
    else this.done();
  }

  /** The command ended well: status phase. */
  private done(): void {
    this.state.registers[IdeReg.COUNT] = Reason.COMMAND | Reason.TO_HOST;
    this.finish();
  }

  private fail(sense: readonly [number, number]): void {
    const s = this.state;
    s.sense = sense;
    s.registers[IdeReg.COUNT] = Reason.COMMAND | Reason.TO_HOST;
    this.abort((sense[0] << 4) | ErrorBit.ABORT);
  }

  /** Sends an answer in parts as long as the host allows (byte count in LBA mid and high). */
  private reply(bytes: ArrayLike<number>, allocated = bytes.length): void {
    const s = this.state;
    s.answer = Uint8Array.from(bytes).subarray(0, allocated).slice();
    if (s.answer.length === 0) this.done();
    else if (s.registers[IdeReg.FEATURE] & 1) {
      s.registers[IdeReg.COUNT] = Reason.TO_HOST;
      this.startDma("in");
    } else this.offerPart();
  }

  private offerPart(): void {
    const s = this.state;
    const r = s.registers;
    let limit = r[IdeReg.MID] | (r[IdeReg.HIGH] << 8);
    if (limit === 0 || limit === 0xffff) limit = 0xfffe;
    const n = Math.min(s.answer.length, limit);
    const part = s.answer.slice(0, n);
    s.answer = s.answer.slice(n);
    r[IdeReg.MID] = n & 0xff;
    r[IdeReg.HIGH] = n >> 8;
    r[IdeReg.COUNT] = Reason.TO_HOST;
    this.offer(part);
    this.outside.interrupt();
  }

  dmaIn(): Uint8Array {
    const bytes = this.state.answer;
    this.state.answer = new Uint8Array(0);
    this.done();
    return bytes;
  }

  get dmaOutLength(): number {
    return 0;
  }

  dmaOut(): void {
    this.done();
  }

  private packet(p: Uint8Array): void {
    const s = this.state;
    const view = new DataView(p.buffer);
    if (p[0] !== Packet.REQUEST_SENSE) s.sense = Sense.NONE;
    switch (p[0]) {
      case Packet.TEST_UNIT_READY:
      case Packet.START_STOP:
      case Packet.PREVENT_REMOVAL:
      case Packet.SEEK_10:
        this.done();
        return;
      case Packet.REQUEST_SENSE: {
        const [key, code] = s.sense;
        s.sense = Sense.NONE;
        this.reply([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, 0, 0, 0, 0, 0], p[4]);
        return;
      }
      case Packet.INQUIRY:
        this.reply(this.inquiry(), p[4]);
        return;
      case Packet.READ_CAPACITY:
        this.reply([...bigEndian(this.blocks - 1, 4), ...bigEndian(BLOCK, 4)]);
        return;
      case Packet.READ_10:
        this.readBlocks(view.getUint32(2), view.getUint16(7));
        return;
      case Packet.READ_12:
        this.readBlocks(view.getUint32(2), view.getUint32(6));
        return;
      case Packet.READ_CD:
        // User data of a mode 1 sector is all that can be asked for.
        if ((p[9] & 0xf8) === 0x10) this.readBlocks(view.getUint32(2), view.getUint32(5) & 0xffffff);
        else if ((p[9] & 0xf8) === 0) this.done();
        else this.fail(Sense.BAD_FIELD);
        return;
      case Packet.READ_TOC:
        this.toc(p, view.getUint16(7));
        return;
      case Packet.GET_CONFIGURATION:
        this.reply(this.configuration(), view.getUint16(7));
        return;
      case Packet.GET_EVENT_STATUS:
        // Polled only; of media events: nothing happened, a medium is there.
        if (!(p[1] & 1)) this.fail(Sense.BAD_FIELD);
        else if (p[4] & 0x10) this.reply([0, 6, 4, 0x10, 0, 2, 0, 0], view.getUint16(7));
        else this.reply([0, 2, 0x80, 0x10], view.getUint16(7));
        return;
      case Packet.READ_DISC_INFORMATION:
        this.reply([0, 32, 0x0e, 1, 1, 1, 1, 0x20, ...new Array(26).fill(0)], view.getUint16(7));
        return;
      case Packet.MODE_SENSE_10:
        this.modeSense(p[2] & 0x3f, view.getUint16(7));
        return;
      case Packet.MECHANISM_STATUS:
        this.reply([0, 0, 0, 0, 0, 1, 0, 0], view.getUint16(8));
        return;
      default:
        this.fail(Sense.ILLEGAL_COMMAND);
    }
  }

  private readBlocks(first: number, count: number): void {
    if (first + count > this.blocks) this.fail(Sense.OUT_OF_RANGE);
    else this.reply(this.image.read(first * BLOCK, count * BLOCK));
  }

  private inquiry(): number[] {
    const text = (s: string, n: number): number[] => Array.from(s.padEnd(n).slice(0, n), (c) => c.charCodeAt(0));
    // CD-ROM, removable, SPC-3.
    return [5, 0x80, 5, 0x21, 31, 0, 0, 0, ...text("HYPERSTP", 8), ...text("DVD-ROM", 16), ...text("1.0", 4)];
  }

  /** One data track, and the lead-out behind it (MMC-3 6.30). */
  private toc(p: Uint8Array, allocated: number): void {
    const msf = (p[1] & 2) !== 0;
    const address = (block: number): number[] => {
      if (!msf) return bigEndian(block, 4);
      const frame = block + 150;
      return [0, Math.floor(frame / 75 / 60), Math.floor(frame / 75) % 60, frame % 75];
    };
    const format = p[2] & 0xf || p[9] >> 6;
    const track = [0, 0x14, 1, 0, ...address(0)];
    const leadOut = [0, 0x16, 0xaa, 0, ...address(this.blocks)];
    if (format === 0) {
      const entries = p[6] === 0xaa ? leadOut : p[6] <= 1 ? [...track, ...leadOut] : null;
      if (entries) this.reply([...bigEndian(entries.length + 2, 2), 1, 1, ...entries], allocated);
      else this.fail(Sense.BAD_FIELD);
    } else if (format === 1) this.reply([0, 10, 1, 1, ...track], allocated);
    else this.fail(Sense.BAD_FIELD);
  }

  /** Features: profile list with the current profile CD-ROM, core, removable medium (MMC-3 5.3). */
  private configuration(): number[] {
    const profiles = [0, 0, 3, 8, 0, 0x10, 0, 0, 0, 0x08, 1, 0];
    const core = [0, 1, 0x0b, 8, 0, 0, 0, 2, 1, 0, 0, 0];
    const removable = [0, 3, 0x0b, 4, 0x39, 0, 0, 0];
    const body = [...profiles, ...core, ...removable];
    return [...bigEndian(body.length + 4, 4), 0, 0, 0, 0x08, ...body];
  }

  private modeSense(page: number, allocated: number): void {
    const header = (length: number): number[] => [...bigEndian(length + 6, 2), 0x70, 0, 0, 0, 0, 0];
    if (page === 0x01) this.reply([...header(8), 1, 6, 0, 5, 0, 0, 0, 0], allocated);
    else if (page === 0x2a) {
      const capabilities = [0x2a, 18, 0, 0, 0x71, 0x60, 0x29, 0, ...bigEndian(706, 2), 0, 2, ...bigEndian(512, 2)];
      this.reply([...header(20), ...capabilities, ...bigEndian(706, 2), 0, 0, 0, 0], allocated);
    } else this.fail(Sense.BAD_FIELD);
  }

  /** IDENTIFY PACKET DEVICE data (table 28). */
  private identify(): Uint8Array {
    const out = new Uint8Array(512);
    const view = new DataView(out.buffer);
    const word = (at: number, value: number): void => view.setUint16(at * 2, value, true);
    // Packet device, CD-ROM, removable, DRQ at once, 12-byte packets.
    word(0, 0x85c0);
    identifyText(view, 10, 20, this.serial);
    identifyText(view, 23, 8, "1.0");
    identifyText(view, 27, 40, "HYPERSTEP DVD-ROM");
    word(48, 1);
    word(49, 0x0b00);
    word(53, 0x0007);
    word(62, 7);
    word(63, 7);
    word(64, 3);
    for (const at of [65, 66, 67, 68]) word(at, 0xb4);
    word(71, 30);
    word(72, 30);
    word(80, 0x001e);
    word(88, 0x203f);
    return out;
  }
}
