/**
 * ELF executables (System V ABI, gabi 4+): PT_LOAD segments go to their physical addresses.
 *
 * With a multiboot header (either class) the image starts as multiboot says. Without one, an x86-64 image starts in 64-bit
 * mode with the first 4 GiB mapped to themselves, at 0xffff800000000000 and (2 GiB) at 0xffffffff80000000, a stack of
 * 16 KiB, RDI = the ACPI RSDP; a 386 image in 32-bit protected mode with flat segments and a stack, paging off.
 */

import { Gpr } from "../../cpu/state";
import type { ImageFile } from "../config";
import {
  type BootSelectors,
  bootGdt,
  type EntryState,
  longModeEntry,
  MULTIBOOT_SELECTORS,
  protectedModeEntry,
} from "../entry-state";
import { findMultibootHeader } from "./detect";
import { BOOT_AREA_END, HeaderReader, hex, type LoadContext, Placement, reject } from "./image";
import { multibootEntry } from "./multiboot";
import { HIGH_ALIASES, IDENTITY_TABLES_SIZE, writeIdentityTables } from "./page-tables";

const PT_LOAD = 1;
const ET_EXEC = 2;
const ET_DYN = 3;
const EM_386 = 3;
const EM_X86_64 = 62;
const PN_XNUM = 0xffff;
const STACK_SIZE = 16384;
const FOUR_GIB = 2 ** 32;

interface Segment {
  readonly index: number;
  readonly offset: number;
  readonly virtual: bigint;
  readonly physical: number;
  readonly fileSize: number;
  readonly memorySize: number;
}

interface ElfFile {
  readonly bits: 32 | 64;
  readonly machine: number;
  readonly entry: bigint;
  readonly segments: readonly Segment[];
}

/** Reads and checks the headers. @throws MachineError naming the field that lies */
export function readElf(image: ImageFile): ElfFile {
  const r = new HeaderReader(image, "ELF header");
  const elfClass = r.u8(4, "EI_CLASS");
  if (elfClass !== 1 && elfClass !== 2) {
    reject(image, `ELF class ${elfClass} is neither 1 (32-bit) nor 2 (64-bit)`, "build it for i386 or x86-64");
  }
  if (r.u8(5, "EI_DATA") !== 1) reject(image, "the ELF file is big-endian", "build it for i386 or x86-64");
  const wide = elfClass === 2;
  const type = r.u16(16, "e_type");
  if (type !== ET_EXEC && type !== ET_DYN) {
    reject(image, `ELF type ${type} is not an executable`, "link it (without -c and -r)");
  }
  const machine = r.u16(18, "e_machine");
  if (machine !== EM_386 && machine !== EM_X86_64) {
    reject(image, `the ELF file is for machine ${machine}`, "build it for i386 or x86-64");
  }
  const entry = wide ? r.big64(24, "e_entry") : BigInt(r.u32(24, "e_entry"));
  const tableAt = wide ? r.u64(32, "e_phoff") : r.u32(28, "e_phoff");
  const entrySize = r.u16(wide ? 54 : 42, "e_phentsize");
  const count = r.u16(wide ? 56 : 44, "e_phnum");
  const least = wide ? 56 : 32;
  if (count === 0) reject(image, "the ELF file has no program headers", "link it as an executable");
  if (count === PN_XNUM) reject(image, "the ELF file has too many program headers", "link it with fewer segments");
  if (entrySize < least) {
    reject(image, `ELF e_phentsize is ${entrySize}, a program header has ${least} bytes`, "build it again");
  }
  const p = new HeaderReader(image, "ELF program header");
  const segments: Segment[] = [];
  for (let i = 0; i < count; i++) {
    const at = tableAt + i * entrySize;
    if (p.u32(at, `${i} p_type`) !== PT_LOAD) continue;
    const field = (name: string): string => `${i} ${name}`;
    const segment: Segment = {
      index: i,
      offset: wide ? p.u64(at + 8, field("p_offset")) : p.u32(at + 4, field("p_offset")),
      virtual: wide ? p.big64(at + 16, field("p_vaddr")) : BigInt(p.u32(at + 8, field("p_vaddr"))),
      physical: wide ? p.u64(at + 24, field("p_paddr")) : p.u32(at + 12, field("p_paddr")),
      fileSize: wide ? p.u64(at + 32, field("p_filesz")) : p.u32(at + 16, field("p_filesz")),
      memorySize: wide ? p.u64(at + 40, field("p_memsz")) : p.u32(at + 20, field("p_memsz")),
    };
    if (segment.fileSize > segment.memorySize) {
      reject(
        image,
        `ELF segment ${i} has p_filesz ${hex(segment.fileSize)} above p_memsz ${hex(segment.memorySize)}`,
        "build it again",
      );
    }
    if (segment.offset + segment.fileSize > image.bytes.length) {
      reject(
        image,
        `ELF segment ${i} reaches to file offset ${hex(segment.offset + segment.fileSize)}, the file has ${hex(image.bytes.length)} bytes`,
        "the file is truncated: build or copy it again",
      );
    }
    if (segment.memorySize > 0) segments.push(segment);
  }
  if (segments.length === 0) reject(image, "the ELF file has no PT_LOAD segment", "link it as an executable");
  return { bits: wide ? 64 : 32, machine, entry, segments };
}

