import { expect, test } from "vitest";
import { Errno, KvmError, openKvm } from "../../engine/kvm/api";
import { kvmSlotPageTrackAddPage, kvmSlotPageTrackRemovePage } from "../../engine/kvm/mmu/pageTrack";
import { KVM_PARAMS } from "../../engine/kvm/params";
import { encodeKvmRun, KvmCap, KvmExit, newKvmRun } from "../../engine/kvm/uapi";
import { msrIntercepted } from "../../engine/kvm/vmx/msrBitmap";
import { CODE, RAM_HVA, RAM_SIZE, TestHost, TestVm } from "./bench";

/** Name of the errno an ioctl fails with, or "ok". */
function errno(ioctl: () => unknown): string {
  try {
    ioctl();
    return "ok";
  } catch (error) {
    if (error instanceof KvmError) {
      expect(error.number).toBe(Errno[error.errno]);
      return error.errno;
    }
    throw error;
  }
}

const region = { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 0x100000, userspace_addr: RAM_HVA };

function emptyVm() {
  const host = new TestHost();
  const kvm = openKvm(host);
  return { host, kvm, vm: kvm.KVM_CREATE_VM() };
}

test("/dev/kvm: version 12, three mapped pages, extensions with their numbers, 0 for what there is not (api.rst 4.1 to 4.5)", () => {
  const { kvm, vm } = emptyVm();
  expect(kvm.KVM_GET_API_VERSION()).toBe(12);
  expect(kvm.KVM_GET_VCPU_MMAP_SIZE()).toBe(3 * 4096);
  expect(kvm.KVM_CHECK_EXTENSION(KvmCap.USER_MEMORY)).toBe(1);
  expect(kvm.KVM_CHECK_EXTENSION(KvmCap.NR_MEMSLOTS)).toBe(32764);
  expect(kvm.KVM_CHECK_EXTENSION(KvmCap.NESTED_STATE)).toBe(0);
  expect(vm.KVM_CHECK_EXTENSION(9999)).toBe(0);
  expect(errno(() => kvm.KVM_CREATE_VM(1))).toBe("EINVAL");
});

test("the first VM puts the processors into VMX operation, the last one closed takes them out (hardware_enable_all)", () => {
  const host = new TestHost(2);
  const kvm = openKvm(host);
  expect(host.processors.map((p) => p.vmx.on)).toEqual([false, false]);
  const first = kvm.KVM_CREATE_VM();
  const second = kvm.KVM_CREATE_VM();
  expect(host.processors.map((p) => p.vmx.on)).toEqual([true, true]);
  first.close();
  expect(host.processors[0].vmx.on).toBe(true);
  second.close();
  expect(host.processors.map((p) => p.vmx.on)).toEqual([false, false]);
});

test("KVM_SET_USER_MEMORY_REGION fails as __kvm_set_memory_region does", () => {
  const { vm } = emptyVm();
  const set = (change: Partial<typeof region>) => errno(() => vm.KVM_SET_USER_MEMORY_REGION({ ...region, ...change }));
  expect(set({ memory_size: 0 })).toBe("EINVAL"); // nothing to delete
  expect(set({ memory_size: 0x1001 })).toBe("EINVAL");
  expect(set({ guest_phys_addr: 0x800 })).toBe("EINVAL");
  expect(set({ userspace_addr: RAM_HVA + 1 })).toBe("EINVAL");
  expect(set({ userspace_addr: 2 ** 47 })).toBe("EINVAL");
  expect(set({ flags: 4 })).toBe("EINVAL");
  expect(set({ slot: 32764 })).toBe("EINVAL"); // private slots
  expect(set({ slot: 0x10000 })).toBe("EINVAL"); // no SMM address space
  expect(set({})).toBe("ok");
  expect(set({})).toBe("ok"); // nothing changes
  expect(set({ slot: 1, guest_phys_addr: 0xff000 })).toBe("EEXIST");
  expect(set({ memory_size: 0x200000 })).toBe("EINVAL"); // a slot keeps its size
  expect(set({ userspace_addr: RAM_HVA + 0x1000 })).toBe("EINVAL"); // and its memory
  expect(set({ flags: 2 })).toBe("EINVAL"); // and its access
  expect(set({ guest_phys_addr: 0x200000 })).toBe("ok"); // but may move
  expect(set({ slot: 1, guest_phys_addr: 0 })).toBe("ok");
  expect(set({ memory_size: 0 })).toBe("ok");
});

