// Archives in cpio's "newc" form, as the kernel's initramfs takes them (Documentation/driver-api/early-userspace/
// buffer-format.rst).

const Type = { directory: 0o040000, file: 0o100000, link: 0o120000, characters: 0o020000, blocks: 0o060000 };

/**
 * @typedef {{ name: string, directory: true }
 *   | { name: string, bytes: Uint8Array | string, mode?: number }
 *   | { name: string, link: string }
 *   | { name: string, device: "characters" | "blocks", major: number, minor: number }} CpioEntry
 *   `name` has no leading slash; a file's mode is 0644 unless given, everything belongs to root
 */

/** @param {number} n */
const padding = (n) => new Uint8Array(-n & 3);

/** @param {readonly CpioEntry[]} entries parents before their children @returns {Uint8Array} */
export function cpio(entries) {
  /** @type {Uint8Array[]} */
  const parts = [];
  let inode = 0;
  /** @type {(name: string, mode: number, data: Uint8Array, major?: number, minor?: number) => void} */
  const add = (name, mode, data, major = 0, minor = 0) => {
    const bytes = Buffer.from(`${name}\0`);
    const isTrailer = mode === 0;
    const fields = [isTrailer ? 0 : ++inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, bytes.length, 0];
    const header = Buffer.from(`070701${fields.map((f) => f.toString(16).padStart(8, "0")).join("")}`);
    parts.push(header, bytes, padding(header.length + bytes.length), data, padding(data.length));
  };
  const none = new Uint8Array(0);
  for (const entry of entries) {
    if ("directory" in entry) add(entry.name, Type.directory | 0o755, none);
    else if ("link" in entry) add(entry.name, Type.link | 0o777, Buffer.from(entry.link));
    else if ("device" in entry) add(entry.name, Type[entry.device] | 0o600, none, entry.major, entry.minor);
    else add(entry.name, Type.file | (entry.mode ?? 0o644), Buffer.from(entry.bytes));
  }
  add("TRAILER!!!", 0, none);
  return Buffer.concat(parts);
}
