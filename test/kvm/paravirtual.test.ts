// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { kvmGetTimeScale } from "../../engine/kvm/pvclock";
import { KvmCap, KvmExit } from "../../engine/kvm/uapi";
import { CODE, TestVm } from "./bench";
import { errno } from "./errno";

const SYSTEM_TIME_NEW = 0x4b564d01;
const WALL_CLOCK_NEW = 0x4b564d00;
const ASYNC_PF_EN = 0x4b564d02;
const STEAL_TIME = 0x4b564d03;
const PV_EOI_EN = 0x4b564d04;
const POLL_CONTROL = 0x4b564d05;

/** wrmsr with ECX, EDX:EAX from the registers, then HLT */
const WRMSR = [0x0f, 0x30, 0xf4];

/** Whether the guest's WRMSR succeeds (HLT behind it) or raises #GP (real mode's vector 13 goes to another HLT). */
function guestWrites(vm: TestVm, index: number, value: bigint): "ok" | "#GP" {
  vm.host.poke(13 * 4, [0x00, 0x20, 0, 0]);
  vm.host.poke(0x2000, [0xf4]);
  vm.host.poke(CODE, WRMSR);
  vm.setRegs({ rip: BigInt(CODE), rcx: BigInt(index), rax: value & 0xffffffffn, rdx: value >> 32n, rsp: 0x8000n });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  return vm.vcpu.KVM_GET_REGS().rip === 0x2001n ? "#GP" : "ok";
}

const u32 = (vm: TestVm, at: number) => vm.host.peek32(at);
const u64 = (vm: TestVm, at: number) => BigInt(vm.host.peek32(at)) | (BigInt(vm.host.peek32(at + 4)) << 32n);

test("CPUID 40000000h says KVMKVMKVM; 40000001h the features that work (Documentation/virt/kvm/x86/cpuid.rst)", () => {
  const vm = new TestVm([]);
  const leaf = (n: number) => vm.kvm.KVM_GET_SUPPORTED_CPUID().find((e) => e.function === n);
  const signature = leaf(0x40000000);
  expect([signature?.eax, signature?.ebx, signature?.ecx, signature?.edx]).toEqual([0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d]);
  const bits = leaf(0x40000001)?.eax ?? 0;
  expect([0, 1, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 24].filter((b) => !((bits >>> b) & 1))).toEqual([]);
  expect([2, 8, 15, 16, 17].filter((b) => (bits >>> b) & 1)).toEqual([]);
});

test("a multiplier and shift turn TSC ticks into nanoseconds for any frequency (kvm_get_time_scale)", () => {
  for (const hz of [1_000_000_000n, 2_400_000_000n, 123_456_789n, 5_000_000_000n]) {
    const { shift, multiplier } = kvmGetTimeScale(1_000_000_000n, hz);
    const shifted = shift >= 0 ? hz << BigInt(shift) : hz >> BigInt(-shift);
    const ns = (shifted * BigInt(multiplier)) >> 32n;
    expect(Math.abs(Number(ns - 1_000_000_000n))).toBeLessThan(100);
  }
  expect(kvmGetTimeScale(1_000_000_000n, 1_000_000_000n)).toEqual({ shift: 1, multiplier: 0x80000000 });
});

test("kvmclock: even version, guest's TSC and system time of one moment, stable bit with the master clock (msr.rst)", () => {
  const vm = new TestVm([0xf4]);
  vm.host.poke(0x5000, [7]); // a version left by somebody else
  expect(guestWrites(vm, SYSTEM_TIME_NEW, 0x5001n)).toBe("ok");
  vm.vcpu.KVM_SET_REGS({ ...vm.vcpu.KVM_GET_REGS(), rip: BigInt(CODE + 2) });
  vm.run();
  expect(u32(vm, 0x5000) & 1).toBe(0);
  expect(u32(vm, 0x5000)).toBeGreaterThan(7);
  expect([u32(vm, 0x5018), vm.host.peek(0x501c, 1)[0], vm.host.peek(0x501d, 1)[0]]).toEqual([0x80000000, 1, 1]);
  const { clock, flags } = vm.vm.KVM_GET_CLOCK();
  expect(flags).toBe(14);
  const tscNow = vm.vcpu.KVM_GET_MSRS([0x10])[0].data;
  const ns = u64(vm, 0x5010) + (tscNow - u64(vm, 0x5008));
  expect(ns).toBe(clock);
});

