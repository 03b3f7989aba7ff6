/**
 * A machine small enough to see through: one flat 64-bit vCPU (or several) that knows a dozen instructions, with the trace
 * points, breakpoints and KVM stages of the real one. For tests of the debugger alone.
 */
import { REGISTER_ROWS, type RegisterFile } from "../../engine/cpu/registers";
import type { MachineConfig } from "../../engine/machine/config";
import type {
  AddressSpace,
  Ending,
  Machine,
  MachineEnvironment,
  MachineSnapshot,
  MachineStats,
  VcpuView,
  VmcsView,
} from "../../engine/machine/machine";
import { TraceKind } from "../../engine/trace";

export const CODE = 0x1000n;
export const HANDLER = 0x3000n;
export const STACK = 0x8000n;
const SIZE = 0x10000;
const IDT = 0x5000n;
const VM_ENTRY_INTR_INFO = 0x4016;

export class FakeVcpu implements VcpuView {
  readonly values = new Map<string, bigint>(REGISTER_ROWS.map((row) => [row.name, 0n]));
  readonly fields = new Map<number, bigint>();
  readonly registers: RegisterFile;
  readonly vmcs: VmcsView | null;
  retired = 0;
  halted = false;
  inGuest = false;
  kvmRun?: Record<string, bigint | number | string>;
  /** The interrupt that arrives once this many instructions have retired. */
  interruptAt = -1;
  stopAt = -1;

  constructor(
    readonly index: number,
    kvm: boolean,
  ) {
    const { values, fields } = this;
    const set = (name: string, value: bigint): unknown => values.set(name, value);
    set("cr0", 0x8000_0011n);
    set("ia32_efer", 0x500n);
    set("cs.attributes", 0xa09bn);
    set("ss.attributes", 0xc093n);
    set("rflags", 0x202n);
    set("rip", CODE);
    set("rsp", STACK);
    set("idtr.base", IDT);
    this.registers = {
      rows: REGISTER_ROWS,
      read: (name) => {
        const value = values.get(name);
        if (value === undefined) throw new RangeError(`no register ${name}`);
        return value;
      },
      write: (name, value) => {
        if (name === "cr0" && (value & 0x8000_0001n) === 0x8000_0000n) throw new RangeError("CR0.PG needs CR0.PE");
        values.set(name, value);
      },
    };
    this.vmcs = kvm
      ? { pointer: 0x7000, read: (e) => fields.get(e) ?? 0n, write: (e, value) => void fields.set(e, value) }
      : null;
    if (kvm) this.kvmRun = { exit_reason: 0n };
  }

  get rip(): bigint {
    return this.values.get("rip") ?? 0n;
  }
  set rip(value: bigint) {
    this.values.set("rip", value);
  }
  get rsp(): bigint {
    return this.values.get("rsp") ?? 0n;
  }
  set rsp(value: bigint) {
    this.values.set("rsp", value);
  }
}

export class FakeMachine implements Machine {
  readonly vcpus: readonly FakeVcpu[];
  readonly memory = new Uint8Array(SIZE);
  ending: Ending | null = null;
  readonly waitingForInput = false;
  breakpoints: readonly { linear: bigint; id: number }[] = [];
  watchpoints: readonly { id: number; address: bigint; length: number }[] = [];
  /** Serves the exit of EPT violations: the next memory access at this address exits once. */
  violationAt: bigint | null = null;
  private exits = 0;
  private typed: number[] = [];

  constructor(
    readonly config: MachineConfig,
    private readonly environment: MachineEnvironment,
  ) {
    this.vcpus = Array.from({ length: config.smp }, (_, i) => new FakeVcpu(i, config.accel !== "none"));
    this.memory.set(config.image.bytes, Number(CODE));
    // Every vector leads to HANDLER: a 64-bit interrupt gate.
    const view = new DataView(this.memory.buffer);
    for (let v = 0; v < 64; v++) {
      const at = Number(IDT) + 16 * v;
      view.setUint16(at, Number(HANDLER & 0xffffn), true);
      view.setUint16(at + 2, 8, true);
      view.setUint16(at + 4, 0x8e00, true);
      view.setUint16(at + 6, Number(HANDLER >> 16n), true);
    }
    this.memory.set([0x90, 0x90, 0xcf], Number(HANDLER));
  }

  run(instructions: number): void {
    for (let i = 0; i < instructions && !this.ending; i++) for (const vcpu of this.vcpus) this.boundary(vcpu);
  }

