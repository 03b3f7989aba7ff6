/** What firmware reads from fw_cfg beside the well-known items: memory map, tables, and settings (QEMU's files). */
import { type FwCfg, FwCfgKey, littleEndian } from "../../devices/fw-cfg";
import { GiB, KiB } from "../../memory/layout";
import type { MachineConfig } from "../config";
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

export function addFirmwareFiles(fw: FwCfg, config: MachineConfig): void {
  const low = Math.min(config.memory, LOW_MEMORY_END);
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
