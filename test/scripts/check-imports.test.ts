import { describe, expect, test } from "vitest";
import { importsOf, violations } from "../../scripts/check-imports.mjs";

function check(files: Record<string, string>): string[] {
  return violations(new Map(Object.entries(files)));
}

describe("imports point downwards only (ARCHITECTURE.md)", () => {
  test("a storey may use the ones below it", () => {
    expect(
      check({
        "engine/kvm/vcpu.ts": 'import { enter } from "../cpu/vmx/enter";\n',
        "engine/cpu/vmx/enter.ts": 'import { ram } from "../../memory/physical";\nexport const enter = ram;\n',
        "engine/memory/physical.ts": "export const ram = 1;\n",
      }),
    ).toEqual([]);
  });

  test("the processor never imports the KVM model", () => {
    const found = check({
      "engine/cpu/vmx/exit.ts": 'import type { Vcpu } from "../../kvm/vcpu";\n',
      "engine/kvm/vcpu.ts": "export interface Vcpu {}\n",
    });
    expect(found).toEqual([
      "engine/cpu/vmx/exit.ts imports engine/kvm/vcpu.ts: engine/cpu/ may only import storeys below it, not engine/kvm/",
    ]);
  });

  test("processor and devices do not know each other", () => {
    const files = {
      "engine/cpu/a.ts": 'import { b } from "../devices/b";\n',
      "engine/devices/b.ts": "export const b = 1;\n",
    };
    expect(check(files)).toHaveLength(1);
  });

  test("the engine uses no platform module, except its worker entries", () => {
    expect(check({ "engine/debug/server.ts": 'import { readFileSync } from "node:fs";\n' })).toHaveLength(1);
    expect(check({ "engine/machine/a.ts": 'import * as vscode from "vscode";\n' })).toHaveLength(1);
    expect(check({ "engine/debug/worker-node.ts": 'import { parentPort } from "node:worker_threads";\n' })).toEqual([]);
  });

  test("the adapter takes types and pure tables from the engine, never its code", () => {
    const engine = {
      "engine/cpu/cpu.ts": "export interface Cpu {}\nexport class CpuFault {}\n",
      "engine/cpu/vmx/fields.ts": "export const fields = [];\n",
    };
    expect(check({ ...engine, "debug-adapter/a.ts": 'import type { Cpu } from "../engine/cpu/cpu";\n' })).toEqual([]);
    expect(check({ ...engine, "debug-adapter/a.ts": 'import { fields } from "../engine/cpu/vmx/fields";\n' })).toEqual(
      [],
    );
    expect(check({ ...engine, "debug-adapter/a.ts": 'import { CpuFault } from "../engine/cpu/cpu";\n' })).toHaveLength(
      1,
    );
  });

  test("the engine reads no wall clock and no random numbers", () => {
    expect(check({ "engine/devices/rtc.ts": "export const now = () => Date.now();\n" })).toHaveLength(1);
    expect(check({ "engine/devices/rtc.ts": "/** Never Date.now(). */\nexport const now = 0;\n" })).toEqual([]);
  });

  test("an import of a file that is not there is found", () => {
    expect(check({ "engine/cpu/a.ts": 'import { b } from "./b";\n' })).toHaveLength(1);
  });

  test("every form of import is seen", () => {
    const source = [
      'import "./side";',
      'import a, { b } from "./both";',
      'import {\n  c,\n  d,\n} from "./lines";',
      'import { type T } from "./types";',
      'export * from "./again";',
      'export { e } from "./named";',
      'import type { U } from "./only";',
      'const x = await import("./late");',
    ].join("\n");
    expect(importsOf(source)).toEqual([
      { specifier: "./side", typeOnly: false },
      { specifier: "./both", typeOnly: false },
      { specifier: "./lines", typeOnly: false },
      { specifier: "./types", typeOnly: true },
      { specifier: "./again", typeOnly: false },
      { specifier: "./named", typeOnly: false },
      { specifier: "./only", typeOnly: true },
      { specifier: "./late", typeOnly: false },
    ]);
  });
});
