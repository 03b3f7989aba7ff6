/** A processor, 128 MBytes of RAM, a serial port and isa-debug-exit: what the hypervisors of test/guests/hypervisor need. */
import { readFileSync } from "node:fs";
import { VirtualClock } from "../../../engine/clock";
import { type Bus, RunExit } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import { DEFAULT_MODEL, findModel } from "../../../engine/cpu/models/models";
import type { Processor } from "../../../engine/cpu/processor";
import { Off, Seg } from "../../../engine/cpu/state";
import { PhysicalMemory } from "../../../engine/memory/physical";
import type { TracePoint, Tracer } from "../../../engine/trace";
import { NO_INTERRUPTS } from "../long-mode";

const MEMORY = 128 << 20;
const COM1 = 0x3f8;
const LINE_STATUS = COM1 + 5;
const DEBUG_EXIT = 0xf4;

class Finished {}
const finished = new Finished();

export class BareMachine {
  readonly memory = new PhysicalMemory(MEMORY);
  readonly clock = new VirtualClock();
  readonly points: TracePoint[] = [];
  readonly trace: Tracer = { armed: 0, hit: (point) => void this.points.push(point) };
  readonly cpu: Processor;
  readonly engine: CpuEngine;
  output = "";
  /** What the guest wrote to isa-debug-exit, -1 before. */
  code = -1;

  constructor(image: string) {
    this.memory.add("ram", "ram", 0, MEMORY);
    this.engine = new CpuEngine({ memory: this.memory, clock: this.clock, trace: this.trace, tier: 0 });
    const bus: Bus = {
      portIn: (port) => (port === LINE_STATUS ? 0x20 : 0xff),
      portOut: (port, _size, value) => {
        if (port === COM1) this.output += String.fromCharCode(value & 0xff);
        if (port === DEBUG_EXIT) {
          this.code = value & 0xff;
          throw finished;
        }
      },
      mmioRead: () => 0xffff_ffff_ffff_ffffn,
      mmioWrite: () => {},
    };
    const model = findModel(DEFAULT_MODEL);
    if (!model) throw new Error("no default model");
    this.cpu = this.engine.createProcessor({ id: 0, model, bus, interrupts: NO_INTERRUPTS });
    this.load(new DataView(new Uint8Array(readFileSync(image)).buffer));
  }

  /** Loads an ELF32 file and starts it as multiboot says: flat 32-bit protected mode. */
  private load(elf: DataView): void {
    const headers = elf.getUint32(28, true);
    for (let i = 0; i < elf.getUint16(44, true); i++) {
      const at = headers + i * elf.getUint16(42, true);
      if (elf.getUint32(at, true) !== 1) continue;
      const offset = elf.getUint32(at + 4, true);
      this.memory.write(elf.getUint32(at + 12, true), new Uint8Array(elf.buffer, offset, elf.getUint32(at + 16, true)));
    }
    const { state } = this.cpu;
    state.setU64(Off.CR0, 0x11n);
    for (const seg of [Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS]) state.setSegment(seg, 0x10, 0n, 0xffff_ffff, 0xc093);
    state.setSegment(Seg.CS, 0x08, 0n, 0xffff_ffff, 0xc09b);
    state.rip = BigInt(elf.getUint32(24, true));
    this.cpu.contextChanged();
  }

  /** Runs until the guest ends the machine, or `instructions` have retired. */
  run(instructions: number): this {
    try {
      const end = this.cpu.retired + instructions;
      while (this.cpu.retired < end) {
        const exit = this.cpu.run(end - this.cpu.retired);
        if (exit !== RunExit.SLICE) throw new Error(`the processor stopped with ${exit}: ${this.output}`);
        this.clock.runDue();
      }
    } catch (end) {
      if (!(end instanceof Finished)) throw end;
    }
    return this;
  }
}
