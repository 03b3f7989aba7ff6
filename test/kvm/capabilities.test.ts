// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { openKvm } from "../../engine/kvm/api";
import { KvmCap, KvmExit } from "../../engine/kvm/uapi";
import { CODE, RAM_HVA, RAM_SIZE, TestHost, TestVm } from "./bench";
import { errno } from "./errno";

test("KVM_CHECK_EXTENSION: numbers where the kernel answers numbers, 0 for what there is not (api.rst 4.4)", () => {
  const { vm } = new TestVm([]);
  const value = (cap: number) => vm.KVM_CHECK_EXTENSION(cap);
  expect([KvmCap.NR_MEMSLOTS, KvmCap.COALESCED_MMIO, KvmCap.COALESCED_PIO, KvmCap.IRQ_ROUTING, KvmCap.MCE, KvmCap.XSAVE2, KvmCap.X2APIC_API].map(value))
    .toEqual([32764, 2, 1, 4096, 32, 4096, 3]);
  expect([KvmCap.ADJUST_CLOCK, KvmCap.EXIT_HYPERCALL, KvmCap.DISABLE_QUIRKS2, KvmCap.X86_DISABLE_EXITS].map(value)).toEqual([14, 1 << 12, 0x7f, 7]);
  expect([KvmCap.X86_SMM, KvmCap.NESTED_STATE, KvmCap.HYPERV, KvmCap.XEN_HVM, KvmCap.PV_MMU, KvmCap.GUEST_MEMFD, KvmCap.PMU_CAPABILITY].map(value)).toEqual([0, 0, 0, 0, 0, 0, 0]);
});

test("KVM_ENABLE_CAP refuses flags, unknown capabilities and arguments with bits that do not exist (api.rst 4.37, 7)", () => {
  const vm = openKvm(new TestHost()).KVM_CREATE_VM();
  const enable = (cap: number, arg: bigint, flags = 0) => errno(() => vm.KVM_ENABLE_CAP(cap, [arg], flags));
  expect(enable(KvmCap.DISABLE_QUIRKS2, 0x80n)).toBe("EINVAL");
  expect(enable(KvmCap.DISABLE_QUIRKS2, 0x7fn)).toBe("ok");
  expect(enable(KvmCap.DISABLE_QUIRKS, 1n, 1)).toBe("EINVAL");
  expect(enable(KvmCap.X86_USER_SPACE_MSR, 8n)).toBe("EINVAL");
  expect(enable(KvmCap.X86_USER_SPACE_MSR, 7n)).toBe("ok");
  expect(enable(KvmCap.HALT_POLL, 1n << 32n)).toBe("EINVAL");
  expect(enable(KvmCap.HALT_POLL, 1000n)).toBe("ok");
  expect(enable(KvmCap.X2APIC_API, 4n)).toBe("EINVAL");
  expect(enable(KvmCap.NR_VCPUS, 1n)).toBe("EINVAL");
  expect(enable(KvmCap.SPLIT_IRQCHIP, 5000n)).toBe("EINVAL");
  expect(enable(KvmCap.SPLIT_IRQCHIP, 24n)).toBe("ok");
  expect(enable(KvmCap.SPLIT_IRQCHIP, 24n)).toBe("EEXIST");
  expect(errno(() => vm.KVM_CREATE_IRQCHIP())).toBe("EEXIST");
  expect(errno(() => vm.KVM_CREATE_PIT2({ flags: 0 }))).toBe("ENOENT");
  expect(errno(() => vm.KVM_GET_IRQCHIP(0))).toBe("ENXIO");
  vm.KVM_CREATE_VCPU(0);
  expect(enable(KvmCap.X86_DISABLE_EXITS, 2n)).toBe("EINVAL");
  expect(enable(KvmCap.VM_DISABLE_NX_HUGE_PAGES, 0n)).toBe("EINVAL");
});

test("ioctls of things there are not: devices, SMM, MMU page limits, attributes (api.rst 4.79, 4.96, 4.17, 4.80)", () => {
  const { vm, vcpu, kvm } = new TestVm([]);
  expect(errno(() => vm.KVM_CREATE_DEVICE({ type: 4, flags: 0 }))).toBe("ENODEV");
  expect(errno(() => vcpu.KVM_SMI())).toBe("ENOTTY");
  expect(errno(() => vm.KVM_SET_NR_MMU_PAGES(63))).toBe("EINVAL");
  vm.KVM_SET_NR_MMU_PAGES(1024);
  expect(vm.KVM_GET_NR_MMU_PAGES()).toBe(1024);
  expect(errno(() => vcpu.KVM_HAS_DEVICE_ATTR({ flags: 0, group: 0, attr: 0n }))).toBe("ok");
  expect(errno(() => vcpu.KVM_GET_DEVICE_ATTR({ flags: 0, group: 1, attr: 0n }))).toBe("ENXIO");
  vcpu.KVM_SET_DEVICE_ATTR({ flags: 0, group: 0, attr: 0n }, 12345n);
  expect(vcpu.KVM_GET_DEVICE_ATTR({ flags: 0, group: 0, attr: 0n })).toBe(12345n);
  expect(kvm.KVM_GET_DEVICE_ATTR({ flags: 0, group: 0, attr: 0n }) & 3n).toBe(3n);
  expect(errno(() => kvm.KVM_GET_DEVICE_ATTR({ flags: 0, group: 0, attr: 7n }))).toBe("ENXIO");
});

