/** kvm_intel loaded in an emulated host: the common module with Intel's operations. */
import type { Host } from "./host";
import { KvmModuleBase } from "./moduleBase";
import { vmxX86Ops } from "./vmx/main";

/** kvm.ko and kvm_intel.ko, loaded: /dev/kvm's behaviour and all VMs. */
export class KvmModule extends KvmModuleBase {
  /** @throws RangeError for a bad parameter, VmxUnsupported when the processors cannot carry KVM */
  constructor(host: Host, params: Readonly<Record<string, boolean | number>> = {}) {
    super(host, vmxX86Ops, params);
  }
}
