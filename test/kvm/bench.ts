/**
 * A small emulated host with KVM on it, and guests given as bytes with their assembly beside them (in the manner of
 * rust-vmm/kvm-ioctls): RAM at guest-physical 0, code at 0x1000.
 */
import { VirtualClock } from "../../engine/clock";
import type { Bus } from "../../engine/cpu/cpu";
import { CpuEngine } from "../../engine/cpu/engine";
import { DEFAULT_MODEL, findModel } from "../../engine/cpu/models/models";
import type { Processor } from "../../engine/cpu/processor";
import type { KvmVcpuFd, KvmVmFd } from "../../engine/kvm/api";
import { type Host, HostInterrupts, type KvmDevFd, openKvm } from "../../engine/kvm/api";
import { MiB } from "../../engine/memory/layout";
import { PhysicalMemory } from "../../engine/memory/physical";
import { silentTracer, type Tracer } from "../../engine/trace";

const KERNEL_BASE = 16 * MiB;
const KERNEL_SIZE = 8 * MiB;
/** Host-physical and host-virtual addresses of what becomes guest RAM. */
export const RAM_HPA = 64 * MiB;
export const RAM_HVA = 0x7f00_0000_0000;
export const RAM_SIZE = 8 * MiB;
export const CODE = 0x1000;

const deadBus: Bus = {
  portIn: () => {
    throw new Error("a guest's port access reached the host");
  },
  portOut: () => {
    throw new Error("a guest's port access reached the host");
  },
  mmioRead: () => {
    throw new Error("a guest's MMIO reached the host");
  },
  mmioWrite: () => {
    throw new Error("a guest's MMIO reached the host");
  },
};

/** Physical processors, memory and time of a test. */
export class TestHost implements Host {
  readonly memory = new PhysicalMemory(KERNEL_SIZE + RAM_SIZE);
  readonly clock = new VirtualClock();
  readonly engine: CpuEngine;
  readonly interrupts: HostInterrupts[];
  readonly processors: Processor[];
  private next = KERNEL_BASE;
  private readonly free: number[] = [];

  constructor(
    count = 1,
    readonly trace: Tracer = { ...silentTracer },
  ) {
    this.memory.add("ram", "host kernel", KERNEL_BASE, KERNEL_SIZE);
    this.memory.add("ram", "guest RAM", RAM_HPA, RAM_SIZE);
    this.engine = new CpuEngine({ memory: this.memory, clock: this.clock, trace, tier: 0 });
    const model = findModel(DEFAULT_MODEL);
    if (!model) throw new Error("no default processor model");
    this.interrupts = Array.from({ length: count }, () => new HostInterrupts());
    this.processors = this.interrupts.map((interrupts, id) => {
      const cpu = this.engine.createProcessor({ id, model, bus: deadBus, interrupts });
      cpu.hostIsModel = true;
      return cpu;
    });
  }

  allocatePages(pages: number): number {
    const again = pages === 1 ? this.free.pop() : undefined;
    const pa = again ?? this.next;
    if (again === undefined) this.next += pages * 4096;
    if (this.next > KERNEL_BASE + KERNEL_SIZE) throw new Error("host kernel out of memory");
    const at = this.memory.hostOffset(pa);
    this.memory.u8.fill(0, at, at + pages * 4096);
    return pa;
  }

  freePages(pa: number, pages: number): void {
    for (let i = 0; i < pages; i++) this.free.push(pa + i * 4096);
  }

  translateUserspace(hva: bigint): number {
    const offset = Number(hva) - RAM_HVA;
    return offset >= 0 && offset < RAM_SIZE ? RAM_HPA + offset : -1;
  }

  activate(id: number): void {
    this.engine.activate(id);
  }

  /** Writes into guest RAM as the QEMU process would. */
  poke(gpa: number, bytes: Iterable<number>): void {
    const data = Uint8Array.from(bytes);
    this.memory.write(RAM_HPA + gpa, data);
    for (const cpu of this.processors) cpu.code.invalidatePhysical(RAM_HPA + gpa, data.length);
  }
  peek(gpa: number, length: number): Uint8Array {
    return this.memory.read(RAM_HPA + gpa, length);
  }
  peek32(gpa: number): number {
    return this.memory.view.getUint32(this.memory.hostOffset(RAM_HPA + gpa), true);
  }
  poke64(gpa: number, value: bigint): void {
    this.memory.view.setBigUint64(this.memory.hostOffset(RAM_HPA + gpa), value, true);
  }
}

export interface VmOptions {
  readonly irqchip?: boolean;
  readonly vcpus?: number;
  readonly params?: Readonly<Record<string, boolean | number>>;
  readonly trace?: Tracer;
  /** KVM_X86_DISABLE_EXITS_* bits. */
  readonly disableExits?: bigint;
}

