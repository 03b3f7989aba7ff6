/**
 * One debug session: takes protocol messages in, answers them in order, and turns the engine's events into the protocol's.
 * Areas of the protocol live in their own files; this one owns the life of the session.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { AddressRange, Ending, EngineEvent, LaunchRequest, Resume, Stop } from "../engine/debug/api";
import { TraceKind } from "../engine/trace";
import { Breakpoints } from "./breakpoints";
import { capabilities } from "./capabilities";
import { type Handlers, headlineOf, type SessionContext, threadOf, vcpuOf } from "./context";
import type { CustomEvent, CustomEvents, NumberFormat } from "./custom-protocol";
import { customHandlers } from "./custom-requests";
import { codeAddress, Disassembly } from "./disassembly";
import { Dispatcher } from "./dispatcher";
import { EngineClient } from "./engine-client";
import { Evaluate } from "./evaluate";
import { toBase64 } from "./format";
import { GuestSources } from "./guest-sources";
import type { AdapterHost } from "./host";
import { KernelSearch } from "./kernel-search";
import { type LaunchConfiguration, readImages, validateLaunch } from "./launch";
import { Listings } from "./listings";
import { Memory } from "./memory";
import { Progress } from "./progress";
import { ModelSources } from "./sources";
import { Stack } from "./stack";
import { LineTable } from "./symbols/line-table";
import { engineSymbols, isLinuxImage, readSymbols, type SessionSymbols } from "./symbols/symbol-files";
import { SymbolTable } from "./symbols/symbol-table";
import type { Receiver, Transport } from "./transport";
import { Variables } from "./variables";

/** How long a stuck engine may take to end by itself (ms). */
const PATIENCE = 1000;
const NOT_YET = "nothing has been launched yet";
const OVER = "the session is over";
const STAGE_NAMES: ReadonlyMap<number, string> = new Map(Object.entries(TraceKind).map(([name, bit]) => [bit, name]));

/** Stages offered as targets of "step into": what to stop at first. */
const STEP_TARGETS: readonly { readonly label: string; readonly stages: number }[] = [
  { label: "the next guest instruction", stages: 0 },
  { label: "the VM exit", stages: TraceKind.VmExit },
  { label: "the exit handler", stages: TraceKind.ExitHandler },
  { label: "the MMU fault", stages: TraceKind.MmuFault },
  { label: "the exit to userspace", stages: TraceKind.UserspaceExit },
  { label: "the device", stages: TraceKind.Device },
  { label: "the VM entry", stages: TraceKind.VmEntry },
];

type Phase = "new" | "initialized" | "launched" | "running" | "over";

export class DebugSession implements Receiver, SessionContext {
  numbers: NumberFormat = "hex";
  symbols = new SymbolTable();
  lines = new LineTable();
  stop: Stop | null = null;
  client = {
    linesStartAt1: true,
    columnsStartAt1: true,
    invalidatedEvents: false,
    memoryEvents: false,
    progress: false,
    variableTypes: true,
    memoryReferences: true,
    completionStarts: true,
  };

  private readonly memory = new Memory(this);
  private readonly sources: ModelSources;
  private readonly listings: Listings;
  private readonly guestSources = new GuestSources(this);
  private readonly stack: Stack;
  private readonly variables: Variables;
  private readonly breakpoints: Breakpoints;
  private readonly dispatcher: Dispatcher;
  private readonly kernelSearch: KernelSearch;
  private phase: Phase = "new";
  private configuration: LaunchConfiguration | null = null;
  private client_: EngineClient | null = null;
  private ending: Ending | null = null;
  /** Of the files the configuration names; `symbols` has what the kernel in the guest adds besides. */
  private fileSymbols: SessionSymbols | null = null;
  /** Addresses of the goto targets handed out; an id is the place in the list, from 1. */
  private gotoAddresses: bigint[] = [];
  private serialDecoder = new TextDecoder();
  /** What is to happen when a command has been answered: events the protocol wants behind the response. */
  private following: { readonly command: string; run(): void } | null = null;

