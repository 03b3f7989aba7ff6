import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import type { MachineConfig } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import { drivesOf } from "../../engine/machine/firmware/drives";
import { firmwareLayout } from "../../engine/machine/firmware/layout";
import { firmwareMap, type MapInputs } from "../../engine/machine/firmware/memory-controller";
import { acpiFiles } from "../../engine/machine/firmware/table-loader";
import { detectImage } from "../../engine/machine/loaders/detect";

const MIB = 1024 * 1024;
const SIZE = 65536;

/** A ROM image with `code` at its start, which the reset vector jumps to. */
function rom(...code: number[]): Uint8Array {
  const image = new Uint8Array(SIZE).fill(0xf4);
  image.set(code);
  image[0x100] = 0x52;
  image.set([0xe9, 0x0d, 0x00], SIZE - 16);
  return image;
}

const config = (bytes: Uint8Array, more: Partial<MachineConfig> = {}): MachineConfig => ({
  accel: "none",
  memory: 4 * MIB,
  smp: 1,
  cpu: DEFAULT_MODEL,
  image: { name: "rom", bytes },
  append: "",
  tier: 0,
  ...more,
});

function run(bytes: Uint8Array, more: Partial<MachineConfig>) {
  let output = "";
  const machine = createMachine(config(bytes, more), {
    trace: { armed: 0, hit: () => {} },
    serialOutput: () => {},
    debugOutput: (written) => {
      output += String.fromCharCode(...written);
    },
  });
  for (let i = 0; i < 20 && !machine.ending; i++) machine.run(1000);
  return { machine, output };
}

const out = (port: number): number[] => [0xe6, port];
/** MOV AL, [100]; OUT E9, AL */
const showByte = [0xa0, 0x00, 0x01, ...out(0xe9)];
/** MOV BYTE [100], value */
const poke = (value: number): number[] => [0xc6, 0x06, 0x00, 0x01, value];
/** MOV AL, value; OUT DX, AL */
const outDx = (value: number): number[] => [0xb0, value, 0xee];
const exit = [0xb0, 0x2a, ...out(0xf4)];

const PAM_PROGRAM = rom(
  ...[0xb0, 0x41, ...out(0xe9), 0xb8, 0x00, 0xf0, 0x8e, 0xd8],
  ...[...poke(0x55), ...showByte],
  // CONFIG_ADDRESS 80000058, then PAM0 at 0xcfd.
  ...[0x66, 0xb8, 0x58, 0x00, 0x00, 0x80, 0xba, 0xf8, 0x0c, 0x66, 0xef, 0xba, 0xfd, 0x0c, ...outDx(0x30)],
  ...[...showByte, ...poke(0x4d), ...showByte],
  ...[...outDx(0x10), ...poke(0x58), ...showByte],
  ...[...outDx(0x00), ...showByte, ...exit],
);

describe.each(["none", "vmx"] as const)("a machine with firmware, accel %s", (accel) => {
  test("starts at the reset vector; PAM0 shows ROM, RAM, or RAM that drops writes at 0xf0000 (82441FX 3.2.19)", () => {
    const { machine, output } = run(PAM_PROGRAM, { accel });
    expect(machine.ending).toEqual({ kind: "debug-exit", code: 0x2a });
    expect(output).toBe("AR\0MMR");
  });

  test("a reset starts it again at the reset vector, with RAM shadowing off and CMOS kept", () => {
    // Counts in CMOS cell 0x60; resets through 0xcf9 until it is three.
    const program = rom(
      ...[0xb0, 0x60, ...out(0x70), 0xe4, 0x71, 0xfe, 0xc0, ...out(0x71), 0x04, 0x30, ...out(0xe9), 0x3c, 0x33],
      ...[0x74, 0x07, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, ...exit],
    );
    const { machine, output } = run(program, { accel, reboot: true });
    expect(output).toBe("123");
    expect(machine.ending).toEqual({ kind: "debug-exit", code: 0x2a });
  });

  test("a snapshot in the middle has the memory map of its moment", () => {
    const { machine } = run(PAM_PROGRAM, { accel });
    const again = createMachine(config(PAM_PROGRAM, { accel }), {
      trace: { armed: 0, hit: () => {} },
      serialOutput: () => {},
    });
    again.run(16);
    const saved = again.snapshot();
    again.run(1000);
    const { hash } = { hash: again.hash() };
    again.restore(saved);
    again.run(1000);
    expect(again.hash()).toBe(hash);
    expect(again.ending).toEqual(machine.ending);
  });
});

