/** The VMCS inspector: the current VMCS of the vCPU being looked at, in groups, with bits decoded and changes marked. */
import * as vscode from "vscode";
import type { CustomField } from "../debug-adapter/custom-protocol";
import { ask, type Sessions } from "./sessions";
import { bitRange, type FieldNode, fieldTooltip, type GroupNode, spaced, type VmcsNode, vmcsTree } from "./vmcs-tree";

const ONLY_CHANGED = "hyperstep.vmcs.onlyChanged";

export class VmcsView implements vscode.TreeDataProvider<VmcsNode>, vscode.Disposable {
  private readonly changed = new vscode.EventEmitter<void>();
  readonly onDidChangeTreeData = this.changed.event;
  private readonly view: vscode.TreeView<VmcsNode>;
  private readonly disposables: vscode.Disposable[];
  private roots: readonly GroupNode[] = [];
  /** Values at the last stop and at the one before, by session, vCPU and field. */
  private readonly history = new Map<string, { now: Map<string, string>; before: Map<string, string> }>();
  private onlyChanged = false;
  /** Counts refreshes, so that a slow answer does not overwrite a newer one. */
  private round = 0;

  constructor(private readonly sessions: Sessions) {
    this.view = vscode.window.createTreeView("hyperstep.vmcs", { treeDataProvider: this, showCollapseAll: true });
    this.disposables = [
      this.view,
      this.changed,
      sessions.onDidChange((session) => this.refresh(sessions.state(session)?.kind === "stopped")),
      sessions.onDidInvalidate(() => this.refresh(false)),
      sessions.onDidChangeActive(() => this.refresh(false)),
      sessions.onDidEnd((session) => {
        for (const key of this.history.keys()) if (key.startsWith(`${session.id} `)) this.history.delete(key);
        this.refresh(false);
      }),
      this.view.onDidChangeVisibility(({ visible }) => {
        if (visible) this.refresh(false);
      }),
    ];
  }

  dispose(): void {
    for (const disposable of this.disposables) disposable.dispose();
  }

  setOnlyChanged(on: boolean): void {
    this.onlyChanged = on;
    vscode.commands.executeCommand("setContext", ONLY_CHANGED, on);
    this.refresh(false);
  }

  /** The node a command without an argument means. */
  get selected(): VmcsNode | undefined {
    return this.view.selection[0];
  }

  /** @param stopped the machine has just stopped: what is shown now becomes the past */
  async refresh(stopped: boolean): Promise<void> {
    const round = ++this.round;
    const session = this.sessions.active;
    const threadId = session && this.sessions.threadOf(session);
    if (!session || threadId === undefined) {
      // While the guest runs the values stay, as in the Variables view; without a session they go.
      if (!session || this.sessions.state(session) === undefined) this.show([], new Map(), undefined);
      return;
    }
    try {
      const { pointer, fields } = await ask(session, "hyperstep/vmcs", { threadId });
      if (round !== this.round) return;
      const key = `${session.id} ${threadId}`;
      const values = new Map(fields.map((f) => [f.name, f.value] as const));
      const past = this.history.get(key);
      const before = stopped || !past ? (past?.now ?? values) : past.before;
      this.history.set(key, { now: values, before });
      this.show(fields, before, pointer ?? undefined);
    } catch (error) {
      if (round !== this.round) return;
      this.show([], new Map(), undefined);
      this.view.message = error instanceof Error ? error.message : String(error);
    }
  }

  private show(fields: readonly CustomField[], before: ReadonlyMap<string, string>, pointer: string | undefined): void {
    this.roots = vmcsTree(fields, before, this.onlyChanged);
    this.view.description = pointer === undefined ? undefined : `at ${pointer}`;
    const nothing = this.onlyChanged && fields.length > 0 && this.roots.length === 0;
    this.view.message = nothing ? "No field changed since the last stop." : undefined;
    this.changed.fire();
  }

  getChildren(node?: VmcsNode): VmcsNode[] {
    if (!node) return [...this.roots];
    if (node.kind === "group") return [...node.fields];
    return node.kind === "field" ? [...node.bits] : [];
  }

  getTreeItem(node: VmcsNode): vscode.TreeItem {
    if (node.kind === "group") return this.groupItem(node);
    if (node.kind === "field") return this.fieldItem(node);
    const { bit } = node;
    const item = new vscode.TreeItem(bit.name);
    item.description = `${bit.text ? `${bit.text} (${bit.value})` : bit.value}`;
    item.tooltip = `${bit.name}, bits ${bitRange(bit)}${bit.help ? `: ${bit.help}` : ""}`;
    item.contextValue = "bit";
    return item;
  }

  private groupItem({ name, fields, changed }: GroupNode): vscode.TreeItem {
    const { Collapsed, Expanded } = vscode.TreeItemCollapsibleState;
    const item = new vscode.TreeItem(name, this.onlyChanged ? Expanded : Collapsed);
    item.id = `group ${name} ${this.onlyChanged}`;
    const count = fields.length === 1 ? "1 field" : `${fields.length} fields`;
    item.description = changed > 0 ? `${count}, ${changed} changed` : count;
    item.contextValue = "group";
    return item;
  }

  private fieldItem(node: FieldNode): vscode.TreeItem {
    const { field, before, bits, writable } = node;
    const name = field.name.replace(/^vmcs\./, "");
    const value = spaced(field.value);
    const label = `${name} = ${value}`;
    const changed = before !== undefined;
    // The highlight is the theme's own; the icon and the words say the same to those who do not see it.
    const item = new vscode.TreeItem({ label, highlights: changed ? [[name.length + 3, label.length]] : [] });
    item.id = `field ${field.name}`;
    item.collapsibleState =
      bits.length > 0 ? vscode.TreeItemCollapsibleState.Collapsed : vscode.TreeItemCollapsibleState.None;
    item.description = [field.decoded, changed ? `was ${spaced(before)}` : ""].filter((s) => s !== "").join(" \u00b7 ");
    if (changed) item.iconPath = new vscode.ThemeIcon("diff-modified", new vscode.ThemeColor("charts.yellow"));
    item.tooltip = new vscode.MarkdownString(fieldTooltip(node));
    item.contextValue = writable ? "field writable" : "field";
    const spoken = [label, field.decoded, changed ? `changed, was ${before}` : ""].filter((s) => s !== "").join(", ");
    item.accessibilityInformation = { label: spoken };
    return item;
  }

  /** Asks for a new value and writes it. */
  async setValue(node: VmcsNode | undefined): Promise<void> {
    const session = this.sessions.active;
    if (node?.kind !== "field" || !session) return;
    if (!node.writable) {
      vscode.window.showInformationMessage(`${node.field.name} is VM-exit information: the processor writes it.`);
      return;
    }
    const { field } = node;
    const value = await vscode.window.showInputBox({
      title: `Set ${field.name}`,
      prompt: `${field.help} A number, or any expression: 0x10, rip + 2, vmcs.GUEST_RSP.`,
      value: field.value,
    });
    if (value === undefined) return;
    try {
      await session.customRequest("setExpression", { expression: field.name, value });
      await this.refresh(false);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      vscode.window.showErrorMessage(`${field.name} was not set: ${why}`);
    }
  }
}
