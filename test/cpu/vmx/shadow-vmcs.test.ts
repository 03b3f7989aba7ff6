/** VMCS shadowing (SDM 3C 25.10, 26.1.3; instruction pages of VMREAD and VMWRITE). */
import { describe, expect, test } from "vitest";
import { type Instruction, newInstruction, OperandKind } from "../../../engine/cpu/isa/instruction";
import { CodeMode, Gpr, Off, Rflags } from "../../../engine/cpu/state";
import { SecondaryExec } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { vmxHandlers } from "../../../engine/cpu/vmx/instructions";
import { VmError } from "../../../engine/cpu/vmx/vm-instruction-errors";
import { SHADOW_VMCS, VMCS_REVISION } from "../../../engine/cpu/vmx/vmcs";
import { VM_FAIL_INVALID, VM_SUCCEED } from "../../../engine/cpu/vmx/vmx";
import { failedEntry, PAGES, type TestVmcs, VMCS_REGION, validVmcs } from "./valid-vmcs";

const READS = PAGES;
const WRITES = PAGES + 0x1000;
const SHADOW = PAGES + 0x2000;

const revision = (vm: TestVmcs, pa: number, value: number): void =>
  vm.cpu.memory.view.setUint32(vm.cpu.memory.hostOffset(pa), value, true);

function shadowing(): TestVmcs {
  const vm = validVmcs()
    .secondary(SecondaryExec.SHADOW_VMCS)
    .with(Field.VMREAD_BITMAP, READS)
    .with(Field.VMWRITE_BITMAP, WRITES)
    .with(Field.VMCS_LINK_POINTER, SHADOW);
  revision(vm, SHADOW, VMCS_REVISION + SHADOW_VMCS);
  return vm;
}

function instruction(): Instruction {
  const i = Object.assign(newInstruction(), { length: 3, addressSize: 8 });
  Object.assign(i.operands[0], { kind: OperandKind.GPR, reg: Gpr.RAX, size: 8 });
  Object.assign(i.operands[1], { kind: OperandKind.GPR, reg: Gpr.RDX, size: 8 });
  return i;
}

/** VMREAD RAX, RDX (or VMWRITE RAX, RDX: field in RAX) in 64-bit mode. */
function run(vm: TestVmcs, mnemonic: "VMREAD" | "VMWRITE", field: bigint, value = 0n): number | null {
  vm.cpu.state.setGpr(mnemonic === "VMREAD" ? Gpr.RDX : Gpr.RAX, field);
  vm.cpu.state.setGpr(mnemonic === "VMREAD" ? Gpr.RAX : Gpr.RDX, value);
  vm.cpu.state.setU32(Off.CODE_MODE, CodeMode.LONG64);
  return vm.exitOf(() => vmxHandlers[mnemonic](vm.cpu, instruction()));
}

describe("VMREAD and VMWRITE in a guest", () => {
  test("they access the VMCS of the link pointer when the bitmaps have 0", () => {
    const vm = shadowing().enter();
    expect(run(vm, "VMWRITE", BigInt(Field.GUEST_RIP), 0x1234n)).toBeNull();
    expect(vm.cpu.vmx.peek(SHADOW, Field.GUEST_RIP)).toBe(0x1234n);
    expect(run(vm, "VMREAD", BigInt(Field.GUEST_RIP))).toBeNull();
    expect(vm.cpu.state.gpr(Gpr.RAX)).toBe(0x1234n);
    expect(vm.cpu.state.rflags & Rflags.ARITHMETIC).toBe(0);
    expect(vm.get(Field.GUEST_RIP)).toBe(0x10_0000n);
  });

  test("a bit of the bitmaps by field, and encodings beyond 15 bits, exit", () => {
    const vm = shadowing();
    const at = vm.cpu.memory.hostOffset(READS) + (Field.GUEST_RIP >> 3);
    vm.cpu.memory.u8[at] = 1 << (Field.GUEST_RIP & 7);
    expect(run(vm.enter(), "VMREAD", BigInt(Field.GUEST_RIP))).toBe(ExitReason.VMREAD);
    expect(run(vm.enter(), "VMWRITE", BigInt(Field.GUEST_RIP), 1n)).toBeNull();
    expect(run(vm, "VMREAD", BigInt(Field.GUEST_RSP))).toBeNull();
    expect(run(vm, "VMREAD", 0x8000n)).toBe(ExitReason.VMREAD);
    expect(run(shadowing().enter(), "VMWRITE", 1n << 40n)).toBe(ExitReason.VMWRITE);
    expect(run(validVmcs().enter(), "VMREAD", BigInt(Field.GUEST_RIP))).toBe(ExitReason.VMREAD);
  });

  test("an unsupported field is VMfailValid 12, told to the shadow VMCS; a link pointer of all ones VMfailInvalid", () => {
    const vm = shadowing().enter();
    expect(run(vm, "VMREAD", 0x681fn)).toBeNull();
    expect(vm.cpu.state.rflags & Rflags.ARITHMETIC).toBe(Rflags.ZF);
    expect(vm.cpu.vmx.peek(SHADOW, Field.VM_INSTRUCTION_ERROR)).toBe(BigInt(VmError.UNSUPPORTED_VMCS_COMPONENT));
    const none = shadowing().with(Field.VMCS_LINK_POINTER, -1n).enter();
    run(none, "VMREAD", BigInt(Field.GUEST_RIP));
    expect(none.cpu.state.rflags & Rflags.ARITHMETIC).toBe(Rflags.CF);
  });

  test("above CPL 0 they raise #GP(0) where they do not exit", () => {
    const vm = shadowing().enter();
    vm.cpu.state.setU32(Off.CPL, 3);
    expect(() => run(vm, "VMREAD", BigInt(Field.GUEST_RIP))).toThrow(expect.objectContaining({ vector: 13, error: 0 }));
  });
});

describe("shadow VMCSs (SDM 3C 25.2, 27.1, 27.3.1.5)", () => {
  test("VMPTRLD takes one; VMLAUNCH of it is VMfailInvalid", () => {
    const vm = validVmcs();
    revision(vm, SHADOW, VMCS_REVISION + SHADOW_VMCS);
    expect(vm.cpu.vmx.vmptrld(SHADOW)).toBe(VM_SUCCEED);
    expect(vm.cpu.vmx.enter(false)).toBe(VM_FAIL_INVALID);
  });

  test("the linked VMCS must be a shadow exactly with VMCS shadowing", () => {
    const plain = shadowing();
    revision(plain, SHADOW, VMCS_REVISION);
    expect(plain.launch()).toEqual(failedEntry(33, 4n));
    const without = shadowing().off(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.SHADOW_VMCS);
    expect(without.launch()).toEqual(failedEntry(33, 4n));
    revision(without, SHADOW, VMCS_REVISION);
    expect(without.launch()).toEqual({ kind: "entered" });
    expect(shadowing().with(Field.VMCS_LINK_POINTER, VMCS_REGION).launch()).toEqual(failedEntry(33, 4n));
  });
});
