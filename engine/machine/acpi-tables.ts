/**
 * ACPI tables of the board (ACPI specification 6.4, chapter 5): RSDP, RSDT, XSDT, FADT, FACS, MADT, and a small DSDT with
 * the PCI root, the serial ports, the sleep type of S5. All lie in one block that the caller places at `base`.
 */
import { ACPI_PM_BASE, SLEEP_TYPE_S5 } from "../devices/acpi-pm";
import { IO_APIC_BASE } from "../devices/io-apic";
import { LOCAL_APIC_BASE } from "../devices/local-apic";
import { PciBus } from "../devices/pci/bus";
import { CMOS_CENTURY } from "../devices/rtc-cmos";
import { DISPLAY_BASE, DISPLAY_SIZE } from "./memory-map";
import { PCI_IRQS, PIRQ_IRQS } from "./pci-setup";

export const SCI_IRQ = 9;
const OEM_ID = "HYSTEP";
const OEM_TABLE_ID = "HYPERSTP";
const CREATOR = "HYPR";

/** Grows a little-endian byte string. */
class Bytes {
  readonly out: number[] = [];
  u8(...values: number[]): this {
    for (const v of values) this.out.push(v & 0xff);
    return this;
  }
  u16(v: number): this {
    return this.u8(v, v >> 8);
  }
  u32(v: number): this {
    return this.u8(v, v >>> 8, v >>> 16, v >>> 24);
  }
  u64(v: number): this {
    return this.u32(v >>> 0).u32(Math.floor(v / 2 ** 32));
  }
  text(s: string, size = s.length): this {
    for (let i = 0; i < size; i++) this.out.push(i < s.length ? s.charCodeAt(i) : 0);
    return this;
  }
  zeros(n: number): this {
    for (let i = 0; i < n; i++) this.out.push(0);
    return this;
  }
}

/** The byte that makes the sum of all bytes zero. */
function checksum(bytes: ArrayLike<number>, length = bytes.length): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += bytes[i];
  return -sum & 0xff;
}

/** A system description table: the 36-byte header (5.2.6) with its checksum, then the body. */
function table(signature: string, revision: number, body: readonly number[]): Uint8Array {
  const b = new Bytes()
    .text(signature)
    .u32(36 + body.length)
    .u8(revision, 0)
    .text(OEM_ID, 6)
    .text(OEM_TABLE_ID, 8)
    .u32(1)
    .text(CREATOR)
    .u32(1)
    .u8(...body);
  const out = Uint8Array.from(b.out);
  out[9] = checksum(out);
  return out;
}

/** Generic address structure (5.2.3.2) of an I/O port. */
const ioAddress = (b: Bytes, port: number, bits: number): Bytes => b.u8(1, bits, 0, bits === 32 ? 3 : 2).u64(port);

/** FADT (5.2.9), revision 5 length. */
function fadt(facs: number, dsdt: number): Uint8Array {
  const b = new Bytes();
  b.u32(facs).u32(dsdt).u8(0);
  // Preferred profile 0, SCI, no SMI command port: the hardware is always in ACPI mode.
  b.u8(0).u16(SCI_IRQ).u32(0).u8(0, 0, 0, 0);
  // PM1a event, PM1b, PM1a control, PM1b, PM2, PM timer, GPE0, GPE1.
  b.u32(ACPI_PM_BASE)
    .u32(0)
    .u32(ACPI_PM_BASE + 4)
    .u32(0)
    .u32(0)
    .u32(ACPI_PM_BASE + 8)
    .u32(0)
    .u32(0);
  b.u8(4, 2, 0, 4, 0, 0, 0, 0);
  // C2 and C3 latencies above the limits: not supported. No cache flush strides, no duty cycle.
  b.u16(0xfff).u16(0xfff).u16(0).u16(0).u8(0, 0);
  // No alarm day or month registers; the century register.
  b.u8(0, 0, CMOS_CENTURY);
  // Boot architecture: legacy devices, 8042.
  b.u16(0x3).u8(0);
  // WBINVD, C1, sleep button absent, RTC wake not fixed, 32-bit timer, reset register.
  b.u32((1 << 0) | (1 << 2) | (1 << 5) | (1 << 6) | (1 << 8) | (1 << 10));
  ioAddress(b, 0xcf9, 8);
  b.u8(0x06).u16(0).u8(0);
  b.u64(facs).u64(dsdt);
  ioAddress(b, ACPI_PM_BASE, 32);
  b.zeros(12);
  ioAddress(b, ACPI_PM_BASE + 4, 16);
  b.zeros(12).zeros(12);
  ioAddress(b, ACPI_PM_BASE + 8, 32);
  b.zeros(12).zeros(12);
  // Sleep control and status registers of hardware-reduced ACPI: none.
  b.zeros(12).zeros(12);
  return table("FACP", 5, b.out);
}

