/**
 * The machine as a KVM guest: the QEMU side (kvm/) on an emulated host whose kernel is the KVM model. Interrupt
 * controllers and timer are the kernel's; vCPU threads take turns.
 */

import type { Bus, CodeBreakpoint, Watchpoint } from "../cpu/cpu";
import type { SavedProcessors } from "../cpu/engine";
import { tripleFaultCause } from "../cpu/system/events";
import { exitReasonName } from "../cpu/vmx/exit-reasons";
import type { Stateful } from "../devices/chip";
import { openDevKvm } from "../kvm/fds";
import { KvmModule } from "../kvm/module";
import { kvmExitName, kvmRunFields } from "../kvm/uapi";
import type { StateHash } from "../memory/hash";
import type { Accelerator, AccelOutside } from "./accel";
import { MachineError } from "./config";
import { DeviceBus } from "./device-bus";
import type { EntryState } from "./entry-state";
import { hashBlock, hashMemory, loadMemory, type SavedMemory, saveMemory } from "./host-state";
import { EmulatedHost, GUEST_RAM_BASE } from "./kvm/emulated-host";
import { kvmCpuSynchronizePostInit, kvmInitVcpu, kvmVcpuThreadFn, type ThreadOutside } from "./kvm/kvm-exec";
import { type KVMState, kvmCommit, kvmFailure, kvmInit, kvmIrqchipSendMsi, kvmSetIrq } from "./kvm/kvm-state";
import { X86Cpu } from "./kvm/x86-cpu";
import type { AddressSpace, VcpuView } from "./machine";
import { GuestMemory } from "./memory-map";
import { type PcBoard, RTC_START } from "./pc";
import { type Run, readRuns, runsOf, writeRuns } from "./scattered-memory";

/** Instructions of a vCPU thread's turn when others want to run too; a prime, as in accel-none. */
const TIME_SLICE = 9_973;

interface TurnState {
  current: number;
}

interface SavedKvm {
  readonly engine: SavedProcessors;
  readonly memory: SavedMemory;
}

export class KvmAccelerator implements Accelerator {
  readonly guestMemory: GuestMemory;
  readonly vcpus: readonly VcpuView[];
  readonly parts: Record<string, Stateful<unknown>>;
  private readonly host: EmulatedHost;
  private readonly module: KvmModule;
  private readonly kvm: KVMState;
  private readonly cpus: readonly X86Cpu[];
  private readonly buses: readonly DeviceBus[];
  private readonly thread: ThreadOutside;
  private readonly turn: Stateful<TurnState> = { state: { current: 0 } };

  constructor(private readonly outside: AccelOutside) {
    const { config, model, clock, trace } = outside;
    this.host = new EmulatedHost({
      processors: config.smp,
      model,
      guestMemory: config.memory + outside.extraMemory,
      clock,
      trace,
      tier: config.tier,
      realtimeOffset: RTC_START * 1e9,
    });
    this.guestMemory = new GuestMemory(
      config.memory,
      this.host.memory,
      GUEST_RAM_BASE,
      (pa, length) => {
        for (const cpu of this.host.processors) cpu.code.invalidatePhysical(pa, length);
      },
      (_before, now) => kvmCommit(this.kvm, now),
    );
    this.module = loadModules(this.host, config.kvm);
    try {
      this.kvm = kvmInit(openDevKvm(this.module), config.smp);
      kvmCommit(this.kvm, this.guestMemory.ranges);
      this.cpus = Array.from(
        { length: config.smp },
        (_, index) => new X86Cpu(index, model, { apicId: index, smp: config.smp }),
      );
      for (const cpu of this.cpus) kvmInitVcpu(this.kvm, cpu);
    } catch (error) {
      kvmFailure(error);
    }
    this.buses = this.cpus.map((cpu) => new DeviceBus(trace, cpu.index, null));
    this.thread = this.threadOutside();
    this.parts = { turn: this.turn, hostPages: this.host.pages, kvm: this.kvm.fd, kvmSlots: this.kvm.slots };
    this.cpus.forEach((cpu, i) => {
      this.parts[`qemuCpu${i}`] = cpu;
    });
    this.vcpus = this.cpus.map((cpu) => this.view(cpu));
  }

  private threadOutside(): ThreadOutside {
    const { outside } = this;
    return {
      kvm: this.kvm,
      clock: outside.clock,
      bus: (cpu): Bus => this.buses[cpu.index],
      end: (ending) => outside.end(ending),
      get ended() {
        return outside.ended;
      },
      tripleFaultCause: (cpu) => tripleFaultCause(this.host.processors[cpu.index]),
    };
  }

  attach(board: PcBoard): void {
    for (const bus of this.buses) bus.attach(board);
  }

  setMsrs(msrs: readonly (readonly [msr: number, value: bigint])[]): void {
    for (const cpu of this.cpus) cpu.kvmFd.KVM_SET_MSRS(msrs.map(([index, data]) => ({ index, data })));
  }

  start(entry: EntryState): void {
    this.cpus[0].entry = entry;
    for (const cpu of this.cpus) kvmCpuSynchronizePostInit(cpu);
  }

  setGsi(gsi: number, level: boolean): void {
    kvmSetIrq(this.kvm, gsi, level);
  }

  sendMessage(address: number, addressHigh: number, data: number): void {
    kvmIrqchipSendMsi(this.kvm, { address, addressHigh, data });
  }

