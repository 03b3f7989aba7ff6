import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import { createMachine } from "../../engine/machine/create";
import { grub, ipxe, ovmf, seabios, tarDisk, xen } from "./firmware-images.mjs";
import { debianKernel, INIT_LINE, initramfs } from "./images.mjs";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
/** A run that waits in vain is ended by then. */
const SECONDS = 280;

const file = (path: string, name = path) => ({ name, bytes: new Uint8Array(readFileSync(path)) });

/** A guest at its serial port: waits for what it says, types. */
class Guest {
  output = "";
  errors = "";
  status: number | null = null;
  private readonly child: ChildProcess;
  private seen = 0;
  private changed = (): void => {};

  constructor(...args: readonly string[]) {
    const command = [join(root, "dist", "cli.js"), "run", "--tier", "1", "--timeout", String(SECONDS), ...args];
    this.child = spawn(process.execPath, command);
    this.child.stdout?.setEncoding("latin1").on("data", (text: string) => {
      this.output += text;
      this.changed();
    });
    this.child.stderr?.setEncoding("latin1").on("data", (text: string) => {
      this.errors += text;
    });
    this.child.on("close", (status) => {
      this.status = status ?? -1;
      this.changed();
    });
  }

  /** Output without what places and colours it; a sequence that has not come completely is left for later. */
  private static plain(text: string): string {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with a control character
    return text.replace(/\u001b\[[?0-9;]*[@-~]|\u001bc|\u001b(\[[?0-9;]*)?$|\r/g, "");
  }

  /** Resolves when the guest has said it behind what was waited for before. @throws Error when it ends without */
  async says(words: string | RegExp): Promise<string> {
    for (;;) {
      const text = Guest.plain(this.output);
      const rest = text.slice(this.seen);
      const at = typeof words === "string" ? rest.indexOf(words) : rest.search(words);
      if (at >= 0) {
        const [found] = typeof words === "string" ? [words] : (words.exec(rest) ?? [""]);
        this.seen += at + found.length;
        return text.slice(0, this.seen);
      }
      if (this.status !== null) {
        throw new Error(`it ended with ${this.status} before it said ${words}:\n${rest}\n${this.errors.slice(-2000)}`);
      }
      await new Promise<void>((resolve) => {
        this.changed = resolve;
      });
    }
  }

  async ends(): Promise<number> {
    while (this.status === null) {
      await new Promise<void>((resolve) => {
        this.changed = resolve;
      });
    }
    return this.status;
  }

  type(text: string): void {
    this.child.stdin?.write(text);
  }

  stop(): void {
    this.child.kill();
  }
}

let bios: string[];
beforeAll(async () => {
  const { bios: firmware, vga } = await seabios();
  bios = ["--firmware", firmware, "--video-bios", vga, "--memory", "128M"];
});

async function talk(args: readonly string[], talking: (guest: Guest) => Promise<void>): Promise<void> {
  const guest = new Guest(...args);
  try {
    await talking(guest);
  } finally {
    guest.stop();
  }
}

for (const accel of ["none", "vmx"] as const) {
  describe(`firmware from Debian, accel ${accel}`, () => {
    test("SeaBIOS says who it is, on the serial port and on its debug port, and finds nothing to boot", async () => {
      await talk([...bios, "--accel", accel], async (guest) => {
        await guest.says("SeaBIOS (version ");
        await guest.says("No bootable device.");
        expect(guest.errors).toContain("SeaBIOS (version ");
        expect(guest.errors).toMatch(/PCI: init bdf=00:02.0 id=1234:1111/);
        expect(guest.errors).toContain("ACPI: parse DSDT");
      });
    });

    test("SeaBIOS shows the same on the text screen", async () => {
      const { bios: firmware, vga } = await seabios();
      const machine = createMachine(
        {
          ...{ accel, memory: 64 << 20, smp: 1, cpu: DEFAULT_MODEL, append: "", tier: 0 },
          ...{ image: file(firmware), videoBios: file(vga) },
        },
        { trace: { armed: 0, hit: () => {} }, serialOutput: () => {} },
      );
      machine.run(40_000_000);
      const cells = machine.readMemory("gpa", 0, 0xb8000n, 80 * 25 * 2);
      const screen = String.fromCharCode(...cells.filter((_, i) => i % 2 === 0));
      expect(screen).toContain("SeaBIOS (version ");
      expect(screen).toContain("No bootable device.");
    });

    test("SeaBIOS boots a CD-ROM: ISOLINUX starts iPXE, which says who it is", async () => {
      await talk([...bios, "--accel", accel, await ipxe()], async (guest) => {
        await guest.says("Booting from DVD/CD...");
        await guest.says("ISOLINUX");
        await guest.says("iPXE initialising devices...");
        await guest.says(/iPXE \d\S+ -- Open Source Network Boot Firmware/);
      });
    });

    test("OVMF gets to the UEFI shell, which takes a command", async () => {
      const { code, variables } = await ovmf();
      await talk(["--accel", accel, "--memory", "256M", "--firmware-vars", variables, code], async (guest) => {
        await guest.says("UEFI Interactive Shell");
        await guest.says("to skip startup.nsh");
        guest.type("\u001b");
        await guest.says("Shell> ");
        guest.type("echo 6 times 7\r");
        await guest.says(/echo 6 times 7\s+6 times 7/);
      });
    });
  });
}

describe("SeaBIOS boots the first hard disk's master boot record", () => {
  // The CD-ROM image is a disk image as well.
  test.each(["--ide-disk", "--disk"])("of a drive given by %s: GRUB comes to its menu", async (option) => {
    const [, firmware, ...rest] = bios;
    await talk([...rest, option, await grub(), firmware], async (guest) => {
      await guest.says("Booting from Hard Disk...");
      await guest.says("GRUB loading.");
      await guest.says("GNU GRUB");
    });
  });
});

describe("GRUB from its rescue CD-ROM", () => {
  test("shows its prompt, reads a disk, and boots a multiboot guest from it", async () => {
    const { bios: firmware, vga } = await seabios();
    const disk = await tarDisk([file(join(root, "samples", "hello-guest", "hello.elf"), "hello.elf")]);
    let output = "";
    const machine = createMachine(
      {
        ...{ accel: "none", memory: 128 << 20, smp: 1, cpu: DEFAULT_MODEL, append: "", tier: 1 },
        ...{ image: file(await grub()), firmware: file(firmware), videoBios: file(vga) },
        drives: [{ ...file(disk), kind: "disk" }],
      },
      {
        trace: { armed: 0, hit: () => {} },
        serialOutput: (_port, bytes) => {
          output += String.fromCharCode(...bytes);
        },
      },
    );
    // The BIOS's key buffer has room for 15.
    const talk = [
      ["automatically in", "c"],
      ["grub> ", "multiboot "],
      ["multiboot ", "(hd0)/"],
      ["(hd0)/", "hello.elf\r"],
      ["grub> ", "boot\r"],
    ] as const;
    let seen = 0;
    for (const [words, keys] of talk) {
      for (let n = 0; n < 400 && !output.includes(words, seen); n++) machine.run(1_000_000);
      expect(output.slice(seen)).toContain(words);
      seen = output.length;
      machine.serialInput(new TextEncoder().encode(keys));
    }
    for (let n = 0; n < 400 && !machine.ending; n++) machine.run(1_000_000);
    expect(output).toContain("Hello from a guest of Hyperstep.");
    expect(machine.ending).toEqual({ kind: "debug-exit", code: 0 });
  });
});

describe("OVMF with a Linux kernel in fw_cfg", () => {
  test("starts Debian's kernel by its EFI stub: to /init, then power-off", async () => {
    const { code, variables } = await ovmf();
    const { vmlinuz } = await debianKernel("cloud");
    const kernel = ["--append", "console=ttyS0", "--initrd", await initramfs(), vmlinuz];
    await talk(["--memory", "512M", "--firmware", code, "--firmware-vars", variables, ...kernel], async (guest) => {
      await guest.says("efi: EFI v2.");
      await guest.says(INIT_LINE);
      guest.type("poweroff -f\r");
      await guest.says("reboot: Power down");
      expect(await guest.ends()).toBe(0);
    });
  });
});

describe("Xen by the multiboot protocol", () => {
  const append = "no-real-mode console=com1 com1=115200,8n1 loglvl=all";

  for (const accel of ["none", "vmx"] as const) {
    test(`accel ${accel}: its own boot messages, then it builds dom0 from Debian's kernel`, async () => {
      const { vmlinuz } = await debianKernel("cloud");
      const args = ["--accel", accel, "--memory", "512M", "--append", append, "--initrd", vmlinuz, await xen()];
      await talk(args, async (guest) => {
        await guest.says("(XEN) Xen version 4.");
        await guest.says("(XEN) Using scheduler:");
        await guest.says("(XEN) Brought up 1 CPUs");
        await guest.says("(XEN) *** Building a PV Dom0 ***");
        await guest.says("(XEN) Freed");
      });
    });
  }
});
