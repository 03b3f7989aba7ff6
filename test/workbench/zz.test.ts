import { test } from "vitest";
import { open, sample, launchJson } from "./setting";
test("x", async () => {
  const s = await open("try", (f) => { sample(f); launchJson(f, [{type:"hyperstep",request:"launch",name:"Hello",program:"${workspaceFolder}/hello.elf",accel:"vmx",stopOnEntry:true}]); });
  const w = s.workbench;
  try {
    await w.debug("Hello");
    await w.page.locator(".debug-call-stack .stack-frame").first().waitFor({timeout: 20000});
    await w.page.waitForTimeout(1500);
    await w.screenshot("debug");
    console.log(await w.frames());
    await w.onlyPanes("Breakpoints");
    await w.screenshot("bp");
    await w.stopWhen("VM exit: IO_INSTRUCTION", "port == 0x3f8 && size == 1");
    await w.screenshot("cond");
    await w.toolbar("continue");
    await w.page.waitForTimeout(1500);
    await w.onlyPanes("VMCS", "VM Exits");
    await w.screenshot("vmcs");
    await w.expand("VMCS", "guest");
    await w.screenshot("vmcs2");
    console.log(await w.terminalText());
  } finally { await w.screenshot("last"); await s.close(); }
}, 120000);
