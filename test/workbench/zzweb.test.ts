import { createRequire } from "node:module";
import { mkdirSync, cpSync, mkdtempSync } from "node:fs";
import { test } from "vitest";
import { chromium } from "playwright-core";
import { launchJson, root, sample } from "./setting";
test("web", async () => {
  const data = process.env.HOME + "/.cache/hyperstep/web-try";
  const { open } = createRequire(data + "/package.json")("@vscode/test-web");
  const folder = mkdtempSync("/tmp/web-"); sample(folder);
  launchJson(folder, [{ type: "hyperstep", request: "launch", name: "Web", program: "${workspaceFolder}/hello.elf", accel: "vmx", stopOnEntry: true }]);
  const server = await open({ browserType: "none", quality: "stable", commit: "a".repeat(40), testRunnerDataDir: data + "/data", coi: true, extensionDevelopmentPath: root, folderPath: folder, port: 3777, hideServerLog: true });
  const profile = mkdtempSync("/tmp/webp-");
  mkdirSync(profile + "/Default", { recursive: true });
  const context = await chromium.launchPersistentContext(profile, { executablePath: "/usr/bin/chromium", headless: true, viewport: { width: 1600, height: 1000 }, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"] });
  const page = await context.newPage();
  page.on("console", (m) => { if (m.type() === "error") console.log("console:", m.text().slice(0, 300)); });
  try {
    await page.goto("http://localhost:3777/");
    await page.waitForTimeout(12000);
    await page.screenshot({ path: "/tmp/web1.png" });
    for (let i = 0; i < 10; i++) {
      await page.keyboard.press("Control+P");
      await page.locator(".quick-input-widget input.input").fill("debug Web");
      await page.waitForTimeout(1500);
      if (await page.locator(".quick-input-list .monaco-list-row", { hasText: "Web" }).count()) break;
      await page.keyboard.press("Escape");
    }
    await page.keyboard.press("Enter");
    await page.waitForTimeout(10000);
    await page.screenshot({ path: "/tmp/web2.png" });
    await page.locator(".debug-toolbar .codicon-debug-continue").click({ timeout: 5000 });
    await page.waitForTimeout(6000);
    await page.screenshot({ path: "/tmp/web3.png" });
  } finally { await page.screenshot({ path: "/tmp/web4.png" }); await context.close(); server.dispose(); }
}, 120000);
