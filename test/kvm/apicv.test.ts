// biome-ignore-all format: bytes beside their assembly
/** enable_apicv, pml and preemption_timer: what the processor does for the guest that KVM otherwise does at exits. */
import { describe, expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { KvmExit } from "../../engine/kvm/uapi";
import { TestVm } from "./bench";
import { EOI, lapicWrite, withIdt } from "./idt";

const APICV = { enable_apicv: true, preemption_timer: false };

function outPort(vm: TestVm): number {
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  return exit.io.port;
}

describe("APICv (vmx.c, SDM 3C chapter 30)", () => {
  test("a self-IPI, its EOI and the task priority need no exits; other registers exit behind the write (APIC_WRITE)", () => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff),    // SVR: enabled, from here on the processor serves it
      ...lapicWrite(0x320, 0x10030), // LVT timer, masked: APIC_WRITE
      ...lapicWrite(0x80, 0x80),     // TPR
      ...lapicWrite(0x300, 0x44030), // self-IPI, vector 0x30
      0xfb,                          // sti
      0x90,
      0x43,                          // inc ebx
      ...lapicWrite(0x80, 0),
      0x90,
      0xe7, 0x81,                    // out 0x81, eax
    ], { irqchip: true, params: APICV });
    withIdt(vm, { 48: { at: 0x2000, code: [0x89, 0xd8, 0xe7, 0x80, ...EOI, 0xcf] } });
    expect(outPort(vm)).toBe(0x80);
    expect(vm.vcpu.KVM_GET_REGS().rax).toBe(1n);
    expect(outPort(vm)).toBe(0x81);
    const exits = vm.vcpu.exitsByReason;
    expect(exits[ExitReason.APIC_WRITE]).toBe(1);
    expect(exits[ExitReason.APIC_ACCESS]).toBe(1);
    for (const reason of [ExitReason.TPR_BELOW_THRESHOLD, ExitReason.EOI_INDUCED]) {
      expect(exits[reason] ?? 0).toBe(0);
    }
  });

  test("an interrupt for a vCPU inside the guest is posted: it gets there without an exit (posted_intr.c)", () => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff), 0xe7, 0x81, 0xfb, 0xeb, 0xfe, // out 0x81, eax; sti; jmp self
    ], { irqchip: true, params: APICV });
    withIdt(vm, { 69: { at: 0x2000, code: [0xe7, 0x80] } });
    expect(outPort(vm)).toBe(0x81);
    expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "slice" });
    expect(vm.vm.KVM_SIGNAL_MSI({ address_lo: 0xfee00000, address_hi: 0, data: 0x45, flags: 0 })).toBe(1);
    expect(outPort(vm)).toBe(0x80);
    const exits = vm.vcpu.exitsByReason;
    expect(exits[ExitReason.EXTERNAL_INTERRUPT] ?? 0).toBe(0);
    expect(exits[ExitReason.IO_INSTRUCTION]).toBe(2);
    expect(vm.vcpu.stats.irq_injections).toBe(0);
  });

  test("the EOI of a level-triggered interrupt exits, so that the I/O APIC hears of it (EOI_INDUCED)", () => {
    const ioapic = (index: number, value: number) => [
      0xc7, 0x05, 0x00, 0x00, 0xc0, 0xfe, index, 0, 0, 0,
      0xc7, 0x05, 0x10, 0x00, 0xc0, 0xfe, value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24,
    ];
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff), ...ioapic(0x10 + 2 * 20 + 1, 0), ...ioapic(0x10 + 2 * 20, 0x8045),
      0xe7, 0x81, 0xfb, 0x90, 0xeb, 0xfd,
    ], { irqchip: true, params: APICV });
    withIdt(vm, { 69: { at: 0x2000, code: [0x43, 0xe7, 0x80, ...EOI, 0xcf] } });
    expect(outPort(vm)).toBe(0x81);
    vm.vm.KVM_IRQ_LINE({ irq: 20, level: 1 });
    expect([outPort(vm), outPort(vm)]).toEqual([0x80, 0x80]);
    expect(vm.vcpu.KVM_GET_REGS().rbx).toBe(2n);
    expect(vm.vcpu.exitsByReason[ExitReason.EOI_INDUCED]).toBe(1);
    vm.vm.KVM_IRQ_LINE({ irq: 20, level: 0 });
    expect(vm.vcpu.KVM_RUN(1000)).toEqual({ kind: "yield", reason: "slice" });
  });

  test("an interrupt that arrives outside the guest ends HLT and is delivered by the processor", () => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff), ...lapicWrite(0x3e0, 0xb), ...lapicWrite(0x320, 0x30), ...lapicWrite(0x380, 100_000),
      0xfb, 0xf4, 0xe7, 0x81,
    ], { irqchip: true, params: APICV });
    withIdt(vm, { 48: { at: 0x2000, code: [0x43, ...EOI, 0xcf] } });
    expect(outPort(vm)).toBe(0x81);
    expect(vm.vcpu.KVM_GET_REGS().rbx).toBe(1n);
    expect(vm.vcpu.exitsByReason[ExitReason.HLT]).toBe(1);
    expect(vm.vcpu.stats.irq_injections).toBe(0);
  });

  test("KVM_GUESTDBG_BLOCKIRQ inhibits it: nothing is delivered while userspace blocks interrupts", () => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff), 0xe7, 0x81, ...lapicWrite(0x300, 0x44030), 0xfb, 0x90, 0xe7, 0x82,
    ], { irqchip: true, params: APICV });
    withIdt(vm, { 48: { at: 0x2000, code: [0xe7, 0x80] } });
    expect(outPort(vm)).toBe(0x81);
    vm.vcpu.KVM_SET_GUEST_DEBUG({ control: 0x100001, debugreg: [0n, 0n, 0n, 0n, 0n, 0n, 0n, 0n] });
    expect(outPort(vm)).toBe(0x82);
    vm.vcpu.KVM_SET_GUEST_DEBUG({ control: 0, debugreg: [0n, 0n, 0n, 0n, 0n, 0n, 0n, 0n] });
    expect(outPort(vm)).toBe(0x80);
  });
});

