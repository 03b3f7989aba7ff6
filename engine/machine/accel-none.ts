/**
 * The bare machine: the image runs on the emulated processors themselves, VMX and SVM included. Interrupt controllers and
 * timer are chips of the machine. vCPUs take turns with a fixed quantum, all on one clock, so a run is exactly repeatable.
 */

import type { Bus, CodeBreakpoint, Cpu, InterruptPort, Watchpoint } from "../cpu/cpu";
import { RunExit } from "../cpu/cpu";
import { CpuEngine, type SavedProcessors } from "../cpu/engine";
import type { Processor } from "../cpu/processor";
import { cpuRegisterFile } from "../cpu/register-file";
import { Activity, Off, Rflags } from "../cpu/state";
import { cr4Allowed } from "../cpu/system/control-registers";
import { tripleFaultCause } from "../cpu/system/events";
import { writeMsr } from "../cpu/system/msrs";
import { xcr0Allowed } from "../cpu/system/xsave";
import { exitReasonName } from "../cpu/vmx/exit-reasons";
import { messageOf, SystemApicBus } from "../devices/apic-bus";
import type { Stateful } from "../devices/chip";
import { I8254 } from "../devices/i8254";
import { I8259 } from "../devices/i8259";
import { IO_APIC_BASE, IoApic } from "../devices/io-apic";
import { LocalApic } from "../devices/local-apic";
import type { StateHash } from "../memory/hash";
import { PhysicalMemory } from "../memory/physical";
import type { Accelerator, AccelOutside } from "./accel";
import { modelOf } from "./cpuid";
import { DeviceBus } from "./device-bus";
import { applyEntryState, type EntryState } from "./entry-state";
import { hashBlock, hashMemory, loadMemory, type SavedMemory, saveMemory } from "./host-state";
import type { AddressSpace, VcpuView } from "./machine";
import { EXTRA_MEMORY_BASE, GuestMemory, type RamRange, ramRanges } from "./memory-map";
import type { PcBoard } from "./pc";
import { type Run, readRuns, runsOf, writeRuns } from "./scattered-memory";

/** Instructions a vCPU runs before the next one has its turn: a prime, or a loop that frees and takes a lock stays in step. */
const QUANTUM = 9_973;
const PAGE = 4096;
/** As firmware leaves IA32_FEATURE_CONTROL: locked, VMX allowed outside SMX. */
const FEATURE_CONTROL_VMX = 5n;

interface TurnState {
  /** Whose turn it is. */
  current: number;
  /** Instructions left of the turn. */
  left: number;
}

interface SavedNone {
  readonly processors: SavedProcessors;
  readonly memory: SavedMemory;
}

/** INTR of one processor: its local APIC, and the 8259s behind the boot processor's LINT0. */
class ProcessorInterrupts implements InterruptPort {
  constructor(
    private readonly apic: LocalApic,
    private readonly pic: I8259 | null,
  ) {}

  private get fromPic(): boolean {
    return this.pic?.output === true && this.apic.passesExtInt;
  }
  pending(): number {
    return this.pic && this.fromPic ? this.pic.peek() : this.apic.pending();
  }
  acknowledge(): number {
    return this.pic && this.fromPic ? this.pic.acknowledge() : this.apic.acknowledge();
  }
  /** The processor takes an INIT: its APIC goes with it (SDM 3A 10.4.7.3). */
  init(): void {
    this.apic.initReset();
  }
  readCr8(): number {
    return this.apic.readCr8();
  }
  writeCr8(value: number): void {
    this.apic.writeCr8(value);
  }
  readMsr(index: number): bigint | undefined {
    return this.apic.readMsr(index);
  }
  writeMsr(index: number, value: bigint): boolean {
    return this.apic.writeMsr(index, value);
  }
}

export class NoAccelerator implements Accelerator {
  readonly guestMemory: GuestMemory;
  readonly vcpus: readonly VcpuView[];
  readonly parts: Record<string, Stateful<unknown>>;
  private readonly memory: PhysicalMemory;
  private readonly engine: CpuEngine;
  private readonly cpus: Processor[] = [];
  private readonly apics: LocalApic[] = [];
  private readonly buses: DeviceBus[] = [];
  private readonly apicBus = new SystemApicBus();
  private readonly pic: I8259;
  private readonly pit: I8254;
  private readonly ioApic: IoApic;
  private readonly turn: Stateful<TurnState> = { state: { current: 0, left: QUANTUM } };
  /** Came back halted and nothing has happened to it since. Worked out anew whenever in doubt. */
  private readonly asleep: boolean[] = [];

