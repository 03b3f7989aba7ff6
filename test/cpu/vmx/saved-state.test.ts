/**
 * What a VM exit saves, a VM entry takes: whatever guest code does, the state saved at an exit passes the entry checks
 * (SDM 3C 28.3 saves what 27.3 demands). Guests are random pieces of code that change modes, segments, flags and control
 * registers, with random descriptor tables; the VMX-preemption timer ends each turn after a few instructions.
 */
import { expect, test } from "vitest";
import { VirtualClock } from "../../../engine/clock";
import type { Bus } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import { DEFAULT_MODEL, findModel } from "../../../engine/cpu/models/models";
import { Off } from "../../../engine/cpu/state";
import { PinBased, SecondaryExec, VmEntryControl } from "../../../engine/cpu/vmx/controls";
import { Field } from "../../../engine/cpu/vmx/fields";
import { VMCS_REVISION } from "../../../engine/cpu/vmx/vmcs";
import { VM_SUCCEED } from "../../../engine/cpu/vmx/vmx";
import { PhysicalMemory } from "../../../engine/memory/physical";
import { silentTracer } from "../../../engine/trace";
import { NO_INTERRUPTS } from "../long-mode";
import { EPT_ROOT, VMCS_REGION, VMXON_REGION, validFields } from "./valid-vmcs";

const GUEST = 0x20_0000;
const CODE = 0x1_0000;
const GDT = 0x8000;

/** Pieces of 16-bit code; -1 is a random byte. */
// biome-ignore format: one piece a bracket
const PIECES: readonly (readonly number[])[] = [
  [0xfa], [0xfb], [0x9c], [0x9d], [0xcf], [0x66, 0xcf], [0x50], [0x58], [0x17], [0x1f], [0x07], [0x90],
  [0xb8, -1, -1], [0xb8, 0x08, 0x00], [0xb8, 0x10, 0x00], [0xb8, 0x00, 0x00],
  [0x8e, 0xd8], [0x8e, 0xd0], [0x8e, 0xc0], [0x8e, 0xe0], [0x8e, 0xe8],
  [0x0f, 0x20, 0xc0], [0x0c, 0x01], [0x0f, 0x22, 0xc0], [0x0f, 0x06],
  [0x66, 0xb8, 0x31, 0, 0, 0], [0x66, 0xb8, 0x31, 0, 0, 0x80], [0x66, 0xb8, 0x20, 0x20, 0, 0], [0x0f, 0x22, 0xe0],
  [0x0f, 0x01, 0x16, 0x00, 0x80], [0x0f, 0x00, 0xd0], [0x0f, 0x00, 0xd8],
  [0xea, 0x00, 0x00, 0x08, 0x00], [0x9a, -1, -1, 0x08, 0x00], [0xcb], [0xcc], [0xcd, -1], [0x66, 0xb9, 0x80, 0, 0, 0xc0],
  [0x0f, 0x32], [0x0f, 0x30], [0x66, 0x0f, 0x22, 0xd8],
];

