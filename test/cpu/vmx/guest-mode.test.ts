import { describe, expect, test } from "vitest";
import { CpuFault, Vector } from "../../../engine/cpu/cpu";
import type { SimpleIntercept } from "../../../engine/cpu/guest-mode";
import { type Instruction, newInstruction, OperandKind, RIP_BASE } from "../../../engine/cpu/isa/instruction";
import { Activity, Inhibit, Off, Pending } from "../../../engine/cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { TraceKind } from "../../../engine/trace";
import { PAGES, type TestVmcs, validVmcs } from "./valid-vmcs";

const VALID = 1 << 31;

function instruction(length = 2, change: Partial<Instruction> = {}): Instruction {
  return Object.assign(newInstruction(), { length, addressSize: 8, ...change });
}
function withRegister(i: Instruction, index: number, reg: number): Instruction {
  Object.assign(i.operands[index], { kind: OperandKind.GPR, reg, size: 8 });
  return i;
}
/** [rbx + rsi * 4 + 0x10], DS. */
function withMemory(i: Instruction, index: number): Instruction {
  Object.assign(i, { base: 3, index: 6, scale: 2, displacement: 0x10, segment: 3 });
  Object.assign(i.operands[index], { kind: OperandKind.MEMORY, size: 8 });
  return i;
}
const MEMORY_INFO = 2 | (2 << 7) | (3 << 15) | (6 << 18) | (3 << 23);

describe("instructions that always exit (SDM 3C 26.1.2)", () => {
  const always: readonly (readonly [SimpleIntercept, number])[] = [
    ["cpuid", ExitReason.CPUID],
    ["getsec", ExitReason.GETSEC],
    ["invd", ExitReason.INVD],
    ["xsetbv", ExitReason.XSETBV],
    ["vmcall", ExitReason.VMCALL],
    ["vmlaunch", ExitReason.VMLAUNCH],
    ["vmresume", ExitReason.VMRESUME],
    ["vmxoff", ExitReason.VMOFF],
  ];
  for (const [what, reason] of always) {
    test(`${what.toUpperCase()} exits with its length and nothing else`, () => {
      const vm = validVmcs().enter();
      vm.cpu.state.rflags = 0x10002;
      expect(vm.exitOf(() => vm.guest.interceptInstruction(what, instruction(3)))).toBe(reason);
      expect(vm.get(Field.VM_EXIT_INSTRUCTION_LEN)).toBe(3n);
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0n);
      expect(vm.get(Field.VM_EXIT_INTR_INFO)).toBe(0n);
      expect(vm.get(Field.IDT_VECTORING_INFO_FIELD)).toBe(0n);
      // RFLAGS.RF is saved as 0 for instructions (28.3.3).
      expect(vm.get(Field.GUEST_RFLAGS)).toBe(2n);
    });
  }

  const pointers: readonly (readonly [SimpleIntercept, number])[] = [
    ["vmclear", ExitReason.VMCLEAR],
    ["vmptrld", ExitReason.VMPTRLD],
    ["vmptrst", ExitReason.VMPTRST],
    ["vmxon", ExitReason.VMON],
  ];
  for (const [what, reason] of pointers) {
    test(`${what.toUpperCase()} tells its operand: displacement and instruction information (table 28-13)`, () => {
      const vm = validVmcs().enter();
      const i = withMemory(instruction(5), 0);
      expect(vm.exitOf(() => vm.guest.interceptInstruction(what, i))).toBe(reason);
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x10n);
      expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe(MEMORY_INFO);
    });
  }

  test("a RIP-relative operand is reported with the next RIP added (28.2.1)", () => {
    const vm = validVmcs().enter();
    const i = withMemory(instruction(7), 0);
    Object.assign(i, { base: RIP_BASE, index: 16, scale: 0, displacement: -0x20, displacementHigh: -1 });
    vm.exitOf(() => vm.guest.interceptInstruction("vmclear", i));
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x10_0000n + 7n - 0x20n);
    expect(vm.get32(Field.VMX_INSTRUCTION_INFO) & (1 << 27)).not.toBe(0);
  });

  test("VMREAD and VMWRITE name the field register and the value operand (table 28-14)", () => {
    const vm = validVmcs().enter();
    const read = withRegister(withRegister(instruction(3), 0, 7), 1, 2);
    expect(vm.exitOf(() => vm.guest.interceptInstruction("vmread", read))).toBe(ExitReason.VMREAD);
    expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe((2 << 28) | (1 << 10) | (7 << 3));
    vm.enter();
    const write = withMemory(withRegister(instruction(3), 0, 1), 1);
    expect(vm.exitOf(() => vm.guest.interceptInstruction("vmwrite", write))).toBe(ExitReason.VMWRITE);
    expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe(MEMORY_INFO | (1 << 28));
  });

  test("INVEPT and INVVPID name the type register (table 28-9)", () => {
    const vm = validVmcs().enter();
    const i = withMemory(withRegister(instruction(5), 0, 9), 1);
    expect(vm.exitOf(() => vm.guest.interceptInstruction("invvpid", i))).toBe(ExitReason.INVVPID);
    expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe((MEMORY_INFO | (9 << 28)) >>> 0);
  });
});

