// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { KvmExit, KvmInternalError } from "../../engine/kvm/uapi";
import { CODE, RAM_HVA, TestVm } from "./bench";

/** The vCPU's next exit must be a port write; gives port and value. */
function nextOut(vm: TestVm): { port: number; value: number } {
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO || exit.io.direction !== 1) throw new Error(`exit ${JSON.stringify(exit, (_, v) => (typeof v === "bigint" ? v.toString() : v))}`);
  let value = 0;
  for (let i = exit.io.size - 1; i >= 0; i--) value = value * 256 + exit.io.data[i];
  return { port: exit.io.port, value };
}

test("a real-mode guest runs under unrestricted guest; OUT leaves KVM_RUN as KVM_EXIT_IO, HLT as KVM_EXIT_HLT (api.rst)", () => {
  const vm = new TestVm([
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x00, 0xd8,       // add al, bl
    0x04, 0x30,       // add al, '0'
    0xee,             // out dx, al
    0xf4,             // hlt
  ]);
  vm.setRegs({ rip: BigInt(CODE), rax: 2n, rbx: 2n });
  const exit = vm.run();
  expect(exit.exit_reason).toBe(KvmExit.IO);
  if (exit.exit_reason !== KvmExit.IO) return;
  expect({ ...exit.io, data: [...exit.io.data] }).toEqual({
    direction: 1, size: 1, port: 0x3f8, count: 1, data_offset: 4096n, data: ["4".charCodeAt(0)],
  });
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(BigInt(CODE + 7));
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(BigInt(CODE + 9));
  expect(vm.vcpu.exitsByReason[ExitReason.IO_INSTRUCTION]).toBe(1);
});

