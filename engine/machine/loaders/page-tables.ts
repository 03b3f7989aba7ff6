/** Identity page tables for images that start in 64-bit mode: 4 GiB in 2-MiB pages (SDM 3A 4.5). */
import { GiB } from "../../memory/layout";
import type { GuestMemory } from "../memory-map";

const PRESENT_WRITABLE = 3n;
const LARGE = 0x83n;
export const IDENTITY_TABLES_SIZE = 6 * 4096;
/** Where the first GiBs appear a second and third time, as kernels are linked: the last 2 GiB, and the upper half's start. */
export const HIGH_ALIASES = [
  { base: 0xffffffff80000000n, size: 2 * GiB },
  { base: 0xffff800000000000n, size: 4 * GiB },
] as const;

/** Writes the tables at `at` (IDENTITY_TABLES_SIZE bytes); CR3 is then `at`. */
export function writeIdentityTables(memory: GuestMemory, at: number): void {
  const bytes = new Uint8Array(IDENTITY_TABLES_SIZE);
  const view = new DataView(bytes.buffer);
  const pdpt = at + 4096;
  const directory = (i: number): number => at + (2 + i) * 4096;
  for (const slot of [0, 256, 511]) view.setBigUint64(slot * 8, BigInt(pdpt) | PRESENT_WRITABLE, true);
  for (let i = 0; i < 4; i++) {
    view.setBigUint64(4096 + i * 8, BigInt(directory(i)) | PRESENT_WRITABLE, true);
    for (let j = 0; j < 512; j++) {
      view.setBigUint64((2 + i) * 4096 + j * 8, (BigInt(i * 512 + j) << 21n) | LARGE, true);
    }
  }
  for (let i = 0; i < 2; i++) {
    view.setBigUint64(4096 + (510 + i) * 8, BigInt(directory(i)) | PRESENT_WRITABLE, true);
  }
  memory.write(at, bytes);
}