describe("instructions that exit by a control (SDM 3C 26.1.3)", () => {
  const primary: readonly (readonly [SimpleIntercept, number, number])[] = [
    ["hlt", CpuBased.HLT_EXITING, ExitReason.HLT],
    ["rdpmc", CpuBased.RDPMC_EXITING, ExitReason.RDPMC],
    ["rdtsc", CpuBased.RDTSC_EXITING, ExitReason.RDTSC],
    ["monitor", CpuBased.MONITOR_EXITING, ExitReason.MONITOR_INSTRUCTION],
    ["mwait", CpuBased.MWAIT_EXITING, ExitReason.MWAIT_INSTRUCTION],
    ["pause", CpuBased.PAUSE_EXITING, ExitReason.PAUSE_INSTRUCTION],
  ];
  for (const [what, control, reason] of primary) {
    test(`${what.toUpperCase()} exits with its control and not without`, () => {
      const run = (vm: TestVmcs) => vm.exitOf(() => vm.guest.interceptInstruction(what, instruction()));
      expect(run(validVmcs().primary(control).enter())).toBe(reason);
      expect(run(validVmcs().off(Field.CPU_BASED_VM_EXEC_CONTROL, control).enter())).toBeNull();
    });
  }

  test("WBINVD exits with WBINVD exiting", () => {
    const run = (vm: TestVmcs) => vm.exitOf(() => vm.guest.interceptInstruction("wbinvd", instruction()));
    expect(run(validVmcs().secondary(SecondaryExec.WBINVD_EXITING).enter())).toBe(ExitReason.WBINVD);
    expect(run(validVmcs().enter())).toBeNull();
  });

  test("RDTSCP and INVPCID raise #UD unless enabled; enabled, RDTSC and INVLPG exiting apply (26.3)", () => {
    const run = (vm: TestVmcs, what: SimpleIntercept) =>
      vm.exitOf(() => vm.guest.interceptInstruction(what, withMemory(withRegister(instruction(4), 0, 1), 1)));
    for (const what of ["rdtscp", "invpcid"] as const) {
      const fault = (() => {
        try {
          run(validVmcs().enter(), what);
        } catch (raised) {
          return raised;
        }
        return null;
      })();
      expect(fault).toBeInstanceOf(CpuFault);
      expect((fault as CpuFault).vector).toBe(Vector.UD);
    }
    const both = SecondaryExec.ENABLE_RDTSCP | SecondaryExec.ENABLE_INVPCID;
    expect(run(validVmcs().secondary(both).enter(), "rdtscp")).toBeNull();
    const exiting = () =>
      validVmcs()
        .secondary(both)
        .primary(CpuBased.RDTSC_EXITING | CpuBased.INVLPG_EXITING)
        .enter();
    expect(run(exiting(), "rdtscp")).toBe(ExitReason.RDTSCP);
    expect(run(exiting(), "invpcid")).toBe(ExitReason.INVPCID);
  });

  test("descriptor-table instructions exit with their identity (tables 28-10, 28-11)", () => {
    const exiting = () => validVmcs().secondary(SecondaryExec.DESC).enter();
    for (const [what, identity] of [
      ["sgdt", 0],
      ["sidt", 1],
      ["lgdt", 2],
      ["lidt", 3],
    ] as const) {
      const vm = exiting();
      const i = withMemory(instruction(4, { operandSize: 8 }), 0);
      expect(vm.exitOf(() => vm.guest.interceptInstruction(what, i))).toBe(ExitReason.GDTR_IDTR);
      expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe(MEMORY_INFO | (1 << 11) | (identity << 28));
    }
    for (const [what, identity] of [
      ["sldt", 0],
      ["str", 1],
      ["lldt", 2],
      ["ltr", 3],
    ] as const) {
      const vm = exiting();
      const i = withRegister(instruction(3), 0, 5);
      expect(vm.exitOf(() => vm.guest.interceptInstruction(what, i))).toBe(ExitReason.LDTR_TR);
      expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe((1 << 10) | (5 << 3) | (identity << 28));
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0n);
    }
    const off = validVmcs().enter();
    expect(off.exitOf(() => off.guest.interceptInstruction("lgdt", withMemory(instruction(), 0)))).toBeNull();
  });

  test("INVLPG exits with its linear address", () => {
    const vm = validVmcs().primary(CpuBased.INVLPG_EXITING).enter();
    expect(vm.exitOf(() => vm.guest.interceptInvlpg(0xffff_8000_0000_1234n, instruction(3)))).toBe(ExitReason.INVLPG);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0xffff_8000_0000_1234n);
  });

  test("a loop of PAUSE at CPL 0 exits when it outlasts the window; gaps start it anew (PAUSE-loop exiting)", () => {
    const vm = validVmcs()
      .secondary(SecondaryExec.PAUSE_LOOP_EXITING)
      .with(Field.PLE_GAP, 100)
      .with(Field.PLE_WINDOW, 500)
      .enter();
    const pause = (after: number) => {
      vm.cpu.clock.retire(after);
      return vm.exitOf(() => vm.guest.interceptInstruction("pause", instruction()));
    };
    expect(pause(0)).toBeNull();
    for (let i = 0; i < 10; i++) expect(pause(5)).toBeNull();
    expect(pause(20)).toBeNull();
    for (let i = 0; i < 10; i++) expect(pause(5)).toBeNull();
    expect(pause(5)).toBe(ExitReason.PAUSE_INSTRUCTION);
  });

  test("MOV DR exits with register and direction (table 28-4)", () => {
    const vm = validVmcs().primary(CpuBased.MOV_DR_EXITING).enter();
    const i = withRegister(instruction(3), 0, 11);
    expect(vm.exitOf(() => vm.guest.interceptDr(7, false, i))).toBe(ExitReason.DR_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0xb17n);
  });
});

