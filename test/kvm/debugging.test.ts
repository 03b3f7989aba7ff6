// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../engine/cpu/vmx/fields";
import { kvmRestore, kvmSnapshot } from "../../engine/kvm/snapshot";
import { KvmExit, KvmGuestdbg } from "../../engine/kvm/uapi";
import { TraceKind, type TracePoint, type Tracer } from "../../engine/trace";
import { CODE, TestVm } from "./bench";

/** Calls `look` at every trace point. */
function tracer(look: (point: TracePoint) => void): Tracer {
  return { armed: 0xffff & ~TraceKind.Poll, hit: look };
}

test("the JavaScript stack at a trace point reads as Linux's: vcpuRun > vcpuEnterGuest > vmxHandleExit, then handleIo and the device", () => {
  const stacks: string[] = [];
  const vm = new TestVm([0xe6, 0x21, 0xf4], { // out 0x21, al
    irqchip: true,
    trace: tracer((point) => {
      if (point.kind !== TraceKind.Device) return;
      const frames = (new Error().stack ?? "").split("\n").map((l) => /at (?:[\w.]*\.)?(\w+) /.exec(l)?.[1] ?? "");
      stacks.push(frames.join(" "));
    }),
  });
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 40;
  vm.vcpu.KVM_RUN(100);
  Error.stackTraceLimit = limit;
  expect(stacks[0]).toMatch(/kvmIoBusWrite .*emulatorPioOut .*kvmFastPio handleIo vmxHandleExit .*vcpuEnterGuest vcpuRun .*kvmArchVcpuIoctlRun KVM_RUN/);
});

test("at every trace point of an exit the registers are the guest's: RIP at the instruction until it is done, RAX as the guest has it", () => {
  const seen: [number, bigint, bigint][] = [];
  const vm: TestVm = new TestVm([
    0xb8, 0x00, 0x00, 0x00, 0x40, // mov eax, 0x40000000
    0x0f, 0xa2,                   // cpuid
    0xe7, 0x80,                   // out 0x80, eax
    0xf4,
  ], {
    trace: tracer((point) => {
      seen.push([point.kind, vm.vcpu.registers.read("rip"), vm.vcpu.registers.read("rax")]);
    }),
  });
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.IO);
  const at = (rip: number) => seen.filter((s) => s[1] === BigInt(rip)).map((s) => [s[0], s[2]]);
  const { VmExit, ExitHandler, VmEntry, UserspaceExit } = TraceKind;
  expect(at(CODE + 5)).toEqual([[VmExit, 0x40000000n], [ExitHandler, 0x40000000n]]);
  expect(at(CODE + 7)).toEqual([
    [VmEntry, 0x40000001n], [VmExit, 0x40000001n], [ExitHandler, 0x40000001n], [UserspaceExit, 0x40000001n],
  ]);
});

test("registers written at a trace point are what the guest goes on with, wherever they are then", () => {
  let done = 0;
  const vm: TestVm = new TestVm([
    0x0f, 0xa2,       // cpuid
    0x01, 0xd8,       // add eax, ebx
    0xf4,
  ], {
    trace: tracer((point) => {
      const { registers } = vm.vcpu;
      if (point.kind === TraceKind.ExitHandler && point.detail.reason === ExitReason.CPUID) {
        registers.write("rax", 0x40000000n); // another leaf
        done++;
      }
      if (point.kind === TraceKind.VmEntry && registers.read("rip") === BigInt(CODE + 2)) {
        registers.write("rbx", 5n);
        registers.write("rax", 7n);
        done++;
      }
    }),
  });
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(done).toBe(2);
  const { rax, rcx } = vm.vcpu.KVM_GET_REGS();
  expect([rax, rcx]).toEqual([12n, 0x564b4d56n]);
});

test("CR0, CR4 and EFER of the register file are the guest's view, not what VMX holds (read shadows)", () => {
  const vm = new TestVm([0xeb, 0xfe]);
  vm.longMode();
  vm.vcpu.KVM_RUN(100);
  const { registers, vmcsView } = vm.vcpu;
  expect([registers.read("cr0"), registers.read("cr4"), registers.read("ia32_efer")]).toEqual([0x80000011n, 0x20n, 0x500n]);
  expect(vmcsView.read(Field.GUEST_CR4) & 0x2000n).toBe(0x2000n);
  expect(() => registers.write("cr0", 1n << 31n)).toThrow(/PE/);
  expect(() => registers.write("rip", 1n << 60n)).toThrow(/canonical/);
});

test("KVM_GUESTDBG_SINGLESTEP stops after every instruction with KVM_EXIT_DEBUG; TF is not visible in KVM_GET_REGS (api.rst 4.87)", () => {
  const vm = new TestVm([0x40, 0x40, 0x0f, 0xa2, 0x40, 0xf4]); // inc eax; inc eax; cpuid; inc eax; hlt
  vm.protectedMode();
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.SINGLESTEP, debugreg: [] });
  const stops: number[] = [];
  for (let i = 0; i < 4; i++) {
    const exit = vm.run(1000);
    if (exit.exit_reason !== KvmExit.DEBUG) throw new Error(`exit ${exit.exit_reason}`);
    expect(exit.debug.exception).toBe(1);
    expect(exit.debug.dr6 & 0x4000n).toBe(0x4000n);
    const { rip, rflags } = vm.vcpu.KVM_GET_REGS();
    expect(rflags & 0x100n).toBe(0n);
    stops.push(Number(rip) - CODE);
    vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.SINGLESTEP, debugreg: [] });
  }
  expect(stops).toEqual([1, 2, 4, 5]);
});