test("the old clock MSR gives a clock without the stable bit on the boot vCPU (boot_vcpu_runs_old_kvmclock)", () => {
  const vm = new TestVm([0xf4]);
  expect(guestWrites(vm, 0x12, 0x5001n)).toBe("ok");
  vm.vcpu.KVM_SET_REGS({ ...vm.vcpu.KVM_GET_REGS(), rip: BigInt(CODE + 2) });
  vm.run();
  expect([u32(vm, 0x5000) & 1, vm.host.peek(0x501d, 1)[0]]).toEqual([0, 0]);
  expect(vm.vm.KVM_GET_CLOCK().flags).toBe(0);
});

test("the wall clock is the time at which kvmclock was 0 (msr.rst, MSR_KVM_WALL_CLOCK_NEW)", () => {
  const vm = new TestVm([]);
  vm.vm.KVM_SET_CLOCK(0n);
  const before = vm.host.clock.now;
  expect(guestWrites(vm, WALL_CLOCK_NEW, 0x5100n)).toBe("ok");
  expect(u32(vm, 0x5100)).toBe(2);
  const ns = u32(vm, 0x5104) * 1e9 + u32(vm, 0x5108);
  expect(Math.abs(ns - before)).toBeLessThan(1000);
});

test("KVM_SET_CLOCK with KVM_CLOCK_REALTIME adds the time that has passed since (api.rst 4.30)", () => {
  const vm = new TestVm([]);
  vm.vm.KVM_SET_CLOCK(5_000_000_000n);
  expect(vm.vm.KVM_GET_CLOCK().clock).toBe(5_000_000_000n);
  vm.host.clock.pass(1000);
  const { clock, realtime } = vm.vm.KVM_GET_CLOCK();
  expect(clock).toBe(5_000_001_000n);
  vm.vm.KVM_SET_CLOCK(1n, 4, (realtime ?? 0n) - 100n);
  expect(vm.vm.KVM_GET_CLOCK().clock).toBe(101n);
  expect(errno(() => vm.vm.KVM_SET_CLOCK(1n, 1))).toBe("EINVAL");
});

test("steal time: reserved bits are #GP, the record has an even version and time waited for a processor (msr.rst)", () => {
  const vm = new TestVm([]);
  expect(guestWrites(vm, STEAL_TIME, 0x5203n)).toBe("#GP");
  expect(guestWrites(vm, STEAL_TIME, 0x5241n)).toBe("ok");
  vm.vcpu.KVM_SET_REGS({ ...vm.vcpu.KVM_GET_REGS(), rip: BigInt(CODE + 2) });
  vm.run();
  expect([u32(vm, 0x5248) & 1, u32(vm, 0x5248) > 0]).toEqual([0, true]);
  // Out of KVM_RUN the record says that the vCPU does not run.
  expect(vm.host.peek(0x5250, 1)[0]).toBe(1);
});

test("async page faults: reserved bits and, without an irqchip, anything but 0 are #GP (msr.rst)", () => {
  const bare = new TestVm([]);
  expect([guestWrites(bare, ASYNC_PF_EN, 0n), guestWrites(bare, ASYNC_PF_EN, 0x5301n)]).toEqual(["ok", "#GP"]);
  const set = (value: bigint) => {
    const vm = new TestVm([], { irqchip: true });
    return vm.vcpu.KVM_SET_MSRS([{ index: ASYNC_PF_EN, data: value }]);
  };
  expect([set(0x5300n | 0x10n), set(0x5340n | 9n), set(0x5340n | 1n), set(0xf000_0000_0009n)]).toEqual([0, 1, 1, 0]);
});

test("MSR_KVM_POLL_CONTROL has one bit; a guest that polls itself is not polled for (msr.rst)", () => {
  const vm = new TestVm([]);
  expect([guestWrites(vm, POLL_CONTROL, 2n), guestWrites(vm, POLL_CONTROL, 0n)]).toEqual(["#GP", "ok"]);
  expect(vm.vcpu.KVM_GET_MSRS([POLL_CONTROL])[0].data).toBe(0n);
});

