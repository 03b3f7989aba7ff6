// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { KvmExit, KvmInternalError } from "../../engine/kvm/uapi";
import { CODE, TestVm } from "./bench";

/** UD2 "kvm": the instruction behind it is emulated (force_emulation_prefix). */
const FEP = [0x0f, 0x0b, 0x6b, 0x76, 0x6d];
const HLT = 0xf4;
const DATA = 0x6000;

type Mode = "real" | "protected" | "long";

/** A machine in `mode`, and where its next code goes. */
class Runner {
  readonly vm = new TestVm([], { params: { force_emulation_prefix: 1 } });
  private next = CODE;
  private readonly sregs;

  constructor(mode: Mode) {
    this.vm.host.poke(0x3f00, [HLT]);
    if (mode === "protected") this.vm.protectedMode();
    if (mode === "long") this.vm.longMode();
    const sregs = this.vm.vcpu.KVM_GET_SREGS();
    this.sregs = { ...sregs, cr4: sregs.cr4 | 0x600n };
  }

  /** Puts code with HLTs behind it where none was before. */
  place(bytes: readonly number[]): number {
    const at = this.next;
    this.next += 32;
    this.vm.host.poke(at, [...bytes, ...new Array<number>(32 - bytes.length).fill(HLT)]);
    this.vm.vcpu.KVM_SET_SREGS(this.sregs);
    return at;
  }
}

/** Runs one instruction, by the processor or by the emulator, and gives what it left behind. */
function outcome(runner: Runner, wide: 32 | 64, bytes: readonly number[], forced: boolean, seed: number, undefinedFlags: bigint): string {
  const { vm } = runner;
  const at = runner.place([...(forced ? FEP : []), ...bytes]);
  let x = BigInt(seed) * 0x9e3779b97f4a7c15n;
  const next = () => {
    x = BigInt.asUintN(64, x * 6364136223846793005n + 1442695040888963407n);
    return x;
  };
  for (let i = 0; i < 64; i += 8) vm.host.poke64(DATA + i, next());
  const xmm = new Uint8Array(256);
  for (let i = 0; i < 256; i++) xmm[i] = Number(next() >> 56n);
  vm.vcpu.KVM_SET_FPU({ ...vm.vcpu.KVM_GET_FPU(), xmm });
  const random = () => BigInt.asUintN(wide, next());
  vm.setRegs({
    rax: random(), rbx: BigInt(DATA), rcx: random(), rdx: random() & 0x7fffn, rsi: BigInt(DATA + 8), rdi: BigInt(DATA + 24),
    rbp: BigInt(DATA + 16), rsp: 0x8000n, r8: random(), r9: random(), rflags: 2n | (next() & 0x8d5n),
    rip: BigInt(at), r10: 0n,
  });
  vm.host.poke(0x7fc0, new Array<number>(80).fill(0));
  const exit = vm.run();
  const regs = vm.vcpu.KVM_GET_REGS();
  const show = (n: bigint) => n.toString(16);
  const flags = regs.rflags & ~(0x10000n | undefinedFlags);
  return [
    exit.exit_reason,
    ...Object.entries(regs).map(([name, v]) => (name === "rip" ? show(v - BigInt(at) - (forced ? 5n : 0n)) : name === "rflags" ? show(flags) : show(v))),
    vm.vcpu.KVM_GET_SREGS().ss.selector, vm.vcpu.KVM_GET_SREGS().ds.selector,
    [...vm.host.peek(DATA, 64)].join(","), [...vm.host.peek(0x7fc0, 64)].join(","), [...vm.vcpu.KVM_GET_FPU().xmm].join(","),
  ].join(" ");
}

