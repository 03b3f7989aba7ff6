// Starts code-server (the real VS Code workbench, in a browser) with the extension installed, in a profile of its own.
import { spawn } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { CommandError, run } from "./run.mjs";
import { codeServer } from "./workbench-environment.mjs";

/** A quiet workbench: nothing that asks, reports or updates. */
export const SETTINGS = {
  "security.workspace.trust.enabled": false,
  "workbench.startupEditor": "none",
  "workbench.tips.enabled": false,
  "workbench.enableExperiments": false,
  "telemetry.telemetryLevel": "off",
  "update.mode": "none",
  "extensions.autoUpdate": false,
  "extensions.autoCheckUpdates": false,
  "extensions.ignoreRecommendations": true,
  "chat.disableAIFeatures": true,
  "workbench.secondarySideBar.defaultVisibility": "hidden",
  "git.enabled": false,
  "debug.toolBarLocation": "floating",
  "debug.openDebug": "openOnSessionStart",
  "debug.internalConsoleOptions": "neverOpen",
  "debug.onTaskErrors": "debugAnyway",
  "window.confirmBeforeClose": "never",
};

/** @returns {Promise<number>} a TCP port nobody uses now */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

/**
 * @param {{ profile: string, folder: string, extensions: readonly string[], port?: number,
 *   settings?: Readonly<Record<string, unknown>> }} options `profile` is a folder for everything the workbench writes,
 *   `folder` the workspace, `extensions` .vsix files to install
 * @returns {Promise<{ url: string, stop: () => Promise<void> }>}
 */
export async function startWorkbench({ profile, folder, extensions, port, settings }) {
  const { node, entry } = await codeServer();
  const home = join(profile, "home");
  const userData = join(profile, "user-data");
  const extensionsFolder = join(profile, "extensions");
  mkdirSync(home, { recursive: true });
  mkdirSync(join(userData, "User"), { recursive: true });
  const text = JSON.stringify({ ...SETTINGS, ...settings }, null, 2);
  writeFileSync(join(userData, "User", "settings.json"), text);
  writeFileSync(join(home, "code-server.yaml"), "");
  /** @type {NodeJS.ProcessEnv} */
  const env = { ...process.env, HOME: home, EXTENSIONS_GALLERY: "{}" };
  // code-server would listen where this says, whatever its command line does.
  delete env.PORT;
  const where = port ?? (await freePort());
  const args = [
    entry,
    "--config",
    join(home, "code-server.yaml"),
    "--bind-addr",
    `127.0.0.1:${where}`,
    "--auth",
    "none",
  ];
  args.push("--disable-telemetry", "--disable-update-check", "--disable-workspace-trust");
  args.push("--disable-getting-started-override", "--user-data-dir", userData, "--extensions-dir", extensionsFolder);
  for (const vsix of extensions) await run(node, [...args, "--install-extension", vsix], { env, quiet: true });
  const server = spawn(node, args, { env, stdio: ["ignore", "pipe", "pipe"], detached: true });
  let output = "";
  server.stdout.on("data", (chunk) => {
    output += chunk;
  });
  server.stderr.on("data", (chunk) => {
    output += chunk;
  });
  const ended = new Promise((resolve) => server.on("close", resolve));
  const stop = async () => {
    if (server.exitCode === null && server.pid !== undefined) {
      // The server, its extension host and its terminals are one process group.
      process.kill(-server.pid, "SIGTERM");
      const late = setTimeout(() => server.pid !== undefined && process.kill(-server.pid, "SIGKILL"), 5000);
      await ended;
      clearTimeout(late);
    }
  };
  for (let tries = 0; tries < 300; tries++) {
    if (server.exitCode !== null) throw new CommandError("code-server", server.exitCode, output);
    const healthy = await fetch(`http://127.0.0.1:${where}/healthz`).then(
      (answer) => answer.ok,
      () => false,
    );
    if (healthy) return { url: `http://127.0.0.1:${where}/?folder=${encodeURIComponent(folder)}`, stop };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await stop();
  throw new Error(`code-server did not answer within 30 seconds\n${output}`);
}
