import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { DiskFile, diskArgument } from "../../cli/disks";
import { UsageError } from "../../cli/usage";

const folder = mkdtempSync(join(tmpdir(), "hyperstep-disks-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function image(name: string): string {
  const file = join(folder, name);
  writeFileSync(
    file,
    Uint8Array.from({ length: 10_000 }, (_, i) => i),
  );
  return file;
}
const change = [{ offset: 4096, bytes: Uint8Array.of(0xaa, 0xbb) }];

describe("disk images", () => {
  test("an argument is a file, perhaps with what may be done to it", () => {
    expect(diskArgument("a,b.img")).toEqual({ file: "a,b.img", write: false, readOnly: false });
    expect(diskArgument("a.img,write")).toEqual({ file: "a.img", write: true, readOnly: false });
    expect(diskArgument("a.img,readonly")).toEqual({ file: "a.img", write: false, readOnly: true });
  });

  test("they are read in place", () => {
    const disk = new DiskFile(diskArgument(image("read")));
    const { source } = disk.config;
    expect(source.size).toBe(10_000);
    expect([...source.read(300, 3)]).toEqual([44, 45, 46]);
    disk.close([]);
  });

  test("the file stays as it was unless writing was asked for", () => {
    const file = image("untouched");
    const before = readFileSync(file);
    new DiskFile(diskArgument(file)).close(change);
    expect(readFileSync(file).equals(before)).toBe(true);
  });

  test("with ,write the changes go in at the end, and nothing else", () => {
    const file = image("written");
    const expected = readFileSync(file);
    expected.set(change[0].bytes, 4096);
    new DiskFile(diskArgument(`${file},write`)).close(change);
    expect(readFileSync(file).equals(expected)).toBe(true);
  });

  test("a folder and an empty file are no disks", () => {
    expect(() => new DiskFile(diskArgument(folder))).toThrow(UsageError);
    const empty = join(folder, "empty");
    writeFileSync(empty, "");
    expect(() => new DiskFile(diskArgument(empty))).toThrow(/it is empty/);
  });
});
