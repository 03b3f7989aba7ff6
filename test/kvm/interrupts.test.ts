// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { Errno } from "../../engine/kvm/errno";
import { KvmExit, KvmMpState } from "../../engine/kvm/uapi";
import { TestVm } from "./bench";
import { EOI, lapicWrite, withIdt } from "./idt";

/** GSIs 0 to 15 go to the PIC too: it must not answer them. */
function maskPic(vm: TestVm): void {
  for (const id of [0, 1]) {
    const chip = vm.vm.KVM_GET_IRQCHIP(id);
    if (chip.chip_id !== 2) vm.vm.KVM_SET_IRQCHIP({ ...chip, pic: { ...chip.pic, imr: 0xff } });
  }
}

/** Without the hardware's help: every step of the local APIC is an exit that can be counted. */
const PLAIN = { enable_apicv: false, preemption_timer: false };

for (const flexpriority of [true, false]) {
  test(`a halted vCPU sleeps in KVM_RUN until the local APIC's timer interrupt, at the exact count (flexpriority=${flexpriority}; lapic.c)`, () => {
    const vm = new TestVm([
      ...lapicWrite(0xf0, 0x1ff),    // SVR: enabled
      ...lapicWrite(0x3e0, 0xb),     // divide by 1
      ...lapicWrite(0x320, 0x30),    // LVT timer: one-shot, vector 0x30
      ...lapicWrite(0x380, 100_000), // 100 us
      0xfb,                          // sti
      0xf4,                          // hlt
      0x89, 0xd8,                    // mov eax, ebx
      0xe7, 0x80,                    // out 0x80, eax
    ], { irqchip: true, params: { flexpriority, ...PLAIN } });
    withIdt(vm, { 48: { at: 0x2000, code: [
      0xbb, 0x77, 0x00, 0x00, 0x00,  // mov ebx, 0x77
      ...EOI,
      0xcf,                          // iret
    ] } });
    const exit = vm.run();
    if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
    expect(exit.io.data[0]).toBe(0x77);
    // Halted from 50 ns on, the timer started at 30 ns; a port access passes 1 us.
    expect(vm.host.clock.state.skipped).toBe(100_030 - 50 - 10 + 1_000);
    const exits = vm.vcpu.exitsByReason;
    expect(exits[ExitReason.HLT]).toBe(1);
    if (flexpriority) expect(exits[ExitReason.APIC_ACCESS]).toBe(5);
    else expect((exits[ExitReason.EPT_VIOLATION] ?? 0) + (exits[ExitReason.EPT_MISCONFIG] ?? 0)).toBeGreaterThanOrEqual(5);
    expect(vm.vcpu.stats.irq_injections).toBe(1);
    expect(vm.vcpu.stats.halt_wakeup).toBe(1);
  });
}

test("a timer that falls due while the guest computes makes it exit by the host's timer interrupt exactly then (EXTERNAL_INTERRUPT)", () => {
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff), ...lapicWrite(0x3e0, 0xb), ...lapicWrite(0x320, 0x30),
    0xfb,                            // sti
    ...lapicWrite(0x380, 10_000),    // 10 us = 1000 instructions
    0x41,                            // 1: inc ecx
    0xeb, 0xfd,                      // jmp 1b
  ], { irqchip: true, params: PLAIN });
  withIdt(vm, { 48: { at: 0x2000, code: [0x89, 0xc8, 0xe7, 0x80] } }); // mov eax, ecx; out 0x80, eax
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  // The store that starts the timer counts as one; then two instructions an iteration.
  const count = exit.io.data[0] | (exit.io.data[1] << 8);
  expect([499, 500]).toContain(count);
  expect(vm.vcpu.exitsByReason[ExitReason.EXTERNAL_INTERRUPT]).toBe(1);
  expect(vm.vcpu.stats.irq_exits).toBe(1);
});

test("a pending interrupt waits for IF by an interrupt window, and goes in right after STI's shadow (enable_irq_window)", () => {
  const vm = new TestVm([
    0xfa,                            // cli
    0xe7, 0x81,                      // out 0x81, eax     userspace raises the line here
    0xb9, 0x00, 0x01, 0x00, 0x00,    // mov ecx, 0x100
    0xe2, 0xfe,                      // loop self
    0xfb,                            // sti
    0x43,                            // inc ebx           the instruction in the shadow
    0x43,                            // inc ebx
    0xf4,
  ], { irqchip: true });
  withIdt(vm, { 36: { at: 0x2000, code: [0x89, 0xd8, 0xe7, 0x80] } }); // mov eax, ebx; out 0x80, eax
  // PIC: vectors 0x20, only IRQ 4 open (ICW1..ICW4, OCW1).
  const pic = vm.vm.KVM_GET_IRQCHIP(0);
  if (pic.chip_id === 2) throw new Error("not the PIC");
  vm.vm.KVM_SET_IRQCHIP({ ...pic, pic: { ...pic.pic, vectorBase: 0x20, imr: 0xef } });
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  vm.vm.KVM_IRQ_LINE({ irq: 4, level: 1 });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect([exit.io.port, exit.io.data[0]]).toEqual([0x80, 1]);
  expect(vm.vcpu.stats.irq_window_exits).toBe(1);
  expect(vm.vcpu.exitsByReason[ExitReason.INTERRUPT_WINDOW]).toBe(1);
});

