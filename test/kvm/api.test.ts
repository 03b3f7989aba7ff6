import { expect, test } from "vitest";
import { Errno, KvmError, openKvm } from "../../engine/kvm/api";
import { KvmCap, KvmExit, KvmGuestdbg, KvmInternalError, KvmIrqchip, KvmVcpuEvent } from "../../engine/kvm/uapi";
import { CODE, RAM_HVA, TestHost, TestVm } from "./bench";

/** Name of the errno an ioctl fails with, or "ok". */
function errno(ioctl: () => unknown): string {
  try {
    ioctl();
    return "ok";
  } catch (error) {
    if (error instanceof KvmError) return error.errno;
    throw error;
  }
}

const newVm = () => openKvm(new TestHost()).KVM_CREATE_VM();
const region = { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 0x1000, userspace_addr: RAM_HVA };

test("single-stepping over an instruction KVM does itself reports the address behind it (kvm_vcpu_do_singlestep)", () => {
  const vm = new TestVm([0x0f, 0xa2, 0x90, 0xf4]); // cpuid; nop; hlt
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.SINGLESTEP, debugreg: [] });
  expect(vm.run()).toMatchObject({
    exit_reason: KvmExit.DEBUG,
    debug: { exception: 1, pc: BigInt(CODE + 2), dr6: 0xffff4ff0n },
  });
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.SINGLESTEP, debugreg: [] });
  expect(vm.run()).toMatchObject({ exit_reason: KvmExit.DEBUG, debug: { exception: 1, pc: BigInt(CODE + 3) } });
});

test("the debugger's TF does not stay with the guest when stepping is turned off (kvm_arch_vcpu_ioctl_set_guest_debug)", () => {
  const vm = new TestVm([0x90, 0x90, 0x9c, 0xf4]); // nop; nop; pushf; hlt
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.SINGLESTEP, debugreg: [] });
  expect(vm.run().exit_reason).toBe(KvmExit.DEBUG);
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: 0, debugreg: [] });
  expect(vm.vcpu.KVM_GET_REGS().rflags & 0x100n).toBe(0n);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.host.peek32(0x7ffe) & 0x100).toBe(0);
});

test("before KVM_SET_CPUID2 a vCPU takes all CR4 bits KVM supports, afterwards those of its CPUID (kvm_is_valid_cr4)", () => {
  const host = new TestHost();
  const kvm = openKvm(host);
  const vcpu = kvm.KVM_CREATE_VM().KVM_CREATE_VCPU(0);
  const smep = 1n << 20n;
  const set = (cr4: bigint) => errno(() => vcpu.KVM_SET_SREGS({ ...vcpu.KVM_GET_SREGS(), cr4 }));
  expect(set(smep)).toBe("ok");
  expect(set(1n << 13n)).toBe("EINVAL"); // VMXE is not supported
  expect(set(0n)).toBe("ok");
  vcpu.KVM_SET_CPUID2(kvm.KVM_GET_SUPPORTED_CPUID().filter((e) => e.function !== 7));
  expect(set(smep)).toBe("EINVAL");
});

test("KVM_SET_SREGS takes an APIC base of 0 with the enable bit, and of the interrupt bitmap the lowest vector", () => {
  const vm = new TestVm([], { irqchip: true });
  const sregs = vm.vcpu.KVM_GET_SREGS();
  expect(errno(() => vm.vcpu.KVM_SET_SREGS({ ...sregs, apic_base: 0x400n }))).toBe("EINVAL");
  expect(errno(() => vm.vcpu.KVM_SET_SREGS({ ...sregs, apic_base: 0x800n }))).toBe("ok");
  vm.vcpu.KVM_SET_SREGS({ ...sregs, interrupt_bitmap: [0n, 0x8001n, 1n, 0n] });
  expect(vm.vcpu.KVM_GET_VCPU_EVENTS().interrupt).toMatchObject({ injected: 1, nr: 64 });
  expect(vm.vcpu.KVM_GET_SREGS().interrupt_bitmap).toEqual([0n, 1n, 0n, 0n]);
});