  constructor(private readonly outside: AccelOutside) {
    const { config, clock, trace, model } = outside;
    this.memory = new PhysicalMemory(config.memory + outside.extraMemory);
    for (const r of ramRanges(config.memory)) this.memory.add("ram", r.name, r.base, r.size);
    if (outside.extraMemory > 0) this.memory.add("ram", "firmware", EXTRA_MEMORY_BASE, outside.extraMemory);
    this.guestMemory = new GuestMemory(
      config.memory,
      this.memory,
      null,
      (pa, length) => this.changed(pa, length),
      (before, now) => this.remap(before, now),
    );

    const { apicBus } = this;
    this.pic = new I8259({ set: (level) => this.apics[0].setLint(0, level) });
    this.ioApic = new IoApic(apicBus, 0x20, () => this.pic.acknowledge());
    this.pit = new I8254(clock, "pit", { set: (level) => this.setGsi(0, level) });
    apicBus.attachIo(this.ioApic);
    this.parts = { turn: this.turn, pic: this.pic, ioApic: this.ioApic, pit: this.pit, apicBus };

    this.engine = new CpuEngine({ memory: this.memory, clock, trace, tier: config.tier });
    for (let id = 0; id < config.smp; id++) {
      const apic = new LocalApic({
        id,
        bsp: id === 0,
        x2apic: model.features.has("x2apic"),
        suppressesEoi: true,
        tscDeadline: model.features.has("tsc-deadline"),
        physicalBits: model.physicalBits,
        clock,
        owner: `local-apic${id}`,
        bus: apicBus,
        core: {
          attention: () => this.attention(id),
          signal: (event, vector) => this.signal(id, event, vector),
          timeOfTsc: (tsc) => Number(BigInt.asIntN(64, tsc - this.cpus[id].state.u64(Off.TSC_BASE))),
        },
      });
      this.apics.push(apic);
      this.parts[`localApic${id}`] = apic;
      apicBus.attachLocal(apic);
      const bus = new DeviceBus(trace, id, apic);
      this.buses.push(bus);
      const interrupts = new ProcessorInterrupts(apic, id === 0 ? this.pic : null);
      const cpu = this.engine.createProcessor({
        id,
        model: modelOf(model, { apicId: id, smp: config.smp }),
        bus: bus satisfies Bus,
        interrupts,
      });
      this.cpus.push(cpu);
      this.asleep.push(false);
      cpu.reset("power-up");
      if (model.features.has("vmx")) cpu.state.setU64(Off.FEATURE_CONTROL, FEATURE_CONTROL_VMX);
      if (id > 0) cpu.state.activity = Activity.WAIT_FOR_SIPI;
    }
    this.vcpus = this.cpus.map((cpu) => this.view(cpu));
  }

  attach(board: PcBoard): void {
    board.ports.claim("PIC 1", 0x20, 2, this.pic.masterPorts);
    board.ports.claim("PIC 2", 0xa0, 2, this.pic.slavePorts);
    board.ports.claim("ELCR", 0x4d0, 2, this.pic.elcrPorts);
    board.ports.claim("PIT", 0x40, 4, this.pit.ports);
    board.ports.claim("system control port B", 0x61, 1, this.pit.speakerPort);
    board.mmio.claim("I/O APIC", IO_APIC_BASE, PAGE, this.ioApic);
    for (const bus of this.buses) bus.attach(board);
  }

  setMsrs(msrs: readonly (readonly [msr: number, value: bigint])[]): void {
    for (const cpu of this.cpus) for (const [msr, value] of msrs) writeMsr(cpu, msr, value);
  }

  start(entry: EntryState): void {
    applyEntryState(this.cpus[0], entry);
  }

  /** ISA IRQ 0 is the I/O APIC's pin 2, as the MADT says. */
  setGsi(gsi: number, level: boolean): void {
    if (gsi < 16) this.pic.setLine(gsi, level);
    this.ioApic.setLine(gsi === 0 ? 2 : gsi, level);
  }

  sendMessage(address: number, addressHigh: number, data: number): void {
    const message = messageOf(address, addressHigh, data);
    if (message) this.apicBus.deliver(message);
  }

  private attention(id: number): void {
    this.asleep[id] = false;
    this.cpus[id]?.attention();
  }

  private signal(id: number, event: "nmi" | "init" | "sipi" | "smi", vector?: number): void {
    this.asleep[id] = false;
    this.cpus[id].signal(event, vector);
  }

  step(instructions: number): boolean {
    const turn = this.turn.state;
    const count = this.cpus.length;
    for (let tries = 0; tries < count; tries++) {
      const id = turn.current;
      if (!this.asleep[id]) {
        const cpu = this.cpus[id];
        this.engine.activate(id);
        const before = cpu.retired;
        const exit = cpu.run(count === 1 ? instructions : Math.min(instructions, turn.left));
        const ran = cpu.retired - before;
        if (count > 1) turn.left -= ran;
        if (exit === RunExit.SHUTDOWN) {
          this.outside.end({ kind: "triple-fault", vcpu: id, cause: tripleFaultCause(cpu) });
          return true;
        }
        if (exit === RunExit.HALTED) {
          this.asleep[id] = true;
          this.nextTurn();
          if (ran > 0) return true;
          continue;
        }
        if (turn.left <= 0) this.nextTurn();
        return true;
      }
      this.nextTurn();
    }
    return false;
  }

