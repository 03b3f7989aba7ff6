/**
 * Snapshots of the KVM model: the state objects of the module, its VMs, vCPUs and chips. Guest memory, VMCS regions and EPT
 * tables are host memory and belong to the machine's snapshot, as do the physical processors and the clock.
 */

import type { PitState } from "../devices/i8254";
import type { PicState } from "../devices/i8259";
import type { IoApicState } from "../devices/io-apic";
import type { LocalApicState } from "../devices/local-apic";
import type { HostInterruptsState } from "./hostKernel";
import type { KvmModuleBase, KvmModuleState } from "./moduleBase";
import type { KvmState, KvmVcpuState } from "./types";

/** State of one VM. */
export interface KvmVmSnapshot {
  readonly state: KvmState;
  readonly pic: PicState | null;
  readonly ioapic: IoApicState | null;
  readonly pit: PitState | null;
  readonly vcpus: readonly { readonly state: KvmVcpuState; readonly lapic: LocalApicState | null }[];
}

/** State of the model, plain data. */
export interface KvmSnapshot {
  readonly module: KvmModuleState;
  readonly hostInterrupts: readonly HostInterruptsState[];
  readonly vms: readonly KvmVmSnapshot[];
}

/** Takes a copy of everything. Valid between KVM_RUN calls. */
export function kvmSnapshot(module: KvmModuleBase): KvmSnapshot {
  return structuredClone({
    module: module.state,
    hostInterrupts: module.host.interrupts.map((i) => i.state),
    vms: module.vmList.map((kvm) => ({
      state: kvm.state,
      pic: kvm.vpic?.state ?? null,
      ioapic: kvm.vioapic?.state ?? null,
      pit: kvm.vpit?.state ?? null,
      vcpus: kvm.vcpus.map((vcpu) => ({ state: vcpu.state, lapic: vcpu.apic?.state ?? null })),
    })),
  });
}

/**
 * Puts a snapshot back into a module with the same VMs and vCPUs (the same configuration).
 * @throws RangeError when they are not the same
 */
export function kvmRestore(module: KvmModuleBase, snapshot: KvmSnapshot): void {
  const copy = structuredClone(snapshot) as KvmSnapshot;
  if (copy.vms.length !== module.vmList.length) throw new RangeError("snapshot of another number of virtual machines");
  module.state = copy.module;
  for (const [i, state] of copy.hostInterrupts.entries()) module.host.interrupts[i].state = state;
  for (const [i, vm] of copy.vms.entries()) {
    const kvm = module.vmList[i];
    if (vm.vcpus.length !== kvm.vcpus.length) throw new RangeError("snapshot of another number of vCPUs");
    kvm.state = vm.state;
    if (kvm.vpic && vm.pic) kvm.vpic.state = vm.pic;
    if (kvm.vioapic && vm.ioapic) kvm.vioapic.state = vm.ioapic;
    if (kvm.vpit && vm.pit) kvm.vpit.state = vm.pit;
    for (const [j, v] of vm.vcpus.entries()) {
      const vcpu = kvm.vcpus[j];
      vcpu.state = v.state;
      vcpu.cpu = null;
      if (vcpu.apic && v.lapic) vcpu.apic.state = v.lapic;
    }
  }
}
