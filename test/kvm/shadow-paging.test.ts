// biome-ignore-all format: bytes beside their assembly
/** ept=0: the processor walks tables that KVM derives from the guest's (arch/x86/kvm/mmu, paging_tmpl.h). */
import { describe, expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { KvmExit } from "../../engine/kvm/uapi";
import { CODE, TestVm } from "./bench";
import { withIdt } from "./idt";

const SHADOW = { ept: false };

function out(vm: TestVm): { port: number; value: number } {
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error(`exit ${exit.exit_reason}`);
  return { port: exit.io.port, value: exit.io.data[0] };
}

describe("a 64-bit guest that changes its own page tables", () => {
  const program = [
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, // mov    0x400000,%eax
    0xe7, 0x80, // out    %eax,$0x80
    0x48, 0xc7, 0x04, 0x25, 0x00, 0x40, 0x10, // movq   $0x501003,0x104000
    0x00, 0x03, 0x10, 0x50, 0x00, // 
    0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x40, // invlpg 0x400000
    0x00, // 
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, // mov    0x400000,%eax
    0xe7, 0x80, // out    %eax,$0x80
    0x48, 0xc7, 0x04, 0x25, 0x00, 0x40, 0x10, // movq   $0x502003,0x104000
    0x00, 0x03, 0x20, 0x50, 0x00, // 
    0x0f, 0x20, 0xd8, // mov    %cr3,%rax
    0x0f, 0x22, 0xd8, // mov    %rax,%cr3
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, // mov    0x400000,%eax
    0xe7, 0x80, // out    %eax,$0x80
    0x48, 0xc7, 0x04, 0x25, 0x10, 0x20, 0x10, // movq   $0x105003,0x102010
    0x00, 0x03, 0x50, 0x10, 0x00, // 
    0x0f, 0x20, 0xd8, // mov    %cr3,%rax
    0x0f, 0x22, 0xd8, // mov    %rax,%cr3
    0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, // mov    0x400000,%eax
    0xe7, 0x80, // out    %eax,$0x80
    0x89, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, // mov    %eax,0x400000
    0xe7, 0x81, // out    %eax,$0x81
    0xf4, // hlt
  ];
  const start = (params: Readonly<Record<string, boolean>>) => {
    const vm = new TestVm(program, { params });
    vm.longMode();
    // Linear 0x400000 goes by a page table at 0x104000, then by one at 0x105000.
    vm.host.poke64(0x102000 + 2 * 8, 0x104003n);
    vm.host.poke64(0x104000, 0x500003n);
    vm.host.poke64(0x105000, 0x503003n);
    for (let i = 0; i < 4; i++) vm.host.poke(0x500000 + i * 0x1000, [0x11 * (i + 1)]);
    vm.setRegs({ rip: BigInt(CODE) });
    return vm;
  };

  test.each([SHADOW, { ept: false, vpid: false }, { ept: true }])("sees every change after INVLPG or MOV to CR3 (%o)", (params) => {
    const vm = start(params);
    expect([out(vm), out(vm), out(vm), out(vm)].map((o) => o.value)).toEqual([0x11, 0x22, 0x33, 0x44]);
    expect(out(vm).port).toBe(0x81);
    // Accessed and dirty flags of the guest's own entries.
    expect(vm.host.peek32(0x105000) & 0x60).toBe(0x60);
    expect(vm.host.peek32(0x104000) & 0x60).toBe(0x20);
    expect(vm.host.peek32(0x102010) & 0x20).toBe(0x20);
  });

  test("a write of a lowest-level table lets it get out of step; one above is emulated (mmu_try_to_unsync_pages, kvm_mmu_track_write)", () => {
    const vm = start(SHADOW);
    for (let i = 0; i < 5; i++) out(vm);
    expect(vm.vm.stats.mmu_unsync).toBeGreaterThan(0);
    expect(vm.vm.stats.mmu_pte_write).toBe(1);
    const exits = vm.vcpu.exitsByReason;
    expect(exits[ExitReason.INVLPG]).toBe(1);
    expect(exits[ExitReason.CR_ACCESS]).toBe(4);
    expect(exits[ExitReason.EPT_VIOLATION] ?? 0).toBe(0);
  });
});

test("#PF goes to the guest with its own error code and CR2 where its tables say so (FNAME(walk_addr))", () => {
  const vm = new TestVm([
    0xa3, 0x00, 0x00, 0x80, 0x00, // mov [0x800000], eax
    0xf4,
  ], { params: SHADOW });
  withIdt(vm, { 14: { at: 0x2000, code: [
    0x58,             // pop eax: error code
    0xe7, 0x80,       // out 0x80, eax
    0x0f, 0x20, 0xd0, // mov eax, cr2
    0xe7, 0x81,       // out 0x81, eax
  ] } });
  // 32-bit paging, 4-MByte pages: the first is there, the third is not.
  vm.host.poke64(0x100000, 0x83n);
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, cr0: 0x80000011n, cr3: 0x100000n, cr4: 0x10n });
  expect(out(vm)).toEqual({ port: 0x80, value: 2 });
  expect(out(vm).port).toBe(0x81);
  expect(vm.vcpu.KVM_GET_REGS().rax).toBe(0x800000n);
  expect(vm.vcpu.stats.pf_guest).toBe(1);
});