test("a host timer that falls due in STI's shadow makes the guest exit behind the next instruction (SDM 2B STI; 3C 26.2)", () => {
  // Five instructions a round, a timer each 20,001: it meets every one of them.
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff),    // SVR: enabled
    ...lapicWrite(0x3e0, 0xb),     // divide by 1
    ...lapicWrite(0x320, 0x30030), // LVT timer: periodic, masked
    ...lapicWrite(0x380, 200_010), // ns
    0xb9, 0x80, 0x38, 0x01, 0x00,  // mov ecx, 80000
    0xfb, 0x90, 0xfa,              // l: sti; nop; cli
    0x49, 0x75, 0xfa,              // dec ecx; jnz l
    0xe7, 0x80,                    // out 0x80, eax
  ], { irqchip: true, params: PLAIN });
  withIdt(vm, {});
  maskPic(vm);
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  expect(vm.vcpu.exitsByReason[ExitReason.EXTERNAL_INTERRUPT]).toBeGreaterThanOrEqual(19);
});

test("PIT and PIC in the kernel: periodic IRQ 0 interrupts a guest that halts, at 1.193182 MHz over the count (i8254.c)", () => {
  const outb = (port: number, value: number) => [0xb0, value, 0xe6, port]; // mov al, value; out port, al
  const vm = new TestVm([
    ...outb(0x20, 0x11), ...outb(0x21, 0x20), ...outb(0x21, 0x04), ...outb(0x21, 0x01), ...outb(0x21, 0xfe),
    ...outb(0x43, 0x34), ...outb(0x40, 0xa9), ...outb(0x40, 0x04), // counter 0, mode 2, count 1193: 1 ms
    0xfb,                            // 1: sti
    0xf4,                            // hlt
    0x83, 0xfb, 0x0a,                // cmp ebx, 10
    0x75, 0xf9,                      // jne 1b
    0xe7, 0x80,                      // out 0x80, eax
  ], { irqchip: true });
  withIdt(vm, { 32: { at: 0x2000, code: [0x43, ...outb(0x20, 0x20), 0xcf] } }); // inc ebx; EOI; iret
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  expect(vm.vcpu.KVM_GET_REGS().rbx).toBe(10n);
  // OUT rises once when mode 2 is set, then at the end of each of nine periods.
  expect(vm.host.clock.now / 1e6).toBeCloseTo(9, 1);
  expect(vm.vcpu.userspaceExits).toEqual({ [KvmExit.IO]: 1 });
});

test("without an irqchip userspace asks for the window (request_interrupt_window), gets KVM_EXIT_IRQ_WINDOW_OPEN and injects by KVM_INTERRUPT (api.rst)", () => {
  const vm = new TestVm([
    0xfa,                            // cli
    0xe7, 0x81,                      // out 0x81, eax
    0x90, 0xfb,                      // nop; sti
    0x90, 0x90, 0x90,                // nops
    0xf4,
  ]);
  withIdt(vm, { 85: { at: 0x2000, code: [0xe7, 0x80] } });
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  expect([vm.vcpu.run.if_flag, vm.vcpu.run.ready_for_interrupt_injection]).toEqual([0, 0]);
  vm.vcpu.run.request_interrupt_window = 1;
  expect(vm.run().exit_reason).toBe(KvmExit.IRQ_WINDOW_OPEN);
  expect([vm.vcpu.run.if_flag, vm.vcpu.run.ready_for_interrupt_injection]).toEqual([1, 1]);
  vm.vcpu.run.request_interrupt_window = 0;
  vm.vcpu.KVM_INTERRUPT(0x55);
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.port).toBe(0x80);
  expect(vm.vcpu.stats.request_irq_exits).toBe(1);
});

