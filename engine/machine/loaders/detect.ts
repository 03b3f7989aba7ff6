/**
 * Tells what kind of image a file is by its first bytes (the first 8 KiB are enough, but for firmware, which shows at its
 * end). Pure: the extension asks it too.
 */

/** "flat" is everything that does not say itself where it goes; a boot sector is flat with a known address. */
export type ImageKind = "elf" | "linux" | "multiboot" | "boot-sector" | "firmware" | "flat";

const LINUX_MAGIC_AT = 0x202;
/** "HdrS" */
const LINUX_MAGIC = 0x53726448;
const MULTIBOOT_MAGIC = 0x1badb002;
/** The header lies in the first 8192 bytes, on a 4-byte boundary (multiboot 0.6.96, 3.1.1). */
const MULTIBOOT_SEARCH = 8192;
/** Multiboot header flag: the header has the addresses to load at. */
const HAS_ADDRESSES = 1 << 16;
const SECTOR = 512;

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export const isElf = (bytes: Uint8Array): boolean =>
  bytes.length >= 4 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;

/** A Linux kernel: the set-up header's magic. */
export const isBzImage = (bytes: Uint8Array): boolean =>
  bytes.length >= LINUX_MAGIC_AT + 4 && viewOf(bytes).getUint32(LINUX_MAGIC_AT, true) === LINUX_MAGIC;

/** A boot sector: 512 bytes (or a disk image of whole sectors) whose first sector ends in 0x55 0xaa. */
const isBootSector = (bytes: Uint8Array): boolean =>
  bytes.length >= SECTOR && bytes[SECTOR - 2] === 0x55 && bytes[SECTOR - 1] === 0xaa;

export interface MultibootHeader {
  /** Offset in the file. */
  readonly offset: number;
  readonly flags: number;
}

/** The first multiboot header with a good checksum. */
export function findMultibootHeader(bytes: Uint8Array): MultibootHeader | undefined {
  const view = viewOf(bytes);
  const end = Math.min(bytes.length, MULTIBOOT_SEARCH);
  for (let offset = 0; offset + 12 <= end; offset += 4) {
    if (view.getUint32(offset, true) !== MULTIBOOT_MAGIC) continue;
    const flags = view.getUint32(offset + 4, true);
    if (((MULTIBOOT_MAGIC + flags + view.getUint32(offset + 8, true)) & 0xffffffff) === 0) return { offset, flags };
  }
  return undefined;
}

const FIRMWARE_UNIT = 4096;
const LEAST_FIRMWARE = 65536;
const MOST_FIRMWARE = 16 * 1024 * 1024;
const RESET_VECTOR_SIZE = 16;
/** JMP far, near, short. */
const JUMPS = [0xea, 0xe9, 0xeb];
/** What firmware does before it jumps: NOP, CLI, CLD, a two-byte instruction (WBINVD, MOV from CR0). */
const BEFORE_JUMP = [0x90, 0xfa, 0xfc, 0x0f];

/** A ROM image: whole pages, and at its end a reset vector, 16 bytes that jump away at once. */
export function isFirmware(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length < LEAST_FIRMWARE || length > MOST_FIRMWARE || length % FIRMWARE_UNIT !== 0) return false;
  const vector = bytes.subarray(length - RESET_VECTOR_SIZE);
  if (JUMPS.includes(vector[0])) return true;
  return BEFORE_JUMP.includes(vector[0]) && vector.some((byte) => JUMPS.includes(byte));
}

export function detectImage(bytes: Uint8Array): ImageKind {
  if (isElf(bytes)) return "elf";
  if (isBzImage(bytes)) return "linux";
  const header = findMultibootHeader(bytes);
  if (header && header.flags & HAS_ADDRESSES) return "multiboot";
  if (isBootSector(bytes)) return "boot-sector";
  return isFirmware(bytes) ? "firmware" : "flat";
}
