import { describe, expect, test } from "vitest";
import { parseRunArguments } from "../../cli/arguments";
import { UsageError } from "../../cli/usage";

describe("hyperstep run: arguments", () => {
  test("an image alone runs on the bare processor with 256 MiB, one CPU, tier 0", () => {
    expect(parseRunArguments(["guest.elf"])).toMatchObject({
      image: "guest.elf",
      accel: "none",
      memory: 256 * 1024 * 1024,
      smp: 1,
      append: "",
      tier: 0,
      maxInstructions: Number.POSITIVE_INFINITY,
      timeout: Number.POSITIVE_INFINITY,
      traceExits: false,
    });
  });

  test("every option is read", () => {
    const args =
      "--accel vmx --memory 1G --smp 4 --append console=ttyS0 --initrd i --load-address 0x7c00 --cpu c --kvm ept=0 " +
      "--kvm eptad=n --max-instructions 1_000 --timeout 1.5 --trace exits --tier 1 --stats s.json image";
    expect(parseRunArguments([...args.split(" "), "--module", "f with words"])).toEqual({
      image: "image",
      accel: "vmx",
      memory: 1024 ** 3,
      smp: 4,
      append: "console=ttyS0",
      initrd: "i",
      modules: [{ file: "f", argument: "with words" }],
      loadAddress: 0x7c00,
      cpu: "c",
      kvm: { ept: false, eptad: false },
      tier: 1,
      maxInstructions: 1000,
      timeout: 1.5,
      traceExits: true,
      stats: "s.json",
    });
  });

  test("a size without unit is in MiB, as QEMU's", () => {
    expect(parseRunArguments(["--memory", "64", "x"]).memory).toBe(64 * 1024 * 1024);
    expect(parseRunArguments(["--memory", "640k", "x"]).memory).toBe(640 * 1024);
  });

  test.each<[string[], RegExp]>([
    [[], /run needs an image/],
    [["a", "b"], /one image, got 2/],
    [["--accel", "tcg", "x"], /--accel tcg: use none or vmx/],
    [["--accel", "svm", "x"], /not there yet/],
    [["--memory", "lots", "x"], /--memory lots: not a size/],
    [["--memory", "-5M", "x"], /memory/],
    [["--smp", "0", "x"], /--smp 0: at least 1/],
    [["--tier", "2", "x"], /--tier 2/],
    [["--timeout", "0", "x"], /--timeout 0/],
    [["--timeout", "soon", "x"], /--timeout soon/],
    [["--trace", "all", "x"], /--trace all/],
    [["--load-address", "here", "x"], /--load-address here: not a number/],
    [["--kvm", "ept", "x"], /NAME=VALUE/],
    [["--kvm", "nonsense=1", "x"], /nonsense/],
    [["--bogus", "x"], /bogus/],
    [["--smp"], /smp/],
  ])("%j is one clear line", (args, message) => {
    expect(() => parseRunArguments(args)).toThrow(UsageError);
    expect(() => parseRunArguments(args)).toThrow(message);
    try {
      parseRunArguments(args);
    } catch (error) {
      expect((error as Error).message).not.toContain("\n");
    }
  });
});