test("x2APIC mode needs the guest's CPUID bit even from userspace (kvm_set_apic_base)", () => {
  const host = new TestHost();
  const kvm = openKvm(host);
  const vm = kvm.KVM_CREATE_VM();
  vm.KVM_CREATE_IRQCHIP();
  const vcpu = vm.KVM_CREATE_VCPU(0);
  const sregs = vcpu.KVM_GET_SREGS();
  expect(errno(() => vcpu.KVM_SET_SREGS({ ...sregs, apic_base: 0xfee00d00n }))).toBe("EINVAL");
  vcpu.KVM_SET_CPUID2(kvm.KVM_GET_SUPPORTED_CPUID());
  expect(errno(() => vcpu.KVM_SET_SREGS({ ...sregs, apic_base: 0xfee00d00n }))).toBe("ok");
});

test("KVM_GET_SREGS2 and KVM_SET_SREGS2 carry the PDPTRs of PAE paging and refuse them elsewhere (api.rst 4.131, 4.132)", () => {
  const vm = new TestVm([]);
  const plain = vm.vcpu.KVM_GET_SREGS2();
  expect([plain.flags, plain.pdptrs]).toEqual([0n, [0n, 0n, 0n, 0n]]);
  expect("interrupt_bitmap" in plain).toBe(false);
  expect(errno(() => vm.vcpu.KVM_SET_SREGS2({ ...plain, flags: 1n }))).toBe("EINVAL");
  expect(errno(() => vm.vcpu.KVM_SET_SREGS2({ ...plain, flags: 2n }))).toBe("EINVAL");
  const pdptrs: [bigint, bigint, bigint, bigint] = [0x200001n, 0n, 0x201001n, 0n];
  vm.vcpu.KVM_SET_SREGS2({ ...plain, cr0: 0x80000011n, cr4: 0x20n, cr3: 0x3000n, flags: 1n, pdptrs });
  expect(vm.vcpu.KVM_GET_SREGS2()).toMatchObject({ flags: 1n, pdptrs });
});

test("KVM_SET_VCPU_EVENTS: pending counts with VALID_PAYLOAD only, which must be enabled, as must VALID_TRIPLE_FAULT (api.rst 4.32)", () => {
  const vm = new TestVm([]);
  const { vcpu } = vm;
  const events = vcpu.KVM_GET_VCPU_EVENTS();
  expect(events.flags).toBe(KvmVcpuEvent.VALID_NMI_PENDING | KvmVcpuEvent.VALID_SHADOW | KvmVcpuEvent.VALID_SMM);
  expect(errno(() => vcpu.KVM_SET_VCPU_EVENTS(events))).toBe("ok");
  const pf = { injected: 0, nr: 14, has_error_code: 1, pending: 1, error_code: 2 };
  vcpu.KVM_SET_VCPU_EVENTS({ ...events, exception: pf });
  expect(vcpu.KVM_GET_VCPU_EVENTS().exception).toMatchObject({ injected: 0, pending: 0 });
  for (const flag of [KvmVcpuEvent.VALID_PAYLOAD, KvmVcpuEvent.VALID_TRIPLE_FAULT, 64]) {
    expect(errno(() => vcpu.KVM_SET_VCPU_EVENTS({ ...events, flags: flag }))).toBe("EINVAL");
  }
  for (const nr of [2, 32]) {
    const exception = { ...pf, injected: 1, nr };
    expect(errno(() => vcpu.KVM_SET_VCPU_EVENTS({ ...events, exception }))).toBe("EINVAL");
  }
  vm.vm.KVM_ENABLE_CAP(KvmCap.EXCEPTION_PAYLOAD, [1n]);
  const flags = events.flags | KvmVcpuEvent.VALID_PAYLOAD;
  vcpu.KVM_SET_VCPU_EVENTS({ ...events, flags, exception: pf, exception_has_payload: 1, exception_payload: 0x1234n });
  expect(vcpu.KVM_GET_VCPU_EVENTS()).toMatchObject({
    flags, exception: { ...pf, injected: 0 }, exception_has_payload: 1, exception_payload: 0x1234n,
  }); // biome-ignore format: one row
  expect(vcpu.KVM_GET_SREGS().cr2).toBe(0n);
});