/** FACS (5.2.10): no header checksum, 64-byte aligned. */
function facs(): Uint8Array {
  return Uint8Array.from(new Bytes().text("FACS").u32(64).zeros(24).u8(2).zeros(31).out);
}

/** MPS INTI flags (table 5.50). */
const ACTIVE_HIGH_LEVEL = 0xd;

/** MADT (5.2.12): local APICs, one I/O APIC, ISA IRQ 0 at pin 2, SCI and PCI interrupts level-triggered, NMI at LINT1. */
function madt(cpus: number): Uint8Array {
  const b = new Bytes().u32(LOCAL_APIC_BASE).u32(1);
  for (let id = 0; id < cpus; id++) b.u8(0, 8, id, id).u32(1);
  b.u8(1, 12, IO_APIC_ID, 0).u32(IO_APIC_BASE).u32(0);
  b.u8(2, 10, 0, 0).u32(2).u16(0);
  for (const irq of [SCI_IRQ, ...PCI_IRQS]) b.u8(2, 10, 0, irq).u32(irq).u16(ACTIVE_HIGH_LEVEL);
  b.u8(4, 6, 0xff).u16(0).u8(1);
  return table("APIC", 3, b.out);
}

/** The I/O APIC's id: the one it powers up with. */
const IO_APIC_ID = 0;

// --- AML (chapter 20) -------------------------------------------------------------------------------------------------

/** A package with its PkgLength (20.2.4). */
function pkg(op: readonly number[], body: readonly number[]): number[] {
  const bare = body.length;
  for (const extra of [0, 1, 2, 3]) {
    const length = bare + 1 + extra;
    if (extra === 0 && length < 64) return [...op, length, ...body];
    if (extra > 0 && length < 1 << (4 + 8 * extra)) {
      const bytes = [(extra << 6) | (length & 0xf)];
      for (let i = 0; i < extra; i++) bytes.push((length >> (4 + 8 * i)) & 0xff);
      return [...op, ...bytes, ...body];
    }
  }
  throw new RangeError("AML package too long");
}

const name4 = (s: string): number[] => new Bytes().text(s.padEnd(4, "_")).out;
const nameOp = (n: string, value: readonly number[]): number[] => [0x08, ...name4(n), ...value];
const dword = (v: number): number[] => [0x0c, ...new Bytes().u32(v).out];
const byteConst = (v: number): number[] => (v === 0 ? [0x00] : [0x0a, v]);
const scope = (n: string, body: readonly number[]): number[] => pkg([0x10], [0x5c, ...name4(n), ...body]);
const device = (n: string, body: readonly number[]): number[] => pkg([0x5b, 0x82], [...name4(n), ...body]);
const packageOf = (...items: number[][]): number[] => pkg([0x12], [items.length, ...items.flat()]);
const integer = (v: number): number[] => (v < 256 ? byteConst(v) : dword(v));

const PCI_DEVICES = 32;
const PCI_PINS = 4;

/** _PRT (6.2.13): every pin of every slot at its global system interrupt; nothing to be programmed. */
function routing(): number[] {
  const entries: number[][] = [];
  for (let at = 1; at < PCI_DEVICES; at++) {
    for (let pin = 0; pin < PCI_PINS; pin++) {
      const gsi = PIRQ_IRQS[PciBus.pirqOf(at, pin + 1)];
      entries.push(packageOf(...[at * 0x10000 + 0xffff, pin, 0, gsi].map(integer)));
    }
  }
  return packageOf(...entries);
}

/** EISA id "PNP0A03" as a compressed dword (19.3.4). */
function eisaId(id: string): number[] {
  const letter = (i: number): number => id.charCodeAt(i) - 0x40;
  const word = (letter(0) << 10) | (letter(1) << 5) | letter(2);
  const product = Number.parseInt(id.slice(3), 16);
  return dword((((word & 0xff) << 8) | (word >> 8) | ((product & 0xff) << 24) | ((product >> 8) << 16)) >>> 0);
}

/** A resource template (19.6.114): descriptors, then the end tag. */
function resources(descriptors: readonly number[]): number[] {
  const body = [...descriptors, 0x79, 0x00];
  return pkg([0x11], [...byteConst(body.length), ...body]);
}
const ioPort = (port: number, length: number): number[] =>
  new Bytes().u8(0x47, 1).u16(port).u16(port).u8(1, length).out;
