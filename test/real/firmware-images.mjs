// Firmware and what it boots, from Debian's packages: SeaBIOS, OVMF, iPXE, GRUB, Xen. Fetched by package name, kept in the
// cache outside the checkout.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { debianPackage, guestImage } from "../../scripts/lib/debian.mjs";
import { keep } from "./images.mjs";

const SECTOR = 512;

/** @typedef {{ name: string, bytes: Uint8Array }} File */

/** @returns {Promise<{ bios: string, vga: string }>} SeaBIOS for QEMU's PC, and its video BIOS for the standard VGA */
export async function seabios() {
  const folder = join(await debianPackage("seabios"), "usr/share/seabios");
  return { bios: join(folder, "bios-256k.bin"), vga: join(folder, "vgabios-stdvga.bin") };
}

/** @returns {Promise<{ code: string, variables: string }>} the two flash chips of OVMF */
export async function ovmf() {
  const folder = join(await debianPackage("ovmf"), "usr/share/OVMF");
  return { code: join(folder, "OVMF_CODE_4M.fd"), variables: join(folder, "OVMF_VARS_4M.fd") };
}

/** @returns {Promise<string>} a CD-ROM image that starts iPXE by ISOLINUX */
export const ipxe = () => guestImage("ipxe");

/** @returns {Promise<string>} GRUB's rescue CD-ROM */
export const grub = async () =>
  join(await debianPackage("grub-rescue-pc"), "usr/lib/grub-rescue/grub-rescue-cdrom.iso");

/** @returns {Promise<string>} the Xen hypervisor, a multiboot ELF file */
export async function xen() {
  const boot = join(await debianPackage("xen-hypervisor-4.17-amd64"), "boot");
  const file = readdirSync(boot).find((name) => /^xen-[\d.]+-amd64\.gz$/.test(name));
  if (!file) throw new Error("the package has no boot/xen-*-amd64.gz");
  return keep("xen", "elf", gunzipSync(readFileSync(join(boot, file))));
}

/**
 * A disk image that GRUB can read files from: a tar archive (POSIX ustar), which it takes for a file system.
 *
 * @param {readonly File[]} files
 */
export function tarDisk(files) {
  const parts = files.flatMap(({ name, bytes }) => {
    const padding = Buffer.alloc(-bytes.length & (SECTOR - 1));
    return [tarHeader(name, bytes.length), Buffer.from(bytes), padding];
  });
  return keep("disk", "img", Buffer.concat([...parts, Buffer.alloc(64 * SECTOR)]));
}

/** @param {string} name @param {number} size */
function tarHeader(name, size) {
  const header = Buffer.alloc(SECTOR);
  /** @type {(at: number, text: string) => void} */
  const put = (at, text) => {
    header.write(text, at, "latin1");
  };
  put(0, name);
  put(100, "0000644\0");
  put(108, "0000000\0");
  put(116, "0000000\0");
  put(124, `${size.toString(8).padStart(11, "0")}\0`);
  put(136, "00000000000\0");
  put(148, " ".repeat(8));
  put(156, "0");
  put(257, "ustar\x0000");
  const sum = header.reduce((a, b) => a + b, 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return header;
}