test("without payloads KVM_GET_VCPU_EVENTS reports a pending exception as injected, but never #BP and #OF (kvm_exception_is_soft)", () => {
  const vm = new TestVm([]);
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.INJECT_BP, debugreg: [] });
  expect(vm.vcpu.KVM_GET_VCPU_EVENTS().exception).toMatchObject({ injected: 0, pending: 0, nr: 3 });
  expect(
    errno(() => vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.INJECT_DB, debugreg: [] })),
  ).toBe("EBUSY");
  vm.vcpu.KVM_SET_REGS(vm.vcpu.KVM_GET_REGS()); // forgets what is pending
  vm.vcpu.KVM_SET_GUEST_DEBUG({ control: KvmGuestdbg.ENABLE | KvmGuestdbg.INJECT_DB, debugreg: [] });
  expect(vm.vcpu.KVM_GET_VCPU_EVENTS().exception).toMatchObject({ injected: 1, pending: 0, nr: 1 });
});

test("KVM_NMI shows as pending at once, at most two (process_nmi in KVM_GET_VCPU_EVENTS)", () => {
  const vm = new TestVm([]);
  for (let i = 0; i < 3; i++) vm.vcpu.KVM_NMI();
  expect(vm.vcpu.KVM_GET_VCPU_EVENTS().nmi).toEqual({ injected: 0, pending: 2, masked: 0 });
});

test("a triple fault can be put into a vCPU (KVM_CAP_X86_TRIPLE_FAULT_EVENT)", () => {
  const vm = new TestVm([0xf4]);
  vm.vm.KVM_ENABLE_CAP(KvmCap.X86_TRIPLE_FAULT_EVENT, [1n]);
  const events = vm.vcpu.KVM_GET_VCPU_EVENTS();
  expect(events.flags & KvmVcpuEvent.VALID_TRIPLE_FAULT).not.toBe(0);
  vm.vcpu.KVM_SET_VCPU_EVENTS({ ...events, triple_fault: { pending: 1 } });
  expect(vm.vcpu.KVM_GET_VCPU_EVENTS().triple_fault.pending).toBe(1);
  expect(vm.run().exit_reason).toBe(KvmExit.SHUTDOWN);
});

test("KVM_RUN with illegal registers in kvm_run is EINVAL and leaves the vCPU usable (sync_regs)", () => {
  const vm = new TestVm([0xf4]);
  const { run } = vm.vcpu;
  run.s.sregs = { ...vm.vcpu.KVM_GET_SREGS(), cr0: 0x80000010n };
  run.kvm_dirty_regs = 2n;
  expect(vm.vcpu.KVM_RUN(10)).toEqual({ kind: "error", errno: Errno.EINVAL });
  run.kvm_dirty_regs = 0n;
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
});

test("immediate_exit completes the pending I/O first, so that RIP is behind it (api.rst, kvm_run.immediate_exit)", () => {
  const vm = new TestVm([0xe4, 0x80, 0xf4]); // in al, 0x80; hlt
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  expect(exit.io).toMatchObject({ direction: 0, size: 1, port: 0x80, count: 1, data_offset: 4096n });
  exit.io.data[0] = 0x5a;
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(BigInt(CODE));
  vm.vcpu.run.immediate_exit = 1;
  expect(vm.vcpu.KVM_RUN(10)).toEqual({ kind: "error", errno: Errno.EINTR });
  const regs = vm.vcpu.KVM_GET_REGS();
  expect([regs.rip, regs.rax & 0xffn]).toEqual([BigInt(CODE + 2), 0x5an]);
});

