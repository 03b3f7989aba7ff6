/**
 * Access to a vCPU's VMCS while it is current on the vCPU's physical processor (arch/x86/kvm/vmx/vmx_ops.h), and the
 * shadowed control fields that save VMREADs (BUILD_CONTROLS_SHADOW).
 */

import type { Cpu } from "../../cpu/cpu";
import { Field } from "../../cpu/vmx/fields";
import { KvmBug } from "../errno";
import type { KvmVcpu } from "../types";

/** The processor the vCPU is loaded on. */
export function loadedCpu(vcpu: KvmVcpu): Cpu {
  if (!vcpu.cpu) throw new KvmBug(`vCPU ${vcpu.state.vcpuId} is not loaded on a processor`);
  return vcpu.cpu;
}

/** @throws KvmBug when the VMREAD fails, as vmread_error would warn */
export function vmcsRead(vcpu: KvmVcpu, field: Field): bigint {
  const value = loadedCpu(vcpu).vmx.vmread(field);
  if (typeof value === "number") throw new KvmBug(`vmread of field 0x${field.toString(16)} failed: ${value}`);
  return value;
}

/** A 16- or 32-bit field as an unsigned number. */
export const vmcsRead32 = (vcpu: KvmVcpu, field: Field): number => Number(vmcsRead(vcpu, field));

/** @throws KvmBug when the VMWRITE fails */
export function vmcsWrite(vcpu: KvmVcpu, field: Field, value: bigint): void {
  const result = loadedCpu(vcpu).vmx.vmwrite(field, value);
  if (result !== 0)
    throw new KvmBug(`vmwrite of field 0x${field.toString(16)} = 0x${value.toString(16)} failed: ${result}`);
}

/** vmcs_write32 */
export const vmcsWrite32 = (vcpu: KvmVcpu, field: Field, value: number): void =>
  vmcsWrite(vcpu, field, BigInt(value >>> 0));

/** vmcs_set_bits: of a 32-bit field of the current VMCS. */
export const vmcsSetBits = (vcpu: KvmVcpu, field: Field, mask: number): void =>
  vmcsWrite32(vcpu, field, vmcsRead32(vcpu, field) | mask);
export const vmcsClearBits = (vcpu: KvmVcpu, field: Field, mask: number): void =>
  vmcsWrite32(vcpu, field, vmcsRead32(vcpu, field) & ~mask);

type Control = "vmEntry" | "vmExit" | "pin" | "exec" | "secondaryExec";

const FIELDS: Readonly<Record<Control, Field>> = {
  vmEntry: Field.VM_ENTRY_CONTROLS,
  vmExit: Field.VM_EXIT_CONTROLS,
  pin: Field.PIN_BASED_VM_EXEC_CONTROL,
  exec: Field.CPU_BASED_VM_EXEC_CONTROL,
  secondaryExec: Field.SECONDARY_VM_EXEC_CONTROL,
};

/** vm_entry_controls_set and its kin: writes only what changes. */
export function controlsSet(vcpu: KvmVcpu, which: Control, value: number): void {
  const { controls } = vcpu.vmx;
  const next = value >>> 0;
  if (controls[which] === next) return;
  vmcsWrite32(vcpu, FIELDS[which], next);
  controls[which] = next;
}
export const controlsSetBit = (vcpu: KvmVcpu, which: Control, bit: number): void =>
  controlsSet(vcpu, which, vcpu.vmx.controls[which] | bit);
export const controlsClearBit = (vcpu: KvmVcpu, which: Control, bit: number): void =>
  controlsSet(vcpu, which, vcpu.vmx.controls[which] & ~bit);