  private point(
    vcpu: FakeVcpu,
    kind: number,
    text: string,
    detail: Record<string, bigint | number | string | boolean>,
  ): void {
    const { trace } = this.environment;
    if (trace.armed & kind) trace.hit({ kind: kind as TraceKind, vcpu: vcpu.index, text, detail });
  }

  private boundary(vcpu: FakeVcpu): void {
    if (this.ending) return;
    if (vcpu.interruptAt >= 0 && vcpu.retired >= vcpu.interruptAt) {
      vcpu.interruptAt = -1;
      vcpu.halted = false;
      this.deliver(vcpu, 32, "interrupt", vcpu.rip);
    }
    if (vcpu.halted) return;
    const at = this.breakpoints.find((b) => b.linear === vcpu.rip);
    if (at)
      this.point(vcpu, TraceKind.Instruction, `breakpoint ${at.id}`, {
        cause: "breakpoint",
        id: at.id,
        linear: at.linear,
      });
    if (vcpu.stopAt >= 0 && vcpu.retired >= vcpu.stopAt) {
      vcpu.stopAt = -1;
      this.point(vcpu, TraceKind.Instruction, "step", { cause: "step" });
    }
    this.execute(vcpu);
  }

  private push(vcpu: FakeVcpu, value: bigint): void {
    vcpu.rsp -= 8n;
    this.store(vcpu.rsp, value);
  }

  private pop(vcpu: FakeVcpu): bigint {
    const value = new DataView(this.memory.buffer).getBigUint64(Number(vcpu.rsp), true);
    vcpu.rsp += 8n;
    return value;
  }

  private store(address: bigint, value: bigint): void {
    new DataView(this.memory.buffer).setBigUint64(Number(address), value, true);
  }

  private deliver(vcpu: FakeVcpu, vector: number, type: string, back: bigint): void {
    this.point(vcpu, TraceKind.Vector, `vector ${vector}`, { vector, type });
    this.push(vcpu, back);
    vcpu.rip = HANDLER;
  }

  private execute(vcpu: FakeVcpu): void {
    const { memory } = this;
    const at = Number(vcpu.rip);
    const opcode = memory[at];
    const view = new DataView(memory.buffer);
    const retire = (length: number): void => {
      vcpu.rip += BigInt(length);
      vcpu.retired++;
    };
    switch (opcode) {
      case 0x90:
        retire(1);
        return;
      case 0x55: // push rbp
        this.push(vcpu, vcpu.values.get("rbp") ?? 0n);
        retire(1);
        return;
      case 0x5d: // pop rbp
        vcpu.values.set("rbp", this.pop(vcpu));
        retire(1);
        return;
      case 0x48: // mov rbp, rsp
        vcpu.values.set("rbp", vcpu.rsp);
        retire(3);
        return;
      case 0xe8: {
        this.push(vcpu, vcpu.rip + 5n);
        vcpu.rip += BigInt(view.getInt32(at + 1, true)) + 5n;
        vcpu.retired++;
        return;
      }
      case 0xc3:
      case 0xcf:
        vcpu.rip = this.pop(vcpu);
        vcpu.retired++;
        return;
      case 0xeb:
        vcpu.rip += BigInt(view.getInt8(at + 1)) + 2n;
        vcpu.retired++;
        return;
      case 0xcd: // int n
        vcpu.retired++;
        this.deliver(vcpu, memory[at + 1], "software", vcpu.rip + 2n);
        return;
      case 0x0f: // ud2
        this.deliver(vcpu, 6, "exception", vcpu.rip);
        return;
      case 0xf4:
        vcpu.halted = true;
        if (vcpu.interruptAt < 0) this.ending = { kind: "dead-halt" };
        retire(1);
        return;
      case 0xe6: // out imm8, al
        this.out(vcpu, memory[at + 1], retire);
        return;
      case 0xa2: // mov [moffs8], al of a 32-bit-address toy form: opcode, 4 bytes of address
        this.touch(vcpu, BigInt(view.getUint32(at + 1, true)), retire);
        return;
      default:
        throw new Error(`the fake machine has no instruction ${opcode.toString(16)} at ${at.toString(16)}`);
    }
  }

