import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { configurationFor, imageIn, initrdFor } from "../../extension/images";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** A file with some bytes at some places. */
function file(size: number, parts: Record<number, readonly number[]>): Uint8Array {
  const bytes = new Uint8Array(size);
  for (const [at, values] of Object.entries(parts)) bytes.set(values, Number(at));
  return bytes;
}
const kind = (bytes: Uint8Array): string | undefined => imageIn(bytes, bytes.length)?.kind;
const elf = (type: number, machine: number): Uint8Array =>
  file(64, { 0: [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1], 16: [type, 0], 18: [machine, 0] });
/** Magic, flags with the addresses' bit 16, checksum; then header, load, load-end, bss-end and entry addresses. */
const MULTIBOOT = [0x02, 0xb0, 0xad, 0x1b, 0, 0, 1, 0, 0xfe, 0x4f, 0x51, 0xe4, ...new Array(20).fill(0)];

describe("what a file is, from its first bytes", () => {
  test("the sample guest is an ELF image", () => {
    expect(kind(new Uint8Array(readFileSync(join(root, "samples/hello-guest/hello.elf"))))).toBe("elf");
  });

  test("an executable or position-independent x86 ELF file is an image; an object file or another machine's is not", () => {
    expect(kind(elf(2, 62))).toBe("elf");
    expect(kind(elf(3, 62))).toBe("elf");
    expect(kind(elf(2, 3))).toBe("elf");
    expect(kind(elf(1, 62))).toBeUndefined();
    expect(kind(elf(2, 183))).toBeUndefined();
  });

  test("a Linux kernel has 0xaa55 at 0x1fe and HdrS at 0x202 (Linux boot protocol)", () => {
    expect(kind(file(4096, { 510: [0x55, 0xaa], 514: [0x48, 0x64, 0x72, 0x53] }))).toBe("linux");
  });

  test("a multiboot image that is no ELF file has addresses in its header (Multiboot 0.6.96, 3.1.3)", () => {
    expect(kind(file(9000, { 4096: MULTIBOOT }))).toBe("multiboot");
    expect(kind(file(9000, { 4094: MULTIBOOT }))).toBeUndefined();
  });

  test("512 bytes that end in 55 aa are a boot sector", () => {
    const sector = file(512, { 510: [0x55, 0xaa] });
    expect(kind(sector)).toBe("boot-sector");
    expect(configurationFor({ kind: "boot-sector", description: "" })).toMatchObject({ accel: "none" });
    expect(kind(file(1024, { 510: [0x55, 0xaa] }))).toBeUndefined();
  });

  test("an empty file, a text and random short files are none", () => {
    for (const size of [0, 1, 3, 19, 20, 511]) expect(kind(new Uint8Array(size))).toBeUndefined();
    expect(kind(new TextEncoder().encode("#!/bin/sh\necho hello\n"))).toBeUndefined();
  });
});

describe("the initial RAM disk beside a kernel", () => {
  test("is the one of the kernel's version", () => {
    const files = ["vmlinuz-6.1.0-1-amd64", "initrd.img-6.1.0-1-amd64", "initrd.img-6.1.0-2-amd64"];
    expect(initrdFor("vmlinuz-6.1.0-2-amd64", files)).toBe("initrd.img-6.1.0-2-amd64");
  });

  test("is the only one whatever its name; of several none is guessed", () => {
    expect(initrdFor("bzImage", ["initramfs.cpio.gz", "notes.txt"])).toBe("initramfs.cpio.gz");
    expect(initrdFor("bzImage", ["initrd", "initramfs"])).toBeUndefined();
    expect(initrdFor("bzImage", ["initrdless", "my-initrd"])).toBeUndefined();
  });
});