test("KVM_CAP_ENFORCE_PV_FEATURE_CPUID holds the guest to its CPUID (api.rst 7.24)", () => {
  const vm = new TestVm([]);
  const entries = vm.kvm.KVM_GET_SUPPORTED_CPUID().map((e) => (e.function === 0x40000001 ? { ...e, eax: 1 << 3 } : e));
  vm.vcpu.KVM_SET_CPUID2(entries);
  expect(vm.vcpu.KVM_SET_MSRS([{ index: POLL_CONTROL, data: 0n }])).toBe(1);
  vm.vcpu.KVM_ENABLE_CAP(KvmCap.ENFORCE_PV_FEATURE_CPUID, [1n]);
  expect(vm.vcpu.KVM_SET_MSRS([{ index: POLL_CONTROL, data: 0n }])).toBe(0);
  expect(vm.vcpu.KVM_SET_MSRS([{ index: SYSTEM_TIME_NEW, data: 0n }])).toBe(1);
  expect(errno(() => vm.vcpu.KVM_ENABLE_CAP(KvmCap.HALT_POLL, [1n]))).toBe("EINVAL");
});

/** VMCALL with registers; gives RAX. */
function hypercall(vm: TestVm, regs: { rax: bigint; rbx?: bigint; rcx?: bigint; rdx?: bigint; rsi?: bigint }): bigint {
  vm.host.poke(CODE, [0x0f, 0x01, 0xc1, 0xf4]);
  vm.setRegs({ rip: BigInt(CODE), rbx: 0n, rcx: 0n, rdx: 0n, rsi: 0n, ...regs });
  vm.run();
  return BigInt.asIntN(64, vm.vcpu.KVM_GET_REGS().rax);
}

test("hypercalls: unknown ones are -KVM_ENOSYS, clock pairing pairs host time and TSC, IPIs count their targets (hypercalls.rst)", () => {
  const vm = new TestVm([]);
  vm.longMode();
  expect(hypercall(vm, { rax: 99n })).toBe(-1000n);
  expect(hypercall(vm, { rax: 1n })).toBe(0n);
  expect(hypercall(vm, { rax: 9n, rbx: 0x5400n, rcx: 1n })).toBe(-95n);
  expect(hypercall(vm, { rax: 9n, rbx: 0xffff_ffff_0000n })).toBe(-14n);
  expect(hypercall(vm, { rax: 9n, rbx: 0x5400n })).toBe(0n);
  const tsc = vm.vcpu.KVM_GET_MSRS([0x10])[0].data;
  expect(Number(tsc - u64(vm, 0x5410))).toBeLessThan(100_000);
  expect(hypercall(vm, { rax: 10n, rbx: 3n, rsi: 0x800n })).toBe(-22n);
  // Without an irqchip there is nobody to send to.
  expect(hypercall(vm, { rax: 10n, rbx: 3n, rsi: 0x30n })).toBe(0n);
  expect(hypercall(vm, { rax: 5n, rcx: 0n })).toBe(0n);
  expect(hypercall(vm, { rax: 12n, rbx: 0x1000n, rcx: 1n })).toBe(-1000n);
});

test("KVM_HC_MAP_GPA_RANGE goes to userspace with KVM_CAP_EXIT_HYPERCALL, whose answer is the result (api.rst 7.30)", () => {
  const vm = new TestVm([0x0f, 0x01, 0xc1, 0xf4]);
  vm.longMode();
  expect(errno(() => vm.vm.KVM_ENABLE_CAP(KvmCap.EXIT_HYPERCALL, [1n << 11n]))).toBe("EINVAL");
  vm.vm.KVM_ENABLE_CAP(KvmCap.EXIT_HYPERCALL, [1n << 12n]);
  vm.setRegs({ rip: BigInt(CODE), rax: 12n, rbx: 0x3000n, rcx: 2n, rdx: 1n });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.HYPERCALL) throw new Error(`exit ${exit.exit_reason}`);
  expect([exit.hypercall.nr, exit.hypercall.args.slice(0, 3), exit.hypercall.flags]).toEqual([12n, [0x3000n, 2n, 1n], 1n]);
  exit.hypercall.ret = 0x77n;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rax).toBe(0x77n);
  expect(hypercall(vm, { rax: 12n, rbx: 0x3001n, rcx: 2n })).toBe(-22n);
});

