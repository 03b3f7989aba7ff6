import { describe, expect, test } from "vitest";
import { TraceKind } from "../../engine/trace";
import { Driver } from "./driver";
import { CODE, HANDLER } from "./fake-machine";

const NOP = 0x90;
const OUT = [0xe6, 0x38];
const stepIn = { kind: "stepIn", vcpu: 0 } as const;
const next = { kind: "next", vcpu: 0 } as const;
const stepOut = { kind: "stepOut", vcpu: 0 } as const;
const start = { kind: "start" } as const;
const go = { kind: "continue" } as const;
const rip = (d: Driver): bigint => d.machine.vcpus[0].rip;

describe("stepping plain code", () => {
  test("step in executes one instruction", () => {
    const d = new Driver([NOP, NOP, NOP, 0xf4]);
    expect(d.play(stepIn)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 1n);
  });

  test("step over a call stops behind it, not at the inner call of a recursion", () => {
    // f: call f2; hlt   f2: nop; ret
    const d = new Driver([0xe8, 1, 0, 0, 0, 0xf4, NOP, 0xc3]);
    expect(d.play(next)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 5n);
  });

  test("another task that comes past the place behind the call, on a stack of its own, does not end the step", () => {
    // call f; hlt; f: pop rbp, so often that the stack pointer is far above; call back to the hlt
    const code = (pops: number): number[] => {
      const before = [0xe8, 1, 0, 0, 0, 0xf4, ...Array<number>(pops).fill(0x5d)];
      const displacement = 5 - (before.length + 5);
      return [...before, 0xe8, displacement & 0xff, (displacement >> 8) & 0xff, 0xff, 0xff];
    };
    expect(new Driver(code(200)).play(next)).toEqual(["ended: dead-halt"]);
    // A callee that takes its arguments off the stack is no other task.
    expect(new Driver(code(9)).play(next)).toEqual(["step"]);
  });

  test("step in on a call goes into the function, step out returns behind the call", () => {
    const d = new Driver([0xe8, 1, 0, 0, 0, 0xf4, NOP, 0xc3]);
    expect(d.play(stepIn, stepOut)).toEqual(["step", "step"]);
    expect(rip(d)).toBe(CODE + 5n);
  });

  test("step out uses the frame pointer when the function has pushed other things", () => {
    // call +1; hlt; f: push rbp; mov rbp, rsp; push rbp; nop; pop rbp; pop rbp; ret
    const d = new Driver([0xe8, 1, 0, 0, 0, 0xf4, 0x55, 0x48, 0x89, 0xe5, 0x55, NOP, 0x5d, 0x5d, 0xc3]);
    expect(d.play(stepIn, stepIn, stepIn, stepIn, stepOut)).toEqual(["step", "step", "step", "step", "step"]);
    expect(rip(d)).toBe(CODE + 5n);
  });

  test("step out without a return address says so and leaves the machine stopped", () => {
    const d = new Driver([NOP, 0xf4]);
    expect(d.play(stepOut, stepIn)).toEqual([expect.stringContaining("no return address"), "step"]);
  });

  test("a breakpoint inside a call that is stepped over stops there and ends the step", () => {
    const d = new Driver([0xe8, 1, 0, 0, 0, 0xf4, NOP, 0xc3]);
    d.now("setBreakpoints", { list: [{ id: 7, at: { linear: CODE + 6n }, condition: "" }] });
    expect(d.play(next, go)).toEqual(["breakpoint [7]", "ended: dead-halt"]);
  });
});

describe("unwinding without frame pointers", () => {
  test("a direct call tells which function it calls: an older return address on the stack does not mislead", () => {
    // call f; hlt; f: push rbp; nop; ret   and, elsewhere, a call of another function.
    const code = [
      0xe8,
      1,
      0,
      0,
      0,
      0xf4,
      0x55,
      NOP,
      0xc3,
      0xc3,
      ...Array<number>(22).fill(NOP),
      0xe8,
      0xe4,
      0xff,
      0xff,
      0xff,
      NOP,
    ];
    const d = new Driver(code);
    d.now("setSymbols", {
      symbols: [
        { name: "start", address: CODE, size: 6n },
        { name: "f", address: CODE + 6n, size: 3n },
        { name: "g", address: CODE + 9n, size: 1n },
      ],
    });
    // What push rbp leaves on the stack looks like a return address: it is the one behind the call of g.
    d.machine.vcpus[0].values.set("rbp", CODE + 0x25n);
    d.queueNext("resume", stepIn).queueNext("resume", stepIn).queueNext("unwind", { vcpu: 0, limit: 10 });
    d.host.serve();
    const answer = d.sent.find(
      (m) => "response" in m && typeof m.response === "object" && m.response && "frames" in m.response,
    );
    expect(answer).toMatchObject({ response: { frames: [{ linear: CODE + 7n }, { linear: CODE + 5n }] } });
  });
});

