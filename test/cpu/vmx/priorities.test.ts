/** Rules that are about which of two things comes first, or about what a field holds in a corner of the architecture. */
import { describe, expect, test } from "vitest";
import { CpuFault, Vector } from "../../../engine/cpu/cpu";
import { NO_REG, newInstruction, OperandKind } from "../../../engine/cpu/isa/instruction";
import { Activity, CodeMode, Inhibit, Off, Pending, Rflags } from "../../../engine/cpu/state";
import { cacheHandlers } from "../../../engine/cpu/system/caches";
import { timeHandlers } from "../../../engine/cpu/system/time";
import { CpuBased, PinBased, SecondaryExec, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { vmxHandlers } from "../../../engine/cpu/vmx/instructions";
import { VmError } from "../../../engine/cpu/vmx/vm-instruction-errors";
import { AbortWord } from "../../../engine/cpu/vmx/vmcs";
import { failedEntry, PAGES, type TestVmcs, VMCS_REGION, validVmcs } from "./valid-vmcs";

const VALID = 1 << 31;
const CODED = 1 << 11;
const TSD = 4n;

function faultOf(action: () => unknown): number | null {
  try {
    action();
  } catch (fault) {
    if (fault instanceof CpuFault) return fault.vector;
    throw fault;
  }
  return null;
}

/** An instruction whose memory operand faults when it is read, with register 1 as its first operand. */
function withoutMemory(vm: TestVmcs) {
  Object.assign(vm.cpu.mmu, {
    read: () => {
      throw new CpuFault(Vector.PF, 0);
    },
  });
  const i = Object.assign(newInstruction(), { length: 5, addressSize: 8, operandSize: 8, base: NO_REG });
  Object.assign(i.operands[0], { kind: OperandKind.GPR, reg: 1, size: 8 });
  Object.assign(i.operands[1], { kind: OperandKind.MEMORY, size: 16 });
  vm.cpu.state.setU32(Off.CODE_MODE, CodeMode.LONG64);
  return i;
}

describe("VMX instructions look at their memory operand last (SDM 3C 31.3)", () => {
  test("VMXON in VMX root operation fails with error 15 before its operand is read", () => {
    const vm = validVmcs();
    const i = withoutMemory(vm);
    vmxHandlers.VMXON(vm.cpu, i);
    expect(vm.get32(Field.VM_INSTRUCTION_ERROR)).toBe(VmError.VMXON_IN_ROOT);
  });

  test("VMXON raises #GP for IA32_FEATURE_CONTROL before a page fault of its operand", () => {
    const vm = validVmcs();
    vm.cpu.vmx.vmxoff();
    const i = withoutMemory(vm);
    expect(faultOf(() => vmxHandlers.VMXON(vm.cpu, i))).toBe(Vector.PF);
    vm.cpu.state.setU32(Off.FEATURE_CONTROL, 1);
    expect(faultOf(() => vmxHandlers.VMXON(vm.cpu, i))).toBe(Vector.GP);
  });

  test("VMWRITE without a current VMCS is VMfailInvalid, whatever its operand", () => {
    const vm = validVmcs();
    const i = withoutMemory(vm);
    expect(faultOf(() => vmxHandlers.VMWRITE(vm.cpu, i))).toBe(Vector.PF);
    vm.cpu.vmx.vmclear(VMCS_REGION);
    vmxHandlers.VMWRITE(vm.cpu, i);
    expect(vm.cpu.state.rflags & Rflags.ARITHMETIC).toBe(Rflags.CF);
  });

  for (const [mnemonic, bad] of [
    ["INVEPT", 0n],
    ["INVEPT", 3n],
    ["INVVPID", 4n],
    ["INVVPID", 0x1_0000_0000n],
  ] as const) {
    test(`${mnemonic} of type ${bad} fails with error 28 before its descriptor is read`, () => {
      const vm = validVmcs();
      const i = withoutMemory(vm);
      vm.cpu.state.setGpr(1, bad);
      vmxHandlers[mnemonic](vm.cpu, i);
      expect(vm.get32(Field.VM_INSTRUCTION_ERROR)).toBe(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID);
      vm.cpu.state.setGpr(1, 1n);
      expect(faultOf(() => vmxHandlers[mnemonic](vm.cpu, i))).toBe(Vector.PF);
    });
  }

  test("VMXOFF lets a waiting INIT be looked at (24.8)", () => {
    const { cpu } = validVmcs();
    const before = cpu.attentions;
    cpu.vmx.vmxoff();
    expect(cpu.attentions).toBe(before + 1);
  });
});

describe("instructions that a guest may have or not (SDM 3C 26.3)", () => {
  const plain = () => Object.assign(newInstruction(), { length: 3, addressSize: 8, operandSize: 8, base: NO_REG });

  test("RDTSCP and RDPID raise #UD without ENABLE_RDTSCP, before any other fault", () => {
    const vm = validVmcs().enter();
    vm.cpu.state.setU32(Off.CPL, 3);
    vm.cpu.state.setU64(Off.CR4, 0x2020n | TSD);
    expect(faultOf(() => timeHandlers.RDTSCP(vm.cpu, plain()))).toBe(Vector.UD);
    expect(faultOf(() => timeHandlers.RDPID(vm.cpu, plain()))).toBe(Vector.UD);
  });

  test("with it, CR4.TSD above CPL 0 comes before the exit of RDTSCP (26.1.1)", () => {
    const vm = validVmcs().secondary(SecondaryExec.ENABLE_RDTSCP).primary(CpuBased.RDTSC_EXITING).enter();
    vm.cpu.state.setU64(Off.CR4, 0x2020n | TSD);
    vm.cpu.state.setU32(Off.CPL, 3);
    expect(faultOf(() => timeHandlers.RDTSCP(vm.cpu, plain()))).toBe(Vector.GP);
    vm.cpu.state.setU32(Off.CPL, 0);
    expect(vm.exitOf(() => timeHandlers.RDTSCP(vm.cpu, plain()))).toBe(ExitReason.RDTSCP);
  });

  test("INVPCID: #UD without ENABLE_INVPCID, then #GP above CPL 0, then the exit", () => {
    const i = plain();
    Object.assign(i.operands[0], { kind: OperandKind.GPR, reg: 1, size: 8 });
    Object.assign(i.operands[1], { kind: OperandKind.MEMORY, size: 16 });
    const without = validVmcs().enter();
    without.cpu.state.setU32(Off.CPL, 3);
    expect(faultOf(() => cacheHandlers.INVPCID(without.cpu, i))).toBe(Vector.UD);
    const vm = validVmcs().secondary(SecondaryExec.ENABLE_INVPCID).primary(CpuBased.INVLPG_EXITING).enter();
    vm.cpu.state.setU32(Off.CPL, 3);
    expect(faultOf(() => cacheHandlers.INVPCID(vm.cpu, i))).toBe(Vector.GP);
    vm.cpu.state.setU32(Off.CPL, 0);
    expect(vm.exitOf(() => cacheHandlers.INVPCID(vm.cpu, i))).toBe(ExitReason.INVPCID);
  });
});

describe("what VM exits record", () => {
  test("in real-address mode no exception has an error code (28.2.2)", () => {
    const vm = validVmcs()
      .realMode()
      .with(Field.EXCEPTION_BITMAP, 1 << 13)
      .enter();
    expect(vm.exitOf(() => vm.guest.interceptException(13, 0x42, 0n, false))).toBe(ExitReason.EXCEPTION_NMI);
    expect(vm.get32(Field.VM_EXIT_INTR_INFO)).toBe((VALID | (3 << 8) | 13) >>> 0);
    expect(vm.get32(Field.VM_EXIT_INTR_ERROR_CODE)).toBe(0);
  });

  test("nor has the event whose delivery the exit interrupted (28.2.4)", () => {
    const vectored = (vm: TestVmcs): number => {
      vm.enter().guest.setVectoring({ vector: 13, type: 3, error: 0x42, instructionLength: 0 });
      vm.exitOf(() => vm.guest.interceptTaskSwitch(0x30, 3));
      return vm.get32(Field.IDT_VECTORING_INFO_FIELD);
    };
    expect(vectored(validVmcs().realMode())).toBe((VALID | (3 << 8) | 13) >>> 0);
    expect(vectored(validVmcs())).toBe((VALID | CODED | (3 << 8) | 13) >>> 0);
  });

  test("a fault of IRET leaves blocking by NMI alone, and says nothing of it, when NMIs exit and are not virtual (26.3, 28.2.3)", () => {
    const faulted = (pin: number) => {
      const vm = validVmcs()
        .pin(pin)
        .with(Field.EXCEPTION_BITMAP, 1 << 13)
        .with(Field.GUEST_INTERRUPTIBILITY_INFO, 8);
      const { state } = vm.enter().cpu;
      vm.guest.interceptInstruction("iret", newInstruction());
      state.setU32(Off.INHIBIT, 0);
      vm.exitOf(() => vm.guest.interceptException(13, 0, 0n, false));
      return [vm.get32(Field.VM_EXIT_INTR_INFO) & 0x1000, vm.get32(Field.GUEST_INTERRUPTIBILITY_INFO)];
    };
    expect(faulted(PinBased.NMI_EXITING)).toEqual([0, 8]);
    expect(faulted(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)).toEqual([0x1000, 0]);
    expect(faulted(0)).toEqual([0x1000, 0]);
  });

  test("a task switch by an instruction saves RF as 0, one by a gate in the IDT leaves it (28.3.3)", () => {
    const rf = (source: number): bigint => {
      const vm = validVmcs().with(Field.GUEST_RFLAGS, 0x10002).enter();
      vm.exitOf(() => vm.guest.interceptTaskSwitch(0x30, source));
      return vm.get(Field.GUEST_RFLAGS);
    };
    expect([0, 1, 2, 3].map(rf)).toEqual([2n, 2n, 2n, 0x10002n]);
  });

  test("the MSR-store list gets the processor's own TSC, not the guest's (25.6.5, 28.4)", () => {
    const vm = validVmcs()
      .primary(CpuBased.USE_TSC_OFFSETTING)
      .with(Field.TSC_OFFSET, 1000)
      .with(Field.VM_EXIT_MSR_STORE_ADDR, PAGES)
      .with(Field.VM_EXIT_MSR_STORE_COUNT, 1)
      .enter();
    const { cpu } = vm;
    Object.assign(cpu.vmx.services, { readMsr: () => cpu.guest?.adjustTsc(5n) ?? 5n });
    const at = cpu.memory.hostOffset(PAGES);
    cpu.memory.view.setUint32(at, 0x10, true);
    expect(vm.exitOf(() => vm.guest.interceptTripleFault())).toBe(ExitReason.TRIPLE_FAULT);
    expect(cpu.memory.view.getBigUint64(at + 8, true)).toBe(5n);
  });

  test("INIT comes before the monitor trap flag and the window exits (SDM 3A table 6-2; 3C 26.5.2)", () => {
    const vm = validVmcs()
      .primary(CpuBased.MONITOR_TRAP_FLAG | CpuBased.INTR_WINDOW_EXITING)
      .with(Field.GUEST_RFLAGS, 0x202)
      .enter();
    vm.cpu.vmx.state.mtf = 2;
    vm.cpu.state.setU32(Off.PENDING, Pending.INIT);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.INIT_SIGNAL);
  });
});

