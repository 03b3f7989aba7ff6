/**
 * Serves the engine API around one machine. The host is the top of the engine's stack: it runs the machine in slices, reads
 * commands between them, and is the machine's Tracer, so that a stop is a call of `hit` that does not return until a
 * command says so. While it waits there the JavaScript stack is the model's real one.
 */
import { VMCS_FIELDS } from "../cpu/vmx/fields";
import type { Machine, MachineEnvironment } from "../machine/machine";
import { TraceKind, type TracePoint, type Tracer, Unwind } from "../trace";
import type {
  EngineEvent,
  EngineMethod,
  EngineRequests,
  EvaluateResult,
  FromEngine,
  LaunchRequest,
  ModelFrame,
  Resume,
  Stop,
  ToEngine,
  VmcsFieldValue,
} from "./api";
import { codeContext } from "./code";
import { assigns, evaluate } from "./evaluate";
import { parseExpression } from "./expression";
import { FrameTables } from "./frames/cfi";
import { type LinuxKernel, readKernel, relocate } from "./linux/kernel";
import { OrcTable } from "./linux/orc";
import { TaskReader } from "./linux/tasks";
import { captureModelFrames } from "./model-frames";
import { decodeVmcsField, fieldWidthBits, MachineScope } from "./names";
import type { CommandPump } from "./pump";
import { EXIT_STAGES } from "./stepping";
import { type Decision, Stops } from "./stops";
import { type EngineSymbol, SymbolIndex } from "./symbols";
import { unwind } from "./unwind";
import type { UnwindTables } from "./unwind-tables";

/** Instructions between two looks at the commands: a few milliseconds of real time. */
const SLICE = 200_000;
/** Exceptions Linux serves behind a program's back: #NM and #PF. */
const TRANSPARENT: ReadonlySet<number> = new Set([7, 14]);
const KERNEL_HALF = 1n << 63n;
/** Slices between two words about a search for a kernel. */
const SEARCH_NEWS = 50;
const MAX_FRAMES = 1000;
const MAX_READ = 1 << 24;
/** Bytes of serial output gathered before they are sent within a slice. */
const MAX_SERIAL = 1 << 16;

export type CreateMachine = (request: LaunchRequest, environment: MachineEnvironment) => Machine;

type Handlers = { [M in EngineMethod]: (request: EngineRequests[M]["request"]) => EngineRequests[M]["response"] };

/** Between stops, the machine runs; "stopped" and "ended" answer questions; "closed" is the end of the worker. */
type Phase = "empty" | "stopped" | "running" | "ended" | "closed";

export class EngineHost {
  private phase: Phase = "empty";
  private machine: Machine | null = null;
  private stops: Stops | null = null;
  private symbols = new SymbolIndex([]);
  private fileSymbols: readonly EngineSymbol[] = [];
  /** Symbols of a kernel's file, as linked. */
  private linkedSymbols: readonly EngineSymbol[] = [];
  private frames = new FrameTables([]);
  private kernel: LinuxKernel | null = null;
  /** Found when a stack is first asked for. */
  private orc: OrcTable | null = null;
  private taskReader: TaskReader | null = null;
  private slices = 0;
  private pauseAsked = false;
  /** Where the machine is stopped: the trace point, or null between instructions. */
  private point: TracePoint | null = null;
  private stoppedVcpu = 0;
  /** `hit` is deciding or waiting: whatever the debugger itself touches is no trace point. */
  private busy = false;
  private readonly tracer: Tracer = { armed: 0, hit: (point) => this.hit(point) };
  private readonly handlers: Handlers;
  private serial: { port: number; parts: Uint8Array[]; length: number } = { port: 0, parts: [], length: 0 };

  constructor(
    private readonly post: (message: FromEngine) => void,
    private readonly pump: CommandPump,
    private readonly create: CreateMachine,
  ) {
    this.handlers = this.makeHandlers();
  }

  get closed(): boolean {
    return this.phase === "closed";
  }
  get running(): boolean {
    return this.phase === "running";
  }

  /** Serves until it is told to terminate. Needs a blocking pump. */
  serve(): void {
    while (!this.closed) {
      if (this.running) this.slice();
      else this.command(this.pump.wait());
    }
  }

  /** The machine runs, but only a command or typed input can make something happen. */
  get idle(): boolean {
    return this.running && this.machine?.waitingForInput === true;
  }