describe("the memory map", () => {
  const layout = firmwareLayout(config(rom()));
  const inputs = (pam: number[], more: Partial<MapInputs> = {}): MapInputs => ({
    ...{ pam, codeReadable: true, variablesReadable: true, devices: [] },
    ...more,
  });
  const show = (map: ReturnType<typeof firmwareMap>): string[] =>
    map.map((r) => `${r.base.toString(16)}+${r.size.toString(16)} ${r.kind ?? "ram"}`);
  if (!layout) throw new Error("the image was not taken for firmware");

  test("after reset everything from 0xc0000 to 1 MiB is the bus's, with the end of the ROM in it", () => {
    expect(show(firmwareMap(4 * MIB, layout, inputs([0, 0, 0, 0, 0, 0, 0])))).toEqual([
      "0+a0000 ram",
      "f0000+10000 rom",
      "100000+300000 ram",
      "ffff0000+10000 rom",
    ]);
  });

  test("each nibble of the PAM registers is 16 KiB, upwards from 0xc0000; PAM0's high one is the last 64 KiB", () => {
    const map = firmwareMap(4 * MIB, layout, inputs([0x30, 0x13, 0, 0, 0, 0, 0x10]));
    expect(show(map)).toEqual([
      "0+a0000 ram",
      "c0000+4000 ram",
      "c4000+4000 rom",
      "ec000+4000 rom",
      "f0000+310000 ram",
      "ffff0000+10000 rom",
    ]);
  });

  test("with everything shadowed, RAM from 0xc0000 on is one range", () => {
    const map = firmwareMap(4 * MIB, layout, inputs([0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]));
    expect(show(map)).toEqual(["0+a0000 ram", "c0000+340000 ram", "ffff0000+10000 rom"]);
  });

  test("a flash chip that takes commands is no memory; a device's window lies over what was there", () => {
    const devices = [{ name: "window", base: 0xb8000, size: 0x8000, offset: layout.textMemory.offset }];
    const map = firmwareMap(4 * MIB, layout, inputs([0, 0, 0, 0, 0, 0, 0], { codeReadable: false, devices }));
    expect(show(map)).toEqual(["0+a0000 ram", "b8000+8000 ram", "f0000+10000 rom", "100000+300000 ram"]);
  });
});

describe("firmware images", () => {
  test("a whole number of pages that ends in a reset vector is firmware; the same without a jump there is not", () => {
    expect(detectImage(rom())).toBe("firmware");
    expect(detectImage(rom().fill(0, SIZE - 16))).toBe("flat");
    expect(detectImage(rom().subarray(1))).toBe("flat");
  });

  test("with firmware the image is the first drive: CD-ROM when it has an ISO 9660 descriptor, else disk", () => {
    const firmware = { name: "bios", bytes: rom() };
    const iso = new Uint8Array(40000);
    iso.set([0x43, 0x44, 0x30, 0x30, 0x31], 32769);
    const kinds = (bytes: Uint8Array) => drivesOf(config(bytes, { firmware })).map((drive) => drive?.kind);
    expect(kinds(new Uint8Array(1024))).toEqual(["disk", undefined, undefined, undefined]);
    expect(kinds(iso)).toEqual([undefined, undefined, "cdrom", undefined]);
    expect(drivesOf(config(rom()))).toEqual([null, null, null, null]);
  });
});