describe("I/O instructions (SDM 3C 26.1.3, 25.6.4)", () => {
  const io = (vm: TestVmcs, port: number, size: number, input = true) =>
    vm.exitOf(() => vm.guest.interceptIo(port, size, input, instruction(1)));

  test("all ports exit with unconditional I/O exiting, none without", () => {
    const vm = validVmcs().primary(CpuBased.UNCOND_IO_EXITING).enter();
    expect(io(vm, 0x80, 1)).toBe(ExitReason.IO_INSTRUCTION);
    expect(io(validVmcs().enter(), 0x80, 1)).toBeNull();
  });

  test("with bitmaps the bits of all bytes accessed count, in A below 8000 and in B above, and wrapping exits", () => {
    const make = () => {
      const vm = validVmcs()
        .primary(CpuBased.USE_IO_BITMAPS | CpuBased.UNCOND_IO_EXITING)
        .with(Field.IO_BITMAP_A, PAGES)
        .with(Field.IO_BITMAP_B, PAGES + 0x1000);
      const at = vm.cpu.memory.hostOffset(PAGES);
      vm.cpu.memory.u8[at + (0x3fa >> 3)] |= 1 << (0x3fa & 7);
      vm.cpu.memory.u8[at + 0x1000 + (0x10 >> 3)] |= 1;
      return vm.enter();
    };
    expect(io(make(), 0x3f8, 1)).toBeNull();
    expect(io(make(), 0x3f8, 4)).toBe(ExitReason.IO_INSTRUCTION);
    expect(io(make(), 0x3fa, 1)).toBe(ExitReason.IO_INSTRUCTION);
    expect(io(make(), 0x8010, 1)).toBe(ExitReason.IO_INSTRUCTION);
    expect(io(make(), 0x7fff, 2)).toBeNull();
    expect(io(make(), 0xffff, 2)).toBe(ExitReason.IO_INSTRUCTION);
  });

  test("qualification and information tell port, size, direction, string, repeat and immediate (tables 28-5, 28-8)", () => {
    const vm = validVmcs().primary(CpuBased.UNCOND_IO_EXITING).enter();
    vm.cpu.trace.armed = TraceKind.VmExit;
    vm.cpu.state.setGpr(0, 0x1141n);
    const out = instruction(2);
    Object.assign(out.operands[0], { kind: OperandKind.IMMEDIATE, size: 1 });
    vm.exitOf(() => vm.guest.interceptIo(0x80, 1, false, out));
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x80_0040n);
    expect(vm.cpu.points[0].text).toBe("IO_INSTRUCTION out port 0x80 size 1");
    expect(vm.cpu.points[0].detail).toMatchObject({ reason: 30, port: 0x80n, size: 1n, input: false, value: 0x41n });
    vm.enter();
    const ins = instruction(2, { rep: 0xf3, segment: 0 });
    vm.exitOf(() => vm.guest.interceptIo(0x1f0, 4, true, ins, 0x5000n));
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x1f0_003bn);
    expect(vm.get(Field.GUEST_LINEAR_ADDRESS)).toBe(0x5000n);
    expect(vm.get32(Field.VMX_INSTRUCTION_INFO)).toBe(2 << 7);
  });
});