test("an NMI goes in once; while its handler runs a second one waits for IRET (virtual NMIs, NMI window)", () => {
  const vm = new TestVm([
    0xe7, 0x81,                      // out 0x81, eax
    0x90,
    0xe7, 0x82,                      // out 0x82, eax
    0xf4,
  ]);
  withIdt(vm, { 2: { at: 0x2000, code: [0x43, 0xe7, 0x80, 0xcf] } }); // inc ebx; out 0x80, eax; iret
  vm.run();
  vm.vcpu.KVM_NMI();
  const ports: number[] = [];
  for (let i = 0; i < 3; i++) {
    const exit = vm.run();
    if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
    ports.push(exit.io.port);
    if (i === 0) vm.vcpu.KVM_NMI();
  }
  expect(ports).toEqual([0x80, 0x80, 0x82]);
  expect(vm.vcpu.KVM_GET_REGS().rbx).toBe(2n);
  expect(vm.vcpu.stats.nmi_injections).toBe(2);
  expect(vm.vcpu.stats.nmi_window_exits).toBe(1);
});

test("INIT and SIPI start a second vCPU in real mode at vector:0000; until then its KVM_RUN sleeps and ends in EAGAIN (x86.c)", () => {
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff),
    ...lapicWrite(0x310, 0x01000000), // ICR high: APIC id 1
    ...lapicWrite(0x300, 0x00004500), // INIT
    ...lapicWrite(0x300, 0x00004603), // SIPI, vector 3
    0xf4,
  ], { irqchip: true, vcpus: 2 });
  withIdt(vm, {});
  vm.host.poke(0x3000, [0xb8, 0x34, 0x12, 0xe7, 0x80]); // mov ax, 0x1234; out 0x80, ax
  expect(vm.vcpus[1].KVM_GET_MP_STATE()).toBe(KvmMpState.UNINITIALIZED);
  expect(vm.vcpus[1].KVM_RUN(1000)).toEqual({ kind: "yield", reason: "blocked" });
  expect(vm.vcpu.KVM_RUN(10_000)).toEqual({ kind: "yield", reason: "blocked" });
  expect(vm.vcpus[1].KVM_RUN(1000)).toEqual({ kind: "error", errno: Errno.EAGAIN });
  expect(vm.vcpus[1].KVM_RUN(1000)).toEqual({ kind: "exit" });
  const { exit } = vm.vcpus[1].run;
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect([exit.io.port, exit.io.data[0], exit.io.data[1]]).toEqual([0x80, 0x34, 0x12]);
  expect(vm.vcpus[1].KVM_GET_SREGS().cs.selector).toBe(0x300);
});

