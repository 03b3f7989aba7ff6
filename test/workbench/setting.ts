/** What every workbench test starts from: the packaged extension in a fresh profile, and a folder for screenshots. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder } from "../../scripts/lib/cache.mjs";
import { run } from "../../scripts/lib/run.mjs";
import { chromium, serveWebWorkbench, vsceCommand } from "../../scripts/lib/workbench-environment.mjs";
import { freePort, SETTINGS, startWorkbench } from "../../scripts/lib/workbench-server.mjs";
import { Workbench } from "./driver";

const here = dirname(fileURLToPath(import.meta.url));
export const root = dirname(dirname(here));

export interface Setting {
  readonly workbench: Workbench;
  close(): Promise<void>;
}

/** Packages the test-only hex editor. */
async function hexEditor(): Promise<string> {
  const vsix = join(cacheFolder("workbench-test"), "hexeditor.vsix");
  const flags = ["--no-dependencies", "--allow-missing-repository", "--skip-license", "-o", vsix];
  await run(process.execPath, [await vsceCommand(), "package", ...flags], {
    cwd: join(here, "hexeditor"),
    quiet: true,
  });
  return vsix;
}

/** Drawn as text, a test can read the terminal. */
const READABLE_TERMINAL = {
  "terminal.integrated.gpuAcceleration": "off",
  "terminal.integrated.enablePersistentSessions": false,
};

/** A folder for a test's screenshots, empty, and one for everything else it needs, with the workspace in it. */
function places(name: string, fill: (folder: string) => void): { screenshots: string; place: string; folder: string } {
  const screenshots = join(cacheFolder("screenshots"), name);
  rmSync(screenshots, { recursive: true, force: true });
  mkdirSync(screenshots, { recursive: true });
  const place = mkdtempSync(join(tmpdir(), "hyperstep-workbench-"));
  const folder = join(place, "workspace");
  mkdirSync(folder);
  fill(folder);
  return { screenshots, place, folder };
}

function settingOf(workbench: Workbench, place: string, stop: () => void | Promise<void>): Setting {
  return {
    workbench,
    close: async () => {
      await workbench.close();
      await stop();
      rmSync(place, { recursive: true, force: true });
    },
  };
}

/**
 * The workbench with a server behind it, as on the desktop.
 *
 * @param name of the screenshots' folder
 * @param fill puts the workspace's files into a folder
 */
export async function open(name: string, fill: (folder: string) => void): Promise<Setting> {
  const { screenshots, place, folder } = places(name, fill);
  const extensions = [join(root, "hyperstep.vsix"), await hexEditor()];
  const server = await startWorkbench({
    profile: join(place, "profile"),
    folder,
    extensions,
    settings: READABLE_TERMINAL,
  });
  return settingOf(await Workbench.open(chromium(), server.url, screenshots), place, server.stop);
}

/** The workbench in a browser alone: the extension's web entry, the adapter inline, the engine in a web worker. */
export async function openWeb(name: string, fill: (folder: string) => void): Promise<Setting> {
  const { screenshots, place, folder } = places(name, fill);
  // There is no user profile to put settings into.
  const file = join(folder, ".vscode", "settings.json");
  const own = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
  writeFileSync(file, JSON.stringify({ ...SETTINGS, ...READABLE_TERMINAL, ...own }, null, 2));
  const server = await serveWebWorkbench({ extension: root, folder, port: await freePort() });
  return settingOf(await Workbench.open(chromium(), server.url, screenshots), place, server.stop);
}

/** The sample folder. */
export function sample(folder: string): void {
  cpSync(join(root, "samples", "hello-guest"), folder, { recursive: true });
}

/** Replaces the folder's launch configurations. */
export function launchJson(folder: string, configurations: readonly object[]): void {
  mkdirSync(join(folder, ".vscode"), { recursive: true });
  writeFileSync(join(folder, ".vscode", "launch.json"), JSON.stringify({ version: "0.2.0", configurations }, null, 2));
}
