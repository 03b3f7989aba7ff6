/**
 * vmcs_config: which VMX controls KVM uses on this processor, derived from the capability MSRs (setup_vmcs_config,
 * SDM 3D appendix A). Controls are unsigned 32-bit numbers.
 */
import type { Cpu } from "../../cpu/cpu";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../cpu/vmx/controls";
import type { KvmParams } from "../params";

/** Capability MSRs (SDM 3D appendix A). */
// biome-ignore format: a table
const VmxMsr = {
  BASIC: 0x480, PINBASED_CTLS: 0x481, PROCBASED_CTLS: 0x482, EXIT_CTLS: 0x483, ENTRY_CTLS: 0x484, MISC: 0x485,
  CR0_FIXED0: 0x486, CR0_FIXED1: 0x487, CR4_FIXED0: 0x488, CR4_FIXED1: 0x489, PROCBASED_CTLS2: 0x48b,
  EPT_VPID_CAP: 0x48c, TRUE_PINBASED_CTLS: 0x48d, TRUE_PROCBASED_CTLS: 0x48e, TRUE_EXIT_CTLS: 0x48f,
  TRUE_ENTRY_CTLS: 0x490,
} as const;

/** Bits of IA32_VMX_EPT_VPID_CAP (SDM 3D A.10). */
export const EptCap = {
  EXECUTE_ONLY: 1n << 0n,
  PAGE_WALK_4: 1n << 6n,
  PAGE_WALK_5: 1n << 7n,
  UC: 1n << 8n,
  WB: 1n << 14n,
  PAGE_2M: 1n << 16n,
  PAGE_1G: 1n << 17n,
  INVEPT: 1n << 20n,
  AD: 1n << 21n,
  INVEPT_CONTEXT: 1n << 25n,
  INVEPT_GLOBAL: 1n << 26n,
  INVVPID: 1n << 32n,
  INVVPID_INDIVIDUAL: 1n << 40n,
  INVVPID_SINGLE: 1n << 41n,
  INVVPID_GLOBAL: 1n << 42n,
  INVVPID_SINGLE_NON_GLOBAL: 1n << 43n,
} as const;

const PIN_REQUIRED = PinBased.EXT_INTR_EXITING | PinBased.NMI_EXITING;
const PIN_OPTIONAL = PinBased.VIRTUAL_NMIS | PinBased.POSTED_INTR | PinBased.VMX_PREEMPTION_TIMER;

const CPU_REQUIRED =
  CpuBased.HLT_EXITING |
  CpuBased.CR3_LOAD_EXITING |
  CpuBased.CR3_STORE_EXITING |
  CpuBased.CR8_LOAD_EXITING |
  CpuBased.CR8_STORE_EXITING |
  CpuBased.UNCOND_IO_EXITING |
  CpuBased.MOV_DR_EXITING |
  CpuBased.USE_TSC_OFFSETTING |
  CpuBased.MWAIT_EXITING |
  CpuBased.MONITOR_EXITING |
  CpuBased.INVLPG_EXITING |
  CpuBased.RDPMC_EXITING |
  CpuBased.INTR_WINDOW_EXITING;
const CPU_OPTIONAL =
  CpuBased.RDTSC_EXITING |
  CpuBased.TPR_SHADOW |
  CpuBased.USE_IO_BITMAPS |
  CpuBased.MONITOR_TRAP_FLAG |
  CpuBased.USE_MSR_BITMAPS |
  CpuBased.NMI_WINDOW_EXITING |
  CpuBased.PAUSE_EXITING |
  CpuBased.ACTIVATE_SECONDARY_CONTROLS;

const SECONDARY_OPTIONAL =
  SecondaryExec.VIRTUALIZE_APIC_ACCESSES |
  SecondaryExec.VIRTUALIZE_X2APIC_MODE |
  SecondaryExec.WBINVD_EXITING |
  SecondaryExec.ENABLE_VPID |
  SecondaryExec.ENABLE_EPT |
  SecondaryExec.UNRESTRICTED_GUEST |
  SecondaryExec.PAUSE_LOOP_EXITING |
  SecondaryExec.DESC |
  SecondaryExec.ENABLE_RDTSCP |
  SecondaryExec.ENABLE_INVPCID |
  SecondaryExec.APIC_REGISTER_VIRT |
  SecondaryExec.VIRTUAL_INTR_DELIVERY |
  SecondaryExec.SHADOW_VMCS |
  SecondaryExec.ENABLE_XSAVES |
  SecondaryExec.RDSEED_EXITING |
  SecondaryExec.RDRAND_EXITING |
  SecondaryExec.ENABLE_PML |
  SecondaryExec.TSC_SCALING;

const EXIT_REQUIRED =
  VmExitControl.SAVE_DEBUG_CONTROLS | VmExitControl.ACK_INTR_ON_EXIT | VmExitControl.HOST_ADDR_SPACE_SIZE;
