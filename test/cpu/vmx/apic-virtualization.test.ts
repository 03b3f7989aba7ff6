/** APIC-register virtualization, virtual-interrupt delivery, x2APIC mode and posted interrupts (SDM 3C chapter 30). */
import { describe, expect, test } from "vitest";
import { type CpuFault, Vector } from "../../../engine/cpu/cpu";
import { Activity, Inhibit, Off, Rflags } from "../../../engine/cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { PAGES, type TestVmcs, validVmcs } from "./valid-vmcs";

const VAPIC = PAGES;
const ACCESS_PAGE = PAGES + 0x1000;
const DESCRIPTOR = PAGES + 0x2000;
const NOTIFICATION = 0xf2;
const APIC = 0xfee0_0000n;

const TPR = 0x80;
const PPR = 0xa0;
const ISR = 0x100;
const IRR = 0x200;

const read = (vm: TestVmcs, offset: number): number =>
  vm.cpu.memory.view.getUint32(vm.cpu.memory.hostOffset(VAPIC + offset), true);
const write = (vm: TestVmcs, offset: number, value: number): void =>
  vm.cpu.memory.view.setUint32(vm.cpu.memory.hostOffset(VAPIC + offset), value, true);
const bit = (vm: TestVmcs, base: number, vector: number): number =>
  (read(vm, base + ((vector >> 5) << 4)) >>> (vector & 31)) & 1;
const setBit = (vm: TestVmcs, base: number, vector: number): void =>
  write(vm, base + ((vector >> 5) << 4), read(vm, base + ((vector >> 5) << 4)) | (1 << (vector & 31)));

const shadow = () => validVmcs().primary(CpuBased.TPR_SHADOW).with(Field.VIRTUAL_APIC_PAGE_ADDR, VAPIC);
const withAccessPage = (secondary: number) =>
  shadow()
    .secondary(SecondaryExec.VIRTUALIZE_APIC_ACCESSES | secondary)
    .with(Field.APIC_ACCESS_ADDR, ACCESS_PAGE);
const delivering = (secondary = 0) =>
  withAccessPage(SecondaryExec.VIRTUAL_INTR_DELIVERY | secondary)
    .pin(PinBased.EXT_INTR_EXITING)
    .with(Field.GUEST_RFLAGS, 0x202);

/** A 32-bit store to the APIC-access page, and the boundary behind it. */
function store(vm: TestVmcs, offset: number, value: number): number | null {
  return vm.exitOf(() => {
    vm.cpu.state.setU64(Off.VALUE, BigInt(value >>> 0));
    vm.guest.apicAccess(ACCESS_PAGE + offset, offset, 4, true, APIC + BigInt(offset));
    vm.guest.boundary();
  });
}
function load(vm: TestVmcs, offset: number, size = 4): number | null {
  return vm.exitOf(() => vm.guest.apicAccess(ACCESS_PAGE + offset, offset, size, false, APIC + BigInt(offset)));
}
const delivered = (vm: TestVmcs): number[] => vm.cpu.delivered.map((event) => event.vector);