/** A VM with RAM at 0 and vCPUs in real mode at 0:CODE. */
export class TestVm {
  readonly host: TestHost;
  readonly kvm: KvmDevFd;
  readonly vm: KvmVmFd;
  readonly vcpus: KvmVcpuFd[] = [];

  constructor(code: Iterable<number>, options: VmOptions = {}) {
    const count = options.vcpus ?? 1;
    this.host = new TestHost(count, options.trace);
    this.kvm = openKvm(this.host, options.params);
    this.vm = this.kvm.KVM_CREATE_VM();
    if (options.disableExits) this.vm.KVM_ENABLE_CAP(143, [options.disableExits]);
    if (options.irqchip) {
      this.vm.KVM_CREATE_IRQCHIP();
      this.vm.KVM_CREATE_PIT2({ flags: 1 });
    }
    this.vm.KVM_SET_USER_MEMORY_REGION({
      slot: 0,
      flags: 0,
      guest_phys_addr: 0,
      memory_size: RAM_SIZE,
      userspace_addr: RAM_HVA,
    });
    this.host.poke(CODE, code);
    for (let i = 0; i < count; i++) {
      const vcpu = this.vm.KVM_CREATE_VCPU(i);
      vcpu.KVM_SET_CPUID2(this.kvm.KVM_GET_SUPPORTED_CPUID());
      this.vcpus.push(vcpu);
    }
    const sregs = this.vcpu.KVM_GET_SREGS();
    this.vcpu.KVM_SET_SREGS({ ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } });
    this.setRegs({ rip: BigInt(CODE), rsp: 0x8000n });
  }

  get vcpu(): KvmVcpuFd {
    return this.vcpus[0];
  }

  setRegs(changes: Partial<ReturnType<KvmVcpuFd["KVM_GET_REGS"]>>): void {
    this.vcpu.KVM_SET_REGS({ ...this.vcpu.KVM_GET_REGS(), rflags: 2n, ...changes });
  }

  /** 32-bit protected mode, flat segments, no paging. */
  protectedMode(): void {
    const sregs = this.vcpu.KVM_GET_SREGS();
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, l: 0, g: 1, avl: 0, unusable: 0, db: 1 };
    const data = { ...flat, selector: 0x10, type: 3 };
    this.vcpu.KVM_SET_SREGS({
      ...sregs,
      cr0: 0x11n,
      cs: { ...flat, selector: 8, type: 11 },
      ds: data,
      es: data,
      ss: data,
      fs: data,
      gs: data,
    });
  }

  /** 64-bit mode with 2-MiB pages that map the first 1 GiB and the last GiB below 4 GiB one to one; tables at 0x100000. */
  longMode(): void {
    const { host } = this;
    host.poke64(0x100000, 0x101003n);
    host.poke64(0x101000, 0x102003n);
    host.poke64(0x101000 + 3 * 8, 0x103003n);
    for (let i = 0; i < 512; i++) {
      host.poke64(0x102000 + i * 8, (BigInt(i) << 21n) | 0x83n);
      host.poke64(0x103000 + i * 8, (3n << 30n) | (BigInt(i) << 21n) | 0x83n);
    }
    const sregs = this.vcpu.KVM_GET_SREGS();
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 0x10, type: 3, l: 0, db: 1 };
    this.vcpu.KVM_SET_SREGS({
      ...sregs,
      cr0: 0x80000011n,
      cr3: 0x100000n,
      cr4: 0x20n,
      efer: 0x500n,
      cs: { ...flat, selector: 8, type: 11, l: 1, db: 0 },
      ds: data,
      es: data,
      ss: data,
      fs: data,
      gs: data,
    });
  }

  /** Runs vCPU 0 to its next userspace exit, letting time pass while it sleeps; throws after `limit` instructions. */
  run(limit = 1_000_000): KvmVcpuFd["run"]["exit"] {
    const end = this.host.clock.instructions + limit;
    for (;;) {
      const left = end - this.host.clock.instructions;
      if (left <= 0) throw new Error(`no userspace exit within ${limit} instructions`);
      const outcome = this.vcpu.KVM_RUN(left);
      if (outcome.kind === "exit") return this.vcpu.run.exit;
      if (outcome.kind === "error") throw new Error(`KVM_RUN: errno ${outcome.errno}`);
      if (outcome.reason === "blocked") {
        if (!this.host.clock.skipToNextEvent()) throw new Error("the vCPU sleeps for ever");
        this.host.clock.runDue();
      }
    }
  }
}
