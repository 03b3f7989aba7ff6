/** A hypervisor in TypeScript over the real processor, as the KVM model is one: Cpu.hostIsModel. */
import { beforeEach, describe, expect, test } from "vitest";
import { VirtualClock } from "../../../engine/clock";
import { type Bus, RunExit } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import { DEFAULT_MODEL, findModel } from "../../../engine/cpu/models/models";
import type { Processor } from "../../../engine/cpu/processor";
import { Gpr, Off, Seg } from "../../../engine/cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { ExitReason } from "../../../engine/cpu/vmx/exit-reasons";
import { Field } from "../../../engine/cpu/vmx/fields";
import { VMCS_REVISION } from "../../../engine/cpu/vmx/vmcs";
import { VM_SUCCEED } from "../../../engine/cpu/vmx/vmx";
import { PhysicalMemory } from "../../../engine/memory/physical";
import { silentTracer } from "../../../engine/trace";
import { EPT_ROOT, VMCS_REGION, VMXON_REGION, validFields } from "./valid-vmcs";

/** Guest-physical 0 to 1 MByte lies at this host-physical address. */
const GUEST = 0x20_0000;
const CODE = 0x7c00;
const u = (mask: number): bigint => BigInt(mask >>> 0);

let cpu: Processor;
let memory: PhysicalMemory;
let clock: VirtualClock;
let pendingInterrupt: number;

beforeEach(() => {
  memory = new PhysicalMemory(0x40_0000);
  memory.add("ram", "ram", 0, 0x40_0000);
  clock = new VirtualClock();
  pendingInterrupt = -1;
  const engine = new CpuEngine({ memory, clock, trace: silentTracer, tier: 0 });
  const bus: Bus = { portIn: () => 0x5a, portOut: () => {}, mmioRead: () => 0n, mmioWrite: () => {} };
  const interrupts = {
    pending: () => pendingInterrupt,
    acknowledge: () => pendingInterrupt,
    readCr8: () => 0,
    writeCr8: () => {},
    readMsr: () => undefined,
    writeMsr: () => false,
  };
  const model = findModel(DEFAULT_MODEL);
  if (!model) throw new Error("no default model");
  cpu = engine.createProcessor({ id: 0, model, bus, interrupts });
  cpu.hostIsModel = true;
  cpu.state.setU64(Off.CR0, 0x8005_0033n);
  cpu.state.setU64(Off.CR4, 0x2020n);
  cpu.state.setU32(Off.FEATURE_CONTROL, 5);

  // One EPT page table: guest-physical 0 to 1 MByte, all rights.
  const put = (pa: number, value: bigint) => memory.view.setBigUint64(memory.hostOffset(pa), value, true);
  put(EPT_ROOT, BigInt(EPT_ROOT + 0x1000) | 7n);
  put(EPT_ROOT + 0x1000, BigInt(EPT_ROOT + 0x2000) | 7n);
  put(EPT_ROOT + 0x2000, BigInt(EPT_ROOT + 0x3000) | 7n);
  for (let i = 0; i < 256; i++) put(EPT_ROOT + 0x3000 + i * 8, BigInt(GUEST + i * 4096) | 0x37n);

  for (const pa of [VMXON_REGION, VMCS_REGION]) memory.view.setUint32(memory.hostOffset(pa), VMCS_REVISION, true);
  cpu.vmx.vmxon(VMXON_REGION);
  cpu.vmx.vmclear(VMCS_REGION);
  cpu.vmx.vmptrld(VMCS_REGION);
  for (const [field, value] of validFields()) set(field, value);
  realMode();
});

function set(field: Field, value: bigint | number): void {
  expect(cpu.vmx.vmwrite(field, BigInt(value))).toBe(VM_SUCCEED);
}
function get(field: Field): bigint {
  const value = cpu.vmx.vmread(field);
  if (typeof value === "number") throw new Error(`VMREAD failed with ${value}`);
  return value;
}
const on = (field: Field, mask: number): void => set(field, get(field) | u(mask));

