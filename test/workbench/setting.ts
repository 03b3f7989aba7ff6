/** What every workbench test starts from: the packaged extension in a fresh profile, and a folder for screenshots. */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cacheFolder } from "../../scripts/lib/cache.mjs";
import { run } from "../../scripts/lib/run.mjs";
import { chromium, vsceCommand } from "../../scripts/lib/workbench-environment.mjs";
import { startWorkbench } from "../../scripts/lib/workbench-server.mjs";
import { Workbench } from "./driver";

const here = dirname(fileURLToPath(import.meta.url));
export const root = dirname(dirname(here));

export interface Setting {
  readonly workbench: Workbench;
  /** Where the screenshots go: outside the checkout. */
  readonly screenshots: string;
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

/**
 * @param name of the screenshots' folder
 * @param fill puts the workspace's files into a folder
 */
export async function open(name: string, fill: (folder: string) => void): Promise<Setting> {
  const screenshots = join(cacheFolder("screenshots"), name);
  rmSync(screenshots, { recursive: true, force: true });
  mkdirSync(screenshots, { recursive: true });
  const place = mkdtempSync(join(tmpdir(), "hyperstep-workbench-"));
  const folder = join(place, "workspace");
  mkdirSync(folder);
  fill(folder);
  // Drawn as text, a test can read the terminal.
  const settings = {
    "terminal.integrated.gpuAcceleration": "off",
    "terminal.integrated.enablePersistentSessions": false,
  };
  const extensions = [join(root, "hyperstep.vsix"), await hexEditor()];
  const server = await startWorkbench({ profile: join(place, "profile"), folder, extensions, settings });
  const workbench = await Workbench.open(chromium(), server.url, screenshots);
  return {
    workbench,
    screenshots,
    close: async () => {
      await workbench.close();
      await server.stop();
      rmSync(place, { recursive: true, force: true });
    },
  };
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
