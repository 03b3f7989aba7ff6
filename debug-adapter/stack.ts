/**
 * Call stacks. Innermost first: when the machine is stopped inside a VM exit, the real frames of the KVM model that handles
 * it, a label, and then the guest's own frames.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import { type Handlers, headlineOf, type SessionContext, threadOf, vcpuOf } from "./context";
import { codeAddress } from "./disassembly";
import { hex } from "./format";
import type { GuestSources } from "./guest-sources";
import type { Listings } from "./listings";
import type { Memory } from "./memory";
import type { MappedFrame, ModelSources } from "./sources";

/** What a frame id stands for, for scopes and evaluation. */
export interface FrameInfo {
  readonly vcpu: number;
  readonly kind: "guest" | "model" | "label";
  /** Linear address of a guest frame's instruction. */
  readonly linear?: bigint;
}

const MAX_FRAMES = 256;
/** Guest frames that get a listing to show. */
const MAX_LISTED = 16;

/** A 64-bit kernel lies in the upper half of the address space, its programs in the lower one. */
const leavesKernel = (from: bigint, to: bigint): boolean => from >= 1n << 63n && to < 1n << 63n;

export class Stack {
  private frames = new Map<number, FrameInfo>();
  private built = new Map<number, Promise<DebugProtocol.StackFrame[]>>();
  private nextId = 1;

  constructor(
    private readonly session: SessionContext,
    private readonly memory: Memory,
    private readonly sources: ModelSources,
    private readonly listings: Listings,
    private readonly guestSources: GuestSources,
  ) {}

  readonly handlers: Handlers = {
    threads: () => this.threads(),
    stackTrace: (args: DebugProtocol.StackTraceArguments) => this.stackTrace(args),
  };

  /** The machine runs, or its state was changed: frames are no longer what they were. */
  forget(): void {
    this.frames = new Map();
    this.built = new Map();
  }

  /** Frames stay, their ids too; what they show is worked out anew. */
  refresh(): void {
    this.built = new Map();
  }

  frame(id: number | undefined): FrameInfo | undefined {
    return id === undefined ? undefined : this.frames.get(id);
  }

  /**
   * The vCPU expressions of a frame are evaluated on; without a frame, the one that stopped.
   * @throws Error when the frame is no longer there
   */
  vcpu(frameId: number | undefined): number {
    if (frameId === undefined) return this.session.stop?.vcpu ?? 0;
    const frame = this.frame(frameId);
    if (!frame) throw new Error("this stack frame is no longer there");
    return frame.vcpu;
  }

  private async threads(): Promise<DebugProtocol.ThreadsResponse["body"]> {
    const { list } = await this.session.engine.request("vcpus", {});
    return {
      threads: list.map(({ index, mode, halted, inGuest, task }) => {
        const running = task && (task.pid === undefined ? task.name : `${task.name} [${task.pid}]`);
        const states = [...(running ? [running] : []), mode, ...(inGuest ? ["in its guest"] : [])];
        return {
          id: threadOf(index),
          name: `vCPU ${index} (${[...states, ...(halted ? ["halted"] : [])].join(", ")})`,
        };
      }),
    };
  }

  private async stackTrace(args: DebugProtocol.StackTraceArguments): Promise<DebugProtocol.StackTraceResponse["body"]> {
    if (!this.session.stop) throw new Error("the machine is running: pause it to see its stack");
    const vcpu = vcpuOf(args.threadId);
    this.memory.vcpu = vcpu;
    let building = this.built.get(vcpu);
    if (!building) {
      building = this.build(vcpu);
      this.built.set(vcpu, building);
    }
    const frames = await building;
    const start = args.startFrame ?? 0;
    const levels = args.levels ? args.levels : frames.length;
    return { stackFrames: frames.slice(start, start + levels), totalFrames: frames.length };
  }

  private async build(vcpu: number): Promise<DebugProtocol.StackFrame[]> {
    const { stop, engine } = this.session;
    const context = await engine.request("codeContext", { vcpu });
    const inModel = stop?.vcpu === vcpu ? await this.sources.map(stop.modelFrames) : [];
    const { frames: guest } = await engine.request("unwind", { vcpu, limit: MAX_FRAMES });
    const frames = inModel.map((frame) => this.modelFrame(vcpu, frame));
    if (stop && stop.vcpu === vcpu && stop.modelFrames.length > 0) frames.push(this.label(vcpu, headlineOf(stop)));
    for (const [i, frame] of guest.entries()) {
      if (frame.interrupted)
        frames.push(this.label(vcpu, leavesKernel(guest[i - 1].linear, frame.linear) ? "user space" : "interrupted"));
      const isReturn = frame.slot !== null && !frame.interrupted;
      const place =
        (await this.guestSources.place(isReturn ? frame.linear - 1n : frame.linear)) ??
        (i < MAX_LISTED ? await this.listings.place(frame.linear, context) : undefined);
      frames.push({
        ...this.guestFrame(vcpu, frame.linear, isReturn, frame.guess),
        ...(place
          ? {
              source: place.source,
              line: this.lineOut(place.line),
              column: this.session.client.columnsStartAt1 ? 1 : 0,
            }
          : {}),
      });
    }
    return frames;
  }

  private lineOut(line: number): number {
    return this.session.client.linesStartAt1 ? line : line - 1;
  }

  private add(info: FrameInfo): number {
    const id = this.nextId++;
    this.frames.set(id, info);
    return id;
  }

  private label(vcpu: number, name: string): DebugProtocol.StackFrame {
    return { id: this.add({ vcpu, kind: "label" }), name, line: 0, column: 0, presentationHint: "label" };
  }

  private modelFrame(vcpu: number, frame: MappedFrame): DebugProtocol.StackFrame {
    return {
      id: this.add({ vcpu, kind: "model" }),
      name: frame.name,
      source: frame.source,
      line: this.lineOut(frame.line),
      column: this.session.client.columnsStartAt1 ? frame.column : frame.column - 1,
      presentationHint: "normal",
    };
  }

  /** @param guess nothing tells for certain that this is a caller: marked with a question mark */
  private guestFrame(vcpu: number, linear: bigint, isReturn: boolean, guess: boolean): DebugProtocol.StackFrame {
    // A call at a function's very end returns behind it: name the frame by the call.
    const named = this.session.symbols.describe(isReturn ? linear - 1n : linear);
    const exact = isReturn ? this.session.symbols.describe(linear) : named;
    return {
      id: this.add({ vcpu, kind: "guest", linear }),
      name: `${guess ? "? " : ""}${exact || named || hex(linear)}`,
      line: 0,
      column: 0,
      instructionPointerReference: codeAddress(linear),
      presentationHint: "normal",
    };
  }
}
