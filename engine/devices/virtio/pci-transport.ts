/**
 * Virtio over PCI (Virtio 1.2 section 4.1), transitional: the structures of version 1 in BAR 4, found through vendor
 * capabilities, and the register block of the versions before (4.1.4.10) in BAR 0. Interrupts by MSI-X or INTA#.
 */
import type { Registers, Stateful } from "../chip";
import { PciCapability } from "../pci/config-space";
import { PciFunction } from "../pci/function";
import type { VirtioDevice } from "./device";
import { NO_VECTOR, type Virtqueue } from "./queue";

const VENDOR = 0x1af4;
/** PCI device IDs of transitional devices by device type (table of 4.1.2.1). */
const TRANSITIONAL_IDS: Readonly<Record<number, number>> = { 2: 0x1001, 3: 0x1003, 4: 0x1005 };
const CLASS_CODES: Readonly<Record<number, number>> = { 2: 0x010000, 3: 0x078000, 4: 0x00ff00 };

const LEGACY_BAR_SIZE = 128;
const MODERN_BAR = 4;
const MSIX_BAR = 1;
/** The structures in BAR 4, a page each. */
const Place = { COMMON: 0, ISR: 0x1000, DEVICE: 0x2000, NOTIFY: 0x3000, SIZE: 0x4000 } as const;
const PAGE = 0x1000;
/** cfg_type of the vendor capabilities (4.1.4). */
const CfgType = { COMMON: 1, NOTIFY: 2, ISR: 3, DEVICE: 4, PCI: 5 } as const;
const NOTIFY_MULTIPLIER = 4;

/** Common configuration structure (4.1.4.3). */
const Common = {
  DEVICE_FEATURE_SELECT: 0,
  DEVICE_FEATURE: 4,
  DRIVER_FEATURE_SELECT: 8,
  DRIVER_FEATURE: 12,
  CONFIG_VECTOR: 16,
  NUM_QUEUES: 18,
  DEVICE_STATUS: 20,
  CONFIG_GENERATION: 21,
  QUEUE_SELECT: 22,
  QUEUE_SIZE: 24,
  QUEUE_VECTOR: 26,
  QUEUE_ENABLE: 28,
  QUEUE_NOTIFY_OFF: 30,
  QUEUE_DESC: 32,
  QUEUE_DRIVER: 40,
  QUEUE_DEVICE: 48,
  SIZE: 56,
} as const;

/** Legacy registers (4.1.4.10). */
const Legacy = {
  DEVICE_FEATURES: 0,
  DRIVER_FEATURES: 4,
  QUEUE_ADDRESS: 8,
  QUEUE_SIZE: 12,
  QUEUE_SELECT: 14,
  QUEUE_NOTIFY: 16,
  STATUS: 18,
  ISR: 19,
  CONFIG_VECTOR: 20,
  QUEUE_VECTOR: 22,
} as const;
const LEGACY_ALIGN = 4096;

const IsrBit = { QUEUE: 1, CONFIG: 2 } as const;

/** Registers of the transport. */
export interface VirtioPciState {
  deviceFeatureSelect: number;
  driverFeatureSelect: number;
  queueSelect: number;
  configVector: number;
  isr: number;
}

const initial = (): VirtioPciState => ({
  deviceFeatureSelect: 0,
  driverFeatureSelect: 0,
  queueSelect: 0,
  configVector: NO_VECTOR,
  isr: 0,
});

const lowMask = (size: 1 | 2 | 4): number => (size === 4 ? 0xffffffff : 2 ** (8 * size) - 1);

/** A virtio device as a PCI function. */
export class VirtioPci implements Stateful<VirtioPciState> {
  state: VirtioPciState = initial();
  readonly function: PciFunction;
  /** The capability by which configuration accesses reach BAR 4 (4.1.4.9). */
  private readonly window: number;
  private readonly modern: Registers;
  private readonly legacy: Registers;