  /** One slice of the running machine, with the commands that have arrived. */
  slice(): void {
    const { machine } = this;
    if (!machine || !this.running) return;
    try {
      if (this.idle && !this.pauseAsked && this.pump.blocking) this.command(this.pump.wait());
      if (this.closed) return;
      this.readCommands();
      if (!this.running) return;
      machine.run(SLICE);
      this.flushSerial();
      this.stops?.sliceDone();
      this.watchForRestart(machine);
      if (++this.slices % SEARCH_NEWS === 0 && this.stops?.searchesKernel)
        this.post({ event: "searching", instructions: machine.stats().instructions });
      this.readCommands();
    } catch (thrown) {
      this.thrown(thrown);
      return;
    }
    if (machine.ending && this.running) this.end(machine.ending);
  }

  /** Executes one command and answers it. */
  command(message: ToEngine): void {
    const answer = this.answer(message);
    this.post(answer);
  }

  private answer(message: ToEngine): FromEngine {
    const { id, method } = message;
    try {
      const handler = (Object.hasOwn(this.handlers, method) ? this.handlers[method] : undefined) as
        | ((request: unknown) => unknown)
        | undefined;
      if (!handler) throw new Error(`the engine knows no request "${String(method)}"`);
      return { id, response: handler(message.request) };
    } catch (error) {
      if (error instanceof Unwind) throw error;
      return { id, error: error instanceof Error ? error.message : String(error) };
    }
  }

  private event(event: EngineEvent): void {
    this.flushSerial();
    this.post(event);
  }

  /** Serial output is gathered, so that a talkative guest does not bury the adapter under messages. */
  private onSerial(port: number, bytes: Uint8Array): void {
    if (port !== this.serial.port) this.flushSerial();
    this.serial.port = port;
    this.serial.parts.push(bytes);
    this.serial.length += bytes.length;
    if (this.serial.length >= MAX_SERIAL) this.flushSerial();
  }

  private flushSerial(): void {
    const { port, parts, length } = this.serial;
    if (length === 0) return;
    const bytes = new Uint8Array(length);
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    this.serial = { port, parts: [], length: 0 };
    this.post({ event: "serial", port, bytes });
  }

  private readCommands(): void {
    for (let message = this.pump.poll(); message; message = this.pump.poll()) {
      this.command(message);
      if (this.closed) throw new Unwind("terminated");
    }
    if (this.pauseAsked && this.running) {
      const vcpu = this.machine?.vcpus.find((v) => !v.halted)?.index ?? 0;
      this.stopHere({ reason: "pause", vcpu, hits: [], text: "", traceKind: 0 }, null, []);
      this.wait();
    }
  }

  /** The machine's way to the debugger. */
  private hit(point: TracePoint): void {
    if (this.busy || !this.stops || !this.running) return;
    if (point.kind === TraceKind.Poll) {
      this.readCommands();
      return;
    }
    this.busy = true;
    let decision: Decision | null;
    try {
      decision = this.stops.decide(point);
    } finally {
      this.busy = false;
    }
    if (!decision) return;
    // On the bare processor only a device's own code is a model at work; everything else is the guest's story.
    const told = this.machine?.config.accel === "none" ? TraceKind.Device : EXIT_STAGES;
    const frames = point.kind & told ? captureModelFrames(this.tracer.hit) : [];
    this.stopHere(decision, point, frames);
    this.wait();
  }

  private stopHere(decision: Decision, point: TracePoint | null, modelFrames: readonly ModelFrame[]): void {
    this.pauseAsked = false;
    this.stops?.interrupt();
    this.point = point;
    this.stoppedVcpu = decision.vcpu;
    this.phase = "stopped";
    const stop: Stop = { ...decision, modelFrames };
    this.event({ event: "stopped", stop });
  }

  /** Answers commands until the machine may go on. Inside a trace point this is where the engine's thread sleeps. */
  private wait(): void {
    if (!this.pump.blocking) return;
    while (this.phase === "stopped") this.command(this.pump.wait());
    if (this.closed) throw new Unwind("terminated");
  }

  private unwindTables(vcpu: number): UnwindTables {
    this.orc ??= OrcTable.find(this.live, vcpu, this.symbols) ?? null;
    return { frames: this.frames, ...(this.orc ? { orc: this.orc } : {}) };
  }

  private indexSymbols(): void {
    const { kernel } = this;
    this.orc = null;
    this.taskReader = null;
    const moved = kernel ? relocate(this.linkedSymbols, kernel.text) : [];
    this.symbols = new SymbolIndex([...this.fileSymbols, ...moved, ...(kernel?.symbols ?? [])]);
  }

  /**
   * A kernel never runs below its half of the address space; a boot loader, firmware and the kernel's own decompressor do.
   * The machine has been reset then, and another kernel is on its way, perhaps to another place.
   */
  private watchForRestart(machine: Machine): void {
    const { stops } = this;
    const boot = machine.vcpus[0];
    if (!this.kernel || !stops || stops.searchesKernel || boot.registers.read("cpl") !== 0n) return;
    if (codeContext(boot).linear >= KERNEL_HALF) return;
    stops.searchKernel(true);
  }