describe("RDMSR and WRMSR (SDM 3C 25.6.9)", () => {
  const msr = (vm: TestVmcs, index: number, write: boolean) =>
    vm.exitOf(() => vm.guest.interceptMsr(index, write, instruction()));

  test("all MSRs exit without bitmaps", () => {
    expect(msr(validVmcs().enter(), 0x10, false)).toBe(ExitReason.MSR_READ);
    expect(msr(validVmcs().enter(), 0xc000_0080, true)).toBe(ExitReason.MSR_WRITE);
  });

  test("four bitmaps: low and high, read and write; what they do not cover exits", () => {
    const make = () => {
      const vm = validVmcs().primary(CpuBased.USE_MSR_BITMAPS).with(Field.MSR_BITMAP, PAGES);
      const at = vm.cpu.memory.hostOffset(PAGES);
      vm.cpu.memory.u8[at + 2] = 1; // read 0x10
      vm.cpu.memory.u8[at + 1024 + 0x10] = 1; // read 0xc0000080
      vm.cpu.memory.u8[at + 2048 + 2] = 2; // write 0x11
      vm.cpu.memory.u8[at + 3072 + 0x10] = 2; // write 0xc0000081
      return vm.enter();
    };
    const exits = (index: number, write: boolean) => msr(make(), index, write) !== null;
    expect([exits(0x10, false), exits(0x10, true), exits(0x11, false), exits(0x11, true)]).toEqual([
      true,
      false,
      false,
      true,
    ]);
    expect(exits(0xc000_0080, false)).toBe(true);
    expect(exits(0xc000_0080, true)).toBe(false);
    expect(exits(0xc000_0081, true)).toBe(true);
    expect(exits(0x2000, false)).toBe(true);
    expect(exits(0xc000_2000, true)).toBe(true);
  });
});

describe("control registers (SDM 3C 26.1.3, 26.3)", () => {
  const movTo = (vm: TestVmcs, cr: number, value: bigint) =>
    vm.guest.interceptCr(cr, "mov-to", value, withRegister(instruction(3), 1, 2));

  test("MOV to CR0 exits when a host-owned bit would differ from the read shadow; others pass", () => {
    const vm = validVmcs().with(Field.CR0_GUEST_HOST_MASK, 0x8000_0001).with(Field.CR0_READ_SHADOW, 1).enter();
    expect(vm.exitOf(() => movTo(vm, 0, 0x8000_0001n))).toBe(ExitReason.CR_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x200n);
    vm.enter();
    // The guest writes PE = 1, PG = 0 as it sees them; the real CR0 keeps its own PG.
    expect(movTo(vm, 0, 0x33n)).toBe(0x8000_0033n);
  });

  test("reads of CR0 and CR4 show the shadow in host-owned bits; SMSW too", () => {
    const vm = validVmcs()
      .with(Field.CR0_GUEST_HOST_MASK, 0x8000_0001)
      .with(Field.CR0_READ_SHADOW, 0)
      .with(Field.CR4_GUEST_HOST_MASK, 0x2000)
      .with(Field.CR4_READ_SHADOW, 0)
      .enter();
    const read = (cr: number) => vm.guest.interceptCr(cr, "mov-from", 0n, instruction(3));
    expect(read(0)).toBe(0x5_0032n);
    expect(read(4)).toBe(0x20n);
    expect(vm.guest.interceptCr(0, "smsw", 0n, instruction(3)) & 0xffffn).toBe(0x32n);
  });

  test("MOV to CR3 exits with CR3-load exiting unless the value is a CR3 target", () => {
    const vm = validVmcs()
      .primary(CpuBased.CR3_LOAD_EXITING)
      .with(Field.CR3_TARGET_COUNT, 2)
      .with(Field.CR3_TARGET_VALUE1, 0x8000)
      .with(Field.CR3_TARGET_VALUE2, 0x9000)
      .enter();
    expect(movTo(vm, 3, 0x8000n)).toBe(0x8000n);
    expect(vm.exitOf(() => movTo(vm, 3, 0x9000n))).toBe(ExitReason.CR_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x203n);
  });

  test("MOV from CR3 and CR8 exits with their store-exiting controls", () => {
    for (const [cr, control] of [
      [3, CpuBased.CR3_STORE_EXITING],
      [8, CpuBased.CR8_STORE_EXITING],
    ] as const) {
      const vm = validVmcs().primary(control).enter();
      const i = withRegister(instruction(3), 0, 6);
      expect(vm.exitOf(() => vm.guest.interceptCr(cr, "mov-from", 0n, i))).toBe(ExitReason.CR_ACCESS);
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(BigInt(0x610 | cr));
    }
  });

  test("CLTS exits when TS is host-owned and shadowed as 1, does nothing when shadowed as 0", () => {
    const ts = (shadow: number) => validVmcs().with(Field.CR0_GUEST_HOST_MASK, 8).with(Field.CR0_READ_SHADOW, shadow);
    const clts = (vm: TestVmcs) => vm.guest.interceptCr(0, "clts", 0n, instruction());
    const exiting = ts(8).enter();
    expect(exiting.exitOf(() => clts(exiting))).toBe(ExitReason.CR_ACCESS);
    expect(exiting.get(Field.EXIT_QUALIFICATION)).toBe(0x20n);
    const quiet = ts(0).with(Field.GUEST_CR0, 0x8005_003b).enter();
    expect(clts(quiet)).toBe(0x8005_003bn);
    const owned = validVmcs().with(Field.GUEST_CR0, 0x8005_003b).enter();
    expect(clts(owned)).toBe(0x8005_0033n);
  });

  test("LMSW exits for host-owned bits 3:1 that differ, and for PE only when it would set it (table 28-3)", () => {
    const make = (shadow: number) =>
      validVmcs().with(Field.CR0_GUEST_HOST_MASK, 0xf).with(Field.CR0_READ_SHADOW, shadow).enter();
    const lmsw = (vm: TestVmcs, source: bigint, linear?: bigint) =>
      vm.exitOf(() => vm.guest.interceptCr(0, "lmsw", source, instruction(3), linear));
    expect(lmsw(make(0x3), 0x3n)).toBeNull();
    expect(lmsw(make(0x3), 0x2n)).toBeNull();
    const vm = make(0x2);
    expect(lmsw(vm, 0xfff3n, 0x7000n)).toBe(ExitReason.CR_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION) & 0xffff_ffffn).toBe(0xfff3_0070n);
    expect(vm.get(Field.GUEST_LINEAR_ADDRESS)).toBe(0x7000n);
  });
});

