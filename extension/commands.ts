/** The extension's commands. */
import * as vscode from "vscode";
import type { NumberFormat } from "../debug-adapter/custom-protocol";
import { EXIT_REASONS } from "../engine/cpu/vmx/exit-reasons";
import type { HyperstepConfigurations } from "./configuration";
import type { ExitCount } from "./exit-counts";
import type { ExitsView } from "./exits-view";
import type { Platform } from "./platform";
import type { SerialTerminals } from "./serial-terminals";
import { ask, type Sessions } from "./sessions";
import type { VmcsNode } from "./vmcs-tree";
import type { VmcsView } from "./vmcs-view";

export interface Parts {
  readonly context: vscode.ExtensionContext;
  readonly platform: Platform;
  readonly sessions: Sessions;
  readonly configurations: HyperstepConfigurations;
  readonly vmcs: VmcsView;
  readonly exits: ExitsView;
  readonly terminals: SerialTerminals;
}

const SAMPLE = "hello-guest";

export function registerCommands(parts: Parts): vscode.Disposable[] {
  const { sessions, configurations, vmcs, exits, terminals, platform } = parts;
  const commands: Record<string, (...args: never[]) => unknown> = {
    "hyperstep.debugImage": (uri?: vscode.Uri) => debugImage(parts, uri, {}),
    "hyperstep.debugImageBare": (uri?: vscode.Uri) => debugImage(parts, uri, { accel: "none" }),
    "hyperstep.pickImage": async () => {
      const image = await configurations.choose(undefined);
      return image && platform.pathOf(image.uri);
    },
    "hyperstep.openSample": () => openSample(parts),
    "hyperstep.stopAtExit": () => stopAtExit(exits),
    "hyperstep.stopAtThisExit": (node?: ExitCount) => (node ? addExitBreakpoint(node.reason, "") : stopAtExit(exits)),
    "hyperstep.setNumbers": () => setNumbers(sessions),
    "hyperstep.showSerial": () => {
      if (!terminals.show())
        vscode.window.showInformationMessage("The guest has written nothing to its serial port yet.");
    },
    "hyperstep.vmcs.copyValue": (node?: VmcsNode) => copy(node ?? vmcs.selected, "value"),
    "hyperstep.vmcs.copyName": (node?: VmcsNode) => copy(node ?? vmcs.selected, "name"),
    "hyperstep.vmcs.setValue": (node?: VmcsNode) => vmcs.setValue(node ?? vmcs.selected),
    "hyperstep.vmcs.filter": () => vmcs.setOnlyChanged(true),
    "hyperstep.vmcs.showAll": () => vmcs.setOnlyChanged(false),
    "hyperstep.refresh": () => Promise.all([vmcs.refresh(false), exits.refresh(false)]),
  };
  return Object.entries(commands).map(([name, run]) => vscode.commands.registerCommand(name, run));
}

async function debugImage(parts: Parts, uri: vscode.Uri | undefined, more: { accel?: string }): Promise<void> {
  const { configurations } = parts;
  const target = uri ?? (await configurations.choose(undefined))?.uri;
  if (!target) return;
  const config = await configurations.forImage(target);
  if (!config) return;
  await vscode.debug.startDebugging(vscode.workspace.getWorkspaceFolder(target), { ...config, ...more });
}

/** Copies the sample to a folder of the user's, so that it may be changed and built. */
async function openSample({ context }: Parts): Promise<void> {
  const folders = await vscode.window.showOpenDialog({
    title: `Where should the folder "${SAMPLE}" go?`,
    openLabel: "Put It Here",
    canSelectFiles: false,
    canSelectFolders: true,
  });
  if (!folders) return;
  const target = vscode.Uri.joinPath(folders[0], SAMPLE);
  try {
    await vscode.workspace.fs.copy(vscode.Uri.joinPath(context.extensionUri, "samples", SAMPLE), target);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    vscode.window.showErrorMessage(`The sample was not copied to ${target.path}: ${why}`);
    return;
  }
  await vscode.commands.executeCommand("vscode.openFolder", target);
}

async function stopAtExit(exits: ExitsView): Promise<void> {
  const seen = exits.reasons;
  const rest = EXIT_REASONS.filter(({ name }) => !seen.includes(name));
  const help = new Map(EXIT_REASONS.map((row) => [row.name as string, row.help] as const));
  const items = [...seen, ...rest.map((row) => row.name)].map((name) => ({
    label: name,
    description: help.get(name),
  }));
  const reason = await vscode.window.showQuickPick(items, {
    title: "Stop at VM exits with this reason",
    matchOnDescription: true,
  });
  if (!reason) return;
  const condition = await vscode.window.showInputBox({
    title: `Stop at ${reason.label}`,
    prompt: "Only when this holds (leave empty for always), such as: port == 0x3f8 && size == 1",
  });
  if (condition !== undefined) addExitBreakpoint(reason.label, condition.trim());
}

function addExitBreakpoint(reason: string, condition: string): void {
  const breakpoint = new vscode.FunctionBreakpoint(`exit:${reason}`, true, condition === "" ? undefined : condition);
  vscode.debug.addBreakpoints([breakpoint]);
  const when = condition === "" ? "" : ` when ${condition}`;
  vscode.window.setStatusBarMessage(`Stops at ${reason}${when}; see Breakpoints.`, 5000);
}

async function setNumbers(sessions: Sessions): Promise<void> {
  const session = sessions.active;
  if (!session) return;
  const items: { label: string; numbers: NumberFormat }[] = [
    { label: "Hexadecimal", numbers: "hex" },
    { label: "Decimal", numbers: "decimal" },
    { label: "Binary", numbers: "binary" },
  ];
  const picked = await vscode.window.showQuickPick(items, { title: "Show registers and fields as" });
  if (picked) await ask(session, "hyperstep/setNumbers", { numbers: picked.numbers });
}

async function copy(node: VmcsNode | undefined, what: "name" | "value"): Promise<void> {
  if (!node || node.kind === "group") return;
  const value = node.kind === "bit" ? node.bit.value : node.field.value;
  await vscode.env.clipboard.writeText(what === "name" ? node.field.name : value);
}
