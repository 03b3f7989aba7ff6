/**
 * Call stacks. Innermost first: when the machine is stopped inside a VM exit, the real frames of the KVM model that handles
 * it, a label, and then the guest's own frames, found by frame pointer with help from the stack's return addresses.
 */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { CodeContext } from "../engine/debug/api";
import { type Handlers, type SessionContext, threadOf, vcpuOf } from "./context";
import { codeAddress } from "./disassembly";
import { hex } from "./format";
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

interface GuestFrame {
  readonly linear: bigint;
  /** Found on the stack: the address is the one behind the call. */
  readonly isReturn: boolean;
}

const MAX_FRAMES = 256;
/** Guest frames that get a listing to show. */
const MAX_LISTED = 16;
const MAX_FRAME_SIZE = 1n << 20n;
const PUSH_RBP = 0x55;

export class Stack {
  private frames = new Map<number, FrameInfo>();
  private built = new Map<number, Promise<DebugProtocol.StackFrame[]>>();
  private nextId = 1;

  constructor(
    private readonly session: SessionContext,
    private readonly memory: Memory,
    private readonly sources: ModelSources,
    private readonly listings: Listings,
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

  /** The vCPU expressions of a frame are evaluated on. */
  vcpu(frameId: number | undefined): number {
    return this.frame(frameId)?.vcpu ?? this.session.stop?.vcpu ?? 0;
  }

  private async threads(): Promise<DebugProtocol.ThreadsResponse["body"]> {
    const { list } = await this.session.engine.request("vcpus", {});
    return {
      threads: list.map(({ index, mode, halted, inGuest }) => ({
        id: threadOf(index),
        name: `vCPU ${index} (${[mode, ...(inGuest ? ["in its guest"] : []), ...(halted ? ["halted"] : [])].join(", ")})`,
      })),
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
    const guest = await this.unwind(vcpu, context);
    const frames = inModel.map((frame) => this.modelFrame(vcpu, frame));
    if (stop && stop.vcpu === vcpu && stop.traceKind !== 0)
      frames.push({
        id: this.add({ vcpu, kind: "label" }),
        name: stop.text,
        line: 0,
        column: 0,
        presentationHint: "label",
      });
    for (const [i, frame] of guest.entries()) {
      const place = i < MAX_LISTED ? await this.listings.place(frame.linear, context) : undefined;
      frames.push({
        ...this.guestFrame(vcpu, frame),
        ...(place ? { source: place.source, line: this.lineOut(place.line) } : {}),
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

  private guestFrame(vcpu: number, { linear, isReturn }: GuestFrame): DebugProtocol.StackFrame {
    // A call at a function's very end returns behind it: name the frame by the call.
    const named = this.session.symbols.describe(isReturn ? linear - 1n : linear);
    const exact = isReturn ? this.session.symbols.describe(linear) : named;
    return {
      id: this.add({ vcpu, kind: "guest", linear }),
      name: exact || named || hex(linear),
      line: 0,
      column: 0,
      instructionPointerReference: codeAddress(linear),
      presentationHint: "normal",
    };
  }

  /** Guest frames by the chain of frame pointers; the first step also knows functions that have not made their frame yet. */
  private async unwind(vcpu: number, context: CodeContext): Promise<GuestFrame[]> {
    const frames: GuestFrame[] = [{ linear: context.linear, isReturn: false }];
    const size = context.bits / 8;
    const word = (address: bigint): Promise<bigint | undefined> =>
      this.memory.integer({ space: "gva", address }, size, vcpu);
    const codeOf = (offset: bigint): bigint => (context.bits === 64 ? offset : context.csBase + offset);
    const early = await this.frameless(vcpu, context, size);
    if (early !== undefined) {
      const back = await word(early);
      if (back !== undefined && back !== 0n && (await this.isCode(vcpu, codeOf(back))))
        frames.push({ linear: codeOf(back), isReturn: true });
    }
    let frame = context.frame;
    let floor = context.stack;
    while (frames.length < MAX_FRAMES) {
      if (frame < floor || frame - floor > MAX_FRAME_SIZE || frame % BigInt(size === 8 ? 8 : 2) !== 0n) break;
      const [next, back] = [await word(frame), await word(frame + BigInt(size))];
      if (next === undefined || back === undefined || back === 0n || !(await this.isCode(vcpu, codeOf(back)))) break;
      frames.push({ linear: codeOf(back), isReturn: true });
      floor = frame + 1n;
      frame = context.ssBase + next;
    }
    return frames;
  }

  /** Stack slot of the return address while the function at RIP has not pushed its frame pointer yet, or is leaving. */
  private async frameless(vcpu: number, context: CodeContext, size: number): Promise<bigint | undefined> {
    const { linear, stack } = context;
    const code = await this.memory.read({ space: "gva", address: linear }, 4, vcpu);
    if (code.length === 0) return undefined;
    const here = this.session.symbols.at(linear);
    const atStart = here?.offset === 0n && here.symbol.kind === "function";
    const endbr = code[0] === 0xf3 && code[1] === 0x0f && code[2] === 0x1e;
    if (code[0] === PUSH_RBP || endbr || atStart || code[0] === 0xc3 || code[0] === 0xc2) return stack;
    const before =
      linear > 0n ? await this.memory.read({ space: "gva", address: linear - 1n }, 1, vcpu) : new Uint8Array(0);
    const moves = (code[0] === 0x48 && code[1] === 0x89 && code[2] === 0xe5) || (code[0] === 0x89 && code[1] === 0xe5);
    return before[0] === PUSH_RBP && moves ? stack + BigInt(size) : undefined;
  }

  /** A plausible return address: mapped, and behind something that can be a call. */
  private async isCode(vcpu: number, linear: bigint): Promise<boolean> {
    if (linear < 8n) return false;
    const bytes = await this.memory.read({ space: "gva", address: linear - 8n }, 9, vcpu);
    if (bytes.length < 9) return false;
    if (bytes[3] === 0xe8 || bytes[5] === 0xe8 || bytes[3] === 0x9a || bytes[1] === 0x9a) return true;
    for (let length = 2; length <= 8; length++) {
      const opcode = bytes[8 - length];
      const reg = (bytes[9 - length] >> 3) & 7;
      if (opcode === 0xff && (reg === 2 || reg === 3)) return true;
    }
    return false;
  }
}