  constructor(
    name: string,
    private readonly device: VirtioDevice,
  ) {
    const { type, queues } = device;
    this.modern = {
      read: (offset, size) => (this.readModern(offset, size) & lowMask(size)) >>> 0,
      write: (offset, size, value) => this.writeModern(offset, size, value),
    };
    this.legacy = {
      read: (offset, size) => (this.readLegacy(offset, size) & lowMask(size)) >>> 0,
      write: (offset, size, value) => this.writeLegacy(offset, size, value),
    };
    this.function = new PciFunction({
      name,
      vendor: VENDOR,
      device: TRANSITIONAL_IDS[type],
      classCode: CLASS_CODES[type],
      subsystemVendor: VENDOR,
      subsystem: type,
      interruptPin: 1,
      bars: {
        0: { space: "io", size: LEGACY_BAR_SIZE, registers: this.legacy },
        [MODERN_BAR]: {
          ...{ space: "memory", size: Place.SIZE, registers: this.modern },
          ...{ wide: true, prefetchable: true },
        },
      },
      msix: { vectors: queues.length + 1, bar: MSIX_BAR },
      onConfigWrite: (offset, size) => this.configWritten(offset, size),
      onConfigRead: (offset, size) => this.configRead(offset, size),
    });
    this.capability(CfgType.COMMON, Place.COMMON, Common.SIZE);
    this.capability(CfgType.ISR, Place.ISR, PAGE);
    this.capability(CfgType.DEVICE, Place.DEVICE, PAGE);
    this.capability(CfgType.NOTIFY, Place.NOTIFY, PAGE, NOTIFY_MULTIPLIER);
    this.window = this.capability(CfgType.PCI, 0, 0, 0);
    device.attach({
      queueInterrupt: (vector) => this.interrupt(vector, IsrBit.QUEUE),
      configInterrupt: () => this.interrupt(this.state.configVector, IsrBit.CONFIG),
    });
  }

  /** struct virtio_pci_cap, with one more word for those that have one. @returns its offset */
  private capability(type: number, offset: number, length: number, more?: number): number {
    const size = more === undefined ? 16 : 20;
    const body = new Uint8Array(size);
    const view = new DataView(body.buffer);
    view.setUint8(2, size);
    view.setUint8(3, type);
    view.setUint8(4, type === CfgType.PCI ? 0 : MODERN_BAR);
    view.setUint32(8, offset, true);
    view.setUint32(12, length, true);
    if (more !== undefined) view.setUint32(16, more, true);
    const writable = new Uint8Array(size);
    if (type === CfgType.PCI) writable.fill(0xff, 4);
    return this.function.addCapability(PciCapability.VENDOR, body, writable);
  }

  reset(): void {
    this.state = initial();
    this.device.reset();
    this.function.setIntx(false);
  }

  // --- interrupts -----------------------------------------------------------------------------------------------------

  private interrupt(vector: number, bit: number): void {
    const { msix } = this.function;
    if (msix?.enabled) {
      if (vector !== NO_VECTOR) msix.notify(vector);
      return;
    }
    this.state.isr |= bit;
    this.function.setIntx(true);
  }

  private readIsr(): number {
    const { isr } = this.state;
    this.state.isr = 0;
    this.function.setIntx(false);
    return isr;
  }

  /** Vectors that are not in the table read back as none (4.1.5.1.2.1). */
  private checkedVector(vector: number): number {
    const there = this.function.msix?.options.vectors ?? 0;
    return vector < there ? vector : NO_VECTOR;
  }

  // --- version 1 ------------------------------------------------------------------------------------------------------

  private get queue(): Virtqueue | undefined {
    return this.device.queues[this.state.queueSelect];
  }

  private readModern(offset: number, size: 1 | 2 | 4): number {
    const inside = offset % PAGE;
    switch (offset - inside) {
      case Place.COMMON:
        return this.readCommon(inside);
      case Place.ISR:
        return inside === 0 ? this.readIsr() : 0;
      case Place.DEVICE:
        return this.readDevice(inside, size);
      default:
        return 0;
    }
  }

  private writeModern(offset: number, size: 1 | 2 | 4, value: number): void {
    const inside = offset % PAGE;
    switch (offset - inside) {
      case Place.COMMON:
        this.writeCommon(inside, size, value);
        break;
      case Place.DEVICE:
        this.device.writeConfiguration(inside, size, value);
        break;
      case Place.NOTIFY:
        if (this.function.isMaster) this.device.notify(Math.floor(inside / NOTIFY_MULTIPLIER));
        break;
    }
  }