test("without memory at the reset vector the emulator fails, and no instruction bytes are reported (KVM_INTERNAL_ERROR_EMULATION)", () => {
  const vcpu = newVm().KVM_CREATE_VCPU(0);
  expect(vcpu.KVM_RUN(10)).toEqual({ kind: "exit" });
  expect(vcpu.run.exit).toMatchObject({
    exit_reason: KvmExit.INTERNAL_ERROR,
    internal: { suberror: KvmInternalError.EMULATION, ndata: 6 },
  });
});

test("memslots end within the host's physical addresses; the TSS may lie directly below 4 GiB (kvm_mmu_max_gfn, KVM_SET_TSS_ADDR)", () => {
  const vm = newVm();
  const set = (change: Partial<typeof region>) => errno(() => vm.KVM_SET_USER_MEMORY_REGION({ ...region, ...change }));
  expect(set({ guest_phys_addr: 2 ** 40 - 0x1000 })).toBe("ok");
  expect(set({ slot: 1, guest_phys_addr: 2 ** 40 })).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_TSS_ADDR(0xffffd000))).toBe("ok");
  expect(errno(() => vm.KVM_SET_TSS_ADDR(0xffffd001))).toBe("EINVAL");
  // With unrestricted guest nothing lies there.
  expect(set({ slot: 2, guest_phys_addr: 0xffffd000 })).toBe("ok");
});

test("KVM_GET_MSRS and KVM_SET_MSRS take fewer than 256 entries, and every listed MSR can be read without an irqchip (api.rst 4.3, 4.18)", () => {
  const vm = new TestVm([]);
  const many = new Array<number>(256).fill(0x174);
  expect(errno(() => vm.vcpu.KVM_GET_MSRS(many))).toBe("E2BIG");
  expect(errno(() => vm.vcpu.KVM_SET_MSRS(many.map((index) => ({ index, data: 0n }))))).toBe("E2BIG");
  expect(errno(() => vm.kvm.KVM_GET_MSRS(many))).toBe("E2BIG");
  expect(vm.vcpu.KVM_GET_MSRS(many.slice(1)).length).toBe(255);
  const list = vm.kvm.KVM_GET_MSR_INDEX_LIST();
  const values = vm.vcpu.KVM_GET_MSRS(list);
  expect(values.map((v) => v.index)).toEqual(list);
  expect(vm.vcpu.KVM_SET_MSRS(values)).toBe(list.length);
});

test("after the first KVM_RUN the same CPUID is accepted again and another one is EINVAL, whichever register differs (kvm_cpuid_check_equal)", () => {
  const vm = new TestVm([0xf4]);
  const table = vm.kvm.KVM_GET_SUPPORTED_CPUID();
  vm.run();
  expect(errno(() => vm.vcpu.KVM_SET_CPUID2(table))).toBe("ok");
  expect(errno(() => vm.vcpu.KVM_SET_CPUID2(vm.vcpu.KVM_GET_CPUID2()))).toBe("ok");
  for (const reg of ["eax", "ebx", "ecx", "edx"] as const) {
    const other = table.map((e) => (e.function === 0 ? { ...e, [reg]: e[reg] ^ 1 } : e));
    expect(errno(() => vm.vcpu.KVM_SET_CPUID2(other))).toBe("EINVAL");
  }
  expect(errno(() => vm.vcpu.KVM_SET_CPUID2(table.slice(1)))).toBe("EINVAL");
});