test("KVM_GUESTDBG_USE_HW_BP stops at DR0 with KVM_EXIT_DEBUG; USE_SW_BP makes INT3 exit instead of reaching the guest", () => {
  const vm = new TestVm([0x40, 0x40, 0xcc, 0xf4]);
  vm.protectedMode();
  vm.vcpu.KVM_SET_GUEST_DEBUG({
    control: KvmGuestdbg.ENABLE | KvmGuestdbg.USE_HW_BP | KvmGuestdbg.USE_SW_BP,
    debugreg: [BigInt(CODE + 1), 0n, 0n, 0n, 0n, 0n, 0n, 0x402n],
  });
  let exit = vm.run(1000);
  if (exit.exit_reason !== KvmExit.DEBUG) throw new Error(`exit ${exit.exit_reason}`);
  expect([exit.debug.exception, exit.debug.pc, exit.debug.dr6 & 0xfn]).toEqual([1, BigInt(CODE + 1), 1n]);
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.USE_SW_BP, debugreg: [] });
  exit = vm.run(1000);
  if (exit.exit_reason !== KvmExit.DEBUG) throw new Error(`exit ${exit.exit_reason}`);
  expect([exit.debug.exception, exit.debug.pc]).toEqual([3, BigInt(CODE + 2)]);
});

test("the guest's first MOV DR exits and hands it the registers; the next exit reads them back (KVM_DEBUGREG_WONT_EXIT)", () => {
  const vm = new TestVm([
    0xb8, 0x34, 0x12, 0x00, 0x00, // mov eax, 0x1234
    0x0f, 0x23, 0xc0,             // mov dr0, eax
    0x0f, 0x23, 0xc8,             // mov dr1, eax
    0x0f, 0x21, 0xd3,             // mov ebx, dr2
    0xf4,
  ]);
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.exitsByReason[ExitReason.DR_ACCESS]).toBe(1);
  expect(vm.vcpu.KVM_GET_DEBUGREGS().db).toEqual([0x1234n, 0x1234n, 0n, 0n]);
});

test("VMCALL is KVM's hypercall: unknown numbers give -KVM_ENOSYS, VMMCALL is patched to VMCALL (hypercalls.rst)", () => {
  const vm = new TestVm([
    0xb8, 0x63, 0x00, 0x00, 0x00, // mov eax, 99
    0x0f, 0x01, 0xc1,             // vmcall
    0x89, 0xc3,                   // mov ebx, eax
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, KVM_HC_VAPIC_POLL_IRQ
    0x0f, 0x01, 0xd9,             // vmmcall
    0xf4,
  ]);
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const { rax, rbx } = vm.vcpu.KVM_GET_REGS();
  expect([rax, rbx]).toEqual([0n, 0xfffffc18n]);
  expect(vm.vcpu.stats.hypercalls).toBe(2);
  expect([...vm.host.peek(CODE + 15, 3)]).toEqual([0x0f, 0x01, 0xc1]);
});

test("kvmclock: MSR_KVM_SYSTEM_TIME_NEW gets a pvclock record whose scale turns TSC ticks into nanoseconds (msr.rst)", () => {
  const vm = new TestVm([0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 0x01, 0x30, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0xa2, 0xf4]);
  vm.protectedMode(); // mov ecx, 0x4b564d01; mov eax, 0x3001; xor edx, edx; wrmsr; cpuid; hlt
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const view = new DataView(vm.host.peek(0x3000, 32).buffer);
  expect([view.getUint32(0, true), view.getUint32(24, true), view.getInt8(28), view.getUint8(29)]).toEqual([2, 0x80000000, 1, 1]);
  expect(view.getBigUint64(8, true)).toBe(view.getBigUint64(16, true));
});

test("a snapshot taken in the middle and put back leads to the same end (snapshot.ts)", () => {
  const code = [
    0xb9, 0x20, 0x00, 0x00, 0x00, // mov ecx, 32
    0x51, 0x0f, 0xa2, 0x59,       // 1: push ecx; cpuid; pop ecx
    0xe6, 0x21, 0xe2, 0xf8,       // out 0x21, al; loop 1b
    0xe7, 0x80,                   // out 0x80, eax
  ];
  const vm = new TestVm(code, { irqchip: true });
  vm.protectedMode();
  expect(vm.vcpu.KVM_RUN(50)).toEqual({ kind: "yield", reason: "slice" });
  const { memory, clock, engine } = vm.host;
  const saved = {
    kvm: kvmSnapshot(vm.kvm.module), engine: engine.save(), clock: structuredClone(clock.state),
    ram: vm.host.peek(0, 0x10000), kernel: memory.read(16 << 20, 1 << 20),
  };
  const finish = () => {
    expect(vm.run().exit_reason).toBe(KvmExit.IO);
    return structuredClone([vm.vcpu.KVM_GET_REGS(), clock.state, vm.vcpu.exitsByReason, vm.vcpu.stats]);
  };
  const first = finish();
  vm.host.poke(0, saved.ram);
  memory.write(16 << 20, saved.kernel);
  clock.state = saved.clock;
  engine.load(saved.engine);
  kvmRestore(vm.kvm.module, saved.kvm);
  expect(finish()).toEqual(first);
});