test("each memslot change makes the other set active and raises the generation; deleting and moving take two steps (kvm_swap_active_memslots)", () => {
  const { vm } = emptyVm();
  const space = () => vm.kvm.state.memslots[0];
  const active = () => ({ set: space().active, generation: space().sets[space().active].generation });
  expect(active()).toEqual({ set: 0, generation: 0 });
  vm.KVM_SET_USER_MEMORY_REGION(region);
  expect(active()).toEqual({ set: 1, generation: 1 });
  vm.KVM_SET_USER_MEMORY_REGION({ ...region, flags: 1 });
  expect(active()).toEqual({ set: 0, generation: 2 });
  vm.KVM_SET_USER_MEMORY_REGION({ ...region, flags: 1, memory_size: 0 });
  expect(active()).toEqual({ set: 0, generation: 4 });
  expect(space().sets[0].slots).toEqual([]);
});

test("vCPU ids are unique and below the limit; irqchip and PIT come in order (kvm_vm_ioctl_create_vcpu, KVM_CREATE_IRQCHIP)", () => {
  const { vm } = emptyVm();
  expect(errno(() => vm.KVM_CREATE_PIT2({ flags: 0 }))).toBe("ENOENT");
  expect(errno(() => vm.KVM_IRQ_LINE({ irq: 0, level: 1 }))).toBe("ENXIO");
  expect(errno(() => vm.KVM_GET_IRQCHIP(0))).toBe("ENXIO");
  vm.KVM_CREATE_IRQCHIP();
  expect(errno(() => vm.KVM_CREATE_IRQCHIP())).toBe("EEXIST");
  vm.KVM_CREATE_PIT2({ flags: 0 });
  expect(errno(() => vm.KVM_CREATE_PIT2({ flags: 0 }))).toBe("EEXIST");
  expect(errno(() => vm.KVM_GET_IRQCHIP(3))).toBe("EINVAL");
  const vcpu = vm.KVM_CREATE_VCPU(5);
  expect(errno(() => vm.KVM_CREATE_VCPU(5))).toBe("EEXIST");
  expect(errno(() => vm.KVM_CREATE_VCPU(255))).toBe("EINVAL");
  expect(errno(() => vm.KVM_CREATE_VCPU(-1))).toBe("EINVAL");
  expect(errno(() => vcpu.KVM_INTERRUPT(0x20))).toBe("ENXIO");
  expect(errno(() => vcpu.KVM_INTERRUPT(256))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_IDENTITY_MAP_ADDR(0xfeffc000))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_BOOT_CPU_ID(1))).toBe("EBUSY");

  const { vm: late } = emptyVm();
  late.KVM_CREATE_VCPU(0);
  expect(errno(() => late.KVM_CREATE_IRQCHIP())).toBe("EINVAL");
});

test("KVM_SET_GSI_ROUTING refuses chips and pins that do not exist and a GSI that goes twice to one chip (irqchip.c)", () => {
  const { vm } = emptyVm();
  const route = (gsi: number, irqchip: number, pin: number) => ({ gsi, type: 1 as const, irqchip, pin });
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(0, 0, 0)]))).toBe("EINVAL"); // no irqchip
  vm.KVM_CREATE_IRQCHIP();
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(0, 0, 8)]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(0, 2, 24)]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(4096, 2, 2)]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(0, 2, 2), route(0, 2, 3)]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([route(0, 2, 2), route(0, 0, 0)]))).toBe("ok");
});

