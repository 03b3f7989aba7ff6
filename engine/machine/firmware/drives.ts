/** Which drives firmware finds on the IDE channels. */

import { type DriveImage, type MachineConfig, MachineError } from "../config";
import { isBzImage, isFirmware } from "../loaders/detect";

const PLACES = 4;
/** The first volume descriptor of an ISO 9660 file system says so (ECMA-119 8.1.2). */
const ISO_AT = 32769;
const ISO = [0x43, 0x44, 0x30, 0x30, 0x31];

const isCdrom = (bytes: Uint8Array): boolean => ISO.every((byte, i) => bytes[ISO_AT + i] === byte);

/**
 * Master and slave of the first channel, then of the second. Disks come on the first, CD-ROMs on the second as long as there
 * is room. With firmware configured, the image itself is the first drive: what is to be booted. A Linux kernel is none: firmware
 * finds it in fw_cfg.
 * @throws MachineError for more than four
 */
export function drivesOf(config: MachineConfig): (DriveImage | null)[] {
  const { firmware, image } = config;
  const list: DriveImage[] = [];
  if (firmware && image.bytes !== firmware.bytes && !isFirmware(image.bytes) && !isBzImage(image.bytes)) {
    list.push({ ...image, kind: isCdrom(image.bytes) ? "cdrom" : "disk" });
  }
  list.push(...(config.drives ?? []));
  if (list.length > PLACES) throw new MachineError(`${list.length} IDE drives; there are places for ${PLACES}`);
  const places: (DriveImage | null)[] = new Array(PLACES).fill(null);
  for (const drive of list) {
    const order = drive.kind === "disk" ? [0, 1, 2, 3] : [2, 3, 1, 0];
    const place = order.find((i) => places[i] === null) ?? 0;
    places[place] = drive;
  }
  return places;
}