  private readDevice(offset: number, size: number): number {
    const bytes = this.device.configuration();
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = (value << 8) | (bytes[offset + i] ?? 0);
    return value;
  }

  private readCommon(offset: number): number {
    const { device, state, queue } = this;
    const half = (value: bigint, select: number): number =>
      select < 2 ? Number((value >> BigInt(32 * select)) & 0xffffffffn) : 0;
    switch (offset) {
      case Common.DEVICE_FEATURE_SELECT:
        return state.deviceFeatureSelect;
      case Common.DEVICE_FEATURE:
        return half(device.features, state.deviceFeatureSelect);
      case Common.DRIVER_FEATURE_SELECT:
        return state.driverFeatureSelect;
      case Common.DRIVER_FEATURE:
        return half(device.driverFeatures, state.driverFeatureSelect);
      case Common.CONFIG_VECTOR:
        return state.configVector;
      case Common.NUM_QUEUES:
        return device.queues.length;
      case Common.DEVICE_STATUS:
        return device.deviceStatus;
      case Common.CONFIG_GENERATION:
        return 0;
      case Common.QUEUE_SELECT:
        return state.queueSelect;
      case Common.QUEUE_NOTIFY_OFF:
        return state.queueSelect;
    }
    if (!queue) return 0;
    const q = queue.state;
    switch (offset) {
      case Common.QUEUE_SIZE:
        return q.size;
      case Common.QUEUE_VECTOR:
        return q.vector;
      case Common.QUEUE_ENABLE:
        return q.enabled ? 1 : 0;
    }
    const at = offset & ~4;
    const address = { [Common.QUEUE_DESC]: q.descriptors, [Common.QUEUE_DRIVER]: q.available }[at] ?? q.used;
    if (at < Common.QUEUE_DESC || at > Common.QUEUE_DEVICE) return 0;
    return offset & 4 ? Math.floor(address / 2 ** 32) : address % 2 ** 32;
  }

  private writeCommon(offset: number, size: 1 | 2 | 4, value: number): void {
    const { device, state, queue } = this;
    switch (offset) {
      case Common.DEVICE_FEATURE_SELECT:
        state.deviceFeatureSelect = value;
        return;
      case Common.DRIVER_FEATURE_SELECT:
        state.driverFeatureSelect = value;
        return;
      case Common.DRIVER_FEATURE: {
        if (state.driverFeatureSelect > 1) return;
        const shift = BigInt(32 * state.driverFeatureSelect);
        const keep = device.driverFeatures & ~(0xffffffffn << shift);
        device.driverFeatures = keep | (BigInt(value >>> 0) << shift);
        return;
      }
      case Common.CONFIG_VECTOR:
        state.configVector = this.checkedVector(value);
        return;
      case Common.DEVICE_STATUS:
        if ((value & 0xff) === 0) this.reset();
        else device.setStatus(value);
        return;
      case Common.QUEUE_SELECT:
        state.queueSelect = value & 0xffff;
        return;
    }
    if (!queue) return;
    const q = queue.state;
    if (offset === Common.QUEUE_VECTOR) {
      q.vector = this.checkedVector(value);
      return;
    }
    // A queue in use is not changed (4.1.5.1.3).
    if (q.enabled) return;
    switch (offset) {
      case Common.QUEUE_SIZE:
        if (value > 0 && value <= queue.maximum && (value & (value - 1)) === 0) q.size = value;
        return;
      case Common.QUEUE_ENABLE:
        if (value === 1) q.enabled = true;
        return;
    }
    if (size !== 4) return;
    const put = (old: number): number =>
      offset & 4 ? (value >>> 0) * 2 ** 32 + (old % 2 ** 32) : Math.floor(old / 2 ** 32) * 2 ** 32 + (value >>> 0);
    switch (offset & ~4) {
      case Common.QUEUE_DESC:
        q.descriptors = put(q.descriptors);
        break;
      case Common.QUEUE_DRIVER:
        q.available = put(q.available);
        break;
      case Common.QUEUE_DEVICE:
        q.used = put(q.used);
        break;
    }
  }