const EXIT_OPTIONAL =
  VmExitControl.LOAD_IA32_PERF_GLOBAL_CTRL |
  VmExitControl.SAVE_IA32_PAT |
  VmExitControl.LOAD_IA32_PAT |
  VmExitControl.SAVE_IA32_EFER |
  VmExitControl.LOAD_IA32_EFER |
  VmExitControl.CLEAR_BNDCFGS;

const ENTRY_REQUIRED = VmEntryControl.LOAD_DEBUG_CONTROLS;
const ENTRY_OPTIONAL =
  VmEntryControl.IA32E_MODE |
  VmEntryControl.LOAD_IA32_PERF_GLOBAL_CTRL |
  VmEntryControl.LOAD_IA32_PAT |
  VmEntryControl.LOAD_IA32_EFER |
  VmEntryControl.LOAD_BNDCFGS;

/** struct vmcs_config: the controls every VMCS starts with. */
export interface VmcsConfig {
  readonly revisionId: number;
  readonly basic: bigint;
  readonly pinBasedExecCtrl: number;
  readonly cpuBasedExecCtrl: number;
  readonly cpuBased2ndExecCtrl: number;
  readonly vmexitCtrl: number;
  readonly vmentryCtrl: number;
  readonly misc: bigint;
  readonly eptVpidCap: bigint;
}

/** The processor cannot carry KVM. The message names the control that is missing. */
export class VmxUnsupported extends Error {
  override readonly name = "VmxUnsupported";
}

/** A capability MSR; 0 where the processor does not have it. */
const capability = (cpu: Cpu, index: number): bigint => cpu.vmx.capability(index) ?? 0n;

/** adjust_vmx_controls: required and optional bits cut to what may be 1, raised to what must be. */
function adjustVmxControls(cpu: Cpu, required: number, optional: number, msr: number, what: string): number {
  const allowed = capability(cpu, msr);
  const mustBeOne = Number(allowed & 0xffffffffn) | 0;
  const mayBeOne = Number(allowed >> 32n) | 0;
  const ctl = ((required | optional) & mayBeOne) | mustBeOne;
  if (required & ~ctl) {
    throw new VmxUnsupported(`${what}: required controls ${((required & ~ctl) >>> 0).toString(16)} are not supported`);
  }
  return ctl >>> 0;
}

/** Controls of entry and exit that belong together. */
const VMCS_ENTRY_EXIT_PAIRS = [
  [VmEntryControl.LOAD_IA32_PERF_GLOBAL_CTRL, VmExitControl.LOAD_IA32_PERF_GLOBAL_CTRL],
  [VmEntryControl.LOAD_IA32_PAT, VmExitControl.LOAD_IA32_PAT],
  [VmEntryControl.LOAD_IA32_EFER, VmExitControl.LOAD_IA32_EFER],
  [VmEntryControl.LOAD_BNDCFGS, VmExitControl.CLEAR_BNDCFGS],
] as const;

/**
 * @param errorOnInconsistent a control that only entry or only exit has makes the processor unfit; otherwise neither is used
 * @throws VmxUnsupported when a required control is missing
 */
export function setupVmcsConfig(cpu: Cpu, errorOnInconsistent = true): VmcsConfig {
  let cpuBased = adjustVmxControls(cpu, CPU_REQUIRED, CPU_OPTIONAL, VmxMsr.PROCBASED_CTLS, "primary controls");
  const secondary =
    cpuBased & CpuBased.ACTIVATE_SECONDARY_CONTROLS
      ? adjustVmxControls(cpu, 0, SECONDARY_OPTIONAL, VmxMsr.PROCBASED_CTLS2, "secondary controls")
      : 0;
  let secondaryExec = secondary;
  if (!(cpuBased & CpuBased.TPR_SHADOW)) {
    secondaryExec &= ~(
      SecondaryExec.APIC_REGISTER_VIRT |
      SecondaryExec.VIRTUALIZE_X2APIC_MODE |
      SecondaryExec.VIRTUAL_INTR_DELIVERY
    );
  }
  // With a TPR shadow CR8 needs no exits.
  if (cpuBased & CpuBased.TPR_SHADOW) cpuBased &= ~(CpuBased.CR8_LOAD_EXITING | CpuBased.CR8_STORE_EXITING);
  const basic = capability(cpu, VmxMsr.BASIC);
  let exit = adjustVmxControls(cpu, EXIT_REQUIRED, EXIT_OPTIONAL, VmxMsr.EXIT_CTLS, "VM-exit controls");
  let entry = adjustVmxControls(cpu, ENTRY_REQUIRED, ENTRY_OPTIONAL, VmxMsr.ENTRY_CTLS, "VM-entry controls");
  for (const [entryControl, exitControl] of VMCS_ENTRY_EXIT_PAIRS) {
    if (((entry & entryControl) === 0) === ((exit & exitControl) === 0)) continue;
    if (errorOnInconsistent) {
      throw new VmxUnsupported(`VM-entry and VM-exit controls disagree (0x${entryControl.toString(16)})`);
    }
    entry &= ~entryControl;
    exit &= ~exitControl;
  }
  return {
    revisionId: Number(basic & 0x7fffffffn),
    basic,
    pinBasedExecCtrl: adjustVmxControls(cpu, PIN_REQUIRED, PIN_OPTIONAL, VmxMsr.PINBASED_CTLS, "pin-based controls"),
    cpuBasedExecCtrl: cpuBased >>> 0,
    cpuBased2ndExecCtrl: secondaryExec >>> 0,
    vmexitCtrl: exit >>> 0,
    vmentryCtrl: entry >>> 0,
    misc: capability(cpu, VmxMsr.MISC),
    eptVpidCap: capability(cpu, VmxMsr.EPT_VPID_CAP),
  };
}

