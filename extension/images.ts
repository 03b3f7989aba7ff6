/** What a file is, from its first bytes, and the launch configuration that fits. */

export type ImageKind = "elf" | "multiboot" | "linux" | "boot-sector" | "flat";

export interface FoundImage {
  readonly kind: ImageKind;
  /** For the user, e.g. "Linux kernel (bzImage)". */
  readonly description: string;
}

const EM_386 = 3;
const EM_X86_64 = 62;
const ET_EXEC = 2;
const ET_DYN = 3;
const MULTIBOOT_MAGIC = 0x1badb002;
const MULTIBOOT_SEARCH = 8192;
const SECTOR = 512;

/**
 * @param head the file's first bytes; 64 KiB are enough
 * @param size of the whole file
 * @returns undefined for what is no image, or only looks like one (an object file, another machine's program)
 */
export function imageIn(head: Uint8Array, size: number): FoundImage | undefined {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  if (head.length >= 20 && view.getUint32(0, false) === 0x7f454c46) {
    const type = view.getUint16(16, true);
    const machine = view.getUint16(18, true);
    if ((machine !== EM_386 && machine !== EM_X86_64) || (type !== ET_EXEC && type !== ET_DYN)) return undefined;
    if (hasMultiboot(view)) return { kind: "multiboot", description: "ELF image with a multiboot header" };
    return { kind: "elf", description: "ELF image" };
  }
  if (head.length >= 0x206 && view.getUint16(0x1fe, true) === 0xaa55) {
    if (view.getUint32(0x202, false) === 0x48647253) return { kind: "linux", description: "Linux kernel (bzImage)" };
  }
  if (hasMultiboot(view)) return { kind: "multiboot", description: "image with a multiboot header" };
  if (size === SECTOR && head.length >= SECTOR && view.getUint16(0x1fe, true) === 0xaa55)
    return { kind: "boot-sector", description: "boot sector" };
  return undefined;
}

/** Multiboot 0.6.96, 3.1: 4-byte aligned within the first 8192 bytes; magic, flags and checksum add up to 0. */
function hasMultiboot(view: DataView): boolean {
  const end = Math.min(view.byteLength, MULTIBOOT_SEARCH) - 12;
  for (let at = 0; at <= end; at += 4) {
    if (view.getUint32(at, true) !== MULTIBOOT_MAGIC) continue;
    const sum = MULTIBOOT_MAGIC + view.getUint32(at + 4, true) + view.getUint32(at + 8, true);
    if (sum % 2 ** 32 === 0) return true;
  }
  return false;
}

/** Attributes beside type, name and program. */
export function configurationFor({ kind }: FoundImage): Readonly<Record<string, unknown>> {
  if (kind === "linux") return { accel: "vmx", memory: "512M", append: "console=ttyS0" };
  if (kind === "boot-sector") return { accel: "none", loadAddress: "0x7c00", stopOnEntry: true };
  if (kind === "flat") return { accel: "none", loadAddress: "0x100000", stopOnEntry: true };
  return { accel: "vmx" };
}
