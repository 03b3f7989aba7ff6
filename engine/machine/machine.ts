/**
 * A machine as its drivers (command line, debugger, tests) see it. `createMachine` (create.ts) builds one from a
 * MachineConfig; how its vCPUs run (bare processor or KVM) stays inside.
 */
import type { RegisterFile } from "../cpu/registers";
import type { MachineConfig } from "./config";

/** What a guest ended with, if it did. */
export type Ending =
  /** isa-debug-exit wrote `code`; the process status is (code << 1) | 1, as QEMU's. */
  | { readonly kind: "debug-exit"; readonly code: number }
  | { readonly kind: "power-off" }
  | { readonly kind: "reset" }
  /** Nothing can ever happen again: all vCPUs halted with interrupts off or no event scheduled. */
  | { readonly kind: "dead-halt" }
  /** `cause` tells which exception led to it, with the addresses that matter. */
  | { readonly kind: "triple-fault"; readonly vcpu: number; readonly cause: string }
  /** KVM_RUN ended in an exit userspace cannot handle (FAIL_ENTRY, INTERNAL_ERROR, UNKNOWN ...). */
  | { readonly kind: "internal-error"; readonly vcpu: number; readonly cause: string };

export type AddressSpace =
  /** Guest-virtual: segment base not applied (linear), the current paging of the vCPU. */
  | "gva"
  /** Guest-physical. */
  | "gpa"
  /** Physical memory of the emulated host; the same as gpa under accel none outside a guest. */
  | "hpa";

/** One vCPU, to a debugger. Valid between instructions and at trace points, in root and non-root operation alike. */
export interface VcpuView {
  readonly index: number;
  /** Architectural registers of what the vCPU runs: the guest's, also while the KVM model handles its exit. */
  readonly registers: RegisterFile;
  /** Instructions retired by this vCPU. */
  readonly retired: number;
  readonly halted: boolean;
  /** Current VMCS contents if there is one (accel vmx: the vCPU's; accel none: the processor's current VMCS). */
  readonly vmcs: VmcsView | null;
  /** Fields of the mapped kvm_run page (accel vmx/svm); undefined under accel none. */
  readonly kvmRun?: Readonly<Record<string, bigint | number | string>>;
  /** Whether the vCPU is in VMX non-root operation or an SVM guest under accel none (its own hypervisor's guest). */
  readonly inGuest: boolean;
}

export interface VmcsView {
  /** Physical address of the VMCS region. */
  readonly pointer: number;
  /** Fields are rows of cpu/vmx/fields.ts. */
  read(encoding: number): bigint;
  write(encoding: number, value: bigint): void;
}

export interface MachineStats {
  /** Retired by all vCPUs since the machine was made, resets included. */
  readonly instructions: number;
  /** Virtual time since then. */
  readonly nanoseconds: number;
  /** How often the guest has reset the machine and started again. */
  readonly resets: number;
  /** VM exits by reason name (accel vmx/svm: of the KVM model; accel none: of the processor). */
  readonly exits: Readonly<Record<string, number>>;
  /** KVM_RUN returns to userspace by kvm_run exit reason name. */
  readonly userspaceExits: Readonly<Record<string, number>>;
}

/** What a guest has changed on a disk, by offset in bytes. */
export type DiskChanges = readonly { readonly offset: number; readonly bytes: Uint8Array }[];

export interface Machine {
  readonly config: MachineConfig;
  readonly vcpus: readonly VcpuView[];
  /** The machine has ended; `run` does nothing more. */
  readonly ending: Ending | null;
  /** Everything is halted and only input can go on: `run` comes back without doing anything until there is some. */
  readonly waitingForInput: boolean;

  /**
   * Runs up to `instructions` instructions in all: less when it ends, or when halted processors skip as much time as these
   * would take. Deterministic: slicing never changes anything.
   */
  run(instructions: number): void;
  /** Bytes typed at the first serial port, or at the virtio console. They arrive at the current instruction count. */
  serialInput(bytes: Uint8Array): void;

  /** The NMI button: an NMI message to every processor. */
  nmi(): void;

  /** Shorter than `length` where the space ends or nothing is mapped. `gva` uses the vCPU's current paging. */
  readMemory(space: AddressSpace, vcpu: number, address: bigint, length: number): Uint8Array;
  /** @returns how many bytes were written */
  writeMemory(space: AddressSpace, vcpu: number, address: bigint, bytes: Uint8Array): number;
  /** Guest-physical address a guest-virtual one maps to now, or undefined. */
  translate(vcpu: number, gva: bigint): bigint | undefined;

  /** Breakpoints are guest-linear or guest-physical addresses, on every vCPU. */
  setBreakpoints(list: readonly import("../cpu/cpu").CodeBreakpoint[]): void;
  setWatchpoints(list: readonly import("../cpu/cpu").Watchpoint[]): void;
  /** Asks for a TraceKind.Instruction trace point after `count` more instructions of one vCPU (0 cancels). */
  stopAfter(vcpu: number, count: number): void;

  /** Changes of each of the configuration's virtio disks, in order. */
  diskChanges(): readonly DiskChanges[];

  stats(): MachineStats;
  /** 128-bit hash (32 hex digits) of all state: registers, memory, chips, time. The same in either tier. */
  hash(): string;
  /** The whole machine as plain data; `restore` takes it back to exactly there. */
  snapshot(): MachineSnapshot;
  restore(snapshot: MachineSnapshot): void;
}

/** Plain structured-clonable data; its inside is the machine's business. */
export type MachineSnapshot = { readonly instructions: number; readonly parts: Readonly<Record<string, unknown>> };

/** What a machine needs from outside. */
export interface MachineEnvironment {
  readonly trace: import("../trace").Tracer;
  /** Bytes the guest wrote to its serial port `index`. */
  serialOutput(index: number, bytes: Uint8Array): void;
  /** Bytes the guest wrote to a debug console port (0xe9, 0x402). */
  debugOutput?(bytes: Uint8Array): void;
}
