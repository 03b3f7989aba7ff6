/** Builds a machine from its configuration and drives it: `createMachine` is the one door to this folder. */
import { NANOSECONDS_PER_INSTRUCTION, VirtualClock } from "../clock";
import type { CodeBreakpoint, Watchpoint } from "../cpu/cpu";
import { findModel, MODEL_NAMES } from "../cpu/models/models";
import { DeliveryMode } from "../devices/apic-bus";
import type { Stateful } from "../devices/chip";
import { StateHash } from "../memory/hash";
import { MAX_PHYSICAL, MAX_VCPUS, MiB } from "../memory/layout";
import { silentTracer, TraceKind, type TracePoint, type Tracer } from "../trace";
import type { Accelerator, AccelOutside } from "./accel";
import { KvmAccelerator } from "./accel-kvm";
import { NoAccelerator } from "./accel-none";
import { type MachineConfig, MachineError } from "./config";
import { resetEntry } from "./entry-state";
import { firmwareLayout } from "./firmware/layout";
import { firmwareMsrs } from "./firmware-msrs";
import { loadImage } from "./loaders/load";
import type {
  AddressSpace,
  DiskChanges,
  Ending,
  Machine,
  MachineEnvironment,
  MachineSnapshot,
  MachineStats,
  VcpuView,
} from "./machine";
import { checkMemorySize } from "./memory-map";
import { PcBoard } from "./pc";

/** Memory of the emulated host that is not the guest's RAM, under KVM. */
const HOST_MEMORY = 32 * MiB;
/** Longest stretch in one go, so that polling and the processors' own bookkeeping have their chance. */
const STRETCH = 1_000_000;
const OUTPUT_CHUNK = 4096;
/** Address and data of an interrupt message (SDM 3A 10.11): physical destination 0xff, delivery mode in bits 10:8. */
const MESSAGE_TO_ALL = 0xfeeff000;
const MESSAGE_MODE_SHIFT = 8;

/** @throws MachineError with one clear sentence for anything wrong with the configuration or the image */
export function createMachine(config: MachineConfig, environment: MachineEnvironment): Machine {
  return new PcMachine(config, environment);
}

function check(config: MachineConfig): void {
  const { accel, memory, smp, cpu } = config;
  if (accel === "svm") throw new MachineError("accel svm is not there yet; use vmx or none");
  checkMemorySize(memory, MAX_PHYSICAL - HOST_MEMORY);
  if (!Number.isInteger(smp) || smp < 1 || smp > MAX_VCPUS) {
    throw new MachineError(`smp: ${smp} vCPUs; use 1 to ${MAX_VCPUS}`);
  }
  if (!findModel(cpu)) {
    throw new MachineError(`cpu: there is no processor model "${cpu}"; use one of ${MODEL_NAMES.join(", ")}`);
  }
}

interface Past {
  instructions: number;
  nanoseconds: number;
  resets: number;
}

/** The environment's tracer; what the guest has sent by then is out before anybody looks around. */
class FlushingTracer implements Tracer {
  constructor(
    private readonly outer: Tracer,
    private readonly flush: () => void,
  ) {}

  get armed(): number {
    return this.outer.armed;
  }
  set armed(value: number) {
    this.outer.armed = value;
  }

  hit(point: TracePoint): void {
    this.flush();
    this.outer.hit(point);
  }
}

class PcMachine implements Machine {
  ending: Ending | null = null;
  private readonly clock = new VirtualClock();
  private readonly tracer: Tracer;
  private readonly accel: Accelerator;
  private readonly board: PcBoard;
  /** What came before the last reset: instructions retired, virtual time, and how many resets there were. */
  private readonly past: Stateful<Past> = { state: { instructions: 0, nanoseconds: 0, resets: 0 } };
  private idle = false;
  /** Bytes on their way out, by serial port; -1 is the debug console. */
  private outputIndex = 0;
  private outputBytes: number[] = [];

  constructor(
    readonly config: MachineConfig,
    private readonly environment: MachineEnvironment,
  ) {
    check(config);
    const { clock } = this;
    this.tracer = new FlushingTracer(environment.trace, () => this.flushOutput());
    clock.register("machine", { onClockEvent: () => {} });
    const end = (ending: Ending): void => this.end(ending);
    const model = findModel(config.cpu);
    if (!model) throw new MachineError(`cpu: there is no processor model "${config.cpu}"`);
    const layout = firmwareLayout(config);
    const hasEnded = (): boolean => this.ending !== null;
    const outside: AccelOutside = {
      config,
      model,
      clock,
      trace: this.tracer,
      extraMemory: layout?.size ?? 0,
      end,
      get ended() {
        return hasEnded();
      },
    };
    this.accel = config.accel === "none" ? new NoAccelerator(outside) : new KvmAccelerator(outside);
    this.board = new PcBoard({
      clock,
      memory: this.accel.guestMemory,
      config,
      firmware: layout,
      setGsi: (gsi, level) => this.accel.setGsi(gsi, level),
      sendMessage: (address, high, data) => this.accel.sendMessage(address, high, data),
      end,
      output: (index, byte) => this.output(index, byte),
    });
    this.accel.attach(this.board);
    if (this.board.firmware) {
      this.board.firmware.start();
      this.accel.start(resetEntry(model.leaves.find((leaf) => leaf.leaf === 1)?.eax ?? 0));
    } else {
      this.board.setUpAsFirmware();
      this.accel.setMsrs(firmwareMsrs(model));
      this.accel.start(loadImage({ memory: this.accel.guestMemory, config, rsdp: this.board.rsdp }));
    }
  }

