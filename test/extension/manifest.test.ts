import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { launchSchema } from "../../debug-adapter/launch-schema";
import { check } from "../../debug-adapter/schema";
import { bundles } from "../../scripts/build.mjs";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const manifest = JSON.parse(read("package.json"));
const [debuggerEntry] = manifest.contributes.debuggers;

describe("the extension's manifest", () => {
  test("repeats the adapter's launch schema exactly", () => {
    expect(debuggerEntry.configurationAttributes.launch).toEqual(JSON.parse(JSON.stringify(launchSchema)));
  });

  test("snippets and initial configurations are right by the adapter's own check", () => {
    const bodies = [
      ...debuggerEntry.initialConfigurations,
      ...debuggerEntry.configurationSnippets.map((snippet: { body: object }) => snippet.body),
    ];
    expect(bodies.length).toBeGreaterThan(3);
    // What the editor does with a body: ^"..." is an expression whose text is taken as it stands; ${1:text} is text.
    const resolved = bodies.map((body) =>
      JSON.parse(
        JSON.stringify(body)
          .replace(/"\^\\"(.*?)\\""/g, '"$1"')
          .replace(/\\\\\$/g, "$")
          .replace(/\$\{\d+:([^}]*)\}/g, "$1"),
      ),
    );
    for (const { type, request, name, ...attributes } of resolved) {
      expect([type, request]).toEqual(["hyperstep", "launch"]);
      expect(name.length).toBeGreaterThan(3);
      expect(check(attributes, { ...launchSchema, additionalProperties: false }, name)).toEqual([]);
    }
  });

  test("every command has a registration, and every registration a command", () => {
    const declared = manifest.contributes.commands.map((c: { command: string }) => c.command).sort();
    const source = read("extension/commands.ts");
    const registered = [...source.matchAll(/^ {4}"(hyperstep\.[\w.]+)":/gm)].map((m) => m[1]).sort();
    expect(registered).toEqual(declared);
  });

  test("menus, keys, views and the walkthrough name only commands and views that exist", () => {
    const commands = new Set(manifest.contributes.commands.map((c: { command: string }) => c.command));
    const { menus, keybindings, views, walkthroughs, viewsWelcome } = manifest.contributes;
    for (const { command } of [...Object.values(menus).flat(), ...keybindings] as { command: string }[])
      expect(commands).toContain(command);
    const ids = Object.values(views).flatMap((list) => (list as { id: string }[]).map((v) => v.id));
    for (const { view } of viewsWelcome) expect(ids).toContain(view);
    for (const step of walkthroughs.flatMap((w: { steps: object[] }) => w.steps)) {
      expect(existsSync(join(root, step.media.markdown))).toBe(true);
      for (const [, command] of step.description.matchAll(/\(command:(hyperstep[\w.]+)\)/g))
        expect(commands).toContain(command);
    }
  });

  test("every program it names is a bundle", () => {
    const made = bundles.map((b) => b.outfile);
    for (const path of [manifest.main, manifest.browser, manifest.bin.hyperstep])
      expect(made).toContain(path.replace(/^\.\//, ""));
  });

  test("the lockfile names no registry", () => {
    expect(read("package-lock.json")).not.toMatch(/"resolved"|https?:\/\/registry/);
  });

  test("the sample's launch.json is right by the adapter's own check", () => {
    const { configurations } = JSON.parse(read("samples/hello-guest/.vscode/launch.json"));
    for (const { type, request, name, ...attributes } of configurations) {
      expect([type, request]).toEqual(["hyperstep", "launch"]);
      expect(check(attributes, { ...launchSchema, additionalProperties: false }, name)).toEqual([]);
    }
  });
});