test("IN is completed by the next KVM_RUN with what userspace put into the pio page; EAX clears the upper half of RAX (api.rst KVM_EXIT_IO)", () => {
  const vm = new TestVm([
    0xe5, 0x10,       // in eax, 0x10   (64-bit code)
    0x48, 0x89, 0xc3, // mov rbx, rax
    0xe4, 0x11,       // in al, 0x11
    0xf4,
  ]);
  vm.longMode();
  vm.setRegs({ rip: BigInt(CODE), rax: 0x1122334455667788n });
  let exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  expect([exit.io.direction, exit.io.size, exit.io.port]).toEqual([0, 4, 0x10]);
  exit.io.data.set([0xef, 0xbe, 0xad, 0xde]);
  exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  exit.io.data.set([0x42]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const { rax, rbx } = vm.vcpu.KVM_GET_REGS();
  expect([rax, rbx]).toEqual([0xdeadbe42n, 0xdeadbeefn]);
});

test("REP OUTSB goes out one item an exit, REP INSB comes in as one request of RCX items (emulate.c)", () => {
  const vm = new TestVm([
    0xbe, 0x00, 0x20, 0x00, 0x00, // mov esi, 0x2000
    0xbf, 0x00, 0x30, 0x00, 0x00, // mov edi, 0x3000
    0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
    0x66, 0xba, 0x80, 0x00,       // mov dx, 0x80
    0xf3, 0x6e,                   // rep outsb
    0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
    0xf3, 0x6c,                   // rep insb
    0xf4,
  ]);
  vm.protectedMode();
  vm.host.poke(0x2000, [0x61, 0x62, 0x63]);
  expect([nextOut(vm), nextOut(vm), nextOut(vm)].map((o) => o.value)).toEqual([0x61, 0x62, 0x63]);
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.IO) throw new Error("no I/O exit");
  expect([exit.io.direction, exit.io.count, exit.io.size]).toEqual([0, 3, 1]);
  exit.io.data.set([0x78, 0x79, 0x7a]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect([...vm.host.peek(0x3000, 4)]).toEqual([0x78, 0x79, 0x7a, 0]);
  const { rcx, rsi, rdi } = vm.vcpu.KVM_GET_REGS();
  expect([rcx, rsi, rdi]).toEqual([0n, 0x2003n, 0x3003n]);
});

test("memory is mapped on the first access to each page, by an EPT violation, and never again (mmu.c)", () => {
  const vm = new TestVm([
    0xa1, 0x00, 0x00, 0x50, 0x00, // mov eax, [0x500000]
    0xa1, 0x00, 0x00, 0x50, 0x00, // mov eax, [0x500000]
    0xa3, 0x08, 0x00, 0x50, 0x00, // mov [0x500008], eax
    0xf4,
  ]);
  vm.protectedMode();
  vm.host.poke(0x500000, [0x11, 0x22, 0x33, 0x44]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rax).toBe(0x44332211n);
  expect(vm.host.peek32(0x500008)).toBe(0x44332211);
  // One for the code's page, one for the data's: RAM is mapped with huge pages where host memory is contiguous.
  expect(vm.vcpu.exitsByReason[ExitReason.EPT_VIOLATION]).toBe(2);
  expect(vm.vm.stats.pages_2m).toBe(2);
  expect(vm.vcpu.stats.pf_fixed).toBe(2);
});

test("an access without a memslot is MMIO: first a violation installs an MMIO SPTE, then misconfigurations go straight to the emulator (spte.c)", () => {
  const vm = new TestVm([
    0xa1, 0x10, 0x00, 0x00, 0xe0,                               // mov eax, [0xe0000010]
    0x89, 0x05, 0x14, 0x00, 0x00, 0xe0,                         // mov [0xe0000014], eax
    0xc7, 0x05, 0x18, 0x00, 0x00, 0xe0, 0x78, 0x56, 0x34, 0x12, // mov dword [0xe0000018], 0x12345678
    0xf4,
  ]);
  vm.protectedMode();
  let exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
  expect([exit.mmio.phys_addr, exit.mmio.len, exit.mmio.is_write]).toEqual([0xe0000010, 4, 0]);
  exit.mmio.data.set([1, 2, 3, 4]);
  exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
  expect([exit.mmio.phys_addr, exit.mmio.is_write, ...exit.mmio.data.slice(0, 4)]).toEqual([0xe0000014, 1, 1, 2, 3, 4]);
  exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
  expect([...exit.mmio.data.slice(0, 4)]).toEqual([0x78, 0x56, 0x34, 0x12]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rax).toBe(0x04030201n);
  const exits = vm.vcpu.exitsByReason;
  expect([exits[ExitReason.EPT_VIOLATION], exits[ExitReason.EPT_MISCONFIG]]).toEqual([2, 2]);
  expect(vm.vcpu.stats.pf_mmio_spte_created).toBe(1);
});

test("instructions that read, change and write MMIO go to userspace twice (emulate.c)", () => {
  const vm = new TestVm([
    0x83, 0x05, 0x00, 0x00, 0x00, 0xe0, 0x05,             // add dword [0xe0000000], 5
    0x0f, 0xb6, 0x1d, 0x04, 0x00, 0x00, 0xe0,             // movzx ebx, byte [0xe0000004]
    0x0f, 0xbe, 0x0d, 0x04, 0x00, 0x00, 0xe0,             // movsx ecx, byte [0xe0000004]
    0x87, 0x15, 0x00, 0x00, 0x00, 0xe0,                   // xchg [0xe0000000], edx
    0xf6, 0x05, 0x00, 0x00, 0x00, 0xe0, 0x80,             // test byte [0xe0000000], 0x80
    0x0f, 0xba, 0x2d, 0x00, 0x00, 0x00, 0xe0, 0x02,       // bts dword [0xe0000000], 2
    0xf4,
  ]);
  vm.protectedMode();
  vm.setRegs({ rip: BigInt(CODE), rdx: 0x77n });
  const device = new Uint8Array(8);
  device.set([10, 0, 0, 0, 0x80]);
  const writes: number[] = [];
  for (;;) {
    const exit = vm.run();
    if (exit.exit_reason === KvmExit.HLT) break;
    if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
    const { phys_addr, len, data, is_write } = exit.mmio;
    const at = phys_addr - 0xe0000000;
    if (is_write) {
      device.set(data.subarray(0, len), at);
      writes.push(new DataView(device.buffer).getUint32(0, true));
    } else {
      data.set(device.subarray(at, at + len));
    }
  }
  expect(writes).toEqual([15, 0x77, 0x77]);
  const { rbx, rcx, rdx, rflags } = vm.vcpu.KVM_GET_REGS();
  expect([rbx, rcx, rdx]).toEqual([0x80n, 0xffffff80n, 15n]);
  expect(rflags & 1n).toBe(1n); // BTS found bit 2 set
});

test("REP MOVSD from RAM to MMIO writes every item in order and ends with ECX 0 (emulate.c)", () => {
  const vm = new TestVm([
    0xbe, 0x00, 0x20, 0x00, 0x00, // mov esi, 0x2000
    0xbf, 0x00, 0x00, 0x00, 0xe0, // mov edi, 0xe0000000
    0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
    0xf3, 0xa5,                   // rep movsd
    0xf4,
  ]);
  vm.protectedMode();
  vm.host.poke(0x2000, [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
  const seen: [number, number][] = [];
  for (;;) {
    const exit = vm.run();
    if (exit.exit_reason === KvmExit.HLT) break;
    if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
    seen.push([exit.mmio.phys_addr, exit.mmio.data[0]]);
  }
  expect(seen).toEqual([[0xe0000000, 1], [0xe0000004, 2], [0xe0000008, 3]]);
  expect(vm.vcpu.KVM_GET_REGS().rcx).toBe(0n);
});

test("an instruction the emulator does not know ends in KVM_EXIT_INTERNAL_ERROR with its bytes (api.rst, KVM_INTERNAL_ERROR_EMULATION)", () => {
  const vm = new TestVm([
    0x0f, 0x02, 0x05, 0x00, 0x00, 0x00, 0xe0, // lar eax, [0xe0000000]
  ]);
  vm.protectedMode();
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.INTERNAL_ERROR) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.internal.suberror).toBe(KvmInternalError.EMULATION);
  expect(exit.internal.data[0]).toBe(1n);
  // insn_size (15 bytes were fetched), then the bytes
  expect(exit.internal.data[1]).toBe(0xe000_0000_0502_0f0fn);
});

test("CPUID answers from KVM_SET_CPUID2, the KVM signature at 0x40000000 (cpuid.rst)", () => {
  const vm = new TestVm([
    0xb8, 0x00, 0x00, 0x00, 0x40, // mov eax, 0x40000000
    0x0f, 0xa2,                   // cpuid
    0xf4,
  ]);
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const { rax, rbx, rcx, rdx } = vm.vcpu.KVM_GET_REGS();
  expect(rax).toBe(0x40000001n);
  const text = [rbx, rcx, rdx].map((r) => String.fromCharCode(...[0n, 8n, 16n, 24n].map((s) => Number((r >> s) & 0xffn))));
  expect(text.join("")).toBe("KVMKVMKVM\0\0\0");
});

test("RDMSR and WRMSR of an MSR nobody knows raise #GP; ignore_msrs reads 0 (x86.c)", () => {
  const code = [
    0xb9, 0x34, 0x12, 0x00, 0x00, // mov ecx, 0x1234
    0x0f, 0x32,                   // rdmsr
    0xf4,
  ];
  const strict = new TestVm(code);
  strict.protectedMode();
  // No IDT: the #GP becomes a triple fault.
  expect(strict.run().exit_reason).toBe(KvmExit.SHUTDOWN);
  const lenient = new TestVm(code, { params: { ignore_msrs: true } });
  lenient.protectedMode();
  lenient.setRegs({ rip: BigInt(CODE), rax: 5n });
  expect(lenient.run().exit_reason).toBe(KvmExit.HLT);
  expect(lenient.vcpu.KVM_GET_REGS().rax).toBe(0n);
});

test("FS.base, KERNEL_GS_BASE and SYSENTER MSRs are written without exits, LSTAR with one, and userspace reads them back (vmx.c)", () => {
  const wrmsr = (index: number, low: number) => [
    0xb9, index & 0xff, (index >> 8) & 0xff, (index >> 16) & 0xff, (index >>> 24) & 0xff, // mov ecx, index
    0xb8, low & 0xff, (low >> 8) & 0xff, 0, 0,                                            // mov eax, low
    0x31, 0xd2,                                                                           // xor edx, edx
    0x0f, 0x30,                                                                           // wrmsr
  ];
  const vm = new TestVm([
    ...wrmsr(0xc0000100, 0x1111), ...wrmsr(0xc0000102, 0x2222), ...wrmsr(0x176, 0x3333), ...wrmsr(0xc0000082, 0x4444), 0xf4,
  ]);
  vm.longMode();
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.exitsByReason[ExitReason.MSR_WRITE]).toBe(1);
  const msrs = vm.vcpu.KVM_GET_MSRS([0xc0000100, 0xc0000102, 0x176, 0xc0000082]);
  expect(msrs.map((m) => m.data)).toEqual([0x1111n, 0x2222n, 0x3333n, 0x4444n]);
});

