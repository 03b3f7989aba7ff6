/** One line on where the active machine is. */
import * as vscode from "vscode";
import type { Sessions } from "./sessions";

export class StatusBar implements vscode.Disposable {
  private readonly item = vscode.window.createStatusBarItem("hyperstep.state", vscode.StatusBarAlignment.Left, 20);
  private readonly disposables: vscode.Disposable[];

  constructor(private readonly sessions: Sessions) {
    this.item.name = "Hyperstep";
    this.item.command = "hyperstep.showSerial";
    this.disposables = [
      this.item,
      sessions.onDidChange(() => this.update()),
      sessions.onDidChangeActive(() => this.update()),
      sessions.onDidEnd(() => this.update()),
    ];
  }

  dispose(): void {
    for (const disposable of this.disposables) disposable.dispose();
  }

  private update(): void {
    const session = this.sessions.active;
    const state = session && this.sessions.state(session);
    if (!session || !state) {
      this.item.hide();
      return;
    }
    const { accel } = session.configuration;
    const where = accel === "none" ? "bare machine" : `KVM on ${String(accel ?? "vmx").toUpperCase()}`;
    const stage = state.kind === "running" ? "running" : state.text || "stopped";
    this.item.text = `${state.kind === "running" ? "$(play)" : "$(debug-pause)"} ${shortened(stage)}`;
    this.item.tooltip = `Hyperstep: ${session.name}, ${where}\n${stage}\nClick for the serial console.`;
    this.item.accessibilityInformation = { label: `Hyperstep: ${stage}` };
    this.item.show();
  }
}

function shortened(text: string): string {
  const line = text.split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 57)}...` : line;
}
