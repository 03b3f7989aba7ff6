import { describe, expect, test } from "vitest";
import { Activity, Gpr, Off, Seg } from "../../../engine/cpu/state";
import { CODE, DATA, GDT, IDT, program, STACK_TOP, TSS } from "./program";

const NOP = 0x90;

describe("priorities and shadows", () => {
  test("STI holds maskable interrupts off until the next instruction has retired (3A 6.8.1)", () => {
    const p = program("long");
    p.interrupt = 0x40;
    // sti; inc eax; inc eax
    const end = p.exec([0xfb, 0xff, 0xc0, 0xff, 0xc0]);
    expect(end.vector).toBe(0x40);
    expect(end.stack[0]).toBe(BigInt(CODE + 3));
  });

  test("STI with IF set already holds nothing off (2B STI)", () => {
    const p = program("long");
    // out 0x2000, al pulls the interrupt line: mov edx, 0x2000; mov al, 0x41; sti; out dx, al; nop
    const end = p.exec([0xba, 0x00, 0x20, 0, 0, 0xb0, 0x41, 0xfb, 0xee, NOP], { flags: 0x200 });
    expect(end.vector).toBe(0x41);
    expect(end.stack[0]).toBe(BigInt(CODE + 9));
  });

  test("MOV SS holds interrupts off for one instruction (3A 6.8.3)", () => {
    const p = program("long");
    // The line comes up in the shadow: mov edx, 0x2000; mov al, 0x42; mov ecx, ss; mov ss, ecx; out dx, al; nop
    const code = [0xba, 0x00, 0x20, 0, 0, 0xb0, 0x42, 0x8c, 0xd1, 0x8e, 0xd1, 0xee, NOP];
    const after = p.exec(code, { flags: 0x200 });
    expect(after.vector).toBe(0x42);
    expect(after.stack[0]).toBe(BigInt(CODE + 12));
  });

  test("an NMI goes before a maskable interrupt, and blocks NMIs until IRET (3A 6.7.1, table 6-2)", () => {
    const p = program("long");
    p.interrupt = 0x43;
    p.memory.write(CODE, Uint8Array.of(NOP));
    p.cpu.signal("nmi");
    const end = p.exec([NOP, NOP], { flags: 0x200 });
    expect(end.vector).toBe(2);
    p.cpu.signal("nmi");
    // In the handler (HLT) the second NMI waits. IRETQ behind the stub's HLT ends the blocking.
    p.memory.write(0x4021, Uint8Array.of(0x48, 0xcf));
    p.cpu.code.invalidatePhysical(0x4021, 2);
    const again = p.resume();
    expect(again.vector).toBe(2);
    expect(again.stack[0]).toBe(BigInt(CODE));
  });

  test("an interrupt ends HLT, and the return address is behind it (2A HLT)", () => {
    const p = program("long");
    expect(p.exec([0xfb, NOP, 0xf4, NOP]).vector).toBe("hlt");
    expect(p.cpu.state.activity).toBe(Activity.HLT);
    p.interrupt = 0x44;
    p.cpu.attention();
    p.run(10);
    expect(p.cpu.state.rip).toBe(BigInt(0x4000 + 0x44 * 16 + 1));
    expect(p.u64(Number(p.gpr(Gpr.RSP)))).toBe(BigInt(CODE + 3));
  });

  test("INIT leaves a BSP at the reset vector with CR0.ET, CD and NW kept (3A table 9-1)", () => {
    const p = program("long");
    p.cpu.state.setLo(Off.CR0, p.cpu.state.lo(Off.CR0) | 0x4000_0000);
    p.cpu.signal("init");
    p.cpu.run(0);
    const { state } = p.cpu;
    expect(state.lo(Off.CR0)).toBe(0x4000_0010);
    expect(state.segBase(Seg.CS)).toBe(0xffff_0000n);
    expect(state.segSelector(Seg.CS)).toBe(0xf000);
  });

  test("a start-up IPI starts a waiting processor at vector * 4096 in real-address mode (3A 9.4.3)", () => {
    const p = program("real");
    p.cpu.state.activity = Activity.WAIT_FOR_SIPI;
    p.memory.write(0x7000, Uint8Array.of(0xf4));
    p.cpu.signal("sipi", 7);
    p.cpu.run(10);
    expect(p.cpu.state.segBase(Seg.CS)).toBe(0x7000n);
    expect(p.cpu.state.rip).toBe(1n);
  });
});