test("a guest goes from real mode to 64-bit mode by itself: CR0, CR4 and EFER are emulated as KVM does it (vmx_set_cr0, vmx_set_efer)", () => {
  const vm = new TestVm([
    // 16-bit code at 0x1000
    0xfa,                                           // cli
    0x66, 0x0f, 0x01, 0x16, 0x00, 0x20,             // lgdt [0x2000] (o32)
    0x66, 0xb8, 0x20, 0x00, 0x00, 0x00,             // mov eax, 0x20
    0x0f, 0x22, 0xe0,                               // mov cr4, eax        PAE
    0x66, 0xb8, 0x00, 0x00, 0x10, 0x00,             // mov eax, 0x100000
    0x0f, 0x22, 0xd8,                               // mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,             // mov ecx, 0xc0000080
    0x0f, 0x32,                                     // rdmsr
    0x66, 0x0d, 0x00, 0x01, 0x00, 0x00,             // or eax, 0x100       LME
    0x0f, 0x30,                                     // wrmsr
    0x0f, 0x20, 0xc0,                               // mov eax, cr0
    0x66, 0x0d, 0x01, 0x00, 0x00, 0x80,             // or eax, 0x80000001  PG, PE
    0x0f, 0x22, 0xc0,                               // mov cr0, eax
    0x66, 0xea, 0x00, 0x30, 0x00, 0x00, 0x08, 0x00, // jmp 8:0x3000
  ]);
  vm.longMode(); // for the page tables only
  const fresh = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({
    ...fresh, cr0: 0x60000010n, cr3: 0n, cr4: 0n, efer: 0n,
    cs: { ...fresh.cs, selector: 0, base: 0n, l: 0, db: 0, limit: 0xffff, g: 0 },
    ds: { ...fresh.ds, selector: 0, limit: 0xffff, g: 0, db: 0 },
  });
  vm.host.poke(0x2000, [0x1f, 0, 0x10, 0x20, 0, 0]);
  vm.host.poke64(0x2018, 0x00af9b000000ffffn);
  vm.host.poke(0x3000, [
    0x48, 0xb8, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, // mov rax, 0x0123456789abcdef
    0xf4,
  ]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rax).toBe(0x0123456789abcdefn);
  const sregs = vm.vcpu.KVM_GET_SREGS();
  expect([sregs.efer, sregs.cs.l, sregs.cr0 & 0x80000001n, sregs.cr4]).toEqual([0x500n, 1, 0x80000001n, 0x20n]);
});