const LONG: readonly [string, number[]][] = [
  ["add [rbx], eax", [0x01, 0x03]], ["adc al, [rbx]", [0x12, 0x03]], ["sbb [rbx], cx", [0x66, 0x19, 0x0b]],
  ["cmp rax, [rbx]", [0x48, 0x3b, 0x03]], ["xor r8, r9", [0x4d, 0x31, 0xc8]], ["and byte [rbx], 0x5a", [0x80, 0x23, 0x5a]],
  ["add qword [rbx], -3", [0x48, 0x83, 0x03, 0xfd]], ["cmp byte [rbx], -1", [0x80, 0x3b, 0xff]], ["imul rax, [rbx], -9", [0x48, 0x6b, 0x03, 0xf7]],
  ["or r8, -128", [0x49, 0x83, 0xc8, 0x80]], ["mov qword [rbx], -2", [0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff]], ["test eax, 0x12345678", [0xa9, 0x78, 0x56, 0x34, 0x12]], ["not qword [rbx]", [0x48, 0xf7, 0x13]], ["neg cl", [0xf6, 0xd9]],
  ["inc word [rbx]", [0x66, 0xff, 0x03]], ["dec r9", [0x49, 0xff, 0xc9]], ["lea rax, [rbx+rcx*4+5]", [0x48, 0x8d, 0x44, 0x8b, 0x05]],
  ["mov ah, bh", [0x88, 0xfc]], ["movzx eax, byte [rbx]", [0x0f, 0xb6, 0x03]], ["movsx rax, word [rbx]", [0x48, 0x0f, 0xbf, 0x03]],
  ["movsxd rax, [rbx]", [0x48, 0x63, 0x03]], ["bswap r8", [0x49, 0x0f, 0xc8]], ["xchg [rbx], rcx", [0x48, 0x87, 0x0b]],
  ["xadd [rbx], rcx", [0x48, 0x0f, 0xc1, 0x0b]], ["cmpxchg [rbx], ecx", [0x0f, 0xb1, 0x0b]],
  ["cmpxchg16b [rbx]", [0x48, 0x0f, 0xc7, 0x0b]], ["shl qword [rbx], cl", [0x48, 0xd3, 0x23]], ["rcl al, 3", [0xc0, 0xd0, 0x03]],
  ["ror word [rbx], 9", [0x66, 0xc1, 0x0b, 0x09]], ["shld rax, r8, 13", [0x4c, 0x0f, 0xa4, 0xc0, 0x0d]],
  ["imul rax, [rbx], 77", [0x48, 0x6b, 0x03, 0x4d]], ["bts [rbx], ecx (register)", [0x0f, 0xab, 0xc8]],
  ["bt qword [rbx], 17", [0x48, 0x0f, 0xba, 0x23, 0x11]], ["bsf rcx, [rbx]", [0x48, 0x0f, 0xbc, 0x0b]], ["bsr eax, ecx", [0x0f, 0xbd, 0xc1]],
  ["sete [rbx]", [0x0f, 0x94, 0x03]], ["cmovl rax, [rbx]", [0x48, 0x0f, 0x4c, 0x03]], ["cdqe", [0x48, 0x98]], ["cqo", [0x48, 0x99]],
  ["push qword [rbx]", [0xff, 0x33]], ["pop qword [rbx]", [0x8f, 0x03]], ["push -5", [0x6a, 0xfb]], ["pushfq", [0x9c]],
  ["enter 16, 0", [0xc8, 0x10, 0, 0]], ["leave", [0xc9]], ["xlat", [0xd7]], ["lahf", [0x9f]], ["sahf", [0x9e]],
  ["cmc", [0xf5]], ["std", [0xfd]], ["jz +1", [0x74, 0x01]], ["loop +1", [0xe2, 0x01]], ["jrcxz +1", [0xe3, 0x01]], ["call +1", [0xe8, 1, 0, 0, 0]],
  ["movsb", [0xa4]], ["lodsq", [0x48, 0xad]], ["stosd", [0xab]], ["scasw", [0x66, 0xaf]], ["cmpsq", [0x48, 0xa7]],
  ["movups xmm1, [rbx]", [0x0f, 0x10, 0x0b]], ["movaps [rbx], xmm2", [0x0f, 0x29, 0x13]], ["movdqu [rsi], xmm3", [0xf3, 0x0f, 0x7f, 0x1e]],
  ["movdqa xmm4, [rbx]", [0x66, 0x0f, 0x6f, 0x23]], ["movq xmm5, [rbx]", [0xf3, 0x0f, 0x7e, 0x2b]], ["movq [rbx], xmm6", [0x66, 0x0f, 0xd6, 0x33]],
  ["movd xmm1, [rbx]", [0x66, 0x0f, 0x6e, 0x0b]], ["movq rax, xmm2", [0x66, 0x48, 0x0f, 0x7e, 0xd0]], ["movntdq [rbx], xmm1", [0x66, 0x0f, 0xe7, 0x0b]],
  ["movnti [rbx], rcx", [0x48, 0x0f, 0xc3, 0x0b]], ["movss xmm1, [rbx]", [0xf3, 0x0f, 0x10, 0x0b]], ["movsd [rbx], xmm1", [0xf2, 0x0f, 0x11, 0x0b]],
  ["movlps xmm1, [rbx]", [0x0f, 0x12, 0x0b]], ["movhpd [rbx], xmm1", [0x66, 0x0f, 0x17, 0x0b]],
  ["fnstcw [rbx]", [0xd9, 0x3b]], ["smsw eax", [0x0f, 0x01, 0xe0]], ["mov rax, cr0", [0x0f, 0x20, 0xc0]],
  ["mov rax, cr4", [0x0f, 0x20, 0xe0]], ["sgdt [rbx]", [0x0f, 0x01, 0x03]], ["sidt [rbx]", [0x0f, 0x01, 0x0b]],
  ["mov dr0, rax; no", [0x0f, 0x23, 0xc0]], ["mov [rbx], ds", [0x8c, 0x1b]], ["cld", [0xfc]], ["nop", [0x90]],
];
const PROTECTED: readonly [string, number[]][] = [
  ["pusha", [0x60]], ["popa", [0x61]], ["daa", [0x27]], ["das", [0x2f]], ["aaa", [0x37]], ["aas", [0x3f]], ["aam 10", [0xd4, 0x0a]], ["aad 10", [0xd5, 0x0a]],
  ["cwde", [0x98]], ["push ds", [0x1e]], ["jmp [ebx] is far away", [0x40]], ["salc", [0xd6]], ["inc ecx", [0x41]],
  ["xchg ax, cx", [0x66, 0x91]], ["mov eax, [0x6004]", [0xa1, 0x04, 0x60, 0, 0]], ["add [ebx+ecx*0], dl", [0x00, 0x13]],
];
const REAL: readonly [string, number[]][] = [
  ["mov ax, [bx]", [0x8b, 0x07]], ["push es", [0x06]], ["pop ds", [0x1f]], ["mov ss, dx", [0x8e, 0xd2]], ["mov ds, ax", [0x8e, 0xd8]],
  ["lds si, [bx]", [0xc5, 0x37]], ["call 0:0x3f00", [0x9a, 0x00, 0x3f, 0, 0]], ["pushf", [0x9c]], ["popf", [0x9d]], ["cli", [0xfa]],
  ["add eax, ecx", [0x66, 0x01, 0xc8]], ["mul word [bx]", [0xf7, 0x27]], ["cbw", [0x98]], ["cwd", [0x99]], ["movsw", [0xa5]],
];