const irq = (n: number): number[] => new Bytes().u8(0x22).u16(1 << n).out;
/** Word or dword address space descriptor (6.4.3.5): type 0 memory, 1 I/O, 2 bus numbers. */
function addressSpace(tag: 0x87 | 0x88, type: number, flags: number, min: number, max: number): number[] {
  const b = new Bytes();
  const word = tag === 0x88;
  b.u8(tag)
    .u16(word ? 13 : 23)
    .u8(type, 0x0c, flags);
  const put = (v: number): Bytes => (word ? b.u16(v) : b.u32(v));
  put(0);
  put(min);
  put(max);
  put(0);
  put(max - min + 1);
  return b.out;
}

function serialDevice(n: string, uid: number, port: number, line: number): number[] {
  return device(n, [
    ...nameOp("_HID", eisaId("PNP0501")),
    ...nameOp("_UID", byteConst(uid)),
    ...nameOp("_STA", byteConst(0x0f)),
    ...nameOp("_CRS", resources([...ioPort(port, 8), ...irq(line)])),
  ]);
}

/** DSDT: \_S5, the PCI root bridge with its windows, and the fixed ISA devices. */
function dsdt(lowMemoryEnd: number): Uint8Array {
  const pci = device("PCI0", [
    ...nameOp("_HID", eisaId("PNP0A03")),
    ...nameOp("_ADR", byteConst(0)),
    ...nameOp("_UID", byteConst(0)),
    ...nameOp(
      "_CRS",
      resources([
        ...addressSpace(0x88, 2, 0, 0, 0xff),
        ...ioPort(0xcf8, 8),
        ...addressSpace(0x88, 1, 3, 0, 0xcf7),
        ...addressSpace(0x88, 1, 3, 0xd00, 0xffff),
        ...addressSpace(0x87, 0, 1, DISPLAY_BASE, DISPLAY_BASE + DISPLAY_SIZE - 1),
        ...addressSpace(0x87, 0, 1, Math.max(lowMemoryEnd, 0xc0000000), 0xfebfffff),
      ]),
    ),
    ...nameOp("_PRT", routing()),
  ]);
  const rtc = device("RTC_", [
    ...nameOp("_HID", eisaId("PNP0B00")),
    ...nameOp("_CRS", resources([...ioPort(0x70, 2), ...irq(8)])),
  ]);
  const keyboard = device("KBD_", [
    ...nameOp("_HID", eisaId("PNP0303")),
    ...nameOp("_CRS", resources([...ioPort(0x60, 1), ...ioPort(0x64, 1), ...irq(1)])),
  ]);
  const mouse = device("MOU_", [...nameOp("_HID", eisaId("PNP0F13")), ...nameOp("_CRS", resources(irq(12)))]);
  const aml = [
    ...nameOp("_S5_", packageOf(...[SLEEP_TYPE_S5, SLEEP_TYPE_S5, 0, 0].map(byteConst))),
    ...scope("_SB_", [
      ...pci,
      ...rtc,
      ...keyboard,
      ...mouse,
      ...serialDevice("COM1", 1, 0x3f8, 4),
      ...serialDevice("COM2", 2, 0x2f8, 3),
    ]),
  ];
  return table("DSDT", 2, aml);
}

export interface AcpiTables {
  /** Guest-physical address of the RSDP, the start of the block. */
  readonly rsdp: number;
  readonly bytes: Uint8Array;
}

/** Lays out all tables from `base` on, which must be a multiple of 64. */
export function acpiTables(base: number, cpus: number, lowMemoryEnd: number): AcpiTables {
  const placed: { at: number; bytes: Uint8Array }[] = [];
  let next = base + 64;
  const place = (bytes: Uint8Array): number => {
    const at = next;
    placed.push({ at, bytes });
    next = (at + bytes.length + 63) & ~63;
    return at;
  };
  const facsAt = place(facs());
  const dsdtAt = place(dsdt(lowMemoryEnd));
  const entries = [place(fadt(facsAt, dsdtAt)), place(madt(cpus))];
  const rsdtAt = place(table("RSDT", 1, entries.reduce((b, e) => b.u32(e), new Bytes()).out));
  const xsdtAt = place(table("XSDT", 1, entries.reduce((b, e) => b.u64(e), new Bytes()).out));

  const rsdp = new Bytes().text("RSD PTR ").u8(0).text(OEM_ID, 6).u8(2).u32(rsdtAt).u32(36).u64(xsdtAt).u8(0, 0, 0, 0);
  rsdp.out[8] = checksum(rsdp.out, 20);
  rsdp.out[32] = checksum(rsdp.out);

  const bytes = new Uint8Array(next - base);
  bytes.set(rsdp.out, 0);
  for (const t of placed) bytes.set(t.bytes, t.at - base);
  return { rsdp: base, bytes };
}
