/** Small hypervisors of test/guests/hypervisor on the real processor: what a guest sees of VMX. */
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { TraceKind } from "../../../engine/trace";
import { BareMachine } from "./bare-machine";

const guest = (name: string): string => fileURLToPath(new URL(`../../guests/hypervisor/${name}.elf`, import.meta.url));

describe("hypervisors that run as guests of accel none", () => {
  test("every kind of VM exit has the reason, qualification and state the manual gives it (3C 26, 28)", () => {
    const machine = new BareMachine(guest("features")).run(20_000_000);
    expect(machine.output.split("\n").filter((line) => line !== "" && !line.startsWith("ok"))).toEqual([
      "50 passed, 0 failed",
    ]);
    expect(machine.code).toBe(0);
  });

  test("entries with impossible guest state, host state and controls fail as 3C 27.2, 27.3 and 31.4 say", () => {
    const machine = new BareMachine(guest("bad-state"));
    machine.trace.armed = TraceKind.VmEntryFailed;
    machine.run(5_000_000);
    expect(machine.output).toBe(
      [
        "guest CR0.PG without PE: exit reason 0x80000021 qualification 0x0",
        "VPID 0: VM-instruction error 0x7",
        "host CS with RPL 3: VM-instruction error 0x8",
        "VMRESUME of a clear VMCS: VM-instruction error 0x5",
        "",
      ].join("\n"),
    );
    expect(machine.code).toBe(0);
    expect(machine.points.map((p) => p.detail.checks)).toEqual([
      "guest.cr0.pg-without-pe",
      "control.vpid.zero",
      "host.cs.selector",
    ]);
  });

  test("a guest with many CPUID exits goes in and out, each exit traced when somebody listens", () => {
    const machine = new BareMachine(guest("exits")).run(100_000);
    const before = machine.cpu.vmx.exitCounts[ExitReason.CPUID];
    expect(before).toBeGreaterThan(500);
    machine.trace.armed = TraceKind.VmExit | TraceKind.VmEntry;
    machine.run(10_000);
    const exits = machine.points.filter((p) => p.kind === TraceKind.VmExit);
    expect(exits.length).toBe(machine.cpu.vmx.exitCounts[ExitReason.CPUID] - before);
    expect(exits[0].text).toBe("CPUID leaf 0x0");
    expect(Math.abs(machine.points.length - 2 * exits.length)).toBeLessThanOrEqual(1);
  });

  test("a snapshot taken in the guest goes on to the same state", () => {
    const machine = new BareMachine(guest("exits")).run(50_000);
    while (machine.cpu.guest === null) machine.run(1);
    const memory = machine.memory.u8.slice();
    const processors = structuredClone(machine.engine.save());
    const clock = structuredClone(machine.clock.state);
    const observe = () => {
      machine.run(5_000);
      const { state, retired, vmx } = machine.cpu;
      return [state.rip, state.rflags, ...[0, 1, 2, 3, 4, 12].map((r) => state.gpr(r)), retired, vmx.exitCounts[10]];
    };
    const first = observe();
    machine.memory.u8.set(memory);
    machine.clock.state = clock;
    machine.engine.load(processors);
    expect(machine.cpu.guest).not.toBeNull();
    expect(observe()).toEqual(first);
  });
});
