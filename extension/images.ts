/** Whether a file can be run, from its first bytes, and the launch configuration that fits. */
import { detectImage } from "../engine/machine/loaders/detect";

export type ImageKind = ReturnType<typeof detectImage>;

export interface FoundImage {
  readonly kind: ImageKind;
  /** For the user, e.g. "Linux kernel (bzImage)". */
  readonly description: string;
}

const DESCRIPTIONS: Readonly<Record<ImageKind, string>> = {
  elf: "ELF image",
  linux: "Linux kernel (bzImage)",
  multiboot: "image with a multiboot header",
  "boot-sector": "boot sector",
  firmware: "firmware image",
  flat: "flat binary",
};

const EM_386 = 3;
const EM_X86_64 = 62;
const ET_EXEC = 2;
const ET_DYN = 3;
const SECTOR = 512;

/** An ELF file this machine can run: no object file, no other machine's program. */
function isExecutable(head: Uint8Array): boolean {
  if (head.length < 20) return false;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const type = view.getUint16(16, true);
  const machine = view.getUint16(18, true);
  return (machine === EM_386 || machine === EM_X86_64) && (type === ET_EXEC || type === ET_DYN);
}

/**
 * @param head the file's first bytes; 64 KiB are enough
 * @param size of the whole file
 * @returns undefined for what nobody can tell to be an image: a flat binary too
 */
export function imageIn(head: Uint8Array, size: number): FoundImage | undefined {
  const kind = detectImage(head);
  if (kind === "flat" || (kind === "elf" && !isExecutable(head))) return undefined;
  // Disk images begin with such a sector too.
  if (kind === "boot-sector" && size !== SECTOR) return undefined;
  return { kind, description: DESCRIPTIONS[kind] };
}

/** What the user chose although it looks like nothing known. */
export const flatImage: FoundImage = { kind: "flat", description: DESCRIPTIONS.flat };

/**
 * The initial RAM disk that goes with a kernel, of the files beside it: that of the same version, else the only one.
 *
 * @param kernel the kernel's file name, such as "vmlinuz-6.1.0-13-amd64"
 */
export function initrdFor(kernel: string, files: readonly string[]): string | undefined {
  const found = files.filter((file) => /^(initrd|initramfs)([.-]|$)/.test(file));
  const version = /^(?:vmlinuz|bzImage)-(.+)$/.exec(kernel)?.[1];
  return (
    found.find((file) => version !== undefined && file.includes(version)) ?? (found.length === 1 ? found[0] : undefined)
  );
}

/** Attributes beside type, name and program. */
export function configurationFor({ kind }: FoundImage): Readonly<Record<string, unknown>> {
  if (kind === "linux") return { accel: "vmx", memory: "512M", append: "console=ttyS0", tier: 1 };
  if (kind === "boot-sector") return { accel: "none", stopOnEntry: true };
  if (kind === "flat") return { accel: "none", loadAddress: "0x100000", stopOnEntry: true };
  return { accel: "vmx" };
}
