/**
 * The public side of the KVM model: /dev/kvm of an emulated host as typed ioctls. See Documentation/virt/kvm/api.rst for what
 * each does; names of calls, structures and their fields are the kernel's.
 */
import { type KvmDevFd, openDevKvm } from "./fds";
import type { Host } from "./host";
import { KvmModule } from "./module";

export { Errno, errnoName, KvmError } from "./errno";
export {
  EventFd,
  KvmDevFd,
  type KvmIrqchipState,
  type KvmRunOutcome,
  KvmStatsFd,
  KvmVcpuFd,
  KvmVmFd,
  openDevKvm,
} from "./fds";
export type { Host } from "./host";
export { HostInterrupts } from "./hostKernel";
export { KvmModule } from "./module";
export { KVM_PARAMS, resolveParams } from "./params";
export { kvmRegisterFile, kvmVmcsView } from "./registerFile";
export { VmxUnsupported } from "./vmx/capabilities";

/**
 * modprobe kvm_intel with parameters, then open("/dev/kvm").
 * @throws RangeError for a bad parameter, VmxUnsupported for a processor that cannot carry KVM
 */
export function openKvm(host: Host, params: Readonly<Record<string, boolean | number>> = {}): KvmDevFd {
  return openDevKvm(new KvmModule(host, params));
}
