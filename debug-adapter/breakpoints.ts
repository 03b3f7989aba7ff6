/** Every kind of breakpoint: what the client asks for, what the engine is told, and what a stop is called afterwards. */
import type { DebugProtocol } from "@vscode/debugprotocol";
import { STORED_MSRS } from "../engine/cpu/registers";
import type {
  BreakpointRequest,
  HitRule,
  PlacedBreakpoint,
  Refusal,
  Stop,
  TraceFilter,
  WatchpointRequest,
} from "../engine/debug/api";
import { TraceKind } from "../engine/trace";
import { type Handlers, headlineOf, type SessionContext, threadOf } from "./context";
import { codeAddress } from "./disassembly";
import { exitFilter, traceFilterOf } from "./exception-filters";
import { type MemoryReference, parseReference } from "./format";
import type { Listings } from "./listings";
import type { Memory } from "./memory";
import type { Stack } from "./stack";
import type { Variables } from "./variables";

/** "source" and a path or a source reference: breakpoints in one file or listing. */
type Group = "instruction" | "function" | "data" | `source ${string}`;

/** What the engine is told of one breakpoint: one of the three kinds. */
interface Parts {
  readonly codes?: readonly BreakpointRequest[];
  readonly watch?: WatchpointRequest;
  readonly filter?: TraceFilter;
}

interface Entry extends Parts {
  readonly id: number;
  readonly group: Group;
}

const MODEL_PATH = /(^|[\\/])engine[\\/](kvm|machine|devices|cpu)[\\/].*\.ts$/;
const NO_LINES =
  "No code of the guest comes from this line: compile with -g, or use a function or an instruction breakpoint.";
const MODEL_SOURCE = "The KVM model's own source can be read and stepped through by VM exits, but not broken at.";
const MAX_WATCH = 4096;
/** A name, or a name and how far behind it. */
const SYMBOL = /^([A-Za-z_.$@][\w.$@]*)(?:\s*\+\s*(0[xX][0-9a-fA-F]+|[0-9]+))?$/;
const PENDING = "Waits for the Linux kernel's symbols: they are read when the guest first runs kernel code.";

/** "5", ">= 5", "> 5", "== 5", "% 5". @throws Error */
function parseHitCondition(text: string | undefined): HitRule | undefined {
  if (text === undefined || text.trim() === "") return undefined;
  const match = /^\s*(>=|>|==?|%)?\s*([0-9]{1,9})\s*$/.exec(text);
  if (!match) throw new Error(`"${text}" is no hit count: write 5, >= 5, > 5, == 5 or % 5`);
  const count = Number(match[2]);
  if (match[1] === "%" && count === 0) throw new Error("a hit count of % 0 never stops");
  if (match[1] === ">") return { kind: "from", count: count + 1 };
  if (match[1] === "%") return { kind: "every", count };
  return { kind: match[1]?.startsWith("=") ? "exactly" : "from", count };
}

export class Breakpoints {
  private readonly groups = new Map<Group, Entry[]>();
  private filters: TraceFilter[] = [];
  private nextId = 1;

  constructor(
    private readonly session: SessionContext,
    private readonly memory: Memory,
    private readonly variables: Variables,
    private readonly listings: Listings,
    private readonly stack: Stack,
  ) {}

  readonly handlers: Handlers = {
    setBreakpoints: (args: DebugProtocol.SetBreakpointsArguments) => this.setSource(args),
    setInstructionBreakpoints: (args: DebugProtocol.SetInstructionBreakpointsArguments) => this.setInstruction(args),
    setFunctionBreakpoints: (args: DebugProtocol.SetFunctionBreakpointsArguments) => this.setFunction(args),
    setDataBreakpoints: (args: DebugProtocol.SetDataBreakpointsArguments) => this.setData(args),
    breakpointLocations: (args: DebugProtocol.BreakpointLocationsArguments) => this.locations(args),
    dataBreakpointInfo: (args: DebugProtocol.DataBreakpointInfoArguments) => this.dataInfo(args),
    setExceptionBreakpoints: (args: DebugProtocol.SetExceptionBreakpointsArguments) => this.setExceptions(args),
    exceptionInfo: (args: DebugProtocol.ExceptionInfoArguments) => this.exceptionInfo(args),
  };

