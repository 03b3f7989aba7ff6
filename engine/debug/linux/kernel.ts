/**
 * A Linux kernel as the debugger finds it in a guest: where it runs, what its symbols are.
 *
 * The moment to look is exact: the first instruction that runs in the kernel's own mapping, the last GiB but one of the
 * address space (Documentation/arch/x86/x86_64/mm.rst, "kernel text mapping"). The decompressor and the identity-mapped
 * start run below it; by then the image is unpacked, relocated, and mapped where it will stay. Nothing of the kernel's
 * proper code has run yet, so a breakpoint on any function can still be set in time.
 */
import type { Machine } from "../../machine/machine";
import type { EngineSymbol, SymbolKind } from "../symbols";
import { findKallsyms, type KernelSymbol } from "./kallsyms";

/** __START_KERNEL_map, and where the modules begin. */
export const KERNEL_MAP = { from: 0xffff_ffff_8000_0000n, to: 0xffff_ffff_c000_0000n } as const;

/** _text without KASLR: CONFIG_PHYSICAL_START is 16 MiB everywhere it is not changed by hand. */
const DEFAULT_TEXT = KERNEL_MAP.from + 0x100_0000n;
/** The kernel is mapped by pages of 2 MiB. */
const LARGE_PAGE = 1n << 21n;
/** Kernels are smaller; mappings of older ones are as large as the window. */
const MAX_IMAGE = 256n << 20n;
const MAX_BANNER = 512;

export interface KernelImage {
  /** Linear address of the first byte: _text. */
  readonly base: bigint;
  readonly bytes: Uint8Array;
}

export interface LinuxKernel {
  /** Linear address of _text. */
  readonly text: bigint;
  /** What KASLR added to every linear address. */
  readonly slide: bigint;
  /** Guest-physical address of _text. */
  readonly physical: bigint;
  /** "Linux version ..." */
  readonly banner: string;
  /** From the kernel's own table; empty when it has none. */
  readonly symbols: readonly EngineSymbol[];
}

/** A symbol of a file, with the address it was linked at. */
export type LinkedSymbol = EngineSymbol;

/** The kernel's mapping around an address inside it. */
function readImage(machine: Machine, vcpu: number, inside: bigint): KernelImage {
  const mapped = (at: bigint): boolean =>
    at >= KERNEL_MAP.from && at < KERNEL_MAP.to && machine.translate(vcpu, at) !== undefined;
  let base = inside & ~(LARGE_PAGE - 1n);
  while (mapped(base - LARGE_PAGE)) base -= LARGE_PAGE;
  let end = inside & ~(LARGE_PAGE - 1n);
  while (mapped(end) && end - base < MAX_IMAGE) end += LARGE_PAGE;
  return { base, bytes: machine.readMemory("gva", vcpu, base, Number(end - base)) };
}

const KINDS: Readonly<Record<string, SymbolKind>> = {
  ...Object.fromEntries([..."tTwW"].map((type) => [type, "function"])),
  ...Object.fromEntries([..."aA"].map((type) => [type, "constant"])),
};

/** Symbols with sizes, which the table does not tell: a symbol reaches to the next higher address. */
export function sized(symbols: readonly KernelSymbol[]): EngineSymbol[] {
  const sizes = new BigUint64Array(symbols.length);
  for (let i = symbols.length - 2; i >= 0; i--) {
    const gap = symbols[i + 1].address - symbols[i].address;
    sizes[i] = gap > 0n ? gap : sizes[i + 1];
  }
  return symbols.map(({ name, address, type }, i) => ({
    name,
    address,
    size: sizes[i],
    // Offsets of per-CPU variables are no addresses.
    kind: address < KERNEL_MAP.from ? "constant" : (KINDS[type] ?? "object"),
  }));
}

function bannerOf(image: KernelImage, symbols: readonly EngineSymbol[]): string {
  const at = symbols.find((s) => s.name === "linux_banner")?.address;
  if (at === undefined) return "";
  const from = Number(at - image.base);
  const bytes = image.bytes.subarray(from, from + MAX_BANNER);
  const end = bytes.findIndex((byte) => byte === 0 || byte === 0x0a);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
}

/**
 * @param inside a linear address of the kernel's mapping that a vCPU has reached
 * @returns undefined when nothing is mapped there
 */
export function readKernel(machine: Machine, vcpu: number, inside: bigint): LinuxKernel | undefined {
  const image = readImage(machine, vcpu, inside);
  if (image.bytes.length === 0) return undefined;
  const table = findKallsyms(image.bytes);
  const symbols = table ? sized(table.symbols) : [];
  const text = symbols.find((s) => s.name === "_text")?.address ?? image.base;
  return {
    text,
    slide: text - DEFAULT_TEXT,
    physical: machine.translate(vcpu, text) ?? 0n,
    banner: bannerOf(image, symbols),
    symbols,
  };
}

/** Symbols of a file moved to where the kernel runs: both know _text. Unchanged when the file does not. */
export function relocate(symbols: readonly LinkedSymbol[], text: bigint): EngineSymbol[] {
  const linked = symbols.find((s) => s.name === "_text")?.address;
  const slide = linked === undefined ? 0n : text - linked;
  return symbols.map((s) => (s.address >= KERNEL_MAP.from ? { ...s, address: s.address + slide } : s));
}
