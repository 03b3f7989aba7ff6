/**
 * Sources of the guest: line tables name files as the compiler saw them; here they are found on the disk. A file is looked
 * for where its name says, and then beside the ELF file, with as many of its folders as are there.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { SessionContext } from "./context";

const isAbsolute = (path: string): boolean => /^([\\/]|[A-Za-z]:[\\/]|[a-z][a-z0-9+.-]+:\/\/)/i.test(path);

export class GuestSources {
  private readonly found = new Map<string, Promise<DebugProtocol.Source | undefined>>();

  constructor(private readonly session: SessionContext) {}

  /** Source and line of the instruction at a linear address, when its file is there. */
  async place(address: bigint): Promise<{ source: DebugProtocol.Source; line: number } | undefined> {
    const here = this.session.lines.at(address);
    const source = here && (await this.source(here.file));
    return source && { source, line: here.line };
  }

  /** The file on the disk that a line table's name means. */
  source(file: string): Promise<DebugProtocol.Source | undefined> {
    let source = this.found.get(file);
    if (!source) {
      source = this.find(file);
      this.found.set(file, source);
    }
    return source;
  }

  private async find(file: string): Promise<DebugProtocol.Source | undefined> {
    const { host, lines } = this.session;
    const parts = file.split(/[\\/]/).filter((part) => part !== "" && part !== ".");
    const folder = host.directory(lines.originOf(file) ?? "");
    const candidates = isAbsolute(file) ? [file] : [];
    for (let i = 0; i < parts.length; i++) candidates.push(host.join(folder, ...parts.slice(i)));
    for (const path of candidates) if (await host.exists(path)) return { name: parts[parts.length - 1], path };
    return undefined;
  }

  /** All files of the line tables that are on the disk. */
  async loaded(): Promise<DebugProtocol.Source[]> {
    const all = await Promise.all(this.session.lines.files.map((file) => this.source(file)));
    return all.filter((source) => source !== undefined);
  }

  forget(): void {
    this.found.clear();
  }
}