describe("single step and debug registers", () => {
  test("TF traps behind each instruction, with DR6.BS, and pushes RIP of the next (3B 17.3.1.4)", () => {
    const p = program("long");
    const end = p.exec([0xff, 0xc0, 0xff, 0xc0], { flags: 0x100 });
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 2));
    expect(p.cpu.state.lo(Off.DR6) & 0x4000).toBe(0x4000);
    // The handler runs with TF clear; the pushed flags have it.
    expect(Number(end.stack[2]) & 0x100).toBe(0x100);
  });

  test("POPF that sets TF traps only behind the following instruction (3B 17.3.1.4)", () => {
    const p = program("long");
    // pushfq; or qword [rsp], 0x100; popfq; inc eax; inc eax
    const end = p.exec([0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0xff, 0xc0, 0xff, 0xc0]);
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 12));
  });

  test("an instruction breakpoint is a fault before the instruction, which RF lets pass once (3B 17.3.1.1)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.DR0, BigInt(CODE + 2));
    p.cpu.state.setU64(Off.DR7, 0x401n);
    const end = p.exec([0xff, 0xc0, 0xff, 0xc0]);
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 2));
    expect(p.cpu.state.lo(Off.DR6) & 0xf).toBe(1);
    const passed = p.exec([NOP, NOP, 0xff, 0xc0], { flags: 0x10000 });
    expect(passed.vector).toBe(1);
  });

  test("a data breakpoint traps behind the instruction that touched it (3B 17.3.1.2)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.DR0 + 8, BigInt(DATA + 4));
    // L1, write, four bytes
    p.cpu.state.setU64(Off.DR7, 0x400n | 4n | (0xdn << 20n));
    // mov eax, [DATA+4]; mov [DATA+6], al; nop
    const code = [0x8b, 0x04, 0x25, 4, 0x20, 1, 0, 0x88, 0x04, 0x25, 6, 0x20, 1, 0, NOP];
    const end = p.exec(code);
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 14));
    expect(p.cpu.state.lo(Off.DR6) & 0xf).toBe(2);
  });

  test("with DR7.GD an access to a debug register is #DB with BD, and GD is clear in the handler (3B 17.2.4)", () => {
    const p = program("long");
    p.cpu.state.setU64(Off.DR7, 0x2400n);
    const end = p.exec([NOP, 0x0f, 0x21, 0xc0]);
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 1));
    expect(p.cpu.state.lo(Off.DR6) & 0x2000).toBe(0x2000);
    expect(p.cpu.state.lo(Off.DR7) & 0x2000).toBe(0);
  });

  test("with CR4.DE, DR4 and DR5 are #UD and a breakpoint can stand on a port (3B 17.2.2, 17.2.4)", () => {
    const p = program("long");
    expect(p.exec([0x0f, 0x21, 0xe0]).vector).toBe("hlt");
    p.cpu.state.setU64(Off.CR4, 0x28n);
    expect(p.exec([0x0f, 0x21, 0xe0]).vector).toBe(6);
    p.cpu.state.setU64(Off.DR0, 0x80n);
    p.cpu.state.setU64(Off.DR7, 0x401n | (2n << 16n));
    const end = p.exec([0xe4, 0x80, NOP]);
    expect(end.vector).toBe(1);
    expect(end.stack[0]).toBe(BigInt(CODE + 2));
  });
});

