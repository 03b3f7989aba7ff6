import { test } from "vitest";
import { open, sample, launchJson } from "./setting";
test("x", async () => {
  const s = await open("try", (f) => { sample(f); launchJson(f, [{type:"hyperstep",request:"launch",name:"Hello",program:"${workspaceFolder}/hello.elf",accel:"vmx",stopOnEntry:true}]); });
  const w = s.workbench;
  try {
    await w.debug("Hello");
    await w.page.locator(".debug-call-stack .stack-frame").first().waitFor({timeout: 20000});
    await w.onlyPanes("VMCS");
    console.log(await w.page.locator(".statusbar-item").evaluateAll(e => e.map(x => x.id + " | " + x.outerHTML.slice(0, 400))));
    await w.page.locator(".part.sidebar .pane .monaco-list").first().focus();
    await w.page.keyboard.press("Control+F");
    await w.page.waitForTimeout(500);
    await w.screenshot("find");
    console.log(await w.page.locator(".monaco-tree-type-filter").evaluateAll(e => e.map(x => x.outerHTML.slice(0, 800))));
  } finally { await w.screenshot("last"); await s.close(); }
}, 120000);