describe("interrupts and exceptions", () => {
  test("a step does not land in the handler of an interrupt that arrives", () => {
    for (const how of [stepIn, next]) {
      const d = new Driver([NOP, NOP, 0xf4], "none");
      d.machine.vcpus[0].interruptAt = 0;
      expect(d.play(how)).toEqual(["step"]);
      expect(rip(d)).toBe(CODE + 1n);
    }
  });

  test("step over HLT stops behind it when the interrupt's handler has returned", () => {
    const d = new Driver([0xf4, NOP, 0xf4], "none");
    d.machine.vcpus[0].interruptAt = 1;
    expect(d.play(next)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 1n);
  });

  test("a step on an instruction that faults lands at the exception's handler", () => {
    for (const how of [stepIn, next]) {
      const d = new Driver([0x0f, 0x0b, NOP], "none");
      expect(d.play(how)).toEqual(["step"]);
      expect(rip(d)).toBe(HANDLER);
    }
  });

  test("step in on INT goes into the handler, step over behind it", () => {
    const into = new Driver([0xcd, 0x20, NOP, 0xf4], "none");
    expect(into.play(stepIn)).toEqual(["step"]);
    expect(rip(into)).toBe(HANDLER);
    const over = new Driver([0xcd, 0x20, NOP, 0xf4], "none");
    expect(over.play(next)).toEqual(["step"]);
    expect(rip(over)).toBe(CODE + 2n);
  });
});

describe("VM exits", () => {
  test("step in shows the way: exit, handler, userspace exit, device, VM entry, next guest instruction", () => {
    const d = new Driver([...OUT, NOP, 0xf4]);
    expect(d.play(stepIn, stepIn, stepIn, stepIn, stepIn, stepIn)).toEqual([
      "step IO_INSTRUCTION out port 0x38 size 1",
      "step handler 30",
      "step KVM_EXIT_IO",
      "step serial write 56",
      "step VM entry",
      "step",
    ]);
    expect(rip(d)).toBe(CODE + 2n);
  });

  test("step over an instruction that exits goes straight to the next guest instruction", () => {
    const d = new Driver([...OUT, NOP, 0xf4]);
    expect(d.play(next)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 2n);
  });

  test("step over and step out inside an exit go back to the guest", () => {
    for (const how of [next, stepOut]) {
      const d = new Driver([...OUT, NOP, 0xf4]);
      expect(d.play(stepIn, stepIn, how)).toHaveLength(3);
      expect(rip(d)).toBe(CODE + 2n);
    }
  });

  test("step over an instruction whose memory is mapped by an exit executes it", () => {
    const d = new Driver([0xa2, 0, 0x90, 0, 0, NOP, 0xf4]);
    d.machine.violationAt = 0x9000n;
    expect(d.play(next)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 5n);
  });

  test("step in with a target passes the stages before it", () => {
    const d = new Driver([...OUT, NOP, 0xf4]);
    expect(d.play({ ...stepIn, stages: TraceKind.Device })).toEqual(["step serial write 56"]);
  });

  test("an exit the stepped instruction did not cause is passed, and so is the interrupt it injects", () => {
    const d = new Driver([NOP, NOP, 0xf4]);
    const run = d.machine.run.bind(d.machine);
    let first = true;
    d.machine.run = (n) => {
      if (first) d.machine.hostInterrupt(0, true);
      first = false;
      run(n);
    };
    expect(d.play(stepIn)).toEqual(["step"]);
    expect(rip(d)).toBe(CODE + 1n);
  });

  test("other vCPUs neither end a step nor count for it", () => {
    const d = new Driver([...OUT, NOP, 0xf4], "vmx", 2);
    d.machine.vcpus[1].rip = CODE + 2n;
    d.machine.vcpus[1].interruptAt = 100;
    expect(d.play(stepIn, next)).toEqual(["step IO_INSTRUCTION out port 0x38 size 1", "step"]);
    expect(rip(d)).toBe(CODE + 2n);
  });
});