for (const [mode, list] of [["long", LONG], ["protected", PROTECTED], ["real", REAL]] as const) {
  test(`the emulator leaves what the processor leaves: ${list.length} instructions, ${mode} mode (force_emulation_prefix)`, () => {
    const native = new Runner(mode);
    const emulating = new Runner(mode);
    const wide = mode === "long" ? 64 : 32;
    for (const [name, bytes] of list) {
      for (let seed = 1; seed <= 3; seed++) {
        // Of the flags only ZF is defined after a bit scan (SDM 2A).
        const undefinedFlags = name.startsWith("bs") && !name.startsWith("bswap") ? 0x895n : 0n;
        const expected = outcome(native, wide, bytes, false, seed, undefinedFlags);
        const emulated = outcome(emulating, wide, bytes, true, seed, undefinedFlags);
        // Relative calls push a return address behind a longer instruction.
        if (name.startsWith("call")) expect(emulated.split(" ")[0], name).toBe(expected.split(" ")[0]);
        else expect(emulated, `${name}, seed ${seed}`).toBe(expected);
      }
    }
  });
}

test("without the parameter the prefix is an ordinary #UD (handle_ud)", () => {
  const vm = new TestVm([...FEP, 0x90, HLT]);
  // Vector 6 of the real-mode table: 0:0x2000.
  vm.host.poke(0x18, [0x00, 0x20, 0, 0]);
  vm.host.poke(0x2000, [0xf4]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(0x2001n);
});

test("INT, IRET and far jumps of real mode go through the vector table and real-mode segments (em_int, em_iret_real)", () => {
  const vm = new TestVm([
    ...FEP, 0xcd, 0x21,                   // int 0x21
    ...FEP, 0xea, 0x00, 0x00, 0x00, 0x03, // jmp 0x300:0
  ], { params: { force_emulation_prefix: 1 } });
  vm.host.poke(0x84, [0x00, 0x00, 0x00, 0x02]); // vector 0x21: 0x200:0
  vm.host.poke(0x2000, [0xb8, 0x34, 0x12, ...FEP, 0xcf]); // mov ax, 0x1234; iret
  vm.host.poke(0x3000, [0xf4]);
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  const { cs } = vm.vcpu.KVM_GET_SREGS();
  expect([cs.selector, cs.base, vm.vcpu.KVM_GET_REGS().rax & 0xffffn, vm.vcpu.KVM_GET_REGS().rsp]).toEqual([0x300, 0x3000n, 0x1234n, 0x8000n]);
});

test("a protected-mode segment load checks type, privilege and presence, and marks the descriptor accessed (SDM 3A 5.5, 3.4.5)", () => {
  const load = (low: number, high: number, selector: number) => {
    const vm = new TestVm([0x66, 0xb8, selector, 0, ...FEP, 0x8e, 0xd8, HLT], { params: { force_emulation_prefix: 1 } }); // mov ax, sel; mov ds, ax
    vm.protectedMode();
    const sregs = vm.vcpu.KVM_GET_SREGS();
    vm.vcpu.KVM_SET_SREGS({ ...sregs, gdt: { base: 0x5000n, limit: 0x2f }, idt: { base: 0x5800n, limit: 0x7ff } });
    vm.host.poke64(0x5020, (BigInt(high >>> 0) << 32n) | BigInt(low));
    vm.host.poke64(0x5008, 0x00cf9b000000ffffn);
    for (let v = 0; v < 32; v++) vm.host.poke64(0x5800 + v * 8, 0x00008e0000080000n | BigInt(0x7000 + v * 16));
    for (let v = 0; v < 32; v++) vm.host.poke(0x7000 + v * 16, [0xb3, v, HLT]); // mov bl, v; hlt
    vm.setRegs({ rip: BigInt(CODE), rsp: 0x8000n, rbx: 0xffn });
    expect(vm.run().exit_reason).toBe(KvmExit.HLT);
    const bl = Number(vm.vcpu.KVM_GET_REGS().rbx & 0xffn);
    return bl === 0xff ? `ds base ${vm.vcpu.KVM_GET_SREGS().ds.base.toString(16)} type ${vm.host.peek32(0x5024) >>> 8 & 15}` : `#${bl} ${vm.host.peek32(Number(vm.vcpu.KVM_GET_REGS().rsp))}`;
  };
  expect(load(0x1234ffff, 0x00cf9200, 0x20)).toBe("ds base 1234 type 3");
  expect(load(0x1234ffff, 0x00cf1200, 0x20)).toBe("#11 32"); // not present
  expect(load(0x1234ffff, 0x00cf9800, 0x20)).toBe("#13 32"); // execute only
  expect(load(0x1234ffff, 0x00cf9200, 0x23)).toBe("#13 32"); // RPL above DPL
  expect(load(0x1234ffff, 0x00cf8900, 0x20)).toBe("#13 32"); // system segment
  expect(load(0x1234ffff, 0x00cf9200, 0x30)).toBe("#13 48"); // beyond the table
  expect(load(0x1234ffff, 0x00cf9200, 0x00)).toBe("ds base 0 type 2"); // null
});

test("SIMD moves reach memory-mapped registers in pieces of eight bytes (emulate.c: movups, movdqa, movnti)", () => {
  const vm = new TestVm([
    0x0f, 0x10, 0x06,       // movups xmm0, [rsi]
    0x0f, 0x11, 0x07,       // movups [rdi], xmm0
    0xf3, 0x0f, 0x6f, 0x0f, // movdqu xmm1, [rdi]
    0xf4,
  ]);
  vm.longMode();
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, cr4: sregs.cr4 | 0x200n });
  vm.host.poke(DATA, Array.from({ length: 16 }, (_, i) => i + 1));
  vm.setRegs({ rip: BigInt(CODE), rsi: BigInt(DATA), rdi: 0xe0000000n });
  const seen: string[] = [];
  for (;;) {
    const exit = vm.run();
    if (exit.exit_reason === KvmExit.HLT) break;
    if (exit.exit_reason !== KvmExit.MMIO) throw new Error(`exit ${exit.exit_reason}`);
    seen.push(`${exit.mmio.is_write} ${exit.mmio.phys_addr.toString(16)} ${exit.mmio.len} ${exit.mmio.is_write ? exit.mmio.data.join(",") : ""}`);
    if (!exit.mmio.is_write) exit.mmio.data.fill(exit.mmio.phys_addr & 15 ? 7 : 9);
  }
  expect(seen).toEqual(["1 e0000000 8 1,2,3,4,5,6,7,8", "1 e0000008 8 9,10,11,12,13,14,15,16", "0 e0000000 8 ", "0 e0000008 8 "]);
  expect([...vm.vcpu.KVM_GET_FPU().xmm.subarray(16, 32)]).toEqual([9, 9, 9, 9, 9, 9, 9, 9, 7, 7, 7, 7, 7, 7, 7, 7]);
});

