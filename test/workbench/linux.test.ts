import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { debianKernel, INIT_LINE, initramfs } from "../real/images.mjs";
import { launchJson, open, type Setting } from "./setting";

/** A whole boot, on a busy machine. */
const BOOT = 240_000;
const PROMPT = "/ #";

describe("Debian's own kernel and a busybox initramfs in the real workbench", () => {
  let setting: Setting;
  let release = "";
  beforeAll(async () => {
    const kernel = await debianKernel("cloud");
    const initrd = await initramfs();
    release = kernel.release;
    setting = await open("linux", (folder) => {
      copyFileSync(kernel.vmlinuz, join(folder, "vmlinuz"));
      copyFileSync(initrd, join(folder, "initramfs.cpio"));
      launchJson(folder, [
        {
          type: "hyperstep",
          request: "launch",
          name: "Debian",
          program: `\${workspaceFolder}/vmlinuz`,
          initrd: `\${workspaceFolder}/initramfs.cpio`,
          accel: "vmx",
          memory: "512M",
          smp: 2,
          tier: 1,
          append: "console=ttyS0",
        },
      ]);
    });
  }, BOOT);
  afterAll(() => setting?.close());

  test(
    "a breakpoint on a kernel function, set before there is a kernel, is hit",
    async () => {
      const { workbench } = setting;
      await workbench.command("View: Show Run and Debug");
      await workbench.functionBreakpoint("start_kernel");
      await workbench.functionBreakpoint("run_init_process");
      await workbench.functionBreakpoint("__x64_sys_sethostname");
      await workbench.debug("Debian");
      const frames = await workbench.stopped("start_kernel", BOOT);
      expect(frames.join("\n")).toMatch(/^start_kernel/m);
      await workbench.screenshot("start-kernel");
    },
    BOOT,
  );

  test(
    "the stack has symbols: ORC leads from the last function before userspace to the thread's beginning",
    async () => {
      const { workbench } = setting;
      await workbench.toolbar("continue");
      // With the other processor's stack in it, the pane needs room for its rows to be drawn.
      await workbench.onlyPanes("Call Stack");
      await workbench.stopped("run_init_process", BOOT);
      const frames = await workbench.stopped("ret_from_fork", BOOT);
      const position = (name: string): number => frames.findIndex((f) => f.startsWith(name));
      const order = ["run_init_process", "kernel_init", "ret_from_fork"].map(position);
      expect(order, frames.join("\n")).not.toContain(-1);
      expect(order).toEqual([...order].sort((a, b) => a - b));
      await workbench.screenshot("kernel-init");
    },
    BOOT,
  );

  test("the disassembly names what is called", async () => {
    const { workbench } = setting;
    await workbench.openDisassembly();
    const rows = workbench.page.locator(".disassembly-view .monaco-list-row");
    await rows
      .filter({ hasText: /call.*<\w+/ })
      .first()
      .waitFor();
    await workbench.screenshot("disassembly");
  });

  test("a step over stays in the function", async () => {
    const { workbench } = setting;
    await workbench.onlyPanes("Call Stack");
    await workbench.step("step-over");
    expect((await workbench.frames()).join("\n")).toMatch(/^run_init_process\+0x/m);
  });

  test(
    "going on leads to the shell in the serial terminal, which runs a command",
    async () => {
      const { workbench } = setting;
      await workbench.toolbar("continue");
      await workbench.terminalShows(INIT_LINE, BOOT);
      await workbench.terminalShows(PROMPT, BOOT);
      await workbench.type("uname -r");
      await workbench.page.keyboard.press("Enter");
      await workbench.terminalShows(release, BOOT);
      await workbench.screenshot("shell");
    },
    BOOT,
  );

  test(
    "a system call of the shell stops in the kernel, with the program's frames below it and its name at the vCPU",
    async () => {
      const { workbench } = setting;
      await workbench.onlyPanes("Call Stack");
      await workbench.type("busybox hostname guest");
      await workbench.page.keyboard.press("Enter");
      const frames = await workbench.stopped("__x64_sys_sethostname", BOOT);
      expect(frames.join("\n")).toContain("do_syscall_64");
      expect(frames.join("\n")).toContain("user space");
      await workbench.screenshot("system-call");
      expect((await workbench.rows("Call Stack")).join("\n")).toMatch(/vCPU [01] \((busybox|hostname) \[\d+\]/);
    },
    BOOT,
  );

  test(
    "poweroff ends the session",
    async () => {
      const { workbench } = setting;
      await workbench.toolbar("continue");
      await workbench.type("poweroff -f");
      await workbench.page.keyboard.press("Enter");
      await workbench.ended(BOOT);
    },
    BOOT,
  );
});