test("lists and tables need room: E2BIG (api.rst 4.3, 4.46, 4.60)", () => {
  const { kvm, vcpu } = new TestVm([]);
  const { length } = kvm.KVM_GET_MSR_INDEX_LIST();
  expect(errno(() => kvm.KVM_GET_MSR_INDEX_LIST(length - 1))).toBe("E2BIG");
  expect(errno(() => kvm.KVM_GET_MSR_FEATURE_INDEX_LIST(0))).toBe("E2BIG");
  expect(errno(() => kvm.KVM_GET_SUPPORTED_CPUID(1))).toBe("E2BIG");
  expect(errno(() => vcpu.KVM_GET_CPUID2(1))).toBe("E2BIG");
  expect(kvm.KVM_GET_EMULATED_CPUID().map((e) => [e.function, e.ecx])).toEqual([[0, 0], [1, 1 << 22], [7, 1 << 22]]);
});

test("KVM_SET_SIGNAL_MASK: a signal it blocks does not interrupt KVM_RUN (api.rst 4.22)", () => {
  const vm = new TestVm([0xf4]);
  vm.vcpu.KVM_SET_SIGNAL_MASK(1n << 9n); // SIGUSR1
  vm.vcpu.signal(10);
  expect(vm.vcpu.KVM_RUN(100).kind).toBe("exit");
  vm.setRegs({ rip: BigInt(CODE) });
  vm.vcpu.signal(12);
  expect(vm.vcpu.KVM_RUN(100)).toEqual({ kind: "error", errno: 4 });
  expect(vm.vcpu.run.exit.exit_reason).toBe(KvmExit.INTR);
  vm.vcpu.clearSignal();
  vm.vcpu.KVM_SET_SIGNAL_MASK(null);
  expect(vm.vcpu.KVM_RUN(100).kind).toBe("exit");
});