describe("exceptions (SDM 3C 25.6.3, 28.2.2)", () => {
  const raise = (vm: TestVmcs, vector: number, error?: number, extra = 0n, software = false, length = 0) =>
    vm.exitOf(() => vm.guest.interceptException(vector, error, extra, software, length));

  test("an exception exits when its bit is set, with type, error code and RF", () => {
    const vm = validVmcs()
      .with(Field.EXCEPTION_BITMAP, 1 << 13)
      .enter();
    expect(raise(vm, 6)).toBeNull();
    expect(raise(vm, 13, 0x50)).toBe(ExitReason.EXCEPTION_NMI);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (1 << 11) | (3 << 8) | 13) >>> 0);
    expect(vm.get(Field.VM_EXIT_INTR_ERROR_CODE)).toBe(0x50n);
    expect(vm.get(Field.GUEST_RFLAGS)).toBe(0x10002n);
  });

  test("page faults: error-code mask and match turn the bit around", () => {
    const make = (bit: number, mask: number, match: number) =>
      validVmcs()
        .with(Field.EXCEPTION_BITMAP, bit << 14)
        .with(Field.PAGE_FAULT_ERROR_CODE_MASK, mask)
        .with(Field.PAGE_FAULT_ERROR_CODE_MATCH, match)
        .enter();
    expect(raise(make(1, 0, 0), 14, 7, 0x1000n)).toBe(0);
    expect(raise(make(1, 1, 1), 14, 6, 0x1000n)).toBeNull();
    expect(raise(make(0, 1, 1), 14, 6, 0x1000n)).toBe(0);
    expect(raise(make(0, 0, 0), 14, 6, 0x1000n)).toBeNull();
    const vm = make(1, 1, 1);
    raise(vm, 14, 7, 0xabc0n);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0xabc0n);
    expect(vm.cpu.state.u64(Off.CR2)).toBe(0n);
  });

  test("INT3 is a software exception with its length, INT1 a privileged one, and debug bits are the qualification", () => {
    const vm = validVmcs().with(Field.EXCEPTION_BITMAP, 0xa).enter();
    raise(vm, 3, undefined, 0n, true, 1);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (6 << 8) | 3) >>> 0);
    expect(vm.get(Field.VM_EXIT_INSTRUCTION_LEN)).toBe(1n);
    vm.enter();
    raise(vm, 1, undefined, 0n, true, 1);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (5 << 8) | 1) >>> 0);
    vm.enter();
    raise(vm, 1, undefined, 0x4002n);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x4002n);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (3 << 8) | 1) >>> 0);
  });

  test("a task switch exits with selector and source, whatever the controls (26.4.2)", () => {
    const vm = validVmcs().enter();
    expect(vm.exitOf(() => vm.guest.interceptTaskSwitch(0x30, 2, 5))).toBe(ExitReason.TASK_SWITCH);
    expect(vm.get(Field.EXIT_QUALIFICATION) & 0xffff_ffffn).toBe(0x8000_0030n);
    expect(vm.get(Field.VM_EXIT_INSTRUCTION_LEN)).toBe(5n);
  });
});