/** What the module runs with after hardware_setup: parameters cut to what the processor has. */
export interface VmxFeatures {
  readonly ept: boolean;
  readonly eptAdBits: boolean;
  readonly vpid: boolean;
  readonly unrestrictedGuest: boolean;
  readonly flexpriority: boolean;
  readonly vnmi: boolean;
  readonly msrBitmap: boolean;
  readonly pleGap: number;
  readonly tscScaling: boolean;
  readonly ept2m: boolean;
  readonly ept1g: boolean;
  readonly loadEfer: boolean;
  readonly loadPat: boolean;
  /** APIC-register virtualization, virtual-interrupt delivery and posted interrupts. */
  readonly apicv: boolean;
  readonly pml: boolean;
  /** The local APIC's timer runs on the VMX-preemption timer. */
  readonly preemptionTimer: boolean;
}

/** hardware_setup: parameters against capabilities. @throws VmxUnsupported where the model has no other way */
export function vmxFeatures(config: VmcsConfig, params: KvmParams): VmxFeatures {
  const has2nd = (bit: number) => (config.cpuBased2ndExecCtrl & bit) !== 0;
  const cap = (bit: bigint) => (config.eptVpidCap & bit) !== 0n;
  const ept =
    params.ept &&
    has2nd(SecondaryExec.ENABLE_EPT) &&
    cap(EptCap.PAGE_WALK_4) &&
    cap(EptCap.WB) &&
    cap(EptCap.INVEPT_GLOBAL);
  const unrestrictedGuest = params.unrestricted_guest && ept && has2nd(SecondaryExec.UNRESTRICTED_GUEST);
  const eptAdBits = params.eptad && ept && cap(EptCap.AD);
  return {
    ept,
    eptAdBits,
    vpid:
      params.vpid &&
      has2nd(SecondaryExec.ENABLE_VPID) &&
      cap(EptCap.INVVPID) &&
      (cap(EptCap.INVVPID_SINGLE) || cap(EptCap.INVVPID_GLOBAL)),
    unrestrictedGuest,
    flexpriority:
      params.flexpriority &&
      has2nd(SecondaryExec.VIRTUALIZE_APIC_ACCESSES) &&
      (config.cpuBasedExecCtrl & CpuBased.TPR_SHADOW) !== 0,
    vnmi: params.vnmi && (config.pinBasedExecCtrl & PinBased.VIRTUAL_NMIS) !== 0,
    msrBitmap: (config.cpuBasedExecCtrl & CpuBased.USE_MSR_BITMAPS) !== 0,
    pleGap: has2nd(SecondaryExec.PAUSE_LOOP_EXITING) ? params.ple_gap : 0,
    tscScaling: has2nd(SecondaryExec.TSC_SCALING),
    ept2m: cap(EptCap.PAGE_2M),
    ept1g: cap(EptCap.PAGE_1G),
    loadEfer:
      (config.vmentryCtrl & VmEntryControl.LOAD_IA32_EFER) !== 0 &&
      (config.vmexitCtrl & VmExitControl.LOAD_IA32_EFER) !== 0,
    loadPat: (config.vmentryCtrl & VmEntryControl.LOAD_IA32_PAT) !== 0,
    apicv:
      params.enable_apicv &&
      has2nd(SecondaryExec.APIC_REGISTER_VIRT) &&
      has2nd(SecondaryExec.VIRTUAL_INTR_DELIVERY) &&
      (config.pinBasedExecCtrl & PinBased.POSTED_INTR) !== 0,
    pml: params.pml && eptAdBits && has2nd(SecondaryExec.ENABLE_PML),
    preemptionTimer: params.preemption_timer && (config.pinBasedExecCtrl & PinBased.VMX_PREEMPTION_TIMER) !== 0,
  };
}
