/** VM exits by reason: how often so far, and how many more since the stop before. */
import * as vscode from "vscode";
import { type ExitCount, exitCounts, grouped } from "./exit-counts";
import { ask, type Sessions } from "./sessions";

export class ExitsView implements vscode.TreeDataProvider<ExitCount>, vscode.Disposable {
  private readonly changed = new vscode.EventEmitter<void>();
  readonly onDidChangeTreeData = this.changed.event;
  private readonly view: vscode.TreeView<ExitCount>;
  private readonly disposables: vscode.Disposable[];
  private counts: readonly ExitCount[] = [];
  private sessionId = "";
  private now: Readonly<Record<string, number>> = {};
  private before: Readonly<Record<string, number>> = {};

  constructor(private readonly sessions: Sessions) {
    this.view = vscode.window.createTreeView("hyperstep.exits", { treeDataProvider: this });
    this.disposables = [
      this.view,
      this.changed,
      sessions.onDidChange((session) => this.refresh(sessions.state(session)?.kind === "stopped")),
      sessions.onDidChangeActive(() => this.refresh(false)),
      sessions.onDidEnd(() => this.refresh(false)),
    ];
  }

  dispose(): void {
    for (const disposable of this.disposables) disposable.dispose();
  }

  /** Reasons counted so far, the most frequent first. */
  get reasons(): readonly string[] {
    return this.counts.map((c) => c.reason);
  }

  /** @param stopped the machine has just stopped: the counts shown now become the past */
  async refresh(stopped: boolean): Promise<void> {
    const session = this.sessions.active;
    if (session && this.sessions.state(session)?.kind === "running") return;
    if (!session || this.sessions.threadOf(session) === undefined) {
      this.counts = [];
      this.view.description = undefined;
      this.changed.fire();
      return;
    }
    try {
      const { exits, instructions } = await ask(session, "hyperstep/stats", {});
      if (session.id !== this.sessionId) this.before = {};
      else if (stopped) this.before = this.now;
      this.sessionId = session.id;
      this.now = exits;
      this.counts = exitCounts(exits, this.before);
      this.view.description = `${grouped(instructions)} instructions`;
      this.view.message = undefined;
    } catch (error) {
      this.counts = [];
      this.view.message = error instanceof Error ? error.message : String(error);
    }
    this.changed.fire();
  }

  getChildren(node?: ExitCount): ExitCount[] {
    return node ? [] : [...this.counts];
  }

  getTreeItem({ reason, count, more, share }: ExitCount): vscode.TreeItem {
    const item = new vscode.TreeItem(reason);
    const percent = share >= 0.001 ? `${(share * 100).toFixed(1)} %` : "< 0.1 %";
    const growth = more > 0 && more < count ? `, +${grouped(more)}` : "";
    item.id = reason;
    item.description = `${grouped(count)} (${percent})${growth}`;
    item.tooltip = `${grouped(count)} VM exits with reason ${reason}, ${grouped(more)} since the stop before`;
    item.contextValue = "exit";
    item.accessibilityInformation = { label: `${reason}, ${count} exits, ${percent}${growth}` };
    return item;
  }
}