/** Physical address of the entry point: through the segment whose virtual (or physical) addresses hold it. */
function physicalEntry(image: ImageFile, elf: ElfFile): number {
  for (const s of elf.segments) {
    if (elf.entry >= s.virtual && elf.entry < s.virtual + BigInt(s.memorySize)) {
      return s.physical + Number(elf.entry - s.virtual);
    }
  }
  for (const s of elf.segments) {
    if (elf.entry >= BigInt(s.physical) && elf.entry < BigInt(s.physical + s.memorySize)) return Number(elf.entry);
  }
  return reject(image, `ELF e_entry ${hex(elf.entry)} lies in no loaded segment`, "set the entry symbol (ENTRY, -e)");
}

export function loadElf(image: ImageFile, context: LoadContext): EntryState {
  const elf = readElf(image);
  const entry = physicalEntry(image, elf);
  const header = findMultibootHeader(image.bytes);
  const placement = new Placement(image, context.memory);
  let end = 0;
  for (const s of elf.segments) {
    placement.claim(s.physical, s.memorySize, `ELF segment ${s.index}`);
    end = Math.max(end, s.physical + s.memorySize);
  }
  for (const s of elf.segments) {
    context.memory.write(s.physical, image.bytes.subarray(s.offset, s.offset + s.fileSize));
  }
  if (header) {
    if (entry >= FOUR_GIB) {
      reject(image, `multiboot entry ${hex(entry)} is above 4 GiB`, "link it below: multiboot starts in 32-bit mode");
    }
    return multibootEntry(image, context, header, entry, end, placement);
  }
  return elf.machine === EM_X86_64
    ? startLong(image, context, elf, placement)
    : startProtected(context, entry, placement);
}

/** A 64-bit address as the boot page tables map it, or undefined. */
function mapped(address: bigint): bigint | undefined {
  if (address < BigInt(FOUR_GIB)) return address;
  const alias = HIGH_ALIASES.find((a) => address >= a.base && address < a.base + BigInt(a.size));
  return alias && address - alias.base;
}

function startLong(image: ImageFile, context: LoadContext, elf: ElfFile, placement: Placement): EntryState {
  for (const s of elf.segments) {
    if (mapped(s.virtual) !== BigInt(s.physical)) {
      reject(
        image,
        `ELF segment ${s.index} is linked at ${hex(s.virtual)} and loaded at ${hex(s.physical)}, which the boot page tables do not map`,
        "link it at its physical address, or that plus 0xffffffff80000000 or 0xffff800000000000, or give it a multiboot header",
      );
    }
  }
  const { memory } = context;
  const s: BootSelectors = MULTIBOOT_SELECTORS;
  const cr3 = placement.below(BOOT_AREA_END, IDENTITY_TABLES_SIZE, 4096, "page tables");
  writeIdentityTables(memory, cr3);
  const gdt = bootGdt(s, true);
  const gdtBase = placement.below(BOOT_AREA_END, gdt.length, 16, "the GDT");
  memory.write(gdtBase, gdt);
  const stack = placement.below(BOOT_AREA_END, STACK_SIZE, 16, "a stack");
  return longModeEntry({
    how: `64-bit mode at ${hex(elf.entry)}`,
    entry: elf.entry,
    // As behind a CALL: 8 modulo 16 (System V ABI 3.2.2).
    gpr: { [Gpr.RSP]: BigInt(stack + STACK_SIZE - 8), [Gpr.RDI]: BigInt(context.rsdp) },
    selectors: s,
    gdtBase,
    cr3,
  });
}

function startProtected(context: LoadContext, entry: number, placement: Placement): EntryState {
  const s: BootSelectors = MULTIBOOT_SELECTORS;
  const gdt = bootGdt(s, false);
  const gdtBase = placement.below(BOOT_AREA_END, gdt.length, 16, "the GDT");
  context.memory.write(gdtBase, gdt);
  const stack = placement.below(BOOT_AREA_END, STACK_SIZE, 16, "a stack");
  return protectedModeEntry({
    how: `32-bit protected mode at ${hex(entry)}`,
    entry,
    gpr: { [Gpr.RSP]: BigInt(stack + STACK_SIZE - 4) },
    selectors: s,
    gdtBase,
  });
}
