/** The emulated host under the KVM model: physical processors, physical memory, time, trace points. */
import type { VirtualClock } from "../clock";
import type { Cpu } from "../cpu/cpu";
import type { PhysicalMemory } from "../memory/physical";
import type { Tracer } from "../trace";
import type { HostInterrupts } from "./hostKernel";

/** The computer the model runs on. */
export interface Host {
  /** Physical processors. All have `hostIsModel` set: their hypervisor is the KVM model. */
  readonly processors: readonly Cpu[];
  /** The local APIC of each, as far as the host kernel uses it; the same objects as the processors' `interrupts`. */
  readonly interrupts: readonly HostInterrupts[];
  readonly memory: PhysicalMemory;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  /** Wall-clock time (ns since 1970) at virtual time 0; 0 when absent. */
  readonly realtimeOffset?: number;
  /** Takes `pages` consecutive free 4-KiB frames of host memory, zeroed; returns the physical address. @throws when out */
  allocatePages(pages: number): number;
  freePages(pa: number, pages: number): void;
  /** Host-virtual to host-physical, for memslots' userspace_addr (the QEMU side maps guest RAM there); -1 if unmapped. */
  translateUserspace(hva: bigint): number;
  /** Makes processor `id` the one whose state is at the constant addresses of generated code. */
  activate(id: number): void;
}