test("an unaligned MOVAPS to a memory-mapped register is #GP(0), a transfer through a gate is not emulated (emulate.c)", () => {
  const vm = new TestVm([0x0f, 0x29, 0x07, HLT]); // movaps [rdi], xmm0
  vm.protectedMode();
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, cr4: 0x200n, gdt: { base: 0x5000n, limit: 0x2f }, idt: { base: 0x5800n, limit: 0x7ff } });
  vm.host.poke64(0x5008, 0x00cf9b000000ffffn);
  vm.host.poke64(0x5800 + 13 * 8, 0x00008e0000087000n);
  vm.host.poke(0x7000, [HLT]);
  vm.setRegs({ rip: BigInt(CODE), rdi: 0xe0000004n, rsp: 0x8000n });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(0x7001n);
  expect(vm.host.peek32(Number(vm.vcpu.KVM_GET_REGS().rsp))).toBe(0);

  const gate = new TestVm([...FEP, 0xea, 0, 0, 0, 0, 0x10, 0], { params: { force_emulation_prefix: 1 } });
  gate.protectedMode();
  gate.vcpu.KVM_SET_SREGS({ ...gate.vcpu.KVM_GET_SREGS(), gdt: { base: 0x5000n, limit: 0x2f } });
  gate.host.poke64(0x5010, 0x00008c0000081000n); // a call gate
  const exit = gate.run();
  if (exit.exit_reason !== KvmExit.INTERNAL_ERROR) throw new Error(`exit ${exit.exit_reason}`);
  expect(exit.internal.suberror).toBe(KvmInternalError.EMULATION);
});

