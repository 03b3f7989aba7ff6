/** An ATA hard disk (ATA/ATAPI-6): 28- and 48-bit addresses and CHS, PIO, multiple-sector and DMA transfers. */
import { type BlockImage, SECTOR_SIZE } from "../block-image";
import { DeviceBit, ErrorBit, IdeDrive, IdeReg, identifyText } from "./drive";

const HEADS = 16;
const SECTORS = 63;
const MOST_CYLINDERS = 16383;
const MOST_MULTIPLE = 16;
const MOST_LBA28 = 0x0fffffff;

interface Transfer {
  readonly direction: "in" | "out";
  readonly how: "pio" | "multiple" | "dma";
  readonly wide: boolean;
}

// biome-ignore format: a command table
const TRANSFERS: Readonly<Record<number, Transfer>> = {
  32: { direction: "in", how: "pio", wide: false },
  33: { direction: "in", how: "pio", wide: false },
  36: { direction: "in", how: "pio", wide: true },
  37: { direction: "in", how: "dma", wide: true },
  41: { direction: "in", how: "multiple", wide: true },
  48: { direction: "out", how: "pio", wide: false },
  49: { direction: "out", how: "pio", wide: false },
  52: { direction: "out", how: "pio", wide: true },
  53: { direction: "out", how: "dma", wide: true },
  57: { direction: "out", how: "multiple", wide: true },
  196: { direction: "in", how: "multiple", wide: false },
  197: { direction: "out", how: "multiple", wide: false },
  200: { direction: "in", how: "dma", wide: false },
  201: { direction: "in", how: "dma", wide: false },
  202: { direction: "out", how: "dma", wide: false },
  203: { direction: "out", how: "dma", wide: false },
};

const Command = {
  RECALIBRATE: 0x10,
  VERIFY: 0x40,
  VERIFY_NO_RETRY: 0x41,
  VERIFY_EXT: 0x42,
  READ_NATIVE_MAX_EXT: 0x27,
  SEEK: 0x70,
  DIAGNOSTIC: 0x90,
  SET_PARAMETERS: 0x91,
  SET_MULTIPLE: 0xc6,
  STANDBY_NOW: 0xe0,
  IDLE_NOW: 0xe1,
  STANDBY: 0xe2,
  IDLE: 0xe3,
  CHECK_POWER: 0xe5,
  SLEEP: 0xe6,
  FLUSH: 0xe7,
  FLUSH_EXT: 0xea,
  IDENTIFY: 0xec,
  SET_FEATURES: 0xef,
  READ_NATIVE_MAX: 0xf8,
} as const;

/** An ATA disk: PIO and DMA, 28-bit and 48-bit addresses. */
export class AtaDisk extends IdeDrive {
  protected readonly signature = [0, 0] as const;

  constructor(
    private readonly image: BlockImage,
    private readonly serial: string,
  ) {
    super();
    this.sign();
  }

  private get cylinders(): number {
    return Math.min(MOST_CYLINDERS, Math.max(1, Math.floor(this.image.sectors / (HEADS * SECTORS))));
  }

  protected execute(command: number): void {
    const transfer = TRANSFERS[command];
    if (transfer) {
      this.transfer(transfer);
      return;
    }
    const s = this.state;
    const r = s.registers;
    if ((command & 0xf0) === Command.RECALIBRATE) {
      this.finish();
      return;
    }
    switch (command) {
      case Command.IDENTIFY:
        s.left = 0;
        s.block = 1;
        this.offer(this.identify());
        this.outside.interrupt();
        return;
      case Command.DIAGNOSTIC:
        this.sign();
        s.error = 1;
        this.finish();
        return;
      case Command.SET_MULTIPLE: {
        const n = r[IdeReg.COUNT];
        if (n > MOST_MULTIPLE || (n & (n - 1)) !== 0) this.abort();
        else {
          s.multiple = n;
          this.finish();
        }
        return;
      }
      case Command.CHECK_POWER:
        r[IdeReg.COUNT] = 0xff;
        this.finish();
        return;
      case Command.READ_NATIVE_MAX:
      case Command.READ_NATIVE_MAX_EXT:
        this.setAddress(this.image.sectors - 1, command === Command.READ_NATIVE_MAX_EXT);
        this.finish();
        return;
      case Command.VERIFY:
      case Command.VERIFY_NO_RETRY:
      case Command.VERIFY_EXT:
        if (this.takeAddress(command === Command.VERIFY_EXT)) this.finish();
        else this.abort(ErrorBit.ID_NOT_FOUND);
        return;
      case Command.SEEK:
      case Command.SET_PARAMETERS:
      case Command.STANDBY_NOW:
      case Command.IDLE_NOW:
      case Command.STANDBY:
      case Command.IDLE:
      case Command.SLEEP:
      case Command.FLUSH:
      case Command.FLUSH_EXT:
        this.finish();
        return;
      case Command.SET_FEATURES:
        // Transfer mode, write cache, look-ahead: all the same here.
        if ([0x02, 0x03, 0x55, 0x66, 0x82, 0xaa, 0xcc].includes(r[IdeReg.FEATURE])) this.finish();
        else this.abort();
        return;
      default:
        this.abort();
    }
  }

