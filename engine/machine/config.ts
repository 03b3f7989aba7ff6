/** What a machine is made from: the launch configuration's and the command line's common form, already validated. */

import type { DiskSource } from "../devices/block-image";

export type { DiskSource } from "../devices/block-image";

/** Who runs the guest: the bare processor, or the KVM model on VMX or SVM. */
export type Accel = "none" | "vmx" | "svm";

export const VIRTIO_KINDS = ["console", "rng"] as const;
export type VirtioKind = (typeof VIRTIO_KINDS)[number];

export interface DiskConfig {
  /** What errors call it. */
  readonly name: string;
  readonly source: DiskSource;
  readonly readOnly?: boolean;
}

/** A file's contents, and the name errors call it by. */
export interface ImageFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** A drive and what is in it. */
export interface DriveImage extends ImageFile {
  readonly kind: "disk" | "cdrom";
}

export interface MachineConfig {
  readonly accel: Accel;
  /** Guest RAM in bytes, a multiple of 4096. */
  readonly memory: number;
  readonly smp: number;
  /** Name of a processor model (cpu/models). */
  readonly cpu: string;
  /** What to run. */
  readonly image: ImageFile;
  /**
   * Firmware to start with, at the reset vector; then the image is what the firmware is to boot. An image that is firmware
   * itself needs no such attribute.
   */
  readonly firmware?: ImageFile;
  /** Contents of the flash chip with the firmware's variables (OVMF_VARS). The file itself is never written. */
  readonly firmwareVariables?: ImageFile;
  /** IDE drives of a machine with firmware, besides the image. Their files are never written. */
  readonly drives?: readonly DriveImage[];
  /** Option ROM of the display adapter (vgabios-stdvga.bin). */
  readonly videoBios?: ImageFile;
  /** Virtio disks (/dev/vda ... to Linux). What the guest writes stays in memory, over the source. */
  readonly disks?: readonly DiskConfig[];
  /** Further virtio devices: a console (hvc0 to Linux), which then takes what is typed, and a source of random bytes. */
  readonly virtio?: readonly VirtioKind[];
  readonly initrd?: ImageFile;
  /** A reset by the guest starts the image again instead of ending the machine; firmware does so unless it is false. */
  readonly reboot?: boolean;
  /** Kernel command line. */
  readonly append: string;
  /** Multiboot modules beyond the initrd. */
  readonly modules?: readonly (ImageFile & { readonly argument: string })[];
  /** Flat images only: guest-physical load address; also the entry point. */
  readonly loadAddress?: number;
  /** Execution tier: 0 interpreter, 1 with the region compiler. */
  readonly tier: 0 | 1;
  /** Module parameters of the KVM model, e.g. { ept: false }; see kvm/params.ts. */
  readonly kvm?: Readonly<Record<string, boolean | number>>;
}

/** A configuration or an image that cannot be used. The message says what, where, and what to do. */
export class MachineError extends Error {
  override readonly name = "MachineError";
}