describe("one event after the other", () => {
  test("a contributory fault in the delivery of a contributory fault is a double fault (3A table 6-5)", () => {
    const p = program("protected");
    // #GP gate not present: #NP in its delivery.
    p.setU64(IDT + 13 * 8, p.u64(IDT + 13 * 8) & ~(0x80n << 40n));
    // mov eax, 0xfff8; mov ds, eax
    const end = p.exec([0xb8, 0xf8, 0xff, 0, 0, 0x8e, 0xd8]);
    expect(end.vector).toBe(8);
    expect(end.stack[0]).toBe(0n);
    expect(end.stack[1]).toBe(BigInt(CODE + 5));
  });

  test("a fault in the delivery of an interrupt is just that fault, with EXT (3A 6.13)", () => {
    const p = program("protected");
    p.setU64(IDT + 0x45 * 8, p.u64(IDT + 0x45 * 8) & ~(0x80n << 40n));
    p.interrupt = 0x45;
    const end = p.exec([NOP], { flags: 0x200 });
    expect(end.vector).toBe(11);
    expect(end.stack[0]).toBe(BigInt(0x45 * 8 + 3));
  });

  test("INT n through a gate that is not present has no EXT (3A 6.13)", () => {
    const p = program("protected");
    p.setU64(IDT + 0x45 * 8, p.u64(IDT + 0x45 * 8) & ~(0x80n << 40n));
    const end = p.exec([0xcd, 0x45]);
    expect(end.vector).toBe(11);
    expect(end.stack[0]).toBe(BigInt(0x45 * 8 + 2));
  });

  test("a fault in the delivery of a double fault shuts the processor down, and the chain is told (3A 6.15)", () => {
    const p = program("protected");
    p.cpu.state.setU32(Off.IDTR_LIMIT, 0);
    const end = p.exec([0x0f, 0x0b]);
    expect(p.cpu.state.activity).toBe(Activity.SHUTDOWN);
    expect(end.vector).toBe(
      "triple fault: #UD (CS:RIP 0x8:0x10000), then #GP error code 0x33 (CS:RIP 0x8:0x10000), " +
        "then #GP error code 0x6b (CS:RIP 0x8:0x10000), then #DF error code 0x0 (CS:RIP 0x8:0x10000), " +
        "then #GP error code 0x43 (CS:RIP 0x8:0x10000)",
    );
  });

  test("faults push RFLAGS with RF set, traps and interrupts as it is (3B 17.3.1.1)", () => {
    const p = program("long");
    expect(Number(p.exec([0x0f, 0x0b]).stack[2]) & 0x10000).toBe(0x10000);
    expect(Number(p.exec([0xcc]).stack[2]) & 0x10000).toBe(0);
  });

  test("an exception from CPL 3 takes RSP0 of the 64-bit TSS, aligns it, and nulls SS (3A 6.14.2, 6.14.4)", () => {
    const p = program("long");
    p.setU64(TSS + 4, BigInt(STACK_TOP - 3));
    const end = p.exec([0xf4], { cpl: 3 });
    expect(end.vector).toBe(13);
    // Error code, RIP, CS, RFLAGS, RSP, SS below the aligned top.
    expect(p.gpr(Gpr.RSP)).toBe(BigInt(STACK_TOP - 16 - 48));
    expect(end.stack.slice(0, 3)).toEqual([0n, BigInt(CODE), 0x43n]);
    expect(p.cpu.state.segSelector(Seg.SS)).toBe(0);
    expect(p.cpu.state.cpl).toBe(0);
  });

  test("a stack pointer that is not canonical makes delivery fail with #SS, here a double fault (3A 6.14.2)", () => {
    const p = program("long");
    p.setU64(TSS + 4, 0x8000_0000_0000_0000n);
    // #DF on IST 1.
    p.setU64(TSS + 0x24, BigInt(STACK_TOP));
    p.setU64(IDT + 8 * 16, p.u64(IDT + 8 * 16) | (1n << 32n));
    expect(p.exec([0xf4], { cpl: 3 }).vector).toBe(8);
  });

  test("an interrupt gate clears IF, a trap gate does not (3A 6.12.1.3)", () => {
    const p = program("long");
    p.exec([0xcd, 0x50], { flags: 0x200 });
    expect(p.cpu.state.rflags & 0x200).toBe(0);
    p.setU64(IDT + 0x50 * 16, p.u64(IDT + 0x50 * 16) | (1n << 40n));
    p.exec([0xcd, 0x50], { flags: 0x200 });
    expect(p.cpu.state.rflags & 0x200).toBe(0x200);
  });

  test("delivery checks the handler's offset against the limit of its segment (2A INT n)", () => {
    const p = program("protected");
    // Code segment of 256 bytes for the gate of vector 0x50.
    p.setU64(GDT + 0x40, 0x00409b00000000ffn);
    p.setU64(IDT + 0x50 * 8, (p.u64(IDT + 0x50 * 8) & ~0xffff_0000n) | 0x0040_0000n);
    const end = p.exec([0xcd, 0x50]);
    expect(end.vector).toBe(13);
    expect(end.stack[0]).toBe(0n);
  });
});