test("the state that VM exits save passes the checks of the next VM entry (3C 27.3, 28.3)", () => {
  let seed = 20_241;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  const memory = new PhysicalMemory(0x40_0000);
  memory.add("ram", "ram", 0, 0x40_0000);
  const clock = new VirtualClock();
  const engine = new CpuEngine({ memory, clock, trace: silentTracer, tier: 0 });
  const bus: Bus = { portIn: () => 0, portOut: () => {}, mmioRead: () => 0n, mmioWrite: () => {} };
  const model = findModel(DEFAULT_MODEL);
  if (!model) throw new Error("no default model");
  const cpu = engine.createProcessor({ id: 0, model, bus, interrupts: NO_INTERRUPTS });
  cpu.hostIsModel = true;
  const put = (pa: number, value: bigint) => memory.view.setBigUint64(memory.hostOffset(pa), value, true);
  const set = (field: Field, value: bigint | number) => cpu.vmx.vmwrite(field, BigInt(value));
  const get = (field: Field): bigint => cpu.vmx.vmread(field) as bigint;
  const u = (mask: number): bigint => BigInt(mask >>> 0);

  const seen = new Set<bigint>();
  let exits = 0;
  for (let round = 0; round < 40; round++) {
    memory.u8.fill(0, memory.hostOffset(0), memory.hostOffset(0) + 0x40_0000);
    for (let i = 0; i < 3; i++) put(EPT_ROOT + i * 0x1000, BigInt(EPT_ROOT + (i + 1) * 0x1000) | 7n);
    for (let i = 0; i < 256; i++) put(EPT_ROOT + 0x3000 + i * 8, BigInt(GUEST + i * 4096) | 0x37n);
    // Code everywhere in its segment, interrupt vectors into it, a GDT of random but present segments.
    const code = memory.hostOffset(GUEST + CODE);
    for (let at = 0; at < 0xfff0; ) {
      for (const byte of PIECES[random(PIECES.length)]) memory.u8[code + at++] = byte < 0 ? random(256) : byte;
    }
    for (let v = 0; v < 256; v++)
      memory.view.setUint32(memory.hostOffset(GUEST) + v * 4, 0x1000_0000 | random(0xff00), true);
    memory.write(GUEST + CODE - 0x8000, Uint8Array.from([0xff, 0x01, GDT & 0xff, GDT >> 8, 0, 0]));
    for (let d = 1; d < 64; d++) {
      const rights = 0x80 | (random(4) === 0 ? random(32) : 0x10 | random(16)) | (random(4) << 5);
      const high = (random(2) << 20) | (random(16) << 16) | ((random(2) * 0xc) << 20) | (rights << 8) | 0x01;
      put(GUEST + GDT + d * 8, (u(high) << 32n) | 0xffffn);
    }
    cpu.code.flushEverything();
    cpu.reset("power-up");
    cpu.state.setU64(Off.CR0, 0x8005_0033n);
    cpu.state.setU64(Off.CR4, 0x2020n);
    cpu.state.setU32(Off.FEATURE_CONTROL, 5);
    for (const pa of [VMXON_REGION, VMCS_REGION]) put(pa, BigInt(VMCS_REVISION));
    cpu.vmx.vmxon(VMXON_REGION);
    cpu.vmx.vmclear(VMCS_REGION);
    cpu.vmx.vmptrld(VMCS_REGION);
    for (const [field, value] of validFields()) set(field, value);
    set(Field.PIN_BASED_VM_EXEC_CONTROL, 0x16n | u(PinBased.VMX_PREEMPTION_TIMER));
    set(Field.SECONDARY_VM_EXEC_CONTROL, get(Field.SECONDARY_VM_EXEC_CONTROL) | u(SecondaryExec.UNRESTRICTED_GUEST));
    set(Field.VM_ENTRY_CONTROLS, get(Field.VM_ENTRY_CONTROLS) & ~u(VmEntryControl.IA32E_MODE));
    set(Field.GUEST_IA32_EFER, 0);
    set(Field.GUEST_CR0, 0x30);
    set(Field.GUEST_CR4, 0x2000);
    for (const name of ["ES", "CS", "SS", "DS", "FS", "GS"] as const) {
      set(Field[`GUEST_${name}_SELECTOR`], CODE >> 4);
      set(Field[`GUEST_${name}_BASE`], CODE);
      set(Field[`GUEST_${name}_LIMIT`], 0xffff);
      set(Field[`GUEST_${name}_AR_BYTES`], name === "CS" ? 0x9b : 0x93);
    }
    set(Field.GUEST_GDTR_BASE, GDT);
    set(Field.GUEST_GDTR_LIMIT, 0x1ff);
    set(Field.GUEST_IDTR_LIMIT, 0x3ff);
    set(Field.GUEST_RIP, random(0xff00));
    set(Field.GUEST_RSP, 0x8000);
    for (let turn = 0; turn < 40; turn++) {
      set(Field.VMX_PREEMPTION_TIMER_VALUE, 1 + random(3));
      expect(cpu.vmx.enter(cpu.vmx.launched)).toBe(VM_SUCCEED);
      if (cpu.guest !== null) cpu.run(1000);
      const reason = get(Field.VM_EXIT_REASON);
      const report = cpu.vmx.checkEntry();
      expect(report, `round ${round}, turn ${turn}, after exit reason ${reason}`).toEqual([]);
      exits++;
      seen.add(reason);
      if (reason === 2n) break;
      // Step over what exited, as a hypervisor does.
      set(Field.GUEST_RIP, (get(Field.GUEST_RIP) + get(Field.VM_EXIT_INSTRUCTION_LEN)) & 0xffffn);
    }
  }
  expect(exits).toBeGreaterThan(400);
  expect([...seen]).toEqual(expect.arrayContaining([2n, 52n]));
}, 30_000);