test("KVM_SET_IRQCHIP refuses chips there are not and delivers what the new state has requested (kvm_pic_update_irq)", () => {
  // lgdt-less real mode: sti; nop; jmp $; the handler of vector 0x20 halts into port 0x42
  const vm = new TestVm([0xfb, 0x90, 0xeb, 0xfe], { irqchip: true });
  const master = vm.vm.KVM_GET_IRQCHIP(KvmIrqchip.PIC_MASTER);
  if (master.chip_id !== KvmIrqchip.PIC_MASTER) throw new Error("not the master");
  expect(errno(() => vm.vm.KVM_SET_IRQCHIP({ ...master, chip_id: 3 as 0 }))).toBe("EINVAL");
  vm.host.poke(0x20 * 4, [0x00, 0x20, 0x00, 0x00]);
  vm.host.poke(0x2000, [0xe6, 0x42]); // out 0x42, al
  vm.host.poke(0x2002, [0xe6, 0x99]); // out 0x99, al
  vm.vm.KVM_SET_IRQCHIP({ ...master, pic: { ...master.pic, vectorBase: 0x20, irr: 1, imr: 0 } });
  expect(vm.run()).toMatchObject({ exit_reason: KvmExit.IO, io: { port: 0x99 } });
});

test("KVM_SET_GSI_ROUTING: a GSI with an MSI has nothing else, and x2APIC destinations leave address_hi 7:0 clear (setup_routing_entry)", () => {
  const vm = newVm();
  vm.KVM_CREATE_IRQCHIP();
  const msi = { gsi: 30, type: 2 as const, address_lo: 0xfee00000, address_hi: 0, data: 0x31 };
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([msi]))).toBe("ok");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([msi, { ...msi, data: 0x32 }]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([msi, { gsi: 30, type: 1, irqchip: 2, pin: 3 }]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([{ ...msi, type: 9 as 2 }]))).toBe("EINVAL");
  vm.KVM_ENABLE_CAP(KvmCap.X2APIC_API, [1n]);
  expect(errno(() => vm.KVM_SET_GSI_ROUTING([{ ...msi, address_hi: 1 }]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SIGNAL_MSI({ ...msi, address_hi: 1, flags: 0 }))).toBe("EINVAL");
});

