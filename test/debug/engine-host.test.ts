import { describe, expect, test } from "vitest";
import type { FromEngine } from "../../engine/debug/api";
import { EngineHost } from "../../engine/debug/engine-host";
import { TraceKind } from "../../engine/trace";
import { Driver } from "./driver";
import { CODE, FakeMachine, fakeConfig } from "./fake-machine";

const NOP = 0x90;
const LOOP = [NOP, NOP, 0xeb, 0xfc];

describe("an engine that cannot sleep (a page without shared memory)", () => {
  function make(code: readonly number[]): {
    host: EngineHost;
    sent: FromEngine[];
    ask(method: string, request: object): void;
  } {
    const sent: FromEngine[] = [];
    const host = new EngineHost(
      (message) => sent.push(message),
      {
        blocking: false,
        poll: () => undefined,
        wait: () => {
          throw new Error("cannot sleep");
        },
      },
      (config, environment) => new FakeMachine(config, environment),
    );
    let id = 1;
    const ask = (method: string, request: object): void =>
      host.command({ id: id++, method, request } as Parameters<EngineHost["command"]>[0]);
    ask("launch", fakeConfig(code));
    return { host, sent, ask };
  }

  test("a breakpoint is reported once, and the machine stands at the end of the slice", () => {
    const { host, sent, ask } = make(LOOP);
    ask("setBreakpoints", { list: [{ id: 1, at: { linear: CODE + 1n }, condition: "" }] });
    ask("resume", { kind: "start" });
    host.slice();
    expect(host.running).toBe(false);
    expect(sent.filter((m) => "event" in m && m.event === "stopped")).toHaveLength(1);
    ask("resume", { kind: "continue" });
    host.slice();
    expect(sent.filter((m) => "event" in m && m.event === "stopped")).toHaveLength(2);
  });

  test("a pause takes effect between slices", () => {
    const { host, sent, ask } = make(LOOP);
    ask("resume", { kind: "start" });
    host.slice();
    expect(host.running).toBe(true);
    ask("pause", {});
    host.slice();
    expect(host.running).toBe(false);
    expect(sent.at(-1)).toMatchObject({ event: "stopped", stop: { reason: "pause" } });
  });
});

describe("requests", () => {
  test("every failure is an answer, and leaves the engine usable", () => {
    const d = new Driver(LOOP);
    expect(() => d.now("readRegisters", { vcpu: 7 })).toThrow("there is no vCPU 7");
    expect(() => d.now("resume", { kind: "next", vcpu: 7 })).toThrow("there is no vCPU 7");
    expect(() => d.now("writeRegister", { vcpu: 0, name: "rxx", value: 1n })).toThrow('nothing is called "rxx"');
    expect(() => d.now("nonsense" as "hash", {})).toThrow('no request "nonsense"');
    expect(() => d.now("launch", fakeConfig(LOOP))).toThrow("has a machine already");
    expect(d.now("writeRegister", { vcpu: 0, name: "rax", value: 5n })).toEqual({ value: 5n });
    expect(d.now("translate", { vcpu: 0, linear: 0x10n })).toEqual({ physical: 0x10n });
  });

  test("registers by all their names: parts, bits, flags, pc", () => {
    const d = new Driver(LOOP);
    const value = (expression: string): bigint | string => d.now("evaluate", { vcpu: 0, expression }).value;
    d.now("writeRegister", { vcpu: 0, name: "rax", value: 0x1122_3344_5566_7788n });
    expect([value("eax"), value("ax"), value("ah"), value("al")]).toEqual([0x5566_7788n, 0x7788n, 0x77n, 0x88n]);
    expect(value("ah = 1")).toBe(1n);
    expect(value("rax")).toBe(0x1122_3344_5566_0188n);
    expect([value("cr0.PG"), value("rflags.IF"), value("RFLAGS.if"), value("$pc")]).toEqual([1n, 1n, 1n, CODE]);
    expect(value("IO_INSTRUCTION")).toBe(30n);
    expect(() => value("vmcs12.GUEST_RIP")).toThrow("there is no vmcs12");
    expect(() => value("vmcs.GUEST_RIPP")).toThrow("did you mean vmcs.GUEST_RIP");
    expect(() => value("vmcs.GUEST_CS_SELECTOR = 0x12345")).toThrow("does not fit the 16 bits");
  });

  test("the exit reason and qualification are decoded together", () => {
    const d = new Driver(LOOP);
    const { vmcs } = d.machine.vcpus[0];
    vmcs?.write(0x4402, 30n);
    vmcs?.write(0x6400, 0x03f8_0000n);
    const fields = d.now("readVmcs", { vcpu: 0 })?.fields ?? [];
    const decoded = (name: string): string | undefined => fields.find((f) => f.name === name)?.decoded;
    expect(decoded("VM_EXIT_REASON")).toBe("IO_INSTRUCTION");
    expect(decoded("EXIT_QUALIFICATION")).toBe("out port 0x3f8 size 1");
    expect(decoded("VM_ENTRY_INTR_INFO_FIELD")).toBe("not valid");
  });

  test("completions know registers, bits, fields and details", () => {
    const d = new Driver([0xe6, 0x38]);
    const labels = (text: string): string[] => d.now("completions", { vcpu: 0, text }).items.map((i) => i.label);
    expect(labels("cr0.P")).toEqual(expect.arrayContaining(["cr0.PG", "cr0.PE"]));
    expect(labels("vmcs.GUEST_RI")).toEqual(["vmcs.GUEST_RIP"]);
    expect(labels("IO_IN")).toEqual(["IO_INSTRUCTION"]);
    d.now("setTraceFilters", { list: [{ id: "x", kind: TraceKind.VmExit, match: {}, condition: "" }] });
    d.queueNext("resume", { kind: "start" }).queueNext("completions", { vcpu: 0, text: "por" });
    d.host.serve();
    const last = d.sent.findLast(
      (m) => "response" in m && typeof m.response === "object" && m.response && "items" in m.response,
    );
    expect(last).toMatchObject({ response: { items: [{ label: "port" }] } });
  });
});
