/**
 * The smallest machine around a processor: RAM, a serial port that is always ready, and the debug-exit port 0xf4. Loads a
 * multiboot ELF32 image, or a flat one that starts in real-address mode.
 */
import { VirtualClock } from "../../../engine/clock";
import { type InterruptPort, RunExit } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import { findModel } from "../../../engine/cpu/models/models";
import type { Processor } from "../../../engine/cpu/processor";
import { Off, Rflags, Seg } from "../../../engine/cpu/state";
import { tripleFaultCause } from "../../../engine/cpu/system/events";
import { MiB } from "../../../engine/memory/layout";
import { PhysicalMemory } from "../../../engine/memory/physical";
import { silentTracer } from "../../../engine/trace";

export interface BareMachine {
  readonly cpu: Processor;
  readonly memory: PhysicalMemory;
  /** What the guest wrote to port 0x3f8 or 0xe9. */
  readonly output: () => string;
  /** Runs to the write to port 0xf4, a halt or a shutdown; tells which. */
  run(instructions?: number): string;
  /** Vector that is pending at the interrupt controller, -1 for none. */
  interrupt: number;
}

export function bareMachine(model = "core"): BareMachine {
  const memory = new PhysicalMemory(17 * MiB);
  memory.add("ram", "ram", 0, 16 * MiB);
  const clock = new VirtualClock();
  let text = "";
  let ended = "";
  const machine = { interrupt: -1 };
  const interrupts: InterruptPort = {
    pending: () => machine.interrupt,
    acknowledge: () => {
      const vector = machine.interrupt;
      machine.interrupt = -1;
      return vector;
    },
    readCr8: () => 0,
    writeCr8: () => {},
    readMsr: (index) => (index === 0x1b ? 0xfee0_0900n : undefined),
    writeMsr: (index) => index === 0x1b,
  };
  const engine = new CpuEngine({ memory, clock, trace: silentTracer, tier: 0 });
  const cpu = engine.createProcessor({
    id: 0,
    model: findModel(model)!,
    interrupts,
    bus: {
      portIn: (port, size) => (port === 0x3fd ? 0x60 : size === 4 ? 0xffff_ffff : (1 << (size * 8)) - 1),
      portOut: (port, size, value) => {
        if (port === 0x3f8 || port === 0xe9) text += String.fromCharCode(value & 0xff);
        else if (port === 0xf4) {
          ended = `exit ${value}`;
          clock.schedule("test", "end", clock.now);
          cpu.attention();
        } else if (port === 0x2000) {
          machine.interrupt = value & 0xff;
          cpu.attention();
        } else if (size === 0) throw new Error("no port access has size 0");
      },
      mmioRead: (_pa, size) => (1n << BigInt(size * 8)) - 1n,
      mmioWrite: () => {},
    },
  });
  clock.register("test", { onClockEvent: () => {} });
  return Object.assign(machine, {
    cpu,
    memory,
    output: () => text,
    run: (instructions = 50_000_000) => {
      for (let left = instructions; left > 0 && ended === ""; ) {
        const before = cpu.retired;
        const exit = cpu.run(Math.min(left, 100_000));
        left -= Math.max(cpu.retired - before, 1);
        if (exit === RunExit.SHUTDOWN) return tripleFaultCause(cpu);
        if (exit === RunExit.HALTED) return "halted";
      }
      return ended === "" ? "still running" : ended;
    },
  });
}

/** Loads a multiboot ELF32 image and enters it as the specification says: flat 32-bit protected mode. */
export function loadMultiboot(machine: BareMachine, image: Uint8Array): void {
  const { memory, cpu } = machine;
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const table = view.getUint32(28, true);
  for (let i = 0; i < view.getUint16(44, true); i++) {
    const at = table + i * view.getUint16(42, true);
    if (view.getUint32(at, true) !== 1) continue;
    const offset = view.getUint32(at + 4, true);
    memory.write(view.getUint32(at + 12, true), image.subarray(offset, offset + view.getUint32(at + 16, true)));
  }
  const { state } = cpu;
  for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS]) state.setSegment(seg, 0x10, 0n, 0xffff_ffff, 0xc093);
  state.setSegment(Seg.CS, 8, 0n, 0xffff_ffff, 0xc09b);
  state.setU64(Off.CR0, 0x11n);
  state.rip = BigInt(view.getUint32(24, true));
  state.rflags = Rflags.FIXED;
  state.setGpr(0, 0x2bad_b002n);
  cpu.contextChanged();
}
