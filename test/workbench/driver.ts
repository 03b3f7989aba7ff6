/** Drives the workbench in a browser: the few things the tests do, by the selectors that hold for it. */
import { type Browser, chromium, type Locator, type Page } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
];
const SIZE = { width: 1600, height: 1000 };
/** Until the workbench has drawn what a key press changed. */
const SETTLE_MS = 200;
/** The extension's item in the status bar. */
const STATUS = '[id="hyperstep.hyperstep.hyperstep.state"] a';

export class Workbench {
  private shots = 0;

  private constructor(
    private readonly browser: Browser,
    readonly page: Page,
    private readonly screenshots: string,
  ) {}

  static async open(executablePath: string, url: string, screenshots: string): Promise<Workbench> {
    const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
    const page = await browser.newPage({ viewport: SIZE });
    await page.goto(url);
    await page.locator(".monaco-workbench").waitFor({ timeout: 60_000 });
    await page.locator(".explorer-folders-view .monaco-list-row").first().waitFor({ timeout: 60_000 });
    return new Workbench(browser, page, screenshots);
  }

  async close(): Promise<void> {
    await this.browser.close();
  }

  async screenshot(name: string): Promise<void> {
    const number = String(++this.shots).padStart(2, "0");
    await this.page.screenshot({ path: `${this.screenshots}/${number}-${name}.png` });
  }

  settle(): Promise<void> {
    return this.page.waitForTimeout(SETTLE_MS);
  }

  /** Runs a command by its title. */
  async command(title: string): Promise<void> {
    await this.page.keyboard.press("F1");
    await this.quickPick(`>${title}`);
  }

  /** Types into the quick input that is open, or about to, and takes the first row. */
  async quickPick(text: string): Promise<void> {
    const input = this.page.locator(".quick-input-widget input.input");
    await input.waitFor();
    await input.fill(text);
    await this.page.locator(".quick-input-list .monaco-list-row").first().waitFor();
    await this.settle();
    await this.page.keyboard.press("Enter");
    await this.settle();
  }

  /** Answers the input box that is about to open. */
  async quickInput(text: string): Promise<void> {
    const input = this.page.locator(".quick-input-widget input.input");
    await input.waitFor();
    await input.fill(text);
    await this.page.keyboard.press("Enter");
    await this.settle();
  }

  /** Opens a file of the workspace. */
  async openFile(name: string): Promise<void> {
    await this.page.keyboard.press("Control+P");
    await this.quickPick(name);
    await this.page.locator(`.tab[data-resource-name="${name}"]`).waitFor();
  }

  /** Starts a launch configuration by name. */
  async debug(name: string): Promise<void> {
    const rows = this.page.locator(".quick-input-list .monaco-list-row", { hasText: name });
    // Until the extension is known, the workbench finds no configuration.
    for (let tries = 0; tries < 30; tries++) {
      await this.page.keyboard.press("Control+P");
      await this.page.locator(".quick-input-widget input.input").fill(`debug ${name}`);
      const found = await rows
        .first()
        .waitFor({ timeout: 1000 })
        .then(() => true)
        .catch(() => false);
      if (found) {
        await this.settle();
        await this.page.keyboard.press("Enter");
        return;
      }
      await this.page.keyboard.press("Escape");
    }
    throw new Error(`there is no launch configuration "${name}"`);
  }

  /** A pane of the Run and Debug side bar, by its title. */
  pane(title: string): Locator {
    return this.page.locator(".part.sidebar .split-view-view .pane", {
      has: this.page.locator(".pane-header h3", { hasText: new RegExp(`^${title}$`, "i") }),
    });
  }

  /** Opens or folds a pane. */
  async setPane(title: string, open: boolean): Promise<void> {
    const header = this.pane(title).locator(".pane-header");
    await header.waitFor();
    if (((await header.getAttribute("aria-expanded")) === "true") !== open) await header.click();
    await this.settle();
  }

  /** Leaves only these panes of the Run and Debug side bar open, so that their rows are drawn. */
  async onlyPanes(...titles: string[]): Promise<void> {
    const headers = this.page.locator(".part.sidebar .pane-header h3");
    const all = await headers.allTextContents();
    for (const title of all) {
      if (!titles.some((t) => t.toLowerCase() === title.toLowerCase())) await this.setPane(escaped(title), false);
    }
    for (const title of titles) await this.setPane(escaped(title), true);
  }

  /** The row of a pane's list that has this text; scrolls until it is drawn. */
  async row(title: string, text: string | RegExp): Promise<Locator> {
    const pane = this.pane(title);
    const row = pane.locator(".monaco-list-row", { hasText: text }).first();
    const body = pane.locator(".pane-body");
    await body.hover();
    await this.page.mouse.wheel(0, -100_000);
    for (let i = 0; i < 150 && (await row.count()) === 0; i++) {
      await this.page.mouse.wheel(0, 110);
      await this.page.waitForTimeout(20);
    }
    await row.waitFor({ timeout: 5000 });
    return row;
  }

  /** Text of the rows of a pane that are drawn. */
  async rows(title: string): Promise<string[]> {
    return (await this.pane(title).locator(".monaco-list-row").allTextContents()).map((t) => t.trim());
  }

  /** Opens a node of a tree in a pane. */
  async expand(title: string, text: string | RegExp): Promise<void> {
    const row = await this.row(title, text);
    if ((await row.getAttribute("aria-expanded")) === "false") await row.locator(".monaco-tl-twistie").click();
    await this.settle();
  }