test("a power-up vCPU has the registers of SDM 3A table 9-1", () => {
  const { vm } = emptyVm();
  const vcpu = vm.KVM_CREATE_VCPU(0);
  const regs = vcpu.KVM_GET_REGS();
  expect([regs.rip, regs.rflags, regs.rax, regs.rdx]).toEqual([0xfff0n, 2n, 0n, 0x600n]);
  const sregs = vcpu.KVM_GET_SREGS();
  expect([sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer]).toEqual([0x60000010n, 0n, 0n, 0n]);
  expect([sregs.cs.selector, sregs.cs.base, sregs.cs.limit]).toEqual([0xf000, 0xffff0000n, 0xffff]);
  expect(sregs.apic_base).toBe(0xfee00900n);
  const dr = vcpu.KVM_GET_DEBUGREGS();
  expect([dr.dr6, dr.dr7]).toEqual([0xffff0ff0n, 0x400n]);
  expect(vcpu.KVM_GET_FPU().fcw).toBe(0x37f);
  expect(vcpu.KVM_GET_MP_STATE()).toBe(0);
});

test("KVM_SET_SREGS refuses combinations no processor has (kvm_is_valid_sregs)", () => {
  const vm = new TestVm([]);
  const set = (change: object) => errno(() => vm.vcpu.KVM_SET_SREGS({ ...vm.vcpu.KVM_GET_SREGS(), ...change }));
  expect(set({ cr0: 0x80000010n })).toBe("EINVAL"); // PG without PE
  expect(set({ cr0: 0x20000011n })).toBe("EINVAL"); // NW without CD
  expect(set({ cr0: 0x80000011n, efer: 0x500n, cr4: 0n })).toBe("EINVAL"); // long mode without PAE
  expect(set({ efer: 0x400n })).toBe("EINVAL"); // LMA without LME and PG
  expect(set({ cr4: 0x2000n })).toBe("EINVAL"); // VMXE without nested virtualization
  expect(set({ apic_base: 0xfee00400n })).toBe("EINVAL"); // x2APIC without EN
  expect(set({})).toBe("ok");
});

test("KVM_SET_MSRS stops at the first MSR that does not take its value and says how many were set (api.rst 4.19)", () => {
  const vm = new TestVm([]);
  const done = vm.vcpu.KVM_SET_MSRS([
    { index: 0x174, data: 0x10n },
    { index: 0x277, data: 0x0007040600070406n },
    { index: 0x277, data: 2n },
    { index: 0x175, data: 1n },
  ]);
  expect(done).toBe(2);
  expect(vm.vcpu.KVM_GET_MSRS([0x174, 0x175, 0x99999, 0x176])).toEqual([
    { index: 0x174, data: 0x10n },
    { index: 0x175, data: 0n },
  ]);
});

test("every MSR of KVM_GET_MSR_INDEX_LIST can be read and written back (api.rst 4.3)", () => {
  const vm = new TestVm([], { irqchip: true });
  const list = vm.kvm.KVM_GET_MSR_INDEX_LIST();
  const values = vm.vcpu.KVM_GET_MSRS(list);
  expect(values.map((v) => v.index)).toEqual(list);
  expect(vm.vcpu.KVM_SET_MSRS(values)).toBe(list.length);
});

test("KVM_TRANSLATE walks the guest's paging (api.rst 4.14)", () => {
  const vm = new TestVm([]);
  vm.longMode();
  expect(vm.vcpu.KVM_TRANSLATE(0x123456n)).toMatchObject({ valid: 1, physical_address: 0x123456n });
  expect(vm.vcpu.KVM_TRANSLATE(0x8000_0000n)).toMatchObject({ valid: 0 });
  expect(vm.vcpu.probe(0x123456n)).toBe(0x123456);
  expect(vm.vcpu.probe(0x8000_0000n)).toBe(-1);
});

