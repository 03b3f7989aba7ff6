/** Loads an image of any kind. */
import type { EntryState } from "../entry-state";
import { detectImage } from "./detect";
import { loadElf } from "./elf";
import { BOOT_SECTOR_ADDRESS, loadFlat } from "./flat";
import { type LoadContext, reject } from "./image";
import { loadLinux } from "./linux";
import { loadMultibootFlat } from "./multiboot";

/**
 * Puts the configuration's image into guest memory and gives the state to enter it in.
 * @throws MachineError for anything wrong with the image
 */
export function loadImage(context: LoadContext): EntryState {
  const { image, loadAddress, initrd } = context.config;
  if (image.bytes.length === 0) reject(image, "the file is empty", "name a guest image");
  const kind = detectImage(image.bytes);
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
    case "multiboot":
      return loadMultibootFlat(image, context);
    case "firmware":
      return reject(image, "this is firmware, which nobody loads", "give it as the firmware or as the only image");
  }
  if (initrd) reject(image, "a flat image takes no initrd", "leave it out, or use an ELF, multiboot or Linux image");
  if (kind === "boot-sector") return loadFlat(image, context, BOOT_SECTOR_ADDRESS);
  return reject(
    image,
    "the file is neither ELF, Linux bzImage nor multiboot",
    "if it is a flat binary, give its load address (--load-address 0x...)",
  );
}