describe("exits taken early, without throwing", () => {
  const early = (vm: TestVmcs, mnemonic: string, i: Instruction) => vm.guest.takeEarlyExit?.(mnemonic, i) ?? false;
  /** Exit information and saved guest state. */
  const record = (vm: TestVmcs) =>
    [
      Field.VM_EXIT_REASON,
      Field.EXIT_QUALIFICATION,
      Field.VM_EXIT_INSTRUCTION_LEN,
      Field.VMX_INSTRUCTION_INFO,
      Field.VM_EXIT_INTR_INFO,
      Field.GUEST_RFLAGS,
      Field.GUEST_RIP,
    ].map((field) => vm.get(field));
  const immediate = (i: Instruction, index: number, size: number): Instruction => {
    Object.assign(i, { immediate: 0x80 });
    Object.assign(i.operands[index], { kind: OperandKind.IMMEDIATE, size: 1 });
    Object.assign(i.operands[1 - index], { kind: OperandKind.GPR, reg: 0, size });
    return i;
  };
  const dx = (i: Instruction, index: number, size: number): Instruction => {
    Object.assign(i.operands[index], { kind: OperandKind.GPR, reg: 2, size: 2 });
    Object.assign(i.operands[1 - index], { kind: OperandKind.GPR, reg: 0, size });
    return i;
  };
  const machine = () => {
    const vm = validVmcs().primary(CpuBased.UNCOND_IO_EXITING).with(Field.GUEST_RFLAGS, 0x10002).enter();
    vm.cpu.state.setGpr(2, 0x3f8n);
    vm.cpu.state.setGpr(1, 0xc000_0080n);
    return vm;
  };
  const cases: readonly (readonly [string, () => Instruction, (vm: TestVmcs, i: Instruction) => void])[] = [
    ["CPUID", () => instruction(2), (vm, i) => vm.guest.interceptInstruction("cpuid", i)],
    ["VMCALL", () => instruction(3), (vm, i) => vm.guest.interceptInstruction("vmcall", i)],
    ["HLT", () => instruction(1), (vm, i) => vm.guest.interceptInstruction("hlt", i)],
    ["RDMSR", () => instruction(2), (vm, i) => vm.guest.interceptMsr(0xc000_0080, false, i)],
    ["WRMSR", () => instruction(2), (vm, i) => vm.guest.interceptMsr(0xc000_0080, true, i)],
    ["IN", () => immediate(instruction(2), 1, 4), (vm, i) => void vm.guest.interceptIo(0x80, 4, true, i)],
    ["IN", () => dx(instruction(1), 1, 1), (vm, i) => void vm.guest.interceptIo(0x3f8, 1, true, i)],
    ["OUT", () => immediate(instruction(2), 0, 1), (vm, i) => void vm.guest.interceptIo(0x80, 1, false, i)],
    ["OUT", () => dx(instruction(2), 0, 2), (vm, i) => void vm.guest.interceptIo(0x3f8, 2, false, i)],
  ];
  for (const [mnemonic, make, intercept] of cases) {
    test(`${mnemonic} leaves the same VMCS as the exit by its handler`, () => {
      const one = machine();
      expect(early(one, mnemonic, make())).toBe(true);
      expect(one.cpu.guest).toBeNull();
      const other = machine();
      other.exitOf(() => intercept(other, make()));
      expect(record(one)).toEqual(record(other));
    });
  }

  test("what does not exit, and what may fault above CPL 0, is left to the handler", () => {
    const vm = validVmcs().off(Field.CPU_BASED_VM_EXEC_CONTROL, CpuBased.HLT_EXITING).enter();
    expect(early(vm, "HLT", instruction(1))).toBe(false);
    expect(early(vm, "IN", dx(instruction(1), 1, 1))).toBe(false);
    expect(early(vm, "MOV_CR", instruction(3))).toBe(false);
    vm.cpu.state.setU32(Off.CPL, 3);
    expect(early(vm, "RDMSR", instruction(2))).toBe(false);
    expect(vm.cpu.guest).not.toBeNull();
  });
});

