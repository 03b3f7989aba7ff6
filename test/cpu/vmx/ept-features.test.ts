/** Page-modification logging, virtualization exceptions, mode-based execute control and EPTP switching. */
import { describe, expect, test } from "vitest";
import { Access, CpuFault, LinearRight, Vector } from "../../../engine/cpu/cpu";
import { newInstruction } from "../../../engine/cpu/isa/instruction";
import { Gpr } from "../../../engine/cpu/state";
import { SecondaryExec } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { EPT_ROOT, PAGES, type TestVmcs, validVmcs } from "./valid-vmcs";

const LOG = PAGES;
const INFORMATION = PAGES + 0x1000;
const EPTP_LIST = PAGES + 0x2000;
const OTHER_ROOT = PAGES + 0x3000;
const WB = 6 << 3;
const RWX = 7;
const SUPPRESS = 1n << 63n;
const AD = 1n << 6n;

const put = (vm: TestVmcs, pa: number, value: bigint): void =>
  vm.cpu.memory.view.setBigUint64(vm.cpu.memory.hostOffset(pa), value, true);
const get = (vm: TestVmcs, pa: number): bigint => vm.cpu.memory.view.getBigUint64(vm.cpu.memory.hostOffset(pa), true);
const LEAF = EPT_ROOT + 0x3000;

/** Maps guest-physical `page * 4096` to the same physical page. */
function map(vm: TestVmcs, page: number, leaf: bigint): TestVmcs {
  for (let level = 0; level < 3; level++) {
    put(vm, EPT_ROOT + level * 0x1000, BigInt(EPT_ROOT + (level + 1) * 0x1000) | 0x407n);
  }
  put(vm, LEAF + page * 8, BigInt(page * 4096) | leaf);
  return vm;
}
function translate(vm: TestVmcs, gpa: number, access: Access, linear: bigint | undefined, walk = false): number | null {
  return vm.exitOf(() => vm.cpu.secondStage?.translate(gpa, access, linear, walk));
}

describe("page-modification logging (SDM 3C 29.3.6)", () => {
  const logging = (index: number, eptp = AD) =>
    validVmcs()
      .secondary(SecondaryExec.ENABLE_PML)
      .with(Field.PML_ADDRESS, LOG)
      .with(Field.GUEST_PML_INDEX, index)
      .with(Field.EPT_POINTER, (v) => v | eptp);

  test("a write that sets a dirty flag logs the page and counts the index down; the next write does not", () => {
    const vm = map(logging(511), 5, BigInt(RWX | WB)).enter();
    expect(translate(vm, 0x5123, Access.WRITE, 0x7123n)).toBeNull();
    expect(get(vm, LOG + 511 * 8)).toBe(0x5000n);
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(510n);
    expect(get(vm, LEAF + 5 * 8) & 0x300n).toBe(0x300n);
    translate(vm, 0x5ff8, Access.WRITE, 0x7ff8n);
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(510n);
  });

  test("reads are not logged; the accesses of page walks are, because they count as writes (29.3.5)", () => {
    const vm = map(logging(7), 5, BigInt(RWX | WB)).enter();
    translate(vm, 0x5000, Access.READ, 0x7000n);
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(7n);
    translate(vm, 0x5008, Access.READ, 0x7000n, true);
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(6n);
    expect(get(vm, LOG + 7 * 8)).toBe(0x5000n);
  });

  test("index 0 is the last entry; with the index beyond 511 the access exits and sets no flag", () => {
    const vm = map(map(logging(0), 5, BigInt(RWX | WB)), 6, BigInt(RWX | WB)).enter();
    expect(translate(vm, 0x5000, Access.WRITE, 0x7000n)).toBeNull();
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(0xffffn);
    expect(translate(vm, 0x6000, Access.WRITE, 0x7000n)).toBe(ExitReason.PML_FULL);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0n);
    expect(get(vm, LEAF + 6 * 8) & 0x300n).toBe(0n);
    const full = map(logging(512), 5, BigInt(RWX | WB)).enter();
    expect(translate(full, 0x5000, Access.WRITE, 0x7000n)).toBe(ExitReason.PML_FULL);
  });

  test("without accessed and dirty flags nothing is logged", () => {
    const vm = map(logging(3, 0n), 5, BigInt(RWX | WB)).enter();
    translate(vm, 0x5000, Access.WRITE, 0x7000n);
    expect(vm.get(Field.GUEST_PML_INDEX)).toBe(3n);
  });

  test("the index is saved with the guest: 16 bits wide", () => {
    expect(validVmcs().with(Field.GUEST_PML_INDEX, 0x1_2345).get(Field.GUEST_PML_INDEX)).toBe(0x2345n);
  });
});

