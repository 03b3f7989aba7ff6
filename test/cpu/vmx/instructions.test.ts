import { describe, expect, test } from "vitest";
import { CpuFault, Next, Vector, VmExitTaken } from "../../../engine/cpu/cpu";
import { type Instruction, NO_REG, newInstruction, OperandKind } from "../../../engine/cpu/isa/instruction";
import { OPCODES } from "../../../engine/cpu/isa/opcodes";
import { CodeMode, Inhibit, Off, Rflags } from "../../../engine/cpu/state";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { vmxHandlers } from "../../../engine/cpu/vmx/instructions";
import { VmError } from "../../../engine/cpu/vmx/vm-instruction-errors";
import { type TestVmcs, VMCS_REGION, VMXON_REGION, validVmcs } from "./valid-vmcs";

const OPERAND = 0x3000;

/** A machine in 64-bit mode at CPL 0 with a current VMCS. */
function ready(): TestVmcs {
  const vm = validVmcs();
  vm.cpu.state.setU32(Off.CODE_MODE, CodeMode.LONG64);
  vm.cpu.state.rflags = Rflags.CF | Rflags.ZF | Rflags.OF | Rflags.IF;
  return vm;
}

/** The instruction with [0x3000] as its memory operand, or registers. */
function instruction(mnemonic: string, operands: readonly ("memory" | number)[] = []): Instruction {
  const i = Object.assign(newInstruction(), {
    opcode: OPCODES.findIndex((row) => row.mnemonic === mnemonic),
    length: 4,
    addressSize: 8,
    operandSize: 8,
    base: NO_REG,
    displacement: OPERAND,
  });
  operands.forEach((operand, index) => {
    Object.assign(
      i.operands[index],
      operand === "memory" ? { kind: OperandKind.MEMORY, size: 8 } : { kind: OperandKind.GPR, reg: operand, size: 8 },
    );
  });
  return i;
}

const run = (vm: TestVmcs, mnemonic: string, operands: readonly ("memory" | number)[] = []): Next =>
  vmxHandlers[mnemonic](vm.cpu, instruction(mnemonic, operands));

const putPointer = (vm: TestVmcs, value: bigint): void => vm.cpu.mmu.write(BigInt(OPERAND), 8, value);

function faultOf(action: () => unknown): CpuFault {
  try {
    action();
  } catch (fault) {
    if (fault instanceof CpuFault) return fault;
    throw fault;
  }
  throw new Error("no fault");
}

const arithmetic = (vm: TestVmcs): number => vm.cpu.state.rflags & Rflags.ARITHMETIC;

const FORMS: Readonly<Record<string, readonly ("memory" | number)[]>> = {
  VMXOFF: [],
  VMCLEAR: ["memory"],
  VMPTRLD: ["memory"],
  VMPTRST: ["memory"],
  VMREAD: [0, 1],
  VMWRITE: [1, 0],
  VMLAUNCH: [],
  VMRESUME: [],
  INVEPT: [1, "memory"],
  INVVPID: [1, "memory"],
};

describe("where VMX instructions may be (SDM 3C 31.3)", () => {
  for (const [mnemonic, operands] of Object.entries(FORMS)) {
    test(`${mnemonic}: #UD outside VMX operation, in real, virtual-8086 and compatibility mode; #GP(0) above CPL 0`, () => {
      const off = ready();
      off.cpu.vmx.vmxoff();
      expect(faultOf(() => run(off, mnemonic, operands)).vector).toBe(Vector.UD);
      for (const mode of [CodeMode.REAL, CodeMode.VM86, CodeMode.COMPAT16, CodeMode.COMPAT32]) {
        const vm = ready();
        vm.cpu.state.setU32(Off.CODE_MODE, mode);
        expect(faultOf(() => run(vm, mnemonic, operands)).vector).toBe(Vector.UD);
      }
      const user = ready();
      user.cpu.state.setU32(Off.CPL, 3);
      expect(faultOf(() => run(user, mnemonic, operands))).toMatchObject({ vector: Vector.GP, error: 0 });
    });

    test(`${mnemonic} exits in a guest, whatever the CPL`, () => {
      const vm = ready().enter();
      vm.cpu.state.setU32(Off.CPL, 3);
      expect(() => run(vm, mnemonic, operands)).toThrow(VmExitTaken as unknown as Error);
    });
  }

  test("VMXON: #UD without CR4.VMXE, #GP(0) above CPL 0", () => {
    const vm = ready();
    vm.cpu.vmx.vmxoff();
    vm.cpu.state.setU32(Off.CPL, 3);
    expect(faultOf(() => run(vm, "VMXON", ["memory"]))).toMatchObject({ vector: Vector.GP, error: 0 });
    vm.cpu.state.setU64(Off.CR4, 0x20n);
    expect(faultOf(() => run(vm, "VMXON", ["memory"])).vector).toBe(Vector.UD);
  });

  test("VMCALL: exits in a guest, fails with error 1 in root operation, #UD outside", () => {
    const vm = ready();
    run(vm, "VMCALL");
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(BigInt(VmError.VMCALL_IN_ROOT));
    vm.enter();
    expect(vm.exitOf(() => run(vm, "VMCALL"))).toBe(ExitReason.VMCALL);
    vm.cpu.vmx.vmxoff();
    expect(faultOf(() => run(vm, "VMCALL")).vector).toBe(Vector.UD);
  });

  test("VMFUNC raises #UD: there are no VM functions", () => {
    expect(faultOf(() => run(ready(), "VMFUNC")).vector).toBe(Vector.UD);
    const vm = ready().enter();
    expect(faultOf(() => run(vm, "VMFUNC")).vector).toBe(Vector.UD);
  });
});

