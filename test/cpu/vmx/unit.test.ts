import { describe, expect, test } from "vitest";
import { CpuFault } from "../../../engine/cpu/cpu";
import { Inhibit, Off } from "../../../engine/cpu/state";
import { Field } from "../../../engine/cpu/vmx/fields";
import { VmError } from "../../../engine/cpu/vmx/vm-instruction-errors";
import { VMCS_REVISION } from "../../../engine/cpu/vmx/vmcs";
import { VM_FAIL_INVALID, VM_SUCCEED } from "../../../engine/cpu/vmx/vmx";
import { FakeCpu } from "./fake-cpu";
import { entered, PAGES, VMCS_REGION, VMXON_REGION, validVmcs, vmfail } from "./valid-vmcs";

const putRevision = (cpu: FakeCpu, pa: number, revision = VMCS_REVISION): void =>
  cpu.memory.view.setUint32(cpu.memory.hostOffset(pa), revision, true);

function host(): FakeCpu {
  const cpu = new FakeCpu();
  cpu.state.setU64(Off.CR0, 0x8005_0033n);
  cpu.state.setU64(Off.CR4, 0x2020n);
  putRevision(cpu, VMXON_REGION);
  return cpu;
}

describe("VMXON and VMXOFF (SDM 3C 31.3)", () => {
  test("VMXON needs the right revision at an aligned address within MAXPHYADDR, else VMfailInvalid", () => {
    const cpu = host();
    putRevision(cpu, 0x3000, VMCS_REVISION + 1);
    for (const pa of [VMXON_REGION + 8, 2 ** 40, 0x3000, 0x5000_0000]) expect(cpu.vmx.vmxon(pa)).toBe(VM_FAIL_INVALID);
    expect(cpu.vmx.on).toBe(false);
    expect(cpu.vmx.vmxon(VMXON_REGION)).toBe(VM_SUCCEED);
    expect(cpu.vmx.on).toBe(true);
  });

  test("VMXON raises #GP(0) while IA32_FEATURE_CONTROL does not allow it, and with wrong fixed bits of CR0 (24.7, 24.8)", () => {
    const cpu = host();
    cpu.state.setU32(Off.FEATURE_CONTROL, 4);
    expect(() => cpu.vmx.vmxon(VMXON_REGION)).toThrow(CpuFault);
    cpu.state.setU32(Off.FEATURE_CONTROL, 5);
    cpu.state.setU64(Off.CR0, 0x33n);
    expect(() => cpu.vmx.vmxon(VMXON_REGION)).toThrow(CpuFault);
  });

  test("VMXON in VMX operation fails with error 15; VMXOFF leaves it and forgets the current VMCS", () => {
    const vm = validVmcs();
    expect(vm.cpu.vmx.vmxon(VMXON_REGION)).toBe(VmError.VMXON_IN_ROOT);
    expect(vm.cpu.vmx.vmxoff()).toBe(VM_SUCCEED);
    expect(vm.cpu.vmx.on).toBe(false);
    expect(vm.cpu.vmx.currentVmcs).toBe(-1);
  });

  test("the fixed bits bind CR0 and CR4 in VMX operation only (24.8)", () => {
    const cpu = host();
    expect(cpu.vmx.crAllowed(0, 0x30n)).toBe(true);
    cpu.vmx.vmxon(VMXON_REGION);
    expect(cpu.vmx.crAllowed(0, 0x30n)).toBe(false);
    expect(cpu.vmx.crAllowed(4, 0x20n)).toBe(false);
    expect(cpu.vmx.crAllowed(4, 0x2020n)).toBe(true);
  });
});