  private async setSource(
    args: DebugProtocol.SetBreakpointsArguments,
  ): Promise<DebugProtocol.SetBreakpointsResponse["body"]> {
    const { source } = args;
    const wantedHere = linesOf(args);
    if (this.listings.isListing(source)) return this.setListing(source, wantedHere);
    const path = source.path ?? "";
    const first = this.session.client.linesStartAt1 ? 0 : 1;
    return this.replace(`source ${path}`, wantedHere, async (wanted, id) => {
      const found = this.session.lines.addressesOf(path, wanted.line + first);
      if (!found) throw new Error(MODEL_PATH.test(path) ? MODEL_SOURCE : NO_LINES);
      const addresses = this.firstInEachFunction(found.addresses);
      const codes = addresses.map((linear): BreakpointRequest => ({ id, at: { linear }, ...guards(wanted) }));
      return { codes, where: addresses[0], line: found.line - first };
    });
  }

  /** A line in several pieces (a loop's head, say) stops once a function, where it begins there. */
  private firstInEachFunction(addresses: readonly bigint[]): bigint[] {
    const first = new Map<string, bigint>();
    for (const address of addresses) {
      const name = this.session.symbols.at(address)?.symbol.name ?? "";
      const known = first.get(name);
      if (known === undefined || address < known) first.set(name, address);
    }
    return [...first.values()];
  }

  private async setListing(
    source: DebugProtocol.Source,
    wantedHere: readonly DebugProtocol.SourceBreakpoint[],
  ): Promise<DebugProtocol.SetBreakpointsResponse["body"]> {
    const first = this.session.client.linesStartAt1 ? 0 : 1;
    const group: Group = `source ${source.sourceReference ?? 0}`;
    const { breakpoints } = await this.replace(group, wantedHere, async (wanted, id) => {
      const found = this.listings.addressAt(source, wanted.line + first);
      if (!found) throw new Error("this listing belongs to an earlier run: set the breakpoint in the new one");
      return {
        codes: [{ id, at: { linear: found.address }, ...guards(wanted) }],
        where: found.address,
        line: found.line - first,
      };
    });
    return { breakpoints: breakpoints.map((b) => ({ ...b, source })) };
  }

  private async locations(
    args: DebugProtocol.BreakpointLocationsArguments,
  ): Promise<DebugProtocol.BreakpointLocationsResponse["body"]> {
    const first = this.session.client.linesStartAt1 ? 0 : 1;
    const [from, to] = [args.line + first, (args.endLine ?? args.line) + first];
    const lines = this.listings.isListing(args.source)
      ? this.listings.linesWithCode(args.source, from, to)
      : this.session.lines.linesOf(args.source.path ?? "", from, to);
    return { breakpoints: lines.map((line) => ({ line: line - first })) };
  }

  private setInstruction(args: DebugProtocol.SetInstructionBreakpointsArguments): Promise<object> {
    return this.replace("instruction", args.breakpoints, async (wanted, id) => {
      const base = await this.memory.resolve(wanted.instructionReference);
      const address = BigInt.asUintN(64, base.address + BigInt(wanted.offset ?? 0));
      return this.instructionAt(address, wanted.mode ?? (base.space === "gva" ? "linear" : base.space), wanted, id);
    });
  }

  /** @param mode of breakpointModes, or the name of a memory reference's space */
  private async instructionAt(
    address: bigint,
    mode: string,
    wanted: Guarded,
    id: number,
  ): Promise<{ codes: BreakpointRequest[]; where: bigint }> {
    switch (mode) {
      case "linear":
        return { codes: [{ id, at: { linear: address }, ...guards(wanted) }], where: address };
      case "physical":
      case "gpa":
        return { codes: [{ id, at: { physical: address }, ...guards(wanted) }], where: address };
      case "virtual": {
        const { csBase } = await this.session.engine.request("codeContext", { vcpu: this.memory.vcpu });
        const linear = BigInt.asUintN(64, csBase + address);
        return { codes: [{ id, at: { linear }, ...guards(wanted) }], where: linear };
      }
      default:
        throw new Error(`code of the guest has linear, virtual or physical (gpa) addresses, not ${mode} ones`);
    }
  }

  private setFunction(args: DebugProtocol.SetFunctionBreakpointsArguments): Promise<object> {
    return this.replace("function", args.breakpoints, (wanted, id) => this.functionEntry(wanted, id));
  }