  private nextTurn(): void {
    const turn = this.turn.state;
    turn.current = (turn.current + 1) % this.cpus.length;
    turn.left = QUANTUM;
  }

  get wakeable(): boolean {
    const nmi = this.ioApic.carriesNmi || this.apics.some((apic) => apic.carriesNmi);
    return this.cpus.some((cpu) => {
      const { activity, rflags } = cpu.state;
      const waits = activity === Activity.HLT || activity === Activity.MWAIT;
      return waits && (nmi || (rflags & Rflags.IF) !== 0 || cpu.guest?.ignoresIf === true);
    });
  }

  // --- memory -----------------------------------------------------------------------------------------------------------

  private changed(pa: number, length: number): void {
    for (const cpu of this.cpus) cpu.code.invalidatePhysical(pa, length);
  }

  /** The chip set shows memory in another way: what the processors have remembered of the old one goes. */
  private remap(before: readonly RamRange[], now: readonly RamRange[]): void {
    const first = this.memory.allocations[0].offset;
    this.memory.remap(now.map((r) => ({ ...r, kind: r.kind ?? "ram", offset: first + r.offset })));
    for (const r of before) {
      if (
        now.some(
          (n) => n.base <= r.base && n.base + n.size >= r.base + r.size && n.offset - n.base === r.offset - r.base,
        )
      )
        continue;
      this.changed(r.base, r.size);
    }
    if (this.cpus.length > 0) this.engine.active.mmu.flushEverything();
  }

  /** Physical address of one address, -1 where nothing is. */
  private physical(space: AddressSpace, vcpu: number, address: bigint): number {
    const cpu = this.cpus[vcpu];
    switch (space) {
      case "gva":
        return cpu.mmu.probe(BigInt.asUintN(64, address));
      case "gpa":
        return cpu.secondStage ? cpu.secondStage.probe(Number(address)) : Number(address);
      case "hpa":
        return Number(address);
    }
  }

  private runs(space: AddressSpace, vcpu: number, address: bigint, length: number): Iterable<Run> {
    return runsOf(address, length, (at) => this.physical(space, vcpu, at));
  }

  readMemory(space: AddressSpace, vcpu: number, address: bigint, length: number): Uint8Array {
    return readRuns(this.memory, length, this.runs(space, vcpu, address, length));
  }

  writeMemory(space: AddressSpace, vcpu: number, address: bigint, bytes: Uint8Array): number {
    return writeRuns(this.memory, bytes, this.runs(space, vcpu, address, bytes.length), (pa, n) => this.changed(pa, n));
  }

  translate(vcpu: number, gva: bigint): bigint | undefined {
    const pa = this.cpus[vcpu].mmu.probe(BigInt.asUintN(64, gva));
    return pa < 0 ? undefined : BigInt(pa);
  }

  // --- debugger ---------------------------------------------------------------------------------------------------------

  private view(cpu: Cpu): VcpuView {
    const registers = cpuRegisterFile(cpu, {
      cr4Allowed: BigInt(cr4Allowed(cpu.model) >>> 0),
      xcr0Allowed: BigInt(xcr0Allowed(cpu) >>> 0),
    });
    return {
      index: cpu.id,
      registers,
      get retired() {
        return cpu.retired;
      },
      get halted() {
        return cpu.state.activity !== Activity.ACTIVE;
      },
      get vmcs() {
        const pointer = cpu.vmx.currentVmcs;
        if (pointer < 0) return null;
        return {
          pointer,
          read: (encoding: number) => cpu.vmx.peek(pointer, encoding),
          write: (encoding: number, value: bigint) => cpu.vmx.poke(pointer, encoding, value),
        };
      },
      get inGuest() {
        return cpu.guest !== null;
      },
    };
  }

  setBreakpoints(list: readonly CodeBreakpoint[]): void {
    for (const cpu of this.cpus) cpu.setBreakpoints(list);
  }
  setWatchpoints(list: readonly Watchpoint[]): void {
    for (const cpu of this.cpus) cpu.setWatchpoints(list);
  }
  stopAfter(vcpu: number, count: number): void {
    this.cpus[vcpu].stopAfter(count);
  }

  exits(): Record<string, number> {
    const out: Record<string, number> = {};
    for (const cpu of this.cpus) {
      cpu.vmx.exitCounts.forEach((n, reason) => {
        if (n > 0) out[exitReasonName(reason)] = (out[exitReasonName(reason)] ?? 0) + n;
      });
    }
    return out;
  }
  userspaceExits(): Record<string, number> {
    return {};
  }

  hash(into: StateHash): void {
    for (const cpu of this.cpus) {
      hashBlock(cpu.state, into);
      into.data(cpu.vmx.state);
    }
    hashMemory(this.memory, into);
  }

  save(): SavedNone {
    return { processors: this.engine.save(), memory: saveMemory(this.memory) };
  }

  load(saved: unknown): void {
    const { processors, memory } = saved as SavedNone;
    loadMemory(this.memory, memory);
    this.engine.load(processors);
    this.asleep.fill(false);
  }
}