function realMode(): void {
  on(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.UNRESTRICTED_GUEST);
  set(Field.VM_ENTRY_CONTROLS, get(Field.VM_ENTRY_CONTROLS) & ~u(VmEntryControl.IA32E_MODE));
  set(Field.GUEST_IA32_EFER, 0);
  set(Field.GUEST_CR0, 0x30);
  set(Field.GUEST_CR4, 0x2000);
  for (const name of ["ES", "CS", "SS", "DS", "FS", "GS"] as const) {
    set(Field[`GUEST_${name}_SELECTOR`], 0);
    set(Field[`GUEST_${name}_LIMIT`], 0xffff);
    set(Field[`GUEST_${name}_AR_BYTES`], name === "CS" ? 0x9b : 0x93);
  }
  set(Field.GUEST_RIP, CODE);
  set(Field.GUEST_RSP, 0x7000);
}

const code = (...bytes: number[]): void => void memory.write(GUEST + CODE, Uint8Array.from(bytes));

/** Enters and runs until a VM exit; the exit reason. */
function enter(instructions = 1000): number {
  expect(cpu.vmx.enter(cpu.vmx.launched)).toBe(VM_SUCCEED);
  if (cpu.guest !== null) expect(cpu.run(instructions)).toBe(RunExit.VM_EXIT);
  return Number(get(Field.VM_EXIT_REASON));
}
const skip = (): void => set(Field.GUEST_RIP, get(Field.GUEST_RIP) + get(Field.VM_EXIT_INSTRUCTION_LEN));