  private async functionEntry(
    wanted: DebugProtocol.FunctionBreakpoint,
    id: number,
  ): Promise<Parts & { where?: bigint }> {
    const name = wanted.name.trim();
    const special = /^(exit|msr|io|phys):\s*(.+)$/i.exec(name);
    if (!special) return this.symbolEntry(wanted, id, name);
    const [, what, operand] = special;
    const filter = (kind: number, match: TraceFilter["match"]): { filter: TraceFilter } => ({
      filter: { id: `function:${id}`, kind, match, ...guards(wanted) },
    });
    switch (what.toLowerCase()) {
      case "exit": {
        const { kind, match } = operand.trim() === "*" ? traceFilterOf("exit:*") : exitFilter(operand);
        return filter(kind, match);
      }
      // Under a hypervisor the access is seen as the VM exit it causes.
      case "msr":
        return filter(TraceKind.Msr | TraceKind.VmExit, { index: await this.msrIndex(operand) });
      case "io":
        return filter(TraceKind.Io | TraceKind.VmExit, { port: await this.number(operand) });
      default: {
        const address = await this.number(operand);
        const { condition, hit } = guards(wanted);
        return {
          codes: [{ id, at: { physical: address }, ...guards(wanted) }],
          watch: { id, space: "physical", address, length: 1, access: "readWrite", condition, ...(hit ? { hit } : {}) },
        };
      }
    }
  }

  private async symbolEntry(
    wanted: DebugProtocol.FunctionBreakpoint,
    id: number,
    name: string,
  ): Promise<Parts & { where?: bigint }> {
    const { symbols, searchesKernel } = this.session;
    const named = SYMBOL.exec(name);
    const symbol = named?.[1] ?? name;
    const offset = BigInt(named?.[2] ?? 0);
    const known = symbols.find(symbol);
    const bySymbol: BreakpointRequest = { id, at: { symbol, offset }, ...guards(wanted) };
    // A constant is a number like any other.
    if (known && known.kind !== "constant") return { codes: [bySymbol], where: known.address + offset };
    try {
      const linear = (await this.memory.resolve(name)).address;
      return { codes: [{ id, at: { linear }, ...guards(wanted) }], where: linear };
    } catch {
      if (named && searchesKernel) return { codes: [bySymbol] };
      const alike = symbols.matching(symbol, 3).map((s) => s.name);
      const hint = alike.length > 0 ? ` (there is ${alike.join(", ")})` : "";
      throw new Error(
        `there is no function "${name}"${hint}; write a symbol, an address, exit:REASON, msr:INDEX, io:PORT or phys:ADDRESS`,
      );
    }
  }

  /** Of an MSR by name, whose value is no index, or by number. */
  private async msrIndex(text: string): Promise<bigint> {
    const name = text.trim().toLowerCase();
    const row = STORED_MSRS.find((msr) => msr.name === name);
    return row ? BigInt(row.index) : this.number(text);
  }

  private async number(text: string): Promise<bigint> {
    const plain = parseReference(text);
    if (plain) return plain.address;
    const result = await this.session.engine.request("evaluate", { vcpu: 0, expression: text, readOnly: true });
    if (typeof result.value === "string") throw new Error(`"${text}" is no number`);
    return BigInt.asUintN(64, result.value);
  }

  private setData(args: DebugProtocol.SetDataBreakpointsArguments): Promise<object> {
    return this.replace("data", args.breakpoints, async (wanted, id) => {
      const match = /^(gva|gpa):(0x[0-9a-f]{1,16}):([0-9]{1,4})$/.exec(wanted.dataId);
      if (!match || Number(match[3]) < 1 || Number(match[3]) > MAX_WATCH)
        throw new Error(`"${wanted.dataId}" is no data breakpoint of this session`);
      const { condition, hit } = guards(wanted);
      return {
        watch: {
          id,
          space: match[1] === "gva" ? "linear" : "physical",
          address: BigInt(match[2]),
          length: Number(match[3]),
          access: wanted.accessType ?? "write",
          condition,
          ...(hit ? { hit } : {}),
        },
        where: BigInt(match[2]),
      };
    });
  }

  private async dataInfo(
    args: DebugProtocol.DataBreakpointInfoArguments,
  ): Promise<DebugProtocol.DataBreakpointInfoResponse["body"]> {
    const found =
      args.variablesReference && !args.asAddress
        ? await this.variables.memoryOf(args.variablesReference, args.name)
        : args.name;
    if (found === undefined)
      return { dataId: null, description: `${args.name} is not in memory: only memory can be watched` };
    const vcpu = this.stack.vcpu(args.frameId);
    const bytes = args.bytes ?? (args.variablesReference ? 8 : (accessWidth(args.name) ?? 8));
    if (bytes < 1 || bytes > MAX_WATCH)
      return { dataId: null, description: `1 to ${MAX_WATCH} bytes can be watched, not ${bytes}` };
    try {
      const plain = await this.memory.resolve(found, args.frameId === undefined ? undefined : vcpu);
      const reference = await this.inMode(plain, args.mode, args.asAddress === true, vcpu);
      if (reference.space === "hpa")
        return { dataId: null, description: "host-physical memory cannot be watched: use a gva or gpa address" };
      const address = `0x${reference.address.toString(16)}`;
      return {
        dataId: `${reference.space}:${address}:${bytes}`,
        description: `${bytes} byte${bytes === 1 ? "" : "s"} at ${reference.space === "gva" ? "" : `${reference.space}:`}${address}`,
        accessTypes: ["read", "write", "readWrite"],
        canPersist: true,
      };
    } catch (error) {
      return { dataId: null, description: error instanceof Error ? error.message : String(error) };
    }
  }

