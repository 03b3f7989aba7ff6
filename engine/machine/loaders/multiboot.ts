/**
 * Multiboot specification 0.6.96, version 1: finding and checking the header, the information structure, and images that
 * are not ELF but tell their addresses in the header (the "a.out kludge").
 */

import { Gpr } from "../../cpu/state";
import type { ImageFile } from "../config";
import { bootGdt, type EntryState, MULTIBOOT_SELECTORS, protectedModeEntry } from "../entry-state";
import { DISPLAY_BASE, e820 } from "../memory-map";
import { findMultibootHeader, type MultibootHeader } from "./detect";
import { BOOT_AREA_END, HeaderReader, hex, type LoadContext, Placement, reject } from "./image";

const BOOTLOADER_MAGIC = 0x2badb002;

const HeaderFlag = { PAGE_ALIGN: 1, MEMORY_INFO: 2, VIDEO: 4 } as const;
const KNOWN_REQUIREMENTS = HeaderFlag.PAGE_ALIGN | HeaderFlag.MEMORY_INFO | HeaderFlag.VIDEO;
// biome-ignore format: a bit table
const InfoFlag = { MEMORY: 1, CMDLINE: 4, MODULES: 8, MEMORY_MAP: 0x40, LOADER_NAME: 0x200, FRAMEBUFFER: 0x1000 } as const;
const INFO_SIZE = 116;

/** @throws MachineError when the header asks for something that cannot be given */
function checkHeader(image: ImageFile, header: MultibootHeader): void {
  const unknown = header.flags & 0xffff & ~KNOWN_REQUIREMENTS;
  if (unknown) {
    reject(
      image,
      `multiboot header flags ${hex(header.flags)} require features ${hex(unknown)} that no loader knows`,
      "clear those bits of the header's flags",
    );
  }
}

/** Loads by the addresses in the header itself. */
export function loadMultibootFlat(image: ImageFile, context: LoadContext): EntryState {
  const header = findMultibootHeader(image.bytes);
  if (!header) return reject(image, "there is no multiboot header", "link one into the first 8 KiB");
  const r = new HeaderReader(image, "multiboot header");
  const at = header.offset;
  const headerAddress = r.u32(at + 12, "header_addr");
  const loadAddress = r.u32(at + 16, "load_addr");
  const loadEnd = r.u32(at + 20, "load_end_addr");
  const bssEnd = r.u32(at + 24, "bss_end_addr");
  const entry = r.u32(at + 28, "entry_addr");
  const start = header.offset - (headerAddress - loadAddress);
  if (loadAddress > headerAddress || start < 0) {
    reject(
      image,
      `multiboot header_addr ${hex(headerAddress)} and load_addr ${hex(loadAddress)} do not fit a header at file offset ${hex(at)}`,
      "make header_addr the address at which the header itself is linked",
    );
  }
  const length = loadEnd === 0 ? image.bytes.length - start : loadEnd - loadAddress;
  if (length <= 0 || start + length > image.bytes.length) {
    reject(
      image,
      `multiboot load_end_addr ${hex(loadEnd)} asks for ${length} bytes, the file has ${image.bytes.length - start}`,
      "correct load_end_addr, or make it 0 to load the whole file",
    );
  }
  const bss = bssEnd === 0 ? 0 : bssEnd - loadAddress - length;
  if (bss < 0) {
    reject(image, `multiboot bss_end_addr ${hex(bssEnd)} lies before the end of the loaded bytes`, "correct it");
  }
  if (entry < loadAddress || entry >= loadAddress + length) {
    reject(image, `multiboot entry_addr ${hex(entry)} lies outside the loaded image`, "correct entry_addr");
  }
  const placement = new Placement(image, context.memory);
  placement.claim(loadAddress, length + bss, "the image");
  context.memory.write(loadAddress, image.bytes.subarray(start, start + length));
  context.memory.write(loadAddress + length, new Uint8Array(bss));
  return multibootEntry(image, context, header, entry, loadAddress + length + bss, placement);
}