describe("run returns VM_EXIT with the guest's state in the VMCS and its registers in the processor", () => {
  test("an I/O exit, its emulation by the host, and the next exit", () => {
    on(Field.CPU_BASED_VM_EXEC_CONTROL, CpuBased.UNCOND_IO_EXITING);
    // mov al, 0x41; out 0x80, al; in al, 0x81; hlt
    code(0xb0, 0x41, 0xe6, 0x80, 0xe4, 0x81, 0xf4);
    expect(enter()).toBe(ExitReason.IO_INSTRUCTION);
    expect(cpu.guest).toBeNull();
    expect(get(Field.EXIT_QUALIFICATION)).toBe(0x80_0040n);
    expect(cpu.state.gpr32(Gpr.RAX)).toBe(0x41);
    expect(get(Field.GUEST_RIP)).toBe(BigInt(CODE + 2));
    skip();
    expect(enter()).toBe(ExitReason.IO_INSTRUCTION);
    expect(get(Field.EXIT_QUALIFICATION)).toBe(0x81_0048n);
    cpu.state.setGpr(Gpr.RAX, 0x77n);
    skip();
    expect(enter()).toBe(ExitReason.HLT);
    expect(cpu.state.gpr32(Gpr.RAX)).toBe(0x77);
    expect(cpu.vmx.exitCounts[ExitReason.IO_INSTRUCTION]).toBe(2);
    // Only MOV retired in the guest; the host stood in for the others.
    expect(cpu.retired).toBe(1);
  });

  test("a slice that ends is no exit: run goes on in the guest", () => {
    code(0xeb, 0xfe); // jmp $
    expect(cpu.vmx.enter(false)).toBe(VM_SUCCEED);
    expect(cpu.run(100)).toBe(RunExit.SLICE);
    expect(cpu.guest).not.toBeNull();
    expect(cpu.run(100)).toBe(RunExit.SLICE);
    expect(cpu.retired).toBe(200);
  });

  test("an interrupt of the host ends the guest's turn whatever IF says", () => {
    on(Field.PIN_BASED_VM_EXEC_CONTROL, PinBased.EXT_INTR_EXITING);
    on(Field.VM_EXIT_CONTROLS, VmExitControl.ACK_INTR_ON_EXIT);
    code(0xeb, 0xfe);
    pendingInterrupt = 0xec;
    expect(enter()).toBe(ExitReason.EXTERNAL_INTERRUPT);
    expect(get(Field.VM_EXIT_INTR_INFO)).toBe(0x8000_00ecn);
    expect(cpu.retired).toBe(0);
  });

  test("EPT mapped lazily: the access that violated is made again after the host has mapped the page", () => {
    const leaf = memory.hostOffset(EPT_ROOT + 0x3000) + 0x50 * 8;
    const entry = memory.view.getBigUint64(leaf, true);
    memory.view.setBigUint64(leaf, 0n, true);
    memory.write(GUEST + 0x50010, Uint8Array.from([0x34, 0x12]));
    // mov ax, 0x5000; mov ds, ax; mov bx, [0x10]; hlt
    code(0xb8, 0x00, 0x50, 0x8e, 0xd8, 0x8b, 0x1e, 0x10, 0x00, 0xf4);
    expect(enter()).toBe(ExitReason.EPT_VIOLATION);
    expect(get(Field.GUEST_PHYSICAL_ADDRESS)).toBe(0x5_0010n);
    expect(get(Field.GUEST_RIP)).toBe(BigInt(CODE + 5));
    memory.view.setBigUint64(leaf, entry, true);
    expect(enter()).toBe(ExitReason.HLT);
    expect(cpu.state.gpr32(Gpr.RBX) & 0xffff).toBe(0x1234);
  });

  test("an injected interrupt goes through the guest's IVT at the first boundary", () => {
    set(Field.GUEST_RFLAGS, 0x202);
    memory.write(GUEST + 0x20 * 4, Uint8Array.from([0x10, 0x7c, 0x00, 0x00]));
    code(0xeb, 0xfe, ...new Array(14).fill(0x90), 0xf4);
    set(Field.VM_ENTRY_INTR_INFO_FIELD, 0x8000_0020);
    expect(enter()).toBe(ExitReason.HLT);
    expect(get(Field.GUEST_RIP)).toBe(BigInt(CODE + 0x10));
    expect(memory.read(GUEST + 0x6ffa, 2)).toEqual(Uint8Array.from([0x00, 0x7c]));
  });

  test("single-stepping a guest by the monitor trap flag", () => {
    on(Field.CPU_BASED_VM_EXEC_CONTROL, CpuBased.MONITOR_TRAP_FLAG);
    code(0x40, 0x40, 0xeb, 0xfc); // inc ax; inc ax; jmp back
    const rips: bigint[] = [];
    for (let i = 0; i < 4; i++) {
      expect(enter()).toBe(ExitReason.MONITOR_TRAP_FLAG);
      rips.push(get(Field.GUEST_RIP) - BigInt(CODE));
    }
    expect(rips).toEqual([1n, 2n, 0n, 1n]);
  });

  test("the monitor trap flag exits behind each iteration of a repeated string instruction (26.5.2)", () => {
    code(0xf3, 0xaa, 0x90); // rep stosb; nop
    on(Field.CPU_BASED_VM_EXEC_CONTROL, CpuBased.MONITOR_TRAP_FLAG);
    cpu.state.setGpr(Gpr.RCX, 2n);
    cpu.state.setGpr(Gpr.RDI, 0x600n);
    const steps = [0, 1, 2].map(() => {
      expect(enter()).toBe(ExitReason.MONITOR_TRAP_FLAG);
      return [cpu.state.gpr(Gpr.RCX), get(Field.GUEST_RIP)];
    });
    expect(steps).toEqual([
      [1n, BigInt(CODE)],
      [0n, BigInt(CODE + 2)],
      [0n, BigInt(CODE + 3)],
    ]);
  });

  test("the monitor trap flag exits behind each iteration of REP INSB and REP OUTSB too (26.5.2)", () => {
    for (const opcode of [0x6c, 0x6e]) {
      code(0xf3, opcode, 0x90); // rep insb or outsb; nop
      set(Field.GUEST_RIP, CODE);
      on(Field.CPU_BASED_VM_EXEC_CONTROL, CpuBased.MONITOR_TRAP_FLAG);
      cpu.state.setGpr(Gpr.RCX, 2n);
      cpu.state.setGpr(Gpr.RSI, 0x600n);
      cpu.state.setGpr(Gpr.RDI, 0x600n);
      const steps = [0, 1, 2].map(() => {
        expect(enter()).toBe(ExitReason.MONITOR_TRAP_FLAG);
        return [cpu.state.gpr(Gpr.RCX), get(Field.GUEST_RIP)];
      });
      expect(steps).toEqual([
        [1n, BigInt(CODE)],
        [0n, BigInt(CODE + 2)],
        [0n, BigInt(CODE + 3)],
      ]);
    }
  });

  test("an EPT violation in real-address mode exits, whatever the EPT-violation #VE control says (26.5.7.1)", () => {
    const information = 0x1f_0000;
    on(Field.SECONDARY_VM_EXEC_CONTROL, SecondaryExec.EPT_VIOLATION_VE);
    set(Field.VIRT_EXCEPTION_INFO, information);
    code(0xa0, 0x00, 0x60, 0xf4); // mov al, [0x6000]; hlt
    // Not in real-address mode: the violation exits there.
    memory.view.setBigUint64(memory.hostOffset(EPT_ROOT + 0x3000 + 6 * 8), 0n, true);
    expect(enter()).toBe(ExitReason.EPT_VIOLATION);
    expect(memory.view.getUint32(memory.hostOffset(information), true)).toBe(0);
  });

  test("an entry that fails on guest state leaves the host in charge, and run need not be called", () => {
    set(Field.GUEST_RFLAGS, 0);
    expect(enter()).toBe(0x8000_0021);
    expect(cpu.vmx.lastFailure.map((f) => f.id)).toEqual(["guest.rflags.reserved"]);
  });

  test("the guest's paging and mode changes show in the VMCS after the exit", () => {
    // lgdt [0x500]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:next; next: hlt
    memory.write(GUEST + 0x500, Uint8Array.from([0x0f, 0, 0x10, 0x05, 0, 0]));
    memory.write(GUEST + 0x518, Uint8Array.from([0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0]));
    code(
      0x0f,
      0x01,
      0x16,
      0x00,
      0x05,
      0x0f,
      0x20,
      0xc0,
      0x0c,
      0x01,
      0x0f,
      0x22,
      0xc0,
      0xea,
      0x12,
      0x7c,
      0x08,
      0x00,
      0xf4,
    );
    expect(enter()).toBe(ExitReason.HLT);
    expect(get(Field.GUEST_CR0) & 1n).toBe(1n);
    expect(get(Field.GUEST_CS_SELECTOR)).toBe(8n);
    expect(get(Field.GUEST_CS_AR_BYTES)).toBe(0xc09bn);
    expect(get(Field.GUEST_CS_LIMIT)).toBe(0xffff_ffffn);
    expect(get(Field.GUEST_RIP)).toBe(BigInt(CODE + 0x12));
    // And such a guest may be entered again.
    skip();
    expect(cpu.vmx.checkEntry()).toEqual([]);
  });
});

