// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { EventFd, openKvm } from "../../engine/kvm/api";
import { KVM_COALESCED_MMIO_MAX } from "../../engine/kvm/coalescedMmio";
import { KvmExit, KvmIoeventfdFlag, KvmIrqfdFlag } from "../../engine/kvm/uapi";
import { TestHost, TestVm } from "./bench";
import { errno } from "./errno";

const count = (fd: EventFd) => Number(fd.state.count);

test("an eventfd counts, gives its count away, and takes no more than 2^64 - 2 (eventfd(2))", () => {
  const fd = new EventFd();
  expect(errno(() => fd.read())).toBe("EAGAIN");
  fd.write(3n);
  fd.signal();
  expect(fd.read()).toBe(4n);
  expect(errno(() => fd.write((1n << 64n) - 1n))).toBe("EINVAL");
  fd.write((1n << 64n) - 2n);
  expect(errno(() => fd.write(1n))).toBe("EAGAIN");
  fd.close();
  expect(errno(() => fd.read())).toBe("EBADF");
  const semaphore = new EventFd(2n, true);
  expect([semaphore.read(), semaphore.read()]).toEqual([1n, 1n]);
});

test("KVM_IOEVENTFD refuses odd lengths, unknown flags, a match without a length and what is there already (api.rst 4.59)", () => {
  const { vm } = new TestVm([]);
  const fd = new EventFd();
  const other = new EventFd();
  const set = (change: object) => errno(() => vm.KVM_IOEVENTFD({ addr: 0x100, len: 4, fd, flags: 0, ...change }));
  expect(set({ len: 3 })).toBe("EINVAL");
  expect(set({ flags: 16 })).toBe("EINVAL");
  expect(set({ len: 0, flags: KvmIoeventfdFlag.DATAMATCH })).toBe("EINVAL");
  expect(set({ addr: 2 ** 64 })).toBe("EINVAL");
  expect(set({})).toBe("ok");
  expect(set({ fd: other })).toBe("EEXIST");
  expect(set({ fd: other, flags: KvmIoeventfdFlag.DATAMATCH, datamatch: 1n })).toBe("EEXIST"); // the first takes any value
  expect(set({ fd: other, len: 0 })).toBe("EEXIST");
  expect(set({ fd: other, len: 2 })).toBe("ok");
  expect(set({ fd: other, flags: KvmIoeventfdFlag.PIO })).toBe("ok"); // another bus
  expect(set({ fd: other, flags: KvmIoeventfdFlag.DEASSIGN })).toBe("ENOENT");
  expect(set({ flags: KvmIoeventfdFlag.DEASSIGN })).toBe("ok");
  expect(set({ flags: KvmIoeventfdFlag.DEASSIGN })).toBe("ENOENT");
  fd.close();
  expect(set({ addr: 0x200 })).toBe("EBADF");
});

test("a matching port write signals without an exit, others go to userspace (ioeventfd_in_range)", () => {
  const vm = new TestVm([
    0xb0, 0x11, 0xe6, 0x70, // mov al, 0x11; out 0x70, al
    0xb0, 0x22, 0xe6, 0x70, // mov al, 0x22; out 0x70, al
    0xe7, 0x70,             // out 0x70, ax
    0xf4,
  ]);
  const fd = new EventFd();
  vm.vm.KVM_IOEVENTFD({ addr: 0x70, len: 1, fd, flags: KvmIoeventfdFlag.PIO | KvmIoeventfdFlag.DATAMATCH, datamatch: 0x22n });
  const first = vm.run();
  if (first.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  expect([first.io.data[0], count(fd)]).toEqual([0x11, 0]);
  const second = vm.run();
  if (second.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  expect([second.io.size, count(fd)]).toEqual([2, 1]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
});

test("an MMIO write of any length signals when the length is 0, without the emulator (fast MMIO bus)", () => {
  const vm = new TestVm([
    0xa3, 0x00, 0x00, 0x00, 0xe0,             // mov [0xe0000000], eax
    0xa3, 0x00, 0x00, 0x00, 0xe0,
    0xa2, 0x00, 0x00, 0x00, 0xe0,             // mov [0xe0000000], al
    0xc7, 0x05, 0x08, 0x00, 0x00, 0xe0, 0x05, 0, 0, 0, // mov dword [0xe0000008], 5
    0xf4,
  ]);
  vm.protectedMode();
  const any = new EventFd();
  const five = new EventFd();
  vm.vm.KVM_IOEVENTFD({ addr: 0xe0000000, len: 0, fd: any, flags: 0 });
  vm.vm.KVM_IOEVENTFD({ addr: 0xe0000008, len: 4, fd: five, flags: KvmIoeventfdFlag.DATAMATCH, datamatch: 5n });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect([count(any), count(five)]).toEqual([3, 1]);
  // The first access builds the MMIO entry by way of the emulator, the next two are fast.
  expect(vm.vcpu.stats.insn_emulation).toBe(2);
});

test("KVM_IRQFD needs an irqchip in the kernel and an eventfd of its own (api.rst 4.75)", () => {
  const bare = openKvm(new TestHost()).KVM_CREATE_VM();
  const fd = new EventFd();
  expect(errno(() => bare.KVM_IRQFD({ fd, gsi: 5, flags: 0 }))).toBe("EINVAL");
  const vm = openKvm(new TestHost()).KVM_CREATE_VM();
  vm.KVM_CREATE_IRQCHIP();
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 5, flags: 4 }))).toBe("EINVAL");
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 5, flags: KvmIrqfdFlag.RESAMPLE }))).toBe("EBADF");
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 5, flags: 0 }))).toBe("ok");
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 6, flags: 0 }))).toBe("EBUSY");
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 6, flags: KvmIrqfdFlag.DEASSIGN }))).toBe("ok"); // nothing to do
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 5, flags: KvmIrqfdFlag.DEASSIGN }))).toBe("ok");
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 6, flags: 0 }))).toBe("ok");
  fd.close();
  expect(errno(() => vm.KVM_IRQFD({ fd, gsi: 6, flags: 0 }))).toBe("EBADF");
});

