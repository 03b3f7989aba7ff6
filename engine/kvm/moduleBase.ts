/**
 * The kvm module as loaded in an emulated host (kvm_init): parameters, vmcs_config, one record per physical processor, and
 * the vendor module's operations, which module.ts brings in (nothing below the file descriptors imports a vendor).
 */

import { Off } from "../cpu/state";
import type { Host } from "./host";
import { bootHostProcessor } from "./hostKernel";
import { type KvmParams, resolveParams } from "./params";
import type { Kvm } from "./types";
import { setupVmcsConfig, type VmcsConfig, type VmxFeatures, vmxFeatures } from "./vmx/capabilities";
import type { KvmX86Ops } from "./x86Ops";

/** Per-CPU variables of KVM. */
export interface PerCpuState {
  /** current_vmcs: physical address, -1 for none. */
  currentVmcs: number;
  /** vmxarea: the VMXON region. */
  vmxArea: number;
  vmxEnabled: boolean;
  /** vCPU whose user-return MSRs and FPU state are in the processor: VM number and vCPU index, -1 for the host's. */
  guestStateOwner: number;
}

/** What the module holds besides its VMs, plain data. */
export interface KvmModuleState {
  perCpu: PerCpuState[];
  /** vmx_vpid_bitmap: VPIDs in use. */
  vpids: boolean[];
  /** kvm_usage_count: VMs. */
  usageCount: number;
  /** Page the host kernel's CR3 points to. */
  hostPageTable: number;
  /** Kernel log. */
  log: string[];
}

const LOG_LIMIT = 200;

/** What the rest of the model asks of the module: parameters, features, host, operations. */
export class KvmModuleBase {
  readonly params: KvmParams;
  readonly config: VmcsConfig;
  readonly features: VmxFeatures;
  readonly vmList: Kvm[] = [];
  /** Numbers of VMs are not used again: their chips keep their names at the clock. */
  nextVmId = 0;
  /** General registers of the active processor, whose block lies at the start of the engine's memory. */
  readonly activeGprs: BigUint64Array;
  state: KvmModuleState;

  /** @throws RangeError for a bad parameter, VmxUnsupported when the processors cannot carry KVM */
  constructor(
    readonly host: Host,
    readonly ops: KvmX86Ops,
    params: Readonly<Record<string, boolean | number>>,
  ) {
    this.params = resolveParams(params);
    this.activeGprs = new BigUint64Array(host.memory.memory.buffer, Off.GPR, 16);
    const hostPageTable = host.allocatePages(1);
    for (const cpu of host.processors) bootHostProcessor(cpu, hostPageTable);
    this.config = setupVmcsConfig(host.processors[0], this.params.error_on_inconsistent_vmcs_config);
    this.features = vmxFeatures(this.config, this.params);
    this.state = {
      perCpu: host.processors.map(() => ({
        currentVmcs: -1,
        vmxArea: -1,
        vmxEnabled: false,
        guestStateOwner: -1,
      })),
      vpids: [true],
      usageCount: 0,
      hostPageTable,
      log: [],
    };
    for (const perCpu of this.state.perCpu) {
      perCpu.vmxArea = host.allocatePages(1);
      host.memory.view.setUint32(host.memory.hostOffset(perCpu.vmxArea), this.config.revisionId, true);
    }
  }

  /** printk: kept for the debugger, oldest lines dropped. */
  printk(text: string): void {
    const { log } = this.state;
    log.push(text);
    if (log.length > LOG_LIMIT) log.shift();
  }
}

/** hardware_enable_all: VMX operation on every physical processor when the first VM appears. */
export function hardwareEnableAll(module: KvmModuleBase): void {
  if (module.state.usageCount++ > 0) return;
  for (let cpu = 0; cpu < module.host.processors.length; cpu++) module.ops.hardwareEnable(module, cpu);
}

/** hardware_disable_all: out of VMX operation when the last VM is gone. */
export function hardwareDisableAll(module: KvmModuleBase): void {
  if (--module.state.usageCount > 0) return;
  for (let cpu = 0; cpu < module.host.processors.length; cpu++) module.ops.hardwareDisable(module, cpu);
}