  /** A place as breakpointModes mean it: an address as such is of that kind, a variable is looked up there. */
  private async inMode(
    place: MemoryReference,
    mode: string | undefined,
    asAddress: boolean,
    vcpu: number,
  ): Promise<MemoryReference> {
    if (place.space !== "gva" || mode === undefined || mode === "linear") return place;
    const { engine } = this.session;
    const { address } = place;
    if (mode === "virtual") {
      if (!asAddress) return place;
      const { value } = await engine.request("evaluate", { vcpu, expression: "ds.base", readOnly: true });
      const { bits } = await engine.request("codeContext", { vcpu });
      return { space: "gva", address: BigInt.asUintN(64, address + (bits === 64 ? 0n : BigInt(value))) };
    }
    if (mode !== "physical") throw new Error(`memory has linear, virtual or physical addresses, not ${mode} ones`);
    if (asAddress) return { space: "gpa", address };
    const { physical } = await engine.request("translate", { vcpu, linear: address });
    if (physical === null) throw new Error(`0x${address.toString(16)} is not mapped: it has no physical address now`);
    return { space: "gpa", address: physical };
  }

  private async setExceptions(args: DebugProtocol.SetExceptionBreakpointsArguments): Promise<object> {
    const wanted = [
      ...args.filters.map((filterId) => ({ filterId, condition: "" })),
      ...(args.filterOptions ?? []).map(({ filterId, condition }) => ({ filterId, condition: condition ?? "" })),
    ];
    const problems = new Map<string, string>();
    this.filters = [];
    for (const { filterId, condition } of wanted) {
      try {
        this.filters.push({ id: filterId, condition, ...traceFilterOf(filterId) });
      } catch (error) {
        problems.set(filterId, error instanceof Error ? error.message : String(error));
      }
    }
    for (const { id, message } of await this.sendFilters()) problems.set(String(id), message);
    return {
      breakpoints: wanted.map(({ filterId }) => {
        const message = problems.get(filterId);
        return message === undefined ? { verified: true } : { verified: false, message };
      }),
    };
  }

  private async exceptionInfo({
    threadId,
  }: DebugProtocol.ExceptionInfoArguments): Promise<DebugProtocol.ExceptionInfoResponse["body"]> {
    const { stop } = this.session;
    const event = stop && (stop.reason === "trace" || stop.traceKind !== 0 || stop.ending !== undefined);
    if (!event || threadOf(stop.vcpu) !== threadId) throw new Error(`thread ${threadId} is not stopped at an event`);
    const filter = stop.hits.find((hit) => typeof hit === "string" && !hit.startsWith("function:"));
    const exceptionId = String(filter ?? (stop.ending ? stop.ending.kind : stop.reason));
    const headline = headlineOf(stop);
    const text = stop.description ?? headline;
    return {
      exceptionId,
      description: headline || text,
      breakMode: "always",
      details: {
        message: text,
        typeName: exceptionId,
        ...(stop.description ? { stackTrace: stop.description } : {}),
      },
    };
  }

  /** What DAP calls the reason of a stop, and the breakpoints it names. */
  reasonOf(stop: Stop): { reason: string; hitBreakpointIds: number[] } {
    const ids = stop.hits
      .map((hit) => (typeof hit === "number" ? hit : hit.startsWith("function:") ? Number(hit.slice(9)) : -1))
      .filter((id) => id > 0);
    const group = this.entries().find((e) => ids.includes(e.id))?.group;
    const exception =
      stop.reason === "trace" && stop.hits.some((h) => typeof h === "string" && !h.startsWith("function:"));
    if (stop.ending || exception) return { reason: "exception", hitBreakpointIds: ids };
    if (group)
      return { reason: group.startsWith("source") ? "breakpoint" : `${group} breakpoint`, hitBreakpointIds: ids };
    return { reason: stop.reason === "trace" ? "breakpoint" : stop.reason, hitBreakpointIds: ids };
  }

