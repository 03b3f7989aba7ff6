import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { launchJson, open, type Setting, sample } from "./setting";
import {
  setsVmcsField,
  showsDisassembly,
  showsMemory,
  showsModelFrames,
  showsRegisters,
  showsVmcs,
  stepsThroughExit,
  stopAtSerialExit,
} from "./walk";

describe("F5 without a launch.json", () => {
  let setting: Setting;
  beforeAll(async () => {
    setting = await open("f5", (folder) => {
      sample(folder);
      rmSync(join(folder, ".vscode", "launch.json"));
    });
  });
  afterAll(() => setting?.close());

  test("runs the folder's only image; its serial output is a terminal", async () => {
    const { workbench } = setting;
    await workbench.openFile("main.c");
    await workbench.page.keyboard.press("F5");
    await workbench.terminalShows("Good-bye.", 60_000);
    await workbench.ended();
    expect(await workbench.terminalText()).toContain("Hello from a guest of Hyperstep.");
    await workbench.screenshot("ended");
  });

  test("the command does the same, whatever file is in front", async () => {
    const { workbench } = setting;
    await workbench.openFile("link.ld");
    await workbench.command("Hyperstep: Debug Guest Image");
    await workbench.terminalShows("Good-bye.", 60_000);
    await workbench.ended();
  });
});

describe("the sample guest, stopped at a VM exit", () => {
  let setting: Setting;
  beforeAll(async () => {
    setting = await open("sample", (folder) => {
      sample(folder);
      const program = `\${workspaceFolder}/hello.elf`;
      const common = { type: "hyperstep", request: "launch", program, accel: "vmx" };
      launchJson(folder, [
        { ...common, name: "Stopped guest", stopOnEntry: true },
        { ...common, name: "Interactive guest", append: "interactive" },
        { ...common, name: "Wrong guest", memory: "lots" },
      ]);
    });
  });
  afterAll(() => setting?.close());

  test("stops at its entry, in the disassembly of its first instruction", async () => {
    const { workbench } = setting;
    await workbench.debug("Stopped guest");
    const frames = await workbench.stopped("start");
    expect(frames).toHaveLength(1);
    await workbench.screenshot("entry");
  });

  test("a condition on the I/O exit stops it in the KVM model, above the guest's own frames", async () => {
    const { workbench } = setting;
    await stopAtSerialExit(workbench);
    await showsModelFrames(workbench);
    expect((await workbench.frames()).some((f) => f.startsWith("guest_main"))).toBe(true);
  });

  test("the VMCS view shows the exit's information, decoded", () => showsVmcs(setting.workbench));

  test("a field of the VMCS can be set", () => setsVmcsField(setting.workbench));

  test("the registers are the guest's", () => showsRegisters(setting.workbench));

  test("step in goes through the stages of the exit, back to the guest", async () => {
    await stepsThroughExit(setting.workbench);
  });

  test("the disassembly view shows the guest's code", () => showsDisassembly(setting.workbench, /out\s+dx, al/));

  test("the memory view shows the guest's stack", async () => {
    const text = await showsMemory(setting.workbench, /^rsp/);
    expect(text).toMatch(/^0000 {2}([0-9a-f]{2} ){15}[0-9a-f]{2}/);
    // The return address to start64: little-endian 0x0010....
    expect(text).toMatch(/[0-9a-f]{2} [0-9a-f]{2} 10 00 00 00 00 00/);
  });

  test("without the breakpoint, step over goes past exits, line by line of the guest's source", async () => {
    const { workbench } = setting;
    await workbench.onlyPanes("Breakpoints");
    await workbench.untick("VM exit: IO_INSTRUCTION");
    await workbench.onlyPanes("Call Stack");
    const places: string[] = [];
    for (let i = 0; i < 3; i++) {
      await workbench.step("step-over");
      const frames = await workbench.frames();
      expect(
        frames.some((f) => f.startsWith("vcpuEnterGuest")),
        frames.join("\n"),
      ).toBe(false);
      places.push(frames[0]);
    }
    expect(new Set(places).size, places.join("\n")).toBe(3);
    expect(places.join("\n")).toMatch(/main\.c/);
    await workbench.screenshot("source");
  });

  test("the VM exits view counts by reason", async () => {
    const { workbench } = setting;
    await workbench.onlyPanes("VM Exits");
    expect(await (await workbench.row("VM Exits", "IO_INSTRUCTION")).textContent()).toMatch(/\d+ \(/);
    await workbench.screenshot("exits");
  });

  test("it runs to its end, and the terminal has all of its output", async () => {
    const { workbench } = setting;
    await workbench.toolbar("continue");
    await workbench.ended();
    await workbench.terminalShows("Good-bye.");
    await workbench.screenshot("ended");
  });

  test("what is typed in the terminal reaches the guest", async () => {
    const { workbench } = setting;
    await workbench.debug("Interactive guest");
    await workbench.terminalShows("Ctrl+D ends", 60_000);
    await workbench.type("echo this");
    await workbench.terminalShows("> echo this");
    await workbench.screenshot("interactive");
    await workbench.page.keyboard.press("Control+D");
    await workbench.ended();
    await workbench.terminalShows("Good-bye.");
  });

  test("a wrong launch attribute is named, with what it should be", async () => {
    const { workbench } = setting;
    await workbench.debug("Wrong guest");
    const dialog = workbench.page.locator(".monaco-dialog-box");
    await dialog.waitFor();
    expect(await dialog.textContent()).toContain('launch attribute "memory" must be a size such as "256M"');
    await workbench.screenshot("wrong-attribute");
    await workbench.page.keyboard.press("Escape");
  });
});
