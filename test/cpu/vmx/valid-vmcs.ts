/** A VMCS that passes all checks, to be bent: `validVmcs().with(Field.GUEST_CR0, (v) => v & ~1n).launch()`. */
import { VmExitTaken } from "../../../engine/cpu/cpu";
import { Off } from "../../../engine/cpu/state";
import { CpuBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../../engine/cpu/vmx/controls";
import { Field } from "../../../engine/cpu/vmx/fields";
import { VMCS_REVISION } from "../../../engine/cpu/vmx/vmcs";
import { type FailedCheck, VM_SUCCEED } from "../../../engine/cpu/vmx/vmx";
import { FakeCpu } from "./fake-cpu";

export const VMXON_REGION = 0x1000;
export const VMCS_REGION = 0x2000;
export const EPT_ROOT = 0x10000;
export const PAGES = 0x20000;

export type Outcome =
  | { readonly kind: "entered" }
  | { readonly kind: "vmfail"; readonly error: number }
  | { readonly kind: "failed-entry"; readonly reason: number; readonly qualification: bigint };

export const entered: Outcome = { kind: "entered" };
export const vmfail = (error: number): Outcome => ({ kind: "vmfail", error });
export const failedEntry = (reason: number, qualification = 0n): Outcome => ({
  kind: "failed-entry",
  reason,
  qualification,
});

const u = (mask: number): bigint => BigInt(mask >>> 0);

/** CPU controls of default1 but CR3 load and store exiting. */
const CPU_DEFAULT = 0x0400_6172n;

const SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"] as const;

/** Field values of a VMCS that passes all checks: a 64-bit guest under EPT at EPT_ROOT, a 64-bit host. */
export function validFields(): Map<Field, bigint> {
  const fields = new Map<Field, bigint>([
    [Field.PIN_BASED_VM_EXEC_CONTROL, 0x16n],
    [Field.CPU_BASED_VM_EXEC_CONTROL, CPU_DEFAULT | u(CpuBased.ACTIVATE_SECONDARY_CONTROLS) | u(CpuBased.HLT_EXITING)],
    [Field.SECONDARY_VM_EXEC_CONTROL, u(SecondaryExec.ENABLE_EPT | SecondaryExec.ENABLE_VPID)],
    [
      Field.VM_EXIT_CONTROLS,
      0x36dfbn |
        u(
          VmExitControl.HOST_ADDR_SPACE_SIZE |
            VmExitControl.SAVE_IA32_EFER |
            VmExitControl.LOAD_IA32_EFER |
            VmExitControl.SAVE_DEBUG_CONTROLS,
        ),
    ],
    [
      Field.VM_ENTRY_CONTROLS,
      0x11fbn | u(VmEntryControl.IA32E_MODE | VmEntryControl.LOAD_IA32_EFER | VmEntryControl.LOAD_DEBUG_CONTROLS),
    ],
    [Field.VIRTUAL_PROCESSOR_ID, 1n],
    [Field.EPT_POINTER, BigInt(EPT_ROOT) | 0x1en],
    [Field.VMCS_LINK_POINTER, 0xffff_ffff_ffff_ffffn],
    [Field.HOST_CR0, 0x8005_0033n],
    [Field.HOST_CR3, 0x5000n],
    [Field.HOST_CR4, 0x2020n],
    [Field.HOST_IA32_EFER, 0xd01n],
    [Field.HOST_CS_SELECTOR, 0x08n],
    [Field.HOST_SS_SELECTOR, 0x10n],
    [Field.HOST_TR_SELECTOR, 0x28n],
    [Field.HOST_TR_BASE, 0xffff_8000_0000_7000n],
    [Field.HOST_FS_BASE, 0x1234n],
    [Field.HOST_RIP, 0xffff_8000_0000_1000n],
    [Field.HOST_RSP, 0xffff_8000_0000_8000n],
    [Field.GUEST_CR0, 0x8005_0033n],
    [Field.GUEST_CR3, 0x6000n],
    [Field.GUEST_CR4, 0x2020n],
    [Field.GUEST_IA32_EFER, 0xd01n],
    [Field.GUEST_DR7, 0x400n],
    [Field.GUEST_RIP, 0x10_0000n],
    [Field.GUEST_RSP, 0x9_0000n],
    [Field.GUEST_RFLAGS, 2n],
    [Field.GUEST_LDTR_AR_BYTES, 0x10000n],
    [Field.GUEST_TR_SELECTOR, 0x28n],
    [Field.GUEST_TR_LIMIT, 0x67n],
    [Field.GUEST_TR_AR_BYTES, 0x8bn],
    [Field.GUEST_GDTR_LIMIT, 0xffffn],
    [Field.GUEST_IDTR_LIMIT, 0xffffn],
  ]);
  for (const name of SEGMENTS) {
    fields.set(Field[`GUEST_${name}_SELECTOR`], name === "CS" ? 0x08n : 0x10n);
    fields.set(Field[`GUEST_${name}_LIMIT`], 0xffff_ffffn);
    fields.set(Field[`GUEST_${name}_AR_BYTES`], name === "CS" ? 0xa09bn : 0xc093n);
  }
  return fields;
}

export class TestVmcs {
  readonly cpu = new FakeCpu();
  private launched = false;

  constructor() {
    const { cpu } = this;
    const { state, memory } = cpu;
    state.setU64(Off.CR0, 0x8005_0033n);
    state.setU64(Off.CR4, 0x2020n);
    state.setU64(Off.EFER, 0xd01n);
    memory.view.setUint32(memory.hostOffset(VMXON_REGION), VMCS_REVISION, true);
    memory.view.setUint32(memory.hostOffset(VMCS_REGION), VMCS_REVISION, true);
    cpu.vmx.vmxon(VMXON_REGION);
    cpu.vmx.vmclear(VMCS_REGION);
    cpu.vmx.vmptrld(VMCS_REGION);
    for (const [field, value] of validFields()) this.set(field, value);
  }

  private set(field: Field, value: bigint): void {
    const result = this.cpu.vmx.vmwrite(field, value);
    if (result !== VM_SUCCEED) throw new Error(`VMWRITE of 0x${field.toString(16)} failed with ${result}`);
  }

  /** Changes a field: to a value, or by a function of the present one. */
  with(field: Field, value: bigint | number | ((old: bigint) => bigint)): this {
    const next = typeof value === "function" ? value(this.get(field)) : BigInt(value);
    this.set(field, BigInt.asUintN(64, next));
    return this;
  }

  /** Sets bits of a 32-bit field (masks may be negative numbers). */
  on(field: Field, mask: number): this {
    return this.with(field, (v) => v | u(mask));
  }
  off(field: Field, mask: number): this {
    return this.with(field, (v) => v & ~u(mask));
  }
  primary(mask: number): this {
    return this.on(Field.CPU_BASED_VM_EXEC_CONTROL, mask);
  }
  secondary(mask: number): this {
    return this.on(Field.SECONDARY_VM_EXEC_CONTROL, mask);
  }
  pin(mask: number): this {
    return this.on(Field.PIN_BASED_VM_EXEC_CONTROL, mask);
  }
  /** A guest in real-address mode, as an unrestricted guest may be. */
  realMode(): this {
    this.secondary(SecondaryExec.UNRESTRICTED_GUEST)
      .off(Field.VM_ENTRY_CONTROLS, VmEntryControl.IA32E_MODE)
      .with(Field.GUEST_CR0, 0x30)
      .with(Field.GUEST_CR4, 0x2000)
      .with(Field.GUEST_IA32_EFER, 0)
      .with(Field.GUEST_CS_AR_BYTES, 0x9b)
      .with(Field.GUEST_CS_LIMIT, 0xffff)
      .with(Field.GUEST_RIP, 0x7c00);
    for (const name of ["ES", "SS", "DS", "FS", "GS"] as const) {
      this.with(Field[`GUEST_${name}_AR_BYTES`], 0x93).with(Field[`GUEST_${name}_LIMIT`], 0xffff);
    }
    return this;
  }
  /** A guest in virtual-8086 mode. */
  virtual8086(): this {
    this.off(Field.VM_ENTRY_CONTROLS, VmEntryControl.IA32E_MODE)
      .with(Field.GUEST_IA32_EFER, 0)
      .with(Field.GUEST_RFLAGS, 0x20002);
    for (const name of SEGMENTS) {
      this.with(Field[`GUEST_${name}_SELECTOR`], 0x1000)
        .with(Field[`GUEST_${name}_BASE`], 0x10000)
        .with(Field[`GUEST_${name}_LIMIT`], 0xffff)
        .with(Field[`GUEST_${name}_AR_BYTES`], 0xf3);
    }
    return this;
  }
  /** A 32-bit guest with PAE paging. */
  pae(): this {
    return this.off(Field.VM_ENTRY_CONTROLS, VmEntryControl.IA32E_MODE)
      .with(Field.GUEST_IA32_EFER, 0)
      .with(Field.GUEST_CS_AR_BYTES, 0xc09b);
  }

  get(field: Field): bigint {
    const value = this.cpu.vmx.vmread(field);
    if (typeof value === "number") throw new Error(`VMREAD of 0x${field.toString(16)} failed with ${value}`);
    return value;
  }
  get32(field: Field): number {
    return Number(this.get(field));
  }

  /** VMLAUNCH, or VMRESUME after a successful one. */
  launch(): Outcome {
    const result = this.cpu.vmx.enter(this.launched);
    if (result !== VM_SUCCEED) return vmfail(result);
    if (this.cpu.guest) {
      this.launched = true;
      return entered;
    }
    const reason = this.get32(Field.VM_EXIT_REASON);
    if (reason >>> 31 !== 1) throw new Error(`exit ${reason} during entry`);
    return failedEntry(reason & 0xffff, this.get(Field.EXIT_QUALIFICATION));
  }

  /** Enters, or throws with the checks that failed. */
  enter(): this {
    const outcome = this.launch();
    if (outcome.kind !== "entered") {
      throw new Error(`entry failed: ${this.cpu.vmx.lastFailure.map((f) => `${f.id}: ${f.message}`).join("; ")}`);
    }
    return this;
  }

  report(): readonly FailedCheck[] {
    return this.cpu.vmx.checkEntry();
  }

  /** The guest mode after an entry. */
  get guest() {
    const { guest } = this.cpu;
    if (!guest) throw new Error("not in the guest");
    return guest;
  }

  /** Runs something in the guest; returns the exit reason when it took a VM exit, else null. */
  exitOf(action: () => unknown): number | null {
    try {
      action();
    } catch (taken) {
      if (!(taken instanceof VmExitTaken)) throw taken;
      return this.get32(Field.VM_EXIT_REASON);
    }
    return null;
  }
}

export const validVmcs = (): TestVmcs => new TestVmcs();