describe("reads from the APIC-access page (SDM 3C 30.4.2)", () => {
  test("without APIC-register virtualization only the task priority; with delivery also EOI and ICR low", () => {
    const plain = withAccessPage(0).enter();
    expect(load(plain, TPR)).toBeNull();
    expect(load(plain, 0xb0)).toBe(ExitReason.APIC_ACCESS);
    for (const offset of [TPR, 0xb0, 0x300]) expect(load(delivering().enter(), offset)).toBeNull();
    for (const offset of [0x20, 0x310, PPR]) expect(load(delivering().enter(), offset)).toBe(ExitReason.APIC_ACCESS);
  });

  test("with APIC-register virtualization all the registers listed, and no others", () => {
    const readable = new Set([
      0x20, 0x30, 0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380,
      0x3e0,
    ]);
    for (let i = 0; i < 8; i++) for (const base of [ISR, 0x180, IRR]) readable.add(base + i * 16);
    for (let offset = 0; offset < 0x1000; offset += 16) {
      const vm = withAccessPage(SecondaryExec.APIC_REGISTER_VIRT).enter();
      write(vm, offset, 0x1234_5678);
      expect(load(vm, offset), `offset ${offset.toString(16)}`).toBe(
        readable.has(offset) ? null : ExitReason.APIC_ACCESS,
      );
      if (readable.has(offset)) expect(vm.cpu.state.u64(Off.VALUE)).toBe(0x1234_5678n);
      else expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(BigInt(offset));
    }
  });

  test("an access must lie in the low four bytes of its 16; bytes of them are read", () => {
    const vm = () => withAccessPage(SecondaryExec.APIC_REGISTER_VIRT).enter();
    const bytes = vm();
    write(bytes, 0x20, 0x0300_0000);
    expect(load(bytes, 0x23, 1)).toBeNull();
    expect(bytes.cpu.state.u64(Off.VALUE)).toBe(3n);
    expect(load(vm(), 0x20, 8)).toBe(ExitReason.APIC_ACCESS);
    expect(load(vm(), 0x22, 4)).toBe(ExitReason.APIC_ACCESS);
    expect(load(vm(), 0x24, 4)).toBe(ExitReason.APIC_ACCESS);
  });

  test("an instruction fetch exits with access type 2, a page walk through EPT with 15 (table 28-6)", () => {
    const vm = withAccessPage(SecondaryExec.APIC_REGISTER_VIRT).enter();
    expect(vm.exitOf(() => vm.guest.apicFetch?.(APIC + 0x80n))).toBe(ExitReason.APIC_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x2080n);
    vm.enter();
    vm.guest.setVectoring({ vector: 14, type: 3, instructionLength: 0 });
    expect(load(vm, 0x20)).toBe(ExitReason.APIC_ACCESS);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x3020n);
    expect(vm.get(Field.IDT_VECTORING_INFO_FIELD)).toBe(0x8000_030en);
  });
});

describe("writes to the APIC-access page (SDM 3C 30.4.3)", () => {
  test("with APIC-register virtualization a write exits behind the instruction, its offset the qualification", () => {
    const writable = new Set([
      0x20, 0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0,
    ]);
    for (let offset = 0; offset < 0x1000; offset += 16) {
      const vm = withAccessPage(SecondaryExec.APIC_REGISTER_VIRT).enter();
      const silent = offset === TPR || offset === 0x310;
      const expected = !writable.has(offset) ? ExitReason.APIC_ACCESS : silent ? null : ExitReason.APIC_WRITE;
      expect(store(vm, offset, 0x55aa), `offset ${offset.toString(16)}`).toBe(expected);
      if (expected === ExitReason.APIC_ACCESS) expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(BigInt(offset | 0x1000));
      if (expected !== ExitReason.APIC_WRITE) continue;
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(BigInt(offset));
      expect(read(vm, offset)).toBe(0x55aa);
    }
  });

  test("a write of the task priority clears its upper bytes; of ICR high its lower three", () => {
    const vm = withAccessPage(SecondaryExec.APIC_REGISTER_VIRT).enter();
    expect(store(vm, TPR, 0xffff_ff35)).toBeNull();
    expect(read(vm, TPR)).toBe(0x35);
    expect(store(vm, 0x310, 0x1234_5678)).toBeNull();
    expect(read(vm, 0x310)).toBe(0x1200_0000);
  });

  test("an exit for another reason drops the emulation of a write (30.4.3.2)", () => {
    const vm = delivering(SecondaryExec.APIC_REGISTER_VIRT).enter();
    vm.cpu.state.setU64(Off.VALUE, 0n);
    vm.guest.apicAccess(ACCESS_PAGE + 0x20, 0x20, 4, true, APIC + 0x20n);
    vm.exitOf(() => vm.guest.interceptTripleFault());
    vm.enter();
    expect(vm.exitOf(() => vm.guest.boundary())).toBeNull();
  });

  test("a self-IPI through ICR low is virtualized; anything else in it exits (30.4.3.2)", () => {
    const self = delivering().with(Field.GUEST_RFLAGS, 2).enter();
    expect(store(self, 0x300, 0x0004_4041)).toBeNull();
    expect(bit(self, IRR, 0x41)).toBe(1);
    expect(self.get(Field.GUEST_INTR_STATUS)).toBe(0x41n);
    // Vector below 16, level, delivery status, NMI, other shorthands and reserved bits. Bit 14 (level) does not matter.
    for (const icr of [
      0x4_0005, 0x4_8041, 0x4_1041, 0x4_0441, 0x41, 0x8_0041, 0xc_0041, 0x5_0041, 0x14_0041, 0x4_2041,
    ]) {
      expect(store(delivering().enter(), 0x300, icr), icr.toString(16)).toBe(ExitReason.APIC_WRITE);
    }
  });
});