  get vcpus(): readonly VcpuView[] {
    return this.accel.vcpus;
  }

  get waitingForInput(): boolean {
    return this.idle;
  }

  private end(ending: Ending): void {
    this.ending ??= ending;
    // An event that is due now takes every processor out of its slice.
    this.clock.schedule("machine", "ending", this.clock.now);
  }

  private output(index: number, byte: number): void {
    if (this.outputIndex !== index) {
      this.flushOutput();
      this.outputIndex = index;
    }
    this.outputBytes.push(byte);
    if (this.outputBytes.length >= OUTPUT_CHUNK) this.flushOutput();
  }

  private flushOutput(): void {
    if (this.outputBytes.length === 0) return;
    const bytes = Uint8Array.from(this.outputBytes);
    this.outputBytes = [];
    if (this.outputIndex < 0) this.environment.debugOutput?.(bytes);
    else this.environment.serialOutput(this.outputIndex, bytes);
  }

  run(instructions: number): void {
    const { clock, accel, tracer } = this;
    const lastInstruction = clock.instructions + instructions;
    const lastMoment = clock.now + instructions * NANOSECONDS_PER_INSTRUCTION;
    this.idle = false;
    try {
      for (;;) {
        if (this.ending?.kind === "reset" && (this.config.reboot ?? this.board.firmware !== null)) {
          this.restart();
          return;
        }
        if (this.ending || clock.instructions >= lastInstruction || clock.now >= lastMoment) break;
        clock.runDue();
        if (this.ending) continue;
        if (tracer.armed & TraceKind.Poll) {
          tracer.hit({ kind: TraceKind.Poll, vcpu: 0, text: "", detail: {} });
        }
        const limit = Math.min(lastInstruction - clock.instructions, STRETCH);
        if (accel.step(limit) || this.ending) continue;
        if (!accel.wakeable) {
          this.end({ kind: "dead-halt" });
        } else if (!clock.skipToNextEvent()) {
          if (this.board.awaitsInput) {
            this.idle = true;
            break;
          }
          this.end({ kind: "dead-halt" });
        }
      }
    } finally {
      this.flushOutput();
    }
  }

  /**
   * The guest has reset the machine: everything is as when it was made, the image loaded anew, but for what batteries, disks
   * and the person at the keyboard keep. Virtual time begins again too.
   */
  private restart(): void {
    const { clock, past } = this;
    const before: Past = {
      instructions: past.state.instructions + clock.instructions,
      nanoseconds: past.state.nanoseconds + clock.now,
      resets: past.state.resets + 1,
    };
    this.flushOutput();
    const putBack = this.board.nonvolatile();
    const silent: MachineEnvironment = { trace: silentTracer, serialOutput: () => {} };
    this.restore(new PcMachine(this.config, silent).snapshot());
    putBack();
    past.state = before;
  }

  serialInput(bytes: Uint8Array): void {
    this.idle = false;
    this.board.receive(bytes);
  }

  nmi(): void {
    this.idle = false;
    this.accel.sendMessage(MESSAGE_TO_ALL, 0, DeliveryMode.NMI << MESSAGE_MODE_SHIFT);
  }

  readMemory(space: AddressSpace, vcpu: number, address: bigint, length: number): Uint8Array {
    return this.accel.readMemory(space, vcpu, address, length);
  }
  writeMemory(space: AddressSpace, vcpu: number, address: bigint, bytes: Uint8Array): number {
    return this.accel.writeMemory(space, vcpu, address, bytes);
  }
  translate(vcpu: number, gva: bigint): bigint | undefined {
    return this.accel.translate(vcpu, gva);
  }

  setBreakpoints(list: readonly CodeBreakpoint[]): void {
    this.accel.setBreakpoints(list);
  }
  setWatchpoints(list: readonly Watchpoint[]): void {
    this.accel.setWatchpoints(list);
  }
  stopAfter(vcpu: number, count: number): void {
    this.accel.stopAfter(vcpu, count);
  }

  diskChanges(): readonly DiskChanges[] {
    return this.board.virtio.disks.map((disk) => disk.changes());
  }

  stats(): MachineStats {
    return {
      instructions: this.past.state.instructions + this.clock.instructions,
      nanoseconds: this.past.state.nanoseconds + this.clock.now,
      resets: this.past.state.resets,
      exits: this.accel.exits(),
      userspaceExits: this.accel.userspaceExits(),
    };
  }

  private get parts(): Record<string, Stateful<unknown>> {
    return { ...this.board.chips, ...this.accel.parts, clock: this.clock, past: this.past };
  }

  hash(): string {
    const hash = new StateHash();
    for (const [name, part] of Object.entries(this.parts)) {
      hash.text(name);
      hash.data(part.state);
    }
    this.accel.hash(hash);
    return hash.digest();
  }

  snapshot(): MachineSnapshot {
    const parts: Record<string, unknown> = { accelerator: this.accel.save(), ending: this.ending };
    for (const [name, part] of Object.entries(this.parts)) parts[`state:${name}`] = structuredClone(part.state);
    return { instructions: this.clock.instructions, parts };
  }

  restore(snapshot: MachineSnapshot): void {
    for (const [name, part] of Object.entries(this.parts)) {
      part.state = structuredClone(snapshot.parts[`state:${name}`]);
    }
    this.ending = snapshot.parts.ending as Ending | null;
    this.idle = false;
    this.outputBytes = [];
    this.board.firmware?.updateMap();
    this.accel.load(snapshot.parts.accelerator);
  }
}
