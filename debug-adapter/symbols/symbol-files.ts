/** Symbols, source lines and unwind tables of the files a session names: ELF files, and the System.map of a kernel. */
import type { EngineSymbol, FrameTable } from "../../engine/debug/api";
import type { AdapterHost } from "../host";
import type { LaunchConfiguration, SymbolFile } from "../launch";
import { lineSections, readLines } from "./dwarf-line";
import { type ElfFile, type ElfSymbol, readElf } from "./elf";
import { LineTable } from "./line-table";
import { SymbolTable } from "./symbol-table";
import { isSystemMap, readSystemMap } from "./system-map";

/** Symbols of a kernel as its file has them; they move with the kernel once it is found in the guest. */
export interface KernelFile {
  readonly path: string;
  readonly symbols: readonly ElfSymbol[];
}

export interface SessionSymbols {
  readonly table: SymbolTable;
  readonly lines: LineTable;
  readonly frames: readonly FrameTable[];
  readonly kernel: readonly KernelFile[];
  readonly warnings: readonly string[];
}

/** Where the kernel's text is linked: the last GiB but one of the address space. */
const KERNEL_MAP = 0xffff_ffff_8000_0000n;

export const isElf = (bytes: Uint8Array): boolean =>
  bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;

/**
 * A Linux kernel image: "HdrS" and a version text (Documentation/arch/x86/boot.rst, kernel_version). Other programs in this
 * form, memory testers for instance, have none, or not one like "6.1.0-13-amd64 (builder@host) #1 ...".
 */
export function isLinuxImage(bytes: Uint8Array): boolean {
  const text = (from: number, length: number): string => String.fromCharCode(...bytes.subarray(from, from + length));
  if (bytes.length < 0x210 || text(0x202, 4) !== "HdrS") return false;
  const version = bytes[0x20e] | (bytes[0x20f] << 8);
  return version !== 0 && /^[0-9]+\.[0-9]+.*#/.test(text(version + 0x200, 200));
}

/** Call frame information of a file: .eh_frame, and .debug_frame for what that leaves out. */
export function frameTables(bytes: Uint8Array, elf: ElfFile, slide: bigint): FrameTable[] {
  const kinds = { ".eh_frame": "eh", ".debug_frame": "debug" } as const;
  return elf.sections.flatMap((section): FrameTable[] => {
    const kind = kinds[section.name as keyof typeof kinds];
    // SHT_NOBITS: the section was stripped into another file.
    if (!kind || section.type === 8 || section.size === 0) return [];
    return [
      {
        kind,
        bytes: bytes.slice(section.offset, section.offset + section.size),
        address: section.address + slide,
        slide,
        pointer: elf.bits === 64 ? 8 : 4,
      },
    ];
  });
}

export const engineSymbols = (symbols: readonly EngineSymbol[]): EngineSymbol[] =>
  symbols.map(({ name, address, size, kind }) => ({ name, address, size, kind }));

const problem = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/**
 * Reads the program's own symbols (when it is an ELF file) and those of the files the configuration names.
 * @throws Error when a named file cannot be read; a program without usable symbols only warns
 */
export async function readSymbols(
  configuration: LaunchConfiguration,
  program: Uint8Array,
  host: AdapterHost,
): Promise<SessionSymbols> {
  const warnings: string[] = [];
  const table = new SymbolTable();
  const lines = new LineTable();
  const frames: FrameTable[] = [];
  const kernel: KernelFile[] = [];
  const moving = isLinuxImage(program);
  const add = (path: string, bytes: Uint8Array, given: bigint | undefined): void => {
    if (isSystemMap(bytes)) {
      const { symbols, stub } = readSystemMap(bytes);
      if (stub) warnings.push(`${path} holds no symbols: ${stub} The kernel's own table is used instead.`);
      else if (given === undefined) kernel.push({ path, symbols });
      else table.add(path, symbols, given);
      return;
    }
    const elf = readElf(bytes);
    const isKernel = elf.symbols.some((s) => s.name === "_text" && s.address >= KERNEL_MAP);
    if (moving && isKernel && given === undefined) {
      kernel.push({ path, symbols: elf.symbols });
      return;
    }
    const slide = given ?? 0n;
    table.add(path, elf.symbols, slide);
    frames.push(...frameTables(bytes, elf, slide));
    const sections = lineSections(bytes, elf.sections);
    if (!sections) return;
    try {
      lines.add(path, readLines(sections, elf.bits / 8), slide);
    } catch (error) {
      warnings.push(`No source lines from ${path}: ${problem(error)}.`);
    }
  };
  if (isElf(program)) {
    try {
      add(configuration.program, program, 0n);
    } catch (error) {
      warnings.push(`No symbols from ${configuration.program}: ${problem(error)}.`);
    }
  }
  for (const file of configuration.symbols) {
    const bytes = await read(file, host);
    try {
      add(file.path, bytes, file.slide);
    } catch (error) {
      throw new Error(
        `launch attribute "symbols": ${file.path}: ${problem(error)}; give an ELF file or a kernel's System.map`,
      );
    }
  }
  return { table, lines, frames, kernel, warnings };
}

async function read({ path }: SymbolFile, host: AdapterHost): Promise<Uint8Array> {
  try {
    return await host.readFile(path);
  } catch (error) {
    throw new Error(`launch attribute "symbols": ${problem(error)}`);
  }
}