describe("stop points", () => {
  const LOOP = [...OUT, 0xeb, 0xfc];

  test("a filter stops at exits whose details and condition match", () => {
    const d = new Driver([0xe6, 0x10, ...OUT, 0xf4]);
    d.now("setTraceFilters", {
      list: [{ id: "exit:IO", kind: TraceKind.VmExit, match: { reason: 30 }, condition: "port == 0x38 && size == 1" }],
    });
    expect(d.play(go, go)).toEqual(["trace [exit:IO] IO_INSTRUCTION out port 0x38 size 1", "ended: dead-halt"]);
  });

  test("a condition over a detail this exit does not have does not hold; a name nothing has is reported", () => {
    const filter = (condition: string): string[] => {
      const d = new Driver([0xa2, 0, 0x90, 0, 0, 0xf4]);
      d.machine.violationAt = 0x9000n;
      d.now("setTraceFilters", { list: [{ id: "any", kind: TraceKind.VmExit, match: {}, condition }] });
      return d.play(start, go);
    };
    expect(filter("port == 0x3f8")).toEqual(["ended: dead-halt", expect.stringContaining("ended")]);
    expect(filter("gpa == 0x9000")).toEqual(["trace [any] EPT_VIOLATION write", "ended: dead-halt"]);
    expect(filter("prot == 0x3f8")).toEqual(["trace [any] EPT_VIOLATION write", "ended: dead-halt"]);
  });

  test("hit counts: from, exactly, every", () => {
    const at = (hit: { kind: "from" | "exactly" | "every"; count: number }, stops: number): number[] => {
      const d = new Driver(LOOP);
      d.now("setBreakpoints", { list: [{ id: 1, at: { linear: CODE }, condition: "", hit }] });
      for (let i = 0; i < stops; i++) d.queueNext("resume", i === 0 ? start : go).queueNext("stats", {});
      d.host.serve();
      return d.sent.flatMap((m) =>
        "response" in m && m.response && typeof m.response === "object" && "exits" in m.response
          ? [(m.response.exits as { IO_INSTRUCTION: number }).IO_INSTRUCTION]
          : [],
      );
    };
    expect(at({ kind: "from", count: 3 }, 2)).toEqual([2, 3]);
    expect(at({ kind: "every", count: 3 }, 2)).toEqual([2, 5]);
    expect(at({ kind: "exactly", count: 4 }, 1)).toEqual([3]);
  });

  test("a log point writes its line and goes on", () => {
    const d = new Driver([NOP, NOP, 0xf4]);
    d.now("setBreakpoints", {
      list: [{ id: 1, at: { linear: CODE + 1n }, condition: "", log: "at {rip}, {{braces}}, {nothing}" }],
    });
    const lines = d.play(go);
    expect(lines[0]).toMatch(/^log: at 0x1001, \{braces\}, <nothing: nothing is called "nothing" here \(column 1\)>$/);
    expect(lines[1]).toBe("ended: dead-halt");
  });

  test("a condition that cannot be evaluated stops and says why", () => {
    const d = new Driver([NOP, NOP, 0xf4]);
    d.now("setBreakpoints", { list: [{ id: 1, at: { linear: CODE + 1n }, condition: "u8[0xffff0000] == 1" }] });
    d.play(go);
    const stop = d.sent.find((m) => "event" in m && m.event === "stopped");
    expect(stop).toMatchObject({
      stop: { hits: [1], description: expect.stringContaining("no memory at gva:0xffff0000") },
    });
  });

  test("a wrong condition is refused when it is set, and one that assigns too; the others stand", () => {
    const d = new Driver([NOP, 0xf4]);
    const { refused } = d.now("setBreakpoints", {
      list: [
        { id: 1, at: { linear: CODE }, condition: "rax +" },
        { id: 2, at: { linear: CODE }, condition: "rax = 1" },
        { id: 3, at: { linear: CODE }, condition: "rax == 0" },
      ],
    });
    expect(refused.map((r) => r.id)).toEqual([1, 2]);
    expect(refused[0].message).toContain("column 6");
    expect(d.play(start, go)).toEqual(["breakpoint [3]", "ended: dead-halt"]);
  });

  test("the breakpoint where a run starts does not stop it again", () => {
    const d = new Driver(LOOP);
    d.now("setBreakpoints", { list: [{ id: 1, at: { linear: CODE + 2n }, condition: "" }] });
    expect(d.play(go, go)).toEqual(["breakpoint [1]", "breakpoint [1]"]);
    expect(d.machine.stats().exits.IO_INSTRUCTION).toBe(2);
  });

  test("a data watchpoint stops and names itself", () => {
    const d = new Driver([0xa2, 0, 0x90, 0, 0, NOP, 0xf4]);
    d.now("setWatchpoints", {
      list: [{ id: 9, space: "linear", address: 0x9000n, length: 8, access: "write", condition: "" }],
    });
    expect(d.play(go)).toEqual(["watchpoint [9]"]);
  });

  test("the model's stack at a trace point is the real JavaScript stack, innermost first", () => {
    const d = new Driver([...OUT, 0xf4]);
    d.play(stepIn);
    const stop = d.sent.find((m) => "event" in m && m.event === "stopped");
    const frames = stop && "event" in stop && stop.event === "stopped" ? stop.stop.modelFrames : [];
    const names = frames.map((f) => f.functionName);
    expect(names.indexOf("vcpuRun")).toBeGreaterThanOrEqual(0);
    expect(names.indexOf("vcpuRun")).toBeLessThan(names.indexOf("execute"));
    expect(names.indexOf("execute")).toBeLessThan(names.indexOf("run"));
  });

  test("terminating inside an exit unwinds the engine", () => {
    const d = new Driver([...OUT, NOP, 0xf4]);
    d.queueNext("resume", stepIn).queueNext("terminate", {});
    d.host.serve();
    expect(d.host.closed).toBe(true);
    expect(rip(d)).toBe(CODE);
  });
});