describe("events at instruction boundaries (SDM 3C 26.2)", () => {
  test("external interrupts go through the guest's IDT without external-interrupt exiting", () => {
    const vm = validVmcs().enter();
    expect(vm.guest.ignoresIf).toBe(false);
    expect(vm.guest.interceptExternalInterrupt()).toBe(true);
  });

  test("with it they exit; the vector is known when the interrupt is acknowledged on exit", () => {
    const vm = validVmcs().pin(PinBased.EXT_INTR_EXITING).enter();
    vm.cpu.pendingInterrupt = 0x31;
    expect(vm.guest.ignoresIf).toBe(true);
    expect(vm.exitOf(() => vm.guest.interceptExternalInterrupt())).toBe(ExitReason.EXTERNAL_INTERRUPT);
    expect(vm.get(Field.VM_EXIT_INTR_INFO)).toBe(0n);
    vm.on(Field.VM_EXIT_CONTROLS, VmExitControl.ACK_INTR_ON_EXIT).enter();
    vm.exitOf(() => vm.guest.interceptExternalInterrupt());
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | 0x31) >>> 0);
  });

  test("the interrupt window opens with IF and without blocking by STI or MOV SS", () => {
    const vm = validVmcs().primary(CpuBased.INTR_WINDOW_EXITING).enter();
    const look = () => vm.exitOf(() => vm.guest.boundary());
    expect(look()).toBeNull();
    vm.cpu.state.rflags = 0x202;
    vm.cpu.state.setU32(Off.INHIBIT, Inhibit.STI);
    expect(look()).toBeNull();
    vm.cpu.state.setU32(Off.INHIBIT, 0);
    expect(look()).toBe(ExitReason.INTERRUPT_WINDOW);
  });

  test("the NMI window opens without virtual-NMI blocking", () => {
    const vm = validVmcs()
      .pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)
      .primary(CpuBased.NMI_WINDOW_EXITING)
      .with(Field.GUEST_INTERRUPTIBILITY_INFO, Inhibit.NMI)
      .enter();
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
    vm.cpu.state.setU32(Off.INHIBIT, 0);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.NMI_WINDOW);
  });

  test("a physical NMI exits although virtual NMIs are blocked", () => {
    const vm = validVmcs()
      .pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)
      .with(Field.GUEST_INTERRUPTIBILITY_INFO, Inhibit.NMI)
      .enter();
    vm.cpu.state.setU32(Off.PENDING, Pending.NMI);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.EXCEPTION_NMI);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (2 << 8) | 2) >>> 0);
    // The virtual blocking is the guest's and stays.
    expect(vm.get32(Field.GUEST_INTERRUPTIBILITY_INFO)).toBe(Inhibit.NMI);
  });

  test("an exit in the middle of an IRET that ended blocking by NMI says so (28.2.3)", () => {
    const make = () => {
      const vm = validVmcs()
        .pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)
        .with(Field.EXCEPTION_BITMAP, 1 << 13)
        .with(Field.GUEST_INTERRUPTIBILITY_INFO, Inhibit.NMI)
        .enter();
      vm.guest.interceptInstruction("iret", instruction());
      vm.cpu.state.setU32(Off.INHIBIT, 0);
      return vm;
    };
    const fault = make();
    fault.exitOf(() => fault.guest.interceptException(13, 0, 0n, false));
    expect(fault.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (1 << 12) | (1 << 11) | (3 << 8) | 13) >>> 0);
    const violation = make();
    violation.exitOf(() => violation.cpu.secondStage?.translate(0x1000, 0, 0x1000n, false));
    expect(violation.get(Field.EXIT_QUALIFICATION)).toBe(0x1181n);
    const later = make();
    later.guest.boundary();
    later.exitOf(() => later.guest.interceptException(13, 0, 0n, false));
    expect(later.get32(Field.VM_EXIT_INTR_INFO) & (1 << 12)).toBe(0);
  });

  test("IRET leaves blocking by NMI alone when NMIs exit and are not virtual (26.3)", () => {
    const vm = validVmcs().pin(PinBased.NMI_EXITING).with(Field.GUEST_INTERRUPTIBILITY_INFO, Inhibit.NMI).enter();
    vm.guest.interceptInstruction("iret", instruction());
    vm.cpu.state.setU32(Off.INHIBIT, 0);
    vm.guest.boundary();
    expect(vm.cpu.state.u32(Off.INHIBIT)).toBe(Inhibit.NMI);
  });

  test("pending debug traps come before windows", () => {
    const vm = validVmcs().primary(CpuBased.INTR_WINDOW_EXITING).with(Field.GUEST_RFLAGS, 0x202).enter();
    vm.cpu.state.setU32(Off.PENDING, Pending.DEBUG);
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
  });

  test("INIT exits; a SIPI exits in the wait-for-SIPI state only", () => {
    const vm = validVmcs().enter();
    expect(vm.exitOf(() => vm.guest.interceptSipi(0x9a))).toBeNull();
    expect(vm.exitOf(() => vm.guest.interceptInit())).toBe(ExitReason.INIT_SIGNAL);
    vm.with(Field.GUEST_ACTIVITY_STATE, Activity.WAIT_FOR_SIPI).enter();
    expect(vm.exitOf(() => vm.guest.interceptSipi(0x9a))).toBe(ExitReason.SIPI_SIGNAL);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x9an);
  });
});

