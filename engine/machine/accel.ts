/** What the machine asks of the part that runs its vCPUs: the bare processor (accel-none) or KVM's userspace (accel-kvm). */
import type { VirtualClock } from "../clock";
import type { CodeBreakpoint, Watchpoint } from "../cpu/cpu";
import type { CpuModel } from "../cpu/models/model";
import type { Stateful } from "../devices/chip";
import type { StateHash } from "../memory/hash";
import type { Tracer } from "../trace";
import type { MachineConfig } from "./config";
import type { EntryState } from "./entry-state";
import type { AddressSpace, Ending, VcpuView } from "./machine";
import type { GuestMemory } from "./memory-map";
import type { PcBoard } from "./pc";

/** What an accelerator is given. */
export interface AccelOutside {
  readonly config: MachineConfig;
  readonly model: CpuModel;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  /** Bytes of memory behind the guest's RAM that the board maps itself (flash, display memory). */
  readonly extraMemory: number;
  end(ending: Ending): void;
  /** The machine has ended: nobody runs any more. */
  readonly ended: boolean;
}

export interface Accelerator {
  readonly guestMemory: GuestMemory;
  readonly vcpus: readonly VcpuView[];
  /** Chips and other state that is not in the processors' blocks or in memory, by name. */
  readonly parts: Readonly<Record<string, Stateful<unknown>>>;
  /** Interrupt line of the board. */
  setGsi(gsi: number, level: boolean): void;
  /** A device writes `data` to `address`, where interrupt messages go (SDM 3A 10.11). */
  sendMessage(address: number, addressHigh: number, data: number): void;
  /** Called once when the board is there: gives the processors their ports and memory-mapped registers. */
  attach(board: PcBoard): void;
  /** Gives every processor the MSRs firmware leaves behind. */
  setMsrs(msrs: readonly (readonly [msr: number, value: bigint])[]): void;
  /** Puts the boot processor into the state in which the image starts. */
  start(entry: EntryState): void;
  /** Lets one vCPU run for at most `instructions`. @returns false when all are halted and nothing happened */
  step(instructions: number): boolean;
  /** All are halted: whether an interrupt could still wake one. */
  readonly wakeable: boolean;

  readMemory(space: AddressSpace, vcpu: number, address: bigint, length: number): Uint8Array;
  writeMemory(space: AddressSpace, vcpu: number, address: bigint, bytes: Uint8Array): number;
  translate(vcpu: number, gva: bigint): bigint | undefined;

  /** Physical addresses are guest-physical. */
  setBreakpoints(list: readonly CodeBreakpoint[]): void;
  setWatchpoints(list: readonly Watchpoint[]): void;
  stopAfter(vcpu: number, count: number): void;

  exits(): Record<string, number>;
  userspaceExits(): Record<string, number>;
  /** Adds processors and memory; `parts` are the machine's to add. */
  hash(into: StateHash): void;
  /** Processors and memory as plain data. */
  save(): unknown;
  load(saved: unknown): void;
}