describe("leaving for the host", () => {
  test("after a failed MSR load blocking by NMI is what it was before the entry, not the guest's (27.8)", () => {
    for (const [before, guests] of [
      [0, 8],
      [Inhibit.NMI, 0],
    ]) {
      const vm = validVmcs()
        .with(Field.VM_ENTRY_MSR_LOAD_ADDR, PAGES)
        .with(Field.VM_ENTRY_MSR_LOAD_COUNT, 1)
        .with(Field.GUEST_INTERRUPTIBILITY_INFO, guests);
      vm.cpu.state.setU32(Off.INHIBIT, before);
      expect(vm.launch()).toEqual(failedEntry(34, 1n));
      expect(vm.cpu.state.u32(Off.INHIBIT)).toBe(before);
    }
  });

  test("a guest in IA-32e mode cannot exit to a 32-bit host: VMX abort 6 (28.5, 28.7)", () => {
    const vm = validVmcs()
      .pae()
      .off(Field.VM_EXIT_CONTROLS, VmExitControl.HOST_ADDR_SPACE_SIZE)
      .with(Field.HOST_IA32_EFER, 0)
      .with(Field.HOST_RIP, 0x1000);
    vm.cpu.state.setU64(Off.EFER, 0n);
    vm.enter();
    vm.cpu.state.setU64(Off.EFER, 0x500n);
    expect(() => vm.guest.interceptTripleFault()).toThrow();
    expect(vm.cpu.vmx.vmcs.lo(AbortWord)).toBe(6);
    expect(vm.cpu.state.activity).toBe(Activity.SHUTDOWN);
  });

  test("NMI injection refused by MOV SS or by virtual-NMI blocking has qualification 0 (27.8)", () => {
    const nmi = (VALID | (2 << 8) | 2) >>> 0;
    const byMovSs = validVmcs().with(Field.VM_ENTRY_INTR_INFO_FIELD, nmi).with(Field.GUEST_INTERRUPTIBILITY_INFO, 2);
    expect(byMovSs.launch()).toEqual(failedEntry(33, 0n));
    const byNmi = validVmcs()
      .pin(PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS)
      .with(Field.VM_ENTRY_INTR_INFO_FIELD, nmi)
      .with(Field.GUEST_INTERRUPTIBILITY_INFO, 8);
    expect(byNmi.launch()).toEqual(failedEntry(33, 0n));
  });
});