  /** Sector and count of the command from the registers. @returns false when they reach beyond the disk */
  private takeAddress(wide: boolean): boolean {
    const s = this.state;
    const { registers: r, previous: p } = s;
    if (wide) {
      s.sector =
        r[IdeReg.LOW] +
        r[IdeReg.MID] * 2 ** 8 +
        r[IdeReg.HIGH] * 2 ** 16 +
        p[IdeReg.LOW] * 2 ** 24 +
        p[IdeReg.MID] * 2 ** 32 +
        p[IdeReg.HIGH] * 2 ** 40;
      s.left = r[IdeReg.COUNT] | (p[IdeReg.COUNT] << 8) || 65536;
    } else {
      s.left = r[IdeReg.COUNT] || 256;
      const high = s.device & 0xf;
      const middle = r[IdeReg.MID] | (r[IdeReg.HIGH] << 8);
      if (s.device & DeviceBit.LBA) s.sector = r[IdeReg.LOW] | (middle << 8) | (high << 24);
      else s.sector = (middle * HEADS + high) * SECTORS + r[IdeReg.LOW] - 1;
    }
    return s.sector >= 0 && s.sector + s.left <= this.image.sectors;
  }

  /** Puts a sector's address into the registers, as commands leave it. */
  private setAddress(sector: number, wide: boolean): void {
    const s = this.state;
    const { registers: r, previous: p } = s;
    const at = wide ? sector : Math.min(sector, MOST_LBA28);
    r[IdeReg.LOW] = at & 0xff;
    r[IdeReg.MID] = (at >>> 8) & 0xff;
    r[IdeReg.HIGH] = (at >>> 16) & 0xff;
    if (wide) {
      p[IdeReg.LOW] = Math.floor(at / 2 ** 24) & 0xff;
      p[IdeReg.MID] = Math.floor(at / 2 ** 32) & 0xff;
      p[IdeReg.HIGH] = Math.floor(at / 2 ** 40) & 0xff;
    } else s.device = (s.device & 0xf0) | ((at >>> 24) & 0xf);
  }

  private transfer({ direction, how, wide }: Transfer): void {
    const s = this.state;
    if (how === "multiple" && s.multiple === 0) {
      this.abort();
      return;
    }
    if (!this.takeAddress(wide)) {
      this.abort(ErrorBit.ID_NOT_FOUND);
      return;
    }
    s.block = how === "multiple" ? s.multiple : 1;
    if (how === "dma") this.startDma(direction);
    else if (direction === "in") this.offerNext();
    else this.ask(Math.min(s.block, s.left) * SECTOR_SIZE);
  }

  /** The next block to the host, with its interrupt. */
  private offerNext(): void {
    const s = this.state;
    const n = Math.min(s.block, s.left);
    this.offer(this.image.read(s.sector * SECTOR_SIZE, n * SECTOR_SIZE));
    s.sector += n;
    s.left -= n;
    this.outside.interrupt();
  }

  protected blockDone(): void {
    const s = this.state;
    const transfer = TRANSFERS[s.command];
    if (transfer?.direction !== "out") {
      if (s.left > 0) this.offerNext();
      return;
    }
    this.image.write(s.sector * SECTOR_SIZE, s.buffer);
    s.sector += s.buffer.length / SECTOR_SIZE;
    s.left -= s.buffer.length / SECTOR_SIZE;
    if (s.left === 0) this.finish();
    else {
      this.ask(Math.min(s.block, s.left) * SECTOR_SIZE);
      this.outside.interrupt();
    }
  }

  dmaIn(): Uint8Array {
    const { sector, left } = this.state;
    const bytes = this.image.read(sector * SECTOR_SIZE, left * SECTOR_SIZE);
    this.finish();
    return bytes;
  }

  get dmaOutLength(): number {
    return this.state.left * SECTOR_SIZE;
  }

  dmaOut(bytes: Uint8Array): void {
    this.image.write(this.state.sector * SECTOR_SIZE, bytes);
    this.finish();
  }

  /** IDENTIFY DEVICE data (table 27). */
  private identify(): Uint8Array {
    const out = new Uint8Array(512);
    const view = new DataView(out.buffer);
    const word = (at: number, value: number): void => view.setUint16(at * 2, value & 0xffff, true);
    const double = (at: number, value: number): void => view.setUint32(at * 2, value >>> 0, true);
    const { sectors } = this.image;
    word(0, 0x0040);
    word(1, this.cylinders);
    word(3, HEADS);
    word(6, SECTORS);
    identifyText(view, 10, 20, this.serial);
    identifyText(view, 23, 8, "1.0");
    identifyText(view, 27, 40, "HYPERSTEP HARDDISK");
    word(47, 0x8000 | MOST_MULTIPLE);
    word(48, 1);
    // LBA, DMA, IORDY.
    word(49, 0x0b00);
    word(51, 0x0200);
    word(52, 0x0200);
    word(53, 0x0007);
    word(54, this.cylinders);
    word(55, HEADS);
    word(56, SECTORS);
    double(57, this.cylinders * HEADS * SECTORS);
    word(59, this.state.multiple ? 0x100 | this.state.multiple : 0);
    double(60, Math.min(sectors, MOST_LBA28));
    // Multiword DMA 0 to 2, PIO 3 and 4, cycle times.
    word(63, 0x0007);
    word(64, 0x0003);
    for (const at of [65, 66, 67, 68]) word(at, 120);
    word(80, 0x00f0);
    word(81, 0x0016);
    // NOP; 48-bit addresses, flush cache: supported, then enabled.
    word(82, 0x4000);
    word(83, 0x7400);
    word(84, 0x4000);
    word(85, 0x4000);
    word(86, 0x3400);
    word(87, 0x4000);
    // Ultra DMA 0 to 5, 5 selected; 80-conductor cable, device 0.
    word(88, 0x203f);
    word(93, 0x600b);
    view.setBigUint64(200, BigInt(sectors), true);
    return out;
  }
}
