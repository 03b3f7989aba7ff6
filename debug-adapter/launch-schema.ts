/**
 * Launch attributes: one schema that the adapter checks configurations by and that package.json repeats for the editor
 * (a test compares the two).
 */
import type { Schema } from "./schema";

const SIZE = "^[0-9]+([KMG]i?B?)?$";
const ADDRESS = "^(0[xX][0-9a-fA-F]+|[0-9]+)$";
const SERIAL_DEFAULT = "terminal";

export const launchSchema = {
  type: "object",
  required: ["program"],
  properties: {
    program: {
      type: "string",
      minLength: 1,
      description:
        "The image to run: an ELF file with a multiboot header, a Linux kernel (bzImage), or a flat binary (with loadAddress).",
    },
    accel: {
      type: "string",
      enum: ["none", "vmx", "svm"],
      enumDescriptions: [
        "The image runs directly on the emulated processor; use it to debug a hypervisor of your own.",
        "The image is a guest of the KVM model on Intel VMX.",
        "The image is a guest of the KVM model on AMD SVM (not there yet).",
      ],
      default: "vmx",
      description: "Who runs the guest.",
    },
    memory: {
      type: ["string", "integer"],
      pattern: SIZE,
      patternErrorMessage: 'a size such as "256M" or "1G", or a number of bytes',
      minimum: 1048576,
      default: "256M",
      description: 'Guest memory, such as "256M" or "1G", or a number of bytes.',
    },
    smp: { type: "integer", minimum: 1, maximum: 16, default: 1, description: "Number of virtual processors." },
    cpu: { type: "string", minLength: 1, description: "Processor model: skylake, epyc, core or opteron." },
    append: { type: "string", default: "", description: "Command line for a kernel." },
    initrd: { type: "string", minLength: 1, description: "Initial RAM disk for a kernel, or a multiboot module." },
    firmware: {
      type: "string",
      minLength: 1,
      description:
        "Firmware to start with (SeaBIOS, OVMF), at the reset vector; the program is then the disk or ISO 9660 image that it boots. A program that is firmware itself needs no such attribute.",
    },
    firmwareVariables: {
      type: "string",
      minLength: 1,
      description:
        "Contents of the flash chip with the firmware's variables (OVMF_VARS.fd). The file is never written.",
    },
    videoBios: {
      type: "string",
      minLength: 1,
      description: "Option ROM of a firmware machine's display adapter (vgabios-stdvga.bin).",
    },
    disks: {
      type: ["string", "array"],
      items: { type: "string", minLength: 1 },
      description:
        "Raw disk images, as virtio disks (/dev/vda ... to Linux). The files are never written: what the guest writes stays in memory.",
    },
    virtio: {
      type: "array",
      items: { type: "string", enum: ["console", "rng"] },
      description:
        "Further virtio devices: a console (hvc0), which then takes what is typed; a source of random bytes.",
    },
    reboot: {
      type: "boolean",
      default: false,
      description: "A reset by the guest starts the image again instead of ending the session.",
    },
    loadAddress: {
      type: ["string", "integer"],
      pattern: ADDRESS,
      patternErrorMessage: 'an address such as "0x7c00"',
      minimum: 0,
      description: "Flat binaries only: guest-physical address to load at and to start from.",
    },
    tier: {
      type: "integer",
      enum: [0, 1],
      enumDescriptions: ["The interpreter.", "The interpreter and the region compiler."],
      default: 0,
      description: "Execution tier.",
    },
    stopOnEntry: { type: "boolean", default: false, description: "Stop before the guest's first instruction." },
    symbols: {
      type: ["string", "array", "object"],
      items: { type: ["string", "object"] },
      properties: {
        path: { type: "string", minLength: 1 },
        slide: { type: ["string", "integer"], pattern: "^-?(0[xX][0-9a-fA-F]+|[0-9]+)$" },
      },
      description:
        "Symbols besides the program's own: an ELF file or a kernel's System.map as a path, or { path, slide } with a number that is added to every address; or a list of these. The symbols of a running Linux kernel are found in its memory; files of it move with it.",
    },
    kvm: {
      type: "object",
      additionalProperties: { type: ["boolean", "integer"] },
      description: 'Module parameters of the KVM model, such as { "ept": false }.',
    },
    serial: {
      type: "string",
      enum: ["terminal", "console", "both"],
      enumDescriptions: ["A terminal of its own.", "The debug console.", "Both."],
      default: SERIAL_DEFAULT,
      description: "Where the guest's serial output goes.",
    },
    numbers: {
      type: "string",
      enum: ["hex", "decimal", "binary"],
      default: "hex",
      description: "How registers and fields are written.",
    },
  },
} as const satisfies Schema;

export type LaunchAttribute = keyof typeof launchSchema.properties;