test("a supervisor write to a read-only user page is allowed with CR0.WP 0, and a read before it does not lose that", () => {
  const vm = new TestVm([
    0xa1, 0x00, 0x00, 0x40, 0x00, // mov eax, [0x400000]
    0x40,                         // inc eax
    0xa3, 0x00, 0x00, 0x40, 0x00, // mov [0x400000], eax
    0xa1, 0x00, 0x00, 0x40, 0x00, // mov eax, [0x400000]
    0xe7, 0x80,
  ], { params: SHADOW });
  vm.protectedMode();
  vm.host.poke64(0x100000, 0x0000_0000_0000_0083n);
  vm.host.poke(0x100004, [0x85, 0x00, 0x40, 0x00]); // 4 MBytes at 0x400000: user, read-only
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, cr0: 0x80000011n, cr3: 0x100000n, cr4: 0x10n });
  vm.setRegs({ rip: BigInt(CODE) });
  vm.host.poke(0x400000, [0x41]);
  expect(out(vm)).toEqual({ port: 0x80, value: 0x42 });
});

test("MMIO is an entry with a reserved bit: #PF with RSVD goes straight to the emulator (make_mmio_spte)", () => {
  const vm = new TestVm([
    0xa1, 0x10, 0x00, 0x00, 0xe0,       // mov eax, [0xe0000010]
    0x89, 0x05, 0x14, 0x00, 0x00, 0xe0, // mov [0xe0000014], eax
    0xf4,
  ], { params: SHADOW });
  vm.protectedMode();
  const read = vm.run();
  if (read.exit_reason !== KvmExit.MMIO) throw new Error(`exit ${read.exit_reason}`);
  expect([read.mmio.phys_addr, read.mmio.is_write]).toEqual([0xe0000010, 0]);
  read.mmio.data.set([1, 2, 3, 4]);
  const write = vm.run();
  if (write.exit_reason !== KvmExit.MMIO) throw new Error(`exit ${write.exit_reason}`);
  expect([write.mmio.phys_addr, write.mmio.is_write, ...write.mmio.data.slice(0, 4)]).toEqual([0xe0000014, 1, 1, 2, 3, 4]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.stats.pf_mmio_spte_created).toBe(1);
});

test("dirty logging write-protects the shadow's entries (kvm_mmu_slot_apply_flags)", () => {
  const vm = new TestVm([0xa2, 0x00, 0x80, 0x00, 0x00, 0xf4], { params: SHADOW }); // mov [0x8000], al
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  vm.vm.KVM_SET_USER_MEMORY_REGION({ slot: 0, flags: 1, guest_phys_addr: 0, memory_size: 8 << 20, userspace_addr: 0x7f00_0000_0000 });
  vm.setRegs({ rip: BigInt(CODE) });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect([...vm.vm.KVM_GET_DIRTY_LOG(0)].flatMap((w, i) => (w === 0 ? [] : [[i, w]]))).toEqual([[0, 0x100]]);
  expect([...vm.vm.KVM_GET_DIRTY_LOG(0)].every((w) => w === 0)).toBe(true);
});
