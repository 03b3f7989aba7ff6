// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { KvmExit, KvmInternalError } from "../../engine/kvm/uapi";
import { CODE, TestVm } from "./bench";

const IDT = 0x4000;
const GDT = 0x4800;
const gate = (handler: number): number[] => [handler & 0xff, (handler >> 8) & 0xff, 8, 0, 0, 0x8e, 0, 0];

function withHandler(vm: TestVm, vector: number, code: number[], esp = 0x8000n): void {
  vm.protectedMode();
  vm.host.poke64(GDT + 8, 0x00cf9b000000ffffn);
  vm.host.poke64(GDT + 16, 0x00cf93000000ffffn);
  vm.host.poke(IDT + vector * 8, gate(0x2000));
  vm.host.poke(0x2000, code);
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, gdt: { base: BigInt(GDT), limit: 0x1f }, idt: { base: BigInt(IDT), limit: 0x7ff } });
  vm.setRegs({ rip: BigInt(CODE), rsp: esp });
}

for (const [name, bytes, vector] of [
  ["a software interrupt", [0xcd, 0x30], 0x30],
  ["INT3", [0xcc], 3],
  ["a fault", [0x0f, 0x0b], 6],
] as const) {
  test(`${name} whose delivery meets a page EPT does not map yet is delivered again, with the same return address (IDT vectoring, vmx_complete_interrupts)`, () => {
    const vm = new TestVm([...bytes, 0xf4]);
    // The stack's 2-MiB page has not been touched.
    withHandler(vm, vector, [0x58, 0xe7, 0x80], 0x600000n); // pop eax; out 0x80, eax
    const exit = vm.run();
    if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
    const pushed = exit.io.data[0] | (exit.io.data[1] << 8);
    expect(pushed).toBe(vector === 6 ? CODE : CODE + bytes.length);
    expect(vm.vcpu.exitsByReason[ExitReason.EPT_VIOLATION]).toBe(2);
  });
}

test("MMIO in the middle of event delivery cannot be emulated: KVM_INTERNAL_ERROR_DELIVERY_EV with vectoring, reason, qualification, gpa, cpu", () => {
  const vm = new TestVm([0xa1, 0x00, 0x00, 0x00, 0xe0, 0xcd, 0x30]); // mov eax, [0xe0000000]; int 0x30
  withHandler(vm, 0x30, [0xf4], 0xe0000800n);
  expect(vm.run().exit_reason).toBe(KvmExit.MMIO);
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.INTERNAL_ERROR) throw new Error(`exit ${exit.exit_reason}`);
  const { suberror, ndata, data } = exit.internal;
  expect([suberror, ndata]).toEqual([KvmInternalError.DELIVERY_EV, 5]);
  expect(data[0]).toBe(0x80000430n); // valid, software interrupt, vector 0x30
  expect(data[1]).toBe(BigInt(ExitReason.EPT_MISCONFIG));
  expect(data[3] & ~0xfffn).toBe(0xe0000000n);
  expect(data[4]).toBe(0n);
});

test("a page fault of the emulated instruction reaches the guest with CR2 and error code (x86_emulate_instruction)", () => {
  const vm = new TestVm([
    0xbe, 0x00, 0x00, 0x00, 0xc0, // mov esi, 0xc0000000   (mapped: MMIO)
    0xbf, 0x00, 0x00, 0x40, 0x80, // mov edi, 0x80400000   (not mapped)
    0x67, 0xa5,                   // movsd (32-bit addresses)
  ]);
  vm.longMode();
  vm.host.poke64(GDT + 8, 0x00af9b000000ffffn);
  vm.host.poke(IDT + 14 * 16, [0x00, 0x20, 8, 0, 0, 0x8e, 0, 0]);
  vm.host.poke(0x2000, [0x58, 0xe7, 0x80]); // pop rax; out 0x80, eax
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, gdt: { base: BigInt(GDT), limit: 0xf }, idt: { base: BigInt(IDT), limit: 0xfff } });
  vm.setRegs({ rip: BigInt(CODE), rsp: 0x8000n });
  let exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error(`exit ${exit.exit_reason}`);
  exit.mmio.data.set([1, 2, 3, 4]);
  exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.data[0]).toBe(2); // write, not present
  expect(vm.vcpu.KVM_GET_SREGS().cr2).toBe(0x80400000n);
  expect(vm.vcpu.KVM_GET_REGS().rsi).toBe(0xc0000000n);
});

test("a task switch (JMP to a TSS) saves the old task and loads the new one; TR is busy, CR0.TS set (emulator_task_switch, SDM 3A 8.3)", () => {
  const vm = new TestVm([0xea, 0, 0, 0, 0, 0x20, 0]); // jmp 0x20:0
  withHandler(vm, 0x30, []);
  vm.host.poke64(GDT + 0x18, 0x00008b0050000067n); // busy TSS at 0x5000
  vm.host.poke64(GDT + 0x20, 0x0000890060000067n); // available TSS at 0x6000
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, gdt: { base: BigInt(GDT), limit: 0x27 }, tr: { ...sregs.tr, selector: 0x18, base: 0x5000n, limit: 0x67, type: 11, present: 1, unusable: 0 } });
  const tss = new DataView(new ArrayBuffer(104));
  for (const [offset, value] of [[32, 0x2000], [36, 2], [40, 0xabcd], [56, 0x7000], [72, 16], [76, 8], [80, 16], [84, 16], [88, 16], [92, 16]] as const) tss.setUint32(offset, value, true);
  vm.host.poke(0x6000, new Uint8Array(tss.buffer));
  vm.host.poke(0x2000, [0xe7, 0x80]); // out 0x80, eax
  vm.setRegs({ rip: BigInt(CODE), rsp: 0x8000n, rbx: 0x1234n });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.data[0] | (exit.io.data[1] << 8)).toBe(0xabcd);
  expect(vm.vcpu.exitsByReason[ExitReason.TASK_SWITCH]).toBe(1);
  expect([vm.host.peek32(0x5000 + 32), vm.host.peek32(0x5000 + 52)]).toEqual([CODE + 7, 0x1234]);
  const after = vm.vcpu.KVM_GET_SREGS();
  expect([after.tr.selector, after.tr.type, after.cr0 & 8n]).toEqual([0x20, 11, 8n]);
  expect([vm.host.peek32(GDT + 0x1c) & 0xff00, vm.host.peek32(GDT + 0x24) & 0xff00]).toEqual([0x8900, 0x8b00]);
});

test("HLT does not exit with KVM_X86_DISABLE_EXITS_HLT; the vCPU sleeps inside the guest until a timer of the host (KVM_ENABLE_CAP)", () => {
  const code = [0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xfb, 0xf4, 0xe7, 0x81]; // mov [SVR], 0x1ff; sti; hlt; out 0x81, eax
  const vm = new TestVm(code, { irqchip: true, disableExits: 2n });
  expect(() => vm.vm.KVM_ENABLE_CAP(143, [2n])).toThrow(/EINVAL/); // too late: there are vCPUs
  withHandler(vm, 0x50, [0xe7, 0x80]);
  expect(vm.vcpu.KVM_RUN(1000)).toEqual({ kind: "yield", reason: "blocked" });
  expect([vm.vcpu.exitsByReason[ExitReason.HLT], vm.vcpu.halted]).toEqual([undefined, true]);
  vm.vm.KVM_SIGNAL_MSI({ address_lo: 0xfee00000, address_hi: 0, data: 0x50, flags: 0 });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.io.port).toBe(0x80);
});
