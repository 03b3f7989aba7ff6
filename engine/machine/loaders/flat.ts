/**
 * Flat binaries: the bytes go to the load address, and execution starts there.
 *
 * Below 1 MiB the start is in real-address mode, CS:IP = 0:address for addresses below 64 KiB (0:7c00 for a boot sector),
 * else address>>4 : address&15. From 1 MiB on it is 32-bit protected mode with flat segments and paging off. There is no
 * BIOS: the interrupt vector table is empty.
 */
import type { ImageFile } from "../config";
import { bootGdt, type EntryState, MULTIBOOT_SELECTORS, protectedModeEntry, realModeEntry } from "../entry-state";
import { BOOT_AREA_END, hex, type LoadContext, Placement, reject } from "./image";

const ONE_MIB = 0x100000;
export const BOOT_SECTOR_ADDRESS = 0x7c00;

export function loadFlat(image: ImageFile, context: LoadContext, address: number): EntryState {
  if (!Number.isInteger(address) || address < 0 || address >= 2 ** 32) {
    reject(image, `load address ${hex(Math.trunc(address))} is not between 0 and 0xffffffff`, "correct --load-address");
  }
  if (image.bytes.length === 0) reject(image, "the file is empty", "build it again");
  const placement = new Placement(image, context.memory);
  placement.claim(address, image.bytes.length, "the image");
  context.memory.write(address, image.bytes);
  if (address < 0x10000) return realModeEntry(0, address);
  if (address < ONE_MIB) return realModeEntry(address >> 4, address & 0xf);
  const gdt = bootGdt(MULTIBOOT_SELECTORS, false);
  const gdtBase = placement.below(BOOT_AREA_END, gdt.length, 16, "the GDT");
  context.memory.write(gdtBase, gdt);
  return protectedModeEntry({
    how: `flat image, 32-bit protected mode at ${hex(address)}`,
    entry: address,
    gpr: {},
    selectors: MULTIBOOT_SELECTORS,
    gdtBase,
  });
}
