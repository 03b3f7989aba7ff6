/** readMemory and writeMemory on gva:, gpa: and hpa: references; a plain number is a linear (gva) address. */
import type { DebugProtocol } from "@vscode/debugprotocol";
import { type Handlers, type SessionContext, vcpuOf } from "./context";
import { fromBase64, hex, type MemoryReference, parseReference, printReference, toBase64 } from "./format";

const TOP = 1n << 64n;
const PAGE = 4096n;
const MAX_COUNT = 16 * 1024 * 1024;
/** How many pages behind the last readable byte are probed for where memory goes on. */
const MAX_PROBES = 64;

export class Memory {
  /** vCPU whose paging linear references go through: that of the frame last looked at. */
  vcpu = 0;

  constructor(private readonly session: SessionContext) {}

  readonly handlers: Handlers = {
    readMemory: (args: DebugProtocol.ReadMemoryArguments) => this.readMemory(args),
    writeMemory: (args: DebugProtocol.WriteMemoryArguments) => this.writeMemory(args),
  };

  /** A reference as the client gives it: an address with or without a space, or any expression that has one. */
  async resolve(text: string, vcpu = this.vcpu): Promise<MemoryReference> {
    const plain = parseReference(text);
    if (plain) return plain;
    const result = await this.session.engine.request("evaluate", { vcpu, expression: text, readOnly: true });
    if (typeof result.value === "string") throw new Error(`"${text}" is no address`);
    if (result.memory) return result.memory;
    return { space: "gva", address: BigInt.asUintN(64, result.value) };
  }

  /** Up to `length` bytes; shorter where memory ends. */
  async read({ space, address }: MemoryReference, length: number, vcpu = this.vcpu): Promise<Uint8Array> {
    const inside = address + BigInt(length) > TOP ? Number(TOP - address) : length;
    if (inside <= 0) return new Uint8Array(0);
    return (await this.session.engine.request("readMemory", { space, vcpu, address, length: inside })).bytes;
  }

  private async readMemory(args: DebugProtocol.ReadMemoryArguments): Promise<DebugProtocol.ReadMemoryResponse["body"]> {
    const base = await this.resolve(args.memoryReference);
    const address = base.address + BigInt(args.offset ?? 0);
    const count = Math.min(args.count, MAX_COUNT);
    if (address < 0n || address >= TOP) {
      const below = address < 0n ? Number(-address) : count;
      return { address: hex(address < 0n ? 0n : address), data: "", unreadableBytes: Math.min(count, below) };
    }
    const at: MemoryReference = { space: base.space, address };
    const bytes = await this.read(at, count);
    const body = { address: hex(address), data: toBase64(bytes) };
    if (bytes.length >= count) return body;
    return { ...body, unreadableBytes: await this.gap(at, bytes.length, count) };
  }

  /** Bytes from `done` on that cannot be read, up to where memory goes on or `count` is reached. */
  private async gap(at: MemoryReference, done: number, count: number): Promise<number> {
    let next = ((at.address + BigInt(done)) / PAGE + 1n) * PAGE;
    const end = at.address + BigInt(count);
    for (let probes = 0; next < end && next < TOP && probes < MAX_PROBES; probes++, next += PAGE) {
      const there = await this.read({ space: at.space, address: next }, 1);
      if (there.length > 0) return Number(next - at.address) - done;
    }
    return count - done;
  }

  private async writeMemory(
    args: DebugProtocol.WriteMemoryArguments,
  ): Promise<DebugProtocol.WriteMemoryResponse["body"]> {
    const base = await this.resolve(args.memoryReference);
    const offset = args.offset ?? 0;
    const address = base.address + BigInt(offset);
    const bytes = fromBase64(args.data);
    const { space } = base;
    if (address < 0n || address >= TOP)
      throw new Error(`${printReference(base)} + ${offset} is outside the address space`);
    if (!args.allowPartial) {
      const there = await this.read({ space, address }, bytes.length);
      if (there.length < bytes.length)
        throw new Error(
          `only ${there.length} of ${bytes.length} bytes at ${printReference({ space, address })} are mapped`,
        );
    }
    const { engine } = this.session;
    const { written } = await engine.request("writeMemory", { space, vcpu: this.vcpu, address, bytes });
    if (written < bytes.length && !args.allowPartial)
      throw new Error(
        `only ${written} of ${bytes.length} bytes could be written at ${printReference({ space, address })}`,
      );
    if (this.session.client.memoryEvents && written > 0)
      this.session.event("memory", { memoryReference: args.memoryReference, offset, count: written });
    this.session.invalidate(["variables", "stacks"]);
    return { offset: 0, bytesWritten: written };
  }

  /** An integer in memory, or undefined where nothing is mapped. */
  async integer(reference: MemoryReference, size: number, vcpu: number): Promise<bigint | undefined> {
    const bytes = await this.read(reference, size, vcpu);
    if (bytes.length < size) return undefined;
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
    return value;
  }

  useThread(threadId: number): void {
    this.vcpu = vcpuOf(threadId);
  }
}