test("an exception without an IDT is a triple fault: KVM_EXIT_SHUTDOWN (api.rst)", () => {
  const vm = new TestVm([0x0f, 0x0b]); // ud2
  vm.protectedMode();
  expect(vm.run().exit_reason).toBe(KvmExit.SHUTDOWN);
});

test("a write to a read-only slot is MMIO, reads come from memory (KVM_MEM_READONLY)", () => {
  const vm = new TestVm([
    0xa1, 0x00, 0x00, 0x00, 0x01,       // mov eax, [0x1000000]
    0xa3, 0x04, 0x00, 0x00, 0x01,       // mov [0x1000004], eax
    0xf4,
  ]);
  vm.protectedMode();
  vm.vm.KVM_SET_USER_MEMORY_REGION({
    slot: 1, flags: 2, guest_phys_addr: 0x1000000, memory_size: 0x1000, userspace_addr: RAM_HVA + 0x600000,
  });
  vm.host.poke(0x600000, [9, 8, 7, 6]);
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
  expect([exit.mmio.phys_addr, exit.mmio.is_write, exit.mmio.data[0]]).toEqual([0x1000004, 1, 9]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.host.peek32(0x600004)).toBe(0);
});

test("deleting a slot while translations exist makes its addresses MMIO; MMIO SPTEs of an older generation do not hide a new slot (mmu.c)", () => {
  const vm = new TestVm([
    0xa1, 0x00, 0x00, 0x00, 0x01, // mov eax, [0x1000000]
    0xe7, 0x80,                   // out 0x80, eax
    0xeb, 0xf7,                   // jmp start
  ]);
  vm.protectedMode();
  const slot = { slot: 1, flags: 0, guest_phys_addr: 0x1000000, memory_size: 0x1000, userspace_addr: RAM_HVA + 0x600000 };
  vm.host.poke(0x600000, [5, 0, 0, 0]);
  vm.vm.KVM_SET_USER_MEMORY_REGION(slot);
  expect(nextOut(vm).value).toBe(5);
  vm.vm.KVM_SET_USER_MEMORY_REGION({ ...slot, memory_size: 0 });
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.MMIO) throw new Error("no MMIO exit");
  exit.mmio.data.set([7, 0, 0, 0]);
  expect(nextOut(vm).value).toBe(7);
  vm.vm.KVM_SET_USER_MEMORY_REGION(slot);
  expect(nextOut(vm).value).toBe(5);
});

