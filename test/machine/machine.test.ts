import { describe, expect, test } from "vitest";
import { DEFAULT_MODEL } from "../../engine/cpu/models/models";
import { type Accel, type MachineConfig, MachineError } from "../../engine/machine/config";
import { createMachine } from "../../engine/machine/create";
import type { Machine } from "../../engine/machine/machine";
import { silentTracer, TraceKind, type TracePoint } from "../../engine/trace";
import {
  deadHalt,
  debugExit,
  nmiButton,
  nmiWakes,
  ORIGIN,
  PROTECTED_ORIGIN,
  pitTicks,
  powerOff,
  serialEcho,
  threeStarts,
  tripleFault,
  wakeSecond,
} from "./programs";

const MIB = 1024 * 1024;

function start(accel: Accel, bytes: Uint8Array, overrides: Partial<MachineConfig> = {}, trace = silentTracer) {
  let text = "";
  const machine = createMachine(
    {
      accel,
      memory: 4 * MIB,
      smp: 1,
      cpu: DEFAULT_MODEL,
      image: { name: "guest", bytes },
      append: "",
      tier: 0,
      loadAddress: ORIGIN,
      ...overrides,
    },
    {
      trace,
      serialOutput: (_index, out) => {
        text += String.fromCharCode(...out);
      },
    },
  );
  return { machine, text: () => text };
}

/** Runs to the end, or gives up. */
function finish(machine: Machine, limit = 2_000_000): Machine["ending"] {
  for (let i = 0; i < 2000 && !machine.ending && !machine.waitingForInput; i++) machine.run(limit / 100);
  return machine.ending;
}
const word = (m: Machine, at: number): number => {
  const b = m.readMemory("gpa", 0, BigInt(at), 4);
  return new DataView(b.buffer, b.byteOffset).getUint32(0, true);
};

