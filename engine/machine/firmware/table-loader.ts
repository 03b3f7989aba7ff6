/**
 * The BIOS linker/loader: files by which firmware gets ACPI tables whose addresses it chooses itself (QEMU
 * docs/specs/fw_cfg and hw/acpi/bios-linker-loader: "etc/table-loader"). The tables are the board's own; what in them is
 * an address is found by walking them, and becomes a command.
 */
import { acpiTables } from "../acpi-tables";

const RSDP_SIZE = 36;
/** The RSDP has a file of its own; the tables begin behind its place in the block. */
const TABLES_AT = 64;
const HEADER_SIZE = 36;
const CHECKSUM_AT = 9;

const FILES = { rsdp: "etc/acpi/rsdp", tables: "etc/acpi/tables", loader: "etc/table-loader" } as const;
type Blob = "rsdp" | "tables";

const Command = { ALLOCATE: 1, ADD_POINTER: 2, ADD_CHECKSUM: 3 } as const;
const Zone = { HIGH: 1, FSEG: 2 } as const;
const COMMAND_SIZE = 128;
const NAME_SIZE = 56;

interface Pointer {
  /** Offset in the block. */
  readonly at: number;
  readonly size: 4 | 8;
}

/** Pointers of the FADT (ACPI 5.2.9): FIRMWARE_CTRL, DSDT, X_FIRMWARE_CTRL, X_DSDT. */
const FADT_POINTERS: readonly Pointer[] = [
  { at: 36, size: 4 },
  { at: 40, size: 4 },
  { at: 132, size: 8 },
  { at: 140, size: 8 },
];

class LoaderScript {
  private readonly commands: Uint8Array[] = [];

  private command(code: number): { bytes: Uint8Array; view: DataView } {
    const bytes = new Uint8Array(COMMAND_SIZE);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, code, true);
    this.commands.push(bytes);
    return { bytes, view };
  }

  private static name(into: Uint8Array, at: number, blob: Blob): void {
    into.set(new TextEncoder().encode(FILES[blob]), at);
  }

  allocate(blob: Blob, align: number, zone: number): void {
    const { bytes, view } = this.command(Command.ALLOCATE);
    LoaderScript.name(bytes, 4, blob);
    view.setUint32(4 + NAME_SIZE, align, true);
    view.setUint8(8 + NAME_SIZE, zone);
  }

  /** The `size` bytes at `offset` of `blob` hold an offset into the tables and become an address. */
  addPointer(blob: Blob, offset: number, size: number): void {
    const { bytes, view } = this.command(Command.ADD_POINTER);
    LoaderScript.name(bytes, 4, blob);
    LoaderScript.name(bytes, 4 + NAME_SIZE, "tables");
    view.setUint32(4 + 2 * NAME_SIZE, offset, true);
    view.setUint8(8 + 2 * NAME_SIZE, size);
  }

  addChecksum(blob: Blob, offset: number, start: number, length: number): void {
    const { bytes, view } = this.command(Command.ADD_CHECKSUM);
    LoaderScript.name(bytes, 4, blob);
    view.setUint32(4 + NAME_SIZE, offset, true);
    view.setUint32(8 + NAME_SIZE, start, true);
    view.setUint32(12 + NAME_SIZE, length, true);
  }

  get bytes(): Uint8Array {
    const out = new Uint8Array(this.commands.length * COMMAND_SIZE);
    this.commands.forEach((command, i) => {
      out.set(command, i * COMMAND_SIZE);
    });
    return out;
  }
}

/** The files "etc/acpi/rsdp", "etc/acpi/tables" and "etc/table-loader". */
export function acpiFiles(cpus: number, lowMemoryEnd: number): { name: string; bytes: Uint8Array }[] {
  // At address 0 an address is an offset.
  const { bytes: block } = acpiTables(0, cpus, lowMemoryEnd);
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const script = new LoaderScript();
  script.allocate("rsdp", 16, Zone.FSEG);
  script.allocate("tables", 64, Zone.HIGH);

  const read = ({ at, size }: Pointer): number =>
    size === 4 ? view.getUint32(at, true) : Number(view.getBigUint64(at, true));
  const seen = new Set<number>();
  const checksums: { at: number; length: number }[] = [];

  /** Makes the pointer relative to the tables' file; walks what it points to. */
  const follow = (blob: Blob, pointer: Pointer): void => {
    const target = read(pointer);
    if (target === 0) return;
    if (pointer.size === 4) view.setUint32(pointer.at, target - TABLES_AT, true);
    else view.setBigUint64(pointer.at, BigInt(target - TABLES_AT), true);
    script.addPointer(blob, blob === "rsdp" ? pointer.at : pointer.at - TABLES_AT, pointer.size);
    if (!seen.has(target)) table(target);
  };

  const table = (at: number): void => {
    seen.add(at);
    const signature = String.fromCharCode(...block.subarray(at, at + 4));
    const length = view.getUint32(at + 4, true);
    // The FACS is the firmware's and has no checksum.
    if (signature === "FACS") return;
    const entry = signature === "RSDT" ? 4 : signature === "XSDT" ? 8 : 0;
    if (entry !== 0) for (let i = HEADER_SIZE; i < length; i += entry) follow("tables", { at: at + i, size: entry });
    if (signature === "FACP") {
      for (const p of FADT_POINTERS) if (p.at + p.size <= length) follow("tables", { at: at + p.at, size: p.size });
    }
    checksums.push({ at, length });
  };

  follow("rsdp", { at: 16, size: 4 });
  follow("rsdp", { at: 24, size: 8 });
  for (const { at, length } of checksums) {
    block[at + CHECKSUM_AT] = 0;
    const offset = at - TABLES_AT;
    script.addChecksum("tables", offset + CHECKSUM_AT, offset, length);
  }
  // ACPI 5.2.5.3: the first checksum covers the ACPI 1.0 part, the extended one everything.
  block[8] = 0;
  block[32] = 0;
  script.addChecksum("rsdp", 8, 0, 20);
  script.addChecksum("rsdp", 32, 0, RSDP_SIZE);
  return [
    { name: FILES.rsdp, bytes: block.slice(0, RSDP_SIZE) },
    { name: FILES.tables, bytes: block.slice(TABLES_AT) },
    { name: FILES.loader, bytes: script.bytes },
  ];
}