  private entries(): Entry[] {
    return [...this.groups.values()].flat();
  }

  /** Sets one group anew: each breakpoint is made, the engine told, and every refusal reported at its breakpoint. */
  private async replace<T extends object>(
    group: Group,
    wanted: readonly T[],
    make: (
      wanted: T,
      id: number,
    ) => Promise<{
      codes?: readonly BreakpointRequest[];
      watch?: WatchpointRequest;
      filter?: TraceFilter;
      where?: bigint;
      line?: number;
    }>,
  ): Promise<{ breakpoints: DebugProtocol.Breakpoint[] }> {
    const made: { entry?: Entry; answer: DebugProtocol.Breakpoint }[] = [];
    for (const item of wanted) {
      const id = this.nextId++;
      try {
        const { where, line, ...parts } = await make(item, id);
        const answer: DebugProtocol.Breakpoint = { id, verified: true };
        if (where !== undefined) answer.instructionReference = codeAddress(where);
        if (line !== undefined) answer.line = line;
        made.push({ entry: { id, group, ...parts }, answer });
      } catch (error) {
        made.push({ answer: { id, verified: false, message: error instanceof Error ? error.message : String(error) } });
      }
    }
    this.groups.set(
      group,
      made.flatMap((m) => (m.entry ? [m.entry] : [])),
    );
    const { refused: list, pending } = await this.send();
    const refused = new Map(list.map((r) => [String(r.id).replace("function:", ""), r.message]));
    const waiting = new Set(pending);
    return {
      breakpoints: made.map(({ answer }): DebugProtocol.Breakpoint => {
        const message = refused.get(String(answer.id));
        if (message !== undefined) return { id: answer.id, verified: false, message };
        if (waiting.has(answer.id ?? -1))
          return { id: answer.id, verified: false, message: PENDING, reason: "pending" as const };
        return answer;
      }),
    };
  }

  /** Breakpoints that waited for the kernel's symbols: they stand now, or never will. */
  placed(list: readonly PlacedBreakpoint[], missing: readonly Refusal[]): void {
    const tell = (breakpoint: DebugProtocol.Breakpoint): void =>
      this.session.event("breakpoint", { reason: "changed", breakpoint });
    const known = new Set(this.entries().map(({ id }) => id));
    for (const { id, linear } of list)
      if (known.has(id)) tell({ id, verified: true, instructionReference: codeAddress(linear) });
    for (const { id, message } of missing) tell({ id: Number(id), verified: false, message });
  }

  /** The guest has been launched anew: breakpoints on names wait again for its kernel. */
  async sendAgain(): Promise<void> {
    const { pending } = await this.send();
    for (const id of pending)
      this.session.event("breakpoint", {
        reason: "changed",
        breakpoint: { id, verified: false, message: PENDING, reason: "pending" },
      });
  }

  /** Tells the engine everything again: after a restart, and after every change. */
  private async send(): Promise<{ refused: Refusal[]; pending: readonly number[] }> {
    const { engine } = this.session;
    const entries = this.entries();
    const code = await engine.request("setBreakpoints", { list: entries.flatMap((e) => e.codes ?? []) });
    const watch = await engine.request("setWatchpoints", { list: entries.flatMap((e) => (e.watch ? [e.watch] : [])) });
    return { refused: [...code.refused, ...watch.refused, ...(await this.sendFilters())], pending: code.pending };
  }

  private async sendFilters(): Promise<readonly Refusal[]> {
    const list = [...this.entries().flatMap((e) => (e.filter ? [e.filter] : [])), ...this.filters];
    return (await this.session.engine.request("setTraceFilters", { list })).refused;
  }
}

/** Older clients name lines only. */
const linesOf = (args: DebugProtocol.SetBreakpointsArguments): readonly DebugProtocol.SourceBreakpoint[] =>
  args.breakpoints ?? args.lines?.map((line) => ({ line })) ?? [];

interface Guarded {
  readonly condition?: string;
  readonly hitCondition?: string;
  readonly logMessage?: string;
}

function guards(wanted: Guarded): { condition: string; hit?: HitRule; log?: string } {
  const hit = parseHitCondition(wanted.hitCondition);
  return {
    condition: wanted.condition ?? "",
    ...(hit ? { hit } : {}),
    ...(wanted.logMessage ? { log: wanted.logMessage } : {}),
  };
}

/** Bytes a memory expression such as u32[...] reads. */
function accessWidth(expression: string): number | undefined {
  const match = /^\s*[ui](8|16|32|64)\s*\[/.exec(expression);
  return match ? Number(match[1]) / 8 : undefined;
}