const text = (s: string): Uint8Array => {
  const encoded = new TextEncoder().encode(s);
  const out = new Uint8Array(encoded.length + 1);
  out.set(encoded);
  return out;
};

/** Writes the information structure with all it points to and gives the start state of 3.2. */
export function multibootEntry(
  image: ImageFile,
  context: LoadContext,
  header: MultibootHeader,
  entry: number,
  imageEnd: number,
  placement: Placement,
): EntryState {
  checkHeader(image, header);
  const { memory, config } = context;
  const modules = [
    ...(config.initrd ? [{ ...config.initrd, argument: config.initrd.name }] : []),
    ...(config.modules ?? []),
  ];
  const boot = (bytes: Uint8Array, what: string): number => {
    const at = placement.below(BOOT_AREA_END, Math.max(bytes.length, 1), 16, what);
    memory.write(at, bytes);
    return at;
  };

  const table = new Uint8Array(16 * modules.length);
  const tableView = new DataView(table.buffer);
  let next = imageEnd;
  modules.forEach((m, i) => {
    // Modules follow the image, page-aligned whether or not the header asks for it.
    let at = Math.ceil(next / 4096) * 4096;
    if (at < 0x100000) at = 0x100000;
    placement.claim(at, Math.max(m.bytes.length, 1), `module ${m.name}`);
    memory.write(at, m.bytes);
    next = at + m.bytes.length;
    tableView.setUint32(i * 16, at, true);
    tableView.setUint32(i * 16 + 4, next, true);
    tableView.setUint32(i * 16 + 8, boot(text(m.argument), "a module's argument"), true);
  });

  const map = e820(memory.size);
  const mapBytes = new Uint8Array(24 * map.length);
  const mapView = new DataView(mapBytes.buffer);
  map.forEach((e, i) => {
    mapView.setUint32(i * 24, 20, true);
    mapView.setBigUint64(i * 24 + 4, BigInt(e.base), true);
    mapView.setBigUint64(i * 24 + 12, BigInt(e.size), true);
    mapView.setUint32(i * 24 + 20, e.type, true);
  });

  const info = new Uint8Array(INFO_SIZE);
  const v = new DataView(info.buffer);
  const u32 = (offset: number, value: number): void => v.setUint32(offset, value, true);
  const video = (header.flags & HeaderFlag.VIDEO) !== 0;
  u32(
    0,
    InfoFlag.MEMORY |
      InfoFlag.CMDLINE |
      (modules.length > 0 ? InfoFlag.MODULES : 0) |
      InfoFlag.MEMORY_MAP |
      InfoFlag.LOADER_NAME |
      (video ? InfoFlag.FRAMEBUFFER : 0),
  );
  u32(4, DISPLAY_BASE / 1024 - 1);
  u32(8, (memory.lowEnd - 0x100000) / 1024);
  u32(16, boot(text(config.append === "" ? image.name : `${image.name} ${config.append}`), "the command line"));
  u32(20, modules.length);
  u32(24, modules.length > 0 ? boot(table, "the module list") : 0);
  u32(44, mapBytes.length);
  u32(48, boot(mapBytes, "the memory map"));
  u32(64, boot(text("Hyperstep"), "the loader's name"));
  if (video) {
    // EGA text, 80x25 (3.3, framebuffer_type 2).
    v.setBigUint64(88, 0xb8000n, true);
    u32(96, 160);
    u32(100, 80);
    u32(104, 25);
    info[108] = 16;
    info[109] = 2;
  }
  const infoAt = boot(info, "the multiboot information");
  const gdtBase = boot(bootGdt(MULTIBOOT_SELECTORS, false), "the GDT");
  return protectedModeEntry({
    how: `multiboot, 32-bit protected mode at ${hex(entry)}`,
    entry,
    gpr: { [Gpr.RAX]: BigInt(BOOTLOADER_MAGIC), [Gpr.RBX]: BigInt(infoAt) },
    selectors: MULTIBOOT_SELECTORS,
    gdtBase,
  });
}
