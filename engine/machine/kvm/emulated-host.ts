/**
 * The computer under KVM: physical processors in root mode, memory of the host kernel (VMCS regions, EPT tables ...), and
 * the QEMU process's anonymous memory that becomes guest RAM.
 */
import type { VirtualClock } from "../../clock";
import { CpuEngine } from "../../cpu/engine";
import type { CpuModel } from "../../cpu/models/model";
import type { Processor } from "../../cpu/processor";
import type { Stateful } from "../../devices/chip";
import type { Host } from "../../kvm/host";
import { HostInterrupts } from "../../kvm/hostKernel";
import { GiB, MiB } from "../../memory/layout";
import { PhysicalMemory } from "../../memory/physical";
import type { Tracer } from "../../trace";
import { DeviceBus } from "../device-bus";

const PAGE = 4096;
/** Physical memory of the host kernel. */
const HOST_KERNEL_BASE = 16 * MiB;
const HOST_KERNEL_SIZE = 32 * MiB;
/** Physical memory behind the guest's RAM. */
export const GUEST_RAM_BASE = 4 * GiB;
/** Where the QEMU process has mapped the guest's RAM. */
export const GUEST_RAM_HVA = 0x7f00_0000_0000;

interface PagesState {
  /** First page never handed out. */
  next: number;
  /** Single pages given back, as physical addresses. */
  free: number[];
}

export interface EmulatedHostOptions {
  readonly processors: number;
  readonly model: CpuModel;
  /** Bytes of guest RAM. */
  readonly guestMemory: number;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly tier: 0 | 1;
  /** Wall-clock time (ns since 1970) at virtual time 0. */
  readonly realtimeOffset: number;
}

export class EmulatedHost implements Host {
  readonly processors: readonly Processor[];
  readonly interrupts: readonly HostInterrupts[];
  readonly memory: PhysicalMemory;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly realtimeOffset: number;
  readonly engine: CpuEngine;
  readonly pages: Stateful<PagesState> = { state: { next: HOST_KERNEL_BASE, free: [] } };
  private readonly guestMemory: number;

  constructor(options: EmulatedHostOptions) {
    const { clock, trace, model, tier, processors } = options;
    this.clock = clock;
    this.trace = trace;
    this.realtimeOffset = options.realtimeOffset;
    this.guestMemory = options.guestMemory;
    this.memory = new PhysicalMemory(HOST_KERNEL_SIZE + options.guestMemory);
    this.memory.add("ram", "host kernel", HOST_KERNEL_BASE, HOST_KERNEL_SIZE);
    this.memory.add("ram", "guest RAM", GUEST_RAM_BASE, options.guestMemory);
    this.engine = new CpuEngine({ memory: this.memory, clock, trace, tier });
    this.interrupts = Array.from({ length: processors }, () => new HostInterrupts());
    this.processors = this.interrupts.map((interrupts, id) => {
      // Nothing of the host's own hardware is reached by the guest: its ports and registers are KVM's and QEMU's business.
      const bus = new DeviceBus(trace, id, null);
      const cpu = this.engine.createProcessor({ id, model, bus, interrupts });
      cpu.hostIsModel = true;
      return cpu;
    });
  }

  /** @throws RangeError when the host kernel is out of memory */
  allocatePages(pages: number): number {
    const { state } = this.pages;
    let pa = pages === 1 ? state.free.pop() : undefined;
    if (pa === undefined) {
      pa = state.next;
      if (pa + pages * PAGE > HOST_KERNEL_BASE + HOST_KERNEL_SIZE) {
        throw new RangeError(`the emulated host kernel is out of memory (${HOST_KERNEL_SIZE / MiB} MiB)`);
      }
      state.next += pages * PAGE;
    }
    const at = this.memory.hostOffset(pa);
    this.memory.u8.fill(0, at, at + pages * PAGE);
    return pa;
  }

  freePages(pa: number, pages: number): void {
    for (let i = pages - 1; i >= 0; i--) this.pages.state.free.push(pa + i * PAGE);
  }

  translateUserspace(hva: bigint): number {
    const offset = Number(hva) - GUEST_RAM_HVA;
    return offset >= 0 && offset < this.guestMemory ? GUEST_RAM_BASE + offset : -1;
  }

  activate(id: number): void {
    this.engine.activate(id);
  }
}
