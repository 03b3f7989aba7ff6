/**
 * Module parameters of kvm and kvm_intel (modinfo kvm, modinfo kvm_intel) as one table. `honoured` tells whether the model
 * acts on other values than the one it runs with; setting one that is not honoured is an error, never silence.
 */

export type ParamType = "bool" | "uint" | "int";

export interface ParamRow {
  readonly name: string;
  readonly module: "kvm" | "kvm_intel";
  readonly type: ParamType;
  readonly default: boolean | number;
  readonly help: string;
  /** Values other than `default` take effect. */
  readonly honoured: boolean;
}

const row = <const Name extends string, const Type extends ParamType>(
  name: Name,
  module: "kvm" | "kvm_intel",
  type: Type,
  value: Type extends "bool" ? boolean : number,
  honoured: boolean,
  help: string,
) => ({ name, module, type, default: value as boolean | number, honoured, help });

// biome-ignore format: one row a line
const TABLE = [
  row("ignore_msrs", "kvm", "bool", false, true, "Unknown MSRs read as 0 and ignore writes instead of raising #GP."),
  row("report_ignored_msrs", "kvm", "bool", true, true, "Count and report accesses that ignore_msrs let pass."),
  row("halt_poll_ns", "kvm", "uint", 200_000, true, "Longest time a halted vCPU is polled before it is put to sleep (ns)."),
  row("halt_poll_ns_grow", "kvm", "uint", 2, true, "Factor by which a vCPU's polling window grows."),
  row("halt_poll_ns_grow_start", "kvm", "uint", 10_000, true, "First window when it grows from 0 (ns)."),
  row("halt_poll_ns_shrink", "kvm", "uint", 0, true, "Divisor by which the window shrinks; 0 makes it 0 at once."),
  row("kvmclock_periodic_sync", "kvm", "bool", true, false, "Master clock is re-synchronised every 300 s."),
  row("tsc_tolerance_ppm", "kvm", "uint", 250, false, "TSC frequencies this near to the host's need no scaling (ppm)."),
  row("lapic_timer_advance_ns", "kvm", "int", -1, false, "How much too early the TSC-deadline timer fires (ns); virtual time is exact, none is needed."),
  row("vector_hashing", "kvm", "bool", true, true, "Lowest-priority interrupts go to a vCPU chosen by the vector instead of by priority."),
  row("enable_vmware_backdoor", "kvm", "bool", false, false, "VMware's backdoor I/O ports."),
  row("enable_pmu", "kvm", "bool", true, false, "A virtual performance-monitoring unit (this processor has none)."),
  row("force_emulation_prefix", "kvm", "int", 0, false, "UD2 'k' 'v' 'm' prefix forces emulation of the next instruction."),
  row("pi_inject_timer", "kvm", "bool", false, false, "Timer interrupts are posted from another CPU."),
  row("eager_page_split", "kvm", "bool", true, false, "Huge pages are split when dirty logging starts."),
  row("min_timer_period_us", "kvm", "uint", 200, false, "Shortest period of a periodic APIC timer (us)."),
  row("tdp_mmu", "kvm", "bool", true, false, "Two-dimensional paging by the TDP MMU."),
  row("nx_huge_pages", "kvm", "bool", false, false, "Huge pages are not executable (ITLB multihit); this processor is not affected."),
  row("mmio_caching", "kvm", "bool", true, true, "MMIO is recognised by misconfigured EPT entries."),
  row("ept", "kvm_intel", "bool", true, true, "Two-dimensional paging by EPT (without: shadow paging)."),
  row("eptad", "kvm_intel", "bool", true, true, "Accessed and dirty flags in EPT entries."),
  row("vpid", "kvm_intel", "bool", true, true, "Cached translations are tagged with a VPID."),
  row("unrestricted_guest", "kvm_intel", "bool", true, true, "Real mode runs natively (without: emulated)."),
  row("flexpriority", "kvm_intel", "bool", true, true, "TPR shadow and APIC-access page."),
  row("vnmi", "kvm_intel", "bool", true, true, "NMI blocking is tracked by the processor."),
  row("enable_apicv", "kvm_intel", "bool", false, true, "APIC-register virtualization, virtual-interrupt delivery and posted interrupts."),
  row("enable_ipiv", "kvm_intel", "bool", false, false, "IPI virtualization (this processor has none)."),
  row("preemption_timer", "kvm_intel", "bool", false, true, "The guest's TSC-deadline and APIC timer runs on the VMX-preemption timer."),
  row("pml", "kvm_intel", "bool", false, true, "Dirty logging by page-modification logging."),
  row("nested", "kvm_intel", "bool", false, false, "VMX inside the guest."),
  row("ple_gap", "kvm_intel", "uint", 128, true, "Most TSC ticks between two PAUSEs of a loop; 0 turns PAUSE-loop exiting off."),
  row("ple_window", "kvm_intel", "uint", 4096, true, "TSC ticks a PAUSE loop may take."),
  row("ple_window_grow", "kvm_intel", "uint", 2, true, "Factor (or addend) by which ple_window grows after an exit."),
  row("ple_window_shrink", "kvm_intel", "uint", 0, true, "Divisor (or subtrahend) by which it shrinks; 0 resets it."),
  row("ple_window_max", "kvm_intel", "uint", 4_294_967_295, true, "Largest ple_window."),
  row("dump_invalid_vmcs", "kvm_intel", "bool", false, true, "The VMCS of a failed entry is written to the kernel log."),
  row("sgx", "kvm_intel", "bool", false, false, "SGX (this processor has none)."),
  row("pt_mode", "kvm_intel", "int", 0, false, "Intel PT mode; 0 is system-wide."),
  row("emulate_invalid_guest_state", "kvm_intel", "bool", true, false, "Guest state VMX cannot hold is emulated; with unrestricted guest there is none."),
  row("fasteoi", "kvm_intel", "bool", true, true, "EOI writes to the APIC-access page are served without the emulator."),
  row("error_on_inconsistent_vmcs_config", "kvm_intel", "bool", true, false, "Refuse processors whose capability MSRs disagree."),
] as const;

export const KVM_PARAMS: readonly ParamRow[] = TABLE;
export type KvmParams = {
  readonly [Row in (typeof TABLE)[number] as Row["name"]]: Row["type"] extends "bool" ? boolean : number;
};

/**
 * Default values overlaid with `given`.
 * @throws RangeError naming the parameter when it is unknown, of the wrong type, or not honoured
 */
export function resolveParams(given: Readonly<Record<string, boolean | number>> = {}): KvmParams {
  const params: Record<string, boolean | number> = {};
  for (const p of KVM_PARAMS) params[p.name] = p.default;
  for (const [name, value] of Object.entries(given)) {
    const p = KVM_PARAMS.find((r) => r.name === name);
    if (!p) {
      throw new RangeError(
        `KVM parameter ${name} does not exist; known are ${KVM_PARAMS.map((r) => r.name).join(", ")}`,
      );
    }
    const fits =
      p.type === "bool"
        ? typeof value === "boolean"
        : typeof value === "number" && Number.isInteger(value) && (p.type === "int" || value >= 0);
    if (!fits) throw new RangeError(`KVM parameter ${name}=${value}: a ${p.type} is expected`);
    if (value !== p.default && !p.honoured) {
      throw new RangeError(`KVM parameter ${name}=${value}: only ${p.default} is supported by this model (${p.help})`);
    }
    params[name] = value;
  }
  return params as KvmParams;
}