test("KVM_GET_XSAVE is an XSAVE area in the standard format; components left out are reset (api.rst 4.42)", () => {
  const { vcpu } = new TestVm([]);
  const fpu = vcpu.KVM_GET_FPU();
  fpu.xmm.set(Array.from({ length: 256 }, (_, i) => i));
  vcpu.KVM_SET_FPU({ ...fpu, mxcsr: 0x1fa0, fcw: 0x27f });
  const area = vcpu.KVM_GET_XSAVE();
  const view = new DataView(area.buffer);
  expect([area.length, view.getUint16(0, true), view.getUint32(24, true), view.getUint32(28, true)]).toEqual([4096, 0x27f, 0x1fa0, 0xffff]);
  expect([...area.subarray(160, 168)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  expect(Number(view.getBigUint64(512, true)) & 3).toBe(3);
  view.setBigUint64(512, 2n, true); // x87 left out
  vcpu.KVM_SET_XSAVE(area);
  expect([vcpu.KVM_GET_FPU().fcw, vcpu.KVM_GET_FPU().mxcsr]).toEqual([0x37f, 0x1fa0]);
  view.setBigUint64(512, 1n << 63n, true);
  expect(errno(() => vcpu.KVM_SET_XSAVE(area))).toBe("EINVAL");
  view.setBigUint64(512, 3n, true);
  view.setBigUint64(520, 1n, true); // compacted format
  expect(errno(() => vcpu.KVM_SET_XSAVE(area))).toBe("EINVAL");
  view.setBigUint64(520, 0n, true);
  view.setUint32(24, 0x10000, true);
  expect(errno(() => vcpu.KVM_SET_XSAVE(area))).toBe("EINVAL");
});

test("a statistics file has header, name, descriptors and values at their offsets (api.rst 4.133)", () => {
  const vm = new TestVm([0xf4]);
  vm.run();
  const fd = vm.vcpu.KVM_GET_STATS_FD();
  const header = new DataView(fd.read(0, 24).buffer);
  const [flags, nameSize, descriptors, idOffset, descOffset, dataOffset] = [0, 4, 8, 12, 16, 20].map((at) => header.getUint32(at, true));
  expect([flags, nameSize, idOffset, descOffset]).toEqual([0, 48, 24, 72]);
  expect(dataOffset).toBe(descOffset + descriptors * 64);
  const text = (at: number) => String.fromCharCode(...fd.read(at, 48)).replace(/\0.*$/s, "");
  expect(text(idOffset)).toMatch(/^kvm-\d+\/vcpu-0$/);
  const names = Array.from({ length: descriptors }, (_, i) => text(descOffset + i * 64 + 16));
  expect(names.slice(0, 3)).toEqual(["halt_successful_poll", "halt_attempted_poll", "halt_poll_invalid"]);
  const stat = (name: string) => {
    const i = names.indexOf(name);
    const desc = new DataView(fd.read(descOffset + i * 64, 16).buffer);
    const value = new DataView(fd.read(dataOffset + desc.getUint32(8, true), 8).buffer).getBigUint64(0, true);
    return { flags: desc.getUint32(0, true), exponent: desc.getInt16(4, true), size: desc.getUint16(6, true), value };
  };
  expect(stat("exits")).toEqual({ flags: 0, exponent: 0, size: 1, value: BigInt(vm.vcpu.stats.exits) });
  expect(stat("halt_exits").value).toBe(1n);
  expect(stat("halt_wait_ns")).toMatchObject({ flags: 0x20, exponent: -9 });
  expect(stat("guest_mode").flags).toBe(0x41);
  expect(fd.read(dataOffset + descriptors * 8, 8).length).toBe(0);
  fd.close();
  expect(errno(() => fd.read(0, 4))).toBe("EBADF");
  const vmFd = vm.vm.KVM_GET_STATS_FD();
  expect(String.fromCharCode(...vmFd.read(24, 4))).toBe("kvm-");
});

test("MCE: an uncorrected error raises #MC if it is enabled, a second one in progress is a shutdown (api.rst 4.107)", () => {
  const vm = new TestVm([0xf4]);
  const VAL = 1n << 63n;
  const UC = 1n << 61n;
  const PCC = 1n << 57n;
  const mce = { status: VAL | UC | PCC, addr: 0x1234n, misc: 5n, mcg_status: 4n, bank: 1 };
  vm.vcpu.KVM_X86_SETUP_MCE(0x10aan & 0x1000104n | 0x100n | 4n);
  expect(errno(() => vm.vcpu.KVM_X86_SET_MCE({ ...mce, bank: 4 }))).toBe("EINVAL");
  expect(errno(() => vm.vcpu.KVM_X86_SET_MCE({ ...mce, status: UC }))).toBe("EINVAL");
  const bank = () => vm.vcpu.KVM_GET_MSRS([0x405, 0x406, 0x407, 0x17a]).map((m) => m.data);
  // A corrected error is only recorded; another one overflows.
  vm.vcpu.KVM_X86_SET_MCE({ ...mce, status: VAL, mcg_status: 0n });
  expect(bank()).toEqual([VAL, 0x1234n, 5n, 0n]);
  vm.vcpu.KVM_X86_SET_MCE({ ...mce, status: VAL, mcg_status: 0n });
  expect(bank()[0]).toBe(VAL | (1n << 62n));
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, cr4: sregs.cr4 | 0x40n });
  vm.host.poke(18 * 4, [0x00, 0x20, 0, 0]);
  vm.host.poke(0x2000, [0xf4]);
  vm.vcpu.KVM_X86_SET_MCE(mce);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(0x2001n);
  vm.vcpu.KVM_X86_SET_MCE(mce);
  expect(vm.run().exit_reason).toBe(KvmExit.SHUTDOWN);
});

