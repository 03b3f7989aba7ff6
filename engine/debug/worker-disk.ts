/** Disk images as files of Node: the guest's reads become reads of the file, there and then. */
import { fstatSync, readSync } from "node:fs";
import { type DiskSource, MachineError } from "../machine/config";

/**
 * The open file `fd` as a disk; it stays open as long as the machine lives. A read beyond the end gives zeros.
 * @throws MachineError when it is no file or empty
 */
export function diskSource(fd: number): DiskSource {
  const stat = fstatSync(fd);
  if (!stat.isFile()) throw new MachineError("it is no file; use a raw disk image");
  if (stat.size === 0) throw new MachineError("it is empty; use a raw disk image");
  return {
    size: stat.size,
    read: (offset, length) => {
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const n = readSync(fd, bytes, done, length - done, offset + done);
        if (n === 0) break;
        done += n;
      }
      return bytes;
    },
  };
}