  /** A vCPU stands where Linux kernels run: reads its symbols, and tells what has come of it. */
  private kernelReached(vcpu: number, linear: bigint): void {
    const { stops } = this;
    if (!stops) return;
    const kernel = readKernel(this.live, vcpu, linear);
    const known = kernel !== undefined && (kernel.symbols.length > 0 || this.linkedSymbols.length > 0);
    if (!kernel || !known) {
      const why = "the code at the kernel's addresses has no kallsyms table (CONFIG_KALLSYMS)";
      this.event({ event: "noKernel", why, missing: stops.searchKernel(false) });
      return;
    }
    this.kernel = kernel;
    this.indexSymbols();
    const placed = stops.symbolsChanged();
    const missing = stops.searchKernel(false);
    const { banner, text, physical, slide, symbols } = kernel;
    this.event({
      event: "kernel",
      kernel: {
        banner,
        text,
        physical,
        slide,
        names: symbols.map((s) => s.name).join("\n"),
        addresses: BigUint64Array.from(symbols, (s) => s.address),
        sizes: BigUint64Array.from(symbols, (s) => s.size),
        kinds: symbols.map((s) => (s.kind ?? "object")[0]).join(""),
        placed,
        missing,
      },
    });
  }

  private end(ending: NonNullable<Machine["ending"]>): void {
    this.stops?.interrupt();
    this.point = null;
    this.stoppedVcpu = "vcpu" in ending ? ending.vcpu : 0;
    this.phase = "ended";
    this.event({ event: "ended", ending });
  }

  private thrown(thrown: unknown): void {
    if (thrown instanceof Unwind) {
      if (!this.closed) this.phase = "ended";
      return;
    }
    const text = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    this.event({ event: "log", text: `The engine failed. This is a fault of Hyperstep, not of the guest.\n${text}` });
    this.end({
      kind: "internal-error",
      vcpu: this.stoppedVcpu,
      cause: thrown instanceof Error ? thrown.message : String(thrown),
    });
  }

  private get live(): Machine {
    if (!this.machine) throw new Error("no machine has been launched");
    return this.machine;
  }

  private vcpu(index: number): Machine["vcpus"][number] {
    const view = this.live.vcpus[index];
    if (!view) throw new Error(`there is no vCPU ${index}`);
    return view;
  }

  private scope(vcpu: number, point: TracePoint | null): MachineScope {
    this.vcpu(vcpu);
    return new MachineScope(this.live, vcpu, this.symbols, point?.vcpu === vcpu ? point : null);
  }

  private launch(request: EngineRequests["launch"]["request"]): EngineRequests["launch"]["response"] {
    if (this.machine) throw new Error("this engine has a machine already");
    const machine = this.create(request, {
      trace: this.tracer,
      serialOutput: (port, bytes) => this.onSerial(port, bytes),
    });
    this.machine = machine;
    const host = this;
    this.stops = new Stops({
      machine,
      get symbols() {
        return host.symbols;
      },
      unwind: (vcpu, limit) => unwind(machine, vcpu, this.symbols, this.unwindTables(vcpu), limit),
      isTransparent: (vector) => this.kernel !== null && TRANSPARENT.has(vector),
      log: (text) => this.event({ event: "log", text }),
      scope: (vcpu, point) => this.scope(vcpu, point),
      armedChanged: () => {
        this.tracer.armed = this.stops?.armed ?? 0;
      },
      kernelReached: (vcpu, linear) => this.kernelReached(vcpu, linear),
    });
    this.tracer.armed = this.stops.armed;
    this.stops.searchKernel(true);
    this.phase = "stopped";
    return { vcpus: machine.vcpus.length, entry: codeContext(machine.vcpus[0]).linear };
  }

  private resume(request: Resume): Record<string, never> {
    if (this.phase === "ended") throw new Error("the guest has ended: restart the session to run it again");
    if (this.phase !== "stopped" || !this.stops) throw new Error("the machine is not stopped");
    if ("vcpu" in request) this.vcpu(request.vcpu);
    this.stops.resume(request, this.point, this.stoppedVcpu);
    this.point = null;
    this.phase = "running";
    this.event({ event: "continued" });
    return {};
  }

  private evaluate(request: EngineRequests["evaluate"]["request"]): EvaluateResult {
    const expression = parseExpression(request.expression);
    if (request.readOnly && assigns(expression))
      throw new Error("this place does not change anything: use the console");
    const result = evaluate(expression, this.scope(request.vcpu, this.point));
    if (typeof result === "string") return { value: result, width: 0, signed: false };
    return {
      value: result.value,
      width: result.width,
      signed: result.signed,
      ...(result.decoded ? { decoded: result.decoded } : {}),
      ...(result.memory ? { memory: result.memory } : {}),
      ...(result.place ? { assignable: result.place.name } : {}),
      ...(result.help ? { help: result.help } : {}),
    };
  }