describe("virtual interrupts (SDM 3C 30.1.3 to 30.2)", () => {
  test("VM entry updates VPPR from VTPR and SVI, and delivers RVI when its class is higher (27.7.5)", () => {
    const vm = delivering().with(Field.GUEST_INTR_STATUS, 0x2041);
    write(vm, TPR, 0x15);
    setBit(vm, IRR, 0x41);
    setBit(vm, IRR, 0x33);
    vm.enter();
    expect(read(vm, PPR)).toBe(0x20);
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([0x41]);
    expect(bit(vm, ISR, 0x41)).toBe(1);
    expect(bit(vm, IRR, 0x41)).toBe(0);
    expect(read(vm, PPR)).toBe(0x40);
    expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0x4133n);
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([0x41]);
  });

  test("VPPR is VTPR with its lower bits when VTPR's class is not below SVI's", () => {
    const vm = delivering().with(Field.GUEST_INTR_STATUS, 0x3300);
    write(vm, TPR, 0x3a);
    vm.enter();
    expect(read(vm, PPR)).toBe(0x3a);
  });

  test("RVI of the same class as VPPR, RFLAGS.IF 0, blocking by STI or MOV SS, and interrupt-window exiting hold it back", () => {
    const same = delivering().with(Field.GUEST_INTR_STATUS, 0x4045);
    same.enter().guest.boundary();
    expect(delivered(same)).toEqual([]);
    const closed = delivering().with(Field.GUEST_INTR_STATUS, 0x45).with(Field.GUEST_RFLAGS, 2);
    closed.enter().guest.boundary();
    expect(delivered(closed)).toEqual([]);
    closed.cpu.state.rflags = 0x202;
    closed.guest.boundary();
    expect(delivered(closed)).toEqual([0x45]);
    for (const shadowBit of [Inhibit.STI, Inhibit.MOV_SS]) {
      const blocked = delivering().with(Field.GUEST_INTR_STATUS, 0x45).enter();
      blocked.cpu.state.setU32(Off.INHIBIT, shadowBit);
      blocked.guest.boundary();
      expect(delivered(blocked)).toEqual([]);
    }
    const window = delivering().primary(CpuBased.INTR_WINDOW_EXITING).with(Field.GUEST_INTR_STATUS, 0x45).enter();
    expect(window.exitOf(() => window.guest.boundary())).toBe(ExitReason.INTERRUPT_WINDOW);
    expect(delivered(window)).toEqual([]);
  });

  test("a virtual interrupt ends the HLT state", () => {
    const vm = delivering().with(Field.GUEST_INTR_STATUS, 0x45).with(Field.GUEST_ACTIVITY_STATE, Activity.HLT).enter();
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([0x45]);
  });

  test("EOI ends the interrupt in service, drops VPPR and lets the next one through (30.1.4)", () => {
    const vm = delivering().with(Field.GUEST_INTR_STATUS, 0x5144);
    setBit(vm, ISR, 0x51);
    setBit(vm, ISR, 0x22);
    setBit(vm, IRR, 0x44);
    vm.enter().guest.boundary();
    expect(delivered(vm)).toEqual([]);
    expect(store(vm, 0xb0, 0)).toBeNull();
    expect(bit(vm, ISR, 0x51)).toBe(0);
    expect(delivered(vm)).toEqual([0x44]);
    expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0x4400n);
  });

  test("EOI of a vector in the EOI-exit bitmap exits behind the instruction with the vector", () => {
    for (const [field, vector] of [
      [Field.EOI_EXIT_BITMAP0, 0x3f],
      [Field.EOI_EXIT_BITMAP1, 0x40],
      [Field.EOI_EXIT_BITMAP2, 0xa0],
      [Field.EOI_EXIT_BITMAP3, 0xff],
    ] as const) {
      const vm = delivering()
        .with(Field.GUEST_INTR_STATUS, vector << 8)
        .with(field, 1n << BigInt(vector & 63));
      setBit(vm, ISR, vector);
      vm.enter();
      expect(store(vm, 0xb0, 0x77)).toBe(ExitReason.EOI_INDUCED);
      expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(BigInt(vector));
      expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0n);
      expect(read(vm, 0xb0)).toBe(0);
    }
  });

  test("lowering the task priority recognises a pending interrupt; there is no TPR-threshold exit (30.1.2)", () => {
    const vm = delivering().with(Field.GUEST_INTR_STATUS, 0x45).with(Field.TPR_THRESHOLD, 0xf);
    write(vm, TPR, 0x70);
    vm.enter().guest.boundary();
    expect(delivered(vm)).toEqual([]);
    vm.guest.writeTprShadow(4);
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([]);
    vm.guest.writeTprShadow(3);
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([0x45]);
  });
});