test("preemption_timer: the local APIC's timer makes the guest exit by itself, at the same time as the host's would", () => {
  const run = (preemption_timer: boolean) => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff), ...lapicWrite(0x3e0, 0xb), ...lapicWrite(0x320, 0x30),
      0xfb, ...lapicWrite(0x380, 10_000), 0x41, 0xeb, 0xfd,
    ], { irqchip: true, params: { preemption_timer, enable_apicv: false } });
    withIdt(vm, { 48: { at: 0x2000, code: [0xe7, 0x80] } });
    expect(outPort(vm)).toBe(0x80);
    const exits = vm.vcpu.exitsByReason;
    return { now: vm.host.clock.now, timer: exits[ExitReason.PREEMPTION_TIMER] ?? 0, host: exits[ExitReason.EXTERNAL_INTERRUPT] ?? 0 };
  };
  const hv = run(true);
  const host = run(false);
  expect([hv.timer, hv.host]).toEqual([1, 0]);
  expect([host.timer, host.host]).toEqual([0, 1]);
  expect(Math.abs(hv.now - host.now)).toBeLessThanOrEqual(32);
});

test("pml: dirty pages come from the processor's log, without a fault a page; a full log exits (PML_FULL)", () => {
  const program = [
    0xbf, 0x00, 0x00, 0x10, 0x00, // mov edi, 0x100000
    0xb9, 0x58, 0x02, 0x00, 0x00, // mov ecx, 600
    0x88, 0x0f,                   // 1: mov [edi], cl
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0xe2, 0xf6,                   // loop 1b
    0xf4,
  ];
  const run = (pml: boolean) => {
    const vm = new TestVm(program, { params: { pml } });
    vm.protectedMode();
    const region = { slot: 0, guest_phys_addr: 0, memory_size: 8 << 20, userspace_addr: 0x7f00_0000_0000 };
    expect(vm.run().exit_reason).toBe(KvmExit.HLT);
    vm.vm.KVM_SET_USER_MEMORY_REGION({ ...region, flags: 1 });
    // The first time round breaks the large pages up.
    vm.setRegs({ rip: 0x1000n });
    expect(vm.run().exit_reason).toBe(KvmExit.HLT);
    vm.vm.KVM_GET_DIRTY_LOG(0);
    const before = vm.vcpu.stats.pf_taken;
    vm.setRegs({ rip: 0x1000n });
    expect(vm.run().exit_reason).toBe(KvmExit.HLT);
    const dirty = vm.vm.KVM_GET_DIRTY_LOG(0);
    let pages = 0;
    for (const word of dirty) for (let i = 0; i < 32; i++) pages += (word >>> i) & 1;
    return { pages, first: (dirty[8] & 1) !== 0, faults: vm.vcpu.stats.pf_taken - before, full: vm.vcpu.exitsByReason[ExitReason.PML_FULL] ?? 0 };
  };
  expect(run(true)).toMatchObject({ pages: 600, first: true, faults: 0 });
  expect(run(true).full).toBeGreaterThan(0);
  expect(run(false)).toMatchObject({ pages: 600, first: true, faults: 600, full: 0 });
});