  private assign(vcpu: number, name: string, value: bigint): { value: bigint } {
    const result = this.evaluate({ vcpu, expression: `${name} = 0x${BigInt.asUintN(64, value).toString(16)}` });
    return { value: result.value as bigint };
  }

  private readVmcs(vcpu: number): EngineRequests["readVmcs"]["response"] {
    const { vmcs } = this.vcpu(vcpu);
    if (!vmcs) return null;
    const fields = VMCS_FIELDS.map((field): VmcsFieldValue => {
      const value = vmcs.read(field.encoding);
      return {
        name: field.name,
        encoding: field.encoding,
        group: field.group,
        subgroup: field.subgroup,
        readOnly: field.access === "ro",
        ...(field.bits ? { bits: field.bits } : {}),
        value,
        decoded: decodeVmcsField(field, vmcs),
        help: field.help,
        section: field.section,
        width: fieldWidthBits(field),
      };
    });
    return { pointer: BigInt(vmcs.pointer), fields };
  }

  private makeHandlers(): Handlers {
    return {
      launch: (request) => this.launch(request),
      resume: (request) => this.resume(request),
      pause: () => {
        if (this.running) this.pauseAsked = true;
        return {};
      },
      terminate: () => {
        this.phase = "closed";
        return {};
      },
      setBreakpoints: ({ list }) => this.points.setBreakpoints(list),
      setWatchpoints: ({ list }) => ({ refused: this.points.setWatchpoints(list) }),
      setTraceFilters: ({ list }) => ({ refused: this.points.setFilters(list) }),
      readRegisters: ({ vcpu }) => {
        const { registers } = this.vcpu(vcpu);
        return { fields: registers.rows.map((row) => ({ name: row.name, value: registers.read(row.name), row })) };
      },
      writeRegister: ({ vcpu, name, value }) => this.assign(vcpu, name, value),
      readVmcs: ({ vcpu }) => this.readVmcs(vcpu),
      writeVmcs: ({ vcpu, name, value }) => this.assign(vcpu, `vmcs.${name}`, value),
      readKvmRun: ({ vcpu }) => {
        const run = this.vcpu(vcpu).kvmRun;
        return run ? { fields: run } : null;
      },
      readMemory: ({ space, vcpu, address, length }) => {
        this.vcpu(vcpu);
        return { bytes: this.live.readMemory(space, vcpu, address, Math.min(length, MAX_READ)) };
      },
      writeMemory: ({ space, vcpu, address, bytes }) => {
        this.vcpu(vcpu);
        return { written: this.live.writeMemory(space, vcpu, address, bytes) };
      },
      translate: ({ vcpu, linear }) => ({ physical: this.live.translate(this.vcpu(vcpu).index, linear) ?? null }),
      evaluate: (request) => this.evaluate(request),
      completions: ({ vcpu, text }) => ({ items: this.scope(vcpu, this.point).completions(text) }),
      codeContext: ({ vcpu }) => codeContext(this.vcpu(vcpu)),
      unwind: ({ vcpu, limit }) => ({
        frames: unwind(
          this.live,
          this.vcpu(vcpu).index,
          this.symbols,
          this.unwindTables(vcpu),
          Math.min(limit, MAX_FRAMES),
        ).map(({ registers, ...frame }) => frame),
      }),
      vcpus: () => ({
        list: this.live.vcpus.map((view) => {
          const { linear, mode } = codeContext(view);
          const { index, halted, inGuest, retired } = view;
          const task = this.tasks.current(index);
          return { index, linear, mode, halted, inGuest, retired, ...(task ? { task } : {}) };
        }),
      }),
      setSymbols: ({ symbols, kernel = [], frames = [] }) => {
        this.fileSymbols = symbols;
        this.linkedSymbols = kernel;
        this.frames = new FrameTables(frames);
        this.indexSymbols();
        return {};
      },
      searchKernel: ({ on }) => ({ missing: this.points.searchKernel(on) }),
      serialInput: ({ bytes }) => {
        this.live.serialInput(bytes);
        return {};
      },
      stats: () => {
        const { instructions, exits } = this.live.stats();
        return { instructions, exits };
      },
      hash: () => ({ hash: this.live.hash() }),
    };
  }

  private get tasks(): TaskReader {
    this.taskReader ??= new TaskReader(this.live, this.symbols);
    return this.taskReader;
  }

  private get points(): Stops {
    if (!this.stops) throw new Error("no machine has been launched");
    return this.stops;
  }
}
