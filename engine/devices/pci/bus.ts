/**
 * A PCI bus with configuration mechanism #1 (ports 0xcf8, 0xcfc-0xcff; PCI Local Bus 2.3 section 3.2.2.3.2): functions by
 * device and function number, address decoding from their BARs, INTx to the four PIRQ inputs of the ISA bridge.
 */
import type { Registers, Stateful } from "../chip";
import type { PciFunction, PciFunctionState, PciRange } from "./function";

/** CONFIG_ADDRESS and the state of every function. */
export interface PciBusState {
  /** CONFIG_ADDRESS. */
  address: number;
  /** By name. */
  functions: Record<string, PciFunctionState>;
}

/** Where the bus hands interrupts to. */
export interface PciBusOutside {
  /** PIRQA# to PIRQD# in bits 0 to 3, asserted as 1. */
  pirq(levels: number): void;
  message(address: number, addressHigh: number, data: number): void;
}

interface Placed {
  readonly device: number;
  readonly number: number;
  readonly function: PciFunction;
}

const ENABLE = 0x80000000;
const ABSENT = 0xffffffff;

/** One PCI bus with its functions. */
export class PciBus implements Stateful<PciBusState> {
  private address = 0;
  private readonly placed: Placed[] = [];
  /** What the functions answer at; null when it has to be worked out anew. */
  private decoded: readonly PciRange[] | null = null;
  private levels = 0;

  /** Port 0xcf8, 4 bytes; narrower accesses are not meant for it (0xcf9 is the reset control register). */
  readonly addressPort: Registers = {
    read: (_offset, size) => (size === 4 ? this.address : ABSENT),
    write: (_offset, size, value) => {
      if (size === 4) this.address = (value & 0x80fffffc) >>> 0;
    },
  };
  /** Ports 0xcfc-0xcff. */
  readonly dataPorts: Registers = {
    read: (offset, size) => this.selected()?.readConfig((this.address & 0xfc) + offset, size) ?? ABSENT,
    write: (offset, size, value) => this.selected()?.writeConfig((this.address & 0xfc) + offset, size, value),
  };

  constructor(private readonly outside: PciBusOutside) {}

  /** @throws RangeError when the place is taken or the name is used */
  add(device: number, number: number, added: PciFunction): void {
    const clash = this.placed.find(
      (p) => (p.device === device && p.number === number) || p.function.name === added.name,
    );
    if (clash) throw new RangeError(`PCI function ${added.name} clashes with ${clash.function.name}`);
    this.placed.push({ device, number, function: added });
    added.attach({
      interruptChanged: () => this.updateInterrupts(),
      decodeChanged: () => {
        this.decoded = null;
      },
      message: (address, high, data) => this.outside.message(address, high, data),
    });
    this.decoded = null;
  }

  /** All functions with their places, in order of device and function number. */
  get functions(): readonly Placed[] {
    return [...this.placed].sort((a, b) => a.device - b.device || a.number - b.number);
  }

  get state(): PciBusState {
    const functions: Record<string, PciFunctionState> = {};
    for (const p of this.placed) functions[p.function.name] = p.function.state;
    return { address: this.address, functions };
  }
  set state(state: PciBusState) {
    this.address = state.address;
    for (const p of this.placed) p.function.state = state.functions[p.function.name];
    this.levels = this.pirqLevels();
    this.decoded = null;
  }

  reset(): void {
    this.address = 0;
    for (const p of this.placed) p.function.reset();
    this.updateInterrupts();
  }

  /** The addressed function, or undefined when nothing is there. */
  private selected(): PciFunction | undefined {
    const { address } = this;
    if (!(address & ENABLE) || ((address >>> 16) & 0xff) !== 0) return undefined;
    const device = (address >>> 11) & 0x1f;
    const number = (address >>> 8) & 7;
    return this.placed.find((p) => p.device === device && p.number === number)?.function;
  }

  /** Who answers at an address of a space now. */
  at(space: "io" | "memory", address: number): PciRange | undefined {
    this.decoded ??= this.functions.flatMap((p) => p.function.ranges());
    for (const r of this.decoded) {
      if (r.space === space && address >= r.base && address < r.base + r.size) return r;
    }
    return undefined;
  }

  /** PIRQ input (0 to 3) of a device's interrupt pin (1 to 4), as the PC's slots are wired. */
  static pirqOf(device: number, pin: number): number {
    return (pin - 1 + device - 1) & 3;
  }

  private pirqLevels(): number {
    let levels = 0;
    for (const { device, function: f } of this.placed) {
      if (f.interruptPin > 0 && f.intxAsserted) levels |= 1 << PciBus.pirqOf(device, f.interruptPin);
    }
    return levels;
  }

  private updateInterrupts(): void {
    const levels = this.pirqLevels();
    if (levels === this.levels) return;
    this.levels = levels;
    this.outside.pirq(levels);
  }

  /** The PIRQ levels as they are now, for the router to start from. */
  get pirqs(): number {
    return this.levels;
  }
}