describe.each<Accel>(["none", "vmx"])("a machine with accel %s", (accel) => {
  test("port 0xf4 ends it with the code, and not one instruction later", () => {
    const { machine } = start(accel, debugExit(0x2a));
    expect(finish(machine)).toEqual({ kind: "debug-exit", code: 0x2a });
    expect(machine.stats().instructions).toBe(2);
  });

  test("SLP_EN with the type of S5 powers off", () => {
    expect(finish(start(accel, powerOff).machine)).toEqual({ kind: "power-off" });
  });

  test("a triple fault ends it and says which exception led to it", () => {
    const ending = finish(start(accel, tripleFault).machine);
    expect(ending).toMatchObject({ kind: "triple-fault", vcpu: 0 });
    expect((ending as { cause: string }).cause).toMatch(/#|BP|GP|DF|exception|vector/);
  });

  test("HLT with interrupts off for good is a dead halt", () => {
    expect(finish(start(accel, deadHalt).machine)).toEqual({ kind: "dead-halt" });
  });

  test("HLT with interrupts off is not dead while the timer may come as NMI", () => {
    expect(finish(start(accel, nmiWakes).machine)).toEqual({ kind: "debug-exit", code: 6 });
  });

  test("the NMI button interrupts with interrupts off", () => {
    const { machine } = start(accel, nmiButton);
    machine.run(1000);
    machine.nmi();
    expect(finish(machine)).toEqual({ kind: "debug-exit", code: 6 });
  });

  test("a reset ends the machine, or starts the image again: CMOS stays, memory does not, counts go on", () => {
    const { machine: once, text: first } = start(accel, threeStarts);
    expect([finish(once), first()]).toEqual([{ kind: "reset" }, "1"]);
    const one = once.stats().instructions;
    const { machine, text } = start(accel, threeStarts, { reboot: true });
    expect([finish(machine), text()]).toEqual([{ kind: "debug-exit", code: 0x2a }, "123"]);
    expect(machine.stats().resets).toBe(2);
    expect(machine.stats().instructions).toBeGreaterThan(2 * one);
    expect(word(machine, 0x600)).toBe(0);
  });

  test("serial input interrupts and is echoed; without input the machine waits instead of ending", () => {
    const { machine, text } = start(accel, serialEcho);
    finish(machine);
    expect([machine.ending, machine.waitingForInput]).toEqual([null, true]);
    machine.serialInput(new TextEncoder().encode("hello"));
    expect(machine.waitingForInput).toBe(false);
    finish(machine);
    expect(text()).toBe("hello");
    machine.serialInput(new TextEncoder().encode("q"));
    expect(finish(machine)).toEqual({ kind: "debug-exit", code: 5 });
  });

  test.each([
    ["HLT", 0xf4],
    ["a loop", 0x90],
  ])("ten PIT periods are ten periods of the PM timer's virtual time, waiting in %s", (_how, wait) => {
    const { machine } = start(accel, pitTicks(wait));
    expect(finish(machine, 20_000_000)).toEqual({ kind: "debug-exit", code: 0 });
    const passed = word(machine, 0x508) - word(machine, 0x504);
    // 11930 ticks of 1.193182 MHz are 35790 of 3.579545 MHz.
    expect(Math.abs(passed - 35790)).toBeLessThan(20);
  });

  test("slicing changes nothing: the same hash at the same instruction count", () => {
    const long = start(accel, pitTicks(0x90)).machine;
    const short = start(accel, pitTicks(0x90)).machine;
    const to = (m: Machine, target: number, slice: number): void => {
      while (m.stats().instructions < target) m.run(Math.min(slice, target - m.stats().instructions));
    };
    for (const target of [50_000, 200_001, 400_000]) {
      to(long, target, 1_000_000);
      to(short, target, 777);
      expect(short.stats().instructions).toBe(target);
      expect(short.hash()).toBe(long.hash());
    }
  });

  test("a restored snapshot goes on to exactly the same states", () => {
    const { machine } = start(accel, pitTicks(0x90));
    machine.run(123_456);
    const before = machine.hash();
    const snapshot = machine.snapshot();
    machine.run(300_000);
    const after = machine.hash();
    machine.restore(structuredClone(snapshot));
    expect(machine.hash()).toBe(before);
    machine.run(300_000);
    expect(machine.hash()).toBe(after);
    expect(snapshot.instructions).toBe(123_456);
  });

  test("a snapshot taken before the end brings an ended machine back", () => {
    const { machine } = start(accel, debugExit(1));
    const snapshot = machine.snapshot();
    expect(finish(machine)).toEqual({ kind: "debug-exit", code: 1 });
    machine.restore(snapshot);
    expect(machine.ending).toBeNull();
    expect(finish(machine)).toEqual({ kind: "debug-exit", code: 1 });
  });

  test("INIT and start-up wake a second processor", () => {
    const { machine } = start(accel, wakeSecond, { smp: 2, loadAddress: PROTECTED_ORIGIN });
    expect(finish(machine, 4_000_000)).toEqual({ kind: "debug-exit", code: 7 });
    expect(machine.readMemory("gpa", 0, 0x9000n, 1)[0]).toBe(0x55);
  });

  test("memory is read and written by guest-virtual and guest-physical address, and ends where RAM ends", () => {
    const { machine } = start(accel, deadHalt);
    expect([...machine.readMemory("gva", 0, BigInt(ORIGIN), 2)]).toEqual([...deadHalt]);
    expect(machine.writeMemory("gpa", 0, 0x2ffen, Uint8Array.from([1, 2, 3, 4]))).toBe(4);
    expect([...machine.readMemory("gva", 0, 0x2ffen, 4)]).toEqual([1, 2, 3, 4]);
    expect(machine.readMemory("gpa", 0, BigInt(4 * MIB - 3), 10)).toHaveLength(3);
    expect(machine.translate(0, 0x1234n)).toBe(0x1234n);
  });

  test("registers are the guest's before, during and after", () => {
    const { machine } = start(accel, debugExit(0x2a));
    const { registers } = machine.vcpus[0];
    expect([registers.read("rip"), registers.read("cs"), registers.read("cr0")]).toEqual([0x7c00n, 0n, 0x10n]);
    registers.write("rbx", 0x1234n);
    finish(machine);
    expect(registers.read("rax") & 0xffn).toBe(0x2an);
    expect(registers.read("rbx")).toBe(0x1234n);
  });

  test("a device access is a trace point with port, size, direction and value", () => {
    const points: TracePoint[] = [];
    const trace = { armed: TraceKind.Device as number, hit: (p: TracePoint) => points.push(p) };
    finish(start(accel, debugExit(3), {}, trace).machine);
    expect(points.at(-1)).toMatchObject({
      kind: TraceKind.Device,
      vcpu: 0,
      detail: { device: "debug exit", port: 0xf4n, size: 1n, write: true, value: 3n },
    });
  });
});

describe("accel vmx", () => {
  test("exits are counted by reason and by kvm_run exit reason", () => {
    const { machine } = start("vmx", debugExit(1));
    finish(machine);
    expect(machine.stats().exits.IO_INSTRUCTION).toBe(1);
    expect(machine.stats().userspaceExits.KVM_EXIT_IO).toBe(1);
  });
});

describe("configurations nobody can use", () => {
  test.each<[Partial<MachineConfig>, RegExp]>([
    [{ accel: "svm" }, /svm is not there yet/],
    [{ memory: 1000 }, /multiple of 4096/],
    [{ memory: 2 ** 40 }, /at most/],
    [{ smp: 0 }, /smp: 0/],
    [{ smp: 99 }, /smp: 99/],
    [{ cpu: "8086" }, /no processor model "8086"; use one of/],
    [{ image: { name: "empty", bytes: new Uint8Array(0) } }, /empty: the file is empty/],
    [{ accel: "vmx", kvm: { nonsense: true } }, /nonsense/],
  ])("%j is one clear MachineError", (overrides, message) => {
    expect(() => start("none", deadHalt, overrides)).toThrow(MachineError);
    expect(() => start("none", deadHalt, overrides)).toThrow(message);
  });
});
