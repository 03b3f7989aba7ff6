import { test } from "vitest";
import { open, sample, launchJson } from "./setting";
test("x", async () => {
  const s = await open("try", (f) => { sample(f); launchJson(f, [{type:"hyperstep",request:"launch",name:"Hello",program:"${workspaceFolder}/hello.elf",accel:"none",stopOnEntry:true}]); });
  const w = s.workbench;
  try {
    await w.debug("Hello");
    await w.page.locator(".debug-call-stack .stack-frame").first().waitFor({timeout: 20000});
    await w.page.waitForTimeout(1500);
    await w.screenshot("debug");
    console.log(await w.frames());
    await w.toolbar("step-over");
    await w.page.waitForTimeout(800);
    await w.screenshot("step");
    // disassembly
    await w.page.locator(".debug-call-stack .stack-frame").first().click({ button: "right" });
    await w.page.waitForTimeout(500);
    await w.page.locator(".action-label, .monaco-menu .action-item", { hasText: "Open Disassembly View" }).first().click();
    await w.page.waitForTimeout(1500);
    await w.screenshot("disassembly");
    console.log((await w.page.locator(".disassembly-view .monaco-list-row").allTextContents()).slice(0,40));
    // memory
    await w.onlyPanes("Variables", "Call Stack");
    await w.screenshot("vars");
    const r = await w.row("Variables", /^rsp/);
    await r.hover();
    await w.screenshot("hover");
    await r.locator('.codicon-debug-inspect-memory').first().click();
    await w.page.waitForTimeout(2500);
    await w.screenshot("memory");
    await w.toolbar("continue");
    await w.ended();
    await w.page.waitForTimeout(1500);
    await w.screenshot("ended");
    console.log(await w.terminalText());
  } finally { await w.screenshot("last"); await s.close(); }
}, 120000);
