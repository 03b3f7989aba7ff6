/** Interrupt routing and delivery (arch/x86/kvm/irq_comm.c, virt/kvm/irqchip.c). */
import { type ApicBus, DeliveryMode, type InterruptMessage } from "../devices/apic-bus";
import { KvmError } from "./errno";
import { irqchipInKernel, irqchipSplit } from "./irq";
import type { Kvm, KvmVcpu } from "./types";
import {
  KVM_IOAPIC_NUM_PINS,
  KVM_MAX_IRQ_ROUTES,
  KVM_NR_IRQCHIPS,
  KvmIrqchip,
  KvmIrqRouting,
  type KvmIrqRoutingEntry,
  type KvmMsi,
} from "./uapi";

/** KVM_MAX_IRQ_ROUTES as largest GSI. */
const GSI_LIMIT = KVM_MAX_IRQ_ROUTES;

/** Every GSI of the ISA range at PIC and I/O APIC, the others at the I/O APIC (kvm_setup_default_irq_routing). */
export function defaultRouting(): KvmIrqRoutingEntry[] {
  const routes: KvmIrqRoutingEntry[] = [];
  for (let gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
    routes.push({ gsi, type: KvmIrqRouting.IRQCHIP, irqchip: KvmIrqchip.IOAPIC, pin: gsi });
    if (gsi >= 16) continue;
    const irqchip = gsi < 8 ? KvmIrqchip.PIC_MASTER : KvmIrqchip.PIC_SLAVE;
    routes.push({ gsi, type: KvmIrqRouting.IRQCHIP, irqchip, pin: gsi & 7 });
  }
  return routes;
}

/** kvm_request_irq_source_id: userspace, the resamplers, and the PIT drive GSIs of their own. */
export const KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID = 1;

/** struct kvm_irq_ack_notifier. */
export interface KvmIrqAckNotifier {
  readonly gsi: number;
  readonly owner: string;
  irqAcked(): void;
}

/** kvm_register_irq_ack_notifier: calls it when the guest acknowledges the GSI. */
export function kvmRegisterIrqAckNotifier(kvm: Kvm, notifier: KvmIrqAckNotifier): void {
  kvm.irqAckNotifiers.push(notifier);
}

/** kvm_unregister_irq_ack_notifier, by GSI and owner. */
export function kvmUnregisterIrqAckNotifier(kvm: Kvm, gsi: number, owner: string): void {
  const at = kvm.irqAckNotifiers.findIndex((n) => n.gsi === gsi && n.owner === owner);
  if (at >= 0) kvm.irqAckNotifiers.splice(at, 1);
}

/** kvm_notify_acked_irq: the guest acknowledged the interrupt of a chip's pin. */
export function kvmNotifyAckedIrq(kvm: Kvm, irqchip: number, pin: number): void {
  if (kvm.irqAckNotifiers.length === 0) return;
  for (const route of kvm.arch.irqRoutes) {
    if (route.type !== KvmIrqRouting.IRQCHIP || route.irqchip !== irqchip || route.pin !== pin) continue;
    for (const notifier of [...kvm.irqAckNotifiers]) if (notifier.gsi === route.gsi) notifier.irqAcked();
  }
}

/** KVM_SET_GSI_ROUTING: replaces the whole table. @throws KvmError EINVAL */
export function kvmSetIrqRouting(kvm: Kvm, entries: readonly KvmIrqRoutingEntry[]): void {
  const fail = (why: string): never => {
    throw new KvmError("EINVAL", "KVM_SET_GSI_ROUTING", why);
  };
  if (!irqchipInKernel(kvm)) fail("there is no irqchip in the kernel");
  if (entries.length > KVM_MAX_IRQ_ROUTES) fail(`more than ${KVM_MAX_IRQ_ROUTES} entries`);
  for (const e of entries) {
    if (e.gsi >= GSI_LIMIT) fail(`GSI ${e.gsi} is out of range`);
    const sharing = entries.filter((o) => o !== e && o.gsi === e.gsi);
    if (e.type === KvmIrqRouting.IRQCHIP) {
      if (irqchipSplit(kvm)) fail("PIC and I/O APIC are not in the kernel");
      if (e.irqchip >= KVM_NR_IRQCHIPS) fail(`there is no irqchip ${e.irqchip}`);
      if (e.pin >= (e.irqchip === KvmIrqchip.IOAPIC ? KVM_IOAPIC_NUM_PINS : 8)) fail(`pin ${e.pin} does not exist`);
      const same = sharing.some((o) => o.type !== KvmIrqRouting.IRQCHIP || o.irqchip === e.irqchip);
      if (same) fail(`GSI ${e.gsi} goes twice to one irqchip, or to an MSI as well`);
    } else if (e.type === KvmIrqRouting.MSI) {
      if (sharing.length > 0) fail(`GSI ${e.gsi} is an MSI and goes somewhere else as well`);
      if (kvm.arch.x2apicFormat && e.address_hi & 0xff) fail("address_hi has bits 31:8 of the destination only");
    } else {
      fail("routes lead to an irqchip or are MSIs");
    }
  }
  kvm.arch.irqRoutes = entries.map((e) => ({ ...e }));
}