test("VMware's backdoor ports are open at any privilege with enable_vmware_backdoor, others stay #GP (x86.c: is_vmware_backdoor_opcode)", () => {
  const run = (port: number, enabled: boolean) => {
    const vm = new TestVm([0xed, HLT], { params: { enable_vmware_backdoor: enabled } }); // in eax, dx
    vm.protectedMode();
    const sregs = vm.vcpu.KVM_GET_SREGS();
    const user = (s: typeof sregs.cs) => ({ ...s, dpl: 3, selector: s.selector | 3 });
    vm.vcpu.KVM_SET_SREGS({
      ...sregs, cs: user(sregs.cs), ss: user(sregs.ss), ds: user(sregs.ds), es: user(sregs.es),
      tr: { ...sregs.tr, base: 0x5400n, limit: 103, type: 11, present: 1, s: 0, unusable: 0, selector: 0x28 },
      gdt: { base: 0x5000n, limit: 0x2f }, idt: { base: 0x5800n, limit: 0x7ff },
    });
    vm.host.poke64(0x5008, 0x00cf9b000000ffffn);
    vm.host.poke64(0x5010, 0x00cf93000000ffffn);
    vm.host.poke64(0x5404, 0x0000001000009000n); // esp0, ss0
    vm.host.poke64(0x5800 + 13 * 8, 0x00008e0000087000n);
    vm.host.poke(0x7000, [HLT]);
    vm.setRegs({ rip: BigInt(CODE), rdx: BigInt(port), rsp: 0x8000n });
    const exit = vm.run();
    return exit.exit_reason === KvmExit.IO ? `io ${exit.io.port.toString(16)}` : exit.exit_reason === KvmExit.HLT ? "#GP" : `exit ${exit.exit_reason}`;
  };
  expect(run(0x5658, true)).toBe("io 5658");
  expect(run(0x5657, true)).toBe("#GP");
  expect(run(0x5658, false)).toBe("#GP");
});
