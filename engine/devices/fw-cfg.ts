/**
 * QEMU's firmware configuration device: selector at port 0x510, data at 0x511, DMA address register at 0x514-0x51b
 * (QEMU docs/specs/fw_cfg). Items are constant for the life of a machine; only the read position is state.
 */
import type { Dma, Registers, Stateful } from "./chip";

/** Well-known keys. */
export const FwCfgKey = {
  SIGNATURE: 0x00,
  ID: 0x01,
  UUID: 0x02,
  RAM_SIZE: 0x03,
  NOGRAPHIC: 0x04,
  NB_CPUS: 0x05,
  KERNEL_SIZE: 0x08,
  KERNEL_CMDLINE: 0x09,
  INITRD_SIZE: 0x0b,
  BOOT_DEVICE: 0x0c,
  BOOT_MENU: 0x0e,
  MAX_CPUS: 0x0f,
  KERNEL_DATA: 0x11,
  INITRD_DATA: 0x12,
  CMDLINE_SIZE: 0x14,
  CMDLINE_DATA: 0x15,
  SETUP_SIZE: 0x17,
  SETUP_DATA: 0x18,
  FILE_DIR: 0x19,
  FILE_FIRST: 0x20,
  IRQ0_OVERRIDE: 0x8002,
  E820_TABLE: 0x8003,
} as const;

const ID_TRADITIONAL = 1;
const ID_DMA = 2;
/** Read from the DMA register: "QEMU CFG". */
const DMA_SIGNATURE = "QEMU CFG";
const Control = { ERROR: 1, READ: 2, SKIP: 4, SELECT: 8, WRITE: 16 } as const;
const FILE_NAME_SIZE = 56;

/** Selected item and read position. */
export interface FwCfgState {
  selector: number;
  offset: number;
  /** High half of the DMA address, written first. */
  dmaHigh: number;
}

const text = (s: string): Uint8Array => Uint8Array.from(s, (c) => c.charCodeAt(0));

/** A number's bytes, least significant first. */
export function littleEndian(value: number, size: 2 | 4 | 8): Uint8Array {
  const out = new Uint8Array(size);
  let rest = value;
  for (let i = 0; i < size; i++) {
    out[i] = rest % 256;
    rest = Math.floor(rest / 256);
  }
  return out;
}

/** Selector, data and DMA registers in front of the items. */
export class FwCfg implements Stateful<FwCfgState> {
  state: FwCfgState = { selector: 0, offset: 0, dmaHigh: 0 };

  /** Ports 0x510-0x511. */
  readonly ports: Registers;
  /** Ports 0x514-0x51b. */
  readonly dmaPorts: Registers;

  private readonly items = new Map<number, Uint8Array>();
  private readonly files: { name: string; key: number }[] = [];

  constructor(private readonly memory: Dma) {
    this.items.set(FwCfgKey.SIGNATURE, text("QEMU"));
    this.items.set(FwCfgKey.ID, littleEndian(ID_TRADITIONAL | ID_DMA, 4));
    this.writeDirectory();
    this.ports = {
      // The selector cannot be read back.
      read: (offset) => (offset === 0 ? 0 : this.next()),
      write: (offset, _size, value) => {
        if (offset === 0) this.select(value & 0xffff);
      },
    };
    this.dmaPorts = {
      read: (offset, size) => {
        let value = 0;
        // The register is big-endian, so the signature reads in text order.
        for (let i = size - 1; i >= 0; i--) value = (value << 8) | DMA_SIGNATURE.charCodeAt(offset + i);
        return value >>> 0;
      },
      write: (offset, size, value) => {
        if (size !== 4) return;
        if (offset === 0) this.state.dmaHigh = byteSwap(value);
        else if (offset === 4) this.transfer(this.state.dmaHigh * 2 ** 32 + byteSwap(value));
      },
    };
  }

  reset(): void {
    this.state = { selector: 0, offset: 0, dmaHigh: 0 };
  }

  addItem(key: number, bytes: Uint8Array): void {
    this.items.set(key, bytes);
  }

  /** A named file; keys are given in the order of adding. */
  addFile(name: string, bytes: Uint8Array): void {
    const key = FwCfgKey.FILE_FIRST + this.files.length;
    this.files.push({ name, key });
    this.items.set(key, bytes);
    this.writeDirectory();
  }

  /** Big-endian count, then 64 bytes a file: size, key, reserved, name. */
  private writeDirectory(): void {
    const out = new Uint8Array(4 + 64 * this.files.length);
    const view = new DataView(out.buffer);
    view.setUint32(0, this.files.length);
    this.files.forEach((file, i) => {
      const at = 4 + 64 * i;
      view.setUint32(at, this.items.get(file.key)?.length ?? 0);
      view.setUint16(at + 4, file.key);
      out.set(text(file.name).subarray(0, FILE_NAME_SIZE - 1), at + 8);
    });
    this.items.set(FwCfgKey.FILE_DIR, out);
  }

  private select(key: number): void {
    this.state.selector = key;
    this.state.offset = 0;
  }

  /** One byte of the selected item; zero behind its end or where there is none. */
  private next(): number {
    const item = this.items.get(this.state.selector);
    const at = this.state.offset;
    if (!item || at >= item.length) return 0;
    this.state.offset = at + 1;
    return item[at];
  }

  /** Executes the FWCfgDmaAccess structure at `address`: control, length, address, all big-endian. */
  private transfer(address: number): void {
    const bytes = this.memory.read(address, 16);
    if (bytes.length < 16) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
    const control = view.getUint32(0);
    const length = view.getUint32(4);
    const target = Number(view.getBigUint64(8));
    if (control & Control.SELECT) this.select(control >>> 16);
    let result = 0;
    if (control & Control.READ) {
      if (!this.copyOut(target, length)) result = Control.ERROR;
    } else if (control & Control.WRITE) {
      // No item is writable.
      result = Control.ERROR;
    } else if (control & Control.SKIP) {
      this.state.offset = Math.min(this.selectedLength, this.state.offset + length);
    }
    const answer = new Uint8Array(4);
    new DataView(answer.buffer).setUint32(0, result);
    this.memory.write(address, answer);
  }

  private get selectedLength(): number {
    return this.items.get(this.state.selector)?.length ?? 0;
  }

  /** Copies `length` bytes of the item to memory, zeroes behind its end. @returns false when memory ends before */
  private copyOut(target: number, length: number): boolean {
    const CHUNK = 65536;
    let done = 0;
    while (done < length) {
      const n = Math.min(CHUNK, length - done);
      // Asking for what is there first keeps a lying length from running on for gigabytes of nothing.
      if (this.memory.read(target + done, 1).length === 0) return false;
      const chunk = new Uint8Array(n);
      for (let i = 0; i < n; i++) chunk[i] = this.next();
      this.memory.write(target + done, chunk);
      done += n;
    }
    return true;
  }
}

const byteSwap = (v: number): number =>
  (((v & 0xff) << 24) | ((v & 0xff00) << 8) | ((v >>> 8) & 0xff00) | (v >>> 24)) >>> 0;