describe("VMCLEAR, VMPTRLD and the launch state (SDM 3C 25.1, 25.11.3)", () => {
  test("VMCLEAR refuses bad addresses (2) and the VMXON region (3)", () => {
    const { vmx } = validVmcs().cpu;
    expect(vmx.vmclear(0x2800)).toBe(VmError.VMCLEAR_INVALID_ADDRESS);
    expect(vmx.vmclear(2 ** 41)).toBe(VmError.VMCLEAR_INVALID_ADDRESS);
    expect(vmx.vmclear(VMXON_REGION)).toBe(VmError.VMCLEAR_VMXON_POINTER);
  });

  test("VMPTRLD refuses bad addresses (9), the VMXON region (10) and other revisions (11)", () => {
    const { cpu } = validVmcs();
    expect(cpu.vmx.vmptrld(0x2001)).toBe(VmError.VMPTRLD_INVALID_ADDRESS);
    expect(cpu.vmx.vmptrld(VMXON_REGION)).toBe(VmError.VMPTRLD_VMXON_POINTER);
    putRevision(cpu, PAGES, VMCS_REVISION ^ 1);
    expect(cpu.vmx.vmptrld(PAGES)).toBe(VmError.VMPTRLD_INCORRECT_VMCS_REVISION_ID);
  });

  test("a failure without a current VMCS is VMfailInvalid; with one, its number is in VM_INSTRUCTION_ERROR (31.2)", () => {
    const cpu = host();
    cpu.vmx.vmxon(VMXON_REGION);
    expect(cpu.vmx.vmclear(0x2800)).toBe(VM_FAIL_INVALID);
    expect(cpu.vmx.vmread(Field.GUEST_RIP)).toBe(VM_FAIL_INVALID);
    expect(cpu.vmx.enter(false)).toBe(VM_FAIL_INVALID);
    const vm = validVmcs();
    vm.cpu.vmx.vmclear(0x2800);
    expect(vm.get(Field.VM_INSTRUCTION_ERROR)).toBe(2n);
  });

  test("VMRESUME needs a launched VMCS (5), VMLAUNCH a clear one (4); VMCLEAR clears it", () => {
    const vm = validVmcs();
    const { vmx } = vm.cpu;
    expect(vmx.enter(true)).toBe(VmError.VMRESUME_NONLAUNCHED_VMCS);
    expect(vm.launch()).toEqual(entered);
    vm.exitOf(() => vm.guest.interceptTripleFault());
    expect(vmx.enter(false)).toBe(VmError.VMLAUNCH_NONCLEAR_VMCS);
    expect(vmx.launched).toBe(true);
    vmx.vmclear(VMCS_REGION);
    expect(vmx.currentVmcs).toBe(-1);
    expect(vmx.vmptrld(VMCS_REGION)).toBe(VM_SUCCEED);
    expect(vmx.launched).toBe(false);
    expect(vmx.enter(false)).toBe(VM_SUCCEED);
  });

  test("VM entry fails with error 26 while MOV SS blocks events (27.1)", () => {
    const vm = validVmcs();
    vm.cpu.state.setU32(Off.INHIBIT, Inhibit.MOV_SS);
    expect(vm.launch()).toEqual(vmfail(VmError.ENTRY_EVENTS_BLOCKED_BY_MOV_SS));
  });

  test("the contents of a VMCS survive VMCLEAR and a change of the current VMCS", () => {
    const vm = validVmcs().with(Field.GUEST_RIP, 0x1234);
    const { cpu } = vm;
    putRevision(cpu, PAGES);
    cpu.vmx.vmclear(PAGES);
    cpu.vmx.vmptrld(PAGES);
    expect(cpu.vmx.vmread(Field.GUEST_RIP)).toBe(0n);
    cpu.vmx.vmclear(VMCS_REGION);
    cpu.vmx.vmptrld(VMCS_REGION);
    expect(vm.get(Field.GUEST_RIP)).toBe(0x1234n);
    expect(cpu.vmx.peek(PAGES, Field.GUEST_RIP)).toBe(0n);
  });
});