describe("x2APIC registers (SDM 3C 30.5)", () => {
  const x2apic = (secondary = 0) =>
    shadow()
      .secondary(SecondaryExec.VIRTUALIZE_X2APIC_MODE | secondary)
      .pin(PinBased.EXT_INTR_EXITING);

  test("without APIC-register virtualization RDMSR reads the task priority only; with it the whole range", () => {
    const plain = x2apic().enter();
    write(plain, TPR, 0x30);
    expect(plain.guest.virtualizeRdmsr?.(0x808)).toBe(0x30n);
    expect(plain.guest.virtualizeRdmsr?.(0x802)).toBeUndefined();
    const full = x2apic(SecondaryExec.APIC_REGISTER_VIRT).enter();
    write(full, 0x20, 7);
    write(full, 0x24, 9);
    expect(full.guest.virtualizeRdmsr?.(0x802)).toBe(0x9_0000_0007n);
    expect(full.guest.virtualizeRdmsr?.(0x8ff)).toBe(0n);
    expect(full.guest.virtualizeRdmsr?.(0x900)).toBeUndefined();
    expect(validVmcs().enter().guest.virtualizeRdmsr?.(0x808)).toBeUndefined();
  });

  test("WRMSR of the task priority is virtual; EOI and self-IPI with virtual-interrupt delivery", () => {
    const plain = x2apic().enter();
    expect(plain.guest.virtualizeWrmsr?.(0x808, 0x52n)).toBe(true);
    plain.guest.boundary();
    expect(read(plain, TPR)).toBe(0x52);
    expect(plain.guest.virtualizeWrmsr?.(0x80b, 0n)).toBe(false);
    expect(plain.guest.virtualizeWrmsr?.(0x83f, 0x41n)).toBe(false);
    const full = x2apic(SecondaryExec.VIRTUAL_INTR_DELIVERY).with(Field.GUEST_RFLAGS, 0x202).enter();
    expect(full.guest.virtualizeWrmsr?.(0x83f, 0x41n)).toBe(true);
    full.guest.boundary();
    expect(delivered(full)).toEqual([0x41]);
    expect(full.guest.virtualizeWrmsr?.(0x80b, 0n)).toBe(true);
    full.guest.boundary();
    expect(full.get(Field.GUEST_INTR_STATUS)).toBe(0n);
    expect(full.guest.virtualizeWrmsr?.(0x830, 0x41n)).toBe(false);
  });

  test("a self-IPI of a vector below 16 is an APIC-write exit", () => {
    const vm = x2apic(SecondaryExec.VIRTUAL_INTR_DELIVERY).enter();
    vm.guest.virtualizeWrmsr?.(0x83f, 5n);
    expect(vm.exitOf(() => vm.guest.boundary())).toBe(ExitReason.APIC_WRITE);
    expect(vm.get(Field.EXIT_QUALIFICATION)).toBe(0x3f0n);
  });

  test("reserved bits raise #GP(0)", () => {
    const vm = x2apic(SecondaryExec.VIRTUAL_INTR_DELIVERY).enter();
    for (const [index, value] of [
      [0x808, 0x100n],
      [0x80b, 1n],
      [0x83f, 1n << 40n],
    ] as const) {
      expect(() => vm.guest.virtualizeWrmsr?.(index, value)).toThrow(
        expect.objectContaining({ vector: Vector.GP, error: 0 }) as unknown as CpuFault,
      );
    }
  });
});