/** kvm_irq_line_state: a GSI is high while any of its sources is. */
function kvmIrqLineState(kvm: Kvm, sourceId: number, gsi: number, level: boolean): boolean {
  const states = kvm.arch.irqStates;
  const bit = 1 << sourceId;
  const next = level ? (states[gsi] ?? 0) | bit : (states[gsi] ?? 0) & ~bit;
  states[gsi] = next;
  return next !== 0;
}

/**
 * kvm_set_irq: drives a GSI.
 * @returns < 0 when it goes nowhere or was ignored (masked), 0 coalesced, otherwise the number of vCPUs it reached
 */
export function kvmSetIrq(kvm: Kvm, sourceId: number, gsi: number, level: boolean): number {
  let result = -1;
  const state = kvmIrqLineState(kvm, sourceId, gsi, level);
  for (const route of kvm.arch.irqRoutes) {
    if (route.gsi !== gsi) continue;
    let r: number;
    if (route.type === KvmIrqRouting.MSI) r = level ? kvmSetMsi(kvm, route) : -1;
    else if (route.irqchip === KvmIrqchip.IOAPIC) r = kvm.vioapic?.setIrq(route.pin, state) ?? -1;
    else r = kvm.vpic?.setIrq(route.pin + (route.irqchip === KvmIrqchip.PIC_SLAVE ? 8 : 0), state) ?? -1;
    if (r >= 0) result = Math.max(result, 0) + r;
  }
  return result;
}

/** kvm_set_msi_irq: address and data as in SDM 3A 10.11. */
function kvmSetMsiIrq(
  msi: { address_lo: number; address_hi: number; data: number },
  x2apicFormat: boolean,
): InterruptMessage {
  const destination = (msi.address_lo >>> 12) & 0xff;
  return {
    vector: msi.data & 0xff,
    deliveryMode: (msi.data >> 8) & 7,
    logical: (msi.address_lo & 4) !== 0,
    destination: x2apicFormat ? (destination | (msi.address_hi & 0xffffff00)) >>> 0 : destination,
    level: (msi.data & 0x8000) !== 0,
    assert: true,
    exclude: -1,
  };
}

/** kvm_set_msi */
function kvmSetMsi(kvm: Kvm, msi: { address_lo: number; address_hi: number; data: number }): number {
  return kvmIrqDeliveryToApic(kvm, kvmSetMsiIrq(msi, kvm.arch.x2apicFormat));
}

/** KVM_SIGNAL_MSI. @throws KvmError EINVAL */
export function kvmSendUserspaceMsi(kvm: Kvm, msi: KvmMsi): number {
  if (!irqchipInKernel(kvm) || msi.flags !== 0) {
    throw new KvmError("EINVAL", "KVM_SIGNAL_MSI", "it needs an irqchip in the kernel and flags 0");
  }
  if (kvm.arch.x2apicFormat && msi.address_hi & 0xff) {
    throw new KvmError("EINVAL", "KVM_SIGNAL_MSI", "address_hi has bits 31:8 of the destination only");
  }
  return kvmSetMsi(kvm, msi);
}

/** kvm_vector_to_index: which of `count` candidates a vector belongs to. */
const kvmVectorToIndex = (vector: number, count: number): number => vector % count;

/** kvm_apic_set_irq */
function kvmApicSetIrq(vcpu: KvmVcpu, irq: InterruptMessage): void {
  vcpu.apic?.chip.accept(irq.deliveryMode, irq.vector, irq.level, irq.assert);
}

/** kvm_irq_delivery_to_apic. @returns how many vCPUs accepted it, -1 for none */
function kvmIrqDeliveryToApic(kvm: Kvm, irq: InterruptMessage): number {
  let accepted = -1;
  const candidates: KvmVcpu[] = [];
  for (const vcpu of kvm.vcpus) {
    const chip = vcpu.apic?.chip;
    if (!chip || chip.id === irq.exclude || !chip.matches(irq.destination, irq.logical)) continue;
    if (irq.deliveryMode === DeliveryMode.LOWEST_PRIORITY) {
      if (chip.enabled) candidates.push(vcpu);
      continue;
    }
    accepted = Math.max(accepted, 0) + 1;
    kvmApicSetIrq(vcpu, irq);
  }
  if (candidates.length === 0) return accepted;
  let chosen = candidates[kvmVectorToIndex(irq.vector, candidates.length)];
  if (!kvm.module.params.vector_hashing) {
    chosen = candidates[0];
    for (const vcpu of candidates) {
      if ((vcpu.apic?.chip.priority ?? 0) < (chosen.apic?.chip.priority ?? 0)) chosen = vcpu;
    }
  }
  kvmApicSetIrq(chosen, irq);
  return 1;
}

/** The bus between a VM's local APICs and its I/O APIC. */
export const kvmApicBus = (kvm: Kvm): ApicBus => ({
  deliver: (message) => kvmIrqDeliveryToApic(kvm, message) > 0,
  broadcastEoi: (vector) => kvm.vioapic?.updateEoi(vector),
});
