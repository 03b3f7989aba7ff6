/** What the tests show in the workbench for any guest that writes to its serial port, one step after the other. */
import { expect } from "vitest";
import type { Workbench } from "./driver";

export const CONDITION = "port == 0x3f8 && size == 1";
const IO_FILTER = "VM exit: IO_INSTRUCTION";
/** An exit has no more stages than this. */
const MAX_STAGES = 12;

/** With the guest stopped at its entry: sets the condition on the I/O exit, goes on, and waits for the exit. */
export async function stopAtSerialExit(workbench: Workbench): Promise<void> {
  await workbench.onlyPanes("Breakpoints");
  await workbench.stopWhen(IO_FILTER, CONDITION);
  await workbench.screenshot("condition");
  await workbench.toolbar("continue");
  await workbench.onlyPanes("Call Stack");
  await workbench.stopped("vcpuEnterGuest", 120_000);
}

/** The call stack inside the exit: the KVM model's frames, innermost first, above the guest's. */
export async function showsModelFrames(workbench: Workbench): Promise<void> {
  const frames = await workbench.frames();
  const position = (name: string): number => frames.findIndex((f) => f.startsWith(name));
  const order = ["vcpuEnterGuest", "vcpuRun", "kvmArchVcpuIoctlRun", "KVM_RUN", "kvmCpuExec"].map(position);
  expect(order, frames.join("\n")).not.toContain(-1);
  expect(order).toEqual([...order].sort((a, b) => a - b));
  await workbench.screenshot("exit-call-stack");
}

/** The VMCS view: exit information decoded, guest state, and a field's bits. */
export async function showsVmcs(workbench: Workbench): Promise<void> {
  await workbench.onlyPanes("VMCS");
  await workbench.expand("VMCS", /^Exit information: Basic information/);
  const reason = await workbench.row("VMCS", /VM_EXIT_REASON = 0x1e/);
  expect(await reason.textContent()).toContain("IO_INSTRUCTION");
  const qualification = await workbench.row("VMCS", /EXIT_QUALIFICATION = /);
  expect(await qualification.textContent()).toMatch(/(in|out) port 0x3f8 size 1/);
  await workbench.screenshot("vmcs-exit-information");
}

/** F2 on a field of the VMCS view sets it; the change is marked. */
export async function setsVmcsField(workbench: Workbench): Promise<void> {
  await workbench.onlyPanes("VMCS");
  await workbench.expand("VMCS", /^Execution controls \d|^Execution controls\d/);
  for (const value of ["0x1000", "0x0"]) {
    await (await workbench.row("VMCS", /^TSC_OFFSET = /)).click();
    await workbench.page.keyboard.press("F2");
    await workbench.quickInput(value);
    await workbench
      .pane("VMCS")
      .locator(".monaco-list-row", { hasText: `TSC_OFFSET = ${value}` })
      .waitFor();
    await workbench.screenshot(`vmcs-set-${value}`);
  }
}

/** Registers of the guest at the exit: RDX holds the port. */
export async function showsRegisters(workbench: Workbench): Promise<void> {
  await workbench.onlyPanes("Variables");
  await workbench.expand("Variables", /^General/);
  const rdx = await workbench.row("Variables", /^rdx/);
  expect(await rdx.textContent()).toMatch(/03f8$|0x3f8/);
  await workbench.screenshot("registers");
}

/** Step in goes through the stages of the exit in their order, and ends in the guest. @returns the stages' texts */
export async function stepsThroughExit(workbench: Workbench): Promise<string[]> {
  await workbench.onlyPanes("Call Stack");
  const stages: string[] = [];
  for (let i = 0; i < MAX_STAGES; i++) {
    await workbench.step("step-into");
    stages.push(await workbench.status());
    await workbench.screenshot(`stage-${i + 1}`);
    const frames = await workbench.frames();
    if (!frames.some((f) => f.startsWith("vcpuEnterGuest") || f.startsWith("kvmCpuExec"))) break;
  }
  const text = stages.join("\n");
  const order = [/handleIo/, /KVM_EXIT_IO/, /COM1/, /VMRESUME/].map((stage) => stages.findIndex((s) => stage.test(s)));
  expect(order, text).not.toContain(-1);
  expect(order, text).toEqual([...order].sort((a, b) => a - b));
  const frames = await workbench.frames();
  expect(
    frames.some((f) => f.startsWith("vcpuEnterGuest")),
    frames.join("\n"),
  ).toBe(false);
  return stages;
}

/** The disassembly view of the innermost guest frame: instructions around it, one of them marked. */
export async function showsDisassembly(workbench: Workbench, instruction: RegExp): Promise<void> {
  await workbench.openDisassembly();
  const rows = workbench.page.locator(".disassembly-view .monaco-list-row");
  await rows.filter({ hasText: instruction }).first().waitFor();
  expect(await rows.count()).toBeGreaterThan(10);
  await workbench.screenshot("disassembly");
}

/** The memory at a register, in the editor for memory. @returns its text */
export async function showsMemory(workbench: Workbench, register: RegExp): Promise<string> {
  await workbench.onlyPanes("Variables");
  await workbench.expand("Variables", /^General/);
  const row = await workbench.row("Variables", register);
  await row.hover();
  await row.locator(".codicon-debug-inspect-memory").first().click();
  const text = await workbench.webviewText("#memory");
  await workbench.screenshot("memory");
  return text;
}
