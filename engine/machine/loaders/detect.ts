/** Tells what an image is and loads it. */
import type { EntryState } from "../entry-state";
import { isElf, loadElf } from "./elf";
import { BOOT_SECTOR_ADDRESS, isBootSector, loadFlat } from "./flat";
import { type ImageFile, type ImageKind, type LoadContext, reject } from "./image";
import { isBzImage, loadLinux } from "./linux";
import { findMultibootHeader, loadMultibootFlat } from "./multiboot";

const HAS_ADDRESSES = 1 << 16;

/** @throws MachineError when a multiboot header is there but cannot be honoured */
export function detectImage(image: ImageFile): ImageKind {
  if (isElf(image.bytes)) return "elf";
  if (isBzImage(image.bytes)) return "linux";
  const header = findMultibootHeader(image);
  if (header && header.flags & HAS_ADDRESSES) return "multiboot";
  return "flat";
}

/**
 * Puts the configuration's image into guest memory and gives the state to enter it in.
 * @throws MachineError for anything wrong with the image
 */
export function loadImage(context: LoadContext): EntryState {
  const { image, loadAddress, initrd } = context.config;
  if (image.bytes.length === 0) reject(image, "the file is empty", "name a guest image");
  const kind = detectImage(image);
  if (loadAddress !== undefined && (kind === "elf" || kind === "linux")) {
    const what = kind === "elf" ? "an ELF file" : "a Linux bzImage";
    reject(image, `${what} says itself where it goes`, "leave out the load address, which is for flat images");
  }
  if (loadAddress !== undefined) return loadFlat(image, context, loadAddress);
  switch (kind) {
    case "elf":
      return loadElf(image, context);
    case "linux":
      return loadLinux(image, context);
    case "multiboot": {
      const header = findMultibootHeader(image);
      if (header) return loadMultibootFlat(image, context, header);
    }
  }
  if (initrd) reject(image, "a flat image takes no initrd", "leave it out, or use an ELF, multiboot or Linux image");
  if (isBootSector(image.bytes)) return loadFlat(image, context, BOOT_SECTOR_ADDRESS);
  return reject(
    image,
    "the file is neither ELF, Linux bzImage nor multiboot",
    "if it is a flat binary, give its load address (--load-address 0x...)",
  );
}
