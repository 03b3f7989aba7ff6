/** Launch configurations: F5 without a launch.json, and paths made absolute. */
import * as vscode from "vscode";
import { configurationFor, type FoundImage, flatImage, imageIn, initrdFor } from "./images";
import type { Platform } from "./platform";
import { DEBUG_TYPE } from "./sessions";

/** Where images usually are: by extension, and kernels by name. */
const IMAGE_FILES = "**/{*.elf,*.bin,*.img,bzImage*,vmlinuz*,*.kernel}";
const NOT_IMAGES = "**/{node_modules,.git,dist}/**";
const MANY = 200;
/** Enough for every header this looks at: multiboot's lies within the first 8192 bytes. */
const HEAD = 65536;
const RECENT_KEY = "hyperstep.recentImages";
const RECENT_COUNT = 10;
/** Launch attributes that name a file, or several, beside the program and its symbols. */
const PATHS = ["initrd", "disks", "firmware", "firmwareVariables", "videoBios"] as const;

/** Images started before, the newest first, as URIs. */
export interface Recent {
  list(): readonly string[];
  add(uri: string): void;
}

export function recentConfigurations(memento: vscode.Memento): Recent {
  const list = (): readonly string[] => memento.get<readonly string[]>(RECENT_KEY, []);
  return {
    list,
    add: (uri) => {
      memento.update(RECENT_KEY, [uri, ...list().filter((u) => u !== uri)].slice(0, RECENT_COUNT));
    },
  };
}

interface Candidate extends FoundImage {
  readonly uri: vscode.Uri;
}

export class HyperstepConfigurations implements vscode.DebugConfigurationProvider {
  constructor(
    private readonly platform: Platform,
    private readonly recent: Recent,
  ) {}

  /** One configuration for each image of a folder, for the editor's list of things to run. */
  async found(folder: vscode.WorkspaceFolder | undefined): Promise<vscode.DebugConfiguration[]> {
    const images = await this.search(folder);
    return Promise.all(images.map((image) => this.make(image, folder)));
  }

  /** The initial launch.json of a folder. */
  async provideDebugConfigurations(folder: vscode.WorkspaceFolder | undefined): Promise<vscode.DebugConfiguration[]> {
    const found = await this.found(folder);
    if (found.length > 0) return found;
    const program = `\${workspaceFolder}/guest.elf`;
    return [{ type: DEBUG_TYPE, request: "launch", name: "Guest on KVM (VMX)", program, accel: "vmx" }];
  }

  async resolveDebugConfiguration(
    folder: vscode.WorkspaceFolder | undefined,
    config: vscode.DebugConfiguration,
  ): Promise<vscode.DebugConfiguration | undefined> {
    if (config.type && config.request && (config.program || config.name)) return config;
    const image = await this.choose(folder);
    if (!image) return undefined;
    return { ...(await this.make(image, undefined)), noDebug: config.noDebug };
  }

  /** Relative paths are relative to the workspace folder. */
  async resolveDebugConfigurationWithSubstitutedVariables(
    folder: vscode.WorkspaceFolder | undefined,
    config: vscode.DebugConfiguration,
  ): Promise<vscode.DebugConfiguration | undefined> {
    if (typeof config.program !== "string" || config.program === "") {
      const change = "Open launch.json";
      const text = `"${config.name}" does not say which image to run: set "program" to the path of an ELF file, a Linux kernel or a flat binary.`;
      if ((await vscode.window.showErrorMessage(text, { modal: true }, change)) === change)
        return null as unknown as undefined;
      return undefined;
    }
    const program = this.platform.absolute(config.program, folder);
    const files = PATHS.filter((name) => typeof config[name] === "string" || Array.isArray(config[name]));
    this.recent.add(this.platform.uriOf(program).toString());
    return {
      ...config,
      program,
      ...Object.fromEntries(files.map((name) => [name, this.absolutePaths(config[name], folder)])),
      ...(config.symbols === undefined ? {} : { symbols: this.absoluteSymbols(config.symbols, folder) }),
    };
  }

  /** The image to run when nobody said: the one in front, the only one, or the user's choice. */
  async choose(folder: vscode.WorkspaceFolder | undefined): Promise<Candidate | undefined> {
    const front = await this.inFront();
    if (front) return front;
    const images = await this.search(folder ?? vscode.workspace.workspaceFolders?.[0]);
    if (images.length === 1) return images[0];
    const browse = { label: "$(folder-opened) Browse...", description: "", image: undefined };
    const items = images.map((image) => ({
      label: vscode.workspace.asRelativePath(image.uri),
      description: image.description,
      image,
    }));
    const title =
      images.length > 0 ? "Which image should run?" : "No guest image found in this folder. Which one should run?";
    const picked = await vscode.window.showQuickPick([...items, browse], { title, matchOnDescription: true });
    if (!picked) return undefined;
    return picked.image ?? this.browse();
  }