  constructor(
    private readonly transport: Transport,
    readonly host: AdapterHost,
  ) {
    this.sources = new ModelSources(host);
    const disassembly = new Disassembly(this, this.memory, this.guestSources);
    this.listings = new Listings(this, disassembly);
    this.stack = new Stack(this, this.memory, this.sources, this.listings, this.guestSources);
    this.variables = new Variables(this, this.stack, this.memory);
    this.breakpoints = new Breakpoints(this, this.memory, this.variables, this.listings, this.stack);
    this.kernelSearch = new KernelSearch(this, this.breakpoints);
    const evaluate = new Evaluate(this, this.stack, this.variables, this.memory, disassembly);
    const all: Handlers = {
      ...this.lifeHandlers(),
      ...this.breakpoints.handlers,
      ...this.stack.handlers,
      ...this.variables.handlers,
      ...evaluate.handlers,
      ...this.memory.handlers,
      ...disassembly.handlers,
      ...customHandlers(this),
    };
    this.dispatcher = new Dispatcher(transport, new Map(Object.entries(all)), (command) => this.after(command));
  }

  get engine(): EngineClient {
    if (!this.client_) throw new Error(this.phase === "over" ? OVER : NOT_YET);
    return this.client_;
  }

  // ---- messages ----

  message(message: unknown): void {
    this.dispatcher.message(message);
  }

  malformed(problem: string): void {
    this.dispatcher.malformed(problem);
  }

  closed(): void {
    this.end();
  }

  /** What follows an answer. */
  private after(command: string): void {
    if (command === "launch") this.event("initialized");
    if (command === "disconnect") this.transport.close();
    const { following } = this;
    if (following?.command !== command) return;
    this.following = null;
    following.run();
  }

  event(name: string, body?: object): void {
    this.dispatcher.event(name, body);
  }

  customEvent<E extends CustomEvent>(name: E, body: CustomEvents[E]): void {
    this.event(name, body);
  }

  output(text: string, category: "console" | "important" | "stdout" | "stderr" = "console"): void {
    this.event("output", { category, output: text.endsWith("\n") ? text : `${text}\n` });
  }

  invalidate(areas: readonly DebugProtocol.InvalidatedAreas[]): void {
    if (areas.includes("stacks")) this.stack.refresh();
    if (this.client.invalidatedEvents) this.event("invalidated", { areas });
  }

  // ---- the session's life ----

  private lifeHandlers(): Handlers {
    return {
      initialize: (args: DebugProtocol.InitializeRequestArguments) => this.initialize(args),
      launch: (args: Record<string, unknown>) => this.launch(args),
      attach: async () => {
        throw new Error("Hyperstep launches guests; there is nothing to attach to");
      },
      configurationDone: () => this.configurationDone(),
      restart: (args: { arguments?: Record<string, unknown> }) => this.restart(args),
      terminate: async () => {
        await this.finish();
        return undefined;
      },
      disconnect: async () => {
        await this.finish();
        this.phase = "over";
        return undefined;
      },
      cancel: async (args: DebugProtocol.CancelArguments) => {
        this.dispatcher.cancel(args.requestId);
        if (args.progressId !== undefined) this.kernelSearch.cancel(args.progressId);
        return undefined;
      },
      continue: async () => {
        await this.resume({ kind: "continue" });
        return { allThreadsContinued: true };
      },
      next: async (args: DebugProtocol.NextArguments) => {
        const vcpu = vcpuOf(args.threadId);
        return this.step({ kind: "next", vcpu, ...(await this.lineRange(vcpu, args.granularity)) });
      },
      stepIn: (args: DebugProtocol.StepInArguments) => this.stepIn(args),
      stepOut: (args: DebugProtocol.StepOutArguments) => this.step({ kind: "stepOut", vcpu: vcpuOf(args.threadId) }),
      stepInTargets: async (args: DebugProtocol.StepInTargetsArguments) => {
        this.stack.vcpu(args.frameId);
        return { targets: this.stepInTargets() };
      },
      pause: async () => {
        await this.engine.request("pause", {});
        return undefined;
      },
      gotoTargets: (args: DebugProtocol.GotoTargetsArguments) => this.gotoTargets(args),
      goto: (args: DebugProtocol.GotoArguments) => this.goto(args),
      source: (args: DebugProtocol.SourceArguments) => this.source(args),
      loadedSources: async () => ({
        sources: [...(await this.guestSources.loaded()), ...(await this.sources.loaded())],
      }),
    };
  }

  private async initialize(args: DebugProtocol.InitializeRequestArguments): Promise<DebugProtocol.Capabilities> {
    if (this.phase !== "new") throw new Error("this session is initialized already");
    this.phase = "initialized";
    this.client = {
      linesStartAt1: args.linesStartAt1 ?? true,
      columnsStartAt1: args.columnsStartAt1 ?? true,
      invalidatedEvents: args.supportsInvalidatedEvent ?? false,
      memoryEvents: args.supportsMemoryEvent ?? false,
      progress: args.supportsProgressReporting ?? false,
      variableTypes: args.supportsVariableType ?? true,
      memoryReferences: args.supportsMemoryReferences ?? true,
      // VS Code counts `start` from 0 whatever it announces, and then hides the proposals; without it they end at the cursor.
      completionStarts: args.clientID !== "vscode",
    };
    return capabilities;
  }