describe("posted interrupts (SDM 3C 30.6)", () => {
  const posting = () =>
    delivering()
      .pin(PinBased.POSTED_INTR)
      .on(Field.VM_EXIT_CONTROLS, VmExitControl.ACK_INTR_ON_EXIT)
      .with(Field.POSTED_INTR_NV, NOTIFICATION)
      .with(Field.POSTED_INTR_DESC_ADDR, DESCRIPTOR);
  const post = (vm: TestVmcs, vector: number) => {
    const { view } = vm.cpu.memory;
    const at = vm.cpu.memory.hostOffset(DESCRIPTOR);
    view.setUint32(at + (vector >> 5) * 4, view.getUint32(at + (vector >> 5) * 4, true) | (1 << (vector & 31)), true);
    view.setUint32(at + 32, 1, true);
  };
  const interrupt = (vm: TestVmcs, ...vectors: number[]) => {
    const waiting = [...vectors];
    vm.cpu.interrupts.pending = () => waiting[0] ?? -1;
    vm.cpu.interrupts.acknowledge = () => waiting.shift() ?? -1;
    return vm.exitOf(() => vm.guest.interceptExternalInterrupt());
  };

  test("a notification moves the requests to VIRR, clears ON and delivers the highest", () => {
    const vm = posting().enter();
    post(vm, 0x31);
    post(vm, 0x99);
    expect(interrupt(vm, NOTIFICATION)).toBeNull();
    expect(delivered(vm)).toEqual([0x99]);
    expect(bit(vm, IRR, 0x31)).toBe(1);
    expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0x9931n);
    const at = vm.cpu.memory.hostOffset(DESCRIPTOR);
    expect(vm.cpu.memory.u8.slice(at, at + 36).every((byte) => byte === 0)).toBe(true);
  });

  test("with interrupts closed the request waits, and a halted processor stays halted", () => {
    const vm = posting().with(Field.GUEST_RFLAGS, 2).enter();
    post(vm, 0x31);
    expect(interrupt(vm, NOTIFICATION)).toBeNull();
    expect(delivered(vm)).toEqual([]);
    expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0x31n);
    vm.cpu.state.rflags = 2 | Rflags.IF;
    vm.guest.boundary();
    expect(delivered(vm)).toEqual([0x31]);
  });

  test("another vector exits with its number, also behind a notification", () => {
    const vm = posting().enter();
    expect(interrupt(vm, 0x80)).toBe(ExitReason.EXTERNAL_INTERRUPT);
    expect(vm.get(Field.VM_EXIT_INTR_INFO)).toBe(0x8000_0080n);
    vm.enter();
    post(vm, 0x31);
    expect(interrupt(vm, NOTIFICATION, 0x80)).toBe(ExitReason.EXTERNAL_INTERRUPT);
    expect(vm.get(Field.VM_EXIT_INTR_INFO)).toBe(0x8000_0080n);
    expect(vm.get(Field.GUEST_INTR_STATUS)).toBe(0x31n);
  });

  test("without the control the notification vector is an interrupt like any other", () => {
    const vm = posting().off(Field.PIN_BASED_VM_EXEC_CONTROL, PinBased.POSTED_INTR).enter();
    expect(interrupt(vm, NOTIFICATION)).toBe(ExitReason.EXTERNAL_INTERRUPT);
  });
});
