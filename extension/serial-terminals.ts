/** The guest's serial ports as terminals: what it writes is shown, what is typed goes to it. */
import * as vscode from "vscode";
import { fromBase64, toBase64 } from "./base64";
import { ask, type Sessions } from "./sessions";
import { TerminalText } from "./terminal-text";

class SerialTerminal implements vscode.Pseudoterminal {
  private readonly write = new vscode.EventEmitter<string>();
  private readonly closed = new vscode.EventEmitter<void>();
  private readonly text = new TerminalText();
  private readonly encoder = new TextEncoder();
  /** What arrived before the terminal was drawn. */
  private waiting: string | undefined = "";
  private session: vscode.DebugSession | undefined;

  readonly onDidWrite = this.write.event;
  readonly onDidClose = this.closed.event;

  constructor(session: vscode.DebugSession) {
    this.session = session;
  }

  open(): void {
    const text = this.waiting ?? "";
    this.waiting = undefined;
    if (text) this.write.fire(text);
  }

  close(): void {
    this.session = undefined;
  }

  handleInput(data: string): void {
    const session = this.session;
    if (!session) return;
    ask(session, "hyperstep/serialInput", { data: toBase64(this.encoder.encode(data)) }).catch((error: Error) => {
      this.show(`\r\n[${error.message}]\r\n`);
    });
  }

  show(text: string): void {
    if (this.waiting === undefined) this.write.fire(text);
    else this.waiting += text;
  }

  take(bytes: Uint8Array): void {
    this.show(this.text.take(bytes));
  }

  /** The session is over: the text stays, typing does nothing more. */
  end(): void {
    this.session = undefined;
    this.show("\r\n\x1b[2m[the machine is gone]\x1b[0m\r\n");
  }
}

interface Open {
  readonly line: SerialTerminal;
  readonly terminal: vscode.Terminal;
  readonly sessionId: string;
}

export class SerialTerminals implements vscode.Disposable {
  private readonly open = new Map<string, Open>();
  private readonly disposables: vscode.Disposable[];

  constructor(private readonly sessions: Sessions) {
    this.disposables = [
      sessions.onDidReceiveSerial(({ session, port, data }) => {
        if (session.configuration.serial === "console") return;
        this.of(session, port).line.take(fromBase64(data));
      }),
      sessions.onDidEnd((session) => {
        for (const { line, sessionId } of this.open.values()) if (sessionId === session.id) line.end();
        this.tellContext();
      }),
      vscode.window.onDidCloseTerminal((closed) => {
        for (const [key, { terminal }] of this.open) if (terminal === closed) this.open.delete(key);
        this.tellContext();
      }),
    ];
  }

  dispose(): void {
    for (const disposable of this.disposables) disposable.dispose();
    for (const { terminal } of this.open.values()) terminal.dispose();
  }

  /** Brings the active session's first serial port to the front, else the last one there is. */
  show(): boolean {
    const all = [...this.open.values()];
    const wanted = all.find((o) => o.sessionId === this.sessions.active?.id) ?? all.at(-1);
    wanted?.terminal.show();
    return wanted !== undefined;
  }

  private of(session: vscode.DebugSession, port: number): Open {
    const key = `${session.id} ${port}`;
    const present = this.open.get(key);
    if (present) return present;
    // A finished session's terminal of the same name makes room.
    for (const [other, { terminal, sessionId }] of this.open) {
      const over = this.sessions.state({ id: sessionId }) === undefined;
      if (over && terminal.name === this.nameOf(session, port)) {
        this.open.delete(other);
        terminal.dispose();
      }
    }
    const line = new SerialTerminal(session);
    const terminal = vscode.window.createTerminal({
      name: this.nameOf(session, port),
      pty: line,
      iconPath: new vscode.ThemeIcon("terminal"),
    });
    terminal.show(true);
    const made = { line, terminal, sessionId: session.id };
    this.open.set(key, made);
    this.tellContext();
    return made;
  }

  private nameOf(session: vscode.DebugSession, port: number): string {
    return `${session.name}: COM${port + 1}`;
  }

  private tellContext(): void {
    vscode.commands.executeCommand("setContext", "hyperstep.hasSerial", this.open.size > 0);
  }
}