  step(instructions: number): boolean {
    const { turn } = this;
    const slice = this.cpus.length === 1 ? instructions : Math.min(instructions, TIME_SLICE);
    for (let tries = 0; tries < this.cpus.length; tries++) {
      const cpu = this.cpus[turn.state.current];
      const before = this.outside.clock.instructions;
      const result = kvmVcpuThreadFn(this.thread, cpu, slice);
      const ran = result === "ran" || this.outside.clock.instructions > before;
      turn.state.current = (turn.state.current + 1) % this.cpus.length;
      if (ran) return true;
    }
    return false;
  }

  get wakeable(): boolean {
    return this.cpus.some((cpu) => cpu.kvmFd.wakeable);
  }

  // --- memory -----------------------------------------------------------------------------------------------------------

  /** Host-physical address of one address, -1 where nothing is. */
  private physical(space: AddressSpace, vcpu: number, address: bigint): number {
    switch (space) {
      case "gva": {
        const gpa = this.cpus[vcpu].kvmFd.probe(BigInt.asUintN(64, address));
        return gpa < 0 ? -1 : this.guestMemory.hostAddress(gpa);
      }
      case "gpa":
        return this.guestMemory.hostAddress(Number(address));
      case "hpa":
        return Number(address);
    }
  }

  private runs(space: AddressSpace, vcpu: number, address: bigint, length: number): Iterable<Run> {
    return runsOf(address, length, (at) => this.physical(space, vcpu, at));
  }

  readMemory(space: AddressSpace, vcpu: number, address: bigint, length: number): Uint8Array {
    return readRuns(this.host.memory, length, this.runs(space, vcpu, address, length));
  }

  writeMemory(space: AddressSpace, vcpu: number, address: bigint, bytes: Uint8Array): number {
    return writeRuns(this.host.memory, bytes, this.runs(space, vcpu, address, bytes.length), (pa, n) => {
      for (const cpu of this.host.processors) cpu.code.invalidatePhysical(pa, n);
    });
  }

  translate(vcpu: number, gva: bigint): bigint | undefined {
    const gpa = this.cpus[vcpu].kvmFd.probe(BigInt.asUintN(64, gva));
    return gpa < 0 ? undefined : BigInt(gpa);
  }

  // --- debugger ---------------------------------------------------------------------------------------------------------

  private view(cpu: X86Cpu): VcpuView {
    const processor = this.host.processors[cpu.index];
    const { kvmFd } = cpu;
    return {
      index: cpu.index,
      registers: kvmFd.registers,
      get retired() {
        return processor.retired;
      },
      get halted() {
        return kvmFd.halted;
      },
      get vmcs() {
        return kvmFd.vmcs < 0 ? null : kvmFd.vmcsView;
      },
      get kvmRun() {
        return kvmRunFields(kvmFd.run);
      },
      inGuest: false,
    };
  }

  setBreakpoints(list: readonly CodeBreakpoint[]): void {
    // Guest-physical pages lie elsewhere in the host's memory, where the processor meets their code.
    const onHost = list.flatMap((b): CodeBreakpoint[] => {
      if (!b.physical) return [b];
      const pa = this.guestMemory.hostAddress(Number(b.linear));
      return pa < 0 ? [] : [{ ...b, linear: BigInt(pa), end: undefined }];
    });
    for (const cpu of this.host.processors) cpu.setBreakpoints(onHost);
  }
  setWatchpoints(list: readonly Watchpoint[]): void {
    // The processors know host-physical memory, where the guest's pages lie elsewhere.
    const onHost = list.flatMap((watch) =>
      watch.space === "linear"
        ? [watch]
        : Array.from(this.runs("gpa", 0, watch.address, watch.length), ({ pa, size }) => ({
            ...watch,
            address: BigInt(pa),
            length: size,
          })),
    );
    for (const cpu of this.host.processors) cpu.setWatchpoints(onHost);
  }
  stopAfter(vcpu: number, count: number): void {
    this.host.processors[vcpu].stopAfter(count);
  }

  exits(): Record<string, number> {
    const out: Record<string, number> = {};
    for (const cpu of this.host.processors) {
      cpu.vmx.exitCounts.forEach((n, reason) => {
        if (n > 0) out[exitReasonName(reason)] = (out[exitReasonName(reason)] ?? 0) + n;
      });
    }
    return out;
  }

  userspaceExits(): Record<string, number> {
    const out: Record<string, number> = {};
    for (const cpu of this.cpus) {
      for (const [reason, n] of Object.entries(cpu.state.userspaceExits)) {
        const name = kvmExitName(Number(reason));
        out[name] = (out[name] ?? 0) + n;
      }
    }
    return out;
  }

  hash(into: StateHash): void {
    for (const cpu of this.host.processors) {
      hashBlock(cpu.state, into);
      into.data(cpu.vmx.state);
    }
    hashMemory(this.host.memory, into);
  }

  save(): SavedKvm {
    return { engine: this.host.engine.save(), memory: saveMemory(this.host.memory) };
  }

  load(saved: unknown): void {
    const { engine, memory } = saved as SavedKvm;
    loadMemory(this.host.memory, memory);
    this.host.engine.load(engine);
  }
}

/** modprobe kvm kvm_intel. @throws MachineError for a parameter that is wrong */
function loadModules(host: EmulatedHost, parameters: Readonly<Record<string, boolean | number>> = {}): KvmModule {
  try {
    return new KvmModule(host, parameters);
  } catch (error) {
    if (error instanceof RangeError) throw new MachineError(error.message);
    throw error;
  }
}