test("PV EOI: the flag is set while one interrupt is in service, and clearing it ends the interrupt (msr.rst)", () => {
  const vm = new TestVm([], { irqchip: true, params: { enable_apicv: false } });
  expect([0x5503n, 0x5501n].map((data) => vm.vcpu.KVM_SET_MSRS([{ index: PV_EOI_EN, data }]))).toEqual([0, 1]);
  vm.protectedMode();
  const apic = vm.vm.kvm.vcpus[0].apic;
  apic?.chip.write(0xf0, 4, 0x1ff);
  vm.vcpu.KVM_SET_SREGS({ ...vm.vcpu.KVM_GET_SREGS(), gdt: { base: 0x6800n, limit: 0x17 }, idt: { base: 0x6000n, limit: 0x7ff } });
  vm.host.poke64(0x6808, 0x00cf9b000000ffffn);
  vm.host.poke64(0x6000 + 0x50 * 8, 0x00008e0000087000n);
  // handler: btr dword [0x5500], 0; setc al; out 0x10, al; btr dword [0x5500], 0; setc al; out 0x11, al
  const take = [0x0f, 0xba, 0x35, 0x00, 0x55, 0, 0, 0, 0x0f, 0x92, 0xc0];
  vm.host.poke(0x7000, [...take, 0xe6, 0x10, ...take, 0xe6, 0x11]);
  vm.host.poke(CODE, [0xfb, 0x90, 0xeb, 0xfe]); // sti; nop; jmp $
  vm.setRegs({ rip: BigInt(CODE), rsp: 0x8000n });
  vm.vm.KVM_SIGNAL_MSI({ address_lo: 0xfee00000, address_hi: 0, data: 0x50, flags: 0 });
  const next = () => {
    const exit = vm.run();
    if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
    return [exit.io.data[0], vm.vm.kvm.vcpus[0].apic?.chip.highest(0x100)];
  };
  expect(next()).toEqual([1, -1]);
  // Nothing is in service any more, so there is no second time.
  expect(next()).toEqual([0, -1]);
});

test("TSC: vCPUs written 0 share one clock; KVM_SET_TSC_KHZ scales beyond tsc_tolerance_ppm (api.rst 4.55)", () => {
  const vm = new TestVm([], { vcpus: 2, irqchip: true });
  vm.host.clock.pass(1_000_000);
  vm.vcpus[1].KVM_SET_MSRS([{ index: 0x10, data: 0n }]);
  const tsc = (i: number) => vm.vcpus[i].KVM_GET_MSRS([0x10])[0].data;
  expect(tsc(0)).toBe(tsc(1));
  const one = new TestVm([0x0f, 0x31, 0xf4]); // rdtsc
  expect(one.vcpu.KVM_GET_TSC_KHZ()).toBe(1_000_000);
  expect(one.vm.KVM_CHECK_EXTENSION(KvmCap.TSC_CONTROL)).toBe(1);
  expect(errno(() => one.vcpu.KVM_SET_TSC_KHZ(0x7fffffff))).toBe("EINVAL");
  one.vcpu.KVM_SET_TSC_KHZ(1_000_200);
  const ratio = () => one.vcpu.vcpu.arch.tscScalingRatio;
  expect(ratio()).toBe(1n << 48n);
  one.vcpu.KVM_SET_TSC_KHZ(2_000_000);
  expect(ratio()).toBe(2n << 48n);
  one.vcpu.KVM_SET_MSRS([{ index: 0x10, data: 1_000_000_000_000n }]);
  one.host.clock.pass(500_000);
  const before = one.vcpu.KVM_GET_MSRS([0x10])[0].data;
  expect(before).toBe(1_000_001_000_000n);
  one.run();
  const regs = one.vcpu.KVM_GET_REGS();
  const read = (regs.rdx << 32n) | regs.rax;
  expect(Number(read - before)).toBeLessThan(1000);
});
