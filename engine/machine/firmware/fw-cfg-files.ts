/** What firmware reads from fw_cfg beside the well-known items: memory map, tables, and settings (QEMU's files). */
import { type FwCfg, FwCfgKey, littleEndian } from "../../devices/fw-cfg";
import { GiB, KiB } from "../../memory/layout";
import type { MachineConfig } from "../config";
import { isBzImage } from "../loaders/detect";
import { E820Type, LOW_MEMORY_END } from "../memory-map";
import { smbiosTables } from "../smbios";
import { acpiFiles } from "./table-loader";

/** Length of the SMBIOS 2.1 entry point (DSP0134 5.2.1); the structures follow 32 bytes behind its start. */
const ANCHOR_SIZE = 0x1f;
const STRUCTURES_AT = 0x20;
/** Pages KVM keeps below the APICs (identity map and TSS). */
const KVM_PAGES = { base: 0xfeffc000, size: 16 * KiB } as const;
/** Sleep states S0..S5: bit 7 supported, bits 2:0 the type. S3 and S4 are not there. */
const SYSTEM_STATES = [0x80, 0, 0, 1, 2, 0x80] as const;
const COM1 = 0x3f8;

/** RAM as one piece below and one above 4 GiB, and what is reserved in the hole: the rest firmware knows itself. */
function e820File(config: MachineConfig): Uint8Array {
  const low = Math.min(config.memory, LOW_MEMORY_END);
  const entries = [{ base: 0, size: low, type: E820Type.RAM as number }];
  if (config.memory > low) entries.push({ base: 4 * GiB, size: config.memory - low, type: E820Type.RAM });
  if (config.accel !== "none") entries.push({ ...KVM_PAGES, type: E820Type.RESERVED });
  const out = new Uint8Array(20 * entries.length);
  entries.forEach((e, i) => {
    out.set(littleEndian(e.base, 8), i * 20);
    out.set(littleEndian(e.size, 8), i * 20 + 8);
    out.set(littleEndian(e.type, 4), i * 20 + 16);
  });
  return out;
}

/** Where a bzImage says how many sectors of set-up code follow its first one; 0 means 4 (Linux boot protocol). */
const SETUP_SECTORS_AT = 0x1f1;
const SECTOR = 512;

/** A Linux kernel for firmware that loads one from fw_cfg itself, as OVMF does: set-up part, the rest, initial RAM disk. */
function addKernel(fw: FwCfg, config: MachineConfig): void {
  const { bytes } = config.image;
  const setup = ((bytes[SETUP_SECTORS_AT] || 4) + 1) * SECTOR;
  const parts = [
    [FwCfgKey.SETUP_SIZE, FwCfgKey.SETUP_DATA, bytes.subarray(0, setup)],
    [FwCfgKey.KERNEL_SIZE, FwCfgKey.KERNEL_DATA, bytes.subarray(setup)],
    [FwCfgKey.INITRD_SIZE, FwCfgKey.INITRD_DATA, config.initrd?.bytes ?? new Uint8Array(0)],
  ] as const;
  for (const [size, data, part] of parts) {
    fw.addItem(size, littleEndian(part.length, 4));
    fw.addItem(data, part);
  }
}

/** Adds the items and files that SeaBIOS and OVMF read. */
export function addFirmwareFiles(fw: FwCfg, config: MachineConfig): void {
  const low = Math.min(config.memory, LOW_MEMORY_END);
  if (config.firmware && isBzImage(config.image.bytes)) addKernel(fw, config);
  // ISA IRQ 0 is at the I/O APIC's pin 2.
  fw.addItem(FwCfgKey.IRQ0_OVERRIDE, littleEndian(1, 4));
  fw.addFile("etc/e820", e820File(config));
  for (const { name, bytes } of acpiFiles(config.smp, low)) fw.addFile(name, bytes);
  const smbios = smbiosTables(config.memory, config.smp);
  fw.addFile("etc/smbios/smbios-anchor", smbios.slice(0, ANCHOR_SIZE));
  fw.addFile("etc/smbios/smbios-tables", smbios.slice(STRUCTURES_AT));
  fw.addFile("etc/system-states", Uint8Array.from(SYSTEM_STATES));
  // Without anything to boot it stays and says so, rather than resetting for ever.
  fw.addFile("etc/boot-fail-wait", littleEndian(0xffffffff, 4));
  // The machine has no window: text output goes to the first serial port as well.
  fw.addFile("etc/sercon-port", littleEndian(COM1, 2));
}
