/** Entry of a browser's extension host: the debug adapter runs inside it, the engine in a web worker of its own. */
import * as vscode from "vscode";
import type { AdapterHost, EngineListener, EnginePort } from "../debug-adapter/host";
import { createInlineAdapter, type InlineAdapter } from "../debug-adapter/inline";
import type { FromEngine, ToEngine } from "../engine/debug/api";
import { SharedRing } from "../engine/debug/pump";
import { activateHyperstep } from "./activate";
import type { Platform } from "./platform";

/** How long to wait before trying again when the ring to the engine is full. */
const RETRY_MS = 5;

/** In the browser a path is a URI as text. */
const uriOf = (path: string): vscode.Uri => vscode.Uri.parse(path, true);

/**
 * A configuration may hold a URI, a path inside the workspace's file system (what `${workspaceFolder}/...` becomes), or a
 * path relative to the folder.
 */
function absolute(path: string, folder: vscode.WorkspaceFolder | undefined): string {
  if (/^[a-z][a-z0-9+.-]*:\//i.test(path) || !folder) return path;
  if (path.startsWith("/")) return folder.uri.with({ path: path.replace(/^\/+/, "/") }).toString();
  return vscode.Uri.joinPath(folder.uri, path).toString();
}

class WebHost implements AdapterHost {
  /**
   * @param engineScript the engine worker's program
   * @param scriptUri where it came from; its source map lies beside it
   */
  constructor(
    private readonly engineScript: string,
    private readonly scriptUri: vscode.Uri,
  ) {}

  /** The worker runs from a blob, whose name in stack traces leads nowhere. */
  async engineMap(): Promise<{ text: string; directory: string }> {
    const map = this.scriptUri.with({ path: `${this.scriptUri.path}.map` });
    const text = new TextDecoder().decode(await vscode.workspace.fs.readFile(map));
    // A development server may put an extension's maps into a section, because it wraps the extension's scripts in a
    // function; the worker's script is not wrapped.
    const { sections } = JSON.parse(text) as { sections?: readonly { map: unknown }[] };
    const plain = sections ? JSON.stringify(sections[0].map) : text;
    return { text: plain, directory: vscode.Uri.joinPath(map, "..").toString() };
  }

  async readFile(path: string): Promise<Uint8Array> {
    try {
      return await vscode.workspace.fs.readFile(uriOf(path));
    } catch (error) {
      if (error instanceof vscode.FileSystemError && error.code === "FileNotFound")
        throw new Error(`there is no file ${path}`);
      throw new Error(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  async exists(path: string): Promise<boolean> {
    const uri = uriOf(path);
    try {
      // Of what a web server holds, the editor says that everything exists.
      if (/^https?$/.test(uri.scheme)) return (await vscode.workspace.fs.readFile(uri)).length > 0;
      return (await vscode.workspace.fs.stat(uri)).type === vscode.FileType.File;
    } catch {
      return false;
    }
  }

  directory(path: string): string {
    const uri = uriOf(path);
    return vscode.Uri.joinPath(uri, "..").toString();
  }

  join(...parts: string[]): string {
    const [first, ...rest] = parts;
    return vscode.Uri.joinPath(uriOf(first), ...rest).toString();
  }

  startEngine(listener: EngineListener): EnginePort {
    const url = URL.createObjectURL(new Blob([this.engineScript], { type: "text/javascript" }));
    const worker = new Worker(url, { name: "Hyperstep engine" });
    worker.onmessage = ({ data }: MessageEvent<FromEngine>) => listener.message(data);
    worker.onerror = ({ message }) => listener.failed(new Error(message || "the engine's worker failed"));
    const dispose = (): void => {
      worker.terminate();
      URL.revokeObjectURL(url);
    };
    if (!globalThis.crossOriginIsolated) {
      worker.postMessage({ start: true });
      return { post: (message) => worker.postMessage(message), dispose };
    }
    const ring = SharedRing.create();
    worker.postMessage({ start: true, ring: ring.buffer });
    const sender = new RingSender(worker, ring);
    return { post: (message) => sender.post(message), dispose };
  }
}

/** The first message goes by postMessage, because an image may be larger than the ring; the others wait for room in it. */
class RingSender {
  private readonly queue: ToEngine[] = [];
  private first = true;

  constructor(
    private readonly worker: Worker,
    private readonly ring: SharedRing,
  ) {}

  post(message: ToEngine): void {
    if (this.first) {
      this.first = false;
      this.worker.postMessage(message);
      return;
    }
    this.queue.push(message);
    if (this.queue.length === 1) this.flush();
  }

  private flush(): void {
    while (this.queue.length > 0) {
      if (!this.ring.write(this.queue[0])) {
        setTimeout(() => this.flush(), RETRY_MS);
        return;
      }
      this.queue.shift();
    }
  }
}

class EditorAdapter implements vscode.DebugAdapter {
  private readonly sent = new vscode.EventEmitter<vscode.DebugProtocolMessage>();
  readonly onDidSendMessage = this.sent.event;
  private readonly adapter: InlineAdapter;

  constructor(host: AdapterHost) {
    this.adapter = createInlineAdapter(host, (message) => this.sent.fire(message as vscode.DebugProtocolMessage));
  }

  handleMessage(message: vscode.DebugProtocolMessage): void {
    this.adapter.handle(message);
  }

  dispose(): void {
    this.adapter.dispose();
    this.sent.dispose();
  }
}

export function activate(context: vscode.ExtensionContext): void {
  const script = vscode.Uri.joinPath(context.extensionUri, "dist", "web", "engine-worker.js");
  const platform: Platform = {
    adapters: {
      createDebugAdapterDescriptor: async () => {
        const text = new TextDecoder().decode(await vscode.workspace.fs.readFile(script));
        return new vscode.DebugAdapterInlineImplementation(new EditorAdapter(new WebHost(text, script)));
      },
    },
    pathOf: (uri) => uri.toString(),
    uriOf,
    absolute,
  };
  activateHyperstep(context, platform);
}