test("KVM_GET_DIRTY_LOG gives the pages written since the last call (api.rst 4.8)", () => {
  const vm = new TestVm([
    0xa3, 0x00, 0x30, 0x00, 0x01, // mov [0x1003000], eax
    0xe7, 0x80,                   // out 0x80, eax
    0xeb, 0xf7,                   // jmp start
  ]);
  vm.protectedMode();
  vm.vm.KVM_SET_USER_MEMORY_REGION({
    slot: 1, flags: 1, guest_phys_addr: 0x1000000, memory_size: 0x8000, userspace_addr: RAM_HVA + 0x600000,
  });
  nextOut(vm);
  expect([...vm.vm.KVM_GET_DIRTY_LOG(1)]).toEqual([1 << 3]);
  expect([...vm.vm.KVM_GET_DIRTY_LOG(1)]).toEqual([0]);
  nextOut(vm);
  expect([...vm.vm.KVM_GET_DIRTY_LOG(1)]).toEqual([1 << 3]);
});

test("VM entry with invalid guest state gives KVM_EXIT_FAIL_ENTRY with the exit reason and bit 31 (api.rst)", () => {
  const vm = new TestVm([0xf4]);
  vm.vcpu.vmcsView.write(0x6820, 0n); // GUEST_RFLAGS without bit 1
  const exit = vm.run();
  if (exit.exit_reason !== KvmExit.FAIL_ENTRY) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.fail_entry.hardware_entry_failure_reason).toBe(0x80000000n | BigInt(ExitReason.INVALID_STATE));
  expect(vm.kvm.kernelLog.some((line) => line.includes("RFLAGS"))).toBe(true);
});

test("time slices are invisible: a run cut into pieces of 7 instructions ends in the same state as one in one piece", () => {
  const code = [
    0xb9, 0xe8, 0x03, 0x00, 0x00, // mov ecx, 1000
    0x01, 0xc8,                   // add eax, ecx
    0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // imul eax, eax, 1664525
    0x0f, 0xa2 - 0x22 + 0x22,     // cpuid
    0x31, 0xd8,                   // xor eax, ebx
    0xe2, 0xf1,                   // loop
    0xf4,
  ];
  const final = (slice: number) => {
    const vm = new TestVm(code);
    vm.protectedMode();
    for (let i = 0; i < 100_000; i++) {
      const outcome = vm.vcpu.KVM_RUN(slice);
      if (outcome.kind === "exit") break;
      expect(outcome).toEqual({ kind: "yield", reason: "slice" });
    }
    return [vm.vcpu.KVM_GET_REGS(), vm.host.clock.instructions, vm.vcpu.exitsByReason];
  };
  expect(final(7)).toEqual(final(1_000_000));
});

test("CALL, PUSHA and RET with the stack in MMIO write and read it item by item (emulate.c)", () => {
  const vm = new TestVm([
    0xe8, 0x01, 0x00, 0x00, 0x00, // call 1f
    0xf4,                         // hlt
    0x60, 0x61,                   // 1: pusha; popa
    0xc3,                         // ret
  ]);
  vm.protectedMode();
  vm.setRegs({ rip: BigInt(CODE), rsp: 0xe0000100n, rax: 1n, rcx: 2n, rdx: 3n, rbx: 4n, rbp: 5n, rsi: 6n, rdi: 7n });
  const stack = new Uint8Array(0x200);
  const writes: number[] = [];
  for (;;) {
    const exit = vm.run();
    if (exit.exit_reason === KvmExit.HLT) break;
    if (exit.exit_reason !== KvmExit.MMIO) throw new Error(`exit ${exit.exit_reason}`);
    const at = exit.mmio.phys_addr - 0xe0000000;
    if (exit.mmio.is_write) {
      stack.set(exit.mmio.data.subarray(0, exit.mmio.len), at);
      writes.push(at);
    } else {
      exit.mmio.data.set(stack.subarray(at, at + exit.mmio.len));
    }
  }
  expect(writes).toEqual([0xfc, 0xf8, 0xf4, 0xf0, 0xec, 0xe8, 0xe4, 0xe0, 0xdc]);
  const { rip, rsp, rax, rdi } = vm.vcpu.KVM_GET_REGS();
  expect([rip, rsp, rax, rdi]).toEqual([BigInt(CODE + 6), 0xe0000100n, 1n, 7n]);
  expect(new DataView(stack.buffer).getUint32(0xfc, true)).toBe(CODE + 5);
});
