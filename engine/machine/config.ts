/** What a machine is made from: the launch configuration's and the command line's common form, already validated. */

/** Who runs the guest: the bare processor, or the KVM model on VMX or SVM. */
export type Accel = "none" | "vmx" | "svm";

export interface MachineConfig {
  readonly accel: Accel;
  /** Guest RAM in bytes, a multiple of 4096. */
  readonly memory: number;
  readonly smp: number;
  /** Name of a processor model (cpu/models). */
  readonly cpu: string;
  /** Contents of the image, and the name errors call it by. */
  readonly image: { readonly name: string; readonly bytes: Uint8Array };
  readonly initrd?: { readonly name: string; readonly bytes: Uint8Array };
  /** Kernel command line. */
  readonly append: string;
  /** Multiboot modules beyond the initrd. */
  readonly modules?: readonly { readonly name: string; readonly bytes: Uint8Array; readonly argument: string }[];
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
