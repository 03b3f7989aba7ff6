/**
 * Sources of the KVM model itself. A frame of the running bundle is mapped back to its TypeScript file; the file is shown
 * from the disk when it is there (a checkout), otherwise from the copy inside the source map (an installed extension).
 */
import { originalPositionFor, sourceContentFor, TraceMap } from "@jridgewell/trace-mapping";
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { ModelFrame } from "../engine/debug/api";
import type { AdapterHost } from "./host";

export interface MappedFrame {
  readonly name: string;
  /** Path inside the project: "engine/kvm/x86.ts". */
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly source: DebugProtocol.Source;
}

interface Script {
  readonly map: TraceMap;
  /** Directory the map's sources are relative to. */
  readonly directory: string;
}

/** Storeys whose frames tell the story of an exit. */
const MODEL = /^engine\/(kvm|machine|devices|cpu\/vmx|cpu\/svm)\//;
/** Innermost functions that only tell of an event stand between the model and the debugger: they are no part of the story. */
const TELLER = /^(hit|tell|trace([A-Z]\w*)?)$/;
const decoder = new TextDecoder();

export class ModelSources {
  private readonly scripts = new Map<string, Promise<Script | null>>();
  private readonly sources = new Map<string, DebugProtocol.Source>();
  private readonly contents = new Map<number, string>();
  private nextReference = 1;

  constructor(private readonly host: AdapterHost) {}

  /** The frames that belong to the model, innermost first. */
  async map(frames: readonly ModelFrame[]): Promise<MappedFrame[]> {
    const mapped = (await Promise.all(frames.map((f) => this.mapOne(f)))).filter((f) => f !== undefined);
    const first = mapped.findIndex((f) => !TELLER.test(f.name));
    return first < 0 ? mapped : mapped.slice(first);
  }

  private async mapOne(frame: ModelFrame): Promise<MappedFrame | undefined> {
    const script = await this.script(frame.script);
    if (!script) return undefined;
    const found = originalPositionFor(script.map, { line: frame.line, column: Math.max(0, frame.column - 1) });
    if (found.source === null || found.line === null) return undefined;
    const file = projectPath(found.source);
    if (!MODEL.test(file)) return undefined;
    const source = await this.source(script, found.source, file);
    return { name: frame.functionName, file, line: found.line, column: (found.column ?? 0) + 1, source };
  }

  private script(path: string): Promise<Script | null> {
    let script = this.scripts.get(path);
    if (!script) {
      script = this.load(path);
      this.scripts.set(path, script);
    }
    return script;
  }

  private async load(path: string): Promise<Script | null> {
    const file = path.replace(/^file:\/\//, "");
    try {
      const given = await this.host.engineMap?.();
      if (given) return { map: new TraceMap(given.text), directory: given.directory };
      const text = decoder.decode(await this.host.readFile(`${file}.map`));
      return { map: new TraceMap(text), directory: this.host.directory(file) };
    } catch {
      return null;
    }
  }

  private async source(script: Script, mapSource: string, file: string): Promise<DebugProtocol.Source> {
    const known = this.sources.get(file);
    if (known) return known;
    const name = file.slice(file.lastIndexOf("/") + 1);
    const path = this.host.join(script.directory, mapSource);
    const source: DebugProtocol.Source = { name, origin: "the KVM model" };
    if (await this.host.exists(path)) source.path = path;
    else {
      const content = sourceContentFor(script.map, mapSource);
      if (content === null) return { name, presentationHint: "deemphasize" };
      source.sourceReference = this.nextReference++;
      source.path = file;
      this.contents.set(source.sourceReference, content);
    }
    // Two requests may have come here at once; the first one's answer stands.
    const first = this.sources.get(file);
    if (first) return first;
    this.sources.set(file, source);
    return source;
  }

  /** Text of a source that is not on the disk. */
  content(reference: number): string | undefined {
    return this.contents.get(reference);
  }

  /** Every file of the model in the scripts seen so far. */
  async loaded(): Promise<DebugProtocol.Source[]> {
    const all: DebugProtocol.Source[] = [];
    for (const loading of this.scripts.values()) {
      const script = await loading;
      if (!script) continue;
      for (const mapSource of script.map.sources)
        if (mapSource !== null && MODEL.test(projectPath(mapSource)))
          all.push(await this.source(script, mapSource, projectPath(mapSource)));
    }
    return all;
  }
}

/** `../engine/kvm/x86.ts` as the map says it, from the project's root. */
function projectPath(mapSource: string): string {
  const at = mapSource.lastIndexOf("engine/");
  return at >= 0 ? mapSource.slice(at) : mapSource;
}
