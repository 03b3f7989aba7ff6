/** Entry of the desktop and of remote extension hosts: the debug adapter is a process of its own. */
import { isAbsolute } from "node:path";
import * as vscode from "vscode";
import { activateHyperstep } from "./activate";
import type { Platform } from "./platform";

class AdapterProcess implements vscode.DebugAdapterDescriptorFactory {
  constructor(private readonly program: string) {}

  createDebugAdapterDescriptor(): vscode.DebugAdapterDescriptor {
    // The editor's own program is a Node when this variable is set; a remote extension host's is one already.
    return new vscode.DebugAdapterExecutable(process.execPath, ["--enable-source-maps", this.program], {
      env: { ELECTRON_RUN_AS_NODE: "1" },
    });
  }
}

export function activate(context: vscode.ExtensionContext): void {
  const platform: Platform = {
    adapters: new AdapterProcess(vscode.Uri.joinPath(context.extensionUri, "dist", "adapter.js").fsPath),
    pathOf: (uri) => uri.fsPath,
    uriOf: (path) => vscode.Uri.file(path),
    absolute: (path, folder) => (isAbsolute(path) || !folder ? path : vscode.Uri.joinPath(folder.uri, path).fsPath),
  };
  activateHyperstep(context, platform);
}
