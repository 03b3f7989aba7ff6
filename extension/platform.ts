/** What differs between the desktop and the browser. */
import type * as vscode from "vscode";

export interface Platform {
  /** Where the debug adapter of a session comes from. */
  readonly adapters: vscode.DebugAdapterDescriptorFactory;
  /** How a program the user named is written for that adapter: a file path on the desktop, a URI in the browser. */
  pathOf(uri: vscode.Uri): string;
  /** The reverse of pathOf. */
  uriOf(path: string): vscode.Uri;
  /** A path of a launch configuration, made absolute, as pathOf writes it. */
  absolute(path: string, folder: vscode.WorkspaceFolder | undefined): string;
}
