/** System.map: a Linux kernel's symbols as nm prints them, "ffffffff81000000 T _text", one a line. */
import type { ElfSymbol } from "./elf";

const LINE = /^([0-9a-f]{8,16}) ([A-Za-z?]) (\S+)/;
const PER_CPU_END = 0xffff_8000_0000_0000n;

/** Whether a file reads like a System.map. */
export function isSystemMap(bytes: Uint8Array): boolean {
  const first = new TextDecoder().decode(bytes.subarray(0, 200)).split("\n", 1)[0];
  return LINE.test(first);
}

const kindOf = (type: string, address: bigint): ElfSymbol["kind"] => {
  if (address < PER_CPU_END || type === "A" || type === "a") return "constant";
  return /[tTwW]/.test(type) ? "function" : "object";
};

/**
 * Sizes are not told; a symbol reaches to the next higher address.
 * @returns `stub`: what a distribution's placeholder says of where the real file is
 */
export function readSystemMap(bytes: Uint8Array): { symbols: ElfSymbol[]; stub?: string } {
  const text = new TextDecoder().decode(bytes);
  const rows = text.split("\n").flatMap((line) => {
    const match = LINE.exec(line);
    return match ? [{ address: BigInt(`0x${match[1]}`), type: match[2], name: match[3] }] : [];
  });
  if (rows.length < 2) {
    const [, , words = ""] = /^([0-9a-f]+ \S )?(.*)/.exec(text.split("\n", 1)[0]) ?? [];
    return { symbols: [], stub: `it is a placeholder that says "${words}".` };
  }
  const sorted = [...rows].sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
  const symbols: ElfSymbol[] = [];
  let next = sorted[sorted.length - 1].address;
  let size = 0n;
  for (const { address, type, name } of sorted.reverse()) {
    if (address !== next) size = next - address;
    next = address;
    const binding = type === type.toUpperCase() ? "global" : "local";
    symbols.push({ name, address, size, kind: kindOf(type, address), binding });
  }
  return { symbols: symbols.reverse() };
}