  private out(vcpu: FakeVcpu, port: number, retire: (length: number) => void): void {
    const value = Number((vcpu.values.get("rax") ?? 0n) & 0xffn);
    const device = (): void => {
      this.point(vcpu, TraceKind.Device, `serial write ${port}`, { port, value, write: true });
      if (port === 0xf4) this.ending = { kind: "debug-exit", code: value };
      else this.environment.serialOutput(0, Uint8Array.of(value));
    };
    if (!vcpu.vmcs) {
      device();
      retire(2);
      return;
    }
    this.vcpuRun(
      vcpu,
      30,
      `IO_INSTRUCTION out port 0x${port.toString(16)} size 1`,
      { port: BigInt(port), size: 1n, direction: "out" },
      () => {
        vcpu.kvmRun = { exit_reason: 2n, "io.port": port };
        this.point(vcpu, TraceKind.UserspaceExit, "KVM_EXIT_IO", { exit: "IO" });
        device();
        vcpu.rip += 2n;
      },
    );
  }

  private touch(vcpu: FakeVcpu, address: bigint, retire: (length: number) => void): void {
    if (this.violationAt === address && vcpu.vmcs) {
      this.violationAt = null;
      this.vcpuRun(vcpu, 48, "EPT_VIOLATION write", { gpa: address }, () => {
        this.point(vcpu, TraceKind.MmuFault, "kvm_mmu_page_fault", { gpa: address });
      });
      return;
    }
    this.store(address, 1n);
    const watch = this.watchpoints.find((w) => w.address === address);
    retire(5);
    if (watch)
      this.point(vcpu, TraceKind.Instruction, `watchpoint ${watch.id}`, {
        cause: "watchpoint",
        id: watch.id,
        address,
        size: 8,
        write: true,
      });
  }

  /** An exit with its stages, as KVM would serve it. */
  vcpuRun(
    vcpu: FakeVcpu,
    reason: number,
    text: string,
    detail: Record<string, bigint | number | string>,
    handle: () => void,
    inject = 0n,
  ): void {
    this.exits++;
    this.point(vcpu, TraceKind.VmExit, text, { reason, ...detail });
    this.point(vcpu, TraceKind.ExitHandler, `handler ${reason}`, { reason });
    handle();
    vcpu.vmcs?.write(VM_ENTRY_INTR_INFO, inject);
    this.point(vcpu, TraceKind.VmEntry, "VM entry", {});
    vcpu.vmcs?.write(VM_ENTRY_INTR_INFO, 0n);
  }

  /** A host interrupt between two guest instructions, which injects vector 32 when asked. */
  hostInterrupt(index: number, inject: boolean): void {
    const vcpu = this.vcpus[index];
    this.vcpuRun(vcpu, 1, "EXTERNAL_INTERRUPT", {}, () => {}, inject ? 0x8000_0020n : 0n);
    if (inject) this.deliver(vcpu, 32, "interrupt", vcpu.rip);
  }

  serialInput(bytes: Uint8Array): void {
    this.typed.push(...bytes);
  }
  readMemory(_space: AddressSpace, _vcpu: number, address: bigint, length: number): Uint8Array {
    if (address < 0n || address >= BigInt(SIZE)) return new Uint8Array(0);
    return this.memory.slice(Number(address), Number(address) + length);
  }
  writeMemory(_space: AddressSpace, _vcpu: number, address: bigint, bytes: Uint8Array): number {
    if (address < 0n || address >= BigInt(SIZE)) return 0;
    const fit = bytes.subarray(0, SIZE - Number(address));
    this.memory.set(fit, Number(address));
    return fit.length;
  }
  translate(_vcpu: number, gva: bigint): bigint | undefined {
    return gva < BigInt(SIZE) ? gva : undefined;
  }
  setBreakpoints(list: readonly { linear: bigint; id: number }[]): void {
    this.breakpoints = list;
  }
  setWatchpoints(list: readonly { id: number; address: bigint; length: number }[]): void {
    this.watchpoints = list;
  }
  stopAfter(vcpu: number, count: number): void {
    this.vcpus[vcpu].stopAt = count === 0 ? -1 : this.vcpus[vcpu].retired + count;
  }
  nmi(): void {}
  diskChanges(): [] {
    return [];
  }
  stats(): MachineStats {
    const instructions = this.vcpus.reduce((n, v) => n + v.retired, 0);
    return { instructions, exits: { IO_INSTRUCTION: this.exits }, userspaceExits: {}, nanoseconds: 0, resets: 0 };
  }
  hash(): string {
    return "0".repeat(32);
  }
  snapshot(): MachineSnapshot {
    return { instructions: 0, parts: {} };
  }
  restore(): void {}
}

export function fakeConfig(code: readonly number[], accel: "none" | "vmx" = "vmx", smp = 1): MachineConfig {
  return {
    accel,
    memory: SIZE,
    smp,
    cpu: "default",
    append: "",
    tier: 0,
    image: { name: "fake", bytes: Uint8Array.from(code) },
  };
}
