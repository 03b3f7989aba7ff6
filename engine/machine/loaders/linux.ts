/**
 * Linux/x86 boot protocol (Documentation/arch/x86/boot.rst) for bzImage: the real-mode set-up code is skipped, the
 * protected-mode kernel starts by the 64-bit protocol where it offers it (XLF_KERNEL_64), else by the 32-bit one.
 */

import { Gpr } from "../../cpu/state";
import type { ImageFile } from "../config";
import { bootGdt, type EntryState, LINUX_SELECTORS, longModeEntry, protectedModeEntry } from "../entry-state";
import { e820 } from "../memory-map";
import { BOOT_AREA_END, HeaderReader, hex, type LoadContext, Placement, reject } from "./image";
import { IDENTITY_TABLES_SIZE, writeIdentityTables } from "./page-tables";

/** Offsets in the set-up header, the same in the file and in the zero page (boot.rst, "Details of header fields"). */
const H = {
  SETUP_SECTS: 0x1f1,
  SYSSIZE: 0x1f4,
  VID_MODE: 0x1fa,
  BOOT_FLAG: 0x1fe,
  JUMP: 0x200,
  MAGIC: 0x202,
  VERSION: 0x206,
  TYPE_OF_LOADER: 0x210,
  LOADFLAGS: 0x211,
  CODE32_START: 0x214,
  RAMDISK_IMAGE: 0x218,
  RAMDISK_SIZE: 0x21c,
  CMD_LINE_PTR: 0x228,
  INITRD_ADDR_MAX: 0x22c,
  KERNEL_ALIGNMENT: 0x230,
  RELOCATABLE: 0x234,
  XLOADFLAGS: 0x236,
  CMDLINE_SIZE: 0x238,
  PREF_ADDRESS: 0x258,
  INIT_SIZE: 0x260,
} as const;

/** Offsets in the zero page (struct boot_params). */
const Z = { SCREEN_INFO: 0, ACPI_RSDP: 0x70, E820_ENTRIES: 0x1e8, HEADER: 0x1f1, E820_TABLE: 0x2d0 } as const;

const LOADED_HIGH = 1;
const XLF_KERNEL_64 = 1;
const LOADER_UNDEFINED = 0xff;
const ENTRY64_OFFSET = 0x200;
const ONE_MIB = 0x100000;
const DEFAULT_CMDLINE_SIZE = 255;
const DEFAULT_INITRD_MAX = 0x37ffffff;

interface SetupHeader {
  readonly version: number;
  /** File offset of the protected-mode kernel. */
  readonly kernelAt: number;
  readonly headerEnd: number;
  readonly relocatable: boolean;
  readonly alignment: number;
  readonly preferred: number;
  readonly initSize: number;
  readonly cmdlineSize: number;
  readonly initrdMax: number;
  readonly long: boolean;
}

function readHeader(image: ImageFile): SetupHeader {
  const r = new HeaderReader(image, "bzImage header");
  const flag = r.u16(H.BOOT_FLAG, "boot_flag");
  if (flag !== 0xaa55) reject(image, `bzImage boot_flag is ${hex(flag)}, not 0xaa55`, "build or copy it again");
  const version = r.u16(H.VERSION, "version");
  if (version < 0x0202) {
    reject(image, `boot protocol ${version >> 8}.${version & 0xff} is too old`, "use a kernel of Linux 2.4 or later");
  }
  if (!(r.u8(H.LOADFLAGS, "loadflags") & LOADED_HIGH)) {
    reject(image, "loadflags lacks LOADED_HIGH: this is a zImage", "build a bzImage");
  }
  const sectors = r.u8(H.SETUP_SECTS, "setup_sects") || 4;
  const kernelAt = (sectors + 1) * 512;
  const length = image.bytes.length - kernelAt;
  if (length <= 0) {
    reject(
      image,
      `setup_sects ${sectors} puts the kernel at file offset ${hex(kernelAt)}, behind the end of the file`,
      "the file is truncated: build or copy it again",
    );
  }
  const syssize = r.u32(H.SYSSIZE, "syssize") * 16;
  if (version >= 0x0204 && syssize > length + 15) {
    reject(
      image,
      `syssize says ${syssize} bytes of kernel, the file has ${length}`,
      "the file is truncated: build or copy it again",
    );
  }
  const headerEnd = H.MAGIC + r.u8(H.JUMP + 1, "jump");
  const modern = version >= 0x020a;
  const alignment = version >= 0x0205 ? r.u32(H.KERNEL_ALIGNMENT, "kernel_alignment") : 0x1000;
  if (alignment !== 0 && (alignment & (alignment - 1)) !== 0) {
    reject(image, `kernel_alignment ${hex(alignment)} is not a power of two`, "build or copy it again");
  }
  return {
    version,
    kernelAt,
    headerEnd: Math.max(headerEnd, H.CMD_LINE_PTR + 4),
    relocatable: version >= 0x0205 && r.u8(H.RELOCATABLE, "relocatable_kernel") !== 0,
    alignment: Math.max(alignment, 0x1000),
    preferred: modern ? r.u64(H.PREF_ADDRESS, "pref_address") : ONE_MIB,
    initSize: modern ? Math.max(r.u32(H.INIT_SIZE, "init_size"), length) : length,
    cmdlineSize: version >= 0x0206 ? r.u32(H.CMDLINE_SIZE, "cmdline_size") : DEFAULT_CMDLINE_SIZE,
    initrdMax: version >= 0x0203 ? r.u32(H.INITRD_ADDR_MAX, "initrd_addr_max") : DEFAULT_INITRD_MAX,
    long: version >= 0x020c && (r.u16(H.XLOADFLAGS, "xloadflags") & XLF_KERNEL_64) !== 0,
  };
}