describe("results in RFLAGS (SDM 3C 31.2)", () => {
  test("VMsucceed clears the six arithmetic flags and keeps the others", () => {
    const vm = ready();
    putPointer(vm, BigInt(VMCS_REGION));
    expect(run(vm, "VMPTRLD", ["memory"])).toBe(Next.SEQUENTIAL);
    expect(arithmetic(vm)).toBe(0);
    expect(vm.cpu.state.rflags & Rflags.IF).toBe(Rflags.IF);
  });

  test("VMfailInvalid sets CF, VMfailValid sets ZF and the error field", () => {
    const vm = ready();
    putPointer(vm, 0x123n);
    run(vm, "VMPTRLD", ["memory"]);
    expect(arithmetic(vm)).toBe(Rflags.ZF);
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(9n);
    putPointer(vm, BigInt(VMCS_REGION));
    run(vm, "VMCLEAR", ["memory"]);
    run(vm, "VMLAUNCH");
    expect(arithmetic(vm)).toBe(Rflags.CF);
  });
});

describe("operands (SDM 3C 31.3)", () => {
  test("VMPTRST stores the current VMCS pointer, all ones without one", () => {
    const vm = ready();
    run(vm, "VMPTRST", ["memory"]);
    expect(vm.cpu.mmu.read(BigInt(OPERAND), 8)).toBe(BigInt(VMCS_REGION));
    vm.cpu.vmx.vmclear(VMCS_REGION);
    run(vm, "VMPTRST", ["memory"]);
    expect(vm.cpu.mmu.read(BigInt(OPERAND), 8)).toBe(0xffff_ffff_ffff_ffffn);
  });

  test("VMREAD and VMWRITE have 64-bit operands in 64-bit mode and 32-bit ones elsewhere", () => {
    const vm = ready();
    const { state } = vm.cpu;
    state.setGpr(1, BigInt(Field.TSC_OFFSET));
    state.setGpr(0, 0x1122_3344_5566_7788n);
    run(vm, "VMWRITE", [1, 0]);
    run(vm, "VMREAD", [2, 1]);
    expect(state.gpr(2)).toBe(0x1122_3344_5566_7788n);
    run(vm, "VMREAD", ["memory", 1]);
    expect(vm.cpu.mmu.read(BigInt(OPERAND), 8)).toBe(0x1122_3344_5566_7788n);
    state.setU32(Off.CODE_MODE, CodeMode.PROTECTED32);
    run(vm, "VMREAD", [2, 1]);
    expect(state.gpr32(2)).toBe(0x5566_7788);
    run(vm, "VMWRITE", [1, 0]);
    expect(vm.get(Field.TSC_OFFSET)).toBe(0x5566_7788n);
  });

  test("a field register with bits above 31 names no field (error 12)", () => {
    const vm = ready();
    vm.cpu.state.setGpr(1, 0x1_0000_0000n | BigInt(Field.GUEST_RIP));
    run(vm, "VMREAD", [0, 1]);
    expect(arithmetic(vm)).toBe(Rflags.ZF);
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(12n);
  });

  test("INVEPT and INVVPID fail with error 28 when reserved bits of the descriptor are set", () => {
    const vm = ready();
    const { cpu } = vm;
    cpu.state.setGpr(1, 2n);
    cpu.mmu.write(BigInt(OPERAND + 8), 8, 1n);
    run(vm, "INVEPT", [1, "memory"]);
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(28n);
    cpu.state.setGpr(1, 1n);
    cpu.mmu.write(BigInt(OPERAND), 8, 0x1_0001n);
    run(vm, "INVVPID", [1, "memory"]);
    expect(arithmetic(vm)).toBe(Rflags.ZF);
    expect(cpu.invalidations).toEqual([]);
    cpu.mmu.write(BigInt(OPERAND), 8, 1n);
    run(vm, "INVVPID", [1, "memory"]);
    expect(arithmetic(vm)).toBe(0);
    expect(cpu.invalidations).toEqual([{ vpid: 1 }]);
  });

  test("VMXON takes its region from memory", () => {
    const vm = ready();
    vm.cpu.vmx.vmxoff();
    putPointer(vm, BigInt(VMXON_REGION));
    run(vm, "VMXON", ["memory"]);
    expect(arithmetic(vm)).toBe(0);
    expect(vm.cpu.vmx.on).toBe(true);
  });
});

describe("VMLAUNCH and VMRESUME", () => {
  test("a successful entry, and one that fails on guest state, go on elsewhere", () => {
    const vm = ready();
    expect(run(vm, "VMLAUNCH")).toBe(Next.JUMP_ATTENTION);
    expect(vm.cpu.guest).not.toBeNull();
    const bad = ready().with(Field.GUEST_CR3, 1n << 50n);
    expect(run(bad, "VMLAUNCH")).toBe(Next.JUMP_ATTENTION);
    expect(bad.cpu.state.rip).toBe(0xffff_8000_0000_1000n);
  });

  test("one that fails on controls goes on behind the instruction, with ZF", () => {
    const vm = ready().with(Field.VIRTUAL_PROCESSOR_ID, 0);
    expect(run(vm, "VMLAUNCH")).toBe(Next.SEQUENTIAL);
    expect(arithmetic(vm)).toBe(Rflags.ZF);
  });

  test("blocking by MOV SS makes it fail with error 26", () => {
    const vm = ready();
    vm.cpu.state.setU32(Off.INHIBIT, Inhibit.MOV_SS);
    run(vm, "VMLAUNCH");
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(26n);
  });
});