  // --- access through configuration space (4.1.4.9) -------------------------------------------------------------------

  private windowAccess(offset: number, size: number): { at: number; size: 1 | 2 | 4 } | null {
    const data = this.window + 16;
    if (offset > data || offset + size <= data) return null;
    const bar = this.function.peek(this.window + 4, 1);
    const at = this.function.peek(this.window + 8, 4);
    const length = this.function.peek(this.window + 12, 4);
    if (bar !== MODERN_BAR || (length !== 1 && length !== 2 && length !== 4)) return null;
    return at % length === 0 && at + length <= Place.SIZE ? { at, size: length } : null;
  }

  private configWritten(offset: number, size: number): void {
    const access = this.windowAccess(offset, size);
    if (access) this.modern.write(access.at, access.size, this.function.peek(this.window + 16, access.size));
  }

  private configRead(offset: number, size: number): void {
    const access = this.windowAccess(offset, size);
    if (access) this.function.poke(this.window + 16, 4, this.modern.read(access.at, access.size));
  }

  // --- before version 1 -----------------------------------------------------------------------------------------------

  /** The device's configuration follows the vectors, which are there only with MSI-X switched on. */
  private get legacyConfigAt(): number {
    return this.function.msix?.enabled ? Legacy.QUEUE_VECTOR + 2 : Legacy.CONFIG_VECTOR;
  }

  private readLegacy(offset: number, size: 1 | 2 | 4): number {
    const { device, state, queue } = this;
    if (offset >= this.legacyConfigAt) return this.readDevice(offset - this.legacyConfigAt, size);
    switch (offset) {
      case Legacy.DEVICE_FEATURES:
        return Number(device.features & 0xffffffffn);
      case Legacy.DRIVER_FEATURES:
        return Number(device.driverFeatures & 0xffffffffn);
      case Legacy.QUEUE_ADDRESS:
        return queue ? Math.floor(queue.state.descriptors / LEGACY_ALIGN) : 0;
      case Legacy.QUEUE_SIZE:
        return queue?.maximum ?? 0;
      case Legacy.QUEUE_SELECT:
        return state.queueSelect;
      case Legacy.STATUS:
        return device.deviceStatus;
      case Legacy.ISR:
        return this.readIsr();
      case Legacy.CONFIG_VECTOR:
        return state.configVector;
      case Legacy.QUEUE_VECTOR:
        return queue?.state.vector ?? NO_VECTOR;
      default:
        return 0;
    }
  }

  private writeLegacy(offset: number, size: 1 | 2 | 4, value: number): void {
    const { device, state, queue } = this;
    if (offset >= this.legacyConfigAt) {
      device.writeConfiguration(offset - this.legacyConfigAt, size, value);
      return;
    }
    switch (offset) {
      case Legacy.DRIVER_FEATURES:
        device.driverFeatures = BigInt(value >>> 0);
        break;
      case Legacy.QUEUE_ADDRESS:
        if (queue) setLegacyQueue(queue, value);
        break;
      case Legacy.QUEUE_SELECT:
        state.queueSelect = value & 0xffff;
        break;
      case Legacy.QUEUE_NOTIFY:
        device.notify(value & 0xffff);
        break;
      case Legacy.STATUS:
        if ((value & 0xff) === 0) this.reset();
        else device.setLegacyStatus(value);
        break;
      case Legacy.CONFIG_VECTOR:
        state.configVector = this.checkedVector(value & 0xffff);
        break;
      case Legacy.QUEUE_VECTOR:
        if (queue) queue.state.vector = this.checkedVector(value & 0xffff);
        break;
    }
  }
}

/** The legacy layout of a queue (2.7.2): table, available ring, then the used ring on the next page. */
function setLegacyQueue(queue: Virtqueue, page: number): void {
  const q = queue.state;
  const base = (page >>> 0) * LEGACY_ALIGN;
  q.enabled = base !== 0;
  q.descriptors = base;
  q.available = base + 16 * q.size;
  q.used = Math.ceil((q.available + 6 + 2 * q.size) / LEGACY_ALIGN) * LEGACY_ALIGN;
  q.taken = 0;
  q.filled = 0;
  q.told = -1;
}
