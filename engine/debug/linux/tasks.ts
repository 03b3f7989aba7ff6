/**
 * What Linux runs on a vCPU: name and number of the current task. Where they lie in struct task_struct differs by version
 * and configuration, and is found in init_task, whose contents are known: it is called "swapper", it is its own parent
 * and group leader, and its first child is process 1. What does not fit is not shown.
 */
import type { Machine } from "../../machine/machine";
import { readInteger } from "../code";
import type { SymbolIndex } from "../symbols";

export interface Task {
  /** task_struct.comm. */
  readonly name: string;
  /** task_struct.pid (a thread's own); undefined as long as it is not certain where it lies. */
  readonly pid?: number;
}

const COMM_LENGTH = 16;
const MAX_TASK_STRUCT = 0x8000;
const KERNEL_HALF = 0xffff_8000_0000_0000n;
const SWAPPER = /^swapper(\/0)?$/;
const decoder = new TextDecoder();

function nameIn(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  if (end <= 0) return undefined;
  const name = decoder.decode(bytes.subarray(0, end));
  return /^[\x20-\x7e]+$/.test(name) ? name : undefined;
}

export class TaskReader {
  private comm: number | null = null;
  private pid: number | null = null;

  constructor(
    private readonly machine: Machine,
    private readonly symbols: SymbolIndex,
  ) {}

  /** The task that runs on a vCPU, in the kernel or in its program; undefined when that is not certain. */
  current(vcpu: number): Task | undefined {
    const base = this.perCpuBase(vcpu);
    // struct pcpu_hot of 6.2 to 6.14 begins with the task.
    const variable = this.symbols.find("current_task") ?? this.symbols.find("pcpu_hot");
    if (base === undefined || !variable) return undefined;
    const task = this.word(vcpu, base + variable.address);
    if (task === undefined || task < KERNEL_HALF) return undefined;
    this.findOffsets(vcpu);
    if (this.comm === null) return undefined;
    const at = BigInt.asUintN(64, task + BigInt(this.comm));
    const name = nameIn(this.machine.readMemory("gva", vcpu, at, COMM_LENGTH));
    if (name === undefined) return undefined;
    const pid = this.pid === null ? undefined : readInteger(this.machine, vcpu, task + BigInt(this.pid), 4);
    return pid === undefined ? { name } : { name, pid: Number(pid) };
  }

  private word(vcpu: number, address: bigint): bigint | undefined {
    return readInteger(this.machine, vcpu, BigInt.asUintN(64, address), 8);
  }

  /** GS.base of the kernel: whichever of the two bases is that of a Linux CPU. */
  private perCpuBase(vcpu: number): bigint | undefined {
    const table = this.symbols.find("__per_cpu_offset")?.address;
    if (table === undefined) return undefined;
    const { registers } = this.machine.vcpus[vcpu];
    const candidates = ["gs.base", "ia32_kernel_gs_base"].map((name) => registers.read(name));
    for (let cpu = 0; cpu < this.machine.vcpus.length; cpu++) {
      const base = this.word(vcpu, table + 8n * BigInt(cpu));
      if (base !== undefined && base !== 0n && candidates.includes(base)) return base;
    }
    return undefined;
  }

  private findOffsets(vcpu: number): void {
    if (this.comm !== null && this.pid !== null) return;
    const init = this.symbols.find("init_task");
    if (!init) return;
    const length = Math.min(Number(init.size), MAX_TASK_STRUCT);
    const bytes = this.machine.readMemory("gva", vcpu, init.address, length);
    this.comm ??= commOffset(bytes);
    this.pid ??= this.pidOffset(vcpu, init.address, bytes);
  }

  /**
   * pid and tgid lie before real_parent, with the stack protector's canary between them when the kernel has one. Behind
   * parent come the lists of children and siblings and the group leader.
   */
  private pidOffset(vcpu: number, init: bigint, bytes: Uint8Array): number | null {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 16; at + 56 <= bytes.length; at += 8) {
      const pointers = [0, 8, 48].map((more) => view.getBigUint64(at + more, true));
      if (!pointers.every((pointer) => pointer === init)) continue;
      const children = init + BigInt(at) + 16n;
      const first = view.getBigUint64(at + 16, true);
      if (first === children || first < KERNEL_HALF) return null;
      const child = first - BigInt(at) - 32n;
      const found = [at - 8, at - 16].filter((offset) => {
        const pids = readInteger(this.machine, vcpu, child + BigInt(offset), 8);
        return pids === 0x1_0000_0001n && view.getBigUint64(offset, true) === 0n;
      });
      return found.length === 1 ? found[0] : null;
    }
    return null;
  }
}

function commOffset(bytes: Uint8Array): number | null {
  const found: number[] = [];
  for (let at = bytes.indexOf(0x73); at >= 0; at = bytes.indexOf(0x73, at + 1)) {
    const name = nameIn(bytes.subarray(at, at + COMM_LENGTH));
    if (name !== undefined && SWAPPER.test(name)) found.push(at);
  }
  return found.length === 1 ? found[0] : null;
}
