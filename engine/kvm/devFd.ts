/** /dev/kvm: the ioctls that concern no VM (Documentation/virt/kvm/api.rst 4.1 to 4.7, 4.46). Failures throw KvmError. */
import type { Stateful } from "../devices/chip";
import { KVM_MAX_CPUID_ENTRIES, kvmDevIoctlGetCpuid, kvmDevIoctlGetEmulatedCpuid } from "./cpuid";
import { KvmError } from "./errno";
import { kvmVmIoctlCheckExtension } from "./extensions";
import { kvmCreateVm } from "./kvmMain";
import { KVM_MCE_CAP_SUPPORTED } from "./mce";
import type { KvmModule } from "./module";
import { EMULATED_MSRS, FEATURE_MSRS, kvmGetMsrFeature, MSRS_TO_SAVE } from "./msrs";
import { type KvmSnapshot, kvmRestore, kvmSnapshot } from "./snapshot";
import * as uapi from "./uapi";
import { KvmVmFd } from "./vmFd";
import { supportedXcr0 } from "./xsave";

/** open("/dev/kvm") */
export const openDevKvm = (module: KvmModule): KvmDevFd => new KvmDevFd(module);

/** KVM_X86_XCOMP_GUEST_SUPP: XSAVE components guests may have. */
const KVM_X86_XCOMP_GUEST_SUPP = 0n;

/** Fails where userspace's array is too short for `count` entries. */
function needRoom(ioctl: string, room: number, count: number): void {
  if (room < count) throw new KvmError("E2BIG", ioctl, `there are ${count} entries`);
}

/** msr_io takes fewer than MAX_IO_MSRS entries. */
export function checkMsrCount(ioctl: string, count: number): void {
  if (count >= uapi.MAX_IO_MSRS) throw new KvmError("E2BIG", ioctl, `fewer than ${uapi.MAX_IO_MSRS} MSRs at a time`);
}

/** /dev/kvm */
export class KvmDevFd implements Stateful<KvmSnapshot> {
  constructor(readonly module: KvmModule) {}

  /** Everything of the model: module, VMs, vCPUs, chips. Valid between KVM_RUN calls. */
  get state(): KvmSnapshot {
    return kvmSnapshot(this.module);
  }
  set state(snapshot: KvmSnapshot) {
    kvmRestore(this.module, snapshot);
  }

  KVM_GET_API_VERSION(): number {
    return uapi.KVM_API_VERSION;
  }

  KVM_CHECK_EXTENSION(capability: number): number {
    return kvmVmIoctlCheckExtension(this.module, capability);
  }

  KVM_GET_VCPU_MMAP_SIZE(): number {
    return uapi.KVM_VCPU_MMAP_SIZE;
  }

  /** MCG_CAP bits KVM_X86_SETUP_MCE may have. */
  KVM_X86_GET_MCE_CAP_SUPPORTED(): bigint {
    return KVM_MCE_CAP_SUPPORTED;
  }

  /** @param type KVM_X86_DEFAULT_VM (0). @throws KvmError EINVAL */
  KVM_CREATE_VM(type = 0): KvmVmFd {
    return new KvmVmFd(kvmCreateVm(this.module, type));
  }

  /** @param nent room for entries. @throws KvmError E2BIG */
  KVM_GET_SUPPORTED_CPUID(nent = KVM_MAX_CPUID_ENTRIES): uapi.KvmCpuidEntry2[] {
    const entries = kvmDevIoctlGetCpuid(this.module);
    needRoom("KVM_GET_SUPPORTED_CPUID", nent, entries.length);
    return entries;
  }

  /** Features the emulator brings although the processor may lack them. @throws KvmError E2BIG */
  KVM_GET_EMULATED_CPUID(nent = KVM_MAX_CPUID_ENTRIES): uapi.KvmCpuidEntry2[] {
    const entries = kvmDevIoctlGetEmulatedCpuid();
    needRoom("KVM_GET_EMULATED_CPUID", nent, entries.length);
    return entries;
  }

  /** Guest MSRs worth saving, those KVM emulates included. @param nmsrs room. @throws KvmError E2BIG */
  KVM_GET_MSR_INDEX_LIST(nmsrs = Number.POSITIVE_INFINITY): number[] {
    const list = [...MSRS_TO_SAVE, ...EMULATED_MSRS];
    needRoom("KVM_GET_MSR_INDEX_LIST", nmsrs, list.length);
    return list;
  }

  /** @throws KvmError E2BIG */
  KVM_GET_MSR_FEATURE_INDEX_LIST(nmsrs = Number.POSITIVE_INFINITY): number[] {
    needRoom("KVM_GET_MSR_FEATURE_INDEX_LIST", nmsrs, FEATURE_MSRS.length);
    return [...FEATURE_MSRS];
  }

  /** @throws KvmError ENXIO for an attribute there is not */
  KVM_HAS_DEVICE_ATTR(attr: uapi.KvmDeviceAttr): void {
    this.KVM_GET_DEVICE_ATTR(attr);
  }

  /** @throws KvmError EINVAL, ENXIO */
  KVM_GET_DEVICE_ATTR(attr: uapi.KvmDeviceAttr): bigint {
    if (attr.group !== 0) throw new KvmError("ENXIO", "KVM_GET_DEVICE_ATTR", "there is no such group");
    if (attr.attr !== KVM_X86_XCOMP_GUEST_SUPP) {
      throw new KvmError("ENXIO", "KVM_GET_DEVICE_ATTR", "there is no such attribute");
    }
    return supportedXcr0(this.module);
  }

  /** Feature MSRs. @returns entries up to the first one that does not exist. @throws KvmError E2BIG */
  KVM_GET_MSRS(indices: readonly number[]): uapi.KvmMsrEntry[] {
    checkMsrCount("KVM_GET_MSRS", indices.length);
    const out: uapi.KvmMsrEntry[] = [];
    for (const index of indices) {
      const data = kvmGetMsrFeature(index);
      if (data === null) break;
      out.push({ index, data });
    }
    return out;
  }

  /** Lines KVM wrote to the kernel log. */
  get kernelLog(): readonly string[] {
    return this.module.state.log;
  }
}