test("module parameters: unknown, of the wrong type, and not honoured ones are errors that name the parameter", () => {
  const open = (params: Record<string, boolean | number>) => () => openKvm(new TestHost(), params);
  expect(open({ npt: true })).toThrow(/npt does not exist/);
  expect(open({ ept: 1 })).toThrow(/ept=1: a bool is expected/);
  expect(open({ ple_gap: -1 })).toThrow(/ple_gap=-1: a uint is expected/);
  expect(open({ tdp_mmu: false })).toThrow(/tdp_mmu=false: only true is supported by this model \(the shadow MMU/);
  expect(open({ nested: true })).toThrow(/nested=true: only false is supported/);
  expect(open({ ple_gap: 0, vpid: false, halt_poll_ns: 0 })).not.toThrow();
  for (const p of KVM_PARAMS) {
    expect(p.help.length).toBeGreaterThan(10);
    expect(p.honoured || p.why.length > 10, p.name).toBe(true);
  }
});

test("KVM_RUN with reserved kvm_valid_regs is EINVAL; register sets travel in kvm_run (KVM_CAP_SYNC_REGS)", () => {
  const vm = new TestVm([0xf4]);
  vm.vcpu.run.kvm_valid_regs = 8n;
  expect(vm.vcpu.KVM_RUN(10)).toEqual({ kind: "error", errno: Errno.EINVAL });
  vm.vcpu.run.kvm_valid_regs = 3n;
  vm.vcpu.run.s.regs = { ...vm.vcpu.KVM_GET_REGS(), rbx: 0x55n };
  vm.vcpu.run.kvm_dirty_regs = 1n;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.run.s.regs?.rbx).toBe(0x55n);
  expect(vm.vcpu.run.s.sregs?.cs.base).toBe(0n);
  expect(vm.vcpu.run.kvm_dirty_regs).toBe(0n);
});

test("kvm_run as bytes has the offsets of struct kvm_run (uapi/linux/kvm.h)", () => {
  const run = newKvmRun();
  run.immediate_exit = 1;
  run.cr8 = 7n;
  run.exit = {
    exit_reason: KvmExit.MMIO,
    mmio: { phys_addr: 0xfee000b0, data: new Uint8Array([1, 2, 3, 4, 0, 0, 0, 0]), len: 4, is_write: 1 },
  };
  const view = new DataView(encodeKvmRun(run).buffer);
  expect(view.getUint8(1)).toBe(1);
  expect(view.getUint32(8, true)).toBe(6);
  expect(view.getBigUint64(16, true)).toBe(7n);
  expect(view.getBigUint64(32, true)).toBe(0xfee000b0n);
  expect(view.getUint32(40, true)).toBe(0x04030201);
  expect([view.getUint32(48, true), view.getUint8(52)]).toEqual([4, 1]);
});

test("the whole RAM can be one slot, and the guest's last byte is memory", () => {
  const vm = new TestVm([0xa0, 0xff, 0xff, 0x7f, 0x00, 0xf4]); // mov al, [0x7fffff]; hlt
  vm.protectedMode();
  vm.host.poke(RAM_SIZE - 1, [0x5a]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rax & 0xffn).toBe(0x5an);
});

test("write tracking: a tracked frame is mapped read-only, so that writes reach the emulator and still land in memory (page_track.c)", () => {
  const vm = new TestVm([0xa3, 0x00, 0x00, 0x50, 0x00, 0xa1, 0x00, 0x00, 0x50, 0x00, 0xf4]); // mov [0x500000], eax; mov eax, [0x500000]; hlt
  vm.protectedMode();
  const slot = vm.vm.kvm.state.memslots[0].sets[vm.vm.kvm.state.memslots[0].active].slots[0];
  kvmSlotPageTrackAddPage(vm.vm.kvm, slot, 0x500);
  const { regs } = vm.vcpu.vcpu.arch;
  regs[0] = 0x99n;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.host.peek32(0x500000)).toBe(0x99);
  expect(vm.vcpu.stats.insn_emulation).toBe(1);
  kvmSlotPageTrackRemovePage(vm.vm.kvm, slot, 0x500);
  vm.setRegs({ rip: BigInt(CODE), rax: 0x77n });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.host.peek32(0x500000)).toBe(0x77);
  expect(vm.vcpu.stats.insn_emulation).toBe(1);
});

test("the MSR bitmap lets through what is in the processor while the guest runs, and nothing else (vmx_vcpu_create)", () => {
  const vm = new TestVm([]);
  const passes = (index: number, write: boolean) => !msrIntercepted(vm.vcpu.vcpu, index, write);
  expect([passes(0xc0000100, true), passes(0xc0000102, false), passes(0x174, true)]).toEqual([true, true, true]);
  expect([passes(0x10, false), passes(0x10, true)]).toEqual([true, false]);
  expect([passes(0xc0000080, false), passes(0xc0000082, true), passes(0x1b, false)]).toEqual([false, false, false]);
});