  /** A configuration for an image the user pointed at, whatever it is. */
  async forImage(uri: vscode.Uri): Promise<vscode.DebugConfiguration | undefined> {
    const image = await this.look(uri);
    if (image) return this.make(image, undefined);
    const text = `${vscode.workspace.asRelativePath(uri)} is no ELF file, no Linux kernel and no boot sector. To run it as a flat binary, add a configuration with "loadAddress" to launch.json.`;
    vscode.window.showErrorMessage(text);
    return undefined;
  }

  private async make(image: Candidate, folder: vscode.WorkspaceFolder | undefined): Promise<vscode.DebugConfiguration> {
    const pathOf = (uri: vscode.Uri): string =>
      folder && uri.toString().startsWith(`${folder.uri.toString()}/`)
        ? `\${workspaceFolder}/${vscode.workspace.asRelativePath(uri, false)}`
        : this.platform.pathOf(uri);
    const name = image.uri.path.slice(image.uri.path.lastIndexOf("/") + 1);
    const initrd = image.kind === "linux" ? await this.initrdBeside(image.uri, name) : undefined;
    return {
      type: DEBUG_TYPE,
      request: "launch",
      name,
      program: pathOf(image.uri),
      ...(initrd ? { initrd: pathOf(initrd) } : {}),
      ...configurationFor(image),
    };
  }

  /** The initial RAM disk that lies beside a kernel, the one of its version first. */
  private async initrdBeside(kernel: vscode.Uri, name: string): Promise<vscode.Uri | undefined> {
    const parent = vscode.Uri.joinPath(kernel, "..");
    try {
      const entries = await vscode.workspace.fs.readDirectory(parent);
      const files = entries.filter(([, type]) => (type & vscode.FileType.File) !== 0).map(([file]) => file);
      const found = initrdFor(name, files);
      return found === undefined ? undefined : vscode.Uri.joinPath(parent, found);
    } catch {
      return undefined;
    }
  }

  private async inFront(): Promise<Candidate | undefined> {
    const input = vscode.window.tabGroups.activeTabGroup.activeTab?.input;
    if (input instanceof vscode.TabInputText || input instanceof vscode.TabInputCustom) return this.look(input.uri);
    return undefined;
  }

  private async search(folder: vscode.WorkspaceFolder | undefined): Promise<Candidate[]> {
    if (!folder) return [];
    const uris = await vscode.workspace.findFiles(new vscode.RelativePattern(folder, IMAGE_FILES), NOT_IMAGES, MANY);
    const found = (await Promise.all(uris.map((uri) => this.look(uri)))).filter((image) => image !== undefined);
    const recent = this.recent.list();
    const age = ({ uri }: Candidate): number => {
      const at = recent.indexOf(uri.toString());
      return at < 0 ? recent.length : at;
    };
    return found.sort((a, b) => age(a) - age(b) || (a.uri.path < b.uri.path ? -1 : 1));
  }

  private async look(uri: vscode.Uri): Promise<Candidate | undefined> {
    try {
      const bytes = await vscode.workspace.fs.readFile(uri);
      const image = imageIn(bytes.subarray(0, HEAD), bytes.length);
      return image && { ...image, uri };
    } catch {
      return undefined;
    }
  }

  private async browse(): Promise<Candidate | undefined> {
    const uris = await vscode.window.showOpenDialog({ title: "Guest Image", openLabel: "Run", canSelectMany: false });
    if (!uris) return undefined;
    const image = await this.look(uris[0]);
    return image ?? { ...flatImage, uri: uris[0] };
  }

  private absolutePaths(value: unknown, folder: vscode.WorkspaceFolder | undefined): unknown {
    if (Array.isArray(value)) return value.map((one) => this.absolutePaths(one, folder));
    return typeof value === "string" ? this.platform.absolute(value, folder) : value;
  }

  private absoluteSymbols(symbols: unknown, folder: vscode.WorkspaceFolder | undefined): unknown {
    if (typeof symbols === "string") return this.platform.absolute(symbols, folder);
    if (Array.isArray(symbols)) return symbols.map((s) => this.absoluteSymbols(s, folder));
    const entry = symbols as { path?: unknown } | null;
    return typeof entry?.path === "string" ? { ...entry, path: this.platform.absolute(entry.path, folder) } : symbols;
  }
}