  private async launch(args: Record<string, unknown>): Promise<undefined> {
    if (this.phase === "new") throw new Error("the first request must be initialize");
    if (this.phase !== "initialized") throw new Error("this session has launched its guest already");
    try {
      await this.start(args);
      this.phase = "launched";
    } catch (error) {
      // A configuration that cannot work ends the session: the client shows the error and takes it down.
      this.engineGone();
      throw error;
    }
    return undefined;
  }

  private async start(args: Record<string, unknown>): Promise<void> {
    const { configuration, warnings } = validateLaunch(args);
    for (const warning of warnings) this.output(warning, "important");
    const progress = new Progress(this, `Loading ${configuration.program}`);
    progress.start("reading the image");
    try {
      const request = await readImages(configuration, this.host);
      progress.update("reading symbols");
      const symbols = await readSymbols(configuration, request.image.bytes, this.host);
      for (const warning of symbols.warnings) this.output(warning, "important");
      this.configuration = configuration;
      this.numbers = configuration.numbers;
      this.fileSymbols = symbols;
      this.lines = symbols.lines;
      this.guestSources.forget();
      progress.update("building the machine");
      await this.startEngine(request);
    } finally {
      progress.end();
    }
  }

  forgetKernel(): void {
    this.symbols = new SymbolTable();
    this.symbols.addAll(this.fileSymbols?.table.everything ?? []);
  }

  get searchesKernel(): boolean {
    return this.kernelSearch.active;
  }

  /** Starts a machine, in the place of the one that is there. */
  private async startEngine(request: LaunchRequest): Promise<void> {
    const old = this.client_;
    this.client_ = null;
    this.running();
    await old?.terminate(PATIENCE);
    // The client may have gone while files were read.
    if (this.phase === "over") throw new Error(OVER);
    this.serialDecoder = new TextDecoder();
    this.ending = null;
    this.gotoAddresses = [];
    this.listings.forget();
    const engine: EngineClient = new EngineClient(
      this.host,
      (event) => {
        if (this.client_ === engine) this.onEngine(event);
      },
      (error) => {
        if (this.client_ === engine) this.engineFailed(error);
      },
    );
    this.client_ = engine;
    await engine.request("launch", request);
    const { fileSymbols } = this;
    this.forgetKernel();
    await engine.request("setSymbols", {
      symbols: engineSymbols(this.symbols.everything),
      kernel: engineSymbols((fileSymbols?.kernel ?? []).flatMap((file) => file.symbols)),
      frames: fileSymbols?.frames ?? [],
    });
    // A program with symbols of its own is no kernel that hides them; any other may be, or may load one.
    const on = this.symbols.all.length === 0;
    await engine.request("searchKernel", { on });
    const loads = this.configuration?.firmware !== undefined;
    this.kernelSearch.begin(on, isLinuxImage(request.image.bytes), loads);
  }

  private async configurationDone(): Promise<undefined> {
    if (this.phase === "running") throw new Error("the configuration is done already");
    if (this.phase !== "launched") throw new Error(this.phase === "over" ? OVER : NOT_YET);
    this.phase = "running";
    await this.begin("configurationDone");
    return undefined;
  }

  /** @param command the request that begins the run: a stop at the entry follows its response */
  private async begin(command: string): Promise<void> {
    const { configuration } = this;
    if (configuration?.noDebug) {
      await this.engine.request("setBreakpoints", { list: [] });
      await this.engine.request("setWatchpoints", { list: [] });
      await this.engine.request("setTraceFilters", { list: [] });
    }
    if (configuration?.stopOnEntry && !configuration.noDebug) {
      const stop: Stop = {
        reason: "entry",
        vcpu: 0,
        hits: [],
        text: "Before the first instruction",
        traceKind: 0,
        modelFrames: [],
      };
      this.following = { command, run: () => this.onStopped(stop) };
      return;
    }
    await this.engine.request("resume", { kind: "start" });
  }

  private async restart(args: { arguments?: Record<string, unknown> }): Promise<undefined> {
    if (this.phase !== "running" || !this.configuration) throw new Error("there is no guest to restart");
    const old = this.client_;
    try {
      if (args.arguments) await this.start(args.arguments);
      else await this.startEngine(await readImages(this.configuration, this.host));
      await this.breakpoints.sendAgain();
      await this.begin("restart");
    } catch (error) {
      // With a configuration that cannot be read the old guest goes on; without a guest the session is over.
      if (this.client_ !== old) {
        this.engineGone();
        this.over();
      }
      throw error;
    }
    return undefined;
  }