test("an IPI to a vCPU inside the guest makes it exit (reschedule) and goes in; the sender needs no exit of its own but the APIC access", () => {
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff),
    ...lapicWrite(0x310, 0x01000000),
    ...lapicWrite(0x300, 0x00004500),
    ...lapicWrite(0x300, 0x00004603),
    0xe7, 0x81,                       // out 0x81, eax      let the other one start
    ...lapicWrite(0x300, 0x00004040), // fixed, vector 0x40
    0xf4,
  ], { irqchip: true, params: PLAIN, vcpus: 2 });
  withIdt(vm, {});
  vm.host.poke(0x3000, [
    0x31, 0xc0, 0x8e, 0xd8,             // xor ax, ax; mov ds, ax
    0x66, 0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000: out of reach with 64-KiB limits, so the APIC is set up below
    0xfb,                               // sti
    0xeb, 0xfe,                         // jmp self
  ]);
  vm.host.poke(0x40 * 4, [0x00, 0x50, 0x00, 0x00]); // real-mode vector 0x40 -> 0:0x5000
  vm.host.poke(0x5000, [0xe7, 0x80]);
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  const other = vm.vcpus[1];
  other.KVM_RUN(1000); // EAGAIN: INIT and SIPI are taken
  const lapic = other.KVM_GET_LAPIC();
  new DataView(lapic.buffer).setUint32(0xf0, 0x1ff, true);
  other.KVM_SET_LAPIC(lapic);
  expect(other.KVM_RUN(100)).toEqual({ kind: "yield", reason: "slice" });
  expect(vm.vcpu.KVM_RUN(1000)).toEqual({ kind: "yield", reason: "blocked" });
  expect(other.KVM_RUN(1000)).toEqual({ kind: "exit" });
  if (other.run.exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${other.run.exit.exit_reason}`);
  expect(other.run.exit.io.port).toBe(0x80);
  expect(other.exitsByReason[ExitReason.EXTERNAL_INTERRUPT]).toBe(1);
});

test("a signal leaves KVM_RUN with EINTR and KVM_EXIT_INTR, also out of the guest and out of a halt; immediate_exit with EINTR alone (api.rst)", () => {
  const vm = new TestVm([0xeb, 0xfe]);
  vm.protectedMode();
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "slice" });
  vm.vcpu.signal();
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "error", errno: Errno.EINTR });
  expect(vm.vcpu.run.exit.exit_reason).toBe(KvmExit.INTR);
  expect(vm.vcpu.stats.signal_exits).toBe(1);
  vm.vcpu.clearSignal();
  vm.vcpu.run.immediate_exit = 1;
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "error", errno: Errno.EINTR });
  vm.vcpu.run.immediate_exit = 0;
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "slice" });

  const halted = new TestVm([0xf4], { irqchip: true });
  halted.protectedMode();
  expect(halted.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "blocked" });
  expect(halted.vcpu.wakeable).toBe(false);
  halted.vcpu.signal();
  expect(halted.vcpu.KVM_RUN(100)).toEqual({ kind: "error", errno: Errno.EINTR });
  halted.vcpu.clearSignal();
  expect(halted.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "blocked" });
});

test("need_resched leaves KVM_RUN between two entries of the guest and comes back to it (kernel/entry/kvm.c)", () => {
  const vm = new TestVm([0x40, 0xeb, 0xfd]); // inc eax; jmp
  vm.protectedMode();
  vm.vcpu.vcpu.state.thread.needResched = true;
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "resched" });
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "yield", reason: "slice" });
});

test("x2APIC mode: registers are MSRs, a self-IPI by 0x83f is delivered (SDM 3A 10.12)", () => {
  const wrmsr = (index: number, value: number) => [
    0xb9, index & 0xff, index >> 8, 0, 0,                                                   // mov ecx, index
    0xb8, value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24, 0x31, 0xd2, // mov eax, value; xor edx, edx
    0x0f, 0x30,                                                                             // wrmsr
  ];
  const vm = new TestVm([
    ...wrmsr(0x1b, 0xfee00d00), ...wrmsr(0x80f, 0x1ff), 0xfb, ...wrmsr(0x83f, 0x60), 0x90, 0xf4,
  ], { irqchip: true });
  withIdt(vm, { 96: { at: 0x2000, code: [0xe7, 0x80] } });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.port).toBe(0x80);
});

test("KVM_SIGNAL_MSI delivers the vector in the message's data (SDM 3A 10.11)", () => {
  const vm = new TestVm([...lapicWrite(0xf0, 0x1ff), 0xe7, 0x81, 0xfb, 0xf4], { irqchip: true });
  withIdt(vm, { 113: { at: 0x2000, code: [0xe7, 0x80] } });
  vm.run();
  expect(vm.vm.KVM_SIGNAL_MSI({ address_lo: 0xfee00000, address_hi: 0, data: 0x71, flags: 0 })).toBe(1);
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.port).toBe(0x80);
});

test("I/O APIC: a level-triggered line interrupts again after EOI while it stays high (ioapic.c)", () => {
  const ioapic = (index: number, value: number) => [
    0xc7, 0x05, 0x00, 0x00, 0xc0, 0xfe, index, 0, 0, 0,                                                        // mov [0xfec00000], index
    0xc7, 0x05, 0x10, 0x00, 0xc0, 0xfe, value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24, // mov [0xfec00010], value
  ];
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff), ...ioapic(0x10 + 2 * 9 + 1, 0), ...ioapic(0x10 + 2 * 9, 0x8045), // pin 9: level, vector 0x45
    0xe7, 0x81, 0xfb, 0x90, 0xeb, 0xfd,
  ], { irqchip: true });
  withIdt(vm, { 69: { at: 0x2000, code: [0x43, 0xe7, 0x80, ...EOI, 0xcf] } });
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  maskPic(vm);
  vm.vm.KVM_IRQ_LINE({ irq: 9, level: 1 });
  vm.run();
  vm.run();
  expect(vm.vcpu.KVM_GET_REGS().rbx).toBe(2n);
  vm.vm.KVM_IRQ_LINE({ irq: 9, level: 0 });
  expect(vm.vcpu.KVM_RUN(1000)).toEqual({ kind: "yield", reason: "slice" });
});

test("TPR: an interrupt below the task priority waits until the guest lowers it, which exits by the threshold (TPR_BELOW_THRESHOLD)", () => {
  const vm = new TestVm([
    ...lapicWrite(0xf0, 0x1ff), ...lapicWrite(0x80, 0x80), // TPR 0x80
    ...lapicWrite(0x300, 0x44030),                         // self-IPI, vector 0x30
    0xfb,                                                  // sti
    0xb9, 0x00, 0x01, 0x00, 0x00, 0xe2, 0xfe,              // mov ecx, 0x100; loop self
    0x43,                                                  // inc ebx
    ...lapicWrite(0x80, 0), 0x90, 0xf4,
  ], { irqchip: true, params: PLAIN });
  withIdt(vm, { 48: { at: 0x2000, code: [0x89, 0xd8, 0xe7, 0x80] } });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.data[0]).toBe(1);
  expect(vm.vcpu.exitsByReason[ExitReason.TPR_BELOW_THRESHOLD]).toBe(1);
});