  /** Waits until the call stack shows a stop. @returns its frames' text, innermost first */
  async stopped(frame: string | RegExp, timeout = 60_000): Promise<string[]> {
    await this.setPane("Call Stack", true);
    const frames = this.page.locator(".debug-call-stack .stack-frame");
    await frames.filter({ hasText: frame }).first().waitFor({ timeout });
    await this.settle();
    return this.frames();
  }

  async frames(): Promise<string[]> {
    return this.page.locator(".debug-call-stack .stack-frame").allTextContents();
  }

  /** Presses a button of the debug toolbar: "continue", "step-over", "step-into", "step-out", "stop", "pause". */
  async toolbar(action: string): Promise<void> {
    await this.page.locator(`.debug-toolbar .codicon-debug-${action}`).click();
  }

  /** Presses a step button and waits until the machine has stopped somewhere else. */
  async step(action: string): Promise<void> {
    const before = await this.place();
    await this.toolbar(action);
    let last = "";
    for (let waited = 0; waited < 30_000; waited += SETTLE_MS) {
      await this.settle();
      const now = await this.place();
      // The stack comes in two parts: it is all there when it stays as it is.
      if (now !== "" && now !== before && now === last) return;
      last = now;
    }
    throw new Error(`${action} led nowhere from\n${before}`);
  }

  /** Where the machine has stopped: status and call stack, as they are drawn now; empty while it runs. */
  private place(): Promise<string> {
    return this.page.evaluate((status) => {
      const frames = [...document.querySelectorAll(".debug-call-stack .stack-frame")].map((f) => f.textContent);
      const label = document.querySelector(status)?.getAttribute("aria-label") ?? "";
      return frames.length === 0 || label.endsWith("running") ? "" : [label, ...frames].join("\n");
    }, STATUS);
  }

  /** What the status bar says about where the machine is. */
  async status(): Promise<string> {
    return (await this.page.locator(STATUS).textContent()) ?? "";
  }

  /** Opens the disassembly view at the innermost frame of the guest. */
  async openDisassembly(): Promise<void> {
    await this.onlyPanes("Call Stack");
    await this.page.locator(".debug-call-stack .stack-frame").first().click({ button: "right" });
    await this.page.waitForTimeout(400);
    const item = this.page.locator(".monaco-menu .action-label", { hasText: "Open Disassembly View" });
    await item.first().click();
    await this.page.locator(".disassembly-view .monaco-list-row").first().waitFor();
    await this.settle();
  }

  /** Text of an element inside the webview in front. */
  async webviewText(selector: string): Promise<string> {
    const frame = this.page.frameLocator("iframe.webview.ready").frameLocator("iframe#active-frame");
    const element = frame.locator(selector);
    await element.waitFor();
    return (await element.textContent()) ?? "";
  }

  /** Waits until no session is left. */
  async ended(timeout = 60_000): Promise<void> {
    await this.page.locator(".debug-toolbar").waitFor({ state: "hidden", timeout });
  }

  /** Sets a breakpoint on a function by its name, before a session has filled the pane with its filters. */
  async functionBreakpoint(name: string): Promise<void> {
    await this.setPane("Breakpoints", true);
    const pane = this.pane("Breakpoints");
    await pane.locator(".pane-header").hover();
    await pane.locator(".codicon-watch-expressions-add-function-breakpoint").click();
    const input = pane.locator("input:not([type=checkbox])").last();
    await input.waitFor();
    await input.fill(name);
    await this.page.keyboard.press("Enter");
    await input.waitFor({ state: "detached" });
    await this.row("Breakpoints", name);
  }

  /** Ticks an exception filter and gives it a condition. */
  async stopWhen(label: string, condition: string): Promise<void> {
    const row = await this.row("Breakpoints", label);
    await row.hover();
    await row.locator(".codicon-edit").first().click();
    const input = this.pane("Breakpoints").locator("input:not([type=checkbox])").last();
    await input.waitFor();
    await input.fill(condition);
    await this.page.keyboard.press("Enter");
    await this.settle();
    const box = (await this.row("Breakpoints", label)).locator("[role=checkbox]").first();
    if ((await box.getAttribute("aria-checked")) !== "true") await box.click();
    await this.settle();
  }

  /** Takes the tick from an exception filter. */
  async untick(label: string): Promise<void> {
    const box = (await this.row("Breakpoints", label)).locator("[role=checkbox]").first();
    if ((await box.getAttribute("aria-checked")) === "true") await box.click();
    await this.settle();
  }

  /** Types into the terminal in front. */
  async type(text: string): Promise<void> {
    await this.page.locator(".terminal-wrapper.active .xterm-screen").click();
    await this.page.keyboard.type(text, { delay: 30 });
  }

  /** Waits until the terminal in front shows a text. */
  async terminalShows(text: string, timeout = 20_000): Promise<void> {
    const rows = this.page.locator(".terminal-wrapper.active .xterm-rows");
    // Drawn cells hold no-break spaces.
    const pattern = new RegExp(escaped(text).replace(/ /g, "[ \\u00a0]"));
    await rows.filter({ hasText: pattern }).first().waitFor({ timeout });
  }

  /** Text of the terminal in front, as it is drawn. */
  async terminalText(): Promise<string> {
    const rows = this.page.locator(".terminal-wrapper.active .xterm-rows > div");
    return (await rows.allTextContents()).map((line) => line.replace(/\u00a0/g, " ").trimEnd()).join("\n");
  }
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