describe("virtualization exceptions (SDM 3C 26.5.7)", () => {
  const converting = () =>
    validVmcs()
      .secondary(SecondaryExec.EPT_VIOLATION_VE)
      .with(Field.VIRT_EXCEPTION_INFO, INFORMATION)
      .with(Field.EPTP_INDEX, 0x1ff);
  const fault = (vm: TestVmcs, gpa: number, access: Access, walk = false): unknown => {
    try {
      vm.cpu.secondStage?.translate(gpa, access, 0xffff_8000_0000_7000n, walk);
    } catch (raised) {
      return raised;
    }
    return null;
  };

  test("an EPT violation with bit 63 clear raises #VE and fills in the information area (table 26-1)", () => {
    const vm = map(converting(), 5, BigInt(4 | WB)).enter();
    const raised = fault(vm, 0x5000, Access.WRITE) as CpuFault;
    expect(raised).toBeInstanceOf(CpuFault);
    expect([raised.vector, raised.error]).toEqual([Vector.VE, undefined]);
    expect(get(vm, INFORMATION)).toBe(0xffff_ffff_0000_0030n);
    expect(get(vm, INFORMATION + 8)).toBe(0x1a2n);
    expect(get(vm, INFORMATION + 16)).toBe(0xffff_8000_0000_7000n);
    expect(get(vm, INFORMATION + 24)).toBe(0x5000n);
    expect(get(vm, INFORMATION + 32)).toBe(0x1ffn);
  });

  test("bit 63 of the entry that is not present, or that maps the page, suppresses it; that of others does not", () => {
    const leaf = map(converting(), 5, BigInt(4 | WB) | SUPPRESS).enter();
    expect(translate(leaf, 0x5000, Access.WRITE, 0n)).toBe(ExitReason.EPT_VIOLATION);
    const absent = map(converting(), 5, SUPPRESS).enter();
    expect(translate(absent, 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
    const table = map(converting(), 5, BigInt(4 | WB));
    put(table, EPT_ROOT, get(table, EPT_ROOT) | SUPPRESS);
    expect(fault(table.enter(), 0x5000, Access.READ)).toBeInstanceOf(CpuFault);
  });

  test("it exits while an event is being delivered, with CR0.PE 0, and while the area is in use", () => {
    const during = map(converting(), 5, 0n).enter();
    during.guest.setVectoring({ vector: 14, type: 3, error: 0, instructionLength: 0 });
    expect(translate(during, 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
    const real = map(converting(), 5, 0n).realMode().enter();
    expect(translate(real, 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
    const used = map(converting(), 5, 0n);
    put(used, INFORMATION, 0x1_0000_0000n);
    expect(translate(used.enter(), 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
  });

  test("without the control, and for misconfigurations, there is none", () => {
    expect(translate(map(validVmcs(), 5, 0n).enter(), 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
    const vm = map(converting(), 5, BigInt(2 | WB)).enter();
    expect(translate(vm, 0x5000, Access.READ, 0n)).toBe(ExitReason.EPT_MISCONFIG);
  });

  test("an address beyond the walk's width is no convertible violation", () => {
    const vm = map(converting(), 5, 0n).enter();
    expect(translate(vm, 2 ** 48, Access.READ, 0n)).toBe(ExitReason.EPT_VIOLATION);
  });
});

describe("mode-based execute control (SDM 3C 29.3.2, 29.3.3)", () => {
  const fetch = (vm: TestVmcs, rights: number): number | null => {
    if (vm.cpu.secondStage) vm.cpu.secondStage.linearRights = rights;
    return translate(vm, 0x5000, Access.EXECUTE, 0x7000n);
  };
  const modes = () => validVmcs().secondary(SecondaryExec.MODE_BASED_EPT_EXEC);

  test("bit 2 allows execution from supervisor-mode addresses, bit 10 from user-mode ones", () => {
    const supervisor = BigInt(5 | WB);
    const user = BigInt(1 | WB) | (1n << 10n);
    expect(fetch(map(modes(), 5, supervisor).enter(), 0)).toBeNull();
    expect(fetch(map(modes(), 5, supervisor).enter(), LinearRight.USER)).toBe(ExitReason.EPT_VIOLATION);
    expect(fetch(map(modes(), 5, user).enter(), LinearRight.USER)).toBeNull();
    expect(fetch(map(modes(), 5, user).enter(), 0)).toBe(ExitReason.EPT_VIOLATION);
  });

  test("the qualification has bit 6 for bit 10 of the entries", () => {
    const vm = map(modes(), 5, BigInt(1 | WB) | (1n << 10n)).enter();
    fetch(vm, LinearRight.WRITABLE | LinearRight.NO_EXECUTE);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x1ccn);
  });

  test("without the control bit 10 is ignored: an entry with nothing else is not present", () => {
    const vm = map(validVmcs(), 5, BigInt(WB) | (1n << 10n)).enter();
    expect(fetch(vm, LinearRight.USER)).toBe(ExitReason.EPT_VIOLATION);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x184n);
    const present = map(modes(), 5, BigInt(WB) | (1n << 10n)).enter();
    expect(fetch(present, LinearRight.USER)).toBeNull();
  });
});

describe("VMFUNC and EPTP switching (SDM 3C 26.5.6)", () => {
  const switching = () => {
    const vm = validVmcs()
      .secondary(SecondaryExec.ENABLE_VMFUNC)
      .with(Field.VM_FUNCTION_CONTROL, 1)
      .with(Field.EPTP_LIST_ADDRESS, EPTP_LIST);
    put(vm, EPTP_LIST + 3 * 8, BigInt(OTHER_ROOT) | 0x1en);
    put(vm, EPTP_LIST + 4 * 8, BigInt(OTHER_ROOT) | 0x1fn);
    return vm;
  };
  const vmfunc = (vm: TestVmcs, eax: number, ecx: number): number | null => {
    vm.cpu.state.setGpr(Gpr.RAX, BigInt(eax));
    vm.cpu.state.setGpr(Gpr.RCX, BigInt(ecx));
    return vm.exitOf(() => vm.guest.vmfunc?.(Object.assign(newInstruction(), { length: 3 })));
  };

  test("function 0 loads the EPT pointer and the EPTP index from the list", () => {
    const vm = switching().enter();
    expect(vmfunc(vm, 0, 3)).toBeNull();
    expect(vm.get(Field.EPT_POINTER)).toBe(BigInt(OTHER_ROOT) | 0x1en);
    expect(vm.get(Field.EPTP_INDEX)).toBe(3n);
    expect(vm.cpu.secondStage?.tag).toBe(BigInt(OTHER_ROOT) | 0x1en);
  });

  test("an index of 512 or more, an EPT pointer no VM entry would take, and a function that is off exit", () => {
    for (const [eax, ecx] of [
      [0, 512],
      [0, 0x1_0003],
      [0, 4],
      [0, 5],
      [1, 3],
      [63, 3],
    ]) {
      const vm = switching().enter();
      expect(vmfunc(vm, eax, ecx)).toBe(ExitReason.VMFUNC);
      expect(vm.get(Field.VM_EXIT_INSTRUCTION_LEN)).toBe(3n);
      expect(vm.get(Field.EPT_POINTER)).toBe(BigInt(EPT_ROOT) | 0x1en);
    }
  });

  test("function numbers from 64 on, and VMFUNC without its control, raise #UD", () => {
    const ud = expect.objectContaining({ vector: Vector.UD });
    expect(() => vmfunc(switching().enter(), 64, 3)).toThrow(ud as unknown as CpuFault);
    expect(() => vmfunc(validVmcs().enter(), 0, 3)).toThrow(ud as unknown as CpuFault);
  });
});

describe("XSAVES and XRSTORS (SDM 3C 26.1.3, 26.3)", () => {
  const run = (vm: TestVmcs, what: "xsaves" | "xrstors") => {
    vm.cpu.state.setGpr(Gpr.RAX, 0x300n);
    vm.cpu.state.setGpr(Gpr.RDX, 0n);
    vm.cpu.msrs.set(0xda0, 0x100n);
    return vm.exitOf(() => vm.guest.interceptInstruction(what, Object.assign(newInstruction(), { length: 5 })));
  };

  test("they raise #UD unless enabled, and exit for a component of EDX:EAX, IA32_XSS and the XSS-exiting bitmap", () => {
    expect(() => run(validVmcs().enter(), "xsaves")).toThrow(
      expect.objectContaining({ vector: Vector.UD }) as unknown as CpuFault,
    );
    const enabled = (bitmap: bigint) =>
      validVmcs().secondary(SecondaryExec.ENABLE_XSAVES).with(Field.XSS_EXIT_BITMAP, bitmap).enter();
    expect(run(enabled(0x100n), "xsaves")).toBe(ExitReason.XSAVES);
    expect(run(enabled(0x100n), "xrstors")).toBe(ExitReason.XRSTORS);
    expect(run(enabled(0x200n), "xsaves")).toBeNull();
    expect(run(enabled(0n), "xrstors")).toBeNull();
  });
});