  /** Ends the engine and tells the client, once. */
  private async finish(): Promise<void> {
    const engine = this.client_;
    this.client_ = null;
    this.running();
    this.kernelSearch.stopped();
    await engine?.terminate(PATIENCE);
    this.over();
  }

  private over(): void {
    if (this.phase === "over" || this.phase === "new") return;
    this.phase = "over";
    this.event("terminated");
  }

  private end(): void {
    this.engineGone();
    this.phase = "over";
  }

  private engineGone(): void {
    this.client_?.dispose();
    this.client_ = null;
  }

  // ---- running and stopping ----

  private async resume(how: Resume): Promise<void> {
    if (this.ending) {
      this.output("The guest has ended.");
      this.following = { command: how.kind, run: () => void this.finish() };
      return;
    }
    await this.engine.request("resume", how);
  }

  private async step(how: Resume): Promise<undefined> {
    await this.resume(how);
    return undefined;
  }

  /** The source line to stay in, unless instructions are stepped or the code has no source to show. */
  private async lineRange(
    vcpu: number,
    granularity: DebugProtocol.SteppingGranularity | undefined,
  ): Promise<{ range?: AddressRange }> {
    if (granularity === "instruction" || !this.stop || this.stop.traceKind !== 0) return {};
    const { linear } = await this.engine.request("codeContext", { vcpu });
    const range = this.lines.lineAround(linear);
    return range && (await this.guestSources.place(linear)) ? { range } : {};
  }

  private async stepIn(args: DebugProtocol.StepInArguments): Promise<undefined> {
    const vcpu = vcpuOf(args.threadId);
    const target = args.targetId === undefined ? undefined : STEP_TARGETS[args.targetId - 1];
    if (args.targetId !== undefined && !target) throw new Error(`there is no step-in target ${args.targetId}`);
    const range = target ? {} : await this.lineRange(vcpu, args.granularity);
    return this.step({ kind: "stepIn", vcpu, ...range, ...(target ? { stages: target.stages } : {}) });
  }

  private stepInTargets(): DebugProtocol.StepInTarget[] {
    if (this.configuration?.accel === "none") return [];
    return STEP_TARGETS.map(({ label }, i) => ({ id: i + 1, label }));
  }

  private running(): void {
    this.stop = null;
    this.stack.forget();
    this.variables.forget();
  }

  private onEngine(event: EngineEvent): void {
    switch (event.event) {
      case "stopped":
        this.onStopped(event.stop);
        break;
      case "continued":
        this.running();
        this.kernelSearch.running();
        this.customEvent("hyperstep/continued", {});
        break;
      case "serial":
        this.onSerial(event.port, event.bytes);
        break;
      case "log":
        this.output(event.text);
        break;
      case "ended":
        this.kernelSearch.stopped();
        this.onEnded(event.ending);
        break;
      case "searching":
        this.kernelSearch.news(event.instructions);
        break;
      case "kernel":
        this.kernelSearch.found(event.kernel, this.fileSymbols?.kernel ?? []);
        break;
      case "noKernel":
        this.kernelSearch.failed(event.why, event.missing);
        break;
    }
  }

  private onSerial(port: number, bytes: Uint8Array): void {
    // Below 0 is the debug console port, whose output is nobody's keyboard dialogue.
    if (port < 0) {
      this.event("output", { category: "stdout", output: new TextDecoder().decode(bytes) });
      return;
    }
    const serial = this.configuration?.serial ?? "terminal";
    if (serial !== "console") this.customEvent("hyperstep/serial", { port, data: toBase64(bytes) });
    if (serial === "terminal" || port !== 0) return;
    this.event("output", { category: "stdout", output: this.serialDecoder.decode(bytes, { stream: true }) });
  }

  private onStopped(stop: Stop): void {
    this.running();
    this.kernelSearch.stopped();
    this.stop = stop;
    this.memory.vcpu = stop.vcpu;
    const { reason, hitBreakpointIds } = this.breakpoints.reasonOf(stop);
    const headline = headlineOf(stop);
    this.event("stopped", {
      reason,
      threadId: threadOf(stop.vcpu),
      allThreadsStopped: true,
      ...(headline ? { description: headline } : {}),
      ...(stop.description || (reason === "exception" && headline) ? { text: stop.description ?? headline } : {}),
      ...(hitBreakpointIds.length > 0 ? { hitBreakpointIds } : {}),
    });
    this.customEvent("hyperstep/stopped", {
      threadId: threadOf(stop.vcpu),
      stage: STAGE_NAMES.get(stop.traceKind) ?? "",
      text: stop.text,
      detail: Object.fromEntries(
        Object.entries(stop.detail ?? {}).map(([k, v]) => [k, typeof v === "bigint" ? `0x${v.toString(16)}` : v]),
      ),
    });
  }

