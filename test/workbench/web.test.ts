import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { launchJson, openWeb, type Setting, sample } from "./setting";
import { showsModelFrames, showsRegisters, showsVmcs, stepsThroughExit, stopAtSerialExit } from "./walk";

describe("the sample guest in a browser without any server behind it", () => {
  let setting: Setting;
  beforeAll(async () => {
    setting = await openWeb("web", (folder) => {
      sample(folder);
      const program = `\${workspaceFolder}/hello.elf`;
      launchJson(folder, [
        { type: "hyperstep", request: "launch", name: "Web guest", program, accel: "vmx", stopOnEntry: true },
      ]);
    });
  });
  afterAll(() => setting?.close());

  test("stops at its entry, with its source", async () => {
    const { workbench } = setting;
    await workbench.debug("Web guest");
    const frames = await workbench.stopped("start");
    expect(frames[0]).toContain("start.S");
    await workbench.screenshot("entry");
  });

  test("a condition on the I/O exit stops it in the KVM model", async () => {
    await stopAtSerialExit(setting.workbench);
    await showsModelFrames(setting.workbench);
  });

  test("the VMCS view shows the exit's information, decoded", () => showsVmcs(setting.workbench));

  test("the registers are the guest's", () => showsRegisters(setting.workbench));

  test("step in goes through the stages of the exit, back to the guest", async () => {
    await stepsThroughExit(setting.workbench);
  });

  test("it runs to its end", async () => {
    const { workbench } = setting;
    await workbench.onlyPanes("Breakpoints");
    await workbench.untick("VM exit: IO_INSTRUCTION");
    await workbench.toolbar("continue");
    await workbench.ended();
    await workbench.screenshot("ended");
  });
});
