/** A processor without an execution engine: enough of Cpu for the VMX unit, with a record of what it asked for. */
import { VirtualClock } from "../../../engine/clock";
import {
  type Bus,
  type CodeCache,
  type Cpu,
  CpuFault,
  type InterruptPort,
  type Mmu,
  RunExit,
  type SecondStage,
} from "../../../engine/cpu/cpu";
import type { GuestMode } from "../../../engine/cpu/guest-mode";
import type { CpuModel, Feature } from "../../../engine/cpu/models/model";
import { CpuState, Off } from "../../../engine/cpu/state";
import { VmxUnit } from "../../../engine/cpu/vmx/unit";
import type { VmxEvent } from "../../../engine/cpu/vmx/vmx";
import { PhysicalMemory } from "../../../engine/memory/physical";
import type { TracePoint, Tracer } from "../../../engine/trace";

// biome-ignore format: a list
const FEATURES: readonly Feature[] = [
  "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "cmov", "pat", "clflush",
  "fxsr", "sse", "sse2", "pcid", "fsgsbase", "smep", "smap", "umip", "invpcid", "syscall", "nx", "page1gb", "rdtscp",
  "lm", "vmx", "monitor", "x2apic", "xsave", "xsaves",
];

export const testModel: CpuModel = {
  name: "test",
  vendor: "GenuineIntel",
  leaves: [],
  features: new Set(FEATURES),
  physicalBits: 40,
  linearBits: 48,
};

export class FakeCpu implements Cpu {
  readonly id = 0;
  readonly model = testModel;
  readonly memory = new PhysicalMemory(0x40_0000);
  readonly clock = new VirtualClock();
  readonly state: CpuState;
  readonly bus: Bus = { portIn: () => 0, portOut: () => {}, mmioRead: () => 0n, mmioWrite: () => {} };
  readonly points: TracePoint[] = [];
  readonly trace: Tracer = { armed: 0, hit: (point) => void this.points.push(point) };
  readonly invalidations: unknown[] = [];
  readonly delivered: VmxEvent[] = [];
  readonly msrs = new Map<number, bigint>();
  readonly vmx: VmxUnit;
  pendingInterrupt = -1;
  guest: GuestMode | null = null;
  secondStage: SecondStage | null = null;
  hostIsModel = false;
  retired = 0;
  contextChanges = 0;
  attentions = 0;
  readonly mmu: Mmu;
  readonly code: CodeCache = {
    updateContext: () => {},
    carryGlobals: () => {},
    invalidateLinear: () => {},
    invalidatePhysical: () => {},
    hasCode: () => false,
    touches: () => false,
    flushEverything: () => {},
  };
  readonly interrupts: InterruptPort = {
    pending: () => this.pendingInterrupt,
    acknowledge: () => this.pendingInterrupt,
    readCr8: () => 0,
    writeCr8: () => {},
    readMsr: () => undefined,
    writeMsr: () => false,
  };

  constructor() {
    this.memory.add("ram", "ram", 0, 0x40_0000);
    this.state = new CpuState(0, this.memory.memory);
    const { memory } = this;
    const offset = (linear: bigint): number => memory.hostOffset(Number(linear));
    this.mmu = {
      updateContext: () => {},
      fill: () => -1,
      translate: (linear) => Number(linear),
      probe: (linear) => Number(linear),
      read: (linear, size) => BigInt.asUintN(size * 8, memory.view.getBigUint64(offset(linear), true)),
      write: (linear, size, value) => {
        const at = offset(linear);
        const old = memory.view.getBigUint64(at, true);
        const kept = (old >> BigInt(size * 8)) << BigInt(size * 8);
        memory.view.setBigUint64(at, size === 8 ? value : kept | BigInt.asUintN(size * 8, value), true);
      },
      plain: () => -1,
      checkWrite: () => {},
      invalidatePage: () => {},
      invalidateAll: () => {},
      invalidateTagged: (what) => void this.invalidations.push(what),
      protectPhysicalPage: () => {},
      flushEverything: () => {},
      loadPdptes: () => true,
      invalidatePcid: () => {},
      carryGlobals: () => {},
      translatedGlobal: false,
    };
    this.vmx = new VmxUnit(this, {
      deliver: (event) => void this.delivered.push(event),
      readMsr: (index) => {
        const value = this.msrs.get(index);
        if (value === undefined) throw new CpuFault(13, 0);
        return value;
      },
      writeMsr: (index, value) => {
        if (!this.msrs.has(index)) throw new CpuFault(13, 0);
        this.msrs.set(index, value);
      },
    });
    this.state.setU32(Off.FEATURE_CONTROL, 5);
  }

  run(): RunExit {
    return RunExit.SLICE;
  }
  contextChanged(): void {
    this.contextChanges++;
  }
  attention(): void {
    this.attentions++;
  }
  signal(): void {}
  reset(): void {}
  setBreakpoints(): void {}
  setWatchpoints(): void {}
  watchesPage(): boolean {
    return false;
  }
  stopAfter(): void {}
}