  private onEnded(ending: Ending): void {
    this.ending = ending;
    switch (ending.kind) {
      case "debug-exit":
        this.output(`The guest wrote ${ending.code} to the debug-exit port.`);
        this.exited((ending.code << 1) | 1);
        return;
      case "power-off":
        this.output("The guest switched the machine off.");
        this.exited(0);
        return;
      case "reset":
        this.output("The guest reset the machine.");
        this.exited(0);
        return;
      case "dead-halt":
        this.postMortem(ending, 0, "Nothing can happen any more: every vCPU is halted and no event is due.");
        return;
      case "triple-fault":
        this.postMortem(ending, ending.vcpu, `Triple fault: ${ending.cause}`);
        return;
      case "internal-error":
        this.postMortem(ending, ending.vcpu, ending.cause);
    }
  }

  private exited(exitCode: number): void {
    this.event("exited", { exitCode });
    void this.finish();
  }

  /** The guest is dead, but can be looked at; going on ends the session. */
  private postMortem(ending: Ending, vcpu: number, text: string): void {
    if (this.configuration?.noDebug) {
      this.output(text, "important");
      this.exited(1);
      return;
    }
    const headline = text.split("\n", 1)[0];
    this.onStopped({
      reason: "ending",
      vcpu,
      hits: [],
      text: headline,
      description: text,
      traceKind: 0,
      modelFrames: [],
      ending,
    });
  }

  private engineFailed(error: Error): void {
    this.output(`The engine stopped working: ${error.message}`, "important");
    this.engineGone();
    this.running();
    this.kernelSearch.stopped();
    this.over();
  }

  private async source(args: DebugProtocol.SourceArguments): Promise<DebugProtocol.SourceResponse["body"]> {
    const reference = args.source?.sourceReference || args.sourceReference;
    const listing = this.listings.content(reference);
    if (listing !== undefined) return { content: listing, mimeType: "text/x-asm" };
    const content = this.sources.content(reference);
    if (content === undefined) throw new Error(`there is no source ${reference}`);
    return { content, mimeType: "text/typescript" };
  }

  private async gotoTargets(
    args: DebugProtocol.GotoTargetsArguments,
  ): Promise<DebugProtocol.GotoTargetsResponse["body"]> {
    const first = this.client.linesStartAt1 ? 0 : 1;
    const found = this.listings.isListing(args.source)
      ? this.listings.addressAt(args.source, args.line + first)
      : this.firstAddress(args.source, args.line + first);
    if (!found) return { targets: [] };
    const id = this.gotoAddresses.push(found.address);
    const label = this.symbols.describe(found.address) || codeAddress(found.address);
    return {
      targets: [{ id, label, line: found.line - first, instructionPointerReference: codeAddress(found.address) }],
    };
  }

  private firstAddress(source: DebugProtocol.Source, line: number): { address: bigint; line: number } | undefined {
    const found = this.lines.addressesOf(source.path ?? "", line);
    return found && { address: found.addresses[0], line: found.line };
  }

  /** Sets RIP, so that the thread goes on at a target. */
  private async goto(args: DebugProtocol.GotoArguments): Promise<undefined> {
    const linear = this.gotoAddresses[args.targetId - 1];
    if (linear === undefined) throw new Error(`there is no goto target ${args.targetId}`);
    const { stop } = this;
    if (!stop) throw new Error("the machine is running: pause it first");
    if (stop.traceKind !== 0) throw new Error("the guest is inside a VM exit: step back to it before jumping");
    const vcpu = vcpuOf(args.threadId);
    const { csBase } = await this.engine.request("codeContext", { vcpu });
    await this.engine.request("writeRegister", { vcpu, name: "rip", value: BigInt.asUintN(64, linear - csBase) });
    this.running();
    this.stop = { ...stop, vcpu, reason: "step", hits: [], text: "", description: undefined };
    this.following = {
      command: "goto",
      run: () => this.event("stopped", { reason: "goto", threadId: args.threadId, allThreadsStopped: true }),
    };
    return undefined;
  }
}