describe("time-stamp counter (SDM 3C 26.3)", () => {
  test("the offset is added, after scaling by the multiplier", () => {
    expect(validVmcs().with(Field.TSC_OFFSET, 5).enter().guest.adjustTsc(100n)).toBe(100n);
    const vm = validVmcs()
      .primary(CpuBased.USE_TSC_OFFSETTING)
      .with(Field.TSC_OFFSET, (1n << 64n) - 10n);
    expect(vm.enter().guest.adjustTsc(100n)).toBe(90n);
    const scaled = validVmcs()
      .primary(CpuBased.USE_TSC_OFFSETTING)
      .secondary(SecondaryExec.TSC_SCALING)
      .with(Field.TSC_MULTIPLIER, 3n << 47n)
      .with(Field.TSC_OFFSET, 1);
    expect(scaled.enter().guest.adjustTsc(100n)).toBe(151n);
  });
});

describe("TPR shadow and APIC-access page (SDM 3C 30.1, 30.4)", () => {
  const shadow = () => validVmcs().primary(CpuBased.TPR_SHADOW).with(Field.VIRTUAL_APIC_PAGE_ADDR, PAGES);

  test("CR8 reads and writes bits 7:4 of the virtual TPR", () => {
    const vm = shadow().enter();
    expect(vm.guest.writeTprShadow(5)).toBe(true);
    expect(vm.guest.readTprShadow()).toBe(5);
    expect(vm.cpu.memory.u8[vm.cpu.memory.hostOffset(PAGES + 0x80)]).toBe(0x50);
    const real = validVmcs().enter();
    expect(real.guest.readTprShadow()).toBeUndefined();
    expect(real.guest.writeTprShadow(5)).toBe(false);
  });

  test("a TPR below the threshold exits behind the instruction", () => {
    const vm = shadow();
    vm.cpu.memory.u8[vm.cpu.memory.hostOffset(PAGES + 0x80)] = 0x70;
    vm.with(Field.TPR_THRESHOLD, 4).enter();
    vm.guest.writeTprShadow(5);
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
    vm.guest.writeTprShadow(3);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.TPR_BELOW_THRESHOLD);
  });

  test("with the APIC-access page an entry with a TPR below the threshold exits at once (27.7.7)", () => {
    const vm = shadow()
      .secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES)
      .with(Field.APIC_ACCESS_ADDR, PAGES + 0x1000)
      .with(Field.TPR_THRESHOLD, 4)
      .enter();
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.TPR_BELOW_THRESHOLD);
  });

  test("the task priority on the APIC-access page is virtual; other offsets exit (table 28-6)", () => {
    const vm = shadow()
      .secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES)
      .with(Field.APIC_ACCESS_ADDR, PAGES + 0x1000)
      .enter();
    expect(vm.guest.apicAccessPage).toBe(PAGES + 0x1000);
    vm.cpu.state.setU64(Off.VALUE, 0x60n);
    expect(vm.guest.apicAccess(PAGES + 0x1080, 0x80, 4, true, 0xfee0_0080n)).toBe(true);
    expect(vm.guest.apicAccess(PAGES + 0x1080, 0x80, 4, false, 0xfee0_0080n)).toBe(true);
    expect(vm.cpu.state.u64(Off.VALUE)).toBe(0x60n);
    expect(vm.exitOf(() => vm.guest.apicAccess(PAGES + 0x10b0, 0xb0, 4, true, 0xfee0_00b0n))).toBe(
      ExitReason.APIC_ACCESS,
    );
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x10b0n);
    expect(vm.get(Field.GUEST_LINEAR_ADDRESS)).toBe(0xfee0_00b0n);
  });
});

describe("EPT exits through the unit (SDM 3C 28.2.1)", () => {
  test("a violation tells both addresses and saves RF as 1", () => {
    const vm = validVmcs().enter();
    const stage = vm.cpu.secondStage;
    expect(vm.exitOf(() => stage?.translate(0x1_2345_6000, 1, 0x7000n, false))).toBe(ExitReason.EPT_VIOLATION);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x182n);
    expect(vm.get(Field.GUEST_PHYSICAL_ADDRESS)).toBe(0x1_2345_6000n);
    expect(vm.get(Field.GUEST_LINEAR_ADDRESS)).toBe(0x7000n);
    expect(vm.get(Field.GUEST_RFLAGS)).toBe(0x10002n);
  });
});