/** Where the kernel goes: its preferred address if there is RAM, else, if it may move, the first aligned place. */
function loadAddress(image: ImageFile, h: SetupHeader, lowEnd: number): number {
  const fits = (at: number): boolean => at >= ONE_MIB && at + h.initSize <= lowEnd;
  if (fits(h.preferred)) return h.preferred;
  const moved = Math.ceil(ONE_MIB / h.alignment) * h.alignment;
  if (h.relocatable && fits(moved)) return moved;
  return reject(
    image,
    `the kernel needs ${hex(h.initSize)} bytes (init_size) at ${hex(h.preferred)} (pref_address), RAM ends at ${hex(lowEnd)}`,
    "give the machine more memory",
  );
}

export function loadLinux(image: ImageFile, context: LoadContext): EntryState {
  const { memory, config, rsdp } = context;
  const h = readHeader(image);
  const placement = new Placement(image, memory);
  const kernel = loadAddress(image, h, memory.lowEnd);
  placement.claim(kernel, h.initSize, "the kernel");
  memory.write(kernel, image.bytes.subarray(h.kernelAt));

  const commandLine = new TextEncoder().encode(config.append);
  if (commandLine.length > h.cmdlineSize) {
    reject(
      image,
      `the command line has ${commandLine.length} bytes, this kernel takes ${h.cmdlineSize} (cmdline_size)`,
      "shorten --append",
    );
  }
  const commandLineAt = placement.below(BOOT_AREA_END, commandLine.length + 1, 16, "the command line");
  memory.write(commandLineAt, commandLine);
  memory.write(commandLineAt + commandLine.length, new Uint8Array(1));

  let initrdAt = 0;
  if (config.initrd) {
    const limit = Math.min(memory.lowEnd, h.initrdMax + 1);
    initrdAt = placement.below(limit, Math.max(1, config.initrd.bytes.length), 4096, `initrd ${config.initrd.name}`);
    memory.write(initrdAt, config.initrd.bytes);
  }

  const zero = new Uint8Array(4096);
  const v = new DataView(zero.buffer);
  zero.set(image.bytes.subarray(Z.HEADER, Math.min(h.headerEnd, image.bytes.length, 0x290)), Z.HEADER);
  writeScreenInfo(v);
  v.setUint16(H.VID_MODE, 0xffff, true);
  v.setUint8(H.TYPE_OF_LOADER, LOADER_UNDEFINED);
  v.setUint32(H.CODE32_START, kernel, true);
  v.setUint32(H.CMD_LINE_PTR, commandLineAt, true);
  v.setUint32(H.RAMDISK_IMAGE, initrdAt, true);
  v.setUint32(H.RAMDISK_SIZE, config.initrd?.bytes.length ?? 0, true);
  v.setBigUint64(Z.ACPI_RSDP, BigInt(rsdp), true);
  const map = e820(memory.size);
  v.setUint8(Z.E820_ENTRIES, map.length);
  map.forEach((e, i) => {
    const at = Z.E820_TABLE + i * 20;
    v.setBigUint64(at, BigInt(e.base), true);
    v.setBigUint64(at + 8, BigInt(e.size), true);
    v.setUint32(at + 16, e.type, true);
  });
  const zeroAt = placement.below(BOOT_AREA_END, 4096, 4096, "the zero page");
  memory.write(zeroAt, zero);

  const gdt = bootGdt(LINUX_SELECTORS, h.long);
  const gdtBase = placement.below(BOOT_AREA_END, gdt.length, 16, "the GDT");
  memory.write(gdtBase, gdt);
  const common = { gpr: { [Gpr.RSI]: BigInt(zeroAt) }, selectors: LINUX_SELECTORS, gdtBase };
  if (!h.long) {
    return protectedModeEntry({
      ...common,
      how: `Linux boot protocol, 32-bit entry at ${hex(kernel)}`,
      entry: kernel,
    });
  }
  const cr3 = placement.below(BOOT_AREA_END, IDENTITY_TABLES_SIZE, 4096, "page tables");
  writeIdentityTables(memory, cr3);
  const entry = kernel + ENTRY64_OFFSET;
  return longModeEntry({ ...common, how: `Linux boot protocol, 64-bit entry at ${hex(entry)}`, entry, cr3 });
}

/** struct screen_info: VGA text, 80x25, mode 3, 16 scan lines a character. */
function writeScreenInfo(v: DataView): void {
  v.setUint8(Z.SCREEN_INFO + 0x06, 3);
  v.setUint8(Z.SCREEN_INFO + 0x07, 80);
  v.setUint8(Z.SCREEN_INFO + 0x0e, 25);
  v.setUint8(Z.SCREEN_INFO + 0x0f, 1);
  v.setUint16(Z.SCREEN_INFO + 0x10, 16, true);
}