describe("a host that executes VMLAUNCH itself", () => {
  const HOST_CODE = 0x30_2000;
  const AFTER_EXIT = 0x30_3000;
  const TF = 0x100;

  /** 64-bit mode on identity-mapped memory, at HOST_CODE; exits go to a HLT. */
  function host(...bytes: number[]): void {
    const put = (pa: number, value: bigint) => memory.view.setBigUint64(memory.hostOffset(pa), value, true);
    put(0x30_0000, 0x30_1003n);
    put(0x30_1000, 0x83n);
    memory.write(HOST_CODE, Uint8Array.from([...bytes, 0xf4]));
    memory.write(AFTER_EXIT, Uint8Array.from([0xf4]));
    cpu.hostIsModel = false;
    const { state } = cpu;
    state.setU64(Off.EFER, 0xd00n);
    state.setU64(Off.CR3, 0x30_0000n);
    state.setSegment(Seg.CS, 8, 0n, 0xffff_ffff, 0xa09b);
    state.setSegment(Seg.SS, 0x10, 0n, 0xffff_ffff, 0xc093);
    state.rip = BigInt(HOST_CODE);
    set(Field.HOST_CR3, 0x30_0000);
    set(Field.HOST_RIP, AFTER_EXIT);
    set(Field.HOST_TR_BASE, 0);
    cpu.contextChanged();
  }

  test("a single step over it is lost when the entry succeeds: the guest has its own pending traps (27.7.3)", () => {
    code(0x90, 0x0f, 0xa2); // nop; cpuid
    host(0x0f, 0x01, 0xc2);
    set(Field.EXCEPTION_BITMAP, 2);
    cpu.state.rflags = 2 | TF;
    expect(cpu.run(100)).toBe(RunExit.HALTED);
    expect(Number(get(Field.VM_EXIT_REASON))).toBe(ExitReason.CPUID);
  });

  test("blocking by MOV SS makes it fail with error 26, and ends with it (27.1)", () => {
    code(0x0f, 0xa2);
    cpu.state.setGpr(Gpr.RAX, 0n);
    host(0x8e, 0xd0, 0x0f, 0x01, 0xc2, 0x0f, 0x01, 0xc2); // mov ss, ax; vmlaunch; vmlaunch
    expect(cpu.run(100)).toBe(RunExit.HALTED);
    expect(Number(get(Field.VM_INSTRUCTION_ERROR))).toBe(26);
    expect(Number(get(Field.VM_EXIT_REASON))).toBe(ExitReason.CPUID);
  });
});