test("a signalled irqfd is an edge at its GSI, and takes the eventfd's count (irqfd_inject)", () => {
  const { vm } = new TestVm([], { irqchip: true });
  const fd = new EventFd();
  vm.KVM_IRQFD({ fd, gsi: 5, flags: 0 });
  fd.write(1n);
  const pic = vm.KVM_GET_IRQCHIP(0);
  if (pic.chip_id !== 0) throw new Error("no PIC");
  expect([pic.pic.irr & 0x20, count(fd)]).toEqual([0x20, 0]);
  // Events before the assignment count as well.
  const early = new EventFd(1n);
  vm.KVM_IRQFD({ fd: early, gsi: 6, flags: 0 });
  const after = vm.KVM_GET_IRQCHIP(0);
  if (after.chip_id !== 0) throw new Error("no PIC");
  expect(after.pic.irr & 0x40).toBe(0x40);
});

test("a resampling irqfd keeps its line high until the guest's EOI, and then asks its device (irqfd_resampler_ack)", () => {
  const vm = new TestVm([], { irqchip: true });
  const trigger = new EventFd();
  const resample = new EventFd();
  vm.vm.KVM_IRQFD({ fd: trigger, gsi: 10, flags: KvmIrqfdFlag.RESAMPLE, resamplefd: resample });
  const kvm = vm.vm.kvm;
  // I/O APIC pin 10: level-triggered, vector 0x50, to APIC 0.
  kvm.vioapic?.chip.write(0, 4, 0x10 + 20);
  kvm.vioapic?.chip.write(0x10, 4, 0x8050);
  const apic = kvm.vcpus[0].apic;
  apic?.chip.write(0xf0, 4, 0x1ff);
  trigger.signal();
  const remoteIrr = () => ((kvm.vioapic?.state.low[10] ?? 0) >> 14) & 1;
  expect([apic?.hasInterrupt(), remoteIrr(), kvm.arch.irqStates[10]]).toEqual([0x50, 1, 2]);
  apic?.getInterrupt();
  apic?.setEoi();
  expect([remoteIrr(), kvm.arch.irqStates[10], count(resample)]).toEqual([0, 0, 1]);
});

test("coalesced zones collect writes in the ring until it is full; reads and a full ring go to userspace (api.rst 4.116)", () => {
  const vm = new TestVm([
    0xa3, 0x10, 0x00, 0x00, 0xe0,       // mov [0xe0000010], eax
    0xe6, 0x92,                         // out 0x92, al
    0xb9, 0xc8, 0, 0, 0,                // mov ecx, 200
    0xa3, 0x14, 0x00, 0x00, 0xe0,       // again: mov [0xe0000014], eax
    0xe2, 0xf9,                         // loop again
    0xf4,
  ]);
  vm.protectedMode();
  const zone = { addr: 0xe0000000, size: 0x100, pio: 0 };
  expect(errno(() => vm.vm.KVM_REGISTER_COALESCED_MMIO({ ...zone, pio: 2 }))).toBe("EINVAL");
  vm.vm.KVM_REGISTER_COALESCED_MMIO(zone);
  vm.vm.KVM_REGISTER_COALESCED_MMIO({ addr: 0x92, size: 1, pio: 1 });
  vm.setRegs({ rip: 0x1000n, rax: 0x11223344n });
  const exit = vm.run();
  const ring = vm.vm.coalescedMmioRing;
  expect(exit.exit_reason).toBe(KvmExit.MMIO);
  expect([ring.first, ring.last]).toEqual([0, KVM_COALESCED_MMIO_MAX - 1]);
  expect(ring.coalesced_mmio.slice(0, 2).map((e) => [e.phys_addr, e.len, e.pio, [...e.data.subarray(0, e.len)]])).toEqual([
    [0xe0000010, 4, 0, [0x44, 0x33, 0x22, 0x11]], [0x92, 1, 1, [0x44]],
  ]);
  ring.first = ring.last;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  vm.vm.KVM_UNREGISTER_COALESCED_MMIO(zone);
  vm.setRegs({ rip: 0x1000n });
  expect(vm.run().exit_reason).toBe(KvmExit.MMIO);
});