test("KVM_CAP_MAX_VCPU_ID is set once, before the first vCPU, and bounds ids and the boot CPU (max_vcpu_ids)", () => {
  const vm = newVm();
  expect(errno(() => vm.KVM_ENABLE_CAP(KvmCap.MAX_VCPU_ID, [256n]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_ENABLE_CAP(KvmCap.MAX_VCPU_ID, [4n]))).toBe("ok");
  expect(errno(() => vm.KVM_ENABLE_CAP(KvmCap.MAX_VCPU_ID, [5n]))).toBe("EINVAL");
  expect(errno(() => vm.KVM_SET_BOOT_CPU_ID(9))).toBe("EINVAL");
  expect(errno(() => vm.KVM_CREATE_VCPU(4))).toBe("EINVAL");
  expect(errno(() => vm.KVM_CREATE_VCPU(3))).toBe("ok");
  const late = newVm();
  late.KVM_CREATE_VCPU(0);
  expect(errno(() => late.KVM_ENABLE_CAP(KvmCap.MAX_VCPU_ID, [4n]))).toBe("EINVAL");
});

test("ioctls of a closed VM and of its vCPUs are EBADF", () => {
  const vm = newVm();
  const vcpu = vm.KVM_CREATE_VCPU(0);
  vm.close();
  expect(errno(() => vm.KVM_CREATE_VCPU(1))).toBe("EBADF");
  expect(errno(() => vm.KVM_SET_USER_MEMORY_REGION(region))).toBe("EBADF");
  expect(errno(() => vcpu.KVM_GET_REGS())).toBe("EBADF");
  expect(vcpu.KVM_RUN(10)).toEqual({ kind: "error", errno: Errno.EBADF });
  expect(errno(() => vm.close())).toBe("ok");
});

test("KVM_X86_SETUP_MCE: 1 to 32 banks with supported features, all enabled (api.rst 4.105)", () => {
  const vm = new TestVm([]);
  expect(vm.kvm.KVM_CHECK_EXTENSION(KvmCap.MCE)).toBe(32);
  expect(errno(() => vm.vcpu.KVM_X86_SETUP_MCE(0x100n))).toBe("EINVAL");
  expect(errno(() => vm.vcpu.KVM_X86_SETUP_MCE(33n))).toBe("EINVAL");
  expect(errno(() => vm.vcpu.KVM_X86_SETUP_MCE(0x200_0004n))).toBe("EINVAL");
  vm.vcpu.KVM_X86_SETUP_MCE(vm.kvm.KVM_X86_GET_MCE_CAP_SUPPORTED() | 4n);
  const all = 0xffffffffffffffffn;
  expect(vm.vcpu.KVM_GET_MSRS([0x179, 0x17b, 0x40c, 0x410]).map((m) => m.data)).toEqual([0x1000104n, all, all]);
});

test("KVM_KVMCLOCK_CTRL tells the guest once that it was stopped; KVM_SET_CLOCK refuses unknown flags (api.rst 4.30, 4.68)", () => {
  const vm = new TestVm([0xf4, 0xf4]);
  expect(errno(() => vm.vcpu.KVM_KVMCLOCK_CTRL())).toBe("EINVAL");
  vm.vcpu.KVM_SET_MSRS([{ index: 0x4b564d01, data: 0x5001n }]);
  vm.run();
  expect(vm.host.peek(0x5000 + 29, 1)[0]).toBe(1);
  vm.vcpu.KVM_KVMCLOCK_CTRL();
  vm.run();
  expect(vm.host.peek(0x5000 + 29, 1)[0]).toBe(3);
  const { clock, flags } = vm.vm.KVM_GET_CLOCK();
  expect(vm.kvm.KVM_CHECK_EXTENSION(KvmCap.ADJUST_CLOCK)).toBe(flags);
  expect(errno(() => vm.vm.KVM_SET_CLOCK(clock, flags))).toBe("ok");
  expect(errno(() => vm.vm.KVM_SET_CLOCK(clock, 16))).toBe("EINVAL");
});

test("KVM_GET_LAPIC in x2APIC mode has the id where xAPIC has it unless KVM_CAP_X2APIC_API asks for 32 bits (kvm_apic_state_fixup)", () => {
  const vm = new TestVm([], { irqchip: true, vcpus: 2 });
  const vcpu = vm.vcpus[1];
  vcpu.KVM_SET_SREGS({ ...vcpu.KVM_GET_SREGS(), apic_base: 0xfee00c00n });
  const id = (page: Uint8Array) => new DataView(page.buffer, page.byteOffset).getUint32(0x20, true);
  const page = vcpu.KVM_GET_LAPIC();
  expect(id(page)).toBe(1 << 24);
  page[0x23] = 7;
  vcpu.KVM_SET_LAPIC(page);
  expect(id(vcpu.KVM_GET_LAPIC())).toBe(1 << 24);
  vm.vm.KVM_ENABLE_CAP(KvmCap.X2APIC_API, [1n]);
  expect(id(vcpu.KVM_GET_LAPIC())).toBe(1);
  expect(errno(() => vcpu.KVM_SET_LAPIC(page))).toBe("EINVAL");
});

test("a slot may move over its own frames but not over another's, wherever that begins (kvm_check_memslot_overlap)", () => {
  const vm = newVm();
  const set = (slot: number, page: number, pages = 1) =>
    errno(() =>
      vm.KVM_SET_USER_MEMORY_REGION({ ...region, slot, guest_phys_addr: page * 4096, memory_size: pages * 4096 }),
    );
  expect([set(0, 10, 4), set(1, 20, 4), set(2, 14)]).toEqual(["ok", "ok", "ok"]);
  expect([set(3, 9, 2), set(3, 13), set(3, 11, 2), set(3, 8, 30), set(3, 23, 2)]).toEqual(new Array(5).fill("EEXIST"));
  expect(set(1, 22, 4)).toBe("ok");
  expect(set(1, 17, 4)).toBe("ok");
  expect(set(1, 13, 4)).toBe("EEXIST");
  expect([set(3, 15, 2), set(4, 9)]).toEqual(["ok", "ok"]);
});