describe("the ACPI linker/loader files", () => {
  /** What a firmware makes of them: QEMU's three commands, with the blobs at the given addresses. */
  function link(files: { name: string; bytes: Uint8Array }[], at: Record<string, number>) {
    const blobs = Object.fromEntries(files.map((f) => [f.name, f.bytes.slice()]));
    const script = blobs["etc/table-loader"];
    const text = (offset: number): string => String.fromCharCode(...script.subarray(offset, script.indexOf(0, offset)));
    const view = new DataView(script.buffer);
    for (let p = 0; p < script.length; p += 128) {
      const file = blobs[text(p + 4)];
      const command = view.getUint32(p, true);
      if (command === 2) {
        const [offset, size] = [view.getUint32(p + 116, true), script[p + 120]];
        const target = new DataView(file.buffer);
        const base = at[text(p + 60)];
        if (size === 4) target.setUint32(offset, target.getUint32(offset, true) + base, true);
        else target.setBigUint64(offset, target.getBigUint64(offset, true) + BigInt(base), true);
      } else if (command === 3) {
        const [offset, start, length] = [60, 64, 68].map((o) => view.getUint32(p + o, true));
        file[offset] -= file.subarray(start, start + length).reduce((a, b) => a + b, 0);
      }
    }
    return blobs;
  }

  test("after the commands all pointers lead to tables, and every checksum is zero (ACPI 5.2)", () => {
    const base = 0x7ff0000;
    const blobs = link(acpiFiles(2, 64 * MIB), { "etc/acpi/tables": base, "etc/acpi/rsdp": 0xf5000 });
    const rsdp = new DataView(blobs["etc/acpi/rsdp"].buffer);
    const bytes = blobs["etc/acpi/tables"];
    const tables = new DataView(bytes.buffer);
    const sum = (from: Uint8Array): number => from.reduce((a, b) => a + b, 0) & 0xff;
    const name = (at: number): string => String.fromCharCode(...bytes.subarray(at, at + 4));
    const checked = (address: number): number => {
      const at = address - base;
      expect(sum(bytes.subarray(at, at + tables.getUint32(at + 4, true)))).toBe(0);
      return at;
    };
    expect(sum(blobs["etc/acpi/rsdp"].subarray(0, 20))).toBe(0);
    expect(sum(blobs["etc/acpi/rsdp"])).toBe(0);
    const xsdt = checked(Number(rsdp.getBigUint64(24, true)));
    expect([name(xsdt), name(checked(rsdp.getUint32(16, true)))]).toEqual(["XSDT", "RSDT"]);
    const entries: string[] = [];
    for (let i = 36; i < tables.getUint32(xsdt + 4, true); i += 8) {
      const at = checked(Number(tables.getBigUint64(xsdt + i, true)));
      entries.push(name(at));
      if (name(at) !== "FACP") continue;
      expect(name(checked(tables.getUint32(at + 40, true)))).toBe("DSDT");
      expect(name(tables.getUint32(at + 36, true) - base)).toBe("FACS");
    }
    expect(entries).toContain("FACP");
    expect(entries).toContain("APIC");
  });
});

describe("two vCPUs with firmware", () => {
  test("a loop that frees a lock and takes it again does not keep the other one out for ever", () => {
    // vCPU 0 copies the start-up code of vCPU 1 to 0x1000, sends INIT and SIPI, then frees and takes [500] until [502] is set.
    const other = [0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0x0f, 0xba, 0x2e, 0x00, 0x05, 0x00, 0x72, 0xf7];
    const rest = [0xc6, 0x06, 0x02, 0x05, 0x01, 0xc6, 0x06, 0x00, 0x05, 0x00, 0xf4];
    const store = [...other, ...rest].flatMap((byte, i) => [0xc6, 0x06, i, 0x10, byte]);
    // Eight instructions, so that a round number of them would find it at the same place each time.
    const loop = [
      ...[0x90, 0x90, 0x80, 0x3e, 0x02, 0x05, 0x00, 0x75, 0x10, 0xc6, 0x06, 0x00, 0x05, 0x00],
      ...[0xf0, 0x0f, 0xba, 0x2e, 0x00, 0x05, 0x00, 0x72, 0xf7, 0xeb, 0xe7],
    ];
    // The local APIC is beyond real mode's limits; x2APIC's ICR is an MSR.
    const msr = (index: number, low: number): number[] => [
      ...[0x66, 0xb9, index & 0xff, index >> 8, 0x00, 0x00, 0x66, 0x31, 0xd2, 0x66, 0xb8],
      ...[low & 0xff, (low >> 8) & 0xff, (low >> 16) & 0xff, low >>> 24, 0x0f, 0x30],
    ];
    const program = rom(
      ...[0x31, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0x05, 0x01, ...store],
      ...[...msr(0x1b, 0xfee00d00), ...msr(0x830, 0x000c4500), ...msr(0x830, 0x000c4601), ...loop, ...exit],
    );
    const machine = createMachine(config(program, { smp: 2 }), {
      trace: { armed: 0, hit: () => {} },
      serialOutput: () => {},
    });
    for (let i = 0; i < 100 && !machine.ending; i++) machine.run(10_000);
    expect(machine.ending).toEqual({ kind: "debug-exit", code: 0x2a });
  });
});
