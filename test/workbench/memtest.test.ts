import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { guestImage } from "../../scripts/lib/debian.mjs";
import { launchJson, open, type Setting } from "./setting";
import {
  showsDisassembly,
  showsMemory,
  showsModelFrames,
  showsRegisters,
  showsVmcs,
  stepsThroughExit,
  stopAtSerialExit,
} from "./walk";

describe("Debian's memtest86+ as a KVM guest in the real workbench", () => {
  let setting: Setting;
  beforeAll(async () => {
    const image = await guestImage("memtest");
    setting = await open("memtest", (folder) => {
      copyFileSync(image, join(folder, "memtest86+x64.bin"));
      launchJson(folder, [
        {
          type: "hyperstep",
          request: "launch",
          name: "memtest86+",
          program: `\${workspaceFolder}/memtest86+x64.bin`,
          accel: "vmx",
          memory: "64M",
          append: "console=ttyS0,115200 nosmp nopause",
          stopOnEntry: true,
        },
      ]);
    });
  });
  afterAll(() => setting?.close());

  test("F5 stops it before its first instruction", async () => {
    const { workbench } = setting;
    await workbench.debug("memtest86+");
    await workbench.page.locator(".debug-call-stack .stack-frame").first().waitFor({ timeout: 60_000 });
    await workbench.screenshot("entry");
  });

  test("a condition on the I/O exit for the serial port stops it in the KVM model", async () => {
    await stopAtSerialExit(setting.workbench);
    await showsModelFrames(setting.workbench);
  });

  test("the VMCS view shows the exit's information, decoded", () => showsVmcs(setting.workbench));

  test("the registers are the guest's", () => showsRegisters(setting.workbench));

  test("step in goes through the stages of the exit, back to the guest", async () => {
    await stepsThroughExit(setting.workbench);
  });

  test("the disassembly view shows the guest's code", () => showsDisassembly(setting.workbench, /\b(out|in)\b/));

  test("the memory view shows the guest's stack", async () => {
    expect(await showsMemory(setting.workbench, /^rsp/)).toMatch(/^0000 {2}([0-9a-f]{2} ){15}[0-9a-f]{2}/);
  });

  test("without the breakpoint it gets to its running test screen, in the serial terminal", async () => {
    const { workbench } = setting;
    await workbench.onlyPanes("Breakpoints");
    await workbench.untick("VM exit: IO_INSTRUCTION");
    await workbench.toolbar("continue");
    await workbench.terminalShows("Status: Testing", 120_000);
    await workbench.page.waitForTimeout(3000);
    await workbench.screenshot("testing");
    expect(await workbench.terminalText()).toMatch(/Errors: 0/);
    await workbench.toolbar("stop");
    await workbench.ended();
  });
});