test("MSR filter: ranges and bitmaps are checked; a denied access is #GP or, if asked for, userspace's (api.rst 4.97, 7.21)", () => {
  const RDMSR = [0x0f, 0x32, 0xf4];
  const vm = new TestVm(RDMSR);
  vm.host.poke(13 * 4, [0x00, 0x20, 0, 0]);
  vm.host.poke(0x2000, [0xf4]);
  const range = (change: object = {}) => ({ flags: 3, nmsrs: 8, base: 0x174, bitmap: new Uint8Array(1), ...change });
  const set = (ranges: ReturnType<typeof range>[], flags = 0) => errno(() => vm.vm.KVM_X86_SET_MSR_FILTER({ flags, ranges }));
  expect(set([], 1)).toBe("EINVAL"); // denies everything
  expect(set([range()], 2)).toBe("EINVAL");
  expect(set([range({ flags: 0 })])).toBe("EINVAL");
  expect(set([range({ flags: 4 })])).toBe("EINVAL");
  expect(set([range({ nmsrs: 0x600 * 8 + 1, bitmap: new Uint8Array(0x601) })])).toBe("EINVAL");
  expect(set(Array.from({ length: 17 }, () => range()))).toBe("EINVAL");
  expect(set([])).toBe("ok");
  expect(set([range({ bitmap: Uint8Array.of(0b101) })])).toBe("ok"); // 0x175 and others are denied, 0x174 and 0x176 are not
  const read = (index: number) => {
    vm.setRegs({ rip: BigInt(CODE), rcx: BigInt(index), rsp: 0x8000n, rax: 0n, rdx: 0n });
    return vm.run();
  };
  const faulted = () => vm.vcpu.KVM_GET_REGS().rip === 0x2001n;
  expect([read(0x174).exit_reason, faulted()]).toEqual([KvmExit.HLT, false]);
  expect([read(0x175).exit_reason, faulted()]).toEqual([KvmExit.HLT, true]);
  vm.vm.KVM_ENABLE_CAP(KvmCap.X86_USER_SPACE_MSR, [6n]);
  const exit = read(0x175);
  if (exit.exit_reason !== KvmExit.X86_RDMSR) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.msr).toEqual({ error: 0, reason: 4, index: 0x175, data: 0n });
  exit.msr.data = 0x1122334455667788n;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const { rax, rdx } = vm.vcpu.KVM_GET_REGS();
  expect([rax, rdx]).toEqual([0x55667788n, 0x11223344n]);
  const unknown = read(0x1234);
  if (unknown.exit_reason !== KvmExit.X86_RDMSR) throw new Error(`exit ${unknown.exit_reason}`);
  expect(unknown.msr.reason).toBe(2);
  unknown.msr.error = 1;
  expect([vm.run().exit_reason, faulted()]).toEqual([KvmExit.HLT, true]);
  // Userspace's own accesses are not filtered.
  expect(vm.vcpu.KVM_GET_MSRS([0x175]).length).toBe(1);
});

test("split irqchip: KVM_INTERRUPT is the PIC's, one at a time (api.rst 4.16, 7.5)", () => {
  const host = new TestHost();
  const kvm = openKvm(host);
  const vm = kvm.KVM_CREATE_VM();
  vm.KVM_ENABLE_CAP(KvmCap.SPLIT_IRQCHIP, [24n]);
  vm.KVM_SET_USER_MEMORY_REGION({ slot: 0, flags: 0, guest_phys_addr: 0, memory_size: RAM_SIZE, userspace_addr: RAM_HVA });
  const vcpu = vm.KVM_CREATE_VCPU(0);
  vcpu.KVM_SET_CPUID2(kvm.KVM_GET_SUPPORTED_CPUID());
  host.poke(CODE, [0xfb, 0x90, 0xeb, 0xfe]); // sti; nop; jmp $
  host.poke(0x20 * 4, [0x00, 0x20, 0, 0]);
  host.poke(0x2000, [0xe6, 0x10]); // out 0x10, al
  const sregs = vcpu.KVM_GET_SREGS();
  vcpu.KVM_SET_SREGS({ ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } });
  vcpu.KVM_SET_REGS({ ...vcpu.KVM_GET_REGS(), rip: BigInt(CODE), rsp: 0x8000n });
  vcpu.KVM_INTERRUPT(0x20);
  expect(errno(() => vcpu.KVM_INTERRUPT(0x21))).toBe("EEXIST");
  expect(vcpu.KVM_RUN(10_000).kind).toBe("exit");
  expect(vcpu.run.exit.exit_reason).toBe(KvmExit.IO);
  // The EOI of a level-triggered interrupt of userspace's I/O APIC leaves KVM_RUN.
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([{ gsi: 4, type: 1, irqchip: 2, pin: 4 }]))).toBe("EINVAL");
  vm.KVM_SET_GSI_ROUTING([{ gsi: 4, type: 2, address_lo: 0xfee00000, address_hi: 0, data: 0x8051 }]);
  const apic = vm.kvm.vcpus[0].apic;
  apic?.chip.write(0xf0, 4, 0x1ff);
  expect(vm.KVM_IRQ_LINE({ irq: 4, level: 1 })).toBe(1);
  apic?.getInterrupt();
  apic?.setEoi();
  expect(vcpu.KVM_RUN(10_000).kind).toBe("exit");
  const eoi = vcpu.run.exit;
  if (eoi.exit_reason !== KvmExit.IOAPIC_EOI) throw new Error(`exit ${eoi.exit_reason}`);
  expect(eoi.eoi.vector).toBe(0x51);
});