describe("VMREAD and VMWRITE (SDM 3C 31.3)", () => {
  test("fields that do not exist fail with error 12; VM-exit information may be written (IA32_VMX_MISC bit 29)", () => {
    const { vmx } = validVmcs().cpu;
    for (const encoding of [0x0816, 0x2fff, 0x6c20, 0x8000, 0x681f, 0x1_0000_681e, -1, Field.SPPTP]) {
      expect(vmx.vmread(encoding), `field ${encoding.toString(16)}`).toBe(VmError.UNSUPPORTED_VMCS_COMPONENT);
      expect(vmx.vmwrite(encoding, 0n)).toBe(VmError.UNSUPPORTED_VMCS_COMPONENT);
    }
    expect((vmx.capability(0x485) >> 29n) & 1n).toBe(1n);
    expect(vmx.vmwrite(Field.VM_EXIT_REASON, 0x1_0000_0012n)).toBe(VM_SUCCEED);
    expect(vmx.vmread(Field.VM_EXIT_REASON)).toBe(0x12n);
  });

  test("values are cut to the field's width", () => {
    const vm = validVmcs();
    const ones = 0xffff_ffff_ffff_ffffn;
    expect(vm.with(Field.GUEST_ES_SELECTOR, ones).get(Field.GUEST_ES_SELECTOR)).toBe(0xffffn);
    expect(vm.with(Field.EXCEPTION_BITMAP, ones).get(Field.EXCEPTION_BITMAP)).toBe(0xffff_ffffn);
    expect(vm.with(Field.TSC_OFFSET, ones).get(Field.TSC_OFFSET)).toBe(ones);
    expect(vm.with(Field.GUEST_RSP, ones).get(Field.GUEST_RSP)).toBe(ones);
  });

  test("the high access type reaches the upper half of a 64-bit field only (25.11.2)", () => {
    const vm = validVmcs().with(Field.TSC_OFFSET, 0x1111_2222_3333_4444n);
    const { vmx } = vm.cpu;
    expect(vmx.vmread(Field.TSC_OFFSET + 1)).toBe(0x1111_2222n);
    expect(vmx.vmwrite(Field.TSC_OFFSET + 1, 0x5555_6666n)).toBe(VM_SUCCEED);
    expect(vm.get(Field.TSC_OFFSET)).toBe(0x5555_6666_3333_4444n);
  });
});

describe("INVEPT and INVVPID (SDM 3C 31.3)", () => {
  test("INVEPT knows types 1 and 2; a single context needs a legal EPT pointer", () => {
    const { cpu } = validVmcs();
    expect(cpu.vmx.invept(1, 0x1001en)).toBe(VM_SUCCEED);
    expect(cpu.vmx.invept(2, 0n)).toBe(VM_SUCCEED);
    expect(cpu.invalidations).toEqual([{ eptp: 0x1001en }, {}]);
    for (const [type, eptp] of [
      [0, 0x1001en],
      [3, 0x1001en],
      [1, 0x10007n],
    ] as const) {
      expect(cpu.vmx.invept(type, eptp)).toBe(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
    }
  });

  test("INVVPID knows types 0 to 3; VPID 0 and non-canonical addresses are invalid", () => {
    const { cpu } = validVmcs();
    expect(cpu.vmx.invvpid(0, 1, 0x5000n)).toBe(VM_SUCCEED);
    expect(cpu.vmx.invvpid(1, 1, 0n)).toBe(VM_SUCCEED);
    expect(cpu.vmx.invvpid(2, 0, 0n)).toBe(VM_SUCCEED);
    expect(cpu.vmx.invvpid(3, 1, 0n)).toBe(VM_SUCCEED);
    expect(cpu.invalidations).toEqual([{ vpid: 1, linear: 0x5000n }, { vpid: 1 }, {}, { vpid: 1, keepGlobals: true }]);
    for (const [type, vpid, linear] of [
      [4, 1, 0n],
      [1, 0, 0n],
      [3, 0, 0n],
      [0, 0, 0n],
      [0, 1, 0x8000_0000_0000n],
    ] as const) {
      expect(cpu.vmx.invvpid(type, vpid, linear)).toBe(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
    }
  });
});
